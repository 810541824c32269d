/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert load: one rank into memory, as a server would: what it takes,
 * how fast it comes, and whether every byte is what it must be. A thin user of
 * moec/load.h.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "cli.h"
#include "print.h"
#include "progress.h"
#include "session.h"
#include "web_source.h"

static const moec_cli_opt own_opts[] = {
    {"rank", 0, MOEC_KIND_U32, offsetof(moec_cli_args, rank), "R",
     "the rank that is loaded", "0", NULL, 0},
    {"layers", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, layers), "A-B",
     "only MoE layers A to B of the decoder", NULL, "all", 0},
    {"common", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, with_common), NULL,
     "the tensors that are no expert's too, before the first layer", NULL, NULL,
     0},
    {"tp", 0, MOEC_KIND_U32, offsetof(moec_cli_args, tp), "T",
     "tensor-parallel ranks inside an expert", "1", NULL, 65536},
    {"tp-rank", 0, MOEC_KIND_U32, offsetof(moec_cli_args, tp_rank), "t",
     "which of them is loaded", "0", NULL, 0},
    {"verify", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, verify),
     "none|xxh3|sha256", "digests that are checked on the way", NULL,
     "xxh3 of a conversion, none of a published checkpoint", 0},
    {"require-signature", 0, MOEC_KIND_TEXT,
     offsetof(moec_cli_args, require_signature), "KEY",
     "public EC key in PEM: nothing is loaded that its owner did not sign",
     NULL, NULL, 0},
    {"signature", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, signature), "FILE",
     "the signature", NULL, "model.sig in OUT", 0},
    {"device", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, device), "cpu|cuda",
     "whose memory it goes into", "cpu", NULL, 0},
    {"plugin", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, plugin), "PATH",
     "the plug-in of --device cuda", NULL,
     "beside the library, then where it is installed", 0},
    {"gds", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, gds), "off|auto|on",
     "files straight to the device (GPUDirect Storage), digested there; on: "
     "also what is cached, and where cuFile copies through the host",
     "auto", NULL, 0},
    {"cufile", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, cufile), "PATH",
     "the cuFile library of --gds", NULL, "libcufile.so.0 of the system", 0},
    {"no-direct", 0, MOEC_KIND_FLAG, offsetof(moec_cli_args, no_direct), NULL,
     "never go around the page cache", NULL, NULL, 0},
};
static const moec_cli_group own = {"Load", own_opts,
                                   sizeof(own_opts) / sizeof(own_opts[0])};
static const moec_cli_group *const groups[] = {&own, &moec_group_topology,
                                               &moec_group_common, NULL};

/* One load on its way. */
typedef struct loading {
    moec_cli *cli;
    moec_cli_session s;
    const moec_plan *plan;
    moec_signature *signature;
    uint32_t *layers;
    moec_device *device; /* NULL: the host */
    moec_device_sink *sink;
    void *memory; /* the arena */
    uint64_t memory_bytes;
    moec_cli_progress progress;
    moec_job *job;
    moec_job_stats stats;
} loading;

/* ------------------------------------------------------------ what to load */

/* "A-B" or "A" of the decoder's layers into planned layers. */
static moec_status choose_layers(loading *l, size_t *n_out, moec_error *err)
{
    const char *said = l->cli->args.layers, *dash = strchr(said, '-');
    const moec_model *model = moec_plan_model(l->plan);
    size_t n = moec_plan_n_layers(l->plan), n_out_of = 0;
    uint64_t a = 0, b = 0;
    char first[24];
    if (dash != NULL && (size_t)(dash - said) < sizeof(first)) {
        (void)snprintf(first, sizeof(first), "%.*s", (int)(dash - said), said);
        if (!moec_cli_parse_u64(first, UINT32_MAX, &a) ||
            !moec_cli_parse_u64(dash + 1, UINT32_MAX, &b) || a > b)
            dash = NULL;
    } else if (dash == NULL && moec_cli_parse_u64(said, UINT32_MAX, &a)) {
        b = a;
        dash = said;
    } else {
        dash = NULL;
    }
    if (dash == NULL)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--layers '%s': say A-B or A", said);
    l->layers = calloc(n + 1, sizeof(*l->layers));
    if (l->layers == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "out of memory: the list of layers");
    for (size_t i = 0; i < n; i++) {
        moec_layer_key key =
            moec_model_layer(model, moec_plan_model_layer(l->plan, i))->key;
        if (key.space == MOEC_SPACE_MAIN && key.number >= a && key.number <= b)
            l->layers[n_out_of++] = (uint32_t)i;
    }
    if (n_out_of == 0)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--layers %s: no MoE layer of the model is "
                              "among them",
                              said);
    *n_out = n_out_of;
    return MOEC_OK;
}

/* What was asked for against what the rank files were made for. */
static moec_status check_asked(const loading *l, moec_error *err)
{
    const moec_cli_args *a = &l->cli->args;
    moec_layout_want want = {.struct_bytes = sizeof(want),
                             .n_ranks = a->ep,
                             .n_redundant = a->redundant,
                             .placement = l->s.placement};
    want.has_redundant = moec_cli_given(a, groups, "redundant");
    if (moec_cli_given(a, groups, "w13-order"))
        want.w13_order = a->w13_order == MOEC_CHOICE_UP_GATE
                             ? MOEC_W13_UP_GATE + 1
                             : MOEC_W13_GATE_UP + 1;
    if (a->shared_slots == MOEC_CHOICE_NONE)
        want.has_shared = 1;
    else if (a->shared_slots != 0)
        want.shared_global = a->shared_slots == MOEC_CHOICE_GLOBAL ? 2 : 1;
    return moec_layout_check(l->plan, &want, err);
}

/* A conversion by ranks is loaded as it is; a store, and a checkpoint, by the
 * topology of the command line. */
static moec_status open_plan(loading *l, moec_error *err)
{
    const char *src = moec_cli_path(l->cli, 0);
    moec_status st = moec_cli_open_model(&l->s, l->cli, src, err);
    if (st != MOEC_OK)
        return st;
    if (l->s.conversion != NULL) {
        l->plan = moec_layout_plan(moec_conversion_layout(l->s.conversion));
        if (!moec_plan_options(l->plan)->by_expert) {
            if (l->cli->args.placement != NULL)
                st = moec_cli_open_placement(&l->s, l->cli, err);
            return st == MOEC_OK ? check_asked(l, err) : st;
        }
    }
    if (l->cli->args.ep == 0)
        return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE,
                              "--ep W is missing: the number of "
                              "expert-parallel ranks");
    st = moec_cli_make_layout(&l->s, l->cli, err);
    l->plan = l->s.plan;
    return st;
}

static moec_status open_signature(loading *l, moec_error *err)
{
    moec_signature_opts o = MOEC_SIGNATURE_OPTS_INIT;
    if (l->cli->args.require_signature == NULL)
        return MOEC_OK;
    if (moec_web_is_url(moec_cli_path(l->cli, 0)))
        return moec_cli_error(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                              "--require-signature: signatures are of "
                              "directories, %s is none: download it first",
                              moec_cli_path(l->cli, 0));
    o.key = l->cli->args.require_signature;
    o.signature = l->cli->args.signature;
    return moec_signature_open(&l->signature, moec_cli_path(l->cli, 0), &o,
                               err);
}

/* ------------------------------------------------------------------ load */

/* The destination: touched while it is filled, as a server's is. */
static moec_status get_memory(void *ctx, const moec_memory_request *want,
                              void **out, moec_error *err)
{
    loading *l = ctx;
    if (l->device != NULL) {
        moec_status st =
            moec_device_alloc(l->device, &l->memory, want->bytes, err);
        *out = l->memory;
        l->memory_bytes = want->bytes;
        return st;
    }
    void *p = mmap(NULL, (size_t)want->bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "out of memory: %" PRIu64
                              " bytes for the rank's tensors",
                              want->bytes);
    (void)madvise(p, (size_t)want->bytes, MADV_HUGEPAGE);
    l->memory = p;
    l->memory_bytes = want->bytes;
    *out = p;
    return MOEC_OK;
}

static int on_progress(void *ctx, uint64_t done, uint64_t total)
{
    loading *l = ctx;
    return moec_cli_progress_step(&l->progress, done, total);
}

/* Copies of their own stream's order: the default one. */
static moec_status open_sink(loading *l, moec_job_opts *o, moec_error *err)
{
    static const moec_gds gds[] = {MOEC_GDS_AUTO, MOEC_GDS_OFF, MOEC_GDS_AUTO,
                                   MOEC_GDS_ON};
    moec_device_opts opts = MOEC_DEVICE_OPTS_INIT;
    moec_device_sink_opts sink = MOEC_DEVICE_SINK_OPTS_INIT;
    moec_status st = MOEC_OK;
    if (l->cli->args.device != MOEC_CHOICE_DEVICE_CUDA)
        return MOEC_OK;
    opts.plugin = l->cli->args.plugin;
    sink.gds = gds[l->cli->args.gds];
    sink.cufile = l->cli->args.cufile;
    st = moec_device_open(&l->device, &opts, err);
    if (st == MOEC_OK)
        st = moec_device_sink_create(&l->sink, l->device, &sink, err);
    if (st != MOEC_OK)
        return st;
    o->sink = moec_device_sink_load(l->sink);
    o->ring_bytes = moec_device_sink_ring_bytes(l->sink);
    o->memory_kind = MOEC_MEMORY_DEVICE;
    return MOEC_OK;
}

static void free_memory(loading *l)
{
    if (l->device != NULL)
        moec_device_free(l->device, l->memory);
    else if (l->memory != NULL)
        (void)munmap(l->memory, (size_t)l->memory_bytes);
    moec_device_sink_destroy(l->sink);
    moec_device_close(l->device);
}

static moec_status load(loading *l, moec_error *err)
{
    static const moec_load_verify verify[] = {
        MOEC_LOAD_VERIFY_DEFAULT, MOEC_LOAD_VERIFY_NONE, MOEC_LOAD_VERIFY_XXH3,
        MOEC_LOAD_VERIFY_SHA256};
    const moec_cli_args *a = &l->cli->args;
    moec_job_opts o = MOEC_JOB_OPTS_INIT;
    moec_status st = MOEC_OK;
    o.n_threads = a->threads;
    o.memory_bytes = a->memory;
    o.verify = verify[a->verify];
    o.tp_rank = a->tp_rank;
    o.tp_size = a->tp;
    o.no_direct = a->no_direct;
    o.common_arena = a->with_common;
    o.signature = l->signature;
    o.memory = get_memory;
    o.progress = on_progress;
    o.ctx = l;
    if (a->layers != NULL)
        st = choose_layers(l, &o.n_layers, err);
    o.layers = l->layers;
    if (st == MOEC_OK)
        st = open_sink(l, &o, err);
    if (st == MOEC_OK)
        st = moec_job_create(&l->job, l->s.plan, l->s.conversion, a->rank, &o,
                             err);
    if (st == MOEC_OK) {
        l->plan = moec_job_plan(l->job);
        st = moec_job_start(l->job, err);
    }
    if (st != MOEC_OK)
        return st;
    moec_cli_progress_begin(&l->progress, l->cli);
    st = moec_job_wait(l->job, err);
    if (st == MOEC_OK && l->device != NULL)
        st = moec_device_wait(l->device, NULL, err);
    moec_cli_progress_end(&l->progress);
    moec_job_poll(l->job, &l->stats);
    return st;
}

/* ---------------------------------------------------------------- report */

static uint64_t peak_rss(void)
{
    struct rusage r;
    return getrusage(RUSAGE_SELF, &r) == 0 ? (uint64_t)r.ru_maxrss * 1024 : 0;
}

static const char *verified_by(const loading *l)
{
    uint32_t v = l->cli->args.verify;
    if (l->s.conversion == NULL)
        return "none";
    if (l->signature != NULL || v == MOEC_CHOICE_SHA256)
        return "sha256";
    return v == MOEC_CHOICE_VERIFY_NONE ? "none" : "xxh3";
}

static double gb_per_s(const loading *l)
{
    const moec_job_stats *s = &l->stats;
    return s->seconds > 0 ? (double)s->bytes_needed / s->seconds / 1e9 : 0;
}

static void print_json(const loading *l)
{
    const moec_job_stats *s = &l->stats;
    moec_cli_json j;
    moec_cli_json_begin(&j, l->cli, true);
    moec_cli_json_str(&j, "source", moec_cli_path(l->cli, 0));
    moec_cli_json_bool(&j, "converted", l->s.conversion != NULL);
    moec_cli_json_u64(&j, "rank", l->cli->args.rank);
    moec_cli_json_u64(&j, "n_ranks", moec_plan_topology(l->plan).n_ranks);
    moec_cli_json_u64(&j, "n_layers", s->n_layers);
    moec_cli_json_u64(&j, "bytes_needed", s->bytes_needed);
    moec_cli_json_u64(&j, "bytes_read", s->bytes_read);
    moec_cli_json_u64(&j, "bytes_cached", s->bytes_cached);
    moec_cli_json_u64(&j, "bytes_in_memory", l->memory_bytes);
    moec_cli_json_f64(&j, "seconds", s->seconds);
    moec_cli_json_f64(&j, "seconds_first_layer", s->seconds_first);
    moec_cli_json_f64(&j, "gb_per_s", gb_per_s(l));
    moec_cli_json_u64(&j, "peak_rss_bytes", peak_rss());
    moec_cli_json_bool(&j, "verified",
                       s->bytes_verified != 0 &&
                           s->bytes_verified >= s->bytes_needed);
    moec_cli_json_str(&j, "verify", verified_by(l));
    moec_cli_json_u64(&j, "bytes_verified", s->bytes_verified);
    moec_cli_json_bool(&j, "signed", l->signature != NULL);
    moec_cli_json_u64(&j, "n_requests", s->n_requests);
    moec_cli_json_bool(&j, "io_uring", s->uses_uring != 0);
    moec_cli_json_bool(&j, "direct", s->uses_direct != 0);
    if (l->sink != NULL) {
        const char *why = moec_device_sink_no_gds(l->sink);
        moec_cli_json_u64(&j, "bytes_by_gds", s->bytes_by_reader);
        moec_cli_json_u64(&j, "n_gds_failed", s->n_reader_failed);
        if (why != NULL)
            moec_cli_json_str(&j, "no_gds", why);
    }
    moec_cli_json_finish(&j);
}

/* Which way the bytes went to the device. */
static void print_way(const loading *l)
{
    const moec_job_stats *s = &l->stats;
    const char *why = moec_device_sink_no_gds(l->sink);
    char direct[24], ring[24];
    if (why != NULL) {
        moec_cli_line(stdout, "all by the pinned ring: %s", why);
        return;
    }
    moec_cli_line(stdout,
                  "%s from the files to the device by cuFile, %s by the pinned "
                  "ring",
                  moec_cli_size(direct, s->bytes_by_reader),
                  moec_cli_size(ring, s->bytes_read - s->bytes_by_reader));
    if (s->n_reader_failed != 0)
        moec_cli_line(stdout,
                      "%" PRIu64 " reads of cuFile failed, the ring brought "
                      "them",
                      s->n_reader_failed);
}

static void print_text(const loading *l)
{
    const moec_job_stats *s = &l->stats;
    const char *how = verified_by(l);
    char need[24], memory[24], read[24], peak[24];
    moec_cli_line(stdout,
                  "rank %" PRIu32 " of %" PRIu32 ": %" PRIu32
                  " layers, %s, %.2f s, %.2f GB/s",
                  l->cli->args.rank, moec_plan_topology(l->plan).n_ranks,
                  s->n_layers, moec_cli_size(need, s->bytes_needed), s->seconds,
                  gb_per_s(l));
    moec_cli_line(stdout, "read %s of the files, %s in memory, peak %s",
                  moec_cli_size(read, s->bytes_read),
                  moec_cli_size(memory, l->memory_bytes),
                  moec_cli_size(peak, peak_rss()));
    if (l->sink != NULL)
        print_way(l);
    if (strcmp(how, "none") != 0)
        moec_cli_line(stdout, "every byte has its %s digest%s", how,
                      l->signature ? ", and the digests are signed" : "");
    else
        moec_cli_line(stdout, "no digests were checked%s",
                      l->s.conversion ? ""
                                      : ": a published checkpoint has none of "
                                        "ranges");
}

static int load_command(moec_cli *cli)
{
    moec_error err = MOEC_ERROR_INIT;
    loading l = {.cli = cli};
    moec_status st;
    int code = MOEC_EXIT_OK;
    const char *wrong = moec_cli_check_topology(cli, false);
    if (wrong != NULL)
        return moec_cli_usage(cli, "%s", wrong);
    if (cli->args.tp_rank != 0 && cli->args.tp_rank >= cli->args.tp)
        return moec_cli_usage(cli, "--tp-rank %u: there are --tp %u",
                              cli->args.tp_rank, cli->args.tp);
    if (cli->args.device != MOEC_CHOICE_DEVICE_CUDA &&
        (cli->args.cufile != NULL || moec_cli_given(&cli->args, groups, "gds")))
        return moec_cli_usage(cli, "--gds and --cufile are for --device cuda");
    if (cli->args.gds == MOEC_CHOICE_GDS_ON && cli->args.no_direct)
        return moec_cli_usage(cli, "--gds on goes around the page cache, and "
                                   "--no-direct forbids it");
    st = open_signature(&l, &err);
    if (st == MOEC_OK)
        st = open_plan(&l, &err);
    if (st == MOEC_OK)
        st = load(&l, &err);
    if (st != MOEC_OK && moec_cli_signal != 0) {
        memset(&err, 0, sizeof(err));
        st = moec_cli_error(&err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                            "interrupted; what is in memory is undefined");
    }
    if (st != MOEC_OK)
        code = moec_cli_fail(cli, st, &err);
    else if (cli->args.json)
        print_json(&l);
    else
        print_text(&l);
    if (st == MOEC_OK && l.s.plan != NULL) {
        moec_cli_print_problems(cli, l.s.ckpt, l.s.plan);
        if (cli->args.strict && moec_cli_n_warnings(l.s.ckpt, l.s.plan) != 0)
            code = MOEC_EXIT_FOUND;
    }
    moec_job_destroy(l.job);
    free_memory(&l);
    free(l.layers);
    moec_signature_close(l.signature);
    moec_cli_session_close(&l.s);
    return code;
}

const moec_cli_command moec_cmd_load = {
    .name = "load",
    .fn = load_command,
    .line = "one rank into memory, as a server would: bytes, time, checks",
    .usage = "load SRC --rank R --ep W [TOPOLOGY]\n"
             "load OUT --rank R",
    .about = "Loads one rank into memory through the library that servers "
             "use, and says what was read, how fast, and what was checked. A "
             "conversion by ranks must be what the options ask for; from an "
             "expert store any --ep and placement is gathered.",
    .examples = "load ./V3-ep32 --rank 3\n"
                "load ./DeepSeek-V3 --rank 3 --ep 32 --redundant 32 --json\n"
                "load s3://models/V3-ep32 --rank 3\n"
                "load ./V3-ep32 --rank 3 --require-signature pub.pem",
    .groups = groups,
    .min_paths = 1,
    .max_paths = 1,
    .url_paths = 1u,
};
