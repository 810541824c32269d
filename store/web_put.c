/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Objects into S3. See web.h and objects.h.
 *
 * A small object goes in one request; a larger one in parts, several at a time,
 * each with the SHA-256 that the server checks before it takes it and answers
 * with. Only the last request makes the object visible, so whoever reads finds
 * the old one or the new one. An upload that was cut short is gone on with: a
 * part that is there with the SHA-256 of the bytes at hand is not sent again.
 */

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "web_parts.h"

#define N_PARALLEL 8u
#define ANSWER_MAX (UINT64_C(16) << 20)
#define GET_MAX    (UINT64_C(1) << 30)

struct moec_upload {
    moec_web *r;
    const char *digest_line; /* of put_file; NULL: none */
    uint64_t bytes, part_bytes;
    size_t n_parts;
    moec_web_part *parts;
    char *url;  /* of the object */
    char *id;   /* of the upload, escaped; NULL: one request */
    bool fresh; /* replaces nothing */
};

/* The upload, or part `number` of it where that is not 0. */
static moec_status part_url(const moec_upload *u, moec_buf *url, size_t number,
                            moec_error *err)
{
    if (number > 0)
        moec_buf_printf(url, "%s?partNumber=%zu&uploadId=%s", u->url, number,
                        u->id);
    else
        moec_buf_printf(url, "%s?uploadId=%s", u->url, u->id);
    return url->oom ? moec_fail_nomem(err, "a URL") : MOEC_OK;
}

/* A request whose answer is XML, or nothing. */
static moec_status ask(moec_web *r, moec_http_request q, moec_buf *answer,
                       moec_error *err)
{
    moec_http_answer a;

    q.text = answer;
    q.text_max = ANSWER_MAX;
    return moec_http_do(&r->http, &q, &a, err);
}

/* Send `n` bytes to `url`. What the store says it has must be what was sent. */
static moec_status send_bytes(moec_web *r, const char *url, const void *data,
                              size_t n, const char *extra_line, bool fresh,
                              moec_web_part *done, moec_error *err)
{
    char line[128], hex[65];
    const char *header[] = {line, extra_line, NULL};
    moec_http_answer a;

    moec_hex(&done->sha256, sizeof(done->sha256), hex);
    EVP_EncodeBlock((unsigned char *)done->sum, done->sha256.b,
                    sizeof(done->sha256.b));
    (void)snprintf(line, sizeof(line), "x-amz-checksum-sha256: %s", done->sum);
    moec_http_request q = {.method = "PUT",
                           .url = url,
                           .fresh = fresh,
                           .header = header,
                           .body = n > 0 ? data : "",
                           .body_bytes = n,
                           .sha256_hex = hex};
    MOEC_TRY(moec_http_do(&r->http, &q, &a, err));
    if (a.checksum[0] != '\0' && strcmp(a.checksum, done->sum) != 0)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                         "%.*s: the store took other bytes than were sent: it "
                         "says SHA-256 %s, and it was %s",
                         (int)strcspn(url, "?"), url, a.checksum, done->sum);
    memcpy(done->etag, a.etag, sizeof(done->etag));
    done->bytes = n;
    return MOEC_OK;
}

/* -------------------------------------------------------------- uploads */

static moec_status begin_upload(moec_upload *u, moec_error *err)
{
    const char *const header[] = {"x-amz-checksum-algorithm: SHA256",
                                  u->digest_line, NULL};
    moec_buf url = {0}, answer = {0}, id = {0};
    char *text = NULL;
    moec_status st;

    moec_buf_printf(&url, "%s?uploads=", u->url);
    st = url.oom ? moec_fail_nomem(err, "a URL")
                 : ask(u->r,
                       (moec_http_request){
                           .method = "POST", .url = url.data, .header = header},
                       &answer, err);
    if (st == MOEC_OK) {
        text = moec_web_xml_text(&answer, "UploadId");
        if (text)
            moec_url_escape(&id, text, false);
        u->id = moec_web_take_text(&id);
        if (!u->id)
            st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                           "%s: the server gives no upload id", u->url);
    }
    free(text);
    moec_buf_fini(&url);
    moec_buf_fini(&answer);
    return st;
}

static void give_up(const moec_upload *u)
{
    moec_buf url = {0};
    moec_http_answer a;

    if (u->id && part_url(u, &url, 0, NULL) == MOEC_OK) {
        moec_http_request q = {.method = "DELETE", .url = url.data};
        (void)moec_http_do(&u->r->http, &q, &a, NULL);
    }
    moec_buf_fini(&url);
}

/* Parts that u->id has, page by page; *any_out where one has a SHA-256. */
static moec_status list_parts(moec_upload *u, bool *any_out, moec_error *err)
{
    size_t after = 0;
    moec_status st = MOEC_OK;
    bool more = true;

    *any_out = false;
    while (st == MOEC_OK && more) {
        moec_buf url = {0}, xml = {0};
        size_t last = after;

        if (after > 0)
            moec_buf_printf(&url, "%s?part-number-marker=%zu&uploadId=%s",
                            u->url, after, u->id);
        else
            st = part_url(u, &url, 0, err);
        if (st == MOEC_OK && url.oom)
            st = moec_fail_nomem(err, "a URL");
        if (st == MOEC_OK)
            st =
                ask(u->r, (moec_http_request){.method = "GET", .url = url.data},
                    &xml, err);
        if (st == MOEC_OK)
            st = moec_web_take_parts(&xml, u->parts, u->n_parts, &last, any_out,
                                     &more, err);
        more = more && last > after;
        after = last;
        moec_buf_fini(&url);
        moec_buf_fini(&xml);
    }
    return st;
}

/* Look at an upload that is there: ours to go on with where parts of it have
 * digests and none was found before; given up else. */
static moec_status look_at(moec_upload *u, const char *id, moec_error *err)
{
    moec_upload other = *u;
    moec_error why = MOEC_ERROR_INIT;
    moec_buf b = {0};
    bool any = false;
    moec_status st = MOEC_OK;

    moec_url_escape(&b, id, false);
    other.id = moec_web_take_text(&b);
    if (!other.id)
        return moec_fail_nomem(err, "an upload's id");
    if (!u->id)
        st = list_parts(&other, &any, &why);
    if (st == MOEC_OK && any) {
        u->id = other.id;
        return MOEC_OK;
    }
    if (st == MOEC_E_FORMAT)
        st = MOEC_OK; /* somebody has ended it meanwhile */
    else if (st == MOEC_OK)
        give_up(&other);
    else if (err)
        *err = why;
    moec_free(other.id);
    return st;
}

static moec_status find_upload(moec_upload *u, const char *name,
                               moec_error *err)
{
    moec_buf url = {0}, xml = {0}, key = {0};
    moec_web_uploads found = {0};
    moec_status st = MOEC_OK;

    moec_buf_printf(&key, "%s%s", u->r->prefix, name);
    moec_buf_printf(&url, "%s/?prefix=", u->r->bucket);
    moec_url_escape(&url, key.data ? key.data : "", false);
    moec_buf_puts(&url, "&uploads=");
    if (key.oom || url.oom)
        st = moec_fail_nomem(err, "a URL");
    if (st == MOEC_OK)
        st = ask(u->r, (moec_http_request){.method = "GET", .url = url.data},
                 &xml, err);
    if (st == MOEC_OK)
        st = moec_web_take_uploads(&xml, key.data, &found, err);
    for (size_t i = 0; st == MOEC_OK && i < found.n; i++)
        st = look_at(u, found.ids[i], err);
    moec_web_uploads_fini(&found);
    moec_buf_fini(&url);
    moec_buf_fini(&xml);
    moec_buf_fini(&key);
    return st;
}

static void free_upload(moec_upload *u)
{
    moec_free(u->id);
    moec_free(u->url);
    moec_free(u->parts);
    moec_free(u);
}

static moec_status make_upload(moec_upload **out, moec_web *r, const char *name,
                               uint64_t bytes, uint64_t part_bytes,
                               moec_error *err)
{
    moec_upload *u = moec_calloc(1, sizeof(*u));

    if (!u)
        return moec_fail_nomem(err, "an upload");
    *u = (moec_upload){.r = r, .bytes = bytes, .part_bytes = part_bytes};
    u->n_parts = moec_n_parts(bytes, part_bytes);
    u->parts = moec_calloc(u->n_parts, sizeof(*u->parts));
    u->url = moec_web_url_of(r, name);
    if (!u->parts || !u->url) {
        free_upload(u);
        return moec_fail_nomem(err, "an upload");
    }
    *out = u;
    return MOEC_OK;
}

static moec_status begin(void *ctx, const char *name, uint64_t bytes,
                         uint64_t part_bytes, moec_upload **out,
                         moec_error *err)
{
    moec_upload *u;
    moec_status st;

    MOEC_TRY(make_upload(&u, ctx, name, bytes, part_bytes, err));
    st = find_upload(u, name, err);
    if (st == MOEC_OK && !u->id && u->n_parts > 1)
        st = begin_upload(u, err);
    if (st != MOEC_OK) {
        free_upload(u);
        return st;
    }
    *out = u;
    return MOEC_OK;
}

/* 404 to a request about the upload. */
static moec_status is_gone(const moec_upload *u, moec_error *err)
{
    return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                     "%s: status 404, NoSuchUpload: another process completed "
                     "the upload or gave it up",
                     u->url);
}

static moec_status send_part(moec_upload *u, size_t i, const void *data,
                             size_t n, bool *there_out, moec_error *err)
{
    moec_web_part *p = &u->parts[i];
    moec_error why = MOEC_ERROR_INIT;
    moec_buf url = {0};
    moec_sha256 had = p->sha256;
    moec_status st;

    MOEC_TRY(moec_sha256_of(data, n, &p->sha256, err));
    *there_out = p->bytes == n && p->etag[0] != '\0' &&
                 memcmp(&had, &p->sha256, sizeof(had)) == 0;
    if (*there_out)
        return MOEC_OK;
    if (!u->id)
        return send_bytes(u->r, u->url, data, n, u->digest_line, u->fresh, p,
                          err);
    st = part_url(u, &url, i + 1, &why);
    if (st == MOEC_OK)
        st = send_bytes(u->r, url.data, data, n, NULL, false, p, &why);
    moec_buf_fini(&url);
    if (st == MOEC_E_FORMAT)
        return is_gone(u, err);
    if (st == MOEC_OK)
        return MOEC_OK;
    moec_error_prefix(&why, "part %zu of %zu", i + 1, u->n_parts);
    if (err)
        *err = why;
    return st;
}

/* S3 may answer 200 and fail in the body. */
static moec_status check_answer(const moec_upload *u, const moec_buf *answer,
                                moec_error *err)
{
    char *code = moec_web_xml_text(answer, "Code");
    moec_status st = MOEC_OK;

    if (code)
        st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                       "%s: the upload was refused at its end: %s", u->url,
                       code);
    free(code);
    return st;
}

/* The upload is gone: was it this very request, whose answer was lost? */
static moec_status look_whether_complete(const moec_upload *u, moec_error *err)
{
    moec_http_answer a;
    moec_http_request q = {.method = "HEAD", .url = u->url};

    if (moec_http_do(&u->r->http, &q, &a, NULL) == MOEC_OK && a.has_length &&
        a.length == u->bytes)
        return MOEC_OK;
    return is_gone(u, err);
}

static moec_status complete(moec_upload *u, moec_error *err)
{
    moec_buf url = {0}, body = {0}, answer = {0};
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    if (!u->id)
        return MOEC_OK;
    st = part_url(u, &url, 0, &why);
    moec_buf_puts(&body, "<CompleteMultipartUpload>");
    for (size_t i = 0; i < u->n_parts; i++)
        moec_buf_printf(&body,
                        "<Part><PartNumber>%zu</PartNumber><ETag>%s</ETag>"
                        "<ChecksumSHA256>%s</ChecksumSHA256></Part>",
                        i + 1, u->parts[i].etag, u->parts[i].sum);
    moec_buf_puts(&body, "</CompleteMultipartUpload>");
    if (st == MOEC_OK && body.oom)
        st = moec_fail_nomem(&why, "a list of parts");
    if (st == MOEC_OK)
        st = ask(u->r,
                 (moec_http_request){.method = "POST",
                                     .url = url.data,
                                     .fresh = u->fresh,
                                     .body = body.data,
                                     .body_bytes = body.len},
                 &answer, &why);
    if (st == MOEC_OK)
        st = check_answer(u, &answer, err);
    else if (st == MOEC_E_FORMAT)
        st = look_whether_complete(u, err);
    else if (err)
        *err = why;
    moec_buf_fini(&url);
    moec_buf_fini(&body);
    moec_buf_fini(&answer);
    return st;
}

static void end(moec_upload *u, bool abort)
{
    if (!u)
        return;
    if (abort)
        give_up(u);
    free_upload(u);
}

/* --------------------------------------------------------- small objects */

static moec_status get(void *ctx, const char *name, moec_buf *out,
                       moec_error *err)
{
    moec_web *r = ctx;
    char *url = moec_web_url_of(r, name);
    moec_http_answer a;
    moec_http_request q = {
        .method = "GET", .url = url, .text = out, .text_max = GET_MAX};
    moec_status st;

    if (!url)
        return moec_fail_nomem(err, "a URL");
    st = moec_http_do(&r->http, &q, &a, err);
    moec_free(url);
    return st;
}

static moec_status put(void *ctx, const char *name, const void *data, size_t n,
                       bool fresh, moec_error *err)
{
    moec_web *r = ctx;
    char *url = moec_web_url_of(r, name);
    moec_web_part whole = {0};
    moec_status st = url ? moec_sha256_of(data, n, &whole.sha256, err)
                         : moec_fail_nomem(err, "a URL");

    if (st == MOEC_OK)
        st = send_bytes(r, url, data, n, NULL, fresh, &whole, err);
    moec_free(url);
    return st;
}

static moec_status remove_object(void *ctx, const char *name, moec_error *err)
{
    moec_web *r = ctx;
    char *url = moec_web_url_of(r, name);
    moec_error why = MOEC_ERROR_INIT;
    moec_http_answer a;
    moec_http_request q = {.method = "DELETE", .url = url};
    moec_status st;

    if (!url)
        return moec_fail_nomem(err, "a URL");
    st = moec_http_do(&r->http, &q, &a, &why);
    moec_free(url);
    if (st == MOEC_OK || st == MOEC_E_FORMAT)
        return MOEC_OK;
    if (err)
        *err = why;
    return st;
}

const moec_objects *moec_web_objects(moec_web *r)
{
    r->objects = (moec_objects){.there = &r->store,
                                .get = get,
                                .put = put,
                                .remove = remove_object,
                                .begin = begin,
                                .part = send_part,
                                .complete = complete,
                                .end = end,
                                .ctx = r};
    return &r->objects;
}

/* ----------------------------------------------------------------- files */

typedef struct file {
    moec_upload *u;
    const char *path;
    int fd;
} file;

static moec_status put_part(void *ctx, size_t i, uint32_t worker,
                            moec_error *err)
{
    const file *f = ctx;
    uint64_t off = i * f->u->part_bytes;
    size_t n = (size_t)moec_min_u64(f->u->part_bytes, f->u->bytes - off);
    unsigned char *data = moec_alloc(n);
    bool there;
    moec_status st = data ? moec_pread_full(f->fd, f->path, data, n, off, err)
                          : moec_fail_nomem(err, "a part");

    (void)worker;
    if (st == MOEC_OK)
        st = send_part(f->u, i, data, n, &there, err);
    moec_free(data);
    return st;
}

static moec_status put_file(file *f, moec_error *err)
{
    const moec_web_opts *o = &f->u->r->http.opts;
    moec_status st = f->u->n_parts > 1 ? begin_upload(f->u, err) : MOEC_OK;

    if (st == MOEC_OK)
        st = moec_parallel(o->n_parallel ? o->n_parallel : N_PARALLEL,
                           f->u->n_parts, put_part, f, err);
    return st == MOEC_OK ? complete(f->u, err) : st;
}

moec_status moec_web_put(moec_web *r, const char *name, const char *path,
                         const char *digest, bool fresh, moec_error *err)
{
    char line[sizeof(MOEC_HTTP_DIGEST_NAME) + MOEC_HTTP_DIGEST_BYTES + 4];
    file f = {.path = path,
              .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    struct stat sb;
    moec_status st;

    if (f.fd < 0 || fstat(f.fd, &sb) != 0) {
        st = moec_fail_os(err, errno, "%s: cannot be read", path);
        goto close_fd;
    }
    st = make_upload(&f.u, r, name, (uint64_t)sb.st_size,
                     moec_part_bytes((uint64_t)sb.st_size, 0), err);
    if (st != MOEC_OK)
        goto close_fd;
    if (digest) {
        (void)snprintf(line, sizeof(line), MOEC_HTTP_DIGEST_NAME ": %.64s",
                       digest);
        f.u->digest_line = line;
    }
    f.u->fresh = fresh;
    st = put_file(&f, err);
    end(f.u, st != MOEC_OK);
close_fd:
    if (f.fd >= 0)
        close(f.fd);
    return st;
}
