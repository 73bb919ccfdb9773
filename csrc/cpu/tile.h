// Products of matrices by register tiles, and what their users share: memory of a thread, arithmetic of a word.
#pragma once

#include <stdlib.h>

#include "simd.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace altclip_fast {
namespace ISA {

constexpr int64_t WIDTH = COLUMNS * VL;  // columns of a register tile

inline int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Memory of one thread, kept between calls: aligned to a vector, and never shrunk.
struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  ~Scratch() { __builtin_free(data); }
  float* take(int64_t count) {
    if (count > size) {
      __builtin_free(data);
      data = (float*)aligned_alloc(64, whole(count * sizeof(float), 64));
      size = data ? count : 0;
    }
    return data;
  }
};

// How 32 bits of a row are multiplied: one element, as float32.
template <class T>
struct Single {
  typedef T Element;
  static constexpr int ELEMENTS = 1;
  static Vector words(const T* p) { return load(p); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
// Two bfloat16 side by side, as they lie in memory: twice the products of an instruction.
struct Pair {
  typedef bfloat16 Element;
  static constexpr int ELEMENTS = 2;
  static Vector words(const bfloat16* p) { return load((const float*)p); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// tile[r][c] = sum over i of a[r * a_row + i * a_step] * b[i * b_row + c], for R rows and COLUMNS vectors of b. A sum is
// made in the order of i whatever R is: a row has the same bits in any company.
template <class Unit, int R, class Finish>
inline void multiply(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row, int64_t depth,
                     Finish finish) {
  Vector tile[R][COLUMNS] = {};
  for (int64_t i = 0; i < depth; i++) {
    Vector right[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) right[c] = *(const Vector*)(b + i * b_row + c * VL);
    for (int r = 0; r < R; r++) {
      Vector left = all(a[r * a_row + i * a_step]);
      for (int c = 0; c < COLUMNS; c++) tile[r][c] = Unit::multiply_add(tile[r][c], left, right[c]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < COLUMNS; c++) finish(r, c, tile[r][c]);
}

// The same for `rows` rows, 1 to R, known when it runs.
template <class Unit, int R = ROWS, class Finish>
inline void multiply_some(int64_t rows, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_row,
                          int64_t depth, Finish finish) {
  if constexpr (R > 1)
    if (rows < R) return multiply_some<Unit, R - 1>(rows, a, a_row, a_step, b, b_row, depth, finish);
  multiply<Unit, R>(a, a_row, a_step, b, b_row, depth, finish);
}

}  // namespace ISA
}  // namespace altclip_fast
