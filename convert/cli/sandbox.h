/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SANDBOX_H
#define MOEC_SANDBOX_H

/*
 * What this is: before a command reads the first byte of its input, the
 *   process gives up what it does not need: Landlock leaves the paths of the
 *   command line (inputs to read, the place of the output to write), seccomp
 *   takes away new programs and processes, ptrace, sockets, mounts and the
 *   rest of what a converter never calls (sandbox_filter.c). A mistake in a
 *   parser then has little to work with. Never in the library: a server has
 *   its own rules.
 * Lifetime: until the process ends; there is no way back.
 * Threads: one thread at a time, before any other is started.
 * Errors: none. What the kernel does not have is not done, -v says what was.
 *   io_uring does not pass seccomp: on kernels with Landlock's fourth version
 *   (6.7) TCP is closed there too; before, a ring could open a socket.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum moec_sandbox_access {
    MOEC_SANDBOX_READ = 0,  /* the file, or all below the directory */
    MOEC_SANDBOX_WRITE = 1, /* the same, also to make and remove */
} moec_sandbox_access;

typedef struct moec_sandbox_path {
    const char *path;
    moec_sandbox_access access;
} moec_sandbox_path;

typedef struct moec_sandbox_result {
    int landlock; /* its version; 0: not there */
    int seccomp;  /* 1: on */
} moec_sandbox_result;

/* Give everything up but `n` paths, and what any process reads: its own
 * limits, /dev/urandom. Paths that are not there stay unreachable. With
 * `network` it may connect, and read what finds and trusts a host: /etc, /usr
 * and the like. */
moec_sandbox_result moec_sandbox_enter(const moec_sandbox_path *paths, size_t n,
                                       bool network);

#endif
