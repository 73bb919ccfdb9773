// Rows one by one, a warp each: norms, their application and its gradient. And the sums of the parts that tiles left.
#pragma once

#include "device.h"

namespace altclip_fast::cuda {

constexpr int ROWS_THREADS = 128;

DEVICE float sum_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// Calls each(column, x[column]) for the columns of this lane, from 16 bytes at a time where they lie so.
template <class T, class Each>
DEVICE void each_of_row(const Strided& x, int64_t row, Each each) {
  constexpr int WIDE = 16 / sizeof(T);
  struct alignas(16) Block {
    T x[WIDE];
  };
  const int lane = thread() % 32;
  const T* data = (const T*)x.data + row * x.row;
  int64_t column = 0;
  if (x.column == 1 && (uintptr_t)data % 16 == 0)
    for (; column + 32 * WIDE <= x.width; column += 32 * WIDE) {
      const Block block = *(const Block*)(data + column + lane * WIDE);
#pragma unroll
      for (int i = 0; i < WIDE; i++) each(column + lane * WIDE + i, to_float(block.x[i]));
    }
  for (column += lane; column < x.width; column += 32) each(column, to_float(data[column * x.column]));
}

template <class T>
DEVICE void normalize_body(const Strided& x, bool normalize, T* out, int64_t out_stride, float* inverse) {
  const int64_t row = (int64_t)block() * (ROWS_THREADS / 32) + thread() / 32;
  if (row >= x.rows) return;
  float squares = 0;
  if (normalize || inverse) each_of_row<T>(x, row, [&](int64_t, float value) { squares += value * value; });
  const float factor = inverse_norm(sum_of_warp(squares));
  if (inverse && thread() % 32 == 0) inverse[row] = factor;
  if (!out) return;
  T* to = out + row * out_stride;
  each_of_row<T>(x, row,
                 [&](int64_t column, float value) { to[column] = from_float<T>(normalize ? value * factor : value); });
  for (int64_t column = x.width + thread() % 32; column < out_stride; column += 32) to[column] = from_float<T>(0.0f);
}

// y = x / |x|:  dx = (g - y (y . g)) / |x|;  where |x| is held at 1e-12, the length has no gradient.
template <class T>
DEVICE void normalize_backward_body(const Strided& x, const float* grad, const float* factor, bool normalize, T* dx) {
  const int64_t row = (int64_t)block() * (ROWS_THREADS / 32) + thread() / 32;
  if (row >= x.rows) return;
  const float* g = grad + row * x.width;
  float squares = 0, along = 0;
  if (normalize)
    each_of_row<T>(x, row, [&](int64_t column, float value) {
      squares += value * value;
      along += value * g[column];
    });
  squares = sum_of_warp(squares);
  const float inverse = inverse_norm(squares);
  along = squares < SMALLEST ? 0.0f : sum_of_warp(along) * inverse * inverse;
  each_of_row<T>(x, row, [&](int64_t column, float value) {
    const float d = normalize ? inverse * (g[column] - value * along) : g[column];
    dx[row * x.width + column] = from_float<T>(d * *factor);
  });
}

constexpr int COMBINE_WARPS = 8, COMBINE_THREADS = COMBINE_WARPS * 32;

// [parts][n] -> most and sum of column i at out[i * step] and out[i * step + plane]: a lane a column; the warps share
// the parts out, in an order that depends on nothing else.
DEVICE void combine_body(const LogSum* partial, int64_t parts, int64_t n, float* out, int64_t step, int64_t plane) {
  LogSum(*shared)[32] = (LogSum(*)[32])shared_memory();
  const int lane = thread() % 32, warp = thread() / 32;
  const int64_t column = (int64_t)block() * 32 + lane;
  LogSum sum = no_log_sum();
  if (column < n)
    for (int64_t part = warp; part < parts; part += COMBINE_WARPS) sum = together(sum, partial[part * n + column]);
  shared[warp][lane] = sum;
  sync_block();
  if (warp > 0 || column >= n) return;
  for (int other = 1; other < COMBINE_WARPS; other++) sum = together(sum, shared[other][lane]);
  out[column * step] = sum.most;
  out[column * step + plane] = sum.sum;
}

}  // namespace altclip_fast::cuda
