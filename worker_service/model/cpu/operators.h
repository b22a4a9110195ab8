// Linears as operators of torch: arguments are checked, and results allocated.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "linear.h"

namespace hotslot {

inline bool is_served(const at::Tensor& x) {
  return x.dim() == 2 && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat);
}

inline void check_linear(const at::Tensor& x, const at::Tensor& w_OI) {
  TORCH_CHECK(is_served(x) && x.size(1) == w_OI.size(1) && x.scalar_type() == w_OI.scalar_type() &&
                  w_OI.is_contiguous(),
              "hotslot_cpu: x [T, I] and w [O, I], both bfloat16 or both float32");
}

inline void check_int8(const at::Tensor& x, const at::Tensor& q_OI, const at::Tensor& scale_O,
                       const std::optional<at::Tensor>& bias_O) {
  TORCH_CHECK(is_served(x) && q_OI.scalar_type() == at::kChar && q_OI.dim() == 2 && q_OI.is_contiguous() &&
                  x.size(1) == q_OI.size(1) && scale_O.scalar_type() == at::kFloat && scale_O.is_contiguous() &&
                  scale_O.numel() == q_OI.size(0) &&
                  (!bias_O.has_value() || (bias_O->scalar_type() == x.scalar_type() && bias_O->is_contiguous() &&
                                           bias_O->numel() == q_OI.size(0))),
              "hotslot_cpu: x [T, I] in bfloat16 or float32, weights [O, I] in int8, scales [O] in float32");
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
const E* bias_of(const std::optional<at::Tensor>& bias_O) {
  return bias_O.has_value() ? bias_O->const_data_ptr<E>() : nullptr;
}

// One linear; `fill` sets its weights and slots.
template <typename Fill>
at::Tensor computed(const at::Tensor& x, int64_t num_out, const Fill& fill) {
  const at::Tensor x_TI = x.contiguous();
  at::Tensor y_TO = at::empty({x_TI.size(0), num_out}, x_TI.options());
  for_type(x_TI, [&](auto type) {
    using E = decltype(type);
    Linear<E> linear;
    linear.y_TO = y_TO.mutable_data_ptr<E>();
    linear.num_out = num_out;
    fill(linear, type);
    compute<E>(x_TI.const_data_ptr<E>(), x_TI.size(0), x_TI.size(1), &linear, 1);
  });
  return y_TO;
}

inline at::Tensor linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O) {
  check_linear(x, w_OI);
  return computed(x, w_OI.size(0), [&](auto& linear, auto type) {
    using E = decltype(type);
    linear.w_OI = w_OI.const_data_ptr<E>();
    linear.addend = bias_of<E>(bias_O);
  });
}

inline at::Tensor slot_linear(const at::Tensor& x, const at::Tensor& w_OI, const std::optional<at::Tensor>& bias_O,
                              const at::Tensor& a_CI, const at::Tensor& b_CO, const at::Tensor& scale_S,
                              const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  check_linear(x, w_OI);
  return computed(x, w_OI.size(0), [&](auto& linear, auto type) {
    using E = decltype(type);
    linear.w_OI = w_OI.const_data_ptr<E>();
    linear.addend = bias_of<E>(bias_O);
    linear.slots = slots_of<E>(x, w_OI.size(0), a_CI, b_CO, scale_S, one_SK, gates_TS);
  });
}

inline at::Tensor linear_int8(const at::Tensor& x, const at::Tensor& q_OI, const at::Tensor& scale_O,
                              const std::optional<at::Tensor>& bias_O) {
  check_int8(x, q_OI, scale_O, bias_O);
  return computed(x, q_OI.size(0), [&](auto& linear, auto type) {
    linear.q_OI = q_OI.const_data_ptr<int8_t>();
    linear.scale_O = scale_O.const_data_ptr<float>();
    linear.addend = bias_of<decltype(type)>(bias_O);
  });
}

inline at::Tensor slot_linear_int8(const at::Tensor& x, const at::Tensor& q_OI, const at::Tensor& scale_O,
                                   const std::optional<at::Tensor>& bias_O, const at::Tensor& a_CI,
                                   const at::Tensor& b_CO, const at::Tensor& scale_S, const at::Tensor& one_SK,
                                   const at::Tensor& gates_TS) {
  check_int8(x, q_OI, scale_O, bias_O);
  return computed(x, q_OI.size(0), [&](auto& linear, auto type) {
    using E = decltype(type);
    linear.q_OI = q_OI.const_data_ptr<int8_t>();
    linear.scale_O = scale_O.const_data_ptr<float>();
    linear.addend = bias_of<E>(bias_O);
    linear.slots = slots_of<E>(x, q_OI.size(0), a_CI, b_CO, scale_S, one_SK, gates_TS);
  });
}

// As `slot_linear`, from the base's result `y` on.
inline at::Tensor add_slots(const at::Tensor& x, const at::Tensor& y, const at::Tensor& a_CI, const at::Tensor& b_CO,
                            const at::Tensor& scale_S, const at::Tensor& one_SK, const at::Tensor& gates_TS) {
  TORCH_CHECK(is_served(x) && y.dim() == 2 && y.size(0) == x.size(0) && y.scalar_type() == x.scalar_type(),
              "hotslot_cpu: x [T, I] and y [T, O], both bfloat16 or both float32");
  const at::Tensor y_TO = y.contiguous();
  return computed(x, y.size(1), [&](auto& linear, auto type) {
    using E = decltype(type);
    linear.addend = y_TO.template const_data_ptr<E>();
    linear.addend_stride = y_TO.size(1);
    linear.slots = slots_of<E>(x, y.size(1), a_CI, b_CO, scale_S, one_SK, gates_TS);
  });
}

}  // namespace hotslot
