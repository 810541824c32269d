/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What S3 answers in XML, read by expat. Names of objects are any bytes: only
 * those that are plain file names directly below the prefix are taken. Depth
 * and entities do not matter: expat expands none of a document without a
 * DTD, and one with a DTD is refused.
 */

#include <expat.h>
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

char *moec_web_xml_text(const moec_buf *xml, const char *name)
{
    listing l = {.want = name};

    (void)parse(&l, xml, NULL);
    return l.found;
}
