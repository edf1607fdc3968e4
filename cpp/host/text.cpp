#include "host/text.hpp"

#include <algorithm>

namespace fdma {

std::string tuple_text(const int64_t* values, int rank) {
  rank = std::clamp(rank, 0, FDMA_MAX_RANK);
  std::string text = "(";
  for (int i = 0; i < rank; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  }
  return text + (rank == 1 ? ",)" : ")");
}

std::string shape_text(const fdma_tensor& tensor) { return tuple_text(tensor.shape, tensor.rank); }
std::string stride_text(const fdma_tensor& tensor) { return tuple_text(tensor.stride, tensor.rank); }

}  // namespace fdma
