// Token sampling: one thread per row, nothing sorted, and only the work that a row's knobs ask for.
//
// A row is read from memory once (the scan for its maximum) and stays in L2 for the passes that
// follow: the log-sum-exp of the raw logits, and for plain temperature sampling the block sums of
// the weights, from which the drawn token's block is found and computed again. Filtered rows draw
// from the few candidates that a lower bound on the threshold leaves (select.h).

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>

#include <array>
#include <numeric>

#include "bind.h"
#include "parallel.h"
#include "philox.h"
#include "select.h"

namespace selfguide {
namespace {

struct IdList {
  const int64_t* begin_;
  const int64_t* end_;
  const int64_t* begin() const { return begin_; }
  const int64_t* end() const { return end_; }
  bool empty() const { return begin_ == end_; }
};

struct Lists {
  const int64_t *offsets, *ids;
  IdList operator[](int64_t row) const { return {ids + offsets[row], ids + offsets[row + 1]}; }
};

// kernels.sampling.SampleParams
struct Params {
  const float *temperature;
  const int32_t* top_k;
  const float *top_p, *min_p, *repetition_penalty, *frequency_penalty, *presence_penalty;
  const int64_t *seed, *position;
  Lists bias;
  const float* bias_values;
  Lists seen, generated, allowed;
};

struct Scratch {
  std::vector<float> adjusted;  // the row after bias and penalties
  std::vector<uint8_t> marks;   // zero between rows
  std::vector<int32_t> counts;  // the same
  std::vector<double> block_sums;
  std::vector<float> weights;
  std::vector<int64_t> sorted;
  std::vector<float> allowed;  // logits of the allowed ids
  Selector selector;
  Candidates found;
};

bool drawable(float peak) { return peak > -kInfinity && peak < kInfinity; }  // neither is NaN

// The repetition penalty, on s.adjusted.
void penalise_seen(float penalty, IdList seen, Scratch& s) {
  s.marks.resize(s.adjusted.size());
  for (const int64_t id : seen) {
    float& x = s.adjusted[id];
    if (!s.marks[id]) x = x > 0 ? x / penalty : x * penalty;
    s.marks[id] = 1;
  }
  for (const int64_t id : seen) s.marks[id] = 0;
}

// The frequency and presence penalties, on s.adjusted.
void penalise_generated(float frequency, float presence, IdList generated, Scratch& s) {
  s.counts.resize(s.adjusted.size());
  for (const int64_t id : generated) ++s.counts[id];
  for (const int64_t id : generated) {
    if (s.counts[id]) s.adjusted[id] -= frequency * float(s.counts[id]) + presence;
    s.counts[id] = 0;
  }
}

// The row after bias and penalties: `row` itself where there are none.
const float* adjust(const float* row, int64_t n, const Params& p, int64_t r, Scratch& s) {
  const float penalty = p.repetition_penalty[r];
  const float frequency = p.frequency_penalty[r], presence = p.presence_penalty[r];
  const IdList bias = p.bias[r], seen = p.seen[r], generated = p.generated[r];
  const bool repetition = penalty != 1 && !seen.empty();
  const bool counting = (frequency != 0 || presence != 0) && !generated.empty();
  if (bias.empty() && !repetition && !counting) return row;
  s.adjusted.assign(row, row + n);
  const float* value = p.bias_values + (bias.begin() - p.bias.ids);
  for (const int64_t id : bias) s.adjusted[id] += *value++;
  if (repetition) penalise_seen(penalty, seen, s);
  if (counting) penalise_generated(frequency, presence, generated, s);
  return s.adjusted.data();
}

inline vec weight(vec x, float peak, float scale) { return exp((x - peak) * scale); }

// Sum of exp((x - peak) * scale), block by block into `sums`.
double weigh(const float* x, int64_t n, float peak, float scale, std::vector<double>& sums) {
  sums.resize(blocks_of(n));
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    vec acc{};
    for (int64_t i = begin; i < std::min(n, begin + kBlock); i += kLanes)
      acc += weight(load_row(x, i, n), peak, scale);
    total += sums[begin / kBlock] = sum(acc);
  }
  return total;
}

// Fills `weights` (a multiple of 16 long) with those of x; zero below the threshold.
void weigh_each(const float* x, int64_t n, float threshold, float peak, float scale,
                std::vector<float>& weights) {
  weights.resize((n + kLanes - 1) / kLanes * kLanes);
  for (int64_t i = 0; i < n; i += kLanes) {
    const vec v = load_row(x, i, n);
    store(weights.data() + i, v < splat(threshold) ? vec{} : weight(v, peak, scale));
  }
}

// The first index whose running sum, starting from `sum`, exceeds `target`; the last index with any
// weight where rounding lets none; -1 if there is no weight.
int64_t walk(const std::vector<float>& weights, int64_t n, double sum, double target) {
  int64_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (weights[i] <= 0) continue;
    last = i;
    sum += weights[i];
    if (sum > target) break;
  }
  return last;
}

// Draws from the whole row, whose block sums are in s.
int64_t draw_any(const float* x, int64_t n, float peak, float scale, double target, Scratch& s) {
  double before = 0;
  int64_t block = 0;
  while (before + s.block_sums[block] <= target) before += s.block_sums[block++];
  const int64_t begin = block * kBlock, size = std::min(kBlock, n - begin);
  weigh_each(x + begin, size, -kInfinity, peak, scale, s.weights);
  return begin + walk(s.weights, size, before, target);
}

// Draws among those of s.found that reach the threshold; -1 if none does.
int64_t draw_found(float threshold, float scale, float random, Scratch& s) {
  const float* values = s.found.values.data();
  const int64_t n = s.found.count;
  const float peak = n ? *std::max_element(values, values + n) : -kInfinity;
  if (peak < threshold || !drawable(peak)) return -1;
  weigh_each(values, n, threshold, peak, scale, s.weights);
  const double total = std::accumulate(s.weights.begin(), s.weights.begin() + n, 0.0);
  return s.found.ids[walk(s.weights, n, 0, random * total)];
}

// The allowed ids in ascending order, and their logits.
void take_allowed(const float* x, IdList allowed, Scratch& s) {
  s.sorted.assign(allowed.begin(), allowed.end());
  std::sort(s.sorted.begin(), s.sorted.end());
  s.sorted.erase(std::unique(s.sorted.begin(), s.sorted.end()), s.sorted.end());
  s.allowed.clear();
  for (const int64_t id : s.sorted) s.allowed.push_back(x[id]);
}

struct Filters {
  int64_t top_k;  // 0: off
  float top_p, min_p, temperature;
  bool nucleus() const { return top_p < 1; }
  bool any() const { return top_k || nucleus() || min_p > 0; }
};

// The threshold that top_p sets among the found that reach the k-th value.
float nucleus_threshold(const Filters& f, float kth, float peak, double total, Scratch& s) {
  const float *values = s.found.values.data(), scale = 1 / f.temperature;
  const int64_t n = s.found.count;
  weigh_each(values, n, kth, peak, scale, s.weights);
  if (f.top_k) total = std::accumulate(s.weights.begin(), s.weights.begin() + n, 0.0);
  return s.selector.weighted_threshold(values, s.weights.data(), n, f.top_p * total, peak, scale);
}

// Leaves in s.found a superset of what the filters keep; returns the smallest logit they keep.
float filter(const float* x, int64_t n, float peak, const Filters& f, Scratch& s) {
  const float floor = peak + f.temperature * std::log(f.min_p);
  double total = 0;
  float bound = floor;
  if (f.top_k) {
    bound = s.selector.bound_of_largest(f.top_k);
  } else if (f.nucleus()) {
    // All tokens below (1 - p) / n together weigh less than 1 - p. Half of it, for rounding.
    total = weigh(x, n, peak, 1 / f.temperature, s.block_sums);
    bound = peak + f.temperature * float(std::log(0.5 * (1 - f.top_p) * total / double(n)));
  }
  Selector::collect(x, n, std::min(bound, peak), s.found);
  float threshold = f.top_k ? s.selector.kth_value(s.found, f.top_k) : -kInfinity;
  if (f.nucleus())
    threshold = std::max(threshold, nucleus_threshold(f, threshold, peak, total, s));
  return std::max(threshold, floor);
}

// Draws from all of x, whose largest element is `peak` (just scanned).
int64_t draw(const float* x, int64_t n, float peak, const Params& p, int64_t r, Scratch& s) {
  const float temperature = p.temperature[r];
  if (temperature == 0) return std::find(x, x + n, peak) - x;
  const int64_t top_k = p.top_k[r] > 0 && p.top_k[r] < n ? p.top_k[r] : 0;
  const Filters filters{top_k, p.top_p[r], p.min_p[r], temperature};
  const float random = uniform(uint64_t(p.seed[r]), uint64_t(p.position[r]));
  const float scale = 1 / temperature;
  if (filters.any()) return draw_found(filter(x, n, peak, filters, s), scale, random, s);
  const double total = weigh(x, n, peak, scale, s.block_sums);
  return draw_any(x, n, peak, scale, random * total, s);
}

// Draws from the allowed ids of x: as if the vocabulary held nothing else.
int64_t draw_allowed(const float* x, const Params& p, int64_t r, Scratch& s) {
  take_allowed(x, p.allowed[r], s);
  const int64_t n = int64_t(s.allowed.size());
  const float peak = s.selector.scan(s.allowed.data(), n);
  if (!drawable(peak)) return -1;
  const int64_t drawn = draw(s.allowed.data(), n, peak, p, r, s);
  return drawn < 0 ? -1 : s.sorted[drawn];
}

void check_ids(const Lists& lists, int64_t rows, int64_t vocab, const char* name) {
  for (int64_t i = 0; i < lists.offsets[rows]; ++i)
    if (lists.ids[i] < 0 || lists.ids[i] >= vocab)
      throw nanobind::value_error(
          (std::string(name) + ": token id " + std::to_string(lists.ids[i]) +
           " is outside the vocabulary of " + std::to_string(vocab)).c_str());
}

// logits [rows, n] with row stride `stride`; tokens, logprobs [rows]; `fields` are the addresses of
// the fields of SampleParams, in order.
void sample(uintptr_t logits, int64_t rows, int64_t n, int64_t stride, uintptr_t tokens,
            uintptr_t logprobs, std::array<uintptr_t, 18> fields) {
  const auto ids = [&](int i) { return pointer<const int64_t>(fields[i]); };
  const auto reals = [&](int i) { return pointer<const float>(fields[i]); };
  const Params p{reals(0), pointer<const int32_t>(fields[1]), reals(2), reals(3), reals(4),
                 reals(5), reals(6), ids(7), ids(8), {ids(9), ids(10)}, reals(11),
                 {ids(12), ids(13)}, {ids(14), ids(15)}, {ids(16), ids(17)}};
  check_ids(p.bias, rows, n, "bias");
  check_ids(p.seen, rows, n, "seen");
  check_ids(p.generated, rows, n, "generated");
  check_ids(p.allowed, rows, n, "allowed");
  parallel_tasks(rows, [&](int64_t r) {
    static thread_local Scratch s;
    const float* row = pointer<const float>(logits) + r * stride;
    const float* x = adjust(row, n, p, r, s);
    float peak = s.selector.scan(x, n);
    int64_t token = -1;
    if (drawable(peak))
      token = p.allowed[r].empty() ? draw(x, n, peak, p, r, s) : draw_allowed(x, p, r, s);
    float logprob = -kInfinity;
    if (token >= 0) {
      if (x != row) peak = s.selector.scan(row, n);
      logprob = row[token] - peak - float(std::log(weigh(row, n, peak, 1, s.block_sums)));
    }
    pointer<int64_t>(tokens)[r] = token;
    pointer<float>(logprobs)[r] = logprob;
  });
}

// The k largest of a row by descending value, then ascending id.
void top_row(const float* x, int64_t n, int64_t k, float* logprobs, int64_t* ids, Scratch& s) {
  const float peak = s.selector.scan(x, n);
  std::fill(logprobs, logprobs + k, -kInfinity);
  std::fill(ids, ids + k, -1);
  if (!drawable(peak)) return;
  Selector::collect(x, n, s.selector.bound_of_largest(k), s.found);
  const float* values = s.found.values.data();
  s.sorted.resize(s.found.count);
  std::iota(s.sorted.begin(), s.sorted.end(), 0);
  std::partial_sort(s.sorted.begin(), s.sorted.begin() + k, s.sorted.end(),
                    [&](int64_t a, int64_t b) {
                      return values[a] > values[b] || (values[a] == values[b] && a < b);
                    });
  const float log_sum = float(std::log(weigh(x, n, peak, 1, s.block_sums)));
  for (int64_t i = 0; i < k; ++i) {
    logprobs[i] = values[s.sorted[i]] - peak - log_sum;
    ids[i] = s.found.ids[s.sorted[i]];
  }
}

// logits [rows, n] with row stride `stride`; logprobs, ids [rows, k].
void top_logprobs(uintptr_t logits, int64_t rows, int64_t n, int64_t stride, int64_t k,
                  uintptr_t logprobs, uintptr_t ids) {
  parallel_tasks(rows, [&](int64_t r) {
    static thread_local Scratch s;
    top_row(pointer<const float>(logits) + r * stride, n, k, pointer<float>(logprobs) + r * k,
            pointer<int64_t>(ids) + r * k, s);
  });
}

}  // namespace

void bind_sampling(nanobind::module_& m) {
  m.def("sample", &sample);
  m.def("top_logprobs", &top_logprobs);
}

}  // namespace selfguide
