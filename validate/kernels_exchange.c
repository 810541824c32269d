/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the processes of a validation tell each other beside the rows: which
 * experts somebody runs, what stands in every rank's slots, and figures. So
 * each process proves its own share of the tokens against the whole layout, and
 * all of them return the same result.
 */

#include <string.h>

#include "exchange_calls.h"
#include "level3.h"

moec_status moec_l3_agree(moec_level3 *v, moec_status st, moec_error *err)
{
    return v->opts->exchange == NULL
               ? st
               : moec_exchange_agree(v->opts->exchange, st, err);
}

/* ------------------------------------------------------------ experts */

moec_status moec_l3_count_all(moec_l3_layer *l, uint32_t *counts, size_t n,
                              moec_error *err)
{
    moec_exchange *x = l->v->opts->exchange;
    uint64_t *wide;
    moec_status st = MOEC_OK;

    if (x == NULL)
        return MOEC_OK;
    wide = moec_calloc(n + 1, sizeof(*wide));
    if (wide == NULL)
        st = moec_fail_nomem(err, "counts of all processes");
    st = moec_l3_agree(l->v, st, err);
    for (size_t i = 0; st == MOEC_OK && i < n; i++)
        wide[i] = counts[i];
    if (st == MOEC_OK)
        st = moec_exchange_reduce(x, wide, n, MOEC_REDUCE_SUM, err);
    for (size_t i = 0; st == MOEC_OK && i < n; i++)
        counts[i] = (uint32_t)wide[i];
    moec_free(wide);
    return st;
}

moec_status moec_l3_share_chosen(moec_l3_layer *l, moec_error *err)
{
    const moec_l3_side *s = &l->side[MOEC_LEVEL3_SOURCE];
    moec_exchange *x = l->v->opts->exchange;
    uint32_t *chosen;
    moec_status st = MOEC_OK;

    if (x == NULL)
        return MOEC_OK;
    chosen = moec_calloc((size_t)l->experts + 1, sizeof(*chosen));
    l->elsewhere = moec_calloc((size_t)l->experts + 1, 1);
    if (chosen == NULL || l->elsewhere == NULL)
        st = moec_fail_nomem(err, "experts of all processes");
    st = moec_l3_agree(l->v, st, err);
    for (size_t i = 0; st == MOEC_OK && i < (size_t)l->tokens * s->cols; i++)
        if (s->ids[i] >= 0 && (uint32_t)s->ids[i] < l->experts)
            chosen[s->ids[i]] = 1;
    if (st == MOEC_OK)
        st = moec_l3_count_all(l, chosen, l->experts, err);
    /* an expert that nobody chose is run by one of them */
    for (uint32_t e = 0; st == MOEC_OK && e < l->experts; e++)
        l->elsewhere[e] = chosen[e] != 0 ||
                          e % moec_exchange_size(x) != moec_exchange_rank(x);
    moec_free(chosen);
    return st;
}

/* -------------------------------------------------------------- slots */

/* Of the shared parts too: a right slot is one that this process's own rows
 * came back right from. */
static void forget_bad_shared(moec_l3_layer *l)
{
    bool right = false;

    for (uint32_t t = 0; t < l->tokens; t++)
        right = right || !l->shared_bad[t];
    for (uint32_t s = 0; !right && s < l->shared; s++)
        l->expert_slot[l->experts + s] = UINT32_MAX;
}

/* The lowest right slot that any process knows. */
static moec_status share_right(moec_l3_layer *l, uint64_t *room,
                               moec_error *err)
{
    size_t n = (size_t)l->experts + l->shared;

    forget_bad_shared(l);
    for (size_t i = 0; i < n; i++)
        room[i] = l->expert_slot[i];
    MOEC_TRY(moec_exchange_reduce(l->v->opts->exchange, room, n,
                                  MOEC_REDUCE_MIN, err));
    for (size_t i = 0; i < n; i++)
        l->expert_slot[i] = (uint32_t)room[i];
    return MOEC_OK;
}

/* A slot as it travels. */
typedef struct slot_word {
    uint32_t read;
    uint8_t digest[16];
} slot_word;

static moec_status share_digests(moec_l3_layer *l, slot_word *mine,
                                 slot_word *all, moec_error *err)
{
    moec_exchange *x = l->v->opts->exchange;
    uint32_t rank = moec_exchange_rank(x);
    moec_l3_slot *own = l->slot + (size_t)rank * l->n_rows;

    for (uint32_t i = 0; i < l->n_rows; i++) {
        mine[i].read = own[i].read;
        memcpy(mine[i].digest, own[i].digest.b, sizeof(mine[i].digest));
    }
    MOEC_TRY(moec_exchange_gather_equal(
        x, mine, (uint64_t)l->n_rows * (sizeof(*mine) / 4), all, err));
    for (size_t i = 0; i < (size_t)l->topo.n_ranks * l->n_rows; i++) {
        l->slot[i].read = all[i].read != 0;
        memcpy(l->slot[i].digest.b, all[i].digest, sizeof(all[i].digest));
    }
    return MOEC_OK;
}

moec_status moec_l3_share_slots(moec_l3_layer *l, moec_error *err)
{
    size_t n = (size_t)l->experts + l->shared;
    slot_word *mine, *all;
    uint64_t *room;
    moec_status st = MOEC_OK;

    if (l->v->opts->exchange == NULL)
        return MOEC_OK;
    mine = moec_calloc((size_t)l->n_rows + 1, sizeof(*mine));
    all = moec_calloc((size_t)l->topo.n_ranks * l->n_rows + 1, sizeof(*all));
    room = moec_calloc(n + 1, sizeof(*room));
    if (mine == NULL || all == NULL || room == NULL)
        st = moec_fail_nomem(err, "slots of all processes");
    st = moec_l3_agree(l->v, st, err);
    if (st == MOEC_OK)
        st = share_digests(l, mine, all, err);
    if (st == MOEC_OK)
        st = share_right(l, room, err);
    moec_free(room);
    moec_free(all);
    moec_free(mine);
    return st;
}

/* ------------------------------------------------------------- figures */

/* Errors are not negative: their bits are in the order of their values, those
 * of a NaN behind all others. */
static uint64_t bits_of(double v)
{
    uint64_t u;

    memcpy(&u, &v, sizeof(u));
    return u;
}

static double from_bits(uint64_t u)
{
    double v;

    memcpy(&v, &u, sizeof(v));
    return v;
}

static moec_status share_figures(moec_l3_layer *l, moec_error *err)
{
    moec_exchange *x = l->v->opts->exchange;
    moec_layer_result *r = l->result;
    uint64_t sums[] = {r->pairs, r->forced, r->choices};
    uint64_t most[] = {bits_of(r->max_abs_err), bits_of(l->largest),
                       r->ids_equal == 0, l->not_finite};

    if (x == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_exchange_reduce(x, sums, 3, MOEC_REDUCE_SUM, err));
    MOEC_TRY(moec_exchange_reduce(x, most, 4, MOEC_REDUCE_MAX, err));
    r->pairs = sums[0];
    r->forced = sums[1];
    r->choices = sums[2];
    r->max_abs_err = from_bits(most[0]);
    l->largest = from_bits(most[1]);
    r->max_rel_err =
        l->largest > 0.0 ? r->max_abs_err / l->largest : r->max_abs_err;
    r->ids_equal = most[2] == 0;
    l->not_finite = most[3] != 0;
    return MOEC_OK;
}

/* Digests of all tokens' outputs, in their order: each process has a stretch
 * of them, and the stretches stand in the order of the ranks. */
static moec_status share_digest(moec_l3_layer *l, moec_xxh128 *mine,
                                moec_xxh128 *all, uint64_t *first,
                                moec_error *err)
{
    const float *out = l->side[MOEC_LEVEL3_SERVED].whole;
    size_t row = l->width * sizeof(*out);
    moec_exchange *x = l->v->opts->exchange;
    moec_sha256 sha;

    for (uint32_t t = 0; t < l->tokens; t++)
        mine[t] = moec_xxh128_of(out + (size_t)t * l->width, row);
    if (x != NULL) {
        uint32_t n = moec_exchange_size(x);
        enum { WORDS = sizeof(*mine) / 4 };

        for (uint32_t p = 0; p <= n; p++)
            first[p] = (uint64_t)l->all_tokens * p / n * WORDS;
        MOEC_TRY(moec_exchange_gather(x, mine, (uint64_t)l->tokens * WORDS, all,
                                      first, err));
    }
    MOEC_TRY(moec_sha256_of(x != NULL ? all : mine,
                            l->all_tokens * sizeof(*mine), &sha, err));
    memcpy(l->result->output_sha256, sha.b, sizeof(sha.b));
    return MOEC_OK;
}

moec_status moec_l3_share_result(moec_l3_layer *l, moec_rank_traffic *ranks,
                                 moec_error *err)
{
    moec_exchange *x = l->v->opts->exchange;
    size_t n = x != NULL ? moec_exchange_size(x) : 1;
    moec_xxh128 *mine = moec_calloc((size_t)l->tokens + 1, sizeof(*mine));
    moec_xxh128 *all = moec_calloc((size_t)l->all_tokens + 1, sizeof(*all));
    uint64_t *first = moec_calloc(n + 1, sizeof(*first));
    moec_status st = MOEC_OK;

    if (mine == NULL || all == NULL || first == NULL)
        st = moec_fail_nomem(err, "digests of a layer");
    st = moec_l3_agree(l->v, st, err);
    if (st == MOEC_OK)
        st = share_figures(l, err);
    if (st == MOEC_OK)
        st = share_digest(l, mine, all, first, err);
    if (st == MOEC_OK && x != NULL)
        st = moec_exchange_gather_equal(x, &l->traffic, sizeof(l->traffic) / 4,
                                        ranks, err);
    moec_free(first);
    moec_free(all);
    moec_free(mine);
    return st;
}
