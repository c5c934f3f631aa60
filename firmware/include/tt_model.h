/* What a generated model offers to the rest of the firmware.
 *
 * `tinytrain compile` prints one model.c per (network, update scheme). The protocol, the host
 * library and the board's main() know a model only through the structure below, so none of them
 * changes when the network does.
 */
#ifndef TT_MODEL_H
#define TT_MODEL_H

#include <stdint.h>

/* One trained parameter array, as READ_PARAMS hands it out. */
typedef struct {
  const char *name;
  void *data;
  uint32_t bytes;
} tt_param;

typedef struct {
  const char *name;     /* network and scheme, e.g. "fashion-mbv2/sparse" */
  uint32_t digest;      /* CRC-32 of the graph's text: two builds that differ say so */
  uint16_t height;      /* input image, in elements */
  uint16_t width;
  uint16_t channels;
  uint16_t classes;
  uint32_t arena_bytes;
  int8_t *infer_input;  /* int8[height][width][channels], inside the arena */
  int8_t *train_input;  /* the same image for a training step (its own plan, so its own place) */
  const tt_param *params;
  uint16_t param_count;
  void (*infer)(void);                /* infer_input -> *logits */
  void (*train_step)(uint32_t label); /* train_input, label -> one update; sets *loss and *logits */
  void (*reset)(void);                /* parameters, exponents and step count as first flashed */
  const float *logits;                /* float32[classes] */
  const float *loss;                  /* float32, cross-entropy of the newest training step */
  float *learning_rate;               /* float32, read by every update */
  const uint32_t *steps;              /* training steps since reset */
  const tt_param *state;              /* what else the next step depends on: exponents, step count, rate */
  uint16_t state_count;
} tt_model;

extern const tt_model tt_the_model;

#endif
