/* One parameter update, applied where its gradient is computed. Definition: tinytrain_lite/ops/update.py. */
#ifndef TT_UPDATE_H
#define TT_UPDATE_H

#include "tt_dsp.h"
#include "tt_kernels.h"

/* learning_rate * 2^e of the gradient: what every coefficient is multiplied by. */
TT_INLINE float tt_update_rate(const tt_dfp *g) { return tt_learning_rate * tt_power_of_two(g->state->exponent); }

/* weight[position] -= sum * factor for `count` neighbours; factor = coefficient[out channel] * tt_update_rate.
 * `trained` numbers the first of them among the parameters that learn (fraction, noise); for all but sliced
 * depthwise weights it equals `position`. */
void tt_update_run(const tt_update *update, const int32_t *sums, uint32_t count, float factor, uint32_t position,
                   uint32_t trained);

#endif
