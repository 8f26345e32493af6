/* Tiles of AMX for many rows: 16 rows by 16 outputs, their sums the same integers as qtiles.h has, scaled by the same operations.

   A tile of inputs is 16 rows of up to 64 bytes as they lie in a block; a tile of weights is up to 16 dwords of k by 16 outputs, as a panel
   has them, nibbles widened to bytes before. Sums leave the tiles where a segment ends. */
#ifndef HERD_QAMX_H
#define HERD_QAMX_H

#define AMX_ROWS 16 /* fewer than that keep to vectors */

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} amx_config;

#ifdef HERD_EMULATE_TILES /* tests of the arithmetic on a processor without tiles */
typedef struct {
    int rows[8], bytes[8];
    _Alignas(64) uint8_t data[8][16][64];
} amx_state;
static _Thread_local amx_state tiles_now;
static void _tile_loadconfig(const void *p) {
    const amx_config *c = p;
    for (int t = 0; t < 8; t++) tiles_now.rows[t] = c->rows[t], tiles_now.bytes[t] = c->bytes[t];
}
static void _tile_release(void) {}
static void amx_zero(int t) { memset(tiles_now.data[t], 0, sizeof tiles_now.data[t]); }
static void amx_load(int t, const void *from, int64_t stride) {
    amx_zero(t);
    for (int r = 0; r < tiles_now.rows[t]; r++) memcpy(tiles_now.data[t][r], (const char *)from + r * stride, (size_t)tiles_now.bytes[t]);
}
static void amx_store(int t, void *to, int64_t stride) {
    for (int r = 0; r < tiles_now.rows[t]; r++) memcpy((char *)to + r * stride, tiles_now.data[t][r], (size_t)tiles_now.bytes[t]);
}
static void amx_dot(int c, int a, int b) {
    for (int m = 0; m < tiles_now.rows[c]; m++)
        for (int n = 0; n < tiles_now.bytes[c] / 4; n++) {
            int32_t sum = load_int(tiles_now.data[c][m] + 4 * n);
            for (int k = 0; k < tiles_now.bytes[a]; k++) sum += (int8_t)tiles_now.data[a][m][k] * (int)tiles_now.data[b][k / 4][4 * n + k % 4];
            memcpy(tiles_now.data[c][m] + 4 * n, &sum, 4);
        }
}
#define AMX_ZERO(t) amx_zero(t)
#define AMX_LOAD(t, from, stride) amx_load(t, from, stride)
#define AMX_STORE(t, to, stride) amx_store(t, to, stride)
#define AMX_DOT(c, a, b) amx_dot(c, a, b)
#else
#define AMX_ZERO(t) _tile_zero(t)
#define AMX_LOAD(t, from, stride) _tile_loadd(t, from, stride)
#define AMX_STORE(t, to, stride) _tile_stored(t, to, stride)
#define AMX_DOT(c, a, b) _tile_dpbsud(c, a, b)
#endif

/* Tiles 0 to 3: sums of two runs of rows by the two halves of a panel; 4, 5: inputs; 6, 7: weights. `k` bytes of K go in at once. */
static void amx_configure(int64_t k) {
    amx_config c = {.palette = 1};
    for (int t = 0; t < 4; t++) c.rows[t] = 16, c.bytes[t] = 64;
    for (int t = 4; t < 6; t++) c.rows[t] = 16, c.bytes[t] = (uint16_t)k;
    for (int t = 6; t < 8; t++) c.rows[t] = (uint8_t)(k / 4), c.bytes[t] = 64;
    __asm__ volatile("" ::"r"(&c) : "memory"); /* GCC 12 believes that the instruction reads 8 bytes, and drops stores to the rest */
    _tile_loadconfig(&c);
    __asm__ volatile("" ::: "memory");
}

static void tiles_begin(int64_t rows) { (void)rows; }
static void tiles_end(int64_t rows) {
    if (rows >= AMX_ROWS) _tile_release();
}
INLINE int amx_rows(int64_t rows) { return rows >= AMX_ROWS; }

/* Bytes of K that a tile takes at once: the most that divide a segment, which is a multiple of 8. */
static int64_t amx_step(int64_t length) {
    int64_t step = herd_min(64, length);
    while (length % step) step -= 4;
    return step;
}

/* 4 * `k` nibbles of 32 outputs become bytes: dwords of k, then of k + 4, as a tile of weights wants them. */
INLINE void amx_widen(const char *from, int64_t k, char *to) {
    for (int64_t i = 0; i < k; i += 8, from += 128, to += 256)
        UNROLL for (int v = 0; v < 2; v++) {
            vq w = vq_load(from + 64 * v);
            vq_store(to + 64 * v, vq_low(w));
            vq_store(to + 128 + 64 * v, vq_high(w));
        }
}

/* Sums [32][32] of a piece for up to 32 rows: as they come out of the tiles, without the zero points. */
INLINE void amx_piece(const piece *p, const int64_t stride, int64_t step, const int both, const char *values, int32_t *sums) {
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t k = 0; k < p->k; k += step) {
        AMX_LOAD(6, values + k * 32, 128);
        AMX_LOAD(7, values + k * 32 + 64, 128);
        AMX_LOAD(4, p->x + k, stride);
        AMX_DOT(0, 4, 6);
        AMX_DOT(1, 4, 7);
        if (!both) continue;
        AMX_LOAD(5, p->x + 16 * stride + k, stride);
        AMX_DOT(2, 5, 6);
        AMX_DOT(3, 5, 7);
    }
    AMX_STORE(0, sums, 128);
    AMX_STORE(1, sums + 16, 128);
    if (!both) return;
    AMX_STORE(2, sums + 16 * 32, 128);
    AMX_STORE(3, sums + 16 * 32 + 16, 128);
}

/* What tile() does to c, from sums that a tile made. */
INLINE void amx_finish(const matrix_shape *w, const inputs *in, int64_t row, int64_t rows, const piece *p, const int32_t *from, float *c) {
    const int32_t *offsets = in->offsets + row * w->num_segments + p->number;
    vf scale[2];
    UNROLL for (int v = 0; v < 2; v++) scale[v] = vf_load_as(p->record, v * W, w->scale_dtype);
    for (int64_t r = 0; r < rows; r++, from += 32, c += HERD_PANEL) {
        vq offset = vq_set1(offsets[r * w->num_segments]);
        vf x_scale = vf_set1(w->per_token ? 1.0f : in->scales[(row + r) * w->num_segments + p->number]);
        UNROLL for (int v = 0; v < 2; v++) {
            vq start = p->first ? offset_of(w, p, w->bits, v * W, offset) : vq_load(c + v * W);
            vq total = _mm512_add_epi32(start, vq_load(from + v * W));
            if (!p->last) {
                vq_store(c + v * W, total);
                continue;
            }
            vf both = w->per_token ? scale[v] : vf_mul(scale[v], x_scale);
            vf_store(c + v * W, vf_fma(vq_to_float(total), both, p->number ? vf_load(c + v * W) : vf_set1(0.0f)));
        }
    }
}

/* c[rows][32] goes on by a block of K of a panel; rows in runs of 32, the last run as high as it has to be: a run may take rows twice, which
   gives them the same sums again, so that no tile reads behind the last row. */
static void amx_block(const matrix_shape *w, const inputs *in, int64_t row0, int64_t rows, int64_t block, int64_t panel, float *c) {
    const char *base = w->data + panel * w->panel_bytes;
    int64_t begin = block * w->block_k, end = herd_min(w->padded_k, begin + w->block_k), set = 0;
    _Alignas(64) char bytes[LDQ * HERD_PANEL];
    _Alignas(64) int32_t sums[32 * 32];
    for (int64_t k = begin; k < end; k += w->segment) {
        int64_t length = herd_min(w->segment, end - k), step = amx_step(length);
        piece p = {.record = base + k / w->group * w->record, .number = w->whole ? 0 : k / w->segment,
                       .first = !w->whole || block == 0, .last = !w->whole || end == w->padded_k};
        const char *values = p.record + w->header + k % w->group * HERD_PANEL * w->bits / 8;
        if (w->bits == 4) {
            amx_widen(values, length, bytes);
            values = bytes;
        }
        if (step != set) amx_configure(set = step);
        p.k = length;
        for (int64_t r = 0; r < rows;) {
            int64_t count = herd_min(32, rows - r), high = 32;
            if (count <= 16 || rows < 32) count = herd_min(16, count), high = 16;
            int64_t from = herd_min(r, rows - high), skip = r - from; /* rows of the tile that are done already */
            p.x = in->blocks + (block * in->m + row0 + from) * LDQ + (k - begin);
            if (high == 32)
                amx_piece(&p, LDQ, step, 1, values, sums);
            else
                amx_piece(&p, LDQ, step, 0, values, sums);
            amx_finish(w, in, row0 + r, count, &p, sums + skip * 32, c + r * HERD_PANEL);
            r += count;
        }
    }
}

#endif
