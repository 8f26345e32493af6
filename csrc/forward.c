/* forward: a whole model in one call, so that a step of few tokens is not spent on calling sixty operators from Python.

   Nothing is computed here: every number comes from the operators of dispatch.c. After the attention of the last block only the rows whose
   result is wanted go on, and none where a prompt is cut in the middle: rows depend on themselves alone. */
#include "internal.h"

#include <string.h>

#define IDS_PER_TASK 4

typedef struct {
    const herd_model *model;
    const int32_t *tokens;
    int64_t count;
} embedding;

/* Positions and slots of every token; what lies outside the model's memory is refused. Marks the slots that it gives out. */
static int place(const herd_model *m, const herd_batch *b) {
    int64_t count = b->starts[b->num_sequences];
    for (int64_t r = 0; r < b->num_rows; r++)
        if (b->rows[r] >= count || b->rows[r] < (r ? b->rows[r - 1] + 1 : 0)) return HERD_BAD_BATCH;
    for (int64_t s = 0; s < b->num_sequences; s++) {
        const int32_t *table = b->table + s * b->table_stride;
        int64_t begin = b->starts[s], end = b->starts[s + 1], blocks = herd_ceil(b->first[s] + end - begin, m->block_size);
        if (b->first[s] < 0 || end < begin || end > count) return HERD_BAD_BATCH;
        if (end == begin) continue;
        if (b->first[s] + end - begin > m->num_positions || blocks > b->table_stride) return HERD_BAD_BATCH;
        for (int64_t i = 0; i < blocks; i++)
            if (table[i] < 0 || table[i] >= m->num_blocks) return HERD_BAD_BATCH;
        for (int64_t t = begin; t < end; t++) {
            int64_t position = b->first[s] + t - begin, slot = table[position / m->block_size] * m->block_size + position % m->block_size;
            if (b->tokens[t] < 0 || b->tokens[t] >= m->vocab || m->written[slot]) return HERD_BAD_BATCH;
            m->positions[t] = position;
            m->slots[t] = slot;
            m->written[slot] = 1;
        }
    }
    return HERD_OK;
}

/* Take the marks off again, those of a batch that was refused half way too. */
static int placed(const herd_model *m, const herd_batch *b) {
    int64_t count = b->starts[b->num_sequences];
    for (int64_t t = 0; t < count; t++) m->slots[t] = -1;
    int status = place(m, b);
    for (int64_t t = 0; t < count && m->slots[t] >= 0; t++) m->written[m->slots[t]] = 0;
    return status;
}

static void embed_task(void *job_pointer, uint32_t index) {
    const embedding *j = job_pointer;
    const herd_model *m = j->model;
    int64_t row = (int64_t)m->hidden * (int64_t)herd_size((int)m->dtype);
    for (int64_t t = index * IDS_PER_TASK; t < herd_min(j->count, (index + 1) * (int64_t)IDS_PER_TASK); t++) {
        int64_t id = j->tokens[t];
        if (m->embedding)
            memcpy(m->residual + t * row, (const char *)m->embedding + id * row, (size_t)row);
        else
            herd_unpack(m->head, m->hidden, (int)m->dtype, 1, 0, &id, 1, m->residual + t * row, m->hidden);
    }
}

/* The wanted rows of a matrix, moved to its top. */
static void keep_rows(const herd_batch *b, char *rows, int64_t bytes) {
    for (int64_t r = 0; r < b->num_rows; r++)
        if (b->rows[r] != r) memcpy(rows + r * bytes, rows + b->rows[r] * bytes, (size_t)bytes);
}

static int product(const herd_model *m, const char *x, int64_t k, int64_t count, const void *w, int64_t n, int epilogue, char *out) {
    int dtype = (int)m->dtype;
    return herd_linear(x, k, count, w, n, k, dtype, epilogue, NULL, 0, out, n, dtype);
}

static int normalise(const herd_model *m, const char *delta, const void *weight, int64_t count) {
    int64_t d = m->hidden;
    return herd_rms_norm(m->residual, d, delta, d, weight, m->eps, count, d, (int)m->dtype, m->normed, d);
}

/* The first half of a block: queries, keys and values of every token, and what the tokens see, if `attend`. */
static int mix(const herd_model *m, const herd_batch *b, const herd_layer *layer, int64_t count, int attend) {
    int dtype = (int)m->dtype, cache_dtype = (int)m->cache_dtype;
    int64_t query = m->heads * m->head_dim, keyvalue = m->kv_heads * m->head_dim, width = query + 2 * keyvalue;
    int64_t size = (int64_t)herd_size(dtype);
    char *k = m->qkv + query * size, *v = k + keyvalue * size;
    int status = product(m, m->normed, m->hidden, count, layer->qkv, width, HERD_STORE, m->qkv);
    if (!status)
        status = herd_rope_write(m->qkv, width, k, width, v, width, dtype, count, m->heads, m->kv_heads, m->head_dim, m->cos, m->sin,
                                 m->positions, m->slots, layer->keys, layer->values, cache_dtype);
    if (status || !attend) return status;
    return herd_attention(m->qkv, width, dtype, m->heads, m->kv_heads, m->head_dim, (float)m->scale, layer->keys, layer->values, cache_dtype,
                          m->block_size, b->table, b->table_stride, b->starts, b->first, b->num_sequences, m->mixed, query);
}

/* The second half; its result is left in `delta`, to be added by the next norm. */
static int feed(const herd_model *m, const herd_layer *layer, int64_t count) {
    int status = product(m, m->mixed, m->heads * m->head_dim, count, layer->out, m->hidden, HERD_STORE, m->delta);
    if (!status) status = normalise(m, m->delta, layer->ffn_norm, count);
    if (!status) status = product(m, m->normed, m->hidden, count, layer->gate_up, m->ffn_dim, HERD_SWIGLU, m->ffn);
    return status ? status : product(m, m->ffn, m->ffn_dim, count, layer->down, m->hidden, HERD_STORE, m->delta);
}

int herd_forward(const herd_model *m, const herd_batch *b) {
    int64_t count = b->starts[b->num_sequences], size = (int64_t)herd_size((int)m->dtype);
    embedding j = {.model = m, .tokens = b->tokens, .count = count};
    int status = placed(m, b);
    if (status) return status;
    herd_pool_run(embed_task, &j, (uint32_t)herd_ceil(count, IDS_PER_TASK));
    for (int64_t number = 0; number < m->num_layers && !status; number++) {
        const herd_layer *layer = m->layers + number;
        int last = number + 1 == m->num_layers;
        status = normalise(m, number ? m->delta : NULL, layer->norm, count);
        if (!status) status = mix(m, b, layer, count, !last || b->num_rows);
        if (status || (last && !b->num_rows)) return status;
        if (last) {
            keep_rows(b, m->mixed, m->heads * m->head_dim * size);
            keep_rows(b, m->residual, m->hidden * size);
            count = b->num_rows;
        }
        status = feed(m, layer, count);
    }
    return status ? status : normalise(m, m->delta, m->norm, count);
}
