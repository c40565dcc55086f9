// Cuts PTX text into tokens, one at a time.
#pragma once

#include <cstdint>
#include <string_view>

namespace vgpu::ptx {

enum class TokenKind : uint8_t {
  kEnd,
  kIdentifier,   // add, %r1, $L__BB0_1, _
  kDotted,       // .reg, .shared::cta, .m16n8k16: a directive or modifier; the text has the dot
  kInteger,      // 12, 0x1F, 017, 0b11, each with an optional U: `bits`
  kFloat,        // 0f3F800000, 0d3FF0000000000000, 1.5, 1e-3: `bits` and `float_bits`
  kString,       // "…"; the text lacks the quotes
  kPunctuation,  // one character, or << or >>
  kInvalid,      // what is none of these; `problem` says why
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  uint8_t float_bits = 0;  // 32 for 0f…, 64 for the other floats
  uint32_t line = 1;
  size_t offset = 0;  // of the first character in the text
  uint64_t bits = 0;
  std::string_view text;
  const char* problem = nullptr;

  bool is(char c) const { return kind == TokenKind::kPunctuation && text.size() == 1 && text[0] == c; }
  bool is(std::string_view s) const {
    return (kind == TokenKind::kIdentifier || kind == TokenKind::kDotted || kind == TokenKind::kPunctuation) &&
           text == s;
  }
};

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  Token next();
  // Goes past the brace that closes the one already read, whatever stands between them. False when there is none.
  bool skip_braces();

 private:
  char at(size_t offset) const { return offset < text_.size() ? text_[offset] : '\0'; }
  void skip_blanks();
  bool skip_comment();
  void read_number(Token& token);
  void read_bit_pattern(Token& token, unsigned digits);
  void finish(Token& token, TokenKind kind, size_t end);

  std::string_view text_;
  size_t offset_ = 0;
  uint32_t line_ = 1;
  bool at_line_start_ = true;
};

}  // namespace vgpu::ptx
