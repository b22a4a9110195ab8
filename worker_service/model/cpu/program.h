// Programs: the calls of a compiled layer, recorded with their addresses, run again without what stood between them.
//
// A program is int64 words: its number of calls, then of each call its kind, its number of values, and the values, two
// words each: 0 and the value itself, 1 and an offset in the scratch memory, or 2 + i and an offset in input i.
// `recorder.py` notes them.

#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <array>
#include <utility>
#include <vector>

#include "attention.h"
#include "linear.h"

namespace hotslot {

enum class Call : int64_t { KERNEL = 0, LINEARS = 1, ATTEND = 2 };

constexpr int64_t MAX_KERNEL_ARGUMENTS = 32;

template <size_t... I>
void call_kernel(void* kernel, const int64_t* values, std::index_sequence<I...>) {
  auto typed = reinterpret_cast<void (*)(decltype(static_cast<void>(I), static_cast<void*>(nullptr))...)>(kernel);
  typed(reinterpret_cast<void*>(values[I])...);
}

// A function of `N` addresses for each N; one that has fewer parameters is not called with more.
template <size_t... N>
constexpr auto kernel_callers(std::index_sequence<N...>) {
  return std::array{+[](void* kernel, const int64_t* values) { call_kernel(kernel, values, std::make_index_sequence<N>{}); }...};
}

// Values of one call, in order.
class Values {
 public:
  explicit Values(const int64_t* at) : at_(at) {}
  int64_t number() { return *at_++; }
  double real() { return same_bits<double>(number()); }
  template <typename T>
  T* address() {
    return reinterpret_cast<T*>(number());
  }

 private:
  const int64_t* at_;
};

template <typename E>
void run_linears(Values values) {
  static thread_local std::vector<Linear<E>> linears;
  const int64_t num_tokens = values.number(), size = values.number();
  const E* x = values.address<const E>();
  linears.resize(values.number());
  for (Linear<E>& linear : linears) {
    linear.w_OI = values.address<const E>();
    linear.q_OI = values.address<const int8_t>();
    linear.scale_O = values.address<const float>();
    linear.addend = values.address<const E>();
    linear.addend_stride = values.number();
    linear.num_out = values.number();
    linear.y_TO = values.address<E>();
    Slots<E>& slots = linear.slots;
    slots.num_slots = values.number();
    slots.rank = values.number();
    slots.a_CI = values.address<const E>();
    slots.b_CO = values.address<const E>();
    slots.scale_S = values.address<const float>();
    slots.one_SK = values.address<const float>();
    slots.gates_TS = values.address<const float>();
    slots.gates_stride = values.number();
  }
  compute<E>(x, num_tokens, size, linears.data(), static_cast<int64_t>(linears.size()));
}

template <typename E>
bool run_attend(Values values) {
  Attention<E> step;
  step.q_THD = values.address<const E>();
  step.k_TGD = values.address<const E>();
  step.v_TGD = values.address<const E>();
  step.k_cache_NGD = values.address<E>();
  step.v_cache_NGD = values.address<E>();
  step.out_THD = values.address<E>();
  step.cache_positions_T = values.address<const int64_t>();
  step.segments_R4 = values.address<const int64_t>();
  step.block_tables_RB = values.address<const int32_t>();
  for (int64_t* size : {&step.num_tokens, &step.num_heads, &step.num_kv_heads, &step.head_size, &step.num_segments,
                        &step.table_size, &step.block_tokens, &step.max_tokens, &step.k_stride, &step.v_stride})
    *size = values.number();
  const auto scale = static_cast<float>(values.real()), softcap = static_cast<float>(values.real());
  step.scoring = {scale, softcap, values.number()};
  return attend<E>(step);
}

// Runs programs one after the other. Inputs are contiguous, of the sizes that were recorded; those that a program writes
// to are among them. Returns false where an attention left a segment out, which its caller knows beforehand.
inline bool run_program(const at::Tensor& program, const at::Tensor& scratch, const std::vector<at::Tensor>& inputs) {
  static constexpr auto callers = kernel_callers(std::make_index_sequence<MAX_KERNEL_ARGUMENTS + 1>{});
  static thread_local std::vector<int64_t> values, bases;
  bases.assign({0, reinterpret_cast<int64_t>(scratch.mutable_data_ptr())});
  for (const at::Tensor& input : inputs) bases.push_back(reinterpret_cast<int64_t>(input.mutable_data_ptr()));
  const int64_t* at = program.const_data_ptr<int64_t>();
  bool all_done = true;
  for (int64_t left = *at++; left > 0; --left) {
    const auto kind = static_cast<Call>(*at++);
    const int64_t count = *at++;
    values.resize(count);
    for (int64_t i = 0; i < count; ++i, at += 2) values[i] = bases[at[0]] + at[1];
    switch (kind) {
      case Call::KERNEL:
        callers[count - 1](reinterpret_cast<void*>(values[0]), values.data() + 1);
        break;
      case Call::LINEARS:
        values[0] != 0 ? run_linears<bf16>(Values(values.data() + 1)) : run_linears<float>(Values(values.data() + 1));
        break;
      case Call::ATTEND:
        all_done &= values[0] != 0 ? run_attend<bf16>(Values(values.data() + 1))
                                   : run_attend<float>(Values(values.data() + 1));
        break;
    }
  }
  return all_done;
}

}  // namespace hotslot
