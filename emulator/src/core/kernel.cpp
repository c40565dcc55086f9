#include "core/kernel.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "core/block.h"
#include "core/decode.h"

namespace vgpu {

Kernel::~Kernel() = default;
Module::~Module() {
  if (memory != nullptr) {
    for (const auto& [name, address] : variables) memory->release(reinterpret_cast<void*>(address));
  }
}

const Program& Kernel::program() const {
  std::call_once(decoded_, [this] { program_ = std::make_unique<Program>(decode(*this)); });
  return *program_;
}

uint32_t Kernel::dynamic_shared_offset() const {
  uint32_t align = std::max(dynamic_shared_align, 16u);
  return (kSharedBase + static_shared_bytes + align - 1) / align * align;
}

const Kernel* Module::find(const std::string& wanted) const {
  for (const auto& k : kernels) {
    if (k->name == wanted) return k.get();
  }
  for (const auto& k : kernels) {
    if (k->demangled == wanted) return k.get();
  }
  return nullptr;
}

std::string demangle(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  if (status != 0 || text == nullptr) return name;
  std::string full = text;
  std::free(text);
  // Cut the parameter list: the "(" that closes at the end, outside template brackets.
  int depth = 0;
  for (size_t k = full.size(); k-- > 0;) {
    if (full[k] == ')') ++depth;
    if (full[k] == '(' && --depth == 0) {
      full.resize(k);
      break;
    }
  }
  if (full.starts_with("void ")) full.erase(0, 5);
  return full;
}

}  // namespace vgpu
