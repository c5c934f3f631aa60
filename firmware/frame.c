#include "tt_frame.h"

#include "tt_port.h"
#include "tt_protocol.h"

enum { COBS_BLOCK = 254 }; /* most data bytes that one code byte can announce */

uint32_t tt_crc32_byte(uint32_t crc, uint8_t byte) {
  /* Four bits at a time: 64 bytes of table instead of 1 KB. */
  static const uint32_t nibble[16] = {
      0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u, 0x4DB26158u, 0x5005713Cu,
      0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu, 0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu};
  crc ^= byte;
  crc = (crc >> 4) ^ nibble[crc & 15u];
  return (crc >> 4) ^ nibble[crc & 15u];
}

/* ---- receiving ---- */

static struct {
  uint8_t code; /* of the newest COBS block; 0 = no block yet in this frame */
  uint8_t left; /* data bytes of that block still to come */
} rx;

tt_frame_event tt_frame_decode(uint8_t byte, uint8_t *decoded) {
  if (byte == 0) {
    if (rx.code == 0) return TT_FRAME_NOTHING; /* an empty frame */
    const tt_frame_event end = rx.left == 0 ? TT_FRAME_END : TT_FRAME_BROKEN;
    rx.code = 0;
    rx.left = 0;
    return end;
  }
  if (rx.left > 0) {
    rx.left--;
    *decoded = byte;
    return TT_FRAME_BYTE;
  }
  /* A code byte. A zero stands between two blocks, unless the first one was full. */
  const uint8_t previous = rx.code;
  rx.code = byte;
  rx.left = (uint8_t)(byte - 1u);
  *decoded = 0;
  return previous == 0 || previous == COBS_BLOCK + 1 ? TT_FRAME_NOTHING : TT_FRAME_BYTE;
}

/* ---- sending ---- */

static struct {
  uint8_t block[1 + COBS_BLOCK]; /* code byte, then data */
  uint8_t used;
  uint32_t crc;
} tx;

static void end_block(void) {
  tx.block[0] = (uint8_t)(tx.used + 1u);
  tt_port_send(tx.block, tx.used + 1u);
  tx.used = 0;
}

static void put_byte(uint8_t byte) {
  tx.crc = tt_crc32_byte(tx.crc, byte);
  if (tx.used == COBS_BLOCK) end_block();
  if (byte == 0) {
    end_block();
  } else {
    tx.block[++tx.used] = byte;
  }
}

void tt_frame_put(const void *bytes, uint32_t count) {
  const uint8_t *from = bytes;
  for (uint32_t i = 0; i < count; i++) put_byte(from[i]);
}

void tt_frame_put_u8(uint8_t value) { put_byte(value); }

void tt_frame_put_u16(uint16_t value) {
  put_byte((uint8_t)value);
  put_byte((uint8_t)(value >> 8));
}

void tt_frame_put_u32(uint32_t value) {
  tt_frame_put_u16((uint16_t)value);
  tt_frame_put_u16((uint16_t)(value >> 16));
}

void tt_frame_put_f32(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  tt_frame_put_u32(bits);
}

void tt_frame_put_string(const char *text) {
  uint8_t length = 0;
  while (length < 255 && text[length] != '\0') length++;
  tt_frame_put_u8(length);
  tt_frame_put(text, length);
}

void tt_frame_open(uint8_t type, uint16_t sequence) {
  tx.used = 0;
  tx.crc = ~0u;
  tt_frame_put_u8(TT_PROTOCOL_VERSION);
  tt_frame_put_u8(type);
  tt_frame_put_u16(sequence);
}

void tt_frame_close(void) {
  tt_frame_put_u32(~tx.crc); /* the argument is taken before its own bytes change tx.crc */
  end_block();
  static const uint8_t delimiter = 0;
  tt_port_send(&delimiter, 1);
}
