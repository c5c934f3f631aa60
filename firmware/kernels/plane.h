/* One channel at a time: the framed plane that the depthwise kernels copy a channel into, and its correlation.
 *
 * A plane is int16, rows an even `pitch` apart, so that a word holds two neighbours from an even column on. Taps
 * of a kernel row (w0, w1, w2, ...) are packed twice, for sums that begin at an even and at an odd column:
 *   even (w0, w1), (w2, w3), ...      odd (0, w0), (w1, w2), ...      stored even, odd, even, odd, ...
 * Thus every load is an aligned word or two (an unaligned one costs the M7 three cycles more).
 */
#ifndef TT_PLANE_H
#define TT_PLANE_H

#include "tt_dsp.h"
#include "tt_kernels.h"

enum {
  TT_BAND_BYTES = 2048, /* a tall plane is taken in bands of rows that fit about this much scratch */
  TT_PLANE_SLACK = 8    /* elements behind the last row that the last sums of a row may touch */
};

/* Pairs of words in a packed kernel row that starts `lead` (0 or 1) columns late. */
TT_INLINE uint32_t tt_tap_pairs(uint32_t kernel_w, uint32_t lead) { return (kernel_w + lead) / 2 + 1; }

TT_INLINE uint32_t tt_even(uint32_t n) { return (n + 1) & ~1u; }

/* Pack taps w[i * row_step + j * step] of kernel_h rows by kernel_w, after `lead` zeros; returns their sum. */
int32_t tt_pack_taps(const int8_t *w, int32_t row_step, int32_t step, uint32_t kernel_h, uint32_t kernel_w,
                     uint32_t lead, uint32_t *taps);

/* Output rows of a band: as many as fit TT_BAND_BYTES at `row_bytes` each besides `fixed_bytes`, from 1 to all. */
uint32_t tt_band_rows(uint32_t rows, uint32_t row_bytes, uint32_t fixed_bytes);

typedef struct { /* one channel of an int8 (H, W, C) tensor, or every other column of it */
  const int8_t *data;
  uint32_t row_step, step, width;
  int32_t height;
  int16_t outside; /* what rows outside 0 .. height - 1 read as */
} tt_plane_source;

/* Copy rows h .. h + rows - 1. */
void tt_load_rows(const tt_plane_source *from, int32_t h, uint32_t rows, int16_t *to, uint32_t pitch);

/* Copy `rows` rows of `width` elements that lie `step` apart. */
void tt_copy_rows(const int16_t *from, uint32_t row_step, uint32_t step, uint32_t width, uint32_t rows, int16_t *to,
                  uint32_t pitch);
void tt_fill_int16(int16_t value, uint32_t count, int16_t *to);

typedef struct {
  const int16_t *plane; /* the element under the first tap of the first sum; an even column */
  uint32_t pitch;
  const uint32_t *taps;
  uint32_t kernel_h, tap_pairs, stride; /* stride 1 or 2 */
  uint32_t rows, columns;               /* sums wanted */
  int32_t start;                        /* what every sum starts from */
  int32_t *sums;
  uint32_t sums_pitch, sums_step;
} tt_correlation;

/* sums[r * sums_pitch + q * sums_step] = start + sum_{i,j} plane[r stride + i][q stride + j] w[i][j]. */
void tt_correlate(const tt_correlation *c);

#endif
