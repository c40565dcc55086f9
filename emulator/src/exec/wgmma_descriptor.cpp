#include "exec/wgmma_descriptor.h"

#include <algorithm>

namespace vgpu {
namespace {

constexpr uint64_t kReserved = 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52;
constexpr uint32_t kSpans[4] = {16, 128, 64, 32};  // by the two highest bits

uint32_t field(uint64_t bits, int shift) { return static_cast<uint32_t>(bits >> shift & 0x3fff) << 4; }

}  // namespace

std::string parse_descriptor(uint64_t bits, MatrixDescriptor* out) {
  if (bits & kReserved) return "reserved bits are set";
  out->start = field(bits, 0);
  out->leading_offset = field(bits, 16);
  out->stride_offset = field(bits, 32);
  out->base_offset = static_cast<uint32_t>(bits >> 49 & 7);
  out->span = kSpans[bits >> 62];
  // The pattern repeats after 8 rows of the span; its row is read off the address, so that a start elsewhere must say
  // so.
  const uint32_t pattern = 8 * out->span;
  const uint32_t row = (out->start & (pattern - 1)) >> 7;
  if (out->span == 16) {
    if (out->base_offset != 0) return "a base offset without swizzling";
  } else if (row != (out->base_offset & (out->span / 16 - 1))) {
    return "the start address " + std::to_string(out->start) + " is " + std::to_string(row * 128) +
           " bytes past a multiple of " + std::to_string(pattern) + ", where the " + std::to_string(out->span) +
           "-byte swizzle repeats, but the base offset is " + std::to_string(out->base_offset);
  }
  return {};
}

std::vector<SharedRange> occupied(const MatrixDescriptor& d, bool k_major, uint32_t first_line, uint32_t lines) {
  std::vector<SharedRange> ranges;
  // Whole rows: swizzling moves pieces within them only.
  auto add = [&](uint32_t address, uint32_t bytes) {
    const uint32_t begin = address & ~(d.span - 1);
    const uint32_t end = begin + std::max(bytes, d.span);
    if (!ranges.empty() && begin <= ranges.back().end && begin >= ranges.back().begin) {
      ranges.back().end = std::max(ranges.back().end, end);
    } else {
      ranges.push_back({begin, end});
    }
  };
  if (k_major) {
    const uint32_t pieces = d.span == 16 ? 2 : 1;
    for (uint32_t p = 0; p < pieces; ++p) {
      for (uint32_t line = first_line; line < first_line + lines; line += 8) {
        add(d.start + line / 8 * d.stride_offset + p * d.leading_offset, 8 * d.span);
      }
    }
  } else {
    for (uint32_t half = 0; half < 2; ++half) {
      for (uint32_t group = first_line / 8; group < (first_line + lines) / 8; ++group) {
        if (d.span == 16) {
          add(d.start + group * d.stride_offset + half * d.leading_offset, 8 * 16);
        } else {
          add(d.start + group / (d.span / 16) * d.leading_offset + half * d.stride_offset, 8 * d.span);
        }
      }
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const SharedRange& a, const SharedRange& b) { return a.begin < b.begin; });
  std::vector<SharedRange> joined;
  for (const SharedRange& r : ranges) {
    if (!joined.empty() && r.begin <= joined.back().end) {
      joined.back().end = std::max(joined.back().end, r.end);
    } else {
      joined.push_back(r);
    }
  }
  return joined;
}

}  // namespace vgpu
