/* Selection: the keys that dynamic mask attention keeps, from the bias.

   Of the keys that a query may see, the keep_window_size with the largest bias are kept. Of keys with equal bias the
   newer one (the larger index) goes first; -0.0 equals 0.0. A key whose bias is -inf or NaN is never kept and takes
   nobody's place, nor does one whose key_mask is zero. The result is the same on every device, bit for bit.

   A bias (B, H, Lk) is the same for all queries, and what is kept takes memory in proportion to the keys:

   INTERVAL, causal: position p chooses among the keys 0 to p. A key that has been pushed out never returns, since the
   keys that beat it only grow in number. So one number a key says everything: position p keeps key k when k <= p <
   end[k]. A key that no position keeps has end[k] = k, one that is never pushed out has end[k] = Lk.

   COLUMNS, not causal: every query keeps the same keys, and `columns` lists them in rising order.

   A bias (B, H, Lq, Lk) has a row for each query:

   BITS: every query chooses among the keys that it sees, with is_causal those up to q + Lk - Lq, and `packed_mask` is
   the mask of those that are kept (fdma/mask.h). The bias is read once; no index and no dense mask is written.

   The rules for a call's life, workspace and stream are those of fdma/attention.h. */
#ifndef FDMA_SELECT_H
#define FDMA_SELECT_H

#include <fdma/attention.h>
#include <fdma/export.h>
#include <fdma/status.h>
#include <fdma/types.h>

FDMA_EXTERN_C_BEGIN

typedef struct fdma_select_params {
  uint32_t struct_size; /* set by fdma_select_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_tensor bias;     /* (B, H, Lk) or (B, H, Lq, Lk), FLOAT16, BFLOAT16 or FLOAT32; last stride 1 */
  fdma_tensor key_mask; /* optional (B, Lk) of any dtype that a dense mask may have, zero = never kept; last stride 1 */
  int64_t keep_window_size; /* 1 or more; from Lk on every key is kept */
  int32_t num_threads;      /* CPU only: threads to use, 0 = all that the process may run on. On CUDA it is 0 */
  int32_t reserved1;        /* zero */
  /* Outputs, contiguous. One form is given: `end`, or `columns` and `counts`, or `packed_mask`. */
  fdma_tensor end;     /* (B, H, Lk), INT32 */
  fdma_tensor columns; /* (B, H, min(keep_window_size, Lk)), INT32; -1 past the keys that are kept */
  fdma_tensor counts;  /* (B, H), INT32: keys that are kept */
  /* FDMA_UINT8, rank 1, fdma_mask_packed_size bytes for a mask (B, H, Lq, Lk), 16-byte aligned. */
  fdma_tensor packed_mask;
  int32_t is_causal; /* 0 or 1 with packed_mask; 0 with the other forms, whose causality is that of the form */
  int32_t reserved2; /* zero */
} fdma_select_params;

/* Implementation of the inline initialiser below. */
FDMA_API void fdma_select_params_init_sized(fdma_select_params* params, size_t struct_size);

/* Sets every field to its default: tensors not given, the rest zero, CPU. */
static inline void fdma_select_params_init(fdma_select_params* params) {
  fdma_select_params_init_sized(params, sizeof(*params));
}

/* As the three entry points of attention, see fdma/attention.h. */
FDMA_API fdma_status fdma_select_supported(const fdma_select_params* params);
FDMA_API fdma_status fdma_select_workspace_size(const fdma_select_params* params, size_t* bytes);
FDMA_API fdma_status fdma_select(const fdma_select_params* params, void* workspace, size_t workspace_bytes,
                                 fdma_stream stream);

FDMA_EXTERN_C_END

#endif
