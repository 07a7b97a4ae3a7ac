// silu(gate) * up, forward and backward.

#include <nanobind/nanobind.h>

#include "bind.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

inline vec sigmoid(vec x) { return 1.0f / (1.0f + exp(-x)); }

inline int64_t grain_of(int64_t features) {
  return std::max<int64_t>(1, kElementsPerThread / 4 / std::max<int64_t>(1, features));
}

// gate_up [rows, 2 features] with row stride, y [rows, features] contiguous.
template <typename T>
void swiglu(uintptr_t gate_up, uintptr_t y, int64_t rows, int64_t features, int64_t stride) {
  parallel_ranges(rows, grain_of(features), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* gate = pointer<const T>(gate_up) + r * stride;
      const T* up = gate + features;
      T* out = pointer<T>(y) + r * features;
      for_vectors(features, [&](int64_t i, int64_t n) {
        const vec g = load_some(gate + i, n);
        store_some(out + i, g * sigmoid(g) * load_some(up + i, n), n);
      });
    }
  });
}

// dy [rows, features] and d_gate_up [rows, 2 features] contiguous.
template <typename T>
void swiglu_backward(uintptr_t dy, uintptr_t gate_up, uintptr_t d_gate_up, int64_t rows,
                     int64_t features, int64_t stride) {
  parallel_ranges(rows, grain_of(features), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* grad = pointer<const T>(dy) + r * features;
      const T* gate = pointer<const T>(gate_up) + r * stride;
      const T* up = gate + features;
      T* d_gate = pointer<T>(d_gate_up) + r * 2 * features;
      T* d_up = d_gate + features;
      for_vectors(features, [&](int64_t i, int64_t n) {
        const vec d = load_some(grad + i, n), g = load_some(gate + i, n), s = sigmoid(g);
        store_some(d_gate + i, d * load_some(up + i, n) * s * (1.0f + g * (1.0f - s)), n);
        store_some(d_up + i, d * g * s, n);
      });
    }
  });
}

}  // namespace

void bind_swiglu(nanobind::module_& m) {
  m.def("swiglu_f32", &swiglu<float>);
  m.def("swiglu_bf16", &swiglu<bf16>);
  m.def("swiglu_backward_f32", &swiglu_backward<float>);
  m.def("swiglu_backward_bf16", &swiglu_backward<bf16>);
}

}  // namespace selfguide
