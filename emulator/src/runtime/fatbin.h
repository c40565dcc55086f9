// Finds the PTX in fat binaries: what nvcc puts into object files beside or instead of machine code.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/chip.h"

namespace vgpu::runtime {

struct PtxImage {
  int major = 0, minor = 0;
  bool arch_specific = false;  // sm_90a: runs on that architecture alone
  bool family = false;         // sm_100f: runs on later ones of the same major too
  std::string text;
  size_t container = 0;  // which fat binary of the file it is from: a library has one per translation unit

  std::string target() const;  // "sm_90a"
};

// Of a container in memory: what the wrapper that __cudaRegisterFatBinary gets points to. Reads no more than max_bytes.
// Throws std::runtime_error for one that is damaged, or whose PTX is compressed.
std::vector<PtxImage> ptx_images(const void* container, size_t max_bytes);

// Of an object file, shared library or program with fat binaries in it, or of a .fatbin file. Throws as ptx_images, and
// for a file with no fat binary.
std::vector<PtxImage> ptx_images_in_file(const std::string& path);

// The image that the chip would run: its own sm_XYa, else the highest that it accepts. Null when it accepts none.
const PtxImage* best_for(const std::vector<PtxImage>& images, const Chip& chip);

}  // namespace vgpu::runtime
