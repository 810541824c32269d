/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that a signature covers: the whole directory, its subdirectories
 * included. Refused (S09): links, FIFOs, sockets and devices, because what
 * they lead to is not in the directory; names that are not UTF-8, because the
 * statement is JSON; directories deeper than 32.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "converted.h"
#include "sign_parts.h"

/* Of directories, and of descriptors held while walking. */
#define DEPTH_MAX  32
#define FILES_MAX  ((size_t)1 << 20)
#define READ_BYTES ((size_t)1 << 20)

/* ---------------------------------------------------------------- walk */

typedef struct walk {
    moec_sign_tree *t;
    moec_error *err;
} walk;

static moec_status refuse(walk *w, const char *path, const char *what)
{
    return moec_fail(w->err, MOEC_E_FORMAT, MOEC_RULE_S09, "%s: %s", path,
                     what);
}

static moec_status add_file(walk *w, const char *path, uint64_t bytes)
{
    moec_sign_tree *t = w->t;
    char *own;

    if (t->n == FILES_MAX)
        return refuse(w, path, "more files than can be signed");
    if (!MOEC_GROW(t->files, t->n, t->cap))
        return moec_fail_nomem(w->err, "a list of files");
    own = moec_arena_strdup(&t->arena, path, strlen(path));
    if (!own)
        return moec_fail_nomem(w->err, "a list of files");
    t->files[t->n++] = (moec_sign_file){.path = own, .bytes = bytes};
    return MOEC_OK;
}

static moec_status walk_dir(walk *w, int fd, moec_buf *path, unsigned depth);

static moec_status walk_down(walk *w, int dirfd, const char *name,
                             moec_buf *path, unsigned depth)
{
    int fd;

    if (depth == DEPTH_MAX)
        return refuse(w, path->data, "directories are nested too deeply");
    fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return moec_fail_os(w->err, errno, "%s: cannot open", path->data);
    return walk_dir(w, fd, path, depth + 1);
}

static moec_status walk_entry(walk *w, int dirfd, const char *name,
                              moec_buf *path, unsigned depth)
{
    size_t bad, n = path->len;
    struct stat sb;
    moec_status st;

    if (n)
        moec_buf_puts(path, "/");
    moec_buf_puts(path, name);
    if (path->oom)
        return moec_fail_nomem(w->err, "a path");
    if (fstatat(dirfd, name, &sb, AT_SYMLINK_NOFOLLOW) != 0)
        st = moec_fail_os(w->err, errno, "%s: cannot stat", path->data);
    else if (!moec_utf8_valid(name, strlen(name), &bad))
        st = refuse(w, path->data, "the name is not UTF-8");
    else if (S_ISDIR(sb.st_mode))
        st = walk_down(w, dirfd, name, path, depth);
    else if (S_ISLNK(sb.st_mode))
        st = refuse(w, path->data, "is a symbolic link");
    else if (!S_ISREG(sb.st_mode))
        st = refuse(w, path->data, "is neither a file nor a directory");
    else
        st = add_file(w, path->data, (uint64_t)sb.st_size);
    path->len = n;
    if (path->data)
        path->data[n] = '\0';
    return st;
}

/* Takes fd. */
static moec_status walk_dir(walk *w, int fd, moec_buf *path, unsigned depth)
{
    DIR *d = fdopendir(fd);
    moec_status st = MOEC_OK;
    struct dirent *e;

    if (!d) {
        st = moec_fail_os(w->err, errno, "%s: cannot be listed",
                          path->len ? path->data : ".");
        close(fd);
        return st;
    }
    while (st == MOEC_OK) {
        errno = 0;
        e = readdir(d);
        if (!e && errno != 0)
            st = moec_fail_os(w->err, errno, "%s: cannot be listed",
                              path->len ? path->data : ".");
        if (!e)
            break;
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            st = walk_entry(w, fd, e->d_name, path, depth);
    }
    closedir(d);
    return st;
}

static int file_cmp(const void *a, const void *b)
{
    return moec_sign_path_cmp(((const moec_sign_file *)a)->path,
                              ((const moec_sign_file *)b)->path);
}

moec_status moec_sign_tree_read(moec_sign_tree *t, int dirfd, moec_error *err)
{
    moec_sign_tree made = {0};
    walk w = {&made, err};
    moec_buf path = {0};
    moec_status st;
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return moec_fail_os(err, errno, "the directory cannot be listed");
    st = walk_dir(&w, fd, &path, 0);
    moec_buf_fini(&path);
    if (st != MOEC_OK) {
        moec_sign_tree_fini(&made);
        return st;
    }
    if (made.n > 1)
        qsort(made.files, made.n, sizeof(*made.files), file_cmp);
    *t = made;
    return MOEC_OK;
}

void moec_sign_tree_fini(moec_sign_tree *t)
{
    moec_arena_fini(&t->arena);
    moec_free(t->files);
    *t = (moec_sign_tree){0};
}

const moec_sign_file *moec_sign_tree_find(const moec_sign_tree *t,
                                          const char *path)
{
    moec_sign_file key = {.path = path};

    return t->n ? bsearch(&key, t->files, t->n, sizeof(key), file_cmp) : NULL;
}

/* ---------------------------------------------------------------- hash */

typedef struct hashing {
    const moec_sign_hash *h;
    pthread_mutex_t lock;
    uint64_t done;
} hashing;

static moec_status tell(hashing *x, uint64_t bytes, moec_error *err)
{
    const moec_sign_hash *h = x->h;
    int stop = 0;

    if (!h->progress)
        return MOEC_OK;
    pthread_mutex_lock(&x->lock);
    x->done += bytes;
    stop = h->progress(h->progress_ctx, x->done, h->total);
    pthread_mutex_unlock(&x->lock);
    return stop ? moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE, "cancelled")
                : MOEC_OK;
}

static moec_status hash_range(hashing *x, int fd, const moec_sign_item *item,
                              uint64_t bytes, moec_hasher *hasher,
                              moec_error *err)
{
    unsigned char *buf = moec_alloc(READ_BYTES);
    uint64_t done = 0;
    moec_status st = buf ? MOEC_OK : moec_fail_nomem(err, "a read buffer");

    while (st == MOEC_OK && done < bytes) {
        size_t n = (size_t)moec_min_u64(READ_BYTES, bytes - done);

        st = moec_pread_full(fd, item->path, buf, n, item->begin + done, err);
        if (st == MOEC_OK)
            st = moec_hasher_update(hasher, buf, n, err);
        if (st == MOEC_OK)
            st = tell(x, n, err);
        done += n;
    }
    moec_free(buf);
    return st;
}

static bool same_state(const struct stat *a, const struct stat *b)
{
    return a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static moec_status hash_open(hashing *x, int fd, uint64_t size,
                             const moec_sign_item *item, moec_sha256 *out,
                             moec_error *err)
{
    uint64_t end = moec_min_u64(item->end, size);
    moec_hasher *hasher = NULL;
    struct stat before, after;
    moec_status st;

    if (item->begin > end || (item->end != UINT64_MAX && item->end > size))
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S07,
                         "%s: ends at byte %ju, signed up to %ju", item->path,
                         (uintmax_t)size, (uintmax_t)item->end);
    if (fstat(fd, &before) != 0)
        return moec_fail_os(err, errno, "%s: cannot stat", item->path);
    MOEC_TRY(moec_hasher_create(&hasher, err));
    st = hash_range(x, fd, item, end - item->begin, hasher, err);
    if (st != MOEC_OK) {
        moec_hasher_destroy(hasher);
        return st;
    }
    MOEC_TRY(moec_hasher_final(hasher, out, err));
    if (fstat(fd, &after) != 0)
        return moec_fail_os(err, errno, "%s: cannot stat", item->path);
    if (!same_state(&before, &after))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%s: changed while it was read", item->path);
    return MOEC_OK;
}

static moec_status hash_one(void *ctx, size_t i, uint32_t worker,
                            moec_error *err)
{
    hashing *x = ctx;
    const moec_sign_item *item = &x->h->items[i];
    moec_status st;
    uint64_t size = 0;
    int fd = -1;

    (void)worker;
    MOEC_TRY(moec_open_regular(x->h->dirfd, item->path, &fd, &size, err));
    st = hash_open(x, fd, size, item, &x->h->out[i], err);
    close(fd);
    return st;
}

moec_status moec_sign_hash_items(const moec_sign_hash *h, moec_error *err)
{
    hashing x = {.h = h};
    moec_status st;

    if (pthread_mutex_init(&x.lock, NULL) != 0)
        return moec_fail_nomem(err, "a lock");
    st = moec_parallel(h->n_threads, h->n, hash_one, &x, err);
    pthread_mutex_destroy(&x.lock);
    return st;
}

/* ------------------------------------------------------------ manifest */

static moec_status name_all(const moec_manifest *m, moec_sign_name_fn fn,
                            void *ctx, moec_error *err)
{
    MOEC_TRY(fn(ctx, MOEC_MANIFEST_NAME, err));
    MOEC_TRY(fn(ctx, m->slots_file.name, err));
    MOEC_TRY(fn(ctx, m->sources_file.name, err));
    for (size_t i = 0; i < m->n_files; i++)
        MOEC_TRY(fn(ctx, m->files[i].name, err));
    for (size_t i = 0; i < m->n_copied; i++)
        MOEC_TRY(fn(ctx, m->copied[i].name, err));
    return MOEC_OK;
}

moec_status moec_sign_manifest_names(int dirfd, moec_sign_name_fn fn, void *ctx,
                                     moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_manifest m = {0};
    moec_buf text = {0};
    struct stat sb;
    moec_status st;

    /* slots.bin beside it: a manifest.json of somebody else's is a file like
     * any other. */
    if (fstatat(dirfd, MOEC_MANIFEST_NAME, &sb, AT_SYMLINK_NOFOLLOW) != 0 ||
        fstatat(dirfd, MOEC_SLOTS_NAME, &sb, AT_SYMLINK_NOFOLLOW) != 0)
        return MOEC_OK;
    st = moec_read_file(dirfd, MOEC_MANIFEST_NAME, MOEC_JSON_BYTES_MAX, &text,
                        &why);
    if (st == MOEC_OK)
        st = moec_manifest_decode(&m, text.data ? text.data : "", text.len,
                                  &why);
    if (st == MOEC_OK)
        st = name_all(&m, fn, ctx, err);
    else
        (void)moec_hand_on(err, st, &why);
    moec_manifest_fini(&m);
    moec_buf_fini(&text);
    return st;
}
