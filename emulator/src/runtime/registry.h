// Fat binaries, and the kernels and variables that host code knows by address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/gpu.h"
#include "core/kernel.h"
#include "runtime/errors.h"
#include "runtime/fatbin.h"

namespace vgpu::runtime {

// The PTX text that the chip would run. Throws a Fault of kind unsupported that names what there is instead.
const std::string& best_ptx(const std::vector<PtxImage>& images, const Chip& chip, const std::string& name);

class FatBinary {
 public:
  explicit FatBinary(const void* container);

  // Of the current GPU's chip, parsed at the first call. Throws as best_ptx and Gpu::load.
  std::shared_ptr<Module> module();
  const std::vector<PtxImage>& images();

 private:
  const void* container_;
  std::vector<PtxImage> images_;
  bool read_ = false;
};

// A __global__ function, known by the address of its host stub.
struct Function {
  FatBinary* binary = nullptr;
  std::string name;
  // Set by cudaFuncSetAttribute. Kept here and not per GPU, since launchers set them once per process.
  uint32_t max_dynamic_shared_bytes = 0;
  bool sets_dynamic_shared = false;
  bool non_portable_cluster = false;
  int shared_carveout = -1;
};

// A __device__, __constant__ or __managed__ variable, known by the address of its host shadow.
struct VariableEntry {
  FatBinary* binary = nullptr;
  std::string name;
  size_t bytes = 0;
  bool managed = false;  // known by the address of the host's pointer to it
};

class Registry {
 public:
  static Registry& instance();

  FatBinary* add_binary(const void* container);
  void remove_binary(FatBinary* binary);
  void add_function(FatBinary* binary, const void* host, std::string name);
  void add_variable(FatBinary* binary, const void* host, std::string name, size_t bytes);
  void add_managed(FatBinary* binary, void** host_pointer, std::string name, size_t bytes);
  // Points the host's pointers to managed variables at the current GPU's memory. Host code asks for it once.
  Status place_managed(FatBinary* binary);

  // Null when unknown.
  Function* function(const void* host);

  struct Found {
    Status status = Status::kSuccess;
    std::shared_ptr<Module> module;  // keeps the kernel alive
    const Kernel* kernel = nullptr;
    Function* function = nullptr;
  };
  // The kernel behind a host stub on the current GPU, with the attributes that were set.
  Found kernel(const void* host);

  // The address of a variable on the current GPU.
  Status variable(const void* host, void** address, size_t* bytes);

 private:
  std::vector<std::unique_ptr<FatBinary>> binaries_;  // removed ones too: modules are known by their addresses
  std::unordered_map<const void*, Function> functions_;
  std::unordered_map<const void*, VariableEntry> variables_;
};

}  // namespace vgpu::runtime
