// Attention of short sequences: every row of scores is held whole, so there is nothing to rescale.
//
// For one sequence and head, k and v are packed as right operands: 64 x 272 x 4 x 2 = 139 KB for ViT-L/14 in float32,
// half of that in bfloat16, which stays in the L2. Then ROWS queries at a time: scores, softmax in place, product with v.
#pragma once

#include "kernels.h"
#include "product.h"

namespace altclip_fast {
namespace ISA {

// Scores -> exp2(scale * (score - largest)), in place as E; the rest of the row becomes 0. Returns 1 / their sum.
template <class E>
inline float softmax(float* row, int64_t keys, int64_t padded, float scale) {
  const int64_t full = keys / VL * VL, visible = whole(keys, VL);
  Vector most = all(-__builtin_inff()), total = all(0);
  if (full < visible) *(Vector*)(row + full) = count() < (float)(keys - full) ? *(Vector*)(row + full) : most;
  for (int64_t j = 0; j < visible; j += VL) most = larger(most, *(Vector*)(row + j));
  const Vector top = all(largest(most) * scale);
  for (int64_t j = 0; j < visible; j += VL) {
    Vector p = exp2<E>(*(Vector*)(row + j) * scale - top);
    total += p;
    store((E*)row + j, p);
  }
  for (int64_t j = visible; j < padded; j += VL) store((E*)row + j, all(0));
  return keys ? 1.0f / sum(total) : 0.0f;
}

// One head of one sequence.
template <class T>
struct Head {
  View<T> q, k, v;
  T* out;
};

template <class T>
inline Head<T> head(const Attention& a, int64_t item) {
  const int64_t sequence = item / a.heads, head = item % a.heads;
  auto view = [&](const Rows& x, const int64_t* starts, int64_t columns) {
    const int64_t first = starts[sequence], rows = starts[sequence + 1] - first;
    return View<T>{(const T*)x.data + first * x.row + head * x.head, x.row, x.column, rows, columns};
  };
  T* out = (T*)a.out + (a.starts_q[sequence] * a.heads + head) * a.value_dim;
  return {view(a.q, a.starts_q, a.dim), view(a.k, a.starts_k, a.dim), view(a.v, a.starts_k, a.value_dim), out};
}

// Into the L2. The rows of a head lie too far apart for the processor to see what comes next.
template <class T>
inline void fetch(const View<T>& x, int64_t first) {
  for (int64_t r = first; r < least(first + ROWS, x.rows); r++)
    for (int64_t i = 0; i < x.columns; i += 64 / sizeof(T)) __builtin_prefetch(x.data + r * x.row_stride + i, 0, 2);
}

template <class F, class T>
void attend(const Attention& a, const Head<T>& now, const Head<T>& next, Scratch& scratch) {
  typedef typename F::Lane Lane;
  typedef typename F::Lanes Lanes;
  const View<T> q = now.q, k = now.k, v = now.v;
  T* out = now.out;
  const int64_t queries = q.rows, keys = k.rows, out_row = a.heads * a.value_dim;

  // Lengths in lanes; a row of scores has one float a key, and later one element.
  const int64_t depth = over(a.dim, F::PER_LANE), row = whole(depth, VL);
  const int64_t padded = whole(keys, VL), steps = over(keys, F::PER_LANE);
  Lane* packed_k = (Lane*)scratch.take(depth * padded + steps * whole(a.value_dim, VL) + ROWS * (row + padded));
  Lane* packed_v = packed_k + depth * padded;
  Lane* packed_q = packed_v + steps * whole(a.value_dim, VL);
  float* scores = (float*)(packed_q + ROWS * row);
  pack_transposed<F>(k, packed_k, keys);
  pack<F>(v, packed_v);

  const float scale = a.scale * 1.4426950408889634f;
  for (int64_t first = 0; first < queries; first += ROWS) {
    for (const View<T>& x : {next.q, next.k, next.v}) fetch(x, first);
    for (int64_t r = 0; r < ROWS; r++)
      for (int64_t i = 0; i < depth; i += VL) *(Lanes*)(packed_q + r * row + i) = F::along(q, first + r, i);

    // Keys that each query may look at; the last query of a sequence is at its last key.
    int64_t visible[ROWS], most = 0;
    for (int64_t r = 0; r < ROWS; r++) {
      const int64_t upto = a.causal ? first + r + 1 + keys - queries : keys;
      visible[r] = first + r >= queries || upto < 0 ? 0 : least(upto, keys);
      most = visible[r] > most ? visible[r] : most;
    }
    multiply<F>(packed_q, row, packed_k, depth, depth, keys, most,
                [&](int r, int64_t j, Vector x) { *(Vector*)(scores + r * padded + j) = x; });
    float inverse[ROWS];
    const int64_t seen = whole(most, VL);
    for (int64_t r = 0; r < ROWS; r++)
      inverse[r] = softmax<typename F::Element>(scores + r * padded, visible[r], seen, scale);
    const int64_t some = over(most, F::PER_LANE);
    multiply<F>((const Lane*)scores, padded, packed_v, steps, some, a.value_dim, a.value_dim,
                [&](int r, int64_t j, Vector x) {
                  if (first + r >= queries) return;
                  store_most(out + (first + r) * out_row + j, x * inverse[r], a.value_dim - j);
                });
  }
}

template <class F, class T>
void attend_range(const Attention& a, int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  Head<T> now = head<T>(a, begin);
  for (int64_t item = begin; item < end; item++) {
    const Head<T> next = item + 1 < end ? head<T>(a, item + 1) : Head<T>{};
    attend<F>(a, now, next, scratch);
    now = next;
  }
}

inline void attention(const Attention& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::Float32: return attend_range<Singles, float>(a, begin, end);
#if defined(__AVX512BF16__)
    case Dtype::BFloat16: return attend_range<Pairs, bfloat16>(a, begin, end);
#else
    case Dtype::BFloat16: return attend_range<Singles, bfloat16>(a, begin, end);
#endif
    case Dtype::Float16: return attend_range<Singles, float16>(a, begin, end);
  }
}

}  // namespace ISA
}  // namespace altclip_fast
