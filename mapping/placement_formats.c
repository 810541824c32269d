/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: placement files. Two forms are read, both JSON, told apart by
 *   their content and never by a file's name:
 *     {"physical_to_logical_map": [rows][P]}   SGLang: a row for each decoder
 *         layer, dense ones included (their ids mean nothing); MTP layer k is
 *         row n_layers + k
 *     [rows][P]   EPLB, vLLM: a row for each MoE layer, MTP ones last
 *   MTP layers without a row get the trivial map. P is the rows' length.
 * Refuses, naming layer, slot and value: ids that are no integers in [0, E)
 *   (P04), other numbers of rows (P02), ragged rows (P03), other keys (P01),
 *   experts without a slot (P05). A shared expert's id (from E on) among
 *   routed slots is refused like any other: SGLang keeps such experts out of
 *   the map, and a map that has them is meant for a server that counts
 *   otherwise. Forms of other engines are recognised and refused with what to
 *   do instead; a pickle is never opened.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "placement.h"

#define KEY_MAP    "physical_to_logical_map"
#define WRITE_JSON "write its maps as JSON, {\"" KEY_MAP "\": [layers][slots]}"

/* A file on its way into a placement. */
typedef struct reader {
    const moec_placement_target *target;
    const char *name;
    bool sglang;     /* rows are decoder layers, else MoE layers */
    uint32_t n_main; /* MoE layers that are no MTP layers */
    uint32_t n_mtp;  /* MTP layers counted by their highest number */
    const json_t *rows;
    uint32_t n_physical;
} reader;

/* ------------------------------------------------------------- messages */

#define ROW_TEXT_BYTES 64

/* What a row of the file is about. */
static const char *row_text(const reader *r, size_t row,
                            char buf[ROW_TEXT_BYTES])
{
    const moec_placement_target *t = r->target;
    char layer[MOEC_LAYER_TEXT_BYTES];
    moec_layer_key key = {MOEC_SPACE_MAIN, (uint32_t)row};

    if (r->sglang) {
        if (row >= t->n_layers)
            key =
                (moec_layer_key){MOEC_SPACE_MTP, (uint32_t)(row - t->n_layers)};
        snprintf(buf, ROW_TEXT_BYTES, "%s", moec_layer_text(key, layer));
    } else if (row < t->n_keys) {
        snprintf(buf, ROW_TEXT_BYTES, "%s (row %zu)",
                 moec_layer_text(t->keys[row], layer), row);
    } else {
        snprintf(buf, ROW_TEXT_BYTES, "row %zu", row);
    }
    return buf;
}

static moec_status fail_id(const reader *r, size_t row, size_t slot,
                           const json_t *value, moec_error *err)
{
    char at[ROW_TEXT_BYTES], what[64] = "";

    row_text(r, row, at);
    /* A range of items was checked: NULL is for the compiler alone. */
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        snprintf(what, sizeof(what), "an object");
        break;
    case JSON_ARRAY:
        snprintf(what, sizeof(what), "a list");
        break;
    case JSON_STRING:
        snprintf(what, sizeof(what), "the string '%.32s'",
                 json_string_value(value));
        break;
    case JSON_INTEGER:
        snprintf(what, sizeof(what), "%" JSON_INTEGER_FORMAT,
                 json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(what, sizeof(what), "the fraction %.17g",
                 json_real_value(value));
        break;
    case JSON_TRUE:
        snprintf(what, sizeof(what), "the boolean true");
        break;
    case JSON_FALSE:
        snprintf(what, sizeof(what), "the boolean false");
        break;
    case JSON_NULL:
        snprintf(what, sizeof(what), "null");
        break;
    }
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                     "%s: %s, slot %zu: id is %s, must be an integer in "
                     "[0, %" PRIu32 ")",
                     r->name, at, slot, what, r->target->n_experts);
}

static moec_status fail_range(const reader *r, size_t row, size_t slot,
                              json_int_t id, moec_error *err)
{
    const char *hint = "";
    char at[ROW_TEXT_BYTES];

    if (id == MOEC_EMPTY_SLOT)
        hint = ": empty slots are made by --allow-empty, not by a file";
    else if (id >= 0)
        hint = ": shared experts, with ids from there on, have slots of their "
               "own and never stand among the routed ones";
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                     "%s: %s, slot %zu: id %" JSON_INTEGER_FORMAT
                     " is not in [0, %" PRIu32 ")%s",
                     r->name, row_text(r, row, at), slot, id,
                     r->target->n_experts, hint);
}

/* --------------------------------------------------------- rows and ids */

static moec_status check_count(const reader *r, moec_error *err)
{
    size_t n = json_array_size(r->rows);
    uint32_t least = r->sglang ? r->target->n_layers : r->n_main;
    uint32_t mtp =
        r->sglang ? r->n_mtp : (uint32_t)r->target->n_keys - r->n_main;
    uint32_t other = r->sglang ? r->n_main : r->target->n_layers;
    const char *hint = "";
    char most[48] = "";

    if (n >= least && n - least <= mtp)
        return MOEC_OK;
    if (n == other)
        hint = r->sglang ? "; a file of MoE layers alone is a bare list "
                           "[moe_layers][slots]"
                         : "; a file of all decoder layers is {\"" KEY_MAP
                           "\": [layers][slots]}";
    if (mtp > 0)
        snprintf(most, sizeof(most), ", at most %" PRIu64 " with MTP layers",
                 (uint64_t)least + mtp);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                     "%s: %zu rows, must be %" PRIu32 ", one for each %s "
                     "layer%s%s",
                     r->name, n, least, r->sglang ? "decoder" : "MoE", most,
                     hint);
}

/* All rows, dense layers' too, are lists of one length: P. */
static moec_status check_lengths(reader *r, moec_error *err)
{
    size_t n = json_array_size(r->rows), first = 0;
    char at[ROW_TEXT_BYTES], at0[ROW_TEXT_BYTES];

    for (size_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(r->rows, i);
        size_t len = json_array_size(row);

        if (!json_is_array(row))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                             "%s: %s: the row is no list of ids", r->name,
                             row_text(r, i, at));
        if (i == 0)
            first = len;
        if (r->target->n_physical > 0 && len != r->target->n_physical)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                             "%s: %s has %zu slots, must have %" PRIu32,
                             r->name, row_text(r, i, at), len,
                             r->target->n_physical);
        if (len != first)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                             "%s: %s has %zu slots, %s has %zu", r->name,
                             row_text(r, i, at), len, row_text(r, 0, at0),
                             first);
    }
    if (first < r->target->n_experts || first > MOEC_PLACEMENT_SLOTS_MAX)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P03,
                         "%s: rows of %zu slots, must have between %" PRIu32
                         " (the experts) and %u",
                         r->name, first, r->target->n_experts,
                         MOEC_PLACEMENT_SLOTS_MAX);
    r->n_physical = (uint32_t)first;
    return MOEC_OK;
}

/* Copy one row into `out`, or only check that it has integers (NULL). */
static moec_status read_row(const reader *r, size_t row, int32_t *out,
                            moec_error *err)
{
    const json_t *ids = json_array_get(r->rows, row);

    for (size_t i = 0; i < r->n_physical; i++) {
        const json_t *id = json_array_get(ids, i);
        json_int_t v;

        if (!json_is_integer(id))
            return fail_id(r, row, i, id, err);
        if (!out)
            continue;
        v = json_integer_value(id);
        if (v < 0 || v >= (json_int_t)r->target->n_experts)
            return fail_range(r, row, i, v, err);
        out[i] = (int32_t)v;
    }
    return MOEC_OK;
}

/* Index of the MoE layer that a row of the file is about, or SIZE_MAX. */
static size_t layer_of_row(const reader *r, size_t row)
{
    const moec_placement_target *t = r->target;
    moec_layer_key key = {MOEC_SPACE_MAIN, (uint32_t)row};

    if (!r->sglang)
        return row;
    if (row >= t->n_layers)
        key = (moec_layer_key){MOEC_SPACE_MTP, (uint32_t)(row - t->n_layers)};
    for (size_t i = 0; i < t->n_keys; i++) {
        if (t->keys[i].space == key.space && t->keys[i].number == key.number)
            return i;
    }
    return SIZE_MAX;
}

static moec_status read_rows(const reader *r, int32_t *p2l, moec_error *err)
{
    size_t n = json_array_size(r->rows), P = r->n_physical;

    /* Trivial where the file has no row: MTP layers only, by check_count. */
    for (size_t i = 0; i < r->target->n_keys * P; i++)
        p2l[i] = (int32_t)(i % P % r->target->n_experts);
    for (size_t row = 0; row < n; row++) {
        size_t layer = layer_of_row(r, row);
        int32_t *out = layer == SIZE_MAX ? NULL : p2l + layer * P;

        MOEC_TRY(read_row(r, row, out, err));
    }
    return MOEC_OK;
}

static moec_status make_placement(moec_placement **out, reader *r,
                                  moec_error *err)
{
    const moec_placement_target *t = r->target;
    moec_status st;
    int32_t *p2l;
    size_t n;

    MOEC_TRY(check_count(r, err));
    MOEC_TRY(check_lengths(r, err));
    if (__builtin_mul_overflow(t->n_keys, r->n_physical, &n))
        return moec_fail_nomem(err, "placement rows");
    p2l = moec_calloc(n, sizeof(*p2l));
    if (!p2l)
        return moec_fail_nomem(err, "placement rows");
    st = read_rows(r, p2l, err);
    if (st == MOEC_OK) {
        st = moec_placement_make(out, t->n_experts, r->n_physical, p2l, t->keys,
                                 t->n_keys, err);
        if (st != MOEC_OK)
            moec_error_prefix(err, "%s", r->name);
    }
    moec_free(p2l);
    return st;
}

/* ----------------------------------------------- forms of other engines */

static moec_status unsupported(const char *name, const char *what,
                               const char *mend, moec_error *err)
{
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01, "%s: %s: %s", name,
                     what, mend);
}

static bool has_line(const char *text, size_t n, const char *key)
{
    const char *at = memmem(text, n, key, strlen(key));

    return at && (at == text || at[-1] == '\n');
}

/* Files that are no JSON: recognised by how they begin. */
static moec_status check_other_files(const char *name, const char *text,
                                     size_t n, moec_error *err)
{
    if (n >= 4 && memcmp(text, "PK\3\4", 4) == 0)
        return unsupported(name, "a .pt or other ZIP file, which holds pickles",
                           WRITE_JSON " (in Python: json.dump({\"" KEY_MAP
                                      "\": t.tolist()}, f))",
                           err);
    if (n >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5)
        return unsupported(name, "a pickle, which runs code when read",
                           WRITE_JSON, err);
    if (has_line(text, n, "num_slots:") ||
        has_line(text, n, "initial_global_assignments:"))
        return unsupported(name,
                           "a TensorRT-LLM YAML file, which this version does "
                           "not read",
                           WRITE_JSON, err);
    return MOEC_OK;
}

static moec_status fail_object(const char *name, const json_t *object,
                               moec_error *err)
{
    if (json_object_get(object, "logical_count"))
        return unsupported(name,
                           "'logical_count' needs EPLB, which this "
                           "version does not have",
                           "give " KEY_MAP, err);
    if (json_object_get(object, "moe_layer_count") ||
        json_object_get(object, "layer_list"))
        return unsupported(name,
                           "a vllm-ascend expert map, which this version does "
                           "not read",
                           WRITE_JSON, err);
    if (json_object_get(object, "num_slots") ||
        json_object_get(object, "initial_global_assignments"))
        return unsupported(name,
                           "TensorRT-LLM's assignments, which this version "
                           "does not read",
                           WRITE_JSON, err);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                     "%s: the object has no key '" KEY_MAP "'", name);
}

/* ------------------------------------- ids that are no JSON to begin with */

/* Python writes NaN and Infinity, which are no JSON, and numbers of any
 * length. The parser can only say where; the refusal should name the slot. */
static bool bad_token(const char *token, size_t n)
{
    char buf[400];
    size_t sign = token[0] == '-';

    if (n > sign && (token[sign] == 'N' || token[sign] == 'I'))
        return true;
    if (n <= sign || token[sign] < '0' || token[sign] > '9')
        return false;
    if (n >= sizeof(buf))
        return true;
    memcpy(buf, token, n);
    buf[n] = '\0';
    errno = 0;
    if (strpbrk(buf, ".eE"))
        return strtod(buf, NULL) != 0 && errno == ERANGE;
    (void)strtoll(buf, NULL, 10);
    return errno == ERANGE;
}

/* Where a scan of the text stands: open brackets, and commas since the two
 * innermost ones opened. */
typedef struct scan {
    size_t at, depth;
    size_t row, slot; /* valid at the depth of ids */
} scan;

static bool is_token(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
           (c >= 'a' && c <= 'z') || c == '-' || c == '+' || c == '.';
}

static void skip_string(const char *text, size_t n, size_t *at)
{
    for ((*at)++; *at < n && text[*at] != '"'; (*at)++) {
        if (text[*at] == '\\')
            (*at)++;
    }
}

/* Count one byte of structure. Ids lie in `ids_depth` brackets. */
static void scan_structure(scan *s, char c, size_t ids_depth)
{
    if (c == '[' || c == '{') {
        s->depth++;
        if (s->depth == ids_depth)
            s->slot = 0;
        if (s->depth + 1 == ids_depth)
            s->row = 0;
    } else if (c == ']' || c == '}') {
        s->depth -= s->depth > 0;
    } else if (c == ',') {
        s->slot += s->depth == ids_depth;
        s->row += s->depth + 1 == ids_depth;
    }
}

/* Refuse the first id of a text that is no JSON number; MOEC_OK where the
 * mistake is another one. */
static moec_status find_bad_token(const reader *r, const char *text, size_t n,
                                  moec_error *err)
{
    size_t ids_depth = r->sglang ? 3 : 2;
    char at[ROW_TEXT_BYTES];
    scan s = {0};

    for (; s.at < n; s.at++) {
        size_t len = 0;

        if (text[s.at] == '"')
            skip_string(text, n, &s.at);
        else
            scan_structure(&s, text[s.at], ids_depth);
        while (s.at < n && s.at + len < n && is_token(text[s.at + len]))
            len++;
        if (len == 0)
            continue;
        if (s.depth == ids_depth && bad_token(text + s.at, len))
            return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_P04, s.at,
                                "%s: %s, slot %zu: id is %.*s, must be an "
                                "integer in [0, %" PRIu32 ")",
                                r->name, row_text(r, s.row, at), s.slot,
                                (int)(len < 32 ? len : 32), text + s.at,
                                r->target->n_experts);
        s.at += len - 1;
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------- the file */

static void count_layers(reader *r)
{
    for (size_t i = 0; i < r->target->n_keys; i++) {
        moec_layer_key key = r->target->keys[i];

        if (key.space == MOEC_SPACE_MAIN)
            r->n_main++;
        else if (key.number >= r->n_mtp && key.number < UINT32_MAX)
            r->n_mtp = key.number + 1;
    }
}

static bool begins_with_object(const char *text, size_t n)
{
    size_t at = 0;

    while (at < n && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' ||
                      text[at] == '\t'))
        at++;
    return at < n && text[at] == '{';
}

static moec_status read_document(moec_placement **out, reader *r, json_t *value,
                                 moec_error *err)
{
    static const char *const known[] = {KEY_MAP};
    const moec_json_doc doc = {
        .name = r->name, .other = MOEC_RULE_P01, .missing = MOEC_RULE_P01};
    moec_json root = moec_json_root(value, &doc);

    r->rows = value;
    if (r->sglang) {
        r->rows = json_object_get(value, KEY_MAP);
        if (!r->rows)
            return fail_object(r->name, value, err);
        MOEC_TRY(moec_json_only_keys(&root, known, 1, err));
        if (!json_is_array(r->rows))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                             "%s: " KEY_MAP " is no list of rows", r->name);
    }
    return make_placement(out, r, err);
}

moec_status moec_placement_parse_for(moec_placement **out,
                                     const moec_placement_target *target,
                                     const char *name, const char *text,
                                     size_t n, moec_error *err)
{
    reader r = {
        .target = target, .name = name, .sglang = begins_with_object(text, n)};
    json_t *value = NULL;
    moec_error parse_err = MOEC_ERROR_INIT;
    moec_status st;

    if (target->n_keys == 0 || target->n_keys > UINT32_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: a placement for a model of %zu MoE layers", name,
                         target->n_keys);
    count_layers(&r);
    MOEC_TRY(check_other_files(name, text, n, err));
    st = moec_json_parse(text, n, name, MOEC_RULE_P01, MOEC_RULE_P01, &value,
                         &parse_err);
    if (st != MOEC_OK) {
        /* The first error wins: the slot, where one is at fault. */
        if (parse_err.rule == MOEC_RULE_P01)
            MOEC_TRY(find_bad_token(&r, text, n, err));
        if (err && err->status == MOEC_OK)
            *err = parse_err;
        return st;
    }
    st = read_document(out, &r, value, err);
    json_decref(value);
    return st;
}

moec_status moec_placement_parse(moec_placement **out, const moec_model *model,
                                 const char *name, const char *text, size_t n,
                                 moec_error *err)
{
    const moec_facts *facts = moec_model_facts(model);
    moec_placement_target target = {.n_experts = facts->n_experts,
                                    .n_layers = facts->n_layers,
                                    .n_keys = moec_model_n_layers(model)};
    moec_layer_key *keys = moec_calloc(target.n_keys, sizeof(*keys));
    moec_status st;

    if (!keys)
        return moec_fail_nomem(err, "layer keys");
    for (size_t i = 0; i < target.n_keys; i++)
        keys[i] = moec_model_layer(model, i)->key;
    target.keys = keys;
    st = moec_placement_parse_for(out, &target, name, text, n, err);
    moec_free(keys);
    return st;
}
