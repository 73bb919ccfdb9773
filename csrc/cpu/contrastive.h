// Scores of embeddings, never held as a matrix: a panel of PANEL rows of b stays in the L2 (64 x 768 x 4 = 196 KB) while
// all rows of a pass, ROWS at a time. What becomes of a tile of scores (written, kept if among the best, summed up)
// happens while it lies in the L1.
//
// A score is summed up in the lanes of one vector, so both operands are read as they lie in memory, and the lanes are
// added in a tree at the end, four scores at a time. That takes 13 instructions for 4 scores, whose dim of 768 takes 192
// (96 in bfloat16). The first ROWS rows of a meet the rows of b one by one, in the order of memory, so that few queries
// run at the speed of memory; the norms of b are found on the way.
#pragma once

#include "kernels.h"
#include "product.h"

namespace altclip_fast {
namespace ISA {

// How the words of 32 bits that a row consists of are read and multiplied, and how weights become such words, for sums
// over the columns of a row and for sums over rows.
template <class T>
struct Single {
  typedef T Element;
  typedef Singles Format;
  static constexpr int ELEMENTS = 1;
  static Vector words(const T* p) { return load(p); }
  static void store_row(float* p, Vector x) { store(p, x); }
  static Vector of_rows(const Vector* x, int64_t) { return *x; }
  static Vector multiply_add(Vector sum, Vector a, Vector b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
struct Pair {
  typedef bfloat16 Element;
  typedef Pairs Format;
  static constexpr int ELEMENTS = 2;
  static Vector words(const bfloat16* p) { return (Vector)*(const LooseWord*)p; }
  static void store_row(float* p, Vector x) { store((bfloat16*)p, x); }
  static Vector of_rows(const Vector* x, int64_t next) { return (Vector)(halves(x[0]) | halves(x[next]) << 16); }
  static Word halves(Vector x) { return __builtin_convertvector((Half)_mm512_cvtneps_pbh((__m512)x), Word); }
  static Vector multiply_add(Vector sum, Vector a, Vector b) {
    return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

constexpr float SMALLEST = 1e-24f;  // of a squared norm: EPS of ops/contrastive.py, squared

// In float64, so that it is rounded once: a score inherits its error, and a softmax that error times the scale.
inline float inverse_norm(float squares, double scale = 1) {
  return scale / __builtin_sqrt(squares < SMALLEST ? SMALLEST : squares);
}

// Calls with the arithmetic of a dtype.
template <class Call>
inline void with_unit(Dtype dtype, Call call) {
  switch (dtype) {
    case Dtype::Float32: return call(Single<float>());
#if defined(__AVX512BF16__)
    case Dtype::BFloat16: return call(Pair());
#else
    case Dtype::BFloat16: return call(Single<bfloat16>());
#endif
    case Dtype::Float16: return call(Single<float16>());
  }
}

// Calls with a value of the element type of a dtype.
template <class Call>
inline void with_element(Dtype dtype, Call call) {
  switch (dtype) {
    case Dtype::Float32: return call(float());
    case Dtype::BFloat16: return call(bfloat16());
    case Dtype::Float16: return call(float16());
  }
}

// Words i.. of a row of `dim` elements, zeros behind its end.
template <class Unit>
inline Vector words_at(const typename Unit::Element* row, int64_t i, int64_t dim) {
  constexpr int64_t COUNT = VL * Unit::ELEMENTS;
  const typename Unit::Element* p = row + i * Unit::ELEMENTS;
  const int64_t left = dim - i * Unit::ELEMENTS;
  if (left >= COUNT) return Unit::words(p);
  typename Unit::Element some[COUNT] = {};
  for (int64_t j = 0; j < left; j++) some[j] = p[j];
  return Unit::words(some);
}

template <class Unit>
inline int64_t words_of(int64_t dim) { return (dim + Unit::ELEMENTS - 1) / Unit::ELEMENTS; }

inline int64_t row_words(Dtype dtype, int64_t dim) {
  int64_t words = 0;
  with_unit(dtype, [&](auto unit) { words = whole(words_of<decltype(unit)>(dim), VL); });
  return words;
}

template <class Unit>
void pack_rows_as(const Table& x, int64_t dim, float scale, bool normalize, float* words, float* factor, int64_t begin,
                  int64_t end) {
  const int64_t width = whole(words_of<Unit>(dim), VL);
  for (int64_t r = begin; r < end; r++) {
    const auto* row = (const typename Unit::Element*)x.data + r * x.stride;
    Vector squares = {};
    for (int64_t i = 0; i < width; i += VL) {
      Vector some = words_at<Unit>(row, i, dim);
      *(Vector*)(words + r * width + i) = some;
      squares = Unit::multiply_add(squares, some, some);
    }
    factor[r] = normalize ? inverse_norm(sum(squares), scale) : scale;
    if (!normalize || Unit::ELEMENTS > 1) continue;
    const float inverse = inverse_norm(sum(squares));  // number by number the roundings cancel
    for (int64_t i = 0; i < width; i += VL) *(Vector*)(words + r * width + i) *= inverse;
    factor[r] = scale;
  }
}

inline void pack_rows(const Table& x, int64_t dim, Dtype dtype, float scale, bool normalize, float* words,
                      float* factor, int64_t begin, int64_t end) {
  with_unit(dtype, [&](auto unit) {
    pack_rows_as<decltype(unit)>(x, dim, scale, normalize, words, factor, begin, end);
  });
}

// tile[r * PANEL + c] = the product of R packed rows of a and C rows of b; squares[c] = that of row c with itself, if
// wanted. Lane by lane and then in one tree, so that a score has the same bits in any company. The next rows of b are
// fetched meanwhile, but for floats one row at a time: there the hardware alone is faster. Not inlined: the loop needs
// all registers.
template <class Unit, int R, int C, bool SQUARES>
__attribute__((noinline)) void multiply_rows(const float* a, int64_t a_row, const typename Unit::Element* b,
                                             int64_t b_row, int64_t dim, float* tile, float* squares) {
  constexpr int SUMS = (R + SQUARES) * C;
  constexpr bool FETCH = C > 1 || Unit::ELEMENTS > 1;
  Vector sums[(SUMS + 3) / 4 * 4] = {};
  auto add = [&](int64_t i, auto words) __attribute__((always_inline)) {
    Vector right[C];
    for (int c = 0; c < C; c++) right[c] = words(b + c * b_row);
    for (int r = 0; r < R; r++) {
      const Vector left = *(const Vector*)(a + r * a_row + i);
      for (int c = 0; c < C; c++) sums[r * C + c] = Unit::multiply_add(sums[r * C + c], left, right[c]);
    }
    for (int c = 0; SQUARES && c < C; c++) sums[R * C + c] = Unit::multiply_add(sums[R * C + c], right[c], right[c]);
  };
  const int64_t full = dim / (VL * Unit::ELEMENTS) * VL;
  if (full < words_of<Unit>(dim)) add(full, [&](const auto* row) { return words_at<Unit>(row, full, dim); });
  for (int64_t i = 0; i < full; i += VL)
    add(i, [&](const auto* row) {
      if (FETCH) __builtin_prefetch(row + COLUMNS * b_row + i * Unit::ELEMENTS);
      return Unit::words(row + i * Unit::ELEMENTS);
    });
#pragma GCC unroll 8
  for (int i = 0; i < SUMS; i += 4) {
    const Vector four = sums_of_four(sums + i);
    for (int j = i; j < i + 4 && j < SUMS; j += C)
      __builtin_memcpy(j < R * C ? tile + j / C * PANEL : squares, (const float*)&four + (j - i), C * sizeof(float));
  }
}

// The same for `rows` rows of a, 1 to R, known when it runs.
template <class Unit, int C, bool SQUARES, int R = ROWS>
inline void multiply_some(int64_t rows, const float* a, int64_t a_row, const typename Unit::Element* b, int64_t b_row,
                          int64_t dim, float* tile, float* squares = nullptr) {
  if (R == 1 || rows == R) multiply_rows<Unit, R, C, SQUARES>(a, a_row, b, b_row, dim, tile, squares);
  else if constexpr (R > 1) multiply_some<Unit, C, SQUARES, R - 1>(rows, a, a_row, b, b_row, dim, tile, squares);
}

// The products of one packed row of a with FOUR rows of b, one after the other in the order of memory; their lanes are
// added together. For one query what is done besides reading b counts, and this is a fifth of it.
constexpr int FOUR = 4;
template <class Unit, bool SQUARES>
__attribute__((noinline)) void multiply_one(const float* a, const typename Unit::Element* b, int64_t b_row, int64_t dim,
                                            float* products, float* squares) {
  Vector sums[FOUR], own[FOUR];
  const int64_t full = dim / (VL * Unit::ELEMENTS) * VL;
  for (int c = 0; c < FOUR; c++, b += b_row) {
    Vector total = {}, square = {};
    auto add = [&](int64_t i, Vector right) __attribute__((always_inline)) {
      total = Unit::multiply_add(total, *(const Vector*)(a + i), right);
      if (SQUARES) square = Unit::multiply_add(square, right, right);
    };
    if (full < words_of<Unit>(dim)) add(full, words_at<Unit>(b, full, dim));
    for (int64_t i = 0; i < full; i += VL) {
      if (Unit::ELEMENTS > 1) __builtin_prefetch(b + FOUR * b_row + i * Unit::ELEMENTS);
      add(i, Unit::words(b + i * Unit::ELEMENTS));
    }
    sums[c] = total, own[c] = square;
  }
  const Vector four = sums_of_four(sums);
  __builtin_memcpy(products, &four, sizeof(float) * FOUR);
  if (!SQUARES) return;
  const Vector norms = sums_of_four(own);
  __builtin_memcpy(squares, &norms, sizeof(float) * FOUR);
}

// visit(row, rows, column, columns, tile) for every tile of scores; tile[r * PANEL + c] is finite beyond the columns
// where all scores are.
template <class Unit, class Visit>
void sweep(const Scores& s, const Part& part, Visit visit) {
  typedef typename Unit::Element Element;
  static thread_local Scratch scratch;
  const int64_t width = whole(words_of<Unit>(s.dim), VL), first = part.block_begin * ROWS;
  float* factor = scratch.take((1 + ROWS) * PANEL);
  float* tile = factor + PANEL;
  for (int64_t i = 0; i < (1 + ROWS) * PANEL; i++) factor[i] = 0;
  for (int64_t p = part.panel_begin; p < part.panel_end; p++) {
    const int64_t column = p * PANEL, columns = least(PANEL, s.b.rows - column);
    const Element* b = (const Element*)s.b.data + column * s.b.stride;
    for (int64_t row = first; row < least(part.block_end * ROWS, s.rows); row += ROWS) {
      const int64_t rows = least(ROWS, s.rows - row);
      const float* a = s.a + row * width;
      int64_t c = 0;
      for (; row == first && c < columns;) {
        const int64_t count = rows == 1 && c + FOUR <= columns ? FOUR : 1;
        const Element* some = b + c * s.b.stride;
        float squares[FOUR];
        if (count == FOUR)
          (s.normalize ? multiply_one<Unit, true> : multiply_one<Unit, false>)(a, some, s.b.stride, s.dim, tile + c, squares);
        else if (s.normalize)
          multiply_some<Unit, 1, true>(rows, a, width, some, s.b.stride, s.dim, tile + c, squares);
        else
          multiply_some<Unit, 1, false>(rows, a, width, some, s.b.stride, s.dim, tile + c);
        for (int64_t i = 0; i < count; i++, c++) factor[c] = s.normalize ? inverse_norm(squares[i]) : 1.0f;
      }
      for (; c + COLUMNS <= columns; c += COLUMNS)
        multiply_some<Unit, COLUMNS, false>(rows, a, width, b + c * s.b.stride, s.b.stride, s.dim, tile + c);
      for (; c < columns; c++)
        multiply_some<Unit, 1, false>(rows, a, width, b + c * s.b.stride, s.b.stride, s.dim, tile + c);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < PANEL; c += VL)
          *(Vector*)(tile + r * PANEL + c) *= s.a_factor[row + r] * *(Vector*)(factor + c);
      visit(row, rows, column, columns, tile);
    }
  }
}

inline void write_scores(const Scores& s, void* out, int64_t stride, Dtype out_dtype, const Part& part) {
  with_unit(s.dtype, [&](auto unit) {
    with_element(out_dtype, [&](auto element) {
      typedef decltype(element) T;
      sweep<decltype(unit)>(s, part, [&](int64_t row, int64_t rows, int64_t column, int64_t columns, float* tile) {
        for (int64_t r = 0; r < rows; r++) {
          T* place = (T*)out + (row + r) * stride + column;
          for (int64_t c = 0; c < columns; c += VL) {
            Vector x = *(Vector*)(tile + r * PANEL + c);
            store_most(place + c, x, columns - c);
          }
        }
      });
    });
  });
}

inline uint64_t key_of(float score, int64_t column) {
  union { float value; uint32_t bits; } u = {score + 0.0f};  // -0 becomes 0
  uint32_t order = score != score ? 0xffffffffu : u.bits >> 31 ? ~u.bits : u.bits | 0x80000000u;
  return (uint64_t)order << 32 | (uint32_t)~(uint32_t)column;
}

// A score that is not above this one has no place in the heap: NaN while there are empty places.
inline float least_of(uint64_t worst) {
  const uint32_t order = worst >> 32;
  if (worst == 0) return __builtin_nanf("");
  if (order == 0xffffffffu) return __builtin_inff();
  union { uint32_t bits; float value; } u = {order >> 31 ? order & 0x7fffffffu : ~order};
  return u.value;
}

inline void replace_worst(uint64_t* heap, int64_t k, uint64_t key) {
  int64_t place = 0;
  for (int64_t child = 1; child < k; child = 2 * place + 1) {
    if (child + 1 < k && heap[child + 1] < heap[child]) child++;
    if (key <= heap[child]) break;
    heap[place] = heap[child];
    place = child;
  }
  heap[place] = key;
}

inline void keep_best(const Scores& s, const Best& best, const Part& part) {
  const int64_t k = best.k;
  for (int64_t row = part.block_begin * ROWS; row < least(part.block_end * ROWS, s.rows); row++) {
    for (int64_t i = 0; i < k; i++) best.keys[row * k + i] = 0;
    best.least[row] = __builtin_nanf("");
  }
  with_unit(s.dtype, [&](auto unit) {
    typedef decltype(unit) Unit;
    sweep<Unit>(s, part, [&](int64_t row, int64_t rows, int64_t column, int64_t columns, float* tile) {
      for (int64_t r = 0; r < rows; r++) {
        const float* scores = tile + r * PANEL;
        float& least = best.least[row + r];
        Int below = (*(Vector*)scores <= least);
        for (int64_t c = VL; c < PANEL; c += VL) below &= (*(Vector*)(scores + c) <= least);
        if (all_set(below)) continue;
        uint64_t* heap = best.keys + (row + r) * k;
        for (int64_t c = 0; c < columns; c++) {
          if (scores[c] <= least) continue;
          const float score = best.round ? to_float(narrow<typename Unit::Element>(scores[c])) : scores[c];
          const uint64_t key = key_of(score, column + c);
          if (key <= heap[0]) continue;
          replace_worst(heap, k, key);
          least = least_of(heap[0]);
        }
      }
    });
  });
}

inline void add_sums(const Scores& s, const Sums& sums, const Part& part) {
  for (int64_t r = 0; r < s.rows; r++) {
    sums.row_max[r] = -__builtin_inff();
    sums.row_sum[r] = 0;
  }
  with_unit(s.dtype, [&](auto unit) {
    sweep<decltype(unit)>(s, part, [&](int64_t row, int64_t rows, int64_t column, int64_t columns, float* tile) {
      for (int64_t r = 0; r < rows; r++) {
        const int64_t match = row + r + sums.offset - column;
        if (match >= 0 && match < columns) sums.match[row + r] = tile[r * PANEL + match];
        for (int64_t c = columns; c < PANEL; c++) tile[r * PANEL + c] = -__builtin_inff();
        Vector most = all(-__builtin_inff()), total = all(0);
        for (int64_t c = 0; c < PANEL; c += VL) most = larger(*(Vector*)(tile + r * PANEL + c), most);
        const float old = sums.row_max[row + r], now = largest(most), top = old > now ? old : now;
        for (int64_t c = 0; c < PANEL; c += VL) total += exp2(*(Vector*)(tile + r * PANEL + c) - top);
        sums.row_sum[row + r] = sums.row_sum[row + r] * exp2(all(old - top))[0] + sum(total);
        sums.row_max[row + r] = top;
      }
      float high[PANEL], low[PANEL];  // of the columns
      for (int64_t c = 0; c < columns; c++) {
        high[c] = sums.column_max[column + c];
        low[c] = sums.column_sum[column + c];
      }
      for (int64_t c = columns; c < PANEL; c++) high[c] = low[c] = 0;
      for (int64_t c = 0; c < PANEL; c += VL) {
        const Vector old = load(high + c);
        Vector top = old;
        for (int64_t r = 0; r < rows; r++) top = larger(*(Vector*)(tile + r * PANEL + c), top);
        Vector total = load(low + c) * exp2(old - top);
        for (int64_t r = 0; r < rows; r++) total += exp2(*(Vector*)(tile + r * PANEL + c) - top);
        store(high + c, top);
        store(low + c, total);
      }
      for (int64_t c = 0; c < columns; c++) {
        sums.column_max[column + c] = high[c];
        sums.column_sum[column + c] = low[c];
      }
    });
  });
}

// Lanes of rows begin..end as a right operand whose panels are all whole; factor[r] = 1 / |row| or 1, 0 beyond the rows.
inline void pack_columns(const Table& x, int64_t dim, Dtype dtype, bool normalize, float* panels, float* factor,
                         int64_t rows, int64_t begin, int64_t end) {
  with_unit(dtype, [&](auto unit) {
    typedef decltype(unit) Unit;
    typedef typename Unit::Element T;
    const View<T> view = {(const T*)x.data, x.stride, 1, x.rows, dim};
    for (int64_t r = begin; r < end; r++) {
      Vector squares = {};
      for (int64_t d = 0; r < x.rows && d < dim; d += VL) {
        const Vector some = view.vector(r, d);
        squares += some * some;
      }
      factor[r] = r >= x.rows ? 0 : normalize ? inverse_norm(sum(squares)) : 1;
    }
    for (int64_t d = 0; d < whole(dim, PANEL); d += VL) {
      float* panel = panels + d / PANEL * PANEL * rows / Unit::ELEMENTS + d % PANEL;
      for (int64_t i = begin / Unit::ELEMENTS; i < end / Unit::ELEMENTS; i++)
        *(Vector*)(panel + i * PANEL) = (Vector)Unit::Format::down(view, i, d);
    }
  });
}

inline void add_gradients(const Scores& s, const Gradients& g, const Part& part) {
  static thread_local Scratch scratch;
  const int64_t block_rows = whole(s.rows, ROWS), dim = whole(s.dim, PANEL);
  float* of_rows = scratch.take((2 * block_rows + dim + 1) * PANEL);  // g / |row of b|: [block_rows][PANEL]
  float* of_columns = of_rows + block_rows * PANEL;  // g / |row of a|: the same, lanes going down the rows
  float* panels = of_columns + block_rows * PANEL;  // [dim in panels][PANEL][PANEL]: the rows of b of a panel
  float* factor = panels + dim * PANEL;
  for (int64_t i = 0; i < dim * block_rows; i++) g.rows[i] = 0;
  with_unit(s.dtype, [&](auto unit) {
    typedef decltype(unit) Unit;
    typedef typename Unit::Format Format;
    constexpr int64_t ELEMENTS = Unit::ELEMENTS, LANES = PANEL / ELEMENTS;  // of a row of g
    sweep<Unit>(s, part, [&](int64_t row, int64_t rows, int64_t column, int64_t columns, float* tile) {
      if (row == 0) {
        const Table b = {(const typename Unit::Element*)s.b.data + column * s.b.stride, columns, s.b.stride};
        pack_columns(b, s.dim, s.dtype, s.normalize, panels, factor, PANEL, 0, PANEL);
      }
      float high[PANEL] = {}, low[PANEL] = {};  // of the columns: the largest, 1 / the sum
      for (int64_t c = 0; c < columns; c++) {
        high[c] = g.column_max[column + c];
        low[c] = 1.0f / g.column_sum[column + c];
      }
      Vector weights[ROWS][COLUMNS] = {}, scale = {};
      for (int64_t r = 0; r < rows; r++) {
        float* weight = (float*)weights[r];
        for (int64_t c = 0; c < PANEL; c += VL) {
          const Vector score = *(Vector*)(tile + r * PANEL + c);
          *(Vector*)(weight + c) =
              exp2(score - g.row_max[row + r]) / g.row_sum[row + r] + exp2(score - load(high + c)) * load(low + c);
        }
        for (int64_t c = columns; c < PANEL; c++) weight[c] = 0;
        const int64_t match = row + r + g.offset - column;
        if (match >= 0 && match < columns) weight[match] -= 2;
        for (int64_t c = 0; c < COLUMNS; c++) scale += weights[r][c] * *(Vector*)(tile + r * PANEL + c * VL);
      }
      *g.scale += sum(scale);
      for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < COLUMNS; c++) {
          Unit::store_row(of_rows + (row + r) * LANES + c * VL / ELEMENTS, weights[r][c] * load(factor + c * VL));
          weights[r][c] *= g.factor[row + r];
        }
      for (int64_t r = 0; r < ROWS; r += ELEMENTS)
        for (int64_t c = 0; c < COLUMNS; c++)
          *(Vector*)(of_columns + (row + r) * LANES + c * VL) = Unit::of_rows(&weights[r][c], COLUMNS);
      if (row + rows < s.rows) return;

      // The last block of the panel: its weights are complete.
      for (int64_t d = 0; d < dim; d += PANEL) {
        for (int64_t c = 0; c < columns; c += ROWS)
          tile_rows<Format>(least(ROWS, columns - c), of_columns + c, 1, PANEL, g.panels + d * block_rows / ELEMENTS,
                            over(s.rows, ELEMENTS), nothing(of_columns), [&](int r, int v, Vector x) {
            float* place = g.columns + (column + c + r) * s.dim + d + v * VL;
            const int64_t left = s.dim - d - v * VL;
            if (left >= VL) store(place, load(place) + x);
            else
              for (int64_t i = 0; i < left; i++) place[i] += x[i];
          });
        for (int64_t r = 0; r < block_rows; r += ROWS)
          tile_rows<Format>(ROWS, of_rows + r * LANES, LANES, 1, panels + d * LANES, over(columns, ELEMENTS),
                            nothing(of_rows), [&](int i, int v, Vector x) {
            Vector* place = (Vector*)(g.rows + d * block_rows + (r + i) * PANEL + v * VL);
            *place += x;
          });
      }
    });
  });
}

inline void softmax_rows(const float* in, void* out, Dtype dtype, int64_t columns, int64_t begin, int64_t end) {
  with_element(dtype, [&](auto element) {
    typedef decltype(element) T;
    for (int64_t r = begin; r < end; r++) {
      const float* row = in + r * columns;
      T* place = (T*)out + r * columns;
      const int64_t full = columns / VL * VL;
      float rest[VL];  // the last columns, which fill no vector
      for (int64_t c = 0; c < VL; c++) rest[c] = full + c < columns ? row[full + c] : -__builtin_inff();
      Vector most = load(rest);
      for (int64_t c = 0; c < full; c += VL) most = larger(load(row + c), most);
      const float top = largest(most);
      Vector total = exp(load(rest) - top);
      for (int64_t c = 0; c < full; c += VL) total += exp(load(row + c) - top);
      const float inverse = 1.0f / sum(total);
      for (int64_t c = 0; c < full; c += VL) store(place + c, exp(load(row + c) - top) * inverse);
      if (full < columns) store_some(place + full, exp(load(rest) - top) * inverse, columns - full);
    }
  });
}

inline void l2_normalize(const Table& x, void* out, int64_t dim, Dtype dtype, int64_t begin, int64_t end) {
  with_element(dtype, [&](auto element) {
    typedef decltype(element) T;
    const int64_t full = dim / VL * VL;
    for (int64_t r = begin; r < end; r++) {
      const T* row = (const T*)x.data + r * x.stride;
      T* place = (T*)out + r * dim;
      Vector squares[4] = {};
      for (int64_t d = 0; d < dim; d += VL) {
        Vector some = words_at<Single<T>>(row, d, dim);
        squares[d / VL % 4] += some * some;
      }
      const float factor = inverse_norm(sum((squares[0] + squares[1]) + (squares[2] + squares[3])));
      for (int64_t d = 0; d < full; d += VL) store(place + d, load(row + d) * factor);
      if (full < dim) store_some(place + full, words_at<Single<T>>(row, full, dim) * factor, dim - full);
    }
  });
}

}  // namespace ISA
}  // namespace altclip_fast
