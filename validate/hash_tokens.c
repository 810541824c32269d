/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Token ids for layers whose experts stand in a table by token: the
 * reference's, where it has them; else a token whose row has the experts that
 * the reference names, so that weights and outputs can be compared at least;
 * else drawn from the seed. Refuses ids that the table does not have.
 */

#include <inttypes.h>
#include <string.h>

#include "level3.h"

/* Are these the same experts, in whatever order? */
static bool same_experts(const int32_t *a, const int32_t *b, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++) {
        uint32_t na = 0, nb = 0;

        for (uint32_t j = 0; j < k; j++) {
            na += a[j] == a[i];
            nb += b[j] == a[i];
        }
        if (na != nb)
            return false;
    }
    return true;
}

/* Tokens whose rows are the experts of the reference. */
static moec_status guess(moec_l3_layer *l, const moec_l3_side *s,
                         const moec_reference *part, moec_error *err)
{
    uint32_t k = l->top_k;
    int32_t *ids = moec_calloc((size_t)part->n * k + 1, sizeof(*ids));
    bool found = false;
    moec_status st = MOEC_OK;

    if (ids == NULL)
        return moec_fail_nomem(err, "token ids");
    if (moec_reference_cols(&l->v->act, part, "topk_ids") == k)
        st = moec_reference_read(&l->v->act, part, "topk_ids", k, true, ids,
                                 &found, err);
    for (uint32_t t = 0; st == MOEC_OK && found && t < part->n; t++)
        for (uint32_t v = 0; v < s->vocab; v++)
            if (same_experts(ids + (size_t)t * k, s->table + (size_t)v * k,
                             k)) {
                l->token_ids[part->first + t] = (int32_t)v;
                l->guessed = true;
                break;
            }
    moec_free(ids);
    return st;
}

static moec_status check_range(const moec_l3_layer *l, const moec_l3_side *s,
                               const moec_reference *part, moec_error *err)
{
    for (uint32_t t = 0; t < part->n; t++)
        if ((uint32_t)l->token_ids[part->first + t] >= s->vocab)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_NONE,
                             "the reference's token %" PRId32
                             " is not in the table of experts of %" PRIu32
                             " tokens",
                             l->token_ids[part->first + t], s->vocab);
    return MOEC_OK;
}

moec_status moec_l3_make_tokens(moec_l3_layer *l, const moec_l3_side *s,
                                moec_error *err)
{
    uint64_t state = l->v->act.seed;

    for (uint32_t t = 0; t < l->first; t++) /* other processes' */
        (void)moec_next_random(&state);
    for (uint32_t t = 0; t < l->tokens; t++)
        l->token_ids[t] = (int32_t)(moec_next_random(&state) % s->vocab);
    for (size_t i = 0; i < l->batch.n_parts; i++) {
        const moec_reference *part = &l->batch.parts[i];
        bool found = false;

        MOEC_TRY(moec_reference_tokens(
            &l->v->act, part, l->token_ids + part->first, &found, err));
        if (found)
            MOEC_TRY(check_range(l, s, part, err));
        else
            MOEC_TRY(guess(l, s, part, err));
    }
    return MOEC_OK;
}
