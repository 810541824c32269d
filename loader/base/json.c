/* SPDX-License-Identifier: Apache-2.0
 *
 * Strict JSON documents of small size. jansson is strict already but for what
 * is asked here: duplicate keys, a size limit, and texts that name file, line
 * and column. It bounds nesting to 2048 itself. Shard headers and index.json
 * are never read with this: a tree costs 15 to 20 bytes a byte. */

#include "base/json.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Defined here, and wrapped by the header. */
#undef moec_json_fail

/* jansson drops a byte of a long string where it finds no memory to grow by,
 * and goes on: a digest of 63 digits, and no error; where the byte was the
 * closing quote it copies on behind the end of a buffer. So its allocator is
 * one that remembers, on this thread, that it failed, and gives nothing more
 * to that parse; all else stays as it was, and whoever has set another one
 * keeps it. */
static _Thread_local bool parsing, starved;

static void *watched_alloc(size_t n)
{
    void *p = parsing && starved ? NULL : moec_alloc(n);

    starved |= p == NULL;
    return p;
}

static void watch(void)
{
    json_malloc_t alloc;
    json_free_t release;

    json_get_alloc_funcs(&alloc, &release);
    if (alloc == malloc && release == free)
        json_set_alloc_funcs(watched_alloc, free);
}

json_t *moec_json_load(const char *text, size_t n, size_t flags,
                       json_error_t *e, bool *starved_out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    json_t *value;

    pthread_once(&once, watch);
    starved = false;
    parsing = true;
    value = json_loadb(text, n, flags, e);
    parsing = false;
    *starved_out = starved;
    if (starved) {
        json_decref(value);
        return NULL;
    }
    return value;
}

/* Why a text was refused, and what to say where. */
typedef struct refusal {
    const json_error_t *e;
    const char *text, *name;
    size_t n;
    moec_rule rule, duplicate_rule;
} refusal;

static moec_status parse_failed(const refusal *r, moec_error *err)
{
    const json_error_t *e = r->e;
    const char *name = r->name;
    moec_rule rule = r->rule;

    /* Without memory for its first buffer jansson says nothing at all. */
    if (e->line < 0 && e->text[0] == '\0')
        return moec_fail_nomem(err, name);
    switch (json_error_code(e)) {
    case json_error_out_of_memory:
        return moec_fail_nomem(err, name);
    case json_error_duplicate_key:
        rule = r->duplicate_rule;
        break;
    case json_error_numeric_overflow:
    case json_error_null_character:
    case json_error_null_byte_in_key:
    case json_error_invalid_utf8:
    case json_error_stack_overflow:
        break;
    default: /* jansson's enum, which may grow */
        if (moec_json_is_well_formed(r->text, r->n))
            return moec_fail_nomem(err, name);
        break;
    }
    return moec_fail_at(
        err, MOEC_E_FORMAT, rule, e->position > 0 ? (uint64_t)e->position : 0,
        "%s: line %d column %d: %s", name, e->line, e->column, e->text);
}

moec_status moec_json_parse(const char *text, size_t n, const char *name,
                            moec_rule rule, moec_rule duplicate_rule,
                            json_t **out, moec_error *err)
{
    json_error_t e;
    json_t *value;
    bool no_memory;

    if (n > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: has %zu bytes, more than the limit of %ju", name,
                         n, (uintmax_t)MOEC_JSON_BYTES_MAX);
    if (n == 0)
        return moec_fail(err, MOEC_E_FORMAT, rule, "%s: is empty", name);
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        return moec_fail_at(err, MOEC_E_FORMAT, rule, 0,
                            "%s: begins with a byte order mark", name);
    value = moec_json_load(text, n, JSON_REJECT_DUPLICATES, &e, &no_memory);
    if (no_memory)
        return moec_fail_nomem(err, name);
    if (!value)
        return parse_failed(&(refusal){.e = &e,
                                       .text = text,
                                       .name = name,
                                       .n = n,
                                       .rule = rule,
                                       .duplicate_rule = duplicate_rule},
                            err);
    *out = value;
    return MOEC_OK;
}

bool moec_json_is(const json_t *value, json_type type)
{
    return value != NULL && json_typeof(value) == type;
}

bool moec_json_is_boolean(const json_t *value)
{
    return moec_json_is(value, JSON_TRUE) || moec_json_is(value, JSON_FALSE);
}

moec_json moec_json_root(json_t *value, const moec_json_doc *doc)
{
    return (moec_json){.value = value, .doc = doc};
}

moec_json moec_json_member(const moec_json *obj, const char *key)
{
    json_t *value = json_object_get(obj->value, key);

    if (moec_json_is(value, JSON_NULL))
        value = NULL;
    return (moec_json){
        .value = value, .doc = obj->doc, .parent = obj, .key = key};
}

moec_json moec_json_item(const moec_json *arr, size_t i)
{
    return (moec_json){.value = json_array_get(arr->value, i),
                       .doc = arr->doc,
                       .parent = arr,
                       .index = i};
}

size_t moec_json_len(const moec_json *v)
{
    return moec_json_is(v->value, JSON_ARRAY) ? json_array_size(v->value)
                                              : json_object_size(v->value);
}

/* Steps of a way that a text shows; what lies between is left out. */
#define WAY_STEPS 16

static void put_way(moec_buf *b, const moec_json *v)
{
    const moec_json *steps[WAY_STEPS];
    size_t n = 0;

    for (; v->parent && n < WAY_STEPS; v = v->parent)
        steps[n++] = v;
    if (v->parent)
        moec_buf_puts(b, "...");
    while (n > 0) {
        const moec_json *s = steps[--n];
        if (!s->key)
            moec_buf_printf(b, "[%zu]", s->index);
        else
            moec_buf_printf(b, "%s%s", b->len ? "." : "", s->key);
    }
}

moec_status moec_json_fail(const moec_json *v, moec_rule rule, moec_error *err,
                           const char *fmt, ...)
{
    moec_buf way = {0};
    char what[512];
    va_list args;

    if (rule == MOEC_RULE_NONE)
        rule = v->doc->other;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof(what), fmt, args); /* cut is fine */
    va_end(args);
    put_way(&way, v);
    moec_fail(err, MOEC_E_FORMAT, rule, "%s: %s%s%s", v->doc->name,
              way.len ? way.data : "", way.len ? ": " : "", what);
    moec_buf_fini(&way);
    return MOEC_E_FORMAT;
}

static const char *kind_of(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

/* The refusal of a value that is absent or not `want`. */
static moec_status wrong(const moec_json *v, moec_rule rule, const char *want,
                         moec_error *err)
{
    if (!v->value)
        return moec_json_fail(v, v->doc->missing, err, "is missing, must be %s",
                              want);
    return moec_json_fail(v, rule, err, "is %s, must be %s", kind_of(v->value),
                          want);
}

moec_status moec_json_as_i64(const moec_json *v, int64_t min, int64_t max,
                             int64_t *out, moec_error *err)
{
    int64_t value;

    if (!moec_json_is(v->value, JSON_INTEGER))
        return wrong(v, v->doc->integer, "an integer", err);
    value = json_integer_value(v->value);
    if (value < min || value > max)
        return moec_json_fail(v, v->doc->integer, err,
                              "is %jd, must be between %jd and %jd",
                              (intmax_t)value, (intmax_t)min, (intmax_t)max);
    *out = value;
    return MOEC_OK;
}

moec_status moec_json_as_u64(const moec_json *v, uint64_t max, uint64_t *out,
                             moec_error *err)
{
    int64_t value = 0;

    MOEC_TRY(moec_json_as_i64(v, 0, max < INT64_MAX ? (int64_t)max : INT64_MAX,
                              &value, err));
    *out = (uint64_t)value;
    return MOEC_OK;
}

moec_status moec_json_as_u32(const moec_json *v, uint32_t max, uint32_t *out,
                             moec_error *err)
{
    uint64_t value = 0;

    MOEC_TRY(moec_json_as_u64(v, max, &value, err));
    *out = (uint32_t)value;
    return MOEC_OK;
}

moec_status moec_json_as_double(const moec_json *v, double *out,
                                moec_error *err)
{
    double value;

    if (!moec_json_is(v->value, JSON_INTEGER) &&
        !moec_json_is(v->value, JSON_REAL))
        return wrong(v, v->doc->number, "a number", err);
    value = json_number_value(v->value);
    if (!isfinite(value))
        return moec_json_fail(v, v->doc->number, err, "is not finite");
    *out = value;
    return MOEC_OK;
}

moec_status moec_json_as_bool(const moec_json *v, bool *out, moec_error *err)
{
    if (!moec_json_is_boolean(v->value))
        return wrong(v, v->doc->other, "a boolean", err);
    *out = moec_json_is(v->value, JSON_TRUE);
    return MOEC_OK;
}

moec_status moec_json_as_string(const moec_json *v, const char **out,
                                moec_error *err)
{
    if (!moec_json_is(v->value, JSON_STRING))
        return wrong(v, v->doc->string, "a string", err);
    *out = json_string_value(v->value);
    return MOEC_OK;
}

moec_status moec_json_as_hex(const moec_json *v, void *out, size_t n,
                             moec_error *err)
{
    const char *hex = NULL;

    MOEC_TRY(moec_json_as_string(v, &hex, err));
    if (!moec_unhex(hex, out, n))
        return moec_json_fail(v, v->doc->string, err,
                              "must be %zu lower-case hex digits", 2 * n);
    return MOEC_OK;
}

moec_status moec_json_want_object(const moec_json *v, moec_error *err)
{
    if (!moec_json_is(v->value, JSON_OBJECT))
        return wrong(v, v->doc->other, "an object", err);
    return MOEC_OK;
}

moec_status moec_json_want_array(const moec_json *v, moec_error *err)
{
    if (!moec_json_is(v->value, JSON_ARRAY))
        return wrong(v, v->doc->other, "an array", err);
    return MOEC_OK;
}

moec_status moec_json_get_u64(const moec_json *obj, const char *key,
                              uint64_t max, uint64_t *out, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_u64(&v, max, out, err);
}

moec_status moec_json_get_u32(const moec_json *obj, const char *key,
                              uint32_t max, uint32_t *out, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_u32(&v, max, out, err);
}

moec_status moec_json_get_i64(const moec_json *obj, const char *key,
                              int64_t min, int64_t max, int64_t *out,
                              moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_i64(&v, min, max, out, err);
}

moec_status moec_json_get_double(const moec_json *obj, const char *key,
                                 double *out, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_double(&v, out, err);
}

moec_status moec_json_get_bool(const moec_json *obj, const char *key, bool *out,
                               moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_bool(&v, out, err);
}

moec_status moec_json_get_string(const moec_json *obj, const char *key,
                                 const char **out, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_string(&v, out, err);
}

moec_status moec_json_get_hex(const moec_json *obj, const char *key, void *out,
                              size_t n, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    return moec_json_as_hex(&v, out, n, err);
}

moec_status moec_json_get_object(const moec_json *obj, const char *key,
                                 moec_json *out, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    MOEC_TRY(moec_json_want_object(&v, err));
    *out = v;
    return MOEC_OK;
}

moec_status moec_json_get_array(const moec_json *obj, const char *key,
                                moec_json *out, moec_error *err)
{
    moec_json v = moec_json_member(obj, key);

    MOEC_TRY(moec_json_want_array(&v, err));
    *out = v;
    return MOEC_OK;
}

moec_status moec_json_only_keys(const moec_json *obj, const char *const *keys,
                                size_t n, moec_error *err)
{
    const char *key;
    json_t *value;

    MOEC_TRY(moec_json_want_object(obj, err));
    json_object_foreach (obj->value, key, value) {
        size_t i = 0;
        while (i < n && strcmp(keys[i], key) != 0)
            i++;
        if (i == n)
            return moec_json_fail(obj, obj->doc->other, err,
                                  "has the unknown key '%s'", key);
    }
    return MOEC_OK;
}
