/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into moe-convert by tests/faults/sweep.py: makes the n-th call
 * that a file system, a kernel or an allocator answers go wrong, once.
 *
 *   MOEC_FAULT_AT     KIND/N:WHAT[,...]: the n-th call of that kind, from 1;
 *                     of any kind without KIND/. WHAT: EIO and other names of
 *                     errno; short (a transfer of half of it); kill (dies
 *                     before the call); torn (dies behind half of a write)
 *   MOEC_FAULT_ALLOC  N: the n-th allocation gives NULL
 *   MOEC_FAULT_LOG    file: a line "kind" a call, appended
 *   MOEC_FAULT_REPORT file: calls, allocations, and what is still allocated,
 *                     written at exit
 *   MOEC_FAULT_RECORD file: what changes the disk, for tests/faults/crash.py;
 *                     the bytes go to FILE.data
 *   MOEC_FAULT_BOOT   file that stands for the kernel's boot_id
 *   MOEC_FAULT_CLOCK  seconds that the monotonic clock jumps at each look
 *   MOEC_FAULT_NOSYNC fsync does nothing: a sweep needs no disk
 *   MOEC_FAULT_SERVER cold: the program is forked behind exec and linking;
 *                     warm: when libcrypto has made its first digest.
 *                     Once for each line "N DIR" on descriptor 0: it runs in
 *                     DIR, its n-th allocation (0: none) gives NULL; what it
 *                     prints and reports is in DIR.out, DIR.err, DIR.report.
 *                     On descriptor 1: allocations until there; then, for
 *                     each, its process id and waitpid's status
 *
 * All file-system calls go straight to the kernel, so what libc does inside of
 * itself is not seen: strace(1) does that in the long run.
 */

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Ours stand for libc's, whose headers may declare other attributes. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wnonnull-compare"
#define SHIM __attribute__((visibility("default")))

enum { POINTS_MAX = 8, HIGH_FD = 700 };
enum { DO_NOTHING = 0, DO_SHORT = -1, DO_KILL = -2, DO_TORN = -3 };

static const struct {
    const char *name;
    int what;
} words[] = {
    {"EIO", EIO},        {"ENOSPC", ENOSPC}, {"EINTR", EINTR},
    {"EMFILE", EMFILE},  {"EACCES", EACCES}, {"EROFS", EROFS},
    {"ENOMEM", ENOMEM},  {"EAGAIN", EAGAIN}, {"EOPNOTSUPP", EOPNOTSUPP},
    {"EINVAL", EINVAL},  {"ENOSYS", ENOSYS}, {"EDQUOT", EDQUOT},
    {"short", DO_SHORT}, {"kill", DO_KILL},  {"torn", DO_TORN},
};

typedef long (*syscall_fn)(long, ...);

static syscall_fn real;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char kind[16]; /* empty: any */
    atomic_uint_fast64_t met;
    uint64_t at;
    int what;
} points[POINTS_MAX];
static size_t n_points;
static atomic_uint_fast64_t n_calls, n_allocs;
static atomic_int_fast64_t live;
static uint64_t alloc_at;
static int log_fd = -1, record_fd = -1, data_fd = -1, report_fd = -1;
static const char *report, *boot, *server;
static double jump;
static bool no_sync;
static char starved_in[32] = "-"; /* library whose allocation failed */
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* dlsym gives an object pointer, and ISO C no way from that to a function. */
static void find(void *out, const char *name)
{
    void *p = dlsym(RTLD_NEXT, name);

    memcpy(out, &p, sizeof(p));
}

static int open_log(const char *variable, const char *suffix)
{
    const char *name = getenv(variable);
    char path[4096];
    long fd, high;

    if (name == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s%s", name, suffix);
    fd = real(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0666);
    high = real(SYS_fcntl, fd, F_DUPFD_CLOEXEC, HIGH_FD);
    if (high < 0) /* few descriptors: then as it is */
        return (int)fd;
    real(SYS_close, fd);
    return (int)high;
}

static void read_points(const char *text)
{
    while (text != NULL && *text != '\0' && n_points < POINTS_MAX) {
        size_t kind = strcspn(text, "/,");
        char *end;
        if (text[kind] == '/') {
            snprintf(points[n_points].kind, sizeof(points[0].kind), "%.*s",
                     (int)kind, text);
            text += kind + 1;
        }
        points[n_points].at = strtoull(text, &end, 10);
        size_t n = strcspn(end + 1, ",");
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
            if (strlen(words[i].name) == n &&
                strncmp(words[i].name, end + 1, n) == 0)
                points[n_points].what = words[i].what;
        n_points++;
        text = end + 1 + n;
        text += *text == ',';
    }
}

static void set_up(void)
{
    const char *text;

    find(&real, "syscall");
    read_points(getenv("MOEC_FAULT_AT"));
    text = getenv("MOEC_FAULT_ALLOC");
    alloc_at = text ? strtoull(text, NULL, 10) : 0;
    text = getenv("MOEC_FAULT_CLOCK");
    jump = text ? strtod(text, NULL) : 0.0;
    report = getenv("MOEC_FAULT_REPORT");
    boot = getenv("MOEC_FAULT_BOOT");
    server = getenv("MOEC_FAULT_SERVER");
    no_sync = getenv("MOEC_FAULT_NOSYNC") != NULL;
    log_fd = open_log("MOEC_FAULT_LOG", "");
    record_fd = open_log("MOEC_FAULT_RECORD", "");
    data_fd = open_log("MOEC_FAULT_RECORD", ".data");
}

/* A file beside DIR, out of the way of the program's own descriptors. */
static int open_beside(const char *dir, const char *suffix, int at)
{
    char path[4096];
    long fd, high;

    snprintf(path, sizeof(path), "%s%s", dir, suffix);
    fd = real(SYS_openat, AT_FDCWD, path,
              O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0666);
    high = real(SYS_dup3, fd, at, at > 2 ? O_CLOEXEC : 0);
    real(SYS_close, fd);
    return (int)high;
}

static void write_report(void)
{
    char line[160];
    int n;

    n = snprintf(line, sizeof(line), "%llu %llu %lld %s\n",
                 (unsigned long long)atomic_load(&n_calls),
                 (unsigned long long)atomic_load(&n_allocs),
                 (long long)atomic_load(&live), starved_in);
    real(SYS_write, report_fd, line, (size_t)n);
    real(SYS_close, report_fd);
    report_fd = -1;
}

/* Libraries need not take down in each child what they built before it. */
static void leave(int code, void *unused)
{
    (void)unused;
    fflush(NULL);
    write_report();
    _exit(code);
}

static void become(uint64_t at, const char *dir)
{
    long null = real(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY);

    alloc_at = at;
    real(SYS_dup3, null, 0, 0);
    real(SYS_close, null);
    open_beside(dir, ".out", 1);
    open_beside(dir, ".err", 2);
    report_fd = open_beside(dir, ".report", HIGH_FD);
    if (real(SYS_chdir, dir) != 0 || on_exit(leave, NULL) != 0)
        _exit(125);
}

static void answer(long value)
{
    char line[32];
    int n = snprintf(line, sizeof(line), "%ld\n", value);

    real(SYS_write, 1, line, (size_t)n);
}

/* Returns in each of the children. */
static void serve(void)
{
    char line[4096], *dir;
    uint64_t at;
    pid_t pid;

    server = NULL; /* once */
    answer((long)atomic_load(&n_allocs));
    for (;;) {
        size_t n = 0;
        while (n + 1 < sizeof(line) && real(SYS_read, 0, line + n, 1) == 1 &&
               line[n] != '\n')
            n++;
        if (n == 0)
            _exit(0);
        line[n] = '\0';
        at = strtoull(line, &dir, 10);
        pid = fork();
        if (pid == 0) {
            become(at, dir + 1);
            return;
        }
        int status = -1;
        answer(pid);
        waitpid(pid, &status, 0);
        answer(status);
    }
}

__attribute__((constructor)) static void begin_shim(void)
{
    pthread_once(&once, set_up);
    atomic_store(&n_allocs, 0);
    atomic_store(&live, 0);
    if (server != NULL && strcmp(server, "cold") == 0)
        serve();
}

__attribute__((destructor)) static void end_shim(void)
{
    if (report != NULL)
        report_fd = (int)real(SYS_openat, AT_FDCWD, report,
                              O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (report_fd >= 0)
        write_report();
}

static void die(void)
{
    real(SYS_kill, real(SYS_getpid), SIGKILL);
}

/* Every call comes by here once. What is to happen: an errno, or DO_*. */
static int meet(const char *kind)
{
    int saved = errno, what = DO_NOTHING;

    pthread_once(&once, set_up);
    atomic_fetch_add(&n_calls, 1);
    if (log_fd >= 0) {
        char line[64];
        int n = snprintf(line, sizeof(line), "%s\n", kind);
        real(SYS_write, log_fd, line, (size_t)n);
    }
    for (size_t i = 0; i < n_points; i++)
        if ((points[i].kind[0] == '\0' || strcmp(points[i].kind, kind) == 0) &&
            atomic_fetch_add(&points[i].met, 1) + 1 == points[i].at)
            what = points[i].what;
    if (what == DO_KILL)
        die();
    errno = saved;
    return what;
}

/* The same for calls that transfer nothing: true, and errno, where it fails. */
static bool fails(const char *kind)
{
    int what = meet(kind);

    if (what == DO_TORN)
        die();
    if (what == DO_SHORT)
        what = EIO;
    if (what > 0)
        errno = what;
    return what > 0;
}

/* -------------------------------------------------------------- recording */

static uint64_t ino_of(int fd)
{
    struct stat st;

    return real(SYS_fstat, fd, &st) == 0 ? (uint64_t)st.st_ino : 0;
}

/* The directory that `path` is in, and its last part. */
static uint64_t parent_of(int dirfd, const char *path, const char **base)
{
    const char *slash = strrchr(path, '/');
    char dir[4096];
    uint64_t ino;
    long fd;

    *base = slash ? slash + 1 : path;
    if (slash == NULL && dirfd != AT_FDCWD)
        return ino_of(dirfd);
    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) : 1,
             slash ? path : ".");
    fd = real(SYS_openat, dirfd, dir, O_PATH | O_CLOEXEC);
    ino = ino_of((int)fd);
    real(SYS_close, fd);
    return ino;
}

__attribute__((format(printf, 1, 2))) static void put(const char *fmt, ...)
{
    char line[4400];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    real(SYS_write, record_fd, line, (size_t)n);
}

static void record_write(int fd, const void *buf, long n, int64_t off)
{
    if (record_fd < 0 || n <= 0 || fd <= 2)
        return;
    real(SYS_write, data_fd, buf, (size_t)n);
    put("write %llu %lld %ld\n", (unsigned long long)ino_of(fd), (long long)off,
        n);
}

/* --------------------------------------------------------------- opening */

static int do_open(int dirfd, const char *path, int flags, mode_t mode)
{
    const char *base;
    bool fresh = false;
    long fd;

    if (boot && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0)
        path = boot;
    if (fails(flags & O_CREAT ? "create" : "open"))
        return -1;
    if (record_fd < 0 || !(flags & (O_CREAT | O_TRUNC)))
        return (int)real(SYS_openat, dirfd, path, flags, mode);
    pthread_mutex_lock(&lock);
    fresh = real(SYS_faccessat, dirfd, path, F_OK) != 0;
    fd = real(SYS_openat, dirfd, path, flags, mode);
    if (fd >= 0 && fresh) {
        uint64_t dir = parent_of(dirfd, path, &base);
        put("create %llu %llu %s\n", (unsigned long long)dir,
            (unsigned long long)ino_of((int)fd), base);
    } else if (fd >= 0 && (flags & O_TRUNC)) {
        put("truncate %llu 0\n", (unsigned long long)ino_of((int)fd));
    }
    pthread_mutex_unlock(&lock);
    return (int)fd;
}

#define TAKE_MODE(mode, flags, last)                                           \
  do {                                                                         \
    va_list ap;                                                                \
    va_start(ap, last);                                                        \
    if ((flags) & (O_CREAT | O_TMPFILE))                                       \
      (mode) = va_arg(ap, mode_t);                                             \
    va_end(ap);                                                                \
  } while (0)

SHIM int open(const char *path, int flags, ...)
{
    mode_t mode = 0;

    TAKE_MODE(mode, flags, flags);
    return do_open(AT_FDCWD, path, flags, mode);
}

SHIM int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;

    TAKE_MODE(mode, flags, flags);
    return do_open(AT_FDCWD, path, flags, mode);
}

SHIM int openat(int dirfd, const char *path, int flags, ...)
{
    mode_t mode = 0;

    TAKE_MODE(mode, flags, flags);
    return do_open(dirfd, path, flags, mode);
}

SHIM int __open_2(const char *path, int flags)
{
    return do_open(AT_FDCWD, path, flags, 0);
}

SHIM int __openat_2(int dirfd, const char *path, int flags)
{
    return do_open(dirfd, path, flags, 0);
}

/* openat2 has no function of libc. */
SHIM long syscall(long number, ...)
{
    long a[6];
    va_list ap;

    va_start(ap, number);
    for (size_t i = 0; i < 6; i++)
        a[i] = va_arg(ap, long);
    va_end(ap);
    if (number == SYS_openat2 && fails("openat2"))
        return -1;
    pthread_once(&once, set_up);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

SHIM int close(int fd)
{
    bool bad = fails("close");
    int why = errno;
    int rc = (int)real(SYS_close, fd); /* Linux closes it either way */

    if (!bad)
        return rc;
    errno = why;
    return -1;
}

SHIM FILE *fopen(const char *path, const char *mode)
{
    static FILE *(*next)(const char *, const char *);

    if (fails("fopen"))
        return NULL;
    find(&next, "fopen");
    return next(path, mode);
}

/* ------------------------------------------------------------- transfers */

/* Half of n, or -1 where it fails; n itself mostly. */
static ssize_t half(const char *kind, size_t n, int *what)
{
    *what = meet(kind);
    if (*what > 0) {
        errno = *what;
        return -1;
    }
    return (ssize_t)(*what != DO_NOTHING && n > 1 ? n / 2 : n);
}

static ssize_t do_read(int fd, void *buf, size_t n)
{
    int what;
    ssize_t k = half("read", n, &what);

    return k < 0 ? -1 : real(SYS_read, fd, buf, (size_t)k);
}

SHIM ssize_t read(int fd, void *buf, size_t n)
{
    return do_read(fd, buf, n);
}

SHIM ssize_t __read_chk(int fd, void *buf, size_t n, size_t cap)
{
    if (n > cap)
        abort();
    return do_read(fd, buf, n);
}

SHIM ssize_t pread(int fd, void *buf, size_t n, off_t off)
{
    int what;
    ssize_t k = half("pread", n, &what);

    return k < 0 ? -1 : real(SYS_pread64, fd, buf, (size_t)k, off);
}

SHIM ssize_t pread64(int fd, void *buf, size_t n, off_t off)
{
    return pread(fd, buf, n, off);
}

SHIM ssize_t pwrite(int fd, const void *buf, size_t n, off_t off)
{
    int what;
    ssize_t k = half("pwrite", n, &what);
    long done;

    if (k < 0)
        return -1;
    pthread_mutex_lock(&lock);
    done = real(SYS_pwrite64, fd, buf, (size_t)k, off);
    record_write(fd, buf, done, off);
    pthread_mutex_unlock(&lock);
    if (what == DO_TORN)
        die();
    return done;
}

SHIM ssize_t write(int fd, const void *buf, size_t n)
{
    int what;
    ssize_t k = half("write", n, &what);
    long at, done;

    if (k < 0)
        return -1;
    pthread_mutex_lock(&lock);
    at = record_fd < 0 ? 0 : real(SYS_lseek, fd, (off_t)0, SEEK_CUR);
    done = real(SYS_write, fd, buf, (size_t)k);
    record_write(fd, buf, done, at);
    pthread_mutex_unlock(&lock);
    if (what == DO_TORN)
        die();
    return done;
}

/* What was copied inside the kernel is read to be recorded. */
static void record_copy(int in, int64_t from, int out, int64_t to, long n)
{
    char part[4096];

    for (long at = 0; record_fd >= 0 && at < n; at += (long)sizeof(part)) {
        size_t want =
            n - at < (long)sizeof(part) ? (size_t)(n - at) : sizeof(part);
        record_write(out, part, real(SYS_pread64, in, part, want, from + at),
                     to + at);
    }
}

SHIM ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off,
                             size_t n, unsigned flags)
{
    int what;
    ssize_t k = half("copy_range", n, &what);
    int64_t from = in_off ? *in_off : 0, to = out_off ? *out_off : 0;
    long done;

    if (k < 0)
        return -1;
    pthread_mutex_lock(&lock);
    done =
        real(SYS_copy_file_range, in, in_off, out, out_off, (size_t)k, flags);
    record_copy(in, from, out, to, done);
    pthread_mutex_unlock(&lock);
    if (what == DO_TORN)
        die();
    return done;
}

/* ------------------------------------------------- sizes, syncs and names */

SHIM int fallocate(int fd, int mode, off_t off, off_t n)
{
    long rc;

    if (fails("fallocate"))
        return -1;
    pthread_mutex_lock(&lock);
    rc = real(SYS_fallocate, fd, mode, off, n);
    if (rc == 0 && record_fd >= 0)
        put("extend %llu %lld\n", (unsigned long long)ino_of(fd),
            (long long)(off + n));
    pthread_mutex_unlock(&lock);
    return (int)rc;
}

SHIM int ftruncate(int fd, off_t n)
{
    long rc;

    if (fails("ftruncate"))
        return -1;
    pthread_mutex_lock(&lock);
    rc = real(SYS_ftruncate, fd, n);
    if (rc == 0 && record_fd >= 0)
        put("truncate %llu %lld\n", (unsigned long long)ino_of(fd),
            (long long)n);
    pthread_mutex_unlock(&lock);
    return (int)rc;
}

/* Under the lock: what others write meanwhile waits, and stands behind it. */
static int do_sync(const char *kind, long number, int fd)
{
    uint64_t ino;
    long rc;

    if (fails(kind))
        return -1;
    pthread_mutex_lock(&lock);
    ino = record_fd < 0 ? 0 : ino_of(fd);
    rc = no_sync ? 0 : real(number, fd);
    if (rc == 0 && record_fd >= 0)
        put("sync %llu\n", (unsigned long long)ino);
    pthread_mutex_unlock(&lock);
    return (int)rc;
}

SHIM int fsync(int fd)
{
    return do_sync("fsync", SYS_fsync, fd);
}

SHIM int fdatasync(int fd)
{
    return do_sync("fdatasync", SYS_fdatasync, fd);
}

static int do_rename(int a, const char *from, int b, const char *to,
                     unsigned flags)
{
    const char *base_a, *base_b;
    long rc;

    if (fails(flags ? "renameat2" : "rename"))
        return -1;
    pthread_mutex_lock(&lock);
    rc = real(SYS_renameat2, a, from, b, to, flags);
    if (rc == 0 && record_fd >= 0) {
        uint64_t da = parent_of(a, from, &base_a);
        uint64_t db = parent_of(b, to, &base_b);
        put("rename %llu %llu %u %s\t%s\n", (unsigned long long)da,
            (unsigned long long)db, flags, base_a, base_b);
    }
    pthread_mutex_unlock(&lock);
    return (int)rc;
}

SHIM int rename(const char *from, const char *to)
{
    return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0);
}

SHIM int renameat(int a, const char *from, int b, const char *to)
{
    return do_rename(a, from, b, to, 0);
}

SHIM int renameat2(int a, const char *from, int b, const char *to,
                   unsigned flags)
{
    return do_rename(a, from, b, to, flags);
}

SHIM int unlinkat(int dirfd, const char *path, int flags)
{
    const char *base;
    long rc;

    if (fails(flags & AT_REMOVEDIR ? "rmdir" : "unlink"))
        return -1;
    pthread_mutex_lock(&lock);
    rc = real(SYS_unlinkat, dirfd, path, flags);
    if (rc == 0 && record_fd >= 0) {
        uint64_t dir = parent_of(dirfd, path, &base);
        put("unlink %llu %s\n", (unsigned long long)dir, base);
    }
    pthread_mutex_unlock(&lock);
    return (int)rc;
}

SHIM int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

SHIM int mkdirat(int dirfd, const char *path, mode_t mode)
{
    const char *base;
    long rc, fd;

    if (fails("mkdir"))
        return -1;
    pthread_mutex_lock(&lock);
    rc = real(SYS_mkdirat, dirfd, path, mode);
    if (rc == 0 && record_fd >= 0) {
        uint64_t dir = parent_of(dirfd, path, &base);
        fd = real(SYS_openat, dirfd, path, O_PATH | O_CLOEXEC);
        put("mkdir %llu %llu %s\n", (unsigned long long)dir,
            (unsigned long long)ino_of((int)fd), base);
        real(SYS_close, fd);
    }
    pthread_mutex_unlock(&lock);
    return (int)rc;
}

SHIM int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

SHIM int fsetxattr(int fd, const char *name, const void *value, size_t n,
                   int flags)
{
    long rc;

    if (fails("fsetxattr"))
        return -1;
    rc = real(SYS_fsetxattr, fd, name, value, n, flags);
    if (rc == 0 && record_fd >= 0)
        put("attribute %llu %s\n", (unsigned long long)ino_of(fd), name);
    return (int)rc;
}

SHIM int fremovexattr(int fd, const char *name)
{
    long rc;

    if (fails("fremovexattr"))
        return -1;
    rc = real(SYS_fremovexattr, fd, name);
    if (rc == 0 && record_fd >= 0)
        put("no_attribute %llu %s\n", (unsigned long long)ino_of(fd), name);
    return (int)rc;
}

SHIM ssize_t fgetxattr(int fd, const char *name, void *value, size_t n)
{
    return fails("fgetxattr") ? -1 : real(SYS_fgetxattr, fd, name, value, n);
}

/* ---------------------------------------------------------------- looking */

SHIM int fstat(int fd, struct stat *st)
{
    return fails("fstat") ? -1 : (int)real(SYS_fstat, fd, st);
}

SHIM int fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
    return fails("stat") ? -1
                         : (int)real(SYS_newfstatat, dirfd, path, st, flags);
}

SHIM int stat(const char *path, struct stat *st)
{
    return fstatat(AT_FDCWD, path, st, 0);
}

SHIM int lstat(const char *path, struct stat *st)
{
    return fstatat(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

SHIM int faccessat(int dirfd, const char *path, int mode, int flags)
{
    return fails("access")
               ? -1
               : (int)real(SYS_faccessat2, dirfd, path, mode, flags);
}

SHIM int flock(int fd, int what)
{
    return fails("flock") ? -1 : (int)real(SYS_flock, fd, what);
}

SHIM ssize_t readlink(const char *path, char *buf, size_t n)
{
    return fails("readlink") ? -1
                             : real(SYS_readlinkat, AT_FDCWD, path, buf, n);
}

SHIM DIR *fdopendir(int fd)
{
    static DIR *(*next)(int);

    if (fails("fdopendir"))
        return NULL;
    find(&next, "fdopendir");
    return next(fd);
}

SHIM struct dirent *readdir(DIR *dir)
{
    static struct dirent *(*next)(DIR *);

    if (fails("readdir"))
        return NULL;
    if (next == NULL)
        find(&next, "readdir");
    return next(dir);
}

SHIM char *realpath(const char *path, char *out)
{
    static char *(*next)(const char *, char *);

    if (fails("realpath"))
        return NULL;
    find(&next, "realpath");
    return next(path, out);
}

SHIM char *__realpath_chk(const char *path, char *out, size_t cap)
{
    (void)cap;
    return realpath(path, out);
}

SHIM int pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                        void *(*fn)(void *), void *arg)
{
    static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *),
                       void *);

    if (fails("thread"))
        return errno;
    find(&next, "pthread_create");
    return next(thread, attr, fn, arg);
}

SHIM int clock_gettime(clockid_t id, struct timespec *t)
{
    static atomic_uint_fast64_t n_looks;
    long rc;

    pthread_once(&once, set_up);
    rc = real(SYS_clock_gettime, id, t);
    if (rc == 0 && id == CLOCK_MONOTONIC)
        t->tv_sec +=
            (time_t)(jump * (double)(atomic_fetch_add(&n_looks, 1) + 1));
    return (int)rc;
}

/* ----------------------------------------------------------------- memory */

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

/* `caller`: an address inside of who asks. */
static bool starved(const void *caller)
{
    uint64_t k = atomic_fetch_add(&n_allocs, 1) + 1;
    const char *name;
    Dl_info info;

    if (k != alloc_at)
        return false;
    if (dladdr(caller, &info) != 0 && info.dli_fname != NULL) {
        name = strrchr(info.dli_fname, '/');
        snprintf(starved_in, sizeof(starved_in), "%s",
                 name ? name + 1 : info.dli_fname);
    }
    errno = ENOMEM;
    return true;
}

static void *counted(void *p)
{
    if (p != NULL)
        atomic_fetch_add(&live, 1);
    return p;
}

SHIM void *malloc(size_t n)
{
    return starved(__builtin_return_address(0)) ? NULL
                                                : counted(__libc_malloc(n));
}

SHIM void *calloc(size_t n, size_t size)
{
    return starved(__builtin_return_address(0))
               ? NULL
               : counted(__libc_calloc(n, size));
}

static void *do_realloc(void *p, size_t n, const void *caller)
{
    if (starved(caller))
        return NULL;
    return p ? __libc_realloc(p, n) : counted(__libc_realloc(p, n));
}

SHIM void *realloc(void *p, size_t n)
{
    return do_realloc(p, n, __builtin_return_address(0));
}

SHIM void *reallocarray(void *p, size_t n, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, size, &bytes))
        return NULL;
    return do_realloc(p, bytes, __builtin_return_address(0));
}

SHIM int posix_memalign(void **out, size_t align, size_t n)
{
    void *p = starved(__builtin_return_address(0))
                  ? NULL
                  : counted(__libc_memalign(align, n));

    if (p == NULL)
        return ENOMEM;
    *out = p;
    return 0;
}

SHIM void *aligned_alloc(size_t align, size_t n)
{
    return starved(__builtin_return_address(0))
               ? NULL
               : counted(__libc_memalign(align, n));
}

SHIM void free(void *p)
{
    if (p != NULL)
        atomic_fetch_sub(&live, 1);
    __libc_free(p);
}

/* Thousands of allocations are behind it, nearly all of them libcrypto's. */
SHIM int EVP_Digest(const void *data, size_t n, unsigned char *out,
                    unsigned *out_bytes, const void *md, void *engine)
{
    static int (*next)(const void *, size_t, unsigned char *, unsigned *,
                       const void *, void *);
    int ok;

    find(&next, "EVP_Digest");
    ok = next(data, n, out, out_bytes, md, engine);
    if (server != NULL && strcmp(server, "warm") == 0)
        serve();
    return ok;
}
