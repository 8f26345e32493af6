/* A vector as int8 and one scale behind it: the int8 caches' storage.

   scale = largest magnitude / 127, byte = x / scale rounded half to even, each step one IEEE operation, so that every level and torch write
   the same bytes. Bytes are clamped, since a subnormal scale is coarse; a scale of 0 means zeros. */
#ifndef HERD_QUANTISE_H
#define HERD_QUANTISE_H

#include "simd.h"

/* A whole vector and its scale. Magnitudes are compared by their bits: infinities and then NaN are the largest. */
static __attribute__((unused)) void quantise(const float *x, int64_t count, char *out) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) most = float_to_bits(x[i]) << 1 > most ? float_to_bits(x[i]) << 1 : most;
    float scale = bits_to_float(most >> 1) / 127.0f;
    int usable = most < 0xff000000 && scale > 0.0f;
    if (most >= 0xff000000) scale = bits_to_float(0x7fc00000);
    for (int64_t i = 0; i < count; i++) {
        float number = usable ? x[i] / scale : 0.0f;
        number = number > 127.0f ? 127.0f : number < -127.0f ? -127.0f : number;
        ((int8_t *)out)[i] = (int8_t)(number + 12582912.0f - 12582912.0f); /* 1.5 * 2^23: what is added to it loses its fraction */
    }
    memcpy(out + count, &scale, sizeof scale);
}

INLINE float scale_of(const char *vector, int64_t head_dim) {
    float scale;
    memcpy(&scale, vector + head_dim, sizeof scale);
    return scale;
}

/* Bytes as bfloat16, exactly. */
INLINE void widen_to_bf16(const char *from, void *to, int64_t count) {
    uint16_t *out = to;
    int64_t i = 0;
    for (; i + W <= count; i += W) vf_store_bf16(out + i, vf_load_i8(from + i));
    for (; i < count; i++) out[i] = float_to_bf16(load_as(from, i, HERD_I8));
}

/* Half a panel whose dwords are four bytes each becomes one of numbers: four dwords of float32, or two pairs of bfloat16. */
INLINE void spread_bytes(const float *from, int64_t count, int pairs, float *to) {
    for (int64_t step = 0; step < count; step++, from += HERD_PANEL, to += (pairs ? 2 : 4) * HERD_PANEL)
        for (int v = 0; v < 16; v += W) {
            vf four = vf_load(from + v), b0 = vf_byte(four, 0), b1 = vf_byte(four, 1), b2 = vf_byte(four, 2), b3 = vf_byte(four, 3);
            if (pairs) {
                vf_store(to + v, vf_pair(b0, b1));
                vf_store(to + HERD_PANEL + v, vf_pair(b2, b3));
            } else {
                vf_store(to + v, b0);
                vf_store(to + HERD_PANEL + v, b1);
                vf_store(to + 2 * HERD_PANEL + v, b2);
                vf_store(to + 3 * HERD_PANEL + v, b3);
            }
        }
}

#endif
