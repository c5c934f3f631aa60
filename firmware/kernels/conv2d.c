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
 * scratch: the expanded windows, then the bytes of one window unless they lie in memory as they are needed:
 *   uint32[groups][POSITIONS][2], groups = ceil(KH KW k / 4) + ceil(KH KW (I - k) / 4);  int8[KH KW I]
 */
#include "epilogue.h"
#include "tt_attributes.h"

enum { POSITIONS = TT_TILE_POSITIONS, GROUP_WORDS = 2 * POSITIONS, CHANNELS = 16 /* handed on at a time */ };

typedef struct {
  const int8_t *row; /* of output channel 0 */
  uint32_t length;   /* KH KW times the channels of this slice */
  uint32_t *windows;
} segment;

/* Expand `count` bytes into one position's words of consecutive groups; minus_z in both halves. */
TT_ITCM static void expand(const int8_t *x, uint32_t count, uint32_t minus_z, uint32_t *words) {
  TT_NO_UNROLL for (const int8_t *end = x + (count & ~3u); x != end; x += 4, words += GROUP_WORDS) {
    uint32_t four = tt_load32(x);
    words[0] = tt_sxtab16(minus_z, four);
    words[1] = tt_sxtab16(minus_z, tt_ror8(four));
  }
  if (count & 3) { /* the missing ones meet zero weights */
    uint32_t rest = tt_load_tail(x, count & 3);
    words[0] = tt_sxtab16(minus_z, rest);
    words[1] = tt_sxtab16(minus_z, tt_ror8(rest));
  }
}

TT_INLINE int8_t *fill(int8_t value, uint32_t count, int8_t *bytes) {
  TT_NO_UNROLL for (; count; count--) *bytes++ = value;
  return bytes;
}

TT_INLINE int8_t *copy(const int8_t *from, uint32_t count, int8_t *bytes) {
  TT_NO_UNROLL for (; count >= 4; count -= 4, from += 4, bytes += 4) tt_store32(bytes, tt_load32(from));
  TT_NO_UNROLL for (; count; count--) *bytes++ = *from++;
  return bytes;
}

/* The window at (row, column) of the input; outside the image reads z. Whole channels: each row is one run. */
TT_ITCM static void gather(const tt_input *x, const tt_window *window, int32_t row, int32_t column, int8_t *bytes) {
  int32_t left = column < 0 ? -column : 0, right = column + window->kernel_w - x->width;
  int32_t channels = x->channels, inside = window->kernel_w - left - (right > 0 ? right : 0);
  int8_t zero = (int8_t)x->zero_point;
  for (int32_t h = row; h < row + window->kernel_h; h++) {
    if (h < 0 || h >= x->height || inside <= 0) {
      bytes = fill(zero, (uint32_t)(window->kernel_w * channels), bytes);
      continue;
    }
    bytes = fill(zero, (uint32_t)(left * channels), bytes);
    bytes = copy(x->data + (h * x->width + column + left) * channels, (uint32_t)(inside * channels), bytes);
    if (right > 0) bytes = fill(zero, (uint32_t)(right * channels), bytes);
  }
}

/* The same for a sliced weight: the trained channels of every tap, then the others. */
TT_ITCM static void gather_slices(const tt_input *x, const tt_window *window, const uint16_t *perm, uint32_t trained,
                                  int32_t row, int32_t column, int8_t *bytes) {
  const uint16_t *middle = perm + trained, *end = perm + x->channels;
  int8_t *rest = bytes + (uint32_t)window->kernel_h * window->kernel_w * trained;
  for (int32_t h = row; h < row + window->kernel_h; h++)
    for (int32_t v = column; v < column + window->kernel_w; v++) {
      const int8_t *pixel = x->data + (h * x->width + v) * x->channels;
      if (h < 0 || h >= x->height || v < 0 || v >= x->width) {
        bytes = fill((int8_t)x->zero_point, trained, bytes);
        rest = fill((int8_t)x->zero_point, x->channels - trained, rest);
      } else {
        for (const uint16_t *c = perm; c != middle; c++) *bytes++ = pixel[*c];
        for (const uint16_t *c = middle; c != end; c++) *rest++ = pixel[*c];
      }
    }
}

/* sums[p] += four weights . group number `group` (a literal) of window p. */
TT_INLINE void multiply_group(uint32_t weights, const uint32_t *words, uint32_t group, int32_t sums[POSITIONS]) {
  uint32_t even = tt_sxtb16(weights), odd = tt_sxtb16(tt_ror8(weights)), a, b;
  TT_LOAD_PAIR(a, b, words, group * GROUP_WORDS);
  sums[0] = tt_smlad(odd, b, tt_smlad(even, a, sums[0]));
  TT_LOAD_PAIR(a, b, words, group * GROUP_WORDS + 2);
  sums[1] = tt_smlad(odd, b, tt_smlad(even, a, sums[1]));
  TT_LOAD_PAIR(a, b, words, group * GROUP_WORDS + 4);
  sums[2] = tt_smlad(odd, b, tt_smlad(even, a, sums[2]));
  TT_LOAD_PAIR(a, b, words, group * GROUP_WORDS + 6);
  sums[3] = tt_smlad(odd, b, tt_smlad(even, a, sums[3]));
}

/* sums[n][p] += row n . window p, for the rows of one slice; they start from bias[n] if there is a bias. */
TT_ITCM static void multiply_rows(const int8_t *row, uint32_t length, const uint32_t *windows, const int32_t *bias,
                                  uint32_t count, int32_t (*sums)[POSITIONS]) {
  const uint32_t *end = windows + length / 8 * 2 * GROUP_WORDS;
  for (int32_t(*last)[POSITIONS] = sums + count; sums != last; sums++) {
    const uint32_t *words = windows;
    int32_t four[POSITIONS];
    if (bias) {
      four[0] = four[1] = four[2] = four[3] = *bias++;
    } else {
      for (uint32_t p = 0; p < POSITIONS; p++) four[p] = (*sums)[p];
    }
    for (; words != end; row += 8, words += 2 * GROUP_WORDS) {
      multiply_group(tt_load32(row), words, 0, four);
      multiply_group(tt_load32(row + 4), words, 1, four);
    }
    for (uint32_t rest = length & 7; rest; words += GROUP_WORDS) {
      uint32_t here = rest < 4 ? rest : 4;
      multiply_group(here == 4 ? tt_load32(row) : tt_load_tail(row, here), words, 0, four);
      row += here, rest -= here;
    }
    for (uint32_t p = 0; p < POSITIONS; p++) (*sums)[p] = four[p];
  }
}

void tt_conv2d(const tt_input *x, const tt_conv_weight *w, const int32_t *bias, const tt_window *window,
               const tt_requant *out, void *scratch) {
  uint32_t taps = (uint32_t)window->kernel_h * window->kernel_w, channels = w->out_channels;
  uint32_t trained = w->frozen ? w->trained_channels : w->in_channels;
  segment segments[2] = {{w->trained, taps * trained, scratch},
                         {w->frozen, taps * (w->in_channels - trained), NULL}};
  segments[1].windows = segments[0].windows + (segments[0].length + 3) / 4 * GROUP_WORDS;
  int8_t *bytes = (int8_t *)(segments[1].windows + (segments[1].length + 3) / 4 * GROUP_WORDS);
  uint32_t minus_z = (uint32_t)(-x->zero_point & 0xFFFF) * 0x10001u;
  uint32_t positions = (uint32_t)out->height * out->width;
  int32_t row = -window->pad_top, column = -window->pad_left, end = column + out->width * window->stride;

  tt_requantize_open(out);
  for (uint32_t start = 0; start < positions; start += POSITIONS) {
    uint32_t here = positions - start < POSITIONS ? positions - start : POSITIONS;
    for (uint32_t p = 0; p < here; p++) {
      const int8_t *source = bytes;
      if (w->perm) gather_slices(x, window, w->perm, trained, row, column, bytes);
      else if (taps > 1) gather(x, window, row, column, bytes);
      else source = x->data + (row * x->width + column) * x->channels;
      expand(source, segments[0].length, minus_z, segments[0].windows + 2 * p);
      if (w->frozen) expand(source + segments[0].length, segments[1].length, minus_z, segments[1].windows + 2 * p);
      column += window->stride;
      if (column == end) column = -window->pad_left, row += window->stride;
    }
    for (uint32_t o = 0; o < channels; o += CHANNELS) {
      uint32_t count = channels - o < CHANNELS ? channels - o : CHANNELS;
      int32_t sums[CHANNELS][POSITIONS];
      for (segment *s = segments; s < segments + 2; s++)
        if (s->length)
          multiply_rows(s->row + o * s->length, s->length, s->windows, s == segments ? bias + o : NULL, count, sums);
      tt_requantize_tile(out, sums, start, here, o, count);
    }
  }
}
