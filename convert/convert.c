/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A conversion from begin to commit: prove the plan, take the output
 * directory or go on with it, make the files, move the bytes, write what
 * describes them, make it durable, rename. See convert.h.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crew.h"
#include "finish.h"
#include "identity.h"
#include "pipeline.h"
#include "prepare.h"

double moec_seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* A plan that does not prove is our bug or a hostile family: say what. */
moec_status moec_prove_layout(const moec_layout *layout, moec_error *err)
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

/* Header of data file `i`: digested, and written where `w` is given. Made
 * twice rather than kept: a K3's would be tens of MiB. */
static moec_status do_header(const moec_prepared *p, size_t i, moec_writer *w,
                             moec_error *err)
{
    void *header = NULL;
    uint64_t bytes = 0;
    moec_status st;

    MOEC_TRY(moec_layout_header(p->layout, i, &header, &bytes, err));
    if (w)
        st = moec_writer_write(w, i, 0, header, (size_t)bytes, err);
    else
        st = moec_sha256_of(header, (size_t)bytes, &p->headers[i], err);
    free(header);
    return st;
}

moec_status moec_prepared_headers(const moec_prepared *p, moec_writer *w,
                                  moec_error *err)
{
    for (size_t i = 0; i < p->n_files; i++)
        MOEC_TRY(do_header(p, i, w, err));
    return MOEC_OK;
}

/* The manifest names them, and is JSON. Known now, not after hours. */
static moec_status check_names(const moec_layout *layout, moec_error *err)
{
    const moec_ckpt *c =
        moec_model_ckpt(moec_plan_model(moec_layout_plan(layout)));

    for (size_t i = 0; i < moec_ckpt_n_files(c); i++) {
        const char *name = moec_ckpt_file(c, i)->name;
        if (!moec_utf8_valid(name, strlen(name), NULL))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                             "%s: its name is not UTF-8, which no manifest can "
                             "hold: rename it",
                             name);
    }
    return MOEC_OK;
}

moec_status moec_prepare(moec_prepared *p, const moec_layout *layout,
                         const moec_convert_opts *opts, moec_error *err)
{
    size_t n = moec_layout_n_files(layout);

    memset(p, 0, sizeof(*p));
    p->layout = layout;
    p->opts = opts;
    p->files = moec_calloc(n + 1, sizeof(*p->files));
    p->headers = moec_calloc(n + 1, sizeof(*p->headers));
    if (p->files == NULL || p->headers == NULL)
        return moec_fail_nomem(err, "data files");
    p->n_files = n;
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(layout, i);
        p->files[i] = (moec_out_job_file){f->name, f->bytes};
        MOEC_TRY(do_header(p, i, NULL, err));
    }
    MOEC_TRY(moec_digests_init(&p->digests, moec_layout_plan(layout), err));
    MOEC_TRY(moec_share_init(&p->share, layout, &p->digests, err));
    if (opts == NULL)
        return MOEC_OK;
    MOEC_TRY(check_names(layout, err));
    MOEC_TRY(moec_input_create(&p->in, layout, opts, err));
    return moec_identity_convert(p->in, p->headers, &p->identity, err);
}

void moec_prepared_fini(moec_prepared *p)
{
    moec_input_destroy(p->in);
    moec_buf_fini(&p->identity);
    moec_share_fini(&p->share);
    moec_digests_fini(&p->digests);
    moec_free(p->headers);
    moec_free(p->files);
}

static moec_status fill_output(moec_prepared *p, moec_out_job *job,
                               moec_convert_stats *stats, moec_error *err)
{
    moec_work work = {.w = job->w,
                      .d = &p->digests,
                      .share = &p->share,
                      .journals = &job->journal,
                      .n_journals = 1};

    MOEC_TRY(moec_prepared_headers(p, job->w, err));
    MOEC_TRY(moec_out_job_work(job, err));
    MOEC_TRY(moec_pipeline_run(p->in, &work, stats, err));
    MOEC_TRY(moec_out_job_sync(job, err));
    return moec_finish_write(p->in, &p->digests, p->headers,
                             (moec_finish_to){.dir = &job->out}, stats, err);
}

static moec_status convert_all(const moec_layout *layout, const char *out_dir,
                               const moec_convert_opts *opts,
                               moec_convert_stats *stats, moec_error *err)
{
    moec_prepared p;
    moec_out_job job = {.opts = opts};
    moec_status st = moec_prepare(&p, layout, opts, err);

    p.share.whole = true;
    job.files = p.files;
    job.n_files = p.n_files;
    job.identity = &p.identity;
    job.cells = p.digests.leaves;
    job.cell_bytes = sizeof(*p.digests.leaves);
    job.n_cells = p.digests.n_leaves;
    if (st == MOEC_OK)
        st = moec_out_job_begin(&job, out_dir, err);
    if (st == MOEC_OK)
        st = moec_out_job_end(&job, fill_output(&p, &job, stats, err), err);
    moec_prepared_fini(&p);
    stats->n_files = (uint32_t)moec_layout_n_files(layout);
    return st;
}

moec_status moec_convert_is_output(const char *dir, bool *ours, moec_error *err)
{
    return moec_output_is_ours(dir, ours, err);
}

moec_status moec_convert(const moec_layout *layout, const char *out_dir,
                         const moec_convert_opts *opts,
                         moec_convert_stats *stats, moec_error *err)
{
    moec_crew crew = {0};
    double begin = moec_seconds_now();
    moec_convert_stats none = {0};
    moec_status st;

    *stats = none;
    MOEC_TRY(moec_crew_choose(&crew, moec_crew_range(moec_layout_plan(layout)),
                              opts, err));
    MOEC_TRY(moec_prove_layout(layout, err));
    st = opts->ranks ? moec_convert_ranks(layout, out_dir, opts, stats, err)
                     : convert_all(layout, out_dir, opts, stats, err);
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    stats->seconds = moec_seconds_now() - begin;
    return st;
}
