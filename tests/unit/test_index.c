/* SPDX-License-Identifier: Apache-2.0 */

/* The reader of model.safetensors.index.json, from memory and from files. */

#include "index.h"

#include "support/tmpdir.h"

/* What the callback saw, as "tensor=file;". */
typedef struct log {
    char text[1024];
    size_t n;
} log;

static moec_status note_entry(void *ctx, const moec_index_entry *e,
                              moec_error *err)
{
    log *l = ctx;

    (void)err;
    l->n += (size_t)snprintf(l->text + l->n, sizeof(l->text) - l->n,
                             "%.*s=%.*s;", (int)e->tensor_bytes, e->tensor,
                             (int)e->file_bytes, e->file);
    assert_true(l->n < sizeof(l->text));
    return MOEC_OK;
}

/* Parse a copy of its exact size, or a file. */
static moec_status parse(const char *text, size_t n, bool file, log *l,
                         moec_index_facts *facts, moec_error *err)
{
    moec_status st;

    memset(l, 0, sizeof(*l));
    if (file) {
        tmpdir d = tmpdir_make();
        int fd;
        tmpdir_write(&d, "i", text, n);
        fd = open(tmpdir_path(&d, "i"), O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        st = moec_index_read(fd, n, "i.json", MOEC_INDEX_CHECKED, note_entry, l,
                             facts, err);
        close(fd);
        tmpdir_remove(&d);
    } else {
        char *copy = malloc(n > 0 ? n : 1);
        assert_non_null(copy);
        memcpy(copy, text, n);
        st = moec_index_parse(copy, n, "i.json", MOEC_INDEX_CHECKED, note_entry,
                              l, facts, err);
        free(copy);
    }
    return st;
}

static void hands_over_each_entry_in_order(void **state)
{
    static const char text[] =
        "{\"metadata\":{\"total_size\":123,\"other\":[1,{\"a\":2}]},\n"
        " \"weight_map\": {\"b\" : \"m-2.safetensors\", \"a\\/\\u00e9\":"
        "\"m-1.safetensors\", \"c\":\"m-1.safetensors\"}, \"x\": null }\n";

    (void)state;
    for (int file = 0; file < 2; file++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_index_facts facts;
        log l;
        assert_int_equal(
            parse(text, sizeof(text) - 1, file != 0, &l, &facts, &err),
            MOEC_OK);
        assert_string_equal(l.text, "b=m-2.safetensors;a/\xc3\xa9="
                                    "m-1.safetensors;c=m-1.safetensors;");
        assert_int_equal(facts.n_tensors, 3);
        assert_true(facts.has_total);
        assert_true(facts.total_is_number);
        assert_int_equal(facts.total_bytes, 123);
    }
}

/* An entry whose file is the one before's is read in one go, unless a tab
 * stands before it: the same verdict and the same entries. */
static void judges_bent_entries_alike_on_both_ways(void **state)
{
    static const char text[] = "{\"weight_map\":{\"a.b\":\"f1\",\n  "
                               "\"a.c\": \"f1\",\"a.d\":\"f1\" , "
                               "\"a.e\":\"f2\"}}";
    static const char bends[] = "\"\\{}[],: 01f/._-\x01\xc3\t\n";
    const size_t n = sizeof(text) - 1, first = 29, second = 41;

    (void)state;
    assert_int_equal(text[first], '"');
    assert_int_equal(text[second], '"');
    for (size_t i = first; i < n; i++) {
        for (size_t b = 0; i != second - 1 && b < sizeof(bends); b++) {
            moec_error err[2] = {MOEC_ERROR_INIT, MOEC_ERROR_INIT};
            char bent[2][sizeof(text) + 2];
            moec_index_facts facts;
            moec_status st[2];
            log l[2];
            memcpy(bent[0], text, n);
            bent[0][i] = bends[b];
            memcpy(bent[1], bent[0], first);
            bent[1][first] = '\t';
            memcpy(bent[1] + first + 1, bent[0] + first, second - first);
            bent[1][second + 1] = '\t';
            memcpy(bent[1] + second + 2, bent[0] + second, n - second);
            st[0] = parse(bent[0], n, false, &l[0], &facts, &err[0]);
            st[1] = parse(bent[1], n + 2, false, &l[1], &facts, &err[1]);
            /* the second tab may lie in a string that is open there (I09) */
            if (st[0] != st[1] ||
                (err[0].rule != err[1].rule && err[1].rule != MOEC_RULE_I09) ||
                (st[0] == MOEC_OK && strcmp(l[0].text, l[1].text) != 0))
                fail_msg("'%.*s': '%s' (%s), with tabs '%s' (%s)", (int)n,
                         bent[0], err[0].text, l[0].text, err[1].text,
                         l[1].text);
        }
    }
}

static void takes_total_size_as_advice(void **state)
{
    static const struct {
        const char *metadata;
        bool has, number;
    } cases[] = {
        {"{}", false, false},
        {"{\"total_size\":\"12\"}", true, false},
        {"{\"total_size\":1.5}", true, false},
        {"{\"total_size\":-1}", true, false},
        {"{\"total_size\":null}", true, false},
        {"{\"total_size\":18446744073709551615}", true, true},
        {"{\"total_size\":18446744073709551616}", true, false},
        {"[]", false, false},
        {"null", false, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_index_facts facts;
        char text[256];
        log l;
        int n = snprintf(text, sizeof(text),
                         "{\"metadata\":%s,\"weight_map\":{\"a\":\"b\"}}",
                         cases[i].metadata);
        assert_int_equal(parse(text, (size_t)n, false, &l, &facts, &err),
                         MOEC_OK);
        assert_int_equal(facts.has_total, cases[i].has);
        if (facts.has_total)
            assert_int_equal(facts.total_is_number, cases[i].number);
    }
}

static void judges_each_case_by_its_rule(void **state)
{
    static const struct {
        const char *text;
        moec_rule rule;
        const char *says;
    } cases[] = {
        {"", MOEC_RULE_I09, "ends here"},
        {"[]", MOEC_RULE_I09, "byte 0"},
        {"\xef\xbb\xbf{}", MOEC_RULE_I09, "0xef"},
        {"{}", MOEC_RULE_I09, "no weight_map"},
        {"{\"weight_map\":{}}", MOEC_RULE_I09, "empty"},
        {"{\"weight_map\":{\"a\":\"b\"}}x", MOEC_RULE_I09, "'x'"},
        {"{\"weight_map\":{\"a\":\"b\",}}", MOEC_RULE_I09, "byte 23"},
        {"{\"weight_map\":{\"a\":\"b\xff\"}}", MOEC_RULE_I09, "0xff"},
        {"{\"weight_map\":{\"a\":\"\\ud800\"}}", MOEC_RULE_I09, "surrogate"},
        {"{\"x\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
         "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
         MOEC_RULE_I09, "deeper"},
        {"{\"weight_map\":[\"a\"]}", MOEC_RULE_I07, "weight_map"},
        {"{\"weight_map\":null}", MOEC_RULE_I07, "weight_map"},
        {"{\"weight_map\":{\"a\":1}}", MOEC_RULE_I07, "'a'"},
        {"{\"weight_map\":{\"a\":[\"b\"]}}", MOEC_RULE_I07, "'a'"},
        {"{\"weight_map\":{\"a\":\"b\",\"a\":\"b\"}}", MOEC_RULE_I10, "'a'"},
        {"{\"weight_map\":{\"a\":\"b\",\"\\u0061\":\"c\"}}", MOEC_RULE_I10,
         "'a'"},
        {"{\"weight_map\":{\"a\":\"b\"},\"weight_map\":{\"c\":\"b\"}}",
         MOEC_RULE_I10, "'weight_map'"},
        {"{\"metadata\":{\"a\":1,\"a\":1},\"weight_map\":{\"a\":\"b\"}}",
         MOEC_RULE_I10, "'a'"},
        {"{\"metadata\":{\"total_size\":1,\"total_size\":1},"
         "\"weight_map\":{\"a\":\"b\"}}",
         MOEC_RULE_I10, "'total_size'"},
        {"{\"x\":{\"a\":1,\"a\":1},\"weight_map\":{\"a\":\"b\"}}",
         MOEC_RULE_I10, "byte"},
        {"{\"weight_map\":{\"a\":\"\"}}", MOEC_RULE_I05, "''"},
        {"{\"weight_map\":{\"a\":\".\"}}", MOEC_RULE_I05, "'.'"},
        {"{\"weight_map\":{\"a\":\"..\"}}", MOEC_RULE_I05, "'..'"},
        {"{\"weight_map\":{\"a\":\"../b\"}}", MOEC_RULE_I05, "'../b'"},
        {"{\"weight_map\":{\"a\":\"/etc/b\"}}", MOEC_RULE_I05, "'/etc/b'"},
        {"{\"weight_map\":{\"a\":\"d\\/b\"}}", MOEC_RULE_I05, "'d/b'"},
        {"{\"weight_map\":{\"a\":\"./b\"}}", MOEC_RULE_I05, "'./b'"},
        {"{\"weight_map\":{\"a\":\"b\\u0000\"}}", MOEC_RULE_I05, "byte 15"},
        {"{\"weight_map\":{\"a\":\"pytorch_model.bin\"}}", MOEC_RULE_I02,
         "pytorch_model.bin"},
        {"{\"weight_map\":{\"a\\u0000\":\"b\"}}", MOEC_RULE_H08, "NUL"},
        {"{\"weight_map\":{\"\":\"b\"}}", MOEC_RULE_H22, "0 bytes"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        for (int file = 0; file < 2; file++) {
            moec_error err = MOEC_ERROR_INIT;
            moec_index_facts facts;
            log l;
            moec_status st = parse(cases[i].text, strlen(cases[i].text),
                                   file != 0, &l, &facts, &err);
            if (st != MOEC_E_FORMAT || err.rule != cases[i].rule ||
                strstr(err.text, cases[i].says) == NULL ||
                strstr(err.text, "i.json") == NULL)
                fail_msg("%s: '%s'", cases[i].text, err.text);
        }
    }
}

static void refuses_names_beyond_their_limits(void **state)
{
    (void)state;
    for (int which = 0; which < 4; which++) {
        static const size_t tensor[] = {512, 513, 1, 1};
        static const size_t file[] = {1, 1, 255, 256};
        static const moec_rule want[] = {MOEC_RULE_NONE, MOEC_RULE_H22,
                                         MOEC_RULE_NONE, MOEC_RULE_I05};
        char text[1024], name[600];
        moec_error err = MOEC_ERROR_INIT;
        moec_index_facts facts;
        log l;
        int n;
        memset(name, 'n', sizeof(name));
        n = snprintf(text, sizeof(text), "{\"weight_map\":{\"%.*s\":\"%.*s\"}}",
                     (int)tensor[which], name, (int)file[which], name);
        (void)parse(text, (size_t)n, false, &l, &facts, &err);
        assert_int_equal(err.rule, want[which]);
    }
}

/* An index of several windows; `twice` gives the last entry the name of an
 * early one. */
static size_t long_index(char *text, int n_entries, bool twice)
{
    size_t n = (size_t)sprintf(text, "{\"weight_map\":{");

    for (int i = 0; i < n_entries; i++)
        n += (size_t)sprintf(text + n, "%s\"tensor.\xc3\xa9.%d\":\"m-%d\"",
                             i == 0 ? "" : ",",
                             twice && i == n_entries - 1 ? 7 : i, i % 3);
    return n + (size_t)sprintf(text + n, "}}");
}

static moec_status check_nth(void *ctx, const moec_index_entry *e,
                             moec_error *err)
{
    int *i = ctx;
    char tensor[64], file[16];

    (void)err;
    (void)snprintf(tensor, sizeof(tensor), "tensor.\xc3\xa9.%d", *i);
    (void)snprintf(file, sizeof(file), "m-%d", *i % 3);
    assert_int_equal(e->tensor_bytes, strlen(tensor));
    assert_memory_equal(e->tensor, tensor, e->tensor_bytes);
    assert_int_equal(e->file_bytes, strlen(file));
    assert_memory_equal(e->file, file, e->file_bytes);
    ++*i;
    return MOEC_OK;
}

static void reads_entries_across_windows(void **state)
{
    enum { N = 60000 };
    char *text = malloc(N * 64);
    moec_error err = MOEC_ERROR_INIT;
    moec_index_facts facts;
    tmpdir d = tmpdir_make();
    size_t n;
    int fd, seen = 0;

    (void)state;
    assert_non_null(text);
    n = long_index(text, N, false);
    assert_true(n > 5u << 18);
    tmpdir_write(&d, "i", text, n);
    fd = open(tmpdir_path(&d, "i"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(moec_index_read(fd, n, "i.json", MOEC_INDEX_CHECKED,
                                     check_nth, &seen, &facts, &err),
                     MOEC_OK);
    assert_int_equal(seen, N);
    assert_int_equal(facts.n_tensors, N);
    close(fd);
    tmpdir_remove(&d);
    free(text);
}

static void looks_for_duplicates_where_it_is_asked_to(void **state)
{
    enum { N = 5000 };
    char *text = malloc(N * 64);
    moec_error err = MOEC_ERROR_INIT;
    moec_index_facts facts;
    size_t n;
    int seen = 0;

    (void)state;
    assert_non_null(text);
    n = long_index(text, N, true);
    assert_int_equal(moec_index_parse(text, n, "i.json", MOEC_INDEX_CHECKED,
                                      check_nth, &seen, &facts, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I10);
    assert_int_equal(seen, N - 1);
    free(text);
}

static moec_status refuse_entry(void *ctx, const moec_index_entry *e,
                                moec_error *err)
{
    (void)e;
    ++*(int *)ctx;
    return moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE, "enough");
}

static void passes_on_what_the_callback_says(void **state)
{
    static const char text[] = "{\"weight_map\":{\"a\":\"b\",\"c\":\"b\"}}";
    moec_error err = MOEC_ERROR_INIT;
    moec_index_facts facts;
    int calls = 0;

    (void)state;
    assert_int_equal(moec_index_parse(text, sizeof(text) - 1, "i.json",
                                      MOEC_INDEX_CHECKED, refuse_entry, &calls,
                                      &facts, &err),
                     MOEC_E_CANCELLED);
    assert_int_equal(calls, 1);
    assert_string_equal(err.text, "enough");
}

/* An index that became shorter than it was, at each byte: spaces put that
 * byte at the end of a window. */
static void says_where_a_file_shrank(void **state)
{
    static const char index[] =
        "{\"metadata\":{\"total_size\":4,\"x\":1},\"y\":[2],"
        "\"weight_map\":{\"a\":\"f\",\"b\":\"f\"}}";
    enum { WINDOW = 1 << 20, N = sizeof(index) - 1 };
    tmpdir d = tmpdir_make();
    char *text = malloc(WINDOW);

    (void)state;
    assert_non_null(text);
    for (size_t k = 0; k < N; k++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_index_facts facts;
        log l = {0};
        int fd;

        memset(text, ' ', WINDOW);
        memcpy(text + WINDOW - k, index, k);
        tmpdir_write(&d, "i", text, WINDOW);
        fd = open(tmpdir_path(&d, "i"), O_RDONLY | O_CLOEXEC);
        if (moec_index_read(fd, WINDOW + N - k, "i", MOEC_INDEX_CHECKED,
                            note_entry, &l, &facts, &err) != MOEC_E_FORMAT ||
            err.rule != MOEC_RULE_H17)
            fail_msg("behind '%.*s': %s", (int)k, index, err.text);
        close(fd);
    }
    free(text);
    tmpdir_remove(&d);
}

static void survives_each_allocation_that_fails(void **state)
{
    static const char text[] =
        "{\"metadata\":{\"x\":{\"y\":1}},\"weight_map\":{\"a\":\"b\"}}";

    (void)state;
    for (int file = 0; file < 2; file++) {
        uint64_t k = 1;
        for (;; k++) {
            moec_error err = MOEC_ERROR_INIT;
            moec_index_facts facts;
            moec_status st;
            log l;
            assert_true(k < 50);
            moec_alloc_fail_at(k);
            st = parse(text, sizeof(text) - 1, file != 0, &l, &facts, &err);
            if (moec_alloc_fail_at(0) < k) {
                assert_int_equal(st, MOEC_OK);
                break;
            }
            assert_int_equal(st, MOEC_E_NOMEM);
        }
        assert_true(k > 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hands_over_each_entry_in_order),
        cmocka_unit_test(judges_bent_entries_alike_on_both_ways),
        cmocka_unit_test(takes_total_size_as_advice),
        cmocka_unit_test(judges_each_case_by_its_rule),
        cmocka_unit_test(refuses_names_beyond_their_limits),
        cmocka_unit_test(reads_entries_across_windows),
        cmocka_unit_test(looks_for_duplicates_where_it_is_asked_to),
        cmocka_unit_test(passes_on_what_the_callback_says),
        cmocka_unit_test(says_where_a_file_shrank),
        cmocka_unit_test(survives_each_allocation_that_fails),
    };

    return cmocka_run_group_tests_name("index", tests, NULL, NULL);
}
