/* Depthwise convolution, forward: one filter per channel.
 *
 *   x (H, W, C) int8, w (C, KH, KW) int8, b (C,) int32 -> y (Ho, Wo, C) int8
 *   sum[r, q] = b[c] + sum_{i,j} (x[r stride + i - pad, .., c] - z_x) w[c, i, j],   y = requantized sum
 *
 * Fast version. In (H, W, C) order the elements of one channel lie C bytes apart; they are copied once into a
 * plane of int16 with its frame of padding, where two neighbours are one load (see plane.h). The plane holds x itself,
 * framed by z, and every sum starts from b - z sum(w). A tall plane is taken in bands of output rows, and the rows
 * two bands share move to the top. All input rows of a band are in the plane before y is written, so y may overwrite
 * x, channel by channel, if it is no wider.
 *
 * scratch: int32 sums[band][Wo], uint32 taps[KH][pairs][2], int16 plane[(band - 1) stride + KH][pitch] + slack
 */
#include "epilogue.h"
#include "plane.h"

void tt_depthwise_conv2d(const tt_input *x, const int8_t *weight, const int32_t *bias, const tt_window *window,
                         const tt_requant *out, void *scratch) {
  uint32_t kernel_h = window->kernel_h, kernel_w = window->kernel_w, stride = window->stride;
  uint32_t pitch = (out->width - 1u) * stride + kernel_w, reach = (uint32_t)window->pad_left + x->width;
  pitch = tt_even(pitch > reach ? pitch : reach);
  uint32_t kept = kernel_h > stride ? kernel_h - stride : 0; /* rows two bands share */
  uint32_t band = tt_band_rows(out->height, 4u * out->width + 2 * stride * pitch, 2 * kept * pitch);
  uint32_t pairs = tt_tap_pairs(kernel_w, 0);
  int16_t zero = (int16_t)x->zero_point;
  int32_t *sums = scratch;
  uint32_t *taps = (uint32_t *)(sums + band * out->width);
  int16_t *plane = (int16_t *)(taps + kernel_h * pairs * 2);

  tt_requantize_open(out);
  tt_fill_int16(zero, ((band - 1) * stride + kernel_h) * pitch + TT_PLANE_SLACK, plane);
  for (uint32_t c = 0; c < x->channels; c++, weight += kernel_h * kernel_w) {
    tt_plane_source source = {x->data + c, (uint32_t)x->width * x->channels, x->channels, x->width, x->height, zero};
    int32_t sum = tt_pack_taps(weight, (int32_t)kernel_w, 1, kernel_h, kernel_w, 0, taps);
    for (uint32_t first = 0; first < out->height; first += band) {
      uint32_t rows = out->height - first < band ? out->height - first : band;
      uint32_t i = first ? kept : 0;
      if (i) tt_copy_rows(plane + band * stride * pitch, pitch, 1, pitch, kept, plane, pitch);
      tt_load_rows(&source, (int32_t)(first * stride + i) - window->pad_top, (rows - 1) * stride + kernel_h - i,
                   plane + i * pitch + window->pad_left, pitch);
      tt_correlate(&(tt_correlation){plane, pitch, taps, kernel_h, pairs, stride, rows, out->width,
                                     bias[c] - zero * sum, sums, out->width, 1});
      tt_requantize_positions(out, sums, first * out->width, c, rows * out->width);
    }
  }
}
