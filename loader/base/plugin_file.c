/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where plug-ins are: where the caller says, beside the library (in moec/), and
 * where they were installed; never along LD_LIBRARY_PATH, and the environment
 * is not read.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"

#ifndef MOEC_PLUGIN_DIR
#  define MOEC_PLUGIN_DIR "/usr/local/lib/moec"
#endif
#define PATH_BYTES 4096u

/* "DIR/moec/NAME" and "DIR/NAME" where DIR is the library's own; the second
 * serves a build tree. */
static bool beside(char *out, const char *sub, const char *name)
{
    static const char here = 0; /* an address in the file we are in */
    Dl_info self;
    const char *slash;
    int n;

    if (dladdr(&here, &self) == 0 || self.dli_fname == NULL)
        return false;
    slash = strrchr(self.dli_fname, '/');
    if (slash == NULL)
        return false;
    n = snprintf(out, PATH_BYTES, "%.*s/%s%s", (int)(slash - self.dli_fname),
                 self.dli_fname, sub, name);
    return n > 0 && (unsigned)n < PATH_BYTES;
}

/* The first place that has the plug-in decides. */
static const char *find(char *path, const char *name)
{
    static const char *const subs[] = {"moec/", ""};

    for (size_t i = 0; i < sizeof(subs) / sizeof(*subs); i++) {
        FILE *f;

        if (!beside(path, subs[i], name) || (f = fopen(path, "rbe")) == NULL)
            continue;
        (void)fclose(f);
        return path;
    }
    (void)snprintf(path, PATH_BYTES, "%s/%s", MOEC_PLUGIN_DIR, name);
    return path;
}

void *moec_plugin_load(const char *what, const char *name, const char *path,
                       moec_error *err)
{
    char found[PATH_BYTES];
    void *h;

    if (path == NULL)
        path = find(found, name);
    h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (h == NULL) {
        const char *why = dlerror();

        (void)moec_fail(err, MOEC_E_NO_DEVICE, MOEC_RULE_NONE,
                        "no %s: the plug-in cannot be loaded: %s", what,
                        why != NULL ? why : path);
    }
    return h;
}
