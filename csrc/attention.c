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

   Few query rows ("decode"): a task walks splits of one sequence for all heads, in the order of memory, and while it works on one split the
   next one is fetched from memory, in its order, a few lines at a time: rows of one head are short and far apart, which no processor
   foresees.
   Many ("prefill"): a task is a tile of tokens of one KV head, and walks all splits it sees. */
#include "split.h"

#define DECODE_ROWS 256     /* rows over all heads up to which a sequence counts as decode */
#define TILE_ROWS 96        /* rows of a prefill tile, about */
#define TASKS_PER_THREAD 4
#define MOST_TOGETHER 4     /* tasks that are claimed at once, where there are many: a short sequence takes a microsecond, a claim a tenth */
#define MIN_SPLITS 2        /* splits of a task, at least */

typedef struct {
    int64_t sequence, head;     /* head < 0: decode, all heads */
    int64_t begin, end;         /* splits of a decode task, tokens of a prefill tile */
    float *partials;            /* where a decode task leaves each split's result; NULL: it has all splits and merges them itself */
} task;

typedef struct {
    attention shared;
    task *tasks;
    int64_t count, together;    /* of tasks; how many are claimed at once */
} job;

INLINE int64_t last_position(const attention *a, int64_t s) { return a->first[s] + a->starts[s + 1] - a->starts[s] - 1; }

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

/* The first row that sees the split; those before it see none of it. */
INLINE int64_t first_row(const attention *a, const space *s) { return herd_max(0, s->split * SPLIT - s->position0) * a->group; }

static void load_queries(const attention *a, int64_t begin, space *s) {
    for (int64_t head = 0; head < s->heads; head++) load_q(a, begin, s->rows, s->head0 + head, s->q + head * s->rows * LDA);
}

static void merge_split(const attention *a, space *s) {
    int64_t from = first_row(a, s);
    for (int64_t head = 0; head < s->heads; head++) {
        int64_t row = head * s->padded + from, wide = (head * s->rows + from) * HMAX;
        merge_rows(s->rows - from, s->m + row, s->l + row, s->o + wide, s->split_m + row, s->split_l + row, s->split_o + wide, HMAX,
                   a->head_dim);
    }
}

static void finish(const attention *a, int64_t begin, const space *s) {
    for (int64_t head = 0; head < s->heads; head++)
        for (int64_t r = 0; r < s->rows; r++)
            finish_row(a, begin + r / a->group, (s->head0 + head) * a->group + r % a->group, s->l[head * s->padded + r],
                       s->o + (head * s->rows + r) * HMAX);
}

/* ---- tasks ---- */
static int prefill(const attention *a, const task *t) {
    space *s = make_space(t->end - t->begin, a->group, t->head, 1);
    if (!s) return HERD_NO_MEMORY;
    s->position0 = a->first[t->sequence] + t->begin - a->starts[t->sequence];
    int64_t last = s->position0 + t->end - t->begin - 1;
    load_queries(a, t->begin, s);
    for (s->split = 0; s->split <= last / SPLIT; s->split++) {
        s->keys = herd_min(SPLIT, last + 1 - s->split * SPLIT);
        find_offsets(a, t->sequence, s->split, s->keys, s->offsets);
        attend_split(a, s);
        merge_split(a, s);
    }
    finish(a, t->begin, s);
    return HERD_OK;
}

/* What a shared decode leaves of a split for one KV head: m and l of its rows, padded, then o. */
INLINE int64_t partial_floats(const attention *a, int64_t rows) { return 2 * ((rows + 15) / 16 * 16) + rows * a->partial_stride; }
INLINE float *partial(const attention *a, const task *t, const space *s, int64_t head) {
    return t->partials + (s->split * a->kv_heads + head) * partial_floats(a, s->rows);
}

static void leave_split(const attention *a, const task *t, const space *s) {
    for (int64_t head = 0; head < s->heads; head++) {
        float *to = partial(a, t, s, head);
        memcpy(to, s->split_m + head * s->padded, (size_t)s->rows * 4);
        memcpy(to + s->padded, s->split_l + head * s->padded, (size_t)s->rows * 4);
        for (int64_t r = first_row(a, s); r < s->rows; r++)
            memcpy(to + 2 * s->padded + r * a->partial_stride, s->split_o + (head * s->rows + r) * HMAX, (size_t)a->head_dim * 4);
    }
}

/* `after`: the task that follows in memory's order, whose first keys are fetched while the last split is worked on; NULL if there is none. */
static int decode(const attention *a, const task *t, const task *after) {
    int64_t begin = a->starts[t->sequence], tokens = a->starts[t->sequence + 1] - begin;
    space *s = make_space(tokens, a->group, 0, a->kv_heads);
    if (!s) return HERD_NO_MEMORY;
    s->position0 = a->first[t->sequence];
    int64_t last = s->position0 + tokens - 1;
    load_queries(a, begin, s);
    s->ahead = 1;
    s->next_keys = herd_min(SPLIT, last + 1 - t->begin * SPLIT);
    find_offsets(a, t->sequence, t->begin, s->next_keys, s->offsets + SPLIT);
    for (s->split = t->begin; s->split < t->end; s->split++) {
        s->keys = s->next_keys;
        memcpy(s->offsets, s->offsets + SPLIT, SPLIT * sizeof *s->offsets);
        const task *of = s->split + 1 < t->end ? t : after;
        int64_t next = of == t ? s->split + 1 : of ? of->begin : 0;
        s->next_keys = of ? herd_min(SPLIT, last_position(a, of->sequence) + 1 - next * SPLIT) : 0;
        if (of) find_offsets(a, of->sequence, next, s->next_keys, s->offsets + SPLIT);
        attend_split(a, s);
        if (t->partials)
            leave_split(a, t, s);
        else
            merge_split(a, s);
    }
    if (!t->partials) finish(a, begin, s);
    return HERD_OK;
}

static void run_tasks(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    int64_t end = herd_min(j->count, (index + 1) * j->together);
    for (const task *t = j->tasks + index * j->together; t < j->tasks + end; t++) {
        const task *after = t + 1 < j->tasks + j->count && t[1].head < 0 ? t + 1 : NULL;
        if (t->head < 0 ? decode(&j->shared, t, after) : prefill(&j->shared, t)) __atomic_store_n(&j->shared.failed, 1, __ATOMIC_RELAXED);
    }
}

/* The splits of a sequence whose decode was shared out, merged for one KV head. */
static void merge_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const attention *a = &j->shared;
    const task *t = j->tasks + index;
    int64_t begin = a->starts[t->sequence], tokens = a->starts[t->sequence + 1] - begin;
    space *s = make_space(tokens, a->group, t->head, 1);
    if (!s) {
        __atomic_store_n(&j->shared.failed, 1, __ATOMIC_RELAXED);
        return;
    }
    s->position0 = a->first[t->sequence];
    for (s->split = 0; s->split <= (s->position0 + tokens - 1) / SPLIT; s->split++) {
        const float *part = partial(a, t, s, t->head);
        int64_t from = first_row(a, s);
        merge_rows(s->rows - from, s->m + from, s->l + from, s->o + from * HMAX, part + from, part + s->padded + from,
                   part + 2 * s->padded + from * a->partial_stride, a->partial_stride, a->head_dim);
    }
    finish(a, begin, s);
}

/* ---- sharing out ---- */
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
            if (mine > share) partials += mine * a->kv_heads * partial_floats(a, tokens * a->group), merges += a->kv_heads;
        }
    }
    size_t tasks_bytes = ((size_t)(most + merges) * sizeof(task) + 63) / 64 * 64;
    char *memory = herd_scratch(HERD_SCRATCH_CALL, tasks_bytes + (size_t)(partials + 16) * 4);
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
        float *partials_here = mine > share ? next : NULL;
        for (int64_t from = 0; from < mine; from += share)
            tasks[count++] =
                (task){.sequence = s, .head = -1, .begin = from, .end = herd_min(mine, from + share), .partials = partials_here};
        if (!partials_here) continue;
        next += mine * a->kv_heads * partial_floats(a, (end - begin) * a->group);
        for (int64_t head = 0; head < a->kv_heads; head++) merge[merges++] = (task){.sequence = s, .head = head, .partials = partials_here};
    }
    j->tasks = tasks;
    j->count = count;
    j->together = herd_max(1, herd_min(MOST_TOGETHER, count / (threads * TASKS_PER_THREAD)));
    herd_pool_run(run_tasks, j, (uint32_t)herd_ceil(count, j->together));
    if (a->failed) return HERD_NO_MEMORY;
    j->tasks = merge;
    herd_pool_run(merge_task, j, (uint32_t)merges);
    return a->failed ? HERD_NO_MEMORY : HERD_OK;
}

int ISA(herd_attention)(const void *q, int64_t q_stride, int dtype, int64_t heads, int64_t kv_heads, int64_t head_dim, float scale,
                        const void *key_cache, const void *value_cache, int cache_dtype, int64_t block_size, const int32_t *block_table,
                        int64_t table_stride, const int32_t *starts, const int32_t *first, int64_t num_sequences, void *out,
                        int64_t out_stride) {
    job j = {.shared = {.q = q, .out = out, .keys = key_cache, .values = value_cache, .table = block_table, .starts = starts,
                        .first = first, .q_stride = q_stride, .out_stride = out_stride, .table_stride = table_stride,
                        .block_size = block_size, .heads = heads, .kv_heads = kv_heads, .group = heads / kv_heads, .head_dim = head_dim,
                        .num_sequences = num_sequences, .scale = scale, .dtype = dtype, .cache_dtype = cache_dtype}};
    j.shared.pairs = dtype == HERD_BF16 && (cache_dtype == HERD_BF16 || cache_dtype == HERD_I8);
    j.shared.partial_stride = (head_dim + 15) / 16 * 16;
    if (head_dim > HERD_MAX_HEAD || head_dim % 2 || j.shared.group > HERD_MAX_GROUP) return HERD_UNSUPPORTED;
    return plan_and_run(&j);
}
