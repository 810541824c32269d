/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A re-placement instead of a load: the moves of moec_plan_diff, over the rows
 * that are in memory. The list is ordered so that no row is written before all
 * have read it, and each row is written once; what a move reads is always the
 * old content. So the moves from files, which read no row, may all come last:
 * then one engine reads them at once, and at its own speed.
 */

#include <inttypes.h>
#include <string.h>

#include "job_parts.h"

/* Does the move concern slot tensor `t` of its layer? */
static bool concerns(const moec_job *j, const moec_diff_move *m, size_t t)
{
    if (m->tensor != MOEC_DIFF_ROWS)
        return m->tensor == t;
    return !moec_plan_slot_tensor(j->plan, m->layer, t)->all_slots;
}

static bool has_row(const moec_job *j, const moec_diff_move *m, size_t t)
{
    return m->dst_row == MOEC_DIFF_BOUNCE ||
           m->dst_row < j->layers[m->layer].slots[t].n_slots;
}

/* Whatever the diff was made of: every row it writes is one of ours. */
static moec_status check_move(const moec_job *j, const moec_diff_move *m,
                              moec_error *err)
{
    const moec_job_layer *y;

    if (m->layer >= j->n_layers || j->layers[m->layer].group == MOEC_NO_GROUP)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the diff names planned layer %" PRIu32
                         ", which the job does not load",
                         m->layer);
    y = &j->layers[m->layer];
    for (size_t t = 0; t < y->n; t++) {
        if (!concerns(j, m, t))
            continue;
        if (!y->slots[t].placed || !has_row(j, m, t))
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "'%s' %s",
                             moec_plan_slot_tensor(j->plan, m->layer, t)->name,
                             y->slots[t].placed
                                 ? "has no row that the diff writes"
                                 : "is not placed: a diff moves rows that "
                                   "are in memory");
    }
    switch ((moec_diff_source)m->source) {
    case MOEC_DIFF_PEER:
        if (j->hooks.peer == NULL)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "the diff has moves between ranks, and no hook "
                             "takes them");
        break;
    case MOEC_DIFF_HOST:
        if (j->hooks.host == NULL)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "the diff has moves out of host memory, and no "
                             "hook says where they are");
        break;
    case MOEC_DIFF_LOCAL:
    case MOEC_DIFF_DISK:
    case MOEC_DIFF_ZEROS:
        break;
    }
    return MOEC_OK;
}

moec_status moec_job_follow(moec_job *j, const moec_diff *diff,
                            const moec_diff_hooks *hooks, moec_error *err)
{
    static const moec_diff_hooks none = MOEC_DIFF_HOOKS_INIT;

    MOEC_TRY(moec_job_check_process(j, err));
    if (j->planned || j->expert != NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the job was started: it cannot follow a diff");
    if (j->o.sink != NULL && !j->o.sink->copies_within)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "a diff moves rows that are in memory, and this sink "
                         "copies out of its ring only");
    if (hooks != NULL && hooks->struct_bytes < sizeof(*hooks))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_diff_hooks.struct_bytes is %u: use "
                         "MOEC_DIFF_HOOKS_INIT",
                         hooks->struct_bytes);
    j->hooks = hooks != NULL ? *hooks : none;
    for (size_t i = 0; i < moec_diff_n_moves(diff); i++)
        MOEC_TRY(check_move(j, moec_diff_get(diff, i), err));
    j->diff = diff;
    return MOEC_OK;
}

moec_status moec_job_list_diff(moec_job *j, moec_error *err)
{
    MOEC_TRY(moec_job_list_tensors(j, err));
    for (size_t i = 0; i < moec_diff_n_moves(j->diff); i++) {
        const moec_diff_move *m = moec_diff_get(j->diff, i);
        const moec_job_layer *y = &j->layers[m->layer];

        MOEC_TRY(check_move(j, m, err)); /* of the places as they are now */
        if (m->source != MOEC_DIFF_DISK)
            continue;
        for (size_t t = 0; t < y->n; t++) {
            moec_job_tag tag = {m->layer, (uint32_t)t, m->dst_row, m->unit};
            if (concerns(j, m, t))
                MOEC_TRY(moec_job_list_row(j, tag, y->group, &j->lists, err));
        }
    }
    moec_job_sort_slow(&j->lists);
    moec_job_count_slow(j);
    return MOEC_OK;
}

/* ------------------------------------------------------------- the moves */

/* Row `row` of a slot tensor, or its part of the bounce row. */
static unsigned char *row_at(const moec_job *j, uint32_t layer, size_t t,
                             uint32_t row)
{
    const moec_job_slots *s = &j->layers[layer].slots[t];
    uint64_t off = 0;

    if (row != MOEC_DIFF_BOUNCE)
        return s->data + row * s->slot_stride;
    for (size_t i = 0; i < t; i++)
        off += j->layers[layer].slots[i].extent;
    return j->bounce + off;
}

/* Rows of host memory, or of zeros where `src` is NULL. To a sink they go by its
 * ring, which no engine uses yet. */
static moec_status put_rows(moec_job *j, unsigned char *dst, uint64_t dst_row,
                            const unsigned char *src, uint64_t src_row,
                            uint64_t run, uint64_t rows, moec_error *err)
{
    uint64_t room = j->o.sink != NULL ? j->ring_bytes : UINT64_MAX, n, k;

    for (uint64_t r = 0; r < rows; r += n) {
        n = moec_min_u64(rows - r, moec_max_u64(room / run, 1));
        for (uint64_t c = 0; c < run; c += k) {
            unsigned char *at = dst + r * dst_row + c, *to = at;
            uint64_t pitch = dst_row;

            k = moec_min_u64(run - c, room);
            if (j->o.sink != NULL) {
                to = j->o.sink->ring;
                pitch = k;
                MOEC_TRY(moec_job_settle(j, err)); /* nobody reads it now */
            }
            for (uint64_t i = 0; i < n; i++)
                if (src != NULL)
                    memcpy(to + i * pitch, src + (r + i) * src_row + c,
                           (size_t)k);
                else
                    memset(to + i * pitch, 0, (size_t)k);
            if (j->o.sink != NULL)
                MOEC_TRY(moec_job_copy(j, at, dst_row, to, k, k, n, err));
        }
    }
    return MOEC_OK;
}

typedef enum slot_source { FROM_ROW, FROM_HOST, FROM_NOTHING } slot_source;

/* Rows of the slot's matrix: from another row of the job's, from host memory,
 * where they stand densely, or zeros. */
static moec_status fill_slot(moec_job *j, const moec_job_slots *s,
                             unsigned char *dst, const unsigned char *src,
                             slot_source from, moec_error *err)
{
    const moec_window *w = &s->w;
    uint64_t run = w->n_cols * w->axes.elem, rows = w->n_rows;
    uint64_t row = w->row_stride, half = w->half_stride;
    uint32_t n_halves = w->axes.n_halves;

    if (from == FROM_HOST) {
        row = (w->axes.half_in_columns ? n_halves : 1) * run;
        half = w->axes.half_in_columns ? run : rows * run;
    }
    if (s->extent == w->bytes) { /* one run */
        run = w->bytes;
        rows = n_halves = 1;
    }
    for (uint32_t h = 0; h < n_halves; h++) {
        unsigned char *to = dst + h * w->half_stride;
        const unsigned char *at = src != NULL ? src + h * half : NULL;

        if (from == FROM_ROW)
            MOEC_TRY(
                moec_job_copy(j, to, w->row_stride, at, row, run, rows, err));
        else
            MOEC_TRY(put_rows(j, to, w->row_stride, at, row, run, rows, err));
    }
    return MOEC_OK;
}

static moec_status move_tensor(moec_job *j, const moec_diff_move *m, size_t t,
                               moec_error *err)
{
    const moec_job_slots *s = &j->layers[m->layer].slots[t];
    unsigned char *dst = row_at(j, m->layer, t, m->dst_row);
    const void *src = NULL;

    if (s->w.bytes == 0)
        return MOEC_OK;
    switch ((moec_diff_source)m->source) {
    case MOEC_DIFF_LOCAL:
        return fill_slot(j, s, dst, row_at(j, m->layer, t, m->src_row),
                         FROM_ROW, err);
    case MOEC_DIFF_HOST:
        MOEC_TRY(j->hooks.host(j->hooks.ctx, m->layer, t, m->unit, &src, err));
        if (src == NULL)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "the host hook gave no place for unit %" PRIu32,
                             m->unit);
        return fill_slot(j, s, dst, src, FROM_HOST, err);
    case MOEC_DIFF_ZEROS:
        return fill_slot(j, s, dst, NULL, FROM_NOTHING, err);
    case MOEC_DIFF_PEER:
    case MOEC_DIFF_DISK:
        break;
    }
    return MOEC_OK;
}

static moec_status hand_over(moec_job *j, const moec_diff_move *m,
                             moec_error *err)
{
    size_t n = j->layers[m->layer].n;
    void **rows = moec_calloc(n + 1, sizeof(*rows));
    moec_status st;

    if (rows == NULL)
        return moec_fail_nomem(err, "places of a row");
    for (size_t t = 0; t < n; t++)
        if (concerns(j, m, t))
            rows[t] = row_at(j, m->layer, t, m->dst_row);
    st = j->hooks.peer(j->hooks.ctx, m, rows, err);
    moec_free(rows);
    return st;
}

/* A row of all tensors of a layer, with the strides that they have. */
uint64_t moec_job_bounce_bytes(const moec_job *j)
{
    uint64_t most = 0;

    if (j->diff == NULL || moec_diff_sums(j->diff).bounce_bytes == 0)
        return 0;
    for (size_t i = 0; i < j->n_layers; i++) {
        uint64_t bytes = 0;
        for (size_t t = 0; t < j->layers[i].n; t++)
            bytes += j->layers[i].slots[t].extent;
        most = moec_max_u64(most, bytes);
    }
    return most;
}

static moec_status make_bounce(moec_job *j, moec_error *err)
{
    uint64_t most = moec_job_bounce_bytes(j);

    if (most == 0)
        return MOEC_OK;
    if (j->o.sink != NULL)
        return moec_job_ask(j, most, MOEC_NO_LAYER, &j->bounce, err);
    j->bounce = moec_alloc((size_t)most);
    return j->bounce != NULL ? MOEC_OK : moec_fail_nomem(err, "a bounce row");
}

moec_status moec_job_make_moves(moec_job *j, moec_error *err)
{
    uint32_t layer = MOEC_NO_LAYER, round = 0;

    MOEC_TRY(make_bounce(j, err));
    for (size_t i = 0; i < moec_diff_n_moves(j->diff); i++) {
        const moec_diff_move *m = moec_diff_get(j->diff, i);

        if (atomic_load(&j->cancelled))
            return moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                             "the re-placement was cancelled");
        if (m->layer != layer)
            round = 0;
        layer = m->layer;
        if (round < m->round || m->source == MOEC_DIFF_PEER)
            MOEC_TRY(moec_job_settle(j, err));
        for (; round < m->round; round++)
            if (j->hooks.round != NULL)
                MOEC_TRY(j->hooks.round(j->hooks.ctx, layer, round + 1, err));
        if (m->source == MOEC_DIFF_PEER)
            MOEC_TRY(hand_over(j, m, err));
        else if (m->source != MOEC_DIFF_DISK)
            for (size_t t = 0; t < j->layers[layer].n; t++)
                if (concerns(j, m, t))
                    MOEC_TRY(move_tensor(j, m, t, err));
    }
    return moec_job_settle(j, err);
}
