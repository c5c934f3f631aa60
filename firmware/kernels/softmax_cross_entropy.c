/* Softmax cross-entropy of float32 logits (N,) and its gradient.
 *
 *   p[n] = exp(l[n] - max) / sum,   loss = ln(sum) - (l[label] - max),   dl = p - onehot(label)
 *
 * exp and ln are short polynomials in single IEEE-754 operations (numerics.py has their derivation), so every
 * target computes the same bits. Sums run from class 0 upwards.
 */
#include "epilogue.h"

/* ln(2)^k / k!, highest power first: 2^f on [-1/2, 1/2]. */
static const float EXP2_POLY[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                                  2.4022651e-1f, 6.9314718e-1f, 1.0f};
static const float LOG2_E = 1.44269504f, LN_2 = 0.69314718f, HALF_SQRT = 0.70710678f, EXP_FLOOR = -87.0f;

/* exp(x) = 2^n poly(f), x <= 0, n = rint(x log2(e)). */
static float exp32(float x) {
  float t = tt_max(x, EXP_FLOOR) * LOG2_E;
  int32_t n = tt_rint(t);
  float f = t - (float)n;
  float p = EXP2_POLY[0];
  for (uint32_t k = 1; k < sizeof EXP2_POLY / sizeof *EXP2_POLY; k++) p = p * f + EXP2_POLY[k];
  return p * tt_power_of_two(n);
}

/* ln(x) = k ln 2 + 2 (s + s^3/3 + s^5/5 + ...), x = m 2^k >= 1, s = (m - 1) / (m + 1), sqrt(1/2) <= m < sqrt(2). */
static float log32(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  int32_t k = (int32_t)(bits >> 23) - 126;
  bits = (bits & 0x007FFFFFu) | 0x3F000000u;
  float m;
  __builtin_memcpy(&m, &bits, sizeof m);
  if (m < HALF_SQRT) {
    m = m * 2.0f;
    k = k - 1;
  }
  float s = (m - 1.0f) / (m + 1.0f);
  float z = s * s;
  float p = 1.0f / 9.0f;
  p = p * z + 1.0f / 7.0f;
  p = p * z + 1.0f / 5.0f;
  p = p * z + 1.0f / 3.0f;
  p = p * z + 1.0f;
  p = p * s;
  return (float)k * LN_2 + (p + p);
}

void tt_softmax_cross_entropy(const float *logits, uint32_t classes, const int32_t *label, float *probabilities,
                              float *loss) {
  float largest = logits[0], sum = 0;
  for (uint32_t n = 1; n < classes; n++) largest = tt_max(largest, logits[n]);
  for (uint32_t n = 0; n < classes; n++) {
    probabilities[n] = exp32(logits[n] - largest);
    sum += probabilities[n];
  }
  *loss = log32(sum) - (logits[*label] - largest);
  for (uint32_t n = 0; n < classes; n++) probabilities[n] /= sum;
}

void tt_softmax_cross_entropy_grad(const float *probabilities, uint32_t classes, const int32_t *label,
                                   const tt_epilogue *epilogue) {
  tt_writer writer;
  tt_writer_open(&writer, epilogue, classes, 1.0f);
  for (uint32_t n = 0; n < classes; n++)
    tt_writer_put(&writer, probabilities[n] - (n == (uint32_t)*label ? 1.0f : 0.0f), n, n);
  tt_writer_close(&writer);
}
