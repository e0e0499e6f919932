// Weights in blocks of 32 columns, with the bits that GGUF files have: in each row a block has a scale, perhaps a
// minimum, and integers of 8 or 4 bits.
//
// In memory kLanes rows are a tile, which is the blocks of all of them one after the other: the scales of all rows, their
// minima, and their integers, four columns at a time. So a vector holds one thing of all rows, nothing is summed across
// lanes, and a tile is read from front to back.
//
// Activations become integers of 8 bits in the same blocks, and products are computed in integers.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

constexpr int64_t kColumns = 32;

// 32 activations of a token: about values * scale. `sum` is that of all 32.
struct ActivationBlock {
  int8_t values[kColumns];
  float scale, sum;

  void quantize(const float* x) {
    float largest = 0;
    for (int i = 0; i < kColumns; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float steps = largest > 1e-30f ? 127 / largest : 0;
    int32_t total = 0;
    for (int i = 0; i < kColumns; ++i) {
      const float rounded = x[i] * steps + 12582912.0f;  // so large that the last bits are the nearest integer
      uint32_t bits;
      std::memcpy(&bits, &rounded, sizeof bits);
      values[i] = int8_t(bits);
      total += values[i];
    }
    scale = largest / 127;
    sum = total * scale;
  }
};

// A weight is scale * (integer - kZero) or, with a minimum, scale * integer + minimum. Of 8 bits the integers have signs.
// Of 4, a byte holds column i in its low bits and column i + 16 in its high ones.
template <int Bits, bool HasMinimum>
struct Blocks {
  static constexpr int64_t kRows = kLanes;
  static constexpr int64_t kStep = kColumns;
  static constexpr int64_t kHeader = HasMinimum ? 4 : 2;           // bytes of a row's scale and minimum
  static constexpr int64_t kBlock = kHeader + kColumns * Bits / 8;  // bytes of a row's block
  static constexpr int64_t kBytes = kLanes * kBlock;
  static constexpr int64_t kPackedBytes = sizeof(ActivationBlock);
  static constexpr int kZero = Bits == 4 && !HasMinimum ? 8 : 0;

  static void pack(const float* x, int64_t columns, char* packed) {
    auto* blocks = reinterpret_cast<ActivationBlock*>(packed);
    for (int64_t i = 0; i < columns / kColumns; ++i) blocks[i].quantize(x + i * kColumns);
  }

  // sums[b] += this step's weights times token b, whose activations lie at x + b * stride.
  template <int B>
  static void add(Floats* sums, const char* weights, const char* x, int64_t stride) {
    const Floats scale = halves(weights);
    const char* integers = weights + kLanes * kHeader;
    if constexpr (Bits == 8) {
      Ints products[B] = {};
      for (int i = 0; i < kColumns; i += 4) {
        const Words four = load<Words>(integers + i * kLanes);
        for (int b = 0; b < B; ++b) products[b] = add_products(products[b], four, repeat(x + b * stride + i));
      }
      for (int b = 0; b < B; ++b) sums[b] += scale * at(x + b * stride).scale * floats(products[b]);
    } else {
      Products16 products[B] = {};
      for (int i = 0; i < kColumns / 2; i += 4) {
        const Words bytes = load<Words>(integers + i * kLanes);
        const Words low = bytes & 0x0f0f0f0fu, high = bytes >> 4 & 0x0f0f0f0fu;
        for (int b = 0; b < B; ++b) {
          products[b].add(low, repeat(x + b * stride + i));
          products[b].add(high, repeat(x + b * stride + kColumns / 2 + i));
        }
      }
      const Floats minimum = HasMinimum ? halves(weights + 2 * kLanes) : scale * float(-kZero);
      for (int b = 0; b < B; ++b) {
        const ActivationBlock& block = at(x + b * stride);
        sums[b] += scale * block.scale * floats(products[b].sums()) + minimum * block.sum;
      }
    }
  }

  static void finish(Floats sums, float* to) { store(to, sums); }

  // Row `lane` of a tile in float32.
  static void read(const char* tile, int64_t lane, int64_t columns, float* out) {
    for (int64_t c = 0; c < columns; ++c) {
      const char* block = tile + c / kColumns * kBytes;
      const int64_t i = c % kColumns, byte = Bits == 8 ? i : i % 16;
      const auto integer = block[kLanes * kHeader + byte / 4 * 4 * kLanes + 4 * lane + byte % 4];
      const int value = Bits == 8 ? int8_t(integer) : (uint8_t(integer) >> (i < 16 ? 0 : 4) & 15) - kZero;
      out[c] = halves(block)[lane] * value + (HasMinimum ? halves(block + 2 * kLanes)[lane] : 0);
    }
  }

  // Lays up to kLanes rows out, which come as files have them. Other rows of the tile are never looked at.
  static void lay_out(const char* rows, int64_t count, int64_t row_bytes, char* tile) {
    for (int64_t lane = 0; lane < count; ++lane)
      for (int64_t i = 0; i < row_bytes; ++i) {
        const int64_t byte = i % kBlock, piece = byte < kHeader ? 2 : 4;  // bytes of a row that stay together
        const int64_t offset = byte < kHeader ? byte : byte - kHeader;
        char* to = tile + i / kBlock * kBytes + (byte < kHeader ? 0 : kLanes * kHeader);
        to[offset / piece * piece * kLanes + piece * lane + offset % piece] = rows[lane * row_bytes + i];
      }
  }

 private:
  static const ActivationBlock& at(const char* x) { return *reinterpret_cast<const ActivationBlock*>(x); }
};

using Q8_0 = Blocks<8, false>;
using Q4_0 = Blocks<4, false>;
using Q4_1 = Blocks<4, true>;
