#include "python/bindings.h"

#include "python/parse_summary.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The virtual GPU. Use it through the package emulator.";
  vgpu::python::bind_fault(m);
  vgpu::python::bind_counters(m);
  vgpu::python::bind_gpu(m);
  vgpu::python::bind_runtime(m);
  m.def("parse_summary", &vgpu::python::parse_summary, pybind11::arg("text"), pybind11::arg("name") = "<text>");
}
