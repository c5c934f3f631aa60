/* Residual add: y = clamp(rint((a - z_a) ratio_a + (b - z_b) ratio_b) + z_y), int8, elementwise.
 *
 * Two float32 products and one sum, so y may share the memory of either operand.
 */
#include "epilogue.h"

void tt_add(const int8_t *a, int32_t zero_a, float ratio_a, const int8_t *b, int32_t zero_b, float ratio_b,
            uint32_t count, const tt_requant *out) {
  tt_requantize_open(out);
  for (uint32_t i = 0; i < count; i++) {
    float left = (float)(a[i] - zero_a) * ratio_a, right = (float)(b[i] - zero_b) * ratio_b;
    tt_requantize(out, left + right, i);
  }
}
