/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_FUZZ_DIR_H
#define MOEC_TESTS_FUZZ_DIR_H

/*
 * A directory of the process's own for targets whose reader wants a file: in
 * memory where the machine has that, removed at exit.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char fuzz_path[64];
static int fuzz_fd = -1;

static inline void fuzz_dir_remove(void)
{
    static const char *const names[] = {"f", "f.new"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        (void)unlinkat(fuzz_fd, names[i], 0);
    (void)rmdir(fuzz_path);
}

/* Descriptor of the directory. */
static inline int fuzz_dir(void)
{
    static const char *const bases[] = {"/dev/shm", P_tmpdir};

    for (size_t i = 0; fuzz_fd < 0 && i < 2; i++) {
        (void)snprintf(fuzz_path, sizeof(fuzz_path), "%s/moec-fuzz-XXXXXX",
                       bases[i]);
        if (mkdtemp(fuzz_path) != NULL)
            fuzz_fd = open(fuzz_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fuzz_fd >= 0)
            (void)atexit(fuzz_dir_remove);
    }
    if (fuzz_fd < 0)
        abort();
    return fuzz_fd;
}

/* Write file "f"; returns its path. */
static inline const char *fuzz_file(const void *data, size_t n)
{
    static char path[80];
    int fd =
        openat(fuzz_dir(), "f", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd < 0 || write(fd, data, n) != (ssize_t)n || close(fd) != 0)
        abort();
    (void)snprintf(path, sizeof(path), "%s/f", fuzz_path);
    return path;
}

#endif
