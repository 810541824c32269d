/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SANDBOX_FILTER_H
#define MOEC_SANDBOX_FILTER_H

/*
 * What this is: the seccomp program of a sandbox, for each architecture that
 *   has one: any of them can be made, and interpreted by a test, on any other.
 * Lifetime: values; the caller owns the instructions.
 * Threads: any.
 * Errors: none.
 */

#include <stdbool.h>
#include <stddef.h>

#include <linux/filter.h>

typedef enum moec_sandbox_arch {
    MOEC_SANDBOX_X86_64 = 0,
    MOEC_SANDBOX_AARCH64 = 1,
} moec_sandbox_arch;

/* A call that is refused. */
typedef struct moec_sandbox_call {
    const char *name;
    int number[2]; /* by architecture; -1: it has none */
    bool network;  /* ... but left to who speaks to a network */
} moec_sandbox_call;

enum { MOEC_SANDBOX_FILTER_MAX = 192 };

/* All of them. */
const moec_sandbox_call *moec_sandbox_calls(size_t *n);

/* Fill `out`; the number of instructions. */
size_t moec_sandbox_filter(struct sock_filter out[MOEC_SANDBOX_FILTER_MAX],
                           moec_sandbox_arch arch, bool network);

#endif
