/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert verify-signature: who signed a directory, and is it what was
 * signed. Anything else than yes to both is exit 5; what cannot be read as a
 * signature or a key is exit 3.
 */
#include <inttypes.h>
#include <string.h>

#include "cli.h"
#include "print.h"
#include "progress.h"

static const moec_cli_opt own_opts[] = {
    {"key", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, key), "FILE",
     "public EC key in PEM of whoever must have signed", NULL, NULL, 0},
    {"certificate-chain", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, chain),
     "FILE", "instead of a key: certificates to trust, in PEM; several times",
     NULL, NULL, 0},
    {"signature", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, signature), "FILE",
     "the signature", NULL, "model.sig in OUT", 0},
    {"ignore", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, ignore), "PATH",
     "a path in OUT that need not be signed, with what is below it; several "
     "times",
     NULL, NULL, 0},
    {"ignore-unsigned", 0, MOEC_KIND_FLAG,
     offsetof(moec_cli_args, ignore_unsigned), NULL,
     "files that are not signed are no finding", NULL, NULL, 0},
};
static const moec_cli_group own = {"Signature", own_opts, 5};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

static void print_json(const moec_cli *cli, const moec_signature *s,
                       const moec_signature_stats *stats)
{
    const char *path = cli->args.signature;
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, true);
    moec_cli_json_str(&j, "out", moec_cli_path(cli, 0));
    moec_cli_json_str(&j, "signature", path ? path : MOEC_SIGNATURE_NAME);
    moec_cli_json_str(&j, "curve", moec_signature_curve(s));
    moec_cli_json_str(&j, "subject",
                      moec_signature_subject(s)[0] != '\0'
                          ? moec_signature_subject(s)
                          : NULL);
    moec_cli_json_u64(&j, "n_files", stats->n_files);
    moec_cli_json_u64(&j, "bytes", stats->bytes);
    moec_cli_json_u64(&j, "n_ignored", stats->n_ignored);
    moec_cli_json_array_row(&j, "ignored");
    for (size_t i = 0; i < moec_signature_n_ignored(s); i++)
        moec_cli_json_str(&j, NULL, moec_signature_ignored(s, i));
    moec_cli_json_end(&j);
    moec_cli_json_finish(&j);
}

static void print_text(const moec_cli *cli, const moec_signature *s,
                       const moec_signature_stats *stats)
{
    const char *subject = moec_signature_subject(s);
    char size[24];
    moec_cli_line(
        stdout, "%s: %" PRIu64 " files, %s are as signed by %s%s%s (%s)",
        moec_cli_path(cli, 0), stats->n_files,
        moec_cli_size(size, stats->bytes), subject[0] != '\0' ? "'" : "",
        subject[0] != '\0' ? subject : "the key", subject[0] != '\0' ? "'" : "",
        moec_signature_curve(s));
    if (stats->n_ignored != 0)
        moec_cli_line(stdout, "%" PRIu64 " more %s ignored", stats->n_ignored,
                      stats->n_ignored == 1 ? "is" : "are");
}

static int verify_signature(moec_cli *cli)
{
    const moec_cli_args *a = &cli->args;
    moec_error err = MOEC_ERROR_INIT;
    moec_signature_opts o = MOEC_SIGNATURE_OPTS_INIT;
    moec_signature_stats stats = {0};
    moec_signature *s = NULL;
    moec_cli_progress progress;
    moec_status st;
    int code = MOEC_EXIT_OK;
    if ((a->key != NULL) == (a->chain.n != 0))
        return moec_cli_usage(cli, "whose signature? --key FILE or "
                                   "--certificate-chain FILE, one of the two");
    o.n_threads = a->threads;
    o.key = a->key;
    o.roots = a->chain.words;
    o.n_roots = a->chain.n;
    o.signature = a->signature;
    o.ignore = a->ignore.words;
    o.n_ignore = a->ignore.n;
    o.ignore_unsigned = a->ignore_unsigned;
    o.progress = moec_cli_progress_step;
    o.progress_ctx = &progress;
    st = moec_signature_open(&s, moec_cli_path(cli, 0), &o, &err);
    if (st == MOEC_OK) {
        moec_cli_progress_begin(&progress, cli);
        st = moec_signature_check_files(s, &o, &stats, &err);
        moec_cli_progress_end(&progress);
    }
    if (st != MOEC_OK && moec_cli_signal != 0) {
        memset(&err, 0, sizeof(err));
        st = moec_cli_error(&err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                            "interrupted; nothing is verified");
    }
    if (st != MOEC_OK)
        code = moec_cli_fail(cli, st, &err);
    else if (a->json)
        print_json(cli, s, &stats);
    else if (!a->quiet)
        print_text(cli, s, &stats);
    moec_signature_close(s);
    return code;
}

const moec_cli_command moec_cmd_verify_signature = {
    .name = "verify-signature",
    .fn = verify_signature,
    .line = "who signed a directory, and is it what was signed",
    .usage = "verify-signature OUT --key FILE\n"
             "verify-signature OUT --certificate-chain FILE",
    .about =
        "Checks a signature that sign, convert --sign or model-signing wrote: "
        "that the key made it, and that OUT holds exactly the files that were "
        "signed. Reads every byte. Exit 5 where it does not hold.",
    .examples = "verify-signature ./V3-ep32 --key key.pub\n"
                "verify-signature ./V3-ep32 --certificate-chain ca.pem --json\n"
                "verify-signature ./DeepSeek-V3 --signature v3.sig --key "
                "key.pub",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
};
