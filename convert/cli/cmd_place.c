/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert place: another placement for a conversion, out of its own files.
 * Refuses expert stores, which have no placement, and whatever convert would
 * refuse of the placement.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <place.h>

#include "balance.h"
#include "print.h"
#include "session.h"
#include "written.h"

static const moec_cli_opt own_opts[] = {
    {"placement", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, placement), "FILE",
     "physical_to_logical from a file, recognised by its content", NULL,
     "required", 0},
    {"out", 'o', MOEC_KIND_TEXT, offsetof(moec_cli_args, out), "OUT2",
     "write the new conversion there and leave OUT as it is", NULL,
     "OUT is replaced once the new one is complete", 0},
};
static const moec_cli_group own = {"Placement", own_opts, 2};
static const moec_cli_group *const groups[] = {&own, &moec_group_write,
                                               &moec_group_common, NULL};

/* ---------------------------------------------------------- the layout */

/* OUT's own options, and the new placement. */
static moec_status open_layout(moec_cli_session *s, const moec_cli *cli,
                               const char *dir, moec_error *err)
{
    moec_status st = moec_cli_open_ckpt(s, cli, dir, err);
    if (st != MOEC_OK)
        return st;
    if (s->conversion == NULL)
        return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                              "%s is not converted: place works on what "
                              "convert wrote",
                              dir);
    const moec_layout *old = moec_conversion_layout(s->conversion);
    moec_plan_opts o = *moec_plan_options(moec_layout_plan(old));
    if (o.by_expert)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                              "%s is an expert store and has no placement; "
                              "convert it to ranks",
                              dir);
    st = moec_cli_read_placement(&s->placement, s->model, NULL,
                                 cli->args.placement, err);
    if (st != MOEC_OK)
        return st;
    o.placement = s->placement;
    o.n_redundant = 0; /* the file says it */
    st = moec_plan_create(&s->plan, s->model, &o, err);
    if (st != MOEC_OK)
        return st;
    return moec_layout_create(&s->layout, s->plan,
                              moec_layout_max_part_bytes(old), err);
}

static bool same_placement(const moec_cli_session *s)
{
    const moec_plan *old =
        moec_layout_plan(moec_conversion_layout(s->conversion));
    const moec_placement *a = moec_plan_placement(old);
    const moec_placement *b = moec_plan_placement(s->plan);
    uint32_t n = moec_placement_n_physical(b);
    if (moec_placement_n_physical(a) != n)
        return false;
    for (uint32_t i = 0; i < moec_placement_n_layers(b); i++) {
        if (memcmp(moec_placement_row(a, i), moec_placement_row(b, i),
                   n * sizeof(int32_t)) != 0)
            return false;
    }
    return true;
}

/* ---------------------------------------------------------- the report */

static moec_place_figures count(const moec_cli_session *s)
{
    return moec_place_count(
        moec_layout_plan(moec_conversion_layout(s->conversion)), s->plan);
}

static void print_figures(const moec_place_figures *f)
{
    char size[24];
    moec_cli_line(
        stdout,
        "%" PRIu64 " of %" PRIu64 " slots hold another expert than before: %s",
        f->n_changed, f->n_slots, moec_cli_size(size, f->bytes_changed));
}

static void json_figures(moec_cli_json *j, const moec_place_figures *f)
{
    moec_cli_json_u64(j, "n_slots", f->n_slots);
    moec_cli_json_u64(j, "n_slots_changed", f->n_changed);
    moec_cli_json_u64(j, "bytes_changed", f->bytes_changed);
}

/* Nothing is written: because nobody asked, or as there is nothing to do. */
static int tell(const moec_cli *cli, const moec_cli_session *s, const char *out,
                const char *why)
{
    moec_place_figures f = count(s);
    if (cli->args.json) {
        moec_cli_json j;
        moec_cli_json_begin(&j, cli, true);
        moec_cli_json_bool(&j, "dry_run", cli->args.dry_run);
        moec_cli_json_str(&j, "out", out);
        json_figures(&j, &f);
        moec_cli_json_finish(&j);
    } else if (!cli->args.quiet) {
        print_figures(&f);
        moec_cli_line(stdout, "%s: %s", out, why);
    }
    return MOEC_EXIT_OK;
}

static int write_out(const moec_cli *cli, const moec_cli_session *s,
                     const char *out, bool replaces)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_convert_stats stats = {0};
    moec_cli_progress progress;
    moec_place_figures f = count(s);
    moec_convert_opts opts = moec_cli_convert_opts(cli, &progress);
    char *command = moec_cli_command_line(cli);
    opts.command = command;
    opts.family_text = s->family;
    opts.source = s->conversion;
    opts.force = cli->args.force || replaces;
    moec_cli_progress_begin(&progress, cli);
    moec_status st = moec_place(s->layout, out, &opts, &stats, &err);
    moec_cli_progress_end(&progress);
    free(command);
    if (st == MOEC_OK && !cli->args.json && !cli->args.quiet)
        print_figures(&f);
    return moec_cli_report_written(cli, out, &stats, NULL, st, &err);
}

static int run(const moec_cli *cli, const moec_cli_session *s, const char *dir,
               const char *to)
{
    struct stat a, b;
    const char *out = to != NULL ? to : dir;
    bool replaces =
        to == NULL || (stat(dir, &a) == 0 && stat(to, &b) == 0 &&
                       a.st_dev == b.st_dev && a.st_ino == b.st_ino);
    moec_cli_print_problems(cli, NULL, s->plan);
    if (cli->args.strict && moec_cli_n_warnings(NULL, s->plan) != 0) {
        moec_cli_line(stderr, "moe-convert place: warnings with --strict: "
                              "nothing is written");
        return MOEC_EXIT_FOUND;
    }
    if (!replaces && !cli->args.force && lstat(out, &b) == 0)
        return moec_cli_usage(cli, "%s exists; --force replaces it", out);
    if (cli->args.dry_run)
        return tell(cli, s, out, "dry run: nothing is written");
    if (replaces && same_placement(s)) {
        moec_error err = MOEC_ERROR_INIT;
        moec_status st = moec_place_tidy(out, &err);
        if (st != MOEC_OK)
            return moec_cli_fail(cli, st, &err);
        return tell(cli, s, out, "has this placement already");
    }
    return write_out(cli, s, out, replaces);
}

static int place(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_cli_session s = {0};
    const char *dir = moec_cli_path(cli, 0), *to = moec_cli_path(cli, 1);
    if (cli->args.placement == NULL)
        return moec_cli_usage(cli, "--placement FILE is missing: the new "
                                   "placement");
    if (to != NULL && cli->args.out != NULL)
        return moec_cli_usage(cli, "OUT2 and --out: which of the two?");
    to = to != NULL ? to : cli->args.out;
    moec_status st = open_layout(&s, cli, dir, &err);
    int code =
        st == MOEC_OK ? run(cli, &s, dir, to) : moec_cli_fail(cli, st, &err);
    moec_cli_session_close(&s);
    return code;
}

const moec_cli_command moec_cmd_place = {
    .name = "place",
    .fn = place,
    .line = "another placement for a conversion, only what changes",
    .usage = "place OUT --placement FILE [--out OUT2]",
    .about = "Makes of OUT what a fresh conversion with that placement would "
             "be, byte for byte, without the source: what stays is shared "
             "with the old files where the file system can (btrfs, XFS), else "
             "copied; digests are carried over. OUT is exchanged for the new "
             "directory at the end; with --out it stays. Interrupted or "
             "killed, the same command goes on where it was.",
    .examples = "place ./V3-ep32 --placement new.json\n"
                "place ./V3-ep32 --placement new.json --out ./V3-new\n"
                "place ./V3-ep32 --placement new.json --dry-run",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 2,
};
