/* Requests: checks all of a frame before it acts on any of it.
 *
 * The bytes of a frame are dropped where they belong as they arrive: header and arguments into small
 * arrays, the image (or the bytes of WRITE_PARAMS) into the model's input tensor. That tensor is scratch, not
 * state, so a frame that turns out to be damaged has changed nothing that matters. The end of the frame is known
 * only at its delimiter; the CRC runs over its own four bytes too and must then equal a constant.
 */
#include "tt_protocol.h"

#include <stdbool.h>

#include "tt_frame.h"
#include "tt_model.h"
#include "tt_port.h"
#include "tt_storage.h"

enum { HEADER = 4, CRC = 4, ARGUMENTS_MAX = 8 };

static struct {
  uint32_t count; /* decoded bytes so far, header and CRC included */
  uint32_t crc;
  bool overrun;
  uint8_t header[HEADER];
  uint8_t arguments[ARGUMENTS_MAX];
} frame = {.crc = ~0u};

static struct {
  uint32_t evaluated;
  uint32_t correct;
  uint32_t train_cycles; /* of the newest step */
  uint32_t infer_cycles;
} stats;

/* ---- arguments ---- */

static uint16_t u16_at(const uint8_t *bytes) { return (uint16_t)(bytes[0] | bytes[1] << 8); }

static uint32_t u32_at(const uint8_t *bytes) {
  return u16_at(bytes) | (uint32_t)u16_at(bytes + 2) << 16;
}

static float f32_at(const uint8_t *bytes) {
  const uint32_t bits = u32_at(bytes);
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

static uint8_t request_type(void) { return frame.header[1]; }
static uint16_t request_sequence(void) { return u16_at(frame.header + 2); }
static void open_reply(void) { tt_frame_open(request_type() | TT_REPLY, request_sequence()); }

/* ---- requests: each returns TT_OK after it has replied, or an error having done nothing ---- */

uint16_t tt_predicted_class(void) {
  uint16_t best = 0;
  for (uint16_t i = 1; i < tt_the_model.classes; i++) {
    if (tt_the_model.logits[i] > tt_the_model.logits[best]) best = i;
  }
  return best;
}

static tt_error empty_reply(void) {
  open_reply();
  tt_frame_close();
  return TT_OK;
}

static tt_error hello(void) {
  tt_port_facts port;
  tt_port_describe(&port);
  open_reply();
  tt_frame_put_u32(tt_the_model.digest);
  tt_frame_put_u16(tt_the_model.height);
  tt_frame_put_u16(tt_the_model.width);
  tt_frame_put_u16(tt_the_model.channels);
  tt_frame_put_u16(tt_the_model.classes);
  tt_frame_put_u32(tt_the_model.arena_bytes);
  tt_frame_put_u32(port.data_bytes);
  tt_frame_put_u32(port.bss_bytes);
  tt_frame_put_u32(port.stack_bytes);
  tt_frame_put_u32(port.clock_hz);
  tt_frame_put_u16(tt_the_model.param_count);
  tt_frame_put_string(port.board);
  tt_frame_put_string(tt_the_model.name);
  tt_frame_close();
  return TT_OK;
}

static void run_inference(void) {
  const uint32_t start = tt_port_cycles();
  tt_the_model.infer();
  stats.infer_cycles = tt_port_cycles() - start;
}

static tt_error infer(void) {
  run_inference();
  open_reply();
  tt_frame_put_u16(tt_predicted_class());
  tt_frame_put_u32(stats.infer_cycles);
  for (uint16_t i = 0; i < tt_the_model.classes; i++) tt_frame_put_f32(tt_the_model.logits[i]);
  tt_frame_close();
  return TT_OK;
}

static tt_error train(void) {
  const uint16_t label = u16_at(frame.arguments);
  if (label >= tt_the_model.classes) return TT_ERROR_LABEL;
  const uint32_t start = tt_port_cycles();
  tt_the_model.train_step(label);
  stats.train_cycles = tt_port_cycles() - start;
  open_reply();
  tt_frame_put_f32(*tt_the_model.loss);
  tt_frame_put_u16(tt_predicted_class());
  tt_frame_put_u32(stats.train_cycles);
  tt_frame_close();
  return TT_OK;
}

static tt_error evaluate(void) {
  const uint16_t label = u16_at(frame.arguments);
  if (label >= tt_the_model.classes) return TT_ERROR_LABEL;
  run_inference();
  const uint16_t predicted = tt_predicted_class();
  stats.evaluated++;
  if (predicted == label) stats.correct++;
  open_reply();
  tt_frame_put_u16(predicted);
  tt_frame_put_u32(stats.infer_cycles);
  tt_frame_close();
  return TT_OK;
}

static tt_error set_learning_rate(void) {
  const float rate = f32_at(frame.arguments);
  if (!(rate >= 0.0f) || rate > 3.402823466e38f) return TT_ERROR_LEARNING_RATE; /* !(>=) catches NaN */
  *tt_the_model.learning_rate = rate;
  return empty_reply();
}

static tt_error report_stats(void) {
  open_reply();
  tt_frame_put_u32(*tt_the_model.steps);
  tt_frame_put_u32(stats.evaluated);
  tt_frame_put_u32(stats.correct);
  tt_frame_put_u32(stats.train_cycles);
  tt_frame_put_u32(stats.infer_cycles);
  tt_frame_put_u32(tt_port_stack_used());
  tt_frame_put_f32(*tt_the_model.loss);
  tt_frame_put_f32(*tt_the_model.learning_rate);
  tt_frame_close();
  return TT_OK;
}

static tt_error param_info(void) {
  const uint16_t index = u16_at(frame.arguments);
  if (index >= tt_the_model.param_count) return TT_ERROR_RANGE;
  open_reply();
  tt_frame_put_u32(tt_the_model.params[index].bytes);
  tt_frame_put_string(tt_the_model.params[index].name);
  tt_frame_close();
  return TT_OK;
}

/* The `*count` bytes of a parameter that the arguments name, or a null pointer if they reach beyond its end. */
static uint8_t *addressed_bytes(uint16_t *count) {
  const uint16_t index = u16_at(frame.arguments);
  const uint32_t offset = u32_at(frame.arguments + 2);
  *count = u16_at(frame.arguments + 6);
  if (index >= tt_the_model.param_count) return 0;
  const tt_param *param = &tt_the_model.params[index];
  if (offset > param->bytes || *count > param->bytes - offset) return 0;
  return (uint8_t *)param->data + offset;
}

static tt_error read_params(void) {
  uint16_t count;
  const uint8_t *from = addressed_bytes(&count);
  if (from == 0) return TT_ERROR_RANGE;
  open_reply();
  tt_frame_put(from, count);
  tt_frame_close();
  return TT_OK;
}

static tt_error write_params(void) {
  uint16_t count;
  uint8_t *to = addressed_bytes(&count);
  if (to == 0) return TT_ERROR_RANGE;
  __builtin_memcpy(to, tt_the_model.infer_input, count);
  return empty_reply();
}

static tt_error stored(tt_error (*act)(uint32_t *)) {
  uint32_t sequence;
  const tt_error error = act(&sequence);
  if (error != TT_OK) return error;
  open_reply();
  tt_frame_put_u32(sequence);
  tt_frame_close();
  return TT_OK;
}

static tt_error save(void) { return stored(tt_storage_save); }
static tt_error load(void) { return stored(tt_storage_load); }

static tt_error reset(void) {
  tt_the_model.reset();
  stats.evaluated = stats.correct = stats.train_cycles = stats.infer_cycles = 0;
  return empty_reply();
}

/* ---- from bytes to a request ---- */

typedef enum { NOTHING, IMAGE, BYTES } tail; /* what follows the arguments; of BYTES, their last two are the number */

typedef struct {
  tt_error (*handle)(void);
  uint8_t argument_bytes;
  tail tail;
} request;

static const request requests[TT_MESSAGE_END] = {
    [TT_HELLO] = {hello, 0, NOTHING},
    [TT_INFER] = {infer, 0, IMAGE},
    [TT_TRAIN] = {train, 2, IMAGE},
    [TT_EVALUATE] = {evaluate, 2, IMAGE},
    [TT_LEARNING_RATE] = {set_learning_rate, 4, NOTHING},
    [TT_STATS] = {report_stats, 0, NOTHING},
    [TT_PARAM_INFO] = {param_info, 2, NOTHING},
    [TT_READ_PARAMS] = {read_params, 8, NOTHING},
    [TT_RESET] = {reset, 0, NOTHING},
    [TT_WRITE_PARAMS] = {write_params, 8, BYTES},
    [TT_SAVE] = {save, 0, NOTHING},
    [TT_LOAD] = {load, 0, NOTHING},
};

/* The request that the header names, or one without a handler. */
static const request *current_request(void) {
  const uint8_t type = request_type();
  return &requests[type < TT_MESSAGE_END ? type : 0];
}

static uint32_t image_bytes(void) {
  return (uint32_t)tt_the_model.height * tt_the_model.width * tt_the_model.channels;
}

/* Puts a byte of the frame where it belongs. Bytes that belong nowhere, the CRC among them, are only counted. */
static void place(uint8_t byte) {
  const uint32_t position = frame.count;
  if (frame.count < UINT32_MAX) frame.count++;
  frame.crc = tt_crc32_byte(frame.crc, byte);
  if (position < HEADER) {
    frame.header[position] = byte;
    return;
  }
  const request *request = current_request();
  uint32_t offset = position - HEADER;
  if (offset < request->argument_bytes) {
    frame.arguments[offset] = byte;
    return;
  }
  offset -= request->argument_bytes;
  if (request->tail != NOTHING && offset < image_bytes()) {
    int8_t *image = request_type() == TT_TRAIN ? tt_the_model.train_input : tt_the_model.infer_input;
    image[offset] = (int8_t)byte;
  }
}

static uint32_t tail_bytes(const request *request) {
  switch (request->tail) {
    case IMAGE: return image_bytes();
    case BYTES: return u16_at(frame.arguments + request->argument_bytes - 2);
    default: return 0;
  }
}

static tt_error act(bool broken) {
  const request *request = current_request();
  const uint32_t bytes = HEADER + request->argument_bytes + tail_bytes(request) + CRC;
  if (frame.overrun) return TT_ERROR_OVERRUN;
  if (broken) return TT_ERROR_FRAMING;
  if (frame.count < HEADER + CRC || frame.crc != TT_CRC32_RESIDUE) return TT_ERROR_CRC;
  if (frame.header[0] != TT_PROTOCOL_VERSION) return TT_ERROR_VERSION;
  if (request->handle == 0) return TT_ERROR_TYPE;
  if (frame.count != bytes || tail_bytes(request) > image_bytes()) return TT_ERROR_LENGTH;
  return request->handle();
}

static void next_frame(void) {
  frame.count = 0;
  frame.crc = ~0u;
  frame.overrun = false;
  __builtin_memset(frame.header, 0, sizeof frame.header);
}

void tt_protocol_receive(uint8_t byte) {
  uint8_t decoded;
  const tt_frame_event event = tt_frame_decode(byte, &decoded);
  if (event == TT_FRAME_NOTHING) return;
  if (event == TT_FRAME_BYTE) {
    place(decoded);
    return;
  }
  const tt_error error = act(event == TT_FRAME_BROKEN);
  if (error != TT_OK) {
    tt_frame_open(TT_ERROR | TT_REPLY, request_sequence());
    tt_frame_put_u8(error);
    tt_frame_close();
  }
  next_frame();
}

void tt_protocol_overrun(void) { frame.overrun = true; }
