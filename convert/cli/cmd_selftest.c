/* SPDX-License-Identifier: Apache-2.0 */
/*
 * moe-convert selftest: this machine's kernels against reference vectors, on
 * every back end that the CPU has or on one, or on a CUDA device. Refuses: a
 * back end or device that is not here (exit 7), vector files that are malformed (exit 3).
 */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "memory_file.h"
#include "print.h"
#include "vectors_builtin.h"

static const moec_cli_opt own_opts[] = {
    {"vectors", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, vectors), "DIR",
     "vector files; those that are there are run", NULL,
     "built into the program", 0},
    {"device", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, device), "cpu|cuda",
     "where the kernels run", "cpu", NULL, 0},
    {"plugin", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, plugin), "PATH",
     "the plug-in of --device cuda", NULL,
     "beside the library, then where it is installed", 0},
    {"cpu", 0, MOEC_KIND_CHOICE, offsetof(moec_cli_args, cpu),
     "scalar|avx2|avx512", "one back end of the CPU", NULL,
     "every one that it has", 0},
};
static const moec_cli_group own = {"Self-test", own_opts, 4};
static const moec_cli_group *const groups[] = {&own, &moec_group_common, NULL};

enum { MAX_BACKENDS = 3 };

/* A run on its way to stdout. */
typedef struct run {
    const moec_cli *cli;
    moec_kernels *backends[MAX_BACKENDS];
    size_t n_backends;
    moec_device *device; /* NULL: the CPU */
    moec_selftest_counts counts;
    /* The document begins with "ok", which the last case decides: rows of
     * --json wait in memory. */
    FILE *rows;
    char *text;
    size_t bytes;
    moec_cli_json j; /* over `rows`, as deep as they will stand */
} run;

enum { ROWS_DEPTH = 2 }; /* of an array in the document */

static const char *result_name(moec_case_result result)
{
    switch (result) {
    case MOEC_CASE_PASSED:
        return "passed";
    case MOEC_CASE_FAILED:
        return "failed";
    case MOEC_CASE_SKIPPED:
        break;
    }
    return "skipped";
}

static void print_case(const run *r, const moec_case *c)
{
    if (c->result == MOEC_CASE_PASSED) {
        if (r->cli->args.verbose > 0)
            moec_cli_line(stdout, "passed   %s %s", c->area, c->id);
        return;
    }
    moec_cli_line(stdout, "%-7s  %s %s%s%s%s: %s",
                  c->result == MOEC_CASE_FAILED ? "FAILED" : "skipped", c->area,
                  c->id, c->backend != NULL ? " (" : "",
                  c->backend != NULL ? c->backend : "",
                  c->backend != NULL ? ")" : "", c->text);
}

static void json_case(run *r, const moec_case *c)
{
    moec_cli_json_object_row(&r->j, NULL);
    moec_cli_json_str(&r->j, "area", c->area);
    moec_cli_json_str(&r->j, "id", c->id);
    moec_cli_json_str(&r->j, "result", result_name(c->result));
    if (c->result != MOEC_CASE_PASSED) {
        moec_cli_json_str(&r->j, "backend", c->backend);
        moec_cli_json_str(&r->j, "message", c->text);
    }
    moec_cli_json_end(&r->j);
}

static void tell_case(void *ctx, const moec_case *c)
{
    run *r = ctx;
    if (r->rows != NULL)
        json_case(r, c);
    else
        print_case(r, c);
}

/* ------------------------------------------------------------ back ends */

static moec_status open_backend(run *r, moec_isa isa, moec_error *err)
{
    moec_kernels_opts opts = MOEC_KERNELS_OPTS_INIT;
    opts.isa = isa;
    opts.n_threads = r->cli->args.threads;
    moec_status st = moec_kernels_open(&r->backends[r->n_backends], &opts, err);
    if (st == MOEC_OK)
        r->n_backends++;
    return st;
}

/* The device, and the scalar back end that makes its routers. */
static moec_status open_cuda(run *r, moec_error *err)
{
    moec_device_opts opts = MOEC_DEVICE_OPTS_INIT;
    opts.plugin = r->cli->args.plugin;
    moec_status st = moec_device_open(&r->device, &opts, err);
    if (st == MOEC_OK)
        st = open_backend(r, MOEC_ISA_SCALAR, err);
    return st;
}

/* The chosen one, or every one that this CPU has. */
static moec_status open_backends(run *r, moec_error *err)
{
    static const moec_isa all[] = {MOEC_ISA_SCALAR, MOEC_ISA_AVX2,
                                   MOEC_ISA_AVX512};
    uint32_t chosen = r->cli->args.cpu;
    if (r->cli->args.device == MOEC_CHOICE_DEVICE_CUDA)
        return open_cuda(r, err);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        moec_error e = MOEC_ERROR_INIT;
        if (chosen != 0 && chosen != i + 1)
            continue;
        moec_status st = open_backend(r, all[i], &e);
        if (st == MOEC_OK || (st == MOEC_E_UNSUPPORTED && chosen == 0))
            continue;
        *err = e;
        /* Not wrong, but not on this machine. */
        if (st == MOEC_E_UNSUPPORTED)
            err->status = MOEC_E_NO_DEVICE;
        return err->status;
    }
    return MOEC_OK;
}

static void close_run(run *r)
{
    for (size_t i = 0; i < r->n_backends; i++)
        moec_kernels_close(r->backends[i]);
    moec_device_close(r->device);
    if (r->rows != NULL)
        (void)fclose(r->rows);
    free(r->text);
}

/* ------------------------------------------------------------- answers */

static bool is_ok(const run *r)
{
    return r->counts.failed == 0 &&
           (!r->cli->args.strict || r->counts.skipped == 0);
}

static void tell_json(run *r)
{
    moec_cli_json j;
    moec_cli_json_begin(&j, r->cli, is_ok(r));
    moec_cli_json_str(&j, "vectors", r->cli->args.vectors);
    moec_cli_json_str(&j, "cpu_features", moec_cpu_features());
    if (r->device != NULL)
        moec_cli_json_str(&j, "device", moec_device_name(r->device));
    moec_cli_json_array_row(&j, "backends");
    if (r->device != NULL)
        moec_cli_json_str(&j, NULL, "cuda");
    for (size_t i = 0; r->device == NULL && i < r->n_backends; i++)
        moec_cli_json_str(&j, NULL,
                          moec_isa_name(moec_kernels_isa(r->backends[i])));
    moec_cli_json_end(&j);
    moec_cli_json_f64(&j, "weight_tolerance", MOEC_SELFTEST_TOLERANCE);
    moec_cli_json_u64(&j, "passed", r->counts.passed);
    moec_cli_json_u64(&j, "failed", r->counts.failed);
    moec_cli_json_u64(&j, "skipped", r->counts.skipped);
    moec_cli_json_array(&j, "cases");
    (void)fwrite(r->text, 1, r->bytes, stdout);
    j.filled[j.depth] = r->bytes > 0;
    moec_cli_json_end(&j);
    moec_cli_json_finish(&j);
}

static void tell_text(const run *r)
{
    if (r->device != NULL && !r->cli->args.quiet) {
        moec_cli_line(stdout,
                      "device %s; ids exact, weights within %g relative",
                      moec_device_name(r->device), MOEC_SELFTEST_TOLERANCE);
    } else if (!r->cli->args.quiet) {
        char list[64] = "";
        for (size_t i = 0; i < r->n_backends; i++) {
            size_t at = strlen(list);
            (void)snprintf(list + at, sizeof(list) - at, "%s%s",
                           i > 0 ? ", " : "",
                           moec_isa_name(moec_kernels_isa(r->backends[i])));
        }
        moec_cli_line(stdout,
                      "back ends %s; ids exact, weights within %g relative",
                      list, MOEC_SELFTEST_TOLERANCE);
    }
    moec_cli_line(stdout, "%ju passed, %ju failed, %ju skipped",
                  (uintmax_t)r->counts.passed, (uintmax_t)r->counts.failed,
                  (uintmax_t)r->counts.skipped);
}

static moec_status run_all(run *r, moec_error *err)
{
    moec_vector_file builtin[MOEC_N_BUILTIN_VECTORS];
    moec_builtin_vectors(builtin);
    const moec_selftest_opts opts = {.dir = r->cli->args.vectors,
                                     .builtin = builtin,
                                     .n_builtin = MOEC_N_BUILTIN_VECTORS,
                                     .backends = r->backends,
                                     .n_backends = r->n_backends,
                                     .device = r->device,
                                     .fn = tell_case,
                                     .ctx = r};
    moec_status st = moec_selftest(&opts, &r->counts, err);
    if (st == MOEC_OK && r->rows != NULL && fflush(r->rows) != 0)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the document");
    return st;
}

static int selftest(moec_cli *cli)
{
    run r = {.cli = cli};
    moec_error err = MOEC_ERROR_INIT;
    if (cli->args.device == MOEC_CHOICE_DEVICE_CUDA && cli->args.cpu != 0)
        return moec_cli_usage(cli, "--cpu is for --device cpu");
    if (cli->args.device != MOEC_CHOICE_DEVICE_CUDA && cli->args.plugin != NULL)
        return moec_cli_usage(cli, "--plugin is for --device cuda");
    moec_status st = open_backends(&r, &err);
    if (st == MOEC_OK && cli->args.json) {
        r.rows = moec_cli_memory_file(&r.text, &r.bytes);
        r.j = (moec_cli_json){.f = r.rows, .depth = ROWS_DEPTH};
        if (r.rows == NULL)
            st = moec_cli_error(&err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                                "no memory for the document");
    }
    if (st == MOEC_OK)
        st = run_all(&r, &err);
    int code = is_ok(&r) ? MOEC_EXIT_OK : MOEC_EXIT_FOUND;
    if (st != MOEC_OK)
        code = moec_cli_fail(cli, st, &err);
    else if (cli->args.json)
        tell_json(&r);
    else
        tell_text(&r);
    close_run(&r);
    return code;
}

const moec_cli_command moec_cmd_selftest = {
    .name = "selftest",
    .fn = selftest,
    .line = "this machine's kernels against reference vectors",
    .usage = "selftest [--vectors DIR] [--device cpu|cuda] [--cpu ISA]",
    .about = "Runs routing, Expert Choice, dispatch, waterfill and EPLB on "
             "inputs whose answers other implementations gave: a check of a "
             "new CPU, GPU or compiler. Ids must be equal, weights within "
             "1e-6 relative of a float64 reference. A case counts once; it "
             "passes where every back end that runs it agrees. Cases that "
             "differ are named (exit 1), and so are those that cannot be run.",
    .examples = "selftest\n"
                "selftest --cpu scalar\n"
                "selftest --vectors fixtures/vectors --json",
    .groups = groups,
    .min_paths = 0,
    .max_paths = 0,
};
