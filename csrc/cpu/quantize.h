// Rows as 8-bit numbers.
#pragma once

#include "kernels.h"
#include "product.h"

namespace altclip_fast {
namespace ISA {

// The least and the largest of some numbers, lane by lane; `odd` is NaN where one is NaN or infinite.
struct Extent {
  Vector low, high, odd;

  void include(Vector v) {
    low = smaller(v, low);
    high = larger(v, high);
    odd += v - v;
  }
};

// Includes the first numbers of a row, and says how many.
template <class T>
inline int64_t include_first(Extent&, const T*, int64_t) { return 0; }

// As integers of 16 bits, which for one sign have the order of the bfloat16 that they are.
inline int64_t include_first(Extent& extent, const bfloat16* x, int64_t columns) {
  const int64_t full = columns / (2 * VL) * (2 * VL);
  if (full == 0) return 0;
  auto turned = [](Halves bits) { return bits ^ (bits >> 15 & 0x7fff); };  // its own inverse
  Halves low = turned(*(const LooseHalves*)x), high = low;
  for (int64_t i = 2 * VL; i < full; i += 2 * VL) {
    const Halves v = turned(*(const LooseHalves*)(x + i));
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  for (Halves found : {low, high}) {
    const Word pairs = (Word)turned(found);
    extent.include(bits_to_float(pairs << 16));
    extent.include(bits_to_float(pairs & 0xffff0000));
  }
  return full;
}

// The values of a row, and its step and low.
template <class T>
inline void quantize_row(const T* x, int64_t columns, uint8_t* values, float* range) {
  Extent extent = {all(to_float(x[0])), all(to_float(x[0])), all(0)};
  for (int64_t i = include_first(extent, x, columns); i < columns; i += VL) {
    const Vector v = vector_at(x, i, columns);
    if (i + VL <= columns) extent.include(v);
    else extent.include(count() < (float)(columns - i) ? v : all(to_float(x[0])));
  }
  const float bad = sum(extent.odd), low = -largest(-extent.low) + bad, width = largest(extent.high) - low;
  range[0] = width / 255.0f;
  range[1] = low;
  const float inverse = width > 0 ? 255.0f / width : 0.0f;
  auto number = [&](int64_t i) { return __builtin_convertvector(nearest((vector_at(x, i, columns) - low) * inverse), Bytes); };
  const int64_t full = columns / VL * VL;
  for (int64_t i = 0; i < full; i += VL) *(Bytes*)(values + i) = number(i);
  if (full == columns) return;
  const Bytes rest = number(full);
  __builtin_memcpy(values + full, &rest, columns - full);
}

template <class T>
inline void quantize_range(const Quantize& a, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; m++)
    quantize_row((const T*)a.x + m * a.row_stride, a.columns, a.values + m * a.columns, a.ranges + 2 * m);
}

inline void quantize(const Quantize& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::Float32: return quantize_range<float>(a, begin, end);
    case Dtype::BFloat16: return quantize_range<bfloat16>(a, begin, end);
    case Dtype::Float16: return quantize_range<float16>(a, begin, end);
  }
}

}  // namespace ISA
}  // namespace altclip_fast
