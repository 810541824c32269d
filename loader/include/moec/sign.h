/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SIGN_H
#define MOEC_SIGN_H

/*
 * What this is: signatures over a directory as OpenSSF Model Signing v1.0
 *   writes and reads them (the PyPI package model-signing 1.1.1): a Sigstore
 *   bundle v0.3 whose DSSE envelope holds an in-toto statement with the
 *   SHA-256 of every file, signed by an EC key (P-256, P-384, P-521) or by a
 *   certificate for one.
 * Lifetime: a moec_signature owns every pointer it returns.
 * Threads: a moec_signature is immutable after open: share freely.
 * Errors: INTEGRITY: not signed, signed by another key, other bytes, a file
 *   too many or missing (S03, S04, S06, S07, S08); FORMAT: a bundle, key or
 *   statement that breaks its form (S01, S02, S05), or a directory with links
 *   or devices (S09); UNSUPPORTED: a digest that is not SHA-256; IO, NOMEM,
 *   ARG, CANCELLED. Nothing is opened or written on failure.
 *
 * What a signature covers: every regular file of the directory but the
 * signature itself, the paths that it says were ignored, and .git,
 * .gitattributes, .github, .gitignore where they are not signed. In a
 * converted checkpoint it covers manifest.json, slots.bin, sources.bin and
 * every file that manifest.json names, always.
 *
 * Loading a signed conversion does not hash whole files:
 *   1. moec_signature_open         the statement is the key owner's;
 *   2. the bytes of manifest.json  are the signed ones: _check_bytes of the
 *      very bytes that were parsed, or _check_digest of their SHA-256
 *      (moec_conversion_manifest_digest);
 *   3. slots.bin, sources.bin, config.json have the SHA-256 that manifest.json
 *      gives them: moec_conversion_open checks that;
 *   4. each leaf read has its SHA-256 of slots.bin (not XXH3: that finds
 *      damage, not intent), each header its SHA-256 of slots.bin.
 * So every byte that reaches the server is one that the owner of the key
 * signed, whatever happens to the files between two of these steps.
 */

#include <moec/error.h>
#include <moec/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The name of a signature inside the directory that it signs. */
#define MOEC_SIGNATURE_NAME "model.sig"

typedef struct moec_signature moec_signature;

/* Called now and then with bytes done and in all; non-zero cancels. One thread
 * at a time. */
typedef int (*moec_signature_progress_fn)(void *ctx, uint64_t done,
                                          uint64_t total);

/* Whom to believe, and what to look at. Exactly one of `key` and `roots`. */
typedef struct moec_signature_opts {
    uint32_t struct_bytes; /* sizeof(moec_signature_opts) */
    uint32_t n_threads;    /* for digests; 0: one per CPU allowed */
    const char *key;       /* PEM file: the public EC key; or NULL */
    /* PEM files with the certificates to trust; the bundle brings the rest of
     * the chain. Validity is judged at the signing certificate's begin, as
     * model-signing does: a certificate that expired since is accepted. */
    const char *const *roots;
    size_t n_roots;
    const char *signature; /* file; NULL: MOEC_SIGNATURE_NAME in the
                              directory */
    /* More paths, relative to the directory, that need not be signed; each
     * with what lies below it. */
    const char *const *ignore;
    size_t n_ignore;
    uint32_t ignore_unsigned; /* 1: files that are not signed are fine */
    uint32_t reserved;
    moec_signature_progress_fn progress;
    void *progress_ctx;
} moec_signature_opts;
#define MOEC_SIGNATURE_OPTS_INIT                                               \
  {                                                                            \
    .struct_bytes = sizeof(moec_signature_opts)                                \
  }

/* What a check looked at. */
typedef struct moec_signature_stats {
    uint64_t n_files;   /* files hashed */
    uint64_t bytes;     /* in them */
    uint64_t n_ignored; /* regular files that were not; 0 with
                           ignore_unsigned, which looks at no others */
} moec_signature_stats;

/* Read the signature of directory `dir` and check that opts->key or
 * opts->roots made it. Reads no file of the model. INTEGRITY also where there
 * is no signature. On success `*out` is the caller's to close; on failure it
 * is untouched. */
MOEC_API moec_status moec_signature_open(moec_signature **out, const char *dir,
                                         const moec_signature_opts *opts,
                                         moec_error *err);

/* Close; NULL is fine. */
MOEC_API void moec_signature_close(moec_signature *signature);

/* Check that the `n` bytes at `data` are the signed content of file `name`
 * (relative to the directory). INTEGRITY S06 where no such file is signed,
 * S07 where it has other bytes; NOMEM. Safe from any thread. */
MOEC_API moec_status moec_signature_check_bytes(const moec_signature *signature,
                                                const char *name,
                                                const void *data, size_t n,
                                                moec_error *err);

/* The same for a file of `bytes` bytes whose SHA-256 is known. */
MOEC_API moec_status moec_signature_check_digest(
    const moec_signature *signature, const char *name, uint64_t bytes,
    const uint8_t sha256[32], moec_error *err);

/* Check every file of the directory by reading all of it. `stats` may be
 * NULL; it is written on success. */
MOEC_API moec_status moec_signature_check_files(const moec_signature *signature,
                                                const moec_signature_opts *opts,
                                                moec_signature_stats *stats,
                                                moec_error *err);

/* moec_signature_open, _check_files and _close in one. */
MOEC_API moec_status moec_signature_verify(const char *dir,
                                           const moec_signature_opts *opts,
                                           moec_signature_stats *stats,
                                           moec_error *err);

/* What is signed, sorted by path. `i` < n_items. The name is a path relative
 * to the directory, with ":BEGIN:END" behind it where parts of files are
 * signed. */
MOEC_API size_t moec_signature_n_items(const moec_signature *signature);
MOEC_API const char *moec_signature_item(const moec_signature *signature,
                                         size_t i);
/* The paths that the statement says were ignored. */
MOEC_API size_t moec_signature_n_ignored(const moec_signature *signature);
MOEC_API const char *moec_signature_ignored(const moec_signature *signature,
                                            size_t i);
/* "P-256", "P-384" or "P-521"; who signed ("" without certificate): the
 * subject of the signing certificate in RFC 2253's form. Never NULL. */
MOEC_API const char *moec_signature_curve(const moec_signature *signature);
MOEC_API const char *moec_signature_subject(const moec_signature *signature);

typedef struct moec_sign_opts {
    uint32_t struct_bytes; /* sizeof(moec_sign_opts) */
    uint32_t n_threads;    /* for digests; 0: one per CPU allowed */
    const char *key;       /* PEM file: the private EC key, not encrypted */
    /* PEM file with the certificate for that key, and PEM files with more of
     * its chain, or NULL and 0: the public key alone is named. */
    const char *certificate;
    const char *const *chain;
    size_t n_chain;
    const char *signature; /* file to write; NULL: MOEC_SIGNATURE_NAME in the
                              directory */
    const char *const *ignore; /* as in moec_signature_opts; recorded */
    size_t n_ignore;
    uint32_t replace; /* 1: an older signature may be replaced */
    uint32_t reserved;
    moec_signature_progress_fn progress;
    void *progress_ctx;
} moec_sign_opts;
#define MOEC_SIGN_OPTS_INIT                                                    \
  {                                                                            \
    .struct_bytes = sizeof(moec_sign_opts)                                     \
  }

/* Check key and certificates without signing anything: what moec_sign would
 * refuse about them. */
MOEC_API moec_status moec_sign_check_key(const moec_sign_opts *opts,
                                         moec_error *err);

/* Sign directory `dir`: read every file, write the signature (to a temporary
 * file that is renamed once it is complete and on disk). A converted
 * checkpoint must open, and none of its files may be ignored. ARG where the
 * signature exists and opts->replace is 0, or its path is a file of the
 * checkpoint. `stats` may be NULL. */
MOEC_API moec_status moec_sign(const char *dir, const moec_sign_opts *opts,
                               moec_signature_stats *stats, moec_error *err);

#ifdef __cplusplus
}
#endif
#endif
