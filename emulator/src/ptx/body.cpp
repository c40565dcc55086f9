// Bodies of functions: statements, labels, scopes and the names in them.

#include <algorithm>
#include <charconv>

#include "ptx/parser_state.h"

namespace vgpu::ptx {

void Parser::open_scope() {
  Scope scope;
  scope.parent = scopes_.empty() ? kNoIndex : scope_;
  scope_ = static_cast<uint32_t>(scopes_.size());
  scopes_.push_back(std::move(scope));
}

void Parser::declare(std::string_view name, Symbol symbol, uint32_t line) {
  if (!scopes_[scope_].symbols.try_emplace(name, symbol).second) {
    reject(line, std::string(name) + " is declared twice in one scope");
  }
}

// The register that `name` is in a range such as %r<17> of this scope; it gets its index when it is first named.
const Parser::Symbol* Parser::find_in_range(std::string_view name, Scope& scope) {
  if (scope.ranges.empty()) return nullptr;
  for (size_t digits = 1; digits <= 10 && digits < name.size(); ++digits) {
    const size_t split = name.size() - digits;
    if (name[split] < '0' || name[split] > '9') break;
    if (name[split] == '0' && digits > 1) continue;
    const auto range = scope.ranges.find(name.substr(0, split));
    if (range == scope.ranges.end()) continue;
    uint64_t number = 0;
    std::from_chars(name.data() + split, name.data() + name.size(), number);
    if (number >= range->second.count) continue;
    auto& registers = function().registers;
    const Symbol symbol{Symbol::Kind::kRegister, SymbolTable::kNone, static_cast<uint32_t>(registers.size())};
    registers.push_back({std::string(name), range->second.type});
    return &scope.symbols.try_emplace(name, symbol).first->second;
  }
  return nullptr;
}

// Innermost scope first; null when no scope of the function has it.
const Parser::Symbol* Parser::find_symbol(std::string_view name, uint32_t scope) {
  for (uint32_t at = scope; at != kNoIndex; at = scopes_[at].parent) {
    const auto found = scopes_[at].symbols.find(name);
    if (found != scopes_[at].symbols.end()) return &found->second;
    if (const Symbol* symbol = find_in_range(name, scopes_[at])) return symbol;
  }
  return nullptr;
}

// Gives the operand what `name`, a view of the text, stands for as far as the text has said it. False when it has not.
bool Parser::bind(Operand& operand, std::string_view name, uint32_t scope) {
  const Symbol* symbol = find_symbol(name, scope);
  if (symbol == nullptr) {
    const auto found = globals_.find(name);
    if (found == globals_.end()) return false;
    symbol = &found->second;
  }
  operand.index = symbol->index;
  operand.table = symbol->table;
  switch (symbol->kind) {
    case Symbol::Kind::kRegister:
      operand.kind = OperandKind::kRegister;
      break;
    case Symbol::Kind::kLabel:
      operand.kind = OperandKind::kLabel;
      break;
    case Symbol::Kind::kTable:
      operand.kind = OperandKind::kSymbol;
      if (symbol->table == SymbolTable::kParameters || symbol->table == SymbolTable::kResults) {
        operand.space = Space::kParam;
      } else if (symbol->table == SymbolTable::kVariables) {
        operand.space = function().variables[symbol->index].space;
      } else if (symbol->table == SymbolTable::kModuleVariables) {
        operand.space = module_.variables[symbol->index].space;
      }
      break;
  }
  return true;
}

void Parser::parse_body() {
  scopes_.clear();
  inlined_at_.clear();
  name_uses_.clear();
  branch_targets_.clear();
  branch_lines_.clear();
  where_ = {};
  open_scope();  // of the parameters
  const uint32_t line = token_.line;
  for (uint32_t i = 0; i < function().parameters.size(); ++i) {
    const std::string& name = function().parameters[i].name;
    if (name == "_") continue;
    if (!scopes_[scope_]
             .symbols.try_emplace(std::string_view(name), Symbol{Symbol::Kind::kTable, SymbolTable::kParameters, i})
             .second) {
      reject(line, "two parameters are named " + name);
    }
  }
  for (uint32_t i = 0; i < function().results.size(); ++i) {
    const std::string& name = function().results[i].name;
    if (name == "_") continue;
    if (!scopes_[scope_]
             .symbols.try_emplace(std::string_view(name), Symbol{Symbol::Kind::kTable, SymbolTable::kResults, i})
             .second) {
      reject(line, "two parameters are named " + name);
    }
  }
  expect('{', "a function's head");
  open_scope();
  const uint32_t outermost = scope_;
  for (;;) {
    if (accept('{')) {
      open_scope();
    } else if (token_.is('}')) {
      if (scope_ == outermost) break;
      scope_ = scopes_[scope_].parent;
      advance();
    } else if (token_.kind == TokenKind::kDotted) {
      parse_body_directive();
    } else if (token_.kind == TokenKind::kIdentifier && peek().is(':')) {
      parse_label();
    } else if (token_.is('@') || token_.kind == TokenKind::kIdentifier) {
      parse_instruction();
    } else if (!accept(';')) {
      fail("an instruction or '}'");
    }
  }
  advance();
  finish_body();
}

void Parser::parse_body_directive() {
  if (accept(".loc")) {
    parse_loc();
  } else if (accept(".reg")) {
    parse_registers();
  } else if (accept(".shared") || accept(".shared::cta")) {
    parse_variables(Space::kShared, false, true);
  } else if (accept(".local")) {
    parse_variables(Space::kLocal, false, true);
  } else if (accept(".param")) {
    parse_variables(Space::kParam, false, true);
  } else if (accept(".pragma")) {
    while (token_.kind == TokenKind::kString || token_.is(',')) advance();
    expect(';', ".pragma");
  } else if (token_.is(".global") || token_.is(".const")) {
    reject(token_.line, std::string(token_.text) + " in a function's body is not supported");
  } else {
    fail("an instruction or declaration");
  }
}

// .loc 2 350 5, function_name $L__info_string0, inlined_at 1 27 30
void Parser::parse_loc() {
  const auto read = [this] {
    Loc loc;
    loc.file = static_cast<uint32_t>(expect_unsigned("a file number", kMaxFiles));
    loc.line = static_cast<uint32_t>(expect_unsigned("a line number", ~0u));
    loc.column = static_cast<uint32_t>(expect_unsigned("a column", ~0u));
    highest_file_ = std::max(highest_file_, loc.file);
    return loc;
  };
  const Loc loc = read();
  Loc caller;
  bool inlined = false;
  while (accept(',')) {
    if (accept("function_name")) {
      expect_name("a label");
      parse_offset();
    } else if (accept("inlined_at")) {
      caller = read();
      inlined = true;
    } else {
      fail("function_name or inlined_at");
    }
  }
  where_ = {loc.file, loc.line, loc.column, 0, 0, 0};
  if (!inlined) {
    inlined_at_.erase(loc);
    return;
  }
  // The call may have been inlined itself: its own .loc, which came before, says where.
  inlined_at_[loc] = caller;
  std::vector<CallPlace> between;
  for (int depth = 0; depth < 64; ++depth) {
    const auto outer = inlined_at_.find(caller);
    if (outer == inlined_at_.end() || caller == loc) break;
    between.push_back({caller.file, caller.line});
    caller = outer->second;
  }
  if (!between.empty()) {
    auto& chains = module_.call_chains;
    const auto known = std::find(chains.begin(), chains.end(), between);
    where_.chain = static_cast<uint32_t>(known - chains.begin());
    if (known == chains.end()) chains.push_back(std::move(between));
  }
  where_.caller_file = caller.file;
  where_.caller_line = caller.line;
}

void Parser::parse_label() {
  const uint32_t line = token_.line;
  const std::string_view name = token_.text;
  advance();
  advance();
  if (accept(".branchtargets")) {
    declare(name, {Symbol::Kind::kTable, SymbolTable::kBranchTables, static_cast<uint32_t>(branch_targets_.size())},
            line);
    branch_lines_.push_back(token_.line);
    branch_targets_.emplace_back(scope_, parse_label_list());
  } else if (token_.is(".callprototype") || token_.is(".calltargets")) {
    declare(name, {Symbol::Kind::kTable, SymbolTable::kPrototype, kNoIndex}, line);
    while (!token_.is(';')) {
      if (token_.kind == TokenKind::kEnd || token_.is('{')) fail("';' after a prototype");
      advance();
    }
    advance();
  } else {
    declare(name, {Symbol::Kind::kLabel, SymbolTable::kNone, static_cast<uint32_t>(function().statements.size())},
            line);
  }
}

std::vector<std::string_view> Parser::parse_label_list() {
  std::vector<std::string_view> labels;
  do {
    labels.push_back(expect_name("a label"));
  } while (accept(','));
  expect(';', "labels");
  return labels;
}

void Parser::parse_instruction() {
  Statement statement;
  const size_t begin = token_.offset;
  if (accept('@')) {
    statement.guard_negated = accept('!');
    const uint32_t line = token_.line;
    const Operand guard = parse_named();
    if (guard.kind != OperandKind::kRegister || function().registers[guard.index].type.bits != 1) {
      reject(line, "want a predicate after '@', got " + guard.name);
    }
    statement.guard = guard.index;
  }
  statement.where = where_;
  statement.ptx_line = token_.line;
  statement.opcode = expect_name("an instruction");
  if (statement.opcode[0] == '%' || statement.opcode[0] == '$' || statement.opcode[0] == '_') {
    reject(statement.ptx_line, "want an instruction, got '" + statement.opcode + "'");
  }
  for (; token_.kind == TokenKind::kDotted; advance()) statement.modifiers.emplace_back(token_.text.substr(1));

  if (statement.opcode == "call") {
    parse_call(statement);
  } else if (statement.opcode == "bra") {
    // Only a label will do, whatever else has its name. Its scope stands in for its index until finish_body.
    Operand target;
    target.kind = OperandKind::kLabel;
    target.name = expect_name("a label after bra");
    target.index = scope_;
    statement.operands.push_back(std::move(target));
  } else if (!token_.is(';')) {
    do {
      statement.operands.push_back(parse_operand());
    } while (accept(','));
  }
  if (!token_.is(';')) {
    std::string whole = statement.opcode;
    for (const std::string& modifier : statement.modifiers) whole += "." + modifier;
    fail("';' after " + whole);
  }
  advance();
  statement.text = source_text(begin, previous_end_);
  function().statements.push_back(std::move(statement));
}

// call.uni (results), callee, (arguments), prototype;
void Parser::parse_call(Statement& statement) {
  Operand results, arguments;
  results.kind = arguments.kind = OperandKind::kVector;
  results.name = arguments.name = "()";
  if (token_.is('(')) {
    results = parse_list(')', OperandKind::kVector);
    expect(',', "the results of a call");
  }
  Operand callee = parse_named();
  if (callee.kind != OperandKind::kRegister && callee.kind != OperandKind::kSymbol) fail("a function before this");
  statement.operands.push_back(std::move(results));
  statement.operands.push_back(std::move(callee));
  bool more = accept(',');
  if (more && token_.is('(')) {
    arguments = parse_list(')', OperandKind::kVector);
    more = accept(',');
  }
  statement.operands.push_back(std::move(arguments));
  if (more) statement.operands.push_back(parse_named());
}

// Names that the text used before it said what they are: labels and tables further down.
void Parser::bind_late(Operand& operand, const Statement& statement) {
  for (Operand& element : operand.elements) bind_late(element, statement);
  if (operand.kind == OperandKind::kLabel && statement.opcode == "bra") {
    const uint32_t scope = operand.index;
    for (uint32_t at = scope; at != kNoIndex; at = scopes_[at].parent) {
      const auto found = scopes_[at].symbols.find(operand.name);
      if (found == scopes_[at].symbols.end() || found->second.kind != Symbol::Kind::kLabel) continue;
      operand.index = found->second.index;
      return;
    }
    reject(statement.ptx_line, "unknown label " + operand.name);
  }
  if (operand.kind != OperandKind::kSymbol || operand.table != SymbolTable::kNone) return;
  if (!bind(operand, operand.name, operand.index)) {
    reject(statement.ptx_line, "unknown name " + operand.name + " in " + statement.text);
  }
  if (operand.kind != OperandKind::kSymbol && operand.kind != OperandKind::kLabel) {
    reject(statement.ptx_line, operand.name + " is used before it is declared in " + statement.text);
  }
  if (operand.kind == OperandKind::kLabel && operand.offset != 0) {
    reject(statement.ptx_line, "a label cannot have an offset in " + statement.text);
  }
}

void Parser::finish_body() {
  for (Statement& statement : function().statements) {
    for (Operand& operand : statement.operands) bind_late(operand, statement);
  }
  for (size_t i = 0; i < branch_targets_.size(); ++i) {
    auto& table = function().branch_tables.emplace_back();
    for (const std::string_view label : branch_targets_[i].second) {
      const Symbol* symbol = find_symbol(label, branch_targets_[i].first);
      if (symbol == nullptr || symbol->kind != Symbol::Kind::kLabel) {
        reject(branch_lines_[i], "unknown label " + std::string(label));
      }
      table.push_back(symbol->index);
    }
  }
}

}  // namespace vgpu::ptx
