#include "tt_storage.h"

#include <stdbool.h>

#include "tt_frame.h"
#include "tt_model.h"
#include "tt_port.h"

enum { MAGIC, SEQUENCE, DIGEST, BYTES, CHECK, HEADER_WORDS }; /* words of the header */
enum { HEADER = 4 * HEADER_WORDS, NO_SLOT = TT_PORT_SLOTS };
#define GOOD 0x31535454u /* "TTS1" */

typedef void (*visitor)(const tt_param *array, void *context);

static void for_each_array(visitor visit, void *context) {
  for (uint16_t i = 0; i < tt_the_model.param_count; i++) visit(&tt_the_model.params[i], context);
  for (uint16_t i = 0; i < tt_the_model.state_count; i++) visit(&tt_the_model.state[i], context);
}

static uint32_t padded(uint32_t bytes) { return (bytes + 3u) & ~3u; }

static void add_size(const tt_param *array, void *context) { *(uint32_t *)context += padded(array->bytes); }

static uint32_t payload_bytes(void) {
  uint32_t bytes = 0;
  for_each_array(add_size, &bytes);
  return bytes;
}

static uint32_t word_at(const uint8_t *bytes, uint32_t index) {
  uint32_t word;
  __builtin_memcpy(&word, bytes + 4u * index, sizeof word);
  return word;
}

static uint32_t crc_of(uint32_t crc, const uint8_t *bytes, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) crc = tt_crc32_byte(crc, bytes[i]);
  return crc;
}

/* Header without magic and check, then the payload, as they lie in the slot. */
static uint32_t check_of(const uint8_t *slot, uint32_t payload) {
  const uint32_t crc = crc_of(~0u, slot + 4 * SEQUENCE, 4 * (CHECK - SEQUENCE));
  return ~crc_of(crc, slot + HEADER, payload);
}

/* True if the slot holds an undamaged copy of this model, its magic aside. */
static bool intact(uint32_t slot) {
  uint32_t capacity;
  const uint8_t *at = tt_port_slot(slot, &capacity);
  const uint32_t payload = payload_bytes();
  return HEADER + payload <= capacity && word_at(at, DIGEST) == tt_the_model.digest && word_at(at, BYTES) == payload &&
         word_at(at, CHECK) == check_of(at, payload);
}

static uint32_t sequence_of(uint32_t slot) {
  uint32_t capacity;
  return word_at(tt_port_slot(slot, &capacity), SEQUENCE);
}

/* The slot with the newest good copy, or NO_SLOT. */
static uint32_t newest(void) {
  uint32_t best = NO_SLOT;
  for (uint32_t slot = 0; slot < TT_PORT_SLOTS; slot++) {
    uint32_t capacity;
    const bool good = word_at(tt_port_slot(slot, &capacity), MAGIC) == GOOD && intact(slot);
    /* The difference as a signed number stays right when the count wraps. */
    if (good && (best == NO_SLOT || (int32_t)(sequence_of(slot) - sequence_of(best)) > 0)) best = slot;
  }
  return best;
}

/* ---- saving ---- */

typedef struct {
  uint32_t slot, offset, crc;
  bool good;
} writer;

static void put_word(writer *w, uint32_t word) {
  uint8_t bytes[4];
  __builtin_memcpy(bytes, &word, sizeof bytes);
  w->crc = crc_of(w->crc, bytes, sizeof bytes);
  w->good = w->good && tt_port_slot_program(w->slot, w->offset, word);
  w->offset += sizeof word;
}

static void put_array(const tt_param *array, void *context) {
  const uint8_t *from = array->data;
  for (uint32_t done = 0; done < array->bytes; done += 4) {
    uint32_t word = 0;
    __builtin_memcpy(&word, from + done, array->bytes - done < 4 ? array->bytes - done : 4);
    put_word(context, word);
  }
}

tt_error tt_storage_save(uint32_t *sequence) {
  const uint32_t old = newest();
  writer w = {.slot = old == 0 ? 1 : 0, .offset = 4 * SEQUENCE, .crc = ~0u};
  const uint32_t payload = payload_bytes();
  uint32_t capacity;
  (void)tt_port_slot(w.slot, &capacity);
  if (HEADER + payload > capacity) return TT_ERROR_ROOM;

  *sequence = old == NO_SLOT ? 1 : sequence_of(old) + 1;
  w.good = tt_port_slot_erase(w.slot, HEADER + payload);
  put_word(&w, *sequence);
  put_word(&w, tt_the_model.digest);
  put_word(&w, payload);
  w.offset = HEADER;
  for_each_array(put_array, &w);
  w.good = w.good && tt_port_slot_program(w.slot, 4 * CHECK, ~w.crc);
  tt_port_slot_refresh(w.slot);
  w.good = w.good && intact(w.slot) && tt_port_slot_program(w.slot, 4 * MAGIC, GOOD);
  tt_port_slot_refresh(w.slot);
  return w.good && newest() == w.slot ? TT_OK : TT_ERROR_FLASH;
}

/* ---- loading ---- */

static void take_array(const tt_param *array, void *context) {
  const uint8_t **from = context;
  __builtin_memcpy(array->data, *from, array->bytes);
  *from += padded(array->bytes);
}

tt_error tt_storage_load(uint32_t *sequence) {
  const uint32_t slot = newest();
  if (slot == NO_SLOT) return TT_ERROR_NO_SAVE;
  uint32_t capacity;
  const uint8_t *from = tt_port_slot(slot, &capacity) + HEADER;
  for_each_array(take_array, &from);
  *sequence = sequence_of(slot);
  return TT_OK;
}
