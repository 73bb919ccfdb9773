// Vectors as GCC and clang have them: the same source for every instruction set, VL floats at a time.
// Everything lies in the namespace ISA, so that code compiled for one set is never linked in place of another's; for
// the same reason nothing of the C++ library is used here that a linker could merge.
#pragma once

#include <stdint.h>

#include <utility>

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
typedef VECTOR(uint16_t, VL, sizeof(uint16_t)) Half;
typedef VECTOR(_Float16, VL, sizeof(_Float16)) Float16s;
#undef VECTOR

struct bfloat16 { uint16_t bits; };
typedef _Float16 float16;

inline Vector all(float x) { return Vector{} + x; }
inline Vector bits_to_float(Word x) { return (Vector)x; }

inline Vector load(const float* p) { return *(const Loose*)p; }
inline Vector load(const bfloat16* p) { return bits_to_float(__builtin_convertvector(*(const Half*)p, Word) << 16); }
inline Vector load(const float16* p) { return __builtin_convertvector(*(const Float16s*)p, Vector); }

inline void store(float* p, Vector x) { *(Loose*)p = x; }
inline void store(bfloat16* p, Vector x) {
  Word bits = (Word)x;
  Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  Word quiet = (bits >> 16) | 0x40;
  Word nan = (Word)(x != x);
  *(Half*)p = __builtin_convertvector((nan & quiet) | (~nan & rounded), Half);
}
inline void store(float16* p, Vector x) { *(Float16s*)p = __builtin_convertvector(x, Float16s); }

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) {
  union { uint32_t bits; float value; } u = {(uint32_t)x.bits << 16};
  return u.value;
}
inline float to_float(float16 x) { return (float)x; }

template <class T>
inline void store_some(T* p, Vector x, int64_t count) {
  T whole[VL];
  store(whole, x);
  for (int64_t i = 0; i < count; i++) p[i] = whole[i];
}

template <class T>
inline T narrow(float x) {
  T out[VL];
  store(out, all(x));
  return out[0];
}

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

template <int STEP, int... LANE>
inline Vector turned(Vector x, std::integer_sequence<int, LANE...>) {
  return __builtin_shufflevector(x, x, ((LANE + STEP) % VL)...);
}

// The lanes combined in log2(VL) steps, each with those half as far away.
template <int STEP = VL / 2, class Combine>
inline float across(Vector x, Combine combine) {
  x = combine(x, turned<STEP>(x, std::make_integer_sequence<int, VL>()));
  if constexpr (STEP > 1) return across<STEP / 2>(x, combine);
  return x[0];
}
inline float largest(Vector x) { return across(x, larger); }
inline float sum(Vector x) { return across(x, [](Vector a, Vector b) { return a + b; }); }

// Whether a comparison holds in all lanes.
inline bool all_set(Int x) {
  typedef int64_t Long __attribute__((vector_size(sizeof(Int)), may_alias));
  Long wide = (Long)x;
  int64_t both = wide[0];
  for (int i = 1; i < VL / 2; i++) both &= wide[i];
  return both == -1;
}

constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

// 2^(n + f) for an integer n and |f| <= 1/2: 2^f by its Taylor polynomial of degree 7, whose first omitted term is 5e-9.
inline Vector power(Vector n, Vector f) {
  Vector p = all(1.5252733804059841e-5f);
  p = p * f + 1.5403530393381609e-4f;
  p = p * f + 1.3333558146428443e-3f;
  p = p * f + 9.618129107628477e-3f;
  p = p * f + 5.5504108664821576e-2f;
  p = p * f + 2.402265069591007e-1f;
  p = p * f + 6.931471805599453e-1f;
  p = p * f + 1.0f;
  return (Vector)((Int)p + (__builtin_convertvector(n, Int) << 23));
}

// 2^x for x <= 0, to 2 ulp; 0 below 2^-126; NaN stays.
inline Vector exp2(Vector x) {
  Vector clamped = larger(x, all(-127.0f));
  Vector n = (clamped + MAGIC) - MAGIC;
  return x < -126.0f ? all(0.0f) : x == x ? power(n, clamped - n) : x;
}

// e^x for x <= 0, to 2 ulp; 0 below 2^-126; NaN stays. log2(e) comes in two parts: the first times x is not rounded.
inline Vector exp(Vector x) {
  Vector clamped = larger(x, all(-88.0f));
  Vector n = (clamped * 1.44269502162933349609375f + MAGIC) - MAGIC;
  Vector f = (clamped * 1.44269502162933349609375f - n) + clamped * 1.92596299112661746887e-8f;
  return x < -87.33654f ? all(0.0f) : x == x ? power(n, f) : x;
}

}  // namespace ISA
}  // namespace altclip_fast
