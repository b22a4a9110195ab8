// Attention over the paged cache, which reads through the block tables.
//
// Shapes: T tokens, H query heads, G key/value heads, D head size (a multiple of 16), N cache positions, R segments,
// B blocks of one sequence.
//
// A token's result is computed in an order that its own keys alone decide: neither the tokens beside it nor the blocks
// that its keys lie in change a bit.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "dot.h"
#include "sharing.h"

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

// In place, over `count` scores; what is behind them up to a full vector is overwritten.
inline void softmax(float* scores, int64_t count, const Scoring& scoring) {
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
  const float inverse = 1.0f / sum(totals);
  for (int64_t j = 0; j < end; j += LANES) store(scores + j, load(scores + j) * inverse);
}

constexpr int64_t KEYS_OF_ONE_VISIT = 64;  // their values stay in the nearest cache for all queries
constexpr int64_t KEYS_AHEAD = 16;  // of what a visit reads next, so many are fetched beforehand
constexpr int64_t TOKENS_OF_ONE_VISIT = 8;  // of one segment; so many read a key together

// Memory of one thread, kept for its next call.
template <typename E>
struct AttentionScratch {
  Inputs<E> q;
  std::vector<float> scores;  // [queries, keys]
  std::vector<float> out;     // [queries, D]
};

// The tokens of one visit, all query heads of one key head: queries in order of token, then head.
template <typename E>
class Visit {
 public:
  Visit(AttentionScratch<E>& scratch, int64_t rep, int64_t head_size, const Scoring& scoring)
      : scratch_(scratch), rep_(rep), head_size_(head_size), scoring_(scoring) {}

  // `num_keys` are those of the last of `count` tokens; `address(j)` is where key and value j are in their caches.
  template <typename Address>
  void attend(int64_t count, int64_t num_keys, const E* k, const E* v, const Address& address) {
    const auto lowest = [&](int64_t seen) {
      return scoring_.window > 0 ? std::max<int64_t>(0, seen - scoring_.window) : 0;
    };
    const int64_t least = num_keys - count + 1, from = lowest(least);
    stride_ = num_keys - from + 2 * LANES;
    scratch_.scores.resize(count * rep_ * stride_);
    scratch_.out.assign(count * rep_ * head_size_, 0.0f);
    int64_t at[KEYS_OF_ONE_VISIT + KEYS_AHEAD];
    const auto find = [&](int64_t first) {  // and those behind the visit's, which are fetched meanwhile
      for (int64_t j = 0; j < KEYS_OF_ONE_VISIT + KEYS_AHEAD; ++j) at[j] = address(std::min(first + j, num_keys - 1));
    };
    for (int64_t first = from; first < num_keys; first += KEYS_OF_ONE_VISIT) {
      find(first);
      score(count * rep_, k, at, std::min(KEYS_OF_ONE_VISIT, num_keys - first), first - from);
    }
    for (int64_t token = 0; token < count; ++token)
      for (int64_t h = 0; h < rep_; ++h) {
        const int64_t seen = least + token, low = lowest(seen);
        softmax(scores(token * rep_ + h) + low - from, seen - low, scoring_);
      }
    const int64_t all_from = lowest(num_keys);
    for (int64_t first = from; first < num_keys; first += KEYS_OF_ONE_VISIT) {
      const int64_t end = std::min(first + KEYS_OF_ONE_VISIT, num_keys);
      find(first);
      if (first >= all_from && end <= least) {
        add(0, count * rep_, v, at, end - first, first - from);
        continue;
      }
      for (int64_t token = 0; token < count; ++token) {  // some see other keys than others
        const int64_t low = std::max(first, lowest(least + token)), high = std::min(end, least + token);
        if (low < high) add(token * rep_, rep_, v, at + low - first, high - low, low - from);
      }
    }
  }

  float* out(int64_t query) { return scratch_.out.data() + query * head_size_; }

 private:
  float* scores(int64_t query) { return scratch_.scores.data() + query * stride_; }

  // Scores of `count` keys, to column `to` on; a few columns behind them are overwritten.
  void score(int64_t num_queries, const E* k, const int64_t* at, int64_t count, int64_t to) {
    for (int64_t first = 0; first < count; first += LANES) {
      const E* keys[LANES];
      for (int64_t j = 0; j < LANES; ++j) {
        keys[j] = k + at[std::min(first + j, count - 1)];
        fetch(k + at[first + j + KEYS_AHEAD]);
      }
      int64_t query = 0;
      for (; query + 4 <= num_queries; query += 4) score_block<4>(query, keys, to + first);
      switch (num_queries - query) {
        case 3: score_block<3>(query, keys, to + first); break;
        case 2: score_block<2>(query, keys, to + first); break;
        case 1: score_block<1>(query, keys, to + first); break;
      }
    }
  }

  void fetch(const E* row) const {
    for (int64_t d = 0; d < head_size_; d += 64 / static_cast<int64_t>(sizeof(E))) __builtin_prefetch(row + d);
  }

  template <int NQ>
  void score_block(int64_t query, const E* const* keys, int64_t to) {
    constexpr int NK = MANY_REGISTERS ? 4 : NQ <= 2 ? 4 : 2;
    Floats lanes[NQ][LANES];
    for (int64_t j = 0; j < LANES; j += NK) {
      Floats some[NQ][NK];
      dot_lanes<E, NQ, NK>(scratch_.q.data() + query, [&](int o) { return keys[j + o]; }, head_size_, nullptr, some);
      UNROLL for (int q = 0; q < NQ; ++q) {
        UNROLL for (int o = 0; o < NK; ++o) lanes[q][j + o] = some[q][o];
      }
    }
    for (int q = 0; q < NQ; ++q) store(scores(query + q) + to, sums(lanes[q]));
  }

  // Adds values by their weights, which begin at column `from`.
  void add(int64_t query, int64_t num_queries, const E* v, const int64_t* at, int64_t count, int64_t from) {
    const int64_t end = query + num_queries;
    for (int64_t j = 0; j < count; ++j) fetch(v + at[j + KEYS_AHEAD]);
    for (; query + 4 <= end; query += 4) add_block<4>(query, v, at, count, from);
    switch (end - query) {
      case 3: add_block<3>(query, v, at, count, from); break;
      case 2: add_block<2>(query, v, at, count, from); break;
      case 1: add_block<1>(query, v, at, count, from); break;
    }
  }

  template <int NQ>
  void add_block(int64_t query, const E* v, const int64_t* at, int64_t count, int64_t from) {
    const auto add = [&](auto vectors, int64_t& d) {
      constexpr int N = decltype(vectors)::value;
      for (; d + N * LANES <= head_size_; d += N * LANES) {
        Floats acc[NQ][N];
        const float* weights[NQ];
        UNROLL for (int q = 0; q < NQ; ++q) {
          weights[q] = scores(query + q) + from;
          UNROLL for (int i = 0; i < N; ++i) acc[q][i] = load(out(query + q) + d + i * LANES);
        }
        for (int64_t j = 0; j < count; ++j) {
          Floats values[N];
          UNROLL for (int i = 0; i < N; ++i) values[i] = load(v + at[j] + d + i * LANES);
          UNROLL for (int q = 0; q < NQ; ++q) {
            UNROLL for (int i = 0; i < N; ++i) acc[q][i] = add_product(acc[q][i], all(weights[q][j]), values[i]);
          }
        }
        UNROLL for (int q = 0; q < NQ; ++q) {
          UNROLL for (int i = 0; i < N; ++i) store(out(query + q) + d + i * LANES, acc[q][i]);
        }
      }
    };
    int64_t d = 0;
    add(std::integral_constant<int, MANY_REGISTERS ? 4 : NQ <= 2 ? 4 : NQ == 3 ? 3 : 2>{}, d);
    add(std::integral_constant<int, 1>{}, d);
  }

  AttentionScratch<E>& scratch_;
  const int64_t rep_, head_size_;
  const Scoring scoring_;
  int64_t stride_ = 0;
};

constexpr int64_t SEGMENT_COLUMNS = 4;  // first token, tokens, keys, first cache position or -1

// One step's attention of one layer. All is contiguous but for the tokens of `k` and `v`.
template <typename E>
struct Attention {
  const E *q_THD, *k_TGD, *v_TGD;
  E *k_cache_NGD, *v_cache_NGD, *out_THD;
  const int64_t *cache_positions_T, *segments_R4;
  const int32_t* block_tables_RB;
  int64_t num_tokens, num_heads, num_kv_heads, head_size, num_segments, table_size, block_tokens, max_tokens;
  int64_t k_stride, v_stride;
  Scoring scoring;
};

// Writes the step's keys and values, and attends for the segments of at most `max_tokens` tokens; the others' part of
// `out` is left as it is. Returns whether there were no others.
template <typename E>
bool attend(const Attention<E>& step) {
  const int64_t num_tokens = step.num_tokens, num_heads = step.num_heads, head_size = step.head_size;
  const int64_t num_kv_heads = step.num_kv_heads, rep = num_heads / num_kv_heads, row = num_kv_heads * head_size;
  const int64_t block_tokens = step.block_tokens, max_tokens = step.max_tokens;
  const E* q = step.q_THD;
  E *k_cache = step.k_cache_NGD, *v_cache = step.v_cache_NGD, *out = step.out_THD;
  const int64_t *positions = step.cache_positions_T, *segments = step.segments_R4;
  const int32_t* tables = step.block_tables_RB;
  const int64_t table_size = step.table_size;
  for (int64_t t = 0; t < num_tokens; ++t) {
    std::memcpy(k_cache + positions[t] * row, step.k_TGD + t * step.k_stride, row * sizeof(E));
    std::memcpy(v_cache + positions[t] * row, step.v_TGD + t * step.v_stride, row * sizeof(E));
  }
  struct Unit {
    int64_t segment, first, count, num_keys;
  };
  static thread_local std::vector<Unit> kept_units;
  std::vector<Unit>& units = kept_units;
  units.clear();
  int64_t num_used = 0;
  bool all_done = true;
  for (int64_t index = 0; index < step.num_segments && segments[index * SEGMENT_COLUMNS + 1] > 0; ++index) {
    const int64_t* segment = segments + index * SEGMENT_COLUMNS;
    const int64_t first = segment[0], count = segment[1], num_keys = segment[2];
    num_used = std::max(num_used, first + count);
    all_done = all_done && count <= max_tokens;
    if (count > max_tokens) continue;
    for (int64_t done = 0; done < count; done += TOKENS_OF_ONE_VISIT) {
      const int64_t these = std::min(TOKENS_OF_ONE_VISIT, count - done);
      units.push_back({index, first + done, these, num_keys - count + done + these});
    }
  }
  std::fill(out + num_used * num_heads * head_size, out + num_tokens * num_heads * head_size, E(0.0f));
  share_out(units.size() * num_kv_heads, [&](int64_t task) {
    static thread_local AttentionScratch<E> scratch;
    static thread_local std::vector<E> queries;
    const auto [index, first, count, num_keys] = units[task / num_kv_heads];
    const int64_t group = task % num_kv_heads, start = segments[index * SEGMENT_COLUMNS + 3];
    const int32_t* table = tables + index * table_size;
    queries.resize(count * rep * head_size);
    for (int64_t i = 0; i < count; ++i) {
      const E* from = q + ((first + i) * num_heads + group * rep) * head_size;
      std::copy(from, from + rep * head_size, queries.data() + i * rep * head_size);
    }
    scratch.q.take(queries.data(), count * rep, head_size);
    Visit<E> visit(scratch, rep, head_size, step.scoring);
    visit.attend(count, num_keys, k_cache, v_cache, [&](int64_t j) {
      const int64_t block = start >= 0 ? 0 : table[j / block_tokens];
      return (start >= 0 ? start + j : block * block_tokens + j % block_tokens) * row + group * head_size;
    });
    for (int64_t i = 0; i < count; ++i)
      for (int64_t h = 0; h < rep; ++h)
        round_row<E>(visit.out(i * rep + h), nullptr, head_size,
                     out + ((first + i) * num_heads + group * rep + h) * head_size);
  });
  return all_done;
}

// A `softcap` of 0 leaves scores alone.
inline bool attend_tensors(const at::Tensor& q_THD, const at::Tensor& k_TGD, const at::Tensor& v_TGD,
                           at::Tensor k_cache_NGD, at::Tensor v_cache_NGD, const at::Tensor& cache_positions_T, const at::Tensor& segments_R4,
                           const at::Tensor& block_tables_RB, int64_t block_tokens, double scale, int64_t window,
                           double softcap, int64_t max_tokens, at::Tensor out_THD) {
  const auto in_rows = [](const at::Tensor& x) {
    return x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous();
  };
  const at::Tensor q = q_THD.contiguous(), k = in_rows(k_TGD), v = in_rows(v_TGD);
  bool all_done = true;
  for_type(q, [&](auto type) {
    using E = decltype(type);
    all_done = attend<E>({
        q.const_data_ptr<E>(), k.const_data_ptr<E>(), v.const_data_ptr<E>(),
        k_cache_NGD.mutable_data_ptr<E>(), v_cache_NGD.mutable_data_ptr<E>(), out_THD.mutable_data_ptr<E>(),
        cache_positions_T.const_data_ptr<int64_t>(), segments_R4.const_data_ptr<int64_t>(),
        block_tables_RB.const_data_ptr<int32_t>(), q.size(0), q.size(1), k_cache_NGD.size(1), q.size(2),
        segments_R4.size(0), block_tables_RB.size(1), block_tokens, max_tokens,
        k.stride(0), v.stride(0),
        {static_cast<float>(scale), static_cast<float>(softcap), window},
    });
  });
  return all_done;
}

}  // namespace hotslot
