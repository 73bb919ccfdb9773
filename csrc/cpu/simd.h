// Vectors as GCC and clang have them: the same source for every instruction set, VL floats at a time.
// Everything lies in the namespace ISA, so that code compiled for one set is never linked in place of another's; for
// the same reason nothing of the C++ library is used here that a linker could merge.
#pragma once

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <utility>  // index_sequence, a mere type

namespace altclip_fast {
namespace ISA {

#if defined(__AVX512F__)
constexpr int VL = 16;
constexpr int COLUMNS = 4;  // vectors of a register tile, next to ROWS rows: 24 of 32 registers
#elif defined(__AVX2__)
constexpr int VL = 8;
constexpr int COLUMNS = 2;  // 12 of 16 registers
#else
constexpr int VL = 4;
constexpr int COLUMNS = 2;
#endif
constexpr int ROWS = 6;

#define VECTOR(T, N, A) T __attribute__((vector_size(sizeof(T) * (N)), aligned(A), may_alias))
typedef VECTOR(float, VL, sizeof(float) * VL) Vector;
typedef VECTOR(float, VL, sizeof(float)) Loose;  // at any address
typedef VECTOR(int32_t, VL, sizeof(int32_t) * VL) Int;
typedef VECTOR(uint32_t, VL, sizeof(uint32_t) * VL) Word;
typedef VECTOR(uint32_t, VL, sizeof(uint16_t)) LooseWord;
typedef uint32_t __attribute__((may_alias)) Bits;
typedef VECTOR(uint16_t, VL, sizeof(uint16_t)) Half;
typedef VECTOR(int16_t, 2 * VL, sizeof(int32_t) * VL) Halves;
typedef VECTOR(int16_t, 2 * VL, sizeof(int16_t)) LooseHalves;
typedef VECTOR(uint8_t, VL, sizeof(uint8_t)) Bytes;
typedef VECTOR(_Float16, VL, sizeof(_Float16)) Float16s;
// What a sum of products is kept in. A processor that does not fuse them rounds twice: then in float64.
#if defined(__FMA__) || defined(__aarch64__)
typedef Vector FloatTotal;
#else
typedef VECTOR(double, VL, sizeof(double) * VL) FloatTotal;
#endif
#undef VECTOR

struct bfloat16 { uint16_t bits; };
typedef _Float16 float16;

inline Vector all(float x) { return Vector{} + x; }
inline FloatTotal add_product(FloatTotal total, Vector a, Vector b) {
  return total + __builtin_convertvector(a, FloatTotal) * __builtin_convertvector(b, FloatTotal);
}
#if defined(__AVX512BW__)
inline Int multiply_halves(Word a, Word b) { return (Int)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
inline Int multiply_halves(Word a, Word b) { return (Int)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#elif defined(__SSE2__)
// Signed halves of each word multiplied, and the two products added.
inline Int multiply_halves(Word a, Word b) { return (Int)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#endif
inline Vector bits_to_float(Word x) { return (Vector)x; }

inline Vector load(const float* p) { return *(const Loose*)p; }
#if defined(__AVX512F__)
inline Word widened(const uint16_t* p) {
  return (Word)_mm512_maskz_cvtepu16_epi32((__mmask16)-1, _mm256_loadu_si256((const __m256i*)p));
}
#else
inline Word widened(const uint16_t* p) { return __builtin_convertvector(*(const Half*)p, Word); }
#endif
inline Vector load(const bfloat16* p) { return bits_to_float(widened(&p->bits) << 16); }
// Spelled out where there is an instruction: GCC 12 converts element by element.
#if defined(__AVX512F__)
inline Vector load(const float16* p) { return (Vector)_mm512_maskz_cvtph_ps(-1, *(const __m256i_u*)p); }
#elif defined(__F16C__)
inline Vector load(const float16* p) { return (Vector)_mm256_cvtph_ps(*(const __m128i_u*)p); }
#else
inline Vector load(const float16* p) { return __builtin_convertvector(*(const Float16s*)p, Vector); }
#endif

inline void store(float* p, Vector x) { *(Loose*)p = x; }
#if defined(__AVX512BF16__)
inline void store(bfloat16* p, Vector x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)x)); }
#else
inline void store(bfloat16* p, Vector x) {
  Word bits = (Word)x;
  Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  Word quiet = (bits >> 16) | 0x40;
  Word nan = (Word)(x != x);
  *(Half*)p = __builtin_convertvector((nan & quiet) | (~nan & rounded), Half);
}
#endif
#if defined(__AVX512F__)
inline void store(float16* p, Vector x) { *(__m256i_u*)p = _mm512_maskz_cvtps_ph(-1, (__m512)x, 0); }
#elif defined(__F16C__)
inline void store(float16* p, Vector x) { *(__m128i_u*)p = _mm256_cvtps_ph((__m256)x, 0); }
#else
inline void store(float16* p, Vector x) { *(Float16s*)p = __builtin_convertvector(x, Float16s); }
#endif

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
  union { uint32_t bits; float value; } u = {(uint32_t)x.bits << 16};
  return u.value;
}
inline float to_float(float16 x) { return (float)x; }

template <class T>
__attribute__((noinline)) void store_some(T* p, Vector x, int64_t count) {
  T whole[VL];
  store(whole, x);
  for (int64_t i = 0; i < count; i++) p[i] = whole[i];
}

// Not beyond the end of a row.
template <class T>
inline void store_most(T* p, Vector x, int64_t left) {
  if (left >= VL) store(p, x);
  else store_some(p, x, left);
}

// To the nearest integer, ties to even.
#if defined(__AVX512F__)
inline Int nearest(Vector x) { return (Int)_mm512_maskz_cvtps_epi32((__mmask16)-1, (__m512)x); }
#elif defined(__AVX2__)
inline Int nearest(Vector x) { return (Int)_mm256_cvtps_epi32((__m256)x); }
#elif defined(__SSE2__)
inline Int nearest(Vector x) { return (Int)_mm_cvtps_epi32((__m128)x); }
#else
inline Int nearest(Vector x) {
  Int found;
  for (int i = 0; i < VL; i++) found[i] = (int32_t)__builtin_rintf(x[i]);
  return found;
}
#endif

// The second one where either is NaN.
#if defined(__AVX512F__)
inline Vector larger(Vector a, Vector b) { return (Vector)_mm512_maskz_max_ps((__mmask16)-1, (__m512)a, (__m512)b); }
inline Vector smaller(Vector a, Vector b) { return (Vector)_mm512_maskz_min_ps((__mmask16)-1, (__m512)a, (__m512)b); }
#else
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
#endif
inline Vector clamped(Vector x, float low, float high) { return smaller(all(high), larger(all(low), x)); }
template <class T>
inline T narrow(float x) {
  T out[VL];
  store(out, all(x));
  return out[0];
}

template <int STEP, int... I>
inline Vector turn(Vector x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, ((I + STEP) % VL)...);
}
// All lanes combined, in a tree.
template <int STEP = VL / 2, class Combine>
inline float fold(Vector x, Combine combine) {
  if constexpr (STEP == 0) return x[0];
  else return fold<STEP / 2>(combine(x, turn<STEP>(x, std::make_integer_sequence<int, VL>())), combine);
}
inline float largest(Vector x) { return fold(x, larger); }
inline float sum(Vector x) {
  return fold(x, [](Vector a, Vector b) { return a + b; });
}

template <int... I>
inline Vector count(std::integer_sequence<int, I...>) { return Vector{(float)I...}; }
// 0, 1, 2, ..
inline Vector count() { return count(std::make_integer_sequence<int, VL>()); }

// Whether a comparison holds in all lanes.
inline bool all_set(Int x) {
  typedef int64_t Long __attribute__((vector_size(sizeof(Int)), may_alias));
  Long wide = (Long)x;
  int64_t both = wide[0];
  for (int i = 1; i < VL / 2; i++) both &= wide[i];
  return both == -1;
}

#if defined(__AVX512F__)
inline Vector rounded(Vector x) { return (Vector)_mm512_maskz_roundscale_ps((__mmask16)-1, (__m512)x, 0); }
#else
inline Vector rounded(Vector x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  return (x + magic) - magic;
}
#endif

// Where a result will be bfloat16, it is found to 1e-4, a fortieth of that rounding.
template <class T> constexpr bool BRIEF = false;
template <> constexpr bool BRIEF<bfloat16> = true;

// 1 / x to 1 ulp, for numbers whose reciprocal is not denormal. A division takes as long as ten products.
#if defined(__AVX512F__)
template <class T = float>
inline Vector reciprocal(Vector x) {
  const Vector y = (Vector)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)x);
  return BRIEF<T> ? y : y + y * (1 - x * y);
}
#else
template <class T = float>
inline Vector reciprocal(Vector x) { return 1 / x; }
#endif

// 2^(n + f) for an integer n and |f| <= 1/2: 2^f by a polynomial that is 1 at 0 and elsewhere within 2e-9 (minimax),
// or 1.1e-4.
template <class T = float>
inline Vector power(Vector n, Vector f) {
  Vector p;
  if constexpr (BRIEF<T>) {
    p = all(5.500905780658257e-2f);
    p = p * f + 2.4221097466536887e-1f;
    p = p * f + 6.932828979925825e-1f;
  } else {
    p = all(1.5353361959569156e-4f);
    p = p * f + 1.3398875016719103e-3f;
    p = p * f + 9.61843691766262e-3f;
    p = p * f + 5.5503323674201965e-2f;
    p = p * f + 2.4022647738456726e-1f;
    p = p * f + 6.931471824645996e-1f;
  }
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)n);
#else
  return (Vector)((Int)p + (__builtin_convertvector(n, Int) << 23));
#endif
}

// 2^x for x <= 0, to 2 ulp; below 2^-126 it is 0, or denormal; NaN stays.
template <class T = float>
inline Vector exp2(Vector x) {
#if defined(__AVX512F__)
  x = larger(all(-200.0f), x);
  const Vector n = rounded(x);
  return power<T>(n, x - n);
#else
  const Vector clamped = x < -127.0f ? all(-127.0f) : x, n = rounded(clamped);
  return x < -126.0f ? all(0.0f) : power<T>(n, clamped - n);
#endif
}

// e^x for x <= 0, to 2 ulp; 0 below 2^-126; NaN stays. log2(e) comes in two parts: the first times x is not rounded.
inline Vector exp(Vector x) {
  const Vector clamped = x < -88.0f ? all(-88.0f) : x;
  const Vector n = rounded(clamped * 1.44269502162933349609375f);
  const Vector f = (clamped * 1.44269502162933349609375f - n) + clamped * 1.92596299112661746887e-8f;
  return x < -87.33654f ? all(0.0f) : power(n, f);
}

// Transposing takes shuffles of one instruction each: interleaved numbers, then pairs of them, within 16 bytes, which
// makes columns of four rows; then whole 16 bytes change places.
template <int HIGH, class V, int... LANE>
inline V interleaved(V a, V b, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(a, b, (LANE / 4 * 4 + 2 * HIGH + LANE % 4 / 2 + LANE % 2 * VL)...);
}
template <int HIGH, class V, int... LANE>
inline V paired(V a, V b, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(a, b, (LANE / 4 * 4 + 2 * HIGH + LANE % 2 + LANE % 4 / 2 * VL)...);
}
template <int ODD, class V, int... LANE>
inline V quarters(V a, V b, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(a, b, ((LANE / 4 * 2 + ODD) * 4 + LANE % 4)...);
}

// The sum of the lanes of x[i] in lane i, for four vectors: in the same tree for each.
inline Vector sums_of_four(const Vector* x) {
  constexpr auto lanes = std::make_integer_sequence<int, VL>();
  const Vector a = interleaved<0>(x[0], x[1], lanes) + interleaved<1>(x[0], x[1], lanes);
  const Vector b = interleaved<0>(x[2], x[3], lanes) + interleaved<1>(x[2], x[3], lanes);
  Vector found = paired<0>(a, b, lanes) + paired<1>(a, b, lanes);
  if constexpr (VL >= 16) found += turn<8>(found, lanes);
  if constexpr (VL >= 8) found += turn<4>(found, lanes);
  return found;
}

// x[STEP * i] holds 16 bytes for each i; these become rows.
template <int COUNT, int STEP, class V>
inline void transpose_quarters(V* x) {
  constexpr auto lanes = std::make_integer_sequence<int, VL>();
  if constexpr (COUNT > 1) {
    V even[COUNT / 2], odd[COUNT / 2];
    for (int i = 0; i < COUNT / 2; i++) {
      even[i] = quarters<0>(x[2 * i * STEP], x[(2 * i + 1) * STEP], lanes);
      odd[i] = quarters<1>(x[2 * i * STEP], x[(2 * i + 1) * STEP], lanes);
    }
    transpose_quarters<COUNT / 2, 1>(even);
    transpose_quarters<COUNT / 2, 1>(odd);
    for (int i = 0; i < COUNT / 2; i++) {
      x[2 * i * STEP] = even[i];
      x[(2 * i + 1) * STEP] = odd[i];
    }
  }
}

// A square of VL x VL lanes, rows to columns.
template <class V>
inline void transpose(V (&x)[VL]) {
  constexpr auto lanes = std::make_integer_sequence<int, VL>();
  for (int i = 0; i < VL; i += 4) {
    const V a = interleaved<0>(x[i], x[i + 1], lanes), b = interleaved<1>(x[i], x[i + 1], lanes);
    const V c = interleaved<0>(x[i + 2], x[i + 3], lanes), d = interleaved<1>(x[i + 2], x[i + 3], lanes);
    x[i] = paired<0>(a, c, lanes);
    x[i + 1] = paired<1>(a, c, lanes);
    x[i + 2] = paired<0>(b, d, lanes);
    x[i + 3] = paired<1>(b, d, lanes);
  }
  for (int i = 0; i < 4; i++) transpose_quarters<VL / 4, 4>(x + i);
}

}  // namespace ISA
}  // namespace altclip_fast
