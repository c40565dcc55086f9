#include "python/parse_summary.h"

#include <array>
#include <cstdio>

#include "ptx/parser.h"

namespace vgpu::python {
namespace {

namespace py = pybind11;

const char* space_name(ptx::Space space) {
  constexpr std::array kNames = {"none", "reg", "param", "const", "global", "shared", "local"};
  return kNames[static_cast<size_t>(space)];
}

const char* table_name(ptx::SymbolTable table) {
  constexpr std::array kNames = {"none",      "parameters",    "results",  "variables", "module_variables",
                                 "functions", "branch_tables", "prototype"};
  return kNames[static_cast<size_t>(table)];
}

std::string with_offset(int64_t offset) {
  if (offset == 0) return "";
  return (offset > 0 ? "+" : "") + std::to_string(offset);
}

std::string hexadecimal(const ptx::Operand& operand) {
  char text[24];
  std::snprintf(text, sizeof text, operand.float_bits == 32 ? "0f%08llX" : "0d%016llX",
                static_cast<unsigned long long>(operand.bits));
  return text;
}

// One form for each meaning: r3 the register with index 3, variables[1]+4 a symbol, @7 the statement with index 7.
std::string operand_text(const ptx::Operand& operand) {
  const auto elements = [&](const char* between) {
    std::string out;
    for (size_t i = 0; i < operand.elements.size(); ++i) out += (i ? between : "") + operand_text(operand.elements[i]);
    return out;
  };
  switch (operand.kind) {
    case ptx::OperandKind::kRegister:
      return (operand.negated ? "!r" : "r") + std::to_string(operand.index);
    case ptx::OperandKind::kSpecial:
      return operand.name;
    case ptx::OperandKind::kImmediate:
      if (operand.float_bits != 0) return hexadecimal(operand);
      return std::to_string(static_cast<int64_t>(operand.bits));
    case ptx::OperandKind::kSymbol: {
      std::string out = table_name(operand.table);
      if (operand.index != ptx::kNoIndex) out += "[" + std::to_string(operand.index) + "]";
      return out + with_offset(operand.offset);
    }
    case ptx::OperandKind::kLabel:
      return "@" + std::to_string(operand.index);
    case ptx::OperandKind::kVector:
      return "{" + elements(", ") + "}";
    case ptx::OperandKind::kAddress: {
      std::string out = "[" + operand_text(operand.elements[0]) + with_offset(operand.offset);
      for (size_t i = 1; i < operand.elements.size(); ++i) out += ", " + operand_text(operand.elements[i]);
      return out + "]";
    }
    case ptx::OperandKind::kPair:
      return elements("|");
    case ptx::OperandKind::kSink:
      return "_";
  }
  return "?";
}

py::list numbers(const uint32_t (&values)[3]) {
  py::list out;
  for (const uint32_t value : values) out.append(value);
  return out;
}

py::dict statement_summary(const ptx::Statement& statement) {
  py::dict out;
  out["opcode"] = statement.opcode;
  py::list modifiers, operands;
  for (const std::string& modifier : statement.modifiers) modifiers.append(modifier);
  for (const ptx::Operand& operand : statement.operands) operands.append(operand_text(operand));
  out["modifiers"] = modifiers;
  out["operands"] = operands;
  out["guard"] = py::none();
  if (statement.guard != ptx::kNoIndex) {
    out["guard"] = (statement.guard_negated ? "!r" : "r") + std::to_string(statement.guard);
  }
  const ptx::SourceLine& where = statement.where;
  out["where"] = py::make_tuple(where.file, where.line, where.column);
  out["caller"] = py::make_tuple(where.caller_file, where.caller_line);
  out["ptx_line"] = statement.ptx_line;
  out["text"] = statement.text;
  return out;
}

py::list parameter_summaries(const std::vector<ptx::Parameter>& parameters) {
  py::list out;
  for (const ptx::Parameter& parameter : parameters) {
    py::dict one;
    one["name"] = parameter.name;
    one["type"] = parameter.type.name;
    one["align"] = parameter.align;
    one["bytes"] = parameter.bytes;
    one["offset"] = parameter.offset;
    out.append(one);
  }
  return out;
}

py::list variable_summaries(const std::vector<ptx::Variable>& variables) {
  py::list out;
  for (const ptx::Variable& variable : variables) {
    py::dict one;
    one["name"] = variable.name;
    one["space"] = space_name(variable.space);
    one["type"] = variable.type.name;
    one["align"] = variable.align;
    one["bytes"] = variable.bytes;
    one["is_extern"] = variable.is_extern;
    one["initial"] = py::bytes(reinterpret_cast<const char*>(variable.initial.data()), variable.initial.size());
    py::list addresses;
    for (const ptx::Variable::Address& address : variable.addresses) {
      addresses.append(py::make_tuple(address.at, address.name, address.offset, address.generic));
    }
    one["addresses"] = addresses;
    out.append(one);
  }
  return out;
}

py::dict function_summary(const ptx::Function& function) {
  py::dict out;
  out["name"] = function.name;
  out["is_entry"] = function.is_entry;
  out["is_declaration"] = function.is_declaration;
  out["no_return"] = function.no_return;
  out["parameters"] = parameter_summaries(function.parameters);
  out["results"] = parameter_summaries(function.results);
  py::list registers, statements, tables;
  for (const ptx::Register& one : function.registers) registers.append(py::make_tuple(one.name, one.type.name));
  for (const ptx::Statement& statement : function.statements) statements.append(statement_summary(statement));
  for (const std::vector<uint32_t>& table : function.branch_tables) {
    py::list targets;
    for (const uint32_t target : table) targets.append(target);
    tables.append(targets);
  }
  out["registers"] = registers;
  out["variables"] = variable_summaries(function.variables);
  out["statements"] = statements;
  out["branch_tables"] = tables;
  out["max_threads"] = numbers(function.max_threads);
  out["required_threads"] = numbers(function.required_threads);
  out["required_cluster"] = numbers(function.required_cluster);
  out["explicit_cluster"] = function.explicit_cluster;
  out["blocks_are_clusters"] = function.blocks_are_clusters;
  out["max_cluster_rank"] = function.max_cluster_rank;
  out["min_blocks"] = function.min_blocks;
  out["max_registers"] = function.max_registers;
  return out;
}

}  // namespace

py::dict parse_summary(const std::string& text, const std::string& name) {
  const ptx::Module module = ptx::parse(text, name);
  py::dict out;
  out["version"] = module.version;
  out["target"] = module.target;
  py::list files, functions;
  for (const std::string& file : module.files) files.append(file);
  for (const ptx::Function& function : module.functions) functions.append(function_summary(function));
  out["files"] = files;
  out["variables"] = variable_summaries(module.variables);
  out["functions"] = functions;
  return out;
}

}  // namespace vgpu::python
