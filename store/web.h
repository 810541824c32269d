/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_WEB_H
#define MOEC_WEB_H

/*
 * What this is: a directory behind a URL: its files listed, read by ranges,
 *   written with checksums. s3://BUCKET/PREFIX (signed by SigV4), and
 *   https:// (http:// where it is said so), which cannot list: there the index
 *   names the shards, and files that checkpoints usually have are asked for.
 * Lifetime: a moec_web owns what it returns until close.
 * Threads: read_at, stat and put from any thread; the rest one at a time.
 * Errors: ARG (a URL that is none), FORMAT (I01: there is nothing; I13: an
 *   object changed since it was opened), IO after the last retry, with the
 *   server's own words, NOMEM.
 *
 * Retries: what may pass by itself (timeouts, lost connections, 408, 429, 5xx)
 * is tried `tries` times, after a random part of a time that doubles; a
 * server's Retry-After is obeyed. Every read names the ETag that was listed
 * (If-Match): bytes of two versions are never mixed.
 */

#include <stdbool.h>
#include <string.h>

#include <moec/loader.h>

struct moec_objects;

typedef struct moec_web_opts {
    const char *endpoint; /* "https://minio:9000": path style; NULL: AWS */
    const char *region;   /* NULL: us-east-1 */
    const char *key_id, *secret, *token; /* NULL: requests are not signed */
    const char *bearer;                  /* https: a token, or NULL */
    uint32_t tries;                      /* 0: 6 */
    uint32_t wait_ms;    /* before the second try, at most; 0: 100 */
    uint32_t timeout_ms; /* without a byte; 0: 30,000 */
    uint32_t n_parallel; /* parts at a time in put; 0: 8 */
} moec_web_opts;

typedef struct moec_web moec_web;

typedef struct moec_web_stats {
    uint64_t n_requests, n_retries, bytes_read, bytes_written;
} moec_web_stats;

/* Does the text (NULL: no) name a place that is behind a URL? Here, as a
 * program that was built without libcurl asks too. */
static inline bool moec_web_is_url(const char *text)
{
    return text && (strncmp(text, "s3://", 5) == 0 ||
                    strncmp(text, "https://", 8) == 0 ||
                    strncmp(text, "http://", 7) == 0);
}

/* Look at what is there: for reading. FORMAT (I01) where there is nothing. */
moec_status moec_web_open(moec_web **out, const char *url,
                          const moec_web_opts *opts, moec_error *err);
/* The same, to write: there may be nothing yet. s3:// alone. */
moec_status moec_web_create(moec_web **out, const char *url,
                            const moec_web_opts *opts, moec_error *err);
void moec_web_close(moec_web *r); /* NULL is fine */

/* For moec_ckpt_open_source; borrowed. */
const moec_store *moec_web_store(const moec_web *r);
/* Number of the file with this name, or SIZE_MAX. */
size_t moec_web_find(const moec_web *r, const char *name);
moec_web_stats moec_web_stats_of(const moec_web *r);

/* The directory as a place to write a conversion to (objects.h); of one that
 * was created. Borrowed. */
const struct moec_objects *moec_web_objects(moec_web *r);

/* Write the local file `path` as `name`: in parts, each with its SHA-256, the
 * whole becoming visible at once. With `fresh`, only where no object has the
 * name: LOCKED where one has. `digest` (hex; NULL: none) is kept with it. */
moec_status moec_web_put(moec_web *r, const char *name, const char *path,
                         const char *digest, bool fresh, moec_error *err);
/* Was file `i` put there with this size and digest? */
moec_status moec_web_has(moec_web *r, size_t i, uint64_t bytes,
                         const char *digest, bool *yes_out, moec_error *err);

#endif
