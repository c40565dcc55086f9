// permute: a stable counting sort of slots by expert. Contract: moe/permute.h.
//
// Slots are cut into ranges, one per warp. Each warp counts its slots per expert; a prefix sum over (expert, range)
// gives each warp the first row of its slots of each expert; then each warp walks its slots in order, 32 at a time,
// where lanes with the same expert find each other by a match. Nothing depends on which warp is first: atomics only
// count.
//
// Few slots: one block does it all. Many: chunks of slots are blocks, and the three parts are launches. Slots that a
// capacity drops are those whose rank in their expert is too high. Where whole choices come first, a sort in that order
// marks who stays (in slot_to_row, which has the right size), and the sort proper reads the marks as ids.
#include "cuda/common/launch_kernel.cuh"
#include "cuda/permute/permute.h"
#include "cuda/permute/permute_plan.h"
#include "cuda/permute/rank_per_warp.cuh"
#include "cuda/permute/tile_scan.cuh"

namespace moe::cuda {

namespace {

constexpr int kBlockThreads = 1024;  // where one block does everything
constexpr int kCountThreads = 256;
constexpr int32_t kNoLimit = INT32_MAX;

// Where the rows go, and how many an expert may have.
struct Rows {
  int32_t* expert_offsets;
  int32_t* row_to_slot;
  int32_t* slot_to_row;
  int32_t capacity;
  int32_t most;  // of all experts

  __device__ void place(uint32_t slot, int32_t expert, int32_t row) const {
    if (expert < 0 || (capacity != kNoLimit && row >= expert_offsets[expert + 1])) row = -1;
    if (row >= 0) row_to_slot[row] = static_cast<int32_t>(slot);
    slot_to_row[slot] = row;
  }

  __device__ void mark(uint32_t slot, int32_t expert, int32_t rank) const {
    slot_to_row[slot] = rank < capacity ? expert : -1;
  }

  // Rows without a slot in begin .. end.
  __device__ void clear(uint32_t num_experts, uint32_t begin, uint32_t end) const {
    begin = max(begin, static_cast<uint32_t>(expert_offsets[num_experts]));
    for (uint32_t row = begin + threadIdx.x; row < end; row += blockDim.x) row_to_slot[row] = -1;
  }
};

// One block.

template <class Id>
__device__ void sort_in_block(const Slots<Id>& slots, const Rows& rows, int warps, const TileOutput& tiles,
                              int32_t* counters, TileScanShared<kBlockThreads>& scan_shared) {
  const Range all = {0, slots.count};
  count_per_warp(slots, all, warps, counters);
  TileScan<kBlockThreads> scan(tiles, scan_shared, rows.most);
  for (uint32_t first = 0; first < slots.num_experts; first += kBlockThreads) {
    const uint32_t expert = first + threadIdx.x;
    const bool exists = expert < slots.num_experts;
    int32_t count = 0;
    if (exists) {
      for (int warp = 0; warp < warps; ++warp) count += counters[warp * slots.num_experts + expert];
    }
    const int32_t first_row = scan.add(static_cast<int32_t>(first), min(count, rows.capacity));
    if (exists) {
      rows.expert_offsets[expert] = first_row;
      rank_warps(counters, slots.num_experts, warps, expert, first_row);
    }
  }
  if (threadIdx.x == 0) rows.expert_offsets[slots.num_experts] = scan.rows();
  __syncthreads();
  rank_per_warp(slots, all, warps, counters,
                [&](uint32_t slot, int32_t expert, int32_t row) { rows.place(slot, expert, row); });
  scan.finish(rows.most);
  rows.clear(slots.num_experts, 0, slots.count);
}

template <class Id>
__global__ void __launch_bounds__(kBlockThreads, 1)
    permute_block_kernel(Slots<Id> slots, Rows rows, int warps, TileOutput tiles) {
  extern __shared__ int32_t counters[];
  __shared__ TileScanShared<kBlockThreads> scan_shared;
  if (!slots.choices_first) return sort_in_block(slots, rows, warps, tiles, counters, scan_shared);

  const Range all = {0, slots.count};
  count_per_warp(slots, all, warps, counters);
  for (uint32_t expert = threadIdx.x; expert < slots.num_experts; expert += kBlockThreads) {
    rank_warps(counters, slots.num_experts, warps, expert, 0);
  }
  __syncthreads();
  rank_per_warp(slots, all, warps, counters,
                [&](uint32_t slot, int32_t expert, int32_t rank) { rows.mark(slot, expert, rank); });
  __syncthreads();
  rows.capacity = kNoLimit;
  const Slots<int32_t> kept = {rows.slot_to_row, slots.count, slots.num_experts};
  sort_in_block(kept, rows, warps, tiles, counters, scan_shared);
}

// Three launches. `counters` in the workspace is [num_experts, num_chunks].

struct Chunks {
  uint32_t slots;
  int32_t count;
  int32_t* counters;

  __device__ Range own(uint32_t num_slots) const {
    const uint32_t begin = blockIdx.x * slots;
    return {begin, min(begin + slots, num_slots)};
  }
};

template <bool kShared, class Id>
__global__ void __launch_bounds__(kCountThreads, 1) count_chunks_kernel(Slots<Id> slots, Chunks chunks) {
  extern __shared__ int32_t shared_counters[];
  int32_t* counters = kShared ? shared_counters : chunks.counters + blockIdx.x;
  const int64_t stride = kShared ? 1 : chunks.count;
  for (uint32_t e = threadIdx.x; e < slots.num_experts; e += kCountThreads) counters[e * stride] = 0;
  __syncthreads();
  const Range range = chunks.own(slots.count);
  count_slots(slots, range.begin, range.end, threadIdx.x, kCountThreads, counters, stride);
  if constexpr (kShared) {
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < slots.num_experts; e += kCountThreads) {
      chunks.counters[static_cast<int64_t>(e) * chunks.count + blockIdx.x] = counters[e];
    }
  }
}

// rows.expert_offsets null: only the ranks.
__global__ void __launch_bounds__(kBlockThreads, 1)
    scan_chunks_kernel(Chunks chunks, Rows rows, uint32_t num_experts, TileOutput tiles) {
  __shared__ TileScanShared<kBlockThreads> scan_shared;
  __shared__ int32_t counts[kBlockThreads];
  TileScan<kBlockThreads> scan(tiles, scan_shared, rows.most);
  for (uint32_t first = 0; first < num_experts; first += kBlockThreads) {
    for (uint32_t i = threadIdx.x / 32; i < kBlockThreads && first + i < num_experts; i += kBlockThreads / 32) {
      const int32_t count = rank_chunks(chunks.counters + static_cast<int64_t>(first + i) * chunks.count, chunks.count);
      if (lane_of(threadIdx.x) == 0) counts[i] = count;
    }
    if (rows.expert_offsets == nullptr) continue;
    __syncthreads();
    const bool exists = first + threadIdx.x < num_experts;
    const int32_t count = exists ? min(counts[threadIdx.x], rows.capacity) : 0;
    const int32_t first_row = scan.add(static_cast<int32_t>(first), count);
    if (exists) rows.expert_offsets[first + threadIdx.x] = first_row;
  }
  if (rows.expert_offsets == nullptr) return;
  scan.finish(rows.most);
  if (threadIdx.x == 0) rows.expert_offsets[num_experts] = scan.rows();
}

// kMark: writes who stays instead of rows.
template <bool kShared, bool kMark, class Id>
__global__ void __launch_bounds__(kCountThreads, 1)
    place_chunks_kernel(Slots<Id> slots, Chunks chunks, Rows rows, int warps) {
  extern __shared__ int32_t shared_counters[];
  const Range range = chunks.own(slots.count);
  const auto first_rank = [&](uint32_t expert) {
    const int32_t rank = chunks.counters[static_cast<int64_t>(expert) * chunks.count + blockIdx.x];
    return kMark ? rank : rows.expert_offsets[expert] + rank;
  };
  const auto place = [&](uint32_t slot, int32_t expert, int32_t rank) {
    if constexpr (kMark) {
      rows.mark(slot, expert, rank);
    } else {
      rows.place(slot, expert, rank);
    }
  };
  if constexpr (kShared) {
    count_per_warp(slots, range, warps, shared_counters);
    for (uint32_t expert = threadIdx.x; expert < slots.num_experts; expert += blockDim.x) {
      rank_warps(shared_counters, slots.num_experts, warps, expert, first_rank(expert));
    }
    __syncthreads();
    rank_per_warp(slots, range, warps, shared_counters, place);
  } else {  // a block is one warp
    int32_t* counters = chunks.counters + blockIdx.x;
    if constexpr (!kMark) {
      for (uint32_t expert = threadIdx.x; expert < slots.num_experts; expert += 32) {
        counters[static_cast<int64_t>(expert) * chunks.count] = first_rank(expert);
      }
      __syncwarp();
    }
    rank_slots(slots, range.begin, range.end, counters, chunks.count, place);
  }
  if constexpr (!kMark) rows.clear(slots.num_experts, range.begin, range.end);
}

// Launchers.

bool is_valid(const PermuteParams& p) {
  return p.num_tokens >= 0 && p.top_k >= 0 && p.num_experts >= 0 && p.num_experts < INT32_MAX &&
         (p.top_k == 0 || p.num_tokens < INT32_MAX / p.top_k);
}

Outcome scan(const Chunks& chunks, const Rows& rows, const PermuteParams& p, const TileOutput& tiles, Stream stream) {
  return launch("scan_chunks", scan_chunks_kernel, 1, kBlockThreads, 0, stream, chunks, rows,
                static_cast<uint32_t>(p.num_experts), tiles);
}

template <bool kShared, bool kMark, class Id>
Outcome sort_chunks(const Slots<Id>& slots, const Chunks& chunks, const Rows& rows, const PermutePlan& plan,
                    const PermuteParams& p, const TileOutput& tiles, Stream stream) {
  const size_t shared = kShared ? slots.num_experts * sizeof(int32_t) : 0;
  Outcome outcome = launch("count_chunks", count_chunks_kernel<kShared, Id>, chunks.count, kCountThreads, shared,
                           stream, slots, chunks);
  Rows scanned = rows;
  if (kMark) scanned.expert_offsets = nullptr;
  if (outcome.ok()) outcome = scan(chunks, scanned, p, kMark ? TileOutput{} : tiles, stream);
  if (!outcome.ok()) return outcome;
  return launch("place_chunks", place_chunks_kernel<kShared, kMark, Id>, chunks.count, plan.warps * 32,
                plan.warps * shared, stream, slots, chunks, rows, plan.warps);
}

template <bool kShared, class Id>
Outcome permute_chunks(const Slots<Id>& slots, const Chunks& chunks, Rows rows, const PermutePlan& plan,
                       const PermuteParams& p, const TileOutput& tiles, Stream stream) {
  if (!slots.choices_first) return sort_chunks<kShared, false>(slots, chunks, rows, plan, p, tiles, stream);
  const Outcome marked = sort_chunks<kShared, true>(slots, chunks, rows, plan, p, tiles, stream);
  if (!marked.ok()) return marked;
  rows.capacity = kNoLimit;
  const Slots<int32_t> kept = {rows.slot_to_row, slots.count, slots.num_experts};
  return sort_chunks<kShared, false>(kept, chunks, rows, plan, p, tiles, stream);
}

template <class Id>
Outcome permute_ids(const PermuteParams& p, const TileOutput& tiles, void* workspace, Stream stream) {
  const int64_t num_slots = p.num_tokens * p.top_k;
  const bool limited = p.capacity >= 0 && p.capacity < num_slots;
  const Rows rows = {p.expert_offsets, p.row_to_slot, p.slot_to_row,
                     limited ? static_cast<int32_t>(p.capacity) : kNoLimit,
                     static_cast<int32_t>(p.max_rows < 0 ? num_slots : std::min(p.max_rows, num_slots))};
  Slots<Id> slots = {static_cast<const Id*>(p.topk_ids), static_cast<uint32_t>(num_slots),
                     static_cast<uint32_t>(p.num_experts), static_cast<uint32_t>(p.top_k)};
  slots.choices_first = limited && p.drop_order == DropOrder::kChoice && p.top_k > 1;
  if (slots.choices_first) slots.num_tokens = FastDivide(static_cast<uint32_t>(p.num_tokens));

  const PermutePlan plan = plan_permute(num_slots, p.num_experts);
  if (plan.one_block) {
    const size_t shared = static_cast<size_t>(plan.warps) * slots.num_experts * sizeof(int32_t);
    return launch("permute_block", permute_block_kernel<Id>, 1, kBlockThreads, shared, stream, slots, rows, plan.warps,
                  tiles);
  }
  const Chunks chunks = {plan.chunk_slots, plan.num_chunks, static_cast<int32_t*>(workspace)};
  return plan.shared_counters ? permute_chunks<true>(slots, chunks, rows, plan, p, tiles, stream)
                              : permute_chunks<false>(slots, chunks, rows, plan, p, tiles, stream);
}

}  // namespace

int64_t permute_workspace_bytes(const PermuteParams& params) {
  if (!is_valid(params)) return 0;
  return plan_permute(params.num_tokens * params.top_k, params.num_experts).workspace_bytes;
}

Outcome permute(const PermuteParams& params, const TileOutput& tiles, void* workspace, Stream stream) {
  if (!is_valid(params) || (tiles.count != nullptr && tiles.block_m < 1)) return {Status::kInvalidArgument};
  return params.ids_are_int64 ? permute_ids<int64_t>(params, tiles, workspace, stream)
                              : permute_ids<int32_t>(params, tiles, workspace, stream);
}

}  // namespace moe::cuda
