/* SPDX-License-Identifier: Apache-2.0 */

/* Who does what of a conversion. See share.h. */

#include <string.h>

#include "share.h"

static uint32_t n_experts(const moec_share *s)
{
    return moec_model_facts(moec_plan_model(s->plan))->n_experts;
}

uint32_t moec_share_units(const moec_share *s)
{
    return n_experts(s) + moec_plan_shared_rows(s->plan);
}

/* -------------------------------------------------------------- places */

static moec_status place_layer(const moec_share *s, size_t layer,
                               moec_places *pl, moec_error *err)
{
    moec_topology topo = moec_plan_topology(s->plan);
    uint32_t n = n_experts(s), at = 0;

    pl->first = moec_calloc(n + 2u, sizeof(*pl->first));
    pl->slots = moec_calloc(topo.n_physical + 1u, sizeof(*pl->slots));
    pl->empty = moec_calloc(topo.n_physical + 1u, sizeof(*pl->empty));
    if (pl->first == NULL || pl->slots == NULL || pl->empty == NULL)
        return moec_fail_nomem(err, "slots of a layer");
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t p = 0; p < topo.n_physical; p++) {
            moec_physical_id id = {p};
            uint32_t u =
                moec_plan_unit(s->plan, layer, moec_physical_rank(topo, id),
                               moec_physical_local(topo, id));
            if (u == MOEC_UNIT_EMPTY && pass == 0)
                pl->empty[pl->n_empty++] = p;
            else if (u != MOEC_UNIT_EMPTY && pass == 0)
                pl->first[u + 1]++;
            else if (u != MOEC_UNIT_EMPTY)
                pl->slots[pl->first[u]++] = p;
        }
        for (uint32_t e = 0; pass == 0 && e <= n; e++) {
            at += pl->first[e];
            pl->first[e] = at;
        }
    }
    /* the second pass moved each begin to the next one's */
    memmove(pl->first + 1, pl->first, n * sizeof(*pl->first));
    pl->first[0] = 0;
    return MOEC_OK;
}

moec_status moec_share_init(moec_share *s, const moec_layout *layout,
                            const moec_digests *d, moec_error *err)
{
    size_t n;

    memset(s, 0, sizeof(*s));
    s->layout = layout;
    s->plan = moec_layout_plan(layout);
    s->d = d;
    n = moec_plan_n_layers(s->plan);
    while (s->first_common < moec_layout_n_files(layout) &&
           moec_layout_file(layout, s->first_common)->kind == MOEC_FILE_RANK)
        s->first_common++;
    s->places = moec_calloc(n + 1, sizeof(*s->places));
    if (s->places == NULL)
        return moec_fail_nomem(err, "slots of all layers");
    for (size_t i = 0; i < n; i++)
        MOEC_TRY(place_layer(s, i, &s->places[i], err));
    return MOEC_OK;
}

void moec_share_fini(moec_share *s)
{
    for (size_t i = 0; s->places != NULL && i < moec_plan_n_layers(s->plan);
         i++) {
        moec_free(s->places[i].first);
        moec_free(s->places[i].slots);
        moec_free(s->places[i].empty);
    }
    moec_free(s->places);
    s->places = NULL;
}

/* ----------------------------------------------------------------- owing */

static uint32_t common_rank(const moec_share *s, uint32_t tensor)
{
    size_t file = s->first_common;
    uint64_t off;

    (void)moec_layout_find_common(s->layout, tensor, &file, &off);
    return (uint32_t)((file - s->first_common) %
                      moec_plan_topology(s->plan).n_ranks);
}

/* The first rank that holds the piece, or any rank that all agree on. */
static uint32_t first_rank(const moec_share *s, moec_share_piece p)
{
    moec_topology topo = moec_plan_topology(s->plan);
    const moec_places *pl = &s->places[p.layer];
    moec_physical_id id = {0};

    if (p.unit == MOEC_UNIT_EMPTY)
        id.v = pl->empty[0];
    else if (p.unit >= n_experts(s))
        return p.layer % topo.n_ranks;
    else
        id.v = pl->slots[pl->first[p.unit]];
    return moec_physical_rank(topo, id);
}

static bool holds(const moec_share *s, uint32_t rank, moec_share_piece p)
{
    moec_topology topo = moec_plan_topology(s->plan);
    const moec_places *pl = &s->places[p.layer];

    if (p.unit == MOEC_UNIT_EMPTY)
        return rank == first_rank(s, p); /* digests of zeros: no bytes */
    if (p.unit >= n_experts(s) ||
        moec_plan_slot_tensor(s->plan, p.layer, p.t)->all_slots)
        return true;
    for (uint32_t i = pl->first[p.unit]; i < pl->first[p.unit + 1]; i++)
        if (moec_physical_rank(topo, (moec_physical_id){pl->slots[i]}) == rank)
            return true;
    return false;
}

uint32_t moec_share_debtor(const moec_share *s, moec_share_piece p,
                           uint32_t place)
{
    if (s->whole)
        return 0;
    if (p.layer == MOEC_NO_BLOCK)
        return common_rank(s, p.unit);
    return s->once ? first_rank(s, p) : place;
}

bool moec_share_owes(const moec_share *s, uint32_t rank, moec_share_piece p)
{
    return moec_share_debtor(s, p, rank) == rank &&
           (s->whole || s->once || p.layer == MOEC_NO_BLOCK ||
            holds(s, rank, p));
}

uint64_t moec_share_leaf(const moec_share *s, moec_share_piece p,
                         uint64_t *n_out)
{
    const moec_ckpt *ck = moec_model_ckpt(moec_plan_model(s->plan));

    if (p.layer == MOEC_NO_BLOCK) {
        *n_out = moec_n_leaves(moec_ckpt_tensor(ck, p.unit)->bytes);
        return s->d->common_base[p.unit];
    }
    *n_out =
        moec_n_leaves(moec_plan_slot_tensor(s->plan, p.layer, p.t)->slot_bytes);
    return moec_digests_block(s->d, p.layer, p.t, p.unit);
}

static moec_status each_of_layer(const moec_share *s, uint32_t layer,
                                 moec_share_piece_fn fn, void *ctx,
                                 moec_error *err)
{
    uint32_t n = moec_share_units(s);
    size_t n_tensors = moec_plan_n_slot_tensors(s->plan, layer);

    for (uint32_t t = 0; t < n_tensors; t++) {
        for (uint32_t u = 0; u < n; u++)
            MOEC_TRY(fn(ctx, (moec_share_piece){layer, t, u}, err));
        if (s->places[layer].n_empty > 0)
            MOEC_TRY(
                fn(ctx, (moec_share_piece){layer, t, MOEC_UNIT_EMPTY}, err));
    }
    return MOEC_OK;
}

moec_status moec_share_each(const moec_share *s, moec_share_piece_fn fn,
                            void *ctx, moec_error *err)
{
    const moec_ckpt *ck = moec_model_ckpt(moec_plan_model(s->plan));

    for (uint32_t i = 0; i < moec_plan_n_layers(s->plan); i++)
        MOEC_TRY(each_of_layer(s, i, fn, ctx, err));
    for (uint32_t i = 0; i < moec_ckpt_n_tensors(ck); i++) {
        moec_fate fate = moec_plan_fate(s->plan, i);

        if (fate == MOEC_FATE_COMMON || fate == MOEC_FATE_SHARED)
            MOEC_TRY(fn(ctx, (moec_share_piece){MOEC_NO_BLOCK, 0, i}, err));
    }
    return MOEC_OK;
}
