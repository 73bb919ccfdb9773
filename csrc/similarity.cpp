// The ops over scores on the CPU: similarities, the best of them, and the contrastive loss.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <tuple>

#include "tensors.h"

namespace altclip_fast {
namespace {

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

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CPU, m) {
  m.impl("l2_normalize_cpu", TORCH_BOX(&altclip_fast::l2_normalize_cpu));
  m.impl("similarity_cpu", TORCH_BOX(&altclip_fast::similarity_cpu));
  m.impl("similarity_softmax_cpu", TORCH_BOX(&altclip_fast::similarity_softmax_cpu));
  m.impl("similarity_topk_cpu", TORCH_BOX(&altclip_fast::similarity_topk_cpu));
  m.impl("contrastive_sums_cpu", TORCH_BOX(&altclip_fast::contrastive_sums_cpu));
  m.impl("contrastive_gradients_cpu", TORCH_BOX(&altclip_fast::contrastive_gradients_cpu));
}
