// Linears: every weight is read once for few tokens, and of the slots only those that are on.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "dot.h"

namespace hotslot {

// All slots of one module; every tensor is contiguous but for the rows of the gates.
struct Slots {
  const at::Tensor& a_CI;
  const at::Tensor& b_CO;
  const at::Tensor& scale_S;
  const at::Tensor& one_SK;  // 1 for ranks whose input is 1 rather than x
  const at::Tensor& gates_TS;

  int64_t rank() const { return a_CI.size(0) / scale_S.size(0); }
};

// Two ranks side by side in a word, where products take pairs; else one.
#ifdef HOTSLOT_DOT_BF16
template <typename E>
constexpr bool PAIRED = std::is_same_v<E, bf16>;
#else
template <typename E>
constexpr bool PAIRED = false;
#endif

constexpr int64_t TILE_TOKENS = 16;  // tokens of one slot that one thread takes at a time

// The slots that are on, each with its tokens; keeps its memory for the next call.
template <typename E>
class ActiveSlots {
 public:
  struct Tile {
    int64_t slot, first, count;  // `first` is where its tokens begin among all
  };

  // h = gate * scale * (A x + one) of each slot's tokens.
  void compute(const Slots& slots, const Inputs<E>& x, int64_t num_tokens, int64_t size) {
    find(slots, num_tokens);
    const int64_t rank = slots.rank(), words = (rank + 1) / 2, stride = slots.gates_TS.stride(0);
    const float* gates = slots.gates_TS.template const_data_ptr<float>();
    const float* scale = slots.scale_S.template const_data_ptr<float>();
    const float* one = slots.one_SK.template const_data_ptr<float>();
    const E* a = slots.a_CI.template const_data_ptr<E>();
    inputs_.resize(tokens_.size());
    for (size_t index = 0; index < tokens_.size(); ++index) inputs_[index] = x[tokens_[index]];
    h_.resize(tokens_.size() * rank);
    if (PAIRED<E>) pairs_.resize(tokens_.size() * words);
    at::parallel_for(0, tiles_.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const auto [slot, first, count] = tiles_[index];
        float* h = h_.data() + first * rank;
        dot_all<E>(inputs_.data() + first, count, a + slot * rank * size, size, rank, h, rank);
        for (int64_t i = 0; i < count; ++i, h += rank) {
          const float factor = gates[tokens_[first + i] * stride + slot] * scale[slot];
          for (int64_t k = 0; k < rank; ++k) h[k] = (h[k] + one[slot * rank + k]) * factor;
          if (PAIRED<E>) pair(h, rank, pairs_.data() + (first + i) * words);
        }
      }
    });
  }

  const std::vector<Tile>& tiles() const { return tiles_; }
  const int64_t* tokens(const Tile& tile) const { return tokens_.data() + tile.first; }
  const float* h(const Tile& tile, int64_t rank) const { return h_.data() + tile.first * rank; }
  const uint32_t* pairs(const Tile& tile, int64_t rank) const {
    return pairs_.data() + tile.first * ((rank + 1) / 2);
  }

 private:
  void find(const Slots& slots, int64_t num_tokens) {
    const float* gates = slots.gates_TS.template const_data_ptr<float>();
    const float* scale = slots.scale_S.template const_data_ptr<float>();
    const int64_t stride = slots.gates_TS.stride(0);
    tiles_.clear();
    tokens_.clear();
    for (int64_t slot = 0; slot < slots.scale_S.size(0); ++slot) {
      if (scale[slot] == 0) continue;  // its adapter does not target this module
      int64_t count = 0;
      for (int64_t t = 0; t < num_tokens; ++t) {
        if (gates[t * stride + slot] == 0) continue;
        if (count++ % TILE_TOKENS == 0) tiles_.push_back({slot, static_cast<int64_t>(tokens_.size()), 0});
        ++tiles_.back().count;
        tokens_.push_back(t);
      }
    }
  }

  // Rounded to bfloat16, the first one low; an odd last rank has 0 beside it.
  static void pair(const float* h, int64_t rank, uint32_t* to) {
    for (int64_t k = 0; k < rank; k += 2) {
      const uint32_t low = bf16(h[k]).x, high = k + 1 < rank ? bf16(h[k + 1]).x : 0;
      *to++ = low | high << 16;
    }
  }

  std::vector<Tile> tiles_;
  std::vector<int64_t> tokens_;
  std::vector<const Input<E>*> inputs_;
  std::vector<float> h_;
  std::vector<uint32_t> pairs_;
};

constexpr int64_t CHUNK = 96;  // outputs that one visit computes

// One token's outputs: out[o] += sum over k of h[k] * b[k][o], where row k begins at b + k * num_out. NT tokens share
// what is read; a token's sums are the same for any NT.
template <typename E, int NT>
inline void add_ranks(const float* h, const E* b, int64_t rank, int64_t num_out, int64_t count, float* const* out) {
  constexpr int NV = MANY_REGISTERS ? 4 : NT == 1 ? 6 : 2;
  int64_t o = 0;
  const auto add = [&](auto vectors) {
    constexpr int N = decltype(vectors)::value;
    for (; o + N * LANES <= count; o += N * LANES) {
      Floats acc[NT][N] = {};
      for (int64_t k = 0; k < rank; ++k) {
        Floats row[N];
        UNROLL for (int v = 0; v < N; ++v) row[v] = load(b + k * num_out + o + v * LANES);
        UNROLL for (int t = 0; t < NT; ++t) {
          UNROLL for (int v = 0; v < N; ++v) acc[t][v] = add_product(acc[t][v], all(h[t * rank + k]), row[v]);
        }
      }
      UNROLL for (int t = 0; t < NT; ++t) {
        UNROLL for (int v = 0; v < N; ++v) {
          float* to = out[t] + o + v * LANES;
          store(to, load(to) + acc[t][v]);
        }
      }
    }
  };
  add(std::integral_constant<int, NV>{});
  add(std::integral_constant<int, 1>{});
  for (; o < count; ++o)
    for (int t = 0; t < NT; ++t) {
      float acc = 0;
      for (int64_t k = 0; k < rank; ++k) acc = std::fma(h[t * rank + k], static_cast<float>(b[k * num_out + o]), acc);
      out[t][o] += acc;
    }
}

#ifdef HOTSLOT_DOT_BF16
// The same for as many outputs as come in pairs of vectors; returns how many those are.
inline int64_t add_pairs(const uint32_t* pairs, const bf16* b, int64_t rank, int64_t num_out, int64_t count,
                         float* out) {
  // Interleaving two rows works on quarters of a vector, so that the sums of outputs 8j to 8j + 3 are in one vector and
  // those of 8j + 4 to 8j + 7 in the other.
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  int64_t o = 0;
  for (; o + 2 * LANES <= count; o += 2 * LANES) {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t k = 0; k < rank; k += 2) {
      const __m512i row = _mm512_loadu_si512(b + k * num_out + o);
      const __m512i below = k + 1 < rank ? _mm512_loadu_si512(b + (k + 1) * num_out + o) : _mm512_setzero_si512();
      const __m512bh factors = (__m512bh)_mm512_set1_epi32(pairs[k / 2]);
      low = _mm512_dpbf16_ps(low, factors, (__m512bh)_mm512_unpacklo_epi16(row, below));
      high = _mm512_dpbf16_ps(high, factors, (__m512bh)_mm512_unpackhi_epi16(row, below));
    }
    float* to = out + o;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(low, first, high)));
    to += LANES;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(low, second, high)));
  }
  return o;
}
#endif

// Adds a slot's share to `count` outputs of its tokens; `b` points at its first rank and the first of the outputs, and
// out + t * stride at token t's.
template <typename E>
void add_slot(const ActiveSlots<E>& active, const typename ActiveSlots<E>::Tile& tile, const E* b, int64_t rank,
              int64_t num_out, int64_t count, float* out, int64_t stride) {
  const int64_t* tokens = active.tokens(tile);
  const float* h = active.h(tile, rank);
  int64_t done = 0;
#ifdef HOTSLOT_DOT_BF16
  if constexpr (PAIRED<E>)
    for (int64_t i = 0; i < tile.count; ++i)
      done = add_pairs(active.pairs(tile, rank) + i * ((rank + 1) / 2), b, rank, num_out, count,
                       out + tokens[i] * stride);
#endif
  if (done == count) return;
  int64_t i = 0;
  for (; i + 4 <= tile.count; i += 4) {
    float* to[4];
    for (int t = 0; t < 4; ++t) to[t] = out + tokens[i + t] * stride + done;
    add_ranks<E, 4>(h + i * rank, b + done, rank, num_out, count - done, to);
  }
  for (; i < tile.count; ++i) {
    float* to = out + tokens[i] * stride + done;
    add_ranks<E, 1>(h + i * rank, b + done, rank, num_out, count - done, &to);
  }
}

// y = W x + addend + what the slots that are on add to it. Without `w` the first is 0. An `addend` is a bias, with a
// stride of 0, or has a row for each token; it may be y itself.
template <typename E>
void compute(const at::Tensor& x_TI, const E* w, const E* addend, int64_t addend_stride, const Slots* slots,
             at::Tensor& y_TO) {
  static thread_local Inputs<E> kept_x;
  static thread_local ActiveSlots<E> kept_active;
  Inputs<E>& x = kept_x;  // the caller's, in the threads that help it too
  ActiveSlots<E>& active = kept_active;
  const int64_t num_tokens = x_TI.size(0), size = x_TI.size(1), num_out = y_TO.size(1);
  E* y = y_TO.mutable_data_ptr<E>();
  x.take(x_TI.const_data_ptr<E>(), num_tokens, size);
  if (slots != nullptr) active.compute(*slots, x, num_tokens, size);
  if (w == nullptr && active.tiles().empty()) return;
  const int64_t rank = slots != nullptr ? slots->rank() : 0;
  const E* b = slots != nullptr ? slots->b_CO.const_data_ptr<E>() : nullptr;
  at::parallel_for(0, (num_out + CHUNK - 1) / CHUNK, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> out;
    out.resize(num_tokens * CHUNK);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * CHUNK, count = std::min(CHUNK, num_out - first);
      if (w != nullptr)
        dot_all<E>(x.data(), num_tokens, w + first * size, size, count, out.data(), CHUNK);
      else
        std::fill(out.begin(), out.end(), 0.0f);
      if (slots != nullptr)
        for (const auto& tile : active.tiles())
          add_slot<E>(active, tile, b + tile.slot * rank * num_out + first, rank, num_out, count, out.data(), CHUNK);
      for (int64_t t = 0; t < num_tokens; ++t)
        round_row(out.data() + t * CHUNK, addend != nullptr ? addend + t * addend_stride + first : nullptr, count,
                  y + t * num_out + first);
    }
  });
}

template <typename E>
void linear_impl(const at::Tensor& x_TI, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                 const Slots* slots, at::Tensor& y_TO) {
  const E* bias = bias_O.has_value() ? bias_O->const_data_ptr<E>() : nullptr;
  compute<E>(x_TI, w_OI.const_data_ptr<E>(), bias, 0, slots, y_TO);
}

template <typename E>
void add_slots_impl(const at::Tensor& x_TI, const Slots& slots, at::Tensor& y_TO) {
  compute<E>(x_TI, nullptr, y_TO.const_data_ptr<E>(), y_TO.size(1), &slots, y_TO);
}

inline bool is_served(const at::Tensor& x) {
  return x.dim() == 2 && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat);
}

inline at::Tensor linear_with(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                              const Slots* slots) {
  TORCH_CHECK(is_served(x) && x.size(1) == w_OI.size(1) && x.scalar_type() == w_OI.scalar_type() &&
                  w_OI.is_contiguous(),
              "hotslot_cpu: x [T, I] and w [O, I], both bfloat16 or both float32");
  const at::Tensor x_TI = x.contiguous();
  at::Tensor y_TO = at::empty({x_TI.size(0), w_OI.size(0)}, x_TI.options());
  auto run = x_TI.scalar_type() == at::kBFloat16 ? linear_impl<bf16> : linear_impl<float>;
  run(x_TI, w_OI, bias_O, slots, y_TO);
  return y_TO;
}

inline void check_slots(const at::Tensor& x, int64_t num_out, const Slots& slots) {
  const int64_t num_slots = slots.scale_S.size(0);
  TORCH_CHECK(slots.a_CI.is_contiguous() && slots.b_CO.is_contiguous() && slots.a_CI.size(0) == slots.b_CO.size(0) &&
                  slots.a_CI.size(1) == x.size(1) && slots.b_CO.size(1) == num_out &&
                  slots.a_CI.size(0) % num_slots == 0 && slots.gates_TS.size(0) >= x.size(0) &&
                  slots.gates_TS.size(1) == num_slots && slots.gates_TS.stride(1) == 1 &&
                  slots.one_SK.is_contiguous() && slots.one_SK.numel() == slots.a_CI.size(0) &&
                  slots.a_CI.scalar_type() == x.scalar_type() && slots.b_CO.scalar_type() == x.scalar_type(),
              "hotslot_cpu: slots that do not fit the linear");
}

inline at::Tensor linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O) {
  return linear_with(x, w_OI, bias_O, nullptr);
}

inline at::Tensor slot_linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                              const at::Tensor& a_CI, const at::Tensor& b_CO, const at::Tensor& scale_S,
                              const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  const Slots slots{a_CI, b_CO, scale_S, one_SK, gates_TS};
  check_slots(x, w_OI.size(0), slots);
  return linear_with(x, w_OI, bias_O, &slots);
}

// As `slot_linear`, from the base's result `y` on.
inline at::Tensor add_slots(const at::Tensor& x, const at::Tensor& y, const at::Tensor& a_CI, const at::Tensor& b_CO,
                            const at::Tensor& scale_S, const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  TORCH_CHECK(is_served(x) && y.dim() == 2 && y.size(0) == x.size(0) && y.scalar_type() == x.scalar_type(),
              "hotslot_cpu: x [T, I] and y [T, O], both bfloat16 or both float32");
  const Slots slots{a_CI, b_CO, scale_S, one_SK, gates_TS};
  check_slots(x, y.size(1), slots);
  at::Tensor y_TO = y.clone(at::MemoryFormat::Contiguous);
  auto run = x.scalar_type() == at::kBFloat16 ? add_slots_impl<bf16> : add_slots_impl<float>;
  run(x.contiguous(), slots, y_TO);
  return y_TO;
}

}  // namespace hotslot
