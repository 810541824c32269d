// SPDX-License-Identifier: Apache-2.0
//
// The plug-in's kernels timed on the card, as JSON lines for gpu_table.py:
//
//   bench_device --plugin PATH [--tiny]
//
// A figure is the median over replays of a CUDA graph whose calls run through
// several sets of inputs, divided by its calls. Copy and read bandwidth are
// measured in the same run. It speaks to the plug-in's table directly and
// links nothing of ours, so that nvcc alone builds it.
//
// --tiny calls everything once at small sizes without timing: for
// compute-sanitizer and, compiled with MOEC_EMULATE, for the plug-in over the
// host's emulation. Exit 0; 1 where a call failed; 77 without a device. What
// a plug-in has no kernel for is said in its line and is no failure.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <dlfcn.h>

#include "plugin.h"

#ifndef MOEC_EMULATE
#  include <cuda_runtime.h>
#  define ON_BOTH __host__ __device__
#else
#  define ON_BOTH
#endif

static const moec_backend *backend;
static bool tiny;
static int status;
static void *stream;

// ------------------------------------------------------------- memory

[[noreturn]] static void die(const char *what, const char *why)
{
    std::fprintf(stderr, "bench_device: %s: %s\n", what, why);
    std::exit(1);
}

// The headers' initialisers are C's.
template <typename T> static T made()
{
    T v = {};

    v.struct_bytes = sizeof(v);
    return v;
}

// Everything that a figure allocates, freed at its end.
static std::vector<void *> held;

static void *device_bytes(uint64_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    void *p = nullptr;

    if (backend->alloc(0, &p, n ? n : 1, &err) != MOEC_OK)
        throw std::string(err.text);
    held.push_back(p);
    return p;
}

template <typename T> static T *device_array(uint64_t n)
{
    return static_cast<T *>(device_bytes(n * sizeof(T)));
}

template <typename T> static T *device_copy(const std::vector<T> &v)
{
    moec_error err = MOEC_ERROR_INIT;
    T *p = device_array<T>(v.size());

    if (backend->upload(0, p, v.data(), v.size() * sizeof(T), stream, &err) !=
        MOEC_OK)
        throw std::string(err.text);
    return p;
}

static void free_all()
{
    for (void *p : held)
        backend->free(0, p);
    held.clear();
}

// ------------------------------------------------------------- numbers

ON_BOTH static inline uint64_t mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Near enough to a bell.
ON_BOTH static inline float normal_at(uint64_t seed, uint64_t i)
{
    uint64_t a = mixed(seed * 0x100000001b3u + i);
    float sum = 0.0f;

    for (int k = 0; k < 4; k++)
        sum += static_cast<float>((a >> (16 * k)) & 0xffff) * (1.0f / 65536.0f);
    return (sum - 2.0f) * 1.732f;
}

// What a buffer is filled with.
enum fill { NORMAL, SMALL_SCALES, BF16_NORMAL, FP8 };

ON_BOTH static inline void fill_at(void *p, fill what, uint64_t seed,
                                   uint64_t i)
{
    float v = normal_at(seed, i);
    uint32_t bits;

    switch (what) {
    case NORMAL:
        static_cast<float *>(p)[i] = v;
        break;
    case SMALL_SCALES:
        static_cast<float *>(p)[i] = 0.0002f + 0.0001f * (v < 0 ? -v : v);
        break;
    case BF16_NORMAL:
        memcpy(&bits, &v, sizeof(bits));
        static_cast<uint16_t *>(p)[i] = static_cast<uint16_t>(bits >> 16);
        break;
    case FP8: // without the codes of NaN
        static_cast<uint8_t *>(p)[i] = static_cast<uint8_t>(mixed(i) & 0xf7);
        break;
    }
}

#ifdef MOEC_EMULATE
static void fill_all(void *p, fill what, uint64_t seed, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        fill_at(p, what, seed, i);
}
#else
__global__ void fill_kernel(void *p, fill what, uint64_t seed, uint64_t n)
{
    uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;

    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x +
                      threadIdx.x;
         i < n; i += step)
        fill_at(p, what, seed, i);
}

static void fill_all(void *p, fill what, uint64_t seed, uint64_t n)
{
    fill_kernel<<<2048, 256, 0, static_cast<cudaStream_t>(stream)>>>(p, what,
                                                                     seed, n);
}

static void cuda(cudaError_t e, const char *what)
{
    if (e != cudaSuccess)
        die(what, cudaGetErrorString(e));
}
#endif

static float *normals(uint64_t n, uint64_t seed)
{
    float *p = device_array<float>(n);

    fill_all(p, NORMAL, seed, n);
    return p;
}

// ------------------------------------------------------------- timing

struct figure {
    double median, least; // microseconds a call; 0: not timed
};

struct refused {
    moec_status st;
    std::string text;
};

static void must(moec_status st, const moec_error &err)
{
    if (st != MOEC_OK)
        throw refused{st, err.text};
}

static void wait()
{
    moec_error err = MOEC_ERROR_INIT;

    must(backend->wait(0, stream, &err), err);
}

// `call(i)` enqueues one call on set i.
template <typename F> static figure timed(F call, unsigned sets, unsigned calls)
{
    figure f = {0, 0};

    for (unsigned i = 0; i < sets; i++)
        call(i);
    wait();
#ifndef MOEC_EMULATE
    if (tiny)
        return f;
    cudaStream_t s = static_cast<cudaStream_t>(stream);
    std::vector<double> took;
    cudaGraphExec_t exec;
    cudaEvent_t from, to;
    cudaGraph_t graph;
    float ms = 0;

    cuda(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal),
         "capture");
    for (unsigned i = 0; i < calls; i++)
        call(i % sets);
    cuda(cudaStreamEndCapture(s, &graph), "capture's end");
    cuda(cudaGraphInstantiate(&exec, graph, 0), "graph");
    cuda(cudaEventCreate(&from), "event");
    cuda(cudaEventCreate(&to), "event");
    // The first two warm up, the third says how many are a quarter second.
    for (unsigned i = 0, n = 3; i < n; i++) {
        cuda(cudaEventRecord(from, s), "event");
        cuda(cudaGraphLaunch(exec, s), "replay");
        cuda(cudaEventRecord(to, s), "event");
        cuda(cudaEventSynchronize(to), "replay");
        cuda(cudaEventElapsedTime(&ms, from, to), "event");
        if (i == 2)
            n += std::min(201u, std::max(21u, static_cast<unsigned>(
                                                  250.0f / (ms + 1e-3f))));
        if (i >= 3)
            took.push_back(ms * 1e3 / calls);
    }
    std::sort(took.begin(), took.end());
    f.least = took[0];
    f.median = took[took.size() / 2];
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(from);
    cudaEventDestroy(to);
#else
    (void)calls;
#endif
    return f;
}

// Sets to rotate so that together they are several times the L2 cache, where
// that is not too many.
static unsigned sets_for(uint64_t bytes)
{
    uint64_t n = (256u << 20) / (bytes ? bytes : 1);

    if (tiny)
        return 2;
    return static_cast<unsigned>(std::min<uint64_t>(
        64, std::max<uint64_t>(n, 3)));
}

// One line. `more` is further JSON members, each behind a comma.
static void say(const char *kernel, const std::string &shape, const figure &f,
                const std::string &more)
{
    std::printf("{\"who\": \"moec\", \"kernel\": \"%s\", \"shape\": \"%s\"",
                kernel, shape.c_str());
    if (f.median > 0)
        std::printf(", \"us\": %.3f, \"us_min\": %.3f", f.median, f.least);
    std::printf("%s}\n", more.c_str());
    std::fflush(stdout);
}

static std::string quoted(const std::string &s)
{
    std::string out;

    for (char c : s)
        out += c == '"' || c == '\\' ? '\'' : c;
    return out;
}

static std::string number(const char *name, double v)
{
    char text[96];

    std::snprintf(text, sizeof(text), ", \"%s\": %.4g", name, v);
    return text;
}

// Run one figure, and say why there is none.
template <typename F>
static void figure_of(const char *kernel, const std::string &shape,
                      const std::string &bar, F body)
{
    try {
        body();
    } catch (const refused &r) {
        bool none = r.st == MOEC_E_UNSUPPORTED;

        say(kernel, shape, {0, 0},
            bar + (none ? ", \"none\": \"" : ", \"error\": \"") + quoted(r.text) +
                "\"");
        status = none ? status : 1;
    } catch (const std::string &why) {
        say(kernel, shape, {0, 0},
            bar + ", \"error\": \"" + quoted(why) + "\"");
        status = 1;
    }
    free_all();
}

// ------------------------------------------------------------- choice

static uint32_t rows_of(uint32_t n)
{
    return tiny ? std::min(n, 37u) : n;
}

static std::string shape_of(const char *fmt, uint32_t a, uint32_t b = 0)
{
    char text[96];

    std::snprintf(text, sizeof(text), fmt, a, b);
    return text;
}

static moec_route_config plain_config()
{
    moec_route_config c = made<moec_route_config>();

    c.n_experts = 256;
    c.top_k = 8;
    c.rsf = 1.0f;
    c.score = MOEC_SCORE_SOFTMAX;
    c.norm = MOEC_NORM_SUM;
    return c;
}

static moec_route_config grouped_config()
{
    moec_route_config c = plain_config();

    c.score = MOEC_SCORE_SIGMOID;
    c.n_group = 8;
    c.topk_group = 4;
    c.group_score = MOEC_GROUP_TOP2;
    c.rsf = 2.5f;
    c.rsf_on = MOEC_RSF_ON_WEIGHTS;
    return c;
}

static moec_route_config ec_config(uint32_t n_experts)
{
    moec_route_config c = plain_config();

    c.n_experts = n_experts;
    c.ec.mode = MOEC_EC_ON;
    return c;
}

// Redundant experts, one shared, 8 ranks: what a fused node has to do.
struct map_case {
    moec_dispatch_map map;
    moec_waterfill fill;
    moec_dispatch_out out;
};

static map_case make_map(const moec_route_config &c, uint32_t rows)
{
    uint32_t redundant = 32, physical = c.n_experts + redundant, ranks = 8;
    std::vector<uint32_t> first(1, 0), cand;
    map_case m = {};

    for (uint32_t e = 0; e < c.n_experts; e++) {
        cand.push_back(e);
        if (e < redundant)
            cand.push_back(c.n_experts + e);
        first.push_back(static_cast<uint32_t>(cand.size()));
    }
    m.map.struct_bytes = sizeof(m.map);
    m.map.topology = {physical, ranks, physical / ranks, c.n_shared, 0};
    m.map.n_experts = c.n_experts;
    m.map.rule = MOEC_REPLICA_ROW_RANK_LAYER;
    m.map.rank = 3;
    m.map.layer = 5;
    m.map.cand_first = device_copy(first);
    m.map.cand = device_copy(cand);
    m.fill.mode = MOEC_WATERFILL_STATIC;
    m.out.struct_bytes = sizeof(m.out);
    m.out.slots = device_array<int32_t>(uint64_t{rows} * (c.top_k + c.n_shared));
    m.out.weights =
        device_array<float>(uint64_t{rows} * (c.top_k + c.n_shared));
    m.out.slot_counts = device_array<uint32_t>(physical + ranks * c.n_shared);
    m.out.rank_counts = device_array<uint32_t>(ranks);
    return m;
}

// `layers` calls a graph where it is not 0, each with inputs of its own.
static figure choice(const moec_route_config &c, uint32_t rows, bool biased,
                     bool fused, unsigned layers)
{
    uint64_t cells = uint64_t{rows} * c.n_experts;
    unsigned sets = layers && !tiny ? layers : sets_for(cells * 4);
    std::vector<moec_route_in> ins(sets);
    moec_launch l = made<moec_launch>();
    map_case m = {};
    moec_route_out out = made<moec_route_out>();
    moec_error err = MOEC_ERROR_INIT;

    if (fused)
        m = make_map(c, rows);
    for (unsigned i = 0; i < sets; i++) {
        ins[i] = made<moec_route_in>();
        ins[i].logits_dtype = MOEC_DTYPE_F32;
        ins[i].n_tokens = ins[i].n_valid = rows;
        ins[i].logits = normals(cells, i + 1);
        ins[i].bias = biased ? normals(c.n_experts, 1000 + i) : nullptr;
    }
    out.ids = device_array<int32_t>(uint64_t{rows} * (c.top_k + c.n_shared));
    out.weights = device_array<float>(uint64_t{rows} * (c.top_k + c.n_shared));
    l.stream = stream;
    l.n_valid = device_copy(std::vector<uint32_t>(1, rows));
    l.workspace_bytes =
        backend->route_workspace(&c, fused ? &m.map : nullptr, rows);
    l.workspace = device_bytes(l.workspace_bytes);
    return timed(
        [&](unsigned i) {
            must(backend->route(0, &c, &ins[i], fused ? &m.map : nullptr,
                                fused ? &m.fill : nullptr, &out,
                                fused ? &m.out : nullptr, &l, &err),
                 err);
        },
        sets, layers ? layers : std::max(sets, 32u));
}

static void bench_choice()
{
    static const struct {
        uint32_t rows;
        double bar;
    } plain[] = {{128, 2.2}, {8192, 6}, {65536, 30}},
      grouped[] = {{128, 2.8}, {65536, 35}};

    for (const auto &p : plain)
        figure_of("top-k", shape_of("256/8 T=%u", p.rows),
                  number("bar_us", p.bar), [&] {
            figure f = choice(plain_config(), rows_of(p.rows), false, false, 0);

            say("top-k", shape_of("256/8 T=%u", p.rows), f,
                number("bar_us", p.bar));
        });
    for (const auto &p : grouped)
        figure_of("grouped", shape_of("256/8/4/8 T=%u", p.rows),
                  number("bar_us", p.bar), [&] {
            figure f =
                choice(grouped_config(), rows_of(p.rows), true, false, 0);

            say("grouped", shape_of("256/8/4/8 T=%u", p.rows), f,
                number("bar_us", p.bar));
        });
    for (uint32_t rows : {1u, 128u, 1024u, 4096u})
        figure_of("fused node", shape_of("256/8+1 T=%u", rows),
                  number("bar_ratio", 1.25), [&] {
            moec_route_config c = plain_config();
            figure p = choice(c, rows_of(rows), false, false, 0), f;

            c.n_shared = 1;
            f = choice(c, rows_of(rows), false, true, 0);
            say("fused node", shape_of("256/8+1 T=%u", rows), f,
                number("bar_ratio", 1.25) +
                    (p.median > 0 ? number("ratio", f.median / p.median) : ""));
        });
}

static void bench_expert_choice()
{
    static const struct {
        uint32_t rows, n_experts;
        double bar;
    } cases[] = {{128, 64, 6}, {4096, 256, 15}, {65536, 256, 75}};

    for (const auto &p : cases)
        figure_of("expert choice", shape_of("%ux%u", p.rows, p.n_experts),
                  number("bar_us", p.bar), [&] {
            figure f = choice(ec_config(p.n_experts), rows_of(p.rows), false,
                              false, 0);

            say("expert choice", shape_of("%ux%u", p.rows, p.n_experts), f,
                number("bar_us", p.bar));
        });
    for (uint32_t rows : {1u, 32u, 128u, 256u})
        figure_of("EC, 60 layers", shape_of("%ux256", rows),
                  number("bar_eager", 50), [&] {
            figure e = choice(ec_config(256), rows_of(rows), false, false, 60);
            figure p = choice(plain_config(), rows_of(rows), false, false, 60);

            // Per layer, like all figures; the total is 60 times that.
            say("EC, 60 layers", shape_of("%ux256", rows), e,
                number("bar_eager", 50) +
                    (e.median > 0 ? number("total_us", e.median * 60) +
                                        number("plain_total_us", p.median * 60)
                                  : ""));
        });
}

// ------------------------------------------------- align and combine

// K different experts a row, uniform.
static std::vector<int32_t> random_slots(uint32_t rows, uint32_t k,
                                         uint32_t n_slots, uint64_t seed)
{
    std::vector<int32_t> out;

    for (uint32_t t = 0; t < rows; t++)
        for (uint32_t c = 0; c < k; c++) {
            uint64_t at = (uint64_t{t} << 8) + c;
            int32_t id = static_cast<int32_t>(mixed(seed + at) % n_slots);

            while (std::find(out.begin() + t * k, out.end(), id) != out.end())
                id = (id + 1) % static_cast<int32_t>(n_slots);
            out.push_back(id);
        }
    return out;
}

static moec_align_out align_out(uint64_t n, uint32_t n_slots, uint32_t block)
{
    uint64_t room = moec_align_capacity(n, n_slots, block);
    moec_align_out o = made<moec_align_out>();

    o.sorted = device_array<uint32_t>(room);
    o.expert_ids = device_array<uint32_t>(room / block);
    o.slot_first = device_array<uint64_t>(n_slots + 1);
    o.n_padded = device_array<uint64_t>(1);
    return o;
}

static moec_launch workspace(uint64_t bytes)
{
    moec_launch l = made<moec_launch>();

    l.stream = stream;
    l.workspace_bytes = bytes;
    l.workspace = device_bytes(bytes);
    return l;
}

static void bench_align()
{
    static const struct {
        uint32_t rows;
        double bar;
    } cases[] = {{128, 3}, {4096, 7}, {65536, 15}};

    for (const auto &p : cases)
        figure_of("align", shape_of("K=8 E=256 T=%u", p.rows),
                  number("bar_us", p.bar), [&] {
            uint64_t n = uint64_t{rows_of(p.rows)} * 8;
            unsigned sets = std::min(16u, sets_for(n * 4));
            moec_align_out out = align_out(n, 256, 64);
            moec_launch l = workspace(backend->align_workspace(n, 256));
            std::vector<int32_t *> slots;
            moec_error err = MOEC_ERROR_INIT;

            for (unsigned i = 0; i < sets; i++)
                slots.push_back(device_copy(
                    random_slots(rows_of(p.rows), 8, 256, i * 77777)));
            say("align", shape_of("K=8 E=256 T=%u", p.rows),
                timed(
                    [&](unsigned i) {
                        must(backend->align(0, slots[i], n, 0, 256, 64, &out,
                                            &l, &err),
                             err);
                    },
                    sets, std::max(sets, 32u)),
                number("bar_us", p.bar));
        });
}

static void bench_combine(double copy_gbps)
{
    uint32_t rows = tiny ? 9 : 4096, hidden = tiny ? 256 : 7168, k = 8;

    figure_of("combine", "H=7168 K=8 T=4096", number("bar_share", 0.85), [&] {
        uint64_t cells = uint64_t{rows} * k;
        double bytes = 4.0 * hidden * (static_cast<double>(cells) + rows);
        float *out = device_array<float>(uint64_t{rows} * hidden);
        std::vector<moec_combine_in> ins(2);
        moec_launch l = workspace(0);
        moec_error err = MOEC_ERROR_INIT;
        std::string more = number("bar_share", 0.85);
        figure f;

        for (auto &in : ins) {
            in = made<moec_combine_in>();
            in.n_tokens = rows;
            in.n_cols = in.scaled_cols = k;
            in.hidden = hidden;
            in.slots = device_copy(random_slots(rows, k, 256, 5));
            in.weights = normals(cells, 6);
            in.y = normals(cells * hidden, 7);
            in.scale = 2.5f;
        }
        f = timed(
            [&](unsigned i) {
                must(backend->combine(0, &ins[i], out, &l, &err), err);
            },
            2, 8);
        if (f.median > 0)
            more += number("gbps", bytes / f.median * 1e-3) +
                    number("share", bytes / f.median * 1e-3 / copy_gbps);
        say("combine", "H=7168 K=8 T=4096", f, more);
    });
}

// ---------------------------------------------------------------- FFN

static moec_matrix fp8_matrices(uint32_t n, uint32_t n_out, uint32_t n_in,
                                uint32_t part_rows)
{
    uint64_t scales =
        uint64_t{(n_out + 127) / 128} * ((n_in + 127) / 128);
    moec_matrix m = made<moec_matrix>();
    void *data = device_bytes(uint64_t{n} * n_out * n_in);
    void *scale = device_bytes(n * scales * 4);

    fill_all(data, FP8, 0, uint64_t{n} * n_out * n_in);
    fill_all(scale, SMALL_SCALES, 3, n * scales);
    m.format = MOEC_WFORMAT_FP8;
    m.n_out = n_out;
    m.n_in = n_in;
    m.data = data;
    m.data_stride = uint64_t{n_out} * n_in;
    m.row_bytes = n_in;
    m.scale = scale;
    m.scale_stride = scales * 4;
    m.scale_dtype = MOEC_DTYPE_F32;
    m.block_out = m.block_in = 128;
    m.scale2_rows = n_out;
    m.part_rows = part_rows;
    return m;
}

struct ffn_shape {
    uint32_t hidden, inter, n_experts, k;
};

static uint64_t distinct(std::vector<int32_t> ids)
{
    std::sort(ids.begin(), ids.end());
    return static_cast<uint64_t>(
        std::unique(ids.begin(), ids.end()) - ids.begin());
}

// The runs of `sets` batches, and the bytes that a call must move on average.
static std::vector<moec_ffn_in> ffn_inputs(const ffn_shape &s, uint32_t rows,
                                           unsigned sets, const moec_matrix *w13,
                                           const moec_matrix *w2,
                                           double *bytes)
{
    uint64_t n = uint64_t{rows} * s.k;
    moec_launch l = workspace(backend->align_workspace(n, s.n_experts));
    double expert = static_cast<double>(w13->data_stride + w13->scale_stride +
                                        w2->data_stride + w2->scale_stride);
    std::vector<moec_ffn_in> ins(sets);
    moec_error err = MOEC_ERROR_INIT;

    *bytes = 2.0 * rows * s.hidden + 4.0 * static_cast<double>(n) * s.hidden;
    for (unsigned i = 0; i < sets; i++) {
        std::vector<int32_t> ids = random_slots(rows, s.k, s.n_experts,
                                                (i + 1) * 1234567u);
        moec_align_out a = align_out(n, s.n_experts, 1);
        void *x = device_bytes(uint64_t{rows} * s.hidden * 2);

        must(backend->align(0, device_copy(ids), n, 0, s.n_experts, 1, &a, &l,
                            &err),
             err);
        fill_all(x, BF16_NORMAL, i, uint64_t{rows} * s.hidden);
        *bytes += expert * static_cast<double>(distinct(ids)) / sets;
        ins[i] = made<moec_ffn_in>();
        ins[i].w13 = w13;
        ins[i].w2 = w2;
        ins[i].n_rows = s.n_experts;
        ins[i].x_dtype = MOEC_DTYPE_BF16;
        ins[i].x = x;
        ins[i].n_tokens = rows;
        ins[i].n_cols = s.k;
        ins[i].sorted = a.sorted;
        ins[i].slot_first = a.slot_first;
    }
    wait();
    return ins;
}

static void ffn_figure(const ffn_shape &s, uint32_t rows,
                       const moec_matrix *w13, const moec_matrix *w2,
                       double read_gbps)
{
    std::string more = number("bar_share", 0.75);
    unsigned sets = tiny ? 2 : 8;
    uint64_t n = uint64_t{rows} * s.k;
    moec_ffn_config c = made<moec_ffn_config>();
    moec_error err = MOEC_ERROR_INIT;
    float *y = device_array<float>(n * s.hidden);
    double bytes;
    std::vector<moec_ffn_in> ins =
        ffn_inputs(s, rows, sets, w13, w2, &bytes);
    moec_launch l;
    figure f;

    c.gated = 1;
    c.hidden = s.hidden;
    c.inter = s.inter;
    c.act = MOEC_ACT_SILU;
    c.precision = MOEC_PRECISION_FAST;
    l = workspace(backend->ffn_workspace(&c, n, s.n_experts));
    f = timed(
        [&](unsigned i) {
            must(backend->ffn(0, &c, &ins[i], n, y, &l, &err), err);
        },
        sets, sets);
    if (f.median > 0)
        more += number("gbps", bytes / f.median * 1e-3) +
                number("share", bytes / f.median * 1e-3 / read_gbps);
    say("FFN fp8", shape_of("DeepSeek-V3 T=%u", rows), f, more);
}

// The weights of one layer once, 11 GB of them, for every T.
static void bench_ffn(double read_gbps)
{
    ffn_shape s = {7168, 2048, 256, 8};

    if (tiny)
        s = {256, 128, 8, 2};
    figure_of("FFN fp8", "DeepSeek-V3", number("bar_share", 0.75), [&] {
        moec_matrix w13 =
            fp8_matrices(s.n_experts, 2 * s.inter, s.hidden, s.inter);
        moec_matrix w2 =
            fp8_matrices(s.n_experts, s.hidden, s.inter, s.hidden);

        for (uint32_t rows : {1u, 2u, 4u, 8u, 16u, 32u, 64u})
            if (!tiny || rows == 1 || rows == 16)
                ffn_figure(s, rows, &w13, &w2, read_gbps);
    });
}

// ---------------------------------------------------------- bandwidth

#ifndef MOEC_EMULATE
// All of a buffer is a whole number of rounds of these.
#define READ_BLOCKS  2112
#define READ_THREADS (READ_BLOCKS * 512u)

__global__ void read_kernel(const uint4 *p, uint64_t n, uint32_t *out)
{
    uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    uint32_t sum = 0;

    for (; at + 3 * step < n; at += 4 * step) {
        uint4 a = __ldcs(p + at), b = __ldcs(p + at + step);
        uint4 c = __ldcs(p + at + 2 * step), d = __ldcs(p + at + 3 * step);

        sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
        sum ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (sum == 0x12345678u) // as good as never, but the compiler reads
        *out = sum;
}

__global__ void copy_kernel(const uint4 *p, uint64_t n, uint4 *q)
{
    uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;

    for (; at + 3 * step < n; at += 4 * step) {
        uint4 a = p[at], b = p[at + step];
        uint4 c = p[at + 2 * step], d = p[at + 3 * step];

        q[at] = a;
        q[at + step] = b;
        q[at + 2 * step] = c;
        q[at + 3 * step] = d;
    }
}
#endif

// The best of a plain kernel and the driver's own copy, in GB/s.
static void bandwidth(double *read_gbps, double *copy_gbps)
{
    *read_gbps = *copy_gbps = 0;
#ifndef MOEC_EMULATE
    if (tiny)
        return;
    figure_of("bandwidth", "2.2 GB", "", [&] {
        uint64_t n = uint64_t{READ_THREADS} * 4 * 32, bytes = n * 16;
        uint4 *p = device_array<uint4>(n), *q = device_array<uint4>(n);
        cudaStream_t s = static_cast<cudaStream_t>(stream);
        uint32_t *sink = device_array<uint32_t>(1);
        figure r, c, d;

        fill_all(p, NORMAL, 1, bytes / 4);
        r = timed(
            [&](unsigned) { read_kernel<<<READ_BLOCKS, 512, 0, s>>>(p, n, sink); }, 1,
            1);
        c = timed([&](unsigned) { copy_kernel<<<READ_BLOCKS, 512, 0, s>>>(p, n, q); },
                  1, 1);
        d = timed(
            [&](unsigned) {
                cuda(cudaMemcpyAsync(q, p, bytes, cudaMemcpyDeviceToDevice, s),
                     "copy");
            },
            1, 1);
        if (d.median < c.median)
            c = d;
        *read_gbps = static_cast<double>(bytes) / r.median * 1e-3;
        *copy_gbps = 2.0 * static_cast<double>(bytes) / c.median * 1e-3;
        say("read bandwidth", "2.2 GB", r, number("gbps", *read_gbps));
        say("copy bandwidth", "2.2 GB, read and written", c,
            number("gbps", *copy_gbps));
    });
#endif
}

// --------------------------------------------------------------- main

static void open_plugin(const char *path)
{
    moec_error err = MOEC_ERROR_INIT;
    void *h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = h ? dlsym(h, MOEC_PLUGIN_SYMBOL) : nullptr;
    moec_backend_query_fn query;
    char name[256];

    if (!symbol)
        die(path, h ? "no plug-in" : dlerror());
    memcpy(&query, &symbol, sizeof(query));
    backend = query(MOEC_PLUGIN_ABI);
    if (!backend || backend->struct_bytes != sizeof(*backend))
        die(path, "a plug-in of another version");
    if (backend->open(0, name, sizeof(name), &err) != MOEC_OK) {
        std::fprintf(stderr, "bench_device: %s\n", err.text);
        std::exit(err.status == MOEC_E_NO_DEVICE ? 77 : 1);
    }
    std::fprintf(stderr, "%s\n", name);
}

int main(int argc, char **argv)
{
    double read_gbps, copy_gbps;
    const char *path = nullptr;

    for (int i = 1; i < argc; i++) {
        if (std::strcmp(argv[i], "--plugin") == 0 && i + 1 < argc)
            path = argv[++i];
        else if (std::strcmp(argv[i], "--tiny") == 0)
            tiny = true;
        else
            path = "";
    }
    if (!path || !path[0]) {
        std::fputs("usage: bench_device --plugin PATH [--tiny]\n", stderr);
        return 2;
    }
#ifdef MOEC_EMULATE
    tiny = true;
#endif
    open_plugin(path);
#ifndef MOEC_EMULATE
    cudaStream_t s;

    cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "stream");
    stream = s;
#endif
    bandwidth(&read_gbps, &copy_gbps);
    bench_choice();
    bench_expert_choice();
    bench_align();
    bench_combine(copy_gbps);
    bench_ffn(read_gbps);
    return status;
}
