/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Common tensors once for all processes of a node. They share a memfd: a page
 * of cells, then the tensors. Each process reads the bytes from rank/size to
 * (rank+1)/size of the whole, cut at leaves of tensors, says so in its cell,
 * and waits for the cells of the others. A process that fails says that; of
 * one that died the kernel does.
 *
 * Refuses: processes that want different tensors or come twice, and a memfd
 * that served before.
 */

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "job_parts.h"

enum { CELL_ABSENT = 0, CELL_WORKS = 1, CELL_DONE = 2, CELL_FAILED = 3 };

typedef struct cell {
    _Atomic uint32_t state;
    _Atomic int32_t pid;
} cell;

typedef struct control {
    _Atomic uint64_t table; /* what all want: tensors, sizes, how many */
    cell cells[MOEC_LOCAL_SIZE_MAX];
} control;
_Static_assert(sizeof(control) <= 4096, "cells fill a page");

static uint64_t common_total(const moec_job *j)
{
    return j->common_map_bytes - MOEC_JOB_ALIGN;
}

/* First byte of the share of process `i`, rounded to a leaf of the tensor that
 * begins at `begin`. */
static uint64_t border(const moec_job *j, uint32_t i, uint64_t begin,
                       uint64_t bytes)
{
    uint64_t total = common_total(j), n = j->o.local_size, at;

    /* total * i / n, without overflow */
    at = total / n * i + total % n * i / n;
    if (at <= begin)
        return 0;
    at = (at - begin + MOEC_LEAF_BYTES / 2) / MOEC_LEAF_BYTES * MOEC_LEAF_BYTES;
    return moec_min_u64(at, bytes);
}

void moec_job_common_share(const moec_job *j, const moec_job_tensor *t,
                           uint64_t *from, uint64_t *to)
{
    uint64_t begin = t->arena_off - MOEC_JOB_ALIGN;
    uint64_t bytes = t->w.rows * t->w.row_stride;
    moec_stretch in_one;

    *from = border(j, j->o.local_rank, begin, bytes);
    *to = j->o.local_rank + 1 == j->o.local_size
              ? bytes
              : border(j, j->o.local_rank + 1, begin, bytes);
    if (moec_loading_tensor(&j->ld, t->tensor, &in_one))
        return;
    /* made of slots: by the one that has its first byte */
    if (*from != 0 || *to == 0)
        *from = *to = 0;
    else
        *to = bytes;
}

/* A number that differs where the processes want different things. */
static moec_status table_digest(const moec_job *j, uint64_t *out,
                                moec_error *err)
{
    moec_buf b = {0};
    moec_sha256 sha;
    moec_status st;

    moec_buf_u32(&b, j->o.local_size);
    for (size_t i = 0; i < j->n_tensors; i++) {
        const char *name =
            moec_ckpt_tensor(j->ckpt, j->tensors[i].tensor)->name;
        if (j->tensors[i].placed)
            continue;
        moec_buf_append(&b, name, strlen(name) + 1);
        moec_buf_u64(&b, j->tensors[i].arena_off);
    }
    st = b.oom ? moec_fail_nomem(err, "a table of tensors")
               : moec_sha256_of(b.data, b.len, &sha, err);
    moec_buf_fini(&b);
    if (st == MOEC_OK)
        *out = moec_le64(sha.b) | 1;
    return st;
}

static moec_status enter(moec_job *j, moec_error *err)
{
    control *c = j->common_map;
    cell *mine = &c->cells[j->o.local_rank];
    uint64_t table = 0, was = 0;
    uint32_t absent = CELL_ABSENT;

    MOEC_TRY(table_digest(j, &table, err));
    if (!atomic_compare_exchange_strong(&c->table, &was, table) && was != table)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the processes that share a memfd ask for different "
                         "common tensors, or for different numbers of them");
    if (!atomic_compare_exchange_strong(&mine->state, &absent, CELL_WORKS))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "local rank %" PRIu32 " is there already, or the "
                         "memfd served an earlier load",
                         j->o.local_rank);
    atomic_store(&mine->pid, (int32_t)getpid());
    j->common_entered = true;
    return MOEC_OK;
}

moec_status moec_job_common_map(moec_job *j, moec_error *err)
{
    uint64_t bytes = moec_job_common_bytes(j);
    struct stat st;
    void *map;

    if (fstat(j->o.common_fd, &st) != 0)
        return moec_fail_os(err, errno, "the shared memfd");
    if ((uint64_t)st.st_size < bytes &&
        ftruncate(j->o.common_fd, (off_t)bytes) != 0)
        return moec_fail_os(
            err, errno, "cannot make the shared memfd %" PRIu64 " bytes long",
            bytes);
    map = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
               j->o.common_fd, 0);
    if (map == MAP_FAILED)
        return moec_fail_os(err, errno, "cannot map the shared memfd");
    j->common_map = map;
    j->common_map_bytes = bytes;
    for (size_t i = 0; i < j->n_tensors; i++)
        if (!j->tensors[i].placed)
            j->tensors[i].data = (unsigned char *)map + j->tensors[i].arena_off;
    return enter(j, err);
}

void moec_job_common_failed(moec_job *j)
{
    control *c = j->common_map;

    if (c != NULL && j->common_entered &&
        atomic_load(&c->cells[j->o.local_rank].state) == CELL_WORKS)
        atomic_store(&c->cells[j->o.local_rank].state, CELL_FAILED);
}

static bool is_dead(int32_t pid)
{
    return pid > 0 && kill(pid, 0) != 0 && errno == ESRCH;
}

/* Are all done? */
static moec_status look(moec_job *j, bool *all_out, moec_error *err)
{
    control *c = j->common_map;

    *all_out = true;
    for (uint32_t i = 0; i < j->o.local_size; i++) {
        /* the pid first: who ends well says so before */
        int32_t pid = atomic_load(&c->cells[i].pid);
        bool dead = is_dead(pid);
        uint32_t state = atomic_load(&c->cells[i].state);

        if (state == CELL_DONE)
            continue;
        if (state == CELL_FAILED || dead)
            return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                             "local rank %" PRIu32 " (process %" PRId32
                             ") %s before its part of the common tensors was "
                             "there",
                             i, pid, dead ? "died" : "failed");
        *all_out = false;
    }
    return MOEC_OK;
}

moec_status moec_job_common_join(moec_job *j, moec_error *err)
{
    control *c = j->common_map;
    uint32_t seconds = j->o.peer_seconds != 0 ? j->o.peer_seconds : 600;
    double begin = moec_job_now();
    bool all = false;
    moec_status st;

    if (c == NULL)
        return MOEC_OK;
    atomic_store(&c->cells[j->o.local_rank].state, CELL_DONE);
    for (;;) {
        struct timespec nap = {0, 2000000};

        st = look(j, &all, err);
        if (st == MOEC_OK && !all && atomic_load(&j->cancelled))
            st = moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                           "the load was cancelled");
        if (st == MOEC_OK && !all && moec_job_now() - begin > seconds)
            st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                           "other processes did not bring their part of the "
                           "common tensors within %" PRIu32 " s",
                           seconds);
        if (st != MOEC_OK || all)
            break;
        (void)nanosleep(&nap, NULL);
    }
    (void)pthread_mutex_lock(&j->lock);
    j->t_peers = moec_job_now() - begin;
    (void)pthread_mutex_unlock(&j->lock);
    return st;
}
