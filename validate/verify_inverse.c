/* SPDX-License-Identifier: Apache-2.0 */

/*
 * T6: the inverse moves over the output files give the source back.
 *
 * `take_back` is the source as the output files have it: any range of any
 * source tensor. With the source it is compared byte for byte. Without it the
 * forward moves are applied to what was taken back, and their result must have
 * the digests of slots.bin: a way there that is not undone by the way back
 * cannot close this circle.
 *
 * Blocks that are copied as they are need no bytes for that: see below. A
 * transposed block is taken back whole and kept, because every short range
 * of it touches nearly all of its slot; others are read as they are asked for.
 */

#include <inttypes.h>
#include <string.h>

#include "verify.h"

typedef struct pass {
    moec_verifier *v;
    bool all; /* T3 failed: also plain blocks */
    moec_verify_piece *pieces;
    size_t n_pieces;
} pass;

/* What the executor's callbacks get. */
typedef struct back {
    moec_verifier *v;
    moec_verify_worker *w;
    const moec_kept_block *kept;
} back;

/* ------------------------------------------------------- from OUT's files */

static moec_status read_out(void *ctx, uint32_t tensor, uint64_t off, void *buf,
                            size_t n, moec_error *err)
{
    const back *b = ctx;
    const moec_inverse_from *from = &b->kept->inverse.from[tensor];
    const char *name = b->v->files->slots.files[from->file].name;

    if (off > from->bytes || n > from->bytes - off)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T6,
                         "'%s': a range outside its slot", name);
    return moec_verify_read(b->v, b->w, from->file, from->off + off, buf, n,
                            err);
}

static moec_status load_block(back *b, moec_kept_block *k, size_t tensor,
                              size_t block, moec_error *err)
{
    moec_inverse *v = &k->inverse;

    k->valid = false;
    k->whole = false;
    MOEC_TRY(moec_inverse_block(b->v->layout, tensor, block, v, err));
    for (size_t i = 0; i < v->n_moves; i++) {
        k->whole = k->whole || v->moves[i].op != MOEC_OP_COPY;
        if (b->v->io[v->from[i].file].fd < 0)
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_T6,
                             "'%s' is missing or damaged",
                             b->v->files->slots.files[v->from[i].file].name);
    }
    if (k->whole && k->cap < v->bytes) {
        moec_free(k->data);
        k->cap = 0;
        k->data = moec_alloc((size_t)v->bytes);
        if (k->data == NULL)
            return moec_fail_nomem(err, "a block taken back");
        k->cap = v->bytes;
    }
    b->kept = k;
    if (k->whole)
        MOEC_TRY(moec_block_read(v->moves, v->n_moves, 0, v->bytes, k->data,
                                 read_out, b, &b->w->inner, err));
    k->tensor = tensor;
    k->block = block;
    k->valid = true;
    return MOEC_OK;
}

static moec_status get_block(back *b, size_t tensor, size_t block,
                             moec_error *err)
{
    moec_verify_worker *w = b->w;

    for (uint32_t i = 0; i < MOEC_VERIFY_KEPT; i++)
        if (w->kept[i].valid && w->kept[i].tensor == tensor &&
            w->kept[i].block == block) {
            b->kept = &w->kept[i];
            return MOEC_OK;
        }
    w->next_kept = (w->next_kept + 1) % MOEC_VERIFY_KEPT;
    return load_block(b, &w->kept[w->next_kept], tensor, block, err);
}

/* Bytes [off, off + n) of source tensor `tensor`, from the output files. */
static moec_status take_back(void *ctx, uint32_t tensor, uint64_t off,
                             void *buf, size_t n, moec_error *err)
{
    back *b = ctx;
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(b->v->plan));
    size_t n_blocks = moec_inverse_n_blocks(b->v->layout, tensor);
    uint64_t each;
    unsigned char *dst = buf;

    if (n == 0)
        return MOEC_OK;
    each = n_blocks == 0 ? 0 : moec_ckpt_tensor(ckpt, tensor)->bytes / n_blocks;
    if (each == 0)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_T6,
                         "'%s' was left out",
                         moec_ckpt_tensor(ckpt, tensor)->name);
    while (n > 0) {
        uint64_t at = off % each;
        size_t k = (size_t)moec_min_u64(n, each - at);
        const moec_inverse *v;

        MOEC_TRY(get_block(b, tensor, (size_t)(off / each), err));
        v = &b->kept->inverse;
        if (b->kept->whole)
            memcpy(dst, b->kept->data + at, k);
        else
            MOEC_TRY(moec_block_read(v->moves, v->n_moves, at, at + k, dst,
                                     read_out, b, &b->w->inner, err));
        dst += k;
        off += k;
        n -= k;
    }
    return MOEC_OK;
}

/* ------------------------------------------------- what needs no bytes
 * Where the way back of a block is made of plain copies, and each of them is a
 * move of the way there with its sides exchanged, back and forth is the
 * identity whatever the bytes are; that the slot has the right ones is T3,
 * which ran before. Where T3 found nothing, only transposed and interleaved
 * blocks, whose copies the executor makes element by element, are taken back
 * for real. Where it found something, all are, so that each source tensor that
 * cannot be given back is named. */

static bool same_move(const moec_move *a, const moec_move *b)
{
    return a->op == b->op && a->elem_bytes == b->elem_bytes &&
           a->n_rows == b->n_rows && a->n_cols == b->n_cols &&
           a->src_off == b->src_off && a->src_row == b->src_row &&
           a->src_col == b->src_col && a->dst_off == b->dst_off &&
           a->dst_row == b->dst_row && a->dst_col == b->dst_col;
}

/* The tensor of an output file that byte `off` lies in. */
static const moec_out_tensor *tensor_at(const moec_out_file *f, uint64_t off)
{
    size_t lo = 0, hi = f->n_tensors;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (f->tensors[mid].off + f->tensors[mid].bytes <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < f->n_tensors ? &f->tensors[lo] : NULL;
}

/* Is move `i` of the way back a forward move turned round? */
static bool is_turned(const moec_verifier *v, size_t tensor,
                      const moec_inverse *inv, size_t i)
{
    const moec_inverse_from *from = &inv->from[i];
    const moec_out_file *f = moec_layout_file(v->layout, from->file);
    const moec_out_tensor *o = tensor_at(f, from->off);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    uint32_t row, unit;
    size_t n;

    if (o == NULL || v->io[from->file].fd < 0)
        return false;
    if (o->kind == MOEC_OUT_COMMON)
        return o->source == tensor && o->off == from->off &&
               inv->n_moves == 1 && inv->bytes == o->bytes &&
               inv->moves[i].n_rows * inv->moves[i].n_cols *
                       inv->moves[i].elem_bytes ==
                   o->bytes;
    if (o->kind != MOEC_OUT_SLOTS || from->bytes == 0)
        return false;
    row = (uint32_t)((from->off - o->off) / from->bytes);
    if (o->off + row * from->bytes != from->off)
        return false;
    unit = moec_plan_row_unit(v->plan, o->layer, o->t, f->rank, row);
    n = moec_plan_block_moves(v->plan, o->layer, o->t, unit, moves);
    for (size_t k = 0; k < n; k++) {
        moec_move turned = moec_move_inverse(&moves[k], 0, inv->off);
        if (moves[k].tensor == tensor && moves[k].src_off >= inv->off &&
            same_move(&turned, &inv->moves[i]))
            return true;
    }
    return false;
}

/* Is the way back of this block proved by its moves alone? */
static bool is_plain(const moec_verifier *v, size_t tensor, size_t block,
                     moec_inverse *room)
{
    if (moec_inverse_block(v->layout, tensor, block, room, NULL) != MOEC_OK)
        return false;
    for (size_t i = 0; i < room->n_moves; i++)
        if (room->moves[i].op != MOEC_OP_COPY || !is_turned(v, tensor, room, i))
            return false;
    return true;
}

/* Are all sources of one block of a slot tensor? */
static bool is_plain_unit(const moec_verifier *v, size_t layer, size_t t,
                          uint32_t unit, moec_inverse *room)
{
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(v->plan));
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    size_t n = moec_plan_block_moves(v->plan, layer, t, unit, moves);

    for (size_t i = 0; i < n; i++) {
        size_t tensor = moves[i].tensor, n_blocks;
        uint64_t each;

        if (moves[i].op != MOEC_OP_COPY)
            return false;
        n_blocks = moec_inverse_n_blocks(v->layout, tensor);
        each = n_blocks == 0 ? 0
                             : moec_ckpt_tensor(ckpt, tensor)->bytes / n_blocks;
        if (each == 0 ||
            !is_plain(v, tensor, (size_t)(moves[i].src_off / each), room))
            return false;
    }
    return true;
}

/* ------------------------------------------------------- with the source */

static moec_finding source_finding(const moec_verifier *v, size_t tensor,
                                   uint64_t at)
{
    const moec_model *model = moec_plan_model(v->plan);
    const moec_tensor *t = moec_ckpt_tensor(moec_model_ckpt(model), tensor);
    moec_tensor_use use = moec_model_use(model, tensor);
    moec_finding f = {.rule = MOEC_RULE_T6,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE | MOEC_HAS_TENSOR | MOEC_HAS_OFFSET,
                      .file =
                          moec_ckpt_file(moec_model_ckpt(model), t->file)->name,
                      .tensor = t->name,
                      .offset = t->off + at};

    if (use.layer != MOEC_NO_LAYER) {
        f.has |= MOEC_HAS_LAYER;
        f.layer = moec_model_layer(model, use.layer)->key;
    }
    if (use.expert != MOEC_NO_EXPERT) {
        f.has |= MOEC_HAS_EXPERT;
        f.expert = use.expert;
    }
    return f;
}

/* Damage on the way back is a finding. */
static moec_status settle(const moec_verifier *v, moec_finding f,
                          const moec_error *e, moec_error *err)
{
    if (e->status == MOEC_E_INTEGRITY || e->status == MOEC_E_FORMAT ||
        e->status == MOEC_E_MAPPING || e->status == MOEC_E_UNSUPPORTED) {
        moec_report_add(v->r, &f, "cannot be given back: %s", e->text);
        return MOEC_OK;
    }
    return moec_hand_on(err, e->status, e);
}

/* Compare bytes [from, to) of a source tensor with what was taken back. */
static moec_status compare_source(moec_verifier *v, moec_verify_worker *w,
                                  const moec_verify_piece *k, moec_error *err)
{
    back b = {.v = v, .w = w};
    uint64_t end = k->first + k->n;
    size_t tensor = k->t;

    for (uint64_t at = k->first; at < end; at += MOEC_VERIFY_RANGE_BYTES) {
        size_t n = (size_t)moec_min_u64(MOEC_VERIFY_RANGE_BYTES, end - at);
        moec_error e = MOEC_ERROR_INIT;
        moec_finding f = source_finding(v, tensor, at);
        size_t i = 0;

        if (take_back(&b, (uint32_t)tensor, at, w->a, n, &e) != MOEC_OK)
            return settle(v, f, &e, err);
        MOEC_TRY(moec_verify_read_source(v, w, tensor, at, w->b, n, err));
        if (memcmp(w->a, w->b, n) != 0) {
            while (w->a[i] == w->b[i])
                i++;
            f.offset += i;
            moec_report_add(v->r, &f,
                            "byte %" PRIu64 " of the tensor is not given back",
                            at + i);
            return MOEC_OK;
        }
        MOEC_TRY(moec_verify_progress(v, n, err));
    }
    return MOEC_OK;
}

static moec_status run_source(void *ctx, size_t i, uint32_t worker,
                              moec_error *err)
{
    const pass *p = ctx;

    return compare_source(p->v, &p->v->workers[worker], &p->pieces[i], err);
}

/* Pieces: one for each block of each source tensor, in bytes. */
static moec_status list_blocks(pass *p, moec_error *err)
{
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(p->v->plan));
    size_t n_tensors = moec_ckpt_n_tensors(ckpt), n = 0;
    moec_inverse *room;

    for (size_t i = 0; i < n_tensors; i++)
        n += moec_inverse_n_blocks(p->v->layout, i);
    p->pieces = moec_calloc(n + 1, sizeof(*p->pieces));
    room = moec_alloc(sizeof(*room));
    if (p->pieces == NULL || room == NULL) {
        moec_free(room);
        return moec_fail_nomem(err, "list of work");
    }
    for (size_t i = 0; i < n_tensors; i++) {
        size_t n_blocks = moec_inverse_n_blocks(p->v->layout, i);
        for (size_t b = 0; b < n_blocks; b++) {
            uint64_t each = moec_ckpt_tensor(ckpt, i)->bytes / n_blocks;
            if (!p->all && is_plain(p->v, i, b, room))
                continue;
            p->pieces[p->n_pieces++] =
                (moec_verify_piece){SIZE_MAX, i, b * each, each};
        }
    }
    moec_free(room);
    return MOEC_OK;
}

/* ---------------------------------------------------- without the source */

/* Forward over back must be what slots.bin says. */
static moec_status close_circle(moec_verifier *v, moec_verify_worker *w,
                                size_t layer, size_t t, uint32_t unit,
                                moec_error *err)
{
    uint64_t bytes = moec_plan_slot_tensor(v->plan, layer, t)->slot_bytes;
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    back b = {.v = v, .w = w};
    const moec_ct_tensor *ct;
    uint32_t row;
    const moec_ct_slot *slot = moec_verify_first(v, layer, t, unit, &ct, &row);
    size_t n_moves, bad = SIZE_MAX;
    moec_sha256 sha;
    moec_finding f;

    if (slot == NULL)
        return MOEC_OK;
    f = moec_verify_finding(v, MOEC_RULE_T6, ct, row, 0);
    n_moves = moec_plan_block_moves(v->plan, layer, t, unit, moves);
    for (uint64_t at = 0; bad == SIZE_MAX && at < bytes;
         at += MOEC_VERIFY_RANGE_BYTES) {
        size_t n = (size_t)moec_min_u64(MOEC_VERIFY_RANGE_BYTES, bytes - at);
        moec_error e = MOEC_ERROR_INIT;

        if (moec_block_read(moves, n_moves, at, at + n, w->a, take_back, &b,
                            &w->scratch, &e) != MOEC_OK)
            return settle(v, f, &e, err);
        MOEC_TRY(moec_verify_leaves(v, slot, at / MOEC_LEAF_BYTES, w->a, n,
                                    &bad, &sha, err));
        MOEC_TRY(moec_verify_progress(v, n, err));
    }
    if (bad == SIZE_MAX)
        return MOEC_OK;
    f = moec_verify_finding(v, MOEC_RULE_T6, ct, row, bad * MOEC_LEAF_BYTES);
    moec_report_add(v->r, &f,
                    "leaf %zu is not what the way back and forth "
                    "gives",
                    bad);
    return MOEC_OK;
}

static moec_status run_circle(void *ctx, size_t i, uint32_t worker,
                              moec_error *err)
{
    const pass *p = ctx;
    const moec_verify_piece *k = &p->pieces[i];
    moec_inverse room;

    for (uint64_t u = 0; u < k->n; u++) {
        uint32_t unit = (uint32_t)(k->first + u);
        if (moec_verify_is_made(p->v, unit)) /* its sources are common */
            continue;
        if (p->all || !is_plain_unit(p->v, k->layer, k->t, unit, &room))
            MOEC_TRY(close_circle(p->v, &p->v->workers[worker], k->layer, k->t,
                                  unit, err));
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------- the theorem */

/* Workers that may keep transposed blocks at the same time. A shared expert's
 * block has as many slots as it has parts. */
static uint32_t n_keepers(const moec_verifier *v)
{
    uint64_t parts = moec_max_u64(moec_plan_shared_rows(v->plan), 1);
    uint64_t most = 0;

    for (size_t l = 0; l < moec_plan_n_layers(v->plan); l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, l); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(v->plan, l, t);
            if (s->op != MOEC_OP_COPY)
                most = moec_max_u64(most, s->slot_bytes * parts);
        }
    if (most == 0)
        return v->n_workers;
    most = MOEC_VERIFY_KEPT_BYTES / (MOEC_VERIFY_KEPT * most);
    return (uint32_t)moec_min_u64(moec_max_u64(most, 1), v->n_workers);
}

static void add_notes(const moec_verifier *v)
{
    const char *circle = v->source_ok ? ""
                                      : "the digests of slots.bin stand in for "
                                        "the source";

    if (v->n_skipped != 0)
        moec_report_note(v->r, MOEC_RULE_T6,
                         "%s%s%" PRIu64 " tensors were left out of the "
                         "conversion and cannot be given back without the "
                         "source",
                         circle, *circle != '\0' ? "; " : "", v->n_skipped);
    else if (!v->source_ok)
        moec_report_note(v->r, MOEC_RULE_T6, "%s", circle);
}

moec_status moec_verify_inverse(moec_verifier *v, moec_error *err)
{
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(v->plan));
    pass p = {.v = v, .all = moec_report_broken(v->r, MOEC_RULE_T3)};
    uint32_t n = n_keepers(v);
    moec_status st;

    if (v->source_ok) {
        st = list_blocks(&p, err);
        if (st == MOEC_OK)
            st = moec_parallel(n, p.n_pieces, run_source, &p, err);
    } else {
        st = moec_verify_unit_pieces(v, &p.pieces, &p.n_pieces, err);
        if (st == MOEC_OK)
            st = moec_parallel(n, p.n_pieces, run_circle, &p, err);
    }
    if (st == MOEC_OK) {
        moec_report_ran(v->r, MOEC_RULE_T6,
                        moec_ckpt_n_tensors(ckpt) - v->n_skipped);
        add_notes(v);
    }
    moec_free(p.pieces);
    return st;
}
