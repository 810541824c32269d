/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: load counts of a running engine, read and summed over steps:
 *   SGLang's logical_count, vLLM's load window (counts of physical slots and
 *   the map they were counted under), bare arrays, NumPy files.
 * Refuses: counts that are negative, NaN or infinite, with row, column and
 *   value (P12); rows of different lengths; rows that are none of the model's
 *   layers (P02); columns that are not its experts (P03); a file that says
 *   its counts twice.
 *
 * Integers are summed as int64 and rounded to float once, as the engines do;
 * where any count is no integer, all are summed as doubles.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "npy.h"
#include "placement.h"

struct moec_counts {
    uint32_t n_layers, n_experts;
    uint64_t n_steps;
    float *loads;  /* [n_layers][n_experts] */
    double *sums;  /* the same before rounding */
    uint8_t *have; /* [n_layers] the file has a row for it */
};

/* Rows of the file are: */
typedef enum row_kind {
    ROWS_BY_COUNT, /* whichever their number fits */
    ROWS_DECODER,  /* decoder layers, then MTP ones; else as by_count */
    ROWS_MOE       /* MoE layers only */
} row_kind;

typedef struct reader {
    const char *name;
    const moec_model *model; /* NULL: rows and columns are what they are */
    row_kind kind;
    const json_t *json; /* the counts, one of the two */
    moec_npy npy;
    const json_t *map; /* physical_to_logical of the columns, or NULL */
    uint64_t n_steps, n_rows, n_cols;
    bool three; /* dimensions: steps come first */
    bool real;  /* some count is no integer */
    int64_t *sum;
    double *dsum; /* [n_rows][n_cols] */
} reader;

/* --------------------------------------------------------------- values */

static moec_status bad_count(const reader *r, uint64_t step, uint64_t cell,
                             const char *what, moec_error *err)
{
    char at[48] = "";

    if (r->three)
        snprintf(at, sizeof(at), "step %" PRIu64 ", ", step);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                     "%s: %srow %" PRIu64 ", column %" PRIu64
                     ": the count is %s, must be a finite number from 0 on",
                     r->name, at, cell / r->n_cols, cell % r->n_cols, what);
}

static moec_status add_integer(reader *r, uint64_t step, uint64_t cell,
                               int64_t v, moec_error *err)
{
    char text[24];

    snprintf(text, sizeof(text), "%" PRId64, v);
    if (v < 0)
        return bad_count(r, step, cell, text, err);
    if (__builtin_add_overflow(r->sum[cell], v, &r->sum[cell]))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                         "%s: row %" PRIu64 ", column %" PRIu64
                         ": the sum over the steps is beyond 2^63",
                         r->name, cell / r->n_cols, cell % r->n_cols);
    r->dsum[cell] += (double)v;
    return MOEC_OK;
}

static moec_status add_real(reader *r, uint64_t step, uint64_t cell, double v,
                            moec_error *err)
{
    char text[32];

    r->real = true;
    r->dsum[cell] += v;
    if (v >= 0 && r->dsum[cell] <= 3.402823466e+38)
        return MOEC_OK;
    snprintf(text, sizeof(text), "%g", v);
    return bad_count(r, step, cell, text, err);
}

static moec_status add_json(reader *r, uint64_t step, uint64_t row,
                            const json_t *items, moec_error *err)
{
    uint64_t cell = row * r->n_cols;

    for (size_t i = 0; i < r->n_cols; i++, cell++) {
        const json_t *v = json_array_get(items, i);

        if (moec_json_is(v, JSON_INTEGER))
            MOEC_TRY(add_integer(r, step, cell, json_integer_value(v), err));
        else if (moec_json_is(v, JSON_REAL))
            MOEC_TRY(add_real(r, step, cell, json_real_value(v), err));
        else
            return bad_count(r, step, cell, "no number", err);
    }
    return MOEC_OK;
}

static moec_status add_npy(reader *r, moec_error *err)
{
    uint64_t n = r->n_rows * r->n_cols;
    bool integer = moec_npy_is_integer(&r->npy);

    for (uint64_t i = 0; i < r->npy.n; i++) {
        int64_t v;

        if (!integer)
            MOEC_TRY(add_real(r, i / n, i % n, moec_npy_f64(&r->npy, i), err));
        else if (moec_npy_i64(&r->npy, i, &v))
            MOEC_TRY(add_integer(r, i / n, i % n, v, err));
        else
            return bad_count(r, i / n, i % n, "beyond 2^63", err);
    }
    return MOEC_OK;
}

/* --------------------------------------------------------------- shapes */

static moec_status no_array(const reader *r, const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                     "%s: %s, must be [layers][experts] or "
                     "[steps][layers][experts]",
                     r->name, what);
}

/* One step's rows: as many, and as long, as the first one's. */
static moec_status check_rows(const reader *r, uint64_t step,
                              const json_t *rows, moec_error *err)
{
    if (!moec_json_is(rows, JSON_ARRAY) || json_array_size(rows) != r->n_rows)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                         "%s: step %" PRIu64 " has %zu rows, step 0 has "
                         "%" PRIu64,
                         r->name, step, json_array_size(rows), r->n_rows);
    for (size_t i = 0; i < r->n_rows; i++) {
        const json_t *row = json_array_get(rows, i);

        if (!moec_json_is(row, JSON_ARRAY))
            return no_array(r, "a row is no list", err);
        if (json_array_size(row) != r->n_cols)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                             "%s: row %zu has %zu columns, row 0 has %" PRIu64,
                             r->name, i, json_array_size(row), r->n_cols);
    }
    return MOEC_OK;
}

static const json_t *step_rows(const reader *r, uint64_t step)
{
    return r->three ? json_array_get(r->json, (size_t)step) : r->json;
}

static moec_status json_shape(reader *r, moec_error *err)
{
    const json_t *rows, *first;

    if (!moec_json_is(r->json, JSON_ARRAY))
        return no_array(r, "the counts are no list", err);
    first = json_array_get(json_array_get(r->json, 0), 0);
    r->three = moec_json_is(first, JSON_ARRAY);
    r->n_steps = r->three ? json_array_size(r->json) : 1;
    rows = step_rows(r, 0);
    r->n_rows = json_array_size(rows);
    r->n_cols = json_array_size(json_array_get(rows, 0));
    if (r->n_rows == 0 || r->n_cols == 0)
        return no_array(r, "the counts are empty or one list", err);
    for (uint64_t s = 0; s < r->n_steps; s++)
        MOEC_TRY(check_rows(r, s, step_rows(r, s), err));
    return MOEC_OK;
}

static moec_status npy_shape(reader *r, moec_error *err)
{
    const uint64_t *shape = r->npy.shape;

    if (r->npy.rank != 2 && r->npy.rank != 3)
        return no_array(r, "the array has not 2 or 3 dimensions", err);
    if (r->npy.dtype == MOEC_DTYPE_BOOL)
        return no_array(r, "the array is one of booleans", err);
    r->three = r->npy.rank == 3;
    r->n_steps = r->three ? *shape++ : 1;
    r->n_rows = shape[0];
    r->n_cols = shape[1];
    if (r->npy.n == 0)
        return no_array(r, "the array is empty", err);
    return MOEC_OK;
}

/* Shape and sums of the file's counts. */
static moec_status sum_up(reader *r, moec_error *err)
{
    MOEC_TRY(r->json ? json_shape(r, err) : npy_shape(r, err));
    if (r->n_cols > MOEC_PLACEMENT_SLOTS_MAX || r->n_rows > UINT32_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                         "%s: %" PRIu64 " layers of %" PRIu64
                         " experts are beyond what is placed",
                         r->name, r->n_rows, r->n_cols);
    r->sum = moec_calloc(r->n_rows * r->n_cols, sizeof(*r->sum));
    r->dsum = moec_calloc(r->n_rows * r->n_cols, sizeof(*r->dsum));
    if (!r->sum || !r->dsum)
        return moec_fail_nomem(err, "load counts");
    if (!r->json)
        return add_npy(r, err);
    for (uint64_t s = 0; s < r->n_steps; s++) {
        for (size_t i = 0; i < r->n_rows; i++)
            MOEC_TRY(
                add_json(r, s, i, json_array_get(step_rows(r, s), i), err));
    }
    return MOEC_OK;
}

/* ------------------------------------------- physical counts to logical */

static moec_status map_id(const reader *r, size_t row, size_t slot,
                          int64_t *out, moec_error *err)
{
    const json_t *ids = json_array_get(r->map, row);
    const json_t *id = json_array_get(ids, slot);

    if (!moec_json_is(ids, JSON_ARRAY) || json_array_size(ids) != r->n_cols)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                         "%s: row %zu of the map has %zu slots, the counts "
                         "have %" PRIu64,
                         r->name, row, json_array_size(ids), r->n_cols);
    if (!moec_json_is(id, JSON_INTEGER) || json_integer_value(id) < -1 ||
        json_integer_value(id) >= MOEC_PLACEMENT_SLOTS_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                         "%s: row %zu, slot %zu of the map: no logical expert",
                         r->name, row, slot);
    *out = json_integer_value(id);
    return MOEC_OK;
}

/* Largest id of the map plus one: E, where no model says it. */
static moec_status map_experts(const reader *r, uint64_t *out, moec_error *err)
{
    uint64_t most = 0;

    if (!moec_json_is(r->map, JSON_ARRAY) ||
        json_array_size(r->map) != r->n_rows)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                         "%s: the map has %zu rows, the counts have %" PRIu64,
                         r->name, json_array_size(r->map), r->n_rows);
    for (size_t row = 0; row < r->n_rows; row++) {
        for (size_t i = 0; i < r->n_cols; i++) {
            int64_t id;

            MOEC_TRY(map_id(r, row, i, &id, err));
            most = moec_max_u64(most, (uint64_t)(id + 1));
        }
    }
    *out = most;
    return MOEC_OK;
}

/* Replace the columns, physical slots, by logical experts. */
static moec_status fold(reader *r, moec_error *err)
{
    uint64_t n = 0, cells;
    int64_t *sum;
    double *dsum;

    MOEC_TRY(map_experts(r, &n, err));
    if (n == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                         "%s: the map has no expert", r->name);
    cells = r->n_rows * n;
    sum = moec_calloc(cells, sizeof(*sum));
    dsum = moec_calloc(cells, sizeof(*dsum));
    if (!sum || !dsum) {
        moec_free(sum);
        moec_free(dsum);
        return moec_fail_nomem(err, "load counts");
    }
    for (size_t row = 0; row < r->n_rows; row++) {
        const json_t *ids = json_array_get(r->map, row);

        for (size_t i = 0; i < r->n_cols; i++) {
            int64_t id = json_integer_value(json_array_get(ids, i));
            uint64_t from = row * r->n_cols + i;

            if (id < 0)
                continue;
            /* Partial sums of what summed to under 2^63 may pass it: then
             * the doubles are what is left. */
            if (__builtin_add_overflow(sum[row * n + (uint64_t)id],
                                       r->sum[from],
                                       &sum[row * n + (uint64_t)id]))
                r->real = true;
            dsum[row * n + (uint64_t)id] += r->dsum[from];
        }
    }
    moec_free(r->sum);
    moec_free(r->dsum);
    r->sum = sum;
    r->dsum = dsum;
    r->n_cols = n;
    return MOEC_OK;
}

/* ---------------------------------------------------- rows and the layers */

typedef struct model_rows {
    uint64_t n_decoder, n_main, n_mtp_rows, n_keys;
} model_rows;

static model_rows rows_of(const moec_model *model)
{
    model_rows m = {.n_decoder = moec_model_facts(model)->n_layers,
                    .n_keys = moec_model_n_layers(model)};

    for (size_t i = 0; i < m.n_keys; i++) {
        moec_layer_key key = moec_model_layer(model, i)->key;

        if (key.space == MOEC_SPACE_MAIN)
            m.n_main++;
        else
            m.n_mtp_rows = moec_max_u64(m.n_mtp_rows, key.number + UINT64_C(1));
    }
    return m;
}

/* Do the rows of dense layers count nothing? */
static bool dense_rows_are_zero(const reader *r, const model_rows *m)
{
    for (uint64_t row = 0; row < moec_min_u64(m->n_decoder, r->n_rows); row++) {
        moec_layer_key key = {MOEC_SPACE_MAIN, (uint32_t)row};

        if (moec_model_find_layer(r->model, key) != MOEC_NO_LAYER)
            continue;
        for (uint64_t i = 0; i < r->n_cols; i++) {
            if (r->dsum[row * r->n_cols + i] != 0)
                return false;
        }
    }
    return true;
}

/* Are the rows decoder layers (else MoE layers)? */
static moec_status choose_rows(const reader *r, const model_rows *m,
                               bool *decoder_out, moec_error *err)
{
    bool decoder =
        r->n_rows >= m->n_decoder && r->n_rows - m->n_decoder <= m->n_mtp_rows;
    bool moe = r->n_rows >= m->n_main && r->n_rows <= m->n_keys;

    if (r->kind == ROWS_MOE)
        decoder = false;
    /* A model with as many dense as MTP layers: both fit. */
    if (decoder && moe && r->kind == ROWS_BY_COUNT)
        decoder = dense_rows_are_zero(r, m);
    *decoder_out = decoder;
    if (decoder || moe)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                     "%s: %" PRIu64 " rows, must be %" PRIu64
                     " (decoder layers) or %" PRIu64
                     " (MoE layers), MTP layers behind them",
                     r->name, r->n_rows, m->n_decoder, m->n_main);
}

/* Row of the file for layer `i` of the model; past the rows: none. */
static uint64_t row_of(const reader *r, const model_rows *m, bool decoder,
                       size_t i)
{
    moec_layer_key key = moec_model_layer(r->model, i)->key;

    if (!decoder)
        return i;
    return key.space == MOEC_SPACE_MAIN ? key.number
                                        : m->n_decoder + key.number;
}

static void copy_row(moec_counts *c, size_t layer, const reader *r,
                     uint64_t row)
{
    c->have[layer] = 1;
    for (uint64_t i = 0; i < r->n_cols; i++) {
        uint64_t to = layer * (uint64_t)c->n_experts + i;
        uint64_t from = row * r->n_cols + i;

        c->sums[to] = r->dsum[from];
        c->loads[to] = r->real ? (float)r->dsum[from] : (float)r->sum[from];
    }
}

static moec_status take_rows(moec_counts *c, const reader *r, moec_error *err)
{
    bool decoder = false;
    model_rows m;

    if (!r->model) {
        for (size_t i = 0; i < c->n_layers; i++)
            copy_row(c, i, r, i);
        return MOEC_OK;
    }
    m = rows_of(r->model);
    MOEC_TRY(choose_rows(r, &m, &decoder, err));
    for (size_t i = 0; i < c->n_layers; i++) {
        uint64_t row = row_of(r, &m, decoder, i);

        if (row < r->n_rows)
            copy_row(c, i, r, row);
    }
    return MOEC_OK;
}

static moec_status make_counts(moec_counts **out, reader *r, moec_error *err)
{
    moec_counts *c;
    moec_status st = MOEC_E_NOMEM;
    uint64_t n_layers = r->n_rows, n_experts = r->n_cols;

    if (r->model) {
        n_layers = moec_model_n_layers(r->model);
        n_experts = moec_model_facts(r->model)->n_experts;
        /* A map need not name the last experts; it may not name others. */
        if (r->n_cols != n_experts && !(r->map && r->n_cols < n_experts))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                             "%s: counts of %" PRIu64
                             " experts, the model has %" PRIu64,
                             r->name, r->n_cols, n_experts);
    }
    c = moec_calloc(1, sizeof(*c));
    if (!c)
        return moec_fail_nomem(err, "load counts");
    c->n_layers = (uint32_t)n_layers;
    c->n_experts = (uint32_t)n_experts;
    c->n_steps = r->n_steps;
    c->loads = moec_calloc(n_layers * n_experts, sizeof(*c->loads));
    c->sums = moec_calloc(n_layers * n_experts, sizeof(*c->sums));
    c->have = moec_calloc(n_layers, 1);
    st = c->loads && c->sums && c->have ? take_rows(c, r, err)
                                        : moec_fail_nomem(err, "load counts");
    if (st != MOEC_OK) {
        moec_counts_destroy(c);
        return st;
    }
    *out = c;
    return MOEC_OK;
}

/* ------------------------------------------------------------- the file */

/* Keys under which engines and their tools write counts. */
static const struct {
    const char *key;
    row_kind kind;
    bool physical;
} known_keys[] = {
    {"logical_count", ROWS_DECODER, false},  /* SGLang */
    {"physical_count", ROWS_DECODER, true},  /* SGLang, by slot */
    {"expert_load_window", ROWS_MOE, true},  /* vLLM, [window] first */
    {"expert_load_pass", ROWS_MOE, true},    /* vLLM, one pass */
    {"global_expert_load", ROWS_MOE, false}, /* vLLM, reduced */
    {"logical_expert_load", ROWS_MOE, false},
};
static const char *const map_keys[] = {"physical_to_logical_map",
                                       "last_physical_to_logical_map"};

static moec_status take_map(reader *r, const json_t *object, moec_error *err)
{
    for (size_t i = 0; i < sizeof(map_keys) / sizeof(map_keys[0]); i++) {
        r->map = json_object_get(object, map_keys[i]);
        if (r->map)
            return MOEC_OK;
    }
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                     "%s: counts of physical slots without "
                     "physical_to_logical_map: whose they are is not known",
                     r->name);
}

static moec_status take_object(reader *r, const json_t *object, moec_error *err)
{
    const char *found = NULL;
    bool physical = false;

    for (size_t i = 0; i < sizeof(known_keys) / sizeof(known_keys[0]); i++) {
        const json_t *value = json_object_get(object, known_keys[i].key);

        if (!value)
            continue;
        if (found)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                             "%s: both '%s' and '%s': which counts are meant?",
                             r->name, found, known_keys[i].key);
        found = known_keys[i].key;
        r->json = value;
        r->kind = known_keys[i].kind;
        physical = known_keys[i].physical;
    }
    if (!found)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P12,
                         "%s: the object has no key 'logical_count', nor "
                         "another that an engine writes counts under",
                         r->name);
    return physical ? take_map(r, object, err) : MOEC_OK;
}

static moec_status read_counts(moec_counts **out, reader *r, moec_error *err)
{
    moec_status st = sum_up(r, err);

    if (st == MOEC_OK && r->map)
        st = fold(r, err);
    if (st == MOEC_OK)
        st = make_counts(out, r, err);
    moec_free(r->sum);
    moec_free(r->dsum);
    return st;
}

moec_status moec_counts_parse(moec_counts **out, const moec_model *model,
                              const char *name, const void *data, size_t n,
                              moec_error *err)
{
    reader r = {.name = name, .model = model};
    json_t *root = NULL;
    moec_status st = MOEC_OK;

    if (moec_npy_is(data, n)) {
        MOEC_TRY(moec_npy_open(&r.npy, name, data, n, MOEC_RULE_P12, err));
        return read_counts(out, &r, err);
    }
    MOEC_TRY(moec_json_parse(data, n, name, MOEC_RULE_P12, MOEC_RULE_P12, &root,
                             err));
    r.json = root;
    if (moec_json_is(root, JSON_OBJECT))
        st = take_object(&r, root, err);
    if (st == MOEC_OK)
        st = read_counts(out, &r, err);
    json_decref(root);
    return st;
}

void moec_counts_destroy(moec_counts *c)
{
    if (!c)
        return;
    moec_free(c->loads);
    moec_free(c->sums);
    moec_free(c->have);
    moec_free(c);
}

uint32_t moec_counts_n_layers(const moec_counts *c)
{
    return c->n_layers;
}

uint32_t moec_counts_n_experts(const moec_counts *c)
{
    return c->n_experts;
}

uint64_t moec_counts_n_steps(const moec_counts *c)
{
    return c->n_steps;
}

int moec_counts_has(const moec_counts *c, uint32_t layer)
{
    return c->have[layer];
}

const float *moec_counts_loads(const moec_counts *c)
{
    return c->loads;
}

const double *moec_counts_sums(const moec_counts *c)
{
    return c->sums;
}
