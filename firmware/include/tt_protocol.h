/* The host link. Byte order is little endian throughout.
 *
 *   frame = COBS( version u8 | type u8 | sequence u16 | payload | CRC-32 u32 ) 0x00
 *
 * COBS: Cheshire & Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM ToN 7(2), 1999; it frees the
 * value 0x00 to mark the end of a frame. CRC-32 is zlib's, over everything before it.
 *
 *   request        payload                                 reply payload (type | TT_REPLY)
 *   HELLO          -                                       digest u32, height u16, width u16, channels u16,
 *                                                          classes u16, arena u32, data u32, bss u32, stack u32,
 *                                                          clock u32 (Hz), parameters u16, board str, model str
 *   INFER          image                                   class u16, cycles u32, logits f32[classes]
 *   TRAIN          label u16, image                        loss f32, class u16 (before the update), cycles u32
 *   EVALUATE       label u16, image                        class u16, cycles u32
 *   LEARNING_RATE  rate f32                                -
 *   STATS          -                                       steps u32, evaluated u32, correct u32, train cycles u32,
 *                                                          infer cycles u32, stack u32, loss f32, rate f32
 *   PARAM_INFO     index u16                               bytes u32, name str
 *   READ_PARAMS    index u16, offset u32, count u16        u8[count]
 *   RESET          -                                       -
 *   WRITE_PARAMS   index u16, offset u32, count u16,       -
 *                  u8[count], at most an image's bytes
 *   SAVE           -                                       sequence u32 (how many saves there were)
 *   LOAD           -                                       sequence u32
 *
 *   image = int8[height][width][channels]   str = length u8, then the bytes
 *
 * A request that cannot be honoured is answered by an ERROR frame (code u8) and changes nothing.
 * An empty frame is ignored, so a host may send 0x00 to get in step. One request at a time: the
 * host waits for the reply. target/protocol.py holds the same numbers; a test compares the two.
 */
#ifndef TT_PROTOCOL_H
#define TT_PROTOCOL_H

#include <stdint.h>

enum { TT_PROTOCOL_VERSION = 1 };

typedef enum {
  TT_HELLO = 1,
  TT_INFER = 2,
  TT_TRAIN = 3,
  TT_EVALUATE = 4,
  TT_LEARNING_RATE = 5,
  TT_STATS = 6,
  TT_PARAM_INFO = 7,
  TT_READ_PARAMS = 8,
  TT_RESET = 9,
  TT_WRITE_PARAMS = 10,
  TT_SAVE = 11,
  TT_LOAD = 12,
  TT_MESSAGE_END, /* one past the last request */
  TT_ERROR = 0x7F,
  TT_REPLY = 0x80 /* set in the type of every reply */
} tt_message;

typedef enum {
  TT_OK = 0,
  TT_ERROR_OVERRUN = 1,       /* the USART lost bytes of this frame */
  TT_ERROR_FRAMING = 2,       /* not COBS */
  TT_ERROR_CRC = 3,           /* damaged, or shorter than the smallest frame */
  TT_ERROR_VERSION = 4,       /* another protocol version */
  TT_ERROR_TYPE = 5,          /* no such request */
  TT_ERROR_LENGTH = 6,        /* the payload has the wrong size for its request and this model */
  TT_ERROR_LABEL = 7,         /* label >= classes */
  TT_ERROR_LEARNING_RATE = 8, /* negative, infinite or not a number */
  TT_ERROR_RANGE = 9,         /* no such parameter, or bytes beyond its end */
  TT_ERROR_NO_SAVE = 10,      /* no good copy of this model in flash */
  TT_ERROR_ROOM = 11,         /* parameters and state are larger than a slot */
  TT_ERROR_FLASH = 12         /* flash did not take what was written; the older copy is still there */
} tt_error;

/* Feed one byte of the link. Answers through tt_port_send when the byte completes a frame. */
void tt_protocol_receive(uint8_t byte);

/* The port lost input: the frame being received will be refused. */
void tt_protocol_overrun(void);

/* The class with the largest logit of the newest forward pass; of equals, the first. */
uint16_t tt_predicted_class(void);

#endif
