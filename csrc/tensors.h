// What the implementations of the native ops share: tensors as the kernels read them, and the kernels of this processor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "cpu/kernels.h"

namespace altclip_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const Kernels& kernels();

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::Float32;
    case ScalarType::BFloat16: return Dtype::BFloat16;
    case ScalarType::Half: return Dtype::Float16;
    default: STD_TORCH_CHECK(false, "float32, bfloat16 or float16 is needed");
  }
}

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::Float32 ? 4 : 2; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline const void* data_of(const std::optional<Tensor>& x) { return x ? x->data_ptr() : nullptr; }

// int32 or int64.
inline std::vector<int64_t> integers(const Tensor& x) {
  std::vector<int64_t> found(x.size(0));
  const bool narrow = x.scalar_type() == ScalarType::Int;
  for (size_t i = 0; i < found.size(); i++)
    found[i] = narrow ? static_cast<const int32_t*>(x.data_ptr())[i * x.stride(0)]
                      : static_cast<const int64_t*>(x.data_ptr())[i * x.stride(0)];
  return found;
}

}  // namespace altclip_fast
