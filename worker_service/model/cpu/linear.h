// Linears: every weight is read once for few tokens, and of the slots only those that are on.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <algorithm>
#include <vector>

#include "int8.h"
#include "sharing.h"
#include "slots.h"

namespace hotslot {

// y = W x + addend + what the slots that are on add to it. W is `w`, or `q` with a scale for each output, or 0 without
// either. An `addend` is a bias, with a stride of 0, or has a row for each token.
template <typename E>
struct Linear {
  const E* w_OI = nullptr;
  const int8_t* q_OI = nullptr;
  const float* scale_O = nullptr;
  const E* addend = nullptr;
  int64_t addend_stride = 0, num_out = 0;
  E* y_TO = nullptr;
  Slots<E> slots;
};

constexpr int64_t CHUNK = 96;                 // outputs that one visit computes
constexpr int64_t TOKENS_OF_WHOLE_ROWS = 16;  // up to so many, slots are read in whole rows
constexpr int64_t SUMS_OF_ONE_THREAD = 1 << 16;  // fewer are added up sooner than threads are called

// Linears of one input, and memory for them that the next call takes over.
template <typename E>
class Linears {
 public:
  void compute(const E* x_TI, int64_t num_tokens, int64_t size, const Linear<E>* linears, int64_t count) {
    linears_ = linears;
    num_tokens_ = num_tokens;
    size_ = size;
    x_.take(x_TI, num_tokens, size);
    if (std::any_of(linears, linears + count, [](const Linear<E>& linear) { return linear.q_OI != nullptr; }))
      widened_.take(x_TI, num_tokens, size);
    if (static_cast<int64_t>(active_.size()) < count) active_.resize(count);
    slots_.clear();
    chunks_.clear();
    for (int64_t index = 0; index < count; ++index) {
      active_[index].find(linears[index].slots, x_, num_tokens);
      for (size_t tile = 0; tile < active_[index].tiles().size(); ++tile) slots_.push_back({index, static_cast<int64_t>(tile)});
      for (int64_t first = 0; first < linears[index].num_out; first += CHUNK) chunks_.push_back({index, first});
    }
    if (!slots_.empty() && num_tokens <= TOKENS_OF_WHOLE_ROWS)
      compute_rows(count);
    else
      compute_chunks();
  }

 private:
  struct Item {
    int64_t linear, part;  // a tile of its slots, or its first output of a chunk
  };

  // Few tokens: slots are read whole, A and then B, beside the base's weights, and all is added up at the end.
  void compute_rows(int64_t count) {
    begins_.clear();
    const int64_t num_slots = slots_.size(), num_chunks = chunks_.size(), size_of_chunk = num_tokens_ * CHUNK;
    int64_t num_sums = num_chunks * size_of_chunk;  // the base's, chunk by chunk, then those of slots, token by token
    for (int64_t index = 0; index < count; ++index) {
      begins_.push_back(num_sums);
      num_sums += linears_[index].num_out * active_[index].num_tokens();
    }
    sums_.resize(num_sums);
    share_out(num_slots + num_chunks, [&](int64_t item) {
      if (item < num_slots) {
        const auto [index, part] = slots_[item];
        const Linear<E>& linear = linears_[index];
        const auto& tile = active_[index].tiles()[part];
        active_[index].compute(linear.slots, tile, size_);
        float* to = slot_sums(index, tile.first);
        std::fill(to, to + tile.count * linear.num_out, 0.0f);
        const E* b = linear.slots.b_CO + tile.slot * linear.slots.rank * linear.num_out;
        if (tile.count == 1 && !PAIRED<E>)
          add_whole_rows<E>(active_[index].h(tile, linear.slots.rank), b, linear.slots.rank, linear.num_out, to);
        else
          add_slot<E>(active_[index], tile, b, linear.slots.rank, linear.num_out, linear.num_out,
                      [&](int64_t i) { return to + i * linear.num_out; });
      } else {
        const int64_t chunk = item - num_slots;
        compute_base(chunks_[chunk], sums_.data() + chunk * size_of_chunk);
      }
    });
    const auto add_up = [&](int64_t chunk) {
      const auto [index, first] = chunks_[chunk];
      const int64_t these = std::min(CHUNK, linears_[index].num_out - first);
      float* out = sums_.data() + chunk * size_of_chunk;
      for (const auto& tile : active_[index].tiles())
        for (int64_t i = 0; i < tile.count; ++i)
          add_row(slot_sums(index, tile.first + i) + first, these, out + active_[index].tokens(tile)[i] * CHUNK);
      round(chunks_[chunk], out);
    };
    if (num_sums < SUMS_OF_ONE_THREAD)
      for (int64_t chunk = 0; chunk < num_chunks; ++chunk) add_up(chunk);
    else
      share_out(num_chunks, add_up);
  }

  // Many tokens: sums stay in the nearest cache, chunk by chunk, and B is read by parts of its rows.
  void compute_chunks() {
    share_out(slots_.size(), [&](int64_t item) {
      const auto [index, tile] = slots_[item];
      active_[index].compute(linears_[index].slots, active_[index].tiles()[tile], size_);
    });
    share_out(chunks_.size(), [&](int64_t item) {
      static thread_local std::vector<float> out;
      out.resize(num_tokens_ * CHUNK);
      const auto [index, first] = chunks_[item];
      const Linear<E>& linear = linears_[index];
      const int64_t num_out = linear.num_out, these = std::min(CHUNK, num_out - first), rank = linear.slots.rank;
      compute_base(chunks_[item], out.data());
      for (const auto& tile : active_[index].tiles()) {
        const int64_t* tokens = active_[index].tokens(tile);
        add_slot<E>(active_[index], tile, linear.slots.b_CO + tile.slot * rank * num_out + first, rank, num_out, these,
                    [&](int64_t i) { return out.data() + tokens[i] * CHUNK; });
      }
      round(chunks_[item], out.data());
    });
  }

  // A chunk of the products with a linear's own weights, CHUNK values for each token.
  void compute_base(const Item& chunk, float* out) const {
    const auto [index, first] = chunk;
    const Linear<E>& linear = linears_[index];
    const int64_t these = std::min(CHUNK, linear.num_out - first);
    if (linear.w_OI != nullptr)
      dot_all<E>(x_.data(), num_tokens_, linear.w_OI + first * size_, size_, these, out, CHUNK);
    else if (linear.q_OI != nullptr)
      dot_scaled(widened_.data(), num_tokens_, linear.q_OI + first * size_, linear.scale_O + first, size_, these, out,
                 CHUNK);
    else
      std::fill(out, out + num_tokens_ * CHUNK, 0.0f);
  }

  void round(const Item& chunk, const float* out) const {
    const auto [index, first] = chunk;
    const Linear<E>& linear = linears_[index];
    const int64_t these = std::min(CHUNK, linear.num_out - first);
    for (int64_t t = 0; t < num_tokens_; ++t) {
      const E* addend = linear.addend != nullptr ? linear.addend + t * linear.addend_stride + first : nullptr;
      round_row(out + t * CHUNK, addend, these, linear.y_TO + t * linear.num_out + first);
    }
  }

  float* slot_sums(int64_t index, int64_t place) {
    return sums_.data() + begins_[index] + place * linears_[index].num_out;
  }

  const Linear<E>* linears_ = nullptr;
  int64_t num_tokens_ = 0, size_ = 0;
  Inputs<E> x_;
  WidenedInputs widened_;
  std::vector<ActiveSlots<E>> active_;
  std::vector<Item> slots_, chunks_;
  std::vector<int64_t> begins_;
  std::vector<float> sums_;
};

// Linears of one input, as one piece of work: `x` is arranged once, and threads share the outputs of all.
template <typename E>
void compute(const E* x_TI, int64_t num_tokens, int64_t size, const Linear<E>* linears, int64_t count) {
  static thread_local Linears<E> kept;
  kept.compute(x_TI, num_tokens, size, linears, count);
}

}  // namespace hotslot
