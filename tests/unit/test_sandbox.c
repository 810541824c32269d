/* SPDX-License-Identifier: Apache-2.0
 *
 * The sandbox, by trying: a child enters it and then does what it may, and
 * what it may not. What this kernel does not have is skipped aloud. */

#include "tmpdir.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "sandbox.h"

static tmpdir d;
static moec_sandbox_result got;
static struct sockaddr_in server; /* of this process, for the children */

static const char *in(const char *name)
{
    return tmpdir_path(&d, name);
}

static void touch(const char *name)
{
    int fd = open(in(name), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);

    assert_true(fd >= 0);
    assert_int_equal(close(fd), 0);
}

static int setup(void **state)
{
    static const char *const dirs[] = {"in", "out", "other", "in/below"};

    (void)state;
    d = tmpdir_make();
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(mkdir(in(dirs[i]), 0777), 0);
    touch("in/x");
    touch("in/below/x");
    touch("other/x");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tmpdir_remove(&d);
    return 0;
}

/* Run `fn` in a child inside the sandbox; 0 from it is good, else the line. */
static void inside(int (*fn)(void), bool network)
{
    int status = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        moec_sandbox_path paths[] = {{in("in"), MOEC_SANDBOX_READ},
                                     {in("out"), MOEC_SANDBOX_WRITE},
                                     {in("absent"), MOEC_SANDBOX_READ}};
        got = moec_sandbox_enter(paths, 3, network);
        _exit(fn());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    if (WEXITSTATUS(status) != 0)
        fail_msg("line %d of this file, in the child",
                 WEXITSTATUS(status) + 100);
}

/* Exit codes have 8 bits: lines 101 to 355 of this file. */
#define WANT(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      return __LINE__ - 100;                                                   \
  } while (0)
#define NEED(what)                                                             \
  do {                                                                         \
    if (!got.what) {                                                           \
      (void)fprintf(stderr, "no %s here: not tried\n", #what);                 \
      return 77;                                                               \
    }                                                                          \
  } while (0)

static int try_open(const char *name, int flags)
{
    int fd = open(name, flags | O_CLOEXEC, 0666);
    int why = fd < 0 ? errno : 0;

    if (fd >= 0)
        (void)close(fd);
    return why;
}

static int reads_and_writes(void)
{
    NEED(landlock);
    WANT(try_open(in("in/x"), O_RDONLY) == 0);
    WANT(try_open(in("in/below/x"), O_RDONLY) == 0);
    WANT(try_open(in("in"), O_RDONLY | O_DIRECTORY) == 0);
    WANT(try_open(in("in/x"), O_WRONLY) == EACCES);
    WANT(try_open(in("in/new"), O_WRONLY | O_CREAT) == EACCES);
    WANT(unlink(in("in/x")) != 0);
    WANT(try_open(in("other/x"), O_RDONLY) == EACCES);
    WANT(try_open(in("other"), O_RDONLY | O_DIRECTORY) == EACCES);
    WANT(try_open("/etc/passwd", O_RDONLY) == EACCES);
    WANT(try_open("/dev/urandom", O_RDONLY) == 0);
    /* Not there is still not there. */
    WANT(try_open(in("absent/x"), O_RDONLY) == ENOENT);
    return 0;
}

static int makes_an_output(void)
{
    NEED(landlock);
    WANT(mkdir(in("out/a"), 0777) == 0);
    WANT(try_open(in("out/a/x"), O_WRONLY | O_CREAT) == 0);
    WANT(truncate(in("out/a/x"), 4096) == 0);
    WANT(mkdir(in("out/b"), 0777) == 0);
    WANT(rename(in("out/a/x"), in("out/b/x")) == 0 || got.landlock < 2);
    WANT(rename(in("out/a"), in("out/c")) == 0);
    WANT(rename(in("out/c"), in("other/c")) != 0);
    WANT(symlink("x", in("out/link")) != 0);
    WANT(mkfifo(in("out/fifo"), 0666) != 0);
    return 0;
}

/* What a source behind a URL needs, and no more. */
static int speaks_to_a_server(void)
{
    char *const argv[] = {NULL};
    int fd;

    NEED(seccomp);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    WANT(fd >= 0);
    WANT(connect(fd, (struct sockaddr *)&server, sizeof(server)) == 0);
    WANT(send(fd, "x", 1, MSG_NOSIGNAL) == 1);
    WANT(listen(fd, 1) < 0 && errno == EPERM);
    WANT(execve("/bin/true", argv, argv) != 0 && errno == EPERM);
    WANT(fork() < 0 && errno == EPERM);
    NEED(landlock);
    WANT(try_open("/etc/passwd", O_RDONLY) == 0);
    WANT(try_open("/etc/passwd", O_WRONLY) == EACCES);
    WANT(try_open(in("other/x"), O_RDONLY) == EACCES);
    WANT(try_open(in("in/x"), O_RDONLY) == 0);
    return 0;
}

/* Nothing of this may reach the world, whatever was read. */
static int reaches_nobody(void)
{
    char *const argv[] = {NULL};

    NEED(seccomp);
    WANT(execve("/bin/true", argv, argv) != 0 && errno == EPERM);
    WANT(execve(in("in/x"), argv, argv) != 0 && errno == EPERM);
    WANT(socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM);
    WANT(socket(AF_UNIX, SOCK_STREAM, 0) < 0 && errno == EPERM);
    WANT(ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 && errno == EPERM);
    WANT(syscall(SYS_unshare, 0) < 0 && errno == EPERM);
    WANT(syscall(SYS_bpf, 0, NULL, 0) < 0 && errno == EPERM);
    WANT(fork() < 0 && errno == EPERM);
    WANT(syscall(SYS_mount, "a", "b", "c", 0, NULL) < 0 && errno == EPERM);
    return 0;
}

static void *thread(void *ctx)
{
    return ctx;
}

static int goes_on_working(void)
{
    pthread_t t;
    void *result = NULL;
    char params[120] = {0};
    long ring;

    WANT(pthread_create(&t, NULL, thread, &ring) == 0);
    WANT(pthread_join(t, &result) == 0 && result == &ring);
#ifdef SYS_io_uring_setup
    ring = syscall(SYS_io_uring_setup, 4, params);
    WANT(ring >= 0 || errno == ENOSYS || errno == EPERM);
    /* EPERM only where the machine has switched it off for everybody. */
    if (ring < 0 && errno == EPERM)
        WANT(access("/proc/sys/kernel/io_uring_disabled", F_OK) == 0);
#endif
    return 0;
}

/* A signal to a stranger: scoped by Landlock 6. */
static int signals_nobody(void)
{
    NEED(landlock);
    if (got.landlock < 6)
        return 77;
    WANT(kill(getppid(), 0) != 0 && errno == EPERM);
    WANT(kill(getpid(), 0) == 0);
    return 0;
}

static void opens_only_what_the_command_names(void **state)
{
    (void)state;
    inside(reads_and_writes, false);
}

static void makes_the_output_and_nothing_elsewhere(void **state)
{
    (void)state;
    inside(makes_an_output, false);
}

static void runs_and_reaches_nobody(void **state)
{
    (void)state;
    inside(reaches_nobody, false);
}

static void connects_where_it_has_a_network(void **state)
{
    socklen_t n = sizeof(server);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)state;
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&server, n) != 0) {
        (void)fprintf(stderr, "no network here: not tried\n");
        skip();
    }
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&server, &n), 0);
    inside(speaks_to_a_server, true);
    assert_int_equal(close(fd), 0);
}

static void threads_and_rings_go_on_working(void **state)
{
    (void)state;
    inside(goes_on_working, false);
}

static void sends_no_signals(void **state)
{
    (void)state;
    inside(signals_nobody, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_only_what_the_command_names),
        cmocka_unit_test(makes_the_output_and_nothing_elsewhere),
        cmocka_unit_test(runs_and_reaches_nobody),
        cmocka_unit_test(connects_where_it_has_a_network),
        cmocka_unit_test(threads_and_rings_go_on_working),
        cmocka_unit_test(sends_no_signals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
