// SPDX-License-Identifier: Apache-2.0
// The same from C++: a refusal comes back as a value, nothing is thrown.

#include <cstdio>
#include <cstring>

#include <moec/moec.h>

int main()
{
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *ckpt = nullptr;
    const moec_status status =
        moec_ckpt_open(&ckpt, "no/such/checkpoint", nullptr, &err);

    std::printf("%s: %s\n", moec_status_name(status), err.text);
    return status != MOEC_OK && ckpt == nullptr && std::strlen(err.text) > 0
               ? 0
               : 1;
}
