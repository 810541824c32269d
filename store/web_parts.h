/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_WEB_PARTS_H
#define MOEC_WEB_PARTS_H

/*
 * What this is: the remote directory's inside, shared by web.c (open, list,
 *   read), web_xml.c (what S3 answers) and web_put.c (write).
 */

#include "http.h"

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
};

/* Add a file; its strings are copied. */
moec_status moec_web_add(moec_web *r, const char *name, uint64_t bytes,
                         const char *etag, moec_error *err);

/* Append `text` in the characters that a URL's path or, with `slash` false, a
 * query's value may have; others as %XX. */
void moec_url_escape(moec_buf *out, const char *text, bool slash);

/* Take a page of ListObjectsV2: files directly below the prefix. *next_out is
 * the token of the next page, to be freed, or NULL. */
moec_status moec_web_take_list(moec_web *r, const moec_buf *xml,
                               char **next_out, moec_error *err);
/* Text of the first element `name` in an answer, to be freed; NULL where there
 * is none. */
char *moec_web_xml_text(const moec_buf *xml, const char *name);

#endif
