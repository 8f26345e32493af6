/* draw: the next token of each row of scores: temperature, top-k, top-p, min-p, and one uniform number by inverse distribution.

   A row is one task, from its scores to its token, so a draw depends on nothing but its row and its parameters. Weights are
   exp((score - highest) / temperature) in float32, sums of them float64: eight chains over 256 tokens, then those one after another.
   Top-k and top-p find their last token by its bits, eleven at a time from the top, without sorting: what is above it stays, and of its
   equals the lowest ids. */
#include "simd.h"

#define CHUNK 256
#define DIGIT_BITS 11
#define BUCKETS (1 << DIGIT_BITS)

typedef struct {
    const float *scores;
    int64_t stride, vocab;
    const herd_draw_params *params;
    int64_t *ids;
    int failed;
} job;

/* Ascending as the numbers are; both zeros are one. */
INLINE uint32_t order_of(float a) {
    uint32_t bits = float_to_bits(a + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* The last key that stays, and how many of its equals do; `all` where every key stays. */
typedef struct {
    uint32_t key;
    int64_t equals;
    int all;
} limit;

/* Keys from the highest down: a key stays while the mass of those before it is at most `most`. `mass` NULL: each weighs 1. */
static limit last_kept(const uint32_t *keys, const float *mass, int64_t count, double most, double *buckets) {
    double before = 0.0;
    uint32_t prefix = 0, mask = 0;
    for (int shift = 32 - DIGIT_BITS, bits = DIGIT_BITS;; bits = shift < DIGIT_BITS ? shift : DIGIT_BITS, shift -= bits) {
        for (int i = 0; i < BUCKETS; i++) buckets[i] = 0.0;
        for (int64_t i = 0; i < count; i++)
            if ((keys[i] & mask) == prefix) buckets[keys[i] >> shift & ((1u << bits) - 1)] += mass ? mass[i] : 1.0;
        int digit = (1 << bits) - 1, last = -1;
        for (; digit >= 0; digit--) {
            if (buckets[digit] == 0.0) continue;
            last = digit;
            if (before + buckets[digit] > most) break;
            before += buckets[digit];
        }
        if (digit < 0) {
            if (!mask) return (limit){.all = 1};
            digit = last; /* by rounding alone: the bucket's parts do not reach what it weighed as a whole */
            before -= buckets[digit];
        }
        prefix |= (uint32_t)digit << shift;
        mask |= ((1u << bits) - 1) << shift;
        if (shift == 0) break;
    }
    int64_t equals = 0;
    for (int64_t i = 0; i < count; i++) {
        if (keys[i] != prefix) continue;
        if (before > most) break;
        before += mass ? mass[i] : 1.0;
        equals++;
    }
    return (limit){.key = prefix, .equals = equals};
}

/* Take the weight of what does not stay. */
static void keep(limit found, const uint32_t *keys, int64_t count, float *weights) {
    if (found.all) return;
    for (int64_t i = 0; i < count; i++) {
        if (keys[i] < found.key || (keys[i] == found.key && found.equals <= 0)) weights[i] = 0.0f;
        found.equals -= keys[i] == found.key;
    }
}

static double sum_chunks(const float *weights, int64_t count, double *chunks) {
    double total = 0.0;
    for (int64_t begin = 0, c = 0; begin < count; begin += CHUNK, c++) {
        double lanes[8] = {0};
        const float *w = weights + begin; /* padded with zeros to a whole chunk */
        for (int i = 0; i < CHUNK; i += 8)
            UNROLL for (int l = 0; l < 8; l++) lanes[l] += w[i + l];
        chunks[c] = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
        total += chunks[c];
    }
    return total;
}

static int64_t best_of(const float *scores, int64_t count, float *highest) {
    float high = -INFINITY;
    int64_t i = 0, best = 0;
    vf most = vf_set1(-INFINITY);
    for (; i + W <= count; i += W) most = vf_max(most, vf_load(scores + i));
    float lanes[W];
    vf_store(lanes, most);
    for (int l = 0; l < W; l++) high = lanes[l] > high ? lanes[l] : high;
    for (; i < count; i++) high = scores[i] > high ? scores[i] : high;
    while (best + 1 < count && scores[best] != high) best++;
    *highest = high;
    return best;
}

static int64_t pick(const float *weights, int64_t count, const double *chunks, double target) {
    double before = 0.0;
    int64_t last = 0;
    for (int64_t begin = 0, c = 0; begin < count; begin += CHUNK, c++) {
        if (chunks[c] == 0.0) continue;
        if (before + chunks[c] > target || begin + CHUNK >= count) {
            double sum = before;
            for (int64_t i = begin; i < herd_min(begin + CHUNK, count); i++) {
                if (weights[i] == 0.0f) continue;
                last = i;
                sum += weights[i];
                if (sum > target) return i;
            }
            return last; /* rounding can leave the target behind the chunk's last token */
        }
        before += chunks[c];
        for (int64_t i = herd_min(begin + CHUNK, count) - 1; i >= begin; i--)
            if (weights[i] != 0.0f) {
                last = i;
                break;
            }
    }
    return last;
}

static void draw_task(void *job_pointer, uint32_t row) {
    job *j = job_pointer;
    const herd_draw_params *p = j->params + row;
    const float *scores = j->scores + row * j->stride;
    int64_t count = j->vocab, padded = herd_ceil(count, CHUNK) * CHUNK;
    float highest;
    int64_t best = best_of(scores, count, &highest);
    if (p->temperature == 0.0) {
        j->ids[row] = best;
        return;
    }
    size_t bytes = (size_t)(padded / CHUNK + BUCKETS) * sizeof(double) + (size_t)padded * 2 * sizeof(float);
    double *chunks = herd_scratch(HERD_SCRATCH_TASK, bytes), *buckets = chunks ? chunks + padded / CHUNK : NULL;
    if (!chunks) {
        __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    float *weights = (float *)(buckets + BUCKETS);
    uint32_t *keys = (uint32_t *)(weights + padded);
    /* Far from both ends of float32, so that no quotient is 0 / 0 or infinity / infinity. */
    float heat = p->temperature < 1e-30 ? 1e-30f : p->temperature > 1e30 ? 1e30f : (float)p->temperature;
    vf high = vf_set1(highest), temperature = vf_set1(heat);
    int64_t i = 0;
    for (; i + W <= count; i += W) vf_store(weights + i, vf_exp(vf_div(vf_sub(vf_load(scores + i), high), temperature)));
    for (; i < count; i++) weights[i] = exp_one((scores[i] - highest) / heat);
    for (; i < padded; i++) weights[i] = 0.0f;
    if (p->top_k > 0 && p->top_k < count) {
        for (i = 0; i < count; i++) keys[i] = order_of(scores[i]);
        keep(last_kept(keys, NULL, count, (double)(p->top_k - 1), buckets), keys, count, weights);
    }
    double total = sum_chunks(weights, count, chunks);
    if (p->top_p < 1.0) {
        for (i = 0; i < count; i++) keys[i] = float_to_bits(weights[i]);
        keep(last_kept(keys, weights, count, p->top_p * total, buckets), keys, count, weights);
    }
    if (p->min_p > 0.0)
        for (i = 0; i < count; i++) weights[i] = weights[i] < (float)p->min_p ? 0.0f : weights[i];
    if (p->top_p < 1.0 || p->min_p > 0.0) total = sum_chunks(weights, count, chunks);
    j->ids[row] = pick(weights, count, chunks, p->uniform * total);
}

int ISA(herd_draw)(const float *scores, int64_t stride, int64_t rows, int64_t vocab, const herd_draw_params *params, int64_t *ids) {
    job j = {.scores = scores, .stride = stride, .vocab = vocab, .params = params, .ids = ids};
    herd_pool_run(draw_task, &j, (uint32_t)rows);
    return j.failed ? HERD_NO_MEMORY : HERD_OK;
}
