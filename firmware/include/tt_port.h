/* What the protocol needs from the machine below it: a board (board/port.c) or the host (host/host.c). */
#ifndef TT_PORT_H
#define TT_PORT_H

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

#endif
