// Small fp32 matrix products out of cache, for tiles that already lie in scratch memory.
// The vectors here are as wide as the machine's registers, so that a tile of C stays in them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace selfguide {

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16, kRegisterCols = 4;
#elif defined(__AVX__)
constexpr int kRegisterLanes = 8, kRegisterCols = 2;
#elif defined(__aarch64__)
constexpr int kRegisterLanes = 4, kRegisterCols = 4;
#else
constexpr int kRegisterLanes = 4, kRegisterCols = 2;
#endif
constexpr int kRegisterRows = 6;

// Element (i, k) of the left factor is data[i * row + k * col]: either one is 1.
struct Left {
  const float* data;
  int64_t row, col;
};

// C [R, C registers] (+)= A [R, k] B [k, C registers].
template <int R, int C>
void gemm_tile(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t k, bool add) {
  typedef float reg __attribute__((vector_size(kRegisterLanes * 4)));
  const auto load = [](const float* p) {
    reg v;
    std::memcpy(&v, p, sizeof v);
    return v;
  };
  reg acc[R][C] = {};
  if (add)
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < C; ++j) acc[i][j] = load(c + i * ldc + j * kRegisterLanes);
  for (int64_t step = 0; step < k; ++step) {
    reg row[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) row[j] = load(b + step * ldb + j * kRegisterLanes);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const reg x = reg{} + a.data[i * a.row + step * a.col];
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) acc[i][j] += x * row[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j)
      std::memcpy(c + i * ldc + j * kRegisterLanes, &acc[i][j], sizeof(reg));
}

template <int C>
void gemm_columns(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t k,
                  bool add) {
  using Tile = void (*)(Left, const float*, int64_t, float*, int64_t, int64_t, bool);
  static constexpr Tile tiles[kRegisterRows] = {gemm_tile<1, C>, gemm_tile<2, C>, gemm_tile<3, C>,
                                                gemm_tile<4, C>, gemm_tile<5, C>, gemm_tile<6, C>};
  for (int64_t i = 0; i < m; i += kRegisterRows)
    tiles[std::min<int64_t>(kRegisterRows, m - i) - 1](
        Left{a.data + i * a.row, a.row, a.col}, b, ldb, c + i * ldc, ldc, k, add);
}

// C [m, n] (+)= A [m, k] B [k, n]; n is a multiple of 16.
inline void gemm(Left a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n,
                 int64_t k, bool add) {
  constexpr int64_t width = kRegisterLanes * kRegisterCols;
  int64_t j = 0;
  for (; j + width <= n; j += width)
    gemm_columns<kRegisterCols>(a, b + j, ldb, c + j, ldc, m, k, add);
  for (; j < n; j += kRegisterLanes) gemm_columns<1>(a, b + j, ldb, c + j, ldc, m, k, add);
}

}  // namespace selfguide
