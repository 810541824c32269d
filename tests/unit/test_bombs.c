/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Headers and indices of 100 MB that want the reader's memory: each must end
 * with its verdict inside 128 MiB. Every case runs in a child, whose peak is
 * read; the seconds are printed and not judged. A run does every fourth case,
 * `test_bombs all` all of them (target bombs-all). Label: slow.
 */

#include "ckpt.h"

#include "support/st_build.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#define HEADER_BYTES ((size_t)100000000)
#define INDEX_BYTES  ((size_t)200000000)
#define PEAK_KIB_MAX (128 * 1024)

/* Sanitizers have a memory of their own. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#  define PEAK_IS_OURS 0
#elif defined(__has_feature)
#  if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||   \
      __has_feature(memory_sanitizer)
#    define PEAK_IS_OURS 0
#  endif
#endif
#ifndef PEAK_IS_OURS
#  define PEAK_IS_OURS 1
#endif

/* Text: `head`, then `unit` again and again, then `tail`, then spaces. In a
 * unit, '#' stands for eight hexadecimal digits of its number, '<' and '>' for
 * begin and end of a tensor of one byte, the last tensor first. */
typedef struct bomb {
    const char *what;
    const char *head, *unit, *tail;
    size_t n_units; /* 0: as many as fit */
    moec_rule rule; /* NONE: accepted */
} bomb;

#define ENTRY  "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}"
#define FIELDS "\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]"

static const bomb headers[] = {
    {"one name", "{\"", "xxxxxxxxxxxxxxxx", "\":" ENTRY "}", 0, MOEC_RULE_H22},
    {"one name of escapes", "{\"", "\\u0041\\n\\/", "\":" ENTRY "}", 0,
     MOEC_RULE_H22},
    {"one name of two-byte letters", "{\"", "\xc3\xa9", "\":" ENTRY "}", 0,
     MOEC_RULE_H22},
    {"a name that never ends", "{\"", "xxxxxxxx", "", 0, MOEC_RULE_H04},
    {"nested lists", "{\"t\":", "[", "", 0, MOEC_RULE_H05},
    {"nested objects", "{\"t\":", "{\"a\":", "", 0, MOEC_RULE_H05},
    {"nested metadata", "{\"__metadata__\":", "{\"a\":", "", 0, MOEC_RULE_H05},
    {"spaces before", "", " ", "{}", 0, MOEC_RULE_NONE},
    {"line ends before", "", "\n", "{}", 0, MOEC_RULE_NONE},
    {"spaces behind", "{}", " ", "", 0, MOEC_RULE_NONE},
    {"spaces inside", "{\"t\":", " ", ENTRY "}", 0, MOEC_RULE_NONE},
    {"empty entries", "{", "\"#\":{},", "\"z\":{}}", 0, MOEC_RULE_H10},
    {"entries beyond the limit", "{", "\"#\":" ENTRY ",", "\"z\":" ENTRY "}", 0,
     MOEC_RULE_H23},
    {"a million entries and a hole", "{",
     "\"model.layers.0.mlp.experts.#.w\":{\"dtype\":\"U8\",\"shape\":[1],"
     "\"data_offsets\":[<,>]},",
     "\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[90000000,"
     "90000001]}}",
     950000, MOEC_RULE_H15},
    {"a shape of many dimensions", "{\"t\":{\"shape\":[1", ",1", "]}}", 0,
     MOEC_RULE_H21},
    {"a dimension of many digits", "{\"t\":{\"shape\":[1", "00000000", "]}}", 0,
     MOEC_RULE_H12},
    {"a shape of strings", "{\"t\":{\"shape\":[\"", "xxxx", "\"]}}", 0,
     MOEC_RULE_H12},
    {"a shape that is an object", "{\"t\":{\"shape\":{\"a\":1", ",\"#\":\"\"",
     "}}}", 0, MOEC_RULE_H10},
    {"many offsets", "{\"t\":{\"data_offsets\":[0", ",0", "]}}", 0,
     MOEC_RULE_H13},
    {"metadata of many keys", "{\"__metadata__\":{\"a\":\"\"", ",\"#\":\"\"",
     "}}", 0, MOEC_RULE_H09},
    {"metadata of one value", "{\"__metadata__\":{\"a\":\"", "xxxxxxxxxxxx",
     "\"}}", 0, MOEC_RULE_NONE},
    {"metadata of one key", "{\"__metadata__\":{\"", "xxxxxxxxxxxx",
     "\":\"\"}}", 0, MOEC_RULE_NONE},
    {"metadata of surrogates", "{\"__metadata__\":{\"a\":\"", "\\uD83D\\uDE00",
     "\"}}", 0, MOEC_RULE_NONE},
    {"metadata as a list", "{\"__metadata__\":[1", ",1", "]}", 0,
     MOEC_RULE_H09},
    {"an unknown list", "{\"t\":{\"x\":[1", ",1", "]," FIELDS "}}", 0,
     MOEC_RULE_NONE},
    {"an unknown list of lists", "{\"t\":{\"x\":[1", ",[]", "]," FIELDS "}}", 0,
     MOEC_RULE_NONE},
    {"an unknown list of objects", "{\"t\":{\"x\":[1", ",{\"a\":1}",
     "]," FIELDS "}}", 0, MOEC_RULE_H10},
    {"unknown fields", "{\"t\":{" FIELDS, ",\"#\":1", "}}", 0, MOEC_RULE_H10},
    {"an unknown field of one name", "{\"t\":{" FIELDS ",\"", "xxxx", "\":1}}",
     0, MOEC_RULE_NONE},
    {"an unknown field in each entry", "{",
     "\"#\":{\"x#\":{\"y\":[]}," FIELDS "},", "\"z\":" ENTRY "}", 900000,
     MOEC_RULE_NONE},
    {"a second object", "{}", "{}", "", 0, MOEC_RULE_H06},
    {"nothing but zeros", "\x01", "\x01\x01\x01\x01", "", 0, MOEC_RULE_H02},
};

static const bomb indices[] = {
    {"one name", "{\"weight_map\":{\"", "xxxx", "\":\"m.safetensors\"}}", 0,
     MOEC_RULE_H22},
    {"one file name", "{\"weight_map\":{\"t\":\"", "xxxx", "\"}}", 0,
     MOEC_RULE_I05},
    {"nested lists", "{\"weight_map\":", "[", "", 0, MOEC_RULE_I09},
    {"entries beyond the limit", "{\"weight_map\":{",
     "\"#\":\"m.safetensors\",", "\"t\":\"m.safetensors\"}}", 0, MOEC_RULE_I04},
    {"entries without tensors", "{\"weight_map\":{",
     "\"model.layers.0.mlp.experts.#\":\"m.safetensors\",",
     "\"t\":\"m.safetensors\"}}", 1990000, MOEC_RULE_I08},
    {"unknown keys", "{\"weight_map\":{\"t\":\"m.safetensors\"}", ",\"#\":1",
     "}", 0, MOEC_RULE_I04},
    {"unknown keys in metadata", "{\"metadata\":{\"a\":1", ",\"#\":1",
     "},\"weight_map\":{\"t\":\"m.safetensors\"}}", 0, MOEC_RULE_I04},
    {"an unknown list", "{\"x\":[1", ",1",
     "],\"weight_map\":{\"t\":\"m.safetensors\"}}", 0, MOEC_RULE_NONE},
};

/* Write unit number i to `out`; return its bytes. */
static size_t put_unit(char *out, const char *unit, size_t i, size_t n_units)
{
    char *p = out;

    for (; *unit != '\0'; unit++) {
        if (*unit == '#')
            p += sprintf(p, "%08zx", i);
        else if (*unit == '<')
            p += sprintf(p, "%zu", n_units - 1 - i);
        else if (*unit == '>')
            p += sprintf(p, "%zu", n_units - i);
        else
            *p++ = *unit;
    }
    return (size_t)(p - out);
}

/* Write `total` bytes of bomb `b` into a new file, behind their length where
 * it is a header. */
static void write_bomb(const tmpdir *d, const char *name, const bomb *b,
                       size_t total, bool header)
{
    FILE *f = fopen(tmpdir_path(d, name), "wb");
    size_t at = strlen(b->head), tail = strlen(b->tail), i = 0;
    char unit[512];

    assert_non_null(f);
    for (unsigned k = 0; header && k < 8; k++)
        (void)fputc((int)((uint64_t)total >> 8 * k & 0xff), f);
    (void)fputs(b->head, f);
    for (; b->n_units == 0 || i < b->n_units; i++) {
        size_t n = put_unit(unit, b->unit, i, b->n_units);
        if (at + n + tail > total)
            break;
        (void)fwrite(unit, 1, n, f);
        at += n;
    }
    (void)fputs(b->tail, f);
    for (at += tail; at < total; at++)
        (void)fputc(' ', f);
    assert_int_equal(ferror(f), 0);
    assert_int_equal(fclose(f), 0);
}

/* What the child tells. */
typedef struct outcome {
    moec_status status;
    moec_rule rule;
    long peak_kib;
    double seconds, cpu_seconds;
    char text[MOEC_ERROR_TEXT_BYTES];
} outcome;

static outcome measure(const char *path)
{
    moec_error err = MOEC_ERROR_INIT;
    struct timespec from, to;
    struct rusage usage;
    moec_ckpt *c = NULL;
    outcome o;

    memset(&o, 0, sizeof(o));
    (void)clock_gettime(CLOCK_MONOTONIC, &from);
    o.status = moec_ckpt_open(&c, path, NULL, &err);
    (void)clock_gettime(CLOCK_MONOTONIC, &to);
    moec_ckpt_close(c);
    (void)getrusage(RUSAGE_SELF, &usage);
    o.rule = err.rule;
    o.peak_kib = usage.ru_maxrss;
    o.seconds = (double)(to.tv_sec - from.tv_sec) +
                1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    o.cpu_seconds =
        (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
        1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    memcpy(o.text, err.text, sizeof(o.text));
    return o;
}

static void check_bomb(const bomb *b, const char *path)
{
    outcome o;
    int ends[2], status = 0;
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    (void)fflush(stdout);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        o = measure(path);
        _exit(write(ends[1], &o, sizeof(o)) == (ssize_t)sizeof(o) ? 0 : 1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &o, sizeof(o)), sizeof(o));
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    (void)printf("  %-32s %6.3f s, CPU %6.3f s, %6ld KiB  %s\n", b->what,
                 o.seconds, o.cpu_seconds, o.peak_kib, o.text);
    if (o.rule != b->rule ||
        o.status != (b->rule == MOEC_RULE_NONE ? MOEC_OK : MOEC_E_FORMAT))
        fail_msg("%s: %s '%s'", b->what, moec_status_name(o.status), o.text);
    if (PEAK_IS_OURS && o.peak_kib > PEAK_KIB_MAX)
        fail_msg("%s: %ld KiB", b->what, o.peak_kib);
}

static size_t stride = 4;

static void bears_headers_of_100_mb(void **state)
{
    tmpdir d = tmpdir_make();

    (void)state;
    for (size_t i = 0; i < sizeof(headers) / sizeof(*headers); i += stride) {
        write_bomb(&d, "m.safetensors", &headers[i], HEADER_BYTES, true);
        check_bomb(&headers[i], d.path);
    }
    tmpdir_remove(&d);
}

static void bears_indices_of_200_mb(void **state)
{
    tmpdir d = tmpdir_make();

    (void)state;
    ST_WRITE(&d, "m.safetensors", {"t", 1});
    for (size_t i = 0; i < sizeof(indices) / sizeof(*indices); i += stride) {
        write_bomb(&d, "model.safetensors.index.json", &indices[i], INDEX_BYTES,
                   false);
        check_bomb(&indices[i], d.path);
    }
    tmpdir_remove(&d);
}

static void refuses_a_length_that_the_file_does_not_have(void **state)
{
    static const bomb b = {"a length alone", "", "", "", 0, MOEC_RULE_H01};
    unsigned char prefix[8] = {0x00, 0xe1, 0xf5, 0x05};
    tmpdir d = tmpdir_make();

    (void)state;
    tmpdir_write(&d, "m.safetensors", prefix, sizeof(prefix));
    check_bomb(&b, d.path);
    tmpdir_remove(&d);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bears_headers_of_100_mb),
        cmocka_unit_test(bears_indices_of_200_mb),
        cmocka_unit_test(refuses_a_length_that_the_file_does_not_have),
    };

    if (argc > 1 && strcmp(argv[1], "all") == 0)
        stride = 1;
    return cmocka_run_group_tests_name("bombs", tests, NULL, NULL);
}
