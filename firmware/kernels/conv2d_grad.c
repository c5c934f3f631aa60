/* Gradients of the dense and pointwise convolution.
 *
 *   input    dx[h, v, c]    = sum over taps (i, j) and o of g[r, q, o] w[o, i, j, c],  r stride + i - pad = h, ...
 *   weight   dw[o, i, j, c] = sum over positions (r, q) of g[r, q, o] (x[r stride + i - pad, .., c] - z)
 *
 * Fast versions. Both multiply int16 pairs with SMLAD and block 2 x 2, and both first lay one operand out as
 * a panel of pairs, which all the rest of the other operand then meets:
 *   input    pairs of output channels (w[o][c], w[o+1][c]) for two input channels, used at every position
 *   weight   pairs of positions (x[p][c], x[p+1][c]) - z for two input channels, used by every output channel
 * A tap of a KxK kernel is a pointwise product with a shifted x or g, so larger kernels only add a loop.
 */
#include "epilogue.h"
#include "update.h"

/* ---- input ---------------------------------------------------------------------------------------------- */
enum { RUN = 16 /* positions handed on at a time */ };

/* Where input channel j of a possibly sliced weight lies: its first element, and the distance between taps. */
typedef struct {
  const int8_t *first;
  uint32_t tap_step, channel;
} weight_column;

static weight_column column_of(const tt_conv_weight *w, uint32_t taps, uint32_t j) {
  (void)taps;
  uint32_t trained = w->frozen ? w->trained_channels : w->in_channels;
  weight_column column = {w->trained + j, trained, w->perm ? w->perm[j] : j};
  if (j >= trained) {
    column.first = w->frozen + (j - trained);
    column.tap_step = w->in_channels - trained;
  }
  return column;
}

/* panel[tap][o / 2][2]: (w[o][a], w[o + 1][a]) and the same for b. */
static void pack_weights(weight_column a, weight_column b, uint32_t taps, uint32_t out_channels, uint32_t *panel) {
  for (uint32_t t = 0; t < taps; t++) {
    const int8_t *pa = a.first + t * a.tap_step, *pb = b.first + t * b.tap_step;
    uint32_t row_a = taps * a.tap_step, row_b = taps * b.tap_step;
    for (uint32_t o = 0; o < out_channels; o += 2) {
      int pair = o + 1 < out_channels;
      *panel++ = tt_pack_bottoms((uint32_t)pa[0], pair ? (uint32_t)pa[row_a] : 0);
      *panel++ = tt_pack_bottoms((uint32_t)pb[0], pair ? (uint32_t)pb[row_b] : 0);
      pa += 2 * row_a;
      pb += 2 * row_b;
    }
  }
}

/* Two positions' g (O,) times a panel of one tap: sums[channel][position] += . */
TT_INLINE void multiply_pairs(const int16_t *g0, const int16_t *g1, const uint32_t *panel, uint32_t out_channels,
                              int32_t sums[4]) {
  int32_t a0 = sums[0], a1 = sums[1], b0 = sums[2], b1 = sums[3];
  for (; out_channels >= 2; out_channels -= 2, g0 += 2, g1 += 2, panel += 2) {
    uint32_t first = tt_load32(g0), second = tt_load32(g1);
    a0 = tt_smlad(first, panel[0], a0);
    a1 = tt_smlad(second, panel[0], a1);
    b0 = tt_smlad(first, panel[1], b0);
    b1 = tt_smlad(second, panel[1], b1);
  }
  if (out_channels) {
    uint32_t first = (uint16_t)*g0, second = (uint16_t)*g1;
    a0 = tt_smlad(first, panel[0], a0);
    a1 = tt_smlad(second, panel[0], a1);
    b0 = tt_smlad(first, panel[1], b0);
    b1 = tt_smlad(second, panel[1], b1);
  }
  sums[0] = a0, sums[1] = a1, sums[2] = b0, sums[3] = b1;
}

/* One output position of a KxK kernel: every tap whose g exists. sums[channel] of two channels. */
static void multiply_window(const int16_t *g, const tt_dims *g_dims, const tt_window *window, const uint32_t *panel,
                            int32_t h, int32_t v, int32_t sums[4]) {
  uint32_t tap_words = (g_dims->channels + 1u) / 2 * 2;
  for (int32_t i = 0; i < window->kernel_h; i++)
    for (int32_t j = 0; j < window->kernel_w; j++, panel += tap_words) {
      int32_t r = h + window->pad_top - i, q = v + window->pad_left - j;
      if (r < 0 || q < 0 || r % window->stride || q % window->stride) continue;
      r /= window->stride;
      q /= window->stride;
      if (r >= g_dims->height || q >= g_dims->width) continue;
      const int16_t *pixel = g + (uint32_t)(r * g_dims->width + q) * g_dims->channels;
      multiply_pairs(pixel, pixel, panel, g_dims->channels, sums);
    }
}

/* scratch: the panel, uint32[KH KW][ceil(O / 2)][2]. */
void tt_conv2d_grad_input(const tt_dfp *g, const tt_dims *g_dims, const tt_conv_weight *w, const tt_window *window,
                          const tt_dims *out, const tt_epilogue *epilogue, void *scratch) {
  uint32_t *panel = scratch, taps = (uint32_t)window->kernel_h * window->kernel_w;
  uint32_t positions = (uint32_t)out->height * out->width, channels = w->out_channels;
  int pointwise = taps == 1 && window->stride == 1;
  tt_writer writer;
  tt_writer_open(&writer, epilogue, out->channels, tt_dfp_scale(g->state));
  for (uint32_t j = 0; j < w->in_channels; j += 2) {
    int pair = j + 1 < w->in_channels;
    weight_column a = column_of(w, taps, j), b = pair ? column_of(w, taps, j + 1) : a;
    pack_weights(a, b, taps, channels, panel);
    for (uint32_t start = 0; start < positions; start += RUN) {
      uint32_t count = positions - start < RUN ? positions - start : RUN;
      int32_t sums_a[RUN], sums_b[RUN];
      for (uint32_t n = 0; n < count; n += 2) {
        for (uint32_t k = 0; !pointwise && k < 2 && n + k < count; k++) {
          uint32_t p = start + n + k;
          int32_t four[4] = {0};
          multiply_window(g->mantissa, g_dims, window, panel, (int32_t)(p / out->width), (int32_t)(p % out->width), four);
          sums_a[n + k] = four[0];
          sums_b[n + k] = four[2];
        }
        if (!pointwise) continue;
        const int16_t *g0 = g->mantissa + (start + n) * channels, *g1 = n + 1 < count ? g0 + channels : g0;
        int32_t four[4] = {0};
        multiply_pairs(g0, g1, panel, channels, four);
        sums_a[n] = four[0], sums_a[n + 1] = four[1];
        sums_b[n] = four[2], sums_b[n + 1] = four[3];
      }
      tt_writer_positions(&writer, sums_a, start, a.channel, count);
      if (pair) tt_writer_positions(&writer, sums_b, start, b.channel, count);
    }
  }
  tt_writer_close(&writer);
}

/* ---- weight --------------------------------------------------------------------------------------------- */
/* x - z of channel c under tap (i, j) at every output position; zero outside the image. */
static int32_t element(const tt_input *x, const tt_window *window, const tt_dims *g_dims, uint32_t p, int32_t i,
                       int32_t j, uint32_t c) {
  if (p >= (uint32_t)g_dims->height * g_dims->width) return 0;
  int32_t h = (int32_t)(p / g_dims->width) * window->stride + i - window->pad_top;
  int32_t v = (int32_t)(p % g_dims->width) * window->stride + j - window->pad_left;
  if (h < 0 || h >= x->height || v < 0 || v >= x->width) return 0;
  return x->data[(uint32_t)(h * x->width + v) * x->channels + c] - x->zero_point;
}

/* sums[2 o][2 c] over all positions; panel[p / 2][2] holds the two input channels, g (positions, O). */
TT_INLINE void sum_positions(const int16_t *g, uint32_t positions, uint32_t channels, const uint32_t *panel,
                             int32_t sums[4]) {
  int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (; positions >= 2; positions -= 2, g += 2 * channels, panel += 2) {
    uint32_t first = tt_load32(g), second = tt_load32(g + channels);
    uint32_t o0 = tt_pack_bottoms(first, second), o1 = tt_pack_tops(first, second);
    s0 = tt_smlad(o0, panel[0], s0);
    s1 = tt_smlad(o0, panel[1], s1);
    s2 = tt_smlad(o1, panel[0], s2);
    s3 = tt_smlad(o1, panel[1], s3);
  }
  if (positions) {
    uint32_t last = tt_load32(g);
    int32_t x0 = tt_bottom(panel[0]), x1 = tt_bottom(panel[1]);
    s0 += tt_bottom(last) * x0;
    s1 += tt_bottom(last) * x1;
    s2 += tt_top(last) * x0;
    s3 += tt_top(last) * x1;
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

/* The same for a single output channel, the last of an odd number. */
static void sum_positions_single(const int16_t *g, uint32_t positions, uint32_t channels, const uint32_t *panel,
                                 int32_t sums[4]) {
  sums[0] = sums[1] = 0;
  for (uint32_t p = 0; p < positions; p++, g += channels) {
    uint32_t a = panel[p / 2 * 2], b = panel[p / 2 * 2 + 1];
    sums[0] += *g * (p & 1 ? tt_top(a) : tt_bottom(a));
    sums[1] += *g * (p & 1 ? tt_top(b) : tt_bottom(b));
  }
}

/* scratch: the panel, uint32[ceil(positions / 2)][2]. */
void tt_conv2d_grad_weight(const tt_dfp *g, const tt_dims *g_dims, const tt_input *x, const tt_window *window,
                           const tt_update *update, void *scratch) {
  uint32_t *panel = scratch, out_channels = g_dims->channels, in_channels = x->channels;
  uint32_t positions = (uint32_t)g_dims->height * g_dims->width;
  uint32_t taps = (uint32_t)window->kernel_h * window->kernel_w;
  float rate = tt_update_rate(g);
  for (uint32_t t = 0; t < taps; t++)
    for (uint32_t c = 0; c < in_channels; c += 2) {
      int32_t i = (int32_t)(t / window->kernel_w), j = (int32_t)(t % window->kernel_w);
      uint32_t width = c + 1 < in_channels ? 2 : 1;
      for (uint32_t p = 0; p < positions; p += 2)
        for (uint32_t k = 0; k < 2; k++)
          panel[p + k] = tt_pack_bottoms((uint32_t)element(x, window, g_dims, p, i, j, c + k % width),
                                         (uint32_t)element(x, window, g_dims, p + 1, i, j, c + k % width));
      for (uint32_t o = 0; o < out_channels; o += 2) {
        int pair = o + 1 < out_channels;
        int32_t sums[4];
        if (pair) sum_positions(g->mantissa + o, positions, out_channels, panel, sums);
        else sum_positions_single(g->mantissa + o, positions, out_channels, panel, sums);
        for (uint32_t k = 0; k < (pair ? 2u : 1u); k++) {
          uint32_t position = ((o + k) * taps + t) * in_channels + c;
          tt_update_run(update, sums + 2 * k, width, update->coefficient[o + k] * rate, position, position);
        }
      }
    }
}
