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
// Bytes ahead of a load that a stream is fetched, a line of the cache at a time.
constexpr int64_t kAhead = 1024, kLine = 64;

// Mirrors Matrix in plugins/cpu_structures.py.
struct Matrix {
  const char* weights;
  const float* bias;  // [rows], or null
  int64_t rows;
  int64_t columns;    // padded with zeros to a multiple of kColumns
  int64_t row_bytes;  // of a row in its tile; those of a tile's rows together lead to the next tile
  int64_t format;
};

inline int64_t padded(int64_t columns) { return (columns + kColumns - 1) / kColumns * kColumns; }

// Bytes of a token's packed activations.
template <class Format>
constexpr int64_t packed_bytes(int64_t columns) {
  return columns / Format::kStep * Format::kPackedBytes;
}

// Of any format's, at most: float32, and integers with a scale and a sum for 32 of them.
inline int64_t most_packed_bytes(int64_t columns) { return sizeof(float) * padded(columns); }

// sums[r * stride + b * kTile] = tile r times token b, for R tiles and B tokens; a tile's rows are next to each other.
template <class Format, int R, int B>
inline void dots(const char* const* tiles, const char* x, int64_t columns, float* sums, int64_t stride) {
  if constexpr (R * B > kAccumulators) {
    dots<Format, R / 2, B>(tiles, x, columns, sums, stride);
    dots<Format, R / 2, B>(tiles + R / 2, x, columns, sums + R / 2 * stride, stride);
  } else {
    const int64_t steps = columns / Format::kStep, token = packed_bytes<Format>(columns);
    Floats lanes[R][B] = {};
    constexpr int64_t together = Format::kBytes < kLine ? kLine / Format::kBytes : 1;
    for (int64_t step = 0; step < steps; step += together) {
      for (int r = 0; r < R; ++r)
        for (int64_t line = 0; line < together * Format::kBytes; line += kLine)
          __builtin_prefetch(tiles[r] + step * Format::kBytes + kAhead + line);
#pragma GCC unroll 2
      for (int64_t i = step; i < step + together; ++i) {
        const char* weights[R];
        for (int r = 0; r < R; ++r) weights[r] = tiles[r] + i * Format::kBytes;
        Format::add(lanes, weights, x + i * Format::kPackedBytes, token);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) Format::finish(lanes[r][b], sums + r * stride + b * kTile);
  }
}

// The same for any number of tokens.
template <class Format, int R>
inline void dots_of_batch(const char* const* tiles, const char* x, int64_t columns, int64_t batch, float* sums) {
  const int64_t stride = batch * kTile, token = packed_bytes<Format>(columns);
  int64_t b = 0;
  for (; b + 4 <= batch; b += 4) dots<Format, R, 4>(tiles, x + b * token, columns, sums + b * kTile, stride);
  if (b + 2 <= batch) {
    dots<Format, R, 2>(tiles, x + b * token, columns, sums + b * kTile, stride);
    b += 2;
  }
  if (b < batch) dots<Format, R, 1>(tiles, x + b * token, columns, sums + b * kTile, stride);
}

// Outputs of `count` rows from each of Streams places, where tiles begin: sums [Streams, batch, kTile]. `packed` are
// the tokens' activations. Not inlined, so that it is compiled once for all products.
template <int Streams>
__attribute__((noinline)) void outputs(const Matrix& m, const int64_t* first_rows, int64_t count, const char* packed,
                                       int64_t batch, float* sums) {
  with_format(m.format, [&](auto format) {
    using Format = decltype(format);
    for (int64_t i = 0; i < count; i += Format::kRows) {
      const char* tiles[Streams];
      for (int s = 0; s < Streams; ++s) tiles[s] = m.weights + (first_rows[s] + i) * m.row_bytes;
      dots_of_batch<Format, Streams>(tiles, packed, m.columns, batch, sums + i);
    }
  });
  if (!m.bias) return;
  for (int s = 0; s < Streams; ++s)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < count; ++i) sums[(s * batch + b) * kTile + i] += m.bias[first_rows[s] + i];
}

// Some of the rows of x (float32, padded, `stride` apart), as the matrix's format multiplies them.
__attribute__((noinline)) inline void pack(const Matrix& m, const float* x, int64_t stride, Range some, char* packed) {
  with_format(m.format, [&](auto format) {
    using Format = decltype(format);
    const int64_t token = packed_bytes<Format>(m.columns);
    for (int64_t b = some.begin; b < some.end; ++b) Format::pack(x + b * stride, m.columns, packed + b * token);
  });
}

inline int64_t tile_rows(const Matrix& m) {
  int64_t rows = 1;
  with_format(m.format, [&](auto format) { rows = decltype(format)::kRows; });
  return rows;
}

// This thread's share of a product with `batch` packed tokens; `sums` [kStreams, batch, kTile] is the thread's own
// memory. The matrix has Parts parts of `rows` rows: one, or two for gate and up, whose rows are then whole tiles.
// `finish(row, count, sums)` takes the outputs [Parts, batch, kTile] of rows [row, row + count) in each part.
template <int Parts, class Finish>
inline void product(const Thread& thread, const Matrix& m, int64_t rows, const char* packed, int64_t batch, float* sums,
                    Finish finish) {
  const Range tiles = thread.share((rows + kTile - 1) / kTile);
  const int64_t begin = tiles.begin * kTile, end = std::min(tiles.end * kTile, rows), tile = tile_rows(m);
  constexpr int kPieces = kStreams / Parts;  // of each part's rows, for a stream each
  const int64_t piece = std::max<int64_t>(end - begin, 0) / kPieces / tile * tile;
  for (int64_t done = 0; done < piece; done += kTile) {
    const int64_t count = std::min(kTile, piece - done);
    int64_t first_rows[kStreams];
    for (int s = 0; s < kStreams; ++s) first_rows[s] = s % Parts * rows + begin + s / Parts * piece + done;
    outputs<kStreams>(m, first_rows, count, packed, batch, sums);
    for (int i = 0; i < kPieces; ++i) finish(begin + i * piece + done, count, sums + i * Parts * batch * kTile);
  }
  for (int64_t row = begin + kPieces * piece; row < end; row += tile) {  // what four streams leave over
    const int64_t count = std::min(tile, end - row);
    int64_t first_rows[Parts];
    for (int p = 0; p < Parts; ++p) first_rows[p] = p * rows + row;
    outputs<Parts>(m, first_rows, count, packed, batch, sums);
    finish(row, count, sums);
  }
}

// The first `count` outputs of each token to rows that are `stride` apart.
inline void put(const float* sums, int64_t batch, int64_t count, float* to, int64_t stride) {
  for (int64_t b = 0; b < batch; ++b) std::copy(sums + b * kTile, sums + b * kTile + count, to + b * stride);
}

// One row of a matrix in float32: a token's embedding.
inline void read_row(const Matrix& m, int64_t row, int64_t columns, float* out) {
  with_format(m.format, [&](auto format) {
    using Format = decltype(format);
    const int64_t lane = row % Format::kRows;
    Format::read(m.weights + (row - lane) * m.row_bytes, lane, columns, out);
  });
}
