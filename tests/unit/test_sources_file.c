/* SPDX-License-Identifier: Apache-2.0
 *
 * sources.bin: the C code against an independent writer of the grammar, and
 * each rule of the grammar broken once. */

#include "converted_corpus.h"

#include "converted.h"

static moec_status round_trip(const void *data, size_t n, moec_buf *out,
                              moec_error *err)
{
    moec_sources s = {0};
    moec_status st = moec_sources_decode(&s, data, n, err);

    if (st == MOEC_OK)
        st = moec_sources_encode(&s, out, err);
    moec_sources_fini(&s);
    return st;
}

static const reason reasons[] = {
    {"empty", "0 bytes are no head"},
    {"truncated", "should stand at 591 of 595 bytes"},
    {"trailing", "the entries end at 596, the file at 597"},
    {"magic", "the magic"},
    {"version", "version 2"},
    {"digest", "does not have its digest"},
    {"kind", "kind 3"},
    {"name", "not a plain file name"},
    {"name-nul", "not a plain file name"},
    {"name-twice", "'a' stands there twice"},
    {"two-indexes", "'b' is a second index"},
    {"shard-length", "9 bytes are not the header of a shard"},
    {"shard-cut", "8 bytes are not the header of a shard of 7"},
    {"file-bytes", "1 bytes of a file of 2"},
    {"count", "4294967295 entries"},
};

static void agrees_with_the_independent_writer(void **state)
{
    (void)state;
    check_corpus("sources", round_trip, reasons,
                 sizeof(reasons) / sizeof(reasons[0]));
}

static void reports_every_failed_allocation(void **state)
{
    (void)state;
    check_alloc_failures("sources", "ok-small", round_trip);
}

static void rejects_every_truncation(void **state)
{
    (void)state;
    check_truncations("sources", "ok-small", 0, round_trip);
}

/* Every byte is covered: by the head, the table, a name or a digest. What is
 * left to change are letters of names and sizes of shards. */
static void rejects_every_changed_data_byte(void **state)
{
    size_t n, in_data = 0;
    unsigned char *data =
        read_seed(MOEC_TEST_FIXTURES "/corpora/sources", "ok-small", &n);
    moec_sources s = {0};

    (void)state;
    assert_int_equal(moec_sources_decode(&s, data, n, NULL), MOEC_OK);
    for (size_t i = 0; i < s.n_entries; i++) {
        size_t off = (size_t)((const unsigned char *)s.entries[i].data - data);

        for (size_t k = 0; k < s.entries[i].data_bytes; k++, in_data++) {
            moec_sources other = {0};

            data[off + k] ^= 1;
            assert_int_equal(moec_sources_decode(&other, data, n, NULL),
                             MOEC_E_FORMAT);
            data[off + k] ^= 1;
        }
    }
    assert_true(in_data > 80);
    moec_sources_fini(&s);
    free(data);
}

static void decodes_what_the_fields_say(void **state)
{
    size_t n;
    moec_sources s = {0};
    void *data =
        read_seed(MOEC_TEST_FIXTURES "/corpora/sources", "ok-small", &n);
    moec_sha256 sha;

    (void)state;
    assert_int_equal(moec_sources_decode(&s, data, n, NULL), MOEC_OK);
    assert_int_equal(s.n_entries, 5);
    assert_int_equal(s.entries[0].kind, MOEC_SRC_SHARD);
    assert_string_equal(s.entries[0].name, "model-00001-of-00002.safetensors");
    assert_int_equal(s.entries[0].data_bytes, 61);
    assert_int_equal(s.entries[0].file_bytes, 64);
    assert_int_equal(moec_le64(s.entries[0].data), 53);
    assert_int_equal(s.entries[2].kind, MOEC_SRC_INDEX);
    assert_int_equal(s.entries[3].kind, MOEC_SRC_FILE);
    assert_memory_equal(s.entries[3].data, "theirs", 6);
    assert_int_equal(moec_sha256_of("theirs", 6, &sha, NULL), MOEC_OK);
    assert_memory_equal(s.entries[3].sha256.b, sha.b, sizeof(sha.b));
    moec_sources_fini(&s);
    free(data);
}

/* Each word at its extremes: refused, or what it says is written again. */
static void takes_no_word_for_another(void **state)
{
    static const uint64_t words[] = {
        0, 1, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    size_t n;
    unsigned char *data =
        read_seed(MOEC_TEST_FIXTURES "/corpora/sources", "ok-small", &n);

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

static void refuses_to_encode_a_path(void **state)
{
    moec_source_entry e = {.kind = MOEC_SRC_FILE, .name = "a/b"};
    moec_sources s = {.n_entries = 1, .entries = &e};
    moec_buf out = {0};

    (void)state;
    assert_int_equal(moec_sources_encode(&s, &out, NULL), MOEC_E_INTERNAL);
    e.name = NULL;
    assert_int_equal(moec_sources_encode(&s, &out, NULL), MOEC_E_INTERNAL);
    moec_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_independent_writer),
        cmocka_unit_test(decodes_what_the_fields_say),
        cmocka_unit_test(rejects_every_changed_data_byte),
        cmocka_unit_test(rejects_every_truncation),
        cmocka_unit_test(reports_every_failed_allocation),
        cmocka_unit_test(takes_no_word_for_another),
        cmocka_unit_test(refuses_to_encode_a_path),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
