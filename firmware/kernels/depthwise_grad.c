/* Gradients of the depthwise convolution.
 *
 *   input    dx[h, v, c]  = sum over taps (i, j) of g[r, q, c] w[c, i, j],   r stride + i - pad = h, ...
 *   weight   dw[c, i, j]  = sum over positions (r, q) of g[r, q, c] (x[r stride + i - pad, .., c] - z)
 *
 * Fast versions. One channel at a time in int16 planes (see plane.h).
 *   input    With stride s, the row h = s m + a - pad meets only taps i = a, a + s, ...: each of the s^2 phases is a
 *            stride-1 correlation of g with its own flipped part of the kernel, and no product with a zero is made.
 *            All of g's channel is in the plane before dx is written, so dx may overwrite g.
 *   weight   SMLAD takes two neighbouring positions at once. To make x's elements neighbours at stride s, a row of
 *            the plane is kept as s interleaved rows. One g load serves all taps of a kernel row.
 */
#include "epilogue.h"
#include "plane.h"
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

/* scratch: int32 sums[H][W], uint32 taps[KH][ceil(KW / 2)], int16 plane[rows][pitch] + slack */
void tt_depthwise_grad_input(const tt_dfp *g, const tt_dims *g_dims, const int8_t *weight, const tt_window *window,
                             const tt_dims *out, const tt_epilogue *epilogue, void *scratch) {
  axis vertical = make_axis(window->stride, window->kernel_h, window->pad_top, out->height);
  axis horizontal = make_axis(window->stride, window->kernel_w, window->pad_left, out->width);
  uint32_t channels = out->channels, stride = window->stride, pitch = horizontal.length;
  int32_t kernel_w = window->kernel_w;
  int32_t *sums = scratch;
  uint32_t *taps = (uint32_t *)(sums + (uint32_t)out->height * out->width);
  int16_t *plane = (int16_t *)(taps + window->kernel_h * tt_tap_words(window->kernel_w));
  int16_t *inside = plane + vertical.frame * pitch + horizontal.frame;

  tt_writer writer;
  tt_writer_open(&writer, epilogue, tt_dfp_scale(g->state));
  tt_zero_int16(plane, vertical.length * pitch + TT_PLANE_SLACK);
  for (uint32_t c = 0; c < channels; c++, weight += window->kernel_h * window->kernel_w) {
    for (uint32_t r = 0; r < g_dims->height; r++)
      tt_copy_int16(g->mantissa + r * g_dims->width * channels + c, channels, g_dims->width, inside + r * pitch);
    for (uint32_t a = 0; a < stride; a++)
      for (uint32_t b = 0; b < stride; b++) {
        phase v = make_phase(&vertical, a), h = make_phase(&horizontal, b);
        const int8_t *last = weight + (int32_t)(a + stride * (v.taps - 1)) * kernel_w + (int32_t)(b + stride * (h.taps - 1));
        tt_pack_taps(last, -(int32_t)stride * kernel_w, -(int32_t)stride, v.taps, h.taps, taps);
        tt_correlate(&(tt_correlation){plane + v.start * pitch + h.start, pitch, taps, v.taps, h.taps, 1, v.count,
                                       h.count, 0, sums + v.first * out->width + h.first, stride * out->width, stride});
      }
    tt_writer_run(&writer, sums, (tt_run){c, channels, (uint32_t)out->height * out->width, c, 0});
  }
  tt_writer_close(&writer);
}

/* ---- weight --------------------------------------------------------------------------------------------- */
/* sums[j] += sum over rows and columns of g[r][q] x[r][q + offset of tap j], for one kernel row. */
typedef struct {
  const int16_t *x, *g;
  uint32_t x_step, g_step; /* from one output row to the next */
  uint32_t sub_pitch;      /* from one interleaved row of x to the next */
  uint32_t rows, columns;  /* columns even: g is padded with a zero */
  uint32_t kernel_w, stride;
  int32_t *sums;
} tap_row;

static void sum_tap_row(const tap_row *t) {
  for (uint32_t j = 0; j < t->kernel_w; j++) {
    const int16_t *x = t->x + j % t->stride * t->sub_pitch + j / t->stride, *g = t->g;
    int32_t sum = t->sums[j];
    for (uint32_t r = 0; r < t->rows; r++, x += t->x_step, g += t->g_step)
      for (uint32_t q = 0; q < t->columns; q += 2) sum = tt_smlad(tt_load32(g + q), tt_load32(x + q), sum);
    t->sums[j] = sum;
  }
}

/* scratch: int32 sums[KH][KW], int16 g[band][even Wo], int16 x[(band - 1) stride + KH][stride][sub_pitch] */
void tt_depthwise_grad_weight(const tt_dfp *g, const tt_dims *g_dims, const tt_input *x, const tt_window *window,
                              const tt_update *update, void *scratch) {
  uint32_t kernel_h = window->kernel_h, kernel_w = window->kernel_w, stride = window->stride, channels = x->channels;
  uint32_t columns = (g_dims->width + 1u) / 2 * 2, sub_pitch = columns + (kernel_w - 1) / stride;
  uint32_t reach = ((uint32_t)window->pad_left + x->width - 1) / stride + 1;
  if (sub_pitch < reach) sub_pitch = reach;
  uint32_t pitch = stride * sub_pitch, kept = kernel_h > stride ? kernel_h - stride : 0;
  uint32_t band = tt_band_rows(g_dims->height, 2 * columns + 2 * stride * pitch, 2 * kept * pitch);
  int32_t *sums = scratch;
  int16_t *g_plane = (int16_t *)(sums + kernel_h * kernel_w), *x_plane = g_plane + band * columns;
  uint32_t count = update->rows ? update->row_count : channels;
  float rate = tt_update_rate(g);

  tt_zero_int16(g_plane, band * columns + ((band - 1) * stride + kernel_h) * pitch);
  for (uint32_t n = 0; n < count; n++) {
    uint32_t c = update->rows ? update->rows[n] : n;
    for (uint32_t t = 0; t < kernel_h * kernel_w; t++) sums[t] = 0;
    for (uint32_t first = 0; first < g_dims->height; first += band) {
      uint32_t rows = g_dims->height - first < band ? g_dims->height - first : band;
      for (uint32_t r = 0; r < rows; r++)
        tt_copy_int16(g->mantissa + (first + r) * g_dims->width * channels + c, channels, g_dims->width,
                      g_plane + r * columns);
      for (uint32_t i = 0; i < (rows - 1) * stride + kernel_h; i++) {
        int32_t h = (int32_t)(first * stride + i) - window->pad_top;
        for (uint32_t b = 0; b < stride; b++) { /* columns u = v + pad_left = b, b + stride, ... */
          uint32_t v = (b + stride - window->pad_left % stride) % stride;
          if (v >= x->width) continue;
          uint32_t length = (x->width - v - 1) / stride + 1;
          int16_t *row = x_plane + i * pitch + b * sub_pitch + (v + window->pad_left) / stride;
          if (h < 0 || h >= x->height) tt_zero_int16(row, length);
          else tt_copy_int8(x->data + ((uint32_t)h * x->width + v) * channels + c, stride * channels, length,
                            x->zero_point, row);
        }
      }
      for (uint32_t i = 0; i < kernel_h; i++)
        sum_tap_row(&(tap_row){x_plane + i * pitch, g_plane, stride * pitch, columns, sub_pitch, rows, columns,
                               kernel_w, stride, sums + i * kernel_w});
    }
    tt_update_run(update, sums, kernel_h * kernel_w, update->coefficient[c] * rate, c * kernel_h * kernel_w,
                  n * kernel_h * kernel_w);
  }
}
