// Log-softmax, loss and gradient of a chunk of logits: each row is read from memory once and, with
// its gradient in the logits' place, written once; the passes in between find it in L2.

#include <nanobind/nanobind.h>

#include <cmath>

#include "bind.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

struct Extent {
  float top, total;
};

// Largest element and sum of a row.
template <typename T>
Extent extent(const T* row, int64_t n) {
  vec top = splat(to_float(row[0])), total{};
  for_vectors(n, [&](int64_t i, int64_t count) {
    const vec x = load_some(row + i, count);
    total += x;
    top = max(top, x);
    if (count < kLanes)  // the zeros behind the end are no logits
      for (int64_t j = count; j < kLanes; ++j) top[j] = to_float(row[0]);
  });
  return {max(top), sum(total)};
}

template <typename T>
float log_sum_exp(const T* row, int64_t n, float top) {
  vec total{};
  for_vectors(n, [&](int64_t i, int64_t count) {
    vec e = exp(load_some(row + i, count) - top);
    for (int64_t j = count; j < kLanes; ++j) e[j] = 0.0f;
    total += e;
  });
  return top + std::log(sum(total));
}

// row = weight * (softmax(row) - even)
template <typename T>
void differentiate(T* row, int64_t n, float lse, float weight, float even) {
  for_vectors(n, [&](int64_t i, int64_t count) {
    const vec x = (exp(load_some(row + i, count) - lse) - even) * weight;
    store_some(row + i, x, count);
  });
}

// logits [rows, vocab], contiguous; with `grad` replaced by the gradient of the losses' sum.
// weights [rows] or 0; losses, logprobs [rows].
template <typename T>
void cross_entropy(uintptr_t logits, int64_t rows, int64_t vocab, uintptr_t targets,
                   uintptr_t weights, float smoothing, bool grad, uintptr_t losses,
                   uintptr_t logprobs) {
  const float even = smoothing / float(vocab);
  parallel_ranges(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* row = pointer<T>(logits) + r * vocab;
      const int64_t target = pointer<const int64_t>(targets)[r];
      const float weight = weights ? pointer<const float>(weights)[r] : 1.0f;
      const auto [top, total] = extent(row, vocab);
      const float lse = log_sum_exp(row, vocab, top);
      const float logprob = to_float(row[target]) - lse;
      pointer<float>(logprobs)[r] = logprob;
      pointer<float>(losses)[r] =
          -weight * ((1 - smoothing) * logprob + smoothing * (total / float(vocab) - lse));
      if (!grad) continue;
      differentiate(row, vocab, lse, weight, even);
      row[target] = from_float<T>(weight * (std::exp(logprob) - even - (1 - smoothing)));
    }
  });
}

}  // namespace

void bind_cross_entropy(nanobind::module_& m) {
  m.def("cross_entropy_f32", &cross_entropy<float>);
  m.def("cross_entropy_bf16", &cross_entropy<bf16>);
}

}  // namespace selfguide
