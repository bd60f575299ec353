/* The products of one instruction set. sets.c includes this file once for each, having defined

     NAME(x)   x with the set's suffix            LANES     32-bit lanes of a vector
     TARGET    the attribute that turns it on     ROWS      rows of x that one pass over the words serves
     HALVES(p) LANES fp16 numbers as floats       DOT(a, q, x)  a + sum of four products of bytes, q unsigned, x signed
     DOT_BITS  most bits of q that DOT multiplies without overflow                       MANY_ROWS  rows whose sums fit the registers

   Vectors are GCC's own extension: the same source becomes AVX-512, AVX2 or NEON code. Outputs lie side by side in memory, so a
   lane is an output, and no sum ever crosses lanes. */

typedef float NAME(vf) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(vi) __attribute__((vector_size(4 * LANES)));
typedef uint32_t NAME(vu) __attribute__((vector_size(4 * LANES)));
typedef uint16_t NAME(vh) __attribute__((vector_size(2 * LANES)));

#define VF NAME(vf)
#define VI NAME(vi)
#define VU NAME(vu)
#define VH NAME(vh)
#define VECTORS 4 /* vectors of outputs that a pass holds in registers */
#define AHEAD 256
#define TILE (VECTORS * LANES)
#define INLINE static inline __attribute__((always_inline)) TARGET

/* `left` words from p as vector t of a tile; lanes beyond them are zero. A full tile costs one load. */
INLINE VU NAME(words_at)(const uint32_t *p, int t, int left) {
    VU w = {0};
    if (left >= TILE) {
        memcpy(&w, p + t * LANES, sizeof w);
        __builtin_prefetch(p + t * LANES + AHEAD);
    } else if (left > t * LANES)
        memcpy(&w, p + t * LANES, 4 * (size_t)(left - t * LANES < LANES ? left - t * LANES : LANES));
    return w;
}

/* Scales or zero points of vector t of a tile, as floats. */
INLINE VF NAME(numbers_at)(const void *numbers, int type, ptrdiff_t at, int t, int left) {
    uint32_t word[LANES] = {0};
    uint16_t some[LANES] = {0};
    VF f;
    VU w = {0};
    int count = left - t * LANES;
    count = count < 0 ? 0 : count > LANES ? LANES : count;
    at += t * LANES;
    if (type == FP32) {
        memcpy(&w, (const uint32_t *)numbers + at, 4 * (size_t)count);
    } else {
        const uint16_t *from = (const uint16_t *)numbers + at;
        if (count < LANES) {
            memcpy(some, from, 2 * (size_t)count);
            from = some;
        }
        if (type == FP16)
            return HALVES(from);
        for (int lane = 0; lane < LANES; lane++)
            word[lane] = (uint32_t)from[lane] << 16;
        memcpy(&w, word, sizeof w);
    }
    memcpy(&f, &w, sizeof f);
    return f;
}

INLINE void NAME(scale_and_zero)(const Matrix *a, ptrdiff_t group, ptrdiff_t n, int left, VF *scale, VF *zero) {
    for (int t = 0; t < VECTORS; t++) {
        scale[t] = NAME(numbers_at)(a->scales, a->number_type, group * a->group_stride + n, t, left);
        zero[t] = a->zeros ? NAME(numbers_at)(a->zeros, a->number_type, group * a->zero_stride + n, t, left) : (VF){0} + a->zero;
    }
}

/* y[lane] += value[lane] for the lanes of vector t of a tile that are outputs. */
INLINE void NAME(add_to)(float *y, VF value, int t, int left) {
    VF old;
    if (left >= TILE) {
        memcpy(&old, y + t * LANES, sizeof old);
        old += value;
        memcpy(y + t * LANES, &old, sizeof old);
        return;
    }
    for (int lane = 0; lane < LANES && t * LANES + lane < left; lane++)
        y[t * LANES + lane] += value[lane];
}

#include "few_rows.h"
#include "many_rows.h"
#include "int8_rows.h"

static const Set NAME(set) = {NAME(few_rows), NAME(many_rows), NAME(bytes_rows), NAME(dequantize)};

#undef VF
#undef VI
#undef VU
#undef VH
#undef VECTORS
#undef AHEAD
#undef TILE
#undef INLINE
#undef NAME
#undef LANES
#undef TARGET
#undef HALVES
#undef DOT
#undef DOT_BITS
#undef MANY_ROWS
