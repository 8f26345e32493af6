/* swiglu: round(round(silu(gate)) * up), element by element. */
#include "simd.h"

#define MIN_ELEMENTS 16384

typedef struct {
    const char *gate, *up;
    char *out;
    int64_t gate_stride, up_stride, out_stride, m, f, columns, column_tasks;
    int dtype;
} job;

INLINE void swiglu_part(const job *j, int64_t row, int64_t begin, int64_t end, const int dtype) {
    int64_t size = (int64_t)herd_size(dtype), i = begin;
    const char *gate = j->gate + row * j->gate_stride * size, *up = j->up + row * j->up_stride * size;
    char *out = j->out + row * j->out_stride * size;
    for (; i + W <= end; i += W)
        vf_store_as(out, i, dtype, vf_mul(vf_round_as(vf_silu(vf_load_as(gate, i, dtype)), dtype), vf_load_as(up, i, dtype)));
    for (; i < end; i++) store_as(out, i, dtype, round_as(silu_one(load_as(gate, i, dtype)), dtype) * load_as(up, i, dtype));
}

static void swiglu_task(void *job_pointer, uint32_t index) {
    const job *j = job_pointer;
    int64_t row = index / j->column_tasks, begin = (index % j->column_tasks) * j->columns, end = herd_min(j->f, begin + j->columns);
    if (j->dtype == HERD_F32)
        swiglu_part(j, row, begin, end, HERD_F32);
    else
        swiglu_part(j, row, begin, end, HERD_BF16);
}

int ISA(herd_swiglu)(const void *gate, int64_t gate_stride, const void *up, int64_t up_stride, int64_t m, int64_t f, int dtype, void *out,
                     int64_t out_stride) {
    job j = {.gate = gate, .up = up, .out = out, .gate_stride = gate_stride, .up_stride = up_stride, .out_stride = out_stride,
             .m = m, .f = f, .dtype = dtype, .columns = MIN_ELEMENTS};
    j.column_tasks = herd_max(1, herd_ceil(f, j.columns));
    herd_pool_run(swiglu_task, &j, (uint32_t)(m * j.column_tasks));
    return HERD_OK;
}
