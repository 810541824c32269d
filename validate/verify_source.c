/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The digests of slots.bin against the source itself: every block that a slot
 * holds is made again from the source by the plan's moves and digested. With
 * verify_bytes.c, which shows that the files have these digests, this is T3.
 */

#include <inttypes.h>
#include <string.h>

#include "verify.h"

/* -------------------------------------------------------------- identity */

moec_status moec_verify_identity(moec_verifier *v, moec_error *err)
{
    const moec_ckpt *src = v->opts->source;
    moec_finding f = {.rule = MOEC_RULE_T3, .severity = MOEC_SEVERITY_ERROR};
    const char *why;

    (void)err;
    if (src == NULL) {
        moec_report_note(v->r, MOEC_RULE_T3,
                         "the digests of slots.bin stand in for the source, "
                         "which was not given");
        return MOEC_OK;
    }
    why = moec_conversion_other_source(v->files, src);
    if (why == NULL) {
        v->source_ok = v->plan != NULL;
        return MOEC_OK;
    }
    f.has = MOEC_HAS_FILE;
    f.file = why;
    moec_report_add(v->r, &f,
                    "another source: this is not the checkpoint that was "
                    "converted (%s)",
                    why);
    moec_report_note(v->r, MOEC_RULE_T3,
                     "another source was given: the "
                     "digests of slots.bin stand in");
    return MOEC_OK;
}

/* ------------------------------------------------------------ the blocks */

typedef struct pass {
    moec_verifier *v;
    moec_verify_piece *pieces;
    size_t n_pieces;
} pass;

/* What a read callback needs. */
typedef struct hand {
    const moec_verifier *v;
    moec_verify_worker *w;
} hand;

static moec_status read_source(void *ctx, uint32_t tensor, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    const hand *h = ctx;

    return moec_verify_read_source(h->v, h->w, tensor, off, buf, n, err);
}

static moec_status compare_unit(moec_verifier *v, moec_verify_worker *w,
                                size_t layer, size_t t, uint32_t unit,
                                moec_error *err)
{
    uint64_t bytes = moec_plan_slot_tensor(v->plan, layer, t)->slot_bytes;
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    const moec_ct_tensor *ct;
    uint32_t row;
    const moec_ct_slot *slot = moec_verify_first(v, layer, t, unit, &ct, &row);
    size_t n_moves, bad = SIZE_MAX;
    hand h = {v, w};
    moec_sha256 sha;

    if (slot == NULL)
        return MOEC_OK;
    if (moec_verify_is_made(v, unit)) /* verify_requant.c */
        return MOEC_OK;
    n_moves = moec_plan_block_moves(v->plan, layer, t, unit, moves);
    for (uint64_t at = 0; bad == SIZE_MAX && at < bytes;
         at += MOEC_VERIFY_RANGE_BYTES) {
        size_t n = (size_t)moec_min_u64(MOEC_VERIFY_RANGE_BYTES, bytes - at);

        MOEC_TRY(moec_block_read(moves, n_moves, at, at + n, w->a, read_source,
                                 &h, &w->scratch, err));
        MOEC_TRY(moec_verify_leaves(v, slot, at / MOEC_LEAF_BYTES, w->a, n,
                                    &bad, &sha, err));
        MOEC_TRY(moec_verify_progress(v, n, err));
    }
    if (bad != SIZE_MAX)
        moec_verify_add_leaf(v, ct, row, bad, &sha,
                             "does not have the digest of the source's bytes");
    return MOEC_OK;
}

static moec_status run_units(void *ctx, size_t i, uint32_t worker,
                             moec_error *err)
{
    const pass *p = ctx;
    const moec_verify_piece *k = &p->pieces[i];

    for (uint64_t u = 0; u < k->n; u++)
        MOEC_TRY(compare_unit(p->v, &p->v->workers[worker], k->layer, k->t,
                              (uint32_t)(k->first + u), err));
    return MOEC_OK;
}

/* ------------------------------------------------------- common tensors */

static moec_status run_common(void *ctx, size_t i, uint32_t worker,
                              moec_error *err)
{
    moec_verifier *v = ((const pass *)ctx)->v;
    const moec_slots *s = &v->files->slots;
    const moec_ct_tensor *ct = &s->tensors[i];
    moec_verify_worker *w = &v->workers[worker];
    unsigned char *buf = w->a;
    size_t tensor, bad = SIZE_MAX;
    moec_sha256 sha;

    if (ct->kind != MOEC_CT_COMMON)
        return MOEC_OK;
    tensor = moec_ckpt_find(v->opts->source, ct->name);
    if (tensor == SIZE_MAX)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "the source has no '%s'", ct->name);
    for (uint64_t at = 0; bad == SIZE_MAX && at < ct->bytes;
         at += MOEC_VERIFY_RANGE_BYTES) {
        size_t n =
            (size_t)moec_min_u64(MOEC_VERIFY_RANGE_BYTES, ct->bytes - at);

        MOEC_TRY(moec_verify_read_source(v, w, tensor, at, buf, n, err));
        MOEC_TRY(moec_verify_leaves(v, &s->slots[ct->first_slot],
                                    at / MOEC_LEAF_BYTES, buf, n, &bad, &sha,
                                    err));
        MOEC_TRY(moec_verify_progress(v, n, err));
    }
    if (bad != SIZE_MAX)
        moec_verify_add_leaf(v, ct, 0, bad, &sha,
                             "does not have the digest of the source's bytes");
    return MOEC_OK;
}

moec_status moec_verify_source(moec_verifier *v, moec_error *err)
{
    pass p = {.v = v};
    moec_status st = moec_verify_unit_pieces(v, &p.pieces, &p.n_pieces, err);

    if (st == MOEC_OK)
        st = moec_parallel(v->n_workers, p.n_pieces, run_units, &p, err);
    if (st == MOEC_OK)
        st = moec_parallel(v->n_workers, v->files->slots.n_tensors, run_common,
                           &p, err);
    moec_free(p.pieces);
    return st;
}
