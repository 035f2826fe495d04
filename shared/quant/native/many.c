/* Products of many rows of inputs with a matrix of 4-bit digits, in the tiles of shared/quant/tiles.py.
 *
 * Inputs and weights become whole numbers of 8 bits, under a scale for each CHUNK of columns: so few scales that next to
 * nothing but the processor's products of whole numbers is left, and so many that rounding costs little beside that of the
 * 4 bits. Weights are unpacked once for all inputs, PANEL rows at a time. The bits of a row of results depend neither on the
 * rows beside it nor on the number of threads nor on the kind of processor.
 */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-coalesce-vars") /* which would keep sums on the stack, at half the speed (gcc 12) */
#endif
#include "matrix.h"

#define LARGEST 127.0f

enum { CHUNK = 64, STEPS = CHUNK / TOGETHER, PANEL = 2 * UNIT };

/* Inputs of all rows, in blocks of TOKENS of them, and of each all chunks one after the other. */
typedef struct {
    Input *whole;   /* [blocks][chunks][TOKENS][CHUNK] */
    float *scale;   /* [blocks][chunks][TOKENS] */
    int32_t *start; /* [blocks][chunks][TOKENS], that to which products with weights that are ABOVE too large are added */
} Inputs;

/* Rows of the matrix: UNIT of the upper half of a tile, then as many of the lower one. */
typedef struct {
    Weights *weights; /* [chunks][STEPS][EACH], plus ABOVE */
    Floats *scale;    /* [chunks][EACH] */
} Panel;

static void round_block(
    const Matrix *matrix, Around around, const void *inputs, int64_t num, int64_t block, float *room, Inputs into
) {
    int64_t chunks = matrix->columns / CHUNK;
    for (int64_t t = 0; t < TOKENS; t++) {
        int64_t row = block * TOKENS + t;
        if (row < num) read_inputs(matrix, around, inputs, row, room);
        else memset(room, 0, (size_t)matrix->columns * sizeof(float));
        for (int64_t c = 0; c < chunks; c++) {
            int64_t at = (block * chunks + c) * TOKENS + t;
            int8_t *bytes = sizeof(Input) == 1 ? (int8_t *)(into.whole + at * CHUNK) : NULL;
            int16_t *pairs = sizeof(Input) == 1 ? NULL : (int16_t *)(into.whole + at * CHUNK);
            round_inputs(room + c * CHUNK, CHUNK, LARGEST, NULL, bytes, pairs, into.scale + at, into.start + at);
            into.start[at] *= -ABOVE;
        }
    }
}

/* Round the weights of a chunk, whose first column is `k`, in the rows of a unit. */
INLINE void round_chunk(
    const Matrix *matrix, const uint8_t *tile, const uint8_t *scales, int unit, int half, int nested, int64_t k,
    Weights *weights, Floats *made
) {
    const Places places = places_of(matrix, 2 * half, nested);
    const int64_t groups = matrix->group < CHUNK ? CHUNK / matrix->group : 1, each = CHUNK / groups;
    Floats step[2][EACH], least[2][EACH], inverse[EACH];
    UNROLLED for (int v = 0; v < EACH; v++) {
        Floats largest = all_floats(LEAST), unfit = all_floats(0.0f);
        for (int64_t g = 0; g < groups; g++) {
            const uint8_t *from = scales + (k / matrix->group + g) * places.group + scale_bytes(nested) * row_of(unit, v, half);
            Scales loaded = load_scales(from, nested);
            Floats zero = nested ? multiply(loaded.step, multiply(loaded.zero, all_floats(0.0625f))) : loaded.zero;
            step[g][v] = loaded.step;
            least[g][v] = multiply_add(step[g][v], all_floats(-8.0f), zero);
            Floats most = multiply_add(step[g][v], all_floats(7.0f), zero);
            largest = larger_size(larger_size(largest, least[g][v]), most);
            unfit = multiply_add(all_floats(0.0f), most, unfit); /* 0, or not a number */
        }
        inverse[v] = divide(all_floats(LARGEST), largest);
        made[v] = add(divide(largest, all_floats(LARGEST)), unfit);
        if (nested) {
            made[v] = multiply(made[v], load_row_scales(scales + places.rows + 2 * row_of(unit, v, half)));
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        Floats times[EACH], plus[EACH];
        UNROLLED for (int v = 0; v < EACH; v++) {
            times[v] = multiply(step[g][v], inverse[v]);
            plus[v] = multiply_add(least[g][v], inverse[v], all_floats(128.0f));
        }
        for (int64_t column = k + g * each; column < k + (g + 1) * each; column += 4, weights += 4 / TOGETHER * EACH) {
            Bytes digits[EACH];
            unpack(tile + column * half, half, unit * UNIT, AS_IT_IS, digits);
            UNROLLED for (int v = 0; v < EACH; v++) round_weights(digits[v], times[v], plus[v], weights + v, EACH);
        }
    }
}

static void round_panel(const Matrix *matrix, const uint8_t *tile, const uint8_t *scales, int unit, Panel panel) {
    for (int64_t c = 0; c < matrix->columns / CHUNK; c++) {
        Weights *weights = panel.weights + c * STEPS * EACH;
        Floats *scale = panel.scale + c * EACH;
#define CASE(HALF, NESTED) \
    if (matrix->tile == 2 * HALF && matrix->nested == NESTED) \
        round_chunk(matrix, tile, scales, unit, HALF, NESTED, c * CHUNK, weights, scale);
        CASE(32, 1) CASE(32, 0) CASE(16, 1) CASE(16, 0)
    }
}

/* Multiply a block of inputs with a panel. */
static void multiply_block(int64_t chunks, Panel panel, const Input *whole, const float *scale, const int32_t *start,
                           float results[TOKENS][PANEL]) {
    memset(results, 0, sizeof(float) * TOKENS * PANEL);
    for (int64_t c = 0; c < chunks; c++, whole += TOKENS * CHUNK, scale += TOKENS, start += TOKENS)
        for (int first = 0; first < EACH; first += AT_A_TIME) {
            Ints sums[TOKENS][AT_A_TIME];
            UNROLLED for (int t = 0; t < TOKENS; t++)
                UNROLLED for (int v = 0; v < AT_A_TIME; v++) sums[t][v] = all_ints(start[t]);
            const Weights *weights = panel.weights + c * STEPS * EACH + first;
            for (int column = 0; column < CHUNK; column += TOGETHER, weights += EACH) {
                Weights used[AT_A_TIME];
                UNROLLED for (int v = 0; v < AT_A_TIME; v++) used[v] = in_register(weights[v]);
                UNROLLED for (int t = 0; t < TOKENS; t++)
                    UNROLLED for (int v = 0; v < AT_A_TIME; v++)
                        sums[t][v] = dot_weights(sums[t][v], used[v], same_inputs(whole + t * CHUNK + column));
            }
            UNROLLED for (int t = 0; t < TOKENS; t++)
                UNROLLED for (int v = 0; v < AT_A_TIME; v++) {
                    float *result = results[t] + (first + v) * LANES;
                    Floats unit = multiply(panel.scale[c * EACH + first + v], all_floats(scale[t]));
                    store_floats(result, multiply_add(to_floats(sums[t][v]), unit, load_floats(result)));
                }
        }
}

/* Multiply all inputs with a panel, or with two of them, the second of which gates the first. */
static void multiply_panels(
    const Matrix *matrix, Around around, const Panel *panels, Inputs inputs, int64_t num, void *outputs, int64_t row
) {
    int64_t chunks = matrix->columns / CHUNK;
    float results[2][TOKENS][PANEL];
    for (int64_t first = 0; first < num; first += TOKENS) {
        int64_t at = first * chunks;
        for (int64_t half = 0; half <= matrix->gated; half++)
            multiply_block(
                chunks, panels[half], inputs.whole + at * CHUNK, inputs.scale + at, inputs.start + at, results[half]
            );
        for (int64_t t = 0; t < TOKENS && first + t < num; t++) {
            const float *ups = matrix->gated ? results[1][t] : NULL;
            finish(matrix, around, results[0][t], ups, outputs, first + t, row);
            if (ups) ups += UNIT;
            finish(matrix, around, results[0][t] + UNIT, ups, outputs, first + t, row + matrix->tile / 2);
        }
    }
}

/* Return whether this processor multiplies whole numbers so fast that layermesh_multiply_many is the best way. */
int layermesh_has_fast_many(void) { return HAS_FAST_MANY; }

/* As layermesh_multiply_few, for 4 bits and whole chunks of columns. */
int layermesh_multiply_many(
    const Matrix *matrix, const uint8_t *packed, const uint8_t *scales, const void *inputs, const void *norm,
    const void *bias, const void *residual, void *outputs, int64_t num
) {
    int64_t chunks = matrix->columns / CHUNK, blocks = (num + TOKENS - 1) / TOKENS, scaled = blocks * TOKENS * chunks;
    int64_t tiles = (matrix->used + matrix->tile - 1) / matrix->tile, second = matrix->used / matrix->tile;
    Around around = {norm, bias, residual};
    char *room = malloc((size_t)scaled * (CHUNK * sizeof(Input) + 8));
    if (!room) return 1;
    float *scales_room = (float *)(room + (size_t)scaled * CHUNK * sizeof(Input));
    Inputs rounded = {(Input *)room, scales_room, (int32_t *)(scales_room + scaled)};
    int failed = 0;
#pragma omp parallel
    {
        size_t in_panel = (size_t)chunks * (STEPS * sizeof(Weights) + sizeof(Floats)) * EACH;
        char *mine = aligned_alloc(64, 2 * in_panel + (size_t)matrix->columns * sizeof(float));
        Panel panels[2];
        for (int half = 0; half < 2; half++) {
            char *start = mine + half * in_panel;
            panels[half] = (Panel){(Weights *)start, (Floats *)(start + (size_t)chunks * STEPS * EACH * sizeof(Weights))};
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++)
            if (mine) round_block(matrix, around, inputs, num, b, (float *)(mine + 2 * in_panel), rounded);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < tiles; t++)
            for (int unit = 0; unit < matrix->tile / PANEL && mine; unit++) {
                for (int64_t half = 0; half <= matrix->gated; half++) {
                    int64_t tile = t + half * second, row = tile * matrix->tile;
                    const uint8_t *digits = packed + row / 2 * matrix->columns;
                    round_panel(matrix, digits, scales_of(matrix, scales, tile), unit, panels[half]);
                }
                multiply_panels(matrix, around, panels, rounded, num, outputs, t * matrix->tile + unit * UNIT);
            }
        if (!mine) {
#pragma omp atomic write
            failed = 1;
        }
        free(mine);
    }
    free(room);
    return failed;
}
