/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A data file by its bytes. See span.h.
 */

#include <string.h>

#include "span.h"

#define MAGIC      "MOECLVS\1"
#define HEAD_BYTES 64u
#define LEAF_BYTES 48u
#define SUM_BYTES  32u

/* First tensor that ends behind `at`; they stand by offset, without gaps. */
static const moec_out_tensor *tensor_at(const moec_out_file *f, uint64_t at)
{
    size_t lo = 0, hi = f->n_tensors;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (f->tensors[mid].off + f->tensors[mid].bytes > at)
            hi = mid;
        else
            lo = mid + 1;
    }
    return &f->tensors[lo];
}

static moec_span row_at(const moec_layout *layout, const moec_digests *d,
                        const moec_out_file *f, const moec_out_tensor *o,
                        uint64_t at)
{
    const moec_plan *plan = moec_layout_plan(layout);
    uint64_t each = moec_plan_slot_tensor(plan, o->layer, o->t)->slot_bytes;
    uint32_t row = (uint32_t)((at - o->off) / each);
    uint32_t unit = moec_plan_row_unit(plan, o->layer, o->t, f->rank, row);

    return (moec_span){.kind = MOEC_SPAN_BLOCK,
                       .off = o->off + row * each,
                       .bytes = each,
                       .block = {o->layer, o->t, unit},
                       .leaf = moec_digests_block(d, o->layer, o->t, unit)};
}

moec_span moec_span_at(const moec_layout *layout, const moec_digests *d,
                       size_t file, uint64_t at)
{
    const moec_out_file *f = moec_layout_file(layout, file);
    const moec_out_tensor *o;
    moec_span s = {.kind = MOEC_SPAN_HEADER, .bytes = f->header_bytes};

    if (at < f->header_bytes)
        return s;
    o = tensor_at(f, at);
    switch (o->kind) {
    case MOEC_OUT_SLOTS:
        return row_at(layout, d, f, o, at);
    case MOEC_OUT_COMMON:
        s.kind = MOEC_SPAN_COMMON;
        s.tensor = (uint32_t)o->source;
        s.leaf = d->common_base[o->source];
        break;
    case MOEC_OUT_PAD:
        s.kind = MOEC_SPAN_PAD;
        break;
    }
    s.off = o->off;
    s.bytes = o->bytes;
    return s;
}

/* ---------------------------------------------------------------- leaves */

moec_status moec_leaf_table_init(moec_leaf_table *t, moec_digests *d,
                                 moec_error *err)
{
    t->d = d;
    t->known = moec_calloc(d->n_leaves + 1, 1);
    if (t->known == NULL)
        return moec_fail_nomem(err, "a table of leaves");
    pthread_mutex_init(&t->lock, NULL);
    return MOEC_OK;
}

void moec_leaf_table_fini(moec_leaf_table *t)
{
    if (t->known != NULL)
        pthread_mutex_destroy(&t->lock);
    moec_free(t->known);
}

moec_status moec_leaf_table_add(moec_leaf_table *t, uint64_t first,
                                const moec_leaf *leaves, uint64_t n,
                                moec_error *err)
{
    moec_status st = MOEC_OK;

    pthread_mutex_lock(&t->lock);
    for (uint64_t i = 0; st == MOEC_OK && i < n; i++) {
        moec_leaf *l = &t->d->leaves[first + i];
        if (!t->known[first + i])
            *l = leaves[i];
        else if (memcmp(l, &leaves[i], sizeof(*l)) != 0)
            st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                           "the source changed while it was converted: the "
                           "same bytes were read twice, and differ");
        t->known[first + i] = 1;
    }
    pthread_mutex_unlock(&t->lock);
    return st;
}

/* ----------------------------------------------------- a file of leaves */

static void put_u64(moec_buf *b, uint64_t v)
{
    unsigned char le[8];

    for (unsigned i = 0; i < 8; i++)
        le[i] = (unsigned char)(v >> 8 * i);
    moec_buf_append(b, le, sizeof(le));
}

moec_status moec_leaves_encode(const moec_layout *layout, const moec_digests *d,
                               size_t i, const moec_sha256 *job, moec_buf *out,
                               moec_error *err)
{
    uint64_t bytes = moec_layout_file(layout, i)->bytes, n = 0;
    moec_span s;
    moec_sha256 sum;

    for (uint64_t at = 0; at < bytes; at = s.off + s.bytes) {
        s = moec_span_at(layout, d, i, at);
        n += moec_span_has_leaves(&s) ? moec_n_leaves(s.bytes) : 0;
    }
    moec_buf_append(out, MAGIC, 8);
    put_u64(out, bytes);
    put_u64(out, n);
    put_u64(out, 0);
    moec_buf_append(out, job->b, sizeof(job->b));
    for (uint64_t at = 0; at < bytes; at = s.off + s.bytes) {
        s = moec_span_at(layout, d, i, at);
        for (uint64_t k = 0;
             moec_span_has_leaves(&s) && k < moec_n_leaves(s.bytes); k++) {
            const moec_leaf *l = &d->leaves[s.leaf + k];
            moec_buf_append(out, l->sha256.b, sizeof(l->sha256.b));
            moec_buf_append(out, &l->xxh128, sizeof(l->xxh128));
        }
    }
    if (out->oom)
        return moec_fail_nomem(err, "leaves of a file");
    MOEC_TRY(moec_sha256_of(out->data, out->len, &sum, err));
    moec_buf_append(out, sum.b, sizeof(sum.b));
    return out->oom ? moec_fail_nomem(err, "leaves of a file") : MOEC_OK;
}

/* Is it whole, and of this job and file? */
static moec_status is_ours(const moec_out_file *f, const moec_sha256 *job,
                           const unsigned char *p, size_t n, bool *yes,
                           moec_error *err)
{
    moec_sha256 sum;

    *yes = false;
    if (n < HEAD_BYTES + SUM_BYTES || memcmp(p, MAGIC, 8) != 0 ||
        moec_le64(p + 8) != f->bytes ||
        moec_le64(p + 16) != (n - HEAD_BYTES - SUM_BYTES) / LEAF_BYTES ||
        (n - HEAD_BYTES - SUM_BYTES) % LEAF_BYTES != 0 ||
        memcmp(p + 32, job->b, sizeof(job->b)) != 0)
        return MOEC_OK;
    MOEC_TRY(moec_sha256_of(p, n - SUM_BYTES, &sum, err));
    *yes = memcmp(sum.b, p + n - SUM_BYTES, sizeof(sum.b)) == 0;
    return MOEC_OK;
}

moec_status moec_leaves_take(const moec_layout *layout, moec_leaf_table *t,
                             size_t i, const moec_sha256 *job, const void *data,
                             size_t n, bool *ours_out, moec_error *err)
{
    const moec_out_file *f = moec_layout_file(layout, i);
    const unsigned char *p = data, *end;
    moec_span s;

    MOEC_TRY(is_ours(f, job, p, n, ours_out, err));
    if (!*ours_out)
        return MOEC_OK;
    end = p + n - SUM_BYTES;
    p += HEAD_BYTES;
    for (uint64_t at = 0; at < f->bytes; at = s.off + s.bytes) {
        s = moec_span_at(layout, t->d, i, at);
        for (uint64_t k = 0;
             moec_span_has_leaves(&s) && k < moec_n_leaves(s.bytes) && p < end;
             k++, p += LEAF_BYTES) {
            moec_leaf l;
            memcpy(l.sha256.b, p, sizeof(l.sha256.b));
            memcpy(&l.xxh128, p + 32, sizeof(l.xxh128));
            MOEC_TRY(moec_leaf_table_add(t, s.leaf + k, &l, 1, err));
        }
    }
    if (p == end)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_NONE,
                     "the leaves of %s are not as many as it has", f->name);
}
