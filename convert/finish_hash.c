/* SPDX-License-Identifier: Apache-2.0 */

/*
 * --hash-source: SHA-256 of each whole source shard, for the manifest. A
 * shard is its header and its tensors in the order of their offsets, which
 * tile it (H15), so either kind of input gives it. This reads the source once
 * more: one digest over a file wants its bytes in order, and the moves do not
 * come in order.
 */

#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "finish.h"

#define READ_BYTES ((size_t)4 << 20)

typedef struct stretch {
    uint32_t file, tensor;
    uint64_t off, bytes;
} stretch;

typedef struct hashing {
    moec_finish *f;
    moec_input *in;
    moec_worker *workers;
    size_t n; /* stretches, by (file, offset) */
    stretch *list;
    moec_sha256 *sums; /* by file */
} hashing;

static int by_place(const void *pa, const void *pb)
{
    const stretch *a = pa, *b = pb;

    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    if (a->off != b->off)
        return a->off < b->off ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static moec_status hash_header(const hashing *h, size_t i, moec_hasher *sum,
                               moec_error *err)
{
    size_t n = (size_t)moec_ckpt_file(h->f->ckpt, i)->header_bytes;
    void *data = moec_alloc(n);
    moec_status st;

    if (data == NULL)
        return moec_fail_nomem(err, "header of a source shard");
    st = h->in->kind->read_header(h->in, i, data, err);
    if (st == MOEC_OK)
        st = moec_hasher_update(sum, data, n, err);
    moec_free(data);
    return st;
}

static moec_status hash_tensor(const hashing *h, const stretch *s,
                               uint32_t worker, void *buf, moec_hasher *sum,
                               moec_error *err)
{
    moec_hand hand = {worker, &h->workers[worker]};

    for (uint64_t at = 0; at < s->bytes; at += READ_BYTES) {
        size_t n = (size_t)moec_min_u64(READ_BYTES, s->bytes - at);
        MOEC_TRY(
            h->in->kind->read_tensor(h->in, hand, s->tensor, at, buf, n, err));
        MOEC_TRY(moec_hasher_update(sum, buf, n, err));
    }
    return MOEC_OK;
}

static moec_status hash_file(void *ctx, size_t i, uint32_t worker,
                             moec_error *err)
{
    const hashing *h = ctx;
    const moec_convert_opts *o = h->in->opts;
    void *buf = moec_alloc_aligned(READ_BYTES, MOEC_ALIGN);
    moec_hasher *sum = NULL;
    moec_status st =
        buf ? moec_hasher_create(&sum, err) : moec_fail_nomem(err, "a buffer");

    if (st == MOEC_OK)
        st = hash_header(h, i, sum, err);
    for (size_t k = 0; st == MOEC_OK && k < h->n; k++) {
        if (h->list[k].file != i)
            continue;
        st = hash_tensor(h, &h->list[k], worker, buf, sum, err);
        if (st == MOEC_OK && o->stop != NULL && *o->stop != 0)
            st = moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                           "interrupted while the source was hashed");
    }
    if (st == MOEC_OK) {
        st = moec_hasher_final(sum, &h->sums[i], err);
        sum = NULL;
    }
    moec_hasher_destroy(sum);
    moec_free_aligned(buf);
    return st;
}

static moec_status list_tensors(hashing *h, moec_error *err)
{
    const moec_ckpt *ck = h->f->ckpt;
    uint32_t n_hands = h->in->n_hands;

    h->n = moec_ckpt_n_tensors(ck);
    h->list = moec_calloc(h->n + 1, sizeof(*h->list));
    h->workers = moec_calloc(n_hands + 1u, sizeof(*h->workers));
    h->sums = moec_calloc(moec_ckpt_n_files(ck) + 1, sizeof(*h->sums));
    if (h->list == NULL || h->workers == NULL || h->sums == NULL)
        return moec_fail_nomem(err, "digests of the source");
    for (size_t i = 0; i < h->n; i++) {
        const moec_tensor *t = moec_ckpt_tensor(ck, i);
        h->list[i] = (stretch){t->file, (uint32_t)i, t->off, t->bytes};
    }
    if (h->n > 0)
        qsort(h->list, h->n, sizeof(*h->list), by_place);
    return MOEC_OK;
}

/* Into the manifest's sources, which are described. */
static moec_status note_sums(const hashing *h, moec_error *err)
{
    char hex[65];

    for (size_t i = 0; i < h->f->mf.n_sources; i++) {
        moec_hex(&h->sums[i], sizeof(*h->sums), hex);
        h->f->source_files[i].sha256 =
            moec_arena_strdup(&h->f->arena, hex, strlen(hex));
        if (h->f->source_files[i].sha256 == NULL)
            return moec_fail_nomem(err, "digests of the source");
    }
    return MOEC_OK;
}

moec_status moec_finish_hash(moec_finish *f, moec_input *in,
                             moec_convert_stats *stats, moec_error *err)
{
    hashing h = {.f = f, .in = in};
    moec_status st;

    for (size_t i = 0; in->carried != NULL && i < f->mf.n_sources; i++)
        f->source_files[i].sha256 = in->carried->sources[i].sha256;
    if (in->carried != NULL || !in->opts->hash_source)
        return MOEC_OK;
    st = list_tensors(&h, err);
    if (st == MOEC_OK)
        st = moec_parallel(in->n_hands, moec_ckpt_n_files(f->ckpt), hash_file,
                           &h, err);
    if (st == MOEC_OK)
        st = note_sums(&h, err);
    for (uint32_t i = 0; h.workers != NULL && i < in->n_hands; i++) {
        stats->bytes_read += h.workers[i].io.n_bytes_read;
        moec_scratch_fini(&h.workers[i].scratch);
        moec_io_buf_fini(&h.workers[i].io);
    }
    moec_free(h.workers);
    moec_free(h.list);
    moec_free(h.sums);
    return st;
}
