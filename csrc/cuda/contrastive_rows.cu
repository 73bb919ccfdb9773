// What works on rows one by one: norms, their application and its gradient; and the reductions of what the tiles left.
#include "launch.h"
#include "rows.h"
#include "topk.h"

namespace altclip_fast::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(ROWS_THREADS)
    l2_normalize_kernel(Strided x, bool normalize, T* out, int64_t out_stride, float* inverse) {
  normalize_body<T>(x, normalize, out, out_stride, inverse);
}

template <class T>
__global__ void __launch_bounds__(ROWS_THREADS)
    l2_normalize_backward_kernel(Strided x, const float* grad, const float* factor, bool normalize, T* dx) {
  normalize_backward_body<T>(x, grad, factor, normalize, dx);
}

__global__ void __launch_bounds__(COMBINE_THREADS)
    combine_log_sums_kernel(const LogSum* partial, int64_t parts, int64_t n, float* out, int64_t step, int64_t plane) {
  combine_body(partial, parts, n, out, step, plane);
}

template <class T>
__global__ void __launch_bounds__(MERGE_WARPS * 32)
    similarity_topk_merge_kernel(const Candidate* candidates, int64_t n, int64_t parts, int k, int64_t slots, T* values,
                                 int64_t* indices) {
  merge_body<T>(candidates, n, parts, k, slots, values, indices);
}

// start(T{}) for the element type.
template <class Start>
void with_type(Dtype dtype, Start start) {
  switch (dtype) {
    case Dtype::Float32: return start(float{});
    case Dtype::BFloat16: return start(bfloat16{});
    case Dtype::Float16: return start(float16{});
  }
}

template <class... Parameters, class... Arguments>
void start_each(void (*kernel)(Parameters...), int64_t count, int64_t each, int threads, int shared,
                const Device& device, const Arguments&... arguments) {
  kernel<<<(count + each - 1) / each, threads, shared, stream_of(device)>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace

void normalize_rows(const Strided& x, bool normalize, void* out, int64_t out_stride, float* inverse,
                    const Device& device) {
  with_type(x.dtype, [&](auto element) {
    using T = decltype(element);
    start_each(l2_normalize_kernel<T>, x.rows, ROWS_THREADS / 32, ROWS_THREADS, 0, device, x, normalize,
               static_cast<T*>(out), out_stride, inverse);
  });
}

void normalize_rows_backward(const Strided& x, const float* grad, const float* factor, bool normalize, void* dx,
                             const Device& device) {
  with_type(x.dtype, [&](auto element) {
    using T = decltype(element);
    start_each(l2_normalize_backward_kernel<T>, x.rows, ROWS_THREADS / 32, ROWS_THREADS, 0, device, x, grad, factor,
               normalize, static_cast<T*>(dx));
  });
}

void combine_log_sums(const float* partial, int64_t parts, int64_t n, float* out, int64_t step, int64_t plane,
                      const Device& device) {
  start_each(combine_log_sums_kernel, n, 32, COMBINE_THREADS, COMBINE_THREADS * (int)sizeof(LogSum), device,
             reinterpret_cast<const LogSum*>(partial), parts, n, out, step, plane);
}

void merge_candidates(const int64_t* candidates, int64_t n, int64_t parts, int64_t k, int64_t slots, void* values,
                      int64_t* indices, Dtype dtype, const Device& device) {
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    start_each(similarity_topk_merge_kernel<T>, n, MERGE_WARPS, MERGE_WARPS * 32,
               MERGE_WARPS * MERGE_SLOTS * (int)sizeof(Candidate), device, candidates, n, parts, static_cast<int>(k),
               slots, static_cast<T*>(values), indices);
  });
}

}  // namespace altclip_fast::cuda
