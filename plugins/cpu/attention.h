// Streaming attention of one step (plugins/reference.py defines it): of a token or a chunk of tokens of each session.
//
// The query is rotated twice, to t for the ring and to p(t) for the sinks, so that no stored key is ever rotated again.
// The keys that all sessions and key-value heads see lie on one line, which is cut into as many pieces as there are
// threads: so one session can use every core. A thread's part of one head is a *segment*; its softmax sums are merged
// with those of the head's other segments, as flash-decoding does.
//
// A chunk's tokens follow each other into the ring, where each replaces a token that those before it still see. So one
// thread attends to all keys of a head for all of a chunk's tokens, in their order.
//
// Compiled for one model with -DHEAD_DIM, -DNUM_HEADS, -DNUM_KV_HEADS and -DBFLOAT16 (0 or 1: the cache's format).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "formats.h"
#include "threads.h"

constexpr int64_t kHeadDim = HEAD_DIM, kHalf = HEAD_DIM / 2;
constexpr int64_t kHeads = NUM_HEADS, kKvHeads = NUM_KV_HEADS, kGroup = kHeads / kKvHeads;
constexpr int64_t kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr int64_t kBlock = 64;                           // slots between two looks at the softmax's maximum
constexpr int kHeadsTogether = kGroup < 4 ? kGroup : 4;  // of a group, that share reading a key

using Scalar = std::conditional_t<BFLOAT16, uint16_t, float>;

// One token at this step. Those of a chunk are next to each other. Mirrors Row in plugins/decode_plan.py.
struct Row {
  int64_t lane;            // the session's place in the batch
  int64_t write;           // cache slot of the new token
  int64_t num_sinks;       // visible sinks, in slots [0, num_sinks)
  int64_t ring_count;      // visible ring tokens, the new one included
  int64_t newest;          // ring index of the newest of them
  int64_t cache_position;  // p(t)
};

// What all layers share.
struct Sessions {
  const Row* rows;
  const float* rotation;  // [batch, 4, HEAD_DIM / 2]: cos and sin at t, cos and sin at p(t); null for ALiBi
  const float* slopes;    // [HEADS]: ALiBi's, divided by sqrt(HEAD_DIM); null for RoPE
  int64_t batch;
  int64_t session_stride;  // elements from one session's cache to the next one's
  int64_t width;           // slots of a session
  int64_t max_sinks;       // of them for sinks, the others for the ring

  int64_t ring() const { return width - max_sinks; }
  // Elements of a head's keys, from a layer's keys to its values, and from a layer to the next one.
  int64_t head_size() const { return width * kHeadDim; }
  int64_t to_values() const { return kKvHeads * head_size(); }
  int64_t layer_size() const { return 2 * to_values(); }
  int64_t visible(int64_t b) const { return rows[b].num_sinks + rows[b].ring_count; }
};

// A segment's part of a head's softmax.
struct Partial {
  float max, sum;
  alignas(64) float value[kHeadDim];  // weighted by exp(score - max)
};

// As many lanes as divide the head.
constexpr int64_t head_lanes() {
  int64_t lanes = kLanes;
  while (kHeadDim % lanes) lanes /= 2;
  return lanes;
}
constexpr int64_t kHeadLanes = head_lanes(), kHeadVectors = kHeadDim / kHeadLanes;
using HeadVector = VectorOf<kHeadLanes>;

inline HeadVector::Floats load_widened(const float* from) { return load<HeadVector::Floats>(from); }

inline HeadVector::Floats load_widened(const uint16_t* from) { return load_bfloat16<kHeadLanes>(from); }

// A slot's key or value, before it is needed: a block's keys and values are two short streams, which CPUs do not
// foresee.
inline void fetch(const Scalar* slot) {
  const auto* bytes = reinterpret_cast<const char*>(slot);
  for (int64_t line = 0; line < kHeadDim * int64_t(sizeof(Scalar)); line += 64) __builtin_prefetch(bytes + line);
}

inline void rotate(const float* x, const float* cos, const float* sin, float* out) {
  for (int64_t i = 0; i < kHalf; ++i) {
    const float first = x[i], second = x[i + kHalf];
    out[i] = first * cos[i] - second * sin[i];
    out[i + kHalf] = second * cos[i] + first * sin[i];
  }
}

// A run of slots [begin, end) that one rotated query serves.
struct Run {
  int64_t begin, end;
  bool sinks;
};

// Calls `use` with the runs that hold keys [from, to) of those that the session sees: sinks, then the ring by slots.
template <class Use>
inline void each_run(const Sessions& sessions, const Row& row, int64_t from, int64_t to, Use use) {
  const int64_t max_sinks = sessions.max_sinks, width = sessions.width;
  const int64_t oldest = row.newest - row.ring_count + 1;  // negative when the ring has wrapped
  const Run runs[3] = {
      {0, row.num_sinks, true},
      {max_sinks + std::max<int64_t>(oldest, 0), max_sinks + row.newest + 1, false},
      {oldest + width, width, false},  // empty unless wrapped
  };
  for (const Run& run : runs) {
    const int64_t length = std::max<int64_t>(run.end - run.begin, 0);
    const int64_t begin = std::clamp<int64_t>(from, 0, length), end = std::clamp<int64_t>(to, 0, length);
    if (begin < end) use(Run{run.begin + begin, run.begin + end, run.sinks});
    from -= length;
    to -= length;
  }
}

// The queries of one key-value head, rotated to t and to p(t) and scaled.
struct Queries {
  alignas(64) float at_t[kGroup][kHeadDim];
  alignas(64) float at_p[kGroup][kHeadDim];
};

inline void rotate_queries(const float* q, const float* angle, Queries& out) {
  const float scale = 1.0f / std::sqrt(float(kHeadDim));
  for (int64_t g = 0; g < kGroup; ++g) {
    float scaled[kHeadDim];
    for (int64_t i = 0; i < kHeadDim; ++i) scaled[i] = q[g * kHeadDim + i] * scale;
    if (angle) {
      rotate(scaled, angle, angle + kHalf, out.at_t[g]);
      rotate(scaled, angle + 2 * kHalf, angle + 3 * kHalf, out.at_p[g]);
    } else {
      std::copy(scaled, scaled + kHeadDim, out.at_t[g]);
      std::copy(scaled, scaled + kHeadDim, out.at_p[g]);
    }
  }
}

inline void write_token(const float* key, const float* value, const float* angle, Scalar* new_key, Scalar* new_value) {
  float rotated[kHeadDim];
  if (angle) {
    rotate(key, angle, angle + kHalf, rotated);
    key = rotated;
  }
  for (int64_t i = 0; i < kHeadDim; ++i) {
    narrow(key[i], new_key + i);
    narrow(value[i], new_value + i);
  }
}

// scores[g][slot - run.begin] of G queries and up to kBlock slots: each key is read and widened once for all of them.
template <int G>
inline void score(const float (*queries)[kHeadDim], const Scalar* keys, const Scalar* values, Run run,
                  float (*scores)[kBlock]) {
  for (int64_t slot = run.begin; slot < run.end; ++slot) {
    fetch(values + slot * kHeadDim);
    HeadVector::Floats lanes[G] = {};
    for (int64_t i = 0; i < kHeadDim; i += kHeadLanes) {
      const HeadVector::Floats key = load_widened(keys + slot * kHeadDim + i);
      for (int g = 0; g < G; ++g) lanes[g] += load<HeadVector::Floats>(queries[g] + i) * key;
    }
    for (int g = 0; g < G; ++g) scores[g][slot - run.begin] = sum<kHeadLanes>(lanes[g]);
  }
}

// ALiBi: each score less the slope times the key's distance.
inline void add_distances(const Sessions& sessions, const Row& row, float slope, Run run, float* scores) {
  for (int64_t slot = run.begin; slot < run.end; ++slot) {
    const int64_t age = row.newest - (slot - sessions.max_sinks);
    const int64_t distance = run.sinks ? row.cache_position - slot : age < 0 ? age + sessions.ring() : age;
    scores[slot - run.begin] -= slope * float(distance);
  }
}

// partials[g].value += the run's values, weighted for each of G queries; a value is read and widened once for all.
template <int G>
inline void add_values(const float (*weights)[kBlock], const Scalar* values, Run run, Partial* partials) {
  constexpr int64_t kTogether = std::min<int64_t>(kHeadVectors, LANES == 16 ? 4 : 2);  // with G, sums in registers
  for (int64_t first = 0; first < kHeadVectors; first += kTogether) {
    const int64_t count = std::min(kTogether, kHeadVectors - first);
    const Scalar* from = values + first * kHeadLanes;
    HeadVector::Floats sums[kTogether][G] = {};
    auto add = [&](int64_t slot, int64_t i) {
      const HeadVector::Floats value = load_widened(from + slot * kHeadDim + i * kHeadLanes);
      for (int g = 0; g < G; ++g) sums[i][g] += weights[g][slot - run.begin] * value;
    };
    for (int64_t slot = run.begin; slot < run.end; ++slot) {
      if (count == kTogether) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < kTogether; ++i) add(slot, i);
      } else {
        for (int64_t i = 0; i < count; ++i) add(slot, i);
      }
    }
    for (int64_t i = 0; i < count; ++i)
      for (int g = 0; g < G; ++g) {
        float* to = partials[g].value + (first + i) * kHeadLanes;
        store(to, load<HeadVector::Floats>(to) + sums[i][g]);
      }
  }
}

// Adds up to kBlock slots to the partial results of G heads, which `slopes` are of, if there are any.
template <int G>
inline void attend_block(const Sessions& sessions, const Row& row, const float (*queries)[kHeadDim], const Scalar* keys,
                         const float* slopes, Run run, Partial* partials) {
  const int64_t count = run.end - run.begin;
  alignas(64) float scores[G][kBlock];
  const Scalar* values = keys + sessions.to_values();
  score<G>(queries, keys, values, run, scores);
  for (int g = 0; g < G; ++g) {
    Partial& partial = partials[g];
    if (slopes) add_distances(sessions, row, slopes[g], run, scores[g]);
    float max = partial.max;
    for (int64_t i = 0; i < count; ++i) max = std::max(max, scores[g][i]);
    if (max > partial.max) {
      const float rescale = std::exp(partial.max - max);
      partial.sum *= rescale;
      for (int64_t i = 0; i < kHeadDim; ++i) partial.value[i] *= rescale;
      partial.max = max;
    }
    for (int64_t i = 0; i < count; ++i) scores[g][i] = std::exp(scores[g][i] - max);
    for (int64_t i = 0; i < count; ++i) partial.sum += scores[g][i];
  }
  add_values<G>(scores, values, run, partials);
}

// One segment: keys [from, to) of those that token b sees in a key-value head. It also writes the token, if that is
// among them. qkv [kQkv] is the token's, as projected.
inline void attend_segment(const Sessions& sessions, int64_t b, int64_t kv_head, int64_t from, int64_t to,
                           const float* qkv, Scalar* keys, Partial* partials) {
  const Row& row = sessions.rows[b];
  const float* angle = sessions.rotation ? sessions.rotation + b * 4 * kHalf : nullptr;
  Queries queries;
  rotate_queries(qkv + kv_head * kGroup * kHeadDim, angle, queries);
  for (int64_t g = 0; g < kGroup; ++g) {
    partials[g].max = std::numeric_limits<float>::lowest();
    partials[g].sum = 0;
    std::fill(partials[g].value, partials[g].value + kHeadDim, 0.0f);
  }
  each_run(sessions, row, from, to, [&](Run run) {
    if (run.begin <= row.write && row.write < run.end) {
      const float* key = qkv + (kHeads + kv_head) * kHeadDim;
      Scalar* new_key = keys + row.write * kHeadDim;
      write_token(key, key + kKvHeads * kHeadDim, angle, new_key, new_key + sessions.to_values());
    }
    for (int64_t begin = run.begin; begin < run.end; begin += kBlock) {
      const Run block = {begin, std::min(begin + kBlock, run.end), run.sinks};
      auto heads = [&](auto number, int64_t g) {
        const float (*rotated)[kHeadDim] = run.sinks ? queries.at_p + g : queries.at_t + g;
        const float* slopes = sessions.slopes ? sessions.slopes + kv_head * kGroup + g : nullptr;
        attend_block<number>(sessions, row, rotated, keys, slopes, block, partials + g);
      };
      int64_t g = 0;
      for (; g + kHeadsTogether <= kGroup; g += kHeadsTogether) heads(std::integral_constant<int, kHeadsTogether>(), g);
      for (; g < kGroup; ++g) heads(std::integral_constant<int, 1>(), g);
    }
  });
}

// A token's keys in a key-value head: [begin, end) of the line of all keys.
struct Head {
  int64_t number;  // on the line
  int64_t b, kv_head;
  int64_t begin, end;
  bool in_chunk;
  int64_t chunk_begin;  // where the keys of its chunk's first token in this head begin
};

// Calls `use` with the heads of all tokens. Those of a chunk's tokens in one key-value head are next to each other.
template <class Use>
inline void each_head(const Sessions& sessions, Use use) {
  const Row* rows = sessions.rows;
  int64_t number = 0, end = 0;
  for (int64_t first = 0, last; first < sessions.batch; first = last) {
    for (last = first + 1; last < sessions.batch && rows[last].lane == rows[first].lane;) ++last;
    for (int64_t kv_head = 0; kv_head < kKvHeads; ++kv_head) {
      const int64_t chunk_begin = end;
      for (int64_t b = first; b < last; ++b) {
        const int64_t begin = end;
        end += sessions.visible(b);
        use(Head{number++, b, kv_head, begin, end, last - first > 1, chunk_begin});
      }
    }
  }
}

inline int64_t line_length(const Sessions& sessions) {
  int64_t length = 0;
  for (int64_t b = 0; b < sessions.batch; ++b) length += kKvHeads * sessions.visible(b);
  return length;
}

// Which of a head's keys a thread attends to, given its share of the line: none if it is empty.
inline Range segment(const Head& head, Range share) {
  if (head.in_chunk) {
    const bool is_mine = share.begin <= head.chunk_begin && head.chunk_begin < share.end;
    return {0, is_mine ? head.end - head.begin : 0};
  }
  return {std::max(head.begin, share.begin) - head.begin, std::min(head.end, share.end) - head.begin};
}

// The most segments of a step. That of a head and thread i is at index number + i: along the line each next segment has
// another head, another thread, or both.
inline int64_t max_segments(int64_t batch, int64_t threads) { return batch * kKvHeads + threads; }

// This thread's segments. `cache` is one layer's, of session 0; qkv [batch, stride]; partials [segments, kGroup].
inline void attend(const Thread& thread, const Sessions& sessions, const float* qkv, int64_t stride, Scalar* cache,
                   Partial* partials) {
  const Range share = thread.share(line_length(sessions));
  each_head(sessions, [&](const Head& head) {
    const Range seen = segment(head, share);
    if (seen.begin >= seen.end) return;
    Scalar* keys = cache + sessions.rows[head.b].lane * sessions.session_stride + head.kv_head * sessions.head_size();
    Partial* results = partials + (head.number + thread.index) * kGroup;
    attend_segment(sessions, head.b, head.kv_head, seen.begin, seen.end, qkv + head.b * stride, keys, results);
  });
}

// The heads' results from all threads' segments: out [batch, stride].
inline void merge(const Thread& thread, const Sessions& sessions, const Partial* partials, float* out, int64_t stride) {
  const int64_t length = line_length(sessions);
  each_head(sessions, [&](const Head& head) {
    for (int64_t g = 0; g < kGroup; ++g) {
      float max = std::numeric_limits<float>::lowest(), sum = 0, value[kHeadDim] = {};
      for (int64_t i = 0; i < thread.count; ++i) {
        const Range theirs = segment(head, Thread{i, thread.count, nullptr}.share(length));
        if (theirs.begin >= theirs.end) continue;
        const Partial& partial = partials[(head.number + i) * kGroup + g];
        const float new_max = std::max(max, partial.max);
        const float old_weight = std::exp(max - new_max), weight = std::exp(partial.max - new_max);
        sum = sum * old_weight + weight * partial.sum;
        for (int64_t d = 0; d < kHeadDim; ++d) value[d] = value[d] * old_weight + weight * partial.value[d];
        max = new_max;
      }
      float* to = out + head.b * stride + (head.kv_head * kGroup + g) * kHeadDim;
      for (int64_t d = 0; d < kHeadDim; ++d) to[d] = value[d] / sum;
    }
  });
}
