/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert FFN, FAST: one JSON line a figure, in the keys of the peers' script,
 * and beside each the read bandwidth of the same threads over the same
 * weights, measured between the calls: what no FFN can beat at few tokens.
 * Batches rotate, so that experts come from memory. Minima, because the
 * machine is not ours alone.
 *
 * usage: bench_ffn [--table] [--exact] [--isa NAME] [--format NAME]
 *                  [--threads N] [--tokens N] [--seconds S] */

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <moec/kernels.h>

#include "base/base.h"
#include "guarded.h"

enum { E = 128, H = 2048, I = 768, K = 8, BATCHES = 64 };
#define READ_ITEM (256u << 10)

struct options {
    int table, exact;
    const char *isa, *format;
    uint32_t threads, tokens;
    double seconds;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ------------------------------------------------------------- weights */

static const struct format {
    const char *name;
    moec_matrix m;
} formats[] = {
    {"bf16", {.format = MOEC_WFORMAT_BF16}},
    {"fp8",
     {.format = MOEC_WFORMAT_FP8,
      .scale_dtype = MOEC_DTYPE_F32,
      .block_out = 128,
      .block_in = 128}},
    {"int4",
     {.format = MOEC_WFORMAT_INT4,
      .scale_dtype = MOEC_DTYPE_BF16,
      .block_in = 32}},
    {"mxfp4",
     {.format = MOEC_WFORMAT_MXFP4,
      .scale_dtype = MOEC_DTYPE_U8,
      .block_in = 32}},
    {"nvfp4",
     {.format = MOEC_WFORMAT_NVFP4,
      .scale_dtype = MOEC_DTYPE_F8_E4M3,
      .block_in = 16}},
    {"f32", {.format = MOEC_WFORMAT_F32}},
};

static double bytes_of(moec_wformat f)
{
    switch (f) {
    case MOEC_WFORMAT_F32:
        return 4;
    case MOEC_WFORMAT_BF16:
    case MOEC_WFORMAT_F16:
        return 2;
    case MOEC_WFORMAT_FP8:
        return 1;
    case MOEC_WFORMAT_INT4:
    case MOEC_WFORMAT_MXFP4:
    case MOEC_WFORMAT_NVFP4:
    case MOEC_WFORMAT_AWQ:
    case MOEC_WFORMAT_GPTQ:
        break;
    }
    return 0.5;
}

/* E matrices: one random expert, copied. */
static void make(moec_matrix *m, uint32_t out, uint32_t in, uint64_t *rng)
{
    size_t data = (size_t)(out * bytes_of(m->format) * in), scale = 0;
    uint8_t *d, *s;

    m->struct_bytes = sizeof(*m);
    m->n_out = out;
    m->n_in = in;
    if (m->block_in)
        scale = (size_t)out / (m->block_out ? m->block_out : 1) *
                (in / m->block_in) * (moec_dtype_bits(m->scale_dtype) / 8);
    d = aligned_alloc(4096, data * E);
    s = aligned_alloc(4096, (scale * E + 4095) / 4096 * 4096 + 4096);
    if (!d || !s)
        abort();
    for (size_t i = 0; i < data; i++) {
        uint8_t b = (uint8_t)random_u64(rng);

        /* bf16 and f32 of about 0.01; E4M3 without NaN */
        if (m->format == MOEC_WFORMAT_BF16 && i % 2)
            b = (uint8_t)((b & 0x80) | 0x3c);
        else if (m->format == MOEC_WFORMAT_F32 && i % 4 == 3)
            b = (uint8_t)((b & 0x80) | 0x3c);
        else if (m->format == MOEC_WFORMAT_FP8)
            b &= 0xb7;
        d[i] = b;
    }
    for (size_t i = 0; i < scale; i++) {
        const float small = 0.01f;
        uint8_t f[4];

        memcpy(f, &small, 4);
        s[i] = m->scale_dtype == MOEC_DTYPE_F32    ? f[i % 4]
               : m->scale_dtype == MOEC_DTYPE_BF16 ? f[2 + i % 2]
               : m->scale_dtype == MOEC_DTYPE_U8   ? 120
                                                   : 0x20;
    }
    for (size_t e = 1; e < E; e++) {
        memcpy(d + e * data, d, data);
        memcpy(s + e * scale, s, scale);
    }
    m->data = d;
    m->data_stride = data;
    m->scale = scale ? s : NULL;
    m->scale_stride = scale;
}

/* ------------------------------------------------------------- batches */

struct batch {
    uint32_t *sorted;
    uint64_t *first;
};

static void route(struct batch *b, uint32_t tokens, uint64_t *rng)
{
    uint32_t(*ids)[K] = malloc(sizeof(*ids) * tokens), n = 0;

    b->sorted = malloc(sizeof(uint32_t) * tokens * K);
    b->first = malloc(sizeof(uint64_t) * (E + 1));
    if (!ids || !b->sorted || !b->first)
        abort();
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t k = 0; k < K; k++) {
            uint32_t id, j = 0;

            do {
                id = random_below(rng, E);
                for (j = 0; j < k && ids[t][j] != id; j++)
                    continue;
            } while (j < k);
            ids[t][k] = id;
        }
    for (uint32_t e = 0; e < E; e++) {
        b->first[e] = n;
        for (uint32_t t = 0; t < tokens; t++)
            for (uint32_t k = 0; k < K; k++)
                if (ids[t][k] == e)
                    b->sorted[n++] = t * K + k;
    }
    b->first[E] = n;
    free(ids);
}

/* ---------------------------------------------------------------- read */

struct reading {
    const uint8_t *p;
    uint64_t sums[64];
};

typedef uint64_t v8 __attribute__((vector_size(64)));

static void read_item(void *ctx, size_t item, uint32_t worker)
{
    struct reading *r = ctx;
    const v8 *p = (const v8 *)(const void *)(r->p + item * READ_ITEM);
    v8 s[4] = {{0}};

    for (size_t i = 0; i < READ_ITEM / sizeof(v8); i += 4) {
        s[0] += p[i];
        s[1] += p[i + 1];
        s[2] += p[i + 2];
        s[3] += p[i + 3];
    }
    r->sums[worker % 64] += (s[0] + s[1] + s[2] + s[3])[0];
}

/* Bytes per second of 64 MiB somewhere in the weights. */
static double read_once(moec_pool *pool, const moec_matrix *m, uint32_t turn)
{
    static struct reading r;
    size_t items = (64u << 20) / READ_ITEM, span = items * READ_ITEM;
    uint64_t room = m->data_stride * E - span;
    double t;

    r.p = (const uint8_t *)m->data + turn * span % room / 4096 * 4096;
    t = now();
    moec_pool_run(pool, items, read_item, &r);
    return (double)span / (now() - t);
}

/* ------------------------------------------------------------- measure */

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void report(const struct options *o, const moec_kernels *k,
                   const struct format *f, uint32_t tokens, double low,
                   double mid, double read, double distinct)
{
    double flops = 6.0 * tokens * K * H * I;
    double bytes = 3.0 * H * I * bytes_of(f->m.format) * distinct;
    const char *isa = moec_isa_name(moec_kernels_isa(k));
    unsigned threads = moec_kernels_n_threads(k);

    if (o->table) {
        printf("%-7s %-6s %2u threads T %4u: %9.1f us %9.1f median %7.1f "
               "GFLOP/s %6.2f GB/s of %6.2f: %.3f\n",
               isa, f->name, threads, (unsigned)tokens, low * 1e6, mid * 1e6,
               flops / low / 1e9, bytes / low / 1e9, read / 1e9,
               bytes / low / read);
        return;
    }
    printf("{\"figure\": \"ffn\", \"peer\": \"moec\", \"isa\": \"%s\", "
           "\"dtype\": \"%s\", \"precision\": \"%s\", \"T\": %u, "
           "\"threads\": %u, \"us_min\": %.1f, \"us_median\": %.1f, "
           "\"gflops\": %.1f, \"weights_gbps\": %.2f, \"read_gbps\": %.2f, "
           "\"of_read\": %.3f}\n",
           isa, f->name, o->exact ? "exact" : "fast", (unsigned)tokens, threads,
           low * 1e6, mid * 1e6, flops / low / 1e9, bytes / low / 1e9,
           read / 1e9, bytes / low / read);
    (void)fflush(stdout);
}

static void measure(const struct options *o, const moec_kernels *k,
                    const struct format *f, const moec_matrix m[2],
                    uint32_t tokens)
{
    enum { MAX = 4096 };
    static double times[MAX];
    moec_ffn_config c = MOEC_FFN_CONFIG_INIT;
    uint32_t n_batches = tokens < 64 ? BATCHES : 6, n = 0;
    struct batch batches[BATCHES];
    uint64_t rng = tokens, bytes;
    uint16_t *x = aligned_alloc(64, (size_t)tokens * H * 2);
    float *y = aligned_alloc(64, (size_t)tokens * K * H * sizeof(float));
    double best_read = 0, distinct = 0, end;
    moec_pool *pool = NULL;
    void *ws;

    c.hidden = H;
    c.inter = I;
    c.precision = o->exact ? MOEC_PRECISION_EXACT : MOEC_PRECISION_FAST;
    bytes = moec_ffn_workspace_bytes(k, &c, (uint64_t)tokens * K);
    ws = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!x || !y || !ws ||
        moec_pool_create(&pool, moec_kernels_n_threads(k), NULL) != MOEC_OK)
        abort();
    for (size_t i = 0; i < (size_t)tokens * H; i++) {
        float v = random_float(&rng);
        uint32_t u;

        memcpy(&u, &v, 4);
        x[i] = (uint16_t)(u >> 16);
    }
    for (uint32_t b = 0; b < n_batches; b++) {
        route(&batches[b], tokens, &rng);
        for (uint32_t e = 0; e < E; e++)
            distinct += batches[b].first[e] < batches[b].first[e + 1];
    }
    distinct /= n_batches;
    end = now() + o->seconds;
    for (uint32_t turn = 0; n < MAX && (now() < end || n < 5); turn++) {
        moec_ffn_in in = {.struct_bytes = sizeof(in),
                          .w13 = &m[0],
                          .w2 = &m[1],
                          .n_rows = E,
                          .x_dtype = MOEC_DTYPE_BF16,
                          .x = x,
                          .n_tokens = tokens,
                          .n_cols = K,
                          .sorted = batches[turn % n_batches].sorted,
                          .slot_first = batches[turn % n_batches].first};
        moec_error err = MOEC_ERROR_INIT;
        double t, read = read_once(pool, &m[0], turn);

        best_read = read > best_read ? read : best_read;
        t = now();
        if (moec_ffn(k, &c, &in, y, ws, bytes, &err) != MOEC_OK) {
            (void)fprintf(stderr, "bench_ffn: %s\n", err.text);
            exit(1);
        }
        t = now() - t;
        if (turn > 1)
            times[n++] = t;
    }
    qsort(times, n, sizeof(times[0]), by_time);
    report(o, k, f, tokens, times[0], times[n / 2], best_read, distinct);
    moec_pool_destroy(pool);
    for (uint32_t b = 0; b < n_batches; b++) {
        free(batches[b].sorted);
        free(batches[b].first);
    }
    free(ws);
    free(x);
    free(y);
}

static void run(const struct options *o, const struct format *f)
{
    static const uint32_t tokens[] = {1, 16, 256};
    moec_matrix m[2] = {f->m, f->m};
    uint64_t rng = 1;

    make(&m[0], 2 * I, H, &rng);
    make(&m[1], H, I, &rng);
    for (uint32_t threads = 1; threads <= 2; threads++) {
        moec_kernels_opts opts = MOEC_KERNELS_OPTS_INIT;
        moec_error err = MOEC_ERROR_INIT;
        moec_kernels *k;

        if (o->threads && threads == 2)
            break;
        opts.n_threads = o->threads ? o->threads : threads;
        opts.isa = (moec_isa)moec_isa_parse(o->isa);
        if (moec_kernels_open(&k, &opts, &err) != MOEC_OK) {
            (void)fprintf(stderr, "bench_ffn: %s\n", err.text);
            exit(1);
        }
        for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++)
            if (!o->tokens || o->tokens == tokens[i])
                measure(o, k, f, m, tokens[i]);
        if (o->tokens && o->tokens != 1 && o->tokens != 16 && o->tokens != 256)
            measure(o, k, f, m, o->tokens);
        moec_kernels_close(k);
    }
    for (int i = 0; i < 2; i++) {
        union {
            const void *c;
            void *p;
        } data = {m[i].data}, scale = {m[i].scale};

        free(data.p);
        free(scale.p);
    }
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"table", no_argument, NULL, 't'},
        {"exact", no_argument, NULL, 'x'},
        {"isa", required_argument, NULL, 'i'},
        {"format", required_argument, NULL, 'f'},
        {"threads", required_argument, NULL, 'n'},
        {"tokens", required_argument, NULL, 'T'},
        {"seconds", required_argument, NULL, 's'},
        {0},
    };
    struct options o = {.isa = "auto", .seconds = 1.0};
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1)
        switch (c) {
        case 't':
            o.table = 1;
            break;
        case 'x':
            o.exact = 1;
            break;
        case 'i':
            o.isa = optarg;
            break;
        case 'f':
            o.format = optarg;
            break;
        case 'n':
            o.threads = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'T':
            o.tokens = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 's':
            o.seconds = strtod(optarg, NULL);
            break;
        default:
            return 2;
        }
    for (size_t f = 0; f < sizeof(formats) / sizeof(formats[0]); f++)
        if (o.format ? strcmp(o.format, formats[f].name) == 0
                     : formats[f].m.format != MOEC_WFORMAT_F32)
            run(&o, &formats[f]);
    return 0;
}
