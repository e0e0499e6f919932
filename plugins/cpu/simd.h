// Vectors of floats. GCC's and clang's vector types are written once and compiled for whatever the CPU has: 16 lanes
// with AVX-512, 8 with AVX2, 4 in plain x86-64. Only products that need an instruction of their own are spelled out.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#ifndef LANES  // tests compile wider vectors than the CPU has
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif

#ifndef BFLOAT16_PAIRS  // whether activations become bfloat16 too, two to a lane
#ifdef __AVX512BF16__
#define BFLOAT16_PAIRS 1
#else
#define BFLOAT16_PAIRS 0
#endif
#endif

constexpr int64_t kLanes = LANES;
constexpr int kAccumulators = LANES == 16 ? 16 : 8;  // that fit into the registers beside what they are made of

template <int64_t N>
struct VectorOf {
  typedef float Floats __attribute__((vector_size(4 * N)));
  typedef uint32_t Words __attribute__((vector_size(4 * N)));
  typedef uint16_t Halves __attribute__((vector_size(2 * N)));
};

using Floats = VectorOf<kLanes>::Floats;
using Words = VectorOf<kLanes>::Words;

template <class Vector, class Element>
inline Vector load(const Element* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <class Vector, class Element>
inline void store(Element* to, Vector vector) {
  std::memcpy(to, &vector, sizeof vector);
}

// The sum of the lanes, in a tree.
template <int64_t N = kLanes>
inline float sum(typename VectorOf<N>::Floats vector) {
  if constexpr (N == 1) {
    return vector[0];
  } else if constexpr (N == 2) {
    return vector[0] + vector[1];
  } else {
    typename VectorOf<N / 2>::Floats halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return sum<N / 2>(halves[0] + halves[1]);
  }
}

// A lane of bfloat16 pairs holds the value of an even index in its low bits and that of the next one above it.
inline Floats low_halves(Words pairs) { return (Floats)(pairs << 16); }
inline Floats high_halves(Words pairs) { return (Floats)(pairs & 0xffff0000u); }

// sums + a * b over pairs of bfloat16; lane by lane, both products are added.
inline Floats add_pair_products(Floats sums, Words a, Words b) {
#ifdef __AVX512BF16__
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  return sums + low_halves(a) * low_halves(b) + high_halves(a) * high_halves(b);
#endif
}
