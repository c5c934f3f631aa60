/* Planes of one channel: copies, packed taps, and the correlation behind the depthwise kernels (see plane.h).
 *
 * Two neighbouring sums are computed at once: SMLAD multiplies two taps of a row by a pair of elements, which
 * one unaligned load fetches from any column.
 */
#include "plane.h"

void tt_pack_taps(const int8_t *w, int32_t row_step, int32_t step, uint32_t kernel_h, uint32_t kernel_w,
                  uint32_t *taps) {
  for (uint32_t i = 0; i < kernel_h; i++, w += row_step) {
    const int8_t *tap = w;
    for (uint32_t j = 0; j < kernel_w; j += 2, tap += 2 * step)
      *taps++ = tt_pack_bottoms((uint32_t)tap[0], j + 1 < kernel_w ? (uint32_t)tap[step] : 0);
  }
}

uint32_t tt_band_rows(uint32_t rows, uint32_t row_bytes, uint32_t fixed_bytes) {
  uint32_t fit = fixed_bytes < TT_BAND_BYTES ? (TT_BAND_BYTES - fixed_bytes) / row_bytes : 0;
  return fit < 1 ? 1 : fit < rows ? fit : rows;
}

void tt_copy_int8(const int8_t *from, uint32_t step, uint32_t count, int32_t zero_point, int16_t *to) {
  for (; count; count--, from += step) *to++ = (int16_t)(*from - zero_point);
}

void tt_copy_int16(const int16_t *from, uint32_t step, uint32_t count, int16_t *to) {
  for (; count; count--, from += step) *to++ = *from;
}

void tt_zero_int16(int16_t *to, uint32_t count) {
  for (; count; count--) *to++ = 0;
}

/* kernel_h, kernel_w and stride are compile-time constants where it pays. */
TT_INLINE void correlate(const tt_correlation *c, uint32_t kernel_h, uint32_t kernel_w, uint32_t stride) {
  const int16_t *row = c->plane;
  int32_t *sums = c->sums;
  for (uint32_t r = 0; r < c->rows; r++, row += stride * c->pitch, sums += c->sums_pitch) {
    const int16_t *window = row;
    int32_t *sum = sums;
    for (uint32_t q = 0; q < c->columns; q += 2, window += 2 * stride, sum += 2 * c->sums_step) {
      const int16_t *element = window;
      const uint32_t *tap = c->taps;
      int32_t s0 = c->start, s1 = c->start;
      for (uint32_t i = 0; i < kernel_h; i++, element += c->pitch)
        for (uint32_t j = 0; j < kernel_w; j += 2, tap++) {
          s0 = tt_smlad(tt_load32(element + j), *tap, s0);
          s1 = tt_smlad(tt_load32(element + j + stride), *tap, s1);
        }
      sum[0] = s0;
      if (q + 1 < c->columns) sum[c->sums_step] = s1;
    }
  }
}

void tt_correlate(const tt_correlation *c) { correlate(c, c->kernel_h, c->kernel_w, c->stride); }
