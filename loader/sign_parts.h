/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SIGN_PARTS_H
#define MOEC_SIGN_PARTS_H

/*
 * What this is: the parts of <moec/sign.h>. sign_bundle.c: the Sigstore bundle
 *   and its DSSE envelope; sign_statement.c: the in-toto statement inside;
 *   sign_keys.c: keys and certificates, all that calls libcrypto;
 *   sign_files.c: the directory's files and their digests; sign.c,
 *   sign_verify.c: the calls.
 * Lifetime: zero-initialise, decode, _fini; decoded objects own their memory.
 * Errors: FORMAT S01 (bundle), S02 (keys), S05 (statement), S09 (directory);
 *   INTEGRITY S03, S04, S06, S07, S08; UNSUPPORTED; NOMEM.
 */

#include <moec/sign.h>

#include "base/base.h"

/* ------------------------------------------------------------- bundle */

/* Certificates in a bundle, at most: a chain, not a store. */
#define MOEC_SIGN_CERTS_MAX 32

typedef struct moec_bundle {
    moec_buf payload; /* the statement's text */
    moec_buf sig;     /* ECDSA, DER */
    char *hint;       /* of the public key, or NULL */
    moec_buf *certs;  /* DER, the signing one first; n_certs 0: a public key */
    size_t n_certs;
} moec_bundle;

/* Of `n` bytes of JSON; `name` for texts. Keyless bundles: UNSUPPORTED. */
moec_status moec_bundle_decode(moec_bundle *out, const char *text, size_t n,
                               const char *name, moec_error *err);
/* Append the JSON as model-signing writes it; out->oom tells failure. */
void moec_bundle_encode(const moec_bundle *b, moec_buf *out);
void moec_bundle_fini(moec_bundle *b);

/* What is signed: DSSE's pre-authentication encoding of the payload. `compat`:
 * as model-signing 0.2 had it, with Python's spelling of the bytes. */
moec_status moec_bundle_pae(const moec_bundle *b, bool compat, moec_buf *out,
                            moec_error *err);

/* ---------------------------------------------------------- statement */

typedef struct moec_sign_item {
    const char *name;    /* as the statement spells it */
    const char *path;    /* of the file, relative, plain parts only */
    uint64_t begin, end; /* bytes; end UINT64_MAX: the whole file */
    moec_sha256 sha256;
} moec_sign_item;

typedef struct moec_statement {
    moec_arena arena;
    moec_sign_item *items; /* by path, then begin; none twice */
    size_t n_items;
    const char **ignored; /* relative paths */
    size_t n_ignored;
    uint64_t shard_bytes; /* 0: whole files are signed */
} moec_statement;

moec_status moec_statement_decode(moec_statement *out, const char *text,
                                  size_t n, moec_error *err);
/* Append the JSON of a statement over whole files. */
moec_status moec_statement_encode(const moec_statement *s,
                                  const char *model_name, moec_buf *out,
                                  moec_error *err);
void moec_statement_fini(moec_statement *s);

/* <0, 0, >0 as Python's PurePosixPath orders paths: part by part. */
int moec_sign_path_cmp(const char *a, const char *b);
/* A relative path of plain parts: no "", ".", "..", no NUL; UTF-8. */
bool moec_sign_path_ok(const char *path);
/* True where `path` is `below` or lies below it. "." holds everything. */
bool moec_sign_path_under(const char *path, const char *below);
/* The items of file `path`: *n_out of them, consecutive; 0: not signed. */
const moec_sign_item *moec_statement_find(const moec_statement *s,
                                          const char *path, size_t *n_out);

/* --------------------------------------------------------------- keys */

typedef struct moec_sign_key moec_sign_key;

moec_status moec_sign_key_read(moec_sign_key **out, const char *path,
                               bool want_private, moec_error *err);
void moec_sign_key_free(moec_sign_key *k);
const char *moec_sign_key_curve(const moec_sign_key *k);
/* SHA-256 of the public key's PEM, in hex: what a bundle calls a hint. */
const char *moec_sign_key_hint(const moec_sign_key *k);
moec_status moec_sign_key_sign(const moec_sign_key *k, const moec_buf *text,
                               moec_buf *sig, moec_error *err);
/* *ok_out: is `sig` this key's over `text`? With the digest that goes with the
 * curve, or SHA-256 whatever the curve. */
moec_status moec_sign_key_verify(const moec_sign_key *k, const moec_buf *text,
                                 const moec_buf *sig, bool sha256, bool *ok_out,
                                 moec_error *err);
/* Put the certificate for `k` and its chain into b->certs. */
moec_status moec_sign_certs_read(moec_bundle *b, const moec_sign_key *k,
                                 const moec_sign_opts *opts, moec_error *err);
/* Does the bundle's chain lead to one of the roots, and may it sign? Then
 * *out is the signing certificate's key, `subject` (caller frees with
 * moec_free) its name. */
moec_status moec_sign_certs_check(moec_sign_key **out, char **subject,
                                  const moec_bundle *b,
                                  const char *const *roots, size_t n_roots,
                                  moec_error *err);
/* Read a file that the caller named, of at most `max` bytes. */
moec_status moec_sign_read_path(const char *path, uint64_t max, moec_buf *out,
                                moec_error *err);

/* -------------------------------------------------------------- files */

typedef struct moec_sign_file {
    const char *path; /* relative */
    uint64_t bytes;
    bool ignored;
} moec_sign_file;

typedef struct moec_sign_tree {
    moec_arena arena;
    moec_sign_file *files; /* by path */
    size_t n, cap;
} moec_sign_tree;

/* All regular files below dirfd. Links, devices and names that are not UTF-8
 * are refused (S09), wherever they are. */
moec_status moec_sign_tree_read(moec_sign_tree *t, int dirfd, moec_error *err);
void moec_sign_tree_fini(moec_sign_tree *t);
const moec_sign_file *moec_sign_tree_find(const moec_sign_tree *t,
                                          const char *path);

/* Digest items[i] (path, begin, end given) into out[i]. */
typedef struct moec_sign_hash {
    int dirfd;
    const moec_sign_item *items;
    size_t n;
    moec_sha256 *out;
    uint64_t total; /* bytes, for progress */
    moec_signature_progress_fn progress;
    void *progress_ctx;
    uint32_t n_threads;
} moec_sign_hash;
moec_status moec_sign_hash_items(const moec_sign_hash *h, moec_error *err);

/* Names that manifest.json of a conversion gives its files: slots.bin,
 * sources.bin, data files, copied files, and manifest.json itself. The
 * callback's failure ends it. A directory without our manifest.json has none.
 * The digest is that of the manifest's bytes that were read. */
typedef moec_status (*moec_sign_name_fn)(void *ctx, const char *name,
                                         moec_error *err);
moec_status moec_sign_manifest_names(int dirfd, moec_sign_name_fn fn, void *ctx,
                                     moec_error *err);

/* ------------------------------------------------------------- shared */

/* Where `path` lies below `dir`, links resolved: moec_free it; NULL: it does
 * not. The file itself need not be there. */
char *moec_sign_inside(const char *dir, const char *path);
moec_status moec_sign_open_dir(const char *dir, int *fd_out, moec_error *err);
/* ARG where a path is not plain and relative. */
moec_status moec_sign_check_ignored(const char *const *ignore, size_t n,
                                    moec_error *err);
/* What no signature covers unless it says so; ends with NULL. */
const char *const *moec_sign_git_paths(void);

#endif
