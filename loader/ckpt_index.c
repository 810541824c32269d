/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the index says of a checkpoint: its files (first reading), and that it
 * names the same tensors in the same files as the shards' headers do (second
 * reading). Shard headers are the authority; the index must agree.
 */

#include "ckpt_parts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "table.h"

/* Shard names of an index, each once. */
typedef struct names {
    moec_arena *arena;
    moec_strmap map;
    const char **list;
    size_t n, cap, last;
} names;

static moec_status add_name(void *ctx, const moec_index_entry *e,
                            moec_error *err)
{
    names *s = ctx;
    char *copy;
    uint64_t at = 0;
    bool existed = false;

    /* Neighbours share their file, as a rule. */
    if (s->n > 0 && strncmp(s->list[s->last], e->file, e->file_bytes) == 0 &&
        s->list[s->last][e->file_bytes] == '\0')
        return MOEC_OK;
    if (moec_strmap_get(&s->map, e->file, e->file_bytes, &at)) {
        s->last = (size_t)at;
        return MOEC_OK;
    }
    if (s->n == s->cap) {
        size_t cap = s->cap == 0 ? 64 : s->cap * 2;
        const char **more = moec_realloc_array(s->list, cap, sizeof(*more));
        if (more == NULL)
            return moec_fail_nomem(err, "the shards of the index");
        s->list = more;
        s->cap = cap;
    }
    copy = moec_arena_strdup(s->arena, e->file, e->file_bytes);
    if (copy == NULL)
        return moec_fail_nomem(err, "a shard's name");
    MOEC_TRY(
        moec_strmap_put(&s->map, copy, e->file_bytes, s->n, &existed, err));
    s->last = s->n;
    s->list[s->n++] = copy;
    return MOEC_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Open the index; the caller closes *fd_out. */
moec_status moec_ckpt_open_index(const moec_ckpt *c, int *fd_out,
                                 moec_error *err)
{
    uint64_t bytes = 0;
    moec_status st;

    MOEC_TRY(
        moec_source_file(&c->source, MOEC_CKPT_INDEX, fd_out, &bytes, err));
    st = moec_stamp_check(*fd_out, MOEC_CKPT_INDEX, &c->index_stamp, err);
    if (st != MOEC_OK)
        close(*fd_out);
    return st;
}

/* Take the index's files, in the order of their names. */
moec_status moec_ckpt_choose_indexed(moec_ckpt *c, moec_index_facts *facts,
                                     moec_error *err)
{
    names s = {.arena = &c->arena};
    uint64_t bytes = 0;
    moec_status st;
    int fd = -1;

    c->index_name = MOEC_CKPT_INDEX;
    MOEC_TRY(moec_strmap_init(&s.map, 64, err));
    st = moec_source_file(&c->source, MOEC_CKPT_INDEX, &fd, &bytes, err);
    if (st != MOEC_OK)
        goto free_names;
    st = moec_stamp_take(fd, MOEC_CKPT_INDEX, &c->index_stamp, err);
    if (st == MOEC_OK)
        st =
            moec_index_read(fd, (uint64_t)c->index_stamp.bytes, MOEC_CKPT_INDEX,
                            MOEC_INDEX_TRUSTING, add_name, &s, facts, err);
    close(fd);
    if (st == MOEC_OK)
        st = moec_ckpt_make_files(c, s.n, err);
    if (st == MOEC_OK) {
        qsort(s.list, s.n, sizeof(*s.list), by_bytes);
        for (size_t i = 0; i < s.n; i++)
            c->files[i].name = s.list[i];
    }
free_names:
    moec_strmap_fini(&s.map);
    moec_free(s.list);
    return st;
}

/* ----------------------------------------------------- index and shards */

typedef struct comparison {
    const moec_ckpt *ckpt;
    size_t next;         /* where the next entry is, if the index is sorted */
    unsigned char *seen; /* a bit for each tensor that had its entry */
} comparison;

static moec_status compare_entry(void *ctx, const moec_index_entry *e,
                                 moec_error *err)
{
    comparison *k = ctx;
    const moec_ckpt *c = k->ckpt;
    size_t i = moec_table_find(c->tensors, c->n_tensors, e->tensor,
                               e->tensor_bytes, k->next);
    const char *in;

    if (i == SIZE_MAX)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I08, e->off,
                            MOEC_CKPT_INDEX ": tensor '%.*s': no shard has it, "
                                            "the index says '%.*s'",
                            (int)e->tensor_bytes, e->tensor, (int)e->file_bytes,
                            e->file);
    in = c->files[c->tensors[i].file].name;
    if (strncmp(in, e->file, e->file_bytes) != 0 || in[e->file_bytes] != '\0')
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I08, e->off,
                            MOEC_CKPT_INDEX ": tensor '%.*s': is in '%s', the "
                                            "index says '%.*s'",
                            (int)e->tensor_bytes, e->tensor, in,
                            (int)e->file_bytes, e->file);
    if ((k->seen[i / 8] >> i % 8 & 1) != 0)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I10, e->off,
                            MOEC_CKPT_INDEX ": tensor '%.*s': a second time",
                            (int)e->tensor_bytes, e->tensor);
    k->seen[i / 8] |= (unsigned char)(1u << i % 8);
    k->next = i + 1;
    return MOEC_OK;
}

/* I08: each entry's tensor is in the entry's file, and no tensor lacks one. */
moec_status moec_ckpt_compare_index(moec_ckpt *c, moec_error *err)
{
    comparison k = {.ckpt = c};
    moec_index_facts facts;
    moec_status st;
    size_t i = 0;
    int fd = -1;

    k.seen = moec_calloc(c->n_tensors / 8 + 1, 1);
    if (k.seen == NULL)
        return moec_fail_nomem(err, "the index's tensors");
    st = moec_ckpt_open_index(c, &fd, err);
    if (st != MOEC_OK)
        goto free_seen;
    st = moec_index_read(fd, (uint64_t)c->index_stamp.bytes, MOEC_CKPT_INDEX,
                         MOEC_INDEX_TRUSTING, compare_entry, &k, &facts, err);
    while (i < c->n_tensors && (k.seen[i / 8] >> i % 8 & 1) != 0)
        i++;
    if (st == MOEC_OK && i < c->n_tensors)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I08,
                       MOEC_CKPT_INDEX ": tensor '%s': in '%s', but not in the "
                                       "index",
                       c->tensors[i].name, c->files[c->tensors[i].file].name);
    if (st == MOEC_OK)
        st = moec_stamp_check(fd, MOEC_CKPT_INDEX, &c->index_stamp, err);
    close(fd);
free_seen:
    moec_free(k.seen);
    return st;
}

static moec_status ignore_entry(void *ctx, const moec_index_entry *e,
                                moec_error *err)
{
    (void)ctx;
    (void)e;
    (void)err;
    return MOEC_OK;
}

/* An open failed. A tensor that stands twice in the index, with two files, is
 * the deeper fault where it makes a shard missing or a tensor misplaced: look
 * for one now, as an open that succeeds has no need to. */
moec_status moec_ckpt_explain_failure(const moec_ckpt *c, moec_status failed,
                                      const moec_error *why, moec_error *err)
{
    moec_error twice = MOEC_ERROR_INIT;
    moec_index_facts facts;
    moec_status st;
    int fd = -1;

    if ((why->rule == MOEC_RULE_I06 || why->rule == MOEC_RULE_I08) &&
        c->index_name != NULL &&
        moec_ckpt_open_index(c, &fd, &twice) == MOEC_OK) {
        st = moec_index_read(fd, (uint64_t)c->index_stamp.bytes,
                             MOEC_CKPT_INDEX, MOEC_INDEX_CHECKED, ignore_entry,
                             NULL, &facts, &twice);
        close(fd);
        if (twice.rule == MOEC_RULE_I10) {
            why = &twice;
            failed = st;
        }
    }
    if (err != NULL && err->status == MOEC_OK)
        *err = *why;
    return failed;
}

/* I14. */
moec_status moec_ckpt_note_total(moec_ckpt *c, const moec_index_facts *facts,
                                 moec_error *err)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < c->n_files; i++) {
        if (!moec_add_u64(sum, c->shards[i].header.data_bytes, &sum))
            sum = UINT64_MAX;
    }
    if (!facts->has_total ||
        (facts->total_is_number && facts->total_bytes == sum))
        return MOEC_OK;
    if (!facts->total_is_number)
        return moec_ckpt_add_note(c, MOEC_RULE_I14, err,
                                  MOEC_CKPT_INDEX
                                  ": total_size is not an unsigned integer, "
                                  "the tensors have %" PRIu64 " bytes",
                                  sum);
    return moec_ckpt_add_note(c, MOEC_RULE_I14, err,
                              MOEC_CKPT_INDEX ": total_size is %" PRIu64
                                              ", the tensors have %" PRIu64
                                              " bytes",
                              facts->total_bytes, sum);
}
