/* Products of a few rows of inputs with a matrix of 4-bit digits, in the tiles of shared/quant/tiles.py.
 *
 * Each group of inputs becomes whole numbers of 16 bits under one scale and is multiplied with the weights as they are, with the
 * matrix's rows side by side in a register: 4 columns at a time, with numbers of 8 bits that are 256 × high + low, or IN_PAIRS
 * of columns, whole. Sums of a group are exact; scales and zeros come to them in float32. Every result is computed by one
 * thread in one order, with the same operations whatever the processor, so that it depends neither on the number of threads nor
 * on how many rows of inputs there are.
 */
#include "matrix.h"

#define LARGEST 32639.0f    /* 127 × 256 + 127 */
#define PARALLEL_FROM 65536 /* weights, times rows of inputs; less is not worth a second thread */
#define FAR_AHEAD 4096      /* bytes that are brought closer before they are needed; the processor alone looks less far */
#define NEAR_AHEAD 1024     /* and those that come as close as they can */
#define GROUPS_AHEAD 4
#define PIECE 524288        /* weights that a thread takes at a time, about */

typedef struct {
#ifdef IN_PAIRS
    int16_t *whole; /* [columns] */
#else
    int8_t *high, *low; /* [columns] */
#endif
    float *scale;       /* [groups] */
    int32_t *sum;       /* [groups], of the whole numbers */
} Row;

/* Where a tile lies, and its scales. */
typedef struct {
    const uint8_t *digits, *scales;
} Tile;

INLINE void round_groups(const Matrix *matrix, const float *inputs, Row row, int64_t group) {
    for (int64_t g = 0, k = 0; k < matrix->columns; g++, k += group) {
#ifdef IN_PAIRS
        round_inputs(inputs + k, group, LARGEST, NULL, NULL, row.whole + k, row.scale + g, row.sum + g);
#else
        round_inputs(inputs + k, group, LARGEST, row.high + k, row.low + k, NULL, row.scale + g, row.sum + g);
#endif
    }
}

static void round_row(const Matrix *matrix, const float *inputs, Row row) {
    if (matrix->group == 32) round_groups(matrix, inputs, row, 32); /* known to the compiler */
    else round_groups(matrix, inputs, row, matrix->group);
}

INLINE void fetch_far(const void *start, int num_bytes) {
    UNROLLED for (int line = 0; line < num_bytes; line += 64) __builtin_prefetch((const char *)start + line, 0, 2);
}

INLINE void fetch_near(const void *start, int num_bytes) {
    UNROLLED for (int line = 0; line < num_bytes; line += 64) __builtin_prefetch((const char *)start + line, 0, 3);
}

/* Where the digits of a group begin, and those that are asked for ahead. */
typedef struct {
    const uint8_t *tile, *near, *far;
} Digits;

/* What lies `ahead` bytes behind the digits of a group: in the tile or, behind its `num_bytes`, in the next one. */
INLINE const uint8_t *lying_ahead(
    const uint8_t *group, int64_t ahead, const uint8_t *tile, const uint8_t *next, int64_t num_bytes
) {
    int64_t at = group - tile + ahead;
    return at < num_bytes ? tile + at : next + (at - num_bytes);
}

/* Add the products of a group, the first of whose columns is `k`, and go on to the next. Products are with digits less what
 * they are above the weights. All but the pointers are constants, here and in `multiply_units`. */
INLINE void sum_group(
    Digits *at, const Row *inputs, int g, int k, int group, int first, int half, int bits, int units, int num,
    Ints exact[ROWS][AT_ONCE][EACH]
) {
    const int block = group < 32 ? group : 32, offset = bits == 8 ? 136 : bits == 6 ? 40 : 8;
#ifdef IN_PAIRS
    Ints sums[ROWS][AT_ONCE * EACH];
    UNROLLED for (int r = 0; r < num; r++)
        UNROLLED for (int i = 0; i < units * EACH; i++)
            sums[r][i] = all_ints(-offset * inputs[r].sum[g] * (bits == 4 && i % 4 > 1 ? 16 : 1));
#else
    Ints high[ROWS][AT_ONCE][EACH], low[ROWS][AT_ONCE][EACH];
    UNROLLED for (int r = 0; r < num; r++)
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++) {
                high[r][u][v] = all_ints(0);
                low[r][u][v] = all_ints(-offset * inputs[r].sum[g]);
            }
#endif
    for (int end = k + group; k < end; k += block)
        UNROLLED for (int plane = 0; plane <= (bits > 4); plane++) {
            const int halved = plane && bits == 6; /* digits of two columns each, 4 apart */
            for (int column = k; column < k + block; column += halved ? 8 : 4) {
                fetch_far(at->far, 4 * half);
                fetch_near(at->near, 4 * half);
                UNROLLED for (int later = 0; later <= halved; later++) {
                    const int part = halved ? LOWER_TWO + later : plane ? RAISED : AS_IT_IS, input = column + 4 * later;
#ifdef IN_PAIRS
                    UNROLLED for (int two = 0; two < 4; two += 2) {
                        Ints pairs[AT_ONCE];
                        pair_columns(at->tile + two * half, half, first, units, pairs);
                        UNROLLED for (int i = 0; i < units * EACH; i++) {
                            Ints digits = digits_of(pairs[i / 4], i % 4, bits, part);
                            UNROLLED for (int r = 0; r < num; r++)
                                sums[r][i] = dot2(sums[r][i], digits, same_two(inputs[r].whole + input + two));
                        }
                    }
#else
                    UNROLLED for (int u = 0; u < units; u++) {
                        Bytes digits[EACH]; /* first those of the upper rows */
                        unpack(at->tile, half, (first + u) * UNIT, part, digits);
                        UNROLLED for (int r = 0; r < num; r++)
                            UNROLLED for (int v = 0; v < EACH; v++) {
                                high[r][u][v] = dot4(high[r][u][v], digits[v], same_four(inputs[r].high + input));
                                low[r][u][v] = dot4(low[r][u][v], digits[v], same_four(inputs[r].low + input));
                            }
                    }
#endif
                }
                at->tile += 4 * half;
                at->near += 4 * half;
                at->far += 4 * half;
            }
        }
    UNROLLED for (int r = 0; r < num; r++) {
#ifdef IN_PAIRS
        order_sums(sums[r], units, bits, exact[r][0]);
#else
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++) exact[r][u][v] = join_halves(high[r][u][v], low[r][u][v]);
#endif
    }
}

/* Multiply `num` rows of inputs with `units` of a tile, from unit `first` on; `results` are [num][tile]. What is asked for
 * ahead goes on with the `next` tile. What is constant wherever this is inlined lets the sums stay in registers. */
INLINE void multiply_units(
    const Matrix *matrix, Tile at, Tile next, const Row *inputs, float *results, int first, int half, int bits, int nested,
    int units, int num
) {
    const int group = (int)matrix->group;
    const float weight_of_zero = bits > 4 ? 17.0f : nested ? 0.0625f : 1.0f;
    const int64_t num_bytes = matrix->columns * half * bits / 4, groups = matrix->columns / group;
    const Places places = places_of(matrix, 2 * half, nested);
    Digits digits = {at.digits, NULL, NULL};
    Floats made[ROWS][AT_ONCE][EACH];
    UNROLLED for (int r = 0; r < num; r++)
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++) made[r][u][v] = all_floats(0.0f);
    for (int g = 0, k = 0; k < matrix->columns; g++, k += group) {
        Ints exact[ROWS][AT_ONCE][EACH];
        digits.far = lying_ahead(digits.tile, FAR_AHEAD, at.digits, next.digits, num_bytes);
        digits.near = lying_ahead(digits.tile, NEAR_AHEAD, at.digits, next.digits, num_bytes);
        sum_group(&digits, inputs, g, k, group, first, half, bits, units, num, exact);
        int64_t later = g + GROUPS_AHEAD, all = groups + nested; /* with those of rows */
        const uint8_t *wanted_scales = later < all ? at.scales : next.scales;
        fetch_near(wanted_scales + (later < all ? later : later - all) * places.group, scale_bytes(nested) * 2 * half);
        UNROLLED for (int u = 0; u < units; u++)
            UNROLLED for (int v = 0; v < EACH; v++) {
                int row = row_of(first + u, v, half);
                Scales scales = load_scales(at.scales + g * places.group + scale_bytes(nested) * row, nested);
                UNROLLED for (int r = 0; r < num; r++) {
                    Floats input = all_floats(inputs[r].scale[g]);
                    Floats total = all_floats(inputs[r].scale[g] * (float)inputs[r].sum[g] * weight_of_zero);
                    Floats scaled = multiply(to_floats(exact[r][u][v]), input);
                    if (nested) {
                        scaled = multiply_add(scales.zero, total, scaled);
                        made[r][u][v] = multiply_add(scales.step, scaled, made[r][u][v]);
                    } else {
                        made[r][u][v] = multiply_add(scales.zero, total, multiply_add(scales.step, scaled, made[r][u][v]));
                    }
                }
            }
    }
    UNROLLED for (int u = 0; u < units; u++)
        UNROLLED for (int v = 0; v < EACH; v++) {
            int row = row_of(first + u, v, half);
            Floats whole = nested ? load_row_scales(at.scales + places.rows + 2 * row) : all_floats(1.0f);
            UNROLLED for (int r = 0; r < num; r++) {
                Floats result = nested ? multiply(made[r][u][v], whole) : made[r][u][v];
                store_floats(results + 2 * half * r + row, result);
            }
        }
}

INLINE void multiply_whole(
    const Matrix *matrix, Tile at, Tile next, const Row *inputs, float *results, int half, int bits, int nested, int at_once,
    int num
) {
    for (int first = 0; first < half / UNIT; first += at_once)
        multiply_units(
            matrix, at, first + at_once < half / UNIT ? at : next, inputs, results, first, half, bits, nested, at_once, num
        );
}

/* Multiply ROWS rows of inputs, or one, with a tile. */
static void multiply_tile(const Matrix *matrix, Tile at, Tile next, const Row *inputs, float *results, int num) {
#define CASE(HALF, BITS, NESTED) \
    if (matrix->tile == 2 * HALF && matrix->bits == BITS && matrix->nested == NESTED) { \
        if (num > 1) multiply_whole(matrix, at, next, inputs, results, HALF, BITS, NESTED, 1, ROWS); \
        else multiply_whole(matrix, at, next, inputs, results, HALF, BITS, NESTED, HALF == 32 ? AT_ONCE : 1, 1); \
        return; \
    }
    CASE(32, 4, 1) CASE(32, 4, 0) CASE(32, 6, 0) CASE(32, 8, 0)
    CASE(16, 4, 1) CASE(16, 4, 0) CASE(16, 6, 0) CASE(16, 8, 0)
}

INLINE Tile tile_of(const Factor *factor, int64_t number) {
    const Matrix *matrix = factor->matrix;
    int64_t row = number * matrix->tile;
    const uint8_t *digits = factor->packed + row * matrix->columns * matrix->bits / 8;
    return (Tile){digits, scales_of(matrix, factor->scales, number)};
}

static void multiply_tiles(const Factor *factor, const Row *inputs, int64_t num, int64_t start, int64_t end) {
    const Matrix *matrix = factor->matrix;
    Around around = {NULL, factor->bias, factor->residual};
    float results[2][ROWS * 64];
    int64_t second = matrix->used / matrix->tile; /* tiles further on, where the other half of the rows begins */
    for (int64_t t = start; t < end; t++)
        for (int64_t r = 0, step; r < num; r += step) {
            step = num - r < ROWS ? 1 : ROWS;
            int64_t following = r + step < num ? t : t + 1;
            for (int64_t half = 0; half <= matrix->gated; half++) {
                int64_t next = half < matrix->gated ? t + second : following;
                multiply_tile(
                    matrix, tile_of(factor, t + half * second), tile_of(factor, next), inputs + r, results[half], (int)step
                );
            }
            for (int64_t i = 0; i < step; i++)
                for (int64_t j = 0; j < matrix->tile; j += UNIT) {
                    int64_t at = i * matrix->tile + j;
                    const float *ups = matrix->gated ? results[1] + at : NULL;
                    finish(matrix, around, results[0] + at, ups, factor->outputs, r + i, t * matrix->tile + j);
                }
        }
}

/* Bytes for `num` rows of inputs, as floats and rounded. */
INLINE size_t room_for(const Matrix *matrix, int64_t num) {
    int64_t groups = matrix->columns / matrix->group;
    return (size_t)num * (sizeof(Row) + (size_t)(6 * matrix->columns + 8 * groups));
}

static void round_rows(const Matrix *matrix, Around around, const void *inputs, int64_t num, Row *rows) {
    int64_t groups = matrix->columns / matrix->group;
    float *floats = (float *)(rows + num);
    char *room = (char *)(floats + num * matrix->columns);
    for (int64_t r = 0; r < num; r++) {
        float *scale = (float *)(room + 2 * matrix->columns);
#ifdef IN_PAIRS
        rows[r] = (Row){(int16_t *)room, scale, (int32_t *)(scale + groups)};
#else
        rows[r] = (Row){(int8_t *)room, (int8_t *)room + matrix->columns, scale, (int32_t *)(scale + groups)};
#endif
        room += 2 * matrix->columns + 8 * groups;
    }
#pragma omp parallel for if (num >= 2 * ROWS)
    for (int64_t r = 0; r < num; r++) {
        read_inputs(matrix, around, inputs, r, floats + r * matrix->columns);
        round_row(matrix, floats + r * matrix->columns, rows[r]);
    }
}

INLINE int64_t tiles_of(const Matrix *matrix) { return (matrix->used + matrix->tile - 1) / matrix->tile; }
INLINE int64_t tiles_at_once(const Matrix *matrix) {
    int64_t each = PIECE / (matrix->tile * matrix->columns * (1 + matrix->gated));
    return each ? each : 1;
}

/* Multiply the same inputs, [num][columns], normalised with `norm` if that is not NULL, with each of `count` matrices.
 * Returns 0, or 1 without memory. */
int layermesh_multiply_each(const Factor *factors, int64_t count, const void *inputs, const void *norm, int64_t num) {
    Row *rows[MOST_FACTORS] = {0};
    int64_t pieces[MOST_FACTORS], total = 0, weights = 0;
    int failed = count > MOST_FACTORS;
    for (int64_t i = 0; i < count && !failed; i++) {
        const Matrix *matrix = factors[i].matrix;
        int64_t each = tiles_at_once(matrix);
        pieces[i] = (tiles_of(matrix) + each - 1) / each;
        total += pieces[i];
        weights += matrix->used * (1 + matrix->gated) * matrix->columns;
        if (i && matrix->group == factors[i - 1].matrix->group) {
            rows[i] = rows[i - 1];
            continue;
        }
        rows[i] = malloc(room_for(matrix, num));
        failed = !rows[i];
        if (!failed) round_rows(matrix, (Around){norm, NULL, NULL}, inputs, num, rows[i]);
    }
    if (failed) total = 0;
#pragma omp parallel for schedule(dynamic) if (weights * num >= PARALLEL_FROM)
    for (int64_t p = 0; p < total; p++) {
        int64_t i = 0, piece = p;
        while (piece >= pieces[i]) piece -= pieces[i++];
        int64_t each = tiles_at_once(factors[i].matrix), tiles = tiles_of(factors[i].matrix), end = (piece + 1) * each;
        multiply_tiles(factors + i, rows[i], num, piece * each, end < tiles ? end : tiles);
    }
    for (int64_t i = count - 1; i >= 0 && count <= MOST_FACTORS; i--)
        if (!i || rows[i] != rows[i - 1]) free(rows[i]);
    return failed;
}

/* Set `outputs` to what `around` makes of `inputs`, [num][columns], times the transposed matrix: [num][used], `width` apart.
 * Returns 0, or 1 without memory. */
int layermesh_multiply_few(
    const Matrix *matrix, const uint8_t *packed, const uint8_t *scales, const void *inputs, const void *norm,
    const void *bias, const void *residual, void *outputs, int64_t num
) {
    Factor factor = {matrix, packed, scales, bias, residual, outputs};
    return layermesh_multiply_each(&factor, 1, inputs, norm, num);
}
