// SPDX-License-Identifier: Apache-2.0
//
// GPUDirect Storage: files to device memory through NVIDIA's libcufile, which
// is looked for at run time; its prototypes are ours, after the documentation
// of the cuFile API. The library and its driver stay open once they were: they
// have threads of their own, and others in the process may use them.
//
// Refuses (NO_DEVICE): no library, a driver that does not open, and, unless
// compatibility mode is asked for, one that would only copy through the host,
// which the caller's ring does better.

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <sys/types.h>

#include "common.cuh"

namespace {

struct status {
    int error; // 0, or 5000 + ...
    int cuda;  // the driver's, where error is CUDA_ERROR
};

struct descriptor {
    int type; // 1: a file descriptor of Linux
    union {
        int fd;
        void *handle;
    } handle;
    const void *file_system; // functions of one of the user's
};

// The head of CUfileDrvProps_t, and room for what later versions add.
struct properties {
    unsigned major_version, minor_version; // of nvidia-fs; 0: not loaded
    size_t poll_bytes, direct_bytes;
    unsigned status_flags, control_flags;
    unsigned rest[122];
};

const int ALREADY_OPEN = 5026;
const int CUDA_ERROR = 5011;
const int DESCRIPTOR = 1;
const unsigned P2PDMA = 1u << 11; // NVMe without nvidia-fs

struct functions {
    status (*driver_open)();
    status (*driver_properties)(properties *);
    status (*handle_register)(void **, descriptor *);
    void (*handle_deregister)(void *);
    status (*buffer_register)(const void *, size_t, int);
    status (*buffer_deregister)(const void *);
    ssize_t (*read)(void *, void *, size_t, off_t, off_t);
};

struct gds {
    functions f;
    size_t n;
    struct {
        char *base;
        uint64_t bytes;
    } *regions;
};

// A thread that never spoke to the runtime has no context, which cuFile needs.
class with_context {
  public:
    explicit with_context(uint32_t ordinal) : on_(ordinal)
    {
        (void)cudaFree(nullptr);
    }

  private:
    moec_on_device on_;
};

moec_status refuse(moec_error *err, const char *what, status s)
{
    const char *why = "see CUfileOpError";

    switch (s.error) {
    case 5001:
        why = "nvidia-fs is not loaded";
        break;
    case 5004:
    case 5005:
        why = "nvidia-fs has another version";
        break;
    case 5007:
        why = "not on this platform";
        break;
    case 5008:
        why = "not on this file system";
        break;
    case 5009:
        why = "not on this device";
        break;
    case CUDA_ERROR:
        return moec_cuda_fail(err, MOEC_E_NO_DEVICE,
                              "cuFile %s: CUDA error %d", what, s.cuda);
    default:
        break;
    }
    return moec_cuda_fail(err, MOEC_E_NO_DEVICE, "cuFile %s: error %d, %s",
                          what, s.error, why);
}

template <class F> bool find(void *library, const char *name, F *out)
{
    void *symbol = dlsym(library, name);

    memcpy(out, &symbol, sizeof(*out));
    return symbol != nullptr;
}

moec_status find_all(void *library, functions *f, moec_error *err)
{
    const char *missing = nullptr;

    if (!find(library, "cuFileDriverOpen", &f->driver_open))
        missing = "cuFileDriverOpen";
    else if (!find(library, "cuFileDriverGetProperties", &f->driver_properties))
        missing = "cuFileDriverGetProperties";
    else if (!find(library, "cuFileHandleRegister", &f->handle_register))
        missing = "cuFileHandleRegister";
    else if (!find(library, "cuFileHandleDeregister", &f->handle_deregister))
        missing = "cuFileHandleDeregister";
    else if (!find(library, "cuFileBufRegister", &f->buffer_register))
        missing = "cuFileBufRegister";
    else if (!find(library, "cuFileBufDeregister", &f->buffer_deregister))
        missing = "cuFileBufDeregister";
    else if (!find(library, "cuFileRead", &f->read))
        missing = "cuFileRead";
    if (missing == nullptr)
        return MOEC_OK;
    return moec_cuda_fail(err, MOEC_E_NO_DEVICE, "cuFile has no %s", missing);
}

moec_status open_driver(const functions *f, int compatible, moec_error *err)
{
    properties p;
    status s = f->driver_open();

    if (s.error != 0 && s.error != ALREADY_OPEN)
        return refuse(err, "does not open its driver", s);
    if (compatible)
        return MOEC_OK;
    memset(&p, 0, sizeof(p));
    s = f->driver_properties(&p);
    if (s.error != 0)
        return refuse(err, "does not tell its driver's properties", s);
    if (p.major_version == 0 && (p.status_flags & P2PDMA) == 0)
        return moec_cuda_fail(err, MOEC_E_NO_DEVICE,
                              "cuFile would copy through the host: neither "
                              "nvidia-fs nor P2PDMA is there");
    return MOEC_OK;
}

} // namespace

moec_status moec_cuda_gds_open(uint32_t ordinal, const char *library,
                               int compatible, void **out, moec_error *err)
{
    with_context on(ordinal);
    void *handle = dlopen(library != nullptr ? library : "libcufile.so.0",
                          RTLD_NOW | RTLD_LOCAL);
    functions f;
    gds *g;

    if (handle == nullptr)
        return moec_cuda_fail(err, MOEC_E_NO_DEVICE, "no cuFile: %s",
                              dlerror());
    moec_status st = find_all(handle, &f, err);
    if (st != MOEC_OK) {
        (void)dlclose(handle);
        return st;
    }
    st = open_driver(&f, compatible, err);
    if (st != MOEC_OK)
        return st;
    g = static_cast<gds *>(calloc(1, sizeof(*g)));
    if (g == nullptr)
        return moec_cuda_fail(err, MOEC_E_NOMEM, "out of memory: cuFile");
    g->f = f;
    *out = g;
    return MOEC_OK;
}

static void drop_regions(gds *g)
{
    for (size_t i = 0; i < g->n; i++)
        (void)g->f.buffer_deregister(g->regions[i].base);
    free(g->regions);
    g->regions = nullptr;
    g->n = 0;
}

void moec_cuda_gds_close(uint32_t ordinal, void *p)
{
    with_context on(ordinal);

    drop_regions(static_cast<gds *>(p));
    free(p);
}

// What cannot be registered is read into all the same, by cuFile's own buffers.
void moec_cuda_gds_region(uint32_t ordinal, void *p, void *base, uint64_t bytes)
{
    with_context on(ordinal);
    gds *g = static_cast<gds *>(p);

    if (base == nullptr) {
        drop_regions(g);
        return;
    }
    void *v = realloc(g->regions, (g->n + 1) * sizeof(*g->regions));
    if (v == nullptr)
        return;
    memcpy(&g->regions, &v, sizeof(v));
    if (g->f.buffer_register(base, bytes, 0).error != 0)
        return;
    g->regions[g->n].base = static_cast<char *>(base);
    g->regions[g->n++].bytes = bytes;
}

moec_status moec_cuda_gds_file_open(uint32_t ordinal, void *p, int fd,
                                    void **out, moec_error *err)
{
    with_context on(ordinal);
    descriptor d;

    memset(&d, 0, sizeof(d));
    d.type = DESCRIPTOR;
    d.handle.fd = fd;
    status s = static_cast<gds *>(p)->f.handle_register(out, &d);
    return s.error == 0 ? MOEC_OK : refuse(err, "does not take a file", s);
}

void moec_cuda_gds_file_close(uint32_t ordinal, void *p, void *file)
{
    with_context on(ordinal);

    static_cast<gds *>(p)->f.handle_deregister(file);
}

moec_status moec_cuda_gds_read(uint32_t ordinal, void *p, void *file,
                               uint64_t off, void *to, uint64_t bytes,
                               uint64_t *got_out, moec_error *err)
{
    with_context on(ordinal);
    const gds *g = static_cast<const gds *>(p);
    char *dst = static_cast<char *>(to), *base = dst;

    for (size_t i = 0; i < g->n; i++)
        if (dst >= g->regions[i].base &&
            static_cast<uint64_t>(dst - g->regions[i].base) + bytes <=
                g->regions[i].bytes)
            base = g->regions[i].base;
    errno = 0;
    ssize_t n = g->f.read(file, base, bytes, static_cast<off_t>(off),
                          static_cast<off_t>(dst - base));
    if (n == -1)
        return moec_cuda_fail(err, MOEC_E_IO, "cuFile does not read: %s",
                              strerror(errno));
    if (n < 0)
        return refuse(err, "does not read", {static_cast<int>(-n), 0});
    *got_out = static_cast<uint64_t>(n);
    return MOEC_OK;
}
