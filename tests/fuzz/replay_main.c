/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Runs a fuzz target over the files and directories that the command line
 * names, where there is no libFuzzer. A directory without files fails, so that
 * a lost corpus is seen.
 */

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static size_t n_inputs;

static int replay_file(const char *path, size_t n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(n > 0 ? n : 1); /* exact: overruns are seen */
    int ok = f != NULL && data != NULL && fread(data, 1, n, f) == n;

    if (ok) {
        (void)LLVMFuzzerTestOneInput(data, n);
        n_inputs++;
    } else {
        (void)fprintf(stderr, "%s: cannot read\n", path);
    }
    if (f != NULL)
        (void)fclose(f);
    free(data);
    return ok;
}

static int replay(const char *path)
{
    char name[4096];
    const struct dirent *e;
    struct stat st;
    int ok = 1;
    DIR *dir;

    if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
        return replay_file(path, (size_t)st.st_size);
    dir = opendir(path);
    if (dir == NULL) {
        (void)fprintf(stderr, "%s: cannot open\n", path);
        return 0;
    }
    while ((e = readdir(dir)) != NULL) {
        (void)snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        if (stat(name, &st) == 0 && S_ISREG(st.st_mode))
            ok &= replay_file(name, (size_t)st.st_size);
    }
    (void)closedir(dir);
    return ok;
}

int main(int argc, char **argv)
{
    int ok = 1;

    for (int i = 1; i < argc; i++)
        ok &= replay(argv[i]);
    (void)printf("%zu inputs\n", n_inputs);
    return ok && n_inputs > 0 ? 0 : 1;
}
