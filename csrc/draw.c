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

INLINE float number_of(uint32_t order) { return bits_to_float(order >> 31 ? order & 0x7fffffffu : ~order); }

/* The last key that stays, and how many of its equals do, out of how many; `all` where every key stays. */
typedef struct {
    uint32_t key;
    int64_t equals, num_equals;
    int all;
} limit;

/* Keys from the highest down: a key stays while the mass of those before it is at most `most`. Each weighs 1, or the number whose bits it is. */
INLINE limit last_kept(const uint32_t *keys, const int by_mass, int64_t count, double most, double *buckets) {
    double before = 0.0;
    uint32_t prefix = 0, mask = 0;
    for (int shift = 32 - DIGIT_BITS, bits = DIGIT_BITS;; bits = shift < DIGIT_BITS ? shift : DIGIT_BITS, shift -= bits) {
        for (int i = 0; i < BUCKETS; i++) buckets[i] = 0.0;
        for (int64_t i = 0; i < count; i++)
            if ((keys[i] & mask) == prefix) buckets[keys[i] >> shift & ((1u << bits) - 1)] += by_mass ? bits_to_float(keys[i]) : 1.0;
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
    limit found = {.key = prefix};
    for (int64_t i = 0; i < count; i++) {
        if (keys[i] != prefix) continue;
        found.num_equals++;
        if (before > most) continue;
        before += by_mass ? bits_to_float(prefix) : 1.0;
        found.equals++;
    }
    return found;
}

/* The bits of the weights that are at least `least`, in their order; how many they are. `padded` is a multiple of 16. */
static int64_t gather(const float *weights, int64_t padded, float least, uint32_t *keys) {
    int64_t found = 0;
#if HERD_LEVEL >= 2
    for (int64_t i = 0; i < padded; i += W) {
        vf some = vf_load(weights + i);
        __mmask16 mask = _mm512_cmp_ps_mask(some, _mm512_set1_ps(least), _CMP_GE_OQ);
        if (!mask) continue;
        vf_store(keys + found, _mm512_maskz_compress_ps(mask, some));
        found += __builtin_popcount(mask);
    }
#else
    for (int64_t i = 0; i < padded; i++) {
        keys[found] = float_to_bits(weights[i]);
        found += weights[i] >= least;
    }
#endif
    return found;
}

/* last_kept of weights, the highest of which is 1. Those that can stay are few as a rule: smaller ones are looked at only where the mass of
   these does not reach. LIKELY is a border of buckets, so what stays is found by the same sums either way. */
#define LIKELY 0x1p-10f
static limit last_of_mass(const float *weights, int64_t padded, double most, uint32_t *keys, double *buckets) {
    limit found = last_kept(keys, 1, gather(weights, padded, LIKELY, keys), most, buckets);
    return found.all ? last_kept(keys, 1, gather(weights, padded, 0.0f, keys), most, buckets) : found;
}

/* Take the weight of what does not stay, by the numbers that the keys stand for. */
static void keep(limit found, float least, const float *numbers, int64_t count, float *weights) {
    if (found.all) return;
    for (int64_t i = 0; i < count; i++) weights[i] = numbers[i] < least ? 0.0f : weights[i];
    if (found.equals == found.num_equals) return;
    for (int64_t i = 0; i < count; i++)
        if (numbers[i] == least && found.equals-- <= 0) weights[i] = 0.0f;
}

static double sum_chunks(const float *weights, int64_t count, double *chunks) {
    double total = 0.0;
    for (int64_t begin = 0, c = 0; begin < count; begin += CHUNK, c++) {
        double lanes[8] = {0};
        const float *w = weights + begin; /* padded with zeros to a whole chunk */
        uint32_t any = 0;
        for (int i = 0; i < CHUNK; i++) any |= float_to_bits(w[i]);
        chunks[c] = 0.0;
        if (!any) continue;
        for (int i = 0; i < CHUNK; i += 8)
            UNROLL for (int l = 0; l < 8; l++) lanes[l] += w[i + l];
        chunks[c] = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
        total += chunks[c];
    }
    return total;
}

static float highest_of(const float *scores, int64_t count) {
    float high = -INFINITY;
    int64_t i = 0;
    vf most = vf_set1(-INFINITY);
    for (; i + W <= count; i += W) most = vf_max(most, vf_load(scores + i));
    float lanes[W];
    vf_store(lanes, most);
    for (int l = 0; l < W; l++) high = lanes[l] > high ? lanes[l] : high;
    for (; i < count; i++) high = scores[i] > high ? scores[i] : high;
    return high;
}

static int64_t first_at(const float *scores, int64_t count, float highest) {
    int64_t best = 0;
    while (best + 1 < count && scores[best] != highest) best++;
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
    float highest = highest_of(scores, count);
    if (p->temperature == 0.0) {
        j->ids[row] = first_at(scores, count, highest);
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
        limit found = last_kept(keys, 0, count, (double)(p->top_k - 1), buckets);
        keep(found, number_of(found.key), scores, count, weights);
    }
    double total = sum_chunks(weights, count, chunks);
    if (p->top_p < 1.0) {
        limit found = last_of_mass(weights, padded, p->top_p * total, keys, buckets);
        keep(found, bits_to_float(found.key), weights, count, weights);
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
