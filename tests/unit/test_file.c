/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading, writing and opening files. All of it runs twice: with openat2, and
 * with openat2 refused by a filter, as on old kernels and in some sandboxes. */

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"

static char root[512];
static int rootfd = -1; /* root */
static int repofd = -1; /* root/repo: what may be opened lies below it */

static void put_file(int dirfd, const char *name, const char *text)
{
    int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(close(fd), 0);
}

static int make_tree(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(root, sizeof(root), "%s/moec-file.XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(root));
    rootfd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(mkdirat(rootfd, "repo", 0700), 0);
    assert_int_equal(mkdirat(rootfd, "repo/sub", 0700), 0);
    assert_int_equal(mkdirat(rootfd, "repo-other", 0700), 0);
    repofd = openat(rootfd, "repo", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    put_file(rootfd, "secret", "secret");
    put_file(rootfd, "repo-other/f", "secret");
    put_file(repofd, "plain", "hello");
    put_file(repofd, "empty", "");
    assert_int_equal(symlinkat("../plain", repofd, "sub/inside"), 0);
    assert_int_equal(symlinkat("../secret", repofd, "outside"), 0);
    assert_int_equal(symlinkat("../repo-other/f", repofd, "sibling"), 0);
    assert_int_equal(symlinkat("/etc/hostname", repofd, "absolute"), 0);
    assert_int_equal(symlinkat("loop", repofd, "loop"), 0);
    assert_int_equal(mkfifoat(repofd, "fifo", 0600), 0);
    return 0;
}

static int drop_tree(void **state)
{
    static const char *const names[] = {"sub/inside", "outside", "sibling",
                                        "absolute",   "loop",    "fifo",
                                        "plain",      "empty"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        unlinkat(repofd, names[i], 0);
    unlinkat(repofd, "sub", AT_REMOVEDIR);
    unlinkat(rootfd, "repo-other/f", 0);
    unlinkat(rootfd, "secret", 0);
    unlinkat(rootfd, "repo-other", AT_REMOVEDIR);
    unlinkat(rootfd, "repo", AT_REMOVEDIR);
    close(repofd);
    close(rootfd);
    return rmdir(root);
}

static void reads_whole_files(void **state)
{
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_read_file(repofd, "plain", 5, &b, &err), MOEC_OK);
    assert_string_equal(b.data, "hello");
    assert_int_equal(b.len, 5);
    assert_int_equal(moec_read_file(repofd, "empty", 5, &b, &err), MOEC_OK);
    assert_int_equal(b.len, 5);
    moec_buf_fini(&b);
    assert_int_equal(moec_read_file(repofd, "empty", 0, &b, &err), MOEC_OK);
    assert_string_equal(b.data, "");
    moec_buf_fini(&b);
}

static void follows_links_that_stay_inside(void **state)
{
    moec_buf b = {0};
    uint64_t bytes = 0;
    int fd = -1;

    (void)state;
    assert_int_equal(moec_read_file(repofd, "sub/inside", 9, &b, NULL),
                     MOEC_OK);
    assert_string_equal(b.data, "hello");
    moec_buf_fini(&b);
    assert_int_equal(moec_open_regular(repofd, "sub/inside", &fd, &bytes, NULL),
                     MOEC_OK);
    assert_int_equal(bytes, 5);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    close(fd);
}

static void refuses_what_leads_out(void **state)
{
    static const char *const names[] = {"outside",          "sibling",
                                        "absolute",         "../secret",
                                        "sub/../../secret", "/etc/hostname"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        moec_buf b = {0};
        moec_error err = MOEC_ERROR_INIT;
        int fd = -7;
        assert_int_equal(moec_read_file(repofd, names[i], 999, &b, &err),
                         MOEC_E_FORMAT);
        assert_int_equal(err.rule, MOEC_RULE_I03);
        assert_non_null(strstr(err.text, names[i]));
        assert_int_equal(b.len, 0);
        assert_int_equal(moec_open_regular(repofd, names[i], &fd, NULL, NULL),
                         MOEC_E_FORMAT);
        assert_int_equal(fd, -7);
        moec_buf_fini(&b);
    }
}

static void refuses_what_is_no_regular_file(void **state)
{
    static const struct {
        const char *name, *text;
    } cases[] = {
        {"fifo", "[MOE-I03 regular-file] fifo: is a FIFO, not a regular file"},
        {"sub",
         "[MOE-I03 regular-file] sub: is a directory, not a regular file"},
        {".", "[MOE-I03 regular-file] .: is a directory, not a regular file"},
        {"loop", "[MOE-I03 regular-file] loop: is a link to itself or one not "
                 "to be followed"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_buf b = {0};
        moec_error err = MOEC_ERROR_INIT;
        assert_int_equal(moec_read_file(repofd, cases[i].name, 9, &b, &err),
                         MOEC_E_FORMAT);
        if (strcmp(cases[i].name, ".") != 0)
            assert_string_equal(err.text, cases[i].text);
        assert_int_equal(err.rule, MOEC_RULE_I03);
        moec_buf_fini(&b);
    }
}

static void tells_absent_from_refused(void **state)
{
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_read_file(repofd, "absent", 9, &b, &err), MOEC_E_IO);
    assert_int_equal(err.os_errno, ENOENT);
    assert_string_equal(err.text,
                        "absent: cannot open: No such file or directory");
}

static void refuses_files_over_the_limit(void **state)
{
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_read_file(repofd, "plain", 4, &b, &err),
                     MOEC_E_FORMAT);
    assert_string_equal(err.text, "[MOE-I04 size-limit] plain: has 5 bytes, "
                                  "more than the limit of 4");
    assert_null(b.data);
}

/* Files of /proc say that they are empty. A file that grows while it is read
 * looks the same. */
static void refuses_files_with_more_than_their_size(void **state)
{
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;
    int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(moec_read_file(fd, "version", 4096, &b, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I13);
    assert_int_equal(b.len, 0);
    moec_buf_fini(&b);
    close(fd);
}

static void reports_memory_that_is_not_there(void **state)
{
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    moec_alloc_fail_at(1);
    assert_int_equal(moec_read_file(repofd, "plain", 9, &b, &err),
                     MOEC_E_NOMEM);
    moec_alloc_fail_at(0);
    moec_buf_fini(&b);
}

static void pread_names_where_the_file_ends(void **state)
{
    char buf[8] = "";
    moec_error err = MOEC_ERROR_INIT;
    int fd = openat(repofd, "plain", O_RDONLY | O_CLOEXEC);

    (void)state;
    assert_int_equal(moec_pread_full(fd, "plain", buf, 4, 1, &err), MOEC_OK);
    assert_string_equal(buf, "ello");
    assert_int_equal(moec_pread_full(fd, "plain", buf, 4, 2, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_H17);
    assert_int_equal(err.file_off, 5);
    assert_string_equal(
        err.text,
        "[MOE-H17 covers-file-truncated] plain: ends at byte 5, 1 bytes short");
    assert_int_equal(moec_pread_full(fd, "plain", buf, 1, UINT64_MAX, NULL),
                     MOEC_E_INTERNAL);
    assert_int_equal(moec_pread_full(-1, "plain", buf, 1, 0, NULL), MOEC_E_IO);
    close(fd);
}

static void pwrite_writes_all_or_tells(void **state)
{
    char buf[4] = "";
    moec_error err = MOEC_ERROR_INIT;
    int fd = openat(repofd, "plain", O_RDWR | O_CLOEXEC);

    (void)state;
    assert_int_equal(moec_pwrite_full(fd, "plain", "LL", 2, 2, &err), MOEC_OK);
    assert_int_equal(moec_pread_full(fd, "plain", buf, 3, 1, &err), MOEC_OK);
    assert_string_equal(buf, "eLL");
    assert_int_equal(moec_pwrite_full(fd, "plain", "ll", 2, 2, &err), MOEC_OK);
    close(fd);
    fd = openat(repofd, "plain", O_RDONLY | O_CLOEXEC);
    assert_int_equal(moec_pwrite_full(fd, "plain", "x", 1, 9, &err), MOEC_E_IO);
    assert_int_equal(err.os_errno, EBADF);
    assert_string_equal(err.text, "plain: cannot write 1 bytes at offset 9: "
                                  "Bad file descriptor");
    close(fd);
}

static bool refuse_openat2(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof(code) / sizeof(code[0]), code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_whole_files),
        cmocka_unit_test(follows_links_that_stay_inside),
        cmocka_unit_test(refuses_what_leads_out),
        cmocka_unit_test(refuses_what_is_no_regular_file),
        cmocka_unit_test(tells_absent_from_refused),
        cmocka_unit_test(refuses_files_over_the_limit),
        cmocka_unit_test(refuses_files_with_more_than_their_size),
        cmocka_unit_test(reports_memory_that_is_not_there),
        cmocka_unit_test(pread_names_where_the_file_ends),
        cmocka_unit_test(pwrite_writes_all_or_tells),
    };
    int failed =
        cmocka_run_group_tests_name("openat2", tests, make_tree, drop_tree);

    if (refuse_openat2())
        failed += cmocka_run_group_tests_name("without openat2", tests,
                                              make_tree, drop_tree);
    else
        print_message("seccomp is not allowed here: one run only\n");
    return failed;
}
