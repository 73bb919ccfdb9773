// The kernels of sm_80 and later, compiled once for each ELEMENT: float32, bfloat16, float16.
#include "launch.h"
#include "mma.h"

namespace altclip_fast::cuda {
namespace {

using float32 = float;
using Tile = MmaTile<ELEMENT>;

template <template <class, int, int> class Epilogue>
__global__ void __launch_bounds__(Tile::THREADS, 2)
    similarity_mma_kernel(const Scores s, const Work work, const typename Epilogue<ELEMENT, 1, 1>::Params params) {
  mma_body<ELEMENT, Epilogue>(s, work, params);
}

template <template <class, int, int> class Epilogue>
void start(const Scores& s, const Work& work, const typename Epilogue<ELEMENT, 1, 1>::Params& params,
           const Device& device) {
  constexpr int SHARED = Tile::STAGES * Tile::STAGE_BYTES + Epilogue<ELEMENT, Tile::MI, Tile::NJ>::SCRATCH;
  static_assert(2 * SHARED <= 164 * 1024);  // two blocks of threads on sm_80
  start_persistent(similarity_mma_kernel<Epilogue>, work.items(), Tile::THREADS, SHARED, device, s, work, params);
}

}  // namespace

const Engine mma::ELEMENT = {Tile::ROWS,     Tile::ROWS,      Tile::COLUMNS,   Tile::STEP,  start<Store>,
                             start<RowSums>, start<PairSums>, start<Gradient>, start<Best>, start<TopK>};

}  // namespace altclip_fast::cuda
