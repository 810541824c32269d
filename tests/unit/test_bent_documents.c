/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Documents that are nearly right. Each prefix of each file of the corpora:
 * refused with a rule and a text, or accepted. And JSON documents with one
 * value replaced by another kind, or left out, at each place in turn.
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
#include <jansson.h>

#include <moec/mapping.h>
#include <moec/record.h>

#include "base/base.h"
#include "converted.h"
#include "index.h"
#include "safetensors.h"
#include "sign_parts.h"

typedef moec_status (*parser)(const char *data, size_t n, moec_error *err);

/* Prefixes of longer files are tried in steps. */
#define PREFIXES_MAX 80u

static size_t n_documents;

/* ---------------------------------------------------------------- parsers */

/* The length in front is made that of what follows: else every prefix breaks
 * one and the same rule. */
static moec_status header(const char *data, size_t n, moec_error *err)
{
    moec_header h;
    char *copy = malloc(n + 8);
    uint64_t bytes = n > 8 ? n - 8 : 0;

    assert_non_null(copy);
    memcpy(copy, data, n);
    for (size_t i = 0; n > 8 && i < 8; i++)
        copy[i] = (char)(bytes >> 8 * i & 0xff);
    moec_status st = moec_header_parse(&h, copy, n, n, "f", err);
    if (st == MOEC_OK)
        moec_header_fini(&h);
    free(copy);
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

static moec_status shards(const char *data, size_t n, moec_error *err)
{
    moec_index_facts facts;

    (void)moec_index_parse(data, n, "f", MOEC_INDEX_TRUSTING, pass_entry, NULL,
                           &facts, NULL);
    return moec_index_parse(data, n, "f", MOEC_INDEX_CHECKED, pass_entry, NULL,
                            &facts, err);
}

static moec_status manifest(const char *data, size_t n, moec_error *err)
{
    moec_manifest m = {0};
    moec_status st = moec_manifest_decode(&m, data, n, err);

    if (st == MOEC_OK)
        moec_manifest_fini(&m);
    return st;
}

static moec_status slots(const char *data, size_t n, moec_error *err)
{
    moec_slots s = {0};
    moec_status st = moec_slots_decode(&s, data, n, err);

    if (st == MOEC_OK)
        moec_slots_fini(&s);
    return st;
}

static moec_status sources(const char *data, size_t n, moec_error *err)
{
    moec_sources s = {0};
    moec_status st = moec_sources_decode(&s, data, n, err);

    if (st == MOEC_OK)
        moec_sources_fini(&s);
    return st;
}

static moec_status placement_of(const moec_placement_target *t,
                                const char *data, size_t n, moec_error *err)
{
    moec_placement_file *f = NULL;
    moec_status st = moec_placement_file_read(&f, t, "f", data, n, err);

    moec_placement_file_close(f);
    return st;
}

/* Against a model, and by itself. */
static moec_status placement(const char *data, size_t n, moec_error *err)
{
    static const moec_layer_key keys[] = {
        {MOEC_SPACE_MAIN, 1}, {MOEC_SPACE_MAIN, 2}, {MOEC_SPACE_MTP, 0}};
    moec_placement_target t = MOEC_PLACEMENT_TARGET_INIT;

    (void)placement_of(&t, data, n, NULL);
    t.n_experts = 16;
    t.n_layers = 3;
    t.keys = keys;
    t.n_keys = 3;
    return placement_of(&t, data, n, err);
}

static moec_status counts(const char *data, size_t n, moec_error *err)
{
    moec_counts *c = NULL;
    moec_status st = moec_counts_parse(&c, NULL, "f", data, n, err);

    moec_counts_destroy(c);
    return st;
}

static moec_status family(const char *data, size_t n, moec_error *err)
{
    moec_families *f = NULL;
    moec_status st = moec_families_create(&f, err);

    if (st == MOEC_OK)
        st = moec_families_add(f, "f", data, n, err);
    moec_families_destroy(f);
    return st;
}

static moec_status bundle(const char *data, size_t n, moec_error *err)
{
    moec_bundle b = {0};
    moec_status st = moec_bundle_decode(&b, data, n, "f", err);

    moec_bundle_fini(&b);
    return st;
}

static moec_status statement(const char *data, size_t n, moec_error *err)
{
    moec_statement s = {0};
    moec_status st = moec_statement_decode(&s, data, n, err);

    moec_statement_fini(&s);
    return st;
}

static moec_status routes(const char *data, size_t n, moec_error *err)
{
    moec_routes *r = NULL;
    moec_status st = MOEC_OK;

    if (n > 0 && data[0] == 'R') /* else another form of the corpus */
        st = moec_routes_parse(&r, data + 1, n - 1, "f", err);
    moec_routes_destroy(r);
    return st;
}

static moec_ckpt *ckpt; /* whose config.json is bent */
static moec_families *families;

static moec_status config(const char *data, size_t n, moec_error *err)
{
    moec_model *m = NULL;
    moec_status st = moec_model_create(&m, ckpt, families, data, n, err);

    moec_model_destroy(m);
    return st;
}

static void try_one(parser fn, const char *name, const char *data, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    char *exact = malloc(n ? n : 1); /* overruns are seen */
    moec_status st;

    assert_non_null(exact);
    memcpy(exact, data, n);
    st = fn(exact, n, &err);
    free(exact);
    n_documents++;
    if (st == MOEC_OK)
        return;
    if (st == MOEC_E_INTERNAL || st == MOEC_E_NOMEM || st == MOEC_E_IO ||
        st == MOEC_E_ARG || err.text[0] == '\0')
        fail_msg("%s: %s, '%s'", name, moec_status_name(st), err.text);
}

/* ------------------------------------------------------------------ files */

static char *read_whole(const char *path, size_t *n_out)
{
    FILE *f = fopen(path, "rb");
    char *data = malloc(1 << 20);

    if (f == NULL)
        fail_msg("%s: cannot open", path);
    assert_non_null(data);
    *n_out = fread(data, 1, 1 << 20, f);
    (void)fclose(f);
    return data;
}

typedef void (*file_fn)(parser fn, const char *path);

static void each_file(const char *dir, const char *suffix, parser fn,
                      file_fn each)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    char path[1024];

    if (d == NULL)
        fail_msg("%s: cannot open", dir);
    while ((e = readdir(d)) != NULL) {
        size_t n = strlen(e->d_name), m = strlen(suffix);
        if (e->d_name[0] == '.' || n < m ||
            strcmp(e->d_name + n - m, suffix) != 0)
            continue;
        (void)snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
        each(fn, path);
    }
    (void)closedir(d);
}

static void cut(parser fn, const char *path)
{
    size_t n, step;
    char *data = read_whole(path, &n);

    step = n / PREFIXES_MAX + 1;
    for (size_t k = 0; k <= n; k += step)
        try_one(fn, path, data, k);
    free(data);
}

static void each_prefix_has_a_verdict(void **state)
{
    static const struct {
        const char *corpus;
        parser fn;
    } parsers[] = {
        {"header", header}, {"index", shards},    {"manifest", manifest},
        {"slots", slots},   {"sources", sources}, {"placement", placement},
        {"routes", routes},
    };

    (void)state;
    n_documents = 0;
    for (size_t i = 0; i < sizeof(parsers) / sizeof(parsers[0]); i++) {
        char dir[512];
        (void)snprintf(dir, sizeof(dir), "%s/corpora/%s", MOEC_TEST_FIXTURES,
                       parsers[i].corpus);
        each_file(dir, "", parsers[i].fn, cut);
    }
    printf("%zu prefixes\n", n_documents);
    assert_true(n_documents > 3000);
}

/* ------------------------------------------------------------------- JSON */

enum { BENDS = 11, ITEMS_MAX = 3 };

/* What stands in a value's place; NULL: nothing. */
static json_t *bent(int how)
{
    switch (how) {
    case 1:
        return json_null();
    case 2:
        return json_true();
    case 3:
        return json_integer(-1);
    case 4:
        return json_integer(0);
    case 5:
        return json_integer(INT64_C(1) << 53);
    case 6:
        return json_real(0.5);
    case 7:
        return json_string("");
    case 8:
        return json_string("x\n{layer}{expert}");
    case 9:
        return json_array();
    case 10:
        return json_object();
    default:
        return NULL;
    }
}

/* Bend the value number *left below `v`; of long lists the first ones. */
/* NOLINTNEXTLINE(misc-no-recursion): as deep as documents of ours */
static bool bend(json_t *v, size_t *left, int how)
{
    const char *key;
    json_t *child;
    void *next;
    size_t i;

    json_object_foreach_safe(v, next, key, child)
    {
        if ((*left)-- == 0) {
            json_t *now = bent(how);
            if (now == NULL)
                json_object_del(v, key);
            else
                json_object_set_new(v, key, now);
            return true;
        }
        if (bend(child, left, how))
            return true;
    }
    json_array_foreach (v, i, child) {
        if (i == ITEMS_MAX)
            break;
        if ((*left)-- == 0) {
            json_t *now = bent(how);
            if (now == NULL)
                json_array_remove(v, i);
            else
                json_array_set_new(v, i, now);
            return true;
        }
        if (bend(child, left, how))
            return true;
    }
    return false;
}

static void bend_file(parser fn, const char *path)
{
    size_t n;
    char *data = read_whole(path, &n);
    json_t *good = json_loadb(data, n, 0, NULL);
    bool more = good != NULL && fn(data, n, NULL) == MOEC_OK;

    free(data);
    for (size_t k = 0; more; k++)
        for (int how = 0; how < BENDS && (more || how > 0); how++) {
            json_t *copy = json_deep_copy(good);
            size_t left = k;
            more = bend(copy, &left, how);
            char *text = more ? json_dumps(copy, JSON_INDENT(2)) : NULL;
            if (text != NULL)
                try_one(fn, path, text, strlen(text));
            free(text);
            json_decref(copy);
            if (!more)
                break;
        }
    json_decref(good);
}

static void each_bent_value_has_a_verdict(void **state)
{
    char dir[512];

    (void)state;
    n_documents = 0;
    (void)snprintf(dir, sizeof(dir), "%s/corpora/manifest", MOEC_TEST_FIXTURES);
    each_file(dir, "", manifest, bend_file);
    (void)snprintf(dir, sizeof(dir), "%s/corpora/placement",
                   MOEC_TEST_FIXTURES);
    each_file(dir, "", placement, bend_file);
    (void)snprintf(dir, sizeof(dir), "%s/corpora/signature",
                   MOEC_TEST_FIXTURES);
    each_file(dir, "chain", bundle, bend_file);
    each_file(dir, "p256", bundle, bend_file);
    each_file(dir, "p256-statement", statement, bend_file);
    each_file(dir, "shards-statement", statement, bend_file);
    each_file(dir, "old-statement", statement, bend_file);
    (void)snprintf(dir, sizeof(dir), "%s/../mapping/families",
                   MOEC_TEST_FIXTURES);
    each_file(dir, "deepseek_v3.json", family, bend_file);
    printf("%zu documents\n", n_documents);
    assert_true(n_documents > 2000);
}

static void each_bent_config_has_a_verdict(void **state)
{
    static const char *const names[] = {"deepseek_v3", "gpt_oss"};

    (void)state;
    n_documents = 0;
    assert_int_equal(moec_families_create(&families, NULL), MOEC_OK);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char dir[512], path[600];
        (void)snprintf(dir, sizeof(dir), "%s/checkpoints/%s",
                       MOEC_TEST_FIXTURES, names[i]);
        (void)snprintf(path, sizeof(path), "%s/config.json", dir);
        assert_int_equal(moec_ckpt_open(&ckpt, dir, NULL, NULL), MOEC_OK);
        bend_file(config, path);
        moec_ckpt_close(ckpt);
    }
    moec_families_destroy(families);
    printf("%zu configs\n", n_documents);
    assert_true(n_documents > 500);
}

static void each_bent_count_has_a_verdict(void **state)
{
    static const char *const texts[] = {
        "{\"logical_count\": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}",
        "{\"expert_load_window\": [[[1, 2, 3]]], \"physical_to_logical_map\": "
        "[[0, 1, 0]]}",
        "[[1, 2, 3], [4, 5, 6]]",
    };
    char path[] = "/tmp/moec-counts-XXXXXX";
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        FILE *f = fopen(path, "wb");
        assert_non_null(f);
        (void)fputs(texts[i], f);
        (void)fclose(f);
        cut(counts, path);
        bend_file(counts, path);
    }
    (void)fclose(fdopen(fd, "r"));
    (void)remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_prefix_has_a_verdict),
        cmocka_unit_test(each_bent_value_has_a_verdict),
        cmocka_unit_test(each_bent_config_has_a_verdict),
        cmocka_unit_test(each_bent_count_has_a_verdict),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
