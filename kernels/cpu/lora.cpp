// Y += scale (X Aᵀ) Bᵀ for inference, all slices of a fused layer in one call. Each row is computed
// from its own row of X and Y alone, in one fixed order; rows only share the loads of A and B.

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "bind.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

// Addresses of A [rank, k] and of B transposed [rank, columns], rank, columns, start, scale.
using Slice = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, float>;

constexpr int kTileRows = 4;

// Rows x and y to x + R - 1 and y + R - 1; inner [rank, R] is scratch.
template <int R, typename T, typename W>
void add_rows(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t k, const Slice& slice,
              float* inner) {
  const auto [a_at, b_at, rank, columns, start, scale] = slice;
  const W *a = pointer<const W>(a_at), *b = pointer<const W>(b_at);
  y += start;
  for (int64_t r = 0; r < rank; ++r) {
    vec acc[R] = {};
    for_vectors(k, [&, a = a](int64_t i, int64_t n) {
      const vec w = load_some(a + r * k + i, n);
      for (int j = 0; j < R; ++j) acc[j] += load_some(x + j * x_stride + i, n) * w;
    });
    for (int j = 0; j < R; ++j) inner[r * R + j] = scale * sum(acc[j]);
  }
  for_vectors(columns, [&, rank = rank, columns = columns](int64_t c, int64_t n) {
    vec acc[R] = {};
    for (int64_t r = 0; r < rank; ++r) {
      const vec w = load_some(b + r * columns + c, n);
      for (int j = 0; j < R; ++j) acc[j] += w * inner[r * R + j];
    }
    for (int j = 0; j < R; ++j) {
      T* out = y + j * y_stride + c;
      store_some(out, load_some(out, n) + acc[j], n);
    }
  });
}

// y [rows, *] and x [rows, k] with row strides.
template <typename T, typename W>
void lora_add(uintptr_t y_at, int64_t y_stride, uintptr_t x_at, int64_t x_stride, int64_t rows,
              int64_t k, const std::vector<Slice>& slices) {
  T* y = pointer<T>(y_at);
  const T* x = pointer<const T>(x_at);
  int64_t rank = 0;
  for (const Slice& slice : slices) rank = std::max(rank, std::get<2>(slice));
  parallel_ranges(rows, 2 * kTileRows, [&](int64_t begin, int64_t end) {
    std::vector<float> inner(rank * kTileRows);
    for (const Slice& slice : slices) {
      int64_t i = begin;
      for (; i + kTileRows <= end; i += kTileRows)
        add_rows<kTileRows, T, W>(x + i * x_stride, x_stride, y + i * y_stride, y_stride, k, slice,
                                  inner.data());
      for (; i < end; ++i)
        add_rows<1, T, W>(x + i * x_stride, x_stride, y + i * y_stride, y_stride, k, slice,
                          inner.data());
    }
  });
}

}  // namespace

void bind_lora(nanobind::module_& m) {
  m.def("lora_add_f32", &lora_add<float, float>);
  m.def("lora_add_bf16", &lora_add<bf16, bf16>);
  m.def("lora_add_bf16_f32", &lora_add<bf16, float>);
}

}  // namespace selfguide
