// Attention over a paged cache: prefill, chunked prefill and decode.
//
// A task is some KV heads of up to 24 query rows each: the query heads that share one x neighbouring
// tokens of one sequence or, at decode, of sequences whose first blocks are the same, which then are
// read once for all of them. Tiles of keys start at multiples of 64 positions whatever the batch
// looks like, so a row meets its keys in the same tiles and order however its sequence was chunked.
// Heads lie side by side in a block: a task takes several, so that memory can be read in its order.

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "attention_tile.h"
#include "bind.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

constexpr int64_t kTaskHeads = 8, kTaskBytes = 64 << 10;  // most KV heads, K and V in a tile

template <typename T>
struct Problem {
  const T* q;  // [tokens, heads, dim]
  int64_t q_row, q_head;
  T* out;  // [tokens, heads, dim] contiguous
  int64_t tokens, heads, heads_kv, dim;
  const T *k, *v;  // [blocks, block_size, heads_kv, dim], the same strides
  int64_t blocks, block_size, block_stride, token_stride, head_stride;
  const int32_t *cu_seqlens, *seq_lens, *table;
  int64_t sequences, table_stride, table_width;
  float scale;
  int64_t window;  // 0: none

  int64_t group() const { return heads / heads_kv; }
  int64_t queries(int64_t s) const { return cu_seqlens[s + 1] - cu_seqlens[s]; }
  int64_t rows(int64_t s) const { return queries(s) * group(); }
  const int32_t* blocks_of(int64_t s) const { return table + s * table_stride; }
  // Positions that every query of the sequence sees, but for the window.
  int64_t seen_by_all(int64_t s) const { return seq_lens[s] - queries(s) + 1; }
  int64_t window_start(int64_t position) const {
    return window ? std::max<int64_t>(0, position + 1 - window) : 0;
  }
};

// Rows begin..end of sequence `first`, or all rows of sequences first..last.
struct Task {
  int64_t first, last, begin, end;
  int64_t head, head_end;  // KV heads
  int64_t shared;  // leading positions, a multiple of 64, that lie in the same blocks for all
};

template <typename T>
void check(const Problem<T>& p) {
  const auto fail = [](const char* name, int64_t s, const char* what) {
    const std::string message =
        std::string(name) + ": sequence " + std::to_string(s) + ": " + what;
    throw nanobind::value_error(message.c_str());
  };
  if (p.cu_seqlens[0] != 0 || p.cu_seqlens[p.sequences] != p.tokens)
    throw nanobind::value_error("cu_seqlens_q: must run from 0 to the number of rows of q");
  for (int64_t s = 0; s < p.sequences; ++s) {
    const int64_t length = p.seq_lens[s], queries = p.queries(s);
    if (queries < 0) fail("cu_seqlens_q", s, "decreases");
    if (queries == 0) continue;
    if (length < queries) fail("seq_lens", s, "fewer tokens than queries");
    if (length > p.table_width * p.block_size) fail("block_table", s, "too few blocks");
    const int64_t start = p.window_start(length - queries);
    for (int64_t b = start / p.block_size; b * p.block_size < length; ++b)
      if (p.blocks_of(s)[b] < 0 || p.blocks_of(s)[b] >= p.blocks)
        fail("block_table", s, "no such block");
  }
}

// Leading positions, whole tiles of at most `limit`, that two sequences hold in the same blocks.
template <typename T>
int64_t shared_positions(const Problem<T>& p, int64_t a, int64_t b, int64_t limit) {
  int64_t same = 0;
  while (same * p.block_size < limit && p.blocks_of(a)[same] == p.blocks_of(b)[same]) ++same;
  return std::min(same * p.block_size, limit) / kTileKeys * kTileKeys;
}

// Adds the tasks of sequence s and of those behind it that join it; returns the next sequence.
template <typename T>
int64_t plan_from(const Problem<T>& p, int64_t s, int64_t max_rows, int64_t max_heads,
                  std::vector<Task>& tasks) {
  const auto add = [&](int64_t last, int64_t begin, int64_t end, int64_t shared) {
    for (int64_t h = 0; h < p.heads_kv; h += max_heads)
      tasks.push_back({s, last, begin, end, h, std::min(p.heads_kv, h + max_heads), shared});
  };
  const int64_t rows = p.rows(s);
  if (rows == 0) return s + 1;
  if (rows > max_rows / 2) {
    for (int64_t r = 0; r < rows; r += max_rows) add(s + 1, r, std::min(rows, r + max_rows), 0);
    return s + 1;
  }
  int64_t end = s + 1, total = rows, shared = p.seen_by_all(s);
  for (; end < p.sequences && p.rows(end) > 0 && total + p.rows(end) <= max_rows; ++end) {
    const int64_t both = shared_positions(p, s, end, std::min(shared, p.seen_by_all(end)));
    if (both == 0 || both < shared / 2) break;
    shared = both;
    total += p.rows(end);
  }
  add(end, 0, rows, end == s + 1 ? 0 : shared);
  return end;
}

template <typename T>
std::vector<Task> plan(const Problem<T>& p) {
  const int64_t wanted = 4 * thread_count(), rows = p.tokens * p.heads;
  int64_t max_rows = kTileRows;
  while (max_rows > 6 && rows / max_rows < wanted) max_rows /= 2;
  const int64_t tile_bytes = 2 * kTileKeys * p.dim * int64_t(sizeof(T));
  int64_t max_heads = std::clamp<int64_t>(kTaskBytes / tile_bytes, 1, kTaskHeads);
  if (rows / max_rows < wanted * max_heads) max_heads = 1;
  std::vector<Task> tasks;
  for (int64_t s = 0; s < p.sequences;) s = plan_from(p, s, max_rows, max_heads, tasks);
  return tasks;
}

// Memory of one thread, kept between calls.
struct alignas(64) Line {
  float numbers[16];
};

struct Scratch {
  std::vector<Line> memory;
  float *queries, *packed, *probs, *out;
  RowState rows[kTaskHeads * kTileRows];

  void prepare(int64_t rows, int64_t units, int64_t columns) {
    const int64_t sizes[] = {rows * units, units * kTileKeys, kBlockRows * kTileKeys,
                             rows * columns};
    float** parts[] = {&queries, &packed, &probs, &out};
    const int64_t lines = (sizes[0] + sizes[1] + sizes[2] + sizes[3]) / 16;
    if (int64_t(memory.size()) < lines) memory.resize(lines);
    float* at = memory.data()->numbers;
    for (int i = 0; i < 4; ++i) *parts[i] = at, at += sizes[i];
  }
};

// A query row: its token, its place among the query heads of a KV head, the positions it sees.
struct Row {
  int64_t token, head, from, to;
};

template <typename T>
class Worker {
 public:
  Worker(const Problem<T>& problem, const Task& task, Scratch& scratch)
      : p_(problem), task_(task), s_(scratch) {
    units_ = units_of(p_.q, p_.dim);
    q_stride_ = (units_ + kLanes - 1) / kLanes * kLanes;
    columns_ = (p_.dim + kSlab - 1) / kSlab * kSlab;
    s_.prepare((task.head_end - task.head) * kTileRows, q_stride_, columns_);
  }

  void run() {
    const bool single = task_.last == task_.first + 1;
    for (int64_t s = task_.first; s < task_.last; ++s)
      for (int64_t r = task_.begin; r < (single ? task_.end : p_.rows(s)); ++r) add_row(s, r);
    for (int64_t h = task_.head; h < task_.head_end; ++h)
      for (int64_t r = 0; r < count_; ++r) start(h, r);
    if (task_.shared > 0) attend(task_.first, 0, count_, 0, task_.shared);
    for (int64_t s = task_.first, at = 0; s < task_.last; ++s) {
      const int64_t end = single ? count_ : at + p_.rows(s);
      attend(s, at, end, task_.shared, rows_[end - 1].to);
      at = end;
    }
    for (int64_t h = task_.head; h < task_.head_end; ++h)
      for (int64_t r = 0; r < count_; ++r) finish(h, r);
  }

 private:
  // Row r of sequence s: query r / group of query head r % group.
  void add_row(int64_t s, int64_t r) {
    const int64_t query = r / p_.group(), position = p_.seq_lens[s] - p_.queries(s) + query;
    rows_[count_++] = {p_.cu_seqlens[s] + query, r % p_.group(), p_.window_start(position),
                       position + 1};
  }

  // Where the state of row r of KV head h is kept.
  int64_t place(int64_t h, int64_t r) const { return (h - task_.head) * kTileRows + r; }

  void start(int64_t h, int64_t r) {
    const int64_t at = place(h, r), head = h * p_.group() + rows_[r].head;
    const T* q = p_.q + rows_[r].token * p_.q_row + head * p_.q_head;
    for (int64_t u = 0; u < units_; u += kLanes)
      store(s_.queries + at * q_stride_ + u, load_units(q, u, p_.dim));
    std::memset(s_.out + at * columns_, 0, columns_ * sizeof(float));
    s_.rows[at] = {kLowest, 1.0f, {}};
  }

  void finish(int64_t h, int64_t r) {
    const int64_t at = place(h, r), head = h * p_.group() + rows_[r].head;
    const float scale = 1.0f / sum(load(s_.rows[at].total));
    const float* from = s_.out + at * columns_;
    T* to = p_.out + (rows_[r].token * p_.heads + head) * p_.dim;
    for (int64_t d = 0; d < p_.dim; d += kSlab)
      store_slab(to + d, std::min(kSlab, p_.dim - d), load(from + d) * scale,
                 load(from + d + kLanes) * scale);
  }

  // Rows begin..end against positions from..to of sequence s; `from` is a multiple of 64.
  void attend(int64_t s, int64_t begin, int64_t end, int64_t from, int64_t to) {
    int64_t first = rows_[begin].from;
    for (int64_t r = begin; r < end; ++r) first = std::min(first, rows_[r].from);
    from = std::max(from, first / kTileKeys * kTileKeys);
    for (; from < to; from += kTileKeys) {
      const TileKeys keys = locate(s, from, first, to);
      if (task_.begin == 0) touch(p_.k, keys), touch(p_.v, keys);
      for (int64_t h = task_.head; h < task_.head_end; ++h) {
        pack_keys(p_.k + h * p_.head_stride, keys, p_.dim, s_.packed);
        for (int64_t r = begin; r < end; r += kBlockRows)
          tile(h, r, std::min(kBlockRows, end - r), from, keys);
      }
    }
  }

  // The keys of the tile at `start` that lie in first..to.
  TileKeys locate(int64_t s, int64_t start, int64_t first, int64_t to) const {
    TileKeys keys;
    keys.first = std::max<int64_t>(0, first - start);
    keys.end = std::min(kTileKeys, to - start);
    const int32_t* block = p_.blocks_of(s) + (start + keys.first) / p_.block_size;
    int64_t slot = (start + keys.first) % p_.block_size;
    for (int64_t i = keys.first; i < keys.end; ++i) {
      keys.offset[i] = *block * p_.block_stride + slot * p_.token_stride;
      if (++slot == p_.block_size) slot = 0, ++block;
    }
    return keys;
  }

  // Reads a tile of all heads in the order of its addresses, which the processor's own prefetcher
  // runs ahead of: twice as fast from memory as head by head, where prefetch instructions gain
  // nothing (measured on Zen 4).
  void touch(const T* x, const TileKeys& keys) const {
    const int64_t begin = task_.head * p_.head_stride;
    const int64_t end = (task_.head_end - 1) * p_.head_stride + p_.dim;
    for (int64_t i = keys.first; i < keys.end; ++i)
      for (int64_t d = begin; d < end; d += kLine)
        (void)*reinterpret_cast<const volatile char*>(x + keys.offset[i] + d);
  }

  void tile(int64_t h, int64_t r, int64_t rows, int64_t start, const TileKeys& keys) {
    switch (rows) {
      case 1: return tile<1>(h, r, start, keys);
      case 2: return tile<2>(h, r, start, keys);
      case 3: return tile<3>(h, r, start, keys);
      default: return tile<4>(h, r, start, keys);
    }
  }

  template <int R>
  void tile(int64_t h, int64_t r, int64_t start, const TileKeys& keys) {
    const int64_t at = place(h, r);
    RowState* state = s_.rows + at;
    score_rows<T, R>(s_.queries + at * q_stride_, q_stride_, s_.packed, units_, keys.groups(),
                     s_.probs);
    for (int i = 0; i < R; ++i)
      softmax_step(s_.probs + i * kTileKeys, keys.groups(), rows_[r + i].from - start,
                   rows_[r + i].to - start, p_.scale, state[i]);
    value_rows<R>(s_.probs, state, p_.v + h * p_.head_stride, keys, p_.dim,
                  s_.out + at * columns_, columns_);
  }

  static constexpr int64_t kLine = 64 / sizeof(T);  // elements in a cache line

  const Problem<T>& p_;
  const Task& task_;
  Scratch& s_;
  int64_t units_, q_stride_, columns_, count_ = 0;
  Row rows_[kTileRows];
};

// Address, row stride, head stride of [tokens, heads, dim].
using View = std::tuple<uintptr_t, int64_t, int64_t>;
// Addresses of k and v; number and size of the blocks; strides of a block, a token, a head.
using Cache = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

// `shape`: tokens, heads, dim, heads_kv. `index`: addresses of cu_seqlens, seq_lens, block table.
// `table`: sequences, table width, row stride.
template <typename T>
void paged_attention(View q, uintptr_t out, std::array<int64_t, 4> shape, Cache cache,
                     std::array<uintptr_t, 3> index, std::array<int64_t, 3> table, float scale,
                     int64_t window) {
  Problem<T> p;
  uintptr_t k, v, address;
  std::tie(address, p.q_row, p.q_head) = q;
  std::tie(k, v, p.blocks, p.block_size, p.block_stride, p.token_stride, p.head_stride) = cache;
  p.q = pointer<const T>(address), p.k = pointer<const T>(k), p.v = pointer<const T>(v);
  p.out = pointer<T>(out);
  p.tokens = shape[0], p.heads = shape[1], p.dim = shape[2], p.heads_kv = shape[3];
  p.cu_seqlens = pointer<const int32_t>(index[0]), p.seq_lens = pointer<const int32_t>(index[1]);
  p.table = pointer<const int32_t>(index[2]);
  p.sequences = table[0], p.table_width = table[1], p.table_stride = table[2];
  p.scale = scale, p.window = window;
  check(p);
  const std::vector<Task> tasks = plan(p);
  parallel_tasks(int64_t(tasks.size()), [&](int64_t i) {
    static thread_local Scratch scratch;
    Worker<T>(p, tasks[i], scratch).run();
  });
}

// `shape`: tokens, heads, dim of k and v.
template <typename T>
void store_kv(View k, View v, std::array<int64_t, 3> shape, Cache cache, uintptr_t slots) {
  const auto [k_from, k_row, k_head] = k;
  const auto [v_from, v_row, v_head] = v;
  const auto [k_to, v_to, blocks, block_size, block_stride, token_stride, head_stride] = cache;
  const auto [tokens, heads, dim] = shape;
  const int32_t* slot = pointer<const int32_t>(slots);
  for (int64_t t = 0; t < tokens; ++t) {
    if (slot[t] < 0 || slot[t] >= blocks * block_size)
      throw nanobind::value_error("slots: a slot lies outside the cache");
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t to = slot[t] / block_size * block_stride + slot[t] % block_size * token_stride +
                         h * head_stride;
      std::memcpy(pointer<T>(k_to) + to, pointer<const T>(k_from) + t * k_row + h * k_head,
                  dim * sizeof(T));
      std::memcpy(pointer<T>(v_to) + to, pointer<const T>(v_from) + t * v_row + h * v_head,
                  dim * sizeof(T));
    }
}

}  // namespace

void bind_paged_attention(nanobind::module_& m) {
  m.def("paged_attention_f32", &paged_attention<float>);
  m.def("paged_attention_bf16", &paged_attention<bf16>);
  m.def("store_kv_f32", &store_kv<float>);
  m.def("store_kv_bf16", &store_kv<bf16>);
}

}  // namespace selfguide
