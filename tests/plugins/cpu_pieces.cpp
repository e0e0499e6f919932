// The pieces of a decode step by themselves, for tests.
#include "step.cpp"

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

extern "C" void pieces_rms_norm(const Norm* norm, double eps, const float* x, int64_t size, float* out) {
  rms_norm(*norm, eps, x, size, out);
}

extern "C" void pieces_layer_norm(const Norm* norm, double eps, const float* x, int64_t size, float* out) {
  layer_norm(*norm, eps, x, size, out);
}

extern "C" void pieces_activate(int64_t activation, float* x, int64_t size) { activate(activation, x, size); }

extern "C" void pieces_narrow(const float* x, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) narrow(x[i], out + i);
}

extern "C" void pieces_read_row(const Matrix* m, int64_t row, int64_t columns, float* out) {
  read_row(*m, row, columns, out);
}

// How often all threads found each other's last count, in `rounds` rounds of counting and waiting.
extern "C" int64_t pieces_rounds(int64_t threads, int64_t rounds) {
  Barrier barrier;
  int64_t counts[64] = {}, together = 0;
#pragma omp parallel num_threads(threads)
  {
    const Thread thread = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
    for (int64_t round = 1; round <= rounds; ++round) {
      counts[thread.index] = round;
      thread.wait();
      bool same = true;
      for (int64_t i = 0; i < thread.count; ++i) same = same && counts[i] == round;
      thread.wait();
      if (thread.index == 0) together += same;
    }
  }
  return together;
}
