/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ERROR_H
#define MOEC_ERROR_H

/*
 * What this is: how every fallible function of libmoec reports failure.
 * Lifetime: moec_error is the caller's, may be NULL, and is zeroed by
 *   MOEC_ERROR_INIT. The library never keeps a pointer to it.
 * Threads: no global and no thread-local state; one error, one thread.
 * Errors: the function that detects a failure writes the text; callers add
 *   only the file or tensor in front. The first error written stays.
 */

#include <stdint.h>

#include <moec/version.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Values are pinned: never renumbered, never reused. */
typedef enum moec_status {
    MOEC_OK = 0,
    MOEC_E_ARG = -1,         /* caller's argument or option */
    MOEC_E_NOMEM = -2,       /* memory, or a stated memory cap */
    MOEC_E_IO = -3,          /* the operating system refused; os_errno says */
    MOEC_E_FORMAT = -4,      /* a file or config breaks its format */
    MOEC_E_MAPPING = -5,     /* experts, slots and ranks do not fit */
    MOEC_E_MIXED = -6,       /* experts of different format in one layer */
    MOEC_E_INTEGRITY = -7,   /* bytes do not have the digest they must have */
    MOEC_E_UNSUPPORTED = -8, /* legal, but not something we can do */
    MOEC_E_NO_DEVICE = -9,   /* no usable accelerator */
    MOEC_E_LOCKED = -10,     /* another process works on the same output */
    MOEC_E_CANCELLED = -11,  /* the caller asked to stop */
    MOEC_E_DURABILITY = -12, /* done, but the last fsync failed */
    MOEC_E_INTERNAL = -13    /* a bug in libmoec */
} moec_status;

/*
 * Rules that input can break. The id ("MOE-H07") and the short name
 * ("duplicate-key") are stable; texts are not. 0 means "no rule".
 * The list is in rules.def beside this header.
 */
typedef enum moec_rule {
    MOEC_RULE_NONE = 0,
#define MOEC_RULE(id, name, what, why, mend) MOEC_RULE_##id,
#include <moec/rules.def>
#undef MOEC_RULE
    MOEC_RULE_COUNT
} moec_rule;

typedef struct moec_rule_info {
    const char *id;   /* "MOE-H07" */
    const char *name; /* "duplicate-key" */
    const char *what; /* what is checked, one sentence */
    const char *why;  /* what goes wrong without it */
    const char *mend; /* what the user can do */
} moec_rule_info;

/* Return the description of `rule`, or NULL for MOEC_RULE_NONE and numbers
 * that are no rule. Static storage. */
MOEC_API const moec_rule_info *moec_rule_describe(moec_rule rule);

/* Return the rule with this id or short name ("MOE-H07", "moe-h07",
 * "duplicate-key"), the first where a name occurs in two groups; or
 * MOEC_RULE_NONE. */
MOEC_API moec_rule moec_rule_find(const char *id_or_name);

/* Return the status as a word ("FORMAT"). Static storage, never NULL. */
MOEC_API const char *moec_status_name(moec_status status);

#define MOEC_ERROR_TEXT_BYTES 640
#define MOEC_NO_OFFSET        UINT64_MAX

typedef struct moec_error {
    moec_status status;
    int os_errno;   /* 0 unless status is IO, LOCKED or DURABILITY */
    moec_rule rule; /* MOEC_RULE_NONE where no rule of input is broken */
    uint32_t reserved0;
    uint64_t file_off; /* byte in the file that `text` names; valid where
                          `has_off` is not 0 */
    uint32_t has_off;
    uint32_t reserved[5];
    /* One sentence, UTF-8, NUL-terminated, control characters escaped:
     * "[MOE-H07 duplicate-key] FILE: tensor 'x': ...". */
    char text[MOEC_ERROR_TEXT_BYTES];
} moec_error;

/* clang-format off */
#ifdef __cplusplus
#  define MOEC_ERROR_INIT {}
#else
#  define MOEC_ERROR_INIT {0}
#endif
/* clang-format on */

#ifdef __cplusplus
}
#endif
#endif
