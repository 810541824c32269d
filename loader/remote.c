/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A caller's source in the place of a directory. See remote.h.
 *
 * Headers are fetched with one request where they are short enough, as most
 * are: an object store takes as long for 8 bytes as for 128 KiB.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "remote.h"
#include "source.h"

#define FIRST_BYTES ((uint64_t)128 << 10)
/* Of a file that is no shard: as an index may have. */
#define SMALL_BYTES_MAX MOEC_INDEX_BYTES_MAX

typedef struct remote_file {
    moec_store_file pub;
    size_t given; /* its number in the caller's list */
    int fd;       /* memfd, or -1 */
    pthread_mutex_t lock;
} remote_file;

struct moec_remote {
    moec_store store; /* `files` is not used */
    char *name;
    moec_arena arena;
    size_t n;
    remote_file *files; /* by name */
};

/* ----------------------------------------------------------------- object */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const remote_file *)a)->pub.name,
                  ((const remote_file *)b)->pub.name);
}

static moec_status check_store(const moec_store *s, moec_error *err)
{
    if (s == NULL || s->struct_bytes < sizeof(moec_store) || s->name == NULL ||
        s->read_at == NULL || (s->n_files > 0 && s->files == NULL))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a source has a name, files and read_at: use "
                         "MOEC_STORE_INIT");
    for (size_t i = 0; i < s->n_files; i++)
        if (s->files[i].name == NULL || s->files[i].name[0] == '\0' ||
            strchr(s->files[i].name, '/') != NULL)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s: files[%zu] has no plain name", s->name, i);
    return MOEC_OK;
}

static moec_status copy_files(moec_remote *r, const moec_store *s,
                              moec_error *err)
{
    r->files = moec_calloc(s->n_files + 1, sizeof(*r->files));
    r->name = moec_arena_strdup(&r->arena, s->name, strlen(s->name));
    if (r->files == NULL || r->name == NULL)
        return moec_fail_nomem(err, "a source's files");
    for (size_t i = 0; i < s->n_files; i++) {
        const moec_store_file *f = &s->files[i];
        remote_file *to = &r->files[i];

        *to = (remote_file){.pub.bytes = f->bytes, .given = i, .fd = -1};
        to->pub.name = moec_arena_strdup(&r->arena, f->name, strlen(f->name));
        if (f->etag != NULL)
            to->pub.etag =
                moec_arena_strdup(&r->arena, f->etag, strlen(f->etag));
        if (to->pub.name == NULL || (f->etag != NULL && to->pub.etag == NULL))
            return moec_fail_nomem(err, "a source's files");
    }
    qsort(r->files, s->n_files, sizeof(*r->files), by_name);
    for (size_t i = 1; i < s->n_files; i++)
        if (by_name(&r->files[i - 1], &r->files[i]) == 0)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s: '%s' is listed twice", r->name,
                             r->files[i].pub.name);
    for (size_t i = 0; i < s->n_files; i++)
        (void)pthread_mutex_init(&r->files[i].lock, NULL);
    r->n = s->n_files;
    return MOEC_OK;
}

moec_status moec_remote_create(moec_remote **out, const moec_store *store,
                               moec_error *err)
{
    moec_remote *r;
    moec_status st;

    MOEC_TRY(check_store(store, err));
    r = moec_calloc(1, sizeof(*r));
    if (r == NULL)
        return moec_fail_nomem(err, "a source");
    r->store = *store;
    st = copy_files(r, store, err);
    if (st != MOEC_OK) {
        moec_remote_destroy(r);
        return st;
    }
    *out = r;
    return MOEC_OK;
}

void moec_remote_destroy(moec_remote *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; i < r->n; i++) {
        if (r->files[i].fd >= 0)
            close(r->files[i].fd);
        (void)pthread_mutex_destroy(&r->files[i].lock);
    }
    moec_free(r->files);
    moec_arena_fini(&r->arena);
    moec_free(r);
}

const char *moec_remote_name(const moec_remote *r)
{
    return r->name;
}

size_t moec_remote_n_files(const moec_remote *r)
{
    return r->n;
}

const moec_store_file *moec_remote_file(const moec_remote *r, size_t i)
{
    return &r->files[i].pub;
}

size_t moec_remote_find(const moec_remote *r, const char *name)
{
    size_t lo = 0, hi = r->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(r->files[mid].pub.name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < r->n && strcmp(r->files[lo].pub.name, name) == 0 ? lo
                                                                 : SIZE_MAX;
}

/* ---------------------------------------------------------------- reading */

moec_status moec_remote_read(moec_remote *r, size_t i, uint64_t off, void *buf,
                             size_t n, moec_error *err)
{
    const remote_file *f = &r->files[i];
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    if (off > f->pub.bytes || n > f->pub.bytes - off)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_H17,
                         "%s: %zu bytes at %" PRIu64 " leave its %" PRIu64,
                         f->pub.name, n, off, f->pub.bytes);
    if (n == 0)
        return MOEC_OK;
    st = r->store.read_at(r->store.ctx, f->given, off, buf, n, &why);
    if (st == MOEC_OK)
        return MOEC_OK;
    return moec_fail(err, st, why.rule, "%s: %s", f->pub.name,
                     why.status != MOEC_OK ? why.text
                                           : "its source cannot be read");
}

moec_status moec_remote_check(moec_remote *r, size_t i, moec_error *err)
{
    const remote_file *f = &r->files[i];
    moec_store_file now = {.bytes = f->pub.bytes, .etag = f->pub.etag};

    if (r->store.stat == NULL)
        return MOEC_OK;
    MOEC_TRY(r->store.stat(r->store.ctx, f->given, &now, err));
    if (now.bytes != f->pub.bytes)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%s: has another size since it was opened",
                         f->pub.name);
    if (f->pub.etag != NULL &&
        (now.etag == NULL || strcmp(now.etag, f->pub.etag) != 0))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%s: has another etag since it was opened",
                         f->pub.name);
    return MOEC_OK;
}

/* Bytes of file `i` that a memfd holds: the header of a shard, or all. */
static moec_status bytes_wanted(moec_remote *r, size_t i, moec_buf *b,
                                uint64_t *out, moec_error *err)
{
    const moec_store_file *f = &r->files[i].pub;
    uint64_t first = moec_min_u64(f->bytes, FIRST_BYTES), n;

    if (!moec_has_suffix(f->name, ".safetensors")) {
        if (f->bytes > SMALL_BYTES_MAX)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                             "%s: %" PRIu64 " bytes, the limit is %" PRIu64,
                             f->name, f->bytes, SMALL_BYTES_MAX);
        *out = f->bytes;
        return MOEC_OK;
    }
    if (!moec_buf_reserve(b, (size_t)first))
        return moec_fail_nomem(err, f->name);
    MOEC_TRY(moec_remote_read(r, i, 0, b->data, (size_t)first, err));
    b->len = (size_t)first;
    *out = first;
    if (first < 8) /* the parser says what is wrong */
        return MOEC_OK;
    n = moec_le64(b->data);
    if (n <= MOEC_HEADER_BYTES_MAX && n + 8 <= f->bytes)
        *out = moec_max_u64(n + 8, first);
    return MOEC_OK;
}

static moec_status fetch(moec_remote *r, size_t i, int fd, moec_error *err)
{
    const moec_store_file *f = &r->files[i].pub;
    moec_buf b = {0};
    uint64_t n = 0;
    moec_status st = bytes_wanted(r, i, &b, &n, err);

    if (st == MOEC_OK && n > b.len) {
        if (moec_buf_reserve(&b, (size_t)(n - b.len)))
            st = moec_remote_read(r, i, b.len, b.data + b.len,
                                  (size_t)(n - b.len), err);
        else
            st = moec_fail_nomem(err, f->name);
    }
    if (st == MOEC_OK && ftruncate(fd, (off_t)f->bytes) != 0)
        st = moec_fail_os(err, errno, "%s: no memory file", f->name);
    if (st == MOEC_OK)
        st = moec_pwrite_full(fd, f->name, b.data, (size_t)n, 0, err);
    moec_buf_fini(&b);
    return st;
}

moec_status moec_remote_open(moec_remote *r, size_t i, int *fd_out,
                             moec_error *err)
{
    remote_file *f = &r->files[i];
    moec_status st = MOEC_OK;
    int fd;

    (void)pthread_mutex_lock(&f->lock);
    if (f->fd < 0) {
        fd = memfd_create("moec-source", MFD_CLOEXEC);
        if (fd < 0)
            st = moec_fail_os(err, errno, "%s: no memory file", f->pub.name);
        else
            st = fetch(r, i, fd, err);
        if (st == MOEC_OK)
            f->fd = fd;
        else if (fd >= 0)
            close(fd);
    }
    if (st == MOEC_OK) {
        fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
            st = moec_fail_os(err, errno, "%s: no descriptor", f->pub.name);
        else
            *fd_out = fd;
    }
    (void)pthread_mutex_unlock(&f->lock);
    return st;
}
