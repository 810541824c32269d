/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The pickles of torch.save, written here opcode by opcode: what is no plain
 * tensor is refused with what it is, whatever stands on the machine's stack.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "placement_rows.h"

/* ----------------------------------------------------- the pickle's words */

#define TEXT(n, s)            "X" n "\0\0\0" s
#define T(key)                TEXT("\1", key)
#define PROTO                 "\x80\2"
#define LONGS                 "ctorch\nLongStorage\n"
#define SHORTS                "ctorch\nShortStorage\n"
#define ORDERED               "ccollections\nOrderedDict\n"
#define HOOKS                 ORDERED ")R"
#define PLAIN                 "K\2K\2\x86" /* a shape, 2 x 2 */
#define DENSE                 "K\2K\1\x86" /* its strides */
#define NO_GRAD               "\x89"
#define STORAGE               TEXT("\7", "storage")
#define CPU                   TEXT("\3", "cpu")
#define PERSID(items)         "(" items "tQ"
#define STORE                 PERSID(STORAGE LONGS T("0") CPU "K\4")
#define REBUILD               "ctorch._utils\n_rebuild_tensor_v2\n"
#define CALL(items)           REBUILD "(" items "tR"
#define TENSOR                CALL(STORE "K\0" PLAIN DENSE NO_GRAD HOOKS)
#define SHAPED(shape, stride) CALL(STORE "K\0" shape stride NO_GRAD HOOKS)
#define LONG8(bytes)          "\x8a\x08" bytes
#define HALF(x)               x x x x x x x x
#define MANY(x)               HALF(x) HALF(x) HALF(x) HALF(x)
#define MOST(x)               MANY(x) MANY(x) MANY(x) MANY(x) MANY(x) MANY(x) MANY(x) MANY(x)

/* A string literal with zeros in it, less the one at its end. */
#define LITERAL(s) s, sizeof(s) - 1

static const unsigned char elements[32] = {1, 0, 0, 0, 0, 0, 0, 0, 2};

static bool find(void *ctx, const char *key, moec_torch_storage *out)
{
    (void)ctx;
    *out = (moec_torch_storage){elements, sizeof(elements)};
    return strcmp(key, "0") == 0;
}

static moec_status read_pickle(moec_int_arrays *a, const char *p, size_t n,
                               moec_error *err)
{
    return moec_torch_read(a, "p", (const unsigned char *)p, n, find, NULL,
                           err);
}

typedef struct bad {
    const char *p;
    size_t n;
    const char *fragment;
} bad;

static void refuse_all(const bad *x, size_t n, moec_status want)
{
    for (size_t i = 0; i < n; i++) {
        moec_int_arrays a = {0};
        moec_error err = MOEC_ERROR_INIT;
        moec_status st = read_pickle(&a, x[i].p, x[i].n, &err);

        if (st != want || err.rule != MOEC_RULE_P01 ||
            !strstr(err.text, x[i].fragment))
            fail_msg("case %zu, %s for '%s': %s", i, moec_status_name(st),
                     x[i].fragment, err.text);
        moec_int_arrays_fini(&a);
    }
}
#define REFUSE(x, want) refuse_all(x, sizeof(x) / sizeof((x)[0]), want)

/* ------------------------------------------------------------ what is read */

static void expect_one(const char *p, size_t n, bool named, const char *name)
{
    moec_int_arrays a = {0};
    moec_error err = MOEC_ERROR_INIT;

    if (read_pickle(&a, p, n, &err))
        fail_msg("%s", err.text);
    assert_int_equal(a.n, 1);
    assert_int_equal(a.named, named);
    assert_string_equal(a.a[0].name, name);
    assert_int_equal(a.a[0].n, 4);
    assert_int_equal(a.a[0].v[0], 1);
    assert_int_equal(a.a[0].v[1], 2);
    moec_int_arrays_fini(&a);
}

static void reads_a_tensor_alone_and_in_containers(void **state)
{
    (void)state;
    expect_one(LITERAL(PROTO TENSOR "."), false, "");
    expect_one(LITERAL(PROTO TENSOR "\x85."), false, "");
    expect_one(LITERAL(PROTO "]" TENSOR "a."), false, "");
    expect_one(LITERAL(PROTO "](" TENSOR "e."), false, "");
    expect_one(LITERAL(PROTO "}" T("m") TENSOR "s."), true, "m");
    expect_one(LITERAL(PROTO "}(" T("m") TENSOR "u."), true, "m");
}

static void numbers_come_in_many_widths(void **state)
{
    (void)state;
    expect_one(LITERAL(PROTO SHAPED("\x8a\1\2\x8a\4\2\0\0\0\x86",
                                    "\x8a\2\2\0M\1\0\x86") "."),
               false, "");
    expect_one(LITERAL(PROTO SHAPED("J\2\0\0\0K\2\x86",
                                    "\x8a\x08\2\0\0\0\0\0\0\0K\1\x86") "."),
               false, "");
}

static void a_memo_gives_back_what_was_put(void **state)
{
    (void)state;
    expect_one(
        LITERAL(PROTO SHAPED("K\2q\1h\1\x86", "K\2r\1\3\0\0K\1\x86") "."),
        false, "");
    expect_one(LITERAL(PROTO SHAPED("K\2q\1j\1\0\0\0\x86", DENSE) "."), false,
               "");
}

/* ------------------------------------------------------------ what is not */

static void refuses_pickles_that_end_early(void **state)
{
    static const bad cases[] = {
        {LITERAL(""), "ends early"},
        {LITERAL(PROTO), "ends early"},
        {LITERAL("\x80"), "ends early"},
        {LITERAL("K"), "ends early"},
        {LITERAL("M\1"), "ends early"},
        {LITERAL("J\1\2\3"), "ends early"},
        {LITERAL("X\4\0\0\0abc"), "ends early"},
        {LITERAL("ctorch"), "ends early"},
        {LITERAL("ctorch\nLongStorage"), "ends early"},
        {LITERAL(PROTO TENSOR ".."), "has more behind its end"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_words_that_torch_does_not_write(void **state)
{
    static const bad cases[] = {
        {LITERAL("\x80\4"), "is not of protocol 2"},
        {LITERAL("\x8a"), "has a number too long"},
        {LITERAL("\x8a\3\0\0\0"), "has a number too long"},
        {LITERAL("\x8a\x08\0\0"), "has a number too long"},
        {LITERAL("\x8b"), "has the opcode 0x8b"},
        {LITERAL("cos\nsystem\n"), "names os.system"},
        {LITERAL("ctorch\nsystem\n"), "names torch.system"},
        {LITERAL("ctorch\nFongStorage\n"), "names torch.FongStorage"},
        {LITERAL("c" MANY("ab") "\n" MANY("cd") "\n"), "names abab"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_stacks_that_do_not_fit(void **state)
{
    static const bad cases[] = {
        {LITERAL(MOST("(") "("), "is nested too deeply"},
        {LITERAL("K\1" MOST("\x85") MOST("\x85") MOST("\x85")
                     MOST("\x85") "\x85"),
         "has too many values"},
        {LITERAL("\x85"), "is damaged"},     /* a tuple of nothing */
        {LITERAL("(K\1\x86"), "is damaged"}, /* across a mark */
        {LITERAL("K\1t"), "is damaged"},     /* no mark */
        {LITERAL("K\1e"), "is damaged"},
        {LITERAL("K\1a"), "is damaged"},
        {LITERAL("(e"), "is damaged"}, /* no list below */
        {LITERAL("K\1(e"), "is damaged"},
        {LITERAL("}(K\1e"), "is damaged"},       /* a dict, not a list */
        {LITERAL("}(K\1u"), "is damaged"},       /* a key without a value */
        {LITERAL("q\1"), "is damaged"},          /* nothing to remember */
        {LITERAL("K\1r\0\4\0\0"), "is damaged"}, /* note 1024 */
        {LITERAL("h\1"), "is damaged"},          /* never remembered */
        {LITERAL("j\0\4\0\0"), "is damaged"},
        {LITERAL("K\1R"), "is damaged"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_calls(void **state)
{
    static const bad cases[] = {
        {LITERAL("K\1)R"), "calls something"},
        {LITERAL(ORDERED "NR"), "calls something"},
        {LITERAL(LONGS ")R"), "calls something"},
        {LITERAL(ORDERED "K\1\x85R"), "calls something"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_storages_of_another_form(void **state)
{
    static const char form[] = "has a storage of another form";
    static const bad cases[] = {
        {LITERAL("Q"), form},
        {LITERAL("K\1Q"), form},
        {LITERAL("(tQ"), form},
        {LITERAL(PERSID("K\1" LONGS T("0") CPU "K\4")), form},
        {LITERAL(PERSID(T("s") LONGS T("0") CPU "K\4")), form},
        {LITERAL(PERSID(TEXT("\7", "Storage") LONGS T("0") CPU "K\4")), form},
        {LITERAL(PERSID(STORAGE "K\1" T("0") CPU "K\4")), form},
        {LITERAL(PERSID(STORAGE ORDERED T("0") CPU "K\4")), form},
        {LITERAL(PERSID(STORAGE LONGS "K\0" CPU "K\4")), form},
        {LITERAL(PERSID(STORAGE LONGS TEXT("\x21", MANY("k") "k") CPU "K\4")),
         form},
        {LITERAL(PERSID(STORAGE LONGS T("0") "NK\4")), form},
        {LITERAL(PERSID(STORAGE LONGS T("0") CPU "N")), form},
        {LITERAL(PERSID(STORAGE LONGS T("0") CPU "J\xff\xff\xff\xff")), form},
        {LITERAL(HALF(STORE) STORE), "has too many storages"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_tensors_of_another_form(void **state)
{
    static const char form[] = "has a tensor of another form";
    static const bad cases[] = {
        {LITERAL(CALL("")), form},
        {LITERAL(CALL("K\0K\0" PLAIN DENSE NO_GRAD HOOKS)), form},
        {LITERAL(CALL(STORE "N" PLAIN DENSE NO_GRAD HOOKS)), form},
        {LITERAL(CALL(STORE "J\xff\xff\xff\xff" PLAIN DENSE NO_GRAD HOOKS)),
         form},
        {LITERAL(SHAPED("K\2", DENSE)), form},
        {LITERAL(SHAPED(")", DENSE)), form},
        {LITERAL(SHAPED("(K\1K\1K\1K\1t", DENSE)), form},
        {LITERAL(SHAPED("N\x85", "K\1\x85")), form},
        {LITERAL(SHAPED("J\xff\xff\xff\xff\x85", "K\1\x85")), form},
        {LITERAL(SHAPED(PLAIN, ")")), form},
        {LITERAL(SHAPED(PLAIN, "K\1\x85")), form},
        {LITERAL(CALL(STORE "K\0" PLAIN DENSE "N" HOOKS)), form},
        {LITERAL(CALL(STORE "K\0" PLAIN DENSE NO_GRAD "N")), form},
        {LITERAL(STORE "q\0" HALF(CALL("h\0K\0" PLAIN DENSE NO_GRAD HOOKS))
                     CALL("h\0K\0" PLAIN DENSE NO_GRAD HOOKS)),
         "has too many tensors"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_containers_of_something_else(void **state)
{
    static const bad cases[] = {
        {LITERAL("]]"), "has lists or dicts inside others"},
        {LITERAL("}K\1" TENSOR "s"), "has a key that is no string"},
        {LITERAL("}" T("k") "K\1s"), "has a value under 'k' that is no tensor"},
        {LITERAL("]K\1a"), "has a value under '' that is no tensor"},
        {LITERAL("](" TENSOR "q\0" HALF("h\0") "e"), "has too many tensors"},
        {LITERAL("]."), "holds no tensors"},
        {LITERAL(")."), "holds no tensors"},
        {LITERAL("K\1."), "holds something else than tensors"},
        {LITERAL("."), "holds something else than tensors"},
        {LITERAL("K\1\x85."), "has a value under '' that is no tensor"},
        {LITERAL("}" TEXT("\x28", MANY("k") HALF("k")) TENSOR "s."),
         "has a key that is too long"},
    };

    (void)state;
    REFUSE(cases, MOEC_E_UNSUPPORTED);
}

static void refuses_tensors_that_their_storage_does_not_hold(void **state)
{
#define OF(store) CALL(store "K\0" PLAIN DENSE NO_GRAD HOOKS) "."
#define FAR(byte) LONG8("\xff\xff\xff\xff\xff\xff\xff" byte)
    static const bad cases[] = {
        {LITERAL(OF(PERSID(STORAGE LONGS T("1") CPU "K\4"))),
         "has no storage in the file"},
        {LITERAL(OF(PERSID(STORAGE LONGS T("0") CPU "K\5"))),
         "has a storage of another size"},
        {LITERAL(OF(PERSID(STORAGE SHORTS T("0") CPU "K\4"))),
         "has a storage of another size"},
        {LITERAL(OF(PERSID(STORAGE LONGS T("0") CPU "K\x21"))),
         "has a storage of another size"},
        {LITERAL(CALL(STORE "K\1" PLAIN DENSE NO_GRAD HOOKS) "."),
         "leaves its storage"},
        {LITERAL(SHAPED("K\0K\2\x86", DENSE) "."), "leaves its storage"},
        {LITERAL(SHAPED("K\3\x85", FAR("\x7f") "\x85") "."),
         "leaves its storage"}, /* 2 * INT64_MAX */
        {LITERAL(CALL(STORE "K\1K\2\x85" FAR("\x7f") "\x85" NO_GRAD HOOKS) "."),
         "leaves its storage"}, /* 1 + INT64_MAX */
    };

    (void)state;
    REFUSE(cases, MOEC_E_FORMAT);
}

/* A short tensor over and over its storage is a big one. */
static void refuses_tensors_larger_than_their_storage(void **state)
{
    static const bad cases[] = {
        {LITERAL(SHAPED("M\xff\xff\x85", "K\0\x85") "."), ""},
    };

    (void)state;
    REFUSE(cases, MOEC_E_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_tensor_alone_and_in_containers),
        cmocka_unit_test(numbers_come_in_many_widths),
        cmocka_unit_test(a_memo_gives_back_what_was_put),
        cmocka_unit_test(refuses_pickles_that_end_early),
        cmocka_unit_test(refuses_words_that_torch_does_not_write),
        cmocka_unit_test(refuses_stacks_that_do_not_fit),
        cmocka_unit_test(refuses_calls),
        cmocka_unit_test(refuses_storages_of_another_form),
        cmocka_unit_test(refuses_tensors_of_another_form),
        cmocka_unit_test(refuses_containers_of_something_else),
        cmocka_unit_test(refuses_tensors_that_their_storage_does_not_hold),
        cmocka_unit_test(refuses_tensors_larger_than_their_storage),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
