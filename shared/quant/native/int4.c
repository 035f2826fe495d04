/* Products of a few rows with a matrix of 4-bit digits, in the tiles of shared/quant/tiles.py.
 *
 * Each group of inputs becomes whole numbers of 16 bits under one scale, 256 × high + low, and is multiplied with the weights
 * as they are, 4 columns at a time, with the matrix's rows side by side in a register. Sums of a group are exact; scales and
 * zeros come to them in float32. Every result is computed by one thread in one order, with the same operations whatever the
 * processor, so that it depends neither on the number of threads nor on how many rows of inputs there are.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
#define LARGEST 32639.0f    /* 127 × 256 + 127 */
#define LEAST 1e-30f        /* groups of inputs below that are zeros */
#define PARALLEL_FROM 65536 /* weights, times rows of inputs; less is not worth a second thread */
#define DIGITS_AHEAD 8192   /* bytes that are asked for before they are needed; the processor alone looks less far */
#define GROUPS_AHEAD 4
#define PIECE 65536         /* weights that a thread takes at a time */

enum { UNIT = 16 }; /* bytes of a column: 16 rows in their low digits, and 16 half a tile further down in the high ones */

#include "lanes.h"

enum { EACH = 2 * VECTORS };

typedef struct {
    int64_t rows, columns, group, tile, bits;
    int64_t bfloat; /* whether inputs and results are bfloat16, else float32 */
} Matrix;

typedef struct {
    int8_t *high, *low; /* [columns] */
    float *scale;       /* [groups] */
    int32_t *sum;       /* [groups], of the whole numbers */
} Row;

INLINE float from_bfloat(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint16_t to_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t rounded = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

/* Turn `count` inputs into whole numbers; the scale is not a number where one of them is infinite or none. */
static void round_group(const float *inputs, int64_t count, int8_t *high, int8_t *low, float *scale, int32_t *sum) {
    int32_t most = 0, total = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, inputs + i, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, 4);
    if (most >= 0x7f800000 || largest < LEAST) {
        memset(high, 0, (size_t)count);
        memset(low, 0, (size_t)count);
        *scale = most >= 0x7f800000 ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    float inverse = LARGEST / largest;
    for (int64_t i = 0; i < count; i++) {
        float shifted = inputs[i] * inverse + 12582912.0f; /* 1.5 × 2^23: the last bits are the whole number */
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        int32_t whole = bits - 0x4b400000;
        low[i] = (int8_t)whole;
        high[i] = (int8_t)((whole - (int8_t)whole) >> 8);
        total += whole;
    }
    *scale = largest / LARGEST;
    *sum = total;
}

static void round_row(const Matrix *matrix, const void *inputs, int64_t number, Row row) {
    float group[256];
    for (int64_t g = 0, k = 0; k < matrix->columns; g++, k += matrix->group) {
        int64_t at = number * matrix->columns + k;
        const float *from = (const float *)inputs + at;
        if (matrix->bfloat) {
            for (int64_t i = 0; i < matrix->group; i++) group[i] = from_bfloat(((const uint16_t *)inputs)[at + i]);
            from = group;
        }
        round_group(from, matrix->group, row.high + k, row.low + k, row.scale + g, row.sum + g);
    }
}

INLINE void prefetch(const void *start, int num_bytes) {
    UNROLLED for (int line = 0; line < num_bytes; line += 64) __builtin_prefetch((const char *)start + line);
}

/* The first row in register `v` of a unit, counted from that of the tile. */
INLINE int row_of(int unit, int v, int half) { return unit * UNIT + v % VECTORS * LANES + v / VECTORS * half; }

/* Multiply `num` rows of inputs with `units` of a tile, from unit `first` on; `results` are [num][tile].
 *
 * All but the pointers are constants wherever this is inlined, so that the sums stay in registers. */
INLINE void multiply_units(
    const Matrix *matrix, const uint8_t *tile, const uint16_t *scales, const Row *inputs, float *results,
    int first, int half, int bits, int units, int num
) {
    const int group = (int)matrix->group, block = group < 32 ? group : 32, planes = bits / 4;
    const int offset = bits == 8 ? 136 : 8, weight_of_zero = bits == 8 ? 17 : 1;
    Floats made[ROWS][AT_ONCE][EACH];
    UNROLLED for (int r = 0; r < num; r++)
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++) made[r][u][v] = all_floats(0.0f);
    for (int g = 0, k = 0; k < matrix->columns; g++) {
        Ints high[ROWS][AT_ONCE][EACH], low[ROWS][AT_ONCE][EACH];
        UNROLLED for (int r = 0; r < num; r++)
            UNROLLED for (int u = 0; u < units; u++)
                UNROLLED for (int v = 0; v < EACH; v++) {
                    high[r][u][v] = all_ints(0);
                    low[r][u][v] = all_ints(-offset * inputs[r].sum[g]);
                }
        for (int end = k + group; k < end; k += block)
            UNROLLED for (int plane = 0; plane < planes; plane++)
                for (int column = k; column < k + block; column += 4, tile += 4 * half) {
                    prefetch(tile + DIGITS_AHEAD, 4 * half);
                    UNROLLED for (int u = 0; u < units; u++) {
                        Bytes digits[EACH]; /* first those of the upper rows */
                        unpack(tile, half, (first + u) * UNIT, plane, digits);
                        UNROLLED for (int r = 0; r < num; r++)
                            UNROLLED for (int v = 0; v < EACH; v++) {
                                high[r][u][v] = dot4(high[r][u][v], digits[v], same_four(inputs[r].high + column), plane);
                                low[r][u][v] = dot4(low[r][u][v], digits[v], same_four(inputs[r].low + column), plane);
                            }
                    }
                }
        const uint16_t *scale = scales + 2 * g * matrix->rows;
        prefetch(scale + 2 * GROUPS_AHEAD * matrix->rows, 8 * half); /* scales of a tile lie far apart */
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++) {
                int row = row_of(first + u, v, half);
                Ints pairs = load_ints(scale + 2 * row);
                Floats step = first_of_pairs(pairs), zero = second_of_pairs(pairs);
                UNROLLED for (int r = 0; r < num; r++) {
                    Floats exact = to_floats(join_halves(high[r][u][v], low[r][u][v]));
                    Floats input = all_floats(inputs[r].scale[g]);
                    Floats total = all_floats(inputs[r].scale[g] * (float)inputs[r].sum[g] * (float)weight_of_zero);
                    made[r][u][v] = multiply_add(zero, total, multiply_add(step, multiply(exact, input), made[r][u][v]));
                }
            }
    }
    UNROLLED for (int r = 0; r < num; r++)
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++)
                store_floats(results + 2 * half * r + row_of(first + u, v, half), made[r][u][v]);
}

INLINE void multiply_whole(
    const Matrix *matrix, const uint8_t *tile, const uint16_t *scales, const Row *inputs, float *results,
    int half, int bits, int at_once, int num
) {
    for (int first = 0; first < half / UNIT; first += at_once)
        multiply_units(matrix, tile, scales, inputs, results, first, half, bits, at_once, num);
}

/* Multiply ROWS rows of inputs, or one, with a tile. */
static void multiply_tile(
    const Matrix *matrix, const uint8_t *tile, const uint16_t *scales, const Row *inputs, float *results, int num
) {
#define CASE(HALF, BITS) \
    if (matrix->tile == 2 * HALF && matrix->bits == BITS) { \
        if (num > 1) multiply_whole(matrix, tile, scales, inputs, results, HALF, BITS, 1, ROWS); \
        else multiply_whole(matrix, tile, scales, inputs, results, HALF, BITS, HALF == 32 ? AT_ONCE : 1, 1); \
        return; \
    }
    CASE(32, 4) CASE(32, 8) CASE(16, 4) CASE(16, 8)
}

static void store(const Matrix *matrix, const float *results, void *outputs, int64_t at) {
    if (matrix->bfloat)
        for (int64_t i = 0; i < matrix->tile; i++) ((uint16_t *)outputs)[at + i] = to_bfloat(results[i]);
    else
        memcpy((float *)outputs + at, results, (size_t)matrix->tile * sizeof(float));
}

static void multiply_tiles(
    const Matrix *matrix, const uint8_t *packed, const uint16_t *scales, const Row *inputs, int64_t num, void *outputs,
    int64_t start, int64_t end
) {
    float results[ROWS * 64];
    for (int64_t t = start; t < end; t++) {
        const uint8_t *tile = packed + t * matrix->tile / 2 * matrix->columns * (matrix->bits / 4);
        int64_t row = t * matrix->tile;
        for (int64_t r = 0, step; r < num; r += step) {
            step = num - r < ROWS ? 1 : ROWS;
            multiply_tile(matrix, tile, scales + 2 * row, inputs + r, results, (int)step);
            for (int64_t i = 0; i < step; i++)
                store(matrix, results + i * matrix->tile, outputs, (r + i) * matrix->rows + row);
        }
    }
}

static void round_rows(const Matrix *matrix, const void *inputs, int64_t num, Row *rows, char *room) {
    int64_t groups = matrix->columns / matrix->group;
    for (int64_t r = 0; r < num; r++) {
        rows[r] = (Row){(int8_t *)room, (int8_t *)room + matrix->columns, (float *)(room + 2 * matrix->columns),
                        (int32_t *)(room + 2 * matrix->columns) + groups};
        room += 2 * matrix->columns + 8 * groups;
    }
#pragma omp parallel for if (num >= 2 * ROWS)
    for (int64_t r = 0; r < num; r++) round_row(matrix, inputs, r, rows[r]);
}

/* Set `outputs`, [num][rows], to `inputs`, [num][columns], times the transposed matrix. Returns 0, or 1 without memory. */
int layermesh_multiply(
    const Matrix *matrix, const uint8_t *packed, const uint16_t *scales, const void *inputs, void *outputs, int64_t num
) {
    int64_t groups = matrix->columns / matrix->group;
    Row *rows = malloc((size_t)num * (sizeof(Row) + (size_t)(2 * matrix->columns + 8 * groups)));
    if (!rows) return 1;
    round_rows(matrix, inputs, num, rows, (char *)(rows + num));
    int64_t tiles = matrix->rows / matrix->tile, each = PIECE / (matrix->tile * matrix->columns) + 1;
    int64_t pieces = (tiles + each - 1) / each;
    if (tiles * matrix->tile * matrix->columns * num < PARALLEL_FROM) {
        multiply_tiles(matrix, packed, scales, rows, num, outputs, 0, tiles);
    } else {
#pragma omp parallel for schedule(dynamic)
        for (int64_t p = 0; p < pieces; p++) {
            int64_t end = (p + 1) * each;
            multiply_tiles(matrix, packed, scales, rows, num, outputs, p * each, end < tiles ? end : tiles);
        }
    }
    free(rows);
    return 0;
}
