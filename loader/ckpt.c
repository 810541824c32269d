/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An open checkpoint. Owns the choice of files (index, or the one file there
 * is), the comparison of index and shards (I06, I08, I12, I14, I15) and the
 * table of all tensors, sorted by name. Shard headers are the authority; the
 * index must agree.
 *
 * Steps of an open: find the directory (source.c), list it, read the index for
 * the files that it names (index.c), open those, read their headers side by
 * side (safetensors.c), join and sort the tables, read the index again against
 * the table. Nothing is kept of an open that fails.
 */

#include "ckpt.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "index.h"
#include "safetensors.h"
#include "source.h"
#include "table.h"

#define INDEX_NAME "model.safetensors.index.json"
#define CONFIG_NAME "config.json"
/* Notes kept; a directory of stale files is summed up behind that. */
#define N_NOTES_MAX 64

/* What must stay the same while a file is read. */
typedef struct stamp {
    dev_t dev;
    ino_t ino;
    off_t bytes;
    struct timespec mtime;
} stamp;

typedef struct shard {
    int fd; /* -1 for a checkpoint of headers alone */
    stamp stamp;
    const char *path; /* resolved, in the arena */
    moec_header header; /* its tensors move to the table; its arena stays */
} shard;

struct moec_ckpt {
    moec_source source;
    moec_arena arena; /* names of files, paths */
    size_t n_files;
    moec_file *files;
    shard *shards;
    size_t n_tensors;
    moec_tensor *tensors; /* by name */
    size_t n_extra;
    const char **extra;
    size_t n_notes;
    moec_note *notes;
    size_t n_notes_left_out;
    const char *index_name; /* NULL without an index */
    stamp index_stamp;
};

/* ----------------------------------------------------------------- notes */

static moec_status MOEC_PRINTF(4, 5)
    add_note(moec_ckpt *c, moec_rule rule, moec_error *err, const char *fmt,
             ...)
{
    moec_error text = MOEC_ERROR_INIT;
    char why[MOEC_ERROR_TEXT_BYTES];
    va_list args;

    if (c->n_notes >= N_NOTES_MAX) {
        c->n_notes_left_out++;
        return MOEC_OK;
    }
    if (c->notes == NULL) {
        /* One more for the sum of those left out. */
        c->notes = moec_calloc(N_NOTES_MAX + 1, sizeof(*c->notes));
        if (c->notes == NULL)
            return moec_fail_nomem(err, "notes");
    }
    va_start(args, fmt);
    (void)vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    /* The same form as an error: rule in front, control characters escaped. */
    (void)moec_fail(&text, MOEC_E_FORMAT, rule, "%s", why);
    c->notes[c->n_notes].rule = rule;
    memcpy(c->notes[c->n_notes].text, text.text, sizeof(text.text));
    c->n_notes++;
    return MOEC_OK;
}

static void close_notes(moec_ckpt *c)
{
    moec_note *last;

    if (c->n_notes_left_out == 0)
        return;
    last = &c->notes[c->n_notes++];
    last->rule = c->notes[c->n_notes - 2].rule;
    (void)snprintf(last->text, sizeof(last->text), "and %zu more notes",
                   c->n_notes_left_out);
}

/* ---------------------------------------------------------------- stamps */

static moec_status take_stamp(int fd, const char *name, stamp *out,
                              moec_error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return moec_fail_os(err, errno, "%s: cannot stat", name);
    memset(out, 0, sizeof(*out));
    out->dev = st.st_dev;
    out->ino = st.st_ino;
    out->bytes = st.st_size;
    out->mtime = st.st_mtim;
    return MOEC_OK;
}

static moec_status check_stamp(int fd, const char *name, const stamp *then,
                               moec_error *err)
{
    stamp now;
    const char *what;

    MOEC_TRY(take_stamp(fd, name, &now, err));
    if (now.dev != then->dev || now.ino != then->ino)
        what = "is another file";
    else if (now.bytes != then->bytes)
        what = "has another size";
    else if (now.mtime.tv_sec != then->mtime.tv_sec ||
             now.mtime.tv_nsec != then->mtime.tv_nsec)
        what = "was written to";
    else
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                     "%s: %s since it was opened", name, what);
}

/* ----------------------------------------------------------------- files */

/* Make room for `n` files, all closed. */
static moec_status make_files(moec_ckpt *c, size_t n, moec_error *err)
{
    c->files = moec_calloc(n, sizeof(*c->files));
    c->shards = moec_calloc(n, sizeof(*c->shards));
    if (c->files == NULL || c->shards == NULL)
        return moec_fail_nomem(err, "the list of files");
    for (size_t i = 0; i < n; i++)
        c->shards[i].fd = -1;
    c->n_files = n;
    return MOEC_OK;
}

/* Find where an open file really is, and what its blob is called. */
static moec_status name_file(moec_ckpt *c, size_t i, moec_error *err)
{
    char link[40], path[PATH_MAX + NAME_MAX + 2];
    moec_file *f = &c->files[i];
    ssize_t n;

    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", c->shards[i].fd);
    n = readlink(link, path, PATH_MAX);
    if (n > 0 && n < PATH_MAX && path[0] == '/')
        path[n] = '\0';
    else /* no /proc: the path as the names say it */
        (void)snprintf(path, sizeof(path), "%s/%s", c->source.dir, f->name);
    c->shards[i].path = moec_arena_strdup(&c->arena, path, strlen(path));
    if (c->shards[i].path == NULL)
        return moec_fail_nomem(err, "a file's path");
    if (moec_source_in_cache(&c->source)) {
        const char *slash = strrchr(c->shards[i].path, '/');
        static const char blobs[] = "/blobs";
        const size_t m = sizeof(blobs) - 1;
        size_t dir = (size_t)(slash - c->shards[i].path);
        if (dir >= m && memcmp(slash - m, blobs, m) == 0)
            f->etag = slash + 1;
    }
    return MOEC_OK;
}

/* Open file `i`, whose name is set. ENOENT passes through as IO. */
static moec_status open_file(moec_ckpt *c, size_t i, moec_error *err)
{
    moec_file *f = &c->files[i];
    shard *s = &c->shards[i];

    MOEC_TRY(moec_source_file(&c->source, f->name, &s->fd, &f->bytes, err));
    MOEC_TRY(take_stamp(s->fd, f->name, &s->stamp, err));
    f->bytes = (uint64_t)s->stamp.bytes;
    return name_file(c, i, err);
}

/* Open all files; of those that are not there the first is named. */
static moec_status open_files(moec_ckpt *c, moec_error *err)
{
    const char *missing = NULL;
    size_t n_missing = 0;

    for (size_t i = 0; i < c->n_files; i++) {
        moec_error why = MOEC_ERROR_INIT;
        moec_status st = open_file(c, i, &why);
        if (st == MOEC_E_IO && why.os_errno == ENOENT) {
            if (n_missing++ == 0)
                missing = c->files[i].name;
        } else if (st != MOEC_OK) {
            if (err != NULL && err->status == MOEC_OK)
                *err = why;
            return st;
        }
    }
    if (n_missing == 0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I06,
                     "%s: not there, %s names it (%zu of %zu files are "
                     "missing)",
                     missing, c->index_name != NULL ? c->index_name : "the "
                     "directory", n_missing, c->n_files);
}

/* --------------------------------------------------------------- choosing */

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
    bool existed = false;

    /* Neighbours share their file, as a rule. */
    if (s->n > 0 && strncmp(s->list[s->last], e->file, e->file_bytes) == 0 &&
        s->list[s->last][e->file_bytes] == '\0')
        return MOEC_OK;
    {
        uint64_t at;
        if (moec_strmap_get(&s->map, e->file, e->file_bytes, &at)) {
            s->last = (size_t)at;
            return MOEC_OK;
        }
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
    MOEC_TRY(moec_strmap_put(&s->map, copy, e->file_bytes, s->n, &existed,
                             err));
    s->last = s->n;
    s->list[s->n++] = copy;
    return MOEC_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Open the index; the caller closes *fd_out. */
static moec_status open_index(const moec_ckpt *c, int *fd_out, moec_error *err)
{
    uint64_t bytes = 0;
    moec_status st;

    MOEC_TRY(moec_source_file(&c->source, INDEX_NAME, fd_out, &bytes, err));
    st = check_stamp(*fd_out, INDEX_NAME, &c->index_stamp, err);
    if (st != MOEC_OK)
        close(*fd_out);
    return st;
}

/* Take the index's files, in the order of their names. */
static moec_status choose_indexed(moec_ckpt *c, moec_index_facts *facts,
                                  moec_error *err)
{
    names s = {.arena = &c->arena};
    uint64_t bytes = 0;
    moec_status st;
    int fd = -1;

    c->index_name = INDEX_NAME;
    MOEC_TRY(moec_strmap_init(&s.map, 64, err));
    st = moec_source_file(&c->source, INDEX_NAME, &fd, &bytes, err);
    if (st != MOEC_OK)
        goto free_names;
    st = take_stamp(fd, INDEX_NAME, &c->index_stamp, err);
    if (st == MOEC_OK)
        st = moec_index_read(fd, (uint64_t)c->index_stamp.bytes, INDEX_NAME,
                             MOEC_INDEX_TRUSTING, add_name, &s, facts, err);
    close(fd);
    if (st == MOEC_OK)
        st = make_files(c, s.n, err);
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

static moec_status choose_one(moec_ckpt *c, const char *name, moec_error *err)
{
    MOEC_TRY(make_files(c, 1, err));
    c->files[0].name = moec_arena_strdup(&c->arena, name, strlen(name));
    return c->files[0].name != NULL ? MOEC_OK
                                    : moec_fail_nomem(err, "a file's name");
}

static bool is_safetensors(const char *name)
{
    return moec_has_suffix(name, ".safetensors");
}

/* No index: the directory must hold one file of the format. */
static moec_status choose_only(moec_ckpt *c, const char **list, size_t n,
                               moec_error *err)
{
    const char *first = NULL, *second = NULL, *foreign = NULL;

    for (size_t i = 0; i < n; i++) {
        if (is_safetensors(list[i])) {
            if (first == NULL)
                first = list[i];
            else if (second == NULL)
                second = list[i];
        } else if (foreign == NULL && moec_is_foreign_weights(list[i])) {
            foreign = list[i];
        }
    }
    if (second != NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I12,
                         "%s: has no " INDEX_NAME
                         " and more than one .safetensors file ('%s', '%s')",
                         c->source.dir, first, second);
    if (first != NULL)
        return choose_one(c, first, err);
    if (foreign != NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I02,
                         "%s: has no safetensors, only '%s'", c->source.dir,
                         foreign);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                     "%s: has no .safetensors file", c->source.dir);
}

/* --------------------------------------------------------- other files */

static bool is_weights(const char *name)
{
    static const char *const suffixes[] = {
        ".safetensors", ".msgpack", ".h5", ".onnx", ".ot", ".ckpt"};

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(*suffixes); i++) {
        if (moec_has_suffix(name, suffixes[i]))
            return true;
    }
    return moec_is_foreign_weights(name);
}

/* A bare file brings its config and nothing else: who knows what else lies in
 * that directory. */
static bool is_extra(const moec_ckpt *c, const char *name)
{
    if (c->source.bare != NULL)
        return strcmp(name, CONFIG_NAME) == 0;
    return name[0] != '.' && !is_weights(name) &&
           !moec_has_suffix(name, ".index.json");
}

static moec_status choose_extra(moec_ckpt *c, const char **list, size_t n,
                                moec_error *err)
{
    c->extra = moec_calloc(n, sizeof(*c->extra));
    if (c->extra == NULL)
        return moec_fail_nomem(err, "the list of other files");
    for (size_t i = 0; i < n; i++) {
        bool outside = false;
        if (!is_extra(c, list[i]))
            continue;
        if (moec_source_is_file(&c->source, list[i], &outside))
            c->extra[c->n_extra++] = list[i];
        else if (outside)
            MOEC_TRY(add_note(c, MOEC_RULE_I03, err,
                              "%s: a link out of the directory, left alone",
                              list[i]));
    }
    return MOEC_OK;
}

static int name_order(const void *key, const void *file)
{
    return strcmp(key, ((const moec_file *)file)->name);
}

static moec_status note_unindexed(moec_ckpt *c, const char **list, size_t n,
                                  moec_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (is_safetensors(list[i]) &&
            bsearch(list[i], c->files, c->n_files, sizeof(*c->files),
                    name_order) == NULL)
            MOEC_TRY(add_note(c, MOEC_RULE_I15, err,
                              "%s: not in " INDEX_NAME ", left alone",
                              list[i]));
    }
    return MOEC_OK;
}

/* --------------------------------------------------------------- the table */

typedef struct header_job {
    moec_ckpt *ckpt;
    const moec_header_blob *blobs; /* NULL: read the files */
} header_job;

static moec_status read_header(void *ctx, size_t i, uint32_t worker,
                               moec_error *err)
{
    const header_job *job = ctx;
    moec_ckpt *c = job->ckpt;
    moec_file *f = &c->files[i];
    moec_header *h = &c->shards[i].header;

    (void)worker;
    if (job->blobs != NULL)
        MOEC_TRY(moec_header_parse(h, job->blobs[i].data,
                                   (size_t)job->blobs[i].data_bytes, f->bytes,
                                   f->name, err));
    else
        MOEC_TRY(moec_header_read(h, c->shards[i].fd, f->bytes, f->name, err));
    f->header_bytes = h->header_bytes;
    memcpy(f->header_sha256, h->sha256.b, sizeof(f->header_sha256));
    return MOEC_OK;
}

static moec_status note_header(moec_ckpt *c, size_t i, moec_error *err)
{
    const moec_header *h = &c->shards[i].header;
    const char *name = c->files[i].name;

    if (h->leading_space)
        MOEC_TRY(add_note(c, MOEC_RULE_H02, err,
                          "%s: whitespace before the header's object", name));
    if (h->unknown_field != NULL)
        MOEC_TRY(add_note(c, MOEC_RULE_H10, err,
                          "%s: tensor '%s': field '%s' is not the format's, "
                          "left alone",
                          name, h->unknown_in, h->unknown_field));
    return MOEC_OK;
}

/* Join the shards' tables into one. Of one shard it is that shard's own; of
 * several each is freed once it is copied. */
static moec_status join_tables(moec_ckpt *c, moec_error *err)
{
    size_t n = 0, at = 0;

    for (size_t i = 0; i < c->n_files; i++) {
        n += c->shards[i].header.n_tensors;
        MOEC_TRY(note_header(c, i, err));
    }
    if (n >= UINT32_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%zu tensors, more than 32 bits count", n);
    c->n_tensors = n;
    if (c->n_files == 1) {
        c->tensors = c->shards[0].header.tensors;
        c->shards[0].header.tensors = NULL;
        return MOEC_OK;
    }
    c->tensors = moec_calloc(n, sizeof(*c->tensors));
    if (c->tensors == NULL)
        return moec_fail_nomem(err, "the tensor table");
    for (size_t i = 0; i < c->n_files; i++) {
        moec_header *h = &c->shards[i].header;
        for (size_t k = 0; k < h->n_tensors; k++) {
            c->tensors[at] = h->tensors[k];
            c->tensors[at++].file = (uint32_t)i;
        }
        moec_free(h->tensors);
        h->tensors = NULL;
    }
    return MOEC_OK;
}

/* Read all headers and make the sorted table. */
static moec_status make_table(moec_ckpt *c, const moec_header_blob *blobs,
                              uint32_t n_threads, moec_error *err)
{
    header_job job = {c, blobs};

    MOEC_TRY(moec_parallel(n_threads, c->n_files, read_header, &job, err));
    MOEC_TRY(join_tables(c, err));
    MOEC_TRY(moec_table_sort(c->tensors, c->n_tensors, err));
    for (size_t i = 1; i < c->n_tensors; i++) {
        const moec_tensor *a = &c->tensors[i - 1], *b = &c->tensors[i];
        if (strcmp(a->name, b->name) == 0) {
            uint32_t low = a->file < b->file ? a->file : b->file;
            uint32_t high = a->file < b->file ? b->file : a->file;
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I08,
                             "tensor '%s': in '%s' and in '%s'", a->name,
                             c->files[low].name, c->files[high].name);
        }
    }
    return MOEC_OK;
}

/* ----------------------------------------------------- index and shards */

typedef struct comparison {
    const moec_ckpt *ckpt;
    size_t next; /* where the next entry is, if the index is sorted */
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
                            INDEX_NAME ": tensor '%.*s': no shard has it, "
                            "the index says '%.*s'",
                            (int)e->tensor_bytes, e->tensor,
                            (int)e->file_bytes, e->file);
    in = c->files[c->tensors[i].file].name;
    if (strncmp(in, e->file, e->file_bytes) != 0 || in[e->file_bytes] != '\0')
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I08, e->off,
                            INDEX_NAME ": tensor '%.*s': is in '%s', the "
                            "index says '%.*s'",
                            (int)e->tensor_bytes, e->tensor, in,
                            (int)e->file_bytes, e->file);
    if ((k->seen[i / 8] >> i % 8 & 1) != 0)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I10, e->off,
                            INDEX_NAME ": tensor '%.*s': a second time",
                            (int)e->tensor_bytes, e->tensor);
    k->seen[i / 8] |= (unsigned char)(1u << i % 8);
    k->next = i + 1;
    return MOEC_OK;
}

/* I08: each entry's tensor is in the entry's file, and no tensor lacks one. */
static moec_status compare_index(moec_ckpt *c, moec_error *err)
{
    comparison k = {.ckpt = c};
    moec_index_facts facts;
    moec_status st;
    size_t i = 0;
    int fd = -1;

    k.seen = moec_calloc(c->n_tensors / 8 + 1, 1);
    if (k.seen == NULL)
        return moec_fail_nomem(err, "the index's tensors");
    st = open_index(c, &fd, err);
    if (st != MOEC_OK)
        goto free_seen;
    st = moec_index_read(fd, (uint64_t)c->index_stamp.bytes, INDEX_NAME,
                         MOEC_INDEX_TRUSTING, compare_entry, &k, &facts, err);
    while (i < c->n_tensors && (k.seen[i / 8] >> i % 8 & 1) != 0)
        i++;
    if (st == MOEC_OK && i < c->n_tensors)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I08,
                       INDEX_NAME ": tensor '%s': in '%s', but not in the "
                                  "index",
                       c->tensors[i].name,
                       c->files[c->tensors[i].file].name);
    if (st == MOEC_OK)
        st = check_stamp(fd, INDEX_NAME, &c->index_stamp, err);
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
static moec_status explain_failure(const moec_ckpt *c, moec_status failed,
                                   const moec_error *why, moec_error *err)
{
    moec_error twice = MOEC_ERROR_INIT;
    moec_index_facts facts;
    moec_status st;
    int fd = -1;

    if ((why->rule == MOEC_RULE_I06 || why->rule == MOEC_RULE_I08) &&
        c->index_name != NULL && open_index(c, &fd, &twice) == MOEC_OK) {
        st = moec_index_read(fd, (uint64_t)c->index_stamp.bytes, INDEX_NAME,
                             MOEC_INDEX_CHECKED, ignore_entry, NULL, &facts,
                             &twice);
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
static moec_status note_total(moec_ckpt *c, const moec_index_facts *facts,
                              moec_error *err)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < c->n_files; i++) {
        if (!moec_add_u64(sum, c->shards[i].header.data_bytes, &sum))
            sum = UINT64_MAX;
    }
    if (!facts->has_total || (facts->total_is_number &&
                              facts->total_bytes == sum))
        return MOEC_OK;
    if (!facts->total_is_number)
        return add_note(c, MOEC_RULE_I14, err,
                        INDEX_NAME ": total_size is not an unsigned integer, "
                        "the tensors have %" PRIu64 " bytes",
                        sum);
    return add_note(c, MOEC_RULE_I14, err,
                    INDEX_NAME ": total_size is %" PRIu64
                    ", the tensors have %" PRIu64 " bytes",
                    facts->total_bytes, sum);
}

/* ------------------------------------------------------------------ open */

static moec_status check_opts(const moec_ckpt_opts *opts, moec_ckpt_opts *out,
                              moec_error *err)
{
    static const moec_ckpt_opts defaults = MOEC_CKPT_OPTS_INIT;

    *out = defaults;
    if (opts == NULL)
        return MOEC_OK;
    /* Callers of an older library have a shorter struct. */
    if (opts->struct_bytes < 2 * sizeof(uint32_t))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_ckpt_opts.struct_bytes is %u: use "
                         "MOEC_CKPT_OPTS_INIT",
                         opts->struct_bytes);
    memcpy(out, opts,
           opts->struct_bytes < sizeof(*out) ? opts->struct_bytes
                                             : sizeof(*out));
    return MOEC_OK;
}

static moec_status open_listed(moec_ckpt *c, const char **list, size_t n,
                               uint32_t n_threads, moec_error *err)
{
    const char *index = INDEX_NAME;
    moec_index_facts facts;

    if (c->source.bare != NULL)
        MOEC_TRY(choose_one(c, c->source.bare, err));
    else if (n > 0 && bsearch(&index, list, n, sizeof(*list), by_bytes))
        MOEC_TRY(choose_indexed(c, &facts, err));
    else
        MOEC_TRY(choose_only(c, list, n, err));
    MOEC_TRY(open_files(c, err));
    MOEC_TRY(make_table(c, NULL, n_threads, err));
    if (c->index_name != NULL) {
        MOEC_TRY(compare_index(c, err));
        MOEC_TRY(note_total(c, &facts, err));
        MOEC_TRY(note_unindexed(c, list, n, err));
    }
    MOEC_TRY(choose_extra(c, list, n, err));
    close_notes(c);
    return MOEC_OK;
}

static moec_ckpt *new_ckpt(void)
{
    static const moec_source no_source = MOEC_SOURCE_INIT;
    moec_ckpt *c = moec_calloc(1, sizeof(*c));

    if (c != NULL)
        c->source = no_source;
    return c;
}

moec_status moec_ckpt_open(moec_ckpt **out, const char *path,
                           const moec_ckpt_opts *opts, moec_error *err)
{
    moec_ckpt_opts o;
    const char **list = NULL;
    size_t n = 0;
    moec_error why = MOEC_ERROR_INIT;
    moec_ckpt *c;
    moec_status st;

    MOEC_TRY(check_opts(opts, &o, err));
    c = new_ckpt();
    if (c == NULL)
        return moec_fail_nomem(err, "a checkpoint");
    st = moec_source_open(&c->source, path, o.hf_cache, &why);
    if (st == MOEC_OK)
        st = moec_source_list(&c->source, &c->arena, &list, &n, &why);
    if (st == MOEC_OK)
        st = open_listed(c, list, n, o.n_threads, &why);
    moec_free(list);
    if (st == MOEC_OK) {
        *out = c;
        return MOEC_OK;
    }
    st = explain_failure(c, st, &why, err);
    moec_ckpt_close(c);
    return st;
}

/* Take over names and sizes of headers in memory. */
static moec_status use_blobs(moec_ckpt *c, const char *dir,
                             const moec_header_blob *blobs, size_t n,
                             moec_error *err)
{
    c->source.dir = moec_alloc(strlen(dir) + 1);
    if (c->source.dir == NULL)
        return moec_fail_nomem(err, "a path");
    memcpy(c->source.dir, dir, strlen(dir) + 1);
    MOEC_TRY(make_files(c, n, err));
    for (size_t i = 0; i < n; i++) {
        size_t bytes = strlen(dir) + strlen(blobs[i].name) + 2;
        char *path = moec_arena_alloc(&c->arena, bytes, 1);
        if (path == NULL)
            return moec_fail_nomem(err, "a path");
        (void)snprintf(path, bytes, "%s/%s", dir, blobs[i].name);
        c->shards[i].path = path;
        c->files[i].name = path + strlen(dir) + 1;
        c->files[i].bytes = blobs[i].file_bytes;
        if (blobs[i].data_bytes > SIZE_MAX)
            return moec_fail_nomem(err, "a header");
    }
    return MOEC_OK;
}

moec_status moec_ckpt_from_headers(moec_ckpt **out, const char *dir,
                                   const moec_header_blob *blobs, size_t n,
                                   moec_error *err)
{
    moec_ckpt *c = new_ckpt();
    moec_status st;

    if (c == NULL)
        return moec_fail_nomem(err, "a checkpoint");
    st = use_blobs(c, dir, blobs, n, err);
    if (st == MOEC_OK)
        st = make_table(c, blobs, 0, err);
    close_notes(c);
    if (st == MOEC_OK)
        *out = c;
    else
        moec_ckpt_close(c);
    return st;
}

void moec_ckpt_close(moec_ckpt *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->n_files; i++) {
        moec_header_fini(&c->shards[i].header);
        if (c->shards[i].fd >= 0)
            close(c->shards[i].fd);
    }
    moec_free(c->tensors);
    moec_free(c->shards);
    moec_free(c->files);
    moec_free(c->extra);
    moec_free(c->notes);
    moec_arena_fini(&c->arena);
    moec_source_fini(&c->source);
    moec_free(c);
}

/* ---------------------------------------------------------------- access */

const char *moec_ckpt_dir(const moec_ckpt *c)
{
    return c->source.dir;
}

int moec_ckpt_is_bare_file(const moec_ckpt *c)
{
    return c->source.bare != NULL;
}

size_t moec_ckpt_n_tensors(const moec_ckpt *c)
{
    return c->n_tensors;
}

const moec_tensor *moec_ckpt_tensor(const moec_ckpt *c, size_t i)
{
    return &c->tensors[i];
}

size_t moec_ckpt_find(const moec_ckpt *c, const char *name)
{
    return moec_table_find(c->tensors, c->n_tensors, name, strlen(name),
                           SIZE_MAX);
}

size_t moec_ckpt_n_files(const moec_ckpt *c)
{
    return c->n_files;
}

const moec_file *moec_ckpt_file(const moec_ckpt *c, size_t i)
{
    return &c->files[i];
}

size_t moec_ckpt_n_notes(const moec_ckpt *c)
{
    return c->n_notes;
}

const moec_note *moec_ckpt_note(const moec_ckpt *c, size_t i)
{
    return &c->notes[i];
}

int moec_ckpt_fd(const moec_ckpt *c, size_t i)
{
    return c->shards[i].fd;
}

int moec_ckpt_dirfd(const moec_ckpt *c)
{
    return c->source.dirfd;
}

const char *moec_ckpt_path(const moec_ckpt *c, size_t i)
{
    return c->shards[i].path;
}

const char *moec_ckpt_index_name(const moec_ckpt *c)
{
    return c->index_name;
}

size_t moec_ckpt_n_extra(const moec_ckpt *c)
{
    return c->n_extra;
}

const char *moec_ckpt_extra(const moec_ckpt *c, size_t i)
{
    return c->extra[i];
}

/* --------------------------------------------------------------- reading */

moec_status moec_ckpt_read(const moec_ckpt *c, size_t i, uint64_t off,
                           void *buf, size_t n, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    const moec_tensor *t;
    const moec_file *f;
    const shard *s;
    moec_status st;

    if (i >= c->n_tensors)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor %zu of %zu does not exist", i, c->n_tensors);
    t = &c->tensors[i];
    f = &c->files[t->file];
    s = &c->shards[t->file];
    if (off > t->bytes || n > t->bytes - off)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: tensor '%s': %zu bytes at %" PRIu64
                         " leave its %" PRIu64,
                         f->name, t->name, n, off, t->bytes);
    if (s->fd < 0)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: the checkpoint has headers only", f->name);
    st = moec_pread_full(s->fd, f->name, buf, n, t->off + off, &why);
    /* That the file changed explains whatever else went wrong. */
    MOEC_TRY(check_stamp(s->fd, f->name, &s->stamp, err));
    if (st != MOEC_OK && err != NULL && err->status == MOEC_OK)
        *err = why;
    return st;
}

/* Fail where `name` now means another file than the one of `then`. */
static moec_status check_name(const moec_ckpt *c, const char *name,
                              const stamp *then, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    uint64_t bytes = 0;
    moec_status st;
    int fd = -1;

    st = moec_source_file(&c->source, name, &fd, &bytes, &why);
    if (st != MOEC_OK)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%s: cannot be opened again: %s", name, why.text);
    st = check_stamp(fd, name, then, err);
    close(fd);
    return st;
}

moec_status moec_ckpt_check_unchanged(const moec_ckpt *c, moec_error *err)
{
    for (size_t i = 0; i < c->n_files; i++) {
        const shard *s = &c->shards[i];
        if (s->fd < 0)
            continue;
        MOEC_TRY(check_stamp(s->fd, c->files[i].name, &s->stamp, err));
        MOEC_TRY(check_name(c, c->files[i].name, &s->stamp, err));
    }
    if (c->index_name != NULL)
        MOEC_TRY(check_name(c, c->index_name, &c->index_stamp, err));
    return MOEC_OK;
}

/* Read all of `fd`, which is closed. */
static moec_status read_all(int fd, const char *name, uint64_t bytes,
                            moec_buf *out, moec_error *err)
{
    moec_status st;

    if (bytes >= SIZE_MAX || !moec_buf_reserve(out, (size_t)bytes + 1)) {
        close(fd);
        return moec_fail_nomem(err, name);
    }
    st = moec_pread_full(fd, name, out->data + out->len, (size_t)bytes, 0,
                         err);
    close(fd);
    if (st == MOEC_OK) {
        out->len += (size_t)bytes;
        out->data[out->len] = '\0';
    }
    return st;
}

moec_status moec_ckpt_read_index(const moec_ckpt *c, moec_buf *out,
                                 moec_error *err)
{
    int fd = -1;

    if (c->index_name == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the checkpoint has no index");
    MOEC_TRY(open_index(c, &fd, err));
    return read_all(fd, c->index_name, (uint64_t)c->index_stamp.bytes, out,
                    err);
}

moec_status moec_ckpt_open_extra(const moec_ckpt *c, const char *name,
                                 int *fd_out, uint64_t *bytes_out,
                                 moec_error *err)
{
    return moec_source_file(&c->source, name, fd_out, bytes_out, err);
}

moec_status moec_ckpt_read_extra(const moec_ckpt *c, const char *name,
                                 uint64_t max, moec_buf *out, moec_error *err)
{
    uint64_t bytes = 0;
    int fd = -1;

    MOEC_TRY(moec_source_file(&c->source, name, &fd, &bytes, err));
    if (bytes > max) {
        close(fd);
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %" PRIu64 " bytes, the limit is %" PRIu64, name,
                         bytes, max);
    }
    return read_all(fd, name, bytes, out, err);
}
