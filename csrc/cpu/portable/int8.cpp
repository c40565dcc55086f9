// int8 products in portable C++.
#define MOE_ISA portable_int8
#include "cpu/portable/transpose.h"
#include "cpu/vectorized/int8_driver.h"

namespace moe::cpu {

namespace portable_int8 {

struct PortableInt8Engine {
  using Packed = int16_t;

  static int64_t groups_at_once(int64_t) { return 1; }
  static int64_t scratch_bytes(int64_t, int64_t) { return 0; }
  static void begin() {}
  static void end() {}
  static int64_t packed_bytes(int64_t rows, int64_t padded_k) {
    return rows * padded_k * static_cast<int64_t>(sizeof(Packed));
  }

  static void pack(const int8_t* const* rows, int64_t first, int64_t count, int64_t, int64_t padded_k, Packed* packed) {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < padded_k; ++i) packed[(first + r) * padded_k + i] = rows[r][i];
    }
  }

  static void multiply(const Packed* packed, int64_t rows, const Int8Panels* group, int64_t, int64_t k, int32_t* sums,
                       int64_t ld, void*) {
    const Int8Panels& panels = *group;
    const int64_t padded_k = int8_round_up(k, kInt8RowMultiple);
    for (int half = 0; half < 2; ++half) {
      for (int64_t c = 0; c < panels.channels[half]; ++c) {
        const int8_t* w = panels.panel[half] + c * panels.stride;
        int32_t* target = sums + (half * kInt8Panel + c) * ld;
        for (int64_t i = 0; i < rows; ++i) target[i] = dot(w, packed + i * padded_k, k);
      }
    }
  }

 private:
  static int32_t dot(const int8_t* __restrict w, const int16_t* __restrict x, int64_t k) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += static_cast<int16_t>(w[i]) * x[i];
    return sum;
  }
};

}  // namespace portable_int8

const Int8Kernels& portable_int8_kernels() {
  static constexpr Int8Kernels table = portable_int8::int8_table<portable_int8::PortableInt8Engine>();
  return table;
}

}  // namespace moe::cpu
