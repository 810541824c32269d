/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The life of a job: made from a proved plan, started, waited for, polled,
 * cancelled, destroyed. One thread of its own ("moec/job") waits for the
 * engine, so that poll tells the end without anybody waiting.
 *
 * Refuses: plans whose proof has findings, a source that does not hold what
 * the plan wants, caps that are too small, and any call after a fork: threads
 * and locks of the parent are not there.
 */

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "ckpt.h"
#include "job_parts.h"

double moec_job_now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

moec_status moec_job_check_process(const moec_job *j, moec_error *err)
{
    if (j->pid == getpid())
        return MOEC_OK;
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "the job was made by process %ld before a fork: its "
                     "threads are not here",
                     (long)j->pid);
}

uint32_t moec_job_threads(const moec_job *j)
{
    if (j->o.n_threads != 0)
        return j->o.n_threads;
    return (uint32_t)moec_min_u64(moec_cpu_count(), MOEC_JOB_THREADS);
}

/* ----------------------------------------------------------------- create */

static moec_status check_opts(const moec_job_opts *opts, moec_job_opts *out,
                              moec_error *err)
{
    static const moec_job_opts defaults = MOEC_JOB_OPTS_INIT;

    *out = defaults;
    if (opts == NULL)
        return MOEC_OK;
    if (opts->struct_bytes < 2 * sizeof(uint32_t))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_job_opts.struct_bytes is %u: use "
                         "MOEC_JOB_OPTS_INIT",
                         opts->struct_bytes);
    /* Callers of an older library have a shorter struct. */
    memcpy(out, opts,
           opts->struct_bytes < sizeof(*out) ? opts->struct_bytes
                                             : sizeof(*out));
    if (out->local_size > MOEC_LOCAL_SIZE_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%" PRIu32 " processes of a node, at most %u",
                         out->local_size, MOEC_LOCAL_SIZE_MAX);
    if (out->local_size > 1 && out->local_rank >= out->local_size)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "local rank %" PRIu32 " of %" PRIu32, out->local_rank,
                         out->local_size);
    return MOEC_OK;
}

static moec_status prove(const moec_plan *plan, moec_error *err)
{
    moec_report *r = NULL;
    moec_status st = moec_plan_prove(&r, plan, err);

    for (size_t i = 0; st == MOEC_OK && i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);
        if (f->severity == MOEC_SEVERITY_ERROR)
            st = moec_fail(err, MOEC_E_MAPPING, f->rule,
                           "the plan is not proved: %s", f->message);
    }
    moec_report_destroy(r);
    return st;
}

/* The chain of sign.h: key, statement, manifest.json, slots.bin, leaves. */
static moec_status check_signature(moec_job *j, const moec_conversion *c,
                                   moec_error *err)
{
    uint8_t sha256[32];
    uint64_t bytes;

    if (j->o.signature == NULL)
        return MOEC_OK;
    if (c == NULL)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "a signature is of whole files: only a converted "
                         "checkpoint is checked against it while loading");
    bytes = moec_conversion_manifest_digest(c, sha256);
    j->o.verify = MOEC_LOAD_VERIFY_SHA256;
    return moec_signature_check_digest(j->o.signature, MOEC_MANIFEST_NAME,
                                       bytes, sha256, err);
}

static moec_status choose_verify(moec_job *j, moec_error *err)
{
    switch (j->o.verify) {
    case MOEC_LOAD_VERIFY_DEFAULT:
        j->verify = j->files != NULL ? MOEC_ENGINE_XXH3 : MOEC_ENGINE_NONE;
        break;
    case MOEC_LOAD_VERIFY_NONE:
        j->verify = MOEC_ENGINE_NONE;
        break;
    case MOEC_LOAD_VERIFY_XXH3:
        j->verify = MOEC_ENGINE_XXH3;
        break;
    case MOEC_LOAD_VERIFY_SHA256:
        j->verify = MOEC_ENGINE_SHA256;
        break;
    }
    if (j->files == NULL && j->verify != MOEC_ENGINE_NONE)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "digests of a published checkpoint are of whole "
                         "files, a rank reads ranges: convert it, and loads "
                         "are verified");
    return MOEC_OK;
}

/* Which layers, in which order, and the groups of the engine. */
static moec_status choose_layers(moec_job *j, moec_error *err)
{
    size_t n = moec_plan_n_layers(j->plan);
    size_t n_order = j->o.layers != NULL ? j->o.n_layers : n;

    j->layers = moec_calloc(n + 1, sizeof(*j->layers));
    j->order = moec_calloc(n_order + 1, sizeof(*j->order));
    if (j->layers == NULL || j->order == NULL)
        return moec_fail_nomem(err, "layers of a job");
    j->n_layers = n;
    for (size_t i = 0; i < n; i++)
        j->layers[i].group = MOEC_NO_GROUP;
    j->common_group = j->o.common_last ? (uint32_t)n_order : 0;
    j->n_groups = (uint32_t)n_order + 1;
    for (size_t i = 0; i < n_order; i++) {
        uint32_t layer = j->o.layers != NULL ? j->o.layers[i] : (uint32_t)i;
        if (layer >= n || j->layers[layer].group != MOEC_NO_GROUP)
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "layers[%zu] is %" PRIu32 ": %s", i, layer,
                             layer >= n ? "the plan has no such layer"
                                        : "it is there twice");
        j->layers[layer].group = (uint32_t)i + (j->o.common_last ? 0 : 1);
        j->order[i] = layer;
    }
    j->n_order = (uint32_t)n_order;
    j->o.layers = NULL; /* the caller's may go */
    return MOEC_OK;
}

/* Dense places for all slot tensors of all layers: read_expert may want one
 * that the load leaves out. */
static moec_status choose_windows(moec_job *j, moec_error *err)
{
    for (size_t i = 0; i < j->n_layers; i++) {
        moec_job_layer *y = &j->layers[i];

        y->n = moec_plan_n_slot_tensors(j->plan, i);
        y->slots = moec_calloc(y->n + 1, sizeof(*y->slots));
        if (y->slots == NULL)
            return moec_fail_nomem(err, "slot tensors of a job");
        for (size_t t = 0; t < y->n; t++) {
            moec_job_slots *s = &y->slots[t];
            MOEC_TRY(moec_loading_window(&j->ld, i, t, &s->w, err));
            s->slot_stride = s->extent = s->w.bytes;
            s->n_slots = moec_plan_slot_tensor(j->plan, i, t)->shape[0];
            s->skipped = y->group == MOEC_NO_GROUP;
        }
    }
    return MOEC_OK;
}

static moec_status ask_all_common(moec_job *j, moec_error *err)
{
    for (size_t i = 0; i < moec_ckpt_n_tensors(j->ckpt); i++)
        if (moec_plan_fate(j->plan, i) == MOEC_FATE_COMMON)
            MOEC_TRY(moec_job_place_tensor(j, i, NULL, err));
    return MOEC_OK;
}

/* The conversion's own plan; where its shared experts are in a file of their
 * own, the same with rows for them, which are filled from there. */
static moec_status choose_plan(moec_job *j, moec_error *err)
{
    const moec_plan *old = moec_layout_plan(j->ld.old);
    moec_plan_opts o = *moec_plan_options(old);

    j->plan = old;
    if (o.by_expert || !o.shared_store_common ||
        moec_plan_topology(old).n_shared_slots == 0)
        return MOEC_OK;
    o.shared_store_common = 0;
    o.placement = moec_plan_placement(old); /* with its empty slots */
    o.n_redundant = 0;
    MOEC_TRY(moec_plan_create(&j->own_plan, moec_plan_model(old), &o, err));
    j->plan = j->own_plan;
    return MOEC_OK;
}

static moec_status set_up(moec_job *j, const moec_conversion *conversion,
                          uint32_t rank, moec_error *err)
{
    MOEC_TRY(moec_job_take_sink(j, err));
    if (conversion != NULL) {
        j->files = moec_conversion_files(conversion);
        j->ld.old = moec_conversion_layout(conversion);
        j->ld.slots = &j->files->slots;
        if (j->plan == NULL)
            MOEC_TRY(choose_plan(j, err));
    }
    if (j->plan == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a job needs a plan or a conversion");
    j->ckpt = moec_model_ckpt(moec_plan_model(j->plan));
    j->ld.plan = j->plan;
    j->ld.rank = rank;
    j->ld.tp_rank = j->o.tp_rank;
    j->ld.tp_size = j->o.tp_size == 0 ? 1 : j->o.tp_size;
    MOEC_TRY(check_signature(j, conversion, err));
    MOEC_TRY(choose_verify(j, err));
    j->ld.verify = j->verify != MOEC_ENGINE_NONE;
    MOEC_TRY(moec_loading_check(&j->ld, err));
    MOEC_TRY(prove(j->plan, err));
    MOEC_TRY(moec_requant_create(&j->requant, j->plan, err));
    MOEC_TRY(choose_layers(j, err));
    MOEC_TRY(choose_windows(j, err));
    return j->o.common_arena ? ask_all_common(j, err) : MOEC_OK;
}

moec_status moec_job_create(moec_job **out, const moec_plan *plan,
                            const moec_conversion *conversion, uint32_t rank,
                            const moec_job_opts *opts, moec_error *err)
{
    moec_job_opts o;
    moec_job *j;
    moec_status st;

    MOEC_TRY(check_opts(opts, &o, err));
    j = moec_calloc(1, sizeof(*j));
    if (j == NULL)
        return moec_fail_nomem(err, "a job");
    j->pid = getpid();
    j->o = o;
    j->plan = plan;
    (void)pthread_mutex_init(&j->lock, NULL);
    (void)pthread_mutex_init(&j->sink_lock, NULL);
    (void)pthread_mutex_init(&j->file_lock, NULL);
    (void)pthread_cond_init(&j->changed, NULL);
    st = set_up(j, conversion, rank, err);
    if (st != MOEC_OK) {
        moec_job_destroy(j);
        return st;
    }
    *out = j;
    return MOEC_OK;
}

const moec_plan *moec_job_plan(const moec_job *j)
{
    return j->plan;
}

/* ------------------------------------------------------------------- run */

moec_status moec_job_end_thread(moec_job *j, moec_status st,
                                const moec_error *why)
{
    (void)pthread_mutex_lock(&j->lock);
    j->status = st;
    if (st != MOEC_OK)
        j->error = *why;
    j->t_end = moec_job_now();
    j->state = st == MOEC_OK ? MOEC_JOB_DONE : MOEC_JOB_FAILED;
    (void)pthread_cond_broadcast(&j->changed);
    (void)pthread_mutex_unlock(&j->lock);
    return st;
}

static void *run(void *arg)
{
    moec_job *j = arg;
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    (void)pthread_setname_np(pthread_self(), "moec/job");
    st = j->diff != NULL ? moec_job_make_moves(j, &why) : MOEC_OK;
    if (st == MOEC_OK && j->diff != NULL)
        st = moec_engine_start(j->engine, &why);
    if (st == MOEC_OK)
        st = moec_engine_wait(j->engine, &why);
    /* the engine looks at files again, not at a caller's source */
    if (st == MOEC_OK)
        st = moec_job_look_again(j, &why);
    if (st != MOEC_OK)
        moec_job_common_failed(j);
    (void)moec_job_end_thread(j, st, &why);
    return NULL;
}

/* The job's own thread takes no signals of the server. */
moec_status moec_job_spawn(pthread_t *out, void *(*fn)(void *), void *arg,
                           moec_error *err)
{
    sigset_t all, before;
    int rc;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(out, NULL, fn, arg);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        return MOEC_OK;
    return moec_fail_os(err, rc, "cannot start a thread of the job");
}

static moec_status on_ready(void *ctx, uint32_t group, uint64_t ticket,
                            moec_error *err)
{
    moec_job *j = ctx;
    bool common = group == j->common_group;
    uint32_t layer = MOEC_NO_LAYER;

    if (common && j->n_tensors == 0)
        return MOEC_OK;
    if (!common)
        layer = j->order[group - (j->o.common_last ? 0 : 1)];
    MOEC_TRY(moec_slow_group(j, group, &ticket, err));
    if (common)
        MOEC_TRY(moec_job_common_join(j, err));
    if (!common) {
        (void)pthread_mutex_lock(&j->lock);
        j->layers[layer].ready = true;
        j->n_ready++;
        if (j->n_ready == 1)
            j->t_first = moec_job_now();
        (void)pthread_mutex_unlock(&j->lock);
    }
    if (j->o.ready == NULL)
        return MOEC_OK;
    return j->o.ready(j->o.ctx, layer, ticket, err);
}

static moec_status prepare(moec_job *j, moec_error *err)
{
    moec_engine_opts e = moec_job_engine_opts(j);
    moec_engine *engine = NULL;

    e.ready = on_ready;
    e.describe = moec_job_describe;
    MOEC_TRY(moec_job_place_all(j, err));
    if (j->diff != NULL)
        MOEC_TRY(moec_job_list_diff(j, err));
    else
        MOEC_TRY(moec_job_list(j, err));
    MOEC_TRY(moec_job_open_files(j, err));
    MOEC_TRY(moec_engine_create(&engine, j->file, j->n_files, j->lists.pieces.v,
                                j->lists.pieces.n, j->n_groups, &e, err));
    moec_piece_list_fini(&j->lists.pieces); /* the engine has its own */
    (void)pthread_mutex_lock(&j->lock);
    j->engine = engine;
    if (atomic_load(&j->cancelled)) /* already */
        moec_engine_cancel(engine);
    (void)pthread_mutex_unlock(&j->lock);
    return MOEC_OK;
}

moec_job_state moec_job_state_of(moec_job *j)
{
    moec_job_state s;

    (void)pthread_mutex_lock(&j->lock);
    s = j->state;
    (void)pthread_mutex_unlock(&j->lock);
    return s;
}

/* From here on poll looks at the engine. */
static void set_running(moec_job *j, double t_begin)
{
    (void)pthread_mutex_lock(&j->lock);
    j->t_begin = t_begin;
    j->t_planned = moec_job_now();
    j->state = MOEC_JOB_RUNNING;
    (void)pthread_mutex_unlock(&j->lock);
}

moec_status moec_job_start(moec_job *j, moec_error *err)
{
    double t_begin = moec_job_now();
    moec_status st;

    MOEC_TRY(moec_job_check_process(j, err));
    if (j->planned || j->expert != NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the job was started before");
    MOEC_TRY(moec_job_choose_ring(j, err));
    j->planned = true;
    if (j->files == NULL)
        MOEC_TRY(moec_ckpt_check_unchanged(j->ckpt, err));
    MOEC_TRY(prepare(j, err));
    if (j->diff == NULL)
        MOEC_TRY(moec_engine_start(j->engine, err));
    set_running(j, t_begin);
    st = moec_job_spawn(&j->thread, run, j, err);
    if (st != MOEC_OK) {
        moec_error ignored = MOEC_ERROR_INIT;
        moec_job_cancel(j);
        if (j->diff == NULL)
            (void)moec_engine_wait(j->engine, &ignored);
        return moec_job_end_thread(j, st, err != NULL ? err : &ignored);
    }
    j->has_thread = true;
    return MOEC_OK;
}

static void add_ms(struct timespec *t, long ms)
{
    t->tv_nsec += ms * 1000000;
    if (t->tv_nsec >= 1000000000) {
        t->tv_sec++;
        t->tv_nsec -= 1000000000;
    }
}

/* Wait for the end, or a moment for the next look at the progress. */
static bool wait_a_moment(moec_job *j)
{
    struct timespec until;
    bool over;

    (void)clock_gettime(CLOCK_REALTIME, &until);
    add_ms(&until, 50);
    (void)pthread_mutex_lock(&j->lock);
    if (j->state == MOEC_JOB_RUNNING)
        (void)pthread_cond_timedwait(&j->changed, &j->lock, &until);
    over = j->state != MOEC_JOB_RUNNING;
    (void)pthread_mutex_unlock(&j->lock);
    return over;
}

static void tell_progress(moec_job *j)
{
    moec_job_stats s;

    if (j->o.progress == NULL)
        return;
    moec_job_poll(j, &s);
    if (j->o.progress(j->o.ctx, s.bytes_done, s.bytes_needed) != 0)
        moec_job_cancel(j);
}

moec_status moec_job_wait(moec_job *j, moec_error *err)
{
    MOEC_TRY(moec_job_check_process(j, err));
    if (moec_job_state_of(j) == MOEC_JOB_CREATED)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the job was not started");
    do
        tell_progress(j);
    while (!wait_a_moment(j));
    if (j->has_thread)
        (void)pthread_join(j->thread, NULL);
    j->has_thread = false;
    tell_progress(j);
    if (j->status != MOEC_OK && err != NULL && err->status == MOEC_OK)
        *err = j->error;
    return j->status;
}

void moec_job_cancel(moec_job *j)
{
    if (j->pid != getpid())
        return;
    atomic_store(&j->cancelled, true);
    (void)pthread_mutex_lock(&j->lock);
    if (j->engine != NULL)
        moec_engine_cancel(j->engine);
    (void)pthread_mutex_unlock(&j->lock);
    moec_job_expert_cancel(j);
}

void moec_job_poll(const moec_job *job, moec_job_stats *out)
{
    moec_job *j = (moec_job *)(uintptr_t)job; /* its lock */
    moec_engine_stats e = {0};
    moec_job_stats s = {.struct_bytes = sizeof(s)};

    if (j->pid != getpid()) { /* who held the lock is not here */
        s.state = MOEC_JOB_FAILED;
        *out = s;
        return;
    }
    (void)pthread_mutex_lock(&j->lock);
    s.state = j->state;
    s.n_layers = j->n_order;
    s.n_layers_ready = j->n_ready;
    if (j->state != MOEC_JOB_CREATED) {
        double end = j->t_end > 0 ? j->t_end : moec_job_now();
        moec_engine_poll(j->engine, &e);
        s.seconds = end - j->t_begin;
        s.seconds_plan = j->t_planned - j->t_begin;
        if (j->t_first > 0)
            s.seconds_first = j->t_first - j->t_begin;
        s.seconds_peers = j->t_peers;
    }
    (void)pthread_mutex_unlock(&j->lock);
    s.bytes_needed = e.bytes_needed + atomic_load(&j->slow_needed);
    s.bytes_done = e.bytes_done + atomic_load(&j->slow_done);
    s.bytes_read = e.bytes_read + atomic_load(&j->slow_read);
    s.bytes_cached = e.bytes_cached;
    s.bytes_verified = e.bytes_verified + atomic_load(&j->slow_verified);
    s.n_requests = e.n_requests;
    s.n_retries = e.n_retries;
    s.n_ring_waits = e.n_ring_waits;
    s.uses_uring = e.uses_uring;
    s.uses_direct = e.uses_direct;
    s.seconds_open = e.seconds_open;
    s.seconds_digest = e.seconds_digest;
    s.bytes_by_reader = e.bytes_by_reader;
    s.n_reader_failed = e.n_reader_failed;
    *out = s;
}

/* --------------------------------------------------------------- destroy */

void moec_job_destroy(moec_job *j)
{
    bool here;

    if (j == NULL)
        return;
    here = j->pid == getpid();
    if (here) { /* in a child of a fork there is nobody to wait for */
        moec_job_cancel(j);
        moec_job_expert_end(j);
        if (j->has_thread)
            (void)pthread_join(j->thread, NULL);
        moec_engine_destroy(j->engine);
        if (j->state == MOEC_JOB_CREATED)
            moec_job_common_failed(j);
        (void)pthread_cond_destroy(&j->changed);
        (void)pthread_mutex_destroy(&j->lock);
        (void)pthread_mutex_destroy(&j->sink_lock);
        (void)pthread_mutex_destroy(&j->file_lock);
        moec_job_leave_sink(j);
    }
    moec_free(j->regions);
    if (j->common_map != NULL)
        (void)munmap(j->common_map, (size_t)j->common_map_bytes);
    moec_job_close_files(j);
    moec_piece_list_fini(&j->lists.pieces);
    moec_free(j->lists.tags);
    moec_free(j->lists.slow);
    for (size_t i = 0; i < j->n_layers; i++)
        moec_free(j->layers[i].slots);
    moec_free(j->layers);
    moec_free(j->order);
    moec_free(j->tensors);
    moec_requant_destroy(j->requant);
    moec_plan_destroy(j->own_plan);
    if (j->o.sink == NULL)
        moec_free(j->bounce);
    moec_free(j);
}
