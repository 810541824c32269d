/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every parser over its fuzzing corpus, with each allocation failed: the
 * verdict is the one of plenty, or NOMEM. Never another rule, and never an
 * acceptance of what is refused.
 */

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/mapping.h>
#include <moec/record.h>

#include "base/base.h"
#include "config.h"
#include "converted.h"
#include "family.h"
#include "index.h"
#include "safetensors.h"
#include "sign_parts.h"

typedef moec_status (*parser)(const uint8_t *data, size_t n, moec_error *err);

static moec_status header(const uint8_t *data, size_t n, moec_error *err)
{
    moec_header h;
    moec_status st = moec_header_parse(&h, data, n, n, "f", err);

    if (st == MOEC_OK)
        moec_header_fini(&h);
    return st;
}

static moec_status pass_entry(void *ctx, const moec_index_entry *e,
                              moec_error *err)
{
    (void)ctx;
    (void)e;
    (void)err;
    return MOEC_OK;
}

static moec_status shards(const uint8_t *data, size_t n, moec_error *err)
{
    moec_index_facts facts;

    return moec_index_parse(data, n, "f", MOEC_INDEX_CHECKED, pass_entry, NULL,
                            &facts, err);
}

static moec_status manifest(const uint8_t *data, size_t n, moec_error *err)
{
    moec_manifest m = {0};
    moec_buf text = {0};
    moec_status st = moec_manifest_decode(&m, (const char *)data, n, err);

    if (st == MOEC_OK)
        st = moec_manifest_encode(&m, &text, err);
    moec_buf_fini(&text);
    moec_manifest_fini(&m);
    return st;
}

static moec_status slots(const uint8_t *data, size_t n, moec_error *err)
{
    moec_slots s = {0};
    moec_status st = moec_slots_decode(&s, data, n, err);

    if (st == MOEC_OK)
        moec_slots_fini(&s);
    return st;
}

static moec_status sources(const uint8_t *data, size_t n, moec_error *err)
{
    moec_sources s = {0};
    moec_status st = moec_sources_decode(&s, data, n, err);

    if (st == MOEC_OK)
        moec_sources_fini(&s);
    return st;
}

static const moec_layer_key keys[] = {
    {MOEC_SPACE_MAIN, 1}, {MOEC_SPACE_MAIN, 2}, {MOEC_SPACE_MTP, 0}};

static const moec_placement_form forms[] = {
    MOEC_PLACEMENT_SGLANG, MOEC_PLACEMENT_TRTLLM,  MOEC_PLACEMENT_VLLM_ASCEND,
    MOEC_PLACEMENT_EPLB,   MOEC_PLACEMENT_PHY2LOG, MOEC_PLACEMENT_LOG2PHY,
    MOEC_PLACEMENT_LOGCNT};

/* Writing it in every form; a form that it does not fit is none. */
static moec_status write_forms(const moec_placement_file *f, moec_error *err)
{
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    moec_status st = MOEC_OK;

    o.keys = keys;
    o.n_ranks = 1;
    o.replica = moec_placement_file_replica(f);
    for (size_t i = 0; i < 2 * sizeof(forms) / sizeof(forms[0]); i++) {
        moec_error why = MOEC_ERROR_INIT;
        void *text = NULL;
        size_t bytes;

        o.form = forms[i / 2];
        o.npy = i % 2;
        st = moec_placement_write(moec_placement_file_placement(f), &o, &text,
                                  &bytes, &why);
        free(text);
        if (st != MOEC_E_NOMEM)
            continue;
        *err = why;
        return st;
    }
    return MOEC_OK;
}

static moec_status placement(const uint8_t *data, size_t n, moec_error *err)
{
    moec_placement_target t = MOEC_PLACEMENT_TARGET_INIT;
    moec_placement_file *f = NULL;
    moec_status st;

    t.n_experts = 16;
    t.n_layers = 3;
    t.keys = keys;
    t.n_keys = 3;
    st = moec_placement_file_read(&f, &t, "f", (const char *)data, n, err);
    if (st == MOEC_OK)
        st = write_forms(f, err);
    moec_placement_file_close(f);
    return st;
}

static moec_status signature(const uint8_t *data, size_t n, moec_error *err)
{
    const char *text = (const char *)data;
    moec_statement s = {0};
    moec_bundle b = {0};
    moec_buf out = {0};
    moec_status st;

    if (memmem(data, n, "_type\"", 6) != NULL) {
        st = moec_statement_decode(&s, text, n, err);
        if (st == MOEC_OK)
            st = moec_statement_encode(&s, "m", &out, err);
    } else {
        st = moec_bundle_decode(&b, text, n, "f", err);
        if (st == MOEC_OK)
            st = moec_bundle_pae(&b, false, &out, err);
    }
    moec_buf_fini(&out);
    moec_statement_fini(&s);
    moec_bundle_fini(&b);
    return st;
}

static moec_status routes(const uint8_t *data, size_t n, moec_error *err)
{
    moec_routes *r = NULL;
    moec_status st = MOEC_OK;

    if (data[0] == 'R') /* else another form of the corpus */
        st = moec_routes_parse(&r, data + 1, n - 1, "f", err);
    moec_routes_destroy(r);
    return st;
}

static moec_status family(const uint8_t *data, size_t n, moec_error *err)
{
    moec_family *f = NULL;
    moec_status st = moec_family_parse(&f, "f", (const char *)data, n, err);

    moec_family_destroy(f);
    return st;
}

static moec_families *families;

static moec_status config(const uint8_t *data, size_t n, moec_error *err)
{
    moec_arena arena = {0};
    moec_config c;
    moec_status st =
        moec_config_read(&c, families, (const char *)data, n, &arena, err);

    for (int i = 0; st == MOEC_OK && i < MOEC_FACT_COUNT; i++) {
        const char *origin = NULL;

        st = moec_config_origin(&c, (moec_fact)i, &arena, &origin, err);
    }
    moec_config_fini(&c);
    moec_arena_fini(&arena);
    return st;
}

/* ------------------------------------------------------------------ sweep */

static size_t n_files, n_points;

static void starve(parser fn, const char *name, const uint8_t *data, size_t n)
{
    moec_error plenty = MOEC_ERROR_INIT;
    moec_status want = fn(data, n, &plenty);
    uint64_t allocs;

    moec_alloc_fail_at(0);
    (void)fn(data, n, NULL);
    allocs = moec_alloc_fail_at(0);
    /* of long texts a sample */
    for (uint64_t i = 1; i <= allocs; i += 1 + allocs / 400, n_points++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_status st;

        moec_alloc_fail_at(i);
        st = fn(data, n, &err);
        moec_alloc_fail_at(0);
        if (st == MOEC_E_NOMEM && err.text[0] != '\0')
            continue;
        if (st != want || err.rule != plenty.rule)
            fail_msg("%s, allocation %llu: %s, %s; with all memory %s, %s",
                     name, (unsigned long long)i, moec_status_name(st),
                     err.text, moec_status_name(want), plenty.text);
    }
    n_files++;
}

static void starve_file(parser fn, const char *path)
{
    FILE *f = fopen(path, "rb");
    static uint8_t data[1 << 20];
    size_t n;

    assert_non_null(f);
    n = fread(data, 1, sizeof(data), f);
    (void)fclose(f);
    if (n > 0 && n < sizeof(data))
        starve(fn, path, data, n);
}

static void verdicts_do_not_depend_on_memory(void **state)
{
    static const struct {
        const char *corpus;
        parser fn;
    } parsers[] = {
        {"header", header}, {"index", shards},        {"manifest", manifest},
        {"slots", slots},   {"sources", sources},     {"placement", placement},
        {"routes", routes}, {"signature", signature},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(parsers) / sizeof(parsers[0]); i++) {
        char dir[512], path[1024];
        const struct dirent *e;

        (void)snprintf(dir, sizeof(dir), "%s/corpora/%s", MOEC_TEST_FIXTURES,
                       parsers[i].corpus);
        DIR *d = opendir(dir);
        assert_non_null(d);
        while ((e = readdir(d)) != NULL) {
            if (e->d_name[0] == '.')
                continue;
            (void)snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
            starve_file(parsers[i].fn, path);
        }
        (void)closedir(d);
    }
    printf("%zu files, %zu allocations failed one by one\n", n_files, n_points);
    assert_true(n_files > 100 && n_points > n_files);
}

/* The parsers of what is written by hand: a few of each. */
static void descriptions_and_configs_do_not_either(void **state)
{
    static const char *const described[] = {"minimax_text_01"};
    static const char *const configs[] = {"deepseek_v3"};
    char path[1024];

    (void)state;
    n_points = 0;
    for (size_t i = 0; i < sizeof(described) / sizeof(described[0]); i++) {
        (void)snprintf(path, sizeof(path), "%s/../mapping/families/%s.json",
                       MOEC_TEST_FIXTURES, described[i]);
        starve_file(family, path);
    }
    assert_int_equal(moec_families_create(&families, NULL), MOEC_OK);
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        (void)snprintf(path, sizeof(path), "%s/checkpoints/%s/config.json",
                       MOEC_TEST_FIXTURES, configs[i]);
        starve_file(config, path);
    }
    moec_families_destroy(families);
    printf("%zu allocations failed one by one\n", n_points);
    assert_true(n_points > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verdicts_do_not_depend_on_memory),
        cmocka_unit_test(descriptions_and_configs_do_not_either),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
