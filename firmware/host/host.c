/* The firmware as a shared library: the same model, kernels and protocol, with memory for a link.
 *
 * target/host.py calls the model directly, a batch per call; the tt_host_link_* functions put bytes through
 * the protocol, as a board would, for the tests that try to break it. Saves go to memory that forgets them with
 * the process.
 */
#include "tt_model.h"
#include "tt_port.h"
#include "tt_protocol.h"
#include "tt_storage.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT const tt_model *tt_host_model(void) { return &tt_the_model; }

static uint32_t image_bytes(void) {
  return (uint32_t)tt_the_model.height * tt_the_model.width * tt_the_model.channels;
}

/* images: int8[count][height][width][channels]; predicted: uint16[count];
 * logits: float32[count][classes], or a null pointer. */
EXPORT void tt_host_infer(const int8_t *images, uint32_t count, uint16_t *predicted, float *logits) {
  for (uint32_t i = 0; i < count; i++) {
    __builtin_memcpy(tt_the_model.infer_input, images + (uint64_t)i * image_bytes(), image_bytes());
    tt_the_model.infer();
    predicted[i] = tt_predicted_class();
    if (logits) {
      __builtin_memcpy(logits + (uint64_t)i * tt_the_model.classes, tt_the_model.logits,
                       tt_the_model.classes * sizeof(float));
    }
  }
}

/* One step an image, in order. labels: uint16[count], each < classes; losses: float32[count] and
 * predicted: uint16[count], both of before the update. */
EXPORT void tt_host_train(const int8_t *images, const uint16_t *labels, uint32_t count, float *losses,
                          uint16_t *predicted) {
  for (uint32_t i = 0; i < count; i++) {
    __builtin_memcpy(tt_the_model.train_input, images + (uint64_t)i * image_bytes(), image_bytes());
    tt_the_model.train_step(labels[i]);
    losses[i] = *tt_the_model.loss;
    predicted[i] = tt_predicted_class();
  }
}

EXPORT uint32_t tt_host_save(uint32_t *sequence) { return tt_storage_save(sequence); }
EXPORT uint32_t tt_host_load(uint32_t *sequence) { return tt_storage_load(sequence); }

/* ---- the link ---- */

static struct {
  uint8_t *bytes; /* the caller's */
  uint32_t capacity;
  uint32_t used;
} link;

/* Feeds the protocol; replies go to `replies`. Returns how many bytes they have, which is more than `capacity`
 * when some did not fit. */
EXPORT uint32_t tt_host_link(const uint8_t *bytes, uint32_t count, uint8_t *replies, uint32_t capacity) {
  link.bytes = replies;
  link.capacity = capacity;
  link.used = 0;
  for (uint32_t i = 0; i < count; i++) tt_protocol_receive(bytes[i]);
  return link.used;
}

EXPORT void tt_host_link_overrun(void) { tt_protocol_overrun(); }

void tt_port_send(const uint8_t *bytes, uint32_t count) {
  for (uint32_t i = 0; i < count; i++, link.used++) {
    if (link.used < link.capacity) link.bytes[link.used] = bytes[i];
  }
}

/* A host has no cycle counter worth comparing with a board's, and its linker lays memory out otherwise. */
uint32_t tt_port_cycles(void) { return 0; }
uint32_t tt_port_stack_used(void) { return 0; }
void tt_port_describe(tt_port_facts *facts) { *facts = (tt_port_facts){.board = "host"}; }

/* ---- slots for SAVE, of the size that the chip has at least ---- */

enum { SLOT_BYTES = 96 * 1024 };
static uint8_t slots[TT_PORT_SLOTS][SLOT_BYTES];

const uint8_t *tt_port_slot(uint32_t slot, uint32_t *bytes) {
  *bytes = SLOT_BYTES;
  return slots[slot];
}

bool tt_port_slot_erase(uint32_t slot, uint32_t bytes) {
  __builtin_memset(slots[slot], 0xFF, bytes);
  return true;
}

bool tt_port_slot_program(uint32_t slot, uint32_t offset, uint32_t word) {
  __builtin_memcpy(slots[slot] + offset, &word, sizeof word);
  return true;
}

void tt_port_slot_refresh(uint32_t slot) { (void)slot; }
