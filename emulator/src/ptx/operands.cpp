// Operands and the constant expressions in them.

#include <array>
#include <bit>
#include <limits>

#include "ptx/parser_state.h"

namespace vgpu::ptx {
namespace {

constexpr uint64_t kWarpSize = 32;

bool all_digits(std::string_view s) { return s.find_first_not_of("0123456789") == std::string_view::npos; }

bool is_vector_special(std::string_view name) {
  constexpr std::array kNames = {"%tid",       "%ntid",       "%ctaid",         "%nctaid",
                                 "%clusterid", "%nclusterid", "%cluster_ctaid", "%cluster_nctaid"};
  for (const std::string_view known : kNames) {
    if (name == known) return true;
  }
  return false;
}

bool is_special(std::string_view name) {
  constexpr std::array kNames = {"%laneid",
                                 "%warpid",
                                 "%nwarpid",
                                 "%smid",
                                 "%nsmid",
                                 "%gridid",
                                 "%lanemask_eq",
                                 "%lanemask_le",
                                 "%lanemask_lt",
                                 "%lanemask_ge",
                                 "%lanemask_gt",
                                 "%clock",
                                 "%clock_hi",
                                 "%clock64",
                                 "%globaltimer",
                                 "%globaltimer_lo",
                                 "%globaltimer_hi",
                                 "%cluster_ctarank",
                                 "%cluster_nctarank",
                                 "%is_explicit_cluster",
                                 "%total_smem_size",
                                 "%aggr_smem_size",
                                 "%dynamic_smem_size",
                                 "%current_graph_exec",
                                 "%reserved_smem_offset_begin",
                                 "%reserved_smem_offset_end",
                                 "%reserved_smem_offset_cap"};
  if (is_vector_special(name)) return true;
  for (const std::string_view known : kNames) {
    if (name == known) return true;
  }
  for (const std::string_view prefix : {"%envreg", "%pm", "%reserved_smem_offset_"}) {
    std::string_view rest = name;
    if (!rest.starts_with(prefix)) continue;
    rest.remove_prefix(prefix.size());
    if (prefix == "%pm" && rest.ends_with("_64")) rest.remove_suffix(3);
    if (!rest.empty() && all_digits(rest)) return true;
  }
  return false;
}

}  // namespace

bool Parser::at_number() const {
  return token_.kind == TokenKind::kInteger || token_.kind == TokenKind::kFloat || token_.is("WARP_SZ") ||
         token_.is('-') || token_.is('+') || token_.is('~') || token_.is('(');
}

// One operand, or two joined by '|'.
Operand Parser::parse_operand() {
  const DepthGuard guard(depth_);
  if (depth_ > kMaxDepth) fail("operands that nest less deeply");
  const size_t begin = token_.offset;
  Operand operand = parse_primary();
  if (!accept('|')) return operand;
  Operand pair;
  pair.kind = OperandKind::kPair;
  pair.elements.push_back(std::move(operand));
  pair.elements.push_back(parse_primary());
  if (token_.is('|')) fail("no more than two destinations");
  for (const Operand& element : pair.elements) {
    if (element.kind != OperandKind::kRegister && element.kind != OperandKind::kSink) fail("two registers around '|'");
  }
  pair.name = source_text(begin, previous_end_);
  return pair;
}

Operand Parser::parse_primary() {
  if (token_.is('{')) return parse_list('}', OperandKind::kVector);
  if (token_.is('[')) return parse_address();
  if (at_number()) return parse_constant();
  if (!token_.is('!')) return parse_named();
  if (peek().kind != TokenKind::kIdentifier || peek().text == "WARP_SZ") return parse_constant();
  advance();
  Operand operand = parse_named();
  if (operand.kind != OperandKind::kRegister) fail("a predicate before this and after '!'");
  operand.negated = true;
  return operand;
}

Operand Parser::parse_constant() {
  const size_t begin = token_.offset;
  const Constant constant = parse_shift();
  Operand operand;
  operand.kind = OperandKind::kImmediate;
  operand.float_bits = constant.float_bits;
  operand.bits = constant.bits;
  operand.name = source_text(begin, previous_end_);
  return operand;
}

// A register, special register, variable, function or label.
Operand Parser::parse_named() {
  const uint32_t line = token_.line;
  const std::string_view name = expect_name("an operand");
  Operand operand;
  operand.name = name;
  if (name == "_") return operand;
  const bool component = token_.kind == TokenKind::kDotted;
  const bool bound = bind(operand, name, scope_);
  if (!bound && name[0] == '%') {
    if (!is_special(name)) reject(line, "unknown register " + operand.name);
    operand.kind = OperandKind::kSpecial;
    if (component) {
      if (!is_vector_special(name) || !(token_.is(".x") || token_.is(".y") || token_.is(".z") || token_.is(".w"))) {
        fail("',' or ';' after " + operand.name);
      }
      operand.name += token_.text;
      advance();
    }
    return operand;
  }
  if (component)
    reject(line, "parts of a register (" + operand.name + std::string(token_.text) + ") are not supported");
  if (!bound) {  // a label perhaps, which may stand further down: see finish_body
    operand.kind = OperandKind::kSymbol;
    operand.index = scope_;
  }
  if (operand.kind == OperandKind::kSymbol && (token_.is('+') || token_.is('-'))) operand.offset = parse_offset();
  return operand;
}

// [base + offset], [base, {x, y}, …]
Operand Parser::parse_address() {
  const size_t begin = token_.offset;
  expect('[', "an operand");
  Operand address;
  address.kind = OperandKind::kAddress;
  Operand base = at_number() ? parse_constant() : parse_named();
  if (base.kind == OperandKind::kSink || base.float_bits != 0) fail("an address after '['");
  if (base.kind == OperandKind::kSymbol) std::swap(address.offset, base.offset);
  if (token_.is('+') || token_.is('-')) address.offset = parse_offset();
  address.elements.push_back(std::move(base));
  while (accept(',')) address.elements.push_back(parse_operand());
  expect(']', "an address");
  address.name = source_text(begin, previous_end_);
  return address;
}

// {a, b, c} or (a, b, c), which may be empty.
Operand Parser::parse_list(char close, OperandKind kind) {
  const size_t begin = token_.offset;
  Operand list;
  list.kind = kind;
  advance();
  while (!token_.is(close)) {
    if (!list.elements.empty()) expect(',', "an element");
    list.elements.push_back(parse_operand());
  }
  advance();
  list.name = source_text(begin, previous_end_);
  return list;
}

int64_t Parser::parse_offset() {
  uint64_t offset = 0;
  while (token_.is('+') || token_.is('-')) {
    const bool minus = token_.is('-');
    advance();
    const uint64_t term = integer(parse_product());
    offset += minus ? 0 - term : term;
  }
  return static_cast<int64_t>(offset);
}

uint64_t Parser::integer(const Constant& constant) const {
  if (constant.float_bits != 0) fail("an integer before this");
  return constant.bits;
}

Parser::Constant Parser::parse_shift() {
  Constant left = parse_sum();
  while (token_.is("<<") || token_.is(">>")) {
    const bool up = token_.is("<<");
    advance();
    const uint64_t by = integer(parse_sum());
    const uint64_t value = integer(left);
    left.bits = by > 63 ? 0 : up ? value << by : value >> by;
  }
  return left;
}

Parser::Constant Parser::parse_sum() {
  Constant left = parse_product();
  while (token_.is('+') || token_.is('-')) {
    const bool minus = token_.is('-');
    advance();
    const uint64_t right = integer(parse_product());
    left.bits = minus ? integer(left) - right : integer(left) + right;
  }
  return left;
}

Parser::Constant Parser::parse_product() {
  Constant left = parse_unary();
  while (token_.is('*') || token_.is('/') || token_.is('%')) {
    const char sign = token_.text[0];
    advance();
    const uint64_t right = integer(parse_unary());
    const uint64_t value = integer(left);
    if (sign == '*') {
      left.bits = value * right;
      continue;
    }
    if (right == 0) fail("a divisor other than 0 before this");
    const auto a = static_cast<int64_t>(value);
    const auto b = static_cast<int64_t>(right);
    if (b == -1) {
      left.bits = sign == '/' ? 0 - value : 0;
    } else {
      left.bits = static_cast<uint64_t>(sign == '/' ? a / b : a % b);
    }
  }
  return left;
}

Parser::Constant Parser::parse_unary() {
  const DepthGuard guard(depth_);
  if (depth_ > kMaxDepth) fail("an expression that nests less deeply");
  Constant value;
  if (accept('-')) {
    value = parse_unary();
    if (value.float_bits != 0) {
      value.bits ^= uint64_t{1} << (value.float_bits - 1);
    } else {
      value.bits = 0 - value.bits;
    }
  } else if (accept('+')) {
    value = parse_unary();
  } else if (accept('~')) {
    value.bits = ~integer(parse_unary());
  } else if (accept('!')) {
    value.bits = integer(parse_unary()) == 0;
  } else if (accept('(')) {
    value = parse_shift();
    expect(')', "an expression");
  } else if (token_.kind == TokenKind::kInteger || token_.kind == TokenKind::kFloat) {
    value.bits = token_.bits;
    value.float_bits = token_.float_bits;
    advance();
  } else if (accept("WARP_SZ")) {
    value.bits = kWarpSize;
  } else {
    fail("a number");
  }
  return value;
}

}  // namespace vgpu::ptx
