/* Classifier head: x (I,) int8, w (N, I) int8 -> logits (N,) float32, and its gradients.
 *
 *   logits[n] = float32(b[n] + sum_i (x[i] - z) w[n][i]) * m[n]
 *   dx[i]     = sum_n g[n] w[n][i]
 *   dw[n][i]  = g[n] (x[i] - z)
 */
#include "epilogue.h"
#include "update.h"

enum { RUN = 16 }; /* sums handed on at a time */

void tt_linear(const int8_t *x, int32_t zero_point, const int8_t *weight, const int32_t *bias,
               const float *multiplier, uint32_t out_channels, uint32_t in_channels, float *logits) {
  for (uint32_t n = 0; n < out_channels; n++, weight += in_channels) {
    int32_t sum = bias[n];
    for (uint32_t i = 0; i < in_channels; i++) sum += (x[i] - zero_point) * weight[i];
    logits[n] = (float)sum * multiplier[n];
  }
}

void tt_linear_grad_input(const tt_dfp *g, const int8_t *weight, uint32_t out_channels, uint32_t in_channels,
                          const tt_epilogue *epilogue) {
  tt_writer writer;
  tt_writer_open(&writer, epilogue, in_channels, tt_dfp_scale(g->state));
  for (uint32_t i = 0; i < in_channels; i++) {
    int32_t sum = 0;
    for (uint32_t n = 0; n < out_channels; n++) sum += g->mantissa[n] * weight[n * in_channels + i];
    tt_writer_put(&writer, (float)sum, i, i);
  }
  tt_writer_close(&writer);
}

void tt_linear_grad_weight(const tt_dfp *g, const int8_t *x, int32_t zero_point, uint32_t out_channels,
                           uint32_t in_channels, const tt_update *update) {
  float rate = tt_update_rate(g);
  int32_t sums[RUN];
  for (uint32_t n = 0; n < out_channels; n++) {
    float factor = update->coefficient[n] * rate;
    for (uint32_t i = 0; i < in_channels; i += RUN) {
      uint32_t count = in_channels - i < RUN ? in_channels - i : RUN;
      for (uint32_t j = 0; j < count; j++) sums[j] = g->mantissa[n] * (x[i + j] - zero_point);
      tt_update_run(update, sums, count, factor, n * in_channels + i, n * in_channels + i);
    }
  }
}
