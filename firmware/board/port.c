/* What the protocol asks of the machine, answered by the board. */
#include "tt_port.h"

#include "board.h"
#include "registers.h"
#include "tt_attributes.h"
#include "tt_model.h"
#include "tt_protocol.h"

void tt_cycles_start(void) {
  DWT_LAR = DWT_LAR_UNLOCK;
  DWT_CYCCNT = 0;
  DWT_CTRL |= DWT_CTRL_CYCCNTENA;
}

/* A function of its own, so that two readings are taken by the same instruction and their difference is exact on
 * targets that count by basic block. */
TT_NOINLINE uint32_t tt_port_cycles(void) { return DWT_CYCCNT; }

uint32_t tt_port_stack_used(void) {
  const uint32_t *word = __stack_bottom;
  while (word < __stack_top && *word == TT_STACK_PAINT) word++;
  return (uint32_t)((uintptr_t)__stack_top - (uintptr_t)word);
}

void tt_port_describe(tt_port_facts *facts) {
  *facts = (tt_port_facts){
      .board = TT_BOARD_NAME,
      .clock_hz = TT_CLOCK_HZ,
      .data_bytes = (uint32_t)((uintptr_t)__data_end - (uintptr_t)__data_start),
      .bss_bytes = (uint32_t)((uintptr_t)__bss_end - (uintptr_t)__bss_start),
      .stack_bytes = (uint32_t)((uintptr_t)__stack_top - (uintptr_t)__stack_bottom),
  };
}

void tt_port_send(const uint8_t *bytes, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) tt_usart_send(bytes[i]);
}

_Noreturn void tt_main(void) {
  tt_the_model.reset(); /* parameters lie in .bss; their initial values in flash */
  for (;;) tt_protocol_receive(tt_usart_receive());
}
