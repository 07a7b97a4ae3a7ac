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
typedef uint16_t hvec __attribute__((vector_size(32)));  // 16 x uint16
constexpr int64_t kLanes = 16;

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

// Applies f to the pieces of a and b that fill one register: GCC turns comparisons of wider vectors
// into scalar code.
#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
typedef float piece __attribute__((vector_size(kRegisterBytes)));

template <typename F>
inline __attribute__((always_inline)) vec map(const vec& a, const vec& b, const F& f) {
  vec out;
  for (int64_t at = 0; at < int64_t(sizeof(vec)); at += kRegisterBytes) {
    piece x, y;
    std::memcpy(&x, reinterpret_cast<const char*>(&a) + at, kRegisterBytes);
    std::memcpy(&y, reinterpret_cast<const char*>(&b) + at, kRegisterBytes);
    x = f(x, y);
    std::memcpy(reinterpret_cast<char*>(&out) + at, &x, kRegisterBytes);
  }
  return out;
}

inline vec max(vec a, vec b) {
  return map(a, b, [](piece x, piece y) { return x > y ? x : y; });
}
inline vec min(vec a, vec b) {
  return map(a, b, [](piece x, piece y) { return x < y ? x : y; });
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
  const uvec bits = (uvec)map(v, v, [](piece x, piece) { return x == x ? x : piece{} + NAN; });
  const uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const hvec half = __builtin_convertvector(rounded, hvec);
  std::memcpy(p, &half, sizeof half);
#endif
}

// The first n (< 16) elements, zeros behind them.
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

// The first n elements, n up to 16.
template <typename T>
inline vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_partial(p, n);
}
template <typename T>
inline void store_some(T* p, vec v, int64_t n) {
  n >= kLanes ? store(p, v) : store_partial(p, v, n);
}

// Calls f(i, 16) for each whole vector of 0..n, then f(i, m) for the m < 16 elements left.
template <typename F>
inline __attribute__((always_inline)) void for_vectors(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, n - i);
}

typedef float vec4 __attribute__((vector_size(16)));

// A fixed tree, so that a sum never depends on how work was split.
inline float sum(vec v) {
  vec4 part[4];
  std::memcpy(part, &v, sizeof v);
  const vec4 four = (part[0] + part[2]) + (part[1] + part[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline float max(vec v) {
  vec4 part[4];
  std::memcpy(part, &v, sizeof v);
  const auto larger = [](vec4 a, vec4 b) { return a > b ? a : b; };
  const vec4 four = larger(larger(part[0], part[2]), larger(part[1], part[3]));
  const float low = four[0] > four[2] ? four[0] : four[2];
  const float high = four[1] > four[3] ? four[1] : four[3];
  return low > high ? low : high;
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

// e^x to about 1 ulp of fp32 (Cody-Waite reduction, degree-6 polynomial); 0 below -87.3.
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
  return map(x, y, [](piece a, piece b) { return a < piece{} - 87.33f ? piece{} : b; });
}

}  // namespace selfguide
