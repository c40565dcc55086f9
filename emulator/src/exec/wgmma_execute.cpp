// The values of wgmma.mma_async: 16 rows of D for each warp, computed at once.
//
// Registers of D are those of mma.sync's accumulators, 8 columns after the other: 4j … 4j + 3 (f16: 2j, 2j + 1) belong
// to columns 8j … 8j + 7.
#include <string>

#include "core/block.h"
#include "exec/wgmma.h"

namespace vgpu {
namespace {

constexpr int kLdb = 16;  // B is kept in strips of 16 columns, each k rows of 16 floats
constexpr uint32_t kMaxN = 256;

const std::byte* piece_at(const Warp& warp, const Instruction& i, uint32_t address, const char* matrix) {
  const auto& shared = warp.block->shared;
  if (address < kSharedBase || address + uint64_t{16} > shared.size()) {
    fault_at(warp, i, FaultKind::kBadDescriptor,
             std::string("matrix ") + matrix + " leaves shared memory: it reaches offset " +
                 std::to_string(static_cast<int64_t>(address) - kSharedBase) + " of " +
                 std::to_string(shared.size() - kSharedBase),
             -1, address);
  }
  return shared.data() + address;
}

template <Element kElement>
void load_a(const Warp& warp, const Instruction& i, const WgmmaPlan& plan, const MatrixDescriptor& d, float* a) {
  constexpr int kPerPiece = 16 / bytes_of(kElement);
  const uint32_t first_line = warp.index % 4 * kTileRows;
  if (plan.a_in_registers) {
    for (int r = 0; r < 4; ++r) {
      widen_rows<kElement>(warp.lanes<std::byte>(plan.a_slots[static_cast<size_t>(r)]),
                           a + r % 2 * 8 * kTileK + r / 2 * kPerPiece);
    }
  } else if (!plan.a_mn_major) {
    for (uint32_t line = 0; line < kTileRows; ++line) {
      for (uint32_t p = 0; p < 2; ++p) {
        widen_piece<kElement>(piece_at(warp, i, k_major_piece(d, first_line + line, p), "A"),
                              a + line * kTileK + p * kPerPiece);
      }
    }
  } else {
    for (uint32_t k = 0; k < plan.k; ++k) {
      for (uint32_t half = 0; half < 2; ++half) {
        float column[kPerPiece];
        widen_piece<kElement>(piece_at(warp, i, mn_major_piece(d, first_line / 8 + half, k), "A"), column);
        for (uint32_t e = 0; e < 8; ++e) a[(half * 8 + e) * kTileK + k] = column[e % kPerPiece];
      }
    }
  }
}

template <Element kElement>
void load_b(const Warp& warp, const Instruction& i, const WgmmaPlan& plan, const MatrixDescriptor& d, float* b) {
  constexpr int kPerPiece = 16 / bytes_of(kElement);
  for (uint32_t group = 0; group < plan.n / 8; ++group) {
    float* strip = b + group / 2 * plan.k * kLdb + group % 2 * 8;
    if (!plan.b_mn_major) {
      for (uint32_t p = 0; p < 2; ++p) {
        alignas(64) std::byte columns[8 * 16];
        for (uint32_t n = 0; n < 8; ++n) {
          std::memcpy(columns + 16 * n, piece_at(warp, i, k_major_piece(d, group * 8 + n, p), "B"), 16);
        }
        transpose_columns<kElement, kLdb>(columns, strip + p * kPerPiece * kLdb);
      }
    } else {
      for (uint32_t k = 0; k < plan.k; ++k) {
        float row[kPerPiece];
        widen_piece<kElement>(piece_at(warp, i, mn_major_piece(d, group, k), "B"), row);
        for (int c = 0; c < 8; ++c) strip[k * kLdb + static_cast<uint32_t>(tile_column(c))] = row[c % kPerPiece];
      }
    }
  }
}

// Columns 8 · group and up: kWidth of them.
template <int kWidth>
void multiply_strip(const Warp& warp, const WgmmaPlan& plan, const WgmmaOperands& operands, uint32_t group,
                    const float* a, const float* strip) {
  alignas(64) float tile[kTileRows * kWidth];
  const Slot* slots = plan.d_slots.data();
  const bool integer = plan.d == Accumulator::kS32;
  if (!operands.accumulate || integer) {
    std::memset(tile, 0, sizeof tile);
  } else {
    for (uint32_t g = 0; g < kWidth / 8; ++g) {
      for (uint32_t half = 0; half < 2; ++half) {
        float* part = tile + half * 8 * kWidth + g * 8;
        if (plan.d == Accumulator::kF16) {
          load_halves(warp.u32(slots[2 * (group + g) + half]), part, kWidth);
        } else {
          const Slot* pair = slots + 4 * (group + g) + 2 * half;
          load_pair(warp.f32(pair[0]), warp.f32(pair[1]), part, kWidth);
        }
      }
    }
  }
  if (integer) {
    multiply_sequential<kTileRows, kWidth, kLdb>(a, strip, static_cast<int>(plan.k), tile);
  } else {
    const ProductRules rules{warp.launch->options.accumulate, plan.d == Accumulator::kF16, fraction_bits(plan.a)};
    multiply<kTileRows, kWidth, kLdb>(rules, a, strip, static_cast<int>(plan.k), tile);
  }
  for (uint32_t g = 0; g < kWidth / 8; ++g) {
    for (uint32_t half = 0; half < 2; ++half) {
      const float* part = tile + half * 8 * kWidth + g * 8;
      if (plan.d == Accumulator::kF16) {
        store_halves(warp.u32(slots[2 * (group + g) + half]), part, kWidth);
        continue;
      }
      const Slot* pair = slots + 4 * (group + g) + 2 * half;
      if (!integer) {
        store_pair(warp.f32(pair[0]), warp.f32(pair[1]), part, kWidth);
        continue;
      }
      alignas(64) int32_t sums[8 * 8] = {};
      if (operands.accumulate) load_pair(warp.lanes<int32_t>(pair[0]), warp.lanes<int32_t>(pair[1]), sums, 8);
      for (int r = 0; r < 8; ++r) {
        for (int c = 0; c < 8; ++c) sums[8 * r + c] = add_integer(sums[8 * r + c], part[r * kWidth + c], plan.saturate);
      }
      store_pair(warp.lanes<int32_t>(pair[0]), warp.lanes<int32_t>(pair[1]), sums, 8);
    }
  }
}

}  // namespace

void multiply_warp(Warp& warp, const Instruction& i, const WgmmaPlan& plan, const WgmmaOperands& operands) {
  alignas(64) float a[kTileRows * kTileK];
  alignas(64) float b[kTileK * kMaxN];
  with_element(plan.a, [&]<Element kElement>() { load_a<kElement>(warp, i, plan, operands.a, a); });
  with_element(plan.b, [&]<Element kElement>() { load_b<kElement>(warp, i, plan, operands.b, b); });
  if (plan.negate_a != plan.negate_b) {
    for (int r = 0; r < kTileRows; ++r) {
      for (uint32_t k = 0; k < plan.k; ++k) a[r * kTileK + static_cast<int>(k)] *= -1.0f;
    }
  }
  constexpr uint32_t kGroups = kStripWidth / 8;
  const uint32_t groups = plan.n / 8;
  for (uint32_t group = 0; group < groups; group += kGroups) {
    const float* strip = b + group / 2 * plan.k * kLdb + group % 2 * 8;
    if (group + kGroups <= groups) {
      multiply_strip<kStripWidth>(warp, plan, operands, group, a, strip);
    } else {
      multiply_strip<8>(warp, plan, operands, group, a, strip);
    }
  }
}

}  // namespace vgpu
