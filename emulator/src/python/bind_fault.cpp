// Faults and syntax errors become Python exceptions.
#include <pybind11/stl.h>

#include "check/fault.h"
#include "ptx/parser.h"
#include "python/bindings.h"

namespace py = pybind11;

namespace vgpu::python {
namespace {

// emulator.Fault, a Python class; never released, since faults may be translated while the interpreter ends.
PyObject* fault_type = nullptr;

}  // namespace

py::object fault_object(const Fault& fault) {
  if (fault_type == nullptr) throw std::runtime_error(fault.what());
  py::dict fields;
  fields["kind"] = name(fault.kind);
  fields["message"] = fault.message;
  fields["kernel"] = fault.kernel;
  fields["file"] = fault.file;
  fields["line"] = fault.line;
  fields["ptx_line"] = fault.ptx_line;
  fields["caller_file"] = fault.caller_file;
  fields["caller_line"] = fault.caller_line;
  fields["block"] = py::make_tuple(fault.block[0], fault.block[1], fault.block[2]);
  fields["thread"] = py::make_tuple(fault.thread[0], fault.thread[1], fault.thread[2]);
  fields["warp"] = fault.warp;
  fields["lane"] = fault.lane;
  fields["address"] = fault.has_address ? py::object(py::int_(fault.address)) : py::none();
  fields["instruction"] = fault.instruction;
  fields["details"] = fault.details;
  return py::handle(fault_type)(fault.what(), **fields);
}

void bind_fault(py::module_& m) {
  m.def("set_fault_type", [](py::object type) { fault_type = type.release().ptr(); });
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Fault& fault) {
      py::object object = fault_object(fault);
      PyErr_SetObject(fault_type, object.ptr());
    } catch (const ptx::SyntaxError& syntax) {
      PyErr_SetString(PyExc_SyntaxError, syntax.what());
    }
  });
}

}  // namespace vgpu::python
