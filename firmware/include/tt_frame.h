/* Frames: COBS and CRC-32, one byte at a time in both directions, with no frame buffer. */
#ifndef TT_FRAME_H
#define TT_FRAME_H

#include <stdint.h>

/* CRC-32 of zlib (reflected polynomial 0xEDB88320), continued by one byte. Start with ~0u and invert the end. */
uint32_t tt_crc32_byte(uint32_t crc, uint8_t byte);

/* What `crc` is, before the final inversion, after a message followed by its own CRC-32. */
#define TT_CRC32_RESIDUE 0xDEBB20E3u

typedef enum {
  TT_FRAME_NOTHING, /* a COBS code byte, or an empty frame: nothing to do */
  TT_FRAME_BYTE,    /* *decoded is the next byte of the frame */
  TT_FRAME_END,     /* the frame is complete */
  TT_FRAME_BROKEN   /* the frame ended inside a COBS block */
} tt_frame_event;

tt_frame_event tt_frame_decode(uint8_t byte, uint8_t *decoded);

/* Sending: open, put any number of times, close. */
void tt_frame_open(uint8_t type, uint16_t sequence);
void tt_frame_put(const void *bytes, uint32_t count);
void tt_frame_put_u8(uint8_t value);
void tt_frame_put_u16(uint16_t value);
void tt_frame_put_u32(uint32_t value);
void tt_frame_put_f32(float value);
void tt_frame_put_string(const char *text); /* at most 255 bytes of it */
void tt_frame_close(void);

#endif
