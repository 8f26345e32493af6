/* How a quantised matrix lies in memory: see qlinear.c and fp8.c. Shared by the kernels and by qpack.c. */
#ifndef HERD_QSHAPE_H
#define HERD_QSHAPE_H

#include "internal.h"

#define LDQ 1024 /* bytes from row to row of the inputs, also the most of a block of K */

typedef struct {
    const char *data;
    int64_t padded_k, panels, panel_bytes;
    int64_t group, record, header, zeros_at;   /* of the weights: k of a group, bytes of a record, where its values and zero points begin */
    int64_t segment, num_segments, block_k, num_blocks;
    int bits, codes, scale_dtype, zeros, per_token;
    int whole;                                 /* one sum over all of K: integers go on from block to block */
} matrix_shape;

static inline matrix_shape shape_of(const herd_matrix *w, int64_t n, int64_t k, int gated) {
    matrix_shape s = {.data = w->data, .bits = (int)w->bits, .scale_dtype = (int)w->scale_dtype, .zeros = w->zeros != 0, .codes = (int)w->codes};
    s.padded_k = herd_ceil(k, 8) * 8;
    s.group = w->group ? w->group : s.padded_k;
    s.zeros_at = HERD_PANEL * (int64_t)herd_size(s.scale_dtype);
    s.header = s.zeros_at + (s.zeros ? HERD_PANEL : 0);
    s.record = s.header + s.group * HERD_PANEL * s.bits / 8;
    s.panels = herd_ceil(n, HERD_PANEL) * (gated ? 2 : 1);
    s.panel_bytes = s.padded_k / s.group * s.record;
    s.per_token = w->input_group == 0;
    s.segment = s.per_token ? s.group : w->input_group;
    s.num_segments = herd_ceil(s.padded_k, s.segment);
    s.whole = s.num_segments == 1;
    s.block_k = s.whole ? LDQ : LDQ / s.segment * s.segment;
    s.num_blocks = herd_ceil(s.padded_k, s.block_k);
    return s;
}

#endif
