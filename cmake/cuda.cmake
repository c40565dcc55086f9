# Decides whether the CUDA backend is built: MOE_EXT_CUDA_BUILT is 1 or 0. Never asks whether a GPU is present.
set(MOE_EXT_CUDA_BUILT 0)
if(MOE_EXT_CUDA STREQUAL "on")
  message(FATAL_ERROR "MOE_EXT_CUDA=on: this version of moe_ext has no CUDA kernels yet; use auto or off")
endif()
message(STATUS "moe_ext: CUDA backend off (MOE_EXT_CUDA=${MOE_EXT_CUDA}, torch ${TORCH_VERSION})")
