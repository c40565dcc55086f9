#include "core/deadlock.h"

#include <bit>
#include <cstdio>
#include <string>

namespace vgpu {

void report_deadlock(Cluster& cluster, bool polling) {
  Warp* culprit = nullptr;
  const Group* at = nullptr;
  FaultKind kind = FaultKind::kDeadlock;
  std::string details;
  uint32_t lines = 0;
  for (auto& block : cluster.blocks) {
    for (auto& w : block->warps) {
      for (const Group& g : w->groups) {
        if (g.lanes == 0) continue;
        const char* what = g.wait == Wait::kConverge         ? "waits for other lanes at "
                           : g.wait == Wait::kBarrier        ? "waits at a barrier, "
                           : g.wait == Wait::kClusterBarrier ? "waits at the cluster barrier, "
                                                             : "polls at ";
        if (++lines <= 64) {
          char mask[16];
          std::snprintf(mask, sizeof mask, "%08x", g.lanes);
          details += "  block " + std::to_string(block->rank) + " warp " + std::to_string(w->index) + " lanes " + mask +
                     " " + what + place(*w, g.pc) + "\n";
        }
        bool collective = g.wait == Wait::kConverge;
        if (culprit == nullptr || (collective && kind == FaultKind::kDeadlock)) {
          culprit = w.get();
          at = &g;
          if (collective) {
            const ptx::Statement& s = *w->program->code[g.pc].statement;
            bool of_block =
                (s.opcode == "bar" || s.opcode == "barrier") && !s.modifiers.empty() && s.modifiers[0] != "warp";
            kind = of_block ? FaultKind::kBarrierMisuse : FaultKind::kDivergentCollective;
          }
        }
      }
      for (uint32_t b = 0; b < 16 && w->index == 0; ++b) {
        const Barrier& barrier = block->barriers[b];
        if (barrier.active) {
          details += "  barrier " + std::to_string(b) + ": " + std::to_string(barrier.arrived) + " of " +
                     std::to_string(barrier.expected == 0 ? block->threads - block->exited : barrier.expected) +
                     " threads arrived\n";
        }
      }
    }
    for (const auto& m : block->mbarriers) {
      if (!m->live) continue;
      details += "  mbarrier at offset " + std::to_string(m->offset) + ": phase " + std::to_string(m->phase) + ", " +
                 std::to_string(m->pending) + " of " + std::to_string(m->count) + " arrivals and " +
                 std::to_string(m->transactions) + " bytes missing\n";
    }
  }
  if (culprit == nullptr) {
    culprit = cluster.blocks[0]->warps[0].get();
    static const Group kStart;
    at = &kStart;
  }
  culprit->active = at->lanes;
  std::string message = kind != FaultKind::kDeadlock ? "lanes of the warp are elsewhere and will not come"
                        : polling                    ? "no progress: threads poll for what will not happen"
                                                     : "no thread can go on";
  int lane = at->lanes ? std::countr_zero(at->lanes) : -1;
  fault(*culprit, culprit->program->code[at->pc], kind, message, lane, details);
}

}  // namespace vgpu
