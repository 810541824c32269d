/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every public call that allocates, with its n-th allocation failed, for every
 * n: NOMEM with a text and nothing given out, or the call does without. Leaks
 * are the address sanitizer's to see (preset asan). Calls of thousands of
 * allocations are sampled; all of them: test_alloc_sweep all.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>

#include <moec/moec.h>

#include "base/base.h"
#include "convert.h"
#include "support/tmpdir.h"

/* Points of a call that are tried without "all". */
#define SAMPLE 24u

static bool all_points;

static const char source[] = MOEC_TEST_FIXTURES "/checkpoints/mixtral";

/* Everything that the calls start from, made once. */
static struct {
    tmpdir dir;
    char conv[512];
    moec_families *families;
    moec_ckpt *ckpt;
    moec_model *model;
    moec_placement *placement;
    moec_plan *plan, *turned; /* the second: experts the other way round */
    moec_layout *layout;
    moec_kernels *kernels;
    moec_conversion *conversion;
    void *rows[8][16]; /* of rank 0, by planned layer and slot tensor */
} at;

/* ------------------------------------------------------------------ calls
 * Each makes what its name says and destroys it; *out stays NULL on failure. */

static moec_status families(moec_error *err)
{
    moec_families *x = NULL;
    moec_status st = moec_families_create(&x, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_families_destroy(x);
    return st;
}

static moec_status ckpt(moec_error *err)
{
    moec_ckpt *x = NULL;
    moec_status st = moec_ckpt_open(&x, source, NULL, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_ckpt_close(x);
    return st;
}

static moec_status model(moec_error *err)
{
    moec_model *x = NULL;
    moec_status st = moec_model_open(&x, at.ckpt, at.families, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_model_destroy(x);
    return st;
}

static moec_status placement(moec_error *err)
{
    moec_placement *x = NULL;
    moec_status st = moec_placement_trivial(&x, 2, 8, 2, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_placement_destroy(x);
    return st;
}

static moec_status placement_file(moec_error *err)
{
    static const char text[] = "[[0,1,2,3,4,5,6,7,0,1],[7,6,5,4,3,2,1,0,7,6],"
                               "[2,3,4,5,6,7,0,1,2,3]]";
    moec_placement *x = NULL;
    moec_status st = moec_placement_parse(&x, at.model, "p.json", text,
                                          sizeof(text) - 1, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_placement_destroy(x);
    return st;
}

static moec_status placement_yaml(moec_error *err)
{
    static const char text[] =
        "num_slots: 8\ninitial_global_assignments:\n"
        "  0: [0,1,2,3,4,5,6,7]\n  1: [7,6,5,4,3,2,1,0]\n";
    moec_placement_target t = MOEC_PLACEMENT_TARGET_INIT;
    moec_placement_file *x = NULL;
    moec_status st =
        moec_placement_file_read(&x, &t, "p.yaml", text, sizeof(text) - 1, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_placement_file_close(x);
    return st;
}

static moec_status placement_write(moec_error *err)
{
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    void *x = NULL;
    size_t n;

    o.form = MOEC_PLACEMENT_LOG2PHY;
    moec_status st = moec_placement_write(at.placement, &o, &x, &n, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    free(x);
    return st;
}

static moec_status counts(moec_error *err)
{
    static const char text[] = "{\"logical_count\": [[[1,2,3],[4,5,6]]]}";
    moec_counts *x = NULL;
    moec_status st =
        moec_counts_parse(&x, NULL, "c.json", text, sizeof(text) - 1, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_counts_destroy(x);
    return st;
}

static moec_status planner(moec_error *err)
{
    static const float loads[16] = {9, 1, 1, 1, 5, 1, 1, 1,
                                    1, 8, 1, 1, 1, 1, 7, 1};
    moec_planner_opts o = MOEC_PLANNER_OPTS_INIT;
    moec_placement *x = NULL;

    o.eplb.n_redundant = 2;
    o.eplb.n_ranks = 2;
    moec_status st = moec_planner(&x, &o, loads, 2, 8, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_placement_destroy(x);
    return st;
}

static moec_status plan_diff(moec_error *err)
{
    moec_diff *x = NULL;
    moec_status st = moec_plan_diff(&x, at.plan, at.plan, 1, NULL, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_diff_destroy(x);
    return st;
}

static moec_status router(moec_error *err)
{
    moec_route_config c = MOEC_ROUTE_CONFIG_INIT;
    moec_router *x = NULL;
    char *text = NULL;

    c.n_experts = 8;
    c.top_k = 2;
    MOEC_TRY(moec_router_create(&x, at.kernels, &c, err));
    moec_status st = moec_route_describe(x, &text, err);
    assert_int_equal(text != NULL, st == MOEC_OK);
    free(text);
    moec_router_destroy(x);
    return st;
}

/* A recording of two requests, kept and read again. */
static moec_status record(const moec_recorder_opts *o, moec_error *err)
{
    static const int32_t ids[6] = {0, 1, 2, 3, 4, 5};
    moec_recorder *r = NULL;
    moec_routes *x = NULL, *again = NULL;
    moec_route_key key = {0};
    moec_status st = moec_recorder_start(&r, o, err);

    for (uint32_t i = 0; st == MOEC_OK && i < 2; i++) {
        st = moec_recorder_request(r, i == 0 ? "a" : "b", 0, &key.request, err);
        for (uint32_t l = 0; st == MOEC_OK && l < o->shape.n_layers; l++)
            st = moec_recorder_append(r, l, &key, ids + i, 0, 1, err);
    }
    if (st == MOEC_OK)
        st = moec_recorder_stop(r, &x, err);
    if (st == MOEC_OK)
        st = moec_routes_save(x, tmpdir_path(&at.dir, "routes"), 1, err);
    if (st == MOEC_OK)
        st = moec_routes_open(&again, tmpdir_path(&at.dir, "routes"), err);
    moec_routes_destroy(again);
    moec_routes_destroy(x);
    moec_recorder_destroy(r);
    return st;
}

static moec_status routes(moec_error *err)
{
    moec_recorder_opts o = MOEC_RECORDER_OPTS_INIT;
    char hex[65];

    MOEC_TRY(moec_routes_shape_of(&o.shape, at.model, hex, err));
    moec_status st = record(&o, err);
    moec_routes_shape_release(&o.shape);
    return st;
}

static moec_status eplb(moec_error *err)
{
    float loads[16];
    moec_eplb_opts o = MOEC_EPLB_OPTS_INIT;
    moec_placement *x = NULL;

    for (size_t i = 0; i < 16; i++)
        loads[i] = (float)(i * i % 7 + 1);
    o.n_ranks = 2;
    o.n_redundant = 2;
    moec_status st = moec_eplb(&x, NULL, &o, loads, 2, 8, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_placement_destroy(x);
    return st;
}

static moec_status replicas(moec_error *err)
{
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    moec_replicas *x = NULL;

    o.n_ranks = 2;
    moec_status st = moec_replicas_create(&x, at.placement, &o, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_replicas_destroy(x);
    return st;
}

static moec_status plan(moec_error *err)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_plan *x = NULL;

    o.n_ranks = 2;
    moec_status st = moec_plan_create(&x, at.model, &o, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_plan_destroy(x);
    return st;
}

static moec_status layout(moec_error *err)
{
    moec_layout *x = NULL;
    moec_status st = moec_layout_create(&x, at.plan, 0, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_layout_destroy(x);
    return st;
}

static moec_status layout_header(moec_error *err)
{
    void *x = NULL;
    uint64_t n;
    moec_status st = moec_layout_header(at.layout, 0, &x, &n, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    free(x);
    return st;
}

static moec_status layout_prove(moec_error *err)
{
    moec_report *x = NULL;
    moec_status st = moec_layout_prove(&x, at.layout, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    assert_true(st != MOEC_OK || moec_report_ok(x));
    moec_report_destroy(x);
    return st;
}

static moec_status mutation(moec_error *err)
{
    moec_report *x = NULL;
    int found = 0;
    moec_status st = moec_check_mutation(&x, &found, at.layout,
                                         MOEC_MUTATION_SWAP_SLOTS, err);

    if (st == MOEC_E_UNSUPPORTED) /* where this layout has no such thing */
        st = MOEC_OK;
    moec_report_destroy(x);
    return st;
}

static moec_status conversion(moec_error *err)
{
    moec_conversion *x = NULL;
    moec_status st = moec_conversion_open(&x, at.conv, at.families, err);

    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_conversion_close(x);
    return st;
}

static moec_status verify(moec_error *err)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_report *x = NULL;

    o.n_threads = 1;
    o.source = at.ckpt;
    o.families = at.families;
    moec_status st = moec_verify(&x, at.conv, &o, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    /* a lack of memory is no finding, and no proof */
    assert_true(st != MOEC_OK || moec_report_ok(x));
    for (size_t t = 0; st == MOEC_OK && t < 6; t++)
        assert_true(moec_report_theorem(x, t)->ran);
    moec_report_destroy(x);
    return st;
}

static moec_status validate(moec_error *err)
{
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;
    moec_validation *x = NULL;

    o.n_threads = 1;
    o.n_tokens = 2;
    o.source = at.ckpt;
    o.families = at.families;
    moec_status st = moec_validate(&x, at.conv, &o, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    assert_true(st != MOEC_OK || moec_report_ok(moec_validation_report(x)));
    moec_validation_destroy(x);
    return st;
}

static moec_status kernels(moec_error *err)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_kernels *x = NULL;

    o.n_threads = 2;
    moec_status st = moec_kernels_open(&x, &o, err);
    assert_int_equal(x != NULL, st == MOEC_OK);
    moec_kernels_close(x);
    return st;
}

static moec_status digest(moec_error *err)
{
    uint8_t sum[32];
    const moec_tensor *t = moec_ckpt_tensor(at.ckpt, 0);

    return moec_ckpt_digest(at.ckpt, 0, 0, t->bytes, sum, err);
}

/* convert.h is not public, but what the program does. */
static moec_status convert(moec_error *err)
{
    moec_convert_opts o = {.n_threads = 1, .force = true};
    moec_convert_stats stats;

    return moec_convert(at.layout, tmpdir_path(&at.dir, "again"), &o, &stats,
                        err);
}

static moec_status unconvert(moec_error *err)
{
    moec_convert_opts o = {.n_threads = 1, .force = true};
    moec_convert_stats stats;
    moec_conversion *c = NULL;
    tmpdir back = tmpdir_make();
    moec_status st = moec_conversion_open(&c, at.conv, NULL, err);

    o.source = c;
    if (st == MOEC_OK)
        st = moec_unconvert(tmpdir_path(&back, "back"), &o, &stats, err);
    moec_conversion_close(c);
    tmpdir_remove(&back);
    return st;
}

/* A job over the rows that are there. */
static moec_status job(moec_job **out, const moec_plan *plan, moec_error *err)
{
    moec_job_opts o = MOEC_JOB_OPTS_INIT;

    o.n_threads = 1;
    o.ring_bytes = 4u << 20;
    MOEC_TRY(moec_job_create(out, plan, at.conversion, 0, &o, err));
    plan = moec_job_plan(*out);
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, i); t++) {
            moec_slot_dst d = {.data = at.rows[i][t]};
            MOEC_TRY(moec_job_place_slots(*out, i, t, &d, err));
        }
    return MOEC_OK;
}

static struct {
    pthread_mutex_t lock;
    pthread_cond_t come;
    uint32_t n;
    moec_status status;
    moec_error why;
} told = {.lock = PTHREAD_MUTEX_INITIALIZER, .come = PTHREAD_COND_INITIALIZER};

static void tell(void *ctx, uint64_t ticket, moec_status status,
                 const moec_error *why)
{
    (void)ctx;
    (void)ticket;
    pthread_mutex_lock(&told.lock);
    told.n++;
    told.status = status;
    if (why != NULL)
        told.why = *why;
    pthread_cond_signal(&told.come);
    pthread_mutex_unlock(&told.lock);
}

static moec_status read_expert(moec_error *err)
{
    moec_job *x = NULL;
    moec_status st = job(&x, NULL, err);

    told.n = 0;
    if (st == MOEC_OK)
        st = moec_job_read_expert(x, 1, 5, 0, 0, tell, NULL, NULL, err);
    if (st == MOEC_OK) { /* it was taken: told once */
        pthread_mutex_lock(&told.lock);
        while (told.n == 0)
            pthread_cond_wait(&told.come, &told.lock);
        st = told.status;
        if (st != MOEC_OK)
            *err = told.why;
        pthread_mutex_unlock(&told.lock);
    }
    moec_job_destroy(x);
    assert_true(told.n <= 1);
    return st;
}

/* From the conversion's plan to at.turned: cycles, so there is a bounce row. */
static moec_status follow(moec_error *err)
{
    moec_diff_opts o = MOEC_DIFF_OPTS_INIT;
    moec_diff *diff = NULL;
    moec_job *x = NULL;

    o.no_peers = 1;
    moec_status st = moec_plan_diff(
        &diff, moec_layout_plan(moec_conversion_layout(at.conversion)),
        at.turned, 0, &o, err);
    if (st == MOEC_OK)
        st = job(&x, at.turned, err);
    if (st == MOEC_OK)
        st = moec_job_follow(x, diff, NULL, err);
    if (st == MOEC_OK)
        st = moec_job_start(x, err);
    if (st == MOEC_OK)
        st = moec_job_wait(x, err);
    moec_job_destroy(x);
    moec_diff_destroy(diff);
    return st;
}

/* ------------------------------------------------------------------ sweep */

typedef moec_status (*call_fn)(moec_error *err);

static uint64_t count(call_fn fn, const char *name)
{
    moec_error err = MOEC_ERROR_INIT;

    moec_alloc_fail_at(0);
    if (fn(&err) != MOEC_OK)
        fail_msg("%s: %s", name, err.text);
    return moec_alloc_fail_at(0);
}

static void fail_one(call_fn fn, const char *name, uint64_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_status st;

    moec_alloc_fail_at(n);
    st = fn(&err);
    moec_alloc_fail_at(0);
    if (st != MOEC_OK && st != MOEC_E_NOMEM)
        fail_msg("%s, allocation %llu: %s, %s", name, (unsigned long long)n,
                 moec_status_name(st), err.text);
    assert_int_equal(err.status, st);
    assert_true(st == MOEC_OK || err.text[0] != '\0');
}

static void sweep(call_fn fn, const char *name)
{
    uint64_t n, step = 1, tried = 0;

    (void)count(fn, name); /* what is made once is made */
    n = count(fn, name);
    if (!all_points && n > SAMPLE)
        step = n / SAMPLE + 1;
    for (uint64_t i = 1; i <= n; i += step) {
        fail_one(fn, name, i);
        tried++;
    }
    printf("%-16s %6llu allocations, %llu failed one by one\n", name,
           (unsigned long long)n, (unsigned long long)tried);
}

/* What jobs load from, and rows for them. */
static void make_rows(void)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    const moec_plan *plan;
    moec_placement *p = NULL;
    int32_t rows[8 * 8];
    size_t n;

    assert_int_equal(
        moec_conversion_open(&at.conversion, at.conv, at.families, NULL),
        MOEC_OK);
    plan = moec_layout_plan(moec_conversion_layout(at.conversion));
    n = moec_plan_n_layers(plan);
    assert_in_range(n, 2, 8);
    for (size_t i = 0; i < n * 8; i++) /* 3 2 1 0 on the first rank */
        rows[i] = (int32_t)(i % 8 < 4 ? 3 - i % 8 : 11 - i % 8);
    rows[0] = 4; /* and one from elsewhere */
    rows[7] = 3;
    if (moec_placement_from_rows(&p, (uint32_t)n, 8, 8, rows, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    o.n_ranks = 2;
    o.placement = p;
    assert_int_equal(
        moec_plan_create(&at.turned, moec_plan_model(plan), &o, NULL), MOEC_OK);
    moec_placement_destroy(p);
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, i); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(plan, i, t);
            at.rows[i][t] = calloc((size_t)s->shape[0], (size_t)s->slot_bytes);
        }
}

static int make_all(void **state)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_convert_opts c = {.n_threads = 1};
    moec_convert_stats stats;

    (void)state;
    at.dir = tmpdir_make();
    (void)snprintf(at.conv, sizeof(at.conv), "%s", tmpdir_path(&at.dir, "out"));
    o.n_ranks = 2;
    assert_int_equal(moec_families_create(&at.families, NULL), MOEC_OK);
    assert_int_equal(moec_ckpt_open(&at.ckpt, source, NULL, NULL), MOEC_OK);
    assert_int_equal(moec_model_open(&at.model, at.ckpt, at.families, NULL),
                     MOEC_OK);
    assert_int_equal(moec_placement_trivial(&at.placement, 2, 8, 2, NULL),
                     MOEC_OK);
    assert_int_equal(moec_plan_create(&at.plan, at.model, &o, NULL), MOEC_OK);
    assert_int_equal(moec_layout_create(&at.layout, at.plan, 0, NULL), MOEC_OK);
    assert_int_equal(moec_kernels_open(&at.kernels, NULL, NULL), MOEC_OK);
    assert_int_equal(moec_convert(at.layout, at.conv, &c, &stats, NULL),
                     MOEC_OK);
    make_rows();
    return 0;
}

static int free_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < 8 * 16; i++)
        free(at.rows[i / 16][i % 16]);
    moec_plan_destroy(at.turned);
    moec_conversion_close(at.conversion);
    moec_kernels_close(at.kernels);
    moec_layout_destroy(at.layout);
    moec_plan_destroy(at.plan);
    moec_placement_destroy(at.placement);
    moec_model_destroy(at.model);
    moec_ckpt_close(at.ckpt);
    moec_families_destroy(at.families);
    tmpdir_remove(&at.dir);
    return 0;
}

static void every_call_survives_each_failed_allocation(void **state)
{
    static const struct {
        const char *name;
        call_fn fn;
    } calls[] = {
        {"families", families},
        {"ckpt", ckpt},
        {"model", model},
        {"placement", placement},
        {"placement_file", placement_file},
        {"placement_yaml", placement_yaml},
        {"placement_write", placement_write},
        {"counts", counts},
        {"planner", planner},
        {"plan_diff", plan_diff},
        {"router", router},
        {"routes", routes},
        {"eplb", eplb},
        {"replicas", replicas},
        {"plan", plan},
        {"layout", layout},
        {"layout_header", layout_header},
        {"layout_prove", layout_prove},
        {"mutation", mutation},
        {"kernels", kernels},
        {"digest", digest},
        {"conversion", conversion},
        {"verify", verify},
        {"validate", validate},
        {"convert", convert},
        {"unconvert", unconvert},
        {"read_expert", read_expert},
        {"follow", follow},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        sweep(calls[i].fn, calls[i].name);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_survives_each_failed_allocation),
    };

    all_points = argc > 1 && strcmp(argv[1], "all") == 0;
    return cmocka_run_group_tests(tests, make_all, free_all);
}
