// The attention of a step by itself.

#include "attention.h"

// Bytes of working memory.
extern "C" int64_t attention_bytes(int64_t batch, int64_t threads) {
  return sizeof(Partial) * max_segments(batch, threads) * kGroup;
}

// Rotates, writes and attends for the tokens of a step. qkv [batch, (NUM_HEADS + 2 NUM_KV_HEADS) HEAD_DIM] as
// projected; `cache` is the layer's, of session 0: [2, NUM_KV_HEADS, width, HEAD_DIM]. out [batch, NUM_HEADS HEAD_DIM].
extern "C" void decode_attention(const Sessions* sessions, const float* qkv, Scalar* cache, Partial* partials,
                                 int64_t threads, float* out) {
  in_parallel(threads, [&](const Thread& thread) {
    attend(thread, *sessions, qkv, kQkv, cache, partials);
    thread.wait();
    if (thread.index == 0) merge(thread, *sessions, partials, out, kHeads * kHeadDim);
  });
}
