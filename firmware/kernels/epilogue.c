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
#include "tt_attributes.h"

static const int32_t EXPONENT_RANGE = 60;
static const float PEAK_DECAY = 31.0f / 32.0f;
static const float PEAK_FLOOR = 0x1p-40f;

/* ---- forward ------------------------------------------------------------------------------------------ */
void tt_requantize_open(const tt_requant *out) {
  if (!out->mask) return;
  uint32_t bytes = ((uint32_t)out->height * out->width * out->channels + 7) / 8;
  __builtin_memset(out->mask, 0xFF, bytes);
}

/* What a call needs of tt_requant, in registers: y is int8 and might alias the structure. */
typedef struct {
  int8_t *y;
  uint8_t *mask;
  int32_t zero, lo, hi;
  uint32_t step, step3; /* elements from a position to the next, and to the third one after it */
} target;

TT_INLINE target make_target(const tt_requant *out) {
  uint32_t step3 = 3u * out->channels;
  TT_OPAQUE(step3);
  return (target){out->y, out->mask, out->zero_point, out->lo, out->hi, out->channels, step3};
}

/* One channel at four positions, without mask: the clamp happens in float, where it commutes with rint, and the four
 * chains of dependent instructions overlap. */
TT_INLINE void put_four(const target *t, const int32_t *sums, float multiplier, int8_t *y) {
  float low = (float)(t->lo - t->zero), high = (float)(t->hi - t->zero);
  int32_t q[4];
  for (uint32_t p = 0; p < 4; p++)
    q[p] = tt_rint(tt_min(tt_max((float)sums[p] * multiplier, low), high)) + t->zero;
  y[0] = (int8_t)q[0], y[t->step] = (int8_t)q[1], y[2 * t->step] = (int8_t)q[2], y[t->step3] = (int8_t)q[3];
}

TT_INLINE void put_one(const target *t, int32_t sum, float multiplier, uint32_t index) {
  t->y[index] = tt_requantize((float)sum * multiplier, t->zero, t->lo, t->hi, t->mask, index);
}

TT_ITCM void tt_requantize_tile(const tt_requant *out, int32_t (*sums)[TT_TILE_POSITIONS], uint32_t position,
                                uint32_t positions, uint32_t channel, uint32_t channels) {
  target t = make_target(out);
  const float *multiplier = out->multiplier + channel, *end = multiplier + channels;
  uint32_t index = position * t.step + channel;
  if (positions == TT_TILE_POSITIONS && !t.mask)
    TT_NO_UNROLL for (int8_t *y = t.y + index; multiplier != end; y++) put_four(&t, *sums++, *multiplier++, y);
  else
    for (; multiplier != end; sums++, index++, multiplier++)
      TT_NO_UNROLL for (uint32_t p = 0; p < positions; p++) put_one(&t, (*sums)[p], *multiplier, index + p * t.step);
}

TT_ITCM void tt_requantize_positions(const tt_requant *out, const int32_t *sums, uint32_t position, uint32_t channel,
                                     uint32_t count) {
  target t = make_target(out);
  float multiplier = out->multiplier[channel];
  uint32_t index = position * t.step + channel;
  if (!t.mask)
    TT_NO_UNROLL for (; count >= 4; count -= 4, sums += 4, index += 4 * t.step)
      put_four(&t, sums, multiplier, t.y + index);
  TT_NO_UNROLL for (; count; count--, index += t.step) put_one(&t, *sums++, multiplier, index);
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

void tt_writer_open(tt_writer *writer, const tt_epilogue *epilogue, uint32_t channels, float scale) {
  writer->epilogue = epilogue;
  writer->channels = channels;
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

/* The counts are compile-time constants where many elements follow each other. */
TT_INLINE void put(tt_writer *writer, float value, uint32_t index, uint32_t channel, uint32_t skip_count,
                   uint32_t sink_count) {
  const tt_epilogue *epilogue = writer->epilogue;
  value *= writer->scale;
  for (uint32_t i = 0; i < skip_count; i++)
    value += (float)epilogue->skips[i].mantissa[index] * writer->skip_scale[i];
  if (epilogue->mask && !tt_mask_bit(epilogue->mask, index)) value = 0;
  for (uint32_t j = 0; j < sink_count; j++) {
    const tt_sink *sink = &epilogue->sinks[j];
    float scaled = value * writer->sink_scale[j];
    if (sink->multiplier) scaled *= sink->multiplier[channel];
    if (sink->mask && !tt_mask_bit(sink->mask, index)) scaled = 0;
    writer->seen[j] = tt_max(writer->seen[j], __builtin_fabsf(scaled));
    sink->mantissa[index] = (int16_t)tt_rint(tt_clampf(scaled, (float)sink->limit));
  }
}

void tt_writer_put(tt_writer *writer, float value, uint32_t index, uint32_t channel) {
  put(writer, value, index, channel, writer->epilogue->skip_count, writer->epilogue->sink_count);
}

TT_ITCM static void put_any(tt_writer *writer, const int32_t *sums, uint32_t index, uint32_t channel, uint32_t count) {
  uint32_t channels = writer->channels;
  if (writer->epilogue->skip_count == 1 && writer->epilogue->sink_count == 1)
    TT_NO_UNROLL for (; count; count--, index += channels) put(writer, (float)*sums++, index, channel, 1, 1);
  for (; count; count--, index += channels) tt_writer_put(writer, (float)*sums++, index, channel);
}

/* The common case: no skip, one sink, at most one mask. A power of two may join the multiplier: exact. Where channels
 * come in eights, a channel's bit has the same place in every byte. */
typedef enum { NO_MASK, MASK_OF_BYTES, ANY_MASK } mask_kind;

TT_INLINE void put_plain(tt_writer *writer, const uint8_t *mask, const int32_t *sums, uint32_t index, uint32_t channel,
                         uint32_t count, mask_kind kind) {
  const tt_sink *sink = writer->epilogue->sinks;
  float factor = writer->scale * writer->sink_scale[0], seen = writer->seen[0], limit = (float)sink->limit;
  if (sink->multiplier) factor *= sink->multiplier[channel];
  uint32_t channels = writer->channels, bit = 1u << (channel & 7);
  const uint8_t *byte = mask + index / 8;
  int16_t *out = sink->mantissa + index;
  for (; count; count--, sums++, out += channels, byte += channels / 8, index += channels) {
    int16_t mantissa = 0;
    if (kind == NO_MASK || (kind == MASK_OF_BYTES ? (*byte & bit) != 0 : tt_mask_bit(mask, index))) {
      float scaled = (float)*sums * factor;
      seen = tt_max(seen, __builtin_fabsf(scaled));
      mantissa = (int16_t)tt_rint(tt_clampf(scaled, limit));
    }
    *out = mantissa;
  }
  writer->seen[0] = seen;
}

TT_ITCM void tt_writer_positions(tt_writer *writer, const int32_t *sums, uint32_t position, uint32_t channel,
                                 uint32_t count) {
  const tt_epilogue *epilogue = writer->epilogue;
  const uint8_t *mask = epilogue->mask, *sink_mask = epilogue->sinks[0].mask;
  uint32_t index = position * writer->channels + channel;
  if (epilogue->skip_count || epilogue->sink_count > 1 || (mask && sink_mask)) {
    put_any(writer, sums, index, channel, count);
    return;
  }
  if (sink_mask) mask = sink_mask;
  if (!mask) put_plain(writer, mask, sums, index, channel, count, NO_MASK);
  else if (writer->channels % 8 == 0) put_plain(writer, mask, sums, index, channel, count, MASK_OF_BYTES);
  else put_plain(writer, mask, sums, index, channel, count, ANY_MASK);
}

void tt_grad_map(uint32_t count, uint32_t channels, const tt_epilogue *epilogue) {
  tt_writer writer;
  tt_writer_open(&writer, epilogue, channels, 1.0f);
  for (uint32_t index = 0; index < count;)
    for (uint32_t c = 0; c < channels; c++, index++) {
      if (epilogue->skip_count == 1 && epilogue->sink_count == 1) put(&writer, 0.0f, index, c, 1, 1);
      else tt_writer_put(&writer, 0.0f, index, c);
    }
  tt_writer_close(&writer);
}
