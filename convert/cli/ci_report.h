/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CI_REPORT_H
#define MOEC_CI_REPORT_H

/*
 * What this is: what a checking command found, gathered from the library's
 *   reports into one list, held against policy and baseline, and written in
 *   the form that a CI system reads. check, verify and validate share it.
 *   Order of calls: init, then runs and what belongs to them, settle, write,
 *   fini.
 * Lifetime: owns the library's reports that are given to it and copies of all
 *   other texts; borrows the command line, policy and baseline.
 * Threads: one thread at a time.
 * Errors: memory that runs out is remembered, and told by settle. No form has
 *   a time, a host or a random number in it: the same findings give the same
 *   bytes.
 */

#include <stdio.h>

#include "ci_policy.h"
#include "cli.h"
#include "print.h"
#include "verdict.h"

/* One proof, or one of many: a combination of a matrix, a mutation. */
typedef struct moec_ci_run {
    const char *name;         /* NULL: the only one */
    const char *title;        /* a line in front of its findings, or NULL */
    const char *tail;         /* a line behind them, or NULL */
    moec_report *report;      /* owned; its theorems, or NULL */
    const moec_validation *v; /* borrowed; level 3, or NULL */
    bool skipped;             /* could not be made: `title` says why */
    bool ok;                  /* settle: nothing in it fails */
    /* Of a combination. */
    bool has_topology;
    uint32_t ep, redundant;
    const char *shared;
    moec_topology topology;
    uint64_t rank_bytes;
    double imbalance;
} moec_ci_run;

/* One finding as it is reported. */
typedef struct moec_ci_found {
    moec_finding f; /* its severity is the policy's */
    size_t run;
    const char *file; /* never NULL: f.file, or the one nearest to it */
    bool problem;     /* a note of the source: text tells it on stderr */
    bool known;       /* in the baseline */
    bool fails;       /* makes the command exit with 1 */
    char print[MOEC_CI_FINGERPRINT_BYTES];
    size_t line; /* of the text report, from 1 */
} moec_ci_found;

typedef struct moec_ci_report {
    const moec_cli *cli;
    const char *path;  /* what is checked */
    const char *level; /* "headers", ...; NULL: the command has none */
    const char *what;  /* verdict's word: "proved" */
    const moec_ci_policy *policy; /* or NULL */
    moec_ci_baseline *baseline;   /* or NULL */
    moec_ci_run *runs;
    size_t n_runs, cap_runs;
    moec_ci_found *found;
    size_t n_found, cap_found;
    char **texts; /* copies */
    size_t n_texts, cap_texts;
    bool oom;
    bool no_verdict;  /* the last line is the caller's */
    bool notes_apart; /* write: the source's notes are not in the text */
    bool failed;      /* an error stopped it: the last finding says which */
    bool ok;
    int code;   /* exit code */
    char *text; /* the report as text, once it was made */
    size_t text_bytes;
} moec_ci_report;

void moec_ci_init(moec_ci_report *r, const moec_cli *cli, const char *path);
void moec_ci_fini(moec_ci_report *r);

/* Begin a run; what is added from now on belongs to it. Never NULL; the
 * pointer holds until the next run begins. */
moec_ci_run *moec_ci_begin(moec_ci_report *r, const char *name);
/* A copy of a text that lives as long as the report. */
const char *moec_ci_text(moec_ci_report *r, const char *fmt, ...)
    MOEC_PRINTF(2, 3);

/* Add the findings of a report, which becomes the run's own. `layout` (may be
 * NULL) says in which file a finding without one stands. */
void moec_ci_take(moec_ci_report *r, moec_report *report,
                  const moec_layout *layout);
/* The same of level 3, which stays the caller's and must outlive `r`. */
void moec_ci_take_results(moec_ci_report *r, const moec_validation *v,
                          const moec_layout *layout);
/* All of the above for what verify (`report`, which is taken) or validate (`v`)
 * found in the conversion of path 0: in any form but JSON, and in the files of
 * --report. Returns the exit code. */
int moec_ci_write_findings(const moec_cli *cli, moec_report *report,
                           const moec_validation *v);
/* Add one finding: the fields of `like` that its `has` names, copied. */
void moec_ci_add(moec_ci_report *r, const moec_finding *like,
                 const moec_layout *layout, const char *fmt, ...)
    MOEC_PRINTF(4, 5);
/* Add the notes of a source. */
void moec_ci_add_notes(moec_ci_report *r, const moec_ckpt *ckpt);
/* Add a library's error: as a finding that goes with others, or as what
 * stopped the command, whose exit code it gives. */
void moec_ci_add_error(moec_ci_report *r, moec_status st, const moec_error *err,
                       bool stops);

/* Hold all against policy, baseline and --strict; decides `ok` and `code`. */
moec_status moec_ci_settle(moec_ci_report *r, moec_error *err);

/* Write stdout's form (json is the caller's: it is another document for each
 * command; after a failure text is, too) and the files of --report. Returns
 * the exit code: r->code, or that of a file that cannot be written. */
int moec_ci_write(moec_ci_report *r);

/* Report a failed command as moec_cli_fail does, and in the forms asked for as
 * a finding. Returns the exit code. */
int moec_ci_fail(const moec_cli *cli, moec_status st, const moec_error *err);

/* Usage rules of --report: NULL, or the complaint in `why`. */
const char *moec_ci_wrong_reports(const moec_cli *cli,
                                  char why[MOEC_OPT_WHY_BYTES]);

/* The file of one word of --report; NULL: it has none. */
const char *moec_ci_report_file(const char *word);

/* --------------------------------------- for the writers of the forms */

/* "MOE-T4", or "MOE-NONE" where a failure breaks no rule. */
const char *moec_ci_rule_id(moec_rule rule);
const char *moec_ci_rule_name(moec_rule rule);
/* The path of a finding's file as one would type it: below the directory
 * checked where it is there. To be freed; NULL: no memory. */
char *moec_ci_path(const moec_ci_report *r, const moec_ci_found *x);
/* The message with what it does not name itself: tensor, layer, rank, slot,
 * expert, expected, found, the run. One line, control characters escaped. To be
 * freed; NULL: no memory. */
char *moec_ci_message(const moec_ci_report *r, const moec_ci_found *x);
/* Findings by severity, worst first, then in their order, into an array of
 * n_found. NULL: no memory. */
const moec_ci_found **moec_ci_worst_first(const moec_ci_report *r);
/* The name of run `i`: "layout", "kernels", a combination, a mutation. */
const char *moec_ci_run_name(const moec_ci_report *r, size_t i);
/* Does the finding stand under this theorem? Those of kernels and policies
 * stand under none. */
bool moec_ci_under_theorem(const moec_ci_found *x, moec_rule theorem);
/* Was nothing reported against theorem `t` of run `run`? */
bool moec_ci_theorem_ok(const moec_ci_report *r, size_t run, size_t t);
/* Number of findings with this severity that are not known. */
size_t moec_ci_count(const moec_ci_report *r, moec_severity severity);

/* Make r->text and the lines of the findings. */
bool moec_ci_make_text(moec_ci_report *r);
void moec_ci_write_sarif(FILE *f, const moec_ci_report *r);
void moec_ci_write_junit(FILE *f, const moec_ci_report *r);
/* `log` is the file that has the text report, or NULL. */
void moec_ci_write_github(FILE *f, const moec_ci_report *r, const char *log);
void moec_ci_write_markdown(FILE *f, const moec_ci_report *r);
void moec_ci_write_prometheus(FILE *f, const moec_ci_report *r);
/* check's document, moec.check/1. */
void moec_ci_write_json(FILE *f, const moec_ci_report *r);

#endif
