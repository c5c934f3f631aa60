/* The kernels: one prototype per op kind that codegen calls, and the small structures they take.
 *
 * The definition of every one of them is the NumPy reference in tinytrain_lite/ops/; a kernel must
 * produce the same bytes. Activations are (H, W, C) int8; gradients are dynamic fixed point: int16
 * mantissas (H, W, C) with one power-of-two exponent per tensor. The compiler has proved that no
 * int32 accumulator overflows (passes/limits.py). `scratch` is arena memory for the time of the call.
 */
#ifndef TT_KERNELS_H
#define TT_KERNELS_H

#include <stdint.h>

/* ---- what the kernels take -------------------------------------------------------------------- */
typedef struct { /* int8[height][width][channels] */
  const int8_t *data;
  int32_t zero_point;
  uint16_t height, width, channels;
} tt_input;

typedef struct {
  uint16_t height, width, channels;
} tt_dims;

typedef struct { /* kernel, stride; padding reads as the zero point (bottom and right follow) */
  uint8_t kernel_h, kernel_w, stride, pad_top, pad_left;
} tt_window;

typedef struct { /* int8[out][kh][kw][trained], int8[out][kh][kw][in - trained] */
  const int8_t *trained;
  const int8_t *frozen;  /* NULL if every input channel learns, or none does */
  const uint16_t *perm;  /* input channel of column j, trained ones first; NULL: column j is channel j */
  uint16_t out_channels, in_channels, trained_channels;
} tt_conv_weight;

typedef struct { /* y = clamp(rint(v * multiplier[c]) + zero_point, lo, hi), and its clamp mask */
  int8_t *y;
  uint8_t *mask;           /* one bit per element, 1 where the clamp changed nothing; NULL: not wanted */
  const float *multiplier; /* float32[channels]; NULL where the op brings its own */
  int32_t zero_point, lo, hi;
  uint16_t height, width, channels;
} tt_requant;

typedef struct { /* what one gradient tensor remembers between steps (delayed scaling) */
  int32_t exponent; /* of this step; value = mantissa * 2^exponent */
  float peak;       /* decayed largest magnitude of the steps before */
} tt_dfp_state;

typedef struct {
  const int16_t *mantissa;
  const tt_dfp_state *state;
} tt_dfp;

typedef struct { /* a gradient that arrives by another reader: value * scale is added */
  const int16_t *mantissa;
  const tt_dfp_state *state;
  float scale;
} tt_skip;

typedef struct { /* where a gradient goes, times the consumer's effective scale, clamp mask applied */
  int16_t *mantissa;
  tt_dfp_state *state;
  const float *multiplier; /* float32[channels] or NULL */
  const uint8_t *mask;     /* bits or NULL */
  int32_t limit;           /* mantissas saturate at +-limit */
} tt_sink;

typedef struct { /* see tinytrain_lite/ops/epilogue.py */
  const uint8_t *mask; /* bits or NULL: applied to the sum, before the sinks */
  uint8_t skip_count, sink_count;
  tt_skip skips[2];
  tt_sink sinks[2];
} tt_epilogue;

enum { TT_FRACTION8, TT_STOCHASTIC, TT_NEAREST, TT_TRUNCATE };

typedef struct { /* see tinytrain_lite/ops/update.py */
  int8_t *weight;   /* exactly one of weight (saturates at +-127) ... */
  int32_t *bias;    /* ... and bias (saturates at +-(2^30 - 1)) */
  int8_t *fraction; /* TT_FRACTION8: 1/256 LSB per parameter; else NULL */
  const float *coefficient; /* float32[out channels] */
  const uint16_t *rows;     /* depthwise: the channels that learn; NULL: all */
  uint16_t row_count;
  uint8_t rounding;
  uint32_t seed; /* TT_STOCHASTIC: of this parameter's random sequence */
} tt_update;

/* Set by the generated model: the learning rate and the number of the step in progress. */
extern float tt_learning_rate;
extern uint32_t tt_step;

/* ---- forward ------------------------------------------------------------------------------------ */
void tt_conv2d(const tt_input *x, const tt_conv_weight *w, const int32_t *bias, const tt_window *window,
               const tt_requant *out, void *scratch);
void tt_depthwise_conv2d(const tt_input *x, const int8_t *weight, const int32_t *bias, const tt_window *window,
                         const tt_requant *out, void *scratch);
void tt_add(const int8_t *a, int32_t zero_a, float ratio_a, const int8_t *b, int32_t zero_b, float ratio_b,
            uint32_t count, const tt_requant *out);
void tt_avg_pool(const tt_input *x, float multiplier, const tt_requant *out);
void tt_linear(const int8_t *x, int32_t zero_point, const int8_t *weight, const int32_t *bias,
               const float *multiplier, uint32_t out_channels, uint32_t in_channels, float *logits);
void tt_softmax_cross_entropy(const float *logits, uint32_t classes, const int32_t *label, float *probabilities,
                              float *loss);
void tt_gather_channels(const int8_t *x, uint32_t positions, uint32_t channels, const uint16_t *perm,
                        uint32_t kept, int8_t *y);

/* ---- gradients of activations -------------------------------------------------------------------- */
void tt_softmax_cross_entropy_grad(const float *probabilities, uint32_t classes, const int32_t *label,
                                   const tt_epilogue *epilogue);
void tt_linear_grad_input(const tt_dfp *g, const int8_t *weight, uint32_t out_channels, uint32_t in_channels,
                          const tt_epilogue *epilogue);
void tt_avg_pool_grad_input(const tt_dfp *g, float multiplier, const tt_dims *out, const tt_epilogue *epilogue);
void tt_conv2d_grad_input(const tt_dfp *g, const tt_dims *g_dims, const tt_conv_weight *w, const tt_window *window,
                          const tt_dims *out, const tt_epilogue *epilogue, void *scratch);
void tt_depthwise_grad_input(const tt_dfp *g, const tt_dims *g_dims, const int8_t *weight, const tt_window *window,
                             const tt_dims *out, const tt_epilogue *epilogue, void *scratch);
void tt_grad_map(uint32_t count, uint32_t channels, const tt_epilogue *epilogue);

/* ---- gradients of parameters, applied where they are computed ------------------------------------- */
void tt_grad_bias(const tt_dfp *g, uint32_t positions, uint32_t channels, const tt_update *update);
void tt_linear_grad_weight(const tt_dfp *g, const int8_t *x, int32_t zero_point, uint32_t out_channels,
                           uint32_t in_channels, const tt_update *update);
void tt_conv2d_grad_weight(const tt_dfp *g, const tt_dims *g_dims, const tt_input *x, const tt_window *window,
                           const tt_update *update, void *scratch);
void tt_depthwise_grad_weight(const tt_dfp *g, const tt_dims *g_dims, const tt_input *x, const tt_window *window,
                              const tt_update *update, void *scratch);

#endif
