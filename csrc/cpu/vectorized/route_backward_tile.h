// The gradient of route for the usual row: few choices, no statistics, and for a softmax over all experts a finite
// maximum. As in route_tile.h a step is done for all rows of a tile before the next. Only the chosen experts are
// computed one by one: the others' gradients are zeros, or with a softmax over all one multiple of their scores. The
// bits are those of route_backward.h, which also has the formulas.
#pragma once

#include "cpu/vectorized/route_row.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

// Of the scores that look at one logit alone.
template <class A>
MOE_INLINE A slope_of(Score score, A z, A s) {
  switch (score) {
    case Score::kSigmoid:
      return s * (A(1) - s);
    // Where softplus has underflowed, so has the slope.
    case Score::kSqrtSoftplus:
      return s == A(0) ? A(0) : sigmoid(z) / (s + s);
    default:
      return A(1);
  }
}

template <class T>
class GradientTile {
 public:
  static bool serves(const RouteBackwardParams& p) {
    return sizeof(acc_t<T>) == sizeof(float) && p.top_k <= kMostChosen && p.grad_score_sums == nullptr &&
           p.grad_z_sum == nullptr;
  }
  static int64_t bytes(int64_t padded) {
    return (2 * rows_of(padded) + 1) * padded * static_cast<int64_t>(sizeof(float)) +
           rows_of(padded) * static_cast<int64_t>(sizeof(Chosen));
  }

  // `memory` of bytes(padded), 64-byte aligned.
  GradientTile(const RouteBackwardParams& p, char* memory)
      : p_(p),
        over_all_(p.rule.score == Score::kSoftmax && !p.rule.softmax_after),
        padded_(blocks_of(p.num_experts) * kBlock),
        rows_(rows_of(padded_)) {
    e_ = reinterpret_cast<float*>(memory);
    scores_ = e_ + rows_ * padded_;
    sums_ = scores_ + rows_ * padded_;
    chosen_ = reinterpret_cast<Chosen*>(sums_ + padded_);
    for (int64_t i = 0; i < padded_; ++i) sums_[i] = 0;
  }

  int64_t num_rows() const { return rows_; }

  // Tokens [first, last), at most num_rows; other(token) does those that are not usual.
  template <class Other>
  void run(int64_t first, int64_t last, const Other& other) {
    const int64_t rows = last - first;
    if (over_all_) {
      read(first, rows);
      take_softmax(rows);
    }
    if (p_.top_k <= 8) {
      find_gradients<8>(first, rows);
    } else {
      find_gradients<kMostChosen>(first, rows);
    }
    if (over_all_) {
      write_scores(first, rows);
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        memset(static_cast<void*>(row_of(first + r)), 0, sizeof(T) * static_cast<size_t>(p_.num_experts));
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (chosen_[r].usual) {
        write_chosen(first + r, r);
      } else {
        other(first + r);
      }
    }
  }

 private:
  struct Chosen {
    bool usual, moderate;
    bool any, repeated;  // there are experts among the ids, and one of them twice
    float inner_product;
    Softmax<float> softmax;
    alignas(64) int32_t ids[kMostChosen];
    alignas(64) float scores[kMostChosen];
    alignas(64) float gradients[kMostChosen];  // by score for a softmax over all, else by logit
    alignas(64) T results[kMostChosen];
  };

  static int64_t rows_of(int64_t padded) {
    const int64_t rows = 3072 / padded;
    return rows < 1 ? 1 : rows > 8 ? 8 : rows;
  }
  const T* logits_of(int64_t token) const { return static_cast<const T*>(p_.logits) + token * p_.logits_stride; }
  T* row_of(int64_t token) const { return static_cast<T*>(p_.grad_logits) + token * p_.num_experts; }

  MOE_NOINLINE void read(int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      Chosen& row = chosen_[r];
      float* e = e_ + r * padded_;
      load(logits_of(first + r), p_.num_experts, e);
      for (int64_t i = p_.num_experts; i < padded_; ++i) e[i] = -infinity(0.0f);
      const int32_t magnitude = magnitude_bits(e, p_.num_experts);
      row.moderate = magnitude <= bits_of(kModerate);
      row.softmax.maximum = plain_maximum(e, padded_);
      row.usual = magnitude <= bits_of(infinity(0.0f)) && is_finite(row.softmax.maximum);
    }
  }

  // e = e^(z - maximum); the padding, 0.
  MOE_NOINLINE void take_softmax(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      float* __restrict e = e_ + r * padded_;
      const float maximum = chosen_[r].softmax.maximum;
      if (chosen_[r].moderate) {
        for (int64_t i = 0; i < padded_; ++i) e[i] = exp_of_moderate(e[i] - maximum);
        for (int64_t i = p_.num_experts; i < padded_; ++i) e[i] = 0;
      } else if (chosen_[r].usual) {
        for (int64_t i = 0; i < padded_; ++i) e[i] = exp(e[i] - maximum);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      chosen_[r].softmax.sum = row_sum(e_ + r * padded_, padded_ / kBlock);
    }
  }

  template <int64_t kChosen>
  MOE_NOINLINE void find_gradients(int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) find_gradients_of_row<kChosen>(first + r, r);
  }

  // row.results: what the chosen experts get, unless one was chosen twice; then row.gradients are to be added.
  template <int64_t kChosen>
  void find_gradients_of_row(int64_t token, int64_t r) {
    Chosen& row = chosen_[r];
    const RouteRule& rule = p_.rule;
    const int64_t num_experts = p_.num_experts;
    // Past the choices, and for sentinels, everything is 0.
    alignas(64) int32_t ids[kChosen];
    alignas(64) float z[kChosen], s[kChosen], g[kChosen], valid[kChosen];
    copy_chosen<kChosen>(p_.topk_ids, token, -1, ids);
    copy_chosen<kChosen>(static_cast<const float*>(p_.grad_weights), token, 0.0f, g);
    const int32_t limit = static_cast<int32_t>(num_experts);
    const float scale = static_cast<float>(rule.scale);
    int32_t any = 0, repeated = 0;
#pragma GCC unroll 1
    for (int64_t k = 0; k < kChosen; ++k) {
      const bool is_one = (ids[k] >= 0) & (ids[k] < limit);
      valid[k] = is_one ? 1.0f : 0.0f;
      ids[k] = is_one ? ids[k] : -1;
      g[k] = is_one ? g[k] * scale : 0.0f;
      any |= is_one ? 1 : 0;
    }
    for (int64_t j = 0; j + 1 < kChosen; ++j) {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) repeated |= ((ids[k] == ids[j]) & (k != j) & (ids[k] >= 0)) ? 1 : 0;
    }
    if (over_all_) {
      const float* e = e_ + r * padded_;
#pragma GCC unroll 16
      for (int64_t k = 0; k < kChosen; ++k) s[k] = e[ids[k] < 0 ? 0 : ids[k]];
      const float sum = row.softmax.sum;
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) s[k] /= sum;
    } else {
      const T* logits = logits_of(token);
#pragma GCC unroll 16
      for (int64_t k = 0; k < kChosen; ++k) z[k] = to_acc(logits[ids[k] < 0 ? 0 : ids[k]]);
      const bool sanitize = rule.nonfinite == NonFinite::kSanitize;
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) {
        const float x = sanitize ? sanitized(z[k]) : z[k];
        z[k] = valid[k] != 0.0f ? x : -infinity(0.0f);
      }
      score_chosen<kChosen>(z, valid, s);
      row.usual = true;
    }
#pragma GCC unroll 1
    for (int64_t k = 0; k < kChosen; ++k) s[k] = valid[k] != 0.0f ? s[k] : 0.0f;

    alignas(64) float by_score[kChosen], products[kChosen];
    for (int64_t k = 0; k < kChosen; ++k) by_score[k] = g[k];
    if (rule.renormalize) {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) products[k] = g[k] * s[k];
      const float sum = in_order<kChosen>(s) + static_cast<float>(rule.eps);
      const float mean = in_order<kChosen>(products) / sum;
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) by_score[k] = (g[k] - mean) / sum;
    }
    float inner_product = 0;
    if (rule.score == Score::kSoftmax) {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) products[k] = valid[k] != 0.0f ? by_score[k] * s[k] : 0.0f;
      inner_product = in_order<kChosen>(products);
    }
    row.any = any != 0;
    row.repeated = repeated != 0;
    row.inner_product = inner_product;
    // By logit where only the chosen have a gradient. Added to the zero that every sum begins with: -0 becomes 0.
    if (!over_all_ && rule.score == Score::kSoftmax) {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) row.gradients[k] = 0.0f + s[k] * (by_score[k] - inner_product);
    } else if (!over_all_) {
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) row.gradients[k] = 0.0f + by_score[k] * slope_of(rule.score, z[k], s[k]);
    } else {
      for (int64_t k = 0; k < kChosen; ++k) row.gradients[k] = 0.0f + by_score[k];
    }
    for (int64_t k = 0; k < kChosen; ++k) row.ids[k] = ids[k];
    for (int64_t k = 0; k < kChosen; ++k) row.scores[k] = s[k];
    const bool over_all = over_all_;
#pragma GCC unroll 1
    for (int64_t k = 0; k < kChosen; ++k) {
      row.results[k] = from_acc<T>(over_all ? s[k] * (row.gradients[k] - inner_product) : row.gradients[k]);
    }
  }

  // A token's row of `all` [T,K], and `filler` behind it.
  template <int64_t kChosen, class N>
  void copy_chosen(const N* all, int64_t token, N filler, N* __restrict to) const {
    const int64_t top_k = p_.top_k;
    if ((token * top_k) + kChosen <= p_.num_tokens * top_k) {
      // The next rows' beginnings may be read, so that this is one load.
      memcpy(to, all + token * top_k, kChosen * sizeof(N));
#pragma GCC unroll 1
      for (int64_t k = 0; k < kChosen; ++k) to[k] = k < top_k ? to[k] : filler;
    } else {
      for (int64_t k = 0; k < kChosen; ++k) to[k] = filler;
      for (int64_t k = 0; k < top_k; ++k) to[k] = all[token * top_k + k];
    }
  }

  template <int64_t kChosen>
  static float in_order(const float* values) {
    float sum = 0;
#pragma GCC unroll 16
    for (int64_t k = 0; k < kChosen; ++k) sum += values[k];
    return sum;
  }

  template <int64_t kChosen>
  void score_chosen(const float* __restrict z, const float* __restrict valid, float* __restrict s) const {
    switch (p_.rule.score) {
      case Score::kSoftmax: {
        int32_t best = KeyOf<float>::kLowest;
        for (int64_t k = 0; k < kChosen; ++k) best = rank(z[k]) > best ? rank(z[k]) : best;
        const float maximum = value_of(best);
#pragma GCC unroll 1
        for (int64_t k = 0; k < kChosen; ++k) s[k] = exp(z[k] - maximum);
        float sum = 0;
        for (int64_t k = 0; k < kChosen; ++k) sum += valid[k] != 0.0f ? s[k] : 0.0f;
#pragma GCC unroll 1
        for (int64_t k = 0; k < kChosen; ++k) s[k] /= sum;
        return;
      }
      case Score::kSigmoid:
#pragma GCC unroll 1
        for (int64_t k = 0; k < kChosen; ++k) s[k] = sigmoid(z[k]);
        return;
      case Score::kSqrtSoftplus:
#pragma GCC unroll 1
        for (int64_t k = 0; k < kChosen; ++k) s[k] = square_root(softplus(z[k]));
        return;
      case Score::kNone:
        for (int64_t k = 0; k < kChosen; ++k) s[k] = z[k];
        return;
    }
  }

  // What every expert gets of a softmax over all, chosen or not.
  MOE_NOINLINE void write_scores(int64_t first, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* __restrict e = e_ + r * padded_;
      float* __restrict scores = scores_ + r * padded_;
      const float sum = chosen_[r].softmax.sum;
      if (chosen_[r].moderate) {
        quotients(e, sum, scores, padded_);
      } else if (chosen_[r].usual) {
        for (int64_t i = 0; i < padded_; ++i) scores[i] = e[i] / sum;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (!chosen_[r].usual) continue;
      const float* __restrict scores = scores_ + r * padded_;
      T* __restrict out = row_of(first + r);
      const float factor = 0.0f - chosen_[r].inner_product;
      for (int64_t i = 0; i < p_.num_experts; ++i) out[i] = from_acc<T>(scores[i] * factor);
    }
  }

  void write_chosen(int64_t token, int64_t r) {
    const Chosen& row = chosen_[r];
    T* __restrict out = row_of(token);
    if (!row.any) {
      memset(static_cast<void*>(out), 0, sizeof(T) * static_cast<size_t>(p_.num_experts));
      return;
    }
    for (int64_t k = 0; k < p_.top_k; ++k) {
      if (row.ids[k] >= 0) out[row.ids[k]] = row.results[k];
    }
    if (row.repeated) add_repeated(row, out);
    if (p_.rule.nonfinite != NonFinite::kSanitize) return;
    const T* logits = logits_of(token);
    for (int64_t k = 0; k < p_.top_k; ++k) {
      const int32_t id = row.ids[k];
      if (id >= 0 && !(to_acc(logits[id]) < infinity(0.0f))) out[id] = from_acc<T>(0.0f);
    }
  }

  // Ids may repeat in what a caller hands in: contributions are added up first and rounded once.
  void add_repeated(const Chosen& row, T* out) {
    for (int64_t k = 0; k < p_.top_k; ++k) {
      if (row.ids[k] >= 0) sums_[row.ids[k]] += row.gradients[k];
    }
    for (int64_t k = 0; k < p_.top_k; ++k) {
      const int32_t id = row.ids[k];
      if (id < 0) continue;
      out[id] = from_acc<T>(over_all_ ? row.scores[k] * (sums_[id] - row.inner_product) : sums_[id]);
    }
    for (int64_t k = 0; k < p_.top_k; ++k) {
      if (row.ids[k] >= 0) sums_[row.ids[k]] = 0;
    }
  }

  const RouteBackwardParams& p_;
  const bool over_all_;
  const int64_t padded_, rows_;
  float* e_;
  float* scores_;
  float* sums_;  // of the gradients of one row's experts; zeros in between
  Chosen* chosen_;
};

}  // namespace routing

}  // namespace moe::cpu::MOE_ISA
