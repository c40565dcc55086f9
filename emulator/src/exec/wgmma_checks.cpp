// What wgmma's registers and shared operands are held to between issue and wait.
//
// Values are computed at issue. Until the wait, accumulators and fragments of A count as unwritten, so that whatever
// reads them is found; copies (mov) of them stay in flight with them. Shared operands count as being read.
#include <algorithm>
#include <string>

#include "core/block.h"
#include "core/hooks.h"
#include "exec/wgmma.h"

namespace vgpu {
namespace {

bool is_in_flight(const WgmmaState& state, const WgmmaRegister& r) { return r.flight > state.completed; }

std::string name_of(const Warp& warp, uint32_t number) { return warp.program->register_names[number]; }

// A register that no wgmma in flight uses must hold a value and must not have changed since the last fence.
void check_quiet_register(const Warp& warp, const Instruction& i, uint32_t number, bool is_read) {
  const WgmmaState& state = warp.wgmma;
  if (is_read && (warp.written[number] & warp.alive) != warp.alive) {
    fault(warp, i, FaultKind::kUninitialisedRegister,
          "reads register " + name_of(warp, number) + ", which nothing has written");
  }
  if (state.registers[number].touched == state.fences) {
    fault(warp, i, FaultKind::kWgmmaMisuse,
          "register " + name_of(warp, number) + " was written since the last wgmma.fence");
  }
}

void put_in_flight(Warp& warp, uint32_t number, uint32_t flight, uint32_t shape, uint32_t pc) {
  WgmmaState& state = warp.wgmma;
  WgmmaRegister& r = state.registers[number];
  if (!is_in_flight(state, r)) state.in_flight.push_back(number);
  r.flight = flight;
  r.shape = shape;
  r.pc = pc;
  warp.written[number] = 0;
}

void check_piece(Warp& warp, const Instruction& i, uint32_t address, uint32_t bytes, const char* matrix) {
  Block& block = *warp.block;
  if (address < kSharedBase || address + uint64_t{bytes} > block.shared.size()) {
    fault_at(warp, i, FaultKind::kBadDescriptor,
             std::string("matrix ") + matrix + " leaves shared memory: it reaches offset " +
                 std::to_string(static_cast<int64_t>(address) - kSharedBase) + " of " +
                 std::to_string(block.shared.size() - kSharedBase),
             -1, address);
  }
  block.shadow.read_by_proxy(warp, i, block, address, bytes);
}

void check_lines(Warp& warp, const Instruction& i, const MatrixDescriptor& d, bool mn_major, uint32_t group, uint32_t k,
                 const char* matrix) {
  if (mn_major) {
    for (uint32_t step = 0; step < k; ++step) check_piece(warp, i, mn_major_piece(d, group, step), 16, matrix);
    return;
  }
  for (uint32_t line = 8 * group; line < 8 * group + 8; ++line) {
    const uint32_t first = k_major_piece(d, line, 0), second = k_major_piece(d, line, 1);
    if ((first ^ second) == 16) {
      check_piece(warp, i, std::min(first, second), 32, matrix);
    } else {
      check_piece(warp, i, first, 16, matrix);
      check_piece(warp, i, second, 16, matrix);
    }
  }
}

// fn(warp) for the other warps of the warpgroup.
template <class F>
void for_peers(const Warp& warp, F&& fn) {
  const auto& warps = warp.block->warps;
  for (uint32_t k = warp.index / 4 * 4; k < warp.index / 4 * 4 + 4 && k < warps.size(); ++k) {
    if (k != warp.index) fn(*warps[k]);
  }
}

[[noreturn]] void refuse_lone(const Warp& warp, const Instruction& i, const Warp& missing) {
  fault(warp, i, FaultKind::kWgmmaMisuse,
        "warp " + std::to_string(missing.index) + " of the warpgroup ended without this wgmma", -1,
        "it executed " + std::to_string(missing.wgmma.issued) + " of them");
}

void begin_reads(Warp& warp, const Instruction& i, const std::vector<SharedRange>& ranges) {
  Block& block = *warp.block;
  WgmmaGroup& group = warp.wgmma.open;
  for (const SharedRange& range : ranges) {
    // The steps along k of one tile occupy the same swizzled rows: one entry does for all.
    const auto& pending = block.shadow.pending_reads();
    const bool known = std::any_of(pending.begin(), pending.end(), [&](const PendingRead& p) {
      return p.begin == range.begin && p.end == range.end &&
             std::find(group.reads.begin(), group.reads.end(), p.id) != group.reads.end();
    });
    if (known) continue;
    const uint64_t id = block.cluster->next_async++;
    block.shadow.begin_read({range.begin, range.end, id, i.index, "wgmma"});
    group.reads.push_back(id);
  }
}

}  // namespace

void check_wgmma_registers(Warp& warp, const Instruction& i, const WgmmaPlan& plan, bool accumulate) {
  const WgmmaState& state = warp.wgmma;
  if (state.fences == 0) {
    fault(warp, i, FaultKind::kWgmmaMisuse, "no wgmma.fence before the first wgmma.mma_async");
  }
  for_peers(warp, [&](const Warp& peer) {
    if (peer.alive == 0 && peer.wgmma.issued <= state.issued) refuse_lone(warp, i, peer);
  });
  for (uint32_t number : plan.d_registers) {
    const WgmmaRegister& r = state.registers[number];
    if (!is_in_flight(state, r)) {
      check_quiet_register(warp, i, number, accumulate);
    } else if (r.shape != plan.shape) {
      fault(warp, i, FaultKind::kAsyncTooEarly,
            "the accumulator " + name_of(warp, number) + " is in use by a wgmma of another shape, not waited for", -1,
            "in use since " + place(warp, r.pc));
    }
  }
  for (uint32_t number : plan.a_registers) {
    const WgmmaRegister& r = state.registers[number];
    if (!is_in_flight(state, r)) {
      check_quiet_register(warp, i, number, true);
    } else if (r.shape != 0) {
      fault(warp, i, FaultKind::kAsyncTooEarly,
            "multiplies with " + name_of(warp, number) + ", an accumulator of a wgmma that was not waited for", -1,
            "in use since " + place(warp, r.pc));
    }
  }
}

void check_wgmma_operands(Warp& warp, const Instruction& i, const WgmmaPlan& plan, const WgmmaOperands& operands) {
  const uint32_t in_group = warp.index % 4;
  if (!plan.a_in_registers) {
    for (uint32_t half = 0; half < 2; ++half) {
      check_lines(warp, i, operands.a, plan.a_mn_major, 2 * in_group + half, plan.k, "A");
    }
  }
  // All four warps read all of B: each answers for a quarter.
  for (uint32_t group = in_group; group < plan.n / 8; group += 4) {
    check_lines(warp, i, operands.b, plan.b_mn_major, group, plan.k, "B");
  }
}

void begin_wgmma(Warp& warp, const Instruction& i, const WgmmaPlan& plan, const WgmmaOperands& operands) {
  WgmmaState& state = warp.wgmma;
  ++state.issued;
  state.last_pc = i.index;
  for (uint32_t number : plan.a_registers) put_in_flight(warp, number, state.issued, 0, i.index);
  for (uint32_t number : plan.d_registers) put_in_flight(warp, number, state.issued, plan.shape, i.index);
  if (!plan.a_in_registers) {
    begin_reads(warp, i, occupied(operands.a, !plan.a_mn_major, warp.index % 4 * kTileRows, kTileRows));
  }
  begin_reads(warp, i, occupied(operands.b, !plan.b_mn_major, 0, plan.n));
}

void fence_wgmma(Warp& warp) {
  WgmmaState& state = warp.wgmma;
  if (state.registers.empty()) state.registers.resize(warp.program->register_count);
  ++state.fences;
}

void commit_wgmma(Warp& warp) {
  WgmmaState& state = warp.wgmma;
  state.open.last = state.issued;
  state.groups.push_back(std::move(state.open));
  state.open = {};
}

void wait_wgmma(Warp& warp, uint32_t keep) {
  WgmmaState& state = warp.wgmma;
  if (state.groups.size() <= keep) return;
  const size_t done = state.groups.size() - keep;
  for (size_t k = 0; k < done; ++k) {
    for (uint64_t id : state.groups[k].reads) {
      warp.block->shadow.finish_read(id, warp.clocks.self, warp.clocks.now);
    }
    state.completed = state.groups[k].last;
  }
  state.groups.erase(state.groups.begin(), state.groups.begin() + static_cast<ptrdiff_t>(done));
  std::erase_if(state.in_flight, [&](uint32_t number) {
    if (is_in_flight(state, state.registers[number])) return false;
    warp.written[number] = kAllLanes;
    return true;
  });
}

bool in_wgmma_flight(const Warp& warp, uint32_t register_number) {
  const WgmmaState& state = warp.wgmma;
  return !state.registers.empty() && is_in_flight(state, state.registers[register_number]);
}

void check_wgmma_at_exit(Warp& warp, const Instruction& i) {
  const WgmmaState& state = warp.wgmma;
  for_peers(warp, [&](const Warp& peer) {
    if (peer.wgmma.issued > state.issued) refuse_lone(peer, peer.program->code[peer.wgmma.last_pc], warp);
  });
  if (state.issued == state.completed) return;
  fault(warp, i, FaultKind::kAsyncNotAwaited, "the warp ends while wgmmas are in flight that nothing waited for");
}

void wgmma_note_writes(Warp& warp, const Instruction& i) {
  WgmmaState& state = warp.wgmma;
  if (state.registers.empty()) return;
  // A copy is as old as what it copies: compilers put copies between a fence and the wgmma.
  uint32_t touched = i.copies ? 0 : state.fences;
  const WgmmaRegister* source = nullptr;
  if (i.copies) {
    for (size_t k = i.guard == kNoSlot ? 0 : 1; k < i.reads.size(); ++k) {
      const WgmmaRegister& r = state.registers[i.reads[k]];
      touched = std::max(touched, r.touched);
      if (is_in_flight(state, r) && (source == nullptr || r.flight > source->flight)) source = &r;
    }
  }
  for (uint32_t number : i.writes) {
    const WgmmaRegister& r = state.registers[number];
    if (source == nullptr && is_in_flight(state, r)) {
      fault(warp, i, FaultKind::kAsyncTooEarly,
            "writes register " + name_of(warp, number) + ", which a wgmma in flight uses", -1,
            "in use since " + place(warp, r.pc));
    }
    state.registers[number].touched = touched;
    if (source != nullptr && &r != source) put_in_flight(warp, number, source->flight, source->shape, source->pc);
  }
}

}  // namespace vgpu
