/* Attention on the CPU by a plain C program, checked against the sum written out by hand. */
#include <fdma/fdma.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { kBatch = 1, kQueries = 3, kKeys = 5, kHeads = 2, kHeadDim = 8 };

static fdma_tensor contiguous_tensor(float* data, int64_t length) {
  fdma_tensor tensor = {data, FDMA_FLOAT32, 4, {kBatch, length, kHeads, kHeadDim}, {0}};
  tensor.stride[3] = 1;
  tensor.stride[2] = kHeadDim;
  tensor.stride[1] = kHeads * kHeadDim;
  tensor.stride[0] = length * kHeads * kHeadDim;
  return tensor;
}

static void fill(float* data, int count, unsigned seed) {
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = (float)(seed >> 8) / (float)(1u << 24) - 0.5f;
  }
}

static int check(fdma_status status, const char* call) {
  if (status == FDMA_SUCCESS) return 1;
  fprintf(stderr, "%s: %s: %s\n", call, fdma_status_name(status), fdma_last_error_message());
  return 0;
}

/* One output element: head `h` of query `q`, dimension `d`, with the diagonal in the bottom-right corner. */
static double expected(const float* query, const float* key, const float* value, int q, int h, int d) {
  double total = 0.0;
  double sum = 0.0;
  for (int k = 0; k <= q + kKeys - kQueries; ++k) {
    double score = 0.0;
    for (int i = 0; i < kHeadDim; ++i) {
      score += (double)query[(q * kHeads + h) * kHeadDim + i] * key[(k * kHeads + h) * kHeadDim + i];
    }
    const double weight = exp(score / sqrt((double)kHeadDim));
    total += weight;
    sum += weight * value[(k * kHeads + h) * kHeadDim + d];
  }
  return sum / total;
}

int main(void) {
  float query[kQueries * kHeads * kHeadDim];
  float key[kKeys * kHeads * kHeadDim];
  float value[kKeys * kHeads * kHeadDim];
  float out[kQueries * kHeads * kHeadDim];
  fill(query, kQueries * kHeads * kHeadDim, 1);
  fill(key, kKeys * kHeads * kHeadDim, 2);
  fill(value, kKeys * kHeads * kHeadDim, 3);

  fdma_attention_forward_params params;
  fdma_attention_forward_params_init(&params);
  params.query = contiguous_tensor(query, kQueries);
  params.key = contiguous_tensor(key, kKeys);
  params.value = contiguous_tensor(value, kKeys);
  params.out = contiguous_tensor(out, kQueries);
  params.is_causal = 1;

  size_t bytes = 0;
  if (!check(fdma_attention_forward_workspace_size(&params, &bytes), "fdma_attention_forward_workspace_size")) return 1;
  const size_t rounded = (bytes / FDMA_WORKSPACE_ALIGNMENT + 1) * FDMA_WORKSPACE_ALIGNMENT;
  void* workspace = aligned_alloc(FDMA_WORKSPACE_ALIGNMENT, rounded);
  if (workspace == NULL) return 1;
  const fdma_status status = fdma_attention_forward(&params, workspace, rounded, NULL);
  free(workspace);
  if (!check(status, "fdma_attention_forward")) return 1;

  double worst = 0.0;
  for (int q = 0; q < kQueries; ++q) {
    for (int h = 0; h < kHeads; ++h) {
      for (int d = 0; d < kHeadDim; ++d) {
        worst = fmax(worst, fabs(out[(q * kHeads + h) * kHeadDim + d] - expected(query, key, value, q, h, d)));
      }
    }
  }
  printf("%s\nlargest error %g\n", fdma_build_info(), worst);
  return worst < 1e-6 ? 0 : 1;
}
