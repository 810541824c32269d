/* SPDX-License-Identifier: Apache-2.0
 *
 * Expert Choice by admission: FILL_MISSING, FULL_ROW, PAD.
 *
 * Each expert needs its C best of n tokens, of E * n pairs in all, and each
 * token the handful of experts that took it. No table of pairs is made:
 *
 * 1. Sample: some 256 rows give every expert a floor that 2.4 times C of its
 *    tokens exceed.
 * 2. Stream: the keys of a block of rows are made, compared with the floors
 *    while they are in the first-level cache, and what is above is appended
 *    to the lists of its experts: seven in a hundred pairs. A list that is
 *    full is cut to its C best, and the C-th becomes the floor: later tokens
 *    have larger ids and lose every tie, so above is strictly above.
 * 3. Cut: the C-th key of each expert, bit by bit, over its lists; they are
 *    cut to what it admits. An expert whose floor was too high (its list is
 *    short of C) has its floor set to 0, and step 2 is repeated for these
 *    experts. The sample decides the time only, never the result.
 * 4. Gather: the admitted pairs are sorted into their tokens by counting, and
 *    each token takes its K best, filling up as the mode says.
 *
 * Steps 2 and 4 go by chunks of rows, step 3 by experts. */

#include <math.h>
#include <string.h>

#include "ec.h"

#define SAMPLE_MAX       256u
#define SAMPLE_MIN       128u
#define EXPERTS_AT_ONCE  16u /* of one work item of steps 1 and 3 */
#define NO_KEY_IS_ABOVE  UINT32_MAX
#define SAMPLE_FROM_ROWS 1024u

/* One chunk of rows. */
struct lane {
    uint32_t *rows;   /* [stride] row keys of one token */
    uint32_t *cols;   /* [block][stride] column keys */
    uint32_t *floors; /* [stride] */
    uint32_t *len;    /* [E] */
    uint64_t *pairs;  /* [E][pitch] column key, tokens ascending */
    uint32_t *open;   /* [stride] all ones */
    uint16_t *ids;    /* [stride + 16] */
    uint32_t *first;  /* [rows + 1] of the pairs below */
    uint64_t n_admitted;
};

struct admit {
    const moec_ec_job *job;
    uint32_t block;         /* rows whose keys are made at once */
    uint32_t room;          /* of a list */
    uint32_t pitch;         /* of the lists: room + 8, see keep() */
    uint32_t n_misses;      /* experts to be streamed again */
    uint32_t sample;        /* rows, 0: none */
    uint32_t rank;          /* of the floor in the sample */
    uint32_t *sampled;      /* [stride / 16][sample][16] */
    uint32_t *floors;       /* [stride] */
    uint32_t *missed;       /* [E] */
    uint64_t *by_token;     /* [E * C] key, ~expert */
    moec_row_scale *scales; /* [n], where the job has column keys */
    struct lane *lanes;
};

/* ---------------------------------------------------------- workspace */

static void take_lane(const struct admit *a, struct lane *l,
                      moec_ec_space *space)
{
    const moec_ec_job *job = a->job;
    uint64_t e = job->r->config.n_experts, row = (uint64_t)job->stride * 4;
    struct lane lane = {0};

    lane.rows = moec_ec_take(space, row);
    lane.cols = moec_ec_take(space, row * a->block);
    lane.floors = moec_ec_take(space, row);
    lane.len = moec_ec_take(space, row);
    lane.open = moec_ec_take(space, row);
    lane.ids = moec_ec_take(space, (uint64_t)(job->stride + 16) * 2);
    lane.first = moec_ec_take(space, ((uint64_t)job->chunks.rows + 1) * 4);
    lane.pairs = moec_ec_take(space, e * a->pitch * 8);
    if (space->base)
        *l = lane;
}

/* The sample lies where the pairs of the first lane will be. */
static void plan_sample(struct admit *a)
{
    const moec_ec_job *job = a->job;
    uint64_t bytes = (uint64_t)job->r->config.n_experts * a->pitch * 8;
    uint64_t rows = moec_min_u64(SAMPLE_MAX, job->n / 4);
    float expect;

    rows = moec_min_u64(rows, bytes / ((uint64_t)job->stride * 4));
    if (job->n < SAMPLE_FROM_ROWS || rows < SAMPLE_MIN ||
        job->capacity > job->n / 4)
        return;
    /* How many of the C best fall into the sample is about Poisson; four
     * deviations above make a miss rarer than one expert in 10,000. */
    expect = (float)job->capacity * (float)rows / (float)job->n;
    a->rank = (uint32_t)(expect + 4.0f * sqrtf(expect) + 2.0f);
    a->sample = (uint32_t)rows;
}

static struct admit take_all(const moec_ec_job *job, moec_ec_space *space)
{
    struct admit a = {.job = job};
    uint64_t n_experts = job->r->config.n_experts;

    a.block = moec_ec_block_rows(job->stride);
    a.room = (uint32_t)moec_min_u64(job->chunks.rows,
                                    3 * (uint64_t)job->capacity + 16);
    a.pitch = a.room + 8;
    a.floors = moec_ec_take(space, (uint64_t)job->stride * 4);
    a.missed = moec_ec_take(space, n_experts * 4);
    a.scales =
        moec_ec_take(space, job->r->fns.cols ? job->n * sizeof(*a.scales) : 0);
    a.lanes = moec_ec_take(space, job->chunks.n * sizeof(*a.lanes));
    a.by_token = moec_ec_take(space, n_experts * job->capacity * 8);
    for (uint32_t c = 0; c < job->chunks.n; c++)
        take_lane(&a, space->base ? &a.lanes[c] : NULL, space);
    return a;
}

void moec_ec_admit_space(const moec_ec_job *job, moec_ec_space *space)
{
    (void)take_all(job, space);
}

/* -------------------------------------------------------------- sample */

/* Row i of the sample: one of each stretch of n / sample rows, scattered in it
 * so that no rhythm of the tokens is in step with it. */
static uint32_t sample_row(const struct admit *a, uint32_t i)
{
    uint32_t stretch = a->job->n / a->sample;

    return i * stretch + ((i * UINT32_C(2654435761)) >> 16) % stretch;
}

static void sample_chunk(void *ctx, size_t chunk, uint32_t worker)
{
    struct admit *a = ctx;
    const struct lane *l = &a->lanes[chunk];
    const moec_ec_job *job = a->job;
    uint32_t n_chunks = job->chunks.n;

    (void)worker;
    for (uint32_t i = (uint32_t)chunk; i < a->sample; i += n_chunks) {
        moec_ec_cols(job, sample_row(a, i), 1, l->cols, NULL);
        for (uint32_t e = 0; e < job->stride; e += 16)
            memcpy(a->sampled + ((uint64_t)e * a->sample + i * 16), l->cols + e,
                   16 * sizeof(*l->cols));
    }
}

static void floors_of_16(void *ctx, size_t group, uint32_t worker)
{
    struct admit *a = ctx;

    (void)worker;
    a->job->fns->floors(a->sampled + group * 16 * a->sample, a->sample, a->rank,
                        a->floors + group * 16);
}

static void set_floors(struct admit *a)
{
    const moec_ec_job *job = a->job;
    moec_pool *pool = job->r->k->pool;

    if (a->sample == 0) {
        memset(a->floors, 0, (size_t)job->stride * 4);
        return;
    }
    a->sampled = (uint32_t *)(void *)a->lanes[0].pairs;
    moec_pool_run(pool, job->chunks.n, sample_chunk, a);
    moec_pool_run(pool, job->stride / 16, floors_of_16, a);
}

/* -------------------------------------------------------------- stream */

/* A key v of which the C best of some pairs are those above v and the first
 * `ties` of those at v. */
struct cut {
    uint32_t v, ties;
};

/* For expert e in all of `lanes`, whose pairs are more than C and all above
 * `floor`: bisection by counts, without a branch on a pair. It ends where C
 * pairs are found above some key, or else at the key they are tied at. */
static struct cut find_cut(const struct admit *a, const struct lane *lanes,
                           uint32_t n_lanes, uint32_t e, uint32_t floor)
{
    const struct moec_ec_fns *fns = a->job->fns;
    uint64_t low = (uint64_t)floor + 1, high = 0, at = (uint64_t)e * a->pitch;
    uint32_t capacity = a->job->capacity, n_high = 0;
    struct cut cut;

    for (uint32_t c = 0; c < n_lanes; c++)
        high = moec_max_u64(high,
                            fns->largest(lanes[c].pairs + at, lanes[c].len[e]));
    high = (high >> 32) + 1;
    while (high - low > 1 && n_high < capacity) {
        uint64_t middle = (low + high) / 2;
        uint32_t n = 0;

        for (uint32_t c = 0; c < n_lanes; c++)
            n += fns->reach(lanes[c].pairs + at, lanes[c].len[e], middle << 32);
        if (n > capacity) {
            low = middle;
        } else {
            high = middle;
            n_high = n;
        }
    }
    cut.v = (uint32_t)(high - 1);
    cut.ties = capacity - n_high;
    return cut;
}

static void cut_list(const struct admit *a, struct lane *l, uint32_t e,
                     struct cut *cut)
{
    l->len[e] = a->job->fns->keep(l->pairs + (uint64_t)e * a->pitch, l->len[e],
                                  cut->v, &cut->ties);
}

/* A list is full: keep its C best and let only better ones in. Where it is the
 * whole chunk, and no more than C, there is nothing to cut. */
static void shrink(const struct admit *a, struct lane *l, uint32_t e)
{
    struct cut cut;

    if (l->len[e] <= a->job->capacity)
        return;
    cut = find_cut(a, l, 1, e, l->floors[e]);
    cut_list(a, l, e, &cut);
    l->floors[e] = cut.v;
}

static void offer_row(const struct admit *a, struct lane *l, uint32_t token,
                      const uint32_t *cols)
{
    uint32_t n = a->job->fns->above(cols, l->floors, a->job->stride, l->ids);

    for (uint32_t i = 0; i < n; i++) {
        uint32_t e = l->ids[i];
        uint64_t *pairs = l->pairs + (uint64_t)e * a->pitch;

        pairs[l->len[e]] = MOEC_EC_PAIR(cols[e], token);
        if (++l->len[e] == a->room)
            shrink(a, l, e);
    }
}

static moec_row_scale *scales_of(const struct admit *a, uint32_t row)
{
    return moec_ec_has_cols(a->job) ? a->scales + row : NULL;
}

static void stream_chunk(void *ctx, size_t chunk, uint32_t worker)
{
    const struct admit *a = ctx;
    struct lane *l = &a->lanes[chunk];
    const moec_ec_job *job = a->job;
    uint32_t row = (uint32_t)chunk * job->chunks.rows, n;
    uint32_t end = moec_ec_chunk_end(job, chunk);

    (void)worker;
    memcpy(l->floors, a->floors, (size_t)job->stride * 4);
    for (uint32_t e = 0; e < job->r->config.n_experts; e++)
        if (a->floors[e] != NO_KEY_IS_ABOVE)
            l->len[e] = 0;
    for (; row < end; row += n) {
        n = (uint32_t)moec_min_u64(a->block, end - row);
        moec_ec_cols(job, row, n, l->cols, scales_of(a, row));
        for (uint32_t i = 0; i < n; i++)
            offer_row(a, l, row + i, l->cols + (size_t)i * job->stride);
    }
}

/* ----------------------------------------------------------------- cut */

static void cut_expert(struct admit *a, uint32_t e)
{
    uint32_t n_lanes = a->job->chunks.n;
    struct cut cut;
    uint64_t n = 0;

    a->missed[e] = 0;
    for (uint32_t c = 0; c < n_lanes; c++)
        n += a->lanes[c].len[e];
    if (n < a->job->capacity && a->floors[e] > 0)
        a->missed[e] = 1;
    if (n <= a->job->capacity)
        return;
    cut = find_cut(a, a->lanes, n_lanes, e, a->floors[e]);
    for (uint32_t c = 0; c < n_lanes; c++)
        cut_list(a, &a->lanes[c], e, &cut);
}

static void cut_experts(void *ctx, size_t group, uint32_t worker)
{
    struct admit *a = ctx;
    uint32_t e = (uint32_t)group * EXPERTS_AT_ONCE;
    uint32_t end = (uint32_t)moec_min_u64(e + EXPERTS_AT_ONCE,
                                          a->job->r->config.n_experts);

    (void)worker;
    for (; e < end; e++)
        if (a->floors[e] != NO_KEY_IS_ABOVE)
            cut_expert(a, e);
}

/* True where some floor was too high; the next stream is for these experts. */
static bool lower_floors(struct admit *a)
{
    bool again = false;

    for (uint32_t e = 0; e < a->job->r->config.n_experts; e++) {
        bool miss = a->floors[e] != NO_KEY_IS_ABOVE && a->missed[e];

        a->floors[e] = miss ? 0 : NO_KEY_IS_ABOVE;
        again |= miss;
    }
    return again;
}

static void admit_pairs(struct admit *a)
{
    moec_pool *pool = a->job->r->k->pool;
    uint32_t n_groups = a->job->stride / EXPERTS_AT_ONCE;

    do {
        moec_pool_run(pool, a->job->chunks.n, stream_chunk, a);
        moec_pool_run(pool, n_groups, cut_experts, a);
    } while (lower_floors(a));
}

/* -------------------------------------------------------------- gather */

/* The lists of a chunk into `to`, by token; first[t] .. first[t + 1] of it are
 * those of the chunk's row t. */
static void sort_by_token(const struct admit *a, struct lane *l, uint32_t row,
                          uint32_t n_rows, uint64_t *to)
{
    uint32_t n_experts = a->job->r->config.n_experts, sum = 0;

    /* Counted one place up, summed, and counted up again while they are
     * written: first[] ends as it should be. */
    memset(l->first, 0, ((size_t)n_rows + 1) * sizeof(*l->first));
    for (uint32_t e = 0; e < n_experts; e++) {
        const uint64_t *pairs = l->pairs + (uint64_t)e * a->pitch;

        for (uint32_t i = 0; i < l->len[e]; i++)
            l->first[(uint32_t)pairs[i] - row + 1]++;
    }
    for (uint32_t t = 0; t < n_rows; t++) {
        uint32_t n = l->first[t + 1];

        l->first[t + 1] = sum;
        sum += n;
    }
    for (uint32_t e = 0; e < n_experts; e++) {
        const uint64_t *pairs = l->pairs + (uint64_t)e * a->pitch;

        for (uint32_t i = 0; i < l->len[e]; i++)
            to[l->first[(uint32_t)pairs[i] - row + 1]++] =
                MOEC_EC_PAIR(MOEC_EC_KEY(pairs[i]), ~e);
    }
}

static uint32_t id_of(uint64_t pair)
{
    return ~(uint32_t)pair;
}

/* The K best of a token's n pairs into ids. Column keys order a row as row
 * keys do, but where they are equal: softmax rounds. */
static uint32_t choose(const struct admit *a, const struct lane *l,
                       uint32_t row, uint64_t *pairs, uint32_t n, int32_t *ids)
{
    const moec_ec_job *job = a->job;
    uint32_t k = job->r->config.top_k, m = job->fns->best(pairs, n, k + 1);
    bool tied = false;

    if (moec_ec_has_cols(job))
        for (uint32_t i = 1; i < m; i++)
            tied |= MOEC_EC_KEY(pairs[i]) == MOEC_EC_KEY(pairs[i - 1]);
    if (tied) {
        job->r->fns.keys(job->r, job->in, row, 1, l->rows, job->stride);
        for (uint32_t i = 0; i < n; i++)
            pairs[i] = MOEC_EC_PAIR(l->rows[id_of(pairs[i])], pairs[i]);
        (void)job->fns->best(pairs, n, k);
    }
    m = m < k ? m : k;
    for (uint32_t i = 0; i < m; i++)
        ids[i] = (int32_t)id_of(pairs[i]);
    return m;
}

/* The m < K experts of `ids` and the best others of the row, in rank order.
 * Returns how many there are now. */
static uint32_t fill_missing(const struct admit *a, const struct lane *l,
                             uint32_t row, uint32_t m, int32_t *ids)
{
    const moec_ec_job *job = a->job;
    uint32_t k = job->r->config.top_k, key = UINT32_MAX, n = m, id = 0;
    uint64_t pairs[MOEC_ROUTE_K_MAX];

    job->r->fns.keys(job->r, job->in, row, 1, l->rows, job->stride);
    for (uint32_t i = 0; i < m; i++) {
        pairs[i] = MOEC_EC_PAIR(l->rows[ids[i]], ~(uint32_t)ids[i]);
        l->open[ids[i]] = 0;
    }
    for (; n < k; n++) {
        id = job->fns->next(l->rows, l->open, job->stride, key, id);
        if (id == UINT32_MAX)
            break;
        key = l->rows[id];
        pairs[n] = MOEC_EC_PAIR(key, ~id);
    }
    for (uint32_t i = 0; i < m; i++)
        l->open[ids[i]] = UINT32_MAX;
    if (n > m)
        (void)job->fns->best(pairs, n, n);
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)id_of(pairs[i]);
    return n;
}

/* A token that m < K experts took. */
static void finish_short(const struct admit *a, const struct lane *l,
                         moec_ec_counts *counts, uint32_t row, uint32_t m)
{
    const moec_router *r = a->job->r;
    uint64_t at = (uint64_t)row * r->n_columns;
    int32_t *ids = a->job->out->ids + at;
    float *weights = a->job->out->weights + at;
    uint32_t n = m, k = r->config.top_k;

    counts->short_tokens++;
    switch (r->config.ec.fill) {
    case MOEC_EC_FULL_ROW:
        r->fns.rows(r, a->job->in, row, 1, ids, weights);
        for (n = k; n > 0 && ids[n - 1] < 0;)
            n--;
        break;
    case MOEC_EC_FILL_MISSING:
        n = fill_missing(a, l, row, m, ids);
        break;
    case MOEC_EC_PAD:
    case MOEC_EC_BALANCED: /* not here */
        break;
    }
    counts->fallback_tokens += n > m;
    counts->dropped += k - n;
    for (; n < k; n++)
        ids[n] = -1;
}

/* Ids of the n rows from `row`; those of chunk row t begin at to[first[t]]. */
static void choose_rows(const struct admit *a, const struct lane *l,
                        moec_ec_counts *counts, uint32_t row, uint32_t n,
                        uint64_t *to, const uint32_t *first)
{
    const moec_router *r = a->job->r;
    const moec_route_in *in = a->job->in;
    uint32_t bytes = in->logits_dtype == MOEC_DTYPE_F32 ? 4 : 2;
    int32_t *ids = a->job->out->ids + (uint64_t)row * r->n_columns;

    for (uint32_t t = 0; t < n; t++, ids += r->n_columns) {
        const char *logits = moec_route_row(r, in, row + t);
        uint32_t m =
            choose(a, l, row + t, to + first[t], first[t + 1] - first[t], ids);

        if (m < r->config.top_k)
            finish_short(a, l, counts, row + t, m);
        moec_ec_finish_ids(r, ids);
        for (uint32_t i = 0; i < m; i++) /* for the weights */
            __builtin_prefetch(logits + (size_t)ids[i] * bytes);
    }
}

static void gather_chunk(void *ctx, size_t chunk, uint32_t worker)
{
    const struct admit *a = ctx;
    struct lane *l = &a->lanes[chunk];
    const moec_ec_job *job = a->job;
    const moec_router *r = job->r;
    uint32_t row = (uint32_t)chunk * job->chunks.rows, n;
    uint32_t n_rows = moec_ec_chunk_end(job, chunk) - row;
    uint64_t *to = a->by_token;

    (void)worker;
    for (size_t c = 0; c < chunk; c++)
        to += a->lanes[c].n_admitted;
    sort_by_token(a, l, row, n_rows, to);
    for (uint32_t t = 0; t < n_rows; t += n) {
        uint64_t at = (uint64_t)(row + t) * r->n_columns;

        n = (uint32_t)moec_min_u64(MOEC_ROUTE_BLOCK, n_rows - t);
        choose_rows(a, l, &job->counts[chunk], row + t, n, to, l->first + t);
        r->fns.weights(r, job->in, row + t, n, job->out->ids + at,
                       scales_of(a, row + t), job->out->weights + at);
    }
}

/* ----------------------------------------------------------------- all */

void moec_ec_admit(const moec_ec_job *job, moec_ec_space *space)
{
    struct admit a = take_all(job, space);

    plan_sample(&a);
    for (uint32_t c = 0; c < job->chunks.n; c++) {
        struct lane *l = &a.lanes[c];
        size_t block = (size_t)a.block * job->stride * 4;

        memset(l->rows, 0, (size_t)job->stride * 4); /* the padding */
        memset(l->cols, 0, block);
        memset(l->open, 0xff, (size_t)job->stride * 4);
    }
    set_floors(&a);
    admit_pairs(&a);
    for (uint32_t c = 0; c < job->chunks.n; c++) {
        a.lanes[c].n_admitted = 0;
        for (uint32_t e = 0; e < job->r->config.n_experts; e++)
            a.lanes[c].n_admitted += a.lanes[c].len[e];
    }
    moec_pool_run(job->r->k->pool, job->chunks.n, gather_chunk, &a);
}
