// How scores are ordered and how their exponentials are summed: the same on the device and in the tests of the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

namespace altclip_fast::cuda {

// Candidates are integers that order as (score, lower index first), NaN above all numbers, both zeros the same.
using Candidate = int64_t;
constexpr Candidate NO_CANDIDATE = INT64_MIN;

HOST_DEVICE int32_t bits_of(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
HOST_DEVICE float float_of(int32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

HOST_DEVICE int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

constexpr int32_t LEAST_KEY = INT32_MIN;  // of no score

HOST_DEVICE int32_t key_of(float score) {
  return score != score ? INT32_MAX : ordered(score == 0.0f ? 0 : bits_of(score));
}
HOST_DEVICE float score_of(int32_t key) { return float_of(ordered(key)); }

HOST_DEVICE Candidate candidate_of(int32_t key, int32_t index) {
  return (Candidate)key << 32 | (uint32_t)(index ^ INT32_MAX);
}
HOST_DEVICE Candidate candidate(float score, int32_t index) { return candidate_of(key_of(score), index); }
HOST_DEVICE int32_t index_of(Candidate x) { return (int32_t)(uint32_t)x ^ INT32_MAX; }
HOST_DEVICE float score_of(Candidate x) { return score_of((int32_t)(x >> 32)); }

// How many slots hold k candidates and what comes while they are compared with no more than `arriving` others; a power
// of two, since they are sorted in place.
HOST_DEVICE int64_t slots_for(int64_t k, int64_t arriving) {
  int64_t slots = 32;
  while (slots < k + arriving) slots *= 2;
  return slots;
}

// The pair of a bitonic sort that comparator `i` exchanges, and its direction.
struct Exchange {
  int low, high;
  bool descending;
};
HOST_DEVICE Exchange exchange(int i, int size, int stride) {
  const int low = 2 * i - (i & (stride - 1));
  return {low, low + stride, (low & size) == 0};
}

// Of a row, from the sum of its squares: at most 1e12, so that a zero row stays zero. NaN stays NaN.
constexpr float SMALLEST = 1e-24f;
HOST_DEVICE float inverse_norm(float squares) { return 1.0f / sqrtf(squares < SMALLEST ? SMALLEST : squares); }

// m = max(x) and l = sum of 2^(x - m) over a set of scores x; the empty set is (-inf, 0).
struct LogSum {
  float most, sum;
};
HOST_DEVICE LogSum no_log_sum() { return {-INFINITY, 0.0f}; }

// Of two disjoint sets. `exp2` is a parameter, since the device has a fast one.
template <class Exp2>
HOST_DEVICE LogSum together(LogSum x, LogSum y, Exp2 exp2) {
  const float apart = x.most - y.most;
  const float less = x.most == y.most ? 1.0f : exp2(-fabsf(apart));  // the same infinity has no distance to itself
  return apart > 0 ? LogSum{x.most, x.sum + y.sum * less} : LogSum{y.most, y.sum + x.sum * less};
}

}  // namespace altclip_fast::cuda
