/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: recorded routes written as a file (moec/record.h has its
 *   grammar): into a name of its own beside the target, synced, then given
 *   its name, so that nobody sees half a file.
 * Refuses: to replace a file unless told to.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "routes.h"

#define BLOCK_BYTES ((size_t)1 << 16)
#define HEADER_STEP 8u

typedef struct writer {
    const char *path;
    int fd;
    uint64_t off;
    moec_error *err;
    size_t n; /* bytes waiting */
    unsigned char block[BLOCK_BYTES];
} writer;

static moec_status flush(writer *w)
{
    moec_status st =
        moec_pwrite_full(w->fd, w->path, w->block, w->n, w->off, w->err);

    w->off += w->n;
    w->n = 0;
    return st;
}

/* Append the low `bytes` bytes of v, little endian. */
static moec_status put(writer *w, uint64_t v, unsigned bytes)
{
    if (w->n + 8 > BLOCK_BYTES)
        MOEC_TRY(flush(w));
    for (unsigned i = 0; i < bytes; i++)
        w->block[w->n++] = (unsigned char)(v >> 8 * i);
    return MOEC_OK;
}

/* -------------------------------------------------------------- header */

static void put_tensor(moec_buf *b, const char *name, const char *dtype,
                       const char *shape, uint64_t bytes, uint64_t *off)
{
    moec_buf_printf(b,
                    ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                    "\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                    name, dtype, shape, *off, *off + bytes);
    *off += bytes;
}

static void put_text(moec_buf *b, const char *key, const char *text)
{
    moec_buf_printf(b, ",\"%s\":", key);
    moec_buf_json_string(b, text, strlen(text));
}

static void put_metadata(moec_buf *b, const moec_routes *r)
{
    char name[ROUTES_KEY_BYTES];
    moec_buf list = {0};

    moec_buf_puts(b, "{\"__metadata__\":{\"format\":\"moec.routes/1\"");
    moec_buf_printf(b,
                    ",\"n_experts\":\"%" PRIu32 "\",\"n_zero\":\"%" PRIu32
                    "\",\"n_decoder\":\"%" PRIu32 "\"",
                    r->shape.n_experts, r->shape.n_zero, r->shape.n_decoder);
    for (uint32_t i = 0; i < r->shape.n_layers; i++)
        moec_buf_printf(&list, "%s%s", i ? " " : "",
                        moec_routes_key_text(r->shape.keys[i], name));
    put_text(b, "layers", list.data ? list.data : "");
    put_text(b, "fingerprint",
             r->shape.fingerprint ? r->shape.fingerprint : "");
    list.len = 0;
    moec_buf_puts(&list, "[");
    for (uint64_t i = 0; i < r->n_requests; i++) {
        moec_buf_puts(&list, i ? "," : "");
        moec_buf_json_string(&list, r->requests[i].id,
                             strlen(r->requests[i].id));
    }
    moec_buf_puts(&list, "]");
    put_text(b, "request_ids", list.data ? list.data : "[]");
    b->oom |= list.oom;
    moec_buf_puts(b, "}");
    moec_buf_fini(&list);
}

static void put_header(moec_buf *b, const moec_routes *r)
{
    uint64_t off = 0;
    char shape[80];

    /* The length stands in front; its place is kept. */
    moec_buf_u64(b, 0);
    put_metadata(b, r);
    snprintf(shape, sizeof(shape), "%" PRIu64, r->n_requests + 1);
    put_tensor(b, "request", "I64", shape, (r->n_requests + 1) * 8, &off);
    snprintf(shape, sizeof(shape), "%" PRIu64 ",3", r->n_gaps);
    put_tensor(b, "gap", "I64", shape, r->n_gaps * 24, &off);
    snprintf(shape, sizeof(shape), "%" PRIu64, r->n_tokens);
    put_tensor(b, "position", "I32", shape, r->n_tokens * 4, &off);
    snprintf(shape, sizeof(shape), "%" PRIu64, r->n_requests);
    put_tensor(b, "sample", "I32", shape, r->n_requests * 4, &off);
    snprintf(shape, sizeof(shape), "%" PRIu64 ",%" PRIu32 ",%" PRIu32,
             r->n_tokens, r->shape.n_layers, r->shape.top_k);
    put_tensor(b, "topk_ids", r->width == 1 ? "U8" : "U16", shape,
               r->n_tokens * r->token_bytes, &off);
    moec_buf_puts(b, "}");
    while (b->len % HEADER_STEP != 0 && !b->oom)
        moec_buf_puts(b, " ");
}

/* ---------------------------------------------------------------- data */

static moec_status put_data(writer *w, const moec_routes *r)
{
    uint64_t n_ids = r->n_tokens * r->shape.n_layers * r->shape.top_k;

    for (uint64_t i = 0; i <= r->n_requests; i++)
        MOEC_TRY(put(w, r->requests[i].first_token, 8));
    for (uint64_t i = 0; i < r->n_requests; i++) {
        for (uint64_t g = r->requests[i].first_gap;
             g < r->requests[i + 1].first_gap; g++) {
            MOEC_TRY(put(w, i, 8));
            MOEC_TRY(put(w, r->gaps[g].first, 8));
            MOEC_TRY(put(w, r->gaps[g].end, 8));
        }
    }
    for (uint64_t i = 0; i < r->n_tokens; i++)
        MOEC_TRY(put(w, r->positions[i], 4));
    for (uint64_t i = 0; i < r->n_requests; i++)
        MOEC_TRY(put(w, r->requests[i].sample, 4));
    for (uint64_t i = 0; i < n_ids; i++) {
        uint16_t v = r->ids[i * r->width];

        if (r->width == 2)
            memcpy(&v, r->ids + 2 * i, sizeof(v));
        MOEC_TRY(put(w, v, r->width));
    }
    return flush(w);
}

static moec_status write_all(int fd, const char *path, const moec_routes *r,
                             moec_error *err)
{
    writer *w = moec_calloc(1, sizeof(*w));
    moec_buf header = {0};
    moec_status st = MOEC_OK;

    if (!w)
        return moec_fail_nomem(err, path);
    w->path = path;
    w->fd = fd;
    w->err = err;
    put_header(&header, r);
    if (header.oom) {
        st = moec_fail_nomem(err, path);
    } else {
        uint64_t n = header.len - 8;

        for (unsigned i = 0; i < 8; i++)
            header.data[i] = (char)(n >> 8 * i);
        st = moec_pwrite_full(fd, path, header.data, header.len, 0, err);
        w->off = header.len;
    }
    if (st == MOEC_OK)
        st = put_data(w, r);
    moec_buf_fini(&header);
    moec_free(w);
    return st;
}

/* ---------------------------------------------------------------- file */

/* Sync the directory of `path`, so that the name survives too. */
static moec_status sync_directory(const char *path, moec_error *err)
{
    const char *slash = strrchr(path, '/');
    char dir[4096];
    int fd, bad;

    snprintf(dir, sizeof(dir), "%.*s",
             slash && slash > path ? (int)(slash - path) : 1,
             slash ? path : ".");
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open", dir);
    /* EINVAL: a file system without it. */
    bad = fsync(fd) != 0 && errno != EINVAL;
    bad = bad ? errno : 0;
    (void)close(fd);
    if (bad) {
        (void)moec_fail_os(err, bad, "%s: cannot sync", dir);
        if (err)
            err->status = MOEC_E_DURABILITY;
        return MOEC_E_DURABILITY;
    }
    return MOEC_OK;
}

/* Give the finished file its name. */
static moec_status name_it(const char *tmp, const char *path, int replace,
                           moec_error *err)
{
    if (replace) {
        if (rename(tmp, path) != 0)
            return moec_fail_os(err, errno, "%s: cannot be written", path);
        return MOEC_OK;
    }
    if (link(tmp, path) != 0) {
        if (errno == EEXIST)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s: exists already", path);
        return moec_fail_os(err, errno, "%s: cannot be written", path);
    }
    (void)unlink(tmp);
    return MOEC_OK;
}

moec_status moec_routes_save(const moec_routes *r, const char *path,
                             int replace, moec_error *err)
{
    moec_status st;
    char tmp[4096];
    int fd, n;

    if (!r || !path)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes: recording or path is NULL");
    if (!replace && access(path, F_OK) == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "%s: exists already",
                         path);
    n = snprintf(tmp, sizeof(tmp), "%s.tmp-%ld", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof(tmp))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes: a path of %zu bytes is too long",
                         strlen(path));
    fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot be made", tmp);
    st = write_all(fd, tmp, r, err);
    if (st == MOEC_OK && fsync(fd) != 0)
        st = moec_fail_os(err, errno, "%s: cannot sync", tmp);
    if (close(fd) != 0 && st == MOEC_OK)
        st = moec_fail_os(err, errno, "%s: cannot close", tmp);
    if (st == MOEC_OK)
        st = name_it(tmp, path, replace, err);
    if (st != MOEC_OK) {
        (void)unlink(tmp);
        return st;
    }
    return sync_directory(path, err);
}
