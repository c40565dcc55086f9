// The recursive parser behind parse(): private to the files of this folder.
//
// parser.cpp reads the module and its functions' heads, declarations.cpp what has storage, body.cpp statements and
// scopes, operands.cpp operands and constant expressions.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ptx/ast.h"
#include "ptx/lexer.h"
#include "ptx/parser.h"

namespace vgpu::ptx {

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), name_(name), lexer_(text) { advance(); }

  Module parse_module();

 private:
  // What a name stands for. Names are views of the text, which outlives the parser.
  struct Symbol {
    enum class Kind : uint8_t { kRegister, kLabel, kTable } kind = Kind::kTable;
    SymbolTable table = SymbolTable::kNone;
    uint32_t index = kNoIndex;
  };
  struct RegisterRange {
    uint64_t count = 0;
    Type type;
  };
  struct Scope {
    uint32_t parent = kNoIndex;
    std::unordered_map<std::string_view, Symbol> symbols;
    std::unordered_map<std::string_view, RegisterRange> ranges;
  };
  struct Loc {
    uint32_t file = 0, line = 0, column = 0;
    auto operator<=>(const Loc&) const = default;
  };
  struct LocHash {
    size_t operator()(const Loc& loc) const { return (size_t{loc.file} << 44) ^ (size_t{loc.line} << 16) ^ loc.column; }
  };
  // An initialiser's value: bits of an integer or float, or an address.
  struct Initial {
    bool is_address = false;
    uint8_t float_bits = 0;
    uint64_t bits = 0;
    Variable::Address address;
  };

  // Tokens.
  void advance();
  const Token& peek();
  bool accept(char c);
  bool accept(std::string_view s);
  void expect(char c, std::string_view after);
  std::string_view expect_name(std::string_view what);
  uint64_t expect_unsigned(std::string_view what, uint64_t limit);
  [[noreturn]] void fail(std::string_view wanted) const;  // "want …, got …" at the current token
  [[noreturn]] void reject(uint32_t line, const std::string& message) const;
  std::string describe(const Token& token) const;
  std::string source_text(size_t begin, size_t end) const;
  void skip_parentheses();

  // parser.cpp
  void parse_header();
  void parse_file();
  void parse_section();
  void parse_function(bool is_entry, bool is_extern);
  bool parse_function_directive(Function& function);
  void parse_extents(uint32_t (&extents)[3]);
  void finish_module();

  // declarations.cpp
  Type parse_type();
  std::vector<Parameter> parse_parameters();
  Parameter parse_parameter();
  void parse_variables(Space space, bool is_extern, bool in_body);
  void parse_variable(Variable variable, bool in_body, uint32_t lanes);
  std::vector<uint64_t> parse_dimensions();
  void parse_initial(Variable& variable, std::vector<uint64_t>& dimensions);
  void parse_initial_list(Variable& variable, const std::vector<uint64_t>& dimensions, size_t depth, uint64_t begin,
                          uint64_t& end);
  Initial parse_initial_value();
  void store_initial(Variable& variable, uint64_t element, const Initial& value);
  void add_module_variable(Variable variable, std::string_view name, uint32_t line);
  void parse_registers();

  // body.cpp
  void parse_body();
  void parse_body_directive();
  void parse_loc();
  void parse_label();
  void parse_instruction();
  void parse_call(Statement& statement);
  std::vector<std::string_view> parse_label_list();
  void open_scope();
  void declare(std::string_view name, Symbol symbol, uint32_t line);
  const Symbol* find_symbol(std::string_view name, uint32_t scope);
  const Symbol* find_in_range(std::string_view name, Scope& scope);
  bool bind(Operand& operand, std::string_view name, uint32_t scope);
  void bind_late(Operand& operand, const Statement& statement);
  void finish_body();

  // operands.cpp
  Operand parse_operand();
  Operand parse_primary();
  Operand parse_named();
  Operand parse_address();
  Operand parse_list(char close, OperandKind kind);
  Operand parse_constant();
  struct Constant {
    uint8_t float_bits = 0;
    uint64_t bits = 0;
  };
  Constant parse_shift();
  Constant parse_sum();
  Constant parse_product();
  Constant parse_unary();
  int64_t parse_offset();  // of `+ 4 - 8`, as far as it goes
  uint64_t integer(const Constant& constant) const;
  bool at_number() const;

  Function& function() { return module_.functions[function_]; }

  std::string_view text_;
  const std::string& name_;
  Lexer lexer_;
  Token token_;
  Token peeked_;
  bool has_peeked_ = false;
  size_t previous_end_ = 0;  // of the token before token_
  uint32_t depth_ = 0;       // of nested operands and expressions

  Module module_;
  std::unordered_map<std::string_view, Symbol> globals_;
  uint32_t highest_file_ = 0;

  // Of the function at hand.
  uint32_t function_ = 0;
  std::vector<Scope> scopes_;
  uint32_t scope_ = 0;
  SourceLine where_;
  std::unordered_map<Loc, Loc, LocHash> inlined_at_;
  std::unordered_map<std::string, uint32_t> name_uses_;
  std::vector<std::pair<uint32_t, std::vector<std::string_view>>> branch_targets_;  // scope and labels, per table
  std::vector<uint32_t> branch_lines_;
};

// Keeps operands that nest without end from eating the stack.
class DepthGuard {
 public:
  explicit DepthGuard(uint32_t& depth) : depth_(depth) { ++depth_; }
  ~DepthGuard() { --depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  uint32_t& depth_;
};

constexpr uint32_t kMaxDepth = 64;
constexpr uint64_t kMaxFiles = 1 << 16;
constexpr uint64_t kMaxBytes = uint64_t{1} << 48;
constexpr uint64_t kMaxInitialBytes = uint64_t{1} << 28;

}  // namespace vgpu::ptx
