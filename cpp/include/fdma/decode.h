/* Decode: the attention of a few new queries to a long cache, on all of its keys or on those that a bias chooses.

   Numerics are those of fdma/attention.h, forward, with these differences. Batch entry b uses the first
   n(b) = seqlens_k[b] keys of its cache, all Lk without seqlens_k. Queries are the newest positions: query q is at
   p = n(b) - Lq + q, and with is_causal it sees the keys up to p; without, all n(b). The bias is the same for all
   queries. With a keep_window_size the keys that a query attends to are, of those that it sees, the keep_window_size
   with the largest bias, as fdma/select.h has it: of equal biases the newer key goes first, and a key whose bias is
   -inf or NaN is never kept. Keys may lie in any order where neither causality nor ties ask for one: a cache of slots
   with a bias for each slot, -inf in the empty ones, is a call with keep_window_size = 0. What a key holds whose bias
   is -inf is not read.

   seqlens_k and block_table lie on the call's device and their values are checked on the CPU alone. On CUDA a length is
   cut to 0 .. Lk and a page to those that exist, so that nothing else is touched, and no launch depends on a value: a
   call that is captured in a graph may be replayed on other lengths.

   The rules for a call's life, workspace and stream are those of fdma/attention.h. */
#ifndef FDMA_DECODE_H
#define FDMA_DECODE_H

#include <fdma/attention.h>
#include <fdma/export.h>
#include <fdma/status.h>
#include <fdma/types.h>

FDMA_EXTERN_C_BEGIN

#define FDMA_DECODE_MAX_QUERIES 16

typedef struct fdma_decode_params {
  uint32_t struct_size; /* set by fdma_decode_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_tensor query;   /* (B, Lq, H, D), Lq from 1 to FDMA_DECODE_MAX_QUERIES */
  fdma_tensor key;     /* (B, Lk, H_kv, D), H a multiple of H_kv; with block_table (pages, page_size, H_kv, D) */
  fdma_tensor value;   /* as key */
  fdma_bias bias;      /* tensor ({B|1}, {H|H_kv|1}, Lk) or ({B|1}, {H|H_kv|1}, 1, Lk), FLOAT16, BFLOAT16 or FLOAT32 */
  float scale;         /* finite, or FDMA_SCALE_DEFAULT */
  float softcap;       /* 0 = off, else positive and finite */
  int32_t is_causal;   /* 0 or 1 */
  int32_t num_threads; /* CPU only: threads to use, 0 = all that the process may run on. On CUDA it is 0 */
  int64_t keep_window_size; /* 0: every key; 1 or more, with a bias: see above */
  fdma_tensor seqlens_k;    /* optional (B), INT32 or INT64, contiguous: keys in use */
  /* Optional (B, pages of a sequence), INT32, contiguous: key j of batch entry b is row j % page_size of page
     block_table[b][j / page_size], and Lk is all that the pages of a sequence hold. */
  fdma_tensor block_table;
  fdma_tensor out; /* output (B, Lq, H, D) */
  fdma_tensor lse; /* optional output (B, H, Lq), FLOAT32, contiguous */
} fdma_decode_params;

/* Implementation of the inline initialiser below. */
FDMA_API void fdma_decode_params_init_sized(fdma_decode_params* params, size_t struct_size);

/* Sets every field to its default: tensors and bias not given, scale FDMA_SCALE_DEFAULT, the rest zero, CPU. */
static inline void fdma_decode_params_init(fdma_decode_params* params) {
  fdma_decode_params_init_sized(params, sizeof(*params));
}

/* As the three entry points of attention, see fdma/attention.h. */
FDMA_API fdma_status fdma_decode_supported(const fdma_decode_params* params);
FDMA_API fdma_status fdma_decode_workspace_size(const fdma_decode_params* params, size_t* bytes);
FDMA_API fdma_status fdma_decode(const fdma_decode_params* params, void* workspace, size_t workspace_bytes,
                                 fdma_stream stream);

FDMA_EXTERN_C_END

#endif
