/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What S3 answers in XML, read by expat. Names of objects are any bytes: only
 * those that are plain file names directly below the prefix are taken. Depth
 * and entities do not matter: expat expands none of a document without a
 * DTD, and one with a DTD is refused.
 */

#include <expat.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "converted.h"
#include "web_parts.h"

#define TEXT_BYTES_MAX 4096u

typedef struct listing {
    moec_web *r;
    XML_Parser parser;
    moec_buf text;
    moec_buf key, etag;
    uint64_t bytes;
    bool in_contents;
    char *next;
    const char *want; /* xml_text: the element, or NULL */
    char *found;
    moec_status st;
    moec_error *err;
} listing;

static void on_doctype(void *ctx, const char *name, const char *system,
                       const char *public, int internal)
{
    listing *l = ctx;

    (void)name;
    (void)system;
    (void)public;
    (void)internal;
    l->st = moec_fail(l->err, MOEC_E_IO, MOEC_RULE_NONE,
                      "an answer with a DTD is none of S3's");
    XML_StopParser(l->parser, XML_FALSE);
}

static void on_begin(void *ctx, const char *name, const char **attributes)
{
    listing *l = ctx;

    (void)attributes;
    l->text.len = 0;
    if (strcmp(name, "Contents") == 0) {
        l->in_contents = true;
        l->key.len = l->etag.len = 0;
        l->bytes = 0;
    }
}

static void on_text(void *ctx, const char *text, int n)
{
    listing *l = ctx;

    if (l->text.len + (size_t)n <= TEXT_BYTES_MAX)
        moec_buf_append(&l->text, text, (size_t)n);
}

static void keep(moec_buf *to, const moec_buf *from)
{
    to->len = 0;
    moec_buf_append(to, from->data, from->len);
}

static char *copy(const moec_buf *b)
{
    char *s = malloc(b->len + 1);

    if (s)
        memcpy(s, b->len > 0 ? b->data : "", b->len + 1);
    return s;
}

/* One object: a file where its key is the prefix and a plain name. */
static void take_object(listing *l)
{
    size_t n = strlen(l->r->prefix);

    if (l->key.len <= n || memcmp(l->key.data, l->r->prefix, n) != 0 ||
        !moec_plain_name(l->key.data + n, l->key.len - n))
        return;
    l->st = moec_web_add(l->r, l->key.data + n, l->bytes,
                         l->etag.len > 0 ? l->etag.data : NULL, l->err);
    if (l->st != MOEC_OK)
        XML_StopParser(l->parser, XML_FALSE);
}

static void on_end(void *ctx, const char *name)
{
    listing *l = ctx;

    moec_buf_append(&l->text, "", 0); /* so that it is a string */
    if (l->want) {
        if (!l->found && strcmp(name, l->want) == 0)
            l->found = copy(&l->text);
    } else if (l->in_contents) {
        if (strcmp(name, "Key") == 0)
            keep(&l->key, &l->text);
        else if (strcmp(name, "ETag") == 0)
            keep(&l->etag, &l->text);
        else if (strcmp(name, "Size") == 0)
            l->bytes = strtoull(l->text.len > 0 ? l->text.data : "0", NULL, 10);
        else if (strcmp(name, "Contents") == 0) {
            l->in_contents = false;
            take_object(l);
        }
    } else if (strcmp(name, "NextContinuationToken") == 0) {
        free(l->next);
        l->next = copy(&l->text);
    }
    l->text.len = 0;
}

static moec_status parse(listing *l, const moec_buf *xml, moec_error *err)
{
    moec_status st = MOEC_OK;

    l->err = err;
    l->parser = XML_ParserCreate(NULL);
    if (!l->parser)
        return moec_fail_nomem(err, "a parser");
    XML_SetUserData(l->parser, l);
    XML_SetElementHandler(l->parser, on_begin, on_end);
    XML_SetCharacterDataHandler(l->parser, on_text);
    XML_SetStartDoctypeDeclHandler(l->parser, on_doctype);
    if (XML_Parse(l->parser, xml->len > 0 ? xml->data : "", (int)xml->len, 1) ==
            XML_STATUS_ERROR &&
        l->st == MOEC_OK)
        st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                       "an answer is no XML: %s at line %lu",
                       XML_ErrorString(XML_GetErrorCode(l->parser)),
                       (unsigned long)XML_GetCurrentLineNumber(l->parser));
    if (l->st != MOEC_OK)
        st = l->st;
    else if (st == MOEC_OK && (l->text.oom || l->key.oom || l->etag.oom))
        st = moec_fail_nomem(err, "an answer");
    XML_ParserFree(l->parser);
    moec_buf_fini(&l->text);
    moec_buf_fini(&l->key);
    moec_buf_fini(&l->etag);
    return st;
}

moec_status moec_web_take_list(moec_web *r, const moec_buf *xml,
                               char **next_out, moec_error *err)
{
    listing l = {.r = r};
    moec_status st = parse(&l, xml, err);

    if (st != MOEC_OK) {
        free(l.next);
        return st;
    }
    *next_out = l.next;
    return MOEC_OK;
}

/* ------------------------------------------------- uploads and their parts */

/* Rows of an answer: elements `row` with children, which are texts. */
typedef struct rows {
    XML_Parser parser;
    const char *row;
    bool inside, more;
    moec_buf text;
    moec_buf field[4];
    const char *names[4];
    moec_status (*take)(struct rows *w);
    void *ctx;
    moec_status st;
    moec_error *err;
} rows;

static void row_begin(void *ctx, const char *name, const char **attributes)
{
    rows *w = ctx;

    (void)attributes;
    w->text.len = 0;
    if (strcmp(name, w->row) != 0)
        return;
    w->inside = true;
    for (size_t i = 0; i < 4; i++)
        w->field[i].len = 0;
}

static void row_text(void *ctx, const char *text, int n)
{
    rows *w = ctx;

    if (w->text.len + (size_t)n <= TEXT_BYTES_MAX)
        moec_buf_append(&w->text, text, (size_t)n);
}

static const char *field(const rows *w, size_t i)
{
    return w->field[i].len > 0 ? w->field[i].data : "";
}

static void row_end(void *ctx, const char *name)
{
    rows *w = ctx;

    moec_buf_append(&w->text, "", 0); /* so that it is a string */
    for (size_t i = 0; w->inside && i < 4; i++)
        if (w->names[i] && strcmp(name, w->names[i]) == 0)
            keep(&w->field[i], &w->text);
    if (!w->inside && strcmp(name, "IsTruncated") == 0)
        w->more = w->text.len > 0 && strcmp(w->text.data, "true") == 0;
    if (strcmp(name, w->row) == 0) {
        w->inside = false;
        w->st = w->take(w);
        if (w->st != MOEC_OK)
            XML_StopParser(w->parser, XML_FALSE);
    }
    w->text.len = 0;
}

static void row_doctype(void *ctx, const char *name, const char *system,
                        const char *public, int internal)
{
    rows *w = ctx;

    (void)name;
    (void)system;
    (void)public;
    (void)internal;
    w->st = moec_fail(w->err, MOEC_E_IO, MOEC_RULE_NONE,
                      "an answer with a DTD is none of S3's");
    XML_StopParser(w->parser, XML_FALSE);
}

static moec_status read_rows(rows *w, const moec_buf *xml)
{
    moec_status st = MOEC_OK;
    bool oom;

    w->parser = XML_ParserCreate(NULL);
    if (!w->parser)
        return moec_fail_nomem(w->err, "a parser");
    XML_SetUserData(w->parser, w);
    XML_SetElementHandler(w->parser, row_begin, row_end);
    XML_SetCharacterDataHandler(w->parser, row_text);
    XML_SetStartDoctypeDeclHandler(w->parser, row_doctype);
    if (XML_Parse(w->parser, xml->len > 0 ? xml->data : "", (int)xml->len, 1) ==
            XML_STATUS_ERROR &&
        w->st == MOEC_OK)
        st = moec_fail(w->err, MOEC_E_IO, MOEC_RULE_NONE,
                       "an answer is no XML: %s",
                       XML_ErrorString(XML_GetErrorCode(w->parser)));
    XML_ParserFree(w->parser);
    oom = w->text.oom;
    for (size_t i = 0; i < 4; i++) {
        oom = oom || w->field[i].oom;
        moec_buf_fini(&w->field[i]);
    }
    moec_buf_fini(&w->text);
    if (w->st != MOEC_OK)
        return w->st;
    return st == MOEC_OK && oom ? moec_fail_nomem(w->err, "an answer") : st;
}

typedef struct part_rows {
    moec_web_part *parts;
    size_t n_parts, last;
    bool any;
} part_rows;

/* A part without a SHA-256 tells nothing: it is sent again. */
static moec_status take_part(rows *w)
{
    part_rows *p = w->ctx;
    size_t number = (size_t)strtoull(field(w, 0), NULL, 10);
    unsigned char sum[48];
    moec_web_part *to;

    if (number > p->last)
        p->last = number;
    if (number == 0 || number > p->n_parts || w->field[2].len != 44 ||
        w->field[1].len >= MOEC_HTTP_ETAG_BYTES ||
        EVP_DecodeBlock(sum, (const unsigned char *)field(w, 2), 44) != 33)
        return MOEC_OK;
    to = &p->parts[number - 1];
    memcpy(to->sha256.b, sum, sizeof(to->sha256.b));
    memcpy(to->sum, field(w, 2), 45);
    memcpy(to->etag, field(w, 1), w->field[1].len + 1);
    to->bytes = strtoull(field(w, 3), NULL, 10);
    p->any = true;
    return MOEC_OK;
}

moec_status moec_web_take_parts(const moec_buf *xml, moec_web_part *parts,
                                size_t n_parts, size_t *last_out, bool *any_out,
                                bool *more_out, moec_error *err)
{
    part_rows p = {parts, n_parts, *last_out, *any_out};
    rows w = {.row = "Part",
              .names = {"PartNumber", "ETag", "ChecksumSHA256", "Size"},
              .take = take_part,
              .ctx = &p,
              .err = err};

    MOEC_TRY(read_rows(&w, xml));
    *last_out = p.last;
    *any_out = p.any;
    *more_out = w.more;
    return MOEC_OK;
}

typedef struct upload_rows {
    const char *key;
    moec_web_uploads *to;
} upload_rows;

static moec_status take_upload(rows *w)
{
    upload_rows *u = w->ctx;
    moec_web_uploads *to = u->to;

    if (strcmp(field(w, 0), u->key) != 0)
        return MOEC_OK;
    if (!MOEC_GROW(to->ids, to->n, to->cap))
        return moec_fail_nomem(w->err, "uploads");
    to->ids[to->n] = copy(&w->field[1]);
    return to->ids[to->n++] ? MOEC_OK : moec_fail_nomem(w->err, "uploads");
}

moec_status moec_web_take_uploads(const moec_buf *xml, const char *key,
                                  moec_web_uploads *out, moec_error *err)
{
    upload_rows u = {key, out};
    rows w = {.row = "Upload",
              .names = {"Key", "UploadId", NULL, NULL},
              .take = take_upload,
              .ctx = &u,
              .err = err};

    return read_rows(&w, xml);
}

void moec_web_uploads_fini(moec_web_uploads *u)
{
    for (size_t i = 0; i < u->n; i++)
        free(u->ids[i]);
    moec_free(u->ids);
}

char *moec_web_xml_text(const moec_buf *xml, const char *name)
{
    listing l = {.want = name};

    (void)parse(&l, xml, NULL);
    return l.found;
}
