// prefetch, prefetchu, discard, applypriority and createpolicy: without effect but for createpolicy's result. Operands
// are checked.
#include <bit>

#include "exec/async.h"
#include "exec/tensor_copy.h"

namespace vgpu {
namespace {

constexpr uint32_t kLineBytes = 128;

void nothing(Warp&, const Instruction&) {}

void execute_tensormap_prefetch(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) { tensor_map_at(warp, i, address_of(warp, i, 0, lane), lane); });
}

void execute_line(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) {
    const uint64_t address = address_of(warp, i, 0, lane);
    if (address % kLineBytes != 0) fault_misaligned(warp, i, address, kLineBytes, lane, "the address");
    if (address >> kWindowShift != 0) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "the address is not in global memory", static_cast<int>(lane),
               address);
    }
    const Allocation* a = warp.launch->gpu->memory().find(address);
    if (a == nullptr || a->freed || address + kLineBytes > a->base + a->bytes) {
      fault_at(warp, i, FaultKind::kOutOfBounds, "the 128 bytes are not within one allocation", static_cast<int>(lane),
               address);
    }
  });
}

// A policy's bits say nothing here.
void execute_policy(Warp& warp, const Instruction& i) {
  for_lanes(warp.active, [&](uint32_t lane) { warp.u64(i.slot[0])[lane] = static_cast<uint64_t>(i.immediate); });
}

void decode_prefetch(Decoder& d) {
  d.out.kind = InstructionClass::kMemory;
  const std::string space = d.take_any({"global", "local", "const", "param"});
  if (space == "const" || space == "param" || (space.empty() && d.take("tensormap"))) {
    if (!space.empty() && !d.take("tensormap")) d.unknown("wants .tensormap");
    set_address(d, 0, d.operand(0), ptx::Space::kNone);
    d.out.execute = execute_tensormap_prefetch;
    return;
  }
  if (d.take_any({"L1", "L2", "L2::evict_last", "L2::evict_normal"}).empty()) d.unknown("wants a cache level");
  set_address(d, 0, d.operand(0),
              space == "global"  ? ptx::Space::kGlobal
              : space == "local" ? ptx::Space::kLocal
                                 : ptx::Space::kNone);
  d.out.execute = nothing;
}

void decode_prefetchu(Decoder& d) {
  if (!d.take("L1")) d.unknown("wants .L1");
  set_address(d, 0, d.operand(0), ptx::Space::kNone);
  d.out.execute = nothing;
}

void decode_line(Decoder& d, std::string_view level) {
  d.out.kind = InstructionClass::kMemory;
  const bool global = d.take("global");
  if (!d.take(level)) d.unknown("wants ." + std::string(level));
  const ptx::Operand& size = d.operand(1);
  if (size.kind != ptx::OperandKind::kImmediate || size.bits != kLineBytes) d.unknown("wants a size of 128");
  set_address(d, 0, d.operand(0), global ? ptx::Space::kGlobal : ptx::Space::kNone);
  d.out.execute = execute_line;
}

void decode_policy(Decoder& d) {
  const std::string what = d.take_any({"fractional", "range", "cvt"});
  d.out.slot[0] = d.destination(0, type_info("b64"));
  d.out.immediate = 0x14F0'0000'0000'0000;
  d.out.execute = execute_policy;
  if (what == "cvt") {
    if (!d.take("L2")) d.unknown("wants .L2");
    d.source(1, type_info("b64"));
  } else {
    const std::initializer_list<std::string_view> levels = {"L2::evict_last", "L2::evict_normal", "L2::evict_first",
                                                            "L2::evict_unchanged"};
    if (what.empty() || d.take_any(levels).empty()) d.unknown("wants .fractional, .range or .cvt and a priority");
    d.take_any(levels);
    if (what == "fractional") {
      if (d.operands() > 1) d.source(1, type_info("f32"));
    } else {
      const bool global = d.take("global");
      set_address(d, 1, d.operand(1), global ? ptx::Space::kGlobal : ptx::Space::kNone);
      d.source(2, type_info("u32"));
      d.source(3, type_info("u32"));
    }
  }
  if (!d.take("b64")) d.unknown("wants .b64");
}

const RegisterDecoders kRegistered({{"prefetch", decode_prefetch},
                                    {"prefetchu", decode_prefetchu},
                                    {"discard", [](Decoder& d) { decode_line(d, "L2"); }},
                                    {"applypriority", [](Decoder& d) { decode_line(d, "L2::evict_normal"); }},
                                    {"createpolicy", decode_policy}});

}  // namespace
}  // namespace vgpu
