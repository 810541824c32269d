/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_BASE_H
#define MOEC_BASE_H

/*
 * What this is: the library's own small tools, without domain knowledge:
 *   error texts, checked arithmetic, growing buffers, a string map, an arena,
 *   a parallel loop, digests, file helpers, JSON documents of trusted size.
 * Lifetime: as each block says. Threads: one thread at a time unless said.
 * Errors: every function that can fail returns a moec_status and fills `err`.
 */

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <moec/error.h>
#include <moec/types.h>

/* ------------------------------------------------------------- errors */

/* Return from the calling function when `expr` is not MOEC_OK. */
#define MOEC_TRY(expr)                                                         \
  do {                                                                         \
    moec_status try_st_ = (expr);                                              \
    if (try_st_ != MOEC_OK)                                                    \
      return try_st_;                                                          \
  } while (0)

/* Write the error unless one is there already, and return `status`. With a
 * rule the text begins with "[MOE-H07 duplicate-key] ". Control characters in
 * the result are escaped as \xNN; a text too long keeps its begin and its
 * tail. `err` may be NULL. */
moec_status moec_fail(moec_error *err, moec_status status, moec_rule rule,
                      const char *fmt, ...) MOEC_PRINTF(4, 5);

/* The same with the byte in the file that the text names. */
moec_status moec_fail_at(moec_error *err, moec_status status, moec_rule rule,
                         uint64_t file_off, const char *fmt, ...)
    MOEC_PRINTF(5, 6);

/* The same for a failed system call: appends ": strerror(os_errno)". */
moec_status moec_fail_os(moec_error *err, int os_errno, const char *fmt, ...)
    MOEC_PRINTF(3, 4);

/* NOMEM with what was wanted. */
moec_status moec_fail_nomem(moec_error *err, const char *what);
/* ARG where a caller's struct, by its own struct_bytes, is shorter than `want`:
 * made without its _INIT, or by an older header. */
moec_status moec_check_struct(const char *name, uint32_t struct_bytes,
                              size_t want, moec_error *err);

/* dlopen the plug-in at `path`, or with NULL the file `name` beside the library
 * or where plug-ins are installed. NULL and NO_DEVICE, "no `what`: ...". */
void *moec_plugin_load(const char *what, const char *name, const char *path,
                       moec_error *err);

/* Hand on why a call failed that wrote its own error: copy `why`, unless an
 * error is there already. Returns `status`; MOEC_OK changes nothing. */
moec_status moec_hand_on(moec_error *err, moec_status status,
                         const moec_error *why);

/* A refusal is never MOEC_OK. Compilers and analyzers see one file at a time;
 * without this they follow MOEC_TRY past failures that ended there, and warn
 * of outputs that nobody wrote. */
static inline moec_status moec_refused(moec_status status)
{
    if (status == MOEC_OK)
        __builtin_unreachable();
    return status;
}
#define moec_fail(...)       moec_refused((moec_fail)(__VA_ARGS__))
#define moec_fail_at(...)    moec_refused((moec_fail_at)(__VA_ARGS__))
#define moec_fail_os(...)    moec_refused((moec_fail_os)(__VA_ARGS__))
#define moec_fail_nomem(...) moec_refused((moec_fail_nomem)(__VA_ARGS__))

/* Put "prefix: " behind the rule of an error that is already there. */
void moec_error_prefix(moec_error *err, const char *fmt, ...) MOEC_PRINTF(2, 3);

/* --------------------------------------------------- checked arithmetic */

static inline bool moec_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline bool moec_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* Round up to a multiple of a power of two. False on overflow. */
static inline bool moec_align_u64(uint64_t v, uint64_t align, uint64_t *out)
{
    if (!moec_add_u64(v, align - 1, out))
        return false;
    *out &= ~(align - 1);
    return true;
}

static inline uint64_t moec_min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t moec_max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t moec_ceil_div(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* --------------------------------------------------------- memory
 * All allocation of the library goes through these four, so that tests can
 * make the n-th one fail (moec_alloc_fail_at). */
void *moec_alloc(size_t bytes);           /* NULL on failure; 0 -> 1 */
void *moec_calloc(size_t n, size_t size); /* overflow checked */
void *moec_realloc_array(void *p, size_t n, size_t size);
/* Room for one more behind the `n` elements of `list`, a pointer of which `cap`
 * elements have memory: both change where it grows. False, and nothing has
 * changed, without memory. */
#define MOEC_GROW(list, n, cap)                                                \
  ((n) < (cap) || moec_grow(&(list), &(cap), sizeof(*(list))))
bool moec_grow(void *list, size_t *cap, size_t size);
void moec_free(void *p);
/* Test hook: fail the n-th allocation from now (1 = the next); 0 = never.
 * Returns how many allocations happened since the last call. */
uint64_t moec_alloc_fail_at(uint64_t n);

/* Aligned memory for direct I/O. Freed with moec_free_aligned. */
void *moec_alloc_aligned(size_t bytes, size_t align);
void moec_free_aligned(void *p);

/* Arena: many small objects, one lifetime, freed together. Pointers into it
 * stay valid until moec_arena_fini. Zero-initialise to create. */
typedef struct moec_arena {
    struct moec_arena_block *head;
} moec_arena;
void *moec_arena_alloc(moec_arena *a, size_t bytes, size_t align);
char *moec_arena_strdup(moec_arena *a, const char *s, size_t n);
void moec_arena_fini(moec_arena *a);

/* Growing byte buffer, always NUL-terminated behind `len` once non-empty.
 * Zero-initialise to create. After a failed append `oom` stays set, and
 * later appends do nothing: check once at the end. */
typedef struct moec_buf {
    char *data;
    size_t len, cap;
    bool oom;
} moec_buf;
/* Make room for `more` bytes behind `len`; data is not NULL afterwards, even
 * for 0. False (and oom) on failure. */
bool moec_buf_reserve(moec_buf *b, size_t more);
void moec_buf_append(moec_buf *b, const void *data, size_t n);
void moec_buf_puts(moec_buf *b, const char *s);
void moec_buf_printf(moec_buf *b, const char *fmt, ...) MOEC_PRINTF(2, 3);
void moec_buf_u32(moec_buf *b, uint32_t v); /* little endian */
void moec_buf_u64(moec_buf *b, uint64_t v);
/* Append `s` as a JSON string with its quotes; escapes what RFC 8259 demands
 * and DEL. What is no UTF-8 becomes U+FFFD. */
void moec_buf_json_string(moec_buf *b, const char *s, size_t n);
void moec_buf_fini(moec_buf *b);

static inline uint32_t moec_le32(const void *p)
{
    const unsigned char *b = (const unsigned char *)p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
           (uint32_t)b[3] << 24;
}

static inline uint64_t moec_le64(const void *p)
{
    const unsigned char *b = (const unsigned char *)p;
    return (uint64_t)moec_le32(b) | (uint64_t)moec_le32(b + 4) << 32;
}

/* ------------------------------------------------------- string map
 * Bytes -> u64, open addressing over a seeded hash (hostile names cannot
 * make it quadratic: the seed comes from getrandom). Keys are borrowed. */
typedef struct moec_strmap {
    struct moec_strmap_cell *cells;
    size_t n, cap;
    uint64_t seed[2];
} moec_strmap;
moec_status moec_strmap_init(moec_strmap *m, size_t expect, moec_error *err);
void moec_strmap_fini(moec_strmap *m);
/* Insert; *existed tells whether the key was there (its value is kept). */
moec_status moec_strmap_put(moec_strmap *m, const char *key, size_t key_bytes,
                            uint64_t value, bool *existed, moec_error *err);
/* Look up; returns false where absent. Safe from any thread between puts. */
bool moec_strmap_get(const moec_strmap *m, const char *key, size_t key_bytes,
                     uint64_t *value_out);

/* ------------------------------------------------------------ threads */

/* CPUs this process may use (its cpuset), at least 1. */
uint32_t moec_cpu_count(void);

/* Run fn(ctx, item, worker) for item in [0,n) on up to n_threads threads
 * (0: moec_cpu_count). Items are handed out in order. After a failure no
 * further item starts; of several failures the one of the LOWEST item is
 * reported, so that the error does not depend on timing. Threads block all
 * signals and are named "moec/N". Runs on the caller's thread where n_threads
 * is 1 or threads cannot be made. */
#define MOEC_THREADS_MAX 256u /* workers have numbers below */
typedef moec_status (*moec_item_fn)(void *ctx, size_t item, uint32_t worker,
                                    moec_error *err);
moec_status moec_parallel(uint32_t n_threads, size_t n, moec_item_fn fn,
                          void *ctx, moec_error *err);

/* A standing pool for work of microseconds: threads wait between calls,
 * spinning shortly, then asleep. The caller is worker 0. */
typedef struct moec_pool moec_pool;
typedef void (*moec_work_fn)(void *ctx, size_t item, uint32_t worker);
/* Start n_threads - 1 threads (0: moec_cpu_count in all). */
moec_status moec_pool_create(moec_pool **out, uint32_t n_threads,
                             moec_error *err);
void moec_pool_destroy(moec_pool *pool); /* NULL is fine */
uint32_t moec_pool_n_threads(const moec_pool *pool);
/* Run fn(ctx, item, worker) for item in [0,n) and return when all are done.
 * One thread at a time; `pool` NULL runs all on the caller's. */
void moec_pool_run(moec_pool *pool, size_t n, moec_work_fn fn, void *ctx);

/* ------------------------------------------------------------ digests */

typedef struct moec_sha256 {
    uint8_t b[32];
} moec_sha256;
typedef struct moec_xxh128 {
    uint8_t b[16]; /* canonical (big endian) form of XXH3-128 */
} moec_xxh128;
/* One-shot digests: cannot fail but for memory inside libcrypto. */
moec_status moec_sha256_of(const void *data, size_t n, moec_sha256 *out,
                           moec_error *err);
/* SHA-256 of each `leaf_bytes` of `data`, the last one as short as it is:
 * ceil(n / leaf_bytes) digests. Two leaves at once where the CPU can: about
 * twice the speed of one after the other. */
moec_status moec_sha256_leaves(const void *data, size_t n, size_t leaf_bytes,
                               moec_sha256 *out, moec_error *err);
/* Two messages of one length at once, block by block, copied on the way. */
typedef struct moec_sha256_pair {
    uint32_t state[2][8];
    uint64_t bytes; /* of each, so far */
} moec_sha256_pair;
/* A block of one of them. What stands at `ahead`, of the same size, is fetched
 * into this core's cache meanwhile: by instructions that cannot fault, whatever
 * has become of a mapping there. Where nothing is to be fetched: `from`. */
typedef struct moec_sha256_block {
    const unsigned char *from, *ahead;
    unsigned char *to; /* NULL: nowhere */
} moec_sha256_block;
/* False: this CPU cannot. */
bool moec_sha256_pair_begin(moec_sha256_pair *h);
/* `n` bytes of each, a multiple of 64; `to` is NULL in both blocks or none. */
void moec_sha256_pair_update(moec_sha256_pair *h, const moec_sha256_block b[2],
                             size_t n);
void moec_sha256_pair_final(const moec_sha256_pair *h, moec_sha256 out[2]);
moec_xxh128 moec_xxh128_of(const void *data, size_t n);
/* Streaming SHA-256; opaque, create/update/final(frees). */
typedef struct moec_hasher moec_hasher;
moec_status moec_hasher_create(moec_hasher **out, moec_error *err);
moec_status moec_hasher_update(moec_hasher *h, const void *data, size_t n,
                               moec_error *err);
moec_status moec_hasher_final(moec_hasher *h, moec_sha256 *out,
                              moec_error *err);
void moec_hasher_destroy(moec_hasher *h);
/* The first `bytes` bytes of a file. */
moec_status moec_sha256_fd(int fd, const char *name, uint64_t bytes,
                           moec_sha256 *out, moec_error *err);
/* 64 lower-case hex digits and a NUL. */
void moec_hex(const void *data, size_t n, char *out);
bool moec_unhex(const char *hex, void *out, size_t n);

/* -------------------------------------------------------------- files */

/* pread until `n` bytes are there: retries EINTR and short reads. A file that
 * ends early is FORMAT (H17). `name` is for the error text. */
moec_status moec_pread_full(int fd, const char *name, void *buf, size_t n,
                            uint64_t off, moec_error *err);
/* pwrite until all is written. */
moec_status moec_pwrite_full(int fd, const char *name, const void *buf,
                             size_t n, uint64_t off, moec_error *err);
/* Open the regular file `name` below `dirfd` for reading, as moec_read_file
 * does: *fd_out is the caller's to close. `name` may have several parts. */
moec_status moec_open_regular(int dirfd, const char *name, int *fd_out,
                              uint64_t *bytes_out, moec_error *err);
/* Read a whole regular file below `dirfd` (never following a link out of it:
 * openat2 RESOLVE_BENEATH where the kernel has it) of at most `max` bytes
 * into b. `name` is relative. Absent -> IO with os_errno ENOENT; not regular
 * -> FORMAT I03; too large -> FORMAT I04. */
moec_status moec_read_file(int dirfd, const char *name, uint64_t max,
                           moec_buf *b, moec_error *err);

/* True where `s` is strict UTF-8 (no overlong forms, no surrogates). On false
 * *bad_out is the first bad byte. */
bool moec_utf8_valid(const char *s, size_t n, size_t *bad_out);

#endif
