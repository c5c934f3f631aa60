/* Requantization and the gradient epilogue; tt_grad_map is nothing but an epilogue.
 *
 * Forward   y = clamp(rint(float32(sum) * m[c]) + z)                  mask bit 1 where the clamp changed nothing
 * Backward  v = value + sum_i skip_i * scale_i;  v = mask ? v : 0;
 *           out_j = saturate(rint((mask_j ? v * mult_j[c] : 0) * 2^-e_j))
 *
 * Delayed scaling: e_j comes from the peak of earlier steps (numerics.DfpState), and this step's peak is the
 * largest magnitude before saturation.
 */
#include "epilogue.h"

static const int32_t EXPONENT_RANGE = 60;
static const float PEAK_DECAY = 31.0f / 32.0f;
static const float PEAK_FLOOR = 0x1p-40f;

/* ---- forward ------------------------------------------------------------------------------------------ */
void tt_requantize_open(const tt_requant *out) {
  if (!out->mask) return;
  uint32_t bytes = ((uint32_t)out->height * out->width * out->channels + 7) / 8;
  __builtin_memset(out->mask, 0xFF, bytes);
}

void tt_requantize_run(const tt_requant *out, const int32_t *sums, tt_run run) {
  const float *multiplier = out->multiplier + run.channel;
  for (uint32_t n = 0; n < run.count; n++) {
    tt_requantize(out, (float)sums[n] * *multiplier, run.index);
    multiplier += run.channel_step;
    run.index += run.step;
  }
}

/* ---- backward ------------------------------------------------------------------------------------------ */
/* Smallest exponent at which the remembered peak fills at most half of the mantissa's range. */
static int32_t exponent_of(float peak, int32_t limit) {
  uint32_t bits;
  __builtin_memcpy(&bits, &peak, sizeof bits);
  int32_t peak_bits = (int32_t)(bits >> 23 & 0xFF) - 126; /* peak < 2^peak_bits */
  int32_t limit_bits = 31 - __builtin_clz((uint32_t)limit + 1);
  int32_t exponent = peak_bits - limit_bits + 1;
  return exponent > EXPONENT_RANGE ? EXPONENT_RANGE : exponent < -EXPONENT_RANGE ? -EXPONENT_RANGE : exponent;
}

void tt_writer_open(tt_writer *writer, const tt_epilogue *epilogue, float scale) {
  writer->epilogue = epilogue;
  writer->scale = scale;
  for (uint32_t i = 0; i < epilogue->skip_count; i++)
    writer->skip_scale[i] = epilogue->skips[i].scale * tt_dfp_scale(epilogue->skips[i].state);
  for (uint32_t j = 0; j < epilogue->sink_count; j++) {
    const tt_sink *sink = &epilogue->sinks[j];
    sink->state->exponent = exponent_of(sink->state->peak, sink->limit);
    writer->sink_scale[j] = tt_power_of_two(-sink->state->exponent);
    writer->seen[j] = 0;
  }
}

void tt_writer_close(const tt_writer *writer) {
  for (uint32_t j = 0; j < writer->epilogue->sink_count; j++) {
    tt_dfp_state *state = writer->epilogue->sinks[j].state;
    float seen = writer->seen[j] * tt_dfp_scale(state);
    state->peak = tt_max(tt_max(seen, state->peak * PEAK_DECAY), PEAK_FLOOR);
  }
}

void tt_writer_put(tt_writer *writer, float value, uint32_t index, uint32_t channel) {
  const tt_epilogue *epilogue = writer->epilogue;
  value *= writer->scale;
  for (uint32_t i = 0; i < epilogue->skip_count; i++)
    value += (float)epilogue->skips[i].mantissa[index] * writer->skip_scale[i];
  if (epilogue->mask && !tt_mask_bit(epilogue->mask, index)) value = 0;
  for (uint32_t j = 0; j < epilogue->sink_count; j++) {
    const tt_sink *sink = &epilogue->sinks[j];
    float scaled = value * writer->sink_scale[j];
    if (sink->multiplier) scaled *= sink->multiplier[channel];
    if (sink->mask && !tt_mask_bit(sink->mask, index)) scaled = 0;
    writer->seen[j] = tt_max(writer->seen[j], __builtin_fabsf(scaled));
    sink->mantissa[index] = (int16_t)tt_rint(tt_clampf(scaled, (float)sink->limit));
  }
}

void tt_writer_run(tt_writer *writer, const int32_t *sums, tt_run run) {
  for (uint32_t n = 0; n < run.count; n++) {
    tt_writer_put(writer, (float)sums[n], run.index, run.channel);
    run.channel += run.channel_step;
    run.index += run.step;
  }
}

void tt_grad_map(uint32_t count, uint32_t channels, const tt_epilogue *epilogue) {
  tt_writer writer;
  tt_writer_open(&writer, epilogue, 1.0f);
  for (uint32_t index = 0; index < count;)
    for (uint32_t c = 0; c < channels; c++) tt_writer_put(&writer, 0.0f, index++, c);
  tt_writer_close(&writer);
}
