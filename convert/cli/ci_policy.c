/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policy and baseline files. Both are strict: unknown keys, rules that do not
 * exist and numbers of another type are refused, since a limit that is
 * misspelled limits nothing.
 */
#include "ci_policy.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "option_files.h"
#include "print.h"
#include "read_json.h"

static const char policy_schema[] = "moec.policy/1";
static const char report_schema[] = "moec.check/1";

/* What is being read, for messages. */
typedef struct reader {
    const char *path;
    moec_rule rule;
    moec_error *err;
} reader;

static moec_status refuse(const reader *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static moec_status refuse(const reader *r, const char *fmt, ...)
{
    char text[sizeof(r->err->text)];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return moec_cli_error(r->err, MOEC_E_FORMAT, r->rule, "%s: %s", r->path,
                          text);
}

static moec_status no_memory(const reader *r)
{
    return moec_cli_error(r->err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                          "no memory for %s", r->path);
}

static moec_status load(const reader *r, json_t **out)
{
    char *text = NULL;
    json_t *doc = NULL;
    size_t n = 0;
    moec_status st = moec_cli_read_file(r->path, r->rule, MOEC_JSON_BYTES_MAX,
                                        &text, &n, r->err);
    if (st != MOEC_OK)
        return st;
    st = moec_read_json(text, n, r->path, r->rule, &doc, r->err);
    free(text);
    if (st != MOEC_OK)
        return st;
    if (!json_is_object(doc)) {
        json_decref(doc);
        return refuse(r, "is no JSON object");
    }
    *out = doc;
    return MOEC_OK;
}

/* --------------------------------------------------------------- policy */

static moec_status read_severity(const reader *r, moec_ci_policy *p,
                                 json_t *map)
{
    const char *key;
    json_t *value;
    if (!json_is_object(map))
        return refuse(r, "severity: must be an object: rule to severity");
    json_object_foreach (map, key, value) {
        moec_rule rule = moec_rule_find(key);
        const char *word = json_string_value(value);
        uint32_t place =
            word != NULL ? moec_cli_parse_choice("off|note|warning|error", word)
                         : 0;
        if (rule == MOEC_RULE_NONE)
            return refuse(r, "severity: no rule '%s'", key);
        if (place == 0)
            return refuse(r, "severity.%s: must be off, note, warning or error",
                          key);
        if (p->severity[rule] != 0)
            return refuse(r, "severity: '%s' is a rule that is named twice",
                          key);
        p->severity[rule] = (uint8_t)place;
    }
    return MOEC_OK;
}

static moec_status read_skip(const reader *r, moec_ci_policy *p, json_t *list)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list))
        return refuse(r, "skip: must be an array of names or patterns");
    p->limits_skipped = true;
    p->skip = calloc(n + 1, sizeof(*p->skip));
    if (p->skip == NULL)
        return no_memory(r);
    for (size_t i = 0; i < n; i++) {
        p->skip[i] = json_string_value(json_array_get(list, i));
        if (p->skip[i] == NULL)
            return refuse(r, "skip[%zu]: must be a string", i);
    }
    p->n_skip = n;
    return MOEC_OK;
}

static moec_status read_u32(const reader *r, const json_t *value, size_t i,
                            const char *key, uint32_t least, uint32_t *out)
{
    json_int_t v = json_integer_value(value);
    if (!json_is_integer(value) || v < (json_int_t)least ||
        v > (json_int_t)UINT32_MAX)
        return refuse(r, "targets[%zu].%s: must be an integer from %" PRIu32, i,
                      key, least);
    *out = (uint32_t)v;
    return MOEC_OK;
}

static moec_status read_word(const reader *r, const json_t *value, size_t i,
                             const char *key, const char *words, uint32_t *out)
{
    const char *word = json_string_value(value);
    *out = word != NULL ? moec_cli_parse_choice(words, word) : 0;
    if (*out == 0)
        return refuse(r, "targets[%zu].%s: must be one of %s", i, key, words);
    return MOEC_OK;
}

static moec_status read_target(const reader *r, moec_ci_target *t, json_t *obj,
                               size_t i)
{
    const char *key;
    json_t *value;
    moec_status st = MOEC_OK;
    if (!json_is_object(obj))
        return refuse(r, "targets[%zu]: must be an object", i);
    json_object_foreach (obj, key, value) {
        if (strcmp(key, "name") == 0 && json_is_string(value))
            t->name = json_string_value(value);
        else if (strcmp(key, "name") == 0)
            st = refuse(r, "targets[%zu].name: must be a string", i);
        else if (strcmp(key, "ep") == 0)
            st = read_u32(r, value, i, key, 1, &t->ep);
        else if (strcmp(key, "redundant") == 0)
            st = read_u32(r, value, i, key, 0, &t->redundant);
        else if (strcmp(key, "shared_slots") == 0)
            st =
                read_word(r, value, i, key, "per-rank|global|none", &t->shared);
        else if (strcmp(key, "w13_order") == 0)
            st = read_word(r, value, i, key, "gate-up|up-gate", &t->w13);
        else
            st = refuse(r, "targets[%zu]: unknown key '%s'", i, key);
        if (st != MOEC_OK)
            return st;
    }
    if (t->name == NULL || t->ep == 0)
        return refuse(r, "targets[%zu]: '%s' is missing", i,
                      t->name == NULL ? "name" : "ep");
    return MOEC_OK;
}

static moec_status read_targets(const reader *r, moec_ci_policy *p,
                                json_t *list)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list))
        return refuse(r, "targets: must be an array");
    p->targets = calloc(n + 1, sizeof(*p->targets));
    if (p->targets == NULL)
        return no_memory(r);
    p->n_targets = n;
    for (size_t i = 0; i < n; i++) {
        moec_status st =
            read_target(r, &p->targets[i], json_array_get(list, i), i);
        if (st != MOEC_OK)
            return st;
    }
    return MOEC_OK;
}

static moec_status read_limit(const reader *r, moec_ci_policy *p,
                              const char *key, const json_t *value)
{
    if (strcmp(key, "max_rank_bytes") == 0) {
        if (!json_is_integer(value) || json_integer_value(value) < 1)
            return refuse(r, "max_rank_bytes: must be an integer from 1");
        p->max_rank_bytes = (uint64_t)json_integer_value(value);
        return MOEC_OK;
    }
    if (!json_is_number(value) || json_number_value(value) < 1.0)
        return refuse(r, "max_imbalance: must be a number from 1: the fullest "
                         "rank over the mean");
    p->max_imbalance = json_number_value(value);
    return MOEC_OK;
}

static moec_status read_key(const reader *r, moec_ci_policy *p, const char *key,
                            json_t *value)
{
    if (strcmp(key, "severity") == 0)
        return read_severity(r, p, value);
    if (strcmp(key, "skip") == 0)
        return read_skip(r, p, value);
    if (strcmp(key, "targets") == 0)
        return read_targets(r, p, value);
    if (strcmp(key, "max_rank_bytes") == 0 || strcmp(key, "max_imbalance") == 0)
        return read_limit(r, p, key, value);
    if (strcmp(key, "schema") == 0 || strcmp(key, "$schema") == 0 ||
        strcmp(key, "description") == 0)
        return json_is_string(value) ? MOEC_OK
                                     : refuse(r, "%s: must be a string", key);
    return refuse(r, "unknown key '%s'", key);
}

static moec_status want_schema(const reader *r, const json_t *doc,
                               const char *schema)
{
    const char *word = json_string_value(json_object_get(doc, "schema"));
    if (word == NULL || strcmp(word, schema) != 0)
        return refuse(r, "schema: must be \"%s\"", schema);
    return MOEC_OK;
}

moec_status moec_ci_policy_read(moec_ci_policy *out, const char *path,
                                moec_error *err)
{
    reader r = {path, MOEC_RULE_L01, err};
    moec_ci_policy p = {0};
    json_t *doc = NULL, *value;
    const char *key;
    moec_status st = load(&r, &doc);
    if (st != MOEC_OK)
        return st;
    p.doc = doc;
    st = want_schema(&r, doc, policy_schema);
    json_object_foreach (doc, key, value) {
        if (st == MOEC_OK)
            st = read_key(&r, &p, key, value);
    }
    if (st != MOEC_OK) {
        moec_ci_policy_fini(&p);
        return st;
    }
    *out = p;
    return MOEC_OK;
}

void moec_ci_policy_fini(moec_ci_policy *p)
{
    free(p->skip);
    free(p->targets);
    json_decref(p->doc);
    memset(p, 0, sizeof(*p));
}

/* ------------------------------------------------------------- baseline */

static int by_print(const void *a, const void *b)
{
    return strcmp(a, b);
}

static moec_status take_print(const reader *r, moec_ci_baseline *b,
                              const json_t *finding, size_t i)
{
    const char *print =
        json_string_value(json_object_get(finding, "fingerprint"));
    if (print == NULL || strlen(print) != MOEC_CI_FINGERPRINT_BYTES - 1 ||
        strspn(print, "0123456789abcdef") != MOEC_CI_FINGERPRINT_BYTES - 1)
        return refuse(r, "findings[%zu]: has no fingerprint", i);
    memcpy(b->prints[b->n++], print, MOEC_CI_FINGERPRINT_BYTES);
    return MOEC_OK;
}

moec_status moec_ci_baseline_read(moec_ci_baseline *out, const char *path,
                                  moec_error *err)
{
    reader r = {path, MOEC_RULE_L02, err};
    moec_ci_baseline b = {0};
    json_t *doc = NULL;
    moec_status st = load(&r, &doc);
    if (st != MOEC_OK)
        return st;
    const json_t *list = json_object_get(doc, "findings");
    size_t n = json_array_size(list);
    st = want_schema(&r, doc, report_schema);
    if (st == MOEC_OK && !json_is_array(list))
        st = refuse(&r, "findings: is missing");
    if (st == MOEC_OK) {
        b.prints = calloc(n + 1, sizeof(*b.prints));
        b.used = calloc(n + 1, sizeof(*b.used));
        if (b.prints == NULL || b.used == NULL)
            st = no_memory(&r);
    }
    for (size_t i = 0; st == MOEC_OK && b.prints != NULL && i < n; i++)
        st = take_print(&r, &b, json_array_get(list, i), i);
    json_decref(doc);
    if (st != MOEC_OK) {
        moec_ci_baseline_fini(&b);
        return st;
    }
    if (b.n > 1)
        if (b.n != 0)
            qsort(b.prints, b.n, sizeof(*b.prints), by_print);
    *out = b;
    return MOEC_OK;
}

bool moec_ci_baseline_take(moec_ci_baseline *b, const char *print)
{
    size_t lo = 0, hi = b->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (strcmp(b->prints[mid], print) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < b->n && strcmp(b->prints[lo], print) == 0; lo++) {
        if (!b->used[lo]) {
            b->used[lo] = true;
            return true;
        }
    }
    return false;
}

void moec_ci_baseline_fini(moec_ci_baseline *b)
{
    free(b->prints);
    free(b->used);
    memset(b, 0, sizeof(*b));
}
