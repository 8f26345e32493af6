/* One split of the keys: what attention.c's tasks do with the rows of a KV head, or of all of them.

   The two products are tiles of gemm.h over panels of keys and of values. Where few rows read a value, it is taken straight from the cache
   instead: the same chains in the same order, without the copy.

   Of int8 the bytes are multiplied as numbers, which bfloat16 holds exactly. A key's scale multiplies its scores before the softmax, a
   value's scale its probabilities after it; each is a product rounded by itself. */
#ifndef HERD_SPLIT_H
#define HERD_SPLIT_H

#include "gemm.h"
#include "quantise.h"

#define SPLIT HERD_SPLIT
#define HMAX HERD_MAX_HEAD
#define UNIT 16 /* keys, or values, of all heads: a run of memory, taken in one go */

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
    int64_t partial_stride; /* floats of a split's o for one row */
    int failed;
} attention;

/* The scratch of a task: `rows` rows for each of `heads` KV heads at a time. Rows of a head follow each other. */
typedef struct {
    int64_t rows, padded;               /* rows of a head, and the same up to a multiple of 16: m and l have room for whole vectors */
    float *q;                           /* [heads][rows][LDA] */
    float *m, *l, *o;                   /* state: [heads][padded], the same, [heads][rows][HMAX] */
    float *scores;                      /* [heads][rows][LDA] */
    float *split_m, *split_l, *split_o; /* of the split at hand, as m, l and o */
    float *k;                           /* panels of keys, [heads][4][steps][32] */
    float *v;                           /* panels of values of one head, [H/32][128][32] */
    float *wide;                        /* some keys widened to float32 */
    float *key_scales;                  /* of int8: [heads][128] */
    int64_t *token;                     /* [rows]: which token of the tile a row belongs to */
    int64_t position0, split, keys;     /* of the tile's first token; at hand; in it */
    int64_t offsets[2 * SPLIT];         /* bytes from a cache's begin to each key, first head; those of the next split follow */
    int64_t next_keys;
    int64_t head0, heads;               /* the KV heads at hand */
    int ahead;                          /* whether to fetch ahead */
    const char *due_base;               /* what to fetch next: the cache, the row's offset in it, the line of the row */
    const int64_t *due, *due_end;
    int64_t due_line, due_lines;
} space;

static space *make_space(int64_t tokens, int64_t group, int64_t head0, int64_t heads) {
    int64_t rows = tokens * group, padded = (rows + 15) / 16 * 16;
    size_t header = (sizeof(space) + 63) / 64 * 64;
    size_t floats = (size_t)(heads * (rows * 2 * (LDA + HMAX) + padded * 4 + SPLIT * HMAX + SPLIT) + SPLIT * HMAX + UNIT * HMAX + 2 * padded);
    space *s = herd_scratch(HERD_SCRATCH_TASK, header + floats * 4);
    if (!s) return NULL;
    float *next = (float *)((char *)s + header);
#define TAKE(field, count) (s->field = (void *)next, next += (count))
    TAKE(q, heads * rows * LDA);
    TAKE(scores, heads * rows * LDA);
    TAKE(o, heads * rows * HMAX);
    TAKE(split_o, heads * rows * HMAX);
    TAKE(k, heads * SPLIT * HMAX);
    TAKE(v, SPLIT * HMAX);
    TAKE(wide, UNIT * HMAX);
    TAKE(key_scales, heads * SPLIT);
    TAKE(m, heads * padded);
    TAKE(l, heads * padded);
    TAKE(split_m, heads * padded);
    TAKE(split_l, heads * padded);
    TAKE(token, 2 * padded);
#undef TAKE
    s->rows = rows;
    s->padded = padded;
    s->head0 = head0;
    s->heads = heads;
    s->next_keys = s->ahead = 0;
    for (int64_t r = 0; r < rows; r++) s->token[r] = r / group;
    for (int64_t r = 0; r < heads * padded; r++) s->m[r] = -INFINITY, s->l[r] = 0.0f;
    memset(s->o, 0, (size_t)(heads * rows * HMAX) * 4);
    return s;
}

/* How many keys of the split a row sees; none or fewer if it lies before the split. */
INLINE int64_t seen(const space *s, int64_t row) { return herd_min(SPLIT, s->position0 + s->token[row] + 1 - s->split * SPLIT); }

INLINE int64_t head_bytes(const attention *a, int64_t head) { return head * herd_vector_bytes(a->head_dim, a->cache_dtype); }

INLINE int64_t token_bytes(const attention *a) { return head_bytes(a, a->kv_heads); }

INLINE int64_t score_steps(const attention *a) { return a->pairs ? a->head_dim / 2 : a->head_dim; }

static void find_offsets(const attention *a, int64_t sequence, int64_t split, int64_t count, int64_t *offsets) {
    const int32_t *table = a->table + sequence * a->table_stride;
    int64_t bytes = token_bytes(a);
    for (int64_t i = 0; i < count;) {
        int64_t position = split * SPLIT + i, block = position / a->block_size, offset = position % a->block_size;
        int64_t at = (table[block] * a->block_size + offset) * bytes;
        for (; i < count && offset < a->block_size; i++, offset++, at += bytes) offsets[i] = at;
    }
}

/* ---- fetching ahead ----
   Units in the order in which they are used: keys of this split, values of this split, keys of the next. A head's part of a row is short
   and the rows are far apart, so the next unit, or the one after it where units are small, is fetched in the order of memory, as many
   lines as are used up meanwhile: a processor drops what it is asked for in a burst. */
#define LEAD_BYTES 8192
static void begin_unit(const attention *a, int64_t current, space *s) {
    int64_t units = herd_ceil(s->keys, UNIT), unit = current + (UNIT * token_bytes(a) < LEAD_BYTES ? 2 : 1), next = unit >= 2 * units;
    int64_t first = (next ? unit - 2 * units : unit >= units ? unit - units : unit) * UNIT;
    s->due_base = unit >= units && !next ? a->values : a->keys;
    s->due = s->offsets + (next ? SPLIT : 0) + first;
    s->due_end = s->due + (s->ahead ? herd_max(0, herd_min(UNIT, (next ? s->next_keys : s->keys) - first)) : 0);
    s->due_line = 0;
    s->due_lines = herd_ceil(token_bytes(a), 64);
}
INLINE void fetch(space *s, int64_t left) {
    while (left > 0 && s->due < s->due_end) {
        int64_t count = herd_min(left, s->due_lines - s->due_line);
        const char *from = s->due_base + *s->due + 64 * s->due_line;
        for (int64_t i = 0; i < count; i++) __builtin_prefetch(from + 64 * i, 0, 3);
        left -= count;
        s->due_line += count;
        if (s->due_line == s->due_lines) s->due++, s->due_line = 0;
    }
}

/* ---- keys ---- */
INLINE void widen(const char *from, float *to, int64_t count, int dtype) {
    int64_t i = 0;
    for (; i + W <= count; i += W) vf_store(to + i, vf_load_as(from, i, dtype));
    for (; i < count; i++) to[i] = load_as(from, i, dtype);
}

/* Keys of a unit of one head, as half a panel; what lies behind the last key becomes zeros. */
static void pack_keys(const attention *a, int64_t head, int64_t key, space *s) {
    static const float nothing[HMAX];
    const char *keys = a->keys + head_bytes(a, s->head0 + head);
    const float *rows[UNIT];
    int64_t steps = score_steps(a), count = herd_min(UNIT, s->keys - key);
    int bytes = a->cache_dtype == HERD_I8, direct = (a->pairs && !bytes) || a->cache_dtype == HERD_F32;
    float *panel = s->k + head * SPLIT * HMAX + key / HERD_PANEL * steps * HERD_PANEL + key % HERD_PANEL;
    for (int64_t i = 0; i < count; i++) rows[i] = (const float *)(keys + s->offsets[key + i]);
    for (int64_t i = 0; i < count && bytes; i++) s->key_scales[head * SPLIT + key + i] = scale_of((const char *)rows[i], a->head_dim);
    if (bytes && a->head_dim % 4 == 0) {
        for (int64_t i = count; i < UNIT; i++) rows[i] = nothing;
        for (int64_t step = 0; step < a->head_dim / 4; step += 16) {
            pack_half(rows, step, herd_min(16, a->head_dim / 4 - step), s->wide);
            fetch(s, UNIT + 1);
        }
        spread_bytes(s->wide, a->head_dim / 4, a->pairs, panel);
        return;
    }
    for (int64_t i = 0; i < count && !direct; i++) {
        if (a->pairs)
            widen_to_bf16((const char *)rows[i], s->wide + i * HMAX, a->head_dim);
        else
            widen((const char *)rows[i], s->wide + i * HMAX, a->head_dim, a->cache_dtype);
        rows[i] = s->wide + i * HMAX;
    }
    for (int64_t i = count; i < UNIT; i++) rows[i] = nothing;
    for (int64_t step = 0; step < steps; step += 16) {
        pack_half(rows, step, herd_min(16, steps - step), panel);
        fetch(s, bytes ? UNIT / 2 + 1 : UNIT);
    }
}

/* ---- scores and probabilities of one head ---- */
static void scores(const attention *a, int64_t head, space *s) {
    int64_t steps = score_steps(a), most = a->pairs ? MR_PAIR : MR, tiles = herd_ceil(s->rows, most);
    const float *panels = s->k + head * SPLIT * HMAX;
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * s->rows / tiles, count = (tile + 1) * s->rows / tiles - from, key = 0;
        int64_t keys = seen(s, from + count - 1);
        const float *q = s->q + (head * s->rows + from) * LDA;
        float *to = s->scores + (head * s->rows + from) * LDA;
        if (count <= MR_BOTH)
            for (; key + HERD_PANEL < keys; key += 2 * HERD_PANEL)
                (a->pairs ? both_pair : both_f32)((int)count, q, panels + key * steps, steps, to + key);
        for (; key < keys; key += HERD_PANEL) {
            if (a->pairs)
                panel_pair((int)count, q, panels + key * steps, steps, to + key, LDA, START);
            else
                panel_f32((int)count, q, panels + key * steps, steps, to + key, LDA, START);
        }
    }
}

/* Scores or probabilities of keys begin .. end, each times its key's scale; what a row does not see is garbage before and after. */
static void scale_keys(int64_t head, int64_t begin, int64_t end, const float *scales, space *s) {
    for (int64_t r = 0; r < s->rows; r++) {
        float *row = s->scores + (head * s->rows + r) * LDA + begin;
        for (int64_t i = 0; i < end - begin; i += W) vf_store(row + i, vf_mul(vf_load(row + i), vf_load(scales + i)));
    }
}
static void scale_probabilities(const attention *a, int64_t head, int64_t begin, int64_t end, space *s) {
    const char *values = a->values + head_bytes(a, s->head0 + head);
    float scales[SPLIT] = {0};
    for (int64_t key = begin; key < end; key++) scales[key - begin] = scale_of(values + s->offsets[key], a->head_dim);
    scale_keys(head, begin, end, scales, s);
}

/* Scores to probabilities in place, over the first `count` of each of `rows` rows; their maxima and sums. Several rows at once only keep
   the processor busy: a row's arithmetic is its own. */
INLINE void softmax_rows(const int rows, float *row, int64_t count, float scale, float *maximum, float *sum) {
    vf high[4][16 / W], total[4][16 / W], best[4];
    int64_t padded = (count + 15) / 16 * 16;
    UNROLL for (int r = 0; r < rows; r++) {
        for (int64_t i = count; i < padded; i++) row[r * LDA + i] = -INFINITY;
        UNROLL for (int v = 0; v < 16 / W; v++) high[r][v] = vf_load(row + r * LDA + v * W), total[r][v] = vf_set1(0.0f);
    }
    for (int64_t i = 16; i < padded; i += 16)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < 16 / W; v++) high[r][v] = vf_max(high[r][v], vf_load(row + r * LDA + i + v * W));
    UNROLL for (int r = 0; r < rows; r++) {
        maximum[r] = max_lanes(high[r]) * scale; /* rounding keeps order: the maximum of the scaled scores */
        best[r] = vf_set1(maximum[r]);
    }
    for (int64_t i = 0; i < padded; i += 16)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < 16 / W; v++) {
                float *at = row + r * LDA + i + v * W;
                vf p = vf_exp(vf_sub(vf_mul(vf_load(at), vf_set1(scale)), best[r]));
                vf_store(at, p);
                total[r][v] = vf_add(total[r][v], p);
            }
    UNROLL for (int r = 0; r < rows; r++) sum[r] = sum_lanes(total[r]);
}

static void probabilities(const attention *a, int64_t head, space *s) {
    for (int64_t r = 0; r < s->rows;) {
        int64_t keys = seen(s, r), count = r + 4 <= s->rows && s->token[r + 3] == s->token[r] ? 4 : 1, at = head * s->padded + r;
        float *row = s->scores + (head * s->rows + r) * LDA;
        if (keys > 0 && count == 4)
            softmax_rows(4, row, keys, a->scale, s->split_m + at, s->split_l + at);
        else if (keys > 0)
            softmax_rows(1, row, keys, a->scale, s->split_m + at, s->split_l + at);
        r += count;
    }
}

/* ---- outputs of one head, from panels ---- */
INLINE void pack_values_as(const attention *a, int64_t head, space *s, const int dtype) {
    const char *values = a->values + head_bytes(a, s->head0 + head);
    for (int64_t key = 0; key < s->keys; key++) {
        const char *row = values + s->offsets[key];
        float *to = s->v + key * HERD_PANEL;
        int64_t i = 0;
        for (; i + HERD_PANEL <= a->head_dim; i += HERD_PANEL, to += SPLIT * HERD_PANEL)
            UNROLL for (int v = 0; v < HERD_PANEL; v += W) vf_store(to + v, vf_load_as(row, i + v, dtype));
        if (i < a->head_dim) {
            for (int64_t l = 0; l < HERD_PANEL; l++) to[l] = i + l < a->head_dim ? load_as(row, i + l, dtype) : 0.0f;
        }
    }
}
static void pack_values(const attention *a, int64_t head, space *s) {
    if (a->cache_dtype == HERD_F32)
        pack_values_as(a, head, s, HERD_F32);
    else if (a->cache_dtype == HERD_BF16)
        pack_values_as(a, head, s, HERD_BF16);
    else if (a->cache_dtype == HERD_F16)
        pack_values_as(a, head, s, HERD_F16);
    else
        pack_values_as(a, head, s, HERD_I8);
}

/* What every row of a tile sees as a tile, then, row by row, what only later rows see. */
static void outputs(const attention *a, int64_t head, space *s) {
    int64_t tiles = herd_ceil(s->rows, MR);
    pack_values(a, head, s);
    if (a->cache_dtype == HERD_I8) scale_probabilities(a, head, 0, s->keys, s);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = tile * s->rows / tiles, count = (tile + 1) * s->rows / tiles - from, all = herd_max(0, seen(s, from));
        const float *p = s->scores + (head * s->rows + from) * LDA;
        for (int64_t column = 0; column < a->head_dim; column += HERD_PANEL) {
            const float *v = s->v + column * SPLIT;
            float *to = s->split_o + (head * s->rows + from) * HMAX + column;
            if (all) panel_f32((int)count, p, v, all, to, HMAX, START);
            for (int64_t r = 0; r < count; r++) {
                int64_t keys = seen(s, from + r);
                if (keys <= all) continue;
                panel_f32(1, p + r * LDA + all, v + all * HERD_PANEL, keys - all, to + r * HMAX, HMAX, all ? CONTINUE : START);
            }
        }
    }
}

/* ---- outputs of one head, straight from the cache, a unit at a time ---- */
#define FEW 4  /* rows of a tile */
#define WIDE 4 /* and its vectors */
INLINE int is_direct(const attention *a, const space *s) { return s->rows <= 2 * FEW && a->head_dim % (WIDE * W) == 0; }

/* bfloat16 is widened by halves of a dword, which leaves even columns in one vector and odd ones in the next until `sort_columns`. */
INLINE void few_rows(const int mr, const float *p, int64_t begin, int64_t end, const char *values, space *s, float *to,
                     const int dtype) {
    vf acc[FEW][WIDE];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < WIDE; v++) acc[r][v] = begin ? vf_load(to + r * HMAX + v * W) : vf_set1(0.0f);
    for (int64_t key = begin; key < end; key++) {
        const char *row = values + s->offsets[key];
        vf value[WIDE];
        UNROLL for (int v = 0; v < WIDE; v++) {
            vf pair = dtype == HERD_BF16 ? vf_load(row + v / 2 * 4 * W) : vf_load_as(row, v * W, dtype);
            value[v] = dtype != HERD_BF16 ? pair : v % 2 ? vf_odd(pair) : vf_even(pair);
        }
        fetch(s, herd_max(1, WIDE * W * (int64_t)herd_size(dtype) / 64));
        UNROLL for (int r = 0; r < mr; r++) {
            vf weight = vf_set1(p[r * LDA + key]);
            UNROLL for (int v = 0; v < WIDE; v++) acc[r][v] = vf_fma(weight, value[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < WIDE; v++) vf_store(to + r * HMAX + v * W, acc[r][v]);
}
INLINE void few_rows_as(const attention *a, int64_t head, int64_t key, space *s, const int dtype) {
    for (int64_t from = 0; from < s->rows; from += FEW) {
        int64_t count = herd_min(FEW, s->rows - from), all = herd_max(key, herd_min(key + UNIT, seen(s, from)));
        const float *p = s->scores + (head * s->rows + from) * LDA;
        for (int64_t column = 0; column < a->head_dim; column += WIDE * W) {
            const char *values = a->values + head_bytes(a, s->head0 + head) + column * (int64_t)herd_size(dtype);
            float *to = s->split_o + (head * s->rows + from) * HMAX + column;
            switch (all > key ? count : 0) {
            case 4: few_rows(4, p, key, all, values, s, to, dtype); break;
            case 3: few_rows(3, p, key, all, values, s, to, dtype); break;
            case 2: few_rows(2, p, key, all, values, s, to, dtype); break;
            case 1: few_rows(1, p, key, all, values, s, to, dtype); break;
            default: break;
            }
            for (int64_t r = 0; r < count; r++) {
                int64_t end = herd_min(key + UNIT, seen(s, from + r));
                if (end > all) few_rows(1, p + r * LDA, all, end, values, s, to + r * HMAX, dtype);
            }
        }
    }
}
static void outputs_direct(const attention *a, int64_t head, int64_t key, space *s) {
    if (a->cache_dtype == HERD_F32)
        few_rows_as(a, head, key, s, HERD_F32);
    else if (a->cache_dtype == HERD_BF16)
        few_rows_as(a, head, key, s, HERD_BF16);
    else if (a->cache_dtype == HERD_F16)
        few_rows_as(a, head, key, s, HERD_F16);
    else {
        scale_probabilities(a, head, key, herd_min(key + UNIT, s->keys), s);
        few_rows_as(a, head, key, s, HERD_I8);
    }
}
static void sort_columns(const attention *a, int64_t head, space *s) {
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t column = 0; column < a->head_dim; column += 2 * W) {
            float *at = s->split_o + (head * s->rows + r) * HMAX + column;
            vf_store_pairs(at, vf_load(at), vf_load(at + W));
        }
}

/* ---- the split ---- */
/* m, l and o of the split for the rows of the KV heads at hand, in the order of memory. */
static void attend_split(const attention *a, space *s) {
    int64_t units = herd_ceil(s->keys, UNIT);
    int direct = is_direct(a, s);
    for (int64_t unit = 0; unit < units; unit++) {
        begin_unit(a, unit, s);
        for (int64_t head = 0; head < s->heads; head++) pack_keys(a, head, unit * UNIT, s);
    }
    for (int64_t head = 0; head < s->heads; head++) {
        scores(a, head, s);
        if (a->cache_dtype == HERD_I8) scale_keys(head, 0, s->keys, s->key_scales + head * SPLIT, s);
        probabilities(a, head, s);
    }
    for (int64_t unit = 0; unit < units && direct; unit++) {
        begin_unit(a, units + unit, s);
        for (int64_t head = 0; head < s->heads; head++) outputs_direct(a, head, unit * UNIT, s);
    }
    for (int64_t head = 0; head < s->heads; head++) {
        if (!direct)
            outputs(a, head, s);
        else if (a->cache_dtype == HERD_BF16)
            sort_columns(a, head, s);
    }
}

/* (m, l, o) of `rows` rows with one more split; called in ascending order, and the only place where splits meet. m and l, old and new, are
   padded to vectors. */
static void merge_rows(int64_t rows, float *m, float *l, float *o, const float *split_m, const float *split_l, const float *split_o,
                       int64_t split_stride, int64_t head_dim) {
    for (int64_t begin = 0; begin < rows; begin += W) {
        float keep[W], take[W];
        int64_t count = herd_min(W, rows - begin);
        vf old = vf_load(m + begin), new = vf_load(split_m + begin), high = vf_max(old, new);
        vf kept = vf_exp(vf_sub(old, high)), taken = vf_exp(vf_sub(new, high));
        vf sum = vf_add(vf_mul(vf_load(l + begin), kept), vf_mul(vf_load(split_l + begin), taken));
        float highs[W], sums[W];
        vf_store(highs, high);
        vf_store(sums, sum);
        vf_store(keep, kept);
        vf_store(take, taken);
        memcpy(m + begin, highs, (size_t)count * 4);
        memcpy(l + begin, sums, (size_t)count * 4);
        for (int64_t r = 0; r < count; r++) {
            float *to = o + (begin + r) * HMAX;
            const float *from = split_o + (begin + r) * split_stride;
            for (int64_t i = 0; i < head_dim; i += W)
                vf_store(to + i, vf_fma(vf_load(from + i), vf_set1(take[r]), vf_mul(vf_load(to + i), vf_set1(keep[r]))));
        }
    }
}


#endif
