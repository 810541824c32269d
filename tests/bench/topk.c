/* SPDX-License-Identifier: Apache-2.0
 *
 * The choice in nanoseconds a row, as JSON lines of the kind that other
 * routers' benchmarks print, or with --table to be read. Inputs rotate over
 * many batches, because a repeated batch is learnt by the branch predictor.
 *
 *   topk [--table] [--isa NAME]... [--threads N]... [--seconds S]
 *        [--variant NAME] [--rows N] */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <moec/kernels.h>

struct variant {
    const char *name;
    uint32_t n_experts, top_k, n_group, topk_group;
    moec_score score;
    bool biased;
};

/* The first three are those of the peers. */
static const struct variant variants[] = {
    {"softmax-128", 128, 8, 1, 1, MOEC_SCORE_SOFTMAX, false},
    {"biased-384", 384, 8, 1, 1, MOEC_SCORE_SIGMOID, true},
    {"grouped-256", 256, 8, 8, 4, MOEC_SCORE_SIGMOID, true},
    {"softmax-256", 256, 8, 1, 1, MOEC_SCORE_SOFTMAX, false},
    {"softmax-8", 8, 2, 1, 1, MOEC_SCORE_SOFTMAX, false},
    {"softmax-512", 512, 10, 1, 1, MOEC_SCORE_SOFTMAX, false},
    {"softplus-256", 256, 6, 1, 1, MOEC_SCORE_SQRT_SOFTPLUS, true},
    {"softmax-bias-64", 64, 6, 1, 1, MOEC_SCORE_SOFTMAX, true},
    {"softmax-512-22", 512, 22, 1, 1, MOEC_SCORE_SOFTMAX, false},
    {"softmax-320-64", 320, 64, 1, 1, MOEC_SCORE_SOFTMAX, false},
    {"softmax-4096-64", 4096, 64, 1, 1, MOEC_SCORE_SOFTMAX, false},
};
static const uint32_t row_counts[] = {1, 16, 128, 1024, 8192};

#define N_VARIANTS (sizeof(variants) / sizeof(variants[0]))
#define N_ROWS     (sizeof(row_counts) / sizeof(row_counts[0]))
#define BLOCKS     61

struct options {
    bool table;
    bool isa[4];
    uint32_t threads[8], n_threads;
    double seconds;
    const char *variant;
    uint32_t rows;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t state = 0x853c49e6748fea9bu;

static float normal(void)
{
    float sum = 0.0f;

    for (int i = 0; i < 12; i++) { /* near enough to a bell */
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        sum += (float)(state >> 40) * 0x1p-24f;
    }
    return sum - 6.0f;
}

static void *need(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    if (!p) {
        fputs("topk: out of memory\n", stderr);
        exit(1);
    }
    return p;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Seconds a call: the least of some blocks, and their median. */
struct figure {
    double min, median;
};

struct run {
    moec_router *router;
    moec_route_in in;
    moec_route_out out;
    float *batches;
    uint32_t n_batches;
    size_t batch;
};

static void call(struct run *r, uint32_t i)
{
    moec_error err = MOEC_ERROR_INIT;

    r->in.logits = r->batches + i % r->n_batches * r->batch;
    if (moec_route(r->router, &r->in, &r->out, NULL, 0, &err) != MOEC_OK) {
        fprintf(stderr, "topk: %s\n", err.text);
        exit(1);
    }
}

static struct figure measure(struct run *r, double seconds)
{
    double took[BLOCKS], start, per;
    uint32_t n, at = 0;
    struct figure f;

    for (uint32_t i = 0; i < 3; i++)
        call(r, i);
    start = now();
    for (uint32_t i = 0; i < 8; i++)
        call(r, i);
    per = (now() - start) / 8;
    n = 1 + (uint32_t)(seconds / BLOCKS / (per > 1e-8 ? per : 1e-8));
    for (int b = 0; b < BLOCKS; b++) {
        start = now();
        for (uint32_t i = 0; i < n; i++)
            call(r, at++);
        took[b] = (now() - start) / n;
    }
    qsort(took, BLOCKS, sizeof(took[0]), by_value);
    f.min = took[0];
    f.median = took[BLOCKS / 2];
    return f;
}

static void report(const struct options *o, const struct variant *v,
                   const moec_kernels *k, uint32_t rows, struct figure f)
{
    const char *isa = moec_isa_name(moec_kernels_isa(k));
    uint32_t threads = moec_kernels_n_threads(k);
    double ns = 1e9 / rows;

    if (o->table)
        printf("%-16s %-7s %2u thread%s T %5u: %8.1f ns/row (median %8.1f) "
               "%9.2f us\n",
               v->name, isa, threads, threads == 1 ? " " : "s", rows,
               f.min * ns, f.median * ns, f.min * 1e6);
    else
        printf("{\"figure\": \"topk\", \"peer\": \"moec\", \"isa\": \"%s\", "
               "\"variant\": \"%s\", \"E\": %u, \"k\": %u, \"T\": %u, "
               "\"threads\": %u, \"ns_per_row_min\": %.1f, "
               "\"ns_per_row_median\": %.1f, \"us_min\": %.2f}\n",
               isa, v->name, v->n_experts, v->top_k, rows, threads, f.min * ns,
               f.median * ns, f.min * 1e6);
    fflush(stdout);
}

static moec_router *router_of(const struct variant *v, const moec_kernels *k)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_router *r = NULL;

    c.n_experts = v->n_experts;
    c.top_k = v->top_k;
    c.n_group = v->n_group;
    c.topk_group = v->topk_group;
    c.group_score = MOEC_GROUP_TOP2;
    c.score = v->score;
    c.norm = MOEC_NORM_SUM;
    if (v->biased) {
        c.rsf = 2.5f;
        c.rsf_on = MOEC_RSF_ON_WEIGHTS;
    }
    if (moec_router_create(&r, k, &c, &err) != MOEC_OK) {
        fprintf(stderr, "topk: %s\n", err.text);
        exit(1);
    }
    return r;
}

static void bench(const struct options *o, const struct variant *v,
                  const moec_kernels *k, uint32_t rows)
{
    struct run r = {.in = MOEC_ROUTE_IN_INIT};
    size_t cells = (size_t)rows * v->top_k;
    float *bias = need(v->n_experts, sizeof(*bias));

    r.batch = (size_t)rows * v->n_experts;
    r.n_batches = (uint32_t)((8u << 20) / (4 * r.batch));
    r.n_batches = r.n_batches < 2 ? 2 : r.n_batches;
    r.n_batches = r.n_batches > 512 ? 512 : r.n_batches;
    r.batches = need(r.batch * r.n_batches, sizeof(*r.batches));
    for (size_t i = 0; i < r.batch * r.n_batches; i++)
        r.batches[i] = normal();
    for (uint32_t i = 0; i < v->n_experts; i++)
        bias[i] = normal() * 0.25f;
    r.out.struct_bytes = sizeof(r.out);
    r.out.ids = need(cells, sizeof(*r.out.ids));
    r.out.weights = need(cells, sizeof(*r.out.weights));
    r.in.n_tokens = rows;
    r.in.n_valid = rows;
    r.in.bias = v->biased ? bias : NULL;
    r.router = router_of(v, k);
    report(o, v, k, rows, measure(&r, o->seconds));
    moec_router_destroy(r.router);
    free(r.batches);
    free(r.out.ids);
    free(r.out.weights);
    free(bias);
}

static int usage(void)
{
    fputs("usage: topk [--table] [--isa NAME]... [--threads N]... "
          "[--seconds S] [--variant NAME] [--rows N]\n",
          stderr);
    return 2;
}

static bool parse(int argc, char **argv, struct options *o)
{
    bool any_isa = false;

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--table") == 0) {
            o->table = true;
            continue;
        }
        if (!value)
            return false;
        if (strcmp(argv[i], "--isa") == 0 && moec_isa_parse(value) > 0) {
            o->isa[moec_isa_parse(value)] = true;
            any_isa = true;
        } else if (strcmp(argv[i], "--threads") == 0 && o->n_threads < 8) {
            o->threads[o->n_threads++] = (uint32_t)strtoul(value, NULL, 10);
        } else if (strcmp(argv[i], "--seconds") == 0) {
            o->seconds = strtod(value, NULL);
        } else if (strcmp(argv[i], "--variant") == 0) {
            o->variant = value;
        } else if (strcmp(argv[i], "--rows") == 0) {
            o->rows = (uint32_t)strtoul(value, NULL, 10);
        } else {
            return false;
        }
        i++;
    }
    for (int i = 1; i < 4 && !any_isa; i++)
        o->isa[i] = true;
    if (o->n_threads == 0)
        o->threads[o->n_threads++] = 1;
    return true;
}

/* All variants and row counts on one back end, where the CPU has it. */
static void bench_all(const struct options *o, moec_isa isa, uint32_t threads)
{
    moec_kernels_opts ko = MOEC_KERNELS_OPTS_INIT;
    moec_kernels *k = NULL;

    ko.isa = isa;
    ko.n_threads = threads;
    if (moec_kernels_open(&k, &ko, NULL) != MOEC_OK)
        return;
    for (size_t v = 0; v < N_VARIANTS; v++) {
        if (o->variant ? strcmp(o->variant, variants[v].name) != 0 : v > 2)
            continue;
        for (size_t t = 0; t < N_ROWS; t++)
            if (!o->rows || o->rows == row_counts[t])
                bench(o, &variants[v], k, row_counts[t]);
    }
    moec_kernels_close(k);
}

int main(int argc, char **argv)
{
    struct options o = {.seconds = 0.1};

    if (!parse(argc, argv, &o))
        return usage();
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++)
        for (uint32_t i = 0; o.isa[isa] && i < o.n_threads; i++)
            bench_all(&o, (moec_isa)isa, o.threads[i]);
    return 0;
}
