/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that options and arguments name: read whole, written whole. Refuses
 * what is no regular file (a FIFO would be waited for), what is too large,
 * and to write over what is there.
 */
#include "option_files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "print.h"

static moec_status fail_open(moec_error *err, moec_rule rule, const char *path,
                             int os_errno)
{
    /* Wrong input, not a fault of the system: see moec_cli_exit_of. */
    bool absent = os_errno == ENOENT || os_errno == ENOTDIR;
    err->os_errno = os_errno;
    return moec_cli_error(err, absent ? MOEC_E_FORMAT : MOEC_E_IO,
                          absent ? rule : MOEC_RULE_NONE,
                          "%s: cannot be read: %s", path, strerror(os_errno));
}

static moec_status read_all(int fd, const char *path, size_t bytes, char *buf,
                            moec_error *err)
{
    size_t at = 0;
    while (at < bytes) {
        ssize_t n = read(fd, buf + at, bytes - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_open(err, MOEC_RULE_NONE, path, errno);
        if (n == 0)
            break;
        at += (size_t)n;
    }
    if (at != bytes)
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                              "%s: %zu bytes, of which %zu could be read", path,
                              bytes, at);
    buf[bytes] = '\0';
    return MOEC_OK;
}

moec_status moec_cli_read_file(const char *path, moec_rule rule, uint64_t max,
                               char **out, size_t *bytes_out, moec_error *err)
{
    moec_status st = MOEC_OK;
    char *buf = NULL;
    struct stat sb;
    /* O_NONBLOCK: a FIFO is refused below, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return fail_open(err, rule, path, errno);
    if (fstat(fd, &sb) != 0) {
        st = fail_open(err, rule, path, errno);
    } else if (!S_ISREG(sb.st_mode)) {
        st = moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                            "%s: not a regular file", path);
    } else if ((uint64_t)sb.st_size > max) {
        st = moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                            "%s: %jd bytes exceed %" PRIu64, path,
                            (intmax_t)sb.st_size, max);
    } else if ((buf = malloc((size_t)sb.st_size + 1)) == NULL) {
        st = moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                            "no memory for %s", path);
    } else {
        st = read_all(fd, path, (size_t)sb.st_size, buf, err);
    }
    (void)close(fd);
    if (st != MOEC_OK) {
        free(buf);
        return st;
    }
    *out = buf;
    *bytes_out = (size_t)sb.st_size;
    return MOEC_OK;
}

/* ------------------------------------------------------------- writing */

static moec_status fail_write(moec_error *err, const char *path)
{
    int why = errno;
    err->os_errno = why;
    return moec_cli_error(err, MOEC_E_IO, MOEC_RULE_NONE,
                          "%s: cannot be written: %s", path, strerror(why));
}

static moec_status write_all(int fd, const char *path, const char *data,
                             size_t n, moec_error *err)
{
    while (n > 0) {
        ssize_t k = write(fd, data, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return fail_write(err, path);
        data += k;
        n -= (size_t)k;
    }
    return fsync(fd) == 0 ? MOEC_OK : fail_write(err, path);
}

/* Give the finished file its name. link() never replaces; a file system
 * without links gets the rename, a moment after the look. */
static moec_status publish(const char *temporary, const char *path, bool force,
                           moec_error *err)
{
    struct stat sb;
    if (!force && link(temporary, path) == 0) {
        (void)unlink(temporary);
        return MOEC_OK;
    }
    if (!force && (errno == EEXIST || lstat(path, &sb) == 0))
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "%s exists; --force replaces it", path);
    if (rename(temporary, path) != 0)
        return fail_write(err, path);
    return MOEC_OK;
}

moec_status moec_cli_read_placement_file(const char **path, char **out,
                                         size_t *bytes_out, moec_error *err)
{
    const char *text = *path;
    if ((text[0] != '{' && text[0] != '[') || access(text, F_OK) == 0)
        return moec_cli_read_file(text, MOEC_RULE_P01, MOEC_JSON_BYTES_MAX, out,
                                  bytes_out, err);
    char *copy = strdup(text);
    if (copy == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a placement");
    *path = "inline JSON";
    *out = copy;
    *bytes_out = strlen(copy);
    return MOEC_OK;
}

moec_status moec_cli_write_file(const char *path, const void *data, size_t n,
                                bool force, moec_error *err)
{
    char *temporary = NULL;
    struct stat sb;
    if (moec_cli_is_cut())
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for all of %s", path);
    if (!force && lstat(path, &sb) == 0)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "%s exists; --force replaces it", path);
    if (asprintf(&temporary, "%s.partial-XXXXXX", path) < 0)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a name");
    int fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0) {
        moec_status st = fail_write(err, path);
        free(temporary);
        return st;
    }
    mode_t mask = umask(0);
    (void)umask(mask);
    (void)fchmod(fd, 0666 & ~mask);
    moec_status st = write_all(fd, path, data, n, err);
    if (close(fd) != 0 && st == MOEC_OK)
        st = fail_write(err, path);
    if (st == MOEC_OK)
        st = publish(temporary, path, force, err);
    if (st != MOEC_OK)
        (void)unlink(temporary);
    free(temporary);
    return st;
}
