/* Global average pool and its gradient.
 *
 *   y[c]        = clamp(rint(float32(sum over positions of (x[.., c] - z_x)) * m) + z_y)
 *   dx[.., c]   = g[c] * (m * 2^e)                  the same for every position
 */
#include "epilogue.h"

void tt_avg_pool(const tt_input *x, float multiplier, const tt_requant *out) {
  uint32_t positions = (uint32_t)x->height * x->width;
  tt_requantize_open(out);
  for (uint32_t c = 0; c < x->channels; c++) {
    const int8_t *element = x->data + c;
    int32_t sum = -(int32_t)positions * x->zero_point;
    for (uint32_t p = 0; p < positions; p++, element += x->channels) sum += *element;
    out->y[c] = tt_requantize((float)sum * multiplier, out->zero_point, out->lo, out->hi, out->mask, c);
  }
}

void tt_avg_pool_grad_input(const tt_dfp *g, float multiplier, const tt_dims *out, const tt_epilogue *epilogue) {
  uint32_t positions = (uint32_t)out->height * out->width;
  tt_writer writer;
  tt_writer_open(&writer, epilogue, out->channels, multiplier * tt_dfp_scale(g->state));
  for (uint32_t p = 0, index = 0; p < positions; p++)
    for (uint32_t c = 0; c < out->channels; c++) tt_writer_put(&writer, g->mantissa[c], index++, c);
  tt_writer_close(&writer);
}
