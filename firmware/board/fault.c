/* A fault prints one line of text on the USART and stops: it is a defect, and to go on would hide it.
 *
 *   HARDFAULT pc=0x08000a3c lr=0x08000a11 cfsr=0x00000082 hfsr=0x00000000 mmfar=0x1ffffffc bfar=0x00000000 sp=0x20000000
 *
 * Every fault has this form, whichever vector it took; cfsr tells the kind (PM0253, "Configurable fault status
 * register"). pc and lr are 0 when the core could not stack them, which is what a stack overflow looks like.
 */
#include "board.h"
#include "registers.h"

enum { STACKED_LR = 5, STACKED_PC = 6, STACKED_WORDS = 8 };

_Noreturn void tt_fault_report(const uint32_t *frame);

/* The stack may be what broke, so the report runs on a fresh one; nothing returns from here. */
__attribute__((naked)) void tt_fault(void) {
  __asm volatile(
      "  mrs r0, msp\n"
      "  movw r1, #:lower16:__stack_top\n"
      "  movt r1, #:upper16:__stack_top\n"
      "  mov sp, r1\n"
      "  b tt_fault_report\n");
}

static void print(const char *text) {
  while (*text != '\0') tt_usart_send((uint8_t)*text++);
}

static void print_hex(const char *name, uint32_t value) {
  print(name);
  for (int shift = 28; shift >= 0; shift -= 4) tt_usart_send((uint8_t)"0123456789abcdef"[value >> shift & 15u]);
}

_Noreturn void tt_fault_report(const uint32_t *frame) {
  const uint32_t status = SCB_CFSR;
  uint32_t pc = 0, lr = 0;
  if (frame >= __stack_bottom && frame + STACKED_WORDS <= __stack_top &&
      (status & (SCB_CFSR_MSTKERR | SCB_CFSR_STKERR)) == 0) {
    pc = frame[STACKED_PC];
    lr = frame[STACKED_LR];
  }
  print_hex("\r\nHARDFAULT pc=0x", pc);
  print_hex(" lr=0x", lr);
  print_hex(" cfsr=0x", status);
  print_hex(" hfsr=0x", SCB_HFSR);
  print_hex(" mmfar=0x", SCB_MMFAR);
  print_hex(" bfar=0x", SCB_BFAR);
  print_hex(" sp=0x", (uint32_t)frame);
  print("\r\n");
  for (;;) __asm volatile("wfi");
}
