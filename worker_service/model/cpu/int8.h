// Linears with weights of 8 bits: every output's row has a scale of its own, and activations keep their type.
//
// A weight is read as one byte and widened in registers; products and sums are those of float32, and the scale is
// applied once to each sum. So a result differs from that with the same weights in full by the order of additions alone.
//
// Shapes: T tokens, I in_features, O out_features.

#pragma once

#include "linear.h"

namespace hotslot {

typedef int8_t Bytes __attribute__((vector_size(2 * LANES)));
typedef int8_t HalfBytes __attribute__((vector_size(LANES)));

template <int PART, int... J>
inline HalfBytes half_of(Bytes bytes, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(bytes, bytes, (PART * static_cast<int>(LANES) + J)...);
}

// Both halves are as they lie in memory, so the vectors against them need no arrangement.
template <>
struct Dot<int8_t> {
  using Input = float;
  using Raw = Bytes;
  using Values = Floats;
  static constexpr int64_t STEP = 2 * LANES, PARTS = 2;
  static Raw read(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    return bytes;
  }
  template <int PART>
  static Values part(Raw raw) {
    const HalfBytes half = half_of<PART>(raw, Lanes{});
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(HOTSLOT_LANES)
    int64_t low;
    std::memcpy(&low, &half, sizeof(low));
    return same_bits<Floats>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(low))));
#else
    return __builtin_convertvector(__builtin_convertvector(half, Ints), Floats);
#endif
  }
  static Floats add(Floats acc, Values x, Values w) { return add_product(acc, x, w); }
};

// Vectors of any element type as floats, with zeros up to whole steps; keeps its memory for the next call.
class WidenedInputs {
 public:
  template <typename E>
  void take(const E* x, int64_t count, int64_t size) {
    const int64_t stride = padded<int8_t>(size);
    pointers_.resize(count);
    memory_.resize(count * stride);
    for (int64_t t = 0; t < count; ++t) {
      float* to = memory_.data() + t * stride;
      int64_t i = 0;
      for (; i + LANES <= size; i += LANES) store(to + i, load(x + t * size + i));
      for (; i < size; ++i) to[i] = static_cast<float>(x[t * size + i]);
      std::fill(to + size, to + stride, 0.0f);
      pointers_[t] = to;
    }
  }
  const float* const* data() const { return pointers_.data(); }

 private:
  std::vector<const float*> pointers_;
  std::vector<float> memory_;
};

template <typename E>
void linear_int8_impl(const at::Tensor& x_TI, const at::Tensor& q_OI, const at::Tensor& scale_O,
                      const std::optional<at::Tensor>& bias_O, at::Tensor& y_TO) {
  static thread_local WidenedInputs kept;
  WidenedInputs& x = kept;  // the caller's, in the threads that help it too
  const int64_t num_tokens = x_TI.size(0), size = x_TI.size(1), num_out = q_OI.size(0);
  const int8_t* q = q_OI.const_data_ptr<int8_t>();
  const float* scale = scale_O.const_data_ptr<float>();
  const E* bias = bias_O.has_value() ? bias_O->const_data_ptr<E>() : nullptr;
  E* y = y_TO.mutable_data_ptr<E>();
  x.take(x_TI.const_data_ptr<E>(), num_tokens, size);
  at::parallel_for(0, (num_out + CHUNK - 1) / CHUNK, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> out;
    out.resize(num_tokens * CHUNK);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * CHUNK, count = std::min(CHUNK, num_out - first);
      dot_all<int8_t>(x.data(), num_tokens, q + first * size, size, count, out.data(), CHUNK);
      for (int64_t t = 0; t < num_tokens; ++t) {
        float* row = out.data() + t * CHUNK;
        for (int64_t o = 0; o < count; ++o) row[o] *= scale[first + o];
        round_row(row, bias != nullptr ? bias + first : nullptr, count, y + t * num_out + first);
      }
    }
  });
}

inline at::Tensor linear_int8(const at::Tensor& x, const at::Tensor& q_OI, const at::Tensor& scale_O,
                              const std::optional<at::Tensor>& bias_O) {
  TORCH_CHECK(is_served(x) && q_OI.scalar_type() == at::kChar && q_OI.dim() == 2 && q_OI.is_contiguous() &&
                  x.size(1) == q_OI.size(1) && scale_O.scalar_type() == at::kFloat && scale_O.is_contiguous() &&
                  scale_O.numel() == q_OI.size(0) &&
                  (!bias_O.has_value() || (bias_O->scalar_type() == x.scalar_type() && bias_O->is_contiguous() &&
                                           bias_O->numel() == q_OI.size(0))),
              "hotslot_cpu: x [T, I] in bfloat16 or float32, weights [O, I] in int8, scales [O] in float32");
  const at::Tensor x_TI = x.contiguous();
  at::Tensor y_TO = at::empty({x_TI.size(0), q_OI.size(0)}, x_TI.options());
  auto run = x_TI.scalar_type() == at::kBFloat16 ? linear_int8_impl<bf16> : linear_int8_impl<float>;
  run(x_TI, q_OI, scale_O, bias_O, y_TO);
  return y_TO;
}

}  // namespace hotslot
