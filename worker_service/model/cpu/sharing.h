// Work that threads share, and work of one element type.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "helpers.h"
#include "vectors.h"

namespace hotslot {

// Calls `one` for each of `count` items. Threads take them one after the other, so a core that is lost to something else
// delays the item that it is at, and not a fixed part of all.
template <typename F>
void share_out(int64_t count, const F& one) {
  const int64_t num_threads = std::min<int64_t>(at::get_num_threads(), count);
  const auto call = [](const void* work, int64_t item) { (*static_cast<const F*>(work))(item); };
  if (num_threads > 1 && Helpers::of_process().share(num_threads - 1, count, call, &one)) return;
  for (int64_t item = 0; item < count; ++item) one(item);
}

// Calls with a value of the element type, bfloat16 or float32.
template <typename F>
void for_type(const at::Tensor& x, const F& call) {
  if (x.scalar_type() == at::kBFloat16)
    call(bf16{});
  else
    call(float{});
}

}  // namespace hotslot
