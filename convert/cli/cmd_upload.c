/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert upload: a conversion into an object store. Refuses a directory
 * that is no whole conversion, and a place that has one already.
 */
#include <inttypes.h>

#include "cli.h"
#include "print.h"
#include "web_source.h"

static const moec_cli_opt opts[] = {
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace what is there", NULL, NULL, 0},
};
static const moec_cli_group own = {"Writing", opts, 1};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

static int upload(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_uploaded u = {0};
    const char *dir = moec_cli_path(cli, 0), *url = moec_cli_path(cli, 1);
    char size[24];
    if (!moec_web_is_url(url))
        return moec_cli_usage(cli, "'%s' is no s3:// URL", url);
    moec_status st = moec_cli_web_upload(dir, url, cli->args.force, &u, &err);
    if (st != MOEC_OK)
        return moec_cli_fail(cli, st, &err);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_str(&j, "out", url);
        moec_cli_json_u64(&j, "n_files", u.n_files);
        moec_cli_json_u64(&j, "n_there_before", u.n_there);
        moec_cli_json_u64(&j, "bytes_written", u.bytes);
        moec_cli_json_u64(&j, "n_requests", u.n_requests);
        moec_cli_json_u64(&j, "n_retries", u.n_retries);
        moec_cli_json_f64(&j, "seconds", u.seconds);
        moec_cli_json_finish(&j);
    } else if (!cli->args.quiet) {
        moec_cli_line(stdout,
                      "%s: complete, %" PRIu64 " files, %" PRIu64
                      " were there, %s written",
                      url, u.n_files, u.n_there, moec_cli_size(size, u.bytes));
    }
    return MOEC_EXIT_OK;
}

const moec_cli_command moec_cmd_upload = {
    .name = "upload",
    .fn = upload,
    .line = "put a conversion into an object store",
    .usage = "upload OUT s3://BUCKET/PREFIX",
    .about = "Uploads the files of a conversion, each part with its SHA-256, "
             "manifest.json last and only where none is: where it is, all of "
             "it is. Run it again to go on: files that are there by their "
             "digest are left. Keys, region and endpoint come from the "
             "environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
             "AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL.",
    .examples = "upload ./V3-ep32 s3://models/V3-ep32",
    .groups = groups,
    .min_paths = 2,
    .max_paths = 2,
    .url_paths = 2u,
};
