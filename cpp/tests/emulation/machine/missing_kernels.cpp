// Launches that the host code names and no emulated call gets to: of selection, decode, the cache and masks in an order
// of their own, whose kernels are portable. They say so.
#include "kernels/launchers.hpp"

namespace fdma {

cudaError_t select_sort_bytes(const SelectParams&, size_t&) { return cudaErrorNotSupported; }
int64_t select_plane_words(const SelectParams&) { return 0; }
cudaError_t launch_select(const SelectParams&, const SelectScratch&, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t launch_select_rows(const SelectRowsParams&, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t launch_cache_append(const CacheAppendParams&, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t launch_cache_gather(const CacheGatherParams&, cudaStream_t) { return cudaErrorNotSupported; }
DecodeSelectPlan plan_decode_select(ElementType, int64_t, int64_t) { return {}; }
cudaError_t launch_decode_select(const DecodeSelectParams&, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t compact_sort_bytes(const CompactParams&, size_t&) { return cudaErrorNotSupported; }
cudaError_t launch_compact_mask(const CompactParams&, cudaStream_t) { return cudaErrorNotSupported; }
cudaError_t launch_order_bias(const SlotBiasParams&, void*, int32_t, cudaStream_t) { return cudaErrorNotSupported; }

}  // namespace fdma
