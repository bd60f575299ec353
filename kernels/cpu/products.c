/* x made ready, and products of whole matrices and of experts. */

#include "planes.h"

static int make_rows(const Matrix *a, const float *x, int rows, int as_bytes, Rows *out) {
    ptrdiff_t stride = (a->inputs + 31) / 32 * 32, chunks = 0;
    for (Chunk c = first_chunk(a); c.first < c.last; c = next_chunk(a, c))
        chunks++;
    size_t each = (size_t)a->fields * rows * stride, numbers = (size_t)rows * chunks;
    float *memory = calloc((as_bytes ? each / 4 : each) + 2 * numbers, 4);
    if (memory == NULL)
        return 0;
    *out = (Rows){rows, stride, chunks, memory + 2 * numbers, memory, memory + numbers, (int32_t *)(memory + 2 * numbers)};
    int8_t *codes = as_bytes ? calloc((size_t)stride, 1) : NULL;
    if (as_bytes && codes == NULL) {
        free(memory);
        return 0;
    }
    for (int m = 0; m < rows; m++) {
        const float *row = x + m * a->inputs;
        for (Chunk c = first_chunk(a); c.first < c.last; c = next_chunk(a, c)) {
            ptrdiff_t from = c.first * 32, to = smaller(c.last * 32, a->inputs);
            double sum = 0;
            float most = 0;
            for (ptrdiff_t k = from; k < to; k++) {
                sum += row[k];
                most = fmaxf(most, fabsf(row[k]));
            }
            if (as_bytes) {
                float step = isnan(sum) ? NAN : most / 127, inverse = most > 0 ? 127 / most : 0; /* no integer is a NaN */
                sum = 0;
                for (ptrdiff_t k = from; k < to; k++) {
                    codes[k] = (int8_t)lrintf(row[k] * inverse);
                    sum += codes[k];
                }
                out->steps[m * chunks + c.number] = step;
            }
            out->sums[m * chunks + c.number] = (float)sum;
        }
        for (int f = 0; f < a->fields; f++) {
            int width = a->width[f], per = 32 / width, slots = 8 / width;
            if (as_bytes) { /* word `slot` of a row of words: inputs slot, slots + slot, 2 slots + slot, 3 slots + slot */
                int8_t *to = (int8_t *)(out->bytes + (f * rows + m) * (stride / 4));
                int place[32];
                for (int j = 0; j < 32; j++)
                    place[j] = j / per * per + j % per % slots * 4 + j % per / slots;
                for (ptrdiff_t k = 0; k < stride; k++)
                    to[k / 32 * 32 + place[k % 32]] = codes[k];
                continue;
            }
            float *to = out->spread + (f * rows + m) * stride, factor[32];
            for (int j = 0; j < 32; j++)
                factor[j] = ldexpf(1, a->low[f] - (j % per == per - 1 ? 0 : width * (j % per)));
            for (ptrdiff_t k = 0; k < a->inputs; k++)
                to[k] = row[k] * factor[k % 32];
        }
    }
    free(codes);
    return 1;
}

int product(const Set *set, const Matrix *a, const float *x, ptrdiff_t rows, int as_bytes, ptrdiff_t begin, ptrdiff_t end,
                   float *y) {
    if (!as_bytes && (rows > ROWS || a->inputs < 64)) { /* the few-row sums cancel badly where they are short */
        set->many_rows(a, x, rows, begin, end, y);
        return 1;
    }
    for (ptrdiff_t m = 0; m < rows; m += ROWS) {
        Rows some;
        if (!make_rows(a, x + m * a->inputs, (int)smaller(ROWS, rows - m), as_bytes, &some))
            return 0;
        (as_bytes ? set->bytes_rows : set->few_rows)(a, &some, begin, end, y + m * a->outputs);
        free(some.sums);
    }
    return 1;
}

void add_field(Matrix *a, int width, int low) {
    float half = (float)(1 << (low + width - 1)); /* of the range of the codes, if this field is the highest */
    a->width[a->fields] = width, a->low[a->fields] = low, a->fields++;
    a->zero = half > a->zero ? half : a->zero;
}

static Matrix expert_matrix(const Experts *e, ptrdiff_t index) {
    Matrix a = e->matrix;
    ptrdiff_t groups = (a.inputs + a.group_size - 1) / a.group_size, skip = index * groups * a.outputs;
    int size = a.number_type == FP32 ? 4 : 2, low = 0;
    a.words += e->base[index];
    a.scales = (const char *)a.scales + skip * size;
    a.zeros = a.zeros ? (const char *)a.zeros + skip * size : NULL;
    a.fields = 0, a.zero = 0;
    for (int width = 8; width > 0; width /= 2)
        if (low + width <= e->bits[index])
            add_field(&a, width, low), low += width;
    a.block_stride = low * a.outputs;
    return a;
}

int experts(const Set *set, const Experts *e, const float *x, ptrdiff_t begin, ptrdiff_t end, float *y) {
    ptrdiff_t inputs = e->matrix.inputs, outputs = e->matrix.outputs, first = 0, most = 0;
    for (ptrdiff_t i = 0; i < e->count; first = e->ends[i++])
        most = most > e->ends[i] - first ? most : e->ends[i] - first;
    float *given = malloc((size_t)(most * (inputs + outputs)) * 4), *made = given + most * inputs;
    if (given == NULL && most > 0)
        return 0;
    int done = 1;
    first = 0;
    for (ptrdiff_t i = 0; i < e->count && done; first = e->ends[i++]) {
        ptrdiff_t rows = e->ends[i] - first;
        if (rows == 0)
            continue;
        Matrix a = expert_matrix(e, i);
        for (ptrdiff_t r = 0; r < rows; r++)
            memcpy(given + r * inputs, x + e->order[first + r] / e->slots * inputs, 4 * (size_t)inputs);
        memset(made, 0, (size_t)(rows * outputs) * 4);
        done = product(set, &a, given, rows, 0, begin, end, made);
        for (ptrdiff_t r = 0; r < rows; r++)
            memcpy(y + e->order[first + r] * outputs + begin, made + r * outputs + begin, 4 * (size_t)(end - begin));
    }
    free(given);
    return done;
}

