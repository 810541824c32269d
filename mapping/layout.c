/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: which tensor of a plan lies in which output file at which
 *   byte. Sizes alone decide, so that every
 *   rank is cut into parts at the same layers and a restart or another number
 *   of threads finds the same bytes.
 *
 * Rank and store files: a layer is one extent, its tensors in the plan's
 *   order, each at a multiple of 4096; the format forbids holes, so fillers
 *   are U8 tensors "__pad.N". All ranks share one table (layout_header.c).
 * Common and shared files: source tensors, never split. Within a part those
 *   of whole pages come first, then wider elements before narrower ones, which
 *   aligns every tensor to its element without fillers: other engines load
 *   these files and would see them.
 *
 * Refuses: sizes that overflow 64 bits (H19).
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "layout_parts.h"

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
        moec_layout_part *p = l->n_parts ? &l->parts[l->n_parts - 1] : NULL;
        uint64_t bytes = 0, sum = 0;

        MOEC_TRY(layer_bytes(l, layer, &bytes, err));
        if (p == NULL || !moec_add_u64(p->bytes, bytes, &sum) ||
            sum > l->max_part_bytes) {
            /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): has room */
            l->parts[l->n_parts] = (moec_layout_part){.first_layer = layer};
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
static moec_status place_slots(moec_layout_part *p,
                               const moec_slot_tensor *slots, uint32_t layer,
                               uint32_t t, uint64_t *off, uint64_t *n_pads,
                               moec_error *err)
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

static moec_status build_part(moec_layout *l, moec_layout_part *p,
                              moec_error *err)
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
    MOEC_TRY(moec_layout_header_size(
        l, l->store ? MOEC_FILE_STORE : MOEC_FILE_RANK, p->tensors,
        p->n_tensors, &p->header_bytes, err));
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
            const moec_layout_part *p = &l->parts[i];
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
static size_t cut_stored(const moec_layout *l, const stored *list, size_t n)
{
    uint64_t bytes = 0, header = MOEC_ALIGN;
    size_t i;

    for (i = 0; i < n && i < MOEC_TENSORS_PER_FILE_MAX; i++) {
        const moec_tensor *t = moec_ckpt_tensor(l->ckpt, list[i].tensor);
        bool fits =
            moec_add_u64(bytes, t->bytes, &bytes) && bytes <= l->max_part_bytes;

        header += entry_bytes_max(t);
        if (i > 0 && (!fits || header > MOEC_HEADER_BYTES_MAX - MOEC_ALIGN))
            break;
    }
    return i;
}

static moec_status build_stored(moec_layout *l, moec_out_file_kind kind,
                                const stored *list, size_t n, moec_error *err)
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
        const moec_tensor *t = moec_ckpt_tensor(l->ckpt, list[i].tensor);

        tensors[i] = (moec_out_tensor){.kind = MOEC_OUT_COMMON,
                                       .source = list[i].tensor,
                                       .off = off,
                                       .bytes = t->bytes};
        if (!moec_add_u64(off, t->bytes, &off))
            return fail_overflow(t->name, err);
    }
    MOEC_TRY(
        moec_layout_header_size(l, kind, tensors, n, &file.header_bytes, err));
    if (!moec_add_u64(off, file.header_bytes, &file.bytes))
        return fail_overflow(moec_ckpt_tensor(l->ckpt, list[0].tensor)->name,
                             err);
    file.tensors = tensors;
    MOEC_TRY(add_file(l, file, &index, err));
    for (size_t i = 0; i < n; i++) {
        tensors[i].off += file.header_bytes;
        l->common[l->n_common++] =
            (moec_common_at){tensors[i].off, list[i].tensor, (uint32_t)index};
    }
    return MOEC_OK;
}

/* Files of the source tensors with this fate. `list` has room for all. */
static moec_status lay_stored(moec_layout *l, moec_fate fate,
                              moec_out_file_kind kind, stored *list,
                              moec_error *err)
{
    size_t n_tensors = moec_ckpt_n_tensors(l->ckpt), n = 0;
    size_t first = l->n_files;

    for (size_t i = 0; i < n_tensors; i++) {
        const moec_tensor *t = moec_ckpt_tensor(l->ckpt, i);

        if (moec_plan_fate(l->plan, i) != fate)
            continue;
        list[n++] = (stored){t->off, t->file, (uint32_t)i,
                             moec_dtype_bits((moec_dtype)t->dtype),
                             t->bytes % MOEC_ALIGN != 0};
    }
    if (n > 0)
        qsort(list, n, sizeof(*list), by_source);
    while (n > 0) {
        size_t take = cut_stored(l, list, n);

        qsort(list, take, sizeof(*list), by_width);
        MOEC_TRY(build_stored(l, kind, list, take, err));
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
    const moec_common_at *x = a, *y = b;

    return (x->source > y->source) - (x->source < y->source);
}

static moec_status lay_all_stored(moec_layout *l, moec_error *err)
{
    size_t n_tensors = moec_ckpt_n_tensors(l->ckpt), n = 0;
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
    return moec_plan_add_figures(l->plan, l->n_ranks, l->figures, err);
}

moec_status moec_layout_create(moec_layout **out, const moec_plan *plan,
                               uint64_t max_part_bytes, moec_error *err)
{
    moec_layout *l = moec_calloc(1, sizeof(*l));
    moec_status st;

    if (!l)
        return moec_fail_nomem(err, "layout");
    l->plan = plan;
    l->ckpt = moec_model_ckpt(moec_plan_model(plan));
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
    moec_common_at key = {.source = (uint32_t)source};
    const moec_common_at *at =
        layout->n_common == 0 ? NULL
                              : bsearch(&key, layout->common, layout->n_common,
                                        sizeof(key), by_number);

    if (at == NULL)
        return 0;
    *file_out = at->file;
    *off_out = at->off;
    return 1;
}

moec_rank_figures moec_layout_figures(const moec_layout *layout, uint32_t rank)
{
    return layout->figures[rank];
}
