/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_LEVEL3_H
#define MOEC_LEVEL3_H

/*
 * What this is: what the parts of level 3 share: the two sides and their
 *   kernels, one worker's buffers, and one layer at a time with what each side
 *   made of the same hidden states.
 *     forward.c        the source's side: logical experts, scalar kernels
 *     serve.c          the converted side: slots of all ranks, served
 *     serve_choice.c   every other way to choose slots, without arithmetic
 *     hash_tokens.c    token ids for experts that stand in a table
 *     serve_exchange.c  the same in W processes, a rank each
 *     kernels_exchange.c  what those processes tell each other beside it
 *     kernels_compare.c  the two against each other, and against a reference
 *     kernels_level.c  the driver and the public functions
 * Lifetime: a level owns what it opens; a layer lives while it is proved.
 * Threads: experts and slots run on many workers, each with its own buffers;
 *   all else is the caller's thread.
 * Errors: what is not proved is a finding. Errors: IO, NOMEM, FORMAT,
 *   CANCELLED.
 */

#include <pthread.h>

#include <moec/exchange.h>
#include <moec/kernels.h>
#include <moec/validate.h>

#include "activations.h"
#include "conversion.h"
#include "execute.h"
#include "forward.h"
#include "io.h"
#include "mutate.h"
#include "report.h"

#define MOEC_LEVEL3_SOURCE 0
#define MOEC_LEVEL3_SERVED 1
/* Slot tensors of a layer: weights, scales, zeros, biases of w13 and w2. */
#define MOEC_L3_TENSORS_MAX 32u
/* Source ranks that are tried in a job of more. */
#define MOEC_L3_HOMES_MAX 64u

typedef struct moec_l3_worker {
    struct moec_level3 *v;
    moec_io_buf io;
    moec_plain plain;
    moec_scratch scratch;
    moec_room slot, work;
    moec_room x; /* rows that the experts see */
} moec_l3_worker;

/* One side of the proof: a checkpoint that can be read, and its model. */
typedef struct moec_level3 {
    moec_report *r;
    const moec_validate_opts *opts;
    const char *dir;           /* of the conversion; NULL: slots in memory */
    const moec_store *store;   /* where it is instead; NULL: in `dir` */
    moec_conversion *c;        /* of `dir` */
    const moec_layout *layout; /* the conversion's, or the caller's */
    const moec_plan *plan;
    const moec_model *model[2]; /* the source's own, the plan's */
    moec_model *own_model;
    const moec_ckpt *source;
    moec_io_file *source_io; /* by file of `source` */
    moec_io_file *out_io;    /* by file of `layout`; fd -1: cannot be read */
    moec_patches *patches;
    moec_mutation mutation; /* MOEC_MUTATION_COUNT: none */
    moec_kernels *k[2];
    moec_device *device[2];              /* NULL: that side's kernels */
    moec_rank_traffic *traffic;          /* [layers][ranks], or NULL */
    char lacking[MOEC_ERROR_TEXT_BYTES]; /* what the device refused; or "" */
    moec_activations act;
    size_t dropped;           /* source tensor that reads as zeros */
    uint32_t n_homes;         /* source ranks that are tried */
    moec_replicas **replicas; /* [n_homes] */
    uint32_t n_workers;
    moec_l3_worker *workers;
    pthread_mutex_t lock; /* of the progress */
    uint64_t done, total;
    bool cancelled;
} moec_level3;

/* What one side made of a layer's rows. C columns: K routed, S shared. */
typedef struct moec_l3_side {
    moec_moe_facts facts;
    moec_router *router;
    uint32_t cols;
    float *logits;         /* [tokens][n_logits] */
    float *bias;           /* [E + Z], or NULL */
    float *scales;         /* [E], or NULL */
    float *gate;           /* [rows] logits of the shared gate, or NULL */
    float *shared_weights; /* [tokens][n_weighed], or NULL */
    uint32_t n_weighed;    /* shared experts that the router weighs */
    int32_t *table;        /* [vocab][K], or NULL */
    uint32_t vocab;
    float global_scale;
    int32_t *ids;    /* [rows][C] */
    float *weights;  /* [rows][C] */
    float *identity; /* [rows]: sum of the weights of zero experts; or NULL */
    float *y;        /* [rows * C][H] */
    float *routed, *shared, *whole; /* [rows][H]; shared may be NULL */
} moec_l3_side;

/* One local row of one rank. */
typedef struct moec_l3_slot {
    bool read;          /* its bytes were read and digested */
    bool served;        /* its expert ran for some row */
    bool differs;       /* and not to the source's numbers */
    bool reached;       /* some choice sent some row to it */
    bool told;          /* its bytes have a finding */
    moec_xxh128 digest; /* of its rows of all slot tensors */
} moec_l3_slot;

typedef struct moec_l3_layer {
    moec_level3 *v;
    size_t layer; /* planned */
    size_t model_layer[2];
    const moec_layer_slices *slices[2];
    moec_layer_result *result;
    moec_batch batch;
    uint32_t tokens;     /* rows of the batch: routed by the router */
    uint32_t rows;       /* and rows that are sent to experts nobody chose */
    uint32_t first;      /* of the batch, where others have the rest of it */
    uint32_t all_tokens; /* of all processes */
    uint8_t *elsewhere;  /* [experts]: 1 where another process runs it; NULL */
    uint32_t rows_max;
    uint32_t experts, zero, top_k, shared;
    uint32_t width, hidden; /* of the model, and of what experts see */
    uint32_t n_logits;
    moec_topology topo;
    float *x;           /* [rows][hidden] */
    int32_t *token_ids; /* [rows]: hash routing */
    bool guessed;       /* some of them from the reference's experts */
    moec_l3_side side[2];
    /* the converted side */
    int32_t *slots;  /* [rows][C] dispatch slots */
    uint32_t *home;  /* [rows] source rank */
    uint32_t n_rows; /* local rows of a rank: L + S */
    uint64_t slot_bytes;
    moec_l3_slot *slot;    /* [ranks][n_rows] */
    uint32_t *run;         /* columns by slot, rank after rank */
    uint64_t *run_first;   /* [ranks * n_rows + 1] */
    uint32_t *expert_slot; /* [experts + shared]: a slot known to be right */
    bool weights_ok;   /* of both sides, within what a back end is allowed */
    bool *shared_bad;  /* [tokens] */
    float *effective;  /* [tokens][K + n_weighed] weights as they count */
    const char *no_ec; /* why there is no Expert Choice, or NULL */
    double largest;    /* output of the source, absolute */
    moec_rank_traffic traffic; /* of this process */
    bool not_finite;           /* some output of the source is no number */
    bool shared_apart;         /* the shared expert is no slot, but a tensor */
} moec_l3_layer;

/* Read from the source: a moec_read_fn whose ctx is a worker. */
moec_status moec_l3_read_source(void *worker, uint32_t tensor, uint64_t off,
                                void *buf, size_t n, moec_error *err);
/* Read a tensor that the conversion kept as it was: the same, but of the
 * conversion's own files. */
moec_status moec_l3_read_common(void *worker, uint32_t tensor, uint64_t off,
                                void *buf, size_t n, moec_error *err);
moec_status moec_l3_read_file(moec_l3_worker *w, size_t file, uint64_t off,
                              void *buf, size_t n, moec_error *err);
moec_status moec_l3_progress(moec_level3 *v, uint64_t bytes, moec_error *err);

/* `st` of a step that may find a tensor of a kind that no kernel here reads:
 * then the layer is not validated, and the error says so by its rule (K09). An
 * UNSUPPORTED without it is a kernel's that ought to have run: a finding. */
moec_status moec_l3_known(moec_status st, moec_error *err);

/* A finding about the layer. */
moec_finding moec_l3_finding(const moec_l3_layer *l, moec_rule rule,
                             moec_severity severity);
/* The same about a slot of it: file and tensor too. */
moec_finding moec_l3_slot_finding(const moec_l3_layer *l, moec_rule rule,
                                  uint32_t rank, uint32_t row);

/* Router of one side: tensors, logits, ids and weights of the tokens. Both
 * sides take this road, each with its own kernels, model and reader. */
moec_status moec_l3_route(moec_l3_layer *l, int side, moec_error *err);

moec_route_in moec_l3_route_in(const moec_l3_layer *l, int side);
/* `device` NULL: the router's own back end. */
moec_status moec_l3_run_router(moec_device *device, const moec_router *router,
                               const moec_route_in *in, int32_t *ids,
                               float *weights, moec_ec_stats *ec,
                               moec_error *err);
/* Which tokens a table of experts is asked for. hash_tokens.c */
moec_status moec_l3_make_tokens(moec_l3_layer *l, const moec_l3_side *s,
                                moec_error *err);
/* `n` numbers of one side's tensor as float32; *out is the caller's. */
moec_status moec_l3_load_floats(moec_l3_layer *l, int side, uint32_t tensor,
                                uint64_t n, float **out, moec_error *err);
/* out[n][n_out] = one side's matrix [n_out][n_in] times x [n][n_in], plus its
 * bias where that is a tensor. */
typedef struct moec_l3_product {
    uint32_t tensor, bias;
    const float *x;
    uint32_t n;
    uint64_t n_out, n_in;
    float *out;
} moec_l3_product;
moec_status moec_l3_project(moec_l3_layer *l, int side,
                            const moec_l3_product *p, moec_error *err);

/* What the two sides share that is no mapping: rooms for outputs, the rows
 * that experts see, weighted sums, the shared expert as one MLP. forward.c */
moec_status moec_l3_room(moec_l3_layer *l, int side, moec_error *err);
moec_status moec_l3_expert_input(moec_l3_layer *l, int side, float **out,
                                 const float **x, moec_error *err);
moec_status moec_l3_sum(moec_l3_layer *l, int side, const moec_combine_in *in,
                        float *out, moec_error *err);
moec_status moec_l3_shared_apart(moec_l3_layer *l, int side, moec_error *err);
void moec_l3_add_shared(const moec_l3_layer *l, moec_l3_side *s);

/* Experts, shared expert and sums of the source's side. forward.c */
moec_status moec_l3_forward(moec_l3_layer *l, moec_error *err);

/* Rank and local row of dispatch slot `q` of a row at home on `home`. */
void moec_l3_place(const moec_l3_layer *l, uint32_t q, uint32_t home,
                   uint32_t *rank, uint32_t *row);
/* Slots that run: rows of x, and the columns of each slot. */
typedef struct moec_l3_serving {
    moec_l3_layer *l;
    moec_ffn_config ffn;
    const float *x; /* [n_tokens][hidden] */
    uint32_t n_tokens;
    const float *weights;      /* [n_tokens][C], on the input */
    float *y;                  /* [n_tokens * C][hidden] */
    size_t first_slot;         /* slot i below is first_slot + i of the layer */
    const uint32_t *run;       /* columns */
    const uint64_t *run_first; /* [n + 1] */
} moec_l3_serving;
moec_status moec_l3_run_slots(moec_l3_serving *g, size_t n, moec_error *err);
/* Slots, experts and sums of the converted side. serve.c */
moec_status moec_l3_serve(moec_l3_layer *l, moec_error *err);
/* The slots of this process's rank on all processes' rows, and what the other
 * ranks make of ours: l->slots says where to, g->x is sent, y comes back.
 * serve_exchange.c */
moec_status moec_l3_serve_far(moec_l3_serving *g, moec_error *err);

/* Between processes; all of it does nothing in one. kernels_exchange.c
 * _agree: moec_exchange_agree. _share_chosen: which experts others run.
 * _share_slots: digests of all ranks' slots, and a right slot of each expert.
 * _count_all: counters of all processes. _share_result: figures, traffic and
 * digests of the outputs. _share_report: the findings of all processes in the
 * report of each (report_exchange.c). */
moec_status moec_l3_agree(moec_level3 *v, moec_status st, moec_error *err);
moec_status moec_l3_share_chosen(moec_l3_layer *l, moec_error *err);
moec_status moec_l3_share_slots(moec_l3_layer *l, moec_error *err);
moec_status moec_l3_count_all(moec_l3_layer *l, uint32_t *counts, size_t n,
                              moec_error *err);
/* `ranks` [size] is filled where there are several processes. */
moec_status moec_l3_share_result(moec_l3_layer *l, moec_rank_traffic *ranks,
                                 moec_error *err);
moec_status moec_l3_share_report(moec_level3 *v, moec_report **r,
                                 moec_error *err);
/* The map of source rank number `home` of v->replicas. */
void moec_l3_map(const moec_l3_layer *l, moec_replica_rule rule, uint32_t home,
                 uint32_t row0, moec_dispatch_map *out);
/* moec_dispatch with workspace of its own, over rows [n][C]. */
typedef struct moec_l3_rows {
    const int32_t *ids;
    const float *weights;
    uint32_t n, n_valid;
} moec_l3_rows;
moec_status moec_l3_dispatch(const moec_l3_layer *l,
                             const moec_dispatch_map *map,
                             const moec_waterfill *fill,
                             const moec_l3_rows *rows,
                             const moec_dispatch_out *out, moec_error *err);

/* All other choices of slots, against the digests. serve_choice.c */
moec_status moec_l3_choices(moec_l3_layer *l, moec_error *err);
/* Expert Choice of both sides. serve_choice.c */
moec_status moec_l3_expert_choice(moec_l3_layer *l, moec_error *err);

/* Rows of ids [tokens][C of each side] that differ; a finding for all. */
uint32_t moec_l3_compare_ids(moec_l3_layer *l, const int32_t *a,
                             const int32_t *b, const char *what,
                             moec_rule rule);
/* Open what all layers need, and free it: kernels, models, files, replicas,
 * workers. *all_out: every data file is there. kernels_open.c */
moec_status moec_l3_open_kernels(moec_level3 *v, moec_error *err);
moec_status moec_l3_open_models(moec_level3 *v, moec_error *err);
moec_status moec_l3_open_files(moec_level3 *v, bool *all_out, moec_error *err);
moec_status moec_l3_open_workers(moec_level3 *v, moec_error *err);
moec_status moec_l3_open(moec_level3 *v, moec_error *err);
void moec_l3_close(moec_level3 *v);

#define MOEC_LIMITS_MAX 16u

struct moec_validation {
    moec_report *report;
    size_t n_layers;
    moec_layer_result *layers;
    char **why_not; /* [n_layers] */
    size_t n_limits;
    char *limits[MOEC_LIMITS_MAX];
    bool starved;               /* a limit is missing */
    uint32_t n_ranks;           /* of `traffic`; 0: one process */
    moec_rank_traffic *traffic; /* [n_layers][n_ranks] */
    moec_arena arena;           /* texts */
};

/* Say what was not shown (kernels_results.c). Without memory it is not said. */
void moec_validation_add_limit(moec_validation *out, const char *fmt, ...)
    MOEC_PRINTF(2, 3);
/* The same of what is known when all layers have run. */
void moec_validation_say_limits(const moec_level3 *v, moec_validation *out);
/* Findings are counted anew where they are those of all processes. */
void moec_validation_count_errors(moec_validation *v);

/* moec_validate with a mutation: `patches` (may be NULL) change what is read of
 * the conversion's files. */
moec_status moec_validate_patched(moec_validation **out, const char *dir,
                                  const moec_validate_opts *opts,
                                  moec_mutation mutation, moec_patches *patches,
                                  moec_error *err);

/* Ids as findings show them. */
void moec_l3_say_ids(char *buf, size_t n, const int32_t *ids, uint32_t k);
/* A finding with the numbers expected and found, which it borrows from here. */
typedef struct moec_l3_difference {
    moec_finding f;
    char want[32], found[32];
} moec_l3_difference;
void moec_l3_differ(moec_l3_difference *out, moec_finding f, double want,
                    double found);

/* The first of n floats that are not equal bit for bit, or n. Which NaN a sum
 * of NaNs is, is left to each CPU. */
uint64_t moec_l3_first_other(const float *a, const float *b, uint64_t n);
/* Did both routers choose the same for the token, in one order? */
bool moec_l3_same_row(const moec_l3_layer *l, uint32_t token);
/* What a column counts in the output: the weight, and the scale on the sum. */
float moec_l3_effective(const moec_l3_side *s, float weight);

/* Compare the two sides (kernels_compare.c: routing; kernels_outputs.c), then
 * the converted one with the reference (kernels_reference.c). */
moec_status moec_l3_compare_routing(moec_l3_layer *l, moec_error *err);
moec_status moec_l3_compare(moec_l3_layer *l, moec_error *err);
moec_status moec_l3_compare_reference(moec_l3_layer *l, moec_error *err);

#endif
