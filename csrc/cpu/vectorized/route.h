// Both directions of route.
#pragma once

#include "cpu/vectorized/route_backward.h"
#include "cpu/vectorized/route_forward.h"
