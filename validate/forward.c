/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The source's side of one layer: every expert that some row chose, read from
 * the source and run by the scalar kernels, one at a time on each worker; the
 * shared expert as the one MLP that it is; their sums. Rows are gathered by
 * expert, so that an expert is read once whatever the number of its rows.
 */

#include <math.h>
#include <string.h>

#include "device_calls.h"
#include "level3.h"

/* ----------------------------------------------------------------- sums */

static moec_status combine(const moec_l3_layer *l, int side,
                           const moec_combine_in *in, float *out,
                           moec_error *err)
{
    if (l->v->device[side] != NULL)
        return moec_on_device_combine(l->v->device[side], in, out, err);
    return moec_combine(l->v->k[side], in, out, err);
}

moec_status moec_l3_sum(moec_l3_layer *l, int side, const moec_combine_in *in,
                        float *out, moec_error *err)
{
    const moec_moe_facts *f = &l->side[side].facts;
    uint64_t h = l->hidden;
    float *sum, *norm = NULL;
    moec_status st;

    if ((f->steps & MOEC_STEP_LATENT) == 0)
        return combine(l, side, in, out, err);
    sum = moec_calloc((size_t)in->n_tokens + 1, (size_t)h * sizeof(*sum));
    if (sum == NULL)
        return moec_fail_nomem(err, "sums of a layer");
    st = combine(l, side, in, sum, err);
    if (st == MOEC_OK && f->latent_norm != MOEC_NO_TENSOR)
        st = moec_l3_load_floats(l, side, f->latent_norm, h, &norm, err);
    for (uint32_t t = 0; norm != NULL && t < in->n_tokens; t++) {
        float *row = sum + t * h, square = 0.0f, by;

        for (uint64_t i = 0; i < h; i++)
            square += row[i] * row[i];
        by = 1.0f / sqrtf(square / (float)h + f->norm_eps);
        for (uint64_t i = 0; i < h; i++)
            row[i] = row[i] * by * norm[i];
    }
    if (st == MOEC_OK)
        st = moec_l3_project(l, side,
                             &(moec_l3_product){f->latent_out, MOEC_NO_TENSOR,
                                                sum, in->n_tokens, l->width, h,
                                                out},
                             err);
    moec_free(norm);
    moec_free(sum);
    return st;
}

moec_status moec_l3_expert_input(moec_l3_layer *l, int side, float **out,
                                 const float **x, moec_error *err)
{
    const moec_moe_facts *f = &l->side[side].facts;

    *out = NULL;
    *x = l->x;
    if ((f->steps & MOEC_STEP_LATENT) == 0)
        return MOEC_OK;
    *out = moec_calloc((size_t)l->rows + 1, l->hidden * sizeof(**out));
    if (*out == NULL)
        return moec_fail_nomem(err, "input of the experts");
    *x = *out;
    return moec_l3_project(l, side,
                           &(moec_l3_product){f->latent_in, MOEC_NO_TENSOR,
                                              l->x, l->rows, l->hidden,
                                              l->width, *out},
                           err);
}

/* ---------------------------------------------------------------- rows */

/* Rows behind the tokens for the experts that no token chose, so that each one
 * runs: K of them a row, in the order of their ids, all of the same weight. */
static void add_rows(moec_l3_layer *l)
{
    moec_l3_side *a = &l->side[MOEC_LEVEL3_SOURCE];
    uint32_t col = 0;

    l->rows = l->tokens;
    for (uint32_t e = 0; e < l->experts; e++) {
        bool chosen = false;

        for (size_t i = 0; !chosen && i < (size_t)l->tokens * a->cols; i++)
            chosen = a->ids[i] == (int32_t)e;
        if (chosen || (l->elsewhere != NULL && l->elsewhere[e] != 0))
            continue;
        for (int side = 0; side < 2; side++) {
            moec_l3_side *s = &l->side[side];
            size_t row = (size_t)l->rows * s->cols;

            for (uint32_t c = 0; col == 0 && c < s->cols; c++) {
                s->ids[row + c] =
                    c < l->top_k
                        ? -1
                        : (int32_t)(l->experts + l->zero + c - l->top_k);
                s->weights[row + c] = 0.0f;
            }
            s->ids[row + col] = (int32_t)e;
            s->weights[row + col] = 1.0f / (float)l->top_k;
        }
        if (col == 0)
            memcpy(l->x + (size_t)l->rows * l->width,
                   l->x + (size_t)(l->rows % l->tokens) * l->width,
                   l->width * sizeof(*l->x));
        if (++col == l->top_k) {
            col = 0;
            l->rows++;
        }
    }
    l->rows += col != 0;
}

/* -------------------------------------------------------------- experts */

typedef struct experts {
    moec_l3_layer *l;
    const float *x;
    moec_ffn_config ffn;
    uint32_t *sorted;
    uint64_t *first; /* [experts + 1] */
} experts;

static moec_status gather(experts *g, moec_error *err)
{
    moec_l3_layer *l = g->l;
    const moec_l3_side *s = &l->side[MOEC_LEVEL3_SOURCE];
    const moec_kernels *k = l->v->k[MOEC_LEVEL3_SOURCE];
    uint64_t n = (uint64_t)l->rows * s->cols, used;
    uint64_t bytes = moec_align_workspace_bytes(k, n, l->experts);
    uint32_t *blocks = moec_calloc((size_t)n + 1, sizeof(*blocks));
    moec_room room = {0};
    moec_status st = moec_room_get(&room, bytes, err);

    g->sorted = moec_calloc((size_t)n + 1, sizeof(*g->sorted));
    g->first = moec_calloc((size_t)l->experts + 1, sizeof(*g->first));
    if (st == MOEC_OK &&
        (blocks == NULL || g->sorted == NULL || g->first == NULL))
        st = moec_fail_nomem(err, "rows by expert");
    if (st == MOEC_OK)
        st = moec_align(k, s->ids, n, 0, l->experts, 1, g->sorted, blocks,
                        g->first, &used, room.data, bytes, err);
    moec_room_fini(&room);
    moec_free(blocks);
    return st;
}

/* Rows that one expert is run over. */
typedef struct plain_run {
    const float *x;
    uint32_t rows, cols;
    const float *weights;
    const uint32_t *sorted; /* its columns */
    uint64_t n;
    float *y;
} plain_run;

static moec_status run_plain(moec_l3_worker *w, const moec_kernels *k,
                             const moec_ffn_config *config, const plain_run *r,
                             moec_error *err)
{
    moec_ffn_config c = *config;
    uint64_t first[2] = {0, r->n}, bytes;
    moec_ffn_in in = {.struct_bytes = sizeof(in),
                      .w13 = &w->plain.w13,
                      .w2 = &w->plain.w2,
                      .n_rows = 1,
                      .x_dtype = MOEC_DTYPE_F32,
                      .x = r->x,
                      .n_tokens = r->rows,
                      .n_cols = r->cols,
                      .weights = r->weights,
                      .sorted = r->sorted,
                      .slot_first = first};

    c.hidden = (uint32_t)w->plain.hidden;
    c.inter = (uint32_t)w->plain.inter;
    c.gated = w->plain.gated;
    c.up_first = 0; /* forward_expert.c puts gate first */
    c.precision = MOEC_PRECISION_EXACT;
    bytes = moec_ffn_workspace_bytes(k, &c, r->n);
    MOEC_TRY(moec_room_get(&w->work, bytes, err));
    return moec_ffn(k, &c, &in, r->y, w->work.data, bytes, err);
}

static moec_status run_expert(void *ctx, size_t e, uint32_t worker,
                              moec_error *err)
{
    const experts *g = ctx;
    moec_l3_layer *l = g->l;
    moec_l3_side *s = &l->side[MOEC_LEVEL3_SOURCE];
    moec_l3_worker *w = &l->v->workers[worker];
    const moec_kernels *k = l->v->k[MOEC_LEVEL3_SOURCE];
    uint64_t n = g->first[e + 1] - g->first[e];
    moec_plain_source from = {l->slices[MOEC_LEVEL3_SOURCE],
                              MOEC_ROLE_ROUTED,
                              l->hidden,
                              g->ffn.inter,
                              moec_l3_read_source,
                              w};
    plain_run run = {.x = g->x,
                     .rows = l->rows,
                     .cols = s->cols,
                     .weights = s->weights,
                     .sorted = g->sorted + g->first[e],
                     .y = s->y};

    if (n == 0)
        return MOEC_OK;
    run.n = n;
    MOEC_TRY(moec_l3_known(
        moec_plain_read(&w->plain, k, &from, (uint32_t)e, err), err));
    MOEC_TRY(run_plain(w, k, &g->ffn, &run, err));
    return moec_l3_progress(l->v, l->slot_bytes, err);
}

/* -------------------------------------------------------- shared expert */

static bool has_experts(const moec_l3_layer *l, const moec_l3_side *s,
                        uint32_t t)
{
    for (uint32_t c = 0; c < l->top_k; c++)
        if (s->ids[(size_t)t * s->cols + c] >= 0)
            return true;
    return false;
}

/* Shared experts in one tensor each are so many MLPs of their own; else they
 * are one, however many the config counts. */
static uint32_t shared_parts(const moec_l3_layer *l, int side)
{
    const moec_layer_slices *x = l->slices[side];
    uint32_t n = moec_model_facts(l->v->model[side])->n_shared;

    for (size_t i = 0; i < x->n_slices; i++)
        if (x->slices[i].role == MOEC_ROLE_SHARED && x->slices[i].stacked)
            return (uint32_t)moec_max_u64(n, 1);
    return 1;
}

static float shared_weight(const moec_l3_layer *l, const moec_l3_side *s,
                           uint32_t t, uint32_t part)
{
    moec_route_config gate = s->facts.route;

    if (!has_experts(l, s, t)) /* a row of padding */
        return 0.0f;
    if (s->n_weighed != 0)
        return s->shared_weights[(size_t)t * s->n_weighed + part];
    gate.rsf_on = MOEC_RSF_ON_WEIGHTS; /* alone, it stands outside the scale */
    gate.shared_ranks = 1;
    return moec_shared_weight(&gate, s->gate != NULL ? s->gate[t] : 0.0f) *
           s->global_scale;
}

/* One shared expert over all tokens, its outputs into `y`. */
static moec_status run_shared(moec_l3_layer *l, int side, uint32_t part,
                              uint32_t parts, float *y, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    moec_l3_worker *w = &l->v->workers[0];
    const moec_kernels *k = l->v->k[side];
    uint32_t *sorted = moec_calloc((size_t)l->tokens + 1, sizeof(*sorted));
    float *ones = moec_calloc((size_t)l->tokens + 1, sizeof(*ones));
    moec_plain_source from = {l->slices[side],
                              MOEC_ROLE_SHARED,
                              l->width,
                              s->facts.shared_ffn.inter / parts,
                              side == MOEC_LEVEL3_SOURCE ? moec_l3_read_source
                                                         : moec_l3_read_common,
                              w};
    plain_run run = {l->x, l->tokens, 1, ones, sorted, l->tokens, y};
    moec_status st = MOEC_OK;

    if (sorted == NULL || ones == NULL)
        st = moec_fail_nomem(err, "the shared expert");
    for (uint32_t t = 0; st == MOEC_OK && t < l->tokens; t++) {
        sorted[t] = t;
        ones[t] = 1.0f;
    }
    if (st == MOEC_OK)
        st =
            moec_l3_known(moec_plain_read(&w->plain, k, &from, part, err), err);
    if (st == MOEC_OK)
        st = run_plain(w, k, &s->facts.shared_ffn, &run, err);
    moec_free(ones);
    moec_free(sorted);
    return st;
}

moec_status moec_l3_shared_apart(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    uint32_t parts = shared_parts(l, side);
    size_t h = l->width;
    float *y = moec_calloc((size_t)l->tokens + 1, h * sizeof(*y));
    moec_status st = MOEC_OK;

    s->shared = moec_calloc((size_t)l->rows + 1, h * sizeof(*s->shared));
    if (y == NULL || s->shared == NULL)
        st = moec_fail_nomem(err, "the shared expert");
    if (st == MOEC_OK && s->n_weighed != 0 && s->n_weighed != parts)
        st = moec_l3_known(
            moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                      "the router weighs %u shared experts, and their tensors "
                      "hold %u",
                      s->n_weighed, parts),
            err);
    for (uint32_t part = 0; st == MOEC_OK && part < parts; part++) {
        st = run_shared(l, side, part, parts, y, err);
        for (uint32_t t = 0; st == MOEC_OK && t < l->tokens; t++) {
            float weight = shared_weight(l, s, t, part);

            for (size_t i = t * h; i < (t + 1) * h; i++)
                s->shared[i] += weight * y[i];
        }
    }
    moec_free(y);
    return st;
}

/* ----------------------------------------------------------- the layer */

/* Columns that are experts, as the combine wants them; zero experts apart. */
static moec_status sum_up(moec_l3_layer *l, const float *x, moec_error *err)
{
    moec_l3_side *s = &l->side[MOEC_LEVEL3_SOURCE];
    const moec_moe_facts *f = &s->facts;
    size_t n = (size_t)l->rows * s->cols;
    int32_t *slots = moec_calloc(n + 1, sizeof(*slots));
    float *ones = moec_calloc(n + 1, sizeof(*ones));
    moec_combine_in in = {.struct_bytes = sizeof(in),
                          .n_tokens = l->rows,
                          .n_cols = s->cols,
                          .scaled_cols = s->cols,
                          .hidden = l->hidden,
                          .slots = slots,
                          .weights = f->ffn.weight_on_input ? ones : s->weights,
                          .x = x,
                          .y = s->y};
    moec_status st = MOEC_OK;

    if (f->route.rsf_on == MOEC_RSF_ON_OUTPUT)
        in.scale = f->route.rsf;
    s->identity = moec_calloc((size_t)l->rows + 1, sizeof(*s->identity));
    if (slots == NULL || ones == NULL || s->identity == NULL)
        st = moec_fail_nomem(err, "sums of a layer");
    for (size_t i = 0; st == MOEC_OK && i < n; i++) {
        bool real = s->ids[i] >= 0 && (uint32_t)s->ids[i] < l->experts;

        ones[i] = 1.0f;
        slots[i] = real ? s->ids[i] : -1;
        if (!real && s->ids[i] >= 0)
            s->identity[i / s->cols] += s->weights[i];
    }
    if (l->zero != 0)
        in.identity = s->identity;
    if (st == MOEC_OK)
        st = moec_l3_sum(l, MOEC_LEVEL3_SOURCE, &in, s->routed, err);
    moec_free(ones);
    moec_free(slots);
    return st;
}

moec_status moec_l3_room(moec_l3_layer *l, int side, moec_error *err)
{
    moec_l3_side *s = &l->side[side];
    size_t rows = (size_t)l->rows + 1;

    s->y = moec_calloc(rows * s->cols, l->hidden * sizeof(float));
    s->routed = moec_calloc(rows, l->width * sizeof(float));
    s->whole = moec_calloc(rows, l->width * sizeof(float));
    if (s->y == NULL || s->routed == NULL || s->whole == NULL)
        return moec_fail_nomem(err, "outputs of a layer");
    return MOEC_OK;
}

void moec_l3_add_shared(const moec_l3_layer *l, moec_l3_side *s)
{
    for (size_t i = 0; i < (size_t)l->rows * l->width; i++)
        s->whole[i] = s->routed[i] + (s->shared != NULL ? s->shared[i] : 0.0f);
}

moec_status moec_l3_forward(moec_l3_layer *l, moec_error *err)
{
    moec_l3_side *s = &l->side[MOEC_LEVEL3_SOURCE];
    experts g = {.l = l, .ffn = s->facts.ffn};
    float *turned = NULL;
    moec_status st;

    add_rows(l);
    st = moec_l3_room(l, MOEC_LEVEL3_SOURCE, err);
    if (st == MOEC_OK)
        st = moec_l3_expert_input(l, MOEC_LEVEL3_SOURCE, &turned, &g.x, err);
    if (st == MOEC_OK)
        st = gather(&g, err);
    if (st == MOEC_OK)
        st = moec_parallel(l->v->n_workers, l->experts, run_expert, &g, err);
    if (st == MOEC_OK)
        st = sum_up(l, g.x, err);
    if (st == MOEC_OK && s->facts.shared_ffn.inter != 0)
        st = moec_l3_shared_apart(l, MOEC_LEVEL3_SOURCE, err);
    if (st == MOEC_OK)
        moec_l3_add_shared(l, s);
    moec_free(turned);
    moec_free(g.sorted);
    moec_free(g.first);
    return st;
}
