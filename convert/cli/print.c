/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All printing of moe-convert. Names and messages come from files that may be
 * hostile: nothing reaches the terminal or the JSON document unescaped.
 */
#include "print.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "progress.h"

#undef moec_cli_error

/* --------------------------------------------------------------- text */

/* Bytes of the UTF-8 sequence at `s`, 0 where it is none. Strict: no overlong
 * forms, no surrogates, nothing past U+10FFFF. */
static size_t utf8_bytes(const unsigned char *s)
{
    unsigned char lo = 0x80, hi = 0xbf;
    size_t n;
    if (s[0] < 0x80)
        return s[0] != 0;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] == 0xe0)
        lo = 0xa0;
    else if (s[0] == 0xed)
        hi = 0x9f;
    else if (s[0] == 0xf0)
        lo = 0x90;
    else if (s[0] == 0xf4)
        hi = 0x8f;
    for (size_t i = 1; i < n; i++) {
        if (s[i] < lo || s[i] > hi)
            return 0;
        lo = 0x80;
        hi = 0xbf;
    }
    return n;
}

/* C0, DEL, or C1 (which begins with 0xc2 in UTF-8). */
static bool is_control(const unsigned char *s)
{
    return s[0] < 0x20 || s[0] == 0x7f || (s[0] == 0xc2 && s[1] < 0xa0);
}

static void put_escaped(FILE *f, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s != '\0') {
        size_t n = utf8_bytes(s);
        if (n != 0 && !is_control(s)) {
            (void)fwrite(s, 1, n, f);
            s += n;
            continue;
        }
        for (n = n != 0 ? n : 1; n > 0; n--)
            (void)fprintf(f, "\\x%02x", (unsigned)*s++);
    }
}

size_t moec_cli_utf8(const char *s)
{
    return utf8_bytes((const unsigned char *)s);
}

bool moec_cli_is_control(const char *s)
{
    return is_control((const unsigned char *)s);
}

bool moec_cli_put_odd(FILE *f, const char **s)
{
    size_t n = moec_cli_utf8(*s);
    if (n == 0) {
        (void)fputs("\xef\xbf\xbd", f);
        ++*s;
        return true;
    }
    if (!moec_cli_is_control(*s))
        return false;
    for (; n > 0; n--)
        (void)fprintf(f, "\\\\x%02x", (unsigned)(unsigned char)*(*s)++);
    return true;
}

void moec_cli_line(FILE *f, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    /* Without memory the bare format says at least what kind of line it is. */
    put_escaped(f, n >= 0 ? text : fmt);
    (void)fputc('\n', f);
    if (n >= 0)
        free(text);
}

char *moec_cli_size(char buf[24], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024.0 && u + 1 < sizeof(units) / sizeof(units[0])) {
        v /= 1024.0;
        u++;
    }
    if (u == 0)
        (void)snprintf(buf, 24, "%" PRIu64 " B", bytes);
    else
        (void)snprintf(buf, 24, "%.*f %s", v < 10.0 ? 2 : 1, v, units[u]);
    return buf;
}

char *moec_cli_layer_name(char buf[24], moec_layer_key key)
{
    (void)snprintf(buf, 24, "%s%" PRIu32,
                   key.space == MOEC_SPACE_MTP ? "mtp." : "", key.number);
    return buf;
}

void moec_cli_layer_ranges(char *buf, size_t n, const moec_model *model,
                           moec_space space)
{
    size_t at = 0, n_layers = moec_model_n_layers(model);
    buf[0] = '\0';
    for (size_t i = 0; i < n_layers && at + 32 < n; i++) {
        const moec_moe_layer *first = moec_model_layer(model, i);
        if (first->key.space != space)
            continue;
        uint32_t last = first->source_number;
        while (i + 1 < n_layers) {
            const moec_moe_layer *next = moec_model_layer(model, i + 1);
            if (next->key.space != space || next->source_number != last + 1)
                break;
            last++;
            i++;
        }
        int got = snprintf(buf + at, n - at, "%s%" PRIu32, at > 0 ? ", " : "",
                           first->source_number);
        at += got > 0 ? (size_t)got : 0;
        if (last != first->source_number) {
            got = snprintf(buf + at, n - at, "-%" PRIu32, last);
            at += got > 0 ? (size_t)got : 0;
        }
    }
}

/* --------------------------------------------------------------- JSON */

void moec_cli_put_json_string(FILE *f, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    (void)fputc('"', f);
    while (*s != '\0') {
        size_t n = utf8_bytes(s);
        if (n == 0) {
            (void)fputs("\\ufffd", f);
            s++;
        } else if (*s == '"' || *s == '\\') {
            (void)fprintf(f, "\\%c", *s++);
        } else if (is_control(s)) {
            (void)fprintf(f, "\\u%04x", (unsigned)(n == 2 ? s[1] : s[0]));
            s += n;
        } else {
            (void)fwrite(s, 1, n, f);
            s += n;
        }
    }
    (void)fputc('"', f);
}

/* Comma, line break and key in front of the next value. */
static void json_next(moec_cli_json *j, const char *key)
{
    if (j->depth == 0)
        return;
    bool one_line = j->line_from != 0 && j->depth >= j->line_from;
    if (j->filled[j->depth])
        (void)fputs(one_line ? ", " : ",", j->f);
    if (!one_line)
        (void)fprintf(j->f, "\n%*s", (int)(2 * j->depth), "");
    j->filled[j->depth] = true;
    if (key != NULL) {
        moec_cli_put_json_string(j->f, key);
        (void)fputs(": ", j->f);
    }
}

static void json_open(moec_cli_json *j, const char *key, char open, char close,
                      bool row)
{
    json_next(j, key);
    (void)fputc(open, j->f);
    /* Our own documents are less deep; a mistake here is ours. */
    if (j->depth + 1 >= MOEC_CLI_JSON_DEPTH)
        return;
    j->depth++;
    j->close[j->depth] = close;
    j->filled[j->depth] = false;
    if (row && j->line_from == 0)
        j->line_from = j->depth;
}

void moec_cli_json_object(moec_cli_json *j, const char *key)
{
    json_open(j, key, '{', '}', false);
}

void moec_cli_json_array(moec_cli_json *j, const char *key)
{
    json_open(j, key, '[', ']', false);
}

void moec_cli_json_object_row(moec_cli_json *j, const char *key)
{
    json_open(j, key, '{', '}', true);
}

void moec_cli_json_array_row(moec_cli_json *j, const char *key)
{
    json_open(j, key, '[', ']', true);
}

void moec_cli_json_end(moec_cli_json *j)
{
    bool one_line = j->line_from != 0 && j->depth >= j->line_from;
    unsigned d = j->depth--;
    if (j->filled[d] && !one_line)
        (void)fprintf(j->f, "\n%*s", (int)(2 * j->depth), "");
    (void)fputc(j->close[d], j->f);
    if (j->depth < j->line_from)
        j->line_from = 0;
}

void moec_cli_json_str(moec_cli_json *j, const char *key, const char *s)
{
    json_next(j, key);
    if (s == NULL)
        (void)fputs("null", j->f);
    else
        moec_cli_put_json_string(j->f, s);
}

void moec_cli_json_u64(moec_cli_json *j, const char *key, uint64_t v)
{
    json_next(j, key);
    (void)fprintf(j->f, "%" PRIu64, v);
}

void moec_cli_json_f64(moec_cli_json *j, const char *key, double v)
{
    char text[40];
    json_next(j, key);
    if (!isfinite(v)) { /* JSON has no word for it */
        (void)fputs("null", j->f);
        return;
    }
    /* The shorter form where it reads back as the same number. */
    (void)snprintf(text, sizeof(text), "%.15g", v);
    double back = strtod(text, NULL);
    if (back < v || back > v)
        (void)snprintf(text, sizeof(text), "%.17g", v);
    (void)fputs(text, j->f);
}

void moec_cli_json_bool(moec_cli_json *j, const char *key, bool v)
{
    json_next(j, key);
    (void)fputs(v ? "true" : "false", j->f);
}

void moec_cli_json_layer(moec_cli_json *j, const char *key, moec_layer_key k)
{
    char name[24];
    if (k.space == MOEC_SPACE_MTP)
        moec_cli_json_str(j, key, moec_cli_layer_name(name, k));
    else
        moec_cli_json_u64(j, key, k.number);
}

void moec_cli_json_hex(moec_cli_json *j, const char *key,
                       const uint8_t digest[32])
{
    char text[65];
    for (size_t i = 0; i < 32; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", digest[i]);
    moec_cli_json_str(j, key, text);
}

void moec_cli_json_begin(moec_cli_json *j, const moec_cli *cli, bool ok)
{
    moec_cli_json_begin_in(j, stdout, cli, ok);
}

void moec_cli_json_begin_in(moec_cli_json *j, FILE *f, const moec_cli *cli,
                            bool ok)
{
    char schema[64];
    memset(j, 0, sizeof(*j));
    j->f = f;
    const char *name = cli->cmd->name;
    size_t word = strcspn(name, " ");
    (void)snprintf(schema, sizeof(schema), "moec.%.*s/1", (int)word, name);
    moec_cli_json_object(j, NULL);
    moec_cli_json_str(j, "schema", schema);
    moec_cli_json_bool(j, "ok", ok);
    if (name[word] != '\0')
        moec_cli_json_str(j, "action", name + word + 1);
}

void moec_cli_json_finish(moec_cli_json *j)
{
    while (j->depth > 0)
        moec_cli_json_end(j);
    (void)fputc('\n', j->f);
}

/* ------------------------------------------------------------- errors */

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
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, false);
        json_error(&j, status, code, err, text);
        moec_cli_json_finish(&j);
    }
    return code;
}

int moec_cli_usage(const moec_cli *cli, const char *fmt, ...)
{
    char text[MOEC_OPT_WHY_BYTES];
    va_list ap;
    va_start(ap, fmt);
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
    FILE *line = open_memstream(&text, &bytes);
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

int moec_cli_flush(int code)
{
    int bad = ferror(stdout);
    errno = 0;
    if (fflush(stdout) != 0 || bad != 0) {
        moec_cli_line(stderr, "moe-convert: stdout: %s",
                      errno != 0 ? strerror(errno) : "a write failed");
        return MOEC_EXIT_SYSTEM;
    }
    return code;
}
