// Attention of a few queries on keys that lie anywhere: a list of selected ones, or all of a cache.
//
// A block owns 16 rows (queries and heads that share their keys) and one split of the keys. Its warps work alone: each
// takes every kWarps-th group of 16 keys through buffers of its own, filled by cp.async row by row, and keeps an output
// and a softmax of its own. So the loop has no barrier, and what bounds it is how many bytes are under way; the warps
// are put together once at the end. Where a key lies is read one step before its copy starts.
#pragma once

#include "kernels/core/launch.cuh"
#include "kernels/decode/params.hpp"
#include "kernels/policy/score.cuh"
#include "kernels/policy/softmax.cuh"
#include "kernels/sm80/tile_io.cuh"

namespace fdma::sm80 {

// The rows and keys of a block.
struct DecodeUnit {
  int b, kv_head, first_head, first_query, queries, rows;  // row r: query first_query + r % queries
  int first_row;                                           // of the block, among `rows`
  int split, len_k, bias_head;
  int64_t list;

  FDMA_DEVICE DecodeUnit(const DecodeParams& p, unsigned block) {
    const auto take = [&](int count) {
      const int index = static_cast<int>(block % static_cast<unsigned>(count));
      block /= static_cast<unsigned>(count);
      return index;
    };
    // What reads the same keys comes side by side.
    first_row = take(p.row_tiles) * kDecodeRows;
    first_query = take(p.query_units);
    const int head_unit = take(p.head_units);
    split = take(p.splits);
    kv_head = take(p.heads_kv);
    b = static_cast<int>(block);
    first_head = kv_head * p.group + head_unit;
    queries = p.len_q / p.query_units;
    rows = p.unit_rows;
    len_k = p.lengths.at(b);
    bias_head = first_head / p.bias.heads_per_bias_head;
    list = (static_cast<int64_t>(b) * p.list_heads + bias_head) * p.query_units + first_query;
  }
  FDMA_DEVICE int head(int row) const { return first_head + (first_row + row) / queries; }
  FDMA_DEVICE int query(int row) const { return first_query + (first_row + row) % queries; }
  FDMA_DEVICE bool has(int row) const { return first_row + row < rows; }
};

template <typename T, int kHeadDim>
class DecodeBlock {
  static constexpr int kWarps = decode_warps(kHeadDim);
  static constexpr int kStages = decode_stages(kHeadDim);
  static constexpr int kKeys = kDecodeWarpKeys;
  static constexpr int kDimSteps = kHeadDim / 16;
  using Tile = SmemTile<kKeys, kHeadDim>;
  static constexpr int kStageBytes = 2 * Tile::kBytes;  // keys, values
  static constexpr int kBiasBytes = kKeys * 4;  // of a stage, behind all tiles, which start at lines of 128 bytes
  static constexpr int kWarpBytes = kStages * (kStageBytes + kBiasBytes);
  static_assert(kWarpBytes % 128 == 0 && Tile::kBytes % 128 == 0);
  static constexpr int kChunks = kHeadDim / kChunk;  // of a row
  static constexpr int kRowsPerPass = 32 / kChunks;
  static constexpr int kPasses = 2 * kKeys / kRowsPerPass;
  static constexpr int kMergePitch = kHeadDim + 8;  // floats; 8 rows of a fragment fall into different banks
  static_assert(kDecodeRows * kMergePitch * 4 <= kWarpBytes, "a warp's output fits its buffers");

 public:
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSharedBytes = kWarps * kWarpBytes;

  FDMA_DEVICE DecodeBlock(const DecodeParams& p, char* shared)
      : p_(p),
        unit_(p, blockIdx.x),
        unit_score_(p.scale, p.softcap),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        shared_(shared),
        smem_(smem_address(shared) + warp_ * kWarpBytes),
        softmax_(1.f) {}

  FDMA_DEVICE void run() {
    find_keys();
    if (begin_ >= end_ && p_.splits > 1) return store_nothing();
    fetch(0);
    load_query();
    clear(out_);
    const int steps = max_of(0, ceil_div(end_ - begin_ - warp_ * kKeys, kWarps * kKeys));
    int stage = 0, filled = 0;
    for (int step = 1 - kStages; step < steps; ++step) {  // one place that copies: instructions are fetched too
      copy(step + kStages - 1, filled);
      copy_async_commit();
      filled = filled == kStages - 1 ? 0 : filled + 1;
      if (step < 0) continue;
      copy_async_wait<kStages - 1>();
      __syncwarp();
      attend(step, stage);
      __syncwarp();
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    copy_async_wait<0>();  // the buffers are written to by other means now
    __syncwarp();
    merge();
  }

 private:
  // The keys of the split, a multiple of the block's step but for the last.
  FDMA_DEVICE void find_keys() {
    const int count = p_.kept != nullptr ? p_.counts[unit_.list] : unit_.len_k;
    const int chunk = round_up(ceil_div(count, p_.splits), kWarps * kKeys);
    begin_ = static_cast<int>(min_of<int64_t>(count, static_cast<int64_t>(unit_.split) * chunk));
    end_ = min_of(count, begin_ + chunk);
    if (p_.kept != nullptr) kept_ = p_.kept + unit_.list * p_.keep;
  }

  FDMA_DEVICE uint32_t biases(int stage) const { return smem_ + kStages * kStageBytes + stage * kBiasBytes; }

  FDMA_DEVICE int first_key(int step) const { return begin_ + (step * kWarps + warp_) * kKeys; }

  // Finds key lane % 16 of a step; next_.key is -1 where there is none to read.
  FDMA_DEVICE void fetch(int step) {
    const int position = first_key(step) + lane_ % kKeys;
    next_ = {-1, -INFINITY};
    if (position >= end_) return;
    if (kept_ != nullptr) {
      next_ = kept_[position];
      return;
    }
    float bias = 0.f;
    if (p_.bias.data != nullptr) {
      const int64_t row = p_.bias.offset(unit_.b, unit_.first_head, 0);
      bias = load_element(p_.bias.data, p_.bias.type, row + position);
      if (bias == -INFINITY || (p_.hides_nan && isnan(bias))) return;
    }
    next_ = {position, bias};
  }

  // Row of next_ in the keys (lanes 0 to 15) or values (16 to 31); null where there is none.
  FDMA_DEVICE const T* locate() const {
    if (next_.key < 0) return nullptr;
    int64_t b = unit_.b, row = next_.key;
    if (p_.pages.table != nullptr) {
      const int page = __ldg(p_.pages.table + b * p_.pages.pages_per_sequence + next_.key / p_.pages.page_size);
      b = max_of(0, min_of(page, p_.pages.pages - 1));
      row = next_.key % p_.pages.page_size;
    }
    return (lane_ < kKeys ? p_.key : p_.value).template at<const T>(b, unit_.kv_head, row);
  }

  // Starts the copies of a step, which fetch has found, and finds the keys of the one after it.
  FDMA_DEVICE void copy(int step, int stage) {
    const uint32_t target = smem_ + stage * kStageBytes;
    const T* own = locate();
    if (lane_ < kKeys) store_shared_4(biases(stage) + lane_ * 4, __float_as_uint(next_.bias * kLog2e));
    fetch(step + 1);
    if (first_key(step) >= end_) return;
    if (p_.vector_rows) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) copy_rows<true>(own, target, pass);
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass) copy_rows<false>(own, target, pass);
    }
  }

  // The rows of a pass; those of the values follow those of the keys.
  template <bool kVector>
  FDMA_DEVICE void copy_rows(const T* own, uint32_t target, int pass) const {
    const int chunk = lane_ % kChunks, row = pass * kRowsPerPass + lane_ / kChunks;
    const auto address = __shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(own), row);
    const T* source = reinterpret_cast<const T*>(address) + chunk * kChunk;
    const uint32_t to = target + row / kKeys * Tile::kBytes + Tile::chunk_offset(row % kKeys, chunk);
    const bool valid = address != 0 && chunk * kChunk < p_.head_dim;
    if constexpr (kVector) {
      copy_async<16>(to, valid ? source : static_cast<const T*>(p_.key.data), valid ? 16 : 0);
    } else {
      store_shared_16(to, valid ? load_unaligned_chunk(source) : make_uint4(0, 0, 0, 0));
    }
  }

  // As operand A of mma, straight from global memory: 16 rows are few.
  FDMA_DEVICE void load_query() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane_ / 4 + 8 * half;
      const T* source = nullptr;
      if (unit_.has(row)) source = p_.query.template at<const T>(unit_.b, unit_.head(row), unit_.query(row));
#pragma unroll
      for (int k = 0; k < kDimSteps; ++k) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          query_[0][k][2 * part + half] = load_pair(source, 16 * k + 8 * part + 2 * (lane_ % 4));
        }
      }
    }
  }
  FDMA_DEVICE uint32_t load_pair(const T* source, int column) const {
    if (source == nullptr || column >= p_.head_dim) return 0;
    if (p_.vector_rows) return __ldg(reinterpret_cast<const uint32_t*>(source + column));
    const auto* raw = reinterpret_cast<const uint16_t*>(source + column);
    return raw[0] | static_cast<uint32_t>(raw[1]) << 16;
  }

  FDMA_DEVICE void attend(int step, int stage) {
    const uint32_t keys = smem_ + stage * kStageBytes, values = keys + Tile::kBytes;
    float scores[1][2][4];
    clear(scores);
    gemm_register_a<T, Major::kK, kDimSteps>(scores, query_, AddressB<Tile, Major::kK>(keys, 0, 0, lane_));
    unit_score_.to_bits(scores);
    const bool ends = p_.is_causal && first_key(step) + kKeys > unit_.len_k - p_.len_q;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = 8 * j + 2 * (lane_ % 4);
      const uint32_t own = biases(stage) + column * 4;
      const float bias[2] = {__uint_as_float(load_shared_4(own)), __uint_as_float(load_shared_4(own + 4))};
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[0][j][e] += bias[e % 2];
      if (ends) hide_later_keys(scores[0][j], first_key(step) + column);
    }
    softmax_.step(scores, out_);
    uint32_t weights[1][1][4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const float* pair = scores[0][part / 2] + part % 2 * 2;
      weights[0][0][part] = Element<T>::pack(pair[0], pair[1]);
    }
    gemm_register_a<T, Major::kMN, 1>(out_, weights, AddressB<Tile, Major::kMN>(values, 0, 0, lane_));
  }

  // Without a selection keys are in the order of their positions.
  FDMA_DEVICE void hide_later_keys(float (&scores)[4], int key) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int position = unit_.len_k - p_.len_q + unit_.query(lane_ / 4 + e / 2 * 8);
      if (key + e % 2 > position) scores[e] = -INFINITY;
    }
  }

  // Sum of the warps' outputs, each relative to the largest reference.
  FDMA_DEVICE void merge() {
    __shared__ float references[kWarps][kDecodeRows], sums[kWarps][kDecodeRows];
    auto* own = reinterpret_cast<float*>(shared_ + warp_ * kWarpBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax_.sum[0][half]);
      const int row = lane_ / 4 + 8 * half;
      if (lane_ % 4 == 0) references[warp_][row] = softmax_.reference[0][half], sums[warp_][row] = sum;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        *reinterpret_cast<float2*>(own + row * kMergePitch + 8 * j + 2 * (lane_ % 4)) =
            make_float2(out_[0][j][2 * half], out_[0][j][2 * half + 1]);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kDecodeRows * kChunks; i += kThreads) {
      const int row = i / kChunks, column = i % kChunks * kChunk;
      if (!unit_.has(row)) break;
      float reference = -INFINITY, total = 0.f, factors[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) reference = fmaxf(reference, references[w][row]);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        factors[w] = exp2_approx(references[w][row] - (reference == -INFINITY ? 0.f : reference));
        total += factors[w] * sums[w][row];
      }
      const float inverse = total == 0.f ? 0.f : 1.f / total;
      if (column == 0) store_lse(row, total == 0.f ? -INFINITY : reference + log2f(total));
      float chunk[kChunk] = {};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const auto* source =
            reinterpret_cast<const float4*>(shared_ + w * kWarpBytes) + (row * kMergePitch + column) / 4;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const float4 quad = source[part];
          const float factor = factors[w] * inverse;
          chunk[4 * part] += quad.x * factor, chunk[4 * part + 1] += quad.y * factor;
          chunk[4 * part + 2] += quad.z * factor, chunk[4 * part + 3] += quad.w * factor;
        }
      }
      if (column < p_.head_dim) store_chunk(row, column, chunk);
    }
  }

  FDMA_DEVICE int64_t global_row(int row) const { return p_.row(unit_.b, unit_.head(row), unit_.query(row)); }

  FDMA_DEVICE void store_lse(int row, float bits) const {
    if (p_.splits > 1) {
      p_.parts.lse[unit_.split * p_.parts.rows + global_row(row)] = bits;
    } else if (p_.lse != nullptr) {
      p_.lse[global_row(row)] = bits * kLn2;
    }
  }

  FDMA_DEVICE void store_chunk(int row, int column, const float (&chunk)[kChunk]) const {
    if (p_.splits > 1) {
      float* target = p_.parts.out + (unit_.split * p_.parts.rows + global_row(row)) * p_.head_dim + column;
      reinterpret_cast<float4*>(target)[0] = make_float4(chunk[0], chunk[1], chunk[2], chunk[3]);
      reinterpret_cast<float4*>(target)[1] = make_float4(chunk[4], chunk[5], chunk[6], chunk[7]);
      return;
    }
    uint4 value;
    value.x = Element<T>::pack(chunk[0], chunk[1]), value.y = Element<T>::pack(chunk[2], chunk[3]);
    value.z = Element<T>::pack(chunk[4], chunk[5]), value.w = Element<T>::pack(chunk[6], chunk[7]);
    T* target = p_.out.template at<T>(unit_.b, unit_.head(row), unit_.query(row)) + column;
    if (p_.vector_out) {
      *reinterpret_cast<uint4*>(target) = value;
    } else {
      store_unaligned_chunk(target, value);
    }
  }

  // A split behind the last key: nobody reads its output.
  FDMA_DEVICE void store_nothing() const {
    if (threadIdx.x < kDecodeRows && unit_.has(threadIdx.x)) store_lse(threadIdx.x, -INFINITY);
  }

  const DecodeParams& p_;
  const DecodeUnit unit_;
  const ScoreUnit unit_score_;
  const int warp_, lane_;
  char* const shared_;
  const uint32_t smem_;
  int begin_ = 0, end_ = 0;
  const KeptKey* kept_ = nullptr;
  KeptKey next_;
  uint32_t query_[1][kDimSteps][4];
  float out_[1][kHeadDim / 8][4];
  OnlineSoftmax<1> softmax_;
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(DecodeBlock<T, kHeadDim>::kThreads, kDecodeBlocksPerSm)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(1024) char shared[];
  DecodeBlock<T, kHeadDim>(p, shared).run();
}

template <typename T, int kHeadDim>
cudaError_t launch_decode(const DecodeParams& p, cudaStream_t stream) {
  using Block = DecodeBlock<T, kHeadDim>;
  const int64_t blocks = p.units() * p.row_tiles * p.splits;
  return launch_large<decode_kernel<T, kHeadDim>>(blocks, Block::kThreads, Block::kSharedBytes, stream, p);
}

}  // namespace fdma::sm80
