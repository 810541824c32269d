// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_ROUTE_WEIGHTS_CUH
#define MOEC_ROUTE_WEIGHTS_CUH

// What this is: the weights of a row whose ids are chosen, by whomever: scores
//   of the chosen, the divisor that the norm asks for, shared columns; and the
//   row's way out.

#include "route_row.cuh"

// Sigmoids of the shared experts' logits, behind the others.
__device__ static inline float moec_shared_score(const moec_route_args &a,
                                                 const void *row, uint32_t s)
{
    return moec_score_of(
        MOEC_SCORE_SIGMOID,
        moec_clean(moec_load_any(row, static_cast<int>(a.in.logits_dtype),
                                 a.n_choice + s)));
}

// Sum of what the norm adds up of w.s[0, K), in rank order.
__device__ static inline float moec_chosen_sum(const moec_route_args &a,
                                               const moec_row_scratch &w)
{
    bool square = a.c.norm == MOEC_NORM_P && a.c.norm_arg == 2.0f;
    bool absolute = a.c.norm == MOEC_NORM_P && !square;
    float sum = 0.0f;

    for (uint32_t k = 0; k < a.c.top_k; k += 4) {
        float4 v = *reinterpret_cast<const float4 *>(&w.s[k]);
        float q[4] = {v.x, v.y, v.z, v.w};

        MOEC_UNROLL
        for (uint32_t i = 0; i < 4; i++) {
            float x = square ? q[i] * q[i] : q[i];

            if (absolute)
                x = fabsf(x);
            sum = k + i < a.c.top_k ? sum + x : sum;
        }
    }
    return sum;
}

// The same and the shared experts' scores, which stay in w.floats().
__device__ static inline float moec_joint_sum(const moec_route_args &a,
                                              const void *row, float sum,
                                              const moec_row_scratch &w)
{
    float *shared = w.floats();

    for (uint32_t j = moec_lane(); j < a.c.n_shared_logits; j += 32)
        shared[j] = moec_shared_score(a, row, j);
    __syncwarp();
    for (uint32_t j = 0; j < a.c.n_shared_logits; j++)
        sum = sum + shared[j];
    return sum;
}

// What the scores in w.s are divided by; 0 makes all weights 0.
template <int V>
__device__ static inline float
moec_divisor(const moec_route_args &a, const moec_columns<V> &c,
             const void *row, float m, const moec_row_scratch &w)
{
    bool softmax = a.c.score == MOEC_SCORE_SOFTMAX &&
                   a.c.choice != MOEC_CHOICE_SPARSE_MIXER;
    moec_route_norm norm = a.c.norm;
    float sum = norm == MOEC_NORM_NONE ? 1.0f : moec_chosen_sum(a, w);
    float all = 1.0f; // sum over all columns, where it counts

    if (softmax && (norm == MOEC_NORM_NONE || norm == MOEC_NORM_FLOOR ||
                    (norm == MOEC_NORM_SUM && MOEC_RARE(sum < 1e-8f))))
        all = moec_row_sum(a, c, m, w);
    if (norm == MOEC_NORM_NONE)
        return all;
    if (norm == MOEC_NORM_SUM)
        return sum == 0.0f ? 0.0f : sum + 1e-20f * all;
    if (norm == MOEC_NORM_FLOOR) {
        all = a.c.norm_arg * all;
        return sum > all ? sum : all;
    }
    if (norm == MOEC_NORM_P)
        return a.c.norm_arg == 2.0f ? sqrtf(sum) : sum;
    return norm == MOEC_NORM_JOINT ? moec_joint_sum(a, row, sum, w) : sum;
}

// Ids and weights of the shared columns of a row that has an expert.
__device__ static inline void moec_shared_columns(const moec_route_args &a,
                                                  uint32_t row, float d,
                                                  const moec_row_scratch &w)
{
    const float *joint = w.floats();

    for (uint32_t j = moec_lane(); j < a.c.n_shared; j += 32) {
        float v = a.shared_weight;

        if (a.c.norm == MOEC_NORM_JOINT) {
            v = d == 0.0f ? 0.0f : joint[j] / d;
            if (a.c.rsf_on == MOEC_RSF_ON_WEIGHTS)
                v = v * a.c.rsf;
            v = v / static_cast<float>(a.c.shared_ranks);
        } else if (a.c.shared_kind == MOEC_SHARED_SIGMOID) {
            v = v * moec_f32_sigmoid(a.in.shared_gate[row]);
        }
        w.s[a.c.top_k + j] = v;
        w.ids[a.c.top_k + j] = static_cast<int32_t>(a.n_choice + j);
    }
}

// Scores of the sparse mixer: each round its own softmax over the columns not
// taken by earlier rounds and close enough to the round's best. c.keys is no
// longer needed and holds x.
__device__ static __noinline__ void
moec_mixer_scores(const moec_route_args &a, const moec_columns<0> &c,
                  uint32_t n_ids, const moec_row_scratch &w)
{
    float *xs = reinterpret_cast<float *>(c.keys);
    float limit = 2.0f * a.c.mixer_eps;
    uint32_t lane = moec_lane(), items = (a.n_choice + 31) / 32;

    for (uint32_t i = lane; i < a.n_choice; i += 32)
        xs[i] = moec_capped(a, moec_raw_at(a, c.row, i));
    for (uint32_t k = 0; k < n_ids; k++) {
        uint32_t taken = static_cast<uint32_t>(w.ids[k]);
        float m = -INFINITY, mine = 0.0f, total;
        moec_sum16 sum;

        for (uint32_t i = lane; i < a.n_choice; i += 32)
            m = xs[i] > m ? xs[i] : m;
        m = moec_warp_max(m);
        for (uint32_t v = 0; v < items; v++) {
            uint32_t i = lane + 32 * v;
            float x = i < a.n_choice ? xs[i] : -INFINITY;
            float size = fabsf(x), e = 0.0f;

            if (x > -INFINITY && !((m - x) / (size > m ? size : m) > limit))
                e = moec_f32_exp(x - m);
            if (i == taken) {
                mine = e;
                xs[i] = -INFINITY;
            }
            sum.add(e);
        }
        mine = __shfl_sync(MOEC_FULL_WARP, mine, static_cast<int>(taken % 32));
        total = sum.total();
        if (lane == 0)
            w.s[k] = mine > 0.0f ? mine / total : 0.0f;
    }
    for (uint32_t k = n_ids + lane; k < a.c.top_k; k += 32)
        w.s[k] = 0.0f;
}

// w.s[0, K): score, or for softmax e^(x - m), of each chosen id; 0 for none.
// `m` is the row's maximum where the caller knows it, else NaN. LOGITS: w.s
// has the chosen logits, else they are read again. Returns m.
template <bool LOGITS, int V>
__device__ static inline float
moec_chosen_scores(const moec_route_args &a, const moec_columns<V> &c,
                   const void *row, uint32_t n_ids, float m,
                   const moec_row_scratch &w)
{
    bool of_chosen = a.c.norm == MOEC_NORM_SOFTMAX;
    bool exps = of_chosen || a.c.score == MOEC_SCORE_SOFTMAX;
    float best = -INFINITY;

    for (uint32_t k = moec_lane(); k < a.c.top_k; k += 32) {
        float x = -INFINITY;

        if (LOGITS && k < n_ids)
            x = w.s[k];
        else if (k < n_ids)
            x = moec_raw_at(a, row, static_cast<uint32_t>(w.ids[k]));
        if (!LOGITS && moec_columns<V>::capped)
            x = moec_capped(a, x);
        w.s[k] = x;
        best = x > best ? x : best;
    }
    if (of_chosen)
        m = moec_warp_max(best);
    else if (exps && !(m == m))
        m = moec_row_max(a, c);
    for (uint32_t k = moec_lane(); k < a.c.top_k; k += 32) {
        float x = w.s[k];

        if (!(x > -INFINITY))
            w.s[k] = 0.0f;
        else
            w.s[k] = exps ? moec_f32_exp(x - m) : moec_score_of(a.c.score, x);
    }
    return m;
}

// Divide, scale, and append the shared columns: w.ids and w.s are whole.
template <int V>
__device__ static inline void
moec_finish_weights(const moec_route_args &a, const moec_columns<V> &c,
                    const void *row_at, uint32_t row, float m,
                    const moec_row_scratch &w)
{
    float d;

    __syncwarp();
    d = moec_divisor(a, c, row_at, m, w);
    __syncwarp();
    for (uint32_t k = moec_lane(); k < a.c.top_k; k += 32) {
        int32_t id = w.ids[k];
        float v = d == 0.0f || id < 0 ? 0.0f : w.s[k] / d;

        if (a.c.rsf_on == MOEC_RSF_ON_WEIGHTS)
            v = v * a.c.rsf;
        if (a.in.expert_scale && id >= 0 &&
            static_cast<uint32_t>(id) < a.c.n_experts)
            v = v * a.in.expert_scale[id];
        w.s[k] = v;
    }
    moec_shared_columns(a, row, d, w);
    __syncwarp();
}

// Weights of K + S columns of a row whose n_ids > 0 ids are in w.ids, in rank
// order, -1 behind them (LOGITS: and their logits in w.s). Not for the sparse
// mixer.
template <bool LOGITS, int V>
__device__ static inline void
moec_row_weights(const moec_route_args &a, const moec_columns<V> &c,
                 const void *row_at, uint32_t row, uint32_t n_ids, float m,
                 const moec_row_scratch &w)
{
    m = moec_chosen_scores<LOGITS>(a, c, row_at, n_ids, m, w);
    moec_finish_weights(a, c, row_at, row, m, w);
}

// No expert: id -1 and weight 0 in all columns.
__device__ static inline void moec_no_row(const moec_route_args &a,
                                          const moec_row_scratch &w)
{
    for (uint32_t k = moec_lane(); k < a.n_cols; k += 32) {
        w.ids[k] = -1;
        w.s[k] = 0.0f;
    }
    __syncwarp();
}

__device__ static inline void moec_store_row(const moec_route_args &a,
                                             uint32_t row,
                                             const moec_row_scratch &w)
{
    uint64_t at = static_cast<uint64_t>(row) * a.n_cols;

    for (uint32_t k = moec_lane(); k < a.n_cols; k += 32) {
        a.ids[at + k] = w.ids[k];
        a.weights[at + k] = w.s[k];
    }
}

#endif
