/* SPDX-License-Identifier: Apache-2.0
 *
 * The expert FFN: checks, workspace, and two phases of parallel work items,
 * w13 with the activation into h, then w2. An item is a block of weight rows
 * of one expert and all tokens of that expert, so every weight is read once a
 * call and the result depends neither on the cut nor on the threads. */

#include <string.h>

#include "matrix.h"

/* Weight rows of an item, at most (of w13 twice that where it is gated) and at
 * least. At an item's begin its weights come slowly, so items are large where
 * they are many: ITEMS_PER_THREAD for each thread balance well enough. */
#define ROWS_MAX         ((size_t)128)
#define ROWS_MIN         32u
#define ITEMS_PER_THREAD 8u

struct ffn {
    const moec_ffn_config *c;
    const moec_ffn_in *in;
    const struct moec_matrix_fns *f;
    const struct moec_product *p13, *p2;
    float *y;
    uint32_t *active; /* local rows that have tokens */
    uint8_t *x;       /* packed inputs by position in `sorted` */
    uint8_t *h;       /* packed activations likewise */
    size_t x_bytes, h_bytes;
    uint32_t n_active;
    uint32_t w13_rows, w13_blocks; /* rows of an item, items of an expert */
    uint32_t w2_rows, w2_blocks;
};

/* -------------------------------------------------------------- checks */

static moec_status check_config(const moec_ffn_config *c, moec_error *err)
{
    if (!c || c->struct_bytes < sizeof(*c) || !c->hidden || !c->inter)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "an FFN without hidden or inter");
    if ((unsigned)c->act > MOEC_ACT_SITU ||
        (unsigned)c->precision > MOEC_PRECISION_FAST)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "activation %u, precision %u", (unsigned)c->act,
                         (unsigned)c->precision);
    if ((c->act == MOEC_ACT_RELU2) == (c->gated != 0))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "activation %u %s a gate", (unsigned)c->act,
                         c->gated ? "with" : "without");
    if (c->act == MOEC_ACT_SITU && !(c->beta > 0.0f && c->linear_beta > 0.0f))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "SITU needs beta and linear_beta above 0");
    return MOEC_OK;
}

static moec_status check_shapes(const moec_ffn_config *c, const moec_ffn_in *in,
                                moec_error *err)
{
    uint64_t w13_out = (uint64_t)c->inter * (c->gated ? 2 : 1);

    MOEC_TRY(moec_matrix_check(in->w13, "w13", err));
    MOEC_TRY(moec_matrix_check(in->w2, "w2", err));
    if (in->w13->n_out != w13_out || in->w13->n_in != c->hidden)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "w13 is %u x %u, not %llu x %u",
                         (unsigned)in->w13->n_out, (unsigned)in->w13->n_in,
                         (unsigned long long)w13_out, (unsigned)c->hidden);
    if (in->w2->n_out != c->hidden || in->w2->n_in != c->inter)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "w2 is %u x %u, not %u x %u", (unsigned)in->w2->n_out,
                         (unsigned)in->w2->n_in, (unsigned)c->hidden,
                         (unsigned)c->inter);
    if (in->x_dtype != MOEC_DTYPE_F32 && in->x_dtype != MOEC_DTYPE_BF16)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "x of %s",
                         moec_dtype_name(in->x_dtype));
    return MOEC_OK;
}

/* The runs: what moec_align wrote, but an index out of range here would write
 * anywhere. */
static moec_status check_runs(const moec_ffn_in *in, moec_error *err)
{
    uint64_t n = in->slot_first[in->n_rows];
    uint64_t columns = (uint64_t)in->n_tokens * in->n_cols;

    for (uint32_t r = 0; r < in->n_rows; r++)
        if (in->slot_first[r] > in->slot_first[r + 1])
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "slot_first falls at row %u", (unsigned)r);
    for (uint64_t i = in->slot_first[0]; i < n; i++)
        if (in->sorted[i] >= columns)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "sorted[%llu] is column %u of %llu",
                             (unsigned long long)i, (unsigned)in->sorted[i],
                             (unsigned long long)columns);
    return MOEC_OK;
}

moec_status moec_ffn_check(const moec_ffn_config *c, const moec_ffn_in *in,
                           moec_error *err)
{
    MOEC_TRY(check_config(c, err));
    if (!in || in->struct_bytes < sizeof(*in) || !in->slot_first)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "moec_ffn: NULL");
    return check_shapes(c, in, err);
}

static moec_status check_in(const moec_ffn_config *c, const moec_ffn_in *in,
                            moec_error *err)
{
    MOEC_TRY(moec_ffn_check(c, in, err));
    if (in->slot_first[in->n_rows] == 0)
        return MOEC_OK;
    if (!in->sorted || !in->x || (c->weight_on_input && !in->weights))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_ffn: columns without sorted, x or weights");
    return check_runs(in, err);
}

/* ----------------------------------------------------------- workspace */

static uint64_t row_bytes_max(uint32_t n_in)
{
    return ((uint64_t)n_in + 127) / 128 * 128 * sizeof(float);
}

static uint64_t list_bytes(uint64_t n)
{
    return (n * sizeof(uint32_t) + 63) / 64 * 64;
}

uint64_t moec_ffn_workspace_bytes(const moec_kernels *k,
                                  const moec_ffn_config *config,
                                  uint64_t n_columns)
{
    uint64_t row = row_bytes_max(config->hidden) + row_bytes_max(config->inter);
    uint64_t all;

    (void)k;
    if (!moec_mul_u64(n_columns, row + sizeof(uint32_t), &all) ||
        !moec_add_u64(all, 64, &all))
        return UINT64_MAX; /* nobody has that, and moec_ffn says so */
    return n_columns ? list_bytes(n_columns) + n_columns * row : 0;
}

/* -------------------------------------------------------------- phases */

/* Gather and pack the input of one column, an item of the first phase. */
static void pack_input(void *ctx, size_t item, uint32_t worker)
{
    const struct ffn *p = ctx;
    const moec_ffn_in *in = p->in;
    uint64_t at = in->slot_first[0] + item;
    uint32_t column = in->sorted[at], h = p->c->hidden;
    size_t bytes = moec_dtype_bits(in->x_dtype) / 8;
    const uint8_t *x =
        (const uint8_t *)in->x + (size_t)(column / in->n_cols) * h * bytes;
    _Alignas(64) float mid[1024];

    (void)worker;
    for (uint32_t i = 0; i < h; i += 1024) {
        uint32_t n = h - i < 1024 ? h - i : 1024;

        p->f->to_f32(in->x_dtype, x + i * bytes, n, mid);
        if (p->c->weight_on_input)
            for (uint32_t j = 0; j < n; j++)
                mid[j] *= in->weights[column];
        p->p13->pack(mid, i, n, h, p->x + item * p->x_bytes);
    }
}

struct block {
    uint32_t expert, row, n_rows;
    uint64_t first, n_tokens; /* positions, from slot_first[0] */
};

static struct block block_of(const struct ffn *p, size_t item, uint32_t blocks,
                             uint32_t block_rows, uint32_t n_rows)
{
    struct block b = {.expert = p->active[item / blocks],
                      .row = (uint32_t)(item % blocks) * block_rows};
    const uint64_t *first = p->in->slot_first;

    b.n_rows = n_rows - b.row < block_rows ? n_rows - b.row : block_rows;
    b.first = first[b.expert] - first[0];
    b.n_tokens = first[b.expert + 1] - first[b.expert];
    return b;
}

static void w13_block(void *ctx, size_t item, uint32_t worker)
{
    const struct ffn *p = ctx;
    uint32_t inter = p->c->inter;
    struct block b = block_of(p, item, p->w13_blocks, p->w13_rows, inter);
    struct moec_mat m = moec_mat_of(p->in->w13, b.expert);
    uint32_t gate_row = p->c->up_first ? inter : 0;
    uint32_t up_row = p->c->gated && !p->c->up_first ? inter : 0;
    _Alignas(64) float gate[MOEC_TILE_TOKENS * ROWS_MAX];
    _Alignas(64) float up[MOEC_TILE_TOKENS * ROWS_MAX];

    (void)worker;
    while (b.n_tokens) {
        uint32_t nt = (uint32_t)moec_min_u64(b.n_tokens, MOEC_TILE_TOKENS);
        struct moec_acts x = {
            .x = p->x + b.first * p->x_bytes, .bytes = p->x_bytes, .n = nt};

        if (p->c->gated)
            p->p13->rows(p->f, &m, gate_row + b.row, b.n_rows, &x, gate,
                         ROWS_MAX);
        p->p13->rows(p->f, &m, up_row + b.row, b.n_rows, &x, up, ROWS_MAX);
        for (uint32_t t = 0; t < nt; t++) {
            float *u = up + t * ROWS_MAX;

            p->f->act(p->c, gate + t * ROWS_MAX, u, b.n_rows, u);
            p->p2->pack(u, b.row, b.n_rows, inter,
                        p->h + (b.first + t) * p->h_bytes);
        }
        b.first += nt;
        b.n_tokens -= nt;
    }
}

static void w2_block(void *ctx, size_t item, uint32_t worker)
{
    const struct ffn *p = ctx;
    uint32_t hidden = p->c->hidden;
    struct block b = block_of(p, item, p->w2_blocks, p->w2_rows, hidden);
    struct moec_mat m = moec_mat_of(p->in->w2, b.expert);
    const uint32_t *sorted = p->in->sorted + p->in->slot_first[0];
    _Alignas(64) float out[MOEC_TILE_TOKENS * ROWS_MAX];

    (void)worker;
    while (b.n_tokens) {
        uint32_t nt = (uint32_t)moec_min_u64(b.n_tokens, MOEC_TILE_TOKENS);
        struct moec_acts h = {
            .x = p->h + b.first * p->h_bytes, .bytes = p->h_bytes, .n = nt};

        p->p2->rows(p->f, &m, b.row, b.n_rows, &h, out, ROWS_MAX);
        for (uint32_t t = 0; t < nt; t++)
            memcpy(p->y + (size_t)sorted[b.first + t] * hidden + b.row,
                   out + t * ROWS_MAX, b.n_rows * sizeof(float));
        b.first += nt;
        b.n_tokens -= nt;
    }
}

static const struct moec_product *product_of(const moec_kernels *k,
                                             const moec_ffn_config *c,
                                             const moec_matrix *m)
{
    struct moec_mat first = moec_mat_of(m, 0);

    if (c->precision == MOEC_PRECISION_EXACT)
        return &moec_product_exact;
    return k->matrix->fast(&first, k->bf16_dot);
}

static void list_active(struct ffn *p)
{
    const uint64_t *first = p->in->slot_first;

    for (uint32_t r = 0; r < p->in->n_rows; r++)
        if (first[r] < first[r + 1])
            p->active[p->n_active++] = r;
}

static uint32_t item_rows(const moec_kernels *k, uint32_t n_experts,
                          uint32_t n_rows)
{
    uint64_t items = (uint64_t)moec_pool_n_threads(k->pool) * ITEMS_PER_THREAD;
    uint64_t rows = (uint64_t)n_experts * n_rows / items / ROWS_MIN * ROWS_MIN;

    return (uint32_t)moec_max_u64(ROWS_MIN, moec_min_u64(rows, ROWS_MAX));
}

moec_status moec_ffn(const moec_kernels *k, const moec_ffn_config *config,
                     const moec_ffn_in *in, float *y, void *workspace,
                     uint64_t workspace_bytes, moec_error *err)
{
    struct ffn p = {.c = config, .in = in};
    uint8_t *w = workspace;
    uint64_t n, need;

    if (!k)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "moec_ffn: NULL");
    MOEC_TRY(check_in(config, in, err));
    n = in->slot_first[in->n_rows] - in->slot_first[0];
    if (n == 0)
        return MOEC_OK;
    need = moec_ffn_workspace_bytes(k, config, n);
    if (!y || !w || workspace_bytes < need || (uintptr_t)w % 64)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_ffn: %llu bytes of workspace at 64, not %llu",
                         (unsigned long long)need,
                         (unsigned long long)workspace_bytes);
    p.y = y;
    p.f = k->matrix;
    p.p13 = product_of(k, config, in->w13);
    p.p2 = product_of(k, config, in->w2);
    p.x_bytes = p.p13->x_bytes(config->hidden);
    p.h_bytes = p.p2->x_bytes(config->inter);
    p.active = (uint32_t *)(void *)w;
    p.x = w + list_bytes(n);
    p.h = p.x + n * p.x_bytes;
    list_active(&p);
    p.w13_rows = item_rows(k, p.n_active, config->inter);
    p.w2_rows = item_rows(k, p.n_active, config->hidden);
    p.w13_blocks = (uint32_t)moec_ceil_div(config->inter, p.w13_rows);
    p.w2_blocks = (uint32_t)moec_ceil_div(config->hidden, p.w2_rows);
    moec_pool_run(k->pool, n, pack_input, &p);
    moec_pool_run(k->pool, (size_t)p.n_active * p.w13_blocks, w13_block, &p);
    moec_pool_run(k->pool, (size_t)p.n_active * p.w2_blocks, w2_block, &p);
    return MOEC_OK;
}
