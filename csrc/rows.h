/* Rows among tasks. A job has `m` rows, `rows_per_task` of them in a task, and a `dtype`, float32 or bfloat16. */
#ifndef HERD_ROWS_H
#define HERD_ROWS_H

#include "simd.h"

#define MIN_ELEMENTS 16384 /* fewer are not worth a task of their own */

static inline int64_t rows_of(int64_t width) { return herd_max(1, MIN_ELEMENTS / herd_max(1, width)); }

/* A task that calls row_of(job, row, dtype) for its rows, the dtype a constant there. */
#define ROW_TASK(name, job, row_of)                                     \
    static void name(void *job_pointer, uint32_t index) {               \
        const job *j = job_pointer;                                     \
        int64_t end = herd_min(j->m, (index + 1) * j->rows_per_task);   \
        for (int64_t row = index * j->rows_per_task; row < end; row++) { \
            if (j->dtype == HERD_F32)                                   \
                row_of(j, row, HERD_F32);                               \
            else                                                        \
                row_of(j, row, HERD_BF16);                              \
        }                                                               \
    }

#endif
