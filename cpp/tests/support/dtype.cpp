#include "tests/support/dtype.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace fdma::test {
namespace {

// A binary float of 16 bits: `fraction_bits` of fraction, exponent bias `bias`.
struct Float16Format {
  int fraction_bits;
  int bias;

  double decode(uint16_t bits) const {
    const int exponent_bits = 15 - fraction_bits;
    const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) {
      return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    }
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
    return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
  }

  uint16_t encode(double value) const {
    const int max_exponent = (1 << (15 - fraction_bits)) - 1;
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const auto infinity = static_cast<uint16_t>(max_exponent << fraction_bits);
    if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1 << (fraction_bits - 1));
    if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
    const double magnitude = std::fabs(value);
    const int exponent = std::max(magnitude == 0 ? 1 - bias : std::ilogb(magnitude), 1 - bias);
    // In units of the last place; reaching 2^(fraction_bits + 1) carries into the exponent by itself.
    const double units = std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent));
    const int64_t bits = (static_cast<int64_t>(exponent + bias - 1) << fraction_bits) + static_cast<int64_t>(units);
    return static_cast<uint16_t>(sign | std::min<int64_t>(bits, infinity));
  }
};

constexpr Float16Format kHalf{10, 15};
constexpr Float16Format kBFloat{7, 127};

template <typename T>
T read(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

template <typename T>
void write(void* p, T value) {
  std::memcpy(p, &value, sizeof(value));
}

}  // namespace

int64_t element_size(fdma_dtype dtype) {
  switch (dtype) {
    case FDMA_BOOL:
    case FDMA_UINT8:
    case FDMA_INT8:
      return 1;
    case FDMA_FLOAT16:
    case FDMA_BFLOAT16:
    case FDMA_INT16:
      return 2;
    case FDMA_FLOAT32:
    case FDMA_INT32:
      return 4;
    default:
      return 8;
  }
}

double read_element(const void* p, fdma_dtype dtype) {
  switch (dtype) {
    case FDMA_FLOAT16:
      return kHalf.decode(read<uint16_t>(p));
    case FDMA_BFLOAT16:
      return kBFloat.decode(read<uint16_t>(p));
    case FDMA_FLOAT32:
      return read<float>(p);
    case FDMA_FLOAT64:
      return read<double>(p);
    case FDMA_BOOL:
    case FDMA_UINT8:
      return read<uint8_t>(p);
    case FDMA_INT8:
      return read<int8_t>(p);
    case FDMA_INT16:
      return read<int16_t>(p);
    case FDMA_INT32:
      return read<int32_t>(p);
    case FDMA_INT64:
      return static_cast<double>(read<int64_t>(p));
    default:
      throw std::invalid_argument("read_element: not a dtype");
  }
}

void write_element(void* p, fdma_dtype dtype, double value) {
  switch (dtype) {
    case FDMA_FLOAT16:
      return write(p, kHalf.encode(value));
    case FDMA_BFLOAT16:
      return write(p, kBFloat.encode(value));
    case FDMA_FLOAT32:
      return write(p, static_cast<float>(value));
    case FDMA_FLOAT64:
      return write(p, value);
    case FDMA_BOOL:
    case FDMA_UINT8:
      return write(p, static_cast<uint8_t>(value));
    case FDMA_INT8:
      return write(p, static_cast<int8_t>(value));
    case FDMA_INT16:
      return write(p, static_cast<int16_t>(value));
    case FDMA_INT32:
      return write(p, static_cast<int32_t>(value));
    case FDMA_INT64:
      return write(p, static_cast<int64_t>(value));
    default:
      throw std::invalid_argument("write_element: not a dtype");
  }
}

double rounded(double value, fdma_dtype dtype) {
  unsigned char element[8];
  write_element(element, dtype, value);
  return read_element(element, dtype);
}

double unit_roundoff(fdma_dtype dtype) {
  return std::ldexp(1.0, dtype == FDMA_FLOAT16 ? -11 : dtype == FDMA_BFLOAT16 ? -8 : -24);
}

}  // namespace fdma::test
