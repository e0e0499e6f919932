// The threads of one step: what each of them does, and how they wait for each other.
#pragma once

#include <omp.h>
#include <sched.h>
#include <algorithm>
#include <atomic>
#include <cstdint>

struct Range {
  int64_t begin, end;
};

// Threads meet here a few times in each layer. All of them compute nearly as long as each other, so that waiting takes
// less than sleeping would. But a thread that has lost its core keeps the others waiting, and then they let it have
// one.
class Barrier {
 public:
  void wait(int64_t count) {
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round;) {
      if (++spins < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some 30 microseconds

  static void pause() {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
  }

  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};

// One thread among those of a step.
struct Thread {
  int64_t index, count;
  Barrier* barrier;

  void wait() const {
    if (count > 1) barrier->wait(count);
  }
  // This thread's share of [0, total).
  Range share(int64_t total) const { return {total * index / count, total * (index + 1) / count}; }
};

// Runs `use(thread)` on that many threads, in one parallel region.
template <class Use>
void in_parallel(int64_t threads, Use use) {
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  use(Thread{omp_get_thread_num(), omp_get_num_threads(), &barrier});
}
