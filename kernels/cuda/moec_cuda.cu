// SPDX-License-Identifier: Apache-2.0
//
// The plug-in's entry: the table, the look at the device, memory for callers
// without CUDA of their own. The runtime is linked statically: a machine
// without a driver loads this file and gets NO_DEVICE with the driver's words.

#include <cstdarg>
#include <cstdio>

#include "common.cuh"

moec_status moec_cuda_fail(moec_error *err, moec_status status,
                           const char *fmt, ...)
{
    va_list args;

    if (!err || err->status != MOEC_OK)
        return status;
    err->status = status;
    va_start(args, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    return status;
}

static moec_status check(cudaError_t e, const char *what, moec_error *err)
{
    if (e == cudaSuccess)
        return MOEC_OK;
    return moec_cuda_fail(err,
                          e == cudaErrorMemoryAllocation ? MOEC_E_NOMEM
                                                         : MOEC_E_INTERNAL,
                          "%s: the device says: %s", what,
                          cudaGetErrorString(e));
}

moec_status moec_cuda_launched(const char *what, moec_error *err)
{
    return check(cudaGetLastError(), what, err);
}

moec_on_device::moec_on_device(uint32_t ordinal) : before_(0), changed_(false)
{
    if (cudaGetDevice(&before_) == cudaSuccess &&
        before_ != static_cast<int>(ordinal))
        changed_ = cudaSetDevice(static_cast<int>(ordinal)) == cudaSuccess;
}

moec_on_device::~moec_on_device()
{
    if (changed_)
        (void)cudaSetDevice(before_);
}

static moec_status open_device(uint32_t ordinal, char *name,
                               uint64_t name_bytes, moec_error *err)
{
    cudaDeviceProp p;
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);

    if (e != cudaSuccess)
        return moec_cuda_fail(err, MOEC_E_NO_DEVICE,
                              "no CUDA device can be used: %s",
                              cudaGetErrorString(e));
    if (ordinal >= static_cast<uint32_t>(n))
        return moec_cuda_fail(err, MOEC_E_NO_DEVICE,
                              "CUDA device %u does not exist, there are %d",
                              ordinal, n);
    e = cudaGetDeviceProperties(&p, static_cast<int>(ordinal));
    if (e != cudaSuccess)
        return moec_cuda_fail(err, MOEC_E_NO_DEVICE,
                              "CUDA device %u cannot be used: %s", ordinal,
                              cudaGetErrorString(e));
    (void)snprintf(name, name_bytes,
                   "%s, compute capability %d.%d, %d multiprocessors", p.name,
                   p.major, p.minor, p.multiProcessorCount);
    return MOEC_OK;
}

static moec_status alloc(uint32_t ordinal, void **out, uint64_t bytes,
                         moec_error *err)
{
    moec_on_device on(ordinal);

    return check(cudaMalloc(out, bytes), "device memory", err);
}

static void release(uint32_t ordinal, void *p)
{
    moec_on_device on(ordinal);

    (void)cudaFree(p);
}

static moec_status copy(uint32_t ordinal, void *to, const void *from,
                        uint64_t bytes, cudaMemcpyKind kind, void *stream,
                        moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    moec_status st =
        check(cudaMemcpyAsync(to, from, bytes, kind, s), "copy", err);

    if (st == MOEC_OK)
        st = check(cudaStreamSynchronize(s), "copy", err);
    return st;
}

static moec_status upload(uint32_t ordinal, void *to, const void *from,
                          uint64_t bytes, void *stream, moec_error *err)
{
    return copy(ordinal, to, from, bytes, cudaMemcpyHostToDevice, stream, err);
}

static moec_status download(uint32_t ordinal, void *to, const void *from,
                            uint64_t bytes, void *stream, moec_error *err)
{
    return copy(ordinal, to, from, bytes, cudaMemcpyDeviceToHost, stream, err);
}

static moec_status wait(uint32_t ordinal, void *stream, moec_error *err)
{
    moec_on_device on(ordinal);

    return check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)),
                 "stream", err);
}

static moec_status alloc_host(uint32_t ordinal, void **out, uint64_t bytes,
                              moec_error *err)
{
    moec_on_device on(ordinal);

    return check(cudaMallocHost(out, bytes), "pinned memory", err);
}

static void release_host(uint32_t ordinal, void *p)
{
    moec_on_device on(ordinal);

    (void)cudaFreeHost(p);
}

static moec_status copy_rows(uint32_t ordinal, void *to, uint64_t to_stride,
                             const void *from, uint64_t from_stride,
                             uint64_t row_bytes, uint64_t rows, void *stream,
                             moec_error *err)
{
    moec_on_device on(ordinal);
    cudaStream_t s = static_cast<cudaStream_t>(stream);

    if (rows == 0 || row_bytes == 0)
        return MOEC_OK;
    if (rows == 1 || (to_stride == row_bytes && from_stride == row_bytes))
        return check(cudaMemcpyAsync(to, from, rows * row_bytes,
                                     cudaMemcpyDefault, s),
                     "copy", err);
    return check(cudaMemcpy2DAsync(to, to_stride, from, from_stride, row_bytes,
                                   rows, cudaMemcpyDefault, s),
                 "copy of rows", err);
}

static moec_status event_create(uint32_t ordinal, void **out, moec_error *err)
{
    moec_on_device on(ordinal);
    cudaEvent_t e = nullptr;
    moec_status st = check(
        cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "event", err);

    if (st == MOEC_OK)
        *out = e;
    return st;
}

static void event_destroy(uint32_t ordinal, void *event)
{
    moec_on_device on(ordinal);

    (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

static moec_status event_record(uint32_t ordinal, void *event, void *stream,
                                moec_error *err)
{
    moec_on_device on(ordinal);

    return check(cudaEventRecord(static_cast<cudaEvent_t>(event),
                                 static_cast<cudaStream_t>(stream)),
                 "event", err);
}

static moec_status event_done(uint32_t ordinal, void *event, int block,
                              int *done_out, moec_error *err)
{
    moec_on_device on(ordinal);
    cudaEvent_t e = static_cast<cudaEvent_t>(event);
    cudaError_t got = block ? cudaEventSynchronize(e) : cudaEventQuery(e);

    *done_out = got == cudaSuccess;
    return got == cudaErrorNotReady ? MOEC_OK : check(got, "event", err);
}

static moec_status stream_wait(uint32_t ordinal, void *stream, void *event,
                               moec_error *err)
{
    moec_on_device on(ordinal);

    return check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream),
                                     static_cast<cudaEvent_t>(event), 0),
                 "stream", err);
}

static const moec_backend table = {
    MOEC_PLUGIN_ABI,
    sizeof(moec_backend),
    "cuda",
    open_device,
    alloc,
    release,
    upload,
    download,
    wait,
    alloc_host,
    release_host,
    copy_rows,
    event_create,
    event_destroy,
    event_record,
    event_done,
    stream_wait,
    moec_cuda_digests,
    moec_cuda_gds_open,
    moec_cuda_gds_close,
    moec_cuda_gds_region,
    moec_cuda_gds_file_open,
    moec_cuda_gds_file_close,
    moec_cuda_gds_read,
    moec_cuda_route_workspace,
    moec_cuda_route,
    moec_cuda_dispatch_workspace,
    moec_cuda_dispatch,
    moec_cuda_align_workspace,
    moec_cuda_align,
    moec_cuda_permute,
    moec_cuda_combine,
    moec_cuda_cast,
    moec_cuda_matmul,
    moec_cuda_ffn_workspace,
    moec_cuda_ffn,
};

extern "C" MOEC_API const moec_backend *moec_backend_query(uint32_t abi)
{
    return abi == MOEC_PLUGIN_ABI ? &table : nullptr;
}
