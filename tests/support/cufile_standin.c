/* SPDX-License-Identifier: Apache-2.0 */

/*
 * libcufile for tests on the host, where the emulated device's memory is the
 * host's: reads are preads. Refuses what NVIDIA's refuses: files that were not
 * registered, and regions that overlap. Its prototypes are written apart from
 * those of the plug-in.
 */

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cufile_standin.h"

#define PUBLIC  __attribute__((visibility("default")))
#define REGIONS 256

typedef struct CUfileError {
    int err, cu_err;
} CUfileError_t;

typedef struct CUfileDescr {
    int type;
    union {
        int fd;
        void *handle;
    } handle;
    const void *fs_ops;
} CUfileDescr_t;

typedef struct CUfileDrvProps {
    struct {
        unsigned major_version, minor_version;
        size_t poll_thresh_size, max_direct_io_size;
        unsigned dstatusflags, dcontrolflags;
    } nvfs;
    unsigned fflags, max_device_cache_size, per_buffer_cache_size;
    unsigned max_device_pinned_mem_size, max_batch_io_size, timeout;
} CUfileDrvProps_t;

typedef struct file {
    int fd;
} file;

PUBLIC cufile_standin_t cufile_standin;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const char *base;
    size_t bytes;
} regions[REGIONS];

PUBLIC CUfileError_t cuFileDriverOpen(void);
PUBLIC CUfileError_t cuFileDriverGetProperties(CUfileDrvProps_t *p);
PUBLIC CUfileError_t cuFileHandleRegister(void **out, CUfileDescr_t *d);
PUBLIC void cuFileHandleDeregister(void *handle);
PUBLIC CUfileError_t cuFileBufRegister(const void *base, size_t n, int flags);
PUBLIC CUfileError_t cuFileBufDeregister(const void *base);
PUBLIC ssize_t cuFileRead(void *handle, void *base, size_t n, off_t off,
                          off_t base_off);

CUfileError_t cuFileDriverOpen(void)
{
    cufile_standin.n_opened++;
    return (CUfileError_t){cufile_standin.open_error, 0};
}

CUfileError_t cuFileDriverGetProperties(CUfileDrvProps_t *p)
{
    memset(p, 0, sizeof(*p));
    p->nvfs.major_version = cufile_standin.no_nvidia_fs ? 0 : 2;
    return (CUfileError_t){0, 0};
}

CUfileError_t cuFileHandleRegister(void **out, CUfileDescr_t *d)
{
    file *f;

    if (cufile_standin.file_error != 0 || d->type != 1 || d->fs_ops != NULL)
        return (CUfileError_t){5008, 0};
    f = malloc(sizeof(*f));
    if (f == NULL)
        return (CUfileError_t){5043, 0};
    f->fd = d->handle.fd;
    pthread_mutex_lock(&lock);
    cufile_standin.n_files++;
    cufile_standin.n_files_now++;
    pthread_mutex_unlock(&lock);
    *out = f;
    return (CUfileError_t){0, 0};
}

void cuFileHandleDeregister(void *handle)
{
    pthread_mutex_lock(&lock);
    cufile_standin.n_files_now--;
    pthread_mutex_unlock(&lock);
    free(handle);
}

CUfileError_t cuFileBufRegister(const void *base, size_t n, int flags)
{
    const char *b = base;

    if (flags != 0 || cufile_standin.n_regions_now == REGIONS)
        return (CUfileError_t){5022, 0};
    for (int i = 0; i < cufile_standin.n_regions_now; i++)
        if (b < regions[i].base + regions[i].bytes && regions[i].base < b + n)
            return (CUfileError_t){5023, 0};
    regions[cufile_standin.n_regions_now].base = b;
    regions[cufile_standin.n_regions_now++].bytes = n;
    cufile_standin.n_regions++;
    return (CUfileError_t){0, 0};
}

CUfileError_t cuFileBufDeregister(const void *base)
{
    for (int i = 0; i < cufile_standin.n_regions_now; i++)
        if (regions[i].base == base) {
            regions[i] = regions[--cufile_standin.n_regions_now];
            return (CUfileError_t){0, 0};
        }
    return (CUfileError_t){5024, 0};
}

/* What the n-th read gives, and how much it reads at most. */
static ssize_t answer(int n, size_t *bytes)
{
    const cufile_standin_t *s = &cufile_standin;

    if (s->fail_from != 0 && n >= s->fail_from) {
        errno = EIO;
        return -1;
    }
    if (s->refuse_from != 0 && n >= s->refuse_from)
        return -5010;
    if (s->short_from != 0 && n >= s->short_from)
        *bytes /= 2;
    return 0;
}

ssize_t cuFileRead(void *handle, void *base, size_t n, off_t off,
                   off_t base_off)
{
    const file *f = handle;
    char *to = (char *)base + base_off;
    int number, known = 0;
    ssize_t st, got;

    pthread_mutex_lock(&lock);
    number = ++cufile_standin.n_reads;
    for (int i = 0; i < cufile_standin.n_regions_now; i++)
        known |= base == (const void *)regions[i].base &&
                 (size_t)base_off + n <= regions[i].bytes;
    cufile_standin.n_unregistered += !known;
    cufile_standin.n_unaligned +=
        off % 4096 != 0 || n % 4096 != 0 || (uintptr_t)to % 4096 != 0;
    pthread_mutex_unlock(&lock);
    st = answer(number, &n);
    if (st != 0)
        return st;
    for (size_t done = 0; done < n; done += (size_t)got) {
        /* the descriptor is for direct reads: whole pages of pages */
        got = pread(f->fd, to + done, n - done, off + (off_t)done);
        if (got <= 0)
            return -1;
    }
    if (cufile_standin.corrupt != 0 && number == cufile_standin.corrupt)
        to[n / 2] = (char)(to[n / 2] ^ 4);
    return (ssize_t)n;
}
