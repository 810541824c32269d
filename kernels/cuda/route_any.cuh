// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_ROUTE_ANY_CUH
#define MOEC_ROUTE_ANY_CUH

// What this is: the row keys of route.h for any configuration, by one warp in
//   shared memory: any number of columns and of groups, softcap. What
//   route_any and Expert Choice are built on.

#include "route_select.cuh"

// Key of a group whose best two keys are best and second; 0: not to be kept.
__device__ static inline uint32_t moec_group_key(const moec_route_args &a,
                                                 uint32_t best,
                                                 uint32_t second)
{
    if (a.c.group_score == MOEC_GROUP_MAX)
        return best;
    if (second == 0)
        return 0;
    return moec_key_of(
        moec_clamped(moec_f32_unkey(best) + moec_f32_unkey(second)));
}

// Clear the keys of the groups that are not kept. groups[n_group] is shared.
__device__ static __noinline__ void
moec_keep_groups_any(const moec_route_args &a, const moec_columns<0> &c,
                     uint32_t *groups, float m, float sum)
{
    moec_columns<0> gs = {&a, nullptr, groups, a.c.n_group};
    uint32_t width = a.c.n_experts / a.c.n_group, t, ties;

    __syncwarp();
    for (uint32_t g = moec_lane(); g < a.c.n_group; g += 32) {
        uint32_t best = 0, second = 0;

        for (uint32_t i = g * width; i < (g + 1) * width; i++) {
            uint32_t key = c.keys[i];

            if (key != 0 && !a.in.bias && a.c.group_score == MOEC_GROUP_TOP2) {
                float x = moec_capped(a, moec_raw_at(a, c.row, i));

                key = moec_key_of(a.c.score == MOEC_SCORE_SOFTMAX
                                       ? moec_f32_exp(x - m) / sum
                                       : moec_score_of(a.c.score, x) + 0.0f);
            }
            second = max(second, min(best, key));
            best = max(best, key);
        }
        groups[g] = moec_group_key(a, best, second);
    }
    __syncwarp();
    t = moec_kth_key(gs, a.c.topk_group);
    ties = a.c.topk_group - moec_count_from(gs, t + 1);
    for (int v = 0; v < gs.n(); v++) {
        uint32_t key = gs.key(v);
        uint32_t equal = __ballot_sync(MOEC_FULL_WARP, key == t);
        uint32_t n_equal = static_cast<uint32_t>(__popc(equal));
        uint32_t before = static_cast<uint32_t>(
            __popc(equal & ((1u << moec_lane()) - 1u)));

        if (moec_lane() + 32u * static_cast<uint32_t>(v) < a.c.n_group &&
            (key < t || (key == t && before >= ties)))
            groups[moec_lane() + 32u * static_cast<uint32_t>(v)] = 0;
        ties -= n_equal < ties ? n_equal : ties;
    }
    __syncwarp();
    for (uint32_t i = moec_lane(); i < a.n_choice; i += 32)
        if (groups[i / width] == 0)
            c.keys[i] = 0;
}

// Key of column i, but for its group; m and sum are read for softmax with a
// bias.
__device__ static inline uint32_t moec_key_any(const moec_route_args &a,
                                               const void *row, uint32_t i,
                                               float m, float sum)
{
    float raw = moec_raw_at(a, row, i), x;

    if (!a.in.bias)
        return moec_raw_key(raw);
    x = moec_capped(a, raw);
    return moec_biased_key(raw,
                           a.c.score == MOEC_SCORE_SOFTMAX
                               ? moec_f32_exp(x - m) / sum
                               : moec_score_of(a.c.score, x),
                           a.in.bias[i]);
}

// c.keys of a row whose softmax has m and sum. groups[n_group] is shared: not
// 0 for the groups that are kept.
__device__ static inline void moec_keys_any(const moec_route_args &a,
                                            const moec_columns<0> &c,
                                            uint32_t *groups, float m,
                                            float sum)
{
    for (uint32_t i = moec_lane(); i < a.n_choice; i += 32)
        c.keys[i] = moec_key_any(a, c.row, i, m, sum);
    if (a.c.n_group > 1)
        moec_keep_groups_any(a, c, groups, m, sum);
    __syncwarp();
}

#endif
