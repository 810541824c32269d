// SPDX-License-Identifier: Apache-2.0
#ifndef MOEC_EMULATE_H
#define MOEC_EMULATE_H

// What this is: enough of CUDA on the host to run our .cu files as C++: one
//   block after the other, each thread of a block a fiber. A fiber runs until
//   it meets a barrier or a warp collective, so that every shuffle, ballot and
//   __syncthreads gives what the device gives; results are the kernels' bits,
//   and a collective that not all named lanes reach is told as a deadlock.
//   Turns come in ever other orders; ThreadSanitizer sees fibers as threads
//   and reports races (emulate.cc). There shared memory is poisoned before each
//   block too: what is read unwritten shows.
//   What it does not show: memory order, speed.
// Threads: one launch at a time; all is synchronous.
// Limits: x86-64 and others through setjmp; no clusters, no cooperative
//   launches, no textures, no tensor cores but what tensor.cuh emulates.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>

#include <setjmp.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __constant__ static
// A worker's blocks run one after the other: one copy serves. As thread-local
// storage it can be found, and poisoned before each block.
#if defined(__SANITIZE_THREAD__)
#  define __shared__ static thread_local
#else
#  define __shared__ static
#endif

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c)
    {
    }
};

namespace emu {

struct small_copy {
    void *to;
    const void *from;
    uint32_t bytes;
    unsigned group;
};

struct fiber {
    ucontext_t start;
    jmp_buf at;
    char *stack;
    void *tsan;
    std::deque<small_copy> copies;
    unsigned group; // of the next copy
    dim3 tid;
    bool begun, done;
};

// One warp's meeting point. Values of one generation are read in the next, so
// two copies are enough: nobody is two meetings behind.
struct warp {
    uint32_t arrived, mask;
    uint32_t generation;
    uint64_t value[2][32];
};

struct block {
    fiber *fibers;
    warp *warps;
    unsigned n;
    unsigned live;    // threads that have not returned
    unsigned waiting; // at the barrier
    unsigned barrier; // generation
    unsigned sum, sum_before;
    unsigned current;
    uint32_t round;
    void *host; // ThreadSanitizer's name of the scheduler
    jmp_buf scheduler;
    unsigned progress; // things that happened since the last round
    const std::function<void()> *body;
};

extern thread_local block *now;
extern thread_local dim3 tid, bid, bdim, gdim;
extern thread_local unsigned char *dynamic_shared;

void yield();
void launch(dim3 grid, dim3 threads, size_t shared,
            const std::function<void()> &body);
uint64_t exchange(uint32_t mask, uint64_t value, unsigned from_lane);
// All values of the meeting: out[32], those of absent lanes are 0.
void gather(uint32_t mask, uint64_t value, uint64_t out[32]);
unsigned sync_count(unsigned add);
void sync_warp(uint32_t mask);
// A thread's copies of up to 16 bytes into shared memory: until it waits for
// their group, poison stands there.
void copy_later(void *shared, const void *global, uint32_t bytes);
void copy_commit();
void copy_wait(unsigned n_newest);
[[noreturn]] void fail(const char *what);

inline unsigned linear()
{
    return (tid.z * bdim.y + tid.y) * bdim.x + tid.x;
}
inline unsigned lane()
{
    return linear() % 32;
}

template <class T> inline uint64_t pack(T v)
{
    uint64_t u = 0;
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    memcpy(&u, &v, sizeof(T));
    return u;
}
template <class T> inline T unpack(uint64_t u)
{
    T v;
    memcpy(&v, &u, sizeof(T));
    return v;
}

} // namespace emu

#define threadIdx emu::tid
#define blockIdx  emu::bid
#define blockDim  emu::bdim
#define gridDim   emu::gdim

#define MOEC_LAUNCH_KERNEL(kernel, grid, threads, shared, stream, ...)         \
  ((void)(stream),                                                             \
   emu::launch(grid, threads, shared, [=] { kernel(__VA_ARGS__); }))
#define MOEC_DYNAMIC_SHARED(type, name)                                        \
  type *name = reinterpret_cast<type *>(emu::dynamic_shared)

// ------------------------------------------------------------ collectives

static inline void __syncthreads()
{
    emu::sync_count(0);
}
static inline int __syncthreads_or(int p)
{
    return emu::sync_count(p != 0) != 0;
}
static inline int __syncthreads_and(int p)
{
    return emu::sync_count(p == 0) == 0;
}
static inline int __syncthreads_count(int p)
{
    return (int)emu::sync_count(p != 0);
}
static inline void __syncwarp(uint32_t mask = 0xffffffffu)
{
    emu::sync_warp(mask);
}
static inline void __threadfence()
{
}
static inline void __threadfence_block()
{
}

template <class T>
static inline T __shfl_sync(uint32_t mask, T v, int src, int width = 32)
{
    unsigned lane = emu::lane();
    unsigned from = (lane & ~(unsigned)(width - 1)) |
                    ((unsigned)src & (unsigned)(width - 1));
    return emu::unpack<T>(emu::exchange(mask, emu::pack(v), from));
}
template <class T>
static inline T __shfl_xor_sync(uint32_t mask, T v, int x, int width = 32)
{
    unsigned lane = emu::lane(), from = lane ^ (unsigned)x;
    if (from / (unsigned)width > lane / (unsigned)width)
        from = lane;
    return emu::unpack<T>(emu::exchange(mask, emu::pack(v), from));
}
template <class T>
static inline T __shfl_up_sync(uint32_t mask, T v, unsigned d, int width = 32)
{
    unsigned lane = emu::lane();
    unsigned from = lane % (unsigned)width >= d ? lane - d : lane;
    return emu::unpack<T>(emu::exchange(mask, emu::pack(v), from));
}
template <class T>
static inline T __shfl_down_sync(uint32_t mask, T v, unsigned d, int width = 32)
{
    unsigned lane = emu::lane(), w = (unsigned)width;
    unsigned from = lane % w + d < w ? lane + d : lane;
    return emu::unpack<T>(emu::exchange(mask, emu::pack(v), from));
}
static inline uint32_t __ballot_sync(uint32_t mask, int p)
{
    uint64_t all[32];
    uint32_t bits = 0;

    emu::gather(mask, p != 0, all);
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) != 0 && all[i] != 0)
            bits |= 1u << i;
    return bits;
}
static inline int __any_sync(uint32_t mask, int p)
{
    return __ballot_sync(mask, p) != 0;
}
static inline int __all_sync(uint32_t mask, int p)
{
    return __ballot_sync(mask, p) == mask;
}
template <class T> static inline uint32_t __match_any_sync(uint32_t mask, T v)
{
    uint64_t all[32], mine = emu::pack(v);
    uint32_t bits = 0;

    emu::gather(mask, mine, all);
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) != 0 && all[i] == mine)
            bits |= 1u << i;
    return bits;
}
static inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t v)
{
    uint64_t all[32];
    uint32_t r = 0;

    emu::gather(mask, v, all);
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) != 0 && (uint32_t)all[i] > r)
            r = (uint32_t)all[i];
    return r;
}
static inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t v)
{
    return ~__reduce_max_sync(mask, ~v);
}
static inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t v)
{
    uint64_t all[32];
    uint32_t r = 0;

    emu::gather(mask, v, all);
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) != 0)
            r += (uint32_t)all[i];
    return r;
}
static inline uint32_t __activemask()
{
    emu::fail("__activemask: name the lanes instead");
}

// --------------------------------------------------------------- atomics

// One fiber runs at a time; the builtins are for ThreadSanitizer.

template <class T> static inline T atomicAdd(T *p, T v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicMax(T *p, T v)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    if (v > old)
        __atomic_store_n(p, v, __ATOMIC_RELAXED);
    return old;
}
template <class T> static inline T atomicMin(T *p, T v)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    if (v < old)
        __atomic_store_n(p, v, __ATOMIC_RELAXED);
    return old;
}
template <class T> static inline T atomicOr(T *p, T v)
{
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicExch(T *p, T v)
{
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicCAS(T *p, T want, T v)
{
    T old = want;
    (void)__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED);
    return old;
}

// ------------------------------------------------------------ arithmetic

static inline uint32_t __float_as_uint(float f)
{
    return (uint32_t)emu::pack(f);
}
static inline float __uint_as_float(uint32_t u)
{
    return emu::unpack<float>(u);
}
static inline int __float_as_int(float f)
{
    return (int)__float_as_uint(f);
}
static inline float __int_as_float(int i)
{
    return __uint_as_float((uint32_t)i);
}
static inline int __popc(uint32_t v)
{
    return __builtin_popcount(v);
}
static inline int __popcll(unsigned long long v)
{
    return __builtin_popcountll(v);
}
static inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
static inline int __clz(int v)
{
    return v == 0 ? 32 : __builtin_clz((unsigned)v);
}
static inline int __clzll(long long v)
{
    return v == 0 ? 64 : __builtin_clzll((unsigned long long)v);
}
static inline uint32_t __umulhi(uint32_t a, uint32_t b)
{
    return (uint32_t)((uint64_t)a * b >> 32);
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return __builtin_fmaf(a, b, c);
}
static inline float __fsqrt_rn(float a)
{
    return __builtin_sqrtf(a);
}
template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline T min(T a, T b)
{
    return b < a ? b : a;
}
template <class T> static inline T max(T a, T b)
{
    return a < b ? b : a;
}
struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};

// --------------------------------------------------------------- runtime

typedef int cudaError_t;
typedef struct emu_stream *cudaStream_t;
enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNotReady = 600
};
enum { cudaEventDisableTiming = 2 };
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDefault
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
};

static inline cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDevice(int *d)
{
    *d = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof(*p));
    (void)snprintf(p->name, sizeof(p->name), "emulated on the host");
    p->multiProcessorCount = 2;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int)
{
    *v = a == cudaDevAttrMultiProcessorCount            ? 2
         : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 227 << 10
                                                        : 9;
    return cudaSuccess;
}
template <class F>
static inline cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int)
{
    return cudaSuccess;
}
static inline cudaError_t cudaMalloc(void **p, size_t n)
{
    // Poison: what a kernel leaves unwritten shows. Large blocks begin at a
    // page, as the driver's do.
    size_t align = n >= (1u << 20) ? 4096 : 256;
    *p = aligned_alloc(align, n / align * align + align);
    if (*p == nullptr)
        return cudaErrorMemoryAllocation;
    memset(*p, 0xa5, n);
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p)
{
    free(p);
    return cudaSuccess;
}
// The copy engine is late on purpose: copies wait in a queue, and a look at an
// event lets one of them happen. Who reads or overwrites too early sees it.
// emulate.cc has the queue.
typedef struct emu_event *cudaEvent_t;
void emu_copy_later(void *to, size_t to_stride, const void *from,
                    size_t from_stride, size_t row_bytes, size_t rows);
void emu_copies_finish(void);
cudaError_t emu_event_create(cudaEvent_t *e);
void emu_event_destroy(cudaEvent_t e);
void emu_event_record(cudaEvent_t e);
bool emu_event_done(cudaEvent_t e, bool block);

static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n,
                                          cudaMemcpyKind kind, cudaStream_t)
{
    if (kind != cudaMemcpyDeviceToHost) {
        emu_copy_later(to, n, from, n, n, 1);
        return cudaSuccess;
    }
    emu_copies_finish();
    memcpy(to, from, n);
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy2DAsync(void *to, size_t to_stride,
                                            const void *from,
                                            size_t from_stride,
                                            size_t row_bytes, size_t rows,
                                            cudaMemcpyKind, cudaStream_t)
{
    emu_copy_later(to, to_stride, from, from_stride, row_bytes, rows);
    return cudaSuccess;
}
static inline cudaError_t cudaMallocHost(void **p, size_t n)
{
    *p = aligned_alloc(4096, n / 4096 * 4096 + 4096);
    return *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
static inline cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    return emu_event_create(e);
}
static inline cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    emu_event_destroy(e);
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t)
{
    emu_event_record(e);
    return cudaSuccess;
}
static inline cudaError_t cudaEventQuery(cudaEvent_t e)
{
    return emu_event_done(e, false) ? cudaSuccess : cudaErrorNotReady;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    (void)emu_event_done(e, true);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t e,
                                              unsigned)
{
    (void)emu_event_done(e, true); // one stream does the work of all
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int v, size_t n,
                                          cudaStream_t)
{
    memset(p, v, n);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    emu_copies_finish();
    return cudaSuccess;
}
static inline cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}
static inline const char *cudaGetErrorString(cudaError_t)
{
    return "out of memory";
}

#endif
