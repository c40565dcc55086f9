// CUDA symbols: streams, events, capture and graphs.
#include "runtime/cudart_support.h"
#include "runtime/graphs.h"

using namespace vgpu;
using namespace vgpu::runtime;

namespace {

Streams& streams() { return Streams::instance(); }

template <typename Body>
Status on_event(cudaEvent_t handle, Body&& body) {
  Event* event = streams().find_event(handle);
  if (event == nullptr) return refuse(Status::kInvalidResourceHandle, "this is no event");
  return std::forward<Body>(body)(*event);
}

cudaError_t create_stream(const char* name, cudaStream_t* stream, unsigned flags, int priority) {
  return call(name, [&] {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return refuse(Status::kInvalidValue, "stream flags");
    *stream = static_cast<cudaStream_t>(streams().create(flags, priority));
    return Status::kSuccess;
  });
}

cudaError_t create_event(const char* name, cudaEvent_t* event, unsigned flags) {
  return call(name, [&] {
    if (event == nullptr || flags > 7) return refuse(Status::kInvalidValue, "event flags");
    *event = static_cast<cudaEvent_t>(streams().create_event(flags));
    return Status::kSuccess;
  });
}

cudaError_t record_event(cudaEvent_t event, cudaStream_t stream, unsigned flags = 0) {
  return call("cudaEventRecord", [&] {
    if (flags != 0) return refuse(Status::kNotSupported, "external event nodes are not emulated");
    return on_event(event,
                    [&](Event& e) { return on_stream(stream, [&](Stream& s) { return streams().record(e, s); }); });
  });
}

cudaError_t wait_event(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return call("cudaStreamWaitEvent", [&] {
    if (flags != 0) return refuse(Status::kNotSupported, "external event nodes are not emulated");
    return on_event(event,
                    [&](Event& e) { return on_stream(stream, [&](Stream& s) { return streams().wait(s, e); }); });
  });
}

// Work has ended when the call that submitted it returns, so there is nothing to wait for.
cudaError_t wait_stream(const char* name, cudaStream_t stream) {
  return waiting_call(name,
                      [&] { return on_stream(stream, [&](Stream& s) { return streams().refuse_wait(&s, name); }); });
}

Status captured_event(const Event& event, const char* name) {
  if (!event.capture) return Status::kSuccess;
  event.capture->invalid = true;
  return refuse(Status::kCapturedEvent, std::string(name) + " of an event that a capture recorded");
}

cudaError_t capture_info(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id) {
  return on_stream(stream,
                   [&](Stream& s) {
                     *status = !s.capture           ? cudaStreamCaptureStatusNone
                               : s.capture->invalid ? cudaStreamCaptureStatusInvalidated
                                                    : cudaStreamCaptureStatusActive;
                     if (id != nullptr && s.capture) *id = s.capture->id;
                     return Status::kSuccess;
                   }) == Status::kSuccess
             ? cudaSuccess
             : cudaErrorInvalidResourceHandle;
}

cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&] {
    return on_stream(stream, [&](Stream& s) { return streams().begin_capture(s, static_cast<CaptureMode>(mode)); });
  });
}

cudaError_t end_capture(cudaStream_t stream, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", [&] {
    return on_stream(stream, [&](Stream& s) {
      std::shared_ptr<Graph> captured;
      *graph = nullptr;
      const Status status = streams().end_capture(s, &captured);
      if (status == Status::kSuccess) *graph = static_cast<cudaGraph_t>(Graphs::instance().add(std::move(captured)));
      return status;
    });
  });
}

cudaError_t launch_graph(cudaGraphExec_t graph, cudaStream_t stream) {
  return call("cudaGraphLaunch",
              [&] { return on_stream(stream, [&](Stream& s) { return Graphs::instance().launch(graph, s); }); });
}

cudaError_t launch_host_function(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call("cudaLaunchHostFunc", [&] {
    return on_stream(stream, [&](Stream& s) {
      return streams().submit(s, NodeKind::kHost, [function, data] {
        function(data);
        return Status::kSuccess;
      });
    });
  });
}

}  // namespace

extern "C" {

// Streams

cudaError_t CUDARTAPI cudaStreamCreate(cudaStream_t* stream) { return create_stream("cudaStreamCreate", stream, 0, 0); }

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return create_stream("cudaStreamCreateWithFlags", stream, flags, 0);
}

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return create_stream("cudaStreamCreateWithPriority", stream, flags, priority);
}

cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream) {
  return call("cudaStreamDestroy", [&] { return streams().destroy(stream); });
}

cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t stream) {
  return wait_stream("cudaStreamSynchronize", stream);
}

cudaError_t cudaStreamSynchronize_ptsz(cudaStream_t stream) {
  return wait_stream("cudaStreamSynchronize", per_thread(stream));
}

cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t stream) {
  return call("cudaStreamQuery", [&] {
    return on_stream(stream, [&](Stream& s) { return streams().refuse_wait(&s, "cudaStreamQuery"); });
  });
}

cudaError_t cudaStreamQuery_ptsz(cudaStream_t stream) { return cudaStreamQuery(per_thread(stream)); }

cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return wait_event(stream, event, flags);
}

cudaError_t cudaStreamWaitEvent_ptsz(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return wait_event(per_thread(stream), event, flags);
}

cudaError_t CUDARTAPI cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return call("cudaStreamGetPriority", [&] {
    return on_stream(stream, [&](Stream& s) {
      *priority = s.priority;
      return Status::kSuccess;
    });
  });
}

cudaError_t CUDARTAPI cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  return call("cudaStreamGetFlags", [&] {
    return on_stream(stream, [&](Stream& s) {
      *flags = s.flags;
      return Status::kSuccess;
    });
  });
}

cudaError_t CUDARTAPI cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  return call("cudaStreamGetId", [&] {
    return on_stream(stream, [&](Stream& s) {
      *id = s.id;
      return Status::kSuccess;
    });
  });
}

cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return launch_host_function(stream, function, data);
}

cudaError_t cudaLaunchHostFunc_ptsz(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return launch_host_function(per_thread(stream), function, data);
}

// Events

cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t* event) { return create_event("cudaEventCreate", event, 0); }

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return create_event("cudaEventCreateWithFlags", event, flags);
}

cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t event) {
  return call("cudaEventDestroy", [&] { return streams().destroy_event(event); });
}

cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return record_event(event, stream); }

cudaError_t cudaEventRecord_ptsz(cudaEvent_t event, cudaStream_t stream) {
  return record_event(event, per_thread(stream));
}

cudaError_t CUDARTAPI cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return record_event(event, stream, flags);
}

cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t event) {
  return waiting_call("cudaEventSynchronize", [&] {
    return on_event(event, [](Event& e) { return captured_event(e, "cudaEventSynchronize"); });
  });
}

cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery",
              [&] { return on_event(event, [](Event& e) { return captured_event(e, "cudaEventQuery"); }); });
}

cudaError_t CUDARTAPI cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return call("cudaEventElapsedTime", [&] {
    return on_event(begin, [&](Event& b) {
      return on_event(end, [&](Event& e) {
        if (!b.recorded || !e.recorded || !b.timed() || !e.timed())
          return refuse(Status::kInvalidResourceHandle, "an event was not recorded, or was created without timing");
        Status status = captured_event(b, "cudaEventElapsedTime");
        if (status == Status::kSuccess) status = captured_event(e, "cudaEventElapsedTime");
        if (status == Status::kSuccess)
          *milliseconds = std::chrono::duration<float, std::milli>(e.when - b.when).count();
        return status;
      });
    });
  });
}

// Capture

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return begin_capture(stream, mode);
}

cudaError_t cudaStreamBeginCapture_ptsz(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return begin_capture(per_thread(stream), mode);
}

cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return end_capture(stream, graph);
}

cudaError_t cudaStreamEndCapture_ptsz(cudaStream_t stream, cudaGraph_t* graph) {
  return end_capture(per_thread(stream), graph);
}

cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock;
  return capture_info(stream, status, nullptr);
}

cudaError_t cudaStreamIsCapturing_ptsz(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamIsCapturing(per_thread(stream), status);
}

cudaError_t CUDARTAPI cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                               unsigned long long* id, cudaGraph_t* graph,
                                               const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                               size_t* count) {
  const Lock lock;
  if (graph != nullptr || dependencies != nullptr || edges != nullptr || count != nullptr)
    return code(refuse(Status::kNotSupported, "the nodes of a capture under way are not shown by the emulator"));
  return capture_info(stream, status, id);
}

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  CaptureMode& own = Streams::thread_mode();
  const CaptureMode before = own;
  own = static_cast<CaptureMode>(*mode);
  *mode = static_cast<cudaStreamCaptureMode>(before);
  return cudaSuccess;
}

// Graphs

cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return call("cudaGraphInstantiate", [&] {
    const std::shared_ptr<Graph> found = Graphs::instance().find(graph);
    if (!found) return refuse(Status::kInvalidValue, "this is no graph");
    *executable = static_cast<cudaGraphExec_t>(Graphs::instance().instantiate(*found));
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                                    unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}

cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  return launch_graph(graph, stream);
}

cudaError_t cudaGraphLaunch_ptsz(cudaGraphExec_t graph, cudaStream_t stream) {
  return launch_graph(graph, per_thread(stream));
}

cudaError_t CUDARTAPI cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream) {
  return call("cudaGraphUpload", [&] { return on_stream(stream, [](Stream&) { return Status::kSuccess; }); });
}

cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&] { return Graphs::instance().destroy(graph); });
}

cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t graph) {
  return call("cudaGraphExecDestroy", [&] { return Graphs::instance().destroy_executable(graph); });
}

cudaError_t CUDARTAPI cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return call("cudaGraphGetNodes", [&] {
    const std::shared_ptr<Graph> found = Graphs::instance().find(graph);
    if (!found) return refuse(Status::kInvalidValue, "this is no graph");
    const size_t size = found->nodes.size();
    if (nodes != nullptr)
      for (size_t i = 0; i < *count; ++i)
        nodes[i] = i < size ? reinterpret_cast<cudaGraphNode_t>(found->nodes[i].get()) : nullptr;
    if (nodes == nullptr || *count > size) *count = size;
    return Status::kSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  return call("cudaGraphNodeGetType", [&] {
    *type = static_cast<cudaGraphNodeType>(reinterpret_cast<Node*>(node)->kind);
    return Status::kSuccess;
  });
}

}  // extern "C"
