/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: the safetensors headers of output files. All ranks share one
 *   table, and a part's header is as long as the last rank needs, so that the
 *   files of one part differ in the rank's number and nowhere else.
 * Refuses: headers above the format's limit (H01).
 */

#include <inttypes.h>
#include <string.h>

#include "layout_parts.h"

static void append_shape(moec_buf *b, const uint64_t *shape, uint32_t rank)
{
    for (uint32_t i = 0; i < rank; i++)
        moec_buf_printf(b, "%s%" PRIu64, i ? "," : "", shape[i]);
}

static void append_entry(moec_buf *b, const moec_layout *l,
                         const moec_out_tensor *t, uint64_t data_off)
{
    const moec_tensor *source;
    const moec_slot_tensor *slots;
    moec_dtype dtype = MOEC_DTYPE_U8;
    const uint64_t *shape = &t->bytes;
    uint32_t rank = 1;
    char buf[32];
    const char *name = moec_layout_name(l, t, buf);

    switch (t->kind) {
    case MOEC_OUT_SLOTS:
        slots = moec_plan_slot_tensor(l->plan, t->layer, t->t);
        dtype = slots->dtype;
        shape = slots->shape;
        rank = slots->rank;
        break;
    case MOEC_OUT_COMMON:
        source = moec_ckpt_tensor(l->ckpt, (size_t)t->source);
        dtype = (moec_dtype)source->dtype;
        shape = source->shape;
        rank = source->rank;
        break;
    case MOEC_OUT_PAD:
        break;
    }
    moec_buf_puts(b, ",");
    moec_buf_json_string(b, name, strlen(name));
    moec_buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[",
                    moec_dtype_name(dtype));
    append_shape(b, shape, rank);
    moec_buf_printf(b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                    t->off - data_off, t->off - data_off + t->bytes);
}

/* How halves stand in w13: a file must say it itself, for no shape does. */
static const char *order_name(const moec_layout *l)
{
    return moec_plan_options(l->plan)->w13_order == MOEC_W13_UP_GATE
               ? "up-gate"
               : "gate-up";
}

/* Append the header's JSON object. `header_bytes` is what the tensors' file
 * offsets count from; any value below the first of them gives the same JSON
 * only where it is the true one. */
static void append_json(moec_buf *b, const moec_layout *l,
                        moec_out_file_kind kind, uint32_t rank,
                        const moec_out_tensor *tensors, size_t n,
                        uint64_t header_bytes)
{
    moec_buf_puts(b, "{\"__metadata__\":{\"format\":\"pt\"");
    switch (kind) {
    case MOEC_FILE_RANK:
        moec_buf_printf(b,
                        ",\"moec_format_version\":\"%d\","
                        "\"moec_placement\":\"%s\",\"moec_rank\":\"%" PRIu32
                        "\",\"moec_w13_order\":\"%s\",\"moec_world\":\"%" PRIu32
                        "\"",
                        MOEC_FORMAT_VERSION, l->placement_hex, rank,
                        order_name(l), l->n_ranks);
        break;
    case MOEC_FILE_STORE:
        moec_buf_printf(b,
                        ",\"moec_format_version\":\"%d\","
                        "\"moec_layout\":\"expert-store\","
                        "\"moec_w13_order\":\"%s\"",
                        MOEC_FORMAT_VERSION, order_name(l));
        break;
    case MOEC_FILE_COMMON:
    case MOEC_FILE_SHARED:
        break;
    }
    moec_buf_puts(b, "}");
    for (size_t i = 0; i < n; i++)
        append_entry(b, l, &tensors[i], header_bytes);
    moec_buf_puts(b, "}");
}

moec_status moec_layout_header_size(const moec_layout *l,
                                    moec_out_file_kind kind,
                                    const moec_out_tensor *tensors, size_t n,
                                    uint64_t *out, moec_error *err)
{
    moec_buf b = {0};
    uint64_t bytes;
    bool oom;

    append_json(&b, l, kind, l->n_ranks - 1, tensors, n, 0);
    bytes = b.len;
    oom = b.oom;
    moec_buf_fini(&b);
    if (oom)
        return moec_fail_nomem(err, "file header");
    if (!moec_align_u64(bytes + 8, MOEC_ALIGN, &bytes) ||
        bytes - 8 > MOEC_HEADER_BYTES_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_H01,
                         "the header of an output file with %zu tensors has "
                         "%" PRIu64 " bytes, more than the format's %" PRIu64
                         ": use a smaller part size",
                         n, bytes, MOEC_HEADER_BYTES_MAX);
    *out = bytes;
    return MOEC_OK;
}

const char *moec_layout_name(const moec_layout *layout,
                             const moec_out_tensor *t, char *buf)
{
    switch (t->kind) {
    case MOEC_OUT_SLOTS:
        return moec_plan_slot_tensor(layout->plan, t->layer, t->t)->name;
    case MOEC_OUT_COMMON:
        return moec_ckpt_tensor(layout->ckpt, (size_t)t->source)->name;
    case MOEC_OUT_PAD:
        break;
    }
    snprintf(buf, 32, "__pad.%" PRIu64, t->source);
    return buf;
}

moec_status moec_layout_header(const moec_layout *layout, size_t i, void **out,
                               uint64_t *bytes_out, moec_error *err)
{
    const moec_out_file *file = &layout->files[i];
    size_t bytes = (size_t)file->header_bytes;
    moec_buf b = {0};
    char *data = moec_alloc(bytes);

    if (!data)
        return moec_fail_nomem(err, "file header");
    moec_buf_u64(&b, file->header_bytes - 8);
    append_json(&b, layout, file->kind, file->rank, file->tensors,
                file->n_tensors, file->header_bytes);
    if (b.oom || b.len > bytes) {
        bool oom = b.oom;

        moec_buf_fini(&b);
        moec_free(data);
        if (oom)
            return moec_fail_nomem(err, "file header");
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "%s: the header outgrew its place", file->name);
    }
    memcpy(data, b.data, b.len);
    memset(data + b.len, ' ', bytes - b.len);
    moec_buf_fini(&b);
    *out = data;
    *bytes_out = bytes;
    return MOEC_OK;
}
