/* From power-on to tt_main. */
#include "board.h"
#include "registers.h"

__attribute__((naked, noreturn)) void tt_reset(void);
_Noreturn void tt_start(void);

/* Only system exceptions (PM0253, "Vector table"): no interrupt is ever enabled, the USART is polled. */
__attribute__((section(".vectors"), used)) static const struct {
  uint32_t *stack;
  void (*handlers[15])(void);
} vectors = {
    __stack_top,
    {tt_reset, tt_fault, tt_fault, tt_fault, tt_fault, tt_fault, 0, 0, 0, 0, tt_fault, tt_fault, 0, tt_fault, tt_fault}};

/* Paints the stack. In assembly, because it must not use the stack meanwhile. */
__attribute__((naked, noreturn)) void tt_reset(void) {
  __asm volatile(
      "  movw r0, #:lower16:__stack_bottom\n"
      "  movt r0, #:upper16:__stack_bottom\n"
      "  movw r1, #:lower16:__stack_top\n"
      "  movt r1, #:upper16:__stack_top\n"
      "  movw r2, #0xA5A5\n"
      "  movt r2, #0xA5A5\n"
      "1:\n"
      "  str r2, [r0], #4\n"
      "  cmp r0, r1\n"
      "  blo 1b\n"
      "  b tt_start\n");
}

static void copy(uint32_t *to, const uint32_t *end, const uint32_t *from) {
  while (to < end) *to++ = *from++;
}

_Noreturn void tt_start(void) {
  SCB_VTOR = (uint32_t)&vectors; /* reset found the table through the ITCM alias of the flash */
  SCB_CPACR |= SCB_CPACR_FPU_FULL;
  tt_barrier();
  /* FPSCR and FPDSCR reset to 0: round to nearest even, subnormals kept. The integer contract needs both. */
  copy(__itcm_start, __itcm_end, __itcm_load);
  copy(__data_start, __data_end, __data_load);
  for (uint32_t *word = __bss_start; word < __bss_end; word++) *word = 0;
  SCB_SHCSR |= SCB_SHCSR_FAULTS_ENABLED;
  tt_memory_protect();
  tt_caches_enable();
  tt_clock_start();
  tt_cycles_start();
  tt_usart_start();
  tt_main();
}
