/* One channel at a time: the padded plane that the depthwise kernels copy a channel into, and its correlation.
 *
 * A plane is int16, rows `pitch` elements apart, frame included. Taps are packed two to a word along a kernel
 * row, (w0, w1), (w2, w3), ...; the last word of an odd row is (w, 0), so a row is `tt_tap_words` words.
 */
#ifndef TT_PLANE_H
#define TT_PLANE_H

#include "tt_dsp.h"
#include "tt_kernels.h"

enum {
  TT_BAND_BYTES = 2048, /* a tall plane is taken in bands of rows that fit about this much scratch */
  TT_PLANE_SLACK = 4    /* elements that pair loads may touch behind the last row */
};

TT_INLINE uint32_t tt_tap_words(uint32_t kernel_w) { return (kernel_w + 1) / 2; }

/* Pack taps[i][j] = w[i * row_step + j * step], kernel_h rows of kernel_w. */
void tt_pack_taps(const int8_t *w, int32_t row_step, int32_t step, uint32_t kernel_h, uint32_t kernel_w,
                  uint32_t *taps);

/* Output rows of a band: as many as fit TT_BAND_BYTES at `row_bytes` each besides `fixed_bytes`, from 1 to all. */
uint32_t tt_band_rows(uint32_t rows, uint32_t row_bytes, uint32_t fixed_bytes);

/* Copy `count` elements that lie `step` apart, less the zero point. */
void tt_copy_int8(const int8_t *from, uint32_t step, uint32_t count, int32_t zero_point, int16_t *to);
void tt_copy_int16(const int16_t *from, uint32_t step, uint32_t count, int16_t *to);
void tt_zero_int16(int16_t *to, uint32_t count);

typedef struct {
  const int16_t *plane; /* the element under tap (0, 0) of the first sum */
  uint32_t pitch;
  const uint32_t *taps;
  uint32_t kernel_h, kernel_w, stride;
  uint32_t rows, columns; /* sums wanted */
  int32_t start;          /* what every sum starts from */
  int32_t *sums;
  uint32_t sums_pitch, sums_step;
} tt_correlation;

/* sums[r * sums_pitch + q * sums_step] = start + sum_{i,j} plane[r stride + i][q stride + j] taps[i][j]. */
void tt_correlate(const tt_correlation *c);

#endif
