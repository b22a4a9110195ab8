// Weights of 8 bits: every output's row has a scale of its own, and activations keep their type.
//
// A weight is read as one byte and widened in registers; products and sums are those of float32, and the scale is
// applied once to each sum. So a result differs from that with the same weights in full by the order of additions alone.

#pragma once

#include "dot.h"

namespace hotslot {

typedef int8_t Bytes __attribute__((vector_size(LANES)));

// Both halves are as they lie in memory, so the vectors against them need no arrangement.
template <>
struct Dot<int8_t> {
  using Input = float;
  using Values = Floats;
  static constexpr int64_t STEP = 2 * LANES, PARTS = 2;
  template <int PART, bool KEEPS_MASK>
  static Values read(const int8_t* from) {
    // GCC 12 takes a conversion of bytes apart, with some 70 instructions for these two.
#if defined(__AVX512F__) && !defined(HOTSLOT_LANES)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + PART * LANES));
    return same_bits<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
#elif defined(__AVX2__) && !defined(HOTSLOT_LANES)
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + PART * LANES));
    return same_bits<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)));
#else
    Bytes bytes;
    std::memcpy(&bytes, from + PART * LANES, sizeof(bytes));
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#endif
  }
  static Floats add(Floats acc, Values x, Values w) { return add_product(acc, x, w); }
};

// Vectors of any element type as floats, with zeros up to whole steps; keeps its memory for the next call.
class WidenedInputs {
 public:
  template <typename E>
  void take(const E* x, int64_t count, int64_t size) {
    const int64_t stride = padded<int8_t>(size);
    pointers_.resize(count);
    memory_.resize(count * stride);
    for (int64_t t = 0; t < count; ++t) {
      float* to = memory_.data() + t * stride;
      int64_t i = 0;
      for (; i + LANES <= size; i += LANES) store(to + i, load(x + t * size + i));
      for (; i < size; ++i) to[i] = static_cast<float>(x[t * size + i]);
      std::fill(to + size, to + stride, 0.0f);
      pointers_[t] = to;
    }
  }
  const float* const* data() const { return pointers_.data(); }

 private:
  std::vector<const float*> pointers_;
  std::vector<float> memory_;
};

// out[t * stride + o] = scale[o] * (x[t] . q[o]).
inline void dot_scaled(const float* const* x, int64_t num_tokens, const int8_t* q, const float* scale, int64_t size,
                       int64_t count, float* out, int64_t stride) {
  dot_all<int8_t>(x, num_tokens, q, size, count, out, stride);
  for (int64_t t = 0; t < num_tokens; ++t)
    for (int64_t o = 0; o < count; ++o) out[t * stride + o] *= scale[o];
}

}  // namespace hotslot
