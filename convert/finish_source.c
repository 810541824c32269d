/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a conversion keeps of its source besides tensors: copies of the small
 * files, and the entries of sources.bin: shard headers, the index, and files
 * whose names the output uses itself.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "finish.h"

#define COPY_BYTES ((size_t)1 << 20)

/* --------------------------------------------------------- copied files */

/* A source file whose name the output uses for itself goes into sources.bin. */
static bool name_taken(const moec_finish *f, const char *name)
{
    static const char *const own[] = {MOEC_MANIFEST_NAME, MOEC_SLOTS_NAME,
                                      MOEC_SOURCES_NAME, MOEC_PROVENANCE_NAME,
                                      MOEC_INDEX_NAME};

    if (strncmp(name, MOEC_OUTPUT_OWN, sizeof(MOEC_OUTPUT_OWN) - 1) == 0)
        return true;
    for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
        if (strcmp(name, own[i]) == 0)
            return true;
    for (size_t i = 0; i < moec_layout_n_files(f->layout); i++)
        if (strcmp(name, moec_layout_file(f->layout, i)->name) == 0)
            return true;
    return false;
}

static moec_status keep_in_sources(moec_finish *f, const moec_extra *x,
                                   moec_error *err)
{
    moec_source_entry *e = &f->sources.entries[f->sources.n_entries];
    moec_sha256 got;
    void *data;

    if (x->bytes > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %llu bytes, the limit is %llu", x->name,
                         (unsigned long long)x->bytes,
                         (unsigned long long)MOEC_JSON_BYTES_MAX);
    data = moec_finish_take(f, (size_t)x->bytes, 1);
    if (data == NULL)
        return moec_fail_nomem(err, x->name);
    MOEC_TRY(moec_extra_read(x, 0, data, (size_t)x->bytes, err));
    MOEC_TRY(moec_sha256_of(data, (size_t)x->bytes, &got, err));
    MOEC_TRY(moec_extra_check(x, &got, err));
    e->kind = MOEC_SRC_FILE;
    e->name = x->name;
    e->data = data;
    e->data_bytes = e->file_bytes = x->bytes;
    f->sources.n_entries++;
    return MOEC_OK;
}

static moec_status copy_bytes(const moec_extra *x, int to, moec_hasher *h,
                              moec_error *err)
{
    char *buf = moec_alloc(COPY_BYTES);
    moec_status st = MOEC_OK;

    if (buf == NULL)
        return moec_fail_nomem(err, "a copy buffer");
    for (uint64_t off = 0; st == MOEC_OK && off < x->bytes;) {
        size_t n = (size_t)moec_min_u64(COPY_BYTES, x->bytes - off);
        st = moec_extra_read(x, off, buf, n, err);
        if (st == MOEC_OK)
            st = moec_hasher_update(h, buf, n, err);
        if (st == MOEC_OK)
            st = moec_pwrite_full(to, x->name, buf, n, off, err);
        off += n;
    }
    moec_free(buf);
    return st;
}

static moec_status copy_into_dir(const moec_finish *f, const moec_extra *x,
                                 moec_hasher *h, moec_error *err)
{
    moec_status st;
    int to;

    MOEC_TRY(moec_finish_room(f, x->name, err));
    to = openat(moec_output_dirfd(f->to.dir), x->name,
                O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (to < 0)
        return moec_fail_os(err, errno, "%s: cannot create", x->name);
    st = copy_bytes(x, to, h, err);
    if (st == MOEC_OK && fsync(to) != 0)
        st = moec_fail_os(err, errno, "%s: fsync failed", x->name);
    if (close(to) != 0 && st == MOEC_OK)
        st = moec_fail_os(err, errno, "%s: close failed", x->name);
    return st;
}

static moec_status copy_part(const moec_extra *x, moec_upload *u, size_t i,
                             uint64_t each, unsigned char *buf, moec_hasher *h,
                             const moec_objects *o, moec_error *err)
{
    uint64_t off = i * each;
    size_t n = (size_t)moec_min_u64(each, x->bytes - off);
    bool there;

    if (n > 0) {
        MOEC_TRY(moec_extra_read(x, off, buf, n, err));
        MOEC_TRY(moec_hasher_update(h, buf, n, err));
    }
    return o->part(u, i, buf, n, &there, err);
}

static moec_status copy_into_object(const moec_finish *f, const moec_extra *x,
                                    moec_hasher *h, moec_error *err)
{
    const moec_objects *o = f->to.objects;
    uint64_t each = moec_part_bytes(x->bytes, 0);
    unsigned char *buf = moec_alloc((size_t)moec_min_u64(each, x->bytes) + 1);
    moec_upload *u = NULL;
    moec_status st = buf == NULL
                         ? moec_fail_nomem(err, "a copy buffer")
                         : o->begin(o->ctx, x->name, x->bytes, each, &u, err);

    for (size_t i = 0; st == MOEC_OK && i < moec_n_parts(x->bytes, each); i++)
        st = copy_part(x, u, i, each, buf, h, o, err);
    if (st == MOEC_OK)
        st = o->complete(u, err);
    o->end(u, false);
    moec_free(buf);
    return st;
}

static moec_status copy_file(moec_finish *f, const moec_extra *x,
                             moec_error *err)
{
    moec_mf_copied *c = &f->copied[f->mf.n_copied];
    moec_hasher *h = NULL;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    st = f->to.objects != NULL ? copy_into_object(f, x, h, err)
                               : copy_into_dir(f, x, h, err);
    if (st == MOEC_OK) {
        st = moec_hasher_final(h, &c->sha256, err);
        h = NULL;
    }
    if (st == MOEC_OK)
        st = moec_extra_check(x, &c->sha256, err);
    c->name = x->name;
    c->bytes = x->bytes;
    f->mf.n_copied += st == MOEC_OK;
    moec_hasher_destroy(h);
    return st;
}

moec_status moec_finish_extras(moec_finish *f, moec_error *err)
{
    const moec_input *in = f->in;

    f->copied = moec_finish_take(f, in->n_extra, sizeof(*f->copied));
    if (f->copied == NULL)
        return moec_fail_nomem(err, "list of copied files");
    for (size_t i = 0; i < in->n_extra; i++) {
        moec_extra x;
        MOEC_TRY(in->kind->open_extra(in, i, &x, err));
        moec_status st = name_taken(f, x.name) ? keep_in_sources(f, &x, err)
                                               : copy_file(f, &x, err);
        moec_extra_close(&x);
        MOEC_TRY(st);
    }
    f->mf.copied = f->copied;
    return MOEC_OK;
}

/* ---------------------------------------------------------- sources.bin */

static moec_status add_shard(moec_finish *f, size_t i, moec_error *err)
{
    const moec_file *file = moec_ckpt_file(f->ckpt, i);
    moec_source_entry *e = &f->sources.entries[f->sources.n_entries++];
    void *data = moec_finish_take(f, (size_t)file->header_bytes, 1);

    if (data == NULL)
        return moec_fail_nomem(err, "header of a source shard");
    MOEC_TRY(f->in->kind->read_header(f->in, i, data, err));
    e->kind = MOEC_SRC_SHARD;
    e->name = file->name;
    e->data = data;
    e->data_bytes = file->header_bytes;
    e->file_bytes = file->bytes;
    return MOEC_OK;
}

static moec_status add_source_index(moec_finish *f, moec_error *err)
{
    const char *name = f->in->index_name;
    moec_source_entry *e = &f->sources.entries[f->sources.n_entries];
    moec_buf b = {0};

    if (name == NULL)
        return MOEC_OK;
    moec_status st = f->in->kind->read_index(f->in, &b, err);
    if (st == MOEC_OK) {
        e->data = moec_arena_strdup(&f->arena, b.data, b.len);
        if (e->data == NULL)
            st = moec_fail_nomem(err, "the source's index");
        e->kind = MOEC_SRC_INDEX;
        e->name = name;
        e->data_bytes = e->file_bytes = b.len;
        f->sources.n_entries++;
    }
    moec_buf_fini(&b);
    return st;
}

moec_status moec_finish_sources(moec_finish *f, moec_error *err)
{
    size_t n = moec_ckpt_n_files(f->ckpt);

    f->sources.entries = moec_finish_take(f, n + 1 + f->in->n_extra,
                                          sizeof(*f->sources.entries));
    if (f->sources.entries == NULL)
        return moec_fail_nomem(err, "entries of sources.bin");
    for (size_t i = 0; i < n; i++)
        MOEC_TRY(add_shard(f, i, err));
    return add_source_index(f, err);
}
