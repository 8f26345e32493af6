/* rms_norm: round(round(x * rsqrt(mean(x^2) + eps)) * weight), in float32, with an addition to x before it.
   The sum of squares runs in 16 logical lanes, each one chain, added by halves: one order for every row. */
#include "simd.h"

#define MIN_ELEMENTS 16384 /* elements of a task */

typedef struct {
    char *x;
    const char *delta, *weight;
    char *out;
    int64_t x_stride, delta_stride, out_stride, m, d, rows_per_task;
    double eps;
    int dtype;
} job;

INLINE void norm_row(const job *j, int64_t row, const int dtype) {
    int64_t size = (int64_t)herd_size(dtype), i = 0, d = j->d;
    char *x = j->x + row * j->x_stride * size, *out = j->out + row * j->out_stride * size;
    const char *delta = j->delta ? j->delta + row * j->delta_stride * size : NULL;
    vf squares[16 / W];
    UNROLL for (int v = 0; v < 16 / W; v++) squares[v] = vf_set1(0.0f);
    for (; i + 16 <= d; i += 16)
        UNROLL for (int v = 0; v < 16 / W; v++) {
            vf a = vf_load_as(x, i + v * W, dtype);
            if (delta) {
                a = vf_round_as(vf_add(a, vf_load_as(delta, i + v * W, dtype)), dtype);
                vf_store_as(x, i + v * W, dtype, a);
            }
            squares[v] = vf_fma(a, a, squares[v]);
        }
    if (i < d) { /* the rest, padded with zeros */
        float rest[16] = {0};
        for (int64_t l = 0; i + l < d; l++) {
            float a = load_as(x, i + l, dtype);
            if (delta) {
                a = round_as(a + load_as(delta, i + l, dtype), dtype);
                store_as(x, i + l, dtype, a);
            }
            rest[l] = a;
        }
        UNROLL for (int v = 0; v < 16 / W; v++) {
            vf a = vf_load(rest + v * W);
            squares[v] = vf_fma(a, a, squares[v]);
        }
    }
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)d + (float)j->eps);
    for (i = 0; i + W <= d; i += W) {
        vf a = vf_round_as(vf_mul(vf_load_as(x, i, dtype), vf_set1(scale)), dtype);
        vf_store_as(out, i, dtype, vf_mul(a, vf_load_as(j->weight, i, dtype)));
    }
    for (; i < d; i++) store_as(out, i, dtype, round_as(load_as(x, i, dtype) * scale, dtype) * load_as(j->weight, i, dtype));
}

static void norm_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t end = herd_min(j->m, (index + 1) * j->rows_per_task);
    for (int64_t row = index * j->rows_per_task; row < end; row++) {
        if (j->dtype == HERD_F32)
            norm_row(j, row, HERD_F32);
        else
            norm_row(j, row, HERD_BF16);
    }
}

int ISA(herd_rms_norm)(void *x, int64_t x_stride, const void *delta, int64_t delta_stride, const void *weight, double eps, int64_t m,
                       int64_t d, int dtype, void *out, int64_t out_stride) {
    job j = {.x = x, .delta = delta, .weight = weight, .out = out, .x_stride = x_stride, .delta_stride = delta_stride,
             .out_stride = out_stride, .m = m, .d = d, .eps = eps, .dtype = dtype};
    j.rows_per_task = herd_max(1, MIN_ELEMENTS / herd_max(1, d));
    herd_pool_run(norm_task, &j, (uint32_t)herd_ceil(m, j.rows_per_task));
    return HERD_OK;
}
