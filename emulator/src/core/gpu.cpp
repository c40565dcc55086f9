#include "core/gpu.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>

#include "core/block.h"
#include "core/kernel.h"
#include "core/schedule.h"
#include "ptx/parser.h"
#include "runtime/occupancy.h"

namespace vgpu {
namespace {

uint64_t align_up(uint64_t value, uint64_t align) { return (value + align - 1) / align * align; }

[[noreturn]] void refuse(const Kernel& kernel, FaultKind kind, const std::string& message) {
  Fault f;
  f.kind = kind;
  f.message = message;
  f.kernel = kernel.demangled;
  f.format();
  throw f;
}

std::string text(const std::array<uint32_t, 3>& v) {
  return "(" + std::to_string(v[0]) + ", " + std::to_string(v[1]) + ", " + std::to_string(v[2]) + ")";
}

void collect_calls(const ptx::Module& module, const ptx::Function& f, std::set<const ptx::Function*>& reached) {
  if (!reached.insert(&f).second) return;
  for (const ptx::Statement& s : f.statements) {
    if (s.opcode != "call" || s.operands.size() < 2) continue;
    const ptx::Operand& callee = s.operands[1];
    if (callee.table == ptx::SymbolTable::kFunctions) collect_calls(module, module.functions[callee.index], reached);
  }
}

void for_symbols(const ptx::Operand& o, const std::function<void(const ptx::Operand&)>& fn) {
  if (o.kind == ptx::OperandKind::kSymbol) fn(o);
  for (const ptx::Operand& e : o.elements) for_symbols(e, fn);
}

// Static shared variables of the kernel and all that it calls, in the order of the text.
void lay_out_shared(const ptx::Module& module, Kernel& kernel) {
  std::set<const ptx::Function*> reached;
  collect_calls(module, *kernel.function, reached);
  uint64_t end = kSharedBase;
  auto place = [&](const ptx::Variable& v) {
    if (v.is_extern || v.bytes == 0) {
      kernel.uses_dynamic_shared = true;
      kernel.dynamic_shared_align = std::max(kernel.dynamic_shared_align, v.align);
      return;
    }
    if (kernel.shared_offsets.contains(&v)) return;
    end = align_up(end, std::max(v.align, 1u));
    kernel.shared_offsets[&v] = static_cast<uint32_t>(end);
    end += v.bytes;
  };
  for (const ptx::Function& f : module.functions) {
    if (!reached.contains(&f)) continue;
    for (const ptx::Variable& v : f.variables) {
      if (v.space == ptx::Space::kShared) place(v);
    }
    for (const ptx::Statement& s : f.statements) {
      for (const ptx::Operand& o : s.operands) {
        for_symbols(o, [&](const ptx::Operand& symbol) {
          if (symbol.table != ptx::SymbolTable::kModuleVariables) return;
          const ptx::Variable& v = module.variables[symbol.index];
          if (v.space == ptx::Space::kShared) place(v);
        });
      }
    }
  }
  kernel.static_shared_bytes = static_cast<uint32_t>(end - kSharedBase);
}

uint32_t usable_processors() {
  // Test runners that start several processes set it to 1.
  if (const char* threads = std::getenv("EMULATOR_HOST_THREADS"))
    return static_cast<uint32_t>(std::max(1, std::atoi(threads)));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

void check_limits(const Chip& chip, const Kernel& kernel, const LaunchConfig& c) {
  const uint64_t threads = uint64_t{c.block[0]} * c.block[1] * c.block[2];
  auto limit = [&](const std::string& message) { refuse(kernel, FaultKind::kLaunchLimit, message); };
  if (threads == 0 || c.grid[0] == 0 || c.grid[1] == 0 || c.grid[2] == 0) {
    limit("a launch of nothing: grid " + text(c.grid) + ", block " + text(c.block));
  }
  if (threads > chip.max_threads_per_block || c.block[2] > 64) {
    limit("block " + text(c.block) + " has more than " + std::to_string(chip.max_threads_per_block) +
          " threads (z at most 64)");
  }
  if (c.grid[0] > 0x7FFFFFFF || c.grid[1] > 65535 || c.grid[2] > 65535) limit("grid " + text(c.grid) + " is too large");
  const ptx::Function& f = *kernel.function;
  if (f.required_threads[0] != 0) {
    std::array<uint32_t, 3> want{f.required_threads[0], std::max(f.required_threads[1], 1u),
                                 std::max(f.required_threads[2], 1u)};
    if (want != c.block) limit("the kernel is made for blocks of " + text(want) + ", got " + text(c.block));
  }
  if (f.max_threads[0] != 0) {
    uint64_t most = uint64_t{f.max_threads[0]} * std::max(f.max_threads[1], 1u) * std::max(f.max_threads[2], 1u);
    if (threads > most)
      limit("the kernel's launch bounds allow " + std::to_string(most) + " threads, got " + std::to_string(threads));
  }
  if (f.max_registers != 0 && align_up(f.max_registers, 8) * align_up(threads, kLanes) > chip.registers_per_block) {
    limit(std::to_string(f.max_registers) + " registers of " + std::to_string(threads) +
          " threads are more than a block has");
  }
  uint64_t shared = uint64_t{kernel.dynamic_shared_offset()} - kSharedBase + c.dynamic_shared_bytes;
  uint32_t most_shared = std::max(chip.shared_per_block, chip.shared_per_block_optin);
  if (shared > most_shared) {
    limit(std::to_string(shared) + " bytes of shared memory (" + std::to_string(kernel.static_shared_bytes) +
          " static) are more than the " + std::to_string(most_shared) + " that a block of " + chip.name + " may have");
  }
  if (kernel.static_shared_bytes > chip.shared_per_block) {
    limit(std::to_string(kernel.static_shared_bytes) + " bytes of static shared memory are more than " +
          std::to_string(chip.shared_per_block));
  }
  uint64_t blocks = uint64_t{c.cluster[0]} * c.cluster[1] * c.cluster[2];
  if (blocks == 0 || c.grid[0] % c.cluster[0] || c.grid[1] % c.cluster[1] || c.grid[2] % c.cluster[2]) {
    limit("grid " + text(c.grid) + " is no multiple of the cluster " + text(c.cluster));
  }
  uint64_t most_blocks = kernel.non_portable_cluster ? 16 : std::max(chip.max_cluster, 1u);
  if (blocks > most_blocks)
    limit("a cluster of " + std::to_string(blocks) + " blocks, at most " + std::to_string(most_blocks));
  if (c.cooperative) {
    const uint64_t fit =
        uint64_t{chip.multiprocessors} *
        runtime::blocks_per_multiprocessor(kernel, chip, static_cast<uint32_t>(threads), c.dynamic_shared_bytes);
    const uint64_t wanted = uint64_t{c.grid[0]} * c.grid[1] * c.grid[2];
    if (wanted > fit)
      limit("a cooperative launch of " + std::to_string(wanted) + " blocks, of which " + std::to_string(fit) +
            " fit at once");
  }
  if (f.required_cluster[0] != 0) {
    std::array<uint32_t, 3> want{f.required_cluster[0], std::max(f.required_cluster[1], 1u),
                                 std::max(f.required_cluster[2], 1u)};
    if (want != c.cluster) limit("the kernel is made for clusters of " + text(want) + ", got " + text(c.cluster));
  }
}

void check_target(const Chip& chip, const Kernel& kernel) {
  const std::string& target = kernel.module->text->target;
  if (!target.starts_with("sm_")) return;
  int number = std::atoi(target.c_str() + 3);
  bool exact = target.back() == 'a' || target.back() == 'f';
  int have = chip.major * 10 + chip.minor;
  if (exact ? number != have : number > have) {
    refuse(kernel, FaultKind::kUnsupported,
           "PTX for " + target + " does not run on " + chip.name + " (sm_" + std::to_string(have) + ")");
  }
}

LaunchRecord make_record(const Launch& launch, const std::vector<std::unique_ptr<Worker>>& workers) {
  LaunchRecord record;
  record.number = launch.number;
  record.kernel = launch.kernel->demangled;
  record.chip = launch.chip.name;
  record.grid = launch.config.grid;
  record.block = launch.config.block;
  record.cluster = launch.config.cluster;
  record.dynamic_shared_bytes = launch.config.dynamic_shared_bytes;
  record.static_shared_bytes = launch.kernel->static_shared_bytes;
  record.stream = launch.config.stream;
  record.files = launch.kernel->module->text->files;
  for (const auto& w : workers) {
    record.distinct_sectors_read += w->sectors_read;
    record.distinct_sectors_written += w->sectors_written;
  }
  if (!launch.options.counters) {
    for (const auto& w : workers) record.total += w->total;
    return record;
  }
  const auto& code = launch.program->code;
  std::set<uint32_t> executed, all;
  for (size_t k = 0; k < code.size(); ++k) {
    InstructionCounters c;
    for (const auto& w : workers) c.counters += w->counters[k];
    const ptx::Statement& s = *code[k].statement;
    if (s.ptx_line != 0) all.insert(s.ptx_line);
    if (c.counters.warp_instructions == 0) continue;
    executed.insert(s.ptx_line);
    c.ptx_line = s.ptx_line;
    c.file = s.where.file;
    c.line = s.where.line;
    c.kind = code[k].kind;
    c.opcode = s.opcode;
    for (const std::string& m : s.modifiers) c.opcode += "." + m;
    record.instructions_by_class[static_cast<size_t>(c.kind)] += c.counters.warp_instructions;
    record.total += c.counters;
    record.instructions.push_back(std::move(c));
  }
  std::set_difference(all.begin(), all.end(), executed.begin(), executed.end(),
                      std::back_inserter(record.lines_never_executed));
  return record;
}

std::shared_ptr<Gpu>& current() {
  static std::shared_ptr<Gpu> gpu = std::make_shared<Gpu>(chip("H100"));
  return gpu;
}

}  // namespace

Gpu::Gpu(const Chip& chip, Options options)
    : options(options),
      print([](std::string_view line) {
        std::fwrite(line.data(), 1, line.size(), stdout);
        std::fflush(stdout);
      }),
      chip_(chip) {}

Gpu::~Gpu() = default;

std::shared_ptr<Module> Gpu::load(std::string_view ptx, const std::string& name) {
  auto module = std::make_shared<Module>();
  module->name = name;
  module->text = std::make_unique<ptx::Module>(ptx::parse(ptx, name));
  module->memory = &memory_;
  for (const ptx::Variable& v : module->text->variables) {
    if (v.space != ptx::Space::kGlobal && v.space != ptx::Space::kConst) continue;
    if (v.is_extern) continue;
    size_t bytes = std::max<uint64_t>(v.bytes, 1);
    void* at = memory_.allocate(bytes, "variable " + demangle(v.name));
    std::memset(at, 0, bytes);
    std::copy_n(v.initial.begin(), std::min<size_t>(v.initial.size(), bytes), static_cast<std::byte*>(at));
    memory_.mark_written(at, bytes);
    module->variables[v.name] = reinterpret_cast<uint64_t>(at);
    module->variable_bytes[v.name] = v.bytes;
    if (v.space == ptx::Space::kConst) memory_.find(reinterpret_cast<uint64_t>(at))->read_only = true;
  }
  for (const ptx::Variable& v : module->text->variables) {
    for (const ptx::Variable::Address& a : v.addresses) {
      auto target = module->variables.find(a.name);
      if (target == module->variables.end() || !module->variables.contains(v.name)) {
        throw ptx::SyntaxError(name + ": the initial value of " + v.name + " names " + a.name +
                               ", which has no address");
      }
      uint64_t value = target->second + static_cast<uint64_t>(a.offset);
      std::memcpy(reinterpret_cast<std::byte*>(module->variables[v.name]) + a.at, &value, 8);
    }
  }
  for (const ptx::Function& f : module->text->functions) {
    if (!f.is_entry || f.is_declaration) continue;
    auto kernel = std::make_unique<Kernel>();
    kernel->name = f.name;
    kernel->demangled = demangle(f.name);
    kernel->module = module.get();
    kernel->function = &f;
    for (const ptx::Parameter& p : f.parameters)
      kernel->parameter_bytes = std::max(kernel->parameter_bytes, p.offset + p.bytes);
    lay_out_shared(*module->text, *kernel);
    module->kernels.push_back(std::move(kernel));
  }
  return module;
}

const LaunchRecord& Gpu::launch(const Kernel& kernel, const LaunchConfig& config,
                                std::span<const std::byte> parameters) {
  check_target(chip_, kernel);
  LaunchConfig resolved = config;
  const ptx::Function& f = *kernel.function;
  if (f.required_cluster[0] != 0 && config.cluster == std::array<uint32_t, 3>{1, 1, 1}) {
    for (int k = 0; k < 3; ++k) resolved.cluster[k] = std::max(f.required_cluster[k], 1u);
  }
  check_limits(chip_, kernel, resolved);
  if (parameters.size() < kernel.parameter_bytes) {
    refuse(kernel, FaultKind::kLaunchLimit,
           "wants " + std::to_string(kernel.parameter_bytes) + " bytes of parameters, got " +
               std::to_string(parameters.size()));
  }
  Launch launch;
  launch.gpu = this;
  launch.kernel = &kernel;
  launch.program = &kernel.program();
  launch.config = resolved;
  launch.options = options;
  launch.chip = chip_;
  // Descriptors passed by value want 64-byte alignment; the buffer lives as long as the launch.
  launch.parameters.assign(parameters.begin(), parameters.end());
  launch.shared_bytes = kernel.dynamic_shared_offset() + resolved.dynamic_shared_bytes;
  launch.warps_per_block = (resolved.block[0] * resolved.block[1] * resolved.block[2] + kLanes - 1) / kLanes;
  launch.blocks_per_cluster = resolved.cluster[0] * resolved.cluster[1] * resolved.cluster[2];
  launch.clusters = uint64_t{resolved.grid[0]} * resolved.grid[1] * resolved.grid[2] / launch.blocks_per_cluster;
  launch.resident_limit = std::max<uint64_t>(
      1,
      uint64_t{chip_.multiprocessors} *
          runtime::blocks_per_multiprocessor(kernel, chip_, resolved.block[0] * resolved.block[1] * resolved.block[2],
                                             resolved.dynamic_shared_bytes) /
          launch.blocks_per_cluster);
  launch.number = ++launch_number_;
  launch.overlaps_predecessor = resolved.programmatic && chip_.major >= 9 && dependents_may_overlap_;
  launch.tag = static_cast<uint8_t>((launch.number - 1) % 255 + 1);
  if (launch.tag == 1) memory_.forget_races();
  if (launch.blocks_per_cluster * launch.warps_per_block + kAsyncAgents >= kPendingAgent) {
    refuse(kernel, FaultKind::kUnsupported, "clusters of more than 480 warps are not modelled");
  }

  std::shared_ptr<void> workspace;
  if (resolved.cooperative) {
    constexpr size_t kWorkspaceBytes = 64;
    void* at = memory_.allocate(kWorkspaceBytes, "workspace of the cooperative launch");
    std::memset(at, 0, kWorkspaceBytes);
    memory_.mark_written(at, kWorkspaceBytes);
    workspace = std::shared_ptr<void>(at, [this](void* p) { memory_.release(p); });
    launch.cooperative_workspace = reinterpret_cast<uint64_t>(at);
  }

  uint32_t threads = options.host_threads != 0 ? options.host_threads : usable_processors();
  // A kernel whose blocks wait for each other wants them all on one host thread, where they take turns.
  if (resolved.cooperative) threads = 1;
  threads = static_cast<uint32_t>(std::min<uint64_t>(threads, launch.clusters));
  auto begin = std::chrono::steady_clock::now();
  std::vector<std::unique_ptr<Worker>> workers;
  for (uint32_t t = 0; t < threads; ++t) {
    auto w = std::make_unique<Worker>();
    w->launch = &launch;
    w->random.seed(options.seed * 0x9E3779B97F4A7C15ull + t);
    if (options.counters) w->counters.resize(launch.program->code.size());
    workers.push_back(std::move(w));
  }
  for (auto& w : workers) launch.workers.push_back(w.get());
  std::atomic<uint64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
  auto run = [&](Worker& w) {
    try {
      run_clusters(w, next);
    } catch (...) {
      std::lock_guard lock(error_mutex);
      if (error == nullptr) error = std::current_exception();
      launch.stop = true;
    }
  };
  std::vector<std::thread> others;
  for (uint32_t t = 1; t < threads; ++t) others.emplace_back([&, t] { run(*workers[t]); });
  run(*workers[0]);
  for (std::thread& t : others) t.join();
  dependents_may_overlap_ = launch.let_dependents_in;
  LaunchRecord record = make_record(launch, workers);
  record.host_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (error != nullptr) std::rethrow_exception(error);
  launches_.push_back(std::move(record));
  return launches_.back();
}

Gpu& current_gpu() { return *current(); }

std::shared_ptr<Gpu> make_current(std::shared_ptr<Gpu> gpu) {
  std::shared_ptr<Gpu> old = current();
  if (gpu != nullptr) current() = std::move(gpu);
  return old;
}

}  // namespace vgpu
