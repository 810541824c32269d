/* SPDX-License-Identifier: Apache-2.0
 *
 * Signatures: those that model-signing made (fixtures/signatures), those made
 * here with keys of the moment, and everything that must be refused. */

#include "tmpdir.h"

#include <errno.h>

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <moec/sign.h>

#include "base/base.h"
#include "sign_parts.h"

#define SIGNATURES MOEC_TEST_FIXTURES "/signatures/"
#define MODEL      SIGNATURES "model"

static void write_key(const char *path, EVP_PKEY *key, bool private)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(
        private ? PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL)
                : PEM_write_PUBKEY(f, key),
        1);
    assert_int_equal(fclose(f), 0);
}

/* key.pem and key.pub in `d`. */
static void make_key(const tmpdir *d, const char *curve)
{
    EVP_PKEY *key = EVP_EC_gen(curve);

    assert_non_null(key);
    write_key(tmpdir_path(d, "key.pem"), key, true);
    write_key(tmpdir_path(d, "key.pub"), key, false);
    EVP_PKEY_free(key);
}

static void put(const tmpdir *d, const char *name, const char *text)
{
    FILE *f = fopen(tmpdir_path(d, name), "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

/* A model `m` beside a key, signed. */
typedef struct world {
    tmpdir d;
    char model[300], key[300], pub[300];
    moec_signature_opts opts;
    moec_sign_opts sign;
} world;

static void make_world(world *w, const char *curve)
{
    static const char *const dirs[] = {"m", "m/sub"};

    memset(w, 0, sizeof(*w));
    w->d = tmpdir_make();
    make_key(&w->d, curve);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(mkdir(tmpdir_path(&w->d, dirs[i]), 0777), 0);
    put(&w->d, "m/config.json", "{}");
    put(&w->d, "m/sub/x", "x");
    put(&w->d, "m/empty", "");
    (void)snprintf(w->model, sizeof(w->model), "%s", tmpdir_path(&w->d, "m"));
    (void)snprintf(w->key, sizeof(w->key), "%s", tmpdir_path(&w->d, "key.pem"));
    (void)snprintf(w->pub, sizeof(w->pub), "%s", tmpdir_path(&w->d, "key.pub"));
    w->opts = (moec_signature_opts)MOEC_SIGNATURE_OPTS_INIT;
    w->opts.key = w->pub;
    w->opts.n_threads = 2;
    w->sign = (moec_sign_opts)MOEC_SIGN_OPTS_INIT;
    w->sign.key = w->key;
    w->sign.replace = 1;
    w->sign.n_threads = 2;
}

static void sign_world(world *w)
{
    moec_error err = MOEC_ERROR_INIT;

    if (moec_sign(w->model, &w->sign, NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
}

static void expect(world *w, moec_status status, moec_rule rule)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_signature_verify(w->model, &w->opts, NULL, &err);

    if (st != status || (st != MOEC_OK && err.rule != rule))
        fail_msg("status %d rule %d: %s", st, err.rule, err.text);
}

/* ------------------------------------------------------------- fixtures */

static void accepts_what_model_signing_wrote(void **state)
{
    static const struct {
        const char *signature, *key, *root;
        size_t items;
    } rows[] = {
        {SIGNATURES "p256.sig", SIGNATURES "p256.pub", NULL, 4},
        {SIGNATURES "p384.sig", SIGNATURES "p384.pub", NULL, 4},
        {SIGNATURES "p521.sig", SIGNATURES "p521.pub", NULL, 4},
        {SIGNATURES "chain.sig", NULL, SIGNATURES "root.crt", 4},
        {SIGNATURES "shards.sig", SIGNATURES "p256.pub", NULL, 4},
        {SIGNATURES "old.sig", SIGNATURES "p256.pub", NULL, 4},
        {SIGNATURES "old-chain.sig", NULL, SIGNATURES "root.crt", 4},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        moec_signature_opts o = MOEC_SIGNATURE_OPTS_INIT;
        moec_signature_stats stats;
        moec_error err = MOEC_ERROR_INIT;
        moec_signature *s = NULL;

        o.signature = rows[i].signature;
        o.key = rows[i].key;
        o.roots = &rows[i].root;
        o.n_roots = rows[i].root != NULL;
        if (moec_signature_open(&s, MODEL, &o, &err) != MOEC_OK ||
            moec_signature_check_files(s, &o, &stats, &err) != MOEC_OK)
            fail_msg("%s: %s", rows[i].signature, err.text);
        assert_int_equal(moec_signature_n_items(s), rows[i].items);
        assert_string_equal(moec_signature_subject(s),
                            rows[i].root ? "CN=leaf" : "");
        assert_int_equal(moec_signature_check_bytes(s, "a", "hi\n", 3, &err),
                         MOEC_OK);
        moec_signature_close(s);
    }
}

static void refuses_other_keys_and_roots(void **state)
{
    static const struct {
        const char *signature, *key, *root;
        moec_rule rule;
    } rows[] = {
        {SIGNATURES "p256.sig", SIGNATURES "p384.pub", NULL, MOEC_RULE_S03},
        {SIGNATURES "p384.sig", SIGNATURES "p256.pub", NULL, MOEC_RULE_S03},
        /* No hint in it: the signature itself must tell. */
        {SIGNATURES "old.sig", SIGNATURES "p521.pub", NULL, MOEC_RULE_S03},
        {SIGNATURES "chain.sig", SIGNATURES "p384.pub", NULL, MOEC_RULE_S03},
        {SIGNATURES "p384.sig", NULL, SIGNATURES "root.crt", MOEC_RULE_S04},
        {SIGNATURES "absent.sig", SIGNATURES "p256.pub", NULL, MOEC_RULE_S03},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        moec_signature_opts o = MOEC_SIGNATURE_OPTS_INIT;
        moec_error err = MOEC_ERROR_INIT;

        o.signature = rows[i].signature;
        o.key = rows[i].key;
        o.roots = &rows[i].root;
        o.n_roots = rows[i].root != NULL;
        assert_int_equal(moec_signature_verify(MODEL, &o, NULL, &err),
                         MOEC_E_INTEGRITY);
        assert_int_equal(err.rule, rows[i].rule);
    }
}

/* ------------------------------------------------------------ made here */

static void signs_with_every_curve(void **state)
{
    static const char *const curves[][2] = {
        {"P-256", "P-256"}, {"P-384", "P-384"}, {"P-521", "P-521"}};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_signature *s = NULL;
        moec_signature_stats stats = {0};
        world w;

        make_world(&w, curves[i][0]);
        put(&w.d, "m/.gitattributes", "never signed");
        sign_world(&w);
        put(&w.d, "m/.gitattributes", "changed");
        assert_int_equal(moec_signature_open(&s, w.model, &w.opts, &err),
                         MOEC_OK);
        assert_string_equal(moec_signature_curve(s), curves[i][1]);
        assert_int_equal(moec_signature_check_files(s, &w.opts, &stats, &err),
                         MOEC_OK);
        assert_int_equal(stats.n_files, 3);
        assert_int_equal(stats.bytes, 3);
        assert_int_equal(stats.n_ignored, 2);
        assert_string_equal(moec_signature_item(s, 2), "sub/x");
        moec_signature_close(s);
        tmpdir_remove(&w.d);
    }
}

static void names_what_is_not_as_signed(void **state)
{
    world w;

    (void)state;
    make_world(&w, "P-256");
    sign_world(&w);
    expect(&w, MOEC_OK, MOEC_RULE_NONE);
    put(&w.d, "m/config.json", "[]");
    expect(&w, MOEC_E_INTEGRITY, MOEC_RULE_S07);
    put(&w.d, "m/config.json", "{} ");
    expect(&w, MOEC_E_INTEGRITY, MOEC_RULE_S07);
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/config.json")), 0);
    expect(&w, MOEC_E_INTEGRITY, MOEC_RULE_S06);
    put(&w.d, "m/config.json", "{}");
    put(&w.d, "m/sub/extra", "");
    expect(&w, MOEC_E_INTEGRITY, MOEC_RULE_S06);
    w.opts.ignore_unsigned = 1;
    expect(&w, MOEC_OK, MOEC_RULE_NONE);
    w.opts.ignore_unsigned = 0;
    w.opts.ignore = (const char *const[]){"sub/extra"};
    w.opts.n_ignore = 1;
    expect(&w, MOEC_OK, MOEC_RULE_NONE);
    w.opts.ignore = (const char *const[]){"../m"};
    expect(&w, MOEC_E_ARG, MOEC_RULE_NONE);
    w.opts.n_ignore = 0;
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/sub/extra")), 0);
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/model.sig")), 0);
    expect(&w, MOEC_E_INTEGRITY, MOEC_RULE_S03);
    tmpdir_remove(&w.d);
}

static void refuses_what_is_no_file(void **state)
{
    world w;

    (void)state;
    make_world(&w, "P-256");
    sign_world(&w);
    assert_int_equal(symlink("config.json", tmpdir_path(&w.d, "m/link")), 0);
    expect(&w, MOEC_E_FORMAT, MOEC_RULE_S09);
    assert_int_equal(moec_sign(w.model, &w.sign, NULL, NULL), MOEC_E_FORMAT);
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/link")), 0);
    assert_int_equal(mkfifo(tmpdir_path(&w.d, "m/fifo"), 0666), 0);
    expect(&w, MOEC_E_FORMAT, MOEC_RULE_S09);
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/fifo")), 0);
    put(&w.d, "m/\xff", "");
    expect(&w, MOEC_E_FORMAT, MOEC_RULE_S09);
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/\xff")), 0);
    /* A signed file replaced by a link to its own copy. */
    assert_int_equal(
        rename(tmpdir_path(&w.d, "m/empty"), tmpdir_path(&w.d, "empty")), 0);
    assert_int_equal(symlink("../empty", tmpdir_path(&w.d, "m/empty")), 0);
    w.opts.ignore_unsigned = 1;
    expect(&w, MOEC_E_INTEGRITY, MOEC_RULE_S06);
    tmpdir_remove(&w.d);
}

static void writes_a_signature_whole_or_not_at_all(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    char elsewhere[300];
    world w;

    (void)state;
    make_world(&w, "P-256");
    sign_world(&w);
    w.sign.replace = 0;
    assert_int_equal(moec_sign(w.model, &w.sign, NULL, &err), MOEC_E_ARG);
    /* What a killed run left is neither signed nor in the way. */
    put(&w.d, "m/model.sig.tmp", "half");
    w.sign.replace = 1;
    sign_world(&w);
    expect(&w, MOEC_OK, MOEC_RULE_NONE);
    assert_int_equal(access(tmpdir_path(&w.d, "m/model.sig.tmp"), F_OK), -1);
    (void)snprintf(elsewhere, sizeof(elsewhere), "%s",
                   tmpdir_path(&w.d, "elsewhere"));
    assert_int_equal(unlink(tmpdir_path(&w.d, "m/model.sig")), 0);
    w.sign.signature = elsewhere;
    w.opts.signature = elsewhere;
    sign_world(&w);
    expect(&w, MOEC_OK, MOEC_RULE_NONE);
    w.sign.signature = "/nonexistent/x";
    assert_int_equal(moec_sign(w.model, &w.sign, NULL, NULL), MOEC_E_IO);
    tmpdir_remove(&w.d);
}

static void refuses_keys_that_cannot_sign(void **state)
{
    EVP_PKEY *key;
    moec_error err = MOEC_ERROR_INIT;
    world w;
    FILE *f;

    (void)state;
    make_world(&w, "secp256k1"); /* a curve that is not one of the three */
    assert_int_equal(moec_sign_check_key(&w.sign, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_S02);
    key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    assert_non_null(key);
    write_key(w.key, key, true);
    EVP_PKEY_free(key);
    assert_int_equal(moec_sign_check_key(&w.sign, NULL), MOEC_E_FORMAT);
    put(&w.d, "key.pem", "not a key");
    assert_int_equal(moec_sign_check_key(&w.sign, NULL), MOEC_E_FORMAT);
    put(&w.d, "key.pem", "");
    assert_int_equal(moec_sign_check_key(&w.sign, NULL), MOEC_E_FORMAT);
    key = EVP_EC_gen("P-256");
    f = fopen(w.key, "w");
    assert_non_null(f);
    assert_int_equal(PEM_write_PKCS8PrivateKey(f, key, EVP_aes_128_cbc(), "pw",
                                               2, NULL, NULL),
                     1);
    assert_int_equal(fclose(f), 0);
    EVP_PKEY_free(key);
    memset(&err, 0, sizeof(err));
    assert_int_equal(moec_sign_check_key(&w.sign, &err), MOEC_E_FORMAT);
    assert_non_null(strstr(err.text, "encrypted"));
    /* A public key does not sign, a private one does not check. */
    w.sign.key = SIGNATURES "p256.pub";
    assert_int_equal(moec_sign_check_key(&w.sign, NULL), MOEC_E_FORMAT);
    w.sign.key = "/nonexistent/key";
    memset(&err, 0, sizeof(err));
    assert_int_equal(moec_sign_check_key(&w.sign, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_S02);
    tmpdir_remove(&w.d);
}

static void checks_one_file_without_reading_the_rest(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_signature *s = NULL;
    moec_sha256 sha;
    world w;

    (void)state;
    make_world(&w, "P-256");
    sign_world(&w);
    put(&w.d, "m/sub/x", "other"); /* is not looked at */
    assert_int_equal(moec_signature_open(&s, w.model, &w.opts, &err), MOEC_OK);
    assert_int_equal(
        moec_signature_check_bytes(s, "config.json", "{}", 2, &err), MOEC_OK);
    assert_int_equal(moec_sha256_of("{}", 2, &sha, NULL), MOEC_OK);
    assert_int_equal(
        moec_signature_check_digest(s, "config.json", 2, sha.b, &err), MOEC_OK);
    assert_int_equal(
        moec_signature_check_bytes(s, "config.json", "{ ", 2, &err),
        MOEC_E_INTEGRITY);
    assert_int_equal(err.rule, MOEC_RULE_S07);
    memset(&err, 0, sizeof(err));
    assert_int_equal(
        moec_signature_check_bytes(s, "manifest.json", "", 0, &err),
        MOEC_E_INTEGRITY);
    assert_int_equal(err.rule, MOEC_RULE_S06);
    sha.b[0] ^= 1;
    assert_int_equal(
        moec_signature_check_digest(s, "config.json", 2, sha.b, NULL),
        MOEC_E_INTEGRITY);
    moec_signature_close(s);
    tmpdir_remove(&w.d);
}

/* ----------------------------------------------------- hostile signers */

/* Sign any statement with the world's key. */
static void sign_text(world *w, const char *text)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_sign_key *k = NULL;
    moec_bundle b = {0};
    moec_buf pae = {0}, out = {0};
    FILE *f;

    assert_int_equal(moec_sign_key_read(&k, w->key, true, &err), MOEC_OK);
    moec_buf_puts(&b.payload, text);
    assert_int_equal(moec_bundle_pae(&b, false, &pae, &err), MOEC_OK);
    assert_int_equal(moec_sign_key_sign(k, &pae, &b.sig, &err), MOEC_OK);
    moec_bundle_encode(&b, &out);
    assert_false(out.oom);
    f = fopen(tmpdir_path(&w->d, "m/model.sig"), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(out.data, 1, out.len, f), out.len);
    assert_int_equal(fclose(f), 0);
    moec_buf_fini(&out);
    moec_buf_fini(&pae);
    moec_bundle_fini(&b);
    moec_sign_key_free(k);
}

/* SHA-256 of nothing, of "{}" and "x". */
#define NOTHING                                                                \
  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define BRACES                                                                 \
  "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

#define STATEMENT(root, resources, serialization)                              \
  "{\"_type\":\"https://in-toto.io/Statement/v1\",\"subject\":[{\"name\":"     \
  "\"m\",\"digest\":{\"sha256\":\"" root "\"}}],\"predicateType\":\"https://"  \
  "model_signing/signature/v1.0\",\"predicate\":{\"resources\":[" resources    \
  "],\"serialization\":{\"hash_type\":\"sha256\",\"allow_symlinks\":"          \
  "false," serialization "}}}"
#define RESOURCE(name, algorithm, digest)                                      \
  "{\"name\":\"" name "\",\"algorithm\":\"" algorithm                          \
  "\",\"digest\":\"" digest "\"}"
#define FILES "\"method\":\"files\""

static void refuses_statements_that_two_readers_read_differently(void **state)
{
    static const struct {
        const char *text;
        moec_status status;
        moec_rule rule;
    } rows[] = {
        /* A root digest that is not of the list. */
        {STATEMENT(BRACES, "", FILES), MOEC_E_FORMAT, MOEC_RULE_S05},
        /* Nothing signed at all, and everything ignored. */
        {STATEMENT(NOTHING, "", FILES ",\"ignore_paths\":[\".\"]"),
         MOEC_E_INTEGRITY, MOEC_RULE_S06},
        {STATEMENT(NOTHING, "", FILES ",\"ignore_paths\":[\"../m\"]"),
         MOEC_E_INTEGRITY, MOEC_RULE_S06},
        {STATEMENT(NOTHING, RESOURCE("../x", "sha256", BRACES), FILES),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, RESOURCE("/x", "sha256", BRACES), FILES),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, RESOURCE("a//b", "sha256", BRACES), FILES),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, RESOURCE("x", "sha1", BRACES), FILES),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, RESOURCE("x", "sha256", "00"), FILES),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, "", "\"method\":\"other\""), MOEC_E_FORMAT,
         MOEC_RULE_S05},
        {STATEMENT(NOTHING, "", "\"method\":\"shards\",\"shard_size\":0"),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, "", "\"method\":\"shards\",\"shard_size\":1.5"),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {STATEMENT(NOTHING, RESOURCE("x:0", "sha256-sharded-4", BRACES),
                   "\"method\":\"shards\",\"shard_size\":4"),
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {"{}", MOEC_E_FORMAT, MOEC_RULE_S05},
        {"[", MOEC_E_FORMAT, MOEC_RULE_S05},
        {"{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicateType\":"
         "\"x\"}",
         MOEC_E_FORMAT, MOEC_RULE_S05},
        {"{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicateType\":"
         "\"https://model_signing/Digests/v0.1\",\"subject\":[{\"name\":\"a\","
         "\"digest\":{\"sha256\":\"" BRACES "\"}},{\"name\":\"a\",\"digest\":"
         "{\"sha256\":\"" BRACES "\"}}]}",
         MOEC_E_FORMAT, MOEC_RULE_S05},
    };
    world w;

    (void)state;
    make_world(&w, "P-256");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        sign_text(&w, rows[i].text);
        expect(&w, rows[i].status, rows[i].rule);
    }
    tmpdir_remove(&w.d);
}

/* Shards must follow on each other: a gap would be nobody's word. */
static void refuses_shards_with_gaps(void **state)
{
    static const struct {
        const char *names[3];
        bool good;
    } rows[] = {
        {{"f:0:4", "f:4:6", NULL}, true},
        {{"f:4:6", "f:0:4", NULL}, true}, /* any order */
        {{"f:0:4", "f:4:8", "g:0:1"}, true},
        {{"f:0:4", "f:5:6", NULL}, false}, /* gap */
        {{"f:0:4", "f:0:4", NULL}, false}, /* twice */
        {{"f:0:3", "f:3:6", NULL}, false}, /* a short one inside */
        {{"f:0:5", NULL, NULL}, false},    /* too long */
        {{"f:1:4", NULL, NULL}, false},    /* no begin */
        {{"f:00:4", NULL, NULL}, false},   /* two spellings */
        {{"f:0:99999999999999999999", NULL, NULL}, false},
        {{"f:4:0", NULL, NULL}, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char text[2048], resources[1024] = "", hex[65];
        unsigned char digests[96];
        moec_error err = MOEC_ERROR_INIT;
        moec_statement s = {0};
        moec_sha256 root;
        size_t n = 0;
        moec_status st;

        assert_true(moec_unhex(BRACES, digests, 32));
        memcpy(digests + 32, digests, 32);
        memcpy(digests + 64, digests, 32);
        for (; n < 3 && rows[i].names[n]; n++) {
            size_t at = strlen(resources);
            (void)snprintf(resources + at, sizeof(resources) - at,
                           "%s{\"name\":\"%s\",\"algorithm\":"
                           "\"sha256-sharded-4\",\"digest\":\"" BRACES "\"}",
                           n ? "," : "", rows[i].names[n]);
        }
        assert_int_equal(moec_sha256_of(digests, 32 * n, &root, NULL), MOEC_OK);
        moec_hex(root.b, 32, hex);
        (void)snprintf(text, sizeof(text),
                       "{\"_type\":\"https://in-toto.io/Statement/v1\","
                       "\"subject\":[{\"digest\":{\"sha256\":\"%s\"}}],"
                       "\"predicateType\":\"https://model_signing/signature/"
                       "v1.0\",\"predicate\":{\"resources\":[%s],"
                       "\"serialization\":{\"hash_type\":\"sha256\","
                       "\"method\":\"shards\",\"shard_size\":4}}}",
                       hex, resources);
        st = moec_statement_decode(&s, text, strlen(text), &err);
        if ((st == MOEC_OK) != rows[i].good)
            fail_msg("row %zu: %s", i, err.text);
        moec_statement_fini(&s);
    }
}

static void does_not_claim_other_digests(void **state)
{
    static const char text[] =
        "{\"_type\":\"https://in-toto.io/Statement/v1\",\"subject\":[],"
        "\"predicateType\":\"https://model_signing/signature/v1.0\","
        "\"predicate\":{\"resources\":[],\"serialization\":{\"method\":"
        "\"files\",\"hash_type\":\"blake3\"}}}";
    moec_error err = MOEC_ERROR_INIT;
    moec_statement s = {0};

    (void)state;
    assert_int_equal(moec_statement_decode(&s, text, sizeof(text) - 1, &err),
                     MOEC_E_UNSUPPORTED);
}

/* -------------------------------------------------------------- bundles */

#define BUNDLE(material, payload, sigs)                                        \
  "{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\","          \
  "\"verificationMaterial\":{" material                                        \
  "},\"dsseEnvelope\":{\"payload\":\"" payload                                 \
  "\",\"payloadType\":\"application/vnd.in-toto+json\","                       \
  "\"signatures\":" sigs "}}"
#define KEY "\"publicKey\":{\"hint\":\"x\"}"
#define SIG "[{\"sig\":\"AAAA\"}]"

static void refuses_bundles_it_does_not_understand(void **state)
{
    static const struct {
        const char *text;
        moec_status status;
    } rows[] = {
        {BUNDLE(KEY, "e30=", SIG), MOEC_OK},
        {BUNDLE(KEY ",\"tlogEntries\":[{}]", "e30=", SIG), MOEC_OK},
        {BUNDLE("\"publicKey\":{\"rawBytes\":\"AA==\",\"keyDetails\":\"x\"}",
                "e30=", SIG),
         MOEC_OK},
        {"", MOEC_E_FORMAT},
        {"[]", MOEC_E_FORMAT},
        {"{}", MOEC_E_FORMAT},
        {BUNDLE(KEY, "e30", SIG), MOEC_E_FORMAT},  /* no padding */
        {BUNDLE(KEY, "e31=", SIG), MOEC_E_FORMAT}, /* stray bits */
        {BUNDLE(KEY, "e3=0", SIG), MOEC_E_FORMAT}, /* padding inside */
        {BUNDLE(KEY, "e30=e30=", SIG), MOEC_E_FORMAT},
        {BUNDLE(KEY, "e3 0=", SIG), MOEC_E_FORMAT},
        {BUNDLE(KEY, "", SIG), MOEC_E_FORMAT},
        {BUNDLE(KEY, "e30=", "[]"), MOEC_E_FORMAT},
        {BUNDLE(KEY, "e30=", "[{\"sig\":\"\"}]"), MOEC_E_FORMAT},
        {BUNDLE(KEY, "e30=", "[{\"sig\":\"AAAA\",\"x\":1}]"), MOEC_E_FORMAT},
        {BUNDLE("", "e30=", SIG), MOEC_E_FORMAT},
        {BUNDLE(KEY ",\"x509CertificateChain\":{\"certificates\":[{"
                    "\"rawBytes\":\"AAAA\"}]}",
                "e30=", SIG),
         MOEC_E_FORMAT},
        {BUNDLE("\"x509CertificateChain\":{\"certificates\":[]}", "e30=", SIG),
         MOEC_E_FORMAT},
        {BUNDLE("\"certificate\":{\"rawBytes\":\"AAAA\"}", "e30=", SIG),
         MOEC_E_UNSUPPORTED},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_bundle b = {0};
        moec_status st = moec_bundle_decode(&b, rows[i].text,
                                            strlen(rows[i].text), "t", &err);

        if (st != rows[i].status)
            fail_msg("row %zu: %d %s", i, st, err.text);
        if (st == MOEC_E_FORMAT)
            assert_int_equal(err.rule, MOEC_RULE_S01);
        moec_bundle_fini(&b);
    }
}

/* repr() as Python writes it: quotes, escapes, and bytes above 126. */
static void spells_bytes_as_python_does(void **state)
{
    static const struct {
        const char *in, *out;
    } rows[] = {
        {"a", "b'a'"},
        {"it's", "b\"it's\""},
        {"'\"", "b'\\'\"'"},
        {"\n\r\t\\\x01\x7f\xc3", "b'\\n\\r\\t\\\\\\x01\\x7f\\xc3'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        moec_buf out = {0};
        moec_bundle b = {0};

        moec_buf_puts(&b.payload, rows[i].in);
        assert_int_equal(moec_bundle_pae(&b, true, &out, NULL), MOEC_OK);
        assert_non_null(strstr(out.data, rows[i].out));
        moec_buf_fini(&out);
        moec_bundle_fini(&b);
    }
}

static void orders_paths_part_by_part(void **state)
{
    (void)state;
    assert_true(moec_sign_path_cmp("d/b", "d-e") < 0);
    assert_true(moec_sign_path_cmp("d", "d/b") < 0);
    assert_true(moec_sign_path_cmp("a", "b") < 0);
    assert_true(moec_sign_path_cmp("caf\xc3\xa9", "cafz") > 0);
    assert_int_equal(moec_sign_path_cmp("x/y", "x/y"), 0);
    assert_true(moec_sign_path_under("a/b", "a"));
    assert_true(moec_sign_path_under("a", "a/"));
    assert_false(moec_sign_path_under("ab", "a"));
    assert_false(moec_sign_path_under("a", "a/b"));
    assert_false(moec_sign_path_ok(""));
    assert_false(moec_sign_path_ok("a/"));
    assert_false(moec_sign_path_ok("a/./b"));
}

/* A damaged signature is a wrong one, never a lack of memory or a mistake. */
static void nothing_signed_is_spelt_too(void **state)
{
    moec_bundle b = {0};
    moec_buf out = {0};

    (void)state;
    assert_int_equal(moec_bundle_pae(&b, true, &out, NULL), MOEC_OK);
    assert_non_null(memmem(out.data, out.len, " 0 b''", 6));
    moec_buf_fini(&out);
}

static void tells_paths_that_are_plain_and_what_is_below(void **state)
{
    static const char *const good[] = {"a", ".a", "..a", "a/.b/..c", "a b"};
    static const char *const bad[] = {
        "", ".", "..", "/a", "a/", "a//b", "a/./b", "a/../b", "a/..", "\xff"};

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_true(moec_sign_path_ok(good[i]));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(moec_sign_path_ok(bad[i]));
    assert_true(moec_sign_path_under("a/b", "."));
    assert_true(moec_sign_path_under("a/b", "a"));
    assert_true(moec_sign_path_under("a/b", "a//"));
    assert_true(moec_sign_path_under("a", "a"));
    assert_false(moec_sign_path_under("ab", "a"));
    assert_false(moec_sign_path_under("b", "a"));
    assert_false(moec_sign_path_under("a", "/"));
    assert_false(moec_sign_path_under("a", ""));
}

static void refuses_statements_of_other_forms(void **state)
{
#define SHARDED(size, name)                                                    \
  STATEMENT(NOTHING, RESOURCE(name, "sha256-sharded-4", NOTHING),              \
            "\"method\":\"shards\",\"shard_size\":" size)
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"[]", "must be an object"},
        {SHARDED("0.5", "a:0:4"), "not a number of bytes"},
        {SHARDED("1.5", "a:0:4"), "not a number of bytes"},
        {SHARDED("1e16", "a:0:4"), "not a number of bytes"},
        {SHARDED("4", "a:0:18446744073709551616"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:0:99999999999999999999"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:00:4"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:0:4x"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:/:4"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:4"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:0:"), "not PATH:BEGIN:END"},
        {SHARDED("4", "a:0:0"), "not PATH:BEGIN:END"},
        {SHARDED("4", "..:0:4"), "not a plain relative path"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_statement s = {0};

        assert_int_equal(moec_statement_decode(&s, cases[i].text,
                                               strlen(cases[i].text), &err),
                         MOEC_E_FORMAT);
        assert_int_equal(err.rule, MOEC_RULE_S05);
        if (!strstr(err.text, cases[i].want))
            fail_msg("%s\n  want '%s': %s", cases[i].text, cases[i].want,
                     err.text);
    }
}

static void refuses_bundles_with_keys_of_others(void **state)
{
#define CHAIN(certificate, more)                                               \
  "{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\","          \
  "\"verificationMaterial\":{\"x509CertificateChain\":{\"certificates\":"      \
  "[" certificate "]" more
#define LIST8(x) x "," x "," x "," x "," x "," x "," x "," x
#define CERT     "{\"rawBytes\":\"AAAA\"}"
    static const struct {
        const char *text, *want;
    } cases[] = {
        {CHAIN(CERT, ",\"x\":1}}}"), "unknown key 'x'"},
        {CHAIN(CERT, "},\"x\":1}}"), "unknown key 'x'"},
        {CHAIN(CERT, "}},\"x\":1}"), "unknown key 'x'"},
        {CHAIN(CERT, "}},\"dsseEnvelope\":{\"x\":1}}"), "unknown key 'x'"},
        {CHAIN("{\"rawBytes\":\"AAAA\",\"x\":1}", "}}}"), "unknown key 'x'"},
        {CHAIN("{\"rawBytes\":\"A*AA\"}", "}}}"), "is not base64"},
        {CHAIN(LIST8(LIST8(CERT)) "," CERT, "}}}"), "certificates, must be"},
        {"{\"mediaType\":\"application/vnd.dev.sigstore.bundle.v0.3+json\","
         "\"verificationMaterial\":{\"publicKey\":{\"x\":1}}}",
         "unknown key 'x'"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_bundle b = {0};

        assert_int_equal(moec_bundle_decode(&b, cases[i].text,
                                            strlen(cases[i].text), "b", &err),
                         MOEC_E_FORMAT);
        if (!strstr(err.text, cases[i].want))
            fail_msg("%s\n  want '%s': %s", cases[i].text, cases[i].want,
                     err.text);
    }
}

static void says_no_to_every_changed_byte_of_a_signature(void **state)
{
    static const char *const curves[] = {"P-256", "P-521"};

    (void)state;
    for (size_t c = 0; c < 2; c++) {
        moec_buf text = {0}, sig = {0}, longer = {0};
        moec_error err = MOEC_ERROR_INIT;
        moec_sign_key *k = NULL;
        bool ok = false;
        world w;

        make_world(&w, curves[c]);
        moec_buf_puts(&text, "text");
        assert_int_equal(moec_sign_key_read(&k, w.key, true, &err), MOEC_OK);
        assert_int_equal(moec_sign_key_sign(k, &text, &sig, &err), MOEC_OK);
        assert_int_equal(moec_sign_key_verify(k, &text, &sig, false, &ok, &err),
                         MOEC_OK);
        assert_true(ok);
        for (size_t i = 0; i < 8 * sig.len; i += c ? 5 : 1) {
            sig.data[i / 8] = (char)(sig.data[i / 8] ^ (1 << i % 8));
            if (moec_sign_key_verify(k, &text, &sig, false, &ok, &err) !=
                MOEC_OK)
                fail_msg("bit %zu: %s", i, err.text);
            assert_false(ok);
            sig.data[i / 8] = (char)(sig.data[i / 8] ^ (1 << i % 8));
        }
        for (size_t n = 0; n < sig.len; n++) {
            size_t whole = sig.len;
            sig.len = n;
            assert_int_equal(
                moec_sign_key_verify(k, &text, &sig, false, &ok, &err),
                MOEC_OK);
            assert_false(ok);
            sig.len = whole;
        }
        moec_buf_append(&longer, sig.data, sig.len);
        moec_buf_append(&longer, "", 1);
        assert_int_equal(
            moec_sign_key_verify(k, &text, &longer, false, &ok, &err), MOEC_OK);
        assert_false(ok);
        moec_buf_fini(&longer);
        moec_buf_fini(&sig);
        moec_buf_fini(&text);
        moec_sign_key_free(k);
        tmpdir_remove(&w.d);
    }
}

static int stop_at_once(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    (void)done;
    (void)total;
    return 1;
}

static void stops_when_asked(void **state)
{
    world w;

    (void)state;
    make_world(&w, "P-256");
    sign_world(&w);
    w.opts.progress = stop_at_once;
    w.opts.n_threads = 1;
    expect(&w, MOEC_E_CANCELLED, MOEC_RULE_NONE);
    tmpdir_remove(&w.d);
}

/* The n-th allocation of the library fails, for every n. */
static void survives_every_failed_allocation(void **state)
{
    moec_signature_stats stats;
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = MOEC_E_NOMEM;
    world w;

    (void)state;
    make_world(&w, "P-256");
    w.sign.n_threads = 1;
    w.opts.n_threads = 1;
    for (uint64_t n = 1; st != MOEC_OK; n++) {
        assert_true(n < 1000);
        memset(&err, 0, sizeof(err));
        (void)moec_alloc_fail_at(n);
        st = moec_sign(w.model, &w.sign, &stats, &err);
        (void)moec_alloc_fail_at(0);
        assert_true(st == MOEC_OK || err.status == MOEC_E_NOMEM);
    }
    st = MOEC_E_NOMEM;
    for (uint64_t n = 1; st != MOEC_OK; n++) {
        assert_true(n < 1000);
        memset(&err, 0, sizeof(err));
        (void)moec_alloc_fail_at(n);
        st = moec_signature_verify(w.model, &w.opts, &stats, &err);
        (void)moec_alloc_fail_at(0);
        assert_true(st == MOEC_OK || err.status == MOEC_E_NOMEM);
    }
    tmpdir_remove(&w.d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_what_model_signing_wrote),
        cmocka_unit_test(refuses_other_keys_and_roots),
        cmocka_unit_test(signs_with_every_curve),
        cmocka_unit_test(names_what_is_not_as_signed),
        cmocka_unit_test(refuses_what_is_no_file),
        cmocka_unit_test(writes_a_signature_whole_or_not_at_all),
        cmocka_unit_test(refuses_keys_that_cannot_sign),
        cmocka_unit_test(checks_one_file_without_reading_the_rest),
        cmocka_unit_test(refuses_statements_that_two_readers_read_differently),
        cmocka_unit_test(refuses_shards_with_gaps),
        cmocka_unit_test(does_not_claim_other_digests),
        cmocka_unit_test(refuses_bundles_it_does_not_understand),
        cmocka_unit_test(spells_bytes_as_python_does),
        cmocka_unit_test(orders_paths_part_by_part),
        cmocka_unit_test(nothing_signed_is_spelt_too),
        cmocka_unit_test(tells_paths_that_are_plain_and_what_is_below),
        cmocka_unit_test(refuses_statements_of_other_forms),
        cmocka_unit_test(refuses_bundles_with_keys_of_others),
        cmocka_unit_test(says_no_to_every_changed_byte_of_a_signature),
        cmocka_unit_test(stops_when_asked),
        cmocka_unit_test(survives_every_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
