// Launch records and their counters.
#include <pybind11/stl.h>

#include "count/counters.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace vgpu::python {

void bind_counters(py::module_& m) {
  // One list of the fields, so that Python need not repeat it.
  py::list fields;
  py::class_<Counters> counters(m, "Counters", "Counts of one instruction, or sums of several.");
  counters.def(py::init<>());
  auto field = [&](const char* name, uint64_t Counters::* member, const char* doc) {
    counters.def_readonly(name, member, doc);
    fields.append(name);
  };
  field("warp_instructions", &Counters::warp_instructions, "Instructions that warps executed.");
  field("lane_instructions", &Counters::lane_instructions,
        "The same per lane, without lanes that the guard held back.");
  field("matrix_macs", &Counters::matrix_macs, "Multiply-adds that matrix instructions issued.");
  field("global_requests", &Counters::global_requests, "Warp instructions that touched global memory.");
  field("global_bytes", &Counters::global_bytes, "Bytes of global memory asked for.");
  field("global_sectors", &Counters::global_sectors, "Sectors of 32 bytes, counted per request.");
  field("global_sectors_ideal", &Counters::global_sectors_ideal, "The fewest sectors that the bytes could need.");
  field("global_atomics", &Counters::global_atomics, "Lanes of global atomics.");
  field("shared_requests", &Counters::shared_requests, "Warp instructions that touched shared memory.");
  field("shared_bytes", &Counters::shared_bytes, "Bytes of shared memory asked for.");
  field("shared_wavefronts", &Counters::shared_wavefronts, "Passes through shared memory.");
  field("shared_wavefronts_ideal", &Counters::shared_wavefronts_ideal, "The passes without bank conflicts.");
  field("async_bytes", &Counters::async_bytes, "Bytes that bulk and tensor copies moved.");
  field("barriers", &Counters::barriers, "Warps that arrived at a block, named or cluster barrier.");
  field("divergent_branches", &Counters::divergent_branches, "Branches that split a warp.");
  counters.def("__iadd__", [](Counters& a, const Counters& b) -> Counters& { return a += b, a; });
  m.attr("COUNTER_FIELDS") = py::tuple(fields);

  py::class_<InstructionCounters>(m, "InstructionCounters", "One instruction of a kernel.")
      .def_readonly("ptx_line", &InstructionCounters::ptx_line)
      .def_readonly("file", &InstructionCounters::file, "Index into the record's files.")
      .def_readonly("line", &InstructionCounters::line)
      .def_property_readonly("kind", [](const InstructionCounters& i) { return name(i.kind); })
      .def_readonly("opcode", &InstructionCounters::opcode)
      .def_readonly("counters", &InstructionCounters::counters);

  py::class_<LaunchRecord>(m, "LaunchRecord", "What one launch did.")
      .def_readonly("number", &LaunchRecord::number)
      .def_readonly("kernel", &LaunchRecord::kernel)
      .def_readonly("chip", &LaunchRecord::chip)
      .def_readonly("grid", &LaunchRecord::grid)
      .def_readonly("block", &LaunchRecord::block)
      .def_readonly("cluster", &LaunchRecord::cluster)
      .def_readonly("dynamic_shared_bytes", &LaunchRecord::dynamic_shared_bytes)
      .def_readonly("static_shared_bytes", &LaunchRecord::static_shared_bytes)
      .def_readonly("stream", &LaunchRecord::stream)
      .def_readonly("host_seconds", &LaunchRecord::host_seconds)
      .def_readonly("distinct_sectors_read", &LaunchRecord::distinct_sectors_read)
      .def_readonly("distinct_sectors_written", &LaunchRecord::distinct_sectors_written)
      .def_property_readonly("instructions_by_class",
                             [](const LaunchRecord& record) {
                               py::dict counts;
                               for (int i = 0; i < kInstructionClasses; ++i)
                                 counts[name(static_cast<InstructionClass>(i))] = record.instructions_by_class[i];
                               return counts;
                             })
      .def_readonly("total", &LaunchRecord::total)
      .def_readonly("files", &LaunchRecord::files)
      .def_readonly("instructions", &LaunchRecord::instructions)
      .def_readonly("lines_never_executed", &LaunchRecord::lines_never_executed);
}

}  // namespace vgpu::python
