// The formats of weights: how a row is stored, what activations it is multiplied with, and the product of a few lanes.
//
// A format has kStep columns in a step; rows have a multiple of kColumns of them, the last ones zeros. `pack` lays one
// token's activations out for the product. `Chunk` is a step's weights, loaded once for all tokens.
#pragma once

#include "simd.h"

constexpr int64_t kColumns = 32;

inline float widen(float value) { return value; }

inline float widen(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow(float value, float* to) { *to = value; }

inline void narrow(float value, uint16_t* to) {  // round to nearest, ties to even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  *to = is_nan ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Float32 {
  using Weight = float;
  using Activation = float;
  using Chunk = Floats;
  static constexpr int64_t kStep = kLanes;

  static void pack(const float* x, int64_t columns, Activation* packed) {
    std::memcpy(packed, x, sizeof(float) * columns);
  }
  static Chunk chunk(const Weight* weights) { return load<Floats>(weights); }
  static void add(Floats& sums, Chunk weights, const Activation* packed) { sums += weights * load<Floats>(packed); }
};

#if BFLOAT16_PAIRS

struct Bfloat16 {
  using Weight = uint16_t;
  using Activation = uint16_t;
  using Chunk = Words;
  static constexpr int64_t kStep = 2 * kLanes;

  static void pack(const float* x, int64_t columns, Activation* packed) {
    for (int64_t i = 0; i < columns; ++i) narrow(x[i], packed + i);
  }
  static Chunk chunk(const Weight* weights) { return load<Words>(weights); }
  static void add(Floats& sums, Chunk weights, const Activation* packed) {
    sums = add_pair_products(sums, weights, load<Words>(packed));
  }
};

#else

// Activations stay float32, in each step the even columns first, so that widening a pair is a shift and a mask.
struct Bfloat16 {
  using Weight = uint16_t;
  using Activation = float;
  struct Chunk {
    Floats even, odd;
  };
  static constexpr int64_t kStep = 2 * kLanes;

  static void pack(const float* x, int64_t columns, Activation* packed) {
    for (int64_t step = 0; step < columns; step += kStep)
      for (int64_t i = 0; i < kLanes; ++i) {
        packed[step + i] = x[step + 2 * i];
        packed[step + kLanes + i] = x[step + 2 * i + 1];
      }
  }
  static Chunk chunk(const Weight* weights) {
    const Words pairs = load<Words>(weights);
    return {low_halves(pairs), high_halves(pairs)};
  }
  static void add(Floats& sums, Chunk weights, const Activation* packed) {
    sums += weights.even * load<Floats>(packed);
    sums += weights.odd * load<Floats>(packed + kLanes);
  }
};

#endif

// Calls `use` with the format that a matrix names; Python has the same numbers.
template <class Use>
inline void with_format(int64_t format, Use use) {
  if (format == 0) return use(Float32());
  if (format == 1) return use(Bfloat16());
}
