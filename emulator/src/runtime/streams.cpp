#include "runtime/streams.h"

namespace vgpu::runtime {
namespace {

// cudaStreamLegacy and cudaStreamPerThread.
const Handle kLegacy = reinterpret_cast<Handle>(1);
const Handle kPerThread = reinterpret_cast<Handle>(2);

bool reaches_all(const Graph& graph, const std::set<size_t>& tails) {
  std::vector<bool> seen(graph.nodes.size());
  std::vector<size_t> open(tails.begin(), tails.end());
  size_t count = 0;
  while (!open.empty()) {
    const size_t node = open.back();
    open.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    ++count;
    open.insert(open.end(), graph.nodes[node]->after.begin(), graph.nodes[node]->after.end());
  }
  return count == graph.nodes.size();
}

}  // namespace

Streams::Streams() {
  for (Handle handle : {Handle{}, kPerThread}) {
    auto stream = std::make_unique<Stream>();
    stream->id = reinterpret_cast<uint64_t>(handle);
    streams_[handle] = std::move(stream);
  }
}

Streams& Streams::instance() {
  static auto& streams = *new Streams;
  return streams;
}

Handle Streams::create(unsigned flags, int priority) {
  auto stream = std::make_unique<Stream>();
  stream->id = next_id_++;
  stream->flags = flags;
  stream->priority = priority;
  const Handle handle = stream.get();
  streams_[handle] = std::move(stream);
  return handle;
}

Stream* Streams::find(Handle handle) {
  const auto found = streams_.find(handle == kLegacy ? nullptr : handle);
  return found == streams_.end() ? nullptr : found->second.get();
}

Status Streams::destroy(Handle handle) {
  Stream* stream = find(handle);
  if (stream == nullptr || handle == nullptr || handle == kLegacy || handle == kPerThread)
    return refuse(Status::kInvalidResourceHandle, "this is no stream that was created");
  if (const std::shared_ptr<Capture> capture = stream->capture) {
    capture->invalid = true;
    capture->members.erase(stream);
    if (capture->origin == stream) {
      for (Stream* member : capture->members) member->capture.reset();
      captures_.erase(capture);
    }
  }
  streams_.erase(handle);
  return Status::kSuccess;
}

Handle Streams::create_event(unsigned flags) {
  auto event = std::make_unique<Event>();
  event->flags = flags;
  const Handle handle = event.get();
  events_[handle] = std::move(event);
  return handle;
}

Event* Streams::find_event(Handle handle) {
  const auto found = events_.find(handle);
  return found == events_.end() ? nullptr : found->second.get();
}

Status Streams::destroy_event(Handle handle) {
  if (events_.erase(handle) == 0) return refuse(Status::kInvalidResourceHandle, "this is no event");
  return Status::kSuccess;
}

CaptureMode& Streams::thread_mode() {
  thread_local CaptureMode mode = CaptureMode::kGlobal;
  return mode;
}

Status Streams::submit(Stream& stream, NodeKind kind, std::function<Status()> work) {
  if (stream.capture) {
    Capture& capture = *stream.capture;
    if (capture.invalid) return refuse(Status::kStreamCaptureInvalidated);
    auto node = std::make_shared<Node>();
    node->kind = kind;
    node->run = std::move(work);
    node->after.assign(stream.tails.begin(), stream.tails.end());
    capture.graph->nodes.push_back(std::move(node));
    stream.tails = {capture.graph->nodes.size() - 1};
    return Status::kSuccess;
  }
  // The legacy stream waits for every blocking stream, which a capturing one cannot be waited for.
  if (stream.id == 0) {
    for (const auto& capture : captures_) {
      if (!capture->origin->blocking()) continue;
      capture->invalid = true;
      return refuse(Status::kStreamCaptureImplicit, "work on the legacy stream while a blocking stream captures");
    }
  }
  return work();
}

Status Streams::record(Event& event, Stream& stream) {
  if (stream.capture) {
    if (stream.capture->invalid) return refuse(Status::kStreamCaptureInvalidated);
    event.capture = stream.capture;
    event.tails = stream.tails;
    event.recorded = true;
    return Status::kSuccess;
  }
  event.capture.reset();
  event.tails.clear();
  event.recorded = true;
  event.when = std::chrono::steady_clock::now();
  return Status::kSuccess;
}

Status Streams::wait(Stream& stream, Event& event) {
  if (!event.recorded) return Status::kSuccess;
  const bool captured = event.capture && captures_.contains(event.capture);
  if (captured) {
    Capture& capture = *event.capture;
    if (capture.invalid) return refuse(Status::kStreamCaptureInvalidated);
    if (stream.capture && stream.capture != event.capture) {
      capture.invalid = stream.capture->invalid = true;
      return refuse(Status::kStreamCaptureMerge);
    }
    if (stream.id == 0) {
      capture.invalid = true;
      return refuse(Status::kStreamCaptureImplicit, "the legacy stream cannot wait for a captured event");
    }
    stream.capture = event.capture;
    capture.members.insert(&stream);
    stream.tails.insert(event.tails.begin(), event.tails.end());
    return Status::kSuccess;
  }
  if (stream.capture) {
    stream.capture->invalid = true;
    return refuse(Status::kStreamCaptureIsolation,
                  "a capturing stream waits for an event recorded outside the capture");
  }
  return Status::kSuccess;
}

Status Streams::begin_capture(Stream& stream, CaptureMode mode) {
  if (stream.id == 0) return refuse(Status::kStreamCaptureUnsupported, "the legacy stream cannot be captured");
  if (stream.capture) return refuse(Status::kInvalidValue, "the stream captures already");
  auto capture = std::make_shared<Capture>();
  capture->id = next_capture_++;
  capture->mode = mode;
  capture->thread = std::this_thread::get_id();
  capture->origin = &stream;
  capture->members = {&stream};
  stream.capture = capture;
  stream.tails.clear();
  captures_.insert(std::move(capture));
  return Status::kSuccess;
}

Status Streams::end_capture(Stream& stream, std::shared_ptr<Graph>* graph) {
  graph->reset();
  const std::shared_ptr<Capture> capture = stream.capture;
  if (!capture) return refuse(Status::kInvalidValue, "the stream does not capture");
  if (capture->origin != &stream) return refuse(Status::kStreamCaptureUnmatched);
  if (capture->mode != CaptureMode::kRelaxed && capture->thread != std::this_thread::get_id())
    return refuse(Status::kStreamCaptureWrongThread);
  const std::set<size_t> tails = stream.tails;
  for (Stream* member : capture->members) {
    member->capture.reset();
    member->tails.clear();
  }
  captures_.erase(capture);
  if (capture->invalid) return refuse(Status::kStreamCaptureInvalidated);
  if (!reaches_all(*capture->graph, tails))
    return refuse(Status::kStreamCaptureUnjoined, "work on another stream is not waited for by the one that began");
  *graph = capture->graph;
  return Status::kSuccess;
}

Status Streams::refuse_unsafe(const char* call) {
  if (thread_mode() == CaptureMode::kRelaxed) return Status::kSuccess;
  bool found = false;
  for (const auto& capture : captures_) {
    const bool own = capture->thread == std::this_thread::get_id() && capture->mode != CaptureMode::kRelaxed;
    if (!own && (capture->mode != CaptureMode::kGlobal || thread_mode() != CaptureMode::kGlobal)) continue;
    capture->invalid = true;
    found = true;
  }
  return found ? refuse(Status::kStreamCaptureUnsupported, std::string(call) + " during a capture") : Status::kSuccess;
}

Status Streams::refuse_wait(Stream* stream, const char* call) {
  bool found = false;
  for (const auto& capture : captures_) {
    // Waiting for the legacy stream is waiting for every blocking one.
    const bool waits =
        stream == nullptr || stream->capture == capture || (stream->id == 0 && capture->origin->blocking());
    if (!waits) continue;
    capture->invalid = true;
    found = true;
  }
  return found ? refuse(Status::kStreamCaptureUnsupported, std::string(call) + " during a capture") : Status::kSuccess;
}

}  // namespace vgpu::runtime
