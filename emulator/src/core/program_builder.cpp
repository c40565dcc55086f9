#include "core/program_builder.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/access.h"
#include "exec/memory_operand.h"

namespace vgpu {
namespace {

constexpr uint32_t kMaxCallDepth = 64;
constexpr size_t kMaxInstructions = 2'000'000;

uint32_t align_up(uint64_t value, uint32_t align) { return static_cast<uint32_t>((value + align - 1) / align * align); }

uint32_t slot_bytes(const ptx::Type& type) {
  if (type.bits <= 1) return sizeof(LaneMask);
  if (type.bits <= 32) return 4 * kLanes;
  return type.bits <= 64 ? 8 * kLanes : 16 * kLanes;
}

}  // namespace

Slot ProgramBuilder::scratch_slot(uint32_t bytes) {
  Slot slot = program.register_bytes;
  program.register_bytes += align_up(bytes, 64);
  return slot;
}

Slot ProgramBuilder::constant_slot(uint64_t value, bool wide) {
  if (!wide) value = static_cast<uint32_t>(value);
  auto [it, fresh] = constants_.try_emplace({value, wide}, 0);
  if (fresh) it->second = scratch_slot((wide ? 8 : 4) * kLanes);
  return it->second;
}

Slot ProgramBuilder::special_slot(const std::string& name, bool wide) {
  auto [it, fresh] = special_slots_.try_emplace({name, wide}, 0);
  if (fresh) {
    it->second = scratch_slot((wide ? 8 : 4) * kLanes);
    program.specials.push_back({name, it->second, wide});
    program.uses_reserved_shared |= name.starts_with("%reserved_smem");
  }
  return it->second;
}

uint32_t ProgramBuilder::allocate_local(uint32_t bytes, uint32_t align) {
  uint32_t offset = align_up(program.local_bytes, std::max(align, 1u));
  program.local_bytes = offset + bytes;
  return offset;
}

uint32_t ProgramBuilder::local_offset(const Decoder& decoder, const ptx::Operand& symbol) const {
  switch (symbol.table) {
    case ptx::SymbolTable::kVariables:
      return frame_->variable_offsets[symbol.index];
    case ptx::SymbolTable::kParameters:
      return frame_->parameter_offsets.at(symbol.index);
    case ptx::SymbolTable::kResults:
      return frame_->result_offsets.at(symbol.index);
    default:
      decoder.unsupported("a call's argument that is not a .param variable: " + symbol.name);
  }
}

uint64_t ProgramBuilder::symbol_address(const Decoder& decoder, const ptx::Operand& symbol, bool generic) const {
  auto shared = [&](const ptx::Variable& v) -> uint64_t {
    uint64_t offset = v.is_extern ? kernel.dynamic_shared_offset() : kernel.shared_offsets.at(&v);
    return generic ? kSharedWindow | offset : offset;
  };
  switch (symbol.table) {
    case ptx::SymbolTable::kParameters:
      if (frame_->function->is_entry) {
        uint64_t offset = frame_->function->parameters[symbol.index].offset;
        return generic ? kParameterWindow | offset : offset;
      }
      [[fallthrough]];
    case ptx::SymbolTable::kResults: {
      uint64_t offset = local_offset(decoder, symbol);
      return generic ? kLocalWindow | offset : offset;
    }
    case ptx::SymbolTable::kVariables: {
      const ptx::Variable& v = frame_->function->variables[symbol.index];
      if (v.space == ptx::Space::kShared) return shared(v);
      uint64_t offset = frame_->variable_offsets[symbol.index];
      return generic ? kLocalWindow | offset : offset;
    }
    case ptx::SymbolTable::kModuleVariables: {
      const ptx::Variable& v = kernel.module->text->variables[symbol.index];
      if (v.space == ptx::Space::kShared) return shared(v);
      auto it = kernel.module->variables.find(v.name);
      if (it == kernel.module->variables.end()) decoder.unsupported("the address of " + v.name);
      return it->second;
    }
    case ptx::SymbolTable::kFunctions:
      decoder.unsupported("the address of the function " + symbol.name);
    default:
      decoder.unknown("the symbol " + symbol.name + " has no address");
  }
}

void ProgramBuilder::fix_up(uint32_t k, uint32_t statement, std::shared_ptr<std::vector<uint32_t>> table) {
  fix_ups_.push_back({next_index(), k, statement, std::move(table)});
}

void ProgramBuilder::emit(Instruction instruction, const ptx::Statement& statement) {
  if (program.code.size() >= kMaxInstructions) {
    Fault f;
    f.kind = FaultKind::kUnsupported;
    f.message = "more than " + std::to_string(kMaxInstructions) + " instructions after inlining";
    f.kernel = kernel.demangled;
    f.format();
    throw f;
  }
  instruction.index = next_index();
  instruction.statement = &statement;
  program.code.push_back(std::move(instruction));
}

void ProgramBuilder::decode_body(Frame& frame, const Frame* caller) {
  frame.caller = caller;
  const ptx::Function& f = *frame.function;
  frame.register_base = static_cast<uint32_t>(slots_.size());
  for (const ptx::Register& r : f.registers) {
    slots_.push_back(scratch_slot(slot_bytes(r.type)));
    program.register_names.push_back(r.name);
  }
  frame.variable_offsets.resize(f.variables.size());
  for (size_t k = 0; k < f.variables.size(); ++k) {
    const ptx::Variable& v = f.variables[k];
    frame.variable_offsets[k] = v.space == ptx::Space::kShared
                                    ? 0  // Kernel::shared_offsets has it
                                    : allocate_local(static_cast<uint32_t>(v.bytes), v.align);
  }
  Frame* outer = frame_;
  frame_ = &frame;
  size_t first_fix_up = fix_ups_.size();
  for (const ptx::Statement& s : f.statements) {
    frame.statement_index.push_back(next_index());
    decode_statement(s);
  }
  frame.statement_index.push_back(next_index());
  for (size_t k = first_fix_up; k < fix_ups_.size(); ++k) {
    const FixUp& fix = fix_ups_[k];
    uint32_t target = frame.statement_index[fix.statement];
    (fix.table ? (*fix.table)[fix.k] : program.code[fix.instruction].extra[fix.k]) = target;
  }
  fix_ups_.resize(first_fix_up);
  frame_ = outer;
}

void ProgramBuilder::inline_call(const Decoder& decoder, const ptx::Function& callee) {
  if (++depth_ > kMaxCallDepth) decoder.unsupported("recursion, or calls more than 64 deep");
  Frame frame;
  frame.function = &callee;
  auto bind = [&](const ptx::Operand& given, size_t wanted, std::vector<uint32_t>& offsets) {
    if (given.elements.size() != wanted) decoder.unknown("the call's arguments do not match " + callee.name);
    for (const ptx::Operand& o : given.elements) offsets.push_back(local_offset(decoder, o));
  };
  bind(decoder.operand(0), callee.results.size(), frame.result_offsets);
  bind(decoder.operand(2), callee.parameters.size(), frame.parameter_offsets);
  decode_body(frame, frame_);
  --depth_;
}

void ProgramBuilder::mark_loads_before_swaps() {
  std::set<Slot> swapped;
  for (const Instruction& i : program.code) {
    const auto& m = i.statement->modifiers;
    if (i.statement->opcode == "atom" && std::find(m.begin(), m.end(), "cas") != m.end()) swapped.insert(i.slot[0]);
  }
  for (Instruction& i : program.code) {
    if (i.statement->opcode == "ld" && i.kind == InstructionClass::kMemory && swapped.contains(i.slot[0]))
      i.extra[2] |= kBeforeSwap;
  }
}

Program ProgramBuilder::build() {
  program.register_bytes = 0;
  Frame entry;
  entry.function = kernel.function;
  decode_body(entry, nullptr);
  static const ptx::Statement kEnd = [] {
    ptx::Statement s;
    s.opcode = "exit";
    s.text = "end of the kernel";
    return s;
  }();
  decode_statement(kEnd);
  mark_loads_before_swaps();
  program.register_count = static_cast<uint32_t>(slots_.size());
  program.constants.assign(program.register_bytes, std::byte{0});
  for (const auto& [key, slot] : constants_) {
    for (uint32_t l = 0; l < kLanes; ++l) {
      if (key.second) {
        std::memcpy(&program.constants[slot + 8 * l], &key.first, 8);
      } else {
        std::memcpy(&program.constants[slot + 4 * l], &key.first, 4);
      }
    }
  }
  return std::move(program);
}

}  // namespace vgpu
