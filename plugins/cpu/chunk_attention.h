// Streaming attention of a chunk of one session's tokens, equivalent to a step for each (plugins/reference.py).
//
// The chunk attends to the old cache and to itself, and is written afterwards, so that the ring needs no spare slots.
// The keys that any of its tokens sees are gathered first: sinks, then the others from the oldest on. So beside the
// sinks each query sees one range of keys, and queries of a panel nearly the same. Keys are then the weights of a
// product with queries, and values those of a product with the softmax's weights (panels.h): a vector holds queries,
// and a softmax needs no sums across lanes either.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "memory.h"
#include "panels.h"

constexpr int64_t kKeysTogether = 128;  // whose softmax weights stay in the first-level cache
constexpr float kUnseen = -1e30f;

// Which keys a chunk sees, by their order: `sinks` of them, then `others`.
struct ChunkKeys {
  int64_t old_sinks, sinks;  // those of the chunk included
  int64_t old_others, others;

  ChunkKeys(const Sessions& sessions) {
    const Row &first = sessions.rows[0], &last = sessions.rows[sessions.batch - 1];
    old_sinks = first.num_sinks - (first.ring_count == 0);  // the first token is a sink, or in the ring
    sinks = last.num_sinks;
    old_others = std::max<int64_t>(first.ring_count - 1, 0);
    others = old_others + sessions.batch - (sinks - old_sinks);
  }

  int64_t count() const { return sinks + others; }
  // Token b's key, if it is no sink.
  int64_t other(int64_t b) const { return old_others + b - (sinks - old_sinks); }
  // Where the key of token b of the chunk is.
  int64_t index(int64_t b) const { return b < sinks - old_sinks ? old_sinks + b : sinks + other(b); }
};

// What each query of a panel sees: keys [first, end) beside the sinks, and `sinks` of those; `place` is its own place
// among sinks, as positions in the cache count. Whole numbers in float32, to be compared in vectors.
struct Visible {
  alignas(64) float first[kPanel], end[kPanel], last[kPanel], sinks[kPanel], place[kPanel];
  int64_t from, to;  // all that any of them sees beside sinks

  Visible(const Sessions& sessions, const ChunkKeys& keys, int64_t panel) {
    from = keys.others, to = 0;
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t b = std::min(panel * kPanel + i, sessions.batch - 1);
      const Row& row = sessions.rows[b];
      const int64_t behind = std::max<int64_t>(keys.other(b) + 1, 0);
      from = std::min(from, behind - row.ring_count);
      to = std::max(to, behind);
      first[i] = float(behind - row.ring_count);
      end[i] = float(behind);
      last[i] = float(behind - 1);
      sinks[i] = float(row.num_sinks);
      place[i] = float(row.cache_position);
    }
  }
};

class ChunkAttention {
 public:
  // Memory for chunks of up to `tokens`; the last of its parts is the thread's own.
  ChunkAttention(Memory& memory, int64_t tokens, int64_t width, int64_t threads, int64_t thread)
      : angles_{memory.take<float>(panels_of(tokens) * 4 * kHalf * kPanel), 4 * kHalf},
        room_((width + tokens + kTileRows) * kHeadDim),
        keys_(memory.take<float>(kKvHeads * room_)),
        values_(memory.take<float>(kKvHeads * room_)) {
    for (int64_t i = 0; i < threads; ++i) {
      const auto queries = memory.take<float>(2 * kRows * kPanel), sums = memory.take<float>(kRows * kPanel);
      const auto scores = memory.take<float>((width + kPanel + kTileRows) * kPanel);
      if (i == thread) queries_ = queries, sums_ = sums, scores_ = scores;
    }
  }

  // Once for all layers: the angles of all tokens, by panels.
  void rotations(const Thread& thread, const Sessions& sessions) const {
    if (!sessions.rotation) return;
    const Range mine = thread.share(sessions.batch);
    for (int64_t b = mine.begin; b < mine.end; ++b)
      for (int64_t i = 0; i < 4 * kHalf; ++i) angles_.token(b, i)[0] = sessions.rotation[b * 4 * kHalf + i];
  }

  // Widens this thread's share of all visible keys and values. Those of the chunk are rounded as the cache has them.
  void gather(const Thread& thread, const Sessions& sessions, const Panels& qkv, const Scalar* cache) const {
    const ChunkKeys keys(sessions);
    const Row& first = sessions.rows[0];
    const int64_t old = keys.old_sinks + keys.old_others, all = old + sessions.batch;
    const Range mine = thread.share(kKvHeads * all);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t kv_head = i / all, each = i % all;
      if (each >= old) {
        take_token(sessions, keys, qkv, kv_head, each - old);
      } else if (each < keys.old_sinks) {
        take_slot(sessions, cache, kv_head, each, each);
      } else {
        const int64_t other = each - keys.old_sinks, place = first.newest - keys.old_others + other;
        const int64_t ring = sessions.ring(), slot = sessions.max_sinks + (place < 0 ? place + ring : place);
        take_slot(sessions, cache, kv_head, slot, keys.sinks + other);
      }
    }
  }

  // This thread's panels and heads, then its share of what the cache keeps of the chunk. `cache` is that of the
  // session's layer.
  void attend(const Thread& thread, const Sessions& sessions, const Panels& qkv, Scalar* cache,
              const Panels& out) const {
    const ChunkKeys keys(sessions);
    const int64_t panels = panels_of(sessions.batch);
    for (int64_t i = thread.index; i < panels * kKvHeads; i += thread.count) {
      const Visible visible(sessions, keys, i / kKvHeads);
      for (int64_t g = 0; g < kGroup; ++g)
        attend_head(sessions, keys, visible, i / kKvHeads, i % kKvHeads * kGroup + g, qkv, out);
    }
    const Range mine = thread.share(kKvHeads * sessions.batch);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t kv_head = i / sessions.batch, b = i % sessions.batch;
      if (sessions.rows[b].ring_count > 0 && b < sessions.batch - sessions.ring()) continue;  // it has left already
      Scalar* key = cache + kv_head * sessions.head_size() + sessions.rows[b].write * kHeadDim;
      const int64_t from = kv_head * room_ + keys.index(b) * kHeadDim;
      for (int64_t d = 0; d < kHeadDim; ++d) {
        narrow(keys_[from + d], key + d);
        narrow(values_[from + d], key + sessions.to_values() + d);
      }
    }
  }

 private:
  static constexpr int64_t kRows = in_tiles(kHeadDim);

  void take_slot(const Sessions& sessions, const Scalar* cache, int64_t kv_head, int64_t slot, int64_t index) const {
    const Scalar* from = cache + kv_head * sessions.head_size() + slot * kHeadDim;
    const int64_t to = kv_head * room_ + index * kHeadDim;
    for (int64_t d = 0; d < kHeadDim; ++d) keys_[to + d] = widen(from[d]);
    for (int64_t d = 0; d < kHeadDim; ++d) values_[to + d] = widen(from[sessions.to_values() + d]);
  }

  void take_token(const Sessions& sessions, const ChunkKeys& keys, const Panels& qkv, int64_t kv_head,
                  int64_t b) const {
    const float* from = qkv.token(b, (kHeads + kv_head) * kHeadDim);
    float key[kHeadDim], value[kHeadDim];
    for (int64_t d = 0; d < kHeadDim; ++d) {
      key[d] = from[d * kPanel];
      value[d] = from[(kKvHeads * kHeadDim + d) * kPanel];
    }
    Scalar rounded[2][kHeadDim];
    write_token(key, value, sessions.rotation ? sessions.rotation + b * 4 * kHalf : nullptr, rounded[0], rounded[1]);
    const int64_t to = kv_head * room_ + keys.index(b) * kHeadDim;
    for (int64_t d = 0; d < kHeadDim; ++d) {
      keys_[to + d] = widen(rounded[0][d]);
      values_[to + d] = widen(rounded[1][d]);
    }
  }

  void attend_head(const Sessions& sessions, const ChunkKeys& keys, const Visible& visible, int64_t panel, int64_t head,
                   const Panels& qkv, const Panels& out) const {
    const Tile tile = tile_of(vectors_of(panel, sessions.batch));
    const int64_t begin = head / kGroup * room_, others = visible.to - visible.from;
    const int64_t first_other = begin + (keys.sinks + visible.from) * kHeadDim;
    const float slope = sessions.slopes ? sessions.slopes[head] : 0;
    const float *at_t = queries_, *at_p = sessions.rotation ? queries_ + kRows * kPanel : queries_;
    rotate_panel(sessions, panel, qkv.at(panel, head * kHeadDim));

    // A tile that ends behind the sinks' scores is followed by those of the others.
    float* other_scores = scores_ + keys.sinks * kPanel;
    for (int64_t j = 0; j < keys.sinks; j += kTileRows)
      tile(keys_ + begin + j * kHeadDim, kHeadDim, 1, at_p, kHeadDim, false, scores_ + j * kPanel);
    for (int64_t j = 0; j < others; j += kTileRows)
      tile(keys_ + first_other + j * kHeadDim, kHeadDim, 1, at_t, kHeadDim, false, other_scores + j * kPanel);

    alignas(64) float most[kPanel], total[kPanel] = {}, none[kPanel] = {};
    std::fill(most, most + kPanel, kUnseen);
    hide(scores_, keys.sinks, 0, none, visible.sinks, visible.place, slope, most);
    hide(other_scores, others, visible.from, visible.first, visible.end, visible.last, slope, most);
    for (int64_t j = 0; j < keys.sinks + others; ++j)
      for (int64_t i = 0; i < kPanel; ++i) {
        const float weight = std::exp(scores_[j * kPanel + i] - most[i]);
        scores_[j * kPanel + i] = weight;
        total[i] += weight;
      }

    std::fill(sums_, sums_ + kRows * kPanel, 0.0f);
    add_values(tile, begin, scores_, keys.sinks);
    add_values(tile, first_other, other_scores, others);
    for (int64_t d = 0; d < kHeadDim; ++d)
      for (int64_t i = 0; i < kPanel; ++i) out.at(panel, head * kHeadDim + d)[i] = sums_[d * kPanel + i] / total[i];
  }

  // The queries of a head, scaled: rotated to t, and behind those to p(t); without a rotation once.
  void rotate_panel(const Sessions& sessions, int64_t panel, const float* q) const {
    const float scale = 1.0f / std::sqrt(float(kHeadDim));
    if (!sessions.rotation) {
      for (int64_t i = 0; i < kHeadDim * kPanel; ++i) queries_[i] = q[i] * scale;
      return;
    }
    for (int64_t turn = 0; turn < 2; ++turn)
      for (int64_t d = 0; d < kHalf; ++d) {
        const float* cos = angles_.at(panel, turn * 2 * kHalf + d);
        const float* sin = angles_.at(panel, (turn * 2 + 1) * kHalf + d);
        float* to = queries_ + (turn * kRows + d) * kPanel;
        for (int64_t i = 0; i < kPanel; ++i) {
          const float first = q[d * kPanel + i] * scale, second = q[(d + kHalf) * kPanel + i] * scale;
          to[i] = first * cos[i] - second * sin[i];
          to[kHalf * kPanel + i] = second * cos[i] + first * sin[i];
        }
      }
  }

  // Of `count` keys from number `from` on: hides each from the queries that do not see it, subtracts ALiBi's distance
  // from a query's `place`, and raises `most` to each query's largest score.
  static void hide(float* scores, int64_t count, int64_t from, const float* first, const float* end, const float* place,
                   float slope, float* most) {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < kPanel; ++i) {
        const float number = float(from + j), score = scores[j * kPanel + i] - slope * (place[i] - number);
        const float seen = (first[i] <= number) & (number < end[i]) ? score : kUnseen;
        scores[j * kPanel + i] = seen;
        most[i] = std::max(most[i], seen);
      }
  }

  void add_values(Tile tile, int64_t from, const float* weights, int64_t count) const {
    for (int64_t j = 0; j < count; j += kKeysTogether) {
      const int64_t keys = std::min(kKeysTogether, count - j);
      for (int64_t d = 0; d < kHeadDim; d += kTileRows)
        tile(values_ + from + j * kHeadDim + d, 1, kHeadDim, weights + j * kPanel, keys, true, sums_ + d * kPanel);
    }
  }

  Panels angles_;
  int64_t room_;           // of a head's keys
  float *keys_, *values_;  // [KV_HEADS, keys, HEAD_DIM]
  float *queries_, *sums_, *scores_;
};
