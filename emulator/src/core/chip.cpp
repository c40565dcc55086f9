#include "core/chip.h"

#include <cctype>
#include <charconv>
#include <stdexcept>

namespace vgpu {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;
constexpr double kTera = 1e12;

// What all chips of one compute capability share: the programming guide's table of technical specifications.
struct Architecture {
  int major, minor;
  uint32_t threads_per_multiprocessor, blocks_per_multiprocessor;
  uint64_t shared_optin, shared_per_multiprocessor;
  uint32_t max_cluster;
};

constexpr Architecture kSm80{8, 0, 2048, 32, 163 * kKiB, 164 * kKiB, 1};
constexpr Architecture kSm86{8, 6, 1536, 16, 99 * kKiB, 100 * kKiB, 1};
constexpr Architecture kSm89{8, 9, 1536, 24, 99 * kKiB, 100 * kKiB, 1};
constexpr Architecture kSm90{9, 0, 2048, 32, 227 * kKiB, 228 * kKiB, 8};
constexpr Architecture kSm100{10, 0, 2048, 32, 227 * kKiB, 228 * kKiB, 8};
constexpr Architecture kSm120{12, 0, 1536, 24, 99 * kKiB, 100 * kKiB, 8};

// One data sheet. Rates are dense, in T/s; for GeForce cards those of products accumulated in fp32.
struct Sheet {
  const char* name;
  const Architecture& architecture;
  uint32_t multiprocessors;
  uint64_t global_bytes, l2_bytes;
  double dram_gb_per_second;
  double bf16, tf32, fp32, fp8, int8;
  int clock_mhz;
};

const Sheet kSheets[] = {
    {"A100", kSm80, 108, 40 * kGiB, 40 * kMiB, 1555, 312, 156, 19.5, 0, 624, 1410},
    {"A100-80GB", kSm80, 108, 80 * kGiB, 40 * kMiB, 2039, 312, 156, 19.5, 0, 624, 1410},
    {"A30", kSm80, 56, 24 * kGiB, 24 * kMiB, 933, 165, 82, 10.3, 0, 330, 1440},
    {"A10", kSm86, 72, 24 * kGiB, 6 * kMiB, 600, 125, 62.5, 31.2, 0, 250, 1695},
    {"RTX 3090", kSm86, 82, 24 * kGiB, 6 * kMiB, 936, 71, 35.6, 35.6, 0, 284, 1695},
    {"L4", kSm89, 58, 24 * kGiB, 48 * kMiB, 300, 121, 60, 30.3, 242.5, 242.5, 2040},
    {"L40S", kSm89, 142, 48 * kGiB, 96 * kMiB, 864, 362, 183, 91.6, 733, 733, 2520},
    {"RTX 4090", kSm89, 128, 24 * kGiB, 72 * kMiB, 1008, 165.2, 82.6, 82.6, 330.3, 660.6, 2520},
    {"H100", kSm90, 132, 80 * kGiB, 50 * kMiB, 3352, 989.4, 494.7, 66.9, 1978.9, 1978.9, 1980},
    {"H200", kSm90, 132, 141 * kGiB, 50 * kMiB, 4800, 989.4, 494.7, 66.9, 1978.9, 1978.9, 1980},
    {"GH200", kSm90, 132, 96 * kGiB, 50 * kMiB, 4000, 989.4, 494.7, 66.9, 1978.9, 1978.9, 1980},
    {"B200", kSm100, 148, 180 * kGiB, 126 * kMiB, 8000, 2250, 1125, 75, 4500, 4500, 1965},
    {"RTX 5090", kSm120, 170, 32 * kGiB, 96 * kMiB, 1792, 209.5, 104.8, 104.8, 419, 838, 2407},
};

Chip make(const Sheet& sheet) {
  const Architecture& a = sheet.architecture;
  Chip chip;
  chip.name = sheet.name;
  chip.major = a.major;
  chip.minor = a.minor;
  chip.arch_specific = a.major >= 9;
  chip.multiprocessors = sheet.multiprocessors;
  chip.max_threads_per_multiprocessor = a.threads_per_multiprocessor;
  chip.max_blocks_per_multiprocessor = a.blocks_per_multiprocessor;
  chip.shared_per_block_optin = static_cast<uint32_t>(a.shared_optin);
  chip.shared_per_multiprocessor = static_cast<uint32_t>(a.shared_per_multiprocessor);
  chip.max_cluster = a.max_cluster;
  chip.global_bytes = sheet.global_bytes;
  chip.l2_bytes = sheet.l2_bytes;
  chip.dram_bytes_per_second = sheet.dram_gb_per_second * 1e9;
  chip.bf16_flops = sheet.bf16 * kTera;
  chip.tf32_flops = sheet.tf32 * kTera;
  chip.fp32_flops = sheet.fp32 * kTera;
  chip.fp8_flops = sheet.fp8 * kTera;
  chip.int8_ops = sheet.int8 * kTera;
  chip.clock_khz = sheet.clock_mhz * 1000;
  return chip;
}

std::string plain(std::string_view name) {
  std::string text;
  for (char c : name)
    if (c != ' ' && c != '-' && c != '_') text += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

// "sm90a" (already plain): the first chip that has it.
const Chip* by_architecture(std::string_view text) {
  if (!text.starts_with("sm")) return nullptr;
  text.remove_prefix(2);
  int number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return nullptr;
  std::string_view suffix(end, text.data() + text.size() - end);
  if (!suffix.empty() && suffix != "a" && suffix != "f") return nullptr;
  for (const Chip& chip : chips())
    if (chip.major * 10 + chip.minor == number && (suffix.empty() || chip.arch_specific)) return &chip;
  return nullptr;
}

}  // namespace

const std::vector<Chip>& chips() {
  static const std::vector<Chip> table = [] {
    std::vector<Chip> list;
    for (const Sheet& sheet : kSheets) list.push_back(make(sheet));
    return list;
  }();
  return table;
}

const Chip& chip(std::string_view name) {
  const std::string wanted = plain(name);
  for (const Chip& chip : chips())
    if (plain(chip.name) == wanted) return chip;
  if (const Chip* chip = by_architecture(wanted)) return *chip;
  std::string message = "no chip is called '" + std::string(name) + "'; known:";
  for (const Chip& chip : chips()) message += " " + chip.name + ",";
  throw std::invalid_argument(message + " or an architecture such as sm_90a");
}

}  // namespace vgpu
