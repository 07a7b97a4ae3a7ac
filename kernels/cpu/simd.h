// Vectors of fp32 as wide as the machine's registers (16, 8 or 4 lanes), from the compiler's vector
// extensions: wider ones would travel through memory. bf16 numbers are widened for arithmetic.
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

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int64_t kLanes = kRegisterBytes / 4;
typedef float vec __attribute__((vector_size(kRegisterBytes)));
typedef int32_t ivec __attribute__((vector_size(kRegisterBytes)));
typedef uint32_t uvec __attribute__((vector_size(kRegisterBytes)));
typedef uint16_t hvec __attribute__((vector_size(kRegisterBytes / 2)));

inline vec splat(float x) { return x - vec{}; }  // "x + 0" would be an addition, for -0's sake

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

inline vec max(vec a, vec b) { return a > b ? a : b; }
inline vec min(vec a, vec b) { return a < b ? a : b; }

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
  hvec half;
  std::memcpy(&half, p, sizeof half);
  return (vec)(__builtin_convertvector(half, uvec) << 16);
#endif
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

inline void store(bf16* p, vec v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, sizeof half);
#else
  const uvec bits = (uvec)(v == v ? v : splat(NAN));
  const uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const hvec half = __builtin_convertvector(rounded, hvec);
  std::memcpy(p, &half, sizeof half);
#endif
}

// The first n (< kLanes) elements, zeros behind them.
template <typename T>
inline vec load_partial(const T* p, int64_t n) {
  T wide[kLanes] = {};
  std::memcpy(wide, p, n * sizeof(T));
  return load(wide);
}
template <typename T>
inline void store_partial(T* p, vec v, int64_t n) {
  T wide[kLanes];
  store(wide, v);
  std::memcpy(p, wide, n * sizeof(T));
}
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
inline vec load_partial(const float* p, int64_t n) {
  return (vec)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
inline vec load_partial(const bf16* p, int64_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p);
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline void store_partial(float* p, vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
#endif

// The first n elements; all kLanes where n is larger.
template <typename T>
inline vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_partial(p, n);
}
template <typename T>
inline void store_some(T* p, vec v, int64_t n) {
  n >= kLanes ? store(p, v) : store_partial(p, v, n);
}

// Calls f(i, kLanes) for each whole vector of 0..n, then f(i, m) for the m elements left.
template <typename F>
inline __attribute__((always_inline)) void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, n - i);
}

typedef float vec4 __attribute__((vector_size(16)));

// A fixed tree, so that a sum never depends on how work was split.
template <typename F>
inline float fold(vec v, const F& f) {
  vec4 part[kLanes / 4];
  std::memcpy(part, &v, sizeof v);
  for (int64_t half = kLanes / 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) part[i] = f(part[i], part[i + half]);
  const vec4 two = f(part[0], vec4{part[0][2], part[0][3], 0, 0});
  return f(two, vec4{two[1], 0, 0, 0})[0];
}

inline float sum(vec v) {
  return fold(v, [](vec4 a, vec4 b) { return a + b; });
}
inline float max(vec v) {
  return fold(v, [](vec4 a, vec4 b) { return a > b ? a : b; });
}

// The sum of the vectors f(i, n) that for_vectors would visit, in an order that only n decides.
template <typename F>
inline __attribute__((always_inline)) float sum_over(int64_t n, const F& f) {
  vec total[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) total[j] += f(i + j * kLanes, kLanes);
  for (; i + kLanes <= n; i += kLanes) total[0] += f(i, kLanes);
  if (i < n) total[1] += f(i, n - i);
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

// e^x to about 1 ulp of fp32 (Cody-Waite reduction, degree-6 polynomial); 0 below -87.3, NaN of NaN.
inline vec exp(vec x) {
  const vec clipped = min(max(x, splat(-87.33f)), splat(88.72f));
#if defined(__AVX512F__)
  const vec n = (vec)_mm512_roundscale_ps((__m512)(clipped * 1.44269504088896341f), 0);
#else
  const vec n = clipped * 1.44269504088896341f + 12582912.0f - 12582912.0f;  // 1.5 * 2^23 rounds
#endif
  vec r = clipped - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723212e-6f;
  vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#if defined(__AVX512F__)
  const vec y = (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const vec y = p * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
#endif
  const vec low = x < splat(-87.33f) ? vec{} : y;
  return x == x ? low : x;
}

}  // namespace selfguide
