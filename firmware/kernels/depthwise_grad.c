/* Gradients of the depthwise convolution.
 *
 *   input    dx[h, v, c]  = sum over taps (i, j) of g[r, q, c] w[c, i, j],   r stride + i - pad = h, ...
 *   weight   dw[c, i, j]  = sum over positions (r, q) of g[r, q, c] (x[r stride + i - pad, .., c] - z)
 *
 * Fast versions. One channel at a time in int16 planes (see plane.h).
 *   input    With stride s, the row h = s m + a - pad meets only taps i = a, a + s, ...: each of the s^2 phases is a
 *            stride-1 correlation of g with its own flipped part of the kernel, and no product with a zero is made.
 *            All of g's channel is in the plane before dx is written, so dx may overwrite g.
 *   weight   SMLAD takes two neighbouring positions at once. A row of g is packed twice, (g0, g1), ... for the even
 *            taps and (0, g0), (g1, g2), ... for the odd ones, so that both meet x in aligned words. To make x's
 *            elements neighbours at stride s, a row of the plane is kept as s rows of every s-th column. The plane
 *            holds x itself, framed by z, and z sum(g) is subtracted at the end.
 */
#include "epilogue.h"
#include "plane.h"
#include "tt_attributes.h"
#include "update.h"

/* ---- input ---------------------------------------------------------------------------------------------- */
/* One dimension, split into phases. */
typedef struct {
  uint32_t stride, kernel, pad, size; /* size: of dx */
  uint32_t frame;                     /* zeros before g in the plane */
  uint32_t length;                    /* of the plane */
} axis;

static axis make_axis(uint32_t stride, uint32_t kernel, uint32_t pad, uint32_t size) {
  uint32_t reach = (kernel - 1) / stride; /* g elements before its own that an element meets */
  return (axis){stride, kernel, pad, size, reach - pad / stride, (pad + size - 1) / stride - pad / stride + 1 + reach};
}

typedef struct {
  uint32_t first, count; /* dx elements first, first + stride, ... */
  uint32_t taps, start;  /* kernel elements, and where in the plane the first sum begins */
} phase;

static phase make_phase(const axis *a, uint32_t residue) {
  uint32_t first = (residue + a->stride - a->pad % a->stride) % a->stride;
  uint32_t taps = residue < a->kernel ? (a->kernel - residue - 1) / a->stride + 1 : 0;
  uint32_t count = first < a->size ? (a->size - first - 1) / a->stride + 1 : 0;
  uint32_t middle = (first + a->pad) / a->stride; /* g element under the tap `residue` */
  return (phase){first, count, taps, middle + a->frame + 1 - taps};
}

/* scratch: int32 sums[H][W], uint32 taps[KH][pairs][2], int16 plane[rows][pitch] + slack */
void tt_depthwise_grad_input(const tt_dfp *g, const tt_dims *g_dims, const int8_t *weight, const tt_window *window,
                             const tt_dims *out, const tt_epilogue *epilogue, void *scratch) {
  axis vertical = make_axis(window->stride, window->kernel_h, window->pad_top, out->height);
  axis horizontal = make_axis(window->stride, window->kernel_w, window->pad_left, out->width);
  uint32_t channels = out->channels, stride = window->stride, pitch = tt_even(horizontal.length);
  int32_t kernel_w = window->kernel_w, step = window->stride;
  int32_t *sums = scratch;
  uint32_t *taps = (uint32_t *)(sums + (uint32_t)out->height * out->width);
  int16_t *plane = (int16_t *)(taps + window->kernel_h * tt_tap_pairs(window->kernel_w, 1) * 2);
  int16_t *inside = plane + vertical.frame * pitch + horizontal.frame;

  tt_writer writer;
  tt_writer_open(&writer, epilogue, channels, tt_dfp_scale(g->state));
  tt_fill_int16(0, vertical.length * pitch + TT_PLANE_SLACK, plane);
  for (uint32_t c = 0; c < channels; c++, weight += window->kernel_h * window->kernel_w) {
    tt_copy_rows(g->mantissa + c, g_dims->width * channels, channels, g_dims->width, g_dims->height, inside, pitch);
    for (uint32_t a = 0; a < stride; a++)
      for (uint32_t b = 0; b < stride; b++) {
        phase v = make_phase(&vertical, a), h = make_phase(&horizontal, b);
        uint32_t lead = h.start & 1; /* an odd column: begin one earlier, with a zero */
        int32_t last_i = (int32_t)a + step * ((int32_t)v.taps - 1), last_j = (int32_t)b + step * ((int32_t)h.taps - 1);
        tt_pack_taps(weight + last_i * kernel_w + last_j, -step * kernel_w, -step, v.taps, h.taps, lead, taps);
        tt_correlate(&(tt_correlation){plane + v.start * pitch + h.start - lead, pitch, taps, v.taps,
                                       tt_tap_pairs(h.taps, lead), 1, v.count, h.count, 0,
                                       sums + v.first * out->width + h.first, stride * out->width, stride});
      }
    tt_writer_positions(&writer, sums, 0, c, (uint32_t)out->height * out->width);
  }
  tt_writer_close(&writer);
}

/* ---- weight --------------------------------------------------------------------------------------------- */
enum { MAX_TAPS = 7 }; /* of a kernel row in one phase */

typedef struct {
  const int16_t *x;        /* the first row that the taps meet, columns of one phase */
  const uint32_t *g;       /* [rows][words][2] */
  uint32_t x_step;         /* from one output row to the next */
  uint32_t rows, words;
  uint32_t sums_step;
  int32_t *sums;
} tap_row;

/* sums[j] += g x of two positions, word number `word` (a literal) of both. */
TT_INLINE void sum_word(const uint32_t *g, const int16_t *x, uint32_t word, uint32_t taps, int32_t sums[MAX_TAPS]) {
  uint32_t even, odd;
  TT_LOAD_PAIR(even, odd, g, 2 * word);
  for (uint32_t j = 0; j < taps; j++)
    sums[j] = tt_smlad(j & 1 ? odd : even, tt_load32(x + 2 * word + j / 2 * 2), sums[j]);
}

/* sums[j] += sum over positions of g x, for `taps` taps of one kernel row. */
TT_INLINE void sum_taps(const tap_row *t, uint32_t taps) {
  const int16_t *row = t->x;
  const uint32_t *g = t->g;
  int32_t sums[MAX_TAPS] = {0};
  for (uint32_t r = t->rows; r; r--, row += t->x_step) {
    const int16_t *x = row;
    for (const uint32_t *end = g + t->words / 2 * 4; g != end; g += 4, x += 4) {
      sum_word(g, x, 0, taps, sums);
      sum_word(g, x, 1, taps, sums);
      TT_OPAQUE(g);
    }
    if (t->words & 1) {
      sum_word(g, x, 0, taps, sums);
      g += 2;
    }
  }
  for (uint32_t j = 0; j < taps; j++) t->sums[j * t->sums_step] += sums[j];
}

TT_ITCM static void sum_1(const tap_row *t) { sum_taps(t, 1); }
TT_ITCM static void sum_2(const tap_row *t) { sum_taps(t, 2); }
TT_ITCM static void sum_3(const tap_row *t) { sum_taps(t, 3); }
TT_ITCM static void sum_4(const tap_row *t) { sum_taps(t, 4); }
TT_ITCM static void sum_5(const tap_row *t) { sum_taps(t, 5); }
TT_ITCM static void sum_6(const tap_row *t) { sum_taps(t, 6); }
TT_ITCM static void sum_7(const tap_row *t) { sum_taps(t, 7); }

/* Pack rows of g; returns the sum of their elements. */
TT_ITCM static int32_t pack_rows(const int16_t *g, uint32_t channels, uint32_t width, uint32_t rows, uint32_t *words) {
  int32_t sum = 0;
  for (; rows; rows--) {
    uint32_t before = 0, left = width;
    TT_NO_UNROLL for (; left >= 2; left -= 2, g += 2 * channels, words += 2) {
      int32_t first = g[0], second = g[channels];
      sum += first + second;
      words[0] = tt_pack_bottoms((uint32_t)first, (uint32_t)second);
      words[1] = tt_pack_bottoms(before, (uint32_t)first);
      before = (uint32_t)second;
    }
    int32_t last = left ? *g : 0;
    sum += last;
    words[0] = (uint16_t)last;
    words[1] = tt_pack_bottoms(before, (uint32_t)last);
    words += 2, g += left * channels;
  }
  return sum;
}

/* scratch: int32 sums[KH][KW], uint32 g[band][words][2], int16 x[(band - 1) stride + KH][stride][sub_pitch] */
void tt_depthwise_grad_weight(const tt_dfp *g, const tt_dims *g_dims, const tt_input *x, const tt_window *window,
                              const tt_update *update, void *scratch) {
  static void (*const variants[MAX_TAPS])(const tap_row *) = {sum_1, sum_2, sum_3, sum_4, sum_5, sum_6, sum_7};
  uint32_t kernel_h = window->kernel_h, kernel_w = window->kernel_w, stride = window->stride, channels = x->channels;
  uint32_t words = g_dims->width / 2u + 1, sub_pitch = 2 * (words + (kernel_w - 1) / stride / 2);
  uint32_t reach = ((uint32_t)window->pad_left + x->width - 1) / stride + 1;
  sub_pitch = tt_even(sub_pitch > reach ? sub_pitch : reach);
  uint32_t pitch = stride * sub_pitch, kept = kernel_h > stride ? kernel_h - stride : 0;
  uint32_t band = tt_band_rows(g_dims->height, 8 * words + 2 * stride * pitch, 2 * kept * pitch);
  int32_t *sums = scratch;
  uint32_t *g_plane = (uint32_t *)(sums + kernel_h * kernel_w);
  int16_t *x_plane = (int16_t *)(g_plane + band * words * 2), zero = (int16_t)x->zero_point;
  uint32_t count = update->rows ? update->row_count : channels;
  float rate = tt_update_rate(g);

  tt_fill_int16(zero, ((band - 1) * stride + kernel_h) * pitch, x_plane);
  for (uint32_t n = 0; n < count; n++) {
    uint32_t c = update->rows ? update->rows[n] : n;
    int32_t g_sum = 0;
    for (uint32_t t = 0; t < kernel_h * kernel_w; t++) sums[t] = 0;
    for (uint32_t first = 0; first < g_dims->height; first += band) {
      uint32_t rows = g_dims->height - first < band ? g_dims->height - first : band;
      g_sum += pack_rows(g->mantissa + first * g_dims->width * channels + c, channels, g_dims->width, rows, g_plane);
      for (uint32_t b = 0; b < stride; b++) { /* columns v with v + pad_left = b, b + stride, ... */
        uint32_t v = (b + stride - window->pad_left % stride) % stride;
        if (v >= x->width) continue;
        tt_load_rows(&(tt_plane_source){x->data + v * channels + c, x->width * channels, stride * channels,
                                        (x->width - v - 1) / stride + 1, x->height, zero},
                     (int32_t)(first * stride) - window->pad_top, (rows - 1) * stride + kernel_h,
                     x_plane + b * sub_pitch + (v + window->pad_left) / stride, pitch);
      }
      for (uint32_t i = 0; i < kernel_h; i++)
        for (uint32_t b = 0; b < stride && b < kernel_w; b++)
          variants[(kernel_w - b - 1) / stride](&(tap_row){x_plane + i * pitch + b * sub_pitch, g_plane, stride * pitch,
                                                           rows, words, stride, sums + i * kernel_w + b});
    }
    for (uint32_t t = 0; t < kernel_h * kernel_w; t++) sums[t] -= zero * g_sum;
    tt_update_run(update, sums, kernel_h * kernel_w, update->coefficient[c] * rate, c * kernel_h * kernel_w,
                  n * kernel_h * kernel_w);
  }
}
