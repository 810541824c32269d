/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_REPORT_H
#define MOEC_REPORT_H

/*
 * What this is: how the provers write what they found. The readers' side is
 *   public (moec/validate.h).
 * Lifetime: a report owns copies of every text given to it.
 * Threads: add, ran and note are safe from any thread; finish is called once,
 *   after the last of them, and makes the report readable.
 * Errors: adding never fails: memory that runs out is remembered and told by
 *   finish.
 */

#include <stdbool.h>

#include <moec/validate.h>

#include "base/base.h"

/* Findings kept; the rest are counted in one note behind them. Which are kept
 * depends on the sorting alone, never on the order of arrival. */
#define MOEC_FINDINGS_MAX 10000u

moec_status moec_report_create(moec_report **out, moec_error *err);

/* Add a finding: the fields of `like` that its `has` names, and the message.
 * Its rule being a theorem counts against that theorem. */
void moec_report_add(moec_report *r, const moec_finding *like, const char *fmt,
                     ...) MOEC_PRINTF(3, 4);

/* Add a failure of the library as a finding about `file` (or NULL). `rule` is
 * for errors without one. */
void moec_report_add_error(moec_report *r, const char *file, moec_rule rule,
                           const moec_error *e);

/* Does a failure to open or read a file say something about the file? One
 * that is missing, short or none does; a disk that does not answer, or a lack
 * of memory or descriptors, says nothing: that is an error and no finding. */
bool moec_report_is_damage(const moec_error *e);

/* Say that theorem `rule` (MOEC_RULE_T1..T6) ran over `checked` more things. */
void moec_report_ran(moec_report *r, moec_rule rule, uint64_t checked);

/* True where a finding of theorem `rule` was added so far. */
bool moec_report_broken(const moec_report *r, moec_rule rule);

/* Say what the theorem did not prove; of several texts the first stays. */
void moec_report_note(moec_report *r, moec_rule rule, const char *fmt, ...)
    MOEC_PRINTF(3, 4);

/* Sort, cut to MOEC_FINDINGS_MAX and settle the theorems. On failure the
 * report is the caller's to destroy as before. */
moec_status moec_report_finish(moec_report *r, moec_error *err);

#endif
