/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the engine gets: all pieces of the rank, group by group, and a list of
 * blocks that no piece can bring. And the files that they stand in.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "job_parts.h"

void moec_job_lists_fini(moec_job_lists *l)
{
    moec_piece_list_fini(&l->pieces);
    moec_free(l->tags);
    moec_free(l->slow);
    *l = (moec_job_lists){0};
}

static moec_status add_tag(moec_job_lists *l, moec_job_tag tag, moec_error *err)
{
    if (l->n_tags == l->cap_tags) {
        size_t cap = l->cap_tags == 0 ? 256 : l->cap_tags * 2;
        moec_job_tag *v = moec_realloc_array(l->tags, cap, sizeof(*v));
        if (v == NULL)
            return moec_fail_nomem(err, "names of pieces");
        l->tags = v;
        l->cap_tags = cap;
    }
    if (l->n_tags >= UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "more than %" PRIu32 " slots in one load", UINT32_MAX);
    l->tags[l->n_tags++] = tag;
    return MOEC_OK;
}

static moec_status add_slow(moec_job_lists *l, uint32_t group, moec_job_tag tag,
                            moec_error *err)
{
    if (l->n_slow == l->cap_slow) {
        size_t cap = l->cap_slow == 0 ? 64 : l->cap_slow * 2;
        moec_slow_block *v = moec_realloc_array(l->slow, cap, sizeof(*v));
        if (v == NULL)
            return moec_fail_nomem(err, "blocks of a job");
        l->slow = v;
        l->cap_slow = cap;
    }
    l->slow[l->n_slow++] = (moec_slow_block){group, tag};
    return MOEC_OK;
}

/* One row of one slot tensor. */
moec_status moec_job_list_row(moec_job *j, moec_job_tag tag, uint32_t group,
                              moec_job_lists *l, moec_error *err)
{
    const moec_job_slots *s = &j->layers[tag.layer].slots[tag.t];
    bool slow = false;

    if (s->w.bytes == 0)
        return MOEC_OK;
    MOEC_TRY(add_tag(l, tag, err));
    MOEC_TRY(moec_loading_block(&j->ld, tag.layer, tag.t, tag.row, tag.unit,
                                &s->w, s->data + tag.row * s->slot_stride,
                                group, (uint32_t)(l->n_tags - 1), &l->pieces,
                                &slow, err));
    return slow ? add_slow(l, group, tag, err) : MOEC_OK;
}

static moec_status list_layer(moec_job *j, uint32_t layer, moec_error *err)
{
    const moec_job_layer *y = &j->layers[layer];

    for (size_t t = 0; t < y->n; t++) {
        for (uint32_t row = 0;
             !y->slots[t].skipped && row < y->slots[t].n_slots; row++) {
            moec_job_tag tag = {
                layer, (uint32_t)t, row,
                moec_plan_row_unit(j->plan, layer, t, j->ld.rank, row)};
            MOEC_TRY(moec_job_list_row(j, tag, y->group, &j->lists, err));
        }
    }
    return MOEC_OK;
}

/* Of several processes each reads its stretch of a tensor that they share. */
static moec_status list_tensor(moec_job *j, uint32_t i, moec_error *err)
{
    const moec_job_tensor *t = &j->tensors[i];
    moec_job_tag tag = {i, MOEC_NO_SLOTS, 0, 0};
    moec_tensor_window w = t->w;
    unsigned char *data = t->data;
    bool slow = false;

    if (j->common_map != NULL && !t->placed) {
        uint64_t from, to;
        moec_job_common_share(j, t, &from, &to);
        w.n_rows = w.rows = 1;
        w.row_first = 0;
        w.row_bytes = t->w.n_rows * t->w.row_bytes;
        w.col_first_bytes = from;
        w.col_bytes = w.row_stride = to - from;
        data += from;
        if (from == to)
            return MOEC_OK;
    }
    MOEC_TRY(add_tag(&j->lists, tag, err));
    MOEC_TRY(moec_loading_tensor_piece(
        &j->ld, t->tensor, &w, data, j->common_group,
        (uint32_t)(j->lists.n_tags - 1), &j->lists.pieces, &slow, err));
    return slow ? add_slow(&j->lists, j->common_group, tag, err) : MOEC_OK;
}

/* Bytes that slow.c will bring. */
void moec_job_count_slow(moec_job *j)
{
    uint64_t n = 0;

    for (size_t i = 0; i < j->lists.n_slow; i++) {
        const moec_job_tag *tag = &j->lists.slow[i].what;
        if (tag->t != MOEC_NO_SLOTS && tag->unit != MOEC_UNIT_EMPTY)
            n += j->layers[tag->layer].slots[tag->t].w.bytes;
        else if (tag->t == MOEC_NO_SLOTS)
            n += j->tensors[tag->layer].w.rows *
                 j->tensors[tag->layer].w.col_bytes;
    }
    atomic_store(&j->slow_needed, n);
}

static int by_group(const void *a, const void *b)
{
    const moec_slow_block *x = a, *y = b;

    return x->group < y->group ? -1 : x->group > y->group;
}

void moec_job_sort_slow(moec_job_lists *l)
{
    if (l->n_slow > 1)
        qsort(l->slow, l->n_slow, sizeof(*l->slow), by_group);
}

moec_status moec_job_list_tensors(moec_job *j, moec_error *err)
{
    for (uint32_t i = 0; i < j->n_tensors; i++)
        MOEC_TRY(list_tensor(j, i, err));
    return MOEC_OK;
}

moec_status moec_job_list(moec_job *j, moec_error *err)
{
    MOEC_TRY(moec_job_list_tensors(j, err));
    for (uint32_t i = 0; i < j->n_order; i++)
        MOEC_TRY(list_layer(j, j->order[i], err));
    moec_job_sort_slow(&j->lists);
    moec_job_count_slow(j);
    return MOEC_OK;
}

moec_status moec_job_list_unit(moec_job *j, size_t layer, uint32_t unit,
                               uint32_t row, moec_job_lists *out,
                               moec_error *err)
{
    const moec_job_layer *y = &j->layers[layer];

    for (size_t t = 0; t < y->n; t++) {
        moec_job_tag tag = {(uint32_t)layer, (uint32_t)t, row, unit};

        if (y->slots[t].data == NULL)
            continue;
        tag.row =
            moec_plan_row(j->plan, layer, t, j->ld.rank, (moec_local_row){row});
        MOEC_TRY(moec_job_list_row(j, tag, 0, out, err));
    }
    return MOEC_OK;
}

/* ----------------------------------------------------------------- files */

static moec_status open_converted(moec_job *j, size_t i, moec_error *err)
{
    const moec_out_file *f = moec_layout_file(j->ld.old, i);
    moec_engine_file *e = &j->file[i];
    moec_buf path = {0};
    uint64_t bytes = 0;
    int fd = -1;

    if (j->files->remote != NULL) {
        MOEC_TRY(moec_converted_check(j->files, f->name, &bytes, err));
        j->looked_at[i] = true;
    } else {
        MOEC_TRY(moec_converted_data(j->files, f->name, &fd, &bytes, err));
        e->fd = fd;
        moec_buf_printf(&path, "%s/%s", j->files->dir, f->name);
        if (path.oom) {
            moec_buf_fini(&path);
            return moec_fail_nomem(err, "a path");
        }
        e->path = j->paths[i] = path.data;
    }
    if (bytes != f->bytes)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M05,
                         "%s: %" PRIu64 " bytes, expected %" PRIu64, f->name,
                         bytes, f->bytes);
    return MOEC_OK;
}

moec_status moec_job_open_file(moec_job *j, size_t i, moec_error *err)
{
    if (j->files == NULL || j->file[i].fd >= 0 || j->looked_at[i])
        return MOEC_OK;
    return open_converted(j, i, err);
}

moec_status moec_job_look_again(const moec_job *j, moec_error *err)
{
    uint64_t bytes;

    if (j->files == NULL && moec_ckpt_is_remote(j->ckpt))
        return moec_ckpt_check_unchanged(j->ckpt, err);
    for (size_t i = 0; j->files != NULL && i < j->n_files; i++)
        if (j->looked_at[i])
            MOEC_TRY(
                moec_converted_check(j->files, j->file[i].name, &bytes, err));
    return MOEC_OK;
}

/* The table of all files; those of a checkpoint are open already. */
static moec_status make_files(moec_job *j, moec_error *err)
{
    size_t n = j->files != NULL ? moec_layout_n_files(j->ld.old)
                                : moec_ckpt_n_files(j->ckpt);

    if (j->file != NULL)
        return MOEC_OK;
    j->file = moec_calloc(n + 1, sizeof(*j->file));
    j->paths = moec_calloc(n + 1, sizeof(*j->paths));
    j->looked_at = moec_calloc(n + 1, sizeof(*j->looked_at));
    if (j->file == NULL || j->paths == NULL || j->looked_at == NULL)
        return moec_fail_nomem(err, "files of a job");
    for (size_t i = 0; i < n; i++) {
        moec_engine_file *e = &j->file[i];

        e->fd = -1;
        if (j->files != NULL) {
            e->name = moec_layout_file(j->ld.old, i)->name;
            e->bytes = moec_layout_file(j->ld.old, i)->bytes;
        } else {
            e->name = moec_ckpt_file(j->ckpt, i)->name;
            e->bytes = moec_ckpt_file(j->ckpt, i)->bytes;
            e->path = moec_ckpt_path(j->ckpt, i);
            e->fd = moec_ckpt_fd(j->ckpt, i);
        }
    }
    j->n_files = n;
    return MOEC_OK;
}

moec_status moec_job_open_files(moec_job *j, moec_error *err)
{
    const moec_piece_list *l = &j->lists.pieces;

    MOEC_TRY(make_files(j, err));
    for (size_t i = 0; i < l->n; i++)
        MOEC_TRY(moec_job_open_file(j, l->v[i].file, err));
    return MOEC_OK;
}

void moec_job_close_files(moec_job *j)
{
    for (size_t i = 0; i < j->n_files; i++) {
        if (j->files != NULL && j->file[i].fd >= 0)
            close(j->file[i].fd);
        moec_free(j->paths[i]);
    }
    moec_free(j->looked_at);
    moec_free(j->paths);
    moec_free(j->file);
}

moec_status moec_job_read_at(void *ctx, uint32_t file, uint64_t off, void *buf,
                             size_t n, moec_error *err)
{
    moec_job *j = ctx;
    const moec_engine_file *f = &j->file[file];

    if (f->fd >= 0)
        return moec_pread_full(f->fd, f->name, buf, n, off, err);
    if (j->files != NULL)
        return moec_converted_read(j->files, f->name, off, buf, n, err);
    return moec_ckpt_read_file(j->ckpt, file, off, buf, n, err);
}

/* ---------------------------------------------------------------- saying */

void moec_job_say(const moec_job *j, const moec_job_tag *tag, char *buf,
                  size_t n)
{
    const moec_facts *f = moec_model_facts(moec_plan_model(j->plan));

    if (tag->t == MOEC_NO_SLOTS)
        (void)snprintf(
            buf, n, "tensor '%s'",
            moec_ckpt_tensor(j->ckpt, j->tensors[tag->layer].tensor)->name);
    else if (tag->unit == MOEC_UNIT_EMPTY)
        (void)snprintf(buf, n, "'%s' slot %" PRIu32 " (empty)",
                       moec_plan_slot_tensor(j->plan, tag->layer, tag->t)->name,
                       tag->row);
    else
        (void)snprintf(
            buf, n, "'%s' slot %" PRIu32 " (%s %" PRIu32 ")",
            moec_plan_slot_tensor(j->plan, tag->layer, tag->t)->name, tag->row,
            tag->unit < f->n_experts ? "expert" : "shared part",
            tag->unit < f->n_experts ? tag->unit : tag->unit - f->n_experts);
}

void moec_job_describe(void *ctx, const moec_piece *piece, char *buf, size_t n)
{
    const moec_job *j = ctx;

    moec_job_say(j, &j->lists.tags[piece->tag], buf, n);
}
