/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Man pages out of the table of commands, in man(7)'s macros. No date: a page
 * is of a version, and the same version gives the same bytes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "describe.h"

/* Text of a line: a backslash or a hyphen would be read as something else, and
 * so would a dot or a quote where a line begins. */
static void put(FILE *f, const char *s, size_t n)
{
    if (n != 0 && (s[0] == '.' || s[0] == '\''))
        (void)fputs("\\&", f);
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\\')
            (void)fputs("\\e", f);
        else if (s[i] == '-')
            (void)fputs("\\-", f);
        else if (s[i] == '~')
            (void)fputs("\\(ti", f);
        else if (s[i] == '^')
            (void)fputs("\\(ha", f);
        else
            (void)fputc(s[i], f);
    }
}

static void put_text(FILE *f, const char *s)
{
    put(f, s, strlen(s));
}

static char upper(char c)
{
    static const char small[] = "abcdefghijklmnopqrstuvwxyz";
    static const char large[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const char *at = c != '\0' ? strchr(small, c) : NULL;
    if (at == NULL)
        return c;
    return large[at - small];
}

/* "moe-convert-placement-check", the page of a command. */
static void put_page(FILE *f, const moec_cli_command *cmd, bool capitals)
{
    const char *parts[] = {"moe-convert", cmd != NULL ? cmd->name : NULL};
    for (size_t i = 0; i < 2 && parts[i] != NULL; i++) {
        if (i > 0)
            (void)fputs("\\-", f);
        for (const char *p = parts[i]; *p != '\0'; p++) {
            if (*p == ' ' || *p == '-')
                (void)fputs("\\-", f);
            else
                (void)fputc(capitals ? upper(*p) : *p, f);
        }
    }
}

static void head(FILE *f, const moec_cli_command *cmd, const char *line)
{
    (void)fputs(".\\\" Made by moe-convert from its own table of options.\n"
                ".TH \"",
                f);
    put_page(f, cmd, true);
    (void)fprintf(f, "\" 1 \"\" \"moe\\-convert %s\" \"User Commands\"\n",
                  moec_version());
    (void)fputs(".SH NAME\n", f);
    put_page(f, cmd, false);
    (void)fputs(" \\- ", f);
    put_text(f, line);
    (void)fputc('\n', f);
}

/* Each line of `text` as a command line of the program. */
static void put_lines(FILE *f, const char *text)
{
    (void)fputs(".nf\n", f);
    while (*text != '\0') {
        size_t n = strcspn(text, "\n");
        (void)fputs("\\fBmoe\\-convert\\fR ", f);
        put(f, text, n);
        (void)fputc('\n', f);
        text += n + (text[n] == '\n');
    }
    (void)fputs(".fi\n", f);
}

static void put_option(FILE *f, const moec_cli_opt *o)
{
    const char *def = o->def != NULL ? o->def : o->note;
    (void)fputs(".TP\n", f);
    if (o->letter != 0)
        (void)fprintf(f, "\\fB\\-%c\\fR, ", o->letter);
    (void)fputs("\\fB\\-\\-", f);
    put_text(f, o->name);
    (void)fputs("\\fR", f);
    if (o->arg != NULL) {
        (void)fputs(" \\fI", f);
        put_text(f, o->arg);
        (void)fputs("\\fR", f);
    }
    (void)fputc('\n', f);
    put_text(f, o->help);
    if (def != NULL) {
        (void)fputs(strncmp(def, "required", 8) == 0 ? " (" : " (default: ", f);
        put_text(f, def);
        (void)fputc(')', f);
    }
    (void)fputc('\n', f);
}

static void exit_codes(FILE *f)
{
    static const struct {
        const char *code, *what;
    } rows[] = {
        {"0", "Done, nothing found."},
        {"1", "The check found something."},
        {"2", "Usage."},
        {"3", "Malformed or unsupported input; nothing written."},
        {"4", "System: I/O, memory, space. To try again may help."},
        {"5", "Bytes do not have the digest or signature they must have."},
        {"6", "Locked: another process works on the same output."},
        {"7", "Not available on this machine."},
        {"70", "Internal error: a bug."},
        {"130, 143", "Interrupted; the same command goes on."},
    };
    (void)fputs(".SH EXIT STATUS\n", f);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        (void)fprintf(f, ".TP\n\\fB%s\\fR\n%s\n", rows[i].code, rows[i].what);
}

static void see_also(FILE *f, const moec_cli_command *const *list,
                     const moec_cli_command *above)
{
    (void)fputs(".SH SEE ALSO\n", f);
    if (list == NULL) {
        (void)fputs(".BR ", f);
        put_page(f, above, false);
        (void)fputs(" (1)\n", f);
        return;
    }
    for (; *list != NULL; list++) {
        (void)fputs(".BR ", f);
        put_page(f, *list, false);
        (void)fprintf(f, " (1)%s\n", list[1] != NULL ? "," : "");
    }
}

/* A list of commands: the program's, or those of a command. */
static void list_page(FILE *f, const moec_cli_command *cmd,
                      const moec_cli_command *const *list)
{
    head(f, cmd,
         cmd != NULL ? cmd->line
                     : "mixture-of-experts checkpoints as physical slots");
    (void)fputs(".SH SYNOPSIS\n\\fBmoe\\-convert\\fR ", f);
    if (cmd != NULL) {
        put_text(f, cmd->name);
        (void)fputc(' ', f);
    }
    (void)fputs("\\fICOMMAND\\fR [\\fIoptions\\fR] \\fIPATH\\fR...\n", f);
    (void)fputs(".SH DESCRIPTION\n", f);
    if (cmd != NULL) {
        put_text(f, cmd->about);
    } else {
        put_text(f, "Converts mixture-of-experts checkpoints to physical "
                    "slots, proves the result, and takes it back. Each command "
                    "has a page of its own.");
    }
    (void)fputs("\n.SH COMMANDS\n", f);
    for (size_t i = 0; list[i] != NULL; i++) {
        const char *last = strrchr(list[i]->name, ' ');
        (void)fputs(".TP\n\\fB", f);
        put_text(f, last != NULL ? last + 1 : list[i]->name);
        (void)fputs("\\fR\n", f);
        put_text(f, list[i]->line);
        (void)fputc('\n', f);
    }
    if (cmd == NULL) {
        (void)fputs(".SH OPTIONS\n.TP\n\\fB\\-\\-version\\fR\nPrint the "
                    "version.\n.TP\n\\fB\\-\\-completion\\fR "
                    "\\fIbash|zsh|fish\\fR\nPrint what the shell needs to "
                    "complete commands and options.\n",
                    f);
        exit_codes(f);
    }
    see_also(f, list, NULL);
}

static void page(FILE *f, const moec_cli_command *cmd,
                 const moec_cli_command *above)
{
    head(f, cmd, cmd->line);
    (void)fputs(".SH SYNOPSIS\n", f);
    put_lines(f, cmd->usage);
    (void)fputs(".SH DESCRIPTION\n", f);
    put_text(f, cmd->about);
    (void)fputs("\n.SH OPTIONS\n", f);
    for (const moec_cli_group *const *g = cmd->groups; *g != NULL; g++) {
        (void)fputs(".SS ", f);
        put_text(f, (*g)->title);
        (void)fputc('\n', f);
        for (size_t i = 0; i < (*g)->n; i++)
            put_option(f, &(*g)->opts[i]);
    }
    exit_codes(f);
    (void)fputs(".SH EXAMPLES\n", f);
    put_lines(f, cmd->examples);
    see_also(f, NULL, above);
}

/* DIR/moe-convert-NAME.1, open for writing. */
static FILE *open_page(const char *dir, const moec_cli_command *cmd)
{
    char *path = NULL;
    int n = asprintf(&path, "%s/moe-convert%s%s.1", dir, cmd != NULL ? "-" : "",
                     cmd != NULL ? cmd->name : "");
    if (n < 0)
        return NULL;
    for (char *p = path + strlen(dir); *p != '\0'; p++) {
        if (*p == ' ')
            *p = '-';
    }
    FILE *f = fopen(path, "we");
    free(path);
    return f;
}

static bool close_page(FILE *f)
{
    bool bad = ferror(f) != 0;
    return fclose(f) == 0 && !bad;
}

static bool write_list(const char *dir, const moec_cli_command *cmd,
                       const moec_cli_command *const *list)
{
    FILE *f = open_page(dir, cmd);
    if (f == NULL)
        return false;
    list_page(f, cmd, list);
    return close_page(f);
}

static bool write_page(const char *dir, const moec_cli_command *cmd,
                       const moec_cli_command *above)
{
    FILE *f = open_page(dir, cmd);
    if (f == NULL)
        return false;
    page(f, cmd, above);
    return close_page(f);
}

bool moec_cli_write_man(const moec_cli_command *const *commands,
                        const char *dir)
{
    if (!write_list(dir, NULL, commands))
        return false;
    for (size_t i = 0; commands[i] != NULL; i++) {
        const moec_cli_command *cmd = commands[i];
        bool ok = cmd->subs != NULL ? write_list(dir, cmd, cmd->subs)
                                    : write_page(dir, cmd, NULL);
        for (size_t k = 0; ok && cmd->subs != NULL && cmd->subs[k] != NULL; k++)
            ok = write_page(dir, cmd->subs[k], cmd);
        if (!ok)
            return false;
    }
    return true;
}
