/* SPDX-License-Identifier: Apache-2.0
 *
 * The expert FFN: every activation, option and format against float64; EXACT
 * bit for bit on all back ends, threads and cuts of the tokens; FAST within
 * what rounding inputs and activations to bf16 can do. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "matrix_case.h"

static moec_kernels *back_ends[BACK_ENDS];
static size_t n_back_ends;

static int setup(void **state)
{
    (void)state;
    n_back_ends = open_back_ends(back_ends);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close_back_ends(back_ends, n_back_ends);
    guarded_free_all();
    return 0;
}

/* One layer: matrices, tokens, runs. */
struct layer {
    moec_ffn_config c;
    moec_ffn_in in;
    struct matrix_case w13, w2;
    uint32_t *sorted;
    uint64_t *first;
    float *weights;
    double *y;    /* [n][hidden] by position in `sorted` */
    double *size; /* sums of the absolute terms likewise */
    uint32_t n;
};

static double sigmoid64(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static double min64(double a, double b)
{
    return a < b ? a : b;
}

static double clamp64(double x, double limit)
{
    return limit > 0 ? fmax(-limit, fmin(limit, x)) : x;
}

static double act64(const moec_ffn_config *c, double g, double u)
{
    double limit = (double)c->limit, top = limit > 0 ? limit : (double)INFINITY;
    double alpha = c->alpha != 0.0f ? (double)c->alpha : (double)1.702f;
    double b = (double)c->beta, lb = (double)c->linear_beta;

    switch (c->act) {
    case MOEC_ACT_SILU:
        return g * sigmoid64(g) * u;
    case MOEC_ACT_SWIGLU_OAI:
        g = min64(g, top);
        return g * sigmoid64(alpha * g) * (clamp64(u, limit) + 1);
    case MOEC_ACT_RELU2:
        return u > 0 ? u * u : 0;
    case MOEC_ACT_GELU_TANH:
        return 0.5 * g *
               (1 + tanh(sqrt(2 / acos(-1.0)) * (g + 0.044715 * g * g * g))) *
               u;
    case MOEC_ACT_GELU:
        return 0.5 * g * erfc(-g / sqrt(2.0)) * u;
    case MOEC_ACT_SILU_CLAMP_BEFORE:
        g = min64(g, top);
        return g * sigmoid64(g) * clamp64(u, limit);
    case MOEC_ACT_SILU_CLAMP_AFTER:
        return min64(g * sigmoid64(g), top) * clamp64(u, limit);
    case MOEC_ACT_SITU:
        return b * tanh(g / b) * sigmoid64(g) * lb * tanh(u / lb);
    }
    return (double)NAN;
}

static double x_value(const struct layer *l, uint32_t column, uint32_t i)
{
    uint64_t at = (uint64_t)(column / l->in.n_cols) * l->c.hidden + i;
    float x = (float)code_value(
        l->in.x_dtype, get_code(l->in.x, at, dtype_bytes(l->in.x_dtype)));

    return l->c.weight_on_input ? (double)(x * l->weights[column]) : (double)x;
}

static double row64(const struct matrix_case *m, uint32_t e, uint32_t o,
                    const double *x, double *size)
{
    const float *w = m->values + ((size_t)e * m->m.n_out + o) * m->m.n_in;
    double sum = m->bias ? (double)m->bias[(size_t)e * m->m.n_out + o] : 0.0;

    *size = fabs(sum);
    for (uint32_t i = 0; i < m->m.n_in; i++) {
        sum += x[i] * (double)w[i];
        *size += fabs(x[i] * (double)w[i]);
    }
    return sum;
}

static void reference(struct layer *l)
{
    uint32_t h = l->c.hidden, inter = l->c.inter;
    double *x = malloc(h * sizeof(double)), *a = malloc(inter * sizeof(double));
    double ignore;

    assert_true(x && a);
    for (uint32_t e = 0; e < l->in.n_rows; e++)
        for (uint64_t p = l->first[e]; p < l->first[e + 1]; p++) {
            for (uint32_t i = 0; i < h; i++)
                x[i] = x_value(l, l->sorted[p], i);
            for (uint32_t i = 0; i < inter; i++) {
                bool up_first = l->c.up_first || !l->c.gated;
                double up =
                    row64(&l->w13, e, up_first ? i : inter + i, x, &ignore);
                double gate = 0;

                if (l->c.gated)
                    gate =
                        row64(&l->w13, e, up_first ? inter + i : i, x, &ignore);
                a[i] = act64(&l->c, gate, up);
            }
            for (uint32_t o = 0; o < h; o++)
                l->y[p * h + o] = row64(&l->w2, e, o, a, &l->size[p * h + o]);
        }
    free(x);
    free(a);
}

static struct layer layer_make(moec_ffn_config c, moec_matrix w13,
                               moec_matrix w2, uint32_t n_rows, uint32_t tokens,
                               uint32_t cols, moec_dtype x_dtype,
                               unsigned flags, uint64_t *rng)
{
    struct layer l = {.c = c};
    uint32_t n = 0, xb = dtype_bytes(x_dtype);
    uint8_t *x = guarded((size_t)tokens * c.hidden * xb);

    w13.n_out = c.inter * (c.gated ? 2 : 1);
    w13.n_in = c.hidden;
    w2.n_out = c.hidden;
    w2.n_in = c.inter;
    l.w13 = matrix_case_make(w13, n_rows, flags, rng);
    l.w2 = matrix_case_make(w2, n_rows, flags, rng);
    l.sorted = guarded((size_t)tokens * cols * 4 + 4);
    l.first = guarded((n_rows + 1) * sizeof(uint64_t));
    l.weights = guarded((size_t)tokens * cols * 4);
    for (size_t i = 0; i < (size_t)tokens * cols; i++)
        l.weights[i] = 0.5f + 0.4f * random_float(rng);
    for (size_t i = 0; i < (size_t)tokens * c.hidden; i++) {
        float f = random_float(rng) * 2.0f;
        uint32_t u;

        memcpy(&u, &f, 4);
        put_code_at(x, i, xb, x_dtype == MOEC_DTYPE_BF16 ? u >> 16 : u);
    }
    /* Column (t, k) goes to row (t + 2k) % n_rows, or to none. */
    for (uint32_t r = 0; r < n_rows; r++) {
        l.first[r] = n;
        for (uint32_t p = 0; p < tokens * cols; p++)
            if ((p / cols + 2 * (p % cols)) % n_rows == r && p % 7 != 6 &&
                (n_rows < 4 || r != 1))
                l.sorted[n++] = p;
    }
    l.first[n_rows] = n;
    l.n = n;
    l.in = (moec_ffn_in){.struct_bytes = sizeof(l.in),
                         .n_rows = n_rows,
                         .x_dtype = x_dtype,
                         .x = x,
                         .n_tokens = tokens,
                         .n_cols = cols,
                         .weights = l.weights,
                         .sorted = l.sorted,
                         .slot_first = l.first};
    l.y = malloc(((size_t)n * c.hidden + 1) * sizeof(double));
    l.size = malloc(((size_t)n * c.hidden + 1) * sizeof(double));
    assert_true(l.y && l.size);
    reference(&l);
    return l;
}

static void layer_free(struct layer *l)
{
    matrix_case_free(&l->w13);
    matrix_case_free(&l->w2);
    free(l->y);
    free(l->size);
    guarded_free_all();
}

/* y of all columns; those of no run must keep the poison. */
static float *run(const struct layer *l, const moec_kernels *k,
                  moec_precision precision)
{
    moec_ffn_config c = l->c;
    moec_ffn_in in = l->in;
    moec_error err = MOEC_ERROR_INIT;
    size_t columns = (size_t)in.n_tokens * in.n_cols;
    float *y = guarded(columns * c.hidden * sizeof(float));
    uint64_t bytes;
    void *ws;

    in.w13 = &l->w13.m;
    in.w2 = &l->w2.m;
    c.precision = precision;
    bytes = moec_ffn_workspace_bytes(k, &c, l->n);
    ws = guarded((bytes + 63) / 64 * 64);
    if (moec_ffn(k, &c, &in, y, ws, bytes, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return y;
}

static void check_untouched(const struct layer *l, const float *y)
{
    uint32_t poison;

    memset(&poison, GUARDED_POISON, sizeof(poison));
    for (uint32_t p = 0; p < l->in.n_tokens * l->in.n_cols; p++) {
        bool used = false;

        for (uint32_t i = 0; i < l->n; i++)
            used = used || l->sorted[i] == p;
        for (uint32_t o = 0; !used && o < l->c.hidden; o++)
            assert_memory_equal(&y[(size_t)p * l->c.hidden + o], &poison, 4);
    }
}

/* Largest |y - reference| over the size of the terms, of rms for FAST. */
static double worst(const struct layer *l, const float *y, bool rms)
{
    uint32_t h = l->c.hidden;
    double w = 0, square = 0, size = 0;

    for (uint32_t i = 0; i < l->n; i++)
        for (uint32_t o = 0; o < h; o++) {
            double d = fabs((double)y[(size_t)l->sorted[i] * h + o] -
                            l->y[(size_t)i * h + o]);
            double s = l->size[(size_t)i * h + o] + 1e-6;

            w = d / s > w || isnan(d) ? d / s : w;
            square += d * d;
            size += l->y[(size_t)i * h + o] * l->y[(size_t)i * h + o];
        }
    return rms ? sqrt(square / (size + 1e-12)) : w;
}

static void check_layer(const struct layer *l, const char *what)
{
    size_t bytes =
        (size_t)l->in.n_tokens * l->in.n_cols * l->c.hidden * sizeof(float);
    float *first = NULL;

    for (size_t b = 0; b < n_back_ends; b++) {
        float *y = run(l, back_ends[b], MOEC_PRECISION_EXACT);
        double e;

        check_untouched(l, y);
        e = worst(l, y, false);
        if (!(e < 2e-5))
            fail_msg("%s, back end %zu: exact is off by %g", what, b, e);
        if (b == 0)
            first = y;
        else if (memcmp(first, y, bytes) != 0)
            fail_msg("%s, back end %zu: other bits", what, b);
        y = run(l, back_ends[b], MOEC_PRECISION_FAST);
        check_untouched(l, y);
        e = worst(l, y, true);
        if (!(e < 8e-3))
            fail_msg("%s, back end %zu: fast is off by %g", what, b, e);
        if (b % 2) { /* threads change nothing in FAST either */
            float *one = run(l, back_ends[b - 1], MOEC_PRECISION_FAST);

            if (memcmp(one, y, bytes) != 0)
                fail_msg("%s, back end %zu: fast varies", what, b);
        }
    }
}

static const moec_matrix plain_bf16 = {.format = MOEC_WFORMAT_BF16};

static void computes_every_activation(void **state)
{
    uint64_t rng = 1;

    (void)state;
    for (int act = 0; act <= MOEC_ACT_SITU; act++)
        for (int limit = 0; limit < 2; limit++) {
            moec_ffn_config c = ffn_case((moec_act)act, 40, 24);
            struct layer l;
            char what[64];

            c.limit = limit ? 0.75f : 0.0f;
            l = layer_make(c, plain_bf16, plain_bf16, 3, 5, 2, MOEC_DTYPE_F32,
                           0, &rng);
            (void)snprintf(what, sizeof(what), "activation %d limit %d", act,
                           limit);
            check_layer(&l, what);
            layer_free(&l);
        }
}

static void obeys_every_option(void **state)
{
    uint64_t rng = 2;

    (void)state;
    for (unsigned i = 0; i < 16; i++) {
        moec_ffn_config c = ffn_case(MOEC_ACT_SILU, 72, 40);
        moec_matrix m = plain_bf16;
        struct layer l;

        c.up_first = i & 1;
        c.weight_on_input = i >> 1 & 1;
        m.bias_dtype = i & 4 ? MOEC_DTYPE_BF16 : MOEC_DTYPE_F32;
        l = layer_make(c, m, m, 5, 7, 3,
                       i & 8 ? MOEC_DTYPE_BF16 : MOEC_DTYPE_F32,
                       i & 4 ? CASE_BIAS | CASE_GAPS : 0, &rng);
        check_layer(&l, "options");
        layer_free(&l);
    }
    {
        moec_ffn_config c = ffn_case(MOEC_ACT_SWIGLU_OAI, 64, 64);
        moec_matrix m = {.format = MOEC_WFORMAT_MXFP4,
                         .scale_dtype = MOEC_DTYPE_U8,
                         .block_in = 32,
                         .bias_dtype = MOEC_DTYPE_BF16};
        struct layer l;

        c.limit = 7.0f;
        c.alpha = 1.5f;
        l = layer_make(c, m, m, 4, 9, 2, MOEC_DTYPE_BF16, CASE_BIAS, &rng);
        check_layer(&l, "gpt-oss");
        layer_free(&l);
    }
}

/* Sizes around every vector and tile, one token and more than a tile of
 * them, and every format. */
static void multiplies_every_format(void **state)
{
    static const moec_matrix formats[] = {
        {.format = MOEC_WFORMAT_F32},
        {.format = MOEC_WFORMAT_BF16},
        {.format = MOEC_WFORMAT_F16},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_F32,
         .block_out = 128,
         .block_in = 128},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_BF16,
         .block_out = 1,
         .block_in = 4096},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_U8,
         .block_out = 1,
         .block_in = 32},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_F32,
         .block_out = 3,
         .block_in = 20},
        {.format = MOEC_WFORMAT_INT4,
         .scale_dtype = MOEC_DTYPE_BF16,
         .block_in = 32},
        {.format = MOEC_WFORMAT_INT4,
         .scale_dtype = MOEC_DTYPE_F16,
         .block_in = 128},
        {.format = MOEC_WFORMAT_MXFP4,
         .scale_dtype = MOEC_DTYPE_U8,
         .block_in = 32},
        {.format = MOEC_WFORMAT_NVFP4,
         .scale_dtype = MOEC_DTYPE_F8_E4M3,
         .block_in = 16},
        {.format = MOEC_WFORMAT_AWQ,
         .scale_dtype = MOEC_DTYPE_F16,
         .block_in = 32},
        {.format = MOEC_WFORMAT_GPTQ,
         .scale_dtype = MOEC_DTYPE_F16,
         .block_in = 32},
    };
    static const uint32_t sizes[][4] = {
        /* hidden, inter, tokens, columns */
        {8, 8, 1, 1},     {32, 16, 2, 1},   {136, 72, 3, 2},
        {256, 192, 5, 3}, {40, 328, 70, 2},
    };
    uint64_t rng = 3;

    (void)state;
    for (size_t f = 0; f < sizeof(formats) / sizeof(formats[0]); f++)
        for (size_t s = 0; s < 5; s++)
            for (unsigned zeros = 0; zeros < 2; zeros++) {
                moec_ffn_config c =
                    ffn_case(MOEC_ACT_SILU, sizes[s][0], sizes[s][1]);
                moec_matrix m13 = formats[f];
                struct layer l;
                char what[64];

                if (zeros && formats[f].format != MOEC_WFORMAT_INT4 &&
                    formats[f].format < MOEC_WFORMAT_AWQ)
                    continue;
                m13.part_rows = sizes[s][1];
                if (m13.format == MOEC_WFORMAT_NVFP4)
                    m13.scale2_rows = sizes[s][1];
                l = layer_make(c, m13, formats[f], 4, sizes[s][2], sizes[s][3],
                               MOEC_DTYPE_BF16,
                               zeros ? CASE_ZEROS | CASE_BIAS : 0, &rng);
                (void)snprintf(what, sizeof(what), "format %u.%zu size %zu",
                               (unsigned)m13.format, f, s);
                check_layer(&l, what);
                layer_free(&l);
            }
}

/* w13 and w2 of different formats: h must be packed as w2 wants it. */
static void mixes_formats(void **state)
{
    moec_matrix fp8 = {.format = MOEC_WFORMAT_FP8,
                       .scale_dtype = MOEC_DTYPE_F32,
                       .block_out = 128,
                       .block_in = 128};
    moec_matrix mx = {.format = MOEC_WFORMAT_MXFP4,
                      .scale_dtype = MOEC_DTYPE_U8,
                      .block_in = 32};
    uint64_t rng = 4;
    struct layer l;

    (void)state;
    l = layer_make(ffn_case(MOEC_ACT_SILU, 256, 160), plain_bf16, mx, 3, 4, 2,
                   MOEC_DTYPE_F32, 0, &rng);
    check_layer(&l, "bf16 then mxfp4");
    layer_free(&l);
    l = layer_make(ffn_case(MOEC_ACT_RELU2, 192, 320), mx, fp8, 3, 4, 2,
                   MOEC_DTYPE_F32, 0, &rng);
    check_layer(&l, "mxfp4 then fp8");
    layer_free(&l);
}

/* w13 is the identity and every token one unit vector, so y[t] is column t of
 * w2, to the bit: codes, scales and the order in which a product takes them.
 * `step` tokens a call. */
static void check_columns(const moec_kernels *k, const struct matrix_case *w2,
                          const moec_matrix *w13, uint32_t step)
{
    uint32_t n = w2->m.n_in, h = w2->m.n_out;
    moec_ffn_config c = ffn_case(MOEC_ACT_RELU2, h, n);
    float *x = calloc((size_t)n * h, sizeof(float));
    float *y = malloc((size_t)n * h * sizeof(float));
    uint32_t *sorted = malloc(n * sizeof(uint32_t));
    uint64_t bytes = moec_ffn_workspace_bytes(k, &c, n);
    void *ws = aligned_alloc(64, (bytes + 63) / 64 * 64);

    assert_true(x && y && sorted && ws);
    c.precision = MOEC_PRECISION_FAST;
    for (uint32_t t = 0; t < n; t++) {
        x[(size_t)t * h + t] = 1.0f;
        sorted[t] = t;
    }
    for (uint32_t t = 0; t < n; t += step) {
        uint64_t first[2] = {t, t + step < n ? t + step : n};
        moec_ffn_in in = {.struct_bytes = sizeof(in),
                          .w13 = w13,
                          .w2 = &w2->m,
                          .n_rows = 1,
                          .x_dtype = MOEC_DTYPE_F32,
                          .x = x,
                          .n_tokens = n,
                          .n_cols = 1,
                          .sorted = sorted,
                          .slot_first = first};

        assert_int_equal(moec_ffn(k, &c, &in, y, ws, bytes, NULL), MOEC_OK);
    }
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t o = 0; o < h; o++)
            if (y[(size_t)t * h + o] != w2->values[(size_t)o * n + t])
                fail_msg("format %u step %u: w2[%u][%u] is %a, not %a",
                         (unsigned)w2->m.format, (unsigned)step, (unsigned)o,
                         (unsigned)t, (double)y[(size_t)t * h + o],
                         (double)w2->values[(size_t)o * n + t]);
    free(x);
    free(y);
    free(sorted);
    free(ws);
}

static void takes_every_weight_as_it_is(void **state)
{
    enum { H = 264, I = 264 };
    static const moec_matrix formats[] = {
        {.format = MOEC_WFORMAT_BF16},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_F32,
         .block_out = 128,
         .block_in = 128},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_BF16,
         .block_out = 2,
         .block_in = 64},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_U8,
         .block_in = 32},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_F16,
         .block_out = 1,
         .block_in = 48},
        {.format = MOEC_WFORMAT_INT4,
         .scale_dtype = MOEC_DTYPE_BF16,
         .block_in = 32},
        {.format = MOEC_WFORMAT_INT4,
         .scale_dtype = MOEC_DTYPE_F16,
         .block_in = 64},
        {.format = MOEC_WFORMAT_INT4,
         .scale_dtype = MOEC_DTYPE_F32,
         .block_in = 128},
        {.format = MOEC_WFORMAT_MXFP4,
         .scale_dtype = MOEC_DTYPE_U8,
         .block_in = 32},
        {.format = MOEC_WFORMAT_NVFP4,
         .scale_dtype = MOEC_DTYPE_F8_E4M3,
         .block_in = 16},
    };
    uint16_t *unit = guarded((size_t)I * H * 2);
    moec_matrix w13 = {.struct_bytes = sizeof(w13),
                       .format = MOEC_WFORMAT_BF16,
                       .n_out = I,
                       .n_in = H,
                       .data = unit};
    uint64_t rng = 7;

    (void)state;
    for (uint32_t i = 0; i < I; i++)
        for (uint32_t j = 0; j < H; j++)
            unit[(size_t)i * H + j] = i == j ? 0x3f80 : 0;
    for (size_t f = 0; f < sizeof(formats) / sizeof(formats[0]); f++) {
        moec_matrix m = formats[f];
        struct matrix_case w2;

        if (m.block_in && !m.block_out)
            m.block_out = 1;
        m.n_out = H;
        m.n_in = I;
        w2 = matrix_case_make(m, 1, 0, &rng);
        for (size_t b = 0; b < n_back_ends; b += 2) {
            check_columns(back_ends[b], &w2, &w13, I);
            check_columns(back_ends[b], &w2, &w13, 2);
        }
        matrix_case_free(&w2);
    }
    guarded_free_all();
}

/* A column's result does not depend on the others of the call, in EXACT and
 * in FAST. */
static void is_invariant_to_the_batch(void **state)
{
    static const moec_matrix formats[] = {
        {.format = MOEC_WFORMAT_BF16},
        {.format = MOEC_WFORMAT_FP8,
         .scale_dtype = MOEC_DTYPE_F32,
         .block_out = 128,
         .block_in = 128},
        {.format = MOEC_WFORMAT_INT4,
         .scale_dtype = MOEC_DTYPE_BF16,
         .block_in = 32},
    };
    uint64_t rng = 6;

    (void)state;
    for (size_t f = 0; f < 3; f++) {
        struct layer l =
            layer_make(ffn_case(MOEC_ACT_SILU, 264, 200), formats[f],
                       formats[f], 2, 75, 1, MOEC_DTYPE_BF16, 0, &rng);
        uint32_t h = l.c.hidden;

        for (size_t b = 0; b < n_back_ends; b++)
            for (int fast = 0; fast < 2; fast++) {
                float *all = run(&l, back_ends[b], (moec_precision)fast);
                struct layer one = l;
                uint64_t first[3] = {0, 0, 0};

                for (uint32_t i = 0; i < l.n; i += 13) {
                    float *y;

                    first[1] = i < l.first[1];
                    first[2] = 1;
                    one.n = 1;
                    one.sorted = l.sorted + i;
                    one.in.sorted = one.sorted;
                    one.in.slot_first = one.first = first;
                    y = run(&one, back_ends[b], (moec_precision)fast);
                    assert_memory_equal(y + (size_t)l.sorted[i] * h,
                                        all + (size_t)l.sorted[i] * h,
                                        h * sizeof(float));
                }
            }
        layer_free(&l);
    }
}

static void does_nothing_without_columns(void **state)
{
    uint64_t rng = 5;
    struct layer l = layer_make(ffn_case(MOEC_ACT_SILU, 16, 16), plain_bf16,
                                plain_bf16, 3, 0, 2, MOEC_DTYPE_F32, 0, &rng);
    moec_ffn_in in = l.in;

    (void)state;
    in.w13 = &l.w13.m;
    in.w2 = &l.w2.m;
    assert_int_equal(moec_ffn_workspace_bytes(back_ends[0], &l.c, 0), 0);
    assert_int_equal(moec_ffn(back_ends[0], &l.c, &in, NULL, NULL, 0, NULL),
                     MOEC_OK);
    layer_free(&l);
}

static void refuses_what_does_not_fit(void **state)
{
    uint64_t rng = 5;
    struct layer l = layer_make(ffn_case(MOEC_ACT_SILU, 16, 16), plain_bf16,
                                plain_bf16, 3, 4, 2, MOEC_DTYPE_F32, 0, &rng);
    uint64_t bytes = moec_ffn_workspace_bytes(back_ends[0], &l.c, l.n);
    char *ws = aligned_alloc(64, (bytes + 127) / 64 * 64);
    float y[4 * 2 * 16];
    moec_ffn_in in = l.in;

    (void)state;
    in.w13 = &l.w13.m;
    in.w2 = &l.w2.m;
#define REFUSES(status, text_)                                                 \
  do {                                                                         \
    moec_error err = MOEC_ERROR_INIT;                                          \
    assert_int_equal(moec_ffn(back_ends[0], &l.c, &in, y, ws, bytes, &err),    \
                     status);                                                  \
    assert_string_equal(err.text, text_);                                      \
  } while (0)
    l.c.act = MOEC_ACT_RELU2;
    REFUSES(MOEC_E_UNSUPPORTED, "activation 2 with a gate");
    l.c.act = MOEC_ACT_SILU;
    l.c.gated = 0;
    REFUSES(MOEC_E_UNSUPPORTED, "activation 0 without a gate");
    l.c.gated = 1;
    l.c.inter = 8;
    REFUSES(MOEC_E_ARG, "w13 is 32 x 16, not 16 x 16");
    l.c.inter = 16;
    l.sorted[2] = 8;
    REFUSES(MOEC_E_ARG, "sorted[2] is column 8 of 8");
    l.sorted[2] = 7;
    l.first[1] = 99;
    REFUSES(MOEC_E_ARG, "slot_first falls at row 1");
    l.first[1] = 0;
    in.x_dtype = MOEC_DTYPE_F16;
    REFUSES(MOEC_E_ARG, "x of F16");
    in.x_dtype = MOEC_DTYPE_F32;
    assert_int_equal(moec_ffn(back_ends[0], &l.c, &in, y, ws, bytes - 1, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_ffn(back_ends[0], &l.c, &in, y, ws + 4, bytes, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_ffn(back_ends[0], &l.c, &in, y, ws, bytes, NULL),
                     MOEC_OK);
    free(ws);
    layer_free(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(computes_every_activation),
        cmocka_unit_test(obeys_every_option),
        cmocka_unit_test(multiplies_every_format),
        cmocka_unit_test(mixes_formats),
        cmocka_unit_test(takes_every_weight_as_it_is),
        cmocka_unit_test(is_invariant_to_the_batch),
        cmocka_unit_test(does_nothing_without_columns),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
