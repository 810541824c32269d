/* SPDX-License-Identifier: Apache-2.0 */

/* Leaves of everything a conversion writes. See digests.h. */

#include <string.h>

#include "digests.h"

/* Leaves digested between two looks at the same bytes: they stay in L2. */
#define DIGEST_LEAVES 2u

/* Units of a layer: routed, shared parts, and the empty slot behind them. */
static uint32_t unit_index(const moec_plan *p, uint32_t unit)
{
    const moec_facts *f = moec_model_facts(moec_plan_model(p));

    if (unit == MOEC_UNIT_EMPTY)
        return f->n_experts + moec_plan_shared_rows(p);
    return unit;
}

static uint64_t n_units(const moec_plan *p)
{
    return (uint64_t)unit_index(p, MOEC_UNIT_EMPTY) + 1;
}

static moec_status count_blocks(moec_digests *d, moec_error *err)
{
    size_t n_layers = moec_plan_n_layers(d->plan), n = 0;
    uint64_t leaf = 0;

    d->layer_first = moec_calloc(n_layers + 1, sizeof(*d->layer_first));
    if (d->layer_first == NULL)
        return moec_fail_nomem(err, "digests");
    for (size_t i = 0; i < n_layers; i++) {
        d->layer_first[i] = n;
        n += moec_plan_n_slot_tensors(d->plan, i);
    }
    d->block_base = moec_calloc(n + 1, sizeof(*d->block_base));
    if (d->block_base == NULL)
        return moec_fail_nomem(err, "digests");
    for (size_t i = 0; i < n_layers; i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(d->plan, i); t++) {
            d->block_base[d->layer_first[i] + t] = leaf;
            leaf +=
                n_units(d->plan) *
                moec_n_leaves(moec_plan_slot_tensor(d->plan, i, t)->slot_bytes);
        }
    d->n_leaves = (size_t)leaf;
    return MOEC_OK;
}

static moec_status count_common(moec_digests *d, moec_error *err)
{
    const moec_ckpt *ck = moec_model_ckpt(moec_plan_model(d->plan));
    size_t n = moec_ckpt_n_tensors(ck);

    d->common_base = moec_calloc(n + 1, sizeof(*d->common_base));
    if (d->common_base == NULL)
        return moec_fail_nomem(err, "digests");
    for (size_t i = 0; i < n; i++) {
        moec_fate fate = moec_plan_fate(d->plan, i);
        d->common_base[i] = UINT64_MAX;
        if (fate != MOEC_FATE_COMMON && fate != MOEC_FATE_SHARED)
            continue;
        d->common_base[i] = d->n_leaves;
        d->n_leaves += (size_t)moec_n_leaves(moec_ckpt_tensor(ck, i)->bytes);
    }
    return MOEC_OK;
}

moec_status moec_digests_init(moec_digests *d, const moec_plan *plan,
                              moec_error *err)
{
    memset(d, 0, sizeof(*d));
    d->plan = plan;
    MOEC_TRY(count_blocks(d, err));
    MOEC_TRY(count_common(d, err));
    d->leaves = moec_calloc(d->n_leaves + 1, sizeof(*d->leaves));
    if (d->leaves == NULL)
        return moec_fail_nomem(err, "digests of all leaves");
    return MOEC_OK;
}

void moec_digests_fini(moec_digests *d)
{
    moec_free(d->leaves);
    moec_free(d->layer_first);
    moec_free(d->block_base);
    moec_free(d->common_base);
    memset(d, 0, sizeof(*d));
}

uint64_t moec_digests_block(const moec_digests *d, size_t layer, size_t t,
                            uint32_t unit)
{
    uint64_t bytes = moec_plan_slot_tensor(d->plan, layer, t)->slot_bytes;

    return d->block_base[d->layer_first[layer] + t] +
           unit_index(d->plan, unit) * moec_n_leaves(bytes);
}

moec_status moec_digests_leaves(moec_digests *d, uint64_t base, uint64_t from,
                                const void *data, size_t n, moec_error *err)
{
    moec_sha256 sha[DIGEST_LEAVES];
    const unsigned char *p = data;
    moec_leaf *leaf = &d->leaves[base + from / MOEC_LEAF_BYTES];

    while (n > 0) {
        size_t k = (size_t)moec_min_u64(n, DIGEST_LEAVES * MOEC_LEAF_BYTES);
        MOEC_TRY(moec_sha256_leaves(p, k, MOEC_LEAF_BYTES, sha, err));
        for (size_t i = 0; i * MOEC_LEAF_BYTES < k; i++, leaf++) {
            size_t off = i * MOEC_LEAF_BYTES;
            leaf->sha256 = sha[i];
            leaf->xxh128 = moec_xxh128_of(
                p + off, (size_t)moec_min_u64(MOEC_LEAF_BYTES, k - off));
        }
        p += k;
        n -= k;
    }
    return MOEC_OK;
}
