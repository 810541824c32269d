/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: the journal of an unfinished output. The first byte of the
 * input says whether the file is taken as it is, or whether its checksums and
 * its boot id are made right first: no mutation finds those. What is found
 * must be written anew and found again, cell for cell.
 */

#include <stdlib.h>
#include <string.h>

#include <journal.h>

#include "fuzz_dir.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

enum { N_CELLS = 2000, CELL_BYTES = 48, HEAD = 48, MAX = 1 << 20 };
static const char identity[] = "source a 1\noption b\n";

/* This boot, as journal.c writes it. */
static void put_boot(uint8_t out[16])
{
    char text[37] = {0}, hex[33] = {0};
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    size_t k = 0, got = f ? fread(text, 1, 36, f) : 0;

    for (size_t i = 0; i < got && k < 32; i++)
        if (text[i] != '-')
            hex[k++] = text[i];
    if (f)
        (void)fclose(f);
    if (k == 32)
        (void)moec_unhex(hex, out, 16);
}

static void sum(uint8_t *data, size_t n)
{
    moec_xxh128 x = moec_xxh128_of(data, n);

    memcpy(data + n, x.b, sizeof(x.b));
}

/* Checksums of header and records, as far as the file makes sense. */
static void mend(uint8_t *p, size_t n)
{
    uint64_t text, at;

    if (n < HEAD + 16)
        return;
    put_boot(p + 24);
    text = moec_le64(p + 40);
    if (text > n - HEAD - 16)
        return;
    sum(p, HEAD + text);
    for (at = HEAD + text + 16; n - at >= 32;) {
        uint64_t cells = moec_le32(p + at + 4);
        uint64_t bytes = moec_le32(p + at) == 1 ? cells * CELL_BYTES : 0;
        if (bytes > n - at - 32)
            return;
        sum(p + at, 16 + bytes);
        at += 32 + bytes;
    }
}

static moec_journal *make(uint8_t *cells)
{
    moec_journal_opts o = {.dirfd = fuzz_dir(),
                           .name = "f",
                           .where = "fuzz",
                           .identity = identity,
                           .identity_bytes = sizeof(identity) - 1,
                           .cells = cells,
                           .cell_bytes = CELL_BYTES,
                           .n_cells = N_CELLS};
    moec_journal *j = NULL;

    MUST(moec_journal_create(&j, &o, NULL) == MOEC_OK);
    return j;
}

static void again(moec_journal *j, const uint8_t *cells)
{
    static uint8_t then[N_CELLS * CELL_BYTES];
    moec_error err = MOEC_ERROR_INIT;
    moec_journal *k;
    bool found = false;

    MUST(moec_journal_begin(j, NULL, NULL, &err) == MOEC_OK);
    MUST(moec_journal_flush(j, &err) == MOEC_OK);
    k = make(then);
    MUST(moec_journal_load(k, &found, &err) == MOEC_OK && found);
    for (uint64_t i = 0; i < N_CELLS; i++) {
        MUST(moec_journal_has(k, i, 1) == moec_journal_has(j, i, 1));
        if (moec_journal_has(j, i, 1))
            MUST(memcmp(then + i * CELL_BYTES, cells + i * CELL_BYTES,
                        CELL_BYTES) == 0);
    }
    moec_journal_destroy(k);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static uint8_t file[MAX], cells[N_CELLS * CELL_BYTES];
    moec_error err = MOEC_ERROR_INIT;
    moec_buf said = {0};
    moec_journal *j;
    bool found = false;
    moec_status st;

    if (n < 1 || n - 1 > MAX)
        return 0;
    memcpy(file, data + 1, n - 1);
    if (data[0] & 1)
        mend(file, n - 1);
    (void)fuzz_file(file, n - 1);
    j = make(cells);
    MUST(moec_journal_identity(j, &said, &found, &err) == MOEC_OK);
    st = moec_journal_load(j, &found, &err);
    MUST(st == MOEC_OK || (st == MOEC_E_ARG && err.text[0] != '\0'));
    MUST(!moec_journal_has(j, 0, N_CELLS + 1));
    if (st == MOEC_OK && found && (data[0] & 2))
        again(j, cells);
    moec_buf_fini(&said);
    moec_journal_destroy(j);
    return 0;
}
