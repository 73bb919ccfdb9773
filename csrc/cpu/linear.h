// Linears: activation(x w^T + bias) + residual, the weight packed once as a right operand.
//
// Floats are multiplied as they are. An 8-bit weight meets rows that are quantised as they come:
//   x[m][k] = low[m] + step[m] * value[m][k],   w[n][k] = scale[n] * weight[n][k]
//   x w^T   = scale[n] * (step[m] * sum_k value[m][k] weight[n][k] + low[m] * sum_k weight[n][k])
//
// A sum is made in one order, whatever the other rows are: a row has the same bits in any company. Sums of 8-bit
// products are exact in 32 bits.
#pragma once

#include "kernels.h"
#include "product.h"

namespace altclip_fast {
namespace ISA {

// Lanes of 32 bits, whatever is in them.
inline void pack_weight(const void* weight, int64_t columns, int64_t depth, void* packed) {
  const View<float> lanes = {(const float*)weight, depth, 1, columns, depth};
  pack_transposed<Singles>(lanes, (float*)packed, whole(columns, PANEL));
}

// 1 / (1 + e^(-factor x))
template <class T>
inline Vector sigmoid(Vector x, float factor) {
  const Vector z = clamped(x * (factor * -1.4426950408889634f), -126, 126), n = rounded(z);
  return reciprocal<T>(1 + power<T>(n, z - n));
}

// 0.5 x (1 + erf(x / sqrt(2))), erf to 1.5e-7: Abramowitz and Stegun, 7.1.26.
template <class T>
inline Vector gelu(Vector x) {
  const Vector z = (x < 0 ? -x : x) * 0.7071067811865476f, t = reciprocal<T>(1 + 0.3275911f * z);
  Vector p = all(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector rest = 0.5f * p * t * exp2<T>(z * z * -1.4426950408889634f);  // of the normal distribution beyond |x|
  return x * (x < 0 ? rest : 1 - rest);
}

// To the accuracy that a T keeps.
template <Activation ACTIVATION, class T>
inline Vector activate(Vector x) {
  if constexpr (ACTIVATION == Activation::QuickGelu) return x * sigmoid<T>(x, 1.702f);
  if constexpr (ACTIVATION == Activation::Gelu) return gelu<T>(x);
  return x;
}

// Rows are taken in blocks of about one size, at most so many tiles: they share a panel while it is in the L2.
constexpr int64_t BLOCK = 32;
inline int64_t tiles(const Linear& a) { return over(a.rows, ROWS); }
inline int64_t blocks(const Linear& a) { return over(tiles(a), BLOCK); }
inline int64_t first_row(const Linear& a, int64_t block) {
  return least(tiles(a) * block / blocks(a) * ROWS, a.rows);
}
inline int64_t linear_items(const Linear& a) { return blocks(a) * over(a.columns, PANEL); }

// Where the sums of a tile are kept; those of a further part of the depth are added.
struct Keep {
  Vector* sums;
  bool add;
  void operator()(int r, int c, Vector x) const {
    Vector* place = sums + r * COLUMNS + c;
    *place = add ? *place + x : x;
  }
};

// The residual comes from memory while the products are made.
template <class T>
inline void fetch_residual(const Linear& a, int64_t row, int64_t rows, int64_t column) {
  if (!a.residual) return;
  const T* place = (const T*)a.residual + row * a.columns + column;
  for (int64_t r = 0; r < rows; r++, place += a.columns)
    for (int64_t n = 0; n < PANEL; n += 64 / sizeof(T)) __builtin_prefetch(place + n);
}

// The outputs of a tile of `rows` rows.
template <class F, class T, Activation ACTIVATION>
__attribute__((noinline)) void finish(const Linear& a, int64_t row, int64_t rows, int64_t column,
                                      const Vector* sums) {
  Vector bias[COLUMNS], scale[COLUMNS], low[COLUMNS];
#pragma GCC unroll 8
  for (int c = 0; c < COLUMNS; c++) {
    const int64_t n = column + c * VL;
    bias[c] = a.bias ? vector_at((const T*)a.bias, n, a.columns) : all(0);
    if (!F::QUANTIZED) continue;
    scale[c] = vector_at(a.scale, n, a.columns);
    low[c] = vector_at(a.sums, n, a.columns) * scale[c];
  }
  const int64_t columns = a.columns;
  T* out = (T*)a.out + row * columns + column;
  const T* residual = a.residual ? (const T*)a.residual + row * columns + column : nullptr;
  for (int64_t r = 0; r < rows; r++, sums += COLUMNS, out += columns) {
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; c++) {
      const int64_t left = columns - column - c * VL;
      Vector y = sums[c];
      if constexpr (F::QUANTIZED) y = y * scale[c] * a.ranges[2 * (row + r)] + (low[c] * a.ranges[2 * (row + r) + 1] + bias[c]);
      else y += bias[c];
      y = activate<ACTIVATION, T>(y);
      if (residual) y += vector_at(residual + r * columns + c * VL, 0, left);
      if (left > 0) store_most(out + c * VL, y, left);
    }
  }
}

// What one of so many tiles fetches of the next slab: at most a cache line a step.
inline Ahead share(const void* next, int64_t slab, int64_t tile, int64_t tiles) {
  const int64_t bytes = least(64, PANEL * sizeof(float) / tiles);
  return {(const char*)next + tile * slab * bytes, bytes};
}

template <class F, class T, Activation ACTIVATION>
void linear_range(const Linear& a, int64_t begin, int64_t end) {
  typedef typename F::Lane Lane;
  static thread_local Scratch scratch;
  Vector* sums = (Vector*)scratch.take(BLOCK * ROWS * PANEL);
  const int64_t panels = over(a.columns, PANEL), lanes = a.depth / F::PER_LANE, slab = least(lanes, F::SLAB);
  const int64_t stride = a.row_stride / F::PER_LANE;
  for (int64_t item = begin; item < end; item++) {
    const int64_t block = item / panels, column = item % panels * PANEL;
    const int64_t first = first_row(a, block), last = first_row(a, block + 1), count = over(last - first, ROWS);
    const Lane* right = panel((const Lane*)a.packed, lanes, column);
    const Lane* following = panel((const Lane*)a.packed, lanes, least(item + 1, end - 1) % panels * PANEL);
    for (int64_t i = 0; i < lanes; i += slab) {
      const Lane* next = i + slab < lanes ? right + (i + slab) * PANEL : following;
      for (int64_t tile = 0, row = first, rows; tile < count; tile++, row += rows) {
        rows = over(last - row, count - tile);  // about the same for all: few rows do not keep the registers busy
        const bool ready = i + slab >= lanes;
        Vector* place = sums + (slab < lanes ? (row - first) * COLUMNS : 0);
        if (ready) fetch_residual<T>(a, row, rows, column);
        const Lane* left = (const Lane*)a.x + row * stride + i;
        // The first tile waits for its own slab, from memory at worst.
        const Ahead ahead = tile ? share(next, slab, tile - 1, count - 1) : nothing(left);
        tile_rows<F>(rows, left, stride, 1, right + i * PANEL, least(slab, lanes - i), ahead, Keep{place, i > 0});
        if (ready) finish<F, T, ACTIVATION>(a, row, rows, column, place);
      }
    }
  }
}

template <class F, class T>
void linear_as(const Linear& a, int64_t begin, int64_t end) {
  switch (a.activation) {
    case Activation::None: return linear_range<F, T, Activation::None>(a, begin, end);
    case Activation::QuickGelu: return linear_range<F, T, Activation::QuickGelu>(a, begin, end);
    case Activation::Gelu: return linear_range<F, T, Activation::Gelu>(a, begin, end);
  }
}

inline void linear(const Linear& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::Float32: return (a.scale ? linear_as<Quads, float> : linear_as<Singles, float>)(a, begin, end);
#if defined(__AVX512BF16__)
    case Dtype::BFloat16: return (a.scale ? linear_as<Quads, bfloat16> : linear_as<Pairs, bfloat16>)(a, begin, end);
#else
    case Dtype::BFloat16: return linear_as<Quads, bfloat16>(a, begin, end);
#endif
    case Dtype::Float16: return linear_as<Quads, float16>(a, begin, end);
  }
}

}  // namespace ISA
}  // namespace altclip_fast
