/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Level 3 in several processes, here threads: the outputs are those of one, a
 * rank sees no file but its own, what one of them finds all of them report, and
 * nobody waits for one that failed.
 */

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "convert.h"
#include "plan_fixture.h"
#include "thread_exchange.h"

/* ---------------------------------------------------------------- ranks */

typedef struct job {
    thread_member member;
    moec_validate_opts opts;
    char dir[128]; /* or "": the layout */
    moec_validation *v;
    moec_status st;
    moec_error err;
    bool agreed;
} job;

typedef struct team {
    thread_world w;
    job jobs[THREAD_RANKS_MAX];
} team;

static void *run(void *ctx)
{
    job *j = ctx;
    moec_exchange_table t = thread_table(&j->member);
    moec_exchange *x = NULL;

    j->st = moec_exchange_wrap(&x, &t, &j->err);
    if (j->st != MOEC_OK) { /* only where memory is made to fail */
        thread_abandon(&j->member, 4);
        return NULL;
    }
    j->opts.exchange = x;
    j->st = moec_validate(&j->v, j->dir[0] != '\0' ? j->dir : NULL, &j->opts,
                          &j->err);
    j->agreed = moec_exchange_agreed(x) != 0;
    if (j->st != MOEC_OK && !j->agreed)
        moec_exchange_abandon(x, 4);
    moec_exchange_close(x);
    return NULL;
}

/* All ranks with the same options; `dir` may hold "%u" for the rank. */
static void run_team(team *t, uint32_t size, const moec_validate_opts *o,
                     const char *dir)
{
    pthread_t threads[THREAD_RANKS_MAX];

    memset(t->jobs, 0, sizeof(t->jobs));
    thread_world_init(&t->w, size);
    for (uint32_t r = 0; r < size; r++) {
        t->jobs[r].member = (thread_member){&t->w, r};
        t->jobs[r].opts = o[r];
        if (dir != NULL)
            snprintf(t->jobs[r].dir, sizeof(t->jobs[r].dir), "%s.%u", dir, r);
        assert_int_equal(pthread_create(&threads[r], NULL, run, &t->jobs[r]),
                         0);
    }
    for (uint32_t r = 0; r < size; r++)
        pthread_join(threads[r], NULL);
}

static void end_team(team *t)
{
    for (uint32_t r = 0; r < t->w.size; r++)
        moec_validation_destroy(t->jobs[r].v);
    thread_world_fini(&t->w);
}

static void same_opts(moec_validate_opts *all, const moec_validate_opts *o)
{
    for (uint32_t r = 0; r < THREAD_RANKS_MAX; r++)
        all[r] = *o;
}

static moec_validate_opts memory_opts(const plan_fixture *x)
{
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;

    o.layout = x->layout;
    o.n_threads = 1;
    return o;
}

/* ------------------------------------------------------------ as one process */

static void expect_traffic(const moec_validation *v, size_t i, uint32_t size)
{
    const moec_layer_result *l = moec_validation_layer(v, i);
    moec_rank_traffic sum = {0};
    uint64_t most = 0;

    for (uint32_t r = 0; r < size; r++) {
        const moec_rank_traffic *t = moec_validation_traffic(v, i, r);

        assert_non_null(t);
        assert_true(t->tokens > 0 && t->received <= l->tokens);
        sum.tokens += t->tokens;
        sum.columns += t->columns;
        sum.bytes_sent += t->bytes_sent;
        sum.bytes_received += t->bytes_received;
        most = t->columns > most ? t->columns : most;
    }
    assert_int_equal(sum.tokens, l->tokens);
    assert_int_equal(sum.columns, l->rank_load.sum);
    assert_int_equal(most, l->rank_load.max);
    assert_int_equal(sum.bytes_sent, sum.bytes_received);
    assert_int_equal(sum.bytes_sent == 0, size == 1);
    assert_null(moec_validation_traffic(v, i, size));
}

static void expect_same(const moec_validation *one, const moec_validation *v,
                        uint32_t size, const char *what)
{
    const moec_report *r = moec_validation_report(v);

    if (moec_report_n_findings(r) != 0)
        fail_msg("%s: %s", what, moec_report_finding(r, 0)->message);
    assert_int_equal(moec_validation_n_layers(v),
                     moec_validation_n_layers(one));
    for (size_t i = 0; i < moec_validation_n_layers(v); i++) {
        const moec_layer_result *a = moec_validation_layer(one, i);
        const moec_layer_result *b = moec_validation_layer(v, i);

        assert_int_equal(b->validated, 1);
        assert_int_equal(b->ids_equal, 1);
        assert_int_equal(b->tokens, a->tokens);
        if (memcmp(a->output_sha256, b->output_sha256, 32) != 0)
            fail_msg("%s: layer %zu: other outputs than of one process", what,
                     i);
        assert_memory_equal(&a->expert_load, &b->expert_load,
                            sizeof(a->expert_load));
        assert_int_equal(a->pairs, b->pairs);
        assert_int_equal(a->forced, b->forced);
        assert_int_equal(a->slots, b->slots);
        assert_true(a->max_abs_err == b->max_abs_err);
        assert_true(a->max_rel_err == b->max_rel_err);
        assert_null(moec_validation_traffic(one, i, 0));
        expect_traffic(v, i, size);
    }
}

/* In memory: every rank's slots are made by the moves. */
static void compare_with_one(const char *fixture, const moec_plan_opts *p,
                             uint32_t tokens)
{
    plan_fixture x = plan_fixture_open(fixture, p);
    moec_validate_opts o = memory_opts(&x), all[THREAD_RANKS_MAX];
    moec_validation *one = NULL;
    char what[96];
    team t;

    o.n_tokens = tokens;
    snprintf(what, sizeof(what), "%s, %u ranks, R %u", fixture, p->n_ranks,
             p->n_redundant);
    assert_int_equal(moec_validate(&one, NULL, &o, NULL), MOEC_OK);
    same_opts(all, &o);
    run_team(&t, p->n_ranks, all, NULL);
    for (uint32_t r = 0; r < p->n_ranks; r++) {
        if (t.jobs[r].st != MOEC_OK)
            fail_msg("%s: %s", what, t.jobs[r].err.text);
        expect_same(one, t.jobs[r].v, p->n_ranks, what);
    }
    end_team(&t);
    moec_validation_destroy(one);
    plan_fixture_close(&x);
}

static void ranks_give_the_outputs_of_one_process(void **state)
{
    static const char *const names[] = {"deepseek_v3",     "qwen2_moe",
                                        "deepseek_v3_fp8", "llama4",
                                        "gpt_oss",         "dbrx"};
    static const uint32_t ranks[] = {1, 2, 4};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        for (size_t k = 0; k < 3; k++) {
            moec_plan_opts p = MOEC_PLAN_OPTS_INIT;

            p.n_ranks = ranks[k];
            p.n_redundant = ranks[k] * (uint32_t)((i + k) % 3);
            p.allow_empty = 1;
            p.shared = (i + k) % 2 != 0 ? MOEC_SHARED_SLOTS_GLOBAL
                                        : MOEC_SHARED_SLOTS_PER_RANK;
            compare_with_one(names[i], &p, 24);
        }
}

/* Fewer tokens than experts: what nobody chose is run by somebody. */
static void every_expert_runs_somewhere(void **state)
{
    moec_plan_opts p = plan_fixture_opts();

    (void)state;
    p.n_ranks = 4;
    p.n_redundant = 4;
    compare_with_one("deepseek_v3", &p, 4);
}

/* ------------------------------------------------------- a rank's own files */

typedef struct converted {
    plan_fixture x;
    char root[64], out[96];
    uint32_t n;
} converted;

static bool is_of(const char *name, uint32_t rank)
{
    char own[40];

    snprintf(own, sizeof(own), "experts-rank-%05u-", rank);
    return strncmp(name, own, strlen(own)) == 0;
}

/* A directory for each rank, as if on a host of its own: the other ranks' files
 * are not there. */
static void open_converted(converted *c, const char *fixture, uint32_t ranks)
{
    moec_plan_opts p = plan_fixture_opts();
    moec_convert_opts o = {.n_threads = 1};
    moec_convert_stats stats;
    moec_error err = MOEC_ERROR_INIT;

    p.n_ranks = ranks;
    p.n_redundant = ranks;
    c->n = ranks;
    c->x = plan_fixture_open(fixture, &p);
    strcpy(c->root, "/tmp/moec-exchange-XXXXXX");
    assert_non_null(mkdtemp(c->root));
    snprintf(c->out, sizeof(c->out), "%s/out", c->root);
    if (moec_convert(c->x.layout, c->out, &o, &stats, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    for (uint32_t r = 0; r < ranks; r++) {
        char dir[128];
        DIR *d = opendir(c->out);
        const struct dirent *e;

        snprintf(dir, sizeof(dir), "%s.%u", c->out, r);
        assert_int_equal(mkdir(dir, 0700), 0);
        assert_non_null(d);
        while ((e = readdir(d)) != NULL) {
            char to[512];

            snprintf(to, sizeof(to), "%s/%s", dir, e->d_name);
            if (e->d_name[0] != '.' &&
                (strncmp(e->d_name, "experts-rank-", 13) != 0 ||
                 is_of(e->d_name, r)))
                assert_int_equal(linkat(dirfd(d), e->d_name, AT_FDCWD, to, 0),
                                 0);
        }
        closedir(d);
    }
}

static void close_converted(converted *c)
{
    char line[256];

    snprintf(line, sizeof(line), "rm -rf '%s'", c->root);
    assert_int_equal(system(line), 0);
    plan_fixture_close(&c->x);
}

/* Path of rank `r`'s file as rank `r` sees it. */
static void rank_file(char out[512], const converted *c, uint32_t seen_by,
                      uint32_t r)
{
    snprintf(out, 512, "%s.%u/experts-rank-%05u-of-%05u-part-00001.safetensors",
             c->out, seen_by, r, c->n);
}

static void run_converted(team *t, const converted *c)
{
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT, all[THREAD_RANKS_MAX];

    o.source = c->x.ckpt;
    o.n_threads = 1;
    o.n_tokens = 16;
    same_opts(all, &o);
    run_team(t, c->n, all, c->out);
}

/* All ranks say the same, and this of it. */
static const moec_finding *expect_found(const team *t, moec_rule rule,
                                        uint32_t rank)
{
    const moec_finding *first = NULL;

    for (uint32_t r = 0; r < t->w.size; r++) {
        const moec_report *p;
        const moec_finding *x = NULL;

        if (t->jobs[r].st != MOEC_OK)
            fail_msg("%s", t->jobs[r].err.text);
        p = moec_validation_report(t->jobs[r].v);
        for (size_t i = 0; i < moec_report_n_findings(p); i++) {
            const moec_finding *f = moec_report_finding(p, i);

            if (f->rule == rule && (f->has & MOEC_HAS_RANK) != 0 &&
                f->rank == rank)
                x = f;
        }
        if (x == NULL)
            fail_msg("rank %u does not tell of rank %u", r, rank);
        assert_int_equal(moec_report_ok(p), 0);
        first = first == NULL ? x : first;
        assert_string_equal(x->message, first->message);
    }
    return first;
}

static void a_rank_needs_no_file_of_another(void **state)
{
    converted c;
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;
    moec_validation *one = NULL;
    team t;

    (void)state;
    open_converted(&c, "deepseek_v3", 4);
    o.source = c.x.ckpt;
    o.n_tokens = 16;
    assert_int_equal(moec_validate(&one, c.out, &o, NULL), MOEC_OK);
    run_converted(&t, &c);
    for (uint32_t r = 0; r < 4; r++) {
        assert_int_equal(t.jobs[r].st, MOEC_OK);
        expect_same(one, t.jobs[r].v, 4, "own files");
    }
    end_team(&t);
    moec_validation_destroy(one);
    close_converted(&c);
}

static void a_missing_rank_file_is_named(void **state)
{
    converted c;
    char path[512];
    team t;

    (void)state;
    open_converted(&c, "mixtral", 4);
    rank_file(path, &c, 2, 2);
    assert_int_equal(unlink(path), 0);
    run_converted(&t, &c);
    assert_non_null(
        strstr(expect_found(&t, MOEC_RULE_M05, 2)->file, "rank-00002"));
    end_team(&t);
    close_converted(&c);
}

static void swapped_rank_files_are_named(void **state)
{
    converted c;
    char own[512], other[512];
    const moec_finding *f;
    team t;

    (void)state;
    open_converted(&c, "mixtral", 2);
    for (uint32_t r = 0; r < 2; r++) {
        rank_file(own, &c, r, r);
        assert_int_equal(unlink(own), 0);
        snprintf(other, sizeof(other),
                 "%s/experts-rank-%05u-of-00002-part-00001.safetensors", c.out,
                 1 - r);
        assert_int_equal(link(other, own), 0);
    }
    run_converted(&t, &c);
    f = expect_found(&t, MOEC_RULE_M06, 0);
    assert_non_null(strstr(f->file, "rank-00000"));
    assert_non_null(strstr(f->message, "rank-00001"));
    (void)expect_found(&t, MOEC_RULE_M06, 1);
    end_team(&t);
    close_converted(&c);
}

/* The header is right and the bytes are not: the slot's own rank and file. */
static void a_damaged_slot_is_named(void **state)
{
    static const char zeros[512] = {0};
    converted c;
    char path[512];
    const moec_finding *f;
    FILE *file;
    team t;

    (void)state;
    open_converted(&c, "mixtral", 2);
    rank_file(path, &c, 1, 1);
    file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, (long)moec_layout_file(c.x.layout, 1)->header_bytes, SEEK_SET);
    assert_int_equal(fwrite(zeros, sizeof(zeros), 1, file), 1);
    fclose(file);
    run_converted(&t, &c);
    f = expect_found(&t, MOEC_RULE_K03, 1);
    assert_non_null(strstr(f->file, "rank-00001"));
    assert_int_equal(f->slot, 0);
    end_team(&t);
    close_converted(&c);
}

/* ------------------------------------------------------- leaving together */

static void expect_all(const team *t, moec_status st, const char *text)
{
    for (uint32_t r = 0; r < t->w.size; r++) {
        assert_int_equal(t->jobs[r].st, st);
        assert_null(t->jobs[r].v);
        assert_true(t->jobs[r].agreed);
        if (strstr(t->jobs[r].err.text, text) == NULL)
            fail_msg("rank %u says: %s", r, t->jobs[r].err.text);
    }
}

static void another_number_of_processes_is_refused(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("mixtral", &p);
    moec_validate_opts o = memory_opts(&x), all[THREAD_RANKS_MAX];
    team t;

    (void)state;
    same_opts(all, &o);
    for (uint32_t size = 1; size <= 3; size += 2) {
        run_team(&t, size, all, NULL);
        expect_all(&t, MOEC_E_ARG, "2 ranks");
        end_team(&t);
    }
    o.n_tokens = 1;
    same_opts(all, &o);
    run_team(&t, 2, all, NULL);
    expect_all(&t, MOEC_E_ARG, "1 tokens cannot be dealt out to 2 processes");
    end_team(&t);
    plan_fixture_close(&x);
}

static int stop(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    (void)total;
    return done > 100000;
}

static void one_that_fails_takes_the_others_along(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("mixtral", &p);
    moec_validate_opts o = memory_opts(&x), all[THREAD_RANKS_MAX];
    team t;

    (void)state;
    same_opts(all, &o);
    all[1].progress = stop;
    run_team(&t, 2, all, NULL);
    expect_all(&t, MOEC_E_CANCELLED, "(rank 1)");
    end_team(&t);
    same_opts(all, &o);
    all[0].inputs = "/nonexistent";
    run_team(&t, 2, all, NULL);
    expect_all(&t, t.jobs[0].st, "(rank 0)");
    assert_int_not_equal(t.jobs[0].st, MOEC_OK);
    end_team(&t);
    plan_fixture_close(&x);
}

/* Whichever allocation of whichever rank fails, all of them end. */
static void nobody_waits_where_memory_fails(void **state)
{
    moec_plan_opts p = plan_fixture_opts();
    plan_fixture x = plan_fixture_open("olmoe", &p);
    moec_validate_opts o = memory_opts(&x), all[THREAD_RANKS_MAX];
    bool failed = true;

    (void)state;
    o.n_tokens = 2;
    same_opts(all, &o);
    for (uint64_t n = 1; failed; n += 1 + n / 12) {
        team t;

        moec_alloc_fail_at(n);
        run_team(&t, 2, all, NULL);
        moec_alloc_fail_at(0);
        failed = t.jobs[0].st != MOEC_OK || t.jobs[1].st != MOEC_OK;
        for (uint32_t r = 0; failed && r < 2; r++)
            assert_true(t.jobs[r].st == MOEC_E_NOMEM ||
                        t.jobs[r].st == MOEC_E_IO || t.jobs[r].st == MOEC_OK);
        end_team(&t);
    }
    plan_fixture_close(&x);
}

static void refuses_tables_that_are_not_whole(void **state)
{
    thread_world w;
    thread_member m = {&w, 0};
    moec_exchange_table good, t;
    moec_exchange *x = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    thread_world_init(&w, 1);
    good = thread_table(&m);
    for (int i = 0; i < 8; i++) {
        t = good;
        t.struct_bytes -= i == 0;
        t.abi += i == 1;
        t.size = i == 2 ? 0 : t.size;
        t.rank = i == 3 ? 1 : t.rank;
        t.all_to_all = i == 4 ? NULL : t.all_to_all;
        t.all_to_all_v = i == 5 ? NULL : t.all_to_all_v;
        t.all_gather_v = i == 6 ? NULL : t.all_gather_v;
        t.all_reduce = i == 7 ? NULL : t.all_reduce;
        assert_int_equal(moec_exchange_wrap(&x, &t, NULL), MOEC_E_ARG);
    }
    assert_null(x);
    assert_int_equal(moec_exchange_open(&x, "/nonexistent.so", &err),
                     MOEC_E_NO_DEVICE);
    assert_non_null(strstr(err.text, "no MPI"));
    assert_null(x);
    moec_exchange_close(NULL);
    thread_world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_give_the_outputs_of_one_process),
        cmocka_unit_test(every_expert_runs_somewhere),
        cmocka_unit_test(a_rank_needs_no_file_of_another),
        cmocka_unit_test(a_missing_rank_file_is_named),
        cmocka_unit_test(swapped_rank_files_are_named),
        cmocka_unit_test(a_damaged_slot_is_named),
        cmocka_unit_test(another_number_of_processes_is_refused),
        cmocka_unit_test(one_that_fails_takes_the_others_along),
        cmocka_unit_test(nobody_waits_where_memory_fails),
        cmocka_unit_test(refuses_tables_that_are_not_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
