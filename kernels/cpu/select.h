// Finding the few large elements of a long row without sorting it.
//
// One pass keeps a maximum per group of elements. The k-th largest maximum is a lower bound of the
// k-th largest element (each group holds at least one as large), so a second pass collects a few
// more than k candidates, and the exact selection runs on those alone.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <vector>

#include "simd.h"

namespace selfguide {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlock = 1024;  // elements per step; each lane of a block is one group

inline int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Elements i..i+15 of a row of n; -inf behind its end.
inline vec load_row(const float* row, int64_t i, int64_t n) {
  if (i + kLanes <= n) return load(row + i);
  vec v = splat(-kInfinity);
  for (int64_t lane = 0; i + lane < n; ++lane) v[lane] = row[i + lane];
  return v;
}

// Some elements of a row, by ascending id. The buffers only grow: clearing them would cost a pass.
struct Candidates {
  std::vector<int32_t> ids;
  std::vector<float> values;
  int64_t count = 0;

  void reserve(int64_t n) {
    if (int64_t(ids.size()) < n) ids.resize(n), values.resize(n);
    count = 0;
  }
};

class Selector {
 public:
  std::vector<float> group_maxima;

  // Fills group_maxima; returns the largest element, NaN if any is NaN.
  float scan(const float* row, int64_t n) {
    group_maxima.resize(blocks_of(n) * kLanes);
    vec nan{}, largest = splat(-kInfinity);
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      vec block = splat(-kInfinity);
      for (int64_t i = begin; i < std::min(n, begin + kBlock); i += kLanes) {
        const vec v = load_row(row, i, n);
        nan = v == v ? nan : v;
        block = max(block, v);
      }
      store(group_maxima.data() + begin / kBlock * kLanes, block);
      largest = max(largest, block);
    }
    for (int lane = 0; lane < kLanes; ++lane)
      if (nan[lane] != nan[lane]) return nan[lane];
    return max(largest);
  }

  // A value that at least k elements reach; needs scan().
  float bound_of_largest(int64_t k) {
    if (k > int64_t(group_maxima.size())) return -kInfinity;
    work_ = group_maxima;
    return kth_largest(work_, k);
  }

  // The exact k-th largest of the candidates' values.
  float kth_value(const Candidates& found, int64_t k) {
    work_.assign(found.values.begin(), found.values.begin() + found.count);
    return kth_largest(work_, k);
  }

  // The largest of n values (none above `peak`) for which the weights of all that reach it sum to
  // `target` or more: a histogram over (peak - value) * scale, 32 bins per unit, finds the bin that
  // holds the answer, and weighted_quickselect runs on that bin alone. Zero weights do not count.
  float weighted_threshold(const float* values, const float* weights, int64_t n, double target,
                           float peak, float scale);

  // The elements >= bound.
  static void collect(const float* row, int64_t n, float bound, Candidates& found);

 private:
  static float kth_largest(std::vector<float>& values, int64_t k) {
    std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
    return values[k - 1];
  }

  std::vector<float> work_, work_weights_;
};

inline void Selector::collect(const float* row, int64_t n, float bound, Candidates& found) {
  found.reserve(n + kLanes);
  int32_t* ids = found.ids.data();
  float* values = found.values.data();
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + kLanes <= n; i += kLanes) {
    const __m512 v = (__m512)load(row + i);
    const __mmask16 kept = _mm512_cmp_ps_mask(v, _mm512_set1_ps(bound), _CMP_GE_OQ);
    if (!kept) continue;
    const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(int32_t(i)));
    _mm512_storeu_ps(values + count, _mm512_maskz_compress_ps(kept, v));
    _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(kept, at));
    count += __builtin_popcount(kept);
  }
#endif
  for (; i < n; ++i) {
    ids[count] = int32_t(i);
    values[count] = row[i];
    count += row[i] >= bound;
  }
  found.count = count;
}

// The largest value v for which the weights of all values >= v sum to `target` or more (the largest
// value of all if target <= 0; the smallest if rounding lets no sum reach it): a quickselect.
// `values` must not be empty. Permutes its arguments.
inline float weighted_quickselect(std::vector<float>& values, std::vector<float>& weights,
                                  double target) {
  int64_t low = 0, high = int64_t(values.size());
  double above = 0;  // weight of what was found to be larger than everything in low..high
  const auto swap = [&](int64_t a, int64_t b) {
    std::swap(values[a], values[b]);
    std::swap(weights[a], weights[b]);
  };
  while (true) {
    const float a = values[low], b = values[(low + high) / 2], c = values[high - 1];
    const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    int64_t larger = low, smaller = high;  // low..larger > pivot, larger..i == pivot
    double weight_larger = 0, weight_equal = 0;
    for (int64_t i = low; i < smaller;) {
      if (values[i] > pivot) {
        weight_larger += weights[i];
        swap(i++, larger++);
      } else if (values[i] < pivot) {
        swap(i, --smaller);
      } else {
        weight_equal += weights[i++];
      }
    }
    if (larger > low && above + weight_larger >= target) {
      high = larger;
    } else if (above + weight_larger + weight_equal >= target || smaller == high) {
      return pivot;
    } else {
      above += weight_larger + weight_equal;
      low = smaller;
    }
  }
}

inline float Selector::weighted_threshold(const float* values, const float* weights, int64_t n,
                                          double target, float peak, float scale) {
  constexpr int kBins = 512;
  const auto bin_of = [&](float value) {
    return int(std::min((peak - value) * scale * 32, float(kBins - 1)));
  };
  std::array<double, kBins> sums{};
  for (int64_t i = 0; i < n; ++i) sums[bin_of(values[i])] += weights[i];
  int chosen = 0;
  double above = 0, sum = 0;
  for (int bin = 0; bin < kBins && (bin == 0 || sum < target); ++bin) {
    if (sums[bin] > 0) chosen = bin, above = sum;
    sum += sums[bin];
  }
  work_.clear(), work_weights_.clear();
  for (int64_t i = 0; i < n; ++i) {
    if (bin_of(values[i]) != chosen || weights[i] <= 0) continue;
    work_.push_back(values[i]);
    work_weights_.push_back(weights[i]);
  }
  return weighted_quickselect(work_, work_weights_, target - above);
}

}  // namespace selfguide
