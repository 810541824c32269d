/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test: opens vector files, hands each case to the function of its
 * area and counts verdicts. Refuses: a directory without any vector file,
 * files of another format (V01).
 */
#include "selftest.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "safetensors.h"
#include "selftest_parts.h"

#define ROUTING_TENSORS   "routing.safetensors"
#define TENSORS_BYTES_MAX (UINT64_C(1) << 30)

/* ------------------------------------------------------------ verdicts */

MOEC_PRINTF(3, 0)
static void set_verdict(moec_self *s, moec_case_result result, const char *fmt,
                        va_list ap)
{
    if (s->result != MOEC_CASE_PASSED)
        return;
    s->result = result;
    (void)vsnprintf(s->text, sizeof(s->text), fmt, ap);
}

void moec_self_differs(moec_self *s, const moec_kernels *k, const char *fmt,
                       ...)
{
    va_list ap;

    if (s->result == MOEC_CASE_PASSED && k)
        s->backend =
            s->opts->device ? "device" : moec_isa_name(moec_kernels_isa(k));
    va_start(ap, fmt);
    set_verdict(s, MOEC_CASE_FAILED, fmt, ap);
    va_end(ap);
}

void moec_self_skip(moec_self *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set_verdict(s, MOEC_CASE_SKIPPED, fmt, ap);
    va_end(ap);
}

moec_status moec_self_refused(moec_self *s, const moec_kernels *k,
                              moec_status status, moec_error *got,
                              moec_error *err)
{
    if (status == MOEC_E_NOMEM)
        return moec_hand_on(err, status, got);
    if (status == MOEC_E_UNSUPPORTED)
        moec_self_skip(s, "not supported: %s", got->text);
    else
        moec_self_differs(s, k, "refused: %s", got->text);
    return MOEC_OK;
}

bool moec_self_same_ids(moec_self *s, const moec_kernels *k, const char *what,
                        const int32_t *got, const int32_t *want, uint32_t rows,
                        uint32_t cols)
{
    for (uint64_t i = 0; i < (uint64_t)rows * cols; i++) {
        if (got[i] == want[i])
            continue;
        moec_self_differs(s, k, "row %u, column %u: %s %d, must be %d",
                          (unsigned)(i / cols), (unsigned)(i % cols), what,
                          got[i], want[i]);
        return false;
    }
    return true;
}

/* Below the smallest normal float32 back ends flush, and formulas round to
 * multiples of it. */
#define WEIGHT_FLOOR 1.2e-38

bool moec_self_same_weights(moec_self *s, const moec_kernels *k,
                            const float *got, const double *want,
                            const int32_t *ids, uint32_t rows, uint32_t cols,
                            double tolerance)
{
    for (uint64_t i = 0; i < (uint64_t)rows * cols; i++) {
        double g = (double)got[i], w = ids[i] < 0 ? 0.0 : want[i];
        /* a small one is e to the power of a rounded difference */
        double least = w > 0.0 && w < 1.0 ? -log(w) * (double)FLT_EPSILON : 0.0;
        double room = fmax(tolerance, least) * fabs(w) + WEIGHT_FLOOR;

        if (ids[i] < 0 ? got[i] == 0.0f : fabs(g - w) <= room)
            continue;
        moec_self_differs(s, k, "row %u, column %u: weight %.9g, must be %.9g",
                          (unsigned)(i / cols), (unsigned)(i % cols), g, w);
        return false;
    }
    return true;
}

/* --------------------------------------------------------------- files */

/* One vector file: borrowed where it is built in, else of `buf`. */
typedef struct vector_file {
    const char *name;
    const char *data; /* NULL: not there */
    size_t bytes;
    moec_buf buf;
} vector_file;

static moec_status read_fd(vector_file *f, int fd, uint64_t max,
                           moec_error *err)
{
    struct stat st;

    if (fstat(fd, &st) != 0)
        return moec_fail_os(err, errno, "%s: cannot stat", f->name);
    if (!S_ISREG(st.st_mode))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: is no regular file", f->name);
    if ((uint64_t)st.st_size > max)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: has %ju bytes, more than the limit of %ju",
                         f->name, (uintmax_t)st.st_size, (uintmax_t)max);
    if (!moec_buf_reserve(&f->buf, (size_t)st.st_size + 1))
        return moec_fail_nomem(err, f->name);
    MOEC_TRY(
        moec_pread_full(fd, f->name, f->buf.data, (size_t)st.st_size, 0, err));
    f->data = f->buf.data;
    f->bytes = (size_t)st.st_size;
    return MOEC_OK;
}

/* Vectors lie where the user says, and links may lead out of there. */
static moec_status open_in_dir(vector_file *f, const char *dir, uint64_t max,
                               moec_error *err)
{
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    moec_status st = MOEC_OK;
    int fd;

    if (dirfd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                         "%s: no such directory", dir);
    if (dirfd < 0)
        return moec_fail_os(err, errno, "%s: cannot open the directory", dir);
    fd = openat(dirfd, f->name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0)
        st = read_fd(f, fd, max, err);
    else if (errno != ENOENT)
        st = moec_fail_os(err, errno, "%s: cannot open", f->name);
    if (fd >= 0)
        close(fd);
    close(dirfd);
    return st;
}

/* f->data stays NULL where there is no such file. */
static moec_status open_vectors(vector_file *f, const moec_selftest_opts *o,
                                const char *name, uint64_t max, moec_error *err)
{
    *f = (vector_file){.name = name};
    if (o->dir)
        return open_in_dir(f, o->dir, max, err);
    for (size_t i = 0; i < o->n_builtin; i++) {
        if (strcmp(o->builtin[i].name, name) != 0)
            continue;
        f->data = o->builtin[i].data;
        f->bytes = o->builtin[i].bytes;
    }
    return MOEC_OK;
}

static void close_vectors(vector_file *f)
{
    moec_buf_fini(&f->buf);
}

/* --------------------------------------------------------------- areas */

typedef struct area {
    const char *name, *file, *format;
    const char *lists[3]; /* members that are lists of cases */
    moec_self_fn fns[3];
} area;

static const area areas[] = {
    {"routing", "routing.json", "routing/1", {"cases"}, {moec_self_routing}},
    {"expert_choice",
     "expert_choice.json",
     "expert_choice/1",
     {"cases"},
     {moec_self_expert_choice}},
    {"dispatch",
     "dispatch.json",
     "dispatch/1",
     {"maps", "chains", "bad"},
     {moec_self_map, moec_self_chain, moec_self_bad_map}},
    {"waterfill",
     "waterfill.json",
     "waterfill/1",
     {"cases"},
     {moec_self_waterfill}},
    {"eplb", "eplb.json", "eplb/1", {"cases"}, {moec_self_eplb}},
};
#define N_AREAS (sizeof(areas) / sizeof(areas[0]))

static moec_status run_case(const area *a, moec_self_fn fn, moec_self *s,
                            const moec_json *c, moec_selftest_counts *counts,
                            moec_error *err)
{
    moec_arena arena = {0};
    moec_case said = {.area = a->name};
    moec_status st;

    MOEC_TRY(moec_json_want_object(c, err));
    MOEC_TRY(moec_json_get_string(c, "id", &said.id, err));
    s->arena = &arena;
    s->result = MOEC_CASE_PASSED;
    s->backend = NULL;
    s->text[0] = '\0';
    st = fn(s, c, err);
    moec_arena_fini(&arena);
    if (st != MOEC_OK)
        return st;
    said.result = s->result;
    said.backend = s->backend;
    said.text = s->text;
    switch (s->result) {
    case MOEC_CASE_PASSED:
        counts->passed++;
        break;
    case MOEC_CASE_FAILED:
        counts->failed++;
        break;
    case MOEC_CASE_SKIPPED:
        counts->skipped++;
        break;
    }
    if (s->opts->fn)
        s->opts->fn(s->opts->ctx, &said);
    return MOEC_OK;
}

static moec_status run_document(const area *a, moec_self *s, json_t *value,
                                moec_selftest_counts *counts, moec_error *err)
{
    const moec_json_doc doc = {.name = a->file,
                               .other = MOEC_RULE_V01,
                               .missing = MOEC_RULE_V01,
                               .integer = MOEC_RULE_V01,
                               .number = MOEC_RULE_V01,
                               .string = MOEC_RULE_V01};
    moec_json root = moec_json_root(value, &doc), format, list, c;
    const char *said;

    MOEC_TRY(moec_json_want_object(&root, err));
    format = moec_json_member(&root, "format");
    MOEC_TRY(moec_json_as_string(&format, &said, err));
    if (strcmp(said, a->format) != 0)
        return moec_json_fail(&format, MOEC_RULE_V01, err,
                              "is '%.32s', must be '%s'", said, a->format);
    s->root = &root;
    for (size_t i = 0; i < 3 && a->lists[i]; i++) {
        /* A file may have maps and no chains; the main list must be there. */
        if (i > 0 && !moec_json_has(&root, a->lists[i]))
            continue;
        MOEC_TRY(moec_json_get_array(&root, a->lists[i], &list, err));
        for (size_t n = 0; n < moec_json_len(&list); n++) {
            c = moec_json_item(&list, n);
            MOEC_TRY(run_case(a, a->fns[i], s, &c, counts, err));
        }
    }
    s->root = NULL;
    return MOEC_OK;
}

/* The tensors of routing, which must be there where routing.json is. */
static moec_status open_tensors(moec_header *header, moec_vec_tensors *out,
                                const vector_file *f, moec_error *err)
{
    if (!f->data)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                         "%s: is not there, but routing.json needs it",
                         f->name);
    MOEC_TRY(
        moec_header_parse(header, f->data, f->bytes, f->bytes, f->name, err));
    *out = (moec_vec_tensors){.name = f->name,
                              .data = (const uint8_t *)f->data,
                              .bytes = f->bytes,
                              .tensors = header->tensors,
                              .n_tensors = header->n_tensors};
    return MOEC_OK;
}

static moec_status run_area(const area *a, moec_self *s, bool *there,
                            moec_selftest_counts *counts, moec_error *err)
{
    vector_file file = {0}, tensors = {0};
    moec_header header = {0};
    moec_vec_tensors view = {0};
    json_t *value = NULL;
    moec_status st;

    st = open_vectors(&file, s->opts, a->file, MOEC_JSON_BYTES_MAX, err);
    if (st != MOEC_OK || !file.data)
        goto close_file;
    *there = true;
    st = moec_json_parse(file.data, file.bytes, a->file, MOEC_RULE_V01,
                         MOEC_RULE_V01, &value, err);
    if (st != MOEC_OK)
        goto close_file;
    if (a->fns[0] == moec_self_routing) {
        st = open_vectors(&tensors, s->opts, ROUTING_TENSORS, TENSORS_BYTES_MAX,
                          err);
        if (st == MOEC_OK)
            st = open_tensors(&header, &view, &tensors, err);
        if (st != MOEC_OK)
            goto close_tensors;
        s->tensors = &view;
    }
    st = run_document(a, s, value, counts, err);
    if (s->tensors)
        moec_header_fini(&header);
    s->tensors = NULL;
close_tensors:
    close_vectors(&tensors);
    json_decref(value);
close_file:
    close_vectors(&file);
    return st;
}

moec_status moec_selftest(const moec_selftest_opts *opts,
                          moec_selftest_counts *out, moec_error *err)
{
    moec_self s = {.opts = opts};
    moec_selftest_counts counts = {0};
    bool there = false;

    for (size_t i = 0; i < N_AREAS; i++)
        MOEC_TRY(run_area(&areas[i], &s, &there, &counts, err));
    if (!there)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                         "%s: has none of the vector files (routing.json, "
                         "expert_choice.json, dispatch.json, waterfill.json, "
                         "eplb.json)",
                         opts->dir ? opts->dir : "this program");
    *out = counts;
    return MOEC_OK;
}
