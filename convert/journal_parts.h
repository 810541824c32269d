/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_JOURNAL_PARTS_H
#define MOEC_JOURNAL_PARTS_H

/*
 * What this is: the inside of a moec_journal and the numbers of its file,
 *   shared by journal.c, which writes, and journal_read.c.
 */

#include <pthread.h>

#include "journal.h"

#define VERSION      1u
#define BUFFER_BYTES ((size_t)256 << 10)
#define MAGIC        "MOECJNL\1" /* 8 bytes, and a NUL that is not one */

enum {
    BOOT_BYTES = 16,
    HEAD_BYTES = 48,
    RECORD_BYTES = 16, /* before the payload */
    SUM_BYTES = 16,
    RECORD_CELLS_MAX = 1024,
    CELL_BYTES_MAX = 64
};

enum { KIND_CELLS = 1, KIND_MARK = 2, KIND_DOUBT = 3 };

/* What is known of a cell. */
enum { CELL_OPEN = 0, CELL_WRITTEN = 1, CELL_DURABLE = 2 };

struct moec_journal {
    moec_journal_opts opts;
    char new_name[MOEC_JOURNAL_NAME_BYTES_MAX + 8]; /* before its rename */
    uint8_t *found; /* by cell: CELL_* of earlier runs */
    moec_journal_sync_fn sync;
    void *sync_ctx;
    int fd; /* -1: not begun */
    pthread_mutex_t lock;
    /* under the lock */
    unsigned char *buf; /* records behind byte `end` of the file */
    size_t len;
    uint64_t end;
    double flushed, next_mark; /* seconds */
    bool marking;
    bool dir_synced; /* the files' names are durable; of the marking thread */
};

/* The id of this run of the kernel. False, and zeros, where nobody tells. */
bool moec_journal_boot_id(uint8_t out[BOOT_BYTES]);

#endif
