// The left operand of soft_mix's products on tensor cores: weights that are formed between their logits in global
// memory and a tile of shared memory, a step of the inner dimension at a time.
//
// The tile is [kTokens][kSlots], as logits lie in memory, whichever of the two is the inner dimension: ldmatrix
// transposes or not. A thread has a quad of four slots in each of kCount tokens. load() asks for the logits of a step,
// store() a step later makes weights of them, so that none waits for its logits. Quads are neighbours in memory, or
// stand kGroups apart where logits don't come in aligned quads: then single loads are coalesced too.
//
// What is outside the logits, and tokens that are left out, get zeros whatever the logits are.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/ptx/approximate.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/logarithm.cuh"
#include "cuda/ptx/store_shared.cuh"
#include "moe/soft.h"

namespace moe::cuda::mma {

template <class T, int kTokens, int kSlots, int kThreads, bool kTokensInner>
class FormedWeights {
  static constexpr int kGroups = kSlots / 4, kLines = kThreads / kGroups;
  static constexpr int kCount = 4;
  static_assert(kCount * kLines == kTokens && kThreads % kGroups == 0);

 public:
  // Rows are so far apart that 8 rows of a matrix are in different banks.
  static constexpr int kPitch = kSlots * static_cast<int>(sizeof(T)) + 16, kBytes = kTokens * kPitch;

  // outer: the block's first slot (kTokensInner) or token.
  __device__ FormedWeights(const SoftMixParams& p, int64_t batch, int outer, bool quads, int thread)
      : dtype_(p.logits_dtype), quads_(quads), dispatch_(p.dispatch) {
    const int line = line_of(thread), group = thread % kGroups;
    num_tokens_ = static_cast<int>(p.num_tokens);
    num_slots_ = static_cast<int>(p.num_slots);
    token_ = (kTokensInner ? 0 : outer) + line;
    slot_ = (kTokensInner ? outer : 0) + (quads ? group * 4 : group);
    to_ = line * kPitch + (quads ? group * 8 : group * 2);
    const int64_t size = is_float() ? 4 : 2;
    line_bytes_ = p.logits_stride * kLines * size;
    from_ =
        static_cast<const char*>(p.logits) + (batch * p.logits_batch_stride + token_ * p.logits_stride + slot_) * size;
    mask_ = p.token_mask == nullptr ? nullptr : p.token_mask + batch * num_tokens_;
    const int64_t results = p.dispatch ? p.num_slots : p.num_tokens;
    max_of_ = static_cast<const float*>(p.statistics) + batch * results;
    scale_distance_ = p.batch * results;
    if (kTokensInner == dispatch_) find_statistics();
  }

  // The next step's logits.
  __device__ void load() {
    if (is_float()) {
      load_as<uint4, uint32_t>();
    } else {
      load_as<uint2, uint16_t>();
    }
    find_visible();
    if (kTokensInner != dispatch_) find_statistics();
    if constexpr (kTokensInner) {
      token_ += kTokens;
      from_ += kCount * line_bytes_;
    } else {
      slot_ += kSlots;
      from_ += kSlots * (is_float() ? 4 : 2);
    }
  }

  // Weights of what was loaded last, to the tile.
  __device__ void store(unsigned char* tile) const {
    float logits[kCount][4];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (is_float()) {
#pragma unroll
        for (int j = 0; j < 4; ++j) logits[i][j] = __uint_as_float(raw_[i][j]);
      } else if (dtype_ == DType::kBFloat16) {
        unpack_quad<__nv_bfloat16>(raw_[i], logits[i]);
      } else {
        unpack_quad<__half>(raw_[i], logits[i]);
      }
    }
    if (dispatch_) {
      form(tile, logits, [](int, int j) { return j; });
    } else {
      form(tile, logits, [](int i, int) { return i; });
    }
  }

 private:
  __device__ bool is_float() const { return dtype_ == DType::kFloat32; }

  // Where lanes store quads of two lines at a time, these are in different banks: 4 lines apart.
  static __device__ int line_of(int thread) {
    const int line = thread / kGroups;
    return kGroups == 8 ? (line & ~7) | (line & 1) << 2 | (line >> 1 & 3) : line;
  }

  template <class Quad, class One>
  __device__ void load_as() {
    if (quads_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (!is_there(i)) continue;
        reinterpret_cast<Quad&>(raw_[i]) = *reinterpret_cast<const Quad*>(from_ + i * line_bytes_);
      }
      return;
    }
    constexpr int kPerWord = 4 / sizeof(One);
    const uint32_t nothing = sizeof(One) == 4 ? 0xff800000u : dtype_ == DType::kBFloat16 ? 0xff80u : 0xfc00u;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!is_there(i)) continue;
      const One* const line = reinterpret_cast<const One*>(from_ + i * line_bytes_);
      uint32_t ones[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) ones[j] = slot_ + j * kGroups < num_slots_ ? line[j * kGroups] : nothing;
#pragma unroll
      for (int j = 0; j < 4 / kPerWord; ++j) {
        raw_[i][j] = kPerWord == 1 ? ones[j] : ones[j * kPerWord] | ones[(j * kPerWord + 1) % 4] << 16;
      }
    }
  }

  // Whether line i has any of the thread's logits.
  __device__ bool is_there(int i) const { return token_ + i * kLines < num_tokens_ && slot_ < num_slots_; }

  template <class L>
  static __device__ void unpack_quad(const uint32_t (&words)[4], float (&logits)[4]) {
    unpack<L>(words[0], logits[0], logits[1]);
    unpack<L>(words[1], logits[2], logits[3]);
  }

  // Which lines of the step have weights.
  __device__ void find_visible() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) visible_[i] = is_there(i) ? 1 : 0;
    if (mask_ == nullptr) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (is_there(i)) visible_[i] = mask_[token_ + i * kLines];
    }
  }

  // Of the step's slots, or of its tokens.
  __device__ void find_statistics() {
    if (dispatch_ && quads_) {
      Vector<float, 4> max = {}, scale = {};
      if (slot_ < num_slots_) max = load_floats(slot_), scale = load_floats(scale_distance_ + slot_);
#pragma unroll
      for (int i = 0; i < 4; ++i) max_[i] = max.values[i], scale_[i] = scale.values[i];
      return;
    }
    const int first = dispatch_ ? slot_ : token_, distance = dispatch_ ? kGroups : kLines;
    const int end = dispatch_ ? num_slots_ : num_tokens_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + i * distance;
      max_[i] = at < end ? max_of_[at] : 0.0f;
      scale_[i] = at < end ? max_of_[scale_distance_ + at] : 0.0f;
    }
  }

  __device__ Vector<float, 4> load_floats(int64_t at) const { return moe::cuda::load<4>(max_of_ + at); }

  // statistic_of(token, slot): which of the four belong to a logit.
  template <class StatisticOf>
  __device__ void form(unsigned char* tile, const float (&logits)[kCount][4], const StatisticOf& statistic_of) const {
    constexpr float kLog2E = 1.44269504f;
    float shift[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) shift[i] = ptx::log2_approximate(scale_[i]);
    uint32_t weights[kCount][2];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int n = statistic_of(i, j);
        w[j] = ptx::exp2_approximate(fmaf(logits[i][j] - max_[n], kLog2E, shift[n]));
      }
      weights[i][0] = visible_[i] != 0 ? pack<T>(w[0], w[1]) : 0;
      weights[i][1] = visible_[i] != 0 ? pack<T>(w[2], w[3]) : 0;
    }
    unsigned char* const to = tile + to_;
    if (quads_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        ptx::store_shared(ptx::shared_address(to + i * kLines * kPitch), __uint_as_float(weights[i][0]),
                          __uint_as_float(weights[i][1]));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        uint16_t* const line = reinterpret_cast<uint16_t*>(to + i * kLines * kPitch);
#pragma unroll
        for (int j = 0; j < 4; ++j) line[j * kGroups] = static_cast<uint16_t>(weights[i][j / 2] >> j % 2 * 16);
      }
    }
  }

  DType dtype_;
  bool quads_, dispatch_;
  int num_tokens_, num_slots_;
  int token_, slot_;  // of the next step
  uint32_t to_;
  const char* from_;
  int64_t line_bytes_;
  const uint8_t* mask_;
  const float* max_of_;
  int64_t scale_distance_;
  alignas(16) uint32_t raw_[kCount][4] = {};
  float max_[4], scale_[4];
  uint32_t visible_[kCount];
};

}  // namespace moe::cuda::mma
