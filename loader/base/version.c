/* SPDX-License-Identifier: Apache-2.0
 *
 * The version of the library that runs, which may be newer than the header
 * that a program was compiled with. */

#include <moec/version.h>

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

const char *moec_version(void)
{
    return TEXT(MOEC_VERSION_MAJOR) "." TEXT(MOEC_VERSION_MINOR) "." TEXT(
        MOEC_VERSION_PATCH);
}
