// Arithmetic of two 16-bit or four 8-bit integers in a register: vadd vsub vabsdiff vmin vmax, with 2 or 4.
#include <algorithm>

#include "exec/lanes.h"

namespace vgpu {
namespace {

struct Add {
  static int32_t apply(int32_t a, int32_t b) { return a + b; }
};
struct Subtract {
  static int32_t apply(int32_t a, int32_t b) { return a - b; }
};
struct AbsoluteDifference {
  static int32_t apply(int32_t a, int32_t b) { return a < b ? b - a : a - b; }
};
struct Minimum {
  static int32_t apply(int32_t a, int32_t b) { return std::min(a, b); }
};
struct Maximum {
  static int32_t apply(int32_t a, int32_t b) { return std::max(a, b); }
};

// The types are signed where extra[0] has a bit: 1 of d, 2 of a, 4 of b. 8: .sat, 16: .add.
constexpr uint32_t kSignedResult = 1, kSignedA = 2, kSignedB = 4, kSaturate = 8, kAccumulate = 16;

template <class Op, int kParts>
void video(Warp& warp, const Instruction& i) {
  constexpr int kBits = 32 / kParts;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  const uint32_t flags = i.extra[0];
  const int32_t lowest = flags & kSignedResult ? -(1 << (kBits - 1)) : 0;
  const int32_t highest = lowest + static_cast<int32_t>(kMask);
  const uint32_t *a = warp.u32(i.slot[1]), *b = warp.u32(i.slot[2]), *c = warp.u32(i.slot[3]);
  const auto part = [](uint32_t x, int k, bool is_signed) {
    const uint32_t top = x << (32 - kBits * (k + 1));
    return is_signed ? static_cast<int32_t>(top) >> (32 - kBits) : static_cast<int32_t>(top >> (32 - kBits));
  };
  write_lanes(warp.active, warp.u32(i.slot[0]), [=](uint32_t lane) {
    uint32_t packed = 0, sum = c[lane];
    for (int k = 0; k < kParts; ++k) {
      const int32_t x = Op::apply(part(a[lane], k, flags & kSignedA), part(b[lane], k, flags & kSignedB));
      sum += static_cast<uint32_t>(x);
      const int32_t kept = flags & kSaturate ? std::clamp(x, lowest, highest) : x;
      packed |= (static_cast<uint32_t>(kept) & kMask) << (kBits * k);
    }
    return flags & kAccumulate ? sum : packed;
  });
}

template <class Op, int kParts>
void decode_video(Decoder& decoder) {
  const bool sat = decoder.take("sat"), add = decoder.take("add");
  const TypeInfo d = decoder.take_type(), a = decoder.take_type(), b = decoder.take_type();
  for (const TypeInfo& type : {d, a, b}) {
    if (type.name != "u32" && type.name != "s32") decoder.unknown("its types are .u32 and .s32");
  }
  if (sat && add) decoder.unknown(".sat and .add exclude each other");
  const auto flag = [](bool is_set, uint32_t bit) { return is_set ? bit : 0; };
  decoder.out.extra[0] = flag(d.kind == TypeInfo::kSigned, kSignedResult) |
                         flag(a.kind == TypeInfo::kSigned, kSignedA) | flag(b.kind == TypeInfo::kSigned, kSignedB) |
                         flag(sat, kSaturate) | flag(add, kAccumulate);
  // The third source is what parts left out by a mask would keep; masks are not part of the plain form.
  decode_operands(decoder, d, 3, InstructionClass::kInteger);
  decoder.out.execute = &video<Op, kParts>;
}

const RegisterDecoders kRegistered({
    {"vadd2", decode_video<Add, 2>},
    {"vadd4", decode_video<Add, 4>},
    {"vsub2", decode_video<Subtract, 2>},
    {"vsub4", decode_video<Subtract, 4>},
    {"vabsdiff2", decode_video<AbsoluteDifference, 2>},
    {"vabsdiff4", decode_video<AbsoluteDifference, 4>},
    {"vmin2", decode_video<Minimum, 2>},
    {"vmin4", decode_video<Minimum, 4>},
    {"vmax2", decode_video<Maximum, 2>},
    {"vmax4", decode_video<Maximum, 4>},
});

}  // namespace
}  // namespace vgpu
