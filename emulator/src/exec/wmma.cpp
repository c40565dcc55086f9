// wmma.load, wmma.mma, wmma.store: the older matrix interface (nvcuda::wmma), whose fragments PTX leaves open.
//
// A fragment here is the matrix, row after row (A: m × k, B: k × n, C and D: m × n), dealt out register by register:
// word w of the matrix is lane w mod 32 of register w / 32. f16 fragments of A and B have twice the registers they
// need; the second half repeats the first.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/block.h"
#include "core/decode.h"
#include "exec/matrix_fragments.h"
#include "exec/memory_operand.h"
#include "exec/mma.h"

namespace vgpu {
namespace {

struct Shape {
  uint32_t m = 0, n = 0, k = 0;
};

// Of a fragment in memory: rows × columns of the matrix, and how its elements lie.
struct MemoryPlan {
  uint32_t rows = 0, columns = 0;
  uint32_t element_bytes = 0;
  bool column_major = false;
  Slot stride = kNoSlot;  // in elements; kNoSlot: without gaps
};

struct ProductPlan {
  Shape shape;
  Element a = Element::kF16, b = Element::kF16;
  bool f64 = false;
  Accumulator c = Accumulator::kF32, d = Accumulator::kF32;
  bool saturate = false;
  uint32_t d_registers = 0, a_registers = 0, b_registers = 0;
};

uint32_t registers_of(char matrix, const Shape& s, const std::string& type) {
  const uint32_t elements = matrix == 'a' ? s.m * s.k : matrix == 'b' ? s.k * s.n : s.m * s.n;
  const TypeInfo info = type_info(type);
  if (info.bits == 64) return elements / kLanes;
  if (type == "f16" && (matrix == 'a' || matrix == 'b')) return 8;
  return elements * info.bits / 32 / kLanes;
}

// Runs fn(register, lane mask's access, element's place in its lane's word) for each element of each register.
template <class F>
void for_each_access(Warp& warp, const Instruction& i, const MemoryPlan& plan, Touch touch, F&& fn) {
  const uint32_t word_bytes = plan.element_bytes == 8 ? 8 : 4;
  const uint32_t per_word = word_bytes / plan.element_bytes;
  const uint32_t packed = plan.column_major ? plan.rows : plan.columns;
  const uint32_t registers = plan.rows * plan.columns / per_word / kLanes;
  for (uint32_t lane = 1; lane < kLanes; ++lane) {
    const bool same_stride = plan.stride == kNoSlot || warp.u32(plan.stride)[lane] == warp.u32(plan.stride)[0];
    const bool same_base = i.extra[2] & kWideBase ? warp.u64(i.slot[0])[lane] == warp.u64(i.slot[0])[0]
                                                  : warp.u32(i.slot[0])[lane] == warp.u32(i.slot[0])[0];
    if (!same_stride || !same_base) {
      fault(warp, i, FaultKind::kBadArgument, "the lanes' addresses or strides differ", static_cast<int>(lane));
    }
  }
  const uint64_t stride = plan.stride == kNoSlot ? packed : warp.u32(plan.stride)[0];
  for (uint32_t r = 0; r < registers; ++r) {
    for (uint32_t j = 0; j < per_word; ++j) {
      Access access;
      access.space = static_cast<ptx::Space>(i.extra[0]);
      access.touch = touch;
      access.bytes = plan.element_bytes;
      access.lanes = kAllLanes;
      load_addresses(warp, i.slot[0], i.extra[2] & kWideBase, i.immediate, access);
      for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t e = (r * kLanes + lane) * per_word + j;
        const uint32_t row = e / plan.columns, column = e % plan.columns;
        const uint64_t at = plan.column_major ? column * stride + row : row * stride + column;
        access.address[lane] += at * plan.element_bytes;
      }
      resolve(warp, i, access);
      fn(r, access, j);
    }
  }
}

void execute_load(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  const MemoryPlan& plan = *static_cast<const MemoryPlan*>(i.payload.get());
  const uint32_t word_bytes = plan.element_bytes == 8 ? 8 : 4;
  const size_t distinct = plan.rows * plan.columns * plan.element_bytes / word_bytes / kLanes;
  // An address register may be among the destinations.
  std::vector<std::byte> words(distinct * kLanes * word_bytes);
  for_each_access(warp, i, plan, Touch::kRead, [&](uint32_t r, const Access& access, uint32_t j) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      std::memcpy(&words[(r * kLanes + lane) * word_bytes + j * plan.element_bytes], access.host[lane],
                  plan.element_bytes);
    }
  });
  for (size_t r = 0; r < i.list.size(); ++r) {
    std::memcpy(warp.lanes<std::byte>(i.list[r]), &words[r % distinct * kLanes * word_bytes], kLanes * word_bytes);
  }
  advance(warp);
}

void execute_store(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  const MemoryPlan& plan = *static_cast<const MemoryPlan*>(i.payload.get());
  const uint32_t word_bytes = plan.element_bytes == 8 ? 8 : 4;
  for_each_access(warp, i, plan, Touch::kWrite, [&](uint32_t r, const Access& access, uint32_t j) {
    const std::byte* from = warp.lanes<std::byte>(i.list[r]) + j * plan.element_bytes;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
      std::memcpy(access.host[lane], from + lane * word_bytes, plan.element_bytes);
    }
  });
  advance(warp);
}

// The 32-bit words of a fragment's registers, in the order of the matrix.
std::vector<uint32_t> words_of(const Warp& warp, const Slot* slots, size_t registers) {
  std::vector<uint32_t> words(registers * kLanes);
  for (size_t r = 0; r < registers; ++r) std::memcpy(&words[r * kLanes], warp.u32(slots[r]), 4 * kLanes);
  return words;
}

std::vector<float> elements_in(const Warp& warp, const Slot* slots, size_t registers, Element e) {
  const std::vector<uint32_t> words = words_of(warp, slots, registers);
  const uint32_t per_word = 4 / bytes_of(e);
  std::vector<float> values(words.size() * per_word);
  with_element(e, [&]<Element kElement>() {
    for (size_t w = 0; w < words.size(); ++w) {
      for (uint32_t j = 0; j < per_word; ++j) {
        values[w * per_word + j] = element_of<kElement>(words[w], static_cast<int>(j));
      }
    }
  });
  return values;
}

void multiply_double(Warp& warp, const Instruction& i, const ProductPlan& plan) {
  // m8n8k4: one register each of A and B, two of C and D.
  const double *a = warp.f64(i.list[2]), *b = warp.f64(i.list[3]);
  double d[2][kLanes];
  for (uint32_t e = 0; e < 64; ++e) {
    double sum = warp.f64(i.list[4 + e / kLanes])[e % kLanes];
    for (uint32_t k = 0; k < 4; ++k) sum = std::fma(a[e / 8 * 4 + k], b[k * 8 + e % 8], sum);
    d[e / kLanes][e % kLanes] = sum;
  }
  for (uint32_t r = 0; r < plan.d_registers; ++r) std::memcpy(warp.f64(i.list[r]), d[r], sizeof d[r]);
}

void multiply_fragments(Warp& warp, const Instruction& i, const ProductPlan& plan) {
  const Shape& s = plan.shape;
  const Slot* d = i.list.data();
  const Slot* a = d + plan.d_registers;
  const Slot* b = a + plan.a_registers;
  const Slot* c = b + plan.b_registers;
  const size_t c_registers = i.list.size() - static_cast<size_t>(c - d);
  const std::vector<float> a_values = elements_in(warp, a, plan.a_registers, plan.a);
  const std::vector<float> b_values = elements_in(warp, b, plan.b_registers, plan.b);
  const std::vector<uint32_t> c_words = words_of(warp, c, c_registers);
  std::vector<uint32_t> d_words(plan.d_registers * kLanes);
  auto half = [](const std::vector<uint32_t>& words, uint32_t e) {
    return half_to_float(static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16)));
  };
  const ProductRules rules{warp.launch->options.accumulate, plan.d == Accumulator::kF16, fraction_bits(plan.a)};
  alignas(64) float tile_a[8 * kTileK], tile_b[kTileK * 8], tile[8 * 8];
  for (uint32_t row = 0; row < s.m; row += 8) {
    for (uint32_t r = 0; r < 8; ++r) std::memcpy(tile_a + r * kTileK, &a_values[(row + r) * s.k], s.k * sizeof(float));
    for (uint32_t column = 0; column < s.n; column += 8) {
      for (uint32_t k = 0; k < s.k; ++k) std::memcpy(tile_b + k * 8, &b_values[k * s.n + column], 8 * sizeof(float));
      auto element = [&](uint32_t e) { return (row + e / 8) * s.n + column + e % 8; };
      for (uint32_t e = 0; e < 64; ++e) {
        tile[e] = plan.c == Accumulator::kS32   ? 0.0f
                  : plan.c == Accumulator::kF16 ? half(c_words, element(e))
                                                : float_of(c_words[element(e)]);
      }
      if (plan.d == Accumulator::kS32) {
        multiply_sequential<8, 8, 8>(tile_a, tile_b, static_cast<int>(s.k), tile);
      } else {
        multiply<8, 8, 8>(rules, tile_a, tile_b, static_cast<int>(s.k), tile);
      }
      for (uint32_t e = 0; e < 64; ++e) {
        const uint32_t at = element(e);
        switch (plan.d) {
          case Accumulator::kF32:
            d_words[at] = bits_of(tile[e]);
            break;
          case Accumulator::kF16:
            d_words[at / 2] |= static_cast<uint32_t>(float_to_half(tile[e])) << (at % 2 * 16);
            break;
          case Accumulator::kS32:
            d_words[at] = static_cast<uint32_t>(add_integer(static_cast<int32_t>(c_words[at]), tile[e], plan.saturate));
            break;
        }
      }
    }
  }
  for (uint32_t r = 0; r < plan.d_registers; ++r) std::memcpy(warp.u32(d[r]), &d_words[r * kLanes], 4 * kLanes);
}

void execute_product(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_full_warp(warp, i);
  const ProductPlan& plan = *static_cast<const ProductPlan*>(i.payload.get());
  if (plan.f64) {
    multiply_double(warp, i, plan);
  } else {
    multiply_fragments(warp, i, plan);
  }
  count_macs(warp, i, uint64_t{plan.shape.m} * plan.shape.n * plan.shape.k);
  advance(warp);
}

Shape take_shape(Decoder& d) {
  const std::string name = d.take_any({"m16n16k16", "m32n8k16", "m8n32k16", "m16n16k8", "m8n8k4"});
  if (name == "m16n16k16") return {16, 16, 16};
  if (name == "m32n8k16") return {32, 8, 16};
  if (name == "m8n32k16") return {8, 32, 16};
  if (name == "m16n16k8") return {16, 16, 8};
  if (name == "m8n8k4") return {8, 8, 4};
  d.unknown("wants a shape that it has");
}

void check_shape(Decoder& d, const Shape& s, const std::string& type) {
  const bool fits = type == "tf32" ? s.k == 8 : type == "f64" ? s.k == 4 : s.k == 16;
  if (!fits) d.unknown("does not have this shape for ." + type);
}

// The accumulators' types say nothing of the shape's operands.
bool is_accumulator_type(const std::string& type) {
  return type == "f32" || type == "f16" || type == "s32" || type == "f64";
}

void decode_memory(Decoder& d, bool loads, char matrix) {
  const bool row = d.take("row"), column = d.take("col");
  if (row == column) d.unknown("wants .row or .col");
  const Shape shape = take_shape(d);
  uint32_t flags = 0;
  const ptx::Space space = take_space(d, &flags);
  const TypeInfo type = d.take_type();
  auto plan = std::make_shared<MemoryPlan>();
  plan->rows = matrix == 'b' ? shape.k : shape.m;
  plan->columns = matrix == 'a' ? shape.k : shape.n;
  plan->element_bytes = type.bits / 8;
  plan->column_major = column;
  if (matrix == 'c' || matrix == 'd') {
    if (!is_accumulator_type(type.name)) d.unknown("does not accumulate in ." + type.name);
  } else {
    if (type.name != "f64" && !element_named(type.name)) d.unknown("." + type.name + " is no type of a matrix element");
    check_shape(d, shape, type.name);
  }
  const size_t fragment = loads ? 0 : 1, address = loads ? 1 : 0;
  add_fragment(d, fragment, registers_of(matrix, shape, type.name), type_info(type.bits == 64 ? "b64" : "b32"), loads);
  decode_address(d, d.operand(address), space, plan->element_bytes, flags);
  if (d.operands() > 2) plan->stride = d.source(2, type_info("b32"));
  d.out.payload = plan;
  d.out.execute = loads ? execute_load : execute_store;
  d.out.kind = InstructionClass::kMemory;
}

Accumulator accumulator_named(Decoder& d, const std::string& name) {
  if (name == "f32") return Accumulator::kF32;
  if (name == "f16") return Accumulator::kF16;
  if (name == "s32") return Accumulator::kS32;
  d.unknown("does not accumulate in ." + name);
}

void decode_product(Decoder& d) {
  // The layouts of A and B only tell how they were loaded; fragments are alike here.
  for (int k = 0; k < 2; ++k) {
    if (d.take_any({"row", "col"}).empty()) d.unknown("wants the layouts of A and B");
  }
  auto plan = std::make_shared<ProductPlan>();
  plan->shape = take_shape(d);
  plan->saturate = d.take("satfinite");
  std::vector<std::string> types;
  for (const std::string& m : d.rest()) {
    if (type_info(m).bits != 0) types.push_back(m);
  }
  for (const std::string& t : types) d.take(t);
  if (types.size() == 2) types = {types[0], "f16", "f16", types[1]};
  if (types.size() != 4) d.unknown("wants the types of d, a, b and c");
  check_shape(d, plan->shape, types[1]);
  plan->f64 = types[1] == "f64";
  if (plan->f64) {
    d.take("rn");
    if (types != std::vector<std::string>(4, "f64")) d.unknown("multiplies f64 with f64 only");
  } else {
    const auto a = element_named(types[1]), b = element_named(types[2]);
    if (!a || a != b) d.unknown("does not multiply ." + types[1] + " and ." + types[2]);
    plan->a = plan->b = *a;
    plan->d = accumulator_named(d, types[0]);
    plan->c = accumulator_named(d, types[3]);
    const bool mixed = plan->c != plan->d;
    if (is_integer(*a) != (plan->d == Accumulator::kS32) || is_integer(*a) != (plan->c == Accumulator::kS32) ||
        (*a != Element::kF16 && !is_integer(*a) && (mixed || plan->d != Accumulator::kF32))) {
      d.unknown("does not accumulate ." + types[1] + " in ." + types[0] + " and ." + types[3]);
    }
    if (plan->saturate && !is_integer(*a)) d.unsupported(".satfinite of floats");
  }
  plan->d_registers = registers_of('d', plan->shape, types[0]);
  plan->a_registers = registers_of('a', plan->shape, types[1]);
  plan->b_registers = registers_of('b', plan->shape, types[2]);
  const TypeInfo word = type_info(plan->f64 ? "b64" : "b32");
  add_fragment(d, 0, plan->d_registers, word, true);
  add_fragment(d, 1, plan->a_registers, word, false);
  add_fragment(d, 2, plan->b_registers, word, false);
  add_fragment(d, 3, registers_of('c', plan->shape, types[3]), word, false);
  d.out.payload = plan;
  d.out.execute = execute_product;
  d.out.kind = InstructionClass::kMatrix;
}

void decode_wmma(Decoder& d) {
  d.out.control = true;
  for (const std::string& m : d.statement.modifiers) {
    if (m == "b1" || m == "s4" || m == "u4") d.unsupported("." + m + " as a matrix element");
  }
  const std::string what = d.take_any({"load", "store", "mma"});
  if (what.empty()) d.unknown("wants .load, .mma or .store");
  if (what == "mma") {
    if (!d.take("sync") || !d.take("aligned")) d.unknown("wants .sync.aligned");
    decode_product(d);
    return;
  }
  const std::string matrix = d.take_any({"a", "b", "c", "d"});
  if (matrix.empty() || (matrix == "d") != (what == "store"))
    d.unknown("wants the matrix: .a, .b, .c or, to store, .d");
  if (!d.take("sync") || !d.take("aligned")) d.unknown("wants .sync.aligned");
  decode_memory(d, what == "load", matrix[0]);
}

const RegisterDecoders kRegistered({{"wmma", decode_wmma}});

}  // namespace
}  // namespace vgpu
