// The auction in rounds: every token without an expert makes its offer, in parallel; then each expert keeps the best.
#include <algorithm>
#include <functional>
#include <limits>
#include <new>
#include <vector>

#include "cpu/assign/assign.h"
#include "cpu/assign/order.h"
#include "cpu/scratch.h"

namespace moe::cpu {

namespace {

using assigning::Entry;
using assigning::kInfinity;

constexpr int64_t kCellsPerRange = 16384;  // of tokens times experts: less costs more to hand out than to do

template <class A>
struct Offer {
  int32_t expert;
  A price;
};

template <class A>
class Auction {
 public:
  explicit Auction(const AuctionParams& p)
      : p_(p),
        memory_(p.num_tokens * p.num_experts * static_cast<int64_t>(sizeof(A))),
        scores_(static_cast<A*>(memory_.data())),
        offers_(static_cast<size_t>(p.num_tokens)),
        prices_(static_cast<size_t>(p.num_experts), A(0)),
        holders_(static_cast<size_t>(p.num_experts)) {}

  Status run(const Parallel& parallel) {
    if (scores_ == nullptr) return Status::kUnsupported;
    read(parallel);
    const int64_t bidders = static_cast<int64_t>(waiting_.size());
    places_ = (bidders + p_.num_experts - 1) / p_.num_experts;
    const int64_t grain = std::max<int64_t>(kCellsPerRange / p_.num_experts, 1);
    for (int64_t round = 0; round < p_.max_rounds && !waiting_.empty(); ++round) {
      parallel.for_ranges(static_cast<int64_t>(waiting_.size()), grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) offers_[waiting_[i]] = offer_of(waiting_[i]);
      });
      sell();
    }
    for (int64_t e = 0; e < p_.num_experts; ++e) {
      for (const Entry<A>& holder : holders_[e]) p_.expert_ids[holder.token()] = static_cast<int32_t>(e);
    }
    place_the_rest();
    return Status::kOk;
  }

 private:
  static constexpr A kLargest = std::numeric_limits<A>::max();
  static constexpr int64_t kLanes = 16;

  static bool is_finite(A x) { return x - x == 0; }

  struct Span {
    A low = kInfinity<A>, high = -kInfinity<A>;

    void add(const Span& other) {
      low = std::min(low, other.low);
      high = std::max(high, other.high);
    }
  };

  // Of the finite ones.
  static Span span_of(const A* scores, int64_t count) {
    A low[kLanes], high[kLanes];
    std::fill(low, low + kLanes, kInfinity<A>);
    std::fill(high, high + kLanes, -kInfinity<A>);
    const auto add = [&](int64_t lane, A x) {
      low[lane] = std::min(low[lane], is_finite(x) ? x : kInfinity<A>);
      high[lane] = std::max(high[lane], is_finite(x) ? x : -kInfinity<A>);
    };
    int64_t e = 0;
    for (; e + kLanes <= count; e += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) add(l, scores[e + l]);
    }
    for (; e < count; ++e) add(0, scores[e]);
    return {*std::min_element(low, low + kLanes), *std::max_element(high, high + kLanes)};
  }

  bool takes_part(int64_t token) const { return p_.token_mask == nullptr || p_.token_mask[token] != 0; }
  const A* given(int64_t token) const { return static_cast<const A*>(p_.scores) + token * p_.scores_stride; }

  // Finite scores from 0 up: prices then have the precision of what they are compared with.
  void read(const Parallel& parallel) {
    const int64_t tokens = std::max<int64_t>(kCellsPerRange / p_.num_experts, 1);
    const int64_t chunks = (p_.num_tokens + tokens - 1) / tokens;
    const auto for_tokens = [&](const auto& body) {
      parallel.for_each(chunks, [&](int64_t chunk) {
        const int64_t end = std::min((chunk + 1) * tokens, p_.num_tokens);
        for (int64_t t = chunk * tokens; t < end; ++t) {
          if (takes_part(t)) body(t, chunk);
        }
      });
    };
    std::vector<Span> spans(static_cast<size_t>(chunks));
    for_tokens([&](int64_t t, int64_t chunk) { spans[chunk].add(span_of(given(t), p_.num_experts)); });
    Span all;
    for (const Span& span : spans) all.add(span);
    if (all.low > all.high) all = {A(0), A(0)};
    const A low = all.low, high = all.high;
    for_tokens([&](int64_t t, int64_t) {
      const A* __restrict row = given(t);
      A* __restrict own = scores_ + t * p_.num_experts;
      for (int64_t e = 0; e < p_.num_experts; ++e) own[e] = is_finite(row[e]) ? std::min(row[e] - low, kLargest) : A(0);
    });
    for (int64_t t = 0; t < p_.num_tokens; ++t) {
      p_.expert_ids[t] = -1;
      if (takes_part(t)) waiting_.push_back(static_cast<int32_t>(t));
    }
    epsilon_ = std::max(std::min(high - low, kLargest) / A(50), A(1e-4));
  }

  Offer<A> offer_of(int64_t token) const {
    const A* __restrict scores = scores_ + token * p_.num_experts;
    const A* __restrict prices = prices_.data();
    A bests[kLanes], seconds[kLanes];
    std::fill(bests, bests + kLanes, -kInfinity<A>);
    std::fill(seconds, seconds + kLanes, -kInfinity<A>);
    int64_t e = 0;
    for (; e + kLanes <= p_.num_experts; e += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) add(scores[e + l] - prices[e + l], bests[l], seconds[l]);
    }
    for (; e < p_.num_experts; ++e) add(scores[e] - prices[e], bests[0], seconds[0]);
    for (int64_t l = 1; l < kLanes; ++l) {
      seconds[0] = std::max(seconds[0], seconds[l]);
      add(bests[l], bests[0], seconds[0]);
    }
    int64_t expert = 0;
    while (expert + 1 < p_.num_experts && scores[expert] - prices[expert] != bests[0]) ++expert;
    const A second = p_.num_experts == 1 ? bests[0] : seconds[0];
    return {static_cast<int32_t>(expert), (scores[expert] - second) + epsilon_};
  }

  static void add(A value, A& best, A& second) {
    second = std::max(second, std::min(best, value));
    best = std::max(best, value);
  }

  // Offers become holders, the worst holders of a full expert wait for the next round.
  void sell() {
    for (const int32_t t : waiting_) holders_[offers_[t].expert].emplace_back(offers_[t].price, t);
    waiting_.clear();
    const auto places = static_cast<std::ptrdiff_t>(places_);
    for (int64_t e = 0; e < p_.num_experts; ++e) {
      std::vector<Entry<A>>& holders = holders_[e];
      const int64_t size = static_cast<int64_t>(holders.size());
      // One that had a price before is full, and without a new offer remains as it is.
      if (size < places_ || (size == places_ && prices_[e] > 0)) continue;
      std::nth_element(holders.begin(), holders.begin() + places - 1, holders.end(), std::greater<>());
      for (auto holder = holders.begin() + places; holder != holders.end(); ++holder) {
        waiting_.push_back(holder->token());
      }
      holders.resize(static_cast<size_t>(places_));
      prices_[e] = holders.back().score();
    }
  }

  void place_the_rest() {
    std::sort(waiting_.begin(), waiting_.end());
    for (const int32_t t : waiting_) {
      const A* scores = scores_ + static_cast<int64_t>(t) * p_.num_experts;
      int64_t expert = -1;
      for (int64_t e = 0; e < p_.num_experts; ++e) {
        if (static_cast<int64_t>(holders_[e].size()) == places_) continue;
        if (expert < 0 || scores[e] > scores[expert]) expert = e;
      }
      holders_[expert].emplace_back(A(0), t);
      p_.expert_ids[t] = static_cast<int32_t>(expert);
    }
  }

  const AuctionParams& p_;
  const Workspace memory_;
  A* scores_;
  std::vector<Offer<A>> offers_;
  std::vector<A> prices_;
  std::vector<std::vector<Entry<A>>> holders_;
  std::vector<int32_t> waiting_;
  int64_t places_ = 0;  // of an expert
  A epsilon_ = 0;
};

}  // namespace

Status auction(const AuctionParams& params, const Parallel& parallel) {
  if (params.num_tokens < 0 || params.num_experts < 1 || params.max_rounds < 0) return Status::kInvalidArgument;
  if (params.num_tokens == 0) return Status::kOk;
  try {
    return params.dtype == DType::kFloat64 ? Auction<double>(params).run(parallel)
                                           : Auction<float>(params).run(parallel);
  } catch (const std::bad_alloc&) {
    return Status::kUnsupported;
  }
}

}  // namespace moe::cpu
