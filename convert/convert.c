/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A conversion from begin to commit: prove the plan, take the output
 * directory or go on with it, make the files, move the bytes, write what
 * describes them, make it durable, rename. See convert.h.
 */

#include <stdlib.h>
#include <time.h>

#include "crew.h"
#include "identity.h"
#include "input.h"
#include "job.h"
#include "pipeline.h"

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A plan that does not prove is our bug or a hostile family: say what. */
static moec_status prove(const moec_layout *layout, moec_error *err)
{
    moec_report *report = NULL;
    moec_status st = moec_layout_prove(&report, layout, err);

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

/* What a conversion takes from begin to end. */
typedef struct conversion {
    const moec_layout *layout;
    moec_input *in;
    moec_job job;
    moec_job_file *files;
    moec_sha256 *headers; /* digests, by data file */
    moec_digests digests;
    moec_share share;
    moec_buf identity;
} conversion;

/* Header of data file `i`: digested, and written where `w` is given. Made
 * twice rather than kept: a K3's would be tens of MiB. */
static moec_status do_header(conversion *c, size_t i, moec_writer *w,
                             moec_error *err)
{
    void *header = NULL;
    uint64_t bytes = 0;
    moec_status st;

    MOEC_TRY(moec_layout_header(c->layout, i, &header, &bytes, err));
    if (w)
        st = moec_writer_write(w, i, 0, header, (size_t)bytes, err);
    else
        st = moec_sha256_of(header, (size_t)bytes, &c->headers[i], err);
    free(header);
    return st;
}

static moec_status prepare(conversion *c, moec_error *err)
{
    size_t n = moec_layout_n_files(c->layout);

    c->files = moec_calloc(n + 1, sizeof(*c->files));
    c->headers = moec_calloc(n + 1, sizeof(*c->headers));
    if (c->files == NULL || c->headers == NULL)
        return moec_fail_nomem(err, "data files");
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(c->layout, i);
        c->files[i] = (moec_job_file){f->name, f->bytes};
        MOEC_TRY(do_header(c, i, NULL, err));
    }
    MOEC_TRY(moec_digests_init(&c->digests, moec_layout_plan(c->layout), err));
    MOEC_TRY(moec_share_init(&c->share, c->layout, &c->digests, err));
    c->share.whole = true;
    MOEC_TRY(moec_input_create(&c->in, c->layout, c->job.opts, err));
    MOEC_TRY(moec_identity_convert(c->in, c->headers, &c->identity, err));
    c->job.files = c->files;
    c->job.n_files = n;
    c->job.identity = &c->identity;
    c->job.cells = c->digests.leaves;
    c->job.cell_bytes = sizeof(*c->digests.leaves);
    c->job.n_cells = c->digests.n_leaves;
    return MOEC_OK;
}

static moec_status fill_output(conversion *c, moec_convert_stats *stats,
                               moec_error *err)
{
    for (size_t i = 0; i < c->job.n_files; i++)
        MOEC_TRY(do_header(c, i, c->job.w, err));
    MOEC_TRY(moec_job_work(&c->job, err));
    moec_work work = {.w = c->job.w,
                      .d = &c->digests,
                      .share = &c->share,
                      .journals = &c->job.journal,
                      .n_journals = 1};
    MOEC_TRY(moec_pipeline_run(c->in, &work, stats, err));
    MOEC_TRY(moec_job_sync(&c->job, err));
    return moec_finish_write(c->in, &c->digests, c->headers, &c->job.out, stats,
                             err);
}

static void free_conversion(conversion *c)
{
    moec_input_destroy(c->in);
    moec_buf_fini(&c->identity);
    moec_share_fini(&c->share);
    moec_digests_fini(&c->digests);
    moec_free(c->headers);
    moec_free(c->files);
}

bool moec_convert_is_output(const char *dir)
{
    return moec_output_is_ours(dir);
}

moec_status moec_convert(const moec_layout *layout, const char *out_dir,
                         const moec_convert_opts *opts,
                         moec_convert_stats *stats, moec_error *err)
{
    conversion c = {.layout = layout, .job = {.opts = opts}};
    moec_crew crew = {0};
    double begin = seconds_now();
    moec_convert_stats none = {0};
    moec_status st;

    *stats = none;
    MOEC_TRY(moec_crew_choose(&crew, moec_crew_range(moec_layout_plan(layout)),
                              opts, err));
    MOEC_TRY(prove(layout, err));
    st = prepare(&c, err);
    if (st == MOEC_OK)
        st = moec_job_begin(&c.job, out_dir, err);
    if (st == MOEC_OK)
        st = moec_job_end(&c.job, fill_output(&c, stats, err), err);
    free_conversion(&c);
    stats->n_files = (uint32_t)moec_layout_n_files(layout);
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    stats->seconds = seconds_now() - begin;
    return st;
}
