// Attention over the paged cache for segments of few tokens, which reads through the block tables.
//
// Shapes: T tokens, H query heads, G key/value heads, D head size (a multiple of 16), N cache positions, R segments,
// B blocks of one sequence.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "dot.h"

namespace hotslot {

// e^x for x <= 0: 2^n * 2^f with a polynomial for 2^f (Cephes, `expf`); below the smallest float it is 0.
inline Floats exp_negative(Floats x) {
  const Floats lowest = Floats{} - 87.0f;
  const Ints is_low = x < lowest;
  x = is_low ? lowest : x;
  const Floats n = x * 1.44269504088896341f;
  const Floats rounded = __builtin_convertvector(__builtin_convertvector(n - 0.5f, Ints), Floats);
  const Floats f = x - rounded * 0.693359375f + rounded * 2.12194440e-4f;
  Floats p = Floats{} + 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const Ints bits = (__builtin_convertvector(rounded, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  return is_low ? Floats{} : p * power;
}

// In place, over `count` scores; what is behind them up to a full vector is overwritten.
inline void softmax(float* scores, int64_t count, float scale) {
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < count; ++j) highest = std::max(highest, scores[j] * scale);
  Floats totals{};
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + padded, -std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < padded; j += LANES) {
    const Floats e = exp_negative(load(scores + j) * scale - highest);
    totals += e;
    store(scores + j, e);
  }
  const float inverse = 1.0f / sum(totals);
  for (int64_t j = 0; j < padded; j += LANES) store(scores + j, load(scores + j) * inverse);
}

// One query token, the `rep` query heads of one key head; out[h * D + d].
template <typename E>
void attend_token(const E* q, const std::vector<const E*>& keys, const std::vector<const E*>& values, int64_t first,
                  int64_t count, int64_t rep, int64_t head_size, float scale, std::vector<float>& raw,
                  std::vector<float>& scores, E* out) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES;
  raw.resize(count * rep);
  scores.resize(padded);
  dot_all<E>(keys.data() + first, count, q, head_size, rep, raw.data(), rep);
  for (int64_t h = 0; h < rep; ++h) {
    for (int64_t j = 0; j < count; ++j) scores[j] = raw[j * rep + h];
    softmax(scores.data(), count, scale);
    for (int64_t d = 0; d < head_size; d += LANES) {
      Floats acc{};
      for (int64_t j = 0; j < count; ++j) acc += scores[j] * load(values[first + j] + d);
      for (int64_t lane = 0; lane < LANES; ++lane) out[h * head_size + d + lane] = static_cast<E>(acc[lane]);
    }
  }
}

constexpr int64_t SEGMENT_COLUMNS = 4;  // first token, tokens, keys, first cache position or -1

template <typename E>
bool attend_impl(const at::Tensor& q_THD, const at::Tensor& k_TGD, const at::Tensor& v_TGD, at::Tensor& k_cache_NGD,
                 at::Tensor& v_cache_NGD, const at::Tensor& cache_positions_T, const at::Tensor& segments_R4,
                 const at::Tensor& block_tables_RB, int64_t block_tokens, double scale, int64_t window,
                 int64_t max_tokens, at::Tensor& out_THD) {
  const int64_t num_tokens = q_THD.size(0), num_heads = q_THD.size(1), head_size = q_THD.size(2);
  const int64_t num_kv_heads = k_cache_NGD.size(1), rep = num_heads / num_kv_heads, row = num_kv_heads * head_size;
  const E* q = q_THD.const_data_ptr<E>();
  E* k_cache = k_cache_NGD.mutable_data_ptr<E>();
  E* v_cache = v_cache_NGD.mutable_data_ptr<E>();
  E* out = out_THD.mutable_data_ptr<E>();
  const int64_t* positions = cache_positions_T.const_data_ptr<int64_t>();
  const int64_t* segments = segments_R4.const_data_ptr<int64_t>();
  const int32_t* tables = block_tables_RB.const_data_ptr<int32_t>();
  const int64_t table_size = block_tables_RB.size(1);
  for (int64_t t = 0; t < num_tokens; ++t) {
    std::memcpy(k_cache + positions[t] * row, k_TGD.const_data_ptr<E>() + t * row, row * sizeof(E));
    std::memcpy(v_cache + positions[t] * row, v_TGD.const_data_ptr<E>() + t * row, row * sizeof(E));
  }
  int64_t num_segments = 0, num_used = 0;
  bool all_done = true;
  while (num_segments < segments_R4.size(0) && segments[num_segments * SEGMENT_COLUMNS + 1] > 0) {
    const int64_t* segment = segments + num_segments++ * SEGMENT_COLUMNS;
    num_used = std::max(num_used, segment[0] + segment[1]);
    all_done = all_done && segment[1] <= max_tokens;
  }
  std::fill(out + num_used * num_heads * head_size, out + num_tokens * num_heads * head_size, E(0));
  at::parallel_for(0, num_segments * num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<const E*> keys, values;
    std::vector<float> raw, scores;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t index = unit / num_kv_heads, group = unit % num_kv_heads;
      const int64_t* segment = segments + index * SEGMENT_COLUMNS;
      const int64_t first = segment[0], count = segment[1], num_keys = segment[2], start = segment[3];
      if (count > max_tokens) continue;
      keys.resize(num_keys);
      values.resize(num_keys);
      for (int64_t j = 0; j < num_keys; ++j) {
        const int64_t block = tables[index * table_size + j / block_tokens];
        const int64_t position = start >= 0 ? start + j : block * block_tokens + j % block_tokens;
        keys[j] = k_cache + position * row + group * head_size;
        values[j] = v_cache + position * row + group * head_size;
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t seen = num_keys - count + i + 1, lowest = window > 0 ? std::max<int64_t>(0, seen - window) : 0;
        const int64_t at = ((first + i) * num_heads + group * rep) * head_size;
        attend_token<E>(q + at, keys, values, lowest, seen - lowest, rep, head_size, scale, raw, scores, out + at);
      }
    }
  });
  return all_done;
}

// Writes the step's keys and values, and attends for the segments of at most `max_tokens` tokens; the others' part of
// `out` is left as it is. Returns whether there were no others.
inline bool attend(const at::Tensor& q_THD, const at::Tensor& k_TGD, const at::Tensor& v_TGD, at::Tensor k_cache_NGD,
            at::Tensor v_cache_NGD, const at::Tensor& cache_positions_T, const at::Tensor& segments_R4,
            const at::Tensor& block_tables_RB, int64_t block_tokens, double scale, int64_t window, int64_t max_tokens,
            at::Tensor out_THD) {
  const at::Tensor q = q_THD.contiguous(), k = k_TGD.contiguous(), v = v_TGD.contiguous();
  auto run = q.scalar_type() == at::kBFloat16 ? attend_impl<bf16> : attend_impl<float>;
  return run(q, k, v, k_cache_NGD, v_cache_NGD, cache_positions_T, segments_R4, block_tables_RB, block_tokens, scale, window,
      max_tokens, out_THD);
}

}  // namespace hotslot
