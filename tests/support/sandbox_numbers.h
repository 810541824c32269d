/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_SANDBOX_NUMBERS_H
#define MOEC_TESTS_SANDBOX_NUMBERS_H

/*
 * Numbers of system calls as the system's headers have them: each header in a
 * source of its own, since both call a number __NR_execve. Here are the calls
 * that every architecture has: what a sandbox refuses, and what every command
 * needs.
 */

#include <stdbool.h>

typedef struct sandbox_number {
    const char *name;
    int number;
    bool needed;
} sandbox_number;

/* Of <asm-generic/unistd.h>, which aarch64 has; the last has no name. */
extern const sandbox_number sandbox_generic[];

#define SANDBOX_REFUSED(name) {#name, __NR_##name, false},
#define SANDBOX_NEEDED(name)  {#name, __NR_##name, true},

/* clang-format off */
#define SANDBOX_REFUSED_CALLS(X) \
    X(execve) X(execveat) X(ptrace) X(process_vm_readv) X(process_vm_writev) \
    X(pidfd_getfd) X(kcmp) X(socket) X(socketpair) X(connect) X(bind) \
    X(sendto) X(sendmsg) X(sendmmsg) X(listen) X(accept) X(accept4) X(mount) \
    X(umount2) X(pivot_root) X(chroot) X(fsopen) X(fsconfig) X(fsmount) \
    X(fspick) X(move_mount) X(open_tree) X(mount_setattr) X(setns) \
    X(unshare) X(bpf) X(perf_event_open) X(userfaultfd) X(add_key) X(keyctl) \
    X(request_key) X(init_module) X(finit_module) X(delete_module) \
    X(kexec_load) X(kexec_file_load) X(reboot) X(swapon) X(swapoff) X(acct) \
    X(quotactl) X(settimeofday) X(clock_settime) X(sethostname) \
    X(setdomainname) X(open_by_handle_at) X(setuid) X(setgid) X(setreuid) \
    X(setregid) X(setresuid) X(setresgid) X(setgroups) X(capset)
#define SANDBOX_NEEDED_CALLS(X) \
    X(read) X(write) X(openat) X(openat2) X(close) X(pread64) X(pwrite64) \
    X(mmap) X(munmap) X(mprotect) X(brk) X(futex) X(exit_group) X(fsync) \
    X(fdatasync) X(renameat2) X(unlinkat) X(mkdirat) X(ioctl) \
    X(copy_file_range) X(fallocate) X(flock) X(getdents64) X(statx) \
    X(io_uring_setup) X(io_uring_enter) X(memfd_create) X(rt_sigaction) \
    X(sched_getaffinity) X(getrandom) X(prctl) X(madvise) X(sysinfo)
/* clang-format on */

#endif
