/* y[p][j] = x[p][perm[j]] for j < kept: the slice of an activation that a sparse weight gradient will need. */
#include "tt_kernels.h"

void tt_gather_channels(const int8_t *x, uint32_t positions, uint32_t channels, const uint16_t *perm,
                        uint32_t kept, int8_t *y) {
  for (uint32_t p = 0; p < positions; p++, x += channels)
    for (uint32_t j = 0; j < kept; j++) *y++ = x[perm[j]];
}
