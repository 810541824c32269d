/* SPDX-License-Identifier: Apache-2.0 */
#include "base/base.h"
#include "model.h"
moec_status moec_slot_matrix(const moec_plan *plan, size_t layer, int is_w2,
                             const void *const *data, moec_matrix *out,
                             moec_error *err)
{
    (void)plan;
    (void)layer;
    (void)is_w2;
    (void)data;
    (void)out;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE, "not yet");
}
