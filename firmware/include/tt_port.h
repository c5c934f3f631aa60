/* What the protocol needs from the machine below it: a board (board/port.c) or the host (host/host.c). */
#ifndef TT_PORT_H
#define TT_PORT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
  const char *board;
  uint32_t clock_hz;
  uint32_t data_bytes; /* .data */
  uint32_t bss_bytes;  /* .bss without the arena */
  uint32_t stack_bytes; /* reserved */
} tt_port_facts;

void tt_port_describe(tt_port_facts *facts);
void tt_port_send(const uint8_t *bytes, uint32_t count);
uint32_t tt_port_cycles(void);      /* free-running core cycles, wraps at 2^32; 0 on the host */
uint32_t tt_port_stack_used(void);  /* deepest stack since boot, in bytes; 0 on the host */

/* Two places that keep what is written to them when the power goes. They are read through the pointer. A slot is
 * erased to 0xFF bytes; then every word of it can be programmed once. */
enum { TT_PORT_SLOTS = 2 };
const uint8_t *tt_port_slot(uint32_t slot, uint32_t *bytes);
bool tt_port_slot_erase(uint32_t slot, uint32_t bytes); /* at least the first `bytes`, from low to high addresses */
bool tt_port_slot_program(uint32_t slot, uint32_t offset, uint32_t word); /* offset in bytes, a multiple of 4 */
void tt_port_slot_refresh(uint32_t slot); /* after programming, before reading back: drop what a cache holds */

#endif
