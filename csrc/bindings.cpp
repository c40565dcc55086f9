// The Python module moe_ext._C. Loading it registers torch.ops.moe_ext.*; what it defines itself touches no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/isa.h"

#ifndef MOE_EXT_TORCH_VERSION
#define MOE_EXT_TORCH_VERSION "unknown"
#endif
#ifndef MOE_EXT_BUILD_TYPE
#define MOE_EXT_BUILD_TYPE "unknown"
#endif
#ifndef MOE_EXT_CUDA_BUILT
#define MOE_EXT_CUDA_BUILT 0
#endif

namespace {

using moe::cpu::Isa;

std::vector<std::string> isas_where(bool (*condition)(Isa)) {
  std::vector<std::string> names;
  for (int i = 0; i < moe::cpu::kNumIsas; ++i) {
    const Isa isa = static_cast<Isa>(i);
    if (condition(isa)) names.emplace_back(moe::cpu::isa_name(isa));
  }
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::map<std::string, std::string> build_info() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
  const std::string compiler = "gcc " __VERSION__;
#else
  const std::string compiler = "unknown";
#endif
  return {
      {"torch", MOE_EXT_TORCH_VERSION},
      {"compiler", compiler},
      {"build_type", MOE_EXT_BUILD_TYPE},
      {"cuda", MOE_EXT_CUDA_BUILT ? "yes" : "no"},
      {"cpu_isas", joined(isas_where(moe::cpu::isa_compiled))},
  };
}

void set_cpu_isa(const std::string& name) {
  const Isa* isa = moe::cpu::isa_from_name(name.c_str());
  if (isa != nullptr && moe::cpu::set_current_isa(*isa)) return;
  const char* why = isa == nullptr                  ? "is no instruction set"
                    : !moe::cpu::isa_compiled(*isa) ? "was left out of this build"
                                                    : "does not run on this machine";
  throw pybind11::value_error("set_cpu_isa: '" + name + "' " + why +
                              ", available: " + joined(isas_where(moe::cpu::isa_available)));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  if (const char* error = moe::cpu::isa_environment_error()) throw pybind11::import_error(error);
  m.doc() = "The compiled part of moe_ext. Importing it registers torch.ops.moe_ext.*.";
  m.def("build_info", &build_info, "How this module was built.");
  m.def(
      "cpu_isas_compiled", [] { return isas_where(moe::cpu::isa_compiled); },
      "Names of the instruction sets that this build has kernels for, weakest first.");
  m.def(
      "cpu_isas_available", [] { return isas_where(moe::cpu::isa_available); },
      "Names of those that this machine can run, weakest first.");
  m.def(
      "cpu_isa", [] { return std::string(moe::cpu::isa_name(moe::cpu::current_isa())); },
      "Name of the instruction set in use.");
  m.def("set_cpu_isa", &set_cpu_isa, pybind11::arg("name"),
        "Uses another instruction set from now on, in all threads. Raises ValueError if it is not available.");
}
