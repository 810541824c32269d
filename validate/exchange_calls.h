/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_EXCHANGE_CALLS_H
#define MOEC_EXCHANGE_CALLS_H

/*
 * What this is: the collective calls of moec/exchange.h as the library makes
 *   them. All processes make the same ones in the same order.
 * Lifetime: nothing outlives a call.
 * Threads: the one that opened the exchange.
 * Errors: the table's; after one of them every further call is refused (IO).
 */

#include <moec/exchange.h>

#include "base/base.h"

/* Words are 4 bytes; first[p] counts them, first[size] is all of them. */
moec_status moec_exchange_counts(moec_exchange *x, const uint64_t *send,
                                 uint64_t *recv, uint64_t n, moec_error *err);
moec_status moec_exchange_words(moec_exchange *x, const void *send,
                                const uint64_t *send_first, void *recv,
                                const uint64_t *recv_first, moec_error *err);
moec_status moec_exchange_reduce(moec_exchange *x, uint64_t *v, uint64_t n,
                                 moec_reduce op, moec_error *err);
moec_status moec_exchange_gather(moec_exchange *x, const void *send, uint64_t n,
                                 void *recv, const uint64_t *recv_first,
                                 moec_error *err);
/* `n` words of each process: recv[size][n]. */
moec_status moec_exchange_gather_equal(moec_exchange *x, const void *send,
                                       uint64_t n, void *recv, moec_error *err);

#endif
