/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The source as a conversion holds it. Its files are slots; a source tensor
 * is read through the inverse moves (mapping/inverse.h), checked leaf by leaf
 * (readback.h), so nothing needs to be looked at again at the end. Headers
 * and index are in sources.bin, small files are copies with digests.
 *
 * Taking a block apart and putting it together again would turn each
 * transposed matrix twice, by strides. But old and new plan cut the same model
 * in the same regions: where each move of the new block has one in the old
 * block that reads the same source elements and lays them the same way, the
 * two are joined into one move from slot to slot, and what was transposed
 * once stays so. Only shared experts that go from slots to tensors of their
 * own, or back, take the long way.
 *
 * Refused: a conversion that left out (--no-mtp) what the output needs (M09).
 */

#include <stdlib.h>
#include <string.h>

#include "ckpt.h"
#include "conversion.h"
#include "identity.h"
#include "input.h"
#include "readback.h"

/* A small file: one of the two is set. */
typedef struct extra {
    const char *name;
    const moec_mf_copied *copied;    /* a file of the directory */
    const moec_source_entry *inside; /* bytes in sources.bin */
} extra;

typedef struct from_conversion {
    moec_input in; /* first: a moec_input is cast to this */
    const moec_converted *conv;
    const moec_layout *old;
    const moec_plan *old_plan;
    moec_readback rb;
    struct aimed {
        uint32_t tensor; /* UINT32_MAX: at no tensor */
        size_t block;
    } * aimed; /* by worker: what its reader points at */
    extra *extras;
    const char **names;
} from_conversion;

moec_status moec_convert_check_source(const moec_layout *layout,
                                      const moec_conversion *source,
                                      moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_plan *old = moec_layout_plan(moec_conversion_layout(source));
    const moec_ckpt *ck = moec_model_ckpt(moec_plan_model(plan));

    if (moec_plan_model(plan) != moec_plan_model(old))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the layout is not of the conversion's model");
    for (size_t i = 0; i < moec_ckpt_n_tensors(ck); i++)
        if (moec_plan_fate(old, i) == MOEC_FATE_SKIPPED &&
            moec_plan_fate(plan, i) != MOEC_FATE_SKIPPED)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M09,
                             "tensor '%s' was left out of this conversion "
                             "(--no-mtp): its bytes are not here",
                             moec_ckpt_tensor(ck, i)->name);
    return MOEC_OK;
}

const char *moec_convert_family_text(const moec_conversion *source)
{
    return moec_conversion_files(source)->manifest.family_text;
}

/* ---------------------------------------------------- from slot to slot */

/* The old plan's planned layer of the same layer of the model. */
static bool find_layer(const from_conversion *f, uint32_t layer, size_t *out)
{
    size_t model_layer = moec_plan_model_layer(f->in.plan, layer);

    for (size_t i = 0; i < moec_plan_n_layers(f->old_plan); i++)
        if (moec_plan_model_layer(f->old_plan, i) == model_layer) {
            *out = i;
            return true;
        }
    return false;
}

static bool find_tensor(const from_conversion *f, size_t layer,
                        const char *name, size_t *out)
{
    for (size_t t = 0; t < moec_plan_n_slot_tensors(f->old_plan, layer); t++)
        if (strcmp(moec_plan_slot_tensor(f->old_plan, layer, t)->name, name) ==
            0) {
            *out = t;
            return true;
        }
    return false;
}

/* Do both read the same elements and lay them in the same pattern? */
static bool same_region(const moec_move *a, const moec_move *b)
{
    return a->tensor == b->tensor && a->elem_bytes == b->elem_bytes &&
           a->n_rows == b->n_rows && a->n_cols == b->n_cols &&
           a->src_off == b->src_off && a->src_row == b->src_row &&
           a->src_col == b->src_col && a->dst_row == b->dst_row &&
           a->dst_col == b->dst_col;
}

/* Join the moves of a new block with those of the old one, whose slot is
 * `slot`. False where they do not pair. */
static bool join(const moec_move *want, size_t n, const moec_move *have,
                 size_t n_have, moec_inverse_from slot, moec_inverse *out)
{
    bool same = n == n_have;

    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (k < n_have && !same_region(&want[i], &have[k]))
            k++;
        if (k == n_have || want[i].op == MOEC_OP_FILL ||
            want[i].op == MOEC_OP_REQUANTISE)
            return false;
        same = same && want[i].dst_off == have[k].dst_off;
        out->from[i] = slot;
        out->moves[i] = want[i];
        out->moves[i].tensor = (uint32_t)i;
        out->moves[i].op = MOEC_OP_COPY;
        out->moves[i].src_off = have[k].dst_off;
        out->moves[i].src_row = have[k].dst_row;
        out->moves[i].src_col = have[k].dst_col;
    }
    out->off = 0;
    out->bytes = slot.bytes;
    out->n_moves = n;
    if (same) { /* the slot as it is, in one run */
        moec_move all = {.elem_bytes = 1,
                         .n_rows = 1,
                         .n_cols = slot.bytes,
                         .src_row = slot.bytes,
                         .src_col = 1,
                         .dst_row = slot.bytes,
                         .dst_col = 1};
        out->moves[0] = all;
        out->n_moves = 1;
    }
    return true;
}

/* Say how the new block comes out of an old slot, if it does. */
static bool find_old_slot(const from_conversion *f, moec_block_id b,
                          moec_inverse *out)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(f->in.plan, b.layer, b.t);
    moec_move want[MOEC_BLOCK_MOVES_MAX], have[MOEC_BLOCK_MOVES_MAX];
    moec_inverse_from slot;
    size_t layer, t, n, n_have;

    if (b.unit == MOEC_UNIT_EMPTY || !find_layer(f, b.layer, &layer) ||
        !find_tensor(f, layer, s->name, &t) ||
        !moec_inverse_slot(f->old, layer, t, b.unit, &slot) ||
        slot.bytes != s->slot_bytes)
        return false;
    n = moec_plan_block_moves(f->in.plan, b.layer, b.t, b.unit, want);
    n_have = moec_plan_block_moves(f->old_plan, layer, t, b.unit, have);
    return join(want, n, have, n_have, slot, out);
}

/* -------------------------------------------------------------- reading */

static moec_status hire(moec_input *in, uint32_t n, moec_error *err)
{
    from_conversion *f = (from_conversion *)in;

    MOEC_TRY(
        moec_readback_open(&f->rb, f->old, f->conv, in->opts->no_direct, err));
    MOEC_TRY(moec_readback_hire(&f->rb, n, err));
    f->aimed = moec_calloc(n, sizeof(*f->aimed));
    if (f->aimed == NULL)
        return moec_fail_nomem(err, "readers of the conversion");
    for (uint32_t i = 0; i < n; i++)
        f->aimed[i].tensor = UINT32_MAX;
    return MOEC_OK;
}

/* Point the reader at the block of a source tensor. */
static moec_status aim(from_conversion *f, uint32_t index, uint32_t tensor,
                       size_t block, moec_error *err)
{
    moec_reader *r = &f->rb.readers[index];
    struct aimed *a = &f->aimed[index];

    if (a->tensor == tensor && a->block == block)
        return MOEC_OK;
    a->tensor = UINT32_MAX;
    MOEC_TRY(moec_inverse_block(f->old, tensor, block, &r->inv, err));
    MOEC_TRY(moec_reader_aim(r, err));
    a->tensor = tensor;
    a->block = block;
    return MOEC_OK;
}

static moec_status read_tensor(moec_input *in, moec_hand h, uint32_t tensor,
                               uint64_t off, void *dst, size_t n,
                               moec_error *err)
{
    from_conversion *f = (from_conversion *)in;
    const moec_tensor *t = moec_ckpt_tensor(in->ckpt, tensor);
    size_t n_blocks = moec_inverse_n_blocks(f->old, tensor);
    uint64_t end = off + n, each = n_blocks > 0 ? t->bytes / n_blocks : 0;
    unsigned char *p = dst;
    moec_status st = MOEC_OK;

    while (st == MOEC_OK && off < end) {
        size_t block = each > 0 ? (size_t)(off / each) : 0;
        uint64_t stop = moec_min_u64(end, (block + 1) * each);

        st = aim(f, h.index, tensor, block, err);
        if (st == MOEC_OK)
            st = moec_reader_fill(&f->rb.readers[h.index], &h.worker->io,
                                  off - block * each, stop - block * each, p,
                                  err);
        p += stop - off;
        off = stop;
    }
    if (st != MOEC_OK)
        moec_error_prefix(err, "tensor '%s'", t->name);
    return st;
}

static moec_status read_block(moec_input *in, moec_hand h, moec_block_id b,
                              uint64_t from, uint64_t to, void *dst,
                              moec_error *err)
{
    from_conversion *f = (from_conversion *)in;
    moec_reader *r = &f->rb.readers[h.index];
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    moec_input_call c = {in, h};
    moec_status st;

    f->aimed[h.index].tensor = UINT32_MAX;
    if (!find_old_slot(f, b, &r->inv)) {
        size_t n = moec_plan_block_moves(in->plan, b.layer, b.t, b.unit, moves);
        return moec_block_read(moves, n, from, to, dst, moec_input_read, &c,
                               &h.worker->scratch, err);
    }
    MOEC_TRY(moec_reader_aim(r, err));
    st = moec_reader_fill(r, &h.worker->io, from, to, dst, err);
    if (st != MOEC_OK)
        moec_error_prefix(err, "'%s'",
                          moec_plan_slot_tensor(in->plan, b.layer, b.t)->name);
    return st;
}

/* ---------------------------------------------------------------- spots */

static moec_status spot_of(moec_inverse *inv, uint64_t at, moec_spot *out)
{
    if (inv->n_moves > 0) {
        out->file = (uint32_t)inv->from[0].file;
        out->off = inv->from[0].off + inv->moves[0].src_off + at;
    }
    moec_free(inv);
    return MOEC_OK;
}

static moec_status tensor_spot(moec_input *in, uint32_t tensor, moec_spot *out,
                               moec_error *err)
{
    const from_conversion *f = (const from_conversion *)in;
    moec_inverse *inv = moec_calloc(1, sizeof(*inv));

    if (inv == NULL)
        return moec_fail_nomem(err, "an inverse");
    moec_status st = moec_inverse_block(f->old, tensor, 0, inv, err);
    if (st == MOEC_OK)
        return spot_of(inv, 0, out);
    moec_free(inv);
    return st;
}

static moec_status block_spot(moec_input *in, moec_block_id b, moec_spot *out,
                              moec_error *err)
{
    const from_conversion *f = (const from_conversion *)in;
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    moec_inverse *inv = moec_calloc(1, sizeof(*inv));

    if (inv == NULL)
        return moec_fail_nomem(err, "an inverse");
    if (find_old_slot(f, b, inv))
        return spot_of(inv, 0, out);
    moec_free(inv);
    moec_plan_block_moves(in->plan, b.layer, b.t, b.unit, moves);
    if (moves[0].tensor == UINT32_MAX)
        return MOEC_OK;
    return tensor_spot(in, moves[0].tensor, out, err);
}

/* ---------------------------------------------------------- small files */

/* Every leaf that was read had its digest, and copies theirs. */
static moec_status check_unchanged(const moec_input *in, moec_error *err)
{
    (void)in;
    (void)err;
    return MOEC_OK;
}

/* Entry `i` of this kind in sources.bin; there are so many. */
static const moec_source_entry *entry(const from_conversion *f, uint32_t what,
                                      size_t i)
{
    const moec_sources *s = &f->conv->sources;

    for (size_t k = 0; k < s->n_entries; k++)
        if (s->entries[k].kind == what && i-- == 0)
            return &s->entries[k];
    return NULL;
}

static moec_status read_header(const moec_input *in, size_t i, void *dst,
                               moec_error *err)
{
    const moec_source_entry *e =
        entry((const from_conversion *)in, MOEC_SRC_SHARD, i);
    const moec_file *file = moec_ckpt_file(in->ckpt, i);

    if (e == NULL || e->data_bytes != file->header_bytes)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_M04,
                         "shard '%s' is not where it is expected", file->name);
    memcpy(dst, e->data, (size_t)e->data_bytes);
    return MOEC_OK;
}

static moec_status read_index(const moec_input *in, moec_buf *out,
                              moec_error *err)
{
    const moec_source_entry *e =
        entry((const from_conversion *)in, MOEC_SRC_INDEX, 0);

    if (e == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the source has no index");
    moec_buf_append(out, e->data, (size_t)e->data_bytes);
    return out->oom ? moec_fail_nomem(err, "the source's index") : MOEC_OK;
}

static moec_status open_extra(const moec_input *in, size_t i, moec_extra *out,
                              moec_error *err)
{
    const from_conversion *f = (const from_conversion *)in;
    const extra *e = &f->extras[i];
    moec_extra x = {.name = e->name, .fd = -1};

    if (e->copied != NULL) {
        MOEC_TRY(moec_converted_file(f->conv, x.name, &x.fd, &x.bytes, err));
        x.sha256 = &e->copied->sha256;
    } else {
        x.data = e->inside->data;
        x.bytes = e->inside->data_bytes;
    }
    *out = x;
    return MOEC_OK;
}

static const char *etag(const moec_input *in, size_t i)
{
    return ((const from_conversion *)in)->conv->manifest.sources[i].etag;
}

static moec_status identity(const moec_input *in, moec_buf *out,
                            moec_error *err)
{
    return moec_identity_conversion(((const from_conversion *)in)->conv, out,
                                    err);
}

/* ----------------------------------------------------------- the object */

static void destroy(moec_input *in)
{
    from_conversion *f = (from_conversion *)in;

    moec_readback_close(&f->rb);
    moec_free(f->aimed);
    moec_free(f->extras);
    moec_free(f->names);
    moec_free(f);
}

static const moec_input_kind kind = {
    .hire = hire,
    .block_spot = block_spot,
    .tensor_spot = tensor_spot,
    .read_block = read_block,
    .read_tensor = read_tensor,
    .check_unchanged = check_unchanged,
    .read_header = read_header,
    .read_index = read_index,
    .open_extra = open_extra,
    .etag = etag,
    .identity = identity,
    .destroy = destroy,
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const extra *)a)->name, ((const extra *)b)->name);
}

/* The source's small files, in the order that its directory gave them. */
static moec_status list_extras(from_conversion *f, moec_error *err)
{
    const moec_manifest *m = &f->conv->manifest;
    const moec_sources *s = &f->conv->sources;
    size_t n = 0, most = m->n_copied + s->n_entries;

    f->extras = moec_calloc(most + 1, sizeof(*f->extras));
    f->names = moec_calloc(most + 1, sizeof(*f->names));
    if (f->extras == NULL || f->names == NULL)
        return moec_fail_nomem(err, "the list of other files");
    for (size_t i = 0; i < m->n_copied; i++)
        f->extras[n++] =
            (extra){.name = m->copied[i].name, .copied = &m->copied[i]};
    for (size_t i = 0; i < s->n_entries; i++) {
        if (s->entries[i].kind == MOEC_SRC_FILE)
            f->extras[n++] =
                (extra){.name = s->entries[i].name, .inside = &s->entries[i]};
        else if (s->entries[i].kind == MOEC_SRC_INDEX)
            f->in.index_name = s->entries[i].name;
    }
    qsort(f->extras, n, sizeof(*f->extras), by_name);
    for (size_t i = 0; i < n; i++)
        f->names[i] = f->extras[i].name;
    f->in.extra = f->names;
    f->in.n_extra = n;
    return MOEC_OK;
}

moec_status moec_input_of_conversion(moec_input **out, const moec_input *common,
                                     moec_error *err)
{
    const moec_conversion *source = common->opts->source;
    from_conversion *f;
    moec_status st;

    MOEC_TRY(moec_convert_check_source(common->layout, source, err));
    f = moec_calloc(1, sizeof(*f));
    if (f == NULL)
        return moec_fail_nomem(err, "the input");
    f->in = *common;
    f->in.kind = &kind;
    f->conv = moec_conversion_files(source);
    f->old = moec_conversion_layout(source);
    f->old_plan = moec_layout_plan(f->old);
    st = list_extras(f, err);
    if (st != MOEC_OK) {
        destroy(&f->in);
        return st;
    }
    *out = &f->in;
    return MOEC_OK;
}
