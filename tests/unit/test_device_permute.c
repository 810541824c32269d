/* SPDX-License-Identifier: Apache-2.0
 *
 * align, permute and combine of a device against the CPU's, bit for bit. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <moec/moec.h>

#include "device_test.h"

static moec_device *device;
static moec_kernels *cpu;

static int open_both(void **state)
{
    (void)state;
    return test_open_both(&device, &cpu, MOEC_ISA_AUTO);
}

static int close_both(void **state)
{
    (void)state;
    moec_device_close(device);
    moec_kernels_close(cpu);
    return 0;
}

static uint32_t rnd(uint32_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 17;
    *s ^= *s << 5;
    return *s;
}

/* One alignment: what the CPU writes is what the device writes. */
static void check_align(const int32_t *slots, uint64_t n, uint32_t first,
                        uint32_t n_slots, uint32_t block)
{
    uint64_t cap = moec_align_capacity(n, n_slots, block);
    uint64_t ws_bytes = moec_device_align_workspace_bytes(device, n, n_slots);
    uint64_t cpu_bytes = moec_align_workspace_bytes(cpu, n, n_slots) + 64;
    uint32_t *sorted = malloc(2 * cap * 4 + 4);
    uint32_t *ids = malloc(2 * (cap / block + 1) * 4);
    uint64_t *begins = malloc(2 * (n_slots + 1) * 8);
    uint64_t padded[2] = {0, 0};
    void *ws = malloc(cpu_bytes);
    moec_error err = MOEC_ERROR_INIT;
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_align_out o = {.struct_bytes = sizeof(o)};
    void *dslots = test_to_device(device, slots, n * 4);

    assert_int_equal(moec_align(cpu, slots, n, first, n_slots, block, sorted,
                                ids, begins, &padded[0], ws, cpu_bytes, &err),
                     MOEC_OK);
    o.sorted = test_to_device(device, NULL, cap * 4);
    o.expert_ids = test_to_device(device, NULL, (cap / block + 1) * 4);
    o.slot_first = test_to_device(device, NULL, (n_slots + 1ull) * 8);
    o.n_padded = test_to_device(device, NULL, 8);
    l.workspace = test_to_device(device, NULL, ws_bytes);
    l.workspace_bytes = ws_bytes;
    if (moec_device_align(device, dslots, n, first, n_slots, block, &o, &l,
                          &err) != MOEC_OK)
        fail_msg("%s", err.text);
    test_from_device(device, &padded[1], o.n_padded, 8);
    assert_int_equal(padded[1], padded[0]);
    test_from_device(device, sorted + cap, o.sorted, padded[0] * 4);
    test_from_device(device, ids + cap / block + 1, o.expert_ids,
                     padded[0] / block * 4);
    test_from_device(device, begins + n_slots + 1, o.slot_first,
                     (n_slots + 1ull) * 8);
    assert_memory_equal(sorted, sorted + cap, padded[0] * 4);
    assert_memory_equal(ids, ids + cap / block + 1, padded[0] / block * 4);
    assert_memory_equal(begins, begins + n_slots + 1, (n_slots + 1ull) * 8);
    moec_device_free(device, o.sorted);
    moec_device_free(device, o.expert_ids);
    moec_device_free(device, o.slot_first);
    moec_device_free(device, o.n_padded);
    moec_device_free(device, l.workspace);
    moec_device_free(device, dslots);
    free(sorted);
    free(ids);
    free(begins);
    free(ws);
}

static void sorts_columns_stably(void **state)
{
    static const struct {
        uint32_t n, first, n_slots, block;
    } cases[] = {
        {0, 0, 1, 1},       {1, 0, 1, 16},      {31, 3, 7, 1},
        {1024, 36, 36, 64}, {8192, 0, 288, 64}, {8193, 0, 288, 128},
        {20000, 5, 33, 1},  {9000, 0, 6000, 4}, {300, 0, 2000, 16},
    };
    static int32_t slots[20000];
    uint32_t seed = 7;

    (void)state;
    for (size_t k = 0; k < sizeof(cases) / sizeof(*cases); k++) {
        for (uint32_t i = 0; i < cases[k].n; i++) {
            uint32_t r = rnd(&seed);

            slots[i] = r % 11 == 0 ? -1 : (int32_t)(r % (cases[k].n_slots * 2));
        }
        check_align(slots, cases[k].n, cases[k].first, cases[k].n_slots,
                    cases[k].block);
    }
}

/* All columns in one slot, or none in ours. */
static void sorts_columns_of_one_slot(void **state)
{
    static int32_t slots[5000];

    (void)state;
    for (size_t i = 0; i < 5000; i++)
        slots[i] = 17;
    check_align(slots, 5000, 0, 64, 16);
    check_align(slots, 5000, 17, 1, 1);
    check_align(slots, 5000, 18, 40, 32);
}

static void check_permute(uint64_t row_bytes, uint32_t n_tokens, uint32_t cols)
{
    static unsigned char x[40000], out[2][160000];
    static uint32_t sorted[512];
    uint64_t n = (uint64_t)n_tokens * cols + 5, columns = n - 5;
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    void *dx, *ds, *dn, *dout;

    for (size_t i = 0; i < sizeof(x); i++)
        x[i] = (unsigned char)(i % 251);
    for (uint32_t i = 0; i < n; i++)
        sorted[i] = (uint32_t)((i * 7) % n); /* some are padding */
    assert_int_equal(
        moec_permute(cpu, x, row_bytes, sorted, n, columns, cols, out[0], &err),
        MOEC_OK);
    dx = test_to_device(device, x, n_tokens * row_bytes);
    ds = test_to_device(device, sorted, n * 4);
    dn = test_to_device(device, &n, 8);
    dout = test_to_device(device, NULL, n * row_bytes);
    assert_int_equal(moec_device_permute(device, dx, row_bytes, ds, dn, n + 9,
                                         columns, cols, dout, &l, &err),
                     MOEC_OK);
    test_from_device(device, out[1], dout, n * row_bytes);
    assert_memory_equal(out[0], out[1], n * row_bytes);
    moec_device_free(device, dx);
    moec_device_free(device, ds);
    moec_device_free(device, dn);
    moec_device_free(device, dout);
}

static void gathers_rows(void **state)
{
    (void)state;
    check_permute(64, 10, 8);
    check_permute(1028, 5, 3);
    check_permute(7, 60, 2);
}

static void check_combine(uint32_t n, uint32_t cols, uint32_t scaled,
                          uint32_t hidden, bool identity)
{
    static float y[60000], x[6000], id[64], w[512], out[2][6000];
    static int32_t slots[512];
    uint32_t seed = n * 31 + cols;
    moec_combine_in in = {.struct_bytes = sizeof(in),
                          .n_tokens = n,
                          .n_cols = cols,
                          .scaled_cols = scaled,
                          .hidden = hidden,
                          .slots = slots,
                          .weights = w,
                          .y = y,
                          .scale = 2.5f};
    moec_combine_in din;
    moec_launch l = MOEC_LAUNCH_INIT;
    moec_error err = MOEC_ERROR_INIT;
    void *dout = test_to_device(device, NULL, n * hidden * 4ull);

    for (uint32_t i = 0; i < n * cols * hidden; i++)
        y[i] = (float)(int32_t)rnd(&seed) * 1e-9f;
    for (uint32_t i = 0; i < n * hidden; i++)
        x[i] = (float)(int32_t)rnd(&seed) * 1e-9f;
    for (uint32_t i = 0; i < n * cols; i++) {
        slots[i] = rnd(&seed) % 5 == 0 ? -1 : (int32_t)i;
        w[i] = (float)rnd(&seed) * 1e-10f;
    }
    for (uint32_t i = 0; i < n; i++)
        id[i] = 0.125f * (float)i;
    if (identity) {
        in.identity = id;
        in.x = x;
    }
    assert_int_equal(moec_combine(cpu, &in, out[0], &err), MOEC_OK);
    din = in;
    din.slots = test_to_device(device, slots, n * cols * 4ull);
    din.weights = test_to_device(device, w, n * cols * 4ull);
    din.y = test_to_device(device, y, n * cols * hidden * 4ull);
    if (identity) {
        din.identity = test_to_device(device, id, n * 4ull);
        din.x = test_to_device(device, x, n * hidden * 4ull);
    }
    assert_int_equal(moec_device_combine(device, &din, dout, &l, &err),
                     MOEC_OK);
    test_from_device(device, out[1], dout, n * hidden * 4ull);
    assert_memory_equal(out[0], out[1], n * hidden * 4ull);
}

static void sums_columns_in_order(void **state)
{
    (void)state;
    check_combine(5, 9, 8, 1028, false);
    check_combine(3, 4, 4, 77, true);
    check_combine(7, 3, 0, 8, false);
    check_combine(2, 1, 1, 5, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sorts_columns_stably),
        cmocka_unit_test(sorts_columns_of_one_slot),
        cmocka_unit_test(gathers_rows),
        cmocka_unit_test(sums_columns_in_order),
    };

    return cmocka_run_group_tests(tests, open_both, close_both);
}
