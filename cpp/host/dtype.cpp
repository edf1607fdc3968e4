#include "host/dtype.hpp"

namespace fdma {
namespace {

struct DtypeEntry {
  fdma_dtype dtype;
  const char* name;
  int64_t size;
};

constexpr DtypeEntry kDtypes[] = {
    {FDMA_FLOAT16, "float16", 2}, {FDMA_BFLOAT16, "bfloat16", 2}, {FDMA_FLOAT32, "float32", 4},
    {FDMA_FLOAT64, "float64", 8}, {FDMA_BOOL, "bool", 1},         {FDMA_UINT8, "uint8", 1},
    {FDMA_INT8, "int8", 1},       {FDMA_INT16, "int16", 2},       {FDMA_INT32, "int32", 4},
    {FDMA_INT64, "int64", 8},
};

const DtypeEntry* find(fdma_dtype dtype) {
  for (const DtypeEntry& entry : kDtypes) {
    if (entry.dtype == dtype) return &entry;
  }
  return nullptr;
}

}  // namespace

int64_t dtype_size(fdma_dtype dtype) {
  const DtypeEntry* entry = find(dtype);
  return entry != nullptr ? entry->size : 0;
}

std::string dtype_name(fdma_dtype dtype) {
  const DtypeEntry* entry = find(dtype);
  return entry != nullptr ? entry->name : "unknown dtype " + std::to_string(static_cast<int>(dtype));
}

bool DtypeSet::contains(fdma_dtype dtype) const { return find(dtype) != nullptr && ((bits_ >> dtype) & 1u) != 0; }

std::string DtypeSet::names() const {
  std::string text;
  for (const DtypeEntry& entry : kDtypes) {
    if (contains(entry.dtype)) text += (text.empty() ? "" : ", ") + std::string(entry.name);
  }
  return text;
}

}  // namespace fdma
