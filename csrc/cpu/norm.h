// Layer normalisation of rows: alone, of a sum, and for linears with 8-bit weights as such numbers at once.
//
// A row is read once and kept as floats; mean and variance are found one after the other, in one order for every row.
#pragma once

#include "kernels.h"
#include "product.h"
#include "quantize.h"

namespace altclip_fast {
namespace ISA {

constexpr int64_t CHAINS = 4;  // sums that are made at once: an addition takes several cycles
template <class Term>
inline float row_sum(int64_t padded, Term term) {
  Vector sums[CHAINS] = {};
  for (int64_t i = 0; i < padded; i += CHAINS * VL)
    for (int64_t c = 0; c < CHAINS; c++) sums[c] += term(i + c * VL);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// x + residual as they are rounded to T, zeros beyond the columns.
template <class T>
inline void take_row(const Norm& a, int64_t m, float* row, int64_t padded) {
  const T* x = (const T*)a.x + m * a.columns;
  const T* residual = a.residual ? (const T*)a.residual + m * a.columns : nullptr;
  T* total = a.total ? (T*)a.total + m * a.columns : nullptr;
  for (int64_t i = 0; i < padded; i += VL) {
    Vector v = vector_at(x, i, a.columns);
    if (residual) {
      T rounded[VL];
      store(rounded, v + vector_at(residual, i, a.columns));
      v = load(rounded);
      if (total && i < a.columns) store_most(total + i, v, a.columns - i);
    }
    *(Vector*)(row + i) = v;
  }
}

template <class T>
void normalize_range(const Norm& a, int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  const int64_t columns = a.columns, padded = whole(columns, CHAINS * VL);
  float* row = scratch.take(2 * padded);
  T* narrow_row = (T*)(row + padded);  // where only its 8-bit numbers are wanted
  for (int64_t m = begin; m < end; m++) {
    take_row<T>(a, m, row, padded);
    auto at = [&](int64_t i) { return *(Vector*)(row + i); };
    const float mean = row_sum(padded, at) / columns;
    for (int64_t i = columns; i < padded; i++) row[i] = mean;
    const float variance = row_sum(padded, [&](int64_t i) { return (at(i) - mean) * (at(i) - mean); }) / columns;
    const float inverse = 1.0 / __builtin_sqrt((double)variance + a.eps);
    T* out = a.values ? narrow_row : (T*)a.out + m * columns;
    for (int64_t i = 0; i < columns; i += VL) {
      const Vector weight = vector_at((const T*)a.weight, i, columns), bias = vector_at((const T*)a.bias, i, columns);
      const Vector y = (at(i) - mean) * inverse * weight + bias;
      store_most(out + i, y, columns - i);
    }
    if (a.values) quantize_row<T>(out, columns, a.values + m * columns, a.ranges + 2 * m);
  }
}

inline void normalize(const Norm& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::Float32: return normalize_range<float>(a, begin, end);
    case Dtype::BFloat16: return normalize_range<bfloat16>(a, begin, end);
    case Dtype::Float16: return normalize_range<float16>(a, begin, end);
  }
}

}  // namespace ISA
}  // namespace altclip_fast
