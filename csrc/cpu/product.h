// Products of matrices out of packed operands: what attention and linears spend their time on.
//
// The depth of a product lies in lanes of 32 bits: one float, two bfloat16 or four 8-bit integers, whose products a
// processor with AVX-512-BF16 or AVX-512-VNNI adds at once.
// A linear sums SLAB lanes of the depth at a time, so that they are in the L2, and their sums: 64 x 512 x 4 = 131 KB.
// The left operand is rows of lanes. The right one is panels of up to COLUMNS vectors, each [depth][columns], one after
// another, so that it is read from front to back.
#pragma once

#include <stdlib.h>

#include "simd.h"

namespace altclip_fast {
namespace ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t over(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
inline int64_t whole(int64_t n, int64_t unit) { return over(n, unit) * unit; }

// Memory of one thread, kept between calls: aligned to a vector, and never shrunk. In lanes of 32 bits.
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

// A matrix in memory; beyond its rows and columns there are zeros.
template <class T>
struct View {
  const T* data;
  int64_t row_stride, column_stride, rows, columns;

  // N elements of a row, where they lie or in `copy`.
  template <int N>
  const T* at(int64_t row, int64_t column, T (&copy)[N]) const {
    const T* p = data + row * row_stride + column * column_stride;
    const int64_t count = row < rows ? columns - column : 0;
    if (column_stride == 1 && count >= N) return p;
    for (int64_t i = 0; i < N; i++) copy[i] = i < count ? p[i * column_stride] : T{};
    return copy;
  }
  Vector vector(int64_t row, int64_t column) const {
    T copy[VL];
    return load(at(row, column, copy));
  }
};

template <class T>
__attribute__((noinline)) Vector beyond(const T* row, int64_t column, int64_t columns) {
  return View<T>{row, 0, 1, 1, columns}.vector(0, column);
}
// Of a row of so many columns; beyond them there are zeros.
template <class T>
inline Vector vector_at(const T* row, int64_t column, int64_t columns) {
  return column + VL <= columns ? load(row + column) : beyond(row, column, columns);
}

struct Singles {
  static constexpr int PER_LANE = 1;
  static constexpr bool QUANTIZED = false;
  typedef float Element;
  typedef float Lane;
  typedef Vector Lanes;
  typedef FloatTotal Total;
  static constexpr int64_t SLAB = 512;
  static constexpr int AHEAD = 0;

  static Total add(Total total, Lane left, Lanes right) { return add_product(total, all(left), right); }

  // Lanes whose depth runs along a row, from `step` on.
  template <class T>
  static Lanes along(const View<T>& x, int64_t row, int64_t step) {
    return x.vector(row, step);
  }
  // Lanes whose depth runs down the rows, of the columns from `column` on.
  template <class T>
  static Lanes down(const View<T>& x, int64_t step, int64_t column) {
    return x.vector(step, column);
  }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static constexpr int PER_LANE = 2;
  static constexpr bool QUANTIZED = false;
  typedef bfloat16 Element;
  typedef uint32_t Lane;
  typedef Word Lanes;
  typedef Vector Total;
  static constexpr int64_t SLAB = 512;
  static constexpr int AHEAD = 0;

  static Total add(Total total, Lane left, Lanes right) {
    return (Total)_mm512_dpbf16_ps((__m512)total, (__m512bh)(Lanes{} + left), (__m512bh)right);
  }
  static Lanes along(const View<bfloat16>& x, int64_t row, int64_t step) {
    bfloat16 copy[2 * VL];
    return *(const LooseWord*)x.at(row, 2 * step, copy);
  }
  static Lanes down(const View<bfloat16>& x, int64_t step, int64_t column) {
    return ((Word)x.vector(2 * step, column) >> 16) | (Word)x.vector(2 * step + 1, column);
  }
};
#endif

// Four unsigned numbers on the left, four signed ones on the right.
struct Quads {
  static constexpr int PER_LANE = 4;
  static constexpr bool QUANTIZED = true;
  typedef uint32_t Lane;
  typedef Word Lanes;
  typedef Int Total;
  static constexpr int64_t SLAB = 1 << 20;  // one sum: it is exact
  static constexpr int AHEAD = 4;  // steps to fetch ahead: worth 4 % where weights come from the L2

#if defined(__AVX512VNNI__)
  static Total add(Total total, Lane left, Lanes right) {
    return (Total)_mm512_dpbusd_epi32((__m512i)total, (__m512i)(Lanes{} + left), (__m512i)right);
  }
#elif defined(__SSE2__)
  // By halves of 16 bits: the product of 8-bit pairs would saturate.
  static Total add(Total total, Lane left, Lanes right) {
    const Word even = Word{} + (left & 0x00ff00ff), odd = Word{} + (left >> 8 & 0x00ff00ff);
    return total + multiply_halves(even, (Word)((Halves)(right << 8) >> 8)) +
           multiply_halves(odd, (Word)((Halves)right >> 8));
  }
#else
  static Total add(Total total, Lane left, Lanes right) {
    for (int byte = 0; byte < 4; byte++)
      total += (int32_t)(left >> 8 * byte & 255) * ((Int)(right << (24 - 8 * byte)) >> 24);
    return total;
  }
#endif
};

// Where the panel begins whose first column this is, a multiple of PANEL; and how many vectors wide it is.
constexpr int PANEL = COLUMNS * VL;
template <class Lane>
inline Lane* panel(Lane* packed, int64_t depth, int64_t column) {
  return packed + depth * column;
}
inline int64_t vectors(int64_t columns, int64_t column) { return least(COLUMNS, over(columns - column, VL)); }

// x [depth, columns] as a right operand; depth counts lanes.
template <class F, class T>
inline void pack(const View<T>& x, typename F::Lane* packed) {
  const int64_t depth = over(x.rows, F::PER_LANE);
  for (int64_t j = 0; j < x.columns; j += PANEL) {
    typename F::Lanes* to = (typename F::Lanes*)panel(packed, depth, j);
    const int64_t wide = vectors(x.columns, j);
    for (int64_t i = 0; i < depth; i++)
      for (int64_t c = 0; c < wide; c++) *to++ = F::down(x, i, j + c * VL);
  }
}

// The transpose of x [columns, depth] as a right operand, of `columns` columns.
template <class F, class T>
inline void pack_transposed(const View<T>& x, typename F::Lane* packed, int64_t columns) {
  const int64_t depth = over(x.columns, F::PER_LANE);
  for (int64_t j = 0; j < columns; j += PANEL) {
    typename F::Lanes* to = (typename F::Lanes*)panel(packed, depth, j);
    const int64_t wide = vectors(columns, j);
    for (int64_t c = 0; c < wide; c++)
      for (int64_t i = 0; i < depth; i += VL) {
        typename F::Lanes square[VL];
        for (int r = 0; r < VL; r++) square[r] = F::along(x, j + c * VL + r, i);
        transpose(square);
        for (int r = 0; r < least(VL, depth - i); r++) to[(i + r) * wide + c] = square[r];
      }
  }
}

// What a tile fetches into the L2 meanwhile, for one that comes later: so many bytes at each step.
struct Ahead {
  const char* from;
  int64_t bytes;
};
inline Ahead nothing(const void* at_hand) { return {(const char*)at_hand, 0}; }

// finish(r, c, sum over i of left[r * row + i * step] * right[i][c]) for R rows and WIDE vectors. A sum is made in the
// order of i whatever R is: a row has the same bits in any company. Not inlined: the loop needs all registers.
template <class F, int R, int WIDE, class Finish>
__attribute__((noinline)) void tile(const typename F::Lane* left, int64_t row, int64_t step,
                                    const typename F::Lanes* right, int64_t depth, Ahead ahead, const Finish& finish) {
  typename F::Total total[R][WIDE] = {};
  for (int64_t i = 0; i < depth; i++, right += WIDE) {
    if (F::AHEAD)
      for (int c = 0; c < WIDE; c++) __builtin_prefetch(right + F::AHEAD * WIDE + c);
    __builtin_prefetch(ahead.from + i * ahead.bytes, 0, 2);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < WIDE; c++) total[r][c] = F::add(total[r][c], left[r * row + i * step], right[c]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < WIDE; c++) finish(r, c, __builtin_convertvector(total[r][c], Vector));
}

// The same for ROWS rows and `wide` vectors, 1 to COLUMNS, known when it runs.
template <class F, int WIDE = COLUMNS, class Finish>
inline void tile_of(int64_t wide, const typename F::Lane* left, int64_t row, const typename F::Lane* right,
                    int64_t depth, const Finish& finish) {
  if (WIDE == 1 || wide == WIDE)
    tile<F, ROWS, WIDE>(left, row, 1, (const typename F::Lanes*)right, depth, nothing(left), finish);
  else if constexpr (WIDE > 1) tile_of<F, WIDE - 1>(wide, left, row, right, depth, finish);
}

// The same for `rows` rows, 1 to R, known when it runs, and COLUMNS vectors.
template <class F, int R = ROWS, class Finish>
inline void tile_rows(int64_t rows, const void* left, int64_t row, int64_t step, const void* right, int64_t depth,
                      Ahead ahead, const Finish& finish) {
  if (R == 1 || rows == R)
    tile<F, R, COLUMNS>((const typename F::Lane*)left, row, step, (const typename F::Lanes*)right, depth, ahead, finish);
  else if constexpr (R > 1) tile_rows<F, R - 1>(rows, left, row, step, right, depth, ahead, finish);
}

// finish(r, column, VL values) of ROWS rows times a right operand of that many columns. Of its `packed_depth` the first
// `depth` lanes count, of its columns the first `wanted`.
template <class F, class Finish>
inline void multiply(const typename F::Lane* left, int64_t left_row, const typename F::Lane* right,
                     int64_t packed_depth, int64_t depth, int64_t columns, int64_t wanted, const Finish& finish) {
  for (int64_t j = 0; j < wanted; j += PANEL)
    tile_of<F>(vectors(columns, j), left, left_row, panel(right, packed_depth, j), depth,
               [&](int r, int c, Vector x) { finish(r, j + c * VL, x); });
}

}  // namespace ISA
}  // namespace altclip_fast
