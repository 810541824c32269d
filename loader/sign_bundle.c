/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Sigstore bundle: JSON around a DSSE envelope. Read as the verifier of
 * model-signing 1.1.1 reads it: media type v0.3, unknown keys refused, the
 * first signature counts, transparency log entries are not looked at. Also
 * read: what its older versions wrote (a public key by raw bytes without a
 * hint, no tlogEntries). Refused (S01): anything else.
 */

#include <string.h>

#include "base/json.h"
#include "sign_parts.h"

#define MEDIA_TYPE   "application/vnd.dev.sigstore.bundle.v0.3+json"
#define PAYLOAD_TYPE "application/vnd.in-toto+json"

#define KEYS(...)                                                              \
  (const char *const[]){__VA_ARGS__},                                          \
      sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *)

/* ------------------------------------------------------------- base64 */

static const char alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void put_base64(moec_buf *out, const moec_buf *in)
{
    const unsigned char *p = (const unsigned char *)in->data;
    char four[4];

    moec_buf_puts(out, "\"");
    for (size_t i = 0; i < in->len; i += 3) {
        size_t n = in->len - i < 3 ? in->len - i : 3;
        uint32_t v = (uint32_t)p[i] << 16;

        if (n > 1)
            v |= (uint32_t)p[i + 1] << 8;
        if (n > 2)
            v |= p[i + 2];
        for (unsigned k = 0; k < 4; k++)
            four[k] = k <= n ? alphabet[v >> (18 - 6 * k) & 63] : '=';
        moec_buf_append(out, four, 4);
    }
    moec_buf_puts(out, "\"");
}

static int sextet(char c)
{
    const char *at = c ? strchr(alphabet, c) : NULL;

    return at ? (int)(at - alphabet) : -1;
}

/* Strict: whole groups of four, padding at the end only, no stray bits. */
static moec_status get_base64(const moec_json *v, moec_buf *out,
                              moec_error *err)
{
    const char *s = NULL;
    size_t n, pad = 0;

    MOEC_TRY(moec_json_as_string(v, &s, err));
    n = strlen(s);
    if (n == 0 || n % 4 != 0)
        return moec_json_fail(v, MOEC_RULE_S01, err, "is not base64");
    while (pad < 2 && s[n - 1 - pad] == '=')
        pad++;
    if (!moec_buf_reserve(out, n / 4 * 3))
        return moec_fail_nomem(err, "a signature");
    for (size_t i = 0; i < n; i += 4) {
        size_t skip = i + 4 == n ? pad : 0;
        uint32_t bits = 0;
        unsigned char three[3];

        for (size_t k = 0; k < 4; k++) {
            int x = k < 4 - skip ? sextet(s[i + k]) : 0;
            if (x < 0)
                return moec_json_fail(v, MOEC_RULE_S01, err, "is not base64");
            bits = bits << 6 | (uint32_t)x;
        }
        if (skip && (bits & ((1u << 8 * skip) - 1)))
            return moec_json_fail(v, MOEC_RULE_S01, err, "is not base64");
        for (unsigned k = 0; k < 3; k++)
            three[k] = (unsigned char)(bits >> (16 - 8 * k));
        moec_buf_append(out, three, 3 - skip);
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------ reading */

static moec_status read_public_key(moec_bundle *b, const moec_json *key,
                                   moec_error *err)
{
    moec_json hint = moec_json_member(key, "hint");
    const char *s = NULL;
    size_t n;

    MOEC_TRY(moec_json_want_object(key, err));
    MOEC_TRY(
        moec_json_only_keys(key, KEYS("hint", "rawBytes", "keyDetails"), err));
    if (!hint.value)
        return MOEC_OK;
    MOEC_TRY(moec_json_as_string(&hint, &s, err));
    n = strlen(s);
    if (n == 0)
        return MOEC_OK;
    b->hint = moec_alloc(n + 1);
    if (!b->hint)
        return moec_fail_nomem(err, "a signature");
    memcpy(b->hint, s, n + 1);
    return MOEC_OK;
}

static moec_status read_chain(moec_bundle *b, const moec_json *chain,
                              moec_error *err)
{
    moec_json list;
    size_t n;

    MOEC_TRY(moec_json_want_object(chain, err));
    MOEC_TRY(moec_json_only_keys(chain, KEYS("certificates"), err));
    MOEC_TRY(moec_json_get_array(chain, "certificates", &list, err));
    n = moec_json_len(&list);
    if (n == 0 || n > MOEC_SIGN_CERTS_MAX)
        return moec_json_fail(&list, MOEC_RULE_S01, err,
                              "%zu certificates, must be 1 to %d", n,
                              MOEC_SIGN_CERTS_MAX);
    b->certs = moec_calloc(n, sizeof(*b->certs));
    if (!b->certs)
        return moec_fail_nomem(err, "certificates");
    b->n_certs = n;
    for (size_t i = 0; i < n; i++) {
        moec_json cert = moec_json_item(&list, i);
        moec_json raw = moec_json_member(&cert, "rawBytes");

        MOEC_TRY(moec_json_want_object(&cert, err));
        MOEC_TRY(moec_json_only_keys(&cert, KEYS("rawBytes"), err));
        MOEC_TRY(get_base64(&raw, &b->certs[i], err));
    }
    return MOEC_OK;
}

static moec_status read_material(moec_bundle *b, const moec_json *top,
                                 moec_error *err)
{
    moec_json m, key, chain, entries;

    MOEC_TRY(moec_json_get_object(top, "verificationMaterial", &m, err));
    MOEC_TRY(moec_json_only_keys(&m,
                                 KEYS("publicKey", "x509CertificateChain",
                                      "certificate", "tlogEntries",
                                      "timestampVerificationData"),
                                 err));
    key = moec_json_member(&m, "publicKey");
    chain = moec_json_member(&m, "x509CertificateChain");
    entries = moec_json_member(&m, "tlogEntries");
    if (moec_json_has(&m, "certificate"))
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "%s: a keyless Sigstore signature; signatures by EC "
                         "keys and certificate chains can be checked",
                         m.doc->name);
    if (entries.value)
        MOEC_TRY(moec_json_want_array(&entries, err));
    if (!key.value == !chain.value)
        return moec_json_fail(&m, MOEC_RULE_S01, err,
                              "must have either publicKey or "
                              "x509CertificateChain");
    return key.value ? read_public_key(b, &key, err)
                     : read_chain(b, &chain, err);
}

static moec_status read_envelope(moec_bundle *b, const moec_json *top,
                                 moec_error *err)
{
    moec_json e, payload, list, first, sig;
    const char *type = NULL;

    MOEC_TRY(moec_json_get_object(top, "dsseEnvelope", &e, err));
    MOEC_TRY(moec_json_only_keys(
        &e, KEYS("payload", "payloadType", "signatures"), err));
    MOEC_TRY(moec_json_get_string(&e, "payloadType", &type, err));
    if (strcmp(type, PAYLOAD_TYPE) != 0)
        return moec_json_fail(&e, MOEC_RULE_S01, err,
                              "payloadType is '%s', must be " PAYLOAD_TYPE,
                              type);
    payload = moec_json_member(&e, "payload");
    MOEC_TRY(get_base64(&payload, &b->payload, err));
    MOEC_TRY(moec_json_get_array(&e, "signatures", &list, err));
    if (moec_json_len(&list) == 0)
        return moec_json_fail(&list, MOEC_RULE_S01, err, "is empty");
    first = moec_json_item(&list, 0);
    MOEC_TRY(moec_json_want_object(&first, err));
    MOEC_TRY(moec_json_only_keys(&first, KEYS("sig", "keyid"), err));
    sig = moec_json_member(&first, "sig");
    return get_base64(&sig, &b->sig, err);
}

static moec_status read_top(moec_bundle *b, const moec_json *top,
                            moec_error *err)
{
    const char *type = NULL;

    MOEC_TRY(moec_json_want_object(top, err));
    MOEC_TRY(moec_json_get_string(top, "mediaType", &type, err));
    if (strcmp(type, MEDIA_TYPE) != 0)
        return moec_json_fail(top, MOEC_RULE_S01, err,
                              "mediaType is '%s', must be " MEDIA_TYPE, type);
    MOEC_TRY(moec_json_only_keys(
        top, KEYS("mediaType", "verificationMaterial", "dsseEnvelope"), err));
    MOEC_TRY(read_material(b, top, err));
    return read_envelope(b, top, err);
}

moec_status moec_bundle_decode(moec_bundle *out, const char *text, size_t n,
                               const char *name, moec_error *err)
{
    const moec_json_doc doc = {.name = name,
                               .other = MOEC_RULE_S01,
                               .missing = MOEC_RULE_S01,
                               .integer = MOEC_RULE_S01,
                               .number = MOEC_RULE_S01,
                               .string = MOEC_RULE_S01};
    moec_bundle b = {0};
    json_t *tree = NULL;
    moec_json top;
    moec_status st;

    MOEC_TRY(moec_json_parse(text, n, name, MOEC_RULE_S01, MOEC_RULE_S01, &tree,
                             err));
    top = moec_json_root(tree, &doc);
    st = read_top(&b, &top, err);
    json_decref(tree);
    if (st != MOEC_OK) {
        moec_bundle_fini(&b);
        return st;
    }
    *out = b;
    return MOEC_OK;
}

/* ------------------------------------------------------------ writing */

void moec_bundle_encode(const moec_bundle *b, moec_buf *out)
{
    moec_buf_puts(out, "{\"mediaType\":\"" MEDIA_TYPE
                       "\",\"verificationMaterial\":{");
    if (b->n_certs) {
        moec_buf_puts(out, "\"x509CertificateChain\":{\"certificates\":[");
        for (size_t i = 0; i < b->n_certs; i++) {
            moec_buf_puts(out, i ? ",{\"rawBytes\":" : "{\"rawBytes\":");
            put_base64(out, &b->certs[i]);
            moec_buf_puts(out, "}");
        }
        moec_buf_puts(out, "]}");
    } else {
        moec_buf_puts(out, "\"publicKey\":{");
        if (b->hint) {
            moec_buf_puts(out, "\"hint\":");
            moec_buf_json_string(out, b->hint, strlen(b->hint));
        }
        moec_buf_puts(out, "}");
    }
    moec_buf_puts(out, ",\"tlogEntries\":[]},\"dsseEnvelope\":{\"payload\":");
    put_base64(out, &b->payload);
    moec_buf_puts(out, ",\"payloadType\":\"" PAYLOAD_TYPE
                       "\",\"signatures\":[{\"sig\":");
    put_base64(out, &b->sig);
    moec_buf_puts(out, ",\"keyid\":\"\"}]}}");
}

void moec_bundle_fini(moec_bundle *b)
{
    for (size_t i = 0; i < b->n_certs; i++)
        moec_buf_fini(&b->certs[i]);
    moec_free(b->certs);
    moec_free(b->hint);
    moec_buf_fini(&b->sig);
    moec_buf_fini(&b->payload);
    *b = (moec_bundle){0};
}

/* ---------------------------------------------------------------- PAE */

/* repr() of a Python bytes object. model-signing 0.2 put it between the words
 * of the encoding where the bytes belong, and signed that. */
static void put_python_repr(moec_buf *out, const moec_buf *in)
{
    bool single = in->len && memchr(in->data, '\'', in->len) != NULL;
    bool twice = in->len && memchr(in->data, '"', in->len) != NULL;
    char quote = single && !twice ? '"' : '\'';

    moec_buf_printf(out, "b%c", quote);
    for (size_t i = 0; i < in->len; i++) {
        unsigned char c = (unsigned char)in->data[i];

        if (c == (unsigned char)quote || c == '\\')
            moec_buf_printf(out, "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            moec_buf_puts(out, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (c < 0x20 || c >= 0x7f)
            moec_buf_printf(out, "\\x%02x", c);
        else
            moec_buf_append(out, &c, 1);
    }
    moec_buf_append(out, &quote, 1);
}

moec_status moec_bundle_pae(const moec_bundle *b, bool compat, moec_buf *out,
                            moec_error *err)
{
    moec_buf_printf(out, "%s %zu " PAYLOAD_TYPE " %zu ",
                    compat ? "DSSEV1" : "DSSEv1", sizeof(PAYLOAD_TYPE) - 1,
                    b->payload.len);
    if (compat)
        put_python_repr(out, &b->payload);
    else
        moec_buf_append(out, b->payload.data, b->payload.len);
    return out->oom ? moec_fail_nomem(err, "a signed text") : MOEC_OK;
}
