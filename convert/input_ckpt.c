/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The source as it was published: tensors by their offsets in the shards,
 * small files from the directory. Nothing vouches for these bytes; that they
 * are still those that were opened is asked at the end (I13).
 */

#include <string.h>

#include "ckpt.h"
#include "identity.h"
#include "input.h"

typedef struct from_ckpt {
    moec_input in; /* first: a moec_input is cast to this */
    size_t n_files;
    moec_io_file *files;
    const char **extra;
} from_ckpt;

static moec_status hire(moec_input *in, uint32_t n, moec_error *err)
{
    from_ckpt *f = (from_ckpt *)in;

    (void)n; /* workers bring all that a read needs */
    f->files = moec_calloc(moec_ckpt_n_files(in->ckpt) + 1, sizeof(*f->files));
    if (f->files == NULL)
        return moec_fail_nomem(err, "source files");
    f->n_files = moec_ckpt_n_files(in->ckpt);
    for (size_t i = 0; i < f->n_files; i++)
        moec_ckpt_io_open(in->ckpt, i, in->opts->no_direct, &f->files[i]);
    return MOEC_OK;
}

static moec_status tensor_spot(moec_input *in, uint32_t tensor, moec_spot *out,
                               moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(in->ckpt, tensor);

    (void)err;
    out->file = t->file;
    out->off = t->off;
    return MOEC_OK;
}

static moec_status block_spot(moec_input *in, moec_block_id b, moec_spot *out,
                              moec_error *err)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];

    moec_plan_block_moves(in->plan, b.layer, b.t, b.unit, moves);
    if (moves[0].tensor == UINT32_MAX)
        return MOEC_OK;
    MOEC_TRY(tensor_spot(in, moves[0].tensor, out, err));
    out->off += moves[0].src_off;
    return MOEC_OK;
}

static moec_status read_tensor(moec_input *in, moec_hand h, uint32_t tensor,
                               uint64_t off, void *dst, size_t n,
                               moec_error *err)
{
    const from_ckpt *f = (const from_ckpt *)in;
    const moec_tensor *t = moec_ckpt_tensor(in->ckpt, tensor);
    moec_status st = moec_io_read(&f->files[t->file], &h.worker->io,
                                  t->off + off, dst, n, err);

    if (st != MOEC_OK)
        moec_error_prefix(err, "tensor '%s'", t->name);
    return st;
}

static moec_status read_block(moec_input *in, moec_hand h, moec_block_id b,
                              uint64_t from, uint64_t to, void *dst,
                              moec_error *err)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    size_t n = moec_plan_block_moves(in->plan, b.layer, b.t, b.unit, moves);
    moec_input_call c = {in, h};

    return moec_block_read(moves, n, from, to, dst, moec_input_read, &c,
                           &h.worker->scratch, err);
}

static moec_status check_unchanged(const moec_input *in, moec_error *err)
{
    return moec_ckpt_check_unchanged(in->ckpt, err);
}

static moec_status read_header(const moec_input *in, size_t i, void *dst,
                               moec_error *err)
{
    return moec_ckpt_read_file(in->ckpt, i, 0, dst,
                               moec_ckpt_file(in->ckpt, i)->header_bytes, err);
}

static moec_status read_index(const moec_input *in, moec_buf *out,
                              moec_error *err)
{
    return moec_ckpt_read_index(in->ckpt, out, err);
}

static moec_status open_extra(const moec_input *in, size_t i, moec_extra *out,
                              moec_error *err)
{
    moec_extra x = {.name = in->extra[i], .fd = -1};

    MOEC_TRY(moec_ckpt_open_extra(in->ckpt, x.name, &x.fd, &x.bytes, err));
    *out = x;
    return MOEC_OK;
}

static const char *etag(const moec_input *in, size_t i)
{
    return moec_ckpt_file(in->ckpt, i)->etag;
}

/* A small file that has no inode: what is in it. */
static moec_status identify_bytes(const moec_extra *x, moec_buf *out,
                                  moec_error *err)
{
    moec_buf data = {0};
    moec_sha256 sum;
    moec_status st = moec_buf_reserve(&data, x->bytes)
                         ? moec_extra_read(x, 0, data.data, x->bytes, err)
                         : moec_fail_nomem(err, x->name);

    if (st == MOEC_OK)
        st = moec_sha256_of(data.data, x->bytes, &sum, err);
    if (st == MOEC_OK) {
        moec_buf_printf(out, "source file %s: ", x->name);
        moec_identity_hex(out, "", &sum);
    }
    moec_buf_fini(&data);
    return st;
}

/* A shard: by its inode, or by what the source says of it. */
static moec_status identify_shard(const moec_ckpt *ckpt, size_t i,
                                  moec_buf *out, moec_error *err)
{
    const moec_file *f = moec_ckpt_file(ckpt, i);

    if (!moec_ckpt_is_remote(ckpt))
        return moec_identity_file(out, f->name, moec_ckpt_fd(ckpt, i), err);
    moec_identity_version(out, f->name, f->bytes, f->etag);
    return MOEC_OK;
}

/* Index and files that are copied: config.json is one of them. */
static moec_status identify_small_files(const moec_input *in, moec_buf *out,
                                        moec_error *err)
{
    if (in->index_name != NULL) {
        moec_buf index = {0};
        moec_sha256 sum;
        moec_status st = moec_ckpt_read_index(in->ckpt, &index, err);
        if (st == MOEC_OK)
            st = moec_sha256_of(index.data, index.len, &sum, err);
        moec_buf_fini(&index);
        MOEC_TRY(st);
        moec_identity_hex(out, "source index ", &sum);
    }
    for (size_t i = 0; i < in->n_extra; i++) {
        moec_extra x;
        MOEC_TRY(open_extra(in, i, &x, err));
        moec_status st = moec_ckpt_is_remote(in->ckpt)
                             ? identify_bytes(&x, out, err)
                             : moec_identity_file(out, x.name, x.fd, err);
        moec_extra_close(&x);
        MOEC_TRY(st);
    }
    return MOEC_OK;
}

static moec_status identity(const moec_input *in, moec_buf *out,
                            moec_error *err)
{
    for (size_t i = 0; i < moec_ckpt_n_files(in->ckpt); i++) {
        const moec_file *f = moec_ckpt_file(in->ckpt, i);
        moec_sha256 sum;

        MOEC_TRY(identify_shard(in->ckpt, i, out, err));
        memcpy(sum.b, f->header_sha256, sizeof(sum.b));
        moec_identity_hex(out, "its header ", &sum);
    }
    return identify_small_files(in, out, err);
}

static void destroy(moec_input *in)
{
    from_ckpt *f = (from_ckpt *)in;

    for (size_t i = 0; i < f->n_files; i++)
        moec_io_close(&f->files[i]);
    moec_free(f->files);
    moec_free(f->extra);
    moec_free(f);
}

static const moec_input_kind kind = {
    .hire = hire,
    .block_spot = block_spot,
    .tensor_spot = tensor_spot,
    .read_block = read_block,
    .read_tensor = read_tensor,
    .check_unchanged = check_unchanged,
    .read_header = read_header,
    .read_index = read_index,
    .open_extra = open_extra,
    .etag = etag,
    .identity = identity,
    .destroy = destroy,
};

moec_status moec_input_of_ckpt(moec_input **out, const moec_input *common,
                               moec_error *err)
{
    size_t n = moec_ckpt_n_extra(common->ckpt);
    from_ckpt *f = moec_calloc(1, sizeof(*f));
    const char **extra = moec_calloc(n + 1, sizeof(*extra));

    if (f == NULL || extra == NULL) {
        moec_free(extra);
        moec_free(f);
        return moec_fail_nomem(err, "the input");
    }
    f->in = *common;
    f->in.kind = &kind;
    f->in.index_name = moec_ckpt_index_name(common->ckpt);
    for (size_t i = 0; i < n; i++)
        extra[i] = moec_ckpt_extra(common->ckpt, i);
    f->extra = extra;
    f->in.extra = extra;
    f->in.n_extra = n;
    *out = &f->in;
    return MOEC_OK;
}
