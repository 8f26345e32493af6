/* linear: out = x w^T over packed weights, one row at the speed of memory, many at the speed of the multipliers.

   One row: threads take runs of panels; each panel's weights stream past registers once, two panels side by side.
   Float32 sums are cut into chains of LDA steps, added up in order, which loses less than one chain of thousands; bfloat16 rounds away more
   than either does.
   More rows: x is copied into blocks A[k block][row][LDA] by all threads, then tasks are (block of up to ROW_BLOCK rows) x (up to GROUP
   panels); within a task a block of K of A stays in the L2 cache and one of B in L1. Sums of a task live in its scratch as float32 until
   the last block of K, then go through the epilogue. */
#include "epilogue.h"
#include "gemm.h"
#include "share.h"

#define ROW_BLOCK 256
#define GROUP 4
#define FEW_ROWS 64
#define ROW_AHEAD 4096

typedef struct {
    const char *x;
    int64_t x_stride, m, k;
    const float *w;
    int dtype, epilogue;
    sink to;
    int64_t steps;             /* dwords of K in a panel */
    int64_t panels, per_task;  /* panels of w */
    const float *a;            /* one row: prepared x; more: blocks */
    float *blocks;
    int64_t block_steps, num_blocks, row_blocks, rows_per_block;
    int64_t rows_per_pack;
    int failed;
} job;

/* ---- one row ---- */
#define ROW_VECTORS (HERD_PANEL / W)
#if HERD_LEVEL == 0
#define SIDE_BY_SIDE 1
#else
#define SIDE_BY_SIDE 2
#endif

/* c[p][32] = x times `count` panels, `steps` dwords each, that follow each other. */
INLINE void row_f32(const int count, const float *x, const float *b, int64_t steps, float *c) {
    vf acc[SIDE_BY_SIDE][ROW_VECTORS];
    for (int64_t block = 0; block < steps; block += LDA) {
        UNROLL for (int p = 0; p < count; p++)
            UNROLL for (int v = 0; v < ROW_VECTORS; v++) acc[p][v] = vf_set1(0.0f);
        for (int64_t i = block; i < herd_min(steps, block + LDA); i++, b += HERD_PANEL) {
            vf a = vf_set1(x[i]);
            UNROLL for (int p = 0; p < count; p++) {
                fetch_ahead(b + p * steps * HERD_PANEL, ROW_AHEAD, HERD_PANEL);
                UNROLL for (int v = 0; v < ROW_VECTORS; v++) acc[p][v] = vf_fma(a, vf_load(b + p * steps * HERD_PANEL + v * W), acc[p][v]);
            }
        }
        UNROLL for (int p = 0; p < count; p++)
            UNROLL for (int v = 0; v < ROW_VECTORS; v++) {
                float *to = c + p * HERD_PANEL + v * W;
                vf_store(to, block ? vf_add(vf_load(to), acc[p][v]) : acc[p][v]);
            }
    }
}
INLINE void row_pair(const int count, const float *x, const float *b, int64_t steps, float *c) {
    vf acc[SIDE_BY_SIDE][ROW_VECTORS];
    UNROLL for (int p = 0; p < count; p++)
        UNROLL for (int v = 0; v < ROW_VECTORS; v++) acc[p][v] = vf_set1(0.0f);
    for (int64_t i = 0; i < steps; i++, b += HERD_PANEL) {
#if HERD_LEVEL == 3
        vf a = vf_set1(load_dword(x + i));
#else
        vf a_even = vf_set1(x[2 * i]), a_odd = vf_set1(x[2 * i + 1]);
#endif
        UNROLL for (int p = 0; p < count; p++) {
            fetch_ahead(b + p * steps * HERD_PANEL, ROW_AHEAD, HERD_PANEL);
            UNROLL for (int v = 0; v < ROW_VECTORS; v++) {
                vf pair = vf_load(b + p * steps * HERD_PANEL + v * W);
#if HERD_LEVEL == 3
                acc[p][v] = dot_pair(acc[p][v], a, pair);
#else
                acc[p][v] = vf_fma(a_even, vf_even(pair), vf_fma(a_odd, vf_odd(pair), acc[p][v]));
#endif
            }
        }
    }
    UNROLL for (int p = 0; p < count; p++)
        UNROLL for (int v = 0; v < ROW_VECTORS; v++) vf_store(c + p * HERD_PANEL + v * W, acc[p][v]);
}

static void row_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t panel = index * j->per_task, end = herd_min(panel + j->per_task, j->panels);
    while (panel < end) {
        float c[2 * HERD_PANEL];
        const float *b = j->w + panel * j->steps * HERD_PANEL;
        int64_t count = herd_min(2, end - panel);
        for (int64_t done = 0; done < count; done += SIDE_BY_SIDE, b += SIDE_BY_SIDE * j->steps * HERD_PANEL) {
            float *to = c + done * HERD_PANEL;
            int both = SIDE_BY_SIDE == 2 && count == 2;
            if (j->dtype == HERD_F32)
                both ? row_f32(SIDE_BY_SIDE, j->a, b, j->steps, to) : row_f32(1, j->a, b, j->steps, to);
            else
                both ? row_pair(SIDE_BY_SIDE, j->a, b, j->steps, to) : row_pair(1, j->a, b, j->steps, to);
        }
        if (j->epilogue == HERD_SWIGLU) {
            finish(&j->to, 0, 1, panel / 2, c, c + HERD_PANEL);
        } else {
            for (int64_t p = 0; p < count; p++) finish(&j->to, 0, 1, panel + p, c + p * HERD_PANEL, NULL);
        }
        panel += count;
    }
}

static int one_row(job *j) {
    int ready = j->dtype == HERD_F32 || (PAIR_A == 1 && j->k % 2 == 0);
    if (ready) {
        j->a = (const float *)j->x;
    } else {
        float *a = herd_scratch(HERD_SCRATCH_CALL, (size_t)(j->k + 1) * 4);
        if (!a) return HERD_NO_MEMORY;
        fill_row(j->x, j->k, j->dtype, a);
        j->a = a;
    }
    j->per_task = share_panels(j->panels, j->steps * HERD_PANEL * 4, j->panels + 1);
    herd_pool_run(row_task, j, (uint32_t)herd_ceil(j->panels, j->per_task));
    return HERD_OK;
}

/* ---- many rows ---- */
static int64_t block_elements(int dtype) { return dtype == HERD_F32 ? LDA : 2 * BLOCK_PAIRS; }

static void pack_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t step = block_elements(j->dtype), size = (int64_t)herd_size(j->dtype);
    for (int64_t row = index * j->rows_per_pack; row < herd_min(j->m, (index + 1) * j->rows_per_pack); row++)
        for (int64_t block = 0; block < j->num_blocks; block++)
            fill_row(j->x + (row * j->x_stride + block * step) * size, herd_min(step, j->k - block * step), j->dtype,
                     j->blocks + (block * j->m + row) * LDA);
}

static void block_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    int64_t group = index / j->row_blocks, row0 = (index % j->row_blocks) * j->rows_per_block;
    int64_t rows = herd_min(j->rows_per_block, j->m - row0);
    int64_t panel0 = group * j->per_task, panels = herd_min(j->per_task, j->panels - panel0);
    int64_t tiles = herd_ceil(rows, MR);
    float *c = herd_scratch(HERD_SCRATCH_TASK, (size_t)(rows * panels) * HERD_PANEL * 4);
    if (!c) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    /* Few rows: a panel from end to end, as it lies in memory. Many: a block of A stays in the cache for all panels. */
    int few = rows <= FEW_ROWS;
    for (int64_t i = 0; i < panels * j->num_blocks; i++) {
        int64_t block = few ? i % j->num_blocks : i / panels, p = few ? i / j->num_blocks : i % panels;
        int64_t step0 = block * j->block_steps, steps = herd_min(j->block_steps, j->steps - step0);
        const float *b = j->w + ((panel0 + p) * j->steps + step0) * HERD_PANEL, *a = j->a + (block * j->m + row0) * LDA;
        float *to = c + p * rows * HERD_PANEL;
        if (j->dtype == HERD_BF16) {
            block_pair(rows, a, b, steps, to, block ? CONTINUE : START, b + (few ? steps : j->steps) * HERD_PANEL);
            continue;
        }
        for (int64_t tile = 0; tile < tiles; tile++) { /* rows shared out evenly, so that no tile is thin */
            int64_t from = tile * rows / tiles, count = (tile + 1) * rows / tiles - from;
            panel_f32((int)count, a + from * LDA, b, steps, to + from * HERD_PANEL, HERD_PANEL, block ? ADD : START);
        }
    }
    finish_run(&j->to, row0, rows, panel0, panels, c);
}

static int many_rows(job *j) {
    j->block_steps = j->dtype == HERD_F32 ? LDA : BLOCK_PAIRS;
    j->num_blocks = herd_ceil(j->steps, j->block_steps);
    j->blocks = herd_scratch(HERD_SCRATCH_CALL, (size_t)(j->num_blocks * j->m) * LDA * 4);
    if (!j->blocks) return HERD_NO_MEMORY;
    j->a = j->blocks;
    j->rows_per_pack = herd_max(1, MIN_BYTES / (j->k * 4));
    herd_pool_run(pack_task, j, (uint32_t)herd_ceil(j->m, j->rows_per_pack));
    j->row_blocks = herd_ceil(j->m, ROW_BLOCK);
    j->rows_per_block = herd_ceil(j->m, j->row_blocks);
    j->per_task = share_panels(j->panels, j->steps * HERD_PANEL * 4 * herd_max(1, herd_min(j->m / 8, 4)), GROUP);
    herd_pool_run(block_task, j, (uint32_t)(herd_ceil(j->panels, j->per_task) * j->row_blocks));
    return j->failed ? HERD_NO_MEMORY : HERD_OK;
}

int ISA(herd_linear)(const void *x, int64_t x_stride, int64_t m, const void *w, int64_t n, int64_t k, int dtype, int epilogue,
                     const void *residual, int64_t residual_stride, void *out, int64_t out_stride, int out_dtype) {
    job j = {.x = x, .x_stride = x_stride, .m = m, .k = k, .w = w, .dtype = dtype, .epilogue = epilogue,
             .to = {.dtype = dtype, .epilogue = epilogue, .out_dtype = out_dtype, .n = n, .residual = residual,
                    .residual_stride = residual_stride, .out = out, .out_stride = out_stride}};
    j.steps = dtype == HERD_F32 ? k : (k + 1) / 2;
    j.panels = herd_ceil(n, HERD_PANEL) * (epilogue == HERD_SWIGLU ? 2 : 1);
    if (m == 0 || n == 0) return HERD_OK;
    return m == 1 ? one_row(&j) : many_rows(&j);
}

/* ---- packing ---- */
typedef struct {
    const char *src;
    int64_t src_stride, rows, k, row0, panel_step, panel_offset, first_panel, steps;
    int dtype;
    float *dst;
} packing;

/* One panel of the destination: 32 rows at once where all of them are whole dwords, else row by row. */
static void weights_task(void *job_pointer, uint32_t index) {
    const packing *j = job_pointer;
    int64_t panel = j->first_panel + index, begin = panel * HERD_PANEL - j->row0, size = (int64_t)herd_size(j->dtype);
    float *dst = j->dst + (panel * j->panel_step + j->panel_offset) * j->steps * HERD_PANEL;
    int whole = begin >= 0 && begin + HERD_PANEL <= j->rows && (j->dtype == HERD_F32 || j->k % 2 == 0);
    if (whole) {
        const float *rows[HERD_PANEL];
        for (int i = 0; i < HERD_PANEL; i++) rows[i] = (const float *)(j->src + (begin + i) * j->src_stride * size);
        for (int64_t k = 0; k < j->steps; k += 16) {
            pack_half(rows, k, herd_min(16, j->steps - k), dst);
            pack_half(rows + 16, k, herd_min(16, j->steps - k), dst + 16);
        }
        return;
    }
    for (int64_t i = 0; i < HERD_PANEL; i++) {
        int64_t row = begin + i;
        if (row < 0 || row >= j->rows) continue;
        const char *from = j->src + row * j->src_stride * size;
        for (int64_t k = 0; k < j->k; k++) {
            if (j->dtype == HERD_F32)
                memcpy(dst + k * HERD_PANEL + i, from + 4 * k, 4);
            else
                memcpy((uint16_t *)(dst + k / 2 * HERD_PANEL + i) + k % 2, from + 2 * k, 2);
        }
    }
}

int ISA(herd_pack)(const void *src, int64_t src_stride, int64_t rows, int64_t k, int dtype, void *dst, int64_t row0, int64_t panel_step,
                   int64_t panel_offset) {
    packing j = {.src = src, .src_stride = src_stride, .rows = rows, .k = k, .row0 = row0, .panel_step = panel_step,
                 .panel_offset = panel_offset, .dtype = dtype, .dst = dst};
    j.steps = dtype == HERD_F32 ? k : (k + 1) / 2;
    j.first_panel = row0 / HERD_PANEL;
    if (rows > 0) herd_pool_run(weights_task, &j, (uint32_t)(herd_ceil(row0 + rows, HERD_PANEL) - j.first_panel));
    return HERD_OK;
}
