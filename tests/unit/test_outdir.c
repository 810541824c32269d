/* SPDX-License-Identifier: Apache-2.0
 *
 * The output directory: absent or complete whatever happens in between, never
 * two writers, never anything deleted that is not ours. The system calls that
 * change the directory are replaced here, to fail or to kill the process at
 * the n-th of them. */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "converted.h"
#include "outdir.h"

/* ------------------------------------------------------ system calls bent */

static int calls;          /* changing calls so far */
static int die_at;         /* SIGKILL before the n-th one; 0: never */
static int fsyncs_left;    /* this many succeed, the next fails; -1: all do */
static bool without_flags; /* renameat2 with flags answers EINVAL */
static bool appears;       /* OUT appears before the first rename */

static char root[512];

static void step(void)
{
    if (++calls == die_at)
        kill(getpid(), SIGKILL);
}

int fsync(int fd)
{
    step();
    if (fsyncs_left == 0) {
        fsyncs_left = -1;
        errno = EIO;
        return -1;
    }
    if (fsyncs_left > 0)
        fsyncs_left--;
    return (int)syscall(SYS_fsync, fd);
}

int renameat2(int old_dir, const char *old_name, int new_dir,
              const char *new_name, unsigned int flags)
{
    step();
    if (appears) {
        appears = false;
        assert_int_equal(mkdirat(new_dir, new_name, 0700), 0);
        assert_int_equal(mkdirat(new_dir, "out/theirs", 0700), 0);
    }
    if (without_flags && flags != 0) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_renameat2, old_dir, old_name, new_dir, new_name,
                        flags);
}

int renameat(int old_dir, const char *old_name, int new_dir,
             const char *new_name)
{
    step();
    return (int)syscall(SYS_renameat2, old_dir, old_name, new_dir, new_name, 0);
}

int unlinkat(int dir, const char *name, int flags)
{
    step();
    return (int)syscall(SYS_unlinkat, dir, name, flags);
}

int mkdirat(int dir, const char *name, mode_t mode)
{
    step();
    return (int)syscall(SYS_mkdirat, dir, name, mode);
}

/* ---------------------------------------------------------------- helpers */

static const char old_manifest[] = "{\n  \"schema\": \"moec.manifest/1\", 1}";
static const char new_manifest[] = "{\n  \"schema\": \"moec.manifest/1\", 2}";

static const char *at(const char *name)
{
    static char paths[4][640];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof(paths[0]), "%s/%s", root, name);
    return path;
}

static void put(const char *name, const char *text)
{
    int fd = open(at(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(close(fd), 0);
}

static bool exists(const char *name)
{
    struct stat st;

    return lstat(at(name), &st) == 0;
}

static void check_text(const char *name, const char *want)
{
    char text[256] = {0};
    int fd = open(at(name), O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        fail_msg("%s is not there", name);
    assert_true(read(fd, text, sizeof(text) - 1) >= 0);
    close(fd);
    assert_string_equal(text, want);
}

static void make_old(void)
{
    assert_int_equal(mkdir(at("out"), 0700), 0);
    put("out/manifest.json", old_manifest);
    put("out/old", "old");
}

static moec_output begun(bool force)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_output o = MOEC_OUTPUT_INIT;

    if (moec_output_begin(&o, at("out"), force, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return o;
}

static void write_new(const moec_output *o)
{
    assert_int_equal(moec_output_write(o, "data", "data", 4, NULL), MOEC_OK);
    assert_int_equal(moec_output_write(o, "empty", NULL, 0, NULL), MOEC_OK);
    assert_int_equal(moec_output_write(o, MOEC_MANIFEST_NAME, new_manifest,
                                       sizeof(new_manifest) - 1, NULL),
                     MOEC_OK);
}

static void check_new(void)
{
    check_text("out/manifest.json", new_manifest);
    check_text("out/data", "data");
    check_text("out/empty", "");
    assert_false(exists("out/old"));
    assert_false(exists("out/.moec-partial"));
}

static void check_refused(const char *path, bool force, moec_status want,
                          const char *text)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_output o = MOEC_OUTPUT_INIT;

    assert_int_equal(moec_output_begin(&o, path, force, &err), want);
    if (!strstr(err.text, text))
        fail_msg("'%s' does not say '%s'", err.text, text);
    assert_false(o.begun);
}

static int make_root(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(root, sizeof(root), "%s/moec-output.XXXXXX", tmp ? tmp : P_tmpdir);
    calls = die_at = 0;
    fsyncs_left = -1;
    without_flags = appears = false;
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    char command[600];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

/* Open descriptors of this process: none may be left behind. */
static int count_fds(void)
{
    int n = 0;

    for (int fd = 0; fd < 64; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* ------------------------------------------------------------- its course */

static void appears_only_when_complete(void **state)
{
    int fds = count_fds();
    moec_output o = begun(false);

    (void)state;
    assert_true(exists("out.partial/.moec-partial"));
    write_new(&o);
    assert_false(exists("out"));
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
    assert_false(exists("out.partial"));
    assert_int_equal(count_fds(), fds);
    assert_int_equal(moec_output_dirfd(&o), -1);
}

static void gives_the_mode_that_umask_leaves(void **state)
{
    mode_t before = umask(027);
    moec_output o = begun(false);
    struct stat st;

    (void)state;
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    umask(before);
    assert_int_equal(stat(at("out"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0750);
    assert_int_equal(stat(at("out/data"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
}

static void takes_trailing_slashes_and_relative_paths(void **state)
{
    moec_output o = MOEC_OUTPUT_INIT;
    int cwd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    (void)state;
    assert_int_equal(chdir(root), 0);
    assert_int_equal(moec_output_begin(&o, "out//", false, NULL), MOEC_OK);
    assert_string_equal(o.path, "out");
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    assert_int_equal(fchdir(cwd), 0);
    close(cwd);
    check_new();
}

static void makes_no_file_twice_or_elsewhere(void **state)
{
    moec_output o = begun(false);
    int fd = -1;

    (void)state;
    assert_int_equal(moec_output_create(&o, "a", 0, &fd, NULL), MOEC_OK);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    close(fd);
    assert_int_equal(moec_output_create(&o, "a", 0, &fd, NULL), MOEC_E_IO);
    assert_int_equal(moec_output_write(&o, "../b", "b", 1, NULL), MOEC_E_ARG);
    assert_false(exists("b"));
    assert_int_equal(symlink(at("b"), at("out.partial/c")), 0);
    assert_int_equal(moec_output_write(&o, "c", "c", 1, NULL), MOEC_E_IO);
    assert_false(exists("b"));
    moec_output_abandon(&o);
}

static void takes_over_what_was_abandoned(void **state)
{
    int fds = count_fds();
    moec_output o = begun(false);

    (void)state;
    assert_int_equal(moec_output_write(&o, "stale", "x", 1, NULL), MOEC_OK);
    moec_output_abandon(&o);
    moec_output_abandon(&o); /* again is fine */
    assert_true(exists("out.partial/stale"));
    o = begun(false);
    assert_false(exists("out.partial/stale"));
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
    assert_int_equal(count_fds(), fds);
}

/* Killed between the marker's removal and the rename. */
static void knows_its_own_without_a_marker(void **state)
{
    moec_output o = begun(false);
    char value[1];

    (void)state;
    assert_int_equal(moec_output_write(&o, "data", "x", 1, NULL), MOEC_OK);
    bool kept = fgetxattr(moec_output_dirfd(&o), "user.moec.partial", value,
                          sizeof(value)) == 1;
    moec_output_abandon(&o);
    assert_int_equal(unlink(at("out.partial/" MOEC_OUTPUT_MARKER)), 0);
    if (!kept) {
        print_message("this file system keeps no attributes\n");
        skip();
    }
    o = begun(false);
    assert_false(exists("out.partial/data"));
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
    assert_int_equal(getxattr(at("out"), "user.moec.partial", value, 1), -1);
}

static void discards_what_was_made_and_nothing_else(void **state)
{
    moec_output o = begun(false);

    (void)state;
    assert_true(moec_output_discard(&o));
    assert_false(exists("out.partial"));
    o = begun(false);
    assert_int_equal(moec_output_write(&o, "data", "x", 1, NULL), MOEC_OK);
    assert_true(moec_output_discard(&o));
    assert_false(exists("out.partial"));
    /* something that is not ours came in between: left as it is */
    o = begun(false);
    assert_int_equal(mkdir(at("out.partial/foreign"), 0755), 0);
    assert_int_equal(moec_output_write(&o, "data", "x", 1, NULL), MOEC_OK);
    assert_false(moec_output_discard(&o));
    assert_true(exists("out.partial/foreign"));
    assert_true(exists("out.partial/data"));
    assert_int_equal(rmdir(at("out.partial/foreign")), 0);
}

/* --------------------------------------------------------------- refusals */

static void refuses_paths_that_name_no_new_directory(void **state)
{
    char path[800];

    (void)state;
    check_refused("", false, MOEC_E_ARG, "does not name a new directory");
    check_refused("///", false, MOEC_E_ARG, "does not name a new directory");
    check_refused(".", false, MOEC_E_ARG, "does not name a new directory");
    check_refused("a/..", false, MOEC_E_ARG, "does not name a new directory");
    check_refused(at("none/out"), false, MOEC_E_ARG,
                  "its parent directory does not exist");
    put("file", "text");
    check_refused(at("file/out"), false, MOEC_E_ARG,
                  "its parent directory does not exist");
    snprintf(path, sizeof(path), "%s/", at("file"));
    check_refused(path, true, MOEC_E_ARG, "is a file");
    assert_int_equal(symlink(root, at("link")), 0);
    check_refused(at("link"), true, MOEC_E_ARG, "is a symbolic link");
    snprintf(path, sizeof(path), "%s/%0250d", root, 1);
    check_refused(path, false, MOEC_E_ARG, "is too long a name");
    check_text("file", "text");
}

static void refuses_to_replace_without_force(void **state)
{
    (void)state;
    make_old();
    check_refused(at("out"), false, MOEC_E_ARG,
                  "exists: remove it or give --force");
    assert_false(exists("out.partial"));
}

static void replaces_only_checkpoints_of_ours(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("out"), 0700), 0);
    check_refused(at("out"), true, MOEC_E_ARG, "is no converted checkpoint");
    put("out/manifest.json", "{\"manifest_version\": 3}");
    check_refused(at("out"), true, MOEC_E_ARG, "is no converted checkpoint");
    put("out/manifest.json", old_manifest);
    assert_int_equal(mkdir(at("out/notes"), 0700), 0);
    check_refused(at("out"), true, MOEC_E_ARG, "holds 'notes'");
    check_text("out/manifest.json", old_manifest);
    assert_false(exists("out.partial"));
}

static void leaves_alone_what_is_not_ours(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("out.partial"), 0700), 0);
    put("out.partial/thesis", "text");
    check_refused(at("out"), true, MOEC_E_ARG,
                  "out.partial is not left over from a conversion");
    put("out.partial/.moec-partial", "");
    assert_int_equal(mkdir(at("out.partial/photos"), 0700), 0);
    check_refused(at("out"), true, MOEC_E_ARG, "holds 'photos'");
    check_text("out.partial/thesis", "text");
}

static void never_follows_a_link(void **state)
{
    (void)state;
    assert_int_equal(mkdir(at("else"), 0700), 0);
    put("else/.moec-partial", "");
    put("else/thesis", "text");
    assert_int_equal(symlink("else", at("out.partial")), 0);
    check_refused(at("out"), true, MOEC_E_ARG, "is not a directory");
    assert_int_equal(unlink(at("out.partial")), 0);
    put("out.partial", "");
    check_refused(at("out"), true, MOEC_E_ARG, "is not a directory");
    assert_int_equal(unlink(at("out.partial")), 0);
    /* A marker that is a link is none. */
    assert_int_equal(mkdir(at("out.partial"), 0700), 0);
    assert_int_equal(symlink("../else/thesis", at("out.partial/.moec-partial")),
                     0);
    check_refused(at("out"), true, MOEC_E_ARG, "holds '.moec-partial'");
    check_text("else/thesis", "text");
}

/* ------------------------------------------------------------ two writers */

static void lets_one_writer_in(void **state)
{
    int ready[2], done[2], status;
    char byte;
    pid_t child;

    (void)state;
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    assert_int_equal(pipe2(done, O_CLOEXEC), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        moec_output o = begun(false);

        write_new(&o);
        if (write(ready[1], "r", 1) != 1 || read(done[0], &byte, 1) != 1)
            _exit(1);
        _exit(moec_output_commit(&o, NULL) == MOEC_OK ? 0 : 2);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    check_refused(at("out"), false, MOEC_E_LOCKED,
                  "out.partial: another process is writing it");
    check_refused(at("out"), true, MOEC_E_LOCKED, "another process");
    assert_true(exists("out.partial/data"));
    assert_int_equal(write(done[1], "d", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    check_new();
    check_refused(at("out"), false, MOEC_E_ARG, "exists");
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(done[i]);
    }
}

/* Many at once, each trying until it has committed with force: whatever the
 * order, OUT is complete and nothing else is left. */
static void many_writers_take_turns(void **state)
{
    enum { WRITERS = 4, ROUNDS = 8 };
    pid_t children[WRITERS];

    (void)state;
    for (int i = 0; i < WRITERS; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] != 0)
            continue;
        for (int done = 0, tries = 0; done < ROUNDS; tries++) {
            moec_output o = MOEC_OUTPUT_INIT;
            moec_error err = MOEC_ERROR_INIT;
            moec_status st = moec_output_begin(&o, at("out"), true, &err);

            if (st == MOEC_OK) {
                write_new(&o);
                st = moec_output_commit(&o, &err);
                done++;
            }
            if ((st != MOEC_OK && st != MOEC_E_LOCKED) || tries > 60000) {
                fprintf(stderr, "writer: %s\n", err.text);
                _exit(1);
            }
            if (st == MOEC_E_LOCKED) /* a slow fsync of another's */
                usleep(1000);
        }
        _exit(0);
    }
    for (int i = 0; i < WRITERS; i++) {
        int status;

        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    check_new();
    assert_false(exists("out.partial"));
}

static void notices_that_its_directory_was_moved(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_output o = begun(false);

    (void)state;
    write_new(&o);
    assert_int_equal(rename(at("out.partial"), at("elsewhere")), 0);
    assert_int_equal(moec_output_commit(&o, &err), MOEC_E_IO);
    assert_non_null(strstr(err.text, "was moved or removed"));
    assert_false(exists("out"));
}

/* ------------------------------------------------------ crashes, failures */

/* One conversion from begin to commit, in a process that dies before its n-th
 * change. True where it lived to the end. */
static bool run_until(int n, bool force)
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        moec_output o = MOEC_OUTPUT_INIT;

        calls = 0;
        die_at = n;
        if (moec_output_begin(&o, at("out"), force, NULL) != MOEC_OK)
            _exit(1);
        write_new(&o);
        _exit(moec_output_commit(&o, NULL) == MOEC_OK ? 0 : 2);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
        assert_int_equal(WTERMSIG(status), SIGKILL);
        return false;
    }
    assert_int_equal(status, 0);
    return true;
}

static void killed_anywhere_leaves_all_or_nothing(void **state)
{
    int n;

    (void)state;
    for (n = 1; !run_until(n, false); n++) {
        if (exists("out"))
            check_new();
        else /* and what is left is known as ours */
            assert_true(run_until(0, false));
        check_new();
        assert_int_equal(remove_root(NULL), 0);
        assert_int_equal(mkdir(root, 0700), 0);
    }
    check_new();
    assert_true(n > 8);
}

static void killed_while_replacing_leaves_the_old_or_the_new(void **state)
{
    int n, was_old = 0, was_new = 0;

    (void)state;
    for (n = 1;; n++) {
        bool lived;

        make_old();
        lived = run_until(n, true);
        if (exists("out/old") && !exists("out/data")) {
            check_text("out/manifest.json", old_manifest);
            check_text("out/old", "old");
            was_old++;
        } else {
            check_new();
            was_new++;
        }
        assert_true(run_until(0, true)); /* what is left is in nobody's way */
        check_new();
        assert_false(exists("out.partial"));
        assert_int_equal(remove_root(NULL), 0);
        assert_int_equal(mkdir(root, 0700), 0);
        if (lived)
            break;
    }
    assert_true(was_old > 8); /* until the rename */
    assert_true(was_new > 3); /* and after it */
}

static void force_replaces_what_stands_there(void **state)
{
    int fds = count_fds();
    moec_output o;

    (void)state;
    make_old();
    o = begun(true);
    write_new(&o);
    check_text("out/old", "old");
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
    assert_false(exists("out.partial"));
    assert_int_equal(count_fds(), fds);
}

static void force_is_fine_where_nothing_stands(void **state)
{
    moec_output o = begun(true);

    (void)state;
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
}

static void does_without_the_flags_of_rename(void **state)
{
    moec_output o;

    (void)state;
    without_flags = true;
    o = begun(false);
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
    put("out/old", "old");
    o = begun(true);
    write_new(&o);
    assert_int_equal(moec_output_commit(&o, NULL), MOEC_OK);
    check_new();
    assert_false(exists("out.partial"));
    assert_false(exists("out.replaced"));
}

/* OUT appears between the last look and the rename: with and without flags. */
static void never_overwrites_what_has_appeared(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_output o = begun(false);

        write_new(&o);
        appears = true;
        without_flags = i == 1;
        assert_int_equal(moec_output_commit(&o, &err), MOEC_E_ARG);
        assert_non_null(strstr(err.text, "has appeared meanwhile"));
        assert_true(exists("out/theirs"));
        check_text("out.partial/data", "data");
        assert_true(exists("out.partial/.moec-partial"));
        assert_int_equal(rmdir(at("out/theirs")), 0);
        assert_int_equal(rmdir(at("out")), 0);
    }
}

/* The last fsync of a commit is that of the parent; each one before it fails
 * the commit and leaves things as they were. */
static void tells_which_fsync_failed(void **state)
{
    int n;

    (void)state;
    for (n = 0;; n++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_output o;
        moec_status st;

        make_old();
        o = begun(true);
        write_new(&o);
        fsyncs_left = n;
        st = moec_output_commit(&o, &err);
        assert_int_equal(fsyncs_left, -1);
        assert_int_equal(err.os_errno, EIO);
        if (st == MOEC_E_DURABILITY)
            break;
        assert_int_equal(st, MOEC_E_IO);
        check_text("out/manifest.json", old_manifest);
        check_text("out/old", "old");
        check_text("out.partial/data", "data");
        assert_true(exists("out.partial/.moec-partial"));
        assert_int_equal(remove_root(NULL), 0);
        assert_int_equal(mkdir(root, 0700), 0);
    }
    /* Three files, the marker, the directory; then the parent. */
    assert_int_equal(n, 5);
    check_new();
    check_text("out.partial/old", "old"); /* not deleted: it may come back */
}

static void a_failed_write_leaves_no_file(void **state)
{
    moec_output o = begun(false);

    (void)state;
    fsyncs_left = 0;
    assert_int_equal(moec_output_write(&o, "data", "x", 1, NULL), MOEC_E_IO);
    assert_false(exists("out.partial/data"));
    moec_output_abandon(&o);
}

static void reports_every_failed_allocation(void **state)
{
    uint64_t k;
    int fds = count_fds();

    (void)state;
    for (k = 1; k < 100; k++) {
        moec_output o = MOEC_OUTPUT_INIT;
        moec_status st;

        moec_alloc_fail_at(k);
        st = moec_output_begin(&o, at("out"), false, NULL);
        if (moec_alloc_fail_at(0) < k) {
            assert_int_equal(st, MOEC_OK);
            moec_output_discard(&o);
            break;
        }
        assert_int_equal(st, MOEC_E_NOMEM);
        assert_int_equal(count_fds(), fds);
        assert_false(exists("out.partial"));
    }
    assert_in_range(k, 4, 99);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(appears_only_when_complete),
        TEST(gives_the_mode_that_umask_leaves),
        TEST(takes_trailing_slashes_and_relative_paths),
        TEST(makes_no_file_twice_or_elsewhere),
        TEST(takes_over_what_was_abandoned),
        TEST(knows_its_own_without_a_marker),
        TEST(discards_what_was_made_and_nothing_else),
        TEST(refuses_paths_that_name_no_new_directory),
        TEST(refuses_to_replace_without_force),
        TEST(replaces_only_checkpoints_of_ours),
        TEST(leaves_alone_what_is_not_ours),
        TEST(never_follows_a_link),
        TEST(lets_one_writer_in),
        TEST(many_writers_take_turns),
        TEST(notices_that_its_directory_was_moved),
        TEST(killed_anywhere_leaves_all_or_nothing),
        TEST(killed_while_replacing_leaves_the_old_or_the_new),
        TEST(force_replaces_what_stands_there),
        TEST(force_is_fine_where_nothing_stands),
        TEST(does_without_the_flags_of_rename),
        TEST(never_overwrites_what_has_appeared),
        TEST(tells_which_fsync_failed),
        TEST(a_failed_write_leaves_no_file),
        TEST(reports_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
