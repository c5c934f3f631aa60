/* SAVE and LOAD: what was learned, kept in flash over a loss of power.
 *
 *   slot = magic u32 | sequence u32 | model digest u32 | payload bytes u32 | CRC-32 u32 | payload
 *   payload = every trained parameter, then the state (tt_model.h), each padded to 4 bytes with zeros
 *
 * Two slots are written in turn. A save erases the older one, programs everything behind its magic, reads it all back,
 * and programs the magic last. So at any moment one slot holds a good copy, or none was ever saved: a power cut
 * costs at most the save that was under way. The CRC covers sequence, digest, size and payload.
 */
#ifndef TT_STORAGE_H
#define TT_STORAGE_H

#include <stdint.h>

#include "tt_protocol.h"

/* Both set *sequence, the number of the copy. TT_ERROR_ROOM or TT_ERROR_FLASH; the newest good copy stays. */
tt_error tt_storage_save(uint32_t *sequence);

/* From the newest good copy of this very model: the next training step is the one that would have followed the save.
 * TT_ERROR_NO_SAVE if there is none; then nothing has changed. */
tt_error tt_storage_load(uint32_t *sequence);

#endif
