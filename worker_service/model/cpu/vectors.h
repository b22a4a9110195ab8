// Vectors of floats as wide as the processor's registers, and what this library does with them.

#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__) && !defined(HOTSLOT_LANES)
#define HOTSLOT_DOT_BF16 1
#endif

#define UNROLL _Pragma("GCC unroll 16")

namespace hotslot {

using bf16 = c10::BFloat16;

// Calls with 0 to N - 1 as constants. Arrays that are indexed by these alone are registers from the start, whatever is
// captured by reference; arrays of loops that are unrolled later may be kept in memory as well, which costs a store for
// each sum.
#define INLINED __attribute__((always_inline))
template <int N, typename F>
INLINED inline void repeat(const F& call) {
  [&]<int... I>(std::integer_sequence<int, I...>) INLINED {
    (call(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// Of a width that is not the processor's, the compiler makes what is correct and slow; tests set it.
#if defined(HOTSLOT_LANES)
constexpr int64_t LANES = HOTSLOT_LANES;
#elif defined(__AVX512F__)
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
constexpr bool MANY_REGISTERS = LANES == 16;  // 32 vectors rather than 16
constexpr int NUM_REGISTERS = MANY_REGISTERS ? 32 : 16;

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

template <typename To, typename From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline Floats load(const bf16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  return same_bits<Floats>(__builtin_convertvector(halves, Words) << 16);
}

// acc + x * w, rounded once. By hand, since a compiler that tunes for a processor may round the product too, and does so
// in some loops and not in others; then a token's bits would depend on the block that computes it.
inline Floats add_product(Floats acc, Floats x, Floats w) {
#if defined(__AVX512F__) && !defined(HOTSLOT_LANES)
  return same_bits<Floats>(_mm512_fmadd_ps(same_bits<__m512>(x), same_bits<__m512>(w), same_bits<__m512>(acc)));
#elif defined(__AVX2__) && defined(__FMA__)
  constexpr int64_t COUNT = sizeof(Floats) / sizeof(__m256);
  __m256 sums[COUNT], xs[COUNT], ws[COUNT];
  std::memcpy(sums, &acc, sizeof(acc));
  std::memcpy(xs, &x, sizeof(x));
  std::memcpy(ws, &w, sizeof(w));
  UNROLL for (int64_t i = 0; i < COUNT; ++i) sums[i] = _mm256_fmadd_ps(xs[i], ws[i], sums[i]);
  std::memcpy(&acc, sums, sizeof(acc));
  return acc;
#else
  return acc + x * w;
#endif
}

// Keeps a value that several products share in a register; compilers read it again for each, and a core loads only twice
// a cycle.
template <typename V>
inline V in_register(V v) {
#if defined(__AVX512F__) && !defined(HOTSLOT_LANES)
  asm("" : "+v"(v));
#elif defined(__AVX2__) && !defined(HOTSLOT_LANES)
  asm("" : "+x"(v));
#endif
  return v;
}

inline Floats all(float x) { return x - Floats{}; }

inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof(v)); }

// Rounded to nearest, ties to even; a NaN stays one.
inline void store(bf16* to, Floats v) {
  const Words bits = same_bits<Words>(v);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words is_nan = same_bits<Words>(v != v);
  const Halves halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0u), Halves);
  std::memcpy(to, &halves, sizeof(halves));
}

// Neighbouring bfloat16 values in a word: the first one is its low half.
inline Floats low_halves(Words words) { return same_bits<Floats>(words << 16); }

// What is behind the address is read there and then: the compiler keeps nothing of it in a register from before.
template <typename T>
inline T* read_anew(T* address) {
  asm volatile("" : "+r"(address));
  return address;
}

struct HighMask {
  alignas(sizeof(Words)) uint32_t words[LANES];
  constexpr HighMask() : words{} {
    for (uint32_t& word : words) word = 0xffff0000u;
  }
};
inline constexpr HighMask HIGH_MASK;

// One half of each of LANES words; without `KEEPS_MASK` for blocks that leave no register for it.
template <int PART, bool KEEPS_MASK>
inline Floats widened(const bf16* from) {
  Words words, mask;
  std::memcpy(&words, from, sizeof(words));
  if constexpr (PART == 0) return low_halves(words);
  std::memcpy(&mask, KEEPS_MASK ? HIGH_MASK.words : read_anew(HIGH_MASK.words), sizeof(mask));
  return same_bits<Floats>(words & mask);
}

// Lane j of the result: of `a` where bit `S` of j is 0, else of `b`; itself, or with `CROSS` the lane j ^ S.
template <int S, bool CROSS, int... J>
inline Floats chosen(Floats a, Floats b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, ((J & S ? static_cast<int>(LANES) : 0) + (CROSS ? J ^ S : J))...);
}

template <int S, int... J>
inline Floats crossed(Floats v, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(v, v, (J ^ S)...);
}

using Lanes = std::make_integer_sequence<int, LANES>;

// Sum of all lanes, in every lane.
template <int S = 1>
inline Floats summed(Floats v) {
  if constexpr (S == LANES) {
    return v;
  } else {
    return summed<2 * S>(v + crossed<S>(v, Lanes{}));
  }
}

inline float sum(Floats v) { return summed(v)[0]; }

// One step of adding up lanes, to the bit as `summed` does it: where bit S of a lane is 0 the result is of `a`, else of
// `b`. Vectors of LANES sums, folded in pairs by S = 1, 2, 4 and so on, are one whose lane j is the sum of all lanes of
// the j-th.
template <int S>
INLINED inline Floats folded(Floats a, Floats b) {
  return chosen<S, false>(a, b, Lanes{}) + chosen<S, true>(a, b, Lanes{});
}

// The first (FIRST = 0) or second half of two vectors' lanes in turns: a0 b0 a1 b1 ...
template <int FIRST, int... J>
inline Floats in_turns(Floats a, Floats b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, (FIRST * static_cast<int>(LANES) / 2 + J / 2 + (J % 2 ? static_cast<int>(LANES) : 0))...);
}

// to[o] += from[o].
inline void add_row(const float* from, int64_t count, float* to) {
  int64_t o = 0;
  for (; o + LANES <= count; o += LANES) store(to + o, load(to + o) + load(from + o));
  for (; o < count; ++o) to[o] += from[o];
}

// y[o] = out[o] + addend[o], rounded; `addend` may be null.
template <typename E>
inline void round_row(const float* out, const E* addend, int64_t count, E* y) {
  int64_t o = 0;
  for (; o + LANES <= count; o += LANES)
    store(y + o, addend != nullptr ? load(out + o) + load(addend + o) : load(out + o));
  for (; o < count; ++o)
    y[o] = static_cast<E>(addend != nullptr ? out[o] + static_cast<float>(addend[o]) : out[o]);
}

}  // namespace hotslot
