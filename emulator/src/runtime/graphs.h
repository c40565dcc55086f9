// Graphs that host code holds handles of.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "runtime/streams.h"

namespace vgpu::runtime {

class Graphs {
 public:
  static Graphs& instance();

  Handle add(std::shared_ptr<Graph> graph);
  // Null for a handle that is no graph.
  std::shared_ptr<Graph> find(Handle handle) const;
  Status destroy(Handle handle);

  // An executable copy: later changes of the graph do not reach it.
  Handle instantiate(const Graph& graph);
  Status destroy_executable(Handle handle);
  // Runs it, or makes it a node where the stream captures.
  Status launch(Handle executable, Stream& stream);

 private:
  std::unordered_map<Handle, std::shared_ptr<Graph>> graphs_, executables_;
  uint64_t replays_ = 0;
};

// Runs the nodes in an order that their dependencies allow; `seed` picks which.
Status replay(const Graph& graph, uint64_t seed);

}  // namespace vgpu::runtime
