// Kernel launches as the CUDA runtime takes them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/errors.h"
#include "runtime/streams.h"

namespace vgpu::runtime {

struct LaunchRequest {
  const void* host = nullptr;  // the host stub
  std::array<uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1};
  std::array<uint32_t, 3> cluster{0, 0, 0};  // zeros: none asked for
  size_t dynamic_shared = 0;
  bool cooperative = false;
  bool programmatic = false;
  Handle stream = nullptr;
  void** arguments = nullptr;  // one pointer per parameter
};

// Checks the request as the driver does, then runs or captures it.
Status launch(const LaunchRequest& request);

// What <<<>>> leaves for the stub that it calls.
struct Configuration {
  std::array<uint32_t, 3> grid{}, block{};
  size_t dynamic_shared = 0;
  Handle stream = nullptr;
};
void push_configuration(const Configuration& configuration);
Status pop_configuration(Configuration* configuration);

}  // namespace vgpu::runtime
