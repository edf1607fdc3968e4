// Reads parameter structs of callers that were compiled against another version of the headers.
//
// Fields are only ever appended. A shorter struct is an older caller's: the fields that it lacks keep their defaults. A
// longer one is a newer caller's: it runs as long as what this library does not know is zero, its default.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fdma/attention.h"
#include "fdma/cache.h"
#include "fdma/mask.h"
#include "fdma/select.h"

namespace fdma {

// Writes the defaults of a version of `struct_size` bytes. No more than `struct_size` bytes are written.
void init_parameters(fdma_attention_forward_params* params, size_t struct_size);
void init_parameters(fdma_attention_backward_params* params, size_t struct_size);
void init_parameters(fdma_select_params* params, size_t struct_size);
void init_parameters(fdma_pack_mask_params* params, size_t struct_size);
void init_parameters(fdma_cache_append_params* params, size_t struct_size);
void init_parameters(fdma_cache_gather_params* params, size_t struct_size);

// The caller's struct completed with defaults. Throws fdma::Error when its struct_size is no version's.
fdma_attention_forward_params read_parameters(const fdma_attention_forward_params& params);
fdma_attention_backward_params read_parameters(const fdma_attention_backward_params& params);
fdma_select_params read_parameters(const fdma_select_params& params);
fdma_pack_mask_params read_parameters(const fdma_pack_mask_params& params);
fdma_cache_append_params read_parameters(const fdma_cache_append_params& params);
fdma_cache_gather_params read_parameters(const fdma_cache_gather_params& params);

// What every read_parameters does: copies `struct_size` bytes at `source` over the `size` bytes of defaults at
// `target`. `first_size` is the size of the first published version; `init_name` sets struct_size for callers.
void read_versioned(void* target, size_t size, size_t first_size, const void* source, uint32_t struct_size,
                    const char* init_name);

}  // namespace fdma
