/* Tiles of a quantised product: rows of int8 inputs by a panel of weights, over one block of K. */
#ifndef HERD_QTILES_H
#define HERD_QTILES_H

#include "qdot.h"
#include "qshape.h"

#define NQ 2          /* vectors of a tile's width, for more rows than one */
#define B_AHEAD_Q 4096 /* bytes that the first tile of a panel fetches ahead */
#if HERD_LEVEL >= 2
#define MQ 12
#elif HERD_LEVEL == 1
#define MQ 4
#else
#define MQ 3
#endif

typedef struct {
    int8_t *blocks;  /* [block][m][LDQ] */
    float *scales;   /* [m], or [m][segments] */
    int32_t *sums;   /* [m][segments]: of the bytes of a segment */
    int64_t m;
} inputs;

/* A segment, or what of it lies in this block. */
typedef struct {
    const char *values, *record;
    const int8_t *x;
    int64_t k, number;
    int first, last; /* of the segment's blocks */
} piece;

/* Integer sums of a piece go on in acc. `ahead`: bytes to prefetch. */
INLINE void multiply(const int rows, const int nv, const int bits, const int8_t *x, const char *b, int64_t k, int64_t ahead,
                     vq acc[][HERD_PANEL / W]) {
    const int64_t step = bits == 8 ? 4 : 8;
    for (int64_t i = 0; i < k; i += step, b += 4 * HERD_PANEL) {
        vq w[HERD_PANEL / W], high[HERD_PANEL / W];
        if (ahead)
            UNROLL for (int line = 0; line < 2; line++) __builtin_prefetch(b + ahead + 64 * line, 0, 3);
        UNROLL for (int v = 0; v < nv; v++) {
            w[v] = vq_load(b + v * W * 4);
            if (bits == 4) {
                high[v] = vq_high(w[v]);
                w[v] = vq_low(w[v]);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vq a = vq_set1(load_int(x + r * LDQ + i));
            UNROLL for (int v = 0; v < nv; v++) acc[r][v] = bits == 8 ? dot_bytes(acc[r][v], w[v], a) : dot_nibbles(acc[r][v], w[v], a);
            if (bits == 8) continue;
            a = vq_set1(load_int(x + r * LDQ + i + 4));
            UNROLL for (int v = 0; v < nv; v++) acc[r][v] = dot_nibbles(acc[r][v], high[v], a);
        }
    }
}

/* A piece for `nv` vectors of outputs from `column` on: integers from the zero points or from c, then to c, as integers or as scaled sums. */
INLINE void tile(const int rows, const int nv, const int bits, const matrix_shape *w, const inputs *in, int64_t row, const piece *p,
                 int64_t column, int64_t ahead, float *c) {
    vq acc[MQ][HERD_PANEL / W];
    const int32_t *sums = in->sums + row * w->num_segments + p->number;
    UNROLL for (int r = 0; r < rows; r++) {
        vq sum = vq_set1(-sums[r * w->num_segments]);
        UNROLL for (int v = 0; v < nv; v++) {
            if (!p->first)
                acc[r][v] = vq_load(c + r * HERD_PANEL + v * W);
            else if (w->zeros)
                acc[r][v] = vq_mul(sum, vq_load_u8(p->record + w->zeros_at + column + v * W));
            else
                acc[r][v] = vq_set1(-sums[r * w->num_segments] * (bits == 8 ? 128 : 8));
        }
    }
    multiply(rows, nv, bits, p->x, p->values + column * 4, p->k, ahead, acc);
    if (!p->last) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < nv; v++) vq_store(c + r * HERD_PANEL + v * W, acc[r][v]);
        return;
    }
    vf scale[HERD_PANEL / W];
    UNROLL for (int v = 0; v < nv; v++) scale[v] = vf_load_as(p->record, column + v * W, w->scale_dtype);
    UNROLL for (int r = 0; r < rows; r++) {
        vf x_scale = vf_set1(w->per_token ? 1.0f : in->scales[(row + r) * w->num_segments + p->number]);
        UNROLL for (int v = 0; v < nv; v++) {
            float *to = c + r * HERD_PANEL + v * W;
            vf both = w->per_token ? scale[v] : vf_mul(scale[v], x_scale);
            vf_store(to, vf_fma(vq_to_float(acc[r][v]), both, p->number ? vf_load(to) : vf_set1(0.0f)));
        }
    }
}

INLINE void tiles_of(const int rows, const int bits, const matrix_shape *w, const inputs *in, int64_t row, const piece *p, int64_t ahead,
                     float *c) {
    const int nv = rows == 1 ? HERD_PANEL / W : NQ; /* one row takes a panel at once, as it lies in memory */
    for (int64_t column = 0; column < HERD_PANEL; column += nv * W) tile(rows, nv, bits, w, in, row, p, column, ahead, c + column);
}

/* c[rows][32] goes on by the block `block` of K of `panel`, or begins with block 0. */
static __attribute__((noinline)) void panel_block(const matrix_shape *w, const inputs *in, int64_t row, int64_t rows, int64_t block,
                                                  int64_t panel, int64_t ahead, float *c) {
    const char *base = w->data + panel * w->panel_bytes;
    int64_t begin = block * w->block_k, end = herd_min(w->padded_k, begin + w->block_k);
    const int8_t *x = in->blocks + (block * in->m + row) * LDQ;
    for (int64_t k = begin; k < end; k += w->segment) {
        piece p = {.record = base + k / w->group * w->record, .x = x + k - begin, .number = w->whole ? 0 : k / w->segment,
                   .first = !w->whole || block == 0, .last = !w->whole || end == w->padded_k, .k = herd_min(w->segment, end - k)};
        p.values = p.record + w->header + k % w->group * HERD_PANEL * w->bits / 8;
        switch (rows * 2 + (w->bits == 4)) {
#define ROWS_Q(n)                                                        \
    case 2 * n: tiles_of(n, 8, w, in, row, &p, ahead, c); break;         \
    case 2 * n + 1: tiles_of(n, 4, w, in, row, &p, ahead, c); break;
            ROWS_Q(1) ROWS_Q(2) ROWS_Q(3)
#if MQ >= 4
            ROWS_Q(4)
#endif
#if MQ >= 12
            ROWS_Q(5) ROWS_Q(6) ROWS_Q(7) ROWS_Q(8) ROWS_Q(9) ROWS_Q(10) ROWS_Q(11) ROWS_Q(12)
#endif
#undef ROWS_Q
        }
    }
}

#ifdef HERD_USE_TILES
#include "qamx.h"
#else
static void tiles_begin(int64_t rows) { (void)rows; }
static void tiles_end(int64_t rows) { (void)rows; }
INLINE int amx_rows(int64_t rows) { return (void)rows, 0; }
INLINE void amx_block(const matrix_shape *w, const inputs *in, int64_t row, int64_t rows, int64_t block, int64_t panel, float *c) {
    (void)w, (void)in, (void)row, (void)rows, (void)block, (void)panel, (void)c;
}
#endif

/* Rows of a task, shared out evenly between tiles so that no tile is thin. */
static void block_of_rows(const matrix_shape *w, const inputs *in, int64_t row0, int64_t rows, int64_t block, int64_t panel, float *c) {
    if (amx_rows(rows)) {
        amx_block(w, in, row0, rows, block, panel, c);
        return;
    }
    int64_t tiles = herd_ceil(rows, MQ);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * rows / tiles, count = (tile + 1) * rows / tiles - from;
        panel_block(w, in, row0 + from, count, block, panel, tile ? 0 : B_AHEAD_Q, c + from * HERD_PANEL);
    }
}

#endif
