/* Quantised matrices into the layout of qlinear.c or fp8.c, and rows of them back. Plain C: done once a matrix. */
#include "qshape.h"

#include <string.h>

typedef struct {
    const herd_matrix *matrix;
    matrix_shape shape;
    const uint8_t *values;
    const float *scales;
    const uint8_t *zeros;
    int64_t rows, k, row0, panel_step, panel_offset, first_panel;
    char *dst;
} packing;

static uint16_t narrow(float value, int dtype) { /* exact: whoever calls has seen that every scale is of the dtype */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (dtype == HERD_BF16) return (uint16_t)(bits >> 16);
    uint32_t sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255, fraction = bits & 0x7fffff;
    if (exponent >= 113) return (uint16_t)(sign | (exponent - 112) << 10 | fraction >> 13);
    return (uint16_t)(exponent < 103 ? sign : sign | (fraction | 0x800000) >> (126 - exponent));
}

static float widen(uint16_t bits, int dtype) {
    uint32_t wide = (uint32_t)bits << 16, exponent = bits >> 10 & 31;
    float value;
    if (dtype == HERD_F16) {
        if (!exponent) {
            value = (float)(bits & 0x3ff) * 0x1p-24f;
            return bits & 0x8000 ? -value : value;
        }
        wide = (uint32_t)(bits & 0x8000) << 16 | (exponent + 112) << 23 | (uint32_t)(bits & 0x3ff) << 13;
    }
    memcpy(&value, &wide, 4);
    return value;
}

static void store(void *out, int64_t at, float value, int dtype) {
    uint32_t bits;
    if (dtype == HERD_F32) {
        ((float *)out)[at] = value;
        return;
    }
    memcpy(&bits, &value, 4);
    ((uint16_t *)out)[at] = value != value ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The number of an e4m3 code. */
static float e4m3(uint8_t code) {
    uint32_t most = code & 0x7f, bits = most == 0x7f ? 0x7fc00000 : (most << 20) + (120u << 23);
    float value, small = (float)most * 0x1p-9f;
    memcpy(&value, &bits, 4);
    value = most < 8 ? small : value;
    return code & 0x80 ? -value : value;
}

/* Where the byte of (k, output) lies in the values of a group. */
static int64_t place(const matrix_shape *s, int64_t k, int64_t output) {
    if (s->codes != HERD_INTEGERS) return k / 4 * 128 + output / 4 * 16 + k % 4 / 2 * 8 + output % 4 * 2 + k % 2;
    return s->bits == 8 ? k / 4 * 128 + output * 4 + k % 4 : k / 8 * 128 + output * 4 + k % 4;
}

static void pack_task(void *job_pointer, uint32_t index) {
    const packing *j = job_pointer;
    const matrix_shape *s = &j->shape;
    int64_t panel = j->first_panel + index, groups = s->padded_k / s->group;
    char *dst = j->dst + (panel * j->panel_step + j->panel_offset) * s->panel_bytes;
    for (int64_t i = 0; i < HERD_PANEL; i++) {
        int64_t row = panel * HERD_PANEL + i - j->row0;
        if (row < 0 || row >= j->rows) continue;
        const uint8_t *from = j->values + row * (s->bits == 8 ? j->k : j->k / 2);
        for (int64_t g = 0; g < groups; g++) {
            char *record = dst + g * s->record;
            uint8_t *values = (uint8_t *)record + s->header;
            float scale = j->scales[row * groups + g];
            if (s->scale_dtype == HERD_F32)
                memcpy(record + 4 * i, &scale, 4);
            else {
                uint16_t bits = narrow(scale, s->scale_dtype);
                memcpy(record + 2 * i, &bits, 2);
            }
            if (s->zeros) record[s->zeros_at + i] = (char)j->zeros[row * groups + g];
            int64_t begin = g * s->group, end = herd_min(j->k, begin + s->group);
            if (s->bits == 8) {
                for (int64_t k = begin; k < end; k++) values[place(s, k - begin, i)] = s->codes == HERD_INTEGERS ? from[k] ^ 0x80 : from[k];
                continue;
            }
            for (int64_t k = begin; k < end; k++) {
                uint8_t code = from[k / 2] >> (k % 2 * 4) & 15;
                values[place(s, k - begin, i)] |= (uint8_t)(code << ((k - begin) % 8 / 4 * 4));
            }
        }
    }
}

int herd_pack_quantised(const void *values, const float *scales, const uint8_t *zeros, int64_t rows, int64_t k, const herd_matrix *matrix,
                        void *dst, int64_t row0, int64_t panel_step, int64_t panel_offset) {
    packing j = {.matrix = matrix, .shape = shape_of(matrix, 1, k, 0), .values = values, .scales = scales, .zeros = zeros, .rows = rows,
                 .k = k, .row0 = row0, .panel_step = panel_step, .panel_offset = panel_offset, .first_panel = row0 / HERD_PANEL, .dst = dst};
    if (rows > 0) herd_pool_run(pack_task, &j, (uint32_t)(herd_ceil(row0 + rows, HERD_PANEL) - j.first_panel));
    return HERD_OK;
}

int herd_unpack_quantised(const herd_matrix *matrix, int64_t k, int64_t panel_step, int64_t panel_offset, const int64_t *ids, int64_t count,
                          void *out, int64_t out_stride, int out_dtype) {
    matrix_shape s = shape_of(matrix, 1, k, 0);
    for (int64_t i = 0; i < count; i++) {
        int64_t output = ids[i] % HERD_PANEL;
        const char *panel = s.data + (ids[i] / HERD_PANEL * panel_step + panel_offset) * s.panel_bytes;
        for (int64_t column = 0; column < k; column++) {
            int64_t inside = column % s.group;
            const char *record = panel + column / s.group * s.record;
            int value = (uint8_t)record[s.header + place(&s, inside, output)], zero = s.bits == 8 ? 128 : 8;
            float scale;
            uint16_t half;
            if (s.bits == 4) value = value >> (inside % 8 / 4 * 4) & 15;
            if (s.zeros) zero = (uint8_t)record[s.zeros_at + output];
            memcpy(&scale, record + 4 * output, s.scale_dtype == HERD_F32 ? 4 : 0);
            memcpy(&half, record + 2 * output, 2);
            if (s.scale_dtype != HERD_F32) scale = widen(half, s.scale_dtype);
            store(out, i * out_stride + (matrix->columns ? matrix->columns[column] : column), scale * (s.codes == HERD_INTEGERS ? (float)(value - zero) : e4m3((uint8_t)value)), out_dtype);
        }
    }
    return HERD_OK;
}

int64_t herd_quantised_bytes(const herd_matrix *matrix, int64_t n, int64_t k, int gated) {
    matrix_shape s = shape_of(matrix, n, k, gated);
    return s.panels * s.panel_bytes;
}
