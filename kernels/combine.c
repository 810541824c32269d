/* SPDX-License-Identifier: Apache-2.0
 *
 * The experts' outputs back into one row a token: a weighted sum in column
 * order, in float32. It reads C rows and writes one, so memory is the limit
 * and every row is read once. */

#include "combine.h"

#include <string.h>

#include "backend.h"

#define COLUMNS_MAX 128u                /* 64 routed and as many shared */
#define ITEM_FLOATS (UINT32_C(1) << 16) /* read by one item of the pool */

typedef struct job {
    const moec_combine_in *in;
    float *out;
    float scale;
    moec_combine_fn fn;
    uint32_t rows_an_item;
} job;

/* A block of elements over all columns, or each of C rows would be walked an
 * element at a time. */
#define BLOCK 64u

static void add_term(float *acc, float weight, const float *y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        acc[i] += weight * y[i];
}

void moec_combine_scalar(const moec_combine_terms *s, uint32_t n, float *out)
{
    float acc[BLOCK];

    for (uint32_t h = 0; h < n; h += BLOCK) {
        uint32_t width = n - h < BLOCK ? n - h : BLOCK, c = 0;

        for (uint32_t i = 0; i < width; i++)
            acc[i] = s->x ? s->identity * s->x[h + i] : 0.0f;
        for (; c < s->n_scaled; c++)
            add_term(acc, s->weights[c], s->y[c] + h, width);
        for (uint32_t i = 0; i < width; i++)
            acc[i] *= s->scale;
        for (; c < s->n; c++)
            add_term(acc, s->weights[c], s->y[c] + h, width);
        memcpy(out + h, acc, width * sizeof(acc[0]));
    }
}

static moec_combine_fn fn_of(moec_isa isa)
{
    switch (isa) {
#if defined(__x86_64__)
    case MOEC_ISA_AVX512:
        return moec_combine_avx512;
    case MOEC_ISA_AVX2:
        return moec_combine_avx2;
#else
    case MOEC_ISA_AVX512:
    case MOEC_ISA_AVX2:
#endif
    case MOEC_ISA_AUTO:
    case MOEC_ISA_SCALAR:
        break;
    }
    return moec_combine_scalar;
}

static void combine_item(void *ctx, size_t item, uint32_t worker)
{
    const job *j = ctx;
    const moec_combine_in *in = j->in;
    uint32_t lo = (uint32_t)item * j->rows_an_item;
    uint32_t hi =
        (uint32_t)moec_min_u64((uint64_t)lo + j->rows_an_item, in->n_tokens);
    const float *rows[COLUMNS_MAX];
    float weights[COLUMNS_MAX];

    (void)worker;
    for (uint32_t t = lo; t < hi; t++) {
        moec_combine_terms s = {.y = rows, .weights = weights};
        uint64_t at = (uint64_t)t * in->n_cols;

        s.scale = j->scale;
        for (uint32_t c = 0; c < in->n_cols; c++) {
            if (c == in->scaled_cols)
                s.n_scaled = s.n;
            if (in->slots[at + c] < 0)
                continue;
            rows[s.n] = in->y + (at + c) * in->hidden;
            weights[s.n++] = in->weights[at + c];
        }
        if (in->scaled_cols == in->n_cols)
            s.n_scaled = s.n;
        if (in->identity) {
            s.x = in->x + (uint64_t)t * in->hidden;
            s.identity = in->identity[t];
        }
        j->fn(&s, in->hidden, j->out + (uint64_t)t * in->hidden);
    }
}

static moec_status check(const moec_kernels *k, const moec_combine_in *in,
                         const float *out, moec_error *err)
{
    const char *missing = NULL;

    if (!k)
        missing = "kernels";
    else if (!in)
        missing = "in";
    else if (in->struct_bytes < sizeof(*in))
        missing = "in.struct_bytes";
    else if (in->n_tokens && !out)
        missing = "out";
    else if (in->n_tokens && in->n_cols && !in->slots)
        missing = "in.slots";
    else if (in->n_tokens && in->n_cols && !in->weights)
        missing = "in.weights";
    else if (in->n_tokens && in->n_cols && !in->y)
        missing = "in.y";
    else if (in->n_tokens && in->identity && !in->x)
        missing = "in.x";
    if (missing)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_combine: %s is missing", missing);
    if (in->n_cols > COLUMNS_MAX || in->scaled_cols > in->n_cols ||
        in->hidden == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_combine: %u columns, %u of them scaled, of %u "
                         "elements",
                         in->n_cols, in->scaled_cols, in->hidden);
    return MOEC_OK;
}

moec_status moec_combine(const moec_kernels *k, const moec_combine_in *in,
                         float *out, moec_error *err)
{
    uint64_t row_floats;
    job j;

    MOEC_TRY(check(k, in, out, err));
    j.in = in;
    j.out = out;
    j.scale = in->scale == 0.0f ? 1.0f : in->scale;
    j.fn = fn_of(k->isa);
    row_floats = (uint64_t)in->hidden * (in->n_cols + 1);
    j.rows_an_item = (uint32_t)moec_max_u64(1, ITEM_FLOATS / row_floats);
    moec_pool_run(k->pool, moec_ceil_div(in->n_tokens, j.rows_an_item),
                  combine_item, &j);
    return MOEC_OK;
}
