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

#include "outdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
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

/* Up to a second for a lock that is held for microseconds. */
enum { LOCK_WAITS = 100, LOCK_WAIT_NS = 10000000 };

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

/* Says of OUT.partial what its marker says. */
#define OURS_ATTRIBUTE "user.moec.partial"

/* How every manifest.json of ours begins, whatever its version. */
static const char manifest_begin[] = "{\n  \"schema\": \"moec.manifest/";

static moec_status refuse(const moec_output *o, moec_error *err,
                          const char *which, const char *why)
{
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "%s%s %s", o->path, which,
                     why);
}

static moec_status os_failed(const moec_output *o, moec_error *err,
                             const char *what)
{
    int why = errno;

    return moec_fail_os(err, why, "%s%s: cannot %s", o->path,
                        MOEC_OUTPUT_SUFFIX, what);
}

/* ------------------------------------------------------------ entries */

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* What a walk counts, and what one that deletes spares. */
typedef struct tally {
    size_t n;
    moec_output_keep_fn keep; /* NULL: nothing */
    void *ctx;
} tally;

/* Call fn for each entry of the directory; a stream of its own, so that the
 * position of dirfd is not shared. */
typedef moec_status (*entry_fn)(const moec_output *o, int dirfd,
                                const char *name, tally *count,
                                moec_error *err);

static moec_status each_entry(const moec_output *o, int dirfd, entry_fn fn,
                              tally *count, moec_error *err)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    moec_status st = MOEC_OK;
    const struct dirent *e;

    count->n = 0;
    if (!dir) {
        st = os_failed(o, err, "list it");
        if (fd >= 0)
            close(fd);
        return st;
    }
    errno = 0;
    while (st == MOEC_OK && (e = readdir(dir))) {
        if (!is_dots(e->d_name))
            st = fn(o, dirfd, e->d_name, count, err);
        errno = 0;
    }
    if (st == MOEC_OK && errno != 0)
        st = os_failed(o, err, "list it");
    closedir(dir);
    return st;
}

/* Which of our two directories a text is about. */
static const char *suffix(const moec_output *o, int dirfd)
{
    return dirfd == o->dirfd ? MOEC_OUTPUT_SUFFIX : "";
}

static moec_status entry_failed(const moec_output *o, int dirfd,
                                const char *name, const char *what,
                                moec_error *err)
{
    int why = errno;

    return moec_fail_os(err, why, "%s%s/%s: cannot %s", o->path,
                        suffix(o, dirfd), name, what);
}

/* Only regular files: what we delete is never a tree of somebody's. */
static moec_status check_entry(const moec_output *o, int dirfd,
                               const char *name, tally *count, moec_error *err)
{
    struct stat st;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return entry_failed(o, dirfd, name, "look at it", err);
    if (!S_ISREG(st.st_mode))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s%s would have to be deleted, and holds '%s', which "
                         "is no regular file: remove it yourself",
                         o->path, suffix(o, dirfd), name);
    ++count->n;
    return MOEC_OK;
}

/* The marker goes with the directory, the manifest after all else: until the
 * end, what is left is known as ours. */
static moec_status delete_entry(const moec_output *o, int dirfd,
                                const char *name, tally *count, moec_error *err)
{
    if (strcmp(name, MOEC_OUTPUT_MARKER) == 0 ||
        (count->keep ? count->keep(count->ctx, name)
                     : strcmp(name, MOEC_MANIFEST_NAME) == 0))
        return MOEC_OK;
    if (unlinkat(dirfd, name, 0) != 0)
        return entry_failed(o, dirfd, name, "delete it", err);
    ++count->n;
    return MOEC_OK;
}

/* Journals and locks: all that is ours and OUT does not have. The marker is
 * none of them: it stays until the last moment. */
static bool is_own(const char *name)
{
    return strncmp(name, MOEC_OUTPUT_OWN, sizeof(MOEC_OUTPUT_OWN) - 1) == 0 &&
           strcmp(name, MOEC_OUTPUT_MARKER) != 0;
}

static moec_status delete_own(const moec_output *o, int dirfd, const char *name,
                              tally *count, moec_error *err)
{
    if (!is_own(name))
        return MOEC_OK;
    if (unlinkat(dirfd, name, 0) != 0)
        return entry_failed(o, dirfd, name, "delete it", err);
    ++count->n;
    return MOEC_OK;
}

static moec_status sync_entry(const moec_output *o, int dirfd, const char *name,
                              tally *count, moec_error *err)
{
    moec_status st = MOEC_OK;
    int fd;

    if (is_own(name))
        return MOEC_OK; /* about to go */
    fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fsync(fd) != 0)
        st = entry_failed(o, dirfd, name, "fsync", err);
    if (fd >= 0)
        close(fd);
    ++count->n;
    return st;
}

/* A directory that is read while it shrinks may hide entries: until a pass
 * finds none. */
static moec_status delete_all(const moec_output *o, int dirfd, entry_fn fn,
                              tally *t, moec_error *err)
{
    do {
        MOEC_TRY(each_entry(o, dirfd, fn, t, err));
    } while (t->n > 0);
    return MOEC_OK;
}

/* Delete all files of a directory that check_entry has passed. */
static moec_status delete_files(const moec_output *o, int dirfd,
                                moec_error *err)
{
    tally n = {0};

    MOEC_TRY(delete_all(o, dirfd, delete_entry, &n, err));
    if (unlinkat(dirfd, MOEC_MANIFEST_NAME, 0) != 0 && errno != ENOENT)
        return entry_failed(o, dirfd, MOEC_MANIFEST_NAME, "delete it", err);
    return MOEC_OK;
}

/* ------------------------------------------------------------ ownership */

/* Is there a regular file of that name? A disk that does not answer is no
 * "no": on that we would delete the work of others. */
static moec_status has_file(const moec_output *o, const char *name, bool *yes,
                            moec_error *err)
{
    struct stat st;

    *yes = false;
    if (fstatat(o->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        *yes = S_ISREG(st.st_mode);
    else if (errno != ENOENT)
        return entry_failed(o, o->dirfd, name, "look at it", err);
    return MOEC_OK;
}

/* A name alone proves little: browsers' extensions have a manifest.json.
 * *ours stays false where errno says why nobody knows: 0, there is none. */
static int look_for_manifest(int dirfd, bool *ours)
{
    const size_t n = sizeof(manifest_begin) - 1;
    char begin[sizeof(manifest_begin)];
    moec_error e = MOEC_ERROR_INIT;
    struct stat st;
    int fd;

    *ours = false;
    if (fstatat(dirfd, MOEC_MANIFEST_NAME, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : errno;
    if (!S_ISREG(st.st_mode))
        return 0;
    fd = openat(dirfd, MOEC_MANIFEST_NAME,
                O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return errno;
    *ours =
        moec_pread_full(fd, MOEC_MANIFEST_NAME, begin, n, 0, &e) == MOEC_OK &&
        memcmp(begin, manifest_begin, n) == 0;
    close(fd);
    return e.os_errno;
}

static moec_status has_our_manifest(const moec_output *o, int dirfd, bool *ours,
                                    moec_error *err)
{
    int why = look_for_manifest(dirfd, ours);

    if (why == 0)
        return MOEC_OK;
    errno = why;
    return entry_failed(o, dirfd, MOEC_MANIFEST_NAME, "look at it", err);
}

moec_status moec_output_is_ours(const char *path, bool *ours, moec_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int why = fd < 0 ? errno : look_for_manifest(fd, ours);

    if (fd >= 0)
        close(fd);
    else
        *ours = false;
    /* What is no directory, whoever opens it as something else will say. */
    if (why == 0 || (fd < 0 && why != EMFILE && why != ENFILE && why != EIO))
        return MOEC_OK;
    return moec_fail_os(err, why, "%s: cannot look for a manifest.json in it",
                        path);
}

/* May OUT be made, or be replaced? *old_out is the directory that is to be
 * replaced, the caller's to close, or -1. */
static moec_status check_target(const moec_output *o, int *old_out,
                                moec_error *err)
{
    struct stat st;
    tally n = {0};
    bool ours = false;
    int fd;
    moec_status status;

    *old_out = -1;
    if (fstatat(o->parentfd, o->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? MOEC_OK
                               : moec_fail_os(err, errno, "%s", o->path);
    if (S_ISLNK(st.st_mode))
        return refuse(o, err, "", "is a symbolic link: name the directory");
    if (!S_ISDIR(st.st_mode))
        return refuse(o, err, "", "is a file: the output is a directory");
    if (!o->force)
        return refuse(o, err, "", "exists: remove it or give --force");
    fd = openat(o->parentfd, o->name,
                O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open it", o->path);
    status = has_our_manifest(o, fd, &ours, err);
    if (status == MOEC_OK && !ours)
        status = refuse(o, err, "",
                        "is no converted checkpoint: --force does not replace "
                        "it, remove it yourself");
    if (status == MOEC_OK)
        status = each_entry(o, fd, check_entry, &n, err);
    if (status != MOEC_OK)
        close(fd);
    else
        *old_out = fd;
    return status;
}

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
    if (n == cut || is_dots(o->name))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' does not name a new directory", path);
    if (strlen(o->aside) > MOEC_FILE_NAME_BYTES_MAX)
        return refuse(o, err, "", "is too long a name");
    dir = cut > 0 ? copy_text(path, cut, "") : copy_text(".", 1, "");
    if (!dir)
        return moec_fail_nomem(err, "a path");
    o->parentfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    moec_free(dir);
    if (o->parentfd >= 0)
        return MOEC_OK;
    if (errno == ENOENT || errno == ENOTDIR)
        return refuse(o, err, "",
                      "cannot be made: its parent directory does not exist");
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
    const struct timespec moment = {.tv_nsec = LOCK_WAIT_NS};
    bool alone;

    for (int i = 0;; i++) {
        if (flock(o->dirfd, LOCK_EX | LOCK_NB) == 0)
            return MOEC_OK;
        if (errno != EWOULDBLOCK)
            return os_failed(o, err, "lock it");
        MOEC_TRY(has_file(o, MOEC_JOURNAL_NAME, &alone, err));
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
        return os_failed(o, err, "make it");
    o->dirfd = openat(o->parentfd, o->partial,
                      O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (o->dirfd < 0 && errno == ENOENT) {
        if (why == TO_FINISH)
            return nothing_to_finish(o, err);
        *again_out = true;
        return MOEC_OK;
    }
    if (o->dirfd < 0 && (errno == ENOTDIR || errno == ELOOP))
        return refuse(o, err, MOEC_OUTPUT_SUFFIX,
                      "is in the way: it is not a directory");
    if (o->dirfd < 0)
        return os_failed(o, err, "open it");
    MOEC_TRY(lock_partial_fd(o, why, err));
    *again_out = !is_current(o);
    if (*again_out)
        return MOEC_OK;
    if (fstat(o->dirfd, &st) != 0)
        return os_failed(o, err, "look at it");
    if (st.st_uid != geteuid())
        return refuse(o, err, MOEC_OUTPUT_SUFFIX, "belongs to another user");
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

static moec_status put_marker(const moec_output *o, moec_error *err)
{
    int fd = openat(o->dirfd, MOEC_OUTPUT_MARKER,
                    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);

    if (fd < 0)
        return os_failed(o, err, "mark it as ours");
    close(fd);
    /* and where the file system keeps attributes, on the directory itself */
    (void)fsetxattr(o->dirfd, OURS_ATTRIBUTE, "1", 1, 0);
    return MOEC_OK;
}

/* The marker goes before the rename, so that OUT never has it. Killed between
 * the two, a directory without a manifest is still known by its attribute. */
static moec_status has_attribute(const moec_output *o, bool *yes,
                                 moec_error *err)
{
    char value[1];
    ssize_t n = fgetxattr(o->dirfd, OURS_ATTRIBUTE, value, sizeof(value));

    *yes = n == 1;
    if (n < 0 && (errno == EIO || errno == ENOMEM))
        return os_failed(o, err, "look at its attributes");
    return MOEC_OK;
}

/* Did a conversion leave what is there? */
static moec_status is_left_over(const moec_output *o, bool *yes,
                                moec_error *err)
{
    MOEC_TRY(has_file(o, MOEC_OUTPUT_MARKER, yes, err));
    if (!*yes)
        MOEC_TRY(has_attribute(o, yes, err));
    if (!*yes)
        MOEC_TRY(has_our_manifest(o, o->dirfd, yes, err));
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
            return refuse(o, err, MOEC_OUTPUT_SUFFIX,
                          "is being converted by ranks: go on with --ranks "
                          "and finalize, or remove it");
        break;
    case TO_JOIN:
        MOEC_TRY(has_file(o, MOEC_JOURNAL_NAME, &there, err));
        if (!job && there)
            return refuse(o, err, MOEC_OUTPUT_SUFFIX,
                          "belongs to a conversion of all ranks: run that "
                          "command again, or remove it");
        break;
    case TO_FINISH:
        MOEC_TRY(has_our_manifest(o, o->dirfd, &there, err));
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
    tally n = {0};
    bool marked, job, ours;

    MOEC_TRY(each_entry(o, o->dirfd, check_entry, &n, err));
    MOEC_TRY(has_file(o, MOEC_OUTPUT_MARKER, &marked, err));
    MOEC_TRY(has_file(o, MOEC_OUTPUT_JOB, &job, err));
    MOEC_TRY(is_left_over(o, &ours, err));
    if (n.n > 0 && !ours)
        return refuse(o, err, MOEC_OUTPUT_SUFFIX,
                      "is not left over from a conversion: remove it yourself");
    MOEC_TRY(check_kind(o, why, job, err));
    if (!marked) {
        /* In this order, so that no crash leaves what nobody knows; and a
         * journal's marks hold only where its directory is found again. */
        MOEC_TRY(put_marker(o, err));
        if (fsync(o->dirfd) != 0 || fsync(o->parentfd) != 0)
            return os_failed(o, err, "fsync it");
    }
    *found = job;
    if (why == TO_RESUME)
        MOEC_TRY(has_file(o, MOEC_JOURNAL_NAME, found, err));
    return *found || why == TO_FINISH ? MOEC_OK
                                      : delete_files(o, o->dirfd, err);
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
    st = check_target(&made, &old, err);
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

moec_status moec_output_clear(const moec_output *o, moec_output_keep_fn keep,
                              void *ctx, moec_error *err)
{
    tally t = {.keep = keep, .ctx = ctx};

    MOEC_TRY(keep == NULL ? delete_files(o, o->dirfd, err)
                          : delete_all(o, o->dirfd, delete_entry, &t, err));
    if (fsync(o->dirfd) != 0)
        return os_failed(o, err, "fsync it");
    return MOEC_OK;
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
        return entry_failed(o, o->dirfd, name, "make the file", err);
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

/* File systems without the flags of renameat2 (NFS, some FUSE). */
static bool lacks_flags(int why)
{
    return why == EINVAL || why == ENOSYS || why == ENOTSUP;
}

/* OUT is not there. Without the flag there is a moment between look and
 * rename; rename itself then refuses all but an empty directory. */
static moec_status rename_new(const moec_output *o, moec_error *err)
{
    struct stat st;

    if (renameat2(o->parentfd, o->partial, o->parentfd, o->name,
                  RENAME_NOREPLACE) == 0)
        return MOEC_OK;
    if (lacks_flags(errno)) {
        errno = EEXIST;
        if (fstatat(o->parentfd, o->name, &st, AT_SYMLINK_NOFOLLOW) != 0 &&
            renameat(o->parentfd, o->partial, o->parentfd, o->name) == 0)
            return MOEC_OK;
    }
    if (errno == EEXIST || errno == ENOTEMPTY)
        return refuse(o, err, "",
                      "has appeared meanwhile: the result stays in "
                      "its " MOEC_OUTPUT_SUFFIX);
    return os_failed(o, err, "rename it");
}

/* OUT is replaced; *name_out is what the old one is called afterwards. Without
 * the flag there is a moment without OUT, and a crash in it leaves the old
 * checkpoint under the third name. */
static moec_status rename_over(const moec_output *o, const char **name_out,
                               moec_error *err)
{
    int why;

    *name_out = o->partial;
    if (renameat2(o->parentfd, o->partial, o->parentfd, o->name,
                  RENAME_EXCHANGE) == 0)
        return MOEC_OK;
    if (!lacks_flags(errno))
        return os_failed(o, err, "exchange it");
    *name_out = o->aside;
    if (renameat(o->parentfd, o->name, o->parentfd, o->aside) != 0)
        return moec_fail_os(err, errno, "%s: cannot put it aside as '%s'",
                            o->path, o->aside);
    if (renameat(o->parentfd, o->partial, o->parentfd, o->name) == 0)
        return MOEC_OK;
    why = errno;
    (void)renameat(o->parentfd, o->aside, o->parentfd, o->name);
    errno = why;
    return os_failed(o, err, "rename it");
}

/* Lock the OUT to replace before it gets the name of OUT.partial, lest another
 * process takes it over while we delete. One that took it for OUT.partial just
 * before it became OUT lets go of it at once. */
static moec_status lock_old(const moec_output *o, int old, moec_error *err)
{
    const struct timespec moment = {.tv_nsec = LOCK_WAIT_NS};

    for (int i = 0; i < LOCK_WAITS; i++) {
        if (flock(old, LOCK_EX | LOCK_NB) == 0)
            return MOEC_OK;
        if (errno != EWOULDBLOCK)
            return moec_fail_os(err, errno, "%s: cannot lock it", o->path);
        nanosleep(&moment, NULL);
    }
    return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                     "%s: another process holds a lock on it", o->path);
}

/* Rename; `old` is the OUT to replace, or -1. */
static moec_status publish(const moec_output *o, int old, const char **name_out,
                           moec_error *err)
{
    moec_status st;
    tally n = {0};

    if (old >= 0)
        MOEC_TRY(lock_old(o, old, err));
    /* first the job: without it the manifest counts, with it all ranks */
    if (unlinkat(o->dirfd, MOEC_OUTPUT_JOB, 0) == 0) {
        if (fsync(o->dirfd) != 0)
            return os_failed(o, err, "fsync it");
    } else if (errno != ENOENT) {
        return os_failed(o, err, "remove its job");
    }
    MOEC_TRY(delete_all(o, o->dirfd, delete_own, &n, err));
    if (unlinkat(o->dirfd, MOEC_OUTPUT_MARKER, 0) != 0)
        return os_failed(o, err, "remove its marker");
    if (fsync(o->dirfd) != 0)
        st = os_failed(o, err, "fsync it");
    else if (old >= 0)
        st = rename_over(o, name_out, err);
    else
        st = rename_new(o, err);
    if (st != MOEC_OK)
        (void)put_marker(o, NULL); /* so that it is known as ours again */
    else
        (void)fremovexattr(o->dirfd, OURS_ATTRIBUTE);
    return st;
}

/* OUT is complete: delete what it was. */
static moec_status delete_old(const moec_output *o, int old, const char *name,
                              moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;
    tally n = {0};

    st = each_entry(o, old, check_entry, &n, &why);
    if (st == MOEC_OK)
        st = delete_files(o, old, &why);
    /* A marker that a taken-over directory had is ours too. */
    if (st == MOEC_OK)
        (void)unlinkat(old, MOEC_OUTPUT_MARKER, 0);
    if (st == MOEC_OK && unlinkat(o->parentfd, name, AT_REMOVEDIR) != 0)
        st = moec_fail_os(&why, errno, "cannot remove the directory");
    if (st == MOEC_OK)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                     "%s is complete, but what it replaces is left as '%s': %s",
                     o->path, name, why.text);
}

static moec_status unsynced(const moec_output *o, const char *old_name,
                            moec_error *err)
{
    int why = errno;
    bool first = err && err->status == MOEC_OK;

    moec_fail(err, MOEC_E_DURABILITY, MOEC_RULE_NONE,
              "%s is complete, but the rename could not be synced and may be "
              "lost with the power%s%s: %s",
              o->path, old_name ? "; what it replaces is left as " : "",
              old_name ? old_name : "", strerrordesc_np(why));
    if (first)
        err->os_errno = why;
    return MOEC_E_DURABILITY;
}

static moec_status commit(const moec_output *o, moec_error *err)
{
    const char *old_name = NULL;
    int old = -1;
    tally n = {0};
    moec_status st;

    MOEC_TRY(moec_output_check(o, err));
    MOEC_TRY(each_entry(o, o->dirfd, sync_entry, &n, err));
    MOEC_TRY(check_target(o, &old, err));
    st = publish(o, old, &old_name, err);
    if (st == MOEC_OK && fsync(o->parentfd) != 0)
        st = unsynced(o, old_name, err);
    else if (st == MOEC_OK && old >= 0)
        st = delete_old(o, old, old_name, err);
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
    tally n = {0};
    bool gone;

    if (!o->begun)
        return true;
    gone = is_current(o) &&
           each_entry(o, o->dirfd, check_entry, &n, NULL) == MOEC_OK &&
           delete_files(o, o->dirfd, NULL) == MOEC_OK &&
           unlinkat(o->dirfd, MOEC_OUTPUT_MARKER, 0) == 0 &&
           unlinkat(o->parentfd, o->partial, AT_REMOVEDIR) == 0;
    release(o);
    return gone;
}
