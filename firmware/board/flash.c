/* Erasing and programming the chip's own flash: RM0385, "FLASH program and erase operations".
 *
 * The F746 has a single bank: while it erases (a second for 128 KB) or programs (16 us a word), a read of flash,
 * instruction fetches among them, stalls the core. The loops that wait therefore run from ITCM, where they see errors
 * at once; no interrupt is enabled, and the host sends nothing before it has the reply, so nothing is missed. */
#include "board.h"
#include "registers.h"
#include "tt_attributes.h"
#include "tt_port.h"

static const struct {
  uint32_t base, sector_bytes, first_sector, sectors;
} slots[TT_PORT_SLOTS] = TT_SLOTS;

/* False if the operation that has just been started failed. */
TT_ITCM static bool finish(void) {
  while (FLASH_SR & FLASH_SR_BSY) {
  }
  return (FLASH_SR & FLASH_SR_ERRORS) == 0;
}

TT_ITCM static bool erase_sector(uint32_t sector) {
  FLASH_CR = FLASH_CR_SER | FLASH_CR_SNB(sector) | FLASH_CR_PSIZE_X32;
  FLASH_CR |= FLASH_CR_STRT;
  tt_barrier();
  return finish();
}

TT_ITCM static bool program_word(volatile uint32_t *at, uint32_t word) {
  FLASH_CR = FLASH_CR_PG | FLASH_CR_PSIZE_X32;
  *at = word;
  tt_barrier(); /* flash is normal memory: without it two stores could be merged into one of 64 bits */
  return finish();
}

static void unlock(void) {
  if (FLASH_CR & FLASH_CR_LOCK) {
    FLASH_KEYR = FLASH_KEY1;
    FLASH_KEYR = FLASH_KEY2;
  }
  FLASH_SR = FLASH_SR_EOP | FLASH_SR_ERRORS; /* errors of whoever ran before */
}

/* A stray store must meet a locked flash. */
static void lock(void) { FLASH_CR = FLASH_CR_LOCK; }

const uint8_t *tt_port_slot(uint32_t slot, uint32_t *bytes) {
  *bytes = slots[slot].sector_bytes * slots[slot].sectors;
  return (const uint8_t *)slots[slot].base;
}

bool tt_port_slot_erase(uint32_t slot, uint32_t bytes) {
  bool good = true;
  unlock();
  for (uint32_t i = 0; good && i * slots[slot].sector_bytes < bytes; i++) {
    good = erase_sector(slots[slot].first_sector + i);
  }
  lock();
  tt_port_slot_refresh(slot);
  return good;
}

bool tt_port_slot_program(uint32_t slot, uint32_t offset, uint32_t word) {
  unlock();
  const bool good = program_word((volatile uint32_t *)(slots[slot].base + offset), word);
  lock();
  return good;
}

void tt_port_slot_refresh(uint32_t slot) {
  const uint32_t bytes = slots[slot].sector_bytes * slots[slot].sectors;
  tt_barrier();
  for (uint32_t offset = 0; offset < bytes; offset += SCB_CACHE_LINE) SCB_DCIMVAC = slots[slot].base + offset;
  tt_barrier();
}
