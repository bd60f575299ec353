/* Products with packed words on the CPU: y += x W^T for the field planes of kernels/layout.py.

   Work is cut by outputs: a call computes outputs begin .. end, so threads are the caller's. Sums run over inputs in one fixed
   order, whatever the cut, so results are the same for any number of threads. */

#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__)
#error "GCC or Clang is needed: the kernels are written in their vector extension"
#endif

enum { FP16, BF16, FP32 };
enum { CHUNK = 128, ROWS = 4 }; /* inputs that are summed before scaling; rows of x that share a pass over the words */

typedef struct {
    const uint32_t *words;
    ptrdiff_t block_stride, row_stride; /* in words */
    int fields, width[8], low[8];
    ptrdiff_t inputs, outputs;
    const void *scales, *zeros; /* (groups, outputs); zeros may be NULL */
    int number_type;
    ptrdiff_t group_stride, zero_stride, group_size; /* strides from group to group, in numbers */
    float zero; /* where zeros is NULL */
} Matrix;

/* What dequantizing takes away from the numbers: (inputs, outputs), outputs adjacent; `numbers` NULL for nothing. */
typedef struct {
    const float *numbers;
    ptrdiff_t stride;
} Minus;

/* Blocks of 32 inputs, at most CHUNK inputs, within one group; `number` counts chunks. */
typedef struct {
    ptrdiff_t first, last, group, number;
} Chunk;

/* What the passes read of x. `spread` (fields, rows, stride): x times 2^(low - shift) for the shift at which a code of the field
   stands in its word; `bytes` (fields, rows, stride / 4): int8 in the order of a word's bytes; `sums` and `steps` (rows, chunks): the
   sum of the chunk's x, and the int8 step. Stride is inputs, rounded up to 32, zeros behind. */
typedef struct {
    int rows;
    ptrdiff_t stride, chunks;
    float *spread, *sums, *steps;
    int32_t *bytes;
} Rows;

typedef struct {
    void (*few_rows)(const Matrix *, const Rows *, ptrdiff_t, ptrdiff_t, float *);
    void (*many_rows)(const Matrix *, const float *, ptrdiff_t, ptrdiff_t, ptrdiff_t, float *);
    void (*bytes_rows)(const Matrix *, const Rows *, ptrdiff_t, ptrdiff_t, float *);
    void (*dequantize)(const Matrix *, ptrdiff_t, ptrdiff_t, const Minus *, int, void *);
} Set;

/* The instruction sets that were compiled, best first; `runs` asks the processor. */
typedef struct {
    const char *name;
    const Set *set;
} Kind;
extern const Kind SETS[];
extern const int KINDS;
int runs(int kind);

/* Matrices of one shape behind each other in one buffer. `order` lists rows of y by expert, those of expert e ending before ends[e];
   row i of y is the product of row i / slots of x. */
typedef struct {
    Matrix matrix; /* of expert 0, without fields */
    ptrdiff_t count, slots;
    const int64_t *base, *order, *ends;
    const int32_t *bits;
} Experts;

void add_field(Matrix *a, int width, int low);
/* y (rows, outputs) += x (rows, inputs) W^T for outputs begin .. end; 0 where memory ran out. `as_bytes`: x rounded to int8. */
int product(const Set *set, const Matrix *a, const float *x, ptrdiff_t rows, int as_bytes, ptrdiff_t begin, ptrdiff_t end, float *y);
/* Rows of y = rows of x, each times the matrix of its expert; 0 where memory ran out. */
int experts(const Set *set, const Experts *e, const float *x, ptrdiff_t begin, ptrdiff_t end, float *y);

static inline ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

static inline Chunk chunk_at(const Matrix *a, ptrdiff_t first, ptrdiff_t number) {
    ptrdiff_t blocks = (a->inputs + 31) / 32, group = first * 32 / a->group_size;
    ptrdiff_t group_end = smaller(blocks, ((group + 1) * a->group_size + 31) / 32);
    ptrdiff_t most = a->fields > 3 ? 1 : CHUNK / 32; /* many planes make long sums, which round more */
    return (Chunk){first, smaller(first + most, group_end), group, number};
}

static inline Chunk first_chunk(const Matrix *a) { return chunk_at(a, 0, 0); }
static inline Chunk next_chunk(const Matrix *a, Chunk c) {
    if (c.last * 32 >= a->inputs)
        return (Chunk){c.last, c.last, c.group, c.number + 1};
    return chunk_at(a, c.last, c.number + 1);
}

