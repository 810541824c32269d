/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What SRC means: a directory, one .safetensors file, a snapshot of a Hugging
 * Face cache, or org/name[@revision] in that cache. Owns rules I01 and I11 and
 * the border that no link crosses; refuses to guess, to download and to block.
 *
 * In a cache the snapshot holds links (../../blobs/DIGEST), so the border is
 * the repository directory:
 *     CACHE/models--org--name/{blobs/, refs/main, snapshots/REVISION/}
 */

#include "source.h"
#include "remote.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REPO_PREFIX   "models--"
#define REF_BYTES_MAX 256u
/* https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer begins
 * with this line and is shorter than 1024 bytes. */
#define LFS_LINE      "version https://git-lfs.github.com/spec/v1"
#define LFS_BYTES_MAX 1024u

bool moec_has_suffix(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);

    return n >= m && memcmp(s + n - m, suffix, m) == 0;
}

bool moec_is_foreign_weights(const char *name)
{
    return moec_has_suffix(name, ".bin") || moec_has_suffix(name, ".pt") ||
           moec_has_suffix(name, ".pth") || moec_has_suffix(name, ".gguf");
}

static char *copy(const char *s, size_t n)
{
    char *out = moec_alloc(n + 1);

    if (out != NULL) {
        memcpy(out, s, n);
        out[n] = '\0';
    }
    return out;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

/* Length of `path` without its last part and the slash before it. */
static size_t parent_bytes(const char *path, size_t n)
{
    while (n > 0 && path[n - 1] != '/')
        n--;
    return n > 1 ? n - 1 : n;
}

/* Length of the repository directory where resolved `dir` is
 * .../models--*\/snapshots/REVISION, else 0. */
static size_t repo_bytes(const char *dir)
{
    static const char snapshots[] = "/snapshots";
    const size_t m = sizeof(snapshots) - 1;
    size_t n = parent_bytes(dir, strlen(dir));
    size_t repo, begin;

    if (n <= m || memcmp(dir + n - m, snapshots, m) != 0)
        return 0;
    repo = n - m;
    begin = repo;
    while (begin > 0 && dir[begin - 1] != '/')
        begin--;
    return strncmp(dir + begin, REPO_PREFIX, strlen(REPO_PREFIX)) == 0 ? repo
                                                                       : 0;
}

static moec_status open_dir(const char *path, int *fd_out, moec_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open the directory", path);
    *fd_out = fd;
    return MOEC_OK;
}

/* Fill `s` for the resolved directory `dir`. */
static moec_status use_dir(moec_source *s, const char *dir, moec_error *err)
{
    size_t repo = repo_bytes(dir);
    const char *below = repo != 0 ? dir + repo + 1 : "";
    size_t n = strlen(below);
    char root[PATH_MAX];

    s->dir = copy(dir, strlen(dir));
    s->prefix = moec_alloc(n + 2);
    if (s->dir == NULL || s->prefix == NULL)
        return moec_fail_nomem(err, "the path of the checkpoint");
    memcpy(s->prefix, below, n);
    memcpy(s->prefix + n, n != 0 ? "/" : "", n != 0 ? 2 : 1);
    MOEC_TRY(open_dir(dir, &s->dirfd, err));
    s->rootfd = s->dirfd;
    if (repo == 0)
        return MOEC_OK;
    memcpy(root, dir, repo);
    root[repo] = '\0';
    return open_dir(root, &s->rootfd, err);
}

static moec_status resolve(const char *path, char out[PATH_MAX],
                           moec_error *err)
{
    if (realpath(path, out) == NULL)
        return moec_fail_os(err, errno, "%s: cannot resolve", path);
    return MOEC_OK;
}

/* One file was named. A link that the user typed is followed, unless it is a
 * cache's own. */
static moec_status use_file(moec_source *s, const char *path, bool regular,
                            moec_error *err)
{
    char given[PATH_MAX], real[PATH_MAX];
    struct stat st;
    size_t n = parent_bytes(path, strlen(path));

    if (moec_is_foreign_weights(path))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I02,
                         "%s: is not safetensors", path);
    if (!moec_has_suffix(path, ".safetensors"))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                         "%s: is neither a directory nor a .safetensors file",
                         path);
    if (!regular)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: is not a regular file", path);
    if (n >= sizeof(given))
        return moec_fail_os(err, ENAMETOOLONG, "%s: cannot resolve", path);
    (void)snprintf(given, sizeof(given), "%.*s", n != 0 ? (int)n : 1,
                   n != 0 ? path : ".");
    MOEC_TRY(resolve(given, real, err));
    path = base_name(path);
    if (repo_bytes(real) == 0) {
        (void)snprintf(given, sizeof(given), "%s", real);
        n = strlen(given);
        if (n + strlen(path) + 2 > sizeof(given))
            return moec_fail_os(err, ENAMETOOLONG, "%s: cannot resolve", path);
        (void)snprintf(given + n, sizeof(given) - n, "/%s", path);
        if (lstat(given, &st) == 0 && S_ISLNK(st.st_mode)) {
            MOEC_TRY(resolve(given, real, err));
            (void)snprintf(given, sizeof(given), "%s", base_name(real));
            path = given;
            real[parent_bytes(real, strlen(real))] = '\0';
        }
    }
    s->bare = copy(path, strlen(path));
    if (s->bare == NULL)
        return moec_fail_nomem(err, "the path of the checkpoint");
    return use_dir(s, real, err);
}

/* ----------------------------------------------------------------- cache */

/* Length of "org/name" or "name" before an optional "@revision"; 0 where
 * `path` is no repository's name. The characters are the hub's. */
static size_t repo_id_bytes(const char *path)
{
    size_t n = 0, slashes = 0, part = 0;

    for (; path[n] != '\0' && path[n] != '@'; n++) {
        char c = path[n];
        bool word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                    (c >= 'A' && c <= 'Z') || c == '_';
        if (c == '/') {
            if (part == 0 || ++slashes > 1)
                return 0;
            part = 0;
        } else if (word || (part > 0 && (c == '-' || c == '.'))) {
            part++;
        } else {
            return 0;
        }
    }
    return part > 0 && n <= 200 ? n : 0;
}

/* True where `rev` has plain parts between its slashes. */
static bool revision_is_plain(const char *rev)
{
    size_t part = 0;

    if (strlen(rev) > REF_BYTES_MAX)
        return false;
    for (const char *p = rev;; p++) {
        if (*p == '/' || *p == '\0') {
            if (part == 0 || (part == 1 && p[-1] == '.') ||
                (part == 2 && p[-1] == '.' && p[-2] == '.'))
                return false;
            part = 0;
        } else {
            part++;
        }
        if (*p == '\0')
            return true;
    }
}

/* What refs/REVISION says, or the revision itself where there is no such
 * file: a commit is its own name. */
static moec_status read_ref(int repofd, const char *rev, moec_buf *out,
                            moec_error *err)
{
    char name[REF_BYTES_MAX + 8];
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    (void)snprintf(name, sizeof(name), "refs/%s", rev);
    st = moec_read_file(repofd, name, REF_BYTES_MAX, out, &why);
    if (st == MOEC_E_IO && (why.os_errno == ENOENT || why.os_errno == ENOTDIR))
        moec_buf_puts(out, rev);
    else if (st != MOEC_OK)
        return moec_fail(err, st, why.rule, "refs/%s of the cache: %s", rev,
                         why.text);
    if (out->oom)
        return moec_fail_nomem(err, "a revision");
    while (out->len > 0 && (unsigned char)out->data[out->len - 1] <= ' ')
        out->data[--out->len] = '\0';
    if (out->len == 0 || strlen(out->data) != out->len ||
        strchr(out->data, '/') != NULL || !revision_is_plain(out->data))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                         "revision '%s' is not in the cache", rev);
    return MOEC_OK;
}

static moec_status not_cached(const char *path, const char *cache,
                              moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                     "%s: no such file or directory, nor is it in the cache "
                     "'%s'; nothing is ever downloaded",
                     path, cache);
}

/* Print the repository directory of `path` below the cache. */
static moec_status repo_dir(const char *path, size_t id, const char *cache,
                            char out[PATH_MAX], moec_error *err)
{
    const char *slash = memchr(path, '/', id);
    size_t org = slash != NULL ? (size_t)(slash - path) : 0;
    const char *name = slash != NULL ? slash + 1 : path;
    int n = snprintf(out, PATH_MAX, "%s/" REPO_PREFIX "%.*s%s%.*s", cache,
                     (int)org, path, slash != NULL ? "--" : "",
                     (int)(id - (size_t)(name - path)), name);

    if (n < 0 || n >= PATH_MAX)
        return moec_fail_os(err, ENAMETOOLONG, "%s: cannot resolve", cache);
    return MOEC_OK;
}

/* Find org/name[@revision] below the cache: *real is its snapshot. */
static moec_status find_cached(const char *path, size_t id, const char *cache,
                               char real[PATH_MAX], moec_error *err)
{
    const char *rev = path[id] == '@' ? path + id + 1 : "main";
    char repo[PATH_MAX], snapshot[2 * PATH_MAX];
    moec_buf commit = {0};
    moec_status st;
    int fd;

    MOEC_TRY(repo_dir(path, id, cache, repo, err));
    fd = open(repo, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno != ENOENT && errno != ENOTDIR)
        return moec_fail_os(err, errno, "%s: cannot open", repo);
    if (fd < 0 || !revision_is_plain(rev)) {
        if (fd >= 0)
            close(fd);
        return not_cached(path, cache, err);
    }
    st = read_ref(fd, rev, &commit, err);
    close(fd);
    if (st == MOEC_OK) {
        (void)snprintf(snapshot, sizeof(snapshot), "%s/snapshots/%s", repo,
                       commit.data);
        if (realpath(snapshot, real) == NULL)
            st = errno == ENOENT || errno == ENOTDIR
                     ? not_cached(path, cache, err)
                     : moec_fail_os(err, errno, "%s: cannot resolve", snapshot);
    }
    moec_buf_fini(&commit);
    return st;
}

/* ------------------------------------------------------------------ open */

static moec_status locate(moec_source *s, const char *path,
                          const char *hf_cache, moec_error *err)
{
    char real[PATH_MAX];
    struct stat st;
    size_t id;

    if (stat(path, &st) == 0) {
        if (!S_ISDIR(st.st_mode))
            return use_file(s, path, S_ISREG(st.st_mode), err);
        MOEC_TRY(resolve(path, real, err));
        return use_dir(s, real, err);
    }
    if (errno == ELOOP)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: its links lead in a circle", path);
    if (errno != ENOENT && errno != ENOTDIR)
        return moec_fail_os(err, errno, "%s: cannot open", path);
    if (lstat(path, &st) == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                         "%s: a link to something that is not there", path);
    if (errno != ENOENT && errno != ENOTDIR)
        return moec_fail_os(err, errno, "%s: cannot open", path);
    id = repo_id_bytes(path);
    if (id == 0 || hf_cache == NULL)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                         "%s: no such file or directory", path);
    MOEC_TRY(find_cached(path, id, hf_cache, real, err));
    return use_dir(s, real, err);
}

moec_status moec_source_open(moec_source *out, const char *path,
                             const char *hf_cache, moec_error *err)
{
    moec_source s = MOEC_SOURCE_INIT;
    moec_status st;

    if (path == NULL || path[0] == '\0')
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "no path of a checkpoint is given");
    st = locate(&s, path, hf_cache, err);
    if (st == MOEC_OK)
        *out = s;
    else
        moec_source_fini(&s);
    return st;
}

moec_status moec_source_open_store(moec_source *out, const moec_store *store,
                                   moec_error *err)
{
    moec_source s = MOEC_SOURCE_INIT;
    moec_status st = moec_remote_create(&s.remote, store, err);

    if (st != MOEC_OK)
        return st;
    s.dir = moec_alloc(strlen(store->name) + 1);
    s.prefix = moec_calloc(1, 1);
    if (s.dir == NULL || s.prefix == NULL) {
        moec_source_fini(&s);
        return moec_fail_nomem(err, "a source's name");
    }
    memcpy(s.dir, store->name, strlen(store->name) + 1);
    *out = s;
    return MOEC_OK;
}

void moec_source_fini(moec_source *s)
{
    static const moec_source none = MOEC_SOURCE_INIT;

    if (s->rootfd >= 0 && s->rootfd != s->dirfd)
        close(s->rootfd);
    if (s->dirfd >= 0)
        close(s->dirfd);
    moec_free(s->dir);
    moec_free(s->prefix);
    moec_free(s->bare);
    moec_remote_destroy(s->remote);
    *s = none;
}

bool moec_source_in_cache(const moec_source *s)
{
    return s->rootfd != s->dirfd;
}

/* ----------------------------------------------------------------- files */

static moec_status check_lfs(int fd, uint64_t bytes, const char *name,
                             moec_error *err)
{
    char head[sizeof(LFS_LINE) - 1];

    if (bytes < sizeof(head) || bytes > LFS_BYTES_MAX)
        return MOEC_OK;
    MOEC_TRY(moec_pread_full(fd, name, head, sizeof(head), 0, err));
    if (memcmp(head, LFS_LINE, sizeof(head)) != 0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I11,
                     "%s: is a Git LFS pointer of %llu bytes, the file itself "
                     "was not fetched",
                     name, (unsigned long long)bytes);
}

static bool is_plain(const char *name)
{
    return name[0] != '\0' && strlen(name) <= NAME_MAX &&
           strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static moec_status open_remote(const moec_source *s, const char *name,
                               int *fd_out, uint64_t *bytes_out,
                               moec_error *err)
{
    size_t i = moec_remote_find(s->remote, name);

    if (i == SIZE_MAX)
        return moec_fail_os(err, ENOENT, "%s", name);
    MOEC_TRY(moec_remote_open(s->remote, i, fd_out, err));
    *bytes_out = moec_remote_file(s->remote, i)->bytes;
    return MOEC_OK;
}

moec_status moec_source_file(const moec_source *s, const char *name,
                             int *fd_out, uint64_t *bytes_out, moec_error *err)
{
    char below[PATH_MAX + NAME_MAX];
    uint64_t bytes = 0;
    moec_status st;
    int fd = -1;

    if (!is_plain(name))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' is not a plain file name", name);
    if (s->remote != NULL) {
        MOEC_TRY(open_remote(s, name, &fd, &bytes, err));
    } else if (s->dirfd < 0) {
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: the checkpoint has headers only", name);
    } else {
        (void)snprintf(below, sizeof(below), "%s%s", s->prefix, name);
        MOEC_TRY(moec_open_regular(s->rootfd, below, &fd, &bytes, err));
    }
    st = check_lfs(fd, bytes, name, err);
    if (st != MOEC_OK) {
        close(fd);
        return st;
    }
    *fd_out = fd;
    *bytes_out = bytes;
    return MOEC_OK;
}

/* Is what the link leads to a file, though outside? */
static bool leads_to_file(const moec_source *s, const char *name)
{
    struct stat st;

    return fstatat(s->dirfd, name, &st, 0) == 0 && S_ISREG(st.st_mode);
}

moec_status moec_source_look(const moec_source *s, const char *name,
                             moec_source_entry *out, moec_error *err)
{
    char below[PATH_MAX + NAME_MAX];
    moec_error why = MOEC_ERROR_INIT;
    struct stat st;
    int fd = -1;

    *out = MOEC_ENTRY_OTHER;
    if (s->remote != NULL) {
        if (moec_remote_find(s->remote, name) != SIZE_MAX)
            *out = MOEC_ENTRY_FILE;
        return MOEC_OK;
    }
    if (fstatat(s->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT /* gone since the names were read */
                   ? MOEC_OK
                   : moec_fail_os(err, errno, "%s/%s: cannot look at it",
                                  s->dir, name);
    if (!S_ISLNK(st.st_mode)) {
        if (S_ISREG(st.st_mode))
            *out = MOEC_ENTRY_FILE;
        return MOEC_OK;
    }
    (void)snprintf(below, sizeof(below), "%s%s", s->prefix, name);
    if (moec_open_regular(s->rootfd, below, &fd, NULL, &why) == MOEC_OK) {
        close(fd);
        *out = MOEC_ENTRY_FILE;
    } else if (why.status == MOEC_E_IO && why.os_errno != ENOENT &&
               why.os_errno != ENOTDIR) {
        return moec_fail_os(err, why.os_errno, "%s/%s: cannot look at it",
                            s->dir, name);
    } else if (why.rule == MOEC_RULE_I03 && leads_to_file(s, name)) {
        *out = MOEC_ENTRY_OUTSIDE;
    }
    return MOEC_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Collect the names; the array is the caller's to free. */
static moec_status read_names(DIR *dir, moec_arena *arena, const char ***names,
                              size_t *n_out, moec_error *err)
{
    size_t n = 0, cap = 0;

    for (;;) {
        const struct dirent *e;
        errno = 0;
        /* Each stream is one thread's own. */
        e = readdir(dir); /* NOLINT(concurrency-mt-unsafe) */
        if (e == NULL)
            break;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (!MOEC_GROW(*names, n, cap))
            return moec_fail_nomem(err, "a directory's names");
        (*names)[n] = moec_arena_strdup(arena, e->d_name, strlen(e->d_name));
        if ((*names)[n++] == NULL)
            return moec_fail_nomem(err, "a directory's names");
    }
    if (errno != 0)
        return moec_fail_os(err, errno, "cannot list the directory");
    *n_out = n;
    return MOEC_OK;
}

/* Sorted as they are. */
static moec_status list_remote(const moec_source *s, moec_arena *arena,
                               const char ***names_out, size_t *n_out,
                               moec_error *err)
{
    size_t n = moec_remote_n_files(s->remote);
    const char **names = moec_calloc(n + 1, sizeof(*names));

    if (names == NULL)
        return moec_fail_nomem(err, "a source's names");
    for (size_t i = 0; i < n; i++) {
        const char *name = moec_remote_file(s->remote, i)->name;
        names[i] = moec_arena_strdup(arena, name, strlen(name));
        if (names[i] == NULL) {
            moec_free(names);
            return moec_fail_nomem(err, "a source's names");
        }
    }
    *names_out = names;
    *n_out = n;
    return MOEC_OK;
}

moec_status moec_source_list(const moec_source *s, moec_arena *arena,
                             const char ***names_out, size_t *n_out,
                             moec_error *err)
{
    const char **names = NULL;
    moec_status st;
    size_t n = 0;
    DIR *dir;
    int fd;

    if (s->remote != NULL)
        return list_remote(s, arena, names_out, n_out, err);
    fd = openat(s->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (dir == NULL) {
        st = moec_fail_os(err, errno, "%s: cannot list", s->dir);
        if (fd >= 0)
            close(fd);
        return st;
    }
    st = read_names(dir, arena, &names, &n, err);
    (void)closedir(dir);
    if (st != MOEC_OK) {
        moec_free(names);
        return st;
    }
    if (n > 1)
        qsort(names, n, sizeof(*names), by_bytes);
    *names_out = names;
    *n_out = n;
    return MOEC_OK;
}
