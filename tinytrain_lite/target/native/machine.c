/* The parts of the emulated STM32F746 that must be fast: Unicorn calls these instead of Python.
 *
 * 1. Counting. A hook at the start of every executed basic block adds the block's instructions to an exact total
 *    and one execution to its row. Rows are told apart by (address, size, region): a region begins where a marked
 *    function is entered and lasts until the next marked function is, so shared kernels are charged to their caller.
 * 2. Peripherals. USARTs joined to two byte queues, DWT's cycle counter (which here counts retired instructions),
 *    ready bits of RCC and PWR, the flash controller with a power cut at any of its operations; everything else simply
 *    stores what is written.
 *
 * Nothing is linked: the two functions of Unicorn that are needed come as pointers.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct uc_struct uc_engine;
typedef int (*mem_read_function)(uc_engine *, uint64_t, void *, uint64_t);
typedef int (*emu_stop_function)(uc_engine *);

enum { NO_REGION = UINT32_MAX };
enum { STOP_NONE = 0, STOP_INPUT = 1, STOP_LIMIT = 2, STOP_POWER = 3 }; /* why emulation is to stop before the next block */

/* A basic block in one region. The layout is read by target/machine.py. */
typedef struct {
  uint32_t address;
  uint32_t size; /* bytes; 0 marks a free row */
  uint32_t region;
  uint32_t instructions;
  uint32_t enters; /* the region that begins at this block, or NO_REGION */
  uint64_t executions;
} row;

typedef struct {
  uint8_t *bytes;
  size_t used, capacity;
} buffer;

/* The part of flash that firmware erases and programs; what it runs from is plain memory of Unicorn's. */
typedef struct {
  uint8_t *bytes; /* all of flash; the caller's */
  uint32_t origin; /* where in flash the mapped part begins */
  const uint32_t *sectors; /* bytes of each; the caller's */
  uint32_t sector_count;
  uint32_t keys; /* accepted so far: 2 = unlocked, LOCKED_FOR_GOOD after a wrong one */
  uint32_t busy; /* readings of SR for which BSY is still to show */
  uint64_t operations, cut_at; /* sectors erased and words programmed; the one during which power goes, from 1 */
} flash_controller;

typedef struct {
  mem_read_function mem_read;
  emu_stop_function emu_stop;
  uint64_t instructions; /* since creation */
  uint64_t limit;        /* stop when `instructions` passes it */
  uint64_t cycle_origin; /* value of `instructions` where CYCCNT would read 0 */
  uint32_t stop_reason;
  uint32_t region;
  row *rows; /* hash table with open addressing */
  uint32_t row_mask, row_count;
  uint32_t *markers; /* pairs (address, region) */
  uint32_t marker_count;
  buffer rx, tx;
  size_t rx_position;
  flash_controller flash;
  uint32_t idle_polls; /* readings of USART_ISR since a byte went either way, or since emulation began */
} machine;

typedef enum { PLAIN, RCC, PWR, USART, DWT, FLASH } kind;

typedef struct {
  machine *machine;
  kind kind;
  uint32_t words[1024];
} window;

/* ---- counting ---- */

static uint32_t slot_of(const machine *m, uint32_t address, uint32_t size, uint32_t region) {
  uint32_t hash = (address ^ region * 0x9E3779B1u ^ size << 20) * 0x85EBCA6Bu;
  return (hash ^ hash >> 15) & m->row_mask;
}

static row *find(const machine *m, uint32_t address, uint32_t size, uint32_t region) {
  uint32_t slot = slot_of(m, address, size, region);
  for (;; slot = (slot + 1) & m->row_mask) {
    row *r = &m->rows[slot];
    if (r->size == 0 || (r->address == address && r->size == size && r->region == region)) return r;
  }
}

/* Thumb: a halfword that begins with 0b11101, 0b11110 or 0b11111 is the first of two (DDI 0403, A5.1). */
static uint32_t count_instructions(machine *m, uc_engine *uc, uint32_t address, uint32_t size) {
  uint32_t count = 0;
  for (uint32_t offset = 0; offset < size; count++) {
    uint16_t half = 0;
    m->mem_read(uc, address + offset, &half, sizeof half);
    offset += half >> 11 >= 0x1D ? 4 : 2;
  }
  return count;
}

static void grow(machine *m) {
  row *old = m->rows;
  const uint32_t old_size = m->row_mask + 1;
  m->row_mask = old_size * 2 - 1;
  m->rows = calloc(m->row_mask + 1, sizeof(row));
  if (!m->rows) abort();
  for (uint32_t i = 0; i < old_size; i++) {
    if (old[i].size) *find(m, old[i].address, old[i].size, old[i].region) = old[i];
  }
  free(old);
}

static row *row_of(machine *m, uc_engine *uc, uint32_t address, uint32_t size) {
  row *r = find(m, address, size, m->region);
  if (r->size) return r;
  if (m->row_count * 2 > m->row_mask) {
    grow(m);
    r = find(m, address, size, m->region);
  }
  m->row_count++;
  *r = (row){address, size, m->region, count_instructions(m, uc, address, size), NO_REGION, 0};
  for (uint32_t i = 0; i < m->marker_count; i++) {
    if (m->markers[2 * i] == address) r->enters = m->markers[2 * i + 1];
  }
  return r;
}

EXPORT void machine_on_block(uc_engine *uc, uint64_t address, uint32_t size, void *user) {
  machine *m = user;
  if (m->stop_reason) { /* between two blocks, so that no block is counted that does not run to its end */
    m->emu_stop(uc);
    return;
  }
  row *r = row_of(m, uc, (uint32_t)address, size);
  if (r->enters != NO_REGION && r->enters != m->region) {
    m->region = r->enters;
    r = row_of(m, uc, (uint32_t)address, size);
  }
  r->executions++;
  m->instructions += r->instructions;
  if (m->instructions > m->limit) m->stop_reason = STOP_LIMIT;
}

/* ---- peripherals ---- */

/* Register offsets and bits are those of firmware/board/registers.h, where the manuals are named. */
enum { RCC_CR = 0x00, RCC_CFGR = 0x08, PWR_CR1 = 0x00, PWR_CSR1 = 0x04 };
enum { USART_CR1 = 0x00, USART_UE = 1 << 0, USART_TE = 1 << 3, USART_ISR = 0x1C, USART_RDR = 0x24, USART_TDR = 0x28, USART_RXNE = 1 << 5, USART_TC = 1 << 6, USART_TXE = 1 << 7 };
enum { DWT_CTRL = 0x000, DWT_CYCCNT = 0x004, DWT_LAR = 0xFB0 };
#define DWT_LAR_UNLOCK 0xC5ACCE55u

static void append(buffer *b, const uint8_t *bytes, size_t count) {
  if (b->used + count > b->capacity) {
    b->capacity = (b->used + count) * 2;
    b->bytes = realloc(b->bytes, b->capacity);
    if (!b->bytes) abort();
  }
  memcpy(b->bytes + b->used, bytes, count);
  b->used += count;
}

/* ---- flash: RM0385, "FLASH program and erase operations" ---- */

enum { FLASH_KEYR = 0x04, FLASH_SR = 0x0C, FLASH_CR = 0x10, LOCKED_FOR_GOOD = 3 };
enum { SR_PGAERR = 1 << 5, SR_PGPERR = 1 << 6, SR_ERSERR = 1 << 7, SR_ERRORS = 0xF2, SR_BSY = 1 << 16 };
enum { CR_PG = 1 << 0, CR_SER = 1 << 1, CR_SNB_SHIFT = 3, CR_PSIZE = 3 << 8, CR_PSIZE_X32 = 2 << 8, CR_STRT = 1 << 16 };
#define CR_LOCK (1u << 31)
enum { BUSY_READINGS = 3 };

/* Counts an operation. False if power goes before it is done. */
static bool powered(machine *m) {
  if (m->stop_reason == STOP_POWER) return false;
  m->flash.busy = BUSY_READINGS;
  if (++m->flash.operations != m->flash.cut_at) return true;
  m->stop_reason = STOP_POWER;
  return false;
}

/* What an operation cut short leaves is undefined; here, some of the bits that it was to change, the same every time. */
static uint8_t noise(uint32_t place) { return (uint8_t)((place * 2654435761u) >> 13); }

static void erase_sector(machine *m, uint32_t *status, uint32_t sector) {
  flash_controller *f = &m->flash;
  if (sector >= f->sector_count) {
    *status |= SR_ERSERR;
    return;
  }
  if (m->stop_reason == STOP_POWER) return;
  uint32_t start = 0;
  for (uint32_t i = 0; i < sector; i++) start += f->sectors[i];
  const bool whole = powered(m);
  for (uint32_t i = start; i < start + f->sectors[sector]; i++) f->bytes[i] = whole ? 0xFF : f->bytes[i] | noise(i);
}

static void write_key(flash_controller *f, uint32_t key) {
  static const uint32_t keys[2] = {0x45670123u, 0xCDEF89ABu};
  if (f->keys < 2) f->keys = key == keys[f->keys] ? f->keys + 1 : LOCKED_FOR_GOOD;
}

static void write_flash_register(window *w, uint64_t offset, uint32_t value) {
  machine *m = w->machine;
  uint32_t *status = &w->words[FLASH_SR / 4];
  if (offset == FLASH_KEYR) {
    write_key(&m->flash, value);
  } else if (offset == FLASH_SR) {
    *status &= ~value;
  } else if (offset == FLASH_CR) {
    if (m->flash.keys != 2) return; /* locked: ignored */
    if (value & CR_LOCK) m->flash.keys = 0;
    w->words[FLASH_CR / 4] = value & ~(CR_STRT | CR_LOCK);
    if (value & CR_STRT && value & CR_SER) erase_sector(m, status, value >> CR_SNB_SHIFT & 15u);
  } else {
    w->words[offset / 4] = value;
  }
}

/* Loads and stores in the part of flash that is mapped to these two; `user` is the controller's window. */
EXPORT uint64_t machine_on_flash_read(uc_engine *uc, uint64_t offset, unsigned size, void *user) {
  (void)uc;
  const flash_controller *f = &((window *)user)->machine->flash;
  uint64_t value = 0;
  memcpy(&value, f->bytes + f->origin + offset, size);
  return value;
}

EXPORT void machine_on_flash_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value, void *user) {
  (void)uc;
  window *w = user;
  machine *m = w->machine;
  const uint32_t control = w->words[FLASH_CR / 4];
  uint32_t *status = &w->words[FLASH_SR / 4];
  offset += m->flash.origin;
  if (m->flash.keys != 2 || !(control & CR_PG)) {
    *status |= SR_ERSERR;
  } else if (size != 4 || (control & CR_PSIZE) != CR_PSIZE_X32) {
    *status |= SR_PGPERR;
  } else if (offset % 4) {
    *status |= SR_PGAERR;
  } else if (m->stop_reason != STOP_POWER) {
    const bool whole = powered(m);
    for (uint32_t i = 0; i < 4; i++) {
      const uint8_t kept = whole ? 0 : noise((uint32_t)offset + i); /* programming only turns ones to zeros */
      m->flash.bytes[offset + i] &= (uint8_t)(value >> 8 * i) | kept;
    }
  }
}

EXPORT uint64_t machine_on_read(uc_engine *uc, uint64_t offset, unsigned size, void *user) {
  (void)uc;
  window *w = user;
  machine *m = w->machine;
  uint32_t value = w->words[offset / 4];
  if (w->kind == RCC && offset == RCC_CR) {
    value |= (value & 1u << 16) << 1 | (value & 1u << 24) << 1; /* HSERDY, PLLRDY follow HSEON, PLLON */
  } else if (w->kind == RCC && offset == RCC_CFGR) {
    value |= (value & 3u) << 2; /* SWS follows SW */
  } else if (w->kind == PWR && offset == PWR_CSR1) {
    value |= w->words[PWR_CR1 / 4] & 3u << 16; /* ODRDY, ODSWRDY follow ODEN, ODSWEN */
  } else if (w->kind == FLASH && offset == FLASH_SR) {
    value |= m->flash.busy ? SR_BSY : 0;
    if (m->flash.busy) m->flash.busy--;
  } else if (w->kind == FLASH && offset == FLASH_CR) {
    value |= m->flash.keys == 2 ? 0 : CR_LOCK;
  } else if (w->kind == DWT && offset == DWT_CYCCNT) {
    value = w->words[DWT_CTRL / 4] & 1u ? (uint32_t)(m->instructions - m->cycle_origin) : value;
  } else if (w->kind == USART && offset == USART_ISR) {
    const bool ready = m->rx_position < m->rx.used;
    value = USART_TXE | USART_TC | (ready ? USART_RXNE : 0);
    /* Looking twice with nothing sent or received between is waiting for the host (a sender looks once, then
     * sends, as TXE is always set): let the host run. */
    if (!ready && ++m->idle_polls >= 2) m->stop_reason = STOP_INPUT;
  } else if (w->kind == USART && offset == USART_RDR) {
    value = m->rx_position < m->rx.used ? m->rx.bytes[m->rx_position++] : 0;
    m->idle_polls = 0;
  }
  return size == 4 ? value : (value >> 8 * (offset % 4)) & ((1u << 8 * size) - 1u);
}

EXPORT void machine_on_write(uc_engine *uc, uint64_t offset, unsigned size, uint64_t value, void *user) {
  (void)uc;
  window *w = user;
  machine *m = w->machine;
  if (w->kind == USART && offset == USART_TDR) {
    const uint8_t byte = (uint8_t)value;
    const uint32_t on = USART_UE | USART_TE;
    if ((w->words[USART_CR1 / 4] & on) == on) append(&m->tx, &byte, 1);
    m->idle_polls = 0;
  } else if (w->kind == FLASH) {
    write_flash_register(w, offset, (uint32_t)value);
  } else if (w->kind == DWT && offset != DWT_LAR && w->words[DWT_LAR / 4] != DWT_LAR_UNLOCK) {
    /* locked: the write is ignored, as on the chip */
  } else if (w->kind == DWT && offset == DWT_CYCCNT) {
    m->cycle_origin = m->instructions - (uint32_t)value;
  } else {
    memcpy((uint8_t *)w->words + offset, &value, size); /* little endian host, as every one Unicorn has wheels for */
  }
}

/* ---- for Python ---- */

EXPORT machine *machine_new(mem_read_function mem_read, emu_stop_function emu_stop) {
  machine *m = calloc(1, sizeof *m);
  if (!m) return NULL;
  m->mem_read = mem_read;
  m->emu_stop = emu_stop;
  m->limit = UINT64_MAX;
  m->row_mask = (1u << 12) - 1;
  m->rows = calloc(m->row_mask + 1, sizeof(row));
  if (!m->rows) abort();
  return m;
}

EXPORT void machine_free(machine *m) {
  free(m->rows);
  free(m->markers);
  free(m->rx.bytes);
  free(m->tx.bytes);
  free(m);
}

EXPORT window *machine_window(machine *m, uint32_t which) {
  window *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  w->machine = m;
  w->kind = (kind)which;
  return w;
}

/* bytes: all of flash; sectors: the size of each. Both must outlive the machine. */
EXPORT void machine_flash(machine *m, uint8_t *bytes, const uint32_t *sectors, uint32_t count, uint32_t origin) {
  m->flash = (flash_controller){.bytes = bytes, .sectors = sectors, .sector_count = count, .origin = origin};
}

EXPORT uint64_t machine_flash_operations(const machine *m) { return m->flash.operations; }

/* Power goes during the `operation`th erasure or programming from now, counted from 1; 0 calls it off. */
EXPORT void machine_cut_power(machine *m, uint64_t operation) {
  m->flash.cut_at = operation ? m->flash.operations + operation : 0;
}

EXPORT void machine_window_free(window *w) { free(w); }

/* pairs: uint32[count][2] of (block address, region). */
EXPORT void machine_mark_regions(machine *m, const uint32_t *pairs, uint32_t count) {
  free(m->markers);
  m->markers = malloc(count * 2 * sizeof(uint32_t));
  if (count && !m->markers) abort();
  if (count) memcpy(m->markers, pairs, count * 2 * sizeof(uint32_t));
  m->marker_count = count;
  m->region = 0;
  memset(m->rows, 0, (m->row_mask + 1) * sizeof(row));
  m->row_count = 0;
}

/* Forgets executions, not the decoded blocks and not the instruction total. */
EXPORT void machine_reset_profile(machine *m) {
  for (uint32_t i = 0; i <= m->row_mask; i++) m->rows[i].executions = 0;
}

EXPORT const row *machine_rows(const machine *m, uint32_t *count) {
  *count = m->row_mask + 1;
  return m->rows;
}

EXPORT uint64_t machine_instructions(const machine *m) { return m->instructions; }

/* Allow `budget` more instructions. */
EXPORT void machine_arm(machine *m, uint64_t budget) {
  m->limit = m->instructions + budget;
  m->stop_reason = STOP_NONE;
  m->idle_polls = 0;
}

EXPORT uint32_t machine_stop_reason(const machine *m) { return m->stop_reason; }

EXPORT void machine_feed(machine *m, const uint8_t *bytes, size_t count) {
  if (m->rx_position == m->rx.used) m->rx_position = m->rx.used = 0;
  append(&m->rx, bytes, count);
}

/* What the firmware has sent since the last call. Valid until the emulation goes on. */
EXPORT const uint8_t *machine_take(machine *m, size_t *count) {
  *count = m->tx.used;
  m->tx.used = 0;
  return m->tx.bytes;
}
