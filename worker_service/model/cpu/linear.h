// Linears for few tokens: every weight is read once, and only the slots that are on.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <type_traits>
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

// A slot that is on for at least one token.
struct ActiveSlot {
  int64_t slot;
  std::vector<int64_t> tokens;
  std::vector<float> h;          // gate * scale * (A x + one) of those tokens, [tokens, K]
  std::vector<uint32_t> pairs;   // the same in bfloat16, two ranks in a word, [tokens, K / 2]; where products take pairs
};

#ifdef HOTSLOT_DOT_BF16
// Two neighbouring ranks in a word, the first one low; an odd last rank has 0 beside it.
inline std::vector<uint32_t> in_pairs(const std::vector<float>& h, int64_t rank) {
  std::vector<uint32_t> pairs;
  pairs.reserve(h.size() / rank * ((rank + 1) / 2));
  for (size_t first = 0; first < h.size(); first += rank)
    for (int64_t k = 0; k < rank; k += 2) {
      const uint32_t low = bf16(h[first + k]).x, high = k + 1 < rank ? bf16(h[first + k + 1]).x : 0;
      pairs.push_back(low | high << 16);
    }
  return pairs;
}
#endif

template <typename E>
std::vector<ActiveSlot> active_slots(const Slots& slots, const std::vector<const E*>& rows, int64_t size) {
  const float* gates = slots.gates_TS.const_data_ptr<float>();
  const float* scale = slots.scale_S.const_data_ptr<float>();
  const float* one = slots.one_SK.const_data_ptr<float>();
  const int64_t stride = slots.gates_TS.stride(0), rank = slots.rank();
  std::vector<ActiveSlot> active;
  for (int64_t slot = 0; slot < slots.scale_S.size(0); ++slot) {
    if (scale[slot] == 0) continue;  // its adapter does not target this module
    std::vector<int64_t> tokens;
    for (size_t t = 0; t < rows.size(); ++t)
      if (gates[t * stride + slot] != 0) tokens.push_back(t);
    if (!tokens.empty()) active.push_back({slot, std::move(tokens), {}, {}});
  }
  const E* a = slots.a_CI.const_data_ptr<E>();
  at::parallel_for(0, active.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      auto& [slot, tokens, h, pairs] = active[index];
      const int64_t count = tokens.size();
      std::vector<const E*> inputs(count);
      for (int64_t i = 0; i < count; ++i) inputs[i] = rows[tokens[i]];
      h.resize(count * rank);
      dot_all<E>(inputs.data(), count, a + slot * rank * size, size, rank, h.data(), rank);
      for (int64_t i = 0; i < count; ++i) {
        const float factor = gates[tokens[i] * stride + slot] * scale[slot];
        for (int64_t k = 0; k < rank; ++k) h[i * rank + k] = (h[i * rank + k] + one[slot * rank + k]) * factor;
      }
#ifdef HOTSLOT_DOT_BF16
      if constexpr (std::is_same_v<E, bf16>) pairs = in_pairs(h, rank);
#endif
    }
  });
  return active;
}

constexpr int64_t CHUNK = 6 * LANES;  // outputs that one visit computes

// out[o] += sum over k of h[k] * b[k][o] from output `o` on, where row k of b begins at b + k * num_out.
template <typename E>
void add_ranks(const float* h, const E* b, int64_t rank, int64_t num_out, int64_t o, int64_t count, float* out) {
  for (; o + LANES <= count; o += LANES) {
    Floats acc = load(out + o);
    for (int64_t k = 0; k < rank; ++k) acc += h[k] * load(b + k * num_out + o);
    store(out + o, acc);
  }
  for (; o < count; ++o)
    for (int64_t k = 0; k < rank; ++k) out[o] += h[k] * static_cast<float>(b[k * num_out + o]);
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

// out[t * CHUNK + o] += h[t] . b[:, o], where b points at the slot's first rank and the chunk's first output.
template <typename E>
void add_slot(const ActiveSlot& active, const E* b, int64_t rank, int64_t num_out, int64_t count, float* out) {
  for (size_t index = 0; index < active.tokens.size(); ++index) {
    float* to = out + active.tokens[index] * CHUNK;
    int64_t done = 0;
#ifdef HOTSLOT_DOT_BF16
    if constexpr (std::is_same_v<E, bf16>)
      done = add_pairs(active.pairs.data() + index * ((rank + 1) / 2), b, rank, num_out, count, to);
#endif
    add_ranks<E>(active.h.data() + index * rank, b, rank, num_out, done, count, to);
  }
}

// y[o] = out[o] + bias[o], rounded.
inline void round_row(const float* out, const bf16* bias, int64_t count, bf16* y) {
  int64_t o = 0;
#ifdef HOTSLOT_DOT_BF16
  for (; o + LANES <= count; o += LANES) {
    __m512 v = _mm512_loadu_ps(out + o);
    if (bias != nullptr) v = v + load(bias + o);
    const __m256bh rounded = _mm512_cvtneps_pbh(v);
    std::memcpy(y + o, &rounded, sizeof(rounded));
  }
#endif
  for (; o < count; ++o) y[o] = static_cast<bf16>(out[o] + (bias != nullptr ? static_cast<float>(bias[o]) : 0.0f));
}

inline void round_row(const float* out, const float* bias, int64_t count, float* y) {
  for (int64_t o = 0; o < count; ++o) y[o] = out[o] + (bias != nullptr ? bias[o] : 0.0f);
}

template <typename E>
void linear_impl(const at::Tensor& x_TI, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                 const Slots* slots, at::Tensor& y_TO) {
  const int64_t num_tokens = x_TI.size(0), size = x_TI.size(1), num_out = w_OI.size(0);
  const E* x = x_TI.const_data_ptr<E>();
  const E* w = w_OI.const_data_ptr<E>();
  const E* bias = bias_O.has_value() ? bias_O->const_data_ptr<E>() : nullptr;
  E* y = y_TO.mutable_data_ptr<E>();
  std::vector<const E*> rows(num_tokens);
  for (int64_t t = 0; t < num_tokens; ++t) rows[t] = x + t * size;
  std::vector<ActiveSlot> active;
  if (slots != nullptr) active = active_slots<E>(*slots, rows, size);
  const int64_t rank = slots != nullptr ? slots->rank() : 0;
  const E* b = slots != nullptr ? slots->b_CO.const_data_ptr<E>() : nullptr;
  const int64_t num_chunks = (num_out + CHUNK - 1) / CHUNK;
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> out(num_tokens * CHUNK);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * CHUNK, count = std::min(CHUNK, num_out - first);
      dot_all<E>(rows.data(), num_tokens, w + first * size, size, count, out.data(), CHUNK);
      for (const ActiveSlot& one : active)
        add_slot<E>(one, b + one.slot * rank * num_out + first, rank, num_out, count, out.data());
      for (int64_t t = 0; t < num_tokens; ++t)
        round_row(out.data() + t * CHUNK, bias != nullptr ? bias + first : nullptr, count, y + t * num_out + first);
    }
  });
}

inline at::Tensor linear_with(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                       const Slots* slots) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == w_OI.size(1) && x.scalar_type() == w_OI.scalar_type() &&
                  w_OI.is_contiguous() && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat),
              "hotslot_cpu: x [T, I] and w [O, I], both bfloat16 or both float32");
  const at::Tensor x_TI = x.contiguous();
  at::Tensor y_TO = at::empty({x_TI.size(0), w_OI.size(0)}, x_TI.options());
  auto run = x_TI.scalar_type() == at::kBFloat16 ? linear_impl<bf16> : linear_impl<float>;
  run(x_TI, w_OI, bias_O, slots, y_TO);
  return y_TO;
}

inline at::Tensor linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O) {
  return linear_with(x, w_OI, bias_O, nullptr);
}

inline at::Tensor slot_linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                       const at::Tensor& a_CI, const at::Tensor& b_CO, const at::Tensor& scale_S,
                       const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  TORCH_CHECK(a_CI.is_contiguous() && b_CO.is_contiguous() && a_CI.size(0) == b_CO.size(0) &&
                  a_CI.size(1) == w_OI.size(1) && b_CO.size(1) == w_OI.size(0) &&
                  a_CI.size(0) % scale_S.size(0) == 0 && gates_TS.size(0) >= x.size(0) &&
                  gates_TS.size(1) == scale_S.size(0) && gates_TS.stride(1) == 1 &&
                  one_SK.is_contiguous() && one_SK.numel() == a_CI.size(0) &&
                  a_CI.scalar_type() == x.scalar_type() && b_CO.scalar_type() == x.scalar_type(),
              "hotslot_cpu: slots that do not fit the linear");
  const Slots slots{a_CI, b_CO, scale_S, one_SK, gates_TS};
  return linear_with(x, w_OI, bias_O, &slots);
}

}  // namespace hotslot
