// SPDX-License-Identifier: Apache-2.0
//
// The call of Expert Choice: its workspace, and which kernels it takes. The
// algorithm stands in ec_parts.cuh.

#include "ec_parts.cuh"

EC_KERNEL(ec_begin)
{
    begin_block(j);
}

EC_KERNEL(ec_plain)
{
    EC_WORKER(k);
    plain_rows(j, k);
}

EC_KERNEL(ec_measure)
{
    if (threadIdx.x == 0)
        measure(j);
}

// Carves the workspace; with base 0 it only measures.
static void *take(char *base, uint64_t *used, uint64_t bytes)
{
    char *at = base ? base + *used : nullptr;

    *used += (bytes + 255) / 256 * 256;
    return at;
}

static uint64_t carve(ec_args *j, const moec_route_config *c, uint32_t n,
                      char *base)
{
    bool balanced = c->ec.fill == MOEC_EC_BALANCED;
    uint64_t e = c->n_experts, used = 0, room = n;

    if (n > SAMPLE_FROM) { // four times C: the sample's 2.4, and luck
        room = 4ull * moec_ec_capacity_of(c, n);
        room = room < SAMPLE_FROM ? SAMPLE_FROM : room < n ? room : n;
    }
    j->room = static_cast<uint32_t>(room);
    j->kept_words = c->n_group > 1 ? (c->n_group + 31) / 32 : 0;
    j->h = static_cast<head *>(take(base, &used, sizeof(head)));
    j->thresholds =
        static_cast<unsigned long long *>(take(base, &used, e * 8));
    j->floors = static_cast<uint32_t *>(take(base, &used, e * 4));
    j->counts = static_cast<uint32_t *>(take(base, &used, e * 4));
    j->loads = static_cast<uint32_t *>(take(base, &used, e * 4));
    j->scales = static_cast<scale *>(take(base, &used, n * sizeof(scale)));
    j->kept = static_cast<uint32_t *>(
        take(base, &used, 4ull * n * j->kept_words));
    j->sampled = static_cast<uint32_t *>(take(
        base, &used, !balanced && n >= SAMPLE_FROM ? 4ull * SAMPLE * e : 0));
    j->lists = static_cast<unsigned long long *>(
        take(base, &used, balanced ? 0 : e * room * 8));
    j->held = static_cast<uint32_t *>(
        take(base, &used, balanced ? 4ull * n * c->top_k : 0));
    return used;
}

uint64_t moec_cuda_expert_choice_workspace(const moec_route_config *c,
                                           uint32_t n)
{
    ec_args j = {};

    return carve(&j, c, n, nullptr);
}

static shape shape_of(uint32_t ordinal, ec_args *j)
{
    uint32_t words = j->a.n_choice;
    int sm = 0;
    shape s;

    if (j->kept_words != 0)
        words += j->a.c.n_group;
    j->warp_bytes = (words * 4 + 15) / 16 * 16;
    j->warps = WARPS;
    while (j->warps > 1 && j->warps * j->warp_bytes > KEYS_MAX)
        j->warps /= 2;
    if (cudaDeviceGetAttribute(&sm, cudaDevAttrMultiProcessorCount,
                               static_cast<int>(ordinal)) != cudaSuccess ||
        sm < 1)
        sm = 128;
    s.rows = moec_blocks(j->a.in.n_tokens, j->warps);
    if (s.rows > static_cast<uint32_t>(sm) * 8)
        s.rows = static_cast<uint32_t>(sm) * 8;
    s.experts = j->a.n_choice;
    s.sample = moec_blocks(SAMPLE, j->warps);
    s.shared = static_cast<uint64_t>(j->warps) * j->warp_bytes;
    return s;
}

static bool is_small(const ec_args &j)
{
    return j.a.in.n_tokens <= SMALL && j.a.c.ec.fill != MOEC_EC_BALANCED &&
           SMALL_WARPS * j.warp_bytes <= KEYS_MAX;
}

moec_status moec_cuda_expert_choice(uint32_t ordinal, const moec_route_args &a,
                                    moec_ec_stats *stats, void *ws,
                                    cudaStream_t s, moec_error *err)
{
    ec_args j = {};
    uint32_t threads;
    shape g;

    if (a.c.ec.mode == MOEC_EC_AUTO && !a.in.ec_state)
        return moec_cuda_fail(err, MOEC_E_ARG, "ec.mode auto needs ec_state");
    if (static_cast<uint64_t>(a.in.n_tokens) * a.c.n_experts > UINT32_MAX)
        return moec_cuda_fail(err, MOEC_E_UNSUPPORTED,
                              "expert choice of %u tokens by %u experts: the "
                              "pairs are counted in 32 bits; cut the tokens "
                              "into chunks",
                              a.in.n_tokens, a.c.n_experts);
    j.a = a;
    j.stats = stats;
    (void)carve(&j, &a.c, a.in.n_tokens, static_cast<char *>(ws));
    if (a.in.n_tokens == 0) {
        if (stats)
            (void)cudaMemsetAsync(stats, 0, sizeof(*stats), s);
        return moec_cuda_launched("expert choice", err);
    }
    g = shape_of(ordinal, &j);
    threads = j.warps * 32;
    if (is_small(j)) {
        j.warps = SMALL_WARPS;
        moec_ec_launch_small(j, s);
        return moec_cuda_launched("expert choice", err);
    }
    launch(ec_begin, 1, THREADS, 0, s, j);
    if (a.c.ec.mode == MOEC_EC_AUTO) {
        launch(ec_plain, g.rows, threads, g.shared, s, j);
        launch(ec_measure, 1, 32, 0, s, j);
    }
    if (a.c.ec.fill == MOEC_EC_BALANCED)
        moec_ec_launch_rounds(j, g, threads, s);
    else
        moec_ec_launch_two_pass(j, g, threads, s);
    return moec_cuda_launched("expert choice", err);
}
