/* cross_entropy: losses of rows of logits, and the logits' gradient in their place.

       log Z = m + log sum exp(x - m);  loss = log Z - x[target];  dx[v] = exp(x[v] - log Z) (1 + 2 z log Z) - [v = target]

   A row of a vocabulary lies in the L2 cache while it is gone over three times: for its maximum, its sum, its gradient. Maxima and sums run
   in 16 logical lanes, added by halves; a chain has CHAIN numbers at most, and chains are added up in double. A row is one task's. */
#include "rows.h"

#define CHAIN 4096
#define VECTORS (16 / W)

typedef struct {
    char *logits;
    const int64_t *targets;
    float *losses, *log_zs;
    int64_t stride, m, vocab, ignore, rows_per_task;
    double z_loss;
    int dtype, gradient;
} job;

INLINE void entropy_row(const job *j, int64_t row, const int dtype) {
    int64_t size = (int64_t)herd_size(dtype), whole = j->vocab / 16 * 16, target = j->targets[row];
    char *x = j->logits + row * j->stride * size;
    if (target == j->ignore) {
        j->losses[row] = j->log_zs[row] = 0.0f;
        if (j->gradient) memset(x, 0, (size_t)(j->vocab * size));
        return;
    }
    float rest[16]; /* the end of the row, padded with what weighs nothing */
    for (int i = 0; i < 16; i++) rest[i] = whole + i < j->vocab ? load_as(x, whole + i, dtype) : -INFINITY;
    vf high[VECTORS], sum[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) high[v] = vf_load(rest + v * W);
    for (int64_t i = 0; i < whole; i += 16)
        UNROLL for (int v = 0; v < VECTORS; v++) high[v] = vf_max(vf_load_as(x, i + v * W, dtype), high[v]);
    vf most = vf_set1(max_lanes(high));
    UNROLL for (int v = 0; v < VECTORS; v++) sum[v] = vf_exp(vf_sub(vf_load(rest + v * W), most));
    double total = sum_lanes(sum);
    for (int64_t i = 0; i < whole;) {
        UNROLL for (int v = 0; v < VECTORS; v++) sum[v] = vf_set1(0.0f);
        for (int64_t end = herd_min(whole, i + CHAIN); i < end; i += 16)
            UNROLL for (int v = 0; v < VECTORS; v++) sum[v] = vf_add(sum[v], vf_exp(vf_sub(vf_load_as(x, i + v * W, dtype), most)));
        total += sum_lanes(sum);
    }
    float log_z = max_lanes(high) + (float)log(total), picked = load_as(x, target, dtype);
    j->losses[row] = log_z - picked;
    j->log_zs[row] = log_z;
    if (!j->gradient) return;
    float factor = (float)(1.0 + 2.0 * j->z_loss * log_z), lanes[16];
    vf log_zs = vf_set1(log_z), factors = vf_set1(factor);
    for (int64_t i = 0; i < whole; i += W)
        vf_store_as(x, i, dtype, vf_mul(vf_exp(vf_sub(vf_load_as(x, i, dtype), log_zs)), factors));
    UNROLL for (int v = 0; v < VECTORS; v++) vf_store(lanes + v * W, vf_mul(vf_exp(vf_sub(vf_load(rest + v * W), log_zs)), factors));
    for (int64_t i = whole; i < j->vocab; i++) store_as(x, i, dtype, lanes[i - whole]);
    store_as(x, target, dtype, exp_one(picked - log_z) * factor - 1.0f);
}

ROW_TASK(entropy_task, job, entropy_row)

int ISA(herd_cross_entropy)(void *logits, int64_t stride, int64_t m, int64_t vocab, int dtype, const int64_t *targets, int64_t ignore,
                            double z_loss, int gradient, float *losses, float *log_zs) {
    job j = {.logits = logits, .targets = targets, .losses = losses, .log_zs = log_zs, .stride = stride, .m = m, .vocab = vocab,
             .ignore = ignore, .z_loss = z_loss, .dtype = dtype, .gradient = gradient};
    j.rows_per_task = rows_of(vocab);
    herd_pool_run(entropy_task, &j, (uint32_t)herd_ceil(m, j.rows_per_task));
    return HERD_OK;
}
