// Linears: every weight is read once for few tokens, and of the slots only those that are on.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "dot.h"
#include "sharing.h"

namespace hotslot {

// All slots of one module, and the gates of the tokens that it sees.
template <typename E>
struct Slots {
  const E *a_CI = nullptr, *b_CO = nullptr;
  const float *scale_S = nullptr, *one_SK = nullptr;  // `one` is 1 for ranks whose input is 1 rather than x
  const float* gates_TS = nullptr;
  int64_t gates_stride = 0, num_slots = 0, rank = 0;
};

// y = W x + addend + what the slots that are on add to it. Without `w` the first is 0. An `addend` is a bias, with a
// stride of 0, or has a row for each token; it may be y itself.
template <typename E>
struct Linear {
  const E *w_OI = nullptr, *addend = nullptr;
  int64_t addend_stride = 0, num_out = 0;
  E* y_TO = nullptr;
  Slots<E> slots;
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

  // Finds the slots that are on; `compute` is to be called for each tile then.
  void find(const Slots<E>& slots, const Inputs<E>& x, int64_t num_tokens) {
    tiles_.clear();
    tokens_.clear();
    for (int64_t slot = 0; slot < slots.num_slots; ++slot) {
      if (slots.scale_S[slot] == 0) continue;  // its adapter does not target this module
      int64_t count = 0;
      for (int64_t t = 0; t < num_tokens; ++t) {
        if (slots.gates_TS[t * slots.gates_stride + slot] == 0) continue;
        if (count++ % TILE_TOKENS == 0) tiles_.push_back({slot, static_cast<int64_t>(tokens_.size()), 0});
        ++tiles_.back().count;
        tokens_.push_back(t);
      }
    }
    inputs_.resize(tokens_.size());
    for (size_t index = 0; index < tokens_.size(); ++index) inputs_[index] = x[tokens_[index]];
    h_.resize(tokens_.size() * slots.rank);
    if (PAIRED<E>) pairs_.resize(tokens_.size() * ((slots.rank + 1) / 2));
  }

  // h = gate * scale * (A x + one) of a tile's tokens.
  void compute(const Slots<E>& slots, const Tile& tile, int64_t size) {
    const auto [slot, first, count] = tile;
    const int64_t rank = slots.rank;
    float* h = h_.data() + first * rank;
    dot_all<E>(inputs_.data() + first, count, slots.a_CI + slot * rank * size, size, rank, h, rank);
    for (int64_t i = 0; i < count; ++i, h += rank) {
      const float factor = slots.gates_TS[tokens_[first + i] * slots.gates_stride + slot] * slots.scale_S[slot];
      for (int64_t k = 0; k < rank; ++k) h[k] = (h[k] + slots.one_SK[slot * rank + k]) * factor;
      if (PAIRED<E>) pair(h, rank, pairs_.data() + (first + i) * ((rank + 1) / 2));
    }
  }

  const std::vector<Tile>& tiles() const { return tiles_; }
  const int64_t* tokens(const Tile& tile) const { return tokens_.data() + tile.first; }
  const float* h(const Tile& tile, int64_t rank) const { return h_.data() + tile.first * rank; }
  const uint32_t* pairs(const Tile& tile, int64_t rank) const {
    return pairs_.data() + tile.first * ((rank + 1) / 2);
  }

 private:
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

// Linears of one input, as one piece of work: `x` is arranged once, and threads share the outputs of all.
template <typename E>
void compute(const E* x_TI, int64_t num_tokens, int64_t size, const Linear<E>* linears, int64_t count) {
  static thread_local Inputs<E> kept_x;
  static thread_local std::vector<ActiveSlots<E>> kept_active;
  static thread_local std::vector<std::pair<int64_t, int64_t>> kept_work;
  Inputs<E>& x = kept_x;  // the caller's, in the threads that help it too
  std::vector<ActiveSlots<E>>& active = kept_active;
  std::vector<std::pair<int64_t, int64_t>>& work = kept_work;  // linear, and its tile or chunk
  x.take(x_TI, num_tokens, size);
  if (static_cast<int64_t>(active.size()) < count) active.resize(count);
  work.clear();
  for (int64_t index = 0; index < count; ++index) {
    active[index].find(linears[index].slots, x, num_tokens);
    for (size_t tile = 0; tile < active[index].tiles().size(); ++tile) work.push_back({index, tile});
  }
  share_out(work.size(), [&](int64_t item) {
    const auto [index, tile] = work[item];
    active[index].compute(linears[index].slots, active[index].tiles()[tile], size);
  });
  work.clear();
  for (int64_t index = 0; index < count; ++index) {
    if (linears[index].w_OI == nullptr && active[index].tiles().empty()) continue;
    for (int64_t first = 0; first < linears[index].num_out; first += CHUNK) work.push_back({index, first});
  }
  share_out(work.size(), [&](int64_t item) {
    static thread_local std::vector<float> out;
    out.resize(num_tokens * CHUNK);
    const auto [index, first] = work[item];
    const Linear<E>& linear = linears[index];
    const int64_t num_out = linear.num_out, these = std::min(CHUNK, num_out - first), rank = linear.slots.rank;
    if (linear.w_OI != nullptr)
      dot_all<E>(x.data(), num_tokens, linear.w_OI + first * size, size, these, out.data(), CHUNK);
    else
      std::fill(out.begin(), out.end(), 0.0f);
    for (const auto& tile : active[index].tiles())
      add_slot<E>(active[index], tile, linear.slots.b_CO + tile.slot * rank * num_out + first, rank, num_out, these,
                  out.data(), CHUNK);
    for (int64_t t = 0; t < num_tokens; ++t) {
      const E* addend = linear.addend != nullptr ? linear.addend + t * linear.addend_stride + first : nullptr;
      round_row(out.data() + t * CHUNK, addend, these, linear.y_TO + t * num_out + first);
    }
  });
}

inline bool is_served(const at::Tensor& x) {
  return x.dim() == 2 && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat);
}

inline void check_linear(const at::Tensor& x, const at::Tensor& w_OI) {
  TORCH_CHECK(is_served(x) && x.size(1) == w_OI.size(1) && x.scalar_type() == w_OI.scalar_type() &&
                  w_OI.is_contiguous(),
              "hotslot_cpu: x [T, I] and w [O, I], both bfloat16 or both float32");
}

template <typename E>
Slots<E> slots_of(const at::Tensor& x, int64_t num_out, const at::Tensor& a_CI, const at::Tensor& b_CO,
                  const at::Tensor& scale_S, const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  const int64_t num_slots = scale_S.size(0);
  TORCH_CHECK(a_CI.is_contiguous() && b_CO.is_contiguous() && a_CI.size(0) == b_CO.size(0) &&
                  a_CI.size(1) == x.size(1) && b_CO.size(1) == num_out && a_CI.size(0) % num_slots == 0 &&
                  gates_TS.size(0) >= x.size(0) && gates_TS.size(1) == num_slots && gates_TS.stride(1) == 1 &&
                  one_SK.is_contiguous() && one_SK.numel() == a_CI.size(0) &&
                  a_CI.scalar_type() == x.scalar_type() && b_CO.scalar_type() == x.scalar_type(),
              "hotslot_cpu: slots that do not fit the linear");
  return {a_CI.const_data_ptr<E>(), b_CO.const_data_ptr<E>(), scale_S.const_data_ptr<float>(),
          one_SK.const_data_ptr<float>(), gates_TS.const_data_ptr<float>(), gates_TS.stride(0), num_slots,
          a_CI.size(0) / num_slots};
}

template <typename E>
void compute_one(const at::Tensor& x_TI, Linear<E> linear, at::Tensor& y_TO) {
  linear.y_TO = y_TO.mutable_data_ptr<E>();
  linear.num_out = y_TO.size(1);
  compute<E>(x_TI.const_data_ptr<E>(), x_TI.size(0), x_TI.size(1), &linear, 1);
}

inline at::Tensor linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O) {
  check_linear(x, w_OI);
  const at::Tensor x_TI = x.contiguous();
  at::Tensor y_TO = at::empty({x_TI.size(0), w_OI.size(0)}, x_TI.options());
  for_type(x_TI, [&](auto type) {
    using E = decltype(type);
    compute_one<E>(x_TI, {w_OI.const_data_ptr<E>(), bias_O ? bias_O->const_data_ptr<E>() : nullptr}, y_TO);
  });
  return y_TO;
}

inline at::Tensor slot_linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                              const at::Tensor& a_CI, const at::Tensor& b_CO, const at::Tensor& scale_S,
                              const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  check_linear(x, w_OI);
  const at::Tensor x_TI = x.contiguous();
  at::Tensor y_TO = at::empty({x_TI.size(0), w_OI.size(0)}, x_TI.options());
  for_type(x_TI, [&](auto type) {
    using E = decltype(type);
    Linear<E> linear{w_OI.const_data_ptr<E>(), bias_O ? bias_O->const_data_ptr<E>() : nullptr};
    linear.slots = slots_of<E>(x_TI, w_OI.size(0), a_CI, b_CO, scale_S, one_SK, gates_TS);
    compute_one<E>(x_TI, linear, y_TO);
  });
  return y_TO;
}

// As `slot_linear`, from the base's result `y` on.
inline at::Tensor add_slots(const at::Tensor& x, const at::Tensor& y, const at::Tensor& a_CI, const at::Tensor& b_CO,
                            const at::Tensor& scale_S, const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  TORCH_CHECK(is_served(x) && y.dim() == 2 && y.size(0) == x.size(0) && y.scalar_type() == x.scalar_type(),
              "hotslot_cpu: x [T, I] and y [T, O], both bfloat16 or both float32");
  at::Tensor y_TO = y.clone(at::MemoryFormat::Contiguous);
  for_type(x, [&](auto type) {
    using E = decltype(type);
    Linear<E> linear{nullptr, y_TO.const_data_ptr<E>(), y_TO.size(1)};
    linear.slots = slots_of<E>(x, y.size(1), a_CI, b_CO, scale_S, one_SK, gates_TS);
    compute_one<E>(x.contiguous(), linear, y_TO);
  });
  return y_TO;
}

}  // namespace hotslot
