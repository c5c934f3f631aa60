/* The USART behind the ST-LINK's virtual COM port, polled: 8 data bits, no parity, one stop bit. */
#include "board.h"
#include "registers.h"
#include "tt_protocol.h"

static void route_pin(uint32_t port, uint32_t pin, uint32_t alternate) {
  RCC_AHB1ENR |= 1u << ((port - TT_GPIOA_BASE) / 0x400u); /* port A is bit 0, port B bit 1, ... */
  (void)RCC_AHB1ENR;
  GPIO_AFR(port, pin) = (GPIO_AFR(port, pin) & ~(15u << (pin % 8u * 4u))) | alternate << (pin % 8u * 4u);
  GPIO_MODER(port) = (GPIO_MODER(port) & ~(3u << (pin * 2u))) | GPIO_MODER_ALTERNATE << (pin * 2u);
}

void tt_usart_start(void) {
  route_pin(TT_TX_PORT, TT_TX_PIN, TT_TX_ALTERNATE);
  route_pin(TT_RX_PORT, TT_RX_PIN, TT_RX_ALTERNATE);
#if TT_USART_BASE == TT_USART1_BASE
  RCC_APB2ENR |= RCC_APB2ENR_USART1EN;
  RCC_DKCFGR2 |= RCC_DKCFGR2_USART1_SYSCLK;
#else
  RCC_APB1ENR |= RCC_APB1ENR_USART3EN;
  RCC_DKCFGR2 |= RCC_DKCFGR2_USART3_SYSCLK;
#endif
  (void)RCC_DKCFGR2;
  /* Clocked by the core's 216 MHz, 921600 baud is 0.16 % off; from APB1's 54 MHz it would be 0.7 %. */
  USART_BRR = (TT_CLOCK_HZ + TT_BAUD / 2u) / TT_BAUD;
  USART_CR1 = USART_CR1_UE | USART_CR1_RE | USART_CR1_TE;
}

uint8_t tt_usart_receive(void) {
  uint32_t status;
  while (((status = USART_ISR) & USART_ISR_RXNE) == 0) {
  }
  if (status & USART_ISR_ORE) {
    USART_ICR = USART_ICR_ORECF;
    tt_protocol_overrun();
  }
  return (uint8_t)USART_RDR;
}

void tt_usart_send(uint8_t byte) {
  while ((USART_ISR & USART_ISR_TXE) == 0) {
  }
  USART_TDR = byte;
}
