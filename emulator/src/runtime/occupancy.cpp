#include "runtime/occupancy.h"

#include <algorithm>

namespace vgpu::runtime {
namespace {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kMaxRegisters = 255;
constexpr uint32_t kRegisterUnit = 256;  // that a warp's registers are given out in
constexpr uint32_t kSharedUnit = 128;    // bytes
constexpr uint32_t kNonPortableCluster = 16;

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

uint32_t product(const uint32_t (&v)[3]) { return v[0] == 0 ? 0 : v[0] * std::max(v[1], 1u) * std::max(v[2], 1u); }

uint64_t shared_of_block(const Kernel& kernel, const Chip& chip, uint64_t dynamic_shared) {
  return round_up(kernel.static_shared_bytes + dynamic_shared, kSharedUnit) + chip.shared_reserved_per_block;
}

}  // namespace

uint32_t max_threads_per_block(const Kernel& kernel, const Chip& chip) {
  uint32_t bound = product(kernel.function->required_threads);
  if (bound == 0) bound = product(kernel.function->max_threads);
  return bound == 0 ? chip.max_threads_per_block : std::min(bound, chip.max_threads_per_block);
}

uint32_t known_registers(const Kernel& kernel, const Chip& chip) {
  const ptx::Function& f = *kernel.function;
  if (f.max_registers != 0) return std::min(f.max_registers, kMaxRegisters);
  if (f.min_blocks == 0) return 0;
  const uint32_t warps = (max_threads_per_block(kernel, chip) + kWarp - 1) / kWarp;
  const uint32_t per_warp = chip.registers_per_multiprocessor / (warps * f.min_blocks) / kRegisterUnit * kRegisterUnit;
  return std::min(per_warp / kWarp, kMaxRegisters);
}

uint32_t blocks_per_multiprocessor(const Kernel& kernel, const Chip& chip, uint32_t threads, uint64_t dynamic_shared) {
  if (threads == 0 || threads > max_threads_per_block(kernel, chip)) return 0;
  const uint32_t warps = (threads + kWarp - 1) / kWarp;
  uint32_t blocks = std::min(chip.max_blocks_per_multiprocessor, chip.max_threads_per_multiprocessor / (warps * kWarp));
  if (kernel.static_shared_bytes + dynamic_shared > chip.shared_per_block_optin) return 0;
  blocks = std::min<uint64_t>(blocks, chip.shared_per_multiprocessor / shared_of_block(kernel, chip, dynamic_shared));
  if (const uint32_t registers = known_registers(kernel, chip); registers != 0) {
    const uint64_t per_block = warps * round_up(uint64_t{registers} * kWarp, kRegisterUnit);
    blocks = std::min<uint64_t>(blocks, chip.registers_per_multiprocessor / per_block);
  }
  return blocks;
}

uint64_t dynamic_shared_for(const Kernel& kernel, const Chip& chip, uint32_t blocks, uint32_t threads) {
  if (blocks == 0 || blocks > blocks_per_multiprocessor(kernel, chip, threads, 0)) return 0;
  const uint64_t share = chip.shared_per_multiprocessor / blocks / kSharedUnit * kSharedUnit;
  const uint64_t fixed = chip.shared_reserved_per_block + kernel.static_shared_bytes;
  if (share <= fixed) return 0;
  return std::min<uint64_t>(share - fixed, chip.shared_per_block_optin - kernel.static_shared_bytes);
}

uint32_t max_cluster_size(const Kernel& kernel, const Chip& chip) {
  if (chip.max_cluster <= 1) return 0;
  // Chips for consumers have no larger clusters than the portable ones.
  return kernel.non_portable_cluster && chip.major < 12 ? kNonPortableCluster : chip.max_cluster;
}

uint32_t active_clusters(const Kernel& kernel, const Chip& chip, uint32_t cluster, uint32_t threads,
                         uint64_t dynamic_shared) {
  if (cluster == 0 || cluster > max_cluster_size(kernel, chip)) return 0;
  return blocks_per_multiprocessor(kernel, chip, threads, dynamic_shared) * chip.multiprocessors / cluster;
}

}  // namespace vgpu::runtime
