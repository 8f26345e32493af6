/* The inner product kernels that linear and attention share, and the packing of their operands.

   B is a panel: 32 outputs side by side for each step of K, a step being one float32 or one pair of bfloat16 (a dword either way).
   A is rows of dwords, LDA apart. A tile computes up to MR rows by 32 outputs, each output one chain
       acc = fma(a[k], b[k], acc), k ascending;   bfloat16: for each pair first the odd element, then the even one,
   which is what vdpbf16ps does in one instruction, products being exact (that instruction takes subnormals for zero). A chain may be cut
   anywhere and continued, since its accumulator goes through memory unrounded: how work is blocked never shows in a result.

   Where there is no vdpbf16ps, A holds bfloat16 widened to float32, two dwords a pair. */
#ifndef HERD_GEMM_H
#define HERD_GEMM_H

#include "simd.h"

#define LDA 256                /* dwords from row to row of A, also the block of K: constant, so that rows are displacements */
#define NV 2                   /* vectors of a tile's width; a panel is PANEL_TILES tiles wide */
#define PANEL_TILES (HERD_PANEL / (NV * W))
#if HERD_LEVEL == 3
#define PAIR_A 1               /* dwords of A that a pair of bfloat16 takes */
#else
#define PAIR_A 2
#endif
#if HERD_LEVEL >= 2
#define MR 12
#define MR_PAIR 12
#elif HERD_LEVEL == 1
#define MR 6
#define MR_PAIR 4
#else
#define MR 4
#define MR_PAIR 3
#endif
#define BLOCK_PAIRS (LDA / PAIR_A) /* pairs of a block of K */

#if HERD_LEVEL == 3
INLINE vf dot_pair(vf acc, vf a, vf b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
#endif

/* What a tile does to c: start a chain, continue the one whose sum c holds, or add a chain of its own to c. */
enum mode { START, CONTINUE, ADD };

/* c[r][0..NV*W) = rows of a times a tile of b, over `steps` dwords of K. */
INLINE void tile_f32(const int mr, const float *a, const float *b, int64_t steps, float *c, int64_t ldc, enum mode mode) {
    vf acc[MR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] = mode == CONTINUE ? vf_load(c + r * ldc + v * W) : vf_set1(0.0f);
    for (int64_t i = 0; i < steps; i++, b += HERD_PANEL) {
        vf bv[NV];
        UNROLL for (int v = 0; v < NV; v++) bv[v] = vf_load(b + v * W);
        UNROLL for (int r = 0; r < mr; r++) {
            vf av = vf_set1(a[r * LDA + i]);
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = vf_fma(av, bv[v], acc[r][v]);
        }
    }
    if (mode == ADD)
        UNROLL for (int r = 0; r < mr; r++)
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = vf_add(vf_load(c + r * ldc + v * W), acc[r][v]);
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) vf_store(c + r * ldc + v * W, acc[r][v]);
}

INLINE void tile_pair(const int mr, const float *a, const float *b, int64_t steps, float *c, int64_t ldc, enum mode mode) {
    vf acc[MR_PAIR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] = mode == CONTINUE ? vf_load(c + r * ldc + v * W) : vf_set1(0.0f);
    for (int64_t i = 0; i < steps; i++, b += HERD_PANEL) {
#if HERD_LEVEL == 3
        vf bv[NV];
        UNROLL for (int v = 0; v < NV; v++) bv[v] = vf_load(b + v * W);
        UNROLL for (int r = 0; r < mr; r++) {
            vf av = vf_set1(a[r * LDA + i]);
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = dot_pair(acc[r][v], av, bv[v]);
        }
#else
        vf even[NV], odd[NV];
        UNROLL for (int v = 0; v < NV; v++) {
            vf pair = vf_load(b + v * W);
            even[v] = vf_even(pair);
            odd[v] = vf_odd(pair);
        }
        UNROLL for (int r = 0; r < mr; r++) {
            vf a_even = vf_set1(a[r * LDA + 2 * i]), a_odd = vf_set1(a[r * LDA + 2 * i + 1]);
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = vf_fma(a_even, even[v], vf_fma(a_odd, odd[v], acc[r][v]));
        }
#endif
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) vf_store(c + r * ldc + v * W, acc[r][v]);
}

/* A tile's rows are a constant of its code: the accumulators live in registers. */
#define ROWS(n) \
    case n: \
        CALL(n); \
        break;
#define ROW_CASES_3 ROWS(1) ROWS(2) ROWS(3)
#define ROW_CASES_4 ROW_CASES_3 ROWS(4)
#define ROW_CASES_6 ROW_CASES_4 ROWS(5) ROWS(6)
#define ROW_CASES_12 ROW_CASES_6 ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)

/* Rows of a by one whole panel of b; `steps` counts dwords of b. */
static __attribute__((noinline, unused)) void panel_f32(int mr, const float *a, const float *b, int64_t steps, float *c, int64_t ldc,
                                                        enum mode mode) {
    for (int tile = 0; tile < PANEL_TILES; tile++, b += NV * W, c += NV * W) {
        switch (mr) {
#define CALL(n) tile_f32(n, a, b, steps, c, ldc, mode)
            CAT(ROW_CASES_, MR)
#undef CALL
        }
    }
}
static __attribute__((noinline, unused)) void panel_pair(int mr, const float *a, const float *b, int64_t steps, float *c, int64_t ldc,
                                                         enum mode mode) {
    for (int tile = 0; tile < PANEL_TILES; tile++, b += NV * W, c += NV * W) {
        switch (mr) {
#define CALL(n) tile_pair(n, a, b, steps, c, ldc, mode)
            CAT(ROW_CASES_, MR_PAIR)
#undef CALL
        }
    }
}

/* ---- packing: rows become columns ---- */
INLINE float load_dword(const void *p) { /* bits, perhaps a pair of bfloat16 at an odd address */
    float value;
    memcpy(&value, p, 4);
    return value;
}
#if HERD_LEVEL >= 2
/* dst[k][0..16) = dword k of each of 16 rows (NULL: zeros), k < steps; rows of dst are HERD_PANEL dwords apart. */
INLINE void transpose16(const float *const *rows, int64_t steps, float *dst) {
    for (int64_t k = 0; k < steps; k += 16) {
        int64_t left = steps - k;
        __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512i r[16], t[16];
        UNROLL for (int i = 0; i < 16; i++) r[i] = rows[i] ? _mm512_maskz_loadu_epi32(mask, rows[i] + k) : _mm512_setzero_si512();
        UNROLL for (int i = 0; i < 16; i += 2) {
            t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        UNROLL for (int i = 0; i < 16; i += 4) {
            r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
            r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
            r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
            r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
        }
        UNROLL for (int i = 0; i < 4; i++) { /* r[4g + i] holds column 4q + i of rows 4g.. in quarter q */
            __m512i lo = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), hi = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
            t[i] = _mm512_shuffle_i32x4(lo, hi, 0x88);
            t[i + 8] = _mm512_shuffle_i32x4(lo, hi, 0xdd);
            lo = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
            hi = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
            t[i + 4] = _mm512_shuffle_i32x4(lo, hi, 0x88);
            t[i + 12] = _mm512_shuffle_i32x4(lo, hi, 0xdd);
        }
        if (left >= 16) {
            UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(dst + (k + i) * HERD_PANEL, t[i]);
        } else {
            UNROLL for (int i = 0; i < 16; i++)
                if (i < left) _mm512_storeu_si512(dst + (k + i) * HERD_PANEL, t[i]);
        }
    }
}
INLINE void pack_panel(const float *const *rows, int64_t steps, float *dst) {
    transpose16(rows, steps, dst);
    transpose16(rows + 16, steps, dst + 16);
}
#elif HERD_LEVEL == 1
INLINE void transpose8(const float *const *rows, int64_t steps, float *dst) {
    int64_t k = 0;
    for (; k + 8 <= steps; k += 8) {
        __m256 r[8], t[8];
        UNROLL for (int i = 0; i < 8; i++) r[i] = rows[i] ? _mm256_loadu_ps(rows[i] + k) : _mm256_setzero_ps();
        UNROLL for (int i = 0; i < 8; i += 2) {
            t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
        }
        UNROLL for (int i = 0; i < 8; i += 4) {
            r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
            r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
            r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
            r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            _mm256_storeu_ps(dst + (k + i) * HERD_PANEL, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
            _mm256_storeu_ps(dst + (k + i + 4) * HERD_PANEL, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
        }
    }
    for (; k < steps; k++)
        for (int i = 0; i < 8; i++) dst[k * HERD_PANEL + i] = rows[i] ? load_dword(rows[i] + k) : 0.0f;
}
INLINE void pack_panel(const float *const *rows, int64_t steps, float *dst) {
    for (int i = 0; i < HERD_PANEL; i += 8) transpose8(rows + i, steps, dst + i);
}
#else
INLINE void pack_panel(const float *const *rows, int64_t steps, float *dst) {
    for (int i = 0; i < HERD_PANEL; i++) {
        if (rows[i])
            for (int64_t k = 0; k < steps; k++) memcpy(dst + k * HERD_PANEL + i, (const char *)rows[i] + 4 * k, 4);
        else
            for (int64_t k = 0; k < steps; k++) dst[k * HERD_PANEL + i] = 0.0f;
    }
}
#endif

/* A row of A over `count` elements from x: as it is, or widened; an odd bfloat16 at the end is paired with 0. */
INLINE void fill_row(const void *x, int64_t count, int dtype, float *a) {
    if (dtype == HERD_F32) {
        memcpy(a, x, (size_t)count * 4);
        return;
    }
    const uint16_t *from = x;
#if PAIR_A == 1
    memcpy(a, from, (size_t)count * 2);
    if (count & 1) ((uint16_t *)a)[count] = 0;
#else
    int64_t i = 0;
    for (; i + W <= count; i += W) vf_store(a + i, vf_load_bf16(from + i));
    for (; i < count; i++) a[i] = bf16_to_float(from[i]);
    if (count & 1) a[count] = 0.0f;
#endif
}

#endif
