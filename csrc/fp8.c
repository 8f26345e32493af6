/* Products over matrices of e4m3: weights stay 8 bits in memory and become bfloat16 in registers, exactly.

   Stored as in qlinear.c, panels of 32 outputs, each a row of records, one for a group of K that shares a scale:
       32 scales (float32, float16 or bfloat16), the codes of the group, [group/4][8][2][4][2]: of each four outputs k 0 and 1 of the four,
   then k 2 and 3 of the four (see decode).

   Inputs stay what they are (HERD_E4M3), or become e4m3 as well (HERD_E4M3_INPUTS), by FBGEMM's row-wise definition: the largest magnitude
   of a row, capped at `bound`, over 448, at least 1/(448 * 512), is its scale, and x / scale, clamped to 448, is rounded half to even.
   Those numbers are bfloat16 exactly, so both kinds meet the weights in the same product:
       within a group one chain over ascending k, for each pair first the odd element, then the even one (gemm.h); float32 inputs that stay
       are taken one by one instead. Then acc = fma(sum, scale, acc), groups ascending; the scale of the row of inputs multiplies at the end.
   So no result depends on rows, threads or tiles, nor on the level but for `scalar`, which has no fused multiply-add, and for inputs below
   2^-126, which avx512bf16 takes for zero. Sums are those of codes, up to 448 times what the weights' scale makes of them: inputs over 1e35 overflow.

   Few rows (one, or up to eight with AVX-512): panels stream past registers. Many: a block of a panel becomes bfloat16 (float32 for float32 inputs) in the cache once, for
   all rows of a task, and tiles are those of gemm.h. */
#include "e4m3.h"
#include "epilogue.h"
#include "gemm.h"
#include "qshape.h"
#include "share.h"

#define ROW_BLOCK 256
#define GROUP 4
#define FEW_ROWS 64
#define CODES_AHEAD 8192
#if HERD_LEVEL == 3
#define INPUTS_OF_DWORD 2 /* of pairs */
#else
#define INPUTS_OF_DWORD 1
#endif

typedef struct {
    const char *x;
    int64_t x_stride, m, k, rows_per_task;
    int dtype, wide;          /* wide: float32 inputs that stay what they are */
    const herd_matrix *matrix;
    matrix_shape w;
    float *blocks, *scales;   /* inputs [block of K][m][LDA] dwords; of HERD_E4M3_INPUTS [m] */
    int64_t block_k, num_blocks;
    int64_t per_task, row_blocks, rows_per_block;
    sink to;
    int failed;
} job;

/* ---- inputs ---- */
static float to_e4m3(float *x, int64_t count, float bound) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = float_to_bits(x[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest = bits_to_float(most), least = (float)(1.0 / (448.0 * 512.0)); /* of a row with a NaN, NaN to the end */
    largest = bound > 0.0f && largest > bound ? bound : largest;
    float scale = largest / 448.0f;
    scale = scale < least ? least : scale;
    for (int64_t i = 0; i < count; i++) {
        float number = x[i] / scale;
        number = number > 448.0f ? 448.0f : number < -448.0f ? -448.0f : number;
        x[i] = round_e4m3(number);
    }
    return scale;
}

/* Numbers that are bfloat16 already, two to a dword. */
static __attribute__((unused)) void join_pairs(const float *from, int64_t count, float *to) {
    uint16_t *out = (uint16_t *)to;
    for (int64_t i = 0; i < count; i++) out[i] = (uint16_t)(float_to_bits(from[i]) >> 16);
}

static void inputs_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    int64_t padded = j->w.padded_k;
    float *wide = herd_scratch(HERD_SCRATCH_TASK, (size_t)padded * 4);
    if (!wide) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int64_t row = index * j->rows_per_task; row < herd_min(j->m, (index + 1) * j->rows_per_task); row++) {
        widen_row(j->x + row * j->x_stride * (int64_t)herd_size(j->dtype), j->dtype, j->matrix->columns, j->k, padded, wide);
        if (j->matrix->codes == HERD_E4M3_INPUTS) j->scales[row] = to_e4m3(wide, padded, (float)j->matrix->bound);
        for (int64_t block = 0; block < j->num_blocks; block++) {
            int64_t begin = block * j->block_k, count = herd_min(j->block_k, padded - begin);
            float *to = j->blocks + (block * j->m + row) * LDA;
            if (j->wide || INPUTS_OF_DWORD == 1)
                memcpy(to, wide + begin, (size_t)count * 4);
            else
                join_pairs(wide + begin, count, to);
        }
    }
}

static int prepare(job *j) {
    int64_t most = j->wide ? LDA : LDA * INPUTS_OF_DWORD;
    j->block_k = j->w.whole ? most : most / j->w.group * j->w.group;
    j->num_blocks = herd_ceil(j->w.padded_k, j->block_k);
    int64_t dwords = j->num_blocks * j->m * LDA;
    j->blocks = herd_scratch(HERD_SCRATCH_CALL, (size_t)(dwords + j->m) * 4);
    if (!j->blocks) return HERD_NO_MEMORY;
    j->scales = j->blocks + dwords;
    j->rows_per_task = herd_max(1, 16384 / j->k);
    herd_pool_run(inputs_task, j, (uint32_t)herd_ceil(j->m, j->rows_per_task));
    return j->failed ? HERD_NO_MEMORY : HERD_OK;
}

/* ---- sums ---- */
/* The inputs' scales, and the weights' where one is a whole row's; then out with the sums. */
static void finish_panels(const job *j, int64_t row0, int64_t rows, int64_t panel0, int64_t panels, float *c) {
    for (int64_t p = 0; p < panels; p++) {
        const char *record = j->w.data + (panel0 + p) * j->w.panel_bytes;
        for (int64_t r = 0; r < rows; r++) {
            float *to = c + (p * rows + r) * HERD_PANEL;
            UNROLL for (int v = 0; v < HERD_PANEL; v += W) {
                vf sum = vf_load(to + v);
                if (j->w.whole) sum = vf_mul(sum, vf_load_as(record, v, j->w.scale_dtype));
                if (j->matrix->codes == HERD_E4M3_INPUTS) sum = vf_mul(sum, vf_set1(j->scales[row0 + r]));
                vf_store(to + v, sum);
            }
        }
    }
    finish_run(&j->to, row0, rows, panel0, panels, c);
}

/* Sums of a group go to c: alone where they are the whole row's, scaled and added up else. */
INLINE void add_group(const matrix_shape *w, const char *record, int first, vf sum, int column, float *c) {
    if (!w->whole) sum = vf_fma(sum, vf_load_as(record, column, w->scale_dtype), first ? vf_set1(0.0f) : vf_load(c + column));
    vf_store(c + column, sum);
}

#define ROW_VECTORS (HERD_PANEL / W)
#if HERD_LEVEL >= 2
#define SIDE_BY_SIDE 2
#define MOST_FEW 8 /* rows whose sums of a panel fit into registers */
#else
#define SIDE_BY_SIDE 1
#define MOST_FEW 1
#endif

/* acc goes on by a pair of k. */
INLINE vf by_pair(const int wide, vf acc, const float *x, vf pair) {
#if HERD_LEVEL == 3
    if (!wide) return dot_pair(acc, vf_set1(load_dword(x)), pair);
#endif
    if (wide) return vf_fma(vf_set1(x[1]), vf_odd(pair), vf_fma(vf_set1(x[0]), vf_even(pair), acc));
    return vf_fma(vf_set1(x[0]), vf_even(pair), vf_fma(vf_set1(x[1]), vf_odd(pair), acc));
}

/* c[p][r][32] = `rows` rows times `count` panels that follow each other; one of both numbers is 1. */
INLINE void few_rows(const int rows, const int count, const int wide, const job *j, int64_t panel, float *c) {
    const matrix_shape *w = &j->w;
    const int pair = wide ? 2 : 2 / INPUTS_OF_DWORD; /* dwords that two inputs take */
    const char *record = w->data + panel * w->panel_bytes;
    for (int64_t group = 0; group < w->padded_k; group += w->group, record += w->record) {
        vf acc[MOST_FEW][ROW_VECTORS];
        const char *b = record + w->header;
        UNROLL for (int o = 0; o < rows * count; o++)
            UNROLL for (int v = 0; v < ROW_VECTORS; v++) acc[o][v] = vf_set1(0.0f);
        for (int64_t k = group, end; k < group + w->group; k = end) {
            int64_t block = k / j->block_k;
            const float *x = j->blocks + block * j->m * LDA + k % j->block_k / 2 * pair;
            end = herd_min(group + w->group, (block + 1) * j->block_k);
            for (int64_t i = k; i < end; i += 4, b += 4 * HERD_PANEL, x += 2 * pair)
                UNROLL for (int p = 0; p < count; p++) {
                    const char *codes = b + p * w->panel_bytes;
                    UNROLL for (int line = 0; line < 2; line++) __builtin_prefetch(codes + CODES_AHEAD + 64 * line, 0, 3);
                    UNROLL for (int v = 0; v < ROW_VECTORS; v++) {
                        vf pairs[2];
                        decode(codes + v * W * 4, pairs);
                        UNROLL for (int r = 0; r < rows; r++) {
                            vf *to = &acc[p + r][v];
                            *to = by_pair(wide, by_pair(wide, *to, x + r * LDA, pairs[0]), x + r * LDA + pair, pairs[1]);
                        }
                    }
                }
        }
        UNROLL for (int p = 0; p < count; p++)
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int v = 0; v < ROW_VECTORS; v++)
                    add_group(w, record + p * w->panel_bytes, group == 0, acc[p + r][v], v * W, c + (p + r) * HERD_PANEL);
    }
}

static __attribute__((noinline)) void few_panels(const job *j, int64_t panel, int64_t count, float *c) {
    if (j->m == 1 && count == SIDE_BY_SIDE) {
        j->wide ? few_rows(1, SIDE_BY_SIDE, 1, j, panel, c) : few_rows(1, SIDE_BY_SIDE, 0, j, panel, c);
        return;
    }
    for (int64_t p = 0; p < count; p++, c += j->m * HERD_PANEL)
        switch (j->m * 2 + j->wide) {
#define ROWS_FP8(n)                                                     \
    case 2 * n: few_rows(n, 1, 0, j, panel + p, c); break;              \
    case 2 * n + 1: few_rows(n, 1, 1, j, panel + p, c); break;
            ROWS_FP8(1)
#if MOST_FEW >= 8
            ROWS_FP8(2) ROWS_FP8(3) ROWS_FP8(4) ROWS_FP8(5) ROWS_FP8(6) ROWS_FP8(7) ROWS_FP8(8)
#endif
#undef ROWS_FP8
        }
}

static void few_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t panel = index * j->per_task, end = herd_min(panel + j->per_task, j->w.panels);
    for (; panel < end; panel += 2) {
        float c[2 * MOST_FEW * HERD_PANEL];
        int64_t count = herd_min(2, end - panel);
        few_panels(j, panel, count, c);
        finish_panels(j, 0, j->m, panel, count, c);
    }
}

/* Codes of k inputs of a panel as gemm.h reads them: pairs [k/2][32], or float32 [k][32]. */
INLINE void decode_block(const int wide, const char *codes, int64_t k, float *to) {
    for (int64_t i = 0; i < k; i += 4, codes += 4 * HERD_PANEL, to += (wide ? 4 : 2) * HERD_PANEL) {
        UNROLL for (int line = 0; line < 2; line++) __builtin_prefetch(codes + CODES_AHEAD + 64 * line, 0, 3);
        UNROLL for (int v = 0; v < HERD_PANEL; v += W) {
            vf pairs[2];
            decode(codes + v * 4, pairs);
            UNROLL for (int half = 0; half < 2; half++) {
                if (wide) {
                    vf_store(to + 2 * half * HERD_PANEL + v, vf_even(pairs[half]));
                    vf_store(to + (2 * half + 1) * HERD_PANEL + v, vf_odd(pairs[half]));
                } else {
                    vf_store(to + half * HERD_PANEL + v, pairs[half]);
                }
            }
        }
    }
}

/* c[rows][32] goes on by k inputs from a, LDA dwords from row to row, and weights b of decode_block. `record` of their group, if not whole. */
static void multiply(const job *j, const float *a, const float *b, int64_t rows, int64_t k, const char *record, int first, float *c) {
    int64_t most = j->wide ? MR : MR_PAIR, tiles = herd_ceil(rows, most), steps = j->wide ? k : k / 2;
    enum mode mode = first || !j->w.whole ? START : CONTINUE;
    if (j->w.whole && !j->wide) {
        block_pair(rows, a, b, steps, c, mode, b);
        return;
    }
    for (int64_t tile = 0; tile < tiles; tile++) { /* rows shared out evenly, so that no tile is thin */
        int64_t from = tile * rows / tiles, count = (tile + 1) * rows / tiles - from;
        float group[MR * HERD_PANEL], *to = j->w.whole ? c + from * HERD_PANEL : group;
        if (j->wide)
            panel_f32((int)count, a + from * LDA, b, steps, to, HERD_PANEL, mode);
        else
            panel_pair((int)count, a + from * LDA, b, steps, to, HERD_PANEL, mode);
        if (j->w.whole) continue;
        for (int64_t r = 0; r < count; r++)
            UNROLL for (int v = 0; v < HERD_PANEL; v += W)
                add_group(&j->w, record, first, vf_load(group + r * HERD_PANEL + v), v, c + (from + r) * HERD_PANEL);
    }
}

static void block_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const matrix_shape *w = &j->w;
    int64_t task = index / j->row_blocks, row0 = (index % j->row_blocks) * j->rows_per_block;
    int64_t rows = herd_min(j->rows_per_block, j->m - row0);
    int64_t panel0 = task * j->per_task, panels = herd_min(j->per_task, w->panels - panel0);
    float *c = herd_scratch(HERD_SCRATCH_TASK, (size_t)(rows * panels + LDA) * HERD_PANEL * 4), *b = c + rows * panels * HERD_PANEL;
    if (!c) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    /* Few rows: a panel from end to end, as it lies in memory. Many: a block of inputs stays in the cache for all panels. */
    int few = rows <= FEW_ROWS;
    for (int64_t i = 0; i < panels * j->num_blocks; i++) {
        int64_t block = few ? i % j->num_blocks : i / panels, p = few ? i / j->num_blocks : i % panels;
        int64_t begin = block * j->block_k, end = herd_min(w->padded_k, begin + j->block_k), run = w->whole ? end - begin : w->group;
        const float *a = j->blocks + (block * j->m + row0) * LDA;
        for (int64_t k = begin; k < end; k += run, a += j->wide ? run : run / INPUTS_OF_DWORD) {
            const char *record = w->data + (panel0 + p) * w->panel_bytes + k / w->group * w->record;
            const char *codes = record + w->header + k % w->group * HERD_PANEL;
            j->wide ? decode_block(1, codes, run, b) : decode_block(0, codes, run, b);
            multiply(j, a, b, rows, run, record, k == 0, c + p * rows * HERD_PANEL);
        }
    }
    finish_panels(j, row0, rows, panel0, panels, c);
}

int ISA(herd_linear_fp8)(const void *x, int64_t x_stride, int64_t m, const herd_matrix *w, int64_t n, int64_t k, int dtype, int epilogue,
                         const void *residual, int64_t residual_stride, void *out, int64_t out_stride, int out_dtype) {
    if (m == 0 || n == 0) return HERD_OK;
    job j = {.x = x, .x_stride = x_stride, .m = m, .k = k, .dtype = dtype, .matrix = w, .w = shape_of(w, n, k, epilogue == HERD_SWIGLU),
             .wide = dtype == HERD_F32 && w->codes == HERD_E4M3,
             .to = {.dtype = dtype, .epilogue = epilogue, .out_dtype = out_dtype, .n = n, .residual = residual,
                    .residual_stride = residual_stride, .out = out, .out_stride = out_stride}};
    int status = prepare(&j);
    if (status) return status;
    if (m <= MOST_FEW) {
        j.per_task = share_panels(j.w.panels, j.w.panel_bytes, j.w.panels + 1);
        herd_pool_run(few_task, &j, (uint32_t)herd_ceil(j.w.panels, j.per_task));
        return HERD_OK;
    }
    j.row_blocks = herd_ceil(m, ROW_BLOCK);
    j.rows_per_block = herd_ceil(m, j.row_blocks);
    j.per_task = share_panels(j.w.panels, j.w.padded_k * HERD_PANEL * herd_max(1, herd_min(m / 8, 4)), GROUP);
    herd_pool_run(block_task, &j, (uint32_t)(herd_ceil(j.w.panels, j.per_task) * j.row_blocks));
    return j.failed ? HERD_NO_MEMORY : HERD_OK;
}
