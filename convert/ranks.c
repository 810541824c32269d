/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One of several processes that convert ranks of one output.
 *
 * Who comes first, alone under the directory's lock, makes all data files with
 * their headers and writes .moec-job, the identity that all must have. From
 * then on a file that is missing was removed by somebody, and the work of
 * others in it is lost: that is refused, never mended. Everybody then takes the
 * locks of his ranks, reads their journals, lets go of the directory and works.
 * A rank is done when its journal has all cells that it owes, and a mark behind
 * them: the journal is the rank's part of the manifest, and nothing else needs
 * to be merged. The process with rank 0 also writes what is made of the
 * source's small files and headers, so that finalize does not need the source.
 *
 *   OUT.partial/.moec-job                 identity of the job
 *               .moec-rank-00003          journal of rank 3: its digests
 *               .moec-rank-00003.lock     locked while somebody converts it
 *               .moec-manifest            manifest.json without digests
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "crew.h"
#include "finish.h"
#include "pipeline.h"
#include "prepare.h"

#define SYNC_THREADS 4u

/* Not in every linux/magic.h. */
#define CIFS_MAGIC 0xFF534D42u
#define SMB2_MAGIC 0xFE534D42u
#define FUSE_MAGIC 0x65735546u

typedef struct ranks {
    moec_prepared p;
    const moec_convert_opts *opts;
    uint32_t n_ranks;
    moec_output out;
    moec_buf where; /* OUT.partial, for messages */
    moec_buf identity;
    moec_writer *w;
    moec_journal **journals; /* by rank, NULL for others' */
    char (*names)[MOEC_RANK_NAME_BYTES];
    int *locks;      /* by rank; -1: not ours */
    bool first;      /* there was no job */
    bool found_work; /* of an earlier run, in one of our journals */
} ranks;

void moec_rank_journal_name(char buf[MOEC_RANK_NAME_BYTES], uint32_t rank)
{
    snprintf(buf, MOEC_RANK_NAME_BYTES, MOEC_OUTPUT_OWN "rank-%05u", rank);
}

void moec_rank_lock_name(char buf[MOEC_RANK_NAME_BYTES], uint32_t rank)
{
    snprintf(buf, MOEC_RANK_NAME_BYTES, MOEC_OUTPUT_OWN "rank-%05u.lock", rank);
}

/* --------------------------------------------------------------- the job */

/* On these a client writes whole pages back, with its own idea of the bytes
 * beside those that it was given. */
static bool pages_are_private(int dirfd)
{
    struct statfs fs;

    if (fstatfs(dirfd, &fs) != 0)
        return true;
    switch ((uint32_t)fs.f_type) {
    case NFS_SUPER_MAGIC:
    case SMB_SUPER_MAGIC:
    case CIFS_MAGIC:
    case SMB2_MAGIC:
    case FUSE_MAGIC:
    case V9FS_MAGIC:
        return true;
    default:
        return false;
    }
}

static moec_status make_job_journal(ranks *r, bool once, moec_journal **out,
                                    moec_error *err)
{
    const moec_buf *id = &r->p.identity;

    r->identity.len = 0;
    moec_buf_append(&r->identity, id->data, id->len);
    moec_buf_puts(&r->identity, once ? MOEC_LINE_ONCE : MOEC_LINE_FILES);
    if (r->identity.oom)
        return moec_fail_nomem(err, "the job");
    moec_journal_opts o = {.dirfd = moec_output_dirfd(&r->out),
                           .name = MOEC_OUTPUT_JOB,
                           .where = r->where.data,
                           .identity = r->identity.data,
                           .identity_bytes = r->identity.len};
    return moec_journal_create(out, &o, err);
}

/* Does the job that is there want what we want, in this way of sharing? */
static moec_status try_job(ranks *r, bool once, bool *found, moec_error *err)
{
    moec_journal *j = NULL;

    MOEC_TRY(make_job_journal(r, once, &j, err));
    moec_status st = moec_journal_load(j, found, err);
    moec_journal_destroy(j);
    r->p.share.once = once;
    return st;
}

/* How to share was for the first process to say. */
static moec_status join_job(ranks *r, bool once, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    bool found = false;
    moec_status st = try_job(r, once, &found, &why);

    if (st == MOEC_E_ARG)
        st = try_job(r, !once, &found, NULL);
    if (st != MOEC_OK)
        return moec_hand_on(err, why.status, &why);
    if (!found)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_NONE,
                         "%s/%s is damaged: remove %s and convert all ranks "
                         "again",
                         r->where.data, MOEC_OUTPUT_JOB, r->where.data);
    return MOEC_OK;
}

static moec_status write_job(ranks *r, bool once, moec_error *err)
{
    moec_journal *j = NULL;
    moec_status st;

    MOEC_TRY(make_job_journal(r, once, &j, err));
    r->p.share.once = once;
    st = moec_journal_begin(j, NULL, NULL, err);
    moec_journal_destroy(j);
    if (st == MOEC_OK && fsync(moec_output_dirfd(&r->out)) != 0)
        st = moec_fail_os(err, errno, "%s: cannot fsync", r->where.data);
    return st;
}

/* ----------------------------------------------------------------- files */

static moec_status make_files(ranks *r, moec_error *err)
{
    for (size_t i = 0; i < r->p.n_files; i++)
        MOEC_TRY(moec_writer_add(r->w, i, r->p.files[i].name,
                                 r->p.files[i].bytes, err));
    MOEC_TRY(moec_prepared_headers(&r->p, r->w, err));
    return moec_writer_sync(r->w, SYNC_THREADS, err);
}

static moec_status keep_files(ranks *r, moec_error *err)
{
    struct stat st;

    for (size_t i = 0; i < r->p.n_files; i++) {
        const moec_out_job_file *f = &r->p.files[i];

        int rc = fstatat(moec_output_dirfd(&r->out), f->name, &st,
                         AT_SYMLINK_NOFOLLOW);
        if (rc != 0 && errno != ENOENT)
            return moec_fail_os(err, errno, "%s/%s: cannot look at it",
                                r->where.data, f->name);
        if (rc != 0 || !S_ISREG(st.st_mode) || st.st_nlink != 1 ||
            (uint64_t)st.st_size != f->bytes)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M05,
                             "%s/%s is not as it was made, and what others "
                             "wrote into it is lost: remove %s and convert "
                             "all ranks again",
                             r->where.data, f->name, r->where.data);
        MOEC_TRY(
            moec_writer_keep(r->w, i, f->name, f->bytes, r->found_work, err));
    }
    return MOEC_OK;
}

/* ----------------------------------------------------------------- ranks */

static moec_status lock_rank(ranks *r, uint32_t rank, moec_error *err)
{
    char name[MOEC_RANK_NAME_BYTES];

    moec_rank_lock_name(name, rank);
    r->locks[rank] = openat(moec_output_dirfd(&r->out), name,
                            O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (r->locks[rank] < 0)
        return moec_fail_os(err, errno, "%s/%s: cannot make the file",
                            r->where.data, name);
    if (flock(r->locks[rank], LOCK_EX | LOCK_NB) == 0)
        return MOEC_OK;
    if (errno != EWOULDBLOCK)
        return moec_fail_os(err, errno, "%s/%s: cannot lock it", r->where.data,
                            name);
    return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                     "%s: rank %u is being converted by another process",
                     r->where.data, rank);
}

static moec_status open_rank(ranks *r, uint32_t rank, moec_error *err)
{
    moec_digests *d = &r->p.digests;
    moec_journal_opts o = {.dirfd = moec_output_dirfd(&r->out),
                           .name = r->names[rank],
                           .where = r->where.data,
                           .identity = r->identity.data,
                           .identity_bytes = r->identity.len,
                           .cells = d->leaves,
                           .cell_bytes = sizeof(*d->leaves),
                           .n_cells = d->n_leaves};
    bool found = false;

    moec_rank_journal_name(r->names[rank], rank);
    MOEC_TRY(moec_journal_create(&r->journals[rank], &o, err));
    MOEC_TRY(moec_journal_load(r->journals[rank], &found, err));
    r->found_work = r->found_work || found;
    return MOEC_OK;
}

static moec_status sync_writer(void *ctx, moec_error *err)
{
    return moec_writer_flush(ctx, err);
}

/* The directory is locked. */
static moec_status begin(ranks *r, moec_error *err)
{
    bool once = r->opts->sharing == MOEC_SHARING_AUTO
                    ? !pages_are_private(moec_output_dirfd(&r->out))
                    : r->opts->sharing == MOEC_SHARING_ONCE;

    MOEC_TRY(moec_writer_create(&r->w, moec_output_dirfd(&r->out), r->p.n_files,
                                r->opts->no_direct, err));
    if (r->first) {
        MOEC_TRY(make_files(r, err));
        MOEC_TRY(write_job(r, once, err));
        r->first = false;
    } else {
        MOEC_TRY(join_job(r, once, err));
    }
    for (uint32_t k = 0; k < r->n_ranks; k++)
        if (r->opts->ranks[k])
            MOEC_TRY(lock_rank(r, k, err));
    for (uint32_t k = 0; k < r->n_ranks; k++)
        if (r->opts->ranks[k])
            MOEC_TRY(open_rank(r, k, err));
    moec_writer_destroy(r->w);
    r->w = NULL;
    MOEC_TRY(moec_writer_create(&r->w, moec_output_dirfd(&r->out), r->p.n_files,
                                r->opts->no_direct, err));
    MOEC_TRY(keep_files(r, err));
    for (uint32_t k = 0; k < r->n_ranks; k++)
        if (r->opts->ranks[k])
            MOEC_TRY(
                moec_journal_begin(r->journals[k], sync_writer, r->w, err));
    moec_output_unlock(&r->out);
    return MOEC_OK;
}

/* All cells of our ranks are written: say so for any machine to read. */
static moec_status end(ranks *r, moec_convert_stats *stats, moec_error *err)
{
    struct stat st;
    int dir = moec_output_dirfd(&r->out);

    if (r->opts->ranks[0] &&
        fstatat(dir, MOEC_OUTPUT_BEGUN, &st, AT_SYMLINK_NOFOLLOW) != 0)
        MOEC_TRY(moec_finish_begin(r->p.in, (moec_finish_to){.dir = &r->out},
                                   stats, err));
    for (uint32_t k = 0; k < r->n_ranks; k++)
        if (r->journals[k] != NULL)
            MOEC_TRY(moec_journal_mark(r->journals[k], err));
    if (fsync(dir) != 0)
        return moec_fail_os(err, errno, "%s: cannot fsync", r->where.data);
    return moec_output_check(&r->out, err);
}

/* Files that this process owes, for the report. */
static uint32_t count_files(const ranks *r)
{
    uint32_t n = 0;

    for (size_t i = 0; i < r->p.n_files; i++) {
        const moec_out_file *f = moec_layout_file(r->p.layout, i);
        size_t rank = f->kind == MOEC_FILE_RANK
                          ? f->rank
                          : (i - r->p.share.first_common) % r->n_ranks;
        n += r->opts->ranks[rank] != 0;
    }
    return n;
}

static moec_status convert_into(ranks *r, const char *out_dir,
                                moec_convert_stats *stats, moec_error *err)
{
    bool found = false;
    moec_work work = {.d = &r->p.digests,
                      .share = &r->p.share,
                      .journals = r->journals,
                      .n_journals = r->n_ranks};

    MOEC_TRY(moec_output_join(&r->out, out_dir, r->opts->force, &found, err));
    r->first = !found;
    moec_buf_printf(&r->where, "%s" MOEC_OUTPUT_SUFFIX, r->out.path);
    if (r->where.oom)
        return moec_fail_nomem(err, "a path");
    MOEC_TRY(begin(r, err));
    work.w = r->w;
    MOEC_TRY(moec_pipeline_run(r->p.in, &work, stats, err));
    return end(r, stats, err);
}

/* Who made the directory and did not get as far as a job takes it away. */
static void leave(ranks *r, moec_status st)
{
    for (uint32_t k = 0; r->journals != NULL && k < r->n_ranks; k++) {
        if (r->journals[k] != NULL && st == MOEC_E_CANCELLED)
            (void)moec_journal_mark(r->journals[k], NULL);
        else if (r->journals[k] != NULL)
            (void)moec_journal_flush(r->journals[k], NULL);
        moec_journal_destroy(r->journals[k]);
    }
    moec_writer_destroy(r->w);
    if (r->first && st != MOEC_OK)
        moec_output_discard(&r->out);
    else
        moec_output_abandon(&r->out);
    for (uint32_t k = 0; r->locks != NULL && k < r->n_ranks; k++)
        if (r->locks[k] >= 0)
            close(r->locks[k]);
    moec_buf_fini(&r->where);
    moec_buf_fini(&r->identity);
    moec_free(r->journals);
    moec_free(r->names);
    moec_free(r->locks);
}

static moec_status make_lists(ranks *r, moec_error *err)
{
    size_t n = r->n_ranks;

    r->journals = moec_calloc(n + 1, sizeof(*r->journals));
    r->names = moec_calloc(n + 1, sizeof(*r->names));
    r->locks = moec_calloc(n + 1, sizeof(*r->locks));
    if (r->journals == NULL || r->names == NULL || r->locks == NULL)
        return moec_fail_nomem(err, "ranks");
    memset(r->locks, 0xff, n * sizeof(*r->locks));
    return MOEC_OK;
}

moec_status moec_convert_ranks(const moec_layout *layout, const char *out_dir,
                               const moec_convert_opts *opts,
                               moec_convert_stats *stats, moec_error *err)
{
    ranks r = {.opts = opts, .out = MOEC_OUTPUT_INIT};

    r.n_ranks = moec_plan_topology(moec_layout_plan(layout)).n_ranks;
    moec_status st = moec_prepare(&r.p, layout, opts, err);
    if (st == MOEC_OK)
        st = make_lists(&r, err);
    if (st == MOEC_OK)
        st = convert_into(&r, out_dir, stats, err);
    leave(&r, st);
    stats->n_files = count_files(&r);
    moec_prepared_fini(&r.p);
    return st;
}
