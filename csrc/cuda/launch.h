// Starting a kernel, and what the runtime says to it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace altclip_fast::cuda {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

inline cudaStream_t stream_of(const Device& device) { return static_cast<cudaStream_t>(device.stream); }

// As many blocks of threads as the device holds at once, or fewer if there are fewer items: each goes on to its next
// item.
template <class... Parameters, class... Arguments>
void start_persistent(void (*kernel)(Parameters...), int64_t items, int threads, int shared, const Device& device,
                      const Arguments&... arguments) {
  int resident = 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared));
  const int64_t most = (int64_t)resident * device.processors;
  kernel<<<std::min(items, most), threads, shared, stream_of(device)>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace altclip_fast::cuda
