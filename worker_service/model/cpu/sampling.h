// Draws of tokens from rows of logits: temperature, min-p, top-k, top-p, and noise by a counter hash.
//
// Shapes: R rows, V tokens of the vocabulary. A row's draw depends on its own logits, seed and position alone.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "attention.h"
#include "sharing.h"
#include "vectors.h"

namespace hotslot {

// High halves of the products of 32 bits.
inline Words high_products(Words x, uint32_t by) {
#if defined(__AVX2__)
  constexpr int64_t COUNT = sizeof(Words) / sizeof(__m256i);
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(by));
  __m256i parts[COUNT];
  std::memcpy(parts, &x, sizeof(x));
  UNROLL for (int64_t i = 0; i < COUNT; ++i) {
    const __m256i even = _mm256_mul_epu32(parts[i], factor);
    const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(parts[i], 32), factor);
    parts[i] = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  }
  std::memcpy(&x, parts, sizeof(x));
#else
  for (int64_t lane = 0; lane < LANES; ++lane) x[lane] = static_cast<uint64_t>(x[lane]) * by >> 32;
#endif
  return x;
}

// Philox4x32-10 with counters (block, position, 0, 0); see counter_hash.py, which defines it.
inline void hash(Words blocks, uint32_t position, uint64_t seed, Words (&words)[4]) {
  Words c0 = blocks, c1 = Words{} + position, c2{}, c3{};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Words high0 = high_products(c0, 0xD2511F53u), low0 = c0 * 0xD2511F53u;
    const Words high1 = high_products(c2, 0xCD9E8D57u), low1 = c2 * 0xCD9E8D57u;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// -log(1 - u) for u = (word + 0.5) / 2^32 (Cephes, `logf`).
inline Floats exponential(Words word) {
  Floats u = (__builtin_convertvector(word, Floats) + 0.5f) * 0x1p-32f;
  u = u > 0x1.fffffep-1f ? Floats{} + 0x1.fffffep-1f : u;
  const Floats x = 1.0f - u;
  const Ints bits = same_bits<Ints>(x);
  const Ints is_near = u < 0.29289322f;  // then 1 - u would lose what u has
  Ints exponent = (bits >> 23) - 126;
  Floats m = same_bits<Floats>((bits & 0x7fffff) | 0x3f000000);  // in [0.5, 1)
  const Ints is_small = m < 0.70710678f;
  exponent = is_near ? Ints{} : is_small ? exponent - 1 : exponent;
  m = is_near ? -u : is_small ? m + m - 1.0f : m - 1.0f;
  const Floats e = __builtin_convertvector(exponent, Floats), z = m * m;
  Floats y = Floats{} + 7.0376836292e-2f;
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * z - e * 2.12194440e-4f - z * 0.5f;
  return -(m + y + e * 0.693359375f);
}

constexpr int64_t TOKENS_OF_ONE_HASH = 4 * LANES;

// The noise of TOKENS_OF_ONE_HASH tokens from `first` on, a multiple of 4.
inline void noise(int64_t first, uint32_t position, uint64_t seed, float* to) {
  Words blocks, words[4];
  for (int64_t lane = 0; lane < LANES; ++lane) blocks[lane] = static_cast<uint32_t>(first / 4 + lane);
  hash(blocks, position, seed, words);
  Floats e[4];
  UNROLL for (int w = 0; w < 4; ++w) e[w] = exponential(words[w]);
  const Floats even[2] = {in_turns<0>(e[0], e[2], Lanes{}), in_turns<1>(e[0], e[2], Lanes{})};
  const Floats odd[2] = {in_turns<0>(e[1], e[3], Lanes{}), in_turns<1>(e[1], e[3], Lanes{})};
  UNROLL for (int half = 0; half < 2; ++half) {
    store(to + 2 * half * LANES, in_turns<0>(even[half], odd[half], Lanes{}));
    store(to + (2 * half + 1) * LANES, in_turns<1>(even[half], odd[half], Lanes{}));
  }
}

struct Draw {
  uint64_t seed;
  uint32_t position;
  int64_t top_k;  // 0: all
  float temperature, top_p, min_p;

  bool truncates() const { return top_k > 0 || top_p < 1.0f || min_p > 0.0f; }
};

// A token this far below the highest, in logits, wins against no noise: that is between 2^-33 and 17.
constexpr float HOPELESS = 27.0f;

class Row {
 public:
  int64_t token(const float* logits, int64_t size, const Draw& draw) {
    const int64_t end = (size + TOKENS_OF_ONE_HASH - 1) / TOKENS_OF_ONE_HASH * TOKENS_OF_ONE_HASH;
    scaled_.resize(end);
    weights_.resize(end);
    std::copy(logits, logits + size, scaled_.data());
    std::fill(scaled_.begin() + size, scaled_.end(), -std::numeric_limits<float>::infinity());
    Floats highest = Floats{} - std::numeric_limits<float>::infinity();
    for (int64_t t = 0; t < end; t += LANES) {
      const Floats scaled = load(scaled_.data() + t) / draw.temperature;
      store(scaled_.data() + t, scaled);
      highest = scaled > highest ? scaled : highest;
    }
    float top = highest[0];
    for (int64_t lane = 1; lane < LANES; ++lane) top = std::max(top, highest[lane]);
    for (int64_t t = 0; t < end; t += LANES)
      store(weights_.data() + t, exp_negative(load(scaled_.data() + t) - top));
    if (draw.truncates()) truncate(top, size, draw);
    float best = 0.0f;
    int64_t found = 0;
    for (int64_t first = 0; first < end; first += TOKENS_OF_ONE_HASH) {
      if (is_hopeless(first)) continue;
      float against[TOKENS_OF_ONE_HASH];
      noise(first, draw.position, draw.seed, against);
      for (int64_t t = 0; t < TOKENS_OF_ONE_HASH; t += LANES)
        store(against + t, load(weights_.data() + first + t) / load(against + t));
      for (int64_t t = 0; t < TOKENS_OF_ONE_HASH; ++t)
        if (against[t] > best) best = against[t], found = first + t;
    }
    return found;
  }

 private:
  bool is_hopeless(int64_t first) const {
    Floats highest{};
    UNROLL for (int w = 0; w < 4; ++w) {
      const Floats weight = load(weights_.data() + first + w * LANES);
      highest = weight > highest ? weight : highest;
    }
    static const float least = std::exp(-HOPELESS);
    for (int64_t lane = 0; lane < LANES; ++lane)
      if (highest[lane] >= least) return false;
    return true;
  }

  struct Candidate {
    float scaled;
    int64_t token;

    bool operator<(const Candidate& other) const {
      return scaled > other.scaled || (scaled == other.scaled && token < other.token);
    }
  };

  // Leaves a weight only to tokens that min-p, top-k and top-p, in this order, leave. Tokens are counted by how far they
  // are below the highest; only the one bin that is cut in two is sorted.
  void truncate(float top, int64_t size, const Draw& draw) {
    Floats low = Floats{} + top;
    for (int64_t t = 0; t < size; t += LANES) {
      const Floats scaled = load(scaled_.data() + t);
      low = scaled < low && scaled > top - DEEPEST ? scaled : low;
    }
    float lowest = low[0];
    for (int64_t lane = 1; lane < LANES; ++lane) lowest = std::min(lowest, low[lane]);
    const float bins_each = lowest < top ? (OUT - 1) / (top - lowest) : 0.0f;
    int64_t counts[OUT + 1] = {};
    double sums[OUT + 1] = {};
    bins_.resize(size);
    for (int64_t t = 0; t < size; ++t) {
      const float weight = weights_[t], depth = std::min(OUT - 1.0f, (top - scaled_[t]) * bins_each);
      const uint8_t bin = weight >= draw.min_p ? static_cast<uint8_t>(depth) : OUT;
      bins_[t] = bin;
      ++counts[bin];
      sums[bin] += weight;
    }
    // The bin that is cut, and what is left of it; bins before it stay, those behind it go.
    int64_t cut = OUT;
    candidates_.clear();
    double all = 0;
    int64_t count = 0;
    for (int64_t bin = 0; bin < OUT; ++bin) {
      if (draw.top_k > 0 && count + counts[bin] > draw.top_k) {
        cut = bin;
        sort(bin);
        candidates_.resize(draw.top_k - count);
        for (const Candidate& candidate : candidates_) all += weights_[candidate.token];
        break;
      }
      count += counts[bin];
      all += sums[bin];
    }
    if (draw.top_p < 1.0f) {
      const double enough = draw.top_p * all;
      double before = 0;
      for (int64_t bin = 0; bin <= cut && bin < OUT; ++bin) {
        if (bin < cut && before + sums[bin] < enough) {
          before += sums[bin];
          continue;
        }
        if (bin < cut) sort(bin);
        cut = bin;
        size_t kept = 0;
        // The most likely token always stays.
        while (kept < candidates_.size() && (before < enough || (bin == 0 && kept == 0)))
          before += weights_[candidates_[kept++].token];
        candidates_.resize(kept);
        break;
      }
    }
    kept_.clear();
    for (const Candidate& candidate : candidates_) kept_.push_back(weights_[candidate.token]);
    for (int64_t t = 0; t < size; ++t)
      if (bins_[t] >= cut) weights_[t] = 0.0f;
    for (size_t i = 0; i < kept_.size(); ++i) weights_[candidates_[i].token] = kept_[i];
  }

  void sort(int64_t bin) {
    candidates_.clear();
    for (size_t t = 0; t < bins_.size(); ++t)
      if (bins_[t] == bin) candidates_.push_back({scaled_[t], static_cast<int64_t>(t)});
    std::sort(candidates_.begin(), candidates_.end());
  }

  static constexpr int OUT = 255;          // the bin of what min-p rules out
  static constexpr float DEEPEST = 32.0f;  // logits below the highest, from which on all are in the last bin

  std::vector<float> scaled_, weights_;
  std::vector<Candidate> candidates_;
  std::vector<float> kept_;
  std::vector<uint8_t> bins_;
};

// The first token with the highest logit; -1 for a NaN anywhere, +inf or nothing but -inf.
template <typename E>
int64_t greedy_token(const E* logits, int64_t size) {
  constexpr float INF = std::numeric_limits<float>::infinity();
  const int64_t whole = size / LANES * LANES;
  Floats best = Floats{} - INF;
  Ints first{}, is_nan{};
  for (int64_t t = 0; t < whole; t += LANES) {
    const Floats x = load(logits + t);
    const Ints above = x > best;
    best = above ? x : best;
    first = above ? Ints{} + static_cast<int32_t>(t) : first;
    is_nan |= x != x;
  }
  float highest = -INF;
  int64_t token = -1;
  bool has_nan = false;
  for (int64_t lane = 0; lane < LANES && whole > 0; ++lane) {
    has_nan |= is_nan[lane] != 0;
    const int64_t found = first[lane] + lane;
    if (best[lane] > highest || (best[lane] == highest && token >= 0 && found < token)) {
      highest = best[lane];
      token = found;
    }
  }
  for (int64_t t = whole; t < size; ++t) {
    const auto x = static_cast<float>(logits[t]);
    has_nan |= x != x;
    if (x > highest) highest = x, token = t;
  }
  return has_nan || highest == INF ? -1 : token;
}

// A token for each row without a draw, as `greedy_token`.
inline at::Tensor greedy(const at::Tensor& logits_RV) {
  const int64_t num_rows = logits_RV.size(0), size = logits_RV.size(1);
  TORCH_CHECK((logits_RV.scalar_type() == at::kFloat || logits_RV.scalar_type() == at::kBFloat16) &&
                  logits_RV.stride(1) == 1 && size > 0 && size <= std::numeric_limits<int32_t>::max(),
              "hotslot_cpu: greedy wants bfloat16 or float32 logits [R, V]");
  at::Tensor tokens_R = at::empty({num_rows}, logits_RV.options().dtype(at::kLong));
  int64_t* tokens = tokens_R.mutable_data_ptr<int64_t>();
  const int64_t stride = logits_RV.stride(0);
  for_type(logits_RV, [&](auto zero) {
    using E = decltype(zero);
    const E* logits = logits_RV.const_data_ptr<E>();
    share_out(num_rows, [&](int64_t r) { tokens[r] = greedy_token(logits + r * stride, size); });
  });
  return tokens_R;
}

// A token for each row. `counts_R3` are seed, position and top-k; `factors_R3` are temperature, top-p and min-p.
inline at::Tensor draw(const at::Tensor& logits_RV, const at::Tensor& counts_R3, const at::Tensor& factors_R3) {
  const int64_t num_rows = logits_RV.size(0), size = logits_RV.size(1);
  TORCH_CHECK(logits_RV.scalar_type() == at::kFloat && logits_RV.stride(1) == 1 && counts_R3.is_contiguous() &&
                  counts_R3.scalar_type() == at::kLong && counts_R3.numel() == 3 * num_rows &&
                  factors_R3.is_contiguous() && factors_R3.scalar_type() == at::kFloat &&
                  factors_R3.numel() == 3 * num_rows && size > 0,
              "hotslot_cpu: draw wants float32 logits [R, V], int64 counts [R, 3] and float32 factors [R, 3]");
  at::Tensor tokens_R = at::empty({num_rows}, counts_R3.options());
  const float* logits = logits_RV.const_data_ptr<float>();
  const int64_t* counts = counts_R3.const_data_ptr<int64_t>();
  const float* factors = factors_R3.const_data_ptr<float>();
  int64_t* tokens = tokens_R.mutable_data_ptr<int64_t>();
  const int64_t stride = logits_RV.stride(0);
  share_out(num_rows, [&](int64_t r) {
    static thread_local Row row;
    const int64_t* count = counts + 3 * r;
    const float* factor = factors + 3 * r;
    const Draw draw{static_cast<uint64_t>(count[0]), static_cast<uint32_t>(count[1]), count[2],
                    factor[0], factor[1], factor[2]};
    tokens[r] = row.token(logits + r * stride, size, draw);
  });
  return tokens_R;
}

// The noise alone, as counter_hash.py defines it: what tests hold this file to.
inline at::Tensor noise_of(int64_t seed, int64_t position, int64_t num_tokens) {
  const int64_t end = (num_tokens + TOKENS_OF_ONE_HASH - 1) / TOKENS_OF_ONE_HASH * TOKENS_OF_ONE_HASH;
  at::Tensor noise_V = at::empty({end}, at::kFloat);
  for (int64_t first = 0; first < end; first += TOKENS_OF_ONE_HASH)
    noise(first, static_cast<uint32_t>(position), static_cast<uint64_t>(seed), noise_V.mutable_data_ptr<float>() + first);
  return noise_V.narrow(0, 0, num_tokens);
}

}  // namespace hotslot
