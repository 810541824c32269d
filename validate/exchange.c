/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Processes that work together: the table of calls, from a plug-in or from the
 * caller, and how they leave together. A step that may fail is followed by
 * moec_exchange_agree in every process, so that none waits for one that left;
 * a collective call that failed has broken that order, and nothing is asked of
 * the others any more.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "exchange_calls.h"

#define PLUGIN_NAME "libmoec_mpi.so"

struct moec_exchange {
    moec_exchange_table t;
    bool broken; /* a collective call failed */
    bool agreed; /* the last agreement was a failure */
};

static bool is_whole(const moec_exchange_table *t)
{
    return t->struct_bytes == sizeof(*t) && t->abi == MOEC_EXCHANGE_ABI &&
           t->size != 0 && t->rank < t->size && t->all_to_all != NULL &&
           t->all_to_all_v != NULL && t->all_gather_v != NULL &&
           t->all_reduce != NULL;
}

moec_status moec_exchange_wrap(moec_exchange **out,
                               const moec_exchange_table *table,
                               moec_error *err)
{
    moec_exchange *x;

    if (!is_whole(table))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "an exchange of another version, or a call is "
                         "missing");
    x = moec_calloc(1, sizeof(*x));
    if (x == NULL)
        return moec_fail_nomem(err, "an exchange");
    x->t = *table;
    *out = x;
    return MOEC_OK;
}

/* The plug-in stays loaded: MPI does not survive being unmapped. */
moec_status moec_exchange_open(moec_exchange **out, const char *path,
                               moec_error *err)
{
    moec_exchange_table t = MOEC_EXCHANGE_TABLE_INIT;
    void *handle = moec_plugin_load("MPI", PLUGIN_NAME, path, err);
    moec_exchange_plugin_fn fn;
    void *symbol;
    moec_status st;

    if (handle == NULL)
        return MOEC_E_NO_DEVICE;
    symbol = dlsym(handle, MOEC_EXCHANGE_PLUGIN_SYMBOL);
    /* POSIX's way around data and function pointers being different types. */
    memcpy(&fn, &symbol, sizeof(fn));
    if (symbol == NULL)
        return moec_fail(err, MOEC_E_NO_DEVICE, MOEC_RULE_NONE,
                         "no MPI: '%s' is no plug-in for it",
                         path != NULL ? path : PLUGIN_NAME);
    MOEC_TRY(fn(MOEC_EXCHANGE_ABI, &t, err));
    st = moec_exchange_wrap(out, &t, err);
    if (st != MOEC_OK && t.close != NULL)
        t.close(t.ctx);
    return st;
}

void moec_exchange_close(moec_exchange *x)
{
    if (x == NULL)
        return;
    if (x->t.close != NULL)
        x->t.close(x->t.ctx);
    moec_free(x);
}

void moec_exchange_abandon(moec_exchange *x, int exit_code)
{
    x->broken = true;
    if (x->t.abandon != NULL)
        x->t.abandon(x->t.ctx, exit_code);
}

uint32_t moec_exchange_rank(const moec_exchange *x)
{
    return x->t.rank;
}

uint32_t moec_exchange_size(const moec_exchange *x)
{
    return x->t.size;
}

int moec_exchange_agreed(const moec_exchange *x)
{
    return x->agreed;
}

/* --------------------------------------------------------------- the calls */

static moec_status settle(moec_exchange *x, moec_status st)
{
    x->broken = x->broken || st != MOEC_OK;
    return st;
}

static moec_status refuse(moec_error *err)
{
    return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                     "the processes have lost each other");
}

moec_status moec_exchange_counts(moec_exchange *x, const uint64_t *send,
                                 uint64_t *recv, uint64_t n, moec_error *err)
{
    if (x->broken)
        return refuse(err);
    return settle(x, x->t.all_to_all(x->t.ctx, send, recv, n, err));
}

moec_status moec_exchange_words(moec_exchange *x, const void *send,
                                const uint64_t *send_first, void *recv,
                                const uint64_t *recv_first, moec_error *err)
{
    if (x->broken)
        return refuse(err);
    return settle(x, x->t.all_to_all_v(x->t.ctx, send, send_first, recv,
                                       recv_first, err));
}

moec_status moec_exchange_reduce(moec_exchange *x, uint64_t *v, uint64_t n,
                                 moec_reduce op, moec_error *err)
{
    if (x->broken)
        return refuse(err);
    return settle(x, x->t.all_reduce(x->t.ctx, v, n, op, err));
}

moec_status moec_exchange_gather(moec_exchange *x, const void *send, uint64_t n,
                                 void *recv, const uint64_t *recv_first,
                                 moec_error *err)
{
    if (x->broken)
        return refuse(err);
    return settle(x,
                  x->t.all_gather_v(x->t.ctx, send, n, recv, recv_first, err));
}

moec_status moec_exchange_gather_equal(moec_exchange *x, const void *send,
                                       uint64_t n, void *recv, moec_error *err)
{
    uint64_t *first = moec_calloc((size_t)x->t.size + 1, sizeof(*first));
    moec_status st;

    if (first == NULL) {
        x->broken = true; /* the others are in the call already */
        return moec_fail_nomem(err, "places of what is gathered");
    }
    for (uint64_t p = 0; p <= x->t.size; p++)
        first[p] = p * n;
    st = moec_exchange_gather(x, send, n, recv, first, err);
    moec_free(first);
    return st;
}

/* ---------------------------------------------------------- leaving together */

/* The lowest rank's failure, to all: its moec_error, word by word. */
static moec_status take_error(moec_exchange *x, moec_status status,
                              uint64_t n_failed, moec_error *err)
{
    enum { WORDS = sizeof(moec_error) / sizeof(uint32_t) };
    moec_error mine = MOEC_ERROR_INIT;
    moec_error *all = moec_calloc(x->t.size, sizeof(*all));
    moec_status st;
    size_t at;

    if (all == NULL) {
        x->broken = true;
        return status != MOEC_OK
                   ? status
                   : moec_fail_nomem(err, "errors of all processes");
    }
    if (status != MOEC_OK && err != NULL)
        mine = *err;
    mine.status = status;
    st = moec_exchange_gather_equal(x, &mine, WORDS, all, err);
    for (uint32_t p = 0; st == MOEC_OK && p < x->t.size; p++) {
        if (all[p].status == MOEC_OK)
            continue;
        st = all[p].status;
        x->agreed = true;
        if (err == NULL)
            break;
        *err = all[p];
        err->text[sizeof(err->text) - 1] = '\0';
        at = strlen(err->text);
        if (n_failed != x->t.size)
            (void)snprintf(err->text + at, sizeof(err->text) - at, " (rank %u)",
                           (unsigned)p);
    }
    moec_free(all);
    return st;
}

moec_status moec_exchange_agree(moec_exchange *x, moec_status status,
                                moec_error *err)
{
    uint64_t n_failed = status != MOEC_OK;

    x->agreed = false;
    if (x->broken)
        return status != MOEC_OK ? status : refuse(err);
    MOEC_TRY(moec_exchange_reduce(x, &n_failed, 1, MOEC_REDUCE_SUM, err));
    return n_failed == 0 ? MOEC_OK : take_error(x, status, n_failed, err);
}
