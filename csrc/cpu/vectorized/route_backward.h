// The gradient of route, from logits and ids alone: the forward's scores are computed again.
//
// With s the scores of the chosen experts, g their incoming gradients times the scale and S = sum of s + eps:
//   renormalised:   dL/ds_k = (g_k - sum_j g_j s_j / S) / S, else g_k
//   softmax:        dL/dz_i = s_i (dL/ds_i - sum_j dL/ds_j s_j), over all experts, or over the chosen ones
//   other scores:   dL/dz_k = dL/ds_k times the slope of the score
// Statistics add, with G their gradient by expert, p the softmax over all experts and C the sum of all scores:
//   softmax:        p_i (G_i - sum_j G_j p_j)
//   other scores:   (G_i - sum_j G_j s_j / C) / C times the slope of the score
//   z:              2 logsumexp(z) p_i times its gradient
// Rows are worked on in tiles and the chosen experts in pieces, both on the stack; what does not fit is computed again.
#pragma once

#include "cpu/vectorized/route_backward_tile.h"

namespace moe::cpu::MOE_ISA {

namespace routing {

inline constexpr int64_t kTile = 1024;
inline constexpr int64_t kPiece = 256;
inline constexpr int64_t kPadding = 16;  // divides kPiece

template <class T>
class RowGradient {
  using A = acc_t<T>;

 public:
  explicit RowGradient(const RouteBackwardParams& params)
      : p_(params),
        softmax_(p_.rule.score == Score::kSoftmax),
        sanitize_(p_.rule.nonfinite == NonFinite::kSanitize),
        sum_gradient_(static_cast<const A*>(p_.grad_score_sums)),
        z_gradient_(static_cast<const A*>(p_.grad_z_sum)),
        scale_(static_cast<A>(p_.rule.scale)) {}

  void run(int64_t token) {
    logits_ = static_cast<const T*>(p_.logits) + token * p_.logits_stride;
    ids_ = p_.topk_ids + token * p_.top_k;
    incoming_ = static_cast<const A*>(p_.grad_weights) + token * p_.top_k;
    T* out = static_cast<T*>(p_.grad_logits) + token * p_.num_experts;
    loaded_piece_ = loaded_tile_ = -1;
    scores_known_ = false;
    num_valid_ = 0;
    for (int64_t k = 0; k < p_.top_k; ++k) num_valid_ += is_valid(ids_[k]) ? 1 : 0;
    if (num_valid_ == 0) {
      for (int64_t i = 0; i < p_.num_experts; ++i) out[i] = from_acc<T>(A(0));
      return;
    }
    if (softmax_) find_normalizer();
    scores_known_ = true;
    loaded_piece_ = -1;
    find_sums();
    if (has_statistics()) find_statistics();
    for (int64_t begin = 0; begin < p_.num_experts; begin += kTile) write_tile(begin, out);
  }

 private:
  bool has_statistics() const { return sum_gradient_ != nullptr || z_gradient_ != nullptr; }
  bool softmax_over_all() const { return softmax_ && !p_.rule.softmax_after; }
  bool is_valid(int32_t id) const { return id >= 0 && id < p_.num_experts; }
  int64_t num_pieces() const { return (p_.top_k + kPiece - 1) / kPiece; }
  int64_t num_tiles() const { return (p_.num_experts + kTile - 1) / kTile; }

  // Fills piece_z_ and, once they can be known, piece_s_ and piece_g_; invalid ids count as nothing. Returns its size.
  int64_t load_piece(int64_t piece) {
    const int64_t begin = piece * kPiece;
    const int64_t size = p_.top_k - begin < kPiece ? p_.top_k - begin : kPiece;
    if (loaded_piece_ == piece) return size;
    loaded_piece_ = piece;
    for (int64_t j = 0; j < size; ++j) {
      const int32_t id = ids_[begin + j];
      const A z = is_valid(id) ? to_acc(logits_[id]) : -infinity(A());
      piece_z_[j] = sanitize_ ? sanitized(z) : z;
    }
    for (int64_t j = size; j % kPadding != 0; ++j) piece_z_[j] = -infinity(A());
    if (!scores_known_) return size;
    score_piece(begin, size);
    for (int64_t j = 0; j < size; ++j) {
      const bool valid = is_valid(ids_[begin + j]);
      piece_s_[j] = valid ? piece_s_[j] : A(0);
      piece_g_[j] = valid ? incoming_[begin + j] * scale_ : A(0);
    }
    return size;
  }

  void score_piece(int64_t begin, int64_t size) {
    const A maximum = maximum_, sum = sum_of_exps_;
    switch (p_.rule.score) {
      case Score::kSoftmax:
        if (softmax_over_all() && num_tiles() == 1) {
          for (int64_t j = 0; j < size; ++j) {
            piece_s_[j] = is_valid(ids_[begin + j]) ? tile_e_[ids_[begin + j]] / sum : A(0);
          }
          return;
        }
        return map_piece(size, [=](A z) __attribute__((always_inline)) { return exp(z - maximum) / sum; });
      case Score::kSigmoid:
        return map_piece(size, [](A z) __attribute__((always_inline)) { return sigmoid(z); });
      case Score::kSqrtSoftplus:
        return map_piece(size, [](A z) __attribute__((always_inline)) { return square_root(softplus(z)); });
      case Score::kNone:
        return map_piece(size, [](A z) __attribute__((always_inline)) { return z; });
    }
  }

  // piece_s_ = function(piece_z_), padding included, so that even a few experts are one vector.
  template <class Function>
  void map_piece(int64_t size, const Function& function) {
    for (int64_t j = 0; j < size; j += kPadding) {
#pragma GCC unroll 1
      for (int64_t l = j; l < j + kPadding; ++l) piece_s_[l] = function(piece_z_[l]);
    }
  }

  // Fills tile_z_, padded with -inf to whole blocks. Returns their number.
  int64_t load_tile(int64_t tile) {
    const int64_t begin = tile * kTile;
    const int64_t size = p_.num_experts - begin < kTile ? p_.num_experts - begin : kTile;
    const int64_t blocks = blocks_of(size);
    if (loaded_tile_ == tile) return blocks;
    loaded_tile_ = tile;
    load(logits_ + begin, size, tile_z_);
    for (int64_t i = size; i < blocks * kBlock; ++i) tile_z_[i] = -infinity(A());
    if (sanitize_) {
      for (int64_t i = 0; i < blocks * kBlock; ++i) tile_z_[i] = sanitized(tile_z_[i]);
    }
    return blocks;
  }

  void find_normalizer() {
    if (p_.rule.softmax_after) {
      key_t<A> best = KeyOf<A>::kLowest;
      sum_of_exps_ = 0;
      for (int64_t c = 0; c < num_pieces(); ++c) {
        const int64_t size = load_piece(c);
        for (int64_t j = 0; j < size; ++j) best = rank(piece_z_[j]) > best ? rank(piece_z_[j]) : best;
      }
      maximum_ = value_of(best);
      for (int64_t c = 0; c < num_pieces(); ++c) {
        const int64_t size = load_piece(c);
        const A maximum = maximum_;
        map_piece(size, [=](A z) __attribute__((always_inline)) { return exp(z - maximum); });
        for (int64_t j = 0; j < size; ++j) sum_of_exps_ += is_valid(ids_[c * kPiece + j]) ? piece_s_[j] : A(0);
      }
      return;
    }
    whole_ = softmax_of_row();
    maximum_ = whole_.maximum;
    sum_of_exps_ = whole_.sum;
  }

  // Over all experts. Leaves the exponentials in tile_e_ if there is but one tile.
  Softmax<A> softmax_of_row() {
    key_t<A> best = KeyOf<A>::kLowest;
    for (int64_t c = 0; c < num_tiles(); ++c) {
      const int64_t blocks = load_tile(c);
      const key_t<A> key = rank(row_maximum(tile_z_, blocks));
      best = key > best ? key : best;
    }
    const A maximum = value_of(best);
    A sum = 0;
    for (int64_t c = 0; c < num_tiles(); ++c) {
      const int64_t blocks = load_tile(c);
      exponentiate_tile(blocks, maximum);
      sum += row_sum(tile_e_, blocks);
    }
    return {maximum, sum};
  }

  void exponentiate_tile(int64_t blocks, A maximum) {
    const A* __restrict z = tile_z_;
    A* __restrict e = tile_e_;
    for (int64_t i = 0; i < blocks * kBlock; ++i) e[i] = exp(z[i] - maximum);
  }

  // Gradient of the loss by the score of the j-th expert of the loaded piece.
  A score_gradient(int64_t j) const {
    return p_.rule.renormalize ? (piece_g_[j] - mean_gradient_) / score_sum_ : piece_g_[j];
  }

  void find_sums() {
    score_sum_ = 0;
    A weighted = 0;
    for (int64_t c = 0; c < num_pieces(); ++c) {
      const int64_t size = load_piece(c);
      for (int64_t j = 0; j < size; ++j) {
        score_sum_ += piece_s_[j];
        weighted += piece_g_[j] * piece_s_[j];
      }
    }
    score_sum_ += static_cast<A>(p_.rule.eps);
    mean_gradient_ = p_.rule.renormalize ? weighted / score_sum_ : A(0);
    inner_product_ = 0;
    if (!softmax_) return;
    for (int64_t c = 0; c < num_pieces(); ++c) {
      const int64_t size = load_piece(c);
      for (int64_t j = 0; j < size; ++j) {
        inner_product_ += is_valid(ids_[c * kPiece + j]) ? score_gradient(j) * piece_s_[j] : A(0);
      }
    }
  }

  // Leaves in tile_s_ the scores whose sums are the statistics.
  void score_tile(int64_t blocks) {
    const A* __restrict z = tile_z_;
    A* __restrict s = tile_s_;
    if (p_.rule.score == Score::kSigmoid) {
      for (int64_t i = 0; i < blocks * kBlock; ++i) s[i] = sigmoid(z[i]);
    } else {
      for (int64_t i = 0; i < blocks * kBlock; ++i) s[i] = square_root(softplus(z[i]));
    }
  }

  void find_statistics() {
    if (!softmax_over_all() && (softmax_ || z_gradient_ != nullptr)) whole_ = softmax_of_row();
    by_probability_ = 0;
    if (z_gradient_ != nullptr) {
      const A lse = whole_.maximum + natural_log(whole_.sum);
      if (!sanitize_ || lse * lse < infinity(A())) by_probability_ = 2 * lse * *z_gradient_;
    }
    total_score_ = 1;
    statistics_product_ = 0;
    if (sum_gradient_ == nullptr) return;
    A total = 0, product = 0;
    for (int64_t c = 0; c < num_tiles(); ++c) {
      const int64_t begin = c * kTile, blocks = load_tile(c);
      const int64_t size = p_.num_experts - begin < kTile ? p_.num_experts - begin : kTile;
      if (!softmax_) {
        score_tile(blocks);
      } else if (num_tiles() > 1) {
        exponentiate_tile(blocks, whole_.maximum);
      }
      const A* __restrict s = softmax_ ? tile_e_ : tile_s_;
      A* __restrict products = tile_g_;
      for (int64_t i = 0; i < size; ++i) products[i] = sum_gradient_[begin + i] * s[i];
      for (int64_t i = size; i < blocks * kBlock; ++i) products[i] = 0;
      product += row_sum(products, blocks);
      for (int64_t i = 0; i < size; ++i) products[i] = s[i];
      total += row_sum(products, blocks);
    }
    total_score_ = total;
    statistics_product_ = product / total;
  }

  // grad += what the statistics ask of this tile. Where all scores have underflowed, so have their slopes.
  void add_statistics_gradient(int64_t begin, int64_t size, A* __restrict grad) {
    const int64_t blocks = load_tile(begin / kTile);
    const A* __restrict sum_gradient = sum_gradient_ + (sum_gradient_ != nullptr ? begin : 0);
    if (softmax_ || z_gradient_ != nullptr) {
      if (num_tiles() > 1) exponentiate_tile(blocks, whole_.maximum);
      const A* __restrict e = tile_e_;
      const A sum = whole_.sum, constant = by_probability_, product = statistics_product_;
      if (softmax_ && sum_gradient_ != nullptr) {
        for (int64_t i = 0; i < size; ++i) grad[i] += e[i] / sum * (sum_gradient[i] - product + constant);
      } else {
        for (int64_t i = 0; i < size; ++i) grad[i] += e[i] / sum * constant;
      }
    }
    if (softmax_ || sum_gradient_ == nullptr || is_tiny(total_score_)) return;
    score_tile(blocks);
    for (int64_t i = 0; i < size; ++i) {
      grad[i] +=
          (sum_gradient[i] - statistics_product_) / total_score_ * slope_of(p_.rule.score, tile_z_[i], tile_s_[i]);
    }
  }

  void write_tile(int64_t begin, T* __restrict out) {
    const int64_t size = p_.num_experts - begin < kTile ? p_.num_experts - begin : kTile;
    const bool whole_row = softmax_over_all();
    A* __restrict grad = tile_g_;
    for (int64_t i = 0; i < size; ++i) grad[i] = 0;
    // Ids may repeat in what a caller hands in, so contributions are added up here and rounded once.
    for (int64_t c = 0; c < num_pieces(); ++c) {
      const int64_t piece = load_piece(c);
      for (int64_t j = 0; j < piece; ++j) {
        const int32_t id = ids_[c * kPiece + j];
        if (!is_valid(id) || id < begin || id >= begin + size) continue;
        const A by_score = score_gradient(j);
        grad[id - begin] += whole_row  ? by_score
                            : softmax_ ? piece_s_[j] * (by_score - inner_product_)
                                       : by_score * slope_of(p_.rule.score, piece_z_[j], piece_s_[j]);
      }
    }
    if (whole_row) {
      const int64_t blocks = load_tile(begin / kTile);
      if (num_tiles() > 1) exponentiate_tile(blocks, maximum_);
      const A* __restrict e = tile_e_;
      const A sum = sum_of_exps_, inner_product = inner_product_;
      for (int64_t i = 0; i < size; ++i) grad[i] = e[i] / sum * (grad[i] - inner_product);
    }
    if (has_statistics()) add_statistics_gradient(begin, size, grad);
    if (sanitize_) {
      const T* __restrict logits = logits_ + begin;
      for (int64_t i = 0; i < size; ++i) grad[i] = to_acc(logits[i]) < infinity(A()) ? grad[i] : A(0);
    }
    out += begin;
    for (int64_t i = 0; i < size; ++i) out[i] = from_acc<T>(grad[i]);
  }

  const RouteBackwardParams& p_;
  const bool softmax_;
  const bool sanitize_;
  const A* sum_gradient_;
  const A* z_gradient_;
  const A scale_;
  const T* logits_ = nullptr;
  const int32_t* ids_ = nullptr;
  const A* incoming_ = nullptr;
  int64_t num_valid_ = 0;
  int64_t loaded_piece_ = -1;
  int64_t loaded_tile_ = -1;
  bool scores_known_ = false;
  A maximum_ = 0;
  A sum_of_exps_ = 0;
  A score_sum_ = 0;           // S
  A mean_gradient_ = 0;       // sum_j g_j s_j / S
  A inner_product_ = 0;       // sum_j dL/ds_j s_j
  Softmax<A> whole_;          // over all experts
  A total_score_ = 1;         // C; for softmax the sum of the exponentials
  A statistics_product_ = 0;  // sum_j G_j p_j, or sum_j G_j s_j / C
  A by_probability_ = 0;      // 2 logsumexp(z) times its gradient
  A piece_z_[kPiece];
  A piece_s_[kPiece];
  A piece_g_[kPiece];
  alignas(64) A tile_z_[kTile];
  alignas(64) A tile_e_[kTile];
  alignas(64) A tile_s_[kTile];
  alignas(64) A tile_g_[kTile];
};

template <class T>
static void backward(const RouteBackwardParams& p, int64_t begin, int64_t end) {
  RowGradient<T> gradient(p);
  if constexpr (sizeof(acc_t<T>) == sizeof(float)) {
    const Memory memory(GradientTile<T>::serves(p) ? GradientTile<T>::bytes(blocks_of(p.num_experts) * kBlock) : 64);
    if (GradientTile<T>::serves(p) && memory.data() != nullptr) {
      GradientTile<T> tile(p, memory.data());
      const auto other = [&](int64_t token) { gradient.run(token); };
      for (int64_t t = begin; t < end; t += tile.num_rows()) {
        tile.run(t, t + tile.num_rows() < end ? t + tile.num_rows() : end, other);
      }
      return;
    }
  }
  for (int64_t t = begin; t < end; ++t) gradient.run(t);
}

}  // namespace routing

static void route_backward(const RouteBackwardParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat32:
      return routing::backward<float>(p, begin, end);
    case DType::kBFloat16:
      return routing::backward<bf16>(p, begin, end);
    case DType::kFloat16:
      return routing::backward<fp16>(p, begin, end);
    case DType::kFloat64:
      return routing::backward<double>(p, begin, end);
  }
}

}  // namespace moe::cpu::MOE_ISA
