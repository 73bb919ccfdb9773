// The only place that knows torch: one schema and one implementation for each native op. Through torch's stable ABI, so
// that a library built once loads in this torch and in later ones. Shapes and dtypes were checked by the Python op.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

namespace altclip_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The best set that this processor has, or a lesser one that ATEN_CPU_CAPABILITY (avx2, default) asks torch for.
const Kernels& choose() {
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string most = asked ? asked : "avx512";
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (most != "default" && most != "avx2" && has_avx512) return has_bf16 ? avx512_bf16::kernels : avx512::kernels;
  if (most != "default" && has_avx2) return avx2::kernels;
#endif
  return portable::kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::string cpu_capability() { return kernels().name; }

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::Float32;
    case ScalarType::BFloat16: return Dtype::BFloat16;
    case ScalarType::Half: return Dtype::Float16;
    default: STD_TORCH_CHECK(false, "float32, bfloat16 or float16 is needed");
  }
}

Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

std::vector<int64_t> starts(const Tensor& cu_seqlens, int64_t rows) {
  std::vector<int64_t> found(cu_seqlens.size(0));
  const int64_t step = cu_seqlens.stride(0);
  for (size_t i = 0; i < found.size(); i++) {
    found[i] = cu_seqlens.scalar_type() == ScalarType::Int
                   ? static_cast<const int32_t*>(cu_seqlens.data_ptr())[i * step]
                   : static_cast<const int64_t*>(cu_seqlens.data_ptr())[i * step];
    STD_TORCH_CHECK(found[i] >= (i ? found[i - 1] : 0) && found[i] <= rows, "cu_seqlens must rise from 0 to ", rows);
  }
  STD_TORCH_CHECK(found.front() == 0 && found.back() == rows, "cu_seqlens must rise from 0 to ", rows);
  return found;
}

Tensor attention_cpu(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, bool causal,
                     double scale) {
  const int64_t heads = q.size(1);
  Tensor out = torch::stable::new_empty(q, {q.size(0), heads, v.size(2)});
  const auto starts_q = starts(cu_seqlens_q, q.size(0)), starts_k = starts(cu_seqlens_k, k.size(0));
  const Attention work = {rows_of(q), rows_of(k),     rows_of(v), out.mutable_data_ptr(), starts_q.data(),
                          starts_k.data(), heads, q.size(2), v.size(2), static_cast<float>(scale), causal, dtype_of(q)};
  const int64_t items = (cu_seqlens_q.size(0) - 1) * heads;
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernels().attention(work, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> quantize_cpu(Tensor x) {
  const int64_t rows = x.size(0), columns = x.size(1);
  Tensor values = torch::stable::new_empty(x, {rows, columns}, ScalarType::Byte);
  Tensor ranges = torch::stable::new_empty(x, {rows, 2}, ScalarType::Float);
  const Quantize work = {x.data_ptr(), x.stride(0), columns, (uint8_t*)values.mutable_data_ptr(),
                         (float*)ranges.mutable_data_ptr(), dtype_of(x)};
  torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) { kernels().quantize(work, begin, end); });
  return {values, ranges};
}

// weight [N, K] of 8 bits, contiguous, K a multiple of 4; panels are whole vectors wide.
Tensor pack_int8_cpu(Tensor weight) {
  const int64_t columns = weight.size(0), depth = weight.size(1), unit = 64;
  Tensor packed = torch::stable::new_empty(weight, {(columns + unit - 1) / unit * unit * depth});
  kernels().pack_int8((const int8_t*)weight.data_ptr(), columns, depth, packed.mutable_data_ptr());
  return packed;
}

const void* data_of(const std::optional<Tensor>& x) { return x ? x->data_ptr() : nullptr; }

// values [M, K], ranges [M, 2], packed, sums [N], scale [N], bias [N], residual [M, N]: all contiguous; `out` too.
void int8_linear_cpu(Tensor values, Tensor ranges, Tensor packed, Tensor sums, Tensor scale, std::optional<Tensor> bias,
                     int64_t activation, std::optional<Tensor> residual, Tensor out) {
  const Int8Linear work = {(const uint8_t*)values.data_ptr(), (const float*)ranges.data_ptr(), packed.data_ptr(),
                           (const float*)sums.data_ptr(), (const float*)scale.data_ptr(), data_of(bias),
                           data_of(residual), out.mutable_data_ptr(), values.size(0), values.size(1), out.size(1),
                           static_cast<Activation>(activation), dtype_of(out)};
  const int64_t items = kernels().int8_linear_items(work);
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernels().int8_linear(work, begin, end); });
}

}  // namespace
}  // namespace altclip_fast

STABLE_TORCH_LIBRARY(altclip_fast_native, m) {
  m.def("cpu_capability() -> str");
  m.def(
      "attention_cpu(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, bool causal, float scale) "
      "-> Tensor");
  m.def("quantize_cpu(Tensor x) -> (Tensor, Tensor)");
  m.def("pack_int8_cpu(Tensor weight) -> Tensor");
  m.def(
      "int8_linear_cpu(Tensor values, Tensor ranges, Tensor packed, Tensor sums, Tensor scale, Tensor? bias, "
      "int activation, Tensor? residual, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&altclip_fast::cpu_capability));
}

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CPU, m) {
  m.impl("attention_cpu", TORCH_BOX(&altclip_fast::attention_cpu));
  m.impl("quantize_cpu", TORCH_BOX(&altclip_fast::quantize_cpu));
  m.impl("pack_int8_cpu", TORCH_BOX(&altclip_fast::pack_int8_cpu));
  m.impl("int8_linear_cpu", TORCH_BOX(&altclip_fast::int8_linear_cpu));
}
