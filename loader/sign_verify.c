/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking a signature: first that the statement is the key owner's, then that
 * files are what the statement says. Nothing of the statement is believed, or
 * even parsed, before its signature holds. Refused: no signature or another
 * key's (S03), a chain that leads elsewhere (S04), a file too many or missing
 * (S06), other bytes (S07), a file of a conversion that is not signed (S08).
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sign_parts.h"

struct moec_signature {
    int dirfd;
    char *dir;
    char *self; /* the signature inside the directory, or NULL */
    moec_bundle bundle;
    moec_statement statement;
    moec_sign_key *key;
    char *subject; /* of the signing certificate, or NULL */
};

/* ---------------------------------------------------------- its own file */

char *moec_sign_inside(const char *dir, const char *path)
{
    char *slash, *real_dir = realpath(dir, NULL), *parent = NULL, *out = NULL;
    const char *base = strrchr(path, '/');
    size_t n;

    base = base ? base + 1 : path;
    parent = base == path ? realpath(".", NULL)
                          : strndup(path, (size_t)(base - path));
    if (parent && base != path) {
        slash = realpath(parent, NULL);
        free(parent);
        parent = slash;
    }
    n = real_dir ? strlen(real_dir) : 0;
    if (n == 1)
        n = 0; /* the root directory */
    if (real_dir && parent && strncmp(parent, real_dir, n) == 0 &&
        (parent[n] == '\0' || parent[n] == '/')) {
        const char *below = parent[n] ? parent + n + 1 : "";
        size_t bytes = strlen(below) + strlen(base) + 2;

        out = moec_alloc(bytes);
        if (out)
            (void)snprintf(out, bytes, "%s%s%s", below, *below ? "/" : "",
                           base);
    }
    free(real_dir);
    free(parent);
    return out;
}

static moec_status absent(const char *where, moec_error *err)
{
    return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S03,
                     "%s: there is no signature", where);
}

static moec_status read_own(moec_signature *s, const moec_signature_opts *opts,
                            moec_buf *text, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    if (opts->signature) {
        st = moec_sign_read_path(opts->signature, MOEC_JSON_BYTES_MAX, text,
                                 &why);
        s->self = moec_sign_inside(s->dir, opts->signature);
    } else {
        st = moec_read_file(s->dirfd, MOEC_SIGNATURE_NAME, MOEC_JSON_BYTES_MAX,
                            text, &why);
        s->self = moec_calloc(1, sizeof(MOEC_SIGNATURE_NAME));
        if (!s->self)
            return moec_fail_nomem(err, "a path");
        memcpy(s->self, MOEC_SIGNATURE_NAME, sizeof(MOEC_SIGNATURE_NAME));
    }
    if (st == MOEC_E_IO && why.os_errno == ENOENT)
        return absent(opts->signature ? opts->signature : MOEC_SIGNATURE_NAME,
                      err);
    return moec_hand_on(err, st, &why);
}

/* -------------------------------------------------------- who signed it */

static moec_status check_sig(const moec_signature *s, bool compat, bool sha256,
                             bool *ok, moec_error *err)
{
    moec_buf text = {0};
    moec_status st = moec_bundle_pae(&s->bundle, compat, &text, err);

    if (st == MOEC_OK)
        st = moec_sign_key_verify(s->key, &text, &s->bundle.sig, sha256, ok,
                                  err);
    moec_buf_fini(&text);
    return st;
}

static moec_status find_key(moec_signature *s, const moec_signature_opts *opts,
                            moec_error *err)
{
    if (!opts->key && !s->bundle.n_certs)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S04,
                         "signed by a key without a certificate: give its "
                         "public key");
    if (!opts->key)
        return moec_sign_certs_check(&s->key, &s->subject, &s->bundle,
                                     opts->roots, opts->n_roots, err);
    MOEC_TRY(moec_sign_key_read(&s->key, opts->key, false, err));
    if (s->bundle.n_certs)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S03,
                         "signed by a certificate: give the certificates to "
                         "trust, not a key");
    if (s->bundle.hint &&
        strcmp(s->bundle.hint, moec_sign_key_hint(s->key)) != 0)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S03,
                         "signed by another key than %s", opts->key);
    return MOEC_OK;
}

/* model-signing 0.2 signed another encoding of the same text, and with a
 * certificate always over SHA-256. */
static moec_status check_signer(const moec_signature *s, moec_error *err)
{
    bool ok = false;

    MOEC_TRY(check_sig(s, false, false, &ok, err));
    if (!ok)
        MOEC_TRY(check_sig(s, true, s->bundle.n_certs != 0, &ok, err));
    if (!ok)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S03,
                         "the signature is not this key's over this text");
    return MOEC_OK;
}

static moec_status check_opts(const moec_signature_opts *opts, moec_error *err)
{
    if (!opts || opts->struct_bytes < sizeof(*opts) ||
        !opts->key == (opts->n_roots == 0))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a signature is checked with a key or with "
                         "certificates to trust, one of the two");
    return moec_sign_check_ignored(opts->ignore, opts->n_ignore, err);
}

moec_status moec_sign_check_ignored(const char *const *ignore, size_t n,
                                    moec_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!moec_sign_path_ok(ignore[i]))
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "'%s' to be ignored is not a path relative to the "
                             "directory",
                             ignore[i]);
    return MOEC_OK;
}

moec_status moec_sign_open_dir(const char *dir, int *fd_out, moec_error *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S09,
                         "no such directory");
    if (fd < 0)
        return moec_fail_os(err, errno, "cannot open the directory");
    *fd_out = fd;
    return MOEC_OK;
}

static moec_status open_all(moec_signature *s, const moec_signature_opts *opts,
                            moec_error *err)
{
    const char *name = opts->signature ? opts->signature : MOEC_SIGNATURE_NAME;
    moec_buf text = {0};
    moec_status st;

    MOEC_TRY(moec_sign_open_dir(s->dir, &s->dirfd, err));
    st = read_own(s, opts, &text, err);
    if (st == MOEC_OK)
        st = moec_bundle_decode(&s->bundle, text.data ? text.data : "",
                                text.len, name, err);
    moec_buf_fini(&text);
    MOEC_TRY(st);
    MOEC_TRY(find_key(s, opts, err));
    MOEC_TRY(check_signer(s, err));
    return moec_statement_decode(&s->statement, s->bundle.payload.data,
                                 s->bundle.payload.len, err);
}

moec_status moec_signature_open(moec_signature **out, const char *dir,
                                const moec_signature_opts *opts,
                                moec_error *err)
{
    moec_signature *s;
    moec_status st;
    size_t n = strlen(dir) + 1;

    MOEC_TRY(check_opts(opts, err));
    s = moec_calloc(1, sizeof(*s));
    if (!s)
        return moec_fail_nomem(err, "a signature");
    s->dirfd = -1;
    s->dir = moec_alloc(n);
    if (s->dir)
        memcpy(s->dir, dir, n);
    st = s->dir ? open_all(s, opts, err) : moec_fail_nomem(err, "a path");
    if (st != MOEC_OK) {
        moec_error_prefix(err, "%s", dir);
        moec_signature_close(s);
        return st;
    }
    *out = s;
    return MOEC_OK;
}

void moec_signature_close(moec_signature *s)
{
    if (!s)
        return;
    if (s->dirfd >= 0)
        close(s->dirfd);
    moec_statement_fini(&s->statement);
    moec_bundle_fini(&s->bundle);
    moec_sign_key_free(s->key);
    moec_free(s->subject);
    moec_free(s->self);
    moec_free(s->dir);
    moec_free(s);
}

/* ------------------------------------------------------------ one file */

static moec_status other_bytes(const char *name, moec_error *err)
{
    return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S07,
                     "%s: its bytes are not the signed ones", name);
}

moec_status moec_signature_check_bytes(const moec_signature *s,
                                       const char *name, const void *data,
                                       size_t n, moec_error *err)
{
    size_t n_items = 0;
    const moec_sign_item *item =
        moec_statement_find(&s->statement, name, &n_items);
    uint64_t at = 0;

    if (n_items == 0)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S06,
                         "%s: is not signed", name);
    for (size_t i = 0; i < n_items; i++, item++) {
        uint64_t end = item->end == UINT64_MAX ? n : item->end;
        moec_sha256 sha;

        if (item->begin != at || end > n)
            return other_bytes(name, err);
        MOEC_TRY(moec_sha256_of((const char *)data + at, (size_t)(end - at),
                                &sha, err));
        if (memcmp(sha.b, item->sha256.b, sizeof(sha.b)) != 0)
            return other_bytes(name, err);
        at = end;
    }
    return at == n ? MOEC_OK : other_bytes(name, err);
}

moec_status moec_signature_check_digest(const moec_signature *s,
                                        const char *name, uint64_t bytes,
                                        const uint8_t sha256[32],
                                        moec_error *err)
{
    size_t n_items = 0;
    const moec_sign_item *item =
        moec_statement_find(&s->statement, name, &n_items);

    if (n_items == 0)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S06,
                         "%s: is not signed", name);
    if (n_items > 1)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: is signed in %zu parts; one digest cannot be "
                         "compared",
                         name, n_items);
    if ((item->end != UINT64_MAX && item->end != bytes) ||
        memcmp(item->sha256.b, sha256, 32) != 0)
        return other_bytes(name, err);
    return MOEC_OK;
}

/* ---------------------------------------------------------- all of them */

static const char *const git_paths[] = {".git", ".gitattributes", ".github",
                                        ".gitignore", NULL};

const char *const *moec_sign_git_paths(void)
{
    return git_paths;
}

static bool is_ignored(const moec_signature *s, const moec_signature_opts *opts,
                       const char *path)
{
    if (s->self && strcmp(path, s->self) == 0)
        return true;
    for (size_t i = 0; git_paths[i]; i++)
        if (moec_sign_path_under(path, git_paths[i]))
            return true;
    for (size_t i = 0; i < opts->n_ignore; i++)
        if (moec_sign_path_under(path, opts->ignore[i]))
            return true;
    /* A statement that ignores everything, or what is not in the directory,
     * is not taken at its word. */
    for (size_t i = 0; i < s->statement.n_ignored; i++)
        if (moec_sign_path_ok(s->statement.ignored[i]) &&
            moec_sign_path_under(path, s->statement.ignored[i]))
            return true;
    return false;
}

/* Every file is signed or ignored. An empty one has no shards to sign. */
static moec_status check_tree(const moec_signature *s,
                              const moec_signature_opts *opts,
                              moec_signature_stats *stats, moec_error *err)
{
    const char *first = NULL;
    moec_sign_tree tree = {0};
    size_t n_items, n_unsigned = 0;
    moec_status st = MOEC_OK;

    if (opts->ignore_unsigned)
        return MOEC_OK;
    MOEC_TRY(moec_sign_tree_read(&tree, s->dirfd, err));
    for (size_t i = 0; i < tree.n; i++) {
        const moec_sign_file *f = &tree.files[i];

        (void)moec_statement_find(&s->statement, f->path, &n_items);
        if (n_items)
            continue;
        if (is_ignored(s, opts, f->path) ||
            (s->statement.shard_bytes && f->bytes == 0)) {
            stats->n_ignored++;
            continue;
        }
        if (n_unsigned++ == 0)
            first = f->path;
    }
    if (n_unsigned)
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S06,
                       "%zu file%s not signed, the first is '%s'", n_unsigned,
                       n_unsigned == 1 ? " is" : "s are", first);
    moec_sign_tree_fini(&tree);
    return st;
}

/* Every signed file is there, and no longer than it is signed. */
static moec_status check_items(const moec_signature *s,
                               moec_signature_stats *stats, moec_error *err)
{
    const moec_statement *t = &s->statement;
    struct stat sb;

    for (size_t i = 0; i < t->n_items; i++) {
        const moec_sign_item *item = &t->items[i];
        bool last =
            i + 1 == t->n_items || strcmp(item[1].path, item->path) != 0;

        if (!last)
            continue;
        if (fstatat(s->dirfd, item->path, &sb, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno != ENOENT && errno != ENOTDIR)
                return moec_fail_os(err, errno, "%s: cannot stat", item->path);
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S06,
                             "'%s' is signed and is not there", item->path);
        }
        if (!S_ISREG(sb.st_mode))
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S06,
                             "'%s' is signed and is not a regular file",
                             item->path);
        if (item->end != UINT64_MAX && (uint64_t)sb.st_size != item->end)
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S07,
                             "%s: has %ju bytes, signed are %" PRIu64,
                             item->path, (uintmax_t)sb.st_size, item->end);
        stats->n_files++;
        stats->bytes += (uint64_t)sb.st_size;
    }
    return MOEC_OK;
}

static moec_status check_digests(const moec_signature *s,
                                 const moec_signature_opts *opts,
                                 uint64_t total, moec_error *err)
{
    const moec_statement *t = &s->statement;
    moec_sha256 *found = moec_calloc(t->n_items + 1, sizeof(*found));
    moec_sign_hash h = {.dirfd = s->dirfd,
                        .items = t->items,
                        .n = t->n_items,
                        .out = found,
                        .total = total,
                        .progress = opts->progress,
                        .progress_ctx = opts->progress_ctx,
                        .n_threads = opts->n_threads};
    moec_status st =
        found ? moec_sign_hash_items(&h, err) : moec_fail_nomem(err, "digests");
    size_t n_other = 0, first = 0;

    for (size_t i = 0; st == MOEC_OK && i < t->n_items; i++)
        if (memcmp(found[i].b, t->items[i].sha256.b, 32) != 0 && n_other++ == 0)
            first = i;
    if (n_other == 1)
        st = other_bytes(t->items[first].name, err);
    else if (n_other)
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S07,
                       "%zu files have other bytes than the signed ones, the "
                       "first is '%s'",
                       n_other, t->items[first].name);
    moec_free(found);
    return st;
}

static moec_status must_be_signed(void *ctx, const char *name, moec_error *err)
{
    const moec_signature *s = ctx;
    size_t n_items = 0;
    struct stat sb;

    (void)moec_statement_find(&s->statement, name, &n_items);
    if (n_items)
        return MOEC_OK;
    if (s->statement.shard_bytes &&
        fstatat(s->dirfd, name, &sb, AT_SYMLINK_NOFOLLOW) == 0 &&
        sb.st_size == 0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S08,
                     "'%s' belongs to the conversion and is not signed", name);
}

static moec_status check_all(const moec_signature *s,
                             const moec_signature_opts *opts,
                             moec_signature_stats *stats, moec_error *err)
{
    MOEC_TRY(check_tree(s, opts, stats, err));
    MOEC_TRY(check_items(s, stats, err));
    MOEC_TRY(check_digests(s, opts, stats->bytes, err));
    /* manifest.json is the signed one by now: it may say what must be. */
    union {
        const moec_signature *in;
        void *out;
    } u = {s};
    return moec_sign_manifest_names(s->dirfd, must_be_signed, u.out, err);
}

moec_status moec_signature_check_files(const moec_signature *s,
                                       const moec_signature_opts *opts,
                                       moec_signature_stats *stats,
                                       moec_error *err)
{
    moec_signature_stats made = {0};
    moec_status st;

    MOEC_TRY(check_opts(opts, err));
    st = check_all(s, opts, &made, err);
    if (st != MOEC_OK) {
        moec_error_prefix(err, "%s", s->dir);
        return st;
    }
    if (stats)
        *stats = made;
    return MOEC_OK;
}

moec_status moec_signature_verify(const char *dir,
                                  const moec_signature_opts *opts,
                                  moec_signature_stats *stats, moec_error *err)
{
    moec_signature *s = NULL;
    moec_status st;

    MOEC_TRY(moec_signature_open(&s, dir, opts, err));
    st = moec_signature_check_files(s, opts, stats, err);
    moec_signature_close(s);
    return st;
}

/* ------------------------------------------------------------ questions */

size_t moec_signature_n_items(const moec_signature *s)
{
    return s->statement.n_items;
}

const char *moec_signature_item(const moec_signature *s, size_t i)
{
    return s->statement.items[i].name;
}

size_t moec_signature_n_ignored(const moec_signature *s)
{
    return s->statement.n_ignored;
}

const char *moec_signature_ignored(const moec_signature *s, size_t i)
{
    return s->statement.ignored[i];
}

const char *moec_signature_curve(const moec_signature *s)
{
    return moec_sign_key_curve(s->key);
}

const char *moec_signature_subject(const moec_signature *s)
{
    return s->subject ? s->subject : "";
}
