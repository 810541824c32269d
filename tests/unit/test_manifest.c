/* SPDX-License-Identifier: Apache-2.0
 *
 * manifest.json: the C code against an independent writer of the text, each
 * rule of it broken once, and what the writer must refuse. */

#include "converted_corpus.h"

#include <locale.h>
#include <math.h>

#include "converted.h"

static moec_status round_trip(const void *data, size_t n, moec_buf *out,
                              moec_error *err)
{
    moec_manifest m = {0};
    moec_status st = moec_manifest_decode(&m, data, n, err);

    if (st == MOEC_OK)
        st = moec_manifest_encode(&m, out, err);
    moec_manifest_fini(&m);
    return st;
}

static const reason reasons[] = {
    {"empty", "is empty"},
    {"json", "manifest.json: line 78"},
    {"duplicate", "manifest.json: line 47"},
    {"schema", "[MOE-M02 manifest-version] manifest.json: schema: "
               "'moec.manifest/2'"},
    {"version", "[MOE-M02 manifest-version] manifest.json: format_version: 2"},
    {"unknown-key", "model: has the unknown key 'n_experts'"},
    {"missing-key", "model.layers[0].number: is missing"},
    {"rows-missing", "placement: 'physical_to_logical' is missing"},
    {"rows-beside-trivial", "there are rows, but the kind is 'trivial'"},
    {"row-short", "physical_to_logical[1]: 5 ids for 6 slots"},
    {"id", "physical_to_logical[1][5]: is 4, must be between -1 and 3"},
    {"empty-id", "physical_to_logical[0][5]: is -1, must be between 0 and 3"},
    {"negative", "files[0].bytes: is -1"},
    {"fraction", "files[0].bytes: is a fraction"},
    {"too-large", "topology.redundant: is 4294967296"},
    {"name", "files[0].name: '../x' is not a plain file name"},
    {"name-twice", "file 'config.json' stands there twice"},
    {"own-name", "file 'slots.bin' stands there twice"},
    {"digest", "slots.sha256: must be 64 lower-case hex digits"},
    {"word", "options.w13_order: 'gate' is none of the words"},
    {"dtype", "model.expert_dtype: 'bf16' is no dtype"},
    {"ranks", "4 ranks of 3 slots are not 6 slots"},
    {"no-layers", "there is no MoE layer"},
    {"layer-order", "layers[1] is out of order"},
};

static void agrees_with_the_independent_writer(void **state)
{
    (void)state;
    check_corpus("manifest", round_trip, reasons,
                 sizeof(reasons) / sizeof(reasons[0]));
}

static void reports_every_failed_allocation(void **state)
{
    (void)state;
    check_alloc_failures("manifest", "ok-explicit", round_trip);
}

static void rejects_every_truncation(void **state)
{
    (void)state;
    /* The last byte is a newline: the document is whole without it. */
    check_truncations("manifest", "ok-trivial", 1, round_trip);
}

/* A seed, decoded. */
static moec_manifest decode_seed(const char *seed)
{
    size_t n;
    moec_manifest m = {0};
    char *data = read_seed(MOEC_TEST_FIXTURES "/corpora/manifest", seed, &n);

    assert_int_equal(moec_manifest_decode(&m, data, n, NULL), MOEC_OK);
    memset(data, 'x', n); /* nothing is borrowed */
    free(data);
    return m;
}

static void decodes_what_the_fields_say(void **state)
{
    moec_manifest m = decode_seed("ok-explicit");
    static const int32_t p2l[12] = {0, 1, 2, 3, 0, -1, 3, 2, 1, 0, -1, 3};

    (void)state;
    assert_int_equal(m.format_version, 1);
    assert_string_equal(m.family, "deepseek");
    assert_string_equal(m.model_type, "deepseek_v3");
    assert_string_equal(m.score, "sigmoid");
    assert_string_equal(m.activation, "silu");
    assert_int_equal(m.n_experts, 4);
    assert_int_equal(m.n_shared, 1);
    assert_int_equal(m.top_k, 2);
    assert_int_equal(m.n_layers, 4);
    assert_int_equal(m.hidden, 32);
    assert_int_equal(m.inter, 16);
    assert_int_equal(m.shared_width, 16);
    assert_int_equal(m.n_group, 2);
    assert_int_equal(m.topk_group, 1);
    assert_true(fabs(m.routed_scale - 2.5) <= 0);
    assert_int_equal(m.norm_topk, 1);
    assert_string_equal(m.shared_kind, "plain");
    assert_int_equal(m.expert_dtype, MOEC_DTYPE_BF16);
    assert_null(m.family_text);
    assert_int_equal(m.n_ranks, 2);
    assert_int_equal(m.n_redundant, 2);
    assert_int_equal(m.n_physical, 6);
    assert_int_equal(m.n_local, 3);
    assert_int_equal(m.n_shared_slots, 1);
    assert_string_equal(m.shared_slots, "per-rank");
    assert_string_equal(m.shared_store, "rank");
    assert_string_equal(m.shard_by, "rank");
    assert_string_equal(m.w13_order, "gate-up");
    assert_true(m.mtp);
    assert_true(m.allow_empty);
    assert_int_equal(m.max_part_bytes, UINT64_C(1) << 32);
    assert_int_equal(m.n_mf_layers, 2);
    assert_int_equal(m.layers[1].key.space, MOEC_SPACE_MTP);
    assert_int_equal(m.layers[1].source_number, 4);
    assert_memory_equal(m.p2l, p2l, sizeof(p2l));
    assert_int_equal(m.n_sources, 2);
    assert_null(m.sources[0].etag);
    assert_int_equal(strlen(m.sources[1].etag), 64);
    assert_int_equal(m.sources[1].bytes, UINT64_C(9000000000000));
    assert_string_equal(m.index_name, "model.safetensors.index.json");
    assert_int_equal(m.n_files, 1);
    assert_int_equal(m.n_copied, 2);
    assert_string_equal(m.copied[1].name, "t\xc3\xb6ken\"izer.json");
    assert_string_equal(m.slots_file.name, "slots.bin");
    assert_int_equal(m.sources_file.bytes, 32);
    assert_int_equal(m.n_transforms, 1);
    moec_manifest_fini(&m);
    moec_manifest_fini(&m); /* again is fine */
}

static void tells_null_from_values(void **state)
{
    moec_manifest m = decode_seed("ok-nulls");

    (void)state;
    assert_int_equal(m.norm_topk, -1);
    assert_null(m.index_name);
    assert_string_equal(m.family_text, "{\"schema\": \"moec.family/1\"}\n");
    assert_null(m.p2l);
    moec_manifest_fini(&m);
}

static void gives_every_double_back(void **state)
{
    static const double values[] = {1,      2.5,  2.446, 0.1,
                                    1e300,  -0.0, 0.0,   1.0 / 3,
                                    5e-324, 1e17, 1e16,  123456789};
    moec_manifest m = decode_seed("ok-trivial");

    (void)state;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        moec_buf text = {0};
        moec_manifest back = {0};

        m.routed_scale = values[i];
        assert_int_equal(moec_manifest_encode(&m, &text, NULL), MOEC_OK);
        assert_int_equal(moec_manifest_decode(&back, text.data, text.len, NULL),
                         MOEC_OK);
        assert_memory_equal(&back.routed_scale, &values[i], sizeof(double));
        moec_manifest_fini(&back);
        moec_buf_fini(&text);
    }
    moec_manifest_fini(&m);
}

/* A server may run under a locale that writes 2,5. Machines without such a
 * locale skip this. */
static void writes_a_point_in_every_locale(void **state)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8",
                                        "fr_FR.UTF-8", "de_DE"};
    moec_manifest m = decode_seed("ok-trivial");
    moec_buf text = {0};
    const char *set = NULL;
    moec_status st;

    (void)state;
    for (size_t i = 0; !set && i < sizeof(names) / sizeof(names[0]); i++)
        set = setlocale(LC_NUMERIC, names[i]);
    st = moec_manifest_encode(&m, &text, NULL);
    setlocale(LC_NUMERIC, "C");
    assert_int_equal(st, MOEC_OK);
    assert_non_null(strstr(text.data, "\"routed_scaling_factor\": 2.5,"));
    moec_buf_fini(&text);
    moec_manifest_fini(&m);
    if (!set)
        skip();
}

static void check_refused(const moec_manifest *m, const char *why)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_buf text = {0};

    assert_int_equal(moec_manifest_encode(m, &text, &err), MOEC_E_UNSUPPORTED);
    if (!strstr(err.text, why))
        fail_msg("'%s' does not say '%s'", err.text, why);
    moec_buf_fini(&text);
}

/* What could be written but never be read. */
static void refuses_to_write_what_it_would_not_read(void **state)
{
    moec_manifest good = decode_seed("ok-trivial");
    moec_manifest m = good;
    moec_mf_copied copied = good.copied[0];
    const char *const nothing[1] = {NULL};

    (void)state;
    m.routed_scale = (double)NAN;
    check_refused(&m, "'routed_scaling_factor': the number is not finite");
    m = good;
    m.max_part_bytes = UINT64_MAX;
    check_refused(&m, "'max_part_bytes': the number exceeds 2^63 - 1");
    m = good;
    m.family = "\xff";
    check_refused(&m, "'family': the text is not UTF-8");
    m = good;
    m.w13_order = NULL;
    check_refused(&m, "'w13_order': there is no text");
    m = good;
    copied.name = "a/b";
    m.copied = &copied;
    m.n_copied = 1;
    check_refused(&m, "'name': this is not a plain file name");
    m = good;
    m.transforms = nothing;
    m.n_transforms = 1;
    check_refused(&m, "'transforms': there is no text");
    moec_manifest_fini(&good);
}

static void refuses_a_text_beyond_the_readers_cap(void **state)
{
    size_t n = (size_t)MOEC_JSON_BYTES_MAX;
    moec_manifest m = decode_seed("ok-trivial");
    char *text = malloc(n + 1);

    (void)state;
    assert_non_null(text);
    memset(text, 'x', n);
    text[n] = '\0';
    m.family_text = text;
    check_refused(&m, "the limit is 16777216");
    free(text);
    moec_manifest_fini(&m);
}

static void failure_leaves_the_output_alone(void **state)
{
    moec_manifest m = {.n_experts = 77};

    (void)state;
    assert_int_equal(moec_manifest_decode(&m, "[]", 2, NULL), MOEC_E_FORMAT);
    assert_int_equal(m.n_experts, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_independent_writer),
        cmocka_unit_test(decodes_what_the_fields_say),
        cmocka_unit_test(tells_null_from_values),
        cmocka_unit_test(gives_every_double_back),
        cmocka_unit_test(writes_a_point_in_every_locale),
        cmocka_unit_test(refuses_to_write_what_it_would_not_read),
        cmocka_unit_test(refuses_a_text_beyond_the_readers_cap),
        cmocka_unit_test(rejects_every_truncation),
        cmocka_unit_test(reports_every_failed_allocation),
        cmocka_unit_test(failure_leaves_the_output_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
