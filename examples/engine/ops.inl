// Operations on single elements, written once. The source of a device includes this file after it has defined
//   Element   the type of queries, keys and values
//   ENGINE_DEVICE   what makes a lambda run there
//   for_each(queue, count, f)   f(i) for i from 0 to count - 1
#pragma once

#include <cmath>

namespace engine {

struct Place {
  int64_t row, head, dim;
};

// Element i of a (1, rows, heads, head_dim) tensor, counted as if it were contiguous.
ENGINE_DEVICE inline Place place_of(const fdma_tensor& tensor, int64_t i) {
  const int64_t dims = tensor.shape[3], heads = tensor.shape[2];
  return {i / dims / heads, i / dims % heads, i % dims};
}

ENGINE_DEVICE inline Element& at(const fdma_tensor& tensor, int64_t batch, int64_t row, int64_t head, int64_t dim) {
  return static_cast<Element*>(tensor.data)[batch * tensor.stride[0] + row * tensor.stride[1] +
                                            head * tensor.stride[2] + dim * tensor.stride[3]];
}

inline int64_t elements(const fdma_tensor& tensor) { return tensor.shape[1] * tensor.shape[2] * tensor.shape[3]; }

void embed(Queue& queue, const int32_t* tokens, const float* table, float* x, int64_t rows, int64_t width) {
  for_each(queue, rows * width, [=] ENGINE_DEVICE(int64_t i) { x[i] = table[tokens[i / width] * width + i % width]; });
}

void rotary(Queue& queue, const float* x, const int64_t* position, float theta, fdma_tensor y) {
  for_each(queue, elements(y), [=] ENGINE_DEVICE(int64_t i) {
    const Place place = place_of(y, i);
    const int64_t half = y.shape[3] / 2, pair = place.dim % half;
    const float turns = powf(theta, -2.0f * static_cast<float>(pair) / static_cast<float>(y.shape[3]));
    const float angle = static_cast<float>(*position + place.row) * turns;
    const float* low = x + (i - place.dim + pair);
    const float turned = place.dim < half ? low[0] * cosf(angle) - low[half] * sinf(angle)
                                          : low[half] * cosf(angle) + low[0] * sinf(angle);
    at(y, 0, place.row, place.head, place.dim) = static_cast<Element>(turned);
  });
}

void narrow(Queue& queue, const float* x, fdma_tensor y) {
  for_each(queue, elements(y), [=] ENGINE_DEVICE(int64_t i) {
    const Place place = place_of(y, i);
    at(y, 0, place.row, place.head, place.dim) = static_cast<Element>(x[i]);
  });
}

void widen(Queue& queue, fdma_tensor x, float* y) {
  for_each(queue, elements(x), [=] ENGINE_DEVICE(int64_t i) {
    const Place place = place_of(x, i);
    y[i] = static_cast<float>(at(x, 0, place.row, place.head, place.dim));
  });
}

void key_bias(Queue& queue, const float* x, const float* a, fdma_tensor bias) {
  const int64_t heads = bias.shape[1];
  for_each(queue, heads * bias.shape[2], [=] ENGINE_DEVICE(int64_t i) {
    const int64_t row = i / heads, head = i % heads;
    // softplus(z) = log(1 + exp(z)), which for large z is z
    const float softplus = x[i] > 20.0f ? x[i] : log1pf(expf(x[i]));
    static_cast<float*>(bias.data)[head * bias.stride[1] + row] = expf(a[head] * softplus);
  });
}

void gated(Queue& queue, float* gate, const float* up, int64_t count) {
  for_each(queue, count, [=] ENGINE_DEVICE(int64_t i) { gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i]; });
}

void write_pages(Queue& queue, fdma_tensor rows, fdma_tensor pages, const int32_t* table, const int64_t* position) {
  for_each(queue, elements(rows), [=] ENGINE_DEVICE(int64_t i) {
    const Place place = place_of(rows, i);
    const int64_t page_size = pages.shape[1], to = *position + place.row;
    at(pages, table[to / page_size], to % page_size, place.head, place.dim) =
        at(rows, 0, place.row, place.head, place.dim);
  });
}

void write_bias(Queue& queue, fdma_tensor bias, fdma_tensor all, const int64_t* position) {
  const int64_t rows = bias.shape[2];
  for_each(queue, bias.shape[1] * rows, [=] ENGINE_DEVICE(int64_t i) {
    const int64_t head = i / rows, row = i % rows;
    static_cast<float*>(all.data)[head * all.stride[1] + *position + row] =
        static_cast<const float*>(bias.data)[head * bias.stride[1] + row];
  });
}

void push(Queue& queue, const int32_t* token, int32_t* list, int64_t* count) {
  for_each(queue, 1, [=] ENGINE_DEVICE(int64_t) { list[(*count)++] = *token; });
}

void advance(Queue& queue, int64_t* position, int64_t count) {
  for_each(queue, 1, [=] ENGINE_DEVICE(int64_t) { *position += count; });
}

void fill_float(Queue& queue, float* x, float with, int64_t count) {
  for_each(queue, count, [=] ENGINE_DEVICE(int64_t i) { x[i] = with; });
}

void fill_int64(Queue& queue, int64_t* x, int64_t with, int64_t count) {
  for_each(queue, count, [=] ENGINE_DEVICE(int64_t i) { x[i] = with; });
}

}  // namespace engine
