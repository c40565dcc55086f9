// The functions of numeric_types.h on the host, over arrays.
#include <cstring>

#include "numeric_types.h"

template <typename T>
static void scalars(const T* a, const T* b, const T* c, T* out, int n) {
  for (int i = 0; i < n; ++i) half_results(a[i], b[i], c[i], out + i * kHalfResults);
}

template <typename T>
static void pairs(const T* a, const T* b, const T* c, typename Pair<T>::Type* out, int n) {
  for (int i = 0; i < n; ++i) packed_results(a[i], b[i], c[i], out + i * kPackedResults);
}

extern "C" {
void scalar_fp16(const __half* a, const __half* b, const __half* c, __half* out, int n) { scalars(a, b, c, out, n); }
void scalar_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c, __nv_bfloat16* out, int n) {
  scalars(a, b, c, out, n);
}
void packed_fp16(const __half* a, const __half* b, const __half* c, __half2* out, int n) { pairs(a, b, c, out, n); }
void packed_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c, __nv_bfloat162* out, int n) {
  pairs(a, b, c, out, n);
}
void conversions(const float* x, const long long* integers, unsigned long long* out, int n) {
  for (int i = 0; i < n; ++i) conversion_results(x[i], integers[i], out + i * kConversionResults);
}
}
