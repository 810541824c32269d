/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OUT.partial becomes OUT: whether OUT may be made or replaced, the rename, on
 * file systems with and without the flags of renameat2, and what becomes of
 * the OUT that was.
 */

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
#include "outdir_parts.h"

/* Up to a second for a lock that is held for microseconds. */
enum { LOCK_WAITS = 100 };

moec_status moec_output_check_target(const moec_output *o, int *old_out,
                                     moec_error *err)
{
    struct stat st;
    size_t n;
    bool ours = false;
    int fd;
    moec_status status;

    *old_out = -1;
    if (fstatat(o->parentfd, o->name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? MOEC_OK
                               : moec_fail_os(err, errno, "%s", o->path);
    if (S_ISLNK(st.st_mode))
        return moec_output_refuse(o, err, "",
                                  "is a symbolic link: name the directory");
    if (!S_ISDIR(st.st_mode))
        return moec_output_refuse(o, err, "",
                                  "is a file: the output is a directory");
    if (!o->force)
        return moec_output_refuse(o, err, "",
                                  "exists: remove it or give --force");
    fd = openat(o->parentfd, o->name,
                O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open it", o->path);
    status = moec_output_has_manifest(o, fd, &ours, err);
    if (status == MOEC_OK && !ours)
        status = moec_output_refuse(
            o, err, "",
            "is no converted checkpoint: --force does not replace "
            "it, remove it yourself");
    if (status == MOEC_OK)
        status = moec_output_check_entries(o, fd, &n, err);
    if (status != MOEC_OK)
        close(fd);
    else
        *old_out = fd;
    return status;
}

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
        return moec_output_refuse(o, err, "",
                                  "has appeared meanwhile: the result stays in "
                                  "its " MOEC_OUTPUT_SUFFIX);
    return moec_output_failed(o, err, "rename it");
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
        return moec_output_failed(o, err, "exchange it");
    *name_out = o->aside;
    if (renameat(o->parentfd, o->name, o->parentfd, o->aside) != 0)
        return moec_fail_os(err, errno, "%s: cannot put it aside as '%s'",
                            o->path, o->aside);
    if (renameat(o->parentfd, o->partial, o->parentfd, o->name) == 0)
        return MOEC_OK;
    why = errno;
    (void)renameat(o->parentfd, o->aside, o->parentfd, o->name);
    errno = why;
    return moec_output_failed(o, err, "rename it");
}

/* Lock the OUT to replace before it gets the name of OUT.partial, lest another
 * process takes it over while we delete. One that took it for OUT.partial just
 * before it became OUT lets go of it at once. */
static moec_status lock_old(const moec_output *o, int old, moec_error *err)
{
    const struct timespec moment = {.tv_nsec = MOEC_OUTPUT_WAIT_NS};

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

moec_status moec_output_publish(const moec_output *o, int old,
                                const char **name_out, moec_error *err)
{
    moec_status st;

    if (old >= 0)
        MOEC_TRY(lock_old(o, old, err));
    /* first the job: without it the manifest counts, with it all ranks */
    if (unlinkat(o->dirfd, MOEC_OUTPUT_JOB, 0) == 0) {
        if (fsync(o->dirfd) != 0)
            return moec_output_failed(o, err, "fsync it");
    } else if (errno != ENOENT) {
        return moec_output_failed(o, err, "remove its job");
    }
    MOEC_TRY(moec_output_delete_own(o, err));
    if (unlinkat(o->dirfd, MOEC_OUTPUT_MARKER, 0) != 0)
        return moec_output_failed(o, err, "remove its marker");
    if (fsync(o->dirfd) != 0)
        st = moec_output_failed(o, err, "fsync it");
    else if (old >= 0)
        st = rename_over(o, name_out, err);
    else
        st = rename_new(o, err);
    if (st != MOEC_OK)
        (void)moec_output_put_marker(
            o, NULL); /* so that it is known as ours again */
    else
        (void)fremovexattr(o->dirfd, MOEC_OUTPUT_ATTRIBUTE);
    return st;
}

moec_status moec_output_delete_old(const moec_output *o, int old,
                                   const char *name, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;
    size_t n;

    st = moec_output_check_entries(o, old, &n, &why);
    if (st == MOEC_OK)
        st = moec_output_delete_files(o, old, &why);
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

moec_status moec_output_unsynced(const moec_output *o, const char *old_name,
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
