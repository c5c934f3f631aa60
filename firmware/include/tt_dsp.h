/* The Cortex-M7 instructions the kernels are built on, one inline function each, with the same integer result
 * in portable C for the host. Names follow the ARMv7-M Architecture Reference Manual, section A7.7.
 *
 * A word holds two int16 "halves" (bottom, top) or four int8. Loads need no alignment: the M7 does
 * unaligned LDR and STR in hardware.
 */
#ifndef TT_DSP_H
#define TT_DSP_H

#include <stddef.h>
#include <stdint.h>

#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#endif

#define TT_INLINE static inline __attribute__((always_inline))

/* Before a loop that is not worth the space of an unrolled copy. */
#if defined(__clang__)
#define TT_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define TT_NO_UNROLL
#endif

/* Hides how a value came about: loops keep it in a register of its own instead of working it out again. */
#define TT_OPAQUE(a) __asm__("" : "+r"(a))

/* Inside a rare branch: keeps the compiler from turning it into conditional moves that always run. */
#define TT_KEEP_BRANCH() __asm__ volatile("")

TT_INLINE uint32_t tt_load32(const void *p) {
  uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

TT_INLINE void tt_store32(void *p, uint32_t word) { __builtin_memcpy(p, &word, sizeof word); }

/* The first `count` (1..3) bytes at p, zeros above: never reads past the end of an array. */
TT_INLINE uint32_t tt_load_tail(const int8_t *p, uint32_t count) {
  uint32_t word = (uint8_t)p[0];
  if (count > 1) word |= (uint32_t)(uint8_t)p[1] << 8;
  if (count > 2) word |= (uint32_t)(uint8_t)p[2] << 16;
  return word;
}

TT_INLINE int32_t tt_bottom(uint32_t word) { return (int16_t)word; }
TT_INLINE int32_t tt_top(uint32_t word) { return (int32_t)word >> 16; }

/* PKHBT, PKHTB: (bottom of low, bottom of high) and (top of low, top of high). */
TT_INLINE uint32_t tt_pack_bottoms(uint32_t low, uint32_t high) { return (low & 0xFFFFu) | (high << 16); }
TT_INLINE uint32_t tt_pack_tops(uint32_t low, uint32_t high) { return (low >> 16) | (high & 0xFFFF0000u); }

TT_INLINE uint32_t tt_ror8(uint32_t word) { return (word >> 8) | (word << 24); }

#if defined(__ARM_FEATURE_DSP)

/* SMLAD: sum + both products of halves. */
TT_INLINE int32_t tt_smlad(uint32_t a, uint32_t b, int32_t sum) {
  return __smlad((int16x2_t)a, (int16x2_t)b, sum);
}

/* LDRD: a = words[i], b = words[i + 1]; i is known when compiled. Clang itself merges few such loads. */
#define TT_LOAD_PAIR(a, b, words, i)        \
  __asm__("ldrd %0, %1, [%2, %3]"           \
          : "=r"(a), "=r"(b)                \
          : "r"(words), "i"(4 * (i)), "m"(*(const struct { uint32_t all[64]; } *)(words)))

/* What comes before and after stays apart. Left alone, clang interleaves unrolled rows and runs out of registers. */
#define TT_KEEP_ORDER(a, b, c, d, e, f) __asm__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f))

/* SXTAB16: halves of `base` plus bytes 0 and 2, sign-extended; bytes 1 and 3 after tt_ror8. */
TT_INLINE uint32_t tt_sxtab16(uint32_t base, uint32_t bytes) {
  return (uint32_t)__sxtab16((int16x2_t)base, (int8x4_t)bytes);
}
TT_INLINE uint32_t tt_sxtb16(uint32_t bytes) { return (uint32_t)__sxtb16((int8x4_t)bytes); }

/* VCVTR: nearest integer, ties to even; saturates. */
TT_INLINE int32_t tt_rint(float value) {
  float bits;
  int32_t result;
  __asm__("vcvtr.s32.f32 %0, %1" : "=t"(bits) : "t"(value));
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

#else

#define TT_LOAD_PAIR(a, b, words, i) ((a) = (words)[i], (b) = (words)[(i) + 1])
#define TT_KEEP_ORDER(a, b, c, d, e, f) ((void)0)

/* The sum wraps as the instruction does; the compiler has proved that it need not. */
TT_INLINE int32_t tt_smlad(uint32_t a, uint32_t b, int32_t sum) {
  uint32_t low = (uint32_t)(tt_bottom(a) * tt_bottom(b)), high = (uint32_t)(tt_top(a) * tt_top(b));
  return (int32_t)((uint32_t)sum + low + high);
}

TT_INLINE uint32_t tt_sxtab16(uint32_t base, uint32_t bytes) {
  uint32_t low = base + (uint32_t)(int8_t)bytes, high = (base >> 16) + (uint32_t)(int8_t)(bytes >> 16);
  return tt_pack_bottoms(low, high);
}
TT_INLINE uint32_t tt_sxtb16(uint32_t bytes) { return tt_sxtab16(0, bytes); }

TT_INLINE int32_t tt_rint(float value) {
  if (value >= 2147483648.0f) return INT32_MAX;
  if (value <= -2147483648.0f) return INT32_MIN;
  return (int32_t)__builtin_rintf(value);
}

#endif

/* VMAXNM, VMINNM. */
TT_INLINE float tt_max(float a, float b) { return __builtin_fmaxf(a, b); }
TT_INLINE float tt_min(float a, float b) { return __builtin_fminf(a, b); }
TT_INLINE float tt_clampf(float value, float bound) { return tt_max(-bound, tt_min(value, bound)); }

/* 2^e as float32, -126 <= e <= 127. */
TT_INLINE float tt_power_of_two(int32_t e) {
  uint32_t bits = (uint32_t)(e + 127) << 23;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

#endif
