/* Codes of e4m3 (four bits of exponent, three of fraction, no infinities) as bfloat16, which holds each of them exactly.

   A code is s eeee mmm; its number is 2^(e - 7) (1 + m/8), or m 2^-9 where e is 0, and 0x7f is no number. Bits 4 to 10 of a bfloat16 take
   eeee mmm as they are, less 120 in the exponent, so that only the eight smallest codes and the one that is no number come from a table. */
#ifndef HERD_E4M3_H
#define HERD_E4M3_H

#include "simd.h"

/* The bytes of bfloat16 by the exponent (the upper one), and of the numbers whose exponent is 0 by the fraction. */
#define E4M3_UPPER 0, 60, 61, 61, 62, 62, 63, 63, 64, 64, 65, 65, 66, 66, 67, 67
#define E4M3_SMALL_UPPER 0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0
#define E4M3_SMALL_LOWER 0, 0, (char)0x80, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0

/* 4 W bytes, for each four outputs k 0 and 1 and then k 2 and 3 of each, as two vectors of pairs: pairs[0] of k 0 and 1, pairs[1] of k 2 and 3. */
#if HERD_LEVEL >= 2
INLINE void decode(const void *codes, vf pairs[2]) {
    const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi8(E4M3_UPPER));
    const __m512i small_upper = _mm512_broadcast_i32x4(_mm_setr_epi8(E4M3_SMALL_UPPER));
    const __m512i small_lower = _mm512_broadcast_i32x4(_mm_setr_epi8(E4M3_SMALL_LOWER));
    const __m512i sign = _mm512_set1_epi8((char)0x80), nan = _mm512_set1_epi8(0x7f);
    __m512i code = _mm512_loadu_si512(codes), most = _mm512_andnot_si512(sign, code);
    __mmask64 small = _mm512_testn_epi8_mask(code, _mm512_set1_epi8(0x78));
    __m512i high = _mm512_shuffle_epi8(upper, _mm512_and_si512(_mm512_srli_epi16(code, 3), _mm512_set1_epi8(15)));
    __m512i low = _mm512_and_si512(_mm512_slli_epi16(code, 4), _mm512_set1_epi8((char)0xf0));
    high = _mm512_mask_shuffle_epi8(high, small, small_upper, most);
    low = _mm512_mask_shuffle_epi8(low, small, small_lower, most);
    high = _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(most, nan), nan);
    high = _mm512_ternarylogic_epi32(high, code, sign, 0xf8); /* high | (code & sign) */
    pairs[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi8(low, high));
    pairs[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi8(low, high));
}

#elif HERD_LEVEL == 1
INLINE void decode(const void *codes, vf pairs[2]) {
    const __m256i upper = _mm256_broadcastsi128_si256(_mm_setr_epi8(E4M3_UPPER));
    const __m256i small_upper = _mm256_broadcastsi128_si256(_mm_setr_epi8(E4M3_SMALL_UPPER));
    const __m256i small_lower = _mm256_broadcastsi128_si256(_mm_setr_epi8(E4M3_SMALL_LOWER));
    const __m256i sign = _mm256_set1_epi8((char)0x80), nan = _mm256_set1_epi8(0x7f);
    __m256i code = _mm256_loadu_si256(codes), most = _mm256_andnot_si256(sign, code);
    __m256i small = _mm256_cmpeq_epi8(_mm256_and_si256(code, _mm256_set1_epi8(0x78)), _mm256_setzero_si256());
    __m256i high = _mm256_shuffle_epi8(upper, _mm256_and_si256(_mm256_srli_epi16(code, 3), _mm256_set1_epi8(15)));
    __m256i low = _mm256_and_si256(_mm256_slli_epi16(code, 4), _mm256_set1_epi8((char)0xf0));
    high = _mm256_blendv_epi8(high, _mm256_shuffle_epi8(small_upper, most), small);
    low = _mm256_blendv_epi8(low, _mm256_shuffle_epi8(small_lower, most), small);
    high = _mm256_blendv_epi8(high, nan, _mm256_cmpeq_epi8(most, nan));
    high = _mm256_or_si256(high, _mm256_and_si256(code, sign));
    pairs[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi8(low, high));
    pairs[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi8(low, high));
}

#else
typedef uint8_t v8 __attribute__((vector_size(8)));
typedef uint16_t v16 __attribute__((vector_size(16)));
INLINE v16 select16(v16 mask, v16 a, v16 b) { return (mask & a) | (~mask & b); }
INLINE v16 decode_words(v16 code) {
    v16 most = code & 0x7f, number = (most << 4) + 0x3c00;
    v16 small = select16((v16)(most >= 4), 0x3b80 + most * 0x20, select16((v16)(most >= 2), 0x3b00 + most * 0x40, most * 0x3b00));
    number = select16((v16)(most < 8), small, number);
    return select16((v16)(most == 0x7f), number | 0x7fc0, number) | (code & 0x80) << 8;
}
INLINE void decode(const void *codes, vf pairs[2]) {
    v8 bytes[2];
    memcpy(bytes, codes, sizeof bytes);
    for (int half = 0; half < 2; half++) pairs[half] = (vf)decode_words(__builtin_convertvector(bytes[half], v16));
}
#endif

/* A number of at most 448 in magnitude, rounded half to even to one that e4m3 holds. */
INLINE float round_e4m3(float value) {
    uint32_t bits = float_to_bits(value);
    float wide = bits_to_float((bits + 0x7ffff + ((bits >> 20) & 1)) & 0xfff00000);
    float small = (value + 0x1.8p14f) - 0x1.8p14f; /* whole multiples of 2^-9 */
    return (bits & 0x7fffffff) < 0x3c800000 ? small : wide;
}

#endif
