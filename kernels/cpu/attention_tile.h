// One tile of attention: up to 24 query rows against 64 keys and values, online softmax.
//
// Keys are transposed once per tile, so that they fill the lanes of a register and no dot
// product needs a reduction across lanes; every query row then shares them. A row's numbers do not
// depend on the rows beside it: keys it must not see add exact zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "simd.h"

namespace selfguide {

constexpr int64_t kTileKeys = 64, kTileRows = 24;
constexpr int64_t kSlab = 2 * kLanes;  // columns of V handled together: two vectors
// Query rows, groups of kLanes keys and slabs whose sums stay in registers together.
#if defined(__AVX512F__)
constexpr int64_t kBlockRows = 4, kBlockGroups = 4, kBlockSlabs = 2;
#else
constexpr int64_t kBlockRows = 4, kBlockGroups = 2, kBlockSlabs = 1;
#endif
constexpr float kLowest = -1e30f;

// The keys of a tile: key i's row starts at base + offset[i], for first <= i < end.
struct TileKeys {
  int64_t offset[kTileKeys];
  int64_t first, end;
  int64_t groups() const { return (end + kLanes - 1) / kLanes; }
};

// ---- Units: the 32 bits of a row that one multiply-add takes: a float, or a pair of bf16. ----

#if defined(__AVX512BF16__)
inline int64_t units_of(const bf16*, int64_t dim) { return (dim + 1) / 2; }
inline vec multiply_add(const bf16*, vec acc, vec a, vec b) {
  return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
inline vec load_units(const bf16* row, int64_t unit, int64_t dim) {
  const int64_t left = std::min<int64_t>(dim - 2 * unit, 32);
  return (vec)_mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << left) - 1), row + 2 * unit);
}
#else
inline int64_t units_of(const bf16*, int64_t dim) { return dim; }
inline vec multiply_add(const bf16*, vec acc, vec a, vec b) { return acc + a * b; }
inline vec load_units(const bf16* row, int64_t unit, int64_t dim) {
  return load_some(row + unit, dim - unit);
}
#endif
inline int64_t units_of(const float*, int64_t dim) { return dim; }
inline vec multiply_add(const float*, vec acc, vec a, vec b) { return acc + a * b; }
inline vec load_units(const float* row, int64_t unit, int64_t dim) {
  return load_some(row + unit, dim - unit);
}

// ---- Keys: packed[unit][64 keys] ----

// x[i][j] becomes x[j][i].
inline void transpose(vec (&x)[kLanes]) {
#if defined(__AVX512F__)
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32((__m512i)x[i], (__m512i)x[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32((__m512i)x[i], (__m512i)x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + 2 + j]);
      b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + 2 + j]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; ++j) {
      a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + 4 + j], 0x88);
      a[i + 4 + j] = _mm512_shuffle_i32x4(b[i + j], b[i + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; ++j) {
    x[j] = (vec)_mm512_shuffle_i32x4(a[j], a[8 + j], 0x88);
    x[8 + j] = (vec)_mm512_shuffle_i32x4(a[j], a[8 + j], 0xdd);
  }
#else
  vec4 quads[kLanes][kLanes / 4];
  std::memcpy(quads, x, sizeof quads);
  for (int64_t i = 0; i < kLanes; i += 4)
    for (int64_t j = 0; j < kLanes / 4; ++j) {
      vec4 a = quads[i][j], b = quads[i + 1][j], c = quads[i + 2][j], d = quads[i + 3][j];
#if defined(__SSE__)
      _MM_TRANSPOSE4_PS(a, b, c, d);
      const vec4 columns[4] = {a, b, c, d};
#else
      const vec4 columns[4] = {{a[0], b[0], c[0], d[0]}, {a[1], b[1], c[1], d[1]},
                               {a[2], b[2], c[2], d[2]}, {a[3], b[3], c[3], d[3]}};
#endif
      for (int64_t t = 0; t < 4; ++t)
        std::memcpy(reinterpret_cast<float*>(&x[4 * j + t]) + i, &columns[t], sizeof(vec4));
    }
#endif
}

template <typename T>
inline void pack_keys(const T* k, const TileKeys& keys, int64_t dim, float* packed) {
  const int64_t units = units_of(k, dim);
  for (int64_t group = keys.first / kLanes; group < keys.groups(); ++group)
    for (int64_t unit = 0; unit < units; unit += kLanes) {
      vec rows[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t key = group * kLanes + i;
        const bool seen = key >= keys.first && key < keys.end;
        rows[i] = seen ? load_units(k + keys.offset[key], unit, dim) : vec{};
      }
      transpose(rows);
      for (int64_t i = 0; i < std::min(kLanes, units - unit); ++i)
        store(packed + (unit + i) * kTileKeys + group * kLanes, rows[i]);
    }
}

// ---- Scores: R query rows x C groups of keys ----

template <typename T, int R, int C>
inline void score_block(const float* q, int64_t q_stride, const float* packed, int64_t units,
                        float* scores) {
  vec acc[R][C] = {};
  for (int64_t unit = 0; unit < units; ++unit) {
    vec keys[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) keys[c] = load(packed + unit * kTileKeys + c * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const vec query = splat(q[r * q_stride + unit]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
        acc[r][c] = multiply_add(static_cast<const T*>(nullptr), acc[r][c], keys[c], query);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) store(scores + r * kTileKeys + c * kLanes, acc[r][c]);
}

template <typename T, int R>
inline void score_rows(const float* q, int64_t q_stride, const float* packed, int64_t units,
                       int64_t groups, float* scores) {
  for (int64_t g = 0; g < groups; g += kBlockGroups) {
    const float* keys = packed + g * kLanes;
    float* out = scores + g * kLanes;
    switch (std::min(kBlockGroups, groups - g)) {
      case 1: score_block<T, R, 1>(q, q_stride, keys, units, out); break;
      case 2: score_block<T, R, 2>(q, q_stride, keys, units, out); break;
      case 3: score_block<T, R, 3>(q, q_stride, keys, units, out); break;
      default: score_block<T, R, 4>(q, q_stride, keys, units, out);
    }
  }
}

// ---- Online softmax of one row ----

struct RowState {
  float peak, correction;  // largest score so far; what the last step multiplies older sums by
  alignas(64) float total[kLanes];
};

inline vec keep_within(vec x, int64_t group, int64_t from, int64_t to, float otherwise) {
  vec key;
  for (int64_t lane = 0; lane < kLanes; ++lane) key[lane] = float(group * kLanes + lane);
  x = key < splat(float(from)) ? splat(otherwise) : x;
  return key < splat(float(to)) ? x : splat(otherwise);
}

// Scores of the tile's keys become unnormalised probabilities; keys outside from..to become 0.
inline void softmax_step(float* scores, int64_t groups, int64_t from, int64_t to, float scale,
                         RowState& row) {
  const bool whole = from <= 0 && to >= groups * kLanes;
  vec s[kTileKeys / kLanes];
  vec top = splat(row.peak);
  for (int64_t c = 0; c < groups; ++c) {
    s[c] = load(scores + c * kLanes) * scale;
    if (!whole) s[c] = keep_within(s[c], c, from, to, kLowest);
    top = max(top, s[c]);
  }
  const float peak = max(top);
  row.correction = peak == row.peak ? 1.0f : exp(splat(row.peak - peak))[0];
  row.peak = peak;
  for (int64_t c = 0; c < groups; ++c) {
    s[c] = exp(s[c] - peak);
    if (!whole) s[c] = keep_within(s[c], c, from, to, 0.0f);
    store(scores + c * kLanes, s[c]);
  }
  vec total = load(row.total) * row.correction;
  for (int64_t c = 0; c < groups; ++c) total += load(scores + c * kLanes);
  store(row.total, total);
}

// ---- Values: a slab is two vectors, whose order only store_slab needs to know ----

template <bool whole, typename T>
inline void load_slab(const T* p, int64_t n, vec& a, vec& b) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 2) {  // even columns, odd columns
    const __m512i pairs = whole ? _mm512_loadu_si512(p)
                                : _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << n) - 1), p);
    a = (vec)_mm512_slli_epi32(pairs, 16);
    b = (vec)_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u)));
    return;
  }
#endif
  a = whole ? load(p) : load_some(p, n);
  b = whole ? load(p + kLanes) : n > kLanes ? load_some(p + kLanes, n - kLanes) : vec{};
}

template <typename T>
inline void store_slab(T* p, int64_t n, vec a, vec b) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == 2) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)a));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)b));
    const __m512i pairs = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    _mm512_mask_storeu_epi16(p, __mmask32((uint64_t(1) << n) - 1), pairs);
    return;
  }
#endif
  store_some(p, a, n);
  if (n > kLanes) store_some(p + kLanes, b, n - kLanes);
}

// R rows x C slabs, n columns (fewer than 32 C only where not `whole`).
template <bool whole, int R, int C, typename T>
inline void value_block(const float* probs, const RowState* rows, const T* v, const TileKeys& keys,
                        int64_t n, float* out, int64_t out_stride) {
  vec acc[R][2 * C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < 2 * C; ++c)
      acc[r][c] = load(out + r * out_stride + c * kLanes) * rows[r].correction;
  for (int64_t key = keys.first; key < keys.end; ++key) {
    vec values[2 * C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c)
      load_slab<whole>(v + keys.offset[key] + c * kSlab, n, values[2 * c], values[2 * c + 1]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const vec p = splat(probs[r * kTileKeys + key]);
#pragma GCC unroll 4
      for (int c = 0; c < 2 * C; ++c) acc[r][c] += p * values[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < 2 * C; ++c) store(out + r * out_stride + c * kLanes, acc[r][c]);
}

template <int R, typename T>
inline void value_rows(const float* probs, const RowState* rows, const T* v, const TileKeys& keys,
                       int64_t dim, float* out, int64_t out_stride) {
  int64_t at = 0;
  for (constexpr int64_t step = kBlockSlabs * kSlab; at + step <= dim; at += step)
    value_block<true, R, kBlockSlabs>(probs, rows, v + at, keys, step, out + at, out_stride);
  for (; at + kSlab <= dim; at += kSlab)
    value_block<true, R, 1>(probs, rows, v + at, keys, kSlab, out + at, out_stride);
  if (at < dim) value_block<false, R, 1>(probs, rows, v + at, keys, dim - at, out + at, out_stride);
}

}  // namespace selfguide
