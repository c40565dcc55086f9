// Launchers as a library would have them, for the tests of the CUDA runtime's stand-in.
#include <cuda.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>
#include <cstring>

__global__ void add(const float* x, const float* y, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + y[i];
}

__global__ void nothing() {}

__global__ void __launch_bounds__(128) bounded(int* out) { *out = 1; }

__global__ void architecture(int* out) {
#ifdef __CUDA_ARCH__
  *out = __CUDA_ARCH__;
#endif
}

__global__ void dynamic_shared(int* out, int count) {
  extern __shared__ int memory[];
  for (int i = threadIdx.x; i < count; i += blockDim.x) memory[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) *out = memory[count - 1];
}

__global__ void which_rank(unsigned* out) {
#if __CUDA_ARCH__ >= 900
  unsigned rank, size;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  if (threadIdx.x == 0) out[blockIdx.x] = rank * 100 + size;
#endif
}

struct Pair {
  char letter;
  double number;
  int three[3];
};

__global__ void takes_struct(Pair pair, short small, double* out) {
  out[0] = pair.letter;
  out[1] = pair.number;
  out[2] = pair.three[2];
  out[3] = small;
}

__global__ void out_of_bounds(int* out, int index) { out[index] = 1; }

__global__ void misaligned(char* out) { *reinterpret_cast<int*>(out + 1) = 1; }

__global__ void asserts(const int* value) { assert(*value == 3); }

__global__ void traps() { asm volatile("trap;"); }

__device__ int counter = 7;
__constant__ float table[4] = {1, 2, 3, 4};
__managed__ int shared_with_host = 5;

__global__ void uses_variables(float* out) {
  atomicAdd(&counter, 1);
  out[threadIdx.x] = table[threadIdx.x & 3];
}

__global__ void uses_managed(int* out) { *out = shared_with_host; }

__global__ void append(int* log, int* length, int value) { log[atomicAdd(length, 1)] = value; }

__global__ void multiply(int* value, int by) { *value = *value * by; }

extern "C" {

int run_add(const float* x, const float* y, float* out, int n, cudaStream_t stream) {
  add<<<(n + 127) / 128, 128, 0, stream>>>(x, y, out, n);
  return cudaGetLastError();
}

int run_nothing(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz) {
  nothing<<<dim3(gx, gy, gz), dim3(bx, by, bz)>>>();
  return cudaGetLastError();
}

int run_bounded(int* out, int threads) {
  bounded<<<1, threads>>>(out);
  return cudaGetLastError();
}

int run_architecture(int* out) {
  architecture<<<1, 1>>>(out);
  return cudaGetLastError();
}

int run_dynamic_shared(int* out, int bytes, int opt_in) {
  if (opt_in != 0) {
    cudaError_t error = cudaFuncSetAttribute(dynamic_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, opt_in);
    if (error != cudaSuccess) return error;
  }
  dynamic_shared<<<1, 64, bytes>>>(out, bytes / 4);
  return cudaGetLastError();
}

int run_cluster(unsigned* out, int blocks, int cluster, int non_portable, int programmatic) {
  cudaError_t error = cudaFuncSetAttribute(which_rank, cudaFuncAttributeNonPortableClusterSizeAllowed, non_portable);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = 32;
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = programmatic;
  config.attrs = attributes;
  config.numAttrs = 2;
  error = cudaLaunchKernelEx(&config, which_rank, out);
  return error != cudaSuccess ? error : cudaGetLastError();
}

int run_cooperative(int blocks) {
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(nothing), dim3(blocks), dim3(1024), nullptr, 0,
                                     nullptr);
}

int run_struct(double* out) {
  takes_struct<<<1, 1>>>(Pair{'A', 2.5, {1, 2, 3}}, static_cast<short>(-4), out);
  return cudaGetLastError();
}

int run_out_of_bounds(int* out, int index) {
  out_of_bounds<<<1, 1>>>(out, index);
  return cudaGetLastError();
}

int run_misaligned(char* out) {
  misaligned<<<1, 1>>>(out);
  return cudaGetLastError();
}

int run_asserts(const int* value) {
  asserts<<<1, 1>>>(value);
  return cudaGetLastError();
}

int run_traps() {
  traps<<<1, 1>>>();
  return cudaGetLastError();
}

int run_variables(float* out) {
  uses_variables<<<1, 32>>>(out);
  return cudaGetLastError();
}

int read_counter(int* out) { return cudaMemcpyFromSymbol(out, counter, sizeof(int)); }

int write_table(const float* values) { return cudaMemcpyToSymbol(table, values, 4 * sizeof(float)); }

int counter_size(size_t* bytes) { return cudaGetSymbolSize(bytes, counter); }

int run_managed(int* out) {
  shared_with_host += 1;
  uses_managed<<<1, 1>>>(out);
  return cudaGetLastError();
}

// What the runtime says

int attribute(int which, int* value) { return cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(which), 0); }

int properties(char* name, int* numbers) {
  cudaDeviceProp p;
  const int error = cudaGetDeviceProperties(&p, 0);
  std::strcpy(name, p.name);
  numbers[0] = p.major;
  numbers[1] = p.minor;
  numbers[2] = p.multiProcessorCount;
  numbers[3] = static_cast<int>(p.sharedMemPerBlockOptin);
  return error;
}

int occupancy(int threads, int bytes, int* blocks) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, dynamic_shared, threads, bytes);
}

int potential_cluster(int* size) {
  cudaLaunchConfig_t config = {};
  config.gridDim = 64;
  config.blockDim = 32;
  return cudaOccupancyMaxPotentialClusterSize(size, which_rank, &config);
}

int active_clusters(int cluster, int* clusters) {
  cudaLaunchConfig_t config = {};
  config.gridDim = 64;
  config.blockDim = 1024;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, which_rank, &config);
}

int function_attributes(int* numbers) {
  cudaFuncAttributes a;
  const int error = cudaFuncGetAttributes(&a, bounded);
  numbers[0] = a.maxThreadsPerBlock;
  numbers[1] = static_cast<int>(a.sharedSizeBytes);
  numbers[2] = a.ptxVersion;
  numbers[3] = a.binaryVersion;
  return error;
}

const char* error_string(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
const char* error_name(int code) { return cudaGetErrorName(static_cast<cudaError_t>(code)); }
int last_error() { return cudaGetLastError(); }
int peek_error() { return cudaPeekAtLastError(); }

// Memory

int device_malloc(void** pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
int device_free(void* pointer) { return cudaFree(pointer); }
int host_malloc(void** pointer, size_t bytes) { return cudaMallocHost(pointer, bytes); }
int host_free(void* pointer) { return cudaFreeHost(pointer); }
int memory_info(size_t* free, size_t* total) { return cudaMemGetInfo(free, total); }
int copy(void* to, const void* from, size_t bytes, int kind) {
  return cudaMemcpy(to, from, bytes, static_cast<cudaMemcpyKind>(kind));
}
int copy_async(void* to, const void* from, size_t bytes, int kind, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, static_cast<cudaMemcpyKind>(kind), stream);
}
int copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, int kind) {
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, static_cast<cudaMemcpyKind>(kind));
}
int fill(void* to, int value, size_t bytes) { return cudaMemset(to, value, bytes); }
int pointer_type(const void* pointer, int* type) {
  cudaPointerAttributes a;
  const int error = cudaPointerGetAttributes(&a, pointer);
  *type = a.type;
  return error;
}

// Streams and graphs

int stream_create(cudaStream_t* stream, unsigned flags) { return cudaStreamCreateWithFlags(stream, flags); }
int stream_destroy(cudaStream_t stream) { return cudaStreamDestroy(stream); }
int stream_synchronize(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
int device_synchronize() { return cudaDeviceSynchronize(); }
int event_create(cudaEvent_t* event) { return cudaEventCreate(event); }
int event_record(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecord(event, stream); }
int event_synchronize(cudaEvent_t event) { return cudaEventSynchronize(event); }
int event_elapsed(float* ms, cudaEvent_t a, cudaEvent_t b) { return cudaEventElapsedTime(ms, a, b); }
int stream_wait(cudaStream_t stream, cudaEvent_t event) { return cudaStreamWaitEvent(stream, event, 0); }
int begin_capture(cudaStream_t stream, int mode) {
  return cudaStreamBeginCapture(stream, static_cast<cudaStreamCaptureMode>(mode));
}
int end_capture(cudaStream_t stream, cudaGraph_t* graph) { return cudaStreamEndCapture(stream, graph); }
int is_capturing(cudaStream_t stream, int* status) {
  return cudaStreamIsCapturing(stream, reinterpret_cast<cudaStreamCaptureStatus*>(status));
}
int graph_nodes(cudaGraph_t graph, size_t* count) { return cudaGraphGetNodes(graph, nullptr, count); }
int graph_instantiate(cudaGraphExec_t* executable, cudaGraph_t graph) {
  return cudaGraphInstantiate(executable, graph, 0);
}
int graph_launch(cudaGraphExec_t executable, cudaStream_t stream) { return cudaGraphLaunch(executable, stream); }
int run_append(int* log, int* length, int value, cudaStream_t stream) {
  append<<<1, 1, 0, stream>>>(log, length, value);
  return cudaGetLastError();
}
int run_multiply(int* value, int by, cudaStream_t stream) {
  multiply<<<1, 1, 0, stream>>>(value, by);
  return cudaGetLastError();
}
int async_fill(void* to, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemsetAsync(to, value, bytes, stream);
}

// Driver entry points

int has_entry_point(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &result);
  return function != nullptr && result == cudaDriverEntryPointSuccess;
}

int encode(CUtensorMap* map, int type, unsigned rank, void* address, const uint64_t* dims, const uint64_t* strides,
           const unsigned* box, const unsigned* steps, int interleave, int swizzle, int fill, char* reason) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  const CUresult error = reinterpret_cast<Encode>(function)(
      map, static_cast<CUtensorMapDataType>(type), rank, address, reinterpret_cast<const cuuint64_t*>(dims),
      reinterpret_cast<const cuuint64_t*>(strides), box, steps, static_cast<CUtensorMapInterleave>(interleave),
      static_cast<CUtensorMapSwizzle>(swizzle), CU_TENSOR_MAP_L2_PROMOTION_NONE,
      static_cast<CUtensorMapFloatOOBfill>(fill));
  reason[0] = 0;
  if (error != CUDA_SUCCESS) {
    cudaGetDriverEntryPointByVersion("cuGetErrorString", &function, 12000, cudaEnableDefault, &result);
    const char* text = nullptr;
    reinterpret_cast<CUresult (*)(CUresult, const char**)>(function)(error, &text);
    std::strncpy(reason, text, 255);
  }
  return error;
}

}  // extern "C"
