// Work split over OpenMP threads, torch's own pool where both use the same runtime.
#pragma once

#include <algorithm>
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace selfguide {

// Elementwise work (elements read) below which waking a thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

inline int64_t thread_count() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls body(begin, end) on each thread's contiguous share of 0..n, in units of `grain`.
template <typename Body>
void parallel_ranges(int64_t n, int64_t grain, const Body& body) {
  const int64_t units = (n + grain - 1) / grain;
#if defined(_OPENMP)
  if (units > 1 && omp_get_max_threads() > 1) {
#pragma omp parallel
    {
      const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t begin = units * me / threads * grain;
      const int64_t end = std::min(n, units * (me + 1) / threads * grain);
      if (begin < end) body(begin, end);
    }
    return;
  }
#endif
  if (n > 0) body(int64_t(0), n);
}

// Calls body(task) for each of n tasks of uneven size; the threads take the next one when free.
template <typename Body>
void parallel_tasks(int64_t n, const Body& body) {
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) if (n > 1)
#endif
  for (int64_t task = 0; task < n; ++task) body(task);
}

}  // namespace selfguide
