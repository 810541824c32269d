/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert finalize: the end of a conversion by several processes.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"
#include "print.h"
#include "session.h"
#include "web_source.h"
#include "written.h"

static const moec_cli_opt opts[] = {
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace an output that exists, once the new one is complete", NULL, NULL,
     0},
};
static const moec_cli_group own = {"Writing", opts, 1};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

/* OUT is there and nothing waits beside it: somebody has finished it. A job
 * that is started again asks twice. */
static moec_status is_done(const char *out, bool *done, moec_error *err)
{
    struct stat sb;
    char *partial = NULL;
    size_t n = strlen(out);
    while (n > 1 && out[n - 1] == '/')
        n--;
    moec_status st = moec_convert_is_output(out, done, err);
    if (st != MOEC_OK || !*done)
        return st;
    if (asprintf(&partial, "%.*s.partial", (int)n, out) < 0)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a path");
    *done = lstat(partial, &sb) != 0 && errno == ENOENT;
    free(partial);
    return MOEC_OK;
}

static moec_status finish_objects(const char *url, bool *before,
                                  moec_error *err)
{
    const struct moec_objects *to = NULL;
    moec_convert_stats stats;
    moec_status st = moec_cli_web_objects(&to, url, err);
    return st == MOEC_OK ? moec_finalize_objects(to, &stats, before, err) : st;
}

static int tell(const moec_cli *cli, const moec_conversion *c, bool before,
                moec_status st, const moec_error *err)
{
    const moec_layout *layout = moec_conversion_layout(c);
    const char *out = moec_cli_path(cli, 0);
    moec_topology t = moec_plan_topology(moec_layout_plan(layout));
    size_t n = moec_layout_n_files(layout);
    uint64_t bytes = 0;
    char size[24];
    for (size_t i = 0; i < n; i++)
        bytes += moec_layout_file(layout, i)->bytes;
    if (st != MOEC_OK)
        moec_cli_line(stderr, "moe-convert finalize: %s", err->text);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, st == MOEC_OK);
        moec_cli_json_str(&j, "out", out);
        moec_cli_json_bool(&j, "complete", true);
        moec_cli_json_bool(&j, "complete_before", before);
        moec_cli_json_u64(&j, "n_ranks", t.n_ranks);
        moec_cli_json_u64(&j, "n_files", n);
        moec_cli_json_u64(&j, "bytes", bytes);
        moec_cli_json_str(&j, "durability",
                          st == MOEC_OK ? "certain" : "uncertain");
        if (st != MOEC_OK)
            moec_cli_json_error(&j, st, err);
        moec_cli_json_finish(&j);
    } else if (!cli->args.quiet) {
        moec_cli_line(stdout, "%s: %s, %" PRIu32 " ranks, %s in %zu files", out,
                      before ? "complete already" : "complete", t.n_ranks,
                      moec_cli_size(size, bytes), n);
    }
    return moec_cli_exit_of(st, err);
}

static int finalize(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT, why = MOEC_ERROR_INIT;
    moec_convert_stats stats = {0};
    moec_conversion *c = NULL;
    const char *out = cli->args.paths[0];
    moec_convert_opts o = moec_cli_convert_opts(cli, NULL);
    bool before = false;
    moec_status st = moec_web_is_url(out) ? finish_objects(out, &before, &err)
                                          : is_done(out, &before, &err);
    if (st == MOEC_OK && !before && !moec_web_is_url(out))
        st = moec_finalize(out, &o, &stats, &err);
    if (st != MOEC_OK && st != MOEC_E_DURABILITY)
        return moec_cli_fail(cli, st, &err);
    moec_status opened = moec_cli_open_conversion(&c, out, NULL, &why);
    if (opened != MOEC_OK)
        return moec_cli_fail(cli, opened, &why);
    int code = tell(cli, c, before, st, &err);
    moec_conversion_close(c);
    return code;
}

const moec_cli_command moec_cmd_finalize = {
    .name = "finalize",
    .fn = finalize,
    .line = "merge the ranks that several processes converted, prove, commit",
    .usage = "finalize OUT|s3://BUCKET/PREFIX",
    .about = "Makes OUT of OUT.partial, into which several processes have "
             "converted all ranks with --ranks: the same bytes as one process "
             "would have written. Does not need the source. Refuses while a "
             "rank is missing, naming it.",
    .examples = "finalize ./V3-ep32\n"
                "finalize ./V3-ep32 --json",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
    .url_paths = 1u,
};
