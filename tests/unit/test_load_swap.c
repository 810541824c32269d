/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs after the first load: one expert at a time, a re-placement in memory;
 * several processes of a node, forks; what a server asks before; and memory
 * that is refused at every allocation. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jansson.h>

#include "base/base.h"
#include "late_sink.h"
#include "load_case.h"
#include "plan_fixture.h"

static load_fixture t;

static int set_up(void **state)
{
    (void)state;
    load_fixture_open(&t);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    load_fixture_close(&t);
    return 0;
}

static uint32_t n_experts(void)
{
    return moec_model_facts(t.x.model)->n_experts;
}

/* ------------------------------------------------------------ one expert */

typedef struct answers {
    load_arena arena;
    pthread_mutex_t lock;
    pthread_cond_t come;
    uint64_t tickets[64];
    moec_status status[64];
    size_t n;
    bool hold; /* the first answer waits */
} answers;

static moec_status answers_memory(void *ctx, const moec_memory_request *want,
                                  void **out, moec_error *err)
{
    return load_memory(&((answers *)ctx)->arena, want, out, err);
}

static void answered(void *ctx, uint64_t ticket, moec_status status,
                     const moec_error *why)
{
    answers *a = ctx;

    assert_true((why == NULL) == (status == MOEC_OK));
    pthread_mutex_lock(&a->lock);
    a->tickets[a->n] = ticket;
    a->status[a->n++] = status;
    pthread_cond_broadcast(&a->come);
    while (a->hold)
        pthread_cond_wait(&a->come, &a->lock);
    pthread_mutex_unlock(&a->lock);
}

static void wait_for(answers *a, size_t n)
{
    pthread_mutex_lock(&a->lock);
    while (a->n < n)
        pthread_cond_wait(&a->come, &a->lock);
    pthread_mutex_unlock(&a->lock);
}

static void check_row(const load_case *c, const moec_job *job, size_t layer,
                      uint32_t row, uint32_t unit)
{
    for (size_t i = 0; i < moec_plan_n_slot_tensors(c->plan, layer); i++) {
        const moec_slot_tensor *s = moec_plan_slot_tensor(c->plan, layer, i);
        unsigned char *want = load_block(c, layer, i, unit);
        const unsigned char *data = moec_job_slots_data(job, layer, i);

        assert_memory_equal(data + row * s->slot_bytes, want,
                            (size_t)s->slot_bytes);
        free(want);
    }
}

static void experts_are_read_one_by_one(void **state)
{
    const load_case *both[] = {&t.hf, &t.conv};

    (void)state;
    for (int k = 0; k < 2; k++) {
        answers a = {.hold = true};
        moec_job_opts o = load_opts();
        moec_error err = MOEC_ERROR_INIT;
        moec_job *job = NULL;
        uint64_t tickets[4];

        pthread_mutex_init(&a.lock, NULL);
        pthread_cond_init(&a.come, NULL);
        o.memory = answers_memory;
        o.ctx = &a;
        load_ok(moec_job_create(&job, both[k]->plan, both[k]->conversion, 1, &o,
                                &err),
                &err);
        assert_int_equal(moec_job_read_expert(job, 0, n_experts(), 0, 0,
                                              answered, &a, NULL, NULL),
                         MOEC_E_ARG);
        for (uint32_t i = 0; i < 4; i++) {
            /* of another rank too; the last one is the most urgent */
            load_ok(moec_job_read_expert(job, i % 2, 2 * i, i, i == 3 ? 10 : 0,
                                         answered, &a, &tickets[i], &err),
                    &err);
            if (i == 0)
                wait_for(&a, 1);
        }
        pthread_mutex_lock(&a.lock);
        a.hold = false;
        pthread_cond_broadcast(&a.come);
        pthread_mutex_unlock(&a.lock);
        wait_for(&a, 4);
        for (int i = 0; i < 4; i++)
            assert_int_equal(a.status[i], MOEC_OK);
        assert_true(a.tickets[0] == tickets[0] && a.tickets[1] == tickets[3]);
        assert_true(a.tickets[2] == tickets[1] && a.tickets[3] == tickets[2]);
        for (uint32_t i = 0; i < 4; i++)
            check_row(both[k], job, i % 2, i, 2 * i);
        assert_int_equal(moec_job_start(job, NULL), MOEC_E_ARG);
        moec_job_cancel(job);
        assert_int_equal(
            moec_job_read_expert(job, 0, 0, 0, 0, answered, &a, NULL, NULL),
            MOEC_E_ARG);
        moec_job_destroy(job);
        load_arena_free(&a.arena);
    }
}

/* -------------------------------------------------------- re-placement */

static uint32_t seed = 1;
static uint32_t draw(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)(((uint64_t)(seed >> 8) * n) >> 24);
}

/* Rows of the fixture's shape: every expert once, then anything, shuffled. */
static moec_placement *any_placement(uint32_t n_physical)
{
    uint32_t n = (uint32_t)moec_model_n_layers(t.x.model), e = n_experts();
    int32_t *rows = calloc((size_t)n * n_physical, sizeof(*rows));
    moec_placement *out = NULL;
    moec_error err = MOEC_ERROR_INIT;

    assert_non_null(rows);
    for (uint32_t l = 0; l < n; l++) {
        int32_t *row = rows + (size_t)l * n_physical;
        for (uint32_t p = 0; p < n_physical; p++)
            row[p] = (int32_t)(p < e ? p : draw(e));
        for (uint32_t p = n_physical; p-- > 1;) {
            uint32_t q = draw(p + 1);
            int32_t was = row[p];
            row[p] = row[q];
            row[q] = was;
        }
    }
    load_ok(moec_placement_from_rows(&out, n, e, n_physical, rows, &err), &err);
    free(rows);
    return out;
}

static moec_plan *any_plan(uint32_t n_ranks, uint32_t n_physical)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_placement *p = any_placement(n_physical);
    moec_error err = MOEC_ERROR_INIT;
    moec_plan *plan = NULL;

    o.n_ranks = n_ranks;
    o.placement = p;
    load_ok(moec_plan_create(&plan, moec_plan_model(t.conv.plan), &o, &err),
            &err);
    moec_placement_destroy(p);
    return plan;
}

/* Slots of one rank in one block of memory, room for `rows` rows each. */
typedef struct image {
    const moec_plan *plan;
    uint32_t rank;
    unsigned char *data[16][16];
} image;

static void image_alloc(image *m, const moec_plan *plan, uint32_t rank,
                        uint32_t rows)
{
    *m = (image){.plan = plan, .rank = rank};
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        for (size_t k = 0; k < moec_plan_n_slot_tensors(plan, i); k++)
            m->data[i][k] = calloc(
                rows, (size_t)moec_plan_slot_tensor(plan, i, k)->slot_bytes);
}

static void image_free(image *m)
{
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            free(m->data[i][k]);
}

/* Place all slot tensors there, the rest of each place as `like` has it. */
static void image_place_as(const image *m, moec_job *job,
                           const moec_slot_dst *like)
{
    moec_error err = MOEC_ERROR_INIT;

    for (size_t i = 0; i < moec_plan_n_layers(m->plan); i++)
        for (size_t k = 0; k < moec_plan_n_slot_tensors(m->plan, i); k++) {
            moec_slot_dst d = *like;
            d.data = m->data[i][k];
            load_ok(moec_job_place_slots(job, i, k, &d, &err), &err);
        }
}

static void image_place(const image *m, moec_job *job)
{
    image_place_as(m, job, &(const moec_slot_dst){0});
}

static void image_load(const image *m)
{
    moec_job_opts o = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_job *job = NULL;

    load_ok(
        moec_job_create(&job, m->plan, t.conv.conversion, m->rank, &o, &err),
        &err);
    image_place(m, job);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    moec_job_destroy(job);
}

typedef struct peers {
    const image *old; /* of all old ranks, as they were */
    moec_job *job;
    size_t n_peer, n_host;
    unsigned char *host;
    late_sink *sink; /* NULL: the rows are in host memory */
    load_arena arena;
} peers;

static moec_status bring(void *ctx, const moec_diff_move *m, void *const *rows,
                         moec_error *err)
{
    peers *p = ctx;
    const image *from = &p->old[m->peer];

    if (p->sink != NULL && p->sink->done != p->sink->n)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "copies are on their way that the row depends on");
    p->n_peer++;
    for (size_t k = 0; k < moec_plan_n_slot_tensors(from->plan, m->layer);
         k++) {
        size_t n =
            (size_t)moec_plan_slot_tensor(from->plan, m->layer, k)->slot_bytes;
        if (rows[k] != NULL)
            memcpy(rows[k], from->data[m->layer][k] + m->src_row * n, n);
    }
    return MOEC_OK;
}

static moec_status host_of(void *ctx, size_t layer, size_t tensor,
                           uint32_t unit, const void **out, moec_error *err)
{
    load_case c = {.plan = t.conv.plan, .truth = t.x.ckpt};
    peers *p = ctx;

    (void)err;
    p->n_host++;
    free(p->host);
    *out = p->host = load_block(&c, layer, tensor, unit);
    return MOEC_OK;
}

static int even_in_host(void *ctx, size_t layer, uint32_t unit)
{
    (void)ctx;
    (void)layer;
    return unit % 2 == 0;
}

static moec_status bounce_memory(void *ctx, const moec_memory_request *want,
                                 void **out, moec_error *err)
{
    return load_memory(&((peers *)ctx)->arena, want, out, err);
}

/* From `old` to `now` on one rank, in memory or through a sink, and compare
 * with what must be there. */
static moec_job_stats follow(const moec_plan *old, const moec_plan *now,
                             uint32_t rank, const image *all,
                             const moec_diff_opts *o, bool sunk)
{
    load_case c = {now, t.conv.conversion, t.x.ckpt};
    moec_load_sink sink = {.struct_bytes = sizeof(sink),
                           .copies_within = 1,
                           .copy = late_sink_copy,
                           .poll = late_sink_poll};
    moec_diff_hooks hooks = MOEC_DIFF_HOOKS_INIT;
    moec_job_opts jo = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_diff *diff = NULL;
    moec_job_stats s;
    peers p = {.old = all};
    uint32_t rows = 64;
    image mine;

    if (sunk) {
        p.sink = sink.ctx = calloc(1, sizeof(*p.sink));
        assert_non_null(p.sink);
        jo.ring_bytes = 8u << 20;
        assert_int_equal(posix_memalign(&sink.ring, 4096, 8u << 20), 0);
        jo.sink = &sink;
        jo.memory = bounce_memory;
        jo.ctx = &p;
    }
    image_alloc(&mine, old, rank, rows);
    for (size_t i = 0; i < moec_plan_n_layers(old); i++)
        for (size_t k = 0; k < moec_plan_n_slot_tensors(old, i); k++) {
            const moec_slot_tensor *x = moec_plan_slot_tensor(old, i, k);
            memcpy(mine.data[i][k], all[rank].data[i][k],
                   (size_t)(x->shape[0] * x->slot_bytes));
        }
    mine.plan = now;
    load_ok(moec_plan_diff(&diff, old, now, rank, o, &err), &err);
    load_ok(moec_job_create(&p.job, now, t.conv.conversion, rank, &jo, &err),
            &err);
    image_place(&mine, p.job);
    hooks.ctx = &p;
    hooks.peer = bring;
    hooks.host = host_of;
    load_ok(moec_job_follow(p.job, diff, &hooks, &err), &err);
    load_ok(moec_job_start(p.job, &err), &err);
    load_ok(moec_job_wait(p.job, &err), &err);
    for (size_t i = 0; i < moec_plan_n_layers(now); i++)
        load_compare_layer(&c, p.job, rank, i);
    moec_job_poll(p.job, &s);
    assert_int_equal(s.n_layers_ready, s.n_layers);
    assert_true(s.bytes_needed <= moec_diff_sums(diff).bytes_disk);
    moec_job_destroy(p.job);
    moec_diff_destroy(diff);
    image_free(&mine);
    load_arena_free(&p.arena);
    free(p.host);
    free(p.sink);
    free(sink.ring);
    return s;
}

static void a_replacement_equals_a_fresh_load(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 6; round++) {
        uint32_t p = n_experts() + 4;
        moec_plan *old = any_plan(2, p), *now = any_plan(2, p);
        moec_diff_opts o = MOEC_DIFF_OPTS_INIT;
        image all[2];
        uint64_t read = 0;

        o.no_peers = round % 2;
        o.in_host = round >= 4 ? even_in_host : NULL;
        for (uint32_t r = 0; r < 2; r++) {
            image_alloc(&all[r], old, r, 64);
            image_load(&all[r]);
        }
        for (uint32_t r = 0; r < 2; r++)
            read += follow(old, now, r, all, &o, false).bytes_read;
        if (round == 0) /* all is in somebody's memory */
            assert_true(read == 0);
        for (uint32_t r = 0; r < 2; r++)
            (void)follow(old, now, r, all, &o, true);
        for (uint32_t r = 0; r < 2; r++)
            image_free(&all[r]);
        moec_plan_destroy(old);
        moec_plan_destroy(now);
    }
}

/* Long slots, and ranks that cannot see each other. */
static void a_replacement_reads_what_changes(void **state)
{
    plan_fixture small_x = t.x;
    load_case small_conv = t.conv;
    tmpdir dir = tmpdir_make();
    moec_diff_opts o = MOEC_DIFF_OPTS_INIT;
    moec_plan *old, *now;
    uint64_t changed = 0, read = 0;
    image all[2];

    (void)state;
    load_long_tree(&dir);
    t.x = load_long_open(&dir);
    t.conv = (load_case){.plan = t.x.plan};
    load_convert(&t.conv, t.x.layout, &dir);
    o.no_peers = 1;
    old = any_plan(2, 8);
    now = any_plan(2, 8);
    for (uint32_t r = 0; r < 2; r++) {
        moec_diff *diff = NULL;
        moec_error err = MOEC_ERROR_INIT;
        image_alloc(&all[r], old, r, 64);
        image_load(&all[r]);
        load_ok(moec_plan_diff(&diff, old, now, r, &o, &err), &err);
        changed += moec_diff_sums(diff).bytes_disk;
        moec_diff_destroy(diff);
        read += follow(old, now, r, all, &o, r == 1).bytes_read;
        image_free(&all[r]);
    }
    assert_true(changed > 0);
    if (read * 100 > changed * 105)
        fail_msg("%lu bytes read, %lu changed", (unsigned long)read,
                 (unsigned long)changed);
    moec_plan_destroy(old);
    moec_plan_destroy(now);
    moec_conversion_close(t.conv.conversion);
    plan_fixture_close(&t.x);
    tmpdir_remove(&dir);
    t.x = small_x;
    t.conv = small_conv;
}

static void a_diff_needs_its_rows_in_memory(void **state)
{
    moec_plan *old = any_plan(2, n_experts()), *now = any_plan(2, n_experts());
    moec_diff_opts o = MOEC_DIFF_OPTS_INIT;
    moec_job_opts jo = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_diff *diff = NULL;
    moec_job *job = NULL;
    image m;

    (void)state;
    load_ok(moec_plan_diff(&diff, old, now, 0, &o, &err), &err);
    load_ok(moec_job_create(&job, now, t.conv.conversion, 0, &jo, &err), &err);
    assert_int_equal(moec_job_follow(job, diff, NULL, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "is not placed"));
    image_alloc(&m, now, 0, 64);
    image_place(&m, job);
    memset(&err, 0, sizeof(err));
    assert_int_equal(moec_job_follow(job, diff, NULL, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "no hook takes them"));
    moec_job_destroy(job);
    jo.sink =
        &(const moec_load_sink){sizeof(moec_load_sink), .ring = &m,
                                .copy = late_sink_copy, .poll = late_sink_poll};
    memset(&err, 0, sizeof(err));
    load_ok(moec_job_create(&job, now, t.conv.conversion, 0, &jo, &err), &err);
    assert_int_equal(moec_job_follow(job, diff, NULL, &err),
                     MOEC_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "copies out of its ring only"));
    moec_job_destroy(job);
    moec_diff_destroy(diff);
    image_free(&m);
    moec_plan_destroy(old);
    moec_plan_destroy(now);
}

/* A diff writes no row that has no place, whatever was placed when. */
static void a_diff_keeps_to_what_is_placed(void **state)
{
    uint32_t local = n_experts() / 2 + 1;
    moec_plan *old = any_plan(2, n_experts()), *now = any_plan(2, 2 * local);
    const moec_slot_dst routed = {.n_slots = local};
    moec_diff_hooks hooks = {.struct_bytes = sizeof(hooks), .peer = bring};
    moec_job_opts jo = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_diff *diff = NULL;
    moec_job *job = NULL;
    image m;

    (void)state;
    assert_int_not_equal(moec_plan_shared_rows(now), 0);
    load_ok(moec_plan_diff(&diff, old, now, 0, NULL, &err), &err);
    load_ok(moec_job_create(&job, now, t.conv.conversion, 0, &jo, &err), &err);
    image_alloc(&m, now, 0, 64);
    image_place_as(&m, job, &routed);
    assert_int_equal(moec_job_follow(job, diff, &hooks, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "has no row that the diff writes"));
    memset(&err, 0, sizeof(err));
    image_place(&m, job);
    load_ok(moec_job_follow(job, diff, &hooks, &err), &err);
    image_place_as(&m, job, &routed);
    assert_int_equal(moec_job_start(job, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "has no row that the diff writes"));
    moec_job_destroy(job);
    moec_diff_destroy(diff);
    image_free(&m);
    moec_plan_destroy(old);
    moec_plan_destroy(now);
}

/* The row that cycles go through has the strides of the tensors. */
static void memory_counts_the_bounce_row_as_it_is(void **state)
{
    moec_plan *old = any_plan(1, n_experts()), *now = any_plan(1, n_experts());
    moec_job_opts jo = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    uint64_t bytes[2];
    moec_diff *diff = NULL;
    image m;

    (void)state;
    load_ok(moec_plan_diff(&diff, old, now, 0, NULL, &err), &err);
    assert_int_not_equal(moec_diff_sums(diff).bounce_bytes, 0);
    image_alloc(&m, now, 0, 64);
    for (int i = 0; i < 2; i++) {
        const moec_slot_dst d = {.row_stride = i == 0 ? 0 : 4096};
        moec_job *job = NULL;
        load_ok(moec_job_create(&job, now, t.conv.conversion, 0, &jo, &err),
                &err);
        image_place_as(&m, job, &d);
        load_ok(moec_job_follow(job, diff, NULL, &err), &err);
        bytes[i] = moec_job_memory_bytes(job);
        moec_job_destroy(job);
    }
    assert_true(bytes[1] > bytes[0] + 2 * moec_diff_sums(diff).bounce_bytes);
    moec_diff_destroy(diff);
    image_free(&m);
    moec_plan_destroy(old);
    moec_plan_destroy(now);
}

/* -------------------------------------------------------------- processes */

static moec_job *common_job(int fd, uint32_t rank, uint32_t size,
                            moec_error *err)
{
    moec_job_opts o = load_opts();
    moec_job *job = NULL;

    o.common_fd = fd;
    o.local_rank = rank;
    o.local_size = size;
    o.common_arena = 1;
    o.n_layers = 0;
    o.layers = &(const uint32_t){0};
    o.peer_seconds = 20;
    if (moec_job_create(&job, t.conv.plan, t.conv.conversion, 0, &o, err) !=
        MOEC_OK)
        return NULL;
    return job;
}

/* One process of `size`; exits 0 where all is as it must be. */
static void child(int fd, uint32_t rank, uint32_t size, bool dies)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_job *job = common_job(fd, rank, size, &err);
    moec_job_stats s;

    if (job == NULL || moec_job_start(job, &err) != MOEC_OK)
        _exit(1);
    if (dies)
        _exit(9);
    if (moec_job_wait(job, &err) != MOEC_OK)
        _exit(err.status == MOEC_E_IO ? 4 : 2);
    moec_job_poll(job, &s);
    for (size_t i = 0; i < moec_ckpt_n_tensors(t.x.ckpt); i++) {
        const moec_tensor *x = moec_ckpt_tensor(t.x.ckpt, i);
        void *want = malloc((size_t)x->bytes + 1);
        if (moec_plan_fate(t.conv.plan, i) == MOEC_FATE_COMMON &&
            (moec_ckpt_read(t.x.ckpt, i, 0, want, (size_t)x->bytes, &err) !=
                 MOEC_OK ||
             memcmp(want, moec_job_tensor_data(job, i), (size_t)x->bytes)))
            _exit(3);
        free(want);
    }
    /* nobody reads it all */
    if (s.bytes_needed >= moec_job_common_bytes(job) * 3 / 4)
        _exit(5);
    moec_job_destroy(job);
    _exit(0);
}

static void run_processes(uint32_t n, uint32_t dies, int expected)
{
    int fd = memfd_create("common", MFD_CLOEXEC), status;
    pid_t pids[4];

    assert_true(fd >= 0);
    for (uint32_t i = 0; i < n; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            child(fd, i, n, i == dies);
    }
    if (dies < n) { /* reaped, or its pid is still somebody's */
        assert_int_equal(waitpid(pids[dies], &status, 0), pids[dies]);
        assert_int_equal(WEXITSTATUS(status), 9);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (i == dies)
            continue;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), expected);
    }
    close(fd);
}

static void processes_read_common_tensors_once(void **state)
{
    (void)state;
    run_processes(2, UINT32_MAX, 0);
    run_processes(3, UINT32_MAX, 0);
}

/* A tensor of several leaves is cut between processes. */
static void processes_share_one_large_tensor(void **state)
{
    plan_fixture small_x = t.x;
    load_case small_conv = t.conv;
    tmpdir dir = tmpdir_make();

    (void)state;
    load_long_tree(&dir);
    t.x = load_long_open(&dir);
    t.conv = (load_case){.plan = t.x.plan};
    load_convert(&t.conv, t.x.layout, &dir);
    run_processes(2, UINT32_MAX, 0);
    run_processes(3, UINT32_MAX, 0);
    moec_conversion_close(t.conv.conversion);
    plan_fixture_close(&t.x);
    tmpdir_remove(&dir);
    t.x = small_x;
    t.conv = small_conv;
}

static void a_peer_that_died_is_noticed(void **state)
{
    int fd = memfd_create("common", MFD_CLOEXEC), status;
    moec_error err = MOEC_ERROR_INIT;
    moec_job *job;
    pid_t pid;

    (void)state;
    assert_true(fd >= 0);
    pid = fork();
    if (pid == 0)
        _exit(0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    job = common_job(fd, 0, 2, &err);
    assert_non_null(job);
    /* cells: 8 bytes of table, then {state, pid} for each process */
    {
        uint32_t *page;
        assert_int_equal(ftruncate(fd, 4096), 0);
        page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(page != MAP_FAILED);
        page[4] = 1;
        page[5] = (uint32_t)pid;
        munmap(page, 4096);
    }
    load_ok(moec_job_start(job, &err), &err);
    assert_int_equal(moec_job_wait(job, &err), MOEC_E_IO);
    assert_non_null(strstr(err.text, "died"));
    moec_job_destroy(job);
    /* the place is taken */
    memset(&err, 0, sizeof(err));
    job = common_job(fd, 0, 2, &err);
    assert_int_equal(moec_job_start(job, &err), MOEC_E_ARG);
    moec_job_destroy(job);
    close(fd);
}

static void a_fork_is_detected(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_job_opts o = load_opts();
    load_arena arena = {0};
    moec_job *job = NULL;
    int status;
    pid_t pid;

    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* it takes the parent's threads for the child's, which has none */
#endif
    o.memory = load_memory;
    o.ctx = &arena;
    load_ok(moec_job_create(&job, NULL, t.conv.conversion, 0, &o, &err), &err);
    load_ok(moec_job_start(job, &err), &err);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        moec_status st = moec_job_wait(job, &err);
        bool named = strstr(err.text, "fork") != NULL;
        moec_job_stats s;
        moec_job_poll(job, &s); /* the parent's lock may be held */
        if (s.state != MOEC_JOB_FAILED)
            st = MOEC_OK;
        moec_job_cancel(job);
        if (moec_job_start(job, NULL) != MOEC_E_ARG)
            st = MOEC_OK;
        moec_job_destroy(job);
        _exit(st == MOEC_E_ARG && named ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    load_ok(moec_job_wait(job, &err), &err);
    load_compare_layer(&t.conv, job, 0, 0);
    moec_job_destroy(job);
    load_arena_free(&arena);
}

/* -------------------------------------------------------------- questions */

static void a_wrong_world_is_a_sentence(void **state)
{
    static const char *const weights[] = {"weight"};
    moec_layout_want w = {.struct_bytes = sizeof(w)};
    moec_plan *other = any_plan(2, n_experts() + 2);
    const moec_plan *plan = t.conv.plan;
    moec_error err = MOEC_ERROR_INIT;
    moec_topology topo = moec_plan_topology(plan);

    (void)state;
    load_ok(moec_layout_check(plan, &w, &err), &err);
    w.n_ranks = topo.n_ranks;
    w.family = "deepseek_v3";
    w.w13_order = MOEC_W13_GATE_UP + 1;
    w.has_redundant = 1;
    w.n_redundant = 2;
    w.has_shared = 1;
    w.shared_slots = topo.n_shared_slots;
    w.shared_global = 1;
    w.placement = moec_plan_placement(plan);
    load_ok(moec_layout_check(plan, &w, &err), &err);
#define REFUSED(field, value, words)                                           \
  do {                                                                         \
    moec_layout_want bad = w;                                                  \
    memset(&err, 0, sizeof(err));                                              \
    bad.field = (value);                                                       \
    assert_int_equal(moec_layout_check(plan, &bad, &err), MOEC_E_MAPPING);     \
    if (strstr(err.text, (words)) == NULL)                                     \
      fail_msg("'%s' has no '%s'", err.text, (words));                         \
  } while (0)
    REFUSED(n_ranks, 4, "EP size");
    REFUSED(family, "qwen3_moe", "wants 'qwen3_moe'");
    REFUSED(w13_order, MOEC_W13_UP_GATE + 1, "w13 is gate-up");
    REFUSED(n_redundant, 3, "redundant slots");
    REFUSED(shared_slots, topo.n_shared_slots + 1, "shared slots");
    REFUSED(shared_global, 2, "numbered per rank");
    REFUSED(placement, moec_plan_placement(other), "physical slot");
    w.n_components = 1;
    REFUSED(components, weights, "weight_scale_inv");
    moec_plan_destroy(other);
}

static void a_model_says_where_its_facts_are_from(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    char *text = NULL;
    json_t *doc, *j;

    (void)state;
    load_ok(moec_model_describe(t.x.model, &text, &err), &err);
    doc = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(doc);
    assert_string_equal(json_string_value(json_object_get(doc, "schema")),
                        "moec.model/1");
    j = json_object_get(doc, "n_routed_experts");
    assert_int_equal(json_integer_value(json_object_get(j, "value")),
                     n_experts());
    assert_string_equal(json_string_value(json_object_get(j, "from")),
                        "config.json: n_routed_experts");
    j = json_object_get(doc, "expert_dtype");
    assert_string_equal(json_string_value(json_object_get(j, "from")),
                        "the checkpoint's tensors");
    json_decref(doc);
    free(text);
}

/* ---------------------------------------------------------------- memory */

static moec_status one_load(const load_case *c, load_arena *arena, uint32_t tp)
{
    moec_job_opts o = load_opts();
    moec_error err = MOEC_ERROR_INIT;
    moec_job *job = NULL;
    moec_status st;

    o.memory = load_memory;
    o.ctx = arena;
    o.n_threads = 1;
    o.common_arena = 1;
    o.tp_size = tp;
    st = moec_job_create(&job, c->plan, c->conversion, 0, &o, &err);
    if (st == MOEC_OK)
        st = moec_job_start(job, &err);
    if (st == MOEC_OK)
        st = moec_job_wait(job, &err);
    moec_job_destroy(job);
    return st;
}

static void every_allocation_may_fail(void **state)
{
    const load_case *both[] = {&t.hf, &t.conv};

    (void)state;
    for (int k = 0; k < 2; k++) {
        load_arena arena = {0};
        uint64_t n;

        (void)moec_alloc_fail_at(0);
        assert_int_equal(one_load(both[k], &arena, 1), MOEC_OK);
        load_arena_free(&arena);
        n = moec_alloc_fail_at(0);
        assert_true(n > 20);
        /* those of the proofs are many, and alike */
        for (uint64_t i = 1; i <= n; i += i < 20 || i + 150 > n ? 1 : 37) {
            moec_status st;
            (void)moec_alloc_fail_at(i);
            st = one_load(both[k], &arena, 1);
            (void)moec_alloc_fail_at(0);
            if (st != MOEC_E_NOMEM && st != MOEC_OK)
                fail_msg("allocation %lu of %lu: %s", (unsigned long)i,
                         (unsigned long)n, moec_status_name(st));
            load_arena_free(&arena);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(experts_are_read_one_by_one),
        cmocka_unit_test(a_replacement_equals_a_fresh_load),
        cmocka_unit_test(a_replacement_reads_what_changes),
        cmocka_unit_test(a_diff_needs_its_rows_in_memory),
        cmocka_unit_test(a_diff_keeps_to_what_is_placed),
        cmocka_unit_test(memory_counts_the_bounce_row_as_it_is),
        cmocka_unit_test(processes_read_common_tensors_once),
        cmocka_unit_test(processes_share_one_large_tensor),
        cmocka_unit_test(a_peer_that_died_is_noticed),
        cmocka_unit_test(a_fork_is_detected),
        cmocka_unit_test(a_wrong_world_is_a_sentence),
        cmocka_unit_test(a_model_says_where_its_facts_are_from),
        cmocka_unit_test(every_allocation_may_fail),
    };

    load_scratch();
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
