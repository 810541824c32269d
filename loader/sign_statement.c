/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The in-toto statement of a signature: which file has which SHA-256.
 * Read: predicate v1.0 over whole files or over shards of them, and the one of
 * model-signing 0.2, whose files are the subjects. Refused (S05): paths that
 * are not plain and relative, a file twice, shards that do not tile their
 * file, a root digest that the listed digests do not give, other digests than
 * SHA-256 (UNSUPPORTED).
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "sign_parts.h"

#define DOC_NAME         "the signed statement"
#define STATEMENT_TYPE   "https://in-toto.io/Statement/v1"
#define PREDICATE        "https://model_signing/signature/v1.0"
#define PREDICATE_COMPAT "https://model_signing/Digests/v0.1"

static const moec_json_doc doc = {
    .name = DOC_NAME,
    .other = MOEC_RULE_S05,
    .missing = MOEC_RULE_S05,
    .integer = MOEC_RULE_S05,
    .number = MOEC_RULE_S05,
    .string = MOEC_RULE_S05,
};

/* -------------------------------------------------------------- paths */

int moec_sign_path_cmp(const char *a, const char *b)
{
    for (; *a && *a == *b; a++)
        b++;
    /* The end of a part is before any letter: '/' counts as least. */
    unsigned x = *a == '/' ? 1 : *a ? (unsigned char)*a + 1u : 0;
    unsigned y = *b == '/' ? 1 : *b ? (unsigned char)*b + 1u : 0;
    return x < y ? -1 : x > y;
}

bool moec_sign_path_ok(const char *path)
{
    size_t bad;

    if (!moec_utf8_valid(path, strlen(path), &bad))
        return false;
    for (;;) {
        size_t n = strcspn(path, "/");
        if (n == 0 || (n == 1 && path[0] == '.') ||
            (n == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        if (path[n] == '\0')
            return true;
        path += n + 1;
    }
}

bool moec_sign_path_under(const char *path, const char *below)
{
    size_t n = strlen(below);

    if (strcmp(below, ".") == 0)
        return true;
    while (n > 0 && below[n - 1] == '/')
        n--;
    return n > 0 && strncmp(path, below, n) == 0 &&
           (path[n] == '\0' || path[n] == '/');
}

static int item_cmp(const void *pa, const void *pb)
{
    const moec_sign_item *a = pa, *b = pb;
    int c = moec_sign_path_cmp(a->path, b->path);

    return c != 0 ? c : a->begin < b->begin ? -1 : a->begin > b->begin;
}

const moec_sign_item *moec_statement_find(const moec_statement *s,
                                          const char *path, size_t *n_out)
{
    size_t low = 0, high = s->n_items, n = 0;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (moec_sign_path_cmp(s->items[mid].path, path) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    while (low + n < s->n_items && strcmp(s->items[low + n].path, path) == 0)
        n++;
    *n_out = n;
    return s->items + low;
}

/* ------------------------------------------------------------- reading */

typedef struct reader {
    moec_statement *s;
    moec_error *err;
} reader;

static moec_status no_memory(moec_error *err)
{
    return moec_fail_nomem(err, DOC_NAME);
}

/* "12:34" behind the path of a shard. */
static bool take_number(const char **p, uint64_t *out)
{
    uint64_t v = 0;
    const char *s = *p;

    if (*s < '0' || *s > '9' || (*s == '0' && s[1] >= '0' && s[1] <= '9'))
        return false;
    for (; *s >= '0' && *s <= '9'; s++)
        if (!moec_mul_u64(v, 10, &v) ||
            !moec_add_u64(v, (uint64_t)(*s - '0'), &v))
            return false;
    *p = s;
    *out = v;
    return true;
}

/* Name to path and range. */
static moec_status set_name(reader *r, const moec_json *v, moec_sign_item *item)
{
    const char *s = NULL, *colon, *p;
    char *path;

    MOEC_TRY(moec_json_as_string(v, &s, r->err));
    item->name = moec_arena_strdup(&r->s->arena, s, strlen(s));
    if (!item->name)
        return no_memory(r->err);
    item->path = item->name;
    item->end = UINT64_MAX;
    if (r->s->shard_bytes) {
        colon = strchr(s, ':');
        p = colon ? colon + 1 : "";
        if (!take_number(&p, &item->begin) || *p++ != ':' ||
            !take_number(&p, &item->end) || *p || item->end <= item->begin)
            return moec_json_fail(v, MOEC_RULE_S05, r->err,
                                  "'%s' is not PATH:BEGIN:END", s);
        path = moec_arena_strdup(&r->s->arena, s, (size_t)(colon - s));
        if (!path)
            return no_memory(r->err);
        item->path = path;
    }
    if (!moec_sign_path_ok(item->path))
        return moec_json_fail(v, MOEC_RULE_S05, r->err,
                              "'%s' is not a plain relative path", item->path);
    return MOEC_OK;
}

static moec_status read_item(reader *r, const moec_json *v, const char *algo,
                             moec_sign_item *item)
{
    moec_json name = moec_json_member(v, "name");
    const char *said = NULL;

    MOEC_TRY(moec_json_want_object(v, r->err));
    MOEC_TRY(set_name(r, &name, item));
    MOEC_TRY(moec_json_get_string(v, "algorithm", &said, r->err));
    if (strcmp(said, algo) != 0)
        return moec_json_fail(v, MOEC_RULE_S05, r->err,
                              "algorithm is '%s', must be %s", said, algo);
    return moec_json_get_hex(v, "digest", item->sha256.b,
                             sizeof(item->sha256.b), r->err);
}

static moec_status read_ignored(reader *r, const moec_json *serialization)
{
    moec_json list = moec_json_member(serialization, "ignore_paths");
    size_t n = moec_json_len(&list);

    if (!list.value)
        return MOEC_OK;
    MOEC_TRY(moec_json_want_array(&list, r->err));
    r->s->ignored = moec_arena_alloc(&r->s->arena, (n + 1) * sizeof(char *),
                                     sizeof(char *));
    if (!r->s->ignored)
        return no_memory(r->err);
    for (size_t i = 0; i < n; i++) {
        moec_json v = moec_json_item(&list, i);
        const char *s = NULL;

        MOEC_TRY(moec_json_as_string(&v, &s, r->err));
        r->s->ignored[i] = moec_arena_strdup(&r->s->arena, s, strlen(s));
        if (!r->s->ignored[i])
            return no_memory(r->err);
        r->s->n_ignored = i + 1;
    }
    return MOEC_OK;
}

/* Protobuf's Struct knows doubles only: 1000000000.0 is an integer there. */
static moec_status read_shard_size(reader *r, const moec_json *serialization)
{
    double d = 0;

    MOEC_TRY(moec_json_get_double(serialization, "shard_size", &d, r->err));
    if (!(d >= 1 && d <= 9007199254740992.0) || (double)(uint64_t)d < d)
        return moec_json_fail(serialization, MOEC_RULE_S05, r->err,
                              "shard_size is not a number of bytes");
    r->s->shard_bytes = (uint64_t)d;
    return MOEC_OK;
}

static moec_status read_serialization(reader *r, const moec_json *predicate)
{
    const char *method = NULL, *hash = NULL;
    moec_json s;

    MOEC_TRY(moec_json_get_object(predicate, "serialization", &s, r->err));
    MOEC_TRY(moec_json_get_string(&s, "method", &method, r->err));
    MOEC_TRY(moec_json_get_string(&s, "hash_type", &hash, r->err));
    if (strcmp(hash, "sha256") != 0)
        return moec_fail(r->err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         DOC_NAME ": digests are %s; SHA-256 can be checked",
                         hash);
    if (strcmp(method, "shards") == 0)
        MOEC_TRY(read_shard_size(r, &s));
    else if (strcmp(method, "files") != 0)
        return moec_json_fail(&s, MOEC_RULE_S05, r->err,
                              "method is '%s', must be files or shards",
                              method);
    return read_ignored(r, &s);
}

static moec_status make_items(reader *r, size_t n)
{
    size_t bytes;

    if (__builtin_mul_overflow(n + 1, sizeof(*r->s->items), &bytes))
        return no_memory(r->err);
    r->s->items =
        moec_arena_alloc(&r->s->arena, bytes, _Alignof(moec_sign_item));
    if (!r->s->items)
        return no_memory(r->err);
    memset(r->s->items, 0, bytes);
    return MOEC_OK;
}

/* The one subject's digest is that of all digests in a row, as listed. */
static moec_status check_root(reader *r, const moec_json *top)
{
    moec_json list, subject, digest;
    moec_hasher *h = NULL;
    moec_sha256 said, is;
    moec_status st = MOEC_OK;

    MOEC_TRY(moec_json_get_array(top, "subject", &list, r->err));
    if (moec_json_len(&list) != 1)
        return moec_json_fail(&list, MOEC_RULE_S05, r->err,
                              "%zu subjects, must be one",
                              moec_json_len(&list));
    subject = moec_json_item(&list, 0);
    MOEC_TRY(moec_json_get_object(&subject, "digest", &digest, r->err));
    MOEC_TRY(
        moec_json_get_hex(&digest, "sha256", said.b, sizeof(said.b), r->err));
    MOEC_TRY(moec_hasher_create(&h, r->err));
    for (size_t i = 0; i < r->s->n_items && st == MOEC_OK; i++)
        st = moec_hasher_update(h, r->s->items[i].sha256.b, sizeof(said.b),
                                r->err);
    if (st != MOEC_OK) {
        moec_hasher_destroy(h);
        return st;
    }
    MOEC_TRY(moec_hasher_final(h, &is, r->err));
    if (memcmp(said.b, is.b, sizeof(is.b)) != 0)
        return moec_json_fail(&list, MOEC_RULE_S05, r->err,
                              "the digest is not that of the resources");
    return MOEC_OK;
}

static moec_status read_v1(reader *r, const moec_json *top)
{
    moec_json predicate, list;
    char algo[48] = "sha256";
    size_t n;

    MOEC_TRY(moec_json_get_object(top, "predicate", &predicate, r->err));
    MOEC_TRY(read_serialization(r, &predicate));
    if (r->s->shard_bytes)
        (void)snprintf(algo, sizeof(algo), "sha256-sharded-%" PRIu64,
                       r->s->shard_bytes);
    MOEC_TRY(moec_json_get_array(&predicate, "resources", &list, r->err));
    n = moec_json_len(&list);
    MOEC_TRY(make_items(r, n));
    for (size_t i = 0; i < n; i++) {
        moec_json v = moec_json_item(&list, i);
        MOEC_TRY(read_item(r, &v, algo, &r->s->items[i]));
    }
    r->s->n_items = n;
    return check_root(r, top);
}

static moec_status read_compat(reader *r, const moec_json *top)
{
    moec_json list;
    size_t n;

    MOEC_TRY(moec_json_get_array(top, "subject", &list, r->err));
    n = moec_json_len(&list);
    MOEC_TRY(make_items(r, n));
    for (size_t i = 0; i < n; i++) {
        moec_sign_item *item = &r->s->items[i];
        moec_json v = moec_json_item(&list, i), name, digest;

        MOEC_TRY(moec_json_want_object(&v, r->err));
        name = moec_json_member(&v, "name");
        MOEC_TRY(set_name(r, &name, item));
        MOEC_TRY(moec_json_get_object(&v, "digest", &digest, r->err));
        MOEC_TRY(moec_json_get_hex(&digest, "sha256", item->sha256.b,
                                   sizeof(item->sha256.b), r->err));
    }
    r->s->n_items = n;
    return MOEC_OK;
}

/* Sort, and refuse a file twice and shards with gaps: what a gap holds would
 * be nobody's word. A shard is as long as the statement says but the last. */
static moec_status order_items(reader *r)
{
    moec_statement *s = r->s;

    if (s->n_items > 1)
        qsort(s->items, s->n_items, sizeof(*s->items), item_cmp);
    for (size_t i = 0; i < s->n_items; i++) {
        const moec_sign_item *a = i ? &s->items[i - 1] : NULL;
        const moec_sign_item *b = &s->items[i];
        bool same = a && strcmp(a->path, b->path) == 0;
        uint64_t begin = same ? a->end : 0;

        if (same && !s->shard_bytes)
            return moec_fail(r->err, MOEC_E_FORMAT, MOEC_RULE_S05,
                             DOC_NAME ": '%s' is there twice", b->path);
        if (s->shard_bytes &&
            (b->begin != begin || b->end - b->begin > s->shard_bytes ||
             (same && a->end - a->begin != s->shard_bytes)))
            return moec_fail(r->err, MOEC_E_FORMAT, MOEC_RULE_S05,
                             DOC_NAME ": '%s' does not follow on byte %" PRIu64,
                             b->name, begin);
    }
    return MOEC_OK;
}

static moec_status read_top(reader *r, const moec_json *top)
{
    const char *type = NULL, *predicate = NULL;

    MOEC_TRY(moec_json_want_object(top, r->err));
    MOEC_TRY(moec_json_get_string(top, "_type", &type, r->err));
    if (strcmp(type, STATEMENT_TYPE) != 0)
        return moec_json_fail(top, MOEC_RULE_S05, r->err,
                              "_type is '%s', must be " STATEMENT_TYPE, type);
    MOEC_TRY(moec_json_get_string(top, "predicateType", &predicate, r->err));
    if (strcmp(predicate, PREDICATE) == 0)
        MOEC_TRY(read_v1(r, top));
    else if (strcmp(predicate, PREDICATE_COMPAT) == 0)
        MOEC_TRY(read_compat(r, top));
    else
        return moec_json_fail(top, MOEC_RULE_S05, r->err,
                              "predicateType is '%s', must be " PREDICATE,
                              predicate);
    return order_items(r);
}

moec_status moec_statement_decode(moec_statement *out, const char *text,
                                  size_t n, moec_error *err)
{
    moec_statement s = {0};
    reader r = {&s, err};
    json_t *tree = NULL;
    moec_json top;
    moec_status st;

    MOEC_TRY(moec_json_parse(text, n, DOC_NAME, MOEC_RULE_S05, MOEC_RULE_S05,
                             &tree, err));
    top = moec_json_root(tree, &doc);
    st = read_top(&r, &top);
    json_decref(tree);
    if (st != MOEC_OK) {
        moec_statement_fini(&s);
        return st;
    }
    *out = s;
    return MOEC_OK;
}

void moec_statement_fini(moec_statement *s)
{
    moec_arena_fini(&s->arena);
    *s = (moec_statement){0};
}

/* ------------------------------------------------------------- writing */

static void put_string(moec_buf *out, const char *s)
{
    moec_buf_json_string(out, s, strlen(s));
}

static void put_items(const moec_statement *s, moec_buf *out)
{
    char hex[65];

    for (size_t i = 0; i < s->n_items; i++) {
        moec_hex(s->items[i].sha256.b, 32, hex);
        moec_buf_puts(out, i ? ",\n      {\n        \"name\": "
                             : "\n      {\n        \"name\": ");
        put_string(out, s->items[i].name);
        moec_buf_printf(out,
                        ",\n        \"algorithm\": \"sha256\",\n"
                        "        \"digest\": \"%s\"\n      }",
                        hex);
    }
}

static moec_status root_of(const moec_statement *s, moec_sha256 *out,
                           moec_error *err)
{
    moec_buf all = {0};
    moec_status st;

    for (size_t i = 0; i < s->n_items; i++)
        moec_buf_append(&all, s->items[i].sha256.b, 32);
    st = all.oom ? no_memory(err) : moec_sha256_of(all.data, all.len, out, err);
    moec_buf_fini(&all);
    return st;
}

moec_status moec_statement_encode(const moec_statement *s,
                                  const char *model_name, moec_buf *out,
                                  moec_error *err)
{
    moec_sha256 root;
    char hex[65];

    MOEC_TRY(root_of(s, &root, err));
    moec_hex(root.b, 32, hex);
    moec_buf_puts(out, "{\n  \"_type\": \"" STATEMENT_TYPE "\",\n"
                       "  \"subject\": [\n    {\n      \"name\": ");
    put_string(out, model_name);
    moec_buf_printf(out,
                    ",\n      \"digest\": {\n        \"sha256\": \"%s\"\n"
                    "      }\n    }\n  ],\n"
                    "  \"predicateType\": \"" PREDICATE "\",\n"
                    "  \"predicate\": {\n    \"resources\": [",
                    hex);
    put_items(s, out);
    moec_buf_puts(out, "\n    ],\n    \"serialization\": {\n"
                       "      \"method\": \"files\",\n"
                       "      \"ignore_paths\": [");
    for (size_t i = 0; i < s->n_ignored; i++) {
        moec_buf_puts(out, i ? ",\n        " : "\n        ");
        put_string(out, s->ignored[i]);
    }
    moec_buf_puts(out, "\n      ],\n      \"hash_type\": \"sha256\",\n"
                       "      \"allow_symlinks\": false\n    }\n  }\n}");
    return out->oom ? no_memory(err) : MOEC_OK;
}
