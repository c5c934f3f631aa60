/* Dense and pointwise convolution, forward.
 *
 *   x (H, W, I) int8, w (O, KH, KW, I) int8, b (O,) int32 -> y (Ho, Wo, O) int8
 *   sum = b[o] + sum_{i,j,c} (x[.. + (i, j), c] - z_x) w[o, i, j, c],   y = requantized sum
 *
 * Fast version. The window of each of four positions is expanded to int16 x - z, once for all output channels.
 * SXTB16 unpacks a word of four weights as (w0, w2) and (w1, w3), so the expanded window is kept in that order
 * and no weight is ever shuffled: a group of four channels costs one load and two SXTB16 for the weights, one
 * LDRD and two SMLAD for each position.
 *
 * A sliced weight is two shorter rows, trained and frozen, and the window lists the channels in their order.
 *
 * scratch: the expanded windows, then (unless a window lies in memory as it is needed) its int8 bytes:
 *   uint32[groups][POSITIONS][2], groups = ceil(KH KW k / 4) + ceil(KH KW (I - k) / 4);  int8[KH KW I]
 */
#include "epilogue.h"

enum { POSITIONS = 4, CHANNELS = 8 /* outputs handed on at a time */, GROUP_WORDS = 2 * POSITIONS };

typedef struct {
  const int8_t *row;  /* of output channel 0 */
  uint32_t length;    /* KH KW times the channels of this slice */
} segment;

static uint32_t groups(uint32_t length) { return (length + 3) / 4; }

/* Expand `count` bytes into one position's words of consecutive groups; minus_z in both halves. */
static void expand(const int8_t *x, uint32_t count, uint32_t minus_z, uint32_t *words) {
  for (; count >= 4; count -= 4, x += 4, words += GROUP_WORDS) {
    uint32_t four = tt_load32(x);
    words[0] = tt_sxtab16(minus_z, four);
    words[1] = tt_sxtab16(minus_z, tt_ror8(four));
  }
  if (count) { /* the missing ones meet zero weights */
    uint32_t rest = tt_load_tail(x, count);
    words[0] = tt_sxtab16(minus_z, rest);
    words[1] = tt_sxtab16(minus_z, tt_ror8(rest));
  }
}

/* Channels first..last of every tap of the window at output (row, column); outside the image reads z. */
static int8_t *gather(const tt_input *x, const tt_window *window, const uint16_t *perm, uint32_t first,
                      uint32_t last, int32_t row, int32_t column, int8_t *bytes) {
  for (int32_t i = 0; i < window->kernel_h; i++) {
    for (int32_t j = 0; j < window->kernel_w; j++) {
      int32_t h = row * window->stride + i - window->pad_top, v = column * window->stride + j - window->pad_left;
      if (h < 0 || h >= x->height || v < 0 || v >= x->width) {
        for (uint32_t c = first; c < last; c++) *bytes++ = (int8_t)x->zero_point;
        continue;
      }
      const int8_t *pixel = x->data + (uint32_t)(h * x->width + v) * x->channels;
      for (uint32_t c = first; c < last; c++) *bytes++ = pixel[perm ? perm[c] : c];
    }
  }
  return bytes;
}

/* sums[p] += row . window p, for a segment of a weight row. */
TT_INLINE void dot(const int8_t *row, uint32_t length, const uint32_t *words, int32_t sums[POSITIONS]) {
  int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
  for (;; length -= 4, row += 4, words += GROUP_WORDS) {
    if (length == 0) break;
    uint32_t four = length >= 4 ? tt_load32(row) : tt_load_tail(row, length);
    uint32_t even = tt_sxtb16(four), odd = tt_sxtb16(tt_ror8(four));
    s0 = tt_smlad(odd, words[1], tt_smlad(even, words[0], s0));
    s1 = tt_smlad(odd, words[3], tt_smlad(even, words[2], s1));
    s2 = tt_smlad(odd, words[5], tt_smlad(even, words[4], s2));
    s3 = tt_smlad(odd, words[7], tt_smlad(even, words[6], s3));
    if (length < 4) break;
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

void tt_conv2d(const tt_input *x, const tt_conv_weight *w, const int32_t *bias, const tt_window *window,
               const tt_requant *out, void *scratch) {
  uint32_t taps = (uint32_t)window->kernel_h * window->kernel_w;
  uint32_t trained = w->frozen ? w->trained_channels : w->in_channels;
  segment segments[2] = {{w->trained, taps * trained}, {w->frozen, taps * (w->in_channels - trained)}};
  uint32_t *windows = scratch, *second = windows + groups(segments[0].length) * GROUP_WORDS;
  int8_t *bytes = (int8_t *)(second + groups(segments[1].length) * GROUP_WORDS);
  uint32_t minus_z = (uint32_t)(-x->zero_point & 0xFFFF) * 0x10001u;
  uint32_t positions = (uint32_t)out->height * out->width;

  tt_requantize_open(out);
  for (uint32_t start = 0; start < positions; start += POSITIONS) {
    uint32_t here = positions - start < POSITIONS ? positions - start : POSITIONS;
    for (uint32_t p = 0; p < here; p++) {
      int32_t row = (int32_t)((start + p) / out->width), column = (int32_t)((start + p) % out->width);
      int8_t *rest = gather(x, window, w->perm, 0, trained, row, column, bytes);
      gather(x, window, w->perm, trained, w->in_channels, row, column, rest);
      expand(bytes, segments[0].length, minus_z, windows + 2 * p);
      expand(rest, segments[1].length, minus_z, second + 2 * p);
    }
    for (uint32_t o = 0; o < w->out_channels; o += CHANNELS) {
      uint32_t count = w->out_channels - o < CHANNELS ? w->out_channels - o : CHANNELS;
      int32_t sums[POSITIONS][CHANNELS];
      for (uint32_t n = 0; n < count; n++) {
        int32_t b = bias[o + n], four[POSITIONS] = {b, b, b, b};
        dot(segments[0].row + (o + n) * segments[0].length, segments[0].length, windows, four);
        if (segments[1].length)
          dot(segments[1].row + (o + n) * segments[1].length, segments[1].length, second, four);
        for (uint32_t p = 0; p < POSITIONS; p++) sums[p][n] = four[p];
      }
      for (uint32_t p = 0; p < here; p++)
        tt_requantize_run(out, sums[p], (tt_run){(start + p) * w->out_channels + o, 1, count, o, 1});
    }
  }
}
