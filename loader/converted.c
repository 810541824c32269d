/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A converted checkpoint's three own files together: each must have the
 * digest that the manifest gives it, and they must tell one story: the same
 * data files, the same source files, slots of layers, ranks and experts that
 * the topology has. Data files are not opened here.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <moec/loader.h>

#include "base/base.h"
#include "converted.h"
#include "remote.h"

bool moec_plain_name(const char *s, size_t n)
{
    size_t bad;

    if (!s || n == 0 || n > MOEC_FILE_NAME_BYTES_MAX || memchr(s, '/', n) ||
        memchr(s, 0, n))
        return false;
    if (s[0] == '.' && (n == 1 || (n == 2 && s[1] == '.')))
        return false;
    return moec_utf8_valid(s, n, &bad);
}

/* ----------------------------------------------------- where files are */

static moec_status find_remote(const moec_converted *c, const char *name,
                               size_t *out, moec_error *err)
{
    *out = moec_remote_find(c->remote, name);
    if (*out != SIZE_MAX)
        return MOEC_OK;
    return moec_fail_os(err, ENOENT, "%s: cannot open", name);
}

moec_status moec_converted_file(const moec_converted *c, const char *name,
                                int *fd_out, uint64_t *bytes_out,
                                moec_error *err)
{
    size_t i;

    if (c->remote == NULL)
        return moec_open_regular(c->dirfd, name, fd_out, bytes_out, err);
    MOEC_TRY(find_remote(c, name, &i, err));
    MOEC_TRY(moec_remote_open(c->remote, i, fd_out, err));
    *bytes_out = moec_remote_file(c->remote, i)->bytes;
    return MOEC_OK;
}

moec_status moec_converted_data(const moec_converted *c, const char *name,
                                int *fd_out, uint64_t *bytes_out,
                                moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st = moec_converted_file(c, name, fd_out, bytes_out, &why);

    if (st == MOEC_E_IO && why.os_errno == ENOENT)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M05, "%s: is missing",
                         name);
    return moec_hand_on(err, st, &why);
}

moec_status moec_converted_load(const moec_converted *c, const char *name,
                                uint64_t max, moec_buf *out, moec_error *err)
{
    uint64_t bytes;
    size_t i;

    if (c->remote == NULL)
        return moec_read_file(c->dirfd, name, max, out, err);
    MOEC_TRY(find_remote(c, name, &i, err));
    bytes = moec_remote_file(c->remote, i)->bytes;
    if (bytes > max)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %" PRIu64 " bytes, the limit is %" PRIu64, name,
                         bytes, max);
    if (!moec_buf_reserve(out, (size_t)bytes))
        return moec_fail_nomem(err, name);
    MOEC_TRY(moec_remote_read(c->remote, i, 0, out->data + out->len,
                              (size_t)bytes, err));
    out->len += (size_t)bytes;
    return MOEC_OK;
}

const moec_store_file *moec_converted_behind(const moec_converted *c,
                                             const char *name)
{
    size_t i = c->remote == NULL ? SIZE_MAX : moec_remote_find(c->remote, name);

    return i == SIZE_MAX ? NULL : moec_remote_file(c->remote, i);
}

moec_status moec_converted_read(const moec_converted *c, const char *name,
                                uint64_t off, void *buf, size_t n,
                                moec_error *err)
{
    size_t i;

    MOEC_TRY(find_remote(c, name, &i, err));
    return moec_remote_read(c->remote, i, off, buf, n, err);
}

moec_status moec_converted_check(const moec_converted *c, const char *name,
                                 uint64_t *bytes_out, moec_error *err)
{
    size_t i;

    MOEC_TRY(find_remote(c, name, &i, err));
    *bytes_out = moec_remote_file(c->remote, i)->bytes;
    return moec_remote_check(c->remote, i, err);
}

static moec_status read_remote(const void *ctx, size_t file, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    const moec_converted *c = ctx;

    return moec_remote_read(c->remote, file, off, buf, n, err);
}

/* The same file once more for direct reads: through its descriptor, so that it
 * is surely the same one. */
moec_status moec_converted_io(const moec_converted *c, const char *name,
                              bool no_direct, moec_io_file *out,
                              moec_error *err)
{
    char path[32];
    uint64_t bytes;
    int fd;

    MOEC_TRY(moec_converted_data(c, name, &fd, &bytes, err));
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    moec_io_open(out, name, path, fd, bytes, no_direct || c->remote != NULL);
    if (c->remote != NULL) {
        out->read = read_remote;
        out->ctx = c;
        out->file = moec_remote_find(c->remote, name);
    }
    return MOEC_OK;
}

/* -------------------------------------------------------- reading them */

static moec_status read_manifest(moec_converted *c, const char *name,
                                 moec_error *err)
{
    moec_buf text = {0};
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;

    st = moec_converted_load(c, name, MOEC_JSON_BYTES_MAX, &text, &why);
    if (st == MOEC_E_IO && why.os_errno == ENOENT)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                       "no " MOEC_MANIFEST_NAME ": not a finished conversion; "
                       "run the same convert command again");
    else
        (void)moec_hand_on(err, st, &why);
    if (st == MOEC_OK)
        st = moec_manifest_decode(&c->manifest, text.data ? text.data : "",
                                  text.len, err);
    if (st == MOEC_OK)
        st = moec_sha256_of(text.data, text.len, &c->manifest_sha256, err);
    c->manifest_bytes = text.len;
    moec_buf_fini(&text);
    return st;
}

moec_status moec_converted_copied(const moec_converted *c,
                                  const moec_mf_copied *f, moec_rule rule,
                                  moec_buf *out, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st;
    moec_sha256 sha;

    st = moec_converted_load(c, f->name, f->bytes, out, &why);
    if ((st == MOEC_E_IO && why.os_errno == ENOENT) ||
        (st == MOEC_E_FORMAT && why.rule != MOEC_RULE_I04))
        return moec_fail(err, MOEC_E_FORMAT, rule,
                         "%s: not there as a regular file", f->name);
    if (st == MOEC_E_FORMAT)
        return moec_fail(err, MOEC_E_INTEGRITY, rule,
                         "%s: longer than the manifest's %" PRIu64 " bytes",
                         f->name, f->bytes);
    if (st != MOEC_OK)
        return moec_hand_on(err, st, &why);
    if (out->len != f->bytes)
        return moec_fail(err, MOEC_E_INTEGRITY, rule,
                         "%s: %zu bytes, the manifest says %" PRIu64, f->name,
                         out->len, f->bytes);
    MOEC_TRY(moec_sha256_of(out->data, out->len, &sha, err));
    if (memcmp(sha.b, f->sha256.b, sizeof(sha.b)) != 0)
        return moec_fail(err, MOEC_E_INTEGRITY, rule,
                         "%s: the SHA-256 is not the manifest's", f->name);
    return MOEC_OK;
}

static moec_status read_slots(moec_converted *c, moec_error *err)
{
    moec_status st;

    MOEC_TRY(moec_converted_copied(c, &c->manifest.slots_file, MOEC_RULE_M03,
                                   &c->slots_bytes, err));
    st = moec_slots_decode(&c->slots, c->slots_bytes.data, c->slots_bytes.len,
                           err);
    if (st != MOEC_OK)
        moec_error_prefix(err, MOEC_SLOTS_NAME);
    return st;
}

static moec_status read_sources(moec_converted *c, moec_error *err)
{
    moec_status st;

    MOEC_TRY(moec_converted_copied(c, &c->manifest.sources_file, MOEC_RULE_M04,
                                   &c->sources_bytes, err));
    st = moec_sources_decode(&c->sources, c->sources_bytes.data,
                             c->sources_bytes.len, err);
    if (st != MOEC_OK)
        moec_error_prefix(err, MOEC_SOURCES_NAME);
    return st;
}

/* ------------------------------------------------------- their one story */

static bool same_sha(const moec_sha256 *a, const moec_sha256 *b)
{
    return memcmp(a->b, b->b, sizeof(a->b)) == 0;
}

static moec_status check_files(const moec_converted *c, moec_error *err)
{
    const moec_manifest *m = &c->manifest;
    const moec_slots *s = &c->slots;

    if (m->n_files != s->n_files)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                         MOEC_SLOTS_NAME ": %zu files, the manifest has %zu",
                         s->n_files, m->n_files);
    for (size_t i = 0; i < m->n_files; i++) {
        const moec_mf_file *a = &m->files[i];
        const moec_ct_file *b = &s->files[i];

        if (strcmp(a->name, b->name) != 0 || a->bytes != b->bytes ||
            !same_sha(&a->tree_sha256, &b->tree_sha256))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                             MOEC_SLOTS_NAME
                             ": file %zu, '%s' of %" PRIu64
                             " bytes, is not the manifest's '%s' of %" PRIu64,
                             i, b->name, b->bytes, a->name, a->bytes);
    }
    return MOEC_OK;
}

static bool has_layer(const moec_manifest *m, unsigned space, uint32_t number)
{
    size_t low = 0, high = m->n_mf_layers;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const moec_layer_key *key = &m->layers[mid].key;

        if ((unsigned)key->space < space ||
            ((unsigned)key->space == space && key->number < number))
            low = mid + 1;
        else
            high = mid;
    }
    return low < m->n_mf_layers &&
           (unsigned)m->layers[low].key.space == space &&
           m->layers[low].key.number == number;
}

static moec_status check_slot_tensor(const moec_converted *c,
                                     const moec_ct_tensor *t, moec_error *err)
{
    const moec_manifest *m = &c->manifest;
    const moec_ct_slot *slots = c->slots.slots + t->first_slot;
    int32_t min = m->allow_empty ? MOEC_LOGICAL_EMPTY : 0;
    int64_t end = (int64_t)m->n_experts + m->n_shared_slots;

    if (!has_layer(m, t->space, t->layer) || t->rank >= m->n_ranks)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                         MOEC_SLOTS_NAME ": tensor '%s': the manifest has no "
                                         "%s layer %" PRIu32
                                         " on rank %" PRIu32,
                         t->name, t->space == MOEC_SPACE_MTP ? "mtp" : "main",
                         t->layer, t->rank);
    for (uint32_t i = 0; i < t->n_slots; i++)
        if (slots[i].logical < min || slots[i].logical >= end)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                             MOEC_SLOTS_NAME
                             ": tensor '%s': slot %" PRIu32 " holds %" PRId32
                             ", not in [%" PRId32 ", %" PRId64 ")",
                             t->name, i, slots[i].logical, min, end);
    return MOEC_OK;
}

static moec_status check_tensors(const moec_converted *c, moec_error *err)
{
    for (size_t i = 0; i < c->slots.n_tensors; i++)
        if (c->slots.tensors[i].kind == MOEC_CT_SLOTS)
            MOEC_TRY(check_slot_tensor(c, &c->slots.tensors[i], err));
    return MOEC_OK;
}

static bool same_source(const moec_mf_source *a, const moec_source_entry *b)
{
    return strcmp(a->name, b->name) == 0 && a->bytes == b->file_bytes &&
           a->header_bytes == b->data_bytes &&
           same_sha(&a->header_sha256, &b->sha256);
}

/* Shards in the manifest's order; the index where it has one. */
static moec_status check_sources(const moec_converted *c, moec_error *err)
{
    const moec_manifest *m = &c->manifest;
    const char *index_name = NULL;
    size_t shard = 0;

    for (size_t i = 0; i < c->sources.n_entries; i++) {
        const moec_source_entry *e = &c->sources.entries[i];

        if (e->kind == MOEC_SRC_INDEX)
            index_name = e->name;
        if (e->kind != MOEC_SRC_SHARD)
            continue;
        if (shard == m->n_sources || !same_source(&m->sources[shard], e))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M04,
                             MOEC_SOURCES_NAME ": shard %zu, '%s', is not the "
                                               "manifest's",
                             shard, e->name);
        shard++;
    }
    if (shard != m->n_sources)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M04,
                         MOEC_SOURCES_NAME ": %zu shards, the manifest has %zu",
                         shard, m->n_sources);
    if (!index_name != !m->index_name ||
        (index_name && strcmp(index_name, m->index_name) != 0))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M04,
                         MOEC_SOURCES_NAME ": the index is %s, the manifest's "
                                           "is %s",
                         index_name ? index_name : "not there",
                         m->index_name ? m->index_name : "not there");
    return MOEC_OK;
}

static moec_status name_it(moec_converted *c, const char *name, moec_error *err)
{
    size_t n = strlen(name) + 1;

    c->dir = moec_alloc(n);
    if (!c->dir)
        return moec_fail_nomem(err, "a path");
    memcpy(c->dir, name, n);
    return MOEC_OK;
}

static moec_status open_dir(moec_converted *c, const char *dir, moec_error *err)
{
    MOEC_TRY(name_it(c, dir, err));
    c->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (c->dirfd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         "no such directory");
    if (c->dirfd < 0)
        return moec_fail_os(err, errno, "cannot open the directory");
    return MOEC_OK;
}

static moec_status open_all(moec_converted *c, moec_error *err)
{
    MOEC_TRY(read_manifest(c, MOEC_MANIFEST_NAME, err));
    MOEC_TRY(read_slots(c, err));
    MOEC_TRY(read_sources(c, err));
    MOEC_TRY(check_files(c, err));
    MOEC_TRY(check_tensors(c, err));
    return check_sources(c, err);
}

static moec_status open_begun(moec_converted *c, const char *manifest,
                              moec_error *err)
{
    MOEC_TRY(read_manifest(c, manifest, err));
    MOEC_TRY(read_sources(c, err));
    return check_sources(c, err);
}

/* `manifest` is NULL for a finished one. */
static moec_status open_one(moec_converted *out, const char *dir,
                            const char *manifest, moec_error *err)
{
    moec_converted c = {.dirfd = -1};
    moec_status st = open_dir(&c, dir, err);

    if (st == MOEC_OK)
        st = manifest ? open_begun(&c, manifest, err) : open_all(&c, err);
    if (st != MOEC_OK) {
        moec_error_prefix(err, "%s", dir);
        moec_converted_close(&c);
        return st;
    }
    *out = c;
    return MOEC_OK;
}

moec_status moec_converted_open(moec_converted *out, const char *dir,
                                moec_error *err)
{
    return open_one(out, dir, NULL, err);
}

moec_status moec_converted_open_begun(moec_converted *out, const char *dir,
                                      const char *manifest, moec_error *err)
{
    return open_one(out, dir, manifest, err);
}

moec_status moec_converted_open_source(moec_converted *out,
                                       const moec_store *store,
                                       const char *begun, moec_error *err)
{
    moec_converted c = {.dirfd = -1};
    moec_status st;

    MOEC_TRY(moec_remote_create(&c.remote, store, err));
    st = name_it(&c, moec_remote_name(c.remote), err);
    if (st == MOEC_OK)
        st = begun ? open_begun(&c, begun, err) : open_all(&c, err);
    if (st != MOEC_OK) {
        moec_error_prefix(err, "%s", moec_remote_name(c.remote));
        if (c.dir == NULL)
            moec_remote_destroy(c.remote);
        moec_converted_close(&c);
        return st;
    }
    *out = c;
    return MOEC_OK;
}

/* `dir` tells an opened object from one of zeros, whose descriptor is 0. */
void moec_converted_close(moec_converted *c)
{
    if (!c || !c->dir)
        return;
    if (c->dirfd >= 0)
        close(c->dirfd);
    moec_remote_destroy(c->remote);
    moec_sources_fini(&c->sources);
    moec_slots_fini(&c->slots);
    moec_manifest_fini(&c->manifest);
    moec_buf_fini(&c->slots_bytes);
    moec_buf_fini(&c->sources_bytes);
    moec_free(c->dir);
    *c = (moec_converted){.dirfd = -1};
}
