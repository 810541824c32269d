/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every byte of the data files, read once, against the digests of slots.bin.
 * This pass follows slots.bin alone (whose tables are checked when decoded),
 * so that it also works where the layout cannot be decided again.
 */

#include <inttypes.h>
#include <string.h>

#include "verify.h"

/* Rows [row, row + n) of one tensor. */
typedef struct item {
    size_t tensor;
    uint64_t row;
    uint64_t n;
} item;

typedef struct pass {
    moec_verifier *v;
    item *items;
    size_t n, cap;
} pass;

/* A tensor's slots; a filler is one slot. */
static uint64_t rows_of(const moec_ct_tensor *t)
{
    return t->kind == MOEC_CT_PAD ? 1 : t->n_slots;
}

static uint64_t block_of(const moec_ct_tensor *t)
{
    uint64_t rows = rows_of(t);

    return rows == 0 ? 0 : t->bytes / rows;
}

static moec_status add_item(pass *p, item it, moec_error *err)
{
    if (p->n == p->cap) {
        size_t cap = p->cap == 0 ? 256 : p->cap * 2;
        item *grown = moec_realloc_array(p->items, cap, sizeof(*grown));
        if (grown == NULL)
            return moec_fail_nomem(err, "list of work");
        p->items = grown;
        p->cap = cap;
    }
    p->items[p->n++] = it;
    return MOEC_OK;
}

static moec_status list_items(pass *p, moec_error *err)
{
    const moec_slots *s = &p->v->files->slots;

    for (size_t i = 0; i < s->n_tensors; i++) {
        const moec_ct_tensor *t = &s->tensors[i];
        uint64_t rows = rows_of(t), batch = moec_verify_batch(block_of(t));

        if (p->v->io[t->file].fd < 0 ||
            !moec_patches_concern(p->v->patches, t->file))
            continue;
        for (uint64_t r = 0; r < rows; r += batch) {
            item it = {i, r, moec_min_u64(batch, rows - r)};
            MOEC_TRY(add_item(p, it, err));
        }
    }
    return MOEC_OK;
}

/* First byte that is not zero, or n. */
static size_t first_set(const unsigned char *p, size_t n)
{
    size_t i = 0;

    if (n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0))
        return n;
    while (p[i] == 0)
        i++;
    return i;
}

/* Bytes of a slot from `from` on: one finding at most. Returns whether the
 * slot is still good. */
static moec_status check_part(const pass *p, const moec_ct_tensor *t,
                              uint64_t row, uint64_t from,
                              const unsigned char *data, size_t n, bool *good,
                              moec_error *err)
{
    const moec_slots *s = &p->v->files->slots;
    moec_rule rule = t->kind == MOEC_CT_SLOTS ? MOEC_RULE_T3 : MOEC_RULE_M07;
    const moec_ct_slot *slot = NULL;
    char expected[65], found[65];
    moec_sha256 sha;
    moec_finding f;
    size_t bad;

    if (t->kind != MOEC_CT_PAD)
        slot = &s->slots[t->first_slot + row];
    if (slot == NULL || slot->logical == MOEC_LOGICAL_EMPTY) {
        bad = first_set(data, n);
        f = moec_verify_finding(p->v, rule, t, row, from + bad);
        if (bad < n)
            moec_report_add(p->v->r, &f, "byte %" PRIu64 " of %s is not zero",
                            from + bad,
                            slot == NULL ? "a filler" : "an empty slot");
        *good = bad == n;
        return MOEC_OK;
    }
    MOEC_TRY(moec_verify_leaves(p->v, slot, from / MOEC_LEAF_BYTES, data, n,
                                &bad, &sha, err));
    *good = bad == SIZE_MAX;
    if (*good)
        return MOEC_OK;
    moec_hex(s->leaves[slot->first_leaf + bad].sha256.b, 32, expected);
    moec_hex(sha.b, 32, found);
    f = moec_verify_finding(p->v, rule, t, row, bad * MOEC_LEAF_BYTES);
    f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expected = expected;
    f.found = found;
    moec_report_add(p->v->r, &f,
                    "leaf %zu of the %s does not have the digest of slots.bin",
                    bad, t->kind == MOEC_CT_SLOTS ? "slot" : "tensor");
    return MOEC_OK;
}

/* A file that became shorter while it was read. */
static moec_status settle(const pass *p, const moec_ct_tensor *t,
                          const moec_error *e, moec_error *err)
{
    const char *file = p->v->files->slots.files[t->file].name;
    moec_error cut = *e;

    if (e->status != MOEC_E_FORMAT) {
        if (err != NULL && err->status == MOEC_OK)
            *err = *e;
        return e->status;
    }
    cut.rule = MOEC_RULE_M05;
    moec_report_add_error(p->v->r, file, MOEC_RULE_M05, &cut);
    return MOEC_OK;
}

/* One slot that is longer than a range. */
static moec_status run_long(const pass *p, const moec_ct_tensor *t,
                            uint64_t row, moec_verify_worker *w,
                            moec_error *err)
{
    uint64_t bytes = block_of(t), begin = t->off + row * bytes;
    moec_error e = MOEC_ERROR_INIT;
    bool good = true;

    for (uint64_t at = 0; good && at < bytes; at += MOEC_VERIFY_RANGE_BYTES) {
        size_t n = (size_t)moec_min_u64(MOEC_VERIFY_RANGE_BYTES, bytes - at);

        if (moec_verify_read(p->v, w, t->file, begin + at, w->a, n, &e) !=
            MOEC_OK)
            return settle(p, t, &e, err);
        MOEC_TRY(check_part(p, t, row, at, w->a, n, &good, err));
        MOEC_TRY(moec_verify_progress(p->v, n, err));
    }
    return MOEC_OK;
}

static moec_status run_item(void *ctx, size_t i, uint32_t worker,
                            moec_error *err)
{
    const pass *p = ctx;
    const item *it = &p->items[i];
    const moec_ct_tensor *t = &p->v->files->slots.tensors[it->tensor];
    moec_verify_worker *w = &p->v->workers[worker];
    uint64_t bytes = block_of(t);
    moec_error e = MOEC_ERROR_INIT;
    size_t n;
    bool good;

    if (bytes > MOEC_VERIFY_RANGE_BYTES)
        return run_long(p, t, it->row, w, err);
    n = (size_t)(it->n * bytes);
    if (moec_verify_read(p->v, w, t->file, t->off + it->row * bytes, w->a, n,
                         &e) != MOEC_OK)
        return settle(p, t, &e, err);
    for (uint64_t r = 0; r < it->n; r++)
        MOEC_TRY(check_part(p, t, it->row + r, 0, w->a + r * bytes,
                            (size_t)bytes, &good, err));
    return moec_verify_progress(p->v, n, err);
}

/* The slot's own digest is over its leaves' digests: slots.bin against
 * itself. */
static moec_status check_slot_digests(const pass *p, moec_error *err)
{
    const moec_slots *s = &p->v->files->slots;
    moec_buf all = {0};
    moec_status st = MOEC_OK;

    for (size_t i = 0; st == MOEC_OK && i < s->n_slots; i++) {
        const moec_ct_slot *slot = &s->slots[i];
        moec_finding f = {.rule = MOEC_RULE_M03,
                          .severity = MOEC_SEVERITY_ERROR,
                          .has = MOEC_HAS_FILE,
                          .file = MOEC_SLOTS_NAME};
        moec_sha256 sha;

        all.len = 0;
        for (uint32_t l = 0; l < slot->n_leaves; l++)
            moec_buf_append(&all, s->leaves[slot->first_leaf + l].sha256.b, 32);
        if (all.oom)
            st = moec_fail_nomem(err, "digests of a slot");
        else
            st = moec_sha256_of(all.data, all.len, &sha, err);
        if (st == MOEC_OK && memcmp(sha.b, slot->sha256.b, 32) != 0)
            moec_report_add(p->v->r, &f,
                            "slot %zu: its digest is not that of its leaves",
                            i);
    }
    moec_buf_fini(&all);
    return st;
}

moec_status moec_verify_bytes(moec_verifier *v, moec_error *err)
{
    pass p = {.v = v};
    moec_status st = check_slot_digests(&p, err);

    if (st == MOEC_OK)
        st = list_items(&p, err);
    if (st == MOEC_OK)
        st = moec_parallel(v->n_workers, p.n, run_item, &p, err);
    if (st == MOEC_OK)
        moec_report_ran(v->r, MOEC_RULE_T3, v->files->slots.n_slots);
    moec_free(p.items);
    return st;
}
