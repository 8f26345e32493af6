/* The C ABI of herd's CPU kernels: what src/herd/kernels/library.py calls through ctypes.

   Plain functions over pointers and sizes; strides count elements; nothing here knows Python, torch or a model. Whoever calls has validated
   every shape, stride, block id and position: these functions trust their arguments.

   THE LAW. A result depends on its own row, weights and keys alone: every output element has one order of accumulation, whatever the number
   of rows, their places, the chunking of a prompt and the number of threads. Threads share out outputs, never a sum. Attention sums over
   splits of HERD_SPLIT keys, aligned at position 0; each split's softmax is its own, and splits are merged in ascending order. */
#ifndef HERD_H
#define HERD_H

#include <stdint.h>

#if defined(__GNUC__)
#define HERD_API __attribute__((visibility("default")))
#else
#define HERD_API
#endif

#define HERD_ABI 8
#define HERD_PANEL 32      /* outputs of a panel of packed weights: [panel][K][32] float32, [panel][K/2][32][2] bfloat16 */
#define HERD_SPLIT 128     /* keys of a split */
#define HERD_MAX_HEAD 128  /* largest head size */
#define HERD_MAX_GROUP 64  /* most query heads that share a KV head */

enum herd_dtype { HERD_F32 = 0, HERD_BF16 = 1, HERD_F16 = 2, HERD_I8 = 3 };
enum herd_isa {
    HERD_SCALAR = 0,
    HERD_AVX2 = 1,
    HERD_AVX512 = 2,
    HERD_AVX512VNNI = 3, /* as AVX512 but for products of quantised matrices */
    HERD_AVX512BF16 = 4, /* VNNI too: no processor has one without the other */
    HERD_AMX = 5,        /* as AVX512BF16 but for products of quantised matrices */
    HERD_NEON = 6,       /* as SCALAR but for products of quantised matrices */
    HERD_NUM_ISA = 7
};
enum herd_status { HERD_OK = 0, HERD_NO_MEMORY = 1, HERD_UNSUPPORTED = 2, HERD_BAD_BATCH = 3 };
/* What the codes of a quantised matrix are: integers, or e4m3 over inputs as they come, or over inputs made e4m3 too. */
enum herd_codes { HERD_INTEGERS = 0, HERD_E4M3 = 1, HERD_E4M3_INPUTS = 2 };
enum herd_epilogue { HERD_STORE = 0, HERD_ADD = 1, HERD_SWIGLU = 2 };

/* Library. */
HERD_API int herd_abi(void);
HERD_API int herd_isa_built(int isa);     /* 1 if this library holds kernels of that level */
HERD_API int herd_isa_supported(int isa); /* 1 if it holds them and this processor runs them */
HERD_API int herd_isa(void);              /* the level in use */
HERD_API int herd_set_isa(int isa);       /* HERD_UNSUPPORTED if it cannot be */
HERD_API int herd_num_threads(void);
HERD_API void herd_set_num_threads(int count); /* at least 1; the calling thread is one of them */
HERD_API void herd_set_spin(int64_t nanoseconds); /* how long an idle worker spins before it sleeps */
HERD_API int herd_pool_stress(int64_t jobs, int64_t tasks); /* for tests: many short jobs; the number of tasks that did not run once */

/* Packed weights. Row r of the source goes to row (r0 + r) of the packed matrix, whose panel i lies at i*panel_step + panel_offset; the
   destination starts zeroed. */
HERD_API int herd_pack(const void *src, int64_t src_stride, int64_t rows, int64_t k, int dtype, void *dst, int64_t row0, int64_t panel_step,
                       int64_t panel_offset);
/* Rows `ids` of the packed matrix, as they were. */
HERD_API int herd_unpack(const void *packed, int64_t k, int dtype, int64_t panel_step, int64_t panel_offset, const int64_t *ids,
                         int64_t count, void *out, int64_t out_stride);

/* out[m, n] = sum over k of x[m, k] * w[n, k], summed in float32 in ascending k, rounded to `dtype`. float32: chains of
   256, added up; bfloat16: one chain, the odd one of each pair first.
   HERD_ADD: out = round(residual + round(sum)). HERD_SWIGLU: w holds gate and up in alternating panels, n outputs each;
   out = round(round(silu(round(gate))) * round(up)). `out_dtype` is `dtype`, or float32 for a widened copy of the rounded value. */
HERD_API int herd_linear(const void *x, int64_t x_stride, int64_t m, const void *w, int64_t n, int64_t k, int dtype, int epilogue,
                         const void *residual, int64_t residual_stride, void *out, int64_t out_stride, int out_dtype);

/* A weight matrix. Quantised, a value means scale * (value - zero); outputs n share a scale and a zero point over `group` inputs. Its product
   is that of inputs made int8: of each row, or of each `input_group` of its numbers, scale = largest magnitude / 127 and byte = x / scale
   rounded half to even. Sums within a segment, whose scales are all one, are integers; see qlinear.c for their order.
   Of e4m3 a value means scale * value, `input_group` and `zeros` are 0, `group` is at most 256 or 0; see fp8.c. */
typedef struct {
    const void *data;         /* aligned to 64 bytes */
    const int32_t *columns;   /* the input that stored column k belongs to; or NULL: input k */
    int64_t bits;             /* 0: packed by herd_pack, the rest means nothing; 4 or 8: by herd_pack_quantised */
    int64_t group;            /* multiple of 8 that divides K, of input_group too; 0: all of K */
    int64_t input_group;      /* multiple of 8, at most 1024; 0: one scale a row, and then `group` is at most 1024 or 0 */
    int64_t scale_dtype, zeros, bytes;
    int64_t codes;            /* enum herd_codes; `bits` is 8 where they are e4m3 */
    double bound;             /* HERD_E4M3_INPUTS: what caps the largest magnitude of a row; 0: nothing */
} herd_matrix;

/* Rows of K values into packed panels, as herd_pack; the destination starts zeroed. Values: int8 or e4m3 [rows, K], or nibbles [rows, K/2],
   even k in the low half. scales [rows, K/group], each a number of scale_dtype; zeros: bytes of the same shape where the matrix has them. */
HERD_API int herd_pack_quantised(const void *values, const float *scales, const uint8_t *zeros, int64_t rows, int64_t k,
                                 const herd_matrix *matrix, void *dst, int64_t row0, int64_t panel_step, int64_t panel_offset);
/* Rows `ids` as numbers, in the order of the inputs; float32, or rounded to bfloat16. */
HERD_API int herd_unpack_quantised(const herd_matrix *matrix, int64_t k, int64_t panel_step, int64_t panel_offset, const int64_t *ids,
                                   int64_t count, void *out, int64_t out_stride, int out_dtype);
/* Bytes that n packed outputs of k inputs take; gated: two matrices of n. */
HERD_API int64_t herd_quantised_bytes(const herd_matrix *matrix, int64_t n, int64_t k, int gated);
/* herd_linear over a quantised matrix: the same epilogues. */
HERD_API int herd_linear_quantised(const void *x, int64_t x_stride, int64_t m, const herd_matrix *w, int64_t n, int64_t k, int dtype,
                                   int epilogue, const void *residual, int64_t residual_stride, void *out, int64_t out_stride,
                                   int out_dtype);

/* normed = round(round(x * rsqrt(mean(x^2) + eps)) * weight). With `delta`, first x = round(x + delta), in place. */
HERD_API int herd_rms_norm(void *x, int64_t x_stride, const void *delta, int64_t delta_stride, const void *weight, double eps, int64_t m,
                           int64_t d, int dtype, void *out, int64_t out_stride);

/* out = round(round(silu(gate)) * up). */
HERD_API int herd_swiglu(const void *gate, int64_t gate_stride, const void *up, int64_t up_stride, int64_t m, int64_t f, int dtype,
                         void *out, int64_t out_stride);

/* Gradients, all contiguous. grad [m, d] is that of herd_rms_norm's normed rows; x_grad is rounded once, and weight_grad [d] is float32,
   added up over runs of HERD_GRADIENT_ROWS rows, `partial` [ceil(m / HERD_GRADIENT_ROWS), d], in ascending order. */
#define HERD_GRADIENT_ROWS 64
HERD_API int herd_rms_norm_gradient(const void *x, const void *weight, const void *grad, double eps, int64_t m, int64_t d, int dtype,
                                    void *x_grad, float *partial, float *weight_grad);
/* Of `count` elements: up_grad = round(grad * round(silu(gate))), gate_grad = round(round(grad * up) * silu'(gate)). */
HERD_API int herd_swiglu_gradient(const void *gate, const void *up, const void *grad, int64_t count, int dtype, void *gate_grad,
                                  void *up_grad);
/* Heads x [tokens, heads, H] rotated as in herd_rope_write, into `out`. cos and sin are [period, H/2] with rows `stride` apart; token t has
   row t % period. */
HERD_API int herd_rotate(const void *x, int64_t tokens, int64_t heads, int64_t head_dim, int dtype, const float *cos, const float *sin,
                         int64_t stride, int64_t period, void *out);

/* Rows of logits [m, vocab]: losses[r] = log Z - logits[r, targets[r]] and log_zs[r], Z the softmax's normaliser; where the target is
   `ignore`, both are 0. With `gradient` the logits become the gradient of sum(losses + z_loss log Z^2), rounded once to their dtype. */
HERD_API int herd_cross_entropy(void *logits, int64_t stride, int64_t m, int64_t vocab, int dtype, const int64_t *targets, int64_t ignore,
                                double z_loss, int gradient, float *losses, float *log_zs);

/* Probabilities of rows of causal scores x [m, n], rounded once to out_dtype: row r is the softmax of scale * x over its first
   first + r % run keys, at least 1, and 0 behind them. x is scratch afterwards. */
HERD_API int herd_softmax(float *x, int64_t m, int64_t n, int64_t first, int64_t run, float scale, void *out, int out_dtype);
/* x [m, n], the gradient of probabilities p, becomes that of the scores: round(scale * p * (x - delta[r])). */
HERD_API int herd_softmax_gradient(void *x, const void *p, const float *delta, int64_t m, int64_t n, float scale, int dtype);

/* Rotate q in place; rotate k and copy v into the caches at `slots`. A slot is block * block_size + offset, and lies at slot * K * H.
   cos and sin are [positions, H/2]. Slots are distinct. In a cache of HERD_I8 each vector of H numbers is H bytes and its scale, a float32
   wherever that falls: scale = largest magnitude / 127, byte = number / scale rounded half to even; a slot lies at slot * K * (H + 4). Of a
   vector that is not finite the scale is NaN. */
HERD_API int herd_rope_write(void *q, int64_t q_stride, const void *k, int64_t k_stride, const void *v, int64_t v_stride, int dtype,
                             int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim, const float *cos, const float *sin,
                             const int64_t *positions, const int64_t *slots, void *key_cache, void *value_cache, int cache_dtype);

/* Attention of a ragged batch over paged caches [blocks, block_size, K, H]; of HERD_I8: [blocks, block_size, K, H + 4] bytes. Sequence s owns tokens starts[s] .. starts[s+1], at positions
   first[s], first[s]+1, ...; each sees keys 0 to its own position. Row s of `block_table` (stride table_stride) lists its blocks. */
HERD_API int herd_attention(const void *q, int64_t q_stride, int dtype, int64_t heads, int64_t kv_heads, int64_t head_dim, float scale,
                            const void *key_cache, const void *value_cache, int cache_dtype, int64_t block_size, const int32_t *block_table,
                            int64_t table_stride, const int32_t *starts, const int32_t *first, int64_t num_sequences, void *out,
                            int64_t out_stride);

/* A whole model, for herd_forward. `embedding` is plain rows [vocab, hidden], or NULL: the rows of `head`.
   The arenas hold as many rows as a batch may have tokens; `written` has a byte for each slot, zero between calls. */
typedef struct {
    const void *norm, *ffn_norm;
    void *keys, *values;
    herd_matrix qkv, out, gate_up, down;
} herd_layer;
typedef struct {
    const herd_layer *layers;
    const void *norm, *embedding;
    const float *cos, *sin;
    char *residual, *normed, *qkv, *mixed, *ffn, *delta;
    int64_t *positions, *slots;
    uint8_t *written;
    int64_t num_layers, vocab, hidden, ffn_dim, heads, kv_heads, head_dim, num_blocks, block_size, num_positions, dtype, cache_dtype;
    double eps, scale;      /* of the norms; of the scores of attention */
    herd_matrix head;
} herd_model;
typedef struct {
    const int32_t *tokens, *starts, *first, *table;
    const int64_t *rows;    /* the tokens whose result is wanted, ascending */
    float *scores;          /* of the wanted rows, by `head`; or NULL */
    int64_t num_sequences, num_rows, table_stride, num_scores, scores_stride;
} herd_batch;

/* The residual stream of the wanted rows after the last block, normalised, in `normed`, and scored if `scores` is given; keys and values of every token in the caches.
   Calls the operators above in the order of the model, so it has their bits. HERD_BAD_BATCH, before anything is written, for an id, a block
   or a position out of range, or a slot written twice. */
HERD_API int herd_forward(const herd_model *model, const herd_batch *batch);

/* ids[r] = the token drawn from row r of `scores` [rows, vocab], finite but for minus infinity, which is never drawn. Temperature 0 takes the
   highest, the lowest id among equals. Else, in this order: `top_k` highest scores (0: all), `top_p` (a token stays while the mass of the
   likelier ones is at most top_p of it all), `min_p` (times the likeliest's weight), and the token at `uniform`, in [0, 1), of what is left
   in the order of ids. */
typedef struct {
    double temperature, top_p, min_p, uniform;
    int64_t top_k;
} herd_draw_params;
HERD_API int herd_draw(const float *scores, int64_t stride, int64_t rows, int64_t vocab, const herd_draw_params *params, int64_t *ids);

/* Read memory and do nothing with it, for measurements. */
HERD_API int herd_read(const void *data, int64_t bytes);

#endif
