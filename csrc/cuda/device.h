// The device as the kernels see it; the host's tests put their own in its place.
#pragma once

#ifdef __CUDACC__
#include "ptx.h"
#else
#include "emulated.h"
#endif

#include "kernels.h"

namespace altclip_fast::cuda {

DEVICE LogSum together(LogSum x, LogSum y) {
  return together(x, y, [](float v) { return exp2_of(v); });
}
DEVICE LogSum shuffle_xor(LogSum x, int mask) { return {shuffle_xor(x.most, mask), shuffle_xor(x.sum, mask)}; }

template <class T>
struct alignas(2 * sizeof(T)) Two {
  T first, second;
};

}  // namespace altclip_fast::cuda
