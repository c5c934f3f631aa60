/* Residual add: y = clamp(rint((a - z_a) ratio_a + (b - z_b) ratio_b) + z_y), int8, elementwise.
 *
 * Two float32 products and one sum, so y may share the memory of either operand.
 */
#include "epilogue.h"

void tt_add(const int8_t *a, int32_t zero_a, float ratio_a, const int8_t *b, int32_t zero_b, float ratio_b,
            uint32_t count, const tt_requant *out) {
  int32_t zero = out->zero_point, lo = out->lo, hi = out->hi;
  int8_t *y = out->y;
  uint8_t *mask = out->mask;
  tt_requantize_open(out);
  for (uint32_t i = 0; i < count; i++) {
    float left = (float)(a[i] - zero_a) * ratio_a, right = (float)(b[i] - zero_b) * ratio_b;
    y[i] = tt_requantize(left + right, zero, lo, hi, mask, i);
  }
}
