// The gradient of route for rows of any size and every dtype. One warp a row, which goes over it as often as it needs
// to; nothing is kept. Every entry is
// written without what the choices add, and those of chosen experts once more with it.
#include "cuda/common/launch_kernel.cuh"
#include "cuda/route/backward.h"
#include "cuda/route/choices.cuh"
#include "cuda/route/row.cuh"

namespace moe::cuda::routing {

namespace {

using Warp = Lanes<32>;

template <class T>
class GradientOfRow {
  using A = acc_t<T>;

 public:
  __device__ GradientOfRow(const RouteBackwardParams& p, int64_t token)
      : p_(p),
        rule_(p.rule),
        sanitize_(p.rule.nonfinite == NonFinite::kSanitize),
        softmax_before_(p.rule.score == Score::kSoftmax && !p.rule.softmax_after),
        logits_(static_cast<const T*>(p.logits) + token * p.logits_stride),
        ids_(p.topk_ids + token * p.top_k),
        incoming_(static_cast<const A*>(p.grad_weights) + token * p.top_k),
        out_(static_cast<T*>(p.grad_logits) + token * p.num_experts) {}

  __device__ void run() {
    bool valid = false;
    Warp::for_each(p_.top_k, [&](int64_t k) { valid |= is_valid(ids_[k]); });
    if (!Warp::any(valid)) {
      Warp::for_each(p_.num_experts, [&](int64_t i) { out_[i] = from_acc<T>(A(0)); });
      return;
    }
    const bool statistics = p_.grad_score_sums != nullptr || p_.grad_z_sum != nullptr;
    if (softmax_before_ || statistics) {
      row_softmax_ = Softmax<A>::template of<32>(p_.num_experts, [&](int64_t i) { return logit(i); });
    }
    if (rule_.softmax_after) {
      chosen_softmax_ = Softmax<A>::template of<32>(
          p_.top_k, [&](int64_t k) { return is_valid(ids_[k]) ? logit(ids_[k]) : -infinity(A()); });
    }
    find_sums();
    if (statistics) find_statistics();
    Warp::for_each(p_.num_experts, [&](int64_t i) { out_[i] = from_acc<T>(gradient(i, A(0))); });
    __syncwarp();
    Warp::for_each(p_.top_k, [&](int64_t k) {
      if (!is_valid(ids_[k])) return;
      // An id may stand more than once: its first place adds up all.
      A added = 0;
      for (int64_t j = 0; j < p_.top_k; ++j) {
        if (ids_[j] != ids_[k]) continue;
        if (j < k) return;
        added += sums_.contribution(rule_, choice(j));
      }
      out_[ids_[k]] = from_acc<T>(gradient(ids_[k], added));
    });
  }

 private:
  __device__ bool is_valid(int32_t id) const { return id >= 0 && id < p_.num_experts; }
  __device__ A logit(int64_t i) const { return sanitize_ ? sanitized(to_acc(logits_[i])) : to_acc(logits_[i]); }
  __device__ A grad_of_sum(int64_t i) const {
    return p_.grad_score_sums != nullptr ? static_cast<const A*>(p_.grad_score_sums)[i] : A(0);
  }

  __device__ Choice<A> choice(int64_t k) const {
    Choice<A> c = {};
    c.valid = is_valid(ids_[k]);
    if (!c.valid) return c;
    c.z = logit(ids_[k]);
    c.grad = incoming_[k] * static_cast<A>(rule_.scale);
    c.score = softmax_before_       ? row_softmax_.probability(c.z)
              : rule_.softmax_after ? chosen_softmax_.probability(c.z)
                                    : score_of(rule_.score, c.z);
    return c;
  }

  __device__ void find_sums() {
    A scores = 0, weighted = 0, inner_product = 0;
    Warp::for_each(p_.top_k, [&](int64_t k) {
      const Choice<A> c = choice(k);
      scores += c.score;
      weighted += c.grad * c.score;
    });
    sums_.scores = Warp::sum(scores) + static_cast<A>(rule_.eps);
    weighted = Warp::sum(weighted);
    if (rule_.renormalize) sums_.mean_gradient = weighted / sums_.scores;
    if (rule_.score != Score::kSoftmax) return;
    Warp::for_each(p_.top_k, [&](int64_t k) {
      const Choice<A> c = choice(k);
      if (c.valid) inner_product += sums_.score_gradient(rule_, c) * c.score;
    });
    sums_.inner_product = Warp::sum(inner_product);
  }

  __device__ void find_statistics() {
    if (p_.grad_z_sum != nullptr) {
      statistics_.by_probability = 2 * row_softmax_.z_slope(rule_.nonfinite) * *static_cast<const A*>(p_.grad_z_sum);
    }
    if (p_.grad_score_sums == nullptr) return;
    A scores = 0, weighted = 0;
    Warp::for_each(p_.num_experts, [&](int64_t i) {
      const A s = rule_.score == Score::kSoftmax ? row_softmax_.probability(logit(i)) : score_of(rule_.score, logit(i));
      scores += s;
      weighted += grad_of_sum(i) * s;
    });
    weighted = Warp::sum(weighted);
    scores = Warp::sum(scores);
    if (rule_.score != Score::kSoftmax) statistics_.score_sum = scores;
    statistics_.inner_product = weighted / statistics_.score_sum;
  }

  // Of logit i; added: by the choices that are expert i.
  __device__ A gradient(int64_t i, A added) const {
    if (sanitize_ && !(to_acc(logits_[i]) < infinity(A()))) return 0;
    A result = softmax_before_ ? A(0) : added;
    A by_probability = statistics_.by_probability;
    if (softmax_before_) by_probability += added - sums_.inner_product;
    if (p_.grad_score_sums != nullptr) {
      if (rule_.score == Score::kSoftmax) {
        by_probability += grad_of_sum(i) - statistics_.inner_product;
      } else {
        const A z = logit(i);
        result += statistics_.by_logit(rule_.score, z, score_of(rule_.score, z), grad_of_sum(i));
      }
    }
    const bool asks = softmax_before_ || p_.grad_z_sum != nullptr ||
                      (p_.grad_score_sums != nullptr && rule_.score == Score::kSoftmax);
    return asks ? result + row_softmax_.probability(logit(i)) * by_probability : result;
  }

  const RouteBackwardParams& p_;
  const RouteRule& rule_;
  const bool sanitize_, softmax_before_;
  const T* logits_;
  const int32_t* ids_;
  const A* incoming_;
  T* out_;
  Softmax<A> row_softmax_, chosen_softmax_;  // over all experts, and over the chosen ones
  ChoiceSums<A> sums_;
  StatisticsGradient<A> statistics_;
};

template <class T>
__global__ void __launch_bounds__(32) route_backward_any_kernel(const RouteBackwardParams p) {
  for (int64_t token = blockIdx.x; token < p.num_tokens; token += gridDim.x) GradientOfRow<T>(p, token).run();
}

}  // namespace

Outcome backward_any(const RouteBackwardParams& p, Stream stream) {
  const int64_t blocks = p.num_tokens < INT32_MAX ? p.num_tokens : INT32_MAX;
  return with_type(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    return launch("route_backward_any", route_backward_any_kernel<T>, dim3(static_cast<uint32_t>(blocks)), dim3(32), 0,
                  stream, p);
  });
}

}  // namespace moe::cuda::routing
