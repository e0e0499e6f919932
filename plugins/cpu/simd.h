// Vectors. GCC's and clang's vector types are written once and compiled for whatever the CPU has: 16 lanes with
// AVX-512, 8 with AVX2, 4 in plain x86-64. Only what needs an instruction of its own is spelled out.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __x86_64__
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
  typedef int32_t Ints __attribute__((vector_size(4 * N)));
  typedef uint16_t Halves __attribute__((vector_size(2 * N)));
  typedef uint16_t Pairs __attribute__((vector_size(4 * N)));
};

using Floats = VectorOf<kLanes>::Floats;
using Words = VectorOf<kLanes>::Words;
using Ints = VectorOf<kLanes>::Ints;
using Pairs = VectorOf<kLanes>::Pairs;

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

// N bfloat16 numbers.
template <int64_t N>
inline typename VectorOf<N>::Floats load_bfloat16(const uint16_t* from) {
  using Floats = typename VectorOf<N>::Floats;
  using Words = typename VectorOf<N>::Words;
#ifdef __AVX2__  // GCC would widen the halves of a vector one after the other
  if constexpr (N == 8)
    return (Floats)((Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))) << 16);
#endif
#ifdef __AVX512F__
  if constexpr (N == 16)
    return (Floats)((Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))) << 16);
#endif
  return (Floats)(__builtin_convertvector(load<typename VectorOf<N>::Halves>(from), Words) << 16);
}

// sums + a * b over pairs of bfloat16; lane by lane, both products are added.
inline Floats add_pair_products(Floats sums, Words a, Words b) {
#ifdef __AVX512BF16__
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  return sums + low_halves(a) * low_halves(b) + high_halves(a) * high_halves(b);
#endif
}

// Four bytes of memory in every lane.
inline Words repeat(const void* from) {
  uint32_t four;
  std::memcpy(&four, from, sizeof four);
  return Words{} + four;
}

// GCC would load a vector again for each product with it, and two loads take as long as two products. It would also
// add up several products before it adds them to a sum, for which the registers do not suffice.
template <class Vector>
inline Vector in_register(Vector vector) {
#if defined(__AVX512F__) || (defined(__x86_64__) && LANES <= 8)
  asm("" : "+x"(vector));
#endif
  return vector;
}

inline Floats floats(Ints ints) { return __builtin_convertvector(ints, Floats); }

// kLanes float16 numbers.
inline Floats halves(const char* from) {
#if LANES == 8 && defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif LANES == 16 && defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  const auto bits = __builtin_convertvector(load<VectorOf<kLanes>::Halves>(from), Words);
  const Floats magnitude = (Floats)((bits & 0x7fffu) << 13) * 0x1p112f;  // float32's exponents are 112 larger
  return (Floats)((Words)magnitude | (bits & 0x8000u) << 16);
#endif
}

// sums + a * b over pairs of 16-bit integers with signs; lane by lane, both products are added.
inline Ints add_integer_products(Ints sums, Words a, Words b) {
#if LANES == 16 && defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif LANES == 16 && defined(__AVX512BW__)
  return sums + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif LANES == 8 && defined(__AVXVNNI__)
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#elif LANES == 8 && defined(__AVX2__)
  return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif LANES == 4 && defined(__SSE2__)
  return sums + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return sums + ((Ints)(a << 16) >> 16) * ((Ints)(b << 16) >> 16) + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}
