// Streams, events, and their capture into graphs.
//
// Work on a stream runs at once, to its end, when it is submitted. A stream that captures records it instead.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "runtime/errors.h"

namespace vgpu::runtime {

// Numbered like cudaGraphNodeType.
enum class NodeKind : int { kKernel = 0, kMemcpy = 1, kMemset = 2, kHost = 3, kGraph = 4, kEmpty = 5 };

struct Node {
  NodeKind kind = NodeKind::kEmpty;
  std::function<Status()> run;  // owns copies of everything that the call was given
  std::vector<size_t> after;    // indices of the nodes that it depends on
};

struct Graph {
  std::vector<std::shared_ptr<Node>> nodes;  // each after those that it depends on
};

// Numbered like cudaStreamCaptureMode.
enum class CaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };

struct Stream;

struct Capture {
  uint64_t id = 0;
  CaptureMode mode = CaptureMode::kGlobal;
  std::thread::id thread;
  Stream* origin = nullptr;
  std::set<Stream*> members;
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  bool invalid = false;
};

struct Stream {
  uint64_t id = 0;  // 0: the legacy default stream
  unsigned flags = 0;
  int priority = 0;
  std::shared_ptr<Capture> capture;  // null when it does not capture
  std::set<size_t> tails;            // nodes that the next one depends on

  bool blocking() const { return (flags & 1) == 0; }
};

struct Event {
  unsigned flags = 0;
  bool recorded = false;
  std::chrono::steady_clock::time_point when;
  std::shared_ptr<Capture> capture;  // of the stream that it was last recorded in
  std::set<size_t> tails;

  bool timed() const { return (flags & 2) == 0; }
};

// A handle that the host holds; null for the legacy default stream.
using Handle = void*;

class Streams {
 public:
  static Streams& instance();

  Handle create(unsigned flags, int priority);
  Status destroy(Handle handle);
  // Null for a handle that is no stream.
  Stream* find(Handle handle);

  Handle create_event(unsigned flags);
  Status destroy_event(Handle handle);
  Event* find_event(Handle handle);

  // Runs the work now, or records it where the stream captures.
  Status submit(Stream& stream, NodeKind kind, std::function<Status()> work);

  Status record(Event& event, Stream& stream);
  Status wait(Stream& stream, Event& event);

  Status begin_capture(Stream& stream, CaptureMode mode);
  // `graph` is left empty on failure.
  Status end_capture(Stream& stream, std::shared_ptr<Graph>* graph);

  // What cudaThreadExchangeStreamCaptureMode sets for this thread.
  static CaptureMode& thread_mode();

  // For calls that must not happen while this thread, or any under mode global, captures. Invalidates those captures.
  Status refuse_unsafe(const char* call);
  // For calls that wait for this stream, or for every stream when it is null.
  Status refuse_wait(Stream* stream, const char* call);

 private:
  Streams();

  std::unordered_map<Handle, std::unique_ptr<Stream>> streams_;
  std::unordered_map<Handle, std::unique_ptr<Event>> events_;
  std::set<std::shared_ptr<Capture>> captures_;
  uint64_t next_id_ = 3;
  uint64_t next_capture_ = 1;
};

}  // namespace vgpu::runtime
