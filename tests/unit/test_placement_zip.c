/* SPDX-License-Identifier: Apache-2.0 */

/* ZIP files of arrays, made here byte by byte: what a directory may say of its
 * entries, and what it must not. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "placement_rows.h"

/* Two .npy of phy2log [[0, 1]], stored without compression. */
static const char array[] = "\x93NUMPY\1\0\x3d\0"
                            "{'descr': '|u1', 'fortran_order': False, "
                            "'shape': (1,2), }  \n\0\1";

typedef struct zip {
    unsigned char b[8192];
    size_t n, n_entries, directory;
    struct {
        size_t at, bytes;
        const char *name;
        uint32_t crc;
    } e[9];
} zip;

static void put(zip *z, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        z->b[z->n++] = (unsigned char)(i < 8 ? v >> 8 * i : 0);
}

static void put_bytes(zip *z, const void *data, size_t n)
{
    memcpy(z->b + z->n, data, n);
    z->n += n;
}

static uint32_t crc32_of(const unsigned char *p, size_t n)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
    }
    return ~crc;
}

static void add(zip *z, const char *name, const void *data, size_t n)
{
    z->e[z->n_entries].at = z->n;
    z->e[z->n_entries].bytes = n;
    z->e[z->n_entries].name = name;
    z->e[z->n_entries++].crc = crc32_of(data, n);
    put_bytes(z, "PK\3\4", 4);
    for (int i = 0; i < 22; i++)
        put(z, 0, 1);
    put(z, strlen(name), 2);
    put(z, 0, 2);
    put_bytes(z, name, strlen(name));
    put_bytes(z, data, n);
}

/* Directory and end record. Fields of an entry: 8 flags, 10 method, 16 CRC, 20
 * and 24 sizes, 28 name's length, 42 place. */
static void finish(zip *z)
{
    z->directory = z->n;
    for (size_t i = 0; i < z->n_entries; i++) {
        put_bytes(z, "PK\1\2", 4);
        put(z, 0, 8);
        put(z, 0, 4);
        put(z, z->e[i].crc, 4);
        put(z, z->e[i].bytes, 4);
        put(z, z->e[i].bytes, 4);
        put(z, strlen(z->e[i].name), 2);
        put(z, 0, 12);
        put(z, z->e[i].at, 4);
        put_bytes(z, z->e[i].name, strlen(z->e[i].name));
    }
    size_t end = z->n;
    put_bytes(z, "PK\5\6", 4);
    put(z, 0, 4);
    put(z, z->n_entries, 2);
    put(z, z->n_entries, 2);
    put(z, end - z->directory, 4);
    put(z, z->directory, 4);
    put(z, 0, 2);
}

static moec_status read_zip(const zip *z, moec_error *err)
{
    static const moec_layer_key key = {MOEC_SPACE_MAIN, 0};
    moec_placement_target t = MOEC_PLACEMENT_TARGET_INIT;
    moec_placement_file *f = NULL;
    moec_status st;

    t.n_experts = 2;
    t.n_layers = 1;
    t.keys = &key;
    t.n_keys = 1;
    *err = (moec_error)MOEC_ERROR_INIT;
    st = moec_placement_file_read(&f, &t, "p", (const char *)z->b, z->n, err);
    moec_placement_file_close(f);
    return st;
}

static void expect(const zip *z, const char *text)
{
    moec_error err;
    moec_status st = read_zip(z, &err);

    if (text == NULL && st != MOEC_OK)
        fail_msg("%s", err.text);
    if (text != NULL &&
        (st == MOEC_OK || err.rule != MOEC_RULE_P01 || !strstr(err.text, text)))
        fail_msg("no '%s': %s", text, err.text);
}

static zip npz(const char *name)
{
    zip z = {.n = 0};

    add(&z, name, array, sizeof(array) - 1);
    finish(&z);
    return z;
}

static void reads_named_and_numbered_arrays(void **state)
{
    zip z = npz("phy2log.npy");

    (void)state;
    expect(&z, NULL);
    z = npz("arr_0.npy");
    expect(&z, NULL);
    z.b[z.n - 2] = 3; /* a comment behind the end record */
    put_bytes(&z, "abc", 3);
    expect(&z, NULL);
}

static void refuses_directories_that_lie(void **state)
{
    static const struct {
        size_t at; /* in the first central entry */
        unsigned char byte;
        const char *text;
    } cases[] = {
        {0, 'X', "directory is damaged"},
        {8, 1, "an encrypted entry"},
        {10, 8, "a compressed entry"},
        {16, 0xaa, "have not their CRC-32"},
        {20, 1, "two sizes differ"},
        {24, 1, "two sizes differ"},
        {29, 0x7f, "directory is damaged"}, /* a name beyond the file */
        {31, 0x7f, "directory is damaged"}, /* more fields */
        {42, 1, "not where the directory says"},
        {44, 1, "not where the directory says"},
        {42, 0xf0, "not where the directory says"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        zip z = npz("phy2log.npy");

        z.b[z.directory + cases[i].at] = cases[i].byte;
        expect(&z, cases[i].text);
    }
}

static void refuses_sizes_of_zip64(void **state)
{
    zip z = npz("phy2log.npy");

    (void)state;
    memset(z.b + z.directory + 20, 0xff, 8);
    expect(&z, "or of ZIP64");
    z = npz("phy2log.npy");
    memset(z.b + z.directory + 42, 0xff, 4);
    expect(&z, "or of ZIP64");
}

static void refuses_entries_that_leave_the_file(void **state)
{
    zip z = npz("phy2log.npy");

    (void)state;
    z.b[29] = 0x7f; /* the local record's extra field */
    expect(&z, "leaves the file");
    z = npz("phy2log.npy");
    z.b[z.directory + 22] = z.b[z.directory + 26] = 1; /* 64 KiB */
    expect(&z, "leaves the file");
}

static void refuses_end_records_that_lie(void **state)
{
    static const struct {
        size_t at; /* in the end record */
        unsigned char byte;
        const char *text;
    } cases[] = {
        {4, 1, "several disks"},
        {8, 2, "several disks"},
        {9, 2, "several disks"},
        {16, 0xff, "directory is damaged"},
        {19, 0x7f, "directory is damaged"},
        {20, 1, "no end record"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        zip z = npz("phy2log.npy");

        z.b[z.n - 22 + cases[i].at] = cases[i].byte;
        expect(&z, cases[i].text);
    }
    zip z = npz("phy2log.npy");
    z.b[z.n - 22 + 9] = z.b[z.n - 22 + 11] = 2; /* 513 entries */
    expect(&z, "more entries than a placement has");
    z = npz("phy2log.npy");
    memmove(z.b + 4, z.b + z.n - 22, 10); /* nothing but a beginning */
    z.n = 14;
    expect(&z, "too short");
}

static void refuses_entries_that_are_no_arrays(void **state)
{
    zip z = npz("phy2log.txt");

    (void)state;
    expect(&z, "neither torch.save's nor numpy.savez's");
    z = npz("x");
    expect(&z, "neither torch.save's nor numpy.savez's");
    z = npz("a_name_of_an_array_that_is_longer_than_any.npy");
    expect(&z, "no .npy beside others");
    z = (zip){.n = 0};
    add(&z, "phy2log.npy", array, sizeof(array) - 1);
    add(&z, "readme.txt", "x", 1);
    finish(&z);
    expect(&z, "no .npy beside others");
    z = (zip){.n = 0};
    add(&z, "phy2log.npy", array, sizeof(array) - 1);
    add(&z, "phy2log.npy", array, sizeof(array) - 1);
    finish(&z);
    expect(&z, "two entries of one name");
    z = (zip){.n = 0};
    add(&z, "a.npy", array, sizeof(array) - 1);
    for (size_t i = 1; i < 8; i++) {
        static const char *const names[] = {"b.npy", "c.npy", "d.npy", "e.npy",
                                            "f.npy", "g.npy", "h.npy"};
        z.e[i] = z.e[0];
        z.e[i].name = names[i - 1];
        z.n_entries++;
    }
    finish(&z);
    moec_error err; /* one array's bytes, many times over */
    assert_int_not_equal(read_zip(&z, &err), MOEC_OK);
}

/* An array of zeros with this shape; the file is as long as it says. */
static void add_shape(zip *z, const char *name, const char *shape, size_t n)
{
    char text[256] = "\x93NUMPY\1";
    int bytes = snprintf(text + 10, 160,
                         "{'descr': '|u1', 'fortran_order': False, 'shape': "
                         "%s}",
                         shape);

    text[8] = (char)bytes;
    memset(text + 10 + bytes, 0, n);
    add(z, name, text, 10 + (size_t)bytes + n);
}

static void refuses_arrays_of_other_forms(void **state)
{
    static const struct {
        const char *names[3], *shapes[3];
        size_t n[3];
        const char *text;
    } cases[] = {
        {{"phy2log.npy"}, {"(2,)"}, {2}, "phy2log has 1 dimensions"},
        {{"log2phy.npy"}, {"(2,)"}, {2}, "log2phy has 1 dimensions"},
        {{"phy2log.npy", "logcnt.npy"},
         {"(1,2)", "(2,)"},
         {2, 2},
         "logcnt has 1 dimensions"},
        {{"physical_to_logical_map.npy"},
         {"(2,)"},
         {2},
         "physical_to_logical_map has 1 dimensions"},
        {{"physical_to_logical_map.npy", "phy2log.npy"},
         {"(1,2)", "(1,2)"},
         {2, 2},
         "1 arrays beside physical_to_logical_map"},
        {{"logcnt.npy"}, {"(1,2)"}, {2}, ""},
        {{"arr_0.npy"}, {"(2,)"}, {2}, "1 arrays of no known form"},
        {{"arr_0.npy", "arr_1.npy"},
         {"(1,2)", "(1,2)"},
         {2, 2},
         "2 arrays of no known form"},
        {{"arr_0.npy", "arr_1.npy", "arr_2.npy"},
         {"(2,)", "(1,2,1)", "(1,2)"},
         {2, 2, 2},
         "phy2log has 1 dimensions"},
        {{"phy2log.npy"}, {"(1,1,1,2)"}, {2}, "dimensions"},
        {{"phy2log.npy"}, {"()"}, {1}, ""},
        {{"phy2log.npy"}, {"(0,2)"}, {0}, ""},
        {{"phy2log.npy", "other.npy"}, {"(1,2)", "(1,2)"}, {2, 2}, ""},
    };
    moec_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        zip z = {.n = 0};

        for (int k = 0; k < 3 && cases[i].names[k]; k++)
            add_shape(&z, cases[i].names[k], cases[i].shapes[k], cases[i].n[k]);
        finish(&z);
        if (read_zip(&z, &err) == MOEC_OK || !strstr(err.text, cases[i].text))
            fail_msg("case %zu, no '%s': %s", i, cases[i].text, err.text);
    }
    zip z = {.n = 0};
    for (int k = 0; k < 9; k++) {
        static const char *const names[] = {
            "arr_0.npy", "arr_1.npy", "arr_2.npy", "arr_3.npy", "arr_4.npy",
            "arr_5.npy", "arr_6.npy", "arr_7.npy", "arr_8.npy"};
        add_shape(&z, names[k], "(1,2)", 2);
    }
    finish(&z);
    assert_int_equal(read_zip(&z, &err), MOEC_E_FORMAT);
}

static void refuses_torch_files_of_other_orders(void **state)
{
    static char name[300];
    zip z = {.n = 0};

    (void)state;
    add(&z, "a/data.pkl", "\x80\2N.", 4);
    add(&z, "a/byteorder", "big", 3);
    finish(&z);
    expect(&z, "not little-endian");
    z = (zip){.n = 0};
    add(&z, "a/data.pkl", "\x80\2N.", 4);
    add(&z, "a/byteorder", "litTle", 6);
    finish(&z);
    expect(&z, "not little-endian");
    z = (zip){.n = 0};
    add(&z, "a/data.pkl", "\x80\2N.", 4);
    add(&z, "a/byteorder", "little", 6);
    finish(&z);
    expect(&z, "holds something else than tensors");
    memset(name, 'd', 280);
    memcpy(name + 280, "/data.pkl", 10);
    z = (zip){.n = 0};
    add(&z, name, "\x80\2N.", 4);
    finish(&z);
    expect(&z, "a name too long");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_named_and_numbered_arrays),
        cmocka_unit_test(refuses_directories_that_lie),
        cmocka_unit_test(refuses_sizes_of_zip64),
        cmocka_unit_test(refuses_entries_that_leave_the_file),
        cmocka_unit_test(refuses_end_records_that_lie),
        cmocka_unit_test(refuses_entries_that_are_no_arrays),
        cmocka_unit_test(refuses_arrays_of_other_forms),
        cmocka_unit_test(refuses_torch_files_of_other_orders),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
