/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a command line to the paths that the process may still touch. Read:
 * every path argument, every option whose argument is a file, what the links
 * of a Hugging Face snapshot lead to, and the cache where a path argument is
 * no path. Written: the directory that holds OUT, because OUT is renamed into
 * it; for a signature or a report the directory that holds it.
 */
#include "confine.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ci_report.h"
#include "print.h"
#include "sandbox.h"
#include "session.h"
#include "web_source.h"

enum { PATHS_MAX = 256 };

typedef struct paths {
    moec_sandbox_path at[PATHS_MAX];
    char *own[PATHS_MAX];
    size_t n;
} paths;

/* Takes `path`, which may be NULL. A path too many stays closed. */
static void add(paths *p, char *path, moec_sandbox_access access)
{
    if (path == NULL || p->n == PATHS_MAX) {
        free(path);
        return;
    }
    p->own[p->n] = path;
    p->at[p->n++] = (moec_sandbox_path){.path = path, .access = access};
}

/* The directory that holds `path`, as it is spelled; to be freed. */
static char *parent_of(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    while (n > 0 && path[n - 1] != '/')
        n--;
    return n == 0 ? strdup(".") : strndup(path, n);
}

/* hub/models--x--y/snapshots/REV has links into models--x--y/blobs. */
static void add_hub(paths *p, const char *dir)
{
    char *real = realpath(dir, NULL);
    char *above = real != NULL ? parent_of(real) : NULL;
    size_t n = above != NULL ? strlen(above) : 0;
    if (n > 11 && strcmp(above + n - 11, "/snapshots/") == 0)
        add(p, parent_of(above), MOEC_SANDBOX_READ);
    free(above);
    free(real);
}

static void add_input(paths *p, const char *path)
{
    struct stat sb;
    if (stat(path, &sb) != 0) { /* org/name, or nothing at all */
        add(p, moec_cli_hf_cache(), MOEC_SANDBOX_READ);
        return;
    }
    if (S_ISDIR(sb.st_mode)) {
        add(p, strdup(path), MOEC_SANDBOX_READ);
        add_hub(p, path);
        return;
    }
    /* config.json stands beside a bare file. */
    char *above = parent_of(path), *real = realpath(path, NULL);
    if (above != NULL)
        add_hub(p, above);
    if (real != NULL)
        add(p, parent_of(real), MOEC_SANDBOX_READ);
    add(p, above, MOEC_SANDBOX_READ);
    free(real);
}

/* Does the option's argument name something to read? */
static bool is_file(const moec_cli_opt *o)
{
    static const char *const words[] = {"FILE", "SRC", "KEY", "DIR"};
    if (o->kind != MOEC_KIND_TEXT && o->kind != MOEC_KIND_LIST)
        return false;
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcmp(o->arg, words[i]) == 0)
            return true;
    }
    return false;
}

static void add_option(paths *p, const moec_cli_args *a, const moec_cli_opt *o)
{
    const void *field = (const char *)a + o->field;
    if (!is_file(o))
        return;
    if (o->kind == MOEC_KIND_LIST) {
        const moec_cli_list *list = field;
        for (size_t i = 0; i < list->n; i++)
            add(p, strdup(list->words[i]), MOEC_SANDBOX_READ);
    } else if (*(const char *const *)field != NULL) {
        const char *path = *(const char *const *)field;
        if (strcmp(o->arg, "SRC") == 0)
            add_input(p, path);
        else
            add(p, strdup(path), MOEC_SANDBOX_READ);
    }
}

/* A report replaces a file, in whose directory it is made; what is there and
 * is no plain file is written to as it is. */
static void add_reports(paths *p, const moec_cli_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        const char *file = moec_ci_report_file(list->words[i]);
        struct stat sb;
        if (file == NULL)
            continue;
        if (stat(file, &sb) == 0 && !S_ISREG(sb.st_mode))
            add(p, strdup(file), MOEC_SANDBOX_WRITE);
        else
            add(p, parent_of(file), MOEC_SANDBOX_WRITE);
    }
}

static void add_outputs(paths *p, const moec_cli *cli)
{
    const char *first = moec_cli_path(cli, 0), *second = moec_cli_path(cli, 1);
    const char *signature = cli->args.signature;
    add_reports(p, &cli->args.reports);
    switch (cli->cmd->confine) {
    case MOEC_CONFINE_NOT:
    case MOEC_CONFINE_READS:
        return;
    case MOEC_CONFINE_WRITES_FIRST:
        if (first != NULL)
            add(p, parent_of(first), MOEC_SANDBOX_WRITE);
        return;
    case MOEC_CONFINE_WRITES_SECOND:
        if (second != NULL)
            add(p, parent_of(second), MOEC_SANDBOX_WRITE);
        return;
    case MOEC_CONFINE_SIGNS:
        if (signature != NULL)
            add(p, parent_of(signature), MOEC_SANDBOX_WRITE);
        else if (first != NULL)
            add(p, strdup(first), MOEC_SANDBOX_WRITE);
        return;
    }
}

static void add_inputs(paths *p, const moec_cli *cli)
{
    const moec_cli_group *const *g = cli->cmd->groups;
    size_t n = cli->args.n_paths;
    /* The second path of these is the output. */
    if (cli->cmd->confine == MOEC_CONFINE_WRITES_SECOND && n > 1)
        n = 1;
    for (size_t i = 0; i < n; i++)
        add_input(p, cli->args.paths[i]);
    for (; *g != NULL; g++) {
        for (size_t i = 0; i < (*g)->n; i++)
            add_option(p, &cli->args, &(*g)->opts[i]);
    }
}

void moec_cli_confine(const moec_cli *cli)
{
    moec_sandbox_result r;
    uint8_t digest[32];
    paths *p;
    if (cli->cmd->confine == MOEC_CONFINE_NOT || cli->args.no_sandbox)
        return;
    /* A URL needs the network, name servers and certificates. */
    for (size_t i = 0; i < cli->args.n_paths; i++) {
        if (moec_web_is_url(cli->args.paths[i]))
            return;
    }
    if (moec_web_is_url(cli->args.source))
        return;
    p = calloc(1, sizeof(*p));
    if (p == NULL)
        return;
    add_inputs(p, cli);
    add_outputs(p, cli);
    /* libcrypto reads its configuration the first time that it is asked. */
    (void)moec_digest_memory("", 0, digest, NULL);
    r = moec_sandbox_enter(p->at, p->n);
    if (cli->args.verbose >= 2)
        moec_cli_line(stderr, "moe-convert: sandbox: Landlock %d, seccomp %s",
                      r.landlock, r.seccomp ? "on" : "off");
    for (size_t i = 0; i < p->n; i++)
        free(p->own[i]);
    free(p);
}
