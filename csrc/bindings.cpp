// The only place that knows torch: one schema and one implementation for each native op. Through torch's stable ABI, so
// that a library built once loads in this torch and in later ones. Shapes and dtypes were checked by the Python op.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

namespace altclip_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// weight [N, K], contiguous, rows of whole lanes of 32 bits; any dtype. In whole panels of columns.
Tensor pack_weight_cpu(Tensor weight) {
  const int64_t columns = weight.size(0), depth = weight.size(1), unit = kernels().panel;
  Tensor packed = torch::stable::new_empty(weight, {ceil_div(columns, unit) * unit * depth});
  kernels().pack_weight(weight.data_ptr(), columns, depth * weight.element_size() / 4, packed.mutable_data_ptr());
  return packed;
}

const void* data_of(const std::optional<Tensor>& x) { return x ? x->data_ptr() : nullptr; }

// A packed weight with N columns; of 8-bit numbers, with sums and scale [N]; and its bias [N]. All contiguous.
struct Layer {
  Tensor packed;
  int64_t columns;
  std::optional<Tensor> sums, scale, bias;
};

// activation(x w^T + bias) + residual, of one x and some layers, all of 8 bits or none; `like` is any tensor of the dtype.
void run_linears(const Tensor& like, const void* x, int64_t row_stride, int64_t rows, int64_t depth,
                 const std::vector<Layer>& layers, int64_t activation, const void* residual,
                 const std::vector<void*>& outs) {
  const Dtype dtype = dtype_of(like);
  const bool quantized = layers[0].scale.has_value();
  Tensor values, ranges;
  if (quantized) {
    values = torch::stable::new_empty(like, {rows, depth}, ScalarType::Byte);
    ranges = torch::stable::new_empty(like, {rows, 2}, ScalarType::Float);
    const Quantize rows_of_x = {x, row_stride, depth, (uint8_t*)values.mutable_data_ptr(),
                                (float*)ranges.mutable_data_ptr(), dtype};
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) { kernels().quantize(rows_of_x, begin, end); });
    x = values.data_ptr(), row_stride = depth;
  }
  std::vector<Linear> works;
  int64_t items = 0;
  for (size_t i = 0; i < layers.size(); i++) {
    const Layer& w = layers[i];
    works.push_back({x, row_stride, quantized ? (const float*)ranges.data_ptr() : nullptr, (const float*)data_of(w.sums),
                     (const float*)data_of(w.scale), w.packed.data_ptr(), data_of(w.bias), residual, outs[i], rows, depth,
                     w.columns, static_cast<Activation>(activation), dtype});
    items += kernels().linear_items(works[i]);
  }
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    for (const Linear& work : works) {
      const int64_t count = kernels().linear_items(work);
      kernels().linear(work, std::max<int64_t>(begin, 0), std::min(end, count));
      begin -= count, end -= count;
    }
  });
}

// x [M, K] with any stride of whole lanes between rows; residual [M, N], contiguous.
Tensor linear_cpu(Tensor x, Tensor packed, int64_t columns, std::optional<Tensor> sums, std::optional<Tensor> scale,
                  std::optional<Tensor> bias, int64_t activation, std::optional<Tensor> residual) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), columns});
  run_linears(x, x.data_ptr(), x.stride(0), x.size(0), x.size(1), {{packed, columns, sums, scale, bias}}, activation,
              data_of(residual), {out.mutable_data_ptr()});
  return out;
}

// The same three times, of one x.
std::tuple<Tensor, Tensor, Tensor> qkv_cpu(
    Tensor x, Tensor packed_q, int64_t columns_q, std::optional<Tensor> sums_q, std::optional<Tensor> scale_q,
    std::optional<Tensor> bias_q, Tensor packed_k, int64_t columns_k, std::optional<Tensor> sums_k,
    std::optional<Tensor> scale_k, std::optional<Tensor> bias_k, Tensor packed_v, int64_t columns_v,
    std::optional<Tensor> sums_v, std::optional<Tensor> scale_v, std::optional<Tensor> bias_v) {
  auto empty = [&](int64_t columns) { return torch::stable::new_empty(x, {x.size(0), columns}); };
  Tensor q = empty(columns_q), k = empty(columns_k), v = empty(columns_v);
  run_linears(x, x.data_ptr(), x.stride(0), x.size(0), x.size(1),
              {{packed_q, columns_q, sums_q, scale_q, bias_q},
               {packed_k, columns_k, sums_k, scale_k, bias_k},
               {packed_v, columns_v, sums_v, scale_v, bias_v}},
              0, nullptr, {q.mutable_data_ptr(), k.mutable_data_ptr(), v.mutable_data_ptr()});
  return {q, k, v};
}

constexpr int64_t MLP_ROWS = 512;  // at once: what lies between the two products stays in the L3

// The same twice, one after the other, the activation after the first.
Tensor mlp_cpu(Tensor x, Tensor packed1, int64_t columns1, std::optional<Tensor> sums1, std::optional<Tensor> scale1,
               std::optional<Tensor> bias1, int64_t activation, Tensor packed2, int64_t columns2,
               std::optional<Tensor> sums2, std::optional<Tensor> scale2, std::optional<Tensor> bias2,
               std::optional<Tensor> residual) {
  const Layer first = {packed1, columns1, sums1, scale1, bias1}, second = {packed2, columns2, sums2, scale2, bias2};
  const int64_t rows = x.size(0), size = x.element_size(), chunks = std::max<int64_t>(1, ceil_div(rows, MLP_ROWS));
  Tensor out = torch::stable::new_empty(x, {rows, columns2});
  Tensor hidden = torch::stable::new_empty(x, {ceil_div(rows, chunks), columns1});
  for (int64_t i = 0; i < chunks; i++) {
    const int64_t begin = rows * i / chunks, count = rows * (i + 1) / chunks - begin;
    auto at = [&](const void* data, int64_t stride) { return (char*)data + begin * stride * size; };
    run_linears(x, at(x.data_ptr(), x.stride(0)), x.stride(0), count, x.size(1), {first}, activation, nullptr,
                {hidden.mutable_data_ptr()});
    run_linears(x, hidden.data_ptr(), columns1, count, columns1, {second}, 0,
                residual ? at(residual->data_ptr(), columns2) : nullptr, {at(out.data_ptr(), columns2)});
  }
  return out;
}

Table table_of(const Tensor& x) { return {x.data_ptr(), x.size(0), x.stride(0)}; }

Tensor floats(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, std::vector<int64_t>(shape), ScalarType::Float);
}

float* data(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

// How the tiles of some rows with all rows of b are shared out. Few rows of b, as the labels of a classifier: each
// thread packs all of them, and takes some of the other rows; else each takes some rows of b.
std::vector<Part> shares(int64_t rows, int64_t b_rows, bool by_panels_only) {
  const int64_t blocks = ceil_div(rows, kernels().block), panels = ceil_div(b_rows, kernels().panel);
  const int64_t threads = torch::stable::get_num_threads();
  const bool by_panels = by_panels_only || panels >= std::min(threads, blocks);
  const int64_t units = by_panels ? panels : blocks, parts = std::max<int64_t>(1, std::min(threads, units));
  std::vector<Part> found;
  for (int64_t i = 0; i < parts; i++) {
    const int64_t begin = units * i / parts, end = units * (i + 1) / parts;
    found.push_back(by_panels ? Part{begin, end, 0, blocks} : Part{0, panels, begin, end});
  }
  return found;
}

template <class Each>
void in_parallel(const std::vector<Part>& parts, Each each) {
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) each(parts[i], i);
  });
}

// each(scores, first row) for the rows of a in chunks of about the same size, at most `limit`.
template <class Each>
void in_chunks(const Tensor& a, const Tensor& b, double scale, bool normalize, int64_t limit, Each each) {
  const int64_t rows = a.size(0), dim = a.size(1), block = kernels().block;
  if (rows == 0) return;
  const int64_t chunk = ceil_div(ceil_div(rows, ceil_div(rows, limit)), block) * block;
  const Dtype dtype = dtype_of(a);
  const Tensor words = floats(a, {std::min(chunk, rows) * kernels().row_words(dtype, dim)});
  const Tensor factor = floats(a, {std::min(chunk, rows)});
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t count = std::min(chunk, rows - first);
    const Table part = table_of(torch::stable::narrow(const_cast<Tensor&>(a), 0, first, count));
    torch::stable::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
      kernels().pack_rows(part, dim, dtype, scale, normalize, data(words), data(factor), begin, end);
    });
    each(Scores{data(words), data(factor), count, table_of(b), dim, dtype, normalize}, first);
  }
}

constexpr int64_t CHUNK = 2048;  // packed rows of a: 6 MB at 768 columns of float32, in the L3
constexpr int64_t SCORES = 16 << 20;  // bytes of scores that wait for their softmax
constexpr int64_t HEAPS = 64 << 20;  // bytes of the best so far
constexpr int64_t FEWEST = 48;  // rows of a chunk; b is packed anew for each

Tensor similarity_cpu(Tensor a, Tensor b, double scale, bool normalize) {
  const int64_t columns = b.size(0), size = a.element_size();
  Tensor out = torch::stable::new_empty(a, {a.size(0), columns});
  in_chunks(a, b, scale, normalize, CHUNK, [&](const Scores& scores, int64_t first) {
    char* place = static_cast<char*>(out.mutable_data_ptr()) + first * columns * size;
    in_parallel(shares(scores.rows, columns, false), [&](const Part& part, int64_t) {
      kernels().write_scores(scores, place, columns, scores.dtype, part);
    });
  });
  return out;
}

Tensor similarity_softmax_cpu(Tensor a, Tensor b, double scale, bool normalize) {
  const int64_t columns = b.size(0), size = a.element_size();
  Tensor out = torch::stable::new_empty(a, {a.size(0), columns});
  const int64_t limit = std::clamp(SCORES / 4 / std::max<int64_t>(1, columns), FEWEST, CHUNK);
  const bool narrow = a.scalar_type() != ScalarType::Float;
  const Tensor wide = floats(a, {narrow ? std::min(a.size(0), limit + kernels().block) * columns : 0});
  in_chunks(a, b, scale, normalize, limit, [&](const Scores& scores, int64_t first) {
    char* place = static_cast<char*>(out.mutable_data_ptr()) + first * columns * size;
    float* held = narrow ? data(wide) : reinterpret_cast<float*>(place);
    in_parallel(shares(scores.rows, columns, false), [&](const Part& part, int64_t) {
      kernels().write_scores(scores, held, columns, Dtype::Float32, part);
    });
    torch::stable::parallel_for(0, scores.rows, 1 + 4096 / std::max<int64_t>(1, columns), [&](int64_t begin, int64_t end) {
      kernels().softmax_rows(held, place, scores.dtype, columns, begin, end);
    });
  });
  return out;
}

float score_of(uint64_t key) {
  const uint32_t order = key >> 32;
  if (order == 0xffffffffu) return std::numeric_limits<float>::quiet_NaN();
  const uint32_t bits = order >> 31 ? order & 0x7fffffffu : ~order;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

// Values in the dtype of the rows, or in float32 where `wide`: then the order is that of the scores before rounding.
std::tuple<Tensor, Tensor> similarity_topk_cpu(Tensor a, Tensor b, int64_t k, double scale, bool normalize, bool wide) {
  const int64_t rows = a.size(0), columns = b.size(0), threads = torch::stable::get_num_threads();
  Tensor values = floats(a, {rows, k});
  Tensor indices = torch::stable::new_empty(a, {rows, k}, ScalarType::Long);
  const int64_t limit = std::clamp(HEAPS / 8 / (threads * k), FEWEST, CHUNK), most = std::min(rows, limit + kernels().block);
  const Tensor keys = torch::stable::new_empty(a, {threads * most * k}, ScalarType::Long);
  const Tensor least = floats(a, {threads * most});
  uint64_t* heaps = static_cast<uint64_t*>(keys.mutable_data_ptr());
  in_chunks(a, b, scale, normalize, limit, [&](const Scores& scores, int64_t first) {
    const std::vector<Part> parts = shares(scores.rows, columns, false);
    in_parallel(parts, [&](const Part& part, int64_t i) {
      kernels().keep_best(scores, {heaps + i * most * k, data(least) + i * most, k, !wide}, part);
    });
    torch::stable::parallel_for(0, scores.rows, 16, [&](int64_t begin, int64_t end) {
      std::vector<uint64_t> found;
      for (int64_t row = begin; row < end; row++) {
        found.clear();
        for (size_t i = 0; i < parts.size(); i++) {
          if (row < parts[i].block_begin * kernels().block || row >= parts[i].block_end * kernels().block) continue;
          const uint64_t* heap = heaps + (i * most + row) * k;
          found.insert(found.end(), heap, heap + k);
        }
        std::partial_sort(found.begin(), found.begin() + k, found.end(), std::greater<uint64_t>());
        for (int64_t j = 0; j < k; j++) {
          data(values)[(first + row) * k + j] = score_of(found[j]);
          static_cast<int64_t*>(indices.mutable_data_ptr())[(first + row) * k + j] = ~static_cast<uint32_t>(found[j]);
        }
      }
    });
  });
  return {wide ? values : torch::stable::to(values, a.scalar_type()), indices};
}

void merge(float& most, float& total, float other_most, float other_total) {
  const float top = std::max(most, other_most);
  total = total * std::exp2(most - top) + other_total * std::exp2(other_most - top);
  most = top;
}

constexpr float LOG2E = 1.4426950408889634f;

// For row r of a that matches row r + offset of b, with s = log2(e) * scale * score: the largest s and the sum of
// 2^(s - largest) over columns [2, rows] and over rows [2, columns], and s of the matches, unset where there is none.
std::tuple<Tensor, Tensor, Tensor> contrastive_sums_cpu(Tensor a, Tensor b, double scale, bool normalize, int64_t offset) {
  const int64_t rows = a.size(0), columns = b.size(0), threads = torch::stable::get_num_threads();
  Tensor of_rows = floats(a, {2, rows}), of_columns = floats(a, {2, columns}), match = floats(a, {rows});
  const int64_t most = std::min(rows, CHUNK + kernels().block);
  const Tensor row_max = floats(a, {threads * most}), row_sum = floats(a, {threads * most});
  float *column_max = data(of_columns), *column_sum = column_max + columns;
  std::fill_n(column_max, columns, -std::numeric_limits<float>::infinity());
  std::fill_n(column_sum, columns, 0.0f);
  in_chunks(a, b, scale * LOG2E, normalize, CHUNK, [&](const Scores& scores, int64_t first) {
    const std::vector<Part> parts = shares(scores.rows, columns, true);
    in_parallel(parts, [&](const Part& part, int64_t i) {
      kernels().add_sums(scores, {data(row_max) + i * most, data(row_sum) + i * most, column_max, column_sum,
                                  data(match) + first, first + offset}, part);
    });
    for (int64_t r = 0; r < scores.rows; r++) {
      float top = data(row_max)[r], total = data(row_sum)[r];
      for (size_t i = 1; i < parts.size(); i++)
        merge(top, total, data(row_max)[i * most + r], data(row_sum)[i * most + r]);
      data(of_rows)[first + r] = top;
      data(of_rows)[rows + first + r] = total;
    }
  });
  return {of_rows, of_columns, match};
}

constexpr int64_t GRADIENT_CHUNK = 252;

// g b and g^T a of rows of length 1 (or as they are), in float32, and the sum of g * s, with s as above and g the sum of
// 2^s over its sum of the row and of the column, less 2 where row r of a meets row r + offset of b.
std::tuple<Tensor, Tensor, Tensor> contrastive_gradients_cpu(Tensor a, Tensor b, Tensor of_rows, Tensor of_columns,
                                                             double scale, bool normalize, int64_t offset) {
  const int64_t rows = a.size(0), columns = b.size(0), dim = a.size(1), threads = torch::stable::get_num_threads();
  Tensor for_a = floats(a, {rows, dim}), for_b = torch::stable::new_zeros(a, {columns, dim}, ScalarType::Float);
  Tensor for_scale = floats(a, {1});
  const int64_t panel = kernels().panel, width = ceil_div(dim, panel) * panel;
  const int64_t most = GRADIENT_CHUNK + kernels().block;
  const Tensor packed = floats(a, {most * width}), partial = floats(a, {threads * most * width});
  const Tensor factor = floats(a, {most});
  std::vector<double> scales(threads, 0.0);
  in_chunks(a, b, scale * LOG2E, normalize, GRADIENT_CHUNK, [&](const Scores& scores, int64_t first) {
    const int64_t block = kernels().block, blocks = ceil_div(scores.rows, block), padded = blocks * block;
    const Table chunk = table_of(torch::stable::narrow(a, 0, first, scores.rows));
    torch::stable::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
      kernels().pack_columns(chunk, dim, scores.dtype, normalize, data(packed), data(factor), padded, begin * block,
                             end * block);
    });
    const std::vector<Part> parts = shares(scores.rows, columns, true);
    in_parallel(parts, [&](const Part& part, int64_t i) {
      kernels().add_gradients(scores, {data(of_rows) + first, data(of_rows) + rows + first, data(of_columns),
                                       data(of_columns) + columns, data(packed),
                                       data(factor), data(partial) + i * most * width, data(for_b), &scales[i], first + offset}, part);
    });
    torch::stable::parallel_for(0, scores.rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        for (int64_t d = 0; d < dim; d++) {
          float total = 0;
          for (size_t i = 0; i < parts.size(); i++)
            total += data(partial)[i * most * width + (d / panel * padded + r) * panel + d % panel];
          data(for_a)[(first + r) * dim + d] = total;
        }
    });
  });
  double total = 0;
  for (double one : scales) total += one;
  *data(for_scale) = total;
  return {for_a, for_b, for_scale};
}

Tensor l2_normalize_cpu(Tensor x) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  const Table rows = table_of(x);
  torch::stable::parallel_for(0, rows.rows, 1 + 16384 / std::max<int64_t>(1, x.size(1)), [&](int64_t begin, int64_t end) {
    kernels().l2_normalize(rows, out.mutable_data_ptr(), x.size(1), dtype_of(x), begin, end);
  });
  return out;
}

}  // namespace
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

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CPU, m) {
  m.impl("attention_cpu", TORCH_BOX(&altclip_fast::attention_cpu));
  m.impl("pack_weight_cpu", TORCH_BOX(&altclip_fast::pack_weight_cpu));
  m.impl("linear_cpu", TORCH_BOX(&altclip_fast::linear_cpu));
  m.impl("mlp_cpu", TORCH_BOX(&altclip_fast::mlp_cpu));
  m.impl("qkv_cpu", TORCH_BOX(&altclip_fast::qkv_cpu));
  m.impl("l2_normalize_cpu", TORCH_BOX(&altclip_fast::l2_normalize_cpu));
  m.impl("similarity_cpu", TORCH_BOX(&altclip_fast::similarity_cpu));
  m.impl("similarity_softmax_cpu", TORCH_BOX(&altclip_fast::similarity_softmax_cpu));
  m.impl("similarity_topk_cpu", TORCH_BOX(&altclip_fast::similarity_topk_cpu));
  m.impl("contrastive_sums_cpu", TORCH_BOX(&altclip_fast::contrastive_sums_cpu));
  m.impl("contrastive_gradients_cpu", TORCH_BOX(&altclip_fast::contrastive_gradients_cpu));
}
