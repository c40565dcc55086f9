// gather_rows: rows of x in the order of row_to_slot. Contract: moe/permute.h.
//
// A copy of bytes, in words of 16 where rows and pointers allow it, else in the widest that they do. A row's threads
// stand side by side, so that whole sectors move; each has several words in flight.
#include "cuda/common/fast_divide.h"
#include "cuda/common/launch_kernel.cuh"
#include "cuda/common/row_grid.cuh"
#include "cuda/permute/permute.h"

namespace moe::cuda {

namespace {

constexpr int kWordsPerThread = 4;

struct Gather {
  int64_t num_rows, num_slots;
  int64_t row_words, x_stride;  // in words
  const void* x;
  void* rows;
  const int32_t* row_to_slot;
  const int32_t* num_valid;
  FastDivide top_k;
  int row_threads_log2;
};

template <class Word>
__global__ void __launch_bounds__(kRowGridThreads) gather_rows_kernel(Gather p) {
  const RowPlace place(p.row_threads_log2, kWordsPerThread);
  if (place.row >= p.num_rows) return;
  const int32_t slot = p.row_to_slot[place.row];
  const bool exists = place.row < *p.num_valid && slot >= 0 && slot < p.num_slots;
  const Word* source = static_cast<const Word*>(p.x) + (exists ? p.top_k(slot) * p.x_stride : 0);
  Word* target = static_cast<Word*>(p.rows) + place.row * p.row_words;
  for (int64_t first = place.first; first < p.row_words; first += place.stride) {
    Word words[kWordsPerThread];
#pragma unroll
    for (int i = 0; i < kWordsPerThread; ++i) {
      const int64_t word = first + i * place.next;
      words[i] = Word{};
      if (exists && word < p.row_words) words[i] = source[word];
    }
#pragma unroll
    for (int i = 0; i < kWordsPerThread; ++i) {
      const int64_t word = first + i * place.next;
      if (word < p.row_words) target[word] = words[i];
    }
  }
}

template <class Word>
Outcome gather(const GatherRowsLaunch& g, Stream stream) {
  const GatherRowsParams& p = g.params;
  const int64_t words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
  const RowGrid grid = row_grid(p.num_rows, words, kWordsPerThread);
  const Gather gather = {.num_rows = p.num_rows,
                         .num_slots = g.num_tokens * p.top_k,
                         .row_words = words,
                         .x_stride = p.x_stride_bytes / static_cast<int64_t>(sizeof(Word)),
                         .x = p.x,
                         .rows = p.rows,
                         .row_to_slot = p.row_to_slot,
                         .num_valid = g.expert_offsets + g.num_experts,
                         // Slots are below 2^31 - 1: divided by that or more they are token 0.
                         .top_k = FastDivide(static_cast<uint32_t>(std::min<int64_t>(p.top_k, INT32_MAX))),
                         .row_threads_log2 = grid.row_threads_log2};
  return launch("gather_rows", gather_rows_kernel<Word>, grid.blocks, kRowGridThreads, 0, stream, gather);
}

}  // namespace

Outcome gather_rows(const GatherRowsLaunch& g, Stream stream) {
  const GatherRowsParams& p = g.params;
  if (p.num_rows < 0 || p.num_rows >= INT32_MAX || p.top_k < 1 || p.row_bytes < 0 || g.num_tokens < 0 ||
      g.num_tokens > INT64_MAX / p.top_k || g.num_experts < 0) {
    return {Status::kInvalidArgument};
  }
  if (p.row_bytes == 0) return {};
  const auto fits = [&](int64_t bytes) {
    return p.row_bytes % bytes == 0 && (p.x_stride_bytes % bytes == 0 || g.num_tokens <= 1) &&
           is_multiple(p.x, bytes) && is_multiple(p.rows, bytes);
  };
  if (fits(16)) return gather<uint4>(g, stream);
  if (fits(4)) return gather<uint32_t>(g, stream);
  if (fits(2)) return gather<uint16_t>(g, stream);
  return gather<uint8_t>(g, stream);
}

}  // namespace moe::cuda
