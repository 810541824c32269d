/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert unconvert: the source's files back, byte for byte. Conversions
 * that left tensors out need the source for these (MOE-M09).
 */
#include <inttypes.h>

#include "cli.h"
#include "print.h"
#include "session.h"
#include "written.h"

static const moec_cli_opt own_opts[] = {
    {"source", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, source), "SRC",
     "what was converted: tensors that --no-mtp left out come from there", NULL,
     "they are refused", 0},
};
static const moec_cli_group own = {"Unconvert", own_opts, 1};
static const moec_cli_group *const groups[] = {&own, &moec_group_write,
                                               &moec_group_common, NULL};

static int dry_run(const moec_cli *cli, const moec_conversion *c,
                   const char *out)
{
    const moec_plan *plan = moec_layout_plan(moec_conversion_layout(c));
    const moec_ckpt *ckpt = moec_model_ckpt(moec_plan_model(plan));
    size_t n = moec_ckpt_n_files(ckpt);
    moec_cli_json j;
    char size[24];
    if (cli->args.json) {
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_bool(&j, "dry_run", true);
        moec_cli_json_str(&j, "out", out);
        moec_cli_json_array(&j, "files");
        for (size_t i = 0; i < n; i++) {
            const moec_file *f = moec_ckpt_file(ckpt, i);
            moec_cli_json_object_row(&j, NULL);
            moec_cli_json_str(&j, "name", f->name);
            moec_cli_json_u64(&j, "bytes", f->bytes);
            moec_cli_json_end(&j);
        }
        moec_cli_json_finish(&j);
    } else {
        for (size_t i = 0; i < n; i++) {
            const moec_file *f = moec_ckpt_file(ckpt, i);
            moec_cli_line(stdout, "%11s  %s", moec_cli_size(size, f->bytes),
                          f->name);
        }
        moec_cli_line(stdout, "dry run: %s is not written", out);
    }
    return MOEC_EXIT_OK;
}

static int unconvert(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats = {0};
    moec_cli_progress progress;
    moec_conversion *c = NULL;
    const char *dir = moec_cli_path(cli, 0), *out = moec_cli_path(cli, 1);
    moec_ckpt *original = NULL;
    moec_status st = moec_cli_open_conversion(&c, dir, NULL, &err);
    int code;
    if (st == MOEC_OK && cli->args.source != NULL)
        st = moec_cli_open_source(&original, cli, cli->args.source, &err);
    if (st == MOEC_OK && cli->args.dry_run)
        st = moec_unconvert_check(c, original, &err);
    if (st == MOEC_OK && cli->args.dry_run) {
        code = dry_run(cli, c, out);
    } else {
        moec_convert_opts opts = moec_cli_convert_opts(cli, &progress);
        opts.source = c;
        opts.original = original;
        moec_cli_progress_begin(&progress, cli);
        if (st == MOEC_OK)
            st = moec_unconvert(out, &opts, &stats, &err);
        moec_cli_progress_end(&progress);
        code = moec_cli_report_written(cli, out, &stats, NULL, st, &err);
    }
    moec_ckpt_close(original);
    moec_conversion_close(c);
    return code;
}

const moec_cli_command moec_cmd_unconvert = {
    .name = "unconvert",
    .fn = unconvert,
    .line = "the source's files back, byte for byte",
    .usage = "unconvert OUT DIR [--source SRC]",
    .about = "Writes DIR: the files that OUT was converted from, the same "
             "names and bytes. A conversion that left tensors out (--no-mtp) "
             "is refused unless its source is given.",
    .examples = "unconvert ./V3-ep32 ./V3-again\n"
                "unconvert ./V3-no-mtp ./V3-again --source ./DeepSeek-V3\n"
                "unconvert ./V3-ep32 ./V3-again --dry-run",
    .groups = groups,
    .min_paths = 2,
    .max_paths = 2,
    .url_paths = 1u,
};
