// Attention over the paged cache, which reads through the block tables.
//
// Shapes: T tokens, H query heads, G key/value heads, D head size (a multiple of 16), N cache positions, R segments,
// B blocks of one sequence.

#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <vector>

#include "sharing.h"
#include "visit.h"

namespace hotslot {

constexpr int64_t ROWS_OF_A_THREAD = 2;
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
  struct Unit {  // of work: some tokens of a segment, and some key heads
    int64_t segment, first, count, num_keys, group, num_groups;
  };
  static thread_local std::vector<Unit> kept_units;
  std::vector<Unit>& units = kept_units;
  units.clear();
  const auto is_segment = [&](int64_t index) {
    return index < step.num_segments && segments[index * SEGMENT_COLUMNS + 1] > 0;
  };
  int64_t num_used = 0, num_decoding = 0;
  for (int64_t index = 0; is_segment(index); ++index) num_decoding += segments[index * SEGMENT_COLUMNS + 1] == 1;
  // Memory is read in its own order where all key heads are visited together, and rows enough are left for threads.
  const bool is_together = num_decoding >= ROWS_OF_A_THREAD * at::get_num_threads();
  bool all_done = true;
  for (int64_t index = 0; is_segment(index); ++index) {
    const int64_t* segment = segments + index * SEGMENT_COLUMNS;
    const int64_t first = segment[0], count = segment[1], num_keys = segment[2];
    num_used = std::max(num_used, first + count);
    all_done = all_done && count <= max_tokens;
    if (count > max_tokens) continue;
    const int64_t num_groups = is_together && count == 1 ? num_kv_heads : 1;
    for (int64_t done = 0; done < count; done += TOKENS_OF_ONE_VISIT) {
      const int64_t these = std::min(TOKENS_OF_ONE_VISIT, count - done);
      for (int64_t group = 0; group < num_kv_heads; group += num_groups)
        units.push_back({index, first + done, these, num_keys - count + done + these, group, num_groups});
    }
  }
  std::fill(out + num_used * num_heads * head_size, out + num_tokens * num_heads * head_size, E(0.0f));
  share_out(units.size(), [&](int64_t task) {
    static thread_local AttentionScratch<E> scratch;
    static thread_local std::vector<E> queries;
    const auto [index, first, count, num_keys, group, num_groups] = units[task];
    const int64_t size = rep * head_size;  // of the queries of one token and key head, which are side by side
    const auto at = [&, first = first, group = group](int64_t g, int64_t i) {
      return ((first + i) * num_kv_heads + group + g) * size;
    };
    queries.resize(num_groups * count * size);
    for (int64_t g = 0; g < num_groups; ++g)
      for (int64_t i = 0; i < count; ++i) std::copy_n(q + at(g, i), size, queries.data() + (g * count + i) * size);
    scratch.q.take(queries.data(), num_groups * count * rep, head_size);
    Visit<E> visit(scratch, num_groups, rep, head_size, step.scoring);
    visit.attend(count, num_keys, k_cache + group * head_size, v_cache + group * head_size,
                 {tables + index * table_size, segments[index * SEGMENT_COLUMNS + 3], block_tokens, row});
    for (int64_t g = 0; g < num_groups; ++g)
      for (int64_t i = 0; i < count; ++i)
        for (int64_t h = 0; h < rep; ++h) visit.write((g * count + i) * rep + h, out + at(g, i) + h * head_size);
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
