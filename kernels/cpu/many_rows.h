/* -- numbers of a tile, for many rows and for dequantizing ------------------------------------------------------------------ */

INLINE void NAME(put_field)(const int width, const uint32_t *p, ptrdiff_t row_stride, int low, int begins, int left, VI *codes) {
    const int per = 32 / width;
    const uint32_t mask = (1u << width) - 1;
    for (int r = 0; r < width; r++, p += row_stride)
        for (int t = 0; t < VECTORS; t++) {
            VU w = NAME(words_at)(p, t, left);
#pragma GCC unroll 32
            for (int j = 0; j < per; j++) {
                VI code = (VI)((w >> (width * j) & mask) << low);
                VI *at = codes + (r * per + j) * VECTORS + t;
                *at = begins ? code : *at | code;
            }
        }
}

/* numbers[k * TILE + o] = (code - zero) * scale for the 32 inputs of a block and the outputs of a tile. */
INLINE void NAME(block_numbers)(const Matrix *a, ptrdiff_t block, const VF *scale, const VF *zero, ptrdiff_t n, int left,
                                VF *numbers) {
    VI codes[32 * VECTORS];
    const uint32_t *p = a->words + block * a->block_stride + n;
    for (int f = 0; f < a->fields; f++) {
        switch (a->width[f]) {
        case 1: NAME(put_field)(1, p, a->row_stride, a->low[f], f == 0, left, codes); break;
        case 2: NAME(put_field)(2, p, a->row_stride, a->low[f], f == 0, left, codes); break;
        case 4: NAME(put_field)(4, p, a->row_stride, a->low[f], f == 0, left, codes); break;
        default: NAME(put_field)(8, p, a->row_stride, a->low[f], f == 0, left, codes); break;
        }
        p += a->width[f] * a->row_stride;
    }
    for (int k = 0; k < 32; k++)
        for (int t = 0; t < VECTORS; t++)
            numbers[k * VECTORS + t] = (__builtin_convertvector(codes[k * VECTORS + t], VF) - zero[t]) * scale[t];
}

/* The same out of line, so that no compiler fuses the product with what is then taken away from it, which would round once less. */
static TARGET __attribute__((noinline)) void NAME(block_numbers_apart)(const Matrix *a, ptrdiff_t block, const VF *scale,
                                                                       const VF *zero, ptrdiff_t n, int left, VF *numbers) {
    NAME(block_numbers)(a, block, scale, zero, n, left, numbers);
}

/* The first `left` lanes of four vectors rounded to bf16, to the nearest, ties to even; a NaN stays one. */
INLINE void NAME(put_bf16)(uint16_t *to, const VF *numbers, int left) {
    uint16_t some[TILE];
    for (int t = 0; t < VECTORS; t++) {
        VU bits;
        memcpy(&bits, numbers + t, sizeof bits);
        VU is_nan = (VU)(numbers[t] != numbers[t]), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        VH halves = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), VH);
        memcpy(some + t * LANES, &halves, sizeof halves);
    }
    memcpy(to, some, left >= TILE ? sizeof some : 2 * (size_t)left);
}

INLINE void NAME(take_away)(VF *row, const float *less, int left) {
    VF own[VECTORS] = {0};
    if (left >= TILE)
        memcpy(own, less, sizeof own);
    else
        memcpy(own, less, 4 * (size_t)left);
    for (int t = 0; t < VECTORS; t++)
        row[t] -= own[t];
}

/* out (inputs, outputs) = the numbers, less `minus` where there is one, as floats or as bf16. */
static TARGET void NAME(dequantize)(const Matrix *a, ptrdiff_t begin, ptrdiff_t end, const Minus *minus, int as_bf16, void *out) {
    VF numbers[32 * VECTORS], scale[VECTORS], zero[VECTORS];
    for (Chunk c = first_chunk(a); c.first < c.last; c = next_chunk(a, c))
        for (ptrdiff_t n = begin; n < end; n += TILE) {
            int left = end - n < TILE ? (int)(end - n) : TILE;
            NAME(scale_and_zero)(a, c.group, n, left, scale, zero);
            for (ptrdiff_t block = c.first; block < c.last; block++) {
                const float *less = minus->numbers == NULL ? NULL : minus->numbers + block * 32 * minus->stride + n;
                ptrdiff_t inputs = smaller(32, a->inputs - block * 32);
                for (ptrdiff_t k = 0; less != NULL && k < inputs; k++)
                    for (int o = 0; o < left; o += 16) /* a line of the cache; short pieces of many rows, which nothing foresees */
                        __builtin_prefetch(less + k * minus->stride + o);
                NAME(block_numbers_apart)(a, block, scale, zero, n, left, numbers);
                for (ptrdiff_t k = 0; k < inputs; k++) {
                    VF *row = numbers + k * VECTORS;
                    ptrdiff_t at = (block * 32 + k) * a->outputs + n;
                    if (less != NULL)
                        NAME(take_away)(row, less + k * minus->stride, left);
                    if (as_bf16)
                        NAME(put_bf16)((uint16_t *)out + at, row, left);
                    else
                        memcpy((float *)out + at, row, 4 * (size_t)left);
                }
            }
        }
}

/* -- float activations, many rows: the numbers of a tile are made once, in the cache, and serve all rows --------------------- */

INLINE void NAME(many_tile)(const float *x, ptrdiff_t x_stride, const int rows, int inputs, const VF *numbers, int left, float *y,
                            ptrdiff_t y_stride) {
    VF sum[MANY_ROWS][VECTORS];
    for (int m = 0; m < rows; m++)
        for (int t = 0; t < VECTORS; t++) {
            VU old = NAME(words_at)((const uint32_t *)(y + m * y_stride), t, left);
            memcpy(&sum[m][t], &old, sizeof old);
        }
    for (int k = 0; k < inputs; k++)
        for (int m = 0; m < rows; m++)
            for (int t = 0; t < VECTORS; t++)
                sum[m][t] += numbers[k * VECTORS + t] * x[m * x_stride + k];
    for (int m = 0; m < rows; m++) {
        if (left >= TILE)
            memcpy(y + m * y_stride, sum[m], sizeof sum[m]);
        else
            memcpy(y + m * y_stride, sum[m], 4 * (size_t)left);
    }
}

static TARGET void NAME(many_rows)(const Matrix *a, const float *x, ptrdiff_t rows, ptrdiff_t begin, ptrdiff_t end, float *y) {
    VF numbers[CHUNK * VECTORS], scale[VECTORS], zero[VECTORS];
    for (Chunk c = first_chunk(a); c.first < c.last; c = next_chunk(a, c))
        for (ptrdiff_t n = begin; n < end; n += TILE) {
            int left = end - n < TILE ? (int)(end - n) : TILE;
            ptrdiff_t from = c.first * 32, inputs = (c.last * 32 < a->inputs ? c.last * 32 : a->inputs) - from;
            NAME(scale_and_zero)(a, c.group, n, left, scale, zero);
            for (ptrdiff_t block = c.first; block < c.last; block++)
                NAME(block_numbers)(a, block, scale, zero, n, left, numbers + (block - c.first) * 32 * VECTORS);
            ptrdiff_t m = 0;
            for (; m + MANY_ROWS <= rows; m += MANY_ROWS)
                NAME(many_tile)(x + m * a->inputs + from, a->inputs, MANY_ROWS, (int)inputs, numbers, left,
                                y + m * a->outputs + n, a->outputs);
            for (; m < rows; m++)
                NAME(many_tile)(x + m * a->inputs + from, a->inputs, 1, (int)inputs, numbers, left,
                                y + m * a->outputs + n, a->outputs);
        }
}
