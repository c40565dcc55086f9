# Torch is used through its stable ABI only, so its CMake package (which wants a CUDA toolkit beside a CUDA torch) is
# not needed: the headers and three libraries are. Sets TORCH_VERSION, TORCH_INCLUDE_DIRS, TORCH_LIBRARY_DIRS and
# TORCH_CUDA_VERSION (empty for a build of torch without CUDA).
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import torch, torch.utils.cpp_extension as c; print(torch.__version__); print('|'.join(c.include_paths())); print('|'.join(c.library_paths())); print(torch.version.cuda or '')"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
string(REPLACE "\n" ";" torch_facts "${torch_facts};")
list(GET torch_facts 0 TORCH_VERSION)
list(GET torch_facts 1 TORCH_INCLUDE_DIRS)
list(GET torch_facts 2 TORCH_LIBRARY_DIRS)
list(GET torch_facts 3 TORCH_CUDA_VERSION)
string(REPLACE "|" ";" TORCH_INCLUDE_DIRS "${TORCH_INCLUDE_DIRS}")
string(REPLACE "|" ";" TORCH_LIBRARY_DIRS "${TORCH_LIBRARY_DIRS}")

# The oldest torch whose stable ABI is used: 2.10.
set(MOE_TORCH_DEFINITIONS TORCH_TARGET_VERSION=0x020a000000000000)
