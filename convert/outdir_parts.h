/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_OUTDIR_PARTS_H
#define MOEC_OUTDIR_PARTS_H

/*
 * What this is: the inside of a moec_output, shared by outdir.c (the order of
 *   steps), outdir_entries.c (what stands in the directories) and
 *   outdir_publish.c (the rename), and by nobody else.
 * Errors: as outdir.h says; texts begin with the path.
 */

#include "outdir.h"

/* Says of OUT.partial what its marker says. */
#define MOEC_OUTPUT_ATTRIBUTE "user.moec.partial"

/* Between two looks at a lock. */
enum { MOEC_OUTPUT_WAIT_NS = 10000000 };

/* ------------------------------------------------------ outdir_entries.c */

/* ARG: "OUT`which` `why`". */
moec_status moec_output_refuse(const moec_output *o, moec_error *err,
                               const char *which, const char *why);
/* "OUT.partial: cannot `what`: ", by errno. */
moec_status moec_output_failed(const moec_output *o, moec_error *err,
                               const char *what);
/* The same of a file in it, or in the OUT that `dirfd` is. */
moec_status moec_output_entry_failed(const moec_output *o, int dirfd,
                                     const char *name, const char *what,
                                     moec_error *err);
bool moec_output_is_dots(const char *name);

/* ARG unless all entries are regular files. */
moec_status moec_output_check_entries(const moec_output *o, int dirfd,
                                      size_t *n_out, moec_error *err);
/* Delete what check_entries has passed, the marker apart, the manifest last:
 * until the end, what is left is known as ours. */
moec_status moec_output_delete_files(const moec_output *o, int dirfd,
                                     moec_error *err);
/* Delete journals and locks: all of OUT.partial that OUT does not have, but
 * the marker. */
moec_status moec_output_delete_own(const moec_output *o, moec_error *err);
/* fsync all files that OUT will have. */
moec_status moec_output_sync_entries(const moec_output *o, moec_error *err);

/* Is there a regular file of that name in OUT.partial? A disk that does not
 * answer is no "no": on that we would delete the work of others. */
moec_status moec_output_has_file(const moec_output *o, const char *name,
                                 bool *yes, moec_error *err);
/* Is there a manifest.json of ours? */
moec_status moec_output_has_manifest(const moec_output *o, int dirfd,
                                     bool *ours, moec_error *err);

/* -------------------------------------------------------------- outdir.c */

moec_status moec_output_put_marker(const moec_output *o, moec_error *err);

/* ------------------------------------------------------ outdir_publish.c */

/* May OUT be made, or be replaced? *old_out is the directory that is to be
 * replaced, the caller's to close, or -1. */
moec_status moec_output_check_target(const moec_output *o, int *old_out,
                                     moec_error *err);
/* Remove what OUT does not have, and rename. `old` is the OUT to replace, or
 * -1; *name_out is what it is called then. */
moec_status moec_output_publish(const moec_output *o, int old,
                                const char **name_out, moec_error *err);
/* OUT is complete: delete what it was. */
moec_status moec_output_delete_old(const moec_output *o, int old,
                                   const char *name, moec_error *err);
/* DURABILITY, by errno: OUT is complete, the parent could not be synced. */
moec_status moec_output_unsynced(const moec_output *o, const char *old_name,
                                 moec_error *err);

#endif
