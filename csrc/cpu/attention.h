// Attention of short sequences: every row of scores is held whole, so there is nothing to rescale.
//
// For one sequence and head, k is laid out as [dim][keys] with the scale folded in, and v as [keys][value_dim], both
// float32 and padded to whole vectors: 64 x 257 x 4 x 2 = 132 KB for ViT-L/14, which stays in the L2. Then ROWS queries
// at a time: scores by register tiles of ROWS x COLUMNS vectors, softmax in place, the product with v by such tiles.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace altclip_fast {
namespace ISA {

// Scores -> exp2(score - largest), in place; what lies beyond `keys` becomes 0. Returns 1 / their sum.
inline float softmax(float* row, int64_t keys, int64_t padded) {
  for (int64_t j = keys; j < padded; j++) row[j] = -__builtin_inff();
  Vector most = all(-__builtin_inff());
  for (int64_t j = 0; j < padded; j += VL) most = larger(most, *(Vector*)(row + j));
  Vector top = all(largest(most)), total = all(0);
  for (int64_t j = 0; j < padded; j += VL) {
    Vector p = exp2(*(Vector*)(row + j) - top);
    *(Vector*)(row + j) = p;
    total += p;
  }
  return 1.0f / sum(total);
}

template <class T>
void attend(const Attention& a, int64_t sequence, int64_t head, Scratch& scratch) {
  const int64_t first_q = a.starts_q[sequence], queries = a.starts_q[sequence + 1] - first_q;
  const int64_t first_k = a.starts_k[sequence], keys = a.starts_k[sequence + 1] - first_k;
  const int64_t unit = COLUMNS * VL, padded = whole(keys, unit), width = whole(a.value_dim, unit);
  T* out = (T*)a.out + (first_q * a.heads + head) * a.value_dim;
  const int64_t out_row = a.heads * a.value_dim;

  float* kt = scratch.take(a.dim * padded + keys * width + ROWS * (padded + a.dim) );
  float* v = kt + a.dim * padded;
  float* scores = v + keys * width;
  float* q = scores + ROWS * padded;

  const float scale = a.scale * 1.4426950408889634f;
  const T* k_in = (const T*)a.k.data + first_k * a.k.row + head * a.k.head;
  const T* v_in = (const T*)a.v.data + first_k * a.v.row + head * a.v.head;
  const T* q_in = (const T*)a.q.data + first_q * a.q.row + head * a.q.head;
  for (int64_t j = 0; j < keys; j++)
    for (int64_t d = 0; d < a.dim; d++) kt[d * padded + j] = scale * to_float(k_in[j * a.k.row + d * a.k.column]);
  for (int64_t d = 0; d < a.dim; d++)
    for (int64_t j = keys; j < padded; j++) kt[d * padded + j] = 0;
  for (int64_t j = 0; j < keys; j++)
    for (int64_t d = 0; d < width; d++)
      v[j * width + d] = d < a.value_dim ? to_float(v_in[j * a.v.row + d * a.v.column]) : 0.0f;

  for (int64_t first = 0; first < queries; first += ROWS) {
    const int64_t rows = queries - first < ROWS ? queries - first : ROWS;
    for (int64_t r = 0; r < ROWS; r++)
      for (int64_t d = 0; d < a.dim; d++)
        q[r * a.dim + d] = r < rows ? to_float(q_in[(first + r) * a.q.row + d * a.q.column]) : 0.0f;

    // Keys that query r may look at; the last query of a sequence is at its last key.
    auto visible = [&](int64_t r) {
      const int64_t upto = first + r + 1 + keys - queries;
      return !a.causal || upto > keys ? keys : upto > 0 ? upto : 0;
    };
    const int64_t most = visible(rows - 1), seen = whole(most, unit);
    for (int64_t j = 0; j < seen; j += unit)
      multiply<Single<float>, ROWS>(q, a.dim, 1, kt + j, padded, a.dim,
               [&](int r, int c, Vector x) { *(Vector*)(scores + r * padded + j + c * VL) = x; });
    float inverse[ROWS];
    for (int64_t r = 0; r < ROWS; r++) {
      const int64_t mine = r < rows ? visible(r) : 0;
      if (mine) {
        inverse[r] = softmax(scores + r * padded, mine, seen);
      } else {
        inverse[r] = 0;
        for (int64_t j = 0; j < seen; j++) scores[r * padded + j] = 0;
      }
    }
    for (int64_t d = 0; d < a.value_dim; d += unit)
      multiply<Single<float>, ROWS>(scores, padded, 1, v + d, width, most, [&](int r, int c, Vector x) {
        const int64_t left = a.value_dim - d - c * VL;
        if (r < rows && left > 0) {
          T* place = out + (first + r) * out_row + d + c * VL;
          if (left >= VL) store(place, x * inverse[r]);
          else store_some(place, x * inverse[r], left);
        }
      });
  }
}

template <class T>
void attend_range(const Attention& a, int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  for (int64_t item = begin; item < end; item++) attend<T>(a, item / a.heads, item % a.heads, scratch);
}

inline void attention(const Attention& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case Dtype::Float32: return attend_range<float>(a, begin, end);
    case Dtype::BFloat16: return attend_range<bfloat16>(a, begin, end);
    case Dtype::Float16: return attend_range<float16>(a, begin, end);
  }
}

}  // namespace ISA
}  // namespace altclip_fast
