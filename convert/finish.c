/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a conversion writes besides the data files, in this order: the index
 * of the common files, copies of the source's small files, slots.bin,
 * sources.bin, provenance.json, and manifest.json last: without it the
 * directory is no checkpoint.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "ckpt.h"
#include "outdir.h"
#include "pipeline.h"

#define COPY_BYTES ((size_t)1 << 20)

typedef struct finish {
    const moec_input *in;
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_model *model;
    const moec_ckpt *ckpt;
    const moec_digests *d;
    const moec_sha256 *headers;
    moec_output *out;
    const moec_convert_opts *opts;
    moec_arena arena;
    moec_slots slots;
    moec_sources sources;
    moec_manifest mf;
    moec_mf_copied *copied; /* room for all extra files */
} finish;

static void *take(finish *f, size_t n, size_t size)
{
    uint64_t bytes;

    if (!moec_mul_u64(n + 1, size, &bytes))
        return NULL;
    void *p = moec_arena_alloc(&f->arena, (size_t)bytes, 16);
    if (p != NULL)
        memset(p, 0, (size_t)bytes);
    return p;
}

/* ------------------------------------------------------------ slots.bin */

static moec_status slot_digest(const finish *f, moec_ct_slot *s,
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
static moec_status add_slots(finish *f, const moec_out_file *file,
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

static moec_status add_common(finish *f, const moec_out_tensor *o,
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

static moec_status add_tensor(finish *f, uint32_t file,
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

static moec_status tree_digest(const finish *f, const moec_out_file *of,
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

static size_t rows_of(const finish *f, const moec_out_tensor *o)
{
    if (o->kind != MOEC_OUT_SLOTS)
        return 1;
    return (size_t)moec_plan_slot_tensor(f->plan, o->layer, o->t)->shape[0];
}

static moec_status size_tables(finish *f, moec_error *err)
{
    size_t n_tensors = 0, n_slots = 0, n = moec_layout_n_files(f->layout);

    for (size_t i = 0; i < n; i++) {
        const moec_out_file *of = moec_layout_file(f->layout, i);
        n_tensors += of->n_tensors;
        for (size_t k = 0; k < of->n_tensors; k++)
            n_slots += rows_of(f, &of->tensors[k]);
    }
    f->slots.files = take(f, n, sizeof(*f->slots.files));
    f->slots.tensors = take(f, n_tensors, sizeof(*f->slots.tensors));
    f->slots.slots = take(f, n_slots, sizeof(*f->slots.slots));
    if (f->slots.files == NULL || f->slots.tensors == NULL ||
        f->slots.slots == NULL)
        return moec_fail_nomem(err, "tables of slots.bin");
    return MOEC_OK;
}

static moec_status make_slots(finish *f, moec_error *err)
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

static moec_status write_index(finish *f, moec_error *err)
{
    moec_buf b = {0};
    size_t n = 0;
    uint64_t total = 0;
    entry *e = take(f, f->slots.n_tensors, sizeof(*e));

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
    moec_status st =
        b.oom ? moec_fail_nomem(err, "the index")
              : moec_output_write(f->out, MOEC_INDEX_NAME, b.data, b.len, err);
    moec_buf_fini(&b);
    return st;
}

/* --------------------------------------------------------- copied files */

/* A source file whose name the output uses for itself goes into sources.bin. */
static bool name_taken(const finish *f, const char *name)
{
    static const char *const own[] = {MOEC_MANIFEST_NAME, MOEC_SLOTS_NAME,
                                      MOEC_SOURCES_NAME, MOEC_PROVENANCE_NAME,
                                      MOEC_INDEX_NAME};

    for (size_t i = 0; i < sizeof(own) / sizeof(*own); i++)
        if (strcmp(name, own[i]) == 0)
            return true;
    for (size_t i = 0; i < moec_layout_n_files(f->layout); i++)
        if (strcmp(name, moec_layout_file(f->layout, i)->name) == 0)
            return true;
    return false;
}

static moec_status keep_in_sources(finish *f, const moec_extra *x,
                                   moec_error *err)
{
    moec_source_entry *e = &f->sources.entries[f->sources.n_entries];
    moec_sha256 got;
    void *data;

    if (x->bytes > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %llu bytes, the limit is %llu", x->name,
                         (unsigned long long)x->bytes,
                         (unsigned long long)MOEC_JSON_BYTES_MAX);
    data = take(f, (size_t)x->bytes, 1);
    if (data == NULL)
        return moec_fail_nomem(err, x->name);
    MOEC_TRY(moec_extra_read(x, 0, data, (size_t)x->bytes, err));
    MOEC_TRY(moec_sha256_of(data, (size_t)x->bytes, &got, err));
    MOEC_TRY(moec_extra_check(x, &got, err));
    e->kind = MOEC_SRC_FILE;
    e->name = x->name;
    e->data = data;
    e->data_bytes = e->file_bytes = x->bytes;
    f->sources.n_entries++;
    return MOEC_OK;
}

static moec_status copy_bytes(const moec_extra *x, int to, moec_hasher *h,
                              moec_error *err)
{
    char *buf = moec_alloc(COPY_BYTES);
    moec_status st = MOEC_OK;

    if (buf == NULL)
        return moec_fail_nomem(err, "a copy buffer");
    for (uint64_t off = 0; st == MOEC_OK && off < x->bytes;) {
        size_t n = (size_t)moec_min_u64(COPY_BYTES, x->bytes - off);
        st = moec_extra_read(x, off, buf, n, err);
        if (st == MOEC_OK)
            st = moec_hasher_update(h, buf, n, err);
        if (st == MOEC_OK)
            st = moec_pwrite_full(to, x->name, buf, n, off, err);
        off += n;
    }
    moec_free(buf);
    return st;
}

static moec_status copy_file(finish *f, const moec_extra *x, moec_error *err)
{
    moec_mf_copied *c = &f->copied[f->mf.n_copied];
    moec_hasher *h = NULL;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    int to = openat(moec_output_dirfd(f->out), x->name,
                    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (to < 0) {
        st = moec_fail_os(err, errno, "%s: cannot create", x->name);
        goto destroy_hasher;
    }
    st = copy_bytes(x, to, h, err);
    if (st == MOEC_OK && fsync(to) != 0)
        st = moec_fail_os(err, errno, "%s: fsync failed", x->name);
    if (close(to) != 0 && st == MOEC_OK)
        st = moec_fail_os(err, errno, "%s: close failed", x->name);
    if (st == MOEC_OK) {
        st = moec_hasher_final(h, &c->sha256, err);
        h = NULL;
    }
    if (st == MOEC_OK)
        st = moec_extra_check(x, &c->sha256, err);
    c->name = x->name;
    c->bytes = x->bytes;
    f->mf.n_copied += st == MOEC_OK;
destroy_hasher:
    moec_hasher_destroy(h);
    return st;
}

static moec_status copy_extras(finish *f, moec_error *err)
{
    const moec_input *in = f->in;

    f->copied = take(f, in->n_extra, sizeof(*f->copied));
    if (f->copied == NULL)
        return moec_fail_nomem(err, "list of copied files");
    for (size_t i = 0; i < in->n_extra; i++) {
        moec_extra x;
        MOEC_TRY(in->kind->open_extra(in, i, &x, err));
        moec_status st = name_taken(f, x.name) ? keep_in_sources(f, &x, err)
                                               : copy_file(f, &x, err);
        moec_extra_close(&x);
        MOEC_TRY(st);
    }
    f->mf.copied = f->copied;
    return MOEC_OK;
}

/* ---------------------------------------------------------- sources.bin */

static moec_status add_shard(finish *f, size_t i, moec_error *err)
{
    const moec_file *file = moec_ckpt_file(f->ckpt, i);
    moec_source_entry *e = &f->sources.entries[f->sources.n_entries++];
    void *data = take(f, (size_t)file->header_bytes, 1);

    if (data == NULL)
        return moec_fail_nomem(err, "header of a source shard");
    MOEC_TRY(f->in->kind->read_header(f->in, i, data, err));
    e->kind = MOEC_SRC_SHARD;
    e->name = file->name;
    e->data = data;
    e->data_bytes = file->header_bytes;
    e->file_bytes = file->bytes;
    return MOEC_OK;
}

static moec_status add_source_index(finish *f, moec_error *err)
{
    const char *name = f->in->index_name;
    moec_source_entry *e = &f->sources.entries[f->sources.n_entries];
    moec_buf b = {0};

    if (name == NULL)
        return MOEC_OK;
    moec_status st = f->in->kind->read_index(f->in, &b, err);
    if (st == MOEC_OK) {
        e->data = moec_arena_strdup(&f->arena, b.data, b.len);
        if (e->data == NULL)
            st = moec_fail_nomem(err, "the source's index");
        e->kind = MOEC_SRC_INDEX;
        e->name = name;
        e->data_bytes = e->file_bytes = b.len;
        f->sources.n_entries++;
    }
    moec_buf_fini(&b);
    return st;
}

static moec_status make_sources(finish *f, moec_error *err)
{
    size_t n = moec_ckpt_n_files(f->ckpt);

    f->sources.entries =
        take(f, n + 1 + f->in->n_extra, sizeof(*f->sources.entries));
    if (f->sources.entries == NULL)
        return moec_fail_nomem(err, "entries of sources.bin");
    for (size_t i = 0; i < n; i++)
        MOEC_TRY(add_shard(f, i, err));
    return add_source_index(f, err);
}

/* -------------------------------------------------------------- manifest */

static void describe_model(finish *f)
{
    const moec_facts *m = moec_model_facts(f->model);
    moec_manifest *mf = &f->mf;

    mf->format_version = MOEC_FORMAT_VERSION;
    mf->family = m->family;
    mf->model_type = m->model_type;
    mf->score = m->score;
    mf->activation = m->activation;
    mf->n_experts = m->n_experts;
    mf->n_shared = m->n_shared;
    mf->top_k = m->top_k;
    mf->n_layers = m->n_layers;
    mf->hidden = m->hidden;
    mf->inter = m->inter;
    mf->shared_width = m->shared_width;
    mf->n_group = m->n_group;
    mf->topk_group = m->topk_group;
    mf->routed_scale = m->routed_scale;
    mf->norm_topk = m->norm_topk;
    mf->shared_kind = moec_shared_kind_name(m->shared_kind);
    mf->expert_dtype = m->expert_dtype;
    mf->family_text = f->opts->family_text;
}

static void describe_topology(finish *f)
{
    moec_topology t = moec_plan_topology(f->plan);
    const moec_plan_opts *o = moec_plan_options(f->plan);
    moec_manifest *mf = &f->mf;

    mf->n_ranks = t.n_ranks;
    mf->n_redundant = o->n_redundant;
    mf->n_physical = t.n_physical;
    mf->n_local = t.n_local;
    mf->n_shared_slots = t.n_shared_slots;
    mf->shared_slots = t.n_shared_slots == 0 ? "none"
                       : t.shared_global     ? "global"
                                             : "per-rank";
    mf->shared_store = o->shared_store_common ? "common" : "rank";
    mf->shard_by = o->by_expert ? "expert" : "rank";
    mf->w13_order = o->w13_order == MOEC_W13_UP_GATE ? "up-gate" : "gate-up";
    mf->mtp = !o->no_mtp;
    mf->allow_empty = o->allow_empty != 0;
    mf->max_part_bytes = moec_layout_max_part_bytes(f->layout);
}

static moec_status describe_placement(finish *f, moec_error *err)
{
    const moec_placement *p = moec_plan_placement(f->plan);
    size_t n = moec_model_n_layers(f->model);
    uint32_t n_physical = moec_placement_n_physical(p);
    moec_mf_layer *layers = take(f, n, sizeof(*layers));

    MOEC_TRY(moec_placement_digest(p, f->mf.placement_sha256.b, err));
    if (layers == NULL)
        return moec_fail_nomem(err, "layers of the manifest");
    for (size_t i = 0; i < n; i++) {
        const moec_moe_layer *l = moec_model_layer(f->model, i);
        layers[i].key = l->key;
        layers[i].source_number = l->source_number;
    }
    f->mf.layers = layers;
    f->mf.n_mf_layers = n;
    if (moec_placement_is_trivial(p))
        return MOEC_OK;
    int32_t *rows = take(f, n * n_physical, sizeof(*rows));
    if (rows == NULL)
        return moec_fail_nomem(err, "placement of the manifest");
    for (size_t i = 0; i < n; i++)
        memcpy(rows + i * n_physical, moec_placement_row(p, (uint32_t)i),
               n_physical * sizeof(*rows));
    f->mf.p2l = rows;
    return MOEC_OK;
}

static moec_status describe_files(finish *f, moec_error *err)
{
    size_t n_src = moec_ckpt_n_files(f->ckpt), n_out = f->slots.n_files;
    moec_mf_source *src = take(f, n_src, sizeof(*src));
    moec_mf_file *out = take(f, n_out, sizeof(*out));

    if (src == NULL || out == NULL)
        return moec_fail_nomem(err, "files of the manifest");
    for (size_t i = 0; i < n_src; i++) {
        const moec_file *s = moec_ckpt_file(f->ckpt, i);
        src[i].name = s->name;
        src[i].bytes = s->bytes;
        src[i].header_bytes = s->header_bytes;
        memcpy(src[i].header_sha256.b, s->header_sha256, 32);
        src[i].etag = f->in->kind->etag(f->in, i);
    }
    for (size_t i = 0; i < n_out; i++) {
        out[i].name = f->slots.files[i].name;
        out[i].bytes = f->slots.files[i].bytes;
        out[i].tree_sha256 = f->slots.files[i].tree_sha256;
    }
    f->mf.sources = src;
    f->mf.n_sources = n_src;
    f->mf.files = out;
    f->mf.n_files = n_out;
    f->mf.index_name = f->in->index_name;
    return MOEC_OK;
}

static moec_status describe_transforms(finish *f, moec_error *err)
{
    size_t n = 0, most = 0;
    moec_buf b = {0};

    for (size_t i = 0; i < moec_plan_n_layers(f->plan); i++)
        most += moec_plan_n_slot_tensors(f->plan, i);
    const char **lines = take(f, most, sizeof(*lines));
    if (lines == NULL)
        return moec_fail_nomem(err, "transforms of the manifest");
    for (size_t i = 0; i < moec_plan_n_layers(f->plan); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(f->plan, i); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(f->plan, i, t);
            if (s->op == MOEC_OP_COPY)
                continue;
            b.len = 0;
            moec_buf_printf(&b, "%s: %s", s->name,
                            s->op == MOEC_OP_TRANSPOSE ? "transpose"
                                                       : "deinterleave");
            lines[n] =
                b.oom ? NULL : moec_arena_strdup(&f->arena, b.data, b.len);
            if (lines[n++] == NULL) {
                moec_buf_fini(&b);
                return moec_fail_nomem(err, "transforms of the manifest");
            }
        }
    moec_buf_fini(&b);
    f->mf.transforms = lines;
    f->mf.n_transforms = n;
    return MOEC_OK;
}

/* Write `b` as `name` and note size and digest; empties b. */
static moec_status write_digested(finish *f, const char *name, moec_buf *b,
                                  moec_mf_copied *note, moec_error *err)
{
    moec_status st = moec_sha256_of(b->data, b->len, &note->sha256, err);

    note->name = name;
    note->bytes = b->len;
    if (st == MOEC_OK)
        st = moec_output_write(f->out, name, b->data, b->len, err);
    moec_buf_fini(b);
    return st;
}

static moec_status write_tables(finish *f, moec_error *err)
{
    moec_buf b = {0};
    moec_status st = moec_slots_encode(&f->slots, &b, err);

    if (st == MOEC_OK)
        st = write_digested(f, MOEC_SLOTS_NAME, &b, &f->mf.slots_file, err);
    moec_buf_fini(&b);
    MOEC_TRY(st);
    st = moec_sources_encode(&f->sources, &b, err);
    if (st == MOEC_OK)
        st = write_digested(f, MOEC_SOURCES_NAME, &b, &f->mf.sources_file, err);
    moec_buf_fini(&b);
    return st;
}

static moec_status write_provenance(finish *f, const moec_convert_stats *stats,
                                    moec_error *err)
{
    moec_buf b = {0};
    struct utsname host = {0};
    char when[64] = "";
    struct tm tm;
    time_t now = time(NULL);
    const char *cmd = f->opts->command ? f->opts->command : "";

    uname(&host);
    if (gmtime_r(&now, &tm) == NULL ||
        strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        when[0] = '\0';
    moec_buf_puts(&b, "{\n  \"schema\": \"moec.provenance/1\",\n"
                      "  \"command\": ");
    moec_buf_json_string(&b, cmd, strlen(cmd));
    moec_buf_puts(&b, ",\n  \"host\": ");
    moec_buf_json_string(&b, host.nodename, strlen(host.nodename));
    moec_buf_puts(&b, ",\n  \"source\": ");
    moec_buf_json_string(&b, moec_ckpt_dir(f->ckpt),
                         strlen(moec_ckpt_dir(f->ckpt)));
    moec_buf_printf(&b,
                    ",\n  \"version\": \"%s\",\n  \"finished\": \"%s\",\n"
                    "  \"threads\": %u,\n  \"bytes_read\": %llu\n}\n",
                    moec_version(), when, stats->n_threads,
                    (unsigned long long)stats->bytes_read);
    moec_status st = b.oom ? moec_fail_nomem(err, "provenance.json")
                           : moec_output_write(f->out, MOEC_PROVENANCE_NAME,
                                               b.data, b.len, err);
    moec_buf_fini(&b);
    return st;
}

static moec_status write_manifest(finish *f, moec_error *err)
{
    moec_buf b = {0};

    describe_model(f);
    describe_topology(f);
    MOEC_TRY(describe_placement(f, err));
    MOEC_TRY(describe_files(f, err));
    MOEC_TRY(describe_transforms(f, err));
    moec_status st = moec_manifest_encode(&f->mf, &b, err);
    if (st == MOEC_OK)
        st = moec_output_write(f->out, MOEC_MANIFEST_NAME, b.data, b.len, err);
    moec_buf_fini(&b);
    return st;
}

static moec_status write_all(finish *f, const moec_convert_stats *stats,
                             moec_error *err)
{
    MOEC_TRY(make_slots(f, err));
    MOEC_TRY(make_sources(f, err));
    MOEC_TRY(write_index(f, err));
    MOEC_TRY(copy_extras(f, err));
    MOEC_TRY(write_tables(f, err));
    MOEC_TRY(write_provenance(f, stats, err));
    return write_manifest(f, err);
}

moec_status moec_finish_write(const moec_input *in, const moec_digests *d,
                              const moec_sha256 *header_sha256,
                              struct moec_output *out,
                              const moec_convert_stats *stats, moec_error *err)
{
    finish f = {.in = in,
                .layout = in->layout,
                .plan = in->plan,
                .model = moec_plan_model(in->plan),
                .ckpt = in->ckpt,
                .d = d,
                .headers = header_sha256,
                .out = out,
                .opts = in->opts};

    moec_status st = write_all(&f, stats, err);
    moec_arena_fini(&f.arena);
    return st;
}
