#include "exec/collective.h"

#include <cstdio>

namespace vgpu {
namespace {

std::string hex(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

}  // namespace

// The masks of the active lanes do not fit together; says how.
void refuse_members(Warp& warp, const Instruction& i, const uint32_t* members) {
  for_lanes(warp.active, [&](uint32_t l) {
    if (members[l] >> l & 1) return;
    fault(warp, i, FaultKind::kBadArgument,
          "lane " + std::to_string(l) + " is not in its own member mask " + hex(members[l]), static_cast<int>(l));
  });
  for_lanes(warp.active, [&](uint32_t l) {
    for_lanes(members[l] & warp.alive, [&](uint32_t other) {
      if ((warp.active >> other & 1) && members[other] == members[l]) return;
      fault(warp, i, FaultKind::kDivergentCollective,
            "lane " + std::to_string(l) + " names the members " + hex(members[l]) + ", lane " + std::to_string(other) +
                " among them names " + hex(members[other]),
            static_cast<int>(l));
    });
  });
  fault(warp, i, FaultKind::kDivergentCollective, "the lanes' member masks differ");
}

}  // namespace vgpu
