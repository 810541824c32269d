/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One expert at a time, for servers that swap them: a queue by priority and
 * age, and a thread that takes from it. Each read is a small load of its own,
 * through the same engine and the same checks. The thread begins with the
 * first read and ends with the job.
 */

#include <inttypes.h>
#include <string.h>

#include "job_parts.h"

typedef struct wish {
    struct wish *next;
    size_t layer;
    uint32_t expert, row;
    int priority;
    uint64_t ticket;
    moec_expert_fn done;
    void *ctx;
} wish;

struct moec_job_experts {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t come;
    wish *first; /* the next one first */
    bool end;
    uint64_t n_taken;
    moec_engine *engine; /* of the read under way */
    moec_job_tag *tags;
};

/* ------------------------------------------------------------- one read */

static void describe(void *ctx, const moec_piece *piece, char *buf, size_t n)
{
    moec_job *j = ctx;

    moec_job_say(j, &j->expert->tags[piece->tag], buf, n);
}

/* The engine that reads, where cancel finds it; NULL: none. */
static void set_engine(moec_job *j, moec_engine *e)
{
    (void)pthread_mutex_lock(&j->expert->lock);
    j->expert->engine = e;
    if (e != NULL && (j->expert->end || atomic_load(&j->cancelled)))
        moec_engine_cancel(e);
    (void)pthread_mutex_unlock(&j->expert->lock);
}

static moec_status run_engine(moec_job *j, const moec_job_lists *l,
                              moec_error *err)
{
    moec_engine_opts o = moec_job_engine_opts(j);
    moec_engine *e = NULL;
    moec_status st;

    o.describe = describe;
    j->expert->tags = l->tags;
    st = moec_engine_create(&e, j->file, j->n_files, l->pieces.v, l->pieces.n,
                            1, &o, err);
    if (st != MOEC_OK)
        return st;
    set_engine(j, e);
    st = moec_engine_start(e, err);
    if (st == MOEC_OK)
        st = moec_engine_wait(e, err);
    set_engine(j, NULL);
    moec_engine_destroy(e);
    return st;
}

static moec_status read_one(moec_job *j, const wish *w, moec_error *err)
{
    moec_job_lists l = {0};
    moec_status st =
        moec_job_list_unit(j, w->layer, w->expert, w->row, &l, err);

    for (size_t i = 0; st == MOEC_OK && i < l.pieces.n; i++)
        st = moec_job_open_file(j, l.pieces.v[i].file, err);
    if (st == MOEC_OK && l.pieces.n > 0)
        st = run_engine(j, &l, err);
    if (st == MOEC_OK)
        st = moec_slow_blocks(j, l.slow, l.n_slow, NULL, err);
    moec_job_lists_fini(&l);
    return st;
}

/* --------------------------------------------------------------- queue */

static void answer(const wish *w, moec_status st, const moec_error *why)
{
    if (w->done != NULL)
        w->done(w->ctx, w->ticket, st, st == MOEC_OK ? NULL : why);
}

static void drop_all(wish *w)
{
    while (w != NULL) {
        wish *next = w->next;
        moec_error why = MOEC_ERROR_INIT;
        moec_status st = moec_fail(&why, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                                   "the read was cancelled");
        answer(w, st, &why);
        moec_free(w);
        w = next;
    }
}

static void *serve(void *arg)
{
    moec_job *j = arg;
    struct moec_job_experts *x = j->expert;
    wish *rest;

    (void)pthread_setname_np(pthread_self(), "moec/expert");
    (void)pthread_mutex_lock(&x->lock);
    for (;;) {
        moec_error why = MOEC_ERROR_INIT;
        wish *w;

        while (x->first == NULL && !x->end)
            (void)pthread_cond_wait(&x->come, &x->lock);
        if (x->end || atomic_load(&j->cancelled)) {
            rest = x->first;
            x->first = NULL;
            (void)pthread_mutex_unlock(&x->lock);
            drop_all(rest);
            (void)pthread_mutex_lock(&x->lock);
            if (x->end)
                break;
            continue;
        }
        w = x->first;
        x->first = w->next;
        (void)pthread_mutex_unlock(&x->lock);
        answer(w, read_one(j, w, &why), &why);
        moec_free(w);
        (void)pthread_mutex_lock(&x->lock);
    }
    (void)pthread_mutex_unlock(&x->lock);
    return NULL;
}

static void enqueue(struct moec_job_experts *x, wish *w)
{
    wish **at = &x->first;

    while (*at != NULL && (*at)->priority >= w->priority)
        at = &(*at)->next;
    w->next = *at;
    *at = w;
    (void)pthread_cond_signal(&x->come);
}

/* Cancel may look for it at any time. */
static void set_experts(moec_job *j, struct moec_job_experts *x)
{
    (void)pthread_mutex_lock(&j->lock);
    j->expert = x;
    (void)pthread_mutex_unlock(&j->lock);
}

static moec_status begin(moec_job *j, moec_error *err)
{
    struct moec_job_experts *x;
    moec_status st;

    if (!j->planned) { /* no load came before */
        MOEC_TRY(moec_job_choose_ring(j, err));
        MOEC_TRY(moec_job_place_all(j, err));
        MOEC_TRY(moec_job_open_files(j, err));
    }
    x = moec_calloc(1, sizeof(*x));
    if (x == NULL)
        return moec_fail_nomem(err, "a queue of reads");
    (void)pthread_mutex_init(&x->lock, NULL);
    (void)pthread_cond_init(&x->come, NULL);
    set_experts(j, x);
    st = moec_job_spawn(&x->thread, serve, j, err);
    if (st != MOEC_OK) {
        set_experts(j, NULL);
        (void)pthread_cond_destroy(&x->come);
        (void)pthread_mutex_destroy(&x->lock);
        moec_free(x);
    }
    return st;
}

static moec_status check(const moec_job *j, size_t layer, uint32_t expert,
                         uint32_t row, moec_error *err)
{
    moec_topology topo = moec_plan_topology(j->plan);
    uint32_t n_experts = moec_model_facts(moec_plan_model(j->plan))->n_experts;

    if (layer >= j->n_layers || j->layers[layer].group == MOEC_NO_GROUP)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "planned layer %zu is not one of the job's", layer);
    if (expert >= n_experts || row >= topo.n_local)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "expert %" PRIu32 " of %" PRIu32 " into row %" PRIu32
                         " of %" PRIu32,
                         expert, n_experts, row, topo.n_local);
    return MOEC_OK;
}

/* NOLINTNEXTLINE(readability-function-size): what, where to, whom to tell */
moec_status moec_job_read_expert(moec_job *j, size_t layer, uint32_t expert,
                                 uint32_t row, int priority,
                                 moec_expert_fn done, void *ctx,
                                 uint64_t *ticket_out, moec_error *err)
{
    bool idle;
    wish *w;

    MOEC_TRY(moec_job_check_process(j, err));
    MOEC_TRY(check(j, layer, expert, row, err));
    idle = moec_job_state_of(j) == MOEC_JOB_DONE || !j->planned;
    if (!idle || atomic_load(&j->cancelled))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the job is loading, or it failed or was cancelled");
    w = moec_calloc(1, sizeof(*w));
    if (w == NULL)
        return moec_fail_nomem(err, "a read");
    if (j->expert == NULL) {
        moec_status st = begin(j, err);
        if (st != MOEC_OK) {
            moec_free(w);
            return st;
        }
    }
    *w = (wish){.layer = layer,
                .expert = expert,
                .row = row,
                .priority = priority,
                .done = done,
                .ctx = ctx};
    (void)pthread_mutex_lock(&j->expert->lock);
    w->ticket = ++j->expert->n_taken;
    if (ticket_out != NULL)
        *ticket_out = w->ticket;
    enqueue(j->expert, w);
    (void)pthread_mutex_unlock(&j->expert->lock);
    return MOEC_OK;
}

void moec_job_expert_cancel(moec_job *j)
{
    struct moec_job_experts *x;

    (void)pthread_mutex_lock(&j->lock);
    x = j->expert;
    if (x != NULL) {
        (void)pthread_mutex_lock(&x->lock);
        if (x->engine != NULL)
            moec_engine_cancel(x->engine);
        (void)pthread_cond_signal(&x->come);
        (void)pthread_mutex_unlock(&x->lock);
    }
    (void)pthread_mutex_unlock(&j->lock);
}

void moec_job_expert_end(moec_job *j)
{
    struct moec_job_experts *x = j->expert;

    if (x == NULL)
        return;
    (void)pthread_mutex_lock(&x->lock);
    x->end = true;
    (void)pthread_cond_signal(&x->come);
    (void)pthread_mutex_unlock(&x->lock);
    (void)pthread_join(x->thread, NULL);
    (void)pthread_cond_destroy(&x->come);
    (void)pthread_mutex_destroy(&x->lock);
    moec_free(x);
    j->expert = NULL;
}
