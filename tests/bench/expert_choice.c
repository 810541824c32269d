/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice beside plain top-K: time, its ratio to plain top-K of the same
 * rows in the same run, balance and its price, for a router near 1.4 times the
 * mean and a skewed one. A program, not a test:
 *
 *   build/release/tests/bench_expert_choice [--cpu=ISA] [--threads=N] [T E K]
 *   build/release/tests/bench_expert_choice --json
 *
 * --json prints the shapes of the peers' figure "expert-choice" (standard
 * normal logits, softmax, factor 1.25), a JSON object a line. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <moec/kernels.h>

#define N_INPUTS 4 /* taken in turn, so that branches are not learnt */
#define N_RUNS   60

struct shape {
    uint32_t n_tokens, n_experts, top_k;
};

struct figure {
    double us_min, us_median, max_over_mean, mass, empty, capacity;
};

static uint64_t rng_state = 1;

static double uniform(void)
{
    rng_state = rng_state * UINT64_C(6364136223846793005) + 1;
    return ((double)(rng_state >> 11) + 0.5) * 0x1p-53;
}

static double gauss(void)
{
    return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform());
}

static void *get(uint64_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) & ~UINT64_C(63));

    if (!p) {
        perror("bench_expert_choice");
        exit(1);
    }
    memset(p, 0, bytes);
    return p;
}

/* Standard normal logits, plus a level of each expert. */
static void draw(float *logits, struct shape s, double level)
{
    double *levels = get(s.n_experts * sizeof(*levels));

    for (uint32_t e = 0; e < s.n_experts; e++)
        levels[e] = level * gauss();
    for (uint64_t i = 0; i < (uint64_t)s.n_tokens * s.n_experts; i++)
        logits[i] = (float)(gauss() + levels[i % s.n_experts]);
    free(levels);
}

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static void fail(const moec_error *err)
{
    fprintf(stderr, "bench_expert_choice: %s\n", err->text);
    exit(1);
}

/* Balance and score mass of one result. */
static void judge(const moec_route_out *out, const float *logits,
                  struct shape s, struct figure *f)
{
    uint32_t *loads = get(s.n_experts * sizeof(*loads));
    uint64_t n_empty = 0;

    f->mass = 0.0;
    for (uint32_t t = 0; t < s.n_tokens; t++) {
        const float *x = logits + (uint64_t)t * s.n_experts;
        double sum = 0.0;

        for (uint32_t e = 0; e < s.n_experts; e++)
            sum += exp((double)x[e]);
        for (uint32_t k = 0; k < s.top_k; k++) {
            int32_t id = out->ids[(uint64_t)t * s.top_k + k];

            if (id < 0) {
                n_empty++;
                continue;
            }
            loads[id]++;
            f->mass += exp((double)x[id]) / sum;
        }
    }
    f->empty = (double)n_empty / ((double)s.n_tokens * s.top_k);
    f->max_over_mean = moec_load_stats_of(loads, s.n_experts).max_over_mean;
    free(loads);
}

static struct figure run(const moec_kernels *k, struct shape s,
                         moec_ec_config ec, float *const *inputs,
                         uint32_t n_runs)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_route_in in = MOEC_ROUTE_IN_INIT;
    moec_route_out out = {.struct_bytes = sizeof(out)};
    uint64_t cells = (uint64_t)s.n_tokens * s.top_k, bytes;
    moec_error err = MOEC_ERROR_INIT;
    double *us = get(n_runs * sizeof(*us));
    moec_router *r = NULL;
    struct figure f = {0};
    moec_ec_stats stats;
    void *ws;

    c.n_experts = s.n_experts;
    c.top_k = s.top_k;
    c.norm = MOEC_NORM_SUM;
    c.ec = ec;
    if (moec_router_create(&r, k, &c, &err) != MOEC_OK)
        fail(&err);
    bytes = moec_route_workspace_bytes(r, s.n_tokens);
    ws = get(bytes);
    in.n_tokens = in.n_valid = s.n_tokens;
    out.ids = get(cells * 4);
    out.weights = get(cells * 4);
    out.ec = &stats;
    for (uint32_t i = 0; i < n_runs; i++) {
        double start = now_us();

        in.logits = inputs[i % N_INPUTS];
        if (moec_route(r, &in, &out, ws, bytes, &err) != MOEC_OK)
            fail(&err);
        us[i] = now_us() - start;
    }
    qsort(us, n_runs, sizeof(*us), ascending);
    f.us_min = us[0];
    f.us_median = us[n_runs / 2];
    f.capacity = stats.capacity;
    judge(&out, in.logits, s, &f);
    moec_router_destroy(r);
    free(ws);
    free(out.ids);
    free(out.weights);
    free(us);
    return f;
}

/* The level at which plain top-K's fullest expert has `aim` times the mean. */
static double level_for(const moec_kernels *k, struct shape s, double aim)
{
    float *logits = get((uint64_t)s.n_tokens * s.n_experts * 4);
    float *const inputs[N_INPUTS] = {logits, logits, logits, logits};
    moec_ec_config off = {.mode = MOEC_EC_OFF};
    double low = 0.0, high = 2.0;

    for (int i = 0; i < 8; i++) {
        double mid = (low + high) / 2;

        rng_state = 7;
        draw(logits, s, mid);
        if (run(k, s, off, inputs, 1).max_over_mean < aim)
            low = mid;
        else
            high = mid;
    }
    free(logits);
    return low;
}

struct line {
    const char *name;
    moec_ec_mode mode;
    moec_ec_fill fill;
    uint32_t ppm;
};

static void table(const moec_kernels *k, struct shape s, double aim)
{
    static const struct line lines[] = {
        {"plain top-k", MOEC_EC_OFF, MOEC_EC_FILL_MISSING, 0},
        {"fill-missing", MOEC_EC_ON, MOEC_EC_FILL_MISSING, 1250000},
        {"full-row", MOEC_EC_ON, MOEC_EC_FULL_ROW, 1250000},
        {"pad", MOEC_EC_ON, MOEC_EC_PAD, 1250000},
        {"balanced", MOEC_EC_ON, MOEC_EC_BALANCED, 1000000},
        {"balanced", MOEC_EC_ON, MOEC_EC_BALANCED, 1030000},
    };
    float *inputs[N_INPUTS];
    double level = level_for(k, s, aim);
    struct figure plain = {0};

    rng_state = 7;
    for (int i = 0; i < N_INPUTS; i++) {
        inputs[i] = get((uint64_t)s.n_tokens * s.n_experts * 4);
        draw(inputs[i], s, level);
    }
    printf("T %u E %u K %u, softmax, %s, %u thread(s), plain near %.1fx\n"
           "%-13s %6s %9s %9s %7s %9s %8s %8s\n",
           s.n_tokens, s.n_experts, s.top_k, moec_isa_name(moec_kernels_isa(k)),
           moec_kernels_n_threads(k), aim, "", "factor", "us min", "median",
           "x plain", "max/mean", "mass %", "empty %");
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        moec_ec_config ec = {.mode = lines[i].mode,
                             .fill = lines[i].fill,
                             .capacity_ppm = lines[i].ppm};
        struct figure f = run(k, s, ec, inputs, N_RUNS);

        if (i == 0)
            plain = f;
        printf("%-13s %6.2f %9.1f %9.1f %7.2f %9.3f %8.3f %8.3f\n",
               lines[i].name, lines[i].ppm / 1e6, f.us_min, f.us_median,
               f.us_min / plain.us_min, f.max_over_mean,
               100.0 * f.mass / plain.mass, 100.0 * f.empty);
    }
    printf("\n");
    for (int i = 0; i < N_INPUTS; i++)
        free(inputs[i]);
}

static void json_lines(const moec_kernels *k)
{
    static const struct shape shapes[] = {{4096, 256, 8}, {128, 64, 8}};

    for (size_t i = 0; i < 2; i++) {
        moec_ec_config ec = {.mode = MOEC_EC_ON, .capacity_ppm = 1250000};
        float *inputs[N_INPUTS];
        struct figure f;

        for (int j = 0; j < N_INPUTS; j++) {
            inputs[j] =
                get((uint64_t)shapes[i].n_tokens * shapes[i].n_experts * 4);
            draw(inputs[j], shapes[i], 0.0);
        }
        f = run(k, shapes[i], ec, inputs, i ? 2000 : N_RUNS);
        printf("{\"figure\": \"expert-choice\", \"peer\": \"moec\", "
               "\"T\": %u, \"E\": %u, \"k\": %u, \"threads\": %u, "
               "\"us_min\": %.1f, \"us_median\": %.1f}\n",
               shapes[i].n_tokens, shapes[i].n_experts, shapes[i].top_k,
               moec_kernels_n_threads(k), f.us_min, f.us_median);
        for (int j = 0; j < N_INPUTS; j++)
            free(inputs[j]);
    }
}

int main(int argc, char **argv)
{
    moec_kernels_opts opts = MOEC_KERNELS_OPTS_INIT;
    struct shape s = {4096, 256, 8};
    uint32_t *const sizes[] = {&s.n_tokens, &s.n_experts, &s.top_k};
    moec_error err = MOEC_ERROR_INIT;
    int json = 0, n_sizes = 0;
    moec_kernels *k;

    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--cpu=", 6) == 0)
            opts.isa = (moec_isa)moec_isa_parse(argv[i] + 6);
        else if (strncmp(argv[i], "--threads=", 10) == 0)
            opts.n_threads = (uint32_t)strtoul(argv[i] + 10, NULL, 10);
        else if (strcmp(argv[i], "--json") == 0)
            json = 1;
        else if (n_sizes < 3)
            *sizes[n_sizes++] = (uint32_t)strtoul(argv[i], NULL, 10);
    }
    if (moec_kernels_open(&k, &opts, &err) != MOEC_OK)
        fail(&err);
    if (json) {
        json_lines(k);
    } else {
        table(k, s, 1.4);
        table(k, s, 5.0);
    }
    moec_kernels_close(k);
    return 0;
}
