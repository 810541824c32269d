/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_JSON_H
#define MOEC_JSON_H

/*
 * What this is: strict reading of small JSON documents (config, family,
 *   placement, manifest) on top of jansson. A moec_json is a value together
 *   with the way to it, so that every refusal names file and key:
 *   "config.json: text_config.num_experts: is a string, must be an integer".
 * Lifetime: a moec_json borrows its document, its parent and its key: keep
 *   the parents on the stack above it. Plain values, nothing to free; the
 *   tree itself is freed with json_decref.
 * Errors: FORMAT with the document's rule for the kind of mistake, NOMEM.
 */

#include <jansson.h>

#include "base/base.h"

/* json_loadb, which corrupts the heap where it finds no memory and goes on:
 * here none of its allocations succeeds behind one that failed. NULL, and
 * *starved, without memory. */
json_t *moec_json_load(const char *text, size_t n, size_t flags,
                       json_error_t *e, bool *starved);

/* Parse n bytes of text: at most MOEC_JSON_BYTES_MAX, RFC 8259, UTF-8 without
 * a byte order mark, no duplicate keys, no \u0000, an object or an array at
 * the top. Errors carry `rule`, duplicate keys `duplicate_rule`, texts too
 * large I04. *out is the caller's (json_decref). */
moec_status moec_json_parse(const char *text, size_t n, const char *name,
                            moec_rule rule, moec_rule duplicate_rule,
                            json_t **out, moec_error *err);

/* Is it one object or array as RFC 8259 has it? Needs no memory: jansson calls
 * a text malformed when it found none for a piece of it. What moec_json_parse
 * refuses for other reasons (UTF-8, NULs, duplicate keys, large numbers) may
 * pass. */
bool moec_json_is_well_formed(const char *text, size_t n);

/* What a document is called and which rule each kind of mistake breaks. A
 * MOEC_RULE_NONE is replaced by `other`. */
typedef struct moec_json_doc {
    const char *name;
    moec_rule other;   /* wrong type of anything else, unknown key */
    moec_rule missing; /* a key that must be there is not */
    moec_rule integer; /* not an integer, or out of range */
    moec_rule number;  /* not a number */
    moec_rule string;  /* not a string */
} moec_json_doc;

typedef struct moec_json {
    json_t *value; /* NULL: absent */
    const moec_json_doc *doc;
    const struct moec_json *parent; /* NULL: the top */
    const char *key;                /* in a parent that is an object */
    size_t index;                   /* in a parent that is an array */
} moec_json;

/* What jansson's macros json_is_array() and the like ask, where `value` may be
 * NULL: absent values have no type. */
bool moec_json_is(const json_t *value, json_type type);
bool moec_json_is_boolean(const json_t *value);

moec_json moec_json_root(json_t *value, const moec_json_doc *doc);
/* Member of an object (absent where `obj` is none). JSON null counts as
 * absent: config.json writes null for "not set". */
moec_json moec_json_member(const moec_json *obj, const char *key);
/* Item of an array. i < moec_json_len(). */
moec_json moec_json_item(const moec_json *arr, size_t i);
/* Items of an array or keys of an object, else 0. */
size_t moec_json_len(const moec_json *v);

static inline bool moec_json_has(const moec_json *obj, const char *key)
{
    return moec_json_member(obj, key).value != NULL;
}

/* FORMAT: "FILE: way.to[3].value: " and the text. */
moec_status moec_json_fail(const moec_json *v, moec_rule rule, moec_error *err,
                           const char *fmt, ...) MOEC_PRINTF(4, 5);
#define moec_json_fail(...) moec_refused((moec_json_fail)(__VA_ARGS__))

/* The value itself as a C value. An absent one fails with `missing`. Integers
 * are JSON integers: 8.0, "8" and true are none. */
moec_status moec_json_as_u64(const moec_json *v, uint64_t max, uint64_t *out,
                             moec_error *err);
moec_status moec_json_as_u32(const moec_json *v, uint32_t max, uint32_t *out,
                             moec_error *err);
moec_status moec_json_as_i64(const moec_json *v, int64_t min, int64_t max,
                             int64_t *out, moec_error *err);
/* Integers pass too. The result is finite. */
moec_status moec_json_as_double(const moec_json *v, double *out,
                                moec_error *err);
moec_status moec_json_as_bool(const moec_json *v, bool *out, moec_error *err);
/* Borrowed from the tree; without NUL inside. */
moec_status moec_json_as_string(const moec_json *v, const char **out,
                                moec_error *err);
/* n bytes as 2n lower-case hex digits. */
moec_status moec_json_as_hex(const moec_json *v, void *out, size_t n,
                             moec_error *err);
/* Fail unless the value is an object, an array. */
moec_status moec_json_want_object(const moec_json *v, moec_error *err);
moec_status moec_json_want_array(const moec_json *v, moec_error *err);

/* The same for member `key` of an object; the member must be there. */
moec_status moec_json_get_u64(const moec_json *obj, const char *key,
                              uint64_t max, uint64_t *out, moec_error *err);
moec_status moec_json_get_u32(const moec_json *obj, const char *key,
                              uint32_t max, uint32_t *out, moec_error *err);
moec_status moec_json_get_i64(const moec_json *obj, const char *key,
                              int64_t min, int64_t max, int64_t *out,
                              moec_error *err);
moec_status moec_json_get_double(const moec_json *obj, const char *key,
                                 double *out, moec_error *err);
moec_status moec_json_get_bool(const moec_json *obj, const char *key, bool *out,
                               moec_error *err);
moec_status moec_json_get_string(const moec_json *obj, const char *key,
                                 const char **out, moec_error *err);
moec_status moec_json_get_hex(const moec_json *obj, const char *key, void *out,
                              size_t n, moec_error *err);
/* *out borrows `obj` and `key`. */
moec_status moec_json_get_object(const moec_json *obj, const char *key,
                                 moec_json *out, moec_error *err);
moec_status moec_json_get_array(const moec_json *obj, const char *key,
                                moec_json *out, moec_error *err);

/* Fail where the object has a key that is not among the n keys. */
moec_status moec_json_only_keys(const moec_json *obj, const char *const *keys,
                                size_t n, moec_error *err);

#endif
