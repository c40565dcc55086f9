#include <cstring>

#include "cpu/permute/permute.h"

namespace moe::cpu {

Status gather_rows(const GatherRowsParams& params, const Parallel& parallel) {
  if (params.num_valid < 0 || params.num_valid > params.num_rows || params.top_k < 1 || params.row_bytes < 0) {
    return Status::kInvalidArgument;
  }
  constexpr int64_t kBytesPerRange = 256 * 1024;
  if (params.row_bytes == 0) return Status::kOk;
  const size_t row_bytes = static_cast<size_t>(params.row_bytes);
  parallel.for_ranges(
      params.num_rows, (kBytesPerRange + params.row_bytes - 1) / params.row_bytes, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          char* row = static_cast<char*>(params.rows) + r * params.row_bytes;
          if (r < params.num_valid) {
            const int64_t token = params.row_to_slot[r] / params.top_k;
            std::memcpy(row, static_cast<const char*>(params.x) + token * params.x_stride_bytes, row_bytes);
          } else {
            std::memset(row, 0, row_bytes);
          }
        }
      });
  return Status::kOk;
}

}  // namespace moe::cpu
