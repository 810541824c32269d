/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Which files a checkpoint has: notes about them, what they were when they
 * were opened, the choice without an index (I12), and the other files that a
 * conversion copies.
 */

#include "ckpt_parts.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "remote.h"

#define CONFIG_NAME "config.json"
/* Notes kept; a directory of stale files is summed up behind that. */
#define N_NOTES_MAX 64

/* ----------------------------------------------------------------- notes */

moec_status moec_ckpt_add_note(moec_ckpt *c, moec_rule rule, moec_error *err,
                               const char *fmt, ...)
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

void moec_ckpt_sum_notes(moec_ckpt *c)
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

moec_status moec_stamp_take(int fd, const char *name, moec_stamp *out,
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

moec_status moec_stamp_check(int fd, const char *name, const moec_stamp *then,
                             moec_error *err)
{
    moec_stamp now;
    const char *what;

    MOEC_TRY(moec_stamp_take(fd, name, &now, err));
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
moec_status moec_ckpt_make_files(moec_ckpt *c, size_t n, moec_error *err)
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
    if (c->source.remote != NULL)
        f->etag = moec_remote_file(c->source.remote,
                                   moec_remote_find(c->source.remote, f->name))
                      ->etag;
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
    moec_shard *s = &c->shards[i];

    if (s->fd < 0) {
        MOEC_TRY(moec_source_file(&c->source, f->name, &s->fd, &f->bytes, err));
        MOEC_TRY(moec_stamp_take(s->fd, f->name, &s->stamp, err));
    }
    f->bytes = (uint64_t)s->stamp.bytes;
    return name_file(c, i, err);
}

/* Open all files; of those that are not there the first is named. */
moec_status moec_ckpt_open_files(moec_ckpt *c, moec_error *err)
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
            return moec_hand_on(err, st, &why);
        }
    }
    if (n_missing == 0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I06,
                     "%s: not there, %s names it (%zu of %zu files are "
                     "missing)",
                     missing,
                     c->index_name != NULL ? c->index_name
                                           : "the "
                                             "directory",
                     n_missing, c->n_files);
}

/* --------------------------------------------------------------- choosing */

moec_status moec_ckpt_choose_one(moec_ckpt *c, const char *name,
                                 moec_error *err)
{
    MOEC_TRY(moec_ckpt_make_files(c, 1, err));
    c->files[0].name = moec_arena_strdup(&c->arena, name, strlen(name));
    return c->files[0].name != NULL ? MOEC_OK
                                    : moec_fail_nomem(err, "a file's name");
}

static bool is_safetensors(const char *name)
{
    return moec_has_suffix(name, ".safetensors");
}

/* No index: the directory must hold one file of the format, or one that is
 * called as libraries call a whole checkpoint, beside adapters and recorded
 * activations. */
moec_status moec_ckpt_choose_only(moec_ckpt *c, const char **list, size_t n,
                                  moec_error *err)
{
    const char *first = NULL, *second = NULL, *foreign = NULL, *whole = NULL;
    size_t n_models = 0;

    for (size_t i = 0; i < n; i++) {
        if (is_safetensors(list[i])) {
            n_models += strncmp(list[i], "model", 5) == 0;
            if (strcmp(list[i], "model.safetensors") == 0)
                whole = list[i];
            if (first == NULL)
                first = list[i];
            else if (second == NULL)
                second = list[i];
        } else if (foreign == NULL && moec_is_foreign_weights(list[i])) {
            foreign = list[i];
        }
    }
    if (whole != NULL && n_models == 1)
        first = whole;
    else if (second != NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I12,
                         "%s: has no " MOEC_CKPT_INDEX
                         " and more than one .safetensors file ('%s', '%s')",
                         c->source.dir, first, second);
    if (first != NULL)
        return moec_ckpt_choose_one(c, first, err);
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
    static const char *const suffixes[] = {".safetensors", ".msgpack", ".h5",
                                           ".onnx",        ".ot",      ".ckpt"};

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
    /* .gitattributes belongs to a published checkpoint; .git may be a file, and
     * what begins with .moec- is an output directory's own */
    if (strcmp(name, ".git") == 0 || strncmp(name, ".moec-", 6) == 0)
        return false;
    return !is_weights(name) && !moec_has_suffix(name, ".index.json");
}

moec_status moec_ckpt_choose_extra(moec_ckpt *c, const char **list, size_t n,
                                   moec_error *err)
{
    c->extra = moec_calloc(n, sizeof(*c->extra));
    if (c->extra == NULL)
        return moec_fail_nomem(err, "the list of other files");
    for (size_t i = 0; i < n; i++) {
        moec_source_entry what;
        if (!is_extra(c, list[i]))
            continue;
        if (!moec_utf8_valid(list[i], strlen(list[i]), NULL)) {
            MOEC_TRY(moec_ckpt_add_note(c, MOEC_RULE_I03, err,
                                        "%s: its name is not UTF-8, which no "
                                        "manifest can hold; left alone",
                                        list[i]));
            continue;
        }
        MOEC_TRY(moec_source_look(&c->source, list[i], &what, err));
        if (what == MOEC_ENTRY_FILE)
            c->extra[c->n_extra++] = list[i];
        else if (what == MOEC_ENTRY_OUTSIDE)
            MOEC_TRY(moec_ckpt_add_note(
                c, MOEC_RULE_I03, err,
                "%s: a link out of the directory, left alone", list[i]));
    }
    return MOEC_OK;
}

static int name_order(const void *key, const void *file)
{
    return strcmp(key, ((const moec_file *)file)->name);
}

moec_status moec_ckpt_note_unindexed(moec_ckpt *c, const char **list, size_t n,
                                     moec_error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (is_safetensors(list[i]) &&
            bsearch(list[i], c->files, c->n_files, sizeof(*c->files),
                    name_order) == NULL)
            MOEC_TRY(moec_ckpt_add_note(
                c, MOEC_RULE_I15, err, "%s: not %s, left alone", list[i],
                c->index_name != NULL ? "in " MOEC_CKPT_INDEX
                                      : "model.safetensors"));
    }
    return MOEC_OK;
}
