// Vectors of FDMA_SIMD_LANES floats through the compiler's vector extensions: loads and stores of the three float
// dtypes, exponential and hyperbolic tangent. Included inside the namespace of an instruction set, once for each.

inline constexpr int64_t kLanes = FDMA_SIMD_LANES;

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));

// Inlined everywhere, so that no vector is ever passed by a calling convention.
#define FDMA_SIMD inline __attribute__((always_inline))

// Elements of the 16-bit dtypes, as their bits.
struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

template <typename To, typename From>
FDMA_SIMD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

FDMA_SIMD VecF splat(float x) { return x - VecF{}; }
FDMA_SIMD VecU splat(uint32_t x) { return x - VecU{}; }

template <typename T>
struct MemoryVector;
template <>
struct MemoryVector<float> {
  using type = VecF;
};
template <>
struct MemoryVector<Half> {
  using type = VecH;
};
template <>
struct MemoryVector<BFloat> {
  using type = VecH;
};

// --- conversions
// -------------------------------------------------------------------------------------------------------

template <typename T>
FDMA_SIMD VecF to_float(typename MemoryVector<T>::type v);

template <>
FDMA_SIMD VecF to_float<float>(VecF v) {
  return v;
}

template <>
FDMA_SIMD VecF to_float<BFloat>(VecH v) {
  return bit_cast<VecF>(__builtin_convertvector(v, VecU) << 16);
}

template <>
FDMA_SIMD VecF to_float<Half>(VecH v) {
  const VecU h = __builtin_convertvector(v, VecU);
  const VecU magnitude = (h & 0x7fffu) << 13;
  // As a float the magnitude has exponent bias 15 instead of 127: a product puts that right, subnormals included.
  const VecU finite = bit_cast<VecU>(bit_cast<VecF>(magnitude) * 0x1p112f);
  const VecU special = (VecU)(magnitude >= 0x0f800000u) & 0x7f800000u;  // infinities and NaN
  return bit_cast<VecF>(finite | special | ((h & 0x8000u) << 16));
}

template <typename T>
FDMA_SIMD typename MemoryVector<T>::type from_float(VecF x);

template <>
FDMA_SIMD VecF from_float<float>(VecF x) {
  return x;
}

template <>
FDMA_SIMD VecH from_float<BFloat>(VecF x) {
  const VecU bits = bit_cast<VecU>(x);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const VecU nan = ((bits >> 16) & 0x8000u) | 0x7fc0u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, VecH);
}

template <>
FDMA_SIMD VecH from_float<Half>(VecF x) {
  const VecU bits = bit_cast<VecU>(x);
  const VecU magnitude = bits & 0x7fffffffu;
  // Normal results: move the exponent bias from 127 to 15 and round the 13 bits that go, to nearest, ties to even.
  const VecU normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results are multiples of 2^-24, which is half a unit in the last place of 0.5: the sum rounds them.
  const VecU subnormal = bit_cast<VecU>(bit_cast<VecF>(magnitude) + 0.5f) - 0x3f000000u;
  const VecU finite = magnitude < 0x38800000u ? subnormal : normal;
  const VecU special = magnitude > 0x7f800000u ? splat(0x7e00u) : splat(0x7c00u);
  const VecU result = magnitude >= 0x477ff000u ? special : finite;  // from 65520 on, the nearest is infinity
  return __builtin_convertvector(result | ((bits >> 16) & 0x8000u), VecH);
}

// --- memory
// ------------------------------------------------------------------------------------------------------------

template <typename T>
FDMA_SIMD VecF load(const T* p) {
  typename MemoryVector<T>::type v;
  std::memcpy(&v, p, sizeof(v));
  return to_float<T>(v);
}

// The first `count` lanes; the others are zero and nothing past them is read.
template <typename T>
FDMA_SIMD VecF load_part(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  typename MemoryVector<T>::type v = {};
  if (count > 0) std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return to_float<T>(v);
}

template <typename T>
FDMA_SIMD void store(T* p, VecF x) {
  const auto v = from_float<T>(x);
  std::memcpy(p, &v, sizeof(v));
}

template <typename T>
FDMA_SIMD void store_part(T* p, VecF x, int64_t count) {
  const auto v = from_float<T>(x);
  std::memcpy(p, &v, static_cast<size_t>(count < kLanes ? count : kLanes) * sizeof(T));
}

// --- functions
// ---------------------------------------------------------------------------------------------------------

FDMA_SIMD VecF vmax(VecF a, VecF b) { return a > b ? a : b; }

FDMA_SIMD float horizontal_max(VecF v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(v));
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  }
  return lane[0];
}

FDMA_SIMD float horizontal_sum(VecF v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(v));
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// 2^x to within 2 units in the last place; 0 below the normal range, saturating above it, NaN of NaN.
FDMA_SIMD VecF exp2(VecF x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  const VecF clamped = x > 127.0f ? splat(127.0f) : x;
  const VecF shifted = clamped + kRounder;
  const VecF r = clamped - (shifted - kRounder);  // in [-0.5, 0.5], exact
  // Minimax fit of 2^r with p(0) = 1, relative error 2e-9.
  VecF p = r * 1.5353362e-4f + 1.3398874e-3f;
  p = p * r + 9.6184370e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 0.24022648f;
  p = p * r + 0.69314720f;
  p = p * r + 1.0f;
  const VecF power = bit_cast<VecF>((bit_cast<VecU>(shifted) << 23) + 0x3f800000u);
  return clamped < -126.0f ? VecF{} : p * power;
}

FDMA_SIMD VecF tanh(VecF x) {
  const VecF z = x * x;
  // Minimax fit of (tanh(x) - x) / x^3 on |x| <= 0.625, relative error of the result 4e-9.
  VecF p = z * -5.7049873e-3f + 2.0639088e-2f;
  p = p * z + -5.3739715e-2f;
  p = p * z + 0.13331442f;
  p = p * z + -0.33333280f;
  const VecF near_zero = x + x * (z * p);
  const VecF magnitude = bit_cast<VecF>(bit_cast<VecU>(x) & 0x7fffffffu);
  const VecF far = 1.0f - 2.0f / (exp2(magnitude * (2.0f * kLog2e)) + 1.0f);
  const VecF signed_far = bit_cast<VecF>(bit_cast<VecU>(far) | (bit_cast<VecU>(x) & 0x80000000u));
  return magnitude < 0.625f ? near_zero : signed_far;
}
