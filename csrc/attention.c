/* Attention of a ragged batch over paged keys and values.

   What is summed in which order, for one query row (a token and a head), is fixed by positions alone:
     split j holds keys 128 j .. 128 j + 127, as far as the row may look;
     scores are chains over H (gemm.h), times scale; the split's own maximum m_j, p = exp(score - m_j), l_j = sum p in 16 lanes,
     o_j = sum p v as one chain over its keys; keys that the row may not see take no part at all;
     (m, l, o) starts empty and takes the splits up in ascending order: merge_row.
   Who computes a split does not matter then, so a long decode is shared out by splits as well as by sequences, and a chunk of a prompt
   gives the bits that its tokens give one by one.

   The query heads of a KV head are rows of one tile, so each key is read once for all of them. A split's keys are turned into panels
   (32 keys side by side), its values are widened to float32, and both products are tiles of gemm.h.

   Few query rows ("decode"): a task walks splits of one sequence for all heads, in the order of memory.
   Many ("prefill"): a task is a tile of tokens of one KV head, and walks all splits it sees. */
#include "gemm.h"

#define SPLIT HERD_SPLIT
#define HMAX HERD_MAX_HEAD
#define DECODE_ROWS 256     /* rows over all heads up to which a sequence counts as decode */
#define TILE_ROWS 96        /* rows of a prefill tile, about */
#define TASKS_PER_THREAD 4
#define MIN_SPLITS 2        /* splits of a task, at least */

typedef struct {
    const char *q;
    char *out;
    const char *keys, *values;
    const int32_t *table, *starts, *first;
    int64_t q_stride, out_stride, table_stride, block_size;
    int64_t heads, kv_heads, group, head_dim, num_sequences;
    float scale;
    int dtype, cache_dtype;
    int pairs;              /* scores are products of bfloat16 pairs */
    int64_t partial_stride; /* floats of a split's m, l and o for one row */
    int failed;
} attention;

typedef struct {
    int64_t sequence, head;     /* head < 0: decode, all heads */
    int64_t begin, end;         /* splits of a decode task, tokens of a prefill tile */
    float *partials;            /* where a decode task leaves each split's result; NULL: it has all splits and merges them itself */
} task;

typedef struct {
    attention shared;
    task *tasks;
} job;

/* The scratch of a task, for at most `tile` rows at a time and `total` rows over all heads. */
typedef struct {
    float *q;               /* [total][LDA] */
    float *m, *l, *o;       /* state: [total], [total], [total][HMAX] */
    float *scores;          /* [tile][LDA] */
    float *split_m, *split_l, *split_o; /* of the split at hand: [tile], [tile], [tile][HMAX] */
    float *k, *v;           /* panels of keys [4][steps][32], of values [H/32][128][32] */
    float *wide;            /* 32 keys widened to float32 */
    int64_t slots[SPLIT];   /* of the keys of a split */
} space;

static space *make_space(int64_t tile, int64_t total) {
    size_t floats = (size_t)(total * (LDA + HMAX + 2) + tile * (LDA + HMAX + 2) + 2 * SPLIT * HMAX + HERD_PANEL * HMAX);
    size_t header = (sizeof(space) + 63) / 64 * 64;
    space *s = herd_scratch(HERD_SCRATCH_TASK, header + floats * 4);
    if (!s) return NULL;
    float *next = (float *)((char *)s + header);
#define TAKE(field, count) (s->field = next, next += (count))
    TAKE(q, total * LDA);
    TAKE(o, total * HMAX);
    TAKE(scores, tile * LDA);
    TAKE(split_o, tile * HMAX);
    TAKE(k, SPLIT * HMAX);
    TAKE(v, SPLIT * HMAX);
    TAKE(wide, HERD_PANEL * HMAX);
    TAKE(m, total);
    TAKE(l, total);
    TAKE(split_m, tile);
    TAKE(split_l, tile);
#undef TAKE
    return s;
}

/* ---- one split ---- */
static void find_slots(const attention *a, int64_t sequence, int64_t split, int64_t count, int64_t *slots) {
    const int32_t *table = a->table + sequence * a->table_stride;
    for (int64_t i = 0; i < count;) {
        int64_t position = split * SPLIT + i, block = position / a->block_size, offset = position % a->block_size;
        int64_t slot = table[block] * a->block_size + offset;
        for (; i < count && offset < a->block_size; i++, offset++) slots[i] = slot++;
    }
}

INLINE const char *cached(const attention *a, const char *cache, int64_t slot, int64_t head) {
    return cache + (slot * a->kv_heads + head) * a->head_dim * (int64_t)herd_size(a->cache_dtype);
}

INLINE int64_t score_steps(const attention *a) { return a->pairs ? a->head_dim / 2 : a->head_dim; }

INLINE void widen(const char *from, float *to, int64_t count, int dtype) {
    int64_t i = 0;
    for (; i + W <= count; i += W) vf_store(to + i, vf_load_as(from, i, dtype));
    for (; i < count; i++) to[i] = load_as(from, i, dtype);
}

static void pack_keys(const attention *a, int64_t head, int64_t count, space *s) {
    int64_t steps = score_steps(a);
    int direct = a->pairs || a->cache_dtype == HERD_F32;
    for (int64_t key = 0; key < count; key += HERD_PANEL) {
        const float *rows[HERD_PANEL];
        for (int64_t i = 0; i < HERD_PANEL; i++) {
            const char *row = key + i < count ? cached(a, a->keys, s->slots[key + i], head) : NULL;
            if (row && !direct) {
                widen(row, s->wide + i * HMAX, a->head_dim, a->cache_dtype);
                row = (const char *)(s->wide + i * HMAX);
            }
            rows[i] = (const float *)row;
        }
        pack_panel(rows, steps, s->k + key * steps);
    }
}

INLINE void pack_values_as(const attention *a, int64_t head, int64_t count, space *s, const int dtype) {
    for (int64_t key = 0; key < count; key++) {
        const char *row = cached(a, a->values, s->slots[key], head);
        float *to = s->v + key * HERD_PANEL;
        int64_t i = 0;
        for (; i + HERD_PANEL <= a->head_dim; i += HERD_PANEL, to += SPLIT * HERD_PANEL)
            UNROLL for (int v = 0; v < HERD_PANEL; v += W) vf_store(to + v, vf_load_as(row, i + v, dtype));
        if (i < a->head_dim) {
            for (int64_t l = 0; l < HERD_PANEL; l++) to[l] = i + l < a->head_dim ? load_as(row, i + l, dtype) : 0.0f;
        }
    }
}
static void pack_values(const attention *a, int64_t head, int64_t count, space *s) {
    if (a->cache_dtype == HERD_F32)
        pack_values_as(a, head, count, s, HERD_F32);
    else if (a->cache_dtype == HERD_BF16)
        pack_values_as(a, head, count, s, HERD_BF16);
    else
        pack_values_as(a, head, count, s, HERD_F16);
}

/* Scores to probabilities in place, over the first `count` of a row; its maximum and sum. */
static void softmax_row(float *row, int64_t count, float scale, float *maximum, float *sum) {
    vf high[16 / W], total[16 / W];
    float lanes[16], best;
    UNROLL for (int v = 0; v < 16 / W; v++) {
        high[v] = vf_set1(-INFINITY);
        total[v] = vf_set1(0.0f);
    }
    int64_t padded = (count + 15) / 16 * 16;
    for (int64_t i = count; i < padded; i++) row[i] = -INFINITY;
    for (int64_t i = 0; i < padded; i += 16)
        UNROLL for (int v = 0; v < 16 / W; v++) {
            vf x = vf_mul(vf_load(row + i + v * W), vf_set1(scale));
            vf_store(row + i + v * W, x);
            high[v] = vf_max(high[v], x);
        }
    UNROLL for (int v = 0; v < 16 / W; v++) vf_store(lanes + v * W, high[v]);
    best = lanes[0];
    UNROLL for (int i = 1; i < 16; i++) best = lanes[i] > best ? lanes[i] : best;
    for (int64_t i = 0; i < padded; i += 16)
        UNROLL for (int v = 0; v < 16 / W; v++) {
            vf p = vf_exp(vf_sub(vf_load(row + i + v * W), vf_set1(best)));
            vf_store(row + i + v * W, p);
            total[v] = vf_add(total[v], p);
        }
    *maximum = best;
    *sum = sum_lanes(total);
}

/* How many keys of a split a row sees; none or fewer if it lies before the split. */
INLINE int64_t seen(int64_t position, int64_t split) { return herd_min(SPLIT, position + 1 - split * SPLIT); }

/* Scores, probabilities and values of rows [0, rows) of one KV head, whose keys and values are packed. Row r is at position
   position0 + r / group. */
static void attend_split(const attention *a, const float *q, int64_t rows, int64_t position0, int64_t split, space *s) {
    int64_t group = a->group, steps = score_steps(a), most = a->pairs ? MR_PAIR : MR, tiles = herd_ceil(rows, most);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * rows / tiles, count = (tile + 1) * rows / tiles - from;
        int64_t keys = seen(position0 + (from + count - 1) / group, split);
        for (int64_t key = 0; key < keys; key += HERD_PANEL) {
            float *to = s->scores + from * LDA + key;
            if (a->pairs)
                panel_pair((int)count, q + from * LDA, s->k + key * steps, steps, to, LDA, START);
            else
                panel_f32((int)count, q + from * LDA, s->k + key * steps, steps, to, LDA, START);
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t keys = seen(position0 + r / group, split);
        if (keys > 0) softmax_row(s->scores + r * LDA, keys, a->scale, s->split_m + r, s->split_l + r);
    }
    tiles = herd_ceil(rows, MR);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * rows / tiles, count = (tile + 1) * rows / tiles - from;
        int64_t all = herd_max(0, seen(position0 + from / group, split)); /* keys that every row of the tile sees */
        for (int64_t column = 0; column < a->head_dim; column += HERD_PANEL) {
            const float *v = s->v + column * SPLIT, *p = s->scores + from * LDA;
            float *to = s->split_o + from * HMAX + column;
            if (all) panel_f32((int)count, p, v, all, to, HMAX, START);
            for (int64_t r = 0; r < count; r++) { /* then, row by row, those that only later rows see */
                int64_t keys = seen(position0 + (from + r) / group, split);
                if (keys > all) panel_f32(1, p + r * LDA + all, v + all * HERD_PANEL, keys - all, to + r * HMAX, HMAX, all ? CONTINUE : START);
            }
        }
    }
}

/* (m, l, o) with one more split. Called in ascending order, and the only place where splits meet. */
static void merge_row(float *m, float *l, float *o, float split_m, float split_l, const float *split_o, int64_t head_dim) {
    float high = *m > split_m ? *m : split_m, keep = exp_one(*m - high), take = exp_one(split_m - high);
    *m = high;
    *l = *l * keep + split_l * take;
    for (int64_t i = 0; i < head_dim; i += W) /* o and split_o are HMAX wide */
        vf_store(o + i, vf_fma(vf_load(split_o + i), vf_set1(take), vf_mul(vf_load(o + i), vf_set1(keep))));
}

static void start_rows(float *m, float *l, float *o, int64_t rows) {
    for (int64_t r = 0; r < rows; r++) m[r] = -INFINITY, l[r] = 0.0f;
    memset(o, 0, (size_t)(rows * HMAX) * 4);
}

static void finish_row(const attention *a, int64_t token, int64_t head, float l, const float *o) {
    int64_t at = token * a->out_stride + head * a->head_dim, i = 0;
    for (; i + W <= a->head_dim; i += W) vf_store_as(a->out, at + i, a->dtype, vf_div(vf_load(o + i), vf_set1(l)));
    for (; i < a->head_dim; i++) store_as(a->out, at + i, a->dtype, o[i] / l);
}

/* Rows of q of one KV head, from token `begin` on, as the A of the score product. */
static void load_q(const attention *a, int64_t begin, int64_t rows, int64_t head, float *q) {
    int64_t size = (int64_t)herd_size(a->dtype);
    for (int64_t r = 0; r < rows; r++) {
        const char *from = a->q + ((begin + r / a->group) * a->q_stride + (head * a->group + r % a->group) * a->head_dim) * size;
        if (a->pairs)
            fill_row(from, a->head_dim, HERD_BF16, q + r * LDA);
        else
            widen(from, q + r * LDA, a->head_dim, a->dtype);
    }
}

/* ---- tasks ---- */
static int prefill(const attention *a, const task *t) {
    int64_t tokens = t->end - t->begin, rows = tokens * a->group;
    int64_t position0 = a->first[t->sequence] + t->begin - a->starts[t->sequence], last = position0 + tokens - 1;
    space *s = make_space(rows, rows);
    if (!s) return HERD_NO_MEMORY;
    load_q(a, t->begin, rows, t->head, s->q);
    start_rows(s->m, s->l, s->o, rows);
    for (int64_t split = 0; split <= last / SPLIT; split++) {
        int64_t keys = seen(last, split);
        find_slots(a, t->sequence, split, keys, s->slots);
        pack_keys(a, t->head, keys, s);
        pack_values(a, t->head, keys, s);
        attend_split(a, s->q, rows, position0, split, s);
        for (int64_t r = 0; r < rows; r++)
            if (seen(position0 + r / a->group, split) > 0)
                merge_row(s->m + r, s->l + r, s->o + r * HMAX, s->split_m[r], s->split_l[r], s->split_o + r * HMAX, a->head_dim);
    }
    for (int64_t r = 0; r < rows; r++)
        finish_row(a, t->begin + r / a->group, t->head * a->group + r % a->group, s->l[r], s->o + r * HMAX);
    return HERD_OK;
}

static int decode(const attention *a, const task *t) {
    int64_t begin = a->starts[t->sequence], tokens = a->starts[t->sequence + 1] - begin, rows = tokens * a->group;
    int64_t position0 = a->first[t->sequence], last = position0 + tokens - 1, total = rows * a->kv_heads;
    space *s = make_space(rows, total);
    if (!s) return HERD_NO_MEMORY;
    for (int64_t head = 0; head < a->kv_heads; head++) load_q(a, begin, rows, head, s->q + head * rows * LDA);
    if (!t->partials) start_rows(s->m, s->l, s->o, total);
    for (int64_t split = t->begin; split < t->end; split++) {
        int64_t keys = seen(last, split);
        find_slots(a, t->sequence, split, keys, s->slots);
        for (int64_t head = 0; head < a->kv_heads; head++) {
            pack_keys(a, head, keys, s);
            pack_values(a, head, keys, s);
            attend_split(a, s->q + head * rows * LDA, rows, position0, split, s);
            for (int64_t r = 0; r < rows; r++) {
                int64_t row = head * rows + r;
                if (seen(position0 + r / a->group, split) <= 0) continue;
                if (t->partials) {
                    float *to = t->partials + (split * total + row) * a->partial_stride;
                    to[0] = s->split_m[r];
                    to[1] = s->split_l[r];
                    memcpy(to + 16, s->split_o + r * HMAX, (size_t)a->head_dim * 4);
                } else {
                    merge_row(s->m + row, s->l + row, s->o + row * HMAX, s->split_m[r], s->split_l[r], s->split_o + r * HMAX, a->head_dim);
                }
            }
        }
    }
    for (int64_t row = 0; row < total && !t->partials; row++) {
        int64_t head = row / rows, r = row % rows;
        finish_row(a, begin + r / a->group, head * a->group + r % a->group, s->l[row], s->o + row * HMAX);
    }
    return HERD_OK;
}

static void run_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const task *t = j->tasks + index;
    if ((t->head < 0 ? decode : prefill)(&j->shared, t)) __atomic_store_n(&j->shared.failed, 1, __ATOMIC_RELAXED);
}

/* The splits of a sequence whose decode was shared out, merged for one KV head. */
static void merge_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const attention *a = &j->shared;
    const task *t = j->tasks + index;
    int64_t begin = a->starts[t->sequence], rows = (a->starts[t->sequence + 1] - begin) * a->group, total = rows * a->kv_heads;
    for (int64_t r = 0; r < rows; r++) {
        float m, l, o[HMAX], taken[HMAX];
        int64_t position = a->first[t->sequence] + r / a->group;
        start_rows(&m, &l, o, 1);
        for (int64_t split = 0; split <= position / SPLIT; split++) {
            const float *from = t->partials + (split * total + t->head * rows + r) * a->partial_stride;
            memcpy(taken, from + 16, (size_t)a->head_dim * 4);
            merge_row(&m, &l, o, from[0], from[1], taken, a->head_dim);
        }
        finish_row(a, begin + r / a->group, t->head * a->group + r % a->group, l, o);
    }
}

/* ---- sharing out ---- */
INLINE int64_t last_position(const attention *a, int64_t s) { return a->first[s] + a->starts[s + 1] - a->starts[s] - 1; }
INLINE int is_decode(const attention *a, int64_t s) {
    int64_t tokens = a->starts[s + 1] - a->starts[s];
    return tokens == 1 || tokens * a->heads <= DECODE_ROWS;
}

static int plan_and_run(job *j) {
    attention *a = &j->shared;
    int64_t threads = herd_num_threads(), splits = 0, most = 0, partials = 0, count = 0, merges = 0;
    int64_t tile = herd_max(1, TILE_ROWS / a->group);
    for (int64_t s = 0; s < a->num_sequences; s++)
        if (a->starts[s + 1] > a->starts[s] && is_decode(a, s)) splits += last_position(a, s) / SPLIT + 1;
    int64_t share = threads == 1 ? INT64_MAX / 2 : herd_max(MIN_SPLITS, herd_ceil(splits, threads * TASKS_PER_THREAD));
    for (int64_t s = 0; s < a->num_sequences; s++) { /* sizes */
        int64_t tokens = a->starts[s + 1] - a->starts[s], mine = tokens ? last_position(a, s) / SPLIT + 1 : 0;
        if (!tokens) continue;
        if (!is_decode(a, s)) {
            most += herd_ceil(tokens, tile) * a->kv_heads;
        } else {
            most += herd_ceil(mine, share);
            if (mine > share) partials += mine * tokens * a->heads, merges += a->kv_heads;
        }
    }
    size_t tasks_bytes = ((size_t)(most + merges) * sizeof(task) + 63) / 64 * 64;
    char *memory = herd_scratch(HERD_SCRATCH_CALL, tasks_bytes + (size_t)(partials * a->partial_stride) * 4);
    if (!memory) return HERD_NO_MEMORY;
    task *tasks = (task *)memory, *merge = tasks + most;
    float *next = (float *)(memory + tasks_bytes);
    merges = 0;
    for (int64_t s = 0; s < a->num_sequences; s++) {
        int64_t begin = a->starts[s], end = a->starts[s + 1];
        if (begin == end) continue;
        if (!is_decode(a, s)) { /* the longest first */
            for (int64_t to = end; to > begin; to -= tile)
                for (int64_t head = 0; head < a->kv_heads; head++)
                    tasks[count++] = (task){.sequence = s, .head = head, .begin = herd_max(begin, to - tile), .end = to};
            continue;
        }
        int64_t mine = last_position(a, s) / SPLIT + 1;
        float *partial = mine > share ? next : NULL;
        for (int64_t from = 0; from < mine; from += share)
            tasks[count++] = (task){.sequence = s, .head = -1, .begin = from, .end = herd_min(mine, from + share), .partials = partial};
        if (!partial) continue;
        next += mine * (end - begin) * a->heads * a->partial_stride;
        for (int64_t head = 0; head < a->kv_heads; head++) merge[merges++] = (task){.sequence = s, .head = head, .partials = partial};
    }
    j->tasks = tasks;
    herd_pool_run(run_task, j, (uint32_t)count);
    if (a->failed) return HERD_NO_MEMORY;
    j->tasks = merge;
    herd_pool_run(merge_task, j, (uint32_t)merges);
    return HERD_OK;
}

int ISA(herd_attention)(const void *q, int64_t q_stride, int dtype, int64_t heads, int64_t kv_heads, int64_t head_dim, float scale,
                        const void *key_cache, const void *value_cache, int cache_dtype, int64_t block_size, const int32_t *block_table,
                        int64_t table_stride, const int32_t *starts, const int32_t *first, int64_t num_sequences, void *out,
                        int64_t out_stride) {
    job j = {.shared = {.q = q, .out = out, .keys = key_cache, .values = value_cache, .table = block_table, .starts = starts,
                        .first = first, .q_stride = q_stride, .out_stride = out_stride, .table_stride = table_stride,
                        .block_size = block_size, .heads = heads, .kv_heads = kv_heads, .group = heads / kv_heads, .head_dim = head_dim,
                        .num_sequences = num_sequences, .scale = scale, .dtype = dtype, .cache_dtype = cache_dtype}};
    j.shared.pairs = dtype == HERD_BF16 && cache_dtype == HERD_BF16;
    j.shared.partial_stride = 16 + (head_dim + 15) / 16 * 16;
    if (head_dim > HERD_MAX_HEAD || head_dim % 2 || j.shared.group > HERD_MAX_GROUP) return HERD_UNSUPPORTED;
    return plan_and_run(&j);
}
