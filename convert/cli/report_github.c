/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GitHub Actions: the report as text, then the ten worst findings as workflow
 * commands. GitHub shows ten annotations of a step, so findings of one rule in
 * one file, or of one byte, share one. Each names rule, file, and the line of the text report
 * at which the finding stands: location is that report where --report text=
 * writes it to a file, else the file that is wrong.
 */
#include "ci_report.h"

#include <stdlib.h>
#include <string.h>

#include "memory_file.h"

enum { MOST = 10 };

/* Data of a command: one line, and no older command ("##[") within it. In a
 * property ':' and ',' would end it. */
static void put_data(FILE *f, const char *s, bool property)
{
    for (; *s != '\0'; s++) {
        bool special = *s == '%' || *s == '\r' || *s == '\n' ||
                       (property && (*s == ':' || *s == ','));
        if (special)
            (void)fprintf(f, "%%%02X", (unsigned)(unsigned char)*s);
        else if (strncmp(s, "##[", 3) == 0)
            (void)fputs("\\x23", f);
        else
            (void)fputc(*s, f);
    }
}

/* Text of control characters and broken UTF-8 as moec_cli_line has it. */
static void put_escaped(FILE *f, const char *s, bool property)
{
    char *text = NULL;
    size_t n = 0;
    FILE *line = moec_cli_memory_file(&text, &n);
    if (line == NULL)
        return;
    moec_cli_line(line, "%s", s);
    if (fclose(line) == 0) {
        text[n - 1] = '\0';
        put_data(f, text, property);
    }
    free(text);
}

static const char *command_of(moec_severity severity)
{
    switch (severity) {
    case MOEC_SEVERITY_NOTE:
        return "notice";
    case MOEC_SEVERITY_WARNING:
        return "warning";
    case MOEC_SEVERITY_ERROR:
        break;
    }
    return "error";
}

/* Of one rule in one file, or at one byte of it: damage breaks what the bytes
 * are and what can be given back, and is one thing to look at. */
static bool is_alike(const moec_ci_found *a, const moec_ci_found *b)
{
    bool same_byte = (a->f.has & b->f.has & MOEC_HAS_OFFSET) != 0 &&
                     a->f.offset == b->f.offset;
    return (a->f.rule == b->f.rule || same_byte) && a->run == b->run &&
           strcmp(a->file, b->file) == 0;
}

/* The message, which may name the file itself, without the file's name. */
static const char *without_file(const char *message, const moec_ci_found *x)
{
    size_t n = strlen(x->file);
    bool named =
        strncmp(message, x->file, n) == 0 && strncmp(message + n, ": ", 2) == 0;
    return named ? message + n + 2 : message;
}

static void annotate(FILE *f, const moec_ci_report *r, const moec_ci_found *x,
                     size_t n_alike, const char *log)
{
    char *path = moec_ci_path(r, x), *message = moec_ci_message(r, x);
    const char *file = path != NULL ? path : x->file;
    (void)fprintf(f, "::%s file=", command_of(x->f.severity));
    put_escaped(f, log != NULL ? log : file, true);
    (void)fprintf(f, ",line=%zu,title=%s %s::", x->line,
                  moec_ci_rule_id(x->f.rule), moec_ci_rule_name(x->f.rule));
    put_escaped(f, file, false);
    (void)fputs(": ", f);
    put_escaped(f, without_file(message != NULL ? message : x->f.message, x),
                false);
    if (n_alike > 1)
        (void)fprintf(f, "; and %zu more of this rule or byte in this file",
                      n_alike - 1);
    (void)fprintf(f, " [line %zu of ", x->line);
    put_escaped(f, log != NULL ? log : "the log", false);
    (void)fputs("]\n", f);
    free(path);
    free(message);
}

/* The text, in which no line may be taken for a command: names come from
 * files. Runners look for "::" where a line begins and for "##[" anywhere. */
static void put_log(FILE *f, const char *text, size_t n)
{
    bool begin = true;
    for (size_t i = 0; i < n; i++) {
        bool command =
            (begin && i + 1 < n && text[i] == ':' && text[i + 1] == ':') ||
            (i + 2 < n && memcmp(text + i, "##[", 3) == 0);
        if (command)
            (void)fprintf(f, "\\x%02x", (unsigned)(unsigned char)text[i]);
        else
            (void)fputc(text[i], f);
        begin = text[i] == '\n' || (begin && text[i] == ' ');
    }
}

void moec_ci_write_github(FILE *f, const moec_ci_report *r, const char *log)
{
    const moec_ci_found **worst = moec_ci_worst_first(r);
    size_t n = 0;
    put_log(f, r->text, r->text_bytes);
    for (size_t i = 0; worst != NULL && i < r->n_found && n < MOST; i++) {
        size_t before = 0, alike = 0;
        if (worst[i]->known)
            continue;
        for (size_t k = 0; k < r->n_found; k++) {
            bool same = !worst[k]->known && is_alike(worst[i], worst[k]);
            before += same && k < i;
            alike += same;
        }
        if (before != 0)
            continue;
        annotate(f, r, worst[i], alike, log);
        n++;
    }
    free(worst);
}
