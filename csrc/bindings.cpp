// The native ops, each with its schema; encoder.cpp and similarity.cpp implement them. Through torch's stable ABI, so
// that a library built once loads in this torch and in later ones. Shapes and dtypes were checked by the Python op.
#include <cstdlib>
#include <string>

#include "tensors.h"

namespace altclip_fast {
namespace {

// The best set that this processor has, or a lesser one that ATEN_CPU_CAPABILITY (avx512, avx2, default) asks torch for.
const Kernels& choose() {
  const char* asked = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string most = asked ? asked : "";
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (most != "default" && most != "avx2" && has_avx512)
    return most != "avx512" && has_bf16 ? avx512_bf16::kernels : avx512::kernels;
  if (most != "default" && has_avx2) return avx2::kernels;
#endif
  return portable::kernels;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::string cpu_capability() { return kernels().name; }

}  // namespace altclip_fast

STABLE_TORCH_LIBRARY(altclip_fast_native, m) {
  m.def("cpu_capability() -> str");
  m.def(
      "attention_cpu(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, bool causal, float scale) "
      "-> Tensor");
  m.def("pack_weight_cpu(Tensor weight) -> Tensor");
  m.def(
      "linear_cpu(Tensor x, Tensor packed, int columns, Tensor? sums, Tensor? scale, Tensor? bias, int activation, "
      "Tensor? residual) -> Tensor");
  m.def(
      "mlp_cpu(Tensor x, Tensor packed1, int columns1, Tensor? sums1, Tensor? scale1, Tensor? bias1, int activation, "
      "Tensor packed2, int columns2, Tensor? sums2, Tensor? scale2, Tensor? bias2, Tensor? residual) -> Tensor");
  m.def(
      "qkv_cpu(Tensor x, Tensor packed_q, int columns_q, Tensor? sums_q, Tensor? scale_q, Tensor? bias_q, "
      "Tensor packed_k, int columns_k, Tensor? sums_k, Tensor? scale_k, Tensor? bias_k, "
      "Tensor packed_v, int columns_v, Tensor? sums_v, Tensor? scale_v, Tensor? bias_v) -> (Tensor, Tensor, Tensor)");
  m.def("layer_norm_cpu(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def(
      "add_layer_norm_cpu(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)");
  m.def(
      "layers_cpu(Tensor x, Tensor cu_seqlens, Tensor? select, Tensor[] parts, float[] eps, bool causal, "
      "int intermediate, int heads, float scale, bool pre_norm, bool quantized, int activation) -> Tensor");
  m.def("l2_normalize_cpu(Tensor x) -> Tensor");
  m.def("similarity_cpu(Tensor a, Tensor b, float scale, bool normalize) -> Tensor");
  m.def("similarity_softmax_cpu(Tensor a, Tensor b, float scale, bool normalize) -> Tensor");
  m.def(
      "similarity_topk_cpu(Tensor a, Tensor b, int k, float scale, bool normalize, bool wide) -> (Tensor, Tensor)");
  m.def(
      "contrastive_sums_cpu(Tensor a, Tensor b, float scale, bool normalize, int offset) -> (Tensor, Tensor, Tensor)");
  m.def(
      "contrastive_gradients_cpu(Tensor a, Tensor b, Tensor of_rows, Tensor of_columns, float scale, bool normalize, "
      "int offset) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&altclip_fast::cpu_capability));
}
