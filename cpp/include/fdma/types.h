/* Plain types shared by all operations: dtypes, devices, tensors, masks and biases. */
#ifndef FDMA_TYPES_H
#define FDMA_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include <fdma/export.h>

FDMA_EXTERN_C_BEGIN

#define FDMA_MAX_RANK 5

typedef enum fdma_dtype FDMA_ENUM_TYPE {
  FDMA_DTYPE_NONE = 0,
  FDMA_FLOAT16 = 1,
  FDMA_BFLOAT16 = 2,
  FDMA_FLOAT32 = 3,
  FDMA_FLOAT64 = 4,
  FDMA_BOOL = 16, /* one byte */
  FDMA_UINT8 = 17,
  FDMA_INT8 = 18,
  FDMA_INT16 = 19,
  FDMA_INT32 = 20,
  FDMA_INT64 = 21
} fdma_dtype;

typedef enum fdma_device_type FDMA_ENUM_TYPE { FDMA_DEVICE_CPU = 1, FDMA_DEVICE_CUDA = 2 } fdma_device_type;

/* Where the pointers of a call live. `index` is the CUDA ordinal and 0 for the CPU. */
typedef struct fdma_device {
  fdma_device_type type;
  int32_t index;
} fdma_device;

/* A CUDA stream (cudaStream_t and CUstream are this pointer); NULL is the default stream. Ignored by the CPU. */
typedef struct CUstream_st* fdma_stream;

/* A strided view. Strides count elements; a stride of 0 broadcasts the dimension. rank 0 means "not given". The
   library reads inputs and writes only what is documented as output. */
typedef struct fdma_tensor {
  void* data;
  fdma_dtype dtype;
  int32_t rank;
  int64_t shape[FDMA_MAX_RANK];
  int64_t stride[FDMA_MAX_RANK];
} fdma_tensor;

typedef enum fdma_mask_kind FDMA_ENUM_TYPE {
  FDMA_MASK_NONE = 0,
  FDMA_MASK_DENSE = 1,   /* `tensor` holds one element a score, non-zero = visible */
  FDMA_MASK_BITS = 2,    /* `tensor` describes the dense shape, its data is a packed mask */
  FDMA_MASK_COLUMNS = 3, /* `tensor` lists the keys that every query sees */
  FDMA_MASK_INTERVAL = 4 /* `tensor` holds the position at which each key is pushed out */
} fdma_mask_kind;

/* Which keys a query may see, beside causality.
   DENSE: `tensor` is ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}) of any dtype of fdma_dtype; an element that compares unequal
          to zero is visible (-0.0 is zero, NaN is visible). Stride of the last dimension is 1 (or its extent is 1).
   BITS:  `tensor.shape` is the same broadcast shape with a full last dimension (Lk), `tensor.data` a packed mask of
          this shape (fdma/mask.h), dtype FDMA_UINT8, strides ignored.
   COLUMNS and INTERVAL are what fdma_select (fdma/select.h) writes, INT32, rank 3, stride of the last dimension 1. They
   take memory in proportion to the keys, and so does a call with them whose bias, if there is one, is the same for all
   query rows and whose keys have no pages; time goes with the keys that are seen. Any other call expands them to bits
   first.
   COLUMNS:  ({B|1}, {H|H_kv|1}, W): each list has the keys that are seen; values outside 0 to Lk - 1 (-1) hold a place.
             With is_causal a query sees those up to its position.
   INTERVAL: ({B|1}, {H|H_kv|1}, Lk): the query at position p = q + Lk - Lq sees key k when k <= p < end[k]. */
typedef struct fdma_mask {
  fdma_mask_kind kind;
  fdma_tensor tensor;
} fdma_mask;

typedef enum fdma_bias_kind FDMA_ENUM_TYPE { FDMA_BIAS_NONE = 0, FDMA_BIAS_DENSE = 1 } fdma_bias_kind;

/* What is added to the scaled, soft-capped scores.
   DENSE: ({B|1}, {H|H_kv|1}, {Lq|1}, {Lk|1}), FLOAT16, BFLOAT16 or FLOAT32 whatever the dtype of the query; stride of
          the last dimension is 1 (or its extent is 1). An element of -inf hides the key. */
typedef struct fdma_bias {
  fdma_bias_kind kind;
  fdma_tensor tensor;
} fdma_bias;

FDMA_EXTERN_C_END

#endif
