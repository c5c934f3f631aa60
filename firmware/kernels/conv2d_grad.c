/* Gradients of the dense and pointwise convolution.
 *
 *   input    dx[h, v, c]    = sum over taps (i, j) and o of g[r, q, o] w[o, i, j, c],  r stride + i - pad = h, ...
 *   weight   dw[o, i, j, c] = sum over positions (r, q) of g[r, q, o] (x[r stride + i - pad, .., c] - z)
 *
 * Fast versions. SMLAD multiplies int16 pairs, in blocks of 2 x 2 sums. Pairs that do not lie side by side in memory
 * are first laid out in a panel, which then meets all of the other operand:
 *   input    a panel holds (w[o][c], w[o+1][c]) for two input channels, and meets g at every position
 *   weight   panels hold (x[p][c], x[p+1][c]) - z for some input channels and (g[p][o], g[p+1][o]) for two output
 *            channels; an update follows as soon as a few of its sums exist
 * A tap of a KxK kernel is a pointwise product with a shifted x or g, so larger kernels only add a loop.
 */
#include "epilogue.h"
#include "tt_attributes.h"
#include "update.h"

/* ---- input ---------------------------------------------------------------------------------------------- */
enum { POSITIONS = 16 /* handed on at a time */ };

/* Input channel j of a possibly sliced weight: its first element, and the distance from one tap to the next. */
typedef struct {
  const int8_t *first;
  uint32_t tap_step, channel;
} weight_column;

static weight_column column_of(const tt_conv_weight *w, uint32_t j) {
  uint32_t trained = w->frozen ? w->trained_channels : w->in_channels, channel = w->perm ? w->perm[j] : j;
  if (j < trained) return (weight_column){w->trained + j, trained, channel};
  return (weight_column){w->frozen + (j - trained), w->in_channels - trained, channel};
}

/* panel[tap][o / 2][2]: (w[o], w[o + 1]) of column a, then of column b. */
TT_ITCM static void pack_weights(weight_column a, weight_column b, uint32_t taps, uint32_t out_channels,
                                 uint32_t *panel) {
  uint32_t row_a = taps * a.tap_step, row_b = taps * b.tap_step;
  for (uint32_t t = 0; t < taps; t++) {
    const int8_t *wa = a.first + t * a.tap_step, *wb = b.first + t * b.tap_step;
    for (uint32_t left = out_channels; left >= 2; left -= 2, wa += 2 * row_a, wb += 2 * row_b) {
      *panel++ = tt_pack_bottoms((uint32_t)wa[0], (uint32_t)wa[row_a]);
      *panel++ = tt_pack_bottoms((uint32_t)wb[0], (uint32_t)wb[row_b]);
    }
    if (out_channels & 1) {
      *panel++ = (uint32_t)*wa & 0xFFFF;
      *panel++ = (uint32_t)*wb & 0xFFFF;
    }
  }
}

/* sums += two channels' g of two positions times a word for column a and one for column b. */
TT_INLINE void multiply_pair(uint32_t g0, uint32_t g1, uint32_t a, uint32_t b, int32_t sums[4]) {
  sums[0] = tt_smlad(g0, a, sums[0]), sums[1] = tt_smlad(g1, a, sums[1]);
  sums[2] = tt_smlad(g0, b, sums[2]), sums[3] = tt_smlad(g1, b, sums[3]);
}

/* sums += g (O,) of two positions times a panel of one tap: [position 0, position 1] of a, then of b. */
TT_INLINE void multiply_channels(const int16_t *g0, const int16_t *g1, const uint32_t *panel, uint32_t out_channels,
                                 int32_t sums[4]) {
  uint32_t a, b;
  const uint32_t *eights = panel + out_channels / 8 * 8, *pairs = panel + out_channels / 2 * 2;
  for (; panel != eights; g0 += 8, g1 += 8, panel += 8) {
    TT_LOAD_PAIR(a, b, panel, 0);
    multiply_pair(tt_load32(g0), tt_load32(g1), a, b, sums);
    TT_LOAD_PAIR(a, b, panel, 2);
    multiply_pair(tt_load32(g0 + 2), tt_load32(g1 + 2), a, b, sums);
    TT_LOAD_PAIR(a, b, panel, 4);
    multiply_pair(tt_load32(g0 + 4), tt_load32(g1 + 4), a, b, sums);
    TT_LOAD_PAIR(a, b, panel, 6);
    multiply_pair(tt_load32(g0 + 6), tt_load32(g1 + 6), a, b, sums);
    TT_OPAQUE(g0);
    TT_OPAQUE(g1);
  }
  TT_NO_UNROLL for (; panel != pairs; g0 += 2, g1 += 2, panel += 2)
    multiply_pair(tt_load32(g0), tt_load32(g1), panel[0], panel[1], sums);
  if (out_channels & 1) multiply_pair((uint16_t)*g0, (uint16_t)*g1, panel[0], panel[1], sums);
}

/* Pointwise, stride 1: sums[column][position] of `count` positions; an odd last one is computed twice. */
TT_ITCM static void multiply_positions(const int16_t *g, uint32_t channels, const uint32_t *panel, uint32_t count,
                                       int32_t (*sums)[POSITIONS]) {
  for (uint32_t n = 0; n < count; n += 2, g += 2 * channels) {
    int32_t four[4] = {0};
    multiply_channels(g, n + 1 < count ? g + channels : g, panel, channels, four);
    sums[0][n] = four[0], sums[0][n + 1] = four[1], sums[1][n] = four[2], sums[1][n + 1] = four[3];
  }
}

/* Any kernel: the sums of position (h, v), from every tap whose g exists. */
TT_NOINLINE static void multiply_window(const int16_t *g, const tt_dims *g_dims, const tt_window *window,
                                        const uint32_t *panel, int32_t h, int32_t v, int32_t *sum_a, int32_t *sum_b) {
  uint32_t tap_words = (g_dims->channels + 1u) / 2 * 2;
  int32_t four[4] = {0}, stride = window->stride;
  for (int32_t i = 0; i < window->kernel_h; i++)
    for (int32_t j = 0; j < window->kernel_w; j++, panel += tap_words) {
      int32_t r = h + window->pad_top - i, q = v + window->pad_left - j;
      if (r < 0 || q < 0 || r % stride || q % stride) continue;
      if (r / stride >= g_dims->height || q / stride >= g_dims->width) continue;
      const int16_t *pixel = g + (r / stride * g_dims->width + q / stride) * g_dims->channels;
      multiply_channels(pixel, pixel, panel, g_dims->channels, four);
    }
  *sum_a = four[0], *sum_b = four[2];
}

/* scratch: the panel, uint32[KH KW][ceil(O / 2)][2]. */
void tt_conv2d_grad_input(const tt_dfp *g, const tt_dims *g_dims, const tt_conv_weight *w, const tt_window *window,
                          const tt_dims *out, const tt_epilogue *epilogue, void *scratch) {
  uint32_t *panel = scratch, taps = (uint32_t)window->kernel_h * window->kernel_w, channels = w->out_channels;
  uint32_t positions = (uint32_t)out->height * out->width;
  int pointwise = taps == 1 && window->stride == 1;
  tt_writer writer;
  tt_writer_open(&writer, epilogue, out->channels, tt_dfp_scale(g->state));
  for (uint32_t j = 0; j < w->in_channels; j += 2) {
    int pair = j + 1 < w->in_channels;
    weight_column a = column_of(w, j), b = pair ? column_of(w, j + 1) : a;
    pack_weights(a, b, taps, channels, panel);
    for (uint32_t start = 0; start < positions; start += POSITIONS) {
      uint32_t count = positions - start < POSITIONS ? positions - start : POSITIONS;
      int32_t sums[2][POSITIONS];
      if (pointwise)
        multiply_positions(g->mantissa + start * channels, channels, panel, count, sums);
      else
        for (uint32_t n = 0; n < count; n++)
          multiply_window(g->mantissa, g_dims, window, panel, (int32_t)((start + n) / out->width),
                          (int32_t)((start + n) % out->width), &sums[0][n], &sums[1][n]);
      tt_writer_positions(&writer, sums[0], start, a.channel, count);
      if (pair) tt_writer_positions(&writer, sums[1], start, b.channel, count);
    }
  }
  tt_writer_close(&writer);
}

/* ---- weight --------------------------------------------------------------------------------------------- */
enum { PANEL_BYTES = 2048, COLUMNS = 16 /* input channels in the x panels at most, an even number */ };

/* panels[pair of channels][p / 2][2]: x - z of `columns` channels from `first` on under tap (i, j), positions in
 * pairs; zero outside the image. `half` is ceil(positions / 2). */
TT_ITCM static void pack_x(const tt_input *x, const tt_window *window, const tt_dims *g_dims, int32_t i, int32_t j,
                           uint32_t first, uint32_t columns, uint32_t half, int16_t *panels) {
  uint32_t p = 0;
  int32_t h = i - window->pad_top;
  for (uint32_t r = 0; r < g_dims->height; r++, h += window->stride) {
    int32_t v = j - window->pad_left;
    for (uint32_t q = 0; q < g_dims->width; q++, v += window->stride, p++) {
      int16_t *to = panels + p / 2 * 4 + p % 2;
      int inside = h >= 0 && h < x->height && v >= 0 && v < x->width;
      const int8_t *from = x->data + (h * x->width + v) * x->channels + first;
      for (uint32_t c = 0; c < columns; c++)
        to[c / 2 * half * 4 + c % 2 * 2] = (int16_t)(inside ? from[c] - x->zero_point : 0);
    }
  }
}

/* panel[p / 2][2]: g of output channel o, and of o + 1 if there is one, positions in pairs. */
TT_ITCM static void pack_g(const int16_t *g, uint32_t channels, uint32_t positions, int pair, uint32_t *panel) {
  const uint32_t *end = panel + positions / 2 * 2;
  if (pair)
    for (; panel != end; g += 2 * channels, panel += 2) {
      uint32_t first = tt_load32(g), second = tt_load32(g + channels);
      panel[0] = tt_pack_bottoms(first, second);
      panel[1] = tt_pack_tops(first, second);
    }
  else
    TT_NO_UNROLL for (; panel != end; g += 2 * channels, panel += 2) {
      panel[0] = tt_pack_bottoms((uint32_t)g[0], (uint32_t)g[channels]);
      panel[1] = 0;
    }
  if (positions & 1) {
    panel[0] = (uint16_t)g[0];
    panel[1] = pair ? (uint16_t)g[1] : 0;
  }
}

/* sums[output channel][input channel] += two words of a g panel times two of an x panel; `word` is a literal. */
TT_INLINE void multiply_words(const uint32_t *g, const uint32_t *x, uint32_t word, int32_t sums[4]) {
  uint32_t g0, g1, x0, x1;
  TT_LOAD_PAIR(g0, g1, g, 2 * word);
  TT_LOAD_PAIR(x0, x1, x, 2 * word);
  sums[0] = tt_smlad(g0, x0, sums[0]), sums[1] = tt_smlad(g0, x1, sums[1]);
  sums[2] = tt_smlad(g1, x0, sums[2]), sums[3] = tt_smlad(g1, x1, sums[3]);
}

/* sums[output channel][input channel] of one g panel and the panels of `columns` input channels. */
TT_ITCM static void multiply_panels(const uint32_t *g_panel, const uint32_t *x, uint32_t columns, uint32_t half,
                                    int32_t (*sums)[COLUMNS]) {
  const uint32_t *fours = g_panel + half / 4 * 8, *end = g_panel + 2 * half;
  for (int32_t *to = sums[0], *last = to + columns; to < last; to += 2) {
    const uint32_t *g = g_panel;
    int32_t four[4] = {0};
    for (; g != fours; g += 8, x += 8) {
      multiply_words(g, x, 0, four);
      multiply_words(g, x, 1, four);
      multiply_words(g, x, 2, four);
      multiply_words(g, x, 3, four);
      TT_OPAQUE(g);
    }
    TT_NO_UNROLL for (; g != end; g += 2, x += 2) multiply_words(g, x, 0, four);
    to[0] = four[0], to[1] = four[1], to[COLUMNS] = four[2], to[COLUMNS + 1] = four[3];
  }
}

/* scratch: the g panel, uint32[half][2]; the x panels, uint32[columns / 2][half][2]. half = ceil(positions / 2) */
void tt_conv2d_grad_weight(const tt_dfp *g, const tt_dims *g_dims, const tt_input *x, const tt_window *window,
                           const tt_update *update, void *scratch) {
  uint32_t out_channels = g_dims->channels, in_channels = x->channels, kernel_w = window->kernel_w;
  uint32_t positions = (uint32_t)g_dims->height * g_dims->width, half = (positions + 1) / 2;
  uint32_t taps = window->kernel_h * kernel_w, pairs = PANEL_BYTES / (8 * half);
  uint32_t columns = pairs < 1 ? 2 : pairs > COLUMNS / 2 ? COLUMNS : 2 * pairs;
  uint32_t *g_panel = scratch, *x_panels = g_panel + 2 * half;
  float rate = tt_update_rate(g);
  for (uint32_t t = 0; t < taps; t++)
    for (uint32_t c = 0; c < in_channels; c += columns) {
      uint32_t count = in_channels - c < columns ? in_channels - c : columns;
      pack_x(x, window, g_dims, (int32_t)(t / kernel_w), (int32_t)(t % kernel_w), c, count, half, (int16_t *)x_panels);
      for (uint32_t o = 0; o < out_channels; o += 2) {
        int32_t sums[2][COLUMNS];
        uint32_t rows = o + 1 < out_channels ? 2 : 1;
        pack_g(g->mantissa + o, out_channels, positions, rows == 2, g_panel);
        multiply_panels(g_panel, x_panels, count, half, sums);
        for (uint32_t k = 0; k < rows; k++) {
          uint32_t position = ((o + k) * taps + t) * in_channels + c;
          tt_update_run(update, sums[k], count, update->coefficient[o + k] * rate, position, position);
        }
      }
    }
}
