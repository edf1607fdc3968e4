/* Attention forward and backward.

   Numerics. For query row q of head h in batch b, with kv head g = h / (H / H_kv):

     s(k)    = softcap(scale * q.k) + bias(b, h, q, k)      softcap(x) = c * tanh(x / c), off when c = 0
     sees(k) = mask(b, h, q, k) != 0  and  (not causal or k <= q + Lk - Lq)  and  s(k) != -inf
     out     = sum over seen k of softmax(s)(k) * v(k)      lse = log(sum over seen k of exp(s(k))), natural logarithm

   A row that sees no key has out = 0, lse = -inf and gradients of zero. Sums are fp32. The causal diagonal ends in the
   bottom-right corner. Offsets are 64-bit.

   Devices and dtypes. CUDA: FLOAT16, BFLOAT16. CPU: FLOAT32, FLOAT16, BFLOAT16. query, key, value, out and their
   gradients share one dtype. head_dim: every multiple of 8 from 8 to 256. Any strides with a last stride of 1. An
   output shares no element with another tensor of the call and addresses none twice.

   Life of a call. `*_supported` says whether a call can run, `*_workspace_size` how many bytes of scratch it needs, the
   call itself enqueues on `stream` (CUDA) or computes (CPU). The scratch belongs to the caller, starts at a multiple of
   FDMA_WORKSPACE_ALIGNMENT, lies on the call's device and may be reused once the stream has passed the call; two calls
   that may overlap must not share it. No call allocates device memory, synchronises, prints or changes the current
   device. All are thread-safe, and those on CUDA can be captured in a graph.
   Variable lengths. With cu_seqlens_q and cu_seqlens_k, sequence b has len_q(b) = cu_seqlens_q[b + 1] - cu_seqlens_q[b]
   queries and len_k(b) likewise, and everything above holds for each sequence by itself: causality is aligned to the
   corner of len_q(b) and len_k(b), mask and bias are indexed by positions inside the sequence. Tensors are packed,
   query (total_q, H, D) and key, value (total_k, H_kv, D), where sequence b has the rows from cu_seqlens[b] on; or
   padded, (B, L, H, D), where it has the first rows of batch b. Rows of out and of gradients that belong to no sequence
   are set to zero, lse there to -inf. The values of cu_seqlens start at 0 and never fall; on the CPU they are checked,
   on CUDA they lie on the device, and a length is cut to what max_seqlen and the tensors hold, so that nothing else is
   touched.

   Pages. With block_table, key and value are (pages, page_size, H_kv, D): key j of sequence b is row j % page_size of
   page block_table[b][j / page_size]. Pages may come in any order; entries past the last key are not read. Forward
   only. */
#ifndef FDMA_ATTENTION_H
#define FDMA_ATTENTION_H

#include <fdma/export.h>
#include <fdma/mask.h>
#include <fdma/status.h>
#include <fdma/types.h>

FDMA_EXTERN_C_BEGIN

#define FDMA_WORKSPACE_ALIGNMENT 256

/* Value of `scale` that stands for 1 / sqrt(head_dim). Any other finite value is used as it is. */
#define FDMA_SCALE_DEFAULT (-3.402823466e+38f)

typedef struct fdma_attention_forward_params {
  uint32_t struct_size; /* set by fdma_attention_forward_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_tensor query; /* (B, Lq, H, D) */
  fdma_tensor key;   /* (B, Lk, H_kv, D), H a multiple of H_kv */
  fdma_tensor value; /* (B, Lk, H_kv, D) */
  fdma_mask mask;
  fdma_bias bias;
  float scale;         /* finite, or FDMA_SCALE_DEFAULT */
  float softcap;       /* 0 = off, else positive and finite */
  int32_t is_causal;   /* 0 or 1 */
  int32_t num_threads; /* CPU only: threads to use, 0 = all that the process may run on. On CUDA it is 0 */
  fdma_tensor out;     /* output (B, Lq, H, D) */
  fdma_tensor lse;     /* optional output (B, H, Lq), FLOAT32, contiguous */
  /* Optional output, with a DENSE mask only: FDMA_UINT8, rank 1, fdma_mask_packed_size bytes, 16-byte aligned. Keeps
     the mask as one bit a score, as fdma_attention_backward takes it, so that the dense tensor need not be kept. With
     is_causal the bits of scores that causality hides are zero, unless sequences of several lengths share a mask. */
  fdma_tensor packed_mask;
  /* Variable lengths; rank 0 = all sequences have the lengths of the tensors. See above. */
  fdma_tensor cu_seqlens_q; /* (B + 1), INT32 or INT64, contiguous */
  fdma_tensor cu_seqlens_k; /* (B + 1), the dtype of cu_seqlens_q; given when cu_seqlens_q is */
  int64_t max_seqlen_q;     /* no len_q(b) is larger; the Lq of mask and bias. 0 without cu_seqlens_q */
  int64_t max_seqlen_k;     /* no len_k(b) is larger; the Lk of mask and bias. 0 without cu_seqlens_k */
  fdma_tensor block_table;  /* optional (B, pages of a sequence), INT32, contiguous; with cu_seqlens */
} fdma_attention_forward_params;

typedef struct fdma_attention_backward_params {
  uint32_t struct_size; /* set by fdma_attention_backward_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_tensor query; /* as in forward */
  fdma_tensor key;
  fdma_tensor value;
  fdma_mask mask;
  fdma_bias bias;
  float scale;
  float softcap;
  int32_t is_causal;
  int32_t num_threads;
  int32_t deterministic; /* 1: bitwise the same gradients for the same inputs */
  int32_t reserved1;     /* zero */
  fdma_tensor out;       /* (B, Lq, H, D), forward's output */
  fdma_tensor lse;       /* (B, H, Lq), FLOAT32, contiguous, forward's output */
  fdma_tensor grad_out;  /* (B, Lq, H, D) */
  fdma_tensor grad_lse;  /* optional (B, H, Lq), FLOAT32, contiguous: gradient of lse */
  /* Outputs. Each is optional, at least one is given; what is not given is not computed. */
  fdma_tensor grad_query; /* (B, Lq, H, D) */
  fdma_tensor grad_key;   /* (B, Lk, H_kv, D) */
  fdma_tensor grad_value; /* (B, Lk, H_kv, D) */
  fdma_tensor grad_bias;  /* shape and dtype of bias.tensor, contiguous; summed in fp32 over broadcast dimensions */
  /* Variable lengths; rank 0 = all sequences have the lengths of the tensors. See above. */
  fdma_tensor cu_seqlens_q; /* (B + 1), INT32 or INT64, contiguous */
  fdma_tensor cu_seqlens_k; /* (B + 1), the dtype of cu_seqlens_q; given when cu_seqlens_q is */
  int64_t max_seqlen_q;     /* no len_q(b) is larger; the Lq of mask and bias. 0 without cu_seqlens_q */
  int64_t max_seqlen_k;     /* no len_k(b) is larger; the Lk of mask and bias. 0 without cu_seqlens_k */
} fdma_attention_backward_params;

/* Implementation of the inline initialisers below. */
FDMA_API void fdma_attention_forward_params_init_sized(fdma_attention_forward_params* params, size_t struct_size);
FDMA_API void fdma_attention_backward_params_init_sized(fdma_attention_backward_params* params, size_t struct_size);

/* Sets every field to its default: tensors, mask and bias not given, scale FDMA_SCALE_DEFAULT, the rest zero, CPU. */
static inline void fdma_attention_forward_params_init(fdma_attention_forward_params* params) {
  fdma_attention_forward_params_init_sized(params, sizeof(*params));
}
static inline void fdma_attention_backward_params_init(fdma_attention_backward_params* params) {
  fdma_attention_backward_params_init_sized(params, sizeof(*params));
}

/* FDMA_SUCCESS when the call can run; otherwise the code of the first reason, and fdma_last_error_message() lists all.
 */
FDMA_API fdma_status fdma_attention_forward_supported(const fdma_attention_forward_params* params);
/* Writes the bytes of scratch that the call needs (0 is possible). Data pointers may still be NULL here. */
FDMA_API fdma_status fdma_attention_forward_workspace_size(const fdma_attention_forward_params* params, size_t* bytes);
FDMA_API fdma_status fdma_attention_forward(const fdma_attention_forward_params* params, void* workspace,
                                            size_t workspace_bytes, fdma_stream stream);

FDMA_API fdma_status fdma_attention_backward_supported(const fdma_attention_backward_params* params);
FDMA_API fdma_status fdma_attention_backward_workspace_size(const fdma_attention_backward_params* params,
                                                            size_t* bytes);
FDMA_API fdma_status fdma_attention_backward(const fdma_attention_backward_params* params, void* workspace,
                                             size_t workspace_bytes, fdma_stream stream);

FDMA_EXTERN_C_END

#endif
