/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PRINT_H
#define MOEC_PRINT_H

/*
 * What this is: everything moe-convert prints. stdout is data, stderr is
 *   talk. Lines of text with control characters escaped; one JSON document,
 *   written as it comes; errors, findings and notes in both forms; the exit
 *   code of a status.
 * Lifetime: a JSON writer borrows its FILE.
 * Threads: one thread at a time.
 * Errors: a failed write stays in the FILE's error flag; main looks at it
 *   once, at the end (moec_cli_flush).
 */

#include <stdio.h>

#include "cli.h"

/* --------------------------------------------------------------- text */

/* Bytes of the UTF-8 sequence at `s`, 0 where it is none or the end. Strict: no
 * overlong forms, no surrogates, nothing past U+10FFFF. */
size_t moec_cli_utf8(const char *s);

/* True at a control character: C0, DEL, or C1. */
bool moec_cli_is_control(const char *s);
/* Where *s begins with no UTF-8 or a control character, write U+FFFD or
 * "\\xNN" (two backslashes: the second survives the form's own escaping) in its
 * place, move *s behind it and return true. */
bool moec_cli_put_odd(FILE *f, const char **s);

/* Print one line and its newline. Control characters (C0, DEL, C1) and bytes
 * that are no UTF-8 come out as \xNN: names come from files, and a file must
 * not steer the terminal. */
/* Something that was to be said is lost for want of memory: moec_cli_flush says
 * so, and the process ends with 4. */
void moec_cli_cut(void);
bool moec_cli_is_cut(void);

void moec_cli_line(FILE *f, const char *fmt, ...) MOEC_PRINTF(2, 3);

/* "7.5 GiB" into buf[24]; returns buf. */
char *moec_cli_size(char buf[24], uint64_t bytes);

/* "3" or "mtp.0" into buf[24]; returns buf. */
char *moec_cli_layer_name(char buf[24], moec_layer_key key);

/* "0-2, 5" of the layers in one space, as the source numbers them, into
 * buf[n]; cut short where it does not fit. */
void moec_cli_layer_ranges(char *buf, size_t n, const moec_model *model,
                           moec_space space);

/* --------------------------------------------------------------- JSON */

#define MOEC_CLI_JSON_DEPTH 16

typedef struct moec_cli_json {
    FILE *f;
    unsigned depth;
    char close[MOEC_CLI_JSON_DEPTH]; /* bracket that ends each level */
    bool filled[MOEC_CLI_JSON_DEPTH];
    unsigned line_from; /* levels from here on share one line; 0: none */
} moec_cli_json;

/* Begin the document {"schema": "moec.<command>/1", "ok": ok, ... */
void moec_cli_json_begin(moec_cli_json *j, const moec_cli *cli, bool ok);
/* The same into another file. */
void moec_cli_json_begin_in(moec_cli_json *j, FILE *f, const moec_cli *cli,
                            bool ok);
/* Is there one on stdout? What fails behind it has exit code and stderr. */
bool moec_cli_json_begun(void);
/* End it and the line. */
void moec_cli_json_finish(moec_cli_json *j);
/* Open a container. `key` is NULL inside arrays. A _row stands on one line,
 * whatever is in it. */
void moec_cli_json_object(moec_cli_json *j, const char *key);
void moec_cli_json_array(moec_cli_json *j, const char *key);
void moec_cli_json_object_row(moec_cli_json *j, const char *key);
void moec_cli_json_array_row(moec_cli_json *j, const char *key);
void moec_cli_json_end(moec_cli_json *j);
/* A string with its quotes, bytes that are no UTF-8 as U+FFFD. */
void moec_cli_put_json_string(FILE *f, const char *text);
/* Values. A NULL string is null. Bytes that are no UTF-8 become U+FFFD. */
void moec_cli_json_str(moec_cli_json *j, const char *key, const char *s);
void moec_cli_json_u64(moec_cli_json *j, const char *key, uint64_t v);
void moec_cli_json_f64(moec_cli_json *j, const char *key, double v);
void moec_cli_json_bool(moec_cli_json *j, const char *key, bool v);
void moec_cli_json_layer(moec_cli_json *j, const char *key, moec_layer_key k);
void moec_cli_json_hex(moec_cli_json *j, const char *key,
                       const uint8_t digest[32]);

/* ------------------------------------------------------------- errors */

/* Write an error as the library does: the rule in brackets first. Returns
 * `status`, which is never MOEC_OK: analyzers see one file at a time, and
 * without the macro follow what did not fail after all. */
moec_status moec_cli_error(moec_error *err, moec_status status, moec_rule rule,
                           const char *fmt, ...) MOEC_PRINTF(4, 5);
#define moec_cli_error(...) moec_cli_refused((moec_cli_error)(__VA_ARGS__))
static inline moec_status moec_cli_refused(moec_status status)
{
    if (status == MOEC_OK)
        __builtin_unreachable();
    return status;
}

/* Exit code of a failure: the table of the contract. `err` may be NULL. */
int moec_cli_exit_of(moec_status status, const moec_error *err);

/* Report a failed command: a line and a hint on stderr, with --json the
 * document on stdout, unless there is one. Returns the exit code. */
int moec_cli_fail(const moec_cli *cli, moec_status status,
                  const moec_error *err);
/* The same with "no memory for WHAT". */
int moec_cli_no_memory(const moec_cli *cli, const char *what);

/* Report wrong usage: a line and a hint on stderr, with --json the document.
 * Returns MOEC_EXIT_USAGE. */
int moec_cli_usage(const moec_cli *cli, const char *fmt, ...) MOEC_PRINTF(2, 3);

/* The member "error" of a document. */
void moec_cli_json_error(moec_cli_json *j, moec_status status,
                         const moec_error *err);

/* ---------------------------------------------------- findings, notes */

/* "note", "warning", "error". */
const char *moec_cli_severity_name(moec_severity severity);

/* The finding as one line, with expected and found below it; or as an object.
 * _as says another word than its severity. The members alone go into an
 * object that is open. */
void moec_cli_print_finding(FILE *f, const moec_finding *x);
void moec_cli_print_finding_as(FILE *f, const moec_finding *x,
                               const char *word);
void moec_cli_json_finding_members(moec_cli_json *j, const moec_finding *x);
void moec_cli_json_finding(moec_cli_json *j, const moec_finding *x);

/* Notes of a checkpoint and of a plan (either may be NULL): the member
 * "problems", and lines on stderr unless --quiet. moec_cli_n_warnings counts
 * those that --strict turns into findings. */
void moec_cli_json_problems(moec_cli_json *j, const moec_ckpt *ckpt,
                            const moec_plan *plan);
void moec_cli_print_problems(const moec_cli *cli, const moec_ckpt *ckpt,
                             const moec_plan *plan);
/* A note's severity: that of its rule. */
moec_severity moec_cli_note_severity(const moec_note *note);
size_t moec_cli_n_warnings(const moec_ckpt *ckpt, const moec_plan *plan);

/* Flush stdout. Returns `code`, or MOEC_EXIT_SYSTEM where what was printed
 * did not arrive. */
int moec_cli_flush(int code);

#endif
