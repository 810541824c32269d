/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: load studies: recorded rows through moec_dispatch, rank by
 *   rank and step by step, or counts spread over slots.
 * Refuses: placements of another shape than the recording, waterfill of
 *   counts.
 *
 * A layer is one item of work. In each of its steps every rank dispatches its
 * own rows. Dynamic waterfill needs all ranks' routed counts first, as the
 * all-reduce gives them: a pass without waterfill finds them.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <moec/study.h>

#include "placement.h"
#include "routes.h"

#define BATCH_DEFAULT 128u
#define BATCH_MAX     (1u << 20)
#define RANKS_MAX     1024u
#define SHARED_MAX    16u

struct moec_study {
    uint32_t n_layers;
    uint64_t n_steps, n_moved;
    uint32_t n[MOEC_STUDY_PLACES];
    /* [n_layers + 1][n]: the last row is all layers. */
    double *loads[MOEC_STUDY_PLACES];
    /* [n_layers + 1]: sums over steps of the largest load and of the mean. */
    double *step_max[MOEC_STUDY_PLACES], *step_mean[MOEC_STUDY_PLACES];
};

typedef struct job {
    moec_study *s;
    const moec_study_opts *o;
    const moec_routes *routes; /* or */
    const double *counts;
    uint32_t n_layers, n_experts, top_k, n_nodes, batch;
    uint64_t n_tokens;
    moec_topology topology;
    moec_replicas **replicas; /* [W] */
    moec_kernels *kernels;
    uint64_t *moved; /* [n_layers] */
} job;

/* -------------------------------------------------------------- objects */

void moec_study_destroy(moec_study *s)
{
    if (!s)
        return;
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        moec_free(s->loads[p]);
        moec_free(s->step_max[p]);
        moec_free(s->step_mean[p]);
    }
    moec_free(s);
}

static moec_status make_study(moec_study **out, const job *j, moec_error *err)
{
    moec_study *s = moec_calloc(1, sizeof(*s));
    const moec_topology *t = &j->topology;
    bool ok = s != NULL;

    if (!s)
        return moec_fail_nomem(err, "a study");
    s->n_layers = j->n_layers;
    s->n[MOEC_STUDY_EXPERT] = j->n_experts;
    s->n[MOEC_STUDY_SLOT] = t->n_physical + t->n_shared_slots * t->n_ranks;
    s->n[MOEC_STUDY_RANK] = t->n_ranks;
    s->n[MOEC_STUDY_NODE] = j->n_nodes;
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        s->loads[p] =
            moec_calloc((size_t)(s->n_layers + 1) * s->n[p], sizeof(double));
        s->step_max[p] = moec_calloc(s->n_layers + 1, sizeof(double));
        s->step_mean[p] = moec_calloc(s->n_layers + 1, sizeof(double));
        ok = ok && s->loads[p] && s->step_max[p] && s->step_mean[p];
    }
    if (!ok) {
        moec_study_destroy(s);
        return moec_fail_nomem(err, "a study");
    }
    *out = s;
    return MOEC_OK;
}

static double *loads_of(const moec_study *s, uint32_t layer, int place)
{
    return s->loads[place] + (size_t)layer * s->n[place];
}

/* ------------------------------------------------------------- replicas */

static void close_replicas(job *j)
{
    for (uint32_t r = 0; j->replicas && r < j->o->n_ranks; r++)
        moec_replicas_destroy(j->replicas[r]);
    moec_free(j->replicas);
}

static moec_status open_replicas(job *j, moec_error *err)
{
    j->replicas = moec_calloc(j->o->n_ranks, sizeof(j->replicas[0]));
    if (!j->replicas)
        return moec_fail_nomem(err, "a study");
    for (uint32_t r = 0; r < j->o->n_ranks; r++) {
        moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;

        o.n_ranks = j->o->n_ranks;
        o.n_nodes = j->o->n_nodes;
        o.rank = r;
        o.all_to_all = 1;
        if (j->o->n_decoder > 0) {
            o.keys = j->o->keys;
            o.n_decoder = j->o->n_decoder;
        }
        MOEC_TRY(
            moec_replicas_create(&j->replicas[r], j->o->placement, &o, err));
    }
    return MOEC_OK;
}

/* The number that replica rules add for a layer: decoder layer, MTP ones
 * counted on. */
static uint32_t number_of(const job *j, uint32_t layer)
{
    const moec_layer_key *keys = j->o->keys;

    if (!keys)
        return layer;
    return keys[layer].number +
           (keys[layer].space == MOEC_SPACE_MTP ? j->o->n_decoder : 0);
}

/* Candidates of NEAREST: the nearest alone, or all where none is. */
static void near_candidates(const moec_dispatch_map *map,
                            const int32_t *nearest, uint32_t *first,
                            uint32_t *cand)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < map->n_experts; e++) {
        first[e] = n;
        if (nearest[e] >= 0) {
            cand[n++] = (uint32_t)nearest[e];
            continue;
        }
        for (uint32_t i = map->cand_first[e]; i < map->cand_first[e + 1]; i++)
            cand[n++] = map->cand[i];
    }
    first[map->n_experts] = n;
}

static moec_replica_rule rule_of(moec_study_replica replica)
{
    switch (replica) {
    case MOEC_STUDY_STATIC:
        return MOEC_REPLICA_TABLE;
    case MOEC_STUDY_ROW:
        return MOEC_REPLICA_ROW;
    case MOEC_STUDY_DYNAMIC:
    case MOEC_STUDY_NEAREST:
        break;
    }
    return MOEC_REPLICA_ROW_RANK_LAYER;
}

/* ---------------------------------------------------------------- layers */

/* What one layer's work needs. */
typedef struct layer_work {
    moec_dispatch_map *maps;   /* [W] */
    uint32_t *first, *cand;    /* NEAREST: [W][E + 1], [W][P] */
    int32_t *ids, *slots;      /* [batch][K + S] */
    float *weights, *identity; /* [batch][K + S], [batch] */
    uint32_t *slot_counts, *sum_slots;
    uint64_t *routed, *tokens; /* [W] */
    double *step[MOEC_STUDY_PLACES];
    void *workspace;
    uint64_t workspace_bytes;
} layer_work;

static void free_work(layer_work *w)
{
    moec_free(w->maps);
    moec_free(w->first);
    moec_free(w->cand);
    moec_free(w->ids);
    moec_free(w->slots);
    moec_free(w->weights);
    moec_free(w->identity);
    moec_free(w->slot_counts);
    moec_free(w->sum_slots);
    moec_free(w->routed);
    moec_free(w->tokens);
    for (int p = 0; p < MOEC_STUDY_PLACES; p++)
        moec_free(w->step[p]);
    moec_free_aligned(w->workspace);
}

static moec_status make_maps(const job *j, uint32_t layer, layer_work *w,
                             moec_error *err)
{
    uint32_t n_ranks = j->o->n_ranks, P = j->topology.n_physical;
    bool near = j->o->replica == MOEC_STUDY_NEAREST;

    w->maps = moec_calloc(n_ranks, sizeof(w->maps[0]));
    if (near) {
        w->first = moec_calloc((size_t)n_ranks * (j->n_experts + 1),
                               sizeof(w->first[0]));
        w->cand = moec_calloc((size_t)n_ranks * P, sizeof(w->cand[0]));
    }
    if (!w->maps || (near && (!w->first || !w->cand)))
        return moec_fail_nomem(err, "a study");
    for (uint32_t r = 0; r < n_ranks; r++) {
        moec_replicas_map(j->replicas[r], layer, rule_of(j->o->replica),
                          number_of(j, layer), j->o->n_shared, 0, &w->maps[r]);
        if (near) {
            uint32_t *first = w->first + (size_t)r * (j->n_experts + 1);
            uint32_t *cand = w->cand + (size_t)r * P;

            near_candidates(&w->maps[r],
                            moec_replicas_nearest(j->replicas[r], layer), first,
                            cand);
            w->maps[r].cand_first = first;
            w->maps[r].cand = cand;
        }
    }
    return MOEC_OK;
}

static moec_status make_work(const job *j, uint32_t layer, layer_work *w,
                             moec_error *err)
{
    size_t columns = (size_t)j->batch * (j->top_k + j->o->n_shared);
    uint32_t n_slots = j->s->n[MOEC_STUDY_SLOT];
    bool ok;

    MOEC_TRY(make_maps(j, layer, w, err));
    w->ids = moec_calloc(columns, sizeof(w->ids[0]));
    w->slots = moec_calloc(columns, sizeof(w->slots[0]));
    w->weights = moec_calloc(columns, sizeof(w->weights[0]));
    w->identity = moec_calloc(j->batch, sizeof(w->identity[0]));
    w->slot_counts = moec_calloc(n_slots, sizeof(w->slot_counts[0]));
    w->sum_slots = moec_calloc(n_slots, sizeof(w->sum_slots[0]));
    w->routed = moec_calloc(j->o->n_ranks, sizeof(w->routed[0]));
    w->tokens = moec_calloc(j->o->n_ranks, sizeof(w->tokens[0]));
    w->workspace_bytes =
        moec_dispatch_workspace_bytes(j->kernels, &w->maps[0], j->batch);
    w->workspace = moec_alloc_aligned((size_t)w->workspace_bytes + 64, 64);
    ok = w->ids && w->slots && w->weights && w->identity && w->slot_counts &&
         w->sum_slots && w->routed && w->tokens && w->workspace;
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        w->step[p] = moec_calloc(j->s->n[p], sizeof(double));
        ok = ok && w->step[p];
    }
    return ok ? MOEC_OK : moec_fail_nomem(err, "a study");
}

/* Tokens [*first, return) of rank r in the step: runs of `batch`, the last
 * step shared out evenly. */
static uint64_t tokens_of(const job *j, uint64_t step, uint32_t r,
                          uint64_t *first)
{
    uint64_t n_ranks = j->o->n_ranks, whole = (uint64_t)j->batch * n_ranks;
    uint64_t begin = step * whole;
    uint64_t left = moec_min_u64(whole, j->n_tokens - begin);
    uint64_t a = left * r / n_ranks, b = left * (r + 1) / n_ranks;

    *first = begin + a;
    return b - a;
}

/* Load the rows of a rank and dispatch them into w->slots. */
static moec_status dispatch_rank(const job *j, uint32_t layer, layer_work *w,
                                 uint32_t r, uint64_t first, uint32_t n,
                                 const moec_waterfill *fill, moec_error *err)
{
    uint32_t k = j->top_k, cols = k + j->o->n_shared;
    moec_dispatch_out out = {.struct_bytes = sizeof(out),
                             .slots = w->slots,
                             .weights = w->weights,
                             .identity = w->identity,
                             .slot_counts = w->slot_counts};

    moec_routes_ids(j->routes, first, n, layer, w->ids);
    /* Spread [n][K] to [n][K + S] from the last row on. */
    for (uint32_t t = n; t-- > 0 && cols > k;)
        memmove(w->ids + (size_t)t * cols, w->ids + (size_t)t * k,
                k * sizeof(w->ids[0]));
    return moec_dispatch(j->kernels, &w->maps[r], fill, w->ids, w->weights, n,
                         n, k, &out, w->workspace, w->workspace_bytes, err);
}

/* What the all-reduce of dynamic waterfill gives. */
static moec_status reduce_counts(const job *j, uint32_t layer, layer_work *w,
                                 uint64_t step, moec_error *err)
{
    uint32_t L = j->topology.n_local, S = j->o->n_shared;

    memset(w->routed, 0, j->o->n_ranks * sizeof(w->routed[0]));
    for (uint32_t r = 0; r < j->o->n_ranks; r++) {
        uint64_t first, n = tokens_of(j, step, r, &first);

        w->tokens[r] = n;
        MOEC_TRY(dispatch_rank(j, layer, w, r, first, (uint32_t)n, NULL, err));
        for (uint32_t q = 0; q < j->s->n[MOEC_STUDY_SLOT]; q++)
            if (q % (L + S) < L)
                w->routed[q / (L + S)] += w->slot_counts[q];
    }
    return MOEC_OK;
}

/* Rows whose shared columns are not on rank r. */
static uint64_t count_moved(const job *j, const layer_work *w, uint32_t r,
                            uint64_t n)
{
    uint32_t cols = j->top_k + j->o->n_shared, moved = 0;
    uint32_t rows = j->topology.n_local + j->o->n_shared;

    for (uint64_t t = 0; t < n && j->o->n_shared > 0; t++) {
        int32_t q = w->slots[t * cols + j->top_k];

        moved += q >= 0 && (uint32_t)q / rows != r;
    }
    return moved;
}

static void add_experts(const job *j, const layer_work *w, uint64_t n)
{
    uint32_t cols = j->top_k + j->o->n_shared;

    for (uint64_t t = 0; t < n; t++)
        for (uint32_t c = 0; c < j->top_k; c++) {
            int32_t e = w->ids[t * cols + c];

            if (e >= 0 && (uint32_t)e < j->n_experts)
                w->step[MOEC_STUDY_EXPERT][e] += 1;
        }
}

/* From the step's slots to its ranks and nodes, and all into the study. */
static void add_step(const job *j, uint32_t layer, const layer_work *w)
{
    uint32_t rows = j->topology.n_local + j->o->n_shared;
    moec_study *s = j->s;

    for (uint32_t q = 0; q < s->n[MOEC_STUDY_SLOT]; q++) {
        uint32_t r = q / rows;

        w->step[MOEC_STUDY_SLOT][q] = w->sum_slots[q];
        w->step[MOEC_STUDY_RANK][r] += w->sum_slots[q];
        w->step[MOEC_STUDY_NODE][r / (j->o->n_ranks / j->n_nodes)] +=
            w->sum_slots[q];
    }
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        double *loads = loads_of(s, layer, p), max = 0, sum = 0;

        for (uint32_t i = 0; i < s->n[p]; i++) {
            loads[i] += w->step[p][i];
            sum += w->step[p][i];
            max = max > w->step[p][i] ? max : w->step[p][i];
        }
        s->step_max[p][layer] += max;
        s->step_mean[p][layer] += sum / s->n[p];
    }
}

static moec_status run_step(const job *j, uint32_t layer, layer_work *w,
                            uint64_t step, moec_error *err)
{
    moec_waterfill fill = {.mode = j->o->waterfill,
                           .by_rank = j->o->by_rank,
                           .routed = w->routed,
                           .tokens = w->tokens};
    bool filled = fill.mode != MOEC_WATERFILL_OFF && j->o->n_shared > 0;
    uint32_t n_slots = j->s->n[MOEC_STUDY_SLOT];

    for (int p = 0; p < MOEC_STUDY_PLACES; p++)
        memset(w->step[p], 0, j->s->n[p] * sizeof(double));
    memset(w->sum_slots, 0, n_slots * sizeof(w->sum_slots[0]));
    if (filled && fill.mode == MOEC_WATERFILL_DYNAMIC)
        MOEC_TRY(reduce_counts(j, layer, w, step, err));
    for (uint32_t r = 0; r < j->o->n_ranks; r++) {
        uint64_t first, n = tokens_of(j, step, r, &first);

        MOEC_TRY(dispatch_rank(j, layer, w, r, first, (uint32_t)n,
                               filled ? &fill : NULL, err));
        for (uint32_t q = 0; q < n_slots; q++)
            w->sum_slots[q] += w->slot_counts[q];
        j->moved[layer] += count_moved(j, w, r, n);
        add_experts(j, w, n);
    }
    add_step(j, layer, w);
    return MOEC_OK;
}

static moec_status run_layer(void *ctx, size_t item, uint32_t worker,
                             moec_error *err)
{
    const job *j = ctx;
    uint32_t layer = (uint32_t)item;
    layer_work w = {0};
    moec_status st = make_work(j, layer, &w, err);

    (void)worker;
    for (uint64_t step = 0; st == MOEC_OK && step < j->s->n_steps; step++)
        st = run_step(j, layer, &w, step, err);
    free_work(&w);
    return st;
}

/* --------------------------------------------------------------- counts */

/* One expert's share of one rank to its slots. */
static void spread(const job *j, const moec_dispatch_map *map, uint32_t e,
                   double share, double *slots)
{
    moec_physical_id p;
    uint32_t a = map->cand_first[e], b = map->cand_first[e + 1];

    if (map->rule == MOEC_REPLICA_TABLE) {
        p.v = map->table[e];
        slots[moec_physical_slot(j->topology, p).v] += share;
        return;
    }
    for (uint32_t i = a; i < b; i++) {
        p.v = map->cand[i];
        slots[moec_physical_slot(j->topology, p).v] += share / (b - a);
    }
}

static moec_status count_layer(void *ctx, size_t item, uint32_t worker,
                               moec_error *err)
{
    const job *j = ctx;
    uint32_t layer = (uint32_t)item, n_ranks = j->o->n_ranks;
    uint32_t rows = j->topology.n_local + j->o->n_shared;
    const double *counts = j->counts + (size_t)layer * j->n_experts;
    double *slots = loads_of(j->s, layer, MOEC_STUDY_SLOT), tokens = 0;
    layer_work w = {0};
    moec_status st = make_maps(j, layer, &w, err);

    (void)worker;
    memcpy(loads_of(j->s, layer, MOEC_STUDY_EXPERT), counts,
           j->n_experts * sizeof(counts[0]));
    for (uint32_t e = 0; st == MOEC_OK && e < j->n_experts; e++) {
        for (uint32_t r = 0; r < n_ranks; r++)
            spread(j, &w.maps[r], e, counts[e] / n_ranks, slots);
        tokens += counts[e] / j->top_k;
    }
    for (uint32_t q = 0; st == MOEC_OK && q < j->s->n[MOEC_STUDY_SLOT]; q++) {
        uint32_t r = q / rows;

        if (q % rows >= j->topology.n_local)
            slots[q] = tokens / n_ranks;
        loads_of(j->s, layer, MOEC_STUDY_RANK)[r] += slots[q];
        loads_of(j->s, layer, MOEC_STUDY_NODE)[r / (n_ranks / j->n_nodes)] +=
            slots[q];
    }
    free_work(&w);
    return st;
}

/* ----------------------------------------------------------------- runs */

static moec_status check_opts(const moec_study_opts *o, moec_error *err)
{
    if (!o || o->struct_bytes < sizeof(*o) || !o->placement)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "study: opts or placement is NULL or too short");
    if (o->n_ranks > RANKS_MAX || o->n_shared > SHARED_MAX ||
        o->batch > BATCH_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "study: %" PRIu32 " ranks, %" PRIu32
                         " shared slots, batches of %" PRIu32
                         "; at most %u, %u, %u",
                         o->n_ranks, o->n_shared, o->batch, RANKS_MAX,
                         SHARED_MAX, BATCH_MAX);
    if (o->n_nodes > 0 && (o->n_ranks == 0 || o->n_ranks % o->n_nodes != 0))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "study: %" PRIu32 " nodes do not divide %" PRIu32
                         " ranks",
                         o->n_nodes, o->n_ranks);
    return moec_placement_fits(o->placement, o->n_ranks, o->keys,
                               moec_placement_n_layers(o->placement), err);
}

/* Add the layers up. */
static void add_layers(moec_study *s)
{
    for (int p = 0; p < MOEC_STUDY_PLACES; p++) {
        double *all = loads_of(s, s->n_layers, p);

        for (uint32_t l = 0; l < s->n_layers; l++) {
            for (uint32_t i = 0; i < s->n[p]; i++)
                all[i] += loads_of(s, l, p)[i];
            s->step_max[p][s->n_layers] += s->step_max[p][l];
            s->step_mean[p][s->n_layers] += s->step_mean[p][l];
        }
    }
}

static moec_status run_all(job *j, moec_item_fn fn, moec_study **out,
                           moec_error *err)
{
    const moec_study_opts *o = j->o;
    uint32_t n_layers = j->n_layers;
    moec_status st;

    j->n_nodes = o->n_nodes ? o->n_nodes : 1;
    j->batch = o->batch ? o->batch : BATCH_DEFAULT;
    j->topology.n_physical = moec_placement_n_physical(o->placement);
    j->topology.n_ranks = o->n_ranks;
    j->topology.n_local = j->topology.n_physical / o->n_ranks;
    j->topology.n_shared_slots = o->n_shared;
    MOEC_TRY(make_study(&j->s, j, err));
    j->s->n_steps = moec_ceil_div(j->n_tokens, (uint64_t)j->batch * o->n_ranks);
    j->moved = moec_calloc(n_layers, sizeof(j->moved[0]));
    st = j->moved ? open_replicas(j, err) : moec_fail_nomem(err, "a study");
    if (st == MOEC_OK)
        st = moec_kernels_open(&j->kernels, NULL, err);
    if (st == MOEC_OK)
        st = moec_parallel(o->n_threads, n_layers, fn, j, err);
    if (st == MOEC_OK) {
        add_layers(j->s);
        for (uint32_t l = 0; l < n_layers; l++)
            j->s->n_moved += j->moved[l];
        *out = j->s;
    } else {
        moec_study_destroy(j->s);
    }
    moec_kernels_close(j->kernels);
    close_replicas(j);
    moec_free(j->moved);
    return st;
}

moec_status moec_study_routes(moec_study **out, const moec_routes *routes,
                              const moec_study_opts *opts, moec_error *err)
{
    job j = {.o = opts, .routes = routes};
    const moec_routes_shape *s;

    if (!out || !routes)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "study: out or routes is NULL");
    MOEC_TRY(check_opts(opts, err));
    s = moec_routes_shape_get(routes);
    if (moec_placement_n_layers(opts->placement) < s->n_layers ||
        moec_placement_n_experts(opts->placement) != s->n_experts)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                         "the placement has %" PRIu32 " layers of %" PRIu32
                         " experts, the recording %" PRIu32 " of %" PRIu32,
                         moec_placement_n_layers(opts->placement),
                         moec_placement_n_experts(opts->placement), s->n_layers,
                         s->n_experts);
    j.n_experts = s->n_experts;
    j.n_layers = s->n_layers;
    j.top_k = s->top_k;
    j.n_tokens = moec_routes_n_tokens(routes);
    return run_all(&j, run_layer, out, err);
}

moec_status moec_study_counts(moec_study **out, const double *counts,
                              const moec_study_opts *opts, moec_error *err)
{
    job j = {.o = opts, .counts = counts};

    if (!out || !counts)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "study: out or counts is NULL");
    MOEC_TRY(check_opts(opts, err));
    if (opts->waterfill != MOEC_WATERFILL_OFF)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "waterfill needs recorded routes: counts do not say "
                         "which ranks a token visits");
    if (opts->n_shared > 0 && opts->top_k == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "study: shared slots of counts need top_k");
    j.n_experts = moec_placement_n_experts(opts->placement);
    j.n_layers = moec_placement_n_layers(opts->placement);
    j.top_k = opts->top_k ? opts->top_k : 1;
    return run_all(&j, count_layer, out, err);
}

/* -------------------------------------------------------------- answers */

uint32_t moec_study_n_layers(const moec_study *s)
{
    return s->n_layers;
}

uint64_t moec_study_n_steps(const moec_study *s)
{
    return s->n_steps;
}

uint64_t moec_study_n_moved(const moec_study *s)
{
    return s->n_moved;
}

const double *moec_study_loads(const moec_study *s, uint32_t layer,
                               moec_study_place place, uint32_t *n_out)
{
    if (n_out)
        *n_out = s->n[place];
    return loads_of(s, layer == MOEC_STUDY_ALL ? s->n_layers : layer,
                    (int)place);
}

static moec_study_figures figures(const double *loads, uint32_t n)
{
    moec_study_figures f = {0};
    double sum = 0, squares = 0;

    f.max = f.min = loads[0];
    for (uint32_t i = 0; i < n; i++) {
        sum += loads[i];
        f.max = loads[i] > f.max ? loads[i] : f.max;
        f.min = loads[i] < f.min ? loads[i] : f.min;
    }
    f.mean = sum / n;
    for (uint32_t i = 0; i < n; i++)
        squares += (loads[i] - f.mean) * (loads[i] - f.mean);
    f.deviation = sqrt(squares / n);
    return f;
}

moec_study_figures moec_study_figures_of(const moec_study *s, uint32_t layer,
                                         moec_study_place place)
{
    bool all = layer == MOEC_STUDY_ALL;
    uint32_t l = all ? s->n_layers : layer;
    moec_study_figures f = figures(loads_of(s, l, (int)place), s->n[place]);

    if (all) {
        f.max = f.mean = 0;
        for (uint32_t i = 0; i < s->n_layers; i++) {
            moec_study_figures one =
                figures(loads_of(s, i, (int)place), s->n[place]);

            f.max += one.max;
            f.mean += one.mean;
        }
    }
    f.max_over_mean = f.mean > 0 ? f.max / f.mean : 0;
    if (s->step_mean[place][l] > 0)
        f.step_max_over_mean = s->step_max[place][l] / s->step_mean[place][l];
    return f;
}
