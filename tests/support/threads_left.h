/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_THREADS_LEFT_H
#define MOEC_TESTS_THREADS_LEFT_H

/* How many threads of ours this process still has, by their names. A joined
 * thread may stand in /proc for a moment longer: asks for a minute. */

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static inline unsigned threads_left_once_(void)
{
    DIR *d = opendir("/proc/self/task");
    struct dirent *t;
    unsigned n = 0;

    while (d != NULL && (t = readdir(d)) != NULL) {
        char path[300], name[32] = "";
        FILE *f;

        (void)snprintf(path, sizeof(path), "/proc/self/task/%s/comm",
                       t->d_name);
        f = fopen(path, "re");
        if (f == NULL)
            continue;
        if (fgets(name, sizeof(name), f) != NULL)
            n += strncmp(name, "moec", 4) == 0;
        (void)fclose(f);
    }
    if (d != NULL)
        (void)closedir(d);
    return n;
}

static inline unsigned threads_left(void)
{
    struct timespec nap = {.tv_nsec = 1000000};
    unsigned n = threads_left_once_();

    for (int i = 0; n > 0 && i < 60000; i++) {
        (void)nanosleep(&nap, NULL);
        n = threads_left_once_();
    }
    return n;
}

#endif
