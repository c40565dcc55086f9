#include "core/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "check/global_shadow.h"

namespace vgpu {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kRedZone = 256;
constexpr size_t kFreedToKeep = 256;  // allocations, before their addresses may be used again

size_t words(uint64_t bytes) { return (bytes + 63) / 64; }

std::unique_ptr<uint64_t[]> none_written(uint64_t bytes) { return std::make_unique<uint64_t[]>(words(bytes)); }

void set_bits(uint64_t* bits, uint64_t begin, uint64_t end) {
  while (begin < end && begin % 64 != 0) bits[begin / 64] |= 1ull << (begin % 64), ++begin;
  for (; begin + 64 <= end; begin += 64) bits[begin / 64] = ~0ull;
  for (; begin < end; ++begin) bits[begin / 64] |= 1ull << (begin % 64);
}

}  // namespace

Allocation::Allocation() = default;
Allocation::~Allocation() = default;
Memory::Memory() = default;

Memory::~Memory() {
  for (auto& [base, a] : by_base_) {
    if (a->owned) std::free(reinterpret_cast<std::byte*>(base) - kRedZone);
  }
}

void* Memory::allocate(size_t bytes, std::string label) {
  size_t total = (bytes + 2 * kRedZone + kAlign - 1) / kAlign * kAlign;
  auto* start = static_cast<std::byte*>(std::aligned_alloc(kAlign, total));
  if (start == nullptr) throw std::bad_alloc();
  std::memset(start, static_cast<int>(kPoison), total);
  std::byte* base = start + kRedZone;
  auto a = std::make_unique<Allocation>();
  a->base = reinterpret_cast<uint64_t>(base);
  a->bytes = bytes;
  a->owned = true;
  a->label = std::move(label);
  a->written = none_written(bytes);
  std::unique_lock lock(mutex_);
  live_bytes_ += bytes;
  by_base_[a->base] = std::move(a);
  return base;
}

bool Memory::release(void* pointer) {
  std::unique_lock lock(mutex_);
  auto it = by_base_.find(reinterpret_cast<uint64_t>(pointer));
  if (it == by_base_.end() || it->second->freed || !it->second->owned) return false;
  Allocation& a = *it->second;
  a.freed = true;
  a.cells.reset();
  live_bytes_ -= a.bytes;
  std::memset(pointer, static_cast<int>(kPoison), a.bytes);
  freed_.push_back(a.base);
  if (freed_.size() > kFreedToKeep) {
    auto oldest = by_base_.find(freed_.front());
    std::free(reinterpret_cast<std::byte*>(oldest->first) - kRedZone);
    by_base_.erase(oldest);
    freed_.erase(freed_.begin());
  }
  return true;
}

void Memory::add(void* pointer, size_t bytes, std::string label, bool written) {
  if (bytes == 0) return;
  auto a = std::make_unique<Allocation>();
  a->base = reinterpret_cast<uint64_t>(pointer);
  a->bytes = bytes;
  a->label = std::move(label);
  if (!written) a->written = none_written(bytes);
  std::unique_lock lock(mutex_);
  uint64_t begin = a->base, end = begin + bytes;
  // What overlaps is merged: views of one array reach over each other.
  auto it = by_base_.lower_bound(begin);
  if (it != by_base_.begin() && std::prev(it)->second->base + std::prev(it)->second->bytes > begin) --it;
  while (it != by_base_.end() && it->first < end) {
    Allocation& old = *it->second;
    if (old.owned && !old.freed && old.base <= begin && old.base + old.bytes >= end) {
      return;  // within emulator memory, which knows more
    }
    if (!old.owned) {
      begin = std::min(begin, old.base);
      end = std::max(end, old.base + old.bytes);
      it = by_base_.erase(it);
    } else {
      ++it;
    }
  }
  if (end - begin != a->bytes) a->written.reset();
  a->base = begin;
  a->bytes = end - begin;
  by_base_[begin] = std::move(a);
}

void Memory::remove(void* pointer) {
  std::unique_lock lock(mutex_);
  uint64_t address = reinterpret_cast<uint64_t>(pointer);
  auto it = by_base_.upper_bound(address);
  if (it == by_base_.begin()) return;
  --it;
  if (!it->second->owned && address < it->second->base + it->second->bytes) by_base_.erase(it);
}

void Memory::mark_written(const void* pointer, size_t bytes) {
  auto begin = reinterpret_cast<uint64_t>(pointer);
  Allocation* a = find(begin);
  if (a == nullptr || a->written == nullptr) return;
  begin -= a->base;
  set_bits(a->written.get(), begin, std::min<uint64_t>(begin + bytes, a->bytes));
}

void Memory::mark_fresh(void* pointer, size_t bytes) {
  auto begin = reinterpret_cast<uint64_t>(pointer);
  std::memset(pointer, static_cast<int>(kPoison), bytes);
  Allocation* a = find(begin);
  if (a == nullptr) return;
  if (a->written == nullptr) {
    a->written = none_written(a->bytes);
    set_bits(a->written.get(), 0, a->bytes);
  }
  begin -= a->base;
  for (uint64_t k = begin; k < std::min<uint64_t>(begin + bytes, a->bytes); ++k)
    a->written[k / 64] &= ~(1ull << (k % 64));
}

void Memory::forget_races() {
  std::unique_lock lock(mutex_);
  for (auto& [base, a] : by_base_) {
    a->cells.reset();
    a->cells_of_launch = 0;
  }
}

Allocation* Memory::find(uint64_t address) {
  std::shared_lock lock(mutex_);
  auto it = by_base_.upper_bound(address);
  if (it == by_base_.begin()) return nullptr;
  Allocation& a = *std::prev(it)->second;
  return address < a.base + a.bytes ? &a : nullptr;
}

std::string Memory::describe(uint64_t address) {
  std::shared_lock lock(mutex_);
  auto text = [](const Allocation& a) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, " (%llu bytes at 0x%llx)", static_cast<unsigned long long>(a.bytes),
                  static_cast<unsigned long long>(a.base));
    return (a.label.empty() ? std::string("an allocation") : a.label) + buffer + (a.freed ? ", which was freed" : "");
  };
  auto next = by_base_.upper_bound(address);
  const Allocation* before = next == by_base_.begin() ? nullptr : std::prev(next)->second.get();
  const Allocation* after = next == by_base_.end() ? nullptr : next->second.get();
  if (before != nullptr && address < before->base + before->bytes) {
    return std::to_string(address - before->base) + " bytes into " + text(*before);
  }
  uint64_t past = before == nullptr ? ~0ull : address - before->base - before->bytes;
  uint64_t ahead = after == nullptr ? ~0ull : after->base - address;
  constexpr uint64_t kNear = 1 << 20;
  if (std::min(past, ahead) > kNear) return "in no allocation";
  return past <= ahead ? std::to_string(past) + " bytes past the end of " + text(*before)
                       : std::to_string(ahead) + " bytes before the start of " + text(*after);
}

}  // namespace vgpu
