/* The bounded cache: what generation with dynamic mask attention keeps of the past.

   With a bias for each key and causal selection a key that has been pushed out of the keep_window_size largest never
   returns (fdma/select.h). So a cache needs that many slots for each (batch, kv head), whatever the length of the
   sequence, and attention over it is exact: equal to attention over all keys with the causal selection.

   Rules. A slot holds the key, the value, the bias and the position of one token; position -1 and bias -inf are an
   empty slot. An append keeps, of the tokens in the cache and the new ones, those with the largest bias; of equal
   biases the larger position goes first, -0.0 equals 0.0, and a token whose bias is -inf or NaN never enters. What is
   kept does not depend on how tokens are split into appends, and nor do its bytes. Survivors stay in their slots; which
   slots new tokens take is not specified, but the same for the same calls.

   Use. An empty cache has key and value of zeros, bias of -inf and position of -1 throughout, written by the caller.

   One new token: fdma_cache_append it, then fdma_attention_forward over the slots with their bias, without causality.

   A chunk of T new tokens, T as large as the caller likes: with `all` of w + T keys, values and biases,
     1. fdma_cache_gather writes the w slots into the first rows of `all`, in order of position; the caller the new
        tokens into the rows behind,
     2. fdma_select writes `end` from the biases of `all` (w + T), keep_window_size w,
     3. fdma_attention_forward on `all` with the mask INTERVAL of `end` and the biases of `all`,
     4. fdma_cache_append appends the new tokens.

   The rules for a call's life, workspace and stream are those of fdma/attention.h. */
#ifndef FDMA_CACHE_H
#define FDMA_CACHE_H

#include <fdma/attention.h>
#include <fdma/export.h>
#include <fdma/status.h>
#include <fdma/types.h>

FDMA_EXTERN_C_BEGIN

/* Value of `first_position` that stands for "not given". */
#define FDMA_POSITION_NONE (-1)

/* The slots. Memory of the caller; any strides with a last stride of 1. */
typedef struct fdma_cache {
  fdma_tensor key;      /* (B, w, H_kv, D), w >= 1; FLOAT16 or BFLOAT16, on the CPU also FLOAT32 */
  fdma_tensor value;    /* (B, w, H_kv, D), the dtype of key */
  fdma_tensor bias;     /* (B, H_kv, w), FLOAT16, BFLOAT16 or FLOAT32 */
  fdma_tensor position; /* (B, H_kv, w), INT64 */
} fdma_cache;

typedef struct fdma_cache_append_params {
  uint32_t struct_size; /* set by fdma_cache_append_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_cache cache;  /* changed in place */
  fdma_tensor key;   /* (B, T, H_kv, D), the dtype of cache.key; last stride 1 */
  fdma_tensor value; /* (B, T, H_kv, D), the dtype of cache.key; last stride 1 */
  fdma_tensor bias;  /* (B, H_kv, T), the dtype of cache.bias; last stride 1 */
  /* Where the new tokens are: token t of sequence b at first_position + t, or at next_position[b] + t, to which the
     call then adds T. One of the two is given. Positions in the cache are smaller than those of new tokens. */
  int64_t first_position;    /* 0 or more, or FDMA_POSITION_NONE */
  fdma_tensor next_position; /* (B), INT64, contiguous, on the call's device; or rank 0 */
  int32_t num_threads;       /* CPU only: threads to use, 0 = all that the process may run on. On CUDA it is 0 */
  int32_t reserved1;         /* zero */
} fdma_cache_append_params;

typedef struct fdma_cache_gather_params {
  uint32_t struct_size; /* set by fdma_cache_gather_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_cache cache; /* read only */
  /* Outputs, in rising order of position: empty slots come first, with zeros for key and value. Shapes and dtypes are
     those of the cache; last stride 1. */
  fdma_tensor key;      /* (B, w, H_kv, D) */
  fdma_tensor value;    /* (B, w, H_kv, D) */
  fdma_tensor bias;     /* (B, H_kv, w) */
  fdma_tensor position; /* optional (B, H_kv, w) */
  int32_t num_threads;  /* as in fdma_cache_append_params */
  int32_t reserved1;    /* zero */
} fdma_cache_gather_params;

/* Implementation of the inline initialisers below. */
FDMA_API void fdma_cache_append_params_init_sized(fdma_cache_append_params* params, size_t struct_size);
FDMA_API void fdma_cache_gather_params_init_sized(fdma_cache_gather_params* params, size_t struct_size);

/* Sets every field to its default: tensors not given, first_position FDMA_POSITION_NONE, the rest zero, CPU. */
static inline void fdma_cache_append_params_init(fdma_cache_append_params* params) {
  fdma_cache_append_params_init_sized(params, sizeof(*params));
}
static inline void fdma_cache_gather_params_init(fdma_cache_gather_params* params) {
  fdma_cache_gather_params_init_sized(params, sizeof(*params));
}

/* As the three entry points of attention, see fdma/attention.h. */
FDMA_API fdma_status fdma_cache_append_supported(const fdma_cache_append_params* params);
FDMA_API fdma_status fdma_cache_append_workspace_size(const fdma_cache_append_params* params, size_t* bytes);
FDMA_API fdma_status fdma_cache_append(const fdma_cache_append_params* params, void* workspace, size_t workspace_bytes,
                                       fdma_stream stream);

FDMA_API fdma_status fdma_cache_gather_supported(const fdma_cache_gather_params* params);
FDMA_API fdma_status fdma_cache_gather_workspace_size(const fdma_cache_gather_params* params, size_t* bytes);
FDMA_API fdma_status fdma_cache_gather(const fdma_cache_gather_params* params, void* workspace, size_t workspace_bytes,
                                       fdma_stream stream);

FDMA_EXTERN_C_END

#endif
