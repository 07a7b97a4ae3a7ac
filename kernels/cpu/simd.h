// Sixteen fp32 lanes on any machine: GCC and Clang lower the vector type to what the target has.
// bf16 numbers travel as their 16 bits and are widened to fp32 for arithmetic.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace selfguide {

struct bf16 {
  uint16_t bits;
};

typedef float vec __attribute__((vector_size(64)));      // 16 x fp32
typedef int32_t ivec __attribute__((vector_size(64)));   // 16 x int32
typedef uint32_t uvec __attribute__((vector_size(64)));  // 16 x uint32
constexpr int64_t kLanes = 16;

inline vec splat(float x) { return vec{} + x; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

// Rounds to nearest even, as torch does.
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return bf16{0x7fc0};
  return bf16{uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vec load(const bf16* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
  vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

inline void store(bf16* p, vec v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, sizeof half);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<bf16>(v[i]);
#endif
}

// The first n (< 16) elements, zeros behind them.
template <typename T>
inline vec load_partial(const T* p, int64_t n) {
  vec v{};
  for (int64_t i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
template <typename T>
inline void store_partial(T* p, vec v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}

// A fixed tree, so that a sum never depends on how work was split.
inline float sum(vec v) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}

inline float max(vec v) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  return v[0];
}

inline vec max(vec a, vec b) { return a > b ? a : b; }
inline vec min(vec a, vec b) { return a < b ? a : b; }

// e^x to about 1 ulp of fp32 (Cody-Waite reduction, degree-6 polynomial); 0 below -87.3.
inline vec exp(vec x) {
  const vec clipped = min(max(x, splat(-87.33f)), splat(88.72f));
  const vec shifted = clipped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23 rounds
  const vec n = shifted - 12582912.0f;
  vec r = clipped - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723212e-6f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const ivec scale = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec power;
  std::memcpy(&power, &scale, sizeof power);
  const vec y = p * power;
  return x < splat(-87.33f) ? vec{} : y;
}

}  // namespace selfguide
