// route for the usual row: finite float logits, a few choices. A step is done for all rows of a tile before the next
// one, so that the steps of one row, each of which waits for the last, overlap with those of the others.
//
// Selection without a sort of the row: the k-th largest of the maxima of its lanes is no larger than its k-th largest
// value, so the few values from there on hold the choice, and only they are put in order.
//
// The softmax keeps the order of the logits, so they are compared themselves. Where rounding may make equal scores of
// different logits, and in whatever else is unusual, a row is left to route_any_row.h: the results are the same.
#pragma once

#include "cpu/vectorized/route_any_row.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

inline constexpr int64_t kMostGroups = 32;

// One row on its way.
struct Candidates {
  static constexpr int64_t kMost = 32;

  bool usual;     // no NaN, nothing that the rule has to look at
  bool moderate;  // no logit above kModerate
  float maximum, threshold;
  int64_t found;
  Softmax<float> softmax;
  alignas(64) float lanes[kMost];  // the maxima of its lanes
  alignas(64) int32_t keys[kMost];
  alignas(64) int32_t ranks[kMost];
  // What is at least the threshold, in the order of experts, and then from the largest on. Room for the last store of
  // a whole vector.
  alignas(64) float values[kMost + 16];
  alignas(64) int32_t places[kMost + 16];
  alignas(64) float best[kMost + 16];
  alignas(64) int32_t ids[kMost + 16];
};

// row.lanes[l] = the largest of values l, l + kLanes, ...
template <int kLanes>
MOE_INLINE void find_lane_maxima(const float* __restrict values, int64_t padded, Candidates& row) {
  constexpr int kVectors = kLanes / kWidth;
  Floats best[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) best[v] = load_lanes(values + v * kWidth);
  for (int64_t i = kLanes; i < padded; i += kLanes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) best[v] = larger(load_lanes(values + i + v * kWidth), best[v]);
  }
  memcpy(row.lanes, best, sizeof(best));
}

// The largest value, and one that at least top_k <= kLanes values reach.
template <int kLanes>
MOE_INLINE void find_threshold(int64_t top_k, Candidates& row) {
  constexpr int kVectors = kLanes / kWidth;
  Floats best[kVectors];
  memcpy(best, row.lanes, sizeof(best));
  // A lane that fewer than top_k others exceed is among the top_k.
  Ints above[kVectors] = {};
#pragma GCC unroll 32
  for (int l = 0; l < kLanes; ++l) {
    const Floats other = everywhere(row.lanes[l]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) above[v] = counted(other, best[v], above[v]);
  }
  Floats low = everywhere(infinity(0.0f)), high = best[0];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    low = smaller(above[v] < static_cast<int32_t>(top_k) ? best[v] : everywhere(infinity(0.0f)), low);
    high = larger(best[v], high);
  }
  row.maximum = reduced(high, [](Floats a, Floats b) { return larger(a, b); });
  row.threshold = reduced(low, [](Floats a, Floats b) { return smaller(a, b); });
}

class Tile {
 public:
  static bool serves(const RouteParams& p) {
    if (p.top_k > kMostChosen) return false;
    if (is_group_wise(p) && (p.num_groups > kMostGroups || group_top(p) > 2)) return false;
    for (int64_t i = 0; p.bias != nullptr && i < p.num_experts; ++i) {
      if (!is_finite(p.bias[i])) return false;
    }
    return true;
  }
  // Rows whose logits, scores and values fit the first-level cache.
  static int64_t rows_of(int64_t padded) {
    const int64_t rows = 2560 / padded;
    return rows < 1 ? 1 : rows > kMostRows ? kMostRows : rows;
  }
  static int64_t bytes(int64_t padded) {
    return rows_of(padded) *
           (3 * padded * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(sizeof(Candidates)));
  }

  // `memory` of bytes(padded), 64-byte aligned; `any` serves the rows that are not usual, and has the bias.
  Tile(const RouteParams& p, char* memory, const Row<float>& any)
      : p_(p), any_(any), blocks_(blocks_of(p.num_experts)), padded_(blocks_ * kBlock), rows_(rows_of(padded_)) {
    z_ = reinterpret_cast<float*>(memory);
    scores_ = z_ + rows_ * padded_;
    values_ = scores_ + rows_ * padded_;
    candidates_ = reinterpret_cast<Candidates*>(values_ + rows_ * padded_);
  }

  int64_t num_rows() const { return rows_; }

  // Tokens [first, last), at most num_rows. Returns a bad token or -1.
  template <class T>
  int64_t run(int64_t first, int64_t last) {
    const int64_t rows = last - first;
    const bool by_logit = is_softmax() && p_.bias == nullptr && !is_group_wise(p_);
    read<T>(first, rows);
    if (!by_logit) score_rows(rows);
    if (is_group_wise(p_)) {
      score_groups(rows);
      keep_best_groups(rows);
    }
    const float* values = by_logit ? z_ : values_;
    if (p_.top_k <= 8) {
      find_lane_maxima<16>(values, rows);
      find_thresholds<16>(rows);
    } else {
      find_lane_maxima<32>(values, rows);
      find_thresholds<32>(rows);
    }
    collect_candidates(values, rows, by_logit);
    order_candidates(rows);
    rank_candidates(rows);
    if (by_logit) take_softmax(rows);
    if (by_logit) check_order(rows);
    if (p_.top_k <= 8) {
      weigh_rows<8>(first, rows, by_logit);
    } else {
      weigh_rows<kMostChosen>(first, rows, by_logit);
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (!candidates_[r].usual) {
        if (!route_row<T>(p_, any_, first + r)) return first + r;
      } else if (has_statistics(p_)) {
        Row<float> row = any_;
        row.z = z_ + r * padded_;
        row.scores = scores_ + r * padded_;
        add_statistics(p_, row, blocks_, candidates_[r].softmax, candidates_[r].moderate,
                       p_.topk_ids + (first + r) * p_.top_k);
      }
    }
    return -1;
  }

 private:
  static constexpr int64_t kMostRows = 8;

  static int64_t group_top(const RouteParams& p) {
    const int64_t size = p.num_experts / p.num_groups;
    return p.group_top < size ? p.group_top : size;
  }
  // Over all experts, before the selection.
  bool is_softmax() const { return p_.rule.score == Score::kSoftmax && !p_.rule.softmax_after; }

  template <class T>
  MOE_NOINLINE void read(int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) read_row<T>(first + r, r);
  }

  template <class T>
  void read_row(int64_t token, int64_t r) {
    const T* __restrict source = static_cast<const T*>(p_.logits) + token * p_.logits_stride;
    float* __restrict z = z_ + r * padded_;
    load(source, p_.num_experts, z);
    const int32_t magnitude = magnitude_bits(z, p_.num_experts);
    for (int64_t i = p_.num_experts; i < padded_; ++i) z[i] = -infinity(0.0f);
    Candidates& row = candidates_[r];
    const int32_t infinite = bits_of(infinity(0.0f));
    row.usual =
        magnitude < infinite ||
        (magnitude == infinite && (p_.rule.nonfinite == NonFinite::kPropagate || is_finite(plain_maximum(z, padded_))));
    row.moderate = magnitude <= bits_of(kModerate);
  }

  MOE_NOINLINE void score_rows(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) score(r);
  }

  // Fills the row's scores, and the values to rank its experts by.
  void score(int64_t r) {
    float* __restrict z = z_ + r * padded_;
    float* __restrict scores = scores_ + r * padded_;
    Candidates& row = candidates_[r];
    switch (p_.rule.score) {
      case Score::kSoftmax:
        if (p_.rule.softmax_after) {
          memcpy(scores, z, sizeof(float) * static_cast<size_t>(padded_));
        } else {
          row.maximum = plain_maximum(z, padded_);
          take_softmax_of_row(r);
          const float sum = row.softmax.sum;
          if (row.moderate) {
            quotients(z, sum, scores, padded_);
          } else {
            for (int64_t i = 0; i < padded_; ++i) scores[i] = z[i] / sum;
          }
          row.usual = row.usual && is_finite(row.maximum);
        }
        break;
      case Score::kSigmoid:
        if (row.moderate) {
          for (int64_t i = 0; i < padded_; ++i) scores[i] = 1.0f + exp_of_moderate(-z[i]);
          reciprocals(scores, padded_);
        } else {
          for (int64_t i = 0; i < padded_; ++i) scores[i] = sigmoid(z[i]);
        }
        break;
      case Score::kSqrtSoftplus:
        for (int64_t i = 0; i < padded_; ++i) scores[i] = square_root(softplus(z[i]));
        break;
      case Score::kNone:
        memcpy(scores, z, sizeof(float) * static_cast<size_t>(padded_));
        break;
    }
    float* __restrict values = values_ + r * padded_;
    const float* __restrict bias = any_.bias;
    for (int64_t i = 0; i < padded_; ++i) values[i] = scores[i] + bias[i];
    for (int64_t i = p_.num_experts; i < padded_; ++i) values[i] = -infinity(0.0f);
  }

  MOE_NOINLINE void take_softmax(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) take_softmax_of_row(r);
  }

  // z becomes e^(z - maximum); its padding, 0.
  void take_softmax_of_row(int64_t r) {
    float* __restrict z = z_ + r * padded_;
    Candidates& row = candidates_[r];
    const float maximum = row.maximum;
    if (row.moderate) {
      for (int64_t i = 0; i < padded_; ++i) z[i] = exp_of_moderate(z[i] - maximum);
      for (int64_t i = p_.num_experts; i < padded_; ++i) z[i] = 0;
    } else {
      for (int64_t i = 0; i < padded_; ++i) z[i] = exp(z[i] - maximum);
    }
    row.softmax = {maximum, row_sum(z, blocks_)};
  }

  // The best two values of a group in each lane, -inf where there are no more.
  static TopTwo best_two(const float* __restrict values, int64_t size) {
    const Floats none = everywhere(-infinity(0.0f));
    TopTwo best = {none, none};
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) best.add(load_lanes(values + i));
    if (i < size) {
      alignas(64) float rest[kWidth];
      store_lanes(none, rest);
      for (int64_t l = i; l < size; ++l) rest[l - i] = values[l];
      best.add(load_lanes(rest));
    }
    return best;
  }

  // row.lanes = the scores of groups, row.keys their order.
  MOE_NOINLINE void score_groups(int64_t rows) {
    constexpr int kAtOnce = 8, kVectors = kAtOnce > kWidth ? kAtOnce / kWidth : 1;
    const int64_t size = p_.num_experts / p_.num_groups;
    const bool two = group_top(p_) == 2;
    for (int64_t r = 0; r < rows; ++r) {
      Candidates& row = candidates_[r];
      const float* values = values_ + r * padded_;
      for (int64_t g = 0; g < p_.num_groups; g += kAtOnce) {
        TopTwo best[kAtOnce];
        for (int64_t j = 0; j < kAtOnce; ++j) {
          const bool exists = g + j < p_.num_groups;
          best[j] = best_two(values + (exists ? (g + j) * size : 0), exists ? size : 0);
        }
        fold<kAtOnce>(best);
        alignas(64) float scores[kVectors * kWidth];
        for (int v = 0; v < kVectors; ++v) {
          store_lanes(two ? best[v].first + best[v].second : best[v].first, scores + v * kWidth);
        }
        for (int j = 0; j < kAtOnce; ++j) row.lanes[g + j] = scores[place_of_fold(j)];
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      Candidates& row = candidates_[r];
      for (int64_t g = 0; g < kMostGroups; ++g) {
        row.keys[g] = g < p_.num_groups ? rank(row.lanes[g]) : INT32_MIN + 1;
      }
    }
  }

  MOE_NOINLINE void keep_best_groups(int64_t rows) {
    const int64_t size = p_.num_experts / p_.num_groups;
    const float fill = p_.group_fill == GroupFill::kZero ? 0.0f : -infinity(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      if (p_.num_groups <= 16) {
        rank_keys<16>(candidates_[r].keys, candidates_[r].ranks);
      } else {
        rank_keys<32>(candidates_[r].keys, candidates_[r].ranks);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* values = values_ + r * padded_;
      for (int64_t g = 0; g < p_.num_groups; ++g) {
        const bool kept = candidates_[r].ranks[g] < p_.topk_groups;
        const Ints mask = everywhere(kept ? -1 : 0);
        const Floats fills = everywhere(fill);
        int64_t i = g * size;
        for (; i + kWidth <= (g + 1) * size; i += kWidth) {
          store_lanes(mask != 0 ? load_lanes(values + i) : fills, values + i);
        }
        for (; i < (g + 1) * size; ++i) values[i] = kept ? values[i] : fill;
      }
    }
  }

  template <int kLanes>
  MOE_NOINLINE void find_lane_maxima(const float* values, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      routing::find_lane_maxima<kLanes>(values + r * padded_, padded_, candidates_[r]);
    }
  }

  template <int kLanes>
  MOE_NOINLINE void find_thresholds(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) find_threshold<kLanes>(p_.top_k, candidates_[r]);
  }

  MOE_NOINLINE void collect_candidates(const float* values, int64_t rows, bool by_logit) {
    for (int64_t r = 0; r < rows; ++r) {
      Candidates& row = candidates_[r];
      for (int64_t l = 0; l < Candidates::kMost; ++l) row.values[l] = -infinity(0.0f);
      const float threshold = row.threshold - (by_logit ? closeness(row) : 0.0f);
      row.found = collect(values + r * padded_, padded_, threshold, Candidates::kMost, row.values, row.places);
      row.usual = row.usual && row.found <= Candidates::kMost;
    }
  }

  MOE_NOINLINE void order_candidates(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t l = 0; l < Candidates::kMost; l += kWidth) {
        const Ints keys = ordered(load_lanes(candidates_[r].values + l));
        memcpy(candidates_[r].keys + l, &keys, sizeof(keys));
      }
    }
  }

  MOE_NOINLINE void rank_candidates(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      Candidates& row = candidates_[r];
      if (row.found <= 16) {
        rank_keys<16>(row.keys, row.ranks);
      } else {
        rank_keys<32>(row.keys, row.ranks);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      Candidates& row = candidates_[r];
      const int64_t count = row.found <= 16 ? 16 : 32;
      row.best[16] = row.best[32] = -infinity(0.0f);
      for (int64_t half = 0; half < count; half += 16) {
#pragma GCC unroll 16
        for (int64_t l = half; l < half + 16; ++l) {
          row.best[row.ranks[l]] = row.values[l];
          row.ids[row.ranks[l]] = row.places[l];
        }
      }
    }
  }

  // Logits closer than this may get scores in another order, or equal ones: more than the errors of two differences to
  // the maximum, exponentials and quotients. None of the chosen is below the threshold.
  static float closeness(const Candidates& row) { return 0x1p-20f + (row.maximum - row.threshold) * 0x1p-21f; }

  MOE_NOINLINE void check_order(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) candidates_[r].usual = candidates_[r].usual && order_is_clear(candidates_[r]);
  }

  // Whether the scores of the chosen, of their equals, and of the one after them are as different as their logits.
  bool order_is_clear(const Candidates& row) const {
    const float close = closeness(row), last = row.best[p_.top_k - 1];
    const int32_t count = row.found <= 16 ? 16 : 32;
    int32_t unclear = 0;
#pragma GCC unroll 1
    for (int32_t k = 0; k < count; ++k) {
      const float step = row.best[k] - row.best[k + 1];
      unclear |= (row.best[k] >= last) & (step != 0.0f) & (step <= close) ? 1 : 0;
    }
    // Far from subnormal numbers, where different exponentials would be equal.
    return unclear == 0 && last - row.maximum >= -64.0f && is_finite(row.maximum);
  }

  template <int64_t kChosen>
  MOE_NOINLINE void weigh_rows(int64_t first, int64_t rows, bool by_logit) {
    for (int64_t r = 0; r < rows; ++r) {
      if (candidates_[r].usual) weigh_row<kChosen>(first + r, r, by_logit);
    }
  }

  template <int64_t kChosen>
  void weigh_row(int64_t token, int64_t r, bool by_logit) {
    const Candidates& row = candidates_[r];
    const RouteRule& rule = p_.rule;
    const int64_t top_k = p_.top_k;
    alignas(64) float w[kChosen];
    if (by_logit) {
      const float maximum = row.maximum, sum = row.softmax.sum;
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) w[k] = exp_of_moderate(row.best[k] - maximum) / sum;
    } else {
      const float* scores = scores_ + r * padded_;
      for (int64_t k = 0; k < top_k; ++k) w[k] = scores[row.ids[k]];
      for (int64_t k = top_k; k < kChosen; ++k) w[k] = 0;
    }
    if (rule.softmax_after) {
      float maximum = w[0];
      for (int64_t k = 1; k < top_k; ++k) maximum = w[k] > maximum ? w[k] : maximum;
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) w[k] = exp(w[k] - maximum);
      divide_by_sum<kChosen>(w, 0.0f);
    }
    if (rule.renormalize) divide_by_sum<kChosen>(w, static_cast<float>(rule.eps));
    const float scale = static_cast<float>(rule.scale);
    for (int64_t k = 0; k < kChosen; ++k) w[k] *= scale;
    copy_chosen(w, static_cast<float*>(p_.topk_weights) + token * top_k);
    copy_chosen(row.ids, p_.topk_ids + token * top_k);
  }

  template <int64_t kChosen>
  void divide_by_sum(float* __restrict w, float eps) const {
    float sum = 0;
    for (int64_t k = 0; k < p_.top_k; ++k) sum += w[k];
    sum += eps;
#pragma GCC unroll 1
    for (int64_t k = 0; k < kChosen; ++k) w[k] /= sum;
  }

  template <class N>
  void copy_chosen(const N* __restrict from, N* __restrict to) const {
    if (p_.top_k == 8) {
      memcpy(to, from, 8 * sizeof(N));
    } else {
#pragma GCC unroll 1
      for (int64_t k = 0; k < p_.top_k; ++k) to[k] = from[k];
    }
  }

  const RouteParams& p_;
  const Row<float>& any_;
  const int64_t blocks_, padded_, rows_;
  float* z_;
  float* scores_;
  float* values_;
  Candidates* candidates_;
};

}  // namespace routing

}  // namespace moe::cpu::MOE_ISA
