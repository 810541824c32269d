/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where the bytes of a load stand: in the checkpoint, or in the files of a
 * conversion that was made by another plan. Refuses plans that lead nowhere
 * from there.
 */

#include <inttypes.h>

#include "inverse.h"
#include "load_pieces.h"

static moec_status check_shared(const moec_loading *ld, const moec_plan *old,
                                moec_error *err)
{
    uint32_t want = moec_plan_topology(ld->plan).n_shared_slots;
    uint32_t have = moec_plan_topology(old).n_shared_slots;

    if (moec_plan_shared_rows(ld->plan) == 0)
        return MOEC_OK;
    if (moec_plan_requantises(ld->plan) != moec_plan_requantises(old))
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                         "shared experts are %srequantised in the conversion "
                         "and %s in the plan",
                         moec_plan_requantises(old) ? "" : "not ",
                         moec_plan_requantises(ld->plan) ? "are" : "are not");
    if (moec_plan_shared_rows(old) > 0 && want != have)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                         "the plan has %" PRIu32 " shared slots a rank, the "
                         "conversion %" PRIu32,
                         want, have);
    return MOEC_OK;
}

moec_status moec_loading_check(const moec_loading *ld, moec_error *err)
{
    const moec_plan *old;
    const moec_ckpt *ck = moec_model_ckpt(moec_plan_model(ld->plan));

    if (ld->rank >= moec_plan_topology(ld->plan).n_ranks)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_P07,
                         "rank %" PRIu32 " of %" PRIu32, ld->rank,
                         moec_plan_topology(ld->plan).n_ranks);
    if (ld->tp_size > 1 && ld->tp_rank >= ld->tp_size)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor-parallel rank %" PRIu32 " of %" PRIu32,
                         ld->tp_rank, ld->tp_size);
    if (ld->old == NULL)
        return MOEC_OK;
    old = moec_layout_plan(ld->old);
    if (old == ld->plan)
        return MOEC_OK;
    if (moec_plan_model(old) != moec_plan_model(ld->plan))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the plan is not of the conversion's model");
    if (moec_plan_options(old)->w13_order !=
        moec_plan_options(ld->plan)->w13_order)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                         "the conversion's w13_order is %s, the plan's is not",
                         moec_plan_options(old)->w13_order == MOEC_W13_UP_GATE
                             ? "up-gate"
                             : "gate-up");
    MOEC_TRY(check_shared(ld, old, err));
    for (size_t i = 0; i < moec_ckpt_n_tensors(ck); i++)
        if (moec_plan_fate(old, i) == MOEC_FATE_SKIPPED &&
            moec_plan_fate(ld->plan, i) == MOEC_FATE_MOVED)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M09,
                             "tensor '%s' was left out of this conversion "
                             "(--no-mtp): its bytes are not here",
                             moec_ckpt_tensor(ck, i)->name);
    return MOEC_OK;
}

/* The leaves of what begins at (file, off), or NULL. */
static const moec_leaf *leaves_at(const moec_loading *ld, size_t file,
                                  uint64_t off)
{
    uint64_t slot;

    if (!moec_slots_find(ld->slots, file, off, &slot))
        return NULL;
    return &ld->slots->leaves[ld->slots->slots[slot].first_leaf];
}

bool moec_loading_tensor(const moec_loading *ld, size_t tensor,
                         moec_stretch *out)
{
    const moec_tensor *t =
        moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(ld->plan)), tensor);
    size_t file = 0;

    out->bytes = t->bytes;
    out->leaves = NULL;
    if (ld->old == NULL) {
        out->file = t->file;
        out->off = t->off;
        return true;
    }
    if (!moec_layout_find_common(ld->old, tensor, &file, &out->off))
        return false;
    out->file = (uint32_t)file;
    if (t->bytes > 0)
        out->leaves = leaves_at(ld, file, out->off);
    return true;
}

/* The conversion's planned layer of the same layer of the model. */
static bool old_layer(const moec_loading *ld, size_t layer, size_t *out)
{
    const moec_plan *old = moec_layout_plan(ld->old);
    size_t model_layer = moec_plan_model_layer(ld->plan, layer);

    if (layer < moec_plan_n_layers(old) &&
        moec_plan_model_layer(old, layer) == model_layer) {
        *out = layer;
        return true;
    }
    for (size_t i = 0; i < moec_plan_n_layers(old); i++)
        if (moec_plan_model_layer(old, i) == model_layer) {
            *out = i;
            return true;
        }
    return false;
}

/* Does the same row of the same rank hold the unit in the conversion? Then the
 * rank stays with its own file, whatever replicas there are. */
static bool same_row(const moec_loading *ld, size_t was, size_t t, uint32_t row,
                     uint32_t unit)
{
    const moec_plan *old = moec_layout_plan(ld->old);

    return ld->rank < moec_plan_topology(old).n_ranks &&
           row < moec_plan_slot_tensor(old, was, t)->shape[0] &&
           moec_plan_row_unit(old, was, t, ld->rank, row) == unit;
}

bool moec_loading_slot(const moec_loading *ld, size_t layer, size_t t,
                       uint32_t row, uint32_t unit, moec_stretch *out)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(ld->plan, layer, t);
    moec_inverse_from from;
    size_t was;

    if (!old_layer(ld, layer, &was))
        return false;
    if (same_row(ld, was, t, row, unit)) {
        moec_layout_find_slots(ld->old, ld->rank, was, t, &from.file,
                               &from.off);
        from.bytes = moec_plan_slot_tensor(moec_layout_plan(ld->old), was, t)
                         ->slot_bytes;
        from.off += row * from.bytes;
    } else if (!moec_inverse_slot(ld->old, was, t, unit, &from)) {
        return false;
    }
    if (from.bytes != s->slot_bytes)
        return false;
    out->file = (uint32_t)from.file;
    out->off = from.off;
    out->bytes = s->slot_bytes;
    out->leaves = leaves_at(ld, from.file, from.off);
    return true;
}
