/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert sign: one signature over a directory, as OpenSSF Model Signing
 * writes it. What `convert --sign` does once its output is complete is here
 * too.
 */
#include "cmd_sign.h"

#include <inttypes.h>
#include <string.h>

#include "print.h"
#include "progress.h"

static const moec_cli_opt own_opts[] = {
    {"key", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, key), "FILE",
     "private EC key (P-256, P-384 or P-521) in PEM, not encrypted", NULL,
     "required", 0},
    {"certificate", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, certificate),
     "FILE", "certificate for that key, in PEM; without it the key is named",
     NULL, NULL, 0},
    {"certificate-chain", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, chain),
     "FILE", "more certificates that lead to a root; several times", NULL, NULL,
     0},
    {"signature", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, signature), "FILE",
     "where the signature goes", NULL, "model.sig in OUT", 0},
    {"ignore", 0, MOEC_KIND_LIST, offsetof(moec_cli_args, ignore), "PATH",
     "a path in OUT that is not signed, with what is below it; several times",
     NULL, NULL, 0},
    {"force", 'f', MOEC_KIND_FLAG, offsetof(moec_cli_args, force), NULL,
     "replace an older signature", NULL, NULL, 0},
};
static const moec_cli_group own = {"Signing", own_opts, 6};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

static moec_sign_opts sign_opts(const moec_cli *cli, const char *key)
{
    moec_sign_opts o = MOEC_SIGN_OPTS_INIT;
    o.n_threads = cli->args.threads;
    o.key = key;
    return o;
}

static moec_status run(const char *dir, const moec_cli *cli,
                       moec_sign_opts *opts, moec_signature_stats *stats,
                       moec_error *err)
{
    moec_cli_progress progress;
    moec_status st;
    opts->progress = moec_cli_progress_step;
    opts->progress_ctx = &progress;
    moec_cli_progress_begin(&progress, cli);
    st = moec_cli_progress_step(&progress, 0, 0) != 0
             ? MOEC_E_CANCELLED
             : moec_sign(dir, opts, stats, err);
    moec_cli_progress_end(&progress);
    if (st != MOEC_OK && st != MOEC_E_DURABILITY && moec_cli_signal != 0) {
        memset(err, 0, sizeof(*err));
        st = moec_cli_error(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                            "interrupted; %s is not signed", dir);
    }
    return st;
}

moec_status moec_cli_check_sign_key(const moec_cli *cli, moec_error *err)
{
    moec_sign_opts o = sign_opts(cli, cli->args.sign);
    return moec_sign_check_key(&o, err);
}

moec_status moec_cli_sign_written(const moec_cli *cli, const char *out,
                                  moec_error *err)
{
    moec_sign_opts o = sign_opts(cli, cli->args.sign);
    moec_error why = MOEC_ERROR_INIT;
    moec_status st = run(out, cli, &o, NULL, &why);
    if (st == MOEC_OK || st == MOEC_E_DURABILITY) {
        *err = why;
        return st;
    }
    return moec_cli_error(err, st, why.rule,
                          "%s is complete and not signed (moe-convert sign "
                          "signs it): %s",
                          out, why.text);
}

static int report(const moec_cli *cli, const char *out,
                  const moec_signature_stats *stats, moec_status st,
                  const moec_error *err)
{
    const char *path = cli->args.signature;
    char size[24];
    if (st != MOEC_OK)
        moec_cli_line(stderr, "moe-convert sign: %s", err->text);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, st == MOEC_OK);
        moec_cli_json_str(&j, "out", out);
        moec_cli_json_str(&j, "signature", path ? path : MOEC_SIGNATURE_NAME);
        moec_cli_json_u64(&j, "n_files", stats->n_files);
        moec_cli_json_u64(&j, "bytes", stats->bytes);
        moec_cli_json_u64(&j, "n_ignored", stats->n_ignored);
        moec_cli_json_str(&j, "durability",
                          st == MOEC_OK ? "certain" : "uncertain");
        if (st != MOEC_OK)
            moec_cli_json_error(&j, st, err);
        moec_cli_json_finish(&j);
    } else if (!cli->args.quiet) {
        moec_cli_line(stdout, "%s: %" PRIu64 " files, %s signed, %s", out,
                      stats->n_files, moec_cli_size(size, stats->bytes),
                      path ? path : MOEC_SIGNATURE_NAME);
    }
    return moec_cli_exit_of(st, err);
}

static int sign(moec_cli *cli)
{
    const moec_cli_args *a = &cli->args;
    moec_error err = MOEC_ERROR_INIT;
    moec_signature_stats stats = {0};
    moec_sign_opts o = sign_opts(cli, a->key);
    const char *out = moec_cli_path(cli, 0);
    moec_status st;
    if (a->key == NULL)
        return moec_cli_usage(cli, "--key FILE is missing: the private key");
    if (a->chain.n != 0 && a->certificate == NULL)
        return moec_cli_usage(cli, "--certificate-chain needs --certificate");
    o.certificate = a->certificate;
    o.chain = a->chain.words;
    o.n_chain = a->chain.n;
    o.signature = a->signature;
    o.ignore = a->ignore.words;
    o.n_ignore = a->ignore.n;
    o.replace = a->force;
    st = run(out, cli, &o, &stats, &err);
    if (st == MOEC_OK || st == MOEC_E_DURABILITY)
        return report(cli, out, &stats, st, &err);
    return moec_cli_fail(cli, st, &err);
}

const moec_cli_command moec_cmd_sign = {
    .name = "sign",
    .fn = sign,
    .line = "sign a directory as OpenSSF Model Signing does",
    .usage = "sign OUT --key FILE [--certificate FILE]",
    .about =
        "Writes one signature (a Sigstore bundle) over all files of OUT, which "
        "verify-signature and model-signing 1.x check. Reads every byte. Files "
        "of a converted checkpoint cannot be left out; .git, .gitattributes, "
        ".github and .gitignore always are.",
    .examples = "sign ./V3-ep32 --key key.pem\n"
                "sign ./V3-ep32 --key key.pem --certificate cert.pem "
                "--certificate-chain ca.pem\n"
                "sign ./V3-ep32 --key key.pem --signature v3.sig --force",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
};
