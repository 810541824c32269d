/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A conversion from begin to commit: prove the plan, take the output
 * directory, make the files, move the bytes, write what describes them, make
 * it durable, rename. See convert.h.
 */

#include <stdlib.h>
#include <time.h>

#include "crew.h"
#include "outdir.h"
#include "pipeline.h"

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A plan that does not prove is our bug or a hostile family: say what. */
static moec_status prove(const moec_plan *plan, moec_error *err)
{
    moec_report *report = NULL;
    moec_status st = moec_plan_prove(&report, plan, err);

    if (st != MOEC_OK)
        return st;
    if (!moec_report_ok(report)) {
        const moec_finding *f = NULL;
        for (size_t i = 0; i < moec_report_n_findings(report); i++) {
            f = moec_report_finding(report, i);
            if (f->severity == MOEC_SEVERITY_ERROR)
                break;
        }
        st = moec_fail(err, MOEC_E_MAPPING, f ? f->rule : MOEC_RULE_NONE,
                       "the plan does not prove: %s", f ? f->message : "?");
    }
    moec_report_destroy(report);
    return st;
}

static moec_status write_headers(const moec_layout *layout, moec_writer *w,
                                 moec_sha256 *digests, moec_error *err)
{
    for (size_t i = 0; i < moec_layout_n_files(layout); i++) {
        const moec_out_file *f = moec_layout_file(layout, i);
        void *header = NULL;
        uint64_t bytes = 0;

        MOEC_TRY(moec_writer_add(w, i, f->name, f->bytes, err));
        MOEC_TRY(moec_layout_header(layout, i, &header, &bytes, err));
        moec_status st =
            moec_sha256_of(header, (size_t)bytes, &digests[i], err);
        if (st == MOEC_OK)
            st = moec_writer_write(w, i, 0, header, (size_t)bytes, err);
        free(header);
        MOEC_TRY(st);
    }
    return MOEC_OK;
}

static moec_status fill_output(const moec_layout *layout, moec_output *out,
                               moec_digests *d, moec_sha256 *headers,
                               const moec_convert_opts *opts,
                               moec_convert_stats *stats, moec_error *err)
{
    moec_writer *w = NULL;
    moec_status st =
        moec_writer_create(&w, moec_output_dirfd(out),
                           moec_layout_n_files(layout), opts->no_direct, err);

    if (st == MOEC_OK)
        st = write_headers(layout, w, headers, err);
    if (st == MOEC_OK)
        st = moec_pipeline_run(layout, w, d, opts, stats, err);
    if (st == MOEC_OK)
        st = moec_writer_sync(w, 4, err);
    moec_writer_destroy(w);
    if (st == MOEC_OK)
        st = moec_finish_write(layout, d, headers, out, opts, stats, err);
    return st;
}

/* What was interrupted, or stopped by the system, may be run again: its
 * directory stays. Wrong input leaves nothing. */
static bool keeps_partial(moec_status st)
{
    return st == MOEC_E_CANCELLED || st == MOEC_E_IO;
}

static moec_status convert_into(const moec_layout *layout, moec_output *out,
                                const moec_convert_opts *opts,
                                moec_convert_stats *stats, moec_error *err)
{
    moec_digests d = {0};
    moec_sha256 *headers =
        moec_calloc(moec_layout_n_files(layout) + 1, sizeof(*headers));
    moec_status st = MOEC_OK;

    if (headers == NULL)
        st = moec_fail_nomem(err, "digests of headers");
    if (st == MOEC_OK)
        st = moec_digests_init(&d, moec_layout_plan(layout), err);
    if (st == MOEC_OK)
        st = fill_output(layout, out, &d, headers, opts, stats, err);
    moec_digests_fini(&d);
    moec_free(headers);
    if (st == MOEC_OK)
        return moec_output_commit(out, err);
    if (keeps_partial(st))
        moec_output_abandon(out);
    else
        moec_output_discard(out);
    return st;
}

moec_status moec_convert(const moec_layout *layout, const char *out_dir,
                         const moec_convert_opts *opts,
                         moec_convert_stats *stats, moec_error *err)
{
    moec_output out = {0};
    moec_crew crew = {0};
    double begin = seconds_now();
    moec_convert_stats none = {0};

    *stats = none;
    MOEC_TRY(moec_crew_choose(&crew, moec_crew_range(moec_layout_plan(layout)),
                              opts, err));
    MOEC_TRY(prove(moec_layout_plan(layout), err));
    MOEC_TRY(moec_output_begin(&out, out_dir, opts->force, err));
    moec_status st = convert_into(layout, &out, opts, stats, err);
    stats->n_files = (uint32_t)moec_layout_n_files(layout);
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    stats->seconds = seconds_now() - begin;
    return st;
}
