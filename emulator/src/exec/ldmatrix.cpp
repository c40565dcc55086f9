// ldmatrix, stmatrix and movmatrix: 8×8 matrices of 16-bit elements between shared memory and fragments.
//
// Lanes 8q … 8q + 7 give the addresses of the rows of matrix q. A fragment's 32 lanes are the matrix, row after row.
#include <cstring>
#include <string>

#include "core/block.h"
#include "core/decode.h"
#include "exec/memory_operand.h"
#include "exec/mma.h"

namespace vgpu {
namespace {

constexpr uint32_t kRowBytes = 16;

void transpose(const uint16_t* from, uint16_t* to) {
  for (int r = 0; r < 8; ++r) {
    for (int c = 0; c < 8; ++c) to[8 * c + r] = from[8 * r + c];
  }
}

// Only the lanes that give addresses touch memory.
void set_row_access(Warp& warp, const Instruction& i, Touch touch, Access& access) {
  const LaneMask all = warp.active;
  const size_t rows = 8 * i.list.size();
  warp.active = rows == kLanes ? kAllLanes : (1u << rows) - 1;
  set_access(warp, i, touch, access);
  warp.active = all;
  if (access.space != ptx::Space::kNone) return;
  for_lanes(access.lanes, [&](uint32_t lane) {
    if (access.address[lane] >> kWindowShift != kSharedWindow >> kWindowShift) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "wants an address of shared memory", static_cast<int>(lane),
               access.address[lane]);
    }
  });
}

template <bool kTransposed>
void execute_ldmatrix(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  Access access;
  set_row_access(warp, i, Touch::kRead, access);
  alignas(16) uint16_t matrices[4][64];
  for (size_t row = 0; row < 8 * i.list.size(); ++row) {
    std::memcpy(&matrices[row / 8][row % 8 * 8], access.host[row], kRowBytes);
  }
  for (size_t q = 0; q < i.list.size(); ++q) {
    if constexpr (kTransposed) {
      transpose(matrices[q], warp.lanes<uint16_t>(i.list[q]));
    } else {
      std::memcpy(warp.u32(i.list[q]), matrices[q], sizeof matrices[q]);
    }
  }
  advance(warp);
}

template <bool kTransposed>
void execute_stmatrix(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  Access access;
  set_row_access(warp, i, Touch::kWrite, access);
  alignas(16) uint16_t matrices[4][64];
  const size_t rows = 8 * i.list.size();
  for (size_t q = 0; q < i.list.size(); ++q) {
    if constexpr (kTransposed) {
      transpose(warp.lanes<uint16_t>(i.list[q]), matrices[q]);
    } else {
      std::memcpy(matrices[q], warp.u32(i.list[q]), sizeof matrices[q]);
    }
  }
  for_lanes(access.must_match, [&](uint32_t row) {
    if (std::memcmp(access.host[row], &matrices[row / 8][row % 8 * 8], kRowBytes) != 0) refuse_race(access);
  });
  for (size_t row = 0; row < rows; ++row) {
    std::memcpy(access.host[row], &matrices[row / 8][row % 8 * 8], kRowBytes);
  }
  if (access.collision) {
    for (size_t row = 0; row < rows; ++row) {
      if (std::memcmp(access.host[row], &matrices[row / 8][row % 8 * 8], kRowBytes) != 0) {
        refuse_collision(warp, i, access, static_cast<uint32_t>(row));
      }
    }
  }
  advance(warp);
}

void execute_movmatrix(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  uint16_t matrix[64];
  std::memcpy(matrix, warp.u32(i.slot[1]), sizeof matrix);
  transpose(matrix, warp.lanes<uint16_t>(i.slot[0]));
  advance(warp);
}

void start(Decoder& d) {
  d.out.control = true;
  d.out.kind = d.statement.opcode == "movmatrix" ? InstructionClass::kMatrix : InstructionClass::kMemory;
  if (!d.take("sync") || !d.take("aligned")) d.unknown("wants .sync.aligned");
  for (const std::string& m : d.statement.modifiers) {
    if (m == "m16n16" || m == "m8n16" || m == "m16n8" || m == "b8" || m.starts_with("b8x16")) d.unsupported("." + m);
  }
  if (!d.take("m8n8")) d.unknown("wants .m8n8");
  if (!d.take("b16")) d.unknown("wants .b16");
}

void finish(Decoder& d, size_t address, size_t fragment, bool loads) {
  const std::string count = d.take_any({"x1", "x2", "x4"});
  if (count.empty()) d.unknown("wants .x1, .x2 or .x4");
  uint32_t flags = 0;
  const ptx::Space space = take_space(d, &flags);
  if (space != ptx::Space::kShared && space != ptx::Space::kNone) d.unknown("wants shared memory");
  add_fragment(d, fragment, static_cast<size_t>(count[1] - '0'), type_info("b32"), loads);
  decode_address(d, d.operand(address), space, kRowBytes, flags);
  d.note_access(ptx::Space::kShared, kRowBytes);
}

void decode_ldmatrix(Decoder& d) {
  start(d);
  d.out.execute = d.take("trans") ? execute_ldmatrix<true> : execute_ldmatrix<false>;
  finish(d, 1, 0, true);
}

void decode_stmatrix(Decoder& d) {
  start(d);
  d.out.execute = d.take("trans") ? execute_stmatrix<true> : execute_stmatrix<false>;
  finish(d, 0, 1, false);
}

void decode_movmatrix(Decoder& d) {
  start(d);
  if (!d.take("trans")) d.unknown("wants .trans");
  const TypeInfo word = type_info("b32");
  d.out.slot[0] = d.destination(0, word);
  d.out.slot[1] = d.source(1, word);
  d.out.execute = execute_movmatrix;
}

const RegisterDecoders kRegistered({{"ldmatrix", decode_ldmatrix},
                                    {"stmatrix", decode_stmatrix},
                                    {"movmatrix", decode_movmatrix}});

}  // namespace
}  // namespace vgpu
