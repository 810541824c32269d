/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PROGRESS_H
#define MOEC_PROGRESS_H

/*
 * What this is: progress of a long command on stderr (a bar, plain lines or
 *   JSON lines), and the two signals that stop one. They belong together
 *   because the library asks both questions through the same callback.
 * Lifetime: caller's storage between _begin and _end.
 * Threads: the callback runs on one thread at a time (the library's promise).
 * Errors: none; progress is never a reason to fail.
 */

#include <signal.h>

#include "cli.h"

typedef struct moec_cli_progress {
    const char *label;
    uint32_t mode; /* MOEC_CHOICE_PROGRESS_*, never AUTO */
    bool drawn;    /* a bar is on the screen */
    double begin, last;
    uint64_t done, total;
} moec_cli_progress;

/* Choose the mode (auto: a bar where stderr is a terminal, else nothing) and
 * catch SIGINT and SIGTERM. */
void moec_cli_progress_begin(moec_cli_progress *p, const moec_cli *cli);

/* A moec_progress_fn: draws now and then; non-zero once a signal came. */
int moec_cli_progress_step(void *ctx, uint64_t done, uint64_t total);

/* Last line, or the bar cleared. */
void moec_cli_progress_end(moec_cli_progress *p);

/* Number of the signal that asked to stop, 0: none. */
extern volatile sig_atomic_t moec_cli_signal;

#endif
