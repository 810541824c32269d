/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_KERNELS_H
#define MOEC_KERNELS_H

/*
 * What this is: routing and expert kernels on the CPU: choice, Expert Choice,
 *   remap to slots, shared columns, waterfill, counts, alignment, permute,
 *   expert FFN, combine, router matmul. The scalar back end is the
 *   specification; every other back end, the CUDA one included, returns the
 *   same ids bit for bit and the same weights within 2 ulp of float32.
 * Lifetime: a moec_kernels is a back end and its threads; a moec_router is a
 *   configuration made ready for one back end and borrows it. All arrays and
 *   all workspace are the caller's; nothing on the way of a token allocates.
 * Threads: a router is immutable: share freely. A moec_kernels with more than
 *   one thread runs one call at a time; with one thread it is immutable.
 *   Results do not depend on the number of threads, nor, but for Expert
 *   Choice, on how T is split into calls.
 * Errors: ARG (a NULL or a size that does not fit, the text says which),
 *   UNSUPPORTED (a combination that no kernel does: never silently another
 *   one), NOMEM (create, open, describe and quantise only). Outputs are
 *   undefined after an error.
 *
 * Shapes: T tokens (from 0), E routed experts, Z zero experts, K routed
 * columns, S shared columns, C = K + S, H hidden, I width of an expert. All
 * arrays are row major without gaps unless a stride is given.
 * Order: candidates rank by (score descending, id ascending); -0 equals +0;
 * NaN and -inf are never chosen; +inf counts as the largest finite float.
 * Missing columns are id -1, weight 0, and stand last among the K.
 */

#include <moec/error.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------- back ends */

typedef enum moec_isa {
    MOEC_ISA_AUTO = 0,   /* the widest that this CPU does well */
    MOEC_ISA_SCALAR = 1, /* the specification */
    MOEC_ISA_AVX2 = 2,   /* AVX2, FMA, F16C, BMI2 */
    MOEC_ISA_AVX512 = 3  /* F, BW, DQ, VL, VBMI2; bf16 dot where present */
} moec_isa;

typedef struct moec_kernels moec_kernels;

typedef struct moec_kernels_opts {
    uint32_t struct_bytes; /* sizeof(moec_kernels_opts) */
    moec_isa isa;          /* forced, or AUTO */
    uint32_t n_threads;    /* 0: one per CPU allowed; 1: the caller's own */
} moec_kernels_opts;
#define MOEC_KERNELS_OPTS_INIT                                                 \
  {                                                                            \
    sizeof(moec_kernels_opts), MOEC_ISA_AUTO, 1                                \
  }

/* Open a back end and start its threads. `opts` may be NULL. UNSUPPORTED
 * where this CPU or this build lacks the forced one. */
MOEC_API moec_status moec_kernels_open(moec_kernels **out,
                                       const moec_kernels_opts *opts,
                                       moec_error *err);
/* Join the threads and free. NULL is fine. */
MOEC_API void moec_kernels_close(moec_kernels *k);
MOEC_API moec_isa moec_kernels_isa(const moec_kernels *k);
MOEC_API uint32_t moec_kernels_n_threads(const moec_kernels *k);
/* "scalar", "avx2", "avx512", "auto". Static storage. */
MOEC_API const char *moec_isa_name(moec_isa isa);
/* The isa spelled so, or -1. */
MOEC_API int moec_isa_parse(const char *name);
/* What of this CPU matters here: "avx2 avx512 avx512_bf16". Static storage. */
MOEC_API const char *moec_cpu_features(void);

/* ------------------------------------------------------------- choice */

/* From logit to score. `x` is the logit, after the softcap. */
typedef enum moec_score {
    MOEC_SCORE_SOFTMAX = 0, /* over all selectable columns */
    MOEC_SCORE_SIGMOID = 1,
    MOEC_SCORE_SQRT_SOFTPLUS = 2, /* sqrt(log(1 + exp(x))): DeepSeek-V4 */
    MOEC_SCORE_LOGIT = 3          /* x itself */
} moec_score;

typedef enum moec_choice {
    /* Top K by score + bias; without a bias by the LOGIT, because a rounded
     * score saturates. */
    MOEC_CHOICE_TOPK = 0,
    /* Ids from the table row of the token, in table order (DeepSeek-V4). */
    MOEC_CHOICE_HASH = 1,
    /* K rounds of masked top-1, each with its own softmax (Phi-3.5-MoE):
     * round r takes the best column m not yet taken; a column i counts in the
     * round's softmax unless it is taken or (m - x_i) / max(|x_i|, m) is above
     * 2 * mixer_eps. */
    MOEC_CHOICE_SPARSE_MIXER = 2
} moec_choice;

/* How a group of experts scores, where n_group > 1: groups by (score
 * descending, id ascending), the first topk_group are kept. */
typedef enum moec_group_score {
    MOEC_GROUP_MAX = 0, /* best choice score of the group: DeepSeek-V2 */
    MOEC_GROUP_TOP2 = 1 /* sum of the best two score + bias: DeepSeek-V3. A
                           group with fewer than two selectable: -inf */
} moec_group_score;

/* From the scores of the K chosen to their weights. Sums are float32 in rank
 * order. A zero sum gives zero weights. */
typedef enum moec_route_norm {
    MOEC_NORM_NONE = 0,
    MOEC_NORM_SUM = 1,     /* s / (sum + 1e-20) */
    MOEC_NORM_FLOOR = 2,   /* s / max(sum, norm_arg): ERNIE's moe_norm_min */
    MOEC_NORM_P = 3,       /* s / (sum |s|^norm_arg)^(1/norm_arg): DBRX; 1 and
                            2 only */
    MOEC_NORM_SOFTMAX = 4, /* softmax of the K chosen logits: gpt-oss */
    MOEC_NORM_JOINT = 5    /* s / (sum of the K chosen and of the sigmoids of
                              all n_shared_logits): Inkling. The shared
                              columns get the latter over the same sum */
} moec_route_norm;

/* Where the routed scaling factor is applied. */
typedef enum moec_rsf_on {
    MOEC_RSF_ON_OUTPUT = 0, /* to the routed sum, after the combine; shared
                               columns weigh 1/rsf */
    MOEC_RSF_ON_WEIGHTS = 1 /* in the routed weights; shared columns weigh 1 */
} moec_rsf_on;

typedef enum moec_ec_mode {
    MOEC_EC_OFF = 0,
    MOEC_EC_ON = 1,
    MOEC_EC_AUTO = 2 /* by tokens, then by the imbalance of plain top-K */
} moec_ec_mode;

/* What a token gets whose experts did not all admit it. */
typedef enum moec_ec_fill {
    MOEC_EC_FILL_MISSING = 0, /* its best non-admitting experts */
    MOEC_EC_FULL_ROW = 1,     /* plain top-K for the whole row */
    MOEC_EC_PAD = 2,          /* id -1: capacity is a hard bound */
    MOEC_EC_BALANCED = 3      /* the one stable assignment under capacity */
} moec_ec_fill;

/* Expert Choice. Every expert takes its best tokens, as many as its capacity,
 * then every token its best K of the experts that took it. Not causal inside a prefill chunk, not
 * batch-invariant: a token's experts depend on the other tokens.
 * An expert orders tokens by (score, token ascending): score + bias; without a
 * bias the softmax itself, and for the other scores, which keep the order of
 * the logits, the logit. A token orders its experts as plain choice does. */
typedef struct moec_ec_config {
    moec_ec_mode mode;
    moec_ec_fill fill;
    uint32_t capacity_ppm; /* factor in millionths; 0: auto, by E and T */
    uint32_t min_tokens;   /* AUTO: off below; 0 means 32 */
    uint32_t max_tokens;   /* AUTO: on above; 0 means 128 */
    float threshold;       /* AUTO: on above this deviation/mean; 0: 0.20 */
    float threshold_off;   /* AUTO: off below; 0: 0.15 */
    float ema;             /* AUTO: weight of the newest; 0: 0.1 */
} moec_ec_config;

/* AUTO's memory of one layer; the caller's, zero at first. */
typedef struct moec_ec_state {
    float imbalance; /* smoothed deviation / mean under plain top-K */
    uint32_t on;
    uint32_t seen; /* calls that measured */
} moec_ec_state;

typedef struct moec_route_config {
    uint32_t struct_bytes;    /* sizeof(moec_route_config) */
    uint32_t n_experts;       /* E; E + Z from 1 to 4096 */
    uint32_t n_zero;          /* Z: ids E .. E+Z-1 give the token itself back */
    uint32_t n_shared_logits; /* columns of the logits behind E + Z: JOINT */
    uint32_t top_k;           /* K: 1 .. 64, at most E + Z */
    uint32_t n_shared;        /* S: shared columns behind the K; <= 16 */
    uint32_t n_group;         /* 0 or 1: none. Divides E, Z is 0 then */
    uint32_t topk_group;      /* kept groups; K fits into them */
    moec_score score;
    moec_choice choice;
    moec_group_score group_score;
    moec_route_norm norm;
    float norm_arg;  /* FLOOR, P */
    float softcap;   /* 0: none; x = softcap * tanh(logit / softcap) */
    float mixer_eps; /* SPARSE_MIXER: router_jitter_noise, 0.01 */
    float rsf;       /* 0 means 1 */
    moec_rsf_on rsf_on;
    moec_shared_kind shared_kind; /* PLAIN, SIGMOID (in.shared_gate), ROUTER */
    uint32_t shared_ranks; /* ranks that all compute the shared slots of every
                              token and sum: weight times 1/this; 0 means 1 */
    moec_ec_config ec;
} moec_route_config;
#define MOEC_ROUTE_CONFIG_INIT                                                 \
  {                                                                            \
    .struct_bytes = sizeof(moec_route_config), .mixer_eps = 0.01f, .rsf = 1.0f \
  }

/* Weight of every shared column of one token. THE one place that knows it:
 * 1/rsf where rsf multiplies the routed sum, else 1; over shared_ranks; times
 * the sigmoid of `gate_logit` where shared_kind is SIGMOID (else not read). */
MOEC_API float moec_shared_weight(const moec_route_config *cfg,
                                  float gate_logit);

typedef struct moec_router moec_router;

/* Check a configuration and make it ready for back end `k`, which the router
 * borrows. ARG with the field that does not fit. */
MOEC_API moec_status moec_router_create(moec_router **out,
                                        const moec_kernels *k,
                                        const moec_route_config *config,
                                        moec_error *err);
MOEC_API void moec_router_destroy(moec_router *router);
MOEC_API const moec_route_config *moec_router_config(const moec_router *r);
/* What is in force as one JSON object, malloc'ed, for logs and /metrics. */
MOEC_API moec_status moec_route_describe(const moec_router *router, char **out,
                                         moec_error *err);

typedef struct moec_route_in {
    uint32_t struct_bytes;     /* sizeof(moec_route_in) */
    uint32_t n_tokens;         /* T, rows */
    uint32_t n_valid;          /* rows that are real; the others get -1 */
    moec_dtype logits_dtype;   /* F32, BF16, F16 */
    const void *logits;        /* [T][E + Z + n_shared_logits] */
    uint64_t logits_stride;    /* elements between rows; 0: no gap */
    const float *bias;         /* [E + Z], added to the score for the choice
                                 only; NULL: none */
    const float *expert_scale; /* [E], times the final weight: Gemma 4; NULL */
    const float *shared_gate;  /* [T] logits of the shared gate: SIGMOID */
    const int32_t *hash_table; /* [vocab][K]: HASH */
    const int32_t *tokens;     /* [T] token ids: HASH */
    uint32_t vocab;
    moec_ec_state *ec_state;   /* AUTO; else may be NULL */
    const int32_t *forced_ids; /* [T][K] recorded ids, -1 for none, instead
                                     of the choice; weights from the logits */
} moec_route_in;
#define MOEC_ROUTE_IN_INIT                                                     \
  {                                                                            \
    .struct_bytes = sizeof(moec_route_in), .logits_dtype = MOEC_DTYPE_F32      \
  }

/* What Expert Choice did in one call. */
typedef struct moec_ec_stats {
    uint32_t on;              /* 0: plain top-K was used */
    uint32_t capacity;        /* tokens that an expert could take */
    uint64_t short_tokens;    /* admitted by fewer than K experts */
    uint64_t fallback_tokens; /* re-routed or filled up */
    uint64_t dropped;         /* columns left -1 of real tokens */
} moec_ec_stats;

typedef struct moec_route_out {
    uint32_t struct_bytes; /* sizeof(moec_route_out) */
    int32_t *ids;          /* [T][C] logical: routed [0,E), zero [E,E+Z),
                              shared column s is E+Z+s */
    float *weights;        /* [T][C] */
    moec_ec_stats *ec;     /* NULL: not wanted */
} moec_route_out;

/* Bytes of workspace that moec_route and moec_route_dispatch need for T
 * tokens; 0 for plain choices. Aligned to 64 by the caller. */
MOEC_API uint64_t moec_route_workspace_bytes(const moec_router *router,
                                             uint32_t n_tokens);

/* Choose experts and weights. */
MOEC_API moec_status moec_route(const moec_router *router,
                                const moec_route_in *in,
                                const moec_route_out *out, void *workspace,
                                uint64_t workspace_bytes, moec_error *err);

/* Capacity of Expert Choice for `n_valid` real tokens, in tokens. */
MOEC_API uint32_t moec_ec_capacity(const moec_route_config *config,
                                   uint32_t n_valid);

/* ----------------------------------------------------------- dispatch
 * From logical ids to dispatch slots of one source rank. */

typedef enum moec_replica_rule {
    MOEC_REPLICA_TABLE = 0,         /* table[e]: static, per source rank */
    MOEC_REPLICA_ROW = 1,           /* candidate row % n: SGLang, vLLM */
    MOEC_REPLICA_ROW_LAYER = 2,     /* (row + layer) % n: all ranks see the same
                                   tokens and must pick the same replica */
    MOEC_REPLICA_ROW_RANK_LAYER = 3 /* (row + rank + layer) % n: each rank
                                       dispatches its own tokens */
} moec_replica_rule;

/* The map of one layer as one source rank sees it. */
typedef struct moec_dispatch_map {
    uint32_t struct_bytes; /* sizeof(moec_dispatch_map) */
    moec_topology topology;
    uint32_t n_experts; /* E; ids at and above it are zero experts or shared */
    moec_replica_rule rule;
    uint32_t rank;         /* source rank, home of its tokens' shared columns */
    uint32_t layer;        /* the number in the rules above */
    uint32_t row0;         /* number of the call's first row, for the rules */
    const uint32_t *table; /* [E] physical ids: TABLE */
    const uint32_t *cand_first; /* [E+1]: candidates of e are
                                   cand[cand_first[e] .. cand_first[e+1]) */
    const uint32_t *cand;       /* physical ids */
} moec_dispatch_map;

typedef enum moec_waterfill_mode {
    MOEC_WATERFILL_OFF = 0,
    MOEC_WATERFILL_STATIC = 1, /* loads are this batch's routed counts */
    MOEC_WATERFILL_DYNAMIC = 2 /* all-reduced counts and tokens are given */
} moec_waterfill_mode;

/* Where the shared experts of a token are computed. Batches of under 64
 * tokens stay at home. W up to 1024, any S. */
typedef struct moec_waterfill {
    moec_waterfill_mode mode;
    uint32_t by_rank;       /* scan home, then ranks ascending; 0: home, then
                               ranks in the order of the row's columns */
    const uint64_t *routed; /* DYNAMIC [W]: valid routed ids per rank, summed
                               over all ranks */
    const uint64_t *tokens; /* DYNAMIC [W]: tokens per rank */
} moec_waterfill;

typedef struct moec_dispatch_out {
    uint32_t struct_bytes; /* sizeof(moec_dispatch_out) */
    int32_t *slots;        /* [T][C] dispatch slots, -1 for none */
    float *weights;        /* [T][C], 0 where the slot is -1 */
    float *identity;       /* [T] sum of the weights of zero experts, in
                              column order; NULL where Z is 0 */
    uint32_t *slot_counts; /* [P + S*W], or [P + S] where global; NULL: not
                              wanted. Written, not added to */
    uint32_t *rank_counts; /* [W] columns per rank (shared ones too); NULL */
} moec_dispatch_out;

/* Bytes of workspace for moec_dispatch: 0 without counts and waterfill. */
MOEC_API uint64_t moec_dispatch_workspace_bytes(const moec_kernels *k,
                                                const moec_dispatch_map *map,
                                                uint32_t n_tokens);

/* Remap K routed columns and append S shared ones. `ids` and `weights` are
 * [T][K + S] as moec_route gives them or of a custom router, and may be
 * out->slots and out->weights; the weights of shared columns are taken as they
 * are, their ids are not read. Rows at or past n_valid, rows without a valid
 * id and ids < 0 give -1; zero experts are valid ids, so a row of nothing else
 * has its shared columns. An id that no map has is ARG. Waterfill counts all T
 * rows, numbers them from map->row0, and is UNSUPPORTED with global shared
 * slots, which name no rank. */
MOEC_API moec_status moec_dispatch(const moec_kernels *k,
                                   const moec_dispatch_map *map,
                                   const moec_waterfill *waterfill,
                                   const int32_t *ids, const float *weights,
                                   uint32_t n_tokens, uint32_t n_valid,
                                   uint32_t top_k, const moec_dispatch_out *out,
                                   void *workspace, uint64_t workspace_bytes,
                                   moec_error *err);

/* moec_route and moec_dispatch in one pass over the logits. `out` may be NULL
 * where logical ids are not wanted. */
MOEC_API moec_status moec_route_dispatch(
    const moec_router *router, const moec_route_in *in,
    const moec_dispatch_map *map, const moec_waterfill *waterfill,
    const moec_route_out *out, const moec_dispatch_out *dispatch,
    void *workspace, uint64_t workspace_bytes, moec_error *err);
MOEC_API uint64_t moec_route_dispatch_workspace_bytes(
    const moec_router *router, const moec_dispatch_map *map, uint32_t n_tokens);

/* Rank that computes the shared columns of each token, -1 for rows without a
 * valid id. `ids` [T][K] are physical routed ids. In STATIC mode the loads
 * are counted from `ids`. `load_out` [W] and `target_out` may be NULL;
 * target is 0 where the batch stays at home. */
MOEC_API moec_status moec_waterfill_ranks(
    const moec_topology *topology, const moec_waterfill *waterfill,
    uint32_t rank, const int32_t *ids, uint32_t n_tokens, uint32_t top_k,
    int32_t *best, uint64_t *load_out, uint64_t *target_out, moec_error *err);

/* ------------------------------------------------- align and permute */

/* Entries of `sorted` that moec_align may write for n columns over n_slots
 * slots: every slot is padded to a multiple of `block`. */
static inline uint64_t moec_align_capacity(uint64_t n, uint64_t n_slots,
                                           uint64_t block)
{
    uint64_t used = n < n_slots ? n : n_slots;

    return (n + used * (block - 1) + block - 1) / block * block;
}
/* Bytes of workspace that moec_align needs. */
MOEC_API uint64_t moec_align_workspace_bytes(const moec_kernels *k, uint64_t n,
                                             uint32_t n_slots);

/* Sort columns by slot, stably, for grouped matrix products. slots[n] is
 * flattened [T][C]; those outside [first_slot, first_slot + n_slots) are left
 * out. sorted: positions in slots[], each slot's run ascending and padded
 * with n to a multiple of `block`; expert_ids[b]: slot - first_slot of block
 * b; *n_padded_out: entries of `sorted` that count. slot_first[n_slots + 1]
 * (may be NULL): where each slot's run begins. */
MOEC_API moec_status moec_align(const moec_kernels *k, const int32_t *slots,
                                uint64_t n, uint32_t first_slot,
                                uint32_t n_slots, uint32_t block,
                                uint32_t *sorted, uint32_t *expert_ids,
                                uint64_t *slot_first, uint64_t *n_padded_out,
                                void *workspace, uint64_t workspace_bytes,
                                moec_error *err);

/* out[i] = x[sorted[i] / n_cols], row_bytes each; rows of padding are zero. */
MOEC_API moec_status moec_permute(const moec_kernels *k, const void *x,
                                  uint64_t row_bytes, const uint32_t *sorted,
                                  uint64_t n_sorted, uint64_t n_columns,
                                  uint32_t n_cols, void *out, moec_error *err);

/* out[t] = scale * (identity[t] * x[t] + sum over the first scaled_cols
 * columns of weights[t][c] * y[t*C + c]); to that the others are added one by
 * one. In column order, in float32, every product rounded before it is added,
 * on every back end. Columns whose slot is < 0 are left out and their rows of y
 * not read. scaled_cols is C where shared columns weigh 1/rsf
 * (moec_shared_weight) and scale is rsf; K where they weigh 1 and stand
 * outside. y is [T*C][H] by column, C at most 128. identity and x may be
 * NULL. */
typedef struct moec_combine_in {
    uint32_t struct_bytes; /* sizeof(moec_combine_in) */
    uint32_t n_tokens, n_cols, scaled_cols;
    uint32_t hidden;
    const int32_t *slots;  /* [T][C] */
    const float *weights;  /* [T][C] */
    const float *identity; /* [T] or NULL */
    const float *x;        /* [T][H], with identity */
    const float *y;        /* [T*C][H] */
    float scale;           /* of the first scaled_cols and the identity; 0
                              means 1 */
} moec_combine_in;
MOEC_API moec_status moec_combine(const moec_kernels *k,
                                  const moec_combine_in *in, float *out,
                                  moec_error *err);

/* ---------------------------------------------------------- matrices */

/* How the numbers of a stored matrix [out][in] are coded. */
typedef enum moec_wformat {
    MOEC_WFORMAT_F32 = 0,
    MOEC_WFORMAT_BF16 = 1,
    MOEC_WFORMAT_F16 = 2,
    MOEC_WFORMAT_FP8 = 3,   /* F8_E4M3 times a scale per block_out x block_in:
                               block, row, tensor scales; mxfp8 is 1 x 32 */
    MOEC_WFORMAT_INT4 = 4,  /* I32 [out][in/8], lowest nibble first, value
                               nibble - 8 or - zero point, times scale
                               [out][in/block_in]: compressed-tensors */
    MOEC_WFORMAT_MXFP4 = 5, /* U8 [out][in/2] E2M1, low nibble first, times
                               2^(scale - 127), [out][in/32] */
    MOEC_WFORMAT_NVFP4 = 6, /* the same times F8_E4M3 [out][in/16] times one
                               F32 (scale2) */
    MOEC_WFORMAT_AWQ = 7,   /* I32 [in][out/8] in AWQ's order, with zeros
                               [in/g][out/8] and scales [in/g][out] */
    MOEC_WFORMAT_GPTQ = 8   /* I32 [in/8][out], zeros [in/g][out/8] (+1),
                               scales [in/g][out] */
} moec_wformat;

/* n equal matrices, one behind the other: a slot tensor and what belongs to
 * it. Strides are bytes from one matrix to the next. */
typedef struct moec_matrix {
    uint32_t struct_bytes; /* sizeof(moec_matrix) */
    moec_wformat format;
    uint32_t n_out, n_in;
    const void *data;
    uint64_t data_stride;
    uint64_t row_bytes; /* of one output row of data; 0: no gap */
    const void *scale;
    uint64_t scale_stride;
    moec_dtype scale_dtype;       /* F32, BF16, F16, F8_E8M0, F8_E4M3, U8 as
                                     E8M0 */
    uint32_t block_out, block_in; /* elements that one scale covers; edges
                                     may be cut. 0: one row, and the columns
                                     usual for the format (FP8 has none) */
    const float *scale2;          /* NVFP4: [halves] per matrix, or NULL */
    uint64_t scale2_stride;
    uint32_t scale2_rows; /* rows that one scale2 covers; 0: all */
    const void *zeros;    /* INT4 [out/8][in/g] I32 packed along out, AWQ,
                             GPTQ; NULL: symmetric */
    uint64_t zeros_stride;
    const void *bias; /* [out], or NULL */
    uint64_t bias_stride;
    moec_dtype bias_dtype; /* F32, BF16, F16 */
    uint32_t part_rows;    /* output rows after which blocks of scales and
                              INT4's packed zeros begin anew: I in a w13 of
                              two halves; 0: all rows are one part */
} moec_matrix;

/* Write rows [row, row + n_rows) of matrix `index` as float32 [n_rows][in].
 * Value times scale is rounded once; NVFP4's two scales are multiplied, and
 * rounded, before. Exact on every back end. */
MOEC_API moec_status moec_dequantize(const moec_kernels *k,
                                     const moec_matrix *m, uint32_t index,
                                     uint32_t row, uint32_t n_rows, float *out,
                                     moec_error *err);

/* out[t][o] = dot(x[t], w[o]) + bias[o] in float32, for matrix `index`.
 * A dot product is 16 partial sums, one for each n_in index modulo 16, every
 * product rounded before it is added, then added pairwise: 0+8, 1+9, ..; +4;
 * +2; +1. The same on every back end, bit for bit. x is [T][x_stride]. */
MOEC_API moec_status moec_matmul(const moec_kernels *k, const moec_matrix *m,
                                 uint32_t index, const float *x,
                                 uint64_t x_stride, uint32_t n_tokens,
                                 float *out, uint64_t out_stride,
                                 moec_error *err);

/* What a quantisation loses. */
typedef struct moec_quant_error {
    double max_abs; /* largest |value - dequantised| */
    double rms;     /* root of the mean square of the same */
    double rms_in;  /* of the values: rms / rms_in is the relative error */
    uint64_t n;     /* values */
} moec_quant_error;

/* Quantise float32 w[n_out][n_in] into `data` and `scale`, of the shape that
 * moec_matrix gives them. `like` says format, n_out, n_in, blocks, part_rows
 * and scale_dtype; its pointers are not read. What is done:
 *   FP8    E4M3, scale = amax of the block / 448 (F32, BF16, F16), or the
 *          least power of two that is not below it (F8_E8M0, U8)
 *   INT4   symmetric, scale = amax of the group / 7.5, rounded to scale_dtype
 *   MXFP4  scale 2^(floor(log2(amax)) - 2), E2M1 nearest even, saturating
 * A block of zeros has scale 1; no scale is rounded to 0 or to infinity. ARG
 * where a value is not finite, UNSUPPORTED for other formats. Exact on every
 * back end. `error_out` may be NULL. */
MOEC_API moec_status moec_quantize_rows(const moec_kernels *k,
                                        const moec_matrix *like, const float *w,
                                        void *data, void *scale,
                                        moec_quant_error *error_out,
                                        moec_error *err);

/* Cast n elements between F32, BF16, F16 (round to nearest even), F8_E4M3 and
 * F8_E5M2 (nearest even, saturating). */
MOEC_API moec_status moec_cast(const moec_kernels *k, const void *in,
                               moec_dtype in_dtype, void *out,
                               moec_dtype out_dtype, uint64_t n,
                               moec_error *err);

/* --------------------------------------------------------- expert FFN */

typedef enum moec_act {
    MOEC_ACT_SILU = 0,       /* silu(gate) * up */
    MOEC_ACT_SWIGLU_OAI = 1, /* gate = min(gate, limit), up clamped to limit:
                                gate * sigmoid(alpha * gate) * (up + 1) */
    MOEC_ACT_RELU2 = 2,      /* relu(up)^2, no gate */
    MOEC_ACT_GELU_TANH = 3,  /* gelu_tanh(gate) * up */
    MOEC_ACT_GELU = 4,       /* gelu(gate) * up, with erf */
    MOEC_ACT_SILU_CLAMP_BEFORE = 5, /* gate <= limit, |up| <= limit, then
                                       silu(gate) * up: DeepSeek-V4 */
    MOEC_ACT_SILU_CLAMP_AFTER = 6,  /* min(silu(gate), limit) * clamp(up):
                                       Step */
    MOEC_ACT_SITU = 7 /* Kimi-K3: beta*tanh(gate/beta)*sigmoid(gate) times
                         linear_beta*tanh(up/linear_beta) */
} moec_act;

typedef enum moec_precision {
    MOEC_PRECISION_EXACT = 0, /* float32 throughout, the dot product of
                                 moec_matmul: bit for bit on every back end */
    MOEC_PRECISION_FAST = 1   /* inputs and activations rounded to bf16,
                                 weights not, float32 sums in the back end's
                                 order: what serves. The same for a token in
                                 any batch on any number of threads */
} moec_precision;

typedef struct moec_ffn_config {
    uint32_t struct_bytes; /* sizeof(moec_ffn_config) */
    uint32_t hidden, inter;
    moec_act act;
    uint32_t gated;           /* w13 is [2I][H]; 0: [I][H] */
    uint32_t up_first;        /* w13 is up, then gate */
    uint32_t weight_on_input; /* x is multiplied by the column's weight, and
                                 the combine must use 1: Llama 4 */
    float limit;              /* of the clamps; 0: none */
    float alpha;              /* SWIGLU_OAI; 0 means 1.702 */
    float beta, linear_beta;  /* SITU */
    moec_precision precision;
} moec_ffn_config;
#define MOEC_FFN_CONFIG_INIT                                                   \
  {                                                                            \
    .struct_bytes = sizeof(moec_ffn_config), .gated = 1                        \
  }

typedef struct moec_ffn_in {
    uint32_t struct_bytes;  /* sizeof(moec_ffn_in) */
    const moec_matrix *w13; /* n_rows matrices [2I or I][H] */
    const moec_matrix *w2;  /* n_rows matrices [H][I] */
    uint32_t n_rows;        /* local rows of this rank */
    moec_dtype x_dtype;     /* F32 or BF16 */
    const void *x;          /* [T][H] */
    uint32_t n_tokens, n_cols;
    const float *weights;       /* [T][C]; with weight_on_input */
    const uint32_t *sorted;     /* of moec_align with block 1 */
    const uint64_t *slot_first; /* [n_rows + 1] of moec_align */
} moec_ffn_in;

/* Bytes of workspace for n columns (slot_first[n_rows]) of this rank. */
MOEC_API uint64_t moec_ffn_workspace_bytes(const moec_kernels *k,
                                           const moec_ffn_config *config,
                                           uint64_t n_columns);

/* y[p] = FFN of local row r over the token of column p, for every column p of
 * the runs; other rows of y [T*C][H] are left as they are. */
MOEC_API moec_status moec_ffn(const moec_kernels *k,
                              const moec_ffn_config *config,
                              const moec_ffn_in *in, float *y, void *workspace,
                              uint64_t workspace_bytes, moec_error *err);

/* --------------------------------------------------------- statistics */

typedef struct moec_load_stats {
    uint64_t max, min, sum;
    double mean, deviation; /* of the population */
    double max_over_mean;   /* 0 where the mean is 0 */
} moec_load_stats;

/* Figures of n counts. */
MOEC_API moec_load_stats moec_load_stats_of(const uint32_t *counts, uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
