/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_WEB_SOURCE_H
#define MOEC_WEB_SOURCE_H

/*
 * What this is: s3:// and https:// on the command line: what the environment
 *   says of them, and what is behind one. Built without libcurl, URLs are
 *   refused with a sentence.
 * Lifetime: what was opened lives until moec_cli_web_close, at the end of main:
 *   a checkpoint reads through it until it is closed.
 * Threads: one thread at a time.
 * Errors: web.h's, UNSUPPORTED.
 */

#include <bucket.h>

#include "cli.h"
#include "web.h"

/* What is behind `path`; *out is NULL where that is no URL. Listed once: the
 * same URL gives the same store. */
moec_status moec_cli_web_store(const moec_store **out, const char *path,
                               moec_error *err);

/* The place of objects behind the s3:// URL `url`, to write a conversion to. */
moec_status moec_cli_web_objects(const struct moec_objects **out,
                                 const char *url, moec_error *err);

/* Upload the files of the conversion in directory `dir` to `url`, manifest.json
 * last: where it is, the whole is. Files that are there already, by their
 * digest, are left. LOCKED where a manifest is there and no `force`. */
typedef struct moec_cli_uploaded {
    uint64_t bytes, n_files, n_there, n_requests, n_retries;
    double seconds;
} moec_cli_uploaded;
moec_status moec_cli_web_upload(const char *dir, const char *url, bool force,
                                moec_cli_uploaded *figures, moec_error *err);

void moec_cli_web_close(void);

#endif
