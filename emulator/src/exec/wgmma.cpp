#include "exec/wgmma.h"

#include <memory>
#include <string>

#include "core/block.h"
#include "core/decode.h"
#include "core/program_builder.h"
#include "exec/mma.h"

namespace vgpu {
namespace {

// All four warps of the group must exist. Each does its part when it comes: no value depends on the others' progress.
void require_warpgroup(const Warp& warp, const Instruction& i) {
  require_full_warp(warp, i);
  const size_t wanted = (warp.index / 4 + 1) * 4;
  if (warp.checks() && warp.block->warps.size() < wanted) {
    fault(warp, i, FaultKind::kWgmmaMisuse,
          "wgmma needs warpgroups of four warps, and the last one of this block has " +
              std::to_string(warp.block->warps.size() % 4));
  }
}

void execute_fence(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_warpgroup(warp, i);
  if (warp.checks()) fence_wgmma(warp);
  advance(warp);
}

void execute_commit(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_warpgroup(warp, i);
  if (warp.checks()) commit_wgmma(warp);
  advance(warp);
}

void execute_wait(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_warpgroup(warp, i);
  if (warp.checks()) wait_wgmma(warp, i.extra[0]);
  advance(warp);
}

MatrixDescriptor read_descriptor(const Warp& warp, const Instruction& i, Slot slot, const char* matrix) {
  const uint64_t* lanes = warp.u64(slot);
  for (uint32_t lane = 1; lane < kLanes; ++lane) {
    if (lanes[lane] != lanes[0]) {
      fault(warp, i, FaultKind::kBadDescriptor, std::string("the lanes' descriptors of matrix ") + matrix + " differ",
            static_cast<int>(lane));
    }
  }
  MatrixDescriptor descriptor;
  const std::string wrong = parse_descriptor(lanes[0], &descriptor);
  if (!wrong.empty()) {
    fault(warp, i, FaultKind::kBadDescriptor, std::string("the descriptor of matrix ") + matrix + ": " + wrong);
  }
  return descriptor;
}

void execute_mma_async(Warp& warp, const Instruction& i) {
  if (!converged(warp, i)) return;
  require_warpgroup(warp, i);
  const WgmmaPlan& plan = *static_cast<const WgmmaPlan*>(i.payload.get());
  WgmmaOperands operands;
  if (!plan.a_in_registers) operands.a = read_descriptor(warp, i, plan.a_descriptor, "A");
  operands.b = read_descriptor(warp, i, plan.b_descriptor, "B");
  const LaneMask scale = warp.predicate(plan.scale) ^ (plan.scale_negated ? kAllLanes : 0);
  if (scale != 0 && scale != kAllLanes) {
    fault(warp, i, FaultKind::kWgmmaMisuse, "the lanes disagree about scale-d");
  }
  operands.accumulate = scale != 0;
  if (warp.checks()) {
    check_wgmma_registers(warp, i, plan, operands.accumulate);
    check_wgmma_operands(warp, i, plan, operands);
  }
  multiply_warp(warp, i, plan, operands);
  if (warp.checks()) begin_wgmma(warp, i, plan, operands);
  count_macs(warp, i, uint64_t{kTileRows} * plan.n * plan.k);
  advance(warp);
}

int64_t immediate(Decoder& d, size_t operand) {
  const ptx::Operand& o = d.operand(operand);
  if (o.kind != ptx::OperandKind::kImmediate || o.float_bits != 0) {
    d.unknown("operand " + std::to_string(operand) + " must be a whole number");
  }
  return static_cast<int64_t>(o.bits);
}

bool negated(Decoder& d, size_t operand) {
  const int64_t scale = immediate(d, operand);
  if (scale != 1 && scale != -1) d.unknown("imm-scale must be 1 or -1");
  return scale == -1;
}

bool transposed(Decoder& d, size_t operand) {
  const int64_t value = immediate(d, operand);
  if (value != 0 && value != 1) d.unknown("imm-trans must be 0 or 1");
  return value == 1;
}

// "m64n128k16"
void parse_shape(Decoder& d, WgmmaPlan& plan) {
  std::string shape;
  for (const std::string& m : d.rest()) {
    if (m.starts_with("m64n")) shape = m;
  }
  const size_t k = shape.find('k');
  if (k == std::string::npos) d.unknown("wants a shape m64nNkK");
  d.take(shape);
  plan.n = static_cast<uint32_t>(std::stoul(shape.substr(4, k - 4)));
  plan.k = static_cast<uint32_t>(std::stoul(shape.substr(k + 1)));
  if (plan.n == 0 || plan.n > 256 || plan.n % 8 != 0) d.unknown("N is 8 to 256 in steps of 8");
}

void decode_mma_async(Decoder& d) {
  for (const std::string& m : d.statement.modifiers) {
    if (m == "sp") d.unsupported("a sparse matrix");
    if (m == "b1") d.unsupported(".b1 as a matrix element");
  }
  auto plan = std::make_shared<WgmmaPlan>();
  parse_shape(d, *plan);
  plan->saturate = d.take("satfinite");
  const std::string type = d.take_any({"s32"});
  std::vector<std::string> names(d.rest());
  if (type.empty() ? names.size() != 3 : names.size() != 2) d.unknown("wants the types of d, a and b");
  const std::string d_name = type.empty() ? names[0] : type;
  const std::string a_name = names[names.size() - 2], b_name = names.back();
  for (const std::string& name : names) d.take(name);
  const auto a = element_named(a_name), b = element_named(b_name);
  if (!a || !b) d.unknown("." + a_name + " and ." + b_name + " are no types of matrix elements");
  if (!(*a == *b || (is_integer(*a) && is_integer(*b)) || (is_float8(*a) && is_float8(*b)))) {
    d.unknown("does not multiply ." + a_name + " and ." + b_name);
  }
  plan->a = *a;
  plan->b = *b;
  if (d_name == "s32" && is_integer(*a)) {
    plan->d = Accumulator::kS32;
  } else if (d_name == "f16" && (*a == Element::kF16 || is_float8(*a))) {
    plan->d = Accumulator::kF16;
  } else if (d_name != "f32" || is_integer(*a)) {
    d.unknown("does not accumulate ." + a_name + " in ." + d_name);
  }
  if (plan->saturate && plan->d != Accumulator::kS32) d.unknown(".satfinite is for integers");
  if (plan->k * bytes_of(*a) != 32) d.unknown("K of ." + a_name + " is " + std::to_string(32 / bytes_of(*a)));
  if (is_integer(*a) && plan->n > 32 && plan->n % 16 != 0) {
    d.unknown("N of integers goes in steps of 16 beyond 32");
  }

  const TypeInfo word = type_info("b32"), wide = type_info("b64");
  const uint32_t accumulators = plan->d == Accumulator::kF16 ? plan->n / 4 : plan->n / 2;
  // Registers of fragments are not checked like others: see check_wgmma_registers().
  add_fragment(d, 0, accumulators, word, true);
  plan->d_slots.swap(d.out.list);
  plan->d_registers.swap(d.out.writes);
  const ptx::Operand& a_operand = d.operand(1);
  plan->a_in_registers = a_operand.kind == ptx::OperandKind::kVector;
  if (plan->a_in_registers) {
    const size_t before = d.out.reads.size();
    add_fragment(d, 1, 4, word, false);
    plan->a_slots.swap(d.out.list);
    plan->a_registers.assign(d.out.reads.begin() + static_cast<ptrdiff_t>(before), d.out.reads.end());
    d.out.reads.resize(before);
  } else {
    plan->a_descriptor = d.source(a_operand, wide);
  }
  plan->b_descriptor = d.source(2, wide);
  plan->scale = d.predicate_source(d.operand(3), &plan->scale_negated);
  size_t next = 4;
  if (!is_integer(*a)) {
    plan->negate_a = negated(d, next++);
    plan->negate_b = negated(d, next++);
  }
  if (bytes_of(*a) == 2) {
    if (!plan->a_in_registers) plan->a_mn_major = transposed(d, next++);
    plan->b_mn_major = transposed(d, next++);
  }
  if (d.operands() != next) d.unknown("wants " + std::to_string(next) + " operands");
  plan->shape = plan->n << 8 | plan->k << 2 | static_cast<uint32_t>(plan->d) << 18 | 1;
  d.builder().program.uses_wgmma = true;
  d.out.payload = plan;
  d.out.execute = execute_mma_async;
}

void decode_wgmma(Decoder& d) {
  d.out.control = true;
  d.out.kind = InstructionClass::kMatrix;
  const std::string what = d.take_any({"mma_async", "fence", "commit_group", "wait_group"});
  if (what.empty()) d.unknown("wants .mma_async, .fence, .commit_group or .wait_group");
  if (!d.take("sync") || !d.take("aligned")) d.unknown("wants .sync.aligned");
  if (what == "mma_async") {
    decode_mma_async(d);
  } else if (what == "fence") {
    d.out.execute = execute_fence;
  } else if (what == "commit_group") {
    d.out.execute = execute_commit;
  } else {
    const int64_t keep = immediate(d, 0);
    if (keep < 0) d.unknown("cannot wait for fewer than no groups");
    d.out.extra[0] = static_cast<uint32_t>(keep);
    d.out.execute = execute_wait;
  }
}

const RegisterDecoders kRegistered({{"wgmma", decode_wgmma}});

}  // namespace
}  // namespace vgpu
