/* Planes of one channel: copies, packed taps, and the correlation behind the depthwise kernels (see plane.h). */
#include "plane.h"
#include "tt_attributes.h"

int32_t tt_pack_taps(const int8_t *w, int32_t row_step, int32_t step, uint32_t kernel_h, uint32_t kernel_w,
                     uint32_t lead, uint32_t *taps) {
  int32_t sum = 0;
  for (uint32_t i = 0; i < kernel_h; i++, w += row_step) {
    uint32_t before = 0, last = 0; /* the two taps before the next, the nearer one in `last` */
    for (uint32_t j = 0; j < 2 * tt_tap_pairs(kernel_w, lead); j++) {
      int32_t tap = j >= lead && j < kernel_w + lead ? w[(int32_t)(j - lead) * step] : 0;
      sum += tap;
      if (j & 1) {
        *taps++ = tt_pack_bottoms(last, (uint32_t)tap);
        *taps++ = tt_pack_bottoms(before, last);
      }
      before = last;
      last = (uint32_t)tap;
    }
  }
  return sum;
}

uint32_t tt_band_rows(uint32_t rows, uint32_t row_bytes, uint32_t fixed_bytes) {
  uint32_t fit = fixed_bytes < TT_BAND_BYTES ? (TT_BAND_BYTES - fixed_bytes) / row_bytes : 0;
  return fit < 1 ? 1 : fit < rows ? fit : rows;
}

TT_ITCM void tt_copy_int8(const int8_t *from, uint32_t step, uint32_t count, int16_t *to) {
  for (; count >= 4; count -= 4, from += 4 * step, to += 4) {
    const int8_t *third = from + 2 * step;
    to[0] = from[0], to[1] = from[step], to[2] = third[0], to[3] = third[step];
  }
  for (; count; count--, from += step) *to++ = *from;
}

TT_ITCM void tt_copy_int16(const int16_t *from, uint32_t step, uint32_t count, int16_t *to) {
  for (; count >= 4; count -= 4, from += 4 * step, to += 4) {
    const int16_t *third = from + 2 * step;
    to[0] = from[0], to[1] = from[step], to[2] = third[0], to[3] = third[step];
  }
  for (; count; count--, from += step) *to++ = *from;
}

void tt_fill_int16(int16_t value, uint32_t count, int16_t *to) {
  for (; count; count--) *to++ = value;
}

/* Four neighbouring sums of stride 1: the words of x from 0 to `pairs`, every one met by both packings. */
TT_INLINE void row_stride1(const int16_t *x, const uint32_t *taps, uint32_t pairs, int32_t sums[4]) {
  uint32_t left = tt_load32(x);
  for (uint32_t j = 0; j < pairs; j++) {
    uint32_t right = tt_load32(x + 2 * j + 2), even, odd;
    TT_LOAD_PAIR(even, odd, taps, 2 * j);
    sums[0] = tt_smlad(even, left, sums[0]);
    sums[1] = tt_smlad(odd, left, sums[1]);
    sums[2] = tt_smlad(even, right, sums[2]);
    sums[3] = tt_smlad(odd, right, sums[3]);
    left = right;
  }
}

/* Four neighbouring sums of stride 2: they begin at even columns only. */
TT_INLINE void row_stride2(const int16_t *x, const uint32_t *taps, uint32_t pairs, int32_t sums[4]) {
  for (uint32_t j = 0; j < pairs; j++)
    for (uint32_t k = 0; k < 4; k++) sums[k] = tt_smlad(taps[2 * j], tt_load32(x + 2 * (j + k)), sums[k]);
}

/* `pairs` and `stride` are compile-time constants in the copies that matter. */
TT_INLINE void correlate(const tt_correlation *c, uint32_t pairs, uint32_t stride) {
  const int16_t *row = c->plane;
  int32_t *sums = c->sums, start = c->start;
  uint32_t step = c->sums_step, pitch = c->pitch;
  const uint32_t *end = c->taps + 2 * pairs * c->kernel_h;
  for (uint32_t r = 0; r < c->rows; r++, row += stride * pitch, sums += c->sums_pitch) {
    const int16_t *window = row;
    int32_t *sum = sums;
    for (int32_t left = (int32_t)c->columns; left > 0; left -= 4, window += 4 * stride, sum += 4 * step) {
      const int16_t *element = window;
      int32_t four[4] = {start, start, start, start};
      for (const uint32_t *taps = c->taps; taps != end; taps += 2 * pairs, element += pitch) {
        if (stride == 1) row_stride1(element, taps, pairs, four);
        else row_stride2(element, taps, pairs, four);
      }
      sum[0] = four[0];
      if (left > 1) sum[step] = four[1];
      if (left > 2) sum[2 * step] = four[2];
      if (left > 3) sum[3 * step] = four[3];
    }
  }
}

TT_ITCM static void correlate_1_1(const tt_correlation *c) { correlate(c, 1, 1); }
TT_ITCM static void correlate_2_1(const tt_correlation *c) { correlate(c, 2, 1); }
TT_ITCM static void correlate_3_1(const tt_correlation *c) { correlate(c, 3, 1); }
TT_ITCM static void correlate_4_1(const tt_correlation *c) { correlate(c, 4, 1); }
TT_ITCM static void correlate_1_2(const tt_correlation *c) { correlate(c, 1, 2); }
TT_ITCM static void correlate_2_2(const tt_correlation *c) { correlate(c, 2, 2); }
TT_ITCM static void correlate_3_2(const tt_correlation *c) { correlate(c, 3, 2); }
TT_ITCM static void correlate_4_2(const tt_correlation *c) { correlate(c, 4, 2); }

void tt_correlate(const tt_correlation *c) {
  static void (*const variants[2][4])(const tt_correlation *) = {
      {correlate_1_1, correlate_2_1, correlate_3_1, correlate_4_1},
      {correlate_1_2, correlate_2_2, correlate_3_2, correlate_4_2},
  };
  variants[c->stride - 1][c->tap_pairs - 1](c);
}
