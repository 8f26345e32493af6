/* softmax of causal scores, and its gradient: what training does between the products of attention, in one pass over each row.

       p[j] = exp(s (x[j] - m)) / sum over allowed keys, 0 for later keys;  dx[j] = s p[j] (dp[j] - delta)

   Rows come in runs of `run`, one a query head: row r of a run may look at the first `first + r` keys. Maxima and sums run in 16 logical
   lanes, added by halves. A row is one task's. */
#include "rows.h"

#define VECTORS (16 / W)

typedef struct {
    char *x;
    const char *p;
    const float *delta;
    char *out;
    int64_t m, n, first, run, rows_per_task;
    float scale;
    int dtype;
} job;

INLINE void softmax_row(const job *j, int64_t row, const int dtype) {
    int64_t count = herd_min(j->n, j->first + row % j->run), whole = count / 16 * 16;
    float *x = (float *)j->x + row * j->n, rest[16];
    char *out = j->out + row * j->n * (int64_t)herd_size(dtype);
    vf scale = vf_set1(j->scale), high[VECTORS], sum[VECTORS];
    for (int i = 0; i < 16; i++) rest[i] = whole + i < count ? x[whole + i] : -INFINITY;
    UNROLL for (int v = 0; v < VECTORS; v++) high[v] = vf_load(rest + v * W);
    for (int64_t i = 0; i < whole; i += 16)
        UNROLL for (int v = 0; v < VECTORS; v++) high[v] = vf_max(vf_load(x + i + v * W), high[v]);
    vf most = vf_set1(max_lanes(high));
    UNROLL for (int v = 0; v < VECTORS; v++) {
        sum[v] = vf_exp(vf_mul(vf_sub(vf_load(rest + v * W), most), scale));
        vf_store(rest + v * W, sum[v]);
    }
    for (int64_t i = 0; i < whole; i += 16)
        UNROLL for (int v = 0; v < VECTORS; v++) {
            vf p = vf_exp(vf_mul(vf_sub(vf_load(x + i + v * W), most), scale));
            vf_store(x + i + v * W, p);
            sum[v] = vf_add(sum[v], p);
        }
    vf share = vf_set1(1.0f / sum_lanes(sum));
    for (int64_t i = 0; i < whole; i += W) vf_store_as(out, i, dtype, vf_mul(vf_load(x + i), share));
    UNROLL for (int v = 0; v < VECTORS; v++) vf_store(rest + v * W, vf_mul(vf_load(rest + v * W), share));
    for (int64_t i = whole; i < count; i++) store_as(out, i, dtype, rest[i - whole]);
    memset(out + count * (int64_t)herd_size(dtype), 0, (size_t)((j->n - count) * (int64_t)herd_size(dtype)));
}

INLINE void gradient_row(const job *j, int64_t row, const int dtype) {
    int64_t at = row * j->n * (int64_t)herd_size(dtype), i = 0;
    char *x = j->x + at;
    const char *p = j->p + at;
    float delta = j->delta[row];
    for (; i + W <= j->n; i += W)
        vf_store_as(x, i, dtype, vf_mul(vf_mul(vf_sub(vf_load_as(x, i, dtype), vf_set1(delta)), vf_load_as(p, i, dtype)), vf_set1(j->scale)));
    for (; i < j->n; i++) store_as(x, i, dtype, (load_as(x, i, dtype) - delta) * load_as(p, i, dtype) * j->scale);
}

ROW_TASK(softmax_task, job, softmax_row)
ROW_TASK(gradient_task, job, gradient_row)

int ISA(herd_softmax)(float *x, int64_t m, int64_t n, int64_t first, int64_t run, float scale, void *out, int out_dtype) {
    job j = {.x = (char *)x, .out = out, .m = m, .n = n, .first = first, .run = run, .scale = scale, .dtype = out_dtype};
    j.rows_per_task = rows_of(n);
    herd_pool_run(softmax_task, &j, (uint32_t)herd_ceil(m, j.rows_per_task));
    return HERD_OK;
}

int ISA(herd_softmax_gradient)(void *x, const void *p, const float *delta, int64_t m, int64_t n, float scale, int dtype) {
    job j = {.x = x, .p = p, .delta = delta, .m = m, .n = n, .scale = scale, .dtype = dtype};
    j.rows_per_task = rows_of(n);
    herd_pool_run(gradient_task, &j, (uint32_t)herd_ceil(m, j.rows_per_task));
    return HERD_OK;
}
