/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert: the table of commands, and what holds for all of them: option
 * parsing, --help, --version, the streams. A command that is not in the table
 * does not exist: exit 2.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cli.h"
#include "confine.h"
#include "describe.h"
#include "print.h"
#include "web_source.h"

static const moec_cli_command *const commands[] = {
    &moec_cmd_inspect,  &moec_cmd_plan,
    &moec_cmd_convert,  &moec_cmd_verify,
    &moec_cmd_validate, &moec_cmd_unconvert,
    &moec_cmd_explain,  &moec_cmd_check,
    &moec_cmd_selftest, &moec_cmd_finalize,
    &moec_cmd_load,     &moec_cmd_place,
    &moec_cmd_diff,     &moec_cmd_placement,
    &moec_cmd_routes,   &moec_cmd_stats,
    &moec_cmd_sign,     &moec_cmd_verify_signature,
    &moec_cmd_upload,   NULL,
};

/* A stream closed by the caller leaves its descriptor free, and the next file
 * opened would take it: data meant for stdout would then land in a weight
 * file. Fill the three with something that fails in the right direction. */
static void guard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) != -1)
            continue;
        int got = open("/dev/null", fd == 1 ? O_RDONLY : O_WRONLY);
        if (got >= 0 && got != fd)
            (void)close(got);
    }
}

/* A checkpoint may have more shards than the usual 1024 descriptors; the low
 * limit is for programs that select(2), which we do not. */
static void raise_descriptors(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur == r.rlim_max)
        return;
    r.rlim_cur = r.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &r);
}

static int print_version(void)
{
#ifdef MOEC_GIT_ID
    moec_cli_line(stdout, "moe-convert %s (git %s, format %d)", moec_version(),
                  MOEC_GIT_ID, MOEC_FORMAT_VERSION);
#else
    moec_cli_line(stdout, "moe-convert %s (format %d)", moec_version(),
                  MOEC_FORMAT_VERSION);
#endif
    return MOEC_EXIT_OK;
}

static void print_rows(FILE *f, const moec_cli_command *const *rows)
{
    (void)fputs("\ncommands:\n", f);
    for (; *rows != NULL; rows++) {
        const char *last = strrchr((*rows)->name, ' ');
        const char *name = last ? last + 1 : (*rows)->name;
        (void)fprintf(f, "  %-12s%s%s\n", name, strlen(name) < 12 ? "" : "  ",
                      (*rows)->line);
    }
}

static void print_commands(FILE *f)
{
    (void)fputs("usage: moe-convert COMMAND [options] PATH...\n\n"
                "Converts mixture-of-experts checkpoints to physical slots, "
                "proves the\nresult, and takes it back.\n",
                f);
    print_rows(f, commands);
    (void)fputs("\nmoe-convert COMMAND --help has its options and examples.\n"
                "moe-convert --version prints the version.\n"
                "moe-convert --completion bash|zsh|fish prints what the shell "
                "needs to complete.\n",
                f);
}

/* The list of a command that has commands of its own. */
static void print_subs(FILE *f, const moec_cli_command *cmd)
{
    (void)fprintf(f, "usage: moe-convert %s COMMAND [options] PATH...\n\n",
                  cmd->name);
    moec_cli_print_folded(f, cmd->about, 0, 0);
    print_rows(f, cmd->subs);
    (void)fprintf(f,
                  "\nmoe-convert %s COMMAND --help has its options and "
                  "examples.\n",
                  cmd->name);
}

/* Print each line of `text` as a command line, `lead` in front of the first
 * and as many spaces in front of the others. */
static void print_lines(FILE *f, const char *lead, const char *text)
{
    int indent = (int)strlen(lead);
    for (bool first = true; *text != '\0'; first = false) {
        size_t n = strcspn(text, "\n");
        (void)fprintf(f, "%*smoe-convert %.*s\n", indent, first ? lead : "",
                      (int)n, text);
        text += n + (text[n] == '\n');
    }
}

static int print_help(const moec_cli_command *cmd)
{
    print_lines(stdout, "usage: ", cmd->usage);
    (void)fputc('\n', stdout);
    moec_cli_print_folded(stdout, cmd->about, 0, 0);
    moec_cli_print_options(stdout, cmd->groups);
    (void)fputs("\nExamples:\n", stdout);
    print_lines(stdout, "  ", cmd->examples);
    return MOEC_EXIT_OK;
}

/* The command's own word: "check" of "placement check". */
static const char *word_of(const moec_cli_command *cmd)
{
    const char *last = strrchr(cmd->name, ' ');
    return last != NULL ? last + 1 : cmd->name;
}

/* `above` is the command whose word is unknown, or NULL for the program. */
static int unknown_command(const moec_cli_command *const *rows,
                           const moec_cli_command *above, const char *word)
{
    const char *lead = above != NULL ? above->name : "";
    const char *gap = above != NULL ? " " : "";
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    for (; *rows != NULL; rows++) {
        size_t d = moec_cli_distance(word, word_of(*rows));
        if (d < least) {
            least = d;
            nearest = word_of(*rows);
        }
    }
    if (nearest != NULL && moec_cli_is_near(word, least))
        moec_cli_line(stderr,
                      "moe-convert%s%s: unknown command '%s'; did you mean "
                      "'%s'?",
                      gap, lead, word, nearest);
    else
        moec_cli_line(stderr, "moe-convert%s%s: unknown command '%s'", gap,
                      lead, word);
    moec_cli_line(stderr, "try: moe-convert%s%s --help", gap, lead);
    return MOEC_EXIT_USAGE;
}

/* A path that is a URL where the command takes none, or NULL. */
static const char *stray_url(const moec_cli *cli)
{
    for (size_t i = 0; i < cli->args.n_paths; i++) {
        if (moec_web_is_url(cli->args.paths[i]) &&
            (i >= 32 || !(cli->cmd->url_paths >> i & 1)))
            return cli->args.paths[i];
    }
    return NULL;
}

/* argv[0] is the command's last word, `skipped` words after main's argv[0]. */
static int run(const moec_cli_command *cmd, int argc, char **argv, int skipped)
{
    moec_cli cli = {.cmd = cmd, .argc = argc + skipped, .argv = argv - skipped};
    char why[MOEC_OPT_WHY_BYTES] = "";
    const char *url;
    int code;
    if (!moec_cli_parse(&cli.args, cmd->groups, argc, argv, why) &&
        cli.args.paths == NULL)
        code = moec_cli_no_memory(&cli, "the arguments");
    else if (why[0] != '\0')
        code = moec_cli_usage(&cli, "%s", why);
    else if (cli.args.help)
        code = print_help(cmd);
    else if (cli.args.n_paths > cmd->max_paths)
        code = moec_cli_usage(&cli, "unexpected argument '%s'",
                              cli.args.paths[cmd->max_paths]);
    else if (cli.args.n_paths < cmd->min_paths)
        code = moec_cli_usage(&cli, "an argument is missing: moe-convert %.*s",
                              (int)strcspn(cmd->usage, "\n"), cmd->usage);
    else if ((url = stray_url(&cli)) != NULL)
        code = moec_cli_usage(&cli, "%s: this command takes no URL there", url);
    else if (!moec_cli_confine(&cli))
        code = moec_cli_no_memory(&cli, "the paths of the sandbox");
    else {
        code = cmd->fn(&cli);
        moec_cli_web_close();
    }
    free(cli.args.paths);
    return code;
}

static const moec_cli_command *find(const moec_cli_command *const *rows,
                                    const char *word)
{
    for (; *rows != NULL; rows++) {
        if (strcmp(word, word_of(*rows)) == 0)
            return *rows;
    }
    return NULL;
}

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
}

static int option_first(const moec_cli_command *above, const char *word)
{
    const char *name = above != NULL ? above->name : "";
    const char *gap = above != NULL ? " " : "";
    moec_cli_line(stderr,
                  "moe-convert%s%s: unknown option '%s'; options follow the "
                  "command",
                  gap, name, word);
    moec_cli_line(stderr, "try: moe-convert%s%s --help", gap, name);
    return MOEC_EXIT_USAGE;
}

/* argv[0] is `cmd`'s last word. */
static int run_command(const moec_cli_command *cmd, int argc, char **argv,
                       int skipped)
{
    const char *word = argc > 1 ? argv[1] : NULL;
    if (cmd->subs == NULL)
        return run(cmd, argc, argv, skipped);
    if (word == NULL || is_help(word)) {
        print_subs(word == NULL ? stderr : stdout, cmd);
        return word == NULL ? MOEC_EXIT_USAGE : MOEC_EXIT_OK;
    }
    const moec_cli_command *sub = find(cmd->subs, word);
    if (sub != NULL)
        return run(sub, argc - 1, argv + 1, skipped + 1);
    return word[0] == '-' ? option_first(cmd, word)
                          : unknown_command(cmd->subs, cmd, word);
}

/* What a package is made of: --man DIR, --completion SHELL. */
static int describe(int argc, char **argv)
{
    const char *what = argv[1] + 2, *where = argc > 2 ? argv[2] : NULL;
    if (where == NULL || argc > 3) {
        moec_cli_line(stderr, "moe-convert: --%s wants one argument: %s", what,
                      strcmp(what, "man") == 0 ? "DIR" : "bash, zsh or fish");
        return MOEC_EXIT_USAGE;
    }
    if (strcmp(what, "man") == 0) {
        if (moec_cli_write_man(commands, where))
            return MOEC_EXIT_OK;
        moec_cli_line(stderr, "moe-convert: %s: %s", where, strerror(errno));
        return MOEC_EXIT_SYSTEM;
    }
    if (moec_cli_write_completion(stdout, commands, where))
        return MOEC_EXIT_OK;
    moec_cli_line(stderr,
                  "moe-convert: --completion wants bash, zsh or fish, not '%s'",
                  where);
    return MOEC_EXIT_USAGE;
}

static int dispatch(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : NULL;
    if (word == NULL) {
        print_commands(stderr);
        return MOEC_EXIT_USAGE;
    }
    if (is_help(word)) {
        print_commands(stdout);
        return MOEC_EXIT_OK;
    }
    if (strcmp(word, "--version") == 0)
        return print_version();
    if (strcmp(word, "--man") == 0 || strcmp(word, "--completion") == 0)
        return describe(argc, argv);
    const moec_cli_command *cmd = find(commands, word);
    if (cmd != NULL)
        return run_command(cmd, argc - 1, argv + 1, 1);
    return word[0] == '-' ? option_first(NULL, word)
                          : unknown_command(commands, NULL, word);
}

int main(int argc, char **argv)
{
    guard_streams();
    /* A reader that goes away is a failed write, not a death. */
    (void)signal(SIGPIPE, SIG_IGN);
    /* A limit on the size of files is a full disk, not a death either. */
    (void)signal(SIGXFSZ, SIG_IGN);
    raise_descriptors();
    return moec_cli_flush(dispatch(argc, argv));
}
