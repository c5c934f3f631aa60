/* Planes of one channel: copies, packed taps, and the correlation behind the depthwise kernels (see plane.h). */
#include "plane.h"
#include "tt_attributes.h"

TT_ITCM int32_t tt_pack_taps(const int8_t *w, int32_t row_step, int32_t step, uint32_t kernel_h, uint32_t kernel_w,
                             uint32_t lead, uint32_t *taps) {
  int32_t sum = 0;
  for (uint32_t i = 0; i < kernel_h; i++, w += row_step) {
    const int8_t *tap = w;
    uint32_t before = 0, left = kernel_w; /* `before`: the tap in front of the next pair */
    if (lead) {
      before = left ? (uint32_t)*tap : 0;
      sum += (int32_t)before;
      *taps++ = before << 16;
      *taps++ = 0;
      if (left) left--, tap += step;
    }
    for (; left >= 2; left -= 2, tap += 2 * step) {
      int32_t first = tap[0], second = tap[step];
      sum += first + second;
      *taps++ = tt_pack_bottoms((uint32_t)first, (uint32_t)second);
      *taps++ = tt_pack_bottoms(before, (uint32_t)first);
      before = (uint32_t)second;
    }
    if (left || (kernel_w + lead) % 2 == 0) {
      int32_t last = left ? *tap : 0;
      sum += last;
      *taps++ = (uint32_t)last & 0xFFFF;
      *taps++ = tt_pack_bottoms(before, (uint32_t)last);
    }
  }
  return sum;
}

uint32_t tt_band_rows(uint32_t rows, uint32_t row_bytes, uint32_t fixed_bytes) {
  uint32_t fit = fixed_bytes < TT_BAND_BYTES ? (TT_BAND_BYTES - fixed_bytes) / row_bytes : 0;
  return fit < 1 ? 1 : fit < rows ? fit : rows;
}

TT_ITCM void tt_load_rows(const tt_plane_source *from, int32_t h, uint32_t rows, int16_t *to, uint32_t pitch) {
  uint32_t step = from->step, step3 = 3 * step;
  TT_OPAQUE(step3);
  const int8_t *row = from->data + h * (int32_t)from->row_step;
  for (; rows; rows--, h++, row += from->row_step, to += pitch) {
    const int8_t *x = row;
    int16_t *y = to, outside = from->outside;
    uint32_t left = from->width;
    if (h < 0 || h >= from->height) {
      TT_NO_UNROLL for (; left; left--) *y++ = outside;
      continue;
    }
    TT_NO_UNROLL for (const int16_t *end = y + (left & ~3u); y != end; x += 4 * step, y += 4) {
      int16_t x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[step3];
      y[0] = x0, y[1] = x1, y[2] = x2, y[3] = x3;
    }
    TT_NO_UNROLL for (left &= 3; left; left--, x += step) *y++ = *x;
  }
}

TT_ITCM void tt_copy_rows(const int16_t *from, uint32_t row_step, uint32_t step, uint32_t width, uint32_t rows,
                          int16_t *to, uint32_t pitch) {
  uint32_t step3 = 3 * step;
  TT_OPAQUE(step3);
  for (; rows; rows--, from += row_step, to += pitch) {
    const int16_t *x = from;
    int16_t *y = to;
    uint32_t left = width;
    TT_NO_UNROLL for (const int16_t *end = y + (left & ~3u); y != end; x += 4 * step, y += 4) {
      int16_t x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[step3];
      y[0] = x0, y[1] = x1, y[2] = x2, y[3] = x3;
    }
    TT_NO_UNROLL for (left &= 3; left; left--, x += step) *y++ = *x;
  }
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

/* All but `c` are compile-time constants in the copies that matter. */
TT_INLINE void correlate(const tt_correlation *c, uint32_t kernel_h, uint32_t pairs, uint32_t stride, uint32_t step) {
  const int16_t *row = c->plane;
  int32_t *sums = c->sums;
  for (uint32_t r = c->rows; r; r--, row += stride * c->pitch, sums += c->sums_pitch) {
    const int16_t *window = row;
    int32_t *sum = sums;
    for (int32_t left = (int32_t)c->columns; left > 0; left -= 4, window += 4 * stride, sum += 4 * step) {
      const int16_t *element = window;
      const uint32_t *taps = c->taps;
      int32_t four[4] = {c->start, c->start, c->start, c->start};
      for (uint32_t i = 0; i < kernel_h; i++, taps += 2 * pairs, element += c->pitch) {
        if (stride == 1) row_stride1(element, taps, pairs, four);
        else row_stride2(element, taps, pairs, four);
        TT_KEEP_ORDER(element, taps, four[0], four[1], four[2], four[3]);
      }
      sum[0] = four[0];
      if (left >= 4) {
        sum[step] = four[1], sum[2 * step] = four[2], sum[3 * step] = four[3];
      } else {
        if (left > 1) sum[step] = four[1];
        if (left > 2) sum[2 * step] = four[2];
      }
    }
  }
}

#define VARIANT(name, kernel_h, pairs, stride, step) \
  TT_ITCM static void name(const tt_correlation *c) { correlate(c, kernel_h, pairs, stride, step); }
VARIANT(correlate_3x3, 3, 2, 1, 1)
VARIANT(correlate_5x5, 5, 3, 1, 1)
VARIANT(correlate_7x7, 7, 4, 1, 1)
VARIANT(correlate_3x3_stride2, 3, 2, 2, 1)
VARIANT(correlate_5x5_stride2, 5, 3, 2, 1)
VARIANT(correlate_7x7_stride2, 7, 4, 2, 1)
VARIANT(correlate_wide1, c->kernel_h, 1, 1, c->sums_step)
VARIANT(correlate_wide3, c->kernel_h, 2, 1, c->sums_step)
VARIANT(correlate_wide5, c->kernel_h, 3, 1, c->sums_step)
VARIANT(correlate_wide7, c->kernel_h, 4, 1, c->sums_step)
VARIANT(correlate_any_stride2, c->kernel_h, c->tap_pairs, 2, c->sums_step)

void tt_correlate(const tt_correlation *c) {
  static void (*const square[2][3])(const tt_correlation *) = {
      {correlate_3x3, correlate_5x5, correlate_7x7},
      {correlate_3x3_stride2, correlate_5x5_stride2, correlate_7x7_stride2},
  };
  static void (*const wide[4])(const tt_correlation *) = {correlate_wide1, correlate_wide3, correlate_wide5,
                                                          correlate_wide7};
  int is_square = c->kernel_h > 1 && c->kernel_h == 2 * c->tap_pairs - 1 && c->sums_step == 1;
  if (is_square) square[c->stride - 1][c->tap_pairs - 2](c);
  else if (c->stride == 1) wide[c->tap_pairs - 1](c);
  else correlate_any_stride2(c);
}
