/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock and seccomp by their system calls: neither libc nor a library that
 * would have to be there wraps them.
 */
#include "sandbox.h"

#include <fcntl.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/seccomp.h>

#include "sandbox_filter.h"

/* The sanitizers' own work at exit is a process that traces this one. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#  define SANDBOX 0
#elif defined(__x86_64__)
#  define SANDBOX  1
#  define OUR_ARCH MOEC_SANDBOX_X86_64
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#  define SANDBOX  1
#  define OUR_ARCH MOEC_SANDBOX_AARCH64
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
#  define NET_BIND       UINT64_C(1)         /* version 4 */
#  define NET_CONNECT    UINT64_C(2)
#  define SCOPE_ALL      UINT64_C(3) /* version 6: sockets, signals */

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

static struct ll_ruleset rights_of(long version, bool network)
{
    struct ll_ruleset r = {.fs = FS_FIRST_ALL};
    if (version >= 2)
        r.fs |= FS_REFER;
    if (version >= 3)
        r.fs |= FS_TRUNCATE;
    if (version >= 4)
        r.net = network ? NET_BIND : NET_BIND | NET_CONNECT;
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

static int enter_landlock(const moec_sandbox_path *paths, size_t n,
                          bool network)
{
    /* jansson seeds its tables from urandom; the rest says how many CPUs and
     * how much memory the process may use, and which boot wrote a journal. */
    static const char *const everybodys[] = {
        "/dev/urandom",   "/proc/self",          "/proc/sys/kernel/random",
        "/sys/fs/cgroup", "/sys/devices/system",
    };
    /* Name service, what it loads, and certificates. */
    static const char *const networks[] = {"/etc",   "/usr", "/lib",
                                           "/lib64", "/run", "/var/lib"};
    long version = syscall(LL_CREATE, NULL, 0, LL_VERSION_FLAG);
    if (version < 1)
        return 0;
    struct ll_ruleset rights = rights_of(version, network);
    long fd = syscall(LL_CREATE, &rights, bytes_of(version), 0);
    if (fd < 0)
        return 0;
    int ruleset = (int)fd;
    for (size_t i = 0; i < sizeof(everybodys) / sizeof(everybodys[0]); i++)
        allow(ruleset, rights.fs, everybodys[i], FS_READ);
    for (size_t i = 0; network && i < sizeof(networks) / sizeof(*networks); i++)
        allow(ruleset, rights.fs, networks[i], FS_READ);
    for (size_t i = 0; i < n; i++)
        allow(ruleset, rights.fs, paths[i].path,
              paths[i].access == MOEC_SANDBOX_WRITE ? FS_WRITE : FS_READ);
    long st = syscall(LL_RESTRICT, ruleset, 0);
    (void)close(ruleset);
    return st == 0 ? (int)version : 0;
}

/* ------------------------------------------------------------- seccomp */

static int enter_seccomp(bool network)
{
    struct sock_filter filter[MOEC_SANDBOX_FILTER_MAX];
    struct sock_fprog prog = {.filter = filter};
    prog.len = (unsigned short)moec_sandbox_filter(filter, OUR_ARCH, network);
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                   SECCOMP_FILTER_FLAG_TSYNC, &prog) == 0;
}

moec_sandbox_result moec_sandbox_enter(const moec_sandbox_path *paths, size_t n,
                                       bool network)
{
    moec_sandbox_result r = {0, 0};
    /* Both need it: nothing started from here gains rights by being set-uid. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return r;
    r.landlock = enter_landlock(paths, n, network);
    r.seccomp = enter_seccomp(network);
    return r;
}

#else

moec_sandbox_result moec_sandbox_enter(const moec_sandbox_path *paths, size_t n,
                                       bool network)
{
    (void)paths;
    (void)n;
    (void)network;
    return (moec_sandbox_result){0, 0};
}

#endif
