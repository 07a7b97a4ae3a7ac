// The same product on AMX tiles (Intel from Sapphire Rapids on): y = x w^T + b in bf16, for K that
// are multiples of 32. A tile of 16 rows of W meets one of 16 rows of x, which are packed once for
// all of W; W is read where it lies. An output adds up 32 products at a time in the order of K,
// whatever stands beside it, so a row depends on itself alone here too.
#pragma once
#if defined(__AMX_BF16__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace amx {

constexpr int64_t kSide = 16;                // rows of W, or of x, in a tile
constexpr int64_t kStep = 32;                // elements of K in a tile
constexpr int64_t kPair = 2 * kSide;         // columns of y that a square computes
constexpr int64_t kColumns = 2 * kPair;      // of y for a part of x: fewer slow down vocabularies
constexpr int64_t kPackedBytes = 768 << 10;  // of x at a time: with a block of W it stays in L2

// Eight tiles of 16 rows of 64 bytes: 0 to 3 hold sums, 4 and 5 W, 6 and 7 x.
struct alignas(64) Shape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
inline const Shape kShape{};

class Tiles {
 public:
  Tiles() {
    _tile_loadconfig(&kShape);
    asm volatile("" ::: "memory");  // tiles are loaded behind the compiler's back: write x first
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

using Sums = float[4][kSide * kSide];

inline void clear() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

inline void save(Sums& sums) {
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
}

// 16 x 16 numbers of 32 bits.
inline void transpose(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// Up to 16 rows of x as K/32 tiles, in which pairs of K stand below each other; others are zero.
inline void pack(const bf16* x, int64_t rows, int64_t stride, int64_t k, __m512i* out) {
  for (int64_t at = 0; at < k; at += kStep, out += kSide) {
    for (int64_t i = 0; i < kSide; ++i)
      out[i] = i < rows ? _mm512_loadu_si512(x + i * stride + at) : _mm512_setzero_si512();
    transpose(out);
  }
}

// The sums of 16 rows of W with 16 rows of x: sums[n][m]. One tile at a time is enough where the
// memory is the limit, and as many rows as a CPU's prefetcher follows.
inline void single(const bf16* w, int64_t stride, const __m512i* x, int64_t steps, float* sums) {
  _tile_zero(0);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, x + step * kSide, 64);
    _tile_loadd(4, w + step * kStep, stride);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, sums, 64);
}

// The sums of two tiles' rows of W with 32 rows of x, packed in two parts:
// sums[2 * x part + w tile][n][m].
inline void square(const bf16* w, const bf16* next, int64_t stride, const __m512i* x,
                   const __m512i* more, int64_t steps, Sums& sums) {
  clear();
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, x + step * kSide, 64);
    _tile_loadd(4, w + step * kStep, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, next + step * kStep, stride);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(7, more + step * kSide, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  save(sums);
}

template <typename Out>
struct Target {
  Out* y;
  const bf16* bias;  // null: none
  int64_t rows, n, stride;

  // Puts the sums of 16 columns from n0 on into up to 16 rows from m0 on.
  void put(const float* sums, int64_t m0, int64_t n0) const {
    const int64_t columns = std::min(kSide, n - n0), count = std::min(kSide, rows - m0);
    if (columns <= 0 || count <= 0) return;
    const __mmask16 mask = __mmask16((1u << columns) - 1);
    __m512i r[kSide];
    for (int64_t i = 0; i < kSide; ++i) r[i] = _mm512_load_si512(sums + i * kSide);
    transpose(r);
    vec shift{};
    if (bias)
      for (int64_t j = 0; j < columns; ++j) shift[j] = to_float(bias[n0 + j]);
    for (int64_t i = 0; i < count; ++i)
      write(y + (m0 + i) * stride + n0, _mm512_add_ps(_mm512_castsi512_ps(r[i]), (__m512)shift),
            mask);
  }

  static void write(float* at, __m512 v, __mmask16 mask) { _mm512_mask_storeu_ps(at, mask, v); }
  static void write(bf16* at, __m512 v, __mmask16 mask) {
    _mm256_mask_storeu_epi16(at, mask, (__m256i)_mm512_cvtneps_pbh(v));
  }
};

struct alignas(64) Line {
  uint8_t bytes[64];
};

// Memory that a thread keeps.
inline __m512i* scratch(std::vector<Line>& kept, int64_t lines) {
  if (int64_t(kept.size()) < lines) kept.resize(lines);
  return reinterpret_cast<__m512i*>(kept.data());
}

template <typename Out>
void linear(const bf16* x, const bf16* w, const bf16* bias, Out* y, int64_t rows, int64_t n,
            int64_t k, int64_t x_stride, int64_t y_stride) {
  thread_local std::vector<Line> packed, padded;
  const int64_t steps = k / kStep, lines = steps * kSide;  // of 64 bytes, in a packed part of x
  const int64_t parts = (rows + kSide - 1) / kSide;
  const int64_t chunk =
      std::min(parts, std::max<int64_t>(2, kPackedBytes / (lines * 64) / 2 * 2));
  const Target<Out> target{y, bias, rows, n, y_stride};
  __m512i* const xs = scratch(packed, chunk * lines);
  // The last rows of W, if they do not fill a tile, are put into one that zeros fill.
  const int64_t whole = n / kSide * kSide, left = n - whole;
  __m512i* const tail = scratch(padded, lines);  // where W ends within a pair: sums not stored
  if (left) {
    bf16* const rest = reinterpret_cast<bf16*>(tail);
    std::memcpy(rest, w + whole * k, left * k * sizeof(bf16));
    std::memset(static_cast<void*>(rest + left * k), 0, (kSide - left) * k * sizeof(bf16));
  }
  const auto row_of_w = [&](int64_t at) {
    return at < whole ? w + at * k : reinterpret_cast<const bf16*>(tail);
  };
  const int64_t w_stride = k * int64_t(sizeof(bf16));
  for (int64_t first = 0; first < parts; first += chunk) {
    const int64_t count = std::min(chunk, parts - first);
    parallel_ranges(count, 4, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t m = (first + part) * kSide;
        pack(x + m * x_stride, std::min(kSide, rows - m), x_stride, k, xs + part * lines);
      }
    });
    parallel_ranges(n, kPair, [&](int64_t begin, int64_t end) {
      const Tiles tiles;
      alignas(64) Sums sums;
      for (int64_t n0 = begin; n0 < end; n0 += kColumns) {
        const int64_t n1 = std::min(end, n0 + kColumns);
        int64_t part = 0;
        for (; part + 2 <= count; part += 2)
          for (int64_t at = n0; at < n1; at += kPair) {
            const __m512i* below = xs + part * lines;
            square(row_of_w(at), row_of_w(at + kSide), w_stride, below, below + lines, steps, sums);
            for (int64_t i = 0; i < 4; ++i)
              target.put(sums[i], (first + part + i / 2) * kSide, at + i % 2 * kSide);
          }
        for (int64_t at = n0; part < count && at < n1; at += kSide) {
          single(row_of_w(at), w_stride, xs + part * lines, steps, sums[0]);
          target.put(sums[0], (first + part) * kSide, at);
        }
      }
    });
  }
}

}  // namespace amx
}  // namespace selfguide

#endif
