/* Packed masks: one bit a score, in the mask's own broadcast shape, plus one bit for each tile of 64 x 64 scores that
   has a visible one. A mask of kind FDMA_MASK_BITS is such memory; it is written by fdma_attention_forward, by
   fdma_select and by fdma_pack_mask. */
#ifndef FDMA_MASK_H
#define FDMA_MASK_H

#include <fdma/export.h>
#include <fdma/status.h>
#include <fdma/types.h>

FDMA_EXTERN_C_BEGIN

/* Bytes of a packed mask for a dense mask of this shape (only rank and shape are read) over len_k keys. */
FDMA_API fdma_status fdma_mask_packed_size(const fdma_tensor* mask, int64_t len_k, size_t* bytes);

/* Packs a dense mask by itself. What fdma_attention_forward writes to its packed_mask leaves out what causality hides;
   these are the bits of the mask alone, so they serve calls with and without causality. */
typedef struct fdma_pack_mask_params {
  uint32_t struct_size; /* set by fdma_pack_mask_params_init */
  uint32_t reserved;    /* zero */
  fdma_device device;
  fdma_tensor mask; /* (B, H, Lq, {len_k|1}) of any dtype, extents of 1 broadcast later; last stride 1. Visible is what
                       compares unequal to zero: -0.0 is hidden, NaN is visible */
  int64_t len_k;    /* keys that there are bits for: Lk of the calls to come */
  int32_t num_threads;     /* CPU only: threads to use, 0 = all that the process may run on. On CUDA it is 0 */
  int32_t reserved1;       /* zero */
  fdma_tensor packed_mask; /* output, FDMA_UINT8, rank 1, fdma_mask_packed_size bytes, 16-byte aligned */
} fdma_pack_mask_params;

/* Implementation of the inline initialiser below. */
FDMA_API void fdma_pack_mask_params_init_sized(fdma_pack_mask_params* params, size_t struct_size);

/* Sets every field to its default: tensors not given, the rest zero, CPU. */
static inline void fdma_pack_mask_params_init(fdma_pack_mask_params* params) {
  fdma_pack_mask_params_init_sized(params, sizeof(*params));
}

/* As the three entry points of attention, see fdma/attention.h. */
FDMA_API fdma_status fdma_pack_mask_supported(const fdma_pack_mask_params* params);
FDMA_API fdma_status fdma_pack_mask_workspace_size(const fdma_pack_mask_params* params, size_t* bytes);
FDMA_API fdma_status fdma_pack_mask(const fdma_pack_mask_params* params, void* workspace, size_t workspace_bytes,
                                    fdma_stream stream);

FDMA_EXTERN_C_END

#endif
