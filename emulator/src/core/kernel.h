// A loaded module and its kernels, laid out and decoded.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "ptx/ast.h"

namespace vgpu {

struct Program;  // core/instruction.h: the decoded instructions

struct Kernel {
  std::string name;       // as in the PTX
  std::string demangled;  // with its template arguments, without its parameters' types where that is unambiguous
  const struct Module* module = nullptr;
  const ptx::Function* function = nullptr;
  uint32_t parameter_bytes = 0;
  uint32_t static_shared_bytes = 0;
  uint32_t local_bytes = 0;  // per thread
  uint32_t dynamic_shared_align = 16;
  bool uses_dynamic_shared = false;
  std::unordered_map<const ptx::Variable*, uint32_t> shared_offsets;  // static variables of all functions it calls

  // Set through the runtime (cudaFuncSetAttribute).
  mutable uint32_t max_dynamic_shared_bytes = 0;
  mutable bool non_portable_cluster = false;

  // Where dynamic shared memory begins.
  uint32_t dynamic_shared_offset() const;

  // Decoded at the first launch. Throws Fault for what the emulator does not know.
  const Program& program() const;

  ~Kernel();

 private:
  mutable std::once_flag decoded_;
  mutable std::unique_ptr<Program> program_;
};

struct Module {
  std::string name;
  std::unique_ptr<ptx::Module> text;
  std::vector<std::unique_ptr<Kernel>> kernels;
  std::unordered_map<std::string, uint64_t> variables;  // .global and .const: their addresses
  std::unordered_map<std::string, uint64_t> variable_bytes;
  class Memory* memory = nullptr;  // that holds the variables

  // By name in the PTX or demangled; null when there is none.
  const Kernel* find(const std::string& name) const;
  ~Module();
};

std::string demangle(const std::string& name);

}  // namespace vgpu
