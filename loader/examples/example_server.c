/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a server starts: open, check what it was started with against what is
 * there, load one rank with progress, know when each layer is ready.
 *
 *   serve CHECKPOINT|CONVERSION RANK EP
 *
 * Build it against an installed libmoec:
 *   cc example_server.c $(pkg-config --cflags --libs moec)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <moec/moec.h>

typedef struct server {
    moec_ckpt *ckpt;   /* of a published checkpoint */
    moec_model *model; /* of it */
    moec_plan *own_plan;
    moec_conversion *conversion;
    const moec_plan *plan; /* what is loaded */
    void *arena;           /* all tensors of the rank: one region to register */
    double begin, first;
    uint32_t n_ready;
} server;

static double now(void)
{
    struct timespec t;

    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A real server asks its allocator, for pinned or device memory as well. */
static moec_status get_memory(void *ctx, const moec_memory_request *want,
                              void **out, moec_error *err)
{
    server *s = ctx;

    (void)err;
    s->arena = aligned_alloc((size_t)want->alignment, (size_t)want->bytes);
    *out = s->arena; /* NULL: the library says how much it was */
    return MOEC_OK;
}

/* From here on the layer may run, while the others are still read. */
static moec_status layer_ready(void *ctx, uint32_t layer, uint64_t ticket,
                               moec_error *err)
{
    server *s = ctx;

    (void)ticket; /* of a copy to a device */
    (void)err;
    if (layer != MOEC_NO_LAYER && s->n_ready++ == 0)
        s->first = now() - s->begin;
    return MOEC_OK;
}

static int show_progress(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    fprintf(stderr, "\r%3.0f %%",
            total > 0 ? 100.0 * (double)done / (double)total : 100.0);
    return 0; /* anything else cancels */
}

/* A conversion is opened as it is; of anything else a plan is made. */
static moec_status open_source(server *s, const char *path, uint32_t n_ranks,
                               moec_error *err)
{
    moec_layout_want want = MOEC_LAYOUT_WANT_INIT;
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_families *families = NULL;
    moec_error not_converted = MOEC_ERROR_INIT;
    moec_status st;

    if (moec_conversion_open(&s->conversion, path, NULL, &not_converted) ==
        MOEC_OK) {
        want.n_ranks = n_ranks;
        s->plan = moec_layout_plan(moec_conversion_layout(s->conversion));
        return moec_layout_check(s->plan, &want, err);
    }
    o.n_ranks = n_ranks;
    st = moec_families_create(&families, err);
    if (st == MOEC_OK)
        st = moec_ckpt_open(&s->ckpt, path, NULL, err);
    if (st == MOEC_OK)
        st = moec_model_open(&s->model, s->ckpt, families, err);
    if (st == MOEC_OK)
        st = moec_plan_create(&s->own_plan, s->model, &o, err);
    s->plan = s->own_plan;
    moec_families_destroy(families);
    return st;
}

static moec_status load(server *s, uint32_t rank, moec_job_stats *stats,
                        moec_error *err)
{
    moec_job_opts o = MOEC_JOB_OPTS_INIT;
    moec_job *job = NULL;
    moec_status st;

    o.memory = get_memory;
    o.ready = layer_ready;
    o.progress = show_progress;
    o.ctx = s;
    st = moec_job_create(&job, s->plan, s->conversion, rank, &o, err);
    if (st == MOEC_OK)
        st = moec_job_start(job, err);
    if (st == MOEC_OK)
        st = moec_job_wait(job, err);
    if (st == MOEC_OK) /* moec_job_slots_data(): row 0 of each slot tensor */
        moec_job_poll(job, stats);
    fputc('\n', stderr);
    moec_job_destroy(job); /* the tensors stay: they are ours */
    return st;
}

int main(int argc, char **argv)
{
    server s = {.begin = now()};
    moec_error err = MOEC_ERROR_INIT;
    moec_job_stats stats;
    moec_status st;

    if (argc != 4) {
        fprintf(stderr, "usage: serve CHECKPOINT|CONVERSION RANK EP\n");
        return 2;
    }
    st = open_source(&s, argv[1], (uint32_t)strtoul(argv[3], NULL, 10), &err);
    if (st == MOEC_OK)
        st = load(&s, (uint32_t)strtoul(argv[2], NULL, 10), &stats, &err);
    if (st != MOEC_OK)
        fprintf(stderr, "cannot serve: %s\n", err.text);
    else
        printf("%u layers, %.1f MB, %s; first after %.3f s, all after %.3f s\n",
               s.n_ready, (double)stats.bytes_needed / 1e6,
               stats.bytes_verified > 0 ? "verified" : "not verified", s.first,
               now() - s.begin);
    free(s.arena);
    moec_plan_destroy(s.own_plan);
    moec_model_destroy(s.model);
    moec_ckpt_close(s.ckpt);
    moec_conversion_close(s.conversion);
    return st == MOEC_OK ? 0 : 1;
}
