/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The converted side of one layer, as a job of W ranks would serve it: the
 * tokens are dealt out to source ranks, each rank's dispatch says which slot
 * each column goes to, every slot that gets columns runs on the bytes of its
 * own rank's file, and each token's columns are summed up. Slots are read one
 * at a time on each worker, whole layers never; every slot is digested, those
 * that no column reached too, so that serve_choice.c can tell what stands in a
 * slot without running it.
 */

#include <string.h>

#include "device_calls.h"
#include "level3.h"
#include "slot_axes.h"

#define SLOT_ALIGN 64u

/* ---------------------------------------------------------------- slots */

void moec_l3_place(const moec_l3_layer *l, uint32_t q, uint32_t home,
                   uint32_t *rank, uint32_t *row)
{
    if (!l->topo.shared_global) {
        *rank = q / l->n_rows;
        *row = q % l->n_rows;
    } else if (q < l->topo.n_physical) {
        *rank = q / l->topo.n_local;
        *row = q % l->topo.n_local;
    } else { /* numbered once, held by every rank: at home */
        *rank = home;
        *row = l->topo.n_local + (q - l->topo.n_physical);
    }
}

/* Put one block of slot tensor `t` where it belongs into `dst`: from the
 * rank's file, or by the moves where there are no files. */
static moec_status read_block(moec_l3_worker *w, size_t layer, size_t t,
                              uint32_t rank, uint32_t row, void *dst,
                              moec_error *err)
{
    const moec_level3 *v = w->v;
    uint64_t bytes = moec_plan_slot_tensor(v->plan, layer, t)->slot_bytes, off;
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    uint32_t at = moec_plan_row(v->plan, layer, t, rank, (moec_local_row){row});
    size_t file, n;

    if (v->dir == NULL) {
        n = moec_plan_block_moves(
            v->plan, layer, t,
            moec_plan_unit(v->plan, layer, rank, (moec_local_row){row}), moves);
        return moec_block_read(moves, n, 0, bytes, dst, moec_l3_read_source, w,
                               &w->scratch, err);
    }
    moec_layout_find_slots(v->layout, rank, layer, t, &file, &off);
    return moec_l3_read_file(w, file, off + at * bytes, dst, (size_t)bytes,
                             err);
}

/* Read one slot into the worker's room; data[t] is where tensor t's block is.
 */
static moec_status read_slot(moec_l3_layer *l, moec_l3_worker *w, uint32_t rank,
                             uint32_t row, const void **data, moec_error *err)
{
    const moec_plan *plan = l->v->plan;
    size_t n = moec_plan_n_slot_tensors(plan, l->layer);
    moec_l3_slot *slot = &l->slot[(size_t)rank * l->n_rows + row];
    moec_xxh128 one[MOEC_L3_TENSORS_MAX];
    uint64_t at = 0;

    for (size_t t = 0; t < n; t++)
        at += (moec_plan_slot_tensor(plan, l->layer, t)->slot_bytes +
               SLOT_ALIGN - 1) /
              SLOT_ALIGN * SLOT_ALIGN;
    MOEC_TRY(moec_room_get(&w->slot, at, err));
    at = 0;
    for (size_t t = 0; t < n; t++) {
        uint64_t bytes = moec_plan_slot_tensor(plan, l->layer, t)->slot_bytes;

        MOEC_TRY(read_block(w, l->layer, t, rank, row, w->slot.data + at, err));
        data[t] = w->slot.data + at;
        one[t] = moec_xxh128_of(data[t], (size_t)bytes);
        at += (bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    }
    slot->digest = moec_xxh128_of(one, n * sizeof(*one));
    slot->read = true;
    return MOEC_OK;
}

/* bf16-as-f16: the headers say so, and a loader believes them. */
static void mutate_matrix(const moec_l3_layer *l, moec_matrix *m)
{
    if (l->v->mutation != MOEC_MUTATION_BF16_AS_F16)
        return;
    if (m->format == MOEC_WFORMAT_BF16)
        m->format = MOEC_WFORMAT_F16;
    if (m->scale_dtype == MOEC_DTYPE_BF16)
        m->scale_dtype = MOEC_DTYPE_F16;
    if (m->bias_dtype == MOEC_DTYPE_BF16)
        m->bias_dtype = MOEC_DTYPE_F16;
}

static moec_status run_matrices(const moec_l3_serving *g, moec_l3_worker *w,
                                const void *const *data, const uint32_t *run,
                                uint64_t n, moec_error *err)
{
    moec_l3_layer *l = g->l;
    const moec_kernels *k = l->v->k[MOEC_LEVEL3_SERVED];
    moec_matrix w13, w2;
    uint64_t first[2] = {0, n}, bytes;
    moec_ffn_in in = {.struct_bytes = sizeof(in),
                      .w13 = &w13,
                      .w2 = &w2,
                      .n_rows = 1,
                      .x_dtype = MOEC_DTYPE_F32,
                      .x = g->x,
                      .n_tokens = g->n_tokens,
                      .n_cols = l->side[MOEC_LEVEL3_SERVED].cols,
                      .weights = g->weights,
                      .sorted = run,
                      .slot_first = first};

    MOEC_TRY(moec_l3_known(
        moec_slot_matrix_rows(l->v->plan, l->layer, 0, 1, data, &w13, err),
        err));
    MOEC_TRY(moec_l3_known(
        moec_slot_matrix_rows(l->v->plan, l->layer, 1, 1, data, &w2, err),
        err));
    mutate_matrix(l, &w13);
    mutate_matrix(l, &w2);
    if (l->v->opts->device != NULL)
        return moec_on_device_ffn(l->v->opts->device, &g->ffn, &in, n, g->y,
                                  err);
    bytes = moec_ffn_workspace_bytes(k, &g->ffn, n);
    MOEC_TRY(moec_room_get(&w->work, bytes, err));
    return moec_ffn(k, &g->ffn, &in, g->y, w->work.data, bytes, err);
}

static moec_status run_slot(void *ctx, size_t at, uint32_t worker,
                            moec_error *err)
{
    const moec_l3_serving *g = ctx;
    moec_l3_layer *l = g->l;
    moec_l3_worker *w = &l->v->workers[worker];
    size_t i = g->first_slot + at;
    uint32_t rank = (uint32_t)(i / l->n_rows), row = (uint32_t)(i % l->n_rows);
    uint64_t n = g->run_first[at + 1] - g->run_first[at];
    const void *data[MOEC_L3_TENSORS_MAX];

    if (moec_plan_unit(l->v->plan, l->layer, rank, (moec_local_row){row}) ==
        MOEC_UNIT_EMPTY)
        return MOEC_OK;
    MOEC_TRY(read_slot(l, w, rank, row, data, err));
    if (n != 0) {
        MOEC_TRY(run_matrices(g, w, data, g->run + g->run_first[at], n, err));
        l->slot[i].served = true;
    }
    return moec_l3_progress(l->v, l->slot_bytes, err);
}

moec_status moec_l3_run_slots(moec_l3_serving *g, size_t n, moec_error *err)
{
    return moec_parallel(g->l->v->n_workers, n, run_slot, g, err);
}

/* ------------------------------------------------------------- dispatch */

void moec_l3_map(const moec_l3_layer *l, moec_replica_rule rule, uint32_t home,
                 uint32_t row0, moec_dispatch_map *out)
{
    memset(out, 0, sizeof(*out));
    out->struct_bytes = sizeof(*out);
    moec_replicas_map(
        l->v->replicas[home], (uint32_t)l->model_layer[MOEC_LEVEL3_SERVED],
        rule, l->result->layer.number, l->shared, l->topo.shared_global, out);
    out->row0 = row0;
}

moec_status moec_l3_dispatch(const moec_l3_layer *l,
                             const moec_dispatch_map *map,
                             const moec_waterfill *fill,
                             const moec_l3_rows *rows,
                             const moec_dispatch_out *out, moec_error *err)
{
    const moec_kernels *k = l->v->k[MOEC_LEVEL3_SERVED];
    uint64_t bytes = moec_dispatch_workspace_bytes(k, map, rows->n);
    moec_dispatch_call call = {map,     fill,          rows->ids, rows->weights,
                               rows->n, rows->n_valid, l->top_k,  *out};
    moec_room room = {0};
    moec_status st;

    if (l->v->opts->device != NULL)
        return moec_on_device_dispatch(l->v->opts->device, &call, err);
    st = moec_room_get(&room, bytes, err);
    if (st == MOEC_OK)
        st = moec_dispatch(k, map, fill, rows->ids, rows->weights, rows->n,
                           rows->n_valid, l->top_k, out, room.data, bytes, err);
    moec_room_fini(&room);
    return st;
}

/* The historic defect in the remap: E where P is meant, so that ranks are
 * taken to hold E / W slots. */
static void e_for_p(const moec_l3_layer *l, int32_t *slots, uint32_t row,
                    uint32_t n)
{
    const moec_l3_side *s = &l->side[MOEC_LEVEL3_SERVED];
    uint32_t local = (uint32_t)moec_max_u64(l->experts / l->topo.n_ranks, 1);
    uint32_t all = l->topo.n_ranks * l->n_rows;

    if (l->v->mutation != MOEC_MUTATION_E_FOR_P || l->topo.shared_global)
        return;
    for (uint32_t i = row * s->cols; i < (row + n) * s->cols; i++) {
        uint32_t q = (uint32_t)slots[i], rank = q / l->n_rows;
        uint32_t at = q % l->n_rows, p = rank * l->topo.n_local + at;

        if (slots[i] < 0)
            continue;
        q = at < l->topo.n_local
                ? p + p / local * l->shared
                : rank * (local + l->shared) + local + (at - l->topo.n_local);
        slots[i] = q < all ? (int32_t)q : -1;
    }
}

/* Deal the rows out to source ranks and send their columns on their way. */
static moec_status dispatch(moec_l3_layer *l, moec_error *err)
{
    moec_l3_side *s = &l->side[MOEC_LEVEL3_SERVED];
    size_t n = (size_t)l->rows * s->cols;
    float *weights = moec_calloc(n + 1, sizeof(*weights));
    moec_status st = MOEC_OK;

    l->slots = moec_calloc(n + 1, sizeof(*l->slots));
    l->home = moec_calloc((size_t)l->rows + 1, sizeof(*l->home));
    s->identity = moec_calloc((size_t)l->rows + 1, sizeof(*s->identity));
    if (weights == NULL || l->slots == NULL || l->home == NULL ||
        s->identity == NULL)
        st = moec_fail_nomem(err, "slots of a layer");
    for (uint32_t h = 0; st == MOEC_OK && h < l->v->n_homes; h++) {
        uint32_t from = (uint32_t)((uint64_t)l->rows * h / l->v->n_homes);
        uint32_t to = (uint32_t)((uint64_t)l->rows * (h + 1) / l->v->n_homes);
        size_t at = (size_t)from * s->cols;
        moec_l3_rows rows = {s->ids + at, s->weights + at, to - from,
                             to - from};
        moec_dispatch_map map;
        moec_dispatch_out out = {.struct_bytes = sizeof(out),
                                 .slots = l->slots + at,
                                 .weights = weights + at,
                                 .identity = s->identity + from};

        moec_l3_map(l, MOEC_REPLICA_ROW_RANK_LAYER, h, l->first + from, &map);
        for (uint32_t t = from; t < to; t++)
            l->home[t] = map.rank;
        if (to > from)
            st = moec_l3_dispatch(l, &map, NULL, &rows, &out, err);
        if (st == MOEC_OK)
            e_for_p(l, l->slots, from, to - from);
    }
    if (st == MOEC_OK)
        memcpy(s->weights, weights, n * sizeof(*weights));
    moec_free(weights);
    return st;
}

/* Columns by slot, rank after rank, as each rank sorts what it gets. */
static moec_status align_rank(moec_l3_layer *l, uint32_t rank, int32_t *own,
                              uint32_t *blocks, uint64_t *used, moec_error *err)
{
    const moec_kernels *k = l->v->k[MOEC_LEVEL3_SERVED];
    uint32_t cols = l->side[MOEC_LEVEL3_SERVED].cols;
    uint64_t n = (uint64_t)l->rows * cols, padded;
    uint64_t bytes = moec_align_workspace_bytes(k, n, l->n_rows);
    uint64_t *first = l->run_first + (size_t)rank * l->n_rows;
    const int32_t *slots = l->slots;
    moec_room room = {0};
    moec_status st = moec_room_get(&room, bytes, err);

    if (l->topo.shared_global) {
        for (uint64_t i = 0; i < n; i++) {
            uint32_t r, row;

            moec_l3_place(l, (uint32_t)slots[i], l->home[i / cols], &r, &row);
            own[i] = slots[i] >= 0 && r == rank ? (int32_t)row : -1;
        }
        slots = own;
    }
    if (st == MOEC_OK)
        st = moec_align(k, slots, n,
                        l->topo.shared_global ? 0 : rank * l->n_rows, l->n_rows,
                        1, l->run + *used, blocks, first, &padded, room.data,
                        bytes, err);
    if (st == MOEC_OK) {
        for (uint32_t i = 0; i <= l->n_rows; i++)
            first[i] += *used;
        *used = first[l->n_rows];
    }
    moec_room_fini(&room);
    return st;
}

static moec_status align(moec_l3_layer *l, moec_error *err)
{
    uint64_t n = (uint64_t)l->rows * l->side[MOEC_LEVEL3_SERVED].cols, used = 0;
    size_t n_slots = (size_t)l->topo.n_ranks * l->n_rows;
    int32_t *own = moec_calloc((size_t)n + 1, sizeof(*own));
    uint32_t *blocks = moec_calloc((size_t)n + 1, sizeof(*blocks));
    moec_status st = MOEC_OK;

    /* each column is in one rank's run; a rank may be handed all of them */
    l->run = moec_calloc(2 * (size_t)n + 1, sizeof(*l->run));
    l->run_first = moec_calloc(n_slots + 1, sizeof(*l->run_first));
    l->slot = moec_calloc(n_slots + 1, sizeof(*l->slot));
    if (own == NULL || blocks == NULL || l->run == NULL ||
        l->run_first == NULL || l->slot == NULL)
        st = moec_fail_nomem(err, "columns by slot");
    for (uint32_t r = 0; st == MOEC_OK && r < l->topo.n_ranks; r++)
        st = align_rank(l, r, own, blocks, &used, err);
    moec_free(blocks);
    moec_free(own);
    return st;
}

/* ----------------------------------------------------------------- sums */

/* Sum up columns [from, to) of each row. */
static moec_status sum_columns(moec_l3_layer *l, const float *x, uint32_t from,
                               uint32_t to, float *out, moec_error *err)
{
    moec_l3_side *s = &l->side[MOEC_LEVEL3_SERVED];
    const moec_route_config *c = moec_router_config(s->router);
    size_t n = (size_t)l->rows * s->cols;
    int32_t *slots = moec_calloc(n + 1, sizeof(*slots));
    float *ones = moec_calloc(n + 1, sizeof(*ones));
    moec_combine_in in = {.struct_bytes = sizeof(in),
                          .n_tokens = l->rows,
                          .n_cols = s->cols,
                          .scaled_cols = s->cols,
                          .hidden = l->hidden,
                          .slots = slots,
                          .weights = s->weights,
                          .x = x,
                          .y = s->y};
    moec_status st = MOEC_OK;

    if (slots == NULL || ones == NULL)
        st = moec_fail_nomem(err, "sums of a layer");
    for (size_t i = 0; st == MOEC_OK && i < n; i++) {
        uint32_t col = (uint32_t)(i % s->cols);

        slots[i] = col >= from && col < to ? l->slots[i] : -1;
        ones[i] = 1.0f;
    }
    if (s->facts.ffn.weight_on_input)
        in.weights = ones;
    if (l->zero != 0 && from == 0)
        in.identity = s->identity;
    if (c->rsf_on == MOEC_RSF_ON_OUTPUT)
        in.scale = c->rsf;
    if (st == MOEC_OK)
        st = moec_l3_sum(l, MOEC_LEVEL3_SERVED, &in, out, err);
    moec_free(ones);
    moec_free(slots);
    return st;
}

static moec_status sum_up(moec_l3_layer *l, const float *x, moec_error *err)
{
    moec_l3_side *s = &l->side[MOEC_LEVEL3_SERVED];

    MOEC_TRY(sum_columns(l, x, 0, l->top_k, s->routed, err));
    if (l->shared == 0) {
        if (l->shared_apart)
            MOEC_TRY(moec_l3_shared_apart(l, MOEC_LEVEL3_SERVED, err));
        moec_l3_add_shared(l, s);
        return MOEC_OK;
    }
    s->shared = moec_calloc((size_t)l->rows + 1, l->width * sizeof(*s->shared));
    if (s->shared == NULL)
        return moec_fail_nomem(err, "sums of a layer");
    MOEC_TRY(sum_columns(l, x, l->top_k, s->cols, s->shared, err));
    return sum_columns(l, x, 0, s->cols, s->whole, err);
}

/* All ranks' slots in this process. */
static moec_status run_here(moec_l3_serving *g, moec_error *err)
{
    moec_l3_layer *l = g->l;

    MOEC_TRY(align(l, err));
    g->run = l->run;
    g->run_first = l->run_first;
    g->n_tokens = l->rows;
    g->weights = l->side[MOEC_LEVEL3_SERVED].weights;
    g->y = l->side[MOEC_LEVEL3_SERVED].y;
    return moec_l3_run_slots(g, (size_t)l->topo.n_ranks * l->n_rows, err);
}

/* What is this process's own to do before any slot runs. */
static moec_status begin(moec_l3_serving *g, float **turned, moec_error *err)
{
    moec_l3_layer *l = g->l;

    g->ffn = l->side[MOEC_LEVEL3_SERVED].facts.ffn;
    g->ffn.precision = MOEC_PRECISION_EXACT;
    g->ffn.up_first =
        moec_plan_options(l->v->plan)->w13_order == MOEC_W13_UP_GATE;
    if (moec_plan_n_slot_tensors(l->v->plan, l->layer) > MOEC_L3_TENSORS_MAX)
        return moec_l3_known(moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                                       "a slot of more than %u tensors",
                                       MOEC_L3_TENSORS_MAX),
                             err);
    MOEC_TRY(moec_l3_room(l, MOEC_LEVEL3_SERVED, err));
    MOEC_TRY(dispatch(l, err));
    return moec_l3_expert_input(l, MOEC_LEVEL3_SERVED, turned, &g->x, err);
}

moec_status moec_l3_serve(moec_l3_layer *l, moec_error *err)
{
    moec_level3 *v = l->v;
    moec_l3_serving g = {.l = l};
    const float *x;
    float *turned = NULL;
    moec_status st = moec_l3_agree(v, begin(&g, &turned, err), err);

    x = g.x;
    if (st == MOEC_OK)
        st = v->opts->exchange != NULL ? moec_l3_serve_far(&g, err)
                                       : run_here(&g, err);
    if (st == MOEC_OK)
        st = moec_l3_agree(v, sum_up(l, x, err), err);
    moec_free(turned);
    return st;
}
