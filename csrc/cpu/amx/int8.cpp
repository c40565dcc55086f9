// int8 products on AMX tiles; for very few rows, of which a tile would stay empty for the most part, on VNNI: four
// channels at a time, which lie side by side, are read from memory a little faster than thirty-two.
#define MOE_ISA amx_int8
#include "cpu/amx/int8_engine.h"
#include "cpu/avx512/int8_vnni.h"

namespace moe::cpu {

namespace amx_int8 {

using FewRows = Int8DotEngine<VnniVector>;
static constexpr int64_t kFewRows = FewRows::kRows;

static void run(const Int8Product& product, const Int8Job& job, const Int8Job* next, void* scratch) {
  if (job.rows <= kFewRows) {
    run_int8<FewRows>(product, job, next, scratch);
  } else {
    run_int8<AmxInt8Engine>(product, job, next, scratch);
  }
}

static int64_t scratch_bytes(int64_t rows, int64_t k) {
  return rows <= kFewRows ? int8_scratch_bytes<FewRows>(rows, k) : int8_scratch_bytes<AmxInt8Engine>(rows, k);
}

}  // namespace amx_int8

const Int8Kernels& amx_int8_kernels() {
  static constexpr Int8Kernels table = {amx_int8::quantize_rows, amx_int8::run, amx_int8::scratch_bytes};
  return table;
}

}  // namespace moe::cpu
