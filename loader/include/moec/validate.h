/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_VALIDATE_H
#define MOEC_VALIDATE_H

/*
 * What this is: what is proved about a plan or a converted checkpoint, and
 *   the report of it. Theorems: T1 all used, T2 written once, T3 same bytes,
 *   T4 map total, T5 types agree, T6 invertible.
 * Lifetime: a report owns its findings and their texts.
 * Threads: a report is immutable once returned: share freely.
 * Errors: a failed proof is NOT an error: the call returns MOEC_OK and the
 *   report has findings. Errors are IO, NOMEM, FORMAT (unreadable manifest,
 *   slots.bin or source), CANCELLED.
 */

#include <moec/device.h>
#include <moec/error.h>
#include <moec/exchange.h>
#include <moec/kernels.h>
#include <moec/loader.h>
#include <moec/mapping.h>
#include <moec/record.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moec_report moec_report;

typedef enum moec_severity {
    MOEC_SEVERITY_NOTE = 0,
    MOEC_SEVERITY_WARNING = 1,
    MOEC_SEVERITY_ERROR = 2
} moec_severity;

/* Bits of moec_finding.has: which fields apply. */
enum {
    MOEC_HAS_FILE = 1,
    MOEC_HAS_TENSOR = 2,
    MOEC_HAS_OFFSET = 4,
    MOEC_HAS_LAYER = 8,
    MOEC_HAS_RANK = 16,
    MOEC_HAS_SLOT = 32, /* local row */
    MOEC_HAS_EXPERT = 64,
    MOEC_HAS_EXPECTED = 128,
    MOEC_HAS_FOUND = 256
};

typedef struct moec_finding {
    moec_rule rule;
    moec_severity severity;
    uint32_t has;
    uint32_t rank, slot, expert;
    moec_layer_key layer;
    uint64_t offset; /* bytes, from the begin of `file` */
    const char *message;
    const char *file, *tensor;
    const char *expected, *found;
} moec_finding;

typedef struct moec_theorem {
    moec_rule rule; /* MOEC_RULE_T1 .. MOEC_RULE_T6 */
    uint8_t ok;
    uint8_t ran;      /* 0: not checked at this level */
    uint64_t checked; /* things looked at: tensors, bytes or slots */
    const char *note; /* what it did not prove, or NULL */
} moec_theorem;

MOEC_API void moec_report_destroy(moec_report *report);
/* 1 where no finding is an error. */
MOEC_API int moec_report_ok(const moec_report *report);
MOEC_API size_t moec_report_n_findings(const moec_report *report);
/* Findings sorted by rule, layer, rank, slot, file, offset. */
MOEC_API const moec_finding *moec_report_finding(const moec_report *report,
                                                 size_t i);
/* The six theorems, T1 first. i < 6. */
MOEC_API const moec_theorem *moec_report_theorem(const moec_report *report,
                                                 size_t i);

/* Level 1: prove T1, T2, T4, T5 over a plan's moves; no weight is read. */
MOEC_API moec_status moec_plan_prove(moec_report **out, const moec_plan *plan,
                                     moec_error *err);
/* The same, and over the table of the layout's files too. */
MOEC_API moec_status moec_layout_prove(moec_report **out,
                                       const moec_layout *layout,
                                       moec_error *err);

/* How far a proof goes. Each level includes those before it. */
typedef enum moec_level {
    MOEC_LEVEL_HEADERS = 1, /* no byte of a weight is read */
    MOEC_LEVEL_DIGESTS = 2, /* every byte once */
    MOEC_LEVEL_KERNELS = 3  /* end to end: moec_validate */
} moec_level;

/* Called now and then with bytes done and in all; non-zero cancels. One
 * thread at a time. */
typedef int (*moec_progress_fn)(void *ctx, uint64_t done, uint64_t total);

/* A converted checkpoint opened: its source's tensor table, model, plan and
 * layout, decided again from the files of the directory. */
typedef struct moec_conversion moec_conversion;

/* Open the converted checkpoint in directory `dir`. Reads manifest.json,
 * slots.bin, sources.bin and config.json, no data file. `families` may be
 * NULL (the built-in ones) and is not retained; a description that the
 * conversion was made with is in the manifest and is used instead. FORMAT:
 * M01..M04; M01 with the key where the manifest does not say what source,
 * config and options give. On success `*out` is the caller's to close; on
 * failure it is untouched. */
MOEC_API moec_status moec_conversion_open(moec_conversion **out,
                                          const char *dir,
                                          const moec_families *families,
                                          moec_error *err);
/* The same over a caller's source (loader.h), which is copied but for ctx:
 * what is needed is read by ranges, a load reads its rank's bytes alone. IO
 * with the source's own words where it fails; FORMAT (I13) where a file changed
 * meanwhile. */
MOEC_API moec_status moec_conversion_open_source(moec_conversion **out,
                                                 const moec_store *store,
                                                 const moec_families *families,
                                                 moec_error *err);
/* Close; NULL is fine. */
MOEC_API void moec_conversion_close(moec_conversion *c);
/* Its layout, and through it plan, model and source (headers alone:
 * moec_ckpt_read is UNSUPPORTED). Borrowed. */
MOEC_API const moec_layout *moec_conversion_layout(const moec_conversion *c);

/* Write the SHA-256 of the very bytes of manifest.json that were read at open,
 * for moec_signature_check_digest; return how many they were. */
MOEC_API uint64_t moec_conversion_manifest_digest(const moec_conversion *c,
                                                  uint8_t sha256[32]);

typedef struct moec_verify_opts {
    uint32_t struct_bytes;   /* sizeof(moec_verify_opts) */
    uint32_t n_threads;      /* 0: one per CPU allowed */
    const moec_ckpt *source; /* compare with the source too; may be NULL */
    const moec_families *families; /* NULL: the built-in ones */
    moec_progress_fn progress;
    void *progress_ctx;
    moec_level level;        /* HEADERS or DIGESTS (KERNELS: UNSUPPORTED) */
    const moec_store *store; /* holds the conversion, and `dir` is not looked
                                at; NULL: `dir` does */
} moec_verify_opts;
#define MOEC_VERIFY_OPTS_INIT                                                  \
  {                                                                            \
    .struct_bytes = sizeof(moec_verify_opts), .level = MOEC_LEVEL_DIGESTS      \
  }

/* Level 1, or levels 1 and 2, over the converted checkpoint in directory
 * `dir`. FORMAT where manifest.json or slots.bin cannot be read; damage
 * elsewhere is a finding. */
MOEC_API moec_status moec_verify(moec_report **out, const char *dir,
                                 const moec_verify_opts *opts, moec_error *err);

/* ------------------------------------------------- kernels, end to end
 * Level 3. For every MoE layer the same hidden states take two roads: through
 * the source's logical experts and its unfused shared expert, by the scalar
 * kernels; and through the converted slots of all ranks: choice, dispatch,
 * alignment, FFN, combine. Ids and routed outputs must be equal bit for bit,
 * the shared expert within rounding, and every slot that any choice of
 * replicas, any source rank, waterfill or Expert Choice uses must hold its
 * expert. */

typedef struct moec_validate_opts {
    uint32_t struct_bytes;   /* sizeof(moec_validate_opts) */
    uint32_t n_threads;      /* 0: one per CPU allowed */
    const moec_ckpt *source; /* what was converted; needed with a directory */
    const moec_families *families; /* NULL: the built-in ones */
    const moec_layout *layout;     /* without a directory: its slots are made in
                                  memory, its checkpoint is the source */
    moec_progress_fn progress;     /* experts and slots, not bytes */
    void *progress_ctx;
    uint32_t n_tokens;   /* of seeded inputs; 0: 64 */
    moec_isa isa;        /* back end of the converted side */
    uint64_t seed;       /* of the inputs */
    const char *inputs;  /* safetensors with `layers.N.input` [T][H]: recorded
                           hidden states; or NULL */
    const char *golden;  /* golden.safetensors of an independent reference, its
                           fixture.json beside it; or NULL. Layers routed by
                           a table of tokens: `layers.N.T.tokens` [T] too */
    moec_device *device; /* where the converted side runs; NULL: the CPU */
    /* One process a rank, all of which call with the same options: each routes
     * its share of the tokens, opens the files of its own rank alone, and gets
     * the results of all. NULL: one process serves every rank. Not with
     * `golden` and `device` (UNSUPPORTED). */
    moec_exchange *exchange;
    const moec_store *store; /* holds the conversion, and `dir` is not looked
                                at; NULL: `dir` does */
} moec_validate_opts;
#define MOEC_VALIDATE_OPTS_INIT                                                \
  {                                                                            \
    .struct_bytes = sizeof(moec_validate_opts)                                 \
  }

/* Where a layer's hidden states came from. */
typedef enum moec_inputs_kind {
    MOEC_INPUTS_SEEDED = 0,
    MOEC_INPUTS_RECORDED = 1,
    MOEC_INPUTS_GOLDEN = 2
} moec_inputs_kind;

/* What came of one layer. */
typedef struct moec_layer_result {
    moec_layer_key layer;
    uint32_t source_number;
    uint32_t tokens;
    uint8_t validated; /* 0: `why_not` says why */
    uint8_t ids_equal;
    uint8_t has_golden;
    uint8_t inputs; /* moec_inputs_kind */
    const char *why_not;
    double max_abs_err; /* whole output, converted against source */
    double max_rel_err; /* over the layer's largest output */
    double golden_max_abs_err;
    uint32_t golden_answers; /* tensors of the reference compared */
    uint32_t n_errors;       /* findings about the layer */
    uint64_t pairs;          /* (token, expert) outputs compared bit for bit */
    uint64_t forced;         /* of them for experts that no token chose */
    uint64_t slots;          /* read and digested */
    uint64_t choices;        /* other choices of slots that were checked */
    moec_load_stats expert_load, slot_load, rank_load; /* columns */
    /* Expert Choice: modes that ran, of fill missing, full row, pad, balanced;
     * tokens re-routed or filled up, and columns left empty, by mode. */
    uint32_t ec_modes;
    uint32_t reserved;
    uint64_t ec_fallback[4], ec_dropped[4];
    /* SHA-256 over the XXH3-128 of each token's whole output, in the order of
     * the tokens: how many processes made them does not matter. */
    uint8_t output_sha256[32];
} moec_layer_result;

/* What a rank's process did for one layer. Bytes are those between different
 * processes, of the tokens alone (not of rows for experts that no token
 * chose): hidden states with their columns, and columns' outputs back. */
typedef struct moec_rank_traffic {
    uint64_t tokens;   /* its share */
    uint64_t received; /* hidden states that came to it, its own too */
    uint64_t columns;  /* that its slots computed */
    uint64_t bytes_sent, bytes_received;
} moec_rank_traffic;

typedef struct moec_validation moec_validation;

/* Run level 3 over the converted checkpoint in directory `dir`, or with `dir`
 * NULL over opts->layout. A failed proof is a finding. ARG, FORMAT (manifest,
 * slots.bin, a file of inputs), IO, NOMEM, CANCELLED; UNSUPPORTED where this
 * CPU lacks opts->isa. */
MOEC_API moec_status moec_validate(moec_validation **out, const char *dir,
                                   const moec_validate_opts *opts,
                                   moec_error *err);
MOEC_API void moec_validation_destroy(moec_validation *v);
/* Its findings; the theorems of this report did not run. Borrowed. */
MOEC_API const moec_report *moec_validation_report(const moec_validation *v);
MOEC_API size_t moec_validation_n_layers(const moec_validation *v);
MOEC_API const moec_layer_result *
moec_validation_layer(const moec_validation *v, size_t i);
/* What the process of rank `rank` did for layer `i`; NULL where one process
 * served all. */
MOEC_API const moec_rank_traffic *
moec_validation_traffic(const moec_validation *v, size_t i, uint32_t rank);
/* What was NOT proved, a sentence each. */
MOEC_API size_t moec_validation_n_limits(const moec_validation *v);
MOEC_API const char *moec_validation_limit(const moec_validation *v, size_t i);

/* ------------------------------------------------------ recorded routes */

typedef struct moec_routes_check_opts {
    uint32_t struct_bytes; /* sizeof(moec_routes_check_opts) */
    uint32_t reserved;
    const moec_model *model; /* what was recorded; NULL: not looked at */
    const char *logits;      /* with a model: safetensors of live logits,
                                "layers.N.router_logits" [tokens][E + Z] in the
                                recording's order, N as the source numbers
                                layers ("layers.N.PART.router_logits" where
                                there is one such PART); NULL: no replay */
} moec_routes_check_opts;
#define MOEC_ROUTES_CHECK_OPTS_INIT                                            \
  {                                                                            \
    .struct_bytes = sizeof(moec_routes_check_opts)                             \
  }

typedef struct moec_routes_check_result {
    uint64_t rows;          /* looked at */
    uint64_t gap_positions; /* explicitly without rows */
    uint64_t rows_replayed; /* with forced ids, weights of the live logits */
    uint64_t rows_differ;   /* of them: the live logits choose others */
    uint32_t layers_replayed;
    uint32_t reserved;
} moec_routes_check_result;

/* Check a recording: every row's experts are distinct (R03), no position is
 * missing (R04), sizes and layers are the model's (R02), and replay: the live
 * logits choose what was recorded (R07, a warning for each layer that
 * differs). ARG (logits without a model), FORMAT (the file of logits),
 * UNSUPPORTED (a source without its data: a converted checkpoint), NOMEM. */
MOEC_API moec_status moec_routes_check(moec_report **out,
                                       const moec_routes *routes,
                                       const moec_routes_check_opts *opts,
                                       moec_routes_check_result *result,
                                       moec_error *err);

/* ---------------------------------------------------------- mutations
 * Proofs that they can fail: a layout is made wrong in one known way, in
 * memory, and must be named by one known rule. No file is ever changed. */

typedef enum moec_mutation {
    MOEC_MUTATION_SWAP_SLOTS = 0,
    MOEC_MUTATION_E_FOR_P = 1,
    MOEC_MUTATION_SHARED_FIRST = 2,
    MOEC_MUTATION_SHARED_MISSING = 3,
    MOEC_MUTATION_GATE_UP_SWAPPED = 4,
    MOEC_MUTATION_TRANSPOSED_DOWN = 5,
    MOEC_MUTATION_REPLICA_STALE = 6,
    MOEC_MUTATION_SCALE_DROPPED = 7,
    MOEC_MUTATION_SCALE_OF_NEIGHBOUR = 8,
    MOEC_MUTATION_BIAS_DROPPED = 9,
    MOEC_MUTATION_ROUTER_BIAS_DROPPED = 10,
    MOEC_MUTATION_LAYER_OFF_BY_ONE = 11,
    MOEC_MUTATION_RANK_FILES_SWAPPED = 12,
    MOEC_MUTATION_BF16_AS_F16 = 13,
    MOEC_MUTATION_MTP_AS_MAIN = 14,
    MOEC_MUTATION_WRONG_NORM_TOPK = 15,
    MOEC_MUTATION_RSF_TWICE = 16,
    MOEC_MUTATION_RSF_MISSING = 17,
    MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED = 18,
    MOEC_MUTATION_COUNT
} moec_mutation;

typedef struct moec_mutation_info {
    const char *name; /* "swap-slots" */
    const char *what; /* what is wrong then, one sentence */
    moec_level level; /* the lowest that can see it */
    /* The rules that must name it at each level; MOEC_RULE_NONE where that
     * level cannot see it. */
    moec_rule headers_rule, digests_rule, kernels_rule;
} moec_mutation_info;

/* Return the description of `kind`, or NULL for numbers that are no kind.
 * Static storage. */
MOEC_API const moec_mutation_info *moec_mutation_describe(moec_mutation kind);

/* Return the kind with this name, or MOEC_MUTATION_COUNT. */
MOEC_API moec_mutation moec_mutation_find(const char *name);

/* Make a copy of what `layout` decides, wrong in the way of `kind`, and prove
 * it at level HEADERS. `*found_out` is 1 where the kind's headers_rule names
 * it. UNSUPPORTED where the kind cannot be made of this layout, or not be seen
 * at this level: the text says why. INTEGRITY where the layout as it is has
 * errors already. */
MOEC_API moec_status moec_check_mutation(moec_report **out, int *found_out,
                                         const moec_layout *layout,
                                         moec_mutation kind, moec_error *err);

/* The same at level DIGESTS over the converted checkpoint in `dir`: its files
 * are read, and what was read is changed in memory before it is looked at.
 * Reads only the files that the kind concerns. opts->source is not used. */
MOEC_API moec_status moec_verify_mutation(moec_report **out, int *found_out,
                                          const char *dir, moec_mutation kind,
                                          const moec_verify_opts *opts,
                                          moec_error *err);

/* The same at level KERNELS over the converted checkpoint in `dir`, or with
 * `dir` NULL over opts->layout, where only kinds that change no byte of a slot
 * can be made. */
MOEC_API moec_status moec_validate_mutation(moec_validation **out,
                                            int *found_out, const char *dir,
                                            moec_mutation kind,
                                            const moec_validate_opts *opts,
                                            moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
