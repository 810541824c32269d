/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a back end: which instruction set, which tables, which threads. */

#include <math.h>
#include <string.h>

#include "backend.h"
#include "ec.h"
#include "matrix.h"

static const char *const isa_names[] = {"auto", "scalar", "avx2", "avx512"};

const char *moec_isa_name(moec_isa isa)
{
    return isa <= MOEC_ISA_AVX512 ? isa_names[isa] : "?";
}

int moec_isa_parse(const char *name)
{
    for (int i = 0; i <= (int)MOEC_ISA_AVX512; i++)
        if (strcmp(name, isa_names[i]) == 0)
            return i;
    return -1;
}

/* The set to use, or AUTO where the forced one cannot be. */
static moec_isa choose(moec_isa forced, moec_cpu cpu)
{
    switch (forced) {
    case MOEC_ISA_AUTO:
        if (cpu.avx512)
            return MOEC_ISA_AVX512;
        return cpu.avx2 ? MOEC_ISA_AVX2 : MOEC_ISA_SCALAR;
    case MOEC_ISA_SCALAR:
        return forced;
    case MOEC_ISA_AVX2:
        return cpu.avx2 ? forced : MOEC_ISA_AUTO;
    case MOEC_ISA_AVX512:
        return cpu.avx512 ? forced : MOEC_ISA_AUTO;
    }
    return MOEC_ISA_AUTO;
}

moec_status moec_kernels_open(moec_kernels **out, const moec_kernels_opts *opts,
                              moec_error *err)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_cpu cpu = moec_cpu_query();
    moec_kernels *k;
    moec_isa isa;

    if (opts) {
        MOEC_TRY(moec_check_struct("moec_kernels_opts", opts->struct_bytes,
                                   sizeof(o), err));
        o = *opts;
    }
    isa = choose(o.isa, cpu);
    if (isa == MOEC_ISA_AUTO)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "this CPU has no %s (it has: %s); use another --cpu",
                         moec_isa_name(o.isa), moec_cpu_features());
    k = moec_calloc(1, sizeof(*k));
    if (!k)
        return moec_fail_nomem(err, "kernels");
    k->isa = isa;
    k->matrix = moec_matrix_fns_of(isa);
    k->ec = moec_ec_fns_of(isa);
    k->bf16_dot = isa == MOEC_ISA_AVX512 && cpu.avx512_bf16;
    if (o.n_threads != 1) {
        moec_status st = moec_pool_create(&k->pool, o.n_threads, err);

        if (st != MOEC_OK) {
            moec_free(k);
            return st;
        }
    }
    *out = k;
    return MOEC_OK;
}

void moec_kernels_close(moec_kernels *k)
{
    if (!k)
        return;
    moec_pool_destroy(k->pool);
    moec_free(k);
}

moec_isa moec_kernels_isa(const moec_kernels *k)
{
    return k->isa;
}

uint32_t moec_kernels_n_threads(const moec_kernels *k)
{
    return moec_pool_n_threads(k->pool);
}

moec_load_stats moec_load_stats_of(const uint32_t *counts, uint64_t n)
{
    moec_load_stats s = {0};
    double var = 0.0;

    if (n == 0)
        return s;
    s.min = UINT64_MAX;
    for (uint64_t i = 0; i < n; i++) {
        s.sum += counts[i];
        s.max = moec_max_u64(s.max, counts[i]);
        s.min = moec_min_u64(s.min, counts[i]);
    }
    s.mean = (double)s.sum / (double)n;
    for (uint64_t i = 0; i < n; i++) {
        double d = counts[i] - s.mean;

        var += d * d;
    }
    s.deviation = sqrt(var / (double)n);
    s.max_over_mean = s.sum ? (double)s.max / s.mean : 0.0;
    return s;
}
