// The CUDA kernels as operators of torch, in a library of their own that only torch with CUDA loads. Through the stable
// ABI and without linking torch's CUDA libraries. Shapes, dtypes and devices were checked by the Python op.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <tuple>

#include "cuda/kernels.h"

namespace altclip_fast::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr float LOG2E = 1.4426950408889634f;
constexpr int64_t CHUNK = 8192;  // rows of a sweep of the loss: the partial sums of its columns take 1 KB a column

// Of libtorch_cuda, which is there already when this library is loaded.
void* current_stream(int device) {
  using Get = int32_t (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get && get(device, &stream) == 0, "torch gives no current CUDA stream");
  return stream;
}

// The device of a tensor, current as long as this lives.
struct On {
  torch::stable::accelerator::DeviceGuard guard;
  Device device;
  explicit On(const Tensor& x)
      : guard(x.get_device_index()), device(cuda::device(x.get_device_index(), current_stream(x.get_device_index()))) {}
};

Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::Float32;
    case ScalarType::BFloat16: return Dtype::BFloat16;
    case ScalarType::Half: return Dtype::Float16;
    default: STD_TORCH_CHECK(false, "float32, bfloat16 or float16 is needed");
  }
}

Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, std::vector<int64_t>(sizes), dtype);
}

float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

Strided strided(const Tensor& x) { return {x.data_ptr(), x.size(0), x.size(1), x.stride(0), x.stride(1), dtype_of(x)}; }

// A matrix as the kernels read it, and the memory that this takes.
struct Operand {
  Matrix matrix;
  Tensor packed, inverse;
};

// Rows that are not contiguous, or do not begin at 16 bytes, are copied; with `norms`, their inverse norms are found.
Operand operand(const Tensor& x, bool norms, const Device& device) {
  const int64_t rows = x.size(0), width = x.size(1), unit = 16 / x.element_size();
  const bool in_place = width > 0 && (x.stride(1) == 1 || width == 1) && x.stride(0) >= width &&
                        x.stride(0) % unit == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
  const int64_t padded = std::max<int64_t>(1, (width + unit - 1) / unit) * unit;
  Operand made = {{x.data_ptr(), rows, width, x.stride(0), nullptr}, x, x};
  if (!in_place) {
    made.packed = torch::stable::new_empty(x, {rows, padded});
    made.matrix = {made.packed.data_ptr(), rows, width ? width : padded, padded, nullptr};
  }
  if (norms) {
    made.inverse = empty(x, {rows}, ScalarType::Float);
    made.matrix.inverse = floats(made.inverse);
  }
  if (rows && (norms || !in_place))
    normalize_rows(strided(x), false, in_place ? nullptr : made.packed.mutable_data_ptr(), padded,
                   norms ? floats(made.inverse) : nullptr, device);
  return made;
}

struct Pair {
  Operand a, b;
  Scores scores;
};

Pair pair(const Tensor& a, const Tensor& b, double scale, const Tensor* factor, bool normalize, bool tf32, bool few,
          const Device& device) {
  const bool find_norms = few && normalize && finds_norms(a.size(0), dtype_of(a), device);
  Operand left = operand(a, normalize, device), right = operand(b, normalize && !find_norms, device);
  const Scores scores = {
      left.matrix, right.matrix, static_cast<float>(scale), factor ? floats(*factor) : nullptr, dtype_of(a),
      tf32,        find_norms};
  return {left, right, scores};
}

// Statistics [2, N] of the rows of softmax(scores).
void row_statistics(const Scores& s, const Tensor& like, float* out, const Device& device) {
  const int64_t n = s.a.rows;
  const Plan plan = plan_of_sums(s, false, device);
  const Tensor partial = empty(like, {plan.parts, n, 2}, ScalarType::Float);
  log_sums(s, 0, floats(partial), nullptr, nullptr, device);
  combine_log_sums(floats(partial), plan.parts, n, out, 1, n, device);
}

Tensor similarity_cuda(Tensor a, Tensor b, double scale, bool normalize, bool softmax, bool tf32) {
  const On on(a);
  Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(0)});
  if (a.size(0) == 0 || b.size(0) == 0) return out;
  const Pair p = pair(a, b, softmax ? scale * LOG2E : scale, nullptr, normalize, tf32, true, on.device);
  const Tensor statistics = empty(a, {2, softmax ? a.size(0) : 0}, ScalarType::Float);
  if (softmax) row_statistics(p.scores, a, floats(statistics), on.device);
  similarity(p.scores, softmax ? floats(statistics) : nullptr, out.mutable_data_ptr(), on.device);
  return out;
}

// The best k, in order; no values of argmax.
void best(const Tensor& a, const Tensor& b, int64_t k, double scale, bool normalize, bool tf32, void* values,
          Tensor& indices) {
  if (a.size(0) == 0) return;
  const On on(a);
  const Pair p = pair(a, b, scale, nullptr, normalize, tf32, true, on.device);
  const int64_t n = a.size(0), parts = plan_of_candidates(p.scores, on.device).parts, slots = candidate_slots(k);
  const Tensor found = empty(a, {n, parts, slots}, ScalarType::Long);
  int64_t* const at = static_cast<int64_t*>(found.mutable_data_ptr());
  candidates(p.scores, k, at, on.device);
  merge_candidates(at, n, parts, k, slots, values, static_cast<int64_t*>(indices.mutable_data_ptr()), dtype_of(a),
                   on.device);
}

std::tuple<Tensor, Tensor> similarity_topk_cuda(Tensor a, Tensor b, int64_t k, double scale, bool normalize,
                                                bool tf32) {
  Tensor values = torch::stable::new_empty(a, {a.size(0), k}), indices = empty(a, {a.size(0), k}, ScalarType::Long);
  best(a, b, k, scale, normalize, tf32, values.mutable_data_ptr(), indices);
  return {values, indices};
}

Tensor similarity_argmax_cuda(Tensor a, Tensor b, double scale, bool normalize, bool tf32) {
  Tensor indices = empty(a, {a.size(0)}, ScalarType::Long);
  best(a, b, 1, scale, normalize, tf32, nullptr, indices);
  return indices;
}

// Rows first .. first + count of a, whose norms are known.
Scores some_rows(Scores s, int64_t first, int64_t count) {
  const int64_t bytes = s.dtype == Dtype::Float32 ? 4 : 2;
  s.a.data = static_cast<const char*>(s.a.data) + first * s.a.stride * bytes;
  s.a.rows = count;
  if (s.a.inverse) s.a.inverse += first;
  return s;
}

// Of the scores of text (rows) with image (columns), times log2(e): largest and sum of the exponentials of rows [2, N]
// and of columns [2, N], and the diagonal [N].
std::tuple<Tensor, Tensor, Tensor> contrastive_statistics_cuda(Tensor text, Tensor image, Tensor factor, bool normalize,
                                                               bool tf32) {
  const On on(text);
  const int64_t n = text.size(0), chunks = (n + CHUNK - 1) / CHUNK;
  const Pair p = pair(text, image, LOG2E, &factor, normalize, tf32, false, on.device);
  const Tensor by_row = empty(text, {2, n}, ScalarType::Float), by_column = empty(text, {2, n}, ScalarType::Float);
  const Tensor diagonal = empty(text, {n}, ScalarType::Float);
  const Tensor of_chunks = empty(text, {chunks, n, 2}, ScalarType::Float);
  for (int64_t i = 0; i < chunks; i++) {
    const int64_t first = i * CHUNK, count = std::min(CHUNK, n - first);
    const Scores s = some_rows(p.scores, first, count);
    const Plan plan = plan_of_sums(s, true, on.device);
    const Tensor row_parts = empty(text, {plan.parts, count, 2}, ScalarType::Float);
    const Tensor column_parts = empty(text, {plan.row_groups, n, 2}, ScalarType::Float);
    log_sums(s, first, floats(row_parts), floats(column_parts), floats(diagonal) + first, on.device);
    combine_log_sums(floats(row_parts), plan.parts, count, floats(by_row) + first, 1, n, on.device);
    combine_log_sums(floats(column_parts), plan.row_groups, n, floats(of_chunks) + i * n * 2, 2, 1, on.device);
  }
  combine_log_sums(floats(of_chunks), chunks, n, floats(by_column), 1, n, on.device);
  return {by_row, by_column, diagonal};
}

// P + Q - 2 I of `count` rows from `first` on, and sums of its products with the scores times log2(e).
std::tuple<Tensor, Tensor> contrastive_gradient_cuda(Tensor text, Tensor image, Tensor factor, Tensor by_row,
                                                     Tensor by_column, int64_t first, int64_t count, bool normalize,
                                                     bool tf32) {
  const On on(text);
  const int64_t n = text.size(0);
  const Tensor rows = torch::stable::narrow(text, 0, first, count);
  const Pair p = pair(rows, image, LOG2E, &factor, normalize, tf32, false, on.device);
  const Plan plan = plan_of_sums(p.scores, true, on.device);
  Tensor out = torch::stable::new_empty(text, {count, n});
  Tensor along = empty(text, {plan.row_groups, plan.parts}, ScalarType::Float);
  contrastive_gradient(p.scores, first, floats(by_row) + first, n, floats(by_column), out.mutable_data_ptr(),
                       floats(along), on.device);
  return {out, along};
}

Tensor l2_normalize_cuda(Tensor x) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  if (x.size(0) == 0 || x.size(1) == 0) return out;
  const On on(x);
  normalize_rows(strided(x), true, out.mutable_data_ptr(), x.size(1), nullptr, on.device);
  return out;
}

Tensor l2_normalize_backward_cuda(Tensor grad, Tensor factor, Tensor x, bool normalize) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  if (x.size(0) == 0 || x.size(1) == 0) return out;
  const On on(x);
  normalize_rows_backward(strided(x), floats(grad), floats(factor), normalize, out.mutable_data_ptr(), on.device);
  return out;
}

}  // namespace
}  // namespace altclip_fast::cuda

// Matrices [rows, D]; `tf32`: float32 products may be of TF32 numbers; `factor` is a float32 number that scores are
// multiplied with.
STABLE_TORCH_LIBRARY_FRAGMENT(altclip_fast_native, m) {
  m.def("l2_normalize_cuda(Tensor x) -> Tensor");
  m.def("l2_normalize_backward_cuda(Tensor grad, Tensor factor, Tensor x, bool normalize) -> Tensor");
  m.def("similarity_cuda(Tensor a, Tensor b, float scale, bool normalize, bool softmax, bool tf32) -> Tensor");
  m.def("similarity_topk_cuda(Tensor a, Tensor b, int k, float scale, bool normalize, bool tf32) -> (Tensor, Tensor)");
  m.def("similarity_argmax_cuda(Tensor a, Tensor b, float scale, bool normalize, bool tf32) -> Tensor");
  m.def(
      "contrastive_statistics_cuda(Tensor text, Tensor image, Tensor factor, bool normalize, bool tf32) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "contrastive_gradient_cuda(Tensor text, Tensor image, Tensor factor, Tensor by_row, Tensor by_column, int first, "
      "int count, bool normalize, bool tf32) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CUDA, m) {
  using namespace altclip_fast::cuda;
  m.impl("l2_normalize_cuda", TORCH_BOX(&l2_normalize_cuda));
  m.impl("l2_normalize_backward_cuda", TORCH_BOX(&l2_normalize_backward_cuda));
  m.impl("similarity_cuda", TORCH_BOX(&similarity_cuda));
  m.impl("similarity_topk_cuda", TORCH_BOX(&similarity_topk_cuda));
  m.impl("similarity_argmax_cuda", TORCH_BOX(&similarity_argmax_cuda));
  m.impl("contrastive_statistics_cuda", TORCH_BOX(&contrastive_statistics_cuda));
  m.impl("contrastive_gradient_cuda", TORCH_BOX(&contrastive_gradient_cuda));
}
