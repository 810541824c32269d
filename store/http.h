/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_HTTP_H
#define MOEC_HTTP_H

/*
 * What this is: one HTTP request at a time and thread, by libcurl, retried as
 *   web.h says. Knows nothing of buckets.
 * Threads: a moec_http is shared; connections are kept and handed out.
 */

#include <pthread.h>

#include "base/base.h"
#include "web.h"

typedef struct moec_http {
    moec_web_opts opts;
    bool sign; /* SigV4 with opts' key */
    pthread_mutex_t lock;
    void **idle; /* CURL handles */
    size_t n_idle, cap_idle;
    moec_web_stats stats;
} moec_http;

#define MOEC_HTTP_ETAG_BYTES   256
#define MOEC_HTTP_DIGEST_BYTES 72
#define MOEC_HTTP_DIGEST_NAME  "x-amz-meta-moec-digest"

typedef struct moec_http_request {
    const char *method; /* "GET", "HEAD", "PUT", "POST", "DELETE" */
    const char *url;
    /* Range: [off, off + n) where n is not 0. */
    uint64_t off, n;
    const char *if_match;      /* an ETag, or NULL */
    bool fresh;                /* If-None-Match: * */
    const char *const *header; /* more lines, NULL-terminated; or NULL */
    const void *body;          /* of PUT and POST */
    size_t body_bytes;
    const char *sha256_hex; /* of the body; NULL: computed */
    /* Where the answer goes: `into` with exactly n bytes, or `text`, of at
     * most text_max. */
    void *into;
    moec_buf *text;
    size_t text_max;
} moec_http_request;

typedef struct moec_http_answer {
    long status;
    uint64_t length; /* of the whole object, where the answer says it */
    bool has_length;
    char etag[MOEC_HTTP_ETAG_BYTES];       /* with its quotes; "" where none */
    char digest[MOEC_HTTP_DIGEST_BYTES];   /* x-amz-meta-moec-digest, or "" */
    char checksum[MOEC_HTTP_DIGEST_BYTES]; /* x-amz-checksum-sha256, or "" */
} moec_http_answer;

moec_status moec_http_init(moec_http *h, const moec_web_opts *opts,
                           moec_error *err);
void moec_http_fini(moec_http *h);

/* Do it until it is answered with 2xx. FORMAT (I01) for 404, FORMAT (I13) for
 * 412 to if_match, LOCKED for 412 and 409 to fresh, IO for the rest. */
moec_status moec_http_do(moec_http *h, const moec_http_request *q,
                         moec_http_answer *a, moec_error *err);

#endif
