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

struct Kernels {
  const char* name;
  // Items begin..end of sequences x heads.
  void (*attention)(const Attention&, int64_t begin, int64_t end);
};

namespace avx512_bf16 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace portable { extern const Kernels kernels; }

}  // namespace altclip_fast
