// Products of many tokens, which lie in panels: of each feature the values of kPanel tokens next to each other. So a
// vector holds one feature of as many tokens as it has lanes, nothing is summed across lanes, and a product's output
// has the layout of its input.
//
// Weights of any format are widened to float32 a block at a time, which stays in the second-level cache while all
// tokens pass by it: with enough of them that costs next to nothing.
#pragma once

#include <algorithm>
#include <cmath>

#include "matvec.h"
#include "norm.h"

constexpr int kPanelVectors = 3, kTileRows = 4;  // their products' sums fill the registers
constexpr int64_t kPanel = kPanelVectors * kLanes;
constexpr int64_t kBlockColumns = 256;  // of which a panel fits into the first-level cache
constexpr int64_t kBlockRows = 128;

constexpr int64_t in_tiles(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// The features of some tokens: [panel, features, kPanel]. There is room for whole tiles of features and whole blocks of
// columns, in which padding is zero.
struct Panels {
  float* data;
  int64_t features;

  float* at(int64_t panel, int64_t feature) const { return data + (panel * features + feature) * kPanel; }
  // Token t's value of a feature; that of the next one is kPanel further.
  float* token(int64_t t, int64_t feature) const { return at(t / kPanel, feature) + t % kPanel; }
};

inline int64_t panels_of(int64_t tokens) { return (tokens + kPanel - 1) / kPanel; }

// The vectors of a panel that hold any of the tokens.
inline int vectors_of(int64_t panel, int64_t tokens) {
  return int(std::min<int64_t>(kPanelVectors, (tokens - panel * kPanel + kLanes - 1) / kLanes));
}

// kTileRows rows of `out` become, or grow by, the sum over i < depth of w[row * row_step + i * column_step] times row i
// of `x`; those of `x` and `out` are kPanel apart. The first V vectors of each are computed.
template <int V>
__attribute__((noinline)) void tile(const float* w, int64_t row_step, int64_t column_step, const float* x,
                                    int64_t depth, bool add, float* out) {
  Floats sums[kTileRows][V] = {};
  if (add) {
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < V; ++v) sums[r][v] = load<Floats>(out + r * kPanel + v * kLanes);
  }
  for (int64_t i = 0; i < depth; ++i, w += column_step, x += kPanel) {
    Floats values[V];
    for (int v = 0; v < V; ++v) values[v] = in_register(load<Floats>(x + v * kLanes));
    for (int r = 0; r < kTileRows; ++r) {
      const float weight = w[r * row_step];
      for (int v = 0; v < V; ++v) sums[r][v] += values[v] * weight;
    }
  }
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < V; ++v) store(out + r * kPanel + v * kLanes, sums[r][v]);
}

using Tile = void (*)(const float* w, int64_t row_step, int64_t column_step, const float* x, int64_t depth, bool add,
                      float* out);

inline Tile tile_of(int vectors) {
  constexpr Tile tiles[kPanelVectors] = {tile<1>, tile<2>, tile<3>};
  return tiles[vectors - 1];
}

// Rows of the matrix widened to float32. Row r is at `row(r)`, and its columns are `column_step` apart.
struct Widened {
  const float* data;
  int64_t columns, rows_together;

  const float* row(int64_t r) const { return data + (r - r % rows_together) * columns + r % rows_together; }
  int64_t row_step() const { return rows_together == 1 ? columns : 1; }
  int64_t column_step() const { return rows_together; }
};

// Rows [row, row + rows) and columns [column, column + columns): whole tiles and steps of the format.
inline Widened widen_block(const Matrix& m, int64_t row, int64_t rows, int64_t column, int64_t columns, float* to) {
  Widened widened = {to, columns, 1};
  with_format(m.format, [&](auto format) {
    using Format = decltype(format);
    widened.rows_together = Format::kRows;
    for (int64_t r = 0; r < rows; r += Format::kRows) {
      const char* from = m.weights + (row + r) * m.row_bytes + column / Format::kStep * Format::kBytes;
      for (int64_t line = 0; line < columns / Format::kStep * Format::kBytes; line += 64)  // pieces of rows are short
        __builtin_prefetch(from + kLanes * m.row_bytes + line);
      Format::widen(from, columns, to + r * columns);
    }
  });
  return widened;
}

// Rows [first, first + count) of the matrix times all tokens, which become rows of `out` from `to` on, or are added to
// them. `widened` is the thread's own memory, [kBlockRows, kBlockColumns].
inline void multiply(const Matrix& m, int64_t first, int64_t count, const Panels& x, int64_t tokens, bool add,
                     const Panels& out, int64_t to, float* widened) {
  const int64_t panels = panels_of(tokens), pieces = (m.columns + kBlockColumns - 1) / kBlockColumns;
  const int64_t depth = padded((m.columns + pieces - 1) / pieces);
  for (int64_t block = 0; block < count; block += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, count - block);
    for (int64_t column = 0; column < m.columns; column += depth) {
      const int64_t columns = std::min(depth, m.columns - column);
      const Widened weights = widen_block(m, first + block, rows, column, columns, widened);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Tile tile = tile_of(vectors_of(panel, tokens));
        for (int64_t r = 0; r < rows; r += kTileRows)
          tile(weights.row(r), weights.row_step(), weights.column_step(), x.at(panel, column), columns,
               add || column > 0, out.at(panel, to + block + r));
      }
    }
  }
  for (int64_t panel = 0; panel < panels; ++panel) {
    if (m.bias)
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < kPanel; ++i) out.at(panel, to + r)[i] += m.bias[first + r];
    // Behind the last row a tile has multiplied what is no weight.
    std::fill(out.at(panel, to + count), out.at(panel, to + in_tiles(count)), 0.0f);
  }
}

// RMSNorm and LayerNorm of a vector of tokens in a panel, of each by itself.
inline void rms_norm_of_panel(const Norm& norm, double eps, const float* x, int64_t size, float* out) {
  Floats squares = {}, scale;
  for (int64_t i = 0; i < size; ++i) squares += load<Floats>(x + i * kPanel) * load<Floats>(x + i * kPanel);
  for (int64_t lane = 0; lane < kLanes; ++lane) scale[lane] = 1 / std::sqrt(squares[lane] / size + float(eps));
  for (int64_t i = 0; i < size; ++i) store(out + i * kPanel, load<Floats>(x + i * kPanel) * scale * norm.weight[i]);
}

inline void layer_norm_of_panel(const Norm& norm, double eps, const float* x, int64_t size, float* out) {
  Floats total = {}, squares = {}, scale;
  for (int64_t i = 0; i < size; ++i) total += load<Floats>(x + i * kPanel);
  const Floats mean = total / float(size);
  for (int64_t i = 0; i < size; ++i) {
    const Floats deviation = load<Floats>(x + i * kPanel) - mean;
    squares += deviation * deviation;
  }
  for (int64_t lane = 0; lane < kLanes; ++lane) scale[lane] = 1 / std::sqrt(squares[lane] / size + float(eps));
  for (int64_t i = 0; i < size; ++i)
    store(out + i * kPanel, (load<Floats>(x + i * kPanel) - mean) * scale * norm.weight[i] + norm.bias[i]);
}
