/* SPDX-License-Identifier: Apache-2.0 */
/*
 * URLs of the command line. Reads the environment, which libraries do not:
 *   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
 *   AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL: as everywhere
 *   MOEC_HTTP_TOKEN: a bearer token for https://
 */
#include "web_source.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <jansson.h>

#include "option_files.h"
#include "print.h"
#include "read_json.h"

#ifdef MOEC_HAS_STORE

/* A command opens at most a source and another to compare with. */
static moec_web *opened[4];
/* And writes one: what it lists was there before. */
static moec_web *written;

static const char *variable(const char *name)
{
    const char *v = getenv(name);
    return v != NULL && v[0] != '\0' ? v : NULL;
}

static moec_web_opts environment(void)
{
    moec_web_opts o = {
        .endpoint = variable("AWS_ENDPOINT_URL_S3"),
        .region = variable("AWS_REGION"),
        .key_id = variable("AWS_ACCESS_KEY_ID"),
        .secret = variable("AWS_SECRET_ACCESS_KEY"),
        .token = variable("AWS_SESSION_TOKEN"),
        .bearer = variable("MOEC_HTTP_TOKEN"),
    };
    if (o.endpoint == NULL)
        o.endpoint = variable("AWS_ENDPOINT_URL");
    if (o.region == NULL)
        o.region = variable("AWS_DEFAULT_REGION");
    return o;
}

static moec_status keep(moec_web *w, moec_error *err)
{
    for (size_t i = 0; i < sizeof(opened) / sizeof(*opened); i++) {
        if (opened[i] == NULL) {
            opened[i] = w;
            return MOEC_OK;
        }
    }
    moec_web_close(w);
    return moec_cli_error(err, MOEC_E_ARG, MOEC_RULE_NONE, "too many URLs");
}

void moec_cli_web_close(void)
{
    for (size_t i = 0; i < sizeof(opened) / sizeof(*opened); i++) {
        moec_web_close(opened[i]);
        opened[i] = NULL;
    }
    moec_web_close(written);
    written = NULL;
}

moec_status moec_cli_web_store(const moec_store **out, const char *path,
                               moec_error *err)
{
    moec_web_opts web = environment();
    moec_web *w = NULL;
    *out = NULL;
    if (!moec_web_is_url(path))
        return MOEC_OK;
    for (size_t i = 0; i < sizeof(opened) / sizeof(*opened); i++) {
        if (opened[i] != NULL &&
            strcmp(moec_web_store(opened[i])->name, path) == 0)
            w = opened[i];
    }
    if (w == NULL) {
        moec_status st = moec_web_open(&w, path, &web, err);
        if (st == MOEC_OK)
            st = keep(w, err);
        if (st != MOEC_OK)
            return st;
    }
    *out = moec_web_store(w);
    return MOEC_OK;
}

moec_status moec_cli_web_objects(const struct moec_objects **out,
                                 const char *url, moec_error *err)
{
    moec_web_opts web = environment();
    moec_web *w = NULL;
    moec_status st = moec_web_create(&w, url, &web, err);
    if (st != MOEC_OK)
        return st;
    moec_web_close(written);
    written = w;
    *out = moec_web_objects(w);
    return MOEC_OK;
}

/* --------------------------------------------------------------- uploads */

typedef struct uploading {
    moec_web *web;
    const char *dir;
    json_t *digests; /* of data files, by name */
    moec_cli_uploaded *figures;
    moec_error *err;
} uploading;

/* tree_sha256 of each data file, as the manifest has them. */
static moec_status read_digests(uploading *u)
{
    char *path = NULL, *text = NULL;
    size_t n = 0, i;
    json_t *root, *file;
    moec_status st;
    if (asprintf(&path, "%s/manifest.json", u->dir) < 0)
        return moec_cli_error(u->err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a path");
    st = moec_cli_read_file(path, MOEC_RULE_M01, UINT64_C(1) << 30, &text, &n,
                            u->err);
    free(path);
    if (st != MOEC_OK)
        return st;
    st = moec_read_loose_json(text, n, "manifest.json", &root, u->err);
    free(text);
    if (st != MOEC_OK)
        return st;
    u->digests = json_object();
    json_array_foreach (json_object_get(root, "files"), i, file) {
        const char *name = json_string_value(json_object_get(file, "name"));
        json_t *sum = json_object_get(file, "tree_sha256");
        if (name != NULL && json_is_string(sum))
            json_object_set(u->digests, name, sum);
    }
    json_decref(root);
    return MOEC_OK;
}

/* Upload one file, unless it is there. */
static moec_status put_file(uploading *u, const char *name, bool fresh)
{
    const char *digest = json_string_value(json_object_get(u->digests, name));
    size_t there = moec_web_find(u->web, name);
    bool same = false;
    struct stat sb;
    char *path = NULL;
    moec_status st = MOEC_OK;
    if (asprintf(&path, "%s/%s", u->dir, name) < 0)
        return moec_cli_error(u->err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for a path");
    if (stat(path, &sb) != 0)
        sb.st_size = 0;
    if (digest != NULL && there != SIZE_MAX)
        st = moec_web_has(u->web, there, (uint64_t)sb.st_size, digest, &same,
                          u->err);
    if (st == MOEC_OK && !same)
        st = moec_web_put(u->web, name, path, digest, fresh, u->err);
    free(path);
    u->figures->n_files++;
    u->figures->n_there += same;
    u->figures->bytes += same ? 0 : (uint64_t)sb.st_size;
    return st;
}

/* All files but hidden ones and the manifest. */
static moec_status put_all(uploading *u)
{
    struct dirent **list = NULL;
    int n = scandir(u->dir, &list, NULL, alphasort);
    moec_status st = MOEC_OK;
    if (n < 0)
        return moec_cli_error(u->err, MOEC_E_IO, MOEC_RULE_NONE,
                              "%s: cannot be listed", u->dir);
    for (int i = 0; i < n; i++) {
        if (st == MOEC_OK && list[i]->d_name[0] != '.' &&
            strcmp(list[i]->d_name, "manifest.json") != 0)
            st = put_file(u, list[i]->d_name, false);
        free(list[i]);
    }
    free(list);
    return st;
}

moec_status moec_cli_web_upload(const char *dir, const char *url, bool force,
                                moec_cli_uploaded *figures, moec_error *err)
{
    moec_web_opts web = environment();
    uploading u = {.dir = dir, .figures = figures, .err = err};
    moec_conversion *c = NULL;
    struct timespec t0, t1;
    moec_status st;
    (void)clock_gettime(CLOCK_MONOTONIC, &t0);
    /* Is it a whole conversion? */
    st = moec_conversion_open(&c, dir, NULL, err);
    moec_conversion_close(c);
    if (st == MOEC_OK)
        st = read_digests(&u);
    if (st == MOEC_OK)
        st = moec_web_create(&u.web, url, &web, err);
    if (st == MOEC_OK && !force &&
        moec_web_find(u.web, "manifest.json") != SIZE_MAX)
        st = moec_cli_error(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                            "%s has a manifest.json: --force replaces what is "
                            "there",
                            url);
    if (st == MOEC_OK)
        st = put_all(&u);
    if (st == MOEC_OK)
        st = put_file(&u, "manifest.json", !force);
    if (u.web != NULL) {
        figures->n_requests = moec_web_stats_of(u.web).n_requests;
        figures->n_retries = moec_web_stats_of(u.web).n_retries;
    }
    moec_web_close(u.web);
    json_decref(u.digests);
    (void)clock_gettime(CLOCK_MONOTONIC, &t1);
    figures->seconds = (double)(t1.tv_sec - t0.tv_sec) +
                       1e-9 * (double)(t1.tv_nsec - t0.tv_nsec);
    return st;
}

#else /* MOEC_HAS_STORE */

static moec_status refuse(const char *url, moec_error *err)
{
    return moec_cli_error(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                          "%s: this moe-convert was built without libcurl and "
                          "expat, so without URLs",
                          url);
}

moec_status moec_cli_web_store(const moec_store **out, const char *path,
                               moec_error *err)
{
    *out = NULL;
    return moec_web_is_url(path) ? refuse(path, err) : MOEC_OK;
}

moec_status moec_cli_web_objects(const struct moec_objects **out,
                                 const char *url, moec_error *err)
{
    (void)out;
    return refuse(url, err);
}

moec_status moec_cli_web_upload(const char *dir, const char *url, bool force,
                                moec_cli_uploaded *figures, moec_error *err)
{
    (void)dir;
    (void)force;
    (void)figures;
    return refuse(url, err);
}

void moec_cli_web_close(void)
{
}

#endif
