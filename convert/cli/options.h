/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_OPTIONS_H
#define MOEC_OPTIONS_H

/*
 * What this is: options as data. One table row per option; getopt_long's
 *   input, the defaults in force and the help text all come from the row, so
 *   that they cannot disagree. Groups are defined once and listed by the
 *   commands that take them.
 * Lifetime: strings in moec_cli_args point into argv.
 * Threads: one thread at a time (getopt has global state).
 * Errors: usage errors as a sentence in the caller's buffer.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Values of the choices. 0 is "not said" where the row has no default. */
enum { MOEC_CHOICE_STORE_RANK = 1, MOEC_CHOICE_STORE_COMMON };
enum { MOEC_CHOICE_BY_RANK = 1, MOEC_CHOICE_BY_EXPERT };
enum { MOEC_CHOICE_GATE_UP = 1, MOEC_CHOICE_UP_GATE };
enum { MOEC_CHOICE_PER_RANK = 1, MOEC_CHOICE_GLOBAL, MOEC_CHOICE_NONE };
enum { MOEC_CHOICE_F32 = 1, MOEC_CHOICE_F64 };
enum { MOEC_CHOICE_STABLE = 1, MOEC_CHOICE_INTROSORT };
enum { MOEC_CHOICE_PLANNER_EPLB = 1, MOEC_CHOICE_PLANNER_MOEC };
enum {
    MOEC_CHOICE_TEXT = 1,
    MOEC_CHOICE_JSON,
    MOEC_CHOICE_SARIF,
    MOEC_CHOICE_JUNIT,
    MOEC_CHOICE_GITHUB,
    MOEC_CHOICE_MARKDOWN,
    MOEC_CHOICE_PROMETHEUS
};
enum { MOEC_CHOICE_ENGINE_SGLANG = 1, MOEC_CHOICE_ENGINE_VLLM };
enum {
    MOEC_CHOICE_REPLICA_STATIC = 1,
    MOEC_CHOICE_REPLICA_DYNAMIC,
    MOEC_CHOICE_REPLICA_ROW,
    MOEC_CHOICE_REPLICA_NEAREST
};
enum { MOEC_CHOICE_VLLM_LINEAR = 1, MOEC_CHOICE_VLLM_ROUND_ROBIN };
enum { MOEC_CHOICE_VERIFY_NONE = 1, MOEC_CHOICE_XXH3, MOEC_CHOICE_SHA256 };
enum { MOEC_CHOICE_DEVICE_CPU = 1, MOEC_CHOICE_DEVICE_CUDA };
enum { MOEC_CHOICE_GDS_OFF = 1, MOEC_CHOICE_GDS_AUTO, MOEC_CHOICE_GDS_ON };
enum { MOEC_CHOICE_HEADERS = 1, MOEC_CHOICE_DIGESTS, MOEC_CHOICE_KERNELS };
enum {
    MOEC_CHOICE_PROGRESS_AUTO = 1,
    MOEC_CHOICE_PROGRESS_BAR,
    MOEC_CHOICE_PROGRESS_PLAIN,
    MOEC_CHOICE_PROGRESS_JSON,
    MOEC_CHOICE_PROGRESS_NONE
};

/* Words of an option that may be said several times. */
#define MOEC_CLI_LIST_MAX 64
typedef struct moec_cli_list {
    const char *words[MOEC_CLI_LIST_MAX];
    size_t n;
} moec_cli_list;

/* What the command line said. One struct for all commands: a command reads
 * the fields whose options its table lists. In the order of what belongs
 * together: there is one of it.
 * NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding) */
typedef struct moec_cli_args {
    /* topology */
    uint32_t ep, redundant;
    const char *placement, *family, *ranks;
    const char *logical_count, *from;
    uint32_t nodes, groups, eplb_accum, eplb_ties, planner, max_moves;
    uint32_t shared_store, shared_slots, w13_order, shard_by;
    uint64_t max_part_bytes;
    uint64_t part_bytes;
    bool no_mtp, allow_empty, requantize_shared;
    /* common */
    bool json, quiet, strict, help;
    uint32_t verbose, threads, progress;
    uint64_t memory;
    /* commands that write */
    bool dry_run, force, no_direct, hash_source;
    /* one command's own */
    bool list_families, list_rules;
    const char *source, *layer, *expert;
    const char *golden, *inputs, *out;
    const char *moe_layers, *html;
    const char *request, *logits, *placement_after, *counts_out;
    uint32_t start, sample, batch, replica, engine;
    bool waterfill;
    uint32_t experts, strategy, form, shared;
    bool npy;
    uint32_t tokens, seed;
    uint32_t format, level, device, cpu;
    const char *vectors;
    const char *plugin;
    moec_cli_list mutate, matrix, reports;
    const char *policy, *baseline;
    /* load */
    uint32_t rank, tp, tp_rank, verify, gds;
    const char *layers, *require_signature, *cufile;
    bool with_common;
    /* signatures */
    const char *sign, *key, *certificate, *signature;
    moec_cli_list chain, ignore;
    bool ignore_unsigned;
    bool no_sandbox;
    bool mpi;
    /* the rest */
    const char **paths;
    size_t n_paths;
    uint64_t given; /* bit i: row i of the command's options was said */
} moec_cli_args;

typedef enum moec_cli_kind {
    MOEC_KIND_FLAG,  /* bool, no argument */
    MOEC_KIND_COUNT, /* uint32_t, one more each time */
    MOEC_KIND_U32,   /* uint32_t, decimal digits only */
    MOEC_KIND_SIZE,  /* uint64_t bytes >= 1, with KiB, MiB, GiB or TiB */
    MOEC_KIND_TEXT,  /* const char * */
    MOEC_KIND_LIST,  /* moec_cli_list, one more each time */
    MOEC_KIND_CHOICE /* uint32_t: 1 + place among the words of `arg` */
} moec_cli_kind;

typedef struct moec_cli_opt {
    const char *name; /* long name */
    char letter;      /* or 0 */
    moec_cli_kind kind;
    size_t field;    /* offset within moec_cli_args */
    const char *arg; /* "W", "rank|common"; NULL for flags */
    const char *help;
    const char *def;  /* default as a user would write it: it is parsed */
    const char *note; /* shown as the default where `def` is NULL; or NULL */
    uint32_t max;     /* of a U32; 0: no limit but the type's */
} moec_cli_opt;

typedef struct moec_cli_group {
    const char *title;
    const moec_cli_opt *opts;
    size_t n;
} moec_cli_group;

extern const moec_cli_group moec_group_topology;
/* --ep, --redundant, --logical-count and how to balance: rows of the topology
 * for commands that take no more of it. */
extern const moec_cli_group moec_group_balance;
extern const moec_cli_group moec_group_report; /* ci_report.h writes them */
extern const moec_cli_group moec_group_write;
extern const moec_cli_group moec_group_common;
extern const moec_cli_opt moec_opt_family;

/* The words of --format. */
#define MOEC_CLI_FORMATS   "text|json|sarif|junit|github|markdown|prometheus"

#define MOEC_OPT_WHY_BYTES 512

/* Parse argv[1..argc) (argv[0] is the command) by the NULL-terminated
 * `groups`. False on a usage error, with the sentence in `why`. On success
 * args->paths is the caller's to free. `args` is usable for --json either
 * way. */
bool moec_cli_parse(moec_cli_args *args, const moec_cli_group *const *groups,
                    int argc, char **argv, char why[MOEC_OPT_WHY_BYTES]);

/* True where the option with this long name was on the command line. */
bool moec_cli_given(const moec_cli_args *args,
                    const moec_cli_group *const *groups, const char *name);

/* Print the options of `groups` with their defaults. */
void moec_cli_print_options(FILE *f, const moec_cli_group *const *groups);

/* Print `text` folded at 80 columns, `indent` spaces in front of every line
 * but the first, which is at column `at` already. */
void moec_cli_print_folded(FILE *f, const char *text, size_t at, size_t indent);

/* 1 + place of `word` among the words of "a|b|c", 0 where it is none. */
uint32_t moec_cli_parse_choice(const char *choices, const char *word);

/* How far apart two words are: insertions, deletions, substitutions and
 * swapped neighbours. For did-you-mean. */
size_t moec_cli_distance(const char *a, const char *b);

/* True where `distance` is near enough for `word` to be worth a hint. */
bool moec_cli_is_near(const char *word, size_t distance);

/* Strict decimal integer: digits only, at most `max`. */
bool moec_cli_parse_u64(const char *s, uint64_t max, uint64_t *out);

#endif
