#include "runtime/fatbin.h"

#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>
#include <tuple>

namespace vgpu::runtime {
namespace {

// The layout is not documented. It has been the same since CUDA 4, but for the compressions.
constexpr uint32_t kContainerMagic = 0xBA55ED50;
constexpr uint16_t kKindPtx = 1;
constexpr uint64_t kFlagLz4 = 0x2000;
constexpr uint64_t kFlagZstd = 0x8000;
constexpr uint32_t kZstdMagic = 0xFD2FB528;

struct ContainerHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t header_bytes;
  uint64_t bytes;  // of all entries
};
static_assert(sizeof(ContainerHeader) == 16);

struct EntryHeader {
  uint16_t kind;
  uint16_t version;
  uint32_t header_bytes;
  uint64_t payload_bytes;
  uint32_t compressed_bytes;
  uint32_t options_offset;
  uint16_t minor;  // of the PTX version
  uint16_t major;
  uint32_t architecture;
  uint64_t flags_offset;
  uint64_t flags;
};
static_assert(sizeof(EntryHeader) == 48);

[[noreturn]] void damaged(const char* what) { throw std::runtime_error(std::string("damaged fat binary: ") + what); }

template <typename T>
T read(std::string_view bytes, uint64_t at, const char* what) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) damaged(what);
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

std::string_view part(std::string_view bytes, uint64_t at, uint64_t count, const char* what) {
  if (at > bytes.size() || count > bytes.size() - at) damaged(what);
  return bytes.substr(at, count);
}

// The architecture as the text's .target says it: the flags that mark 'a' and 'f' differ between releases.
void read_target(PtxImage& image) {
  constexpr std::string_view kDirective = "\n.target";
  const size_t directive = image.text.find(kDirective);
  size_t at = directive == std::string::npos ? directive : image.text.find("sm_", directive);
  if (at == std::string::npos) damaged("PTX without .target");
  int number = 0;
  for (at += 3; at < image.text.size() && image.text[at] >= '0' && image.text[at] <= '9' && number < 10000; ++at) {
    number = number * 10 + (image.text[at] - '0');
  }
  image.major = number / 10;
  image.minor = number % 10;
  image.arch_specific = at < image.text.size() && image.text[at] == 'a';
  image.family = at < image.text.size() && image.text[at] == 'f';
}

void add_entries(std::string_view entries, size_t container, std::vector<PtxImage>& images) {
  for (uint64_t at = 0; at < entries.size();) {
    const auto header = read<EntryHeader>(entries, at, "an entry's header");
    if (header.header_bytes < sizeof(EntryHeader)) damaged("an entry's header");
    if (header.header_bytes > entries.size() - at) damaged("an entry's header");
    const std::string_view payload = part(entries, at + header.header_bytes, header.payload_bytes, "an entry");
    at += header.header_bytes + header.payload_bytes;
    if (header.kind != kKindPtx) continue;

    const bool zstd = payload.size() >= 4 && read<uint32_t>(payload, 0, "PTX") == kZstdMagic;
    if (zstd || (header.flags & (kFlagLz4 | kFlagZstd)) != 0) {
      throw std::runtime_error("the PTX for sm_" + std::to_string(header.architecture) +
                               " is compressed, which is not supported: build with nvcc --no-compress");
    }
    PtxImage image;
    image.text = payload.substr(0, payload.find('\0'));
    image.container = container;
    read_target(image);
    images.push_back(std::move(image));
  }
}

// Bytes of the container that starts here.
uint64_t add_container(std::string_view bytes, size_t container, std::vector<PtxImage>& images) {
  const auto header = read<ContainerHeader>(bytes, 0, "its header");
  if (header.magic != kContainerMagic) damaged("wrong magic number");
  if (header.version != 1) damaged("a version that is not known");
  if (header.header_bytes < sizeof(ContainerHeader)) damaged("its header");
  add_entries(part(bytes, header.header_bytes, header.bytes, "its size"), container, images);
  return header.header_bytes + header.bytes;
}

// Containers one after the other, padded.
size_t add_section(std::string_view bytes, size_t containers, std::vector<PtxImage>& images) {
  for (uint64_t at = 0; bytes.size() >= at + sizeof(ContainerHeader);) {
    if (read<uint32_t>(bytes, at, "a container") == kContainerMagic) {
      at += add_container(bytes.substr(at), containers++, images);
    } else if (read<uint32_t>(bytes, at, "a container") == 0) {
      at += 4;
    } else {
      damaged("wrong magic number");
    }
  }
  return containers;
}

size_t add_elf(std::string_view file, std::vector<PtxImage>& images) {
  const auto header = read<Elf64_Ehdr>(file, 0, "the ELF header");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof(Elf64_Shdr)) return 0;
  const auto section = [&](uint64_t i) {
    return read<Elf64_Shdr>(file, header.e_shoff + i * sizeof(Elf64_Shdr), "the ELF sections");
  };
  const Elf64_Shdr names = section(header.e_shstrndx);
  const std::string_view strings = part(file, names.sh_offset, names.sh_size, "the ELF section names");
  size_t containers = 0;
  for (uint64_t i = 0; i < header.e_shnum; ++i) {
    const Elf64_Shdr at = section(i);
    if (at.sh_name >= strings.size() || at.sh_type == SHT_NOBITS) continue;
    std::string_view name = strings.substr(at.sh_name);
    name = name.substr(0, name.find('\0'));
    // The second has relocatable device code (nvcc -rdc=true).
    if (name != ".nv_fatbin" && name != "__nv_relfatbin") continue;
    containers = add_section(part(file, at.sh_offset, at.sh_size, "the ELF section"), containers, images);
  }
  return containers;
}

}  // namespace

std::string PtxImage::target() const {
  return "sm_" + std::to_string(major) + std::to_string(minor) + (arch_specific ? "a" : family ? "f" : "");
}

std::vector<PtxImage> ptx_images(const void* container, size_t max_bytes) {
  const auto* bytes = static_cast<const char*>(container);
  // Only the header says how far it is safe to read.
  const auto header = read<ContainerHeader>({bytes, std::min(max_bytes, sizeof(ContainerHeader))}, 0, "its header");
  if (header.magic != kContainerMagic) damaged("wrong magic number");
  std::vector<PtxImage> images;
  const uint64_t size = header.header_bytes + header.bytes;
  if (size < header.bytes) damaged("its size");
  add_container({bytes, static_cast<size_t>(std::min<uint64_t>(max_bytes, size))}, 0, images);
  return images;
}

std::vector<PtxImage> ptx_images_in_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error(path + ": cannot be read");
  const std::string file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  std::vector<PtxImage> images;
  size_t containers = 0;
  try {
    if (file.starts_with(ELFMAG)) {
      containers = add_elf(file, images);
    } else if (file.size() >= 4 && read<uint32_t>(file, 0, "its header") == kContainerMagic) {
      containers = add_section(file, 0, images);
    }
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
  if (containers == 0) throw std::runtime_error(path + ": has no fat binary");
  return images;
}

const PtxImage* best_for(const std::vector<PtxImage>& images, const Chip& chip) {
  const auto accepts = [&](const PtxImage& image) {
    if (image.arch_specific) return chip.arch_specific && image.major == chip.major && image.minor == chip.minor;
    if (image.family) return image.major == chip.major && image.minor <= chip.minor;
    return std::tie(image.major, image.minor) <= std::tie(chip.major, chip.minor);
  };
  const auto rank = [](const PtxImage& image) {
    return std::tuple(image.major, image.minor, image.arch_specific ? 2 : image.family ? 1 : 0);
  };
  const PtxImage* best = nullptr;
  for (const PtxImage& image : images) {
    if (accepts(image) && (best == nullptr || rank(image) > rank(*best))) best = &image;
  }
  return best;
}

}  // namespace vgpu::runtime
