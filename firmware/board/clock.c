/* 216 MHz from HSE: RM0385, "Reset and clock control", "Entering Over-drive mode". */
#include "board.h"
#include "registers.h"

enum {
  VCO_MHZ = 432, /* = 1 MHz x N */
  PLL_Q = 9,     /* 48 MHz, for peripherals that this firmware leaves off; must still be legal */
  WAIT_STATES = 7
};
_Static_assert(VCO_MHZ / 2 * 1000000 == TT_CLOCK_HZ, "the PLL settings give another clock than the description");

static void wait_for(volatile uint32_t *reg, uint32_t bits) {
  while ((*reg & bits) != bits) {
  }
}

void tt_clock_start(void) {
  RCC_CR |= RCC_CR_HSEON | (TT_HSE_BYPASS ? RCC_CR_HSEBYP : 0u);
  wait_for(&RCC_CR, RCC_CR_HSERDY);

  /* Above 180 MHz the core needs voltage scale 1 and over-drive, switched on while the PLL runs but is not used. */
  RCC_APB1ENR |= RCC_APB1ENR_PWREN;
  (void)RCC_APB1ENR; /* the clock reaches the peripheral two cycles later; reading back waits for it */
  PWR_CR1 |= PWR_CR1_VOS_SCALE1;
  RCC_PLLCFGR = TT_HSE_MHZ | VCO_MHZ << 6 | 0u << 16 /* P = 2 */ | RCC_PLLCFGR_PLLSRC_HSE | (uint32_t)PLL_Q << 24;
  RCC_CR |= RCC_CR_PLLON;
  PWR_CR1 |= PWR_CR1_ODEN;
  wait_for(&PWR_CSR1, PWR_CSR1_ODRDY);
  PWR_CR1 |= PWR_CR1_ODSWEN;
  wait_for(&PWR_CSR1, PWR_CSR1_ODSWRDY);
  wait_for(&RCC_CR, RCC_CR_PLLRDY);

  FLASH_ACR = WAIT_STATES | FLASH_ACR_PRFTEN | FLASH_ACR_ARTEN;
  while ((FLASH_ACR & FLASH_ACR_LATENCY_MASK) != WAIT_STATES) {
  }
  RCC_CFGR = RCC_CFGR_PPRE1_DIV4 | RCC_CFGR_PPRE2_DIV2 | RCC_CFGR_SW_PLL; /* APB1 54 MHz, APB2 108 MHz */
  while ((RCC_CFGR & RCC_CFGR_SWS_MASK) != RCC_CFGR_SWS_PLL) {
  }
}
