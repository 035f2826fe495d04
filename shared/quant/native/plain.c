/* Products of one token, or of one of each of several sequences, with a matrix that is not packed.
 *
 * A weight is read once for all inputs. Every result is a sum over the columns in one order, the same whoever else there is,
 * so that a token gets the bits that it gets alone.
 */
#include "matrix.h"

#define PARALLEL_FROM 65536 /* weights; less is not worth a second thread */
#define PIECE 262144        /* bytes of weights that a thread takes at a time, about */
#define FAR 32768           /* bytes within which the next rows are asked for ahead; else what comes after */
#define NEAR 2048
#define ROWS_AT_ONCE (LANES == 16 ? 4 : 2)
#define INPUTS_AT_ONCE (LANES == 16 ? 4 : 2)

/* What is done with one matrix. Inputs are float32: where weights are bfloat16, those of even columns in the first half and
 * those of odd ones in the second, as `part_inputs` leaves them. */
typedef struct {
    int64_t rows, columns, bfloat;
    const char *weights;
    const float *inputs; /* [num][columns] */
    const void *bias;    /* [rows], or NULL */
    void *outputs;       /* [num][rows] */
} Plain;

INLINE int64_t row_bytes(const Plain *plain) { return plain->columns * (plain->bfloat ? 2 : 4); }

/* Multiply `rows` rows of the matrix from `row` on with `num` inputs from `input` on; both are constants where inlined. */
INLINE void multiply_block(const Plain *plain, int64_t row, int64_t input, int rows, int num, int bfloat) {
    const int64_t step = row_bytes(plain), half = plain->columns / 2, columns = bfloat ? half : plain->columns;
    const int64_t ahead = rows * step <= FAR ? rows * step : NEAR;
    const char *weights = plain->weights + row * step;
    const float *inputs = plain->inputs + input * plain->columns;
    Floats sums[ROWS_AT_ONCE][INPUTS_AT_ONCE][VECTORS];
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int i = 0; i < num; i++)
            UNROLLED for (int v = 0; v < VECTORS; v++) sums[r][i][v] = all_floats(0.0f);
    for (int64_t k = 0; k < columns; k += PARTS)
        UNROLLED for (int v = 0; v < VECTORS; v++) {
            const int64_t at = k + v * LANES;
            Floats first[ROWS_AT_ONCE], second[ROWS_AT_ONCE];
            UNROLLED for (int r = 0; r < rows; r++) {
                const char *from = weights + r * step + 4 * at;
                __builtin_prefetch(from + ahead);
                if (bfloat) {
                    Ints pairs = load_ints(from);
                    first[r] = first_of_pairs(pairs);
                    second[r] = second_of_pairs(pairs);
                } else {
                    first[r] = load_floats((const float *)from);
                }
            }
            UNROLLED for (int i = 0; i < num; i++) {
                const float *own = inputs + i * plain->columns + at;
                Floats even = load_floats(own);
                UNROLLED for (int r = 0; r < rows; r++) sums[r][i][v] = multiply_add(first[r], even, sums[r][i][v]);
                if (bfloat) {
                    Floats odd = load_floats(own + half);
                    UNROLLED for (int r = 0; r < rows; r++) sums[r][i][v] = multiply_add(second[r], odd, sums[r][i][v]);
                }
            }
        }
    UNROLLED for (int i = 0; i < num; i++)
        UNROLLED for (int r = 0; r < rows; r++) {
            float made = sum_lanes(sums[r][i]);
            if (plain->bias) add_floats(bfloat, plain->bias, row + r, 1, &made);
            write_floats(bfloat, &made, 1, plain->outputs, (input + i) * plain->rows + row + r);
        }
}

INLINE void multiply_inputs(const Plain *plain, int64_t num, int64_t row, int rows, int bfloat) {
    int64_t input = 0;
    for (; input + INPUTS_AT_ONCE <= num; input += INPUTS_AT_ONCE)
        multiply_block(plain, row, input, rows, INPUTS_AT_ONCE, bfloat);
    for (; input < num; input++) multiply_block(plain, row, input, rows, 1, bfloat);
}

static void multiply_rows(const Plain *plain, int64_t num, int64_t row, int64_t end) {
    for (; row + ROWS_AT_ONCE <= end; row += ROWS_AT_ONCE) {
        if (plain->bfloat) multiply_inputs(plain, num, row, ROWS_AT_ONCE, 1);
        else multiply_inputs(plain, num, row, ROWS_AT_ONCE, 0);
    }
    for (; row < end; row++) {
        if (plain->bfloat) multiply_inputs(plain, num, row, 1, 1);
        else multiply_inputs(plain, num, row, 1, 0);
    }
}

/* Write bfloat16 inputs, [num][columns], to `into` as floats, those of even columns first. */
static void part_inputs(const uint16_t *inputs, int64_t num, int64_t columns, float *into) {
    for (int64_t i = 0; i < num; i++, inputs += columns, into += columns)
        for (int64_t k = 0; k < columns / 2; k++) {
            into[k] = from_bfloat(inputs[2 * k]);
            into[columns / 2 + k] = from_bfloat(inputs[2 * k + 1]);
        }
}

/* Set `outputs`, [num][rows], to `inputs`, [num][columns], times the transposed matrix, [rows][columns], plus `bias` if that
 * is not NULL; all are float32, or bfloat16. Columns are whole numbers of 32. Returns 0, or 1 without memory. */
int layermesh_multiply_plain(
    const void *weights, const void *inputs, const void *bias, void *outputs, int64_t rows, int64_t columns, int64_t bfloat,
    int64_t num
) {
    float *parted = bfloat ? malloc((size_t)(num * columns) * sizeof(float)) : NULL;
    if (bfloat && !parted) return 1;
    if (bfloat) part_inputs(inputs, num, columns, parted);
    Plain plain = {rows, columns, bfloat, weights, bfloat ? parted : inputs, bias, outputs};
    int64_t each = PIECE / row_bytes(&plain) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    each = each ? each : ROWS_AT_ONCE;
#pragma omp parallel for schedule(dynamic) if (rows * columns >= PARALLEL_FROM)
    for (int64_t piece = 0; piece < (rows + each - 1) / each; piece++) {
        int64_t end = (piece + 1) * each;
        multiply_rows(&plain, num, piece * each, end < rows ? end : rows);
    }
    free(parted);
    return 0;
}
