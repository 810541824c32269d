/* SPDX-License-Identifier: Apache-2.0 */

/* Stand-ins until the job is written. */

#include <moec/load.h>

#include "base/base.h"

moec_status moec_job_create(moec_job **out, const moec_plan *plan,
                            const moec_conversion *conversion, uint32_t rank,
                            const moec_job_opts *opts, moec_error *err)
{
    (void)out;
    (void)plan;
    (void)conversion;
    (void)rank;
    (void)opts;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

void moec_job_destroy(moec_job *job)
{
    (void)job;
}

const moec_plan *moec_job_plan(const moec_job *job)
{
    (void)job;
    return NULL;
}

moec_status moec_job_slot_tensor(const moec_job *job, size_t layer, size_t t,
                                 moec_slot_tensor *out, moec_error *err)
{
    (void)job;
    (void)layer;
    (void)t;
    (void)out;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_job_slot_shape(const moec_job *job, size_t layer, size_t t,
                                moec_slot_shape *out, moec_error *err)
{
    (void)job;
    (void)layer;
    (void)t;
    (void)out;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_job_place_slots(moec_job *job, size_t layer, size_t t,
                                 const moec_slot_dst *dst, moec_error *err)
{
    (void)job;
    (void)layer;
    (void)t;
    (void)dst;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_job_place_tensor(moec_job *job, size_t tensor,
                                  const moec_tensor_dst *dst, moec_error *err)
{
    (void)job;
    (void)tensor;
    (void)dst;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

uint64_t moec_job_arena_bytes(const moec_job *job)
{
    (void)job;
    return 0;
}

uint64_t moec_job_common_bytes(const moec_job *job)
{
    (void)job;
    return 0;
}

uint64_t moec_job_memory_bytes(const moec_job *job)
{
    (void)job;
    return 0;
}

moec_status moec_job_start(moec_job *job, moec_error *err)
{
    (void)job;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_job_wait(moec_job *job, moec_error *err)
{
    (void)job;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

void moec_job_cancel(moec_job *job)
{
    (void)job;
}

void *moec_job_slots_data(const moec_job *job, size_t layer, size_t t)
{
    (void)job;
    (void)layer;
    (void)t;
    return NULL;
}

void *moec_job_tensor_data(const moec_job *job, size_t tensor)
{
    (void)job;
    (void)tensor;
    return NULL;
}

void moec_job_poll(const moec_job *job, moec_job_stats *out)
{
    (void)job;
    (void)out;
}

moec_status moec_job_read_expert(moec_job *job, size_t layer, uint32_t expert,
                                 uint32_t row, int priority,
                                 moec_expert_fn done, void *ctx,
                                 uint64_t *ticket_out, moec_error *err)
{
    (void)job;
    (void)layer;
    (void)expert;
    (void)row;
    (void)priority;
    (void)done;
    (void)ctx;
    (void)ticket_out;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_model_describe(const moec_model *model, char **out,
                                moec_error *err)
{
    (void)model;
    (void)out;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_layout_check(const moec_plan *plan,
                              const moec_layout_want *want, moec_error *err)
{
    (void)plan;
    (void)want;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}

moec_status moec_placement_check(const moec_placement *is,
                                 const moec_placement *want, moec_error *err)
{
    (void)is;
    (void)want;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "not written yet");
}
