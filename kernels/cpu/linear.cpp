// Y = X W^T + b for few rows: decode, chunked prefill, scoring.
//
// Each output is one dot product of two K-contiguous rows, accumulated in 16 lanes in the order of K
// and reduced by a fixed tree, so it depends on its own row alone: not on T, threads or tiles.
// W is read in its natural layout; nothing is packed or copied. A tile of 6 x 4 outputs keeps 24
// accumulators in registers; a block of W rows stays in L1 while X streams past it from L2, and the
// block after it is prefetched meanwhile: at few rows the memory's bandwidth is the limit.

#include <nanobind/nanobind.h>

#include "bind.h"
#include "linear_amx.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

#if defined(__AVX512BF16__)
constexpr int64_t kStepBf16 = 32;
using Packed = __m512bh;  // 32 bf16: one step of K

inline Packed load_step(const bf16* p) { return (Packed)_mm512_loadu_si512(p); }
inline Packed load_step(const bf16* p, int64_t n) {
  return (Packed)_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << n) - 1), p);
}
inline vec multiply_add(vec acc, Packed a, Packed b) {
  return (vec)_mm512_dpbf16_ps((__m512)acc, a, b);
}
#else
constexpr int64_t kStepBf16 = kLanes;
inline vec load_step(const bf16* p) { return load(p); }
inline vec load_step(const bf16* p, int64_t n) { return load_partial(p, n); }
#endif

inline vec load_step(const float* p) { return load(p); }
inline vec load_step(const float* p, int64_t n) { return load_partial(p, n); }
inline vec multiply_add(vec acc, vec a, vec b) { return acc + a * b; }

template <typename T>
constexpr int64_t step_of() {
  return sizeof(T) == 2 ? kStepBf16 : kLanes;
}

// Sums of four vectors, side by side.
inline vec4 sum4(vec a, vec b, vec c, vec d) {
#if defined(__AVX512F__)
  const __m512 A = (__m512)a, B = (__m512)b, C = (__m512)c, D = (__m512)d;
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(A, B), _mm512_unpackhi_ps(A, B));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(C, D), _mm512_unpackhi_ps(C, D));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return (vec4)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  return vec4{sum(a), sum(b), sum(c), sum(d)};
#endif
}

inline void store4(float* y, vec4 v) { std::memcpy(y, &v, sizeof v); }
inline void store4(bf16* y, vec4 v) {
#if defined(__AVX512BF16__)
  _mm_storel_epi64(reinterpret_cast<__m128i*>(y), (__m128i)_mm_cvtneps_pbh((__m128)v));
#else
  for (int j = 0; j < 4; ++j) y[j] = from_float<bf16>(v[j]);
#endif
}

template <typename T>
struct Problem {
  const T* x;
  const T* w;
  const T* bias;  // null: none
  void* y;
  int64_t rows, n, k, x_stride, y_stride;
};

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileCols = 4;
#else
constexpr int kTileRows = 3, kTileCols = 4;  // sixteen registers
#endif

// Rows m..m+R, columns n..n+cols (cols <= 4; missing ones repeat W's last row and are not stored).
// `ahead`, where not null, is four rows of W to prefetch.
template <int R, typename T, typename Out>
inline void tile(const Problem<T>& p, int64_t m, int64_t n, int64_t cols, const T* ahead) {
  constexpr int64_t step = step_of<T>();
  const T* x[R];
  const T* w[kTileCols];
  for (int i = 0; i < R; ++i) x[i] = p.x + (m + i) * p.x_stride;
  for (int j = 0; j < kTileCols; ++j) w[j] = p.w + std::min<int64_t>(n + j, p.n - 1) * p.k;

  vec acc[R][kTileCols] = {};
  const auto advance = [&](auto&& at) {
    decltype(at(x[0])) xs[R];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) xs[i] = at(x[i]);
#pragma GCC unroll 8
    for (int j = 0; j < kTileCols; ++j) {
      const auto ws = at(w[j]);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) acc[i][j] = multiply_add(acc[i][j], xs[i], ws);
    }
  };
  int64_t k = 0;
  for (; k + step <= p.k; k += step) {
    if (ahead)
#pragma GCC unroll 8
      for (int j = 0; j < kTileCols; ++j) __builtin_prefetch(ahead + j * p.k + k, 0, 2);
    advance([&](const T* row) { return load_step(row + k); });
  }
  if (k < p.k) advance([&](const T* row) { return load_step(row + k, p.k - k); });

  vec4 bias{};
  if (p.bias)
    for (int64_t j = 0; j < cols; ++j) bias[j] = to_float(p.bias[n + j]);
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    const vec4 sums = sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]) + bias;
    Out* y = static_cast<Out*>(p.y) + (m + i) * p.y_stride + n;
    if (cols == kTileCols) {
      store4(y, sums);
    } else {
      for (int64_t j = 0; j < cols; ++j) y[j] = from_float<Out>(sums[j]);
    }
  }
}

template <typename T, typename Out>
void tile_rows(const Problem<T>& p, int64_t m, int64_t rows, int64_t n, int64_t cols,
               const T* ahead) {
  switch (rows) {
    case 1: return tile<1, T, Out>(p, m, n, cols, ahead);
    case 2: return tile<2, T, Out>(p, m, n, cols, ahead);
    case 3: return tile<3, T, Out>(p, m, n, cols, ahead);
    case 4: return tile<4, T, Out>(p, m, n, cols, ahead);
    case 5: return tile<5, T, Out>(p, m, n, cols, ahead);
    default: return tile<6, T, Out>(p, m, n, cols, ahead);
  }
}

constexpr int64_t kL1Bytes = 20 << 10, kL2Bytes = 384 << 10;

template <typename T, typename Out>
void run(const Problem<T>& p) {
  const int64_t row_bytes = p.k * int64_t(sizeof(T));
  const int64_t row_block = std::max<int64_t>(kTileRows, kL2Bytes / row_bytes / kTileRows * kTileRows);
  const int64_t col_block = std::max<int64_t>(kTileCols, kL1Bytes / row_bytes / kTileCols * kTileCols);
  parallel_ranges(p.n, kTileCols, [&](int64_t begin, int64_t end) {
    for (int64_t m0 = 0; m0 < p.rows; m0 += row_block) {
      const int64_t m1 = std::min(p.rows, m0 + row_block);
      for (int64_t n0 = begin; n0 < end; n0 += col_block) {
        const int64_t n1 = std::min(end, n0 + col_block);
        for (int64_t m = m0; m < m1; m += kTileRows)
          for (int64_t n = n0; n < n1; n += kTileCols) {
            const bool fetch = m == m0 && n + col_block + kTileCols <= p.n;
            tile_rows<T, Out>(p, m, std::min<int64_t>(kTileRows, m1 - m), n,
                              std::min<int64_t>(kTileCols, n1 - n),
                              fetch ? p.w + (n + col_block) * p.k : nullptr);
          }
      }
    }
  });
}

// x [rows, k] with row stride x_stride, w [n, k], bias [n] or 0, y [rows, n] with row stride y_stride.
template <typename T, typename Out>
void linear(uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int64_t rows, int64_t n,
            int64_t k, int64_t x_stride, int64_t y_stride) {
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) {
    if (k % amx::kStep == 0 && k > 0)  // K is a weight's own: all batches go the same way
      return amx::linear(pointer<const bf16>(x), pointer<const bf16>(w), pointer<const bf16>(bias),
                         pointer<Out>(y), rows, n, k, x_stride, y_stride);
  }
#endif
  run<T, Out>({pointer<const T>(x), pointer<const T>(w), pointer<const T>(bias),
               pointer<void>(y), rows, n, k, x_stride, y_stride});
}

}  // namespace

void bind_linear(nanobind::module_& m) {
  m.def("linear_f32", &linear<float, float>);
  m.def("linear_bf16", &linear<bf16, bf16>);
  m.def("linear_bf16_f32", &linear<bf16, float>);
}

}  // namespace selfguide
