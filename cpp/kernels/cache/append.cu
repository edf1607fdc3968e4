// Appending to the bounded cache: new tokens take the slots of the weakest, in place. One block of threads a row, which
// is a (batch, kv head).
//
// A few tokens go one after another. Each thread knows the weakest of its own slots; the block finds the weakest of
// all, and if the token beats it, its owner replaces it and looks for its next one.
//
// Of many tokens the w-th best rank among slots and tokens is found digit by digit with a histogram in shared memory,
// of slots with that rank the w-th newest likewise. Everything is integers, so the result is the same in every run;
// whoever is kept is so by the order of selection (policy/selection.hpp) and the position alone.
#include "kernels/cache/copy.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/numeric.cuh"
#include "kernels/launchers.hpp"
#include "kernels/policy/selection.hpp"
#include "kernels/select/rank_bits.hpp"
#include "kernels/select/row_block.cuh"

namespace fdma {
namespace {

constexpr int kFewThreads = 32 * kFewTokens;  // one warp copies a token
constexpr int kFewWarps = kFewThreads / 32;
constexpr int kCopyWarps = 8;
constexpr uint32_t kAllLanes = 0xffffffffu;

template <typename T>
FDMA_DEVICE uint32_t rank_of(T bias) {
  return selection_rank(Element<T>::to_float(bias));
}
// 0 in an empty slot, else it rises with the position.
FDMA_DEVICE uint64_t age_at(int64_t position) { return static_cast<uint64_t>(max_of<int64_t>(position, -1) + 1); }

// A row of slots and what is appended to it. T: element of a bias.
template <typename T>
struct Row {
  int64_t b, h;
  int64_t* position;
  const T* bias;
  const T* added_bias;
  int64_t first_position;

  FDMA_DEVICE Row(const CacheAppendParams& p, int64_t row) : b(row / p.heads), h(row % p.heads) {
    position = p.cache.position.data + p.cache.position.row(b, h);
    bias = static_cast<const T*>(p.cache.bias.data) + p.cache.bias.row(b, h);
    added_bias = static_cast<const T*>(p.added.bias.data) + p.added.bias.row(b, h);
    first_position = p.next_position != nullptr ? p.next_position[b] : p.first_position;
  }
  FDMA_DEVICE uint32_t slot_rank(int slot) const { return rank_of(bias[slot]); }
  FDMA_DEVICE uint32_t token_rank(int token) const { return rank_of(added_bias[token]); }
  FDMA_DEVICE uint64_t age(int slot) const { return age_at(position[slot]); }

  // All of a token but key and value.
  FDMA_DEVICE void store(const CacheAppendParams& p, int slot, int token) const {
    copy_bias(p, p.added, token, p.cache, slot, b, h);
    position[slot] = first_position + token;
  }
};

// A few tokens -------------------------------------------------

// The slot that goes first: of the largest rank the lowest position, of empty ones the first.
struct Weakest {
  uint32_t rank = 0;  // no slot has it
  uint64_t age = ~0ull;
  uint32_t slot = ~0u;

  FDMA_DEVICE void compare(uint32_t other_rank, uint64_t other_age, uint32_t other_slot) {
    if (other_rank < rank || (other_rank == rank && other_age >= age)) return;
    rank = other_rank;
    age = other_age;
    slot = other_slot;
  }
};

FDMA_DEVICE Weakest weakest_of_warp(const Weakest& mine) {
  Weakest result;
  result.rank = __reduce_max_sync(kAllLanes, mine.rank);
  bool in = mine.rank == result.rank;
  const uint32_t high = in ? static_cast<uint32_t>(mine.age >> 32) : ~0u;
  const uint32_t result_high = __reduce_min_sync(kAllLanes, high);
  in = in && high == result_high;
  const uint32_t low = in ? static_cast<uint32_t>(mine.age) : ~0u;
  const uint32_t result_low = __reduce_min_sync(kAllLanes, low);
  in = in && low == result_low;
  result.age = static_cast<uint64_t>(result_high) << 32 | result_low;
  result.slot = __reduce_min_sync(kAllLanes, in ? mine.slot : ~0u);
  return result;
}

// Calls alternate between the two halves of `shared`, so that one barrier is enough.
FDMA_DEVICE Weakest weakest_of_block(const Weakest& mine, Weakest (&shared)[2][kFewWarps], int half) {
  const Weakest of_warp = weakest_of_warp(mine);
  const int lane = threadIdx.x % 32;
  if (lane == 0) shared[half][threadIdx.x / 32] = of_warp;
  __syncthreads();
  return weakest_of_warp(lane < kFewWarps ? shared[half][lane] : Weakest{});
}

// Of the slots of this thread.
template <typename T>
FDMA_DEVICE Weakest weakest_of_thread(const CacheAppendParams& p, const Row<T>& row) {
  constexpr int kInFlight = 4;  // loads start before the first is used
  Weakest weakest;
  for (int first = threadIdx.x; first < p.slots; first += kFewThreads * kInFlight) {
    int slots[kInFlight];
    T biases[kInFlight];
    int64_t positions[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int slot = first + i * kFewThreads;
      slots[i] = slot < p.slots ? slot : first;  // a slot of its own twice, rather than a condition around loads
      biases[i] = row.bias[slots[i]];
      positions[i] = row.position[slots[i]];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      weakest.compare(rank_of(biases[i]), age_at(positions[i]), static_cast<uint32_t>(slots[i]));
    }
  }
  return weakest;
}

template <typename T>
__global__ void __launch_bounds__(kFewThreads) append_few_kernel(const __grid_constant__ CacheAppendParams p) {
  __shared__ Weakest shared[2][kFewWarps];
  __shared__ int slot_of_token[kFewTokens];
  const Row<T> row(p, blockIdx.x);
  Weakest mine = weakest_of_thread(p, row);
  int half = 0;
  for (int token = 0; token < p.tokens; ++token) {
    const uint32_t rank = row.token_rank(token);
    const Weakest weakest = weakest_of_block(mine, shared, half);
    half ^= 1;
    const bool enters = rank != kNeverKept && rank <= weakest.rank;  // of equal ones the newer is kept
    if (threadIdx.x == 0) slot_of_token[token] = enters ? static_cast<int>(weakest.slot) : -1;
    if (enters && weakest.slot % kFewThreads == threadIdx.x) {
      row.store(p, static_cast<int>(weakest.slot), token);
      if (token + 1 < p.tokens) mine = weakest_of_thread(p, row);
    }
  }
  __syncthreads();
  const int token = threadIdx.x / 32;
  if (token >= p.tokens) return;
  const int slot = slot_of_token[token];
  bool stays = slot >= 0;
  for (int later = token + 1; later < p.tokens; ++later) stays = stays && slot_of_token[later] != slot;
  if (stays) copy_token_rows(p, p.added, token, p.cache, slot, row.b, row.h);
}

// Many tokens --------------------------------------------------

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

struct DigitCounts {
  int counts[kDigits];
  int digit;   // the one looked for
  int before;  // elements with a lower digit
  int equal;   // elements with this one
  int total;
};

// Which digit the `left`-th lowest element has; `count(add)` calls add(digit) for each element. All threads get it.
template <typename Count>
FDMA_DEVICE void find_digit(DigitCounts& shared, int left, const Count& count) {
  if (threadIdx.x < kDigits) shared.counts[threadIdx.x] = 0;
  __syncthreads();
  count([&](uint32_t digit) { atomicAdd(&shared.counts[digit], 1); });
  __syncthreads();
  if (threadIdx.x < 32) {
    constexpr int kLaneDigits = kDigits / 32;
    const int first = threadIdx.x * kLaneDigits;
    int sum = 0;
    for (int i = 0; i < kLaneDigits; ++i) sum += shared.counts[first + i];
    int inclusive = sum;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, inclusive, distance);
      if (threadIdx.x >= distance) inclusive += other;
    }
    int before = inclusive - sum;
    if (before < left && left <= inclusive) {
      int digit = first;
      for (; before + shared.counts[digit] < left; ++digit) before += shared.counts[digit];
      shared.digit = digit;
      shared.before = before;
      shared.equal = shared.counts[digit];
    }
    if (threadIdx.x == 31) shared.total = inclusive;
  }
  __syncthreads();
}

// The `place`-th lowest of the elements for which `for_each(visit)` calls visit(value), by digits from bit `bits` down.
// `place` becomes the place among those equal to it, `equal` how many those are.
template <typename Value, typename ForEach>
FDMA_DEVICE Value find_value(DigitCounts& shared, int bits, int& place, int& equal, const ForEach& for_each) {
  Value found = 0;
  for (int shift = (bits - 1) / kDigitBits * kDigitBits; shift >= 0; shift -= kDigitBits) {
    find_digit(shared, place, [&](const auto& add) {
      for_each([&](Value value) {
        // Two shifts: one by all bits of a value is undefined.
        if (((value ^ found) >> shift) >> kDigitBits == 0) add(static_cast<uint32_t>(value >> shift) % kDigits);
      });
    });
    found |= static_cast<Value>(shared.digit) << shift;
    place -= shared.before;
    equal = shared.equal;
    __syncthreads();  // before the counts are cleared
  }
  return found;
}

// Who is kept of the slots and the new tokens of a row.
struct Kept {
  int shift;      // ranks are compared without what lies below
  uint32_t rank;  // the last that is kept; lower ones are kept too
  uint64_t age;   // of slots with this rank those of this age or a larger one are kept
  int first_tie;  // of tokens with this rank those from this one on, counted among themselves

  template <typename T>
  FDMA_DEVICE bool keeps(const Row<T>& row, int slot) const {
    const uint32_t of_slot = row.slot_rank(slot) >> shift;
    return of_slot < rank || (of_slot == rank && row.age(slot) >= age);
  }
};

// Calls visit(rank) for those of `length` biases that are this thread's and may be kept.
template <typename T, typename Visit>
FDMA_DEVICE void visit_row(const T* biases, int length, int shift, const Visit& visit) {
  constexpr int kInFlight = 4;
  const uint32_t never = kNeverKept >> shift;
  for (int first = threadIdx.x; first < length; first += kRowThreads * kInFlight) {
    T loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) loaded[i] = biases[min_of(first + i * kRowThreads, length - 1)];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const uint32_t rank = rank_of(loaded[i]) >> shift;
      if (rank != never && first + i * kRowThreads < length) visit(rank);
    }
  }
}
template <typename T, typename Visit>
FDMA_DEVICE void visit_ranks(const CacheAppendParams& p, const Row<T>& row, int shift, const Visit& visit) {
  visit_row(row.bias, p.slots, shift, visit);
  visit_row(row.added_bias, p.tokens, shift, visit);
}

FDMA_DEVICE int block_sum(int value, int (&sums)[2][kRowWarps], int half) {
  int total;
  sum_of_earlier_warps(__reduce_add_sync(kAllLanes, value), sums, half, total);
  return total;
}

template <typename T>
FDMA_DEVICE Kept choose(const CacheAppendParams& p, const Row<T>& row, DigitCounts& shared, int (&sums)[2][kRowWarps]) {
  Kept kept{lowest_rank_bit(p.type), 0, 0, 0};
  int candidates = 0;
  visit_ranks(p, row, kept.shift, [&](uint32_t) { ++candidates; });
  if (block_sum(candidates, sums, 0) <= p.slots) {
    kept.rank = (kNeverKept >> kept.shift) - 1;
    return kept;
  }
  int left = p.slots, equal = 0;
  kept.rank = find_value<uint32_t>(shared, 32 - kept.shift, left, equal,
                                   [&](const auto& visit) { visit_ranks(p, row, kept.shift, visit); });
  if (left == equal) return kept;
  // Not all with this rank: the newest, and new tokens are newer than slots.
  int ties = 0;
  visit_row(row.added_bias, p.tokens, kept.shift, [&](uint32_t rank) { ties += rank == kept.rank ? 1 : 0; });
  ties = block_sum(ties, sums, 1);
  kept.first_tie = max_of(0, ties - left);
  kept.age = ~0ull;
  int slots_left = left - ties;
  if (slots_left <= 0) return kept;
  kept.age = ~find_value<uint64_t>(shared, 64, slots_left, equal, [&](const auto& visit) {
    for (int slot = threadIdx.x; slot < p.slots; slot += kRowThreads) {
      if ((row.slot_rank(slot) >> kept.shift) == kept.rank) visit(~row.age(slot));
    }
  });
  return kept;
}

// Neighbouring elements of [0, length) for each warp, in whole turns of its lanes.
struct Span {
  int begin, end;

  FDMA_DEVICE explicit Span(int length) {
    const int each = round_up(ceil_div(length, kRowWarps), 32);
    begin = min_of(length, static_cast<int>(threadIdx.x / 32) * each);
    end = min_of(length, begin + each);
  }
};

enum class Listed { kNo, kYes, kTie };

// Lists those of [0, length) that `classify` says are listed, in order; of ties those from `first_tie` on. Returns how
// many those are.
template <typename Classify>
FDMA_DEVICE int list_elements(int length, int first_tie, int32_t* list, int (&sums)[2][kRowWarps],
                              const Classify& classify) {
  const Span span(length);
  const int lane = threadIdx.x % 32;
  const uint32_t earlier = (1u << lane) - 1;
  int sure = 0, ties = 0;
  for (int i = span.begin + lane; i < span.end; i += 32) {
    const Listed listed = classify(i);
    sure += listed == Listed::kYes ? 1 : 0;
    ties += listed == Listed::kTie ? 1 : 0;
  }
  sure = __reduce_add_sync(kAllLanes, sure);
  ties = __reduce_add_sync(kAllLanes, ties);
  int total;
  int ties_before = sum_of_earlier_warps(ties, sums, 0, total);
  const int skipped = max_of(0, min_of(ties, first_tie - ties_before));
  int place = sum_of_earlier_warps(sure + ties - skipped, sums, 1, total);
  for (int first = span.begin; first < span.end; first += 32) {
    const int i = first + lane;
    const Listed listed = i < span.end ? classify(i) : Listed::kNo;
    const uint32_t tied = __ballot_sync(kAllLanes, listed == Listed::kTie);
    const bool is_late = ties_before + __popc(tied & earlier) >= first_tie;
    const bool mine = listed == Listed::kYes || (listed == Listed::kTie && is_late);
    const uint32_t chosen = __ballot_sync(kAllLanes, mine);
    if (mine) list[place + __popc(chosen & earlier)] = i;
    place += __popc(chosen);
    ties_before += __popc(tied);
  }
  return total;
}

// Slots and new tokens that change places, and all of these tokens but their keys and values.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) choose_entrants_kernel(const __grid_constant__ CacheAppendParams p) {
  __shared__ DigitCounts shared;
  __shared__ int sums[2][kRowWarps];
  const Row<T> row(p, blockIdx.x);
  const Kept kept = choose(p, row, shared, sums);
  __syncthreads();
  int32_t* free_slots = p.free_slots + static_cast<int64_t>(blockIdx.x) * p.slots;
  int32_t* entrants = p.entrants + static_cast<int64_t>(blockIdx.x) * p.slots;
  list_elements(p.slots, 0, free_slots, sums,
                [&](int slot) { return kept.keeps(row, slot) ? Listed::kNo : Listed::kYes; });
  const int count = list_elements(p.tokens, kept.first_tie, entrants, sums, [&](int token) {
    const uint32_t rank = row.token_rank(token) >> kept.shift;
    return rank < kept.rank ? Listed::kYes : rank == kept.rank ? Listed::kTie : Listed::kNo;
  });
  __syncthreads();
  // As many slots are free at least: no more than all slots are kept.
  for (int i = threadIdx.x; i < count; i += kRowThreads) row.store(p, free_slots[i], entrants[i]);
  if (threadIdx.x == 0) p.counts[blockIdx.x] = count;
}

// One warp a token.
__global__ void __launch_bounds__(kCopyWarps * 32) copy_entrants_kernel(const __grid_constant__ CacheAppendParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kCopyWarps + threadIdx.x / 32;
  const int64_t row = index / p.slots;
  if (row >= p.rows() || index % p.slots >= p.counts[row]) return;
  copy_token_rows(p, p.added, p.entrants[index], p.cache, p.free_slots[index], row / p.heads, row % p.heads);
}

constexpr int kAdvanceThreads = 128;

// After all rows have read them.
__global__ void __launch_bounds__(kAdvanceThreads) advance_kernel(const __grid_constant__ CacheAppendParams p) {
  const int b = static_cast<int>(blockIdx.x) * kAdvanceThreads + static_cast<int>(threadIdx.x);
  if (b < p.batch) p.next_position[b] += p.tokens;
}

template <typename T>
cudaError_t append(const CacheAppendParams& p, cudaStream_t stream) {
  if (p.tokens <= kFewTokens) return launch(append_few_kernel<T>, p.rows(), kFewThreads, 0, stream, p);
  const cudaError_t error = launch(choose_entrants_kernel<T>, p.rows(), kRowThreads, 0, stream, p);
  if (error != cudaSuccess) return error;
  return launch(copy_entrants_kernel, ceil_div<int64_t>(p.rows() * p.slots, kCopyWarps), kCopyWarps * 32, 0, stream, p);
}

cudaError_t append_any(const CacheAppendParams& p, cudaStream_t stream) {
  switch (p.type) {
    case ElementType::kFloat16:
      return append<half_t>(p, stream);
    case ElementType::kBFloat16:
      return append<bfloat16_t>(p, stream);
    default:
      return append<float>(p, stream);
  }
}

}  // namespace

cudaError_t launch_cache_append(const CacheAppendParams& p, cudaStream_t stream) {
  if (p.tokens == 0) return cudaSuccess;
  const cudaError_t error = append_any(p, stream);
  if (error != cudaSuccess || p.next_position == nullptr) return error;
  return launch(advance_kernel, ceil_div(p.batch, kAdvanceThreads), kAdvanceThreads, 0, stream, p);
}

}  // namespace fdma
