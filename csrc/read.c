/* read: every byte once, by all threads, and nothing else: what memory gives, which the other kernels are measured against. */
#include "simd.h"

#define TASK_BYTES 1048576

typedef struct {
    const char *data;
    int64_t bytes;
    uint32_t found;
} job;

static void read_task(void *job_pointer, uint32_t index) {
    job *j = job_pointer;
    const char *p = j->data + (int64_t)index * TASK_BYTES, *end = j->data + herd_min(j->bytes, ((int64_t)index + 1) * TASK_BYTES);
    vf sum[8];
    UNROLL for (int i = 0; i < 8; i++) sum[i] = vf_set1(0.0f);
    for (; p + sizeof sum <= end; p += sizeof sum)
        UNROLL for (int i = 0; i < 8; i++) sum[i] = vf_max(sum[i], vf_load(p + i * sizeof(vf)));
    UNROLL for (int i = 1; i < 8; i++) sum[0] = vf_max(sum[0], sum[i]);
    float lanes[W];
    vf_store(lanes, sum[0]);
    __atomic_fetch_or(&j->found, float_to_bits(lanes[0]), __ATOMIC_RELAXED); /* so that the loads are not left out */
}

int ISA(herd_read)(const void *data, int64_t bytes) {
    job j = {.data = data, .bytes = bytes};
    herd_pool_run(read_task, &j, (uint32_t)herd_ceil(bytes, TASK_BYTES));
    return j.found == 0x12345678 ? HERD_OK : HERD_OK;
}
