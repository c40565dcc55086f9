// What happens to finished sums, one header per epilogue of product.h:
//
//   finish<T, kRows, kColumns, kStride, kThreads>(epilogue, sums, slice, thread)
//
// `sums` is [kRows, kColumns] in shared memory, 16-byte aligned, rows kStride apart (a multiple of 16 bytes; 4 floats
// more than a multiple of 32 keeps fragments that are written to it apart). kThreads threads, whole warps numbered from
// 0, call it together. The caller synchronises before and after.
#pragma once

#include "cuda/grouped_gemm/activate_backward_epilogue.cuh"
#include "cuda/grouped_gemm/activate_epilogue.cuh"
#include "cuda/grouped_gemm/store_epilogue.cuh"
