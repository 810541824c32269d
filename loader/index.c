/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The reader of index files. Refuses text that is not one strict JSON object
 * (I09), duplicate keys at any depth (I10), anything but strings in the map
 * (I07), and shard names that are more than a plain file name (I05) or name a
 * pickle (I02). Whether the shards agree is ckpt.c's question.
 */

#include "index.h"

#include <inttypes.h>
#include <string.h>

#include "jsonscan.h"

/* Small enough to stay in a core's cache between the read and the parse. */
#define WINDOW_BYTES        (UINT64_C(1) << 18)
#define ENTRY_BYTES         96  /* of an entry of the map, from real indices */
#define FILE_NAME_BYTES_MAX 255 /* NAME_MAX of Linux */

typedef struct parser {
    moec_jsonscan js;
    moec_index_mode mode;
    moec_index_fn fn;
    void *ctx;
    moec_index_facts facts;
    moec_keyset names; /* of the map; empty where mode is TRUSTING */
    uint64_t names_serial;
    /* source */
    int fd;
    uint64_t next, limit;
    unsigned char *window;
    char tensor[MOEC_NAME_BYTES_MAX];
    char file[FILE_NAME_BYTES_MAX]; /* of the entry before */
    size_t file_bytes;
} parser;

static moec_status MOEC_PRINTF(4, 5)
    refuse(parser *p, moec_rule rule, uint64_t at, const char *fmt, ...)
{
    char why[256];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    return moec_fail_at(p->js.err, MOEC_E_FORMAT, rule, at,
                        "%s: byte %" PRIu64 ": %s", p->js.name, at, why);
}

static bool ends_with(const moec_js_text *t, const char *tail)
{
    size_t n = strlen(tail);

    return t->len >= n && memcmp(t->s + t->len - n, tail, n) == 0;
}

/* H08, H22, I10. */
static moec_status check_tensor(parser *p, const moec_js_text *t, uint64_t at)
{
    moec_siphash h;
    bool existed = false;

    if (t->has_nul)
        return refuse(p, MOEC_RULE_H08, at,
                      "a tensor's name holds an escaped NUL");
    if (t->len == 0 || t->len > MOEC_NAME_BYTES_MAX)
        return refuse(p, MOEC_RULE_H22, at,
                      "a tensor's name of %" PRIu64 " bytes, outside 1 to %d",
                      t->len, MOEC_NAME_BYTES_MAX);
    if (p->facts.n_tensors >= MOEC_INDEX_TENSORS_MAX)
        return refuse(p, MOEC_RULE_I04, at, "more than %u tensors",
                      MOEC_INDEX_TENSORS_MAX);
    if (p->mode == MOEC_INDEX_TRUSTING)
        return MOEC_OK;
    moec_keyset_begin(&p->names, &h, p->names_serial);
    moec_siphash_add(&h, t->s, (size_t)t->len);
    MOEC_TRY(moec_keyset_end(&p->names, &h, &existed, p->js.err));
    if (existed)
        return refuse(p, MOEC_RULE_I10, at, "tensor '%.*s' a second time",
                      (int)t->len, t->s);
    return MOEC_OK;
}

/* I05, I02. */
static moec_status check_file(parser *p, const moec_js_text *t, uint64_t at)
{
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".gguf"};
    int shown = (int)moec_min_u64(t->len, 128);

    if (t->has_nul || t->len > FILE_NAME_BYTES_MAX || t->len == 0 ||
        memchr(t->s, '/', (size_t)t->len) != NULL ||
        moec_js_text_is(t, ".", 1) || moec_js_text_is(t, "..", 2))
        return refuse(p, MOEC_RULE_I05, at,
                      "shard '%.*s' is not a plain file name", shown, t->s);
    for (size_t i = 0; i < sizeof(pickles) / sizeof(*pickles); i++) {
        if (ends_with(t, pickles[i]))
            return refuse(p, MOEC_RULE_I02, at,
                          "shard '%.*s' is not safetensors", shown, t->s);
    }
    return MOEC_OK;
}

static const unsigned char *skip_space(const unsigned char *p,
                                       const unsigned char *end)
{
    while (p < end && (*p == ' ' || *p == '\n'))
        p++;
    return p;
}

/* The string at `p`, where it is plain and ends in the window; NULL else. */
static const unsigned char *plain_string(const unsigned char *p,
                                         const unsigned char *end,
                                         const char **s_out, size_t *n_out)
{
    if (p == end || *p != '"')
        return NULL;
    *s_out = (const char *)++p;
    p = moec_js_plain_run(p, end);
    if (p == end || *p != '"')
        return NULL;
    *n_out = (size_t)(p - (const unsigned char *)*s_out);
    return p + 1;
}

/* The entries behind one, with their commas, while they are of the usual form:
 * plain strings, their file that of the entry before, which was looked at. All
 * else, right or wrong, is left where it is, for read_entry. */
static moec_status read_usual(parser *p)
{
    moec_jsonscan *js = &p->js;
    moec_index_entry e;

    for (;;) {
        const unsigned char *s = skip_space(js->p, js->end);
        moec_js_text t;

        if (s == js->end || *s != ',')
            return MOEC_OK;
        s = skip_space(s + 1, js->end);
        e.off = js->base + (uint64_t)(s - js->start);
        s = plain_string(s, js->end, &e.tensor, &e.tensor_bytes);
        if (s == NULL || s == js->end || *s != ':')
            return MOEC_OK;
        s = plain_string(skip_space(s + 1, js->end), js->end, &e.file,
                         &e.file_bytes);
        if (s == NULL || e.file_bytes != p->file_bytes ||
            memcmp(e.file, p->file, e.file_bytes) != 0)
            return MOEC_OK;
        t = (moec_js_text){.s = e.tensor, .len = e.tensor_bytes};
        MOEC_TRY(check_tensor(p, &t, e.off));
        js->p = s;
        p->facts.n_tensors++;
        MOEC_TRY(p->fn(p->ctx, &e, js->err));
    }
}

/* One "tensor": "file" of the map. */
static moec_status read_entry(parser *p)
{
    moec_js_text tensor = {.buf = p->tensor, .cap = sizeof(p->tensor)};
    moec_js_text file = {.buf = p->file, .cap = sizeof(p->file)};
    moec_index_entry entry;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    entry.off = moec_js_pos(&p->js);
    MOEC_TRY(moec_js_string(&p->js, &tensor));
    MOEC_TRY(check_tensor(p, &tensor, entry.off));
    if (tensor.s != p->tensor) { /* the window may move before the file */
        memcpy(p->tensor, tensor.s, (size_t)tensor.len);
        tensor.s = p->tensor;
    }
    MOEC_TRY(moec_js_expect(&p->js, ':'));
    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '"') {
        MOEC_TRY(moec_js_skip(&p->js));
        return refuse(p, MOEC_RULE_I07, entry.off,
                      "the file of tensor '%.*s' is not a string",
                      (int)tensor.len, tensor.s);
    }
    MOEC_TRY(moec_js_string(&p->js, &file));
    MOEC_TRY(check_file(p, &file, entry.off));
    if (file.s != p->file)
        memcpy(p->file, file.s, (size_t)file.len);
    p->file_bytes = (size_t)file.len;
    p->facts.n_tensors++;
    entry.tensor = tensor.s;
    entry.tensor_bytes = (size_t)tensor.len;
    entry.file = file.s;
    entry.file_bytes = (size_t)file.len;
    return p->fn(p->ctx, &entry, p->js.err);
}

static moec_status read_map(parser *p)
{
    bool more = true, first = true;
    uint64_t at;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    at = moec_js_pos(&p->js);
    if (c != '{') {
        MOEC_TRY(moec_js_skip(&p->js));
        return refuse(p, MOEC_RULE_I07, at, "weight_map is not an object");
    }
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_entry(p));
        MOEC_TRY(read_usual(p));
    }
    moec_js_leave(&p->js);
    if (p->facts.n_tensors == 0)
        return refuse(p, MOEC_RULE_I09, at, "weight_map is empty");
    return MOEC_OK;
}

/* total_size is advice: a value of another kind is remembered, not refused. */
static moec_status read_total(parser *p)
{
    int c;

    p->facts.has_total = true;
    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c == '-' || (c >= '0' && c <= '9'))
        return moec_js_number(&p->js, &p->facts.total_bytes,
                              &p->facts.total_is_number);
    return moec_js_skip(&p->js);
}

/* A key of the top level or of metadata: refused where it is there already,
 * and given to the caller. */
static moec_status read_key(parser *p, uint64_t serial, moec_js_text *t)
{
    moec_siphash h;
    bool existed = false;
    uint64_t at;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    at = moec_js_pos(&p->js);
    MOEC_TRY(moec_js_string(&p->js, t));
    moec_keyset_begin(&p->js.keys, &h, serial);
    moec_siphash_add(&h, t->s, (size_t)moec_min_u64(t->len, t->cap));
    moec_siphash_add(&h, &t->len, sizeof(t->len));
    MOEC_TRY(moec_keyset_end(&p->js.keys, &h, &existed, p->js.err));
    if (existed)
        return refuse(p, MOEC_RULE_I10, at, "key '%.*s' a second time",
                      (int)moec_min_u64(t->len, 128), t->s);
    if (p->js.keys.n > p->js.n_keys_max)
        return refuse(p, MOEC_RULE_I04, at, "more than %u keys",
                      p->js.n_keys_max);
    return MOEC_OK;
}

static moec_status read_metadata(parser *p)
{
    uint64_t serial = moec_keyset_open(&p->js.keys);
    bool more = true, first = true;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '{')
        return moec_js_skip(&p->js);
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        moec_js_text t = {.buf = p->tensor, .cap = sizeof(p->tensor)};
        bool total;
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_key(p, serial, &t));
        total = moec_js_text_is(&t, "total_size", 10);
        MOEC_TRY(moec_js_expect(&p->js, ':'));
        MOEC_TRY(total ? read_total(p) : moec_js_skip(&p->js));
    }
    moec_js_leave(&p->js);
    return MOEC_OK;
}

static moec_status read_member(parser *p, uint64_t serial, bool *has_map)
{
    moec_js_text t = {.buf = p->tensor, .cap = sizeof(p->tensor)};
    bool map, metadata;

    MOEC_TRY(read_key(p, serial, &t));
    map = moec_js_text_is(&t, "weight_map", 10);
    metadata = moec_js_text_is(&t, "metadata", 8);
    MOEC_TRY(moec_js_expect(&p->js, ':'));
    *has_map = *has_map || map;
    if (map)
        return read_map(p);
    return metadata ? read_metadata(p) : moec_js_skip(&p->js);
}

static moec_status read_object(parser *p)
{
    uint64_t serial = moec_keyset_open(&p->js.keys);
    bool more = true, first = true, has_map = false;
    int c;

    p->names_serial = moec_keyset_open(&p->names);
    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '{')
        return moec_js_fail(&p->js, MOEC_RULE_I09,
                            "the index is not a JSON object");
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_member(p, serial, &has_map));
    }
    moec_js_leave(&p->js);
    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c >= 0)
        return moec_js_fail(&p->js, MOEC_RULE_I09,
                            "something follows the index's object");
    if (!has_map)
        return refuse(p, MOEC_RULE_I09, moec_js_pos(&p->js),
                      "the index has no weight_map");
    return MOEC_OK;
}

static moec_status refill(void *ctx, const void **data_out, size_t *n_out,
                          moec_error *err)
{
    parser *p = ctx;
    size_t n = (size_t)moec_min_u64(p->limit - p->next, WINDOW_BYTES);

    *n_out = n;
    if (n == 0)
        return MOEC_OK;
    MOEC_TRY(moec_pread_full(p->fd, p->js.name, p->window, n, p->next, err));
    p->next += n;
    *data_out = p->window;
    return MOEC_OK;
}

static void parser_init(parser *p, const char *name, moec_index_mode mode,
                        moec_index_fn fn, void *ctx, moec_error *err)
{
    memset(p, 0, sizeof(*p));
    p->mode = mode;
    p->fn = fn;
    p->ctx = ctx;
    p->fd = -1;
    p->js.name = name;
    p->js.err = err;
    p->js.n_keys_max = MOEC_JSON_KEYS_MAX;
    p->js.json = p->js.utf8 = p->js.too_deep = MOEC_RULE_I09;
    p->js.duplicate = MOEC_RULE_I10;
    p->js.too_many_keys = MOEC_RULE_I04;
}

static moec_status parser_run(parser *p, moec_index_facts *out)
{
    moec_status st = read_object(p);

    moec_js_fini(&p->js);
    moec_keyset_fini(&p->names);
    if (st == MOEC_OK)
        *out = p->facts;
    return st;
}

static moec_status too_large(const char *name, uint64_t bytes, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                     "%s: %" PRIu64 " bytes, the limit is %" PRIu64, name,
                     bytes, MOEC_INDEX_BYTES_MAX);
}

moec_status moec_index_read(int fd, uint64_t bytes, const char *name,
                            moec_index_mode mode, moec_index_fn fn, void *ctx,
                            moec_index_facts *out, moec_error *err)
{
    parser p;
    moec_status st;

    if (bytes > MOEC_INDEX_BYTES_MAX)
        return too_large(name, bytes, err);
    parser_init(&p, name, mode, fn, ctx, err);
    p.names.expect = (size_t)(bytes / ENTRY_BYTES);
    p.fd = fd;
    p.limit = bytes;
    p.js.refill = refill;
    p.js.ctx = &p;
    p.window = moec_alloc((size_t)moec_min_u64(bytes, WINDOW_BYTES));
    if (p.window == NULL)
        return moec_fail_nomem(err, "a window on the index");
    st = parser_run(&p, out);
    moec_free(p.window);
    return st;
}

moec_status moec_index_parse(const void *data, size_t n, const char *name,
                             moec_index_mode mode, moec_index_fn fn, void *ctx,
                             moec_index_facts *out, moec_error *err)
{
    parser p;

    if (n > MOEC_INDEX_BYTES_MAX)
        return too_large(name, n, err);
    parser_init(&p, name, mode, fn, ctx, err);
    p.js.start = data;
    p.js.p = p.js.start;
    p.js.end = p.js.start + n;
    return parser_run(&p, out);
}
