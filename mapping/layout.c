/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: which tensor of a plan lies in which output file at which
 *   byte, and the headers of those files. Sizes alone decide, so that every
 *   rank is cut into parts at the same layers and a restart or another number
 *   of threads finds the same bytes.
 *
 * Rank and store files: a layer is one extent, its tensors in the plan's
 *   order, each at a multiple of 4096; the format forbids holes, so fillers
 *   are U8 tensors "__pad.N". The files of one part differ between ranks in
 *   the rank's number in the header and nowhere else: the header is padded to
 *   the length that the last rank needs, and all ranks share one table.
 * Common and shared files: source tensors, never split. Within a part those
 *   of whole pages come first, then wider elements before narrower ones, which
 *   aligns every tensor to its element without fillers: other engines load
 *   these files and would see them.
 *
 * Refuses: sizes that overflow 64 bits (H19), headers above the format's
 *   limit.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <moec/mapping.h>

#include "base/base.h"

/* One part of the rank (or store) files, the same for every rank. */
typedef struct part {
    size_t first_layer, n_layers;
    uint64_t bytes, header_bytes;
    size_t n_tensors;
    moec_out_tensor *tensors;
} part;

/* Where a source tensor lies that is stored unchanged. */
typedef struct common_at {
    uint64_t off;
    uint32_t source, file;
} common_at;

struct moec_layout {
    const moec_plan *plan;
    uint64_t max_part_bytes;
    uint32_t n_ranks;
    bool store;
    size_t n_parts;
    part *parts;
    uint32_t *layer_part; /* [planned layer] */
    size_t *layer_first;  /* [planned layer + 1] into slot_off */
    uint64_t *slot_off;   /* of every slot tensor, from the file's begin */
    size_t n_common;
    common_at *common; /* by source tensor; most tensors are not among them */
    size_t n_files, files_cap;
    moec_out_file *files;
    moec_rank_figures *figures; /* [n_ranks] */
    char placement_hex[65];
    moec_arena arena; /* file names and tables of out tensors */
};

/* ------------------------------------------------------ file headers */

static void append_shape(moec_buf *b, const uint64_t *shape, uint32_t rank)
{
    for (uint32_t i = 0; i < rank; i++)
        moec_buf_printf(b, "%s%" PRIu64, i ? "," : "", shape[i]);
}

static void append_entry(moec_buf *b, const moec_layout *l,
                         const moec_out_tensor *t, uint64_t data_off)
{
    const moec_tensor *source;
    const moec_slot_tensor *slots;
    moec_dtype dtype = MOEC_DTYPE_U8;
    const uint64_t *shape = &t->bytes;
    uint32_t rank = 1;
    char buf[32];
    const char *name = moec_layout_name(l, t, buf);

    switch (t->kind) {
    case MOEC_OUT_SLOTS:
        slots = moec_plan_slot_tensor(l->plan, t->layer, t->t);
        dtype = slots->dtype;
        shape = slots->shape;
        rank = slots->rank;
        break;
    case MOEC_OUT_COMMON:
        source = moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(l->plan)),
                                  (size_t)t->source);
        dtype = (moec_dtype)source->dtype;
        shape = source->shape;
        rank = source->rank;
        break;
    case MOEC_OUT_PAD:
        break;
    }
    moec_buf_puts(b, ",");
    moec_buf_json_string(b, name, strlen(name));
    moec_buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[",
                    moec_dtype_name(dtype));
    append_shape(b, shape, rank);
    moec_buf_printf(b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                    t->off - data_off, t->off - data_off + t->bytes);
}

/* How halves stand in w13: a file must say it itself, for no shape does. */
static const char *order_name(const moec_layout *l)
{
    return moec_plan_options(l->plan)->w13_order == MOEC_W13_UP_GATE
               ? "up-gate"
               : "gate-up";
}

/* Append the header's JSON object. `header_bytes` is what the tensors' file
 * offsets count from; any value below the first of them gives the same JSON
 * only where it is the true one. */
static void append_json(moec_buf *b, const moec_layout *l,
                        moec_out_file_kind kind, uint32_t rank,
                        const moec_out_tensor *tensors, size_t n,
                        uint64_t header_bytes)
{
    moec_buf_puts(b, "{\"__metadata__\":{\"format\":\"pt\"");
    switch (kind) {
    case MOEC_FILE_RANK:
        moec_buf_printf(b,
                        ",\"moec_format_version\":\"%d\","
                        "\"moec_placement\":\"%s\",\"moec_rank\":\"%" PRIu32
                        "\",\"moec_w13_order\":\"%s\",\"moec_world\":\"%" PRIu32
                        "\"",
                        MOEC_FORMAT_VERSION, l->placement_hex, rank,
                        order_name(l), l->n_ranks);
        break;
    case MOEC_FILE_STORE:
        moec_buf_printf(b,
                        ",\"moec_format_version\":\"%d\","
                        "\"moec_layout\":\"expert-store\","
                        "\"moec_w13_order\":\"%s\"",
                        MOEC_FORMAT_VERSION, order_name(l));
        break;
    case MOEC_FILE_COMMON:
    case MOEC_FILE_SHARED:
        break;
    }
    moec_buf_puts(b, "}");
    for (size_t i = 0; i < n; i++)
        append_entry(b, l, &tensors[i], header_bytes);
    moec_buf_puts(b, "}");
}

/* Bytes that the header of these tensors takes, padded to a multiple of
 * MOEC_ALIGN. Their offsets count from the begin of the data here. */
static moec_status header_size(const moec_layout *l, moec_out_file_kind kind,
                               const moec_out_tensor *tensors, size_t n,
                               uint64_t *out, moec_error *err)
{
    moec_buf b = {0};
    uint64_t bytes;
    bool oom;

    append_json(&b, l, kind, l->n_ranks - 1, tensors, n, 0);
    bytes = b.len;
    oom = b.oom;
    moec_buf_fini(&b);
    if (oom)
        return moec_fail_nomem(err, "file header");
    if (!moec_align_u64(bytes + 8, MOEC_ALIGN, &bytes) ||
        bytes - 8 > MOEC_HEADER_BYTES_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_H01,
                         "the header of an output file with %zu tensors has "
                         "%" PRIu64 " bytes, more than the format's %" PRIu64
                         ": use a smaller part size",
                         n, bytes, MOEC_HEADER_BYTES_MAX);
    *out = bytes;
    return MOEC_OK;
}

/* ----------------------------------------------- rank and store files */

static moec_status fail_overflow(const char *name, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_H19,
                     "tensor '%s': the output file's size does not fit 64 "
                     "bits",
                     name);
}

/* Bytes of a slot tensor, and with its filler. */
static moec_status slot_tensor_bytes(const moec_slot_tensor *t,
                                     uint64_t *bytes_out, uint64_t *padded_out,
                                     moec_error *err)
{
    if (!moec_mul_u64(t->slot_bytes, t->shape[0], bytes_out) ||
        !moec_align_u64(*bytes_out, MOEC_ALIGN, padded_out))
        return fail_overflow(t->name, err);
    return MOEC_OK;
}

static moec_status layer_bytes(const moec_layout *l, size_t layer,
                               uint64_t *out, moec_error *err)
{
    size_t n = moec_plan_n_slot_tensors(l->plan, layer);
    uint64_t sum = 0, bytes = 0, padded = 0;

    for (size_t i = 0; i < n; i++) {
        const moec_slot_tensor *t = moec_plan_slot_tensor(l->plan, layer, i);

        MOEC_TRY(slot_tensor_bytes(t, &bytes, &padded, err));
        if (!moec_add_u64(sum, padded, &sum))
            return fail_overflow(t->name, err);
    }
    *out = sum;
    return MOEC_OK;
}

/* Decide the parts: a new one where a layer would take the current one over
 * the limit. A layer alone may exceed it. */
static moec_status cut_layers(moec_layout *l, moec_error *err)
{
    size_t n = moec_plan_n_layers(l->plan);

    for (size_t layer = 0; layer < n; layer++) {
        part *p = l->n_parts ? &l->parts[l->n_parts - 1] : NULL;
        uint64_t bytes = 0, sum = 0;

        MOEC_TRY(layer_bytes(l, layer, &bytes, err));
        if (p == NULL || !moec_add_u64(p->bytes, bytes, &sum) ||
            sum > l->max_part_bytes) {
            /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): has room */
            l->parts[l->n_parts] = (part){.first_layer = layer};
            l->n_parts++;
            sum = bytes;
        }
        p = &l->parts[l->n_parts - 1];
        p->bytes = sum; /* of the data, until the header is known */
        p->n_layers++;
        l->layer_part[layer] = (uint32_t)(l->n_parts - 1);
    }
    return MOEC_OK;
}

/* Append one slot tensor and its filler to the part. */
static moec_status place_slots(part *p, const moec_slot_tensor *slots,
                               uint32_t layer, uint32_t t, uint64_t *off,
                               uint64_t *n_pads, moec_error *err)
{
    moec_out_tensor *at = &p->tensors[p->n_tensors++];
    uint64_t bytes = 0, padded = 0;

    MOEC_TRY(slot_tensor_bytes(slots, &bytes, &padded, err));
    *at = (moec_out_tensor){.kind = MOEC_OUT_SLOTS,
                            .layer = layer,
                            .t = t,
                            .off = *off,
                            .bytes = bytes};
    if (padded > bytes) {
        at = &p->tensors[p->n_tensors++];
        *at = (moec_out_tensor){.kind = MOEC_OUT_PAD,
                                .source = (*n_pads)++,
                                .off = *off + bytes,
                                .bytes = padded - bytes};
    }
    *off += padded;
    return MOEC_OK;
}

static moec_status build_part(moec_layout *l, part *p, moec_error *err)
{
    size_t end = p->first_layer + p->n_layers, n = 0;
    uint64_t off = 0, n_pads = 0;

    n = l->layer_first[end] - l->layer_first[p->first_layer];
    p->tensors = moec_arena_alloc(&l->arena, 2 * n * sizeof(*p->tensors),
                                  _Alignof(moec_out_tensor));
    if (!p->tensors)
        return moec_fail_nomem(err, "layout");
    for (size_t layer = p->first_layer; layer < end; layer++) {
        n = moec_plan_n_slot_tensors(l->plan, layer);
        for (size_t t = 0; t < n; t++) {
            l->slot_off[l->layer_first[layer] + t] = off;
            MOEC_TRY(place_slots(p, moec_plan_slot_tensor(l->plan, layer, t),
                                 (uint32_t)layer, (uint32_t)t, &off, &n_pads,
                                 err));
        }
    }
    MOEC_TRY(header_size(l, l->store ? MOEC_FILE_STORE : MOEC_FILE_RANK,
                         p->tensors, p->n_tensors, &p->header_bytes, err));
    if (!moec_add_u64(off, p->header_bytes, &p->bytes))
        return fail_overflow("__pad.", err);
    for (size_t i = 0; i < p->n_tensors; i++)
        p->tensors[i].off += p->header_bytes;
    n = l->layer_first[p->first_layer];
    for (size_t i = n; i < l->layer_first[end]; i++)
        l->slot_off[i] += p->header_bytes;
    return MOEC_OK;
}

/* Append a file whose name is not known yet. */
static moec_status add_file(moec_layout *l, moec_out_file file, size_t *index,
                            moec_error *err)
{
    if (!MOEC_GROW(l->files, l->n_files, l->files_cap))
        return moec_fail_nomem(err, "layout");
    /* Common tensors name their file in 32 bits. */
    if (l->n_files >= UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "more than %u output files: use a larger part size",
                         UINT32_MAX);
    *index = l->n_files;
    l->files[l->n_files++] = file;
    return MOEC_OK;
}

static moec_status name_file(moec_layout *l, moec_out_file *file, size_t number,
                             size_t n_parts, moec_error *err)
{
    char name[96];
    int n = 0;

    switch (file->kind) {
    case MOEC_FILE_RANK:
        n = snprintf(name, sizeof(name),
                     "experts-rank-%05" PRIu32 "-of-%05" PRIu32
                     "-part-%05zu.safetensors",
                     file->rank, l->n_ranks, number);
        break;
    case MOEC_FILE_STORE:
        n = snprintf(name, sizeof(name), "experts-%05zu-of-%05zu.safetensors",
                     number, n_parts);
        break;
    case MOEC_FILE_SHARED:
        n = snprintf(name, sizeof(name), "shared-%05zu-of-%05zu.safetensors",
                     number, n_parts);
        break;
    case MOEC_FILE_COMMON:
        n = snprintf(name, sizeof(name), "common-%05zu-of-%05zu.safetensors",
                     number, n_parts);
        break;
    }
    file->name = moec_arena_strdup(&l->arena, name, (size_t)n);
    return file->name ? MOEC_OK : moec_fail_nomem(err, "layout");
}

/* Parts of the rank files, and one file for each rank and part. */
static moec_status lay_slots(moec_layout *l, moec_error *err)
{
    size_t index;

    MOEC_TRY(cut_layers(l, err));
    for (size_t i = 0; i < l->n_parts; i++)
        MOEC_TRY(build_part(l, &l->parts[i], err));
    for (uint32_t rank = 0; rank < l->n_ranks; rank++) {
        for (size_t i = 0; i < l->n_parts; i++) {
            const part *p = &l->parts[i];
            moec_out_file file = {.kind = l->store ? MOEC_FILE_STORE
                                                   : MOEC_FILE_RANK,
                                  .rank = rank,
                                  .bytes = p->bytes,
                                  .header_bytes = p->header_bytes,
                                  .n_tensors = p->n_tensors,
                                  .tensors = p->tensors};

            MOEC_TRY(name_file(l, &file, i + 1, l->n_parts, err));
            MOEC_TRY(add_file(l, file, &index, err));
            l->figures[rank].bytes_written += p->bytes;
        }
    }
    return MOEC_OK;
}

/* -------------------------------------------- common and shared files */

/* A source tensor on its way into a part. */
typedef struct stored {
    uint64_t off;
    uint32_t file, tensor, bits;
    bool ragged; /* bytes are no multiple of MOEC_ALIGN */
} stored;

static int by_source(const void *a, const void *b)
{
    const stored *x = a, *y = b;

    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    if (x->off != y->off)
        return x->off < y->off ? -1 : 1;
    /* Tensors of no bytes share an offset: the table's order decides. */
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

/* Tensors of whole pages first: each begins at a page and can be written and
 * read past the page cache. Then the widest elements: every tensor is aligned
 * for its own without fillers, which engines' loaders would take for weights. */
static int by_width(const void *a, const void *b)
{
    const stored *x = a, *y = b;

    if (x->ragged != y->ragged)
        return x->ragged ? 1 : -1;
    if (x->bits != y->bits)
        return x->bits > y->bits ? -1 : 1;
    return by_source(a, b);
}

/* Upper bound of a header entry: every byte of the name escaped as \u00XX,
 * every number 20 digits long. */
static uint64_t entry_bytes_max(const moec_tensor *t)
{
    return 6 * (uint64_t)strlen(t->name) + 21 * (uint64_t)t->rank + 128;
}

/* Number of tensors from `list` that the next part takes, at least one. */
static size_t cut_stored(const moec_layout *l, const moec_ckpt *ckpt,
                         const stored *list, size_t n)
{
    uint64_t bytes = 0, header = MOEC_ALIGN;
    size_t i;

    for (i = 0; i < n && i < MOEC_TENSORS_PER_FILE_MAX; i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, list[i].tensor);
        bool fits =
            moec_add_u64(bytes, t->bytes, &bytes) && bytes <= l->max_part_bytes;

        header += entry_bytes_max(t);
        if (i > 0 && (!fits || header > MOEC_HEADER_BYTES_MAX - MOEC_ALIGN))
            break;
    }
    return i;
}

static moec_status build_stored(moec_layout *l, const moec_ckpt *ckpt,
                                moec_out_file_kind kind, const stored *list,
                                size_t n, moec_error *err)
{
    moec_out_tensor *tensors;
    moec_out_file file = {.kind = kind, .n_tensors = n};
    uint64_t off = 0;
    size_t index;

    tensors = moec_arena_alloc(&l->arena, n * sizeof(*tensors),
                               _Alignof(moec_out_tensor));
    if (!tensors)
        return moec_fail_nomem(err, "layout");
    for (size_t i = 0; i < n; i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, list[i].tensor);

        tensors[i] = (moec_out_tensor){.kind = MOEC_OUT_COMMON,
                                       .source = list[i].tensor,
                                       .off = off,
                                       .bytes = t->bytes};
        if (!moec_add_u64(off, t->bytes, &off))
            return fail_overflow(t->name, err);
    }
    MOEC_TRY(header_size(l, kind, tensors, n, &file.header_bytes, err));
    if (!moec_add_u64(off, file.header_bytes, &file.bytes))
        return fail_overflow(moec_ckpt_tensor(ckpt, list[0].tensor)->name, err);
    file.tensors = tensors;
    MOEC_TRY(add_file(l, file, &index, err));
    for (size_t i = 0; i < n; i++) {
        tensors[i].off += file.header_bytes;
        l->common[l->n_common++] =
            (common_at){tensors[i].off, list[i].tensor, (uint32_t)index};
    }
    return MOEC_OK;
}

/* Files of the source tensors with this fate. `list` has room for all. */
static moec_status lay_stored(moec_layout *l, moec_fate fate,
                              moec_out_file_kind kind, stored *list,
                              moec_error *err)
{
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(l->plan));
    size_t n_tensors = moec_ckpt_n_tensors(ckpt), n = 0;
    size_t first = l->n_files;

    for (size_t i = 0; i < n_tensors; i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, i);

        if (moec_plan_fate(l->plan, i) != fate)
            continue;
        list[n++] = (stored){t->off, t->file, (uint32_t)i,
                             moec_dtype_bits((moec_dtype)t->dtype),
                             t->bytes % MOEC_ALIGN != 0};
    }
    if (n > 0)
        qsort(list, n, sizeof(*list), by_source);
    while (n > 0) {
        size_t take = cut_stored(l, ckpt, list, n);

        qsort(list, take, sizeof(*list), by_width);
        MOEC_TRY(build_stored(l, ckpt, kind, list, take, err));
        list += take;
        n -= take;
    }
    for (size_t i = first; i < l->n_files; i++)
        MOEC_TRY(
            name_file(l, &l->files[i], i - first + 1, l->n_files - first, err));
    return MOEC_OK;
}

static int by_number(const void *a, const void *b)
{
    const common_at *x = a, *y = b;

    return (x->source > y->source) - (x->source < y->source);
}

static moec_status lay_all_stored(moec_layout *l, moec_error *err)
{
    size_t n_tensors =
        moec_ckpt_n_tensors(moec_model_ckpt(moec_plan_model(l->plan)));
    size_t n = 0;
    moec_status st;
    stored *list;

    for (size_t i = 0; i < n_tensors; i++) {
        moec_fate fate = moec_plan_fate(l->plan, i);
        n += fate == MOEC_FATE_SHARED || fate == MOEC_FATE_COMMON;
    }
    l->common = moec_calloc(n, sizeof(*l->common));
    list = moec_calloc(n, sizeof(*list));
    if (!l->common || !list) {
        moec_free(list);
        return moec_fail_nomem(err, "layout");
    }
    st = lay_stored(l, MOEC_FATE_SHARED, MOEC_FILE_SHARED, list, err);
    if (st == MOEC_OK)
        st = lay_stored(l, MOEC_FATE_COMMON, MOEC_FILE_COMMON, list, err);
    moec_free(list);
    if (l->n_common > 0)
        qsort(l->common, l->n_common, sizeof(*l->common), by_number);
    return st;
}

/* ---------------------------------------------------------- figures */

/* What one unit costs in one layer: the slot tensors whose rows are the
 * rank's own together, or those whose rows are all slots. */
typedef struct unit_cost {
    uint64_t bytes, n_moves;
    uint32_t mark; /* 1 + the last rank that counted its bytes */
} unit_cost;

static bool same_source(const moec_move *a, const moec_move *b)
{
    return a->tensor == b->tensor && a->src_off == b->src_off &&
           a->n_rows == b->n_rows && a->n_cols == b->n_cols &&
           a->src_row == b->src_row && a->src_col == b->src_col &&
           a->elem_bytes == b->elem_bytes;
}

/* True where an earlier block names the very bytes that `m` names: the parts
 * of a split shared expert repeat its per-tensor and per-row scales. Routed
 * experts have slices of their own and never share bytes. */
static bool counted_before(const moec_layout *l, size_t layer, size_t t,
                           uint32_t first_unit, uint32_t unit,
                           const moec_move *m)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];

    for (uint32_t u = first_unit; u < unit; u++) {
        size_t n = moec_plan_block_moves(l->plan, layer, t, u, moves);

        for (size_t i = 0; i < n; i++) {
            if (same_source(&moves[i], m))
                return true;
        }
    }
    return false;
}

static uint64_t source_bytes(const moec_layout *l, uint32_t tensor)
{
    return moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(l->plan)), tensor)
        ->bytes;
}

static unit_cost cost_of_unit(const moec_layout *l, size_t layer,
                              uint32_t n_experts, uint32_t unit, bool all_slots)
{
    size_t n_tensors = moec_plan_n_slot_tensors(l->plan, layer);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    unit_cost cost = {0};

    for (size_t t = 0; t < n_tensors; t++) {
        size_t n = 0;

        if (moec_plan_slot_tensor(l->plan, layer, t)->all_slots == all_slots)
            n = moec_plan_block_moves(l->plan, layer, t, unit, moves);
        cost.n_moves += n;
        for (size_t i = 0; i < n; i++) {
            bool again = moves[i].op == MOEC_OP_FILL;
            bool made = moves[i].op == MOEC_OP_REQUANTISE;

            for (size_t j = 0; j < i && !again; j++)
                again = same_source(&moves[j], &moves[i]);
            if (!again && unit > n_experts)
                again = counted_before(l, layer, t, n_experts, unit, &moves[i]);
            /* Moves lie within tensors: their sizes cannot overflow. */
            if (!again && made) /* its scales are little beside it */
                cost.bytes += source_bytes(l, moves[i].tensor);
            else if (!again)
                cost.bytes +=
                    moves[i].n_rows * moves[i].n_cols * moves[i].elem_bytes;
        }
    }
    return cost;
}

/* Slot tensors of one kind: `like` is the first of them. */
static void add_rows_figures(moec_layout *l, size_t layer, size_t like,
                             unit_cost *units, uint32_t n_units,
                             uint32_t n_experts)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(l->plan, layer, like);
    bool all = s->all_slots != 0;
    unit_cost empty = cost_of_unit(l, layer, n_experts, MOEC_UNIT_EMPTY, all);
    unit_cost routed;

    /* Experts of a layer are alike (C12), their moves differ in the tensors. */
    routed = cost_of_unit(l, layer, n_experts, 0, all);
    for (uint32_t u = 0; u < n_experts; u++)
        units[u] = routed;
    for (uint32_t u = n_experts; u < n_units; u++)
        units[u] = cost_of_unit(l, layer, n_experts, u, all);
    for (uint32_t rank = 0; rank < l->n_ranks; rank++) {
        moec_rank_figures *f = &l->figures[rank];

        for (uint32_t row = 0; row < s->shape[0]; row++) {
            uint32_t u = moec_plan_row_unit(l->plan, layer, like, rank, row);
            unit_cost *cost = u < n_units ? &units[u] : &empty;

            f->n_moves += cost->n_moves;
            if (cost->mark != rank + 1)
                f->bytes_read += cost->bytes;
            cost->mark = rank + 1;
        }
    }
}

static void add_layer_figures(moec_layout *l, size_t layer, unit_cost *units,
                              uint32_t n_units, uint32_t n_experts)
{
    size_t n = moec_plan_n_slot_tensors(l->plan, layer);
    bool done[2] = {false, false};

    for (size_t t = 0; t < n; t++) {
        bool *d =
            &done[moec_plan_slot_tensor(l->plan, layer, t)->all_slots != 0];
        if (!*d)
            add_rows_figures(l, layer, t, units, n_units, n_experts);
        *d = true;
    }
}

static moec_status add_figures(moec_layout *l, moec_error *err)
{
    uint32_t n_experts = moec_model_facts(moec_plan_model(l->plan))->n_experts;
    uint32_t n_units = n_experts + moec_plan_shared_rows(l->plan);
    size_t n_layers = moec_plan_n_layers(l->plan);
    unit_cost *units = moec_calloc(n_units, sizeof(*units));

    if (!units)
        return moec_fail_nomem(err, "layout");
    for (size_t layer = 0; layer < n_layers; layer++)
        add_layer_figures(l, layer, units, n_units, n_experts);
    moec_free(units);
    return MOEC_OK;
}

/* ------------------------------------------------------ the object */

static moec_status layout_alloc(moec_layout *l, moec_error *err)
{
    size_t n_layers = moec_plan_n_layers(l->plan), n_slots = 0;

    l->layer_first = moec_calloc(n_layers + 1, sizeof(*l->layer_first));
    l->layer_part = moec_calloc(n_layers, sizeof(*l->layer_part));
    l->parts = moec_calloc(n_layers, sizeof(*l->parts));
    l->figures = moec_calloc(l->n_ranks, sizeof(*l->figures));
    if (!l->layer_first || !l->layer_part || !l->parts || !l->figures)
        return moec_fail_nomem(err, "layout");
    for (size_t i = 0; i < n_layers; i++) {
        l->layer_first[i] = n_slots;
        n_slots += moec_plan_n_slot_tensors(l->plan, i);
    }
    l->layer_first[n_layers] = n_slots;
    l->slot_off = moec_calloc(n_slots, sizeof(*l->slot_off));
    return l->slot_off ? MOEC_OK : moec_fail_nomem(err, "layout");
}

static moec_status layout_build(moec_layout *l, moec_error *err)
{
    uint8_t digest[32];

    MOEC_TRY(layout_alloc(l, err));
    if (!l->store) {
        MOEC_TRY(
            moec_placement_digest(moec_plan_placement(l->plan), digest, err));
        moec_hex(digest, sizeof(digest), l->placement_hex);
    }
    MOEC_TRY(lay_slots(l, err));
    MOEC_TRY(lay_all_stored(l, err));
    return add_figures(l, err);
}

moec_status moec_layout_create(moec_layout **out, const moec_plan *plan,
                               uint64_t max_part_bytes, moec_error *err)
{
    moec_layout *l = moec_calloc(1, sizeof(*l));
    moec_status st;

    if (!l)
        return moec_fail_nomem(err, "layout");
    l->plan = plan;
    l->max_part_bytes =
        max_part_bytes ? max_part_bytes : MOEC_MAX_PART_BYTES_DEFAULT;
    l->store = moec_plan_options(plan)->by_expert != 0;
    l->n_ranks = l->store ? 1 : moec_plan_topology(plan).n_ranks;
    st = layout_build(l, err);
    if (st != MOEC_OK) {
        moec_layout_destroy(l);
        return st;
    }
    *out = l;
    return MOEC_OK;
}

void moec_layout_destroy(moec_layout *layout)
{
    if (!layout)
        return;
    moec_free(layout->parts);
    moec_free(layout->layer_part);
    moec_free(layout->layer_first);
    moec_free(layout->slot_off);
    moec_free(layout->common);
    moec_free(layout->files);
    moec_free(layout->figures);
    moec_arena_fini(&layout->arena);
    moec_free(layout);
}

const moec_plan *moec_layout_plan(const moec_layout *layout)
{
    return layout->plan;
}

uint64_t moec_layout_max_part_bytes(const moec_layout *layout)
{
    return layout->max_part_bytes;
}

size_t moec_layout_n_files(const moec_layout *layout)
{
    return layout->n_files;
}

const moec_out_file *moec_layout_file(const moec_layout *layout, size_t i)
{
    return &layout->files[i];
}

void moec_layout_find_slots(const moec_layout *layout, uint32_t rank,
                            size_t layer, size_t t, size_t *file_out,
                            uint64_t *off_out)
{
    /* Rank files come first, by (rank, part). */
    *file_out = rank * layout->n_parts + layout->layer_part[layer];
    *off_out = layout->slot_off[layout->layer_first[layer] + t];
}

int moec_layout_find_common(const moec_layout *layout, size_t source,
                            size_t *file_out, uint64_t *off_out)
{
    common_at key = {.source = (uint32_t)source};
    const common_at *at = layout->n_common == 0
                              ? NULL
                              : bsearch(&key, layout->common, layout->n_common,
                                        sizeof(key), by_number);

    if (at == NULL)
        return 0;
    *file_out = at->file;
    *off_out = at->off;
    return 1;
}

const char *moec_layout_name(const moec_layout *layout,
                             const moec_out_tensor *t, char *buf)
{
    const moec_ckpt *ckpt;

    switch (t->kind) {
    case MOEC_OUT_SLOTS:
        return moec_plan_slot_tensor(layout->plan, t->layer, t->t)->name;
    case MOEC_OUT_COMMON:
        ckpt = moec_model_ckpt(moec_plan_model(layout->plan));
        return moec_ckpt_tensor(ckpt, (size_t)t->source)->name;
    case MOEC_OUT_PAD:
        break;
    }
    snprintf(buf, 32, "__pad.%" PRIu64, t->source);
    return buf;
}

moec_status moec_layout_header(const moec_layout *layout, size_t i, void **out,
                               uint64_t *bytes_out, moec_error *err)
{
    const moec_out_file *file = &layout->files[i];
    size_t bytes = (size_t)file->header_bytes;
    moec_buf b = {0};
    char *data = moec_alloc(bytes);

    if (!data)
        return moec_fail_nomem(err, "file header");
    moec_buf_u64(&b, file->header_bytes - 8);
    append_json(&b, layout, file->kind, file->rank, file->tensors,
                file->n_tensors, file->header_bytes);
    if (b.oom || b.len > bytes) {
        bool oom = b.oom;

        moec_buf_fini(&b);
        moec_free(data);
        if (oom)
            return moec_fail_nomem(err, "file header");
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "%s: the header outgrew its place", file->name);
    }
    memcpy(data, b.data, b.len);
    memset(data + b.len, ' ', bytes - b.len);
    moec_buf_fini(&b);
    *out = data;
    *bytes_out = bytes;
    return MOEC_OK;
}

moec_rank_figures moec_layout_figures(const moec_layout *layout, uint32_t rank)
{
    return layout->figures[rank];
}
