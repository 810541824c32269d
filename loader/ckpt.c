/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An open checkpoint. Steps of an open: find the directory (source.c), list
 * it, choose the files (ckpt_files.c, ckpt_index.c), open them, read their
 * headers side by side (safetensors.c), merge the tables, compare with the
 * index. Nothing is kept of an open that fails.
 */

#include "ckpt_parts.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "remote.h"
#include "table.h"

/* --------------------------------------------------------------- the table */

typedef struct header_job {
    moec_ckpt *ckpt;
    const moec_header_blob *blobs; /* NULL: read the files */
} header_job;

static moec_status read_header(void *ctx, size_t i, uint32_t worker,
                               moec_error *err)
{
    const header_job *job = ctx;
    moec_ckpt *c = job->ckpt;
    moec_file *f = &c->files[i];
    moec_header *h = &c->shards[i].header;

    if (c->shards[i].has_header)
        ; /* while the index was read */
    else if (job->blobs != NULL)
        MOEC_TRY(moec_header_parse(h, job->blobs[i].data,
                                   (size_t)job->blobs[i].data_bytes, f->bytes,
                                   f->name, err));
    else
        MOEC_TRY(moec_header_read(h, c->shards[i].fd, f->bytes, f->name,
                                  c->secret, &c->tables[worker], err));
    f->header_bytes = h->header_bytes;
    memcpy(f->header_sha256, h->sha256.b, sizeof(f->header_sha256));
    for (size_t k = 0; i > 0 && k < h->n_tensors; k++)
        h->tensors[k].file = (uint32_t)i;
    return MOEC_OK;
}

static moec_status note_header(moec_ckpt *c, size_t i, moec_error *err)
{
    const moec_header *h = &c->shards[i].header;
    const char *name = c->files[i].name;

    if (h->leading_space)
        MOEC_TRY(moec_ckpt_add_note(c, MOEC_RULE_H02, err,
                                    "%s: whitespace before the header's object",
                                    name));
    if (h->unknown_field != NULL)
        MOEC_TRY(moec_ckpt_add_note(
            c, MOEC_RULE_H10, err,
            "%s: tensor '%s': field '%s' is not the format's, "
            "left alone",
            name, h->unknown_in, h->unknown_field));
    return MOEC_OK;
}

/* Make room for the order of all tensors, and collect the runs that their
 * tables are of. */
static moec_status list_runs(moec_ckpt *c, moec_run **out, size_t *n_out,
                             moec_error *err)
{
    size_t n = 0, n_runs = 0, at = 0;
    moec_run *runs;

    for (size_t i = 0; i < c->n_files; i++) {
        n += c->shards[i].header.n_tensors;
        n_runs += moec_header_n_runs(&c->shards[i].header);
        MOEC_TRY(note_header(c, i, err));
    }
    if (n >= UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%zu tensors, more than 32 bits count", n);
    c->by_name = moec_alloc(n * sizeof(*c->by_name));
    runs = moec_alloc(n_runs * sizeof(*runs));
    if (c->by_name == NULL || runs == NULL) {
        moec_free(runs);
        return moec_fail_nomem(err, "the tensor table");
    }
    for (size_t i = 0; i < c->n_files; i++)
        at += moec_header_runs(&c->shards[i].header, runs + at);
    c->n_tensors = n;
    *out = runs;
    *n_out = n_runs;
    return MOEC_OK;
}

/* Read all headers and make the sorted table. */
static moec_status make_table(moec_ckpt *c, const moec_header_blob *blobs,
                              uint32_t n_threads, moec_error *err)
{
    header_job job = {c, blobs};
    size_t n_runs = 0, twice = SIZE_MAX;
    moec_run *runs = NULL;
    moec_status st;

    MOEC_TRY(moec_parallel(n_threads, c->n_files, read_header, &job, err));
    MOEC_TRY(list_runs(c, &runs, &n_runs, err));
    st = moec_table_merge(c->by_name, runs, n_runs, &twice, err);
    moec_free(runs);
    MOEC_TRY(st);
    if (twice == SIZE_MAX)
        return MOEC_OK;
    /* one shard's names differ: the first of the two is of an earlier one */
    return moec_fail(
        err, MOEC_E_FORMAT, MOEC_RULE_I08, "tensor '%s': in '%s' and in '%s'",
        c->by_name[twice]->name, c->files[c->by_name[twice - 1]->file].name,
        c->files[c->by_name[twice]->file].name);
}

/* ------------------------------------------------------------------ open */

static moec_status check_opts(const moec_ckpt_opts *opts, moec_ckpt_opts *out,
                              moec_error *err)
{
    static const moec_ckpt_opts defaults = MOEC_CKPT_OPTS_INIT;

    *out = defaults;
    if (opts == NULL)
        return MOEC_OK;
    /* Callers of an older library have a shorter struct. */
    if (opts->struct_bytes < 2 * sizeof(uint32_t))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_ckpt_opts.struct_bytes is %u: use "
                         "MOEC_CKPT_OPTS_INIT",
                         opts->struct_bytes);
    memcpy(out, opts,
           opts->struct_bytes < sizeof(*out) ? opts->struct_bytes
                                             : sizeof(*out));
    return MOEC_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static moec_status open_listed(moec_ckpt *c, const char **list, size_t n,
                               uint32_t n_threads, moec_error *err)
{
    const char *index = MOEC_CKPT_INDEX;
    moec_index_facts facts;

    if (c->source.bare != NULL)
        MOEC_TRY(moec_ckpt_choose_one(c, c->source.bare, err));
    else if (n > 0 && bsearch(&index, list, n, sizeof(*list), by_bytes))
        MOEC_TRY(moec_ckpt_choose_indexed(c, n_threads, &facts, err));
    else
        MOEC_TRY(moec_ckpt_choose_only(c, list, n, err));
    MOEC_TRY(moec_ckpt_open_files(c, err));
    MOEC_TRY(make_table(c, NULL, n_threads, err));
    if (c->index_name != NULL) {
        MOEC_TRY(moec_ckpt_compare_index(c, err));
        MOEC_TRY(moec_ckpt_note_total(c, &facts, err));
    }
    if (c->source.bare == NULL)
        MOEC_TRY(moec_ckpt_note_unindexed(c, list, n, err));
    MOEC_TRY(moec_ckpt_choose_extra(c, list, n, err));
    moec_ckpt_sum_notes(c);
    return MOEC_OK;
}

static moec_ckpt *new_ckpt(void)
{
    static const moec_source no_source = MOEC_SOURCE_INIT;
    moec_ckpt *c = moec_calloc(1, sizeof(*c));

    if (c != NULL)
        c->source = no_source;
    return c;
}

static moec_status open_ckpt(moec_ckpt **out, const char *path,
                             const moec_store *store,
                             const moec_ckpt_opts *opts, moec_error *err)
{
    moec_ckpt_opts o;
    const char **list = NULL;
    size_t n = 0;
    moec_error why = MOEC_ERROR_INIT;
    moec_ckpt *c;
    moec_status st;

    MOEC_TRY(check_opts(opts, &o, err));
    c = new_ckpt();
    if (c == NULL)
        return moec_fail_nomem(err, "a checkpoint");
    if (store != NULL)
        st = moec_source_open_store(&c->source, store, &why);
    else
        st = moec_source_open(&c->source, path, o.hf_cache, &why);
    if (st == MOEC_OK)
        st = moec_source_list(&c->source, &c->arena, &list, &n, &why);
    if (st == MOEC_OK)
        st = open_listed(c, list, n, o.n_threads, &why);
    moec_free(list);
    if (st == MOEC_OK) {
        *out = c;
        return MOEC_OK;
    }
    st = moec_ckpt_explain_failure(c, st, &why, err);
    moec_ckpt_close(c);
    return st;
}

moec_status moec_ckpt_open(moec_ckpt **out, const char *path,
                           const moec_ckpt_opts *opts, moec_error *err)
{
    return open_ckpt(out, path, NULL, opts, err);
}

moec_status moec_ckpt_open_source(moec_ckpt **out, const moec_store *store,
                                  const moec_ckpt_opts *opts, moec_error *err)
{
    static const moec_store none = {0};

    return open_ckpt(out, NULL, store != NULL ? store : &none, opts, err);
}

/* Take over names and sizes of headers in memory. */
static moec_status use_blobs(moec_ckpt *c, const char *dir,
                             const moec_header_blob *blobs, size_t n,
                             moec_error *err)
{
    c->source.dir = moec_alloc(strlen(dir) + 1);
    if (c->source.dir == NULL)
        return moec_fail_nomem(err, "a path");
    memcpy(c->source.dir, dir, strlen(dir) + 1);
    MOEC_TRY(moec_ckpt_make_files(c, n, err));
    for (size_t i = 0; i < n; i++) {
        size_t bytes = strlen(dir) + strlen(blobs[i].name) + 2;
        char *path = moec_arena_alloc(&c->arena, bytes, 1);
        if (path == NULL)
            return moec_fail_nomem(err, "a path");
        (void)snprintf(path, bytes, "%s/%s", dir, blobs[i].name);
        c->shards[i].path = path;
        c->files[i].name = path + strlen(dir) + 1;
        c->files[i].bytes = blobs[i].file_bytes;
        if (blobs[i].data_bytes > SIZE_MAX)
            return moec_fail_nomem(err, "a header");
    }
    return MOEC_OK;
}

moec_status moec_ckpt_from_headers(moec_ckpt **out, const char *dir,
                                   const moec_header_blob *blobs, size_t n,
                                   moec_error *err)
{
    moec_ckpt *c = new_ckpt();
    moec_status st;

    if (c == NULL)
        return moec_fail_nomem(err, "a checkpoint");
    st = use_blobs(c, dir, blobs, n, err);
    if (st == MOEC_OK)
        st = make_table(c, blobs, 0, err);
    moec_ckpt_sum_notes(c);
    if (st == MOEC_OK)
        *out = c;
    else
        moec_ckpt_close(c);
    return st;
}

void moec_ckpt_close(moec_ckpt *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->n_files; i++) {
        moec_header_fini(&c->shards[i].header);
        if (c->shards[i].fd >= 0)
            close(c->shards[i].fd);
    }
    moec_free(c->by_name);
    moec_free(c->shards);
    moec_free(c->files);
    moec_free(c->extra);
    moec_free(c->notes);
    for (size_t i = 0; i < MOEC_THREADS_MAX; i++)
        moec_arena_fini(&c->tables[i]);
    moec_arena_fini(&c->arena);
    moec_source_fini(&c->source);
    moec_free(c);
}

/* ---------------------------------------------------------------- access */

const char *moec_ckpt_dir(const moec_ckpt *c)
{
    return c->source.dir;
}

int moec_ckpt_is_bare_file(const moec_ckpt *c)
{
    return c->source.bare != NULL;
}

size_t moec_ckpt_n_tensors(const moec_ckpt *c)
{
    return c->n_tensors;
}

const moec_tensor *moec_ckpt_tensor(const moec_ckpt *c, size_t i)
{
    return c->by_name[i];
}

size_t moec_ckpt_find(const moec_ckpt *c, const char *name)
{
    return moec_table_find(c->by_name, c->n_tensors, name, strlen(name),
                           SIZE_MAX);
}

size_t moec_ckpt_n_files(const moec_ckpt *c)
{
    return c->n_files;
}

const moec_file *moec_ckpt_file(const moec_ckpt *c, size_t i)
{
    return &c->files[i];
}

size_t moec_ckpt_n_notes(const moec_ckpt *c)
{
    return c->n_notes;
}

const moec_note *moec_ckpt_note(const moec_ckpt *c, size_t i)
{
    return &c->notes[i];
}

int moec_ckpt_fd(const moec_ckpt *c, size_t i)
{
    /* a source's descriptors hold headers and nothing behind */
    return c->source.remote != NULL ? -1 : c->shards[i].fd;
}

bool moec_ckpt_is_remote(const moec_ckpt *c)
{
    return c->source.remote != NULL;
}

static moec_status read_file(const void *ckpt, size_t file, uint64_t off,
                             void *buf, size_t n, moec_error *err)
{
    return moec_ckpt_read_file(ckpt, file, off, buf, n, err);
}

void moec_ckpt_io_open(const moec_ckpt *c, size_t i, bool no_direct,
                       moec_io_file *out)
{
    moec_io_open(out, moec_ckpt_path(c, i), moec_ckpt_path(c, i),
                 moec_ckpt_fd(c, i), c->files[i].bytes,
                 no_direct || moec_ckpt_is_remote(c));
    if (moec_ckpt_is_remote(c)) {
        out->read = read_file;
        out->ctx = c;
        out->file = i;
    }
}

int moec_ckpt_dirfd(const moec_ckpt *c)
{
    return c->source.dirfd;
}

const char *moec_ckpt_path(const moec_ckpt *c, size_t i)
{
    return c->shards[i].path;
}

const char *moec_ckpt_index_name(const moec_ckpt *c)
{
    return c->index_name;
}

size_t moec_ckpt_n_extra(const moec_ckpt *c)
{
    return c->n_extra;
}

const char *moec_ckpt_extra(const moec_ckpt *c, size_t i)
{
    return c->extra[i];
}

/* --------------------------------------------------------------- reading */

moec_status moec_ckpt_read(const moec_ckpt *c, size_t i, uint64_t off,
                           void *buf, size_t n, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    const moec_tensor *t;
    const moec_file *f;
    const moec_shard *s;
    moec_status st;

    if (i >= c->n_tensors)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor %zu of %zu does not exist", i, c->n_tensors);
    t = c->by_name[i];
    f = &c->files[t->file];
    s = &c->shards[t->file];
    if (off > t->bytes || n > t->bytes - off)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: tensor '%s': %zu bytes at %" PRIu64
                         " leave its %" PRIu64,
                         f->name, t->name, n, off, t->bytes);
    if (s->fd < 0)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: the checkpoint has headers only", f->name);
    if (c->source.remote != NULL)
        return moec_ckpt_read_file(c, t->file, t->off + off, buf, n, err);
    st = moec_pread_full(s->fd, f->name, buf, n, t->off + off, &why);
    /* That the file changed explains whatever else went wrong. */
    MOEC_TRY(moec_stamp_check(s->fd, f->name, &s->stamp, err));
    return moec_hand_on(err, st, &why);
}

moec_status moec_ckpt_read_file(const moec_ckpt *c, size_t i, uint64_t off,
                                void *buf, size_t n, moec_error *err)
{
    const moec_file *f = &c->files[i];

    if (c->source.remote != NULL)
        return moec_remote_read(c->source.remote,
                                moec_remote_find(c->source.remote, f->name),
                                off, buf, n, err);
    if (c->shards[i].fd < 0)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: the checkpoint has headers only", f->name);
    return moec_pread_full(c->shards[i].fd, f->name, buf, n, off, err);
}

/* Fail where `name` now means another file than the one of `then`. */
static moec_status check_name(const moec_ckpt *c, const char *name,
                              const moec_stamp *then, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    uint64_t bytes = 0;
    moec_status st;
    int fd = -1;

    st = moec_source_file(&c->source, name, &fd, &bytes, &why);
    if (st == MOEC_E_FORMAT || why.os_errno == ENOENT)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%s: cannot be opened again: %s", name, why.text);
    if (st != MOEC_OK)
        return moec_hand_on(err, st, &why);
    st = moec_stamp_check(fd, name, then, err);
    close(fd);
    return st;
}

moec_status moec_ckpt_check_unchanged(const moec_ckpt *c, moec_error *err)
{
    if (c->source.remote != NULL) {
        for (size_t i = 0; i < c->n_files; i++)
            MOEC_TRY(moec_remote_check(
                c->source.remote,
                moec_remote_find(c->source.remote, c->files[i].name), err));
        return MOEC_OK;
    }
    for (size_t i = 0; i < c->n_files; i++) {
        const moec_shard *s = &c->shards[i];
        if (s->fd < 0)
            continue;
        MOEC_TRY(moec_stamp_check(s->fd, c->files[i].name, &s->stamp, err));
        MOEC_TRY(check_name(c, c->files[i].name, &s->stamp, err));
    }
    if (c->index_name != NULL)
        MOEC_TRY(check_name(c, c->index_name, &c->index_stamp, err));
    return MOEC_OK;
}

/* Read all of `fd`, which is closed. */
static moec_status read_all(int fd, const char *name, uint64_t bytes,
                            moec_buf *out, moec_error *err)
{
    moec_status st;

    if (bytes >= SIZE_MAX || !moec_buf_reserve(out, (size_t)bytes + 1)) {
        close(fd);
        return moec_fail_nomem(err, name);
    }
    st = moec_pread_full(fd, name, out->data + out->len, (size_t)bytes, 0, err);
    close(fd);
    if (st == MOEC_OK) {
        out->len += (size_t)bytes;
        out->data[out->len] = '\0';
    }
    return st;
}

moec_status moec_ckpt_read_index(const moec_ckpt *c, moec_buf *out,
                                 moec_error *err)
{
    int fd = -1;

    if (c->index_name == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the checkpoint has no index");
    MOEC_TRY(moec_ckpt_open_index(c, &fd, err));
    return read_all(fd, c->index_name, (uint64_t)c->index_stamp.bytes, out,
                    err);
}

moec_status moec_ckpt_open_extra(const moec_ckpt *c, const char *name,
                                 int *fd_out, uint64_t *bytes_out,
                                 moec_error *err)
{
    return moec_source_file(&c->source, name, fd_out, bytes_out, err);
}

moec_status moec_ckpt_read_extra(const moec_ckpt *c, const char *name,
                                 uint64_t max, moec_buf *out, moec_error *err)
{
    uint64_t bytes = 0;
    int fd = -1;

    MOEC_TRY(moec_source_file(&c->source, name, &fd, &bytes, err));
    if (bytes > max) {
        close(fd);
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %" PRIu64 " bytes, the limit is %" PRIu64, name,
                         bytes, max);
    }
    return read_all(fd, name, bytes, out, err);
}
