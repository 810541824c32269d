/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: a signature: the bundle and the statement in it, and statements
 * by themselves, because the mutator cannot reach through base64. Its root
 * digest is mended after each mutation, or nothing behind it would be reached.
 * What is accepted must be sorted, plain, found again, and written and read as
 * the same.
 */

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "sign_parts.h"

#ifdef MOEC_LIBFUZZER
static size_t mend_root(uint8_t *data, size_t n, size_t max);
#  define MOEC_MUTATION_MEND(data, n, max) mend_root(data, n, max)
#endif
#include "json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

#ifdef MOEC_LIBFUZZER
static size_t mend_root(uint8_t *data, size_t n, size_t max)
{
    json_t *top = json_loadb((const char *)data, n, 0, NULL);
    json_t *list =
        json_object_get(json_object_get(top, "predicate"), "resources");
    json_t *subject = json_array_get(json_object_get(top, "subject"), 0);
    moec_buf all = {0};
    moec_sha256 root;
    char hex[65], *text;

    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *d = json_string_value(
            json_object_get(json_array_get(list, i), "digest"));
        uint8_t raw[32];
        if (d && moec_unhex(d, raw, 32))
            moec_buf_append(&all, raw, 32);
    }
    if (subject && moec_sha256_of(all.data, all.len, &root, NULL) == MOEC_OK) {
        moec_hex(root.b, 32, hex);
        json_object_set_new(subject, "digest",
                            json_pack("{ss}", "sha256", hex));
        text = json_dumps(top, JSON_COMPACT);
        if (text && strlen(text) <= max) {
            n = strlen(text);
            memcpy(data, text, n);
        }
        free(text);
    }
    moec_buf_fini(&all);
    json_decref(top);
    return n;
}
#endif

static void check(const moec_statement *s)
{
    moec_statement again = {0};
    moec_buf text = {0};
    size_t n = 0;

    for (size_t i = 0; i < s->n_items; i++) {
        const moec_sign_item *item = &s->items[i];

        MUST(moec_sign_path_ok(item->path) && item->begin < item->end);
        MUST(i == 0 || moec_sign_path_cmp(item[-1].path, item->path) <
                           (s->shard_bytes != 0));
        MUST(moec_statement_find(s, item->path, &n) <= item && n > 0);
        MUST(s->shard_bytes != 0 || n == 1);
    }
    if (s->shard_bytes == 0) {
        MUST(moec_statement_encode(s, "m", &text, NULL) == MOEC_OK);
        MUST(moec_statement_decode(&again, text.data, text.len, NULL) ==
             MOEC_OK);
        MUST(again.n_items == s->n_items && again.n_ignored == s->n_ignored);
        for (size_t i = 0; i < s->n_items; i++)
            MUST(strcmp(again.items[i].path, s->items[i].path) == 0);
    }
    moec_statement_fini(&again);
    moec_buf_fini(&text);
}

static void read_statement(const char *text, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_statement s = {0};
    moec_status st = moec_statement_decode(&s, text, n, &err);

    if (st == MOEC_OK)
        check(&s);
    else
        MUST(err.status == st && err.text[0] != '\0');
    moec_statement_fini(&s);
}

static bool same(const moec_buf *a, const moec_buf *b)
{
    return a->len == b->len &&
           (a->len == 0 || !memcmp(a->data, b->data, a->len));
}

static void check_bundle(const moec_bundle *b)
{
    moec_bundle again = {0};
    moec_buf text = {0}, pae = {0};

    moec_bundle_encode(b, &text);
    MUST(moec_bundle_decode(&again, text.data, text.len, "again", NULL) ==
         MOEC_OK);
    MUST(same(&again.payload, &b->payload) && same(&again.sig, &b->sig) &&
         again.n_certs == b->n_certs);
    MUST(moec_bundle_pae(b, false, &pae, NULL) == MOEC_OK);
    MUST(moec_bundle_pae(b, true, &pae, NULL) == MOEC_OK);
    moec_buf_fini(&pae);
    moec_buf_fini(&text);
    moec_bundle_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_bundle b = {0};
    moec_status st =
        moec_bundle_decode(&b, (const char *)data, n, "fuzz", &err);

    if (st == MOEC_OK) {
        check_bundle(&b);
        read_statement(b.payload.data, b.payload.len);
    } else {
        MUST(err.status == st && err.text[0] != '\0');
    }
    moec_bundle_fini(&b);
    read_statement((const char *)data, n);
    return 0;
}
