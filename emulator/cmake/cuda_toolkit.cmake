# Finds the headers of a CUDA toolkit: EMULATOR_CUDA_INCLUDE_DIR, empty when there is none. Only headers are needed.
#
# Looked for in CUDA_HOME, in the wheel nvidia-cuda-runtime of the given Python, beside nvcc, and in /usr/local/cuda.
set(emulator_cuda_candidates "")
if(DEFINED ENV{CUDA_HOME})
  list(APPEND emulator_cuda_candidates "$ENV{CUDA_HOME}/include")
endif()
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"
  OUTPUT_VARIABLE emulator_site_packages OUTPUT_STRIP_TRAILING_WHITESPACE)
list(APPEND emulator_cuda_candidates "${emulator_site_packages}/nvidia/cu13/include")
find_program(EMULATOR_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin)
if(EMULATOR_NVCC)
  file(REAL_PATH "${EMULATOR_NVCC}" emulator_nvcc_real)
  get_filename_component(emulator_nvcc_dir "${emulator_nvcc_real}" DIRECTORY)
  list(APPEND emulator_cuda_candidates "${emulator_nvcc_dir}/../include")
endif()
list(APPEND emulator_cuda_candidates /usr/local/cuda/include)

find_path(EMULATOR_CUDA_INCLUDE_DIR cuda_runtime_api.h PATHS ${emulator_cuda_candidates} NO_DEFAULT_PATH)
if(EMULATOR_CUDA_INCLUDE_DIR AND NOT EXISTS "${EMULATOR_CUDA_INCLUDE_DIR}/cuda.h")
  message(WARNING "${EMULATOR_CUDA_INCLUDE_DIR} has no cuda.h")
  set(EMULATOR_CUDA_INCLUDE_DIR "EMULATOR_CUDA_INCLUDE_DIR-NOTFOUND")
endif()
