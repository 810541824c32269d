/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of manifest.json: read it from the end upwards.
 */

#include "manifest_fields.h"

/* clang-format off */
#define TABLE(fields) {fields, sizeof(fields) / sizeof((fields)[0])}
#define PLAIN(key, kind, type, member) \
    {key, kind, 0, offsetof(type, member), 0, NULL, NULL, 0, 0}
#define FLAGS(key, kind, flags, type, member) \
    {key, kind, flags, offsetof(type, member), 0, NULL, NULL, 0, 0}
#define NUMBER(key, kind, min, type, member) \
    {key, kind, 0, offsetof(type, member), min, NULL, NULL, 0, 0}
#define WORD(key, words, member) \
    {key, MOEC_MF_WORD, 0, offsetof(M, member), 0, words, NULL, 0, 0}
#define OBJECT(key, sub, off) \
    {key, MOEC_MF_OBJECT, 0, off, 0, NULL, &(sub), 0, 0}
#define OBJECTS(key, sub, count, member) \
    {key, MOEC_MF_OBJECTS, 0, offsetof(M, member), 0, NULL, &(sub), \
     offsetof(M, count), sizeof(*((M *)0)->member)}
/* clang-format on */

#define M moec_manifest

static const moec_mf_field mf_source_fields[] = {
    PLAIN("name", MOEC_MF_NAME, moec_mf_source, name),
    PLAIN("bytes", MOEC_MF_U64, moec_mf_source, bytes),
    PLAIN("header_bytes", MOEC_MF_U64, moec_mf_source, header_bytes),
    PLAIN("header_sha256", MOEC_MF_SHA256, moec_mf_source, header_sha256),
    FLAGS("etag", MOEC_MF_TEXT, MOEC_MF_ABSENT_OK, moec_mf_source, etag),
    FLAGS("sha256", MOEC_MF_TEXT, MOEC_MF_ABSENT_OK, moec_mf_source, sha256),
};
static const moec_mf_table mf_source = TABLE(mf_source_fields);

static const moec_mf_field mf_layer_fields[] = {
    PLAIN("space", MOEC_MF_SPACE, moec_mf_layer, key.space),
    PLAIN("number", MOEC_MF_U32, moec_mf_layer, key.number),
    PLAIN("source_number", MOEC_MF_U32, moec_mf_layer, source_number),
};
static const moec_mf_table mf_layer = TABLE(mf_layer_fields);

static const char *const projections[] = {"gate", "up", "down", NULL};
static const moec_mf_field mf_lossy_fields[] = {
    PLAIN("space", MOEC_MF_SPACE, moec_mf_lossy, key.space),
    PLAIN("number", MOEC_MF_U32, moec_mf_lossy, key.number),
    {"projection", MOEC_MF_WORD, 0, offsetof(moec_mf_lossy, projection), 0,
     projections, NULL, 0, 0},
    PLAIN("max_abs", MOEC_MF_REAL, moec_mf_lossy, max_abs),
    PLAIN("relative_rms", MOEC_MF_REAL, moec_mf_lossy, relative_rms),
};
static const moec_mf_table mf_lossy = TABLE(mf_lossy_fields);

static const moec_mf_field mf_file_fields[] = {
    PLAIN("name", MOEC_MF_NAME, moec_mf_file, name),
    PLAIN("bytes", MOEC_MF_U64, moec_mf_file, bytes),
    PLAIN("tree_sha256", MOEC_MF_SHA256, moec_mf_file, tree_sha256),
};
static const moec_mf_table mf_file = TABLE(mf_file_fields);

static const moec_mf_field mf_copied_fields[] = {
    PLAIN("name", MOEC_MF_NAME, moec_mf_copied, name),
    PLAIN("bytes", MOEC_MF_U64, moec_mf_copied, bytes),
    PLAIN("sha256", MOEC_MF_SHA256, moec_mf_copied, sha256),
};
static const moec_mf_table mf_copied = TABLE(mf_copied_fields);

/* slots.bin and sources.bin: under "file", to say that it is one of OUT. */
static const moec_mf_field own_file_fields[] = {
    PLAIN("file", MOEC_MF_NAME, moec_mf_copied, name),
    PLAIN("bytes", MOEC_MF_U64, moec_mf_copied, bytes),
    PLAIN("sha256", MOEC_MF_SHA256, moec_mf_copied, sha256),
};
static const moec_mf_table own_file = TABLE(own_file_fields);

static const moec_mf_field source_fields[] = {
    OBJECTS("files", mf_source, n_sources, sources),
    FLAGS("index", MOEC_MF_NAME, MOEC_MF_NULL_OK, M, index_name),
};
static const moec_mf_table source = TABLE(source_fields);

static const char *const shared_kinds[] = {"none", "plain", "sigmoid", "router",
                                           NULL};
static const moec_mf_field model_fields[] = {
    PLAIN("family", MOEC_MF_TEXT, M, family),
    PLAIN("model_type", MOEC_MF_TEXT, M, model_type),
    NUMBER("n_routed_experts", MOEC_MF_U32, 1, M, n_experts),
    PLAIN("n_shared_experts", MOEC_MF_U32, M, n_shared),
    NUMBER("top_k", MOEC_MF_U32, 1, M, top_k),
    NUMBER("hidden_size", MOEC_MF_U64, 1, M, hidden),
    NUMBER("moe_intermediate_size", MOEC_MF_U64, 1, M, inter),
    PLAIN("shared_width", MOEC_MF_U64, M, shared_width),
    PLAIN("n_layers", MOEC_MF_U32, M, n_layers),
    PLAIN("n_group", MOEC_MF_U32, M, n_group),
    PLAIN("topk_group", MOEC_MF_U32, M, topk_group),
    PLAIN("routed_scaling_factor", MOEC_MF_REAL, M, routed_scale),
    PLAIN("norm_topk_prob", MOEC_MF_TRISTATE, M, norm_topk),
    PLAIN("score", MOEC_MF_TEXT, M, score),
    PLAIN("activation", MOEC_MF_TEXT, M, activation),
    WORD("shared_kind", shared_kinds, shared_kind),
    PLAIN("expert_dtype", MOEC_MF_DTYPE, M, expert_dtype),
    OBJECTS("layers", mf_layer, n_mf_layers, layers),
    FLAGS("family_description", MOEC_MF_TEXT, MOEC_MF_NULL_OK, M, family_text),
};
static const moec_mf_table model = TABLE(model_fields);

static const char *const shared_numberings[] = {"per-rank", "global", "none",
                                                NULL};
static const char *const shared_stores[] = {"rank", "common", NULL};
static const char *const shard_bys[] = {"rank", "expert", NULL};
static const moec_mf_field topology_fields[] = {
    NUMBER("ranks", MOEC_MF_U32, 1, M, n_ranks),
    PLAIN("redundant", MOEC_MF_U32, M, n_redundant),
    NUMBER("physical_slots", MOEC_MF_U32, 1, M, n_physical),
    NUMBER("local_slots", MOEC_MF_U32, 1, M, n_local),
    PLAIN("shared_slots", MOEC_MF_U32, M, n_shared_slots),
    WORD("shared_numbering", shared_numberings, shared_slots),
    WORD("shared_store", shared_stores, shared_store),
    WORD("shard_by", shard_bys, shard_by),
};
static const moec_mf_table topology = TABLE(topology_fields);

static const moec_mf_field placement_fields[] = {
    PLAIN("sha256", MOEC_MF_SHA256, M, placement_sha256),
    PLAIN("kind", MOEC_MF_TRIVIAL, M, p2l),
    FLAGS("physical_to_logical", MOEC_MF_ROWS, MOEC_MF_ABSENT_OK, M, p2l),
};
static const moec_mf_table placement = TABLE(placement_fields);

static const char *const w13_orders[] = {"gate-up", "up-gate", NULL};
static const char *const requantizes[] = {"shared", NULL};
static const moec_mf_field options_fields[] = {
    WORD("w13_order", w13_orders, w13_order),
    PLAIN("mtp", MOEC_MF_BOOL, M, mtp),
    PLAIN("allow_empty", MOEC_MF_BOOL, M, allow_empty),
    PLAIN("max_part_bytes", MOEC_MF_U64, M, max_part_bytes),
    {"requantize", MOEC_MF_WORD, MOEC_MF_ABSENT_OK, offsetof(M, requantize), 0,
     requantizes, NULL, 0, 0},
};
static const moec_mf_table options = TABLE(options_fields);

/* Rows of the placement are read when model and topology are known. */
static const moec_mf_field manifest_fields[] = {
    {"schema", MOEC_MF_SCHEMA, 0, 0, 0, NULL, NULL, 0, 0},
    PLAIN("format_version", MOEC_MF_VERSION, M, format_version),
    OBJECT("source", source, 0),
    OBJECT("model", model, 0),
    OBJECT("topology", topology, 0),
    OBJECT("options", options, 0),
    OBJECT("placement", placement, 0),
    OBJECTS("files", mf_file, n_files, files),
    OBJECTS("copied", mf_copied, n_copied, copied),
    OBJECT("slots", own_file, offsetof(M, slots_file)),
    OBJECT("sources", own_file, offsetof(M, sources_file)),
    {"transforms", MOEC_MF_TEXTS, 0, offsetof(M, transforms), 0, NULL, NULL,
     offsetof(M, n_transforms), sizeof(char *)},
    {"requantised", MOEC_MF_OBJECTS, MOEC_MF_ABSENT_OK, offsetof(M, lossy), 0,
     NULL, &mf_lossy, offsetof(M, n_lossy), sizeof(moec_mf_lossy)},
};
const moec_mf_table moec_mf_manifest = TABLE(manifest_fields);

const char *const moec_mf_spaces[] = {"main", "mtp", NULL};
