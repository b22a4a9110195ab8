// Kernels for CPU, as operators of torch.
//
// One step of decoding has few tokens, so it is bound by reading weights; a library's matrix product, made for large
// shapes, reaches a fraction of the memory's bandwidth there. Each token's result is computed in an order that depends
// on its own values alone, so it is the same to the bit whatever stands beside it in the batch.

#include <torch/library.h>

#include "attention.h"
#include "operators.h"
#include "program.h"
#include "sampling.h"

namespace hotslot {

// Many contiguous copies in one call; threads share them.
void copy_all(at::TensorList targets, at::TensorList sources) {
  for (size_t index = 0; index < targets.size(); ++index)
    TORCH_CHECK(targets[index].is_contiguous() && sources[index].is_contiguous() &&
                    targets[index].nbytes() == sources[index].nbytes(),
                "hotslot_cpu: copy_all wants contiguous tensors of equal sizes");
  share_out(targets.size(), [&](int64_t index) {
    std::memcpy(targets[index].mutable_data_ptr(), sources[index].const_data_ptr(), targets[index].nbytes());
  });
}

}  // namespace hotslot

TORCH_LIBRARY(hotslot_cpu, m) {
  m.def("linear(Tensor x, Tensor w, Tensor? bias) -> Tensor");
  m.def("linear_int8(Tensor x, Tensor q, Tensor scale, Tensor? bias) -> Tensor");
  m.def(
      "slot_linear(Tensor x, Tensor w, Tensor? bias, Tensor a, Tensor b, Tensor scale, Tensor one, Tensor gates) "
      "-> Tensor");
  m.def(
      "slot_linear_int8(Tensor x, Tensor q, Tensor weight_scale, Tensor? bias, Tensor a, Tensor b, Tensor scale, "
      "Tensor one, Tensor gates) -> Tensor");
  m.def(
      "add_slots(Tensor x, Tensor y, Tensor a, Tensor b, Tensor scale, Tensor one, Tensor gates) -> Tensor");
  m.def(
      "attend(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cache_positions, "
      "Tensor segments, Tensor block_tables, int block_tokens, float scale, int window, float softcap, "
      "int max_tokens, Tensor(c!) out) -> bool");
  m.def("draw(Tensor logits, Tensor counts, Tensor factors) -> Tensor");
  m.def("greedy(Tensor logits) -> Tensor");
  m.def("noise(int seed, int position, int num_tokens) -> Tensor", hotslot::noise_of);
  m.def("run_program(Tensor program, Tensor(a!) scratch, Tensor(b!)[] inputs) -> bool");
  m.def("copy_all(Tensor(a!)[] targets, Tensor[] sources) -> ()");
}

TORCH_LIBRARY_IMPL(hotslot_cpu, CPU, m) {
  m.impl("linear", hotslot::linear);
  m.impl("linear_int8", hotslot::linear_int8);
  m.impl("slot_linear", hotslot::slot_linear);
  m.impl("slot_linear_int8", hotslot::slot_linear_int8);
  m.impl("add_slots", hotslot::add_slots);
  m.impl("attend", hotslot::attend_tensors);
  m.impl("draw", hotslot::draw);
  m.impl("greedy", hotslot::greedy);
  m.impl("run_program", hotslot::run_program);
  m.impl("copy_all", hotslot::copy_all);
}
