/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_JOURNAL_H
#define MOEC_JOURNAL_H

/*
 * What this is: the file in OUT.partial that says what of the work is done, so
 *   that the same command goes on where an interrupted one stopped. Work is
 *   counted in cells (pieces of content of at most 1 MiB, numbered by the plan
 *   alone): a record names cells whose bytes are all written, and carries what
 *   was learned of each, its digests. Threads, memory and ranges of work may
 *   differ from run to run; what decides bytes may not, and is compared.
 * Lifetime: create, load, (forget), begin, then add, mark, flush from workers,
 *   destroy. The strings and cells of the options are borrowed until then.
 * Threads: add from any; all else with no add under way.
 * Errors: ARG (it belongs to another conversion), IO, NOMEM.
 *
 * What a record proves. Its cells' bytes were handed to the kernel. That
 * survives the death of the process, not that of the machine: after a reboot
 * only what a mark covers counts, because a mark is written after an fsync of
 * all that the records before it name. A failed fsync may have dropped bytes of
 * any earlier write: then a doubt is written, and nothing but marks counts.
 *
 * The file, little endian:
 *   1. 48 bytes: magic "MOECJNL\1", u32 version 1, u32 cell_bytes,
 *      u64 n_cells, 16 boot id (zeros: not known), u64 text_bytes; then the
 *      text, and the XXH3-128 of all before it
 *   2. records: u32 kind, u32 n, u64 first, n x cell_bytes of payload, the
 *      XXH3-128 of all that
 *        kind 1  cells: cells [first, first + n) are written; n is 1 to 1024
 *        kind 2  mark: records that end before byte `first` are durable; n 0
 *        kind 3  doubt: see above; first and n 0
 * The text is the identity: one line for each thing that decides bytes. The
 * first record that is cut short, or whose digest or fields are wrong, ends the
 * journal: what stands behind it is done again. A journal with a broken header
 * is none. Each begin writes a new file with what counts, and renames it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

#define MOEC_JOURNAL_NAME           ".moec-journal"
#define MOEC_JOURNAL_NAME_BYTES_MAX 40u

typedef struct moec_journal moec_journal;

typedef struct moec_journal_opts {
    int dirfd;            /* of OUT.partial; stays the caller's */
    const char *name;     /* of the file; NULL: MOEC_JOURNAL_NAME */
    const char *where;    /* OUT.partial, for messages */
    const char *identity; /* lines of text; see above */
    size_t identity_bytes;
    void *cells; /* n_cells x cell_bytes: filled by load, read by add */
    size_t cell_bytes, n_cells;
} moec_journal_opts;

/* Make everything durable that was written before the call. */
typedef moec_status (*moec_journal_sync_fn)(void *ctx, moec_error *err);

/* Make the object; touches no file. */
moec_status moec_journal_create(moec_journal **out,
                                const moec_journal_opts *opts, moec_error *err);

/* Read the journal of an earlier run, if there is one that can be read:
 * *found_out. ARG where its identity is another; the text says in what. Writes
 * nothing. */
moec_status moec_journal_load(moec_journal *j, bool *found_out,
                              moec_error *err);

/* The identity of the journal that stands under the options' name, appended to
 * `out`; *found_out: there is one that can be read. */
moec_status moec_journal_identity(moec_journal *j, moec_buf *out,
                                  bool *found_out, moec_error *err);

/* Forget what load found: everything is to be done. */
void moec_journal_forget(moec_journal *j);

/* Write the journal anew, with what load found, and keep it open. Without a
 * sync there are no marks, and its bytes are durable at once. */
moec_status moec_journal_begin(moec_journal *j, moec_journal_sync_fn sync,
                               void *sync_ctx, moec_error *err);

/* True where all of [first, first + n) was found done. Cells that this run
 * added do not count. */
bool moec_journal_has(const moec_journal *j, uint64_t first, uint64_t n);

/* Note that the bytes of cells [first, first + n) are written. Buffered for a
 * moment; makes a mark now and then, which takes as long as its fsyncs. */
moec_status moec_journal_add(moec_journal *j, uint64_t first, uint64_t n,
                             moec_error *err);

/* Write out what is buffered: it survives the process. */
moec_status moec_journal_flush(moec_journal *j, moec_error *err);

/* Flush, sync, and say so: it survives the machine. After a failed sync the
 * doubt is noted. */
moec_status moec_journal_mark(moec_journal *j, moec_error *err);

/* An fsync of the data failed elsewhere: note the doubt. */
void moec_journal_doubt(moec_journal *j);

/* Close the file and leave it there. NULL is fine. */
void moec_journal_destroy(moec_journal *j);

#endif
