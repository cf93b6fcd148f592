/* The narrow formats on the host. Both widen exactly. */
#ifndef GATETAPE_HALF_H
#define GATETAPE_HALF_H
#include <stdint.h>
#include <string.h>

static inline float bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Nearest, ties to even; NaN stays NaN. */
static inline uint16_t f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fffu, u;
    float f;
    if (magnitude < 0x400) { /* zero or subnormal: magnitude * 2^-24, exact */
        f = (float)magnitude * 0x1p-24f;
        memcpy(&u, &f, 4);
        u |= sign;
    } else {
        u = sign | ((magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23));
    }
    memcpy(&f, &u, 4);
    return f;
}

#endif
