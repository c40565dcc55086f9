#include "ptx/parser.h"

#include <algorithm>

#include "ptx/parser_state.h"

namespace vgpu::ptx {

Module parse(std::string_view text, const std::string& name) { return Parser(text, name).parse_module(); }

void Parser::advance() {
  previous_end_ = token_.offset + token_.text.size();
  if (has_peeked_) {
    token_ = peeked_;
    has_peeked_ = false;
  } else {
    token_ = lexer_.next();
  }
}

const Token& Parser::peek() {
  if (!has_peeked_) peeked_ = lexer_.next();
  has_peeked_ = true;
  return peeked_;
}

bool Parser::accept(char c) {
  if (!token_.is(c)) return false;
  advance();
  return true;
}

bool Parser::accept(std::string_view s) {
  if (!token_.is(s)) return false;
  advance();
  return true;
}

void Parser::expect(char c, std::string_view after) {
  if (!accept(c)) fail(std::string("'") + c + "' after " + std::string(after));
}

std::string_view Parser::expect_name(std::string_view what) {
  if (token_.kind != TokenKind::kIdentifier) fail(what);
  const std::string_view name = token_.text;
  advance();
  return name;
}

uint64_t Parser::expect_unsigned(std::string_view what, uint64_t limit) {
  if (token_.kind != TokenKind::kInteger) fail(what);
  if (token_.bits > limit) fail(std::string(what) + " of at most " + std::to_string(limit));
  const uint64_t value = token_.bits;
  advance();
  return value;
}

std::string Parser::describe(const Token& token) const {
  if (token.kind == TokenKind::kEnd) return "the end of the text";
  std::string shown(token.text.substr(0, 60));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) c = '?';
  }
  if (token.kind == TokenKind::kString) return '"' + shown + '"';
  if (token.problem != nullptr) return std::string(token.problem) + " ('" + shown + "')";
  return "'" + shown + "'";
}

void Parser::fail(std::string_view wanted) const {
  reject(token_.line, "want " + std::string(wanted) + ", got " + describe(token_));
}

void Parser::reject(uint32_t line, const std::string& message) const {
  throw SyntaxError(name_ + ":" + std::to_string(line) + ": " + message);
}

// The text between two offsets on one line, without its comments.
std::string Parser::source_text(size_t begin, size_t end) const {
  std::string out;
  bool blank = false;
  for (size_t i = begin; i < end; ++i) {
    const char c = text_[i];
    if (c == '/' && i + 1 < end && (text_[i + 1] == '/' || text_[i + 1] == '*')) {
      const bool line = text_[i + 1] == '/';
      const size_t stop = line ? text_.find('\n', i) : text_.find("*/", i + 2);
      i = stop == std::string_view::npos ? end : stop + (line ? 0 : 1);
      blank = true;
    } else if (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v') {
      blank = true;
    } else {
      if (blank && !out.empty()) out += ' ';
      blank = false;
      out += c;
    }
  }
  return out;
}

void Parser::skip_parentheses() {
  expect('(', "an attribute");
  for (int depth = 1; depth > 0; advance()) {
    if (token_.kind == TokenKind::kEnd) fail("')'");
    depth += token_.is('(') ? 1 : token_.is(')') ? -1 : 0;
  }
}

Module Parser::parse_module() {
  module_.files.emplace_back();
  parse_header();
  while (token_.kind != TokenKind::kEnd) {
    bool is_extern = false;
    bool qualified = false;
    while (token_.is(".visible") || token_.is(".weak") || token_.is(".common") || token_.is(".extern")) {
      is_extern |= token_.is(".extern");
      qualified = true;
      advance();
    }
    if (accept(".entry")) {
      parse_function(true, is_extern);
    } else if (accept(".func")) {
      parse_function(false, is_extern);
    } else if (accept(".global")) {
      parse_variables(Space::kGlobal, is_extern, false);
    } else if (accept(".const")) {
      parse_variables(Space::kConst, is_extern, false);
    } else if (accept(".shared") || accept(".shared::cta")) {
      parse_variables(Space::kShared, is_extern, false);
    } else if (qualified) {
      fail("a function or variable after its linkage");
    } else if (accept(".file")) {
      parse_file();
    } else if (accept(".section")) {
      parse_section();
    } else if (accept(".loc")) {
      parse_loc();
    } else if (accept(".pragma")) {
      while (!token_.is(';')) {
        if (token_.kind == TokenKind::kEnd) fail("';' after .pragma");
        advance();
      }
      advance();
    } else if (token_.is(".alias") || token_.is(".tex") || token_.is(".local")) {
      reject(token_.line, std::string(token_.text) + " at module scope is not supported");
    } else if (!accept(';')) {
      fail("a function, variable or directive");
    }
  }
  finish_module();
  return std::move(module_);
}

void Parser::parse_header() {
  if (!accept(".version")) fail(".version first");
  if (token_.kind != TokenKind::kFloat || token_.text.size() != 3 || token_.text[1] != '.') {
    fail("a version of at most 9.9, such as 9.0");
  }
  module_.version = token_.text;
  advance();
  if (!accept(".target")) fail(".target after .version");
  module_.target = expect_name("an architecture such as sm_90a");
  while (accept(',')) {
    const uint32_t line = token_.line;
    const std::string_view option = expect_name("an option of .target");
    if (option != "debug" && option != "texmode_unified") {
      reject(line, ".target option " + std::string(option) + " is not supported");
    }
  }
  if (accept(".address_size")) {
    const uint32_t line = token_.line;
    if (expect_unsigned("64", ~0u) != 64) reject(line, ".address_size other than 64 is not supported");
  }
}

// .file 1 "path", 1700000000, 4096
void Parser::parse_file() {
  const uint64_t index = expect_unsigned("a file number", kMaxFiles);
  if (token_.kind != TokenKind::kString) fail("a path in quotes");
  if (index >= module_.files.size()) module_.files.resize(index + 1);
  if (index > 0) module_.files[index] = token_.text;
  advance();
  for (int i = 0; i < 2 && accept(','); ++i) expect_unsigned("a number", ~uint64_t{0});
}

void Parser::parse_section() {
  if (token_.kind != TokenKind::kDotted && token_.kind != TokenKind::kIdentifier && token_.kind != TokenKind::kString) {
    fail("a section's name");
  }
  advance();
  const uint32_t line = token_.line;
  if (!token_.is('{')) fail("'{' after .section");
  if (!lexer_.skip_braces()) reject(line, "want '}' that closes .section, got the end of the text");
  advance();
}

void Parser::parse_extents(uint32_t (&extents)[3]) {
  for (uint32_t& extent : extents) extent = 1;
  for (int i = 0; i < 3 && (i == 0 || accept(',')); ++i) {
    extents[i] = static_cast<uint32_t>(expect_unsigned("an extent", ~0u));
  }
}

// A directive between a function's parameters and its body.
bool Parser::parse_function_directive(Function& function) {
  const auto number = [this](std::string_view what) { return static_cast<uint32_t>(expect_unsigned(what, ~0u)); };
  if (accept(".maxntid")) {
    parse_extents(function.max_threads);
  } else if (accept(".reqntid")) {
    parse_extents(function.required_threads);
  } else if (accept(".reqnctapercluster")) {
    parse_extents(function.required_cluster);
  } else if (accept(".explicitcluster")) {
    function.explicit_cluster = true;
  } else if (accept(".blocksareclusters")) {
    function.blocks_are_clusters = true;
  } else if (accept(".maxclusterrank")) {
    function.max_cluster_rank = number("a cluster size");
  } else if (accept(".minnctapersm")) {
    function.min_blocks = number("a number of blocks");
  } else if (accept(".maxnctapersm")) {
    number("a number of blocks");
  } else if (accept(".maxnreg")) {
    function.max_registers = number("a number of registers");
  } else if (accept(".noreturn")) {
    function.no_return = true;
  } else if (accept(".abi_preserve") || accept(".abi_preserve_control")) {
    number("a number of registers");
  } else if (accept(".attribute")) {
    skip_parentheses();
  } else if (accept(".pragma")) {
    while (token_.kind == TokenKind::kString || token_.is(',')) advance();
    expect(';', ".pragma");
  } else {
    return false;
  }
  return true;
}

void Parser::parse_function(bool is_entry, bool is_extern) {
  Function parsed;
  parsed.is_entry = is_entry;
  parsed.is_declaration = true;
  if (accept(".attribute")) skip_parentheses();
  if (!is_entry && token_.is('(')) parsed.results = parse_parameters();
  const uint32_t line = token_.line;
  const std::string_view name = expect_name("a function's name");
  parsed.name = name;
  if (token_.is('(')) parsed.parameters = parse_parameters();
  while (parse_function_directive(parsed)) {
  }

  // A prototype and the body that follows it share an entry, so that calls parsed in between stay right.
  const auto [known, is_new] = globals_.try_emplace(name);
  Symbol& symbol = known->second;
  if (is_new) {
    symbol.table = SymbolTable::kFunctions;
    symbol.index = static_cast<uint32_t>(module_.functions.size());
    module_.functions.emplace_back();
  } else if (symbol.table != SymbolTable::kFunctions) {
    reject(line, std::string(name) + " is declared twice");
  }
  function_ = symbol.index;

  if (accept(';')) {
    if (is_new) function() = std::move(parsed);
    return;
  }
  if (!token_.is('{')) fail("'{' or ';' after the head of " + std::string(name));
  if (!is_new && !function().is_declaration) reject(line, std::string(name) + " is defined twice");
  if (is_extern) reject(line, std::string(name) + " is .extern and has a body");
  parsed.is_declaration = false;
  function() = std::move(parsed);
  parse_body();
}

void Parser::finish_module() {
  if (highest_file_ >= module_.files.size()) module_.files.resize(highest_file_ + 1);
}

}  // namespace vgpu::ptx
