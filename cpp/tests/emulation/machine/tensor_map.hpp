// What the emulation writes in place of a CUtensorMap: runtime.cpp encodes, copies.cpp reads.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace fdma::emulation {

constexpr int kRank = 4;
constexpr uint64_t kMapMark = 0x5eed;

struct BoxMap {
  uint64_t mark;
  char* base;
  uint64_t size[kRank], stride[kRank];  // stride in bytes
  uint32_t box[kRank];
};
static_assert(sizeof(BoxMap) <= sizeof(CUtensorMap));

}  // namespace fdma::emulation
