/* SPDX-License-Identifier: Apache-2.0
 *
 * A rank in memory is what convert writes for it: every fixture, from the
 * checkpoint and from a conversion, at several worlds and placements. What it
 * must be is worked out here from the plan's moves alone, block by block, with
 * the executor and plain reads: nothing of load/ and of the engine. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "convert.h"
#include "execute.h"
#include "load_case.h"
#include "plan_fixture.h"
#include "tmpdir.h"

/* --------------------------------------------------------- all of a rank */

static void load_all(const load_case *c, uint32_t rank, moec_load_verify verify)
{
    moec_job_opts o = load_opts();
    load_arena arena = {0};
    moec_job *job = NULL;
    moec_job_stats s;
    moec_error err = MOEC_ERROR_INIT;

    o.memory = load_memory;
    o.ctx = &arena;
    o.verify = verify;
    o.common_arena = 1;
    load_ok(moec_job_create(&job, c->plan, c->conversion, rank, &o, &err),
            &err);
    load_ok(moec_job_start(job, &err), &err);
    load_ok(moec_job_wait(job, &err), &err);
    for (size_t i = 0; i < moec_plan_n_layers(c->plan); i++)
        load_compare_layer(c, job, rank, i);
    load_compare_common(c, job);
    moec_job_poll(job, &s);
    assert_int_equal(s.state, MOEC_JOB_DONE);
    assert_int_equal(s.n_layers_ready, s.n_layers);
    assert_true(s.bytes_done == s.bytes_needed);
    if (c->conversion != NULL && verify != MOEC_LOAD_VERIFY_NONE)
        assert_true(s.bytes_verified == s.bytes_needed);
    moec_job_destroy(job);
    load_arena_free(&arena);
}

static void loads_every_fixture(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        plan_fixture x = plan_fixture_open(plan_fixture_names[i], &o);
        tmpdir dir = tmpdir_make();
        load_case c = {.plan = x.plan};

        load_all(&c, 0, MOEC_LOAD_VERIFY_DEFAULT);
        load_all(&c, 1, MOEC_LOAD_VERIFY_NONE);
        load_convert(&c, x.layout, &dir);
        load_all(&c, 0, MOEC_LOAD_VERIFY_DEFAULT);
        load_all(&c, 1, MOEC_LOAD_VERIFY_SHA256);
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

/* Any world out of an expert store, any placement. */
static void gathers_other_worlds_from_a_store(void **state)
{
    static const char *const names[] = {"deepseek_v3_fp8", "gpt_oss", "llama4"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
        tmpdir dir = tmpdir_make();
        load_case c = {0};
        plan_fixture x;

        o.by_expert = 1;
        x = plan_fixture_open(names[i], &o);
        load_convert(&c, x.layout, &dir);
        for (uint32_t w = 1; w <= 4; w *= 2) {
            moec_plan_opts p = MOEC_PLAN_OPTS_INIT;
            moec_error err = MOEC_ERROR_INIT;
            moec_plan *plan = NULL;

            p.n_ranks = w;
            p.n_redundant = w == 1 ? 0 : 4;
            load_ok(moec_plan_create(&plan,
                                     moec_plan_model(moec_layout_plan(
                                         moec_conversion_layout(c.conversion))),
                                     &p, &err),
                    &err);
            c.plan = plan;
            c.truth = x.ckpt;
            load_all(&c, w - 1, MOEC_LOAD_VERIFY_DEFAULT);
            moec_plan_destroy(plan);
        }
        moec_conversion_close(c.conversion);
        tmpdir_remove(&dir);
        plan_fixture_close(&x);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_every_fixture),
        cmocka_unit_test(gathers_other_worlds_from_a_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
