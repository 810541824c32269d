/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The reader of headers, from memory and from files. Small cases of
 * fixtures/malformed stand here again as C strings, so that they run where
 * nothing but a C compiler is (test_malformed.c runs them all).
 */

#include "safetensors.h"

#include "support/st_build.h"

#define U8(name, begin, end, n)                                                \
  "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #n "],"                         \
  "\"data_offsets\":[" #begin "," #end "]}"
#define E(dtype, shape, begin, end)                                            \
  "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape                           \
  ",\"data_offsets\":[" #begin "," #end "]}}"

typedef struct header_case {
    const char *what;
    const char *header;
    size_t data_bytes;
    moec_rule rule;   /* NONE: accepted */
    const char *says; /* part of the refusal, or NULL */
} header_case;

static const header_case cases[] = {
    {"no tensors", "{}", 0, MOEC_RULE_NONE, NULL},
    {"an empty header", "", 0, MOEC_RULE_H02, NULL},
    {"whitespace behind", "{}\r \t\n", 0, MOEC_RULE_NONE, NULL},
    {"whitespace before", " \n{}", 0, MOEC_RULE_NONE, NULL},
    {"an empty tensor", E("I32", "[2,0]", 0, 0), 0, MOEC_RULE_NONE, NULL},
    {"a scalar", E("F32", "[]", 0, 4), 4, MOEC_RULE_NONE, NULL},
    {"unordered", "{" U8("b", 4, 8, 4) "," U8("a", 0, 4, 4) "}", 8,
     MOEC_RULE_NONE, NULL},
    {"an empty one between",
     "{" U8("a", 0, 4, 4) "," U8("b", 4, 8, 4) "," U8("e", 4, 4, 0) "}", 8,
     MOEC_RULE_NONE, NULL},
    {"four of 6 bits", E("F6_E2M3", "[4]", 0, 3), 3, MOEC_RULE_NONE, NULL},
    {"metadata", "{\"__metadata__\":{\"format\":\"pt\"}," U8("t", 0, 1, 1) "}",
     1, MOEC_RULE_NONE, NULL},
    {"an unknown field",
     "{\"t\":{\"stride\":[1,{\"a\":[]}],\"dtype\":\"U8\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}",
     1, MOEC_RULE_NONE, NULL},
    {"a non-character", "{" U8("\\uffff", 0, 1, 1) "}", 1, MOEC_RULE_NONE,
     NULL},
    {"metadata alone", "{\"__metadata__\":{}}", 0, MOEC_RULE_NONE, NULL},

    {"an array", "[]", 0, MOEC_RULE_H02, "byte 8"},
    {"null", "null", 0, MOEC_RULE_H02, "byte 8"},
    {"a byte order mark", "\xef\xbb\xbf{}", 0, MOEC_RULE_H02, "0xef"},
    {"a byte that is no text", "\xff", 0, MOEC_RULE_H03, "byte 8"},
    {"an overlong form", "{" U8("\xc0\xaf", 0, 1, 1) "}", 1, MOEC_RULE_H03,
     "byte 10"},
    {"a trailing comma", E("U8", "[1,]", 0, 1), 1, MOEC_RULE_H04, "byte"},
    {"single quotes", "{'t':{}}", 0, MOEC_RULE_H04, "byte 9"},
    {"a raw control character", "{" U8("a\x01", 0, 1, 1) "}", 1, MOEC_RULE_H04,
     "byte 11"},
    {"a cut text", "{\"t\":{\"dtype\":\"U8\"", 0, MOEC_RULE_H04, "ends here"},
    {"two objects", "{}{}", 0, MOEC_RULE_H06, "byte 10"},
    {"a NUL behind", "{} \x01", 0, MOEC_RULE_H06, "byte 11"},

    {"a tensor twice", "{" U8("t", 0, 1, 1) "," U8("t", 1, 2, 1) "}", 2,
     MOEC_RULE_H07, "tensor 't'"},
    {"twice, once escaped", "{" U8("a/b", 0, 1, 1) "," U8("a\\/b", 1, 2, 1) "}",
     2, MOEC_RULE_H07, "tensor 'a/b'"},
    {"a field twice",
     "{\"t\":{\"dtype\":\"U8\",\"d\\u0074ype\":\"I8\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}",
     1, MOEC_RULE_H07, "'dtype'"},
    {"an unknown field twice",
     "{\"t\":{\"x\":1,\"x\":1,\"dtype\":\"U8\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}",
     1, MOEC_RULE_H07, "'x'"},
    {"twice inside an unknown field",
     "{\"t\":{\"x\":{\"y\":1,\"y\":1},\"dtype\":\"U8\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}",
     1, MOEC_RULE_H07, "byte"},
    {"a metadata key twice",
     "{\"__metadata__\":{\"a\":\"1\",\"\\u0061\":\"2\"}}", 0, MOEC_RULE_H07,
     "byte"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0,
     MOEC_RULE_H07, "__metadata__"},
    {"a NUL in a name", "{" U8("a\\u0000b", 0, 1, 1) "}", 1, MOEC_RULE_H08,
     "byte 9"},
    {"a metadata value of 1", "{\"__metadata__\":{\"a\":1}}", 0, MOEC_RULE_H09,
     "byte"},
    {"a metadata list", "{\"__metadata__\":[\"a\"]}", 0, MOEC_RULE_H09, NULL},
    {"a metadata string", "{\"__metadata__\":\"x\"}", 0, MOEC_RULE_H09, NULL},

    {"no dtype", "{\"t\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     MOEC_RULE_H10, "dtype is missing"},
    {"no shape", "{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1,
     MOEC_RULE_H10, "shape is missing"},
    {"no offsets", "{\"t\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, MOEC_RULE_H10,
     "data_offsets is missing"},
    {"an entry as an array", "{\"t\":[\"U8\",[1],[0,1]]}", 1, MOEC_RULE_H10,
     "tensor 't'"},
    {"a lower-case dtype", E("f32", "[1]", 0, 4), 4, MOEC_RULE_H11, "'f32'"},
    {"a dtype with a tail", E("F32 ", "[1]", 0, 4), 4, MOEC_RULE_H11, NULL},
    {"a dtype of 32",
     "{\"t\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     MOEC_RULE_H11, "tensor 't'"},
    {"a negative dimension", E("U8", "[-1]", 0, 1), 1, MOEC_RULE_H12, NULL},
    {"two of them", E("U8", "[-1,-1]", 0, 1), 1, MOEC_RULE_H12, NULL},
    {"1e0", E("U8", "[1e0]", 0, 1), 1, MOEC_RULE_H12, NULL},
    {"-0", E("U8", "[-0]", 0, 0), 0, MOEC_RULE_H12, NULL},
    {"2^64", E("U8", "[18446744073709551616]", 0, 0), 0, MOEC_RULE_H12, NULL},
    {"2^63", E("U8", "[9223372036854775808]", 0, 0), 0, MOEC_RULE_H12, NULL},
    {"a null shape", E("U8", "null", 0, 1), 1, MOEC_RULE_H12, NULL},
    {"one offset",
     "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1,
     MOEC_RULE_H13, NULL},
    {"three offsets",
     "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1,
     MOEC_RULE_H13, NULL},
    {"offsets as strings",
     "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[\"0\",1]}}", 1,
     MOEC_RULE_H13, NULL},
    {"a negative begin", E("U8", "[1]", -1, 0), 1, MOEC_RULE_H13, NULL},
    {"begin behind end", E("U8", "[1]", 1, 0), 1, MOEC_RULE_H14, "tensor 't'"},
    {"a hole at the start", E("U8", "[4]", 4, 8), 8, MOEC_RULE_H15, "hole"},
    {"an overlap", "{" U8("a", 0, 4, 4) "," U8("b", 2, 6, 4) "}", 6,
     MOEC_RULE_H15, "tensor 'b'"},
    {"an alias", "{" U8("a", 0, 4, 4) "," U8("b", 0, 4, 4) "}", 4,
     MOEC_RULE_H15, "overlap"},
    {"an empty tensor inside another",
     "{" U8("a", 0, 8, 8) "," U8("e", 4, 4, 0) "}", 8, MOEC_RULE_H15,
     "tensor 'e'"},
    {"an empty tensor past the end",
     "{" U8("a", 0, 8, 8) "," U8("e", 9, 9, 0) "}", 8, MOEC_RULE_H15, NULL},
    {"bytes behind", E("I32", "[2,2]", 0, 16), 20, MOEC_RULE_H16, "4 bytes"},
    {"data without tensors", "{}", 8, MOEC_RULE_H16, NULL},
    {"a short file", E("U8", "[100]", 0, 100), 4, MOEC_RULE_H17, "100"},
    {"fewer bytes than the shape says", E("I32", "[2,2]", 0, 4), 4,
     MOEC_RULE_H18, "16"},
    {"4 bits as bytes", E("F4", "[2]", 0, 2), 2, MOEC_RULE_H18, NULL},
    {"a product over 64 bits", E("I32", "[2,18446744073709551614]", 0, 16), 16,
     MOEC_RULE_H19, NULL},
    {"bits over 64 bits", E("I32", "[2,9223372036854775807]", 0, 16), 16,
     MOEC_RULE_H19, NULL},
    {"a zero before an overflow",
     E("F32", "[0,18446744073709551615,18446744073709551615]", 0, 0), 0,
     MOEC_RULE_H19, NULL},
    {"a zero behind an overflow",
     E("F32", "[18446744073709551615,18446744073709551615,0]", 0, 0), 0,
     MOEC_RULE_H19, NULL},
    {"half a byte", E("F4", "[3]", 0, 2), 2, MOEC_RULE_H20, "12 bits"},
    {"an empty name", "{" U8("", 0, 1, 1) "}", 1, MOEC_RULE_H22, NULL},
};

/* Read a header from memory of its exact size, or from a file. */
static moec_status read_bytes(moec_header *out, const st_bytes *b, bool file,
                              moec_error *err)
{
    tmpdir d;
    moec_status st;
    int fd;

    if (!file)
        return moec_header_parse(out, b->data, b->n, b->n, "m.safetensors",
                                 err);
    d = tmpdir_make();
    tmpdir_write(&d, "f", b->data, b->n);
    fd = open(tmpdir_path(&d, "f"), O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    st = moec_header_read(out, fd, b->n, "m.safetensors", NULL, NULL, err);
    close(fd);
    tmpdir_remove(&d);
    return st;
}

/* With room behind it, the quick way over usual entries is taken. */
#define ROOM ((size_t)400)

static st_bytes padded(const char *header, size_t n, size_t room,
                       size_t data_bytes)
{
    char *text = malloc(n + room + 1);
    st_bytes b;

    assert_non_null(text);
    memcpy(text, header, n);
    memset(text + n, ' ', room);
    b = st_file(text, n + room, data_bytes);
    free(text);
    return b;
}

static void check_case(const header_case *c, bool file, size_t room)
{
    st_bytes b = padded(c->header, strlen(c->header), room, c->data_bytes);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    moec_status st;

    memset(&h, 0x5a, sizeof(h));
    st = read_bytes(&h, &b, file, &err);
    if (err.rule != c->rule || (st == MOEC_OK) != (c->rule == MOEC_RULE_NONE))
        fail_msg("%s: '%s'", c->what, err.text);
    if (c->says != NULL && strstr(err.text, c->says) == NULL)
        fail_msg("%s: '%s' does not say '%s'", c->what, err.text, c->says);
    if (st == MOEC_OK) {
        assert_int_equal(h.header_bytes, 8 + strlen(c->header) + room);
        assert_int_equal(h.data_bytes, c->data_bytes);
        moec_header_fini(&h);
    } else {
        assert_int_equal(st, MOEC_E_FORMAT);
        assert_non_null(strstr(err.text, "m.safetensors"));
        assert_int_equal(((unsigned char *)&h)[0], 0x5a);
    }
    free(b.data);
}

static void judges_each_case_by_its_rule(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        check_case(&cases[i], false, 0);
        check_case(&cases[i], false, ROOM);
        check_case(&cases[i], true, 0);
        check_case(&cases[i], true, ROOM);
    }
}

static void refuses_lengths_that_lie(void **state)
{
    static const struct {
        uint64_t n;
        size_t bytes;
    } lies[] = {{0, 0},
                {0, 7},
                {3, 10},
                {UINT64_MAX, 10},
                {UINT64_C(1) << 63, 10},
                {100000001, 10},
                {UINT64_C(2) << 56, 10},
                {(UINT64_C(1) << 32) + 2, 10},
                {UINT64_MAX - 7, 10}};

    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
        unsigned char *data = calloc(1, lies[i].bytes + 1);
        st_bytes b;
        assert_non_null(data);
        for (unsigned k = 0; k < 8 && k < lies[i].bytes; k++)
            data[k] = (unsigned char)(lies[i].n >> 8 * k);
        b.n = lies[i].bytes;
        b.data = data;
        for (int file = 0; file < 2; file++) {
            moec_error err = MOEC_ERROR_INIT;
            moec_header h;
            assert_int_equal(read_bytes(&h, &b, file != 0, &err),
                             MOEC_E_FORMAT);
            assert_int_equal(err.rule, MOEC_RULE_H01);
            assert_int_equal(err.has_off, 1);
        }
        free(data);
    }
}

static void fills_the_table(void **state)
{
    static const char header[] =
        "{\"b\":{\"data_offsets\":[12,16],\"shape\":[1,2],"
        "\"dtype\":\"BF16\"}, \"\\u6743\" : {\"dtype\":\"F32\",\"shape\":[3],"
        "\"data_offsets\":[0,12]}}";
    st_bytes b = st_file(header, sizeof(header) - 1, 16);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    moec_sha256 want;

    (void)state;
    for (int file = 0; file < 2; file++) {
        assert_int_equal(read_bytes(&h, &b, file != 0, &err), MOEC_OK);
        assert_int_equal(h.n_tensors, 2);
        assert_string_equal(h.tensors[0].name, "b");
        assert_int_equal(h.tensors[0].dtype, MOEC_DTYPE_BF16);
        assert_int_equal(h.tensors[0].rank, 2);
        assert_int_equal(h.tensors[0].shape[0], 1);
        assert_int_equal(h.tensors[0].shape[1], 2);
        assert_int_equal(h.tensors[0].off, h.header_bytes + 12);
        assert_int_equal(h.tensors[0].bytes, 4);
        assert_string_equal(h.tensors[1].name, "\xe6\x9d\x83");
        assert_int_equal(h.tensors[1].off, h.header_bytes);
        assert_int_equal(
            moec_sha256_of(b.data, (size_t)h.header_bytes, &want, &err),
            MOEC_OK);
        assert_memory_equal(h.sha256.b, want.b, sizeof(want.b));
        assert_false(h.leading_space);
        assert_null(h.unknown_field);
        moec_header_fini(&h);
    }
    free(b.data);
}

static void remembers_what_is_worth_a_word(void **state)
{
    static const char header[] =
        " {\"t\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],"
        "\"stride\":[1]}}";
    st_bytes b = st_file(header, sizeof(header) - 1, 0);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;

    (void)state;
    assert_int_equal(read_bytes(&h, &b, false, &err), MOEC_OK);
    assert_true(h.leading_space);
    assert_string_equal(h.unknown_field, "stride");
    assert_string_equal(h.unknown_in, "t");
    moec_header_fini(&h);
    free(b.data);
}

/* A header of one U8 tensor: `name` repeated and `rank` dimensions of 1. */
static moec_rule limit_case(size_t name_bytes, size_t rank)
{
    char *text = malloc(name_bytes + 2 * rank + 128);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    st_bytes b;
    size_t n;

    assert_non_null(text);
    n = (size_t)sprintf(text, "{\"");
    memset(text + n, 'x', name_bytes);
    n += name_bytes;
    n += (size_t)sprintf(text + n, "\":{\"dtype\":\"U8\",\"shape\":[");
    for (size_t i = 0; i < rank; i++)
        n += (size_t)sprintf(text + n, i == 0 ? "1" : ",1");
    n += (size_t)sprintf(text + n, "],\"data_offsets\":[0,1]}}");
    b = st_file(text, n, 1);
    if (read_bytes(&h, &b, false, &err) == MOEC_OK) {
        assert_int_equal(strlen(h.tensors[0].name), name_bytes);
        assert_int_equal(h.tensors[0].rank, rank);
        moec_header_fini(&h);
    }
    free(b.data);
    free(text);
    return err.rule;
}

static void keeps_its_limits_to_the_last_one(void **state)
{
    (void)state;
    assert_int_equal(limit_case(1, 32), MOEC_RULE_NONE);
    assert_int_equal(limit_case(1, 33), MOEC_RULE_H21);
    assert_int_equal(limit_case(512, 1), MOEC_RULE_NONE);
    assert_int_equal(limit_case(513, 1), MOEC_RULE_H22);
    assert_int_equal(limit_case(100000, 1), MOEC_RULE_H22);
}

static moec_rule metadata_case(size_t n_keys)
{
    char *text = malloc(n_keys * 16 + 64);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    st_bytes b;
    size_t n;

    assert_non_null(text);
    n = (size_t)sprintf(text, "{\"__metadata__\":{");
    for (size_t i = 0; i < n_keys; i++)
        n += (size_t)sprintf(text + n, "%s\"%zu\":\"\"", i == 0 ? "" : ",", i);
    n += (size_t)sprintf(text + n, "}}");
    b = st_file(text, n, 0);
    if (read_bytes(&h, &b, false, &err) == MOEC_OK)
        moec_header_fini(&h);
    free(b.data);
    free(text);
    return err.rule;
}

static void bounds_the_keys_of_metadata(void **state)
{
    (void)state;
    assert_int_equal(metadata_case(65536), MOEC_RULE_NONE);
    assert_int_equal(metadata_case(65537), MOEC_RULE_H09);
}

/* A header of several windows: names with escapes and long sequences stand at
 * every position of a window's end. `twice` repeats the first name. */
static st_bytes long_header(size_t n_tensors, bool twice)
{
    char *text = malloc(n_tensors * 160 + 256);
    size_t n = 0;
    st_bytes b;

    assert_non_null(text);
    n += (size_t)sprintf(text + n, "{");
    for (size_t i = 0; i < n_tensors; i++)
        n += (size_t)sprintf(
            text + n,
            "%s\"\\u6743\xe9\x87\x8d\\n\xf0\x9f\x98\x80.%zu\":{\"dtype\":"
            "\"U8\",\"shape\":[%zu,1],\"data_offsets\":[%zu,%zu]}",
            i == 0 ? "" : ",", twice && i + 1 == n_tensors ? 0 : i, i % 3,
            i / 3 * 3 + (i % 3 > 1), i / 3 * 3 + (i % 3 > 1) + i % 3);
    n += (size_t)sprintf(text + n, "}");
    b = st_file(text, n, n_tensors / 3 * 3);
    free(text);
    return b;
}

static void reads_alike_in_windows_and_at_once(void **state)
{
    enum { N = 30000 };
    st_bytes b = long_header(N, false);
    moec_error err = MOEC_ERROR_INIT;
    moec_header whole, windows;

    (void)state;
    assert_true(b.n > 2u << 20);
    assert_int_equal(read_bytes(&whole, &b, false, &err), MOEC_OK);
    assert_int_equal(read_bytes(&windows, &b, true, &err), MOEC_OK);
    assert_int_equal(whole.n_tensors, N);
    assert_int_equal(windows.n_tensors, N);
    assert_memory_equal(whole.sha256.b, windows.sha256.b, 32);
    for (size_t i = 0; i < N; i++) {
        char name[64];
        (void)sprintf(name, "\xe6\x9d\x83\xe9\x87\x8d\n\xf0\x9f\x98\x80.%zu",
                      i);
        assert_string_equal(windows.tensors[i].name, name);
        assert_string_equal(whole.tensors[i].name, name);
        assert_int_equal(windows.tensors[i].shape[0], i % 3);
        assert_true(windows.tensors[i].off == whole.tensors[i].off);
        assert_true(windows.tensors[i].bytes == i % 3);
    }
    moec_header_fini(&whole);
    moec_header_fini(&windows);
    free(b.data);
}

/* Read a header without and with room behind it: the same verdict, word for
 * word, and the same tensors. */
static void check_both_ways(const char *text, size_t n)
{
    moec_error err[2] = {MOEC_ERROR_INIT, MOEC_ERROR_INIT};
    moec_header h[2];
    moec_status st[2];

    for (size_t i = 0; i < 2; i++) {
        st_bytes b = padded(text, n, i * ROOM, 30);
        st[i] = read_bytes(&h[i], &b, false, &err[i]);
        free(b.data);
    }
    if (st[0] != st[1] || err[0].rule != err[1].rule)
        fail_msg("'%.*s': '%s', with room behind '%s'", (int)n, text,
                 err[0].text, err[1].text);
    if (st[0] != MOEC_OK) {
        /* H16 and H17 name bytes of the file, H02 to H06 may meet the room */
        if (err[0].rule > MOEC_RULE_H06 && err[0].rule != MOEC_RULE_H16 &&
            err[0].rule != MOEC_RULE_H17)
            assert_string_equal(err[0].text, err[1].text);
        return;
    }
    assert_int_equal(h[0].n_tensors, h[1].n_tensors);
    assert_int_equal(h[0].n_breaks, h[1].n_breaks);
    for (size_t i = 0; i < h[0].n_tensors; i++) {
        const moec_tensor *a = &h[0].tensors[i], *b = &h[1].tensors[i];
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->dtype, b->dtype);
        assert_int_equal(a->rank, b->rank);
        assert_memory_equal(a->shape, b->shape, a->rank * sizeof(*a->shape));
        assert_true(a->bytes == b->bytes && a->off + ROOM == b->off);
    }
    moec_header_fini(&h[0]);
    moec_header_fini(&h[1]);
}

static void judges_bent_entries_alike_on_both_ways(void **state)
{
    static const char *const texts[] = {
        "{\"b.12\":{\"dtype\":\"F32\",\"shape\":[2,3],"
        "\"data_offsets\":[0,24]},\"a\":{\"dtype\":\"U8\",\"shape\":[6],"
        "\"data_offsets\":[24,30]}}",
        "{\"b.12\": {\"dtype\": \"BF16\", \"shape\": [1, 15], "
        "\"data_offsets\": [0, 30]}}",
        "{\"z\":{\"dtype\":\"F8_E4M3\",\"shape\":[],"
        "\"data_offsets\":[0,1]},\"e\":{\"dtype\":\"I64\",\"shape\":[0,"
        "123456789012345],\"data_offsets\":[1,1]},\"y\":{\"dtype\":"
        "\"F8_E4M3FNUZ\",\"shape\":[29],\"data_offsets\":[1,30]}}"};
    static const char bends[] = "\"\\}], 0a-\x01\xc3";

    (void)state;
    for (size_t t = 0; t < sizeof(texts) / sizeof(*texts); t++) {
        size_t n = strlen(texts[t]);
        char text[512];
        check_both_ways(texts[t], n);
        for (size_t i = 0; i < n; i++) {
            memcpy(text, texts[t], n); /* without byte i */
            memmove(text + i, text + i + 1, n - i - 1);
            check_both_ways(text, n - 1);
            for (size_t b = 0; b < sizeof(bends); b++) {
                memcpy(text, texts[t], n);
                text[i] = bends[b];
                check_both_ways(text, n);
                memcpy(text + i + 1, texts[t] + i, n - i);
                check_both_ways(text, n + 1);
            }
        }
    }
}

static void reads_integers_of_every_length(void **state)
{
    uint64_t v = 0;

    (void)state;
    for (unsigned digits = 1; digits <= 19; digits++) {
        char text[160];
        int n;
        v = v * 10 + digits % 10;
        n = snprintf(text, sizeof(text),
                     "{\"t\":{\"dtype\":\"U8\",\"shape\":[0,%ju],"
                     "\"data_offsets\":[0,0]},\"u\":{\"dtype\":\"U8\","
                     "\"shape\":[30],\"data_offsets\":[0,30]}}",
                     (uintmax_t)v);
        st_bytes b = padded(text, (size_t)n, ROOM, 30);
        moec_error err = MOEC_ERROR_INIT;
        moec_header h;
        assert_int_equal(read_bytes(&h, &b, false, &err), MOEC_OK);
        assert_true(h.tensors[0].shape[1] == v);
        moec_header_fini(&h);
        free(b.data);
        check_both_ways(text, (size_t)n);
    }
}

/* Ascending names make one run, whatever their order in the data. */
static void notes_where_names_descend(void **state)
{
    static const char text[] = "{" U8("b", 0, 1, 1) "," U8("c", 1, 2, 1) "," U8(
        "a", 2, 3, 1) "," U8("d", 3, 4, 1) "}";
    st_bytes b = st_file(text, sizeof(text) - 1, 4);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    moec_run runs[2];

    (void)state;
    assert_int_equal(read_bytes(&h, &b, false, &err), MOEC_OK);
    assert_int_equal(moec_header_n_runs(&h), 2);
    assert_int_equal(moec_header_runs(&h, runs), 2);
    assert_ptr_equal(runs[0].next, h.tensors);
    assert_ptr_equal(runs[0].end, h.tensors + 2);
    assert_ptr_equal(runs[1].next, h.tensors + 2);
    assert_ptr_equal(runs[1].end, h.tensors + 4);
    moec_header_fini(&h);
    free(b.data);
}

static void finds_a_duplicate_behind_many_names(void **state)
{
    st_bytes b = long_header(30000, true);
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;

    (void)state;
    assert_int_equal(read_bytes(&h, &b, true, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_H07);
    assert_non_null(strstr(err.text, "\\x0a")); /* escaped in the message */
    free(b.data);
}

/* A file that became shorter than it was when it was opened, at each byte of
 * its header: spaces put that byte at the end of a window. */
static void says_where_a_file_shrank(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"a\":\"b\"},\"b\":{\"dtype\":\"U8\","
        "\"shape\":[2,2],\"x\":1,\"data_offsets\":[0,4]}}";
    enum { WINDOW = 1 << 20, N = sizeof(header) - 1 };
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    tmpdir d = tmpdir_make();
    char *text = malloc(WINDOW + 8 + N);

    (void)state;
    assert_non_null(text);
    for (size_t k = 1; k < N; k++) {
        uint64_t bytes = WINDOW + N - k;
        int fd;

        memset(text, ' ', WINDOW + 8);
        for (unsigned i = 0; i < 8; i++)
            text[i] = (char)(bytes >> 8 * i);
        text[8] = '{';
        memcpy(text + 8 + WINDOW - k + 1, header + 1, k - 1);
        tmpdir_write(&d, "s", text, WINDOW + 8);
        fd = open(tmpdir_path(&d, "s"), O_RDONLY | O_CLOEXEC);
        err = (moec_error)MOEC_ERROR_INIT;
        if (moec_header_read(&h, fd, 8 + bytes + 4, "s", NULL, NULL, &err) !=
                MOEC_E_FORMAT ||
            err.rule != MOEC_RULE_H17)
            fail_msg("behind '%.*s': %s", (int)k, header, err.text);
        close(fd);
    }
    free(text);
    tmpdir_remove(&d);
}

/* What a caller holds may be less than the file that it tells of. */
static void refuses_less_than_a_header(void **state)
{
    static const char data[] = "\x10\0\0\0\0\0\0\0{}              ";
    moec_error err = MOEC_ERROR_INIT;
    tmpdir d = tmpdir_make();
    moec_header h;
    int fd;

    (void)state;
    assert_int_equal(moec_header_parse(&h, data, 24, 24, "s", NULL), MOEC_OK);
    moec_header_fini(&h);
    for (size_t n = 0; n < 24; n++)
        assert_int_equal(moec_header_parse(&h, data, n, 24, "s", NULL),
                         MOEC_E_FORMAT);
    assert_int_equal(moec_header_parse(&h, data, 23, 24, "s", &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_H01);
    tmpdir_write(&d, "s", data, 7);
    fd = open(tmpdir_path(&d, "s"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(moec_header_read(&h, fd, 24, "s", NULL, NULL, NULL),
                     MOEC_E_FORMAT);
    close(fd);
    tmpdir_remove(&d);
}

static void survives_each_allocation_that_fails(void **state)
{
    static const char header[] = "{\"__metadata__\":{\"a\":\"b\"}," U8(
        "b", 4, 8, 4) ","
                      "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"x\":{\"y\":1},"
                      "\"data_offsets\":[0,4]}}";
    st_bytes b = st_file(header, sizeof(header) - 1, 8);

    (void)state;
    for (int file = 0; file < 2; file++) {
        uint64_t k = 1;
        for (;; k++) {
            moec_error err = MOEC_ERROR_INIT;
            moec_header h;
            moec_status st;
            assert_true(k < 100);
            moec_alloc_fail_at(k);
            st = read_bytes(&h, &b, file != 0, &err);
            if (moec_alloc_fail_at(0) < k) {
                assert_int_equal(st, MOEC_OK);
                moec_header_fini(&h);
                break;
            }
            assert_int_equal(st, MOEC_E_NOMEM);
            assert_int_equal(err.status, MOEC_E_NOMEM);
        }
        assert_true(k > 5);
    }
    free(b.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(judges_each_case_by_its_rule),
        cmocka_unit_test(refuses_lengths_that_lie),
        cmocka_unit_test(fills_the_table),
        cmocka_unit_test(remembers_what_is_worth_a_word),
        cmocka_unit_test(keeps_its_limits_to_the_last_one),
        cmocka_unit_test(bounds_the_keys_of_metadata),
        cmocka_unit_test(reads_alike_in_windows_and_at_once),
        cmocka_unit_test(judges_bent_entries_alike_on_both_ways),
        cmocka_unit_test(reads_integers_of_every_length),
        cmocka_unit_test(notes_where_names_descend),
        cmocka_unit_test(finds_a_duplicate_behind_many_names),
        cmocka_unit_test(says_where_a_file_shrank),
        cmocka_unit_test(refuses_less_than_a_header),
        cmocka_unit_test(survives_each_allocation_that_fails),
    };

    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
