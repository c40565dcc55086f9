#include "ptx/lexer.h"

#include <bit>
#include <charconv>

namespace vgpu::ptx {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_follow(char c) { return is_letter(c) || is_digit(c) || c == '_' || c == '$'; }
bool is_first(char c) { return is_letter(c) || c == '_' || c == '$' || c == '%'; }

int digit_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 16;
}

}  // namespace

bool Lexer::skip_comment() {
  if (at(offset_) != '/') return false;
  if (at(offset_ + 1) == '/') {
    while (offset_ < text_.size() && text_[offset_] != '\n') ++offset_;
    return true;
  }
  if (at(offset_ + 1) != '*') return false;
  for (offset_ += 2; offset_ < text_.size(); ++offset_) {
    if (text_[offset_] == '\n') ++line_;
    if (text_[offset_] == '*' && at(offset_ + 1) == '/') {
      offset_ += 2;
      return true;
    }
  }
  return true;
}

void Lexer::skip_blanks() {
  while (offset_ < text_.size()) {
    const char c = text_[offset_];
    if (c == '\n') {
      ++line_;
      at_line_start_ = true;
      ++offset_;
    } else if (c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v') {
      ++offset_;
    } else if (at_line_start_ && (c == '#' || (c == '@' && at(offset_ + 1) == '@'))) {
      // Lines of the preprocessor, and the debug sections of old compilers.
      while (offset_ < text_.size() && text_[offset_] != '\n') ++offset_;
    } else if (!skip_comment()) {
      // Tools that cut the text out of a binary leave the padding at its end.
      if (c == '\0' && text_.find_first_not_of('\0', offset_) == std::string_view::npos) offset_ = text_.size();
      return;
    }
  }
}

bool Lexer::skip_braces() {
  for (int depth = 1; offset_ < text_.size();) {
    if (skip_comment()) continue;
    const char c = text_[offset_++];
    if (c == '\n') ++line_;
    if (c == '{') ++depth;
    if (c == '}' && --depth == 0) return true;
  }
  return false;
}

void Lexer::finish(Token& token, TokenKind kind, size_t end) {
  token.kind = kind;
  token.text = text_.substr(token.offset, end - token.offset);
  offset_ = end;
}

Token Lexer::next() {
  skip_blanks();
  at_line_start_ = false;
  Token token;
  token.line = line_;
  token.offset = offset_;
  if (offset_ >= text_.size()) {
    token.offset = text_.size();
    return token;
  }
  const char c = text_[offset_];
  size_t end = offset_ + 1;
  if (is_digit(c)) {
    read_number(token);
  } else if (is_first(c) && (c != '%' || is_follow(at(end)))) {
    while (is_follow(at(end))) ++end;
    finish(token, TokenKind::kIdentifier, end);
  } else if (c == '.' && is_follow(at(end))) {
    while (is_follow(at(end)) || (at(end) == ':' && at(end + 1) == ':' && is_follow(at(end + 2)))) {
      end += at(end) == ':' ? 2 : 1;
    }
    finish(token, TokenKind::kDotted, end);
  } else if (c == '"') {
    while (end < text_.size() && text_[end] != '"' && text_[end] != '\n') end += text_[end] == '\\' ? 2 : 1;
    if (at(end) == '"') {
      finish(token, TokenKind::kString, end + 1);
      token.text = token.text.substr(1, token.text.size() - 2);
    } else {
      finish(token, TokenKind::kInvalid, end < text_.size() ? end : text_.size());
      token.problem = "a string without its closing quote";
    }
  } else if (std::string_view("{}[](),;:+-*/%!~|&^<>=@?").find(c) != std::string_view::npos) {
    if ((c == '<' || c == '>') && at(end) == c) ++end;
    finish(token, TokenKind::kPunctuation, end);
  } else {
    finish(token, TokenKind::kInvalid, end);
    token.problem = "a character that PTX does not know";
  }
  return token;
}

void Lexer::read_bit_pattern(Token& token, unsigned digits) {
  size_t end = token.offset + 2;
  for (; is_follow(at(end)); ++end) {
    token.bits = token.bits << 4 | static_cast<uint64_t>(digit_value(at(end)) & 15);
    if (digit_value(at(end)) == 16) token.problem = "a float with a digit that is not hexadecimal";
  }
  if (end != token.offset + 2 + digits) {
    token.problem = digits == 8 ? "a float 0f without its 8 digits" : "a float 0d without its 16 digits";
  }
  token.float_bits = static_cast<uint8_t>(digits * 4);
  finish(token, token.problem ? TokenKind::kInvalid : TokenKind::kFloat, end);
}

void Lexer::read_number(Token& token) {
  size_t digits = token.offset;
  uint64_t base = 10;
  if (at(digits) == '0') {
    const char mark = at(digits + 1);
    if (mark == 'f' || mark == 'F') return read_bit_pattern(token, 8);
    if (mark == 'd' || mark == 'D') return read_bit_pattern(token, 16);
    if (mark == 'x' || mark == 'X') base = 16;
    if (mark == 'b' || mark == 'B') base = 2;
    if (base != 10) digits += 2;
  }
  size_t end = digits;
  while (base == 16 ? digit_value(at(end)) < 16 : is_digit(at(end))) ++end;
  const bool point = at(end) == '.' && is_digit(at(end + 1));
  const size_t sign = at(end + 1) == '+' || at(end + 1) == '-' ? 1 : 0;
  const bool exponent = (at(end) == 'e' || at(end) == 'E') && is_digit(at(end + 1 + sign));
  if (base == 10 && (point || exponent || (at(end) == '.' && !is_follow(at(end + 1))))) {
    double value = 0;
    const auto result = std::from_chars(text_.data() + token.offset, text_.data() + text_.size(), value);
    end = static_cast<size_t>(result.ptr - text_.data());
    if (result.ec != std::errc()) token.problem = "a number too big for a double";
    token.bits = std::bit_cast<uint64_t>(value);
    token.float_bits = 64;
  } else {
    if (base == 10 && end - digits > 1 && at(digits) == '0') base = 8;
    if (end == digits) token.problem = "a number without digits";
    for (size_t i = digits; i < end; ++i) {
      const auto digit = static_cast<uint64_t>(digit_value(at(i)));
      if (digit >= base) token.problem = "a number with a digit beyond its base";
      if (token.bits > (~uint64_t{0} - digit) / base) token.problem = "a number of more than 64 bits";
      token.bits = token.bits * base + digit;
    }
    if (at(end) == 'U') ++end;
  }
  if (is_follow(at(end))) {
    while (is_follow(at(end))) ++end;
    token.problem = "a number that runs into a word";
  }
  finish(token, token.problem ? TokenKind::kInvalid : token.float_bits ? TokenKind::kFloat : TokenKind::kInteger, end);
}

}  // namespace vgpu::ptx
