// The k best candidates of a stream. They are appended to slots, and when those could run out, sorted and cut to k.
#pragma once

#include "device.h"

namespace altclip_fast::cuda {

// Best first; `size` is a power of two. By one warp.
DEVICE void sort(Candidate* x, int size) {
#pragma unroll 1
  for (int run = 2; run <= size; run *= 2)
#pragma unroll 1
    for (int stride = run / 2; stride; stride /= 2) {
#pragma unroll 1
      for (int i = thread() % 32; i < size / 2; i += 32) {
        const Exchange e = exchange(i, run, stride);
        const Candidate low = x[e.low], high = x[e.high];
        if ((low < high) == e.descending) {
          x[e.low] = high;
          x[e.high] = low;
        }
      }
      sync_warp();
    }
}

// The best k of the first `count` slots, in order, in the first k; `scratch` may be `slots`. Returns the least of them.
DEVICE Candidate prune(Candidate* slots, int count, int k, Candidate* scratch, int size) {
  const int lane = thread() % 32;
  sync_warp();
#pragma unroll 1
  for (int i = lane; i < size; i += 32) scratch[i] = i < count ? slots[i] : NO_CANDIDATE;
  sync_warp();
  sort(scratch, size);
  if (slots != scratch)
#pragma unroll 1
    for (int i = lane; i < k; i += 32) slots[i] = scratch[i];
  const Candidate least = scratch[k - 1];
  sync_warp();
  return least;
}

// The lanes of `lanes` append what they want to slots that are theirs together. Returns the new count.
DEVICE int append(Candidate* slots, int count, bool wanted, unsigned lanes, Candidate x) {
  const unsigned those = ballot(wanted) & lanes, before = (1u << thread() % 32) - 1;
  if (wanted) slots[count + ones(those & before)] = x;
  return count + ones(those);
}

constexpr int MERGE_WARPS = 4;
constexpr int MERGE_SLOTS = 512;

// A warp merges the candidates of a row: [parts][slots], of each part the first k.
template <class T>
DEVICE void merge_body(const Candidate* candidates, int64_t n, int64_t parts, int k, int64_t slots, T* values,
                       int64_t* indices) {
  const int lane = thread() % 32, warp = thread() / 32, size = (int)slots_for(k, 32);
  Candidate* kept = (Candidate*)shared_memory() + warp * MERGE_SLOTS;
  const int64_t row = (int64_t)block() * MERGE_WARPS + warp;
  if (row >= n) return;
  Candidate least = NO_CANDIDATE;
  int count = 0;
  for (int64_t first = 0; first < parts * k; first += 32) {
    if (count + 32 > size) {
      least = prune(kept, count, k, kept, size);
      count = k;
    }
    const int64_t i = first + lane;
    const Candidate x = i < parts * k ? candidates[(row * parts + i / k) * slots + i % k] : NO_CANDIDATE;
    count = append(kept, count, x > least, ~0u, x);
  }
  prune(kept, count, k, kept, size);
  for (int i = lane; i < k; i += 32) {
    if (values) values[row * k + i] = from_float<T>(score_of(kept[i]));
    indices[row * k + i] = index_of(kept[i]);
  }
}

}  // namespace altclip_fast::cuda
