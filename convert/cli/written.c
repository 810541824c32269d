/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by convert and unconvert. A result whose last fsync failed is neither
 * success nor nothing done: it is reported with its figures, "durability
 * uncertain", and exit 4.
 */
#include "written.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "memory_file.h"
#include "print.h"
#include "web_source.h"

/* A line of its own: a bar that is drawn on this line comes later. */
static void say_resumed(void *ctx, uint64_t done, uint64_t total)
{
    const moec_cli_progress *p = ctx;
    char a[24], b[24];
    moec_cli_line(stderr,
                  "moe-convert %s: going on: %s of %s were already "
                  "there",
                  p->label, moec_cli_size(a, done), moec_cli_size(b, total));
}

moec_convert_opts moec_cli_convert_opts(const moec_cli *cli,
                                        moec_cli_progress *progress)
{
    moec_convert_opts o;
    memset(&o, 0, sizeof(o));
    o.n_threads = cli->args.threads;
    o.memory_bytes = cli->args.memory;
    o.max_part_bytes = cli->args.max_part_bytes;
    o.upload_part_bytes = cli->args.part_bytes;
    o.force = cli->args.force;
    o.no_direct = cli->args.no_direct;
    o.hash_source = cli->args.hash_source;
    o.stop = &moec_cli_signal;
    if (progress != NULL) {
        o.progress = moec_cli_progress_step;
        o.progress_ctx = progress;
        if (!cli->args.quiet)
            o.resumed = say_resumed;
    }
    return o;
}

static void quote(FILE *f, const char *word)
{
    if (word[0] != '\0' &&
        word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                          "0123456789_-./=:,@+%")] == '\0') {
        (void)fputs(word, f);
        return;
    }
    (void)fputc('\'', f);
    for (; *word != '\0'; word++) {
        if (*word == '\'')
            (void)fputs("'\\''", f);
        else
            (void)fputc(*word, f);
    }
    (void)fputc('\'', f);
}

char *moec_cli_command_line(const moec_cli *cli)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = moec_cli_memory_file(&text, &bytes);
    if (f == NULL)
        return NULL;
    (void)fputs("moe-convert", f);
    for (int i = 1; i < cli->argc; i++) {
        (void)fputc(' ', f);
        quote(f, cli->argv[i]);
    }
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* Only some ranks were written: `out` is not there yet. */
static bool is_part(const moec_cli_ranks *ranks)
{
    return ranks != NULL && ranks->mine != NULL;
}

static void json_ranks(moec_cli_json *j, const moec_cli_ranks *ranks)
{
    moec_cli_json_bool(j, "complete", false);
    moec_cli_json_u64(j, "n_ranks", ranks->n_ranks);
    moec_cli_json_array_row(j, "ranks");
    for (uint32_t i = 0; i < ranks->n_ranks; i++) {
        if (ranks->mine[i])
            moec_cli_json_u64(j, NULL, i);
    }
    moec_cli_json_end(j);
}

static const char *const projections[3] = {"gate", "up", "down"};

static void json_lossy(moec_cli_json *j, const moec_convert_stats *stats)
{
    moec_cli_json_object(j, "requantised");
    for (size_t i = 0; i < 3; i++) {
        moec_cli_json_object_row(j, projections[i]);
        moec_cli_json_f64(j, "max_abs", stats->lossy[i].max_abs);
        moec_cli_json_f64(j, "relative_rms", stats->lossy[i].relative_rms);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

static void print_lossy(const moec_convert_stats *stats)
{
    for (size_t i = 0; i < 3 && stats->requantised; i++)
        moec_cli_line(stdout,
                      "requantised shared %-4s: max abs error %.3g, relative "
                      "rms %.3g",
                      projections[i], stats->lossy[i].max_abs,
                      stats->lossy[i].relative_rms);
}

static void json_stats(const moec_cli *cli, const char *out,
                       const moec_convert_stats *stats,
                       const moec_cli_ranks *ranks, moec_status status,
                       const moec_error *err)
{
    bool certain = !stats->durability_uncertain && status == MOEC_OK;
    moec_cli_json j;
    moec_cli_json_begin(&j, cli, status == MOEC_OK);
    moec_cli_json_str(&j, "out", out);
    if (is_part(ranks))
        json_ranks(&j, ranks);
    moec_cli_json_u64(&j, "bytes_read", stats->bytes_read);
    moec_cli_json_u64(&j, "bytes_written", stats->bytes_written);
    moec_cli_json_u64(&j, "resumed_bytes", stats->bytes_resumed);
    if (strcmp(cli->cmd->name, "place") == 0)
        moec_cli_json_u64(&j, "bytes_cloned", stats->bytes_cloned);
    moec_cli_json_f64(&j, "seconds", stats->seconds);
    moec_cli_json_f64(&j, "gb_per_s",
                      stats->seconds > 0.0
                          ? (double)stats->bytes_written / 1e9 / stats->seconds
                          : 0.0);
    moec_cli_json_u64(&j, "n_files", stats->n_files);
    moec_cli_json_u64(&j, "n_threads", stats->n_threads);
    moec_cli_json_str(&j, "durability", certain ? "certain" : "uncertain");
    if (cli->args.sign != NULL)
        moec_cli_json_str(&j, "signature", MOEC_SIGNATURE_NAME);
    if (stats->requantised)
        json_lossy(&j, stats);
    if (status != MOEC_OK)
        moec_cli_json_error(&j, status, err);
    moec_cli_json_finish(&j);
}

static void print_stats(const char *out, const moec_convert_stats *stats)
{
    char bytes[24], before[24], more[48] = "";
    if (stats->bytes_resumed != 0)
        (void)snprintf(more, sizeof(more), " and %s before",
                       moec_cli_size(before, stats->bytes_resumed));
    moec_cli_line(stdout,
                  "%s: %s%s in %" PRIu32 " files, %.2f s, %.2f GB/s, "
                  "durability %s",
                  out, moec_cli_size(bytes, stats->bytes_written), more,
                  stats->n_files, stats->seconds,
                  stats->seconds > 0.0
                      ? (double)stats->bytes_written / 1e9 / stats->seconds
                      : 0.0,
                  stats->durability_uncertain ? "uncertain" : "certain");
}

static void print_part(const char *out, const moec_convert_stats *stats,
                       const moec_cli_ranks *ranks)
{
    char bytes[24], before[24];
    char *text = moec_cli_ranks_text(ranks);
    if (ranks->n != 0)
        moec_cli_line(stdout,
                      "%s%s: rank%s %s of %" PRIu32 " %s there, %s "
                      "written, %s before, %.2f s",
                      out, moec_web_is_url(out) ? "" : ".partial",
                      ranks->n == 1 ? "" : "s", text ? text : "?",
                      ranks->n_ranks, ranks->n == 1 ? "is" : "are",
                      moec_cli_size(bytes, stats->bytes_written),
                      moec_cli_size(before, stats->bytes_resumed),
                      stats->seconds);
    moec_cli_line(stdout, "with all ranks there: moe-convert finalize %s", out);
    free(text);
}

int moec_cli_report_written(const moec_cli *cli, const char *out,
                            const moec_convert_stats *stats,
                            const moec_cli_ranks *ranks, moec_status status,
                            const moec_error *err)
{
    if (status == MOEC_OK || status == MOEC_E_DURABILITY) {
        if (status != MOEC_OK)
            moec_cli_line(stderr, "moe-convert %s: %s", cli->cmd->name,
                          err->text);
        if (!cli->args.json && !cli->args.quiet)
            print_lossy(stats);
        if (cli->args.json)
            json_stats(cli, out, stats, ranks, status, err);
        else if (!cli->args.quiet && is_part(ranks))
            print_part(out, stats, ranks);
        else if (!cli->args.quiet)
            print_stats(out, stats);
        return moec_cli_exit_of(status, err);
    }
    if (moec_cli_signal != 0) {
        moec_error stopped = MOEC_ERROR_INIT;
        (void)moec_cli_error(&stopped, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                             "interrupted; %s%s stays: run the same command "
                             "again to go on",
                             moec_web_is_url(out) ? "what was sent to " : out,
                             moec_web_is_url(out) ? out : ".partial");
        return moec_cli_fail(cli, MOEC_E_CANCELLED, &stopped);
    }
    return moec_cli_fail(cli, status, err);
}
