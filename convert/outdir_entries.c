/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands in OUT and in OUT.partial: whose it is, deleting it, fsync of
 * it. Refuses to delete what is no regular file: nothing of ours is a tree.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "converted.h"
#include "outdir_parts.h"

/* How every manifest.json of ours begins, whatever its version. */
static const char manifest_begin[] = "{\n  \"schema\": \"moec.manifest/";

moec_status moec_output_refuse(const moec_output *o, moec_error *err,
                               const char *which, const char *why)
{
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "%s%s %s", o->path, which,
                     why);
}

moec_status moec_output_failed(const moec_output *o, moec_error *err,
                               const char *what)
{
    int why = errno;

    return moec_fail_os(err, why, "%s%s: cannot %s", o->path,
                        MOEC_OUTPUT_SUFFIX, what);
}

bool moec_output_is_dots(const char *name)
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
        st = moec_output_failed(o, err, "list it");
        if (fd >= 0)
            close(fd);
        return st;
    }
    errno = 0;
    while (st == MOEC_OK && (e = readdir(dir))) {
        if (!moec_output_is_dots(e->d_name))
            st = fn(o, dirfd, e->d_name, count, err);
        errno = 0;
    }
    if (st == MOEC_OK && errno != 0)
        st = moec_output_failed(o, err, "list it");
    closedir(dir);
    return st;
}

/* Which of our two directories a text is about. */
static const char *suffix(const moec_output *o, int dirfd)
{
    return dirfd == o->dirfd ? MOEC_OUTPUT_SUFFIX : "";
}

moec_status moec_output_entry_failed(const moec_output *o, int dirfd,
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
        return moec_output_entry_failed(o, dirfd, name, "look at it", err);
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
        return moec_output_entry_failed(o, dirfd, name, "delete it", err);
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
        return moec_output_entry_failed(o, dirfd, name, "delete it", err);
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
        st = moec_output_entry_failed(o, dirfd, name, "fsync", err);
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

moec_status moec_output_delete_files(const moec_output *o, int dirfd,
                                     moec_error *err)
{
    tally n = {0};

    MOEC_TRY(delete_all(o, dirfd, delete_entry, &n, err));
    if (unlinkat(dirfd, MOEC_MANIFEST_NAME, 0) != 0 && errno != ENOENT)
        return moec_output_entry_failed(o, dirfd, MOEC_MANIFEST_NAME,
                                        "delete it", err);
    return MOEC_OK;
}

/* ------------------------------------------------------------ ownership */

moec_status moec_output_has_file(const moec_output *o, const char *name,
                                 bool *yes, moec_error *err)
{
    struct stat st;

    *yes = false;
    if (fstatat(o->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        *yes = S_ISREG(st.st_mode);
    else if (errno != ENOENT)
        return moec_output_entry_failed(o, o->dirfd, name, "look at it", err);
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

moec_status moec_output_has_manifest(const moec_output *o, int dirfd,
                                     bool *ours, moec_error *err)
{
    int why = look_for_manifest(dirfd, ours);

    if (why == 0)
        return MOEC_OK;
    errno = why;
    return moec_output_entry_failed(o, dirfd, MOEC_MANIFEST_NAME, "look at it",
                                    err);
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

moec_status moec_output_check_entries(const moec_output *o, int dirfd,
                                      size_t *n_out, moec_error *err)
{
    tally t = {0};
    moec_status st = each_entry(o, dirfd, check_entry, &t, err);

    *n_out = t.n;
    return st;
}

moec_status moec_output_delete_own(const moec_output *o, moec_error *err)
{
    tally t = {0};

    return delete_all(o, o->dirfd, delete_own, &t, err);
}

moec_status moec_output_sync_entries(const moec_output *o, moec_error *err)
{
    tally t = {0};

    return each_entry(o, o->dirfd, sync_entry, &t, err);
}

moec_status moec_output_clear(const moec_output *o, moec_output_keep_fn keep,
                              void *ctx, moec_error *err)
{
    tally t = {.keep = keep, .ctx = ctx};

    MOEC_TRY(keep == NULL ? moec_output_delete_files(o, o->dirfd, err)
                          : delete_all(o, o->dirfd, delete_entry, &t, err));
    if (fsync(o->dirfd) != 0)
        return moec_output_failed(o, err, "fsync it");
    return MOEC_OK;
}
