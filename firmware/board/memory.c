/* Memory protection and caches. */
#include "board.h"
#include "registers.h"

enum { GUARD_LOG2 = 15, ITCM_LOG2 = 14 }; /* 32 KB, 16 KB */

static void protect(uint32_t region, uint32_t base, uint32_t attributes) {
  MPU_RNR = region;
  MPU_RBAR = base;
  MPU_RASR = attributes | MPU_RASR_ENABLE;
}

/* Two regions over the default map (PM0253, "Memory protection unit"):
 *   - nothing may touch the 32 KB below the stack. Those addresses are reserved anyway, but there a store faults
 *     late and imprecisely; with the MPU it faults at the very instruction. It costs no byte of RAM.
 *   - ITCM begins at address 0 and holds code: read-only, so that a store through a null pointer faults. */
void tt_memory_protect(void) {
  protect(0, (uint32_t)__stack_bottom - (1u << GUARD_LOG2),
          MPU_RASR_NO_ACCESS | MPU_RASR_NEVER_EXECUTE | MPU_RASR_SIZE(GUARD_LOG2));
  protect(1, TT_ITCM_BASE, MPU_RASR_READ_ONLY | MPU_RASR_TEX_NORMAL | MPU_RASR_SIZE(ITCM_LOG2));
  MPU_CTRL = MPU_CTRL_PRIVDEFENA | MPU_CTRL_ENABLE;
  tt_barrier();
}

/* Both caches hold noise after reset and must be invalidated first (PM0253, "Enabling the caches"). DTCM and ITCM
 * are never cached; the caches serve flash over AXI, SRAM1 and SRAM2. */
void tt_caches_enable(void) {
  SCB_ICIALLU = 0;
  tt_barrier();
  SCB_CCR |= SCB_CCR_IC;
  tt_barrier();

  SCB_CSSELR = 0; /* level 1, data */
  tt_barrier();
  const uint32_t geometry = SCB_CCSIDR;
  const uint32_t last_set = (geometry >> 13) & 0x7FFFu;
  const uint32_t last_way = (geometry >> 3) & 0x3FFu;
  for (uint32_t set = 0; set <= last_set; set++) {
    for (uint32_t way = 0; way <= last_way; way++) {
      SCB_DCISW = set << SCB_DCISW_SET_SHIFT | way << SCB_DCISW_WAY_SHIFT;
    }
  }
  tt_barrier();
  SCB_CCR |= SCB_CCR_DC;
  tt_barrier();
}
