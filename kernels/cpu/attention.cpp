// Packed causal attention with shared prefixes, forward and backward, in fp32 tiles.
//
// Keys and values are widened to fp32 once, in panels of 64 keys, transposed where a product wants
// lanes along the keys. Forward: one task per (24 queries, head); its scores against all visible
// keys fit in L2, so softmax is exact and needs no rescaling. Backward: one task per (prefix with
// all its users, head), so that dK and dV of a prefix are summed by one thread in a fixed order.

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "bind.h"
#include "gemm.h"
#include "parallel.h"
#include "simd.h"

namespace selfguide {
namespace {

constexpr int64_t kRows = 24, kPanel = 64;

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Memory aligned to cache lines, which grows when asked and is never copied.
class Buffer {
 public:
  float* reserve(int64_t floats) {
    if (floats > size_) {
      data_.reset(static_cast<float*>(::operator new(floats * sizeof(float), kAlign)));
      size_ = floats;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

// Address, token stride and head stride of [tokens, heads, dim] with contiguous rows.
using Address = std::tuple<uintptr_t, int64_t, int64_t>;

template <typename T>
struct View {
  T* data;
  int64_t token_stride, head_stride;

  explicit View(const Address& at)
      : data(pointer<T>(std::get<0>(at))), token_stride(std::get<1>(at)),
        head_stride(std::get<2>(at)) {}
  T* row(int64_t token, int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

// Addresses of cu_seqlens and prefix, count of segments, heads, KV heads, dim, scale, window.
using Shape = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, float, int64_t>;

struct Pack {
  const int32_t *cu_seqlens, *prefix;
  int64_t segments, heads, kv_heads, dim, width;  // width: dim rounded up to 16
  int64_t window;
  float scale;
  std::vector<int64_t> panel;  // [segments + 1]: first panel of each segment

  explicit Pack(const Shape& shape) {
    uintptr_t cu_seqlens_at, prefix_at;
    std::tie(cu_seqlens_at, prefix_at, segments, heads, kv_heads, dim, scale, window) = shape;
    cu_seqlens = pointer<const int32_t>(cu_seqlens_at);
    prefix = pointer<const int32_t>(prefix_at);
    width = round_up(dim, kLanes);
    panel.resize(segments + 1);
    for (int64_t s = 0; s < segments; ++s)
      panel[s + 1] = panel[s] + round_up(length(s), kPanel) / kPanel;
  }
  int64_t length(int64_t s) const { return cu_seqlens[s + 1] - cu_seqlens[s]; }
  int64_t prefix_length(int64_t s) const { return prefix[s] < 0 ? 0 : length(prefix[s]); }
  int64_t tokens() const { return cu_seqlens[segments]; }
};

// Up to kRows queries of one segment.
struct Tile {
  int64_t token, position, rows;
};

// One panel as a tile sees it: its first `keys` keys, the first at `position`.
struct Block {
  int64_t panel, token, position, keys;
  int64_t columns() const { return round_up(keys, kLanes); }
};

// The key columns of `block` that the query at `position` sees: begin to end - 1.
struct Visible {
  int64_t begin, end;
  Visible(const Pack& p, const Block& block, int64_t position)
      : begin(std::clamp<int64_t>(position - p.window + 1 - block.position, 0, block.keys)),
        end(std::clamp<int64_t>(position - block.position + 1, 0, block.keys)) {}
};

std::vector<Tile> tiles_of(const Pack& p, int64_t s) {
  std::vector<Tile> tiles;
  for (int64_t i = 0; i < p.length(s); i += kRows)
    tiles.push_back({p.cu_seqlens[s] + i, p.prefix_length(s) + i, std::min(kRows, p.length(s) - i)});
  return tiles;
}

// Appends the panels of segment `s`, whose first key is at `position`, that some query sees.
void append_blocks(const Pack& p, const Tile& tile, int64_t s, int64_t position,
                   std::vector<Block>& blocks) {
  const int64_t end = std::min(p.length(s), tile.position + tile.rows - position);
  const int64_t begin = std::max<int64_t>(0, tile.position - p.window + 1 - position);
  for (int64_t k = begin / kPanel * kPanel; k < end; k += kPanel)
    blocks.push_back({p.panel[s] + k / kPanel, p.cu_seqlens[s] + k, position + k,
                      std::min(kPanel, end - k)});
}

std::vector<Block> blocks_of(const Pack& p, const Tile& tile, int64_t s) {
  std::vector<Block> blocks;
  if (p.prefix[s] >= 0) append_blocks(p, tile, p.prefix[s], 0, blocks);
  append_blocks(p, tile, s, p.prefix_length(s), blocks);
  return blocks;
}

// One row as fp32 times `scale`, zeros behind it up to `width`.
template <typename T>
void widen(const T* x, float* out, int64_t dim, float scale) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(out + d, load(x + d) * scale);
  if (d < dim) store(out + d, load_partial(x + d, dim - d) * scale);
}

template <typename T>
void narrow(const float* x, T* out, int64_t dim, float scale) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(out + d, load(x + d) * scale);
  if (d < dim) store_partial(out + d, load(x + d) * scale, dim - d);
}

// Keys or values of all KV heads in fp32 panels: rows [64, width] and, transposed, [dim, 64].
class Panels {
 public:
  Panels(const Pack& p, bool rows, bool transposed)
      : head_panels_(p.panel[p.segments]), row_size_(kPanel * p.width),
        transposed_size_(kPanel * p.dim) {
    const int64_t count = head_panels_ * p.kv_heads;
    if (rows) rows_ = row_memory_.reserve(count * row_size_);
    if (transposed) transposed_ = transposed_memory_.reserve(count * transposed_size_);
  }
  float* rows(int64_t head, int64_t panel) const {
    return rows_ + (head * head_panels_ + panel) * row_size_;
  }
  const float* transposed(int64_t head, int64_t panel) const {
    return transposed_ + (head * head_panels_ + panel) * transposed_size_;
  }

  // Fills the panels of segment `s` and `head`.
  template <typename T>
  void fill(const Pack& p, View<const T> x, int64_t s, int64_t head) {
    thread_local Buffer scratch;
    float* spare = scratch.reserve(row_size_);
    for (int64_t k = 0; k < p.length(s); k += kPanel) {
      const int64_t panel = p.panel[s] + k / kPanel, keys = std::min(kPanel, p.length(s) - k);
      float* wide = rows_ ? rows(head, panel) : spare;
      for (int64_t j = 0; j < keys; ++j)
        widen(x.row(p.cu_seqlens[s] + k + j, head), wide + j * p.width, p.dim, 1.0f);
      if (transposed_) transpose(p, wide, keys, const_cast<float*>(transposed(head, panel)));
    }
  }

 private:
  static void transpose(const Pack& p, const float* wide, int64_t keys, float* out) {
    for (int64_t d = 0; d < p.dim; ++d) {
      for (int64_t j = 0; j < keys; ++j) out[d * kPanel + j] = wide[j * p.width + d];
      std::fill(out + d * kPanel + keys, out + (d + 1) * kPanel, 0.0f);
    }
  }

  int64_t head_panels_, row_size_, transposed_size_;
  Buffer row_memory_, transposed_memory_;
  float *rows_ = nullptr, *transposed_ = nullptr;
};

template <typename T>
void fill_panels(const Pack& p, View<const T> k, View<const T> v, Panels& keys, Panels& values) {
  parallel_tasks(p.segments * p.kv_heads, [&](int64_t task) {
    keys.fill(p, k, task / p.kv_heads, task % p.kv_heads);
    values.fill(p, v, task / p.kv_heads, task % p.kv_heads);
  });
}

// ---- forward

// Exponentials of a row of scores in place; returns (maximum, sum).
inline std::pair<float, float> exponentiate(float* row, int64_t columns) {
  vec top = load(row);
  for (int64_t j = kLanes; j < columns; j += kLanes) top = max(top, load(row + j));
  const float pivot = max(top);
  vec total{};
  for (int64_t j = 0; j < columns; j += kLanes) {
    const vec e = exp(load(row + j) - pivot);
    store(row + j, e);
    total += e;
  }
  return {pivot, sum(total)};
}

template <typename T>
struct Forward {
  const Pack& p;
  View<const T> q;
  const Panels &keys, &values;
  View<T> out;
  float* lse;  // [tokens, heads]

  void run(int64_t segment, const Tile& tile, int64_t head) const {
    thread_local Buffer score_memory, query_memory, out_memory;
    const std::vector<Block> blocks = blocks_of(p, tile, segment);
    int64_t columns = 0;
    for (const Block& block : blocks) columns += block.columns();
    float* scores = score_memory.reserve(kRows * columns);
    float* wide = query_memory.reserve(kRows * p.width);
    float* sums = out_memory.reserve(kRows * p.width);
    for (int64_t i = 0; i < tile.rows; ++i)
      widen(q.row(tile.token + i, head), wide + i * p.width, p.dim, p.scale);
    score(tile, blocks, head, wide, scores, columns);
    for (int64_t i = 0; i < tile.rows; ++i) {
      const auto [pivot, total] = exponentiate(scores + i * columns, columns);
      lse[(tile.token + i) * p.heads + head] = pivot + std::log(total);
      wide[i] = 1.0f / total;
    }
    gather(tile, blocks, head, scores, columns, sums);
    for (int64_t i = 0; i < tile.rows; ++i)
      narrow(sums + i * p.width, out.row(tile.token + i, head), p.dim, wide[i]);
  }

 private:
  int64_t kv_head(int64_t head) const { return head / (p.heads / p.kv_heads); }

  // scores [rows, columns]: dot products with the blocks' keys, -inf where hidden.
  void score(const Tile& tile, const std::vector<Block>& blocks, int64_t head, const float* wide,
             float* scores, int64_t columns) const {
    constexpr float hidden = -std::numeric_limits<float>::infinity();
    for (const Block& block : blocks) {
      gemm({wide, p.width, 1}, keys.transposed(kv_head(head), block.panel), kPanel, scores, columns,
           tile.rows, block.columns(), p.dim, false);
      for (int64_t i = 0; i < tile.rows; ++i) {
        const Visible seen(p, block, tile.position + i);
        float* row = scores + i * columns;
        std::fill(row, row + seen.begin, hidden);
        std::fill(row + seen.end, row + block.columns(), hidden);
      }
      scores += block.columns();
    }
  }

  // sums [rows, width] = probabilities x values
  void gather(const Tile& tile, const std::vector<Block>& blocks, int64_t head,
              const float* probabilities, int64_t columns, float* sums) const {
    bool add = false;
    for (const Block& block : blocks) {
      gemm({probabilities, columns, 1}, values.rows(kv_head(head), block.panel), p.width, sums,
           p.width, tile.rows, p.width, block.keys, add);
      probabilities += block.columns();
      add = true;
    }
  }
};

template <typename T>
void attention(const Shape& shape, const Address& q, const Address& k, const Address& v,
               const Address& out, uintptr_t lse) {
  const Pack p(shape);
  Panels keys(p, false, true), values(p, true, false);
  fill_panels(p, View<const T>(k), View<const T>(v), keys, values);
  std::vector<std::pair<int64_t, Tile>> tiles;
  for (int64_t s = 0; s < p.segments; ++s)
    for (const Tile& tile : tiles_of(p, s)) tiles.emplace_back(s, tile);
  const Forward<T> forward{p, View<const T>(q), keys, values, View<T>(out), pointer<float>(lse)};
  parallel_tasks(int64_t(tiles.size()) * p.heads, [&](int64_t task) {
    const auto& [segment, tile] = tiles[task / p.heads];
    forward.run(segment, tile, task % p.heads);
  });
}

// ---- backward

// A segment without a prefix and the segments that continue it.
struct Group {
  std::vector<int64_t> segments;
  int64_t work = 0;  // query-key pairs
};

// The largest first, so that the threads finish together.
std::vector<Group> groups_of(const Pack& p) {
  std::vector<Group> groups;
  std::vector<int64_t> group(p.segments);
  for (int64_t s = 0; s < p.segments; ++s) {
    group[s] = p.prefix[s] < 0 ? int64_t(groups.size()) : group[p.prefix[s]];
    if (p.prefix[s] < 0) groups.emplace_back();
    groups[group[s]].segments.push_back(s);
    groups[group[s]].work += p.length(s) * (p.prefix_length(s) + p.length(s) / 2);
  }
  std::stable_sort(groups.begin(), groups.end(),
                   [](const Group& a, const Group& b) { return a.work > b.work; });
  return groups;
}

template <typename T>
struct Backward {
  const Pack& p;
  View<const T> q, out, dout;
  const float* lse;  // [tokens, heads]
  const Panels &keys, &values;
  View<T> dq;
  float *dk, *dv;  // [heads, tokens, width], sums over one query head

  void run(const Group& group, int64_t head) const {
    for (const int64_t s : group.segments) {
      const int64_t begin = (head * p.tokens() + p.cu_seqlens[s]) * p.width;
      std::fill_n(dk + begin, p.length(s) * p.width, 0.0f);
      std::fill_n(dv + begin, p.length(s) * p.width, 0.0f);
      for (const Tile& tile : tiles_of(p, s)) run_tile(s, tile, head);
    }
  }

 private:
  // What a tile of queries brings along; every matrix is [kRows, width].
  struct Queries {
    float *q, *dout, *dq, *lse, *delta;
  };

  void run_tile(int64_t segment, const Tile& tile, int64_t head) const {
    thread_local Buffer memory;
    const int64_t size = kRows * p.width;
    float* m = memory.reserve(3 * size + 2 * kRows * kPanel + 2 * kRows);
    const Queries x{m, m + size, m + 2 * size, m + 3 * size + 2 * kRows * kPanel,
                    m + 3 * size + 2 * kRows * kPanel + kRows};
    load_queries(tile, head, x);
    for (const Block& block : blocks_of(p, tile, segment))
      run_block(tile, block, head, x, m + 3 * size, m + 3 * size + kRows * kPanel);
    for (int64_t i = 0; i < tile.rows; ++i)
      narrow(x.dq + i * p.width, dq.row(tile.token + i, head), p.dim, p.scale);
  }

  void load_queries(const Tile& tile, int64_t head, const Queries& x) const {
    for (int64_t i = 0; i < tile.rows; ++i) {
      const int64_t token = tile.token + i;
      widen(q.row(token, head), x.q + i * p.width, p.dim, p.scale);
      widen(dout.row(token, head), x.dout + i * p.width, p.dim, 1.0f);
      widen(out.row(token, head), x.dq + i * p.width, p.dim, 1.0f);
      vec delta{};
      for (int64_t d = 0; d < p.width; d += kLanes)
        delta += load(x.dout + i * p.width + d) * load(x.dq + i * p.width + d);
      x.delta[i] = sum(delta);
      x.lse[i] = lse[token * p.heads + head];
    }
    std::fill_n(x.dq, tile.rows * p.width, 0.0f);
  }

  // probs, dscores: scratch [kRows, kPanel]
  void run_block(const Tile& tile, const Block& block, int64_t head, const Queries& x, float* probs,
                 float* dscores) const {
    const int64_t kv = head / (p.heads / p.kv_heads), rows = tile.rows, w = p.width;
    gemm({x.q, w, 1}, keys.transposed(kv, block.panel), kPanel, probs, kPanel, rows,
         block.columns(), p.dim, false);
    gemm({x.dout, w, 1}, values.transposed(kv, block.panel), kPanel, dscores, kPanel, rows,
         block.columns(), p.dim, false);
    for (int64_t i = 0; i < rows; ++i)
      differentiate(block, Visible(p, block, tile.position + i), x.lse[i], x.delta[i],
                    probs + i * kPanel, dscores + i * kPanel);
    const int64_t sums = (head * p.tokens() + block.token) * w;
    gemm({dscores, kPanel, 1}, keys.rows(kv, block.panel), w, x.dq, w, rows, w, block.keys, true);
    gemm({probs, 1, kPanel}, x.dout, w, dv + sums, w, block.keys, w, rows, true);
    gemm({dscores, 1, kPanel}, x.q, w, dk + sums, w, block.keys, w, rows, true);
  }

  // One row: scores become probabilities, their gradients those of the scores.
  static void differentiate(const Block& block, const Visible& seen, float lse, float delta,
                            float* probs, float* dscores) {
    for (int64_t j = 0; j < block.columns(); j += kLanes) {
      const vec prob = exp(load(probs + j) - lse);
      store(probs + j, prob);
      store(dscores + j, prob * (load(dscores + j) - delta));
    }
    for (float* row : {probs, dscores}) {
      std::fill(row, row + seen.begin, 0.0f);
      std::fill(row + seen.end, row + block.columns(), 0.0f);
    }
  }
};

// out [tokens, kv_heads, dim]: sums [heads, tokens, width] over the heads that share a KV head.
template <typename T>
void reduce_heads(const Pack& p, float* sums, View<T> out) {
  const int64_t group = p.heads / p.kv_heads, tokens = p.tokens();
  parallel_ranges(tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t kv = 0; kv < p.kv_heads; ++kv)
      for (int64_t t = begin; t < end; ++t) {
        float* row = sums + (kv * group * tokens + t) * p.width;
        for (int64_t g = 1; g < group; ++g)
          for (int64_t d = 0; d < p.width; d += kLanes)
            store(row + d, load(row + d) + load(row + g * tokens * p.width + d));
        narrow(row, out.row(t, kv), p.dim, 1.0f);
      }
  });
}

template <typename T>
void attention_backward(const Shape& shape, const Address& q, const Address& k, const Address& v,
                        const Address& out, uintptr_t lse, const Address& dout, const Address& dq,
                        const Address& dk, const Address& dv) {
  const Pack p(shape);
  Panels keys(p, true, true), values(p, false, true);
  fill_panels(p, View<const T>(k), View<const T>(v), keys, values);
  Buffer dk_memory, dv_memory;
  const int64_t size = p.heads * p.tokens() * p.width;
  const Backward<T> backward{p, View<const T>(q), View<const T>(out), View<const T>(dout),
                             pointer<const float>(lse), keys, values, View<T>(dq),
                             dk_memory.reserve(size), dv_memory.reserve(size)};
  const std::vector<Group> groups = groups_of(p);
  parallel_tasks(int64_t(groups.size()) * p.heads, [&](int64_t task) {
    backward.run(groups[task / p.heads], task % p.heads);
  });
  reduce_heads(p, backward.dk, View<T>(dk));
  reduce_heads(p, backward.dv, View<T>(dv));
}

}  // namespace

void bind_attention(nanobind::module_& m) {
  m.def("attention_f32", &attention<float>);
  m.def("attention_bf16", &attention<bf16>);
  m.def("attention_backward_f32", &attention_backward<float>);
  m.def("attention_backward_bf16", &attention_backward<bf16>);
}

}  // namespace selfguide
