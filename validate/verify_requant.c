/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Requantised slots (--requantize-shared) made once more, from the shared
 * expert's own tensors in the common files, and compared with the digests of
 * slots.bin. That the common files have the source's bytes, and the slots'
 * files those digests, is shown by the other passes: together this is T3 for
 * bytes that no move brings.
 */

#include <inttypes.h>
#include <string.h>

#include "requant.h"
#include "verify.h"

typedef struct pass {
    moec_verifier *v;
    moec_requant *q;
    moec_verify_piece *pieces;
    size_t n_pieces;
} pass;

typedef struct hand {
    const moec_verifier *v;
    moec_verify_worker *w;
} hand;

static moec_status read_common(void *ctx, uint32_t tensor, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    const hand *h = ctx;
    size_t file;
    uint64_t at;

    if (!moec_layout_find_common(h->v->layout, tensor, &file, &at))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T6,
                         "a requantised tensor is not kept");
    if (h->v->io[file].fd < 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M05,
                         "%s: cannot be read",
                         moec_layout_file(h->v->layout, file)->name);
    return moec_verify_read(h->v, h->w, file, at + off, buf, n, err);
}

static moec_status compare(const pass *p, moec_verify_worker *w, size_t layer,
                           size_t t, uint32_t unit, moec_error *err)
{
    moec_verifier *v = p->v;
    uint64_t bytes = moec_plan_slot_tensor(v->plan, layer, t)->slot_bytes;
    const moec_ct_tensor *ct;
    uint32_t row;
    const moec_ct_slot *slot = moec_verify_first(v, layer, t, unit, &ct, &row);
    hand h = {v, w};
    size_t bad = SIZE_MAX;
    moec_sha256 sha;

    for (uint64_t at = 0; slot != NULL && bad == SIZE_MAX && at < bytes;
         at += MOEC_VERIFY_RANGE_BYTES) {
        size_t n = (size_t)moec_min_u64(MOEC_VERIFY_RANGE_BYTES, bytes - at);

        MOEC_TRY(moec_requant_read(p->q, layer, t, unit, at, at + n, w->a,
                                   read_common, &h, err));
        MOEC_TRY(moec_verify_leaves(v, slot, at / MOEC_LEAF_BYTES, w->a, n,
                                    &bad, &sha, err));
    }
    if (bad != SIZE_MAX)
        moec_verify_add_leaf(v, ct, row, bad, &sha,
                             "is not what the quantiser makes of the "
                             "shared expert's own tensors");
    return MOEC_OK;
}

/* Damage to a common file is a finding of other passes. */
static moec_status run_piece(void *ctx, size_t i, uint32_t worker,
                             moec_error *err)
{
    const pass *p = ctx;
    const moec_verify_piece *k = &p->pieces[i];
    moec_error e = MOEC_ERROR_INIT;
    moec_status st = compare(p, &p->v->workers[worker], k->layer, k->t,
                             (uint32_t)k->first, &e);

    if (st != MOEC_E_FORMAT)
        return moec_hand_on(err, st, &e);
    moec_finding f = {.rule = MOEC_RULE_T3, .severity = MOEC_SEVERITY_ERROR};
    moec_report_add(p->v->r, &f, "%s", e.text);
    return MOEC_OK;
}

static moec_status list_pieces(pass *p, moec_error *err)
{
    const moec_plan *plan = p->v->plan;
    uint32_t e = moec_model_facts(moec_plan_model(plan))->n_experts;
    uint32_t s = moec_plan_shared_rows(plan);
    size_t n = 0;

    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        n += moec_plan_n_slot_tensors(plan, i) * s;
    p->pieces = moec_calloc(n + 1, sizeof(*p->pieces));
    if (p->pieces == NULL)
        return moec_fail_nomem(err, "list of work");
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, i); t++)
            for (uint32_t k = 0; k < s; k++)
                p->pieces[p->n_pieces++] = (moec_verify_piece){i, t, e + k, 1};
    return MOEC_OK;
}

bool moec_verify_is_made(const moec_verifier *v, uint32_t unit)
{
    return moec_plan_requantises(v->plan) && unit != MOEC_UNIT_EMPTY &&
           unit >= moec_model_facts(moec_plan_model(v->plan))->n_experts;
}

moec_status moec_verify_requantised(moec_verifier *v, moec_error *err)
{
    pass p = {.v = v};
    moec_status st;

    if (!moec_plan_requantises(v->plan))
        return MOEC_OK;
    st = moec_requant_create(&p.q, v->plan, err);
    if (st == MOEC_OK)
        st = list_pieces(&p, err);
    if (st == MOEC_OK)
        st = moec_parallel(v->n_workers, p.n_pieces, run_piece, &p, err);
    moec_free(p.pieces);
    moec_requant_destroy(p.q);
    return st;
}
