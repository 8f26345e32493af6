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
    int (*pack)(const void *, int64_t, int64_t, int64_t, int, void *, int64_t, int64_t, int64_t);
    int (*linear)(const void *, int64_t, int64_t, const void *, int64_t, int64_t, int, int, const void *, int64_t, void *, int64_t, int);
    int (*rms_norm)(void *, int64_t, const void *, int64_t, const void *, double, int64_t, int64_t, int, void *, int64_t);
    int (*swiglu)(const void *, int64_t, const void *, int64_t, int64_t, int64_t, int, void *, int64_t);
    int (*rope_write)(void *, int64_t, const void *, int64_t, const void *, int64_t, int, int64_t, int64_t, int64_t, int64_t, const float *,
                      const float *, const int64_t *, const int64_t *, void *, void *, int);
    int (*attention)(const void *, int64_t, int, int64_t, int64_t, int64_t, float, const void *, const void *, int, int64_t, const int32_t *,
                     int64_t, const int32_t *, const int32_t *, int64_t, void *, int64_t);
} herd_kernels;

static inline int64_t herd_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t herd_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t herd_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline size_t herd_size(int dtype) { return dtype == HERD_F32 ? 4 : 2; }

#endif
