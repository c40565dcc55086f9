# Compiles CUDA kernels with nvcc, without CMake's own CUDA language: that wants a toolkit it can link a program with,
# and here nvcc may as well be a wheel, and the runtime the virtual GPU's stand-in.
#
#   moe_find_nvcc()                      sets MOE_NVCC (empty when there is none) and MOE_CUDA_INCLUDE_DIR
#   moe_compile_kernels(<objects> SOURCES <files> FLAGS <flags>)   appends the objects to the variable <objects>
cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH MOE_ROOT)

# Looked for in CUDA_HOME, in the wheels nvidia-cuda-nvcc and nvidia-cuda-runtime of the given Python (they are pinned, so
# runs repeat), on PATH and in /usr/local/cuda.
function(moe_find_nvcc)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    OUTPUT_VARIABLE site_packages OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(homes "")
  if(DEFINED ENV{CUDA_HOME})
    list(APPEND homes "$ENV{CUDA_HOME}")
  endif()
  list(APPEND homes "${site_packages}/nvidia/cu13")
  find_program(MOE_NVCC_ON_PATH nvcc)
  if(MOE_NVCC_ON_PATH)
    file(REAL_PATH "${MOE_NVCC_ON_PATH}" real)
    cmake_path(GET real PARENT_PATH folder)
    cmake_path(GET folder PARENT_PATH home)
    list(APPEND homes "${home}")
  endif()
  list(APPEND homes /usr/local/cuda)
  foreach(home IN LISTS homes)
    if(EXISTS "${home}/bin/nvcc" AND EXISTS "${home}/include/cuda_runtime.h")
      set(MOE_NVCC "${home}/bin/nvcc" PARENT_SCOPE)
      set(MOE_CUDA_HOME "${home}" PARENT_SCOPE)
      set(MOE_CUDA_INCLUDE_DIR "${home}/include" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(MOE_NVCC "" PARENT_SCOPE)
endfunction()

function(moe_compile_kernels objects)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;FLAGS")
  set(compiled ${${objects}})
  foreach(source IN LISTS arg_SOURCES)
    cmake_path(RELATIVE_PATH source BASE_DIRECTORY ${MOE_ROOT}/csrc OUTPUT_VARIABLE name)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
    cmake_path(GET object PARENT_PATH folder)
    file(MAKE_DIRECTORY ${folder})
    add_custom_command(
      OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d
      COMMAND ${MOE_NVCC} -c -std=c++20 -O3 -Xcompiler=-fPIC,-fvisibility=hidden ${arg_FLAGS}
        -I${MOE_ROOT}/csrc -I${MOE_ROOT}/csrc/include -MD -MF ${object}.d -MT ${object} -o ${object} ${source}
      COMMENT "Compiling ${name}" VERBATIM)
    list(APPEND compiled ${object})
  endforeach()
  set(${objects} ${compiled} PARENT_SCOPE)
endfunction()
