// The product of a weight matrix with one or several tokens. A step is bound by reading the weights: each is read once,
// for all tokens, by the thread that has its row.
//
// A thread reads its rows in four streams at once, from places far apart. CPUs fetch ahead in each stream on their own,
// and one or four adjacent rows get half of the memory's speed (measured on Zen 3).
#pragma once

#include <algorithm>

#include "formats.h"
#include "threads.h"

constexpr int kStreams = 4;
// A thread's rows begin at a multiple of this: outputs fill cache lines, and no two threads write the same one.
constexpr int64_t kTile = 16;
// Bytes ahead of a load that a stream is fetched.
constexpr int64_t kAhead = 1024;

// Mirrors Matrix in plugins/cpu_structures.py.
struct Matrix {
  const char* weights;
  const float* bias;  // [rows], or null
  int64_t rows;
  int64_t columns;    // padded with zeros to a multiple of kColumns
  int64_t row_bytes;  // from one row to the next
  int64_t format;
};

inline int64_t padded(int64_t columns) { return (columns + kColumns - 1) / kColumns * kColumns; }

// sums[r * stride + b * kTile] = row r times token b, for R rows and B tokens.
template <class Format, int R, int B>
inline void dots(const char* const* rows, const typename Format::Activation* x, int64_t columns, float* sums,
                 int64_t stride) {
  if constexpr (R * B > kAccumulators) {
    dots<Format, R / 2, B>(rows, x, columns, sums, stride);
    dots<Format, R / 2, B>(rows + R / 2, x, columns, sums + R / 2 * stride, stride);
  } else {
    Floats lanes[R][B] = {};
    for (int64_t c = 0; c < columns; c += Format::kStep) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const auto* weights = reinterpret_cast<const typename Format::Weight*>(rows[r]) + c;
        __builtin_prefetch(reinterpret_cast<const char*>(weights) + kAhead);
        const typename Format::Chunk chunk = Format::chunk(weights);
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) Format::add(lanes[r][b], chunk, x + b * columns + c);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) sums[r * stride + b * kTile] = sum(lanes[r][b]);
  }
}

// The same for any number of tokens.
template <class Format, int R>
inline void dots_of_batch(const char* const* rows, const typename Format::Activation* x, int64_t columns,
                          int64_t batch, float* sums) {
  const int64_t stride = batch * kTile;
  int64_t b = 0;
  for (; b + 4 <= batch; b += 4) dots<Format, R, 4>(rows, x + b * columns, columns, sums + b * kTile, stride);
  if (b + 2 <= batch) {
    dots<Format, R, 2>(rows, x + b * columns, columns, sums + b * kTile, stride);
    b += 2;
  }
  if (b < batch) dots<Format, R, 1>(rows, x + b * columns, columns, sums + b * kTile, stride);
}

// Outputs of `count` rows from each of Streams places: sums [Streams, batch, kTile]. `packed` are the tokens' activations.
// Not inlined, so that it is compiled once for all products.
template <int Streams>
__attribute__((noinline)) void outputs(const Matrix& m, const int64_t* first_rows, int64_t count, const void* packed,
                                       int64_t batch, float* sums) {
  with_format(m.format, [&](auto format) {
    using Format = decltype(format);
    for (int64_t i = 0; i < count; ++i) {
      const char* rows[Streams];
      for (int s = 0; s < Streams; ++s) rows[s] = m.weights + (first_rows[s] + i) * m.row_bytes;
      const auto* x = static_cast<const typename Format::Activation*>(packed);
      dots_of_batch<Format, Streams>(rows, x, m.columns, batch, sums + i);
    }
  });
  if (!m.bias) return;
  for (int s = 0; s < Streams; ++s)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < count; ++i) sums[(s * batch + b) * kTile + i] += m.bias[first_rows[s] + i];
}

// Some of the rows of x (float32, padded, `stride` apart), as the matrix's format multiplies them.
__attribute__((noinline)) inline void pack(const Matrix& m, const float* x, int64_t stride, Range some, void* packed) {
  with_format(m.format, [&](auto format) {
    using Format = decltype(format);
    auto* to = static_cast<typename Format::Activation*>(packed);
    for (int64_t b = some.begin; b < some.end; ++b) Format::pack(x + b * stride, m.columns, to + b * m.columns);
  });
}

// This thread's share of a product with `batch` packed tokens; `sums` [kStreams, batch, kTile] is the thread's own memory.
// The matrix has Parts parts of `rows` rows: one, or two for gate and up. `finish(row, count, sums)` takes the outputs
// [Parts, batch, kTile] of rows [row, row + count) in each part.
template <int Parts, class Finish>
inline void product(const Thread& thread, const Matrix& m, int64_t rows, const void* packed, int64_t batch, float* sums,
                    Finish finish) {
  const Range tiles = thread.share((rows + kTile - 1) / kTile);
  const int64_t begin = tiles.begin * kTile, end = std::min(tiles.end * kTile, rows);
  constexpr int kPieces = kStreams / Parts;  // of each part's rows, for a stream each
  const int64_t piece = std::max<int64_t>(end - begin, 0) / kPieces;
  for (int64_t done = 0; done < piece; done += kTile) {
    const int64_t count = std::min(kTile, piece - done);
    int64_t first_rows[kStreams];
    for (int s = 0; s < kStreams; ++s) first_rows[s] = s % Parts * rows + begin + s / Parts * piece + done;
    outputs<kStreams>(m, first_rows, count, packed, batch, sums);
    for (int i = 0; i < kPieces; ++i) finish(begin + i * piece + done, count, sums + i * Parts * batch * kTile);
  }
  for (int64_t row = begin + kPieces * piece; row < end; ++row) {  // what four streams leave over
    int64_t first_rows[Parts];
    for (int p = 0; p < Parts; ++p) first_rows[p] = p * rows + row;
    outputs<Parts>(m, first_rows, 1, packed, batch, sums);
    finish(row, 1, sums);
  }
}

// The first `count` outputs of each token to rows that are `stride` apart.
inline void put(const float* sums, int64_t batch, int64_t count, float* to, int64_t stride) {
  for (int64_t b = 0; b < batch; ++b) std::copy(sums + b * kTile, sums + b * kTile + count, to + b * stride);
}

// One row of a matrix in float32: a token's embedding.
inline void read_row(const Matrix& m, int64_t row, int64_t columns, float* out) {
  with_format(m.format, [&](auto format) {
    const auto* weights = reinterpret_cast<const typename decltype(format)::Weight*>(m.weights + row * m.row_bytes);
    for (int64_t i = 0; i < columns; ++i) out[i] = widen(weights[i]);
  });
}
