// printf and assert of kernels.
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

#include "core/access.h"
#include "exec/print.h"

namespace vgpu {
namespace {

constexpr size_t kLongestString = 1 << 16;

template <class T>
T read(Warp& warp, const Instruction& i, uint64_t address, uint32_t lane) {
  Access access;
  access.bytes = sizeof(T);
  access.lanes = 1u << lane;
  access.count = false;
  access.address[lane] = address;
  resolve(warp, i, access);
  T value;
  std::memcpy(&value, access.host[lane], sizeof value);
  return value;
}

std::string read_string(Warp& warp, const Instruction& i, uint64_t address, uint32_t lane) {
  if (address == 0) return "(null)";
  std::string text;
  while (text.size() < kLongestString) {
    const char c = read<char>(warp, i, address + text.size(), lane);
    if (c == 0) return text;
    text += c;
  }
  fault_at(warp, i, FaultKind::kBadArgument, "a string has no end", static_cast<int>(lane), address);
}

// The arguments lie one after the other, each aligned to its size.
class Arguments {
 public:
  Arguments(Warp& warp, const Instruction& i, uint64_t address, uint32_t lane)
      : warp_(warp), i_(i), address_(address), lane_(lane) {}

  template <class T>
  T next() {
    offset_ = (offset_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    const T value = read<T>(warp_, i_, address_ + offset_, lane_);
    offset_ += sizeof(T);
    return value;
  }
  std::string string() { return read_string(warp_, i_, next<uint64_t>(), lane_); }

 private:
  Warp& warp_;
  const Instruction& i_;
  uint64_t address_, offset_ = 0;
  uint32_t lane_;
};

template <class T>
std::string format_one(const std::string& specification, T value) {
  const int bytes = std::snprintf(nullptr, 0, specification.c_str(), value);
  if (bytes < 0) return specification;
  std::string text(static_cast<size_t>(bytes) + 1, '\0');
  std::snprintf(text.data(), text.size(), specification.c_str(), value);
  text.pop_back();
  return text;
}

// Digits, or the value of an argument for "*".
std::string take_number(const std::string& format, size_t& k, Arguments& arguments) {
  if (k < format.size() && format[k] == '*') {
    ++k;
    return std::to_string(arguments.next<int32_t>());
  }
  std::string digits;
  while (k < format.size() && format[k] >= '0' && format[k] <= '9') digits += format[k++];
  return digits;
}

// The conversion that begins after the '%' at format[k − 1]. What is none is printed as it stands, as CUDA does.
std::string convert(const std::string& format, size_t& k, Arguments& arguments) {
  const size_t begin = k - 1;
  std::string specification = "%";
  while (k < format.size() && std::string_view("-+ #0").find(format[k]) != std::string_view::npos) {
    specification += format[k++];
  }
  specification += take_number(format, k, arguments);
  if (k < format.size() && format[k] == '.') {
    specification += format[k++];
    specification += take_number(format, k, arguments);
  }
  std::string length;
  while (k < format.size() && std::string_view("hlLqjzt").find(format[k]) != std::string_view::npos)
    length += format[k++];
  if (k >= format.size()) return format.substr(begin);

  const char conversion = format[k++];
  const bool is_long = length.find_first_of("lqjzt") != std::string::npos;
  switch (conversion) {
    case '%':
      return "%";
    case 'd':
    case 'i':
      if (is_long) return format_one(specification + "lld", static_cast<long long>(arguments.next<int64_t>()));
      return format_one(specification + (length.starts_with('h') ? length : "") + 'd', arguments.next<int32_t>());
    case 'u':
    case 'x':
    case 'X':
    case 'o':
      if (is_long) {
        return format_one(specification + "ll" + conversion,
                          static_cast<unsigned long long>(arguments.next<uint64_t>()));
      }
      return format_one(specification + (length.starts_with('h') ? length : "") + conversion,
                        arguments.next<uint32_t>());
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
      return format_one(specification + conversion, arguments.next<double>());
    case 'c':
      return format_one(specification + 'c', arguments.next<int32_t>());
    case 'p':
      return format_one(specification + 'p', reinterpret_cast<void*>(arguments.next<uint64_t>()));
    case 's':
      return format_one(specification + 's', arguments.string().c_str());
    default:
      return format.substr(begin, k - begin);
  }
}

std::mutex print_mutex;

}  // namespace

void print_formatted(Warp& warp, const Instruction& i, uint64_t format_address, uint64_t arguments_address,
                     uint32_t lane) {
  const std::string format = read_string(warp, i, format_address, lane);
  Arguments arguments(warp, i, arguments_address, lane);
  std::string text;
  for (size_t k = 0; k < format.size();) {
    const char c = format[k++];
    if (c == '%') {
      text += convert(format, k, arguments);
    } else {
      text += c;
    }
  }
  std::lock_guard lock(print_mutex);
  if (warp.launch->gpu->print) {
    warp.launch->gpu->print(text);
  } else {
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
}

void fail_assertion(Warp& warp, const Instruction& i, uint64_t message, uint64_t file, uint32_t line, uint64_t function,
                    uint32_t lane) {
  fault(warp, i, FaultKind::kTrap,
        "assertion " + read_string(warp, i, message, lane) + " failed: " + read_string(warp, i, file, lane) + ":" +
            std::to_string(line),
        static_cast<int>(lane), "in " + read_string(warp, i, function, lane));
}

}  // namespace vgpu
