/* SPDX-License-Identifier: Apache-2.0
 *
 * What this CPU can do, and what its kernel saves on a task switch: cpuid and
 * xgetbv by hand, because clang 14 has no name for F16C in
 * __builtin_cpu_supports, and because the answer must not depend on how this
 * file is compiled. */

#include "backend.h"

#if defined(__x86_64__)
#  include <cpuid.h>

#  define BIT(word, n) (((word) >> (n)) & 1u)

static uint64_t enabled_state(void)
{
    uint32_t lo, hi;

    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* VBMI2 is asked for also because Intel's CPUs without it (before Ice Lake)
 * lower their clock for 512-bit work: they take AVX2. */
moec_cpu moec_cpu_query(void)
{
    moec_cpu c = {0};
    unsigned a, b, cx, d, a1, b1, c1, d1;
    uint64_t state;

    if (!__get_cpuid(1, &a1, &b1, &c1, &d1) || !BIT(c1, 27) || !BIT(c1, 28))
        return c; /* no OSXSAVE, or no AVX */
    state = enabled_state();
    if ((state & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &cx, &d))
        return c;
    c.avx2 = BIT(b, 5) && BIT(b, 3) && BIT(b, 8) && BIT(c1, 12) && BIT(c1, 29);
    if (!c.avx2 || (state & 0xe6) != 0xe6)
        return c;
    c.avx512 = BIT(b, 16) && BIT(b, 17) && BIT(b, 28) && BIT(b, 30) &&
               BIT(b, 31) && BIT(cx, 1) && BIT(cx, 6);
    if (c.avx512 && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &cx, &d))
        c.avx512_bf16 = BIT(a, 5);
    return c;
}
#else
moec_cpu moec_cpu_query(void)
{
    moec_cpu c = {0};

    return c;
}
#endif

const char *moec_cpu_features(void)
{
    moec_cpu c = moec_cpu_query();

    if (c.avx512_bf16)
        return "avx2 avx512 avx512_bf16";
    if (c.avx512)
        return "avx2 avx512";
    return c.avx2 ? "avx2" : "none";
}
