// Dot products of a few vectors with many rows of memory.
//
// A product's bits depend on its two vectors alone: whatever block computes it, it is one chain of additions a lane, and
// the lanes add up in one order.

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace hotslot {

constexpr int64_t PREFETCH_BYTES = 4 * 1024;  // weights are read in order, so what comes next is known

// What one step of a dot product takes from memory, and how it adds up. A step of the rows is `Raw`, which has `PARTS`
// vectors; the vectors that stand against them are of `Input`, arranged as `arrange` does it.
template <typename E>
struct Dot;

template <>
struct Dot<float> {
  using Input = float;
  using Raw = Floats;
  using Sum = Floats;
  static constexpr int64_t STEP = LANES, PARTS = 1;
  static Raw read(const float* from) { return load(from); }
  template <int PART>
  static Sum add(Sum acc, const Input* x, Raw w) {
    return acc + load(x) * w;
  }
  static Floats lanes(Sum acc) { return acc; }
};

#ifdef HOTSLOT_DOT_BF16
template <>
struct Dot<bf16> {
  using Input = bf16;
  using Raw = __m512bh;
  using Sum = __m512;
  static constexpr int64_t STEP = 2 * LANES, PARTS = 1;
  static Raw read(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
  template <int PART>
  static Sum add(Sum acc, const Input* x, Raw w) {
    return _mm512_dpbf16_ps(acc, read(x), w);
  }
  static Floats lanes(Sum acc) { return same_bits<Floats>(acc); }
};
#else
// Widening neighbours apart, low halves and high halves, is one operation each; so x is arranged like that, once.
template <>
struct Dot<bf16> {
  using Input = float;
  using Raw = Words;
  using Sum = Floats;
  static constexpr int64_t STEP = 2 * LANES, PARTS = 2;
  static Raw read(const bf16* from) {
    Words words;
    std::memcpy(&words, from, sizeof(words));
    return words;
  }
  template <int PART>
  static Sum add(Sum acc, const Input* x, Raw w) {
    return acc + load(x + PART * LANES) * (PART ? high_halves(w) : low_halves(w));
  }
  static Floats lanes(Sum acc) { return acc; }
};
#endif

template <typename E>
using Input = typename Dot<E>::Input;

template <typename E>
constexpr int64_t padded(int64_t size) {
  return (size + Dot<E>::STEP - 1) / Dot<E>::STEP * Dot<E>::STEP;
}

// Writes `padded(size)` values.
template <typename E>
inline void arrange(const E* x, int64_t size, Input<E>* to) {
  constexpr int64_t STEP = Dot<E>::STEP;
  int64_t i = 0;
  if constexpr (Dot<E>::PARTS == 2) {
    for (; i + STEP <= size; i += STEP) {
      const auto words = Dot<E>::read(x + i);
      store(to + i, low_halves(words));
      store(to + i + LANES, high_halves(words));
    }
    if (i < size) {
      std::fill(to + i, to + i + STEP, 0.0f);
      for (int64_t rest = 0; i + rest < size; ++rest)
        to[i + rest / 2 + rest % 2 * LANES] = static_cast<float>(x[i + rest]);
    }
  } else {
    std::copy(x, x + size, to);
    std::fill(to + size, to + padded<E>(size), Input<E>(0.0f));
  }
}

// The vectors that stand against rows, arranged where that is needed; keeps its memory for the next call.
template <typename E>
class Inputs {
 public:
  void take(const E* x, int64_t count, int64_t size) {
    pointers_.resize(count);
    if constexpr (std::is_same_v<E, Input<E>>) {
      if (size % Dot<E>::STEP == 0) {
        for (int64_t t = 0; t < count; ++t) pointers_[t] = x + t * size;
        return;
      }
    }
    const int64_t stride = padded<E>(size);
    memory_.resize(count * stride);
    for (int64_t t = 0; t < count; ++t) {
      arrange<E>(x + t * size, size, memory_.data() + t * stride);
      pointers_[t] = memory_.data() + t * stride;
    }
  }
  const Input<E>* const* data() const { return pointers_.data(); }
  const Input<E>* operator[](int64_t t) const { return pointers_[t]; }

 private:
  std::vector<const Input<E>*> pointers_;
  std::vector<Input<E>> memory_;
};

template <typename E>
inline typename Dot<E>::Raw read_rest(const E* from, int64_t count) {
  E values[Dot<E>::STEP] = {};
  std::memcpy(values, from, count * sizeof(E));
  return Dot<E>::read(values);
}

template <typename E, int NT, int NO, int PART>
inline void add_part(typename Dot<E>::Sum (&acc)[NT][NO], const Input<E>* const* x, int64_t i,
                     const typename Dot<E>::Raw (&w)[NO]) {
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) acc[t][o] = Dot<E>::template add<PART>(acc[t][o], x[t] + i, w[o]);
  }
}

// lanes[t][o] of x[t] . row(o): what is left is to sum each one's lanes. The sums stay in registers.
template <typename E, int NT, int NO, bool PREFETCH, typename Row>
inline void dot_lanes(const Input<E>* const* x, const Row& row, int64_t size, Floats (&lanes)[NT][NO]) {
  using D = Dot<E>;
  typename D::Sum acc[NT][NO];
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) acc[t][o] = typename D::Sum{};
  }
  typename D::Raw w[NO];
  int64_t i = 0;
  for (; i + D::STEP <= size; i += D::STEP) {
    UNROLL for (int o = 0; o < NO; ++o) {
      w[o] = D::read(row(o) + i);
      if constexpr (PREFETCH) __builtin_prefetch(reinterpret_cast<const char*>(row(o) + i) + PREFETCH_BYTES);
    }
    add_part<E, NT, NO, 0>(acc, x, i, w);
    if constexpr (D::PARTS == 2) add_part<E, NT, NO, 1>(acc, x, i, w);
  }
  if (i < size) {
    UNROLL for (int o = 0; o < NO; ++o) w[o] = read_rest(row(o) + i, size - i);
    add_part<E, NT, NO, 0>(acc, x, i, w);
    if constexpr (D::PARTS == 2) add_part<E, NT, NO, 1>(acc, x, i, w);
  }
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) lanes[t][o] = D::lanes(acc[t][o]);
  }
}

template <typename E, int NT, int NO>
inline void dot_block(const Input<E>* const* x, const E* w, int64_t size, float* out, int64_t stride) {
  Floats lanes[NT][NO];
  dot_lanes<E, NT, NO, true>(x, [&](int o) { return w + o * size; }, size, lanes);
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) out[t * stride + o] = sum(lanes[t][o]);
  }
}

template <typename E, int NT, int NO>
inline void dot_rows(const Input<E>* const* x, const E* w, int64_t size, int64_t count, float* out, int64_t stride) {
  int64_t o = 0;
  for (; o + NO <= count; o += NO) dot_block<E, NT, NO>(x, w + o * size, size, out + o, stride);
  for (; o < count; ++o) dot_block<E, NT, 1>(x, w + o * size, size, out + o, stride);
}

constexpr int64_t TOKENS_OF_ONE_READING = 16;  // so many are computed while a few rows are in the nearest cache
constexpr int64_t ROWS_OF_ONE_READING = 12;

// out[t * stride + o] = x[t] . w[o] for any number of tokens; blocks are as large as the registers hold.
template <typename E>
void dot_all(const Input<E>* const* x, int64_t num_tokens, const E* w, int64_t size, int64_t count, float* out,
             int64_t stride) {
  const int64_t rows = num_tokens > TOKENS_OF_ONE_READING ? count : ROWS_OF_ONE_READING;
  for (int64_t first = 0; first < count; first += rows) {
    const int64_t these = std::min(rows, count - first);
    const E* from = w + first * size;
    float* to = out + first;
    int64_t t = 0;
    if constexpr (MANY_REGISTERS)
      for (; t + 8 <= num_tokens; t += 8) dot_rows<E, 8, 3>(x + t, from, size, these, to + t * stride, stride);
    for (; t + 4 <= num_tokens; t += 4)
      dot_rows<E, 4, MANY_REGISTERS ? 4 : 2>(x + t, from, size, these, to + t * stride, stride);
    if (t + 2 <= num_tokens) {
      dot_rows<E, 2, MANY_REGISTERS ? 8 : 4>(x + t, from, size, these, to + t * stride, stride);
      t += 2;
    }
    if (t < num_tokens) dot_rows<E, 1, MANY_REGISTERS ? 1 : 4>(x + t, from, size, these, to + t * stride, stride);
  }
}

}  // namespace hotslot
