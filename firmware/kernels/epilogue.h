/* From int32 sums to memory: requantization forward, the gradient epilogue backward.
 *
 * Kernels compute a run of sums and hand it over. A run is `count` elements that lie `step` apart, starting at
 * element `index`: neighbouring channels of one position (step 1), or one channel at neighbouring positions
 * (step = channels). The definitions: tinytrain_lite/ops/numerics.py and ops/epilogue.py.
 */
#ifndef TT_EPILOGUE_H
#define TT_EPILOGUE_H

#include "tt_dsp.h"
#include "tt_kernels.h"

typedef struct {
  uint32_t index, step, count;          /* elements of the output, (H, W, C) */
  uint32_t channel, channel_step;       /* 1 along channels, 0 along positions */
} tt_run;

/* Clamp masks hold one bit per element, the lowest bit of a byte first. */
TT_INLINE int tt_mask_bit(const uint8_t *mask, uint32_t index) { return (mask[index >> 3] >> (index & 7)) & 1; }

/* ---- forward: y = clamp(rint(value) + zero_point) ---------------------------------------------------- */

/* Before the first store of a kernel: all bits one, so that only a clamped element touches the mask. */
void tt_requantize_open(const tt_requant *out);

TT_INLINE void tt_requantize(const tt_requant *out, float value, uint32_t index) {
  int32_t lo = out->lo - out->zero_point, hi = out->hi - out->zero_point;
  int32_t q = tt_rint(value);
  if (q < lo || q > hi) {
    q = q < lo ? lo : hi;
    if (out->mask) out->mask[index >> 3] &= (uint8_t)~(1u << (index & 7));
  }
  out->y[index] = (int8_t)(q + out->zero_point);
}

/* value = float32(sum) * multiplier[channel]. */
void tt_requantize_run(const tt_requant *out, const int32_t *sums, tt_run run);

/* ---- backward: (value + skips) * mask, into one or two dfp16 sinks -------------------------------------- */
typedef struct {
  const tt_epilogue *epilogue;
  float scale;          /* of the values put: 2^e for integer sums of a gradient, 1 for real units */
  float skip_scale[2];  /* scale * 2^e of each skip gradient */
  float sink_scale[2];  /* 2^-e of each sink at this step */
  float seen[2];        /* largest |mantissa| before saturation */
} tt_writer;

/* Fixes the exponents of the sinks for this step. */
void tt_writer_open(tt_writer *writer, const tt_epilogue *epilogue, float scale);

/* One element; reads the skips' elements before it writes the sinks' (they may share memory). */
void tt_writer_put(tt_writer *writer, float value, uint32_t index, uint32_t channel);
void tt_writer_run(tt_writer *writer, const int32_t *sums, tt_run run);

/* Remembers the peaks for the next step. */
void tt_writer_close(const tt_writer *writer);

/* 2^e of an incoming gradient. */
TT_INLINE float tt_dfp_scale(const tt_dfp_state *state) { return tt_power_of_two(state->exponent); }

#endif
