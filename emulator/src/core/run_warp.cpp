#include "core/run_warp.h"

#include <algorithm>
#include <bit>
#include <random>

#include "core/hooks.h"

namespace vgpu {
namespace {

[[noreturn]] void unwritten(Warp& warp, const Instruction& i, uint32_t reg) {
  LaneMask missing = warp.active & ~warp.written[reg];
  int lane = std::countr_zero(missing);
  const std::string& name = warp.program->register_names[reg];
  if (in_wgmma_flight(warp, reg)) {
    fault(warp, i, FaultKind::kAsyncTooEarly,
          "uses " + name + " while a wgmma that has not been waited for works on it", lane);
  }
  fault(warp, i, FaultKind::kUninitialisedRegister, "reads " + name + ", which nothing has written", lane);
}

// Of an instruction that reads registers without a value: the lanes whose result has one. Arithmetic passes the lack
// on, as compilers leave undefined values in code that does not use the result; anything else is a fault.
LaneMask lanes_with_value(Warp& warp, const Instruction& i) {
  const LaneMask m = warp.active;
  const bool passes_on = i.kind <= InstructionClass::kMove && !i.control;
  LaneMask known = kAllLanes;
  for (uint32_t r : i.reads) {
    LaneMask missing = m & ~warp.written[r];
    if (missing == 0) continue;
    bool in_flight = in_wgmma_flight(warp, r);
    if (!i.copies && (in_flight || (!passes_on && warp.launch->options.uninitialised))) unwritten(warp, i, r);
    known &= ~missing;
  }
  if (i.statement->opcode == "selp" && i.guard == kNoSlot) {
    // Only the value that is chosen matters. The predicate is read last; immediates are not in `reads`.
    const auto& operands = i.statement->operands;
    auto is_register = [&](size_t k) { return operands[k].kind == ptx::OperandKind::kRegister; };
    size_t next = 0;
    LaneMask a = is_register(1) ? warp.written[i.reads[next++]] : kAllLanes;
    LaneMask b = is_register(2) ? warp.written[i.reads[next++]] : kAllLanes;
    LaneMask p = warp.predicate(i.slot[3]) ^ i.extra[0];
    return ((p & a) | (~p & b)) & warp.written[i.reads.back()];
  }
  return known;
}

// True when a group was chosen; `limit`: where another group waits to be joined.
bool select_group(Warp& warp, std::mt19937_64* shuffle, uint32_t* limit) {
  auto& groups = warp.groups;
  *limit = ~0u;
  if (groups.size() == 1) {
    warp.current = 0;
    Group& g = groups[0];
    g.yielded = false;
    return g.wait == Wait::kNone && g.lanes != 0;
  }
  std::erase_if(groups, [](const Group& g) { return g.lanes == 0; });
  for (size_t a = 0; a < groups.size(); ++a) {
    if (groups[a].wait > Wait::kConverge) continue;
    for (size_t b = a + 1; b < groups.size();) {
      if (groups[b].pc == groups[a].pc && groups[b].wait <= Wait::kConverge) {
        groups[a].lanes |= groups[b].lanes;
        groups[a].wait = Wait::kNone;
        groups[a].yielded &= groups[b].yielded;
        groups.erase(groups.begin() + static_cast<ptrdiff_t>(b));
      } else {
        ++b;
      }
    }
  }
  int chosen = -1;
  auto better = [&](size_t k) {
    if (chosen < 0) return true;
    const Group &mine = groups[k], &best = groups[chosen];
    if (mine.yielded != best.yielded) return best.yielded;
    return mine.pc < best.pc;
  };
  size_t runnable = 0;
  for (size_t k = 0; k < groups.size(); ++k) {
    if (groups[k].wait != Wait::kNone) continue;
    ++runnable;
    if (better(k)) chosen = static_cast<int>(k);
  }
  if (chosen < 0) return false;
  if (shuffle != nullptr && runnable > 1) {
    // Lanes of a warp make progress independently: another path may run first.
    size_t nth = (*shuffle)() % runnable;
    for (size_t k = 0; k < groups.size(); ++k) {
      if (groups[k].wait == Wait::kNone && nth-- == 0) chosen = static_cast<int>(k);
    }
  }
  groups[chosen].yielded = false;
  warp.current = static_cast<uint32_t>(chosen);
  for (size_t k = 0; k < groups.size(); ++k) {
    if (static_cast<int>(k) != chosen && groups[k].wait <= Wait::kConverge && groups[k].pc > groups[chosen].pc) {
      *limit = std::min(*limit, groups[k].pc);
    }
  }
  return true;
}

}  // namespace

template <bool kChecks>
uint32_t run_warp(Worker& worker, Warp& warp, uint32_t quantum) {
  const Instruction* code = warp.program->code.data();
  const bool uses_wgmma = kChecks && warp.program->uses_wgmma;
  Counters* per_instruction = worker.counters.empty() ? nullptr : worker.counters.data();
  uint32_t executed = 0;
  uint64_t lanes = 0;
  // Now and then the order of divergent paths is shuffled at the start of a turn.
  bool shuffle = warp.groups.size() > 1 && (worker.random() & 7) == 0;
  while (executed < quantum) {
    uint32_t limit;
    if (!select_group(warp, shuffle ? &worker.random : nullptr, &limit)) break;
    shuffle = false;
    bool yielded = false;
    while (executed < quantum) {
      Group& g = warp.groups[warp.current];
      const Instruction& i = code[g.pc];
      LaneMask m = g.lanes;
      if (i.guard != kNoSlot) {
        LaneMask p = warp.predicate(i.guard);
        m &= i.guard_negated ? ~p : p;
      }
      ++executed;
      if (per_instruction != nullptr) {
        Counters& c = per_instruction[i.index];
        c.warp_instructions += 1;
        c.lane_instructions += static_cast<uint32_t>(std::popcount(m));
      }
      lanes += static_cast<uint32_t>(std::popcount(m));
      if (kChecks && i.guard != kNoSlot) {
        uint32_t guard = i.reads.front();
        if (g.lanes & ~warp.written[guard]) {
          warp.active = g.lanes;
          unwritten(warp, i, guard);
        }
      }
      if (m == 0) {
        ++g.pc;
      } else {
        warp.active = m;
        LaneMask known = kAllLanes;
        if constexpr (kChecks) {
          for (uint32_t r : i.reads) {
            if (m & ~warp.written[r]) [[unlikely]]
              known = lanes_with_value(warp, i);
          }
        }
        if (!i.control) {
          i.execute(warp, i);
          ++g.pc;
          if constexpr (kChecks) {
            for (uint32_t r : i.writes) warp.written[r] = (warp.written[r] & ~m) | (m & known);
            if (uses_wgmma) wgmma_note_writes(warp, i);
          }
        } else {
          if (m != g.lanes) {
            if (per_instruction != nullptr && i.kind == InstructionClass::kControl)
              ++per_instruction[i.index].divergent_branches;
            Group rest = g;
            rest.lanes = g.lanes & ~m;
            rest.pc = g.pc + 1;
            g.lanes = m;
            warp.groups.push_back(rest);
          }
          uint32_t current = warp.current;
          i.execute(warp, i);
          if constexpr (kChecks) {
            if (current >= warp.groups.size() || warp.groups[current].wait != Wait::kConverge) {
              for (uint32_t r : i.writes) warp.written[r] |= m;
              if (uses_wgmma) wgmma_note_writes(warp, i);
            }
          }
          if (warp.groups.size() == 1) {
            const Group& after = warp.groups[0];
            yielded = after.yielded;
            if (after.wait == Wait::kNone && after.lanes != 0 && !yielded) continue;
          } else if (warp.current < warp.groups.size()) {
            yielded = warp.groups[warp.current].yielded;
          }
          break;
        }
      }
      if (g.pc >= limit) break;
    }
    if (yielded) break;
  }
  worker.total.warp_instructions += executed;
  worker.total.lane_instructions += lanes;
  warp.block->cluster->instructions_since_progress += executed;
  return executed;
}

template uint32_t run_warp<true>(Worker& worker, Warp& warp, uint32_t quantum);
template uint32_t run_warp<false>(Worker& worker, Warp& warp, uint32_t quantum);

bool can_run(const Warp& warp) {
  for (const Group& g : warp.groups) {
    if (g.wait == Wait::kNone && g.lanes != 0) return true;
  }
  // Groups that wait at one collective at the same place go on together.
  for (size_t a = 0; a < warp.groups.size(); ++a) {
    for (size_t b = a + 1; b < warp.groups.size(); ++b) {
      if (warp.groups[a].wait == Wait::kConverge && warp.groups[b].wait == Wait::kConverge &&
          warp.groups[a].pc == warp.groups[b].pc) {
        return true;
      }
    }
  }
  return false;
}

bool all_yielded(const Warp& warp) {
  for (const Group& g : warp.groups) {
    if (g.wait == Wait::kNone && g.lanes != 0 && !g.yielded) return false;
  }
  return true;
}

}  // namespace vgpu
