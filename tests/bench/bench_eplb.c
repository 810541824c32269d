/* SPDX-License-Identifier: Apache-2.0 */

/*
 * EPLB and planner: the time for 61 layers of 256 experts with 32 redundant
 * slots on 32 ranks, and how much better the planner balances random skewed
 * layers than EPLB. eplb.sh times DeepSeek's torch code on the same loads.
 *
 *   bench_eplb [LAYERS [LOADS SLOTS]]   writes the loads as float32 and EPLB's
 *                                       slots, DeepSeek's sums, as int32
 */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <moec/moec.h>

enum { EXPERTS = 256, REDUNDANT = 32, RANKS = 32, TIMES = 20 };

static uint64_t seed = 0x9e3779b97f4a7c15u;

static double uniform(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (double)((seed >> 11) + 1) / 9007199254740993.0;
}

static double normal(void)
{
    return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
}

/* Log-normal: sigma 0.3 to 2.0, from mild to wild. */
static void draw(float *loads, uint32_t n_layers)
{
    for (uint32_t i = 0; i < n_layers; i++) {
        double sigma = 0.3 + 1.7 * uniform();

        for (uint32_t e = 0; e < EXPERTS; e++)
            loads[(size_t)i * EXPERTS + e] =
                (float)floor(1000 * exp(sigma * normal()));
    }
}

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_spread(const char *what, double *v, uint32_t n)
{
    static const double at[] = {0, 0.1, 0.25, 0.5, 0.75, 0.9, 1};

    qsort(v, n, sizeof(*v), by_value);
    printf("%-22s", what);
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++)
        printf("  %8.5f", v[(size_t)(at[i] * (n - 1))]);
    printf("\n");
}

static moec_status compare(const moec_placement *a, const moec_placement *b,
                           const float *loads, uint32_t n, moec_error *err)
{
    double *ra = calloc(n, sizeof(*ra)), *rb = calloc(n, sizeof(*rb)),
           *excess = calloc(n, sizeof(*excess));
    uint32_t better = 0, worse = 0;
    moec_status st = ra && rb && excess ? MOEC_OK : MOEC_E_NOMEM;

    for (uint32_t i = 0; i < n && st == MOEC_OK; i++) {
        const float *row = loads + (size_t)i * EXPERTS;
        moec_balance x = {0}, y = {0};

        st = moec_placement_balance(a, i, RANKS, row, &x, err);
        if (st == MOEC_OK)
            st = moec_placement_balance(b, i, RANKS, row, &y, err);
        ra[i] = x.ratio;
        rb[i] = y.ratio;
        excess[i] = x.ratio > 1 ? (y.ratio - 1) / (x.ratio - 1) : 1;
        better += y.ratio < x.ratio * (1 - 1e-9);
        worse += y.ratio > x.ratio * (1 + 1e-12);
    }
    if (st == MOEC_OK) {
        printf("%-22s  %8s  %8s  %8s  %8s  %8s  %8s  %8s\n",
               "max/mean of ranks", "least", "10 %", "25 %", "median", "75 %",
               "90 %", "most");
        print_spread("  EPLB", ra, n);
        print_spread("  planner", rb, n);
        print_spread("  excess left", excess, n);
        printf("planner better on %" PRIu32 " of %" PRIu32
               " layers, worse on %" PRIu32 "\n",
               better, n, worse);
    }
    free(ra);
    free(rb);
    free(excess);
    return st;
}

static moec_status run(const float *loads, uint32_t n, moec_error *err)
{
    moec_planner_opts o = MOEC_PLANNER_OPTS_INIT;
    moec_placement *eplb = NULL, *planned = NULL;
    double best = INFINITY, begin;
    moec_status st = MOEC_OK;

    o.eplb.n_redundant = REDUNDANT;
    o.eplb.n_ranks = RANKS;
    for (int i = 0; i < TIMES && st == MOEC_OK; i++) {
        moec_placement_destroy(eplb);
        eplb = NULL;
        begin = now();
        st = moec_eplb(&eplb, NULL, &o.eplb, loads, n, EXPERTS, err);
        best = fmin(best, now() - begin);
    }
    if (st == MOEC_OK) {
        printf("EPLB     %10.3f ms for %" PRIu32 " layers, best of %d\n",
               best * 1e3, n, TIMES);
        begin = now();
        st = moec_planner(&planned, &o, loads, n, EXPERTS, err);
        printf("planner  %10.3f ms\n", (now() - begin) * 1e3);
    }
    if (st == MOEC_OK)
        st = compare(eplb, planned, loads, n, err);
    moec_placement_destroy(eplb);
    moec_placement_destroy(planned);
    return st;
}

static moec_status write_file(const char *path, const void *data, size_t size,
                              size_t n)
{
    FILE *f = fopen(path, "wb");
    int ok = f != NULL && fwrite(data, size, n, f) == n;

    return f != NULL && fclose(f) == 0 && ok ? MOEC_OK : MOEC_E_IO;
}

static moec_status write_files(const float *loads, uint32_t n, char **argv,
                               moec_error *err)
{
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;
    moec_placement *p = NULL;
    moec_status st =
        write_file(argv[2], loads, sizeof(*loads), (size_t)n * EXPERTS);

    o.n_redundant = REDUNDANT;
    o.n_ranks = RANKS;
    o.accum = MOEC_EPLB_F32;
    if (st == MOEC_OK)
        st = moec_eplb(&p, NULL, &o, loads, n, EXPERTS, err);
    if (st == MOEC_OK)
        st = write_file(argv[3], moec_placement_row(p, 0), sizeof(int32_t),
                        (size_t)n * (EXPERTS + REDUNDANT));
    moec_placement_destroy(p);
    return st;
}

int main(int argc, char **argv)
{
    uint32_t n = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 61;
    float *loads = calloc((size_t)n * EXPERTS, sizeof(*loads));
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = MOEC_E_NOMEM;

    if (loads != NULL) {
        draw(loads, n);
        st = argc > 3 ? write_files(loads, n, argv, &err) : MOEC_OK;
        if (st == MOEC_OK)
            st = run(loads, n, &err);
    }
    if (st != MOEC_OK)
        (void)fprintf(stderr, "bench_eplb: %s\n", err.text);
    free(loads);
    return st == MOEC_OK ? 0 : 1;
}
