// What has storage: parameters, variables and their initialisers, registers.

#include <algorithm>
#include <bit>
#include <charconv>
#include <limits>

#include "ptx/parser_state.h"

namespace vgpu::ptx {
namespace {

// Bits of a fundamental type's name without the dot; 0 when it is none.
uint32_t type_bits(std::string_view name) {
  if (name == "pred") return 1;
  for (const std::string_view packed : {"f16x2", "bf16x2", "u16x2", "s16x2"}) {
    if (name == packed) return 32;
  }
  size_t prefix = 0;
  while (prefix < name.size() && (name[prefix] < '0' || name[prefix] > '9')) ++prefix;
  const std::string_view kind = name.substr(0, prefix);
  uint32_t bits = 0;
  const auto result = std::from_chars(name.data() + prefix, name.data() + name.size(), bits);
  if (result.ec != std::errc() || result.ptr != name.data() + name.size()) return 0;
  const bool whole = bits == 8 || bits == 16 || bits == 32 || bits == 64;
  if (kind == "b") return whole || bits == 128 ? bits : 0;
  if (kind == "u" || kind == "s") return whole ? bits : 0;
  if (kind == "f") return whole && bits != 8 ? bits : 0;
  return kind == "bf" && bits == 16 ? bits : 0;
}

uint64_t align_up(uint64_t value, uint64_t align) { return (value + align - 1) / align * align; }

}  // namespace

Type Parser::parse_type() {
  if (token_.kind != TokenKind::kDotted) fail("a type");
  Type type;
  type.name = token_.text.substr(1);
  type.bits = type_bits(type.name);
  if (type.bits == 0) {
    if (token_.is(".texref") || token_.is(".samplerref") || token_.is(".surfref")) {
      reject(token_.line, std::string(token_.text) + " is not supported");
    }
    fail("a type");
  }
  advance();
  return type;
}

std::vector<uint64_t> Parser::parse_dimensions() {
  std::vector<uint64_t> dimensions;
  while (accept('[')) {
    if (dimensions.size() == 16) fail("at most 16 dimensions");
    if (token_.is(']')) {
      if (!dimensions.empty()) fail("the size of an inner dimension");
      dimensions.push_back(0);
    } else {
      const uint32_t line = token_.line;
      dimensions.push_back(integer(parse_shift()));
      if (dimensions.back() == 0 || dimensions.back() > kMaxBytes) reject(line, "an array's size is out of range");
    }
    expect(']', "an array's size");
  }
  return dimensions;
}

std::vector<Parameter> Parser::parse_parameters() {
  std::vector<Parameter> parameters;
  expect('(', "a function's name");
  uint64_t offset = 0;
  while (!token_.is(')')) {
    if (!parameters.empty()) expect(',', "a parameter");
    const uint32_t line = token_.line;
    Parameter parameter = parse_parameter();
    offset = align_up(offset, parameter.align);
    parameter.offset = static_cast<uint32_t>(offset);
    offset += parameter.bytes;
    if (offset > std::numeric_limits<uint32_t>::max()) reject(line, "the parameters are too big");
    parameters.push_back(std::move(parameter));
  }
  advance();
  return parameters;
}

Parameter Parser::parse_parameter() {
  if (token_.is(".reg")) reject(token_.line, "parameters in registers are not supported");
  if (!accept(".param")) fail(".param");
  Parameter parameter;
  uint32_t align = 0;
  const auto parse_align = [this] {
    const uint32_t line = token_.line;
    const uint64_t value = expect_unsigned("an alignment", 1 << 16);
    if (!std::has_single_bit(value)) reject(line, "an alignment must be a power of two");
    return static_cast<uint32_t>(value);
  };
  if (accept(".align")) align = parse_align();
  parameter.type = parse_type();
  if (parameter.type.bits == 1) reject(token_.line, "a parameter cannot be of type .pred");
  if (accept(".ptr")) {  // says what the pointer points to, which is of no use here
    if (token_.is(".global") || token_.is(".shared") || token_.is(".const") || token_.is(".local")) advance();
    if (accept(".align")) parse_align();
  }
  const uint32_t line = token_.line;
  parameter.name = expect_name("a parameter's name");
  uint64_t bytes = parameter.type.bits / 8;
  parameter.align = std::max(align, static_cast<uint32_t>(bytes));
  for (const uint64_t extent : parse_dimensions()) {
    bytes *= extent;
    if (bytes > (1u << 30)) reject(line, "parameter " + parameter.name + " is too big");
  }
  parameter.bytes = static_cast<uint32_t>(bytes);
  return parameter;
}

void Parser::parse_variables(Space space, bool is_extern, bool in_body) {
  Variable variable;
  variable.space = space;
  variable.is_extern = is_extern;
  uint32_t align = 0;
  uint32_t lanes = 1;
  for (;;) {
    const uint32_t line = token_.line;
    if (accept(".align")) {
      align = static_cast<uint32_t>(expect_unsigned("an alignment", 1 << 16));
      if (!std::has_single_bit(align)) reject(line, "an alignment must be a power of two");
    } else if (accept(".attribute")) {
      skip_parentheses();
    } else if (accept(".v2")) {
      lanes = 2;
    } else if (accept(".v4")) {
      lanes = 4;
    } else {
      break;
    }
  }
  variable.type = parse_type();
  if (variable.type.bits == 1) reject(token_.line, "a variable cannot be of type .pred");
  variable.align = std::max(align, variable.type.bits / 8 * lanes);
  if (align != 0 && align < variable.align) variable.align = align;
  do {
    parse_variable(variable, in_body, lanes);
  } while (accept(','));
  expect(';', "a variable");
}

void Parser::parse_variable(Variable variable, bool in_body, uint32_t lanes) {
  const uint32_t line = token_.line;
  const std::string_view name = expect_name("a variable's name");
  variable.name = name;
  std::vector<uint64_t> dimensions = parse_dimensions();
  if (lanes > 1) dimensions.push_back(lanes);

  if (token_.is('=')) {
    if (variable.space != Space::kGlobal && variable.space != Space::kConst) {
      fail("no initialiser outside .global and .const");
    }
    if (variable.is_extern) fail("no initialiser for an .extern variable");
    advance();
    parse_initial(variable, dimensions);
  }
  variable.bytes = variable.type.bits / 8;
  for (const uint64_t extent : dimensions) {
    if (extent != 0 && variable.bytes > kMaxBytes / extent) reject(line, "variable " + variable.name + " is too big");
    variable.bytes *= extent;
  }
  if (variable.bytes == 0 && !variable.is_extern) {
    reject(line, "variable " + variable.name + " has no size and no initialiser");
  }
  if (!variable.initial.empty()) variable.initial.resize(variable.bytes);
  if (!in_body) return add_module_variable(std::move(variable), name, line);

  auto& variables = function().variables;
  declare(name, {Symbol::Kind::kTable, SymbolTable::kVariables, static_cast<uint32_t>(variables.size())}, line);
  const uint32_t use = name_uses_[variable.name]++;
  if (use > 0) variable.name += "." + std::to_string(use);
  variables.push_back(std::move(variable));
}

void Parser::add_module_variable(Variable variable, std::string_view name, uint32_t line) {
  const auto [known, is_new] = globals_.try_emplace(name);
  if (is_new) {
    known->second.table = SymbolTable::kModuleVariables;
    known->second.index = static_cast<uint32_t>(module_.variables.size());
    module_.variables.push_back(std::move(variable));
    return;
  }
  // An .extern declaration may stand beside the definition.
  const bool is_variable = known->second.table == SymbolTable::kModuleVariables;
  if (!is_variable || module_.variables[known->second.index].space != variable.space) {
    reject(line, std::string(name) + " is declared twice");
  }
  Variable& old = module_.variables[known->second.index];
  if (!old.is_extern && !variable.is_extern) reject(line, std::string(name) + " is declared twice");
  if (old.is_extern) old = std::move(variable);
}

void Parser::parse_initial(Variable& variable, std::vector<uint64_t>& dimensions) {
  if (dimensions.empty()) {
    const bool braces = accept('{');
    store_initial(variable, 0, parse_initial_value());
    if (braces) expect('}', "an initialiser");
    return;
  }
  const uint32_t line = token_.line;
  uint64_t inner = 1;
  for (size_t i = 0; i < dimensions.size(); ++i) {
    if (dimensions[i] > kMaxInitialBytes) reject(line, "want an initialised array of less than 256 MiB");
    if (i > 0) inner *= dimensions[i];
    if (inner > kMaxInitialBytes) reject(line, "want an initialised array of less than 256 MiB");
  }
  const bool sized = dimensions[0] != 0;
  // Of the flat elements; `end` is one past the last that has a value.
  uint64_t end = 0;
  if (!sized) dimensions[0] = kMaxInitialBytes;
  parse_initial_list(variable, dimensions, 0, 0, end);
  if (!sized) dimensions[0] = std::max<uint64_t>(1, (end + inner - 1) / inner);
  const uint64_t element = variable.type.bits / 8;
  if (dimensions[0] * inner > kMaxInitialBytes / element) {
    reject(line, "want an initialised array of less than 256 MiB");
  }
}

void Parser::parse_initial_list(Variable& variable, const std::vector<uint64_t>& dimensions, size_t depth,
                                uint64_t begin, uint64_t& end) {
  expect('{', "'=' or ',' of an initialiser");
  uint64_t stride = 1;  // of one step in this dimension, in elements
  for (size_t i = depth + 1; i < dimensions.size(); ++i) stride *= dimensions[i];
  const uint64_t limit = begin + dimensions[depth] * stride;
  for (uint64_t at = begin; !token_.is('}');) {
    if (at >= limit) fail("'}' after the last element of " + variable.name);
    if (token_.is('{') && depth + 1 < dimensions.size()) {
      at = begin + (at - begin + stride - 1) / stride * stride;
      parse_initial_list(variable, dimensions, depth + 1, at, end);
      at += stride;
    } else {
      store_initial(variable, at, parse_initial_value());
      ++at;
    }
    end = std::max(end, at);
    if (!token_.is('}')) expect(',', "an element of " + variable.name);
  }
  advance();
}

Parser::Initial Parser::parse_initial_value() {
  Initial value;
  const bool mask = token_.kind == TokenKind::kInteger && peek().is('(');
  if (mask) reject(token_.line, "a byte of an address (" + std::string(token_.text) + "(…)) is not supported");
  if (token_.kind == TokenKind::kIdentifier && !token_.is("WARP_SZ")) {
    value.is_address = true;
    value.address.generic = token_.is("generic") && peek().is('(');
    if (value.address.generic) {
      advance();
      advance();
    }
    value.address.name = expect_name("a variable's name");
    value.address.offset = parse_offset();
    if (value.address.generic) {
      expect(')', "generic(…");
      value.address.offset += parse_offset();
    }
    return value;
  }
  const Constant constant = parse_shift();
  value.float_bits = constant.float_bits;
  value.bits = constant.bits;
  return value;
}

void Parser::store_initial(Variable& variable, uint64_t element, const Initial& value) {
  const uint32_t bytes = variable.type.bits / 8;
  const uint64_t at = element * bytes;
  if (at > kMaxInitialBytes) fail("an initialised array of less than 256 MiB");
  if (variable.initial.size() < at + bytes) variable.initial.resize(at + bytes);
  if (value.is_address) {
    if (bytes != 8) reject(token_.line, "an address does not fit an element of ." + variable.type.name);
    variable.addresses.push_back(value.address);
    variable.addresses.back().at = at;
    return;
  }
  uint64_t bits = value.bits;
  const bool is_float = variable.type.name == "f32" || variable.type.name == "f64";
  if (is_float || value.float_bits != 0) {
    if (variable.type.name[0] != 'f' && variable.type.name[0] != 'b') {
      reject(token_.line, "a float cannot initialise an element of ." + variable.type.name);
    }
    if (bytes != 4 && bytes != 8) {
      reject(token_.line, "float initialisers of ." + variable.type.name + " are not supported");
    }
    double wide = static_cast<double>(static_cast<int64_t>(bits));
    if (value.float_bits == 64) wide = std::bit_cast<double>(bits);
    if (value.float_bits == 32) wide = std::bit_cast<float>(static_cast<uint32_t>(bits));
    // Equal widths keep their bits, a NaN's payload too.
    if (value.float_bits != bytes * 8) {
      bits = bytes == 8 ? std::bit_cast<uint64_t>(wide) : std::bit_cast<uint32_t>(static_cast<float>(wide));
    }
  }
  // Little endian. A 16-byte element takes a sign-extended integer.
  const uint64_t high = static_cast<int64_t>(bits) < 0 && value.float_bits == 0 ? ~uint64_t{0} : 0;
  for (uint32_t i = 0; i < bytes; ++i) {
    const uint64_t word = i < 8 ? bits >> (8 * i) : high >> (8 * (i - 8));
    variable.initial[at + i] = static_cast<std::byte>(word & 0xff);
  }
}

// .reg .b32 %r<17>, %x;
void Parser::parse_registers() {
  if (token_.is(".v2") || token_.is(".v4")) reject(token_.line, "vector registers are not supported");
  const Type type = parse_type();
  do {
    const uint32_t line = token_.line;
    const std::string_view name = expect_name("a register's name");
    if (name == "_") reject(line, "a register cannot be named _");
    if (accept('<')) {
      const uint64_t count = expect_unsigned("a number of registers", ~0u);
      expect('>', "a number of registers");
      if (!scopes_[scope_].ranges.try_emplace(name, RegisterRange{count, type}).second) {
        reject(line, std::string(name) + " is declared twice");
      }
    } else {
      declare(name, {Symbol::Kind::kRegister, SymbolTable::kNone, static_cast<uint32_t>(function().registers.size())},
              line);
      function().registers.push_back({std::string(name), type});
    }
  } while (accept(','));
  expect(';', "registers");
}

}  // namespace vgpu::ptx
