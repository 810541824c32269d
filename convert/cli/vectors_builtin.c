/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vector files as they are, by the assembler: as C arrays 1.3 MB of them take
 * compilers longer than the rest of the program.
 */
#include "vectors_builtin.h"

/* MOEC_VECTORS_DIR: fixtures/vectors of the source tree. */
#define EMBED(symbol, file)                                                    \
  __asm__(".pushsection .rodata\n"                                             \
          ".balign 64\n"                                                       \
          ".globl " #symbol "\n"                                               \
          ".hidden " #symbol "\n" #symbol ":\n"                                \
          ".incbin \"" MOEC_VECTORS_DIR "/" file "\"\n"                        \
          ".globl " #symbol "_end\n"                                           \
          ".hidden " #symbol "_end\n" #symbol "_end:\n"                        \
          ".byte 0\n"                                                          \
          ".popsection\n");                                                    \
  extern const char symbol[], symbol##_end[]

EMBED(moec_vec_routing_json, "routing.json");
EMBED(moec_vec_routing_safetensors, "routing.safetensors");
EMBED(moec_vec_expert_choice_json, "expert_choice.json");
EMBED(moec_vec_dispatch_json, "dispatch.json");
EMBED(moec_vec_waterfill_json, "waterfill.json");
EMBED(moec_vec_eplb_json, "eplb.json");

static moec_vector_file file_of(const char *name, const char *data,
                                const char *end)
{
    return (moec_vector_file){name, data, (size_t)(end - data)};
}

#define FILE_OF(name, symbol) file_of(name, symbol, symbol##_end)

void moec_builtin_vectors(moec_vector_file out[MOEC_N_BUILTIN_VECTORS])
{
    out[0] = FILE_OF("routing.json", moec_vec_routing_json);
    out[1] = FILE_OF("routing.safetensors", moec_vec_routing_safetensors);
    out[2] = FILE_OF("expert_choice.json", moec_vec_expert_choice_json);
    out[3] = FILE_OF("dispatch.json", moec_vec_dispatch_json);
    out[4] = FILE_OF("waterfill.json", moec_vec_waterfill_json);
    out[5] = FILE_OF("eplb.json", moec_vec_eplb_json);
}
