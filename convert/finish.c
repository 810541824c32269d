/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a conversion writes besides the data files, in this order: copies of
 * the source's small files, sources.bin, provenance.json, the index of the
 * common files, slots.bin, and manifest.json last.
 */

#include <errno.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "ckpt.h"
#include "finish.h"

void *moec_finish_take(moec_finish *f, size_t n, size_t size)
{
    uint64_t bytes;

    if (!moec_mul_u64(n + 1, size, &bytes))
        return NULL;
    void *p = moec_arena_alloc(&f->arena, (size_t)bytes, 16);
    if (p != NULL)
        memset(p, 0, (size_t)bytes);
    return p;
}

moec_status moec_finish_room(const moec_finish *f, const char *name,
                             moec_error *err)
{
    if (f->to.objects != NULL || !f->replace ||
        unlinkat(moec_output_dirfd(f->to.dir), name, 0) == 0 || errno == ENOENT)
        return MOEC_OK;
    return moec_fail_os(err, errno, "%s: cannot replace it", name);
}

/* -------------------------------------------------------------- manifest */

static void describe_model(moec_finish *f)
{
    const moec_facts *m = moec_model_facts(f->model);
    moec_manifest *mf = &f->mf;

    mf->format_version = MOEC_FORMAT_VERSION;
    mf->family = m->family;
    mf->model_type = m->model_type;
    mf->score = m->score;
    mf->activation = m->activation;
    mf->n_experts = m->n_experts;
    mf->n_shared = m->n_shared;
    mf->top_k = m->top_k;
    mf->n_layers = m->n_layers;
    mf->hidden = m->hidden;
    mf->inter = m->inter;
    mf->shared_width = m->shared_width;
    mf->n_group = m->n_group;
    mf->topk_group = m->topk_group;
    mf->routed_scale = m->routed_scale;
    mf->norm_topk = m->norm_topk;
    mf->shared_kind = moec_shared_kind_name(m->shared_kind);
    mf->expert_dtype = m->expert_dtype;
    mf->family_text = f->opts->family_text;
}

static void describe_topology(moec_finish *f)
{
    moec_topology t = moec_plan_topology(f->plan);
    const moec_plan_opts *o = moec_plan_options(f->plan);
    moec_manifest *mf = &f->mf;

    mf->n_ranks = t.n_ranks;
    mf->n_redundant = o->n_redundant;
    mf->n_physical = t.n_physical;
    mf->n_local = t.n_local;
    mf->n_shared_slots = t.n_shared_slots;
    mf->shared_slots = t.n_shared_slots == 0 ? "none"
                       : t.shared_global     ? "global"
                                             : "per-rank";
    mf->shared_store = o->shared_store_common ? "common" : "rank";
    mf->shard_by = o->by_expert ? "expert" : "rank";
    mf->w13_order = o->w13_order == MOEC_W13_UP_GATE ? "up-gate" : "gate-up";
    mf->mtp = !o->no_mtp;
    mf->allow_empty = o->allow_empty != 0;
    mf->max_part_bytes = moec_layout_max_part_bytes(f->layout);
}

static moec_status describe_placement(moec_finish *f, moec_error *err)
{
    const moec_placement *p = moec_plan_placement(f->plan);
    size_t n = moec_model_n_layers(f->model);
    uint32_t n_physical = moec_placement_n_physical(p);
    moec_mf_layer *layers = moec_finish_take(f, n, sizeof(*layers));

    MOEC_TRY(moec_placement_digest(p, f->mf.placement_sha256.b, err));
    if (layers == NULL)
        return moec_fail_nomem(err, "layers of the manifest");
    for (size_t i = 0; i < n; i++) {
        const moec_moe_layer *l = moec_model_layer(f->model, i);
        layers[i].key = l->key;
        layers[i].source_number = l->source_number;
    }
    f->mf.layers = layers;
    f->mf.n_mf_layers = n;
    if (moec_placement_is_trivial(p))
        return MOEC_OK;
    int32_t *rows = moec_finish_take(f, n * n_physical, sizeof(*rows));
    if (rows == NULL)
        return moec_fail_nomem(err, "placement of the manifest");
    for (size_t i = 0; i < n; i++)
        memcpy(rows + i * n_physical, moec_placement_row(p, (uint32_t)i),
               n_physical * sizeof(*rows));
    f->mf.p2l = rows;
    return MOEC_OK;
}

static moec_status describe_files(moec_finish *f, moec_error *err)
{
    size_t n_src = moec_ckpt_n_files(f->ckpt),
           n_out = moec_layout_n_files(f->layout);
    moec_mf_source *src = moec_finish_take(f, n_src, sizeof(*src));
    moec_mf_file *out = moec_finish_take(f, n_out, sizeof(*out));

    if (src == NULL || out == NULL)
        return moec_fail_nomem(err, "files of the manifest");
    for (size_t i = 0; i < n_src; i++) {
        const moec_file *s = moec_ckpt_file(f->ckpt, i);
        src[i].name = s->name;
        src[i].bytes = s->bytes;
        src[i].header_bytes = s->header_bytes;
        memcpy(src[i].header_sha256.b, s->header_sha256, 32);
        src[i].etag = f->in->kind->etag(f->in, i);
    }
    for (size_t i = 0; i < n_out; i++) {
        out[i].name = moec_layout_file(f->layout, i)->name;
        out[i].bytes = moec_layout_file(f->layout, i)->bytes;
    }
    f->mf.sources = f->source_files = src;
    f->mf.n_sources = n_src;
    f->mf.files = f->files = out;
    f->mf.n_files = n_out;
    f->mf.index_name = f->in->index_name;
    return MOEC_OK;
}

static moec_status describe_transforms(moec_finish *f, moec_error *err)
{
    size_t n = 0, most = 0;
    moec_buf b = {0};

    for (size_t i = 0; i < moec_plan_n_layers(f->plan); i++)
        most += moec_plan_n_slot_tensors(f->plan, i);
    const char **lines = moec_finish_take(f, most, sizeof(*lines));
    if (lines == NULL)
        return moec_fail_nomem(err, "transforms of the manifest");
    for (size_t i = 0; i < moec_plan_n_layers(f->plan); i++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(f->plan, i); t++) {
            const moec_slot_tensor *s = moec_plan_slot_tensor(f->plan, i, t);
            if (s->op == MOEC_OP_COPY)
                continue;
            b.len = 0;
            moec_buf_printf(&b, "%s: %s", s->name,
                            s->op == MOEC_OP_TRANSPOSE ? "transpose"
                                                       : "deinterleave");
            lines[n] =
                b.oom ? NULL : moec_arena_strdup(&f->arena, b.data, b.len);
            if (lines[n++] == NULL) {
                moec_buf_fini(&b);
                return moec_fail_nomem(err, "transforms of the manifest");
            }
        }
    moec_buf_fini(&b);
    f->mf.transforms = lines;
    f->mf.n_transforms = n;
    return MOEC_OK;
}

static moec_status describe(moec_finish *f, moec_error *err)
{
    describe_model(f);
    describe_topology(f);
    MOEC_TRY(describe_placement(f, err));
    MOEC_TRY(describe_files(f, err));
    return describe_transforms(f, err);
}

/* --------------------------------------------------------------- writing */

/* The same object may be there already: the answer to it was lost, or another
 * process was first with the same bytes. */
static moec_status put_fresh(const moec_objects *o, const char *name,
                             const moec_buf *b, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_buf there = {0};
    moec_status st = o->put(o->ctx, name, b->data, b->len, true, &why);

    if (st == MOEC_E_LOCKED && o->get(o->ctx, name, &there, NULL) == MOEC_OK &&
        there.len == b->len && memcmp(there.data, b->data, b->len) == 0)
        st = MOEC_OK;
    moec_buf_fini(&there);
    if (st == MOEC_E_LOCKED)
        return moec_fail(err, st, MOEC_RULE_NONE,
                         "%s/%s: another conversion was complete first; it is "
                         "left as it is",
                         o->there->name, name);
    if (st != MOEC_OK && err != NULL)
        *err = why;
    return st;
}

moec_status moec_finish_put(const moec_finish *f, const char *name,
                            const moec_buf *b, moec_error *err)
{
    const moec_objects *o = f->to.objects;

    if (o != NULL && strcmp(name, MOEC_MANIFEST_NAME) == 0)
        return put_fresh(o, name, b, err);
    if (o != NULL)
        return o->put(o->ctx, name, b->data, b->len, false, err);
    MOEC_TRY(moec_finish_room(f, name, err));
    return moec_output_write(f->to.dir, name, b->data, b->len, err);
}

/* The same, noting size and digest. */
static moec_status write_digested(moec_finish *f, const char *name,
                                  const moec_buf *b, moec_mf_copied *note,
                                  moec_error *err)
{
    MOEC_TRY(moec_sha256_of(b->data, b->len, &note->sha256, err));
    note->name = name;
    note->bytes = b->len;
    return moec_finish_put(f, name, b, err);
}

static void put_lossy(moec_buf *b, const moec_convert_stats *s)
{
    static const char *const names[] = {"gate", "up", "down"};

    moec_buf_puts(b, ",\n  \"requantised\": {");
    for (size_t i = 0; i < 3; i++)
        moec_buf_printf(b,
                        "%s\"%s\": {\"max_abs\": %.9g, "
                        "\"relative_rms\": %.9g}",
                        i > 0 ? ", " : "", names[i], s->lossy[i].max_abs,
                        s->lossy[i].relative_rms);
    moec_buf_puts(b, "}");
}

static moec_status write_provenance(moec_finish *f,
                                    const moec_convert_stats *stats,
                                    moec_error *err)
{
    moec_buf b = {0};
    struct utsname host = {0};
    char when[64] = "";
    struct tm tm;
    time_t now = time(NULL);
    const char *cmd = f->opts->command ? f->opts->command : "";

    uname(&host);
    if (gmtime_r(&now, &tm) == NULL ||
        strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        when[0] = '\0';
    moec_buf_puts(&b, "{\n  \"schema\": \"moec.provenance/1\",\n"
                      "  \"command\": ");
    moec_buf_json_string(&b, cmd, strlen(cmd));
    moec_buf_puts(&b, ",\n  \"host\": ");
    moec_buf_json_string(&b, host.nodename, strlen(host.nodename));
    moec_buf_puts(&b, ",\n  \"source\": ");
    moec_buf_json_string(&b, moec_ckpt_dir(f->ckpt),
                         strlen(moec_ckpt_dir(f->ckpt)));
    moec_buf_printf(&b,
                    ",\n  \"version\": \"%s\",\n  \"finished\": \"%s\",\n"
                    "  \"threads\": %u,\n  \"bytes_read\": %llu",
                    moec_version(), when, stats->n_threads,
                    (unsigned long long)stats->bytes_read);
    if (stats->requantised)
        put_lossy(&b, stats);
    moec_buf_puts(&b, "\n}\n");
    moec_status st = b.oom ? moec_fail_nomem(err, "provenance.json")
                           : moec_finish_put(f, MOEC_PROVENANCE_NAME, &b, err);
    moec_buf_fini(&b);
    return st;
}

static moec_status write_manifest(moec_finish *f, const char *name,
                                  moec_error *err)
{
    moec_buf b = {0};
    moec_status st = moec_manifest_encode(&f->mf, &b, err);

    if (st == MOEC_OK)
        st = moec_finish_put(f, name, &b, err);
    moec_buf_fini(&b);
    return st;
}

/* What needs the source. */
static moec_status write_source(moec_finish *f, moec_input *in,
                                moec_convert_stats *stats, moec_error *err)
{
    moec_buf b = {0};
    moec_status st;

    MOEC_TRY(moec_finish_lossy(f, in, stats, err));
    MOEC_TRY(describe(f, err));
    MOEC_TRY(moec_finish_hash(f, in, stats, err));
    MOEC_TRY(moec_finish_sources(f, err));
    MOEC_TRY(moec_finish_extras(f, err));
    st = moec_sources_encode(&f->sources, &b, err);
    if (st == MOEC_OK)
        st = write_digested(f, MOEC_SOURCES_NAME, &b, &f->mf.sources_file, err);
    moec_buf_fini(&b);
    MOEC_TRY(st);
    return write_provenance(f, stats, err);
}

/* What needs all digests; the manifest is described. */
static moec_status write_digests(moec_finish *f, moec_error *err)
{
    moec_buf b = {0};
    moec_status st;

    MOEC_TRY(moec_finish_slots(f, err));
    for (size_t i = 0; i < f->slots.n_files; i++)
        f->files[i].tree_sha256 = f->slots.files[i].tree_sha256;
    MOEC_TRY(moec_finish_index(f, err));
    st = moec_slots_encode(&f->slots, &b, err);
    if (st == MOEC_OK)
        st = write_digested(f, MOEC_SLOTS_NAME, &b, &f->mf.slots_file, err);
    moec_buf_fini(&b);
    MOEC_TRY(st);
    return write_manifest(f, MOEC_MANIFEST_NAME, err);
}

static moec_finish finish_of(const moec_layout *layout, moec_finish_to to)
{
    moec_finish f = {
        .layout = layout, .plan = moec_layout_plan(layout), .to = to};

    f.model = moec_plan_model(f.plan);
    f.ckpt = moec_model_ckpt(f.model);
    return f;
}

moec_status moec_finish_write(moec_input *in, const moec_digests *d,
                              const moec_sha256 *header_sha256,
                              moec_finish_to to, moec_convert_stats *stats,
                              moec_error *err)
{
    moec_finish f = finish_of(in->layout, to);

    f.in = in;
    f.opts = in->opts;
    f.d = d;
    f.headers = header_sha256;
    moec_status st = write_source(&f, in, stats, err);
    if (st == MOEC_OK)
        st = write_digests(&f, err);
    moec_arena_fini(&f.arena);
    return st;
}

/* Whoever finds it takes it for whole: it appears at once, as any object. */
static moec_status write_begun(moec_finish *f, moec_error *err)
{
    int dir;

    if (f->to.objects != NULL)
        return write_manifest(f, MOEC_OUTPUT_BEGUN, err);
    dir = moec_output_dirfd(f->to.dir);
    MOEC_TRY(write_manifest(f, MOEC_OUTPUT_BEGUN ".new", err));
    /* Who finds this name believes that the other files are there: their names
     * first, on file systems that keep no order of them. */
    if (fsync(dir) != 0)
        return moec_fail_os(err, errno, MOEC_OUTPUT_BEGUN ": cannot fsync");
    if (renameat(dir, MOEC_OUTPUT_BEGUN ".new", dir, MOEC_OUTPUT_BEGUN) != 0)
        return moec_fail_os(err, errno, MOEC_OUTPUT_BEGUN ": cannot rename it");
    return MOEC_OK;
}

moec_status moec_finish_begin(moec_input *in, moec_finish_to to,
                              moec_convert_stats *stats, moec_error *err)
{
    moec_finish f = finish_of(in->layout, to);

    f.in = in;
    f.opts = in->opts;
    f.replace = true;
    f.mf.slots_file.name = MOEC_SLOTS_NAME;
    moec_status st = write_source(&f, in, stats, err);
    if (st == MOEC_OK)
        st = write_begun(&f, err);
    moec_arena_fini(&f.arena);
    return st;
}

moec_status moec_finish_merge(const moec_layout *layout, const moec_digests *d,
                              const moec_sha256 *header_sha256,
                              const moec_manifest *begun, moec_finish_to to,
                              moec_error *err)
{
    moec_finish f = finish_of(layout, to);
    moec_status st;

    f.d = d;
    f.headers = header_sha256;
    f.replace = true;
    f.mf = *begun; /* its texts stay the caller's */
    f.files = moec_finish_take(&f, begun->n_files, sizeof(*f.files));
    if (f.files == NULL) {
        st = moec_fail_nomem(err, "files of the manifest");
    } else {
        memcpy(f.files, begun->files, begun->n_files * sizeof(*f.files));
        f.mf.files = f.files;
        st = write_digests(&f, err);
    }
    moec_arena_fini(&f.arena);
    return st;
}
