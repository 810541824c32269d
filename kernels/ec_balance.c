/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice, BALANCED: walk all pairs by (score descending, token, expert)
 * and take a pair while its token has fewer than K experts and its expert
 * fewer than C tokens. No expert has more than C, and no token and expert both
 * would rather have each other: the one stable assignment.
 *
 * Of the T * E pairs the walk touches little more than T * K. A token's first
 * K pairs in its own order are its plain top-K: they are sorted once, by radix.
 * Only where one of them is refused does the token need another expert, the
 * best behind its last one that is not full; full experts stay full, so they
 * need not be tried. These later pairs, at most one a token at a time, wait in
 * a heap and are merged with the sorted ones:
 *
 *   sorted   s0 >= s1 >= s2 >= ...      T * K, fixed
 *   heap     next pair of each token that has been refused
 *
 * On a router whose fullest expert has 1.4 times the mean, one pair in ten is
 * refused. Unlike proposing in rounds this has no chains of displacement: a
 * pair once taken stays.
 *
 * Entries are ~column key : token, so that ascending is the walk's order.
 * Within a token column keys follow the row keys but for a last bit of exp;
 * they are made to descend, so that its pairs come in its own order. */

#include <string.h>

#include "ec.h"
#include "route_math.h"

#define NO_PAIR (UINT64_C(0xffffffff) << 32)
#define AHEAD   24u   /* pairs of the walk: about 200 ns */
#define DIGITS  2048u /* three of 11 bits: 33 of the 32 */

struct token {
    uint64_t refused;  /* of its plain columns, by rank */
    uint32_t last_key; /* row key and id of the last expert tried */
    uint32_t last_id;
    uint32_t last_col;  /* its column key */
    uint8_t n_seen;     /* plain columns walked */
    uint8_t n_refused;  /* of these */
    uint8_t n_replaced; /* refused columns that have another expert */
    uint8_t waits;      /* in the heap; then last_id is not yet tried */
};

struct balance {
    const moec_ec_job *job;
    uint32_t *rows;           /* [n][stride] */
    uint32_t *cols;           /* [chunks][BLOCK][stride] column keys at start */
    moec_row_scale *scales;   /* [n]: these tell them again */
    uint64_t *sorted, *spare; /* [n * K] */
    uint32_t *digits;         /* [3][DIGITS] */
    struct token *tokens;     /* [n] */
    uint64_t *heap;           /* [n] */
    uint32_t n_heap;
    uint32_t n_open; /* experts with room */
    uint32_t *open;  /* [stride] all ones: has room */
    uint32_t *room;  /* [E] */
};

static struct balance take_all(const moec_ec_job *job, moec_ec_space *space)
{
    struct balance b = {.job = job};
    uint64_t n = job->n, row = (uint64_t)job->stride * 4;
    uint64_t pairs = n * job->r->config.top_k * 8;
    bool has_cols = job->r->fns.cols != NULL;

    b.rows = moec_ec_take(space, n * row);
    b.cols = moec_ec_take(
        space, has_cols ? job->chunks.n * MOEC_ROUTE_BLOCK * row : 0);
    b.scales = moec_ec_take(space, has_cols ? n * sizeof(*b.scales) : 0);
    b.sorted = moec_ec_take(space, pairs);
    b.spare = moec_ec_take(space, pairs);
    b.digits = moec_ec_take(space, 3 * DIGITS * 4);
    b.tokens = moec_ec_take(space, n * sizeof(*b.tokens));
    b.heap = moec_ec_take(space, n * 8);
    b.open = moec_ec_take(space, row);
    b.room = moec_ec_take(space, row);
    return b;
}

void moec_ec_balance_space(const moec_ec_job *job, moec_ec_space *space)
{
    (void)take_all(job, space);
}

/* ------------------------------------------------------ plain choice first */

static int32_t *ids_of(const struct balance *b, uint32_t token)
{
    return b->job->out->ids + (uint64_t)token * b->job->r->n_columns;
}

/* The token's plain pairs, and where it would go on from them. */
static void start_token(struct balance *b, uint32_t t, const uint32_t *cols)
{
    const uint32_t *rows = b->rows + (uint64_t)t * b->job->stride;
    uint32_t k = b->job->r->config.top_k;
    uint64_t *pairs = b->sorted + (uint64_t)t * k;
    const int32_t *ids = ids_of(b, t);
    struct token *tok = &b->tokens[t];
    uint32_t col = UINT32_MAX;

    for (uint32_t i = 0; i < k; i++) {
        uint32_t id = (uint32_t)ids[i];

        pairs[i] = NO_PAIR | t;
        if (ids[i] < 0)
            continue;
        tok->last_id = id;
        tok->last_key = rows[id];
        col = cols[id] < col ? cols[id] : col;
        pairs[i] = (uint64_t)~col << 32 | t;
    }
    tok->last_col = col;
}

static void start_block(struct balance *b, size_t chunk, uint32_t row,
                        uint32_t n)
{
    const moec_ec_job *job = b->job;
    const moec_router *r = job->r;
    uint32_t e = r->config.n_experts, stride = job->stride;
    uint32_t *keys = b->rows + (uint64_t)row * stride, *cols = keys;

    r->fns.rows(r, job->in, row, n, ids_of(b, row),
                job->out->weights + (uint64_t)row * r->n_columns);
    r->fns.keys(r, job->in, row, n, keys, stride);
    for (uint32_t i = 0; i < n && e < stride; i++) /* the padding */
        memset(keys + (size_t)i * stride + e, 0, (stride - e) * sizeof(*keys));
    if (moec_ec_has_cols(job)) {
        cols = b->cols + chunk * MOEC_ROUTE_BLOCK * stride;
        r->fns.cols(r, job->in, row, n, cols, stride, b->scales + row);
    }
    memset(b->tokens + row, 0, n * sizeof(*b->tokens));
    for (uint32_t i = 0; i < n; i++)
        start_token(b, row + i, cols + (size_t)i * stride);
}

static void start_chunk(void *ctx, size_t chunk, uint32_t worker)
{
    struct balance *b = ctx;
    uint32_t row = (uint32_t)chunk * b->job->chunks.rows, n;
    uint32_t end = moec_ec_chunk_end(b->job, chunk);

    (void)worker;
    for (; row < end; row += n) {
        n = (uint32_t)moec_min_u64(MOEC_ROUTE_BLOCK, end - row);
        start_block(b, chunk, row, n);
    }
}

/* Least significant digit first, stable: equal keys stay by (token, rank). */
static void sort_pairs(struct balance *b)
{
    uint64_t n = (uint64_t)b->job->n * b->job->r->config.top_k;

    memset(b->digits, 0, 3 * DIGITS * sizeof(*b->digits));
    for (uint64_t i = 0; i < n; i++) {
        uint64_t v = b->sorted[i] >> 32;

        b->digits[v % DIGITS]++;
        b->digits[DIGITS + v / DIGITS % DIGITS]++;
        b->digits[2 * DIGITS + v / DIGITS / DIGITS]++;
    }
    for (uint32_t pass = 0; pass < 3; pass++) {
        uint32_t *digits = b->digits + (size_t)pass * DIGITS, sum = 0;
        uint32_t shift = 32 + 11 * pass;
        uint64_t *to = b->spare;

        for (uint32_t d = 0; d < DIGITS; d++) {
            uint32_t count = digits[d];

            digits[d] = sum;
            sum += count;
        }
        for (uint64_t i = 0; i < n; i++)
            to[digits[(b->sorted[i] >> shift) % DIGITS]++] = b->sorted[i];
        b->spare = b->sorted;
        b->sorted = to;
    }
}

/* ---------------------------------------------------------------- heap */

static void heap_push(struct balance *b, uint64_t v)
{
    uint32_t i = b->n_heap++;

    for (; i > 0 && b->heap[(i - 1) / 2] > v; i = (i - 1) / 2)
        b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = v;
}

static uint64_t heap_pop(struct balance *b)
{
    uint64_t top = b->heap[0], v = b->heap[--b->n_heap];
    uint32_t n = b->n_heap, i = 0;

    for (;;) {
        uint32_t child = 2 * i + 1;

        if (child + 1 < n && b->heap[child + 1] < b->heap[child])
            child++;
        if (child >= n || b->heap[child] >= v)
            break;
        b->heap[i] = b->heap[child];
        i = child;
    }
    b->heap[i] = v;
    return top;
}

/* ---------------------------------------------------------------- walk */

static bool take_expert(struct balance *b, uint32_t e)
{
    if (b->room[e] == 0)
        return false;
    if (--b->room[e] == 0) {
        b->open[e] = 0;
        b->n_open--;
    }
    return true;
}

/* The column key of a pair, from its row key: the same operations as in
 * route_scalar.c. */
static uint32_t column_key(const struct balance *b, uint32_t t, uint32_t key)
{
    float cap = b->job->r->config.softcap, x = moec_f32_unkey(key);

    if (!moec_ec_has_cols(b->job))
        return key;
    if (cap != 0.0f)
        x = cap * moec_f32_tanh(x / cap);
    return moec_f32_key(moec_f32_exp(x - b->scales[t].max) *
                        b->scales[t].inverse);
}

/* Let a token that lacks an expert wait for its next one with room. */
static void go_on(struct balance *b, uint32_t t)
{
    struct token *tok = &b->tokens[t];
    const uint32_t *rows = b->rows + (uint64_t)t * b->job->stride;
    uint32_t e = b->job->fns->next(rows, b->open, b->job->stride, tok->last_key,
                                   tok->last_id);

    if (e == UINT32_MAX)
        return;
    tok->last_id = e;
    tok->last_key = rows[e];
    tok->last_col =
        (uint32_t)moec_min_u64(tok->last_col, column_key(b, t, rows[e]));
    tok->waits = 1;
    heap_push(b, (uint64_t)~tok->last_col << 32 | t);
}

static void refuse(struct token *tok, uint32_t rank)
{
    tok->refused |= UINT64_C(1) << rank;
    tok->n_refused++;
}

/* The keys of a token were written long ago. Where its next expert is full
 * already they will be read: ask for them now. A guess, no more: another pair
 * of the token may come before. */
static void expect(const struct balance *b, uint32_t t, uint32_t e)
{
    const uint32_t *rows = b->rows + (uint64_t)t * b->job->stride;

    if (b->room[e] > 0)
        return;
    for (uint32_t i = 0; i < b->job->stride; i += 16)
        __builtin_prefetch(rows + i);
}

static void expect_plain(const struct balance *b, uint32_t t)
{
    uint32_t rank = b->tokens[t].n_seen;

    if (rank < b->job->r->config.top_k && ids_of(b, t)[rank] >= 0)
        expect(b, t, (uint32_t)ids_of(b, t)[rank]);
}

/* The two that may be the next but one of the heap. */
static void expect_waiting(const struct balance *b)
{
    for (uint32_t i = 1; i < 3 && i < b->n_heap; i++) {
        uint32_t t = (uint32_t)b->heap[i];

        expect(b, t, b->tokens[t].last_id);
    }
}

/* Pair i of n. */
static void walk_plain(struct balance *b, uint64_t i, uint64_t n)
{
    uint32_t t = (uint32_t)b->sorted[i], rank = b->tokens[t].n_seen++;
    struct token *tok = &b->tokens[t];

    if (n - i > AHEAD)
        expect_plain(b, (uint32_t)b->sorted[i + AHEAD]);

    if (take_expert(b, (uint32_t)ids_of(b, t)[rank]))
        return;
    refuse(tok, rank);
    if (!tok->waits)
        go_on(b, t);
}

/* Replaced experts are put into the refused columns, first into first. */
static void walk_waiting(struct balance *b)
{
    uint32_t t = (uint32_t)heap_pop(b);
    struct token *tok = &b->tokens[t];
    uint64_t columns = tok->refused;

    expect_waiting(b);
    tok->waits = 0;
    if (take_expert(b, tok->last_id)) {
        for (uint32_t i = 0; i < tok->n_replaced; i++)
            columns &= columns - 1;
        ids_of(b, t)[__builtin_ctzll(columns)] = (int32_t)tok->last_id;
        tok->n_replaced++;
    }
    if (tok->n_replaced < tok->n_refused)
        go_on(b, t);
}

static void walk(struct balance *b)
{
    uint64_t n = (uint64_t)b->job->n * b->job->r->config.top_k, i = 0;

    while (n > 0 && b->sorted[n - 1] >= NO_PAIR)
        n--;
    while (b->n_open > 0 && (i < n || b->n_heap > 0)) {
        if (b->n_heap > 0 && (i == n || b->heap[0] < b->sorted[i]))
            walk_waiting(b);
        else
            walk_plain(b, i++, n);
    }
    for (; i < n; i++) {
        struct token *tok = &b->tokens[(uint32_t)b->sorted[i]];

        refuse(tok, tok->n_seen++);
    }
}

/* ------------------------------------------------------------- columns */

/* Rank order: the plain columns that were taken, then the replaced ones, which
 * come behind all plain ones in the token's order. Returns how many. */
static uint32_t order_columns(const struct token *tok, uint32_t k, int32_t *ids)
{
    int32_t later[MOEC_ROUTE_K_MAX];
    uint32_t n = 0, n_later = 0;

    for (uint32_t i = 0; i < k && ids[i] >= 0; i++) {
        if ((tok->refused >> i & 1) == 0)
            ids[n++] = ids[i];
        else if (n_later < tok->n_replaced)
            later[n_later++] = ids[i];
    }
    memcpy(ids + n, later, n_later * sizeof(*ids));
    n += n_later;
    for (uint32_t i = n; i < k; i++)
        ids[i] = -1;
    return n;
}

static void finish_chunk(void *ctx, size_t chunk, uint32_t worker)
{
    const struct balance *b = ctx;
    const moec_ec_job *job = b->job;
    const moec_router *r = job->r;
    uint32_t row = (uint32_t)chunk * job->chunks.rows, k = r->config.top_k, n;
    uint32_t end = moec_ec_chunk_end(job, chunk);
    moec_ec_counts *counts = &job->counts[chunk];

    (void)worker;
    for (; row < end; row += n) {
        uint64_t refused = 0;

        n = (uint32_t)moec_min_u64(MOEC_ROUTE_BLOCK, end - row);
        for (uint32_t i = 0; i < n; i++) {
            const struct token *tok = &b->tokens[row + i];
            int32_t *ids = ids_of(b, row + i);
            uint32_t held = order_columns(tok, k, ids);

            refused |= tok->refused;
            counts->short_tokens += held < k;
            counts->dropped += k - held;
            moec_ec_finish_ids(r, ids);
        }
        if (refused)
            r->fns.weights(r, job->in, row, n, ids_of(b, row),
                           moec_ec_has_cols(job) ? b->scales + row : NULL,
                           job->out->weights + (uint64_t)row * r->n_columns);
    }
}

void moec_ec_balance(const moec_ec_job *job, moec_ec_space *space)
{
    struct balance b = take_all(job, space);
    uint32_t n_experts = job->r->config.n_experts;

    b.n_open = n_experts;
    memset(b.open, 0xff, (size_t)job->stride * sizeof(*b.open));
    for (uint32_t e = 0; e < n_experts; e++)
        b.room[e] = job->capacity;
    moec_pool_run(job->r->k->pool, job->chunks.n, start_chunk, &b);
    sort_pairs(&b);
    walk(&b);
    moec_pool_run(job->r->k->pool, job->chunks.n, finish_chunk, &b);
}
