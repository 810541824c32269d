/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The end of a conversion by several processes: all ranks' journals are read
 * and merged, the plan is decided again out of what rank 0 kept of the source,
 * and what one process would have written last is written and committed.
 *
 * Believed is nothing that can be asked: every piece must be in the journal of
 * every rank that owes it, with one digest wherever several read the same;
 * every data file must be there in its size with its header; the plan must
 * prove. Bytes of weights are not read again: `verify` does that.
 *
 * Killed at any moment, the same command goes on; behind the removal of the
 * journals it finds a manifest, and only commits.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "conversion.h"
#include "finish.h"
#include "prepare.h"

typedef struct finalize {
    moec_output out;
    moec_buf where;    /* OUT.partial */
    moec_buf identity; /* of the job */
    uint32_t n_ranks;
    uint8_t *missing; /* by rank */
    moec_conversion *begun;
    const moec_layout *layout;
    moec_prepared p;
    uint8_t *known;     /* by leaf: a rank has given it */
    moec_leaf *scratch; /* leaves of one rank */
    moec_journal *journal;
    uint32_t rank; /* whose journal that is */
} finalize;

moec_status moec_fail_missing(const char *where, const uint8_t *missing,
                              uint32_t n_ranks, moec_error *err)
{
    moec_buf list = {0};
    uint32_t n = 0, to;

    for (uint32_t k = 0; k < n_ranks; k = to) {
        for (to = k; to < n_ranks && missing[to]; to++)
            n++;
        if (to == k + 1)
            moec_buf_printf(&list, "%s%u", list.len ? "," : "", k);
        else if (to > k)
            moec_buf_printf(&list, "%s%u-%u", list.len ? "," : "", k, to - 1);
        else
            to = k + 1;
    }
    const char *text = list.data ? list.data : "?";
    moec_status st = moec_fail(
        err, MOEC_E_FORMAT, MOEC_RULE_M05,
        "%s: rank%s %s of %u %s not converted: run the same convert command "
        "with --ranks %s, then finalize again",
        where, n == 1 ? "" : "s", text, n_ranks, n == 1 ? "is" : "are", text);
    moec_buf_fini(&list);
    return st;
}

/* ---------------------------------------------------------- before reading */

/* The job's identity says how many ranks there are. */
static moec_status read_job(finalize *f, moec_error *err)
{
    static const char line[] = "\noption --ep ";
    moec_journal_opts o = {.dirfd = moec_output_dirfd(&f->out),
                           .name = MOEC_OUTPUT_JOB,
                           .where = f->where.data};
    moec_journal *j = NULL;
    bool found = false;

    MOEC_TRY(moec_journal_create(&j, &o, err));
    moec_status st = moec_journal_identity(j, &f->identity, &found, err);
    moec_journal_destroy(j);
    MOEC_TRY(st);
    const char *at = found ? strstr(f->identity.data, line) : NULL;
    unsigned long n = at ? strtoul(at + sizeof(line) - 1, NULL, 10) : 0;
    if (n == 0 || n > UINT32_MAX / 2)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_NONE,
                         "%s/%s is damaged: remove %s and convert all ranks "
                         "again",
                         f->where.data, MOEC_OUTPUT_JOB, f->where.data);
    f->n_ranks = (uint32_t)n;
    f->missing = moec_calloc(n, 1);
    return f->missing ? MOEC_OK : moec_fail_nomem(err, "ranks");
}

/* Locks are taken under the directory's, which is ours: none can come. */
static moec_status check_idle(const finalize *f, moec_error *err)
{
    char name[MOEC_RANK_NAME_BYTES];

    for (uint32_t k = 0; k < f->n_ranks; k++) {
        moec_rank_lock_name(name, k);
        int fd = openat(moec_output_dirfd(&f->out), name,
                        O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        int rc = fd < 0 ? 0 : flock(fd, LOCK_EX | LOCK_NB);
        int why = errno;

        if (fd >= 0)
            close(fd);
        if (rc != 0 && why == EWOULDBLOCK)
            return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                             "%s: rank %u is still being converted",
                             f->where.data, k);
        if (rc != 0)
            return moec_fail_os(err, why, "%s/%s: cannot lock it",
                                f->where.data, name);
    }
    return MOEC_OK;
}

/* Without rank 0's part there is no plan to ask what is missing of others:
 * name those that have not begun. */
static moec_status check_begun(finalize *f, moec_error *err)
{
    int dir = moec_output_dirfd(&f->out);
    char name[MOEC_RANK_NAME_BYTES];

    if (faccessat(dir, MOEC_OUTPUT_BEGUN, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return MOEC_OK;
    if (errno != ENOENT)
        return moec_fail_os(err, errno,
                            "%s/" MOEC_OUTPUT_BEGUN ": cannot look at it",
                            f->where.data);
    for (uint32_t k = 0; k < f->n_ranks; k++) {
        moec_rank_journal_name(name, k);
        f->missing[k] =
            k == 0 || faccessat(dir, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
    }
    return moec_fail_missing(f->where.data, f->missing, f->n_ranks, err);
}

/* --------------------------------------------------------------- merging */

static moec_status take_leaf(finalize *f, uint64_t i, moec_error *err)
{
    moec_leaf *have = &f->p.digests.leaves[i];

    if (f->known[i] && memcmp(have, &f->scratch[i], sizeof(*have)) != 0)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_I13,
                         "%s: rank %u and one before it have read different "
                         "bytes of the source; convert all ranks again",
                         f->where.data, f->rank);
    *have = f->scratch[i];
    f->known[i] = 1;
    return MOEC_OK;
}

static moec_status take_piece(void *ctx, moec_share_piece p, moec_error *err)
{
    finalize *f = ctx;
    uint64_t n, first = moec_share_leaf(&f->p.share, p, &n);

    if (!moec_share_owes(&f->p.share, f->rank, p))
        return MOEC_OK;
    if (!moec_journal_has(f->journal, first, n)) {
        f->missing[f->rank] = 1;
        return MOEC_OK;
    }
    for (uint64_t i = 0; i < n; i++)
        MOEC_TRY(take_leaf(f, first + i, err));
    return MOEC_OK;
}

static moec_status take_rank(finalize *f, uint32_t rank, moec_error *err)
{
    char name[MOEC_RANK_NAME_BYTES];
    moec_journal_opts o = {.dirfd = moec_output_dirfd(&f->out),
                           .name = name,
                           .where = f->where.data,
                           .identity = f->identity.data,
                           .identity_bytes = f->identity.len,
                           .cells = f->scratch,
                           .cell_bytes = sizeof(*f->scratch),
                           .n_cells = f->p.digests.n_leaves};
    bool found = false;

    moec_rank_journal_name(name, rank);
    f->rank = rank;
    MOEC_TRY(moec_journal_create(&f->journal, &o, err));
    moec_status st = moec_journal_load(f->journal, &found, err);
    if (st == MOEC_OK && found)
        st = moec_share_each(&f->p.share, take_piece, f, err);
    if (!found)
        f->missing[rank] = 1;
    moec_journal_destroy(f->journal);
    f->journal = NULL;
    return st;
}

static moec_status merge(finalize *f, moec_error *err)
{
    size_t n = f->p.digests.n_leaves;
    const char *last = MOEC_LINE_ONCE;

    f->known = moec_calloc(n + 1, 1);
    f->scratch = moec_calloc(n + 1, sizeof(*f->scratch));
    if (f->known == NULL || f->scratch == NULL)
        return moec_fail_nomem(err, "digests of all leaves");
    f->p.share.once =
        f->identity.len >= strlen(last) &&
        strcmp(f->identity.data + f->identity.len - strlen(last), last) == 0;
    for (uint32_t k = 0; k < f->n_ranks; k++)
        MOEC_TRY(take_rank(f, k, err));
    for (uint32_t k = 0; k < f->n_ranks; k++)
        if (f->missing[k])
            return moec_fail_missing(f->where.data, f->missing, f->n_ranks,
                                     err);
    return MOEC_OK;
}

/* ----------------------------------------------------------------- files */

static moec_status check_file(const finalize *f, size_t i, moec_error *err)
{
    const moec_out_job_file *file = &f->p.files[i];
    uint64_t bytes, n = moec_layout_file(f->layout, i)->header_bytes;
    moec_sha256 got;
    int fd;

    MOEC_TRY(moec_open_regular(moec_output_dirfd(&f->out), file->name, &fd,
                               &bytes, err));
    unsigned char *header = moec_alloc((size_t)n);
    moec_status st = header ? MOEC_OK : moec_fail_nomem(err, "a header");
    if (st == MOEC_OK && bytes == file->bytes)
        st = moec_pread_full(fd, file->name, header, (size_t)n, 0, err);
    if (st == MOEC_OK)
        st = moec_sha256_of(header, (size_t)n, &got, err);
    close(fd);
    if (st == MOEC_OK && (bytes != file->bytes ||
                          memcmp(&got, &f->p.headers[i], sizeof(got)) != 0))
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M06,
                       "%s/%s is not as it was made: remove %s and convert "
                       "all ranks again",
                       f->where.data, file->name, f->where.data);
    moec_free(header);
    return st;
}

static moec_status check_files(const finalize *f, moec_error *err)
{
    for (size_t i = 0; i < f->p.n_files; i++)
        MOEC_TRY(check_file(f, i, err));
    return MOEC_OK;
}

/* ----------------------------------------------------------- the command */

/* From what the ranks left to a manifest. */
static moec_status write_rest(finalize *f, moec_error *err)
{
    const moec_converted *files;

    MOEC_TRY(read_job(f, err));
    MOEC_TRY(check_idle(f, err));
    MOEC_TRY(check_begun(f, err));
    MOEC_TRY(moec_conversion_read_begun(&f->begun, f->where.data, NULL,
                                        MOEC_OUTPUT_BEGUN, err));
    MOEC_TRY(moec_conversion_rebuild(f->begun, NULL, err));
    f->layout = moec_conversion_layout(f->begun);
    files = moec_conversion_files(f->begun);
    if (moec_plan_topology(moec_layout_plan(f->layout)).n_ranks != f->n_ranks)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         "%s/%s is of another job", f->where.data,
                         MOEC_OUTPUT_BEGUN);
    MOEC_TRY(moec_prepare(&f->p, f->layout, NULL, err));
    MOEC_TRY(merge(f, err));
    MOEC_TRY(check_files(f, err));
    MOEC_TRY(moec_prove_layout(f->layout, err));
    return moec_finish_merge(f->layout, &f->p.digests, f->p.headers,
                             &files->manifest, (moec_finish_to){.dir = &f->out},
                             err);
}

/* A commit was cut short: all is there but the rename. */
static moec_status check_whole(finalize *f, moec_error *err)
{
    MOEC_TRY(moec_conversion_open(&f->begun, f->where.data, NULL, err));
    f->layout = moec_conversion_layout(f->begun);
    MOEC_TRY(moec_prepare(&f->p, f->layout, NULL, err));
    return check_files(f, err);
}

static moec_status finish(finalize *f, const char *out_dir, bool force,
                          moec_error *err)
{
    bool job = false;

    MOEC_TRY(moec_output_finish(&f->out, out_dir, force, &job, err));
    moec_buf_printf(&f->where, "%s" MOEC_OUTPUT_SUFFIX, f->out.path);
    if (f->where.oom)
        return moec_fail_nomem(err, "a path");
    MOEC_TRY(job ? write_rest(f, err) : check_whole(f, err));
    return moec_output_commit(&f->out, err);
}

moec_status moec_finalize(const char *out_dir, const moec_convert_opts *opts,
                          moec_convert_stats *stats, moec_error *err)
{
    finalize f = {.out = MOEC_OUTPUT_INIT};
    moec_convert_stats none = {0};
    struct timespec begin, end;

    *stats = none;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    moec_status st = finish(&f, out_dir, opts->force, err);
    stats->n_files = (uint32_t)f.p.n_files;
    for (size_t i = 0; i < f.p.n_files; i++)
        stats->bytes_resumed += f.p.files[i].bytes;
    stats->durability_uncertain = st == MOEC_E_DURABILITY;
    moec_output_abandon(&f.out);
    moec_prepared_fini(&f.p);
    moec_conversion_close(f.begun);
    moec_buf_fini(&f.where);
    moec_buf_fini(&f.identity);
    moec_free(f.missing);
    moec_free(f.known);
    moec_free(f.scratch);
    clock_gettime(CLOCK_MONOTONIC, &end);
    stats->seconds = (double)(end.tv_sec - begin.tv_sec) +
                     (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    return st;
}
