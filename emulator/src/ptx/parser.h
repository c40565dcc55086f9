// PTX text to Module.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "ptx/ast.h"

namespace vgpu::ptx {

// "file.ptx:12: want ';' after mov.u32, got '}'"
class SyntaxError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// `name` stands for the text in messages.
Module parse(std::string_view text, const std::string& name);

}  // namespace vgpu::ptx
