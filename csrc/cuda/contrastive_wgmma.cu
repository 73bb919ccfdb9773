// The kernels of sm_90a, compiled once for each ELEMENT: bfloat16 and float16.
#include "launch.h"
#include "wgmma.h"

namespace altclip_fast::cuda {
namespace {

template <bool FEW, template <class, int, int> class Epilogue>
__global__ void __launch_bounds__(WgmmaTile<FEW>::THREADS, 1)
    similarity_wgmma_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const Scores s,
                            const Work work, const typename Epilogue<ELEMENT, 1, 1>::Params params) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wgmma_body<ELEMENT, FEW, Epilogue>(&a, &b, s, work, params);
#endif
}

// Boxes of `rows` rows and 128 bytes.
TensorMap map_of(const Matrix& x, int rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {  // of the driver, which is not linked
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status));
    if (status != cudaDriverEntryPointSuccess)
      throw std::runtime_error("CUDA: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(found);
  }();
  const bool half = std::is_same_v<ELEMENT, float16>;
  TensorMap map;
  const cuuint64_t sizes[] = {(cuuint64_t)x.width, (cuuint64_t)x.rows}, strides[] = {(cuuint64_t)x.stride * 2};
  const cuuint32_t box[] = {64, (cuuint32_t)rows}, steps[] = {1, 1};
  const CUresult status =
      encode(&map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
             const_cast<void*>(x.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("CUDA: cuTensorMapEncodeTiled failed with " + std::to_string(status));
  return map;
}

template <bool FEW, template <class, int, int> class Epilogue>
void start(const Scores& s, const Work& work, const typename Epilogue<ELEMENT, 1, 1>::Params& params,
           const Device& device) {
  using Tile = WgmmaTile<FEW>;
  constexpr int SHARED = Tile::SCRATCH + Tile::GROUPS * Epilogue<ELEMENT, Tile::MI, Tile::NJ>::SCRATCH;
  static_assert(SHARED <= 227 * 1024);
  start_persistent(similarity_wgmma_kernel<FEW, Epilogue>, work.items(), Tile::THREADS, SHARED, device,
                   map_of(s.a, Tile::ROWS), map_of(s.b, Tile::COLUMNS), s, work, params);
}

}  // namespace

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
using Many = WgmmaTile<false>;
using Few = WgmmaTile<true>;
const Engine wgmma::ELEMENT = {Many::ROWS,
                               64,
                               Many::COLUMNS,
                               Many::STEP,
                               start<false, Store>,
                               start<false, RowSums>,
                               start<false, PairSums>,
                               start<false, Gradient>,
                               start<false, Best>,
                               start<false, TopK>};
const Engine wgmma::JOIN(few_, ELEMENT) = {
    Few::ROWS, 64,      Few::COLUMNS,      Few::STEP,        start<true, Store>, start<true, RowSums>,
    nullptr,   nullptr, start<true, Best>, start<true, TopK>};

}  // namespace altclip_fast::cuda
