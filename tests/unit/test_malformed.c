/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The corpus of fixtures/malformed: each file of verdicts.tsv, opened as a
 * checkpoint, must be accepted or refused by the rule that stands there. The
 * files are made by gen.py when the test runs, or lie in the directory that
 * the argument or MOEC_MALFORMED_DIR names. Without python3: skipped.
 */

#include <moec/loader.h>

#include "support/tmpdir.h"

#include <spawn.h>
#include <stdbool.h>
#include <sys/wait.h>

extern char **environ;

static const char *corpus;

/* Run gen.py; false where there is no python3. */
static bool generate(const char *dir)
{
    char python[] = "python3";
    char script[] = MOEC_TEST_FIXTURES "/malformed/gen.py";
    char out[512];
    char *argv[] = {python, script, out, NULL};
    pid_t pid;
    int status = 0;

    (void)snprintf(out, sizeof(out), "%s", dir);
    if (posix_spawnp(&pid, python, NULL, NULL, argv, environ) != 0)
        return false;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return false;
    return WEXITSTATUS(status) == 0;
}

/* Open one case; fail the test where the verdict is another. */
static void check_case(const char *name, const char *want, const char *rule)
{
    char path[1024];
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *c = NULL;
    moec_status st;
    const moec_rule_info *info;

    (void)snprintf(path, sizeof(path), "%s/%s.safetensors", corpus, name);
    st = moec_ckpt_open(&c, path, NULL, &err);
    if (strcmp(want, "accept") == 0) {
        if (st != MOEC_OK)
            fail_msg("%s is refused: %s", name, err.text);
        moec_ckpt_close(c);
        return;
    }
    if (st != MOEC_E_FORMAT)
        fail_msg("%s: %s", name, moec_status_name(st));
    assert_null(c);
    info = moec_rule_describe(err.rule);
    assert_non_null(info);
    /* Our covers-file-truncated is a case of covers-file. */
    if (strcmp(info->name, rule) != 0 &&
        !(err.rule == MOEC_RULE_H17 && strcmp(rule, "covers-file") == 0))
        fail_msg("%s: want %s, got '%s'", name, rule, err.text);
    if (strstr(err.text, rule) == NULL || strstr(err.text, name) == NULL ||
        (strstr(err.text, "tensor '") == NULL &&
         strstr(err.text, "byte") == NULL))
        fail_msg("%s: '%s' lacks rule, file, or tensor or byte", name,
                 err.text);
}

static void gives_every_verdict_of_the_table(void **state)
{
    FILE *f = fopen(MOEC_TEST_FIXTURES "/malformed/verdicts.tsv", "r");
    char line[512];
    size_t n = 0;

    (void)state;
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof(line), f));
    while (fgets(line, sizeof(line), f) != NULL) {
        char *save = NULL;
        const char *name = strtok_r(line, "\t", &save);
        const char *want = strtok_r(NULL, "\t", &save);
        const char *reference = strtok_r(NULL, "\t", &save);
        const char *rule = strtok_r(NULL, "\t", &save);
        assert_non_null(reference);
        assert_non_null(rule);
        check_case(name, want, rule);
        n++;
    }
    (void)fclose(f);
    assert_int_equal(n, 78);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_every_verdict_of_the_table),
    };
    char made[] = P_tmpdir "/moec-malformed-XXXXXX";
    int failed;

    corpus = argc > 1 ? argv[1] : getenv("MOEC_MALFORMED_DIR");
    if (corpus != NULL && corpus[0] != '\0')
        return cmocka_run_group_tests_name("malformed", tests, NULL, NULL);
    corpus = mkdtemp(made);
    if (corpus == NULL)
        return 1;
    failed = generate(corpus)
                 ? cmocka_run_group_tests_name("malformed", tests, NULL, NULL)
                 : 77;
    (void)nftw(corpus, tmpdir_unlink_, 16, FTW_DEPTH | FTW_PHYS);
    return failed;
}
