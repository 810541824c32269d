/* SPDX-License-Identifier: Apache-2.0
 *
 * Logical ids to dispatch slots, a row at a time: the replica by the map's
 * rule, the slot by the topology, the shared columns behind it.
 *
 * Two roads to the same result. The map itself serves small batches and rows
 * with anything but experts in them. Tables of slots, made once for a batch,
 * serve the others: a look-up or two a column, no division. */

#include "remap.h"

#include <string.h>

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

/* Candidate of expert e < E for a row, or P where the map has none. */
static uint32_t candidate(const moec_remap *m, uint32_t e, uint32_t row)
{
    const moec_dispatch_map *map = m->map;
    uint32_t first = map->cand_first[e], end = map->cand_first[e + 1];

    if (first >= end || end > m->n_cand)
        return map->topology.n_physical;
    /* Most experts have one replica: spare them the division. */
    return map->cand[end - first == 1 ? first : first + row % (end - first)];
}

/* A row's columns, whatever they hold. Returns the bad column, or top_k. */
static inline uint32_t remap_routed(const moec_remap *m, uint32_t t,
                                    uint32_t *counts, bool *any)
{
    size_t at = (size_t)t * m->n_cols;
    const int32_t *ids = m->ids + at;
    const float *weights = m->weights + at;
    const uint32_t *table = m->map->table;
    bool by_table = m->map->rule == MOEC_REPLICA_TABLE;
    uint32_t n_experts = m->map->n_experts, gap = m->gap, k = m->top_k;
    uint32_t n_physical = m->map->topology.n_physical;
    uint64_t by_local = m->by_local;
    float identity = 0.0f;

    *any = false;
    for (uint32_t c = 0; c < k; c++) {
        int32_t id = ids[c], slot = -1;
        float w = weights[c];

        if ((uint32_t)id < n_experts) {
            uint32_t p = by_table ? table[id]
                                  : candidate(m, (uint32_t)id, m->row_base + t);

            if (p >= n_physical)
                return c;
            slot = (int32_t)(p + moec_divide(p, by_local) * gap);
            if (counts)
                counts[slot]++;
            *any = true;
        } else if (id >= 0) {
            if (!m->identity)
                return c;
            identity += w;
            *any = true;
        }
        m->slots[at + c] = slot;
        m->out_weights[at + c] = slot < 0 ? 0.0f : w;
    }
    if (m->identity)
        m->identity[t] = identity;
    return k;
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

/* Row t from the map itself. Returns the bad column, or top_k. */
static uint32_t remap_row(const moec_remap *m, uint32_t t, uint32_t *counts,
                          uint32_t *n_rows)
{
    size_t at = (size_t)t * m->n_cols;
    bool any;
    uint32_t c = remap_routed(m, t, counts, &any);

    if (c < m->top_k)
        return c;
    if (!any) {
        clear_row(m, t, m->top_k);
        return c;
    }
    ++*n_rows;
    for (; c < m->n_cols; c++) {
        m->slots[at + c] = m->shared_first + (int32_t)(c - m->top_k);
        m->out_weights[at + c] = m->weights[at + c];
    }
    return m->top_k;
}

/* ------------------------------------------------------------- tables */

static uint32_t table_slots(const moec_remap *m)
{
    return m->map->rule == MOEC_REPLICA_TABLE ? m->map->n_experts : m->n_cand;
}

bool moec_remap_wants_tables(const moec_remap *m, uint32_t n_tokens)
{
    uint32_t n = table_slots(m);

    return (uint64_t)n_tokens * m->top_k >= n && n <= MOEC_TABLE_SLOTS &&
           m->map->n_experts <= MOEC_TABLE_EXPERTS;
}

void moec_remap_prepare(moec_remap *m, moec_remap_tables *tables)
{
    const moec_dispatch_map *map = m->map;
    bool by_table = map->rule == MOEC_REPLICA_TABLE;
    uint32_t n = table_slots(m);

    for (uint32_t e = 0; !by_table && e < map->n_experts; e++) {
        uint32_t first = map->cand_first[e], end = map->cand_first[e + 1];

        if (first >= end || end > n || end - first > MOEC_TABLE_REPLICAS)
            return;
        tables->lists[e] = first << 4 | (end - first - 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t p = by_table ? map->table[i] : map->cand[i];

        if (p >= map->topology.n_physical)
            return; /* remap_row finds out whether anybody asks for it */
        tables->slots[i] = (int32_t)(p + moec_divide(p, m->by_local) * m->gap);
    }
    m->tables = tables;
}

/* row % n in byte n - 1: for the next row one is added, and what reaches n
 * begins again. No division, and one register. */
typedef uint8_t remainders __attribute__((vector_size(MOEC_TABLE_REPLICAS)));

static remainders remainders_of(uint32_t row)
{
    remainders r;

    for (uint32_t n = 0; n < MOEC_TABLE_REPLICAS; n++)
        r[n] = (uint8_t)(row % (n + 1));
    return r;
}

static inline remainders next_remainders(remainders r)
{
    static const remainders counts = {1, 2,  3,  4,  5,  6,  7,  8,
                                      9, 10, 11, 12, 13, 14, 15, 16};

    r += 1;
    return r & (remainders)(r != counts);
}

/* Where a clean row's slots come from. */
typedef enum source {
    FROM_MAP,   /* rule TABLE, the slot computed */
    FROM_SLOTS, /* rule TABLE, a table of slots */
    FROM_LISTS  /* candidates, tables of lists and slots */
} source;

/* Whether all k ids of a row are experts that have a slot. */
static inline bool is_clean(const moec_remap *m, const int32_t *ids, uint32_t k,
                            source from)
{
    uint32_t id = 0, p = 0; /* the largest, as unsigned: -1 is above all */

    for (uint32_t c = 0; c < k; c++)
        id = (uint32_t)ids[c] > id ? (uint32_t)ids[c] : id;
    if (id >= m->map->n_experts)
        return false;
    if (from != FROM_MAP)
        return true; /* or there would be no tables */
    for (uint32_t c = 0; c < k; c++)
        p = m->map->table[ids[c]] > p ? m->map->table[ids[c]] : p;
    return p < m->map->topology.n_physical;
}

/* Rows from lo on, as far as they are clean; returns the row that is not, or
 * hi. k, from and whether there are counts are constants to the compiler. */
static inline uint32_t remap_clean(const moec_remap *m, uint32_t lo,
                                   uint32_t hi, uint32_t *counts, uint32_t k,
                                   source from)
{
    uint32_t n_cols = m->n_cols, gap = m->gap, t;
    const int32_t *ids = m->ids + (size_t)lo * n_cols;
    int32_t *out = m->slots + (size_t)lo * n_cols;
    int32_t shared_first = m->shared_first;
    const uint32_t *table = m->map->table;
    const int32_t *slots = from == FROM_MAP ? NULL : m->tables->slots;
    const uint32_t *lists = from == FROM_MAP ? NULL : m->tables->lists;
    uint64_t by_local = m->by_local;
    uint8_t of[MOEC_TABLE_REPLICAS];
    remainders r = {0};

    if (from == FROM_LISTS)
        r = remainders_of(m->row_base + lo);
    for (t = lo; t < hi && is_clean(m, ids, k, from); t++) {
        if (from == FROM_LISTS) {
            memcpy(of, &r, sizeof(of));
            r = next_remainders(r);
        }
        for (uint32_t c = 0; c < k; c++) {
            uint32_t i = (uint32_t)ids[c];

            if (from == FROM_LISTS)
                i = (lists[i] >> 4) + of[lists[i] & 15];
            else if (from == FROM_MAP)
                i = table[i] + moec_divide(table[i], by_local) * gap;
            out[c] = from == FROM_MAP ? (int32_t)i : slots[i];
            if (counts)
                counts[out[c]]++;
        }
        for (uint32_t c = k; c < n_cols; c++)
            out[c] = shared_first + (int32_t)(c - k);
        ids += n_cols;
        out += n_cols;
    }
    return t;
}

/* What else rows [lo, hi) have that remap_clean did. */
static void finish_clean(const moec_remap *m, uint32_t lo, uint32_t hi)
{
    size_t at = (size_t)lo * m->n_cols, n = (size_t)(hi - lo) * m->n_cols;

    if (m->out_weights != m->weights)
        memcpy(m->out_weights + at, m->weights + at, n * sizeof(float));
    if (m->identity)
        memset(m->identity + lo, 0, (hi - lo) * sizeof(float));
}

/* The same with a constant where it matters: K is 8 for most models. */
static inline uint32_t remap_some(const moec_remap *m, uint32_t lo, uint32_t hi,
                                  uint32_t *counts, source from)
{
    if (counts && m->top_k == 8)
        return remap_clean(m, lo, hi, counts, 8, from);
    return counts ? remap_clean(m, lo, hi, counts, m->top_k, from)
                  : remap_clean(m, lo, hi, NULL, m->top_k, from);
}

static uint64_t remap_valid(const moec_remap *m, uint32_t lo, uint32_t hi,
                            uint32_t *counts, uint32_t *n_rows)
{
    bool by_table = m->map->rule == MOEC_REPLICA_TABLE;

    while (lo < hi) {
        uint32_t c, t = lo;

        if (m->tables)
            t = by_table ? remap_some(m, lo, hi, counts, FROM_SLOTS)
                         : remap_some(m, lo, hi, counts, FROM_LISTS);
        else if (by_table)
            t = remap_some(m, lo, hi, counts, FROM_MAP);
        finish_clean(m, lo, t);
        *n_rows += t - lo;
        lo = t;
        if (lo == hi)
            break;
        c = remap_row(m, lo, counts, n_rows);
        if (c < m->top_k)
            return (uint64_t)lo << 32 | c;
        lo++;
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
    return lo < valid ? remap_valid(m, lo, valid, counts, n_rows)
                      : MOEC_REMAP_FINE;
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
