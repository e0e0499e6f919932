// The formats of weights: how rows are stored, what activations they are multiplied with, and the product of a step.
//
// A format has kRows rows in a tile, and in a step kStep columns of them, which take kBytes; `pack` lays one token's
// activations out for the product, in kPackedBytes a step. `add` multiplies a step of R tiles, which begin at
// `weights`, with B tokens, which begin at x + b * stride; `widen` turns some steps of a tile into float32, [columns,
// kRows]. Rows have a multiple of kColumns columns, the last ones zeros. Here are the floats, whose tiles are single
// rows; blocks.h has the others.
#pragma once

#include "blocks.h"

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

// What floats have in common: a sum for each lane, which are added up at the end of a row.
template <class Weight>
struct FloatRows {
  static constexpr int64_t kRows = 1;

  static void finish(Floats sums, float* to) { *to = sum(sums); }

  static void read(const char* row, int64_t, int64_t columns, float* out) {
    const auto* weights = reinterpret_cast<const Weight*>(row);
    for (int64_t i = 0; i < columns; ++i) out[i] = ::widen(weights[i]);
  }

  static void widen(const char* row, int64_t columns, float* out) { read(row, 0, columns, out); }
};

// sums[r][b] += w[r] times a vector of token b.
template <int R, int B>
inline void add_products(Floats (&sums)[R][B], const Floats (&w)[R], const char* x, int64_t stride) {
  for (int b = 0; b < B; ++b) {
    const Floats values = in_register(load<Floats>(x + b * stride));
    for (int r = 0; r < R; ++r) sums[r][b] = in_register(sums[r][b] + w[r] * values);
  }
}

struct Float32 : FloatRows<float> {
  static constexpr int64_t kStep = kLanes, kBytes = sizeof(Floats), kPackedBytes = sizeof(Floats);

  static void pack(const float* x, int64_t columns, char* packed) { std::memcpy(packed, x, sizeof(float) * columns); }

  template <int R, int B>
  static void add(Floats (&sums)[R][B], const char* const* weights, const char* x, int64_t stride) {
    Floats w[R];
    for (int r = 0; r < R; ++r) w[r] = load<Floats>(weights[r]);
    add_products(sums, w, x, stride);
  }
};

#if BFLOAT16_PAIRS

struct Bfloat16 : FloatRows<uint16_t> {
  static constexpr int64_t kStep = 2 * kLanes, kBytes = sizeof(Words), kPackedBytes = sizeof(Words);

  static void pack(const float* x, int64_t columns, char* packed) {
    for (int64_t i = 0; i < columns; ++i) narrow(x[i], reinterpret_cast<uint16_t*>(packed) + i);
  }

  template <int R, int B>
  static void add(Floats (&sums)[R][B], const char* const* weights, const char* x, int64_t stride) {
    for (int r = 0; r < R; ++r) {
      const Words w = load<Words>(weights[r]);
      for (int b = 0; b < B; ++b) sums[r][b] = add_pair_products(sums[r][b], w, load<Words>(x + b * stride));
    }
  }
};

#else

// Activations stay float32, in each step the even columns first, so that widening a pair is a shift and a mask.
struct Bfloat16 : FloatRows<uint16_t> {
  static constexpr int64_t kStep = 2 * kLanes, kBytes = sizeof(Words), kPackedBytes = 2 * sizeof(Floats);

  static void pack(const float* x, int64_t columns, char* packed) {
    auto* to = reinterpret_cast<float*>(packed);
    for (int64_t step = 0; step < columns; step += kStep)
      for (int64_t i = 0; i < kLanes; ++i) {
        to[step + i] = x[step + 2 * i];
        to[step + kLanes + i] = x[step + 2 * i + 1];
      }
  }

  template <int R, int B>
  static void add(Floats (&sums)[R][B], const char* const* weights, const char* x, int64_t stride) {
    Floats even[R], odd[R];
    for (int r = 0; r < R; ++r) {
      const Words pairs = load<Words>(weights[r]);
      even[r] = low_halves(pairs), odd[r] = high_halves(pairs);
    }
    add_products(sums, even, x, stride);
    add_products(sums, odd, x + sizeof(Floats), stride);
  }
};

#endif

// Calls `use` with the format that a matrix names; Python has the same numbers. A library for weights in floats alone
// compiles in half the time.
template <class Use>
inline void with_format(int64_t format, Use use) {
  switch (format) {
    case 0: return use(Float32());
    case 1: return use(Bfloat16());
#if BLOCKS
    case 2: return use(Q8_0());
    case 3: return use(Q4_0());
    case 4: return use(Q4_1());
#endif
  }
}
