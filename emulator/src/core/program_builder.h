// Lays out a kernel's registers and variables and strings its decoded instructions together. Functions are inlined at
// each call: a call frame is a set of registers and local memory of its own.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/decode.h"

namespace vgpu {

// One inlined copy of a function.
struct Frame {
  const ptx::Function* function = nullptr;
  uint32_t register_base = 0;                               // its first register's number
  std::vector<uint32_t> variable_offsets;                   // shared or local, by Function::variables
  std::vector<uint32_t> parameter_offsets, result_offsets;  // local memory; of a .func only
  std::vector<uint32_t> statement_index;                    // statement → instruction, one more for the end
  const Frame* caller = nullptr;
};

class ProgramBuilder {
 public:
  explicit ProgramBuilder(const Kernel& kernel) : kernel(kernel) {}
  Program build();

  const Kernel& kernel;
  Program program;

  const Frame& frame() const { return *frame_; }
  Slot register_slot(uint32_t index) const { return slots_[frame_->register_base + index]; }
  uint32_t register_number(uint32_t index) const { return frame_->register_base + index; }
  const ptx::Register& register_of(uint32_t index) const { return frame_->function->registers[index]; }
  Slot constant_slot(uint64_t value, bool wide);
  Slot special_slot(const std::string& name, bool wide);
  Slot scratch_slot(uint32_t bytes);
  // The carry of add.cc and its kind: a hidden predicate.
  Slot condition_code() {
    if (condition_code_ == kNoSlot) condition_code_ = scratch_slot(sizeof(LaneMask));
    return condition_code_;
  }
  // A symbol's address in its own space, or its generic address.
  uint64_t symbol_address(const Decoder& decoder, const ptx::Operand& symbol, bool generic) const;
  // The local memory of a call's argument or result.
  uint32_t local_offset(const Decoder& decoder, const ptx::Operand& symbol) const;

  // Sets code[instruction].extra[k], or (*table)[k] when there is a table, to the instruction of a statement of the
  // current frame, once that is known.
  void fix_up(uint32_t k, uint32_t statement, std::shared_ptr<std::vector<uint32_t>> table = nullptr);
  // The index that the instruction being decoded will have.
  uint32_t next_index() const { return static_cast<uint32_t>(program.code.size()); }
  void inline_call(const Decoder& decoder, const ptx::Function& callee);
  void emit(Instruction instruction, const ptx::Statement& statement);
  // The instruction that the decoder holds need not be emitted: the call did all.
  bool skip_emit = false;

 private:
  struct FixUp {
    uint32_t instruction, k, statement;
    std::shared_ptr<std::vector<uint32_t>> table;
  };
  void decode_body(Frame& frame, const Frame* caller);
  void decode_statement(const ptx::Statement& statement);
  void mark_loads_before_swaps();
  uint32_t allocate_local(uint32_t bytes, uint32_t align);

  Frame* frame_ = nullptr;
  uint32_t depth_ = 0;
  Slot condition_code_ = kNoSlot;
  std::vector<Slot> slots_;  // by register number
  std::map<std::pair<uint64_t, bool>, Slot> constants_;
  std::map<std::pair<std::string, bool>, Slot> special_slots_;  // by name and width
  std::vector<FixUp> fix_ups_;
};

}  // namespace vgpu
