/* SPDX-License-Identifier: Apache-2.0
 *
 * slots.bin: the C code against an independent writer of the grammar, and
 * each rule of the grammar broken once. */

#include "converted_corpus.h"

#include "converted.h"

static moec_status round_trip(const void *data, size_t n, moec_buf *out,
                              moec_error *err)
{
    moec_slots s = {0};
    moec_status st = moec_slots_decode(&s, data, n, err);

    if (st == MOEC_OK)
        st = moec_slots_encode(&s, out, err);
    moec_slots_fini(&s);
    return st;
}

static const reason reasons[] = {
    {"empty", "0 bytes are no head"},
    {"truncated", "280 rows of 1 bytes at 1424 exceed the file's 1696"},
    {"trailing", "the tables end at 1704, the file at 1712"},
    {"magic", "the magic"},
    {"version", "version 2"},
    {"count-wraps", "1152921504606846976 rows of 48 bytes"},
    {"tensor-order", "should stand at"},
    {"tensor-gap", "should begin at 12288 of 16896"},
    {"tensor-file", "file 3 of 3"},
    {"tensor-past-file", "[200, + 101) should begin at 200 of 300"},
    {"kind", "kind 3"},
    {"dtype", "dtype 23"},
    {"space", "space 2"},
    {"rows", "3 slots in 8192 bytes"},
    {"first-slot", "[1, + 2) should begin at 0 of 7"},
    {"logical", "logical id -2"},
    {"leaf-count", "2 leaves from 0, it needs 1 of 6"},
    {"leaf-range", "1 leaves from 6, it needs 1 of 6"},
    {"header-bytes", "a header of 301 bytes in 300"},
    {"name-offset", "the name at 0"},
    {"pad-name", "only fillers are called __pad."},
    {"file-name", "'../a' is not a plain file name"},
    {"file-twice", "file 'a' stands there twice"},
    {"utf8", "not UTF-8"},
};

static void agrees_with_the_independent_writer(void **state)
{
    (void)state;
    check_corpus("slots", round_trip, reasons,
                 sizeof(reasons) / sizeof(reasons[0]));
}

static void reports_every_failed_allocation(void **state)
{
    (void)state;
    check_alloc_failures("slots", "ok-small", round_trip);
}

static void rejects_every_truncation(void **state)
{
    (void)state;
    check_truncations("slots", "ok-small", 0, round_trip);
}

/* One bit at a time: refused, or a table that encodes to these very bytes. */
static void has_one_encoding_for_each_table(void **state)
{
    size_t n, accepted = 0, refused = 0;
    unsigned char *data =
        read_seed(MOEC_TEST_FIXTURES "/corpora/slots", "ok-small", &n);

    (void)state;
    for (size_t bit = 0; bit < 8 * n; bit++) {
        moec_buf out = {0};

        data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        if (round_trip(data, n, &out, NULL) == MOEC_OK) {
            assert_int_equal(out.len, n);
            assert_memory_equal(out.data, data, n);
            accepted++;
        } else {
            refused++;
        }
        moec_buf_fini(&out);
        data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    /* Digests, layers, ranks, letters of names: nobody can refuse these. */
    assert_true(accepted > 100);
    assert_true(refused > 100);
    free(data);
}

static void decodes_what_the_fields_say(void **state)
{
    size_t n;
    moec_slots s = {0};
    void *data = read_seed(MOEC_TEST_FIXTURES "/corpora/slots", "ok-small", &n);
    moec_sha256 leaf;

    (void)state;
    assert_int_equal(moec_slots_decode(&s, data, n, NULL), MOEC_OK);
    memset(data, 0xa5, n); /* nothing is borrowed */
    free(data);
    assert_int_equal(s.n_files, 3);
    assert_int_equal(s.n_tensors, 7);
    assert_int_equal(s.n_slots, 7);
    assert_int_equal(s.n_leaves, 6);
    assert_string_equal(s.files[2].name, "common-00001-of-00001.safetensors");
    assert_int_equal(s.files[2].bytes, 300);
    assert_int_equal(s.files[2].header_bytes, 200);
    assert_string_equal(s.tensors[3].name,
                        "model.layers.3.mlp.experts.w13_weight");
    assert_int_equal(s.tensors[3].file, 1);
    assert_int_equal(s.tensors[3].kind, MOEC_CT_SLOTS);
    assert_int_equal(s.tensors[3].dtype, MOEC_DTYPE_BF16);
    assert_int_equal(s.tensors[3].space, MOEC_SPACE_MAIN);
    assert_int_equal(s.tensors[5].space, MOEC_SPACE_MTP);
    assert_int_equal(s.tensors[3].layer, 3);
    assert_int_equal(s.tensors[3].rank, 1);
    assert_int_equal(s.tensors[3].first_slot, 3);
    assert_int_equal(s.slots[3].logical, 2);
    assert_int_equal(s.slots[4].logical, MOEC_LOGICAL_EMPTY);
    assert_int_equal(s.slots[6].logical, MOEC_LOGICAL_NONE);
    assert_int_equal(moec_sha256_of("leaf 5", 6, &leaf, NULL), MOEC_OK);
    assert_memory_equal(s.leaves[5].sha256.b, leaf.b, sizeof(leaf.b));
    moec_slots_fini(&s);
    moec_slots_fini(&s); /* again is fine */
}

/* Each word at its extremes: refused, or what it says is written again. */
static void takes_no_word_for_another(void **state)
{
    static const uint64_t words[] = {
        0, 1, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    size_t n;
    unsigned char *data =
        read_seed(MOEC_TEST_FIXTURES "/corpora/slots", "ok-small", &n);

    (void)state;
    for (size_t at = 0; at + 8 <= n; at += 4)
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
            unsigned char was[8];
            moec_buf out = {0};

            memcpy(was, data + at, 8);
            memcpy(data + at, &words[i], i % 2 ? 8 : 4);
            if (round_trip(data, n, &out, NULL) == MOEC_OK) {
                assert_int_equal(out.len, n);
                assert_memory_equal(out.data, data, n);
            }
            moec_buf_fini(&out);
            memcpy(data + at, was, 8);
        }
    free(data);
}

/* The slot that begins at a byte, and none where none does. */
static void finds_the_slot_at_a_byte(void **state)
{
    size_t n;
    moec_slots s = {0};
    void *data = read_seed(MOEC_TEST_FIXTURES "/corpora/slots", "ok-small", &n);
    uint64_t slot;

    (void)state;
    assert_int_equal(moec_slots_decode(&s, data, n, NULL), MOEC_OK);
    free(data);
    assert_false(moec_slots_find(&s, 0, 0, &slot)); /* a header */
    assert_false(moec_slots_find(&s, s.n_files, 0, &slot));
    for (size_t i = 0; i < s.n_tensors; i++) {
        const moec_ct_tensor *t = &s.tensors[i];
        uint64_t each = t->n_slots ? t->bytes / t->n_slots : 0;

        for (uint32_t k = 0; each > 1 && k < t->n_slots; k++) {
            assert_true(moec_slots_find(&s, t->file, t->off + k * each, &slot));
            assert_int_equal(slot, t->first_slot + k);
            assert_false(
                moec_slots_find(&s, t->file, t->off + k * each + 1, &slot));
        }
        if (each > 1)
            assert_false(moec_slots_find(&s, t->file, UINT64_MAX, &slot));
    }
    moec_slots_fini(&s);
}

static void failure_leaves_the_output_alone(void **state)
{
    moec_slots s = {.n_files = 77};

    (void)state;
    assert_int_equal(moec_slots_decode(&s, "x", 1, NULL), MOEC_E_FORMAT);
    assert_int_equal(s.n_files, 77);
}

static void refuses_to_encode_a_nameless_tensor(void **state)
{
    moec_ct_tensor t = {.name = ""};
    moec_slots s = {.n_tensors = 1, .tensors = &t};
    moec_buf out = {0};

    (void)state;
    assert_int_equal(moec_slots_encode(&s, &out, NULL), MOEC_E_INTERNAL);
    t.name = NULL;
    assert_int_equal(moec_slots_encode(&s, &out, NULL), MOEC_E_INTERNAL);
    moec_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_independent_writer),
        cmocka_unit_test(decodes_what_the_fields_say),
        cmocka_unit_test(has_one_encoding_for_each_table),
        cmocka_unit_test(rejects_every_truncation),
        cmocka_unit_test(reports_every_failed_allocation),
        cmocka_unit_test(takes_no_word_for_another),
        cmocka_unit_test(finds_the_slot_at_a_byte),
        cmocka_unit_test(failure_leaves_the_output_alone),
        cmocka_unit_test(refuses_to_encode_a_nameless_tensor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
