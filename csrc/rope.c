/* rope_write: rotate q in place, rotate k into the key cache, copy v into the value cache; rotate: heads from here to there. One task is
   some tokens.
   out[i] = x[i] cos[i] - x[i + H/2] sin[i]; out[i + H/2] = x[i + H/2] cos[i] + x[i] sin[i]; products and sum rounded one by one, as torch
   does it, so that the result is the model's bit for bit. */
#include "quantise.h"
#include "rows.h"

typedef struct {
    char *q;
    const char *k, *v;
    int64_t q_stride, k_stride, v_stride, tokens, heads, kv_heads, head_dim, tokens_per_task;
    const float *cos, *sin;
    const int64_t *positions, *slots;
    char *keys, *values;
    int dtype, cache_dtype;
} job;

/* Rotated x to `out`: rounded to `dtype` first, since that is what the model's k is, then stored as `to`. */
INLINE void rotate(const char *x, char *out, const float *cos, const float *sin, int64_t half, const int dtype, const int to) {
    int64_t i = 0;
    for (; i + W <= half; i += W) {
        vf a = vf_load_as(x, i, dtype), b = vf_load_as(x, i + half, dtype), c = vf_load(cos + i), s = vf_load(sin + i);
        vf_store_as(out, i, to, vf_round_as(vf_sub(vf_mul(a, c), vf_mul(b, s)), dtype));
        vf_store_as(out, i + half, to, vf_round_as(vf_add(vf_mul(b, c), vf_mul(a, s)), dtype));
    }
    for (; i < half; i++) {
        float a = load_as(x, i, dtype), b = load_as(x, i + half, dtype);
        float first = a * cos[i] - b * sin[i], second = b * cos[i] + a * sin[i];
        store_as(out, i, to, round_as(first, dtype));
        store_as(out, i + half, to, round_as(second, dtype));
    }
}

INLINE void copy(const char *x, char *out, int64_t count, const int dtype, const int to) {
    if (dtype == to) {
        memcpy(out, x, (size_t)count * herd_size(dtype));
        return;
    }
    int64_t i = 0;
    for (; i + W <= count; i += W) vf_store_as(out, i, to, vf_load_as(x, i, dtype));
    for (; i < count; i++) store_as(out, i, to, load_as(x, i, dtype));
}

/* Key and value of one head, in float32 on the way. */
INLINE void quantise_head(const job *j, int64_t token, int64_t head, const float *cos, const float *sin, int64_t at, const int dtype) {
    float x[HERD_MAX_HEAD];
    int64_t size = (int64_t)herd_size(dtype), place = head * j->head_dim;
    rotate(j->k + (token * j->k_stride + place) * size, (char *)x, cos, sin, j->head_dim / 2, dtype, HERD_F32);
    quantise(x, j->head_dim, j->keys + at);
    copy(j->v + (token * j->v_stride + place) * size, (char *)x, j->head_dim, dtype, HERD_F32);
    quantise(x, j->head_dim, j->values + at);
}

INLINE void write_token(const job *j, int64_t token, const int dtype, const int to) {
    int64_t size = (int64_t)herd_size(dtype), vector = herd_vector_bytes(j->head_dim, to), half = j->head_dim / 2;
    const float *cos = j->cos + j->positions[token] * half, *sin = j->sin + j->positions[token] * half;
    int64_t at = j->slots[token] * j->kv_heads * vector;
    for (int64_t head = 0; head < j->heads; head++) {
        char *q = j->q + (token * j->q_stride + head * j->head_dim) * size;
        rotate(q, q, cos, sin, half, dtype, dtype);
    }
    if (to == HERD_I8) {
        for (int64_t head = 0; head < j->kv_heads; head++) quantise_head(j, token, head, cos, sin, at + head * vector, dtype);
        return;
    }
    for (int64_t head = 0; head < j->kv_heads; head++)
        rotate(j->k + (token * j->k_stride + head * j->head_dim) * size, j->keys + at + head * vector, cos, sin, half, dtype, to);
    copy(j->v + token * j->v_stride * size, j->values + at, j->kv_heads * j->head_dim, dtype, to);
}

static void write_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t end = herd_min(j->tokens, (index + 1) * j->tokens_per_task);
    for (int64_t token = index * j->tokens_per_task; token < end; token++) {
        switch (j->dtype * 4 + j->cache_dtype) {
        case HERD_F32 * 4 + HERD_F32: write_token(j, token, HERD_F32, HERD_F32); break;
        case HERD_F32 * 4 + HERD_BF16: write_token(j, token, HERD_F32, HERD_BF16); break;
        case HERD_F32 * 4 + HERD_F16: write_token(j, token, HERD_F32, HERD_F16); break;
        case HERD_F32 * 4 + HERD_I8: write_token(j, token, HERD_F32, HERD_I8); break;
        case HERD_BF16 * 4 + HERD_F32: write_token(j, token, HERD_BF16, HERD_F32); break;
        case HERD_BF16 * 4 + HERD_BF16: write_token(j, token, HERD_BF16, HERD_BF16); break;
        case HERD_BF16 * 4 + HERD_I8: write_token(j, token, HERD_BF16, HERD_I8); break;
        default: write_token(j, token, HERD_BF16, HERD_F16); break;
        }
    }
}

int ISA(herd_rope_write)(void *q, int64_t q_stride, const void *k, int64_t k_stride, const void *v, int64_t v_stride, int dtype,
                         int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim, const float *cos, const float *sin,
                         const int64_t *positions, const int64_t *slots, void *key_cache, void *value_cache, int cache_dtype) {
    if (cache_dtype == HERD_I8 && head_dim > HERD_MAX_HEAD) return HERD_UNSUPPORTED;
    job j = {.q = q, .k = k, .v = v, .q_stride = q_stride, .k_stride = k_stride, .v_stride = v_stride, .tokens = tokens, .heads = heads,
             .kv_heads = kv_heads, .head_dim = head_dim, .cos = cos, .sin = sin, .positions = positions, .slots = slots,
             .keys = key_cache, .values = value_cache, .dtype = dtype, .cache_dtype = cache_dtype};
    j.tokens_per_task = rows_of((heads + 2 * kv_heads) * head_dim);
    herd_pool_run(write_task, &j, (uint32_t)herd_ceil(tokens, j.tokens_per_task));
    return HERD_OK;
}

typedef struct {
    const char *x;
    char *out;
    int64_t m, heads, head_dim, stride, period, rows_per_task;
    const float *cos, *sin;
    int dtype;
} rotation; /* of m tokens */

INLINE void rotate_token(const rotation *j, int64_t token, const int dtype) {
    int64_t vector = j->head_dim * (int64_t)herd_size(dtype), row = token % j->period * j->stride;
    for (int64_t head = token * j->heads; head < (token + 1) * j->heads; head++)
        rotate(j->x + head * vector, j->out + head * vector, j->cos + row, j->sin + row, j->head_dim / 2, dtype, dtype);
}

ROW_TASK(rotate_task, rotation, rotate_token)

int ISA(herd_rotate)(const void *x, int64_t tokens, int64_t heads, int64_t head_dim, int dtype, const float *cos, const float *sin,
                     int64_t stride, int64_t period, void *out) {
    rotation j = {.x = x, .out = out, .m = tokens, .heads = heads, .head_dim = head_dim, .stride = stride, .period = period,
                  .cos = cos, .sin = sin, .dtype = dtype};
    j.rows_per_task = rows_of(heads * head_dim);
    herd_pool_run(rotate_task, &j, (uint32_t)herd_ceil(tokens, j.rows_per_task));
    return HERD_OK;
}
