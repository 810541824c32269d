/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert convert: write the per-rank checkpoint. Everything that can be
 * refused is refused before the first byte is written.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "cli.h"
#include "cmd_sign.h"
#include "print.h"
#include "rank_list.h"
#include "session.h"
#include "web_source.h"
#include "written.h"

static const moec_cli_opt own_opts[] = {
    {"hash-source", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, hash_source),
     NULL,
     "SHA-256 of each whole source shard into the manifest; reads the source "
     "once more",
     NULL, NULL, 0},
};
static const moec_cli_group own = {"Source", own_opts, 1};
static const moec_cli_opt store_opts[] = {
    {"part-bytes", 0, MOEC_KIND_SIZE, offsetof(moec_cli_args, part_bytes), "N",
     "size of the parts that OUT behind s3:// is sent in (Amazon: 5MiB or "
     "more); each of --threads, 8 if that is not said, holds one in memory",
     "16MiB", NULL, 0},
};
static const moec_cli_group storing = {"Object store", store_opts, 1};
static const moec_cli_opt sign_opts[] = {
    {"sign", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, sign), "KEY",
     "sign OUT (model.sig in it) with this private EC key once it is complete",
     NULL, NULL, 0},
};
static const moec_cli_group signing = {"Signing", sign_opts, 1};

static const moec_cli_group *const groups[] = {&moec_group_topology,
                                               &moec_group_ranks,
                                               &own,
                                               &moec_group_write,
                                               &storing,
                                               &signing,
                                               &moec_group_common,
                                               NULL};

static int dry_run(const moec_cli *cli, const moec_cli_session *s,
                   const moec_cli_ranks *ranks, const char *out)
{
    moec_convert_opts opts = moec_cli_convert_opts(cli, NULL);
    opts.source = s->conversion;
    uint64_t memory = moec_web_is_url(out)
                          ? moec_convert_objects_memory(s->layout, &opts)
                          : moec_convert_memory(s->plan, &opts);
    struct stat sb;
    if (!cli->args.force && lstat(out, &sb) == 0)
        return moec_cli_usage(cli, "%s exists; --force replaces it", out);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_bool(&j, "dry_run", true);
        moec_cli_json_str(&j, "out", out);
        moec_cli_json_plan(&j, s->layout, ranks->mine, memory);
        moec_cli_json_finish(&j);
    } else {
        moec_cli_print_plan(s->layout, ranks->mine, memory);
        moec_cli_line(stdout, "dry run: %s is not written", out);
    }
    return MOEC_EXIT_OK;
}

/* Nothing falls to this process: there are more of them than ranks. */
static int tell_idle(const moec_cli *cli, const moec_cli_ranks *ranks,
                     const char *out)
{
    moec_convert_stats none = {0};
    moec_error err = MOEC_ERROR_INIT;
    if (!cli->args.quiet)
        moec_cli_line(stderr,
                      "moe-convert convert: %s has no rank to convert: there "
                      "are %" PRIu32,
                      ranks->said, ranks->n_ranks);
    return moec_cli_report_written(cli, out, &none, ranks, MOEC_OK, &err);
}

/* Into a directory, or into an object store. */
static moec_status run(const moec_layout *layout, const char *out,
                       const moec_convert_opts *opts, moec_convert_stats *stats,
                       moec_error *err)
{
    const struct moec_objects *to = NULL;
    if (!moec_web_is_url(out))
        return moec_convert(layout, out, opts, stats, err);
    moec_status st = moec_cli_web_objects(&to, out, err);
    return st == MOEC_OK ? moec_convert_objects(layout, to, opts, stats, err)
                         : st;
}

static int write_out(const moec_cli *cli, const moec_cli_session *s,
                     const moec_cli_ranks *ranks, const char *out)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats = {0};
    moec_cli_progress progress;
    moec_convert_opts opts = moec_cli_convert_opts(cli, &progress);
    char *command = moec_cli_command_line(cli);
    opts.command = command;
    opts.family_text = s->family;
    opts.source = s->conversion;
    opts.ranks = ranks->mine;
    moec_cli_progress_begin(&progress, cli);
    moec_status st = run(s->layout, out, &opts, &stats, &err);
    moec_cli_progress_end(&progress);
    free(command);
    if (st == MOEC_OK && cli->args.sign != NULL && ranks->mine == NULL) {
        st = moec_cli_sign_written(cli, out, &err);
        if (st != MOEC_OK && st != MOEC_E_DURABILITY)
            return moec_cli_fail(cli, st, &err);
    }
    return moec_cli_report_written(cli, out, &stats, ranks, st, &err);
}

/* A warning under --strict: say so before anything is written. */
static int refuse_warnings(const moec_cli *cli, const moec_cli_session *s)
{
    moec_cli_line(stderr, "moe-convert convert: warnings with --strict: "
                          "nothing is written");
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, false);
        moec_cli_json_problems(&j, s->ckpt, s->plan);
        moec_cli_json_finish(&j);
    }
    return MOEC_EXIT_FOUND;
}

static int write_ranks(const moec_cli *cli, const moec_cli_session *s,
                       const char *out)
{
    moec_cli_ranks ranks;
    int code =
        moec_cli_ranks_read(&ranks, cli, moec_plan_topology(s->plan).n_ranks);
    if (code != MOEC_EXIT_OK)
        return code;
    if (cli->args.dry_run)
        code = dry_run(cli, s, &ranks, out);
    else if (ranks.n == 0)
        code = tell_idle(cli, &ranks, out);
    else
        code = write_out(cli, s, &ranks, out);
    moec_cli_ranks_free(&ranks);
    return code;
}

/* What would keep the output from being signed is said before it is made. */
static moec_status check_sign(const moec_cli *cli, const moec_cli_session *s,
                              moec_error *err)
{
    char *path = NULL;
    struct stat sb;
    bool taken;
    if (cli->args.sign == NULL)
        return MOEC_OK;
    if (cli->args.ranks != NULL)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--sign: ranks are not a checkpoint yet; sign "
                              "what finalize makes of them");
    if (asprintf(&path, "%s/%s", moec_ckpt_dir(s->ckpt), MOEC_SIGNATURE_NAME) <
        0)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a path");
    taken = s->conversion == NULL && !moec_ckpt_is_bare_file(s->ckpt) &&
            lstat(path, &sb) == 0;
    free(path);
    if (taken)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--sign: the source has a " MOEC_SIGNATURE_NAME
                              ", which is copied; convert without --sign, then "
                              "sign with --signature FILE");
    return moec_cli_check_sign_key(cli, err);
}

static int convert(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_session s = {0};
    const char *out = moec_cli_path(cli, 1);
    const char *wrong = moec_cli_check_topology(cli, true);
    int code;
    if (wrong == NULL && cli->args.sign != NULL && moec_web_is_url(out))
        wrong = "--sign signs a directory, and OUT is behind a URL";
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    moec_status st = moec_cli_open_layout(&s, cli, moec_cli_path(cli, 0), &err);
    if (st == MOEC_OK)
        st = check_sign(cli, &s, &err);
    if (st != MOEC_OK) {
        moec_cli_session_close(&s);
        return moec_cli_fail(cli, st, &err);
    }
    moec_cli_print_problems(cli, s.ckpt, s.plan);
    if (cli->args.strict && moec_cli_n_warnings(s.ckpt, s.plan) != 0)
        code = refuse_warnings(cli, &s);
    else
        code = write_ranks(cli, &s, out);
    moec_cli_session_close(&s);
    return code;
}

const moec_cli_command moec_cmd_convert = {
    .name = "convert",
    .fn = convert,
    .line = "write the per-rank checkpoint",
    .usage = "convert SRC OUT --ep W [TOPOLOGY]",
    .about = "Writes OUT: for each expert-parallel rank the experts of its "
             "physical slots as stacked tensors, everything else once, and a "
             "manifest. Work happens in OUT.partial, which becomes OUT only "
             "when it is complete; interrupted or killed, the same command "
             "goes on where it was. SRC may be converted already, such as an "
             "expert store: OUT is then what its own source would have given. "
             "With --ranks several processes share the work, and finalize "
             "makes OUT of what they wrote. OUT may be s3://BUCKET/PREFIX: it "
             "is sent in parts as it is made, without a local copy, and is a "
             "checkpoint when manifest.json, the last, is there.",
    .examples = "convert ./DeepSeek-V3 ./V3-ep32 --ep 32 --redundant 32\n"
                "convert ./DeepSeek-V3 ./V3-ep8 --ep 8 --placement eplb.json\n"
                "convert ./Mixtral ./store --shard-by expert\n"
                "convert ./store ./ep16 --ep 16 --redundant 8\n"
                "convert ./Mixtral ./ep4 --ep 4 --dry-run --json\n"
                "convert ./DeepSeek-V3 ./V3-ep32 --ep 32 --ranks auto\n"
                "convert ./DeepSeek-V3 s3://models/V3-ep32 --ep 32",
    .groups = groups,
    .min_paths = 2,
    .max_paths = 2,
    .url_paths = 3u,
};
