// Weights in blocks of 32 columns, as precise as GGUF files have them: in each row a block has a scale, perhaps a
// minimum, and integers of 8 or 4 bits.
//
// In memory kLanes rows are a tile, which is the blocks of all of them one after the other: the scales of all rows,
// their minima, and their integers. So a vector holds one thing of all rows, nothing is summed across lanes, and a tile
// is read from front to back. The integers of a row have no signs, and lie in words of 32 bits, whose halves hold one
// of two adjacent columns each: a shift and a mask widen as many pairs to 16 bits as there are lanes.
//
// Activations become integers of 16 bits in the same blocks, and products are computed in integers. Those of 8 bits
// would take hardly less time, as a step waits for its weights, and cost precision that shows in the answers.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

constexpr int64_t kColumns = 32;

// 32 activations of a token: about values * scale. `sum` is that of all values, `scaled_sum` that of the activations.
struct ActivationBlock {
  int16_t values[kColumns];
  float scale, scaled_sum;
  int32_t sum;

  void quantize(const float* x) {
    float largest = 0;
    for (int i = 0; i < kColumns; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float steps = largest > 1e-30f ? 32767 / largest : 0;
    sum = 0;
    for (int i = 0; i < kColumns; ++i) {
      const float rounded = x[i] * steps + 12582912.0f;  // so large that the last bits are the nearest integer
      uint32_t bits;
      std::memcpy(&bits, &rounded, sizeof bits);
      values[i] = int16_t(bits);
      sum += values[i];
    }
    scale = largest / 32767;
    scaled_sum = scale * sum;
  }
};

// A weight is scale * (integer - kZero) or, with a minimum, scale * integer + minimum.
template <int Bits, bool HasMinimum>
struct Blocks {
  static constexpr int64_t kRows = kLanes;
  static constexpr int64_t kStep = kColumns;
  static constexpr int64_t kHeader = HasMinimum ? 4 : 2;            // bytes of a row's scale and minimum
  static constexpr int64_t kBlock = kHeader + kColumns * Bits / 8;  // bytes of a row's block
  static constexpr int64_t kBytes = kLanes * kBlock;
  static constexpr int64_t kPackedBytes = sizeof(ActivationBlock);
  static constexpr int kZero = Bits == 8 ? 128 : HasMinimum ? 0 : 8;
  static constexpr int kPairs = 16 / Bits, kWord = 2 * kPairs;  // pairs of columns in a word, and columns

  static void pack(const float* x, int64_t columns, char* packed) {
    auto* blocks = reinterpret_cast<ActivationBlock*>(packed);
    for (int64_t i = 0; i < columns / kColumns; ++i) blocks[i].quantize(x + i * kColumns);
  }

  template <int R, int B>
  static void add(Floats (&sums)[R][B], const char* const* weights, const char* x, int64_t stride) {
    Ints products[R][B];
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) products[r][b] = Ints{} + -kZero * at(x + b * stride).sum;
#pragma GCC unroll 1  // else GCC sums all products up at the end, and keeps them in memory until then
    for (int i = 0; i < kColumns / kWord; ++i) {
      Pairs words[R];
      for (int r = 0; r < R; ++r) words[r] = load<Pairs>(weights[r] + kLanes * (kHeader + 4 * i));
      for (int pair = 0; pair < kPairs; ++pair)
        for (int b = 0; b < B; ++b) {
          const Words values = repeat(at(x + b * stride).values + i * kWord + 2 * pair);
          for (int r = 0; r < R; ++r)
            products[r][b] = in_register(add_integer_products(products[r][b], widened(words[r], pair), values));
        }
    }
    for (int r = 0; r < R; ++r) {
      const Floats scale = halves(weights[r]);
      for (int b = 0; b < B; ++b) {
        const ActivationBlock& block = at(x + b * stride);
        sums[r][b] += scale * block.scale * floats(products[r][b]);
        if constexpr (HasMinimum) sums[r][b] += halves(weights[r] + 2 * kLanes) * block.scaled_sum;
      }
    }
  }

  static void finish(Floats sums, float* to) { store(to, sums); }

  // Row `lane` of a tile in float32.
  static void read(const char* tile, int64_t lane, int64_t columns, float* out) {
    for (int64_t c = 0; c < columns; ++c) {
      const char* block = tile + c / kColumns * kBytes;
      uint32_t word;
      std::memcpy(&word, block + word_offset(c % kColumns / kWord, lane), sizeof word);
      const int value = int(word >> shift(c % kWord) & kMask) - kZero;
      out[c] = halves(block)[lane] * value + (HasMinimum ? halves(block + 2 * kLanes)[lane] : 0);
    }
  }

  // A tile's columns, from the beginning of a block on, in float32: out [columns, kLanes].
  static void widen(const char* tile, int64_t columns, float* out) {
    for (; columns > 0; columns -= kColumns, tile += kBytes) {
      const Floats scale = halves(tile), minimum = HasMinimum ? halves(tile + 2 * kLanes) : Floats{};
      auto put = [&](Words integers) {
        store(out, scale * (floats((Ints)integers) - float(kZero)) + minimum);
        out += kLanes;
      };
      for (int i = 0; i < kColumns / kWord; ++i) {
        const auto words = load<Pairs>(tile + kLanes * (kHeader + 4 * i));
        for (int pair = 0; pair < kPairs; ++pair) {
          const Words both = widened(words, pair);
          put(both & 0xffffu);
          put(both >> 16);
        }
      }
    }
  }

  // Lays up to kLanes rows out, which come as files have them: of 8 bits the integers have signs; of 4, a byte holds
  // column i in its low bits and column i + 16 in its high ones. Other rows of the tile are never looked at.
  static void lay_out(const char* rows, int64_t count, int64_t row_bytes, char* tile) {
    for (int64_t lane = 0; lane < count; ++lane)
      for (int64_t i = 0; i < row_bytes / kBlock; ++i) {
        const char* from = rows + lane * row_bytes + i * kBlock;
        char* to = tile + i * kBytes;
        for (int64_t byte = 0; byte < kHeader; byte += 2) std::memcpy(to + byte * kLanes + 2 * lane, from + byte, 2);
        for (int w = 0; w < kColumns / kWord; ++w) {
          uint32_t word = 0;
          for (int c = 0; c < kWord; ++c) word |= in_file(from + kHeader, w * kWord + c) << shift(c);
          std::memcpy(to + word_offset(w, lane), &word, sizeof word);
        }
      }
  }

 private:
  static constexpr uint32_t kMask = (1 << Bits) - 1;

  static const ActivationBlock& at(const char* x) { return *reinterpret_cast<const ActivationBlock*>(x); }

  // One of the pairs of a word, in 16 bits each.
  static Words widened(Pairs words, int pair) {
    const Pairs shifted = words >> (pair * Bits);
    return (Words)(pair + 1 < kPairs ? shifted & uint16_t(kMask) : shifted);
  }

  // Where a row's word of a block is, and a column in it.
  static constexpr int64_t word_offset(int64_t word, int64_t lane) { return kLanes * (kHeader + 4 * word) + 4 * lane; }
  static constexpr int shift(int column) { return 16 * (column % 2) + Bits * (column / 2); }

  static uint32_t in_file(const char* integers, int column) {
    if constexpr (Bits == 8) return uint8_t(integers[column] + kZero);
    return uint8_t(integers[column % 16]) >> (column < 16 ? 0 : 4) & kMask;
  }
};

using Q8_0 = Blocks<8, false>;
using Q4_0 = Blocks<4, false>;
using Q4_1 = Blocks<4, true>;
