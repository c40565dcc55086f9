// What the parser made of a PTX text, as Python data, for tests of the parser.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace vgpu::python {

pybind11::dict parse_summary(const std::string& text, const std::string& name);

}  // namespace vgpu::python
