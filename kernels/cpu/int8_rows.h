/* -- int8 activations: four products of bytes in one instruction ------------------------------------------------------------ */

INLINE void NAME(dot_field)(const int width, const int rows, const uint32_t *p, ptrdiff_t row_stride, const int32_t *x,
                            ptrdiff_t x_stride, int left, VI sum[][VECTORS]) {
    const int slots = 8 / width;
    const uint32_t mask = 0x01010101u * ((1u << width) - 1);
    for (int r = 0; r < width; r++, p += row_stride, x += slots)
        for (int t = 0; t < VECTORS; t++) {
            VU w = NAME(words_at)(p, t, left);
            if (width > DOT_BITS) { /* by halves of a byte */
                VU lower = w & 0x0f0f0f0fu, upper = w >> 4 & 0x0f0f0f0fu;
                for (int m = 0; m < rows; m++) {
                    VI bytes = (VI){0} + x[m * x_stride], high = {0};
                    high = DOT(high, (VI)upper, bytes);
                    sum[m][t] = DOT(sum[m][t], (VI)lower, bytes) + high * 16;
                }
                continue;
            }
#pragma GCC unroll 8
            for (int i = 0; i < slots; i++) {
                VI codes = (VI)(width == 8 ? w : w >> (width * i) & mask);
                for (int m = 0; m < rows; m++)
                    sum[m][t] = DOT(sum[m][t], codes, (VI){0} + x[m * x_stride + i]);
            }
        }
}

INLINE void NAME(bytes_tile)(const Matrix *a, const Chunk *c, const Rows *x, const int rows, ptrdiff_t n, int left, float *y) {
    VI sum[ROWS][VECTORS];
    for (int m = 0; m < rows; m++)
        for (int t = 0; t < VECTORS; t++)
            sum[m][t] = (VI){0};
    ptrdiff_t row = 0;
    for (int f = 0; f < a->fields; row += a->width[f] * a->row_stride, f++) {
        VI part[ROWS][VECTORS];
        for (int m = 0; m < rows; m++)
            for (int t = 0; t < VECTORS; t++)
                part[m][t] = (VI){0};
        const int32_t *from = x->bytes + f * x->rows * (x->stride / 4);
        for (ptrdiff_t block = c->first; block < c->last; block++) {
            const uint32_t *p = a->words + block * a->block_stride + row + n;
            const int32_t *at = from + block * 8;
            switch (a->width[f]) {
            case 1: NAME(dot_field)(1, rows, p, a->row_stride, at, x->stride / 4, left, part); break;
            case 2: NAME(dot_field)(2, rows, p, a->row_stride, at, x->stride / 4, left, part); break;
            case 4: NAME(dot_field)(4, rows, p, a->row_stride, at, x->stride / 4, left, part); break;
            default: NAME(dot_field)(8, rows, p, a->row_stride, at, x->stride / 4, left, part); break;
            }
        }
        for (int m = 0; m < rows; m++)
            for (int t = 0; t < VECTORS; t++)
                sum[m][t] += part[m][t] << a->low[f];
    }
    VF scale[VECTORS], zero[VECTORS];
    NAME(scale_and_zero)(a, c->group, n, left, scale, zero);
    for (int m = 0; m < rows; m++)
        for (int t = 0; t < VECTORS; t++) {
            ptrdiff_t at = m * x->chunks + c->number;
            VF dot = __builtin_convertvector(sum[m][t], VF);
            VF new = scale[t] * (dot - zero[t] * x->sums[at]) * x->steps[at];
            NAME(add_to)(y + m * a->outputs + n, new, t, left);
        }
}

static TARGET void NAME(bytes_rows)(const Matrix *a, const Rows *x, ptrdiff_t begin, ptrdiff_t end, float *y) {
    for (Chunk c = first_chunk(a); c.first < c.last; c = next_chunk(a, c))
        for (ptrdiff_t n = begin; n < end; n += TILE) {
            int left = end - n < TILE ? (int)(end - n) : TILE;
            switch (left < TILE ? 0 : x->rows) {
            case 1: NAME(bytes_tile)(a, &c, x, 1, n, TILE, y); break;
            case 4: NAME(bytes_tile)(a, &c, x, 4, n, TILE, y); break;
            default:
                for (int m = 0; m < x->rows; m++) {
                    Rows one = *x;
                    one.bytes += m * (x->stride / 4);
                    one.sums += m * x->chunks;
                    one.steps += m * x->chunks;
                    NAME(bytes_tile)(a, &c, &one, 1, n, left, y + m * a->outputs);
                }
            }
        }
}
