// Reads memory and does nothing else, in loops that differ in their order: for the floor below a decode step.
#include <omp.h>

#include "simd.h"

namespace {

// A thread reads its share in `Streams` places at once, each from front to back.
template <int Streams>
uint32_t read(const char* memory, int64_t bytes) {
  const int64_t piece = bytes / Streams / 64 * 64;
  Words sums[Streams] = {};
  for (int64_t i = 0; i + 64 <= piece; i += 64)
    for (int s = 0; s < Streams; ++s) {
      const char* line = memory + s * piece + i;
      __builtin_prefetch(line + 1024);
      for (int64_t j = 0; j < 64; j += sizeof(Words)) sums[s] += load<Words>(line + j);
    }
  Words all = {};
  for (const Words& each : sums) all += each;
  uint32_t sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += all[i];
  return sum;
}

}  // namespace

extern "C" uint32_t read_memory(const char* memory, int64_t bytes, int64_t streams, int64_t threads) {
  uint32_t sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  {
    const int64_t share = bytes / omp_get_num_threads() / 64 * 64;
    const char* own = memory + share * omp_get_thread_num();
    switch (streams) {
      case 1: sum += read<1>(own, share); break;
      case 2: sum += read<2>(own, share); break;
      case 4: sum += read<4>(own, share); break;
      case 8: sum += read<8>(own, share); break;
    }
  }
  return sum;
}
