// What the MLP does between its projections.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

// In the order of ACTIVATIONS in plugins/cpu_structures.py.
enum Activation : int64_t { kSilu, kGelu, kGeluTanh, kRelu };

inline void activate(int64_t activation, float* x, int64_t size) {
  switch (activation) {
    case kSilu:
      // At -80 the result is 0 in all but name, and below -88 the exponential is infinite, which -ffast-math rules out.
      for (int64_t i = 0; i < size; ++i) x[i] = x[i] / (1 + std::exp(std::min(-x[i], 80.0f)));
      return;
    case kGelu:
      for (int64_t i = 0; i < size; ++i) x[i] = 0.5f * x[i] * (1 + std::erf(x[i] * 0.70710678f));
      return;
    case kGeluTanh:
      for (int64_t i = 0; i < size; ++i)
        x[i] = 0.5f * x[i] * (1 + std::tanh(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
      return;
    case kRelu:
      for (int64_t i = 0; i < size; ++i) x[i] = x[i] > 0 ? x[i] : 0;
  }
}
