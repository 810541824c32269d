/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The converted side of one layer in W processes, a rank each. A row goes once
 * to every rank that has one of its columns, as a record: for each column the
 * local row there (-1: another rank's) and its weight, then the hidden state.
 * The rank sorts the columns by slot, runs its own slots on its own files, and
 * sends back the outputs of those columns alone, in the order of rows and
 * columns, so that nothing but numbers travels. The sums are the sender's, in
 * the order of the columns: as in one process, whatever came back first.
 */

#include <string.h>

#include "exchange_calls.h"
#include "level3.h"

/* What one process says to another before anything is sent. */
enum { ROWS, COLUMNS, TOKENS, TOKEN_COLUMNS, N_COUNTS };

typedef struct far {
    moec_l3_serving *g;
    moec_l3_layer *l;
    moec_exchange *x;
    uint32_t size, rank;
    uint32_t cols;
    uint64_t words;           /* of one record */
    uint64_t *sent, *came;    /* [size][N_COUNTS] */
    uint64_t *to, *from;      /* [size + 1] in words */
    uint32_t *out, *in;       /* records, then outputs */
    uint64_t n_in, n_columns; /* rows and columns that came */
    float *hidden, *weights;  /* of the rows that came */
    int32_t *rows;            /* [n_in][C] local rows */
    float *y;                 /* [n_in * C][hidden] */
    uint32_t *run, *blocks;
    uint64_t *run_first;
} far;

static void far_fini(far *f)
{
    moec_free(f->sent);
    moec_free(f->came);
    moec_free(f->to);
    moec_free(f->from);
    moec_free(f->out);
    moec_free(f->in);
    moec_free(f->hidden);
    moec_free(f->weights);
    moec_free(f->rows);
    moec_free(f->y);
    moec_free(f->run);
    moec_free(f->blocks);
    moec_free(f->run_first);
}

/* Local row of a column on rank `p`, or -1 where it goes elsewhere. */
static int32_t row_on(const far *f, uint32_t t, uint32_t c, uint32_t p)
{
    int32_t q = f->l->slots[(size_t)t * f->cols + c];
    uint32_t rank, row;

    if (q < 0)
        return -1;
    moec_l3_place(f->l, (uint32_t)q, f->l->home[t], &rank, &row);
    return rank == p ? (int32_t)row : -1;
}

/* Columns of a row that rank `p` has. */
static uint32_t columns_on(const far *f, uint32_t t, uint32_t p)
{
    uint32_t n = 0;

    for (uint32_t c = 0; c < f->cols; c++)
        n += row_on(f, t, c, p) >= 0;
    return n;
}

static moec_status count(far *f, moec_error *err)
{
    moec_l3_layer *l = f->l;

    f->sent = moec_calloc((size_t)f->size * N_COUNTS, sizeof(*f->sent));
    f->came = moec_calloc((size_t)f->size * N_COUNTS, sizeof(*f->came));
    f->to = moec_calloc((size_t)f->size + 1, sizeof(*f->to));
    f->from = moec_calloc((size_t)f->size + 1, sizeof(*f->from));
    l->slot =
        moec_calloc((size_t)l->topo.n_ranks * l->n_rows + 1, sizeof(*l->slot));
    if (f->sent == NULL || f->came == NULL || f->to == NULL ||
        f->from == NULL || l->slot == NULL)
        return moec_fail_nomem(err, "counts of what is exchanged");
    for (uint32_t p = 0; p < f->size; p++)
        for (uint32_t t = 0; t < l->rows; t++) {
            uint64_t *n = f->sent + (size_t)p * N_COUNTS;
            uint32_t columns = columns_on(f, t, p);

            n[ROWS] += columns != 0;
            n[COLUMNS] += columns;
            n[TOKENS] += columns != 0 && t < l->tokens;
            n[TOKEN_COLUMNS] += t < l->tokens ? columns : 0;
        }
    return MOEC_OK;
}

/* Counts of one kind as places, `words` each. */
static void places(const far *f, const uint64_t *counts, int kind,
                   uint64_t words, uint64_t *first)
{
    first[0] = 0;
    for (uint32_t p = 0; p < f->size; p++)
        first[p + 1] =
            first[p] + counts[(size_t)p * N_COUNTS + (size_t)kind] * words;
}

static void measure(far *f)
{
    moec_rank_traffic *t = &f->l->traffic;
    uint64_t back = f->l->hidden;

    t->tokens = f->l->tokens;
    for (uint32_t p = 0; p < f->size; p++) {
        const uint64_t *out = f->sent + (size_t)p * N_COUNTS;
        const uint64_t *in = f->came + (size_t)p * N_COUNTS;

        t->received += in[TOKENS];
        t->columns += in[TOKEN_COLUMNS];
        f->n_in += in[ROWS];
        f->n_columns += in[COLUMNS];
        if (p == f->rank)
            continue;
        t->bytes_sent +=
            4 * (out[TOKENS] * f->words + in[TOKEN_COLUMNS] * back);
        t->bytes_received +=
            4 * (in[TOKENS] * f->words + out[TOKEN_COLUMNS] * back);
    }
}

/* ------------------------------------------------------------ there */

/* One record of row `t` for rank `p`. */
static void pack_row(const far *f, uint32_t t, uint32_t p, uint32_t *to)
{
    const moec_l3_layer *l = f->l;
    const float *weights =
        l->side[MOEC_LEVEL3_SERVED].weights + (size_t)t * f->cols;

    for (uint32_t c = 0; c < f->cols; c++) {
        int32_t row = row_on(f, t, c, p);

        memcpy(to + c, &row, sizeof(row));
    }
    memcpy(to + f->cols, weights, f->cols * sizeof(*weights));
    memcpy(to + (size_t)2 * f->cols, f->g->x + (size_t)t * l->hidden,
           l->hidden * sizeof(float));
}

static moec_status pack(far *f, moec_error *err)
{
    uint32_t *at;

    places(f, f->sent, ROWS, f->words, f->to);
    places(f, f->came, ROWS, f->words, f->from);
    f->out = moec_calloc((size_t)f->to[f->size] + 1, sizeof(*f->out));
    f->in = moec_calloc((size_t)f->from[f->size] + 1, sizeof(*f->in));
    if (f->out == NULL || f->in == NULL)
        return moec_fail_nomem(err, "rows that are exchanged");
    at = f->out;
    for (uint32_t p = 0; p < f->size; p++)
        for (uint32_t t = 0; t < f->l->rows; t++)
            if (columns_on(f, t, p) != 0) {
                pack_row(f, t, p, at);
                at += f->words;
            }
    return MOEC_OK;
}

static moec_status make_rooms(far *f, moec_error *err)
{
    size_t n = (size_t)f->n_in * f->cols;

    f->hidden = moec_calloc((size_t)f->n_in + 1, f->l->hidden * sizeof(float));
    f->weights = moec_calloc(n + 1, sizeof(*f->weights));
    f->rows = moec_calloc(n + 1, sizeof(*f->rows));
    f->y = moec_calloc(n + 1, f->l->hidden * sizeof(float));
    f->run = moec_calloc(n + 1, sizeof(*f->run));
    f->blocks = moec_calloc(n + 1, sizeof(*f->blocks));
    f->run_first = moec_calloc((size_t)f->l->n_rows + 1, sizeof(uint64_t));
    if (f->hidden == NULL || f->weights == NULL || f->rows == NULL ||
        f->y == NULL || f->run == NULL || f->blocks == NULL ||
        f->run_first == NULL)
        return moec_fail_nomem(err, "rows of other ranks");
    return MOEC_OK;
}

/* Records as arrays; what another process sent is checked like a file. */
static moec_status unpack(far *f, moec_error *err)
{
    uint64_t n_columns = 0;

    MOEC_TRY(make_rooms(f, err));
    for (uint64_t i = 0; i < f->n_in; i++) {
        const uint32_t *from = f->in + i * f->words;
        int32_t *rows = f->rows + i * f->cols;

        memcpy(rows, from, f->cols * sizeof(*rows));
        memcpy(f->weights + i * f->cols, from + f->cols,
               f->cols * sizeof(float));
        memcpy(f->hidden + i * f->l->hidden, from + (size_t)2 * f->cols,
               f->l->hidden * sizeof(float));
        for (uint32_t c = 0; c < f->cols; c++) {
            if (rows[c] < -1 ||
                (rows[c] >= 0 && (uint32_t)rows[c] >= f->l->n_rows))
                return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                                 "a row came for a slot that no rank has");
            n_columns += rows[c] >= 0;
        }
    }
    if (n_columns != f->n_columns)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "other columns came than were announced");
    return MOEC_OK;
}

/* Sort what came by slot, and run every slot of this rank: those that got
 * nothing are read and digested all the same. */
static moec_status run(far *f, moec_error *err)
{
    moec_l3_serving *g = f->g;
    moec_l3_serving mine = *g;
    const moec_kernels *k = f->l->v->k[MOEC_LEVEL3_SERVED];
    uint64_t n = f->n_in * f->cols, padded;
    uint64_t bytes = moec_align_workspace_bytes(k, n, f->l->n_rows);
    moec_room room = {0};
    moec_status st = unpack(f, err);

    if (st == MOEC_OK)
        st = moec_room_get(&room, bytes, err);
    if (st == MOEC_OK)
        st = moec_align(k, f->rows, n, 0, f->l->n_rows, 1, f->run, f->blocks,
                        f->run_first, &padded, room.data, bytes, err);
    moec_room_fini(&room);
    mine.x = f->hidden;
    mine.n_tokens = (uint32_t)f->n_in;
    mine.weights = f->weights;
    mine.y = f->y;
    mine.first_slot = (size_t)f->rank * f->l->n_rows;
    mine.run = f->run;
    mine.run_first = f->run_first;
    return st == MOEC_OK ? moec_l3_run_slots(&mine, f->l->n_rows, err) : st;
}

/* ------------------------------------------------------------- and back */

static moec_status pack_outputs(far *f, moec_error *err)
{
    size_t h = f->l->hidden;
    uint32_t *at;

    moec_free(f->out);
    moec_free(f->in);
    places(f, f->came, COLUMNS, h, f->to);
    places(f, f->sent, COLUMNS, h, f->from);
    f->out = moec_calloc((size_t)f->to[f->size] + 1, sizeof(*f->out));
    f->in = moec_calloc((size_t)f->from[f->size] + 1, sizeof(*f->in));
    if (f->out == NULL || f->in == NULL)
        return moec_fail_nomem(err, "outputs that are exchanged");
    at = f->out;
    for (size_t i = 0; i < (size_t)f->n_in * f->cols; i++)
        if (f->rows[i] >= 0) {
            memcpy(at, f->y + i * h, h * sizeof(float));
            at += h;
        }
    return MOEC_OK;
}

static void unpack_outputs(far *f)
{
    float *y = f->l->side[MOEC_LEVEL3_SERVED].y;
    size_t h = f->l->hidden;
    const uint32_t *at = f->in;

    for (uint32_t p = 0; p < f->size; p++)
        for (uint32_t t = 0; t < f->l->rows; t++)
            for (uint32_t c = 0; c < f->cols; c++)
                if (row_on(f, t, c, p) >= 0) {
                    memcpy(y + ((size_t)t * f->cols + c) * h, at,
                           h * sizeof(float));
                    at += h;
                }
}

static moec_status serve(far *f, moec_error *err)
{
    moec_level3 *v = f->l->v;

    MOEC_TRY(moec_l3_agree(v, count(f, err), err));
    MOEC_TRY(moec_exchange_counts(f->x, f->sent, f->came, N_COUNTS, err));
    measure(f);
    MOEC_TRY(moec_l3_agree(v, pack(f, err), err));
    MOEC_TRY(moec_exchange_words(f->x, f->out, f->to, f->in, f->from, err));
    MOEC_TRY(moec_l3_agree(v, run(f, err), err));
    MOEC_TRY(moec_l3_agree(v, pack_outputs(f, err), err));
    MOEC_TRY(moec_exchange_words(f->x, f->out, f->to, f->in, f->from, err));
    unpack_outputs(f);
    return MOEC_OK;
}

moec_status moec_l3_serve_far(moec_l3_serving *g, moec_error *err)
{
    moec_l3_layer *l = g->l;
    moec_exchange *x = l->v->opts->exchange;
    far f = {.g = g,
             .l = l,
             .x = x,
             .size = moec_exchange_size(x),
             .rank = moec_exchange_rank(x),
             .cols = l->side[MOEC_LEVEL3_SERVED].cols};
    moec_status st;

    f.words = (uint64_t)2 * f.cols + l->hidden;
    st = serve(&f, err);
    far_fini(&f);
    return st;
}
