/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check's own document, moec.check/1: what a later run reads as its baseline.
 */
#include "ci_report.h"

#include <string.h>

#include "results.h"

static void finding(moec_cli_json *j, const moec_ci_report *r,
                    const moec_ci_found *x)
{
    moec_cli_json_object_row(j, NULL);
    moec_cli_json_finding_members(j, &x->f);
    if ((x->f.has & MOEC_HAS_FILE) == 0)
        moec_cli_json_str(j, "nearest_file", x->file);
    if (r->runs[x->run].name != NULL)
        moec_cli_json_str(j, "combination", r->runs[x->run].name);
    moec_cli_json_str(j, "fingerprint", x->print);
    if (r->baseline != NULL)
        moec_cli_json_bool(j, "known", x->known);
    moec_cli_json_end(j);
}

static void theorems(moec_cli_json *j, const moec_ci_report *r, size_t run)
{
    const moec_report *report = r->runs[run].report;
    moec_cli_json_array(j, "theorems");
    for (size_t t = 0; t < MOEC_CLI_N_THEOREMS; t++) {
        const moec_theorem *th = moec_report_theorem(report, t);
        moec_cli_json_object(j, NULL);
        moec_cli_json_theorem(j, t, th, moec_ci_theorem_ok(r, run, t));
        moec_cli_json_array(j, "findings");
        for (size_t i = 0; i < r->n_found; i++) {
            if (r->found[i].run == run &&
                moec_ci_under_theorem(&r->found[i], th->rule))
                finding(j, r, &r->found[i]);
        }
        moec_cli_json_end(j);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

static void combination(moec_cli_json *j, const moec_ci_report *r, size_t i)
{
    const moec_ci_run *run = &r->runs[i];
    size_t n = 0;
    for (size_t k = 0; k < r->n_found; k++)
        n += r->found[k].run == i;
    moec_cli_json_object_row(j, NULL);
    moec_cli_json_str(j, "name", run->name);
    if (run->shared != NULL) { /* a combination, no mutation */
        moec_cli_json_u64(j, "ep", run->ep);
        moec_cli_json_u64(j, "redundant", run->redundant);
        moec_cli_json_str(j, "shared_slots", run->shared);
    }
    moec_cli_json_bool(j, "ok", run->ok);
    if (run->has_topology) {
        moec_cli_json_u64(j, "slots_per_rank", run->topology.n_local);
        moec_cli_json_u64(j, "shared_per_rank", run->topology.n_shared_slots);
        moec_cli_json_u64(j, "rank_bytes", run->rank_bytes);
        moec_cli_json_f64(j, "imbalance", run->imbalance);
    }
    moec_cli_json_u64(j, "n_findings", n);
    moec_cli_json_end(j);
}

static void run_members(moec_cli_json *j, const moec_ci_report *r)
{
    bool open = false;
    for (size_t i = 0; i < r->n_runs; i++) {
        const moec_ci_run *run = &r->runs[i];
        if (run->name != NULL) {
            if (!open)
                moec_cli_json_array(j, "combinations");
            open = true;
            combination(j, r, i);
        } else if (run->report != NULL) {
            theorems(j, r, i);
        } else if (run->v != NULL) {
            moec_cli_json_object(j, "kernels");
            moec_cli_json_results(j, run->v);
            moec_cli_json_end(j);
        }
    }
    if (open)
        moec_cli_json_end(j);
}

void moec_ci_write_json(FILE *f, const moec_ci_report *r)
{
    moec_cli_json j = {.f = f};
    moec_cli_json_object(&j, NULL);
    moec_cli_json_str(&j, "schema", "moec.check/1");
    moec_cli_json_bool(&j, "ok", r->ok);
    moec_cli_json_str(&j, "path", r->path);
    moec_cli_json_str(&j, "level", r->level);
    if (r->cli->args.policy != NULL)
        moec_cli_json_str(&j, "policy", r->cli->args.policy);
    if (r->cli->args.baseline != NULL)
        moec_cli_json_str(&j, "baseline", r->cli->args.baseline);
    run_members(&j, r);
    moec_cli_json_array(&j, "findings");
    for (size_t i = 0; i < r->n_found; i++) {
        if (!r->found[i].problem)
            finding(&j, r, &r->found[i]);
    }
    moec_cli_json_end(&j);
    moec_cli_json_array(&j, "problems");
    for (size_t i = 0; i < r->n_found; i++) {
        if (r->found[i].problem)
            finding(&j, r, &r->found[i]);
    }
    moec_cli_json_finish(&j);
}
