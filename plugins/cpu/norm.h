// RMSNorm and LayerNorm of one token.
#pragma once

#include <cmath>
#include <cstdint>

// Mirrors Norm in plugins/cpu_structures.py.
struct Norm {
  const float* weight;  // null where nothing is normalized
  const float* bias;    // LayerNorm's; zeros where the checkpoint has none
};

inline void rms_norm(const Norm& norm, double eps, const float* x, int64_t size, float* out) {
  float squares = 0;
  for (int64_t i = 0; i < size; ++i) squares += x[i] * x[i];
  const float scale = 1 / std::sqrt(squares / size + float(eps));
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] * scale * norm.weight[i];
}

inline void layer_norm(const Norm& norm, double eps, const float* x, int64_t size, float* out) {
  float total = 0, squares = 0;
  for (int64_t i = 0; i < size; ++i) total += x[i];
  const float mean = total / size;
  for (int64_t i = 0; i < size; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / std::sqrt(squares / size + float(eps));
  for (int64_t i = 0; i < size; ++i) out[i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
}
