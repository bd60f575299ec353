/* -- float activations, few rows --------------------------------------------------------------------------------------------

   Codes are converted where they stand in the word, as code * 2^shift, and x carries the inverse factor (see `spread`): one
   `and`, one conversion and one fused multiply-add for LANES codes and a row. The last code of a word is shifted down
   instead, for the sign bit. */

INLINE void NAME(add_field)(const int width, const int rows, const uint32_t *p, ptrdiff_t row_stride, const float *x,
                            ptrdiff_t x_stride, int left, VF sum[][VECTORS]) {
    const int per = 32 / width;
    const uint32_t mask = width == 32 ? ~0u : (1u << width) - 1;
    for (int r = 0; r < width; r++, p += row_stride, x += per) {
        VU w[VECTORS];
        for (int t = 0; t < VECTORS; t++)
            w[t] = NAME(words_at)(p, t, left);
#pragma GCC unroll 32
        for (int j = 0; j < per; j++) {
            for (int t = 0; t < VECTORS; t++) {
                VI code = (VI)(j == per - 1 ? w[t] >> (width * j) : w[t] & (mask << (width * j)));
                VF number = __builtin_convertvector(code, VF);
                for (int m = 0; m < rows; m++)
                    sum[m][t] += number * x[m * x_stride + j];
            }
        }
    }
}

INLINE void NAME(few_tile)(const Matrix *a, const Chunk *c, const Rows *x, const int rows, ptrdiff_t n, int left, float *y) {
    VF sum[ROWS][VECTORS];
    for (int m = 0; m < rows; m++)
        for (int t = 0; t < VECTORS; t++)
            sum[m][t] = (VF){0};
    for (ptrdiff_t block = c->first; block < c->last; block++) {
        const uint32_t *p = a->words + block * a->block_stride + n;
        const float *from = x->spread + block * 32;
        for (int f = 0; f < a->fields; f++, from += x->rows * x->stride) {
            switch (a->width[f]) {
            case 1: NAME(add_field)(1, rows, p, a->row_stride, from, x->stride, left, sum); break;
            case 2: NAME(add_field)(2, rows, p, a->row_stride, from, x->stride, left, sum); break;
            case 4: NAME(add_field)(4, rows, p, a->row_stride, from, x->stride, left, sum); break;
            default: NAME(add_field)(8, rows, p, a->row_stride, from, x->stride, left, sum); break;
            }
            p += a->width[f] * a->row_stride;
        }
    }
    VF scale[VECTORS], zero[VECTORS];
    NAME(scale_and_zero)(a, c->group, n, left, scale, zero);
    for (int m = 0; m < rows; m++)
        for (int t = 0; t < VECTORS; t++) {
            VF new = scale[t] * (sum[m][t] - zero[t] * x->sums[m * x->chunks + c->number]);
            NAME(add_to)(y + m * a->outputs + n, new, t, left);
        }
}

static TARGET void NAME(few_rows)(const Matrix *a, const Rows *x, ptrdiff_t begin, ptrdiff_t end, float *y) {
    for (Chunk c = first_chunk(a); c.first < c.last; c = next_chunk(a, c))
        for (ptrdiff_t n = begin; n < end; n += TILE) {
            int left = end - n < TILE ? (int)(end - n) : TILE;
            if (left < TILE) {
                for (int m = 0; m < x->rows; m++) {
                    Rows one = *x;
                    one.spread += m * x->stride;
                    one.sums += m * x->chunks;
                    NAME(few_tile)(a, &c, &one, 1, n, left, y + m * a->outputs);
                }
                continue;
            }
            switch (x->rows) {
            case 1: NAME(few_tile)(a, &c, x, 1, n, TILE, y); break;
            case 2: NAME(few_tile)(a, &c, x, 2, n, TILE, y); break;
            case 3: NAME(few_tile)(a, &c, x, 3, n, TILE, y); break;
            default: NAME(few_tile)(a, &c, x, 4, n, TILE, y); break;
            }
        }
}
