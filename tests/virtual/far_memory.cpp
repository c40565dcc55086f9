// Memory that the virtual GPU did not allocate: parts of a reservation too large to fill.
#include <cstddef>

#include "core/gpu.h"

// For ctypes.
extern "C" {

__attribute__((visibility("default"))) void moe_virtual_add_memory(void* pointer, size_t bytes) {
  vgpu::current_gpu().memory().add(pointer, bytes, "far memory");
}

__attribute__((visibility("default"))) void moe_virtual_remove_memory(void* pointer) {
  vgpu::current_gpu().memory().remove(pointer);
}
}
