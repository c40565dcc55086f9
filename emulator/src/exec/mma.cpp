// mma.sync of floats of up to 32 bits and of 8-bit integers.
#include <memory>
#include <string>
#include <vector>

#include "core/block.h"
#include "core/decode.h"
#include "exec/matrix_fragments.h"
#include "exec/mma.h"

namespace vgpu {
namespace {

struct MmaPlan {
  Element a = Element::kF16, b = Element::kF16;
  Accumulator c = Accumulator::kF32, d = Accumulator::kF32;
  uint8_t pieces = 2;  // of 16 bytes along k
  uint8_t k = 16;
  bool saturate = false;
  uint32_t macs = 0;
};

// What follows the types in Instruction::list: d, a, b, c.
struct Fragments {
  const Slot *d, *a, *b, *c;
};

template <int kRows>
void execute_mma(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  constexpr int kHalves = kRows / 8;
  const MmaPlan& plan = *static_cast<const MmaPlan*>(i.payload.get());
  const Slot* slots = i.list.data();
  const uint32_t accumulators = plan.d == Accumulator::kF16 ? kHalves : 2 * kHalves;
  const Fragments f{slots, slots + accumulators, slots + accumulators + kHalves * plan.pieces,
                    slots + accumulators + (kHalves + 1) * plan.pieces};
  alignas(64) float a[kRows * kTileK];
  alignas(64) float b[kTileK * 8];
  alignas(64) float tile[kRows * 8];

  with_element(plan.a, [&]<Element kElement>() {
    constexpr int kPerPiece = 16 / bytes_of(kElement);
    for (int p = 0; p < plan.pieces; ++p) {
      for (int h = 0; h < kHalves; ++h) {
        widen_rows<kElement>(warp.lanes<std::byte>(f.a[p * kHalves + h]), a + h * 8 * kTileK + p * kPerPiece);
      }
    }
  });
  with_element(plan.b, [&]<Element kElement>() {
    constexpr int kPerPiece = 16 / bytes_of(kElement);
    for (int p = 0; p < plan.pieces; ++p) {
      transpose_columns<kElement, 8>(warp.lanes<std::byte>(f.b[p]), b + p * kPerPiece * 8);
    }
  });

  if (plan.d == Accumulator::kS32) {
    std::fill_n(tile, kRows * 8, 0.0f);
    multiply_sequential<kRows, 8, 8>(a, b, plan.k, tile);
    for (int h = 0; h < kHalves; ++h) {
      alignas(64) int32_t sums[8 * 8];
      load_pair(warp.lanes<int32_t>(f.c[2 * h]), warp.lanes<int32_t>(f.c[2 * h + 1]), sums, 8);
      for (int e = 0; e < 64; ++e) sums[e] = add_integer(sums[e], tile[h * 64 + e], plan.saturate);
      store_pair(warp.lanes<int32_t>(f.d[2 * h]), warp.lanes<int32_t>(f.d[2 * h + 1]), sums, 8);
    }
  } else {
    for (int h = 0; h < kHalves; ++h) {
      if (plan.c == Accumulator::kF16) {
        load_halves(warp.u32(f.c[h]), tile + h * 64, 8);
      } else {
        load_pair(warp.f32(f.c[2 * h]), warp.f32(f.c[2 * h + 1]), tile + h * 64, 8);
      }
    }
    const ProductRules rules{warp.launch->options.accumulate, plan.d == Accumulator::kF16, fraction_bits(plan.a)};
    multiply<kRows, 8, 8>(rules, a, b, plan.k, tile);
    for (int h = 0; h < kHalves; ++h) {
      if (plan.d == Accumulator::kF16) {
        store_halves(warp.u32(f.d[h]), tile + h * 64, 8);
      } else {
        store_pair(warp.f32(f.d[2 * h]), warp.f32(f.d[2 * h + 1]), tile + h * 64, 8);
      }
    }
  }
  count_macs(warp, i, plan.macs);
  advance(warp);
}

struct Shape {
  uint32_t m = 0, n = 0, k = 0;
};

// The shapes that PTX has for an element type.
bool is_shape(const Shape& s, Element e) {
  const uint32_t k_bytes = s.k * bytes_of(e);
  if (s.n != 8 || (k_bytes != 16 && k_bytes != 32)) return false;
  return s.m == 16 || (s.m == 8 && is_integer(e) && k_bytes == 16);
}

Accumulator accumulator_named(Decoder& d, const std::string& name) {
  if (name == "f32") return Accumulator::kF32;
  if (name == "f16") return Accumulator::kF16;
  if (name == "s32") return Accumulator::kS32;
  d.unknown("." + name + " is no type of an accumulator");
}

void decode_mma(Decoder& d) {
  for (const std::string& m : d.statement.modifiers) {
    if (m == "sp" || m.starts_with("sp::")) d.unsupported("a sparse matrix");
    if (m.starts_with("kind::") || m == "block_scale") d.unsupported("." + m);
    if (m == "b1" || m == "s4" || m == "u4") d.unsupported("." + m + " as a matrix element");
  }
  d.out.control = true;
  d.out.kind = InstructionClass::kMatrix;
  if (!d.take("sync") || !d.take("aligned")) d.unknown("wants .sync.aligned");
  std::vector<std::string> types;
  for (const std::string& m : d.statement.modifiers) {
    if (type_info(m).bits != 0) types.push_back(m);
  }
  if (types.size() != 4) d.unknown("wants the types of d, a, b and c");
  if (types[1] == "f64") {
    decode_mma_double(d);
    return;
  }
  if (d.take("m8n8k4")) d.unsupported("m8n8k4 of " + types[1]);
  const std::string shape_name = d.take_any({"m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32", "m8n8k16"});
  if (shape_name.empty()) d.unknown("wants a shape that it has");
  Shape shape{shape_name[1] == '8' ? 8u : 16u, 8, 0};
  shape.k = static_cast<uint32_t>(std::stoul(shape_name.substr(shape_name.find('k') + 1)));
  if (!d.take("row") || !d.take("col")) d.unknown("wants .row.col");

  auto plan = std::make_shared<MmaPlan>();
  for (const std::string& t : types) d.take(t);
  const auto a = element_named(types[1]), b = element_named(types[2]);
  if (!a || !b) d.unknown("." + types[1] + " and ." + types[2] + " are no types of matrix elements");
  const bool alike = *a == *b || (is_integer(*a) && is_integer(*b)) || (is_float8(*a) && is_float8(*b));
  if (!alike) d.unknown("does not multiply ." + types[1] + " and ." + types[2]);
  if (!is_shape(shape, *a)) d.unknown("has no " + shape_name + " for ." + types[1]);
  plan->a = *a;
  plan->b = *b;
  plan->d = accumulator_named(d, types[0]);
  plan->c = accumulator_named(d, types[3]);
  const bool half_allowed = *a == Element::kF16 || is_float8(*a);
  if ((plan->d == Accumulator::kS32) != is_integer(*a) || plan->c != plan->d ||
      (plan->d == Accumulator::kF16 && !half_allowed)) {
    d.unknown("does not accumulate ." + types[1] + " in ." + types[0] + " and ." + types[3]);
  }
  plan->saturate = d.take("satfinite");
  if (plan->saturate && !is_integer(*a)) d.unknown(".satfinite is for integers");
  plan->k = static_cast<uint8_t>(shape.k);
  plan->pieces = static_cast<uint8_t>(shape.k * bytes_of(*a) / 16);
  plan->macs = shape.m * shape.n * shape.k;

  const uint32_t halves = shape.m / 8;
  const uint32_t accumulators = plan->d == Accumulator::kF16 ? halves : 2 * halves;
  const TypeInfo word = type_info("b32");
  add_fragment(d, 0, accumulators, word, true);
  add_fragment(d, 1, halves * plan->pieces, word, false);
  add_fragment(d, 2, plan->pieces, word, false);
  add_fragment(d, 3, accumulators, word, false);
  d.out.payload = plan;
  d.out.execute = shape.m == 16 ? execute_mma<16> : execute_mma<8>;
}

const RegisterDecoders kRegistered({{"mma", decode_mma}});

}  // namespace

void require_full_warp(const Warp& warp, const Instruction& i) {
  if (warp.checks() && warp.alive != kAllLanes) {
    fault(warp, i, FaultKind::kDivergentCollective, "matrix instructions need all 32 lanes of the warp");
  }
}

void count_macs(Warp& warp, const Instruction& i, uint64_t macs) {
  worker(warp).total.matrix_macs += macs;
  if (Counters* c = counters(warp, i)) c->matrix_macs += macs;
}

void add_fragment(Decoder& d, size_t operand, size_t registers, const TypeInfo& type, bool destination) {
  const ptx::Operand& o = d.operand(operand);
  const bool vector = o.kind == ptx::OperandKind::kVector;
  const size_t given = vector ? o.elements.size() : 1;
  if (given != registers) {
    d.unknown("operand " + std::to_string(operand) + " wants " + std::to_string(registers) + " registers, not " +
              std::to_string(given));
  }
  for (size_t k = 0; k < registers; ++k) {
    const ptx::Operand& element = vector ? o.elements[k] : o;
    d.out.list.push_back(destination ? d.destination(element, type) : d.source(element, type));
  }
}

}  // namespace vgpu
