/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_MAPPING_H
#define MOEC_MAPPING_H

/*
 * What this is: from logical experts to physical slots. Families (names and
 *   orientation as data), the model's facts, placements, the plan (slot
 *   tensors and moves) and the layout of the converted files. Pure: nothing
 *   here opens a data file.
 * Lifetime: _create/_open give an object that the caller destroys; pointers
 *   returned from it are borrowed and die with it. A model retains nothing of
 *   the registry it was made with, but borrows the ckpt; a plan borrows its
 *   model and copies its placement; a layout borrows its plan.
 * Threads: all objects are immutable once made: share freely. A registry is
 *   used by one thread at a time while families are added.
 * Errors: FORMAT (config, family or placement file; rule C.. or P01..P04),
 *   MAPPING (P05.., T1..T5), MIXED (C12), UNSUPPORTED, NOMEM.
 */

#include <moec/error.h>
#include <moec/kernels.h>
#include <moec/loader.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ----------------------------------------------------------- families */

typedef struct moec_families moec_families;

/* Make a registry of the built-in families. */
MOEC_API moec_status moec_families_create(moec_families **out, moec_error *err);
MOEC_API void moec_families_destroy(moec_families *families);

/* Add the family description in `text` (`n` bytes of JSON, schema
 * moec.family/1: mapping/families/schema.json). It goes before the built-in
 * ones, so that it wins where both list a model_type. `name` is for messages. */
MOEC_API moec_status moec_families_add(moec_families *families,
                                       const char *name, const char *text,
                                       size_t n, moec_error *err);

MOEC_API size_t moec_families_count(const moec_families *families);
/* What the family was tried on: "fixture" (checkpoints that another
 * implementation made, with its answers), "generated" (checkpoints written
 * from the table of names), "none". */
MOEC_API const char *moec_families_tested(const moec_families *families,
                                          size_t i);
/* Name of family `i` ("deepseek_v3"). */
MOEC_API const char *moec_families_name(const moec_families *families,
                                        size_t i);

/* -------------------------------------------------------------- model */

typedef struct moec_model moec_model;

/* Facts of a model, from config.json and confirmed by the shard headers. */
typedef struct moec_facts {
    const char *family;     /* id of families.json */
    const char *model_type; /* as config.json spells it */
    const char *activation; /* "silu", ... */
    const char *score;      /* router's score function: "softmax", ... */
    uint32_t n_experts;     /* E, routed */
    uint32_t top_k;         /* K */
    uint32_t n_shared;      /* shared experts as the config counts them */
    uint32_t shared_slots;  /* slots the fused shared expert takes; 0 where it
                               cannot fuse, `no_fuse_why` says why */
    uint64_t hidden;        /* H */
    uint64_t inter;         /* I, width of a routed expert */
    uint64_t shared_width;  /* width of the one shared MLP, 0 without */
    uint32_t n_layers;      /* decoder layers, MTP not counted */
    uint32_t n_group, topk_group; /* 0 where the family has none */
    double routed_scale; /* rsf; 1 where the config has 0, null or none */
    int norm_topk;       /* 0, 1; -1 where neither family nor config say */
    moec_shared_kind shared_kind;
    moec_dtype expert_dtype; /* of the routed weights (first MoE layer) */
    uint8_t gated;           /* experts have a gate projection */
    const char *no_fuse_why; /* NULL where shared experts fuse or are absent */
    uint32_t split_slots;    /* slots that the shared expert would take whatever
                             its format, by its sizes alone; 0: none */
} moec_facts;

/* What a source tensor is. */
typedef enum moec_role {
    MOEC_ROLE_COMMON = 0, /* outside the family's expert name spaces */
    MOEC_ROLE_ROUTED = 1,
    MOEC_ROLE_SHARED = 2,
    MOEC_ROLE_ROUTER = 3, /* router weight and what belongs to it */
    MOEC_ROLE_SHARED_GATE = 4
} moec_role;

/* One MoE layer of the model. */
typedef struct moec_moe_layer {
    moec_layer_key key;
    uint32_t source_number;     /* the number in the tensors' names */
    const char *experts_prefix; /* "model.layers.3.mlp.experts" */
} moec_moe_layer;

#define MOEC_NO_LAYER  UINT32_MAX
#define MOEC_NO_EXPERT UINT32_MAX

/* Where a source tensor belongs. */
typedef struct moec_tensor_use {
    moec_role role;
    uint32_t layer;  /* index of moec_model_layer, or MOEC_NO_LAYER; all that
                        stands below a MoE layer's prefix has it, common
                        tensors too */
    uint32_t expert; /* logical expert, MOEC_NO_EXPERT where stacked or none */
    uint8_t is_mtp;  /* 1: belongs to an MTP layer or module, whatever its
                        role: everything below a layer prefix of the mtp
                        space, and below "mtp." */
} moec_tensor_use;

/* Read facts from `config` (text of config.json, `n` bytes) and classify every
 * tensor of `ckpt`. Refuses what does not agree: see rules C01..C12 and T1. */
MOEC_API moec_status moec_model_create(moec_model **out, const moec_ckpt *ckpt,
                                       const moec_families *families,
                                       const char *config, size_t n,
                                       moec_error *err);
/* The same with config.json read from the checkpoint's directory. */
MOEC_API moec_status moec_model_open(moec_model **out, const moec_ckpt *ckpt,
                                     const moec_families *families,
                                     moec_error *err);
MOEC_API void moec_model_destroy(moec_model *model);

MOEC_API const moec_facts *moec_model_facts(const moec_model *model);
MOEC_API const moec_ckpt *moec_model_ckpt(const moec_model *model);
/* MoE layers: main ones ascending, then MTP ones ascending. */
MOEC_API size_t moec_model_n_layers(const moec_model *model);
MOEC_API const moec_moe_layer *moec_model_layer(const moec_model *model,
                                                size_t i);
/* Index of the layer with this key, or MOEC_NO_LAYER. */
MOEC_API uint32_t moec_model_find_layer(const moec_model *model,
                                        moec_layer_key key);
MOEC_API moec_tensor_use moec_model_use(const moec_model *model, size_t tensor);

/* Describe the model as JSON ("moec.model/1"): each fact with its value and
 * where it came from: the key of config.json, the family's default, the
 * tensors. Ends with a newline; to be freed with free(3). */
MOEC_API moec_status moec_model_describe(const moec_model *model, char **out,
                                         moec_error *err);

/* ------------------------------------------------------ running a layer */

#define MOEC_NO_TENSOR UINT32_MAX

/* Steps of a layer beside router, experts and combine. */
typedef enum moec_moe_step {
    /* The router sees x / sqrt(mean(x^2) + norm_eps) * input_scale / sqrt(H);
     * the experts see x. Gemma 4. */
    MOEC_STEP_ROUTER_NORM = 1,
    /* The experts see latent_in . x. Their weighted sum, over its root mean
     * square (norm_eps) and times latent_norm where there is one, goes
     * through latent_out. Router and shared expert see x. Kimi-K3, Nemotron. */
    MOEC_STEP_LATENT = 2
} moec_moe_step;

/* What router and experts of one layer compute, and from which tensors of the
 * checkpoint (indices, or MOEC_NO_TENSOR). A fact of the model alone: the plan
 * decides up_first, the caller precision and Expert Choice. */
typedef struct moec_moe_facts {
    uint32_t struct_bytes;   /* set by the library */
    uint32_t steps;          /* moec_moe_step that the caller must do, or'ed; a
                              caller that does not must heed why_not */
    moec_route_config route; /* n_shared: shared_slots, or where the router
                                weighs them the shared experts */
    moec_ffn_config ffn;
    moec_ffn_config shared_ffn; /* the unfused shared MLP; inter 0: none */
    uint32_t router_weight;     /* [E + Z + n_shared_logits][H] */
    uint32_t logit_bias;        /* added to the logits */
    uint32_t choice_bias;       /* [E + Z] or [1][E + Z]: route_in.bias */
    uint32_t expert_scale;      /* [E] */
    uint32_t shared_gate;       /* [1][H]: its product with x is the logit */
    uint32_t hash_table;        /* [vocab][K], I32 or I64 */
    uint32_t global_scale;      /* [1], times every weight, shared ones too */
    uint32_t input_scale;       /* [H] */
    uint32_t latent_in, latent_out, latent_norm;
    float norm_eps;
    const char *why_not; /* NULL, or a sentence: why the layer cannot be run.
                            Where steps are not 0 they are the only reason */
} moec_moe_facts;

/* Tell how MoE layer `layer` is run. Strings are the model's. ARG where there
 * is no such layer. */
MOEC_API moec_status moec_model_moe(const moec_model *model, size_t layer,
                                    moec_moe_facts *out, moec_error *err);

/* ---------------------------------------------------------- placement */

typedef struct moec_placement moec_placement;

#define MOEC_EMPTY_SLOT (-1)

/* Make the trivial placement: physical i holds logical i % E, redundant slots
 * at the end. `n_layers` rows (one per MoE layer), E + R slots each. */
MOEC_API moec_status moec_placement_trivial(moec_placement **out,
                                            uint32_t n_layers,
                                            uint32_t n_experts,
                                            uint32_t n_redundant,
                                            moec_error *err);

/* Read a placement from the text of a file, of any form below, for a model.
 * `name` is for messages. */
MOEC_API moec_status moec_placement_parse(moec_placement **out,
                                          const moec_model *model,
                                          const char *name, const char *text,
                                          size_t n, moec_error *err);

/* Make a placement from arrays: p2l[layer * n_physical + p], a logical id or
 * MOEC_EMPTY_SLOT. Checked like a file. */
MOEC_API moec_status moec_placement_from_rows(
    moec_placement **out, uint32_t n_layers, uint32_t n_experts,
    uint32_t n_physical, const int32_t *p2l, moec_error *err);
MOEC_API void moec_placement_destroy(moec_placement *placement);

MOEC_API uint32_t moec_placement_n_layers(const moec_placement *p);
MOEC_API uint32_t moec_placement_n_experts(const moec_placement *p);
MOEC_API uint32_t moec_placement_n_physical(const moec_placement *p);
MOEC_API int moec_placement_is_trivial(const moec_placement *p);
/* physical_to_logical of MoE layer `layer`: P entries. */
MOEC_API const int32_t *moec_placement_row(const moec_placement *p,
                                           uint32_t layer);
/* SHA-256 over the decimal text "E P\n" and one line per layer of the ids
 * separated by spaces: what files' __metadata__ and the manifest carry. */
MOEC_API moec_status moec_placement_digest(const moec_placement *p,
                                           uint8_t out[32], moec_error *err);

/* ---------------------------------------------------- placement files
 * Files of several engines, recognised by what is in them and never by their
 * names. Sources: SGLang's --init-expert-location, TensorRT-LLM's
 * moe_load_balancer YAML, vllm-ascend's expert_map_path, DeepSeek's EPLB, vLLM.
 * Ids are integers in [0, E); each expert has a slot in each MoE layer. */

typedef enum moec_placement_form {
    /* {"physical_to_logical_map": [layers][P]}: a row for each decoder layer
     * (dense layers' rows are ignored), MTP layers behind them. JSON, or a
     * .pt file of the same dict. */
    MOEC_PLACEMENT_SGLANG = 1,
    /* YAML: num_slots, initial_global_assignments {layer: [P]}; layers are
     * decoder layers, MTP ones counted on. */
    MOEC_PLACEMENT_TRTLLM = 2,
    /* JSON: a list of experts for each device of each MoE layer. Says W. */
    MOEC_PLACEMENT_VLLM_ASCEND = 3,
    /* {"phy2log", "log2phy", "logcnt"}: EPLB's three arrays, or some of them.
     * JSON, .npz or .pt. */
    MOEC_PLACEMENT_EPLB = 4,
    /* [moe_layers][P], MTP layers behind the main ones: EPLB's phy2log, vLLM.
     * JSON, .npy or .pt. */
    MOEC_PLACEMENT_PHY2LOG = 5,
    /* [moe_layers][E][X]: slots of each expert in replica order, then -1. */
    MOEC_PLACEMENT_LOG2PHY = 6,
    /* [moe_layers][E]: replicas of each expert. Written, never read: it names
     * no slots. */
    MOEC_PLACEMENT_LOGCNT = 7
} moec_placement_form;

/* Name of the form: "sglang", "trtllm", "vllm-ascend", "eplb", "phy2log",
 * "log2phy", "logcnt"; "?" for none. */
MOEC_API const char *moec_placement_form_name(moec_placement_form form);

/* What a file is read against. All zero: a file by itself, whose rows are
 * taken as they are. */
typedef struct moec_placement_target {
    uint32_t struct_bytes;      /* sizeof(moec_placement_target) */
    uint32_t n_experts;         /* E; 0: the highest id of the file + 1 */
    uint32_t n_layers;          /* decoder layers, dense ones included */
    uint32_t n_physical;        /* P, where R is known; 0: of the file */
    const moec_layer_key *keys; /* MoE layers: main ascending, then MTP */
    size_t n_keys;              /* 0: unknown, every row is a MoE layer's */
    uint32_t n_ranks;           /* W; 0: unknown. A file that says another W is
                                   refused */
    uint32_t allow_empty;       /* 1: id -1 is an empty slot */
} moec_placement_target;
#define MOEC_PLACEMENT_TARGET_INIT                                             \
  {                                                                            \
    .struct_bytes = sizeof(moec_placement_target)                              \
  }

typedef struct moec_placement_file moec_placement_file;

/* Read `n` bytes of `text`. Copies what it needs. FORMAT (P01..P04, P06),
 * MAPPING (P03, P05), UNSUPPORTED (P01): a form that names no slots, or whose
 * reading would run code; NOMEM. */
MOEC_API moec_status moec_placement_file_read(
    moec_placement_file **out, const moec_placement_target *target,
    const char *name, const char *text, size_t n, moec_error *err);
MOEC_API void moec_placement_file_close(moec_placement_file *file);

MOEC_API moec_placement_form
moec_placement_file_form(const moec_placement_file *file);
MOEC_API const moec_placement *
moec_placement_file_placement(const moec_placement_file *file);
/* Take the placement out of the file: the caller's to destroy, once. The file
 * keeps the rest. */
MOEC_API moec_placement *moec_placement_file_take(moec_placement_file *file);
/* Key of row `i` of the placement. */
MOEC_API moec_layer_key moec_placement_file_key(const moec_placement_file *file,
                                                uint32_t i);
/* 1 where the keys are decoder layers' own numbers; 0 where nothing says which
 * layers the rows are, and they are counted from 0. */
MOEC_API int moec_placement_file_has_keys(const moec_placement_file *file);
/* W as the file says it, or 0. */
MOEC_API uint32_t moec_placement_file_n_ranks(const moec_placement_file *file);
/* [layers][P]: index of each slot among its expert's replicas, where the file
 * has an order of its own; NULL: ascending. */
MOEC_API const uint32_t *
moec_placement_file_replica(const moec_placement_file *file);
/* What the file says and a placement does not hold, and (P09) replicas on one
 * rank where W is known. */
MOEC_API size_t moec_placement_file_n_notes(const moec_placement_file *file);
MOEC_API const moec_note *
moec_placement_file_note(const moec_placement_file *file, size_t i);

typedef struct moec_placement_write_opts {
    uint32_t struct_bytes; /* sizeof(moec_placement_write_opts) */
    moec_placement_form form;
    const moec_layer_key *keys; /* of the placement's rows; needed by forms with
                                   decoder layers */
    uint32_t n_layers;       /* decoder layers; 0: up to the last of `keys` */
    uint32_t n_ranks;        /* W, for vllm-ascend */
    const uint32_t *replica; /* as of moec_eplb; NULL: ascending */
    uint32_t npy;            /* 1: .npy (int64) instead of JSON: phy2log,
                                log2phy, logcnt */
} moec_placement_write_opts;
#define MOEC_PLACEMENT_WRITE_OPTS_INIT                                         \
  {                                                                            \
    .struct_bytes = sizeof(moec_placement_write_opts),                         \
    .form = MOEC_PLACEMENT_SGLANG                                              \
  }

/* Write the placement as a file's bytes, to be freed with free(3). The last
 * MTP layers are left out while their rows are trivial: readers take a missing
 * row as that. ARG without keys or ranks where the form needs them; MAPPING (P04)
 * for empty slots in a form that has none, (P06, P07) for ranks. */
MOEC_API moec_status moec_placement_write(const moec_placement *placement,
                                          const moec_placement_write_opts *opts,
                                          void **out, size_t *bytes_out,
                                          moec_error *err);

/* Where vLLM puts experts without EPLB: the first E % W ranks hold one more.
 * Ranks with one fewer end in an empty slot, as all rows have one length. */
typedef enum moec_vllm_strategy {
    MOEC_VLLM_LINEAR = 0,     /* neighbours on one rank */
    MOEC_VLLM_ROUND_ROBIN = 1 /* expert e on rank e % W */
} moec_vllm_strategy;
MOEC_API moec_status moec_placement_vllm(moec_placement **out,
                                         moec_vllm_strategy strategy,
                                         uint32_t n_layers, uint32_t n_experts,
                                         uint32_t n_ranks, moec_error *err);

/* --------------------------------------------------------------- EPLB
 * DeepSeek's load balancer, bit for bit. */

/* In what the loads of a pack are summed. The two differ on some inputs. */
typedef enum moec_eplb_accum {
    MOEC_EPLB_F64 = 0, /* SGLang */
    MOEC_EPLB_F32 = 1  /* DeepSeek's own code */
} moec_eplb_accum;

/* Order of equal loads in a descending sort. */
typedef enum moec_eplb_ties {
    MOEC_EPLB_INTROSORT = 0, /* libstdc++'s std::sort, as torch's CPU sort */
    MOEC_EPLB_STABLE = 1     /* lowest number first */
} moec_eplb_ties;

typedef enum moec_eplb_policy {
    MOEC_EPLB_AUTO = 0, /* hierarchical where the nodes divide the groups */
    MOEC_EPLB_HIERARCHICAL = 1,
    MOEC_EPLB_GLOBAL = 2 /* one group, one node, whatever is given */
} moec_eplb_policy;

typedef struct moec_eplb_opts {
    uint32_t struct_bytes; /* sizeof(moec_eplb_opts) */
    uint32_t n_redundant;  /* R */
    uint32_t n_ranks;      /* W; divides P = E + R */
    uint32_t n_groups;     /* of experts, as the router has; 0 means 1 */
    uint32_t n_nodes;      /* 0 means 1; divides W */
    moec_eplb_accum accum;
    moec_eplb_ties ties;
    moec_eplb_policy policy;
} moec_eplb_opts;
#define MOEC_EPLB_OPTS_INIT                                                    \
  {                                                                            \
    .struct_bytes = sizeof(moec_eplb_opts), .n_ranks = 1, .n_groups = 1,       \
    .n_nodes = 1                                                               \
  }

/* Make a placement from loads[n_layers][n_experts]. `replica` (may be NULL)
 * gets [n_layers][P]: the index of each slot among its expert's replicas, the
 * order of EPLB's log2phy. FORMAT (P12) for loads that are negative, NaN or
 * infinite; MAPPING (P06, P07, P13) for sizes that do not divide. */
MOEC_API moec_status moec_eplb(moec_placement **out, uint32_t *replica,
                               const moec_eplb_opts *opts, const float *loads,
                               uint32_t n_layers, uint32_t n_experts,
                               moec_error *err);

/* Sum counts[n_steps][n] in int64 and round to float: what EPLB is given of
 * recorded steps. FORMAT (P12) for a negative count or an overflow. */
MOEC_API moec_status moec_eplb_sum_steps(const int64_t *counts,
                                         uint64_t n_steps, uint64_t n,
                                         float *out, moec_error *err);

/* -------------------------------------------------------- load counts
 * How many tokens an engine sent to each expert, summed over its steps. */

typedef struct moec_counts moec_counts;

/* Read counts from a file's `n` bytes, recognised by content:
 *   {"logical_count": [layers][E] or [steps][layers][E]}   SGLang: one row per
 *       decoder layer, MTP layers behind them
 *   {"expert_load_window": [steps][moe_layers][P],
 *    "physical_to_logical_map": [moe_layers][P]}           vLLM, by slot; also
 *       physical_count, expert_load_pass, and global_expert_load by expert
 *   [layers][E], [steps][layers][E]   JSON or .npy: rows are decoder layers or
 *       MoE layers, by their number
 * With a model, layers are its MoE layers (moec_model_layer) and E must be its
 * own; with NULL, layers and E are what the file has. `name` is for messages.
 * FORMAT: P12 (counts), P02 (rows), P03 (columns), P04 (map); NOMEM. */
MOEC_API moec_status moec_counts_parse(moec_counts **out,
                                       const moec_model *model,
                                       const char *name, const void *data,
                                       size_t n, moec_error *err);
MOEC_API void moec_counts_destroy(moec_counts *counts);

MOEC_API uint32_t moec_counts_n_layers(const moec_counts *counts);
MOEC_API uint32_t moec_counts_n_experts(const moec_counts *counts);
/* Steps that were summed; 1 for a file without them. */
MOEC_API uint64_t moec_counts_n_steps(const moec_counts *counts);
/* 1 where the file has a row for the layer; without one (MTP layers may have
 * none) its loads are 0. */
MOEC_API int moec_counts_has(const moec_counts *counts, uint32_t layer);
/* [n_layers][n_experts]: what moec_eplb takes. Integers are summed exactly
 * and rounded once. */
MOEC_API const float *moec_counts_loads(const moec_counts *counts);
/* The same sums as doubles. */
MOEC_API const double *moec_counts_sums(const moec_counts *counts);

/* ------------------------------------------------------------- planner
 * Better than EPLB, or few moves away from what is there. */

#define MOEC_MOVES_ANY UINT64_MAX

typedef struct moec_planner_opts {
    uint32_t struct_bytes;      /* sizeof(moec_planner_opts) */
    uint32_t reserved;          /* 0 */
    moec_eplb_opts eplb;        /* what is started from */
    const moec_placement *from; /* the placement of today, or NULL */
    uint64_t max_moves;         /* slots that may differ from `from`, in all
                                    layers together; MOEC_MOVES_ANY */
} moec_planner_opts;
#define MOEC_PLANNER_OPTS_INIT                                                 \
  {                                                                            \
    .struct_bytes = sizeof(moec_planner_opts), .eplb = MOEC_EPLB_OPTS_INIT,    \
    .max_moves = MOEC_MOVES_ANY                                                \
  }

/* Make a placement from loads[n_layers][n_experts]. Without max_moves no layer
 * has a larger largest rank load than moec_eplb's answer; with `from` slots
 * and ranks are then numbered so that few change, and where `from` itself can
 * be brought there by fewer, that is the answer. With max_moves no layer is
 * worse than in `from`, and the worst layers are mended first. Two copies of
 * an expert are not put on one rank; EPLB's are parted where that makes no rank
 * heavier than the heaviest. Where the policy is hierarchical experts stay on
 * the node that EPLB or `from`, whichever was improved, gives them. As
 * moec_eplb; also MAPPING (P03, P04) where `from` has other sizes or empty
 * slots. */
MOEC_API moec_status moec_planner(moec_placement **out,
                                  const moec_planner_opts *opts,
                                  const float *loads, uint32_t n_layers,
                                  uint32_t n_experts, moec_error *err);

/* Loads of the ranks, each expert's divided evenly among its copies. */
typedef struct moec_balance {
    double most, least, mean;
    double ratio; /* most / mean; 1 where nothing is loaded */
} moec_balance;

/* Balance of layer `layer` over `n_ranks` ranks under load[E]. MAPPING (P06),
 * NOMEM. */
MOEC_API moec_status moec_placement_balance(const moec_placement *p,
                                            uint32_t layer, uint32_t n_ranks,
                                            const float *load,
                                            moec_balance *out, moec_error *err);

/* Slots of layer `layer` of `b` that hold an expert and did not hold it in
 * `a`. */
MOEC_API uint64_t moec_placement_moves(const moec_placement *a,
                                       const moec_placement *b, uint32_t layer);

/* ----------------------------------------------------- replica choice
 * Which replica of an expert one source rank sends to. */

typedef struct moec_replicas moec_replicas;

typedef struct moec_replicas_opts {
    uint32_t struct_bytes; /* sizeof(moec_replicas_opts) */
    uint32_t n_ranks;      /* W */
    uint32_t n_nodes;      /* 0: unknown; else divides W */
    uint32_t rank;         /* the source rank */
    uint32_t all_to_all;   /* the static choice of a server with an all-to-all:
                              candidates collapsed to the nearest one first.
                              Not with `replica` */
    const uint32_t *replica; /* [layers][P] of moec_eplb: candidates in that
                                order; NULL: ascending */
    /* The static table draws from ONE random stream over all rows of the
     * placement, in order. SGLang's has a row for every decoder layer: with
     * `keys` (of the placement's layers) the stream runs over n_decoder
     * layers and then the MTP ones; layers without a row, the dense ones, are
     * taken as trivial. NULL: the placement's rows are all there are. */
    const moec_layer_key *keys;
    uint32_t n_decoder;
} moec_replicas_opts;
#define MOEC_REPLICAS_OPTS_INIT                                                \
  {                                                                            \
    .struct_bytes = sizeof(moec_replicas_opts), .n_ranks = 1                   \
  }

/* Derive lists and static tables of all layers for opts->rank. Copies what it
 * needs. ARG, MAPPING (P05, P06, P07), NOMEM. */
MOEC_API moec_status moec_replicas_create(moec_replicas **out,
                                          const moec_placement *placement,
                                          const moec_replicas_opts *opts,
                                          moec_error *err);
MOEC_API void moec_replicas_destroy(moec_replicas *replicas);

/* Physical id that the rank sends each of the E experts to: SGLang's static
 * table, bit for bit. */
MOEC_API const uint32_t *moec_replicas_table(const moec_replicas *replicas,
                                             uint32_t layer);
/* The one candidate that is near enough to be the only one, for each of the E
 * experts: the sole one, else the first on this rank, else, where the nodes
 * are known and only some candidates are on this node, the first of those.
 * -1: none is. */
MOEC_API const int32_t *moec_replicas_nearest(const moec_replicas *replicas,
                                              uint32_t layer);
/* Fill *map for `layer`: candidates, table, rank, layer, rule and topology,
 * row0 0. Shared slots are `n_shared_slots` (S), global or per rank. Pointers
 * are borrowed. `number` is the layer's number in rules ROW_*LAYER. */
MOEC_API void moec_replicas_map(const moec_replicas *replicas, uint32_t layer,
                                moec_replica_rule rule, uint32_t number,
                                uint32_t n_shared_slots, uint32_t shared_global,
                                moec_dispatch_map *map);

/* --------------------------------------------------------------- plan */

typedef struct moec_plan moec_plan;

typedef enum moec_shared_mode {
    MOEC_SHARED_SLOTS_AUTO = 0, /* per-rank where the family allows */
    MOEC_SHARED_SLOTS_PER_RANK = 1,
    MOEC_SHARED_SLOTS_GLOBAL = 2,
    MOEC_SHARED_SLOTS_OFF = 3 /* kept as common tensors */
} moec_shared_mode;

typedef enum moec_w13_order {
    MOEC_W13_GATE_UP = 0,
    MOEC_W13_UP_GATE = 1
} moec_w13_order;

typedef struct moec_plan_opts {
    uint32_t struct_bytes; /* sizeof(moec_plan_opts) */
    uint32_t n_ranks;      /* W; ignored where by_expert */
    uint32_t n_redundant;  /* R, without a placement */
    moec_shared_mode shared;
    moec_w13_order w13_order;
    uint8_t allow_empty;         /* pad with empty slots to a multiple of W */
    uint8_t shared_store_common; /* shared experts once, in their own file */
    uint8_t no_mtp;              /* leave MTP layers out */
    uint8_t by_expert;           /* expert store: rows are logical experts */
    const moec_placement *placement; /* NULL: trivial with n_redundant */
    uint8_t requantise_shared;       /* a shared expert of another format takes
                                  slots in the routed one: lossy. Its source
                                  tensors stay common ones as well */
} moec_plan_opts;
#define MOEC_PLAN_OPTS_INIT                                                    \
  {                                                                            \
    sizeof(moec_plan_opts), 1, 0, MOEC_SHARED_SLOTS_AUTO, MOEC_W13_GATE_UP, 0, \
        0, 0, 0, NULL, 0                                                       \
  }

/* One stacked tensor of a layer, of the same shape on every rank. Row j of it
 * is one block of slot_bytes; moves are relative to a block.
 * Rows are the rank's own, but for a table over all slots: activation scales
 * of which a kernel takes one maximum over ALL experts. Its rows are the
 * dispatch slots of the whole job (moec_slot_id), the same bytes on every
 * rank. */
typedef struct moec_slot_tensor {
    const char *name; /* "model.layers.3.mlp.experts.w13_weight" */
    moec_dtype dtype;
    uint32_t rank; /* dimensions; shape[0]: rows, L + S, or P + S*W where
                      all_slots (P + S where shared slots are global) */
    uint64_t shape[MOEC_RANK_MAX];
    uint64_t slot_bytes;
    uint8_t is_w2;     /* 0: w13, 1: w2 */
    uint8_t op;        /* moec_op that the routed moves use */
    uint8_t all_slots; /* 1: a table over all slots */
} moec_slot_tensor;

/* What a source tensor becomes. */
typedef enum moec_fate {
    MOEC_FATE_MOVED = 0,  /* into slots */
    MOEC_FATE_COMMON = 1, /* a common file, unchanged */
    MOEC_FATE_SHARED = 2, /* the shared file (shared_store_common) */
    MOEC_FATE_SKIPPED = 3 /* left out: no_mtp */
} moec_fate;

/* Unit: what fills one slot. 0..E-1 routed experts, E..E+S-1 shared parts. */
#define MOEC_UNIT_EMPTY UINT32_MAX

/* Most moves that one block of one slot tensor can have. */
#define MOEC_BLOCK_MOVES_MAX 4

/* Decide everything: topology, slot tensors, moves, fate of each tensor. */
MOEC_API moec_status moec_plan_create(moec_plan **out, const moec_model *model,
                                      const moec_plan_opts *opts,
                                      moec_error *err);
MOEC_API void moec_plan_destroy(moec_plan *plan);

MOEC_API const moec_model *moec_plan_model(const moec_plan *plan);
MOEC_API const moec_plan_opts *moec_plan_options(const moec_plan *plan);
MOEC_API const moec_placement *moec_plan_placement(const moec_plan *plan);
MOEC_API moec_topology moec_plan_topology(const moec_plan *plan);
/* Shared rows that every rank's tensors have: S, or 0 with a common store. */
MOEC_API uint32_t moec_plan_shared_rows(const moec_plan *plan);
/* 1 where shared slots hold a requantised shared expert: all their bytes are
 * then made by MOEC_OP_REQUANTISE. */
MOEC_API int moec_plan_requantises(const moec_plan *plan);
/* Warnings (P09, ...). */
MOEC_API size_t moec_plan_n_notes(const moec_plan *plan);
MOEC_API const moec_note *moec_plan_note(const moec_plan *plan, size_t i);

/* Planned layers: those of the model, less MTP ones with no_mtp. */
MOEC_API size_t moec_plan_n_layers(const moec_plan *plan);
/* Index of planned layer `i` among the model's layers. */
MOEC_API size_t moec_plan_model_layer(const moec_plan *plan, size_t i);
MOEC_API size_t moec_plan_n_slot_tensors(const moec_plan *plan, size_t layer);
MOEC_API const moec_slot_tensor *moec_plan_slot_tensor(const moec_plan *plan,
                                                       size_t layer, size_t t);

/* Unit in local row `row` of rank `rank`: a logical expert, E + shared part,
 * or MOEC_UNIT_EMPTY. */
MOEC_API uint32_t moec_plan_unit(const moec_plan *plan, size_t layer,
                                 uint32_t rank, moec_local_row row);

/* Row of slot tensor `t` for what stands in local row `row` of rank `rank`:
 * `row` itself, or its dispatch slot where `t` is a table over all slots. */
MOEC_API uint32_t moec_plan_row(const moec_plan *plan, size_t layer, size_t t,
                                uint32_t rank, moec_local_row row);

/* Unit in row `row` < shape[0] of slot tensor `t` of rank `rank`, as
 * moec_plan_unit has it. */
MOEC_API uint32_t moec_plan_row_unit(const moec_plan *plan, size_t layer,
                                     size_t t, uint32_t rank, uint32_t row);

/* Write the moves that fill one block of slot tensor `t` with `unit` into
 * out[MOEC_BLOCK_MOVES_MAX] and return how many. Moves do not depend on the
 * rank: replicas are the same block. */
MOEC_API size_t moec_plan_block_moves(const moec_plan *plan, size_t layer,
                                      size_t t, uint32_t unit, moec_move *out);

MOEC_API moec_fate moec_plan_fate(const moec_plan *plan, size_t tensor);

/* Make the kernels' matrix of w13 (is_w2 0) or w2 of a planned layer. data[t]
 * is row 0 of slot tensor `t` in memory, for t below
 * moec_plan_n_slot_tensors(); those that the matrix does not need may be
 * NULL. Matrix j of *out is row j. Activation scales are left out: kernels
 * here compute from unrounded activations. UNSUPPORTED with the tensor and the
 * reason where no format of moec_wformat is that of the slots; ARG where a
 * tensor that is needed is NULL. */
MOEC_API moec_status moec_slot_matrix(const moec_plan *plan, size_t layer,
                                      int is_w2, const void *const *data,
                                      moec_matrix *out, moec_error *err);

/* Figures of one rank. */
typedef struct moec_rank_figures {
    uint64_t bytes_read;    /* distinct source bytes that its moves name */
    uint64_t bytes_written; /* of its expert files, headers and pads too */
    uint64_t n_moves;
} moec_rank_figures;

/* -------------------------------------------------------- re-placement
 * From what ranks hold in memory to another plan of the same model: a
 * rebalance at run time, a lost rank, other numbers of slots or ranks. */

typedef struct moec_diff moec_diff;

/* Where a row's new content comes from. */
typedef enum moec_diff_source {
    MOEC_DIFF_LOCAL = 0, /* another row of this rank, or its bounce row */
    MOEC_DIFF_HOST = 1,  /* host memory of the node */
    MOEC_DIFF_PEER = 2,  /* a row of another rank */
    MOEC_DIFF_DISK = 3,  /* the files */
    MOEC_DIFF_ZEROS = 4  /* an empty slot: zero bytes */
} moec_diff_source;

#define MOEC_DIFF_BOUNCE   UINT32_MAX /* row: the bounce row of the rank */
#define MOEC_DIFF_ROWS     UINT32_MAX /* tensor: all but tables over all slots */
#define MOEC_DIFF_NO_PEER  UINT32_MAX
#define MOEC_DIFF_NEW_RANK UINT32_MAX

/* Copy row src_row to dst_row. Rows are those of the plans' slot tensors: the
 * memory of row i is the same before and after, where both plans have one.
 *
 * A rank makes its moves in the order of the list. Rounds begin anew in each
 * layer: round k + 1 of a layer begins on no rank before round k of it has
 * ended on all ranks. Between layers nobody waits. Then no row is written
 * before everybody has read it. Without PEER moves nobody needs to wait. */
typedef struct moec_diff_move {
    uint32_t layer;  /* planned layer */
    uint32_t tensor; /* a table's slot tensor, or MOEC_DIFF_ROWS */
    uint32_t unit;   /* that dst_row holds then */
    uint32_t round;
    uint32_t dst_row;  /* of the new plan, or MOEC_DIFF_BOUNCE */
    uint32_t src_row;  /* of the old plan: LOCAL (or MOEC_DIFF_BOUNCE), PEER */
    uint32_t peer;     /* old rank, for PEER; else MOEC_DIFF_NO_PEER */
    uint8_t source;    /* moec_diff_source */
    uint8_t same_node; /* of PEER */
    uint16_t reserved;
    uint64_t bytes; /* of the row in all its tensors */
} moec_diff_move;

typedef struct moec_diff_opts {
    uint32_t struct_bytes;   /* sizeof(moec_diff_opts) */
    uint32_t ranks_per_node; /* nodes are told by the old rank's number, of a
                                process that was none by its new one; 0: all
                                are on one node */
    /* [new ranks] which old rank the process was, MOEC_DIFF_NEW_RANK for none;
     * NULL: the same number, as far as there are */
    const uint32_t *old_rank;
    const uint8_t *lost; /* [old ranks] not 0: its memory is gone; or NULL */
    /* Does the node hold the unit in host memory? NULL: it holds none. */
    int (*in_host)(void *ctx, size_t layer, uint32_t unit);
    void *ctx;
    uint32_t no_peers; /* 1: ranks cannot read each other's memory */
    uint32_t reserved;
} moec_diff_opts;
#define MOEC_DIFF_OPTS_INIT                                                    \
  {                                                                            \
    .struct_bytes = sizeof(moec_diff_opts)                                     \
  }

typedef struct moec_diff_figures {
    uint64_t bytes_local, bytes_host, bytes_same_node, bytes_other_node,
        bytes_disk;
    uint64_t bounce_bytes; /* of the bounce row; 0: none is needed */
    uint32_t n_rounds;     /* most of a layer */
    uint32_t reserved;
} moec_diff_figures;

/* Find the moves of new rank `rank` from plan `old` to plan `now`. Of several
 * places that hold a unit the nearest is taken: the rank itself, its node, the
 * node's host memory, other nodes, the disk. `opts` may be NULL. The result
 * borrows nothing. MAPPING where the plans differ in more than ranks and
 * placement; ARG for ranks that are none; NOMEM. */
MOEC_API moec_status moec_plan_diff(moec_diff **out, const moec_plan *old,
                                    const moec_plan *now, uint32_t rank,
                                    const moec_diff_opts *opts,
                                    moec_error *err);
MOEC_API void moec_diff_destroy(moec_diff *diff);
MOEC_API size_t moec_diff_n_moves(const moec_diff *diff);
MOEC_API const moec_diff_move *moec_diff_get(const moec_diff *diff, size_t i);
MOEC_API moec_diff_figures moec_diff_sums(const moec_diff *diff);

/* ------------------------------------------------------------- layout */

typedef struct moec_layout moec_layout;

typedef enum moec_out_kind {
    MOEC_OUT_SLOTS = 0,  /* a slot tensor: layer, t */
    MOEC_OUT_COMMON = 1, /* a source tensor, unchanged: source */
    MOEC_OUT_PAD = 2     /* zeros */
} moec_out_kind;

typedef struct moec_out_tensor {
    moec_out_kind kind;
    uint32_t layer;  /* planned layer */
    uint32_t t;      /* slot tensor of that layer */
    uint64_t source; /* source tensor of a common one; number of a pad */
    uint64_t off;    /* bytes, from the begin of the file */
    uint64_t bytes;
} moec_out_tensor;

typedef enum moec_out_file_kind {
    MOEC_FILE_RANK = 0,   /* experts-rank-..., of `rank` */
    MOEC_FILE_COMMON = 1, /* common-... */
    MOEC_FILE_SHARED = 2, /* shared-... */
    MOEC_FILE_STORE = 3   /* experts-... of an expert store */
} moec_out_file_kind;

typedef struct moec_out_file {
    moec_out_file_kind kind;
    uint32_t rank; /* of a rank file, else 0 */
    const char *name;
    uint64_t bytes;
    uint64_t header_bytes; /* 8 + N, a multiple of 4096 */
    size_t n_tensors;
    const moec_out_tensor *tensors; /* by offset */
} moec_out_file;

#define MOEC_ALIGN                  4096u
#define MOEC_MAX_PART_BYTES_DEFAULT (UINT64_C(4) << 30)

/* Lay the plan out in files: parts of about max_part_bytes (0: the default),
 * a layer never split, every tensor of a rank file at a multiple of 4096. */
MOEC_API moec_status moec_layout_create(moec_layout **out,
                                        const moec_plan *plan,
                                        uint64_t max_part_bytes,
                                        moec_error *err);
MOEC_API void moec_layout_destroy(moec_layout *layout);
MOEC_API const moec_plan *moec_layout_plan(const moec_layout *layout);
MOEC_API uint64_t moec_layout_max_part_bytes(const moec_layout *layout);
/* Files: rank (or store) files by (rank, part), shared ones, common ones. */
MOEC_API size_t moec_layout_n_files(const moec_layout *layout);
MOEC_API const moec_out_file *moec_layout_file(const moec_layout *layout,
                                               size_t i);
/* File and offset of slot tensor `t` of planned layer `layer` on `rank`. */
MOEC_API void moec_layout_find_slots(const moec_layout *layout, uint32_t rank,
                                     size_t layer, size_t t, size_t *file_out,
                                     uint64_t *off_out);
/* File and offset of a common or shared source tensor; 0 where it has none. */
MOEC_API int moec_layout_find_common(const moec_layout *layout, size_t source,
                                     size_t *file_out, uint64_t *off_out);
/* Name of an out tensor: the slot tensor's, the source's, or "__pad.N" into
 * `buf` (at least 32 bytes). */
MOEC_API const char *moec_layout_name(const moec_layout *layout,
                                      const moec_out_tensor *t, char *buf);
/* The first 8 + N bytes of file `i`, to be freed with free(3). */
MOEC_API moec_status moec_layout_header(const moec_layout *layout, size_t i,
                                        void **out, uint64_t *bytes_out,
                                        moec_error *err);
/* Figures of rank `rank`. */
MOEC_API moec_rank_figures moec_layout_figures(const moec_layout *layout,
                                               uint32_t rank);

#ifdef __cplusplus
}
#endif
#endif
