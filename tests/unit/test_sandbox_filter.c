/* SPDX-License-Identifier: Apache-2.0
 *
 * The seccomp programs of both architectures, by an interpreter of what they
 * use of BPF, over calls as the kernel describes them: test_sandbox.c asks a
 * kernel, but of the machine that it runs on alone. */

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>

#include <cmocka.h>

#include <linux/audit.h>
#include <linux/seccomp.h>

#include "sandbox_filter.h"
#include "sandbox_numbers.h"

#define N_OF(a)   (sizeof(a) / sizeof((a)[0]))
#define REFUSED   (SECCOMP_RET_ERRNO | EPERM)
#define MISSING   (SECCOMP_RET_ERRNO | ENOSYS)
#define ALLOWED   SECCOMP_RET_ALLOW
#define KILLED    SECCOMP_RET_KILL_PROCESS
#define X32_BIT   0x40000000
#define NR_CLONE3 435

static const unsigned audit[] = {AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64};
static const int clone_nr[] = {56, 220};

typedef struct program {
    struct sock_filter f[MOEC_SANDBOX_FILTER_MAX];
    size_t n;
    moec_sandbox_arch arch;
} program;

static program make(moec_sandbox_arch arch, bool network)
{
    program p = {.arch = arch};

    p.n = moec_sandbox_filter(p.f, arch, network);
    assert_true(p.n > 0 && p.n <= MOEC_SANDBOX_FILTER_MAX);
    return p;
}

/* The kernel's checks and its answer: every jump lands inside, every load is
 * aligned and inside of the data, every path ends with a return. */
static unsigned interpret(const program *p, const struct seccomp_data *data)
{
    uint32_t a = 0;

    for (size_t at = 0; at < p->n; at++) {
        const struct sock_filter *i = &p->f[at];
        bool yes = false;

        switch (i->code) {
        case BPF_LD | BPF_W | BPF_ABS:
            assert_true(i->k % 4 == 0 && i->k + 4 <= sizeof(*data));
            memcpy(&a, (const char *)data + i->k, 4);
            continue;
        case BPF_JMP | BPF_JEQ | BPF_K:
            yes = a == i->k;
            break;
        case BPF_JMP | BPF_JSET | BPF_K:
            yes = (a & i->k) != 0;
            break;
        case BPF_RET | BPF_K:
            return i->k;
        default:
            fail_msg("instruction %zu has code %#x", at, i->code);
        }
        at += yes ? i->jt : i->jf;
        assert_true(at < p->n);
    }
    fail_msg("a path without a return");
    return 0;
}

static unsigned ask(const program *p, int nr, uint64_t arg)
{
    struct seccomp_data data = {
        .nr = nr, .arch = audit[p->arch], .args = {arg}};

    return interpret(p, &data);
}

static const moec_sandbox_call *find(const char *name)
{
    size_t n = 0;
    const moec_sandbox_call *all = moec_sandbox_calls(&n);

    for (size_t i = 0; i < n; i++) {
        if (strcmp(all[i].name, name) == 0)
            return &all[i];
    }
    return NULL;
}

/* ------------------------------------------------------------- tests */

#ifdef __x86_64__
static const sandbox_number sandbox_here[] = {
    SANDBOX_REFUSED_CALLS(SANDBOX_REFUSED)
        SANDBOX_NEEDED_CALLS(SANDBOX_NEEDED){"fork", __NR_fork, false},
    {"vfork", __NR_vfork, false},
    {"iopl", __NR_iopl, false},
    {"ioperm", __NR_ioperm, false},
    {"clone", __NR_clone, false},
    {NULL, 0, false}};
#endif

/* How many of the table are in `want`. */
static size_t compare(const sandbox_number *want, moec_sandbox_arch arch)
{
    size_t k = 0;

    for (; want->name != NULL; want++) {
        const moec_sandbox_call *c = find(want->name);
        assert_true(c == NULL || !want->needed);
        if (strcmp(want->name, "clone") == 0)
            assert_int_equal(clone_nr[arch], want->number);
        else if (!want->needed && (!c || c->number[arch] != want->number))
            fail_msg("%s is %d, not %d", want->name, want->number,
                     c ? c->number[arch] : 0);
        k += c != NULL;
    }
    return k;
}

/* And nothing is in the table that was not compared. */
static void numbers_are_those_of_the_systems_headers(void **state)
{
    size_t n = 0, without = 0;
    const moec_sandbox_call *all = moec_sandbox_calls(&n);

    (void)state;
    for (size_t i = 0; i < n; i++)
        without += all[i].number[MOEC_SANDBOX_AARCH64] < 0;
    assert_int_equal(compare(sandbox_generic, MOEC_SANDBOX_AARCH64),
                     n - without);
#ifdef __x86_64__
    assert_int_equal(compare(sandbox_here, MOEC_SANDBOX_X86_64), n);
#endif
}

/* Of all numbers that there are, the table's and no other. */
static void refuses_the_table_and_nothing_else(void **state)
{
    size_t n = 0;
    const moec_sandbox_call *all = moec_sandbox_calls(&n);

    (void)state;
    for (int which = 0; which < 4; which++) {
        program p = make((moec_sandbox_arch)(which / 2), which % 2 == 1);
        for (int nr = 0; nr < 600; nr++) {
            unsigned want = nr == NR_CLONE3 ? MISSING : ALLOWED;
            for (size_t i = 0; i < n; i++) {
                if (all[i].number[p.arch] == nr &&
                    !(all[i].network && which % 2 == 1))
                    want = REFUSED;
            }
            if (nr != clone_nr[p.arch])
                assert_int_equal(ask(&p, nr, ~UINT64_C(0)), want);
        }
    }
}

static void needs(const program *p, const sandbox_number *s)
{
    for (; s->name != NULL; s++) {
        if (s->needed)
            assert_int_equal(ask(p, s->number, 0), ALLOWED);
    }
}

static void allows_what_every_command_needs(void **state)
{
    (void)state;
    for (int network = 0; network < 2; network++) {
        program p = make(MOEC_SANDBOX_AARCH64, network);
        needs(&p, sandbox_generic);
#ifdef __x86_64__
        p = make(MOEC_SANDBOX_X86_64, network);
        needs(&p, sandbox_here);
#endif
    }
}

static void sockets_are_for_who_has_a_network(void **state)
{
    static const char *const lets[] = {"socket", "connect", "sendmmsg"};
    static const char *const never[] = {"listen", "accept4", "execve"};

    (void)state;
    for (int arch = 0; arch < 2; arch++) {
        program no = make((moec_sandbox_arch)arch, false);
        program yes = make((moec_sandbox_arch)arch, true);
        for (size_t i = 0; i < 3; i++) {
            int nr = find(lets[i])->number[arch];
            assert_int_equal(ask(&no, nr, 0), REFUSED);
            assert_int_equal(ask(&yes, nr, 0), ALLOWED);
            nr = find(never[i])->number[arch];
            assert_int_equal(ask(&yes, nr, 0), REFUSED);
        }
    }
}

/* The other architecture's table, 32 bits, big-endian: not a call is looked
 * at. execve of one is another call of the other. */
static void kills_calls_of_other_tables(void **state)
{
    static const unsigned others[] = {AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64,
                                      AUDIT_ARCH_I386,   AUDIT_ARCH_ARM,
                                      AUDIT_ARCH_PPC64,  0};

    (void)state;
    for (int arch = 0; arch < 2; arch++) {
        program p = make((moec_sandbox_arch)arch, false);
        for (size_t i = 0; i < N_OF(others); i++) {
            struct seccomp_data data = {.arch = others[i]};
            if (others[i] == audit[arch])
                continue;
            for (data.nr = 0; data.nr < 600; data.nr++)
                assert_int_equal(interpret(&p, &data), KILLED);
        }
    }
}

/* x32 has the same audit number, and its own numbers for execve (520). */
static void knows_no_x32(void **state)
{
    program p = make(MOEC_SANDBOX_X86_64, true);

    (void)state;
    for (int nr = 0; nr < 600; nr++)
        assert_int_equal(ask(&p, nr | X32_BIT, 0), MISSING);
    assert_int_equal(ask(&p, -1, 0), MISSING);
}

static void threads_and_no_processes(void **state)
{
    /* What glibc and musl start a thread with, and fork(). */
    static const uint64_t thread[] = {0x3d0f00, 0x7d0f00},
                          process[] = {17, 0x1200011, 0x4111,
                                       (uint64_t)CLONE_THREAD << 32};

    (void)state;
    for (int arch = 0; arch < 2; arch++) {
        program p = make((moec_sandbox_arch)arch, false);
        for (size_t i = 0; i < N_OF(thread); i++)
            assert_int_equal(ask(&p, clone_nr[arch], thread[i]), ALLOWED);
        for (size_t i = 0; i < N_OF(process); i++)
            assert_int_equal(ask(&p, clone_nr[arch], process[i]), REFUSED);
        assert_int_equal(ask(&p, NR_CLONE3, 0), MISSING);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_those_of_the_systems_headers),
        cmocka_unit_test(refuses_the_table_and_nothing_else),
        cmocka_unit_test(allows_what_every_command_needs),
        cmocka_unit_test(sockets_are_for_who_has_a_network),
        cmocka_unit_test(kills_calls_of_other_tables),
        cmocka_unit_test(knows_no_x32),
        cmocka_unit_test(threads_and_no_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
