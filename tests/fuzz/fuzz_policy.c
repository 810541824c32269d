/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: the policy of a CI run, and its baseline (an earlier report).
 */

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "ci_policy.h"
#include "fuzz_dir.h"
#include "json_mutator.h"
#include "progress.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* What print.c asks of the program. */
volatile sig_atomic_t moec_cli_signal;

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

static void check_policy(const char *path)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_ci_policy p;
    moec_status st;

    memset(&p, 0, sizeof(p));
    st = moec_ci_policy_read(&p, path, &err);
    if (st != MOEC_OK) {
        MUST(err.status == st && err.text[0] != '\0');
        return;
    }
    for (size_t i = 0; i < MOEC_RULE_COUNT; i++)
        MUST(p.severity[i] <= MOEC_CI_ERROR);
    MUST(isfinite(p.max_imbalance));
    for (size_t i = 0; i < p.n_skip; i++)
        MUST(p.skip[i] != NULL);
    for (size_t i = 0; i < p.n_targets; i++)
        MUST(p.targets[i].ep > 0);
    moec_ci_policy_fini(&p);
}

static void check_baseline(const char *path)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_ci_baseline b;
    moec_status st;

    memset(&b, 0, sizeof(b));
    st = moec_ci_baseline_read(&b, path, &err);
    if (st != MOEC_OK) {
        MUST(err.status == st && err.text[0] != '\0');
        return;
    }
    for (size_t i = 0; i < b.n; i++) {
        MUST(i == 0 || strcmp(b.prints[i - 1], b.prints[i]) <= 0);
        MUST(strlen(b.prints[i]) == MOEC_CI_FINGERPRINT_BYTES - 1);
    }
    for (size_t i = 0; i < b.n; i++)
        MUST(moec_ci_baseline_take(&b, b.prints[i]));
    MUST(b.n == 0 || !moec_ci_baseline_take(&b, b.prints[0]));
    moec_ci_baseline_fini(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const char *path = fuzz_file(data, n);

    check_policy(path);
    check_baseline(path);
    return 0;
}
