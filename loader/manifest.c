/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manifest.json read: what a converted checkpoint is and where it came from.
 *
 * Refused (M01; M02 for another version) are keys, types and numbers that the
 * table does not allow, file names that lead out of the directory or stand
 * there twice, and topologies whose numbers disagree.
 */

#include <inttypes.h>
#include <string.h>

#include <moec/loader.h>

#include "base/base.h"
#include "base/json.h"
#include "manifest_fields.h"

static void *at(void *base, size_t off)
{
    return (char *)base + off;
}

typedef struct reader {
    moec_manifest *m;
    bool explicit_rows; /* what placement.kind says */
    moec_error *err;
} reader;

static const moec_json_doc doc = {
    .name = MOEC_MANIFEST_NAME,
    .other = MOEC_RULE_M01,
    .missing = MOEC_RULE_M01,
    .integer = MOEC_RULE_M01,
    .number = MOEC_RULE_M01,
    .string = MOEC_RULE_M01,
};

/* Fields in one object, at most; `model` has 19. */
enum { KEYS_MAX = 32 };

static moec_status get_text(reader *r, const moec_mf_field *f,
                            const moec_json *v, const char **out)
{
    const char *s;

    MOEC_TRY(moec_json_as_string(v, &s, r->err));
    if (f->kind == MOEC_MF_NAME && !moec_plain_name(s, strlen(s)))
        return moec_json_fail(v, MOEC_RULE_M01, r->err,
                              "'%s' is not a plain file name", s);
    s = moec_arena_strdup(&r->m->arena, s, strlen(s));
    if (!s)
        return moec_fail_nomem(r->err, "texts of " MOEC_MANIFEST_NAME);
    *out = s;
    return MOEC_OK;
}

/* Position of the string among `words` (which ends with NULL). */
static moec_status get_word(reader *r, const char *const *words,
                            const moec_json *v, size_t *out)
{
    const char *s;

    MOEC_TRY(moec_json_as_string(v, &s, r->err));
    for (size_t i = 0; words[i]; i++) {
        if (strcmp(s, words[i]) == 0) {
            *out = i;
            return MOEC_OK;
        }
    }
    return moec_json_fail(v, MOEC_RULE_M01, r->err,
                          "'%s' is none of the words that may stand here", s);
}

static moec_status get_u64(reader *r, const moec_mf_field *f,
                           const moec_json *v, uint64_t max, uint64_t *out)
{
    uint64_t n;

    MOEC_TRY(moec_json_as_u64(v, max, &n, r->err));
    if (n < f->min)
        return moec_json_fail(v, MOEC_RULE_M01, r->err,
                              "%" PRIu64 " is below %" PRIu64, n, f->min);
    *out = n;
    return MOEC_OK;
}

static moec_status get_u32(reader *r, const moec_mf_field *f,
                           const moec_json *v, uint32_t *out)
{
    uint64_t n = 0;

    MOEC_TRY(get_u64(r, f, v, UINT32_MAX, &n));
    if (f->kind == MOEC_MF_VERSION && n != MOEC_FORMAT_VERSION)
        return moec_json_fail(v, MOEC_RULE_M02, r->err,
                              "%" PRIu64 ", this program reads %d", n,
                              MOEC_FORMAT_VERSION);
    *out = (uint32_t)n;
    return MOEC_OK;
}

static moec_status get_flag(reader *r, const moec_mf_field *f,
                            const moec_json *v, void *p)
{
    bool flag;

    if (f->kind == MOEC_MF_TRISTATE && moec_json_is(v->value, JSON_NULL)) {
        *(int *)p = -1;
        return MOEC_OK;
    }
    MOEC_TRY(moec_json_as_bool(v, &flag, r->err));
    if (f->kind == MOEC_MF_TRISTATE)
        *(int *)p = flag;
    else
        *(bool *)p = flag;
    return MOEC_OK;
}

/* The three enums that stand in the file as words. */
static moec_status get_enum(reader *r, const moec_mf_field *f,
                            const moec_json *v, void *p)
{
    static const char *const trivials[] = {"trivial", "explicit", NULL};
    const char *s;
    size_t i = 0;

    if (f->kind == MOEC_MF_TRIVIAL) {
        MOEC_TRY(get_word(r, trivials, v, &i));
        r->explicit_rows = i == 1;
        return MOEC_OK;
    }
    if (f->kind == MOEC_MF_SPACE) {
        MOEC_TRY(get_word(r, moec_mf_spaces, v, &i));
        *(moec_space *)p = i == 1 ? MOEC_SPACE_MTP : MOEC_SPACE_MAIN;
        return MOEC_OK;
    }
    MOEC_TRY(moec_json_as_string(v, &s, r->err));
    *(moec_dtype *)p = moec_dtype_parse(s, strlen(s));
    if (*(moec_dtype *)p == MOEC_DTYPE_NONE)
        return moec_json_fail(v, MOEC_RULE_M01, r->err, "'%s' is no dtype", s);
    return MOEC_OK;
}

static moec_status get_schema(reader *r, const moec_json *v)
{
    const char *s;

    MOEC_TRY(moec_json_as_string(v, &s, r->err));
    if (strcmp(s, MOEC_MANIFEST_SCHEMA) != 0)
        return moec_json_fail(v, MOEC_RULE_M02, r->err,
                              "'%s', this program reads '%s'", s,
                              MOEC_MANIFEST_SCHEMA);
    return MOEC_OK;
}

static moec_status get_row(reader *r, const moec_json *row, int32_t *out)
{
    int64_t min = r->m->allow_empty ? MOEC_LOGICAL_EMPTY : 0;
    int64_t max = (int64_t)r->m->n_experts - 1;

    for (size_t p = 0; p < r->m->n_physical; p++) {
        moec_json v = moec_json_item(row, p);
        int64_t id;

        MOEC_TRY(moec_json_as_i64(&v, min, max, &id, r->err));
        out[p] = (int32_t)id;
    }
    return MOEC_OK;
}

/* Model, topology and options have been read. Memory is taken row by row's
 * worth of text: a manifest cannot ask for more than it holds. */
static moec_status get_rows(reader *r, const moec_json *v, const int32_t **out)
{
    uint64_t ids, bytes;
    int32_t *p2l;
    size_t n = moec_json_len(v);

    if (!r->explicit_rows)
        return moec_json_fail(v, MOEC_RULE_M01, r->err,
                              "there are rows, but the kind is 'trivial'");
    MOEC_TRY(moec_json_want_array(v, r->err));
    if (n != r->m->n_mf_layers)
        return moec_json_fail(v, MOEC_RULE_M01, r->err,
                              "%zu rows for %zu layers", n, r->m->n_mf_layers);
    for (size_t i = 0; i < n; i++) {
        moec_json row = moec_json_item(v, i);

        MOEC_TRY(moec_json_want_array(&row, r->err));
        if (moec_json_len(&row) != r->m->n_physical)
            return moec_json_fail(&row, MOEC_RULE_M01, r->err,
                                  "%zu ids for %" PRIu32 " slots",
                                  moec_json_len(&row), r->m->n_physical);
    }
    if (!moec_mul_u64(n, r->m->n_physical, &ids) ||
        !moec_mul_u64(ids, sizeof(*p2l), &bytes))
        return moec_json_fail(v, MOEC_RULE_M01, r->err, "too many ids");
    p2l = moec_arena_alloc(&r->m->arena, (size_t)bytes, sizeof(*p2l));
    if (!p2l)
        return moec_fail_nomem(r->err, "the placement");
    for (size_t i = 0; i < n; i++) {
        moec_json row = moec_json_item(v, i);

        MOEC_TRY(get_row(r, &row, p2l + i * r->m->n_physical));
    }
    *out = p2l;
    return MOEC_OK;
}

static moec_status get_object(reader *r, const moec_mf_table *t,
                              const moec_json *v, void *base);

/* NOLINTNEXTLINE(misc-no-recursion): ends with the tables, two deep */
static moec_status get_array(reader *r, const moec_mf_field *f,
                             const moec_json *v, void *base)
{
    size_t n = moec_json_len(v);
    uint64_t bytes;
    char *elements;

    MOEC_TRY(moec_json_want_array(v, r->err));
    if (!moec_mul_u64(n, f->bytes, &bytes))
        return moec_json_fail(v, MOEC_RULE_M01, r->err, "too many items");
    elements =
        moec_arena_alloc(&r->m->arena, (size_t)bytes, _Alignof(max_align_t));
    if (!elements)
        return moec_fail_nomem(r->err, "arrays of " MOEC_MANIFEST_NAME);
    memset(elements, 0, (size_t)bytes);
    for (size_t i = 0; i < n; i++) {
        moec_json item = moec_json_item(v, i);
        void *p = elements + i * f->bytes;

        if (f->kind == MOEC_MF_TEXTS)
            MOEC_TRY(get_text(r, f, &item, p));
        else
            MOEC_TRY(get_object(r, f->sub, &item, p));
    }
    *(void **)at(base, f->off) = elements;
    *(size_t *)at(base, f->count_off) = n;
    return MOEC_OK;
}

/* NOLINTNEXTLINE(misc-no-recursion): ends with the tables, two deep */
static moec_status get_field(reader *r, const moec_mf_field *f,
                             const moec_json *v, void *base)
{
    void *p = at(base, f->off);
    size_t word;

    if ((f->flags & MOEC_MF_NULL_OK) != 0 && moec_json_is(v->value, JSON_NULL))
        return MOEC_OK;
    switch (f->kind) {
    case MOEC_MF_SCHEMA:
        return get_schema(r, v);
    case MOEC_MF_TEXT:
    case MOEC_MF_NAME:
        return get_text(r, f, v, p);
    case MOEC_MF_WORD:
        MOEC_TRY(get_word(r, f->words, v, &word));
        *(const char **)p = f->words[word];
        return MOEC_OK;
    case MOEC_MF_U32:
    case MOEC_MF_VERSION:
        return get_u32(r, f, v, p);
    case MOEC_MF_U64:
        return get_u64(r, f, v, MOEC_MF_INTEGER_MAX, p);
    case MOEC_MF_BOOL:
    case MOEC_MF_TRISTATE:
        return get_flag(r, f, v, p);
    case MOEC_MF_REAL:
        return moec_json_as_double(v, p, r->err);
    case MOEC_MF_DTYPE:
    case MOEC_MF_SPACE:
    case MOEC_MF_TRIVIAL:
        return get_enum(r, f, v, p);
    case MOEC_MF_SHA256:
        return moec_json_as_hex(v, p, sizeof(moec_sha256), r->err);
    case MOEC_MF_OBJECT:
        return get_object(r, f->sub, v, p);
    case MOEC_MF_OBJECTS:
    case MOEC_MF_TEXTS:
        return get_array(r, f, v, base);
    case MOEC_MF_ROWS:
        return get_rows(r, v, p);
    }
    return MOEC_OK;
}

/* The keys that are known first: of another version of the format the schema
 * is to be named, not the first key that this program does not know. */
/* NOLINTNEXTLINE(misc-no-recursion): ends with the tables, two deep */
static moec_status get_object(reader *r, const moec_mf_table *t,
                              const moec_json *v, void *base)
{
    const char *keys[KEYS_MAX];
    size_t n = 0;

    MOEC_TRY(moec_json_want_object(v, r->err));
    for (; n < t->n && n < KEYS_MAX; n++) {
        const moec_mf_field *f = &t->fields[n];
        /* Not moec_json_member: null is not absent here. */
        moec_json member = {.value = json_object_get(v->value, f->key),
                            .doc = v->doc,
                            .parent = v,
                            .key = f->key};

        keys[n] = f->key;
        if (member.value)
            MOEC_TRY(get_field(r, f, &member, base));
        else if ((f->flags & MOEC_MF_ABSENT_OK) == 0)
            return moec_json_fail(&member, MOEC_RULE_M01, r->err, "is missing");
    }
    return moec_json_only_keys(v, keys, n, r->err);
}

/* ------------------------------------------- what fields say of each other */

static moec_status check_topology(const moec_manifest *m, moec_error *err)
{
    if ((uint64_t)m->n_local * m->n_ranks != m->n_physical)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME ": topology: %" PRIu32
                                            " ranks of %" PRIu32
                                            " slots are not %" PRIu32 " slots",
                         m->n_ranks, m->n_local, m->n_physical);
    if (m->n_physical < m->n_experts)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME ": topology: %" PRIu32
                                            " slots for %" PRIu32 " experts",
                         m->n_physical, m->n_experts);
    if (m->top_k > m->n_experts)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME ": model: %" PRIu32 " of %" PRIu32
                                            " experts a token",
                         m->top_k, m->n_experts);
    /* Logical ids are int32, shared parts stand behind the experts. */
    if ((uint64_t)m->n_physical + m->n_shared_slots > INT32_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME ": topology: %" PRIu32
                                            " slots and %" PRIu32
                                            " shared ones exceed 2^31 - 1",
                         m->n_physical, m->n_shared_slots);
    return MOEC_OK;
}

static moec_status check_layers(const moec_manifest *m, moec_error *err)
{
    if (m->n_mf_layers == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME ": model: there is no MoE layer");
    for (size_t i = 1; i < m->n_mf_layers; i++) {
        moec_layer_key a = m->layers[i - 1].key, b = m->layers[i].key;

        if (a.space > b.space || (a.space == b.space && a.number >= b.number))
            return moec_fail(
                err, MOEC_E_FORMAT, MOEC_RULE_M01,
                MOEC_MANIFEST_NAME ": model: layers[%zu] is out of order", i);
    }
    return MOEC_OK;
}

static moec_status once(moec_strmap *names, const char *name, moec_error *err)
{
    bool existed = false;

    MOEC_TRY(moec_strmap_put(names, name, strlen(name), 0, &existed, err));
    if (existed)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME ": file '%s' stands there twice",
                         name);
    return MOEC_OK;
}

/* No two files of OUT have one name; neither have two of the source. */
static moec_status check_names(const moec_manifest *m, moec_error *err)
{
    moec_strmap out = {0}, src = {0};
    moec_status st = moec_strmap_init(&out, m->n_files + m->n_copied, err);

    if (st == MOEC_OK)
        st = moec_strmap_init(&src, m->n_sources, err);
    if (st == MOEC_OK)
        st = once(&out, MOEC_MANIFEST_NAME, err);
    if (st == MOEC_OK)
        st = once(&out, MOEC_SLOTS_NAME, err);
    if (st == MOEC_OK)
        st = once(&out, MOEC_SOURCES_NAME, err);
    for (size_t i = 0; st == MOEC_OK && i < m->n_files; i++)
        st = once(&out, m->files[i].name, err);
    for (size_t i = 0; st == MOEC_OK && i < m->n_copied; i++)
        st = once(&out, m->copied[i].name, err);
    for (size_t i = 0; st == MOEC_OK && i < m->n_sources; i++)
        st = once(&src, m->sources[i].name, err);
    if (st == MOEC_OK && m->index_name)
        st = once(&src, m->index_name, err);
    moec_strmap_fini(&src);
    moec_strmap_fini(&out);
    return st;
}

static moec_status check(const moec_manifest *m, const reader *r)
{
    if (r->explicit_rows != (m->p2l != NULL))
        return moec_fail(r->err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME
                         ": placement: 'physical_to_logical' is missing");
    if (strcmp(m->slots_file.name, MOEC_SLOTS_NAME) != 0 ||
        strcmp(m->sources_file.name, MOEC_SOURCES_NAME) != 0)
        return moec_fail(r->err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME
                         ": '%s' and '%s' should be " MOEC_SLOTS_NAME
                         " and " MOEC_SOURCES_NAME,
                         m->slots_file.name, m->sources_file.name);
    MOEC_TRY(check_topology(m, r->err));
    MOEC_TRY(check_layers(m, r->err));
    return check_names(m, r->err);
}

moec_status moec_manifest_decode(moec_manifest *out, const char *text, size_t n,
                                 moec_error *err)
{
    moec_manifest m = {0};
    reader r = {.m = &m, .err = err};
    json_t *tree = NULL;
    moec_json root;
    moec_status st;

    MOEC_TRY(moec_json_parse(text, n, MOEC_MANIFEST_NAME, MOEC_RULE_M01,
                             MOEC_RULE_M01, &tree, err));
    root = moec_json_root(tree, &doc);
    st = get_object(&r, &moec_mf_manifest, &root, &m);
    json_decref(tree);
    if (st == MOEC_OK)
        st = check(&m, &r);
    if (st != MOEC_OK)
        moec_manifest_fini(&m);
    else
        *out = m;
    return st;
}

void moec_manifest_fini(moec_manifest *m)
{
    if (!m)
        return;
    moec_arena_fini(&m->arena);
    *m = (moec_manifest){0};
}
