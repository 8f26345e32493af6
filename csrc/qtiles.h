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
    int8_t *blocks;   /* [block][m][LDQ] */
    float *scales;    /* [m], or [m][segments] */
    int32_t *offsets; /* [m][segments]: what the zero point takes from a segment's sum; where the matrix has its own, per unit of it */
    int64_t m;
} inputs;

/* A segment, or what of it lies in this block. */
typedef struct {
    const char *values, *record;
    const int8_t *x;
    const float *x_scales; /* of the inputs, from row to row x_scales_stride apart; 0: ones, each row's scale comes at the end */
    int64_t x_scales_stride, k, number;
    int first, last; /* of the segment's blocks */
} piece;

/* Four k of bytes, or eight of nibbles: the weights of `nv` vectors, the nibbles' high halves apart. */
INLINE void load_weights(const int nv, const int bits, const char *b, vq *w, vq *high) {
    UNROLL for (int v = 0; v < nv; v++) {
        w[v] = vq_load(b + v * W * 4);
        if (bits == 4) {
            high[v] = vq_high(w[v]);
            w[v] = vq_low(w[v]);
        }
    }
}
INLINE void fetch_weights(const char *b, int64_t ahead) {
    if (ahead) UNROLL for (int line = 0; line < 2; line++) __builtin_prefetch(b + ahead + 64 * line, 0, 3);
}

/* Integer sums of a piece go on in acc. `ahead`: bytes to prefetch. */
INLINE void multiply_bytes(const int rows, const int nv, const int8_t *x, const char *b, int64_t k, int64_t ahead,
                           vq acc[][HERD_PANEL / W]) {
    for (int64_t i = 0; i < k; i += 4, b += 4 * HERD_PANEL) {
        vq w[HERD_PANEL / W];
        fetch_weights(b, ahead);
        load_weights(nv, 8, b, w, NULL);
        UNROLL for (int r = 0; r < rows; r++) {
            vq a = vq_set1(load_int(x + r * LDQ + i));
            UNROLL for (int v = 0; v < nv; v++) acc[r][v] = dot_bytes(acc[r][v], w[v], a);
        }
    }
}

#ifdef SHORT_DOTS
#define DOT(acc, w, x) (shortly ? dot_short(acc, w, x) : dot_nibbles(acc, w, x))
#else
#define DOT dot_nibbles
#endif
INLINE void step_nibbles(const int rows, const int nv, const int8_t *x, const char *b, const int shortly, vq acc[][HERD_PANEL / W]) {
    vq w[HERD_PANEL / W], high[HERD_PANEL / W];
    load_weights(nv, 4, b, w, high);
    (void)shortly;
    UNROLL for (int r = 0; r < rows; r++) {
        vq a = vq_set1(load_int(x + r * LDQ));
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = DOT(acc[r][v], w[v], a);
        a = vq_set1(load_int(x + r * LDQ + 4));
        UNROLL for (int v = 0; v < nv; v++) acc[r][v] = DOT(acc[r][v], high[v], a);
    }
}
#undef DOT

INLINE void multiply_nibbles(const int rows, const int nv, const int8_t *x, const char *b, int64_t k, int64_t ahead,
                             vq acc[][HERD_PANEL / W]) {
    int64_t i = 0;
#ifdef SHORT_DOTS
    for (; i + 4 * SHORT_DOTS <= k; i += 4 * SHORT_DOTS, b += 2 * SHORT_DOTS * HERD_PANEL) {
        vq sums[MQ][HERD_PANEL / W];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < nv; v++) sums[r][v] = vq_set1(0);
        UNROLL for (int step = 0; step < SHORT_DOTS / 2; step++) {
            fetch_weights(b + step * 4 * HERD_PANEL, ahead);
            step_nibbles(rows, nv, x + i + 8 * step, b + step * 4 * HERD_PANEL, 1, sums);
        }
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < nv; v++) acc[r][v] = add_short(acc[r][v], sums[r][v]);
    }
#endif
    for (; i < k; i += 8, b += 4 * HERD_PANEL) {
        fetch_weights(b, ahead);
        step_nibbles(rows, nv, x + i, b, 0, acc);
    }
}

/* What the zero points of some outputs take from their sums. */
INLINE vq offset_of(const matrix_shape *w, const piece *p, const int bits, int64_t column, vq offset) {
    if (!w->zeros) return offset;
    return vq_mul(offset, vq_sub(vq_load_u8(p->record + w->zeros_at + column), vq_set1(bits == 8 ? BYTE_BIAS : 0)));
}

/* A piece for `nv` vectors of outputs from `column` on: integers from the offsets or from c, then to c, as integers or as scaled sums. */
INLINE void tile(const int rows, const int nv, const int bits, const matrix_shape *w, const inputs *in, int64_t row, const piece *p,
                 int64_t column, int64_t ahead, float *c) {
    vq acc[MQ][HERD_PANEL / W];
    const int32_t *offsets = in->offsets + row * w->num_segments + p->number;
    UNROLL for (int r = 0; r < rows; r++) {
        vq offset = vq_set1(offsets[r * w->num_segments]);
        UNROLL for (int v = 0; v < nv; v++)
            acc[r][v] = p->first ? offset_of(w, p, bits, column + v * W, offset) : vq_load(c + r * HERD_PANEL + v * W);
    }
    if (bits == 8)
        multiply_bytes(rows, nv, p->x, p->values + column * 4, p->k, ahead, acc);
    else
        multiply_nibbles(rows, nv, p->x, p->values + column * 4, p->k, ahead, acc);
    if (!p->last) {
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < nv; v++) vq_store(c + r * HERD_PANEL + v * W, acc[r][v]);
        return;
    }
    vf scale[HERD_PANEL / W];
    UNROLL for (int v = 0; v < nv; v++) scale[v] = vf_load_as(p->record, column + v * W, w->scale_dtype);
    UNROLL for (int r = 0; r < rows; r++) {
        vf x_scale = vf_set1(p->x_scales[r * p->x_scales_stride]);
        UNROLL for (int v = 0; v < nv; v++) {
            float *to = c + r * HERD_PANEL + v * W;
            vf_store(to, vf_fma(vq_to_float(acc[r][v]), vf_mul(scale[v], x_scale), p->number ? vf_load(to) : vf_set1(0.0f)));
        }
    }
}

/* c[rows][32] goes on by the pieces from `p` on that lie in this block, up to `end` of K. */
INLINE void pieces(const int rows, const int bits, const matrix_shape *w, const inputs *in, int64_t row, piece p, int64_t k, int64_t end,
                   int64_t ahead, float *c) {
    const int nv = rows == 1 ? HERD_PANEL / W : NQ; /* one row takes a panel at once, as it lies in memory */
    for (int64_t inside = k % w->group; k < end; k += w->segment) { /* of the weights' group */
        p.values = p.record + w->header + inside * HERD_PANEL * bits / 8;
        p.k = herd_min(w->segment, end - k);
        for (int64_t column = 0; column < HERD_PANEL; column += nv * W) tile(rows, nv, bits, w, in, row, &p, column, ahead, c + column);
        p.x += w->segment;
        p.number++;
        p.x_scales += p.x_scales_stride != 0;
        inside += w->segment;
        if (inside >= w->group) {
            inside = 0;
            p.record += w->record;
        }
    }
}

/* c[rows][32] goes on by the block `block` of K of `panel`, or begins with block 0. */
static __attribute__((noinline)) void panel_block(const matrix_shape *w, const inputs *in, int64_t row, int64_t rows, int64_t block,
                                                  int64_t panel, int64_t ahead, float *c) {
    static const float one = 1.0f;
    int64_t begin = block * w->block_k, end = herd_min(w->padded_k, begin + w->block_k), number = w->whole ? 0 : begin / w->segment;
    piece p = {.record = w->data + panel * w->panel_bytes + begin / w->group * w->record, .x = in->blocks + (block * in->m + row) * LDQ,
               .x_scales = w->per_token ? &one : in->scales + row * w->num_segments + number,
               .x_scales_stride = w->per_token ? 0 : w->num_segments, .number = number, .first = !w->whole || block == 0,
               .last = !w->whole || end == w->padded_k};
    switch (rows * 2 + (w->bits == 4)) {
#define ROWS_Q(n)                                                                   \
    case 2 * n: pieces(n, 8, w, in, row, p, begin, end, ahead, c); break;           \
    case 2 * n + 1: pieces(n, 4, w, in, row, p, begin, end, ahead, c); break;
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
