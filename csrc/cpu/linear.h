// Linears of 8-bit numbers: rows quantised as they come, weights once.
//
//   x[m][k] = low[m] + step[m] * value[m][k],   w[n][k] = scale[n] * weight[n][k]
//   x w^T   = scale[n] * (step[m] * sum_k value[m][k] weight[n][k] + low[m] * sum_k weight[n][k])
//
// The first sum is exact in 32 bits, so a row has the same bits in any company.
#pragma once

#include "kernels.h"
#include "product.h"

namespace altclip_fast {
namespace ISA {

template <class T>
inline void quantize_row(const T* x, int64_t columns, uint8_t* values, float* range) {
  const View<T> row = {x, 0, 1, 1, columns};
  Vector low = all(to_float(x[0])), high = low, odd = all(0);  // odd: NaN where an element is NaN or infinite
  for (int64_t i = 0; i < columns; i += VL) {
    Vector v = row.vector(0, i);
    if (i + VL > columns) v = count() < (float)(columns - i) ? v : low;
    low = v < low ? v : low;
    high = larger(v, high);
    odd += v - v;
  }
  const float bad = sum(odd), least_x = -largest(-low) + bad, width = largest(high) - least_x;
  range[0] = width / 255.0f;
  range[1] = least_x;
  const float inverse = width > 0 ? 255.0f / width : 0.0f;
  for (int64_t i = 0; i < columns; i += VL) {
    const Bytes found = __builtin_convertvector(nearest((row.vector(0, i) - least_x) * inverse), Bytes);
    if (i + VL <= columns) *(Bytes*)(values + i) = found;
    else
      for (int64_t j = i; j < columns; j++) values[j] = found[j - i];
  }
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

// Four bytes are a lane like any other.
inline void pack_int8(const int8_t* weight, int64_t columns, int64_t depth, void* packed) {
  const View<float> lanes = {(const float*)weight, depth / 4, 1, columns, depth / 4};
  pack_transposed<Singles>(lanes, (float*)packed);
}

// 1 / (1 + e^-x)
inline Vector sigmoid(Vector x) {
  const Vector e = exp2((x < 0 ? x : -x) * 1.4426950408889634f);
  return (x < 0 ? e : all(1)) / (1 + e);
}

// 0.5 x (1 + erf(x / sqrt(2))), erf to 1.5e-7: Abramowitz and Stegun, 7.1.26.
inline Vector gelu(Vector x) {
  const Vector z = (x < 0 ? -x : x) * 0.7071067811865476f, t = 1 / (1 + 0.3275911f * z);
  Vector p = all(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector rest = 0.5f * p * t * exp2(z * z * -1.4426950408889634f);  // of the normal distribution beyond |x|
  return x * (x < 0 ? rest : 1 - rest);
}

inline Vector activate(Vector x, Activation activation) {
  switch (activation) {
    case Activation::QuickGelu: return x * sigmoid(1.702f * x);
    case Activation::Gelu: return gelu(x);
    default: return x;
  }
}

constexpr int64_t BLOCK = 32 * ROWS;  // rows, at most, that share a panel while it is in the L2

// Blocks of about one size: 257 rows are 132 and 125, not 192 and 65, of which two threads would take one each.
inline int64_t block_rows(const Int8Linear& a) {
  const int64_t blocks = over(a.rows, BLOCK);
  return blocks ? whole(over(a.rows, blocks), ROWS) : BLOCK;
}

inline int64_t int8_linear_items(const Int8Linear& a) { return over(a.rows, block_rows(a)) * over(a.columns, PANEL); }

template <class T>
void int8_linear_range(const Int8Linear& a, int64_t begin, int64_t end) {
  const int64_t panels = over(a.columns, PANEL), lanes = a.depth / 4, height = block_rows(a);
  const uint32_t* values = (const uint32_t*)a.values;
  static thread_local Scratch scratch;
  for (int64_t item = begin; item < end; item++) {
    const int64_t block = item / panels * height, column = item % panels * PANEL;
    const uint32_t* right = panel((const uint32_t*)a.packed, lanes, column);
    for (int64_t first = block; first < least(a.rows, block + height); first += ROWS) {
      const int64_t rows = least(ROWS, a.rows - first);
      const uint32_t* left = values + first * lanes;
      if (rows < ROWS) {
        left = (const uint32_t*)scratch.take(ROWS * lanes);
        __builtin_memcpy((void*)left, values + first * lanes, rows * a.depth);
      }
      tile_of<Quads>(vectors(a.columns, column), left, lanes, right, lanes, [&](int r, int c, Vector x) {
        const int64_t m = first + r, n = column + c * VL, count = a.columns - n;
        if (r >= rows) return;
        const float step = a.ranges[2 * m], low = a.ranges[2 * m + 1];
        const View<float> sums = {a.sums, 0, 1, 1, a.columns}, scale = {a.scale, 0, 1, 1, a.columns};
        Vector y = (x * step + low * sums.vector(0, n)) * scale.vector(0, n);
        if (a.bias) y += View<T>{(const T*)a.bias, 0, 1, 1, a.columns}.vector(0, n);
        y = activate(y, a.activation);
        if (a.residual) y += View<T>{(const T*)a.residual, a.columns, 1, a.rows, a.columns}.vector(m, n);
        T* place = (T*)a.out + m * a.columns + n;
        if (count >= VL) store(place, y);
        else store_some(place, y, count);
      });
    }
  }
}

inline void int8_linear(const Int8Linear& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::Float32: return int8_linear_range<float>(a, begin, end);
    case Dtype::BFloat16: return int8_linear_range<bfloat16>(a, begin, end);
    case Dtype::Float16: return int8_linear_range<float16>(a, begin, end);
  }
}

}  // namespace ISA
}  // namespace altclip_fast
