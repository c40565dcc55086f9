#include "runtime/launch.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime/context.h"
#include "runtime/occupancy.h"
#include "runtime/registry.h"

namespace vgpu::runtime {
namespace {

using Triple = std::array<uint32_t, 3>;

constexpr Triple kMaxGrid{0x7fffffff, 65535, 65535};
constexpr Triple kMaxBlock{1024, 1024, 64};

thread_local std::vector<Configuration> configurations;

std::string text(const Triple& v) {
  return "(" + std::to_string(v[0]) + ", " + std::to_string(v[1]) + ", " + std::to_string(v[2]) + ")";
}

uint64_t product(const Triple& v) { return uint64_t{v[0]} * v[1] * v[2]; }

Status check_shape(const LaunchRequest& r, const Kernel& kernel, const Chip& chip) {
  for (int i = 0; i < 3; ++i) {
    if (r.grid[i] == 0 || r.grid[i] > kMaxGrid[i])
      return refuse(Status::kInvalidConfiguration, "grid " + text(r.grid) + " of " + kernel.demangled);
    if (r.block[i] == 0 || r.block[i] > kMaxBlock[i])
      return refuse(Status::kInvalidConfiguration, "block " + text(r.block) + " of " + kernel.demangled);
  }
  const uint64_t threads = product(r.block);
  if (threads > chip.max_threads_per_block)
    return refuse(Status::kInvalidConfiguration, std::to_string(threads) + " threads a block for " + kernel.demangled);
  if (threads > max_threads_per_block(kernel, chip))
    return refuse(Status::kInvalidValue, std::to_string(threads) + " threads a block, the launch bounds of " +
                                             kernel.demangled + " allow " +
                                             std::to_string(max_threads_per_block(kernel, chip)));
  const auto& required = kernel.function->required_threads;
  for (int i = 0; i < 3; ++i)
    if (required[0] != 0 && r.block[i] != std::max(required[i], 1u))
      return refuse(Status::kInvalidValue, kernel.demangled + " wants blocks of exactly its .reqntid");
  // Warps get registers in units, so a partial warp costs as much as a full one.
  const uint64_t registers = known_registers(kernel, chip) * ((threads + 31) / 32 * 32);
  if (registers > chip.registers_per_block)
    return refuse(Status::kLaunchOutOfResources,
                  std::to_string(registers) + " registers a block for " + kernel.demangled);
  return Status::kSuccess;
}

Status check_shared(const LaunchRequest& r, const Kernel& kernel, const Chip& chip) {
  const uint64_t total = kernel.static_shared_bytes + r.dynamic_shared;
  if (total > chip.shared_per_block_optin)
    return refuse(Status::kInvalidValue, std::to_string(total) + " bytes of shared memory for " + kernel.demangled +
                                             ", " + chip.name + " has " + std::to_string(chip.shared_per_block_optin));
  if (total > chip.shared_per_block && r.dynamic_shared > kernel.max_dynamic_shared_bytes)
    return refuse(Status::kInvalidValue, std::to_string(r.dynamic_shared) + " bytes of dynamic shared memory for " +
                                             kernel.demangled +
                                             " without cudaFuncAttributeMaxDynamicSharedMemorySize (" +
                                             std::to_string(kernel.max_dynamic_shared_bytes) + " allowed)");
  return Status::kSuccess;
}

// Settles the cluster: the one of the launch, or the one that the kernel was compiled with.
Status check_cluster(const LaunchRequest& r, const Kernel& kernel, const Chip& chip, Triple* cluster) {
  const ptx::Function& f = *kernel.function;
  const Triple compiled{f.required_cluster[0], f.required_cluster[1], f.required_cluster[2]};
  *cluster = r.cluster[0] != 0 ? r.cluster : compiled[0] != 0 ? compiled : Triple{1, 1, 1};
  for (uint32_t& n : *cluster) n = std::max(n, 1u);
  if (compiled[0] != 0 && r.cluster[0] != 0 && compiled != r.cluster)
    return refuse(Status::kInvalidClusterSize, "cluster " + text(r.cluster) + " for " + kernel.demangled +
                                                   ", which was compiled for " + text(compiled));
  const uint64_t size = product(*cluster);
  if (size == 1) return Status::kSuccess;
  const uint32_t limit = max_cluster_size(kernel, chip);
  if (limit == 0) return refuse(Status::kInvalidClusterSize, chip.name + " has no clusters");
  if (size > limit)
    return refuse(Status::kInvalidClusterSize, "cluster " + text(*cluster) + " for " + kernel.demangled + ", " +
                                                   std::to_string(limit) + " blocks are allowed");
  for (int i = 0; i < 3; ++i)
    if (r.grid[i] % (*cluster)[i] != 0)
      return refuse(Status::kInvalidClusterSize, "cluster " + text(*cluster) + " does not divide the grid " +
                                                     text(r.grid) + " of " + kernel.demangled);
  if (active_clusters(kernel, chip, static_cast<uint32_t>(size), static_cast<uint32_t>(product(r.block)),
                      r.dynamic_shared) == 0)
    return refuse(Status::kInvalidClusterSize,
                  "not one cluster " + text(*cluster) + " of " + kernel.demangled + " fits");
  return Status::kSuccess;
}

Status check_cooperative(const LaunchRequest& r, const Kernel& kernel, const Chip& chip) {
  if (!r.cooperative) return Status::kSuccess;
  const uint64_t resident =
      uint64_t{blocks_per_multiprocessor(kernel, chip, static_cast<uint32_t>(product(r.block)), r.dynamic_shared)} *
      chip.multiprocessors;
  if (product(r.grid) > resident)
    return refuse(Status::kCooperativeLaunchTooLarge, std::to_string(product(r.grid)) + " blocks of " +
                                                          kernel.demangled + ", " + std::to_string(resident) +
                                                          " fit at once");
  return Status::kSuccess;
}

std::vector<std::byte> pack(const Kernel& kernel, void** arguments) {
  std::vector<std::byte> data(kernel.parameter_bytes);
  size_t index = 0;
  for (const ptx::Parameter& parameter : kernel.function->parameters)
    std::memcpy(data.data() + parameter.offset, arguments[index++], parameter.bytes);
  return data;
}

// A graph may be launched after another GPU was made current.
Status run(const Gpu* gpu, const Kernel& kernel, const LaunchConfig& config, const std::vector<std::byte>& parameters) {
  if (gpu != &current_gpu()) return refuse(Status::kInvalidResourceHandle, "the graph was captured on another GPU");
  try {
    current_gpu().launch(kernel, config, parameters);
    return Status::kSuccess;
  } catch (const Fault& fault) {
    return keep(fault);
  } catch (const std::exception& error) {
    return refuse(Status::kLaunchFailure, error.what());
  }
}

}  // namespace

Status launch(const LaunchRequest& request) {
  const Chip& chip = current_gpu().chip();
  Stream* stream = Streams::instance().find(request.stream);
  if (stream == nullptr) return refuse(Status::kInvalidResourceHandle, "a launch on something that is no stream");
  const Registry::Found found = Registry::instance().kernel(request.host);
  if (found.status != Status::kSuccess) return found.status;
  const Kernel& kernel = *found.kernel;

  LaunchConfig config;
  Status status = check_shape(request, kernel, chip);
  if (status == Status::kSuccess) status = check_shared(request, kernel, chip);
  if (status == Status::kSuccess) status = check_cluster(request, kernel, chip, &config.cluster);
  if (status == Status::kSuccess) status = check_cooperative(request, kernel, chip);
  if (status != Status::kSuccess) return status;

  config.grid = request.grid;
  config.block = request.block;
  config.dynamic_shared_bytes = static_cast<uint32_t>(request.dynamic_shared);
  config.cooperative = request.cooperative;
  config.programmatic = request.programmatic;
  config.stream = stream->id;
  return Streams::instance().submit(
      *stream, NodeKind::kKernel,
      [gpu = &current_gpu(), module = found.module, &kernel, config, parameters = pack(kernel, request.arguments)] {
        return run(gpu, kernel, config, parameters);
      });
}

void push_configuration(const Configuration& configuration) { configurations.push_back(configuration); }

Status pop_configuration(Configuration* configuration) {
  if (configurations.empty()) return refuse(Status::kMissingConfiguration);
  *configuration = configurations.back();
  configurations.pop_back();
  return Status::kSuccess;
}

}  // namespace vgpu::runtime
