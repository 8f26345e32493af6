/* Integer vectors: vq, W lanes of int32, and the product that quantised matrices are made of.

   A weight is an unsigned byte, an input a signed one above -128; a lane holds four weights of one output, the broadcast dword four inputs.
   dot_nibbles takes weights up to 15, dot_bytes up to 255, from each of which it takes BYTE_BIAS. Sums are exact, so that levels, tilings and
   thread counts cannot differ. */
#ifndef HERD_QDOT_H
#define HERD_QDOT_H

#include "simd.h"

INLINE int32_t load_int(const void *p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

#if HERD_LEVEL >= 2
typedef __m512i vq;
INLINE vq vq_set1(int32_t a) { return _mm512_set1_epi32(a); }
INLINE vq vq_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void vq_store(void *p, vq a) { _mm512_storeu_si512(p, a); }
INLINE vq vq_sub(vq a, vq b) { return _mm512_sub_epi32(a, b); }
INLINE vq vq_mul(vq a, vq b) { return _mm512_mullo_epi32(a, b); }
INLINE vf vq_to_float(vq a) { return _mm512_cvtepi32_ps(a); }
INLINE vq vq_load_u8(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(p)); }
INLINE vq vq_low(vq a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
INLINE vq vq_high(vq a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
#ifdef HERD_USE_VNNI
INLINE vq dot_nibbles(vq acc, vq w, vq x) { return _mm512_dpbusd_epi32(acc, w, x); }
INLINE vq dot_bytes(vq acc, vq w, vq x) { return _mm512_dpbusd_epi32(acc, w, x); }
#else
INLINE vq dot_nibbles(vq acc, vq w, vq x) {
    return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
}
INLINE vq dot_bytes(vq acc, vq w, vq x) { /* pairs of bytes could exceed 16 bits, so they are widened first */
    vq even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8));
    vq odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(x, 8));
    return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
}
#endif

#elif HERD_LEVEL == 1
typedef __m256i vq;
INLINE vq vq_set1(int32_t a) { return _mm256_set1_epi32(a); }
INLINE vq vq_load(const void *p) { return _mm256_loadu_si256(p); }
INLINE void vq_store(void *p, vq a) { _mm256_storeu_si256(p, a); }
INLINE vq vq_sub(vq a, vq b) { return _mm256_sub_epi32(a, b); }
INLINE vq vq_mul(vq a, vq b) { return _mm256_mullo_epi32(a, b); }
INLINE vf vq_to_float(vq a) { return _mm256_cvtepi32_ps(a); }
INLINE vq vq_load_u8(const void *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(p)); }
INLINE vq vq_low(vq a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
INLINE vq vq_high(vq a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
INLINE vq dot_nibbles(vq acc, vq w, vq x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
#define BYTE_BIAS 128
INLINE vq dot_bytes(vq acc, vq w, vq x) { /* pairs of |w - 128| <= 128 by inputs with its sign stay within 16 bits */
    vq s = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
    vq pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Sums of pairs in 16 bits, which SHORT_DOTS dots of nibbles cannot exceed: 8 * 2 * 15 * 127. The compiler is kept from adding them up in
   another order, for which it has too few registers. */
#define SHORT_DOTS 8
INLINE vq dot_short(vq acc, vq w, vq x) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
    __asm__("" : "+x"(acc));
    return acc;
}
INLINE vq add_short(vq acc, vq sums) { return _mm256_add_epi32(acc, _mm256_madd_epi16(sums, _mm256_set1_epi16(1))); }

#else
typedef int32_t vq __attribute__((vector_size(16)));
typedef uint32_t vq_unsigned __attribute__((vector_size(16)));
INLINE vq vq_set1(int32_t a) { return (vq){a, a, a, a}; }
INLINE vq vq_load(const void *p) {
    vq a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE void vq_store(void *p, vq a) { memcpy(p, &a, sizeof a); }
INLINE vq vq_sub(vq a, vq b) { return a - b; }
INLINE vq vq_mul(vq a, vq b) { return a * b; }
INLINE vf vq_to_float(vq a) { return __builtin_convertvector(a, vf); }
INLINE vq vq_load_u8(const void *p) {
    const uint8_t *b = p;
    return (vq){b[0], b[1], b[2], b[3]};
}
INLINE vq vq_low(vq a) { return a & 0x0f0f0f0f; }
INLINE vq vq_high(vq a) { return (vq)((vq_unsigned)a >> 4) & 0x0f0f0f0f; }
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
INLINE vq dot_signed(vq acc, vq w, vq x) { return (vq)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)x); }
INLINE vq dot_nibbles(vq acc, vq w, vq x) { return dot_signed(acc, w, x); }
INLINE vq dot_bytes(vq acc, vq w, vq x) { /* w = (w - 128) + 64 + 64, each a signed byte */
    vq sixty_four = vq_set1(0x40404040);
    return dot_signed(dot_signed(dot_signed(acc, w ^ vq_set1((int32_t)0x80808080), x), sixty_four, x), sixty_four, x);
}
#else
INLINE vq dot_bytes(vq acc, vq w, vq x) {
    vq_unsigned u = (vq_unsigned)w;
    acc += (vq)(u & 255) * ((x << 24) >> 24);
    acc += (vq)(u >> 8 & 255) * ((x << 16) >> 24);
    acc += (vq)(u >> 16 & 255) * ((x << 8) >> 24);
    return acc + (vq)(u >> 24) * (x >> 24);
}
INLINE vq dot_nibbles(vq acc, vq w, vq x) { return dot_bytes(acc, w, x); }
#endif
#endif

#ifndef BYTE_BIAS
#define BYTE_BIAS 0
#endif

#endif
