/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_RECORD_H
#define MOEC_RECORD_H

/*
 * What this is: recorded routes. A recorder that a server's threads append
 *   to, a ring that a captured graph writes and the host drains, the recording
 *   that comes out, its file, its way to and from SGLang's and vLLM's forms,
 *   and replay. Stored are LOGICAL routed ids, before placement, per token and
 *   MoE layer; shared columns and dense layers never.
 * Lifetime: a recorder and a ring are the caller's to destroy; a moec_routes
 *   owns everything it returns pointers to. A ring borrows its recorder and
 *   its memory.
 * Threads: a recorder is safe from any thread, with two duties that are the
 *   caller's: one row is appended by one thread at a time, and retract, gap,
 *   take and stop come after the appends to the same request returned (a lock,
 *   a queue, a join). A moec_routes is immutable: share freely. A ring: begin
 *   and drain by one thread at a time.
 * Errors: ARG (the text says what), NOMEM (the cap of the options too),
 *   FORMAT (a file; rules R01..R03), MAPPING (R02: two recordings or a model
 *   that do not belong together, R05: two that contradict each other),
 *   INTEGRITY (R04: rows are missing, the text says the first one), IO.
 *
 * Shapes: E routed experts, Z zero experts (ids E .. E+Z-1: they give the
 * token itself back, replay needs them, no load counts them), K columns, N MoE
 * layers. A row is what one layer chose for one token: K ids in rank order, -1
 * where fewer were chosen.
 * A row's key is (request, sample, position in the request, layer). Of two
 * rows with one key the later counts.
 */

#include <moec/error.h>
#include <moec/kernels.h>
#include <moec/mapping.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a recording is of. */
typedef struct moec_routes_shape {
    uint32_t struct_bytes; /* sizeof(moec_routes_shape) */
    uint32_t n_experts;    /* E */
    uint32_t n_zero;       /* Z; E + Z from 1 to 4096 */
    uint32_t top_k;        /* K, from 1 to 64 */
    uint32_t n_layers;     /* N, MoE layers */
    uint32_t n_decoder;    /* decoder layers of the model, dense ones included:
                              engines have rows for them; 0: not known */
    const moec_layer_key *keys; /* [N]: main ones ascending, then MTP ones */
    const char *fingerprint;    /* of the model, any text; NULL: none */
} moec_routes_shape;
#define MOEC_ROUTES_SHAPE_INIT                                                 \
  {                                                                            \
    .struct_bytes = sizeof(moec_routes_shape)                                  \
  }

/* Fill *out from a model: its MoE layers and a fingerprint, 64 hex digits over
 * family, sizes and layers. It tells models of other shape apart, not two
 * trainings of one. It goes to `hex` [65], which *out borrows; the keys are to
 * be freed with moec_routes_shape_release. MAPPING (R02) for a model without
 * MoE layers. */
MOEC_API moec_status moec_routes_shape_of(moec_routes_shape *out,
                                          const moec_model *model, char *hex,
                                          moec_error *err);
MOEC_API void moec_routes_shape_release(moec_routes_shape *shape);

/* ------------------------------------------------------------ recording */

typedef struct moec_routes moec_routes;

/* Whose row it is. Request 0 is none: the row is padding and passed over. */
typedef struct moec_route_key {
    uint64_t request; /* of moec_recorder_request */
    uint32_t position;
    uint32_t reserved;
} moec_route_key;

/* Largest position, a limit of ours. */
#define MOEC_ROUTE_POSITION_MAX (UINT32_C(1) << 28)
/* Longest request id in bytes, a limit of ours. */
#define MOEC_ROUTE_ID_BYTES_MAX 512u

typedef struct moec_recorder moec_recorder;

typedef struct moec_recorder_opts {
    uint32_t struct_bytes; /* sizeof(moec_recorder_opts) */
    uint32_t reserved;
    moec_routes_shape shape; /* copied */
    uint64_t max_bytes;      /* cap on what is held; 0: none */
} moec_recorder_opts;
#define MOEC_RECORDER_OPTS_INIT                                                \
  {                                                                            \
    .struct_bytes = sizeof(moec_recorder_opts),                                \
    .shape = MOEC_ROUTES_SHAPE_INIT                                            \
  }

typedef struct moec_recorder_stats {
    uint64_t rows;     /* stored by append so far; replacements count too */
    uint64_t requests; /* held now */
    uint64_t bytes;    /* held now */
} moec_recorder_stats;

/* Start a recorder. */
MOEC_API moec_status moec_recorder_start(moec_recorder **out,
                                         const moec_recorder_opts *opts,
                                         moec_error *err);
/* Free it with all that was not taken. NULL is fine. No call may be under
 * way. */
MOEC_API void moec_recorder_destroy(moec_recorder *r);
MOEC_API moec_recorder_stats moec_recorder_stats_of(const moec_recorder *r);

/* Give the handle, never 0, of sample `sample` of the request with this id:
 * a new one, or that of the request held under it. Valid until taken. The id
 * is UTF-8 of 1 to 512 bytes. */
MOEC_API moec_status moec_recorder_request(moec_recorder *r, const char *id,
                                           uint32_t sample, uint64_t *out,
                                           moec_error *err);

/* Store rows of layer `layer` (its place among the keys): row t is ids[t *
 * stride .. t * stride + K), whose owner is keys[t]. Columns from K on, the
 * shared ones, are not read; stride 0 means K. An id < 0 is "none". All rows
 * are stored or, where the call fails, none: after NOMEM (the cap) take or
 * wait and call again; what is never stored is missed by take. */
MOEC_API moec_status moec_recorder_append(moec_recorder *r, uint32_t layer,
                                          const moec_route_key *keys,
                                          const int32_t *ids, uint64_t stride,
                                          uint64_t n_rows, moec_error *err);

/* Say that positions [first, end) never pass through the model: their prefix
 * was cached. A row appended for one of them all the same counts. */
MOEC_API moec_status moec_recorder_gap(moec_recorder *r, uint64_t request,
                                       uint32_t first, uint32_t end,
                                       moec_error *err);

/* Forget rows and gaps of the request from position `from` on: it was
 * retracted, or drafted tokens were rejected. */
MOEC_API moec_status moec_recorder_retract(moec_recorder *r, uint64_t request,
                                           uint32_t from, moec_error *err);

/* Take the request's rows out as a recording of its own; its handle ends. From
 * position 0 to the last one every position must have a row in every layer or
 * lie in a gap, else INTEGRITY (R04) with the first one missing, and nothing
 * is taken. MTP layers, which do not run on every token, may lack rows: they
 * read as "none". */
MOEC_API moec_status moec_recorder_take(moec_recorder *r, uint64_t request,
                                        moec_routes **out, moec_error *err);

/* Take all requests, in the order of their first moec_recorder_request. The
 * same rules; later calls but destroy are ARG once it succeeded. */
MOEC_API moec_status moec_recorder_stop(moec_recorder *r, moec_routes **out,
                                        moec_error *err);

/* ---------------------------------------------------------- device ring
 * A captured graph has fixed addresses and cannot ask the host. It writes
 * pass n (from 0) into slot n % n_slots:
 *   1. bytes 0..7     sequence, u64: n + 1 once all else of the slot is there
 *                     (device: threadfence_system, then the store)
 *   2. bytes 8..63    not used
 *   3. bytes 64..     ids, i32 [N][max_rows][K]; rows past the pass's own are
 *                     not read
 * and counts n itself, in its own memory. The host calls begin before each
 * launch, which says whose rows the pass has and that its slot is free, and
 * drain whenever it likes. A full ring makes begin wait for the caller's drain:
 * a status, never a lost pass. */

typedef struct moec_record_ring moec_record_ring;

typedef struct moec_record_ring_opts {
    uint32_t struct_bytes; /* sizeof(moec_record_ring_opts) */
    uint32_t n_slots;      /* passes under way at most, from 1 */
    uint32_t max_rows;     /* of a pass, padding included */
    uint32_t reserved;
} moec_record_ring_opts;
#define MOEC_RECORD_RING_OPTS_INIT                                             \
  {                                                                            \
    .struct_bytes = sizeof(moec_record_ring_opts), .n_slots = 8                \
  }

/* Bytes of one slot, a multiple of 64, and of the memory; 0 where they pass
 * 2^63 or opts are no good. */
MOEC_API uint64_t moec_record_ring_slot_bytes(
    const moec_recorder *r, const moec_record_ring_opts *opts);
MOEC_API uint64_t moec_record_ring_bytes(const moec_recorder *r,
                                         const moec_record_ring_opts *opts);

/* Make a ring over `memory` (host memory that the device writes, aligned to
 * 64, of moec_record_ring_bytes), whose sequences are set to 0. */
MOEC_API moec_status moec_record_ring_create(moec_record_ring **out,
                                             moec_recorder *r,
                                             const moec_record_ring_opts *opts,
                                             void *memory, moec_error *err);
MOEC_API void moec_record_ring_destroy(moec_record_ring *ring);

/* Take the next pass's slot; keys[n_rows] are copied. Call once before each
 * launch. LOCKED where all slots are under way: drain, then call again. */
MOEC_API moec_status moec_record_ring_begin(moec_record_ring *ring,
                                            const moec_route_key *keys,
                                            uint32_t n_rows, moec_error *err);

/* Append the passes that are there, in order, to the recorder and free their
 * slots; never waits. *n_out (may be NULL): how many. A pass that the recorder
 * refuses stays and is tried again. INTEGRITY where a slot holds a later pass
 * than its own: the device overran the host. */
MOEC_API moec_status moec_record_ring_drain(moec_record_ring *ring,
                                            uint64_t *n_out, moec_error *err);
/* Passes begun and not drained. 0 before moec_recorder_take of their rows. */
MOEC_API uint64_t moec_record_ring_pending(const moec_record_ring *ring);

/* ----------------------------------------------------------- recordings */

/* Positions [first, end) that no row is of. */
typedef struct moec_route_gap {
    uint32_t first, end;
} moec_route_gap;

/* One sample of one request. */
typedef struct moec_routes_request {
    const char *id;
    uint32_t sample;
    uint32_t reserved;
    uint64_t first_token, n_tokens; /* among the recording's tokens */
    const moec_route_gap *gaps;     /* ascending, apart */
    uint64_t n_gaps;
} moec_routes_request;

MOEC_API void moec_routes_destroy(moec_routes *routes);
MOEC_API const moec_routes_shape *moec_routes_shape_get(const moec_routes *r);
MOEC_API uint64_t moec_routes_n_requests(const moec_routes *r);
MOEC_API moec_routes_request moec_routes_get_request(const moec_routes *r,
                                                     uint64_t i);
MOEC_API uint64_t moec_routes_n_tokens(const moec_routes *r);
/* Positions [n_tokens], ascending within a request. */
MOEC_API const uint32_t *moec_routes_positions(const moec_routes *r);
/* Bytes of a stored id: 1 while E + Z <= 255, else 2. All ones is "none". */
MOEC_API uint32_t moec_routes_width(const moec_routes *r);
/* Stored ids [n_tokens][N][K], in native order. */
MOEC_API const void *moec_routes_data(const moec_routes *r);
/* Write ids of tokens [token, token + n) of one layer as int32 [n][K], -1 for
 * none. Unchecked: the ranges are the caller's. */
MOEC_API void moec_routes_ids(const moec_routes *r, uint64_t token, uint64_t n,
                              uint32_t layer, int32_t *out);
/* counts[N][E] = how often each expert was chosen. Zero experts do not
 * count. */
MOEC_API void moec_routes_counts(const moec_routes *r, uint64_t *counts);

/* Merge recordings of one shape, such as those of data-parallel ranks, by key.
 * Requests in the order of their first appearance. A row that two have must be
 * the same in both (R05); a gap of one is filled by rows of another. */
MOEC_API moec_status moec_routes_merge(moec_routes **out,
                                       const moec_routes *const *in, size_t n,
                                       moec_error *err);

/* ----------------------------------------------------------------- file
 * safetensors, little endian:
 *   1. topk_ids         U8 or U16 [tokens, N, K]; all ones: none
 *   2. position         I32 [tokens], ascending within a request
 *   3. request          I64 [requests + 1]: request i has tokens
 *                       [request[i], request[i + 1])
 *   4. sample           I32 [requests]
 *   5. gap              I64 [gaps, 3]: request, first, end; ascending
 *   6. __metadata__     format "moec.routes/1"; n_experts, n_zero, n_decoder
 *                       (decimal), layers ("3 4 mtp.0"), fingerprint ("" for
 *                       none), request_ids (a JSON array of strings)
 */

/* Read a file, or its bytes in memory. Everything is checked: FORMAT with the
 * rule. `name` is for messages. */
MOEC_API moec_status moec_routes_open(moec_routes **out, const char *path,
                                      moec_error *err);
MOEC_API moec_status moec_routes_parse(moec_routes **out, const void *data,
                                       size_t n, const char *name,
                                       moec_error *err);
/* Write the file: complete under its name, or not at all. Without `replace` a
 * file that is there is ARG. */
MOEC_API moec_status moec_routes_save(const moec_routes *r, const char *path,
                                      int replace, moec_error *err);

/* -------------------------------------------------------------- engines */

typedef struct moec_routes_import_opts {
    uint32_t struct_bytes; /* sizeof(moec_routes_import_opts) */
    uint32_t sample;
    const char *request; /* id where the text has none; NULL: "0" */
    uint64_t start;      /* position of the first row where the text does not
                            say; UINT64_MAX: 0 */
    const moec_placement *placement; /* ids are PHYSICAL, of this placement,
                                        whose first layers are the recorder's;
                                        NULL: logical */
} moec_routes_import_opts;
#define MOEC_ROUTES_IMPORT_OPTS_INIT                                           \
  {                                                                            \
    .struct_bytes = sizeof(moec_routes_import_opts), .start = UINT64_MAX       \
  }

/* Import into a recorder an array [n_rows][L][K], L being the decoder layers
 * (rows of dense ones are passed over) or the main MoE layers. MTP layers stay
 * without rows. Positions before the first row become a gap. `dtype` is U8,
 * U16, I16, I32, U32 or I64; every value is an id: 255 and 65535 are experts
 * here; negative ones are none. FORMAT (R03) for an id that is none. */
MOEC_API moec_status
moec_routes_import_array(moec_recorder *r, const moec_routes_import_opts *opts,
                         const char *name, moec_dtype dtype, const void *data,
                         uint64_t n_rows, uint32_t n_layers, moec_error *err);

/* Import what SGLang answers to `return_routed_experts`: the response, a list
 * of responses (JSON with meta_info.routed_experts), or the bare base64 of
 * int32 [start_len .. seqlen - 1)[decoder layers][K]. start_len is
 * meta_info.routed_experts_start_len, else what prompt_tokens and
 * completion_tokens leave, else opts->start. Samples of one id count up. */
MOEC_API moec_status moec_routes_import_sglang(
    moec_recorder *r, const moec_routes_import_opts *opts, const char *name,
    const void *text, size_t n, moec_error *err);

/* Import vLLM's `routed_experts`: NumPy's .npy of [tokens][layers][K]. */
MOEC_API moec_status moec_routes_import_vllm(
    moec_recorder *r, const moec_routes_import_opts *opts, const char *name,
    const void *data, size_t n, moec_error *err);

/* One request in SGLang's form, as base64, or in vLLM's, as .npy of U8 up to
 * 256 experts and U16 above: malloc'ed bytes, SGLang's with a NUL behind.
 * Rows of dense layers are 0, as theirs are. ARG where n_decoder is not known;
 * MAPPING (R06) for what the form cannot say: a gap behind the first row; for
 * vLLM also a first gap and a missing expert. */
MOEC_API moec_status moec_routes_export_sglang(const moec_routes *r,
                                               uint64_t request, char **out,
                                               size_t *bytes_out,
                                               moec_error *err);
MOEC_API moec_status moec_routes_export_vllm(const moec_routes *r,
                                             uint64_t request, void **out,
                                             size_t *bytes_out,
                                             moec_error *err);

/* --------------------------------------------------------------- replay */

#define MOEC_NO_TOKEN UINT64_MAX

typedef struct moec_replay_stats {
    uint64_t rows;            /* with a recorded row */
    uint64_t rows_differ;     /* the live choice has another SET of experts */
    uint64_t columns_differ;  /* recorded experts that the live choice lacks */
    uint64_t rows_unrecorded; /* chosen live */
    uint32_t first_row;       /* the first that differs; MOEC_NO_ROW */
    int32_t first_recorded, first_live; /* its first expert that the other
                                           lacks; -1: none */
    uint32_t reserved;
} moec_replay_stats;
#define MOEC_NO_ROW UINT32_MAX

/* Bytes of workspace, aligned to 64, for T tokens. */
MOEC_API uint64_t moec_replay_workspace_bytes(const moec_router *router,
                                              uint32_t n_tokens);

/* Route with the recorded ids: row t of `in` gets the ids of token tokens[t]
 * of the recording (MOEC_NO_TOKEN: its own choice), and weights from the live
 * logits. Then compare with what these logits would have chosen. ids and
 * weights as moec_route gives them. ARG where recording and router do not fit;
 * UNSUPPORTED with Expert Choice. */
MOEC_API moec_status moec_replay(const moec_router *router,
                                 const moec_route_in *in,
                                 const moec_routes *routes, uint32_t layer,
                                 const uint64_t *tokens,
                                 const moec_route_out *out,
                                 moec_replay_stats *stats, void *workspace,
                                 uint64_t workspace_bytes, moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
