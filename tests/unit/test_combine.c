/* SPDX-License-Identifier: Apache-2.0
 *
 * The weighted sum: every back end against the formula of kernels.h, bit for
 * bit, at widths around the vectors. */

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

static float *random_floats(uint64_t *seed, size_t n)
{
    float *f = guarded(n * sizeof(*f));

    for (size_t i = 0; i < n; i++)
        f[i] = random_float(seed);
    return f;
}

static void random_in(uint64_t *seed, moec_combine_in *in, uint32_t n_tokens,
                      uint32_t hidden)
{
    size_t n;
    int32_t *slots;

    memset(in, 0, sizeof(*in));
    in->struct_bytes = sizeof(*in);
    in->n_tokens = n_tokens;
    in->hidden = hidden;
    in->n_cols = random_below(seed, random_below(seed, 4) ? 10 : 81);
    in->scaled_cols = random_below(seed, in->n_cols + 1);
    in->scale = random_below(seed, 3) ? random_float(seed) : 0.0f;
    n = (size_t)n_tokens * in->n_cols;
    slots = guarded(n * sizeof(*slots));
    for (size_t i = 0; i < n; i++)
        slots[i] = (int32_t)random_below(seed, 6) - 1;
    in->slots = slots;
    in->weights = random_floats(seed, n);
    in->y = random_floats(seed, n * hidden);
    if (random_below(seed, 2)) {
        in->identity = random_floats(seed, n_tokens);
        in->x = random_floats(seed, (size_t)n_tokens * hidden);
    }
}

static float formula(const moec_combine_in *in, uint32_t t, uint32_t h)
{
    float scale = in->scale == 0.0f ? 1.0f : in->scale, acc = 0.0f;

    if (in->identity)
        acc = in->identity[t] * in->x[(size_t)t * in->hidden + h];
    for (uint32_t c = 0; c <= in->n_cols; c++) {
        size_t at = (size_t)t * in->n_cols + c;

        if (c == in->scaled_cols)
            acc *= scale;
        if (c < in->n_cols && in->slots[at] >= 0) {
            float term = in->weights[at] * in->y[at * in->hidden + h];

            acc += term;
        }
    }
    return acc;
}

static void check(const moec_kernels *k, const moec_combine_in *in)
{
    float *out = guarded((size_t)in->n_tokens * in->hidden * sizeof(*out));
    moec_error err = MOEC_ERROR_INIT;

    if (moec_combine(k, in, out, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    for (uint32_t t = 0; t < in->n_tokens; t++)
        for (uint32_t h = 0; h < in->hidden; h++) {
            float want = formula(in, t, h);

            if (memcmp(&want, &out[(size_t)t * in->hidden + h], 4) != 0)
                fail_msg("%s: token %u, element %u of %u: %a, not %a",
                         moec_isa_name(moec_kernels_isa(k)), t, h, in->hidden,
                         (double)out[(size_t)t * in->hidden + h], (double)want);
        }
}

static void every_back_end_gives_the_formula(void **state)
{
    uint64_t seed = 1;

    (void)state;
    for (int isa = MOEC_ISA_SCALAR; isa <= MOEC_ISA_AVX512; isa++) {
        moec_kernels *k = open_kernels((moec_isa)isa, 1);

        for (uint32_t hidden = 1; k && hidden < 300; hidden++) {
            moec_combine_in in;

            random_in(&seed, &in, random_below(&seed, 4), hidden);
            check(k, &in);
            guarded_free_all();
        }
        moec_kernels_close(k);
    }
}

static void threads_change_nothing(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 3);
    uint64_t seed = 2;

    (void)state;
    for (int turn = 0; turn < 4; turn++) {
        moec_combine_in in;

        random_in(&seed, &in, 50 + random_below(&seed, 100), 1024);
        check(k, &in);
        guarded_free_all();
    }
    moec_kernels_close(k);
}

/* Rows of y that no column has are not read: experts of other ranks. */
static void absent_columns_are_not_read(void **state)
{
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    moec_combine_in in = {.struct_bytes = sizeof(in),
                          .n_tokens = 1,
                          .n_cols = 2,
                          .scaled_cols = 2,
                          .hidden = 16};
    int32_t slots[] = {3, -1};
    float weights[] = {2.0f, 5.0f}, y[16], out[16];
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    for (int i = 0; i < 16; i++)
        y[i] = (float)i;
    in.slots = slots;
    in.weights = weights;
    in.y = guarded_copy(y, sizeof(y)); /* the second row would be a guard */
    assert_int_equal(moec_combine(k, &in, out, &err), MOEC_OK);
    for (int i = 0; i < 16; i++)
        assert_true(out[i] == 2.0f * (float)i);
    guarded_free_all();
    moec_kernels_close(k);
}

static void refuses_what_does_not_fit(void **state)
{
    static const char *const texts[] = {
        "in.slots is",     "in.weights is", "in.y is",          "in.x is",
        "struct_bytes is", "129 columns",   "3 of them scaled", "of 0 elements",
    };
    moec_kernels *k = open_kernels(MOEC_ISA_AUTO, 1);
    int32_t slots[2] = {0};
    float f[2] = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_combine_in in = {
            .struct_bytes = i == 4 ? 8 : sizeof(in),
            .n_tokens = 1,
            .n_cols = i == 5 ? 129 : 2,
            .scaled_cols = i == 6 ? 3 : 2,
            .hidden = i == 7 ? 0 : 1,
            .slots = i == 0 ? NULL : slots,
            .weights = i == 1 ? NULL : f,
            .y = i == 2 ? NULL : f,
            .identity = f,
            .x = i == 3 ? NULL : f,
        };
        float out[1];

        assert_int_equal(moec_combine(k, &in, out, &err), MOEC_E_ARG);
        if (!strstr(err.text, texts[i]))
            fail_msg("'%s' is not in: %s", texts[i], err.text);
    }
    moec_kernels_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_back_end_gives_the_formula),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(absent_columns_are_not_read),
        cmocka_unit_test(refuses_what_does_not_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
