#include "runtime/registry.h"

#include <cstring>

#include "ptx/parser.h"
#include "runtime/context.h"

namespace vgpu::runtime {
namespace {

// What __cudaRegisterFatBinary is given.
struct Wrapper {
  int32_t magic;
  int32_t version;
  const void* container;
  const void* unused;
};
constexpr int32_t kWrapperMagic = 0x466243B1;

std::string architecture(const Chip& chip) {
  return "sm_" + std::to_string(chip.major * 10 + chip.minor) + (chip.arch_specific ? "a" : "");
}

}  // namespace

const std::string& best_ptx(const std::vector<PtxImage>& images, const Chip& chip, const std::string& name) {
  if (const PtxImage* image = best_for(images, chip)) return image->text;
  Fault fault;
  fault.kind = FaultKind::kUnsupported;
  fault.message = name + " has no PTX that " + chip.name + " (" + architecture(chip) + ") can run; it has";
  for (const PtxImage& image : images) fault.message += " " + image.target();
  if (images.empty()) fault.message += " none at all";
  fault.format();
  throw fault;
}

FatBinary::FatBinary(const void* container) : container_(container) {}

const std::vector<PtxImage>& FatBinary::images() {
  if (!read_) {
    images_ = ptx_images(container_, SIZE_MAX);
    read_ = true;
  }
  return images_;
}

std::shared_ptr<Module> FatBinary::module() {
  Gpu& gpu = current_gpu();
  std::shared_ptr<Module>& slot = context(gpu).modules[{this, architecture(gpu.chip())}];
  if (!slot)
    slot = gpu.load(best_ptx(images(), gpu.chip(), "the binary"), "fatbin." + architecture(gpu.chip()) + ".ptx");
  return slot;
}

Registry& Registry::instance() {
  // Never destroyed: binaries unregister while the process ends.
  static auto& registry = *new Registry;
  return registry;
}

FatBinary* Registry::add_binary(const void* container) {
  Wrapper wrapper;
  std::memcpy(&wrapper, container, sizeof wrapper);
  const void* data = wrapper.magic == kWrapperMagic ? wrapper.container : container;
  binaries_.push_back(std::make_unique<FatBinary>(data));
  return binaries_.back().get();
}

void Registry::remove_binary(FatBinary* binary) {
  std::erase_if(functions_, [&](const auto& entry) { return entry.second.binary == binary; });
  std::erase_if(variables_, [&](const auto& entry) { return entry.second.binary == binary; });
}

void Registry::add_function(FatBinary* binary, const void* host, std::string name) {
  Function& function = functions_[host];
  function = {};
  function.binary = binary;
  function.name = std::move(name);
}

void Registry::add_variable(FatBinary* binary, const void* host, std::string name, size_t bytes) {
  variables_[host] = {binary, std::move(name), bytes, false};
}

void Registry::add_managed(FatBinary* binary, void** host_pointer, std::string name, size_t bytes) {
  variables_[host_pointer] = {binary, std::move(name), bytes, true};
}

Status Registry::place_managed(FatBinary* binary) {
  for (const auto& [host, entry] : variables_) {
    if (entry.binary != binary || !entry.managed) continue;
    void* address = nullptr;
    if (const Status status = variable(host, &address, nullptr); status != Status::kSuccess) return status;
    std::memcpy(const_cast<void*>(host), &address, sizeof address);
  }
  return Status::kSuccess;
}

Function* Registry::function(const void* host) {
  const auto found = functions_.find(host);
  return found == functions_.end() ? nullptr : &found->second;
}

Registry::Found Registry::kernel(const void* host) {
  Found found;
  found.function = function(host);
  if (found.function == nullptr) {
    found.status = refuse(Status::kInvalidDeviceFunction, "no kernel was registered for this host function");
    return found;
  }
  try {
    found.module = found.function->binary->module();
  } catch (const ptx::SyntaxError& error) {
    found.status = refuse(Status::kInvalidPtx, error.what());
    return found;
  } catch (const Fault& fault) {
    found.status = refuse(Status::kNoKernelImageForDevice, fault.message);
    return found;
  } catch (const std::runtime_error& error) {  // the binary is damaged, or its PTX is compressed
    found.status = refuse(Status::kNoKernelImageForDevice, error.what());
    return found;
  }
  found.kernel = found.module->find(found.function->name);
  if (found.kernel == nullptr) {
    found.status =
        refuse(Status::kInvalidDeviceFunction, "the PTX for this chip has no kernel " + found.function->name);
    return found;
  }
  if (found.function->sets_dynamic_shared)
    found.kernel->max_dynamic_shared_bytes = found.function->max_dynamic_shared_bytes;
  found.kernel->non_portable_cluster = found.function->non_portable_cluster;
  return found;
}

Status Registry::variable(const void* host, void** address, size_t* bytes) {
  const auto found = variables_.find(host);
  if (found == variables_.end()) return refuse(Status::kInvalidSymbol, "no device variable was registered here");
  const VariableEntry& entry = found->second;
  std::shared_ptr<Module> module;
  try {
    module = entry.binary->module();
  } catch (const std::exception& error) {
    return refuse(Status::kNoKernelImageForDevice, error.what());
  }
  const auto place = module->variables.find(entry.name);
  if (place == module->variables.end())
    return refuse(Status::kInvalidSymbol, "the PTX for this chip has no variable " + entry.name);
  if (address != nullptr) *address = reinterpret_cast<void*>(place->second);
  if (bytes != nullptr) *bytes = entry.bytes;
  return Status::kSuccess;
}

}  // namespace vgpu::runtime
