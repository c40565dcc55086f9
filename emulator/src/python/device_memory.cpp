#include "python/device_memory.h"

#include <algorithm>

namespace vgpu::python {

Exposed::Exposed(Memory& memory, std::vector<Range> ranges) : memory_(memory) {
  std::erase_if(ranges, [&](const Range& range) {
    if (range.begin == range.end) return true;
    const Allocation* holder = memory.find(range.begin);
    return holder != nullptr && !holder->freed && range.end <= holder->base + holder->bytes;
  });
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (Range& range : ranges) {
    if (merged.empty() || range.begin >= merged.back().end) {
      merged.push_back(std::move(range));
      continue;
    }
    Range& last = merged.back();
    last.end = std::max(last.end, range.end);
    last.writable = last.writable || range.writable;
    last.label += " and " + range.label;
  }
  for (const Range& range : merged) {
    memory.add(reinterpret_cast<void*>(range.begin), range.end - range.begin, range.label);
    added_.push_back(range.begin);
    if (!range.writable) memory.find(range.begin)->read_only = true;
  }
}

Exposed::~Exposed() {
  for (uint64_t begin : added_) memory_.remove(reinterpret_cast<void*>(begin));
}

}  // namespace vgpu::python
