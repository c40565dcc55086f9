// The GPU, modules, kernels, launches and memory.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "core/gpu.h"
#include "core/kernel.h"
#include "python/bindings.h"
#include "python/device_memory.h"
#include "runtime/context.h"
#include "runtime/fatbin.h"
#include "runtime/registry.h"

namespace py = pybind11;
using namespace py::literals;

namespace vgpu::python {
namespace {

// Members in this order: the module goes before the GPU that its variables live in.
struct LoadedModule {
  std::shared_ptr<Gpu> gpu;
  std::shared_ptr<Module> module;
};

struct LoadedKernel {
  std::shared_ptr<LoadedModule> owner;
  const Kernel* kernel;
};

Completion completion_of(const std::string& name) {
  if (name == "random") return Completion::kRandom;
  if (name == "latest") return Completion::kLatest;
  if (name == "lifo") return Completion::kLifo;
  if (name == "eager") return Completion::kEager;
  throw py::value_error("completion is '" + name + "', want random, latest, lifo or eager");
}

Accumulate accumulate_of(const std::string& name) {
  if (name == "sequential") return Accumulate::kSequential;
  if (name == "exact") return Accumulate::kExact;
  if (name == "truncate") return Accumulate::kTruncate;
  throw py::value_error("accumulate is '" + name + "', want sequential, exact or truncate");
}

const char* name(Completion c) {
  constexpr const char* kNames[] = {"random", "latest", "lifo", "eager"};
  return kNames[static_cast<int>(c)];
}

const char* name(Accumulate a) {
  constexpr const char* kNames[] = {"sequential", "exact", "truncate"};
  return kNames[static_cast<int>(a)];
}

// sys.stdout rather than the C stream, so that captures of output see it.
void print_to_python(std::string_view text) {
  py::gil_scoped_acquire gil;
  py::module_::import("sys").attr("stdout").attr("write")(py::str(text.data(), text.size()));
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// A source is PTX text, the path of a PTX file, or of a binary that carries PTX: one module per translation unit.
std::vector<std::shared_ptr<LoadedModule>> load(const std::shared_ptr<Gpu>& gpu, const std::string& source) {
  std::vector<std::shared_ptr<LoadedModule>> modules;
  auto add = [&](std::string_view ptx, const std::string& name) {
    modules.push_back(std::make_shared<LoadedModule>(LoadedModule{gpu, gpu->load(ptx, name)}));
  };
  if (source.find('\n') != std::string::npos && source.find(".version") != std::string::npos) {
    add(source, "<text>");
    return modules;
  }
  if (!std::filesystem::exists(source))
    throw py::value_error("no such file, and no PTX text: " + source.substr(0, 200));
  if (std::filesystem::path(source).extension() == ".ptx") {
    add(read_file(source), source);
    return modules;
  }
  const std::vector<runtime::PtxImage> images = runtime::ptx_images_in_file(source);
  std::map<size_t, std::vector<runtime::PtxImage>> containers;
  for (const runtime::PtxImage& image : images) containers[image.container].push_back(image);
  for (const auto& [number, of_container] : containers)
    if (const runtime::PtxImage* image = runtime::best_for(of_container, gpu->chip())) add(image->text, source);
  if (modules.empty()) runtime::best_ptx(images, gpu->chip(), source);  // throws: it lists what there is
  return modules;
}

LaunchRecord launch(const LoadedKernel& kernel, const std::array<uint32_t, 3>& grid,
                    const std::array<uint32_t, 3>& block, const std::array<uint32_t, 3>& cluster, uint32_t shared_bytes,
                    bool cooperative, bool programmatic, const std::string& parameters,
                    const std::vector<std::tuple<uint64_t, uint64_t, bool, std::string>>& ranges) {
  Gpu& gpu = *kernel.owner->gpu;
  LaunchConfig config;
  config.grid = grid;
  config.block = block;
  config.cluster = cluster;
  config.dynamic_shared_bytes = shared_bytes;
  config.cooperative = cooperative;
  config.programmatic = programmatic;
  std::vector<Range> touched;
  for (const auto& [begin, end, writable, label] : ranges) touched.push_back({begin, end, writable, label});

  py::gil_scoped_release no_gil;
  const runtime::Lock lock;
  const Exposed exposed(gpu.memory(), std::move(touched));
  // Opting in to more shared memory is a matter of the CUDA runtime, not of a launch from Python.
  kernel.kernel->max_dynamic_shared_bytes = std::max(kernel.kernel->max_dynamic_shared_bytes, shared_bytes);
  kernel.kernel->non_portable_cluster = true;
  return gpu.launch(*kernel.kernel, config, std::as_bytes(std::span(parameters)));
}

std::vector<LaunchRecord> launches_since(Gpu& gpu, size_t first) {
  const auto& all = gpu.launches();
  return first < all.size() ? std::vector<LaunchRecord>(all.begin() + first, all.end()) : std::vector<LaunchRecord>();
}

void bind_chip(py::module_& m) {
  py::class_<Chip>(m, "Chip", "What is known of a GPU: limits, and the rates of its data sheet.")
      .def_readonly("name", &Chip::name)
      .def_readonly("major", &Chip::major)
      .def_readonly("minor", &Chip::minor)
      .def_readonly("arch_specific", &Chip::arch_specific)
      .def_readonly("multiprocessors", &Chip::multiprocessors)
      .def_readonly("max_threads_per_block", &Chip::max_threads_per_block)
      .def_readonly("max_threads_per_multiprocessor", &Chip::max_threads_per_multiprocessor)
      .def_readonly("max_blocks_per_multiprocessor", &Chip::max_blocks_per_multiprocessor)
      .def_readonly("registers_per_block", &Chip::registers_per_block)
      .def_readonly("registers_per_multiprocessor", &Chip::registers_per_multiprocessor)
      .def_readonly("shared_per_block", &Chip::shared_per_block)
      .def_readonly("shared_per_block_optin", &Chip::shared_per_block_optin)
      .def_readonly("shared_per_multiprocessor", &Chip::shared_per_multiprocessor)
      .def_readonly("shared_reserved_per_block", &Chip::shared_reserved_per_block)
      .def_readonly("max_cluster", &Chip::max_cluster)
      .def_readonly("global_bytes", &Chip::global_bytes)
      .def_readonly("l2_bytes", &Chip::l2_bytes)
      .def_readonly("dram_bytes_per_second", &Chip::dram_bytes_per_second)
      .def_readonly("bf16_flops", &Chip::bf16_flops)
      .def_readonly("tf32_flops", &Chip::tf32_flops)
      .def_readonly("fp32_flops", &Chip::fp32_flops)
      .def_readonly("fp8_flops", &Chip::fp8_flops)
      .def_readonly("int8_ops", &Chip::int8_ops)
      .def_readonly("clock_khz", &Chip::clock_khz)
      .def("__repr__", [](const Chip& chip) {
        return "Chip(" + chip.name + ", sm_" + std::to_string(chip.major * 10 + chip.minor) + ")";
      });
  m.def("chips", [] { return chips(); });
  m.def("chip", [](const std::string& name) { return chip(name); });
}

void bind_kernel(py::module_& m) {
  py::class_<LoadedKernel>(m, "Kernel")
      .def_property_readonly("name", [](const LoadedKernel& k) { return k.kernel->name; })
      .def_property_readonly("demangled", [](const LoadedKernel& k) { return k.kernel->demangled; })
      .def_property_readonly("parameter_bytes", [](const LoadedKernel& k) { return k.kernel->parameter_bytes; })
      .def_property_readonly("static_shared_bytes", [](const LoadedKernel& k) { return k.kernel->static_shared_bytes; })
      .def_property_readonly("local_bytes", [](const LoadedKernel& k) { return k.kernel->local_bytes; })
      .def_property_readonly(
          "parameters",
          [](const LoadedKernel& k) {
            py::list list;
            for (const ptx::Parameter& p : k.kernel->function->parameters)
              list.append(py::make_tuple(p.name, p.type.name, p.bytes, p.offset));
            return list;
          },
          "(name, type, bytes, offset) of each.")
      .def("launch", &launch, "grid"_a, "block"_a, "cluster"_a, "shared_bytes"_a, "cooperative"_a, "programmatic"_a,
           "parameters"_a, "ranges"_a);

  py::class_<LoadedModule, std::shared_ptr<LoadedModule>>(m, "Module")
      .def_property_readonly("name", [](const LoadedModule& l) { return l.module->name; })
      .def_property_readonly("target", [](const LoadedModule& l) { return l.module->text->target; })
      .def_property_readonly("kernels",
                             [](const std::shared_ptr<LoadedModule>& l) {
                               std::vector<LoadedKernel> kernels;
                               for (const auto& kernel : l->module->kernels) kernels.push_back({l, kernel.get()});
                               return kernels;
                             })
      .def_property_readonly(
          "variables",
          [](const LoadedModule& l) {
            py::dict found;
            for (const auto& [name, address] : l.module->variables)
              found[py::str(name)] = py::make_tuple(address, l.module->variable_bytes.at(name));
            return found;
          },
          "name -> (address, bytes)");
}

}  // namespace

void bind_gpu(py::module_& m) {
  bind_chip(m);
  bind_kernel(m);

  py::class_<Buffer>(m, "Buffer", py::buffer_protocol())
      .def_buffer([](Buffer& b) {
        return py::buffer_info(static_cast<uint8_t*>(b.pointer()), static_cast<py::ssize_t>(b.bytes()));
      })
      .def_property_readonly("address", [](const Buffer& b) { return reinterpret_cast<uint64_t>(b.pointer()); });

  py::class_<Gpu, std::shared_ptr<Gpu>>(m, "Gpu")
      .def(py::init([](const std::string& name) {
             auto gpu = std::make_shared<Gpu>(chip(name));
             gpu->print = print_to_python;
             return gpu;
           }),
           "chip"_a)
      .def_property(
          "chip", [](const Gpu& gpu) { return gpu.chip(); },
          [](Gpu& gpu, const std::string& name) { gpu.set_chip(chip(name)); })
      .def_property(
          "seed", [](const Gpu& gpu) { return gpu.options.seed; },
          [](Gpu& gpu, uint64_t seed) { gpu.options.seed = seed; })
      .def_property(
          "checks", [](const Gpu& gpu) { return gpu.options.checks; },
          [](Gpu& gpu, bool on) { gpu.options.checks = on; })
      .def_property(
          "counters", [](const Gpu& gpu) { return gpu.options.counters; },
          [](Gpu& gpu, bool on) { gpu.options.counters = on; })
      .def_property(
          "uninitialised", [](const Gpu& gpu) { return gpu.options.uninitialised; },
          [](Gpu& gpu, bool on) { gpu.options.uninitialised = on; })
      .def_property(
          "completion", [](const Gpu& gpu) { return name(gpu.options.completion); },
          [](Gpu& gpu, const std::string& text) { gpu.options.completion = completion_of(text); })
      .def_property(
          "accumulate", [](const Gpu& gpu) { return name(gpu.options.accumulate); },
          [](Gpu& gpu, const std::string& text) { gpu.options.accumulate = accumulate_of(text); })
      .def_property(
          "host_threads", [](const Gpu& gpu) { return gpu.options.host_threads; },
          [](Gpu& gpu, uint32_t threads) { gpu.options.host_threads = threads; })
      .def_property(
          "hang_limit", [](const Gpu& gpu) { return gpu.options.hang_limit; },
          [](Gpu& gpu, uint64_t limit) { gpu.options.hang_limit = limit; })
      .def("load", &load, "source"_a)
      .def("launches_since", &launches_since)
      .def("launch_count", [](Gpu& gpu) { return gpu.launches().size(); })
      .def("clear_launches", [](Gpu& gpu) { gpu.launches().clear(); })
      .def("allocate", [](const std::shared_ptr<Gpu>& gpu, size_t bytes,
                          const std::string& label) { return std::make_unique<Buffer>(gpu, bytes, label); })
      .def("mark_written", [](Gpu& gpu, uint64_t address,
                              size_t bytes) { gpu.memory().mark_written(reinterpret_cast<void*>(address), bytes); })
      .def("mark_fresh", [](Gpu& gpu, uint64_t address,
                            size_t bytes) { gpu.memory().mark_fresh(reinterpret_cast<void*>(address), bytes); })
      .def("capsule",
           [](const std::shared_ptr<Gpu>& gpu) {
             return py::capsule(new std::shared_ptr<Gpu>(gpu), "std::shared_ptr<vgpu::Gpu>",
                                [](void* pointer) { delete static_cast<std::shared_ptr<Gpu>*>(pointer); });
           })
      .def("describe", [](Gpu& gpu, uint64_t address) { return gpu.memory().describe(address); })
      .def_property_readonly("live_bytes", [](Gpu& gpu) { return gpu.memory().live_bytes(); });

  m.def("make_current", &make_current, "The GPU that was current before.");
  m.def("demangle", &demangle);
}

}  // namespace vgpu::python
