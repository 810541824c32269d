/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The files of an engine: opened a second time for direct reads where the file
 * system gains by them, and stamped: a file that changes between the engine's
 * making and its last read is an error (I13).
 */

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "engine_parts.h"

/* Smaller files are read through the cache. */
#define DIRECT_BYTES (UINT64_C(256) << 10)

/* Memory has nothing to go past, and a network's client loses its readahead.
 * Magic numbers of statfs(2); those that linux/magic.h may lack stand here. */
static bool loses_by_direct(int fd)
{
    struct statfs s;

    if (fstatfs(fd, &s) != 0)
        return false;
    switch ((uint32_t)s.f_type) {
    case 0x01021994: /* tmpfs */
    case 0x858458f6: /* ramfs */
    case 0x958458f6: /* hugetlbfs */
    case 0x6969:     /* NFS */
    case 0xff534d42: /* CIFS */
    case 0xfe534d42: /* SMB2 */
    case 0x517b:     /* SMB */
    case 0x01021997: /* 9P */
    case 0x00c36400: /* Ceph */
    case 0x5346414f: /* AFS */
    case 0x6b414653: /* kAFS */
    case 0x73757245: /* Coda */
    case 0x65735546: /* FUSE */
        return true;
    default:
        return false;
    }
}

/* What the file system says of its direct reads; a page where it does not. */
static bool ask_alignment(int fd, moec_engine_fd *f)
{
    f->off_align = f->mem_align = (uint32_t)MOEC_ENGINE_PAGE;
#ifdef STATX_DIOALIGN
    struct statx s;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &s) == 0 &&
        (s.stx_mask & STATX_DIOALIGN) != 0) {
        f->off_align = s.stx_dio_offset_align;
        f->mem_align = s.stx_dio_mem_align;
    }
    /* 0: no direct reads; more than a page: not with our ring */
    return f->off_align != 0 && f->mem_align != 0 &&
           (f->off_align & (f->off_align - 1)) == 0 &&
           (f->mem_align & (f->mem_align - 1)) == 0 &&
           f->off_align <= MOEC_ENGINE_PAGE && f->mem_align <= MOEC_ENGINE_PAGE;
#else
    (void)fd;
    return true;
#endif
}

static bool is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Failing to is no error. */
static void open_direct(const moec_engine *e, moec_engine_fd *f)
{
    const moec_engine_reader *own = e->o.sink ? e->o.sink->reader : NULL;
    bool always = own != NULL && own->always;
    moec_error ignored = MOEC_ERROR_INIT;
    struct stat st;

    if (e->o.no_direct || f->f->path == NULL || f->f->bytes < DIRECT_BYTES ||
        (!always && loses_by_direct(f->f->fd)))
        return;
    f->direct_fd =
        open(f->f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
    if (f->direct_fd < 0)
        return;
    /* the path may name another file by now */
    if (fstat(f->direct_fd, &st) != 0 || !is_same_file(&st, &f->stamp) ||
        !ask_alignment(f->direct_fd, f)) {
        close(f->direct_fd);
        f->direct_fd = -1;
    }
    atomic_store(&f->direct, f->direct_fd >= 0);
    if (own == NULL || f->direct_fd < 0)
        return;
    f->off_align = f->mem_align = (uint32_t)MOEC_ENGINE_PAGE;
    if (own->open(own->ctx, f->direct_fd, &f->own, &ignored) != MOEC_OK)
        f->own = NULL;
    atomic_store(&f->own_way, f->own != NULL);
}

static moec_status changed(const moec_engine_fd *f, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                     "%s: changed while it was read", f->f->name);
}

moec_status moec_engine_open_files(moec_engine *e, moec_error *err)
{
    for (size_t i = 0; i < e->n_files; i++) {
        moec_engine_fd *f = &e->files[i];

        if (!f->used)
            continue;
        if (f->f->fd < 0) {
            if (e->o.read_at == NULL)
                return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                                 "%s: neither a descriptor nor a function to "
                                 "read it by",
                                 f->f->name);
            continue;
        }
        if (fstat(f->f->fd, &f->stamp) != 0)
            return moec_fail_os(err, errno, "%s", f->f->name);
        if ((uint64_t)f->stamp.st_size != f->f->bytes)
            return changed(f, err);
        open_direct(e, f);
    }
    return MOEC_OK;
}

void moec_engine_close_files(moec_engine *e)
{
    for (size_t i = 0; i < e->n_files; i++) {
        moec_engine_fd *f = &e->files[i];

        if (f->own != NULL)
            e->o.sink->reader->close(e->o.sink->reader->ctx, f->own);
        if (f->direct_fd >= 0)
            close(f->direct_fd);
    }
}

moec_status moec_engine_check_file(const moec_engine *e, uint32_t file,
                                   moec_error *err)
{
    const moec_engine_fd *f = &e->files[file];
    struct stat st;

    if (!f->used || f->f->fd < 0)
        return MOEC_OK;
    if (fstat(f->f->fd, &st) != 0)
        return moec_fail_os(err, errno, "%s", f->f->name);
    if (!is_same_file(&st, &f->stamp) || st.st_size != f->stamp.st_size ||
        st.st_mtim.tv_sec != f->stamp.st_mtim.tv_sec ||
        st.st_mtim.tv_nsec != f->stamp.st_mtim.tv_nsec)
        return changed(f, err);
    return MOEC_OK;
}

moec_status moec_engine_read_plain(moec_engine *e, uint32_t file, uint64_t off,
                                   void *to, size_t n, moec_error *err)
{
    const moec_engine_fd *f = &e->files[file];

    atomic_fetch_add(&e->n_asked, 1);
    atomic_fetch_add(&e->bytes_read, n);
    if (f->f->fd < 0)
        return e->o.read_at(e->o.read_ctx, file, off, to, n, err);
    return moec_pread_full(f->f->fd, f->f->name, to, n, off, err);
}
