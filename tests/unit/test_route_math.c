/* SPDX-License-Identifier: Apache-2.0
 *
 * The exponential and what is made of it against libm in double, over all
 * binades; and the sorting networks by the zero-one principle. */

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/route_nets.h"
#include "route_math.h"

/* Difference in units of the last place of the true value. */
static double ulps(float found, double want)
{
    int exp;

    if (want == 0.0)
        return found == 0.0f ? 0.0 : 1e9;
    (void)frexp(want, &exp);
    return fabs((double)found - want) / ldexp(1.0, exp - 24);
}

static double true_exp(double x)
{
    return exp(x);
}

static double true_sigmoid(double x)
{
    return x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x));
}

static double true_sqrt_softplus(double x)
{
    return sqrt((x > 0 ? x : 0) + log1p(exp(-fabs(x))));
}

static float next_up(float x)
{
    moec_f32_bits b;

    b.f = x;
    b.u += 4099; /* a prime number of floats on */
    return b.f;
}

/* Worst error over every 4099th float of +-[2^-30, high]. */
static double worst(float (*f)(float), double (*g)(double), float low,
                    float high)
{
    double w = 0.0;

    for (float x = 0x1p-30f; x < high; x = next_up(x)) {
        w = fmax(w, ulps(f(x), g((double)x)));
        if (-x > low)
            w = fmax(w, ulps(f(-x), g(-(double)x)));
    }
    return w;
}

static float f_exp(float x)
{
    return moec_f32_exp(x);
}

static float f_sigmoid(float x)
{
    return moec_f32_sigmoid(x);
}

static float f_sqrt_softplus(float x)
{
    return moec_f32_sqrt_softplus(x);
}

static float f_tanh(float x)
{
    return moec_f32_tanh(x);
}

static void stays_close_to_the_true_value(void **state)
{
    (void)state;
    assert_true(worst(f_exp, true_exp, MOEC_EXP_LOW, MOEC_EXP_HIGH) < 1.0);
    assert_true(worst(f_sigmoid, true_sigmoid, MOEC_EXP_LOW, 1e30f) < 2.5);
    assert_true(worst(f_sqrt_softplus, true_sqrt_softplus, -30.0f, 1e30f) <
                2.0);
    assert_true(worst(f_tanh, tanh, -1e30f, 1e30f) < 2.0);
}

/* log(1 + u) is checked inside the softplus; here its ends. */
static void knows_special_values(void **state)
{
    (void)state;
    assert_true(moec_f32_exp(0.0f) == 1.0f);
    assert_true(moec_f32_exp(-INFINITY) == 0.0f);
    assert_true(moec_f32_exp(NAN) == 0.0f);
    assert_true(moec_f32_exp(-87.1f) == 0.0f);
    assert_true(moec_f32_exp(-87.0f) >= FLT_MIN);
    assert_true(moec_f32_exp(1e30f) < FLT_MAX);
    assert_true(moec_f32_sigmoid(0.0f) == 0.5f);
    assert_true(moec_f32_sigmoid(FLT_MAX) == 1.0f);
    assert_true(moec_f32_sigmoid(-FLT_MAX) == 0.0f);
    assert_true(moec_f32_sigmoid(NAN) == 0.0f);
    assert_true(moec_f32_log1p(0.0f) == 0.0f);
    assert_true(moec_f32_sqrt_softplus(-FLT_MAX) == 0.0f);
    assert_true(moec_f32_sqrt_softplus(NAN) == 0.0f);
    assert_true(moec_f32_sqrt_softplus(4e8f) == 2e4f);
    assert_true(moec_f32_tanh(FLT_MAX) == 1.0f);
    assert_true(moec_f32_tanh(-FLT_MAX) == -1.0f);
    assert_true(moec_f32_tanh(0.0f) == 0.0f);
}

static void keys_keep_the_order(void **state)
{
    static const float v[] = {-FLT_MAX, -1.0f,   -FLT_MIN, -1e-45f, 0.0f,
                              1e-45f,   FLT_MIN, 1.0f,     FLT_MAX};

    (void)state;
    for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
        assert_true(moec_f32_key(v[i]) > 0);
        assert_true(moec_f32_unkey(moec_f32_key(v[i])) == v[i]);
        for (size_t j = 0; j < i; j++)
            assert_true(moec_f32_key(v[j]) < moec_f32_key(v[i]));
    }
}

#define CX(a, b)                                                               \
  {                                                                            \
    int high_ = v[a] | v[b];                                                   \
    v[b] = v[a] & v[b];                                                        \
    v[a] = high_;                                                              \
  }

static void descending(const int *v, int n)
{
    for (int i = 1; i < n; i++)
        assert_true(v[i - 1] >= v[i]);
}

static void networks_sort(void **state)
{
    (void)state;
    for (unsigned x = 0; x < 1u << 16; x++) {
        int v[16];

        for (unsigned i = 0; i < 16; i++)
            v[i] = x >> i & 1u;
        MOEC_SORT_16(CX)
        descending(v, 16);
        for (unsigned i = 0; i < 8; i++)
            v[i] = x >> i & 1u;
        MOEC_SORT_8(CX)
        descending(v, 8);
    }
}

/* Zeroes and ones that rise and fall, from every place. */
static void networks_merge(void **state)
{
    (void)state;
    for (int from = 0; from <= 16; from++)
        for (int to = from; to <= 16; to++)
            for (int inside = 0; inside < 2; inside++) {
                int v[16];

                for (int i = 0; i < 16; i++)
                    v[i] = (i >= from && i < to) == inside;
                MOEC_MERGE_16(CX)
                descending(v, 16);
                for (int i = 0; i < 8; i++)
                    v[i] = (i >= from && i < to) == inside;
                MOEC_MERGE_8(CX)
                descending(v, 8);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stays_close_to_the_true_value),
        cmocka_unit_test(knows_special_values),
        cmocka_unit_test(keys_keep_the_order),
        cmocka_unit_test(networks_sort),
        cmocka_unit_test(networks_merge),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
