/* SPDX-License-Identifier: Apache-2.0 */
/* A stranger's program: umbrella header, one call that reaches every library
 * behind libmoec, and the version it was compiled against. */

#include <stdio.h>
#include <string.h>

#include <moec/moec.h>

int main(void)
{
    char built[32];
    moec_error err = MOEC_ERROR_INIT;
    moec_families *families = NULL;

    snprintf(built, sizeof(built), "%d.%d.%d", MOEC_VERSION_MAJOR,
             MOEC_VERSION_MINOR, MOEC_VERSION_PATCH);
    if (strcmp(built, moec_version()) != 0) {
        printf("headers %s, library %s\n", built, moec_version());
        return 1;
    }
    if (moec_families_create(&families, &err) != MOEC_OK) {
        printf("%s\n", err.text);
        return 1;
    }
    printf("libmoec %s, %zu families\n", moec_version(),
           moec_families_count(families));
    if (moec_families_count(families) == 0)
        return 1;
    moec_families_destroy(families);
    return 0;
}
