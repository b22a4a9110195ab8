// Dot products of a few vectors with many rows, in vectors of 16 floats.

#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define HOTSLOT_DOT_BF16 1
#endif

namespace hotslot {

using bf16 = c10::BFloat16;

constexpr int64_t LANES = 16;
constexpr int64_t PREFETCH_BYTES = 4 * 1024;  // weights are read in order, so what comes next is known
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

inline Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline Floats load(const bf16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof(halves));
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats v;
  std::memcpy(&v, &words, sizeof(v));
  return v;
}

inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof(v)); }

inline float sum(Floats v) {
#ifdef HOTSLOT_DOT_BF16
  __m512 r;
  std::memcpy(&r, &v, sizeof(r));
  return _mm512_reduce_add_ps(r);
#else
  float lanes[LANES];
  std::memcpy(lanes, &v, sizeof(v));
  for (int64_t width = LANES / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

// What one step of a dot product takes from memory, and how it adds up.
template <typename E>
struct Dot {
  static constexpr int64_t step = LANES;
  using Values = Floats;
  using Sum = Floats;
  static Sum zero() { return Floats{}; }
  static Values read(const E* from) { return load(from); }
  static Sum add(Sum acc, Values x, Values w) { return acc + x * w; }
  static float total(Sum acc) { return sum(acc); }
};

#ifdef HOTSLOT_DOT_BF16
template <>
struct Dot<bf16> {
  static constexpr int64_t step = 2 * LANES;
  using Values = __m512bh;
  using Sum = __m512;
  static Sum zero() { return _mm512_setzero_ps(); }
  static Values read(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  static Sum add(Sum acc, Values x, Values w) { return _mm512_dpbf16_ps(acc, x, w); }
  static float total(Sum acc) { return _mm512_reduce_add_ps(acc); }
};
#endif

#define UNROLL _Pragma("GCC unroll 8")

// NT tokens times NO rows of a weight: out[t * stride + o] = x[t] . w[o]. The sums stay in registers.
template <typename E, int NT, int NO>
inline void dot_block(const E* const* x, const E* w, int64_t size, float* out, int64_t stride) {
  using D = Dot<E>;
  typename D::Sum acc[NT][NO];
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) acc[t][o] = D::zero();
  }
  int64_t i = 0;
  for (; i + D::step <= size; i += D::step) {
    typename D::Values weights[NO];
    UNROLL for (int o = 0; o < NO; ++o) {
      weights[o] = D::read(w + o * size + i);
      __builtin_prefetch(reinterpret_cast<const char*>(w + o * size + i) + PREFETCH_BYTES);
    }
    UNROLL for (int t = 0; t < NT; ++t) {
      const typename D::Values values = D::read(x[t] + i);
      UNROLL for (int o = 0; o < NO; ++o) acc[t][o] = D::add(acc[t][o], values, weights[o]);
    }
  }
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) out[t * stride + o] = D::total(acc[t][o]);
  }
  for (; i < size; ++i)
    for (int t = 0; t < NT; ++t)
      for (int o = 0; o < NO; ++o)
        out[t * stride + o] += static_cast<float>(x[t][i]) * static_cast<float>(w[o * size + i]);
}

template <typename E, int NT, int NO>
inline void dot_rows(const E* const* x, const E* w, int64_t size, int64_t count, float* out, int64_t stride) {
  int64_t o = 0;
  for (; o + NO <= count; o += NO) dot_block<E, NT, NO>(x, w + o * size, size, out + o, stride);
  for (; o < count; ++o) dot_block<E, NT, 1>(x, w + o * size, size, out + o, stride);
}

// out[t * stride + o] = x[t] . w[o] for any number of tokens; blocks are as large as the registers hold.
template <typename E>
void dot_all(const E* const* x, int64_t num_tokens, const E* w, int64_t size, int64_t count, float* out,
             int64_t stride) {
  int64_t t = 0;
  for (; t + 8 <= num_tokens; t += 8) dot_rows<E, 8, 3>(x + t, w, size, count, out + t * stride, stride);
  if (t + 4 <= num_tokens) {
    dot_rows<E, 4, 4>(x + t, w, size, count, out + t * stride, stride);
    t += 4;
  }
  if (t + 2 <= num_tokens) {
    dot_rows<E, 2, 8>(x + t, w, size, count, out + t * stride, stride);
    t += 2;
  }
  if (t < num_tokens) dot_rows<E, 1, 1>(x + t, w, size, count, out + t * stride, stride);
}

#undef UNROLL

}  // namespace hotslot
