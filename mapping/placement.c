/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: placements as rows of logical ids, and what is true of every
 *   one of them: ids in [0, E) or empty, each expert with a slot in each MoE
 *   layer. What depends on the number of ranks is checked where ranks are
 *   known (moec_placement_fits).
 * Refuses: ids out of range (P04), experts without a slot (P05), slots that do
 *   not divide among the ranks (P06), no ranks or too many (P07).
 * The rows are physical_to_logical and nothing else: a logical_to_physical
 * list collapsed by rank loses the second of two replicas on one rank.
 */

#include "placement.h"

#include <inttypes.h>
#include <string.h>

struct moec_placement {
    uint32_t n_layers, n_experts, n_physical;
    uint8_t trivial;
    int32_t *p2l; /* [n_layers][n_physical] */
};

const char *moec_layer_text(moec_layer_key key, char buf[MOEC_LAYER_TEXT_BYTES])
{
    snprintf(buf, MOEC_LAYER_TEXT_BYTES, "%slayer %" PRIu32,
             key.space == MOEC_SPACE_MTP ? "mtp " : "", key.number);
    return buf;
}

/* A layer's name where keys are known, else its row. */
static const char *row_text(const moec_layer_key *keys, uint32_t layer,
                            char buf[MOEC_LAYER_TEXT_BYTES])
{
    if (keys)
        return moec_layer_text(keys[layer], buf);
    snprintf(buf, MOEC_LAYER_TEXT_BYTES, "row %" PRIu32, layer);
    return buf;
}

static moec_status check_sizes(uint64_t n_layers, uint64_t n_experts,
                               uint64_t n_physical, moec_error *err)
{
    if (n_experts == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a placement of no experts");
    if (n_layers > UINT32_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a placement of %" PRIu64 " layers", n_layers);
    if (n_physical > MOEC_PLACEMENT_SLOTS_MAX)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P03,
                         "%" PRIu64 " slots a layer are more than the %u "
                         "that this program places",
                         n_physical, MOEC_PLACEMENT_SLOTS_MAX);
    if (n_physical < n_experts)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P03,
                         "rows of %" PRIu64 " slots cannot hold %" PRIu64
                         " experts",
                         n_physical, n_experts);
    return MOEC_OK;
}

static moec_status placement_alloc(moec_placement **out, uint32_t n_layers,
                                   uint32_t n_experts, uint32_t n_physical,
                                   moec_error *err)
{
    moec_placement *p = moec_calloc(1, sizeof(*p));
    uint64_t n;

    if (!p)
        return moec_fail_nomem(err, "placement");
    /* At most 2^32 * 2^20 entries: cannot overflow. */
    n = (uint64_t)n_layers * n_physical;
    p->p2l = moec_calloc((size_t)n, sizeof(*p->p2l));
    if (!p->p2l) {
        moec_free(p);
        return moec_fail_nomem(err, "placement rows");
    }
    p->n_layers = n_layers;
    p->n_experts = n_experts;
    p->n_physical = n_physical;
    *out = p;
    return MOEC_OK;
}

static int32_t *row_of(const moec_placement *p, uint32_t layer)
{
    return p->p2l + (size_t)layer * p->n_physical;
}

static uint8_t rows_are_trivial(const moec_placement *p)
{
    for (uint32_t layer = 0; layer < p->n_layers; layer++) {
        const int32_t *row = row_of(p, layer);

        for (uint32_t i = 0; i < p->n_physical; i++) {
            if (row[i] != (int32_t)(i % p->n_experts))
                return 0;
        }
    }
    return 1;
}

/* P04 over one row. */
static moec_status check_ids(const moec_placement *p,
                             const moec_layer_key *keys, uint32_t layer,
                             moec_error *err)
{
    const int32_t *row = row_of(p, layer);
    char text[MOEC_LAYER_TEXT_BYTES];

    for (uint32_t i = 0; i < p->n_physical; i++) {
        if (row[i] == MOEC_EMPTY_SLOT)
            continue;
        if (row[i] < 0 || (uint32_t)row[i] >= p->n_experts)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                             "%s, slot %" PRIu32 ": id %" PRId32
                             " is not in [0, %" PRIu32 ")",
                             row_text(keys, layer, text), i, row[i],
                             p->n_experts);
    }
    return MOEC_OK;
}

/* P05 over one row. `seen` has E bytes of scratch. */
static moec_status check_total(const moec_placement *p,
                               const moec_layer_key *keys, uint32_t layer,
                               uint8_t *seen, moec_error *err)
{
    const int32_t *row = row_of(p, layer);
    uint32_t n_missing = 0, first = 0;
    char text[MOEC_LAYER_TEXT_BYTES];

    memset(seen, 0, p->n_experts);
    for (uint32_t i = 0; i < p->n_physical; i++) {
        if (row[i] >= 0)
            seen[row[i]] = 1;
    }
    for (uint32_t e = p->n_experts; e-- > 0;) {
        if (!seen[e]) {
            first = e;
            n_missing++;
        }
    }
    if (n_missing == 0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P05,
                     "%s: logical expert %" PRIu32 " has none of the %" PRIu32
                     " slots (%" PRIu32 " of %" PRIu32
                     " experts are without one)",
                     row_text(keys, layer, text), first, p->n_physical,
                     n_missing, p->n_experts);
}

static moec_status check_rows(const moec_placement *p,
                              const moec_layer_key *keys, moec_error *err)
{
    uint8_t *seen = moec_alloc(p->n_experts);
    moec_status st = MOEC_OK;

    if (!seen)
        return moec_fail_nomem(err, "placement check");
    for (uint32_t layer = 0; layer < p->n_layers && st == MOEC_OK; layer++) {
        st = check_ids(p, keys, layer, err);
        if (st == MOEC_OK)
            st = check_total(p, keys, layer, seen, err);
    }
    moec_free(seen);
    return st;
}

moec_status moec_placement_make(moec_placement **out, uint32_t n_experts,
                                uint32_t n_physical, const int32_t *p2l,
                                const moec_layer_key *keys, size_t n_layers,
                                moec_error *err)
{
    moec_placement *p;
    moec_status st;

    MOEC_TRY(check_sizes(n_layers, n_experts, n_physical, err));
    MOEC_TRY(
        placement_alloc(&p, (uint32_t)n_layers, n_experts, n_physical, err));
    if (n_layers > 0)
        memcpy(p->p2l, p2l, n_layers * n_physical * sizeof(*p2l));
    st = check_rows(p, keys, err);
    if (st != MOEC_OK) {
        moec_placement_destroy(p);
        return st;
    }
    p->trivial = rows_are_trivial(p);
    *out = p;
    return MOEC_OK;
}

moec_status moec_placement_from_rows(moec_placement **out, uint32_t n_layers,
                                     uint32_t n_experts, uint32_t n_physical,
                                     const int32_t *p2l, moec_error *err)
{
    return moec_placement_make(out, n_experts, n_physical, p2l, NULL, n_layers,
                               err);
}

moec_status moec_placement_trivial(moec_placement **out, uint32_t n_layers,
                                   uint32_t n_experts, uint32_t n_redundant,
                                   moec_error *err)
{
    uint64_t n_physical = (uint64_t)n_experts + n_redundant;
    moec_placement *p;

    MOEC_TRY(check_sizes(n_layers, n_experts, n_physical, err));
    MOEC_TRY(
        placement_alloc(&p, n_layers, n_experts, (uint32_t)n_physical, err));
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        int32_t *row = row_of(p, layer);

        for (uint32_t i = 0; i < p->n_physical; i++)
            row[i] = (int32_t)(i % n_experts);
    }
    p->trivial = 1;
    *out = p;
    return MOEC_OK;
}

void moec_placement_destroy(moec_placement *placement)
{
    if (!placement)
        return;
    moec_free(placement->p2l);
    moec_free(placement);
}

uint32_t moec_placement_n_layers(const moec_placement *p)
{
    return p->n_layers;
}

uint32_t moec_placement_n_experts(const moec_placement *p)
{
    return p->n_experts;
}

uint32_t moec_placement_n_physical(const moec_placement *p)
{
    return p->n_physical;
}

int moec_placement_is_trivial(const moec_placement *p)
{
    return p->trivial;
}

const int32_t *moec_placement_row(const moec_placement *p, uint32_t layer)
{
    return row_of(p, layer);
}

/* One line of the digest's text. */
static void append_row(moec_buf *b, const int32_t *row, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        char digits[12];
        size_t at = sizeof(digits);
        uint32_t v = row[i] < 0 ? 0u - (uint32_t)row[i] : (uint32_t)row[i];

        do {
            digits[--at] = (char)('0' + v % 10);
            v /= 10;
        } while (v);
        if (row[i] < 0)
            digits[--at] = '-';
        if (i > 0)
            digits[--at] = ' ';
        moec_buf_append(b, digits + at, sizeof(digits) - at);
    }
    moec_buf_append(b, "\n", 1);
}

moec_status moec_placement_digest(const moec_placement *p, uint8_t out[32],
                                  moec_error *err)
{
    moec_hasher *h = NULL;
    moec_buf line = {0};
    moec_sha256 digest;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    moec_buf_printf(&line, "%" PRIu32 " %" PRIu32 "\n", p->n_experts,
                    p->n_physical);
    st = line.oom ? moec_fail_nomem(err, "placement digest")
                  : moec_hasher_update(h, line.data, line.len, err);
    for (uint32_t i = 0; i < p->n_layers && st == MOEC_OK; i++) {
        line.len = 0;
        append_row(&line, row_of(p, i), p->n_physical);
        st = line.oom ? moec_fail_nomem(err, "placement digest")
                      : moec_hasher_update(h, line.data, line.len, err);
    }
    moec_buf_fini(&line);
    if (st != MOEC_OK) {
        moec_hasher_destroy(h);
        return st;
    }
    MOEC_TRY(moec_hasher_final(h, &digest, err));
    memcpy(out, digest.b, sizeof(digest.b));
    return MOEC_OK;
}

static moec_status check_ranks(const moec_placement *p, uint32_t n_ranks,
                               moec_error *err)
{
    if (n_ranks == 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                         "0 ranks: at least one is needed");
    if (n_ranks > p->n_physical)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                         "%" PRIu32 " ranks for %" PRIu32 " slots (%" PRIu32
                         " experts): the smallest R that fits is %" PRIu32,
                         n_ranks, p->n_physical, p->n_experts,
                         n_ranks - p->n_experts);
    return MOEC_OK;
}

/* P06. Names the smallest R of all that fits and, where R is not 0 already,
 * the smallest one that has as many replicas as were asked for. */
static moec_status fail_divide(const moec_placement *p, uint32_t n_ranks,
                               moec_error *err)
{
    uint32_t redundant = p->n_physical - p->n_experts;
    uint32_t smallest = (n_ranks - p->n_experts % n_ranks) % n_ranks;
    uint32_t above = redundant + n_ranks - p->n_physical % n_ranks;
    char more[48] = "";

    if (above != smallest)
        snprintf(more, sizeof(more),
                 ", the next one above %" PRIu32 " is %" PRIu32, redundant,
                 above);
    return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P06,
                     "%" PRIu32 " slots (%" PRIu32 " experts and R = %" PRIu32
                     ") do not divide by %" PRIu32
                     " ranks: the smallest R that fits is %" PRIu32 "%s",
                     p->n_physical, p->n_experts, redundant, n_ranks, smallest,
                     more);
}

moec_status moec_placement_fits(const moec_placement *p, uint32_t n_ranks,
                                const moec_layer_key *keys, size_t n_keys,
                                moec_error *err)
{
    MOEC_TRY(check_ranks(p, n_ranks, err));
    if (p->n_physical % n_ranks != 0)
        return fail_divide(p, n_ranks, err);
    if (p->n_layers != n_keys)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P02,
                         "the placement has %" PRIu32
                         " rows for %zu MoE layers",
                         p->n_layers, n_keys);
    return check_rows(p, keys, err);
}

moec_status moec_placement_padded(moec_placement **out, const moec_placement *p,
                                  uint32_t n_ranks, moec_error *err)
{
    uint64_t n_physical;
    moec_placement *padded;

    MOEC_TRY(check_ranks(p, n_ranks, err));
    n_physical = moec_ceil_div(p->n_physical, n_ranks) * n_ranks;
    MOEC_TRY(check_sizes(p->n_layers, p->n_experts, n_physical, err));
    MOEC_TRY(placement_alloc(&padded, p->n_layers, p->n_experts,
                             (uint32_t)n_physical, err));
    for (uint32_t layer = 0; layer < p->n_layers; layer++) {
        int32_t *row = row_of(padded, layer);

        memcpy(row, row_of(p, layer), p->n_physical * sizeof(*row));
        for (uint32_t i = p->n_physical; i < padded->n_physical; i++)
            row[i] = MOEC_EMPTY_SLOT;
    }
    padded->trivial = rows_are_trivial(padded);
    *out = padded;
    return MOEC_OK;
}

moec_status moec_placement_same_rank(const moec_placement *p, uint32_t layer,
                                     uint32_t n_ranks, moec_same_rank *out,
                                     moec_error *err)
{
    const int32_t *row = row_of(p, layer);
    uint32_t n_local = p->n_physical / n_ranks;
    moec_same_rank found = {0};
    uint32_t *last; /* 1 + the last slot of each expert so far; 0: none */

    last = moec_calloc(p->n_experts, sizeof(*last));
    if (!last)
        return moec_fail_nomem(err, "placement check");
    for (uint32_t i = 0; i < p->n_physical; i++) {
        if (row[i] < 0)
            continue;
        uint32_t *at = &last[row[i]];

        if (*at != 0 && (*at - 1) / n_local == i / n_local) {
            if (found.n_slots++ == 0) {
                found.rank = i / n_local;
                found.expert.v = (uint32_t)row[i];
                found.first.v = *at - 1;
                found.second.v = i;
            }
        }
        *at = i + 1;
    }
    moec_free(last);
    *out = found;
    return MOEC_OK;
}
