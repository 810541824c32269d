/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moec_verify over small conversions: clean ones are clean, with the source
 * and without; every kind of damage is a finding of its rule at its place.
 */

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "conversion.h"
#include "convert.h"
#include "plan_fixture.h"

/* ------------------------------------------------------------ directories */

typedef struct place {
    char root[64];
    char out[96]; /* the conversion */
    char src[96]; /* a copy of the source, where one is made */
} place;

static place make_place(void)
{
    place p;

    snprintf(p.root, sizeof(p.root), "/tmp/moec-verify-XXXXXX");
    assert_non_null(mkdtemp(p.root));
    snprintf(p.out, sizeof(p.out), "%s/out", p.root);
    snprintf(p.src, sizeof(p.src), "%s/src", p.root);
    return p;
}

static void remove_files(const char *dir)
{
    DIR *d = opendir(dir);
    const struct dirent *e;

    if (d == NULL)
        return;
    while ((e = readdir(d)) != NULL)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    rmdir(dir);
}

static void remove_place(place *p)
{
    remove_files(p->out);
    remove_files(p->src);
    assert_int_equal(rmdir(p->root), 0);
}

static void copy_file(const char *from, const char *to)
{
    char buf[65536];
    int a = open(from, O_RDONLY), b = open(to, O_WRONLY | O_CREAT, 0666);
    ssize_t n;

    assert_true(a >= 0 && b >= 0);
    while ((n = read(a, buf, sizeof(buf))) > 0)
        assert_int_equal(write(b, buf, (size_t)n), n);
    close(a);
    close(b);
}

/* Change one byte of a file. */
static void flip(const char *dir, const char *name, uint64_t off)
{
    char path[512];
    unsigned char c;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &c, 1, (off_t)off), 1);
    c ^= 0x40;
    assert_int_equal(pwrite(fd, &c, 1, (off_t)off), 1);
    close(fd);
}

static void cut_file(const char *dir, const char *name, uint64_t bytes)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(truncate(path, (off_t)bytes), 0);
}

static void remove_file(const char *dir, const char *name)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(unlink(path), 0);
}

/* Replace `from` by `to`, which is as long, once, in a text file. */
static void edit(const char *dir, const char *name, const char *from,
                 const char *to)
{
    char path[512];
    char *text, *at;
    struct stat st;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    text = calloc(1, (size_t)st.st_size + 1);
    assert_int_equal(pread(fd, text, (size_t)st.st_size, 0), st.st_size);
    at = strstr(text, from);
    if (at == NULL)
        fail_msg("'%s' is not in %s", from, name);
    assert_int_equal(strlen(from), strlen(to));
    assert_int_equal(pwrite(fd, to, strlen(to), (off_t)(at - text)),
                     strlen(to));
    free(text);
    close(fd);
}

/* -------------------------------------------------------- convert, verify */

/* Conversions are made once and copied: a conversion waits for the disk. */
static struct made {
    const char *fixture;
    moec_plan_opts opts;
    place p;
} made[32];
static size_t n_made;

static void copy_files(const char *from, const char *to)
{
    char a[1024], b[1024];
    const struct dirent *e;
    DIR *d = opendir(from);

    assert_non_null(d);
    assert_int_equal(mkdir(to, 0777), 0);
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(a, sizeof(a), "%s/%s", from, e->d_name);
        snprintf(b, sizeof(b), "%s/%s", to, e->d_name);
        copy_file(a, b);
    }
    closedir(d);
}

static void copy_source(const place *p, const char *fixture)
{
    char dir[512];

    plan_fixture_path(dir, sizeof(dir), fixture);
    copy_files(dir, p->src);
}

static plan_fixture convert(const place *p, const char *fixture,
                            const moec_plan_opts *opts)
{
    plan_fixture x = plan_fixture_open(fixture, opts);
    moec_convert_opts o = {.n_threads = 1};
    moec_convert_stats stats;
    moec_error err = MOEC_ERROR_INIT;

    for (size_t i = 0; i < n_made; i++)
        if (strcmp(made[i].fixture, fixture) == 0 &&
            memcmp(&made[i].opts, opts, sizeof(*opts)) == 0) {
            copy_files(made[i].p.out, p->out);
            return x;
        }
    if (moec_convert(x.layout, p->out, &o, &stats, &err) != MOEC_OK)
        fail_msg("%s: %s", fixture, err.text);
    if (n_made < sizeof(made) / sizeof(*made) && opts->placement == NULL) {
        struct made *m = &made[n_made++];
        m->fixture = fixture;
        m->opts = *opts;
        m->p = make_place();
        copy_files(p->out, m->p.out);
    }
    return x;
}

static int remove_made(void **state)
{
    (void)state;
    while (n_made > 0)
        remove_place(&made[--n_made].p);
    return 0;
}

static moec_report *verify(const place *p, const moec_ckpt *source)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;

    o.n_threads = 2;
    o.source = source;
    if (moec_verify(&r, p->out, &o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return r;
}

static const moec_finding *find_rule(const moec_report *r, moec_rule rule)
{
    for (size_t i = 0; i < moec_report_n_findings(r); i++)
        if (moec_report_finding(r, i)->rule == rule)
            return moec_report_finding(r, i);
    return NULL;
}

static const moec_finding *expect(const moec_report *r, moec_rule rule)
{
    const moec_finding *f = find_rule(r, rule);

    assert_false(moec_report_ok(r));
    if (f == NULL)
        fail_msg("no %s; first of %zu: %s", moec_rule_describe(rule)->id,
                 moec_report_n_findings(r),
                 moec_report_n_findings(r) == 0
                     ? "-"
                     : moec_report_finding(r, 0)->message);
    return f;
}

static void assert_clean(const moec_report *r, const char *what)
{
    if (moec_report_n_findings(r) != 0)
        fail_msg("%s: %s %s", what,
                 moec_rule_describe(moec_report_finding(r, 0)->rule)->id,
                 moec_report_finding(r, 0)->message);
    for (size_t t = 0; t < 6; t++) {
        assert_int_equal(moec_report_theorem(r, t)->ran, 1);
        assert_int_equal(moec_report_theorem(r, t)->ok, 1);
        assert_true(moec_report_theorem(r, t)->checked > 0);
    }
}

/* A conversion of deepseek_v3: MTP, shared expert, replicas, fillers none. */
static plan_fixture deepseek(const place *p)
{
    moec_plan_opts o = plan_fixture_opts();

    return convert(p, "deepseek_v3", &o);
}

/* File, and offset of row `row`, of slot tensor 0 of the first layer. */
static const moec_out_file *slot_at(const plan_fixture *x, uint32_t rank,
                                    size_t t, uint32_t row, uint64_t *off)
{
    size_t file;

    moec_layout_find_slots(x->layout, rank, 0, t, &file, off);
    *off += row * moec_plan_slot_tensor(x->plan, 0, t)->slot_bytes;
    return moec_layout_file(x->layout, file);
}

/* ------------------------------------------------------------------ tests */

static void clean_conversions_are_clean(void **state)
{
    (void)state;
    for (size_t i = 0; i < PLAN_FIXTURES; i++) {
        moec_plan_opts o = plan_fixture_opts();
        place p = make_place();
        plan_fixture x = convert(&p, plan_fixture_names[i], &o);
        moec_report *r = verify(&p, NULL);

        assert_clean(r, plan_fixture_names[i]);
        assert_non_null(moec_report_theorem(r, 2)->note);
        assert_non_null(moec_report_theorem(r, 5)->note);
        moec_report_destroy(r);
        r = verify(&p, x.ckpt);
        assert_clean(r, plan_fixture_names[i]);
        assert_null(moec_report_theorem(r, 2)->note);
        assert_null(moec_report_theorem(r, 5)->note);
        moec_report_destroy(r);
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

static void clean_in_other_topologies(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        moec_plan_opts o = plan_fixture_opts();
        place p = make_place();
        plan_fixture x;
        moec_report *r;

        o.n_ranks = i == 0 ? 5 : 3; /* 18 slots; 5 do not divide them */
        o.allow_empty = i == 0;
        o.no_mtp = i == 1;
        o.shared_store_common = i == 2;
        o.shared = i == 3 ? MOEC_SHARED_SLOTS_OFF : MOEC_SHARED_SLOTS_GLOBAL;
        o.by_expert = i == 4;
        o.n_redundant = i == 4 ? 0 : 2;
        o.w13_order = MOEC_W13_UP_GATE;
        x = convert(&p, "deepseek_v3", &o);
        r = verify(&p, NULL);
        if (!moec_report_ok(r))
            fail_msg("%d: %s", i, moec_report_finding(r, 0)->message);
        moec_report_destroy(r);
        r = verify(&p, x.ckpt);
        if (!moec_report_ok(r))
            fail_msg("%d: %s", i, moec_report_finding(r, 0)->message);
        moec_report_destroy(r);
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

/* An explicit placement with an expert moved, read back from the manifest. */
static void clean_with_an_explicit_placement(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_placement *placement = NULL;
    moec_error err = MOEC_ERROR_INIT;
    place p = make_place();
    int32_t rows[3][9];
    plan_fixture x;
    moec_report *r;

    (void)state;
    for (int l = 0; l < 3; l++)
        for (int i = 0; i < 9; i++)
            rows[l][i] = (i * 3 + l) % 8;
    assert_int_equal(
        moec_placement_from_rows(&placement, 3, 8, 9, rows[0], &err), MOEC_OK);
    o.placement = placement;
    o.n_redundant = 0;
    o.allow_empty = 1;
    x = convert(&p, "mixtral", &o);
    moec_placement_destroy(placement);
    r = verify(&p, x.ckpt);
    if (!moec_report_ok(r))
        fail_msg("%s", moec_report_finding(r, 0)->message);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

static void a_damaged_slot_is_named(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    const moec_out_file *file;
    const moec_finding *f;
    moec_report *r;
    uint64_t off;

    (void)state;
    file = slot_at(&x, 1, 1, 3, &off);
    flip(p.out, file->name, off + 77);
    r = verify(&p, NULL);
    f = expect(r, MOEC_RULE_T3);
    assert_int_equal(f->has, MOEC_HAS_FILE | MOEC_HAS_TENSOR | MOEC_HAS_OFFSET |
                                 MOEC_HAS_LAYER | MOEC_HAS_RANK |
                                 MOEC_HAS_SLOT | MOEC_HAS_EXPERT |
                                 MOEC_HAS_EXPECTED | MOEC_HAS_FOUND);
    assert_string_equal(f->file, file->name);
    assert_string_equal(f->tensor, "model.layers.1.mlp.experts.w2_weight");
    assert_int_equal(f->offset, off); /* of the leaf */
    assert_int_equal(f->layer.number, 1);
    assert_int_equal(f->rank, 1);
    assert_int_equal(f->slot, 3);
    assert_int_equal(f->expert, 12); /* physical 9 + 3 */
    assert_int_equal(strlen(f->expected), 64);
    assert_string_not_equal(f->expected, f->found);
    assert_int_equal(moec_report_theorem(r, 2)->ok, 0);
    assert_int_equal(moec_report_theorem(r, 0)->ok, 1);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

static void what_a_damaged_slot_takes_back_is_t6(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    const moec_out_file *file;
    const moec_finding *f;
    moec_report *r;
    uint64_t off;

    (void)state;
    file = slot_at(&x, 0, 1, 3, &off);
    flip(p.out, file->name, off + 77);
    r = verify(&p, x.ckpt);
    f = expect(r, MOEC_RULE_T6);
    assert_string_equal(f->tensor,
                        "model.layers.1.mlp.experts.3.down_proj.weight");
    assert_int_equal(
        f->offset,
        moec_ckpt_tensor(x.ckpt, moec_ckpt_find(x.ckpt, f->tensor))->off + 77);
    moec_report_destroy(r);
    r = verify(&p, NULL);
    f = expect(r, MOEC_RULE_T6);
    assert_int_equal(f->slot, 3);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

/* The second replica of expert 0 holds expert 1: the first, and with it the
 * way back, is whole. */
static void a_stale_replica_is_t3(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    uint64_t from, to, n = moec_plan_slot_tensor(x.plan, 0, 0)->slot_bytes;
    const moec_out_file *a = slot_at(&x, 0, 0, 1, &from);
    const moec_out_file *b = slot_at(&x, 1, 0, 7, &to);
    const moec_finding *f;
    unsigned char *buf = malloc((size_t)n);
    char path[512];
    moec_report *r;
    int fd;

    (void)state;
    snprintf(path, sizeof(path), "%s/%s", p.out, a->name);
    fd = open(path, O_RDONLY);
    assert_int_equal(pread(fd, buf, (size_t)n, (off_t)from), n);
    close(fd);
    snprintf(path, sizeof(path), "%s/%s", p.out, b->name);
    fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, buf, (size_t)n, (off_t)to), n);
    close(fd);
    free(buf);
    r = verify(&p, x.ckpt);
    f = expect(r, MOEC_RULE_T3);
    assert_int_equal(f->rank, 1);
    assert_int_equal(f->slot, 7);
    assert_int_equal(f->expert, 0);
    assert_null(find_rule(r, MOEC_RULE_T6));
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

static void swapped_rank_files_are_found(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    char a[512], b[512], t[512];
    moec_report *r;
    uint64_t off;

    (void)state;
    snprintf(a, sizeof(a), "%s/%s", p.out, slot_at(&x, 0, 0, 0, &off)->name);
    snprintf(b, sizeof(b), "%s/%s", p.out, slot_at(&x, 1, 0, 0, &off)->name);
    snprintf(t, sizeof(t), "%s/t", p.out);
    assert_int_equal(rename(a, t) | rename(b, a) | rename(t, b), 0);
    r = verify(&p, NULL);
    expect(r, MOEC_RULE_T3);
    expect(r, MOEC_RULE_M06);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

/* ------------------------------------------------ damage by file and rule */

static const char *common_file(const plan_fixture *x)
{
    return moec_layout_file(x->layout, moec_layout_n_files(x->layout) - 1)
        ->name;
}

static const char *rank_file(const plan_fixture *x)
{
    return moec_layout_file(x->layout, 0)->name;
}

static void damage_common(const place *p, const plan_fixture *x)
{
    const moec_out_file *f =
        moec_layout_file(x->layout, moec_layout_n_files(x->layout) - 1);

    flip(p->out, f->name, f->tensors[2].off + 5);
}

static void damage_filler(const place *p, const plan_fixture *x)
{
    const moec_out_file *f = moec_layout_file(x->layout, 0);

    for (size_t i = 0; i < f->n_tensors; i++)
        if (f->tensors[i].kind == MOEC_OUT_PAD) {
            flip(p->out, f->name, f->tensors[i].off + 1);
            return;
        }
    fail_msg("no filler");
}

static void damage_empty_slot(const place *p, const plan_fixture *x)
{
    moec_topology t = moec_plan_topology(x->plan);
    const moec_out_file *f;
    uint64_t off;

    f = slot_at(x, t.n_ranks - 1, 0, t.n_local - 1, &off);
    flip(p->out, f->name, off + 9);
}

static void damage_header(const place *p, const plan_fixture *x)
{
    flip(p->out, rank_file(x), 20);
}

static void cut_rank_file(const place *p, const plan_fixture *x)
{
    cut_file(p->out, rank_file(x), moec_layout_file(x->layout, 0)->bytes - 1);
}

static void remove_rank_file(const place *p, const plan_fixture *x)
{
    remove_file(p->out, rank_file(x));
}

static void directory_for_rank_file(const place *p, const plan_fixture *x)
{
    char path[512], target[512];

    remove_file(p->out, rank_file(x));
    snprintf(path, sizeof(path), "%s/%s", p->out, rank_file(x));
    snprintf(target, sizeof(target), "../elsewhere");
    assert_int_equal(symlink(target, path), 0);
}

static void add_rank_file(const place *p, const plan_fixture *x)
{
    char a[512], b[512];

    snprintf(a, sizeof(a), "%s/%s", p->out, rank_file(x));
    snprintf(b, sizeof(b),
             "%s/experts-rank-00002-of-00002-part-00001.safetensors", p->out);
    copy_file(a, b);
}

static void change_config(const place *p, const plan_fixture *x)
{
    (void)x;
    edit(p->out, "config.json", "2", "3");
}

static void remove_config(const place *p, const plan_fixture *x)
{
    (void)x;
    remove_file(p->out, "config.json");
}

static void change_copied_file(const place *p, const plan_fixture *x)
{
    (void)x;
    flip(p->out, "fixture.json", 3);
}

static void remove_copied_file(const place *p, const plan_fixture *x)
{
    (void)x;
    remove_file(p->out, "fixture.json");
}

static void damage_sources(const place *p, const plan_fixture *x)
{
    (void)x;
    flip(p->out, "sources.bin", 100);
}

static void change_index(const place *p, const plan_fixture *x)
{
    (void)x;
    edit(p->out, "model.safetensors.index.json", "common-00001",
         "common-00002");
}

static void remove_index(const place *p, const plan_fixture *x)
{
    (void)x;
    remove_file(p->out, "model.safetensors.index.json");
}

static void change_manifest_number(const place *p, const plan_fixture *x)
{
    (void)x;
    edit(p->out, "manifest.json", "\"top_k\": 4", "\"top_k\": 3");
}

static void remove_common_file(const place *p, const plan_fixture *x)
{
    remove_file(p->out, common_file(x));
}

static const struct damage {
    const char *name;
    void (*make)(const place *p, const plan_fixture *x);
    moec_rule rule;
} damages[] = {
#define ROW(make, rule)                                                        \
  {                                                                            \
#    make, make, MOEC_RULE_##rule                                              \
  }
    ROW(damage_common, M07),      ROW(damage_filler, M07),
    ROW(damage_empty_slot, T3),   ROW(damage_header, M06),
    ROW(cut_rank_file, M05),      ROW(remove_rank_file, M05),
    ROW(remove_rank_file, T6),    ROW(directory_for_rank_file, M05),
    ROW(add_rank_file, M05),      ROW(remove_common_file, M05),
    ROW(change_config, M08),      ROW(remove_config, M08),
    ROW(change_copied_file, M08), ROW(remove_copied_file, M08),
    ROW(damage_sources, M04),     ROW(change_index, I08),
    ROW(remove_index, I08),       ROW(change_manifest_number, M01),
#undef ROW
};

/* 18 slots on 5 ranks: 2 empty ones, so every sort of row is there. */
static void each_damage_is_named_by_its_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(damages) / sizeof(*damages); i++) {
        moec_plan_opts o = plan_fixture_opts();
        place p = make_place();
        plan_fixture x;
        moec_report *r;

        o.n_ranks = 5;
        o.allow_empty = 1;
        o.shared = MOEC_SHARED_SLOTS_OFF; /* 4 slots of 4 KiB: no filler */
        x = convert(&p, i == 1 ? "deepseek_v3_fp8" : "deepseek_v3", &o);
        damages[i].make(&p, &x);
        r = verify(&p, NULL);
        if (find_rule(r, damages[i].rule) == NULL)
            fail_msg("%s: %zu findings, first: %s", damages[i].name,
                     moec_report_n_findings(r),
                     moec_report_n_findings(r) == 0
                         ? "-"
                         : moec_report_finding(r, 0)->message);
        assert_false(moec_report_ok(r));
        moec_report_destroy(r);
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

static void an_unreadable_manifest_is_an_error(void **state)
{
    static const char *const names[] = {"manifest.json", "slots.bin"};
    static const moec_rule rules[] = {MOEC_RULE_M01, MOEC_RULE_M03};

    (void)state;
    for (int i = 0; i < 4; i++) {
        place p = make_place();
        plan_fixture x = deepseek(&p);
        moec_error err = MOEC_ERROR_INIT;
        moec_report *r = NULL;

        if (i < 2)
            cut_file(p.out, names[i], 100);
        else
            remove_file(p.out, names[i - 2]);
        assert_int_equal(moec_verify(&r, p.out, NULL, &err), MOEC_E_FORMAT);
        assert_int_equal(err.rule, rules[i % 2]);
        assert_null(r);
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

/* ------------------------------------------------------------- the source */

static moec_report *verify_against_copy(const place *p)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *source = NULL;
    moec_report *r;

    if (moec_ckpt_open(&source, p->src, NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    r = verify(p, source);
    moec_ckpt_close(source);
    return r;
}

/* Same headers, one other weight: no header tells, the bytes do. */
static void a_source_with_one_other_byte_is_found(void **state)
{
    static const char *const names[] = {
        "model.layers.1.mlp.experts.7.up_proj.weight", "lm_head.weight"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        place p = make_place();
        plan_fixture x = deepseek(&p);
        const moec_tensor *t =
            moec_ckpt_tensor(x.ckpt, moec_ckpt_find(x.ckpt, names[i]));
        const moec_finding *f;
        moec_report *r;

        copy_source(&p, "deepseek_v3");
        flip(p.src, moec_ckpt_file(x.ckpt, t->file)->name, t->off + 10);
        r = verify_against_copy(&p);
        f = expect(r, MOEC_RULE_T3);
        if (i == 0)
            assert_int_equal(f->expert, 7);
        assert_string_not_equal(f->expected, f->found);
        f = expect(r, MOEC_RULE_T6);
        assert_string_equal(f->tensor, names[i]);
        assert_int_equal(f->offset, t->off + 10);
        moec_report_destroy(r);
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

static void another_source_is_said_to_be_another(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    plan_fixture y;
    moec_plan_opts o = plan_fixture_opts();
    const moec_finding *f;
    moec_report *r;

    (void)state;
    y = plan_fixture_open("deepseek_v2", &o);
    r = verify(&p, y.ckpt);
    f = expect(r, MOEC_RULE_T3);
    assert_non_null(strstr(f->message, "another source"));
    assert_int_equal(moec_report_n_findings(r), 1);
    assert_int_equal(moec_report_theorem(r, 5)->ok, 1);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    plan_fixture_close(&y);
    remove_place(&p);
}

/* --------------------------------------------------------- the conversion */

static void a_conversion_opens_to_the_layout_that_made_it(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    moec_error err = MOEC_ERROR_INIT;
    moec_conversion *c = NULL;
    const moec_layout *l;

    (void)state;
    assert_int_equal(moec_conversion_open(&c, p.out, NULL, &err), MOEC_OK);
    l = moec_conversion_layout(c);
    assert_int_equal(moec_layout_n_files(l), moec_layout_n_files(x.layout));
    for (size_t i = 0; i < moec_layout_n_files(l); i++) {
        const moec_out_file *a = moec_layout_file(l, i);
        const moec_out_file *b = moec_layout_file(x.layout, i);
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->bytes, b->bytes);
        assert_int_equal(a->n_tensors, b->n_tensors);
    }
    moec_conversion_close(c);
    moec_conversion_close(NULL);
    plan_fixture_close(&x);
    remove_place(&p);
}

/* Each a number or word that the manifest's own checks cannot doubt. */
static void a_manifest_that_disagrees_is_refused_by_key(void **state)
{
    static const struct {
        const char *from, *to, *key;
    } rows[] = {
        {"\"top_k\": 4", "\"top_k\": 3", "top_k"},
        {"\"hidden_size\": 64", "\"hidden_size\": 65", "hidden_size"},
        {"\"redundant\": 2", "\"redundant\": 3", "physical_slots"},
        {"\"w13_order\": \"gate-up\"", "\"w13_order\": \"up-gate\"", NULL},
        {"\"score\": \"sigmoid", "\"score\": \"sigmoix", "score"},
        {"\"norm_topk_prob\": true", "\"norm_topk_prob\":false", "norm_topk"},
        {"\"routed_scaling_factor\": 2.5", "\"routed_scaling_factor\": 2.4",
         "routed_scaling_factor"},
        {"\"source_number\": 2", "\"source_number\": 5", "layers"},
        {"\"sha256\": \"", "\"sha256\": \"", NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        place p = make_place();
        plan_fixture x = deepseek(&p);
        moec_error err = MOEC_ERROR_INIT;
        moec_conversion *c = NULL;
        moec_status st;

        edit(p.out, "manifest.json", rows[i].from, rows[i].to);
        st = moec_conversion_open(&c, p.out, NULL, &err);
        if (rows[i].key == NULL) { /* bytes tell, not numbers: verify's part */
            assert_int_equal(st, MOEC_OK);
            moec_conversion_close(c);
        } else {
            if (st != MOEC_E_FORMAT)
                fail_msg("%s: %d %s", rows[i].from, st, err.text);
            assert_int_equal(err.rule, MOEC_RULE_M01);
            assert_non_null(strstr(err.text, rows[i].key));
            assert_null(c);
        }
        plan_fixture_close(&x);
        remove_place(&p);
    }
}

/* The order of gate and up is in no header: only the source shows it. */
static void a_wrong_recorded_order_is_found_with_the_source(void **state)
{
    place p = make_place();
    plan_fixture x = deepseek(&p);
    moec_report *r;

    (void)state;
    edit(p.out, "manifest.json", "\"gate-up\"", "\"up-gate\"");
    r = verify(&p, x.ckpt);
    expect(r, MOEC_RULE_T3);
    expect(r, MOEC_RULE_T6);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

/* ------------------------------------------------------- stops and limits */

typedef struct told {
    int calls, stop;
    uint64_t done, total;
} told;

static int hear(void *ctx, uint64_t done, uint64_t total)
{
    told *t = ctx;

    assert_true(done >= t->done && done <= total);
    t->calls++;
    t->done = done;
    t->total = total;
    return t->stop;
}

static void progress_ends_with_all_done(void **state)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    place p = make_place();
    plan_fixture x = deepseek(&p);
    moec_report *r = NULL;
    told t = {0};

    (void)state;
    o.progress = hear;
    o.progress_ctx = &t;
    o.source = x.ckpt;
    assert_int_equal(moec_verify(&r, p.out, &o, &err), MOEC_OK);
    assert_true(t.calls >= 2);
    assert_true(t.total > 0 && t.done == t.total);
    moec_report_destroy(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

static void stops_when_asked_to(void **state)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    place p = make_place();
    plan_fixture x = deepseek(&p);
    moec_report *r = NULL;
    told t = {.stop = 1};

    (void)state;
    o.progress = hear;
    o.progress_ctx = &t;
    assert_int_equal(moec_verify(&r, p.out, &o, &err), MOEC_E_CANCELLED);
    assert_int_equal(t.calls, 1);
    assert_null(r);
    plan_fixture_close(&x);
    remove_place(&p);
}

static void survives_failing_allocations(void **state)
{
    moec_plan_opts o = plan_fixture_opts();
    moec_verify_opts v = MOEC_VERIFY_OPTS_INIT;
    place p = make_place();
    plan_fixture x = convert(&p, "gpt_oss", &o);
    moec_status st = MOEC_E_NOMEM;

    (void)state;
    v.n_threads = 1;
    v.source = x.ckpt;
    for (uint64_t n = 1; st == MOEC_E_NOMEM; n += 1 + n / 24) {
        moec_error err = MOEC_ERROR_INIT;
        moec_report *r = NULL;

        moec_alloc_fail_at(n);
        st = moec_verify(&r, p.out, &v, &err);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK) {
            assert_null(r);
            continue;
        }
        assert_clean(r, "after the last allocation");
        moec_report_destroy(r);
    }
    assert_int_equal(st, MOEC_OK);
    plan_fixture_close(&x);
    remove_place(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clean_conversions_are_clean),
        cmocka_unit_test(clean_in_other_topologies),
        cmocka_unit_test(clean_with_an_explicit_placement),
        cmocka_unit_test(a_damaged_slot_is_named),
        cmocka_unit_test(what_a_damaged_slot_takes_back_is_t6),
        cmocka_unit_test(a_stale_replica_is_t3),
        cmocka_unit_test(swapped_rank_files_are_found),
        cmocka_unit_test(each_damage_is_named_by_its_rule),
        cmocka_unit_test(an_unreadable_manifest_is_an_error),
        cmocka_unit_test(a_source_with_one_other_byte_is_found),
        cmocka_unit_test(another_source_is_said_to_be_another),
        cmocka_unit_test(a_conversion_opens_to_the_layout_that_made_it),
        cmocka_unit_test(a_manifest_that_disagrees_is_refused_by_key),
        cmocka_unit_test(a_wrong_recorded_order_is_found_with_the_source),
        cmocka_unit_test(progress_ends_with_all_done),
        cmocka_unit_test(stops_when_asked_to),
        cmocka_unit_test(survives_failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, remove_made);
}
