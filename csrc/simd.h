/* One vector of float32 for each instruction set, so that a kernel is written once and compiled for every level.

   HERD_LEVEL (0 scalar, 1 AVX2+FMA+F16C, 2 AVX-512 F/BW/VL/DQ, 3 the same with BF16) and HERD_NAME come from the command line, for some
   files HERD_USE_VNNI and HERD_USE_TILES too. Level 0 is GCC's and
   clang's portable vectors of four floats: any machine, no fused multiply-add. The library is compiled with -ffp-contract=off: a multiply
   and an add are fused only where vf_fma says so. Sums over lanes use 16 logical lanes at every level, so that levels 1 to 3 agree bit for
   bit. */
#ifndef HERD_SIMD_H
#define HERD_SIMD_H

#include "internal.h"

#include <math.h>
#include <string.h>

#if HERD_LEVEL >= 1
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define ISA(name) CAT(name, CAT(_, HERD_NAME))
#define UNROLL _Pragma("GCC unroll 32")

INLINE float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
INLINE float bf16_to_float(uint16_t bits) { return bits_to_float((uint32_t)bits << 16); }

/* Round to nearest even, as torch does; a NaN becomes the plain one. */
INLINE uint16_t float_to_bf16(float value) {
    uint32_t bits = float_to_bits(value);
    if (value != value) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE float f16_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 0x3ff;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
    if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction * 0x1p-24f;
    return bits_to_float(float_to_bits(small) | sign);
}
INLINE uint16_t float_to_f16(float value) {
    uint32_t bits = float_to_bits(value), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((rest >> 13) & 0x3ff));
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) { /* a subnormal half: let the addition round at bit 2^-24 */
        float sum = bits_to_float(rest) + 0.5f;
        return (uint16_t)(sign | (float_to_bits(sum) - 0x3f000000));
    }
    return (uint16_t)(sign | ((rest + 0xfff + ((rest >> 13) & 1) - 0x38000000) >> 13));
}

/* ---- float32 vectors: vf, W lanes; vb is what a comparison gives ---- */
#if HERD_LEVEL >= 2
#define W 16
typedef __m512 vf;
typedef __m512i vi;
INLINE vf vf_set1(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_load(const void *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(void *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_zero_below(vf x, float limit, vf y) { /* y, or 0 where x < limit */
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_LT_OQ), _mm512_setzero_ps());
}
INLINE vf vf_exponent(vf a) { /* 2^n where a = 1.5 * 2^23 + n */
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(a), 23), _mm512_set1_epi32(0x3f800000)));
}
INLINE vf vf_even(vf pair) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pair), 16)); }
INLINE vf vf_odd(vf pair) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pair), _mm512_set1_epi32((int)0xffff0000)));
}
INLINE void vf_store_pairs(float *p, vf even, vf odd) { /* e0 o0 e1 o1 ... */
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vf_store(p, _mm512_permutex2var_ps(even, low, odd));
    vf_store(p + W, _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd));
}
INLINE vf vf_load_bf16(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
INLINE vf vf_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
INLINE vf vf_byte(vf a, const int n) { /* signed byte n of each dword, as a number */
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(_mm512_castps_si512(a), 24 - 8 * n), 24));
}
INLINE vf vf_pair(vf even, vf odd) { /* of numbers that are bfloat16 already */
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd)));
}
INLINE vf vf_load_i8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }
INLINE void vf_store_f16(void *p, vf a) { _mm256_storeu_si256(p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }
INLINE __m512i vf_bf16_bits(vf a) { /* the rounded value, in the upper half of each lane */
    __m512i bits = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}
INLINE vf vf_round_bf16(vf a) {
    return _mm512_castsi512_ps(_mm512_and_si512(vf_bf16_bits(a), _mm512_set1_epi32((int)0xffff0000)));
}
INLINE void vf_store_bf16(void *p, vf a) { _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(vf_bf16_bits(a), 16))); }

#elif HERD_LEVEL == 1
#define W 8
typedef __m256 vf;
INLINE vf vf_set1(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_load(const void *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(void *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_zero_below(vf x, float limit, vf y) { return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_LT_OQ), y); }
INLINE vf vf_exponent(vf a) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(a), 23), _mm256_set1_epi32(0x3f800000)));
}
INLINE vf vf_even(vf pair) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pair), 16)); }
INLINE vf vf_odd(vf pair) {
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pair), _mm256_set1_epi32((int)0xffff0000)));
}
INLINE void vf_store_pairs(float *p, vf even, vf odd) {
    vf low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    vf_store(p, _mm256_permute2f128_ps(low, high, 0x20));
    vf_store(p + W, _mm256_permute2f128_ps(low, high, 0x31));
}
INLINE vf vf_load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
INLINE vf vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE vf vf_byte(vf a, const int n) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(a), 24 - 8 * n), 24));
}
INLINE vf vf_pair(vf even, vf odd) {
    return _mm256_castsi256_ps(_mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd)));
}
INLINE vf vf_load_i8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
INLINE void vf_store_f16(void *p, vf a) { _mm_storeu_si128(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }
INLINE __m256i vf_bf16_bits(vf a) {
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan);
}
INLINE vf vf_round_bf16(vf a) {
    return _mm256_castsi256_ps(_mm256_and_si256(vf_bf16_bits(a), _mm256_set1_epi32((int)0xffff0000)));
}
INLINE void vf_store_bf16(void *p, vf a) {
    __m256i high = _mm256_srli_epi32(vf_bf16_bits(a), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(p, _mm256_castsi256_si128(packed));
}

#else
#define W 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
INLINE vf vf_set1(float a) { return (vf){a, a, a, a}; }
INLINE vf vf_load(const void *p) {
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE void vf_store(void *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_div(vf a, vf b) { return a / b; }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
INLINE vf vf_zero_below(vf x, float limit, vf y) { return (vf)(~(x < vf_set1(limit)) & (vi)y); }
INLINE vf vf_exponent(vf a) { return (vf)(((vi)a << 23) + 0x3f800000); }
INLINE vf vf_even(vf pair) { return (vf)((vi)pair << 16); }
INLINE vf vf_odd(vf pair) { return (vf)((vi)pair & (int32_t)0xffff0000); }
#define LANES(expression)               \
    do {                                \
        UNROLL for (int i = 0; i < W; i++) { expression; } \
    } while (0)
INLINE void vf_store_pairs(float *p, vf even, vf odd) {
    vf_store(p, (vf){even[0], odd[0], even[1], odd[1]});
    vf_store(p + W, (vf){even[2], odd[2], even[3], odd[3]});
}
INLINE vf vf_load_bf16(const void *p) {
    uint16_t b[W];
    memcpy(b, p, sizeof b);
    return (vf){bf16_to_float(b[0]), bf16_to_float(b[1]), bf16_to_float(b[2]), bf16_to_float(b[3])};
}
INLINE vf vf_load_f16(const void *p) {
    uint16_t b[W];
    memcpy(b, p, sizeof b);
    return (vf){f16_to_float(b[0]), f16_to_float(b[1]), f16_to_float(b[2]), f16_to_float(b[3])};
}
INLINE vf vf_byte(vf a, const int n) { return __builtin_convertvector(((vi)a << (24 - 8 * n)) >> 24, vf); }
INLINE vf vf_pair(vf even, vf odd) {
    typedef uint32_t vu __attribute__((vector_size(16)));
    return (vf)((vu)even >> 16 | (vu)odd);
}
INLINE vf vf_load_i8(const void *p) {
    const int8_t *b = p;
    return (vf){b[0], b[1], b[2], b[3]};
}
INLINE void vf_store_f16(void *p, vf a) {
    uint16_t b[W];
    LANES(b[i] = float_to_f16(a[i]));
    memcpy(p, b, sizeof b);
}
INLINE vf vf_round_bf16(vf a) {
    LANES(a[i] = bf16_to_float(float_to_bf16(a[i])));
    return a;
}
INLINE void vf_store_bf16(void *p, vf a) {
    uint16_t b[W];
    LANES(b[i] = float_to_bf16(a[i]));
    memcpy(p, b, sizeof b);
}
#endif

/* e^x within 2 units in the last place: 2^n * polynomial(x - n ln 2); 0 below -87.33 (e^x is no normal number there), about 2e38 above 88.
   exp(0) is 1 exactly. Coefficients: Cephes' expf. */
INLINE vf vf_exp(vf x) {
    vf shift = vf_set1(12582912.0f), t, n, r, p;
    vf clamped = vf_max(vf_set1(-87.33f), vf_min(vf_set1(88.0f), x));
    t = vf_fma(clamped, vf_set1(1.44269504088896341f), shift);
    n = vf_sub(t, shift);
    r = vf_fma(n, vf_set1(-0.693359375f), clamped);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    p = vf_fma(vf_set1(1.9875691500e-4f), r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_add(vf_fma(vf_mul(p, r), r, r), vf_set1(1.0f));
    return vf_zero_below(x, -87.33f, vf_mul(p, vf_exponent(t)));
}

/* e^x of one number, by the same steps. */
INLINE float exp_one(float x) {
    float lanes[W];
    vf_store(lanes, vf_exp(vf_set1(x)));
    return lanes[0];
}

/* The sum of 16 logical lanes, 16/W vectors, by halves: lane i takes lane i + 8, then i + 4, i + 2, i + 1. And their maximum. */
#if HERD_LEVEL >= 1
#define BY_HALVES(name, combine128)                                              \
    INLINE float name(__m256 a) {                                                \
        __m128 b = combine128(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)); \
        b = combine128(b, _mm_movehl_ps(b, b));                                  \
        return _mm_cvtss_f32(combine128(b, _mm_movehdup_ps(b)));                 \
    }
BY_HALVES(sum8, _mm_add_ps)
BY_HALVES(max8, _mm_max_ps)
#if HERD_LEVEL == 1
INLINE float sum_lanes(const vf *a) { return sum8(_mm256_add_ps(a[0], a[1])); }
INLINE float max_lanes(const vf *a) { return max8(_mm256_max_ps(a[0], a[1])); }
#else
INLINE float sum_lanes(const vf *a) { return sum8(_mm256_add_ps(_mm512_castps512_ps256(a[0]), _mm512_extractf32x8_ps(a[0], 1))); }
INLINE float max_lanes(const vf *a) { return max8(_mm256_max_ps(_mm512_castps512_ps256(a[0]), _mm512_extractf32x8_ps(a[0], 1))); }
#endif
#else
INLINE float sum_lanes(const vf *a) {
    vf four = (a[0] + a[2]) + (a[1] + a[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float max_lanes(const vf *a) {
    vf four = vf_max(vf_max(a[0], a[2]), vf_max(a[1], a[3]));
    float low = four[0] > four[2] ? four[0] : four[2], high = four[1] > four[3] ? four[1] : four[3];
    return low > high ? low : high;
}
#endif

/* ---- vectors of any storage dtype ---- */
INLINE vf vf_load_as(const void *p, int64_t index, int dtype) {
    if (dtype == HERD_F32) return vf_load((const float *)p + index);
    if (dtype == HERD_BF16) return vf_load_bf16((const uint16_t *)p + index);
    if (dtype == HERD_I8) return vf_load_i8((const int8_t *)p + index);
    return vf_load_f16((const uint16_t *)p + index);
}
INLINE void vf_store_as(void *p, int64_t index, int dtype, vf a) {
    if (dtype == HERD_F32)
        vf_store((float *)p + index, a);
    else if (dtype == HERD_BF16)
        vf_store_bf16((uint16_t *)p + index, a);
    else
        vf_store_f16((uint16_t *)p + index, a);
}
/* Round to `dtype` and stay in float32; float16 is a storage of caches only, as is int8, which quantise.h writes. */
INLINE vf vf_round_as(vf a, int dtype) { return dtype == HERD_BF16 ? vf_round_bf16(a) : a; }

INLINE float load_as(const void *p, int64_t index, int dtype) {
    if (dtype == HERD_F32) return ((const float *)p)[index];
    if (dtype == HERD_BF16) return bf16_to_float(((const uint16_t *)p)[index]);
    if (dtype == HERD_I8) return ((const int8_t *)p)[index];
    return f16_to_float(((const uint16_t *)p)[index]);
}
INLINE void store_as(void *p, int64_t index, int dtype, float a) {
    if (dtype == HERD_F32)
        ((float *)p)[index] = a;
    else if (dtype == HERD_BF16)
        ((uint16_t *)p)[index] = float_to_bf16(a);
    else
        ((uint16_t *)p)[index] = float_to_f16(a);
}
INLINE float round_as(float a, int dtype) { return dtype == HERD_BF16 ? bf16_to_float(float_to_bf16(a)) : a; }

/* Silu by vf_exp; the caller rounds. */
INLINE vf vf_silu(vf x) { return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_set1(0.0f), x)))); }
INLINE float silu_one(float x) {
    float lanes[W];
    vf_store(lanes, vf_silu(vf_set1(x)));
    return lanes[0];
}

#endif
