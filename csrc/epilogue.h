/* The two ends of a product: inputs widened; sums rounded, a residual added or a gate passed, stored. Shared by linear.c, qlinear.c and fp8.c. */
#ifndef HERD_EPILOGUE_H
#define HERD_EPILOGUE_H

#include "simd.h"

typedef struct {
    int dtype, epilogue, out_dtype;
    int64_t n;
    const char *residual;
    int64_t residual_stride;
    char *out;
    int64_t out_stride;
} sink;

/* `rows` x 32 sums of panel p to the output. */
INLINE void finish_as(const sink *j, int64_t row0, int64_t rows, int64_t panel, const float *c, const float *c_up, const int dtype,
                      const int epilogue, const int out_dtype) {
    int64_t column = panel * HERD_PANEL, width = herd_min(HERD_PANEL, j->n - column);
    const int last = out_dtype == dtype ? HERD_F32 : dtype; /* what is left to round before the store, which rounds too */
    if (width <= 0) return;
    for (int64_t r = 0; r < rows; r++, c += HERD_PANEL) {
        int64_t at = (row0 + r) * j->out_stride + column, from = (row0 + r) * j->residual_stride + column;
        vf sum[HERD_PANEL / W];
        UNROLL for (int v = 0; v < HERD_PANEL / W; v++) {
            sum[v] = vf_load(c + v * W);
            if (epilogue == HERD_SWIGLU) {
                vf gate = vf_round_as(vf_silu(vf_round_as(sum[v], dtype)), dtype);
                sum[v] = vf_mul(gate, vf_round_as(vf_load(c_up + r * HERD_PANEL + v * W), dtype));
            }
            sum[v] = vf_round_as(sum[v], epilogue == HERD_ADD ? dtype : last);
        }
        if (width == HERD_PANEL) {
            UNROLL for (int v = 0; v < HERD_PANEL / W; v++) {
                if (epilogue == HERD_ADD) sum[v] = vf_round_as(vf_add(vf_load_as(j->residual, from + v * W, dtype), sum[v]), last);
                vf_store_as(j->out, at + v * W, out_dtype, sum[v]);
            }
            continue;
        }
        float lanes[HERD_PANEL];
        UNROLL for (int v = 0; v < HERD_PANEL / W; v++) vf_store(lanes + v * W, sum[v]);
        for (int64_t i = 0; i < width; i++) {
            float value = lanes[i];
            if (epilogue == HERD_ADD) value = round_as(load_as(j->residual, from + i, dtype) + value, dtype);
            store_as(j->out, at + i, out_dtype, value);
        }
    }
}

static void finish(const sink *j, int64_t row0, int64_t rows, int64_t panel, const float *c, const float *c_up) {
#define FINISH(dtype, epilogue, out) finish_as(j, row0, rows, panel, c, c_up, dtype, epilogue, out)
#define EPILOGUES(dtype, out)                                             \
    switch (j->epilogue) {                                                \
    case HERD_STORE: FINISH(dtype, HERD_STORE, out); break;               \
    case HERD_ADD: FINISH(dtype, HERD_ADD, out); break;                   \
    default: FINISH(dtype, HERD_SWIGLU, out);                             \
    }
    if (j->dtype == HERD_F32)
        EPILOGUES(HERD_F32, HERD_F32)
    else if (j->out_dtype == HERD_BF16)
        EPILOGUES(HERD_BF16, HERD_BF16)
    else
        EPILOGUES(HERD_BF16, HERD_F32)
}

/* The sums c[panel][rows][32] of panels that follow each other, gates and what they open in turns. */
static __attribute__((unused)) void finish_run(const sink *j, int64_t row0, int64_t rows, int64_t panel0, int64_t panels, const float *c) {
    int64_t one = rows * HERD_PANEL;
    for (int64_t p = 0; p < panels; p += j->epilogue == HERD_SWIGLU ? 2 : 1) {
        if (j->epilogue == HERD_SWIGLU)
            finish(j, row0, rows, (panel0 + p) / 2, c + p * one, c + (p + 1) * one);
        else
            finish(j, row0, rows, panel0 + p, c + p * one, NULL);
    }
}

/* k numbers of a row of inputs as float32, in the order of the stored columns, and zeros up to `padded`. */
static __attribute__((unused)) void widen_row(const char *from, int dtype, const int32_t *columns, int64_t k, int64_t padded, float *to) {
    int64_t i = 0;
    if (columns) {
        for (; i < k; i++) to[i] = load_as(from, columns[i], dtype);
    } else {
        for (; i + W <= k; i += W) vf_store(to + i, vf_load_as(from, i, dtype));
        for (; i < k; i++) to[i] = load_as(from, i, dtype);
    }
    for (; i < padded; i++) to[i] = 0.0f;
}

#endif
