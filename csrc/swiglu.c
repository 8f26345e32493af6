/* swiglu: round(round(silu(gate)) * up), element by element; and its gradient, rounded where torch rounds it. */
#include "rows.h"

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

typedef struct {
    const char *gate, *up, *grad;
    char *gate_grad, *up_grad;
    int64_t count;
    int dtype;
} gradient;

/* Of one vector: s = 1 / (1 + e^-gate), silu' = s (1 + gate (1 - s)). */
INLINE void gradient_of(vf gate, vf up, vf grad, const int dtype, vf *gate_grad, vf *up_grad) {
    vf one = vf_set1(1.0f), s = vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set1(0.0f), gate))));
    vf slope = vf_mul(s, vf_add(one, vf_mul(gate, vf_sub(one, s))));
    *up_grad = vf_mul(grad, vf_round_as(vf_silu(gate), dtype));
    *gate_grad = vf_mul(vf_round_as(vf_mul(grad, up), dtype), slope);
}

INLINE void gradient_part(const gradient *j, int64_t begin, int64_t end, const int dtype) {
    vf gate_grad, up_grad;
    int64_t i = begin;
    for (; i + W <= end; i += W) {
        gradient_of(vf_load_as(j->gate, i, dtype), vf_load_as(j->up, i, dtype), vf_load_as(j->grad, i, dtype), dtype, &gate_grad, &up_grad);
        vf_store_as(j->gate_grad, i, dtype, gate_grad);
        vf_store_as(j->up_grad, i, dtype, up_grad);
    }
    for (; i < end; i++) {
        float lanes[2][W];
        gradient_of(vf_set1(load_as(j->gate, i, dtype)), vf_set1(load_as(j->up, i, dtype)), vf_set1(load_as(j->grad, i, dtype)), dtype,
                    &gate_grad, &up_grad);
        vf_store(lanes[0], gate_grad);
        vf_store(lanes[1], up_grad);
        store_as(j->gate_grad, i, dtype, lanes[0][0]);
        store_as(j->up_grad, i, dtype, lanes[1][0]);
    }
}

static void gradient_task(void *job_pointer, uint32_t index) {
    const gradient *j = job_pointer;
    int64_t begin = index * (int64_t)MIN_ELEMENTS, end = herd_min(j->count, begin + MIN_ELEMENTS);
    if (j->dtype == HERD_F32)
        gradient_part(j, begin, end, HERD_F32);
    else
        gradient_part(j, begin, end, HERD_BF16);
}

int ISA(herd_swiglu_gradient)(const void *gate, const void *up, const void *grad, int64_t count, int dtype, void *gate_grad,
                              void *up_grad) {
    gradient j = {.gate = gate, .up = up, .grad = grad, .gate_grad = gate_grad, .up_grad = up_grad, .count = count, .dtype = dtype};
    herd_pool_run(gradient_task, &j, (uint32_t)herd_ceil(count, MIN_ELEMENTS));
    return HERD_OK;
}
