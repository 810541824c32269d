/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice: capacity, the policy that turns it on, and what the modes
 * have in common. The modes are in ec_admit.c and ec_balance.c. */

#include <string.h>

#include "ec.h"
#include "ec_capacity.h"

const struct moec_ec_fns *moec_ec_fns_of(moec_isa isa)
{
#if defined(__x86_64__)
    if (isa == MOEC_ISA_AVX512)
        return &moec_ec_avx512;
    if (isa == MOEC_ISA_AVX2)
        return &moec_ec_avx2;
#endif
    (void)isa;
    return &moec_ec_scalar;
}

/* ----------------------------------------------------------- capacity */

uint32_t moec_ec_capacity(const moec_route_config *config, uint32_t n_valid)
{
    return moec_ec_capacity_of(config, n_valid);
}

/* The largest capacity of any n_valid up to n: AUTO's factor falls at 32 and
 * at 129, between these it only grows. */
static uint32_t capacity_up_to(const moec_route_config *config, uint32_t n)
{
    uint64_t c = moec_ec_capacity(config, n);

    c = moec_max_u64(c,
                     moec_ec_capacity(config, (uint32_t)moec_min_u64(n, 128)));
    return (uint32_t)moec_max_u64(
        c, moec_ec_capacity(config, (uint32_t)moec_min_u64(n, 31)));
}

/* -------------------------------------------------------------- checks */

moec_status moec_ec_check(const moec_route_config *config, moec_error *err)
{
    const moec_ec_config *ec = &config->ec;
    float on = ec->threshold, off = ec->threshold_off;

    if (ec->mode == MOEC_EC_OFF)
        return MOEC_OK;
    if ((unsigned)ec->mode > MOEC_EC_AUTO)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "ec.mode is %u",
                         (unsigned)ec->mode);
    if ((unsigned)ec->fill > MOEC_EC_BALANCED)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "ec.fill is %u",
                         (unsigned)ec->fill);
    if (config->n_zero > 0)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "expert choice with %u zero experts: an expert that "
                         "costs nothing has no capacity",
                         config->n_zero);
    if (config->choice != MOEC_CHOICE_TOPK)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "expert choice with %s: only top-k has scores to "
                         "compare tokens by",
                         config->choice == MOEC_CHOICE_HASH ? "hash routing"
                                                            : "sparse mixer");
    if (!(on >= 0.0f) || !(off >= 0.0f) || !(ec->ema >= 0.0f) ||
        !(ec->ema <= 1.0f))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "ec.threshold, ec.threshold_off and ec.ema must be "
                         "0 or above, ec.ema at most 1");
    if ((off > 0.0f ? off : 0.15f) > (on > 0.0f ? on : 0.20f))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "ec.threshold_off is above ec.threshold");
    return MOEC_OK;
}

/* ------------------------------------------- what the modes have in common */

void *moec_ec_take(moec_ec_space *space, uint64_t bytes)
{
    uint64_t at = space->used;

    space->used += (bytes + 63) & ~UINT64_C(63);
    return space->base ? space->base + at : NULL;
}

uint32_t moec_ec_block_rows(uint32_t stride)
{
    return stride <= 256 ? 16 : stride <= 1024 ? 4 : 1;
}

uint32_t moec_ec_chunk_end(const moec_ec_job *job, size_t chunk)
{
    return (uint32_t)moec_min_u64((chunk + 1) * (uint64_t)job->chunks.rows,
                                  job->n);
}

/* A call with n_tokens rows, n of them real. The chunks follow n_tokens, so
 * that no n needs more workspace than n = n_tokens. */
static moec_ec_job job_of(const moec_router *r, uint32_t n_tokens, uint32_t n)
{
    moec_ec_job job = {.r = r, .fns = r->k->ec, .n = n};
    uint32_t threads = moec_pool_n_threads(r->k->pool);
    uint64_t rows = moec_ceil_div(n_tokens, threads);

    job.stride = (r->config.n_experts + 15) & ~15u;
    rows = moec_max_u64((rows + 15) & ~UINT64_C(15), 64);
    job.chunks.rows = (uint32_t)moec_min_u64(rows, UINT32_C(1) << 31);
    job.chunks.n = (uint32_t)moec_ceil_div(n, job.chunks.rows);
    return job;
}

static void take_space(moec_ec_job *job, moec_ec_space *space)
{
    job->counts = moec_ec_take(space, job->chunks.n * sizeof(*job->counts));
}

uint64_t moec_ec_workspace_bytes(const moec_router *r, uint32_t n_tokens)
{
    moec_ec_space space = {0};
    moec_ec_job job = job_of(r, n_tokens, n_tokens);

    if (n_tokens == 0)
        return 0;
    job.capacity = capacity_up_to(&r->config, n_tokens);
    take_space(&job, &space);
    moec_ec_take(&space, (uint64_t)job.stride * 4); /* measure() */
    if (r->config.ec.fill == MOEC_EC_BALANCED)
        moec_ec_balance_space(&job, &space);
    else
        moec_ec_admit_space(&job, &space);
    return space.used;
}

/* --------------------------------------------------------------- plain */

static void plain_chunk(void *ctx, size_t chunk, uint32_t worker)
{
    const moec_ec_job *job = ctx;
    uint32_t c = job->r->n_columns, k = job->r->config.top_k;
    uint32_t row = (uint32_t)chunk * job->chunks.rows;
    uint32_t end = moec_ec_chunk_end(job, chunk);
    moec_ec_counts *counts = &job->counts[chunk];

    (void)worker;
    moec_route_rows(job->r, job->in, row, end - row,
                    job->out->ids + (uint64_t)row * c,
                    job->out->weights + (uint64_t)row * c);
    for (; row < end; row++) {
        const int32_t *ids = job->out->ids + (uint64_t)row * c;
        uint32_t missing = 0;

        for (uint32_t i = k; i > 0 && ids[i - 1] < 0; i--)
            missing++;
        counts->short_tokens += missing > 0;
        counts->dropped += missing;
    }
}

static void plain(moec_ec_job *job)
{
    moec_pool_run(job->r->k->pool, job->chunks.n, plain_chunk, job);
}

/* -------------------------------------------------------------- policy */

static float or_default(float v, float def)
{
    return v > 0.0f ? v : def;
}

/* Deviation / mean of the loads of the plain choice that `out` holds. */
static float imbalance_of(const moec_ec_job *job, uint32_t *loads)
{
    uint32_t c = job->r->n_columns, k = job->r->config.top_k;
    uint32_t n_experts = job->r->config.n_experts;
    moec_load_stats s;

    memset(loads, 0, n_experts * sizeof(*loads));
    for (uint32_t t = 0; t < job->n; t++) {
        const int32_t *ids = job->out->ids + (uint64_t)t * c;

        for (uint32_t i = 0; i < k && ids[i] >= 0; i++)
            loads[ids[i]]++;
    }
    s = moec_load_stats_of(loads, n_experts);
    return s.sum ? (float)(s.deviation / s.mean) : 0.0f;
}

/* AUTO: by the number of tokens; between the two bounds by the imbalance that
 * plain top-K has, smoothed, with two thresholds so that it does not flap.
 * Measuring the balanced loads would turn it off by its own success. `out`
 * holds the plain choice when this returns false. */
static bool is_on(moec_ec_job *job, uint32_t *loads)
{
    const moec_ec_config *ec = &job->r->config.ec;
    moec_ec_state *state = job->in->ec_state;
    uint32_t min = ec->min_tokens ? ec->min_tokens : 32;
    uint32_t max = ec->max_tokens ? ec->max_tokens : 128;
    float now, weight = or_default(ec->ema, 0.1f);

    if (ec->mode == MOEC_EC_ON)
        return true;
    if (job->n < min) {
        plain(job);
        return false;
    }
    if (job->n > max)
        return true;
    plain(job);
    now = imbalance_of(job, loads);
    if (state->seen > 0)
        now = state->imbalance + weight * (now - state->imbalance);
    state->imbalance = now;
    if (state->seen < UINT32_MAX)
        state->seen++;
    if (now > or_default(ec->threshold, 0.20f))
        state->on = 1;
    else if (now < or_default(ec->threshold_off, 0.15f))
        state->on = 0;
    return state->on != 0;
}

/* --------------------------------------------------------------- route */

static moec_status check_call(const moec_router *r, const moec_route_in *in,
                              const void *ws, uint64_t ws_bytes,
                              moec_error *err)
{
    uint64_t need = moec_ec_workspace_bytes(r, in->n_tokens);

    MOEC_TRY(moec_ec_check(&r->config, err));
    if ((uint64_t)in->n_tokens * r->config.n_experts > UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "expert choice of %u tokens by %u experts: the pairs "
                         "are counted in 32 bits; cut the tokens into chunks",
                         in->n_tokens, r->config.n_experts);
    if (in->forced_ids)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "expert choice with forced ids: replay needs a "
                         "router whose ec.mode is off");
    if (r->config.ec.mode == MOEC_EC_AUTO && !in->ec_state)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "ec.mode auto needs ec_state");
    if (ws_bytes < need || (need > 0 && !ws))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "expert choice of %u tokens needs %llu bytes of "
                         "workspace, there are %llu",
                         in->n_tokens, (unsigned long long)need,
                         (unsigned long long)(ws ? ws_bytes : 0));
    if ((uintptr_t)ws % 64 != 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the workspace is not aligned to 64 bytes");
    return MOEC_OK;
}

static void choose(moec_ec_job *job, moec_ec_space *space)
{
    if (job->capacity >= job->n)
        plain(job); /* every expert has room for all */
    else if (job->r->config.ec.fill == MOEC_EC_BALANCED)
        moec_ec_balance(job, space);
    else
        moec_ec_admit(job, space);
}

static moec_ec_stats stats_of(const moec_ec_job *job)
{
    moec_ec_stats s = {.on = 1, .capacity = job->capacity};

    for (uint32_t i = 0; i < job->chunks.n; i++) {
        s.short_tokens += job->counts[i].short_tokens;
        s.fallback_tokens += job->counts[i].fallback_tokens;
        s.dropped += job->counts[i].dropped;
    }
    return s;
}

moec_status moec_ec_route(const moec_router *r, const moec_route_in *in,
                          const moec_route_out *out, void *ws,
                          uint64_t ws_bytes, moec_error *err)
{
    moec_ec_space space = {.base = ws};
    moec_ec_stats stats = {0};
    moec_ec_job job;
    uint32_t *loads;

    MOEC_TRY(check_call(r, in, ws, ws_bytes, err));
    job = job_of(r, in->n_tokens,
                 (uint32_t)moec_min_u64(in->n_valid, in->n_tokens));
    job.in = in;
    job.out = out;
    if (in->n_tokens > job.n)
        moec_route_no_rows(r, in->n_tokens - job.n,
                           out->ids + (uint64_t)job.n * r->n_columns,
                           out->weights + (uint64_t)job.n * r->n_columns);
    if (job.n > 0) {
        job.capacity = moec_ec_capacity(&r->config, job.n);
        take_space(&job, &space);
        loads = moec_ec_take(&space, (uint64_t)job.stride * 4);
        memset(job.counts, 0, job.chunks.n * sizeof(*job.counts));
        if (is_on(&job, loads)) {
            memset(job.counts, 0, job.chunks.n * sizeof(*job.counts));
            choose(&job, &space);
            stats = stats_of(&job);
        }
    }
    if (out->ec)
        *out->ec = stats;
    return MOEC_OK;
}
