/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opening checkpoints: which files are chosen, what the index must agree with,
 * which directory entries are refused, caches, and changes under the reader.
 */

#include "ckpt.h"

#include "support/st_build.h"

#include <errno.h>
#include <sys/resource.h>

#define INDEX "model.safetensors.index.json"

/* Open it, or fail the test with the reason. */
static moec_ckpt *open_ok(const char *path, const char *cache)
{
    moec_ckpt_opts opts = MOEC_CKPT_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *c = NULL;

    opts.hf_cache = cache;
    if (moec_ckpt_open(&c, path, &opts, &err) != MOEC_OK)
        fail_msg("%s: %s", path, err.text);
    assert_non_null(c);
    return c;
}

/* It must be refused by `rule`, in words that hold `says`. */
static void refused_in(const char *path, const char *cache, moec_rule rule,
                       const char *says)
{
    moec_ckpt_opts opts = MOEC_CKPT_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *c = NULL;
    moec_status st;

    opts.hf_cache = cache;
    st = moec_ckpt_open(&c, path, &opts, &err);
    if (st != MOEC_E_FORMAT || err.rule != rule ||
        strstr(err.text, says) == NULL)
        fail_msg("want %s and '%s', got %s: '%s'", moec_rule_describe(rule)->id,
                 says, moec_status_name(st), err.text);
    assert_null(c);
}

static void refused(const tmpdir *d, moec_rule rule, const char *says)
{
    refused_in(d->path, NULL, rule, says);
}

/* Two shards of two tensors and their index. */
static tmpdir good_dir(void)
{
    tmpdir d = tmpdir_make();

    ST_WRITE(&d, "m-1.safetensors", {"b", 300}, {"a.x", 10});
    ST_WRITE(&d, "m-2.safetensors", {"a", 20}, {"c", 0});
    tmpdir_text(&d, INDEX,
                "{\"metadata\":{\"total_size\":330},\"weight_map\":{"
                "\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
                "\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}");
    tmpdir_text(&d, "config.json", "{}");
    return d;
}

static void index_of(const tmpdir *d, const char *map)
{
    char text[1024];
    int n = snprintf(text, sizeof(text), "{\"weight_map\":{%s}}", map);

    assert_true(n > 0 && (size_t)n < sizeof(text));
    tmpdir_text(d, INDEX, text);
}

static bool has_note(const moec_ckpt *c, moec_rule rule, const char *says)
{
    for (size_t i = 0; i < moec_ckpt_n_notes(c); i++) {
        const moec_note *n = moec_ckpt_note(c, i);
        if (n->rule == rule && strstr(n->text, says) != NULL)
            return true;
    }
    return false;
}

static size_t open_descriptors(void)
{
    size_t n = 0;

    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* ------------------------------------------------------------- choosing */

static void opens_indexed_shards_as_one_sorted_table(void **state)
{
    static const char *const names[] = {"a", "a.x", "b", "c"};
    static const uint32_t files[] = {1, 0, 0, 1};
    tmpdir d = good_dir();
    moec_ckpt *c = open_ok(d.path, NULL);

    (void)state;
    assert_int_equal(moec_ckpt_n_tensors(c), 4);
    assert_int_equal(moec_ckpt_n_files(c), 2);
    assert_string_equal(moec_ckpt_file(c, 0)->name, "m-1.safetensors");
    assert_null(moec_ckpt_file(c, 0)->etag);
    for (size_t i = 0; i < 4; i++) {
        const moec_tensor *t = moec_ckpt_tensor(c, i);
        assert_string_equal(t->name, names[i]);
        assert_int_equal(t->file, files[i]);
        assert_int_equal(moec_ckpt_find(c, names[i]), i);
    }
    assert_int_equal(moec_ckpt_find(c, "a."), SIZE_MAX);
    assert_int_equal(moec_ckpt_find(c, ""), SIZE_MAX);
    assert_int_equal(moec_ckpt_n_notes(c), 0);
    assert_int_equal(moec_ckpt_is_bare_file(c), 0);
    assert_string_equal(moec_ckpt_index_name(c), INDEX);
    assert_true(moec_ckpt_fd(c, 0) >= 0);
    assert_true(moec_ckpt_dirfd(c) >= 0);
    assert_non_null(strstr(moec_ckpt_path(c, 1), "/m-2.safetensors"));
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

/* Shards with the usual names are read before the index has named them: those
 * that it does not name must leave no trace, whatever is wrong with them, and
 * those that cannot be read must be refused for the usual reason. */
static void reads_usual_names_ahead_of_the_index(void **state)
{
    tmpdir d = tmpdir_make();
    const size_t n_fds = open_descriptors();
    moec_ckpt *c;

    (void)state;
    ST_WRITE(&d, "m-00001-of-000004.safetensors", {"b", 300}, {"a.x", 10});
    tmpdir_text(&d, "m-00002-of-000004.safetensors", "torn");
    ST_WRITE(&d, "m-00004-of-000004.safetensors", {"a", 20});
    index_of(&d, "\"a\":\"m-00004-of-000004.safetensors\","
                 "\"a.x\":\"m-00001-of-000004.safetensors\","
                 "\"b\":\"m-00001-of-000004.safetensors\"");
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_n_files(c), 2);
    assert_int_equal(moec_ckpt_n_tensors(c), 3);
    assert_int_equal(moec_ckpt_tensor(c, 0)->file, 1);
    assert_int_equal(moec_ckpt_file(c, 1)->bytes - 20,
                     moec_ckpt_file(c, 1)->header_bytes);
    assert_non_null(strstr(moec_ckpt_path(c, 1), "/m-00004-of-000004"));
    assert_true(has_note(c, MOEC_RULE_I15, "m-00002-of-000004.safetensors"));
    moec_ckpt_close(c);

    index_of(&d, "\"a\":\"m-00004-of-000004.safetensors\","
                 "\"b\":\"m-00002-of-000004.safetensors\"");
    refused(&d, MOEC_RULE_H01, "m-00002-of-000004.safetensors: byte 0");
    index_of(&d, "\"a\":\"m-00004-of-000004.safetensors\","
                 "\"b\":\"m-00003-of-000004.safetensors\"");
    refused(&d, MOEC_RULE_I06, "m-00003-of-000004.safetensors: not there");
    index_of(&d, "\"a\":\"m-00004-of-000004.safetensors\","
                 "\"a.x\":\"m-00004-of-000004.safetensors\","
                 "\"b\":\"m-00001-of-000004.safetensors\"");
    refused(&d, MOEC_RULE_I08, "tensor 'a.x'");
    assert_int_equal(open_descriptors(), n_fds);
    tmpdir_remove(&d);
}

static void takes_the_only_file_without_an_index(void **state)
{
    tmpdir d = tmpdir_make();
    moec_ckpt *c;

    (void)state;
    ST_WRITE(&d, "any name.safetensors", {"t", 4});
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_n_tensors(c), 1);
    assert_null(moec_ckpt_index_name(c));
    moec_ckpt_close(c);
    ST_WRITE(&d, "b.safetensors", {"u", 4});
    refused(&d, MOEC_RULE_I12, "b.safetensors");
    tmpdir_remove(&d);
}

static void takes_model_safetensors_from_among_others(void **state)
{
    tmpdir d = tmpdir_make();
    moec_ckpt *c;

    (void)state;
    ST_WRITE(&d, "golden.safetensors", {"t", 4}, {"u", 4});
    ST_WRITE(&d, "model.safetensors", {"t", 4});
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_n_tensors(c), 1);
    assert_true(has_note(c, MOEC_RULE_I15, "golden.safetensors: not model."));
    moec_ckpt_close(c);
    ST_WRITE(&d, "model-00001-of-00002.safetensors", {"u", 4});
    refused(&d, MOEC_RULE_I12, "model-00001-of-00002.safetensors");
    tmpdir_remove(&d);
}

static void names_what_it_found_where_there_is_no_safetensors(void **state)
{
    tmpdir d = tmpdir_make();

    (void)state;
    refused(&d, MOEC_RULE_I01, d.path);
    tmpdir_text(&d, "model.gguf", "GGUF");
    refused(&d, MOEC_RULE_I02, "model.gguf");
    tmpdir_text(&d, "consolidated.00.pth", "PK");
    refused(&d, MOEC_RULE_I02, "consolidated.00.pth");
    refused_in(tmpdir_path(&d, "model.gguf"), NULL, MOEC_RULE_I02, "gguf");
    refused_in(tmpdir_path(&d, "absent"), NULL, MOEC_RULE_I01, "absent");
    tmpdir_text(&d, "x.txt", "");
    refused_in(tmpdir_path(&d, "x.txt"), NULL, MOEC_RULE_I01, "x.txt");
    tmpdir_remove(&d);
}

static void opens_one_bare_file(void **state)
{
    tmpdir d = good_dir();
    moec_ckpt *c = open_ok(tmpdir_path(&d, "m-1.safetensors"), NULL);
    char real[4096];

    (void)state;
    assert_int_equal(moec_ckpt_is_bare_file(c), 1);
    assert_int_equal(moec_ckpt_n_tensors(c), 2);
    assert_null(moec_ckpt_index_name(c));
    assert_non_null(realpath(d.path, real));
    assert_string_equal(moec_ckpt_dir(c), real);
    assert_int_equal(moec_ckpt_n_extra(c), 1);
    assert_string_equal(moec_ckpt_extra(c, 0), "config.json");
    moec_ckpt_close(c);
    /* A link that the user names is the user's choice. */
    tmpdir_mkdir(&d, "sub");
    tmpdir_link(&d, "../m-1.safetensors", "sub/l.safetensors");
    c = open_ok(tmpdir_path(&d, "sub/l.safetensors"), NULL);
    assert_string_equal(moec_ckpt_dir(c), real);
    moec_ckpt_close(c);
    tmpdir_fifo(&d, "f.safetensors");
    refused_in(tmpdir_path(&d, "f.safetensors"), NULL, MOEC_RULE_I03, "f.s");
    tmpdir_remove(&d);
}

static void refuses_options_and_paths_that_are_none(void **state)
{
    moec_ckpt_opts opts = MOEC_CKPT_OPTS_INIT;
    moec_ckpt *c = NULL;
    tmpdir d = good_dir();

    (void)state;
    assert_int_equal(moec_ckpt_open(&c, "", NULL, NULL), MOEC_E_ARG);
    assert_int_equal(moec_ckpt_open(&c, NULL, NULL, NULL), MOEC_E_ARG);
    opts.struct_bytes = 0;
    assert_int_equal(moec_ckpt_open(&c, d.path, &opts, NULL), MOEC_E_ARG);
    assert_null(c);
    /* Of an older caller only what it knows is read. */
    opts.struct_bytes = 8;
    opts.hf_cache = (const char *)1;
    assert_int_equal(moec_ckpt_open(&c, d.path, &opts, NULL), MOEC_OK);
    moec_ckpt_close(c);
    moec_ckpt_close(NULL);
    tmpdir_remove(&d);
}

/* ------------------------------------------------------ index and shards */

static void refuses_an_index_that_disagrees(void **state)
{
    static const struct {
        const char *map;
        moec_rule rule;
        const char *says;
    } cases[] = {
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\"",
         MOEC_RULE_I08, "tensor 'c'"},
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-1.safetensors\"",
         MOEC_RULE_I08, "tensor 'c'"},
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\","
         "\"d\":\"m-2.safetensors\"",
         MOEC_RULE_I08, "tensor 'd'"},
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-3.safetensors\"",
         MOEC_RULE_I06, "m-3.safetensors"},
        /* One tensor twice is named as that, whatever else follows. */
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\","
         "\"c\":\"m-2.safetensors\"",
         MOEC_RULE_I10, "'c'"},
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-1.safetensors\","
         "\"c\":\"m-2.safetensors\"",
         MOEC_RULE_I10, "'c'"},
        {"\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-9.safetensors\","
         "\"c\":\"m-2.safetensors\"",
         MOEC_RULE_I10, "'c'"},
        {"\"a\":\"../m-2.safetensors\"", MOEC_RULE_I05, "../m-2"},
        {"\"a\":\"/m-2.safetensors\"", MOEC_RULE_I05, "/m-2"},
        {"\"a\":\"./m-2.safetensors\"", MOEC_RULE_I05, "./m-2"},
        {"\"a\":\"\"", MOEC_RULE_I05, "''"},
        {"\"a\":7", MOEC_RULE_I07, "'a'"},
        {"\"a\":\"pytorch_model.bin\"", MOEC_RULE_I02, "pytorch_model.bin"},
    };
    tmpdir d = good_dir();

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        index_of(&d, cases[i].map);
        refused(&d, cases[i].rule, cases[i].says);
    }
    tmpdir_remove(&d);
}

static void refuses_one_tensor_in_two_shards(void **state)
{
    tmpdir d = good_dir();

    (void)state;
    ST_WRITE(&d, "m-2.safetensors", {"a", 20}, {"b", 300}, {"c", 0});
    refused(&d, MOEC_RULE_I08, "in 'm-1.safetensors' and in 'm-2.safetens");
    tmpdir_remove(&d);
}

static void refuses_a_cut_shard(void **state)
{
    tmpdir d = good_dir();

    (void)state;
    assert_int_equal(truncate(tmpdir_path(&d, "m-1.safetensors"), 200), 0);
    refused(&d, MOEC_RULE_H17, "m-1.safetensors");
    assert_int_equal(truncate(tmpdir_path(&d, "m-1.safetensors"), 20), 0);
    refused(&d, MOEC_RULE_H01, "m-1.safetensors");
    tmpdir_remove(&d);
}

static void reports_the_first_of_several_bad_shards(void **state)
{
    tmpdir d = good_dir();

    (void)state;
    tmpdir_text(&d, "m-1.safetensors", "nothing");
    tmpdir_text(&d, "m-2.safetensors", "nothing");
    for (int i = 0; i < 20; i++)
        refused(&d, MOEC_RULE_H01, "m-1.safetensors");
    tmpdir_remove(&d);
}

static void notes_what_does_not_stop_it(void **state)
{
    tmpdir d = good_dir();
    moec_ckpt *c;

    (void)state;
    tmpdir_text(&d, "stale.safetensors", "not even a header");
    tmpdir_text(&d, INDEX,
                "{\"metadata\":{\"total_size\":331},\"weight_map\":{"
                "\"a\":\"m-2.safetensors\",\"a.x\":\"m-1.safetensors\","
                "\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}");
    st_write_header(&d, "m-2.safetensors",
                    " {\"a\":{\"dtype\":\"U8\",\"shape\":[20],"
                    "\"data_offsets\":[0,20],\"note\":1},"
                    "\"c\":{\"dtype\":\"U8\",\"shape\":[0],"
                    "\"data_offsets\":[0,0]}}",
                    20);
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_n_files(c), 2);
    assert_int_equal(moec_ckpt_n_notes(c), 4);
    assert_true(has_note(c, MOEC_RULE_I15, "stale.safetensors"));
    assert_true(has_note(c, MOEC_RULE_I14, "331"));
    assert_true(has_note(c, MOEC_RULE_I14, "330"));
    assert_true(has_note(c, MOEC_RULE_H10, "tensor 'a': field 'note'"));
    assert_true(has_note(c, MOEC_RULE_H02, "m-2.safetensors"));
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

static void sums_up_notes_beyond_a_page(void **state)
{
    tmpdir d = good_dir();
    moec_ckpt *c;
    char name[64];

    (void)state;
    for (int i = 0; i < 100; i++) {
        (void)snprintf(name, sizeof(name), "old-%03d.safetensors", i);
        tmpdir_text(&d, name, "");
    }
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_n_notes(c), 65);
    assert_true(has_note(c, MOEC_RULE_I15, "and 36 more"));
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

/* ------------------------------------------------------ kinds of entries */

static void refuses_entries_that_are_no_regular_file(void **state)
{
    static const char *const names[] = {"m-2.safetensors", INDEX};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        tmpdir d = good_dir();
        tmpdir out = good_dir();
        const char *name = names[i];
        assert_int_equal(remove(tmpdir_path(&d, name)), 0);
        tmpdir_fifo(&d, name);
        refused(&d, MOEC_RULE_I03, name);
        assert_int_equal(remove(tmpdir_path(&d, name)), 0);
        tmpdir_mkdir(&d, name);
        refused(&d, MOEC_RULE_I03, name);
        assert_int_equal(remove(tmpdir_path(&d, name)), 0);
        tmpdir_link(&d, tmpdir_path(&out, name), name);
        refused(&d, MOEC_RULE_I03, name);
        assert_int_equal(remove(tmpdir_path(&d, name)), 0);
        tmpdir_link(&d, name, name);
        refused(&d, MOEC_RULE_I03, name);
        assert_int_equal(remove(tmpdir_path(&d, name)), 0);
        tmpdir_link(&d, "/dev/zero", name);
        refused(&d, MOEC_RULE_I03, name);
        tmpdir_remove(&d);
        tmpdir_remove(&out);
    }
}

static void follows_links_inside_the_directory(void **state)
{
    tmpdir d = good_dir();

    (void)state;
    tmpdir_mkdir(&d, "sub");
    assert_int_equal(
        rename(tmpdir_path(&d, "m-1.safetensors"), tmpdir_path(&d, "sub/real")),
        0);
    tmpdir_link(&d, "sub/real", "m-1.safetensors");
    moec_ckpt_close(open_ok(d.path, NULL));
    tmpdir_remove(&d);
}

static void knows_lfs_pointers(void **state)
{
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d1"
        "7e2393\nsize 12345\n";
    static const char *const names[] = {"m-1.safetensors", INDEX};
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *c;
    tmpdir d;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        d = good_dir();
        tmpdir_text(&d, names[i], pointer);
        refused(&d, MOEC_RULE_I11, names[i]);
        tmpdir_remove(&d);
    }
    d = good_dir();
    tmpdir_text(&d, "config.json", pointer);
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_read_extra(c, "config.json", 1000, &b, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I11);
    moec_buf_fini(&b);
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

/* ---------------------------------------------------------- other files */

static void lists_what_a_conversion_copies(void **state)
{
    static const char *const no[] = {
        "x.bin",  "x.pt", "x.pth",  "x.gguf", "x.msgpack",    "x.h5",
        "x.onnx", "x.ot", "x.ckpt", ".git",   "y.index.json", ".moec-x"};
    static const char *const yes[] = {".gitattributes", "README.md",
                                      "a.txt",          "config.json",
                                      "link.json",      "tokenizer.json"};
    tmpdir d = good_dir();
    moec_ckpt *c;

    (void)state;
    for (size_t i = 0; i < sizeof(no) / sizeof(*no); i++)
        tmpdir_text(&d, no[i], "x");
    tmpdir_text(&d, ".gitattributes", "x");
    tmpdir_text(&d, "tokenizer.json", "x");
    tmpdir_text(&d, "a.txt", "x");
    tmpdir_text(&d, "README.md", "x");
    tmpdir_mkdir(&d, "dir");
    tmpdir_fifo(&d, "fifo");
    tmpdir_link(&d, "a.txt", "link.json");
    tmpdir_link(&d, "/etc/passwd", "outside.json");
    tmpdir_link(&d, "nowhere", "dangling.json");
    c = open_ok(d.path, NULL);
    assert_int_equal(moec_ckpt_n_extra(c), sizeof(yes) / sizeof(*yes));
    for (size_t i = 0; i < sizeof(yes) / sizeof(*yes); i++)
        assert_string_equal(moec_ckpt_extra(c, i), yes[i]);
    assert_int_equal(moec_ckpt_n_notes(c), 1);
    assert_true(has_note(c, MOEC_RULE_I03, "outside.json"));
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

static void reads_other_files_within_bounds(void **state)
{
    tmpdir d = good_dir();
    moec_ckpt *c = open_ok(d.path, NULL);
    moec_error err = MOEC_ERROR_INIT;
    moec_buf b = {0};
    uint64_t bytes = 0;
    int fd = -1;

    (void)state;
    tmpdir_text(&d, "five", "12345");
    assert_int_equal(moec_ckpt_read_extra(c, "five", 5, &b, &err), MOEC_OK);
    assert_int_equal(b.len, 5);
    assert_string_equal(b.data, "12345");
    moec_buf_fini(&b);
    assert_int_equal(moec_ckpt_read_extra(c, "five", 4, &b, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I04);
    assert_int_equal(moec_ckpt_open_extra(c, "five", &fd, &bytes, &err),
                     MOEC_OK);
    assert_int_equal(bytes, 5);
    close(fd);
    for (int i = 0; i < 4; i++) {
        static const char *const names[] = {"../five", "/etc/passwd", "", ".."};
        assert_int_equal(moec_ckpt_read_extra(c, names[i], 100, &b, NULL),
                         MOEC_E_ARG);
    }
    memset(&err, 0, sizeof(err));
    assert_int_equal(moec_ckpt_read_extra(c, "absent", 100, &b, &err),
                     MOEC_E_IO);
    assert_int_equal(err.os_errno, ENOENT);
    assert_int_equal(moec_ckpt_read_index(c, &b, NULL), MOEC_OK);
    assert_int_equal(b.data[0], '{');
    assert_int_equal(b.data[b.len - 1], '}');
    moec_buf_fini(&b);
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

/* --------------------------------------------------------------- reading */

static void reads_tensors_and_no_byte_else(void **state)
{
    tmpdir d = good_dir();
    moec_ckpt *c = open_ok(d.path, NULL);
    size_t i = moec_ckpt_find(c, "a.x");
    unsigned char buf[16];

    (void)state;
    assert_int_equal(moec_ckpt_read(c, i, 0, buf, 10, NULL), MOEC_OK);
    for (size_t k = 0; k < 10; k++)
        assert_int_equal(buf[k], st_pattern(300 + k));
    assert_int_equal(moec_ckpt_read(c, i, 7, buf, 3, NULL), MOEC_OK);
    assert_int_equal(buf[0], st_pattern(307));
    assert_int_equal(moec_ckpt_read(c, i, 10, buf, 0, NULL), MOEC_OK);
    assert_int_equal(moec_ckpt_read(c, i, 8, buf, 3, NULL), MOEC_E_ARG);
    assert_int_equal(moec_ckpt_read(c, i, 11, buf, 0, NULL), MOEC_E_ARG);
    assert_int_equal(moec_ckpt_read(c, i, UINT64_MAX, buf, 2, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_ckpt_read(c, 4, 0, buf, 0, NULL), MOEC_E_ARG);
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

enum change { GROW, CUT, TOUCH, REPLACE, REMOVE, N_CHANGES };

static void change_file(const tmpdir *d, const char *name, enum change how)
{
    const char *path = tmpdir_path(d, name);
    struct timespec times[2] = {{1, 1}, {1, 1}};
    FILE *f;

    switch (how) {
    case GROW:
        f = fopen(path, "ab");
        assert_non_null(f);
        assert_int_equal(fputc('x', f), 'x');
        assert_int_equal(fclose(f), 0);
        break;
    case CUT:
        assert_int_equal(truncate(path, 1), 0);
        break;
    case TOUCH:
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
        break;
    case REPLACE:
        assert_int_equal(rename(path, tmpdir_path(d, "old")), 0);
        tmpdir_text(d, name, "x");
        break;
    case REMOVE:
        assert_int_equal(remove(path), 0);
        break;
    case N_CHANGES:
        break;
    }
}

static void notices_that_a_file_changed(void **state)
{
    static const char *const names[] = {"m-1.safetensors", "m-2.safetensors",
                                        INDEX};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        for (int how = 0; how < N_CHANGES; how++) {
            tmpdir d = good_dir();
            moec_ckpt *c = open_ok(d.path, NULL);
            moec_error err = MOEC_ERROR_INIT;
            assert_int_equal(moec_ckpt_check_unchanged(c, &err), MOEC_OK);
            change_file(&d, names[i], (enum change)how);
            assert_int_equal(moec_ckpt_check_unchanged(c, &err), MOEC_E_FORMAT);
            assert_int_equal(err.rule, MOEC_RULE_I13);
            assert_non_null(strstr(err.text, names[i]));
            moec_ckpt_close(c);
            tmpdir_remove(&d);
        }
    }
}

static void does_not_hand_out_bytes_of_a_changed_file(void **state)
{
    static const enum change ways[] = {GROW, CUT, TOUCH};
    unsigned char buf[10];

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        tmpdir d = good_dir();
        moec_ckpt *c = open_ok(d.path, NULL);
        moec_error err = MOEC_ERROR_INIT;
        change_file(&d, "m-1.safetensors", ways[i]);
        assert_int_equal(moec_ckpt_read(c, 1, 0, buf, 10, &err), MOEC_E_FORMAT);
        assert_int_equal(err.rule, MOEC_RULE_I13);
        moec_ckpt_close(c);
        tmpdir_remove(&d);
    }
}

/* ---------------------------------------------------------------- caches */

#define REPO     "models--org--name"
#define COMMIT   "0123456789abcdef0123456789abcdef01234567"
#define SNAPSHOT REPO "/snapshots/" COMMIT

/* A hub directory with one repository: two shards as links to blobs. */
static tmpdir cache_dir(void)
{
    tmpdir d = tmpdir_make();

    tmpdir_mkdir(&d, REPO);
    tmpdir_mkdir(&d, REPO "/blobs");
    tmpdir_mkdir(&d, REPO "/refs");
    tmpdir_mkdir(&d, REPO "/refs/pr");
    tmpdir_mkdir(&d, REPO "/snapshots");
    tmpdir_mkdir(&d, SNAPSHOT);
    ST_WRITE(&d, REPO "/blobs/b10b1", {"b", 300}, {"a.x", 10});
    ST_WRITE(&d, REPO "/blobs/b10b2", {"a", 20});
    tmpdir_text(&d, REPO "/blobs/b10b3",
                "{\"weight_map\":{\"a\":\"m-2.safetensors\","
                "\"a.x\":\"m-1.safetensors\",\"b\":\"m-1.safetensors\"}}");
    tmpdir_text(&d, REPO "/blobs/b10b4", "{}");
    tmpdir_link(&d, "../../blobs/b10b1", SNAPSHOT "/m-1.safetensors");
    tmpdir_link(&d, "../../blobs/b10b2", SNAPSHOT "/m-2.safetensors");
    tmpdir_link(&d, "../../blobs/b10b3", SNAPSHOT "/" INDEX);
    tmpdir_link(&d, "../../blobs/b10b4", SNAPSHOT "/config.json");
    tmpdir_text(&d, REPO "/refs/main", COMMIT);
    tmpdir_text(&d, REPO "/refs/pr/1", COMMIT "\n");
    return d;
}

static void check_cached(const char *path, const char *cache)
{
    moec_ckpt *c = open_ok(path, cache);
    moec_buf b = {0};

    assert_int_equal(moec_ckpt_n_tensors(c), 3);
    assert_string_equal(moec_ckpt_file(c, 0)->name, "m-1.safetensors");
    assert_string_equal(moec_ckpt_file(c, 0)->etag, "b10b1");
    assert_string_equal(moec_ckpt_file(c, 1)->etag, "b10b2");
    assert_non_null(strstr(moec_ckpt_path(c, 0), "/blobs/b10b1"));
    assert_non_null(strstr(moec_ckpt_dir(c), "/snapshots/" COMMIT));
    assert_int_equal(moec_ckpt_n_extra(c), 1);
    assert_int_equal(moec_ckpt_read_extra(c, "config.json", 10, &b, NULL),
                     MOEC_OK);
    assert_string_equal(b.data, "{}");
    moec_buf_fini(&b);
    assert_int_equal(moec_ckpt_check_unchanged(c, NULL), MOEC_OK);
    moec_ckpt_close(c);
}

static void reads_a_snapshot_through_its_links(void **state)
{
    tmpdir d = cache_dir();
    moec_ckpt *c;

    (void)state;
    check_cached(tmpdir_path(&d, SNAPSHOT), NULL);
    c = open_ok(tmpdir_path(&d, SNAPSHOT "/m-1.safetensors"), NULL);
    assert_string_equal(moec_ckpt_file(c, 0)->name, "m-1.safetensors");
    assert_string_equal(moec_ckpt_file(c, 0)->etag, "b10b1");
    moec_ckpt_close(c);
    tmpdir_remove(&d);
}

static void looks_repositories_up_in_the_cache(void **state)
{
    tmpdir d = cache_dir();

    (void)state;
    check_cached("org/name", d.path);
    check_cached("org/name@main", d.path);
    check_cached("org/name@pr/1", d.path);
    check_cached("org/name@" COMMIT, d.path);
    refused_in("org/name", NULL, MOEC_RULE_I01, "org/name");
    refused_in("org/other", d.path, MOEC_RULE_I01, "org/other");
    refused_in("org/name@absent", d.path, MOEC_RULE_I01, "absent");
    refused_in("org/name@../snapshots", d.path, MOEC_RULE_I01, "..");
    refused_in("org/name@", d.path, MOEC_RULE_I01, "org/name@");
    refused_in("../org/name", d.path, MOEC_RULE_I01, "../org/name");
    refused_in("a/b/c", d.path, MOEC_RULE_I01, "a/b/c");
    tmpdir_text(&d, REPO "/refs/evil", "../../../etc");
    refused_in("org/name@evil", d.path, MOEC_RULE_I01, "evil");
    tmpdir_remove(&d);
}

static void refuses_links_out_of_the_repository(void **state)
{
    tmpdir d = cache_dir();
    const char *link = tmpdir_path(&d, SNAPSHOT "/m-2.safetensors");

    (void)state;
    tmpdir_mkdir(&d, "elsewhere");
    ST_WRITE(&d, "elsewhere/f", {"a", 20});
    assert_int_equal(remove(link), 0);
    assert_int_equal(symlink("../../../elsewhere/f", link), 0);
    refused_in(tmpdir_path(&d, SNAPSHOT), NULL, MOEC_RULE_I03,
               "m-2.safetensors");
    assert_int_equal(remove(link), 0);
    assert_int_equal(symlink("../../blobs/absent", link), 0);
    refused_in(tmpdir_path(&d, SNAPSHOT), NULL, MOEC_RULE_I06,
               "m-2.safetensors");
    tmpdir_remove(&d);
}

/* ------------------------------------------------------- headers in memory */

static moec_header_blob blob_of(const tmpdir *d, const char *name)
{
    moec_header_blob b = {name, NULL, 0, 0};
    FILE *f = fopen(tmpdir_path(d, name), "rb");
    char *data = malloc(4096);
    size_t n;

    assert_non_null(f);
    assert_non_null(data);
    n = fread(data, 1, 4096, f);
    (void)fclose(f);
    b.data_bytes = 8 + moec_le64(data);
    b.data = realloc(data, (size_t)b.data_bytes);
    b.file_bytes = n;
    return b;
}

static void knows_a_checkpoint_by_its_headers(void **state)
{
    tmpdir d = good_dir();
    moec_header_blob blobs[2] = {blob_of(&d, "m-1.safetensors"),
                                 blob_of(&d, "m-2.safetensors")};
    moec_ckpt *file = open_ok(d.path, NULL), *mem = NULL;
    moec_error err = MOEC_ERROR_INIT;
    char byte;

    (void)state;
    assert_int_equal(moec_ckpt_from_headers(&mem, "/some/dir", blobs, 2, &err),
                     MOEC_OK);
    assert_string_equal(moec_ckpt_dir(mem), "/some/dir");
    assert_string_equal(moec_ckpt_path(mem, 1), "/some/dir/m-2.safetensors");
    assert_int_equal(moec_ckpt_fd(mem, 0), -1);
    assert_int_equal(moec_ckpt_dirfd(mem), -1);
    assert_int_equal(moec_ckpt_n_tensors(mem), moec_ckpt_n_tensors(file));
    for (size_t i = 0; i < moec_ckpt_n_tensors(mem); i++) {
        const moec_tensor *a = moec_ckpt_tensor(mem, i);
        const moec_tensor *b = moec_ckpt_tensor(file, i);
        assert_string_equal(a->name, b->name);
        assert_true(a->off == b->off && a->bytes == b->bytes);
        assert_int_equal(a->file, b->file);
    }
    assert_memory_equal(moec_ckpt_file(mem, 0)->header_sha256,
                        moec_ckpt_file(file, 0)->header_sha256, 32);
    assert_int_equal(moec_ckpt_read(mem, 0, 0, &byte, 1, NULL),
                     MOEC_E_UNSUPPORTED);
    assert_int_equal(moec_ckpt_check_unchanged(mem, NULL), MOEC_OK);
    moec_ckpt_close(mem);
    mem = NULL;
    blobs[1].file_bytes++;
    assert_int_equal(moec_ckpt_from_headers(&mem, "d", blobs, 2, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_H16);
    assert_null(mem);
    moec_ckpt_close(file);
    for (int i = 0; i < 2; i++)
        free((void *)(uintptr_t)blobs[i].data);
    tmpdir_remove(&d);
}

/* --------------------------------------------------------------- failures */

/* Every way through an open, with the k-th allocation failing: NOMEM, no
 * memory and no descriptor left behind (the sanitizer watches the memory). */
static void survives_each_allocation_that_fails(void **state)
{
    tmpdir d = good_dir(), cache = cache_dir();
    const size_t n_fds = open_descriptors();

    (void)state;
    tmpdir_text(&d, "stale.safetensors", "");
    for (int way = 0; way < 4; way++) {
        uint64_t k = 1;
        for (;; k++) {
            moec_ckpt_opts opts = MOEC_CKPT_OPTS_INIT;
            moec_error err = MOEC_ERROR_INIT;
            moec_ckpt *c = NULL;
            moec_status st;
            const char *path = way == 0   ? d.path
                               : way == 1 ? tmpdir_path(&d, "m-1.safetensors")
                               : way == 2 ? "org/name"
                                          : tmpdir_path(&cache, SNAPSHOT);
            assert_true(k < 200);
            opts.n_threads = 1;
            opts.hf_cache = cache.path;
            moec_alloc_fail_at(k);
            st = moec_ckpt_open(&c, path, &opts, &err);
            if (moec_alloc_fail_at(0) < k) {
                assert_int_equal(st, MOEC_OK);
                moec_ckpt_close(c);
                break;
            }
            assert_int_equal(st, MOEC_E_NOMEM);
            assert_int_equal(err.status, MOEC_E_NOMEM);
            assert_null(c);
            assert_int_equal(open_descriptors(), n_fds);
        }
        assert_true(k > 15);
    }
    assert_int_equal(open_descriptors(), n_fds);
    tmpdir_remove(&d);
    tmpdir_remove(&cache);
}

static void reports_that_descriptors_are_short(void **state)
{
    tmpdir d = good_dir();
    const size_t n_fds = open_descriptors();
    struct rlimit before, few;
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *c = NULL;
    int lowest = dup(1); /* the number that is free */

    (void)state;
    assert_true(lowest >= 0);
    close(lowest);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    /* Directory, index and two shards want four. */
    for (int n = 0; n < 4; n++) {
        few.rlim_cur = (rlim_t)(lowest + n);
        memset(&err, 0, sizeof(err));
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
        assert_int_equal(moec_ckpt_open(&c, d.path, NULL, &err), MOEC_E_IO);
        assert_int_equal(err.os_errno, EMFILE);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_int_equal(open_descriptors(), n_fds);
    }
    tmpdir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_indexed_shards_as_one_sorted_table),
        cmocka_unit_test(reads_usual_names_ahead_of_the_index),
        cmocka_unit_test(takes_the_only_file_without_an_index),
        cmocka_unit_test(takes_model_safetensors_from_among_others),
        cmocka_unit_test(names_what_it_found_where_there_is_no_safetensors),
        cmocka_unit_test(opens_one_bare_file),
        cmocka_unit_test(refuses_options_and_paths_that_are_none),
        cmocka_unit_test(refuses_an_index_that_disagrees),
        cmocka_unit_test(refuses_one_tensor_in_two_shards),
        cmocka_unit_test(refuses_a_cut_shard),
        cmocka_unit_test(reports_the_first_of_several_bad_shards),
        cmocka_unit_test(notes_what_does_not_stop_it),
        cmocka_unit_test(sums_up_notes_beyond_a_page),
        cmocka_unit_test(refuses_entries_that_are_no_regular_file),
        cmocka_unit_test(follows_links_inside_the_directory),
        cmocka_unit_test(knows_lfs_pointers),
        cmocka_unit_test(lists_what_a_conversion_copies),
        cmocka_unit_test(reads_other_files_within_bounds),
        cmocka_unit_test(reads_tensors_and_no_byte_else),
        cmocka_unit_test(notices_that_a_file_changed),
        cmocka_unit_test(does_not_hand_out_bytes_of_a_changed_file),
        cmocka_unit_test(reads_a_snapshot_through_its_links),
        cmocka_unit_test(looks_repositories_up_in_the_cache),
        cmocka_unit_test(refuses_links_out_of_the_repository),
        cmocka_unit_test(knows_a_checkpoint_by_its_headers),
        cmocka_unit_test(survives_each_allocation_that_fails),
        cmocka_unit_test(reports_that_descriptors_are_short),
    };

    return cmocka_run_group_tests_name("ckpt", tests, NULL, NULL);
}
