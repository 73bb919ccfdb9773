// The kernels that one instruction set provides, and what they take. Known to both sides: bindings.cpp, which
// checks the arguments and shares the work out among threads, and kernels.cpp, which is compiled once for each set.
#pragma once

#include <cstdint>

namespace altclip_fast {

enum class Dtype { Float32, BFloat16, Float16 };

// Packed rows of one operand of attention: element (row, head, column) is at data + row * row_stride + ...
struct Rows {
  const void* data;
  int64_t row, head, column;  // strides, in elements
};

// softmax(scale * q k^T) v for every sequence and head; see altclip_fast/ops/attention.py.
struct Attention {
  Rows q, k, v;
  void* out;  // [Tq, heads, value_dim], contiguous
  const int64_t* starts_q;  // [sequences + 1]
  const int64_t* starts_k;
  int64_t heads, dim, value_dim;
  float scale;
  bool causal;
  Dtype dtype;
};

// Rows as 8-bit numbers: x = low + step * value, with a low and a step for each row.
struct Quantize {
  const void* x;
  int64_t row_stride, columns;  // elements within a row are side by side
  uint8_t* values;  // [rows, columns], contiguous
  float* ranges;  // [rows, 2]: step, low
  Dtype dtype;
};

// layer_norm(x + residual), both [rows, columns], contiguous; see altclip_fast/ops/norm.py.
struct Norm {
  const void* x;
  const void* residual;  // or null
  void* total;  // [rows, columns], x + residual; not where that is null
  const void *weight, *bias;  // [columns]
  void* out;  // [rows, columns]; not where there are values
  uint8_t* values;  // the result as 8-bit numbers [rows, columns], or null
  float* ranges;  // of values: [rows, 2]
  int64_t columns;
  double eps;
  Dtype dtype;
};

enum class Activation : int64_t { None, QuickGelu, Gelu };

// activation(x weight^T + bias) + residual; see altclip_fast/ops/linear.py.
struct Linear {
  const void* x;  // rows of the dtype; or values, where the weight is of 8 bits
  int64_t row_stride;  // elements within a row are side by side
  const float* ranges;  // of values: [rows, 2]; else null, as the next two
  const float* sums;  // of each row of an 8-bit weight
  const float* scale;  // of each row of an 8-bit weight
  const void* packed;  // the weight as a right operand, see product.h
  const void* bias;  // or null
  const void* residual;  // or null
  void* out;  // [rows, columns], contiguous
  int64_t rows, depth, columns;  // depth in whole lanes of 32 bits
  Activation activation;
  Dtype dtype;  // of bias, residual, out; of x and the weight too, where these are not of 8 bits
};

// Rows of numbers: element (row, column) is at data + row * stride + column.
struct Table {
  const void* data;
  int64_t rows, stride;  // stride in elements
};

// The scores of some rows of a, packed, with rows of b; see altclip_fast/ops/contrastive.py.
struct Scores {
  const float* a;  // [rows, row_words]
  const float* a_factor;  // [rows], what the products of a row are multiplied by
  int64_t rows;
  Table b;
  int64_t dim;
  Dtype dtype;
  bool normalize;
};

// What one thread does: these panels of rows of b (`panel` each) with these blocks of rows of a (`block` each).
struct Part { int64_t panel_begin, panel_end, block_begin, block_end; };

// The k best scores of every row of a that a part has seen, as keys in a heap whose first is the worst. A key is larger
// for a larger score, among equals for the lower column; NaN is above all; 0 is an empty place.
struct Best {
  uint64_t* keys;  // [rows, k]
  float* least;  // [rows], a score that is not above this one is passed over
  int64_t k;
  bool round;  // to the dtype of the rows, before scores are compared
};

// The largest score, and the sum of 2^(score - largest), of every row and column, one column being matched by each row.
struct Sums {
  float *row_max, *row_sum;  // [rows]: of this part's columns
  float *column_max, *column_sum;  // [columns of b]: of all rows so far
  float* match;  // [rows]: the score of row r with column r + offset
  int64_t offset;
};

// What follows from g = 2^(score - row_max) / row_sum + 2^(score - column_max) / column_sum - (2 where they match).
struct Gradients {
  const float *row_max, *row_sum, *column_max, *column_sum;
  const float *panels, *factor;  // of the rows of a, see pack_columns
  float* rows;  // [dim in panels][block rows][panel]: g b of this part's columns
  float* columns;  // [rows of b, dim]: g^T a is added
  double* scale;  // the sum of g * score is added
  int64_t offset;
};

struct Kernels {
  const char* name;
  // Items begin..end of sequences x heads.
  void (*attention)(const Attention&, int64_t begin, int64_t end);
  // Rows begin..end.
  void (*quantize)(const Quantize&, int64_t begin, int64_t end);
  void (*normalize)(const Norm&, int64_t begin, int64_t end);
  // [columns, depth] lanes of 32 bits into a right operand of whole panels.
  void (*pack_weight)(const void* weight, int64_t columns, int64_t depth, void* packed);
  // Items begin..end of blocks of rows x panels of columns; `linear_items` of them.
  void (*linear)(const Linear&, int64_t begin, int64_t end);
  int64_t (*linear_items)(const Linear&);

  int64_t block, panel;  // rows of a, and of b, that are multiplied at once
  int64_t (*row_words)(Dtype, int64_t dim);  // float32 values that a packed row takes
  // Rows begin..end of x, packed; factor[i] = scale / |row|, or scale.
  void (*pack_rows)(const Table& x, int64_t dim, Dtype, float scale, bool normalize, float* words, float* factor,
                    int64_t begin, int64_t end);
  void (*write_scores)(const Scores&, void* out, int64_t stride, Dtype, const Part&);
  void (*keep_best)(const Scores&, const Best&, const Part&);
  void (*add_sums)(const Scores&, const Sums&, const Part&);
  // Rows begin..end of x, both multiples of 2, for a sum over rows: [dim in panels][rows][panel], in bfloat16 with two
  // rows side by side where it is multiplied so; zeros beyond the rows of x. factor[i] = 1 / |row|, or 1.
  void (*pack_columns)(const Table& x, int64_t dim, Dtype, bool normalize, float* panels, float* factor, int64_t rows,
                       int64_t begin, int64_t end);
  void (*add_gradients)(const Scores&, const Gradients&, const Part&);
  // Rows begin..end: softmax of float32 scores. `in` may be `out`.
  void (*softmax_rows)(const float* in, void* out, Dtype, int64_t columns, int64_t begin, int64_t end);
  void (*l2_normalize)(const Table& x, void* out, int64_t dim, Dtype, int64_t begin, int64_t end);
};

namespace avx512_bf16 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace portable { extern const Kernels kernels; }

}  // namespace altclip_fast
