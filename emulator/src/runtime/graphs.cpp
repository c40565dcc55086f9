#include "runtime/graphs.h"

#include <random>

#include "core/gpu.h"

namespace vgpu::runtime {

Graphs& Graphs::instance() {
  static auto& graphs = *new Graphs;
  return graphs;
}

Handle Graphs::add(std::shared_ptr<Graph> graph) {
  const Handle handle = graph.get();
  graphs_[handle] = std::move(graph);
  return handle;
}

std::shared_ptr<Graph> Graphs::find(Handle handle) const {
  const auto found = graphs_.find(handle);
  return found == graphs_.end() ? nullptr : found->second;
}

Status Graphs::destroy(Handle handle) {
  return graphs_.erase(handle) != 0 ? Status::kSuccess : refuse(Status::kInvalidValue, "this is no graph");
}

Handle Graphs::instantiate(const Graph& graph) {
  auto executable = std::make_shared<Graph>(graph);
  const Handle handle = executable.get();
  executables_[handle] = std::move(executable);
  return handle;
}

Status Graphs::destroy_executable(Handle handle) {
  return executables_.erase(handle) != 0 ? Status::kSuccess
                                         : refuse(Status::kInvalidValue, "this is no executable graph");
}

Status Graphs::launch(Handle executable, Stream& stream) {
  const auto found = executables_.find(executable);
  if (found == executables_.end()) return refuse(Status::kInvalidValue, "this is no executable graph");
  const uint64_t seed = current_gpu().options.seed + ++replays_;
  return Streams::instance().submit(stream, NodeKind::kGraph,
                                    [graph = found->second, seed] { return replay(*graph, seed); });
}

Status replay(const Graph& graph, uint64_t seed) {
  // Any order that the dependencies allow is right on a GPU; a fixed one would hide a dependency that is missing.
  std::mt19937_64 random(seed);
  const size_t count = graph.nodes.size();
  std::vector<size_t> missing(count);
  std::vector<std::vector<size_t>> next(count);
  std::vector<size_t> ready;
  for (size_t i = 0; i < count; ++i) {
    missing[i] = graph.nodes[i]->after.size();
    for (size_t before : graph.nodes[i]->after) next[before].push_back(i);
    if (missing[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    std::swap(ready[random() % ready.size()], ready.back());
    const size_t node = ready.back();
    ready.pop_back();
    if (const Status status = graph.nodes[node]->run(); status != Status::kSuccess) return status;
    for (size_t after : next[node])
      if (--missing[after] == 0) ready.push_back(after);
  }
  return Status::kSuccess;
}

}  // namespace vgpu::runtime
