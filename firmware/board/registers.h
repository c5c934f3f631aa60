/* The registers and bits that this firmware uses, named as in the manuals: RM0385 (STM32F75xxx and STM32F74xxx
 * reference manual) for the chip, PM0253 (STM32F7 and STM32H7 Cortex-M7 programming manual) for the core,
 * the Armv7-M Architecture Reference Manual (DDI 0403) for DWT. Bases come from the board description. */
#ifndef TT_REGISTERS_H
#define TT_REGISTERS_H

#include <stdint.h>

#include "tt_board.h"

#define TT_REGISTER(base, offset) (*(volatile uint32_t *)((base) + (offset)))

/* RCC (RM0385, "RCC registers") */
#define RCC_CR TT_REGISTER(TT_RCC_BASE, 0x00u)
#define RCC_CR_HSEON (1u << 16)
#define RCC_CR_HSERDY (1u << 17)
#define RCC_CR_HSEBYP (1u << 18)
#define RCC_CR_PLLON (1u << 24)
#define RCC_CR_PLLRDY (1u << 25)
#define RCC_PLLCFGR TT_REGISTER(TT_RCC_BASE, 0x04u)
#define RCC_PLLCFGR_PLLSRC_HSE (1u << 22)
#define RCC_CFGR TT_REGISTER(TT_RCC_BASE, 0x08u)
#define RCC_CFGR_SW_PLL 2u
#define RCC_CFGR_SWS_MASK (3u << 2)
#define RCC_CFGR_SWS_PLL (2u << 2)
#define RCC_CFGR_PPRE1_DIV4 (5u << 10)
#define RCC_CFGR_PPRE2_DIV2 (4u << 13)
#define RCC_AHB1ENR TT_REGISTER(TT_RCC_BASE, 0x30u)
#define RCC_APB1ENR TT_REGISTER(TT_RCC_BASE, 0x40u)
#define RCC_APB1ENR_USART3EN (1u << 18)
#define RCC_APB1ENR_PWREN (1u << 28)
#define RCC_APB2ENR TT_REGISTER(TT_RCC_BASE, 0x44u)
#define RCC_APB2ENR_USART1EN (1u << 4)
#define RCC_DKCFGR2 TT_REGISTER(TT_RCC_BASE, 0x90u)
#define RCC_DKCFGR2_USART1_SYSCLK (1u << 0)
#define RCC_DKCFGR2_USART3_SYSCLK (1u << 4)

/* PWR (RM0385, "PWR registers") */
#define PWR_CR1 TT_REGISTER(TT_PWR_BASE, 0x00u)
#define PWR_CR1_VOS_SCALE1 (3u << 14)
#define PWR_CR1_ODEN (1u << 16)
#define PWR_CR1_ODSWEN (1u << 17)
#define PWR_CSR1 TT_REGISTER(TT_PWR_BASE, 0x04u)
#define PWR_CSR1_ODRDY (1u << 16)
#define PWR_CSR1_ODSWRDY (1u << 17)

/* Flash interface (RM0385, "FLASH registers") */
#define FLASH_ACR TT_REGISTER(TT_FLASH_INTERFACE_BASE, 0x00u)
#define FLASH_ACR_LATENCY_MASK 15u
#define FLASH_ACR_PRFTEN (1u << 8)
#define FLASH_ACR_ARTEN (1u << 9)
#define FLASH_KEYR TT_REGISTER(TT_FLASH_INTERFACE_BASE, 0x04u)
#define FLASH_KEY1 0x45670123u
#define FLASH_KEY2 0xCDEF89ABu
#define FLASH_SR TT_REGISTER(TT_FLASH_INTERFACE_BASE, 0x0Cu)
#define FLASH_SR_EOP (1u << 0)
#define FLASH_SR_ERRORS (1u << 1 | 15u << 4) /* OPERR; WRPERR, PGAERR, PGPERR, ERSERR; all cleared by writing 1 */
#define FLASH_SR_BSY (1u << 16)
#define FLASH_CR TT_REGISTER(TT_FLASH_INTERFACE_BASE, 0x10u)
#define FLASH_CR_PG (1u << 0)
#define FLASH_CR_SER (1u << 1)
#define FLASH_CR_SNB(sector) ((sector) << 3)
#define FLASH_CR_PSIZE_X32 (2u << 8) /* words; needs 2.7 V to 3.6 V, and both boards supply 3.3 V */
#define FLASH_CR_STRT (1u << 16)
#define FLASH_CR_LOCK (1u << 31)

/* GPIO (RM0385, "GPIO registers") */
#define GPIO_MODER(port) TT_REGISTER(port, 0x00u)
#define GPIO_MODER_ALTERNATE 2u
#define GPIO_AFR(port, pin) TT_REGISTER(port, 0x20u + 4u * ((pin) / 8u))

/* USART (RM0385, "USART registers") */
#define USART_CR1 TT_REGISTER(TT_USART_BASE, 0x00u)
#define USART_CR1_UE (1u << 0)
#define USART_CR1_RE (1u << 2)
#define USART_CR1_TE (1u << 3)
#define USART_BRR TT_REGISTER(TT_USART_BASE, 0x0Cu)
#define USART_ISR TT_REGISTER(TT_USART_BASE, 0x1Cu)
#define USART_ISR_ORE (1u << 3)
#define USART_ISR_RXNE (1u << 5)
#define USART_ISR_TXE (1u << 7)
#define USART_ICR TT_REGISTER(TT_USART_BASE, 0x20u)
#define USART_ICR_ORECF (1u << 3)
#define USART_RDR TT_REGISTER(TT_USART_BASE, 0x24u)
#define USART_TDR TT_REGISTER(TT_USART_BASE, 0x28u)

/* DWT cycle counter (DDI 0403, "The Data Watchpoint and Trace unit"); the M7 has a software lock on it */
#define DWT_CTRL TT_REGISTER(TT_DWT_BASE, 0x000u)
#define DWT_CTRL_CYCCNTENA (1u << 0)
#define DWT_CYCCNT TT_REGISTER(TT_DWT_BASE, 0x004u)
#define DWT_LAR TT_REGISTER(TT_DWT_BASE, 0xFB0u)
#define DWT_LAR_UNLOCK 0xC5ACCE55u

/* System control space (PM0253, "Core peripherals") */
#define SCB_VTOR TT_REGISTER(TT_SCS_BASE, 0xD08u)
#define SCB_CCR TT_REGISTER(TT_SCS_BASE, 0xD14u)
#define SCB_CCR_DC (1u << 16)
#define SCB_CCR_IC (1u << 17)
#define SCB_SHCSR TT_REGISTER(TT_SCS_BASE, 0xD24u)
#define SCB_SHCSR_FAULTS_ENABLED (7u << 16) /* MemManage, BusFault, UsageFault */
#define SCB_CFSR TT_REGISTER(TT_SCS_BASE, 0xD28u)
#define SCB_CFSR_MSTKERR (1u << 4)
#define SCB_CFSR_STKERR (1u << 12)
#define SCB_HFSR TT_REGISTER(TT_SCS_BASE, 0xD2Cu)
#define SCB_MMFAR TT_REGISTER(TT_SCS_BASE, 0xD34u)
#define SCB_BFAR TT_REGISTER(TT_SCS_BASE, 0xD38u)
#define SCB_CCSIDR TT_REGISTER(TT_SCS_BASE, 0xD80u)
#define SCB_CSSELR TT_REGISTER(TT_SCS_BASE, 0xD84u)
#define SCB_CPACR TT_REGISTER(TT_SCS_BASE, 0xD88u)
#define SCB_CPACR_FPU_FULL (15u << 20)
#define SCB_ICIALLU TT_REGISTER(TT_SCS_BASE, 0xF50u)
#define SCB_DCIMVAC TT_REGISTER(TT_SCS_BASE, 0xF5Cu)
#define SCB_CACHE_LINE 32u
#define SCB_DCISW TT_REGISTER(TT_SCS_BASE, 0xF60u)
#define SCB_DCISW_SET_SHIFT 5u
#define SCB_DCISW_WAY_SHIFT 30u
#define MPU_CTRL TT_REGISTER(TT_SCS_BASE, 0xD94u)
#define MPU_CTRL_ENABLE (1u << 0)
#define MPU_CTRL_PRIVDEFENA (1u << 2)
#define MPU_RNR TT_REGISTER(TT_SCS_BASE, 0xD98u)
#define MPU_RBAR TT_REGISTER(TT_SCS_BASE, 0xD9Cu)
#define MPU_RASR TT_REGISTER(TT_SCS_BASE, 0xDA0u)
#define MPU_RASR_ENABLE (1u << 0)
#define MPU_RASR_SIZE(log2_bytes) (((log2_bytes) - 1u) << 1)
#define MPU_RASR_TEX_NORMAL (1u << 19)
#define MPU_RASR_NO_ACCESS (0u << 24)
#define MPU_RASR_READ_ONLY (6u << 24)
#define MPU_RASR_NEVER_EXECUTE (1u << 28)

static inline void tt_barrier(void) { __asm volatile("dsb\n isb" ::: "memory"); }

#endif
