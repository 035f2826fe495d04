/* What products with few rows of inputs and with many have in common: inputs on their way in, results on their way out. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16")
#define LEAST 1e-30f /* groups of numbers below that are zeros */

enum { UNIT = 16 }; /* bytes of a column: 16 rows in their low digits, and 16 half a tile further down in the high ones */

#include "lanes.h"

enum { EACH = 2 * VECTORS };

typedef struct {
    int64_t rows, columns, group, tile, bits;
    int64_t nested; /* whether scales are bytes under those of rows, as shared/quant/scales.py says, else pairs of bfloat16 */
    int64_t bfloat; /* whether inputs and results are bfloat16, else float32 */
    int64_t used;   /* rows that are not padding; where `gated`, half of them */
    int64_t gated;  /* whether results are silu(those of the first half of the rows) × those of the second */
    int64_t width;  /* from one row of results to the next */
    double epsilon;
} Matrix;

/* What is done to inputs before and to results after the product; each may be NULL. */
typedef struct {
    const void *norm;     /* [columns], weights by which inputs are normalised */
    const void *bias;     /* [all used rows] */
    const void *residual; /* as the results, to which they are added */
} Around;

enum { MOST_FACTORS = 3 }; /* such as those that make queries, keys and values */

/* One matrix and what its products come to. */
typedef struct {
    const Matrix *matrix;
    const uint8_t *packed, *scales;
    const void *bias;
    const void *residual;
    void *outputs;
} Factor;

int layermesh_multiply_each(const Factor *factors, int64_t count, const void *inputs, const void *norm, int64_t num);

/* The first row in register `v` of a unit, counted from that of the tile. */
INLINE int row_of(int unit, int v, int half) { return unit * UNIT + v % VECTORS * LANES + v / VECTORS * half; }

#include "numbers.h"

/* Bytes from the scales of a tile to the next one's, from those of a group to the next one's, and where those of rows begin. */
typedef struct {
    int64_t tile, group, rows;
} Places;

INLINE Places places_of(const Matrix *matrix, int tile, int nested) {
    int64_t groups = matrix->columns / matrix->group;
    if (nested) return (Places){2 * tile * (groups + 1), 2 * tile, 2 * tile * groups};
    return (Places){4 * tile, 4 * matrix->rows, 0};
}

INLINE const uint8_t *scales_of(const Matrix *matrix, const uint8_t *scales, int64_t tile) {
    return scales + tile * places_of(matrix, (int)matrix->tile, (int)matrix->nested).tile;
}

/* Bytes of the scale and the zero of a row in a group. */
INLINE int scale_bytes(int nested) { return nested ? 2 : 4; }

/* Those of LANES rows; a nested zero counts sixteenths of the scale. */
typedef struct {
    Floats step, zero;
} Scales;

INLINE Scales load_scales(const uint8_t *from, int nested) {
    if (nested) {
        Ints pairs = load_shorts(from);
        return (Scales){to_floats(low_bytes(pairs)), to_floats(high_bytes(pairs))};
    }
    Ints pairs = load_ints(from);
    return (Scales){first_of_pairs(pairs), second_of_pairs(pairs)};
}

/* The scales of LANES rows themselves. */
INLINE Floats load_row_scales(const uint8_t *from) { return first_of_pairs(load_shorts(from)); }

/* Write one row of inputs to `into` as floats, normalised if that is to be. */
INLINE void read_inputs(const Matrix *matrix, Around around, const void *inputs, int64_t row, float *into) {
    read_floats(matrix->bfloat, inputs, row * matrix->columns, matrix->columns, into);
    if (around.norm) normalise(matrix->bfloat, around.norm, matrix->columns, (float)matrix->epsilon, into);
}

/* Turn `count` inputs into whole numbers of at most `limit`: all in `whole` or, 256 × high + low, in two; what is NULL is not
 * written.
 *
 * The scale is not a number where one of them is infinite or none. */
INLINE void round_inputs(
    const float *inputs, int64_t count, float limit, int8_t *high, int8_t *low, int16_t *whole, float *scale, int32_t *sum
) {
    int32_t most = 0, total = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = bits_of(inputs[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest = of_bits(most);
    if (most >= 0x7f800000 || largest < LEAST) {
        if (high) memset(high, 0, (size_t)count);
        if (low) memset(low, 0, (size_t)count);
        if (whole) memset(whole, 0, (size_t)count * sizeof *whole);
        *scale = most >= 0x7f800000 ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    float inverse = limit / largest;
    for (int64_t i = 0; i < count; i++) {
        int32_t one = whole_of(inputs[i] * inverse + ROUNDER);
        if (low) low[i] = (int8_t)one;
        if (high) high[i] = (int8_t)((one - (int8_t)one) >> 8);
        if (whole) whole[i] = (int16_t)one;
        total += one;
    }
    *scale = largest / limit;
    *sum = total;
}

INLINE void finish_some(
    const Matrix *matrix, Around around, const float *results, const float *ups, void *outputs, int64_t token, int64_t row,
    int64_t count
) {
    float made[UNIT], gated[UNIT];
    int64_t at = token * matrix->width + row;
    for (int64_t i = 0; i < count; i++) made[i] = results[i];
    if (around.bias) add_floats(matrix->bfloat, around.bias, row, count, made);
    if (ups) {
        for (int64_t i = 0; i < count; i++) gated[i] = ups[i];
        if (around.bias) add_floats(matrix->bfloat, around.bias, matrix->used + row, count, gated);
        for (int64_t i = 0; i < count; i++) made[i] = silu(made[i]) * gated[i];
    }
    if (around.residual) add_floats(matrix->bfloat, around.residual, at, count, made);
    write_floats(matrix->bfloat, made, count, outputs, at);
}

/* Write UNIT results of a row of inputs to `outputs`, from those of row `row` of the matrix on; with `ups` the results are
 * gated by them. */
INLINE void finish(
    const Matrix *matrix, Around around, const float *results, const float *ups, void *outputs, int64_t token, int64_t row
) {
    if (row + UNIT <= matrix->used) finish_some(matrix, around, results, ups, outputs, token, row, UNIT);
    else if (row < matrix->used) finish_some(matrix, around, results, ups, outputs, token, row, matrix->used - row);
}
