/* What the files of this library share: the thread pool, scratch memory and the table of kernels of one instruction set. */
#ifndef HERD_INTERNAL_H
#define HERD_INTERNAL_H

#include "herd.h"

#include <stddef.h>

typedef void (*herd_task)(void *job, uint32_t index);

/* Run task(job, 0 .. count-1), each once, on the calling thread and on workers that are free. Returns when all are done.
   Order and thread are unspecified: tasks write disjoint outputs. A call from a second thread meanwhile runs on that thread alone. */
void herd_pool_run(herd_task task, void *job, uint32_t count);

/* Memory of the calling thread, aligned to 64 bytes, kept from call to call and freed with the thread; NULL when there is none.
   `slot` tells callers apart that need two at once. What a slot held is lost when it grows. */
enum { HERD_SCRATCH_CALL = 0, HERD_SCRATCH_TASK = 1, HERD_SCRATCH_SLOTS = 2 };
void *herd_scratch(int slot, size_t bytes);

typedef struct {
    __typeof__(herd_pack) *pack;
    __typeof__(herd_linear) *linear;
    __typeof__(herd_linear_quantised) *linear_quantised, *linear_fp8;
    __typeof__(herd_rms_norm) *rms_norm;
    __typeof__(herd_swiglu) *swiglu;
    __typeof__(herd_rms_norm_gradient) *rms_norm_gradient;
    __typeof__(herd_swiglu_gradient) *swiglu_gradient;
    __typeof__(herd_rotate) *rotate;
    __typeof__(herd_cross_entropy) *cross_entropy;
    __typeof__(herd_softmax) *softmax;
    __typeof__(herd_softmax_gradient) *softmax_gradient;
    __typeof__(herd_rope_write) *rope_write;
    __typeof__(herd_attention) *attention;
    __typeof__(herd_draw) *draw;
    __typeof__(herd_read) *read;
} herd_kernels;

static inline int64_t herd_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t herd_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t herd_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline size_t herd_size(int dtype) { return dtype == HERD_F32 ? 4 : dtype == HERD_I8 ? 1 : 2; }
/* Bytes of a vector in a cache: int8 has its scale behind it. */
static inline int64_t herd_vector_bytes(int64_t head_dim, int dtype) {
    return head_dim * (int64_t)herd_size(dtype) + (dtype == HERD_I8 ? (int64_t)sizeof(float) : 0);
}

#endif
