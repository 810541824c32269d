/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: the pickle that torch.save writes for a tensor, or for a dict,
 *   a list or a tuple of tensors, read as data. A pickle is a program for a
 *   stack machine, and one of its instructions calls any Python function by
 *   its name. This reader has no such instruction: it knows the two dozen that
 *   torch's own pickles of plain tensors are made of (disassembled from torch
 *   2.13), and of the names it knows seven, none of which it calls:
 *     torch._utils._rebuild_tensor_v2   becomes a tensor's description
 *     torch.{Long,Int,Short,Char,Byte}Storage
 *     collections.OrderedDict           the empty hooks of a tensor
 * Refuses (UNSUPPORTED P01): every other name, opcode and shape of data, with
 *   the name. Tensors that leave their storage are FORMAT.
 */

#include <inttypes.h>
#include <string.h>

#include "placement_rows.h"

enum { STACK_MAX = 256, MEMO_MAX = 1024, CELLS_MAX = 1024, TENSORS_MAX = 8 };

typedef enum kind {
    KIND_MARK,
    KIND_NONE,
    KIND_BOOL,
    KIND_INT,
    KIND_TEXT,
    KIND_GLOBAL,
    KIND_TUPLE,
    KIND_CONTAINER, /* the one dict or list of a file */
    KIND_STORAGE,
    KIND_TENSOR,
    KIND_HOOKS
} kind;

typedef struct item {
    kind kind;
    int64_t v;        /* INT; index of GLOBAL, STORAGE, TENSOR */
    const char *text; /* TEXT, not terminated */
    size_t n;         /* bytes of TEXT, items of TUPLE */
    size_t first;     /* TUPLE: cells[first ..] */
} item;

typedef struct global {
    const char *module, *name;
    uint32_t bytes; /* of a storage's element; 0: no storage */
    bool is_signed;
} global;

static const global globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", 0, false},
    {"collections", "OrderedDict", 0, false},
    {"torch", "LongStorage", 8, true},
    {"torch", "IntStorage", 4, true},
    {"torch", "ShortStorage", 2, true},
    {"torch", "CharStorage", 1, true},
    {"torch", "ByteStorage", 1, false},
};
enum { GLOBAL_REBUILD = 0, GLOBAL_ORDERED = 1, N_GLOBALS = 7 };

typedef struct storage {
    int64_t global; /* which of the storages */
    const char *key;
    size_t key_bytes;
    int64_t n;
} storage;

typedef struct tensor {
    storage storage;
    int64_t off;
    uint32_t n_dims;
    int64_t shape[MOEC_ARRAY_DIMS], stride[MOEC_ARRAY_DIMS];
} tensor;

typedef struct entry {
    const char *key;
    size_t key_bytes; /* SIZE_MAX: of a list */
    int64_t tensor;
} entry;

typedef struct machine {
    const char *file;
    const unsigned char *at, *end;
    item stack[STACK_MAX];
    size_t depth;
    item memo[MEMO_MAX];
    bool known[MEMO_MAX];
    item cells[CELLS_MAX];
    size_t n_cells;
    storage storages[TENSORS_MAX];
    size_t n_storages;
    tensor tensors[TENSORS_MAX];
    size_t n_tensors;
    entry entries[TENSORS_MAX];
    size_t n_entries;
    bool has_container, is_dict, done;
} machine;

static moec_status refuse(const machine *m, const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01,
                     "%s: the pickle %s: only plain integer tensors are read, "
                     "and no code is run; write JSON instead "
                     "({\"physical_to_logical_map\": t.tolist()})",
                     m->file, what);
}

/* -------------------------------------------------------------- pieces */

static bool get(machine *m, size_t n, const unsigned char **out)
{
    if ((size_t)(m->end - m->at) < n)
        return false;
    *out = m->at;
    m->at += n;
    return true;
}

/* A little-endian integer of 1, 2, 4 or 8 bytes. */
static int64_t int_element(const unsigned char *p, uint32_t bytes,
                           bool is_signed)
{
    uint64_t v = 0;

    for (uint32_t i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    if (is_signed && bytes < 8 && (v >> (8 * bytes - 1)) != 0)
        v |= ~UINT64_C(0) << (8 * bytes);
    return (int64_t)v;
}

static moec_status push(machine *m, item x, moec_error *err)
{
    if (m->depth == STACK_MAX)
        return refuse(m, "is nested too deeply", err);
    m->stack[m->depth++] = x;
    return MOEC_OK;
}

static moec_status push_int(machine *m, int64_t v, moec_error *err)
{
    return push(m, (item){.kind = KIND_INT, .v = v}, err);
}

/* The top `n` items, none of them a mark. */
static bool top(const machine *m, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (m->depth <= i || m->stack[m->depth - 1 - i].kind == KIND_MARK)
            return false;
    }
    return true;
}

/* Items above the last mark, which goes. */
static bool above_mark(machine *m, size_t *first)
{
    for (size_t i = m->depth; i-- > 0;) {
        if (m->stack[i].kind == KIND_MARK) {
            *first = i + 1;
            return true;
        }
    }
    return false;
}

/* A tuple of stack[first ..] in place of them. */
static moec_status make_tuple(machine *m, size_t first, size_t bottom,
                              moec_error *err)
{
    item x = {.kind = KIND_TUPLE, .n = m->depth - first, .first = m->n_cells};

    if (x.n > CELLS_MAX - m->n_cells)
        return refuse(m, "has too many values", err);
    memcpy(m->cells + m->n_cells, m->stack + first, x.n * sizeof(item));
    m->n_cells += x.n;
    m->depth = bottom;
    return push(m, x, err);
}

static bool text_is(const item *x, const char *word)
{
    return x->kind == KIND_TEXT && x->n == strlen(word) &&
           memcmp(x->text, word, x->n) == 0;
}

/* --------------------------------------------------- what torch means */

static bool take_line(machine *m, const char **out, size_t *n)
{
    const unsigned char *nl = memchr(m->at, '\n', (size_t)(m->end - m->at));

    if (!nl)
        return false;
    *out = (const char *)m->at;
    *n = (size_t)(nl - m->at);
    m->at = nl + 1;
    return true;
}

static bool same(const char *s, size_t n, const char *word)
{
    return n == strlen(word) && memcmp(s, word, n) == 0;
}

static moec_status op_global(machine *m, moec_error *err)
{
    const char *module, *name;
    size_t module_bytes, name_bytes;
    char what[160];

    if (!take_line(m, &module, &module_bytes) ||
        !take_line(m, &name, &name_bytes))
        return refuse(m, "ends early", err);
    for (int i = 0; i < N_GLOBALS; i++) {
        if (same(module, module_bytes, globals[i].module) &&
            same(name, name_bytes, globals[i].name))
            return push(m, (item){.kind = KIND_GLOBAL, .v = i}, err);
    }
    snprintf(what, sizeof(what), "names %.*s.%.*s",
             (int)moec_min_u64(module_bytes, 60), module,
             (int)moec_min_u64(name_bytes, 60), name);
    return refuse(m, what, err);
}

/* ('storage', torch.LongStorage, '0', 'cpu', n) */
static moec_status op_persid(machine *m, moec_error *err)
{
    item t = top(m, 1) ? m->stack[m->depth - 1] : (item){0};
    const item *c = m->cells + t.first;

    if (t.kind != KIND_TUPLE || t.n != 5 || !text_is(&c[0], "storage") ||
        c[1].kind != KIND_GLOBAL || globals[c[1].v].bytes == 0 ||
        c[2].kind != KIND_TEXT || c[2].n > 32 || c[3].kind != KIND_TEXT ||
        c[4].kind != KIND_INT || c[4].v < 0)
        return refuse(m, "has a storage of another form", err);
    if (m->n_storages == TENSORS_MAX)
        return refuse(m, "has too many storages", err);
    m->storages[m->n_storages] = (storage){
        .global = c[1].v, .key = c[2].text, .key_bytes = c[2].n, .n = c[4].v};
    m->stack[m->depth - 1] =
        (item){.kind = KIND_STORAGE, .v = (int64_t)m->n_storages++};
    return MOEC_OK;
}

static bool take_sizes(const machine *m, const item *t, int64_t *out,
                       uint32_t *n)
{
    if (t->kind != KIND_TUPLE || t->n == 0 || t->n > MOEC_ARRAY_DIMS)
        return false;
    for (size_t i = 0; i < t->n; i++) {
        const item *c = &m->cells[t->first + i];

        if (c->kind != KIND_INT || c->v < 0)
            return false;
        out[i] = c->v;
    }
    *n = (uint32_t)t->n;
    return true;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks) */
static moec_status rebuild(machine *m, const item *args, moec_error *err)
{
    const item *c = m->cells + args->first;
    tensor t = {0};
    uint32_t n_strides = 0;

    if (args->n != 6 || c[0].kind != KIND_STORAGE || c[1].kind != KIND_INT ||
        c[1].v < 0 || !take_sizes(m, &c[2], t.shape, &t.n_dims) ||
        !take_sizes(m, &c[3], t.stride, &n_strides) || n_strides != t.n_dims ||
        c[4].kind != KIND_BOOL || c[5].kind != KIND_HOOKS)
        return refuse(m, "has a tensor of another form", err);
    if (m->n_tensors == TENSORS_MAX)
        return refuse(m, "has too many tensors", err);
    t.storage = m->storages[c[0].v];
    t.off = c[1].v;
    m->tensors[m->n_tensors] = t;
    return push(m, (item){.kind = KIND_TENSOR, .v = (int64_t)m->n_tensors++},
                err);
}

static moec_status op_reduce(machine *m, moec_error *err)
{
    if (!top(m, 2))
        return refuse(m, "is damaged", err);
    item args = m->stack[m->depth - 1], fn = m->stack[m->depth - 2];

    m->depth -= 2;
    if (fn.kind == KIND_GLOBAL && args.kind == KIND_TUPLE) {
        if (fn.v == GLOBAL_REBUILD)
            return rebuild(m, &args, err);
        if (fn.v == GLOBAL_ORDERED && args.n == 0)
            return push(m, (item){.kind = KIND_HOOKS}, err);
    }
    return refuse(m, "calls something", err);
}

/* --------------------------------------------------- dict, list, memo */

static moec_status op_container(machine *m, bool is_dict, moec_error *err)
{
    if (m->has_container)
        return refuse(m, "has lists or dicts inside others", err);
    m->has_container = true;
    m->is_dict = is_dict;
    return push(m, (item){.kind = KIND_CONTAINER}, err);
}

static moec_status add_entry(machine *m, const item *key, const item *value,
                             moec_error *err)
{
    char what[96];

    if (key && key->kind != KIND_TEXT)
        return refuse(m, "has a key that is no string", err);
    if (value->kind != KIND_TENSOR) {
        snprintf(what, sizeof(what),
                 "has a value under '%.*s' that is no "
                 "tensor",
                 key ? (int)moec_min_u64(key->n, 40) : 0, key ? key->text : "");
        return refuse(m, what, err);
    }
    if (m->n_entries == TENSORS_MAX)
        return refuse(m, "has too many tensors", err);
    m->entries[m->n_entries++] =
        (entry){key ? key->text : "", key ? key->n : SIZE_MAX, value->v};
    return MOEC_OK;
}

/* Take stack[first ..] into the container below; `bottom` is the depth that
 * leaves the container on top. */
static moec_status fill(machine *m, size_t first, size_t bottom, bool is_dict,
                        moec_error *err)
{
    size_t step = is_dict ? 2 : 1;

    if (bottom == 0 || m->stack[bottom - 1].kind != KIND_CONTAINER ||
        m->is_dict != is_dict || (m->depth - first) % step != 0)
        return refuse(m, "is damaged", err);
    for (size_t i = first; i < m->depth; i += step)
        MOEC_TRY(add_entry(m, is_dict ? &m->stack[i] : NULL,
                           &m->stack[i + step - 1], err));
    m->depth = bottom;
    return MOEC_OK;
}

static moec_status op_fill_marked(machine *m, bool is_dict, moec_error *err)
{
    size_t first;

    if (!above_mark(m, &first))
        return refuse(m, "is damaged", err);
    return fill(m, first, first - 1, is_dict, err);
}

static moec_status op_fill_one(machine *m, bool is_dict, moec_error *err)
{
    size_t n = is_dict ? 2 : 1;

    if (!top(m, n + 1))
        return refuse(m, "is damaged", err);
    return fill(m, m->depth - n, m->depth - n, is_dict, err);
}

static moec_status op_put(machine *m, uint32_t i, moec_error *err)
{
    if (!top(m, 1) || i >= MEMO_MAX)
        return refuse(m, "is damaged", err);
    m->memo[i] = m->stack[m->depth - 1];
    m->known[i] = true;
    return MOEC_OK;
}

static moec_status op_get(machine *m, uint32_t i, moec_error *err)
{
    if (i >= MEMO_MAX || !m->known[i])
        return refuse(m, "is damaged", err);
    return push(m, m->memo[i], err);
}

/* ------------------------------------------------------------- opcodes */

static moec_status op_text(machine *m, uint32_t n, moec_error *err)
{
    const unsigned char *p;

    if (!get(m, n, &p))
        return refuse(m, "ends early", err);
    return push(m, (item){.kind = KIND_TEXT, .text = (const char *)p, .n = n},
                err);
}

static moec_status op_tuple(machine *m, unsigned char op, moec_error *err)
{
    size_t n = (size_t)(op - 0x84), first;

    if (op != 't') {
        if (!top(m, n))
            return refuse(m, "is damaged", err);
        return make_tuple(m, m->depth - n, m->depth - n, err);
    }
    if (!above_mark(m, &first))
        return refuse(m, "is damaged", err);
    return make_tuple(m, first, first - 1, err);
}

/* Opcodes with a number of `bytes` behind them. */
static moec_status op_number(machine *m, unsigned char op, uint32_t bytes,
                             moec_error *err)
{
    const unsigned char *p;

    if (!get(m, bytes, &p))
        return refuse(m, "ends early", err);
    uint32_t v = (uint32_t)int_element(p, bytes, false);

    switch (op) {
    case 'J': /* BININT, signed */
        return push_int(m, (int32_t)v, err);
    case 'K': /* BININT1 */
    case 'M': /* BININT2 */
        return push_int(m, v, err);
    case 'q': /* BINPUT */
    case 'r': /* LONG_BINPUT */
        return op_put(m, v, err);
    case 'h': /* BINGET */
    case 'j': /* LONG_BINGET */
        return op_get(m, v, err);
    case 'X': /* BINUNICODE */
        return op_text(m, v, err);
    default: /* PROTO */
        return v == 2 ? MOEC_OK : refuse(m, "is not of protocol 2", err);
    }
}

static moec_status op_long1(machine *m, moec_error *err)
{
    const unsigned char *n, *p;

    if (!get(m, 1, &n) || (*n != 1 && *n != 2 && *n != 4 && *n != 8) ||
        !get(m, *n, &p))
        return refuse(m, "has a number too long", err);
    return push_int(m, int_element(p, *n, true), err);
}

static moec_status step(machine *m, unsigned char op, moec_error *err)
{
    char what[48];

    switch (op) {
    case 0x80: /* PROTO */
    case 'K':
    case 'q':
    case 'h':
        return op_number(m, op, 1, err);
    case 'M':
        return op_number(m, op, 2, err);
    case 'J':
    case 'r':
    case 'j':
    case 'X':
        return op_number(m, op, 4, err);
    case 0x8a:
        return op_long1(m, err);
    case '}': /* EMPTY_DICT */
    case ']': /* EMPTY_LIST */
        return op_container(m, op == '}', err);
    case '(':
        return push(m, (item){.kind = KIND_MARK}, err);
    case ')': /* EMPTY_TUPLE */
        return push(m, (item){.kind = KIND_TUPLE, .first = 0}, err);
    case 't':
    case 0x85: /* TUPLE1 .. TUPLE3 */
    case 0x86:
    case 0x87:
        return op_tuple(m, op, err);
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push(m, (item){.kind = KIND_BOOL, .v = op == 0x88}, err);
    case 'N':
        return push(m, (item){.kind = KIND_NONE}, err);
    case 'c':
        return op_global(m, err);
    case 'Q':
        return op_persid(m, err);
    case 'R':
        return op_reduce(m, err);
    case 's': /* SETITEM */
    case 'a': /* APPEND */
        return op_fill_one(m, op == 's', err);
    case 'u': /* SETITEMS */
    case 'e': /* APPENDS */
        return op_fill_marked(m, op == 'u', err);
    case '.':
        m->done = true;
        return MOEC_OK;
    default:
        snprintf(what, sizeof(what), "has the opcode 0x%02x", op);
        return refuse(m, what, err);
    }
}

/* -------------------------------------------------------------- tensors */

static moec_status fail_tensor(const machine *m, const char *name,
                               const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01, "%s: tensor '%s' %s",
                     m->file, name, what);
}

/* Last element that the tensor reaches, or false where it leaves int64. */
static bool last_element(const tensor *t, int64_t *out)
{
    int64_t last = t->off, part;

    for (uint32_t d = 0; d < t->n_dims; d++) {
        if (t->shape[d] == 0 ||
            __builtin_mul_overflow(t->shape[d] - 1, t->stride[d], &part) ||
            __builtin_add_overflow(last, part, &last))
            return false;
    }
    *out = last;
    return true;
}

static void copy_elements(moec_int_array *x, const tensor *t,
                          const unsigned char *data)
{
    const global *g = &globals[t->storage.global];
    uint64_t at[MOEC_ARRAY_DIMS] = {0};

    for (size_t i = 0; i < x->n; i++) {
        uint64_t e = (uint64_t)t->off;

        for (uint32_t d = 0; d < t->n_dims; d++)
            e += at[d] * (uint64_t)t->stride[d];
        x->v[i] = int_element(data + e * g->bytes, g->bytes, g->is_signed);
        for (uint32_t d = t->n_dims; d-- > 0;) {
            if (++at[d] < x->shape[d])
                break;
            at[d] = 0;
        }
    }
}

typedef struct finder {
    moec_torch_find find;
    void *ctx;
} finder;

static moec_status add_tensor(const machine *m, moec_int_arrays *a,
                              const entry *e, const finder *f, moec_error *err)
{
    const tensor *t = &m->tensors[e->tensor];
    uint64_t shape[MOEC_ARRAY_DIMS];
    moec_torch_storage s;
    char name[40] = "", key[40];
    moec_int_array *x;
    int64_t last;

    if (e->key_bytes != SIZE_MAX) {
        if (e->key_bytes >= sizeof(name))
            return refuse(m, "has a key that is too long", err);
        memcpy(name, e->key, e->key_bytes);
    }
    snprintf(key, sizeof(key), "%.*s", (int)t->storage.key_bytes,
             t->storage.key);
    if (!f->find(f->ctx, key, &s))
        return fail_tensor(m, name, "has no storage in the file", err);
    if ((uint64_t)t->storage.n > s.bytes ||
        (uint64_t)t->storage.n * globals[t->storage.global].bytes != s.bytes)
        return fail_tensor(m, name, "has a storage of another size", err);
    if (!last_element(t, &last) || last >= t->storage.n)
        return fail_tensor(m, name, "leaves its storage", err);
    for (uint32_t d = 0; d < t->n_dims; d++)
        shape[d] = (uint64_t)t->shape[d];
    MOEC_TRY(moec_int_arrays_add(a, name, shape, t->n_dims, s.bytes, &x,
                                 m->file, err));
    copy_elements(x, t, s.data);
    return MOEC_OK;
}

static moec_status collect(machine *m, moec_int_arrays *a, const finder *f,
                           moec_error *err)
{
    item r = m->depth == 1 ? m->stack[0] : (item){0};

    if (r.kind == KIND_TENSOR)
        MOEC_TRY(add_entry(m, NULL, &r, err));
    else if (r.kind == KIND_TUPLE)
        for (size_t i = 0; i < r.n; i++)
            MOEC_TRY(add_entry(m, NULL, &m->cells[r.first + i], err));
    else if (r.kind != KIND_CONTAINER)
        return refuse(m, "holds something else than tensors", err);
    if (m->n_entries == 0)
        return refuse(m, "holds no tensors", err);
    a->named = r.kind == KIND_CONTAINER && m->is_dict;
    for (size_t i = 0; i < m->n_entries; i++)
        MOEC_TRY(add_tensor(m, a, &m->entries[i], f, err));
    return MOEC_OK;
}

moec_status moec_torch_read(moec_int_arrays *a, const char *file,
                            const unsigned char *pickle, size_t n,
                            moec_torch_find find, void *ctx, moec_error *err)
{
    machine *m = moec_calloc(1, sizeof(*m));
    const finder f = {find, ctx};
    moec_status st = MOEC_OK;

    if (!m)
        return moec_fail_nomem(err, "pickle");
    m->file = file;
    m->at = pickle;
    m->end = pickle + n;
    while (st == MOEC_OK && !m->done)
        st = m->at < m->end ? step(m, *m->at++, err)
                            : refuse(m, "ends early", err);
    if (st == MOEC_OK && m->at != m->end)
        st = refuse(m, "has more behind its end", err);
    if (st == MOEC_OK)
        st = collect(m, a, &f, err);
    moec_free(m);
    return st;
}
