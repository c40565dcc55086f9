#include "cpu/noise/noise.h"

#include "cpu/isa.h"

namespace moe::cpu {

Status noise(const NoiseParams& params, const Parallel& parallel) {
  if (params.count < 0) return Status::kInvalidArgument;
  constexpr int64_t kBlocksPerRange = 2048;
  const KernelTable& table = kernels();
  parallel.for_ranges((params.count + kNoiseBlock - 1) / kNoiseBlock, kBlocksPerRange,
                      [&](int64_t begin, int64_t end) { table.noise(params, begin, end); });
  return Status::kOk;
}

}  // namespace moe::cpu
