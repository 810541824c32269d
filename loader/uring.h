/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_URING_H
#define MOEC_URING_H

/*
 * What this is: the little of io_uring that reading needs, by the kernel's own
 *   calls: no library, and a program without it where the kernel forbids it.
 * Threads: one ring, one thread, from open to close.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct moec_uring {
    int fd; /* -1: none */
    uint32_t entries;
    uint32_t n_queued; /* not handed to the kernel yet */
    bool fixed;        /* has a table of registered buffers */
    uint32_t *sq_tail, *sq_mask, *sq_array;
    uint32_t *cq_head, *cq_tail, *cq_mask;
    void *sqes, *cqes;
    void *ring_map;
    size_t ring_bytes, sqes_bytes;
} moec_uring;

/* Open a ring of `entries`. False where the kernel has none, forbids it (a
 * container's filter) or lacks plain reads: not an error, read otherwise. */
bool moec_uring_open(moec_uring *u, uint32_t entries);
void moec_uring_close(moec_uring *u);

/* Make room to register `n` buffers. Saves pinning their pages for each read;
 * refused (locked memory is limited), reads work without. */
void moec_uring_table(moec_uring *u, uint32_t n);
/* Register buffer `i`. False: read into it as into any other memory. */
bool moec_uring_register(moec_uring *u, uint32_t i, void *p, size_t bytes);

#define MOEC_URING_NO_BUFFER UINT32_MAX
/* Queue a read; at most `entries` at a time between queue and moec_uring_next.
 * `buffer` is the registered one that `to` lies in, or none. */
void moec_uring_read(moec_uring *u, int fd, uint64_t off, void *to, uint32_t n,
                     uint32_t buffer, uint64_t tag);
/* Hand over what is queued and, if `wait`, wait until one read is done. Returns
 * 0 or an errno: nothing more can be expected of this ring. */
int moec_uring_enter(moec_uring *u, bool wait);
/* Take a finished read: *res_out as of pread, or -errno. False: none left. */
bool moec_uring_next(moec_uring *u, uint64_t *tag_out, int *res_out);

#endif
