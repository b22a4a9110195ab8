// Softmax of scores, which a scale, and a bound where there is one, are applied to first.

#pragma once

#include <algorithm>
#include <limits>

#include "vectors.h"

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
  return is_low ? Floats{} : p * same_bits<Floats>(bits);
}

// softcap * tanh(x / softcap) (Gemma 2, section 2).
inline Floats capped(Floats x, float softcap) {
  const Floats y = x / softcap;
  const Floats e = exp_negative((y < 0.0f ? y : -y) * 2.0f);
  const Floats tanh = (1.0f - e) / (1.0f + e);
  return (y < 0.0f ? -tanh : tanh) * softcap;
}

struct Scoring {
  float scale, softcap;
  int64_t window;  // keys that a token sees, itself included; 0: all
};

// Weights in place of `count` scores, and what their sum is to be multiplied by; what is behind them up to a full vector
// is overwritten.
inline float softmax(float* scores, int64_t count, const Scoring& scoring) {
  const int64_t end = (count + LANES - 1) / LANES * LANES;
  std::fill(scores + count, scores + end, -std::numeric_limits<float>::infinity());
  Floats highest = Floats{} - std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < end; j += LANES) {
    Floats score = load(scores + j) * scoring.scale;
    if (scoring.softcap != 0) {
      score = capped(score, scoring.softcap);
      store(scores + j, score);
    }
    highest = score > highest ? score : highest;
  }
  if (scoring.softcap != 0) std::fill(scores + count, scores + end, -std::numeric_limits<float>::infinity());
  const float scale = scoring.softcap != 0 ? 1.0f : scoring.scale;
  float top = highest[0];
  for (int64_t lane = 1; lane < LANES; ++lane) top = std::max(top, highest[lane]);
  Floats totals{};
  for (int64_t j = 0; j < end; j += LANES) {
    const Floats e = exp_negative(load(scores + j) * scale - top);
    totals += e;
    store(scores + j, e);
  }
  return 1.0f / sum(totals);
}

}  // namespace hotslot
