// What slots add to a linear: products of their tokens with A, then with B. Only slots that are on are read.
//
// Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.

#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "dot.h"

namespace hotslot {

// All slots of one module, and the gates of the tokens that it sees.
template <typename E>
struct Slots {
  const E *a_CI = nullptr, *b_CO = nullptr;
  const float *scale_S = nullptr, *one_SK = nullptr;  // `one` is 1 for ranks whose input is 1 rather than x
  const float* gates_TS = nullptr;
  int64_t gates_stride = 0, num_slots = 0, rank = 0;
};

// Two ranks side by side in a word, where products take pairs; else one.
#ifdef HOTSLOT_DOT_BF16
template <typename E>
constexpr bool PAIRED = std::is_same_v<E, bf16>;
#else
template <typename E>
constexpr bool PAIRED = false;
#endif

constexpr int64_t TILE_TOKENS = 16;  // tokens of one slot that one thread takes at a time

// The slots that are on, each with its tokens; keeps its memory for the next call.
template <typename E>
class ActiveSlots {
 public:
  struct Tile {
    int64_t slot, first, count;  // `first` is where its tokens begin among all
  };

  // Finds the slots that are on; `compute` is to be called for each tile then.
  void find(const Slots<E>& slots, const Inputs<E>& x, int64_t num_tokens) {
    tiles_.clear();
    tokens_.clear();
    for (int64_t slot = 0; slot < slots.num_slots; ++slot) {
      if (slots.scale_S[slot] == 0) continue;  // its adapter does not target this module
      int64_t count = 0;
      for (int64_t t = 0; t < num_tokens; ++t) {
        if (slots.gates_TS[t * slots.gates_stride + slot] == 0) continue;
        if (count++ % TILE_TOKENS == 0) tiles_.push_back({slot, static_cast<int64_t>(tokens_.size()), 0});
        ++tiles_.back().count;
        tokens_.push_back(t);
      }
    }
    inputs_.resize(tokens_.size());
    for (size_t index = 0; index < tokens_.size(); ++index) inputs_[index] = x[tokens_[index]];
    h_.resize(tokens_.size() * slots.rank);
    if (PAIRED<E>) pairs_.resize(tokens_.size() * ((slots.rank + 1) / 2));
  }

  // h = gate * scale * (A x + one) of a tile's tokens.
  void compute(const Slots<E>& slots, const Tile& tile, int64_t size) {
    const auto [slot, first, count] = tile;
    const int64_t rank = slots.rank;
    float* h = h_.data() + first * rank;
    dot_all<E>(inputs_.data() + first, count, slots.a_CI + slot * rank * size, size, rank, h, rank);
    for (int64_t i = 0; i < count; ++i, h += rank) {
      const float factor = slots.gates_TS[tokens_[first + i] * slots.gates_stride + slot] * slots.scale_S[slot];
      for (int64_t k = 0; k < rank; ++k) h[k] = (h[k] + slots.one_SK[slot * rank + k]) * factor;
      if (PAIRED<E>) pair(h, rank, pairs_.data() + (first + i) * ((rank + 1) / 2));
    }
  }

  const std::vector<Tile>& tiles() const { return tiles_; }
  int64_t num_tokens() const { return tokens_.size(); }  // one counts for each slot that it has on
  const int64_t* tokens(const Tile& tile) const { return tokens_.data() + tile.first; }
  const float* h(const Tile& tile, int64_t rank) const { return h_.data() + tile.first * rank; }
  const uint32_t* pairs(const Tile& tile, int64_t rank) const {
    return pairs_.data() + tile.first * ((rank + 1) / 2);
  }

 private:
  // Rounded to bfloat16, the first one low; an odd last rank has 0 beside it.
  static void pair(const float* h, int64_t rank, uint32_t* to) {
    for (int64_t k = 0; k < rank; k += 2) {
      const uint32_t low = bf16(h[k]).x, high = k + 1 < rank ? bf16(h[k + 1]).x : 0;
      *to++ = low | high << 16;
    }
  }

  std::vector<Tile> tiles_;
  std::vector<int64_t> tokens_;
  std::vector<const Input<E>*> inputs_;
  std::vector<float> h_;
  std::vector<uint32_t> pairs_;
};

// One token's outputs: out[o] += sum over k of h[k] * b[k][o], where row k begins at b + k * num_out. NT tokens share
// what is read; a token's sums are the same for any NT.
template <typename E, int NT>
inline void add_ranks(const float* h, const E* b, int64_t rank, int64_t num_out, int64_t count, float* const* out) {
  constexpr int NV = MANY_REGISTERS ? 4 : NT == 1 ? 6 : 2;
  int64_t o = 0;
  const auto add = [&](auto vectors) {
    constexpr int N = decltype(vectors)::value;
    for (; o + N * LANES <= count; o += N * LANES) {
      Floats acc[NT][N] = {};
      for (int64_t k = 0; k < rank; ++k) {
        Floats row[N];
        UNROLL for (int v = 0; v < N; ++v) row[v] = load(b + k * num_out + o + v * LANES);
        UNROLL for (int t = 0; t < NT; ++t) {
          UNROLL for (int v = 0; v < N; ++v) acc[t][v] = add_product(acc[t][v], all(h[t * rank + k]), row[v]);
        }
      }
      UNROLL for (int t = 0; t < NT; ++t) {
        UNROLL for (int v = 0; v < N; ++v) {
          float* to = out[t] + o + v * LANES;
          store(to, load(to) + acc[t][v]);
        }
      }
    }
  };
  add(std::integral_constant<int, NV>{});
  add(std::integral_constant<int, 1>{});
  for (; o < count; ++o)
    for (int t = 0; t < NT; ++t) {
      float acc = 0;
      for (int64_t k = 0; k < rank; ++k) acc = std::fma(h[t * rank + k], static_cast<float>(b[k * num_out + o]), acc);
      out[t][o] += acc;
    }
}

#ifdef HOTSLOT_DOT_BF16
// The same for as many outputs as come in pairs of vectors; returns how many those are.
inline int64_t add_pairs(const uint32_t* pairs, const bf16* b, int64_t rank, int64_t num_out, int64_t count,
                         float* out) {
  // Interleaving two rows works on quarters of a vector, so that the sums of outputs 8j to 8j + 3 are in one vector and
  // those of 8j + 4 to 8j + 7 in the other.
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  int64_t o = 0;
  for (; o + 2 * LANES <= count; o += 2 * LANES) {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t k = 0; k < rank; k += 2) {
      const __m512i row = _mm512_loadu_si512(b + k * num_out + o);
      const __m512i below = k + 1 < rank ? _mm512_loadu_si512(b + (k + 1) * num_out + o) : _mm512_setzero_si512();
      const __m512bh factors = (__m512bh)_mm512_set1_epi32(pairs[k / 2]);
      low = _mm512_dpbf16_ps(low, factors, (__m512bh)_mm512_unpacklo_epi16(row, below));
      high = _mm512_dpbf16_ps(high, factors, (__m512bh)_mm512_unpackhi_epi16(row, below));
    }
    float* to = out + o;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(low, first, high)));
    to += LANES;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(low, second, high)));
  }
  return o;
}
#endif

// Adds a slot's share to `count` outputs of its tokens; `b` points at its first rank and the first of the outputs, and
// `row(i)` at those of its i-th token.
template <typename E, typename Row>
void add_slot(const ActiveSlots<E>& active, const typename ActiveSlots<E>::Tile& tile, const E* b, int64_t rank,
              int64_t num_out, int64_t count, const Row& row) {
  const float* h = active.h(tile, rank);
  int64_t done = 0;
#ifdef HOTSLOT_DOT_BF16
  if constexpr (PAIRED<E>)
    for (int64_t i = 0; i < tile.count; ++i)
      done = add_pairs(active.pairs(tile, rank) + i * ((rank + 1) / 2), b, rank, num_out, count, row(i));
#endif
  if (done == count) return;
  int64_t i = 0;
  for (; i + 4 <= tile.count; i += 4) {
    float* to[4];
    for (int t = 0; t < 4; ++t) to[t] = row(i + t) + done;
    add_ranks<E, 4>(h + i * rank, b + done, rank, num_out, count - done, to);
  }
  for (; i < tile.count; ++i) {
    float* to = row(i) + done;
    add_ranks<E, 1>(h + i * rank, b + done, rank, num_out, count - done, &to);
  }
}

// One token's share of all outputs, a few rows of B at a time from end to end: memory is read as it lies. The sums are those
// of `add_ranks`.
template <typename E>
void add_whole_rows(const float* h, const E* b, int64_t rank, int64_t num_out, float* out) {
  int64_t k = 0;
  const auto add = [&](auto rows) {
    constexpr int N = decltype(rows)::value;
    for (; k + N <= rank; k += N, b += N * num_out) {
      Floats factors[N];
      UNROLL for (int j = 0; j < N; ++j) factors[j] = all(h[k + j]);
      int64_t o = 0;
      for (; o + LANES <= num_out; o += LANES) {
        Floats acc = load(out + o);
        UNROLL for (int j = 0; j < N; ++j) acc = add_product(acc, factors[j], load(b + j * num_out + o));
        store(out + o, acc);
      }
      for (; o < num_out; ++o)
        for (int j = 0; j < N; ++j) out[o] = std::fma(h[k + j], static_cast<float>(b[j * num_out + o]), out[o]);
    }
  };
  add(std::integral_constant<int, 8>{});
  add(std::integral_constant<int, 1>{});
}

}  // namespace hotslot
