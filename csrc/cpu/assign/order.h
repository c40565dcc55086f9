// Scores as integers, and a total order of tokens by score: larger first, equal ones by the lower token.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace moe::cpu::assigning {

// In the order of the floats: NaN on top, -0 equal to 0.
inline int32_t rank(float x) {
  if (x != x) return INT32_MAX;
  const int32_t bits = std::bit_cast<int32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) & INT32_MAX);
}
inline int64_t rank(double x) {
  if (x != x) return INT64_MAX;
  const int64_t bits = std::bit_cast<int64_t>(x + 0.0);
  return bits ^ ((bits >> 63) & INT64_MAX);
}
inline float value_of(int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & INT32_MAX)); }
inline double value_of(int64_t key) { return std::bit_cast<double>(key ^ ((key >> 63) & INT64_MAX)); }

template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

template <class A>
class Entry;

template <>
class Entry<float> {
 public:
  Entry() = default;
  Entry(float score, int64_t token)
      : packed_((static_cast<int64_t>(rank(score)) << 32) | (INT64_C(0xffffffff) - token)) {}
  float score() const { return value_of(static_cast<int32_t>(packed_ >> 32)); }
  int32_t token() const { return static_cast<int32_t>(INT64_C(0xffffffff) - (packed_ & INT64_C(0xffffffff))); }
  bool operator>(const Entry& other) const { return packed_ > other.packed_; }

 private:
  int64_t packed_;
};

template <>
class Entry<double> {
 public:
  Entry() = default;
  Entry(double score, int64_t token) : key_(rank(score)), token_(token) {}
  double score() const { return value_of(key_); }
  int32_t token() const { return static_cast<int32_t>(token_); }
  bool operator>(const Entry& other) const { return key_ != other.key_ ? key_ > other.key_ : token_ < other.token_; }

 private:
  int64_t key_, token_;
};

}  // namespace moe::cpu::assigning
