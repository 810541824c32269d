/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TYPES_H
#define MOEC_TYPES_H

/*
 * What this is: the words everything else is said in: element types, the four
 *   expert id spaces, layer keys, tensors, and the move.
 * Lifetime: plain values.
 * Threads: immutable values: share freely.
 * Errors: the conversions between id spaces are total on their stated ranges
 *   and unchecked outside them; callers check first.
 */

#include <stddef.h>
#include <stdint.h>

#include <moec/version.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------ element types */

/* Every dtype of the safetensors format. Values are ours and pinned (they
 * are stored in slots.bin); names are the format's. */
typedef enum moec_dtype {
    MOEC_DTYPE_NONE = 0,
    MOEC_DTYPE_BOOL = 1,
    MOEC_DTYPE_F4 = 2,
    MOEC_DTYPE_F6_E2M3 = 3,
    MOEC_DTYPE_F6_E3M2 = 4,
    MOEC_DTYPE_U8 = 5,
    MOEC_DTYPE_I8 = 6,
    MOEC_DTYPE_F8_E5M2 = 7,
    MOEC_DTYPE_F8_E4M3 = 8,
    MOEC_DTYPE_F8_E8M0 = 9,
    MOEC_DTYPE_F8_E4M3FNUZ = 10,
    MOEC_DTYPE_F8_E5M2FNUZ = 11,
    MOEC_DTYPE_I16 = 12,
    MOEC_DTYPE_U16 = 13,
    MOEC_DTYPE_F16 = 14,
    MOEC_DTYPE_BF16 = 15,
    MOEC_DTYPE_I32 = 16,
    MOEC_DTYPE_U32 = 17,
    MOEC_DTYPE_F32 = 18,
    MOEC_DTYPE_C64 = 19,
    MOEC_DTYPE_F64 = 20,
    MOEC_DTYPE_I64 = 21,
    MOEC_DTYPE_U64 = 22,
    MOEC_DTYPE_COUNT
} moec_dtype;

/* Return the format's spelling ("BF16"), or "?" for no dtype. */
MOEC_API const char *moec_dtype_name(moec_dtype dtype);

/* Return bits per element (4, 6, 8, ... 64), 0 for no dtype. */
MOEC_API uint32_t moec_dtype_bits(moec_dtype dtype);

/* Return the dtype spelled exactly so (case counts), or MOEC_DTYPE_NONE. */
MOEC_API moec_dtype moec_dtype_parse(const char *name, size_t name_bytes);

/* --------------------------------------------------------- id spaces
 * The four spaces of the placement contract. They are four C types on
 * purpose: mixing them is the classic defect (SGLang PR 25367).
 *   logical   checkpoint ids: routed e in [0,E), shared part s is E + s
 *   physical  routed slots of the whole job, [0,P); rank p/L, local p%L
 *   slot      dispatch ids, [0, P + S*W); rank q/(L+S), local q%(L+S)
 *   local     row of a rank's stacked tensors: 0..L-1 routed and redundant,
 *             L..L+S-1 fused shared parts, shared LAST */
typedef struct moec_logical_id {
    uint32_t v;
} moec_logical_id;
typedef struct moec_physical_id {
    uint32_t v;
} moec_physical_id;
typedef struct moec_slot_id {
    uint32_t v;
} moec_slot_id;
typedef struct moec_local_row {
    uint32_t v;
} moec_local_row;

/* Sizes that the conversions need. P = E + R physical slots (never E where P
 * is meant), W ranks, L = P / W, S fused shared slots per rank. */
typedef struct moec_topology {
    uint32_t n_physical;     /* P */
    uint32_t n_ranks;        /* W */
    uint32_t n_local;        /* L */
    uint32_t n_shared_slots; /* S; 0 where shared experts are not in slots */
    uint32_t shared_global;  /* 1: shared slots numbered once, P .. P+S-1 */
} moec_topology;

static inline uint32_t moec_physical_rank(moec_topology t, moec_physical_id p)
{
    return p.v / t.n_local;
}

static inline moec_local_row moec_physical_local(moec_topology t,
                                                 moec_physical_id p)
{
    moec_local_row r = {p.v % t.n_local};
    return r;
}

static inline moec_physical_id
moec_local_physical(moec_topology t, uint32_t rank, moec_local_row local)
{
    moec_physical_id p = {rank * t.n_local + local.v};
    return p;
}

/* Slot of a routed physical id: q = p + (p / L) * S per rank, p where shared
 * slots are global. */
static inline moec_slot_id moec_physical_slot(moec_topology t,
                                              moec_physical_id p)
{
    moec_slot_id q = {p.v};
    if (!t.shared_global)
        q.v += p.v / t.n_local * t.n_shared_slots;
    return q;
}

/* Slot of shared part s as rank r holds it: r * (L + S) + L + s, or P + s
 * where shared slots are global. */
static inline moec_slot_id moec_shared_slot(moec_topology t, uint32_t rank,
                                            uint32_t part)
{
    moec_slot_id q = {t.n_physical + part};
    if (!t.shared_global)
        q.v = rank * (t.n_local + t.n_shared_slots) + t.n_local + part;
    return q;
}

/* ------------------------------------------------------- layer keys */

typedef enum moec_space { MOEC_SPACE_MAIN = 0, MOEC_SPACE_MTP = 1 } moec_space;

/* `main` 3 and `mtp` 3 are different layers. MTP layers count from 0. */
typedef struct moec_layer_key {
    moec_space space;
    uint32_t number;
} moec_layer_key;

/* Most bytes of a small JSON document: config, family, placement, manifest.
 * Every layer of the library reads one. */
#define MOEC_JSON_BYTES_MAX (UINT64_C(16) << 20)

/* ----------------------------------------------------- shared experts */

/* How the layer's shared expert is weighted: for kernels and for users. */
typedef enum moec_shared_kind {
    MOEC_SHARED_NONE = 0,    /* the family has none */
    MOEC_SHARED_PLAIN = 1,   /* weight by rsf alone */
    MOEC_SHARED_SIGMOID = 2, /* times sigmoid(x . shared_gate) */
    MOEC_SHARED_ROUTER = 3   /* weighted by columns of the router */
} moec_shared_kind;

/* Return the kind as manifest.json and `inspect` spell it: "none", "plain",
 * "sigmoid", "router". Static storage. */
MOEC_API const char *moec_shared_kind_name(moec_shared_kind kind);

/* ---------------------------------------------------------- tensors */

#define MOEC_RANK_MAX       32  /* dimensions of a tensor we accept */
#define MOEC_NAME_BYTES_MAX 512 /* bytes of a tensor's name we accept */

/* One tensor of an opened checkpoint. Pointers are borrowed from it. */
typedef struct moec_tensor {
    const char *name;      /* UTF-8, NUL-terminated, no NUL inside */
    const uint64_t *shape; /* `rank` dimensions, row major */
    uint64_t off;          /* bytes, from the begin of the FILE */
    uint64_t bytes;
    uint32_t file; /* index for moec_ckpt_file */
    uint16_t rank;
    uint8_t dtype; /* moec_dtype */
    uint8_t reserved;
} moec_tensor;

/* ------------------------------------------------------------ moves
 * The one idea that all of libmoec shares. A move copies a 2-D region of
 * n_rows x n_cols elements of `elem_bytes` each:
 *
 *   for r < n_rows, c < n_cols:
 *     dst[dst_off + r*dst_row + c*dst_col] = src[src_off + r*src_row + c*src_col]
 *
 * All offsets and strides are bytes. src_off is relative to the begin of the
 * source tensor's data, dst_off to the begin of the destination BLOCK (one
 * slot of a slot tensor). Swapping the two sides gives the inverse move.
 * `op` says in a word why the strides are as they are; FILL has no source
 * and writes zeros. */
typedef enum moec_op {
    MOEC_OP_COPY = 0,         /* both sides row by row, elements adjacent */
    MOEC_OP_TRANSPOSE = 1,    /* source [in,out], destination [out,in] */
    MOEC_OP_DEINTERLEAVE = 2, /* every second row or element of the source */
    MOEC_OP_FILL = 3,         /* zero bytes: an empty slot */
    MOEC_OP_REQUANTISE = 4    /* the source's values in another format: the
                                 destination is what the strides say, the
                                 source is `tensor` and its scales; no byte
                                 of it is copied (moec_plan_requantises) */
} moec_op;

typedef struct moec_move {
    uint32_t tensor; /* source tensor; UINT32_MAX for FILL */
    uint8_t op;      /* moec_op */
    uint8_t reserved;
    uint16_t elem_bytes;
    uint64_t n_rows, n_cols;
    uint64_t src_off, src_row, src_col;
    uint64_t dst_off, dst_row, dst_col;
} moec_move;

#ifdef __cplusplus
}
#endif
#endif
