/* SPDX-License-Identifier: Apache-2.0
 *
 * From logical ids to dispatch slots for a whole batch: remap.c's rows over
 * the threads, the counts, and waterfill's second pass, which needs the
 * counts of all rows before the first shared column has its place.
 *
 * Each worker counts for itself; integers add up to the same whoever counted
 * what. A bad id is reported for the first row that has one, whatever thread
 * found it.
 *
 * The fused call is the same with a router in front: it chooses for a block of
 * rows into the ids that are remapped next, still in the first cache. Where
 * nobody wants logical ids they are written where the slots will stand. */

#include <stdatomic.h>
#include <string.h>

#include "backend.h"
#include "remap.h"
#include "route.h"

/* Rows that one item of the pool takes. */
#define REMAP_ROWS 512u
#define ROUTE_ROWS 64u
/* A row behind the choice is some nanoseconds: below these rows waking another
 * thread costs more than it takes over. A row of the choice is ten times as
 * long. */
#define ALONE_ROWS 4096u

typedef struct job {
    moec_remap remap;
    const moec_router *router; /* NULL: ids are there */
    const moec_route_in *in;
    int32_t *ids; /* what the router writes: remap.ids, remap.weights */
    float *weights;
    moec_pool *pool;
    uint32_t rows_an_item;
    uint32_t alone_rows; /* as many run on the caller's thread */
    uint32_t n_tokens;
    uint32_t *counts; /* [worker][stride]: slots, then rows; NULL: none */
    size_t stride;
    const moec_waterfill_plan *plan;
    uint64_t by_rank; /* divides a slot by L + S */
    atomic_uint_least64_t bad;
} job;

static size_t stride_of(uint32_t n_slots)
{
    return ((size_t)n_slots + 1 + 15) / 16 * 16; /* whole cache lines */
}

static uint64_t workspace_bytes_of(const moec_kernels *k,
                                   const moec_dispatch_map *map,
                                   uint32_t n_tokens, uint32_t alone_rows)
{
    uint32_t workers = n_tokens > alone_rows ? moec_kernels_n_threads(k) : 1;

    if (moec_topology_check(&map->topology, NULL) != MOEC_OK)
        return 0; /* the call itself says why */
    return stride_of(moec_topology_n_slots(&map->topology)) * workers *
           sizeof(uint32_t);
}

uint64_t moec_dispatch_workspace_bytes(const moec_kernels *k,
                                       const moec_dispatch_map *map,
                                       uint32_t n_tokens)
{
    return workspace_bytes_of(k, map, n_tokens, ALONE_ROWS);
}

uint64_t moec_route_dispatch_workspace_bytes(const moec_router *router,
                                             const moec_dispatch_map *map,
                                             uint32_t n_tokens)
{
    /* Expert Choice is over before the counts begin. */
    return moec_max_u64(
        moec_route_workspace_bytes(router, n_tokens),
        workspace_bytes_of(router->k, map, n_tokens, ROUTE_ROWS));
}

static void note_bad(job *j, uint64_t where)
{
    uint_least64_t seen = atomic_load(&j->bad);

    while (where < seen && !atomic_compare_exchange_weak(&j->bad, &seen, where))
        ;
}

static void remap_item(void *ctx, size_t item, uint32_t worker)
{
    job *j = ctx;
    uint32_t lo = (uint32_t)item * j->rows_an_item, n_rows = 0;
    uint32_t hi =
        (uint32_t)moec_min_u64(j->n_tokens, (uint64_t)lo + j->rows_an_item);
    uint32_t *counts = j->counts ? j->counts + worker * j->stride : NULL;
    uint64_t at = (uint64_t)lo * j->remap.n_cols, bad;

    if (j->router)
        moec_route_rows(j->router, j->in, lo, hi - lo, j->ids + at,
                        j->weights + at);
    bad = moec_remap_rows(&j->remap, lo, hi, counts, &n_rows);
    if (counts)
        counts[j->remap.n_slots] += n_rows;
    if (bad != MOEC_REMAP_FINE)
        note_bad(j, bad);
}

/* Move a row's shared columns to the rank that waterfill says. Counts rows by
 * rank: there are fewer ranks than slots. */
static void fill_item(void *ctx, size_t item, uint32_t worker)
{
    job *j = ctx;
    const moec_remap *m = &j->remap;
    const moec_topology *topo = &m->map->topology;
    uint32_t lo = (uint32_t)item * j->rows_an_item;
    uint32_t hi =
        (uint32_t)moec_min_u64(m->n_valid, (uint64_t)lo + j->rows_an_item);
    uint32_t *counts = j->counts ? j->counts + worker * j->stride : NULL;

    for (uint32_t t = lo; t < hi; t++) {
        int32_t *slots = m->slots + (size_t)t * m->n_cols;
        uint32_t ranks[MOEC_TOP_K_MAX], n = 0, best, first;

        if (slots[m->top_k] < 0)
            continue;
        if (!j->plan->all_ranks)
            for (uint32_t c = 0; c < m->top_k; c++)
                if (slots[c] >= 0)
                    ranks[n++] = moec_divide((uint32_t)slots[c], j->by_rank);
        best = moec_waterfill_best(j->plan, m->map->row0 + t, ranks, n);
        first = moec_shared_slot(*topo, best, 0).v;
        for (uint32_t s = 0; s < topo->n_shared_slots; s++)
            slots[m->top_k + s] = (int32_t)(first + s);
        if (counts)
            counts[best]++;
    }
}

/* Run fn over all rows. Returns the number of workers that may have run. */
static uint32_t run_rows(job *j, moec_work_fn fn)
{
    size_t n = moec_ceil_div(j->n_tokens, j->rows_an_item);
    bool alone = j->n_tokens <= j->alone_rows;
    uint32_t workers = alone ? 1 : moec_pool_n_threads(j->pool);

    if (j->counts)
        memset(j->counts, 0, workers * j->stride * sizeof(j->counts[0]));
    moec_pool_run(alone ? NULL : j->pool, n, fn, j);
    return workers;
}

/* Add the workers' first n counts into the first one's. */
static void add_workers(const job *j, uint32_t workers, uint32_t n)
{
    for (uint32_t w = 1; w < workers; w++)
        for (uint32_t i = 0; i < n; i++)
            j->counts[i] += j->counts[w * j->stride + i];
}

/* Routed columns of rank r, from counts of the slots. */
static uint32_t routed_of_rank(const job *j, uint32_t r)
{
    const moec_topology *t = &j->remap.map->topology;
    const uint32_t *first = j->counts + (size_t)r * (t->n_local + j->remap.gap);
    uint32_t sum = 0;

    for (uint32_t i = 0; i < t->n_local; i++)
        sum += first[i];
    return sum;
}

/* slot_counts and rank_counts of the routed columns. */
static void write_routed(const job *j, const moec_dispatch_out *out)
{
    uint32_t n_ranks = j->remap.map->topology.n_ranks;

    if (out->slot_counts)
        memcpy(out->slot_counts, j->counts,
               j->remap.n_slots * sizeof(out->slot_counts[0]));
    for (uint32_t r = 0; out->rank_counts && r < n_ranks; r++)
        out->rank_counts[r] = routed_of_rank(j, r);
}

/* Add the shared columns of n rows that rank r computes. */
static void add_shared(const job *j, const moec_dispatch_out *out, uint32_t r,
                       uint32_t n)
{
    const moec_topology *t = &j->remap.map->topology;
    uint32_t first = moec_shared_slot(*t, r, 0).v;

    for (uint32_t s = 0; out->slot_counts && s < t->n_shared_slots; s++)
        out->slot_counts[first + s] += n;
    if (out->rank_counts)
        out->rank_counts[r] += n * t->n_shared_slots;
}

static moec_status fill(job *j, const moec_waterfill *w,
                        const moec_dispatch_out *out, moec_error *err)
{
    const moec_remap *m = &j->remap;
    const moec_topology *t = &m->map->topology;
    moec_waterfill_plan plan;
    uint32_t workers;

    for (uint32_t r = 0; r < t->n_ranks; r++)
        plan.load[r] =
            w->mode == MOEC_WATERFILL_STATIC ? routed_of_rank(j, r) : 0;
    MOEC_TRY(moec_waterfill_plan_make(&plan, t, w, m->map->rank, j->n_tokens,
                                      m->top_k, err));
    j->plan = &plan;
    j->by_rank = moec_divider(t->n_local + t->n_shared_slots);
    j->alone_rows = ALONE_ROWS;
    workers = run_rows(j, fill_item);
    j->plan = NULL;
    if (!j->counts)
        return MOEC_OK;
    add_workers(j, workers, t->n_ranks);
    for (uint32_t r = 0; r < t->n_ranks; r++)
        add_shared(j, out, r, j->counts[r]);
    return MOEC_OK;
}

/* Everything behind the choice of a job whose remap is ready. */
static moec_status run(job *j, const moec_waterfill *w,
                       const moec_dispatch_out *out, moec_error *err)
{
    const moec_remap *m = &j->remap;
    uint32_t workers, n_rows;

    atomic_init(&j->bad, MOEC_REMAP_FINE);
    workers = run_rows(j, remap_item);
    if (atomic_load(&j->bad) != MOEC_REMAP_FINE)
        return moec_remap_refuse(m, atomic_load(&j->bad), err);
    if (j->counts) {
        add_workers(j, workers, m->n_slots + 1);
        write_routed(j, out);
    }
    if (w)
        return fill(j, w, out, err);
    if (j->counts) {
        n_rows = j->counts[m->n_slots];
        add_shared(j, out, m->map->rank, n_rows);
    }
    return MOEC_OK;
}

/* run, with the tables in a frame of their own: a call for one token is over
 * before their pages would have been touched. */
__attribute__((noinline)) static moec_status
run_with_tables(job *j, const moec_waterfill *w, const moec_dispatch_out *out,
                moec_error *err)
{
    moec_remap_tables tables;

    moec_remap_prepare(&j->remap, &tables);
    return run(j, w, out, err);
}

static moec_status run_batch(job *j, const moec_waterfill *w,
                             const moec_dispatch_out *out, moec_error *err)
{
    return moec_remap_wants_tables(&j->remap, j->n_tokens)
               ? run_with_tables(j, w, out, err)
               : run(j, w, out, err);
}

/* *w is NULL afterwards where nothing can move. */
static moec_status check_waterfill(const moec_dispatch_map *map,
                                   const moec_waterfill **w, moec_error *err)
{
    const moec_topology *t = &map->topology;

    if (!*w || (*w)->mode == MOEC_WATERFILL_OFF) {
        *w = NULL;
        return MOEC_OK;
    }
    MOEC_TRY(moec_waterfill_check(t, *w, map->rank, err));
    if (t->shared_global && t->n_shared_slots)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "waterfill: slots of shared experts that are global "
                         "name no rank");
    if (t->n_shared_slots == 0)
        *w = NULL;
    return MOEC_OK;
}

/* Take the workspace where counts are needed. */
static moec_status take_workspace(job *j, const moec_kernels *k,
                                  const moec_waterfill *w,
                                  const moec_dispatch_out *out, void *workspace,
                                  uint64_t workspace_bytes, moec_error *err)
{
    uint64_t need =
        workspace_bytes_of(k, j->remap.map, j->n_tokens, j->alone_rows);

    if (!out->slot_counts && !out->rank_counts &&
        !(w && w->mode == MOEC_WATERFILL_STATIC))
        return MOEC_OK;
    if (!workspace || workspace_bytes < need || (uintptr_t)workspace % 64 != 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: workspace of %llu bytes at %p; %llu are "
                         "needed, aligned to 64",
                         (unsigned long long)workspace_bytes, workspace,
                         (unsigned long long)need);
    j->counts = workspace;
    j->stride = stride_of(j->remap.n_slots);
    return MOEC_OK;
}

static moec_status check_args(const moec_kernels *k,
                              const moec_dispatch_map *map,
                              const moec_dispatch_out *out, uint32_t n_tokens,
                              uint32_t n_valid, moec_error *err)
{
    if (!k || !map || !out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: %s is NULL",
                         !k     ? "kernels"
                         : !map ? "map"
                                : "out");
    if (map->struct_bytes < sizeof(*map) || out->struct_bytes < sizeof(*out))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: struct_bytes %u of the map, %u of out, not "
                         "their sizeof",
                         map->struct_bytes, out->struct_bytes);
    if (n_tokens && (!out->slots || !out->weights))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: out.%s is NULL",
                         out->slots ? "weights" : "slots");
    if (n_valid > n_tokens)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: %u valid rows of %u", n_valid, n_tokens);
    return MOEC_OK;
}

/* A job for checked arguments, without a router. */
static void job_init(job *j, const moec_kernels *k,
                     const moec_dispatch_map *map, const moec_dispatch_out *out,
                     uint32_t n_tokens, uint32_t n_valid, uint32_t top_k)
{
    memset(j, 0, sizeof(*j));
    j->remap.map = map;
    j->remap.slots = out->slots;
    j->remap.out_weights = out->weights;
    j->remap.identity = out->identity;
    j->remap.n_valid = n_valid;
    j->remap.top_k = top_k;
    j->pool = k->pool;
    j->rows_an_item = REMAP_ROWS;
    j->alone_rows = ALONE_ROWS;
    j->n_tokens = n_tokens;
}

/* NOLINTNEXTLINE(readability-function-size): kernels.h says its arguments */
moec_status moec_dispatch(const moec_kernels *k, const moec_dispatch_map *map,
                          const moec_waterfill *waterfill, const int32_t *ids,
                          const float *weights, uint32_t n_tokens,
                          uint32_t n_valid, uint32_t top_k,
                          const moec_dispatch_out *out, void *workspace,
                          uint64_t workspace_bytes, moec_error *err)
{
    job j;

    MOEC_TRY(check_args(k, map, out, n_tokens, n_valid, err));
    if (n_tokens && (!ids || !weights))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: %s is NULL", ids ? "weights" : "ids");
    job_init(&j, k, map, out, n_tokens, n_valid, top_k);
    j.remap.ids = ids;
    j.remap.weights = weights;
    MOEC_TRY(moec_remap_init(&j.remap, n_tokens, err));
    MOEC_TRY(check_waterfill(map, &waterfill, err));
    MOEC_TRY(
        take_workspace(&j, k, waterfill, out, workspace, workspace_bytes, err));
    return run_batch(&j, waterfill, out, err);
}

/* ------------------------------------------------------------- fused */

moec_status moec_route_check_fused(const moec_router *router,
                                   const moec_dispatch_map *map,
                                   const moec_dispatch_out *dispatch,
                                   moec_error *err)
{
    const moec_route_config *c = &router->config;

    if (map->n_experts != c->n_experts ||
        map->topology.n_shared_slots != c->n_shared)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: the map has %u experts and %u shared "
                         "slots, the router %u and %u",
                         map->n_experts, map->topology.n_shared_slots,
                         c->n_experts, c->n_shared);
    if (c->n_zero && !dispatch->identity)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: identity is NULL, with %u zero experts",
                         c->n_zero);
    return MOEC_OK;
}

/* The router's own output is optional here. */
static moec_status check_fused(const moec_router *router,
                               const moec_dispatch_map *map,
                               const moec_route_out *out,
                               const moec_dispatch_out *dispatch,
                               moec_error *err)
{
    MOEC_TRY(moec_route_check_fused(router, map, dispatch, err));
    if (!out)
        return MOEC_OK;
    if (out->struct_bytes < sizeof(*out) || !out->ids != !out->weights)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "struct_bytes %u of the route output, not %zu, or "
                         "ids without weights",
                         out->struct_bytes, sizeof(*out));
    return MOEC_OK;
}

/* The choice of all rows, where a block of rows cannot be chosen alone. */
static moec_status route_first(job *j, const moec_route_out *out,
                               void *workspace, uint64_t workspace_bytes,
                               moec_error *err)
{
    moec_route_out all = {.struct_bytes = sizeof(all),
                          .ids = j->ids,
                          .weights = j->weights,
                          .ec = out ? out->ec : NULL};

    MOEC_TRY(
        moec_route(j->router, j->in, &all, workspace, workspace_bytes, err));
    j->router = NULL;
    j->alone_rows = ALONE_ROWS;
    return MOEC_OK;
}

/* NOLINTBEGIN(readability-function-size): kernels.h says its arguments */
moec_status
moec_route_dispatch(const moec_router *router, const moec_route_in *in,
                    const moec_dispatch_map *map,
                    const moec_waterfill *waterfill, const moec_route_out *out,
                    const moec_dispatch_out *dispatch, void *workspace,
                    uint64_t workspace_bytes, moec_error *err)
{
    /* NOLINTEND(readability-function-size) */
    const moec_kernels *k = router ? router->k : NULL;
    job j;

    if (!router)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "router is NULL");
    MOEC_TRY(moec_route_check_in(router, in, err));
    MOEC_TRY(check_args(k, map, dispatch, in->n_tokens, in->n_valid, err));
    MOEC_TRY(check_fused(router, map, out, dispatch, err));
    job_init(&j, k, map, dispatch, in->n_tokens, in->n_valid,
             router->config.top_k);
    j.router = router;
    j.in = in;
    j.rows_an_item = ROUTE_ROWS;
    j.alone_rows = ROUTE_ROWS;
    j.ids = out && out->ids ? out->ids : dispatch->slots;
    j.weights = out && out->ids ? out->weights : dispatch->weights;
    j.remap.ids = j.ids;
    j.remap.weights = j.weights;
    MOEC_TRY(moec_remap_init(&j.remap, in->n_tokens, err));
    MOEC_TRY(check_waterfill(map, &waterfill, err));
    MOEC_TRY(take_workspace(&j, k, waterfill, dispatch, workspace,
                            workspace_bytes, err));
    if (router->config.ec.mode != MOEC_EC_OFF)
        MOEC_TRY(route_first(&j, out, workspace, workspace_bytes, err));
    else if (out && out->ec)
        memset(out->ec, 0, sizeof(*out->ec));
    return run_batch(&j, waterfill, dispatch, err);
}
