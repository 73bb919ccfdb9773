// One engine makes tiles of scores and hands them to an epilogue. It is compiled once for each element type; here is
// what contrastive.cu, which plans the work, knows of it.
#pragma once

#include "kernels.h"
#include "layout.h"

namespace altclip_fast::cuda {

struct StoreParams {
  const float* statistics;  // [2, N]: of the softmax, or null
  void* out;                // [N, M]
};
struct RowSumsParams {
  LogSum* by_row;  // [parts, N]
};
struct PairSumsParams {
  RowSumsParams rows;
  LogSum* by_column;  // [groups of rows, M]
  float* diagonal;    // [N]
  int first;          // the column of row 0 on the diagonal
};
struct GradientParams {
  const float* by_row;  // [2, N], its planes row_plane apart
  int64_t row_plane;
  const float* by_column;  // [2, M]
  void* out;               // [N, M]
  float* along;            // [groups of rows, parts]
  int first, parts;
};
constexpr int ARRIVING = 64;  // columns between two looks at the room that is left for candidates

struct TopKParams {
  Candidate* candidates;  // [N, parts, slots]
  int parts, k, slots;
};

struct Engine {
  template <class Params>
  using Start = void (*)(const Scores&, const Work&, const Params&, const Device&);

  int rows, group_rows, columns, step;  // of a tile; elements of K
  Start<StoreParams> store;
  Start<RowSumsParams> row_sums;
  Start<PairSumsParams> pair_sums;
  Start<GradientParams> gradient;
  Start<TopKParams> best, topk;
};

namespace mma {
extern const Engine float32, bfloat16, float16;
}
namespace wgmma {
extern const Engine bfloat16, float16, few_bfloat16, few_float16;
}  // namespace wgmma

}  // namespace altclip_fast::cuda
