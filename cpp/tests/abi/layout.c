/* The binary interface of version 2: sizes, offsets and numbers that callers were compiled with. A change here breaks
   them; fields are only appended, and then the sizes of the parameter structs grow. */
#include <assert.h>
#include <fdma/fdma.h>
#include <stddef.h>
#include <string.h>

#define PIN_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type " changed its size")
#define PIN_OFFSET(type, field, bytes) static_assert(offsetof(type, field) == (bytes), #type "." #field " moved")
#define PIN_VALUE(name, number) static_assert((name) == (number), #name " changed its value")

PIN_SIZE(fdma_device, 8);
PIN_SIZE(fdma_tensor, 96);
PIN_OFFSET(fdma_tensor, data, 0);
PIN_OFFSET(fdma_tensor, dtype, 8);
PIN_OFFSET(fdma_tensor, rank, 12);
PIN_OFFSET(fdma_tensor, shape, 16);
PIN_OFFSET(fdma_tensor, stride, 56);
PIN_SIZE(fdma_mask, 104);
PIN_OFFSET(fdma_mask, tensor, 8);
PIN_SIZE(fdma_bias, 104);
PIN_OFFSET(fdma_bias, tensor, 8);
PIN_SIZE(fdma_attention_forward_params, 1120);
PIN_OFFSET(fdma_attention_forward_params, device, 8);
PIN_OFFSET(fdma_attention_forward_params, query, 16);
PIN_OFFSET(fdma_attention_forward_params, key, 112);
PIN_OFFSET(fdma_attention_forward_params, value, 208);
PIN_OFFSET(fdma_attention_forward_params, mask, 304);
PIN_OFFSET(fdma_attention_forward_params, bias, 408);
PIN_OFFSET(fdma_attention_forward_params, scale, 512);
PIN_OFFSET(fdma_attention_forward_params, softcap, 516);
PIN_OFFSET(fdma_attention_forward_params, is_causal, 520);
PIN_OFFSET(fdma_attention_forward_params, num_threads, 524);
PIN_OFFSET(fdma_attention_forward_params, out, 528);
PIN_OFFSET(fdma_attention_forward_params, lse, 624);
PIN_OFFSET(fdma_attention_forward_params, packed_mask, 720);
PIN_OFFSET(fdma_attention_forward_params, cu_seqlens_q, 816);
PIN_OFFSET(fdma_attention_forward_params, cu_seqlens_k, 912);
PIN_OFFSET(fdma_attention_forward_params, max_seqlen_q, 1008);
PIN_OFFSET(fdma_attention_forward_params, max_seqlen_k, 1016);
PIN_OFFSET(fdma_attention_forward_params, block_table, 1024);
PIN_SIZE(fdma_attention_backward_params, 1512);
PIN_OFFSET(fdma_attention_backward_params, device, 8);
PIN_OFFSET(fdma_attention_backward_params, query, 16);
PIN_OFFSET(fdma_attention_backward_params, key, 112);
PIN_OFFSET(fdma_attention_backward_params, value, 208);
PIN_OFFSET(fdma_attention_backward_params, mask, 304);
PIN_OFFSET(fdma_attention_backward_params, bias, 408);
PIN_OFFSET(fdma_attention_backward_params, scale, 512);
PIN_OFFSET(fdma_attention_backward_params, softcap, 516);
PIN_OFFSET(fdma_attention_backward_params, is_causal, 520);
PIN_OFFSET(fdma_attention_backward_params, num_threads, 524);
PIN_OFFSET(fdma_attention_backward_params, deterministic, 528);
PIN_OFFSET(fdma_attention_backward_params, reserved1, 532);
PIN_OFFSET(fdma_attention_backward_params, out, 536);
PIN_OFFSET(fdma_attention_backward_params, lse, 632);
PIN_OFFSET(fdma_attention_backward_params, grad_out, 728);
PIN_OFFSET(fdma_attention_backward_params, grad_lse, 824);
PIN_OFFSET(fdma_attention_backward_params, grad_query, 920);
PIN_OFFSET(fdma_attention_backward_params, grad_key, 1016);
PIN_OFFSET(fdma_attention_backward_params, grad_value, 1112);
PIN_OFFSET(fdma_attention_backward_params, grad_bias, 1208);
PIN_OFFSET(fdma_attention_backward_params, cu_seqlens_q, 1304);
PIN_OFFSET(fdma_attention_backward_params, cu_seqlens_k, 1400);
PIN_OFFSET(fdma_attention_backward_params, max_seqlen_q, 1496);
PIN_OFFSET(fdma_attention_backward_params, max_seqlen_k, 1504);
PIN_SIZE(fdma_select_params, 616);
PIN_OFFSET(fdma_select_params, device, 8);
PIN_OFFSET(fdma_select_params, bias, 16);
PIN_OFFSET(fdma_select_params, key_mask, 112);
PIN_OFFSET(fdma_select_params, keep_window_size, 208);
PIN_OFFSET(fdma_select_params, num_threads, 216);
PIN_OFFSET(fdma_select_params, reserved1, 220);
PIN_OFFSET(fdma_select_params, end, 224);
PIN_OFFSET(fdma_select_params, columns, 320);
PIN_OFFSET(fdma_select_params, counts, 416);
PIN_OFFSET(fdma_select_params, packed_mask, 512);
PIN_OFFSET(fdma_select_params, is_causal, 608);
PIN_OFFSET(fdma_select_params, reserved2, 612);
PIN_SIZE(fdma_pack_mask_params, 224);
PIN_OFFSET(fdma_pack_mask_params, device, 8);
PIN_OFFSET(fdma_pack_mask_params, mask, 16);
PIN_OFFSET(fdma_pack_mask_params, len_k, 112);
PIN_OFFSET(fdma_pack_mask_params, num_threads, 120);
PIN_OFFSET(fdma_pack_mask_params, reserved1, 124);
PIN_OFFSET(fdma_pack_mask_params, packed_mask, 128);
PIN_SIZE(fdma_cache, 384);
PIN_OFFSET(fdma_cache, key, 0);
PIN_OFFSET(fdma_cache, value, 96);
PIN_OFFSET(fdma_cache, bias, 192);
PIN_OFFSET(fdma_cache, position, 288);
PIN_SIZE(fdma_cache_append_params, 800);
PIN_OFFSET(fdma_cache_append_params, device, 8);
PIN_OFFSET(fdma_cache_append_params, cache, 16);
PIN_OFFSET(fdma_cache_append_params, key, 400);
PIN_OFFSET(fdma_cache_append_params, value, 496);
PIN_OFFSET(fdma_cache_append_params, bias, 592);
PIN_OFFSET(fdma_cache_append_params, first_position, 688);
PIN_OFFSET(fdma_cache_append_params, next_position, 696);
PIN_OFFSET(fdma_cache_append_params, num_threads, 792);
PIN_OFFSET(fdma_cache_append_params, reserved1, 796);
PIN_SIZE(fdma_cache_gather_params, 792);
PIN_OFFSET(fdma_cache_gather_params, device, 8);
PIN_OFFSET(fdma_cache_gather_params, cache, 16);
PIN_OFFSET(fdma_cache_gather_params, key, 400);
PIN_OFFSET(fdma_cache_gather_params, value, 496);
PIN_OFFSET(fdma_cache_gather_params, bias, 592);
PIN_OFFSET(fdma_cache_gather_params, position, 688);
PIN_OFFSET(fdma_cache_gather_params, num_threads, 784);
PIN_OFFSET(fdma_cache_gather_params, reserved1, 788);

PIN_VALUE(FDMA_MAX_RANK, 5);
PIN_VALUE(FDMA_WORKSPACE_ALIGNMENT, 256);
PIN_VALUE(FDMA_POSITION_NONE, -1);

PIN_VALUE(FDMA_DTYPE_NONE, 0);
PIN_VALUE(FDMA_FLOAT16, 1);
PIN_VALUE(FDMA_BFLOAT16, 2);
PIN_VALUE(FDMA_FLOAT32, 3);
PIN_VALUE(FDMA_FLOAT64, 4);
PIN_VALUE(FDMA_BOOL, 16);
PIN_VALUE(FDMA_UINT8, 17);
PIN_VALUE(FDMA_INT8, 18);
PIN_VALUE(FDMA_INT16, 19);
PIN_VALUE(FDMA_INT32, 20);
PIN_VALUE(FDMA_INT64, 21);

PIN_VALUE(FDMA_DEVICE_CPU, 1);
PIN_VALUE(FDMA_DEVICE_CUDA, 2);
PIN_VALUE(FDMA_MASK_NONE, 0);
PIN_VALUE(FDMA_MASK_DENSE, 1);
PIN_VALUE(FDMA_MASK_BITS, 2);
PIN_VALUE(FDMA_BIAS_NONE, 0);
PIN_VALUE(FDMA_BIAS_DENSE, 1);

PIN_VALUE(FDMA_SUCCESS, 0);
PIN_VALUE(FDMA_INVALID_ARGUMENT, 1000);
PIN_VALUE(FDMA_INVALID_SHAPE, 1010);
PIN_VALUE(FDMA_INVALID_DTYPE, 1020);
PIN_VALUE(FDMA_INVALID_LAYOUT, 1030);
PIN_VALUE(FDMA_INVALID_WORKSPACE, 1040);
PIN_VALUE(FDMA_UNSUPPORTED, 2000);
PIN_VALUE(FDMA_UNSUPPORTED_DEVICE, 2010);
PIN_VALUE(FDMA_CUDA_ERROR, 3000);
PIN_VALUE(FDMA_INTERNAL_ERROR, 4000);

/* The shared library and the headers agree when seen from C. */
int main(void) {
  const int version = FDMA_VERSION_MAJOR * 10000 + FDMA_VERSION_MINOR * 100 + FDMA_VERSION_PATCH;
  if (fdma_version() != version) return 1;
  if (strcmp(fdma_status_name(FDMA_INVALID_SHAPE), "FDMA_INVALID_SHAPE") != 0) return 2;

  fdma_attention_forward_params forward;
  memset(&forward, 0xff, sizeof forward);
  fdma_attention_forward_params_init(&forward);
  if (forward.struct_size != sizeof forward || forward.scale != FDMA_SCALE_DEFAULT) return 3;
  if (forward.device.type != FDMA_DEVICE_CPU || forward.packed_mask.rank != 0) return 4;

  fdma_attention_backward_params backward;
  memset(&backward, 0xff, sizeof backward);
  fdma_attention_backward_params_init(&backward);
  if (backward.struct_size != sizeof backward || backward.scale != FDMA_SCALE_DEFAULT) return 5;
  if (backward.device.type != FDMA_DEVICE_CPU || backward.grad_bias.rank != 0) return 6;

  fdma_select_params select;
  memset(&select, 0xff, sizeof select);
  fdma_select_params_init(&select);
  if (select.struct_size != sizeof select || select.keep_window_size != 0) return 7;
  if (select.device.type != FDMA_DEVICE_CPU || select.end.rank != 0 || select.packed_mask.rank != 0) return 8;

  fdma_pack_mask_params pack;
  memset(&pack, 0xff, sizeof pack);
  fdma_pack_mask_params_init(&pack);
  if (pack.struct_size != sizeof pack || pack.len_k != 0) return 9;
  if (pack.device.type != FDMA_DEVICE_CPU || pack.packed_mask.rank != 0) return 10;

  fdma_cache_append_params append;
  memset(&append, 0xff, sizeof append);
  fdma_cache_append_params_init(&append);
  if (append.struct_size != sizeof append || append.first_position != FDMA_POSITION_NONE) return 11;
  if (append.device.type != FDMA_DEVICE_CPU || append.next_position.rank != 0) return 12;

  fdma_cache_gather_params gather;
  memset(&gather, 0, sizeof gather);
  fdma_cache_gather_params_init(&gather);
  if (gather.struct_size != sizeof gather || gather.device.type != FDMA_DEVICE_CPU) return 13;
  return 0;
}
