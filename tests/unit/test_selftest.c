/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test as a library: one case of every kind, in memory.
 */

#include "vectors.h"

#include "base/base.h"
#include "selftest.h"

/* Leave the first entry of a list, or the one with this id. */
static void leave_one(json_t *list, const char *id)
{
    while (id && strcmp(vectors_text(json_array_get(list, 0), "id"), id) != 0)
        assert_int_equal(json_array_remove(list, 0), 0);
    while (json_array_size(list) > 1)
        assert_int_equal(json_array_remove(list, 1), 0);
}

/* One case of each list of a file, as a document of its own. */
static char *shorten(const char *file)
{
    static const char *const lists[] = {"cases", "chains", "bad"};
    json_t *root = vectors_load(file);
    json_t *chains = json_object_get(root, "chains");
    char *text;

    if (chains) /* it names its map */
        leave_one(json_object_get(root, "maps"),
                  vectors_text(json_array_get(chains, 0), "map"));
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        if (json_object_get(root, lists[i]))
            leave_one(json_object_get(root, lists[i]), NULL);
    }
    text = json_dumps(root, JSON_COMPACT);
    assert_non_null(text);
    json_decref(root);
    return text;
}

static void *load_tensors(size_t *bytes)
{
    const char *path = MOEC_TEST_FIXTURES "/vectors/routing.safetensors";
    FILE *f = fopen(path, "rb");
    void *data = malloc(1u << 20);

    assert_non_null(f);
    assert_non_null(data);
    *bytes = fread(data, 1, 1u << 20, f);
    assert_true(*bytes > 0 && *bytes < 1u << 20);
    assert_int_equal(fclose(f), 0);
    return data;
}

#define N_FILES 6

struct vectors {
    moec_vector_file files[N_FILES];
    moec_kernels *k;
};

static int setup(void **state)
{
    static const char *const names[] = {"routing.json", "expert_choice.json",
                                        "dispatch.json", "waterfill.json",
                                        "eplb.json"};
    struct vectors *v = calloc(1, sizeof(*v));
    moec_kernels_opts opts = MOEC_KERNELS_OPTS_INIT;

    assert_non_null(v);
    for (size_t i = 0; i < 5; i++) {
        char *text = shorten(names[i]);

        v->files[i] = (moec_vector_file){names[i], text, strlen(text)};
    }
    v->files[5].name = "routing.safetensors";
    v->files[5].data = load_tensors(&v->files[5].bytes);
    opts.isa = MOEC_ISA_SCALAR;
    assert_int_equal(moec_kernels_open(&v->k, &opts, NULL), MOEC_OK);
    *state = v;
    return 0;
}

static int teardown(void **state)
{
    struct vectors *v = *state;

    for (size_t i = 0; i < N_FILES; i++)
        free((void *)(uintptr_t)v->files[i].data);
    moec_kernels_close(v->k);
    free(v);
    return 0;
}

static moec_selftest_opts opts_of(struct vectors *v)
{
    return (moec_selftest_opts){.builtin = v->files,
                                .n_builtin = N_FILES,
                                .backends = &v->k,
                                .n_backends = 1};
}

static void count_cases(void *ctx, const moec_case *c)
{
    assert_int_equal(c->result, MOEC_CASE_PASSED);
    assert_null(c->backend);
    ++*(uint64_t *)ctx;
}

static void passes_one_case_of_every_kind(void **state)
{
    moec_selftest_opts o = opts_of(*state);
    moec_selftest_counts counts;
    moec_error err = MOEC_ERROR_INIT;
    uint64_t told = 0;

    o.fn = count_cases;
    o.ctx = &told;
    if (moec_selftest(&o, &counts, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(counts.passed, 7);
    assert_int_equal(counts.failed + counts.skipped, 0);
    assert_int_equal(told, 7);
}

static void refuses_to_pass_without_a_back_end(void **state)
{
    moec_selftest_opts o = opts_of(*state);
    moec_selftest_counts counts;

    o.n_backends = 0;
    assert_int_equal(moec_selftest(&o, &counts, NULL), MOEC_E_ARG);
}

static void refuses_routing_without_its_tensors(void **state)
{
    moec_selftest_opts o = opts_of(*state);
    moec_selftest_counts counts;
    moec_error err = MOEC_ERROR_INIT;

    o.n_builtin = 1;
    assert_int_equal(moec_selftest(&o, &counts, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_V01);
    assert_non_null(strstr(err.text, "routing.safetensors: is not there"));
}

/* Memory that runs out is an error, never a case that differs. */
static void survives_every_failed_allocation(void **state)
{
    moec_selftest_opts o = opts_of(*state);
    moec_selftest_counts counts;
    moec_status st = MOEC_E_NOMEM;
    uint64_t n;

    for (n = 1; st != MOEC_OK; n += n < 100 ? 1 : 7) {
        (void)moec_alloc_fail_at(n);
        st = moec_selftest(&o, &counts, NULL);
        (void)moec_alloc_fail_at(0);
        if (st != MOEC_OK)
            assert_int_equal(st, MOEC_E_NOMEM);
    }
    assert_true(n > 50);
    assert_int_equal(counts.failed + counts.skipped, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_one_case_of_every_kind),
        cmocka_unit_test(refuses_to_pass_without_a_back_end),
        cmocka_unit_test(refuses_routing_without_its_tensors),
        cmocka_unit_test(survives_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
