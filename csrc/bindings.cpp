// The Python module moe_ext._C. Loading it registers torch.ops.moe_ext.*; what it defines itself touches no tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/int8/choice.h"
#include "cpu/isa.h"
#include "cpu/kept_memory.h"
#include "cpu/scratch.h"
#include "cuda/policy/gemm_plan.h"

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

moe::DType dtype_named(const std::string& name) {
  for (const auto& [known, dtype] : {std::pair{"float32", moe::DType::kFloat32},
                                     {"bfloat16", moe::DType::kBFloat16},
                                     {"float16", moe::DType::kFloat16},
                                     {"float64", moe::DType::kFloat64}}) {
    if (name == known) return dtype;
  }
  throw pybind11::value_error("gemm_plan: dtype must be float32, bfloat16, float16 or float64, got '" + name + "'");
}

// The choice of kernel and tile, for tests and for people who wonder. Needs no CUDA.
pybind11::dict gemm_plan(bool wgrad, int capability, int multiprocessors, int64_t shared_memory_per_block,
                         const std::string& dtype, bool allow_tf32, bool aligned, int64_t num_rows, int64_t num_experts,
                         int64_t n, int64_t k, bool deterministic) {
  const moe::cuda::GemmProblem problem = {.capability = capability,
                                          .multiprocessors = multiprocessors,
                                          .shared_memory_per_block = shared_memory_per_block,
                                          .dtype = dtype_named(dtype),
                                          .allow_tf32 = allow_tf32,
                                          .aligned = aligned,
                                          .num_rows = num_rows,
                                          .num_experts = num_experts,
                                          .n = n,
                                          .k = k,
                                          .deterministic = deterministic};
  const moe::cuda::GemmPlan plan = wgrad ? moe::cuda::wgrad_plan(problem) : moe::cuda::rows_plan(problem);
  pybind11::dict result;
  result["plan"] = moe::cuda::to_string(plan);
  result["block_m"] = plan.block_m;
  result["block_n"] = plan.block_n;
  result["block_k"] = plan.block_k;
  result["stages"] = plan.stages;
  result["shared_bytes"] = moe::cuda::shared_bytes(plan, wgrad);
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  if (const char* error = moe::cpu::isa_environment_error()) throw pybind11::import_error(error);
  if (const char* error = moe::cpu::kept_memory_environment_error()) throw pybind11::import_error(error);
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
  m.def("cpu_reads_side_by_side", &moe::cpu::reads_side_by_side,
        "Whether kernels read several rows of a weight side by side, as suits Intel's cores, or one after the "
        "other.");
  m.def("set_cpu_reads_side_by_side", &moe::cpu::set_reads_side_by_side, pybind11::arg("side_by_side"),
        "Has kernels read that way from now on, in all threads. No result depends on it.");
  m.def(
      "int8_kernels", [] { return std::string(moe::cpu::int8_kernels_name()); },
      "Name of the kernels for int8 weights in use: an instruction set, or avx512vnni.");
  m.def("allow_int8_instructions", &moe::cpu::allow_int8_instructions, pybind11::arg("allowed"),
        "False: kernels for int8 weights do without VNNI and AMX-int8 from now on, as where the processor lacks them.");
  m.def(
      "release_memory", [] { return moe::cpu::release_kept_blocks() + moe::cpu::release_kept_workspace(); },
      "Gives the memory that is kept for later calls and that nobody holds back to the system: how many bytes.");
  using pybind11::arg;
  m.def("gemm_plan", &gemm_plan, pybind11::kw_only(), arg("wgrad"), arg("capability"), arg("multiprocessors"),
        arg("shared_memory_per_block"), arg("dtype"), arg("allow_tf32"), arg("aligned"), arg("num_rows"),
        arg("num_experts"), arg("n"), arg("k"), arg("deterministic"),
        "Which CUDA kernel and tile serve a product: {plan, block_m, block_n, block_k, stages, shared_bytes}.");
}
