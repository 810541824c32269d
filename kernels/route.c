/* SPDX-License-Identifier: Apache-2.0
 *
 * Choice: which configurations and inputs are refused, and the split of a
 * call's rows over the threads. The arithmetic is in cpu/route_*.c. */

#include <float.h>
#include <math.h>
#include <string.h>

#include "ec.h"
#include "route.h"
#include "route_math.h"
#include "shared_weight.h"

#define REFUSE(err, status, ...)                                               \
  return moec_fail(err, MOEC_E_##status, MOEC_RULE_NONE, __VA_ARGS__)

/* Rows that a thread takes at a time: some microseconds of work. */
#define CHUNK_ROWS 64u

/* ------------------------------------------------------ configuration */

static bool is_finite_from(float v, float low)
{
    return v >= low && v <= FLT_MAX;
}

static moec_status check_sizes(const moec_route_config *c, moec_error *err)
{
    uint64_t n = (uint64_t)c->n_experts + c->n_zero;

    if (n < 1 || n > MOEC_ROUTE_E_MAX)
        REFUSE(err, ARG, "n_experts %u + n_zero %u is not in 1 .. %u",
               c->n_experts, c->n_zero, MOEC_ROUTE_E_MAX);
    if (c->top_k < 1 || c->top_k > MOEC_ROUTE_K_MAX || c->top_k > n)
        REFUSE(err, ARG, "top_k %u is not in 1 .. %u or above %u columns",
               c->top_k, MOEC_ROUTE_K_MAX, (unsigned)n);
    if (c->n_shared > MOEC_ROUTE_S_MAX)
        REFUSE(err, ARG, "n_shared %u is above %u", c->n_shared,
               MOEC_ROUTE_S_MAX);
    if (c->n_group <= 1)
        return MOEC_OK;
    if (c->n_zero)
        REFUSE(err, UNSUPPORTED, "n_group %u with n_zero %u", c->n_group,
               c->n_zero);
    if (c->n_experts % c->n_group)
        REFUSE(err, ARG, "n_group %u does not divide n_experts %u", c->n_group,
               c->n_experts);
    if (c->topk_group < 1 || c->topk_group > c->n_group)
        REFUSE(err, ARG, "topk_group %u is not in 1 .. n_group %u",
               c->topk_group, c->n_group);
    if (c->top_k > c->topk_group * (c->n_experts / c->n_group))
        REFUSE(err, ARG, "top_k %u does not fit into topk_group %u of %u",
               c->top_k, c->topk_group, c->n_experts / c->n_group);
    if (c->group_score == MOEC_GROUP_TOP2 && c->n_group == c->n_experts)
        REFUSE(err, ARG, "n_group %u: groups of one have no best two",
               c->n_group);
    return MOEC_OK;
}

/* An enum may hold any number that a caller wrote. */
static moec_status check_enums(const moec_route_config *c, moec_error *err)
{
    static const char *const names[] = {"score",   "choice", "group_score",
                                        "norm",    "rsf_on", "shared_kind",
                                        "ec.mode", "ec.fill"};
    const unsigned found[] = {
        (unsigned)c->score,   (unsigned)c->choice, (unsigned)c->group_score,
        (unsigned)c->norm,    (unsigned)c->rsf_on, (unsigned)c->shared_kind,
        (unsigned)c->ec.mode, (unsigned)c->ec.fill};
    const unsigned last[] = {MOEC_SCORE_LOGIT,    MOEC_CHOICE_SPARSE_MIXER,
                             MOEC_GROUP_TOP2,     MOEC_NORM_JOINT,
                             MOEC_RSF_ON_WEIGHTS, MOEC_SHARED_ROUTER,
                             MOEC_EC_AUTO,        MOEC_EC_BALANCED};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (found[i] > last[i])
            REFUSE(err, ARG, "%s %u is not one of its values", names[i],
                   found[i]);
    return MOEC_OK;
}

static moec_status check_numbers(const moec_route_config *c, moec_error *err)
{
    if (c->norm == MOEC_NORM_FLOOR && !is_finite_from(c->norm_arg, 0.0f))
        REFUSE(err, ARG, "norm_arg %g of floor", (double)c->norm_arg);
    if (c->norm == MOEC_NORM_P && c->norm_arg != 1.0f && c->norm_arg != 2.0f)
        REFUSE(err, UNSUPPORTED, "norm_arg %g: p is 1 or 2",
               (double)c->norm_arg);
    if (!is_finite_from(c->softcap, 0.0f))
        REFUSE(err, ARG, "softcap %g", (double)c->softcap);
    if (c->choice == MOEC_CHOICE_SPARSE_MIXER &&
        !is_finite_from(c->mixer_eps, 0.0f))
        REFUSE(err, ARG, "mixer_eps %g", (double)c->mixer_eps);
    if (c->rsf != 0.0f && !is_finite_from(c->rsf, FLT_MIN))
        REFUSE(err, ARG, "rsf %g", (double)c->rsf);
    return MOEC_OK;
}

static moec_status check_joint(const moec_route_config *c, moec_error *err)
{
    if (c->norm != MOEC_NORM_JOINT) {
        if (c->n_shared_logits)
            REFUSE(err, ARG, "n_shared_logits %u without norm joint",
                   c->n_shared_logits);
        if (c->n_shared && c->shared_kind == MOEC_SHARED_ROUTER)
            REFUSE(err, UNSUPPORTED, "shared_kind router without norm joint");
        return MOEC_OK;
    }
    if (c->score != MOEC_SCORE_SIGMOID)
        REFUSE(err, UNSUPPORTED, "norm joint with a score but sigmoid");
    if (c->shared_kind == MOEC_SHARED_SIGMOID)
        REFUSE(err, UNSUPPORTED, "norm joint with shared_kind sigmoid");
    if (c->n_shared_logits < 1 || c->n_shared_logits > 64)
        REFUSE(err, ARG, "n_shared_logits %u of norm joint is not in 1 .. 64",
               c->n_shared_logits);
    if (c->n_shared > c->n_shared_logits)
        REFUSE(err, ARG, "n_shared %u is above n_shared_logits %u", c->n_shared,
               c->n_shared_logits);
    return MOEC_OK;
}

static moec_status check_choice(const moec_route_config *c, moec_error *err)
{
    bool mixer = c->choice == MOEC_CHOICE_SPARSE_MIXER;

    if (c->choice == MOEC_CHOICE_TOPK)
        return MOEC_OK;
    if (c->n_group > 1)
        REFUSE(err, UNSUPPORTED, "n_group %u with choice %s", c->n_group,
               mixer ? "sparse-mixer" : "hash");
    if (c->ec.mode != MOEC_EC_OFF)
        REFUSE(err, UNSUPPORTED, "expert choice with choice %s",
               mixer ? "sparse-mixer" : "hash");
    if (!mixer)
        return MOEC_OK;
    if (c->score != MOEC_SCORE_SOFTMAX && c->score != MOEC_SCORE_LOGIT)
        REFUSE(err, UNSUPPORTED,
               "choice sparse-mixer with a score but softmax or logit");
    if (c->norm == MOEC_NORM_SOFTMAX)
        REFUSE(err, UNSUPPORTED, "choice sparse-mixer with norm softmax");
    return MOEC_OK;
}

static void normalise(moec_route_config *c)
{
    if (c->rsf == 0.0f)
        c->rsf = 1.0f;
    if (c->shared_ranks == 0)
        c->shared_ranks = 1;
    if (c->shared_kind == MOEC_SHARED_NONE)
        c->shared_kind = MOEC_SHARED_PLAIN;
    if (c->n_group <= 1) {
        c->n_group = 1;
        c->topk_group = 1;
    }
}

/* Scalar first; a wider set overrides what it has. */
static void fill(moec_router *r)
{
    moec_route_fill_scalar(r);
#if defined(__x86_64__)
    if (r->k->isa == MOEC_ISA_AVX2)
        moec_route_fill_avx2(r);
    if (r->k->isa == MOEC_ISA_AVX512)
        moec_route_fill_avx512(r);
#endif
}

moec_status moec_router_create(moec_router **out, const moec_kernels *k,
                               const moec_route_config *config, moec_error *err)
{
    moec_router *r;

    if (!out || !k || !config)
        REFUSE(err, ARG, "router: NULL");
    if (config->struct_bytes < sizeof(*config))
        REFUSE(err, ARG, "struct_bytes %u of the route config, not %zu",
               config->struct_bytes, sizeof(*config));
    MOEC_TRY(check_enums(config, err));
    MOEC_TRY(check_sizes(config, err));
    MOEC_TRY(check_numbers(config, err));
    MOEC_TRY(check_joint(config, err));
    MOEC_TRY(check_choice(config, err));
    MOEC_TRY(moec_ec_check(config, err));
    r = moec_calloc(1, sizeof(*r));
    if (!r)
        return moec_fail_nomem(err, "router");
    r->config = *config;
    normalise(&r->config);
    r->k = k;
    r->n_choice = config->n_experts + config->n_zero;
    r->n_columns = config->top_k + config->n_shared;
    r->n_logits = r->n_choice + config->n_shared_logits;
    r->shared_weight = moec_shared_weight(&r->config, 0.0f);
    fill(r);
    *out = r;
    return MOEC_OK;
}

void moec_router_destroy(moec_router *router)
{
    moec_free(router);
}

const moec_route_config *moec_router_config(const moec_router *r)
{
    return &r->config;
}

float moec_shared_weight(const moec_route_config *cfg, float gate_logit)
{
    float w = moec_shared_weight_ungated(cfg);

    if (cfg->shared_kind == MOEC_SHARED_SIGMOID)
        w = w * moec_f32_sigmoid(gate_logit);
    return w;
}

/* --------------------------------------------------------------- input */

/* Every id of given rows is below n: the functions index with them. */
static moec_status check_ids(const moec_router *r, const int32_t *ids,
                             uint32_t row, const char *what, moec_error *err)
{
    for (uint32_t i = 0; i < r->config.top_k; i++)
        if (ids[i] >= 0 && (uint32_t)ids[i] >= r->n_choice)
            REFUSE(err, ARG, "row %u: id %d of %s is not below %u", row, ids[i],
                   what, r->n_choice);
    return MOEC_OK;
}

static moec_status check_given(const moec_router *r, const moec_route_in *in,
                               moec_error *err)
{
    uint64_t k = r->config.top_k;

    if (in->forced_ids) {
        for (uint32_t t = 0; t < in->n_valid; t++)
            MOEC_TRY(
                check_ids(r, in->forced_ids + t * k, t, "forced_ids", err));
        return MOEC_OK;
    }
    if (r->config.choice != MOEC_CHOICE_HASH)
        return MOEC_OK;
    for (uint32_t t = 0; t < in->n_valid; t++) {
        int32_t token = in->tokens[t];

        if (token < 0 || (uint32_t)token >= in->vocab)
            REFUSE(err, ARG, "row %u: token %d is not below vocab %u", t, token,
                   in->vocab);
        MOEC_TRY(check_ids(r, in->hash_table + (uint64_t)token * k, t,
                           "hash_table", err));
    }
    return MOEC_OK;
}

moec_status moec_route_check_call(const moec_router *r, const moec_route_in *in,
                                  bool rows, moec_error *err)
{
    if (!in)
        REFUSE(err, ARG, "route: NULL");
    if (in->struct_bytes < sizeof(*in))
        REFUSE(err, ARG, "struct_bytes %u of the route input, not %zu",
               in->struct_bytes, sizeof(*in));
    if (in->n_valid > in->n_tokens)
        REFUSE(err, ARG, "n_valid %u is above n_tokens %u", in->n_valid,
               in->n_tokens);
    if (in->logits_dtype != MOEC_DTYPE_F32 &&
        in->logits_dtype != MOEC_DTYPE_BF16 &&
        in->logits_dtype != MOEC_DTYPE_F16)
        REFUSE(err, ARG, "logits_dtype %u is not F32, BF16 or F16",
               (unsigned)in->logits_dtype);
    if (in->logits_stride && in->logits_stride < r->n_logits)
        REFUSE(err, ARG, "logits_stride %llu is below %u columns",
               (unsigned long long)in->logits_stride, r->n_logits);
    if (rows && !in->logits)
        REFUSE(err, ARG, "logits is NULL");
    if (rows && r->config.n_shared && !in->shared_gate &&
        r->config.shared_kind == MOEC_SHARED_SIGMOID)
        REFUSE(err, ARG, "shared_kind sigmoid without shared_gate");
    if (in->bias && r->config.choice == MOEC_CHOICE_SPARSE_MIXER)
        REFUSE(err, UNSUPPORTED, "bias with choice sparse-mixer");
    if (in->forced_ids && r->config.ec.mode != MOEC_EC_OFF)
        REFUSE(err, UNSUPPORTED, "forced_ids with expert choice");
    if (rows && r->config.choice == MOEC_CHOICE_HASH && !in->forced_ids &&
        (!in->hash_table || !in->tokens))
        REFUSE(err, ARG, "choice hash without hash_table or tokens");
    return MOEC_OK;
}

moec_status moec_route_check_in(const moec_router *r, const moec_route_in *in,
                                moec_error *err)
{
    MOEC_TRY(moec_route_check_call(r, in, in && in->n_valid > 0, err));
    return check_given(r, in, err);
}

/* ---------------------------------------------------------------- rows */

void moec_route_no_rows(const moec_router *r, uint32_t n, int32_t *ids,
                        float *weights)
{
    uint64_t cells = (uint64_t)n * r->n_columns;

    memset(ids, 0xff, cells * sizeof(*ids)); /* -1 */
    memset(weights, 0, cells * sizeof(*weights));
}

void moec_route_rows(const moec_router *r, const moec_route_in *in,
                     uint32_t row, uint32_t n, int32_t *ids, float *weights)
{
    uint32_t valid = 0;

    if (row < in->n_valid)
        valid = in->n_valid - row < n ? in->n_valid - row : n;
    if (valid)
        r->fns.rows(r, in, row, valid, ids, weights);
    if (valid < n)
        moec_route_no_rows(r, n - valid, ids + (uint64_t)valid * r->n_columns,
                           weights + (uint64_t)valid * r->n_columns);
}

struct call {
    const moec_router *r;
    const moec_route_in *in;
    const moec_route_out *out;
};

static void route_chunk(void *ctx, size_t item, uint32_t worker)
{
    const struct call *c = ctx;
    uint32_t row = (uint32_t)item * CHUNK_ROWS;
    uint32_t left = c->in->n_tokens - row;
    uint64_t at = (uint64_t)row * c->r->n_columns;

    (void)worker;
    moec_route_rows(c->r, c->in, row, left < CHUNK_ROWS ? left : CHUNK_ROWS,
                    c->out->ids + at, c->out->weights + at);
}

uint64_t moec_route_workspace_bytes(const moec_router *router,
                                    uint32_t n_tokens)
{
    if (router->config.ec.mode == MOEC_EC_OFF)
        return 0;
    return moec_ec_workspace_bytes(router, n_tokens);
}

moec_status moec_route(const moec_router *router, const moec_route_in *in,
                       const moec_route_out *out, void *workspace,
                       uint64_t workspace_bytes, moec_error *err)
{
    struct call c = {router, in, out};

    if (!router || !out)
        REFUSE(err, ARG, "route: NULL");
    MOEC_TRY(moec_route_check_in(router, in, err));
    if (out->struct_bytes < sizeof(*out))
        REFUSE(err, ARG, "struct_bytes %u of the route output, not %zu",
               out->struct_bytes, sizeof(*out));
    if (in->n_tokens && (!out->ids || !out->weights))
        REFUSE(err, ARG, "route: ids or weights is NULL");
    if (router->config.ec.mode != MOEC_EC_OFF)
        return moec_ec_route(router, in, out, workspace, workspace_bytes, err);
    if (out->ec)
        memset(out->ec, 0, sizeof(*out->ec));
    if (!router->k->pool || in->n_tokens <= CHUNK_ROWS)
        moec_route_rows(router, in, 0, in->n_tokens, out->ids, out->weights);
    else
        moec_pool_run(router->k->pool,
                      (in->n_tokens + CHUNK_ROWS - 1) / CHUNK_ROWS, route_chunk,
                      &c);
    return MOEC_OK;
}
