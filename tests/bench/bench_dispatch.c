/* SPDX-License-Identifier: Apache-2.0
 *
 * What everything behind the choice costs: the fused call beside plain
 * choice, and align, permute and combine beside memcpy. Each figure is the
 * least of many runs, the two sides of a ratio run in turn.
 *
 * usage: bench_dispatch [ISA [THREADS]] */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <moec/kernels.h>

#define E       256u
#define K       8u
#define S       1u
#define W       8u
#define P       288u
#define C       (K + S)
#define N_SLOTS (P + S * W)

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *get(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);

    if (!p)
        exit(1);
    memset(p, 1, bytes);
    return p;
}

static void ok(moec_status st, const moec_error *err)
{
    if (st != MOEC_OK) {
        (void)fprintf(stderr, "%s\n", err->text);
        exit(1);
    }
}

static void least(double *best, double t0)
{
    double t = now() - t0;

    if (t < *best)
        *best = t;
}

struct shape {
    const char *name;
    moec_score score;
    uint32_t n_group;
    moec_replica_rule rule;
    moec_waterfill_mode waterfill;
};

static uint32_t table[E], cand_first[E + 1], cand[P];

static void make_map(moec_dispatch_map *map, const struct shape *s)
{
    uint32_t n = 0;

    memset(map, 0, sizeof(*map));
    map->struct_bytes = sizeof(*map);
    map->topology = (moec_topology){P, W, P / W, S, 0};
    map->n_experts = E;
    map->rule = s->rule;
    map->rank = 3;
    for (uint32_t e = 0; e < E; e++) {
        cand_first[e] = n;
        for (uint32_t p = e; p < P; p += E)
            cand[n++] = p;
        table[e] = cand[n - 1];
    }
    cand_first[E] = n;
    map->table = table;
    map->cand_first = cand_first;
    map->cand = cand;
}

static void bench_fused(const moec_kernels *k, uint32_t T,
                        const struct shape *s)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    moec_dispatch_map map;
    moec_waterfill w = {.mode = s->waterfill};
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    float *logits = get((size_t)T * E * 4), *bias = get(E * 4);
    moec_route_out out = {sizeof(out), get((size_t)T * C * 4),
                          get((size_t)T * C * 4), NULL};
    moec_dispatch_out d = {
        sizeof(d), get((size_t)T * C * 4), get((size_t)T * C * 4),
        NULL,      get(N_SLOTS * 4),       get(W * 4)};
    double plain = 1e9, fused = 1e9, after = 1e9;
    uint64_t bytes;
    void *ws;

    for (size_t i = 0; i < (size_t)T * E; i++)
        logits[i] = (float)rand() / (float)RAND_MAX * 8.0f - 4.0f;
    for (uint32_t e = 0; e < E; e++)
        bias[e] = (float)e * 1e-4f;
    c.n_experts = E;
    c.top_k = K;
    c.n_shared = S;
    c.score = s->score;
    c.norm = MOEC_NORM_SUM;
    c.rsf = 2.5f;
    c.n_group = s->n_group;
    c.topk_group = s->n_group / 2;
    c.group_score = MOEC_GROUP_TOP2;
    ok(moec_router_create(&r, k, &c, &err), &err);
    in.n_tokens = in.n_valid = T;
    in.logits = logits;
    in.bias = s->score == MOEC_SCORE_SIGMOID ? bias : NULL;
    make_map(&map, s);
    bytes = moec_route_dispatch_workspace_bytes(r, &map, T);
    ws = get(bytes);
    for (uint32_t turn = 0; turn < 20 + 200000 / T; turn++) {
        double t0 = now();

        ok(moec_route(r, &in, &out, NULL, 0, &err), &err);
        least(&plain, t0);
        t0 = now();
        ok(moec_route_dispatch(r, &in, &map, &w, NULL, &d, ws, bytes, &err),
           &err);
        least(&fused, t0);
        t0 = now();
        ok(moec_dispatch(k, &map, &w, out.ids, out.weights, T, T, K, &d, ws,
                         bytes, &err),
           &err);
        least(&after, t0);
    }
    printf("%-28s T %5u: choice %7.1f ns, fused %7.1f ns a row (%.3fx), "
           "dispatch alone %5.1f ns\n",
           s->name, T, plain / T * 1e9, fused / T * 1e9, fused / plain,
           after / T * 1e9);
    moec_router_destroy(r);
    free(logits);
    free(bias);
    free(out.ids);
    free(out.weights);
    free(d.slots);
    free(d.weights);
    free(d.slot_counts);
    free(d.rank_counts);
    free(ws);
}

static void bench_align(const moec_kernels *k, uint32_t T, uint32_t n_slots,
                        uint32_t local)
{
    uint64_t n = (uint64_t)T * C, n_padded;
    int32_t *slots = get(n * 4);
    uint64_t bytes = moec_align_workspace_bytes(k, n, local);
    uint64_t capacity = moec_align_capacity(n, local, 64);
    uint32_t *sorted = get(capacity * 4), *ids = get(capacity / 64 * 4);
    void *ws = get(bytes);
    moec_error err = MOEC_ERROR_INIT;
    double best = 1e9;

    for (uint64_t i = 0; i < n; i++)
        slots[i] = rand() % (int)n_slots;
    for (int turn = 0; turn < 100; turn++) {
        double t0 = now();

        ok(moec_align(k, slots, n, 0, local, 64, sorted, ids, NULL, &n_padded,
                      ws, bytes, &err),
           &err);
        least(&best, t0);
    }
    printf("align  T %5u, %4u of %4u slots: %8.1f us, %.2f ns a column\n", T,
           local, n_slots, best * 1e6, best / (double)n * 1e9);
    free(slots);
    free(sorted);
    free(ids);
    free(ws);
}

static void bench_combine(const moec_kernels *k, uint32_t T, uint32_t H)
{
    size_t rows = (size_t)T * C, y_bytes = rows * H * 4;
    float *y = get(y_bytes), *out = get((size_t)T * H * 4);
    float *to = get(y_bytes), *weights = get(rows * 4);
    int32_t *slots = get(rows * 4);
    uint32_t *sorted = get(rows * 4);
    moec_combine_in in = {.struct_bytes = sizeof(in),
                          .n_tokens = T,
                          .n_cols = C,
                          .scaled_cols = K,
                          .hidden = H,
                          .slots = slots,
                          .weights = weights,
                          .y = y,
                          .scale = 2.5f};
    double copy = 1e9, permute = 1e9, combine = 1e9, sum = 1e9;
    double moved = (double)y_bytes * (C + 1) / C;
    moec_error err = MOEC_ERROR_INIT;
    volatile float sink;

    for (size_t i = 0; i < rows; i++)
        sorted[i] = (uint32_t)(i * 7919 % rows);
    for (int turn = 0; turn < 8; turn++) {
        double t0 = now();
        float acc = 0;

        memcpy(to, y, y_bytes);
        least(&copy, t0);
        t0 = now();
        ok(moec_permute(k, y, (uint64_t)H * 4, sorted, rows, rows, 1, to, &err),
           &err);
        least(&permute, t0);
        t0 = now();
        ok(moec_combine(k, &in, out, &err), &err);
        least(&combine, t0);
        t0 = now();
        for (size_t i = 0; i < rows * H; i += 16)
            acc += y[i];
        sink = acc;
        least(&sum, t0);
    }
    (void)sink;
    printf("T %5u, H %5u: memcpy %5.2f GB/s (read + write), touching every "
           "line %5.2f, permute %5.2f, combine %5.2f\n",
           T, H, (double)y_bytes * 2e-9 / copy, (double)y_bytes * 1e-9 / sum,
           (double)y_bytes * 2e-9 / permute, moved * 1e-9 / combine);
    free(y);
    free(out);
    free(to);
    free(weights);
    free(slots);
    free(sorted);
}

int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        {"softmax, table", MOEC_SCORE_SOFTMAX, 0, MOEC_REPLICA_TABLE,
         MOEC_WATERFILL_OFF},
        {"sigmoid + bias, table", MOEC_SCORE_SIGMOID, 0, MOEC_REPLICA_TABLE,
         MOEC_WATERFILL_OFF},
        {"grouped, row + rank + layer", MOEC_SCORE_SIGMOID, 8,
         MOEC_REPLICA_ROW_RANK_LAYER, MOEC_WATERFILL_OFF},
        {"softmax, row + rank + layer", MOEC_SCORE_SOFTMAX, 0,
         MOEC_REPLICA_ROW_RANK_LAYER, MOEC_WATERFILL_OFF},
        {"softmax, table, waterfill", MOEC_SCORE_SOFTMAX, 0, MOEC_REPLICA_TABLE,
         MOEC_WATERFILL_STATIC},
    };
    static const uint32_t sizes[] = {1, 16, 1024, 8192};
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_kernels *k = NULL;

    if (argc > 1)
        o.isa = (moec_isa)moec_isa_parse(argv[1]);
    if (argc > 2)
        o.n_threads = (uint32_t)strtoul(argv[2], NULL, 10);
    ok(moec_kernels_open(&k, &o, &err), &err);
    printf("%s, %u threads; E %u, K %u, S %u, P %u, W %u\n",
           moec_isa_name(moec_kernels_isa(k)), moec_kernels_n_threads(k), E, K,
           S, P, W);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        for (size_t j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++)
            bench_fused(k, sizes[j], &shapes[i]);
    bench_align(k, 1, N_SLOTS, N_SLOTS);
    bench_align(k, 128, N_SLOTS, N_SLOTS);
    bench_align(k, 8192, N_SLOTS, N_SLOTS);
    bench_align(k, 8192, N_SLOTS, N_SLOTS / W);
    bench_align(k, 8192, 8192, 8192);
    bench_combine(k, 16, 2048);
    bench_combine(k, 512, 7168);
    moec_kernels_close(k);
    return 0;
}
