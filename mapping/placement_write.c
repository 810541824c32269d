/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: placements as the files that engines read. The forms are those
 *   of moec_placement_form; what is written is read back as the same placement
 *   by placement_formats.c. And where vLLM puts experts by itself, as an
 *   explicit map.
 * Refuses: empty slots in forms whose engines know none (P04), decoder layers
 *   that nothing names, ranks that do not divide (P06).
 * SGLang passes keys on as arguments: exactly one is written. Layers that are
 * no MoE layers have the trivial row there, which it ignores.
 */

#include <inttypes.h>
#include <string.h>

#include "placement.h"

typedef struct writer {
    const moec_placement *p;
    moec_placement_write_opts o;
    uint32_t E, P, n_rows; /* rows: without trivial MTP ones at the end */
    uint32_t width;        /* most replicas of an expert */
    moec_buf b;
} writer;

const char *moec_placement_form_name(moec_placement_form form)
{
    switch (form) {
    case MOEC_PLACEMENT_SGLANG:
        return "sglang";
    case MOEC_PLACEMENT_TRTLLM:
        return "trtllm";
    case MOEC_PLACEMENT_VLLM_ASCEND:
        return "vllm-ascend";
    case MOEC_PLACEMENT_EPLB:
        return "eplb";
    case MOEC_PLACEMENT_PHY2LOG:
        return "phy2log";
    case MOEC_PLACEMENT_LOG2PHY:
        return "log2phy";
    case MOEC_PLACEMENT_LOGCNT:
        return "logcnt";
    }
    return "?";
}

/* ----------------------------------------------------------------- rows */

static bool row_is_trivial(const writer *w, uint32_t row)
{
    const int32_t *ids = moec_placement_row(w->p, row);

    for (uint32_t i = 0; i < w->P; i++) {
        if (ids[i] != (int32_t)(i % w->E))
            return false;
    }
    return true;
}

/* The replicas' order does not end a row's being left out: a trivial row has
 * them ascending, or the file would not be the same again. */
static bool row_is_ascending(const writer *w, uint32_t row)
{
    for (uint32_t i = 0; w->o.replica && i < w->P; i++) {
        if (w->o.replica[(size_t)row * w->P + i] != i / w->E)
            return false;
    }
    return true;
}

static void drop_trivial_mtp(writer *w)
{
    const moec_layer_key *keys = w->o.keys;

    while (
        keys && w->n_rows > 0 && keys[w->n_rows - 1].space == MOEC_SPACE_MTP &&
        row_is_trivial(w, w->n_rows - 1) && row_is_ascending(w, w->n_rows - 1))
        w->n_rows--;
}

static moec_status find_width(writer *w, moec_error *err)
{
    uint32_t *n = moec_calloc(w->E, sizeof(*n));

    if (!n)
        return moec_fail_nomem(err, "replicas");
    for (uint32_t row = 0; row < w->n_rows; row++) {
        const int32_t *ids = moec_placement_row(w->p, row);

        memset(n, 0, w->E * sizeof(*n));
        for (uint32_t i = 0; i < w->P; i++) {
            if (ids[i] >= 0 && ++n[ids[i]] > w->width)
                w->width = n[ids[i]];
        }
    }
    moec_free(n);
    return MOEC_OK;
}

static moec_status refuse_empty(const writer *w, moec_error *err)
{
    for (uint32_t row = 0; row < w->n_rows; row++) {
        const int32_t *ids = moec_placement_row(w->p, row);

        for (uint32_t i = 0; i < w->P; i++) {
            if (ids[i] < 0)
                return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P04,
                                 "row %" PRIu32 ", slot %" PRIu32
                                 ": empty, which %s files cannot say",
                                 row, i, moec_placement_form_name(w->o.form));
        }
    }
    return MOEC_OK;
}

static moec_status need_keys(const writer *w, moec_error *err)
{
    if (w->o.keys)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "%s files name decoder layers, and nothing says which "
                     "ones the placement's %" PRIu32 " rows are",
                     moec_placement_form_name(w->o.form),
                     moec_placement_n_layers(w->p));
}

/* Decoder layers: as told, or up to the last MoE layer. */
static uint32_t n_decoder(const writer *w)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < moec_placement_n_layers(w->p); i++) {
        if (w->o.keys[i].space == MOEC_SPACE_MAIN && w->o.keys[i].number >= n)
            n = w->o.keys[i].number + 1;
    }
    return w->o.n_layers > n ? w->o.n_layers : n;
}

static uint32_t decoder_number(const writer *w, uint32_t row)
{
    moec_layer_key key = w->o.keys[row];

    return key.space == MOEC_SPACE_MTP ? n_decoder(w) + key.number : key.number;
}

/* [0, 1, 2] of ids[0 .. n), NULL for the trivial ones of E. */
static void put_list(moec_buf *b, const int32_t *ids, uint32_t n, uint32_t E)
{
    moec_buf_puts(b, "[");
    for (uint32_t i = 0; i < n; i++)
        moec_buf_printf(b, "%s%" PRId32, i ? ", " : "",
                        ids ? ids[i] : (int32_t)(i % E));
    moec_buf_puts(b, "]");
}

/* ---------------------------------------------------------------- forms */

static moec_status put_sglang(writer *w, moec_error *err)
{
    uint32_t last = n_decoder(w), row = 0;

    for (uint32_t i = 0; i < w->n_rows; i++) {
        if (decoder_number(w, i) >= last)
            last = decoder_number(w, i) + 1;
    }
    if (last > w->n_rows + (1u << 16))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%" PRIu32 " decoder layers for %" PRIu32 " rows",
                         last, w->n_rows);
    moec_buf_puts(&w->b, "{\"physical_to_logical_map\": [");
    for (uint32_t layer = 0; layer < last; layer++) {
        const int32_t *ids = NULL;

        if (row < w->n_rows && decoder_number(w, row) == layer)
            ids = moec_placement_row(w->p, row++);
        moec_buf_puts(&w->b, layer ? ",\n" : "\n");
        put_list(&w->b, ids, w->P, w->E);
    }
    moec_buf_puts(&w->b, "\n]}\n");
    return MOEC_OK;
}

static moec_status put_trtllm(writer *w)
{
    moec_buf_puts(&w->b, "initial_global_assignments:\n");
    for (uint32_t i = 0; i < w->n_rows; i++) {
        moec_buf_printf(&w->b, "  %" PRIu32 ": ", decoder_number(w, i));
        put_list(&w->b, moec_placement_row(w->p, i), w->P, w->E);
        moec_buf_puts(&w->b, "\n");
    }
    moec_buf_printf(&w->b,
                    "num_slots: %" PRIu32 "\n"
                    "layer_updates_per_iter: 0\n",
                    w->P);
    return MOEC_OK;
}

static moec_status put_ascend(writer *w, moec_error *err)
{
    uint32_t W = w->o.n_ranks, L = W ? w->P / W : 0;

    if (W == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "vllm-ascend files list devices, and nothing says "
                         "how many there are");
    if (W > w->P || w->P % W != 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P06,
                         "%" PRIu32 " slots do not divide by %" PRIu32 " ranks",
                         w->P, W);
    moec_buf_printf(&w->b,
                    "{\"moe_layer_count\": %" PRIu32 ", \"layer_list\": [",
                    w->n_rows);
    for (uint32_t i = 0; i < w->n_rows; i++) {
        moec_buf_printf(&w->b,
                        "%s\n{\"layer_id\": %" PRIu32
                        ", \"device_count\": %" PRIu32 ", \"device_list\": [",
                        i ? "," : "", i, W);
        for (uint32_t d = 0; d < W; d++) {
            moec_buf_printf(
                &w->b, "%s\n {\"device_id\": %" PRIu32 ", \"device_expert\": ",
                d ? "," : "", d);
            put_list(&w->b, moec_placement_row(w->p, i) + (size_t)d * L, L,
                     w->E);
            moec_buf_puts(&w->b, "}");
        }
        moec_buf_puts(&w->b, "]}");
    }
    moec_buf_puts(&w->b, "\n]}\n");
    return MOEC_OK;
}

/* --------------------------------------------------------- EPLB's arrays */

/* log2phy of one row: out[E][width], -1 behind the replicas. */
static void turn_row(const writer *w, uint32_t row, int32_t *out, uint32_t *n)
{
    const int32_t *ids = moec_placement_row(w->p, row);
    const uint32_t *order =
        w->o.replica ? w->o.replica + (size_t)row * w->P : NULL;

    memset(out, 0xff, (size_t)w->E * w->width * sizeof(*out));
    memset(n, 0, w->E * sizeof(*n));
    for (uint32_t i = 0; i < w->P; i++) {
        if (ids[i] < 0)
            continue;
        uint32_t x = order ? order[i] : n[ids[i]];

        if (x < w->width)
            out[(size_t)ids[i] * w->width + x] = (int32_t)i;
        n[ids[i]]++;
    }
}

typedef struct scratch {
    int32_t *log2phy; /* [E][width] */
    uint32_t *n;      /* [E] */
} scratch;

/* One row of an array, as text or as int64. */
static void put_values(writer *w, const int32_t *v, uint32_t n, bool text)
{
    if (text) {
        put_list(&w->b, v, n, w->E);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        moec_buf_u64(&w->b, (uint64_t)(int64_t)v[i]);
}

static void put_row(writer *w, moec_placement_form form, uint32_t row,
                    const scratch *s, bool text)
{
    if (form == MOEC_PLACEMENT_PHY2LOG) {
        put_values(w, moec_placement_row(w->p, row), w->P, text);
        return;
    }
    turn_row(w, row, s->log2phy, s->n);
    if (form == MOEC_PLACEMENT_LOGCNT) {
        for (uint32_t e = 0; e < w->E; e++)
            s->log2phy[e] = (int32_t)s->n[e];
        put_values(w, s->log2phy, w->E, text);
        return;
    }
    if (text)
        moec_buf_puts(&w->b, "[");
    for (uint32_t e = 0; e < w->E; e++) {
        if (text && e > 0)
            moec_buf_puts(&w->b, ", ");
        put_values(w, s->log2phy + (size_t)e * w->width, w->width, text);
    }
    if (text)
        moec_buf_puts(&w->b, "]");
}

static void put_array(writer *w, moec_placement_form form, const scratch *s,
                      bool text)
{
    if (text)
        moec_buf_puts(&w->b, "[");
    for (uint32_t row = 0; row < w->n_rows; row++) {
        if (text)
            moec_buf_puts(&w->b, row ? ",\n" : "\n");
        put_row(w, form, row, s, text);
    }
    if (text)
        moec_buf_puts(&w->b, "\n]");
}

/* Version 1 of the format: the data begins at a multiple of 64 bytes. */
static void put_npy_header(writer *w)
{
    char dict[128];
    int n =
        snprintf(dict, sizeof(dict),
                 "{'descr': '<i8', 'fortran_order': False, 'shape': "
                 "(%" PRIu32 ", %" PRIu32,
                 w->n_rows, w->o.form == MOEC_PLACEMENT_PHY2LOG ? w->P : w->E);
    size_t at = n > 0 ? (size_t)n : 0, bytes = 128 - 10;

    if (w->o.form == MOEC_PLACEMENT_LOG2PHY)
        at += (size_t)snprintf(dict + at, sizeof(dict) - at, ", %" PRIu32,
                               w->width);
    at += (size_t)snprintf(dict + at, sizeof(dict) - at, "), }");
    moec_buf_append(&w->b, "\x93NUMPY\1\0", 8);
    moec_buf_append(&w->b, (const char[]){(char)bytes, 0}, 2);
    moec_buf_append(&w->b, dict, at);
    for (; at + 1 < bytes; at++)
        moec_buf_puts(&w->b, " ");
    moec_buf_puts(&w->b, "\n");
}

static void put_eplb(writer *w, const scratch *s)
{
    static const moec_placement_form arrays[] = {
        MOEC_PLACEMENT_PHY2LOG, MOEC_PLACEMENT_LOG2PHY, MOEC_PLACEMENT_LOGCNT};

    for (size_t i = 0; i < 3; i++) {
        moec_buf_printf(&w->b, "%s\"%s\": ", i ? ",\n" : "{",
                        moec_placement_form_name(arrays[i]));
        put_array(w, arrays[i], s, true);
    }
    moec_buf_puts(&w->b, "}\n");
}

static moec_status put_arrays(writer *w, moec_error *err)
{
    scratch s = {0};
    size_t n;

    MOEC_TRY(find_width(w, err));
    if (w->width == 0 || __builtin_mul_overflow((size_t)w->E, w->width, &n))
        return moec_fail_nomem(err, "log2phy");
    s.log2phy = moec_calloc(n, sizeof(*s.log2phy));
    s.n = moec_calloc(w->E, sizeof(*s.n));
    if (s.log2phy && s.n) {
        if (w->o.form == MOEC_PLACEMENT_EPLB)
            put_eplb(w, &s);
        else if (w->o.npy)
            put_npy_header(w);
        if (w->o.form != MOEC_PLACEMENT_EPLB)
            put_array(w, w->o.form, &s, w->o.npy == 0);
        if (w->o.form != MOEC_PLACEMENT_EPLB && !w->o.npy)
            moec_buf_puts(&w->b, "\n");
    } else {
        w->b.oom = true;
    }
    moec_free(s.n);
    moec_free(s.log2phy);
    return MOEC_OK;
}

/* ------------------------------------------------------------- the file */

static moec_status put(writer *w, moec_error *err)
{
    switch (w->o.form) {
    case MOEC_PLACEMENT_SGLANG:
        MOEC_TRY(need_keys(w, err));
        MOEC_TRY(refuse_empty(w, err));
        return put_sglang(w, err);
    case MOEC_PLACEMENT_TRTLLM:
        MOEC_TRY(need_keys(w, err));
        MOEC_TRY(refuse_empty(w, err));
        return put_trtllm(w);
    case MOEC_PLACEMENT_VLLM_ASCEND:
        MOEC_TRY(refuse_empty(w, err));
        return put_ascend(w, err);
    case MOEC_PLACEMENT_LOG2PHY:
    case MOEC_PLACEMENT_EPLB:
        MOEC_TRY(refuse_empty(w, err));
        return put_arrays(w, err);
    case MOEC_PLACEMENT_PHY2LOG:
    case MOEC_PLACEMENT_LOGCNT:
        return put_arrays(w, err);
    }
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "%d is no form of a placement file", (int)w->o.form);
}

moec_status moec_placement_write(const moec_placement *placement,
                                 const moec_placement_write_opts *opts,
                                 void **out, size_t *bytes_out, moec_error *err)
{
    writer w = {.p = placement,
                .o = *opts,
                .E = moec_placement_n_experts(placement),
                .P = moec_placement_n_physical(placement),
                .n_rows = moec_placement_n_layers(placement)};
    moec_status st;

    MOEC_TRY(moec_check_struct("moec_placement_write_opts", opts->struct_bytes,
                               sizeof(*opts), err));
    if (opts->npy && opts->form != MOEC_PLACEMENT_PHY2LOG &&
        opts->form != MOEC_PLACEMENT_LOG2PHY &&
        opts->form != MOEC_PLACEMENT_LOGCNT)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s files are no .npy arrays",
                         moec_placement_form_name(opts->form));
    drop_trivial_mtp(&w);
    if (w.n_rows == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a placement without rows that a file would hold");
    st = put(&w, err);
    if (st == MOEC_OK && w.b.oom)
        st = moec_fail_nomem(err, "placement file");
    if (st != MOEC_OK) {
        moec_buf_fini(&w.b);
        return st;
    }
    *out = w.b.data;
    *bytes_out = w.b.len;
    return MOEC_OK;
}

/* ------------------------------------------------------------------ vLLM */

moec_status moec_placement_vllm(moec_placement **out,
                                moec_vllm_strategy strategy, uint32_t n_layers,
                                uint32_t n_experts, uint32_t n_ranks,
                                moec_error *err)
{
    uint64_t n_local, n_physical;
    moec_status st;
    int32_t *p2l;
    size_t n;

    if (n_layers == 0 || n_experts == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a placement of %" PRIu32 " layers and %" PRIu32
                         " experts",
                         n_layers, n_experts);
    if (n_ranks == 0 || n_ranks > n_experts)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P07,
                         "%" PRIu32 " ranks for %" PRIu32 " experts", n_ranks,
                         n_experts);
    n_local = moec_ceil_div(n_experts, n_ranks);
    n_physical = n_local * n_ranks;
    if (n_physical > MOEC_PLACEMENT_SLOTS_MAX ||
        __builtin_mul_overflow((size_t)n_layers, (size_t)n_physical, &n))
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P03,
                         "%" PRIu64 " slots a layer are too many", n_physical);
    p2l = moec_calloc(n, sizeof(*p2l));
    if (!p2l)
        return moec_fail_nomem(err, "placement rows");
    for (uint32_t r = 0, e = 0; r < n_ranks; r++) {
        uint32_t mine = n_experts / n_ranks + (r < n_experts % n_ranks);

        for (uint32_t i = 0; i < n_local; i++) {
            int32_t id = MOEC_EMPTY_SLOT;

            if (i < mine)
                id = strategy == MOEC_VLLM_LINEAR ? (int32_t)e++
                                                  : (int32_t)(r + i * n_ranks);
            p2l[r * n_local + i] = id;
        }
    }
    for (uint32_t layer = 1; layer < n_layers; layer++)
        memcpy(p2l + layer * n_physical, p2l,
               (size_t)n_physical * sizeof(*p2l));
    st = moec_placement_from_rows(out, n_layers, n_experts,
                                  (uint32_t)n_physical, p2l, err);
    moec_free(p2l);
    return st;
}
