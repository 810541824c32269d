/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report as text, and where each form goes. Text is made first whatever is
 * asked for, because annotations say on which of its lines a finding stands.
 */
#include "ci_report.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory_file.h"
#include "results.h"
#include "session.h"

/* ----------------------------------------------------------------- text */

/* Counts the lines of a memory stream as it grows. */
typedef struct counter {
    FILE *f;
    char **text;
    size_t *bytes;
    size_t seen, lines;
} counter;

/* The number of the line that comes next, from 1. */
static size_t next_line(counter *c)
{
    if (fflush(c->f) != 0)
        return 0;
    for (; c->seen < *c->bytes; c->seen++)
        c->lines += (*c->text)[c->seen] == '\n';
    return c->lines + 1;
}

static void text_findings(counter *c, moec_ci_report *r, size_t run)
{
    for (size_t i = 0; i < r->n_found; i++) {
        moec_ci_found *x = &r->found[i];
        char word[40];
        if (x->run != run || (x->problem && r->notes_apart))
            continue;
        (void)snprintf(word, sizeof(word), "%s%s",
                       moec_cli_severity_name(x->f.severity),
                       x->known ? ", in the baseline" : "");
        x->line = next_line(c);
        moec_cli_print_finding_as(c->f, &x->f, word);
    }
}

static bool has_notes(const moec_ci_report *r, size_t run)
{
    for (size_t i = 0; i < r->n_found; i++) {
        if (r->found[i].run == run && !r->found[i].problem)
            return true;
    }
    return false;
}

static void text_run(counter *c, moec_ci_report *r, size_t i)
{
    const moec_ci_run *run = &r->runs[i];
    for (size_t t = 0;
         run->name == NULL && run->report != NULL && t < MOEC_CLI_N_THEOREMS;
         t++)
        moec_cli_print_theorem(c->f, t, moec_report_theorem(run->report, t),
                               moec_ci_theorem_ok(r, i, t));
    if (run->title != NULL)
        moec_cli_line(c->f, "%s", run->title);
    if (run->v != NULL)
        moec_cli_print_layers(c->f, r->cli, run->v);
    text_findings(c, r, i);
    if (run->tail != NULL)
        moec_cli_line(c->f, "%s", run->tail);
    if (run->v != NULL && run->name == NULL)
        moec_cli_print_limits(c->f, r->cli, run->v, run->ok);
    if (run->report != NULL && run->name == NULL)
        moec_cli_line(c->f, "%s: %s%s", r->path,
                      run->ok ? r->what : "NOT proved",
                      run->ok && has_notes(r, i) ? ", with notes" : "");
}

static void text_verdict(counter *c, const moec_ci_report *r)
{
    size_t n = 0, bad = 0;
    for (size_t i = 0; i < r->n_runs; i++) {
        n += r->runs[i].name != NULL;
        bad += r->runs[i].name != NULL && !r->runs[i].ok;
    }
    if (n == 0 || r->no_verdict || r->failed)
        return;
    if (bad != 0)
        moec_cli_line(c->f, "%s: %zu of %zu combinations NOT proved", r->path,
                      bad, n);
    else
        moec_cli_line(c->f, "%s: %zu combinations %s", r->path, n,
                      r->ok ? "proved" : "proved; see above for the rest");
}

bool moec_ci_make_text(moec_ci_report *r)
{
    counter c = {.text = &r->text, .bytes = &r->text_bytes};
    c.f = moec_cli_memory_file(&r->text, &r->text_bytes);
    if (c.f == NULL)
        return false;
    for (size_t i = 0; i < r->n_runs; i++)
        text_run(&c, r, i);
    text_verdict(&c, r);
    return fclose(c.f) == 0;
}

static void tell_notes(const moec_ci_report *r)
{
    for (size_t i = 0; i < r->n_found; i++) {
        const moec_ci_found *x = &r->found[i];
        if (x->problem && !r->cli->args.quiet)
            moec_cli_print_finding(stderr, &x->f);
    }
}

/* ---------------------------------------------------------------- forms */

static void write_form(FILE *f, const moec_ci_report *r, uint32_t format,
                       const char *log)
{
    switch (format) {
    case MOEC_CHOICE_JSON:
        moec_ci_write_json(f, r);
        break;
    case MOEC_CHOICE_SARIF:
        moec_ci_write_sarif(f, r);
        break;
    case MOEC_CHOICE_JUNIT:
        moec_ci_write_junit(f, r);
        break;
    case MOEC_CHOICE_GITHUB:
        moec_ci_write_github(f, r, log);
        break;
    case MOEC_CHOICE_MARKDOWN:
        moec_ci_write_markdown(f, r);
        break;
    case MOEC_CHOICE_PROMETHEUS:
        moec_ci_write_prometheus(f, r);
        break;
    default: /* a number out of the option table, not one of our enums */
        (void)fwrite(r->text, 1, r->text_bytes, f);
        break;
    }
}

/* "sarif=out.sarif" in two; 0 where it is none. */
static uint32_t split(const char *word, const char **file_out)
{
    char name[24];
    size_t n = strcspn(word, "=");
    if (word[n] != '=' || word[n + 1] == '\0' || n >= sizeof(name))
        return 0;
    memcpy(name, word, n);
    name[n] = '\0';
    *file_out = word + n + 1;
    return moec_cli_parse_choice(MOEC_CLI_FORMATS, name);
}

const char *moec_ci_report_file(const char *word)
{
    const char *file = NULL;
    return split(word, &file) != 0 ? file : NULL;
}

const char *moec_ci_wrong_reports(const moec_cli *cli,
                                  char why[MOEC_OPT_WHY_BYTES])
{
    const moec_cli_list *list = &cli->args.reports;
    for (size_t i = 0; i < list->n; i++) {
        const char *file = NULL;
        uint32_t format = split(list->words[i], &file);
        if (format == 0) {
            (void)snprintf(why, MOEC_OPT_WHY_BYTES,
                           "--report wants FORMAT=FILE with one of %s, not "
                           "'%s'",
                           MOEC_CLI_FORMATS, list->words[i]);
            return why;
        }
        if (format == MOEC_CHOICE_JSON && strcmp(cli->cmd->name, "check") != 0)
            return "--report json=FILE is check's: here --json has the "
                   "command's own document";
    }
    return NULL;
}

static int complain(const char *path, int code)
{
    moec_cli_line(stderr, "moe-convert: %s: %s", path, strerror(code));
    return MOEC_EXIT_SYSTEM;
}

/* Whole or not at all: a collector may read the file at any moment. */
static int replace_file(const moec_ci_report *r, const char *path,
                        uint32_t format, const char *log)
{
    char *tmp = NULL;
    int fd, code = 0;
    if (asprintf(&tmp, "%s.XXXXXX", path) < 0)
        return complain(path, ENOMEM);
    fd = mkostemp(tmp, O_CLOEXEC);
    FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (f == NULL) {
        code = complain(path, errno);
        if (fd >= 0) {
            (void)close(fd);
            (void)unlink(tmp);
        }
        free(tmp);
        return code;
    }
    write_form(f, r, format, log);
    bool bad = ferror(f) != 0 || fchmod(fd, 0644) != 0;
    if (moec_cli_is_cut())
        errno = ENOMEM;
    if (fclose(f) != 0 || bad || moec_cli_is_cut() || rename(tmp, path) != 0) {
        code = complain(path, errno != 0 ? errno : EIO);
        (void)unlink(tmp);
    }
    free(tmp);
    return code;
}

static int append_file(const moec_ci_report *r, const char *path,
                       uint32_t format)
{
    char *text = NULL;
    size_t bytes = 0;
    int code = 0;
    FILE *whole = moec_cli_memory_file(&text, &bytes);
    if (whole != NULL)
        write_form(whole, r, format, NULL);
    if (whole == NULL || fclose(whole) != 0 || moec_cli_is_cut()) {
        free(text);
        return complain(path, ENOMEM);
    }
    FILE *f = fopen(path, "ae");
    bool bad = f == NULL || fwrite(text, 1, bytes, f) != bytes;
    if (bad || fflush(f) != 0)
        code = complain(path, errno != 0 ? errno : EIO);
    if (f != NULL && fclose(f) != 0 && code == 0)
        code = complain(path, errno);
    free(text);
    return code;
}

/* Devices and pipes are written to, not replaced: /dev/stderr. */
static bool is_plain(const char *path)
{
    struct stat sb;
    return stat(path, &sb) != 0 || S_ISREG(sb.st_mode);
}

int moec_ci_write(moec_ci_report *r)
{
    const moec_cli_list *list = &r->cli->args.reports;
    uint32_t format =
        r->cli->args.json ? MOEC_CHOICE_JSON : r->cli->args.format;
    const char *log = NULL;
    int code = 0;
    /* Text alone: the source's notes are talk, and go to stderr. */
    r->notes_apart = list->n == 0 &&
                     (format == MOEC_CHOICE_TEXT || format == MOEC_CHOICE_JSON);
    if (!moec_ci_make_text(r)) {
        moec_cli_line(stderr, "moe-convert: no memory for the report");
        return MOEC_EXIT_SYSTEM;
    }
    for (size_t i = 0; i < list->n; i++) {
        const char *file = NULL;
        if (split(list->words[i], &file) == MOEC_CHOICE_TEXT)
            log = file;
    }
    for (size_t i = 0; i < list->n; i++) {
        const char *file = NULL;
        uint32_t form = split(list->words[i], &file);
        if (file == NULL) /* usage has refused it */
            continue;
        int got = form == MOEC_CHOICE_MARKDOWN || !is_plain(file)
                      ? append_file(r, file, form)
                      : replace_file(r, file, form, log);
        code = code != 0 ? code : got;
    }
    if (format == MOEC_CHOICE_TEXT && !r->failed)
        (void)fwrite(r->text, 1, r->text_bytes, stdout);
    else if (format != MOEC_CHOICE_TEXT && format != MOEC_CHOICE_JSON)
        write_form(stdout, r, format, log);
    if (r->notes_apart || format == MOEC_CHOICE_JSON)
        tell_notes(r);
    return code != 0 ? code : r->code;
}

int moec_ci_fail(const moec_cli *cli, moec_status st, const moec_error *err)
{
    const char *path = moec_cli_path(cli, 0);
    moec_error ignored = MOEC_ERROR_INIT;
    moec_ci_report r;
    int code = moec_cli_fail(cli, st, err);
    moec_ci_init(&r, cli, path != NULL ? path : "");
    moec_ci_add_error(&r, st, err, true);
    if (moec_ci_settle(&r, &ignored) == MOEC_OK)
        (void)moec_ci_write(&r);
    moec_ci_fini(&r);
    return code;
}

int moec_ci_write_findings(const moec_cli *cli, moec_report *report,
                           const moec_validation *v)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_conversion *c = NULL;
    moec_ci_report r;
    /* Only for the places of findings that name none. */
    moec_status st =
        moec_cli_open_conversion(&c, moec_cli_path(cli, 0), NULL, &err);
    const moec_layout *layout =
        st == MOEC_OK ? moec_conversion_layout(c) : NULL;
    int code;
    moec_ci_init(&r, cli, moec_cli_path(cli, 0));
    (void)moec_ci_begin(&r, NULL);
    if (report != NULL)
        moec_ci_take(&r, report, layout);
    else
        moec_ci_take_results(&r, v, layout);
    memset(&err, 0, sizeof(err));
    st = moec_ci_settle(&r, &err);
    code = st == MOEC_OK ? moec_ci_write(&r) : moec_cli_fail(cli, st, &err);
    moec_ci_fini(&r);
    moec_conversion_close(c);
    return code;
}
