// Working memory in one piece, which is handed out from its beginning. Nothing is allocated while tokens are fed.
#pragma once

#include <cstdint>

class Memory {
 public:
  explicit Memory(char* base) : base_(base), next_(base) {}

  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += (sizeof(T) * count + 127) / 128 * 128;  // no line, nor a pair of lines, belongs to two threads
    return taken;
  }

  int64_t bytes() const { return next_ - base_; }

 private:
  char *base_, *next_;
};
