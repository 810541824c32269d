/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signing a directory: its files, their SHA-256, one statement, one signature,
 * one file that appears complete or not at all. Refused before a byte is read:
 * keys and certificates that cannot sign, a signature that is there already, a
 * conversion that does not open or would be signed in part (S08).
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "converted.h"
#include "sign_parts.h"

typedef struct job {
    const char *dir;
    const moec_sign_opts *opts;
    int dirfd;
    char *path;       /* of the signature */
    char *self;       /* the same inside the directory, or NULL */
    char *model_name; /* last part of the directory's path */
    moec_sign_key *key;
    moec_bundle bundle;
    moec_statement statement;
    moec_sha256 *digests;
    moec_sign_tree tree;
    moec_signature_stats stats;
    moec_error *err;
} job;

/* ----------------------------------------------------------------- keys */

static moec_status check_opts(const moec_sign_opts *opts, moec_error *err)
{
    if (!opts || opts->struct_bytes < sizeof(*opts) || !opts->key ||
        (opts->n_chain && !opts->certificate))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "signing needs a private key, and a chain needs the "
                         "certificate for it");
    return moec_sign_check_ignored(opts->ignore, opts->n_ignore, err);
}

static moec_status read_keys(moec_sign_key **key, moec_bundle *b,
                             const moec_sign_opts *opts, moec_error *err)
{
    const char *hint;
    size_t n;

    MOEC_TRY(moec_sign_key_read(key, opts->key, true, err));
    if (opts->certificate)
        return moec_sign_certs_read(b, *key, opts, err);
    hint = moec_sign_key_hint(*key);
    n = strlen(hint) + 1;
    b->hint = moec_alloc(n);
    if (!b->hint)
        return moec_fail_nomem(err, "a signature");
    memcpy(b->hint, hint, n);
    return MOEC_OK;
}

moec_status moec_sign_check_key(const moec_sign_opts *opts, moec_error *err)
{
    moec_sign_key *key = NULL;
    moec_bundle b = {0};
    moec_status st = check_opts(opts, err);

    if (st == MOEC_OK)
        st = read_keys(&key, &b, opts, err);
    moec_bundle_fini(&b);
    moec_sign_key_free(key);
    return st;
}

/* ---------------------------------------------------------------- where */

static moec_status find_path(job *j)
{
    size_t n = strlen(j->dir) + sizeof(MOEC_SIGNATURE_NAME) + 1;
    struct stat sb;

    if (j->opts->signature)
        n = strlen(j->opts->signature) + 1;
    j->path = moec_alloc(n);
    if (!j->path)
        return moec_fail_nomem(j->err, "a path");
    if (j->opts->signature)
        memcpy(j->path, j->opts->signature, n);
    else
        (void)snprintf(j->path, n, "%s/%s", j->dir, MOEC_SIGNATURE_NAME);
    if (!j->opts->replace && lstat(j->path, &sb) == 0)
        return moec_fail(j->err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: exists already, and is not to be replaced",
                         j->path);
    j->self = moec_sign_inside(j->dir, j->path);
    return MOEC_OK;
}

static moec_status find_name(job *j)
{
    char *real = realpath(j->dir, NULL);
    const char *base = real ? strrchr(real, '/') : NULL;
    size_t bad, n;

    base = base && base[1] ? base + 1 : "model";
    if (!moec_utf8_valid(base, strlen(base), &bad))
        base = "model"; /* it is for people only */
    n = strlen(base) + 1;
    j->model_name = moec_alloc(n);
    if (j->model_name)
        memcpy(j->model_name, base, n);
    free(real);
    return j->model_name ? MOEC_OK : moec_fail_nomem(j->err, "a name");
}

/* ---------------------------------------------------------------- files */

static bool is_ignored(const job *j, const char *path)
{
    const char *const *git = moec_sign_git_paths();
    size_t n = j->self ? strlen(j->self) : 0;

    /* Itself, and what is left of a run that was killed. */
    if (n && strncmp(path, j->self, n) == 0 &&
        (path[n] == '\0' || strcmp(path + n, ".tmp") == 0))
        return true;
    for (; *git; git++)
        if (moec_sign_path_under(path, *git))
            return true;
    for (size_t i = 0; i < j->opts->n_ignore; i++)
        if (moec_sign_path_under(path, j->opts->ignore[i]))
            return true;
    return false;
}

static moec_status list_files(job *j)
{
    moec_statement *s = &j->statement;

    MOEC_TRY(moec_sign_tree_read(&j->tree, j->dirfd, j->err));
    s->items = moec_arena_alloc(&s->arena, (j->tree.n + 1) * sizeof(*s->items),
                                _Alignof(moec_sign_item));
    if (!s->items)
        return moec_fail_nomem(j->err, "a list of files");
    for (size_t i = 0; i < j->tree.n; i++) {
        moec_sign_file *f = &j->tree.files[i];

        f->ignored = is_ignored(j, f->path);
        if (f->ignored) {
            j->stats.n_ignored++;
            continue;
        }
        s->items[s->n_items++] = (moec_sign_item){
            .name = f->path, .path = f->path, .end = UINT64_MAX};
        j->stats.bytes += f->bytes;
    }
    j->stats.n_files = s->n_items;
    if (s->n_items == 0)
        return moec_fail(j->err, MOEC_E_FORMAT, MOEC_RULE_S09,
                         "there is no file to sign");
    return MOEC_OK;
}

static moec_status must_be_signed(void *ctx, const char *name, moec_error *err)
{
    const job *j = ctx;
    const moec_sign_file *f = moec_sign_tree_find(&j->tree, name);

    if (!f)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S08,
                         "'%s' belongs to the conversion and is not there",
                         name);
    if (j->self && strcmp(name, j->self) == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' was copied from the source; write the signature "
                         "elsewhere",
                         name);
    if (f->ignored)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' belongs to the conversion: it cannot be ignored",
                         name);
    return MOEC_OK;
}

static moec_status check_conversion(job *j)
{
    moec_converted c;
    const moec_sign_file *f = moec_sign_tree_find(&j->tree, MOEC_SLOTS_NAME);

    if (!f || !moec_sign_tree_find(&j->tree, MOEC_MANIFEST_NAME))
        return MOEC_OK;
    MOEC_TRY(moec_converted_open(&c, j->dir, j->err));
    moec_converted_close(&c);
    return moec_sign_manifest_names(j->dirfd, must_be_signed, j, j->err);
}

static moec_status name_ignored(job *j)
{
    moec_statement *s = &j->statement;
    const char *const *git = moec_sign_git_paths();

    s->ignored = moec_arena_alloc(
        &s->arena, (j->opts->n_ignore + 6) * sizeof(char *), sizeof(char *));
    if (!s->ignored)
        return moec_fail_nomem(j->err, "a list of files");
    if (j->self)
        s->ignored[s->n_ignored++] = j->self;
    for (; *git; git++)
        s->ignored[s->n_ignored++] = *git;
    for (size_t i = 0; i < j->opts->n_ignore; i++)
        s->ignored[s->n_ignored++] = j->opts->ignore[i];
    return MOEC_OK;
}

static moec_status hash_files(job *j)
{
    moec_statement *s = &j->statement;
    moec_sign_hash h = {.dirfd = j->dirfd,
                        .items = s->items,
                        .n = s->n_items,
                        .total = j->stats.bytes,
                        .progress = j->opts->progress,
                        .progress_ctx = j->opts->progress_ctx,
                        .n_threads = j->opts->n_threads};

    j->digests = moec_calloc(s->n_items, sizeof(*j->digests));
    if (!j->digests)
        return moec_fail_nomem(j->err, "digests");
    h.out = j->digests;
    MOEC_TRY(moec_sign_hash_items(&h, j->err));
    for (size_t i = 0; i < s->n_items; i++)
        s->items[i].sha256 = j->digests[i];
    return MOEC_OK;
}

/* ---------------------------------------------------------------- write */

static moec_status sign_text(job *j, const moec_buf *pae)
{
    bool ok = false;

    MOEC_TRY(moec_sign_key_sign(j->key, pae, &j->bundle.sig, j->err));
    /* A signature that its own key does not accept helps nobody. */
    MOEC_TRY(
        moec_sign_key_verify(j->key, pae, &j->bundle.sig, false, &ok, j->err));
    if (!ok)
        return moec_fail(j->err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "libcrypto made a signature that does not hold");
    return MOEC_OK;
}

static moec_status make_bundle(job *j, moec_buf *text)
{
    moec_buf pae = {0};
    moec_status st;

    MOEC_TRY(moec_statement_encode(&j->statement, j->model_name,
                                   &j->bundle.payload, j->err));
    st = moec_bundle_pae(&j->bundle, false, &pae, j->err);
    if (st == MOEC_OK)
        st = sign_text(j, &pae);
    moec_buf_fini(&pae);
    MOEC_TRY(st);
    moec_bundle_encode(&j->bundle, text);
    if (text->oom)
        return moec_fail_nomem(j->err, "a signature");
    if (text->len > MOEC_JSON_BYTES_MAX)
        return moec_fail(j->err, MOEC_E_FORMAT, MOEC_RULE_S09,
                         "%zu files make a signature of more than 16 MiB",
                         j->statement.n_items);
    return MOEC_OK;
}

/* fsync of the directory that holds `path`. */
static moec_status sync_parent(const char *path, moec_error *err)
{
    const char *slash = strrchr(path, '/');
    char *parent = slash ? strndup(path, (size_t)(slash - path) + 1) : NULL;
    int fd = !slash || parent ? open(parent ? parent : ".",
                                     O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                              : -1;
    int why = fd < 0 || fsync(fd) != 0 ? errno : 0;

    if (fd >= 0)
        close(fd);
    free(parent);
    if (!why)
        return MOEC_OK;
    (void)moec_fail_os(err, why, "%s: written, durability uncertain", path);
    if (err)
        err->status = MOEC_E_DURABILITY;
    return MOEC_E_DURABILITY;
}

static moec_status write_tmp(const char *tmp, const moec_buf *text,
                             moec_error *err)
{
    int fd =
        open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    moec_status st;

    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot be written", tmp);
    st = moec_pwrite_full(fd, tmp, text->data, text->len, 0, err);
    if (st == MOEC_OK && fsync(fd) != 0)
        st = moec_fail_os(err, errno, "%s: cannot be written", tmp);
    if (close(fd) != 0 && st == MOEC_OK)
        st = moec_fail_os(err, errno, "%s: cannot be written", tmp);
    if (st != MOEC_OK)
        (void)unlink(tmp);
    return st;
}

/* File systems without the flags of renameat2 (NFS, some FUSE): a link does not
 * replace either. */
static int put_in_place(const char *tmp, const char *path, unsigned flags)
{
    int rc = renameat2(AT_FDCWD, tmp, AT_FDCWD, path, flags);

    if (rc == 0 || flags == 0 ||
        (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP))
        return rc;
    rc = link(tmp, path);
    if (rc == 0)
        (void)unlink(tmp);
    return rc;
}

static moec_status write_bundle(const job *j, const moec_buf *text)
{
    size_t n = strlen(j->path) + sizeof(".tmp");
    char *tmp = moec_alloc(n);
    unsigned flags = j->opts->replace ? 0 : RENAME_NOREPLACE;
    moec_status st;

    if (!tmp)
        return moec_fail_nomem(j->err, "a path");
    (void)snprintf(tmp, n, "%s.tmp", j->path);
    st = write_tmp(tmp, text, j->err);
    if (st == MOEC_OK && put_in_place(tmp, j->path, flags) != 0) {
        st = errno == EEXIST
                 ? moec_fail(j->err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "%s: exists already, and is not to be replaced",
                             j->path)
                 : moec_fail_os(j->err, errno, "%s: cannot be renamed", tmp);
        (void)unlink(tmp);
    }
    moec_free(tmp);
    return st == MOEC_OK ? sync_parent(j->path, j->err) : st;
}

static moec_status run(job *j)
{
    moec_buf text = {0};
    moec_status st;

    MOEC_TRY(check_opts(j->opts, j->err));
    MOEC_TRY(read_keys(&j->key, &j->bundle, j->opts, j->err));
    st = moec_sign_open_dir(j->dir, &j->dirfd, j->err);
    if (st != MOEC_OK) {
        moec_error_prefix(j->err, "%s", j->dir);
        return st;
    }
    MOEC_TRY(find_path(j));
    MOEC_TRY(find_name(j));
    MOEC_TRY(list_files(j));
    MOEC_TRY(check_conversion(j));
    MOEC_TRY(name_ignored(j));
    MOEC_TRY(hash_files(j));
    st = make_bundle(j, &text);
    if (st == MOEC_OK)
        st = write_bundle(j, &text);
    moec_buf_fini(&text);
    return st;
}

moec_status moec_sign(const char *dir, const moec_sign_opts *opts,
                      moec_signature_stats *stats, moec_error *err)
{
    job j = {.dir = dir, .opts = opts, .dirfd = -1, .err = err};
    moec_status st = run(&j);

    if (stats && (st == MOEC_OK || st == MOEC_E_DURABILITY))
        *stats = j.stats;
    if (j.dirfd >= 0)
        close(j.dirfd);
    moec_sign_tree_fini(&j.tree);
    moec_statement_fini(&j.statement);
    moec_bundle_fini(&j.bundle);
    moec_sign_key_free(j.key);
    moec_free(j.digests);
    moec_free(j.model_name);
    moec_free(j.self);
    moec_free(j.path);
    return st;
}
