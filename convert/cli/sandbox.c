/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock and seccomp by their system calls: neither libc nor a library that
 * would have to be there wraps them. The filter is a list of what is refused,
 * not of what is allowed: libc and libcrypto may call tomorrow what they do
 * not call today, and a converter that dies of it is trusted less than one
 * without a filter. Refused calls get EPERM, so that a caller can go on.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

/* The sanitizers' own work at exit is a process that traces this one, and
 * gcov writes beside the objects. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||           \
    defined(MOEC_NO_SANDBOX)
#  define SANDBOX 0
#elif defined(__x86_64__)
#  define SANDBOX  1
#  define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#  define SANDBOX  1
#  define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#  define SANDBOX 0
#endif

#if SANDBOX

/* ----------------------------------------------------------- landlock
 * Numbers of <linux/landlock.h>, which older systems have in part: rights
 * that the running kernel does not know are not asked for. */

enum { LL_CREATE = 444, LL_ADD_RULE = 445, LL_RESTRICT = 446 };
enum { LL_VERSION_FLAG = 1, LL_PATH_BENEATH = 1 };

#  define FS_EXECUTE     (UINT64_C(1) << 0)
#  define FS_WRITE_FILE  (UINT64_C(1) << 1)
#  define FS_READ_FILE   (UINT64_C(1) << 2)
#  define FS_READ_DIR    (UINT64_C(1) << 3)
#  define FS_REMOVE_DIR  (UINT64_C(1) << 4)
#  define FS_REMOVE_FILE (UINT64_C(1) << 5)
#  define FS_MAKE_DIR    (UINT64_C(1) << 7)
#  define FS_MAKE_REG    (UINT64_C(1) << 8)
#  define FS_FIRST_ALL   ((UINT64_C(1) << 13) - 1)
#  define FS_REFER       (UINT64_C(1) << 13) /* version 2 */
#  define FS_TRUNCATE    (UINT64_C(1) << 14) /* version 3 */
#  define FS_IOCTL_DEV   (UINT64_C(1) << 15) /* version 5 */
#  define NET_ALL        UINT64_C(3)         /* version 4: bind, connect */
#  define SCOPE_ALL      UINT64_C(3)         /* version 6: sockets, signals */

#  define FS_OF_FILES    (FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE)
#  define FS_READ        (FS_READ_FILE | FS_READ_DIR)
#  define FS_WRITE                                                             \
    (FS_READ | FS_WRITE_FILE | FS_REMOVE_DIR | FS_REMOVE_FILE | FS_MAKE_DIR |  \
     FS_MAKE_REG | FS_REFER | FS_TRUNCATE)

struct ll_ruleset {
    uint64_t fs, net, scoped;
};
struct ll_path {
    uint64_t access;
    int32_t fd;
} __attribute__((packed));

static struct ll_ruleset rights_of(long version)
{
    struct ll_ruleset r = {.fs = FS_FIRST_ALL};
    if (version >= 2)
        r.fs |= FS_REFER;
    if (version >= 3)
        r.fs |= FS_TRUNCATE;
    if (version >= 4)
        r.net = NET_ALL;
    if (version >= 5)
        r.fs |= FS_IOCTL_DEV;
    if (version >= 6)
        r.scoped = SCOPE_ALL;
    return r;
}

/* How many bytes of the struct a kernel of that version knows. */
static size_t bytes_of(long version)
{
    return version >= 6   ? sizeof(struct ll_ruleset)
           : version >= 4 ? offsetof(struct ll_ruleset, scoped)
                          : offsetof(struct ll_ruleset, net);
}

static void allow(int ruleset, uint64_t handled, const char *path,
                  uint64_t access)
{
    struct ll_path rule = {.access = access & handled};
    struct stat sb;
    rule.fd = open(path, O_PATH | O_CLOEXEC);
    if (rule.fd < 0)
        return;
    if (fstat(rule.fd, &sb) == 0) {
        if (!S_ISDIR(sb.st_mode))
            rule.access &= FS_OF_FILES;
        (void)syscall(LL_ADD_RULE, ruleset, LL_PATH_BENEATH, &rule, 0);
    }
    (void)close(rule.fd);
}

static int enter_landlock(const moec_sandbox_path *paths, size_t n)
{
    /* jansson seeds its tables from urandom; the rest says how many CPUs and
     * how much memory the process may use, and which boot wrote a journal. */
    static const char *const everybodys[] = {
        "/dev/urandom",   "/proc/self",          "/proc/sys/kernel/random",
        "/sys/fs/cgroup", "/sys/devices/system",
    };
    long version = syscall(LL_CREATE, NULL, 0, LL_VERSION_FLAG);
    if (version < 1)
        return 0;
    struct ll_ruleset rights = rights_of(version);
    long fd = syscall(LL_CREATE, &rights, bytes_of(version), 0);
    if (fd < 0)
        return 0;
    int ruleset = (int)fd;
    for (size_t i = 0; i < sizeof(everybodys) / sizeof(everybodys[0]); i++)
        allow(ruleset, rights.fs, everybodys[i], FS_READ);
    for (size_t i = 0; i < n; i++)
        allow(ruleset, rights.fs, paths[i].path,
              paths[i].access == MOEC_SANDBOX_WRITE ? FS_WRITE : FS_READ);
    long st = syscall(LL_RESTRICT, ruleset, 0);
    (void)close(ruleset);
    return st == 0 ? (int)version : 0;
}

/* ------------------------------------------------------------- seccomp */

/* What no command calls, and what a stranger in this process would. Names
 * that a platform lacks are left out. */
static const unsigned refused[] = {
    SYS_execve,
    SYS_execveat,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kcmp,
    SYS_socket,
    SYS_socketpair,
    SYS_connect,
    SYS_bind,
    SYS_listen,
    SYS_accept,
    SYS_accept4,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_setns,
    SYS_unshare,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_add_key,
    SYS_keyctl,
    SYS_request_key,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_quotactl,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_open_by_handle_at,
    SYS_setuid,
    SYS_setgid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_capset,
#  ifdef SYS_fork
    SYS_fork,
    SYS_vfork,
#  endif
#  ifdef SYS_iopl
    SYS_iopl,
    SYS_ioperm,
#  endif
#  ifdef SYS_fsopen
    SYS_fsopen,
    SYS_fsmount,
    SYS_move_mount,
    SYS_open_tree,
#  endif
#  ifdef SYS_pidfd_getfd
    SYS_pidfd_getfd,
#  endif
};

enum {
    N_REFUSED = sizeof(refused) / sizeof(refused[0]),
    N_FILTER = 12 + 2 * N_REFUSED
};
#  define NR_CLONE3    435
#  define X32_BIT      0x40000000
#  define AT(field)    (unsigned)offsetof(struct seccomp_data, field)
#  define ERRNO_RET(e) (SECCOMP_RET_ERRNO | ((e)&SECCOMP_RET_DATA))

static size_t put(struct sock_filter *f, size_t at, unsigned code, unsigned k,
                  unsigned yes, unsigned no)
{
    f[at].code = (uint16_t)code;
    f[at].k = k;
    f[at].jt = (uint8_t)yes;
    f[at].jf = (uint8_t)no;
    return at + 1;
}

static size_t fill_filter(struct sock_filter *f)
{
    enum {
        LOAD = BPF_LD | BPF_W | BPF_ABS,
        EQUAL = BPF_JMP | BPF_JEQ | BPF_K,
        ANY_BIT = BPF_JMP | BPF_JSET | BPF_K,
        RET = BPF_RET | BPF_K
    };
    size_t n = 0;
    /* Numbers mean other calls to other tables of calls. */
    n = put(f, n, LOAD, AT(arch), 0, 0);
    n = put(f, n, EQUAL, OUR_ARCH, 1, 0);
    n = put(f, n, RET, SECCOMP_RET_KILL_PROCESS, 0, 0);
    n = put(f, n, LOAD, AT(nr), 0, 0);
#  if defined(__x86_64__)
    n = put(f, n, ANY_BIT, X32_BIT, 0, 1);
    n = put(f, n, RET, ERRNO_RET(ENOSYS), 0, 0);
#  endif
    /* Threads, not processes. clone3 keeps its flags where a filter cannot
     * look; libc takes clone where that is not there. */
    n = put(f, n, EQUAL, NR_CLONE3, 0, 1);
    n = put(f, n, RET, ERRNO_RET(ENOSYS), 0, 0);
    for (size_t i = 0; i < N_REFUSED; i++) {
        n = put(f, n, EQUAL, refused[i], 0, 1);
        n = put(f, n, RET, ERRNO_RET(EPERM), 0, 0);
    }
    n = put(f, n, EQUAL, SYS_clone, 0, 3);
    n = put(f, n, LOAD, AT(args[0]), 0, 0);
    n = put(f, n, ANY_BIT, CLONE_THREAD, 1, 0);
    n = put(f, n, RET, ERRNO_RET(EPERM), 0, 0);
    return put(f, n, RET, SECCOMP_RET_ALLOW, 0, 0);
}

static int enter_seccomp(void)
{
    struct sock_filter filter[N_FILTER + 1];
    struct sock_fprog prog = {.filter = filter};
    prog.len = (unsigned short)fill_filter(filter);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                   SECCOMP_FILTER_FLAG_TSYNC, &prog) == 0;
}

moec_sandbox_result moec_sandbox_enter(const moec_sandbox_path *paths, size_t n)
{
    moec_sandbox_result r = {0, 0};
    /* Both need it: nothing started from here gains rights by being set-uid. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return r;
    r.landlock = enter_landlock(paths, n);
    r.seccomp = enter_seccomp();
    return r;
}

#else

moec_sandbox_result moec_sandbox_enter(const moec_sandbox_path *paths, size_t n)
{
    (void)paths;
    (void)n;
    return (moec_sandbox_result){0, 0};
}

#endif
