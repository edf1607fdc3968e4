#include "host/parameters.hpp"

#include <algorithm>
#include <cstring>

#include "host/error.hpp"
#include "host/text.hpp"

namespace fdma {
namespace {

// Sizes of the first published versions. They never change.
constexpr size_t kFirstForwardSize = 816;
constexpr size_t kFirstBackwardSize = 1304;
constexpr size_t kFirstSelectSize = 616;
constexpr size_t kFirstPackMaskSize = 224;
constexpr size_t kFirstCacheAppendSize = 800;
constexpr size_t kFirstCacheGatherSize = 792;
static_assert(sizeof(fdma_attention_forward_params) >= kFirstForwardSize);
static_assert(sizeof(fdma_attention_backward_params) >= kFirstBackwardSize);
static_assert(sizeof(fdma_select_params) >= kFirstSelectSize);
static_assert(sizeof(fdma_pack_mask_params) >= kFirstPackMaskSize);
static_assert(sizeof(fdma_cache_append_params) >= kFirstCacheAppendSize);
static_assert(sizeof(fdma_cache_gather_params) >= kFirstCacheGatherSize);

void set_defaults(fdma_attention_forward_params& params) { params.scale = FDMA_SCALE_DEFAULT; }
void set_defaults(fdma_attention_backward_params& params) { params.scale = FDMA_SCALE_DEFAULT; }
void set_defaults(fdma_select_params&) {}
void set_defaults(fdma_pack_mask_params&) {}
void set_defaults(fdma_cache_append_params& params) { params.first_position = FDMA_POSITION_NONE; }
void set_defaults(fdma_cache_gather_params&) {}

template <typename Params>
Params default_parameters() {
  Params params{};
  params.struct_size = sizeof(Params);
  params.device.type = FDMA_DEVICE_CPU;
  set_defaults(params);
  return params;
}

template <typename Params>
void init(Params* params, size_t struct_size) {
  Params defaults = default_parameters<Params>();
  defaults.struct_size = static_cast<uint32_t>(struct_size);
  std::memset(params, 0, struct_size);
  std::memcpy(params, &defaults, std::min(struct_size, sizeof(Params)));
}

template <typename Params>
Params read(const Params& params, size_t first_size, const char* init_name) {
  Params complete = default_parameters<Params>();
  read_versioned(&complete, sizeof(Params), first_size, &params, params.struct_size, init_name);
  complete.struct_size = sizeof(Params);
  return complete;
}

}  // namespace

void read_versioned(void* target, size_t size, size_t first_size, const void* source, uint32_t struct_size,
                    const char* init_name) {
  if (struct_size < first_size) {
    throw Error(FDMA_INVALID_ARGUMENT, concat("params.struct_size is ", struct_size, "; accepted: ", first_size,
                                              " or more, as ", init_name, " sets it"));
  }
  const char* bytes = static_cast<const char*>(source);
  for (size_t i = size; i < struct_size; ++i) {
    if (bytes[i] != 0) {
      throw Error(
          FDMA_UNSUPPORTED,
          concat("params.struct_size is ", struct_size, " and byte ", i, " is not zero: the caller uses a field ",
                 "of a newer version; accepted by this library: ", size, " bytes, or zeros past them"));
    }
  }
  std::memcpy(target, source, std::min<size_t>(size, struct_size));
}

void init_parameters(fdma_attention_forward_params* params, size_t struct_size) { init(params, struct_size); }
void init_parameters(fdma_attention_backward_params* params, size_t struct_size) { init(params, struct_size); }
void init_parameters(fdma_select_params* params, size_t struct_size) { init(params, struct_size); }
void init_parameters(fdma_pack_mask_params* params, size_t struct_size) { init(params, struct_size); }
void init_parameters(fdma_cache_append_params* params, size_t struct_size) { init(params, struct_size); }
void init_parameters(fdma_cache_gather_params* params, size_t struct_size) { init(params, struct_size); }

fdma_attention_forward_params read_parameters(const fdma_attention_forward_params& params) {
  return read(params, kFirstForwardSize, "fdma_attention_forward_params_init");
}

fdma_attention_backward_params read_parameters(const fdma_attention_backward_params& params) {
  return read(params, kFirstBackwardSize, "fdma_attention_backward_params_init");
}

fdma_select_params read_parameters(const fdma_select_params& params) {
  return read(params, kFirstSelectSize, "fdma_select_params_init");
}

fdma_pack_mask_params read_parameters(const fdma_pack_mask_params& params) {
  return read(params, kFirstPackMaskSize, "fdma_pack_mask_params_init");
}

fdma_cache_append_params read_parameters(const fdma_cache_append_params& params) {
  return read(params, kFirstCacheAppendSize, "fdma_cache_append_params_init");
}

fdma_cache_gather_params read_parameters(const fdma_cache_gather_params& params) {
  return read(params, kFirstCacheGatherSize, "fdma_cache_gather_params_init");
}

}  // namespace fdma
