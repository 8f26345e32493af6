/* The inner product kernels that linear and attention share, and the packing of their operands.

   B is a panel: 32 outputs side by side for each step of K, a step being one float32 or one pair of bfloat16 (a dword either way).
   A is rows of dwords, LDA apart. A tile computes up to MR rows by 32 outputs, each output one chain
       acc = fma(a[k], b[k], acc), k ascending;   bfloat16: for each pair first the odd element, then the even one,
   which is what vdpbf16ps does in one instruction, products being exact (that instruction takes subnormals for zero). A chain may be cut
   anywhere and continued, since its accumulator goes through memory unrounded: how work is blocked never shows in a result.

   Where there is no vdpbf16ps, A holds bfloat16 widened to float32, two dwords a pair, and weights are widened as they come. Without
   AVX-512 that takes so many instructions that only a block's first rows do it; they leave the weights widened for the others. */
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

/* The next lines of b, which a processor's own prefetching loses at page borders and where panels change. */
#define B_AHEAD 8192
INLINE void fetch_ahead(const float *b, int64_t ahead, const int numbers) {
    UNROLL for (int line = 0; line < (numbers + 15) / 16; line++) __builtin_prefetch((const char *)b + ahead + 64 * line, 0, 3);
}

/* Steps of a loop side by side: where vectors are short, counting takes a fifth of the instructions. */
#if HERD_LEVEL == 1
#define STEPS _Pragma("GCC unroll 4")
#else
#define STEPS
#endif

/* What a tile does to c: start a chain, continue the one whose sum c holds, or add a chain of its own to c. */
enum mode { START, CONTINUE, ADD };

/* c[r][0..NV*W) = rows of a times a tile of b, over `steps` dwords of K. */
INLINE void tile_f32(const int mr, const float *a, const float *b, int64_t steps, float *c, int64_t ldc, enum mode mode) {
    vf acc[MR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] = mode == CONTINUE ? vf_load(c + r * ldc + v * W) : vf_set1(0.0f);
    STEPS for (int64_t i = 0; i < steps; i++) {
        vf bv[NV];
        fetch_ahead(b + i * HERD_PANEL, B_AHEAD, NV * W);
        UNROLL for (int v = 0; v < NV; v++) bv[v] = vf_load(b + i * HERD_PANEL + v * W);
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
        fetch_ahead(b, B_AHEAD, NV * W);
        UNROLL for (int v = 0; v < NV; v++) bv[v] = vf_load(b + v * W);
        UNROLL for (int r = 0; r < mr; r++) {
            vf av = vf_set1(a[r * LDA + i]);
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = dot_pair(acc[r][v], av, bv[v]);
        }
#else
        vf even[NV], odd[NV];
        fetch_ahead(b, B_AHEAD, NV * W);
        UNROLL for (int v = 0; v < NV; v++) {
            vf pair = vf_load(b + v * W);
            even[v] = vf_even(pair);
            odd[v] = vf_odd(pair);
        }
        UNROLL for (int half = 1; half >= 0; half--) /* the odd of all rows, then the even: a chain waits for its last product */
            UNROLL for (int r = 0; r < mr; r++) {
                vf av = vf_set1(a[r * LDA + 2 * i + half]);
                UNROLL for (int v = 0; v < NV; v++) acc[r][v] = vf_fma(av, half ? odd[v] : even[v], acc[r][v]);
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

/* ---- many rows by bfloat16: tiles of all rows by a block of a panel ---- */
#define HERD_WIDENS (HERD_LEVEL <= 1)
#if HERD_WIDENS
#define WIDE_FLOATS (2 * BLOCK_PAIRS * NV * W) /* a block of a tile's weights, widened: [pair][odd, even][NV * W] */

INLINE void load_sums(const int mr, const float *c, enum mode mode, vf acc[][NV]) {
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] = mode == CONTINUE ? vf_load(c + r * HERD_PANEL + v * W) : vf_set1(0.0f);
}
INLINE void store_sums(const int mr, float *c, vf acc[][NV]) {
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < NV; v++) vf_store(c + r * HERD_PANEL + v * W, acc[r][v]);
}

/* A pair of MR_PAIR rows by one of b, which is left in `wide`. */
INLINE void step_widening(const float *a, const float *b, float *wide, vf acc[][NV]) {
    vf odd[NV], even[NV];
    UNROLL for (int v = 0; v < NV; v++) {
        vf pair = vf_load(b + v * W);
        vf_store(wide + v * W, odd[v] = vf_odd(pair));
        vf_store(wide + (NV + v) * W, even[v] = vf_even(pair));
    }
    UNROLL for (int half = 1; half >= 0; half--)
        UNROLL for (int r = 0; r < MR_PAIR; r++) {
            vf av = vf_set1(a[r * LDA + half]);
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = vf_fma(av, half ? odd[v] : even[v], acc[r][v]);
        }
}
INLINE void step_wide(const int mr, const float *a, const float *wide, vf acc[][NV]) {
    UNROLL for (int odd = 1; odd >= 0; odd--, wide += NV * W) {
        vf bv[NV];
        UNROLL for (int v = 0; v < NV; v++) bv[v] = vf_load(wide + v * W);
        UNROLL for (int r = 0; r < mr; r++) {
            vf av = vf_set1(a[r * LDA + odd]);
            UNROLL for (int v = 0; v < NV; v++) acc[r][v] = vf_fma(av, bv[v], acc[r][v]);
        }
    }
}

/* As tile_pair, for MR_PAIR rows; leaves the weights in `wide`. Every second step fetches a line of `next`. */
static __attribute__((noinline, unused)) void rows_widening(const float *a, const float *b, int64_t steps, float *c, enum mode mode,
                                                            float *wide, const char *next) {
    vf acc[MR_PAIR][NV];
    load_sums(MR_PAIR, c, mode, acc);
    for (; steps >= 2; steps -= 2, a += 4, b += 2 * HERD_PANEL, wide += 4 * NV * W, next += 64) {
        __builtin_prefetch(next, 0, 3);
        UNROLL for (int i = 0; i < 2; i++) step_widening(a + 2 * i, b + i * HERD_PANEL, wide + 2 * i * NV * W, acc);
    }
    if (steps) step_widening(a, b, wide, acc);
    store_sums(MR_PAIR, c, acc);
}

/* The same by weights that a first tile has widened. */
INLINE void tile_wide(const int mr, const float *a, const float *wide, int64_t steps, float *c, enum mode mode, const char *next) {
    vf acc[MR][NV];
    load_sums(mr, c, mode, acc);
    for (; steps >= 2; steps -= 2, a += 4, wide += 4 * NV * W, next += 64) {
        __builtin_prefetch(next, 0, 3);
        UNROLL for (int i = 0; i < 2; i++) step_wide(mr, a + 2 * i, wide + 2 * i * NV * W, acc);
    }
    if (steps) step_wide(mr, a, wide, acc);
    store_sums(mr, c, acc);
}
static __attribute__((noinline, unused)) void rows_wide(int mr, const float *a, const float *wide, int64_t steps, float *c, enum mode mode,
                                                        const char *next) {
    switch (mr) {
#define CALL(n) tile_wide(n, a, wide, steps, c, mode, next)
        CAT(ROW_CASES_, MR)
#undef CALL
    }
}
#endif

/* c[rows][32] = rows of a by `steps` pairs of a panel, at most BLOCK_PAIRS; meanwhile what lies at `next`, the block that follows, is fetched. */
static __attribute__((unused)) void block_pair(int64_t rows, const float *a, const float *b, int64_t steps, float *c, enum mode mode,
                                               const float *next) {
    int64_t tiles = herd_ceil(rows, MR_PAIR);
#if HERD_WIDENS
    if (rows > MR_PAIR) {
        _Alignas(64) float wide[WIDE_FLOATS];
        int64_t rest = rows - MR_PAIR;
        const char *lines = (const char *)next;
        tiles = herd_ceil(rest, MR);
        for (int tile = 0; tile < PANEL_TILES; tile++, b += NV * W, c += NV * W) {
            rows_widening(a, b, steps, c, mode, wide, lines);
            for (int64_t i = 0; i < tiles; i++) {
                int64_t from = MR_PAIR + i * rest / tiles, count = MR_PAIR + (i + 1) * rest / tiles - from;
                lines += 32 * steps;
                rows_wide((int)count, a + from * LDA, wide, steps, c + from * HERD_PANEL, mode, lines);
            }
            lines += 32 * steps;
        }
        return;
    }
#endif
    (void)next;
    for (int64_t i = 0; i < tiles; i++) { /* rows shared out evenly, so that no tile is thin */
        int64_t from = i * rows / tiles, count = (i + 1) * rows / tiles - from;
        panel_pair((int)count, a + from * LDA, b, steps, c + from * HERD_PANEL, HERD_PANEL, mode);
    }
}

/* Few rows by two panels that follow each other, for attention: one panel has too few chains to keep the multipliers busy. Starts chains;
   rows of c are LDA apart. */
#if HERD_LEVEL >= 2
#define MR_BOTH 6
#else
#define MR_BOTH 2
#endif
INLINE void both_tiles(const int mr, const float *a, const float *b, int64_t steps, float *c, const int pairs) {
    const int64_t apart = PANEL_TILES == 1 ? steps * HERD_PANEL : NV * W, c_apart = PANEL_TILES == 1 ? HERD_PANEL : NV * W;
    vf acc[MR_BOTH][2 * NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < 2 * NV; v++) acc[r][v] = vf_set1(0.0f);
    for (int64_t i = 0; i < steps; i++, b += HERD_PANEL) {
        vf bv[2 * NV];
        UNROLL for (int v = 0; v < 2 * NV; v++) bv[v] = vf_load(b + v / NV * apart + v % NV * W);
        UNROLL for (int r = 0; r < mr; r++) {
            if (!pairs) {
                vf av = vf_set1(a[r * LDA + i]);
                UNROLL for (int v = 0; v < 2 * NV; v++) acc[r][v] = vf_fma(av, bv[v], acc[r][v]);
                continue;
            }
#if HERD_LEVEL == 3
            vf av = vf_set1(a[r * LDA + i]);
            UNROLL for (int v = 0; v < 2 * NV; v++) acc[r][v] = dot_pair(acc[r][v], av, bv[v]);
#else
            vf even = vf_set1(a[r * LDA + 2 * i]), odd = vf_set1(a[r * LDA + 2 * i + 1]);
            UNROLL for (int v = 0; v < 2 * NV; v++) acc[r][v] = vf_fma(even, vf_even(bv[v]), vf_fma(odd, vf_odd(bv[v]), acc[r][v]));
#endif
        }
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < 2 * NV; v++) vf_store(c + r * LDA + v / NV * c_apart + v % NV * W, acc[r][v]);
}
INLINE void both_panels(int mr, const float *a, const float *b, int64_t steps, float *c, const int pairs) {
    for (int tile = 0; tile < 2 * PANEL_TILES; tile += 2) { /* a pair of tiles lies in one panel, or in two */
        const float *from = PANEL_TILES == 1 ? b : b + tile / PANEL_TILES * steps * HERD_PANEL + tile % PANEL_TILES * NV * W;
        float *to = c + tile * NV * W;
        switch (mr) {
#define CALL(n) both_tiles(n, a, from, steps, to, pairs)
#if HERD_LEVEL >= 2
            ROW_CASES_6
#else
            ROWS(1) ROWS(2)
#endif
#undef CALL
        }
    }
}
static __attribute__((noinline, unused)) void both_f32(int mr, const float *a, const float *b, int64_t steps, float *c) {
    both_panels(mr, a, b, steps, c, 0);
}
static __attribute__((noinline, unused)) void both_pair(int mr, const float *a, const float *b, int64_t steps, float *c) {
    both_panels(mr, a, b, steps, c, 1);
}

/* ---- packing: rows become columns ---- */
INLINE float load_dword(const void *p) { /* bits, perhaps a pair of bfloat16 at an odd address */
    float value;
    memcpy(&value, p, 4);
    return value;
}
/* Dwords k .. k + count of 16 rows, count at most 16, become dst[k ..][0..16): half a panel. */
#if HERD_LEVEL >= 2
static __attribute__((noinline, unused)) void pack_half(const float *const *rows, int64_t k, int64_t count, float *dst) {
    __mmask16 mask = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    __m512i r[16], t[16];
    UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi32(mask, rows[i] + k);
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
    UNROLL for (int i = 0; i < 4; i++) { /* quarter q of r[4g + i] is column 4q + i of rows 4g .. 4g + 3 */
        __m512i lo = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88), hi = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i] = _mm512_shuffle_i32x4(lo, hi, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(lo, hi, 0xdd);
        lo = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        hi = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
        t[i + 4] = _mm512_shuffle_i32x4(lo, hi, 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(lo, hi, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++)
        if (i < count) _mm512_storeu_si512(dst + (k + i) * HERD_PANEL, t[i]);
}
#elif HERD_LEVEL == 1
INLINE void transpose8(const float *const *rows, int64_t k, float *dst) {
    __m256 r[8], t[8];
    UNROLL for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(rows[i] + k);
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
static __attribute__((noinline, unused)) void pack_half(const float *const *rows, int64_t k, int64_t count, float *dst) {
    for (int64_t end = k + count; k < end; k += 8)
        for (int i = 0; i < 16; i += 8) {
            if (k + 8 <= end) {
                transpose8(rows + i, k, dst + i);
                continue;
            }
            for (int64_t step = k; step < end; step++)
                for (int row = i; row < i + 8; row++) dst[step * HERD_PANEL + row] = load_dword(rows[row] + step);
        }
}
#else
static __attribute__((noinline, unused)) void pack_half(const float *const *rows, int64_t k, int64_t count, float *dst) {
    for (int i = 0; i < 16; i++)
        for (int64_t step = k; step < k + count; step++) dst[step * HERD_PANEL + i] = load_dword(rows[i] + step);
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
