// Linears for few tokens: every weight is read once, and only the slots that are on.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
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

// A slot that is on for at least one token.
struct ActiveSlot {
  int64_t slot;
  std::vector<int64_t> tokens;
  std::vector<float> h;  // gate * scale * (A x + one) of those tokens, [tokens, K]
};

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
    if (!tokens.empty()) active.push_back({slot, std::move(tokens), {}});
  }
  const E* a = slots.a_CI.const_data_ptr<E>();
  at::parallel_for(0, active.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      auto& [slot, tokens, h] = active[index];
      const int64_t count = tokens.size();
      std::vector<const E*> inputs(count);
      for (int64_t i = 0; i < count; ++i) inputs[i] = rows[tokens[i]];
      h.resize(count * rank);
      dot_all<E>(inputs.data(), count, a + slot * rank * size, size, rank, h.data(), rank);
      for (int64_t i = 0; i < count; ++i) {
        const float factor = gates[tokens[i] * stride + slot] * scale[slot];
        for (int64_t k = 0; k < rank; ++k) h[i * rank + k] = (h[i * rank + k] + one[slot * rank + k]) * factor;
      }
    }
  });
  return active;
}

constexpr int64_t CHUNK = 3 * LANES;  // outputs that one visit computes

// out[t * CHUNK + o] += h[t] . b[:, o], where b points at the slot's first rank and the chunk's first output.
template <typename E>
void add_slot(const ActiveSlot& active, const E* b, int64_t rank, int64_t num_out, int64_t count, float* out) {
  for (size_t index = 0; index < active.tokens.size(); ++index) {
    float* to = out + active.tokens[index] * CHUNK;
    const float* h = active.h.data() + index * rank;
    int64_t o = 0;
    for (; o + LANES <= count; o += LANES) {
      Floats acc = load(to + o);
      for (int64_t k = 0; k < rank; ++k) acc += h[k] * load(b + k * num_out + o);
      store(to + o, acc);
    }
    for (; o < count; ++o)
      for (int64_t k = 0; k < rank; ++k) to[o] += h[k] * static_cast<float>(b[k * num_out + o]);
  }
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
        for (int64_t o = 0; o < count; ++o) {
          const float added = bias != nullptr ? static_cast<float>(bias[first + o]) : 0.0f;
          y[t * num_out + first + o] = static_cast<E>(out[t * CHUNK + o] + added);
        }
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
