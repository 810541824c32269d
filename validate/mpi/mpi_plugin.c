/* SPDX-License-Identifier: Apache-2.0 */

/*
 * libmoec_mpi.so: moec/exchange.h's table over MPI_COMM_WORLD. Counts are in
 * words of 4 bytes, because MPI's are int; a call that does not fit into them
 * is refused. Uses nothing of libmoec but the header.
 */

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <mpi.h>

#include <moec/exchange.h>

/* The one symbol: a moec_exchange_plugin_fn. */
MOEC_API moec_status moec_exchange_plugin(uint32_t abi,
                                          moec_exchange_table *out,
                                          moec_error *err);

typedef struct world {
    int size;
    int *counts; /* [4 * size]: counts and places of both directions */
} world;

static moec_status fail(moec_error *err, moec_status status, const char *fmt,
                        ...) MOEC_PRINTF(3, 4);
static moec_status fail(moec_error *err, moec_status status, const char *fmt,
                        ...)
{
    va_list ap;

    if (err == NULL || err->status != MOEC_OK)
        return status;
    err->status = status;
    va_start(ap, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
    return status;
}

static moec_status settle(int rc, const char *call, moec_error *err)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;

    if (rc == MPI_SUCCESS)
        return MOEC_OK;
    (void)MPI_Error_string(rc, text, &n);
    return fail(err, MOEC_E_IO, "%s: %.400s", call, text);
}

static moec_status too_much(moec_error *err)
{
    return fail(err, MOEC_E_UNSUPPORTED,
                "more than 8 GiB for one MPI call: fewer tokens, please");
}

/* first[0..size] as counts and places. */
static int as_ints(const world *w, const uint64_t *first, int *counts,
                   int *places)
{
    for (int p = 0; p < w->size; p++) {
        uint64_t n = first[p + 1] - first[p];

        if (first[p] > INT_MAX || n > INT_MAX)
            return 0;
        counts[p] = (int)n;
        places[p] = (int)first[p];
    }
    return 1;
}

static moec_status all_to_all(void *ctx, const uint64_t *send, uint64_t *recv,
                              uint64_t n, moec_error *err)
{
    (void)ctx;
    if (n > INT_MAX)
        return too_much(err);
    return settle(MPI_Alltoall(send, (int)n, MPI_UINT64_T, recv, (int)n,
                               MPI_UINT64_T, MPI_COMM_WORLD),
                  "MPI_Alltoall", err);
}

static moec_status all_to_all_v(void *ctx, const uint32_t *send,
                                const uint64_t *send_first, uint32_t *recv,
                                const uint64_t *recv_first, moec_error *err)
{
    const world *w = ctx;
    int *c = w->counts, n = w->size;

    if (!as_ints(w, send_first, c, c + n) ||
        !as_ints(w, recv_first, c + 2 * n, c + 3 * n))
        return too_much(err);
    return settle(MPI_Alltoallv(send, c, c + n, MPI_UINT32_T, recv, c + 2 * n,
                                c + 3 * n, MPI_UINT32_T, MPI_COMM_WORLD),
                  "MPI_Alltoallv", err);
}

static moec_status all_gather_v(void *ctx, const uint32_t *send, uint64_t n,
                                uint32_t *recv, const uint64_t *recv_first,
                                moec_error *err)
{
    const world *w = ctx;
    int *c = w->counts;

    if (n > INT_MAX || !as_ints(w, recv_first, c, c + w->size))
        return too_much(err);
    return settle(MPI_Allgatherv(send, (int)n, MPI_UINT32_T, recv, c,
                                 c + w->size, MPI_UINT32_T, MPI_COMM_WORLD),
                  "MPI_Allgatherv", err);
}

static moec_status all_reduce(void *ctx, uint64_t *v, uint64_t n,
                              moec_reduce op, moec_error *err)
{
    MPI_Op how = MPI_SUM;

    (void)ctx;
    if (n > INT_MAX)
        return too_much(err);
    switch (op) {
    case MOEC_REDUCE_SUM:
        break;
    case MOEC_REDUCE_MIN:
        how = MPI_MIN;
        break;
    case MOEC_REDUCE_MAX:
        how = MPI_MAX;
        break;
    }
    return settle(MPI_Allreduce(MPI_IN_PLACE, v, (int)n, MPI_UINT64_T, how,
                                MPI_COMM_WORLD),
                  "MPI_Allreduce", err);
}

static void abandon(void *ctx, int exit_code)
{
    (void)ctx;
    (void)MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static void finish(void *ctx)
{
    world *w = ctx;

    (void)MPI_Finalize();
    free(w->counts);
    free(w);
}

moec_status moec_exchange_plugin(uint32_t abi, moec_exchange_table *out,
                                 moec_error *err)
{
    world *w;
    int began = 0, ended = 0, given, rank = 0;

    if (abi != MOEC_EXCHANGE_ABI || out->struct_bytes != sizeof(*out))
        return fail(err, MOEC_E_NO_DEVICE,
                    "no MPI: the plug-in is of another version than this "
                    "libmoec");
    (void)MPI_Initialized(&began);
    (void)MPI_Finalized(&ended);
    if (began || ended)
        return fail(err, MOEC_E_NO_DEVICE,
                    "no MPI: it was started in this process before");
    w = calloc(1, sizeof(*w));
    if (w == NULL)
        return fail(err, MOEC_E_NOMEM, "no memory for MPI");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &given) !=
        MPI_SUCCESS) {
        free(w);
        return fail(err, MOEC_E_NO_DEVICE, "no MPI: MPI_Init_thread failed");
    }
    (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_size(MPI_COMM_WORLD, &w->size);
    w->counts = calloc((size_t)w->size * 4, sizeof(*w->counts));
    if (w->counts == NULL) {
        finish(w);
        return fail(err, MOEC_E_NOMEM, "no memory for MPI");
    }
    out->rank = (uint32_t)rank;
    out->size = (uint32_t)w->size;
    out->ctx = w;
    out->all_to_all = all_to_all;
    out->all_to_all_v = all_to_all_v;
    out->all_gather_v = all_gather_v;
    out->all_reduce = all_reduce;
    out->abandon = abandon;
    out->close = finish;
    return MOEC_OK;
}
