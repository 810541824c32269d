/* SPDX-License-Identifier: Apache-2.0
 *
 * Logical ids to dispatch slots, a row at a time: the replica by the map's
 * rule, the slot by the topology, the shared columns behind it.
 *
 * A row is a few table look-ups per column; what costs are divisions, so there
 * are none: p / L is a multiplication (remap.h), row % n two of them. */

#include "remap.h"

moec_status moec_topology_check(const moec_topology *t, moec_error *err)
{
    uint64_t slots = t->n_physical;

    if (t->n_physical == 0 || t->n_ranks == 0 ||
        (uint64_t)t->n_ranks * t->n_local != t->n_physical)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "topology: %u physical slots are not %u ranks of %u",
                         t->n_physical, t->n_ranks, t->n_local);
    slots += t->shared_global ? t->n_shared_slots
                              : (uint64_t)t->n_shared_slots * t->n_ranks;
    if (slots > MOEC_SLOTS_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "topology: %llu slots, more than %u",
                         (unsigned long long)slots, MOEC_SLOTS_MAX);
    return MOEC_OK;
}

uint32_t moec_topology_n_slots(const moec_topology *t)
{
    return t->n_physical +
           (t->shared_global ? 1 : t->n_ranks) * t->n_shared_slots;
}

/* What is added to a row number before the modulo. */
static uint64_t row_offset(const moec_dispatch_map *map)
{
    switch (map->rule) {
    case MOEC_REPLICA_TABLE:
        return 0;
    case MOEC_REPLICA_ROW:
        return map->row0;
    case MOEC_REPLICA_ROW_LAYER:
        return (uint64_t)map->row0 + map->layer;
    case MOEC_REPLICA_ROW_RANK_LAYER:
        return (uint64_t)map->row0 + map->layer + map->rank;
    }
    return UINT64_MAX;
}

static moec_status check_arrays(const moec_remap *m, moec_error *err)
{
    const moec_dispatch_map *map = m->map;

    if (map->rule == MOEC_REPLICA_TABLE) {
        if (!map->table)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "dispatch map: no table, but its rule is TABLE");
        return MOEC_OK;
    }
    if (!map->cand_first || !map->cand)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch map: no candidates, but its rule is %d",
                         (int)map->rule);
    if (map->cand_first[map->n_experts] > MOEC_SLOTS_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch map: %u candidates, more than %u",
                         map->cand_first[map->n_experts], MOEC_SLOTS_MAX);
    return MOEC_OK;
}

moec_status moec_remap_init(moec_remap *m, uint32_t n_tokens, moec_error *err)
{
    const moec_dispatch_map *map = m->map;
    const moec_topology *t = &map->topology;
    uint64_t base = row_offset(map);

    MOEC_TRY(moec_topology_check(t, err));
    if (map->rank >= t->n_ranks)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch map: rank %u of %u", map->rank, t->n_ranks);
    if (map->n_experts == 0 || map->n_experts > t->n_physical)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch map: %u experts in %u physical slots",
                         map->n_experts, t->n_physical);
    if (m->top_k == 0 || m->top_k > MOEC_TOP_K_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: top_k %u, not 1 to %u", m->top_k,
                         MOEC_TOP_K_MAX);
    if (base > UINT32_MAX - n_tokens)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch map: rule %d with row0 %u, layer %u and "
                         "rank %u: no such rule, or past 2^32",
                         (int)map->rule, map->row0, map->layer, map->rank);
    MOEC_TRY(check_arrays(m, err));
    m->n_cols = m->top_k + t->n_shared_slots;
    m->by_local = moec_divider(t->n_local);
    m->gap = t->shared_global ? 0 : t->n_shared_slots;
    m->n_slots = moec_topology_n_slots(t);
    m->row_base = (uint32_t)base;
    m->n_cand =
        map->rule == MOEC_REPLICA_TABLE ? 0 : map->cand_first[map->n_experts];
    m->shared_first = (int32_t)moec_shared_slot(*t, map->rank, 0).v;
    return MOEC_OK;
}

/* row % n by two multiplications: D. Lemire, O. Kaser, N. Kurz, "Faster
 * remainder by direct computation" (2019); exact for all 32-bit numbers. The
 * first factor is ceil(2^64 / n), which for n = 1 wraps to 0, and so does the
 * remainder. */
#define INVERSE(n) (UINT64_MAX / (n) + 1)
/* clang-format off */
static const uint64_t inverses[] = {
    0,           INVERSE(1),  INVERSE(2),  INVERSE(3),  INVERSE(4),
    INVERSE(5),  INVERSE(6),  INVERSE(7),  INVERSE(8),  INVERSE(9),
    INVERSE(10), INVERSE(11), INVERSE(12), INVERSE(13), INVERSE(14),
    INVERSE(15), INVERSE(16), INVERSE(17), INVERSE(18), INVERSE(19),
    INVERSE(20), INVERSE(21), INVERSE(22), INVERSE(23), INVERSE(24),
    INVERSE(25), INVERSE(26), INVERSE(27), INVERSE(28), INVERSE(29),
    INVERSE(30), INVERSE(31), INVERSE(32),
};
/* clang-format on */

__extension__ typedef unsigned __int128 wide;

static inline uint32_t remainder_of(uint32_t row, uint32_t n)
{
    if (n < sizeof(inverses) / sizeof(inverses[0]))
        return (uint32_t)((wide)(inverses[n] * row) * n >> 64);
    return row % n;
}

/* Slot of expert e < E for a row, or -1 where the map has none. */
static inline int32_t slot_of(const moec_remap *m, uint32_t e, uint32_t row,
                              bool by_table)
{
    const moec_dispatch_map *map = m->map;
    uint32_t p;

    if (by_table) {
        p = map->table[e];
    } else {
        uint32_t first = map->cand_first[e], end = map->cand_first[e + 1];

        if (first >= end || end > m->n_cand)
            return -1;
        p = map->cand[first + remainder_of(row, end - first)];
    }
    if (p >= map->topology.n_physical)
        return -1;
    return (int32_t)(p + moec_divide(p, m->by_local) * m->gap);
}

/* A row's columns. Returns the bad column, or top_k. */
static inline uint32_t remap_routed(const moec_remap *m, uint32_t t,
                                    uint32_t *counts, bool *any, bool by_table)
{
    size_t at = (size_t)t * m->n_cols;
    uint32_t n_experts = m->map->n_experts, row = m->row_base + t;
    float identity = 0.0f;

    *any = false;
    for (uint32_t c = 0; c < m->top_k; c++) {
        int32_t id = m->ids[at + c], slot = -1;
        float w = 0.0f;

        if ((uint32_t)id < n_experts) {
            slot = slot_of(m, (uint32_t)id, row, by_table);
            if (slot < 0)
                return c;
            if (counts)
                counts[slot]++;
            w = m->weights[at + c];
            *any = true;
        } else if (id >= 0) {
            if (!m->identity)
                return c;
            identity += m->weights[at + c];
            *any = true;
        }
        m->slots[at + c] = slot;
        m->out_weights[at + c] = w;
    }
    if (m->identity)
        m->identity[t] = identity;
    return m->top_k;
}

/* A row that has no expert. */
static void clear_row(const moec_remap *m, uint32_t t, uint32_t from)
{
    size_t at = (size_t)t * m->n_cols;

    for (uint32_t c = from; c < m->n_cols; c++) {
        m->slots[at + c] = -1;
        m->out_weights[at + c] = 0.0f;
    }
}

static inline uint64_t remap_rows(const moec_remap *m, uint32_t lo, uint32_t hi,
                                  uint32_t *counts, uint32_t *n_rows,
                                  bool by_table)
{
    for (uint32_t t = lo; t < hi; t++) {
        size_t at = (size_t)t * m->n_cols;
        uint32_t c;
        bool any;

        c = remap_routed(m, t, counts, &any, by_table);
        if (c < m->top_k)
            return (uint64_t)t << 32 | c;
        if (!any) {
            clear_row(m, t, m->top_k);
            continue;
        }
        ++*n_rows;
        for (c = m->top_k; c < m->n_cols; c++) {
            m->slots[at + c] = m->shared_first + (int32_t)(c - m->top_k);
            m->out_weights[at + c] = m->weights[at + c];
        }
    }
    return MOEC_REMAP_FINE;
}

uint64_t moec_remap_rows(const moec_remap *m, uint32_t lo, uint32_t hi,
                         uint32_t *counts, uint32_t *n_rows)
{
    uint32_t valid = hi < m->n_valid ? hi : m->n_valid;

    for (uint32_t t = lo > valid ? lo : valid; t < hi; t++) {
        clear_row(m, t, 0);
        if (m->identity)
            m->identity[t] = 0.0f;
    }
    return m->map->rule == MOEC_REPLICA_TABLE
               ? remap_rows(m, lo, valid, counts, n_rows, true)
               : remap_rows(m, lo, valid, counts, n_rows, false);
}

moec_status moec_remap_refuse(const moec_remap *m, uint64_t where,
                              moec_error *err)
{
    uint32_t t = (uint32_t)(where >> 32), c = (uint32_t)where;
    int32_t id = m->ids[(size_t)t * m->n_cols + c];

    if ((uint32_t)id >= m->map->n_experts)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "row %u, column %u: id %d, but there are %u experts, "
                         "and zero experts need an `identity`",
                         t, c, id, m->map->n_experts);
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "row %u, column %u: the map has no physical slot below "
                     "%u for expert %d",
                     t, c, m->map->topology.n_physical, id);
}
