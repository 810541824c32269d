/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and certificates, by libcrypto: EC keys on P-256, P-384 and P-521 with
 * the SHA-2 that goes with each, and chains of certificates. Refused (S02):
 * other keys and curves, encrypted private keys, a certificate for another
 * key; (S04): a chain that leads to no given root, a certificate that may not
 * sign.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "sign_parts.h"

/* A PEM file of a system's whole certificate store has 200 KiB. */
#define PEM_BYTES_MAX (UINT64_C(4) << 20)

struct moec_sign_key {
    EVP_PKEY *pkey;
    const char *curve;
    const char *digest; /* libcrypto's name */
    char hint[65];
};

/* ------------------------------------------------------------- errors */

/* libcrypto's reasons change with its versions and seldom help; where one is
 * memory, that is the failure. Its queue is empty afterwards. */
static moec_status crypto_failed(moec_error *err, moec_status status,
                                 moec_rule rule, const char *path,
                                 const char *what)
{
    bool nomem = false;
    unsigned long e;

    while ((e = ERR_get_error()) != 0)
        nomem = nomem || ERR_GET_REASON(e) == ERR_R_MALLOC_FAILURE;
    if (nomem)
        return moec_fail_nomem(err, path);
    return moec_fail(err, status, rule, "%s: %s", path, what);
}

/* --------------------------------------------------------------- files */

moec_status moec_sign_read_path(const char *path, uint64_t max, moec_buf *out,
                                moec_error *err)
{
    moec_status st = MOEC_OK;
    struct stat sb;
    /* O_NONBLOCK: a FIFO is refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open", path);
    if (fstat(fd, &sb) != 0)
        st = moec_fail_os(err, errno, "%s: cannot stat", path);
    else if (!S_ISREG(sb.st_mode))
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                       "%s: not a regular file", path);
    else if ((uint64_t)sb.st_size > max)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                       "%s: has %ju bytes, more than the limit of %ju", path,
                       (uintmax_t)sb.st_size, (uintmax_t)max);
    else if (!moec_buf_reserve(out, (size_t)sb.st_size))
        st = moec_fail_nomem(err, path);
    else
        st = moec_pread_full(fd, path, out->data + out->len, (size_t)sb.st_size,
                             0, err);
    close(fd);
    if (st == MOEC_OK) {
        out->len += (size_t)sb.st_size;
        out->data[out->len] = '\0';
    }
    return st;
}

static moec_status open_pem(BIO **out, const char *path, moec_buf *text,
                            moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st = moec_sign_read_path(path, PEM_BYTES_MAX, text, &why);

    if (st == MOEC_E_IO && why.os_errno == ENOENT)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02, "%s: not there",
                         path);
    MOEC_TRY(moec_hand_on(err, st, &why));
    if (text->len == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02, "%s: is empty",
                         path);
    *out = BIO_new_mem_buf(text->data, (int)text->len);
    return *out ? MOEC_OK : moec_fail_nomem(err, path);
}

/* Private keys leave no copy behind. */
static void forget(moec_buf *text)
{
    if (text->data)
        OPENSSL_cleanse(text->data, text->cap);
    moec_buf_fini(text);
}

/* ---------------------------------------------------------------- keys */

static const struct {
    const char *group, *curve, *digest;
} curves[] = {{"prime256v1", "P-256", "SHA256"},
              {"secp384r1", "P-384", "SHA384"},
              {"secp521r1", "P-521", "SHA512"}};

static moec_status find_curve(moec_sign_key *k, const char *path,
                              moec_error *err)
{
    char group[80] = "";
    size_t n = 0;

    if (!EVP_PKEY_is_a(k->pkey, "EC") ||
        !EVP_PKEY_get_utf8_string_param(k->pkey, OSSL_PKEY_PARAM_GROUP_NAME,
                                        group, sizeof(group), &n)) {
        ERR_clear_error();
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02,
                         "%s: not an EC key on a named curve", path);
    }
    for (size_t i = 0; i < sizeof(curves) / sizeof(curves[0]); i++) {
        if (strcmp(group, curves[i].group) == 0) {
            k->curve = curves[i].curve;
            k->digest = curves[i].digest;
            return MOEC_OK;
        }
    }
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02,
                     "%s: an EC key on %s; P-256, P-384 and P-521 can sign",
                     path, group);
}

static moec_status make_hint(moec_sign_key *k, const char *path,
                             moec_error *err)
{
    BIO *bio = BIO_new(BIO_s_mem());
    moec_status st = MOEC_OK;
    moec_sha256 sha;
    char *text = NULL;
    long n;

    if (!bio || !PEM_write_bio_PUBKEY(bio, k->pkey)) {
        ERR_clear_error();
        st = moec_fail_nomem(err, path);
    } else {
        n = BIO_get_mem_data(bio, &text);
        st = moec_sha256_of(text, n > 0 ? (size_t)n : 0, &sha, err);
        if (st == MOEC_OK)
            moec_hex(sha.b, sizeof(sha.b), k->hint);
    }
    BIO_free(bio);
    return st;
}

/* Takes `pkey`, also where it fails. */
static moec_status key_of(moec_sign_key **out, EVP_PKEY *pkey, const char *path,
                          moec_error *err)
{
    moec_sign_key *k = moec_calloc(1, sizeof(*k));
    moec_status st;

    if (!k) {
        EVP_PKEY_free(pkey);
        return moec_fail_nomem(err, path);
    }
    k->pkey = pkey;
    st = find_curve(k, path, err);
    if (st == MOEC_OK)
        st = make_hint(k, path, err);
    if (st != MOEC_OK) {
        moec_sign_key_free(k);
        return st;
    }
    *out = k;
    return MOEC_OK;
}

/* Nobody is asked for a passphrase. */
static int no_passphrase(char *buf, int n, int writing, void *ctx)
{
    (void)buf;
    (void)n;
    (void)writing;
    *(bool *)ctx = true;
    return -1;
}

moec_status moec_sign_key_read(moec_sign_key **out, const char *path,
                               bool want_private, moec_error *err)
{
    moec_buf text = {0};
    BIO *bio = NULL;
    EVP_PKEY *pkey = NULL;
    bool encrypted = false;
    moec_status st = open_pem(&bio, path, &text, err);

    if (st == MOEC_OK) {
        pkey = want_private ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase,
                                                      &encrypted)
                            : PEM_read_bio_PUBKEY(bio, NULL, NULL, NULL);
        if (!pkey)
            st = crypto_failed(err, MOEC_E_FORMAT, MOEC_RULE_S02, path,
                               encrypted      ? "an encrypted private key"
                               : want_private ? "no private key in PEM"
                                              : "no public key in PEM");
    }
    BIO_free(bio);
    forget(&text);
    return st == MOEC_OK ? key_of(out, pkey, path, err) : st;
}

void moec_sign_key_free(moec_sign_key *k)
{
    if (!k)
        return;
    EVP_PKEY_free(k->pkey);
    moec_free(k);
}

const char *moec_sign_key_curve(const moec_sign_key *k)
{
    return k->curve;
}

const char *moec_sign_key_hint(const moec_sign_key *k)
{
    return k->hint;
}

/* With a key that was accepted, what fails in libcrypto is its memory, whatever
 * reason it gives; only a source of randomness that is gone is another. */
static moec_status no_crypto_memory(moec_error *err)
{
    bool random = ERR_GET_LIB(ERR_peek_last_error()) == ERR_LIB_RAND;

    ERR_clear_error();
    if (random)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "libcrypto has no random numbers");
    return moec_fail_nomem(err, "a signature");
}

moec_status moec_sign_key_sign(const moec_sign_key *k, const moec_buf *text,
                               moec_buf *sig, moec_error *err)
{
    const unsigned char *p = (const unsigned char *)text->data;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    size_t n = 0;
    bool ok = ctx && EVP_DigestSignInit_ex(ctx, NULL, k->digest, NULL, NULL,
                                           k->pkey, NULL) == 1;

    ok = ok && EVP_DigestSign(ctx, NULL, &n, p, text->len) == 1;
    ok = ok && moec_buf_reserve(sig, n);
    ok = ok && EVP_DigestSign(ctx, (unsigned char *)sig->data + sig->len, &n, p,
                              text->len) == 1;
    EVP_MD_CTX_free(ctx);
    if (!ok)
        return no_crypto_memory(err);
    sig->len += n;
    return MOEC_OK;
}

/* One DER INTEGER at *at; steps behind it. */
static bool skip_integer(const unsigned char *p, size_t end, size_t *at)
{
    size_t n;

    if (end - *at < 3 || p[*at] != 2)
        return false;
    n = p[*at + 1]; /* below 128: 66 bytes hold any of ours */
    if (n == 0 || n > 127 || n > end - *at - 2)
        return false;
    /* Not negative, and as short as it can be. */
    if (p[*at + 2] >= 0x80 || (n > 1 && p[*at + 2] == 0 && p[*at + 3] < 0x80))
        return false;
    *at += 2 + n;
    return true;
}

/* SEQUENCE { INTEGER, INTEGER } and nothing behind: then libcrypto's "no" is
 * about the numbers, or about its memory, and not about the form. */
static bool is_ecdsa_der(const moec_buf *sig)
{
    const unsigned char *p = (const unsigned char *)sig->data;
    size_t at = 2;

    if (sig->len < 8 || p[0] != 0x30)
        return false;
    if (p[1] == 0x81)
        at = 3;
    if (at == 3 && p[2] < 0x80)
        return false;
    return (at == 3 ? p[2] : p[1]) == sig->len - at &&
           skip_integer(p, sig->len, &at) && skip_integer(p, sig->len, &at) &&
           at == sig->len;
}

moec_status moec_sign_key_verify(const moec_sign_key *k, const moec_buf *text,
                                 const moec_buf *sig, bool sha256, bool *ok_out,
                                 moec_error *err)
{
    EVP_MD_CTX *ctx;
    bool began, is_no;
    int r = -1;

    *ok_out = false;
    if (!is_ecdsa_der(sig))
        return MOEC_OK;
    ERR_clear_error();
    ctx = EVP_MD_CTX_new();
    began =
        ctx && EVP_DigestVerifyInit_ex(ctx, NULL, sha256 ? "SHA256" : k->digest,
                                       NULL, NULL, k->pkey, NULL) == 1;
    if (began)
        r = EVP_DigestVerify(ctx, (const unsigned char *)sig->data, sig->len,
                             (const unsigned char *)text->data, text->len);
    EVP_MD_CTX_free(ctx);
    /* A plain no leaves no error behind; numbers out of range leave this. */
    is_no =
        began && (ERR_peek_error() == 0
                      ? r == 0
                      : ERR_GET_REASON(ERR_peek_error()) == EC_R_BAD_SIGNATURE);
    if (r != 1 && !is_no)
        return no_crypto_memory(err);
    ERR_clear_error();
    *ok_out = r == 1;
    return MOEC_OK;
}

/* -------------------------------------------------------- certificates */

/* The next certificate of a PEM file; NULL with MOEC_OK at its end. */
static moec_status next_cert(BIO *bio, const char *path, X509 **out,
                             moec_error *err)
{
    unsigned long e;

    *out = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    if (*out)
        return MOEC_OK;
    e = ERR_peek_last_error();
    if (ERR_GET_LIB(e) == ERR_LIB_PEM &&
        ERR_GET_REASON(e) == PEM_R_NO_START_LINE) {
        ERR_clear_error();
        return MOEC_OK;
    }
    return crypto_failed(err, MOEC_E_FORMAT, MOEC_RULE_S02, path,
                         "not a certificate in PEM");
}

typedef moec_status (*cert_fn)(void *ctx, X509 *cert, const char *path,
                               moec_error *err);

/* Call fn for each certificate of the file; at least one must be there. */
static moec_status each_cert(const char *path, cert_fn fn, void *ctx,
                             moec_error *err)
{
    moec_buf text = {0};
    BIO *bio = NULL;
    X509 *cert = NULL;
    size_t n = 0;
    moec_status st = open_pem(&bio, path, &text, err);

    while (st == MOEC_OK) {
        st = next_cert(bio, path, &cert, err);
        if (st != MOEC_OK || !cert)
            break;
        st = fn(ctx, cert, path, err);
        X509_free(cert);
        n++;
    }
    if (st == MOEC_OK && n == 0)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02,
                       "%s: no certificate in PEM", path);
    BIO_free(bio);
    moec_buf_fini(&text);
    return st;
}

static moec_status add_der(void *ctx, X509 *cert, const char *path,
                           moec_error *err)
{
    moec_bundle *b = ctx;
    moec_buf *der;
    unsigned char *p;
    int n = i2d_X509(cert, NULL);

    if (b->n_certs == MOEC_SIGN_CERTS_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02,
                         "%s: more than %d certificates in all", path,
                         MOEC_SIGN_CERTS_MAX);
    der = &b->certs[b->n_certs];
    if (n <= 0 || !moec_buf_reserve(der, (size_t)n))
        return moec_fail_nomem(err, path);
    p = (unsigned char *)der->data;
    der->len = (size_t)i2d_X509(cert, &p);
    b->n_certs++;
    return MOEC_OK;
}

static X509 *from_der(const moec_buf *der)
{
    const unsigned char *p = (const unsigned char *)der->data;
    X509 *cert = d2i_X509(NULL, &p, (long)der->len);

    if (cert && p != (const unsigned char *)der->data + der->len) {
        X509_free(cert);
        return NULL;
    }
    return cert;
}

static moec_status same_key(const moec_bundle *b, const moec_sign_key *k,
                            const char *path, moec_error *err)
{
    X509 *cert = from_der(&b->certs[0]);
    EVP_PKEY *pkey = cert ? X509_get0_pubkey(cert) : NULL;
    bool same = pkey && EVP_PKEY_eq(pkey, k->pkey) == 1;

    X509_free(cert);
    ERR_clear_error();
    if (!same)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_S02,
                         "%s: its first certificate is for another key", path);
    return MOEC_OK;
}

moec_status moec_sign_certs_read(moec_bundle *b, const moec_sign_key *k,
                                 const moec_sign_opts *opts, moec_error *err)
{
    b->certs = moec_calloc(MOEC_SIGN_CERTS_MAX, sizeof(*b->certs));
    if (!b->certs)
        return moec_fail_nomem(err, "certificates");
    MOEC_TRY(each_cert(opts->certificate, add_der, b, err));
    for (size_t i = 0; i < opts->n_chain; i++)
        MOEC_TRY(each_cert(opts->chain[i], add_der, b, err));
    return same_key(b, k, opts->certificate, err);
}

static moec_status add_root(void *ctx, X509 *cert, const char *path,
                            moec_error *err)
{
    if (X509_STORE_add_cert(ctx, cert) != 1)
        return crypto_failed(err, MOEC_E_FORMAT, MOEC_RULE_S02, path,
                             "a certificate cannot be trusted");
    return MOEC_OK;
}

/* What certificates are for must include signatures or code. */
static bool may_sign(X509 *cert)
{
    uint32_t flags = X509_get_extension_flags(cert);

    if (flags & EXFLAG_INVALID)
        return false;
    return ((flags & EXFLAG_KUSAGE) &&
            (X509_get_key_usage(cert) & KU_DIGITAL_SIGNATURE)) ||
           ((flags & EXFLAG_XKUSAGE) &&
            (X509_get_extended_key_usage(cert) & XKU_CODE_SIGN));
}

static moec_status no_chain_memory(moec_error *err)
{
    ERR_clear_error();
    return moec_fail_nomem(err, "certificates");
}

/* Follow the chain. The clock stands where the signing certificate's validity
 * begins: nothing in a bundle without a timestamp says when it was made. */
static moec_status follow(X509_STORE *store, X509 *leaf, STACK_OF(X509) * more,
                          moec_error *err)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    moec_status st = MOEC_OK;
    struct tm tm;
    int why;

    if (!ctx || !X509_STORE_CTX_init(ctx, store, leaf, more)) {
        X509_STORE_CTX_free(ctx);
        return no_chain_memory(err);
    }
    if (!ASN1_TIME_to_tm(X509_get0_notBefore(leaf), &tm)) {
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S04,
                       "the signing certificate's validity has no begin");
    } else {
        X509_STORE_CTX_set_time(ctx, 0, timegm(&tm));
        if (X509_verify_cert(ctx) != 1) {
            why = X509_STORE_CTX_get_error(ctx);
            st = why == X509_V_ERR_OUT_OF_MEM
                     ? no_chain_memory(err)
                     : moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S04,
                                 "the certificates given do not vouch for the "
                                 "signing one: %s",
                                 X509_verify_cert_error_string(why));
        }
    }
    X509_STORE_CTX_free(ctx);
    ERR_clear_error();
    return st;
}

/* Who signed, as RFC 2253 writes names. */
static char *name_of(X509 *cert)
{
    BIO *bio = BIO_new(BIO_s_mem());
    char *text = NULL, *out = NULL;
    long n;

    if (bio && X509_NAME_print_ex(bio, X509_get_subject_name(cert), 0,
                                  XN_FLAG_RFC2253) >= 0) {
        n = BIO_get_mem_data(bio, &text);
        out = moec_calloc((size_t)(n > 0 ? n : 0) + 1, 1);
        if (out && n > 0)
            memcpy(out, text, (size_t)n);
    }
    BIO_free(bio);
    return out;
}

static moec_status key_of_leaf(moec_sign_key **out, char **subject, X509 *leaf,
                               moec_error *err)
{
    EVP_PKEY *pkey = X509_get0_pubkey(leaf);

    if (!pkey || !EVP_PKEY_up_ref(pkey))
        return crypto_failed(err, MOEC_E_FORMAT, MOEC_RULE_S02,
                             "the signing certificate", "no key in it");
    MOEC_TRY(key_of(out, pkey, "the signing certificate", err));
    *subject = name_of(leaf);
    if (!*subject) {
        moec_sign_key_free(*out);
        *out = NULL;
        return no_chain_memory(err);
    }
    return MOEC_OK;
}

static moec_status parse_chain(const moec_bundle *b, X509 **leaf,
                               STACK_OF(X509) * more, moec_error *err)
{
    for (size_t i = 0; i < b->n_certs; i++) {
        X509 *cert = from_der(&b->certs[i]);

        if (!cert)
            return crypto_failed(err, MOEC_E_FORMAT, MOEC_RULE_S01,
                                 "a certificate of the signature", "not DER");
        if (i == 0) {
            *leaf = cert;
        } else if (!sk_X509_push(more, cert)) {
            X509_free(cert);
            return no_chain_memory(err);
        }
    }
    return MOEC_OK;
}

moec_status moec_sign_certs_check(moec_sign_key **out, char **subject,
                                  const moec_bundle *b,
                                  const char *const *roots, size_t n_roots,
                                  moec_error *err)
{
    X509_STORE *store = X509_STORE_new();
    STACK_OF(X509) *more = sk_X509_new_null();
    X509 *leaf = NULL;
    moec_status st =
        store && more ? parse_chain(b, &leaf, more, err) : no_chain_memory(err);

    for (size_t i = 0; i < n_roots && st == MOEC_OK; i++)
        st = each_cert(roots[i], add_root, store, err);
    if (st == MOEC_OK)
        st = follow(store, leaf, more, err);
    if (st == MOEC_OK && !may_sign(leaf))
        st = moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_S04,
                       "the signing certificate is not for signatures");
    if (st == MOEC_OK)
        st = key_of_leaf(out, subject, leaf, err);
    X509_free(leaf);
    sk_X509_pop_free(more, X509_free);
    X509_STORE_free(store);
    return st;
}
