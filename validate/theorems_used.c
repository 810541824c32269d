/* SPDX-License-Identifier: Apache-2.0 */

/*
 * T1: every byte of every source tensor is used by one region of one move, or
 * the tensor's fate says why not. Regions of a tensor are sorted by where they
 * begin; those whose extents overlap (gate and up interleaved, columns of a
 * split shared expert) form a cluster, and each cluster must tile its extent.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "execute.h"
#include "report.h"
#include "theorems.h"

/* Regions of one cluster: moec_moves_tile's limit. */
#define CLUSTER_MAX 256u

bool moec_region_end(const moec_move *m, uint64_t off, uint64_t row,
                     uint64_t col, uint64_t *end)
{
    uint64_t rows, cols;

    return m->n_rows > 0 && m->n_cols > 0 && m->elem_bytes > 0 &&
           moec_mul_u64(m->n_rows - 1, row, &rows) &&
           moec_mul_u64(m->n_cols - 1, col, &cols) &&
           moec_add_u64(off, rows, end) && moec_add_u64(*end, cols, end) &&
           moec_add_u64(*end, m->elem_bytes, end);
}

bool moec_source_fits(const moec_proof *p, const moec_move *m)
{
    uint64_t end;

    return m->tensor < p->n_sources &&
           moec_region_end(m, m->src_off, m->src_row, m->src_col, &end) &&
           end <= moec_ckpt_tensor(p->ckpt, m->tensor)->bytes;
}

/* Where one move reads. */
typedef struct extent {
    uint64_t lo, hi;
    const moec_move *m;
} extent;

static int by_number(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* Of one tensor. */
static int by_extent(const void *pa, const void *pb)
{
    const extent *a = pa, *b = pb;
    int c = by_number(a->lo, b->lo);

    if (c == 0)
        c = by_number(a->hi, b->hi);
    if (c == 0)
        c = by_number(a->m->n_rows, b->m->n_rows);
    if (c == 0)
        c = by_number(a->m->src_row, b->m->src_row);
    return c == 0 ? by_number(a->m->src_col, b->m->src_col) : c;
}

/* A layer's tensors stand side by side in the table, most with one region: put
 * into place by number, then sorted where a tensor has several. */
static moec_status sort_extents(extent *e, size_t n, moec_error *err)
{
    uint32_t low = UINT32_MAX, high = 0;
    size_t *at = NULL, n_tensors, begin = 0;
    extent *to = NULL;

    for (size_t i = 0; i < n; i++) {
        uint32_t t = e[i].m->tensor;
        low = t < low ? t : low;
        high = t > high ? t : high;
    }
    if (n < 2)
        return MOEC_OK;
    n_tensors = (size_t)(high - low) + 1;
    at = moec_calloc(n_tensors, sizeof(*at));
    to = moec_realloc_array(NULL, n, sizeof(*to));
    if (at == NULL || to == NULL) {
        moec_free(at);
        moec_free(to);
        return moec_fail_nomem(err, "regions of a layer's moves");
    }
    for (size_t i = 0; i < n; i++)
        at[e[i].m->tensor - low]++;
    for (size_t t = 0; t < n_tensors; t++) {
        size_t count = at[t];
        at[t] = begin;
        begin += count;
    }
    for (size_t i = 0; i < n; i++)
        to[at[e[i].m->tensor - low]++] = e[i];
    memcpy(e, to, n * sizeof(*e));
    begin = 0;
    for (size_t t = 0; t < n_tensors; t++) { /* at[t] is its end now */
        if (at[t] - begin > 1)
            qsort(e + begin, at[t] - begin, sizeof(*e), by_extent);
        begin = at[t];
    }
    moec_free(at);
    moec_free(to);
    return MOEC_OK;
}

/* Scalars, and per-row scales of a split shared expert, are repeated in
 * several slots: the same region twice counts once. */
static bool same_region(const extent *a, const extent *b)
{
    return a->lo == b->lo && a->hi == b->hi && a->m->tensor == b->m->tensor &&
           a->m->n_rows == b->m->n_rows && a->m->n_cols == b->m->n_cols &&
           a->m->src_row == b->m->src_row && a->m->src_col == b->m->src_col;
}

/* One region of adjacent elements in adjacent rows: what most tensors are. */
static bool is_plain(const extent *e)
{
    const moec_move *m = e->m;

    return (m->n_cols == 1 || m->src_col == m->elem_bytes) &&
           (m->n_rows == 1 || m->src_row == m->n_cols * m->elem_bytes);
}

/* Do the regions [0, n), whose extents overlap one another, tile theirs? */
static bool cluster_tiles(const extent *e, size_t n, uint64_t hi,
                          uint64_t *off_out)
{
    moec_move inverse[CLUSTER_MAX];

    if (n == 1 && is_plain(e))
        return true;
    if (n > CLUSTER_MAX) {
        *off_out = e[0].lo;
        return false;
    }
    for (size_t i = 0; i < n; i++)
        inverse[i] = moec_move_inverse(e[i].m, 0, e[0].lo);
    if (moec_moves_tile(inverse, n, hi - e[0].lo, off_out))
        return true;
    *off_out += e[0].lo;
    return false;
}

/* Do the sorted regions of one tensor tile [0, bytes)? */
static bool tensor_covered(extent *e, size_t n, uint64_t bytes,
                           uint64_t *off_out)
{
    uint64_t at = 0;
    size_t kept = 0;

    for (size_t i = 0; i < n; i++)
        if (kept == 0 || !same_region(&e[kept - 1], &e[i]))
            e[kept++] = e[i];
    for (size_t i = 0; i < kept;) {
        uint64_t hi = e[i].hi;
        size_t k = i + 1;

        *off_out = at;
        if (e[i].lo != at)
            return false;
        for (; k < kept && e[k].lo < hi; k++)
            hi = moec_max_u64(hi, e[k].hi);
        if (!cluster_tiles(e + i, k - i, hi, off_out))
            return false;
        at = hi;
        i = k;
    }
    *off_out = at;
    return at == bytes;
}

/* Regions of the placed blocks that lie within their source. */
static size_t gather(const moec_proof *p, const moec_proof_layer *l,
                     const uint8_t *placed, extent *out)
{
    size_t n = 0, width = (size_t)l->n_units + 1;

    for (size_t b = 0; b < l->n_tensors * width; b++) {
        const moec_proof_block *block = &l->blocks[b];

        if (!placed[b % width])
            continue;
        for (size_t i = 0; i < block->n; i++) {
            const moec_move *m = &l->moves[block->first + i];
            extent *e = &out[n];

            if (m->op == MOEC_OP_FILL || m->op == MOEC_OP_REQUANTISE ||
                !moec_source_fits(p, m))
                continue;
            e->lo = m->src_off;
            e->m = m;
            n += moec_region_end(m, m->src_off, m->src_row, m->src_col, &e->hi);
        }
    }
    return n;
}

/* T1 over the tensor that the sorted regions [0, n) read. */
static void prove_tensor_used(moec_report *r, moec_proof *p,
                              const moec_proof_layer *l, extent *e, size_t n)
{
    uint32_t tensor = e->m->tensor;
    const moec_tensor *t = moec_ckpt_tensor(p->ckpt, tensor);
    uint64_t off;

    p->sources[tensor].covered = 1;
    if (tensor_covered(e, n, t->bytes, &off))
        return;
    moec_finding f = {.rule = MOEC_RULE_T1,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_LAYER | MOEC_HAS_TENSOR,
                      .layer = l->key,
                      .tensor = t->name};
    moec_report_add(r, &f,
                    "byte %" PRIu64 " of the tensor's %" PRIu64
                    " is used by no move, or by two different ones",
                    off, t->bytes);
}

moec_status moec_prove_used(moec_report *r, moec_proof *p,
                            const moec_proof_layer *l, const uint8_t *placed,
                            moec_error *err)
{
    extent *e = moec_realloc_array(NULL, l->n_moves + 1, sizeof(*e));
    size_t n, k;
    moec_status st;

    if (e == NULL)
        return moec_fail_nomem(err, "regions of a layer's moves");
    n = gather(p, l, placed, e);
    st = sort_extents(e, n, err);
    for (size_t i = 0; st == MOEC_OK && i < n; i = k) {
        for (k = i + 1; k < n && e[k].m->tensor == e[i].m->tensor; k++)
            ;
        prove_tensor_used(r, p, l, e + i, k - i);
    }
    moec_free(e);
    return st;
}

/* ----------------------------------------------------------------- fates */

/* NULL, or what is wrong with what becomes of a source tensor. */
static const char *fate_error(const moec_proof *p, size_t i)
{
    const moec_proof_source *s = &p->sources[i];
    moec_tensor_use use = moec_model_use(p->model, i);
    bool expert = use.role == MOEC_ROLE_ROUTED || use.role == MOEC_ROLE_SHARED;

    switch (s->fate) {
    case MOEC_FATE_MOVED:
        if (!expert)
            return "is neither an expert's nor kept as a common tensor";
        return s->covered ? NULL : "belongs to an expert and no move uses it";
    case MOEC_FATE_COMMON:
        if (s->covered)
            return "is moved into slots and kept as a common tensor too";
        if (use.role == MOEC_ROLE_ROUTED)
            return "is a routed expert's and is not moved into slots";
        if (use.role == MOEC_ROLE_SHARED && p->topo.n_shared_slots != 0 &&
            !p->requantises)
            return "is the shared expert's, which has slots, and is not moved";
        return NULL;
    case MOEC_FATE_SHARED:
        if (use.role != MOEC_ROLE_SHARED || !p->shared_store_common)
            return "is put into the shared store and does not belong there";
        return s->covered ? "is moved and put into the shared store" : NULL;
    case MOEC_FATE_SKIPPED:
        if (p->no_mtp && use.is_mtp)
            return NULL;
        return "is left out, and no rule names it";
    }
    return "has no fate";
}

static void tell_fate(moec_report *r, const moec_proof *p, size_t i,
                      const char *why)
{
    const moec_tensor *t = moec_ckpt_tensor(p->ckpt, i);
    moec_finding f = {.rule = MOEC_RULE_T1,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_TENSOR | MOEC_HAS_FILE,
                      .tensor = t->name,
                      .file = moec_ckpt_file(p->ckpt, t->file)->name};

    moec_report_add(r, &f, "'%s' %s", t->name, why);
}

void moec_prove_sources(moec_report *r, const moec_proof *p)
{
    uint64_t skipped = 0;

    for (size_t i = 0; i < p->n_sources; i++) {
        const char *why = fate_error(p, i);

        skipped += p->sources[i].fate == MOEC_FATE_SKIPPED;
        if (why != NULL)
            tell_fate(r, p, i, why);
    }
    moec_report_ran(r, MOEC_RULE_T1, p->n_sources);
    if (skipped != 0)
        moec_report_note(r, MOEC_RULE_T1,
                         "%" PRIu64 " tensors of MTP layers are left out as "
                         "--no-mtp says",
                         skipped);
}
