/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONVERTED_H
#define MOEC_CONVERTED_H

/*
 * What this is: the three files that make a directory a converted checkpoint,
 *   read and written here and nowhere else: manifest.json, slots.bin and
 *   sources.bin. manifest.c, slots_file.c, sources_file.c.
 * Lifetime: decoded objects own their memory until _fini.
 * Errors: FORMAT (M01..M04), IO, NOMEM.
 */

#include <moec/loader.h>

#include "base/base.h"
#include "io.h"

#define MOEC_MANIFEST_NAME   "manifest.json"
#define MOEC_SLOTS_NAME      "slots.bin"
#define MOEC_SOURCES_NAME    "sources.bin"
#define MOEC_PROVENANCE_NAME "provenance.json"
#define MOEC_INDEX_NAME      "model.safetensors.index.json"
#define MOEC_LEAF_BYTES      (UINT64_C(1) << 20)
/* Longest file name: what Linux file systems take. */
#define MOEC_FILE_NAME_BYTES_MAX 255u

/* True where `s` can name a file in the directory itself and nowhere else:
 * 1 to 255 bytes of UTF-8 without '/' and NUL, and neither "." nor "..". */
bool moec_plain_name(const char *s, size_t n);

/* ---------------------------------------------------------- slots.bin
 * Everything little endian, every table at a multiple of 8:
 *   1. 64 bytes: magic "MOECSLT\1", u32 version 1, u32 0, u64 n_files,
 *      u64 n_tensors, u64 n_slots, u64 n_leaves, u64 names_bytes, u64 0
 *   2. n_files x 96: u64 name_off, u32 name_bytes, u32 0, u64 bytes,
 *      u64 header_bytes, 32 header_sha256, 32 tree_sha256
 *   3. n_tensors x 64: u64 name_off, u32 name_bytes, u32 file, u8 kind,
 *      u8 dtype, u8 space, u8 0, u32 layer, u32 rank, u32 n_slots,
 *      u64 off, u64 bytes, u64 first_slot, u64 0
 *   4. n_slots x 48: i32 logical, u32 n_leaves, u64 first_leaf, 32 sha256
 *   5. n_leaves x 48: 32 sha256, 16 xxh3-128
 *   6. names_bytes of UTF-8, padded with zeros to a multiple of 8
 * and nothing behind. One table has one encoding:
 *   - tensors stand by (file, offset) and tile each file from header_bytes to
 *     its end;
 *   - slots stand in the order of their tensors, none is left over
 *     (first_slot of a pad is not used);
 *   - leaves may be shared: a slot names ceil(slot bytes / 1 MiB) of them;
 *   - names stand in the order of tables 2 and 3, without gaps, each written
 *     as often as it is used, without NUL. */

enum {
    MOEC_CT_SLOTS = 0,  /* layer and rank are valid; n_slots rows */
    MOEC_CT_COMMON = 1, /* a source tensor unchanged; n_slots is 1 */
    MOEC_CT_PAD = 2     /* zeros; n_slots is 0 */
};

#define MOEC_LOGICAL_EMPTY (-1) /* an empty slot: zeros */
#define MOEC_LOGICAL_NONE  (-2) /* the one "slot" of a common tensor */

typedef struct moec_ct_file {
    const char *name; /* NUL-terminated once decoded */
    uint64_t bytes, header_bytes;
    moec_sha256 header_sha256; /* of the first header_bytes */
    moec_sha256 tree_sha256; /* over header_sha256, then each leaf's SHA-256 of
                                each slot of each tensor, in file order */
} moec_ct_file;

typedef struct moec_ct_tensor {
    const char *name;
    uint32_t file;
    uint8_t kind, dtype, space;
    uint32_t layer; /* number within the space */
    uint32_t rank;  /* EP rank; 0 where kind is not SLOTS */
    uint32_t n_slots;
    uint64_t off; /* from the begin of the file */
    uint64_t bytes;
    uint64_t first_slot;
} moec_ct_tensor;

typedef struct moec_ct_slot {
    int32_t logical; /* 0..E-1 routed, E+s shared part, or MOEC_LOGICAL_* */
    uint32_t n_leaves;
    uint64_t first_leaf; /* replicas share their leaves */
    moec_sha256 sha256;  /* over the leaves' SHA-256, in order */
} moec_ct_slot;

typedef struct moec_leaf {
    moec_sha256 sha256;
    moec_xxh128 xxh128;
} moec_leaf;

typedef struct moec_slots {
    size_t n_files, n_tensors, n_slots, n_leaves;
    moec_ct_file *files;
    moec_ct_tensor *tensors;
    moec_ct_slot *slots;
    moec_leaf *leaves;
    moec_arena arena; /* decoded names; unused when encoding */
} moec_slots;

/* Append the encoding of `s` to `out`. */
moec_status moec_slots_encode(const moec_slots *s, moec_buf *out,
                              moec_error *err);
/* Decode `n` bytes; every count, offset and index is checked (M03): a decoded
 * table needs no further checks before it is followed. */
moec_status moec_slots_decode(moec_slots *out, const void *data, size_t n,
                              moec_error *err);
void moec_slots_fini(moec_slots *s);
/* Find the row of table 4 whose bytes begin at `off` of file `file`. False
 * where none does, or only ones of no bytes. */
bool moec_slots_find(const moec_slots *s, size_t file, uint64_t off,
                     uint64_t *slot_out);

/* -------------------------------------------------------- sources.bin
 * Little endian:
 *   1. 32 bytes: magic "MOECSRC\1", u32 version 1, u32 n_entries, u64 0, u64 0
 *   2. n_entries x 72: u32 kind, u32 name_bytes, u64 name_off (from the begin
 *      of the file), u64 data_off, u64 data_bytes, u64 file_bytes,
 *      32 sha256 of the data
 *   3. of each entry its name, then its data, without gaps, to the end of the
 *      file; file_bytes of other entries than shards is their data_bytes */

enum {
    MOEC_SRC_SHARD = 0, /* data: the shard's first 8 + N bytes; file_bytes:
                           size of the whole shard */
    MOEC_SRC_INDEX = 1, /* data: the index file */
    MOEC_SRC_FILE = 2   /* data: a source file whose name OUT uses itself */
};

typedef struct moec_source_entry {
    uint32_t kind;
    const char *name;
    const void *data;
    uint64_t data_bytes, file_bytes;
    moec_sha256 sha256; /* of the data: set by decode, ignored by encode */
} moec_source_entry;

typedef struct moec_sources {
    size_t n_entries;
    moec_source_entry *entries;
    moec_arena arena; /* decoded names; data points into the caller's bytes */
} moec_sources;

moec_status moec_sources_encode(const moec_sources *s, moec_buf *out,
                                moec_error *err);
/* Decode; data digests are checked (M04). `data` must outlive `out`. */
moec_status moec_sources_decode(moec_sources *out, const void *data, size_t n,
                                moec_error *err);
void moec_sources_fini(moec_sources *s);

/* ------------------------------------------------------ manifest.json */

typedef struct moec_mf_file { /* an output data file */
    const char *name;
    uint64_t bytes;
    moec_sha256 tree_sha256;
} moec_mf_file;

typedef struct moec_mf_copied { /* a source file copied byte for byte */
    const char *name;
    uint64_t bytes;
    moec_sha256 sha256;
} moec_mf_copied;

typedef struct moec_mf_source { /* a source shard */
    const char *name;
    uint64_t bytes, header_bytes;
    moec_sha256 header_sha256;
    const char *etag;   /* NULL where not known */
    const char *sha256; /* of the whole shard, 64 hex digits; NULL: not asked */
} moec_mf_source;

typedef struct moec_mf_layer {
    moec_layer_key key;
    uint32_t source_number;
} moec_mf_layer;

/* What requantising the shared expert lost, in one projection of a layer. */
typedef struct moec_mf_lossy {
    moec_layer_key key;
    const char *projection; /* "gate", "up", "down" */
    double max_abs;         /* largest difference */
    double relative_rms;    /* root mean square of it by that of the values */
} moec_mf_lossy;

/* Options that change bytes, and no others. */
typedef struct moec_manifest {
    uint32_t format_version;
    /* model */
    const char *family, *model_type, *score, *activation;
    uint32_t n_experts, n_shared, top_k, n_layers;
    uint64_t hidden, inter, shared_width;
    uint32_t n_group, topk_group;
    double routed_scale;
    int norm_topk;
    const char *shared_kind; /* "none", "plain", "sigmoid", "router" */
    moec_dtype expert_dtype;
    const char *family_text; /* description given with --family, or NULL */
    /* topology */
    uint32_t n_ranks, n_redundant, n_physical, n_local, n_shared_slots;
    const char *shared_slots; /* "per-rank", "global", "none" */
    const char *shared_store; /* "rank", "common" */
    const char *shard_by;     /* "rank", "expert" */
    /* options */
    const char *w13_order; /* "gate-up", "up-gate" */
    bool mtp, allow_empty;
    uint64_t max_part_bytes;
    const char *requantize; /* "shared", or NULL */
    /* placement: rows [n_mf_layers][n_physical], or NULL where trivial */
    moec_sha256 placement_sha256;
    const int32_t *p2l;
    size_t n_mf_layers;
    const moec_mf_layer *layers;
    /* files */
    size_t n_sources, n_files, n_copied;
    const moec_mf_source *sources;
    const char *index_name; /* of the source's index, or NULL */
    const moec_mf_file *files;
    const moec_mf_copied *copied;
    moec_mf_copied slots_file, sources_file;
    /* what was done to tensors other than copying, one line each, such as
     * "model.layers.0.mlp.experts.w13_weight: transpose" */
    size_t n_transforms;
    const char *const *transforms;
    size_t n_lossy;
    const moec_mf_lossy *lossy; /* NULL without requantize */
    moec_arena arena;           /* decoded; unused when encoding */
} moec_manifest;

/* Write manifest.json as text: schema "moec.manifest/1", keys in one fixed
 * order, two-space indentation, one line per file and per placement row. */
moec_status moec_manifest_encode(const moec_manifest *m, moec_buf *out,
                                 moec_error *err);
moec_status moec_manifest_decode(moec_manifest *out, const char *text, size_t n,
                                 moec_error *err);
void moec_manifest_fini(moec_manifest *m);

/* ------------------------------------------------- the three together */

typedef struct moec_converted {
    char *dir;                  /* path, or the name of the caller's source */
    int dirfd;                  /* -1: behind `remote` */
    struct moec_remote *remote; /* NULL: a directory */
    moec_manifest manifest;
    moec_sha256 manifest_sha256; /* of the very bytes that were decoded */
    uint64_t manifest_bytes;
    moec_slots slots;
    moec_sources sources;
    moec_buf slots_bytes, sources_bytes;
} moec_converted;

/* Read manifest.json, slots.bin and sources.bin of `dir`, each checked against
 * the manifest's digests. */
moec_status moec_converted_open(moec_converted *out, const char *dir,
                                moec_error *err);
void moec_converted_close(moec_converted *c);

/* The same of a conversion under way, whose manifest has the name `manifest`
 * and knows no digests yet: there is no slots.bin to read. */
moec_status moec_converted_open_begun(moec_converted *out, const char *dir,
                                      const char *manifest, moec_error *err);

/* Either of a caller's source, which is copied but for ctx; `begun` is a
 * manifest's name or NULL. */
moec_status moec_converted_open_source(moec_converted *out,
                                       const moec_store *store,
                                       const char *begun, moec_error *err);

/* Open file `name`: IO with os_errno ENOENT where it is absent. Behind a source
 * the descriptor has all of a small file, and of a data file its header. */
moec_status moec_converted_file(const moec_converted *c, const char *name,
                                int *fd_out, uint64_t *bytes_out,
                                moec_error *err);
/* The same of a data file: FORMAT (M05) where it is absent. */
moec_status moec_converted_data(const moec_converted *c, const char *name,
                                int *fd_out, uint64_t *bytes_out,
                                moec_error *err);
/* A small file that the manifest has size and digest of, into the empty `out`.
 * `rule` names the refusal: FORMAT where it is absent, INTEGRITY where its
 * bytes are others. */
moec_status moec_converted_copied(const moec_converted *c,
                                  const moec_mf_copied *f, moec_rule rule,
                                  moec_buf *out, moec_error *err);
/* Append all of file `name`, which has at most `max` bytes (I04). */
moec_status moec_converted_load(const moec_converted *c, const char *name,
                                uint64_t max, moec_buf *out, moec_error *err);
/* Open data file `name` for bulk reading; out->fd is the caller's to close. */
moec_status moec_converted_io(const moec_converted *c, const char *name,
                              bool no_direct, moec_io_file *out,
                              moec_error *err);
/* File `name` behind a source; NULL where there is none. */
const moec_store_file *moec_converted_behind(const moec_converted *c,
                                             const char *name);
/* Read bytes of file `name` behind a source. */
moec_status moec_converted_read(const moec_converted *c, const char *name,
                                uint64_t off, void *buf, size_t n,
                                moec_error *err);
/* Fail with I13 where file `name` behind a source is another one now. */
moec_status moec_converted_check(const moec_converted *c, const char *name,
                                 uint64_t *bytes_out, moec_error *err);

#endif
