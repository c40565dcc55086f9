// The parts of the Python module _core, one per topic.
#pragma once

#include <pybind11/pybind11.h>

#include "check/fault.h"

namespace vgpu::python {

void bind_fault(pybind11::module_& m);
void bind_counters(pybind11::module_& m);
void bind_gpu(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);

// The Fault as an instance of emulator.Fault.
pybind11::object fault_object(const Fault& fault);

}  // namespace vgpu::python
