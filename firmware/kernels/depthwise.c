/* Depthwise convolution, forward: one filter per channel.
 *
 *   x (H, W, C) int8, w (C, KH, KW) int8, b (C,) int32 -> y (Ho, Wo, C) int8
 *   sum[r, q] = b[c] + sum_{i,j} (x[r stride + i - pad, .., c] - z_x) w[c, i, j],   y = requantized sum
 *
 * Fast version. In (H, W, C) order the elements of one channel lie C bytes apart; they are copied once into a
 * plane of int16 with its frame of padding, where two of them are one load away at any column. A tall plane
 * is taken in bands of output rows, and the rows two bands share move to the top. All input rows of a band are in
 * the plane before y is written, so y may overwrite x, channel by channel, if it is no wider.
 *
 * scratch: int32 sums[band][Wo], uint32 taps[KH][ceil(KW / 2)], int16 plane[(band - 1) stride + KH][pitch] + slack
 */
#include "epilogue.h"
#include "plane.h"

void tt_depthwise_conv2d(const tt_input *x, const int8_t *weight, const int32_t *bias, const tt_window *window,
                         const tt_requant *out, void *scratch) {
  uint32_t kernel_h = window->kernel_h, kernel_w = window->kernel_w, stride = window->stride;
  uint32_t pitch = (out->width - 1u) * stride + kernel_w, reach = (uint32_t)window->pad_left + x->width;
  if (pitch < reach) pitch = reach;
  uint32_t kept = kernel_h > stride ? kernel_h - stride : 0; /* rows two bands share */
  uint32_t band = tt_band_rows(out->height, 4u * out->width + 2 * stride * pitch, 2 * kept * pitch);
  int32_t *sums = scratch;
  uint32_t *taps = (uint32_t *)(sums + band * out->width);
  int16_t *plane = (int16_t *)(taps + kernel_h * tt_tap_words(kernel_w));

  tt_requantize_open(out);
  tt_zero_int16(plane, ((band - 1) * stride + kernel_h) * pitch + TT_PLANE_SLACK);
  for (uint32_t c = 0; c < x->channels; c++) {
    tt_pack_taps(weight + c * kernel_h * kernel_w, (int32_t)kernel_w, 1, kernel_h, kernel_w, taps);
    for (uint32_t first = 0; first < out->height; first += band) {
      uint32_t rows = out->height - first < band ? out->height - first : band;
      uint32_t i = 0;
      if (first)
        for (; i < kept; i++) tt_copy_int16(plane + (band * stride + i) * pitch, 1, pitch, plane + i * pitch);
      for (; i < (rows - 1) * stride + kernel_h; i++) {
        int32_t h = (int32_t)(first * stride + i) - window->pad_top;
        int16_t *row = plane + i * pitch + window->pad_left;
        if (h < 0 || h >= x->height) tt_zero_int16(row, x->width);
        else tt_copy_int8(x->data + (uint32_t)h * x->width * x->channels + c, x->channels, x->width, x->zero_point, row);
      }
      tt_correlate(&(tt_correlation){plane, pitch, taps, kernel_h, kernel_w, stride, rows, out->width, bias[c],
                                     sums, out->width, 1});
      tt_requantize_run(out, sums, (tt_run){first * out->width * out->channels + c, out->channels,
                                            rows * out->width, c, 0});
    }
  }
}
