/* SPDX-License-Identifier: Apache-2.0 */
/* A conversion behind a caller's source: what a directory gives it gives, by
 * ranges of what is needed; and what is not as it was is named. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "conversion.h"
#include "file_store.h"
#include "load_case.h"

/* A conversion of two ranks with replicas, in a directory. */
typedef struct both {
    plan_fixture x;
    tmpdir dir;
    store s;
    load_case c; /* opened through the source */
} both;

static void open_both(both *b, const char *name)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_convert_opts co = {.n_threads = 2};
    moec_convert_stats stats;
    moec_error err = MOEC_ERROR_INIT;

    memset(b, 0, sizeof(*b));
    b->x = plan_fixture_open(name, &o);
    b->dir = tmpdir_make();
    load_ok(moec_convert(b->x.layout, tmpdir_path(&b->dir, "out"), &co, &stats,
                         &err),
            &err);
    store_open(&b->s, tmpdir_path(&b->dir, "out"));
    load_ok(
        moec_conversion_open_source(&b->c.conversion, &b->s.pub, NULL, &err),
        &err);
    b->c.truth = b->x.ckpt;
    b->c.plan = moec_layout_plan(moec_conversion_layout(b->c.conversion));
}

static void close_both(both *b)
{
    moec_conversion_close(b->c.conversion);
    store_close(&b->s);
    tmpdir_remove(&b->dir);
    plan_fixture_close(&b->x);
}

static size_t find(const store *s, const char *part)
{
    for (size_t i = 0; i < s->pub.n_files; i++)
        if (strstr(s->names[i], part) != NULL)
            return i;
    fail_msg("no file %s", part);
    return 0;
}

static void opens_without_reading_data(void **state)
{
    both b;

    (void)state;
    open_both(&b, "deepseek_v3");
    for (size_t i = 0; i < b.s.pub.n_files; i++)
        if (strstr(b.s.names[i], ".safetensors") != NULL &&
            strstr(b.s.names[i], ".json") == NULL)
            assert_int_equal(b.s.bytes_read[i], 0);
    assert_string_equal(moec_conversion_files(b.c.conversion)->dir,
                        "store://files");
    close_both(&b);
}

static moec_status load_rank(both *b, uint32_t rank, bool common,
                             moec_error *err)
{
    load_arena arena = {0};
    moec_job_opts o = load_opts();
    moec_job *job = NULL;
    moec_status st;

    o.memory = load_memory;
    o.ctx = &arena;
    o.common_arena = common;
    st = moec_job_create(&job, NULL, b->c.conversion, rank, &o, err);
    if (st == MOEC_OK)
        st = moec_job_start(job, err);
    if (st == MOEC_OK)
        st = moec_job_wait(job, err);
    for (size_t i = 0; st == MOEC_OK && i < moec_plan_n_layers(b->c.plan); i++)
        load_compare_layer(&b->c, job, rank, i);
    if (st == MOEC_OK && common)
        load_compare_common(&b->c, job);
    moec_job_destroy(job);
    load_arena_free(&arena);
    return st;
}

static void a_rank_loads_its_own_bytes_alone(void **state)
{
    static const char *const names[] = {"deepseek_v3_fp8", "gpt_oss"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        moec_error err = MOEC_ERROR_INIT;
        both b;
        size_t mine, other;

        open_both(&b, names[i]);
        mine = find(&b.s, "experts-rank-00001");
        other = find(&b.s, "experts-rank-00000");
        load_ok(load_rank(&b, 1, false, &err), &err);
        assert_int_equal(b.s.bytes_read[other], 0);
        assert_int_not_equal(b.s.bytes_read[mine], 0);
        assert_true(b.s.bytes_read[mine] <= b.s.files[mine].bytes);
        load_ok(load_rank(&b, 0, true, &err), &err);
        close_both(&b);
    }
}

static moec_status verify(both *b, moec_report **out, moec_error *err)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;

    o.n_threads = 2;
    o.store = &b->s.pub;
    o.source = b->x.ckpt;
    return moec_verify(out, NULL, &o, err);
}

static void verifies_and_validates(void **state)
{
    moec_validate_opts o = MOEC_VALIDATE_OPTS_INIT;
    moec_validation *v = NULL;
    moec_report *r = NULL;
    moec_error err = MOEC_ERROR_INIT;
    both b;

    (void)state;
    open_both(&b, "qwen3_moe");
    load_ok(verify(&b, &r, &err), &err);
    assert_true(moec_report_ok(r));
    moec_report_destroy(r);
    o.store = &b.s.pub;
    o.source = b.x.ckpt;
    o.n_threads = 2;
    o.n_tokens = 8;
    load_ok(moec_validate(&v, NULL, &o, &err), &err);
    assert_true(moec_report_ok(moec_validation_report(v)));
    moec_validation_destroy(v);
    close_both(&b);
}

static bool has_finding(const moec_report *r, const char *text)
{
    for (size_t i = 0; i < moec_report_n_findings(r); i++)
        if (strstr(moec_report_finding(r, i)->message, text) != NULL)
            return true;
    return false;
}

static void damage_is_found(void **state)
{
    moec_report *r = NULL;
    moec_error err = MOEC_ERROR_INIT;
    both b;
    size_t i;
    uint64_t off;
    size_t file;
    unsigned char byte;
    int fd;

    (void)state;
    open_both(&b, "qwen3_moe");
    moec_layout_find_slots(moec_conversion_layout(b.c.conversion), 1, 0, 0,
                           &file, &off);
    i = find(&b.s, "experts-rank-00001");
    fd = openat(open(tmpdir_path(&b.dir, "out"), O_RDONLY | O_DIRECTORY),
                b.s.names[i], O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, (off_t)off), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)off), 1);
    load_ok(verify(&b, &r, &err), &err);
    assert_false(moec_report_ok(r));
    assert_int_equal(moec_report_finding(r, 0)->rule, MOEC_RULE_T3);
    moec_report_destroy(r);
    assert_int_equal(load_rank(&b, 1, false, &err), MOEC_E_INTEGRITY);
    memset(&err, 0, sizeof(err));
    load_ok(load_rank(&b, 0, false, &err), &err);
    /* a file of another conversion beside these */
    snprintf(b.s.names[i], sizeof(b.s.names[i]), "experts-rank-9.safetensors");
    load_ok(verify(&b, &r, &err), &err);
    assert_true(has_finding(r, "a data file that the manifest does not name"));
    assert_true(has_finding(r, "is missing or damaged"));
    moec_report_destroy(r);
    close(fd);
    close_both(&b);
}

static void changes_and_failures_are_named(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_conversion *c = NULL;
    both b;
    size_t i;

    (void)state;
    open_both(&b, "qwen3_moe");
    b.s.changes = true;
    assert_int_equal(load_rank(&b, 1, false, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I13);
    b.s.changes = false;
    b.s.fail_at = atomic_load(&b.s.n_reads) + 1;
    memset(&err, 0, sizeof(err));
    assert_int_equal(load_rank(&b, 1, false, &err), MOEC_E_IO);
    assert_non_null(strstr(err.text, "no such object"));
    assert_non_null(strstr(err.text, "experts-rank-00001"));
    for (unsigned k = 1; k <= 3; k++) { /* the three files */
        b.s.fail_at = atomic_load(&b.s.n_reads) + k;
        memset(&err, 0, sizeof(err));
        assert_int_equal(moec_conversion_open_source(&c, &b.s.pub, NULL, &err),
                         MOEC_E_IO);
        assert_non_null(strstr(err.text, "store://files"));
        assert_non_null(strstr(err.text, "no such object"));
    }
    i = find(&b.s, "manifest.json");
    snprintf(b.s.names[i], sizeof(b.s.names[i]), "other.json");
    memset(&err, 0, sizeof(err));
    assert_int_equal(moec_conversion_open_source(&c, &b.s.pub, NULL, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_M01);
    assert_int_equal(moec_conversion_open_source(&c, NULL, NULL, NULL),
                     MOEC_E_ARG);
    assert_null(c);
    close_both(&b);
}

static void a_file_of_another_size_is_refused(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    both b;
    size_t i;

    (void)state;
    open_both(&b, "qwen3_moe");
    moec_conversion_close(b.c.conversion);
    i = find(&b.s, "experts-rank-00001");
    b.s.files[i].bytes -= 4096;
    load_ok(moec_conversion_open_source(&b.c.conversion, &b.s.pub, NULL, &err),
            &err);
    assert_int_equal(load_rank(&b, 1, false, &err), MOEC_E_INTEGRITY);
    assert_int_equal(err.rule, MOEC_RULE_M05);
    close_both(&b);
}

static void opening_may_lack_memory(void **state)
{
    moec_status st = MOEC_E_NOMEM;
    moec_conversion *c = NULL;
    both b;

    (void)state;
    open_both(&b, "qwen3_moe");
    for (uint64_t i = 1; st == MOEC_E_NOMEM; i++) {
        (void)moec_alloc_fail_at(i);
        st = moec_conversion_open_source(&c, &b.s.pub, NULL, NULL);
        (void)moec_alloc_fail_at(0);
        assert_true((st == MOEC_OK) == (c != NULL));
        assert_true(i < 100000);
    }
    assert_int_equal(st, MOEC_OK);
    moec_conversion_close(c);
    close_both(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_without_reading_data),
        cmocka_unit_test(a_rank_loads_its_own_bytes_alone),
        cmocka_unit_test(verifies_and_validates),
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(changes_and_failures_are_named),
        cmocka_unit_test(a_file_of_another_size_is_refused),
        cmocka_unit_test(opening_may_lack_memory),
    };

    load_scratch();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
