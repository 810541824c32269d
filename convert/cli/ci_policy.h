/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CI_POLICY_H
#define MOEC_CI_POLICY_H

/*
 * What this is: the two files that a team keeps beside its CI: a policy
 *   (moec.policy/1, convert/cli/policy-1.schema.json) and a baseline, which is
 *   an earlier report of check --json.
 * Lifetime: zero-initialise, read once, fini once; strings are the object's.
 * Threads: immutable once read: share freely.
 * Errors: FORMAT (L01, L02), IO, NOMEM.
 */

#include "cli.h"

/* Severities as a policy spells them; 0: it does not say. */
enum { MOEC_CI_OFF = 1, MOEC_CI_NOTE, MOEC_CI_WARNING, MOEC_CI_ERROR };

/* An engine's job that must be able to load what is checked. */
typedef struct moec_ci_target {
    const char *name;
    uint32_t ep, redundant;
    uint32_t shared; /* MOEC_CHOICE_PER_RANK..; 0: as the model allows */
    uint32_t w13;    /* MOEC_CHOICE_GATE_UP..; 0: any */
} moec_ci_target;

typedef struct moec_ci_policy {
    void *doc;                         /* the JSON that strings point into */
    uint8_t severity[MOEC_RULE_COUNT]; /* MOEC_CI_* */
    uint64_t max_rank_bytes;           /* 0: no limit */
    double max_imbalance;              /* 0: no limit */
    bool limits_skipped;
    const char **skip; /* glob patterns of tensors that may be left out */
    size_t n_skip;
    moec_ci_target *targets;
    size_t n_targets;
} moec_ci_policy;

moec_status moec_ci_policy_read(moec_ci_policy *out, const char *path,
                                moec_error *err);
void moec_ci_policy_fini(moec_ci_policy *p);

#define MOEC_CI_FINGERPRINT_BYTES 33 /* 32 hex digits and a NUL */

/* Fingerprints that are known, sorted; the same one may be there often. */
typedef struct moec_ci_baseline {
    char (*prints)[MOEC_CI_FINGERPRINT_BYTES];
    bool *used;
    size_t n;
} moec_ci_baseline;

moec_status moec_ci_baseline_read(moec_ci_baseline *out, const char *path,
                                  moec_error *err);
/* Is this one known, and not yet taken as often as it is known? Takes it. */
bool moec_ci_baseline_take(moec_ci_baseline *b, const char *print);
void moec_ci_baseline_fini(moec_ci_baseline *b);

#endif
