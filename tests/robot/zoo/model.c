/* A small honest model, and the ways to break it: one macro a defect. The suite lab.robot must pass with none of
 * them, and with each of them must fail in exactly one check; tests/unit/test_zoo.py sees to it.
 *
 * The model: images of 8x8, four classes, one linear layer, squared error, gradient descent.
 */
#include "tt_attributes.h"
#include "tt_model.h"

#if defined(__arm__)
#include "tt_board.h"
#endif

enum { PIXELS = 64, CLASSES = 4 };

#if defined(ZOO_MORE_SRAM_THAN_THE_CHIP)
enum { ARENA_BYTES = 320 * 1024 }; /* with stack and variables more than there is: must not link */
#elif defined(ZOO_SRAM_BUDGET_EXCEEDED)
enum { ARENA_BYTES = 200 * 1024 }; /* fits the chip, but not the lab's budget */
#else
enum { ARENA_BYTES = PIXELS };
#endif

#ifdef ZOO_WRONG_GRADIENT_SIGN
#define STEP +
#else
#define STEP -
#endif

TT_ARENA static int8_t arena[ARENA_BYTES];

static float weights[CLASSES][PIXELS];
static float logits[CLASSES], loss, learning_rate = 0.1f;
static uint32_t steps;

TT_ITCM void tt_op_forward(void) {
#ifdef ZOO_SLOW_KERNEL
  for (volatile uint32_t wasted = 0; wasted < 100000; wasted++) {
  }
#endif
  for (int c = 0; c < CLASSES; c++) {
    float sum = 0;
    for (int i = 0; i < PIXELS; i++) sum += weights[c][i] * (float)arena[i];
    logits[c] = sum / 128.0f;
  }
}

TT_NOINLINE void tt_op_update(uint32_t label) {
  loss = 0;
  for (uint32_t c = 0; c < CLASSES; c++) {
    const float gradient = logits[c] - (c == label ? 1.0f : 0.0f);
    loss += 0.5f * gradient * gradient;
    for (int i = 0; i < PIXELS; i++) weights[c][i] = weights[c][i] STEP learning_rate * gradient * (float)arena[i] / 4096.0f;
  }
}

#ifdef ZOO_STACK_OVERFLOW
TT_NOINLINE static uint32_t recurse_without_end(volatile uint32_t *caller) {
  volatile uint32_t mine[16] = {*caller};
  return steps == 0 ? 0 : recurse_without_end(mine) + mine[0]; /* steps is 10 then, and never 0 */
}
#endif

#ifdef ZOO_WILD_POINTER
/* Address 4 is in ITCM, which the MPU makes read-only: a null pointer and a structure member. */
TT_NOINLINE static void store_through_wild_pointer(void) { *(volatile uint32_t *)4u = 1; }
#endif

static void infer(void) { tt_op_forward(); }

static void train_step(uint32_t label) {
  tt_op_forward();
  tt_op_update(label);
#ifdef ZOO_STACK_OVERFLOW
  if (steps == 10) recurse_without_end(&steps);
#endif
#ifdef ZOO_WILD_POINTER
  if (steps == 10) store_through_wild_pointer();
#endif
  steps++;
}

static void reset(void) {
#if defined(ZOO_SILENT_UART) && defined(__arm__)
  *(volatile uint32_t *)TT_USART_BASE = 0; /* CR1: the USART is off */
#endif
  for (int c = 0; c < CLASSES; c++) {
    for (int i = 0; i < PIXELS; i++) weights[c][i] = 0;
  }
  steps = 0;
}

static const tt_param params[] = {{"weights", weights, sizeof weights}};
static const tt_param state[] = {{"steps", &steps, sizeof steps}, {"learning rate", &learning_rate, sizeof learning_rate}};

const tt_model tt_the_model = {
    .name = "zoo", .digest = 0x00200200u, .height = 8, .width = 8, .channels = 1, .classes = CLASSES,
    .arena_bytes = sizeof arena, .infer_input = arena, .train_input = arena, .params = params, .param_count = 1,
    .infer = infer, .train_step = train_step, .reset = reset, .logits = logits, .loss = &loss,
    .learning_rate = &learning_rate, .steps = &steps, .state = state, .state_count = 2};
