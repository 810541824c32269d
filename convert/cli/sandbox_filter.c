/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter is a list of what is refused, not of what is allowed: libc and
 * libcrypto may call tomorrow what they do not call today, and a converter
 * that dies of it is trusted less than one without a filter. Refused calls get
 * EPERM, so that a caller can go on.
 */
#include "sandbox_filter.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>

#include <linux/audit.h>
#include <linux/seccomp.h>

/* What no command calls, and what a stranger in this process would. Numbers
 * of <asm/unistd_64.h> on x86 and of <asm-generic/unistd.h>, which the test of
 * this file compares: systems' headers lack the newer ones. */
static const moec_sandbox_call calls[] = {
    {"execve", {59, 221}, false},
    {"execveat", {322, 281}, false},
    {"fork", {57, -1}, false},
    {"vfork", {58, -1}, false},
    {"ptrace", {101, 117}, false},
    {"process_vm_readv", {310, 270}, false},
    {"process_vm_writev", {311, 271}, false},
    {"pidfd_getfd", {438, 438}, false},
    {"kcmp", {312, 272}, false},
    {"socket", {41, 198}, true},
    {"socketpair", {53, 199}, true},
    {"connect", {42, 203}, true},
    {"bind", {49, 200}, true},
    {"sendto", {44, 206}, true},
    {"sendmsg", {46, 211}, true},
    {"sendmmsg", {307, 269}, true},
    {"listen", {50, 201}, false},
    {"accept", {43, 202}, false},
    {"accept4", {288, 242}, false},
    {"mount", {165, 40}, false},
    {"umount2", {166, 39}, false},
    {"pivot_root", {155, 41}, false},
    {"chroot", {161, 51}, false},
    {"fsopen", {430, 430}, false},
    {"fsconfig", {431, 431}, false},
    {"fsmount", {432, 432}, false},
    {"fspick", {433, 433}, false},
    {"move_mount", {429, 429}, false},
    {"open_tree", {428, 428}, false},
    {"mount_setattr", {442, 442}, false},
    {"setns", {308, 268}, false},
    {"unshare", {272, 97}, false},
    {"bpf", {321, 280}, false},
    {"perf_event_open", {298, 241}, false},
    {"userfaultfd", {323, 282}, false},
    {"add_key", {248, 217}, false},
    {"keyctl", {250, 219}, false},
    {"request_key", {249, 218}, false},
    {"init_module", {175, 105}, false},
    {"finit_module", {313, 273}, false},
    {"delete_module", {176, 106}, false},
    {"kexec_load", {246, 104}, false},
    {"kexec_file_load", {320, 294}, false},
    {"reboot", {169, 142}, false},
    {"swapon", {167, 224}, false},
    {"swapoff", {168, 225}, false},
    {"acct", {163, 89}, false},
    {"quotactl", {179, 60}, false},
    {"settimeofday", {164, 170}, false},
    {"clock_settime", {227, 112}, false},
    {"sethostname", {170, 161}, false},
    {"setdomainname", {171, 162}, false},
    {"open_by_handle_at", {304, 265}, false},
    {"setuid", {105, 146}, false},
    {"setgid", {106, 144}, false},
    {"setreuid", {113, 145}, false},
    {"setregid", {114, 143}, false},
    {"setresuid", {117, 147}, false},
    {"setresgid", {119, 149}, false},
    {"setgroups", {116, 159}, false},
    {"capset", {126, 91}, false},
    {"iopl", {172, -1}, false},
    {"ioperm", {173, -1}, false},
};
enum { N_CALLS = sizeof(calls) / sizeof(calls[0]) };

/* What stands around the list, generously. */
_Static_assert(2 * N_CALLS + 16 <= MOEC_SANDBOX_FILTER_MAX, "filter");

#define NR_CLONE3    435 /* everywhere */
#define X32_BIT      0x40000000
#define AT(field)    (unsigned)offsetof(struct seccomp_data, field)
#define ERRNO_RET(e) (SECCOMP_RET_ERRNO | ((e)&SECCOMP_RET_DATA))

static size_t put(struct sock_filter *f, size_t at, unsigned code, unsigned k,
                  unsigned yes, unsigned no)
{
    f[at].code = (uint16_t)code;
    f[at].k = k;
    f[at].jt = (uint8_t)yes;
    f[at].jf = (uint8_t)no;
    return at + 1;
}

const moec_sandbox_call *moec_sandbox_calls(size_t *n)
{
    *n = N_CALLS;
    return calls;
}

size_t moec_sandbox_filter(struct sock_filter out[MOEC_SANDBOX_FILTER_MAX],
                           moec_sandbox_arch arch, bool network)
{
    enum {
        LOAD = BPF_LD | BPF_W | BPF_ABS,
        EQUAL = BPF_JMP | BPF_JEQ | BPF_K,
        ANY_BIT = BPF_JMP | BPF_JSET | BPF_K,
        RET = BPF_RET | BPF_K
    };
    static const unsigned audit[] = {AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64};
    static const unsigned clone_nr[] = {56, 220};
    size_t n = 0;
    /* Numbers mean other calls to other tables of calls. */
    n = put(out, n, LOAD, AT(arch), 0, 0);
    n = put(out, n, EQUAL, audit[arch], 1, 0);
    n = put(out, n, RET, SECCOMP_RET_KILL_PROCESS, 0, 0);
    n = put(out, n, LOAD, AT(nr), 0, 0);
    if (arch == MOEC_SANDBOX_X86_64) {
        n = put(out, n, ANY_BIT, X32_BIT, 0, 1);
        n = put(out, n, RET, ERRNO_RET(ENOSYS), 0, 0);
    }
    /* Threads, not processes. clone3 keeps its flags where a filter cannot
     * look; libc takes clone where that is not there. */
    n = put(out, n, EQUAL, NR_CLONE3, 0, 1);
    n = put(out, n, RET, ERRNO_RET(ENOSYS), 0, 0);
    for (size_t i = 0; i < N_CALLS; i++) {
        if (calls[i].number[arch] < 0 || (network && calls[i].network))
            continue;
        n = put(out, n, EQUAL, (unsigned)calls[i].number[arch], 0, 1);
        n = put(out, n, RET, ERRNO_RET(EPERM), 0, 0);
    }
    n = put(out, n, EQUAL, clone_nr[arch], 0, 3);
    n = put(out, n, LOAD, AT(args[0]), 0, 0); /* little-endian: the low half */
    n = put(out, n, ANY_BIT, CLONE_THREAD, 1, 0);
    n = put(out, n, RET, ERRNO_RET(EPERM), 0, 0);
    return put(out, n, RET, SECCOMP_RET_ALLOW, 0, 0);
}
