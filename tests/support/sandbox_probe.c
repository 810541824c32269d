/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into moe-convert by tests of its sandbox: at the first close()
 * inside the sandbox it tries what a stranger in the process would, says how
 * each try ended on stderr, and lets the command go on. At exit it says where
 * there was no sandbox.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROBE __attribute__((visibility("default")))

static int tried;

static void say(const char *what, int refused)
{
    (void)dprintf(STDERR_FILENO, "probe: %s %s\n", what,
                  refused ? "refused" : "ALLOWED");
}

static void try_all(void)
{
    const char *outside = getenv("PROBE_OUTSIDE");
    const char *secret = getenv("PROBE_SECRET");
    char *const argv[] = {NULL};

    say("socket", socket(AF_INET, SOCK_STREAM, 0) < 0);
    say("ptrace", ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0);
    say("fork", syscall(SYS_clone, 17, 0, 0, 0, 0) < 0);
    say("read outside", secret == NULL || open(secret, O_RDONLY) < 0);
    say("write outside",
        outside == NULL || open(outside, O_WRONLY | O_CREAT, 0666) < 0);
    say("exec", execve("/bin/true", argv, argv) < 0);
}

PROBE int close(int fd)
{
    if (!tried && prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 2) {
        tried = 1;
        try_all();
    }
    return (int)syscall(SYS_close, fd);
}

__attribute__((destructor)) static void end(void)
{
    if (!tried)
        (void)dprintf(STDERR_FILENO, "probe: no sandbox\n");
}
