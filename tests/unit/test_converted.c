/* SPDX-License-Identifier: Apache-2.0
 *
 * A converted checkpoint's own files together: what is missing, damaged or of
 * another checkpoint is named. */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "converted.h"

/* ------------------------------------- a small checkpoint, all parts open */

static char dir[512];

typedef struct parts {
    moec_manifest m;
    moec_mf_source source;
    moec_mf_layer layer;
    moec_mf_file file;
    moec_slots slots;
    moec_ct_file ct_file;
    moec_ct_tensor tensor;
    moec_ct_slot rows[2];
    moec_leaf leaf;
    moec_sources sources;
    moec_source_entry entries[2];
} parts;

static const char shard_begin[10] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};

static void fill(parts *p)
{
    memset(p, 0, sizeof(*p));
    p->source = (moec_mf_source){
        .name = "model.safetensors", .bytes = 20, .header_bytes = 10};
    assert_int_equal(
        moec_sha256_of(shard_begin, 10, &p->source.header_sha256, NULL),
        MOEC_OK);
    p->layer = (moec_mf_layer){.key = {MOEC_SPACE_MAIN, 3}};
    p->file = (moec_mf_file){.name = "experts.safetensors", .bytes = 24};
    p->ct_file = (moec_ct_file){
        .name = "experts.safetensors", .bytes = 24, .header_bytes = 8};
    p->tensor = (moec_ct_tensor){.name = "w",
                                 .kind = MOEC_CT_SLOTS,
                                 .dtype = MOEC_DTYPE_U8,
                                 .layer = 3,
                                 .n_slots = 2,
                                 .off = 8,
                                 .bytes = 16};
    p->rows[0] = (moec_ct_slot){.logical = 0, .n_leaves = 1};
    p->rows[1] = (moec_ct_slot){.logical = 1, .n_leaves = 1};
    p->slots = (moec_slots){.n_files = 1,
                            .n_tensors = 1,
                            .n_slots = 2,
                            .n_leaves = 1,
                            .files = &p->ct_file,
                            .tensors = &p->tensor,
                            .slots = p->rows,
                            .leaves = &p->leaf};
    p->entries[0] = (moec_source_entry){.kind = MOEC_SRC_SHARD,
                                        .name = "model.safetensors",
                                        .data = shard_begin,
                                        .data_bytes = 10,
                                        .file_bytes = 20};
    p->entries[1] = (moec_source_entry){.kind = MOEC_SRC_INDEX,
                                        .name = "model.json",
                                        .data = "{}",
                                        .data_bytes = 2};
    p->sources = (moec_sources){.n_entries = 2, .entries = p->entries};
    p->m = (moec_manifest){.format_version = 1,
                           .family = "f",
                           .model_type = "t",
                           .score = "softmax",
                           .activation = "silu",
                           .n_experts = 2,
                           .top_k = 1,
                           .n_layers = 4,
                           .hidden = 8,
                           .inter = 8,
                           .routed_scale = 1,
                           .shared_kind = "none",
                           .expert_dtype = MOEC_DTYPE_U8,
                           .n_ranks = 1,
                           .n_physical = 2,
                           .n_local = 2,
                           .shared_slots = "none",
                           .shared_store = "rank",
                           .shard_by = "rank",
                           .w13_order = "gate-up",
                           .n_mf_layers = 1,
                           .layers = &p->layer,
                           .n_sources = 1,
                           .sources = &p->source,
                           .index_name = "model.json",
                           .n_files = 1,
                           .files = &p->file};
}

static void put(const char *name, const void *data, size_t n)
{
    char path[600];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), n);
    assert_int_equal(close(fd), 0);
}

static void drop(const char *name)
{
    char path[600];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(unlink(path), 0);
}

static moec_mf_copied own(const char *name, const moec_buf *b)
{
    moec_mf_copied f = {.name = name, .bytes = b->len};

    assert_int_equal(moec_sha256_of(b->data, b->len, &f.sha256, NULL), MOEC_OK);
    return f;
}

/* Write the three files with digests that fit. */
static void save(parts *p)
{
    moec_buf slots = {0}, sources = {0}, text = {0};

    assert_int_equal(moec_slots_encode(&p->slots, &slots, NULL), MOEC_OK);
    assert_int_equal(moec_sources_encode(&p->sources, &sources, NULL), MOEC_OK);
    p->m.slots_file = own(MOEC_SLOTS_NAME, &slots);
    p->m.sources_file = own(MOEC_SOURCES_NAME, &sources);
    assert_int_equal(moec_manifest_encode(&p->m, &text, NULL), MOEC_OK);
    put(MOEC_SLOTS_NAME, slots.data, slots.len);
    put(MOEC_SOURCES_NAME, sources.data, sources.len);
    put(MOEC_MANIFEST_NAME, text.data, text.len);
    moec_buf_fini(&slots);
    moec_buf_fini(&sources);
    moec_buf_fini(&text);
}

static void check_fails(moec_status st, moec_rule rule, const char *text)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_converted c = {.dirfd = 77};

    assert_int_equal(moec_converted_open(&c, dir, &err), st);
    if (!strstr(err.text, text))
        fail_msg("'%s' does not say '%s'", err.text, text);
    assert_int_equal(err.rule, rule);
    assert_non_null(strstr(err.text, dir));
    assert_int_equal(c.dirfd, 77); /* untouched */
}

static void check_refused(moec_rule rule, const char *text)
{
    check_fails(MOEC_E_FORMAT, rule, text);
}

static int make_dir(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(dir, sizeof(dir), "%s/moec-converted.XXXXXX",
             tmp ? tmp : P_tmpdir);
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    static const char *const names[] = {MOEC_MANIFEST_NAME, MOEC_SLOTS_NAME,
                                        MOEC_SOURCES_NAME};
    char path[600];

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        (void)unlink(path);
    }
    return rmdir(dir);
}

/* ----------------------------------------------------------------- tests */

static void opens_what_belongs_together(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_converted c = {0};
    parts p;

    (void)state;
    fill(&p);
    save(&p);
    if (moec_converted_open(&c, dir, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_string_equal(c.dir, dir);
    assert_int_equal(c.manifest.n_experts, 2);
    assert_string_equal(c.slots.tensors[0].name, "w");
    assert_memory_equal(c.sources.entries[0].data, shard_begin, 10);
    assert_int_equal(fcntl(c.dirfd, F_GETFD), FD_CLOEXEC);
    moec_converted_close(&c);
    moec_converted_close(&c); /* again is fine */
    moec_converted_close(NULL);
}

static void names_a_directory_that_is_not_finished(void **state)
{
    parts p;

    (void)state;
    fill(&p);
    save(&p);
    drop(MOEC_MANIFEST_NAME);
    check_refused(MOEC_RULE_M01, "no manifest.json: not a finished conversion; "
                                 "run the same convert command again");
}

static void names_a_directory_that_is_not_there(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_converted c = {0};
    char path[600];

    (void)state;
    snprintf(path, sizeof(path), "%s/none", dir);
    assert_int_equal(moec_converted_open(&c, path, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_M01);
    assert_non_null(strstr(err.text, path));
}

static void rejects_missing_short_long_and_changed_files(void **state)
{
    static const struct {
        const char *name;
        moec_rule rule;
    } files[] = {{MOEC_SLOTS_NAME, MOEC_RULE_M03},
                 {MOEC_SOURCES_NAME, MOEC_RULE_M04}};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        moec_buf good = {0};
        int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        parts p;

        fill(&p);
        save(&p);
        assert_int_equal(
            moec_read_file(fd, files[i].name, 1 << 20, &good, NULL), MOEC_OK);
        close(fd);
        put(files[i].name, good.data, good.len - 1);
        check_fails(MOEC_E_INTEGRITY, files[i].rule,
                    "bytes, the manifest says");
        moec_buf_append(&good, "x", 1);
        put(files[i].name, good.data, good.len);
        check_fails(MOEC_E_INTEGRITY, files[i].rule,
                    "longer than the manifest's");
        good.data[good.len - 2] ^= 1;
        put(files[i].name, good.data, good.len - 1);
        check_fails(MOEC_E_INTEGRITY, files[i].rule,
                    "the SHA-256 is not the manifest's");
        drop(files[i].name);
        check_refused(files[i].rule, "not there as a regular file");
        moec_buf_fini(&good);
    }
}

static void rejects_files_of_another_conversion(void **state)
{
    parts p;

    (void)state;
    fill(&p);
    p.file.name = "other.safetensors";
    save(&p);
    check_refused(MOEC_RULE_M03, "is not the manifest's 'other.safetensors'");
    fill(&p);
    p.file.bytes = 25;
    save(&p);
    check_refused(MOEC_RULE_M03, "is not the manifest's");
    fill(&p);
    p.file.tree_sha256.b[0] = 1;
    save(&p);
    check_refused(MOEC_RULE_M03, "is not the manifest's");
    fill(&p);
    p.m.n_files = 0;
    save(&p);
    check_refused(MOEC_RULE_M03, "1 files, the manifest has 0");
}

static void rejects_slots_that_the_topology_has_not(void **state)
{
    parts p;

    (void)state;
    fill(&p);
    p.tensor.layer = 2;
    save(&p);
    check_refused(MOEC_RULE_M03, "no main layer 2 on rank 0");
    fill(&p);
    p.tensor.space = MOEC_SPACE_MTP;
    save(&p);
    check_refused(MOEC_RULE_M03, "no mtp layer 3 on rank 0");
    fill(&p);
    p.tensor.rank = 1;
    save(&p);
    check_refused(MOEC_RULE_M03, "no main layer 3 on rank 1");
    fill(&p);
    p.rows[1].logical = 2;
    save(&p);
    check_refused(MOEC_RULE_M03, "slot 1 holds 2, not in [0, 2)");
    fill(&p);
    p.rows[1].logical = MOEC_LOGICAL_EMPTY;
    save(&p);
    check_refused(MOEC_RULE_M03, "slot 1 holds -1, not in [0, 2)");
}

static void accepts_shared_parts_and_allowed_empty_slots(void **state)
{
    moec_converted c = {0};
    parts p;

    (void)state;
    fill(&p);
    p.rows[0].logical = MOEC_LOGICAL_EMPTY;
    p.rows[1].logical = 2;
    p.m.allow_empty = true;
    p.m.n_shared_slots = 1;
    save(&p);
    assert_int_equal(moec_converted_open(&c, dir, NULL), MOEC_OK);
    moec_converted_close(&c);
}

static void rejects_sources_of_another_conversion(void **state)
{
    parts p;

    (void)state;
    fill(&p);
    p.source.bytes = 21;
    save(&p);
    check_refused(MOEC_RULE_M04, "shard 0, 'model.safetensors', is not");
    fill(&p);
    p.source.header_sha256.b[0] ^= 1;
    save(&p);
    check_refused(MOEC_RULE_M04, "shard 0, 'model.safetensors', is not");
    fill(&p);
    p.m.n_sources = 0;
    save(&p);
    check_refused(MOEC_RULE_M04, "shard 0, 'model.safetensors', is not");
    fill(&p);
    p.entries[0] = p.entries[1];
    p.sources.n_entries = 1;
    save(&p);
    check_refused(MOEC_RULE_M04, "0 shards, the manifest has 1");
    fill(&p);
    p.m.index_name = NULL;
    save(&p);
    check_refused(MOEC_RULE_M04, "the index is model.json, the manifest's is "
                                 "not there");
    fill(&p);
    p.entries[1].name = "other.json";
    save(&p);
    check_refused(MOEC_RULE_M04, "the index is other.json");
}

static void reports_every_failed_allocation(void **state)
{
    parts p;
    uint64_t k;

    (void)state;
    fill(&p);
    save(&p);
    for (k = 1; k < 1000; k++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_converted c = {0};
        moec_status st;

        moec_alloc_fail_at(k);
        st = moec_converted_open(&c, dir, &err);
        if (moec_alloc_fail_at(0) < k) {
            assert_int_equal(st, MOEC_OK);
            moec_converted_close(&c);
            break;
        }
        assert_int_equal(st, MOEC_E_NOMEM);
        assert_null(c.dir);
    }
    assert_in_range(k, 10, 999);
}

static void knows_plain_names(void **state)
{
    static const char *const plain[] = {"a", ".a", "...", "a b", "\xc3\xb6"};
    static const char *const other[] = {"",  ".",  "..",  "a/b",
                                        "/", "a/", "\xff"};
    char name[256];

    (void)state;
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        assert_true(moec_plain_name(plain[i], strlen(plain[i])));
    for (size_t i = 0; i < sizeof(other) / sizeof(other[0]); i++)
        assert_false(moec_plain_name(other[i], strlen(other[i])));
    memset(name, 'a', sizeof(name));
    assert_true(moec_plain_name(name, 255));
    assert_false(moec_plain_name(name, 256));
    assert_false(moec_plain_name("a\0b", 3));
    assert_false(moec_plain_name(NULL, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_what_belongs_together),
        cmocka_unit_test(names_a_directory_that_is_not_finished),
        cmocka_unit_test(names_a_directory_that_is_not_there),
        cmocka_unit_test(rejects_missing_short_long_and_changed_files),
        cmocka_unit_test(rejects_files_of_another_conversion),
        cmocka_unit_test(rejects_slots_that_the_topology_has_not),
        cmocka_unit_test(accepts_shared_parts_and_allowed_empty_slots),
        cmocka_unit_test(rejects_sources_of_another_conversion),
        cmocka_unit_test(reports_every_failed_allocation),
        cmocka_unit_test(knows_plain_names),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
