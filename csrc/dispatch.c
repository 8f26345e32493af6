/* Which level runs, and the ABI's entry points. The build defines HERD_HAVE_... for the levels that the compiler could make. */
#define _GNU_SOURCE
#include "internal.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define DECLARE_QUANTISED(level) __typeof__(herd_linear_quantised) herd_linear_quantised_##level;
#define DECLARE(level)                                   \
    __typeof__(herd_pack) herd_pack_##level;             \
    __typeof__(herd_linear) herd_linear_##level;         \
    __typeof__(herd_rms_norm) herd_rms_norm_##level;     \
    __typeof__(herd_swiglu) herd_swiglu_##level;         \
    __typeof__(herd_rms_norm_gradient) herd_rms_norm_gradient_##level; \
    __typeof__(herd_swiglu_gradient) herd_swiglu_gradient_##level; \
    __typeof__(herd_rotate) herd_rotate_##level;         \
    __typeof__(herd_cross_entropy) herd_cross_entropy_##level; \
    __typeof__(herd_softmax) herd_softmax_##level;       \
    __typeof__(herd_softmax_gradient) herd_softmax_gradient_##level; \
    __typeof__(herd_rope_write) herd_rope_write_##level; \
    __typeof__(herd_attention) herd_attention_##level;   \
    __typeof__(herd_draw) herd_draw_##level;             \
    __typeof__(herd_read) herd_read_##level;             \
    __typeof__(herd_linear_quantised) herd_linear_fp8_##level; \
    DECLARE_QUANTISED(level)
/* The products of integers of one level, all else of a plainer one. */
#define TABLE(level, rest)                                                                                                    \
    {                                                                                                                         \
        .linear_quantised = herd_linear_quantised_##level, .pack = herd_pack_##rest, .linear = herd_linear_##rest,            \
        .rms_norm = herd_rms_norm_##rest, .swiglu = herd_swiglu_##rest, .rope_write = herd_rope_write_##rest,                 \
        .attention = herd_attention_##rest, .draw = herd_draw_##rest, .read = herd_read_##rest,                               \
        .linear_fp8 = herd_linear_fp8_##rest, .cross_entropy = herd_cross_entropy_##rest,                                     \
        .softmax = herd_softmax_##rest, .softmax_gradient = herd_softmax_gradient_##rest,                                     \
        .rms_norm_gradient = herd_rms_norm_gradient_##rest, .swiglu_gradient = herd_swiglu_gradient_##rest,                   \
        .rotate = herd_rotate_##rest                                                                                          \
    }

DECLARE(scalar)
#ifdef HERD_HAVE_AVX2
DECLARE(avx2)
#endif
#ifdef HERD_HAVE_AVX512
DECLARE(avx512)
#endif
#ifdef HERD_HAVE_AVX512VNNI
DECLARE_QUANTISED(avx512vnni)
#endif
#ifdef HERD_HAVE_AVX512BF16
DECLARE(avx512bf16)
#endif
#ifdef HERD_HAVE_AMX
DECLARE_QUANTISED(amx)
#endif
#ifdef HERD_HAVE_NEON
DECLARE_QUANTISED(neon)
#endif

static const herd_kernels levels[HERD_NUM_ISA] = {
    [HERD_SCALAR] = TABLE(scalar, scalar),
#ifdef HERD_HAVE_AVX2
    [HERD_AVX2] = TABLE(avx2, avx2),
#endif
#ifdef HERD_HAVE_AVX512
    [HERD_AVX512] = TABLE(avx512, avx512),
#endif
#ifdef HERD_HAVE_AVX512VNNI
    [HERD_AVX512VNNI] = TABLE(avx512vnni, avx512),
#endif
#ifdef HERD_HAVE_AVX512BF16
    [HERD_AVX512BF16] = TABLE(avx512bf16, avx512bf16),
#endif
#ifdef HERD_HAVE_AMX
    [HERD_AMX] = TABLE(amx, avx512bf16),
#endif
#ifdef HERD_HAVE_NEON
    [HERD_NEON] = TABLE(neon, scalar),
#endif
};

static _Atomic int level = HERD_SCALAR;

int herd_abi(void) { return HERD_ABI; }

int herd_isa_built(int isa) { return isa >= 0 && isa < HERD_NUM_ISA && levels[isa].linear != NULL; }

#if defined(__x86_64__) && defined(__GNUC__)
/* Whether there are tiles of int8, and the system lends this process their registers: it has to be asked. */
static int has_tiles(void) {
#if defined(__linux__)
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return 0; /* AMX-TILE, AMX-INT8 */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;              /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return 0;
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
#else
    return 0;
#endif
}
#endif

/* What the processor has and the system saves on a context switch. */
static int runs(int isa) {
    if (isa == HERD_SCALAR) return 1;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 0; /* each of these has F16C too */
    if (isa == HERD_AVX2) return 1;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
          __builtin_cpu_supports("avx512dq")))
        return 0;
    if (isa == HERD_AVX512) return 1;
    if (!__builtin_cpu_supports("avx512vnni")) return 0;
    if (isa == HERD_AVX512VNNI) return 1;
#if defined(HERD_HAVE_AVX512BF16)
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
    if (isa == HERD_AVX512BF16) return 1;
#endif
    return isa == HERD_AMX && has_tiles();
#endif
#if defined(__aarch64__) && defined(__linux__)
    return isa == HERD_NEON && (getauxval(AT_HWCAP) & 1ul << 20); /* HWCAP_ASIMDDP */
#endif
    return 0;
}

int herd_isa_supported(int isa) { return herd_isa_built(isa) && runs(isa); }

int herd_isa(void) { return atomic_load_explicit(&level, memory_order_relaxed); }

int herd_set_isa(int isa) {
    if (!herd_isa_supported(isa)) return HERD_UNSUPPORTED;
    atomic_store(&level, isa);
    return HERD_OK;
}

int herd_pack(const void *src, int64_t src_stride, int64_t rows, int64_t k, int dtype, void *dst, int64_t row0, int64_t panel_step,
              int64_t panel_offset) {
    return levels[herd_isa()].pack(src, src_stride, rows, k, dtype, dst, row0, panel_step, panel_offset);
}

int herd_unpack(const void *packed, int64_t k, int dtype, int64_t panel_step, int64_t panel_offset, const int64_t *ids, int64_t count,
                void *out, int64_t out_stride) {
    int64_t steps = dtype == HERD_F32 ? k : (k + 1) / 2;
    for (int64_t i = 0; i < count; i++) {
        int64_t panel = ids[i] / HERD_PANEL * panel_step + panel_offset;
        const uint32_t *from = (const uint32_t *)packed + panel * steps * HERD_PANEL + ids[i] % HERD_PANEL;
        if (dtype == HERD_F32) {
            uint32_t *to = (uint32_t *)out + i * out_stride;
            for (int64_t step = 0; step < k; step++) to[step] = from[step * HERD_PANEL];
        } else {
            uint16_t *to = (uint16_t *)out + i * out_stride;
            for (int64_t step = 0; step < k; step++) to[step] = (uint16_t)(from[step / 2 * HERD_PANEL] >> (step % 2 * 16));
        }
    }
    return HERD_OK;
}

int herd_linear(const void *x, int64_t x_stride, int64_t m, const void *w, int64_t n, int64_t k, int dtype, int epilogue,
                const void *residual, int64_t residual_stride, void *out, int64_t out_stride, int out_dtype) {
    return levels[herd_isa()].linear(x, x_stride, m, w, n, k, dtype, epilogue, residual, residual_stride, out, out_stride, out_dtype);
}

int herd_linear_quantised(const void *x, int64_t x_stride, int64_t m, const herd_matrix *w, int64_t n, int64_t k, int dtype, int epilogue,
                          const void *residual, int64_t residual_stride, void *out, int64_t out_stride, int out_dtype) {
    const herd_kernels *kernels = &levels[herd_isa()];
    return (w->codes == HERD_INTEGERS ? kernels->linear_quantised : kernels->linear_fp8)(x, x_stride, m, w, n, k, dtype, epilogue, residual,
                                                                                         residual_stride, out, out_stride, out_dtype);
}

int herd_rms_norm(void *x, int64_t x_stride, const void *delta, int64_t delta_stride, const void *weight, double eps, int64_t m, int64_t d,
                  int dtype, void *out, int64_t out_stride) {
    return levels[herd_isa()].rms_norm(x, x_stride, delta, delta_stride, weight, eps, m, d, dtype, out, out_stride);
}

int herd_swiglu(const void *gate, int64_t gate_stride, const void *up, int64_t up_stride, int64_t m, int64_t f, int dtype, void *out,
                int64_t out_stride) {
    return levels[herd_isa()].swiglu(gate, gate_stride, up, up_stride, m, f, dtype, out, out_stride);
}

int herd_rms_norm_gradient(const void *x, const void *weight, const void *grad, double eps, int64_t m, int64_t d, int dtype, void *x_grad,
                           float *partial, float *weight_grad) {
    return levels[herd_isa()].rms_norm_gradient(x, weight, grad, eps, m, d, dtype, x_grad, partial, weight_grad);
}

int herd_swiglu_gradient(const void *gate, const void *up, const void *grad, int64_t count, int dtype, void *gate_grad, void *up_grad) {
    return levels[herd_isa()].swiglu_gradient(gate, up, grad, count, dtype, gate_grad, up_grad);
}

int herd_rotate(const void *x, int64_t tokens, int64_t heads, int64_t head_dim, int dtype, const float *cos, const float *sin,
                int64_t stride, int64_t period, void *out) {
    return levels[herd_isa()].rotate(x, tokens, heads, head_dim, dtype, cos, sin, stride, period, out);
}

int herd_cross_entropy(void *logits, int64_t stride, int64_t m, int64_t vocab, int dtype, const int64_t *targets, int64_t ignore,
                       double z_loss, int gradient, float *losses, float *log_zs) {
    return levels[herd_isa()].cross_entropy(logits, stride, m, vocab, dtype, targets, ignore, z_loss, gradient, losses, log_zs);
}

int herd_softmax(float *x, int64_t m, int64_t n, int64_t first, int64_t run, float scale, void *out, int out_dtype) {
    return levels[herd_isa()].softmax(x, m, n, first, run, scale, out, out_dtype);
}

int herd_softmax_gradient(void *x, const void *p, const float *delta, int64_t m, int64_t n, float scale, int dtype) {
    return levels[herd_isa()].softmax_gradient(x, p, delta, m, n, scale, dtype);
}

int herd_rope_write(void *q, int64_t q_stride, const void *k, int64_t k_stride, const void *v, int64_t v_stride, int dtype, int64_t tokens,
                    int64_t heads, int64_t kv_heads, int64_t head_dim, const float *cos, const float *sin, const int64_t *positions,
                    const int64_t *slots, void *key_cache, void *value_cache, int cache_dtype) {
    return levels[herd_isa()].rope_write(q, q_stride, k, k_stride, v, v_stride, dtype, tokens, heads, kv_heads, head_dim, cos, sin,
                                         positions, slots, key_cache, value_cache, cache_dtype);
}

int herd_attention(const void *q, int64_t q_stride, int dtype, int64_t heads, int64_t kv_heads, int64_t head_dim, float scale,
                   const void *key_cache, const void *value_cache, int cache_dtype, int64_t block_size, const int32_t *block_table,
                   int64_t table_stride, const int32_t *starts, const int32_t *first, int64_t num_sequences, void *out,
                   int64_t out_stride) {
    return levels[herd_isa()].attention(q, q_stride, dtype, heads, kv_heads, head_dim, scale, key_cache, value_cache, cache_dtype,
                                        block_size, block_table, table_stride, starts, first, num_sequences, out, out_stride);
}

int herd_draw(const float *scores, int64_t stride, int64_t rows, int64_t vocab, const herd_draw_params *params, int64_t *ids) {
    return levels[herd_isa()].draw(scores, stride, rows, vocab, params, ids);
}

int herd_read(const void *data, int64_t bytes) { return levels[herd_isa()].read(data, bytes); }
