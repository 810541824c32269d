/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: placement files that are JSON, told apart by their keys:
 *     {"physical_to_logical_map": [layers][P]}            SGLang
 *     {"moe_layer_count", "layer_list"}                   vllm-ascend
 *     {"phy2log", "log2phy", "logcnt"}                    EPLB's three arrays
 *     [moe_layers][P], [moe_layers][E][X]                 phy2log, log2phy
 *     {"num_slots", "initial_global_assignments"}         TensorRT-LLM's YAML,
 *                                                         of which JSON is one
 * Refuses: other keys beside these (SGLang passes them on as arguments and
 *   fails, P01), rows that are no lists (P01), load counts (UNSUPPORTED: they
 *   name no slots). Of vllm-ascend's files what the engine would let through:
 *   it reads layers and devices by where they stand and never looks at
 *   layer_id and device_id.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "placement_rows.h"

#define KEY_MAP    "physical_to_logical_map"
#define WRITE_JSON "{\"" KEY_MAP "\": [layers][slots]}"

/* ------------------------------------------------------------------ ids */

static void push_id(moec_rows *r, const json_t *value)
{
    char what[64] = "";

    /* A range of items was checked: NULL is for the compiler alone. */
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_INTEGER:
        moec_rows_push(r, json_integer_value(value));
        return;
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
    moec_rows_push_bad(r, what);
}

static void push_ids(moec_rows *r, const json_t *list)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        push_id(r, json_array_get(list, i));
}

/* [rows][slots], each row a list. */
static moec_status push_rows(moec_rows *r, const json_t *rows, const char *key,
                             moec_error *err)
{
    size_t bad = SIZE_MAX;
    char at[MOEC_ROWS_TEXT_BYTES];

    if (!moec_json_is(rows, JSON_ARRAY))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: %s is no list of rows", r->name, key);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);

        moec_rows_begin(r, i);
        if (!moec_json_is(row, JSON_ARRAY) && bad == SIZE_MAX)
            bad = i;
        push_ids(r, row);
    }
    if (bad == SIZE_MAX || r->rows.oom)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                     "%s: %s: the row is no list of ids", r->name,
                     moec_rows_text(r, bad, at));
}

/* ---------------------------------------------------------- EPLB arrays */

static bool is_list_of_lists_of_lists(const json_t *value)
{
    return moec_json_is(json_array_get(json_array_get(value, 0), 0),
                        JSON_ARRAY);
}

typedef struct flat {
    const moec_rows *r;
    const char *key;
    moec_int_array *a;
    size_t at;
} flat;

static moec_status flatten(flat *f, const json_t *value, uint32_t dim,
                           moec_error *err)
{
    const moec_int_array *a = f->a;
    size_t n = json_array_size(value);

    if (!moec_json_is(value, JSON_ARRAY) || n != a->shape[dim])
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                         "%s: %s: a list of %zu values, must be %" PRIu64
                         " like the first (%" PRIu32 " dimensions)",
                         f->r->name, f->key, n, a->shape[dim], a->n_dims);
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(value, i);

        if (dim + 1 < a->n_dims) {
            MOEC_TRY(flatten(f, item, dim + 1, err));
            continue;
        }
        if (!moec_json_is(item, JSON_INTEGER))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                             "%s: %s: value %zu is no integer", f->r->name,
                             f->key, f->at);
        a->v[f->at++] = json_integer_value(item);
    }
    return MOEC_OK;
}

/* A nested list as an array of `n_dims` dimensions in a->a[0]. */
static moec_status read_array(const moec_rows *r, moec_int_arrays *a,
                              const json_t *value, const char *key,
                              uint32_t n_dims, moec_error *err)
{
    flat f = {.r = r, .key = key};
    uint64_t shape[MOEC_ARRAY_DIMS] = {0};
    const json_t *first = value;

    for (uint32_t d = 0; d < n_dims; d++) {
        shape[d] = json_array_size(first);
        if (shape[d] == 0)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                             "%s: %s: must be lists in %" PRIu32
                             " dimensions, none of them empty",
                             r->name, key, n_dims);
        first = json_array_get(first, 0);
    }
    MOEC_TRY(moec_int_arrays_add(a, key, shape, n_dims, MOEC_JSON_BYTES_MAX,
                                 &f.a, r->name, err));
    return flatten(&f, value, 0, err);
}

static moec_status take_log2phy(moec_rows *r, const json_t *value,
                                moec_error *err)
{
    moec_int_arrays a = {0};
    moec_status st = read_array(r, &a, value, "log2phy", 3, err);

    if (st == MOEC_OK)
        st = moec_rows_take_log2phy(r, &a.a[0], err);
    moec_int_arrays_fini(&a);
    return st;
}

static moec_status take_logcnt(moec_rows *r, const json_t *value,
                               moec_error *err)
{
    moec_int_arrays a = {0};
    moec_status st = read_array(r, &a, value, "logcnt", 2, err);

    if (st == MOEC_OK)
        st = moec_rows_check_logcnt(r, &a.a[0], err);
    moec_int_arrays_fini(&a);
    return st;
}

static moec_status read_eplb(moec_rows *r, const moec_json *root,
                             moec_error *err)
{
    static const char *const known[] = {"phy2log", "log2phy", "logcnt"};
    const json_t *phy2log = json_object_get(root->value, "phy2log");
    const json_t *log2phy = json_object_get(root->value, "log2phy");
    const json_t *logcnt = json_object_get(root->value, "logcnt");

    MOEC_TRY(moec_json_only_keys(root, known, 3, err));
    r->kind = MOEC_ROWS_MOE;
    r->form = MOEC_PLACEMENT_EPLB;
    if (phy2log)
        MOEC_TRY(push_rows(r, phy2log, "phy2log", err));
    if (log2phy)
        MOEC_TRY(take_log2phy(r, log2phy, err));
    if (!phy2log && !log2phy)
        return moec_rows_fail_logcnt(r, err);
    return logcnt ? take_logcnt(r, logcnt, err) : MOEC_OK;
}

/* --------------------------------------------------------- vllm-ascend */

static moec_status read_device(moec_rows *r, const moec_json *device,
                               uint32_t id, size_t *n_local, moec_error *err)
{
    static const char *const known[] = {"device_id", "device_expert"};
    size_t row = moec_rows_count(r) - 1, n;
    char at[MOEC_ROWS_TEXT_BYTES];
    moec_json experts;
    uint32_t said;

    MOEC_TRY(moec_json_only_keys(device, known, 2, err));
    MOEC_TRY(moec_json_get_u32(device, "device_id", UINT32_MAX, &said, err));
    if (said != id)
        return moec_json_fail(device, MOEC_RULE_P01, err,
                              "device_id %" PRIu32 " stands in place %" PRIu32
                              ": the engine reads devices by their place",
                              said, id);
    MOEC_TRY(moec_json_get_array(device, "device_expert", &experts, err));
    n = moec_json_len(&experts);
    if (*n_local == SIZE_MAX)
        *n_local = n;
    if (n != *n_local)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                         "%s: %s: device %" PRIu32
                         " has %zu slots, the first one has %zu",
                         r->name, moec_rows_text(r, row, at), id, n, *n_local);
    push_ids(r, experts.value);
    return MOEC_OK;
}

static moec_status read_layer(moec_rows *r, const moec_json *layer,
                              size_t *n_local, moec_error *err)
{
    static const char *const known[] = {"layer_id", "device_count",
                                        "device_list"};
    moec_json devices;
    uint32_t id, n_ranks;

    MOEC_TRY(moec_json_only_keys(layer, known, 3, err));
    MOEC_TRY(moec_json_get_u32(layer, "layer_id", INT32_MAX, &id, err));
    MOEC_TRY(moec_json_get_u32(layer, "device_count", MOEC_PLACEMENT_SLOTS_MAX,
                               &n_ranks, err));
    MOEC_TRY(moec_json_get_array(layer, "device_list", &devices, err));
    if (n_ranks == 0 || n_ranks != moec_json_len(&devices))
        return moec_json_fail(layer, MOEC_RULE_P03, err,
                              "device_count %" PRIu32
                              ", but device_list has %zu devices",
                              n_ranks, moec_json_len(&devices));
    if (r->n_ranks == 0)
        r->n_ranks = n_ranks;
    if (r->n_ranks != n_ranks)
        return moec_json_fail(layer, MOEC_RULE_P03, err,
                              "device_count %" PRIu32
                              ", the first layer has %" PRIu32,
                              n_ranks, r->n_ranks);
    moec_rows_begin(r, id);
    for (uint32_t i = 0; i < n_ranks; i++) {
        moec_json device = moec_json_item(&devices, i);

        MOEC_TRY(moec_json_want_object(&device, err));
        MOEC_TRY(read_device(r, &device, i, n_local, err));
    }
    return MOEC_OK;
}

/* layer_id counts MoE layers; files that number decoder layers are understood
 * where the numbers leave no doubt. */
static moec_status check_layer_ids(moec_rows *r, moec_error *err)
{
    bool counted = true;

    for (size_t i = 0; i < moec_rows_count(r); i++) {
        uint64_t id = moec_rows_at(r, i)->number;

        if (i > 0 && id <= moec_rows_at(r, i - 1)->number)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                             "%s: layer_id %" PRIu64 " stands behind %" PRIu64
                             ": the engine reads layers by their place",
                             r->name, id, moec_rows_at(r, i - 1)->number);
        counted = counted && id == i;
    }
    r->kind = counted ? MOEC_ROWS_MOE : MOEC_ROWS_NUMBERED;
    return MOEC_OK;
}

static moec_status read_ascend(moec_rows *r, const moec_json *root,
                               moec_error *err)
{
    static const char *const known[] = {"moe_layer_count", "layer_list"};
    size_t n_local = SIZE_MAX;
    moec_json layers;
    uint32_t n;

    MOEC_TRY(moec_json_only_keys(root, known, 2, err));
    MOEC_TRY(moec_json_get_u32(root, "moe_layer_count", UINT32_MAX, &n, err));
    MOEC_TRY(moec_json_get_array(root, "layer_list", &layers, err));
    if (n != moec_json_len(&layers))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                         "%s: moe_layer_count %" PRIu32
                         ", but layer_list has %zu layers",
                         r->name, n, moec_json_len(&layers));
    r->kind = MOEC_ROWS_MOE;
    r->form = MOEC_PLACEMENT_VLLM_ASCEND;
    for (uint32_t i = 0; i < n; i++) {
        moec_json layer = moec_json_item(&layers, i);

        MOEC_TRY(moec_json_want_object(&layer, err));
        MOEC_TRY(read_layer(r, &layer, &n_local, err));
    }
    return r->rows.oom ? MOEC_OK : check_layer_ids(r, err);
}

/* ----------------------------------------------------------- which form */

static bool has(const json_t *object, const char *key)
{
    return json_object_get(object, key) != NULL;
}

static moec_status read_sglang(moec_rows *r, const moec_json *root,
                               moec_error *err)
{
    static const char *const known[] = {KEY_MAP};

    if (!has(root->value, KEY_MAP) && has(root->value, "logical_count"))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01,
                         "%s: 'logical_count' is loads, not a placement: "
                         "`placement eplb --logical-count` makes one of them",
                         r->name);
    if (!has(root->value, KEY_MAP))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: the object has no key '" KEY_MAP
                         "', nor those of another engine's placement",
                         r->name);
    MOEC_TRY(moec_json_only_keys(root, known, 1, err));
    r->kind = MOEC_ROWS_DECODER;
    r->form = MOEC_PLACEMENT_SGLANG;
    return push_rows(r, json_object_get(root->value, KEY_MAP), KEY_MAP, err);
}

static moec_status read_list(moec_rows *r, const json_t *value, moec_error *err)
{
    r->kind = MOEC_ROWS_MOE;
    r->form = MOEC_PLACEMENT_PHY2LOG;
    if (is_list_of_lists_of_lists(value)) {
        r->form = MOEC_PLACEMENT_LOG2PHY;
        return take_log2phy(r, value, err);
    }
    return push_rows(r, value, "the file", err);
}

static moec_status read_value(moec_rows *r, json_t *value, const char *text,
                              size_t n, moec_error *err)
{
    const moec_json_doc doc = {.name = r->name,
                               .other = MOEC_RULE_P01,
                               .missing = MOEC_RULE_P01,
                               .integer = MOEC_RULE_P01};
    moec_json root = moec_json_root(value, &doc);

    if (moec_json_is(value, JSON_ARRAY))
        return read_list(r, value, err);
    if (has(value, "num_slots") || has(value, "initial_global_assignments"))
        return moec_rows_read_yaml(r, text, n, err);
    if (has(value, "moe_layer_count") || has(value, "layer_list"))
        return read_ascend(r, &root, err);
    if (has(value, "phy2log") || has(value, "log2phy") || has(value, "logcnt"))
        return read_eplb(r, &root, err);
    return read_sglang(r, &root, err);
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
static moec_status find_bad_token(const moec_rows *r, const char *text,
                                  size_t n, moec_error *err)
{
    size_t ids_depth = r->kind == MOEC_ROWS_DECODER ? 3 : 2;
    char at[MOEC_ROWS_TEXT_BYTES], range[32] = "";
    scan s = {0};

    if (r->target->n_experts > 0)
        snprintf(range, sizeof(range), " in [0, %" PRIu32 ")",
                 r->target->n_experts);
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
                                "integer%s",
                                r->name, moec_rows_text(r, s.row, at), s.slot,
                                (int)(len < 32 ? len : 32), text + s.at, range);
        s.at += len - 1;
    }
    return MOEC_OK;
}

static bool begins_with_object(const char *text, size_t n)
{
    size_t at = 0;

    while (at < n && (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' ||
                      text[at] == '\t'))
        at++;
    return at < n && text[at] == '{';
}

/* True where a row and a slot can be told from brackets alone. */
static bool rows_by_brackets(const char *text, size_t n)
{
    return !begins_with_object(text, n) ||
           memmem(text, n, KEY_MAP, strlen(KEY_MAP)) != NULL;
}

moec_status moec_rows_read_json(moec_rows *r, const char *text, size_t n,
                                moec_error *err)
{
    moec_error parse_err = MOEC_ERROR_INIT;
    json_t *value = NULL;
    moec_status st;

    st = moec_json_parse(text, n, r->name, MOEC_RULE_P01, MOEC_RULE_P01, &value,
                         &parse_err);
    if (st != MOEC_OK) {
        r->kind =
            begins_with_object(text, n) ? MOEC_ROWS_DECODER : MOEC_ROWS_MOE;
        /* The first error wins: the slot, where one is at fault. */
        if (parse_err.rule == MOEC_RULE_P01 && rows_by_brackets(text, n))
            MOEC_TRY(find_bad_token(r, text, n, err));
        if (err && err->status == MOEC_OK)
            *err = parse_err;
        return st;
    }
    st = read_value(r, value, text, n, err);
    json_decref(value);
    return st;
}
