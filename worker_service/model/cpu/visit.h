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

// Fetches a line into the second cache. Lines on their way into the nearest one are few at a time, some 24, which is a
// third of the memory's speed; those on their way into the second are twice as many.
// It is volatile, since a compiler leaves out functions without effects, and with them what they fetch.
inline void fetch_line(const void* line) {
#if defined(__x86_64__)
  asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(line)));
#else
  asm volatile("" : "+r"(line));
  __builtin_prefetch(line, 0, 2);
#endif
}

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
    places.find(from, KEYS_OF_ONE_VISIT, num_keys, at);
    for (int64_t g = 0; g < groups_; ++g) fetch(v + g * head_size_, at, KEYS_OF_ONE_VISIT);
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
    for (int64_t first = 0; first < count; first += LANES, at += LANES, to += LANES) {
      fetch(k, at + KEYS_AHEAD, LANES);
      int64_t q = query;
      const auto blocks = [&](auto size) {
        constexpr int N = decltype(size)::value;
        for (; q + N <= end; q += N) score_block<N>(q, k, at, to);
      };
      blocks(std::integral_constant<int, MANY_REGISTERS ? 4 : 3>{});
      if (q + 3 == end) score_block<3>(q, k, at, to);
      if (q + 2 == end) score_block<2>(q, k, at, to);
      if (q + 1 == end) score_block<1>(q, k, at, to);
    }
  }

  // What stands at some places, of one key head.
  void fetch(const E* row, const int64_t* at, int64_t count) const {
    for (int64_t d = 0; d < head_size_; d += 64 / static_cast<int64_t>(sizeof(E)))
      for (int64_t j = 0; j < count; ++j) fetch_line(row + d + at[j]);
  }

  template <int NQ>
  void score_block(int64_t query, const E* k, const int64_t* at, int64_t to) {
    constexpr int NK = 4;
    static_assert(LANES == 2 * NK || LANES == 4 * NK);
    Floats parts[NQ][LANES / NK];
    for (int64_t j = 0; j < LANES; j += NK) {
      Floats some[NQ][NK];
      dot_lanes<E, NQ, NK>(scratch_.q.data() + query, [&](int o) { return k + at[j + o]; }, head_size_, nullptr, some);
      repeat<NQ>([&](auto q) INLINED {
        parts[q][j / NK] = folded<2>(folded<1>(some[q][0], some[q][1]), folded<1>(some[q][2], some[q][3]));
      });
    }
    repeat<NQ>([&](auto q) INLINED {
      Floats(&part)[LANES / NK] = parts[q];
      if constexpr (LANES == 2 * NK)
        store(scores(query + q) + to, folded<NK>(part[0], part[1]));
      else
        store(scores(query + q) + to, folded<2 * NK>(folded<NK>(part[0], part[1]), folded<NK>(part[2], part[3])));
    });
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
    const float* weights[NQ];
    float* outs[NQ];
    repeat<NQ>([&](auto q) INLINED { weights[q] = scores(query + q) + from, outs[q] = out(query + q); });
    const int64_t size = head_size_;
    int64_t d = 0;
    const auto add = [&](auto vectors, const auto& value) INLINED {
      constexpr int N = decltype(vectors)::value;
      for (; d + N * LANES <= size; d += N * LANES) {
        Floats acc[NQ][N];
        repeat<NQ>([&](auto q) INLINED {
          repeat<N>([&](auto i) INLINED { acc[q][i] = load(outs[q] + d + i * LANES); });
        });
        for (int64_t j = 0; j < count; ++j) {
          const E *row = v + at[j] + d, *ahead = v + at[j + KEYS_AHEAD] + d;
          constexpr int LINE = 64 / sizeof(E);
          repeat<(N * LANES + LINE - 1) / LINE>([&](auto line) INLINED { fetch_line(ahead + line * LINE); });
          Floats factors[NQ];
          repeat<NQ>([&](auto q) INLINED { factors[q] = in_register(all(weights[q][j])); });
          repeat<N>([&](auto i) INLINED {
            const Floats w = value(i, row);
            repeat<NQ>([&](auto q) INLINED { acc[q][i] = add_product(acc[q][i], factors[q], w); });
          });
        }
        repeat<NQ>([&](auto q) INLINED {
          repeat<N>([&](auto i) INLINED { store(outs[q] + d + i * LANES, acc[q][i]); });
        });
      }
    };
    constexpr int V = ValueRow<E>::VECTORS, MOST = NQ == 1 ? 8 : 4;
    const auto part = [](auto i, const E* row) INLINED {
      constexpr int I = decltype(i)::value;
      return ValueRow<E>::template part<I % V>(read_anew(row + I / V * V * LANES));
    };
    add(std::integral_constant<int, MOST>{}, part);
    add(std::integral_constant<int, V>{}, part);
    if constexpr (V > 1)
      add(std::integral_constant<int, 1>{}, [](auto, const E* row) INLINED { return load(row); });
  }

  AttentionScratch<E>& scratch_;
  const int64_t groups_, rep_, head_size_;
  const Scoring scoring_;
  int64_t stride_ = 0;
};

}  // namespace hotslot
