/* rms_norm: round(round(x * rsqrt(mean(x^2) + eps)) * weight), in float32, with an addition to x before it; and its gradient.
   Sums over a row run in 16 logical lanes, each one chain, added by halves: one order for every row. */
#include "rows.h"

#define MIN_COLUMNS 256

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

ROW_TASK(norm_task, job, norm_row)

int ISA(herd_rms_norm)(void *x, int64_t x_stride, const void *delta, int64_t delta_stride, const void *weight, double eps, int64_t m,
                       int64_t d, int dtype, void *out, int64_t out_stride) {
    job j = {.x = x, .delta = delta, .weight = weight, .out = out, .x_stride = x_stride, .delta_stride = delta_stride,
             .out_stride = out_stride, .m = m, .d = d, .eps = eps, .dtype = dtype};
    j.rows_per_task = rows_of(d);
    herd_pool_run(norm_task, &j, (uint32_t)herd_ceil(m, j.rows_per_task));
    return HERD_OK;
}

/* With n = x r, r = rsqrt(mean(x^2) + eps) and g = grad * weight: dx = r (g - n mean(g n)); dweight = sum over rows of grad * n. */
typedef struct {
    const char *x, *weight, *grad;
    char *x_grad;
    float *partial, *weight_grad;
    int64_t m, d;
    double eps;
    int dtype;
} gradient;

INLINE void add_lanes(vf *squares, vf *dots, int v, vf x, vf g) {
    squares[v] = vf_fma(x, x, squares[v]);
    dots[v] = vf_fma(g, x, dots[v]);
}

INLINE void gradient_row(const gradient *j, int64_t row, float *partial, const int dtype) {
    int64_t at = row * j->d * (int64_t)herd_size(dtype), d = j->d, whole = d / 16 * 16, i;
    const char *x = j->x + at, *grad = j->grad + at, *weight = j->weight;
    char *out = j->x_grad + at;
    vf squares[16 / W], dots[16 / W];
    UNROLL for (int v = 0; v < 16 / W; v++) squares[v] = dots[v] = vf_set1(0.0f);
    for (i = 0; i < whole; i += 16)
        UNROLL for (int v = 0; v < 16 / W; v++)
            add_lanes(squares, dots, v, vf_load_as(x, i + v * W, dtype),
                      vf_mul(vf_load_as(grad, i + v * W, dtype), vf_load_as(weight, i + v * W, dtype)));
    if (whole < d) { /* the rest, padded with zeros */
        float rest[16] = {0}, weighted[16] = {0};
        for (i = whole; i < d; i++) {
            rest[i - whole] = load_as(x, i, dtype);
            weighted[i - whole] = load_as(grad, i, dtype) * load_as(weight, i, dtype);
        }
        UNROLL for (int v = 0; v < 16 / W; v++) add_lanes(squares, dots, v, vf_load(rest + v * W), vf_load(weighted + v * W));
    }
    float r = 1.0f / sqrtf(sum_lanes(squares) / (float)d + (float)j->eps), mean = r * sum_lanes(dots) / (float)d;
    vf scale = vf_set1(r), share = vf_set1(mean);
    for (i = 0; i + W <= d; i += W) {
        vf n = vf_mul(vf_load_as(x, i, dtype), scale), g = vf_load_as(grad, i, dtype);
        vf_store_as(out, i, dtype, vf_mul(scale, vf_sub(vf_mul(g, vf_load_as(weight, i, dtype)), vf_mul(n, share))));
        vf_store(partial + i, vf_fma(g, n, vf_load(partial + i)));
    }
    for (; i < d; i++) {
        float n = load_as(x, i, dtype) * r, g = load_as(grad, i, dtype);
        store_as(out, i, dtype, r * (g * load_as(weight, i, dtype) - n * mean));
        partial[i] += g * n;
    }
}

static void gradient_task(void *job_pointer, uint32_t index) {
    const gradient *j = job_pointer;
    float *partial = j->partial + index * j->d;
    int64_t end = herd_min(j->m, (index + 1) * (int64_t)HERD_GRADIENT_ROWS);
    memset(partial, 0, (size_t)j->d * sizeof *partial);
    for (int64_t row = index * (int64_t)HERD_GRADIENT_ROWS; row < end; row++) {
        if (j->dtype == HERD_F32)
            gradient_row(j, row, partial, HERD_F32);
        else
            gradient_row(j, row, partial, HERD_BF16);
    }
}

static void weight_task(void *job_pointer, uint32_t index) {
    const gradient *j = job_pointer;
    int64_t begin = index * (int64_t)MIN_COLUMNS, columns = herd_min(j->d - begin, MIN_COLUMNS);
    float *sum = j->weight_grad + begin;
    memset(sum, 0, (size_t)columns * sizeof *sum);
    for (int64_t run = 0; run < herd_ceil(j->m, HERD_GRADIENT_ROWS); run++)
        for (int64_t i = 0; i < columns; i++) sum[i] += j->partial[run * j->d + begin + i];
}

int ISA(herd_rms_norm_gradient)(const void *x, const void *weight, const void *grad, double eps, int64_t m, int64_t d, int dtype,
                                void *x_grad, float *partial, float *weight_grad) {
    gradient j = {.x = x, .weight = weight, .grad = grad, .x_grad = x_grad, .partial = partial, .weight_grad = weight_grad,
                  .m = m, .d = d, .eps = eps, .dtype = dtype};
    herd_pool_run(gradient_task, &j, (uint32_t)herd_ceil(m, HERD_GRADIENT_ROWS));
    herd_pool_run(weight_task, &j, (uint32_t)herd_ceil(d, MIN_COLUMNS));
    return HERD_OK;
}
