// RMS normalisation, forward and backward; the residual addition may be fused in front of it.
// A row is read twice, the second time from L1; the backward recomputes the forward's scale.

#include <nanobind/nanobind.h>

#include <cmath>

#include "bind.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

// Rows stand at outer * outer_stride + inner * inner_stride: heads of a fused qkv, say.
template <typename T>
struct Rows {
  const T* data;
  int64_t inner, outer_stride, inner_stride;
  const T* operator[](int64_t row) const {
    return data + row / inner * outer_stride + row % inner * inner_stride;
  }
};

template <typename T>
inline float scale_of(const T* x, int64_t dim, float eps) {
  const float squares = sum_over(dim, [&](int64_t i, int64_t n) {
    const vec v = load_some(x + i, n);
    return v * v;
  });
  return 1.0f / std::sqrt(squares / float(dim) + eps);
}

template <typename T>
inline void normalise(const T* x, const T* weight, T* y, int64_t dim, float eps) {
  const float scale = scale_of(x, dim, eps);
  for_vectors(dim, [&](int64_t i, int64_t n) {
    store_some(y + i, load_some(x + i, n) * scale * load_some(weight + i, n), n);
  });
}

// Rows that one thread takes at a time: enough work to be worth waking another.
inline int64_t grain_of(int64_t dim) { return std::max<int64_t>(1, kElementsPerThread / dim); }

// x [rows, dim] as `Rows` says, weight [dim], y [rows, dim] contiguous.
template <typename T>
void rms_norm(uintptr_t x, uintptr_t weight, uintptr_t y, int64_t rows, int64_t inner, int64_t dim,
              int64_t outer_stride, int64_t inner_stride, float eps) {
  const Rows<T> from{pointer<const T>(x), inner, outer_stride, inner_stride};
  parallel_ranges(rows, grain_of(dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      normalise(from[r], pointer<const T>(weight), pointer<T>(y) + r * dim, dim, eps);
  });
}

// total = x + residual, y = rms_norm(total); all [rows, dim] contiguous.
template <typename T>
void add_rms_norm(uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t y, uintptr_t total,
                  int64_t rows, int64_t dim, float eps) {
  parallel_ranges(rows, grain_of(dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* a = pointer<const T>(x) + r * dim;
      const T* b = pointer<const T>(residual) + r * dim;
      T* sum = pointer<T>(total) + r * dim;
      for_vectors(dim, [&](int64_t i, int64_t n) {
        store_some(sum + i, load_some(a + i, n) + load_some(b + i, n), n);
      });
      normalise<T>(sum, pointer<const T>(weight), pointer<T>(y) + r * dim, dim, eps);
    }
  });
}

// dx = s w dy - x s^3 mean(w dy x) (+ dtotal), where s = 1 / sqrt(mean(x^2) + eps).
template <typename T>
inline void backward_row(const T* dy, const T* dtotal, const T* x, const T* weight, T* dx,
                         int64_t dim, float eps) {
  const float scale = scale_of(x, dim, eps);
  const float dot = sum_over(dim, [&](int64_t i, int64_t n) {
    return load_some(dy + i, n) * load_some(weight + i, n) * load_some(x + i, n);
  });
  const float pull = scale * scale * scale * dot / float(dim);
  for_vectors(dim, [&](int64_t i, int64_t n) {
    const vec grad = load_some(dy + i, n) * load_some(weight + i, n) * scale;
    const vec out = grad - load_some(x + i, n) * pull;
    store_some(dx + i, dtotal ? out + load_some(dtotal + i, n) : out, n);
  });
}

// dy and dx [rows, dim] contiguous, as dtotal (0: none); x as `Rows` says.
template <typename T>
void rms_norm_backward(uintptr_t dy, uintptr_t dtotal, uintptr_t x, uintptr_t weight, uintptr_t dx,
                       int64_t rows, int64_t inner, int64_t dim, int64_t outer_stride,
                       int64_t inner_stride, float eps) {
  const Rows<T> from{pointer<const T>(x), inner, outer_stride, inner_stride};
  const T* extra = pointer<const T>(dtotal);
  parallel_ranges(rows, grain_of(dim), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      backward_row(pointer<const T>(dy) + r * dim, extra ? extra + r * dim : nullptr, from[r],
                   pointer<const T>(weight), pointer<T>(dx) + r * dim, dim, eps);
  });
}

}  // namespace

void bind_norm(nanobind::module_& m) {
  m.def("rms_norm_f32", &rms_norm<float>);
  m.def("rms_norm_bf16", &rms_norm<bf16>);
  m.def("add_rms_norm_f32", &add_rms_norm<float>);
  m.def("add_rms_norm_bf16", &add_rms_norm<bf16>);
  m.def("rms_norm_backward_f32", &rms_norm_backward<float>);
  m.def("rms_norm_backward_bf16", &rms_norm_backward<bf16>);
}

}  // namespace selfguide
