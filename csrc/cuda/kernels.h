// What bindings_cuda.cpp and the kernels know of each other. No CUDA and no torch in here.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace altclip_fast::cuda {

enum class Dtype { Float32, BFloat16, Float16 };

// Rows of `width` elements, each row contiguous; row i begins at data + i * stride elements, 16-byte aligned.
struct Matrix {
  const void* data;
  int64_t rows, width, stride;
  const float* inverse;  // [rows]: 1 / |row|, or null where rows are taken as they are
};

// scale * (*factor or 1) * normalize(a) @ normalize(b)^T
struct Scores {
  Matrix a, b;
  float scale;
  const float* factor;  // one number on the device, or null
  Dtype dtype;
  bool tf32;        // float32 products may be rounded to TF32
  bool find_norms;  // those of b's rows, in the same pass; where `finds_norms` says so
};

struct Device {
  void* stream;
  int processors, capability;  // 90 for sm_90
};

struct Plan {
  int64_t row_groups, parts;  // how many partial results a kernel leaves: of each column, and of each row
};

Device device(int index, void* stream);

// Whether a kernel of few rows finds the norms of b itself, so that b is read once.
bool finds_norms(int64_t rows, Dtype, const Device&);

// What the kernels below will leave. The parts of sums depend on b's rows alone: in float32 a row of a has the same
// bits in any batch. With `columns`, for log_sums of columns too and for contrastive_gradient.
Plan plan_of_sums(const Scores&, bool columns, const Device&);
Plan plan_of_candidates(const Scores&, const Device&);
int64_t candidate_slots(int64_t k);

// out [N, M] of the dtype. With statistics [2, N] (largest, sum; base 2): the softmax.
void similarity(const Scores&, const float* statistics, void* out, const Device&);
// The gradient of the two cross entropies by the scores, P + Q - 2 I, [N, M] of the dtype, for rows `first` on;
// along [row_groups, parts]: the sums of its products with the scores.
void contrastive_gradient(const Scores&, int64_t first, const float* by_row, int64_t row_plane, const float* by_column,
                          void* out, float* along, const Device&);
// by_row [parts, N, 2]; by_column [row_groups, M, 2] and diagonal [N] (of column first + i) or null. Base 2.
void log_sums(const Scores&, int64_t first, float* by_row, float* by_column, float* diagonal, const Device&);
// partial [parts, n, 2] -> largest and sum of i at out[i * step] and out[i * step + plane].
void combine_log_sums(const float* partial, int64_t parts, int64_t n, float* out, int64_t step, int64_t plane,
                      const Device&);
// candidates [N, parts, candidate_slots(k)], of which the first k are the best of each part, in order.
void candidates(const Scores&, int64_t k, int64_t* candidates, const Device&);
// -> values [N, k] of the dtype (or null) and indices [N, k].
void merge_candidates(const int64_t* candidates, int64_t n, int64_t parts, int64_t k, int64_t slots, void* values,
                      int64_t* indices, Dtype, const Device&);

// Rows with any strides: x[i, j] at data + i * row + j * column.
struct Strided {
  const void* data;
  int64_t rows, width, row, column;
  Dtype dtype;
};
// Any of these may be null: out [rows, out_stride] gets x / |x| (`normalize`) or x; inverse [rows] gets 1 / |x|.
void normalize_rows(const Strided& x, bool normalize, void* out, int64_t out_stride, float* inverse, const Device&);
// dx [rows, width] of x's dtype from grad [rows, width] float32, of the normalised rows, times *factor.
void normalize_rows_backward(const Strided& x, const float* grad, const float* factor, bool normalize, void* dx,
                             const Device&);

}  // namespace altclip_fast::cuda
