/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_EXCHANGE_H
#define MOEC_EXCHANGE_H

/*
 * What this is: the few collective calls that processes need to validate a
 *   conversion together, one process a rank, and who makes them: a plug-in
 *   (libmoec_mpi.so), or the caller's own communicator.
 * Lifetime: an exchange outlives what it was given to.
 * Threads: one thread at a time, the one that opened it.
 * Errors: NO_DEVICE where there is no plug-in or no MPI, and why; IO where a
 *   collective call failed. Processes leave together: who fails says so in
 *   moec_exchange_agree, and all of them get that failure.
 */

#include <stdint.h>

#include <moec/error.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_exchange moec_exchange;

typedef enum moec_reduce {
    MOEC_REDUCE_SUM = 0,
    MOEC_REDUCE_MIN = 1,
    MOEC_REDUCE_MAX = 2
} moec_reduce;

/* `n` numbers to each process and from each: send[size][n], recv[size][n]. */
typedef moec_status (*moec_all_to_all_fn)(void *ctx, const uint64_t *send,
                                          uint64_t *recv, uint64_t n,
                                          moec_error *err);
/* Words [send_first[p], send_first[p + 1]) of `send` to process p, those of p
 * into [recv_first[p], recv_first[p + 1]) of `recv`. */
typedef moec_status (*moec_all_to_all_v_fn)(void *ctx, const uint32_t *send,
                                            const uint64_t *send_first,
                                            uint32_t *recv,
                                            const uint64_t *recv_first,
                                            moec_error *err);
/* This process's `n` words to all; those of p into [recv_first[p],
 * recv_first[p + 1]) of `recv`. */
typedef moec_status (*moec_all_gather_v_fn)(void *ctx, const uint32_t *send,
                                            uint64_t n, uint32_t *recv,
                                            const uint64_t *recv_first,
                                            moec_error *err);
/* v[n] of all processes, number by number, into v of all of them. */
typedef moec_status (*moec_all_reduce_fn)(void *ctx, uint64_t *v, uint64_t n,
                                          moec_reduce op, moec_error *err);
/* Take the other processes along: they wait for this one in vain. May not
 * return. */
typedef void (*moec_abandon_fn)(void *ctx, int exit_code);
typedef void (*moec_exchange_close_fn)(void *ctx);

#define MOEC_EXCHANGE_ABI 1u

/* What a plug-in, or a caller, fills in. */
typedef struct moec_exchange_table {
    uint32_t struct_bytes; /* sizeof(moec_exchange_table) */
    uint32_t abi;          /* MOEC_EXCHANGE_ABI */
    uint32_t rank, size;   /* this process of all */
    void *ctx;
    moec_all_to_all_fn all_to_all;
    moec_all_to_all_v_fn all_to_all_v;
    moec_all_gather_v_fn all_gather_v;
    moec_all_reduce_fn all_reduce;
    moec_abandon_fn abandon;      /* or NULL */
    moec_exchange_close_fn close; /* or NULL */
} moec_exchange_table;
#define MOEC_EXCHANGE_TABLE_INIT                                               \
  {                                                                            \
    .struct_bytes = sizeof(moec_exchange_table), .abi = MOEC_EXCHANGE_ABI      \
  }

/* The one symbol of a plug-in, of type moec_exchange_plugin_fn. */
#define MOEC_EXCHANGE_PLUGIN_SYMBOL "moec_exchange_plugin"
typedef moec_status (*moec_exchange_plugin_fn)(uint32_t abi,
                                               moec_exchange_table *out,
                                               moec_error *err);

/* Load the plug-in at `path`, or with NULL libmoec_mpi.so beside the library
 * (in moec/), then where it is installed; and start it. On success `*out` is
 * the caller's to close; on failure it is untouched. */
MOEC_API moec_status moec_exchange_open(moec_exchange **out, const char *path,
                                        moec_error *err);
/* The same over a communicator of the caller's; the table is copied. ARG where
 * it is not whole. */
MOEC_API moec_status moec_exchange_wrap(moec_exchange **out,
                                        const moec_exchange_table *table,
                                        moec_error *err);
/* Close; NULL is fine. All processes do. */
MOEC_API void moec_exchange_close(moec_exchange *x);
/* End all processes, where one failed and could not say so to the others. */
MOEC_API void moec_exchange_abandon(moec_exchange *x, int exit_code);

MOEC_API uint32_t moec_exchange_rank(const moec_exchange *x);
MOEC_API uint32_t moec_exchange_size(const moec_exchange *x);

/* Every process comes here with the status of its last step and leaves with
 * the same one: OK where all were, else that of the lowest rank that failed,
 * with its error and its number. */
MOEC_API moec_status moec_exchange_agree(moec_exchange *x, moec_status status,
                                         moec_error *err);
/* 1 where the failure that was returned last is known to all processes. */
MOEC_API int moec_exchange_agreed(const moec_exchange *x);

#ifdef __cplusplus
}
#endif
#endif
