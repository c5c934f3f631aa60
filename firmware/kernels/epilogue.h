/* From int32 sums to memory: requantization forward, the gradient epilogue backward.
 *
 * Kernels compute a few sums and hand them over: those of neighbouring channels at one position, or those of one
 * channel at neighbouring positions. The definitions: tinytrain_lite/ops/numerics.py and ops/epilogue.py.
 */
#ifndef TT_EPILOGUE_H
#define TT_EPILOGUE_H

#include "tt_dsp.h"
#include "tt_kernels.h"

/* Clamp masks hold one bit per element, the lowest bit of a byte first. */
TT_INLINE int tt_mask_bit(const uint8_t *mask, uint32_t index) { return (mask[index >> 3] >> (index & 7)) & 1; }

TT_INLINE void tt_mask_clear(uint8_t *mask, uint32_t index) { mask[index >> 3] &= (uint8_t)~(1u << (index & 7)); }

/* ---- forward: y = clamp(rint(value) + zero_point) ---------------------------------------------------- */

/* Before the first store of a kernel: all bits one, so that only a clamped element touches the mask. */
void tt_requantize_open(const tt_requant *out);

TT_INLINE int8_t tt_requantize(float value, int32_t zero_point, int32_t lo, int32_t hi, uint8_t *mask, uint32_t index) {
  int32_t q = tt_rint(value);
  lo -= zero_point, hi -= zero_point; /* compared before the zero point is added: no overflow */
  if ((uint32_t)q - (uint32_t)lo > (uint32_t)(hi - lo)) {
    TT_KEEP_BRANCH();
    q = q < lo ? lo : hi;
    if (mask) tt_mask_clear(mask, index);
  }
  return (int8_t)(q + zero_point);
}

/* value = float32(sum) * multiplier[channel].
 * Tile: sums[channel][position] of `channels` by `positions`, from (position, channel) on. */
enum { TT_TILE_POSITIONS = 4 };
void tt_requantize_tile(const tt_requant *out, int32_t (*sums)[TT_TILE_POSITIONS], uint32_t position,
                        uint32_t positions, uint32_t channel, uint32_t channels);
/* One channel at `count` positions. */
void tt_requantize_positions(const tt_requant *out, const int32_t *sums, uint32_t position, uint32_t channel,
                             uint32_t count);

/* ---- backward: (value + skips) * mask, into one or two dfp16 sinks -------------------------------------- */
typedef struct {
  const tt_epilogue *epilogue;
  uint32_t channels;    /* of the sinks */
  float scale;          /* of the values put: 2^e for integer sums of a gradient, 1 for real units */
  float skip_scale[2];  /* scale * 2^e of each skip gradient */
  float sink_scale[2];  /* 2^-e of each sink at this step */
  float seen[2];        /* largest |mantissa| before saturation */
} tt_writer;

/* Fixes the exponents of the sinks for this step. */
void tt_writer_open(tt_writer *writer, const tt_epilogue *epilogue, uint32_t channels, float scale);

/* One element; reads the skips' elements before it writes the sinks' (they may share memory). */
void tt_writer_put(tt_writer *writer, float value, uint32_t index, uint32_t channel);

/* One channel at `count` positions; value = float32(sum). */
void tt_writer_positions(tt_writer *writer, const int32_t *sums, uint32_t position, uint32_t channel, uint32_t count);

/* Remembers the peaks for the next step. */
void tt_writer_close(const tt_writer *writer);

/* 2^e of an incoming gradient. */
TT_INLINE float tt_dfp_scale(const tt_dfp_state *state) { return tt_power_of_two(state->exponent); }

#endif
