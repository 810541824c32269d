/* SPDX-License-Identifier: Apache-2.0
 *
 * The allocation wrappers, the arena, and the sizes of element types. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

static void fails_the_nth_allocation_once(void **state)
{
    void *p[4];

    (void)state;
    moec_alloc_fail_at(3);
    p[0] = moec_alloc(0);
    p[1] = moec_calloc(3, 5);
    p[2] = moec_alloc(1);
    p[3] = moec_realloc_array(NULL, 2, 2);
    assert_non_null(p[0]);
    assert_non_null(p[1]);
    assert_null(p[2]);
    assert_non_null(p[3]);
    assert_int_equal(moec_alloc_fail_at(0), 4);
    assert_int_equal(moec_alloc_fail_at(0), 0);
    for (int i = 0; i < 4; i++)
        moec_free(p[i]);
}

static void refuses_products_that_wrap(void **state)
{
    (void)state;
    assert_null(moec_calloc(SIZE_MAX / 2, 3));
    assert_null(moec_realloc_array(NULL, SIZE_MAX / 2, 3));
}

static void aligns_memory_for_direct_io(void **state)
{
    void *p = moec_alloc_aligned(5000, 4096);

    (void)state;
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 4096, 0);
    memset(p, 1, 5000);
    moec_free_aligned(p);
    moec_alloc_fail_at(1);
    assert_null(moec_alloc_aligned(1, 4096));
    moec_alloc_fail_at(0);
}

/* A list of pointers, whose address MOEC_GROW writes through. */
static void lists_grow_and_keep_what_they_hold(void **state)
{
    const char **list = NULL;
    size_t cap = 0;

    (void)state;
    for (size_t n = 0; n < 1000; n++) {
        assert_true(MOEC_GROW(list, n, cap));
        list[n] = "abc" + n % 3;
    }
    for (size_t n = 0; n < 1000; n++)
        assert_string_equal(list[n], "abc" + n % 3);
    assert_int_equal(cap, 1024);
    moec_alloc_fail_at(1);
    assert_true(MOEC_GROW(list, 1023, cap)); /* has room: asks for nothing */
    assert_false(MOEC_GROW(list, 1024, cap));
    moec_alloc_fail_at(0);
    assert_int_equal(cap, 1024);
    assert_string_equal(list[999], "abc");
    moec_free(list);
}

/* Objects of many sizes: aligned, disjoint, and unmoved by later ones. */
static void arena_objects_do_not_move_or_overlap(void **state)
{
    enum { N = 2000 };
    static unsigned char *at[N];
    static size_t size[N];
    moec_arena a = {0};

    (void)state;
    for (size_t i = 0; i < N; i++) {
        size_t align = (size_t)1 << (i % 7);
        size[i] = i % 97 == 0 ? 70000 : i * 7 % 300;
        at[i] = moec_arena_alloc(&a, size[i], align);
        assert_non_null(at[i]);
        assert_int_equal((uintptr_t)at[i] % align, 0);
        memset(at[i], (int)(i % 251), size[i]);
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < size[i]; k++)
            assert_int_equal(at[i][k], i % 251);
    }
    moec_arena_fini(&a);
    assert_null(a.head);
}

/* A block with room for the object, but not behind the gap that aligns it. */
static void arena_counts_the_gap_at_a_blocks_end(void **state)
{
    (void)state;
    for (size_t left = 0; left < 200; left++) {
        moec_arena a = {0};
        unsigned char *p;
        for (int i = 0; i < 4; i++)
            assert_non_null(moec_arena_alloc(&a, 4 * 1024 / 4 - 64, 1));
        assert_non_null(moec_arena_alloc(&a, 200 - left, 1));
        p = moec_arena_alloc(&a, left, 64);
        assert_non_null(p);
        memset(p, 1, left);
        moec_arena_fini(&a);
    }
}

static void arena_uses_few_allocations(void **state)
{
    moec_arena a = {0};

    (void)state;
    moec_alloc_fail_at(0);
    for (int i = 0; i < 100000; i++)
        assert_non_null(moec_arena_alloc(&a, 40, 8));
    assert_in_range(moec_alloc_fail_at(0), 1, 16);
    moec_arena_fini(&a);
}

static void arena_copies_texts_with_nul(void **state)
{
    moec_arena a = {0};
    char *s = moec_arena_strdup(&a, "abcdef", 3);

    (void)state;
    assert_non_null(s);
    assert_string_equal(s, "abc");
    s = moec_arena_strdup(&a, NULL, 0);
    assert_non_null(s);
    assert_string_equal(s, "");
    moec_arena_fini(&a);
}

static void arena_reports_failure_and_goes_on(void **state)
{
    moec_arena a = {0};

    (void)state;
    moec_alloc_fail_at(1);
    assert_null(moec_arena_alloc(&a, 8, 8));
    assert_null(moec_arena_alloc(&a, SIZE_MAX - 20, 8));
    assert_null(moec_arena_strdup(&a, "x", SIZE_MAX));
    assert_non_null(moec_arena_alloc(&a, 8, 8));
    moec_alloc_fail_at(0);
    moec_arena_fini(&a);
}

static void arithmetic_sees_overflow(void **state)
{
    uint64_t v = 0;

    (void)state;
    assert_false(moec_add_u64(UINT64_MAX, 1, &v));
    assert_false(moec_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &v));
    assert_false(moec_align_u64(UINT64_MAX - 5, 4096, &v));
    assert_true(moec_align_u64(4097, 4096, &v));
    assert_int_equal(v, 8192);
    assert_true(moec_align_u64(8192, 4096, &v));
    assert_int_equal(v, 8192);
    assert_int_equal(moec_ceil_div(7, 2), 4);
    assert_true(moec_ceil_div(UINT64_MAX, 1) == UINT64_MAX);
}

/* Written down a second time, from the format's description. */
static void knows_every_dtype(void **state)
{
    static const struct {
        const char *name;
        uint32_t bits;
    } want[] = {
        {"BOOL", 8},    {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6},
        {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8},
        {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
        {"U16", 16},    {"F16", 16},        {"BF16", 16},       {"I32", 32},
        {"U32", 32},    {"F32", 32},        {"C64", 64},        {"F64", 64},
        {"I64", 64},    {"U64", 64},
    };
    const size_t n = sizeof(want) / sizeof(want[0]);

    (void)state;
    assert_int_equal(n, MOEC_DTYPE_COUNT - 1);
    for (size_t i = 0; i < n; i++) {
        moec_dtype d = moec_dtype_parse(want[i].name, strlen(want[i].name));
        assert_int_equal(d, i + 1);
        assert_string_equal(moec_dtype_name(d), want[i].name);
        assert_int_equal(moec_dtype_bits(d), want[i].bits);
    }
    assert_int_equal(moec_dtype_parse("bf16", 4), MOEC_DTYPE_NONE);
    assert_int_equal(moec_dtype_parse("F8_E4M3FN", 9), MOEC_DTYPE_NONE);
    assert_int_equal(moec_dtype_parse("F3", 2), MOEC_DTYPE_NONE);
    assert_int_equal(moec_dtype_parse("", 0), MOEC_DTYPE_NONE);
    assert_string_equal(moec_dtype_name(MOEC_DTYPE_NONE), "?");
    assert_string_equal(moec_dtype_name(MOEC_DTYPE_COUNT), "?");
    assert_int_equal(moec_dtype_bits(MOEC_DTYPE_NONE), 0);
    assert_int_equal(moec_dtype_bits((moec_dtype)255), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fails_the_nth_allocation_once),
        cmocka_unit_test(refuses_products_that_wrap),
        cmocka_unit_test(aligns_memory_for_direct_io),
        cmocka_unit_test(lists_grow_and_keep_what_they_hold),
        cmocka_unit_test(arena_objects_do_not_move_or_overlap),
        cmocka_unit_test(arena_counts_the_gap_at_a_blocks_end),
        cmocka_unit_test(arena_uses_few_allocations),
        cmocka_unit_test(arena_copies_texts_with_nul),
        cmocka_unit_test(arena_reports_failure_and_goes_on),
        cmocka_unit_test(arithmetic_sees_overflow),
        cmocka_unit_test(knows_every_dtype),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
