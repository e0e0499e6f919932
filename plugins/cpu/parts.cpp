// What Python needs of the library beside steps and chunks.

#include "matvec.h"

// What the library was compiled for, so that it is never called with another model's tensors.
extern "C" const int64_t library_geometry[] = {HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, BFLOAT16, BLOCKS};

// Bytes of working memory for a step's product with `batch` tokens by itself, which benchmarks measure.
extern "C" int64_t product_bytes(int64_t columns, int64_t batch, int64_t threads) {
  return batch * most_packed_bytes(columns) + sizeof(float) * threads * kStreams * batch * kTile;
}

// x [batch, columns], padded, times the matrix: out [batch, rows].
extern "C" void multiply(const Matrix* matrix, const float* x, int64_t batch, char* workspace, int64_t threads,
                         float* out) {
  in_parallel(threads, [&](const Thread& thread) {
    pack(*matrix, x, matrix->columns, thread.share(batch), workspace);
    thread.wait();
    float* sums = reinterpret_cast<float*>(workspace + batch * most_packed_bytes(matrix->columns));
    float* own = sums + thread.index * kStreams * batch * kTile;
    product<1>(
        thread, *matrix, matrix->rows, workspace, batch, own,
        [&](int64_t row, int64_t count, const float* from) { put(from, batch, count, out + row, matrix->rows); });
  });
}

extern "C" const int64_t rows_of_a_tile = kLanes;

// Lays rows of blocks out as tiles, from the order that files have.
extern "C" void lay_out(int64_t format, const char* blocks, int64_t rows, int64_t row_bytes, char* tiles) {
  with_format(format, [&](auto format) {
    using Format = decltype(format);
    if constexpr (Format::kRows > 1)
      for (int64_t row = 0; row < rows; row += kLanes)
        Format::lay_out(blocks + row * row_bytes, std::min(kLanes, rows - row), row_bytes, tiles + row * row_bytes);
  });
}
