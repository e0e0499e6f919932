// The pieces of a decode step by themselves, for tests.
#include "step.cpp"

#include "cpu_products.cpp"

extern "C" void pieces_rms_norm(const Norm* norm, double eps, const float* x, int64_t size, float* out) {
  rms_norm(*norm, eps, x, size, out);
}

extern "C" void pieces_layer_norm(const Norm* norm, double eps, const float* x, int64_t size, float* out) {
  layer_norm(*norm, eps, x, size, out);
}

// Of the first tokens of a panel: x and out [size, kPanel].
extern "C" void pieces_rms_norm_of_panel(const Norm* norm, double eps, const float* x, int64_t size, float* out) {
  rms_norm_of_panel(*norm, eps, x, size, out);
}

extern "C" void pieces_layer_norm_of_panel(const Norm* norm, double eps, const float* x, int64_t size, float* out) {
  layer_norm_of_panel(*norm, eps, x, size, out);
}

extern "C" void pieces_activate(int64_t activation, float* x, int64_t size) { activate(activation, x, size); }

extern "C" void pieces_narrow(const float* x, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) narrow(x[i], out + i);
}

// How often all threads found each other's last count, in `rounds` rounds of counting and waiting.
extern "C" int64_t pieces_rounds(int64_t threads, int64_t rounds) {
  int64_t counts[64] = {}, together = 0;
  in_parallel(threads, [&](const Thread& thread) {
    for (int64_t round = 1; round <= rounds; ++round) {
      counts[thread.index] = round;
      thread.wait();
      bool same = true;
      for (int64_t i = 0; i < thread.count; ++i) same = same && counts[i] == round;
      thread.wait();
      if (thread.index == 0) together += same;
    }
  });
  return together;
}
