/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A directory behind a URL: its files, and ranges of them. See web.h.
 *
 * S3 lists; a plain server does not: there the index names the shards, and a
 * HEAD each tells size and ETag. Either way the ETag that was seen first is
 * demanded of every later answer.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "converted.h"
#include "web_parts.h"

#define LIST_BYTES_MAX  (UINT64_C(64) << 20) /* of a page */
#define SMALL_BYTES_MAX (UINT64_C(64) << 20) /* of a file fetched whole */
#define READ_BYTES      (UINT64_C(16) << 20) /* of one request */

/* What a checkpoint has beside its shards, where nobody lists. */
static const char *const usual[] = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "vocab.json",
    "preprocessor_config.json",
    "model.safetensors",
    "README.md",
};

void moec_url_escape(moec_buf *out, const char *text, bool slash)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";

    for (; *text; text++) {
        if (strchr(plain, *text) || (slash && *text == '/'))
            moec_buf_append(out, text, 1);
        else
            moec_buf_printf(out, "%%%02X", (unsigned)(unsigned char)*text);
    }
}

moec_status moec_web_add(moec_web *r, const char *name, uint64_t bytes,
                         const char *etag, moec_error *err)
{
    moec_store_file f = {.bytes = bytes};

    if (!MOEC_GROW(r->files, r->n_files, r->cap_files))
        return moec_fail_nomem(err, "names of files");
    f.name = moec_arena_strdup(&r->arena, name, strlen(name));
    f.etag = etag ? moec_arena_strdup(&r->arena, etag, strlen(etag)) : NULL;
    if (!f.name || (etag && !f.etag))
        return moec_fail_nomem(err, "a name");
    r->files[r->n_files++] = f;
    return MOEC_OK;
}

/* ------------------------------------------------------------------ URLs */

char *moec_web_take_text(moec_buf *b)
{
    char *text = b->oom ? NULL : b->data;

    if (!text)
        moec_buf_fini(b);
    return text;
}

/* "s3://bucket/prefix": the bucket's URL, and the prefix with a slash. */
static moec_status read_s3_url(moec_web *r, const char *url, moec_error *err)
{
    const char *bucket = url + strlen("s3://");
    size_t n = strcspn(bucket, "/");
    const char *prefix = bucket + n + (bucket[n] == '/');
    const moec_web_opts *o = &r->http.opts;
    moec_buf base = {0}, dir = {0}, pre = {0};

    for (size_t i = 0; i < n; i++) {
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789.-_", bucket[i]))
            n = 0;
    }
    if (n < 3 || n > 63)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: a bucket has 3 to 63 of a-z, 0-9, '.' and '-': "
                         "s3://BUCKET/PREFIX",
                         url);
    if (o->endpoint)
        moec_buf_printf(&base, "%.*s/%.*s",
                        (int)(strlen(o->endpoint) -
                              (o->endpoint[0] &&
                               o->endpoint[strlen(o->endpoint) - 1] == '/')),
                        o->endpoint, (int)n, bucket);
    else
        moec_buf_printf(&base, "https://%.*s.s3.%s.amazonaws.com", (int)n,
                        bucket, o->region);
    moec_buf_puts(&pre, prefix);
    while (pre.len > 0 && pre.data[pre.len - 1] == '/')
        pre.data[--pre.len] = '\0';
    if (pre.len > 0)
        moec_buf_puts(&pre, "/");
    moec_buf_puts(&pre, "");
    moec_buf_printf(&dir, "%s/", base.data ? base.data : "");
    if (!pre.oom && pre.data)
        moec_url_escape(&dir, pre.data, true);
    r->prefix = moec_web_take_text(&pre);
    r->base = moec_web_take_text(&dir);
    r->bucket = moec_web_take_text(&base);
    if (!r->prefix || !r->base || !r->bucket)
        return moec_fail_nomem(err, "a URL");
    r->http.sign = o->key_id && o->secret;
    return MOEC_OK;
}

static moec_status read_url(moec_web *r, const char *url, moec_error *err)
{
    moec_buf base = {0}, given = {0};

    if (!moec_web_is_url(url))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' is no s3:// or https:// URL", url);
    moec_buf_puts(&given, url);
    r->url = moec_web_take_text(&given);
    if (!r->url)
        return moec_fail_nomem(err, "a URL");
    if (strncmp(url, "s3://", 5) == 0)
        return read_s3_url(r, url, err);
    if (strpbrk(url, "?#@ \n\r\t"))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s': a directory's URL has no user, query or "
                         "fragment",
                         url);
    moec_buf_puts(&base, url);
    if (base.len > 0 && base.data[base.len - 1] != '/')
        moec_buf_puts(&base, "/");
    r->base = moec_web_take_text(&base);
    return r->base ? MOEC_OK : moec_fail_nomem(err, "a URL");
}

char *moec_web_url_of(const moec_web *r, const char *name)
{
    moec_buf url = {0};

    moec_buf_puts(&url, r->base);
    moec_url_escape(&url, name, false);
    return moec_web_take_text(&url);
}

/* --------------------------------------------------------------- listing */

static moec_status list_s3(moec_web *r, moec_error *err)
{
    char *next = NULL;
    moec_status st;

    do {
        moec_buf url = {0}, xml = {0};
        moec_http_answer a;
        /* in the order of their names, as a signature wants them */
        moec_buf_printf(&url, "%s/?", r->bucket);
        if (next) {
            moec_buf_puts(&url, "continuation-token=");
            moec_url_escape(&url, next, false);
            moec_buf_puts(&url, "&");
        }
        moec_buf_puts(&url, "delimiter=%2F&list-type=2&prefix=");
        moec_url_escape(&url, r->prefix, false);
        free(next);
        next = NULL;
        moec_http_request q = {.method = "GET",
                               .url = url.data,
                               .text = &xml,
                               .text_max = LIST_BYTES_MAX};
        st = url.oom ? moec_fail_nomem(err, "a URL")
                     : moec_http_do(&r->http, &q, &a, err);
        if (st == MOEC_OK)
            st = moec_web_take_list(r, &xml, &next, err);
        moec_buf_fini(&url);
        moec_buf_fini(&xml);
    } while (st == MOEC_OK && next);
    free(next);
    return st;
}

/* Size and ETag of a file; absent ones are left out where `optional`. */
static moec_status head(moec_web *r, const char *name, bool optional,
                        moec_error *err)
{
    char *url = moec_web_url_of(r, name);
    moec_error why = MOEC_ERROR_INIT;
    moec_http_answer a;
    moec_http_request q = {.method = "HEAD", .url = url};
    moec_status st;

    if (!url)
        return moec_fail_nomem(err, "a URL");
    st = moec_http_do(&r->http, &q, &a, &why);
    moec_free(url);
    if (st == MOEC_E_FORMAT && optional)
        return MOEC_OK;
    if (st != MOEC_OK) {
        if (err)
            *err = why;
        return st;
    }
    if (!a.has_length)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                         "%s%s: the server does not say how long it is",
                         r->base, name);
    return moec_web_add(r, name, a.length, a.etag[0] ? a.etag : NULL, err);
}

/* Fetch a small file whole; FORMAT (I01) where it is absent. Listed with what
 * the answer says of it. */
static moec_status fetch(moec_web *r, const char *name, moec_buf *text,
                         moec_error *err)
{
    char *url = moec_web_url_of(r, name);
    moec_http_answer a;
    moec_http_request q = {
        .method = "GET", .url = url, .text = text, .text_max = SMALL_BYTES_MAX};
    moec_status st;

    if (!url)
        return moec_fail_nomem(err, "a URL");
    st = moec_http_do(&r->http, &q, &a, err);
    moec_free(url);
    if (st != MOEC_OK)
        return st;
    return moec_web_add(r, name, text->len, a.etag[0] ? a.etag : NULL, err);
}

/* Files of a conversion: its manifest names them. What is wrong with it the
 * opening says. */
static moec_status head_converted(moec_web *r, const moec_buf *text,
                                  moec_error *err)
{
    moec_manifest m;
    moec_status st;

    if (moec_manifest_decode(&m, text->len > 0 ? text->data : "", text->len,
                             NULL) != MOEC_OK)
        return MOEC_OK;
    st = head(r, MOEC_SLOTS_NAME, true, err);
    if (st == MOEC_OK)
        st = head(r, MOEC_SOURCES_NAME, true, err);
    if (st == MOEC_OK)
        st = head(r, MOEC_INDEX_NAME, true, err);
    for (size_t i = 0; st == MOEC_OK && i < m.n_files; i++)
        st = head(r, m.files[i].name, true, err);
    for (size_t i = 0; st == MOEC_OK && i < m.n_copied; i++)
        if (strcmp(m.copied[i].name, MOEC_INDEX_NAME) != 0)
            st = head(r, m.copied[i].name, true, err);
    moec_manifest_fini(&m);
    return st;
}

/* Shards that the index names, each once. */
static moec_status head_shards(moec_web *r, const moec_buf *index,
                               moec_error *err)
{
    bool starved;
    json_t *root = moec_json_load(index->data, index->len, 0, NULL, &starved);
    json_t *map = json_object_get(root, "weight_map");
    json_t *seen = json_object();
    const char *tensor;
    json_t *file;
    moec_status st = MOEC_OK;

    if (!seen || starved)
        st = moec_fail_nomem(err, "the index");
    json_object_foreach (map, tensor, file) {
        const char *name = json_string_value(file);
        if (st != MOEC_OK || !name || json_object_get(seen, name) ||
            !moec_plain_name(name, strlen(name)))
            continue; /* what is wrong here the opening says */
        json_object_set_new(seen, name, json_true());
        st = head(r, name, true, err);
    }
    json_decref(seen);
    json_decref(root);
    return st;
}

static moec_status list_usual(moec_web *r, moec_error *err)
{
    moec_buf text = {0};
    moec_error why = MOEC_ERROR_INIT;
    moec_status st = fetch(r, MOEC_MANIFEST_NAME, &text, &why);
    bool converted = st == MOEC_OK;

    if (converted) {
        st = head_converted(r, &text, &why);
    } else if (st == MOEC_E_FORMAT) { /* no conversion */
        why = (moec_error)MOEC_ERROR_INIT;
        st = fetch(r, MOEC_INDEX_NAME, &text, &why);
        if (st == MOEC_OK && text.len > 0)
            st = head_shards(r, &text, &why);
        else if (st == MOEC_E_FORMAT)
            st = MOEC_OK; /* one file, perhaps */
    }
    for (size_t i = 0;
         st == MOEC_OK && !converted && i < sizeof(usual) / sizeof(*usual); i++)
        st = head(r, usual[i], true, &why);
    if (st != MOEC_OK && err)
        *err = why;
    moec_buf_fini(&text);
    return st;
}

/* --------------------------------------------------------------- reading */

static moec_status read_at(void *ctx, size_t file, uint64_t off, void *buf,
                           size_t n, moec_error *err)
{
    moec_web *r = ctx;
    const moec_store_file *f = &r->files[file];
    char *url = moec_web_url_of(r, f->name);
    moec_status st = url ? MOEC_OK : moec_fail_nomem(err, "a URL");

    while (st == MOEC_OK && n > 0) {
        size_t k = (size_t)moec_min_u64(n, READ_BYTES);
        moec_http_answer a;
        moec_http_request q = {.method = "GET",
                               .url = url,
                               .off = off,
                               .n = k,
                               .if_match = f->etag,
                               .into = buf};
        st = moec_http_do(&r->http, &q, &a, err);
        /* not every server heeds If-Match */
        if (st == MOEC_OK && f->etag && a.etag[0] &&
            strcmp(f->etag, a.etag) != 0)
            st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                           "%s changed since it was opened: it was %s and is "
                           "%s",
                           url, f->etag, a.etag);
        buf = (char *)buf + k;
        off += k;
        n -= k;
    }
    moec_free(url);
    return st;
}

/* What the server says of a file now. */
static moec_status ask(moec_web *r, size_t file, moec_http_answer *a,
                       moec_error *err)
{
    char *url = moec_web_url_of(r, r->files[file].name);
    moec_http_request q = {.method = "HEAD", .url = url};
    moec_status st;

    if (!url)
        return moec_fail_nomem(err, "a URL");
    st = moec_http_do(&r->http, &q, a, err);
    moec_free(url);
    return st;
}

static moec_status look_again(void *ctx, size_t file, moec_store_file *now,
                              moec_error *err)
{
    moec_web *r = ctx;
    moec_http_answer a;

    MOEC_TRY(ask(r, file, &a, err));
    *now = r->files[file]; /* an ETag that is equal is the same pointer */
    now->bytes = a.length;
    if (now->etag && strcmp(now->etag, a.etag) != 0)
        now->etag = "another";
    return MOEC_OK;
}

moec_status moec_web_has(moec_web *r, size_t i, uint64_t bytes,
                         const char *digest, bool *yes_out, moec_error *err)
{
    moec_http_answer a;

    MOEC_TRY(ask(r, i, &a, err));
    *yes_out = a.length == bytes && strcmp(a.digest, digest) == 0;
    return MOEC_OK;
}

/* ------------------------------------------------------------- open, close */

static moec_status make(moec_web **out, const char *url,
                        const moec_web_opts *opts, moec_error *err)
{
    moec_web *r = moec_calloc(1, sizeof(*r));
    moec_status st;

    if (!r)
        return moec_fail_nomem(err, "a remote directory");
    st = moec_http_init(&r->http, opts, err);
    if (st != MOEC_OK) {
        moec_free(r);
        return st;
    }
    st = read_url(r, url, err);
    if (st != MOEC_OK) {
        moec_web_close(r);
        return st;
    }
    *out = r;
    return MOEC_OK;
}

/* Give `r` to the caller, or close it. */
static moec_status give(moec_web **out, moec_web *r, moec_status st)
{
    if (st != MOEC_OK) {
        moec_web_close(r);
        return st;
    }
    r->store = (moec_store){.struct_bytes = sizeof(r->store),
                            .name = r->url,
                            .files = r->files,
                            .n_files = r->n_files,
                            .read_at = read_at,
                            .stat = look_again,
                            .ctx = r};
    *out = r;
    return MOEC_OK;
}

moec_status moec_web_open(moec_web **out, const char *url,
                          const moec_web_opts *opts, moec_error *err)
{
    moec_web *r = NULL;
    moec_status st;

    MOEC_TRY(make(&r, url, opts, err));
    st = r->bucket ? list_s3(r, err) : list_usual(r, err);
    if (st == MOEC_OK && r->n_files == 0)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                       "%s: nothing is there", url);
    return give(out, r, st);
}

moec_status moec_web_create(moec_web **out, const char *url,
                            const moec_web_opts *opts, moec_error *err)
{
    moec_web *r = NULL;

    MOEC_TRY(make(&r, url, opts, err));
    return give(out, r,
                r->bucket ? list_s3(r, err)
                          : moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                                      "%s: only s3:// can be written", url));
}

void moec_web_close(moec_web *r)
{
    if (!r)
        return;
    moec_http_fini(&r->http);
    moec_arena_fini(&r->arena);
    moec_free(r->files);
    moec_free(r->url);
    moec_free(r->base);
    moec_free(r->bucket);
    moec_free(r->prefix);
    moec_free(r);
}

const moec_store *moec_web_store(const moec_web *r)
{
    return &r->store;
}

size_t moec_web_find(const moec_web *r, const char *name)
{
    for (size_t i = 0; i < r->n_files; i++) {
        if (strcmp(r->files[i].name, name) == 0)
            return i;
    }
    return SIZE_MAX;
}

moec_web_stats moec_web_stats_of(const moec_web *r)
{
    return r->http.stats;
}
