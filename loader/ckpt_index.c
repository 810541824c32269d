/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the index says of a checkpoint: its files, and that it names the same
 * tensors in the same files as the shards' headers do. Shard headers are the
 * authority; the index must agree. Of each file the index gives how many
 * tensors and the sum of their names' hashes; where that is the header's, the
 * two agree. Where it is not, the index is read again for what is wrong.
 */

#include "ckpt_parts.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "keyset.h"
#include "nameset.h"
#include "table.h"

/* A shard that the index names. */
typedef struct shard_name {
    const char *name;
    size_t n_tensors;
    uint64_t sum; /* of the hashes of its tensors' names */
} shard_name;

/* Shard names of an index, each once. */
typedef struct names {
    moec_arena *arena;
    const uint64_t *secret;
    moec_strmap map;
    shard_name *list;
    size_t n, cap, last;
} names;

/* Find the entry's shard in the list, or put it there: it is `last` then. */
static moec_status find_shard(names *s, const moec_index_entry *e,
                              moec_error *err)
{
    char *copy;
    uint64_t at = 0;
    bool existed = false;

    /* Neighbours share their file, as a rule. */
    if (s->n > 0 &&
        strncmp(s->list[s->last].name, e->file, e->file_bytes) == 0 &&
        s->list[s->last].name[e->file_bytes] == '\0')
        return MOEC_OK;
    if (moec_strmap_get(&s->map, e->file, e->file_bytes, &at)) {
        s->last = (size_t)at;
        return MOEC_OK;
    }
    if (!MOEC_GROW(s->list, s->n, s->cap))
        return moec_fail_nomem(err, "the shards of the index");
    copy = moec_arena_strdup(s->arena, e->file, e->file_bytes);
    if (copy == NULL)
        return moec_fail_nomem(err, "a shard's name");
    MOEC_TRY(
        moec_strmap_put(&s->map, copy, e->file_bytes, s->n, &existed, err));
    s->last = s->n++;
    s->list[s->last] = (shard_name){.name = copy};
    return MOEC_OK;
}

static moec_status add_entry(void *ctx, const moec_index_entry *e,
                             moec_error *err)
{
    names *s = ctx;

    MOEC_TRY(find_shard(s, e, err));
    s->list[s->last].n_tensors++;
    s->list[s->last].sum +=
        moec_nameset_hash(s->secret, e->tensor, e->tensor_bytes);
    return MOEC_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const shard_name *)a)->name, ((const shard_name *)b)->name);
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

/* --------------------------------------------------------------- guessing
 * Shards are called PREFIX-00001-of-00163.safetensors (or -of-000163): one
 * name tells all. So a look at the first entries of the index says which
 * headers will be wanted, and the headers need not wait for the index. A guess
 * costs nothing but time: what the index does not name is closed and
 * forgotten, and what could not be read is read again when its turn comes, for
 * its error. */

#define LOOK_BYTES  ((size_t)16 << 10)
#define GUESSED_MAX 4096u

typedef struct guess {
    char prefix[128];       /* "model-" */
    int i_digits, n_digits; /* of the two numbers */
    uint32_t n;             /* shards 1 .. n; 0: no guess */
    moec_shard *shards;
} guess;

/* Read digits from `s` to `end`; 0 where anything else is there, or above
 * GUESSED_MAX. */
static uint32_t number_of(const char *s, const char *end)
{
    uint32_t n = 0;

    for (; s < end; s++) {
        if (*s < '0' || *s > '9' || n > GUESSED_MAX)
            return 0;
        n = n * 10 + (uint32_t)(*s - '0');
    }
    return n <= GUESSED_MAX ? n : 0;
}

/* Take the guess from `name`, a string up to its closing quote. False where
 * it has another form. */
static bool guess_of(guess *g, const char *name, const char *end)
{
    static const char of[] = "-of-", suffix[] = ".safetensors";
    const char *tail = end - (sizeof(suffix) - 1);
    const char *middle, *number;
    uint32_t n;

    if (end - name < 24 || end - name >= (ptrdiff_t)sizeof(g->prefix) ||
        memcmp(tail, suffix, sizeof(suffix) - 1) != 0)
        return false;
    middle = memmem(name, (size_t)(tail - name), of, 4);
    if (middle == NULL || memchr(name, '/', (size_t)(end - name)) != NULL)
        return false;
    for (number = middle;
         number > name && number[-1] >= '0' && number[-1] <= '9';)
        number--;
    n = number_of(middle + 4, tail);
    if (n == 0 || number_of(number, middle) == 0)
        return false;
    g->n = n;
    g->i_digits = (int)(middle - number);
    g->n_digits = (int)(tail - middle) - 4;
    memcpy(g->prefix, name, (size_t)(number - name));
    return true;
}

/* Find the first string of the form in `text`, the begin of the index. */
static void guess_from(guess *g, const char *text)
{
    const char *end;

    for (const char *s = strchr(text, '"'); s != NULL; s = strchr(s, '"')) {
        end = strchr(++s, '"');
        if (end == NULL || guess_of(g, s, end))
            return;
    }
}

static moec_status guess_shards(guess *g, int fd, moec_error *err)
{
    char text[LOOK_BYTES];
    ssize_t n = pread(fd, text, LOOK_BYTES - 1, 0);

    text[n > 0 ? n : 0] = '\0';
    guess_from(g, text);
    if (g->n == 0)
        return MOEC_OK;
    g->shards = moec_calloc(g->n, sizeof(*g->shards));
    if (g->shards == NULL) {
        g->n = 0;
        return moec_fail_nomem(err, "the list of files");
    }
    for (uint32_t i = 0; i < g->n; i++)
        g->shards[i].fd = -1;
    return MOEC_OK;
}

static void guessed_name(const guess *g, uint32_t i, char *out, size_t cap)
{
    (void)snprintf(out, cap, "%s%0*u-of-%0*u.safetensors", g->prefix,
                   g->i_digits, i + 1, g->n_digits, g->n);
}

static void drop_guessed(moec_shard *s)
{
    if (s->has_header)
        moec_header_fini(&s->header);
    if (s->fd >= 0)
        close(s->fd);
    s->has_header = false;
    s->fd = -1;
}

/* Open guessed shard `i` and read its header. No failure is told. */
static void read_guessed(moec_ckpt *c, guess *g, uint32_t i, uint32_t worker)
{
    char name[sizeof(g->prefix) + 48];
    moec_shard *s = &g->shards[i];
    moec_error ignored = MOEC_ERROR_INIT;
    uint64_t bytes = 0;

    guessed_name(g, i, name, sizeof(name));
    if (moec_source_file(&c->source, name, &s->fd, &bytes, &ignored) != MOEC_OK)
        return;
    s->has_header =
        moec_stamp_take(s->fd, name, &s->stamp, &ignored) == MOEC_OK &&
        moec_header_read(&s->header, s->fd, (uint64_t)s->stamp.bytes, name,
                         c->secret, &c->tables[worker], &ignored) == MOEC_OK;
    if (!s->has_header)
        drop_guessed(s);
}

/* ------------------------------------------------------------ the files */

typedef struct index_job {
    moec_ckpt *c;
    names *names;
    moec_index_facts *facts;
    guess guess;
    int fd;
} index_job;

/* Item 0 is the index, the others are guessed shards. */
static moec_status read_indexed(void *ctx, size_t item, uint32_t worker,
                                moec_error *err)
{
    index_job *job = ctx;

    if (item > 0) {
        read_guessed(job->c, &job->guess, (uint32_t)(item - 1), worker);
        return MOEC_OK;
    }
    return moec_index_read(job->fd, (uint64_t)job->c->index_stamp.bytes,
                           MOEC_CKPT_INDEX, MOEC_INDEX_TRUSTING, add_entry,
                           job->names, job->facts, err);
}

/* Give the index's files what was guessed of them. */
static void take_guessed(moec_ckpt *c, guess *g)
{
    char name[sizeof(g->prefix) + 48];
    size_t f = 0;

    for (uint32_t i = 0; i < g->n; i++) {
        guessed_name(g, i, name, sizeof(name));
        while (f < c->n_files && strcmp(c->files[f].name, name) < 0)
            f++;
        if (f < c->n_files && strcmp(c->files[f].name, name) == 0) {
            moec_shard was = c->shards[f];

            c->shards[f] = g->shards[i];
            c->shards[f].index_tensors = was.index_tensors;
            c->shards[f].index_sum = was.index_sum;
        } else {
            drop_guessed(&g->shards[i]);
        }
    }
}

static moec_status make_indexed(moec_ckpt *c, names *s, moec_error *err)
{
    MOEC_TRY(moec_ckpt_make_files(c, s->n, err));
    qsort(s->list, s->n, sizeof(*s->list), by_name);
    for (size_t i = 0; i < s->n; i++) {
        c->files[i].name = s->list[i].name;
        c->shards[i].index_tensors = s->list[i].n_tensors;
        c->shards[i].index_sum = s->list[i].sum;
    }
    return MOEC_OK;
}

moec_status moec_ckpt_choose_indexed(moec_ckpt *c, uint32_t n_threads,
                                     moec_index_facts *facts, moec_error *err)
{
    names s = {.arena = &c->arena, .secret = c->secret};
    index_job job = {.c = c, .names = &s, .facts = facts, .fd = -1};
    uint64_t bytes = 0;
    moec_status st;

    c->index_name = MOEC_CKPT_INDEX;
    moec_random_secret(c->secret);
    MOEC_TRY(moec_strmap_init(&s.map, 64, err));
    st = moec_source_file(&c->source, MOEC_CKPT_INDEX, &job.fd, &bytes, err);
    if (st != MOEC_OK)
        goto free_names;
    st = moec_stamp_take(job.fd, MOEC_CKPT_INDEX, &c->index_stamp, err);
    if (st == MOEC_OK)
        st = guess_shards(&job.guess, job.fd, err);
    if (st == MOEC_OK)
        st = moec_parallel(n_threads, 1 + (size_t)job.guess.n, read_indexed,
                           &job, err);
    close(job.fd);
    if (st == MOEC_OK)
        st = make_indexed(c, &s, err);
    if (st == MOEC_OK)
        take_guessed(c, &job.guess);
    else
        for (uint32_t i = 0; i < job.guess.n; i++)
            drop_guessed(&job.guess.shards[i]);
    moec_free(job.guess.shards);
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
    size_t i = moec_table_find(c->by_name, c->n_tensors, e->tensor,
                               e->tensor_bytes, k->next);
    const char *in;

    if (i == SIZE_MAX)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I08, e->off,
                            MOEC_CKPT_INDEX ": tensor '%.*s': no shard has it, "
                                            "the index says '%.*s'",
                            (int)e->tensor_bytes, e->tensor, (int)e->file_bytes,
                            e->file);
    in = c->files[c->by_name[i]->file].name;
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

/* True where each shard has as many tensors as the index says, and their
 * names are the index's: then so is every tensor's place. */
static bool sums_agree(const moec_ckpt *c)
{
    for (size_t i = 0; i < c->n_files; i++) {
        const moec_shard *s = &c->shards[i];

        if (s->index_tensors != s->header.n_tensors ||
            s->index_sum != s->header.names_sum)
            return false;
    }
    return true;
}

/* Find out what is wrong: compare entry by entry with the sorted table. */
static moec_status compare_entries(moec_ckpt *c, moec_error *err)
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
                       c->by_name[i]->name, c->files[c->by_name[i]->file].name);
    if (st == MOEC_OK)
        st = moec_stamp_check(fd, MOEC_CKPT_INDEX, &c->index_stamp, err);
    close(fd);
free_seen:
    moec_free(k.seen);
    return st;
}

/* I08: each entry's tensor is in the entry's file, and no tensor lacks one. */
moec_status moec_ckpt_compare_index(moec_ckpt *c, moec_error *err)
{
    moec_status st;
    int fd = -1;

    if (!sums_agree(c))
        return compare_entries(c, err);
    MOEC_TRY(moec_ckpt_open_index(c, &fd, err));
    st = moec_stamp_check(fd, MOEC_CKPT_INDEX, &c->index_stamp, err);
    close(fd);
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
    return moec_hand_on(err, failed, why);
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
