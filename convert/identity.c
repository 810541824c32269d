/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What decides the bytes of an output. See identity.h.
 *
 * What a user can change by hand comes first and in words; the digests over
 * moves, placement and layout stand behind it and catch what no line names.
 * A file is known by size, inode and times and, where it is a shard, by its
 * header: weights are not read for this.
 */

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt.h"
#include "identity.h"
#include "input.h"

/* Of a line that differs. */
#define LINE_BYTES_SHOWN 160

typedef struct identity {
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_ckpt *ckpt;
    moec_buf *out;
} identity;

void moec_identity_hex(moec_buf *out, const char *what, const moec_sha256 *sum)
{
    char hex[65];

    moec_hex(sum, sizeof(*sum), hex);
    moec_buf_printf(out, "%s%s\n", what, hex);
}

static void put_program(moec_buf *b, const char *command)
{
    moec_buf_printf(b, "command %s\nprogram %s, format %d\n", command,
                    moec_version(), MOEC_FORMAT_VERSION);
}

void moec_identity_version(moec_buf *out, const char *name, uint64_t bytes,
                           const char *etag)
{
    moec_buf_printf(out, "source file %s: %llu bytes, version %s\n", name,
                    (unsigned long long)bytes, etag ? etag : "none");
}

moec_status moec_identity_file(moec_buf *out, const char *name, int fd,
                               moec_error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return moec_fail_os(err, errno, "%s: cannot look at it", name);
    moec_buf_printf(
        out, "source file %s: %lld bytes, inode %llu, changed %lld.%09ld\n",
        name, (long long)st.st_size, (unsigned long long)st.st_ino,
        (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return MOEC_OK;
}

/* --------------------------------------------------------------- options */

static void put_options(const identity *id)
{
    moec_topology t = moec_plan_topology(id->plan);
    const moec_plan_opts *o = moec_plan_options(id->plan);
    moec_buf *b = id->out;

    moec_buf_printf(b, "option --shard-by %s\n",
                    o->by_expert ? "expert" : "rank");
    moec_buf_printf(b, "option --ep %u\n", t.n_ranks);
    moec_buf_printf(b, "slots %u, %u a rank\n", t.n_physical, t.n_local);
    moec_buf_printf(b, "option --shared-slots %s (%u)\n",
                    t.n_shared_slots == 0 ? "none"
                    : t.shared_global     ? "global"
                                          : "per-rank",
                    t.n_shared_slots);
    moec_buf_printf(b, "option --shared-store %s\n",
                    o->shared_store_common ? "common" : "rank");
    moec_buf_printf(b, "option --w13-order %s\n",
                    o->w13_order == MOEC_W13_UP_GATE ? "up-gate" : "gate-up");
    moec_buf_printf(b, "option --redundant %u\n", o->n_redundant);
    moec_buf_printf(b, "option --no-mtp: %s\n", o->no_mtp ? "yes" : "no");
    moec_buf_printf(b, "option --allow-empty: %s\n",
                    o->allow_empty ? "yes" : "no");
    moec_buf_printf(b, "option --requantize-shared: %s\n",
                    moec_plan_requantises(id->plan) ? "yes" : "no");
    moec_buf_printf(b, "option --max-part-bytes %llu\n",
                    (unsigned long long)moec_layout_max_part_bytes(id->layout));
}

static moec_status put_family(const identity *id, const char *text,
                              moec_error *err)
{
    moec_sha256 sum;

    moec_buf_printf(id->out, "family %s\n",
                    moec_model_facts(moec_plan_model(id->plan))->family);
    if (text == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_sha256_of(text, strlen(text), &sum, err));
    moec_identity_hex(id->out, "option --family with SHA-256 ", &sum);
    return MOEC_OK;
}

/* --------------------------------------------------------------- digests */

_Static_assert(sizeof(moec_move) == 72, "moec_move has no padding to hash");

static moec_status hash_layer(const identity *id, size_t layer, moec_hasher *h,
                              moec_error *err)
{
    const moec_model *m = moec_plan_model(id->plan);
    uint32_t n =
        moec_model_facts(m)->n_experts + moec_plan_shared_rows(id->plan);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];

    for (size_t t = 0; t < moec_plan_n_slot_tensors(id->plan, layer); t++)
        for (uint32_t u = 0; u < n; u++) {
            size_t k = moec_plan_block_moves(id->plan, layer, t, u, moves);
            MOEC_TRY(moec_hasher_update(h, moves, k * sizeof(*moves), err));
        }
    return MOEC_OK;
}

/* The moves, and what becomes of each source tensor. */
static moec_status put_moves(const identity *id, moec_error *err)
{
    moec_hasher *h = NULL;
    moec_sha256 sum;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    st = MOEC_OK;
    for (size_t i = 0; st == MOEC_OK && i < moec_plan_n_layers(id->plan); i++)
        st = hash_layer(id, i, h, err);
    for (size_t i = 0; st == MOEC_OK && i < moec_ckpt_n_tensors(id->ckpt);
         i++) {
        unsigned char fate = (unsigned char)moec_plan_fate(id->plan, i);
        st = moec_hasher_update(h, &fate, 1, err);
    }
    if (st != MOEC_OK) {
        moec_hasher_destroy(h);
        return st;
    }
    MOEC_TRY(moec_hasher_final(h, &sum, err));
    moec_identity_hex(id->out, "moves ", &sum);
    return MOEC_OK;
}

static moec_status put_layout(const identity *id, const moec_sha256 *headers,
                              moec_error *err)
{
    moec_buf b = {0};
    moec_sha256 sum;

    for (size_t i = 0; i < moec_layout_n_files(id->layout); i++) {
        const moec_out_file *f = moec_layout_file(id->layout, i);
        moec_buf_append(&b, f->name, strlen(f->name) + 1);
        moec_buf_u64(&b, f->bytes);
        moec_buf_append(&b, &headers[i], sizeof(headers[i]));
    }
    moec_status st = b.oom ? moec_fail_nomem(err, "digest of the layout")
                           : moec_sha256_of(b.data, b.len, &sum, err);
    moec_buf_fini(&b);
    if (st == MOEC_OK)
        moec_identity_hex(id->out, "layout ", &sum);
    return st;
}

static moec_status whole(const moec_buf *b, moec_error *err)
{
    return b->oom ? moec_fail_nomem(err, "identity of the output") : MOEC_OK;
}

moec_status moec_identity_convert(const moec_input *in,
                                  const moec_sha256 *header_sha256,
                                  moec_buf *out, moec_error *err)
{
    identity id = {
        .layout = in->layout, .plan = in->plan, .ckpt = in->ckpt, .out = out};
    moec_sha256 placement;

    put_program(out, "convert");
    put_options(&id);
    moec_buf_printf(out, "option --hash-source: %s\n",
                    in->opts->hash_source ? "yes" : "no");
    MOEC_TRY(put_family(&id, in->opts->family_text, err));
    MOEC_TRY(in->kind->identity(in, out, err));
    MOEC_TRY(
        moec_placement_digest(moec_plan_placement(id.plan), placement.b, err));
    moec_identity_hex(out, "option --placement with digest ", &placement);
    MOEC_TRY(put_moves(&id, err));
    MOEC_TRY(put_layout(&id, header_sha256, err));
    return whole(out, err);
}

/* manifest.json is read again: what was decoded has no digest of its own. */
moec_status moec_identity_conversion(const moec_converted *c, moec_buf *out,
                                     moec_error *err)
{
    moec_buf text = {0};
    moec_sha256 sum;
    moec_status st = moec_converted_load(c, MOEC_MANIFEST_NAME,
                                         MOEC_JSON_BYTES_MAX, &text, err);

    if (st == MOEC_OK)
        st = moec_sha256_of(text.data, text.len, &sum, err);
    moec_buf_fini(&text);
    MOEC_TRY(st);
    moec_identity_hex(out, "manifest.json ", &sum);
    moec_identity_hex(out, "slots.bin ", &c->manifest.slots_file.sha256);
    moec_identity_hex(out, "sources.bin ", &c->manifest.sources_file.sha256);
    for (size_t i = 0; i < c->manifest.n_files; i++) {
        const char *name = c->manifest.files[i].name;
        const moec_store_file *f = moec_converted_behind(c, name);
        uint64_t bytes;
        int fd;

        if (f != NULL) {
            moec_identity_version(out, name, f->bytes, f->etag);
            continue;
        }
        MOEC_TRY(moec_converted_file(c, name, &fd, &bytes, err));
        st = moec_identity_file(out, name, fd, err);
        close(fd);
        MOEC_TRY(st);
    }
    return MOEC_OK;
}

moec_status moec_identity_unconvert(const moec_converted *c, moec_buf *out,
                                    moec_error *err)
{
    put_program(out, "unconvert");
    MOEC_TRY(moec_identity_conversion(c, out, err));
    return whole(out, err);
}

/* ----------------------------------------------------------- differences */

/* Length of the line at `*at`, and step behind it. */
static size_t next_line(const char *text, size_t n, size_t *at,
                        const char **line)
{
    const char *begin = text + *at;
    const char *nl = memchr(begin, '\n', n - *at);
    size_t len = nl ? (size_t)(nl - begin) : n - *at;

    *line = begin;
    *at += len + (nl != NULL);
    return len;
}

moec_status moec_identity_refuse(const char *where, const char *then,
                                 size_t n_then, const char *now, size_t n_now,
                                 moec_error *err)
{
    const char *a = "", *b = "";
    size_t at_a = 0, at_b = 0, n_a, n_b;

    do {
        n_a = next_line(then, n_then, &at_a, &a);
        n_b = next_line(now, n_now, &at_b, &b);
    } while (n_a == n_b && n_a > 0 && memcmp(a, b, n_a) == 0);
    return moec_fail(
        err, MOEC_E_ARG, MOEC_RULE_NONE,
        "%s belongs to another conversion ('%.*s' then, '%.*s' now): remove "
        "it, or run the command that made it",
        where, (int)moec_min_u64(n_a, LINE_BYTES_SHOWN), a,
        (int)moec_min_u64(n_b, LINE_BYTES_SHOWN), b);
}
