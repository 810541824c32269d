/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks that no piece can bring: empty slots, shared experts that are
 * requantised on the way, tensors that a conversion holds only in slots, and
 * checked bytes that are not adjacent in their rows. Ranges of a dense block
 * are made in a buffer, checked leaf by leaf, and put from there into the
 * window. A few percent of a load at most; several threads, each with a few
 * MiB.
 */

#include <inttypes.h>
#include <string.h>

#include "ckpt.h"
#include "inverse.h"
#include "job_parts.h"

/* One thread's room. */
typedef struct hand {
    moec_job *j;
    unsigned char *out;  /* a range of a dense block; of the sink's ring */
    unsigned char *leaf; /* bytes of the leaf that was read last */
    uint32_t leaf_file;
    uint64_t leaf_off; /* UINT64_MAX: none */
    moec_scratch scratch;
    const moec_stretch *from; /* of read_tensor, by "tensor" of a move */
    const moec_job_tag *what;
    unsigned char *dst; /* of the window */
} hand;

typedef struct slow_run {
    moec_job *j;
    const moec_slow_block *blocks;
    hand *hands;
} slow_run;

static moec_status check_cancelled(const moec_job *j, moec_error *err)
{
    if (!atomic_load(&((moec_job *)(uintptr_t)j)->cancelled))
        return MOEC_OK;
    return moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                     "the load was cancelled");
}

/* --------------------------------------------------------- checked bytes */

static moec_status read_raw(hand *h, uint32_t file, uint64_t off, void *buf,
                            size_t n, moec_error *err)
{
    MOEC_TRY(check_cancelled(h->j, err));
    MOEC_TRY(moec_job_read_at(h->j, file, off, buf, n, err));
    atomic_fetch_add(&h->j->slow_read, n);
    return MOEC_OK;
}

static moec_status check_leaf(const hand *h, const moec_stretch *s,
                              uint64_t leaf, const void *data, size_t n,
                              moec_error *err)
{
    const moec_leaf *want = &s->leaves[leaf];
    uint64_t at = s->off + leaf * MOEC_LEAF_BYTES;
    char name[MOEC_NAME_BYTES_MAX + 64];
    moec_rule rule = h->what->t == MOEC_NO_SLOTS ? MOEC_RULE_M07 : MOEC_RULE_T3;
    bool same;

    if (h->j->verify == MOEC_ENGINE_SHA256) {
        moec_sha256 got;
        MOEC_TRY(moec_sha256_of(data, n, &got, err));
        same = memcmp(&got, &want->sha256, sizeof(got)) == 0;
    } else {
        moec_xxh128 got = moec_xxh128_of(data, n);
        same = memcmp(&got, &want->xxh128, sizeof(got)) == 0;
    }
    atomic_fetch_add(&h->j->slow_verified, n);
    if (same)
        return MOEC_OK;
    moec_job_say(h->j, h->what, name, sizeof(name));
    return moec_fail_at(err, MOEC_E_INTEGRITY, rule, at,
                        "%s: %s: leaf %" PRIu64 " (%zu bytes at %" PRIu64
                        ") does not have its digest; restore the file or "
                        "convert again",
                        h->j->file[s->file].name, name, leaf, n, at);
}

/* Files that only slow blocks need are opened when the first of them does. */
static moec_status open_file(moec_job *j, size_t file, moec_error *err)
{
    moec_status st;

    (void)pthread_mutex_lock(&j->file_lock);
    st = moec_job_open_file(j, file, err);
    (void)pthread_mutex_unlock(&j->file_lock);
    return st;
}

/* Read [off, off + n) of a stretch, through its leaves where it has any. */
static moec_status read_stretch(hand *h, const moec_stretch *s, uint64_t off,
                                unsigned char *to, size_t n, moec_error *err)
{
    MOEC_TRY(open_file(h->j, s->file, err));
    if (s->leaves == NULL || h->j->verify == MOEC_ENGINE_NONE)
        return read_raw(h, s->file, s->off + off, to, n, err);
    while (n > 0) {
        uint64_t leaf = off / MOEC_LEAF_BYTES, at = leaf * MOEC_LEAF_BYTES;
        size_t bytes = (size_t)moec_min_u64(MOEC_LEAF_BYTES, s->bytes - at);
        size_t k = (size_t)moec_min_u64(n, at + bytes - off);

        if (h->leaf_off != s->off + at || h->leaf_file != s->file) {
            h->leaf_off = UINT64_MAX;
            MOEC_TRY(read_raw(h, s->file, s->off + at, h->leaf, bytes, err));
            MOEC_TRY(check_leaf(h, s, leaf, h->leaf, bytes, err));
            h->leaf_off = s->off + at;
            h->leaf_file = s->file;
        }
        memcpy(to, h->leaf + (off - at), k);
        to += k;
        off += k;
        n -= k;
    }
    return MOEC_OK;
}

/* A source tensor, for the executor of moves. */
static moec_status read_tensor(void *ctx, uint32_t tensor, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    hand *h = ctx;
    moec_stretch from;

    if (h->from != NULL)
        return read_stretch(h, &h->from[tensor], off, buf, n, err);
    if (!moec_loading_tensor(&h->j->ld, tensor, &from))
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_T1,
                         "the conversion does not hold tensor '%s' in one "
                         "stretch",
                         moec_ckpt_tensor(h->j->ckpt, tensor)->name);
    return read_stretch(h, &from, off, buf, n, err);
}

/* ------------------------------------------------------------ into place */

static moec_status put(void *ctx, uint64_t dst_off, uint64_t dst_row,
                       const unsigned char *src, uint64_t src_row,
                       uint64_t row_bytes, uint64_t rows, moec_error *err)
{
    hand *h = ctx;

    if (h->what->unit != MOEC_UNIT_EMPTY)
        atomic_fetch_add(&h->j->slow_done, row_bytes * rows);
    MOEC_TRY(moec_job_copy(h->j, h->dst + dst_off, dst_row, src, src_row,
                           row_bytes, rows, err));
    return moec_job_settle(h->j, err); /* the buffer is used again at once */
}

/* Does the window take any byte of [from, to) of the dense slot? */
static bool wants(const moec_window *w, uint64_t from, uint64_t to)
{
    const moec_slot_axes *a = &w->axes;
    uint64_t pitch = a->n_cols * a->elem;

    if (a->half_in_columns || w->n_rows == a->n_rows)
        return true;
    for (uint32_t h = 0; h < a->n_halves; h++) {
        uint64_t begin = (h * a->n_rows + w->row_first) * pitch;
        if (begin < to && begin + w->n_rows * pitch > from)
            return true;
    }
    return false;
}

/* Fill h->out with [from, to) of the dense block. */
static moec_status make_range(hand *h, uint64_t from, uint64_t to,
                              const moec_move *moves, size_t n_moves,
                              moec_error *err)
{
    const moec_job_tag *b = h->what;

    if (b->unit == MOEC_UNIT_EMPTY) {
        memset(h->out, 0, (size_t)(to - from));
        return MOEC_OK;
    }
    if (n_moves > 0)
        return moec_block_read(moves, n_moves, from, to, h->out, read_tensor, h,
                               &h->scratch, err);
    if (h->from != NULL)
        return read_stretch(h, h->from, from, h->out, (size_t)(to - from), err);
    return moec_requant_read(h->j->requant, b->layer, b->t, b->unit, from, to,
                             h->out, read_tensor, h, err);
}

static moec_status fill_slot(hand *h, moec_error *err)
{
    moec_job *j = h->j;
    const moec_job_tag *b = h->what;
    const moec_job_slots *s = &j->layers[b->layer].slots[b->t];
    uint32_t n_experts = moec_model_facts(moec_plan_model(j->plan))->n_experts;
    uint64_t bytes = moec_plan_slot_tensor(j->plan, b->layer, b->t)->slot_bytes;
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    moec_stretch from;
    size_t n_moves = 0;

    h->from = NULL;
    h->dst = s->data + b->row * s->slot_stride;
    if (b->unit == MOEC_UNIT_EMPTY)
        ;
    else if (j->ld.old != NULL &&
             moec_loading_slot(&j->ld, b->layer, b->t, b->row, b->unit, &from))
        h->from = &from;
    else if (b->unit < n_experts || !moec_plan_requantises(j->plan))
        n_moves =
            moec_plan_block_moves(j->plan, b->layer, b->t, b->unit, moves);
    for (uint64_t at = 0; at < bytes; at += MOEC_LEAF_BYTES) {
        uint64_t to = moec_min_u64(at + MOEC_LEAF_BYTES, bytes);

        if (!wants(&s->w, at, to))
            continue;
        MOEC_TRY(make_range(h, at, to, moves, n_moves, err));
        MOEC_TRY(moec_window_put(&s->w, at, to - at, h->out, put, h, err));
    }
    h->from = NULL;
    return MOEC_OK;
}

/* Put bytes [at, at + n) of a source tensor into its view. */
static moec_status put_view(hand *h, const moec_tensor_window *w, uint64_t at,
                            uint64_t n, moec_error *err)
{
    while (n > 0) {
        uint64_t row = at / w->row_bytes, col = at % w->row_bytes;
        uint64_t k = moec_min_u64(n, w->row_bytes - col);
        uint64_t c0 = moec_max_u64(col, w->col_first_bytes);
        uint64_t c1 = moec_min_u64(col + k, w->col_first_bytes + w->col_bytes);
        const unsigned char *src = h->out + (c0 - col);

        if (row >= w->row_first && row < w->row_first + w->rows && c0 < c1)
            MOEC_TRY(put(h,
                         (row - w->row_first) * w->row_stride +
                             (c0 - w->col_first_bytes),
                         0, src, 0, c1 - c0, 1, err));
        h->out += k;
        at += k;
        n -= k;
    }
    return MOEC_OK;
}

/* Ranges of whole rows would be fewer; leaves must be read whole anyway. */
static moec_status fill_ranges(hand *h, const moec_tensor_window *w,
                               uint64_t bytes, const moec_move *moves,
                               size_t n_moves, moec_error *err)
{
    uint64_t first = w->row_first * w->row_bytes;
    uint64_t last = (w->row_first + w->rows) * w->row_bytes;
    unsigned char *out = h->out;
    moec_status st = MOEC_OK;

    for (uint64_t at = first / MOEC_LEAF_BYTES * MOEC_LEAF_BYTES;
         st == MOEC_OK && at < last; at += MOEC_LEAF_BYTES) {
        uint64_t to = moec_min_u64(at + MOEC_LEAF_BYTES, bytes);
        st = make_range(h, at, to, moves, n_moves, err);
        if (st == MOEC_OK)
            st = put_view(h, w, at, to - at, err);
        h->out = out;
    }
    return st;
}

/* A tensor that stands in slots: the way back. */
static moec_status fill_from_slots(hand *h, const moec_job_tensor *t,
                                   moec_error *err)
{
    moec_inverse *inv = moec_calloc(1, sizeof(*inv));
    moec_stretch *from = moec_calloc(MOEC_INVERSE_MOVES_MAX, sizeof(*from));
    moec_status st = MOEC_OK;

    if (inv == NULL || from == NULL)
        st = moec_fail_nomem(err, "the way back of a tensor");
    if (st == MOEC_OK)
        st = moec_inverse_block(h->j->ld.old, t->tensor, 0, inv, err);
    for (size_t i = 0; st == MOEC_OK && i < inv->n_moves; i++) {
        uint64_t slot = 0;
        from[i] = (moec_stretch){.file = (uint32_t)inv->from[i].file,
                                 .off = inv->from[i].off,
                                 .bytes = inv->from[i].bytes};
        if (moec_slots_find(h->j->ld.slots, from[i].file, from[i].off, &slot))
            from[i].leaves =
                &h->j->ld.slots->leaves[h->j->ld.slots->slots[slot].first_leaf];
    }
    if (st == MOEC_OK) {
        h->from = from;
        st = fill_ranges(h, &t->w, inv->bytes, inv->moves, inv->n_moves, err);
    }
    h->from = NULL;
    moec_free(from);
    moec_free(inv);
    return st;
}

static moec_status fill_tensor(hand *h, moec_error *err)
{
    const moec_job_tensor *t = &h->j->tensors[h->what->layer];

    h->dst = t->data;
    if (t->w.rows == 0 || t->w.col_bytes == 0)
        return MOEC_OK;
    return fill_from_slots(h, t, err);
}

/* ------------------------------------------------------------- the blocks */

static moec_status hire(hand *h, moec_job *j, moec_error *err)
{
    h->j = j;
    h->leaf_off = UINT64_MAX;
    h->leaf = moec_alloc((size_t)MOEC_LEAF_BYTES);
    h->out = j->o.sink != NULL ? moec_job_slow_ring(j)
                               : moec_alloc((size_t)MOEC_LEAF_BYTES);
    if (h->out == NULL && j->o.sink != NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a sink's ring of %" PRIu64 " bytes is too small for "
                         "this load: it takes more than %" PRIu64,
                         j->ring_bytes, 2 * MOEC_LEAF_BYTES);
    if (h->leaf == NULL || h->out == NULL)
        return moec_fail_nomem(err, "buffers of a load");
    return MOEC_OK;
}

static void dismiss(hand *h)
{
    if (h->j == NULL)
        return;
    if (h->j->o.sink == NULL)
        moec_free(h->out);
    moec_free(h->leaf);
    moec_scratch_fini(&h->scratch);
}

static moec_status run_block(void *ctx, size_t item, uint32_t worker,
                             moec_error *err)
{
    slow_run *r = ctx;
    hand *h = &r->hands[worker];

    MOEC_TRY(check_cancelled(r->j, err));
    if (h->j == NULL)
        MOEC_TRY(hire(h, r->j, err));
    h->what = &r->blocks[item].what;
    if (h->what->t == MOEC_NO_SLOTS)
        return fill_tensor(h, err);
    return fill_slot(h, err);
}

moec_status moec_slow_blocks(moec_job *j, const moec_slow_block *blocks,
                             size_t n, uint64_t *ticket, moec_error *err)
{
    uint32_t n_threads = moec_job_threads(j);
    slow_run r = {.j = j, .blocks = blocks};
    moec_status st = MOEC_OK;

    if (n == 0)
        return MOEC_OK;
    if (j->o.sink != NULL || n == 1) /* one buffer in pinned memory */
        n_threads = 1;
    r.hands = moec_calloc(n_threads, sizeof(*r.hands));
    if (r.hands == NULL)
        return moec_fail_nomem(err, "threads of a load");
    st = moec_parallel(n_threads, n, run_block, &r, err);
    for (uint32_t i = 0; i < n_threads; i++)
        dismiss(&r.hands[i]);
    moec_free(r.hands);
    if (st == MOEC_OK && j->o.sink != NULL && ticket != NULL)
        *ticket = moec_max_u64(*ticket, j->last_ticket);
    return st;
}

/* Blocks stand in the order of their groups. */
moec_status moec_slow_group(moec_job *j, uint32_t group, uint64_t *ticket,
                            moec_error *err)
{
    const moec_job_lists *l = &j->lists;
    size_t lo = 0, hi = l->n_slow, end;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->slow[mid].group < group)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (end = lo; end < l->n_slow && l->slow[end].group == group;)
        end++;
    if (end == lo)
        return MOEC_OK;
    return moec_slow_blocks(j, l->slow + lo, end - lo, ticket, err);
}
