// Rotary position embedding, queries and keys in one launch. In place where `to` is `from`.

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "bind.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

// [rows, heads, dim], elements of a head contiguous.
template <typename T>
struct Heads {
  const T* from;
  T* to;
  int64_t heads, from_row, from_head, to_row, to_head;
};

struct Table {
  const float* cos;
  const float* sin;
  int64_t length, half;
  float sign;  // -1 rotates backwards: the gradient
};

template <typename T>
inline void rotate_row(const Heads<T>& x, int64_t row, const Table& table, int64_t position) {
  const float* cos = table.cos + position * table.half;
  const float* sin = table.sin + position * table.half;
  for (int64_t h = 0; h < x.heads; ++h) {
    const T* from = x.from + row * x.from_row + h * x.from_head;
    T* to = x.to + row * x.to_row + h * x.to_head;
    for_vectors(table.half, [&](int64_t i, int64_t n) {
      const vec c = load_some(cos + i, n), s = load_some(sin + i, n) * table.sign;
      const vec low = load_some(from + i, n), high = load_some(from + table.half + i, n);
      store_some(to + i, low * c - high * s, n);
      store_some(to + table.half + i, high * c + low * s, n);
    });
  }
}

template <typename T, typename Index>
void rope_rows(const Heads<T>& q, const Heads<T>& k, const Table& table, const Index* positions,
               int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    if (positions[r] < 0 || positions[r] >= table.length)
      throw nanobind::value_error("positions: a position lies outside the cos/sin table");
  const int64_t row = 2 * table.half * (q.heads + k.heads);
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, row));
  parallel_ranges(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      rotate_row(q, r, table, positions[r]);
      rotate_row(k, r, table, positions[r]);
    }
  });
}

// Address, address of the result, heads; strides of a row and a head, and those of the result.
using Side = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

template <typename T>
Heads<T> heads_of(const Side& side) {
  const auto [from, to, heads, from_row, from_head, to_row, to_head] = side;
  return {pointer<const T>(from), pointer<T>(to), heads, from_row, from_head, to_row, to_head};
}

// `table`: addresses of cos and sin [length, half] contiguous, length, half, sign.
template <typename T>
void rope(const Side& q, const Side& k,
          std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, float> table, uintptr_t positions,
          bool positions_are_64_bit, int64_t rows) {
  const auto [cos, sin, length, half, sign] = table;
  const Table angles{pointer<const float>(cos), pointer<const float>(sin), length, half, sign};
  const Heads<T> queries = heads_of<T>(q), keys = heads_of<T>(k);
  if (positions_are_64_bit)
    rope_rows(queries, keys, angles, pointer<const int64_t>(positions), rows);
  else
    rope_rows(queries, keys, angles, pointer<const int32_t>(positions), rows);
}

}  // namespace

void bind_rope(nanobind::module_& m) {
  m.def("rope_f32", &rope<float>);
  m.def("rope_bf16", &rope<bf16>);
}

}  // namespace selfguide
