#include "capture.h"

#include <cuda_runtime.h>

#include <memory>
#include <vector>

namespace moe::virtual_gpu {

namespace {

struct Graph {
  cudaStream_t stream = nullptr;
  cudaGraphExec_t executable = nullptr;
  std::vector<torch::stable::Tensor> memory;

  ~Graph() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
};

std::unique_ptr<Graph> capturing;

}  // namespace

cuda::Stream stream() { return capturing == nullptr ? nullptr : capturing->stream; }

void keep(const torch::stable::Tensor& tensor) {
  if (capturing != nullptr) capturing->memory.push_back(tensor);
}

}  // namespace moe::virtual_gpu

// For ctypes. Each returns a cudaError_t.
extern "C" {

using moe::virtual_gpu::capturing;
using moe::virtual_gpu::Graph;

__attribute__((visibility("default"))) int moe_virtual_begin_capture() {
  auto graph = std::make_unique<Graph>();
  cudaError_t error = cudaStreamCreateWithFlags(&graph->stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamBeginCapture(graph->stream, cudaStreamCaptureModeGlobal);
  if (error == cudaSuccess) capturing = std::move(graph);
  return error;
}

// `nodes`: how many the graph has.
__attribute__((visibility("default"))) int moe_virtual_end_capture(void** captured, size_t* nodes) {
  std::unique_ptr<Graph> graph = std::move(capturing);
  if (graph == nullptr) return cudaErrorIllegalState;
  cudaGraph_t recorded = nullptr;
  cudaError_t error = cudaStreamEndCapture(graph->stream, &recorded);
  if (error == cudaSuccess) error = cudaGraphGetNodes(recorded, nullptr, nodes);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&graph->executable, recorded, 0);
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  if (error == cudaSuccess) *captured = graph.release();
  return error;
}

__attribute__((visibility("default"))) int moe_virtual_replay(void* captured) {
  const Graph* graph = static_cast<Graph*>(captured);
  return cudaGraphLaunch(graph->executable, graph->stream);
}

__attribute__((visibility("default"))) void moe_virtual_forget(void* captured) { delete static_cast<Graph*>(captured); }
}
