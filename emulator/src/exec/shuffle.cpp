// shfl.sync: lanes read one another's registers.
#include "exec/collective.h"

namespace vgpu {
namespace {

enum class Direction { kUp, kDown, kButterfly, kIndex };

// Slots: d, p or none, a, b, c, members.
template <Direction kDirection>
void shuffle(Warp& warp, const Instruction& i) {
  collective(warp, i, i.slot[5], [&](LaneMask lanes) {
    const uint32_t *a = warp.u32(i.slot[2]), *b = warp.u32(i.slot[3]), *c = warp.u32(i.slot[4]);
    uint32_t from[kLanes], value[kLanes];
    LaneMask in_range = 0;
    for (uint32_t l = 0; l < kLanes; ++l) {
      const uint32_t segment = c[l] >> 8 & 31, clamp = c[l] & 31, by = b[l] & 31;
      const uint32_t first = l & segment, last = first | (clamp & ~segment);
      int32_t j = 0;
      bool inside = false;
      switch (kDirection) {
        case Direction::kUp:
          j = static_cast<int32_t>(l - by);
          inside = j >= static_cast<int32_t>(last);
          break;
        case Direction::kDown:
          j = static_cast<int32_t>(l + by);
          inside = j <= static_cast<int32_t>(last);
          break;
        case Direction::kButterfly:
          j = static_cast<int32_t>(l ^ by);
          inside = j <= static_cast<int32_t>(last);
          break;
        case Direction::kIndex:
          j = static_cast<int32_t>(first | (by & ~segment));
          inside = j <= static_cast<int32_t>(last);
          break;
      }
      from[l] = inside ? static_cast<uint32_t>(j) & 31 : l;
      in_range |= LaneMask{inside} << l;
    }
    for (uint32_t l = 0; l < kLanes; ++l) value[l] = a[from[l]];

    LaneMask outside = 0;
    for (uint32_t l = 0; l < kLanes; ++l) outside |= LaneMask{!(lanes >> from[l] & 1)} << l;
    if (outside & lanes) {
      const auto l = static_cast<uint32_t>(__builtin_ctz(outside & lanes));
      const uint32_t j = from[l];
      const char* why = warp.alive >> j & 1  ? "is not in the member mask"
                        : warp.born >> j & 1 ? "has exited"
                                             : "does not exist in this warp";
      fault(warp, i, FaultKind::kDivergentCollective,
            "lane " + std::to_string(l) + " reads lane " + std::to_string(j) + ", which " + why, static_cast<int>(l));
    }

    uint32_t* d = warp.u32(i.slot[0]);
    if (lanes == kAllLanes) {
      for (uint32_t l = 0; l < kLanes; ++l) d[l] = value[l];
    } else {
      for_lanes(lanes, [&](uint32_t l) { d[l] = value[l]; });
    }
    if (i.slot[1] != kNoSlot) {
      LaneMask* p = warp.lanes<LaneMask>(i.slot[1]);
      *p = (*p & ~lanes) | (in_range & lanes);
    }
  });
}

void decode_shuffle(Decoder& d) {
  if (!d.take("sync")) d.unsupported("shfl without .sync");
  const std::string direction = d.take_any({"up", "down", "bfly", "idx"});
  Execute execute = direction == "up"     ? shuffle<Direction::kUp>
                    : direction == "down" ? shuffle<Direction::kDown>
                    : direction == "bfly" ? shuffle<Direction::kButterfly>
                    : direction == "idx"  ? shuffle<Direction::kIndex>
                                          : nullptr;
  if (execute == nullptr) d.unknown("wants .up, .down, .bfly or .idx");
  if (!d.take("b32")) d.unknown("wants .b32");
  const TypeInfo b32 = type_info("b32");
  const ptx::Operand& to = d.operand(0);
  const bool pair = to.kind == ptx::OperandKind::kPair;
  d.out.slot[2] = d.source(1, b32);
  d.out.slot[3] = d.source(2, b32);
  d.out.slot[4] = d.source(3, b32);
  d.out.slot[5] = d.source(4, b32);
  d.out.slot[0] = d.destination(pair ? to.elements.at(0) : to, b32);
  if (pair) d.out.slot[1] = d.predicate_destination(to.elements.at(1));
  decode_collective(d, execute);
}

const RegisterDecoders kRegistered({{"shfl", decode_shuffle}});

}  // namespace
}  // namespace vgpu
