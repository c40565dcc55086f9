// From a PTX statement to an executable instruction.
//
// Each family of instructions registers decoders by opcode:
//
//   static const RegisterDecoders kRegistered({{"add", decode_add}, {"sub", decode_sub}});
//
// "opcode.first_modifier" ("st.async") goes before the opcode alone. A decoder consumes every modifier it understands;
// whatever is left over is an unknown instruction.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/instruction.h"
#include "core/kernel.h"
#include "ptx/ast.h"

namespace vgpu {

// "f32", "u16", "b64", "bf16x2", "e4m3", "pred": what registers of a type look like.
struct TypeInfo {
  std::string name;
  uint32_t bits = 0;  // of one register: f16x2 has 32
  enum Kind : uint8_t { kUntyped, kUnsigned, kSigned, kFloat, kPredicate } kind = kUntyped;
};
// bits 0 when `name` is not a type.
TypeInfo type_info(std::string_view name);

class ProgramBuilder;

class Decoder {
 public:
  Decoder(ProgramBuilder& builder, const ptx::Statement& statement, Instruction& out)
      : statement(statement), out(out), builder_(builder), modifiers_(statement.modifiers) {}

  const ptx::Statement& statement;
  Instruction& out;

  // Modifiers: each is consumed once.
  bool take(std::string_view modifier);
  // The first of these that is there, consumed; empty when none is.
  std::string take_any(std::initializer_list<std::string_view> modifiers);
  // The first remaining modifier that names a type, consumed. Faults when there is none.
  TypeInfo take_type();
  bool has_type() const;
  const std::vector<std::string>& rest() const { return modifiers_; }
  // Consumes modifiers that change nothing here (cache hints, scopes…), by prefix.
  void ignore(std::initializer_list<std::string_view> prefixes);

  const ptx::Operand& operand(size_t k) const;  // faults when there are fewer
  size_t operands() const { return statement.operands.size(); }

  // A source's slot: register, immediate, special register, address of a variable. `type` says how an immediate is
  // stored, and is checked against the register's width (a wider register is allowed where PTX relaxes it).
  Slot source(const ptx::Operand& operand, const TypeInfo& type);
  Slot source(size_t k, const TypeInfo& type) { return source(operand(k), type); }
  // A destination's slot. A sink gets a slot of its own that no one reads.
  Slot destination(const ptx::Operand& operand, const TypeInfo& type);
  Slot destination(size_t k, const TypeInfo& type) { return destination(operand(k), type); }
  // Read and written: accumulators.
  Slot accumulator(const ptx::Operand& operand, const TypeInfo& type);
  // A predicate source: register (with !: *negated) or immediate.
  Slot predicate_source(const ptx::Operand& operand, bool* negated = nullptr);
  Slot predicate_destination(const ptx::Operand& operand);

  // [base + offset]: the base's slot, whether its lanes have 64 bits, and the offset. A variable as base becomes a
  // constant slot that holds its address in `space` (kNone: its generic address).
  struct Address {
    Slot base = kNoSlot;
    bool wide = false;
    int64_t offset = 0;
  };
  Address address(const ptx::Operand& operand, ptx::Space space);
  Address address(size_t k, ptx::Space space) { return address(operand(k), space); }

  // A slot of 32 lanes that all hold this value.
  Slot constant(uint64_t value, bool wide);
  // Bits of a register operand (1 for a predicate); 0 when it is no register.
  uint32_t register_bits(const ptx::Operand& operand) const;
  // The number of a register operand in Warp::written.
  uint32_t register_number(const ptx::Operand& operand) const;
  // Instruction index of a label operand: filled in when the program is complete.
  void branch_target(const ptx::Operand& operand, uint32_t* where);
  // The space that a memory instruction really touches: parameters of a .func and of calls are local memory here.
  ptx::Space address_space(const ptx::Operand& address, ptx::Space stated) const;
  // Tells the shadows what the narrowest access is.
  void note_access(ptx::Space space, uint32_t bytes);

  ProgramBuilder& builder() { return builder_; }
  [[noreturn]] void unknown(const std::string& why) const;  // Fault kUnknownInstruction
  [[noreturn]] void unsupported(const std::string& why) const;

 private:
  ProgramBuilder& builder_;
  std::vector<std::string> modifiers_;
};

using Decode = void (*)(Decoder&);
struct RegisterDecoders {
  RegisterDecoders(std::initializer_list<std::pair<const char*, Decode>> decoders);
};

// Decodes a kernel; .func calls are inlined. Throws Fault.
Program decode(const Kernel& kernel);

}  // namespace vgpu
