/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a conversion writes out of its digests: the tables of slots.bin, and
 * the index of the files that no rank owns.
 */

#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "finish.h"

/* ------------------------------------------------------------ slots.bin */

static moec_status slot_digest(const moec_finish *f, moec_ct_slot *s,
                               moec_error *err)
{
    moec_hasher *h = NULL;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    st = MOEC_OK;
    for (uint32_t i = 0; st == MOEC_OK && i < s->n_leaves; i++)
        st = moec_hasher_update(h, &f->d->leaves[s->first_leaf + i].sha256,
                                sizeof(moec_sha256), err);
    if (st == MOEC_OK)
        st = moec_hasher_final(h, &s->sha256, err);
    else
        moec_hasher_destroy(h);
    return st;
}

static int32_t logical_of(uint32_t unit)
{
    return unit == MOEC_UNIT_EMPTY ? MOEC_LOGICAL_EMPTY : (int32_t)unit;
}

/* Rows of slot tensor `o` of a rank, appended to the table. */
static moec_status add_slots(moec_finish *f, const moec_out_file *file,
                             const moec_out_tensor *o, moec_ct_tensor *t,
                             moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(f->plan, o->layer, o->t);
    const moec_moe_layer *l =
        moec_model_layer(f->model, moec_plan_model_layer(f->plan, o->layer));

    t->kind = MOEC_CT_SLOTS;
    t->dtype = (uint8_t)s->dtype;
    t->space = (uint8_t)l->key.space;
    t->layer = l->key.number;
    t->rank = file->rank;
    t->n_slots = (uint32_t)s->shape[0];
    for (uint32_t row = 0; row < t->n_slots; row++) {
        uint32_t unit =
            moec_plan_row_unit(f->plan, o->layer, o->t, file->rank, row);
        moec_ct_slot *slot = &f->slots.slots[f->slots.n_slots++];

        slot->logical = logical_of(unit);
        slot->n_leaves = (uint32_t)moec_n_leaves(s->slot_bytes);
        slot->first_leaf = moec_digests_block(f->d, o->layer, o->t, unit);
        MOEC_TRY(slot_digest(f, slot, err));
    }
    return MOEC_OK;
}

static moec_status add_common(moec_finish *f, const moec_out_tensor *o,
                              moec_ct_tensor *t, moec_error *err)
{
    moec_ct_slot *slot = &f->slots.slots[f->slots.n_slots++];

    t->kind = MOEC_CT_COMMON;
    t->dtype = moec_ckpt_tensor(f->ckpt, (size_t)o->source)->dtype;
    t->n_slots = 1;
    slot->logical = MOEC_LOGICAL_NONE;
    slot->n_leaves = (uint32_t)moec_n_leaves(o->bytes);
    slot->first_leaf = f->d->common_base[o->source];
    return slot_digest(f, slot, err);
}

static moec_status add_tensor(moec_finish *f, uint32_t file,
                              const moec_out_tensor *o, moec_error *err)
{
    const moec_out_file *of = moec_layout_file(f->layout, file);
    moec_ct_tensor *t = &f->slots.tensors[f->slots.n_tensors++];
    char buf[32];
    const char *name = moec_layout_name(f->layout, o, buf);

    t->name = name;
    if (name == buf)
        t->name = moec_arena_strdup(&f->arena, buf, strlen(buf));
    if (t->name == NULL)
        return moec_fail_nomem(err, "name of a filler");
    t->file = file;
    t->off = o->off;
    t->bytes = o->bytes;
    t->first_slot = f->slots.n_slots;
    switch (o->kind) {
    case MOEC_OUT_SLOTS:
        return add_slots(f, of, o, t, err);
    case MOEC_OUT_COMMON:
        return add_common(f, o, t, err);
    case MOEC_OUT_PAD:
        t->kind = MOEC_CT_PAD;
        t->dtype = MOEC_DTYPE_U8;
        break;
    }
    return MOEC_OK;
}

static moec_status tree_digest(const moec_finish *f, const moec_out_file *of,
                               size_t first_tensor, moec_ct_file *file,
                               moec_error *err)
{
    moec_hasher *h = NULL;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    st = moec_hasher_update(h, &file->header_sha256, sizeof(moec_sha256), err);
    for (size_t i = 0; st == MOEC_OK && i < of->n_tensors; i++) {
        const moec_ct_tensor *t = &f->slots.tensors[first_tensor + i];
        for (uint32_t s = 0; st == MOEC_OK && s < t->n_slots; s++) {
            const moec_ct_slot *slot = &f->slots.slots[t->first_slot + s];
            for (uint32_t l = 0; st == MOEC_OK && l < slot->n_leaves; l++)
                st = moec_hasher_update(
                    h, &f->d->leaves[slot->first_leaf + l].sha256,
                    sizeof(moec_sha256), err);
        }
    }
    if (st == MOEC_OK)
        return moec_hasher_final(h, &file->tree_sha256, err);
    moec_hasher_destroy(h);
    return st;
}

static size_t rows_of(const moec_finish *f, const moec_out_tensor *o)
{
    if (o->kind != MOEC_OUT_SLOTS)
        return 1;
    return (size_t)moec_plan_slot_tensor(f->plan, o->layer, o->t)->shape[0];
}

static moec_status size_tables(moec_finish *f, moec_error *err)
{
    size_t n_tensors = 0, n_slots = 0, n = moec_layout_n_files(f->layout);

    for (size_t i = 0; i < n; i++) {
        const moec_out_file *of = moec_layout_file(f->layout, i);
        n_tensors += of->n_tensors;
        for (size_t k = 0; k < of->n_tensors; k++)
            n_slots += rows_of(f, &of->tensors[k]);
    }
    f->slots.files = moec_finish_take(f, n, sizeof(*f->slots.files));
    f->slots.tensors =
        moec_finish_take(f, n_tensors, sizeof(*f->slots.tensors));
    f->slots.slots = moec_finish_take(f, n_slots, sizeof(*f->slots.slots));
    if (f->slots.files == NULL || f->slots.tensors == NULL ||
        f->slots.slots == NULL)
        return moec_fail_nomem(err, "tables of slots.bin");
    return MOEC_OK;
}

moec_status moec_finish_slots(moec_finish *f, moec_error *err)
{
    size_t n = moec_layout_n_files(f->layout);

    MOEC_TRY(size_tables(f, err));
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *of = moec_layout_file(f->layout, i);
        moec_ct_file *file = &f->slots.files[i];
        size_t first = f->slots.n_tensors;

        file->name = of->name;
        file->bytes = of->bytes;
        file->header_bytes = of->header_bytes;
        file->header_sha256 = f->headers[i];
        for (size_t k = 0; k < of->n_tensors; k++)
            MOEC_TRY(add_tensor(f, (uint32_t)i, &of->tensors[k], err));
        MOEC_TRY(tree_digest(f, of, first, file, err));
    }
    f->slots.n_files = n;
    f->slots.leaves = f->d->leaves;
    f->slots.n_leaves = f->d->n_leaves;
    return MOEC_OK;
}

/* ---------------------------------------------------------------- index */

typedef struct entry {
    const char *name, *file;
} entry;

static int entry_order(const void *a, const void *b)
{
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

/* Does the index list this file's tensors? Rank files stand for themselves. */
static bool indexed(const moec_out_file *of)
{
    return of->kind != MOEC_FILE_RANK;
}

moec_status moec_finish_index(moec_finish *f, moec_error *err)
{
    moec_buf b = {0};
    size_t n = 0;
    uint64_t total = 0;
    entry *e = moec_finish_take(f, f->slots.n_tensors, sizeof(*e));

    if (e == NULL)
        return moec_fail_nomem(err, "the index");
    for (size_t i = 0; i < f->slots.n_tensors; i++) {
        const moec_ct_tensor *t = &f->slots.tensors[i];
        const moec_out_file *of = moec_layout_file(f->layout, t->file);
        if (!indexed(of) || t->kind == MOEC_CT_PAD)
            continue;
        e[n].name = t->name;
        e[n++].file = of->name;
        total += t->bytes;
    }
    if (n == 0)
        return MOEC_OK;
    qsort(e, n, sizeof(*e), entry_order);
    moec_buf_printf(&b,
                    "{\n  \"metadata\": {\n    \"total_size\": %llu\n"
                    "  },\n  \"weight_map\": {\n",
                    (unsigned long long)total);
    for (size_t i = 0; i < n; i++) {
        moec_buf_puts(&b, "    ");
        moec_buf_json_string(&b, e[i].name, strlen(e[i].name));
        moec_buf_puts(&b, ": ");
        moec_buf_json_string(&b, e[i].file, strlen(e[i].file));
        moec_buf_puts(&b, i + 1 < n ? ",\n" : "\n");
    }
    moec_buf_puts(&b, "  }\n}\n");
    moec_status st = b.oom ? moec_fail_nomem(err, "the index")
                           : moec_finish_put(f, MOEC_INDEX_NAME, &b, err);
    moec_buf_fini(&b);
    return st;
}
