/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a command line to the paths that the process may still touch: the table
 * says what of it each command writes, and all else that it names is read.
 * Where a command reads a checkpoint, that is what the links of a Hugging Face
 * snapshot lead to as well, and the cache where a path argument is no path.
 * What is written is given by the directory that holds it: outputs are made
 * beside their place, and renamed.
 */
#include "confine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ci_report.h"
#include "print.h"
#include "sandbox.h"
#include "session.h"
#include "web_source.h"

enum {
    READS = 0,            /* its paths: checkpoints, or files beside others */
    READS_FILES = 1,      /* its paths, and nothing beside them */
    WRITES_FIRST = 2,     /* its first path */
    WRITES_SECOND = 4,    /* its second path */
    WRITES_WITHIN = 8,    /* into the directory that its first path is ... */
    WRITES_SIGNATURE = 16 /* ... or --signature, where that is said */
};

/* What each command may do, beside the paths of options: --out, --html,
 * --counts and --report are written, all others are read. */
static const struct {
    const char *command;
    unsigned may;
} table[] = {
    {"check", READS},
    {"convert", WRITES_SECOND},
    {"diff", READS},
    {"explain", READS},
    {"finalize", WRITES_FIRST},
    {"inspect", READS},
    {"load", READS},
    {"place", WRITES_FIRST | WRITES_SECOND},
    {"placement check", READS_FILES},
    {"placement eplb", READS_FILES},
    {"placement export", READS_FILES | WRITES_SECOND},
    {"placement import", READS_FILES | WRITES_SECOND},
    {"placement show", READS_FILES},
    {"plan", READS},
    {"routes check", READS_FILES},
    {"routes export", READS_FILES | WRITES_SECOND},
    {"routes import", READS_FILES},
    {"routes merge", READS_FILES},
    {"selftest", READS},
    {"sign", WRITES_WITHIN | WRITES_SIGNATURE},
    {"stats", READS_FILES},
    {"unconvert", WRITES_SECOND},
    {"upload", READS},
    {"validate", READS},
    {"verify", READS},
    {"verify-signature", READS},
};

static unsigned may_of(const moec_cli *cli)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        if (strcmp(table[i].command, cli->cmd->name) == 0)
            return table[i].may;
    }
    return READS;
}

typedef struct paths {
    moec_sandbox_path *at;
    size_t n, cap;
    /* A path that were left out would be "Permission denied" later. */
    bool oom;
} paths;

/* Takes `path`; NULL: there was no memory for it. */
static void add(paths *p, char *path, moec_sandbox_access access)
{
    if (path != NULL && p->n == p->cap) {
        size_t cap = p->cap * 2 + 16;
        void *at = realloc(p->at, cap * sizeof(p->at[0]));
        if (at != NULL) {
            p->at = at;
            p->cap = cap;
        }
    }
    if (path == NULL || p->n == p->cap) {
        p->oom = true;
        free(path);
        return;
    }
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

static char *real_of(paths *p, const char *path)
{
    char *real = realpath(path, NULL);
    p->oom |= real == NULL && errno == ENOMEM;
    return real;
}

/* hub/models--x--y/snapshots/REV has links into models--x--y/blobs. */
static void add_hub(paths *p, const char *dir)
{
    char *real = real_of(p, dir);
    char *above = real != NULL ? parent_of(real) : NULL;
    size_t n = above != NULL ? strlen(above) : 0;
    if (n > 11 && strcmp(above + n - 11, "/snapshots/") == 0)
        add(p, parent_of(above), MOEC_SANDBOX_READ);
    p->oom |= real != NULL && above == NULL;
    free(above);
    free(real);
}

static void add_input(paths *p, const char *path)
{
    struct stat sb;
    if (stat(path, &sb) != 0) { /* org/name, or nothing at all */
        char *cache = NULL;
        if (!moec_cli_hf_cache(&cache) || cache != NULL)
            add(p, cache, MOEC_SANDBOX_READ);
        return;
    }
    if (S_ISDIR(sb.st_mode)) {
        add(p, strdup(path), MOEC_SANDBOX_READ);
        add_hub(p, path);
        return;
    }
    /* config.json stands beside a bare file. */
    char *above = parent_of(path), *real = real_of(p, path);
    if (above != NULL)
        add_hub(p, above);
    if (real != NULL)
        add(p, parent_of(real), MOEC_SANDBOX_READ);
    add(p, above, MOEC_SANDBOX_READ);
    free(real);
}

/* Made anew beside its place, whatever stands there. */
static void add_new(paths *p, const char *path)
{
    if (path != NULL)
        add(p, parent_of(path), MOEC_SANDBOX_WRITE);
}

/* The same of a file; but what is there and is no plain file is written to as
 * it is. */
static void add_output(paths *p, const char *path)
{
    struct stat sb;
    if (path != NULL && stat(path, &sb) == 0 && !S_ISREG(sb.st_mode) &&
        !S_ISDIR(sb.st_mode))
        add(p, strdup(path), MOEC_SANDBOX_WRITE);
    else
        add_new(p, path);
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
        /* Of activations the directory is opened: fixture.json is there. */
        if (strcmp(o->arg, "SRC") == 0 || path == a->golden ||
            path == a->inputs || path == a->logits)
            add_input(p, path);
        else
            add(p, strdup(path), MOEC_SANDBOX_READ);
    }
}

static void add_inputs(paths *p, const moec_cli *cli, unsigned may)
{
    const moec_cli_group *const *g = cli->cmd->groups;
    size_t n = cli->args.n_paths;
    if ((may & WRITES_SECOND) && n > 1)
        n = 1;
    for (size_t i = 0; i < n; i++) {
        if (may & READS_FILES)
            add(p, strdup(cli->args.paths[i]), MOEC_SANDBOX_READ);
        else
            add_input(p, cli->args.paths[i]);
    }
    for (; *g != NULL; g++) {
        for (size_t i = 0; i < (*g)->n; i++)
            add_option(p, &cli->args, &(*g)->opts[i]);
    }
}

static void add_outputs(paths *p, const moec_cli *cli, unsigned may)
{
    const char *first = moec_cli_path(cli, 0), *second = moec_cli_path(cli, 1);
    const moec_cli_args *a = &cli->args;
    /* `placement import --strategy` has no input. */
    if ((may & WRITES_FIRST) || ((may & WRITES_SECOND) && a->strategy != 0))
        add_new(p, first);
    if (may & WRITES_SECOND)
        add_new(p, second);
    if ((may & WRITES_SIGNATURE) && a->signature != NULL)
        add_output(p, a->signature);
    else if ((may & WRITES_WITHIN) && first != NULL)
        add(p, strdup(first), MOEC_SANDBOX_WRITE);
    add_output(p, a->out);
    add_output(p, a->html);
    add_output(p, a->counts_out);
    for (size_t i = 0; i < a->reports.n; i++)
        add_output(p, moec_ci_report_file(a->reports.words[i]));
}

/* A plug-in's driver maps devices, forks, and talks: CUDA's compiles kernels
 * into a cache of its own, MPI starts its daemons and opens sockets at any
 * time. Neither says what it needs. */
static bool has_plugin(const moec_cli_args *a)
{
    return a->mpi || a->device == MOEC_CHOICE_DEVICE_CUDA;
}

static bool wants_network(const moec_cli_args *a)
{
    for (size_t i = 0; i < a->n_paths; i++) {
        if (moec_web_is_url(a->paths[i]))
            return true;
    }
    return moec_web_is_url(a->source);
}

static bool switched_off(const moec_cli_args *a)
{
    const char *word = getenv("MOEC_NO_SANDBOX");
    return a->no_sandbox || (word != NULL && word[0] != '\0');
}

bool moec_cli_confine(const moec_cli *cli)
{
    unsigned may = may_of(cli);
    moec_sandbox_result r;
    uint8_t digest[32];
    paths p = {0};
    if (switched_off(&cli->args) || has_plugin(&cli->args))
        return true;
    add_inputs(&p, cli, may);
    add_outputs(&p, cli, may);
    /* libcrypto reads its configuration the first time that it is asked. */
    (void)moec_digest_memory("", 0, digest, NULL);
    r = moec_sandbox_enter(p.at, p.n, wants_network(&cli->args));
    if (cli->args.verbose >= 2)
        moec_cli_line(stderr, "moe-convert: sandbox: Landlock %d, seccomp %s",
                      r.landlock, r.seccomp ? "on" : "off");
    for (size_t i = 0; i < p.n; i++)
        free((void *)(uintptr_t)p.at[i].path);
    free(p.at);
    return !p.oom;
}
