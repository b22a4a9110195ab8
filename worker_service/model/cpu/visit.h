// Attention of a few tokens of one sequence: scores of all keys, their softmax, and sums of values.
//
// A token's result is computed in an order that its own keys alone decide: neither the tokens beside it nor the blocks
// that its keys lie in change a bit.
//
// Shapes: H query heads, G key/value heads, D head size (a multiple of 16).

#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "dot.h"
#include "softmax.h"

namespace hotslot {

constexpr int64_t KEYS_OF_ONE_VISIT = 16;   // of all key heads, which share half of a core's nearest cache
constexpr int64_t KEYS_AHEAD = 16;          // of what a visit reads next, so many are fetched beforehand
constexpr int64_t TOKENS_OF_ONE_VISIT = 8;  // of one segment; so many read a key together

// Where a sequence's keys are: in blocks of a table, or one behind the other.
struct Places {
  const int32_t* table;
  int64_t start, block_tokens, row;  // `start` is -1 for a table; `row` is what one cache position takes

  // Of `count` keys from `first` on; behind the last one stands the last one again.
  void find(int64_t first, int64_t count, int64_t num_keys, int64_t* to) const {
    const int64_t known = std::min(count, num_keys - first);
    if (start >= 0) {
      for (int64_t j = 0; j < known; ++j) to[j] = (start + first + j) * row;
    } else {
      for (int64_t j = 0, block = first / block_tokens, inside = first % block_tokens; j < known; ++block, inside = 0)
        for (; j < known && inside < block_tokens; ++j, ++inside) to[j] = (table[block] * block_tokens + inside) * row;
    }
    std::fill(to + known, to + count, to[known - 1]);
  }
};

// Vectors of a row of values. Neighbours are widened apart, so sums of them lie apart too until they are read.
template <typename E>
struct ValueRow {
  static constexpr int64_t VECTORS = std::is_same_v<E, bf16> ? 2 : 1, STEP = VECTORS * LANES;
  template <int PART>
  static Floats part(const E* from) {
    if constexpr (VECTORS == 1) {
      return load(from);
    } else {
      return in_register(widened<PART, MANY_REGISTERS>(from));
    }
  }
  // In place: sums of one step as their elements lie in memory.
  static void settle(float* sums) {
    if constexpr (VECTORS == 2) {
      const Floats low = load(sums), high = load(sums + LANES);
      store(sums, in_turns<0>(low, high, Lanes{}));
      store(sums + LANES, in_turns<1>(low, high, Lanes{}));
    }
  }
};

// Memory of one thread, kept for its next call.
template <typename E>
struct AttentionScratch {
  Inputs<E> q;
  std::vector<float> scores;    // [queries, keys]
  std::vector<float> out;       // [queries, D]
  std::vector<float> inverses;  // of each query's sum of weights
};

// The tokens of one visit, all query heads of some key heads: queries in order of key head, token, then head.
template <typename E>
class Visit {
 public:
  Visit(AttentionScratch<E>& scratch, int64_t groups, int64_t rep, int64_t head_size, const Scoring& scoring)
      : scratch_(scratch), groups_(groups), rep_(rep), head_size_(head_size), scoring_(scoring) {}

  // `num_keys` are those of the last of `count` tokens; `k` and `v` are the caches, from the first key head on.
  void attend(int64_t count, int64_t num_keys, const E* k, const E* v, const Places& places) {
    const auto lowest = [&](int64_t seen) {
      return scoring_.window > 0 ? std::max<int64_t>(0, seen - scoring_.window) : 0;
    };
    const int64_t least = num_keys - count + 1, from = lowest(least), queries = count * rep_;
    stride_ = num_keys - from + 2 * LANES;
    scratch_.scores.resize(groups_ * queries * stride_);
    scratch_.out.assign(groups_ * queries * head_size_, 0.0f);
    scratch_.inverses.resize(groups_ * queries);
    int64_t at[KEYS_OF_ONE_VISIT + KEYS_AHEAD];  // and those behind the visit's, which are fetched meanwhile
    for (int64_t first = from; first < num_keys; first += KEYS_OF_ONE_VISIT) {
      places.find(first, KEYS_OF_ONE_VISIT + KEYS_AHEAD, num_keys, at);
      for (int64_t g = 0; g < groups_; ++g)
        score(g * queries, queries, k + g * head_size_, at, std::min(KEYS_OF_ONE_VISIT, num_keys - first), first - from);
    }
    for (int64_t query = 0; query < groups_ * queries; ++query) {
      const int64_t seen = least + query % queries / rep_, low = lowest(seen);
      scratch_.inverses[query] = softmax(scores(query) + low - from, seen - low, scoring_);
    }
    const int64_t all_from = lowest(num_keys);
    for (int64_t first = from; first < num_keys; first += KEYS_OF_ONE_VISIT) {
      const int64_t end = std::min(first + KEYS_OF_ONE_VISIT, num_keys);
      places.find(first, KEYS_OF_ONE_VISIT + KEYS_AHEAD, num_keys, at);
      for (int64_t g = 0; g < groups_; ++g) {
        const E* values = v + g * head_size_;
        if (first >= all_from && end <= least) {
          add(g * queries, queries, values, at, end - first, first - from);
          continue;
        }
        for (int64_t token = 0; token < count; ++token) {  // some see other keys than others
          const int64_t low = std::max(first, lowest(least + token)), high = std::min(end, least + token);
          if (low < high) add(g * queries + token * rep_, rep_, values, at + low - first, high - low, low - from);
        }
      }
    }
  }

  // Result of one query.
  void write(int64_t query, E* to) {
    float* out = this->out(query);
    const float inverse = scratch_.inverses[query];
    for (int64_t d = 0; d < head_size_; d += LANES) store(out + d, load(out + d) * inverse);
    for (int64_t d = 0; d + ValueRow<E>::STEP <= head_size_; d += ValueRow<E>::STEP) ValueRow<E>::settle(out + d);
    round_row<E>(out, nullptr, head_size_, to);
  }

 private:
  float* scores(int64_t query) { return scratch_.scores.data() + query * stride_; }
  float* out(int64_t query) { return scratch_.out.data() + query * head_size_; }

  // Scores of `count` keys, to column `to` on; a few columns behind them are overwritten.
  void score(int64_t query, int64_t num_queries, const E* k, const int64_t* at, int64_t count, int64_t to) {
    const int64_t end = query + num_queries;
    for (int64_t first = 0; first < count; first += LANES) {
      const E* keys[LANES];
      for (int64_t j = 0; j < LANES; ++j) {
        keys[j] = k + at[std::min(first + j, count - 1)];
        fetch(k + at[first + j + KEYS_AHEAD]);
      }
      int64_t q = query;
      const auto blocks = [&](auto size) {
        constexpr int N = decltype(size)::value;
        for (; q + N <= end; q += N) score_block<N>(q, keys, to + first);
      };
      blocks(std::integral_constant<int, MANY_REGISTERS ? 4 : 3>{});
      if (q + 3 == end) score_block<3>(q, keys, to + first);
      if (q + 2 == end) score_block<2>(q, keys, to + first);
      if (q + 1 == end) score_block<1>(q, keys, to + first);
    }
  }

  void fetch(const E* row) const {
    for (int64_t d = 0; d < head_size_; d += 64 / static_cast<int64_t>(sizeof(E))) __builtin_prefetch(row + d);
  }

  template <int NQ>
  void score_block(int64_t query, const E* const* keys, int64_t to) {
    constexpr int NK = MANY_REGISTERS || NQ <= 3 ? 4 : 2;
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
    for (; query + 3 <= end; query += 3) add_block<3>(query, v, at, count, from);
    if (query + 2 == end) add_block<2>(query, v, at, count, from);
    if (query + 1 == end) add_block<1>(query, v, at, count, from);
  }

  template <int NQ>
  void add_block(int64_t query, const E* v, const int64_t* at, int64_t count, int64_t from) {
    int64_t d = 0;
    const float* weights[NQ];
    UNROLL for (int q = 0; q < NQ; ++q) weights[q] = scores(query + q) + from;
    const auto add = [&](auto steps, auto vectors, const auto& value) {
      constexpr int N = decltype(steps)::value, V = decltype(vectors)::value;
      for (; d + N * V * LANES <= head_size_; d += N * V * LANES) {
        Floats acc[NQ][N * V];
        UNROLL for (int q = 0; q < NQ; ++q) {
          UNROLL for (int i = 0; i < N * V; ++i) acc[q][i] = load(out(query + q) + d + i * LANES);
        }
        for (int64_t j = 0; j < count; ++j) {
          const E* row = v + at[j] + d;
          UNROLL for (int64_t line = 0; line < N * V * LANES * static_cast<int64_t>(sizeof(E)); line += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(v + at[j + KEYS_AHEAD] + d) + line);
          Floats factors[NQ];
          UNROLL for (int q = 0; q < NQ; ++q) factors[q] = in_register(all(weights[q][j]));
          UNROLL for (int i = 0; i < N; ++i) {
            const auto add_part = [&](auto which) {
              constexpr int PART = decltype(which)::value;
              const Floats w = value(which, read_anew(row + i * V * LANES));
              UNROLL for (int q = 0; q < NQ; ++q)
                acc[q][i * V + PART] = add_product(acc[q][i * V + PART], factors[q], w);
            };
            add_part(std::integral_constant<int, 0>{});
            if constexpr (V == 2) add_part(std::integral_constant<int, 1>{});
          }
        }
        UNROLL for (int q = 0; q < NQ; ++q) {
          UNROLL for (int i = 0; i < N * V; ++i) store(out(query + q) + d + i * LANES, acc[q][i]);
        }
      }
    };
    constexpr int V = ValueRow<E>::VECTORS, MOST = (MANY_REGISTERS ? 8 : 4) / V;
    const auto steps = [](auto which, const E* from) { return ValueRow<E>::template part<decltype(which)::value>(from); };
    add(std::integral_constant<int, MOST>{}, std::integral_constant<int, V>{}, steps);
    if constexpr (MOST > 1) add(std::integral_constant<int, 1>{}, std::integral_constant<int, V>{}, steps);
    if constexpr (V > 1)
      add(std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{}, [](auto, const E* from) { return load(from); });
  }

  AttentionScratch<E>& scratch_;
  const int64_t groups_, rep_, head_size_;
  const Scoring scoring_;
  int64_t stride_ = 0;
};

}  // namespace hotslot
