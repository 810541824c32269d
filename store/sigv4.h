/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SIGV4_H
#define MOEC_SIGV4_H

/*
 * What this is: AWS Signature Version 4 of one request, for S3: the value of
 *   its Authorization header. Our own because libcurl's differs from version
 *   to version in what it signs (7.88 leaves the content digest out, and
 *   queries as they come).
 * Source: the "AWS Signature Version 4" chapters of Amazon S3's API reference;
 *   its examples are the tests.
 */

#include "base/base.h"

typedef struct moec_sigv4 {
    const char *key_id, *secret, *region;
    const char *method;
    const char *url;          /* "https://host[:port]/path[?query]": escaped
                                    as S3 wants it, the query in the order of its
                                    names */
    const char *date;         /* "20130524T000000Z" */
    const char *sha256_hex;   /* of the body */
    const char *const *lines; /* "name: value" to be signed, x-amz-date and
                                    x-amz-content-sha256 among them; Host is
                                    taken from the URL */
    size_t n_lines;
} moec_sigv4;

#define MOEC_SIGV4_LINES_MAX 16u

/* Append "AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=..." to
 * `out`. */
moec_status moec_sigv4_sign(const moec_sigv4 *s, moec_buf *out,
                            moec_error *err);

#endif
