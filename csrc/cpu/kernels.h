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

enum class Activation : int64_t { None, QuickGelu, Gelu };

// activation(x weight^T + bias) + residual, x and weight of 8-bit numbers.
struct Int8Linear {
  const uint8_t* values;
  const float* ranges;
  const void* packed;  // the weight as a right operand, see product.h
  const float* sums;  // of each row of the weight
  const float* scale;  // of each row of the weight
  const void* bias;  // or null
  const void* residual;  // or null
  void* out;  // [rows, columns], contiguous
  int64_t rows, depth, columns;  // depth in bytes, a multiple of 4
  Activation activation;
  Dtype dtype;  // of bias, residual, out
};

struct Kernels {
  const char* name;
  // Items begin..end of sequences x heads.
  void (*attention)(const Attention&, int64_t begin, int64_t end);
  // Rows begin..end.
  void (*quantize)(const Quantize&, int64_t begin, int64_t end);
  // [columns, depth] bytes into a right operand.
  void (*pack_int8)(const int8_t* weight, int64_t columns, int64_t depth, void* packed);
  // Items begin..end of blocks of rows x panels of columns; `int8_linear_items` of them.
  void (*int8_linear)(const Int8Linear&, int64_t begin, int64_t end);
  int64_t (*int8_linear_items)(const Int8Linear&);
};

namespace avx512_bf16 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace portable { extern const Kernels kernels; }

}  // namespace altclip_fast
