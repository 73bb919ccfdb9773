// The instructions that C++ has no words for, one function each. tests/cuda/emulated.h has the same functions for the
// host.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "layout.h"

#define DEVICE __device__ __forceinline__

namespace altclip_fast::cuda {

using TensorMap = CUtensorMap;

// Threads

DEVICE int thread() { return threadIdx.x; }
DEVICE int block() { return blockIdx.x; }
DEVICE int blocks() { return gridDim.x; }
DEVICE unsigned ballot(bool x) { return __ballot_sync(~0u, x); }
template <class T>
DEVICE T shuffle(T x, int lane) {
  return __shfl_sync(~0u, x, lane);
}
template <class T>
DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(~0u, x, mask);
}
DEVICE int ones(unsigned x) { return __popc(x); }
DEVICE int first_one(unsigned x) { return __ffs(x) - 1; }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_block() { __syncthreads(); }
// Of the 128 threads of a group; barrier 0 is that of the block.
DEVICE void sync_group(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }
DEVICE void sync_pair() { asm volatile("bar.sync 3, 256;" ::: "memory"); }

// The compiler does not compute x, nor what follows from it, ahead of this place: that would take registers.
DEVICE int computed_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return memory;
}
DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Numbers

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bfloat16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float(float x) {
  return x;
}
template <>
DEVICE bfloat16 from_float(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
DEVICE float16 from_float(float x) {
  float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
DEVICE uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// sm_80: copies to shared memory and products of fragments

// 16 bytes, of which those after `bytes` become 0.
DEVICE void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE void load_matrices(uint32_t address, uint32_t (&x)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

#define MULTIPLY(SHAPE)                                                                            \
  asm("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
// d += a b^T, of 16 rows and 8 columns, 32 bytes of each row deep
template <class T>
DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
DEVICE void multiply<bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MULTIPLY("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
DEVICE void multiply<float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MULTIPLY("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
DEVICE void multiply<float>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MULTIPLY("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef MULTIPLY

// sm_90a: barriers, TMA, products by a warpgroup

DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void barriers_are_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase of this parity is over.
DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// The box of `map` whose first element is (column, row); what is outside of the matrix becomes 0.
DEVICE void load_box(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}
template <int REGISTERS>
DEVICE void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
DEVICE void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

DEVICE void warpgroup_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Accumulators are written by instructions in flight: nothing may move over this.
template <int N>
DEVICE void keep_in_place(float (&d)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[j][i])::"memory");
}

#define NUMBERS_64                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NUMBERS_128                                                                              \
  NUMBERS_64                                                                                     \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOUR(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SIXTEEN(j) FOUR(j), FOUR(j + 1), FOUR(j + 2), FOUR(j + 3)
#define SIXTY_FOUR(j) SIXTEEN(j), SIXTEEN(j + 4), SIXTEEN(j + 8), SIXTEEN(j + 12)
#define WARPGROUP_MULTIPLY(COLUMNS, KIND, NUMBERS, A, B, ...)                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." KIND "." KIND " {" NUMBERS "}, " A ", " B \
               ", 1, 1, 1, 0, 0;"                                                                               \
               : __VA_ARGS__                                                                                    \
               : "l"(a), "l"(b))
#define WARPGROUP_MULTIPLY_128(KIND) WARPGROUP_MULTIPLY("128", KIND, NUMBERS_64, "%64", "%65", SIXTY_FOUR(0))
#define WARPGROUP_MULTIPLY_256(KIND) \
  WARPGROUP_MULTIPLY("256", KIND, NUMBERS_128, "%128", "%129", SIXTY_FOUR(0), SIXTY_FOUR(16))
// d += a b^T: 64 rows, 128 or 256 columns, 16 elements deep. In flight until `warpgroup_wait`.
template <class T>
DEVICE void warpgroup_multiply(float (&d)[16][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, bfloat16>)
    WARPGROUP_MULTIPLY_128("bf16");
  else
    WARPGROUP_MULTIPLY_128("f16");
}
template <class T>
DEVICE void warpgroup_multiply(float (&d)[32][4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, bfloat16>)
    WARPGROUP_MULTIPLY_256("bf16");
  else
    WARPGROUP_MULTIPLY_256("f16");
}
#undef WARPGROUP_MULTIPLY_256
#undef WARPGROUP_MULTIPLY_128
#undef WARPGROUP_MULTIPLY
#undef SIXTY_FOUR
#undef SIXTEEN
#undef FOUR
#undef NUMBERS_128
#undef NUMBERS_64

}  // namespace altclip_fast::cuda
