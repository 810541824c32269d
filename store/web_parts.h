/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_WEB_PARTS_H
#define MOEC_WEB_PARTS_H

/*
 * What this is: the remote directory's inside, shared by web.c (open, list,
 *   read), web_xml.c (what S3 answers) and web_put.c (write).
 */

#include "http.h"
#include "objects.h"

struct moec_web {
    moec_http http;
    char *url;    /* as given, for messages */
    char *base;   /* URL of the directory, with a slash at its end */
    char *bucket; /* URL of the bucket; NULL: not S3 */
    char *prefix; /* of keys, "" or with a slash at its end */
    moec_arena arena;
    moec_store_file *files;
    size_t n_files, cap_files;
    moec_store store;
    moec_objects objects;
};

/* Add a file; its strings are copied. */
moec_status moec_web_add(moec_web *r, const char *name, uint64_t bytes,
                         const char *etag, moec_error *err);

/* Append `text` in the characters that a URL's path or, with `slash` false, a
 * query's value may have; others as %XX. */
void moec_url_escape(moec_buf *out, const char *text, bool slash);

/* The buffer's text, to be freed with moec_free; NULL without memory. */
char *moec_web_take_text(moec_buf *b);
/* URL of a file, the same. */
char *moec_web_url_of(const moec_web *r, const char *name);

/* Take a page of ListObjectsV2: files directly below the prefix. *next_out is
 * the token of the next page, to be freed, or NULL. */
moec_status moec_web_take_list(moec_web *r, const moec_buf *xml,
                               char **next_out, moec_error *err);
/* A part of an upload: as it was sent, or as the store lists it. */
typedef struct moec_web_part {
    uint64_t bytes;
    moec_sha256 sha256;
    char sum[48]; /* the same in base64 */
    char etag[MOEC_HTTP_ETAG_BYTES];
} moec_web_part;

/* Take a page of ListParts into parts[number - 1]: those with a SHA-256, which
 * sets *any_out. *last_out is the last part's number of the page, *more_out:
 * there is another page. */
moec_status moec_web_take_parts(const moec_buf *xml, moec_web_part *parts,
                                size_t n_parts, size_t *last_out, bool *any_out,
                                bool *more_out, moec_error *err);

/* Ids of the uploads of `key` in an answer of ListMultipartUploads. */
typedef struct moec_web_uploads {
    char **ids;
    size_t n, cap;
} moec_web_uploads;
moec_status moec_web_take_uploads(const moec_buf *xml, const char *key,
                                  moec_web_uploads *out, moec_error *err);
void moec_web_uploads_fini(moec_web_uploads *u);

/* Text of the first element `name` in an answer, to be freed; NULL where there
 * is none. */
char *moec_web_xml_text(const moec_buf *xml, const char *name);

#endif
