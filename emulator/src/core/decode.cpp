#include "core/decode.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <unordered_map>

#include "check/fault.h"
#include "core/access.h"
#include "core/program_builder.h"

namespace vgpu {
namespace {

std::unordered_map<std::string, Decode>& registry() {
  static std::unordered_map<std::string, Decode> decoders;
  return decoders;
}

[[noreturn]] void throw_fault(FaultKind kind, const std::string& message, const ProgramBuilder& builder,
                              const ptx::Statement& statement) {
  Fault f;
  f.kind = kind;
  f.message = message;
  f.kernel = builder.kernel.demangled;
  f.instruction = statement.text;
  f.ptx_line = statement.ptx_line;
  const auto& files = builder.kernel.module->text->files;
  if (statement.where.file != 0 && statement.where.file < files.size()) {
    f.file = files[statement.where.file];
    f.line = statement.where.line;
  } else {
    f.file = builder.kernel.module->name;
    f.line = statement.ptx_line;
  }
  f.format();
  throw f;
}

bool is_wide_special(const std::string& name) {
  return name == "%clock64" || name == "%globaltimer" || name == "%gridid" || name == "%current_graph_exec";
}

uint64_t immediate_bits(const ptx::Operand& o, const TypeInfo& type) {
  if (type.kind != TypeInfo::kFloat || o.float_bits == 0) {
    if (o.float_bits == 64 && type.bits == 32 && type.kind == TypeInfo::kFloat) {
      return std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>(o.bits)));
    }
    return type.bits >= 64 ? o.bits : o.bits & ((1ull << type.bits) - 1);
  }
  if (type.bits == 64) {
    return o.float_bits == 64
               ? o.bits
               : std::bit_cast<uint64_t>(static_cast<double>(std::bit_cast<float>(static_cast<uint32_t>(o.bits))));
  }
  if (type.bits == 32) {
    return o.float_bits == 32 ? o.bits : std::bit_cast<uint32_t>(static_cast<float>(std::bit_cast<double>(o.bits)));
  }
  return o.bits & 0xFFFF;
}

}  // namespace

RegisterDecoders::RegisterDecoders(std::initializer_list<std::pair<const char*, Decode>> decoders) {
  for (const auto& [opcode, decode] : decoders) registry()[opcode] = decode;
}

TypeInfo type_info(std::string_view name) {
  static const std::unordered_map<std::string_view, TypeInfo> kTypes = [] {
    std::unordered_map<std::string_view, TypeInfo> types;
    auto add = [&](const char* n, uint32_t bits, TypeInfo::Kind kind) { types[n] = {n, bits, kind}; };
    for (auto [n, bits] :
         {std::pair{"b1", 1u}, {"b4", 4u}, {"b8", 8u}, {"b16", 16u}, {"b32", 32u}, {"b64", 64u}, {"b128", 128u}}) {
      add(n, bits, TypeInfo::kUntyped);
    }
    for (auto [n, bits] :
         {std::pair{"u4", 4u}, {"u8", 8u}, {"u16", 16u}, {"u32", 32u}, {"u64", 64u}, {"u16x2", 32u}, {"u8x4", 32u}}) {
      add(n, bits, TypeInfo::kUnsigned);
    }
    for (auto [n, bits] :
         {std::pair{"s4", 4u}, {"s8", 8u}, {"s16", 16u}, {"s32", 32u}, {"s64", 64u}, {"s16x2", 32u}, {"s8x4", 32u}}) {
      add(n, bits, TypeInfo::kSigned);
    }
    for (auto [n, bits] : {std::pair{"f16", 16u},
                           {"bf16", 16u},
                           {"f16x2", 32u},
                           {"bf16x2", 32u},
                           {"tf32", 32u},
                           {"f32", 32u},
                           {"f32x2", 64u},
                           {"f64", 64u},
                           {"e4m3", 8u},
                           {"e5m2", 8u},
                           {"e4m3x2", 16u},
                           {"e5m2x2", 16u},
                           {"e4m3x4", 32u},
                           {"e5m2x4", 32u},
                           {"e2m1x2", 8u},
                           {"e2m3x2", 16u},
                           {"e3m2x2", 16u},
                           {"ue8m0x2", 16u}}) {
      add(n, bits, TypeInfo::kFloat);
    }
    add("pred", 1, TypeInfo::kPredicate);
    return types;
  }();
  auto it = kTypes.find(name);
  return it == kTypes.end() ? TypeInfo{} : it->second;
}

bool Decoder::take(std::string_view modifier) {
  for (size_t k = 0; k < modifiers_.size(); ++k) {
    if (modifiers_[k] == modifier) {
      modifiers_.erase(modifiers_.begin() + static_cast<ptrdiff_t>(k));
      return true;
    }
  }
  return false;
}

std::string Decoder::take_any(std::initializer_list<std::string_view> modifiers) {
  for (std::string_view m : modifiers) {
    if (take(m)) return std::string(m);
  }
  return {};
}

TypeInfo Decoder::take_type() {
  for (size_t k = 0; k < modifiers_.size(); ++k) {
    TypeInfo t = type_info(modifiers_[k]);
    if (t.bits != 0) {
      modifiers_.erase(modifiers_.begin() + static_cast<ptrdiff_t>(k));
      return t;
    }
  }
  unknown("wants a type");
}

bool Decoder::has_type() const {
  for (const std::string& m : modifiers_) {
    if (type_info(m).bits != 0) return true;
  }
  return false;
}

void Decoder::ignore(std::initializer_list<std::string_view> prefixes) {
  std::erase_if(modifiers_, [&](const std::string& m) {
    for (std::string_view p : prefixes) {
      if (m.starts_with(p)) return true;
    }
    return false;
  });
}

const ptx::Operand& Decoder::operand(size_t k) const {
  if (k >= statement.operands.size()) {
    unknown("wants more than " + std::to_string(statement.operands.size()) + " operands");
  }
  return statement.operands[k];
}

uint32_t Decoder::register_bits(const ptx::Operand& o) const {
  return o.kind == ptx::OperandKind::kRegister ? builder_.register_of(o.index).type.bits : 0;
}

uint32_t Decoder::register_number(const ptx::Operand& o) const {
  if (o.kind != ptx::OperandKind::kRegister) unknown("wants a register, got " + o.name);
  return builder_.register_number(o.index);
}

Slot Decoder::constant(uint64_t value, bool wide) { return builder_.constant_slot(value, wide); }

Slot Decoder::source(const ptx::Operand& o, const TypeInfo& type) {
  switch (o.kind) {
    case ptx::OperandKind::kRegister: {
      uint32_t bits = register_bits(o);
      if (bits < type.bits || (type.bits == 1 && bits != 1)) {
        unknown("the register " + o.name + " of " + std::to_string(bits) + " bits cannot hold ." + type.name);
      }
      out.reads.push_back(register_number(o));
      return builder_.register_slot(o.index);
    }
    case ptx::OperandKind::kImmediate: {
      if (type.bits > 64) unknown("an immediate cannot be ." + type.name);
      if (type.bits == 1) {
        Slot slot = builder_.constant_slot(o.bits ? ~0u : 0u, false);
        return slot;
      }
      return constant(immediate_bits(o, type), type.bits == 64);
    }
    case ptx::OperandKind::kSpecial: {
      bool wide = is_wide_special(o.name);
      Slot slot = builder_.special_slot(o.name, wide || type.bits == 64);
      return slot;
    }
    case ptx::OperandKind::kSymbol:
      return constant(builder_.symbol_address(*this, o, false) + static_cast<uint64_t>(o.offset), type.bits == 64);
    default:
      unknown("cannot read the operand " + o.name);
  }
}

Slot Decoder::destination(const ptx::Operand& o, const TypeInfo& type) {
  if (o.kind == ptx::OperandKind::kSink) return builder_.scratch_slot(type.bits > 64 ? 512 : 256);
  if (o.kind != ptx::OperandKind::kRegister) unknown("cannot write the operand " + o.name);
  uint32_t bits = register_bits(o);
  if (bits < type.bits || (type.bits == 1 && bits != 1)) {
    unknown("the register " + o.name + " of " + std::to_string(bits) + " bits cannot hold ." + type.name);
  }
  out.writes.push_back(register_number(o));
  return builder_.register_slot(o.index);
}

Slot Decoder::accumulator(const ptx::Operand& o, const TypeInfo& type) {
  source(o, type);
  return destination(o, type);
}

Slot Decoder::predicate_source(const ptx::Operand& o, bool* negated) {
  if (o.negated && negated == nullptr) unknown("a negated predicate is not allowed here");
  if (negated != nullptr) *negated = o.negated;
  return source(o, type_info("pred"));
}

Slot Decoder::predicate_destination(const ptx::Operand& o) { return destination(o, type_info("pred")); }

ptx::Space Decoder::address_space(const ptx::Operand& address, ptx::Space stated) const {
  if (stated != ptx::Space::kParam) return stated;
  const ptx::Operand& base = address.kind == ptx::OperandKind::kAddress ? address.elements.at(0) : address;
  bool is_call_variable = base.kind == ptx::OperandKind::kSymbol && base.table != ptx::SymbolTable::kParameters;
  return is_call_variable || !builder_.frame().function->is_entry ? ptx::Space::kLocal : stated;
}

Decoder::Address Decoder::address(const ptx::Operand& o, ptx::Space space) {
  if (o.kind != ptx::OperandKind::kAddress) unknown("wants an address in brackets, got " + o.name);
  const ptx::Operand& base = o.elements.at(0);
  Address a;
  a.offset = o.offset;
  switch (base.kind) {
    case ptx::OperandKind::kRegister:
      a.wide = register_bits(base) == 64;
      if (!a.wide && register_bits(base) != 32) unknown("an address register has 32 or 64 bits");
      out.reads.push_back(register_number(base));
      a.base = builder_.register_slot(base.index);
      return a;
    case ptx::OperandKind::kSymbol:
      a.wide = true;
      a.base = constant(
          builder_.symbol_address(*this, base, space == ptx::Space::kNone) + static_cast<uint64_t>(base.offset), true);
      return a;
    case ptx::OperandKind::kImmediate:
      a.wide = true;
      a.base = constant(base.bits, true);
      return a;
    default:
      unknown("cannot use " + base.name + " as an address");
  }
}

void Decoder::branch_target(const ptx::Operand& o, uint32_t* where) {
  if (o.kind != ptx::OperandKind::kLabel) unknown("wants a label, got " + o.name);
  builder_.fix_up(static_cast<uint32_t>(where - out.extra.data()), o.index);
}

void Decoder::note_access(ptx::Space space, uint32_t bytes) {
  Program& p = builder_.program;
  uint32_t granule = bytes >= 4 ? 4 : bytes;
  if (space == ptx::Space::kShared || space == ptx::Space::kNone)
    p.shared_granule = std::min(p.shared_granule, granule);
  if (space == ptx::Space::kGlobal || space == ptx::Space::kNone)
    p.global_granule = std::min(p.global_granule, granule);
}

void Decoder::unknown(const std::string& why) const {
  throw_fault(FaultKind::kUnknownInstruction, statement.opcode + ": " + why, builder_, statement);
}

void Decoder::unsupported(const std::string& why) const {
  throw_fault(FaultKind::kUnsupported, statement.opcode + ": " + why + " is not modelled", builder_, statement);
}

void ProgramBuilder::decode_statement(const ptx::Statement& statement) {
  Instruction out;
  Decoder decoder(*this, statement, out);
  auto it = registry().end();
  if (!statement.modifiers.empty()) it = registry().find(statement.opcode + "." + statement.modifiers.front());
  if (it == registry().end()) it = registry().find(statement.opcode);
  if (it == registry().end()) decoder.unknown("the emulator does not know this instruction");
  if (statement.guard != ptx::kNoIndex) {
    out.guard = register_slot(statement.guard);
    out.guard_negated = statement.guard_negated;
    out.reads.push_back(register_number(statement.guard));
  }
  skip_emit = false;
  it->second(decoder);
  if (!decoder.rest().empty()) decoder.unknown("the emulator does not know the modifier ." + decoder.rest().front());
  if (skip_emit) {
    skip_emit = false;
    return;
  }
  if (out.execute == nullptr) decoder.unknown("the emulator cannot execute it");
  emit(std::move(out), statement);
}

Program decode(const Kernel& kernel) { return ProgramBuilder(kernel).build(); }

}  // namespace vgpu
