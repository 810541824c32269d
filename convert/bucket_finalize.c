/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The end of a conversion into an object store by several processes. See
 * bucket.h and finalize.c, of which this is the other half: the same is
 * believed of leaves and data files, and the plan is decided again out of what
 * rank 0 kept of the source.
 */

#include <errno.h>
#include <string.h>

#include "bucket_parts.h"
#include "conversion.h"
#include "finish.h"
#include "span.h"

typedef struct finalize {
    const moec_objects *o;
    moec_sha256 job;
    moec_conversion *begun;
    const moec_layout *layout;
    moec_prepared p;
    moec_leaf_table leaves;
    uint8_t *missing; /* by rank */
    uint32_t n_ranks;
} finalize;

/* The job's digest, which leaves carry; and that rank 0 has been there. */
static moec_status read_job(finalize *f, moec_error *err)
{
    const moec_objects *o = f->o;
    moec_buf text = {0};
    moec_status st;

    if (moec_bucket_find(o, MOEC_OUTPUT_JOB) == NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         "%s: no conversion is under way there: convert with "
                         "--ranks first",
                         o->there->name);
    st = o->get(o->ctx, MOEC_OUTPUT_JOB, &text, err);
    if (st == MOEC_OK)
        st = moec_sha256_of(text.data, text.len, &f->job, err);
    moec_buf_fini(&text);
    if (st == MOEC_OK && moec_bucket_find(o, MOEC_OUTPUT_BEGUN) == NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M05,
                         "%s: rank 0 is not converted: run the same convert "
                         "command with --ranks 0, then finalize again",
                         o->there->name);
    return st;
}

/* The object has the size and the header that the layout gives. */
static moec_status check_file(const finalize *f, size_t i, moec_error *err)
{
    const moec_out_file *of = moec_layout_file(f->layout, i);
    const moec_store *s = f->o->there;
    const moec_store_file *there = moec_bucket_find(f->o, of->name);
    unsigned char *header = moec_alloc((size_t)of->header_bytes);
    moec_sha256 got = {{0}};
    moec_status st = MOEC_OK;

    if (header == NULL)
        return moec_fail_nomem(err, "a header");
    if (there->bytes == of->bytes) {
        st = s->read_at(s->ctx, (size_t)(there - s->files), 0, header,
                        (size_t)of->header_bytes, err);
        if (st == MOEC_OK)
            st = moec_sha256_of(header, (size_t)of->header_bytes, &got, err);
    }
    moec_free(header);
    if (st == MOEC_OK && memcmp(&got, &f->p.headers[i], sizeof(got)) != 0)
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M06,
                       "%s/%s is not as it was made: remove what is there and "
                       "convert all ranks again",
                       s->name, of->name);
    return st;
}

static moec_status take_file(finalize *f, size_t i, moec_error *err)
{
    const moec_objects *o = f->o;
    const char *file = f->p.files[i].name;
    char name[MOEC_BUCKET_NAME_BYTES];
    moec_buf leaves = {0};
    bool ours = false;
    moec_status st = MOEC_OK;

    moec_bucket_leaves_name(name, file);
    if (moec_bucket_find(o, file) != NULL && moec_bucket_find(o, name) != NULL)
        st = o->get(o->ctx, name, &leaves, err);
    if (st == MOEC_OK && leaves.len > 0)
        st = moec_leaves_take(f->layout, &f->leaves, i, &f->job, leaves.data,
                              leaves.len, &ours, err);
    moec_buf_fini(&leaves);
    MOEC_TRY(st);
    if (ours)
        return check_file(f, i, err);
    f->missing[moec_bucket_owner(&f->p, i)] = 1;
    return MOEC_OK;
}

static moec_status merge(finalize *f, moec_error *err)
{
    f->n_ranks = moec_plan_topology(moec_layout_plan(f->layout)).n_ranks;
    f->missing = moec_calloc(f->n_ranks + 1, 1);
    if (f->missing == NULL)
        return moec_fail_nomem(err, "ranks");
    MOEC_TRY(moec_leaf_table_init(&f->leaves, &f->p.digests, err));
    for (size_t i = 0; i < f->p.n_files; i++)
        MOEC_TRY(take_file(f, i, err));
    for (uint32_t k = 0; k < f->n_ranks; k++)
        if (f->missing[k])
            return moec_fail_missing(f->o->there->name, f->missing, f->n_ranks,
                                     err);
    return MOEC_OK;
}

static moec_status open_begun(finalize *f, const char *manifest,
                              moec_error *err)
{
    MOEC_TRY(moec_conversion_read_begun(&f->begun, NULL, f->o->there, manifest,
                                        err));
    MOEC_TRY(moec_conversion_rebuild(f->begun, NULL, err));
    f->layout = moec_conversion_layout(f->begun);
    return moec_prepare(&f->p, f->layout, NULL, err);
}

static moec_status write_rest(finalize *f, moec_error *err)
{
    MOEC_TRY(read_job(f, err));
    MOEC_TRY(open_begun(f, MOEC_OUTPUT_BEGUN, err));
    MOEC_TRY(merge(f, err));
    MOEC_TRY(moec_prove_layout(f->layout, err));
    MOEC_TRY(moec_finish_merge(f->layout, &f->p.digests, f->p.headers,
                               &moec_conversion_files(f->begun)->manifest,
                               (moec_finish_to){.objects = f->o}, err));
    return moec_bucket_tidy(f->o, &f->p, err);
}

moec_status moec_finalize_objects(const moec_objects *to,
                                  moec_convert_stats *stats, bool *before_out,
                                  moec_error *err)
{
    double begin = moec_seconds_now();
    moec_convert_stats none = {0};
    finalize f = {.o = to};
    moec_status st = MOEC_OK;

    *stats = none;
    *before_out = moec_bucket_find(to, MOEC_MANIFEST_NAME) != NULL;
    if (!*before_out)
        st = write_rest(&f, err);
    else if (moec_bucket_find(to, MOEC_OUTPUT_JOB) != NULL) {
        st = open_begun(&f, MOEC_MANIFEST_NAME, err);
        if (st == MOEC_OK)
            st = moec_bucket_tidy(to, &f.p, err);
    }
    stats->n_files = (uint32_t)f.p.n_files;
    for (size_t i = 0; i < f.p.n_files; i++)
        stats->bytes_resumed += f.p.files[i].bytes;
    moec_leaf_table_fini(&f.leaves);
    moec_free(f.missing);
    moec_prepared_fini(&f.p);
    moec_conversion_close(f.begun);
    stats->seconds = moec_seconds_now() - begin;
    return st;
}
