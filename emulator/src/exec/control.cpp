// Branches, calls and the end of threads.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/access.h"
#include "core/block.h"
#include "core/decode.h"
#include "core/hooks.h"
#include "core/program_builder.h"
#include "exec/print.h"

namespace vgpu {
namespace {

void branch(Warp& warp, const Instruction& i) { warp.group().pc = i.extra[0]; }

// Each lane goes where its index says: one group for each target.
void branch_indexed(Warp& warp, const Instruction& i) {
  const auto& targets = *static_cast<const std::vector<uint32_t>*>(i.payload.get());
  const uint32_t* index = warp.u32(i.slot[0]);
  LaneMask left = warp.group().lanes;
  const Group here = warp.group();
  bool first = true;
  while (left != 0) {
    uint32_t chosen = index[std::countr_zero(left)];
    if (chosen >= targets.size()) {
      fault(warp, i, FaultKind::kBadArgument,
            "branches to entry " + std::to_string(chosen) + " of a table of " + std::to_string(targets.size()),
            std::countr_zero(left));
    }
    LaneMask same = 0;
    for_lanes(left, [&](uint32_t l) { same |= index[l] == chosen ? 1u << l : 0; });
    left &= ~same;
    Group g = here;
    g.lanes = same;
    g.pc = targets[chosen];
    if (first) {
      warp.group() = g;
    } else {
      warp.groups.push_back(g);
    }
    first = false;
  }
}

// Another block that touched this one's shared memory must be known to be done with it.
void check_neighbours_at_exit(Warp& warp, const Instruction& i) {
  for (const Block::RemoteTouch& t : warp.block->remote_touches) {
    bool known = false;
    for (const auto& w : warp.block->warps) {
      known |= w->clocks.knows(kWholeWarp, t.agent, kWholeWarp, t.time);
      for_lanes(w->clocks.lanes_with_extra,
                [&](uint32_t l) { known |= w->clocks.knows(l, t.agent, kWholeWarp, t.time); });
    }
    if (known) continue;
    fault(warp, i, FaultKind::kUseAfterFree,
          "the block ends while block " + std::to_string(t.agent / warp.launch->warps_per_block) +
              " of the cluster may still touch its shared memory",
          -1, "touched at " + place(warp, t.pc));
  }
}

void exit_threads(Warp& warp, const Instruction& i) {
  LaneMask gone = warp.group().lanes;
  warp.group().lanes = 0;
  warp.alive &= ~gone;
  Block& block = *warp.block;
  block.exited += static_cast<uint32_t>(std::popcount(gone));
  if (warp.alive == 0 && warp.checks()) {
    check_wgmma_at_exit(warp, i);
    check_register_changes_at_exit(warp);
  }
  if (block.exited == block.threads && warp.checks()) {
    check_neighbours_at_exit(warp, i);
    check_async_at_exit(block);
  }
  progress(warp);
  recheck_barriers(block);
  recheck_cluster_barrier(*block.cluster);
}

// A function that the emulator brings itself: printf, assertions.
void call_builtin(Warp& warp, const Instruction& i) {
  uint32_t size = warp.program->local_bytes;
  auto argument = [&](uint32_t lane, uint32_t k) {
    uint64_t value = 0;
    std::memcpy(&value, &warp.local[uint64_t{lane} * size + i.extra[k]], k == 3 ? 4 : 8);
    return value;
  };
  if (i.immediate == 1) {
    for_lanes(warp.active, [&](uint32_t l) {
      fail_assertion(warp, i, argument(l, 1), argument(l, 2), static_cast<uint32_t>(argument(l, 3)), argument(l, 4), l);
    });
  }
  for_lanes(warp.active, [&](uint32_t l) {
    print_formatted(warp, i, argument(l, 1), argument(l, 2), l);
    int32_t result = 1;
    uint64_t at = uint64_t{l} * size + i.extra[0];
    if (i.extra[0] == ~0u) return;
    std::memcpy(&warp.local[at], &result, 4);
    std::fill_n(warp.local_written.begin() + static_cast<ptrdiff_t>(at), 4, uint8_t{1});
  });
}

void decode_bra(Decoder& d) {
  d.take("uni");
  d.out.kind = InstructionClass::kControl;
  d.out.control = true;
  d.out.execute = branch;
  d.branch_target(d.operand(0), &d.out.extra[0]);
}

void decode_brx(Decoder& d) {
  if (!d.take("idx")) d.unknown("wants .idx");
  d.take("uni");
  d.out.kind = InstructionClass::kControl;
  d.out.control = true;
  d.out.execute = branch_indexed;
  d.out.slot[0] = d.source(0, type_info("u32"));
  const ptx::Operand& table = d.operand(1);
  if (table.table != ptx::SymbolTable::kBranchTables) d.unknown("wants a .branchtargets table");
  const auto& targets = d.builder().frame().function->branch_tables.at(table.index);
  auto resolved = std::make_shared<std::vector<uint32_t>>(targets.size());
  for (uint32_t k = 0; k < targets.size(); ++k) d.builder().fix_up(k, targets[k], resolved);
  d.out.payload = resolved;
}

void decode_exit(Decoder& d) {
  d.out.kind = InstructionClass::kControl;
  d.out.control = true;
  d.out.execute = exit_threads;
}

void decode_ret(Decoder& d) {
  d.take("uni");
  if (d.builder().frame().function->is_entry) return decode_exit(d);
  d.out.kind = InstructionClass::kControl;
  d.out.control = true;
  d.out.execute = branch;
  d.builder().fix_up(0, static_cast<uint32_t>(d.builder().frame().function->statements.size()));
}

void decode_call(Decoder& d) {
  d.take("uni");
  const ptx::Operand& callee = d.operand(1);
  if (callee.table != ptx::SymbolTable::kFunctions) d.unsupported("a call through a pointer");
  const ptx::Function& f = d.builder().kernel.module->text->functions[callee.index];
  d.out.kind = InstructionClass::kControl;
  if (f.is_declaration) {
    const auto& results = d.operand(0).elements;
    const auto& arguments = d.operand(2).elements;
    if (f.name == "vprintf" && arguments.size() == 2) {
      d.out.immediate = 0;
    } else if (f.name == "__assertfail" && arguments.size() == 5) {
      d.out.immediate = 1;
    } else {
      d.unsupported("a call of " + f.name + ", which this PTX only declares,");
    }
    d.out.extra[0] = results.empty() ? ~0u : d.builder().local_offset(d, results[0]);
    for (uint32_t k = 0; k < std::min<size_t>(arguments.size(), 5); ++k) {
      d.out.extra[k + 1] = d.builder().local_offset(d, arguments[k]);
    }
    d.out.execute = call_builtin;
    return;
  }
  if (d.statement.guard != ptx::kNoIndex) d.unsupported("a call under a predicate");
  d.builder().inline_call(d, f);
  d.builder().skip_emit = true;
}

const RegisterDecoders kRegistered(
    {{"bra", decode_bra}, {"brx", decode_brx}, {"exit", decode_exit}, {"ret", decode_ret}, {"call", decode_call}});

}  // namespace
}  // namespace vgpu
