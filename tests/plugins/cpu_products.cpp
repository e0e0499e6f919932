// Products by themselves, for tests: those of steps, and those of chunks.
#include <vector>

#include "panels.h"
#include "parts.cpp"

extern "C" const int64_t tokens_of_a_panel = kPanel;

// out [batch, parts, rows]: x [batch, columns], padded, times the matrix.
extern "C" void pieces_product(const Matrix* m, int64_t parts, const float* x, int64_t batch, char* packed, float* sums,
                               int64_t index, int64_t count, float* out) {
  const Thread thread = {index, count, nullptr};
  const int64_t rows = m->rows / parts;
  auto finish = [&](int64_t row, int64_t number, const float* from) {
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = 0; i < number; ++i)
          out[b * m->rows + part * rows + row + i] = from[(part * batch + b) * kTile + i];
  };
  pack(*m, x, m->columns, {0, batch}, packed);
  if (parts == 1) {
    product<1>(thread, *m, rows, packed, batch, sums, finish);
  } else {
    product<2>(thread, *m, rows, packed, batch, sums, finish);
  }
}

// out [tokens, rows] becomes, or grows by, x [tokens, columns] times the matrix, whose rows `threads` share.
extern "C" void pieces_panel_product(const Matrix* m, const float* x, int64_t tokens, int64_t threads, bool add,
                                     float* out) {
  const int64_t panels = panels_of(tokens), rows = padded(m->rows);
  std::vector<float> in(panels * m->columns * kPanel), to(panels * rows * kPanel), widened(kBlockRows * kBlockColumns);
  const Panels input = {in.data(), m->columns}, output = {to.data(), rows};
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < m->columns; ++i) input.token(t, i)[0] = x[t * m->columns + i];
    for (int64_t r = 0; r < m->rows; ++r) output.token(t, r)[0] = out[t * m->rows + r];
  }
  for (int64_t index = 0; index < threads; ++index) {
    const Range tiles = Thread{index, threads, nullptr}.share((m->rows + kTile - 1) / kTile);
    const int64_t begin = tiles.begin * kTile, end = std::min(tiles.end * kTile, m->rows);
    if (begin < end) multiply(*m, begin, end - begin, input, tokens, add, output, begin, widened.data());
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < m->rows; ++r) out[t * m->rows + r] = output.token(t, r)[0];
}

extern "C" void pieces_read_row(const Matrix* m, int64_t row, int64_t columns, float* out) {
  read_row(*m, row, columns, out);
}
