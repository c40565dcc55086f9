// The runtime stand-in: faults, host calls, tensor maps.
#include <pybind11/stl.h>

#include <cstring>

#include "core/gpu.h"
#include "python/bindings.h"
#include "runtime/context.h"
#include "runtime/tensor_map.h"

namespace py = pybind11;
using namespace py::literals;

namespace vgpu::python {
namespace {

py::object optional_fault(const std::optional<Fault>& fault) { return fault ? fault_object(*fault) : py::none(); }

py::bytes encode(uint32_t type, uint64_t address, const std::vector<uint64_t>& dims,
                 const std::vector<uint64_t>& strides, const std::vector<uint32_t>& box,
                 const std::vector<uint32_t>& element_strides, uint32_t interleave, uint32_t swizzle, uint32_t fill) {
  if (box.size() != dims.size() || element_strides.size() != dims.size() || strides.size() + 1 != dims.size())
    throw py::value_error("box and element_strides want one number per dimension, strides one less");
  TensorMap map;
  if (encode_tiled(&map, type, static_cast<uint32_t>(dims.size()), address, dims.data(), strides.data(), box.data(),
                   element_strides.data(), interleave, swizzle, 0, fill) != 0)
    throw py::value_error("tensor map: " + last_tensor_map_error());
  return py::bytes(reinterpret_cast<const char*>(&map), sizeof map);
}

}  // namespace

void bind_runtime(py::module_& m) {
  // The lock may be held by a thread that waits for the interpreter, so each of these lets go of it first.
  m.def("pending_fault", [](Gpu& gpu) {
    std::optional<Fault> fault;
    {
      py::gil_scoped_release no_gil;
      fault = runtime::pending_fault(gpu);
    }
    return optional_fault(fault);
  });
  m.def("clear_fault", [](Gpu& gpu) {
    std::optional<Fault> fault;
    {
      py::gil_scoped_release no_gil;
      fault = runtime::clear_fault(gpu);
    }
    return optional_fault(fault);
  });
  m.def("calls", [](Gpu& gpu) {
    runtime::Calls calls;
    {
      py::gil_scoped_release no_gil;
      calls = runtime::calls(gpu);
    }
    return py::make_tuple(calls.all, calls.synchronising);
  });
  m.def("clear_calls", [](Gpu& gpu) {
    py::gil_scoped_release no_gil;
    runtime::clear_calls(gpu);
  });
  m.def("encode_tensor_map", &encode, "type"_a, "address"_a, "dims"_a, "strides"_a, "box"_a, "element_strides"_a,
        "interleave"_a, "swizzle"_a, "fill"_a, "Dimension 0 is the innermost.");
}

}  // namespace vgpu::python
