/* SPDX-License-Identifier: Apache-2.0
 *
 * Columns sorted by slot, for grouped matrix products, and the rows that they
 * name. A counting sort: stable, so the order inside a slot is by token, on
 * every run and with any number of threads; peers leave it to atomics.
 *
 * Each worker takes one stretch of the columns, counts it, and after a prefix
 * sum over (slot, stretch) knows where each of its columns goes. */

#include <string.h>

#include "align.h"
#include "backend.h"

#define COLUMNS_A_STRETCH 16384u /* fewer are not worth another thread */
#define SLOTS_MAX         (UINT32_C(1) << 20)

typedef struct sorter {
    const int32_t *slots;
    uint64_t n;
    uint32_t first_slot, n_slots;
    uint32_t n_stretches;
    uint32_t *at; /* [stretch][n_slots]: counts, then next place */
    uint32_t *sorted;
    moec_align_pick_fn pick;
} sorter;

static uint32_t stretches_of(const moec_kernels *k, uint64_t n)
{
    return (uint32_t)moec_max_u64(
        1, moec_min_u64(n / COLUMNS_A_STRETCH, moec_kernels_n_threads(k)));
}

uint64_t moec_align_workspace_bytes(const moec_kernels *k, uint64_t n,
                                    uint32_t n_slots)
{
    return (uint64_t)stretches_of(k, n) * n_slots * sizeof(uint32_t);
}

static void bounds(const sorter *s, size_t stretch, uint64_t *lo, uint64_t *hi)
{
    uint64_t each = s->n / s->n_stretches / MOEC_ALIGN_BATCH * MOEC_ALIGN_BATCH;

    *lo = stretch * each;
    *hi = stretch + 1 == s->n_stretches ? s->n : *lo + each;
}

/* Most columns may belong to other ranks, and a branch that takes one in eight
 * is mispredicted: they are picked out first, then looked at. */
uint32_t moec_align_pick_scalar(const int32_t *slots, uint32_t n,
                                uint32_t first, uint32_t range, uint32_t base,
                                uint32_t *own, uint32_t *found)
{
    uint32_t k = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t s = (uint32_t)slots[i] - first;

        own[k] = s;
        if (found)
            found[k] = base + i;
        k += s < range;
    }
    return k;
}

static moec_align_pick_fn pick_of(moec_isa isa)
{
#if defined(__x86_64__)
    if (isa == MOEC_ISA_AVX512)
        return moec_align_pick_avx512;
#endif
    (void)isa;
    return moec_align_pick_scalar;
}

/* Of columns [lo, lo + BATCH) below hi. */
static uint32_t pick(const sorter *s, uint64_t lo, uint64_t hi, uint32_t *own,
                     uint32_t *found)
{
    return s->pick(s->slots + lo,
                   (uint32_t)moec_min_u64(hi - lo, MOEC_ALIGN_BATCH),
                   s->first_slot, s->n_slots, (uint32_t)lo, own, found);
}

static void count_stretch(void *ctx, size_t item, uint32_t worker)
{
    const sorter *s = ctx;
    uint32_t *at = s->at + item * s->n_slots, own[MOEC_ALIGN_ROOM];
    uint64_t lo, hi;

    (void)worker;
    memset(at, 0, s->n_slots * sizeof(at[0]));
    bounds(s, item, &lo, &hi);
    for (; lo < hi; lo += MOEC_ALIGN_BATCH) {
        uint32_t n = pick(s, lo, hi, own, NULL);

        for (uint32_t i = 0; i < n; i++)
            at[own[i]]++;
    }
}

static void place_stretch(void *ctx, size_t item, uint32_t worker)
{
    const sorter *s = ctx;
    uint32_t *at = s->at + item * s->n_slots;
    uint32_t own[MOEC_ALIGN_ROOM], found[MOEC_ALIGN_ROOM];
    uint64_t lo, hi;

    (void)worker;
    bounds(s, item, &lo, &hi);
    for (; lo < hi; lo += MOEC_ALIGN_BATCH) {
        uint32_t n = pick(s, lo, hi, own, found);

        for (uint32_t i = 0; i < n; i++)
            s->sorted[at[own[i]]++] = found[i];
    }
}

/* Turn a slot's counts into places from `next` on, one stretch after the
 * other. Returns their end. */
static uint64_t place_slot(const sorter *s, uint32_t q, uint64_t next)
{
    for (uint32_t i = 0; i < s->n_stretches; i++) {
        uint32_t *at = &s->at[(size_t)i * s->n_slots + q], n = *at;

        *at = (uint32_t)next;
        next += n;
    }
    return next;
}

/* Places of all slots, the padding, and who owns each block. */
static uint64_t lay_out(const sorter *s, uint32_t block, uint32_t *expert_ids,
                        uint64_t *slot_first)
{
    uint64_t next = 0, n_blocks = 0;

    for (uint32_t q = 0; q < s->n_slots; q++) {
        uint64_t end = place_slot(s, q, next);

        if (slot_first)
            slot_first[q] = next;
        for (; next < end; next += block) {
            if (expert_ids)
                expert_ids[n_blocks] = q;
            n_blocks++;
        }
        for (; end < next; end++)
            s->sorted[end] = (uint32_t)s->n;
    }
    if (slot_first)
        slot_first[s->n_slots] = next;
    return next;
}

static moec_status check_align(const moec_kernels *k, const sorter *s,
                               uint32_t block, const void *n_padded_out,
                               moec_error *err)
{
    if (!k || !n_padded_out || (s->n && (!s->slots || !s->sorted)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_align: %s is NULL",
                         !k              ? "kernels"
                         : !n_padded_out ? "n_padded_out"
                         : !s->slots     ? "slots"
                                         : "sorted");
    if (s->n_slots == 0 || s->n_slots > SLOTS_MAX ||
        s->first_slot > INT32_MAX - s->n_slots)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_align: %u slots from %u", s->n_slots,
                         s->first_slot);
    /* Places are 32 bits, and n itself means padding. */
    if (block == 0 || s->n >= UINT32_MAX ||
        moec_align_capacity(s->n, s->n_slots, block) > UINT32_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_align: %llu columns over %u slots in blocks of "
                         "%u",
                         (unsigned long long)s->n, s->n_slots, block);
    return MOEC_OK;
}

/* kernels.h says its arguments; `sorted` is written through the sorter. */
/* NOLINTBEGIN(readability-function-size,readability-non-const-parameter) */
moec_status moec_align(const moec_kernels *k, const int32_t *slots, uint64_t n,
                       uint32_t first_slot, uint32_t n_slots, uint32_t block,
                       uint32_t *sorted, uint32_t *expert_ids,
                       uint64_t *slot_first, uint64_t *n_padded_out,
                       void *workspace, uint64_t workspace_bytes,
                       moec_error *err)
{
    sorter s = {
        .slots = slots,
        .n = n,
        .first_slot = first_slot,
        .n_slots = n_slots,
        .sorted = sorted,
    };
    /* NOLINTEND(readability-function-size,readability-non-const-parameter) */
    uint64_t need;

    MOEC_TRY(check_align(k, &s, block, n_padded_out, err));
    need = moec_align_workspace_bytes(k, n, n_slots);
    if (!workspace || workspace_bytes < need || (uintptr_t)workspace % 4 != 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_align: workspace of %llu bytes at %p; %llu are "
                         "needed",
                         (unsigned long long)workspace_bytes, workspace,
                         (unsigned long long)need);
    s.at = workspace;
    s.n_stretches = stretches_of(k, n);
    s.pick = pick_of(k->isa);
    moec_pool_run(k->pool, s.n_stretches, count_stretch, &s);
    *n_padded_out = lay_out(&s, block, expert_ids, slot_first);
    moec_pool_run(k->pool, s.n_stretches, place_stretch, &s);
    return MOEC_OK;
}

/* ------------------------------------------------------------ permute */

/* Bytes that one item of the pool copies. */
#define COPY_BYTES (UINT64_C(1) << 18)

typedef struct copier {
    const unsigned char *x;
    unsigned char *out;
    const uint32_t *sorted;
    uint64_t row_bytes, n_sorted, n_columns, rows_an_item;
    uint32_t n_cols;
} copier;

static void copy_item(void *ctx, size_t item, uint32_t worker)
{
    const copier *c = ctx;
    uint64_t lo = item * c->rows_an_item;
    uint64_t hi = moec_min_u64(lo + c->rows_an_item, c->n_sorted);

    (void)worker;
    for (uint64_t i = lo; i < hi; i++) {
        unsigned char *to = c->out + i * c->row_bytes;

        if (c->sorted[i] < c->n_columns)
            memcpy(to, c->x + c->sorted[i] / c->n_cols * c->row_bytes,
                   c->row_bytes);
        else
            memset(to, 0, c->row_bytes);
    }
}

/* NOLINTNEXTLINE(readability-function-size): kernels.h says its arguments */
moec_status moec_permute(const moec_kernels *k, const void *x,
                         uint64_t row_bytes, const uint32_t *sorted,
                         uint64_t n_sorted, uint64_t n_columns, uint32_t n_cols,
                         void *out, moec_error *err)
{
    copier c = {
        .x = x,
        .out = out,
        .sorted = sorted,
        .row_bytes = row_bytes,
        .n_sorted = n_sorted,
        .n_columns = n_columns,
        .n_cols = n_cols,
    };
    uint64_t bytes;

    if (!k || (n_sorted && (!sorted || !out || (!x && n_columns))))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_permute: %s is NULL",
                         !k        ? "kernels"
                         : !sorted ? "sorted"
                         : !out    ? "out"
                                   : "x");
    if (row_bytes == 0 || n_cols == 0 ||
        !moec_mul_u64(row_bytes, n_sorted, &bytes))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_permute: %llu rows of %llu bytes, %u columns a "
                         "token",
                         (unsigned long long)n_sorted,
                         (unsigned long long)row_bytes, n_cols);
    c.rows_an_item = moec_max_u64(1, COPY_BYTES / row_bytes);
    moec_pool_run(k->pool, moec_ceil_div(n_sorted, c.rows_an_item), copy_item,
                  &c);
    return MOEC_OK;
}
