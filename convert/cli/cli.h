/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CLI_H
#define MOEC_CLI_H

/*
 * What this is: what every command of moe-convert shares: the exit codes, the
 *   table's row, and the one value a command function gets.
 * Lifetime: everything lives as long as main; a command returns its exit code
 *   and never calls exit().
 * Threads: the command line is one thread; the library has its own.
 * Errors: exit codes. Here the library's public headers and convert/ headers
 *   are included and nothing else of the library.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <moec/moec.h>

#include "options.h"

/* Part of the contract: documented, tested, never reused for another
 * meaning. */
enum {
    MOEC_EXIT_OK = 0,
    MOEC_EXIT_FOUND = 1, /* the check found something */
    MOEC_EXIT_USAGE = 2,
    MOEC_EXIT_INPUT = 3,     /* malformed or unsupported input */
    MOEC_EXIT_SYSTEM = 4,    /* I/O, memory, space: retry may help */
    MOEC_EXIT_INTEGRITY = 5, /* digest or signature, outside verify */
    MOEC_EXIT_LOCKED = 6,
    MOEC_EXIT_UNAVAILABLE = 7,
    MOEC_EXIT_INTERNAL = 70,
    MOEC_EXIT_SIGNAL = 128 /* + the signal's number */
};

typedef struct moec_cli moec_cli;

/* One command. `groups` is its option table. */
typedef struct moec_cli_command {
    const char *name;
    int (*fn)(moec_cli *cli);
    const char *line;     /* what it does, for the list of commands */
    const char *usage;    /* forms without the program's name, one a line */
    const char *about;    /* a paragraph for its --help */
    const char *examples; /* one a line */
    const moec_cli_group *const *groups; /* NULL-terminated */
    size_t min_paths, max_paths;
    uint32_t url_paths; /* bit i: path i may be a URL */
    /* Commands of its own (`placement check`), NULL-terminated: the row then
     * has name, line and about alone. Names of those are "placement check",
     * their JSON "moec.placement/1" with "action": "check". */
    const struct moec_cli_command *const *subs;
} moec_cli_command;

struct moec_cli {
    const moec_cli_command *cmd;
    moec_cli_args args;
    int argc; /* as main got them: provenance.json quotes them */
    char **argv;
};

extern const moec_cli_command moec_cmd_check;
extern const moec_cli_command moec_cmd_finalize;
extern const moec_cli_command moec_cmd_inspect;
extern const moec_cli_command moec_cmd_load;
extern const moec_cli_command moec_cmd_upload;
extern const moec_cli_command moec_cmd_plan;
extern const moec_cli_command moec_cmd_convert;
extern const moec_cli_command moec_cmd_validate;
extern const moec_cli_command moec_cmd_verify;
extern const moec_cli_command moec_cmd_unconvert;
extern const moec_cli_command moec_cmd_diff;
extern const moec_cli_command moec_cmd_explain;
extern const moec_cli_command moec_cmd_selftest;
extern const moec_cli_command moec_cmd_routes;
extern const moec_cli_command moec_cmd_stats;
extern const moec_cli_command moec_cmd_sign;
extern const moec_cli_command moec_cmd_verify_signature;
extern const moec_cli_command moec_cmd_place;
extern const moec_cli_command moec_cmd_placement;
extern const moec_cli_command moec_cmd_placement_check;
extern const moec_cli_command moec_cmd_placement_export;
extern const moec_cli_command moec_cmd_placement_import;
extern const moec_cli_command moec_cmd_placement_show;
extern const moec_cli_command moec_cmd_placement_eplb;

/* The path argument `i`, or NULL. */
static inline const char *moec_cli_path(const moec_cli *cli, size_t i)
{
    return i < cli->args.n_paths ? cli->args.paths[i] : NULL;
}

#endif
