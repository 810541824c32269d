/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One output under way. See job.h.
 *
 * What an earlier run left is used whole or not at all: where one data file is
 * missing or has another size, somebody was there, and everything is written
 * again. Until that is decided OUT.partial is only read.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "out_job.h"

#define SYNC_THREADS 4u

static bool is_data_file(void *ctx, const char *name)
{
    const moec_out_job *j = ctx;

    for (size_t i = 0; i < j->n_files; i++)
        if (strcmp(j->files[i].name, name) == 0)
            return true;
    return strcmp(name, MOEC_JOURNAL_NAME) == 0;
}

static moec_status files_stand(const moec_out_job *j, bool *all,
                               moec_error *err)
{
    struct stat st;

    *all = true;
    for (size_t i = 0; i < j->n_files && *all; i++) {
        const moec_out_job_file *f = &j->files[i];
        int rc = fstatat(moec_output_dirfd(&j->out), f->name, &st,
                         AT_SYMLINK_NOFOLLOW);
        if (rc != 0 && errno != ENOENT)
            return moec_fail_os(err, errno, "%s: cannot look at it", f->name);
        /* another name of it may be somebody's: not written through */
        *all = rc == 0 && S_ISREG(st.st_mode) && st.st_nlink == 1 &&
               (uint64_t)st.st_size == f->bytes;
    }
    return MOEC_OK;
}

/* Decide what counts of a directory that has a journal. */
static moec_status go_on(moec_out_job *j, bool *kept, moec_error *err)
{
    bool all = true;

    MOEC_TRY(moec_journal_load(j->journal, kept, err));
    if (*kept)
        MOEC_TRY(files_stand(j, &all, err));
    if (!all) {
        moec_journal_forget(j->journal);
        *kept = false;
    }
    return MOEC_OK;
}

static moec_status open_files(moec_out_job *j, bool kept, moec_error *err)
{
    MOEC_TRY(moec_writer_create(&j->w, moec_output_dirfd(&j->out), j->n_files,
                                j->opts->no_direct, err));
    if (j->sparse)
        moec_writer_sparse(j->w);
    for (size_t i = 0; i < j->n_files; i++) {
        const moec_out_job_file *f = &j->files[i];
        if (kept)
            MOEC_TRY(moec_writer_keep(j->w, i, f->name, f->bytes, true, err));
        else
            MOEC_TRY(moec_writer_add(j->w, i, f->name, f->bytes, err));
    }
    return MOEC_OK;
}

static moec_status make_journal(moec_out_job *j, moec_error *err)
{
    moec_journal_opts o = {.dirfd = moec_output_dirfd(&j->out),
                           .identity = j->identity->data,
                           .identity_bytes = j->identity->len,
                           .cells = j->cells,
                           .cell_bytes = j->cell_bytes,
                           .n_cells = j->n_cells};

    moec_buf_printf(&j->where, "%s" MOEC_OUTPUT_SUFFIX, j->out.path);
    if (j->where.oom)
        return moec_fail_nomem(err, "a path");
    o.where = j->where.data;
    return moec_journal_create(&j->journal, &o, err);
}

static void close_all(moec_out_job *j)
{
    moec_journal_destroy(j->journal);
    moec_writer_destroy(j->w);
    moec_buf_fini(&j->where);
    j->journal = NULL;
    j->w = NULL;
}

moec_status moec_out_job_begin(moec_out_job *j, const char *out_dir,
                               moec_error *err)
{
    bool found = false, kept = false;

    MOEC_TRY(moec_output_resume(&j->out, out_dir, j->opts->force, &found, err));
    moec_status st = make_journal(j, err);
    if (st == MOEC_OK && found)
        st = go_on(j, &kept, err);
    if (st != MOEC_OK) { /* and nothing was touched */
        close_all(j);
        if (found)
            moec_output_abandon(&j->out);
        else
            moec_output_discard(&j->out);
        return st;
    }
    if (found)
        st = moec_output_clear(&j->out, kept ? is_data_file : NULL, j, err);
    if (st == MOEC_OK)
        st = open_files(j, kept, err);
    return st == MOEC_OK ? MOEC_OK : moec_out_job_end(j, st, err);
}

static moec_status sync_writer(void *ctx, moec_error *err)
{
    return moec_writer_flush(ctx, err);
}

moec_status moec_out_job_work(moec_out_job *j, moec_error *err)
{
    return moec_journal_begin(j->journal, sync_writer, j->w, err);
}

moec_status moec_out_job_sync(moec_out_job *j, moec_error *err)
{
    MOEC_TRY(moec_journal_flush(j->journal, err));
    moec_status st = moec_writer_sync(j->w, SYNC_THREADS, err);
    if (st != MOEC_OK)
        moec_journal_doubt(j->journal);
    return st;
}

/* What was interrupted, or stopped by the system, may be run again. */
static bool keeps_partial(moec_status st)
{
    return st == MOEC_E_CANCELLED || st == MOEC_E_IO || st == MOEC_E_NOMEM;
}

moec_status moec_out_job_end(moec_out_job *j, moec_status st, moec_error *err)
{
    /* Who asks to stop may be about to stop the machine. */
    if (st == MOEC_E_CANCELLED)
        (void)moec_journal_mark(j->journal, NULL);
    else if (st != MOEC_OK)
        (void)moec_journal_flush(j->journal, NULL);
    close_all(j);
    if (st == MOEC_OK)
        return moec_output_commit(&j->out, err);
    if (keeps_partial(st))
        moec_output_abandon(&j->out);
    else
        moec_output_discard(&j->out);
    return st;
}
