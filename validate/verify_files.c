/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The structure of a converted directory: what must be there is, as it was
 * written, and nothing that a loader could take for more of it.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "index.h"
#include "remote.h"
#include "verify.h"

static moec_finding about(moec_rule rule, const char *file)
{
    moec_finding f = {.rule = rule,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE,
                      .file = file};
    return f;
}

/* Damage is a finding; what the machine refuses is an error. A file that is
 * not there is damage. */
static moec_status settle(moec_verifier *v, const char *file, moec_rule rule,
                          const moec_error *e, moec_error *err)
{
    moec_finding f = about(rule, file);

    if (!moec_report_is_damage(e))
        return moec_hand_on(err, e->status, e);
    moec_report_add(v->r, &f, "%s", e->text);
    return MOEC_OK;
}

/* ---------------------------------------------------------- copied files */

static moec_status verify_copy(moec_verifier *v, const moec_mf_copied *c,
                               moec_error *err)
{
    moec_finding f = about(MOEC_RULE_M08, c->name);
    moec_error e = MOEC_ERROR_INIT;
    char expected[65], found[65];
    uint64_t bytes = 0;
    moec_sha256 sha;
    int fd = -1;
    moec_status st = moec_converted_file(v->files, c->name, &fd, &bytes, &e);

    if (st != MOEC_OK)
        return settle(v, c->name, MOEC_RULE_M08, &e, err);
    if (bytes != c->bytes) {
        moec_report_add(v->r, &f,
                        "%" PRIu64 " bytes, the manifest says %" PRIu64, bytes,
                        c->bytes);
        goto done;
    }
    st = moec_sha256_fd(fd, c->name, bytes, &sha, &e);
    if (st != MOEC_OK) {
        st = settle(v, c->name, MOEC_RULE_M08, &e, err);
        goto done;
    }
    if (memcmp(sha.b, c->sha256.b, sizeof(sha.b)) != 0) {
        moec_hex(c->sha256.b, sizeof(c->sha256.b), expected);
        moec_hex(sha.b, sizeof(sha.b), found);
        f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
        f.expected = expected;
        f.found = found;
        moec_report_add(v->r, &f, "changed since the conversion");
    }
done:
    close(fd);
    return st;
}

moec_status moec_verify_copied(moec_verifier *v, moec_error *err)
{
    const moec_manifest *m = &v->files->manifest;

    for (size_t i = 0; i < m->n_copied; i++)
        MOEC_TRY(verify_copy(v, &m->copied[i], err));
    return MOEC_OK;
}

/* ------------------------------------------------------------ data files */

/* The header is the manifest's (slots.bin has its digest), and the one that
 * the layout writes. */
static moec_status verify_header(moec_verifier *v, size_t i, int fd,
                                 moec_error *err)
{
    const moec_ct_file *c = &v->files->slots.files[i];
    moec_finding f = about(MOEC_RULE_M06, c->name);
    unsigned char *found = moec_alloc((size_t)c->header_bytes);
    void *want = NULL;
    uint64_t n = 0, at = 0;
    moec_sha256 sha;
    moec_status st;

    if (found == NULL)
        return moec_fail_nomem(err, "header of a data file");
    st = moec_pread_full(fd, c->name, found, (size_t)c->header_bytes, 0, err);
    if (st == MOEC_OK)
        st = moec_patches_apply(v->patches, i, 0, found,
                                (size_t)c->header_bytes, err);
    if (st == MOEC_OK)
        st = moec_sha256_of(found, (size_t)c->header_bytes, &sha, err);
    if (st == MOEC_OK && v->layout != NULL)
        st = moec_layout_header(v->layout, i, &want, &n, err);
    if (st != MOEC_OK)
        goto done;
    if (want != NULL) {
        const unsigned char *w = want;
        uint64_t both = moec_min_u64(n, c->header_bytes);
        while (at < both && w[at] == found[at])
            at++;
        f.has |= MOEC_HAS_OFFSET;
        f.offset = at;
        if (at < both || n != c->header_bytes)
            moec_report_add(v->r, &f,
                            "byte %" PRIu64 " of the header is not the one "
                            "that the layout gives",
                            at);
    } else if (memcmp(sha.b, c->header_sha256.b, sizeof(sha.b)) != 0) {
        moec_report_add(v->r, &f,
                        "the header's digest is not the one of "
                        "slots.bin");
    }
done:
    free(want);
    moec_free(found);
    return st;
}

static moec_status verify_file(moec_verifier *v, size_t i, moec_error *err)
{
    const moec_ct_file *c = &v->files->slots.files[i];
    moec_finding f = about(MOEC_RULE_M05, c->name);
    moec_error e = MOEC_ERROR_INIT;
    moec_io_file io;
    moec_status st = moec_converted_io(v->files, c->name, false, &io, &e);

    if (st != MOEC_OK)
        return settle(v, c->name, MOEC_RULE_M05, &e, err);
    if (io.bytes != c->bytes) {
        moec_report_add(v->r, &f,
                        "%" PRIu64 " bytes, the manifest says %" PRIu64,
                        io.bytes, c->bytes);
        moec_io_close(&io);
        close(io.fd);
        return MOEC_OK;
    }
    v->io[i] = io;
    st = verify_header(v, i, io.fd, &e);
    return st == MOEC_OK ? st : settle(v, c->name, MOEC_RULE_M06, &e, err);
}

static bool has_prefix(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool looks_like_ours(const char *name)
{
    size_t n = strlen(name);
    static const char tail[] = ".safetensors";

    return n > sizeof(tail) - 1 &&
           strcmp(name + n - (sizeof(tail) - 1), tail) == 0 &&
           (has_prefix(name, "experts-") || has_prefix(name, "common-") ||
            has_prefix(name, "shared-"));
}

static bool is_known(const moec_manifest *m, const char *name)
{
    for (size_t i = 0; i < m->n_files; i++)
        if (strcmp(m->files[i].name, name) == 0)
            return true;
    for (size_t i = 0; i < m->n_copied; i++)
        if (strcmp(m->copied[i].name, name) == 0)
            return true;
    return false;
}

/* A rank file of another conversion beside ours would be loaded with it. */
static void look_at_name(moec_verifier *v, const char *name)
{
    moec_finding f = about(MOEC_RULE_M05, name);

    if (looks_like_ours(name) && !is_known(&v->files->manifest, name))
        moec_report_add(v->r, &f,
                        "a data file that the manifest does not "
                        "name");
}

static moec_status look_at_directory(moec_verifier *v, moec_error *err)
{
    int fd = openat(v->files->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const struct dirent *e;
    moec_status st = MOEC_OK;
    DIR *dir;

    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot list", v->files->dir);
    dir = fdopendir(fd);
    if (dir == NULL) {
        close(fd);
        return moec_fail_os(err, errno, "%s: cannot list", v->files->dir);
    }
    errno = 0;
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): nobody else has this stream */
    while ((e = readdir(dir)) != NULL) {
        look_at_name(v, e->d_name);
        errno = 0;
    }
    if (errno != 0)
        st = moec_fail_os(err, errno, "%s: cannot list", v->files->dir);
    closedir(dir);
    return st;
}

static moec_status verify_no_extra(moec_verifier *v, moec_error *err)
{
    const moec_remote *remote = v->files->remote;

    if (remote == NULL)
        return look_at_directory(v, err);
    for (size_t i = 0; i < moec_remote_n_files(remote); i++)
        look_at_name(v, moec_remote_file(remote, i)->name);
    return MOEC_OK;
}
/* ------------------------------------------------------------- the index */

typedef struct index_check {
    moec_verifier *v;
    moec_strmap names; /* tensor -> data file */
    size_t n_seen;
} index_check;

static moec_status check_entry(void *ctx, const moec_index_entry *e,
                               moec_error *err)
{
    index_check *k = ctx;
    const moec_slots *s = &k->v->files->slots;
    uint64_t file = 0;
    const char *want;

    k->n_seen++;
    if (!moec_strmap_get(&k->names, e->tensor, e->tensor_bytes, &file))
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I08, e->off,
                            "a tensor is named that no file has");
    want = s->files[file].name;
    if (strlen(want) != e->file_bytes ||
        memcmp(want, e->file, e->file_bytes) != 0)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_I08, e->off,
                            "a tensor is said to be in another file than '%s'",
                            want);
    return MOEC_OK;
}

/* Rank files are not in the index: they are no checkpoint by themselves. */
static bool in_index(const moec_slots *s, const moec_ct_tensor *t)
{
    return t->kind != MOEC_CT_PAD &&
           !has_prefix(s->files[t->file].name, "experts-rank-");
}

static moec_status fill_index(index_check *k, moec_error *err)
{
    const moec_slots *s = &k->v->files->slots;

    MOEC_TRY(moec_strmap_init(&k->names, s->n_tensors, err));
    for (size_t i = 0; i < s->n_tensors; i++) {
        const moec_ct_tensor *t = &s->tensors[i];
        bool existed;

        if (in_index(s, t))
            MOEC_TRY(moec_strmap_put(&k->names, t->name, strlen(t->name),
                                     t->file, &existed, err));
    }
    return MOEC_OK;
}

static moec_status verify_index(moec_verifier *v, moec_error *err)
{
    index_check k = {.v = v};
    moec_index_facts facts = {0};
    moec_error e = MOEC_ERROR_INIT;
    uint64_t bytes = 0;
    int fd = -1;
    moec_status st = fill_index(&k, err);

    if (st != MOEC_OK || k.names.n == 0)
        goto done;
    st = moec_converted_file(v->files, MOEC_INDEX_NAME, &fd, &bytes, &e);
    if (st == MOEC_OK)
        st = moec_index_read(fd, bytes, MOEC_INDEX_NAME, MOEC_INDEX_CHECKED,
                             check_entry, &k, &facts, &e);
    if (st == MOEC_OK && k.n_seen != k.names.n)
        st = moec_fail(&e, MOEC_E_FORMAT, MOEC_RULE_I08,
                       "%zu tensors are named, the files have %zu", k.n_seen,
                       k.names.n);
    if (st != MOEC_OK && e.rule != MOEC_RULE_NONE) {
        moec_report_add_error(v->r, MOEC_INDEX_NAME, MOEC_RULE_I08, &e);
        st = MOEC_OK;
    } else if (st != MOEC_OK) {
        st = settle(v, MOEC_INDEX_NAME, MOEC_RULE_I08, &e, err);
    }
done:
    if (fd >= 0)
        close(fd);
    moec_strmap_fini(&k.names);
    return st;
}

moec_status moec_verify_files(moec_verifier *v, moec_error *err)
{
    for (size_t i = 0; i < v->files->slots.n_files; i++)
        MOEC_TRY(verify_file(v, i, err));
    MOEC_TRY(verify_no_extra(v, err));
    return verify_index(v, err);
}

/* --------------------------------------------- slots.bin and the layout */

static moec_status add_slot_leaves(const moec_slots *s,
                                   const moec_ct_slot *slot, moec_hasher *h,
                                   moec_error *err)
{
    for (uint32_t l = 0; l < slot->n_leaves; l++)
        MOEC_TRY(moec_hasher_update(h, s->leaves[slot->first_leaf + l].sha256.b,
                                    32, err));
    return MOEC_OK;
}

static moec_status check_tree(const moec_verifier *v, size_t i, moec_error *err)
{
    const moec_slots *s = &v->files->slots;
    size_t end = i + 1 < s->n_files ? v->file_first[i + 1] : s->n_tensors;
    moec_finding f = about(MOEC_RULE_M03, MOEC_SLOTS_NAME);
    moec_hasher *h = NULL;
    moec_sha256 sha;
    moec_status st;

    MOEC_TRY(moec_hasher_create(&h, err));
    st = moec_hasher_update(h, &s->files[i].header_sha256, sizeof(sha), err);
    for (size_t t = v->file_first[i]; t < end; t++) {
        uint32_t n =
            s->tensors[t].kind == MOEC_CT_PAD ? 0 : s->tensors[t].n_slots;
        for (uint32_t k = 0; st == MOEC_OK && k < n; k++)
            st = add_slot_leaves(s, &s->slots[s->tensors[t].first_slot + k], h,
                                 err);
    }
    if (st != MOEC_OK) {
        moec_hasher_destroy(h);
        return st;
    }
    MOEC_TRY(moec_hasher_final(h, &sha, err));
    if (memcmp(sha.b, s->files[i].tree_sha256.b, sizeof(sha.b)) != 0)
        moec_report_add(v->r, &f,
                        "'%s': the tree digest is not that of its "
                        "leaves",
                        s->files[i].name);
    return MOEC_OK;
}

/* What the layout says of one tensor of slots.bin. NULL, or what differs. */
static const char *compare_tensor(const moec_verifier *v,
                                  const moec_out_file *file,
                                  const moec_out_tensor *o,
                                  const moec_ct_tensor *t)
{
    char buf[32];
    const moec_slot_tensor *s;
    moec_layer_key key;

    if (strcmp(moec_layout_name(v->layout, o, buf), t->name) != 0)
        return "its name";
    if (o->off != t->off || o->bytes != t->bytes)
        return "its place";
    if ((o->kind == MOEC_OUT_SLOTS) != (t->kind == MOEC_CT_SLOTS) ||
        (o->kind == MOEC_OUT_COMMON) != (t->kind == MOEC_CT_COMMON))
        return "its kind";
    if (o->kind == MOEC_OUT_COMMON)
        return moec_ckpt_tensor(moec_model_ckpt(moec_plan_model(v->plan)),
                                (size_t)o->source)
                           ->dtype == t->dtype
                   ? NULL
                   : "its dtype";
    if (o->kind == MOEC_OUT_PAD)
        return NULL;
    s = moec_plan_slot_tensor(v->plan, o->layer, o->t);
    key = moec_model_layer(moec_plan_model(v->plan),
                           moec_plan_model_layer(v->plan, o->layer))
              ->key;
    if (t->dtype != (uint8_t)s->dtype)
        return "its dtype";
    if (t->space != (uint8_t)key.space || t->layer != key.number)
        return "its layer";
    if (t->rank != file->rank || t->n_slots != s->shape[0])
        return "its rank or its number of slots";
    return NULL;
}

/* Units of the rows: T4 over what slots.bin says. */
static void compare_units(moec_verifier *v, const moec_out_tensor *o,
                          const moec_ct_tensor *t)
{
    for (uint32_t row = 0; row < t->n_slots; row++) {
        const moec_ct_slot *slot = &v->files->slots.slots[t->first_slot + row];
        uint32_t unit =
            moec_plan_row_unit(v->plan, o->layer, o->t, t->rank, row);
        int32_t want =
            unit == MOEC_UNIT_EMPTY ? MOEC_LOGICAL_EMPTY : (int32_t)unit;
        moec_finding f;

        if (slot->logical == want)
            continue;
        f = moec_verify_finding(v, MOEC_RULE_T4, t, row, 0);
        moec_report_add(v->r, &f,
                        "slots.bin says expert %" PRId32
                        ", the placement %" PRId32,
                        slot->logical, want);
        v->table_ok = false;
    }
}

static void compare_file(moec_verifier *v, size_t i)
{
    const moec_slots *s = &v->files->slots;
    const moec_out_file *file = moec_layout_file(v->layout, i);
    size_t end = i + 1 < s->n_files ? v->file_first[i + 1] : s->n_tensors;
    moec_finding f = about(MOEC_RULE_M03, MOEC_SLOTS_NAME);

    if (file->n_tensors != end - v->file_first[i]) {
        moec_report_add(v->r, &f, "'%s' has %zu tensors, the layout gives %zu",
                        file->name, end - v->file_first[i], file->n_tensors);
        v->table_ok = false;
        return;
    }
    for (size_t k = 0; k < file->n_tensors; k++) {
        const moec_out_tensor *o = &file->tensors[k];
        const moec_ct_tensor *t = &s->tensors[v->file_first[i] + k];
        const char *what = compare_tensor(v, file, o, t);

        if (what != NULL) {
            f.has |= MOEC_HAS_TENSOR;
            f.tensor = t->name;
            moec_report_add(v->r, &f, "'%s' in '%s': %s is not the layout's",
                            t->name, file->name, what);
            v->table_ok = false;
            continue;
        }
        if (o->kind != MOEC_OUT_SLOTS)
            continue;
        v->slot_tensor[file->rank * v->n_slot_tensors +
                       v->layer_first[o->layer] + o->t] = v->file_first[i] + k;
        compare_units(v, o, t);
    }
}

/* A replica whose digest is not its expert's was wrong when it was digested:
 * no read of the files would show it. */
static void compare_replicas(moec_verifier *v, size_t layer, size_t t)
{
    const moec_slots *s = &v->files->slots;
    uint32_t n_ranks = moec_plan_topology(v->plan).n_ranks;

    for (uint32_t rank = 0; rank < n_ranks; rank++) {
        const moec_ct_tensor *ct =
            &s->tensors[v->slot_tensor[rank * v->n_slot_tensors +
                                       v->layer_first[layer] + t]];
        for (uint32_t row = 0; row < ct->n_slots; row++) {
            const moec_ct_slot *slot = &s->slots[ct->first_slot + row];
            const moec_ct_slot *first;
            const moec_ct_tensor *other;
            uint32_t other_row;
            moec_finding f;

            if (slot->logical < 0)
                continue;
            first = moec_verify_first(v, layer, t, (uint32_t)slot->logical,
                                      &other, &other_row);
            if (first == NULL || memcmp(first->sha256.b, slot->sha256.b,
                                        sizeof(slot->sha256.b)) == 0)
                continue;
            f = moec_verify_finding(v, MOEC_RULE_T3, ct, row, 0);
            moec_report_add(v->r, &f,
                            "this replica of expert %" PRId32
                            " has another digest than slot %" PRIu32
                            " of rank %" PRIu32,
                            slot->logical, other_row, other->rank);
        }
    }
}

moec_status moec_verify_table(moec_verifier *v, moec_error *err)
{
    const moec_slots *s = &v->files->slots;

    for (size_t i = 0; i < s->n_files; i++)
        MOEC_TRY(check_tree(v, i, err));
    if (v->layout == NULL)
        return MOEC_OK;
    v->table_ok = true;
    for (size_t i = 0; i < s->n_files; i++)
        compare_file(v, i);
    for (size_t l = 0; v->table_ok && l < moec_plan_n_layers(v->plan); l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, l); t++)
            compare_replicas(v, l, t);
    return MOEC_OK;
}
