/* SPDX-License-Identifier: Apache-2.0
 *
 * Alignment against the obvious way: for every slot, walk all columns. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/kernels.h>

#include "base/base.h"
#include "guarded.h"

static moec_kernels *open_kernels(moec_isa isa, uint32_t n_threads)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_kernels *k = NULL;

    o.isa = isa;
    o.n_threads = n_threads;
    if (moec_kernels_open(&k, &o, &err) != MOEC_OK)
        return NULL; /* this CPU lacks it */
    return k;
}

struct sorting {
    uint64_t n;
    uint32_t first, n_slots, block;
    int32_t *slots;
    uint32_t *sorted, *expert_ids;
    uint64_t *slot_first, n_padded;
};

/* Slots from a range somewhat wider than the one that is sorted. */
static void make(struct sorting *s, uint64_t *seed, uint64_t n,
                 uint32_t n_slots, uint32_t block)
{
    uint64_t capacity = moec_align_capacity(n, n_slots, block);

    s->n = n;
    s->n_slots = n_slots;
    s->block = block;
    s->first = random_below(seed, 2) * random_below(seed, 1000);
    s->slots = guarded(n * sizeof(int32_t));
    for (uint64_t i = 0; i < n; i++) {
        s->slots[i] =
            (int32_t)(s->first + random_below(seed, n_slots + n_slots / 4 + 1));
        if (random_below(seed, 4) == 0)
            s->slots[i] = (int32_t)random_below(seed, s->first + 1) - 1;
    }
    s->sorted = guarded(capacity * sizeof(uint32_t));
    s->expert_ids = guarded(capacity / block * sizeof(uint32_t));
    s->slot_first = guarded((n_slots + 1) * sizeof(uint64_t));
}

static void sort(const moec_kernels *k, struct sorting *s)
{
    uint64_t bytes = moec_align_workspace_bytes(k, s->n, s->n_slots);
    moec_error err = MOEC_ERROR_INIT;

    if (moec_align(k, s->slots, s->n, s->first, s->n_slots, s->block, s->sorted,
                   s->expert_ids, s->slot_first, &s->n_padded, guarded(bytes),
                   bytes, &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

static void check(const struct sorting *s)
{
    uint64_t at = 0;

    for (uint32_t q = 0; q < s->n_slots; q++) {
        uint64_t begin = at;

        assert_int_equal(s->slot_first[q], at);
        for (uint64_t i = 0; i < s->n; i++)
            if (s->slots[i] == (int32_t)(s->first + q))
                assert_int_equal(s->sorted[at++], i);
        while (at % s->block != 0)
            assert_int_equal(s->sorted[at++], s->n);
        for (; begin < at; begin += s->block)
            assert_int_equal(s->expert_ids[begin / s->block], q);
    }
    assert_int_equal(s->slot_first[s->n_slots], at);
    assert_int_equal(s->n_padded, at);
    assert_true(at <= moec_align_capacity(s->n, s->n_slots, s->block));
}

static void sorts_stably_and_pads_each_slot(void **state)
{
    static const uint32_t slots[] = {1, 2, 9, 36, 257};
    static const uint32_t blocks[] = {1, 3, 16, 64};
    static const uint64_t sizes[] = {0, 1, 5, 64, 1023, 1024, 1025, 3000};
    uint64_t seed = 3;

    (void)state;
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++) {
        moec_kernels *k = open_kernels((moec_isa)isa, 1);

        for (int turn = 0; k && turn < 5 * 4 * 8; turn++) {
            struct sorting s;

            make(&s, &seed, sizes[turn % 8], slots[turn / 8 % 5],
                 blocks[turn / 40]);
            sort(k, &s);
            check(&s);
            guarded_free_all();
        }
        moec_kernels_close(k);
    }
}

static void sorts_the_same_with_threads(void **state)
{
    uint64_t seed = 4;

    (void)state;
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++) {
        moec_kernels *k = open_kernels((moec_isa)isa, 3);

        for (int turn = 0; k && turn < 4; turn++) {
            struct sorting s;

            make(&s, &seed, 40000 + random_below(&seed, 30000), 20, 16);
            sort(k, &s);
            check(&s);
            guarded_free_all();
        }
        moec_kernels_close(k);
    }
}

static void every_column_alone_fills_the_capacity(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    uint64_t seed = 5;
    struct sorting s;

    (void)state;
    make(&s, &seed, 8192, 8192, 64);
    for (uint32_t i = 0; i < 8192; i++)
        s.slots[i] = (int32_t)(s.first + 8191 - i);
    sort(k, &s);
    assert_int_equal(s.n_padded, 8192 * 64);
    for (uint32_t q = 0; q < 8192; q++) {
        assert_int_equal(s.sorted[q * 64], 8191 - q);
        assert_int_equal(s.sorted[q * 64 + 1], 8192);
        assert_int_equal(s.expert_ids[q], q);
    }
    guarded_free_all();
    moec_kernels_close(k);
}

static void refuses_what_does_not_fit(void **state)
{
    static const char *const texts[] = {
        "0 slots",
        "2097152 slots",
        "4 slots from 2147483647",
        "blocks of 0",
        "4294967295 columns",
        "5 columns over 4 slots in blocks of 4294967295",
        "slots is NULL",
        "sorted is NULL",
        "workspace of 15 bytes",
    };
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    int32_t slots[5] = {0};
    uint32_t sorted[8], ws[4];

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        uint64_t n_padded;
        moec_status st;

        st = moec_align(k, i == 6 ? NULL : slots, i == 4 ? UINT32_MAX : 5,
                        i == 2 ? INT32_MAX : 0,
                        i == 0   ? 0
                        : i == 1 ? 2097152
                                 : 4,
                        i == 3   ? 0
                        : i == 5 ? UINT32_MAX
                                 : 1,
                        i == 7 ? NULL : sorted, NULL, NULL, &n_padded, ws,
                        i == 8 ? 15 : sizeof(ws), &err);
        assert_int_equal(st, MOEC_E_ARG);
        if (!strstr(err.text, texts[i]))
            fail_msg("'%s' is not in: %s", texts[i], err.text);
    }
    moec_kernels_close(k);
}

static void permutes_rows_and_zeroes_padding(void **state)
{
    static const uint64_t row_bytes[] = {1, 2, 14, 64, 4096, 14337};
    uint64_t seed = 6;

    (void)state;
    for (uint32_t turn = 0; turn < 24; turn++) {
        moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1 + turn % 2 * 2);
        uint64_t bytes = row_bytes[turn % 6], n = random_below(&seed, 200);
        uint32_t n_cols = 1 + random_below(&seed, 9);
        uint64_t n_tokens = 1 + random_below(&seed, 40);
        unsigned char *x = guarded(n_tokens * bytes);
        unsigned char *out = guarded(n * bytes);
        uint32_t *sorted = guarded(n * sizeof(*sorted));
        moec_error err = MOEC_ERROR_INIT;

        for (uint64_t i = 0; i < n_tokens * bytes; i++)
            x[i] = (unsigned char)(1 + i % 251);
        for (uint64_t i = 0; i < n; i++)
            sorted[i] = random_below(&seed, (uint32_t)n_tokens * n_cols + 1);
        assert_int_equal(moec_permute(k, x, bytes, sorted, n, n_tokens * n_cols,
                                      n_cols, out, &err),
                         MOEC_OK);
        for (uint64_t i = 0; i < n; i++)
            for (uint64_t h = 0; h < bytes; h++)
                if (out[i * bytes + h] !=
                    (sorted[i] == n_tokens * n_cols
                         ? 0
                         : x[sorted[i] / n_cols * bytes + h]))
                    fail_msg("row %d, byte %d", (int)i, (int)h);
        guarded_free_all();
        moec_kernels_close(k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorts_stably_and_pads_each_slot),
        cmocka_unit_test(sorts_the_same_with_threads),
        cmocka_unit_test(every_column_alone_fills_the_capacity),
        cmocka_unit_test(refuses_what_does_not_fit),
        cmocka_unit_test(permutes_rows_and_zeroes_padding),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
