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

// What one step of a dot product takes from memory, and how it adds up. A step of the rows is `PARTS` vectors of
// `Values`; what stands against them is of `Input`, arranged as `arrange` does it.
template <typename E>
struct Dot;

template <>
struct Dot<float> {
  using Input = float;
  using Values = Floats;
  static constexpr int64_t STEP = LANES, PARTS = 1;
  template <int PART, bool KEEPS_MASK>
  static Values read(const float* from) {
    return load(from);
  }
  static Floats add(Floats acc, Values x, Values w) { return add_product(acc, x, w); }
};

#ifdef HOTSLOT_DOT_BF16
template <>
struct Dot<bf16> {
  using Input = bf16;
  using Values = __m512bh;
  static constexpr int64_t STEP = 2 * LANES, PARTS = 1;
  template <int PART, bool KEEPS_MASK>
  static Values read(const bf16* from) {
    return (__m512bh)_mm512_loadu_si512(from);
  }
  static Floats add(Floats acc, Values x, Values w) {
    return same_bits<Floats>(_mm512_dpbf16_ps(same_bits<__m512>(acc), x, w));
  }
};
#else
// Widening neighbours apart, low halves and high halves, is one operation each; so x is arranged like that, once.
template <>
struct Dot<bf16> {
  using Input = float;
  using Values = Floats;
  static constexpr int64_t STEP = 2 * LANES, PARTS = 2;
  template <int PART, bool KEEPS_MASK>
  static Values read(const bf16* from) {
    return widened<PART, KEEPS_MASK>(from);
  }
  static Floats add(Floats acc, Values x, Values w) { return add_product(acc, x, w); }
};
#endif

inline Floats read_input(const float* x) { return load(x); }
#ifdef HOTSLOT_DOT_BF16
inline __m512bh read_input(const bf16* x) { return Dot<bf16>::read<0, true>(x); }
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
      store(to + i, widened<0, true>(x + i));
      store(to + i + LANES, widened<1, true>(x + i));
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

// Fetches memory in its own order while rows are read side by side, which the processor does not foresee.
class Ahead {
 public:
  explicit Ahead(const void* next) : next_(static_cast<const char*>(next)) {}
  template <int64_t BYTES>
  void fetch() {
    UNROLL for (int64_t line = 0; line < (BYTES + LINE_BYTES - 1) / LINE_BYTES; ++line)
      __builtin_prefetch(next_ + line * LINE_BYTES);
    next_ += BYTES;
  }

 private:
  static constexpr int64_t LINE_BYTES = 64;
  const char* next_;
};

// lanes[t][o] of x[t] . row(o): what is left is to sum each one's lanes. The sums stay in registers, all of them in the
// largest blocks; so of the vectors of one side few are kept, those of the other follow one by one, and what is
// widened is read again for its second half. Left to itself, the compiler keeps more and spills sums, at half the speed.
template <typename E, int NT, int NO, typename Row>
inline void dot_lanes(const Input<E>* const* x, const Row& row, int64_t size, Ahead* ahead, Floats (&lanes)[NT][NO]) {
  using D = Dot<E>;
  constexpr bool KEEPS_MASK = NT * NO + std::min(NT, NO) + 1 < NUM_REGISTERS;
  Floats acc[NT][NO] = {};
  int64_t i = 0;
  const auto add_part = [&](auto which, const auto& from) {
    constexpr int PART = decltype(which)::value;
    const auto input = [&](int t) { return in_register(read_input(x[t] + i + PART * LANES)); };
    const auto weight = [&](int o) { return in_register(D::template read<PART, KEEPS_MASK>(read_anew(from(o)))); };
    const auto add = [&](int t, int o, auto values, auto w) {
      acc[t][o] = in_register(D::add(acc[t][o], values, w));
    };
    if constexpr (NO < NT) {
      typename D::Values w[NO];
      UNROLL for (int o = 0; o < NO; ++o) w[o] = weight(o);
      UNROLL for (int t = 0; t < NT; ++t) {
        const auto values = input(t);
        UNROLL for (int o = 0; o < NO; ++o) add(t, o, values, w[o]);
      }
    } else {
      typename D::Values values[NT];
      UNROLL for (int t = 0; t < NT; ++t) values[t] = input(t);
      UNROLL for (int o = 0; o < NO; ++o) {
        const auto w = weight(o);
        UNROLL for (int t = 0; t < NT; ++t) add(t, o, values[t], w);
      }
    }
  };
  const auto add_step = [&](const auto& from) {
    add_part(std::integral_constant<int, 0>{}, from);
    if constexpr (D::PARTS == 2) add_part(std::integral_constant<int, 1>{}, from);
  };
  for (; i + D::STEP <= size; i += D::STEP) {
    if (ahead != nullptr) ahead->fetch<NO * D::STEP * sizeof(E)>();
    add_step([&](int o) { return row(o) + i; });
  }
  if (i < size) {
    E rest[NO][D::STEP] = {};
    UNROLL for (int o = 0; o < NO; ++o) std::memcpy(rest[o], row(o) + i, (size - i) * sizeof(E));
    add_step([&](int o) { return rest[o]; });
  }
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) lanes[t][o] = acc[t][o];
  }
}

template <typename E, int NT, int NO>
inline void dot_block(const Input<E>* const* x, const E* w, int64_t size, Ahead* ahead, float* out, int64_t stride) {
  Floats lanes[NT][NO];
  dot_lanes<E, NT, NO>(x, [&](int o) { return w + o * size; }, size, ahead, lanes);
  UNROLL for (int t = 0; t < NT; ++t) {
    UNROLL for (int o = 0; o < NO; ++o) out[t * stride + o] = sum(lanes[t][o]);
  }
}

// NT tokens times all of `count` rows; the first tokens also fetch what follows these rows.
template <typename E, int NT, int NO>
inline void dot_rows(const Input<E>* const* x, int64_t& t, const E* w, int64_t size, int64_t count, float* out,
                     int64_t stride) {
  Ahead next(w + count * size);
  int64_t o = 0;
  const auto blocks = [&](Ahead* ahead) {
    for (; o + NO <= count; o += NO)
      dot_block<E, NT, NO>(x + t, w + o * size, size, ahead, out + t * stride + o, stride);
    for (; o < count; ++o) dot_block<E, NT, 1>(x + t, w + o * size, size, ahead, out + t * stride + o, stride);
  };
  if (t == 0) {
    blocks(&next);
  } else {
    blocks(nullptr);
  }
  t += NT;
}

constexpr int64_t TOKENS_OF_ONE_READING = 16;  // so many are computed while a few rows are in the nearest cache
constexpr int64_t ROWS_OF_ONE_READING = MANY_REGISTERS ? 24 : 4;

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
    if constexpr (MANY_REGISTERS) {
      while (t + 8 <= num_tokens) dot_rows<E, 8, 3>(x, t, from, size, these, to, stride);
      while (t + 4 <= num_tokens) dot_rows<E, 4, 4>(x, t, from, size, these, to, stride);
      while (t + 2 <= num_tokens) dot_rows<E, 2, 8>(x, t, from, size, these, to, stride);
      while (t < num_tokens) dot_rows<E, 1, 1>(x, t, from, size, these, to, stride);
    } else {
      while (t + 6 <= num_tokens) dot_rows<E, 6, 2>(x, t, from, size, these, to, stride);
      while (t + 4 <= num_tokens) dot_rows<E, 4, 2>(x, t, from, size, these, to, stride);
      while (t + 2 <= num_tokens) dot_rows<E, 2, 4>(x, t, from, size, these, to, stride);
      while (t < num_tokens) dot_rows<E, 1, 4>(x, t, from, size, these, to, stride);
    }
  }
}

}  // namespace hotslot
