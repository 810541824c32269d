/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Data files written in any order. See writer.h.
 *
 * A small cache of descriptors: a write pins its file, opening it if need be;
 * when too many are open the unpinned one used longest ago is closed. Closing
 * is harmless: fsync acts on the inode, whichever descriptor asks.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include "writer.h"

/* Files kept open, of two descriptors each (buffered and direct). Low enough
 * for the usual soft limit of 1024 inside a server; and as many fewer as the
 * limit asks for, RESERVE descriptors being left to whoever opens the sources
 * once more in the end. With fewer than DIRECT_LEAST there is one descriptor a
 * file: a slow disk is better than none. */
#define OPEN_FILES_MAX 48u
#define RESERVE        4u
#define DIRECT_LEAST   8u

#define DIRECT_ALIGN   4096u

/* Buffer of a copy through memory. */
#define COPY_BYTES ((size_t)1 << 20)

typedef struct wfile {
    char *name;
    uint64_t bytes;
    int fd, direct_fd; /* -1: not open */
    uint32_t pins;
    uint64_t used;     /* clock of the last pin */
    atomic_bool dirty; /* written since the last flush */
} wfile;

struct moec_writer {
    int dirfd;
    size_t n_files;
    wfile *files;
    bool no_direct; /* also set when the file system refuses O_DIRECT */
    bool sparse;
    atomic_bool no_clone, no_kernel_copy; /* it was refused once */
    pthread_mutex_t lock;
    pthread_cond_t unpinned;
    uint64_t clock;
    size_t n_open, max_open;
};

/* How many files may be open: at least one. Descriptors are given out lowest
 * first, so that the next one tells how many are taken. */
static size_t choose_max(moec_writer *w)
{
    struct rlimit r;
    int next = fcntl(w->dirfd, F_DUPFD_CLOEXEC, 0);
    uint64_t left;

    if (next >= 0)
        close(next);
    if (next < 0 || getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 1;
    left = r.rlim_cur > (uint64_t)next + RESERVE
               ? r.rlim_cur - (uint64_t)next - RESERVE
               : 1;
    if (left < DIRECT_LEAST)
        w->no_direct = true;
    else if (!w->no_direct)
        left /= 2;
    return (size_t)moec_min_u64(left, OPEN_FILES_MAX);
}

moec_status moec_writer_create(moec_writer **out, int dirfd, size_t n_files,
                               bool no_direct, moec_error *err)
{
    moec_writer *w = moec_calloc(1, sizeof(*w));

    if (w == NULL)
        return moec_fail_nomem(err, "a writer");
    w->files = moec_calloc(n_files + 1, sizeof(*w->files));
    if (w->files == NULL) {
        moec_free(w);
        return moec_fail_nomem(err, "files of a writer");
    }
    for (size_t i = 0; i < n_files; i++)
        w->files[i].fd = w->files[i].direct_fd = -1;
    w->dirfd = dirfd;
    w->n_files = n_files;
    w->no_direct = no_direct;
    w->max_open = choose_max(w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->unpinned, NULL);
    *out = w;
    return MOEC_OK;
}

static void close_file(moec_writer *w, wfile *f)
{
    if (f->fd >= 0)
        close(f->fd);
    if (f->direct_fd >= 0)
        close(f->direct_fd);
    if (f->fd >= 0)
        w->n_open--;
    f->fd = f->direct_fd = -1;
}

/* False where all that are open are pinned. */
static bool close_oldest(moec_writer *w)
{
    wfile *oldest = NULL;

    for (size_t i = 0; i < w->n_files; i++) {
        wfile *f = &w->files[i];
        if (f->fd < 0 || f->pins > 0)
            continue;
        if (oldest == NULL || f->used < oldest->used)
            oldest = f;
    }
    if (oldest != NULL)
        close_file(w, oldest);
    return oldest != NULL;
}

/* Let one go, or wait until another thread unpins one. */
static void make_room(moec_writer *w)
{
    if (!close_oldest(w))
        pthread_cond_wait(&w->unpinned, &w->lock);
}

/* Under the lock where other threads write. Who waits here holds no pin, so
 * that those who do come to their end. */
static moec_status open_file(moec_writer *w, wfile *f, int extra,
                             moec_error *err)
{
    const int flags = O_WRONLY | O_CLOEXEC | O_NOFOLLOW | extra;
    int fd = -1;

    while (w->n_open >= w->max_open && f->fd < 0)
        make_room(w);
    while (f->fd < 0) { /* else another thread has opened it meanwhile */
        fd = openat(w->dirfd, f->name, flags, 0666);
        if (fd >= 0 || (errno != EMFILE && errno != ENFILE) || w->n_open == 0)
            break;
        make_room(w);
    }
    if (f->fd >= 0)
        return MOEC_OK;
    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open for writing", f->name);
    f->fd = fd;
    w->n_open++;
    if (!w->no_direct) {
        f->direct_fd = openat(w->dirfd, f->name,
                              O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_DIRECT);
        if (f->direct_fd < 0 && errno == EINVAL)
            w->no_direct = true; /* tmpfs and others: say so once */
    }
    return MOEC_OK;
}

static moec_status set_size(const wfile *f, moec_error *err)
{
    if (ftruncate(f->fd, (off_t)f->bytes) != 0)
        return moec_fail_os(err, errno, "%s: cannot set the size to %llu",
                            f->name, (unsigned long long)f->bytes);
    return MOEC_OK;
}

/* Take the file's space now. Where the file system cannot, at least give it
 * its size. */
static moec_status take_space(const wfile *f, bool sparse, moec_error *err)
{
    int rc;

    if (f->bytes == 0)
        return MOEC_OK;
    if (sparse)
        return set_size(f, err);
    do {
        rc = fallocate(f->fd, 0, 0, (off_t)f->bytes);
    } while (rc != 0 && errno == EINTR);
    if (rc == 0)
        return MOEC_OK;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return moec_fail_os(err, errno,
                            "%s: cannot take %llu bytes of disk space", f->name,
                            (unsigned long long)f->bytes);
    return set_size(f, err);
}

static moec_status name_file(wfile *f, const char *name, uint64_t bytes,
                             moec_error *err)
{
    size_t n = strlen(name) + 1;

    f->name = moec_alloc(n);
    if (f->name == NULL)
        return moec_fail_nomem(err, "name of a file");
    memcpy(f->name, name, n);
    f->bytes = bytes;
    return MOEC_OK;
}

moec_status moec_writer_add(moec_writer *w, size_t i, const char *name,
                            uint64_t bytes, moec_error *err)
{
    wfile *f = &w->files[i];

    MOEC_TRY(name_file(f, name, bytes, err));
    MOEC_TRY(open_file(w, f, O_CREAT | O_EXCL, err));
    return take_space(f, w->sparse, err);
}

moec_status moec_writer_keep(moec_writer *w, size_t i, const char *name,
                             uint64_t bytes, bool unsynced, moec_error *err)
{
    wfile *f = &w->files[i];

    MOEC_TRY(name_file(f, name, bytes, err));
    atomic_store(&f->dirty, unsynced);
    return open_file(w, f, 0, err);
}

static moec_status pin(moec_writer *w, wfile *f, moec_error *err)
{
    moec_status st = MOEC_OK;

    pthread_mutex_lock(&w->lock);
    if (f->fd < 0)
        st = open_file(w, f, 0, err);
    if (st == MOEC_OK) {
        f->pins++;
        f->used = ++w->clock;
    }
    pthread_mutex_unlock(&w->lock);
    return st;
}

static void unpin(moec_writer *w, wfile *f)
{
    pthread_mutex_lock(&w->lock);
    f->pins--;
    pthread_cond_broadcast(&w->unpinned);
    pthread_mutex_unlock(&w->lock);
}

/* Some file systems take O_DIRECT at open and refuse it at the first write:
 * then the buffered descriptor does the rest. */
static moec_status write_pinned(wfile *f, uint64_t off, const void *buf,
                                size_t n, moec_error *err)
{
    bool aligned = off % DIRECT_ALIGN == 0 && n % DIRECT_ALIGN == 0 &&
                   (uintptr_t)buf % DIRECT_ALIGN == 0;
    size_t done = 0;

    while (aligned && f->direct_fd >= 0 && done < n) {
        ssize_t k = pwrite(f->direct_fd, (const char *)buf + done, n - done,
                           (off_t)(off + done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && errno != EINVAL)
            return moec_fail_os(err, errno,
                                "%s: cannot write %zu bytes at "
                                "%llu",
                                f->name, n, (unsigned long long)off);
        if (k <= 0)
            break;
        done += (size_t)k;
        aligned = (size_t)k % DIRECT_ALIGN == 0;
    }
    if (done == n)
        return MOEC_OK;
    return moec_pwrite_full(f->fd, f->name, (const char *)buf + done, n - done,
                            off + done, err);
}

moec_status moec_writer_write(moec_writer *w, size_t i, uint64_t off,
                              const void *buf, size_t n, moec_error *err)
{
    wfile *f = &w->files[i];

    if (n == 0)
        return MOEC_OK;
    MOEC_TRY(pin(w, f, err));
    moec_status st = write_pinned(f, off, buf, n, err);
    atomic_store(&f->dirty, true);
    unpin(w, f);
    return st;
}

/* -------------------------------------------------------------- copying */

void moec_writer_sparse(moec_writer *w)
{
    w->sparse = true;
}

/* What says that this pair of files cannot do it, not that it failed. */
static bool cannot(int why)
{
    return why == EOPNOTSUPP || why == ENOSYS || why == ENOTTY ||
           why == EXDEV || why == EINVAL || why == EPERM || why == ETXTBSY;
}

/* Share the whole blocks of a range whose two sides are aligned alike:
 * *cloned_out bytes from *begin_out of it. */
static moec_status clone_blocks(moec_writer *w, const wfile *f, uint64_t off,
                                int fd, uint64_t from, uint64_t n,
                                uint64_t *begin_out, uint64_t *cloned_out,
                                moec_error *err)
{
    uint64_t head = (DIRECT_ALIGN - off % DIRECT_ALIGN) % DIRECT_ALIGN;
    struct file_clone_range r = {.src_fd = fd};

    *cloned_out = 0;
    *begin_out = 0;
    if (atomic_load(&w->no_clone) ||
        off % DIRECT_ALIGN != from % DIRECT_ALIGN || n < head + DIRECT_ALIGN)
        return MOEC_OK;
    r.src_offset = from + head;
    r.src_length = (n - head) & ~(uint64_t)(DIRECT_ALIGN - 1);
    r.dest_offset = off + head;
    if (ioctl(f->fd, FICLONERANGE, &r) == 0) {
        *begin_out = head;
        *cloned_out = r.src_length;
        return MOEC_OK;
    }
    if (!cannot(errno))
        return moec_fail_os(err, errno, "%s: cannot share %llu bytes at %llu",
                            f->name, (unsigned long long)r.src_length,
                            (unsigned long long)r.dest_offset);
    atomic_store(&w->no_clone, true);
    return MOEC_OK;
}

/* Through memory, for pairs of files that the kernel does not copy between. */
static moec_status copy_by_hand(const wfile *f, uint64_t off, int fd,
                                uint64_t from, uint64_t n, moec_error *err)
{
    size_t most = (size_t)moec_min_u64(n, COPY_BYTES);
    void *buf = moec_alloc(most);
    moec_status st = MOEC_OK;

    if (buf == NULL)
        return moec_fail_nomem(err, "a copy buffer");
    for (uint64_t at = 0; st == MOEC_OK && at < n; at += most) {
        size_t k = (size_t)moec_min_u64(most, n - at);
        st = moec_pread_full(fd, f->name, buf, k, from + at, err);
        if (st == MOEC_OK)
            st = moec_pwrite_full(f->fd, f->name, buf, k, off + at, err);
    }
    moec_free(buf);
    return st;
}

static moec_status copy_bytes(moec_writer *w, const wfile *f, uint64_t off,
                              int fd, uint64_t from, uint64_t n,
                              moec_error *err)
{
    loff_t in = (loff_t)from, out = (loff_t)off;

    while (n > 0 && !atomic_load(&w->no_kernel_copy)) {
        ssize_t k = copy_file_range(fd, &in, f->fd, &out, (size_t)n, 0);

        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && !cannot(errno))
            return moec_fail_os(err, errno,
                                "%s: cannot copy %llu bytes to %llu", f->name,
                                (unsigned long long)n, (unsigned long long)out);
        if (k <= 0) { /* 0: some file systems that cannot say so */
            atomic_store(&w->no_kernel_copy, true);
            break;
        }
        n -= (uint64_t)k;
    }
    if (n == 0)
        return MOEC_OK;
    return copy_by_hand(f, (uint64_t)out, fd, (uint64_t)in, n, err);
}

moec_status moec_writer_copy(moec_writer *w, size_t i, uint64_t off, int fd,
                             uint64_t from, uint64_t n, uint64_t *cloned_out,
                             moec_error *err)
{
    wfile *f = &w->files[i];
    uint64_t begin = 0;
    moec_status st;

    *cloned_out = 0;
    MOEC_TRY(pin(w, f, err));
    st = clone_blocks(w, f, off, fd, from, n, &begin, cloned_out, err);
    if (st == MOEC_OK)
        st = copy_bytes(w, f, off, fd, from, begin, err);
    begin += *cloned_out;
    if (st == MOEC_OK)
        st = copy_bytes(w, f, off + begin, fd, from + begin, n - begin, err);
    atomic_store(&f->dirty, true);
    unpin(w, f);
    return st;
}

static moec_status sync_one(void *ctx, size_t i, uint32_t worker,
                            moec_error *err)
{
    moec_writer *w = ctx;
    wfile *f = &w->files[i];
    moec_status st = MOEC_OK;

    (void)worker;
    MOEC_TRY(pin(w, f, err));
    if (fsync(f->fd) != 0)
        st = moec_fail_os(err, errno, "%s: fsync failed", f->name);
    unpin(w, f);
    return st;
}

moec_status moec_writer_flush(moec_writer *w, moec_error *err)
{
    for (size_t i = 0; i < w->n_files; i++)
        if (atomic_exchange(&w->files[i].dirty, false))
            MOEC_TRY(sync_one(w, i, 0, err));
    return MOEC_OK;
}

moec_status moec_writer_sync(moec_writer *w, uint32_t n_threads,
                             moec_error *err)
{
    return moec_parallel(n_threads, w->n_files, sync_one, w, err);
}

void moec_writer_destroy(moec_writer *w)
{
    if (w == NULL)
        return;
    for (size_t i = 0; i < w->n_files; i++) {
        close_file(w, &w->files[i]);
        moec_free(w->files[i].name);
    }
    pthread_cond_destroy(&w->unpinned);
    pthread_mutex_destroy(&w->lock);
    moec_free(w->files);
    moec_free(w);
}
