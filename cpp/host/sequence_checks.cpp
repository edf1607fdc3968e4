#include "host/sequence_checks.hpp"

#include <limits>

#include "host/tensor_checks.hpp"
#include "host/text.hpp"
#include "kernels/core/math.hpp"

namespace fdma {
namespace {

constexpr char kOffsetDims[] = "(B + 1,)";
constexpr char kTableDims[] = "(B, pages of a sequence)";
constexpr DtypeSet kOffsetDtypes(FDMA_INT32, FDMA_INT64);
constexpr int64_t kMinPageSize = 16;

bool check_absent(Reasons& reasons, const SequenceArguments& args) {
  const auto refuse_bound = [&](const char* name, int64_t value) {
    if (value == 0) return;
    reasons.add(FDMA_INVALID_ARGUMENT, concat(name, " is ", value, "; accepted without cu_seqlens_q: 0"));
  };
  refuse_bound("max_seqlen_q", args.max_seqlen_q);
  refuse_bound("max_seqlen_k", args.max_seqlen_k);
  if (args.has_table() && !args.of_cache) {
    reasons.add(FDMA_INVALID_ARGUMENT,
                "block_table is given without cu_seqlens_q; accepted with cu_seqlens_q and cu_seqlens_k only");
  }
  return false;
}

bool check_offsets(Reasons& reasons, const char* name, const fdma_tensor& tensor, bool with_data) {
  if (!check_rank(reasons, name, tensor, 1, kOffsetDims)) return false;
  bool good = check_dtype(reasons, name, tensor, kOffsetDtypes, "");
  if (tensor.shape[0] == 0) {
    reasons.add(FDMA_INVALID_SHAPE,
                concat(name, ".shape is ", shape_text(tensor), "; accepted: ", kOffsetDims, ", at least one value"));
    good = false;
  }
  good = check_contiguous(reasons, name, tensor) && good;
  return check_data(reasons, name, tensor, with_data, dtype_size(tensor.dtype)) && good;
}

bool check_bound(Reasons& reasons, const char* name, int64_t value) {
  if (value >= 0) return true;
  reasons.add(FDMA_INVALID_ARGUMENT, concat(name, " is ", value, "; accepted: 0 or more"));
  return false;
}

// One of the two sides of a call, and what its lengths are measured against.
struct Side {
  const char* offsets;     // name of the argument
  const char* bound_name;  // of max_seqlen
  int64_t bound;
  const char* room_name;  // of the rows that one sequence can have
  int64_t room;
  const char* total_name;  // of the rows that all have together
  int64_t total;
};

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// The first value that breaks a rule; those after it are measured against it and say nothing new.
template <typename Offset>
void check_offset_values(Reasons& reasons, const Side& side, const Offset* offsets, int64_t batch) {
  const auto refuse = [&](const auto&... parts) { reasons.add(FDMA_INVALID_ARGUMENT, concat(side.offsets, parts...)); };
  if (offsets[0] != 0) return refuse("[0] is ", offsets[0], "; accepted: 0");
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t begin = offsets[b];
    const int64_t end = offsets[b + 1];
    if (end < begin) {
      return refuse("[", b + 1, "] is ", end, " after ", side.offsets, "[", b, "] = ", begin,
                    "; accepted: values that do not fall");
    }
    const auto refuse_length = [&](const char* name, int64_t limit) {
      refuse("[", b + 1, "] - ", side.offsets, "[", b, "] is ", end - begin, "; accepted: at most ", name, " = ",
             limit);
    };
    if (end - begin > side.bound) return refuse_length(side.bound_name, side.bound);
    if (end - begin > side.room) return refuse_length(side.room_name, side.room);
    if (end > side.total) {
      return refuse("[", b + 1, "] is ", end, "; accepted: at most ", side.total_name, " = ", side.total);
    }
  }
}

void check_side(Reasons& reasons, const AttentionProblem& problem, const Side& side, const void* offsets) {
  if (problem.sequences.is_64bit) {
    check_offset_values(reasons, side, static_cast<const int64_t*>(offsets), problem.batch);
  } else {
    check_offset_values(reasons, side, static_cast<const int32_t*>(offsets), problem.batch);
  }
}

}  // namespace

bool check_block_table(Reasons& reasons, const fdma_tensor& table, bool with_data, AttentionProblem& problem) {
  if (!check_rank(reasons, "block_table", table, 2, kTableDims)) return false;
  bool good = check_dtype(reasons, "block_table", table, DtypeSet(FDMA_INT32), "");
  good = check_shape(reasons, "block_table", table, {problem.batch, table.shape[1]}, kTableDims) && good;
  good = check_contiguous(reasons, "block_table", table) && good;
  good = check_data(reasons, "block_table", table, with_data, dtype_size(FDMA_INT32)) && good;
  problem.pages.table = static_cast<const int32_t*>(address_of(table));
  problem.pages.pages_per_sequence = table.shape[1];
  return good;
}

bool check_sequences(Reasons& reasons, const SequenceArguments& args, bool with_data, AttentionProblem& problem) {
  if (!args.given()) return check_absent(reasons, args);
  bool good = check_offsets(reasons, "cu_seqlens_q", args.cu_seqlens_q, with_data);
  good = check_offsets(reasons, "cu_seqlens_k", args.cu_seqlens_k, with_data) && good;
  good = check_bound(reasons, "max_seqlen_q", args.max_seqlen_q) && good;
  good = check_bound(reasons, "max_seqlen_k", args.max_seqlen_k) && good;
  if (!good) return false;

  good = check_shape(reasons, "cu_seqlens_k", args.cu_seqlens_k, {args.cu_seqlens_q.shape[0]}, kOffsetDims);
  if (args.cu_seqlens_k.dtype != args.cu_seqlens_q.dtype) {
    reasons.add(FDMA_INVALID_DTYPE,
                concat("cu_seqlens_k.dtype is ", dtype_name(args.cu_seqlens_k.dtype),
                       "; accepted: ", dtype_name(args.cu_seqlens_q.dtype), ", the dtype of cu_seqlens_q"));
    good = false;
  }
  problem.batch = args.cu_seqlens_q.shape[0] - 1;
  problem.len_q = args.max_seqlen_q;
  problem.len_k = args.max_seqlen_k;
  problem.sequences.cu_q = address_of(args.cu_seqlens_q);
  problem.sequences.cu_k = address_of(args.cu_seqlens_k);
  problem.sequences.is_64bit = args.cu_seqlens_q.dtype == FDMA_INT64;
  if (args.paged()) good = check_block_table(reasons, *args.block_table, with_data, problem) && good;
  return good;
}

bool check_page_extents(Reasons& reasons, const fdma_tensor& key, AttentionProblem& problem) {
  PageProblem& pages = problem.pages;
  pages.pages = key.shape[0];
  pages.page_size = key.shape[1];
  if (pages.page_size < kMinPageSize) {
    reasons.add(FDMA_INVALID_SHAPE, concat("key.shape is ", shape_text(key), ", page_size ", pages.page_size,
                                           "; accepted: ", kMinPageSize, " or more"));
    return false;
  }
  if (__builtin_mul_overflow(pages.pages_per_sequence, pages.page_size, &problem.sequences.rows_k)) {
    reasons.add(FDMA_INVALID_SHAPE, concat("block_table has ", pages.pages_per_sequence, " pages of ", pages.page_size,
                                           " keys a sequence; accepted: fewer than 2^63 keys"));
    return false;
  }
  if (pages.pages == 0) problem.sequences.rows_k = 0;  // whatever the table says
  return true;
}

void check_table_values(Reasons& reasons, const AttentionProblem& problem,
                        const std::function<int64_t(int64_t b)>& length_k) {
  const PageProblem& pages = problem.pages;
  for (int64_t b = 0; b < problem.batch; ++b) {
    const int64_t used = ceil_div(length_k(b), pages.page_size);
    for (int64_t i = 0; i < used; ++i) {
      const int64_t page = pages.table[b * pages.pages_per_sequence + i];
      if (page >= 0 && page < pages.pages) continue;
      reasons.add(FDMA_INVALID_ARGUMENT, concat("block_table[", b, "][", i, "] is ", page, "; accepted: 0 to ",
                                                pages.pages - 1, ", the pages of key"));
      return;
    }
  }
}

void check_sequence_values(Reasons& reasons, const AttentionProblem& problem) {
  const SequenceProblem& s = problem.sequences;
  Side query{"cu_seqlens_q", "max_seqlen_q", problem.len_q, "Lq", kNoLimit, "total_q", kNoLimit};
  Side key{"cu_seqlens_k", "max_seqlen_k", problem.len_k, "Lk", kNoLimit, "total_k", kNoLimit};
  (s.packed ? query.total : query.room) = s.rows_q;
  (s.packed && !problem.pages ? key.total : key.room) = s.rows_k;
  if (problem.pages) key.room_name = "the keys in the pages of a sequence";

  const bool no_reason_before = reasons.empty();
  check_side(reasons, problem, query, s.cu_q);
  check_side(reasons, problem, key, s.cu_k);
  if (problem.pages && no_reason_before && reasons.empty()) {
    check_table_values(reasons, problem, [&](int64_t b) { return s.length_k(b); });
  }
}

}  // namespace fdma
