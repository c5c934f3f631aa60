/* Parameter updates: delta = float32(sum) * (coefficient[c] * (learning_rate * 2^e)), then one of four roundings.
 *
 *   fraction8   parameter and its 1/256 LSB fraction form one number; delta counts in 1/256 LSB
 *   stochastic  parameter -= floor(delta + noise), noise uniform in [0, 1) from a counter-based generator
 *   nearest     parameter -= rint(delta)
 *   truncate    parameter  = trunc(parameter - delta)
 *
 * Weights saturate at +-127, biases at +-(2^30 - 1); no step of the integer arithmetic can overflow.
 */
#include "update.h"
#include "tt_attributes.h"

enum { WEIGHT_BOUND = 127, BIAS_BOUND = (1 << 30) - 1 };
static const float DELTA_BOUND = 0x1p30f; /* a larger delta is clipped before it becomes an integer */

/* Uniform in [0, 1), 24 bits: a 32-bit finalizer (xor-shift, multiply, twice) of element, seed and step. */
static float random_unit(uint32_t index, uint32_t seed) {
  uint32_t x = (index + seed) ^ (tt_step * 0x9E3779B1u);
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  x ^= x >> 16;
  return (float)(x >> 8) * 0x1p-24f;
}

/* Saturate in place; true if that changed the value. Rare, so a branch is cheaper than conditional moves. */
TT_INLINE int saturate(int32_t *value, int32_t bound) {
  if ((uint32_t)*value + (uint32_t)bound <= 2 * (uint32_t)bound) return 0;
  TT_KEEP_BRANCH();
  *value = *value < 0 ? -bound : bound;
  return 1;
}

/* The new value of one parameter; `rounding` is a compile-time constant. */
TT_INLINE int32_t updated(int32_t value, float delta, int8_t *fraction, int32_t bound, uint8_t rounding, uint32_t seed,
                          uint32_t trained) {
  delta = tt_clampf(delta, DELTA_BOUND);
  switch (rounding) {
  case TT_FRACTION8: {
    int32_t total = *fraction - tt_rint(delta);
    value += (total + 128) >> 8;
    if (saturate(&value, bound)) total = 0;
    *fraction = (int8_t)total; /* the low byte is what the carry leaves */
    return value;
  }
  case TT_STOCHASTIC: value -= (int32_t)__builtin_floorf(delta + random_unit(trained, seed)); break;
  case TT_NEAREST: value -= tt_rint(delta); break;
  default: value = (int32_t)tt_clampf((float)value - delta, DELTA_BOUND); /* TT_TRUNCATE; it may reach 2^31 */
  }
  saturate(&value, bound);
  return value;
}

TT_INLINE void update_run(const tt_update *update, const int32_t *sums, uint32_t count, float factor, uint32_t position,
                          uint32_t trained, uint8_t rounding) {
  int8_t *weight = update->weight + position, *fraction = update->fraction + trained;
  int32_t *bias = update->bias + position;
  uint32_t seed = update->seed;
  if (update->weight)
    TT_NO_UNROLL for (; count; count--, weight++, fraction++, trained++)
      *weight = (int8_t)updated(*weight, (float)*sums++ * factor, fraction, WEIGHT_BOUND, rounding, seed, trained);
  else
    TT_NO_UNROLL for (; count; count--, bias++, fraction++, trained++)
      *bias = updated(*bias, (float)*sums++ * factor, fraction, BIAS_BOUND, rounding, seed, trained);
}

TT_ITCM void tt_update_run(const tt_update *update, const int32_t *sums, uint32_t count, float factor,
                           uint32_t position, uint32_t trained) {
  switch (update->rounding) {
  case TT_FRACTION8: update_run(update, sums, count, factor, position, trained, TT_FRACTION8); break;
  case TT_STOCHASTIC: update_run(update, sums, count, factor, position, trained, TT_STOCHASTIC); break;
  case TT_NEAREST: update_run(update, sums, count, factor, position, trained, TT_NEAREST); break;
  default: update_run(update, sums, count, factor, position, trained, TT_TRUNCATE); break;
  }
}

/* dL/db[c] = sum over positions of g[.., c]. */
void tt_grad_bias(const tt_dfp *g, uint32_t positions, uint32_t channels, const tt_update *update) {
  float rate = tt_update_rate(g);
  for (uint32_t c = 0; c < channels; c++) {
    const int16_t *mantissa = g->mantissa + c;
    int32_t sum = 0;
    for (uint32_t p = 0; p < positions; p++, mantissa += channels) sum += *mantissa;
    tt_update_run(update, &sum, 1, update->coefficient[c] * rate, c, c);
  }
}
