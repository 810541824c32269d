/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "placement.h"

/* The model that fixtures/corpora/placement was made for: decoder layer 0 dense, 1
 * and 2 MoE layers, one MTP layer; 16 experts in 80 slots. */
static const moec_layer_key keys[] = {
    {MOEC_SPACE_MAIN, 1}, {MOEC_SPACE_MAIN, 2}, {MOEC_SPACE_MTP, 0}};
static const moec_placement_target model = {.struct_bytes =
                                                sizeof(moec_placement_target),
                                            .n_experts = 16,
                                            .n_layers = 3,
                                            .keys = keys,
                                            .n_keys = 3};
/* Four experts, one main layer and no other. */
static const moec_placement_target small = {.struct_bytes =
                                                sizeof(moec_placement_target),
                                            .n_experts = 4,
                                            .n_layers = 2,
                                            .keys = keys,
                                            .n_keys = 1};

typedef struct blob {
    char *data;
    size_t n;
} blob;

static blob slurp(const char *name)
{
    char path[512];
    blob t = {0};

    snprintf(path, sizeof(path), MOEC_TEST_FIXTURES "/corpora/placement/%s",
             name);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s is not there", path);
    t.data = malloc(1 << 16);
    assert_non_null(t.data);
    t.n = fread(t.data, 1, 1 << 16, f);
    assert_int_equal(fclose(f), 0);
    return t;
}

static moec_placement_file *read_as(const moec_placement_target *t,
                                    const char *name, blob x)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement_file *f = NULL;

    if (moec_placement_file_read(&f, t, name, x.data, x.n, &err))
        fail_msg("%s", err.text);
    return f;
}

static moec_placement_file *load(const char *name)
{
    blob x = slurp(name);
    moec_placement_file *f = read_as(&model, name, x);

    free(x.data);
    return f;
}

static void assert_same(const moec_placement *a, const moec_placement *b)
{
    assert_int_equal(moec_placement_n_layers(a), moec_placement_n_layers(b));
    assert_int_equal(moec_placement_n_physical(a),
                     moec_placement_n_physical(b));
    assert_int_equal(moec_placement_n_experts(a), moec_placement_n_experts(b));
    for (uint32_t i = 0; i < moec_placement_n_layers(a); i++)
        assert_memory_equal(moec_placement_row(a, i), moec_placement_row(b, i),
                            moec_placement_n_physical(a) * sizeof(int32_t));
}

static void refuse_text(const moec_placement_target *t, const char *text,
                        size_t n, moec_status want, moec_rule rule,
                        const char *fragment)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement_file *f = NULL;
    moec_status st = moec_placement_file_read(&f, t, "p", text, n, &err);

    assert_null(f);
    if (st != want || err.rule != rule || !strstr(err.text, fragment))
        fail_msg("status %d, expected %d with '%s': %s", (int)st, (int)want,
                 fragment, err.text);
    assert_int_equal(moec_placement_file_read(&f, t, "p", text, n, NULL), want);
}

static void refuse(const char *text, moec_status want, moec_rule rule,
                   const char *fragment)
{
    refuse_text(&small, text, strlen(text), want, rule, fragment);
}

#define FORMAT(rule)   MOEC_E_FORMAT, MOEC_RULE_##rule
#define WHATEVER(rule) MOEC_E_UNSUPPORTED, MOEC_RULE_##rule

/* ------------------------------------------------------ what engines wrote */

static const struct {
    const char *name;
    moec_placement_form form;
    bool replica; /* it has EPLB's order of replicas */
} files[] = {
    {"sglang.json", MOEC_PLACEMENT_SGLANG, false},
    {"sglang.pt", MOEC_PLACEMENT_SGLANG, false},
    {"sglang_int32_strided.pt", MOEC_PLACEMENT_SGLANG, false},
    {"eplb.json", MOEC_PLACEMENT_EPLB, true},
    {"eplb.npz", MOEC_PLACEMENT_EPLB, true},
    {"eplb.pt", MOEC_PLACEMENT_EPLB, true},
    {"list_uint8.pt", MOEC_PLACEMENT_PHY2LOG, false},
    {"phy2log.npy", MOEC_PLACEMENT_PHY2LOG, false},
    {"log2phy.npy", MOEC_PLACEMENT_LOG2PHY, true},
    {"log2phy.json", MOEC_PLACEMENT_LOG2PHY, true},
    {"trtllm.yaml", MOEC_PLACEMENT_TRTLLM, false},
    {"ascend.json", MOEC_PLACEMENT_VLLM_ASCEND, false},
};
enum { N_FILES = sizeof(files) / sizeof(files[0]) };

static void every_engines_file_is_the_same_placement(void **state)
{
    moec_placement_file *truth = load("sglang.json");

    (void)state;
    for (size_t i = 0; i < N_FILES; i++) {
        moec_placement_file *f = load(files[i].name);

        assert_int_equal(moec_placement_file_form(f), files[i].form);
        assert_same(moec_placement_file_placement(f),
                    moec_placement_file_placement(truth));
        assert_int_equal(moec_placement_file_replica(f) != NULL,
                         files[i].replica);
        assert_int_equal(moec_placement_file_key(f, 2).space, MOEC_SPACE_MTP);
        moec_placement_file_close(f);
    }
    moec_placement_file_close(truth);
}

static void a_file_by_itself_keeps_all_its_rows(void **state)
{
    blob x = slurp("sglang.json");
    moec_placement_file *f = read_as(NULL, "sglang.json", x);

    (void)state;
    assert_int_equal(moec_placement_n_layers(moec_placement_file_placement(f)),
                     4);
    assert_int_equal(moec_placement_n_experts(moec_placement_file_placement(f)),
                     16);
    assert_true(moec_placement_file_has_keys(f));
    moec_placement_file_close(f);
    free(x.data);
    x = slurp("trtllm.yaml");
    f = read_as(NULL, "trtllm.yaml", x);
    assert_int_equal(moec_placement_file_key(f, 2).number, 3);
    moec_placement_file_close(f);
    free(x.data);
    x = slurp("phy2log.npy");
    f = read_as(NULL, "phy2log.npy", x);
    assert_false(moec_placement_file_has_keys(f));
    moec_placement_file_close(f);
    free(x.data);
}

static void devices_are_ranks(void **state)
{
    moec_placement_target t = model;
    blob x = slurp("ascend.json");
    moec_placement_file *f = load("ascend.json");

    (void)state;
    assert_int_equal(moec_placement_file_n_ranks(f), 4);
    assert_int_equal(moec_placement_file_n_notes(f), 3); /* P09 */
    moec_placement_file_close(f);
    t.n_ranks = 8;
    refuse_text(&t, x.data, x.n, MOEC_E_MAPPING, MOEC_RULE_P06,
                "the file is for 4 devices, the job has 8 ranks");
    free(x.data);
}

/* --------------------------------------------------------- there and back */

static void round_trip(const moec_placement_file *f, moec_placement_form form,
                       bool npy)
{
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    const uint32_t *order = moec_placement_file_replica(f), *back;
    moec_error err = MOEC_ERROR_INIT;
    void *data = NULL;
    blob x = {0};

    o.form = form;
    o.keys = keys;
    o.n_layers = 3;
    o.n_ranks = 4;
    o.npy = npy;
    o.replica = order;
    if (moec_placement_write(moec_placement_file_placement(f), &o, &data, &x.n,
                             &err))
        fail_msg("%s", err.text);
    x.data = data;
    moec_placement_file *again = read_as(&model, "again", x);
    assert_same(moec_placement_file_placement(f),
                moec_placement_file_placement(again));
    assert_int_equal(moec_placement_file_form(again), form);
    back = moec_placement_file_replica(again);
    if (form == MOEC_PLACEMENT_EPLB || form == MOEC_PLACEMENT_LOG2PHY) {
        assert_non_null(back);
        for (size_t i = 0; order && i < 3 * 80; i++)
            assert_int_equal(back[i], order[i]);
    }
    moec_placement_file_close(again);
    free(data);
}

static void every_form_comes_back(void **state)
{
    static const moec_placement_form forms[] = {
        MOEC_PLACEMENT_SGLANG,      MOEC_PLACEMENT_TRTLLM,
        MOEC_PLACEMENT_VLLM_ASCEND, MOEC_PLACEMENT_EPLB,
        MOEC_PLACEMENT_PHY2LOG,     MOEC_PLACEMENT_LOG2PHY};

    (void)state;
    for (size_t i = 0; i < N_FILES; i++) {
        moec_placement_file *f = load(files[i].name);

        for (size_t k = 0; k < sizeof(forms) / sizeof(forms[0]); k++)
            round_trip(f, forms[k], false);
        round_trip(f, MOEC_PLACEMENT_PHY2LOG, true);
        round_trip(f, MOEC_PLACEMENT_LOG2PHY, true);
        moec_placement_file_close(f);
    }
}

static char *written(const moec_placement *p, moec_placement_form form,
                     const moec_layer_key *of, uint32_t n_layers)
{
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    void *data = NULL;
    size_t n = 0;

    o.form = form;
    o.keys = of;
    o.n_layers = n_layers;
    o.n_ranks = 2;
    if (moec_placement_write(p, &o, &data, &n, &err))
        fail_msg("%s", err.text);
    assert_int_equal(strlen(data), n);
    return data;
}

static void dense_layers_are_trivial_and_trivial_mtp_ones_left_out(void **state)
{
    static const int32_t rows[] = {1, 0, 2, 1, 2, 0, 1, 2, 0, 1, 2, 0};
    moec_placement *p = NULL;
    char *s;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, 3, 3, 4, rows, NULL), 0);
    s = written(p, MOEC_PLACEMENT_SGLANG, keys, 3);
    /* The last row is the MTP layer's, and trivial. */
    assert_string_equal(s, "{\"physical_to_logical_map\": [\n[0, 1, 2, 0],\n"
                           "[1, 0, 2, 1],\n[2, 0, 1, 2]\n]}\n");
    free(s);
    moec_placement_destroy(p);
}

static void writes_what_engines_read(void **state)
{
    static const int32_t rows[] = {1, 0, 2, 1};
    moec_placement *p = NULL;
    char *s;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, 1, 3, 4, rows, NULL), 0);
    s = written(p, MOEC_PLACEMENT_SGLANG, keys, 2);
    assert_string_equal(
        s,
        "{\"physical_to_logical_map\": [\n[0, 1, 2, 0],\n[1, 0, 2, 1]\n]}\n");
    free(s);
    s = written(p, MOEC_PLACEMENT_TRTLLM, keys, 2);
    assert_string_equal(s, "initial_global_assignments:\n  1: [1, 0, 2, 1]\n"
                           "num_slots: 4\nlayer_updates_per_iter: 0\n");
    free(s);
    s = written(p, MOEC_PLACEMENT_VLLM_ASCEND, keys, 2);
    assert_string_equal(
        s, "{\"moe_layer_count\": 1, \"layer_list\": [\n{\"layer_id\": 0, "
           "\"device_count\": 2, \"device_list\": [\n {\"device_id\": 0, "
           "\"device_expert\": [1, 0]},\n {\"device_id\": 1, "
           "\"device_expert\": [2, 1]}]}\n]}\n");
    free(s);
    s = written(p, MOEC_PLACEMENT_EPLB, NULL, 0);
    assert_string_equal(s, "{\"phy2log\": [\n[1, 0, 2, 1]\n],\n\"log2phy\": "
                           "[\n[[1, -1], [0, 3], [2, -1]]\n],\n\"logcnt\": "
                           "[\n[1, 2, 1]\n]}\n");
    free(s);
    moec_placement_destroy(p);
}

static void refuses_to_write_what_a_form_cannot_say(void **state)
{
    static const int32_t rows[] = {1, 0, 2, -1};
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    moec_placement *p = NULL;
    moec_error err = MOEC_ERROR_INIT;
    void *out = NULL;
    size_t n;

    (void)state;
    assert_int_equal(moec_placement_from_rows(&p, 1, 3, 4, rows, NULL), 0);
    assert_int_equal(moec_placement_write(p, &o, &out, &n, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "nothing says which ones"));
    o.keys = keys;
    err = (moec_error){0};
    assert_int_equal(moec_placement_write(p, &o, &out, &n, &err),
                     MOEC_E_MAPPING);
    assert_non_null(strstr(err.text, "row 0, slot 3: empty"));
    o.form = MOEC_PLACEMENT_TRTLLM;
    o.npy = 1;
    assert_int_equal(moec_placement_write(p, &o, &out, &n, NULL), MOEC_E_ARG);
    assert_null(out);
    moec_placement_destroy(p);
}

static void vllm_gives_the_first_ranks_one_more(void **state)
{
    static const int32_t linear[] = {0, 1, 2, 3, 4, -1, 5, 6, -1};
    static const int32_t robin[] = {0, 3, 6, 1, 4, -1, 2, 5, -1};
    moec_placement *p = NULL;

    (void)state;
    assert_int_equal(moec_placement_vllm(&p, MOEC_VLLM_LINEAR, 2, 7, 3, NULL),
                     0);
    assert_memory_equal(moec_placement_row(p, 1), linear, sizeof(linear));
    moec_placement_destroy(p);
    assert_int_equal(
        moec_placement_vllm(&p, MOEC_VLLM_ROUND_ROBIN, 2, 7, 3, NULL), 0);
    assert_memory_equal(moec_placement_row(p, 0), robin, sizeof(robin));
    moec_placement_destroy(p);
    p = NULL;
    assert_int_equal(moec_placement_vllm(&p, MOEC_VLLM_LINEAR, 2, 7, 8, NULL),
                     MOEC_E_MAPPING);
    assert_null(p);
}

static void empty_slots_are_read_where_asked_for(void **state)
{
    moec_placement_target t = small;
    static const char s[] = "[[0,1,-1,2,3,-1]]";

    (void)state;
    refuse(s, FORMAT(P04), "layer 1 (row 0), slot 2: id -1 is not in [0, 4)");
    t.allow_empty = 1;
    moec_placement_file *f =
        read_as(&t, "p", (blob){(char *)(uintptr_t)s, strlen(s)});
    assert_int_equal(moec_placement_row(moec_placement_file_placement(f), 0)[5],
                     MOEC_EMPTY_SLOT);
    moec_placement_file_close(f);
}

/* ------------------------------------------------------------- refusals */

static void pickles_of_anything_else_are_refused(void **state)
{
    static const struct {
        const char *name, *fragment;
    } bad[] = {
        {"bad_code.pt", "the pickle names __builtin__.eval: only plain"},
        {"bad_float.pt", "names torch.FloatStorage"},
        {"bad_lists.pt", "has lists or dicts inside others"},
        {"bad_extra.pt", "has a value under 'step' that is no tensor"},
        {"bad_counts.pt", "'logical_count' is loads, not a placement"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        blob x = slurp(bad[i].name);

        refuse_text(&model, x.data, x.n, WHATEVER(P01), bad[i].fragment);
        free(x.data);
    }
}

static void arrays_of_anything_else_are_refused(void **state)
{
    blob x = slurp("bad_float.npy");

    (void)state;
    refuse_text(&model, x.data, x.n, FORMAT(P04), "must be integers");
    free(x.data);
    x = slurp("bad_compressed.npz");
    refuse_text(&model, x.data, x.n, FORMAT(P01), "a compressed entry");
    free(x.data);
}

static void yaml_of_anything_else_is_refused(void **state)
{
#define BEGIN "initial_global_assignments:\n"
    static const char *const texts[] = {
        BEGIN "  -1: [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  x: [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  : [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  01: [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  -: [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  1234567890123456789: [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  1: [0, 1, 2, 3]\nnum_slots: -4\n",
        BEGIN "  1: [0, 1, 2, 3]\nnum_slots: x\n",
        BEGIN "  1: [0, 1, 2, 3]\nnum_slots: [4]\n",
        BEGIN "  1: [0, 1, 2, -3]\nnum_slots: 4\n",
        BEGIN "  1: [0, 1, 2, [3]]\nnum_slots: 4\n",
        BEGIN "  1: 5\nnum_slots: 4\n",
        BEGIN "  1: [0, 1, 2, 3]\n" BEGIN "  1: [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  1: [0, 1, 2, 3]\nnum_slots: 4\n---\na: 1\n",
        BEGIN "  1: [0, 1, 2, 3]\nnum_slots: 4\n...\n]\n",
        BEGIN "  1: [0, 1, 2, 3\nnum_slots: 4\n",
        BEGIN "  - [0, 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  1: ['', 1, 2, 3]\nnum_slots: 4\n",
        BEGIN "  1: [, 1, 2, 3]\nnum_slots:\n",
        "initial_global_assignments: @\n",
        BEGIN "  1: [0, 1, 2, 3]\n? [1]\n: 2\n",
        "- 1\n" BEGIN,
        "- " BEGIN "    1: [0, 1, 2, 3]\n",
        "# nothing\n#" BEGIN,
        "\"\\xzz\"\n" BEGIN,
        "%\n" BEGIN,
    };

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_placement_file *f = NULL;
        moec_status st = moec_placement_file_read(&f, &small, "p", texts[i],
                                                  strlen(texts[i]), &err);

        moec_placement_file_close(f);
        if (st == MOEC_OK || st == MOEC_E_INTERNAL || err.rule == 0 ||
            err.text[0] == '\0')
            fail_msg("%s: %s %s", texts[i], moec_status_name(st), err.text);
    }
}

static void ranks_and_empty_slots_must_fit(void **state)
{
    moec_placement_target t = small;
    static const char ids[] = "[[0,1,2,3,-2]]", row[] = "[[0,1,2,3]]";
    static const char far[] = "initial_global_assignments:\n  4294967296: [0]\n"
                              "num_slots: 1\n";

    (void)state;
    t.allow_empty = 1;
    refuse_text(&t, ids, strlen(ids), FORMAT(P04), "id -2 is not in");
    t.n_ranks = 8;
    refuse_text(&t, row, strlen(row), MOEC_E_MAPPING, MOEC_RULE_P07, "8 ranks");
    t.allow_empty = 0;
    t.n_physical = 5;
    refuse_text(&t, row, strlen(row), MOEC_E_FORMAT, MOEC_RULE_P03, "4");
    refuse_text(NULL, far, strlen(far), FORMAT(P02), "is no number of a layer");
    refuse("\x80\x02", WHATEVER(P01), "a pickle, which runs code");
    refuse("\x80\x06", FORMAT(P01), "");
    refuse("\x80\x01", FORMAT(P01), "");
}

static void bytes_that_changed_are_noticed(void **state)
{
    blob x = slurp("sglang.pt");
    char *id = memmem(x.data, x.n, "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0", 16);

    (void)state;
    assert_non_null(id);
    *id = 2;
    refuse_text(&model, x.data, x.n, FORMAT(P01), "not their CRC-32");
    free(x.data);
}

/* No prefix and no changed byte is read past its end or called anything. */
static void survives_what_files_may_hold(void **state)
{
    static const char *const names[] = {"sglang.pt", "eplb.npz", "trtllm.yaml",
                                        "ascend.json", "log2phy.npy"};

    (void)state;
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
        blob x = slurp(names[k]);

        for (size_t i = 0; i < x.n; i += 1 + x.n / 300) {
            moec_placement_file *f = NULL;
            char *part = malloc(i + 1), was = x.data[i];

            assert_non_null(part);
            memcpy(part, x.data, i);
            if (moec_placement_file_read(&f, &model, "p", part, i, NULL) == 0 &&
                k != 2)
                fail_msg("%s: %zu bytes of %zu pass", names[k], i, x.n);
            moec_placement_file_close(f);
            f = NULL;
            x.data[i] = (char)(was ^ (1 << i % 8));
            (void)moec_placement_file_read(&f, &model, "p", x.data, x.n, NULL);
            moec_placement_file_close(f);
            x.data[i] = was;
            free(part);
        }
        free(x.data);
    }
}

/* As yaml.dump writes it with default_flow_style=True. */
static void reads_yaml_in_braces(void **state)
{
    static const char text[] = "{initial_global_assignments: {1: [1, 0, 2, 1]},"
                               "\n  num_slots: 4}\n";
    moec_error err = MOEC_ERROR_INIT;
    moec_placement_file *f = NULL;

    (void)state;
    if (moec_placement_file_read(&f, NULL, "p", text, strlen(text), &err) !=
        MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_placement_file_form(f), MOEC_PLACEMENT_TRTLLM);
    assert_int_equal(moec_placement_file_key(f, 0).number, 1);
    moec_placement_file_close(f);
}

static void refuses_yaml_that_two_readers_read_differently(void **state)
{
#define MAP "initial_global_assignments:\n  1: "

    (void)state;
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 3]\nnum_slots: 4\n", FORMAT(P01),
           "line 4: the key stands twice");
    refuse("num_slots: 4\n" MAP "&a [0, 1, 2, 3]\n", FORMAT(P01), "an anchor");
    refuse("num_slots: 4\n" MAP "*a\n", FORMAT(P01), "alias");
    refuse("num_slots: 4\n" MAP "!!python/object/apply:os.system [0]\n",
           FORMAT(P01), "a tag");
    refuse("num_slots: 4\n" MAP "[0, 0x1, 2, 3]\n", FORMAT(P04),
           "layer 1, slot 1: id is '0x1'");
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 03]\n", FORMAT(P04), "id is '03'");
    refuse("num_slots: 4\n" MAP "[0, 1.0, 2, 3]\n", FORMAT(P04), "id is '1.0'");
    refuse("num_slots: 4\n" MAP "[0, '1', 2, 3]\n", FORMAT(P04), "id is '1'");
    refuse("num_slots: 4\n" MAP "[0, [1], 2, 3]\n", FORMAT(P01),
           "something else than ids");
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 3]\n---\na: 1\n", FORMAT(P01),
           "a second document");
    refuse("num_slots: 4\nlayers: 3\n", FORMAT(P01), "line 2: a key that is");
    refuse("num_slots: [", FORMAT(P01), "line 1");
    refuse("num_slots: 4\n\tx: 1", FORMAT(P01), "line 2");
}

static void refuses_yaml_that_does_not_fit(void **state)
{
    (void)state;
    refuse("num_slots: 4\n", FORMAT(P01),
           "initial_global_assignments is missing");
    refuse(MAP "[0, 1, 2, 3]\n", FORMAT(P01), "num_slots is missing");
    refuse("num_slots: 5\n" MAP "[0, 1, 2, 3]\n", FORMAT(P03),
           "layer 1 has 4 slots, num_slots is 5");
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 4]\n", FORMAT(P04),
           "layer 1, slot 3: id 4 is not in [0, 4)");
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 2]\n", MOEC_E_MAPPING, MOEC_RULE_P05,
           "layer 1: logical expert 3 has none");
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 3]\n  0: [0, 1, 2, 3]\n",
           FORMAT(P02), "layer 0 is no MoE layer of this model");
    refuse("num_slots: 4\n" MAP "[0, 1, 2, 3]\n  '1': [0, 1, 2, 3]\n",
           FORMAT(P02), "layer 1 stands in the file twice");
    refuse("num_slots: 4\ninitial_global_assignments: {}\n", FORMAT(P02),
           "layer 1 has no row; 0 of 1 MoE layers have one");
#undef MAP
}

static void yaml_says_what_is_not_carried_over(void **state)
{
    static const char s[] = "num_slots: 4\nlayer_updates_per_iter: 2\n"
                            "initial_global_assignments: {1: [3, 2, 1, 0]}\n";
    moec_placement_file *f =
        read_as(&small, "p", (blob){(char *)(uintptr_t)s, strlen(s)});

    (void)state;
    assert_int_equal(moec_placement_file_n_notes(f), 1);
    assert_non_null(strstr(moec_placement_file_note(f, 0)->text,
                           "layer_updates_per_iter: 2"));
    assert_null(moec_placement_file_note(f, 1));
    moec_placement_file_close(f);
}

#define DEVICES(id, n, rest)                                                   \
  "{\"layer_id\":" id ",\"device_count\":" n ",\"device_list\":[" rest "]}"
#define ASCEND(n, layers)                                                      \
  "{\"moe_layer_count\":" n ",\"layer_list\":[" layers "]}"
#define D0 "{\"device_id\":0,\"device_expert\":[0,1]}"
#define D1 "{\"device_id\":1,\"device_expert\":[2,3]}"

static void refuses_what_vllm_ascend_never_looks_at(void **state)
{
    (void)state;
    refuse(ASCEND("1", DEVICES("0", "2", D1 "," D0)), FORMAT(P01),
           "device_id 1 stands in place 0: the engine reads devices by their "
           "place");
    refuse(ASCEND("2", DEVICES("1", "2", D0 "," D1) "," DEVICES("0", "2",
                                                                D0 "," D1)),
           FORMAT(P02), "layer_id 0 stands behind 1");
    refuse(ASCEND("2", DEVICES("0", "2", D0 "," D1)), FORMAT(P02),
           "moe_layer_count 2, but layer_list has 1 layers");
    refuse(ASCEND("1", DEVICES("0", "3", D0 "," D1)), FORMAT(P03),
           "device_count 3, but device_list has 2 devices");
    refuse(ASCEND("2", DEVICES("0", "2", D0 "," D1) "," DEVICES("1", "1", D0)),
           FORMAT(P03), "device_count 1, the first layer has 2");
    refuse(ASCEND("1", DEVICES("0", "2",
                               D0 ",{\"device_id\":1,\"device_expert\":[2]}")),
           FORMAT(P03), "device 1 has 1 slots, the first one has 2");
    refuse(ASCEND("1", DEVICES("0", "2",
                               D0 ",{\"device_id\":1,\"device_expert\":"
                                  "[2,true]}")),
           FORMAT(P04), "layer 1 (row 0), slot 3: id is the boolean true");
    refuse(
        ASCEND("1", DEVICES("0", "2",
                            D0 ",{\"device_id\":1,\"device_expert\":[1,0]}")),
        MOEC_E_MAPPING, MOEC_RULE_P05, "layer 1: logical expert 2 has none");
    refuse("{\"moe_layer_count\":0,\"layer_list\":[]}", FORMAT(P02), "0 rows");
}

static void decoder_numbers_of_ascend_are_understood(void **state)
{
    static const char s[] = ASCEND("1", DEVICES("1", "2", D0 "," D1));
    moec_placement_file *f =
        read_as(&small, "p", (blob){(char *)(uintptr_t)s, strlen(s)});

    (void)state;
    assert_int_equal(moec_placement_file_key(f, 0).number, 1);
    moec_placement_file_close(f);
}

static void refuses_eplb_arrays_that_disagree(void **state)
{
    (void)state;
    refuse("{\"phy2log\":[[0,1,2,3]],\"log2phy\":[[[0],[2],[1],[3]]]}",
           FORMAT(P01),
           "layer 1 (row 0), slot 1: phy2log has expert 1, log2phy has 2");
    refuse("{\"phy2log\":[[0,1,2,3]],\"logcnt\":[[1,1,2,1]]}", FORMAT(P01),
           "expert 2: logcnt says 2 slots, the placement has 1");
    refuse("{\"log2phy\":[[[0,4],[1,-1],[2,-1],[4,-1]]]}", FORMAT(P01),
           "expert 3, replica 0: slot 4 is another expert's already");
    refuse("{\"log2phy\":[[[0,9],[1,-1],[2,-1],[3,-1]]]}", FORMAT(P01),
           "expert 0, replica 1: slot 9 is past the number of entries");
    refuse("{\"log2phy\":[[[-1,0],[1,-1],[2,-1],[3,-1]]]}", FORMAT(P01),
           "slot 0 stands behind padding");
    refuse("[[[0],[1],[-2],[3]]]", FORMAT(P01), "slot -2 is negative");
    refuse("[[[0],[1],[2]]]", FORMAT(P01), "3 experts, must have 4");
    refuse("[[[0],[1],[2],[-1]]]", MOEC_E_MAPPING, MOEC_RULE_P03,
           "rows of 3 slots");
    refuse("[[[0],[1],[2,3],[3]]]", FORMAT(P03), "a list of 2 values");
    refuse("{\"phy2log\":[[0,1,2,1.5]],\"log2phy\":[[[0],[1],[2],[3]]]}",
           FORMAT(P04), "slot 3: id is the fraction 1.5");
    refuse("{\"phy2log\":[[0,1,2,3]],\"weights\":[]}", FORMAT(P01),
           "unknown key 'weights'");
}

static void survives_failing_allocations(void **state)
{
    (void)state;
    for (size_t k = 0; k < N_FILES; k++) {
        blob x = slurp(files[k].name);
        moec_status st = MOEC_E_NOMEM;

        for (uint64_t at = 1; st == MOEC_E_NOMEM; at++) {
            moec_placement_file *f = NULL;

            (void)moec_alloc_fail_at(at);
            st = moec_placement_file_read(&f, &model, "p", x.data, x.n, NULL);
            (void)moec_alloc_fail_at(0);
            moec_placement_file_close(f);
        }
        assert_int_equal(st, MOEC_OK);
        free(x.data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_engines_file_is_the_same_placement),
        cmocka_unit_test(a_file_by_itself_keeps_all_its_rows),
        cmocka_unit_test(devices_are_ranks),
        cmocka_unit_test(every_form_comes_back),
        cmocka_unit_test(
            dense_layers_are_trivial_and_trivial_mtp_ones_left_out),
        cmocka_unit_test(writes_what_engines_read),
        cmocka_unit_test(refuses_to_write_what_a_form_cannot_say),
        cmocka_unit_test(vllm_gives_the_first_ranks_one_more),
        cmocka_unit_test(empty_slots_are_read_where_asked_for),
        cmocka_unit_test(pickles_of_anything_else_are_refused),
        cmocka_unit_test(arrays_of_anything_else_are_refused),
        cmocka_unit_test(yaml_of_anything_else_is_refused),
        cmocka_unit_test(ranks_and_empty_slots_must_fit),
        cmocka_unit_test(bytes_that_changed_are_noticed),
        cmocka_unit_test(survives_what_files_may_hold),
        cmocka_unit_test(reads_yaml_in_braces),
        cmocka_unit_test(refuses_yaml_that_two_readers_read_differently),
        cmocka_unit_test(refuses_yaml_that_does_not_fit),
        cmocka_unit_test(yaml_says_what_is_not_carried_over),
        cmocka_unit_test(refuses_what_vllm_ascend_never_looks_at),
        cmocka_unit_test(decoder_numbers_of_ascend_are_understood),
        cmocka_unit_test(refuses_eplb_arrays_that_disagree),
        cmocka_unit_test(survives_failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
