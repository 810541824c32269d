/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The output directory: outdir.h says what it promises. The order of steps is
 * the whole of it:
 *
 *   begin:  make OUT.partial, lock it, see that the locked one still has that
 *           name, write the marker, fsync the directory and its parent, delete
 *           what an earlier run left (or, to resume, leave that to whoever
 *           reads its journal)
 *   commit: fsync files, remove journal and marker, fsync the directory,
 *           rename, fsync the parent, delete what was replaced
 *
 * A crash between any two leaves OUT absent, or as it was, or complete; and an
 * OUT.partial that the next begin knows as ours. Refused is everything that
 * would follow a link, delete what we did not write, or write beside another
 * writer.
 */

#include "outdir_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "converted.h"
#include "journal.h"

/* Another process may commit or discard between our open and our lock; then
 * there is a new directory to lock. Each round means that one of them made
 * progress, so a few are plenty. */
enum { LOCK_TRIES = 16 };

/* Who joins waits so long for another that begins, or clears what an earlier
 * run left. */
enum { JOIN_WAITS = 1000 };

/* Why OUT.partial is opened. */
typedef enum purpose {
    TO_BEGIN,  /* as the only one, anew */
    TO_RESUME, /* the same, or going on with a journal */
    TO_JOIN,   /* as one of several */
    TO_FINISH  /* what several have written */
} purpose;

/* ---------------------------------------------------------------- begin */

static char *copy_text(const char *s, size_t n, const char *more)
{
    char *copy = moec_alloc(n + strlen(more) + 1);

    if (copy) {
        memcpy(copy, s, n);
        memcpy(copy + n, more, strlen(more) + 1);
    }
    return copy;
}

/* Cut OUT into directory and name and open the directory. */
static moec_status open_parent(moec_output *o, const char *path,
                               moec_error *err)
{
    size_t n = strlen(path);
    size_t cut;
    char *dir;

    while (n > 0 && path[n - 1] == '/')
        n--;
    for (cut = n; cut > 0 && path[cut - 1] != '/'; cut--)
        ;
    o->path = copy_text(path, n, "");
    o->name = copy_text(path + cut, n - cut, "");
    o->partial = copy_text(path + cut, n - cut, MOEC_OUTPUT_SUFFIX);
    o->aside = copy_text(path + cut, n - cut, MOEC_OUTPUT_ASIDE);
    if (!o->path || !o->name || !o->partial || !o->aside)
        return moec_fail_nomem(err, "a path");
    if (n == cut || moec_output_is_dots(o->name))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' does not name a new directory", path);
    if (strlen(o->aside) > MOEC_FILE_NAME_BYTES_MAX)
        return moec_output_refuse(o, err, "", "is too long a name");
    dir = cut > 0 ? copy_text(path, cut, "") : copy_text(".", 1, "");
    if (!dir)
        return moec_fail_nomem(err, "a path");
    o->parentfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    moec_free(dir);
    if (o->parentfd >= 0)
        return MOEC_OK;
    if (errno == ENOENT || errno == ENOTDIR)
        return moec_output_refuse(
            o, err, "", "cannot be made: its parent directory does not exist");
    return moec_fail_os(err, errno, "%s: cannot open its parent directory",
                        o->path);
}

/* Does OUT.partial still name the directory that we hold? */
static bool is_current(const moec_output *o)
{
    struct stat held, named;

    return fstat(o->dirfd, &held) == 0 &&
           fstatat(o->parentfd, o->partial, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

static moec_status nothing_to_finish(const moec_output *o, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                     "%s" MOEC_OUTPUT_SUFFIX " holds no converted ranks: run "
                     "convert with --ranks first",
                     o->path);
}

/* One process alone holds the lock as long as it works; of several, each one
 * for moments. */
static moec_status lock_partial_fd(const moec_output *o, purpose why,
                                   moec_error *err)
{
    const struct timespec moment = {.tv_nsec = MOEC_OUTPUT_WAIT_NS};
    bool alone;

    for (int i = 0;; i++) {
        if (flock(o->dirfd, LOCK_EX | LOCK_NB) == 0)
            return MOEC_OK;
        if (errno != EWOULDBLOCK)
            return moec_output_failed(o, err, "lock it");
        MOEC_TRY(moec_output_has_file(o, MOEC_JOURNAL_NAME, &alone, err));
        if (why != TO_JOIN || i == JOIN_WAITS || alone)
            return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                             "%s" MOEC_OUTPUT_SUFFIX
                             ": another process is writing it",
                             o->path);
        nanosleep(&moment, NULL);
    }
}

/* Open and lock OUT.partial, making it where it is not there. *again_out: it
 * was renamed or removed under our hands. */
static moec_status lock_once(moec_output *o, purpose why, bool *again_out,
                             moec_error *err)
{
    struct stat st;

    *again_out = false;
    if (why != TO_FINISH && mkdirat(o->parentfd, o->partial, 0777) != 0 &&
        errno != EEXIST)
        return moec_output_failed(o, err, "make it");
    o->dirfd = openat(o->parentfd, o->partial,
                      O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (o->dirfd < 0 && errno == ENOENT) {
        if (why == TO_FINISH)
            return nothing_to_finish(o, err);
        *again_out = true;
        return MOEC_OK;
    }
    if (o->dirfd < 0 && (errno == ENOTDIR || errno == ELOOP))
        return moec_output_refuse(o, err, MOEC_OUTPUT_SUFFIX,
                                  "is in the way: it is not a directory");
    if (o->dirfd < 0)
        return moec_output_failed(o, err, "open it");
    MOEC_TRY(lock_partial_fd(o, why, err));
    *again_out = !is_current(o);
    if (*again_out)
        return MOEC_OK;
    if (fstat(o->dirfd, &st) != 0)
        return moec_output_failed(o, err, "look at it");
    if (st.st_uid != geteuid())
        return moec_output_refuse(o, err, MOEC_OUTPUT_SUFFIX,
                                  "belongs to another user");
    return MOEC_OK;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static moec_status lock_partial(moec_output *o, purpose why, moec_error *err)
{
    bool again = true;

    for (int i = 0; again && i < LOCK_TRIES; i++) {
        close_fd(&o->dirfd);
        MOEC_TRY(lock_once(o, why, &again, err));
    }
    if (again)
        return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                         "%s" MOEC_OUTPUT_SUFFIX
                         ": other processes keep replacing it",
                         o->path);
    return MOEC_OK;
}

moec_status moec_output_put_marker(const moec_output *o, moec_error *err)
{
    int fd = openat(o->dirfd, MOEC_OUTPUT_MARKER,
                    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);

    if (fd < 0)
        return moec_output_failed(o, err, "mark it as ours");
    close(fd);
    /* and where the file system keeps attributes, on the directory itself */
    (void)fsetxattr(o->dirfd, MOEC_OUTPUT_ATTRIBUTE, "1", 1, 0);
    return MOEC_OK;
}

/* The marker goes before the rename, so that OUT never has it. Killed between
 * the two, a directory without a manifest is still known by its attribute. */
static moec_status has_attribute(const moec_output *o, bool *yes,
                                 moec_error *err)
{
    char value[1];
    ssize_t n =
        fgetxattr(o->dirfd, MOEC_OUTPUT_ATTRIBUTE, value, sizeof(value));

    *yes = n == 1;
    if (n < 0 && (errno == EIO || errno == ENOMEM))
        return moec_output_failed(o, err, "look at its attributes");
    return MOEC_OK;
}

/* Did a conversion leave what is there? */
static moec_status is_left_over(const moec_output *o, bool *yes,
                                moec_error *err)
{
    MOEC_TRY(moec_output_has_file(o, MOEC_OUTPUT_MARKER, yes, err));
    if (!*yes)
        MOEC_TRY(has_attribute(o, yes, err));
    if (!*yes)
        MOEC_TRY(moec_output_has_manifest(o, o->dirfd, yes, err));
    return MOEC_OK;
}

/* Is there work of a kind that `why` cannot go on with? */
static moec_status check_kind(const moec_output *o, purpose why, bool job,
                              moec_error *err)
{
    bool there;

    switch (why) {
    case TO_BEGIN:
    case TO_RESUME:
        if (job)
            return moec_output_refuse(
                o, err, MOEC_OUTPUT_SUFFIX,
                "is being converted by ranks: go on with --ranks "
                "and finalize, or remove it");
        break;
    case TO_JOIN:
        MOEC_TRY(moec_output_has_file(o, MOEC_JOURNAL_NAME, &there, err));
        if (!job && there)
            return moec_output_refuse(
                o, err, MOEC_OUTPUT_SUFFIX,
                "belongs to a conversion of all ranks: run that "
                "command again, or remove it");
        break;
    case TO_FINISH:
        MOEC_TRY(moec_output_has_manifest(o, o->dirfd, &there, err));
        if (!job && !there)
            return nothing_to_finish(o, err);
        break;
    }
    return MOEC_OK;
}

/* The lock is ours; is the directory? If so, empty it behind a marker; where
 * there is work to go on with, leave it to who knows how: *found. */
static moec_status take_over(const moec_output *o, purpose why, bool *found,
                             moec_error *err)
{
    size_t n;
    bool marked, job, ours;

    MOEC_TRY(moec_output_check_entries(o, o->dirfd, &n, err));
    MOEC_TRY(moec_output_has_file(o, MOEC_OUTPUT_MARKER, &marked, err));
    MOEC_TRY(moec_output_has_file(o, MOEC_OUTPUT_JOB, &job, err));
    MOEC_TRY(is_left_over(o, &ours, err));
    if (n > 0 && !ours)
        return moec_output_refuse(
            o, err, MOEC_OUTPUT_SUFFIX,
            "is not left over from a conversion: remove it yourself");
    MOEC_TRY(check_kind(o, why, job, err));
    if (!marked) {
        /* In this order, so that no crash leaves what nobody knows; and a
         * journal's marks hold only where its directory is found again. */
        MOEC_TRY(moec_output_put_marker(o, err));
        if (fsync(o->dirfd) != 0 || fsync(o->parentfd) != 0)
            return moec_output_failed(o, err, "fsync it");
    }
    *found = job;
    if (why == TO_RESUME)
        MOEC_TRY(moec_output_has_file(o, MOEC_JOURNAL_NAME, found, err));
    return *found || why == TO_FINISH
               ? MOEC_OK
               : moec_output_delete_files(o, o->dirfd, err);
}

static void release(moec_output *o)
{
    close_fd(&o->dirfd); /* and with it the lock */
    close_fd(&o->parentfd);
    moec_free(o->path);
    moec_free(o->name);
    moec_free(o->partial);
    moec_free(o->aside);
    *o = (moec_output)MOEC_OUTPUT_INIT;
}

static moec_status begin(moec_output *o, const char *path, bool force,
                         purpose why, bool *found, moec_error *err)
{
    moec_output made = {.parentfd = -1, .dirfd = -1, .force = force};
    int old = -1;
    moec_status st;

    st = open_parent(&made, path, err);
    if (st == MOEC_OK)
        st = lock_partial(&made, why, err);
    if (st != MOEC_OK)
        goto fail;
    /* Under the lock: before it another process may be replacing OUT. */
    st = moec_output_check_target(&made, &old, err);
    close_fd(&old);
    if (st == MOEC_OK)
        st = take_over(&made, why, found, err);
    if (st != MOEC_OK) {
        /* Only a directory that is still empty goes: one that we made. */
        if (why != TO_FINISH)
            unlinkat(made.parentfd, made.partial, AT_REMOVEDIR);
        goto fail;
    }
    made.begun = true;
    *o = made;
    return MOEC_OK;

fail:
    release(&made);
    return st;
}

moec_status moec_output_begin(moec_output *o, const char *path, bool force,
                              moec_error *err)
{
    bool found;

    return begin(o, path, force, TO_BEGIN, &found, err);
}

moec_status moec_output_resume(moec_output *o, const char *path, bool force,
                               bool *found_out, moec_error *err)
{
    *found_out = false;
    return begin(o, path, force, TO_RESUME, found_out, err);
}

moec_status moec_output_join(moec_output *o, const char *path, bool force,
                             bool *found_out, moec_error *err)
{
    *found_out = false;
    return begin(o, path, force, TO_JOIN, found_out, err);
}

void moec_output_unlock(const moec_output *o)
{
    if (o->begun)
        (void)flock(o->dirfd, LOCK_UN);
}

moec_status moec_output_finish(moec_output *o, const char *path, bool force,
                               bool *found_out, moec_error *err)
{
    *found_out = false;
    return begin(o, path, force, TO_FINISH, found_out, err);
}

moec_status moec_output_check(const moec_output *o, moec_error *err)
{
    if (is_current(o))
        return MOEC_OK;
    return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                     "%s" MOEC_OUTPUT_SUFFIX
                     " was moved or removed while it was written",
                     o->path);
}

/* ---------------------------------------------------------------- files */

int moec_output_dirfd(const moec_output *o)
{
    return o->begun ? o->dirfd : -1;
}

moec_status moec_output_create(const moec_output *o, const char *name,
                               int flags, int *fd_out, moec_error *err)
{
    int fd;

    if (!o->begun || !moec_plain_name(name, strlen(name)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' cannot be the name of an output file", name);
    fd = openat(o->dirfd, name,
                O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW | flags,
                0666);
    if (fd < 0)
        return moec_output_entry_failed(o, o->dirfd, name, "make the file",
                                        err);
    *fd_out = fd;
    return MOEC_OK;
}

moec_status moec_output_write(const moec_output *o, const char *name,
                              const void *data, size_t n, moec_error *err)
{
    moec_status st;
    int fd;

    MOEC_TRY(moec_output_create(o, name, 0, &fd, err));
    st = moec_pwrite_full(fd, name, data, n, 0, err);
    if (st == MOEC_OK && fsync(fd) != 0)
        st = moec_fail_os(err, errno, "%s: cannot fsync", name);
    if (close(fd) != 0 && st == MOEC_OK)
        st = moec_fail_os(err, errno, "%s: cannot close", name);
    if (st != MOEC_OK)
        unlinkat(o->dirfd, name, 0);
    return st;
}

/* --------------------------------------------------------------- commit */

static moec_status commit(const moec_output *o, moec_error *err)
{
    const char *old_name = NULL;
    int old = -1;
    moec_status st;

    MOEC_TRY(moec_output_check(o, err));
    MOEC_TRY(moec_output_sync_entries(o, err));
    MOEC_TRY(moec_output_check_target(o, &old, err));
    st = moec_output_publish(o, old, &old_name, err);
    if (st == MOEC_OK && fsync(o->parentfd) != 0)
        st = moec_output_unsynced(o, old_name, err);
    else if (st == MOEC_OK && old >= 0)
        st = moec_output_delete_old(o, old, old_name, err);
    close_fd(&old);
    return st;
}

moec_status moec_output_commit(moec_output *o, moec_error *err)
{
    moec_status st;

    if (!o->begun)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "commit of an output that is not begun");
    st = commit(o, err);
    release(o);
    return st;
}

void moec_output_abandon(moec_output *o)
{
    if (o->begun)
        release(o);
}

bool moec_output_discard(moec_output *o)
{
    size_t n;
    bool gone;

    if (!o->begun)
        return true;
    gone = is_current(o) &&
           moec_output_check_entries(o, o->dirfd, &n, NULL) == MOEC_OK &&
           moec_output_delete_files(o, o->dirfd, NULL) == MOEC_OK &&
           unlinkat(o->dirfd, MOEC_OUTPUT_MARKER, 0) == 0 &&
           unlinkat(o->parentfd, o->partial, AT_REMOVEDIR) == 0;
    release(o);
    return gone;
}
