// Vectors. GCC's and clang's vector types are written once and compiled for whatever the CPU has: 16 lanes with AVX-512,
// 8 with AVX2, 4 in plain x86-64. Only what needs an instruction of its own is spelled out.
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
};

using Floats = VectorOf<kLanes>::Floats;
using Words = VectorOf<kLanes>::Words;
using Ints = VectorOf<kLanes>::Ints;

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

// Which instructions multiply bytes: those of AVX2 or AVX-512, or none.
#if LANES == 8 && defined(__AVX2__)
#define BYTE_INSTRUCTIONS 8
#elif LANES == 16 && defined(__AVX512BW__)
#define BYTE_INSTRUCTIONS 16
#else
#define BYTE_INSTRUCTIONS 0
#endif
#if (BYTE_INSTRUCTIONS == 8 && defined(__AVXVNNI__)) || (BYTE_INSTRUCTIONS == 16 && defined(__AVX512VNNI__))
#define VNNI 1
#else
#define VNNI 0
#endif

// Four bytes of memory in every lane.
inline Words repeat(const char* from) {
  uint32_t four;
  std::memcpy(&four, from, sizeof four);
  return Words{} + four;
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

#if BYTE_INSTRUCTIONS == 8

using Shorts = __m256i;
inline Shorts pair_products(Words a, Words b) { return _mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
inline Shorts add_shorts(Shorts a, Shorts b) { return _mm256_add_epi16(a, b); }
inline Ints pair_sums(Shorts a) { return (Ints)_mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
inline Words absolute(Words bytes) { return (Words)_mm256_abs_epi8((__m256i)bytes); }
inline Words with_signs(Words a, Words signs) { return (Words)_mm256_sign_epi8((__m256i)a, (__m256i)signs); }
#if VNNI
inline Ints add_quad_products(Ints sums, Words a, Words b) {
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
}
#endif

#elif BYTE_INSTRUCTIONS == 16

using Shorts = __m512i;
inline Shorts pair_products(Words a, Words b) { return _mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
inline Shorts add_shorts(Shorts a, Shorts b) { return _mm512_add_epi16(a, b); }
inline Ints pair_sums(Shorts a) { return (Ints)_mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
inline Words absolute(Words bytes) { return (Words)_mm512_abs_epi8((__m512i)bytes); }
inline Words with_signs(Words a, Words signs) {
  const __mmask64 negative = _mm512_movepi8_mask((__m512i)signs);
  return (Words)_mm512_mask_sub_epi8((__m512i)a, negative, _mm512_setzero_si512(), (__m512i)a);
}
#if VNNI
inline Ints add_quad_products(Ints sums, Words a, Words b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
}
#endif

#endif

// sums + a * b over the four signed bytes of each lane. No byte of b is -128.
inline Ints add_products(Ints sums, Words a, Words b) {
#if VNNI
  return add_quad_products(sums, absolute(a), with_signs(b, a));
#elif BYTE_INSTRUCTIONS
  return sums + pair_sums(pair_products(absolute(a), with_signs(b, a)));  // a pair is at most 2 * 128 * 127: no overflow
#else
  for (int shift = 0; shift < 32; shift += 8) sums += ((Ints)(a << shift) >> 24) * ((Ints)(b << shift) >> 24);
  return sums;
#endif
}

// The same for bytes a below 16, at most eight times: then sums of pairs fit into 16 bits, which saves an instruction.
class Products16 {
 public:
  void add(Words a, Words b) {
#if VNNI
    sums_ = add_quad_products(sums_, a, b);
#elif BYTE_INSTRUCTIONS
    sums_ = add_shorts(sums_, pair_products(a, b));
#else
    sums_ = add_products(sums_, a, b);
#endif
  }

  Ints sums() const {
#if BYTE_INSTRUCTIONS && !VNNI
    return pair_sums(sums_);
#else
    return sums_;
#endif
  }

 private:
#if BYTE_INSTRUCTIONS && !VNNI
  Shorts sums_ = {};
#else
  Ints sums_ = {};
#endif
};
