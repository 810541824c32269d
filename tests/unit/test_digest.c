/* SPDX-License-Identifier: Apache-2.0
 *
 * Digests, against answers known from elsewhere: FIPS 180-4 examples and the
 * self-test of xxHash's own xxhsum. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "base/base.h"

static const struct {
    const char *text, *sha256;
} sha_known[] = {
    {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
    {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
     "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
};

static void sha256_gives_known_answers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(sha_known) / sizeof(sha_known[0]); i++) {
        size_t n = strlen(sha_known[i].text);
        moec_sha256 d;
        char hex[65];
        assert_int_equal(
            moec_sha256_of(n ? sha_known[i].text : NULL, n, &d, NULL), MOEC_OK);
        moec_hex(d.b, sizeof(d.b), hex);
        assert_string_equal(hex, sha_known[i].sha256);
    }
}

static void hasher_agrees_however_it_is_fed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(sha_known) / sizeof(sha_known[0]); i++) {
        const char *s = sha_known[i].text;
        moec_hasher *h = NULL;
        moec_sha256 d;
        char hex[65];
        assert_int_equal(moec_hasher_create(&h, NULL), MOEC_OK);
        assert_int_equal(moec_hasher_update(h, NULL, 0, NULL), MOEC_OK);
        for (; *s; s++)
            assert_int_equal(moec_hasher_update(h, s, 1, NULL), MOEC_OK);
        assert_int_equal(moec_hasher_final(h, &d, NULL), MOEC_OK);
        moec_hex(d.b, sizeof(d.b), hex);
        assert_string_equal(hex, sha_known[i].sha256);
    }
}

static void hasher_can_be_given_up(void **state)
{
    moec_hasher *h = NULL;
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    moec_hasher_destroy(NULL);
    assert_int_equal(moec_hasher_create(&h, NULL), MOEC_OK);
    assert_int_equal(moec_hasher_update(h, "x", 1, NULL), MOEC_OK);
    moec_hasher_destroy(h);
    h = NULL;
    moec_alloc_fail_at(1);
    assert_int_equal(moec_hasher_create(&h, &err), MOEC_E_NOMEM);
    moec_alloc_fail_at(0);
    assert_null(h);
    assert_int_equal(err.status, MOEC_E_NOMEM);
}

/* xxhsum's generator and answers for seed 0, high half first: every length
 * class of XXH3 and the vector loops of each instruction set. */
static void xxh128_gives_known_answers(void **state)
{
    static const struct {
        size_t n;
        const char *hex;
    } known[] = {
        {0, "99aa06d3014798d86001c324468d497f"},
        {1, "a6cd5e9392000f6ac44bdff4074eecdb"},
        {6, "082afe0b8162d12a3e7039bdda43cfc6"},
        {12, "6e3efd8fc7802b18061a192713f69ad9"},
        {24, "0ce966e4678d37611e7044d28b1b901d"},
        {48, "a002ac4e5478227ef942219aed80f67b"},
        {81, "4952f58181ab00425e8bafb9f95fb803"},
        {222, "337e09641b948717f1aebd597cec6b3a"},
        {403, "1b6de21e332dd73dcdeb804d65c6dea4"},
        {512, "18d2d110dcc9bca1617e49599013cb6b"},
        {2048, "f736557fd47073a5dd59e2c3a5f038e0"},
        {2240, "ccb134fbfa7ce49d6e73a90539cf2948"},
        {2367, "e89c0f6ff369b427cb37aeb9e5d361ed"},
    };
    unsigned char data[2367];
    uint64_t gen = UINT64_C(2654435761);

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (unsigned char)(gen >> 56);
        gen *= UINT64_C(11400714785074694797);
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        moec_xxh128 d = moec_xxh128_of(known[i].n ? data : NULL, known[i].n);
        char hex[33];
        moec_hex(d.b, sizeof(d.b), hex);
        assert_string_equal(hex, known[i].hex);
    }
}

static void hex_goes_both_ways(void **state)
{
    unsigned char in[256], out[256];
    char hex[513];

    (void)state;
    for (size_t i = 0; i < sizeof(in); i++)
        in[i] = (unsigned char)i;
    moec_hex(in, sizeof(in), hex);
    assert_memory_equal(hex, "000102", 6);
    assert_string_equal(hex + 510, "ff");
    assert_true(moec_unhex(hex, out, sizeof(out)));
    assert_memory_equal(in, out, sizeof(in));
}

static void unhex_refuses_and_leaves_out_alone(void **state)
{
    static const char *const bad[] = {"",     "0",    "000",  "00000", "00G0",
                                      "00A0", "0:00", "00`0", "00/0"};
    unsigned char out[2] = {7, 7};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_false(moec_unhex(bad[i], out, 2));
        assert_int_equal(out[0], 7);
        assert_int_equal(out[1], 7);
    }
}

/* Leaves two at a time against one at a time, at every remainder. */
static void leaves_are_the_digests_of_their_bytes(void **state)
{
    static const size_t leaf[] = {64, 128, 4096, 100, 65536};
    const size_t most = 300000;
    unsigned char *p = malloc(most);
    moec_sha256 got[4800], want;

    (void)state;
    assert_non_null(p);
    for (size_t i = 0; i < most; i++)
        p[i] = (unsigned char)(i % 251 ^ i >> 12);
    for (size_t k = 0; k < sizeof(leaf) / sizeof(*leaf); k++)
        for (size_t n = 0; n < most; n = n * 3 + 7 + leaf[k] / 2) {
            size_t count = (n + leaf[k] - 1) / leaf[k];
            if (count > sizeof(got) / sizeof(*got))
                break;
            assert_int_equal(moec_sha256_leaves(p, n, leaf[k], got, NULL),
                             MOEC_OK);
            for (size_t i = 0; i < count; i++) {
                size_t off = i * leaf[k];
                size_t bytes = n - off < leaf[k] ? n - off : leaf[k];
                assert_int_equal(moec_sha256_of(p + off, bytes, &want, NULL),
                                 MOEC_OK);
                assert_memory_equal(&got[i], &want, sizeof(want));
            }
        }
    free(p);
}

/* However it is cut, with and without a copy, and whatever is fetched ahead:
 * pages that no longer exist, too. */
static void a_pair_is_digested_block_by_block(void **state)
{
    enum { N = 4096 };
    static unsigned char p[2 * N], to[2 * N + 1];
    static const size_t cut[] = {64, 192, 1024, N};
    unsigned char *gone =
        mmap(NULL, N, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    moec_sha256 want[2], got[2];
    moec_sha256_pair h;

    (void)state;
    assert_ptr_not_equal(gone, MAP_FAILED);
    assert_int_equal(munmap(gone, N), 0);
    if (!moec_sha256_pair_begin(&h))
        skip();
    for (size_t i = 0; i < sizeof(p); i++)
        p[i] = (unsigned char)(i % 241 ^ i >> 8);
    for (int m = 0; m < 2; m++)
        assert_int_equal(moec_sha256_of(p + m * N, N, &want[m], NULL), MOEC_OK);
    for (size_t i = 0; i < 2 * sizeof(cut) / sizeof(*cut); i++) {
        bool copy = i % 2 == 1;

        memset(to, 0xa5, sizeof(to));
        assert_true(moec_sha256_pair_begin(&h));
        for (size_t at = 0, n; at < N; at += n) {
            n = N - at < cut[i / 2] ? N - at : cut[i / 2];
            const moec_sha256_block b[2] = {
                {p + at, gone + at, copy ? to + at : NULL},
                {p + N + at, p + N + at, copy ? to + N + at : NULL}};
            moec_sha256_pair_update(&h, b, n);
        }
        moec_sha256_pair_final(&h, got);
        assert_memory_equal(got, want, sizeof(want));
        if (copy)
            assert_memory_equal(to, p, sizeof(p));
        assert_int_equal(to[2 * N], 0xa5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_gives_known_answers),
        cmocka_unit_test(hasher_agrees_however_it_is_fed),
        cmocka_unit_test(hasher_can_be_given_up),
        cmocka_unit_test(xxh128_gives_known_answers),
        cmocka_unit_test(hex_goes_both_ways),
        cmocka_unit_test(unhex_refuses_and_leaves_out_alone),
        cmocka_unit_test(leaves_are_the_digests_of_their_bytes),
        cmocka_unit_test(a_pair_is_digested_block_by_block),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
