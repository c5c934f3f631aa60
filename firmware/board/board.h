/* The parts of the board, and the symbols that the linker script defines. */
#ifndef TT_BOARD_PARTS_H
#define TT_BOARD_PARTS_H

#include <stdint.h>

/* Only the addresses of these mean anything. */
extern uint32_t __stack_bottom[], __stack_top[];
extern uint32_t __itcm_start[], __itcm_end[], __itcm_load[];
extern uint32_t __data_start[], __data_end[], __data_load[];
extern uint32_t __bss_start[], __bss_end[];

#define TT_STACK_PAINT 0xA5A5A5A5u /* unused stack words keep this value: their number is the margin */

void tt_memory_protect(void); /* memory.c: MPU */
void tt_caches_enable(void);  /* memory.c */
void tt_clock_start(void);    /* clock.c: 216 MHz */
void tt_usart_start(void);    /* usart.c */
uint8_t tt_usart_receive(void);
void tt_usart_send(uint8_t byte);
void tt_cycles_start(void); /* port.c: DWT */
void tt_fault(void);        /* fault.c: the handler of every fault */
_Noreturn void tt_main(void);

#endif
