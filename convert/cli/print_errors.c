/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How errors, findings and notes are said, and with which exit code: one form
 * in text and one in JSON for all commands.
 */
#include "print.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "memory_file.h"
#include "progress.h"

#undef moec_cli_error

moec_status moec_cli_error(moec_error *err, moec_status status, moec_rule rule,
                           const char *fmt, ...)
{
    const moec_rule_info *info = moec_rule_describe(rule);
    size_t at = 0;
    va_list ap;
    err->status = status;
    err->rule = rule;
    if (info != NULL) {
        int n = snprintf(err->text, sizeof(err->text), "[%s %s] ", info->id,
                         info->name);
        at = n > 0 ? (size_t)n : 0;
    }
    if (at >= sizeof(err->text))
        return status;
    va_start(ap, fmt);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): LLVM 41311 */
    (void)vsnprintf(err->text + at, sizeof(err->text) - at, fmt, ap);
    va_end(ap);
    return status;
}

int moec_cli_exit_of(moec_status status, const moec_error *err)
{
    /* What is not there is wrong input: to try again does not help, which is
     * what the code of an I/O error promises. */
    if (status == MOEC_E_IO && err != NULL &&
        (err->os_errno == ENOENT || err->os_errno == ENOTDIR))
        return MOEC_EXIT_INPUT;
    switch (status) {
    case MOEC_OK:
        return MOEC_EXIT_OK;
    case MOEC_E_ARG:
        return MOEC_EXIT_USAGE;
    case MOEC_E_NOMEM:
    case MOEC_E_IO:
    case MOEC_E_DURABILITY:
        return MOEC_EXIT_SYSTEM;
    case MOEC_E_FORMAT:
    case MOEC_E_MAPPING:
    case MOEC_E_MIXED:
    case MOEC_E_UNSUPPORTED:
        return MOEC_EXIT_INPUT;
    case MOEC_E_INTEGRITY:
        return MOEC_EXIT_INTEGRITY;
    case MOEC_E_NO_DEVICE:
        return MOEC_EXIT_UNAVAILABLE;
    case MOEC_E_LOCKED:
        return MOEC_EXIT_LOCKED;
    case MOEC_E_CANCELLED:
        /* Nothing cancels but our own signal handler. */
        return MOEC_EXIT_SIGNAL +
               (moec_cli_signal != 0 ? (int)moec_cli_signal : SIGINT);
    case MOEC_E_INTERNAL:
        return MOEC_EXIT_INTERNAL;
    }
    return MOEC_EXIT_INTERNAL;
}

static void json_error(moec_cli_json *j, moec_status status, int code,
                       const moec_error *err, const char *message)
{
    const moec_rule_info *rule =
        err != NULL ? moec_rule_describe(err->rule) : NULL;
    moec_cli_json_object(j, "error");
    moec_cli_json_str(j, "rule", rule != NULL ? rule->id : NULL);
    moec_cli_json_str(j, "name", rule != NULL ? rule->name : NULL);
    moec_cli_json_str(j, "status", moec_status_name(status));
    moec_cli_json_u64(j, "exit_code", (uint64_t)code);
    moec_cli_json_str(j, "message", message);
    if (err != NULL && err->has_off != 0)
        moec_cli_json_u64(j, "file_offset", err->file_off);
    if (err != NULL && err->os_errno != 0)
        moec_cli_json_str(j, "os_error", strerrorname_np(err->os_errno));
    if (rule != NULL)
        moec_cli_json_str(j, "mend", rule->mend);
    moec_cli_json_end(j);
}

static const char *text_of(moec_status status, const moec_error *err)
{
    if (err != NULL && err->text[0] != '\0')
        return err->text;
    return moec_status_name(status);
}

void moec_cli_json_error(moec_cli_json *j, moec_status status,
                         const moec_error *err)
{
    json_error(j, status, moec_cli_exit_of(status, err), err,
               text_of(status, err));
}

int moec_cli_fail(const moec_cli *cli, moec_status status,
                  const moec_error *err)
{
    int code = moec_cli_exit_of(status, err);
    const char *text = text_of(status, err);
    const moec_rule_info *rule =
        err != NULL ? moec_rule_describe(err->rule) : NULL;
    if (text[0] == '[') /* the rule comes first, before anything else */
        moec_cli_line(stderr, "%s", text);
    else
        moec_cli_line(stderr, "moe-convert %s: %s", cli->cmd->name, text);
    if (rule != NULL && !cli->args.quiet)
        moec_cli_line(stderr, "to mend: %s (moe-convert explain %s)",
                      rule->mend, rule->id);
    if (rule != NULL && cli->args.verbose > 0)
        moec_cli_line(stderr, "why: %s", rule->why);
    if (cli->args.json && !moec_cli_json_begun()) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, false);
        json_error(&j, status, code, err, text);
        moec_cli_json_finish(&j);
    }
    return code;
}

int moec_cli_no_memory(const moec_cli *cli, const char *what)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_cli_error(&err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                                    "no memory for %s", what);
    return moec_cli_fail(cli, st, &err);
}

int moec_cli_usage(const moec_cli *cli, const char *fmt, ...)
{
    char text[MOEC_OPT_WHY_BYTES];
    va_list ap;
    va_start(ap, fmt);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): LLVM 41311 */
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    moec_cli_line(stderr, "moe-convert %s: %s", cli->cmd->name, text);
    moec_cli_line(stderr, "try: moe-convert %s --help", cli->cmd->name);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, false);
        json_error(&j, MOEC_E_ARG, MOEC_EXIT_USAGE, NULL, text);
        moec_cli_json_finish(&j);
    }
    return MOEC_EXIT_USAGE;
}

/* ---------------------------------------------------- findings, notes */

const char *moec_cli_severity_name(moec_severity severity)
{
    switch (severity) {
    case MOEC_SEVERITY_NOTE:
        return "note";
    case MOEC_SEVERITY_WARNING:
        return "warning";
    case MOEC_SEVERITY_ERROR:
        return "error";
    }
    return "error";
}

/* "[MOE-T3 same-bytes] " in front, unless the text has it. */
static void print_ruled(FILE *f, const char *severity, moec_rule rule,
                        const char *text)
{
    const moec_rule_info *info = moec_rule_describe(rule);
    if (text[0] == '[' || info == NULL)
        moec_cli_line(f, "%s (%s)", text, severity);
    else
        moec_cli_line(f, "[%s %s] %s (%s)", info->id, info->name, text,
                      severity);
}

/* "layer 3, rank 1, slot 2, expert 7": those that apply. */
static void print_where(FILE *f, const moec_finding *x)
{
    const struct {
        uint32_t bit;
        const char *word;
        uint64_t v;
    } numbers[] = {
        {MOEC_HAS_RANK, "rank", x->rank},
        {MOEC_HAS_SLOT, "slot", x->slot},
        {MOEC_HAS_EXPERT, "expert", x->expert},
        {MOEC_HAS_OFFSET, "offset", x->offset},
    };
    const char *lead = ": ";
    char name[24];
    if ((x->has & MOEC_HAS_LAYER) != 0) {
        (void)fprintf(f, "%slayer %s", lead,
                      moec_cli_layer_name(name, x->layer));
        lead = ", ";
    }
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if ((x->has & numbers[i].bit) == 0)
            continue;
        (void)fprintf(f, "%s%s %" PRIu64, lead, numbers[i].word, numbers[i].v);
        lead = ", ";
    }
}

void moec_cli_print_finding(FILE *f, const moec_finding *x)
{
    moec_cli_print_finding_as(f, x, moec_cli_severity_name(x->severity));
}

void moec_cli_print_finding_as(FILE *f, const moec_finding *x, const char *word)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *line = moec_cli_memory_file(&text, &bytes);
    if (line == NULL) {
        print_ruled(f, word, x->rule, x->message);
        return;
    }
    /* The message may name file and tensor itself. */
    if ((x->has & MOEC_HAS_FILE) != 0 && strstr(x->message, x->file) == NULL)
        (void)fprintf(line, "%s: ", x->file);
    if ((x->has & MOEC_HAS_TENSOR) != 0 &&
        strstr(x->message, x->tensor) == NULL)
        (void)fprintf(line, "'%s': ", x->tensor);
    (void)fputs(x->message, line);
    print_where(line, x);
    bool whole = fclose(line) == 0;
    print_ruled(f, word, x->rule, whole ? text : x->message);
    free(text);
    if ((x->has & MOEC_HAS_EXPECTED) != 0)
        moec_cli_line(f, "    expected %s", x->expected);
    if ((x->has & MOEC_HAS_FOUND) != 0)
        moec_cli_line(f, "    found    %s", x->found);
}

void moec_cli_json_finding(moec_cli_json *j, const moec_finding *x)
{
    moec_cli_json_object_row(j, NULL);
    moec_cli_json_finding_members(j, x);
    moec_cli_json_end(j);
}

void moec_cli_json_finding_members(moec_cli_json *j, const moec_finding *x)
{
    const moec_rule_info *rule = moec_rule_describe(x->rule);
    moec_cli_json_str(j, "rule", rule != NULL ? rule->id : NULL);
    moec_cli_json_str(j, "severity", moec_cli_severity_name(x->severity));
    moec_cli_json_str(j, "message", x->message);
    if ((x->has & MOEC_HAS_FILE) != 0)
        moec_cli_json_str(j, "file", x->file);
    if ((x->has & MOEC_HAS_TENSOR) != 0)
        moec_cli_json_str(j, "tensor", x->tensor);
    if ((x->has & MOEC_HAS_OFFSET) != 0)
        moec_cli_json_u64(j, "offset", x->offset);
    if ((x->has & MOEC_HAS_LAYER) != 0)
        moec_cli_json_layer(j, "layer", x->layer);
    if ((x->has & MOEC_HAS_RANK) != 0)
        moec_cli_json_u64(j, "rank", x->rank);
    if ((x->has & MOEC_HAS_SLOT) != 0)
        moec_cli_json_u64(j, "slot", x->slot);
    if ((x->has & MOEC_HAS_EXPERT) != 0)
        moec_cli_json_u64(j, "expert", x->expert);
    if ((x->has & MOEC_HAS_EXPECTED) != 0)
        moec_cli_json_str(j, "expected", x->expected);
    if ((x->has & MOEC_HAS_FOUND) != 0)
        moec_cli_json_str(j, "found", x->found);
}

/* A moec_note has no severity of its own: its rule has. */
moec_severity moec_cli_note_severity(const moec_note *note)
{
    return note->rule == MOEC_RULE_I15 || note->rule == MOEC_RULE_NONE
               ? MOEC_SEVERITY_NOTE
               : MOEC_SEVERITY_WARNING;
}

static size_t n_problems(const moec_ckpt *ckpt, const moec_plan *plan)
{
    return (ckpt != NULL ? moec_ckpt_n_notes(ckpt) : 0) +
           (plan != NULL ? moec_plan_n_notes(plan) : 0);
}

static const moec_note *problem(const moec_ckpt *ckpt, const moec_plan *plan,
                                size_t i)
{
    size_t n = ckpt != NULL ? moec_ckpt_n_notes(ckpt) : 0;
    return i < n ? moec_ckpt_note(ckpt, i) : moec_plan_note(plan, i - n);
}

void moec_cli_json_problems(moec_cli_json *j, const moec_ckpt *ckpt,
                            const moec_plan *plan)
{
    moec_cli_json_array(j, "problems");
    for (size_t i = 0; i < n_problems(ckpt, plan); i++) {
        const moec_note *note = problem(ckpt, plan, i);
        const moec_rule_info *rule = moec_rule_describe(note->rule);
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_str(j, "rule", rule != NULL ? rule->id : NULL);
        moec_cli_json_str(j, "severity",
                          moec_cli_severity_name(moec_cli_note_severity(note)));
        moec_cli_json_str(j, "message", note->text);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

void moec_cli_print_problems(const moec_cli *cli, const moec_ckpt *ckpt,
                             const moec_plan *plan)
{
    if (cli->args.quiet)
        return;
    for (size_t i = 0; i < n_problems(ckpt, plan); i++) {
        const moec_note *note = problem(ckpt, plan, i);
        print_ruled(stderr,
                    moec_cli_severity_name(moec_cli_note_severity(note)),
                    note->rule, note->text);
    }
}

size_t moec_cli_n_warnings(const moec_ckpt *ckpt, const moec_plan *plan)
{
    size_t n = 0;
    for (size_t i = 0; i < n_problems(ckpt, plan); i++)
        n += moec_cli_note_severity(problem(ckpt, plan, i)) >=
             MOEC_SEVERITY_WARNING;
    return n;
}
