/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From hidden states to ids and weights, for either side: its router's tensors
 * through its own reader, its own kernels, its own facts. Logits come from the
 * exact dot product, which is the same on every back end: where the tensors are
 * the same, so are the logits, and the two choices start from identical ones.
 */

#include <math.h>
#include <string.h>

#include "device_calls.h"
#include "level3.h"

static moec_status read_side(moec_l3_layer *l, int side, uint32_t tensor,
                             void *buf, uint64_t bytes, moec_error *err)
{
    moec_l3_worker *w = &l->v->workers[0];

    if (side == MOEC_LEVEL3_SOURCE)
        return moec_l3_read_source(w, tensor, 0, buf, (size_t)bytes, err);
    return moec_l3_read_common(w, tensor, 0, buf, (size_t)bytes, err);
}

static const moec_tensor *tensor_of(const moec_l3_layer *l, int side,
                                    uint32_t tensor)
{
    return moec_ckpt_tensor(moec_model_ckpt(l->v->model[side]), tensor);
}

moec_status moec_l3_known(moec_status st, moec_error *err)
{
    if (st == MOEC_E_UNSUPPORTED && err != NULL)
        err->rule = MOEC_RULE_K09;
    return st;
}

/* The whole tensor as it is stored; *out is the caller's. */
static moec_status load_raw(moec_l3_layer *l, int side, uint32_t tensor,
                            void **out, moec_error *err)
{
    const moec_tensor *t = tensor_of(l, side, tensor);
    void *data = moec_alloc((size_t)t->bytes + 1);
    moec_status st;

    if (data == NULL)
        return moec_fail_nomem(err, "a router tensor");
    st = read_side(l, side, tensor, data, t->bytes, err);
    if (st != MOEC_OK) {
        moec_free(data);
        return st;
    }
    *out = data;
    return MOEC_OK;
}

static uint64_t elements(const moec_tensor *t)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)t->dtype);

    return bits == 0 ? 0 : t->bytes * 8 / bits;
}

static bool is_real(moec_dtype d)
{
    return d == MOEC_DTYPE_F32 || d == MOEC_DTYPE_BF16 || d == MOEC_DTYPE_F16;
}

moec_status moec_l3_load_floats(moec_l3_layer *l, int side, uint32_t tensor,
                                uint64_t n, float **out, moec_error *err)
{
    const moec_tensor *t = tensor_of(l, side, tensor);
    void *raw = NULL;
    float *f;
    moec_status st;

    if (elements(t) != n || !is_real((moec_dtype)t->dtype))
        return moec_l3_known(moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                                       "tensor '%s' is not %llu numbers",
                                       t->name, (unsigned long long)n),
                             err);
    f = moec_calloc((size_t)n + 1, sizeof(*f));
    if (f == NULL)
        return moec_fail_nomem(err, "a router tensor");
    st = load_raw(l, side, tensor, &raw, err);
    if (st == MOEC_OK)
        st = moec_cast(l->v->k[side], raw, (moec_dtype)t->dtype, f,
                       MOEC_DTYPE_F32, n, err);
    moec_free(raw);
    if (st != MOEC_OK) {
        moec_free(f);
        return st;
    }
    *out = f;
    return MOEC_OK;
}

moec_status moec_l3_project(moec_l3_layer *l, int side,
                            const moec_l3_product *p, moec_error *err)
{
    const moec_tensor *t = tensor_of(l, side, p->tensor);
    moec_matrix m = {.struct_bytes = sizeof(m),
                     .n_out = (uint32_t)p->n_out,
                     .n_in = (uint32_t)p->n_in,
                     .data_stride = t->bytes};
    void *raw = NULL;
    float *b = NULL;
    moec_status st;

    if (elements(t) != p->n_out * p->n_in || !is_real((moec_dtype)t->dtype))
        return moec_l3_known(
            moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                      "tensor '%s' is no [%llu, %llu] matrix of numbers",
                      t->name, (unsigned long long)p->n_out,
                      (unsigned long long)p->n_in),
            err);
    m.format = t->dtype == MOEC_DTYPE_F32    ? MOEC_WFORMAT_F32
               : t->dtype == MOEC_DTYPE_BF16 ? MOEC_WFORMAT_BF16
                                             : MOEC_WFORMAT_F16;
    st = load_raw(l, side, p->tensor, &raw, err);
    if (st == MOEC_OK && p->bias != MOEC_NO_TENSOR)
        st = moec_l3_load_floats(l, side, p->bias, p->n_out, &b, err);
    if (st == MOEC_OK) {
        m.data = raw;
        m.bias = b;
        m.bias_dtype = MOEC_DTYPE_F32;
        m.bias_stride = p->n_out * 4;
        if (l->v->device[side] != NULL)
            st = moec_on_device_matmul(l->v->device[side], &m, p->x,
                                       (uint32_t)p->n, p->out, err);
        else
            st = moec_matmul(l->v->k[side], &m, 0, p->x, p->n_in, p->n, p->out,
                             p->n_out, err);
    }
    moec_free(b);
    moec_free(raw);
    return st;
}

/* --------------------------------------------------------------- tables */

static moec_status load_table(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    const moec_tensor *t = tensor_of(l, side, s->facts.hash_table);
    uint64_t n = elements(t);
    bool wide = t->dtype == MOEC_DTYPE_I64;
    void *raw = NULL;

    if ((!wide && t->dtype != MOEC_DTYPE_I32) || n % l->top_k != 0 || n == 0)
        return moec_l3_known(
            moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                      "tensor '%s' is no table of experts by token", t->name),
            err);
    s->table = moec_calloc((size_t)n, sizeof(*s->table));
    if (s->table == NULL)
        return moec_fail_nomem(err, "table of experts by token");
    MOEC_TRY(load_raw(l, side, s->facts.hash_table, &raw, err));
    for (uint64_t i = 0; i < n; i++) {
        const unsigned char *p =
            (const unsigned char *)raw + i * (wide ? 8 : 4);
        uint64_t id = wide ? moec_le64(p) : moec_le32(p);

        s->table[i] = id < l->experts + l->zero ? (int32_t)id : -1;
    }
    moec_free(raw);
    s->vocab = (uint32_t)moec_min_u64(n / l->top_k, UINT32_MAX);
    return MOEC_OK;
}

static moec_status load_scale(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    float *f;

    s->global_scale = 1.0f;
    if (s->facts.global_scale == MOEC_NO_TENSOR)
        return MOEC_OK;
    MOEC_TRY(moec_l3_load_floats(l, side, s->facts.global_scale, 1, &f, err));
    s->global_scale = *f;
    moec_free(f);
    return MOEC_OK;
}

/* x over its root mean square, times a scale: what a Gemma 4 router sees. */
static moec_status router_input(moec_l3_layer *l, int side, float **out,
                                moec_error *err)
{
    const moec_moe_facts *f = &l->side[side].facts;
    uint64_t h = l->width;
    float *scale, *x = moec_calloc(l->tokens, (size_t)h * sizeof(*x));
    moec_status st;

    if (x == NULL)
        return moec_fail_nomem(err, "input of the router");
    st = moec_l3_load_floats(l, side, f->input_scale, h, &scale, err);
    if (st != MOEC_OK) {
        moec_free(x);
        return st;
    }
    for (uint32_t t = 0; t < l->tokens; t++) {
        const float *from = l->x + t * h;
        float sum = 0.0f, by;

        for (uint64_t i = 0; i < h; i++)
            sum += from[i] * from[i];
        by = 1.0f / sqrtf(sum / (float)h + f->norm_eps);
        for (uint64_t i = 0; i < h; i++)
            x[t * h + i] = from[i] * by * scale[i] * (1.0f / sqrtf((float)h));
    }
    moec_free(scale);
    *out = x;
    return MOEC_OK;
}

static moec_status make_logits(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    const moec_moe_facts *f = &s->facts;
    float *turned = NULL;
    moec_status st;

    s->logits = moec_calloc((size_t)l->tokens + 1,
                            (size_t)l->n_logits * sizeof(*s->logits));
    if (s->logits == NULL)
        return moec_fail_nomem(err, "logits");
    if ((f->steps & MOEC_STEP_ROUTER_NORM) != 0)
        MOEC_TRY(router_input(l, side, &turned, err));
    st = moec_l3_project(l, side,
                         &(moec_l3_product){f->router_weight, f->logit_bias,
                                            turned != NULL ? turned : l->x,
                                            l->tokens, l->n_logits, l->width,
                                            s->logits},
                         err);
    moec_free(turned);
    if (st != MOEC_OK || f->shared_gate == MOEC_NO_TENSOR)
        return st;
    s->gate = moec_calloc((size_t)l->rows_max + 1, sizeof(*s->gate));
    if (s->gate == NULL)
        return moec_fail_nomem(err, "logits of the shared gate");
    return moec_l3_project(l, side,
                           &(moec_l3_product){f->shared_gate, MOEC_NO_TENSOR,
                                              l->x, l->tokens, 1, l->width,
                                              s->gate},
                           err);
}

static moec_status load_tensors(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    const moec_moe_facts *f = &s->facts;

    MOEC_TRY(make_logits(l, side, err));
    if (f->choice_bias != MOEC_NO_TENSOR)
        MOEC_TRY(moec_l3_load_floats(l, side, f->choice_bias,
                                     l->experts + l->zero, &s->bias, err));
    if (f->expert_scale != MOEC_NO_TENSOR)
        MOEC_TRY(moec_l3_load_floats(l, side, f->expert_scale, l->experts,
                                     &s->scales, err));
    if (f->hash_table != MOEC_NO_TENSOR)
        MOEC_TRY(load_table(l, side, err));
    return load_scale(l, side, err);
}

/* --------------------------------------------------------------- choice */

/* A mutation of the converted side's configuration. */
static void mutate(const moec_level3 *v, moec_route_config *c)
{
    float rsf = c->rsf == 0.0f ? 1.0f : c->rsf;

    if (v->mutation == MOEC_MUTATION_WRONG_NORM_TOPK) {
        c->norm = c->norm == MOEC_NORM_NONE ? MOEC_NORM_SUM : MOEC_NORM_NONE;
        c->n_shared_logits = 0; /* of the joint sum */
    } else if (v->mutation == MOEC_MUTATION_RSF_TWICE)
        c->rsf = rsf * rsf;
    else if (v->mutation == MOEC_MUTATION_RSF_MISSING)
        c->rsf = 1.0f;
}

moec_route_in moec_l3_route_in(const moec_l3_layer *l, int side)
{
    const moec_l3_side *s = &l->side[side];
    moec_route_in in = MOEC_ROUTE_IN_INIT;

    in.n_tokens = in.n_valid = l->tokens;
    in.logits = s->logits;
    in.logits_stride = l->n_logits;
    in.bias = s->bias;
    in.expert_scale = s->scales;
    in.shared_gate = s->gate;
    in.hash_table = s->table;
    in.tokens = s->table != NULL ? l->token_ids : NULL;
    in.vocab = s->vocab;
    return in;
}

/* NOLINTNEXTLINE(readability-non-const-parameter): written through `out` */
moec_status moec_l3_run_router(moec_device *device, const moec_router *router,
                               const moec_route_in *in, int32_t *ids,
                               float *weights, moec_ec_stats *ec,
                               moec_error *err)
{
    moec_route_out out = {
        .struct_bytes = sizeof(out), .ids = ids, .weights = weights, .ec = ec};
    uint64_t bytes = moec_route_workspace_bytes(router, in->n_tokens);
    moec_room room = {0};
    moec_status st;

    if (device != NULL)
        return moec_on_device_route(device, router, in, &out, err);
    st = moec_room_get(&room, bytes, err);
    if (st == MOEC_OK)
        st = moec_route(router, in, &out, bytes != 0 ? room.data : NULL, bytes,
                        err);
    moec_room_fini(&room);
    return st;
}

/* "the shared expert's weight is normalised with the routed ones" */
static void renormalise(const moec_l3_layer *l, moec_l3_side *s)
{
    for (uint32_t t = 0; t < l->tokens; t++) {
        float *w = s->weights + (size_t)t * s->cols, sum = 0.0f;

        for (uint32_t c = 0; c < s->cols; c++)
            sum += w[c];
        for (uint32_t c = l->top_k; c < s->cols; c++)
            w[c] /= sum;
    }
}

/* Weights of the shared experts that the router weighs: they have no slots,
 * and so no columns here, but are the columns behind K of a router that is
 * asked for them. */
static moec_status weigh_shared(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    moec_route_config config = s->facts.route;
    moec_route_in in = moec_l3_route_in(l, side);
    uint32_t n = config.n_shared_logits, cols = l->top_k + n;
    size_t room = (size_t)l->tokens * cols + 1;
    moec_router *router = NULL;
    int32_t *ids = moec_calloc(room, sizeof(*ids));
    float *weights = moec_calloc(room, sizeof(*weights));
    moec_status st = MOEC_OK;

    s->n_weighed = n;
    s->shared_weights = moec_calloc((size_t)l->tokens * n + 1, sizeof(float));
    if (ids == NULL || weights == NULL || s->shared_weights == NULL)
        st = moec_fail_nomem(err, "weights of shared experts");
    config.n_shared = n;
    if (st == MOEC_OK)
        st = moec_router_create(&router, l->v->k[side], &config, err);
    if (st == MOEC_OK)
        st = moec_l3_run_router(l->v->device[side], router, &in, ids, weights,
                                NULL, err);
    for (uint32_t t = 0; st == MOEC_OK && t < l->tokens; t++)
        for (uint32_t i = 0; i < n; i++)
            s->shared_weights[(size_t)t * n + i] =
                weights[(size_t)t * cols + l->top_k + i] * s->global_scale;
    moec_router_destroy(router);
    moec_free(weights);
    moec_free(ids);
    return st;
}

moec_status moec_l3_route(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    moec_route_config config = s->facts.route;
    moec_route_in in;

    s->cols = l->top_k + (side == MOEC_LEVEL3_SERVED ? l->shared : 0);
    MOEC_TRY(load_tensors(l, side, err));
    config.n_shared = s->cols - l->top_k;
    if (side == MOEC_LEVEL3_SERVED)
        mutate(l->v, &config);
    MOEC_TRY(moec_router_create(&s->router, l->v->k[side], &config, err));
    s->ids = moec_calloc((size_t)l->rows_max + 1, s->cols * sizeof(*s->ids));
    s->weights =
        moec_calloc((size_t)l->rows_max + 1, s->cols * sizeof(*s->weights));
    if (s->ids == NULL || s->weights == NULL)
        return moec_fail_nomem(err, "ids and weights");
    if (s->table != NULL && side == MOEC_LEVEL3_SOURCE)
        MOEC_TRY(moec_l3_make_tokens(l, s, err));
    in = moec_l3_route_in(l, side);
    MOEC_TRY(moec_l3_run_router(l->v->device[side], s->router, &in, s->ids,
                                s->weights, NULL, err));
    for (size_t i = 0; i < (size_t)l->tokens * s->cols; i++)
        s->weights[i] *= s->global_scale;
    if (s->facts.route.n_shared_logits != 0)
        MOEC_TRY(weigh_shared(l, side, err));
    if (side == MOEC_LEVEL3_SERVED &&
        l->v->mutation == MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED)
        renormalise(l, s);
    return MOEC_OK;
}
