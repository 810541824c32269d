/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_OUTDIR_H
#define MOEC_OUTDIR_H

/*
 * What this is: the directory that a conversion writes, seen by others either
 *   not at all or complete. Work happens in OUT.partial under an flock; one
 *   rename makes it OUT.
 * Lifetime: zero-initialise (MOEC_OUTPUT_INIT), begin, then exactly one of
 *   commit, abandon, discard; each of the three closes everything, also when
 *   it fails, and is a no-op on an object that is not begun.
 * Threads: one thread at a time; write and create are safe from any thread.
 * Errors: ARG (the path cannot be used, or something that is not ours stands
 *   there), LOCKED (another process writes it), IO, UNSUPPORTED, NOMEM,
 *   DURABILITY (OUT is there and complete, its last fsync failed).
 *
 * What is ours: OUT.partial where it is empty, holds the marker
 * `.moec-partial`, has the attribute user.moec.partial, or holds a
 * manifest.json of our schema (a commit was cut short between marker and
 * rename); OUT, to be replaced with force, where it holds such a manifest.json.
 * In either case only regular files may stand in it. Everything else is refused
 * and left as it is.
 */

#include <stdbool.h>
#include <stddef.h>

#include "base/base.h"

#define MOEC_OUTPUT_SUFFIX ".partial"
#define MOEC_OUTPUT_MARKER ".moec-partial"
/* Files of ours in OUT.partial begin with this; none of them is in OUT. */
#define MOEC_OUTPUT_OWN ".moec-"
/* Says that several processes convert ranks of it, and what: a journal
 * without cells (journal.h), whose identity is that of the whole job. */
#define MOEC_OUTPUT_JOB ".moec-job"
/* Name of the replaced OUT where the file system cannot exchange two names. */
#define MOEC_OUTPUT_ASIDE ".replaced"

typedef struct moec_output {
    char *path;    /* OUT without trailing slashes: for messages */
    char *name;    /* last component of OUT */
    char *partial; /* name of OUT.partial in the same directory */
    char *aside;   /* and of what it replaces, where names cannot swap */
    int parentfd;  /* the directory of both; valid where `begun` */
    int dirfd;     /* OUT.partial, locked; valid where `begun` */
    bool force;
    bool begun;
} moec_output;
/* clang-format off */
#define MOEC_OUTPUT_INIT {0}
/* clang-format on */

/* Make and lock OUT.partial beside `path`, or take over and empty one that an
 * earlier run left. ARG where OUT exists, unless `force` and it is ours to
 * replace; OUT itself is not touched before the commit. */
moec_status moec_output_begin(moec_output *o, const char *path, bool force,
                              moec_error *err);

/* The same, but an OUT.partial that holds a journal (journal.h) is taken over
 * as it is: *found_out. Who reads the journal then goes on (clear with what to
 * keep), starts over (clear) or leaves it to others (abandon). The commit
 * removes the journal with the marker. */
moec_status moec_output_resume(moec_output *o, const char *path, bool force,
                               bool *found_out, moec_error *err);

/* For one of several processes: make OUT.partial or join those who convert
 * other ranks of it. *found_out: there is a job (MOEC_OUTPUT_JOB); where not,
 * the directory is empty and the caller is the first. The lock is held: until
 * moec_output_unlock nobody else begins, joins or finishes, so all that must
 * be done by the first alone is done before it. Waits some seconds for others
 * that do the same. */
moec_status moec_output_join(moec_output *o, const char *path, bool force,
                             bool *found_out, moec_error *err);
/* Let others join; the directory stays ours to write into. */
void moec_output_unlock(const moec_output *o);

/* Take an OUT.partial that others have written, as it is, to finish it. FORMAT
 * where there is none, or none with a job or a manifest. *found_out: it has a
 * job; if not it has a manifest, and all that is missing is the commit. */
moec_status moec_output_finish(moec_output *o, const char *path, bool force,
                               bool *found_out, moec_error *err);

/* Fail where OUT.partial is no more what we hold (somebody moved or removed
 * it). */
moec_status moec_output_check(const moec_output *o, moec_error *err);

/* Delete the files of OUT.partial, less the marker and those that `keep` (may
 * be NULL) wants, and make the deletion durable. */
typedef bool (*moec_output_keep_fn)(void *ctx, const char *name);
moec_status moec_output_clear(const moec_output *o, moec_output_keep_fn keep,
                              void *ctx, moec_error *err);

/* Does the directory `path` hold a manifest.json of ours? Anybody else may
 * have a file of that name. IO where nobody can tell; what is no directory
 * is not ours. */
moec_status moec_output_is_ours(const char *path, bool *ours, moec_error *err);

/* Descriptor of OUT.partial, owned by `o`. */
int moec_output_dirfd(const moec_output *o);

/* Make the new file `name` (a plain name) and open it for writing with
 * `flags` (such as O_DIRECT) beside O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC.
 * *fd_out is the caller's to close. */
moec_status moec_output_create(const moec_output *o, const char *name,
                               int flags, int *fd_out, moec_error *err);

/* Make the new file `name` with these bytes and fsync it. */
moec_status moec_output_write(const moec_output *o, const char *name,
                              const void *data, size_t n, moec_error *err);

/* fsync every file and the directory, rename it to OUT, fsync the parent;
 * with force, then delete what OUT was. On failure OUT is as it was before and
 * OUT.partial stays, but for two: DURABILITY, and IO with a text that says so
 * (the old one could not be deleted). After these OUT is the new one, and the
 * old one, if any, is left under the name that the text gives. */
moec_status moec_output_commit(moec_output *o, moec_error *err);

/* Leave OUT.partial as it is: the next begin takes it over. */
void moec_output_abandon(moec_output *o);

/* Remove OUT.partial and all that was made in it: for wrong input. False where
 * that fails; what is left is still known as ours. */
bool moec_output_discard(moec_output *o);

#endif
