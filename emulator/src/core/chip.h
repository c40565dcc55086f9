// What is known of a GPU: the limits that launches are held to, and the rates that floors are estimated from.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vgpu {

struct Chip {
  std::string name;  // "H100"
  int major = 0, minor = 0;
  bool arch_specific = false;  // accepts PTX for sm_XYa of its own (major, minor)
  uint32_t multiprocessors = 0;
  uint32_t max_threads_per_block = 1024;
  uint32_t max_threads_per_multiprocessor = 0;
  uint32_t max_blocks_per_multiprocessor = 0;
  uint32_t registers_per_block = 65536;
  uint32_t registers_per_multiprocessor = 65536;
  uint32_t shared_per_block = 49152;       // bytes, without opting in
  uint32_t shared_per_block_optin = 0;     // bytes
  uint32_t shared_per_multiprocessor = 0;  // bytes
  uint32_t shared_reserved_per_block = 1024;
  uint32_t max_cluster = 1;  // portable
  uint64_t global_bytes = 0;
  uint64_t l2_bytes = 0;
  // Rates of the data sheet, dense, at boost clock.
  double dram_bytes_per_second = 0;
  double bf16_flops = 0;
  double tf32_flops = 0;
  double fp32_flops = 0;
  double fp8_flops = 0;  // 0 where the chip has none
  double int8_ops = 0;
  int clock_khz = 0;
};

const std::vector<Chip>& chips();
// By name, without regard to case, blanks and dashes ("rtx4090", "H100"), or by architecture ("sm_90a": the first that
// has it). Throws std::invalid_argument that lists the names.
const Chip& chip(std::string_view name);

}  // namespace vgpu
