/* forward: a whole model in one call, so that a step of few tokens is not spent on calling sixty operators from Python.

   Nothing is computed here: every number comes from the operators of dispatch.c. After the attention of the last block only the rows whose
   result is wanted go on, and none where a prompt is cut in the middle: rows depend on themselves alone.

   A batch is walked as one part, its operators shared out between the threads; or, where the weights are small enough to lie in the cache
   that the cores share, or products so slow that reading does not matter, as a few parts of whole sequences for each thread, which then meet
   once instead of twelve times a block. */
#include "internal.h"

#include <string.h>

#define IDS_PER_TASK 4
#define CACHED_BYTES (24 << 20) /* weights that every thread may read whole: they come from a shared cache */
#define SLOW_BYTES (64 << 20)   /* the same where products take longer than reading: bfloat16 widened by short vectors */
#define PART_TOKENS 8           /* fewest tokens of a part: fewer do not pay for reading all weights */
#define SOME_TOKENS 16          /* of a part where there are parts enough for all threads: each reads the weights once more */
#define MAX_PARTS 8

typedef struct {
    const herd_model *model;
    const herd_batch *batch;
    int64_t sequence, num_sequences, token, num_tokens, row, num_rows; /* what is walked: the first of each, and how many */
    int status;
} part;

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

static void embed_task(void *part_pointer, uint32_t index) {
    const part *p = part_pointer;
    const herd_model *m = p->model;
    int64_t row = m->hidden * (int64_t)herd_size((int)m->dtype), first = p->token + index * (int64_t)IDS_PER_TASK;
    for (int64_t t = first; t < herd_min(p->token + p->num_tokens, first + IDS_PER_TASK); t++) {
        int64_t id = p->batch->tokens[t];
        if (m->embedding)
            memcpy(m->residual + t * row, (const char *)m->embedding + id * row, (size_t)row);
        else if (m->head.bits)
            herd_unpack_quantised(&m->head, m->hidden, 1, 0, &id, 1, m->residual + t * row, m->hidden, (int)m->dtype);
        else
            herd_unpack(m->head.data, m->hidden, (int)m->dtype, 1, 0, &id, 1, m->residual + t * row, m->hidden);
    }
}

/* Where a part's rows begin in an arena of rows of `width` numbers. */
static char *mine(const part *p, char *arena, int64_t width) { return arena + p->token * width * (int64_t)herd_size((int)p->model->dtype); }

/* The wanted rows of a part, moved to its top. */
static void keep_rows(const part *p, char *arena, int64_t width) {
    int64_t bytes = width * (int64_t)herd_size((int)p->model->dtype);
    char *top = mine(p, arena, width);
    for (int64_t r = 0; r < p->num_rows; r++) {
        int64_t from = p->batch->rows[p->row + r] - p->token;
        if (from != r) memcpy(top + r * bytes, top + from * bytes, (size_t)bytes);
    }
}

/* Rows by a matrix of either kind. */
static int multiply(const char *x, int64_t k, int64_t count, const herd_matrix *w, int64_t n, int dtype, int epilogue, void *out,
                    int64_t out_stride, int out_dtype) {
    if (w->bits) return herd_linear_quantised(x, k, count, w, n, k, dtype, epilogue, NULL, 0, out, out_stride, out_dtype);
    return herd_linear(x, k, count, w->data, n, k, dtype, epilogue, NULL, 0, out, out_stride, out_dtype);
}

static int product(const part *p, char *x, int64_t k, int64_t count, const herd_matrix *w, int64_t n, int epilogue, char *out) {
    int dtype = (int)p->model->dtype;
    return multiply(mine(p, x, k), k, count, w, n, dtype, epilogue, mine(p, out, n), n, dtype);
}

static int normalise(const part *p, char *delta, const void *weight, int64_t count) {
    const herd_model *m = p->model;
    int64_t d = m->hidden;
    return herd_rms_norm(mine(p, m->residual, d), d, delta ? mine(p, delta, d) : NULL, d, weight, m->eps, count, d, (int)m->dtype,
                         mine(p, m->normed, d), d);
}

/* The first half of a block: queries, keys and values of every token, and what the tokens see, if `attend`. */
static int mix(const part *p, const herd_layer *layer, int attend) {
    const herd_model *m = p->model;
    const herd_batch *b = p->batch;
    int dtype = (int)m->dtype, cache_dtype = (int)m->cache_dtype;
    int64_t query = m->heads * m->head_dim, keyvalue = m->kv_heads * m->head_dim, width = query + 2 * keyvalue;
    int64_t size = (int64_t)herd_size(dtype);
    char *q = mine(p, m->qkv, width), *k = q + query * size, *v = k + keyvalue * size;
    int status = product(p, m->normed, m->hidden, p->num_tokens, &layer->qkv, width, HERD_STORE, m->qkv);
    if (!status)
        status = herd_rope_write(q, width, k, width, v, width, dtype, p->num_tokens, m->heads, m->kv_heads, m->head_dim, m->cos, m->sin,
                                 m->positions + p->token, m->slots + p->token, layer->keys, layer->values, cache_dtype);
    if (status || !attend) return status;
    return herd_attention(m->qkv, width, dtype, m->heads, m->kv_heads, m->head_dim, (float)m->scale, layer->keys, layer->values, cache_dtype,
                          m->block_size, b->table + p->sequence * b->table_stride, b->table_stride, b->starts + p->sequence,
                          b->first + p->sequence, p->num_sequences, m->mixed, query);
}

/* The second half; its result is left in `delta`, to be added by the next norm. */
static int feed(const part *p, const herd_layer *layer, int64_t count) {
    const herd_model *m = p->model;
    int status = product(p, m->mixed, m->heads * m->head_dim, count, &layer->out, m->hidden, HERD_STORE, m->delta);
    if (!status) status = normalise(p, m->delta, layer->ffn_norm, count);
    if (!status) status = product(p, m->normed, m->hidden, count, &layer->gate_up, m->ffn_dim, HERD_SWIGLU, m->ffn);
    return status ? status : product(p, m->ffn, m->ffn_dim, count, &layer->down, m->hidden, HERD_STORE, m->delta);
}

/* The scores of a part's wanted rows, where the batch has room for them. */
static int score(const part *p) {
    const herd_model *m = p->model;
    const herd_batch *b = p->batch;
    if (!b->scores) return HERD_OK;
    return multiply(mine(p, m->normed, m->hidden), m->hidden, p->num_rows, &m->head, b->num_scores, (int)m->dtype, HERD_STORE,
                    b->scores + p->row * b->scores_stride, b->scores_stride, HERD_F32);
}

static int walk(part *p) {
    const herd_model *m = p->model;
    int64_t count = p->num_tokens;
    int status = HERD_OK;
    herd_pool_run(embed_task, p, (uint32_t)herd_ceil(count, IDS_PER_TASK));
    for (int64_t number = 0; number < m->num_layers && !status; number++) {
        const herd_layer *layer = m->layers + number;
        int last = number + 1 == m->num_layers;
        status = normalise(p, number ? m->delta : NULL, layer->norm, count);
        if (!status) status = mix(p, layer, !last || p->num_rows);
        if (status || (last && !p->num_rows)) return status;
        if (last) {
            keep_rows(p, m->mixed, m->heads * m->head_dim);
            keep_rows(p, m->residual, m->hidden);
            count = p->num_rows;
        }
        status = feed(p, layer, count);
    }
    if (!status) status = normalise(p, m->delta, m->norm, count);
    return status ? status : score(p);
}

static void walk_task(void *parts, uint32_t index) {
    part *p = (part *)parts + index;
    p->status = walk(p);
}

static int64_t weight_bytes(const herd_model *m) {
    int64_t bytes = m->head.bytes;
    for (const herd_layer *layer = m->layers; layer < m->layers + m->num_layers; layer++)
        bytes += layer->qkv.bytes + layer->out.bytes + layer->gate_up.bytes + layer->down.bytes;
    return bytes;
}

/* Whether each of so many parts of `total` tokens may read all weights. */
static int may_part(const herd_model *m, int64_t total, int64_t parts) {
    int64_t bytes = weight_bytes(m);
    int slow = m->dtype == HERD_BF16 && !m->head.bits && herd_isa() <= HERD_AVX2;
    return bytes <= CACHED_BYTES || (slow && bytes <= SLOW_BYTES && parts >= herd_num_threads() && total >= parts * SOME_TOKENS);
}

/* Cut a batch into parts of whole sequences, about as long as each other; one part where that is not to be had or does not pay. */
static int64_t cut(const herd_model *m, const herd_batch *b, part *parts) {
    int64_t total = b->starts[b->num_sequences], threads = herd_num_threads();
    int64_t wanted = herd_min(herd_min(herd_max(threads, total / SOME_TOKENS), total / PART_TOKENS), MAX_PARTS);
    wanted -= wanted > threads ? wanted % threads : 0; /* as many for each thread, and small: one that loses its core holds up little */
    parts[0] = (part){.model = m, .batch = b, .num_sequences = b->num_sequences, .num_tokens = total, .num_rows = b->num_rows};
    if (threads < 2 || wanted < 2 || !may_part(m, total, wanted)) return 1;
    part whole = parts[0], *p = parts;
    int64_t sequence = 0, row = 0;
    for (int64_t number = 0; number < wanted; number++, p++) {
        int64_t first = sequence, token = b->starts[first], first_row = row, end = (number + 1) * total / wanted;
        while (sequence < b->num_sequences && b->starts[sequence + 1] <= end) sequence++;
        while (row < b->num_rows && b->rows[row] < b->starts[sequence]) row++;
        *p = (part){.model = m, .batch = b, .sequence = first, .num_sequences = sequence - first, .token = token,
                    .num_tokens = b->starts[sequence] - token, .row = first_row, .num_rows = row - first_row};
        if (2 * p->num_tokens * wanted < total || 2 * p->num_tokens * wanted > 3 * total) {
            parts[0] = whole;
            return 1;
        }
    }
    return wanted;
}

int herd_forward(const herd_model *m, const herd_batch *b) {
    part parts[MAX_PARTS];
    int64_t bytes = m->hidden * (int64_t)herd_size((int)m->dtype);
    int status = placed(m, b);
    if (status) return status;
    int64_t count = cut(m, b, parts);
    if (count == 1)
        walk_task(parts, 0);
    else
        herd_pool_run(walk_task, parts, (uint32_t)count);
    for (int64_t number = 0; number < count; number++) {
        const part *p = parts + number;
        if (p->status) status = p->status;
        if (p->row != p->token) memmove(m->normed + p->row * bytes, m->normed + p->token * bytes, (size_t)(p->num_rows * bytes));
    }
    return status;
}
