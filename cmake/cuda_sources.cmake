# The CUDA side, wherever it is built: for CUDA devices (cmake/cuda.cmake) or for the virtual GPU (tests/virtual).
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH MOE_ROOT)
file(GLOB_RECURSE MOE_CUDA_KERNELS CONFIGURE_DEPENDS ${MOE_ROOT}/csrc/cuda/*.cu)
file(GLOB_RECURSE MOE_CUDA_HOST CONFIGURE_DEPENDS ${MOE_ROOT}/csrc/cuda/*.cpp)
file(GLOB MOE_CUDA_TORCH CONFIGURE_DEPENDS ${MOE_ROOT}/csrc/torch/cuda/*.cpp)
# wgmma exists on sm_90a alone.
set(MOE_CUDA_HOPPER_KERNELS ${MOE_CUDA_KERNELS})
list(FILTER MOE_CUDA_HOPPER_KERNELS INCLUDE REGEX "/wgmma/")
list(FILTER MOE_CUDA_KERNELS EXCLUDE REGEX "/wgmma/")
