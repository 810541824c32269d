/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Writing an object. Small files are one PUT; larger ones go up in parts, as
 * many at a time as the options say, each with its SHA-256, and the object is
 * there when the last request says so. A failed upload is given up at the
 * server, so that nothing is paid for that nobody sees.
 */

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "web_parts.h"

#define PART_BYTES (UINT64_C(16) << 20)
#define PARTS_MAX  10000u /* of S3 */
#define N_PARALLEL 8u
#define ANSWER_MAX (UINT64_C(1) << 20)
#define SUM_BYTES  64u /* base64 of a SHA-256 and its NUL */

typedef struct part {
    char etag[MOEC_HTTP_ETAG_BYTES];
    char sum[SUM_BYTES];
} part;

typedef struct upload {
    moec_web *r;
    const char *path;
    const char *digest_line; /* NULL: none */
    int fd;
    uint64_t bytes, part_bytes;
    size_t n_parts;
    part *parts;
    char *url; /* of the object */
    char *id;  /* of the upload, escaped */
    bool fresh;
} upload;

static moec_status part_url(const upload *u, moec_buf *url, size_t number,
                            moec_error *err)
{
    if (number > 0)
        moec_buf_printf(url, "%s?partNumber=%zu&uploadId=%s", u->url, number,
                        u->id);
    else
        moec_buf_printf(url, "%s?uploadId=%s", u->url, u->id);
    return url->oom ? moec_fail_nomem(err, "a URL") : MOEC_OK;
}

/* Read, digest and send bytes of the file: as part `number`, or 0 for all. */
static moec_status send_bytes(const upload *u, const char *url, uint64_t off,
                              size_t n, part *done, moec_error *err)
{
    char line[128], hex[65];
    const char *header[] = {line, u->id ? NULL : u->digest_line, NULL};
    moec_sha256 sum;
    moec_http_answer a;
    unsigned char *data = moec_alloc(n);
    moec_status st = data ? moec_pread_full(u->fd, u->path, data, n, off, err)
                          : moec_fail_nomem(err, "a part");

    if (st == MOEC_OK)
        st = moec_sha256_of(data, n, &sum, err);
    if (st == MOEC_OK) {
        moec_hex(&sum, sizeof(sum), hex);
        EVP_EncodeBlock((unsigned char *)done->sum, sum.b, sizeof(sum.b));
        (void)snprintf(line, sizeof(line), "x-amz-checksum-sha256: %s",
                       done->sum);
        moec_http_request q = {.method = "PUT",
                               .url = url,
                               .fresh = u->fresh && !u->id,
                               .header = header,
                               .body = data,
                               .body_bytes = n,
                               .sha256_hex = hex};
        st = moec_http_do(&u->r->http, &q, &a, err);
    }
    if (st == MOEC_OK)
        memcpy(done->etag, a.etag, sizeof(done->etag));
    moec_free(data);
    return st;
}

static moec_status send_part(void *ctx, size_t item, uint32_t worker,
                             moec_error *err)
{
    upload *u = ctx;
    uint64_t off = item * u->part_bytes;
    moec_buf url = {0};
    moec_status st = part_url(u, &url, item + 1, err);

    (void)worker;
    if (st == MOEC_OK)
        st = send_bytes(u, url.data, off,
                        (size_t)moec_min_u64(u->part_bytes, u->bytes - off),
                        &u->parts[item], err);
    moec_buf_fini(&url);
    return st;
}

static moec_status begin(upload *u, moec_error *err)
{
    const char *const header[] = {"x-amz-checksum-algorithm: SHA256",
                                  u->digest_line, NULL};
    moec_buf url = {0}, answer = {0}, id = {0};
    moec_http_answer a;
    char *text = NULL;
    moec_status st;

    moec_buf_printf(&url, "%s?uploads=", u->url);
    moec_http_request q = {.method = "POST",
                           .url = url.data,
                           .header = header,
                           .text = &answer,
                           .text_max = ANSWER_MAX};
    st = url.oom ? moec_fail_nomem(err, "a URL")
                 : moec_http_do(&u->r->http, &q, &a, err);
    if (st == MOEC_OK) {
        text = moec_web_xml_text(&answer, "UploadId");
        if (text)
            moec_url_escape(&id, text, false);
        u->id = id.oom ? NULL : id.data;
        if (!u->id)
            st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                           "%s: the server gives no upload id", u->url);
    }
    free(text);
    moec_buf_fini(&url);
    moec_buf_fini(&answer);
    return st;
}

static moec_status complete(upload *u, moec_error *err)
{
    moec_buf url = {0}, body = {0}, answer = {0};
    moec_http_answer a;
    moec_status st = part_url(u, &url, 0, err);

    moec_buf_puts(&body, "<CompleteMultipartUpload>");
    for (size_t i = 0; i < u->n_parts; i++)
        moec_buf_printf(&body,
                        "<Part><PartNumber>%zu</PartNumber><ETag>%s</ETag>"
                        "<ChecksumSHA256>%s</ChecksumSHA256></Part>",
                        i + 1, u->parts[i].etag, u->parts[i].sum);
    moec_buf_puts(&body, "</CompleteMultipartUpload>");
    if (st == MOEC_OK && body.oom)
        st = moec_fail_nomem(err, "a list of parts");
    if (st == MOEC_OK) {
        moec_http_request q = {.method = "POST",
                               .url = url.data,
                               .fresh = u->fresh,
                               .body = body.data,
                               .body_bytes = body.len,
                               .text = &answer,
                               .text_max = ANSWER_MAX};
        st = moec_http_do(&u->r->http, &q, &a, err);
    }
    /* S3 may answer 200 and fail in the body. */
    char *code = st == MOEC_OK ? moec_web_xml_text(&answer, "Code") : NULL;
    if (code)
        st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                       "%s: the upload was refused at its end: %s", u->url,
                       code);
    free(code);
    moec_buf_fini(&url);
    moec_buf_fini(&body);
    moec_buf_fini(&answer);
    return st;
}

static void give_up(upload *u)
{
    moec_buf url = {0};
    moec_http_answer a;

    if (part_url(u, &url, 0, NULL) == MOEC_OK) {
        moec_http_request q = {.method = "DELETE", .url = url.data};
        (void)moec_http_do(&u->r->http, &q, &a, NULL);
    }
    moec_buf_fini(&url);
}

static moec_status put_parts(upload *u, moec_error *err)
{
    const moec_web_opts *o = &u->r->http.opts;
    moec_status st;

    u->part_bytes =
        moec_max_u64(PART_BYTES, moec_ceil_div(u->bytes, PARTS_MAX));
    u->n_parts = (size_t)moec_ceil_div(u->bytes, u->part_bytes);
    u->parts = moec_calloc(u->n_parts, sizeof(*u->parts));
    if (!u->parts)
        return moec_fail_nomem(err, "a list of parts");
    st = begin(u, err);
    if (st == MOEC_OK) {
        st = moec_parallel(o->n_parallel ? o->n_parallel : N_PARALLEL,
                           u->n_parts, send_part, u, err);
        if (st == MOEC_OK)
            st = complete(u, err);
        if (st != MOEC_OK)
            give_up(u);
    }
    moec_free(u->id);
    moec_free(u->parts);
    return st;
}

moec_status moec_web_put(moec_web *r, const char *name, const char *path,
                         const char *digest, bool fresh, moec_error *err)
{
    char line[sizeof(MOEC_HTTP_DIGEST_NAME) + MOEC_HTTP_DIGEST_BYTES + 4];
    upload u = {.r = r, .path = path, .fresh = fresh};
    moec_buf url = {0};
    struct stat sb;
    part whole;
    moec_status st;

    if (digest) {
        (void)snprintf(line, sizeof(line), MOEC_HTTP_DIGEST_NAME ": %.64s",
                       digest);
        u.digest_line = line;
    }
    u.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (u.fd < 0 || fstat(u.fd, &sb) != 0) {
        st = moec_fail_os(err, errno, "%s: cannot be read", path);
    } else {
        u.bytes = (uint64_t)sb.st_size;
        moec_buf_puts(&url, r->base);
        moec_url_escape(&url, name, false);
        u.url = url.data;
        if (url.oom)
            st = moec_fail_nomem(err, "a URL");
        else if (u.bytes > PART_BYTES)
            st = put_parts(&u, err);
        else
            st = send_bytes(&u, u.url, 0, (size_t)u.bytes, &whole, err);
    }
    if (u.fd >= 0)
        close(u.fd);
    moec_buf_fini(&url);
    return st;
}
