/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLUGIN_H
#define MOEC_PLUGIN_H

/*
 * What this is: what libmoec and a plug-in say to each other: one exported
 *   function that gives one table. Both sides are built of one tree; the ABI
 *   number is compared before anything else is looked at, and is raised with
 *   every change of this file or of the structs that cross it.
 * Errors: the functions are those of device.h without the moec_device, and
 *   fill `err` with moec_plugin_fail's form; device errors are statuses.
 * Routing calls have passed moec_route_check_call and _check_fused.
 * Matrices and FFN configurations come checked, and with row_bytes, block_out,
 *   block_in, part_rows and scale2_rows filled in; pointers are the device's.
 */

#include <moec/device.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOEC_PLUGIN_ABI    3u
#define MOEC_PLUGIN_SYMBOL "moec_backend_query"

typedef struct moec_backend {
    uint32_t abi;
    uint32_t struct_bytes;
    const char *name; /* "cuda" */
    /* Look at device `ordinal`; name it in `name`. NO_DEVICE with why. */
    moec_status (*open)(uint32_t ordinal, char *name, uint64_t name_bytes,
                        moec_error *err);
    moec_status (*alloc)(uint32_t ordinal, void **out, uint64_t bytes,
                         moec_error *err);
    void (*free)(uint32_t ordinal, void *p);
    moec_status (*upload)(uint32_t ordinal, void *to, const void *from,
                          uint64_t bytes, void *stream, moec_error *err);
    moec_status (*download)(uint32_t ordinal, void *to, const void *from,
                            uint64_t bytes, void *stream, moec_error *err);
    moec_status (*wait)(uint32_t ordinal, void *stream, moec_error *err);
    moec_status (*alloc_host)(uint32_t ordinal, void **out, uint64_t bytes,
                              moec_error *err);
    void (*free_host)(uint32_t ordinal, void *p);
    moec_status (*copy_rows)(uint32_t ordinal, void *to, uint64_t to_stride,
                             const void *from, uint64_t from_stride,
                             uint64_t row_bytes, uint64_t rows, void *stream,
                             moec_error *err);
    moec_status (*event_create)(uint32_t ordinal, void **out, moec_error *err);
    void (*event_destroy)(uint32_t ordinal, void *event);
    moec_status (*event_record)(uint32_t ordinal, void *event, void *stream,
                                moec_error *err);
    moec_status (*event_done)(uint32_t ordinal, void *event, int block,
                              int *done_out, moec_error *err);
    moec_status (*stream_wait)(uint32_t ordinal, void *stream, void *event,
                               moec_error *err);
    /* Digests of n stretches: 16 bytes each of XXH3-128 (of at least 241
     * bytes; canonical form), or 32 of SHA-256. Arrays are on the device. */
    moec_status (*digests)(uint32_t ordinal, int sha256,
                           const void *const *data, const uint64_t *bytes,
                           uint32_t n, uint8_t *out, void *stream,
                           moec_error *err);
    /* GPUDirect Storage by `library` (NULL: the system's); NO_DEVICE with why.
     * `compatible`: also where it would copy through the host. Base NULL lets
     * all regions go. Files and reads: any thread. */
    moec_status (*gds_open)(uint32_t ordinal, const char *library,
                            int compatible, void **out, moec_error *err);
    void (*gds_close)(uint32_t ordinal, void *gds);
    void (*gds_region)(uint32_t ordinal, void *gds, void *base, uint64_t bytes);
    moec_status (*gds_file_open)(uint32_t ordinal, void *gds, int fd,
                                 void **out, moec_error *err);
    void (*gds_file_close)(uint32_t ordinal, void *gds, void *file);
    moec_status (*gds_read)(uint32_t ordinal, void *gds, void *file,
                            uint64_t off, void *to, uint64_t bytes,
                            uint64_t *got_out, moec_error *err);

    uint64_t (*route_workspace)(const moec_route_config *c,
                                const moec_dispatch_map *map, uint32_t n);
    /* `map` NULL: a plain choice. */
    moec_status (*route)(uint32_t ordinal, const moec_route_config *c,
                         const moec_route_in *in, const moec_dispatch_map *map,
                         const moec_waterfill *waterfill,
                         const moec_route_out *out,
                         const moec_dispatch_out *dispatch,
                         const moec_launch *launch, moec_error *err);
    uint64_t (*dispatch_workspace)(const moec_dispatch_map *map, uint32_t n);
    moec_status (*dispatch)(uint32_t ordinal, const moec_dispatch_map *map,
                            const moec_waterfill *waterfill, const int32_t *ids,
                            const float *weights, uint32_t n_tokens,
                            uint32_t n_valid, uint32_t top_k,
                            const moec_dispatch_out *out,
                            const moec_launch *launch, moec_error *err);
    uint64_t (*align_workspace)(uint64_t n, uint32_t n_slots);
    moec_status (*align)(uint32_t ordinal, const int32_t *slots, uint64_t n,
                         uint32_t first_slot, uint32_t n_slots, uint32_t block,
                         const moec_align_out *out, const moec_launch *launch,
                         moec_error *err);
    moec_status (*permute)(uint32_t ordinal, const void *x, uint64_t row_bytes,
                           const uint32_t *sorted, const uint64_t *n_sorted,
                           uint64_t n_sorted_max, uint64_t n_columns,
                           uint32_t n_cols, void *out,
                           const moec_launch *launch, moec_error *err);
    moec_status (*combine)(uint32_t ordinal, const moec_combine_in *in,
                           float *out, const moec_launch *launch,
                           moec_error *err);
    moec_status (*cast)(uint32_t ordinal, const void *in, moec_dtype in_dtype,
                        void *out, moec_dtype out_dtype, uint64_t n,
                        const moec_launch *launch, moec_error *err);
    moec_status (*matmul)(uint32_t ordinal, const moec_matrix *m,
                          uint32_t index, const float *x, uint64_t x_stride,
                          uint32_t n_tokens, float *out, uint64_t out_stride,
                          const moec_launch *launch, moec_error *err);
    uint64_t (*ffn_workspace)(const moec_ffn_config *config,
                              uint64_t n_columns_max, uint32_t n_rows);
    moec_status (*ffn)(uint32_t ordinal, const moec_ffn_config *config,
                       const moec_ffn_in *in, uint64_t n_columns_max, float *y,
                       const moec_launch *launch, moec_error *err);
} moec_backend;

/* A device's table, for the parts of libmoec that speak to it past device.h. */
const moec_backend *moec_device_backend(const moec_device *d,
                                        uint32_t *ordinal_out);

/* The one symbol. NULL where it does not speak `abi`. */
typedef const moec_backend *(*moec_backend_query_fn)(uint32_t abi);

#ifdef __cplusplus
}
#endif
#endif
