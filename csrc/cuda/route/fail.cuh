// What nonfinite = kError does on a device.
#pragma once

#include <cassert>

namespace moe::cuda::routing {

// Ends the launch with cudaErrorAssert. Not assert(), which a release build leaves out.
__device__ inline void fail_on_nonfinite() {
  __assert_fail("router_logits of a token hold NaN, +inf or nothing but -inf", "moe_ext::route", 0,
                "nonfinite='error'");
}

}  // namespace moe::cuda::routing
