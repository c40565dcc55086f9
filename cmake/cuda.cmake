# Decides whether the CUDA backend is built: MOE_EXT_CUDA_BUILT is 1 or 0. Never asks whether a GPU is present.
#
# auto: when torch is a CUDA build and nvcc is found. on: whatever torch is, since only its stable ABI is used; one
# library then serves a CPU build of torch as well. The CUDA runtime is linked statically, so that neither build nor
# machine has to have the same one as torch.
include(cmake/nvcc.cmake)
include(cmake/cuda_sources.cmake)

set(MOE_EXT_CUDA_BUILT 0)
if(MOE_EXT_CUDA STREQUAL "on" OR (MOE_EXT_CUDA STREQUAL "auto" AND TORCH_CUDA_VERSION))
  moe_find_nvcc()
  find_library(MOE_CUDART cudart_static PATHS ${MOE_CUDA_HOME}/lib64 ${MOE_CUDA_HOME}/lib NO_DEFAULT_PATH)
  if(MOE_NVCC AND MOE_CUDART)
    set(MOE_EXT_CUDA_BUILT 1)
  elseif(MOE_EXT_CUDA STREQUAL "on")
    message(FATAL_ERROR "MOE_EXT_CUDA=on needs nvcc, cuda_runtime.h and libcudart_static.a: set CUDA_HOME")
  endif()
endif()

if(NOT MOE_EXT_CUDA_BUILT)
  message(STATUS "moe_ext: CUDA backend off (MOE_EXT_CUDA=${MOE_EXT_CUDA}, torch ${TORCH_VERSION})")
  return()
endif()
message(STATUS "moe_ext: CUDA backend on (${MOE_NVCC}, architectures ${CMAKE_CUDA_ARCHITECTURES})")

# CMake's notation: 80-real is code for that chip, 120 is code and PTX.
set(code_flags "")
set(hopper_flags "")
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  string(REGEX REPLACE "-(real|virtual)$" "" number ${architecture})
  set(flags -gencode arch=compute_${number},code=sm_${number})
  if(architecture STREQUAL number)
    list(APPEND flags -gencode arch=compute_${number},code=compute_${number})
  endif()
  list(APPEND code_flags ${flags})
  if(number STREQUAL "90a")
    set(hopper_flags ${flags})
  endif()
endforeach()
separate_arguments(more_flags NATIVE_COMMAND "$ENV{CUDAFLAGS}")
set(MOE_CUDA_DEFINITIONS "")
moe_compile_kernels(MOE_CUDA_OBJECTS SOURCES ${MOE_CUDA_KERNELS} FLAGS -cudart none ${code_flags} ${more_flags})
if(hopper_flags)
  moe_compile_kernels(MOE_CUDA_OBJECTS SOURCES ${MOE_CUDA_HOPPER_KERNELS}
    FLAGS -cudart none ${hopper_flags} ${more_flags})
else()
  set(MOE_CUDA_DEFINITIONS MOE_EXT_WITHOUT_WGMMA)
endif()
