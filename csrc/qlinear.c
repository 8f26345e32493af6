/* Products over quantised matrices: inputs become int8 once, then integer sums meet scales.

   Stored: panels of 32 outputs, each a row of records, one for a group of K that shares a scale:
       32 scales (float32, float16 or bfloat16), 32 zero points (bytes, where there are any), the values of the group.
   Values are unsigned bytes, four k of an output side by side [group/4][32][4], or nibbles, [group/8][32][4 bytes]: a byte holds k in its
   low half and k + 4 in its high one. A value means scale * (value - zero); zero is 8 or 128 where none is stored.

   A row of inputs has one scale (`input_group` 0), or one for each input_group of k: largest magnitude / 127, each step one IEEE operation.
   A segment is the run of k that shares both scales: within it sums are integers, exact. Segments are taken up in ascending order,
       acc = fma(float(sum), scale, acc), where scale is the weights' or, with input groups, round(weights' * inputs'),
   and one scale of a whole row multiplies at the end. So no result depends on rows, threads, tiles or level; of the latter only `scalar`
   has no fused multiply-add.

   One row streams panels past registers. Many rows: inputs lie in blocks [block of K][row][LDQ], tasks are rows x panels as in linear.c. */
#include "epilogue.h"
#include "qdot.h"
#include "share.h"
#include "qtiles.h"

#define ROW_BLOCK 256
#define GROUP 4
#define FEW_ROWS 64
#define ROW_AHEAD 8192

typedef struct {
    const char *x;
    int64_t x_stride, m, k, rows_per_task;
    int dtype;
    const herd_matrix *matrix;
    matrix_shape w;
    inputs in;
    int64_t per_task, row_blocks, rows_per_block;
    sink to;
    int failed;
} job;

/* ---- inputs ---- */
#define MAGIC 12582912.0f /* 1.5 * 2^23: what is added to it loses its fraction */

/* `count` numbers to bytes of a scale; returns the sum of the bytes. What is not finite has the scale NaN. As quantise.h, with a sum. */
static int32_t quantise_group(const float *x, int64_t count, int8_t *out, float scale) {
    int32_t total = 0;
    if (!(scale > 0.0f)) {
        memset(out, 0, (size_t)count);
        return 0;
    }
    for (int64_t i = 0; i < count; i++) {
        float number = x[i] / scale;
        number = number > 127.0f ? 127.0f : number < -127.0f ? -127.0f : number;
        int32_t whole = (int32_t)(float_to_bits(number + MAGIC) - float_to_bits(MAGIC));
        out[i] = (int8_t)whole;
        total += whole;
    }
    return total;
}

static float scale_for(const float *x, int64_t count) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = float_to_bits(x[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most >= 0x7f800000 ? bits_to_float(0x7fc00000) : bits_to_float(most) / 127.0f;
}

static void inputs_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const matrix_shape *w = &j->w;
    const int32_t unit = w->zeros ? 1 : w->bits == 8 ? 128 - BYTE_BIAS : 8;
    float *wide = herd_scratch(HERD_SCRATCH_TASK, (size_t)w->padded_k * 4);
    if (!wide) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int64_t row = index * j->rows_per_task; row < herd_min(j->m, (index + 1) * j->rows_per_task); row++) {
        float *scales = j->in.scales + row * (w->per_token ? 1 : w->num_segments);
        int32_t *offsets = j->in.offsets + row * w->num_segments;
        widen_row(j->x + row * j->x_stride * (int64_t)herd_size(j->dtype), j->dtype, j->matrix->columns, j->k, w->padded_k, wide);
        if (w->per_token) scales[0] = scale_for(wide, j->k);
        for (int64_t s = 0; s < w->num_segments; s++) {
            int64_t k0 = s * w->segment, count = herd_min(w->segment, w->padded_k - k0), parts = 0;
            float scale = w->per_token ? scales[0] : (scales[s] = scale_for(wide + k0, count));
            int32_t sum = 0;
            while (parts < count) { /* a segment may be a whole row, which lies in several blocks */
                int64_t at = k0 + parts, block = at / w->block_k, inside = at % w->block_k;
                int64_t run = herd_min(count - parts, w->block_k - inside);
                sum += quantise_group(wide + at, run, j->in.blocks + (block * j->m + row) * LDQ + inside, scale);
                parts += run;
            }
            offsets[s] = -sum * unit;
        }
    }
}

static int prepare(job *j) {
    const matrix_shape *w = &j->w;
    int64_t scales = j->m * (w->per_token ? 1 : w->num_segments), offsets = j->m * w->num_segments;
    size_t bytes = (size_t)(w->num_blocks * j->m) * LDQ;
    char *memory = herd_scratch(HERD_SCRATCH_CALL, bytes + (size_t)(scales + offsets) * 4 + 64);
    if (!memory) return HERD_NO_MEMORY;
    j->in = (inputs){.blocks = (int8_t *)memory, .scales = (float *)(memory + bytes), .offsets = (int32_t *)(memory + bytes) + scales, .m = j->m};
    j->rows_per_task = herd_max(1, 16384 / j->k);
    herd_pool_run(inputs_task, j, (uint32_t)herd_ceil(j->m, j->rows_per_task));
    return j->failed ? HERD_NO_MEMORY : HERD_OK;
}

/* ---- sums of some rows by some panels, and what becomes of them ---- */
static void finish_panels(const job *j, int64_t row0, int64_t rows, int64_t panel0, int64_t panels, float *c) {
    if (j->w.per_token)
        for (int64_t p = 0; p < panels; p++)
            for (int64_t r = 0; r < rows; r++) {
                float *to = c + (p * rows + r) * HERD_PANEL;
                UNROLL for (int v = 0; v < HERD_PANEL; v += W) vf_store(to + v, vf_mul(vf_load(to + v), vf_set1(j->in.scales[row0 + r])));
            }
    finish_run(&j->to, row0, rows, panel0, panels, c);
}

static void row_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t panel = index * j->per_task, end = herd_min(panel + j->per_task, j->w.panels);
    for (; panel < end; panel += 2) {
        float c[2 * HERD_PANEL];
        int64_t count = herd_min(2, end - panel);
        for (int64_t p = 0; p < count; p++)
            for (int64_t block = 0; block < j->w.num_blocks; block++)
                panel_block(&j->w, &j->in, 0, 1, block, panel + p, ROW_AHEAD, c + p * HERD_PANEL);
        finish_panels(j, 0, 1, panel, count, c);
    }
}

static void block_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const matrix_shape *w = &j->w;
    int64_t group = index / j->row_blocks, row0 = (index % j->row_blocks) * j->rows_per_block;
    int64_t rows = herd_min(j->rows_per_block, j->m - row0);
    int64_t panel0 = group * j->per_task, panels = herd_min(j->per_task, w->panels - panel0);
    float *c = herd_scratch(HERD_SCRATCH_TASK, (size_t)(rows * panels) * HERD_PANEL * 4);
    if (!c) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    tiles_begin(rows);
    /* Few rows: a panel from end to end, as it lies in memory. Many: a block of inputs stays in the cache for all panels. */
    int few = rows <= FEW_ROWS;
    for (int64_t i = 0; i < panels * w->num_blocks; i++) {
        int64_t block = few ? i % w->num_blocks : i / panels, p = few ? i / w->num_blocks : i % panels;
        block_of_rows(w, &j->in, row0, rows, block, panel0 + p, c + p * rows * HERD_PANEL);
    }
    tiles_end(rows);
    finish_panels(j, row0, rows, panel0, panels, c);
}

int ISA(herd_linear_quantised)(const void *x, int64_t x_stride, int64_t m, const herd_matrix *w, int64_t n, int64_t k, int dtype,
                               int epilogue, const void *residual, int64_t residual_stride, void *out, int64_t out_stride, int out_dtype) {
    if (m == 0 || n == 0) return HERD_OK;
    job j = {.x = x, .x_stride = x_stride, .m = m, .k = k, .dtype = dtype, .matrix = w, .w = shape_of(w, n, k, epilogue == HERD_SWIGLU),
             .to = {.dtype = dtype, .epilogue = epilogue, .out_dtype = out_dtype, .n = n, .residual = residual,
                    .residual_stride = residual_stride, .out = out, .out_stride = out_stride}};
    int status = prepare(&j);
    if (status) return status;
    if (m == 1) {
        j.per_task = share_panels(j.w.panels, j.w.panel_bytes, j.w.panels + 1);
        herd_pool_run(row_task, &j, (uint32_t)herd_ceil(j.w.panels, j.per_task));
        return HERD_OK;
    }
    j.row_blocks = herd_ceil(m, ROW_BLOCK);
    j.rows_per_block = herd_ceil(m, j.row_blocks);
    j.per_task = share_panels(j.w.panels, j.w.padded_k * HERD_PANEL * herd_max(1, herd_min(m / 8, 4)), GROUP);
    herd_pool_run(block_task, &j, (uint32_t)(herd_ceil(j.w.panels, j.per_task) * j.row_blocks));
    return j.failed ? HERD_NO_MEMORY : HERD_OK;
}
