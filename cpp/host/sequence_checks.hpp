// Rules for variable lengths and pages: cu_seqlens, max_seqlen and block_table.
#pragma once

#include <functional>

#include "fdma/attention.h"
#include "host/problem.hpp"
#include "host/reasons.hpp"

namespace fdma {

struct SequenceArguments {
  const fdma_tensor& cu_seqlens_q;
  const fdma_tensor& cu_seqlens_k;
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  const fdma_tensor* block_table;  // null: the operation has none
  bool of_cache = false;           // decode: a block_table goes without cu_seqlens, for the B of query

  bool given() const { return cu_seqlens_q.rank != 0 || cu_seqlens_k.rank != 0; }
  bool has_table() const { return block_table != nullptr && block_table->rank != 0; }
  bool paged() const { return (given() || of_cache) && has_table(); }
};

// What can be said of the arguments by themselves. True when the call has variable lengths that are well formed: the
// problem then has its batch, its bounds on the lengths, cu_q and cu_k and, with pages, their table.
bool check_sequences(Reasons& reasons, const SequenceArguments& args, bool with_data, AttentionProblem& problem);

// The table of a problem whose batch is known.
bool check_block_table(Reasons& reasons, const fdma_tensor& table, bool with_data, AttentionProblem& problem);

// Page size and number of pages, off a key (pages, page_size, H_kv, D).
bool check_page_extents(Reasons& reasons, const fdma_tensor& key, AttentionProblem& problem);

// The values of cu_seqlens and of the block table's entries that are used, which the CPU can read, against the tensors.
void check_sequence_values(Reasons& reasons, const AttentionProblem& problem);

// Entries of the table that the `length_k(b)` keys of batch entry b use. Those past them may hold anything.
void check_table_values(Reasons& reasons, const AttentionProblem& problem,
                        const std::function<int64_t(int64_t b)>& length_k);

}  // namespace fdma
