// Parts of a step by themselves, for passes of the decoder in torch: decode steps next to chunks, and short chunks.

#include <omp.h>

#include "attention.h"
#include "matvec.h"

// The sizes that the library was compiled for, so that it is never called with another model's tensors.
extern "C" const int64_t library_geometry[] = {HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, BFLOAT16};

// Bytes of working memory.
extern "C" int64_t attention_bytes(int64_t batch, int64_t threads) {
  return sizeof(Partial) * max_segments(batch, threads) * kGroup;
}

// Rotates, writes and attends for one token of each session. qkv [batch, (NUM_HEADS + 2 NUM_KV_HEADS) HEAD_DIM] as
// projected; `cache` is the layer's, of session 0: [2, NUM_KV_HEADS, width, HEAD_DIM]. out [batch, NUM_HEADS HEAD_DIM].
extern "C" void decode_attention(const Sessions* sessions, const float* qkv, Scalar* cache, Partial* partials,
                                 int64_t threads, float* out) {
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Thread thread = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
    attend(thread, *sessions, qkv, kQkv, cache, partials);
    thread.wait();
    if (thread.index == 0) merge(thread, *sessions, partials, out, kHeads * kHeadDim);
  }
}

// A product with `batch` tokens: x [batch, columns], padded, out [batch, rows]. Working memory: `packed` [batch, columns]
// floats, `sums` [threads, kStreams * batch * kTile] floats.
extern "C" void multiply(const Matrix* matrix, const float* x, int64_t batch, char* packed, float* sums, int64_t threads,
                         float* out) {
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    const Thread thread = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
    pack(*matrix, x, matrix->columns, thread.share(batch), packed);
    thread.wait();
    float* own = sums + thread.index * kStreams * batch * kTile;
    product<1>(thread, *matrix, matrix->rows, packed, batch, own, [&](int64_t row, int64_t count, const float* from) {
      put(from, batch, count, out + row, matrix->rows);
    });
  }
}
