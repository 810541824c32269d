/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: recorded routes from arrays [rows][layers][K], and vLLM's form
 *   of them: .npy of uint8 up to 256 experts, else uint16. Like SGLang's
 *   (routes_sglang.c) they have rows for dense layers, whose zeros mean
 *   nothing, and no value for "none" but negative numbers: 255 and 65535 are
 *   experts here.
 * Refuses: arrays of other shape, ids that are no expert, and exports that
 *   would lose something.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "routes_engines.h"

#define BATCH_ROWS 1024u

/* ------------------------------------------------------------- arrays */

/* An array on its way into a recorder. */
typedef struct import {
    moec_recorder *r;
    const moec_routes_shape *shape;
    const moec_placement *placement;
    const char *name;
    moec_npy array; /* [rows][layers][K] */
    uint32_t n_layers;
    uint64_t handle, start;
    moec_route_key keys[BATCH_ROWS];
    int32_t ids[BATCH_ROWS * ROUTES_K_MAX];
} import;

uint32_t moec_form_main_layers(const moec_routes_shape *s)
{
    uint32_t n = 0;

    while (n < s->n_layers && s->keys[n].space == MOEC_SPACE_MAIN)
        n++;
    return n;
}

/* Layers of an engine's array: decoder layers, or main MoE layers. */
static moec_status check_layers(const moec_routes_shape *s, const char *name,
                                uint64_t n_layers, moec_error *err)
{
    uint32_t n_main = moec_form_main_layers(s);

    if (n_layers == n_main || (s->n_decoder > 0 && n_layers == s->n_decoder))
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R02,
                     "%s: rows of %" PRIu64 " layers, must be %" PRIu32
                     " (MoE layers) or %" PRIu32 " (decoder layers)",
                     name, n_layers, n_main, s->n_decoder);
}

/* The logical id of what the array says, or a failure. */
static moec_status to_logical(const import *m, uint32_t layer, uint64_t row,
                              int64_t id, int32_t *out, moec_error *err)
{
    const moec_routes_shape *s = m->shape;
    int64_t limit = (int64_t)s->n_experts + s->n_zero;
    char name[ROUTES_KEY_BYTES];

    if (m->placement)
        limit = moec_placement_n_physical(m->placement);
    if (id >= limit)
        return moec_fail(
            err, MOEC_E_FORMAT, MOEC_RULE_R03,
            "%s: row %" PRIu64 ", layer %s: id %" PRId64 " of %" PRId64 " %s",
            m->name, row, moec_routes_key_text(s->keys[layer], name), id, limit,
            m->placement ? "slots" : "experts");
    *out = id < 0 ? -1 : (int32_t)id;
    if (id < 0 || !m->placement)
        return MOEC_OK;
    *out = moec_placement_row(m->placement, layer)[id];
    if (*out < 0)
        return moec_fail(
            err, MOEC_E_FORMAT, MOEC_RULE_R03,
            "%s: row %" PRIu64 ", layer %s: slot %" PRId64 " is empty", m->name,
            row, moec_routes_key_text(s->keys[layer], name), id);
    return MOEC_OK;
}

/* Append rows [row, row + n) of one recorded layer. */
static moec_status import_layer(import *m, uint32_t layer, uint64_t row,
                                uint64_t n, moec_error *err)
{
    uint32_t k = m->shape->top_k;
    uint32_t column = m->n_layers == m->shape->n_decoder
                          ? m->shape->keys[layer].number
                          : layer;

    for (uint64_t t = 0; t < n; t++) {
        uint64_t at = ((row + t) * m->n_layers + column) * k;

        for (uint32_t c = 0; c < k; c++) {
            int64_t id = 0;

            if (!moec_npy_i64(&m->array, at + c, &id))
                return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R03,
                                 "%s: element %" PRIu64 " is no id", m->name,
                                 at + c);
            MOEC_TRY(
                to_logical(m, layer, row + t, id, &m->ids[t * k + c], err));
        }
    }
    return moec_recorder_append(m->r, layer, m->keys, m->ids, 0, n, err);
}

static moec_status import_rows(import *m, uint64_t n_rows, moec_error *err)
{
    uint32_t n_main = moec_form_main_layers(m->shape);

    if (m->start > MOEC_ROUTE_POSITION_MAX ||
        n_rows > MOEC_ROUTE_POSITION_MAX - m->start)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: %" PRIu64 " rows from position %" PRIu64
                         " pass the last one, %" PRIu32,
                         m->name, n_rows, m->start, MOEC_ROUTE_POSITION_MAX);
    MOEC_TRY(moec_recorder_gap(m->r, m->handle, 0, (uint32_t)m->start, err));
    for (uint64_t row = 0; row < n_rows; row += BATCH_ROWS) {
        uint64_t n = moec_min_u64(BATCH_ROWS, n_rows - row);

        for (uint64_t t = 0; t < n; t++)
            m->keys[t] =
                (moec_route_key){.request = m->handle,
                                 .position = (uint32_t)(m->start + row + t)};
        for (uint32_t l = 0; l < n_main; l++)
            MOEC_TRY(import_layer(m, l, row, n, err));
    }
    return MOEC_OK;
}

static moec_status check_placement(const moec_routes_shape *s,
                                   const moec_placement *p, moec_error *err)
{
    if (!p)
        return MOEC_OK;
    /* Its MTP layers stand behind the main ones and may be left out. */
    if (moec_placement_n_layers(p) < s->n_layers ||
        moec_placement_n_experts(p) != s->n_experts)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                         "the placement has %" PRIu32 " layers of %" PRIu32
                         " experts, the recording %" PRIu32 " of %" PRIu32,
                         moec_placement_n_layers(p),
                         moec_placement_n_experts(p), s->n_layers,
                         s->n_experts);
    return MOEC_OK;
}

/* Import an array that a view describes, as request `id`. */
moec_status moec_form_import(moec_recorder *r,
                             const moec_routes_import_opts *opts,
                             const char *name, const char *id, uint32_t sample,
                             uint64_t start, const moec_npy *array,
                             moec_error *err)
{
    const moec_routes_shape *s = moec_recorder_shape(r);
    import *m;
    moec_status st;

    MOEC_TRY(check_placement(s, opts->placement, err));
    MOEC_TRY(check_layers(s, name, array->shape[1], err));
    m = moec_alloc(sizeof(*m));
    if (!m)
        return moec_fail_nomem(err, name);
    m->r = r;
    m->shape = s;
    m->placement = opts->placement;
    m->name = name;
    m->array = *array;
    m->n_layers = (uint32_t)array->shape[1];
    m->start = start == UINT64_MAX ? 0 : start;
    st = moec_recorder_request(r, id, sample, &m->handle, err);
    if (st == MOEC_OK)
        st = import_rows(m, array->shape[0], err);
    moec_free(m);
    return st;
}

moec_status moec_form_check(const moec_recorder *r,
                            const moec_routes_import_opts *opts,
                            const char *name, const void *data, moec_error *err)
{
    if (!r || !opts || opts->struct_bytes < sizeof(*opts) || !name || !data)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "import: recorder, opts, name or data is NULL");
    return MOEC_OK;
}

const char *moec_form_id(const moec_routes_import_opts *opts)
{
    return opts->request ? opts->request : "0";
}

moec_status moec_routes_import_array(moec_recorder *r,
                                     const moec_routes_import_opts *opts,
                                     const char *name, moec_dtype dtype,
                                     const void *data, uint64_t n_rows,
                                     uint32_t n_layers, moec_error *err)
{
    moec_npy a = {.rank = 3, .dtype = dtype, .data = data};
    uint64_t n = 0;

    MOEC_TRY(moec_form_check(r, opts, name, data, err));
    a.shape[0] = n_rows;
    a.shape[1] = n_layers;
    a.shape[2] = moec_recorder_shape(r)->top_k;
    if (!moec_npy_is_integer(&a) || !moec_mul_u64(n_rows, n_layers, &n) ||
        !moec_mul_u64(n, a.shape[2], &a.n))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "import: %" PRIu64 " rows of dtype %s", n_rows,
                         moec_dtype_name(dtype));
    return moec_form_import(r, opts, name, moec_form_id(opts), opts->sample,
                            opts->start, &a, err);
}

moec_status moec_routes_import_vllm(moec_recorder *r,
                                    const moec_routes_import_opts *opts,
                                    const char *name, const void *data,
                                    size_t n, moec_error *err)
{
    moec_npy a;

    MOEC_TRY(moec_form_check(r, opts, name, data, err));
    MOEC_TRY(moec_npy_open(&a, name, data, n, MOEC_RULE_R01, err));
    if (a.rank != 3 || a.shape[2] != moec_recorder_shape(r)->top_k ||
        !moec_npy_is_integer(&a))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: an array of %" PRIu32 " dimensions of %s, must "
                         "be integers [tokens, layers, %" PRIu32 "]",
                         name, a.rank, moec_dtype_name(a.dtype),
                         moec_recorder_shape(r)->top_k);
    return moec_form_import(r, opts, name, moec_form_id(opts), opts->sample,
                            opts->start, &a, err);
}

/* ------------------------------------------------------------- exports */

/* The request, once it is clear that rows [first, first + n) without a hole
 * are all it has. */
moec_status moec_form_exportable(const moec_routes *r, uint64_t request,
                                 moec_routes_request *out, moec_error *err)
{
    moec_routes_request q;
    const uint32_t *p = r ? r->positions : NULL;

    if (!r || request >= r->n_requests)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "export: no such request");
    q = moec_routes_get_request(r, request);
    if (r->shape.n_decoder == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "export: the recording does not say how many decoder "
                         "layers the model has");
    for (uint64_t t = q.first_token + 1; t < q.first_token + q.n_tokens; t++)
        if (p[t] != p[t - 1] + 1)
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R06,
                             "request '%s', sample %" PRIu32
                             ": no row between positions %" PRIu32
                             " and %" PRIu32,
                             q.id, q.sample, p[t - 1], p[t]);
    for (uint64_t g = 0; g < q.n_gaps; g++)
        if (q.n_tokens == 0 || q.gaps[g].first > p[q.first_token])
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R06,
                             "request '%s', sample %" PRIu32
                             ": a gap at position %" PRIu32 " behind its rows",
                             q.id, q.sample, q.gaps[g].first);
    *out = q;
    return MOEC_OK;
}

/* Room for n bytes behind `head`, malloc'ed for the caller. */
void *moec_form_room(size_t head, const moec_routes *r,
                     const moec_routes_request *q, size_t elem,
                     size_t *data_bytes)
{
    uint64_t n = 0;

    if (!moec_mul_u64(q->n_tokens, (uint64_t)r->shape.n_decoder, &n) ||
        !moec_mul_u64(n, (uint64_t)r->shape.top_k * elem, &n) ||
        n > SIZE_MAX / 4 - head)
        return NULL;
    *data_bytes = (size_t)n;
    /* moec_alloc's memory is the library's; this is the caller's to free. */
    return calloc(1, head + (size_t)n + 1);
}

/* Head of a .npy file of version 1.0, padded to 64 bytes (NumPy's NEP 1). */
static size_t npy_head(char head[192], const moec_routes *r, uint64_t n_tokens,
                       bool wide)
{
    int n = snprintf(head + 10, 180,
                     "{'descr': '%s', 'fortran_order': False, 'shape': "
                     "(%" PRIu64 ", %" PRIu32 ", %" PRIu32 "), }",
                     wide ? "<u2" : "|u1", n_tokens, r->shape.n_decoder,
                     r->shape.top_k);
    size_t len = 10 + (size_t)n, total = (len + 1 + 63) / 64 * 64;

    memcpy(head, "\x93NUMPY\x01\x00", 8);
    head[8] = (char)((total - 10) & 0xff);
    head[9] = (char)((total - 10) >> 8);
    memset(head + len, ' ', total - len);
    head[total - 1] = '\n';
    return total;
}

moec_status moec_routes_export_vllm(const moec_routes *r, uint64_t request,
                                    void **out, size_t *bytes_out,
                                    moec_error *err)
{
    moec_routes_request q;
    unsigned char *file, *data;
    int32_t ids[ROUTES_K_MAX];
    char head[192];
    size_t n = 0, n_head, elem;
    uint32_t k;

    MOEC_TRY(moec_form_exportable(r, request, &q, err));
    if (q.n_gaps > 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R06,
                         "request '%s', sample %" PRIu32
                         ": its rows begin at position %" PRIu32
                         ", vLLM's at 0",
                         q.id, q.sample, q.gaps[0].end);
    k = r->shape.top_k;
    elem = r->shape.n_experts + r->shape.n_zero > 256 ? 2 : 1;
    n_head = npy_head(head, r, q.n_tokens, elem == 2);
    file = moec_form_room(n_head, r, &q, elem, &n);
    if (!file)
        return moec_fail_nomem(err, "an export");
    memcpy(file, head, n_head);
    data = file + n_head;
    for (uint64_t i = 0; i < q.n_tokens * moec_form_main_layers(&r->shape);
         i++) {
        uint64_t t = i / moec_form_main_layers(&r->shape);
        uint32_t l = (uint32_t)(i % moec_form_main_layers(&r->shape));
        uint64_t at = (t * r->shape.n_decoder + r->shape.keys[l].number) * k;

        moec_routes_ids(r, q.first_token + t, 1, l, ids);
        for (uint32_t c = 0; c < k; c++) {
            if (ids[c] < 0) {
                free(file);
                return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R06,
                                 "request '%s', sample %" PRIu32
                                 ", position %" PRIu32 ": fewer than %" PRIu32
                                 " experts; vLLM has no value for none",
                                 q.id, q.sample,
                                 r->positions[q.first_token + t], k);
            }
            data[(at + c) * elem] = (unsigned char)ids[c];
            if (elem == 2)
                data[(at + c) * 2 + 1] = (unsigned char)(ids[c] >> 8);
        }
    }
    *out = file;
    *bytes_out = n_head + n;
    return MOEC_OK;
}
