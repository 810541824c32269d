/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading the plug-in, and the calls that go through to it. */

#include <dlfcn.h>
#include <string.h>

#include "matrix.h"
#include "plugin.h"
#include "route.h"

#define PLUGIN_NAME "libmoec_cuda.so"

struct moec_device {
    void *handle;
    const moec_backend *b;
    uint32_t ordinal;
    char name[160];
};

static const moec_backend *query(void *handle, moec_error *err)
{
    void *symbol = dlsym(handle, MOEC_PLUGIN_SYMBOL);
    moec_backend_query_fn fn;
    const moec_backend *b;

    /* POSIX's way around data and function pointers being different types. */
    memcpy(&fn, &symbol, sizeof(fn));
    b = symbol ? fn(MOEC_PLUGIN_ABI) : NULL;
    if (b && b->abi == MOEC_PLUGIN_ABI && b->struct_bytes == sizeof(*b))
        return b;
    (void)moec_fail(err, MOEC_E_NO_DEVICE, MOEC_RULE_NONE,
                    "no accelerator: the plug-in is of another version than "
                    "this libmoec (plug-in ABI %u wanted)",
                    MOEC_PLUGIN_ABI);
    return NULL;
}

moec_status moec_device_open(moec_device **out, const moec_device_opts *opts,
                             moec_error *err)
{
    moec_device_opts o = MOEC_DEVICE_OPTS_INIT;
    moec_status st = MOEC_E_NO_DEVICE;
    moec_device *d;

    if (opts)
        o = *opts;
    d = moec_calloc(1, sizeof(*d));
    if (!d)
        return moec_fail_nomem(err, "a device");
    d->ordinal = o.ordinal;
    d->handle = moec_plugin_load("accelerator", PLUGIN_NAME, o.plugin, err);
    if (d->handle)
        d->b = query(d->handle, err);
    if (d->b)
        st = d->b->open(d->ordinal, d->name, sizeof(d->name), err);
    if (st != MOEC_OK) {
        moec_device_close(d);
        return st;
    }
    *out = d;
    return MOEC_OK;
}

/* The CUDA runtime inside the plug-in does not survive being unmapped while
 * its driver threads live: the handle is left open, once per process. */
void moec_device_close(moec_device *d)
{
    if (!d)
        return;
    if (d->handle && !d->b)
        (void)dlclose(d->handle);
    moec_free(d);
}

const moec_backend *moec_device_backend(const moec_device *d,
                                        uint32_t *ordinal_out)
{
    *ordinal_out = d->ordinal;
    return d->b;
}

const char *moec_device_name(const moec_device *d)
{
    return d->name;
}

moec_status moec_device_alloc(moec_device *d, void **out, uint64_t bytes,
                              moec_error *err)
{
    return d->b->alloc(d->ordinal, out, bytes, err);
}

void moec_device_free(moec_device *d, void *p)
{
    if (p)
        d->b->free(d->ordinal, p);
}

moec_status moec_device_upload(moec_device *d, void *to, const void *from,
                               uint64_t bytes, void *stream, moec_error *err)
{
    return d->b->upload(d->ordinal, to, from, bytes, stream, err);
}

moec_status moec_device_download(moec_device *d, void *to, const void *from,
                                 uint64_t bytes, void *stream, moec_error *err)
{
    return d->b->download(d->ordinal, to, from, bytes, stream, err);
}

moec_status moec_device_wait(moec_device *d, void *stream, moec_error *err)
{
    return d->b->wait(d->ordinal, stream, err);
}

moec_status moec_device_alloc_host(moec_device *d, void **out, uint64_t bytes,
                                   moec_error *err)
{
    return d->b->alloc_host(d->ordinal, out, bytes, err);
}

void moec_device_free_host(moec_device *d, void *p)
{
    if (p)
        d->b->free_host(d->ordinal, p);
}

moec_status moec_device_copy_rows(moec_device *d, void *to, uint64_t to_stride,
                                  const void *from, uint64_t from_stride,
                                  uint64_t row_bytes, uint64_t rows,
                                  void *stream, moec_error *err)
{
    return d->b->copy_rows(d->ordinal, to, to_stride, from, from_stride,
                           row_bytes, rows, stream, err);
}

moec_status moec_device_event_create(moec_device *d, void **out,
                                     moec_error *err)
{
    return d->b->event_create(d->ordinal, out, err);
}

void moec_device_event_destroy(moec_device *d, void *event)
{
    if (event)
        d->b->event_destroy(d->ordinal, event);
}

moec_status moec_device_event_record(moec_device *d, void *event, void *stream,
                                     moec_error *err)
{
    return d->b->event_record(d->ordinal, event, stream, err);
}

moec_status moec_device_event_done(moec_device *d, void *event, int block,
                                   int *done_out, moec_error *err)
{
    return d->b->event_done(d->ordinal, event, block, done_out, err);
}

moec_status moec_device_stream_wait(moec_device *d, void *stream, void *event,
                                    moec_error *err)
{
    return d->b->stream_wait(d->ordinal, stream, event, err);
}

/* ------------------------------------------------------------ the calls */

uint64_t moec_device_route_workspace_bytes(const moec_device *d,
                                           const moec_router *router,
                                           const moec_dispatch_map *map,
                                           uint32_t n_tokens)
{
    return d->b->route_workspace(moec_router_config(router), map, n_tokens);
}

/* Whether rows are routed may be known on the device alone. */
static moec_status check_route(const moec_router *router,
                               const moec_route_in *in,
                               const moec_dispatch_map *map,
                               const moec_dispatch_out *dispatch,
                               const moec_launch *launch, moec_error *err)
{
    bool rows = in && in->n_tokens && (launch->n_valid || in->n_valid);

    MOEC_TRY(moec_route_check_call(router, in, rows, err));
    if (!map)
        return MOEC_OK;
    if (!dispatch)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "dispatch: out is NULL");
    return moec_route_check_fused(router, map, dispatch, err);
}

moec_status moec_device_route(moec_device *d, const moec_router *router,
                              const moec_route_in *in,
                              const moec_route_out *out,
                              const moec_launch *launch, moec_error *err)
{
    MOEC_TRY(check_route(router, in, NULL, NULL, launch, err));
    return d->b->route(d->ordinal, moec_router_config(router), in, NULL, NULL,
                       out, NULL, launch, err);
}

moec_status moec_device_route_dispatch(
    moec_device *d, const moec_router *router, const moec_route_in *in,
    const moec_dispatch_map *map, const moec_waterfill *waterfill,
    const moec_route_out *out, const moec_dispatch_out *dispatch,
    const moec_launch *launch, moec_error *err)
{
    MOEC_TRY(check_route(router, in, map, dispatch, launch, err));
    return d->b->route(d->ordinal, moec_router_config(router), in, map,
                       waterfill, out, dispatch, launch, err);
}

uint64_t moec_device_dispatch_workspace_bytes(const moec_device *d,
                                              const moec_dispatch_map *map,
                                              uint32_t n_tokens)
{
    return d->b->dispatch_workspace(map, n_tokens);
}

moec_status moec_device_dispatch(moec_device *d, const moec_dispatch_map *map,
                                 const moec_waterfill *waterfill,
                                 const int32_t *ids, const float *weights,
                                 uint32_t n_tokens, uint32_t n_valid,
                                 uint32_t top_k, const moec_dispatch_out *out,
                                 const moec_launch *launch, moec_error *err)
{
    return d->b->dispatch(d->ordinal, map, waterfill, ids, weights, n_tokens,
                          n_valid, top_k, out, launch, err);
}

uint64_t moec_device_align_workspace_bytes(const moec_device *d, uint64_t n,
                                           uint32_t n_slots)
{
    return d->b->align_workspace(n, n_slots);
}

moec_status moec_device_align(moec_device *d, const int32_t *slots, uint64_t n,
                              uint32_t first_slot, uint32_t n_slots,
                              uint32_t block, const moec_align_out *out,
                              const moec_launch *launch, moec_error *err)
{
    return d->b->align(d->ordinal, slots, n, first_slot, n_slots, block, out,
                       launch, err);
}

moec_status moec_device_permute(moec_device *d, const void *x,
                                uint64_t row_bytes, const uint32_t *sorted,
                                const uint64_t *n_sorted, uint64_t n_sorted_max,
                                uint64_t n_columns, uint32_t n_cols, void *out,
                                const moec_launch *launch, moec_error *err)
{
    return d->b->permute(d->ordinal, x, row_bytes, sorted, n_sorted,
                         n_sorted_max, n_columns, n_cols, out, launch, err);
}

moec_status moec_device_combine(moec_device *d, const moec_combine_in *in,
                                float *out, const moec_launch *launch,
                                moec_error *err)
{
    return d->b->combine(d->ordinal, in, out, launch, err);
}

moec_status moec_device_cast(moec_device *d, const void *in,
                             moec_dtype in_dtype, void *out,
                             moec_dtype out_dtype, uint64_t n,
                             const moec_launch *launch, moec_error *err)
{
    return d->b->cast(d->ordinal, in, in_dtype, out, out_dtype, n, launch, err);
}

moec_status moec_device_matmul(moec_device *d, const moec_matrix *m,
                               uint32_t index, const float *x,
                               uint64_t x_stride, uint32_t n_tokens, float *out,
                               uint64_t out_stride, const moec_launch *launch,
                               moec_error *err)
{
    moec_matrix full;

    MOEC_TRY(moec_matrix_check(m, "matrix", err));
    if (!launch || (n_tokens && (!x || !out)))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_device_matmul: NULL");
    if (x_stride == 0)
        x_stride = m->n_in;
    if (out_stride == 0)
        out_stride = m->n_out;
    if (x_stride < m->n_in || out_stride < m->n_out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "strides %llu and %llu for %u x %u",
                         (unsigned long long)x_stride,
                         (unsigned long long)out_stride, (unsigned)m->n_out,
                         (unsigned)m->n_in);
    if (n_tokens == 0)
        return MOEC_OK;
    full = moec_matrix_filled(m);
    return d->b->matmul(d->ordinal, &full, index, x, x_stride, n_tokens, out,
                        out_stride, launch, err);
}

uint64_t moec_device_ffn_workspace_bytes(const moec_device *d,
                                         const moec_ffn_config *config,
                                         uint64_t n_columns_max,
                                         uint32_t n_rows)
{
    return d->b->ffn_workspace(config, n_columns_max, n_rows);
}

moec_status moec_device_ffn(moec_device *d, const moec_ffn_config *config,
                            const moec_ffn_in *in, uint64_t n_columns_max,
                            float *y, const moec_launch *launch,
                            moec_error *err)
{
    moec_matrix w13, w2;
    moec_ffn_in full;

    MOEC_TRY(moec_ffn_check(config, in, err));
    if (n_columns_max == 0 || in->n_rows == 0)
        return MOEC_OK;
    if (!launch || !y || !in->sorted || !in->x || !in->n_cols ||
        (config->weight_on_input && !in->weights))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_device_ffn: columns without launch, y, sorted, "
                         "x or weights");
    full = *in;
    w13 = moec_matrix_filled(in->w13);
    w2 = moec_matrix_filled(in->w2);
    full.w13 = &w13;
    full.w2 = &w2;
    return d->b->ffn(d->ordinal, config, &full, n_columns_max, y, launch, err);
}
