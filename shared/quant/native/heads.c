/* What a layer does with queries, keys and values between two products with matrices. */
#include "heads.h"

#define PARALLEL_FROM 65536 /* numbers that are turned, or products of queries and keys; less is not worth a second thread */
enum { WIDEST = 512 };      /* head */
enum { SIDE_BY_SIDE = 3 };  /* queries that look at a key at the same time, so that their sums stay in registers */

INLINE void turn(const Heads *heads, const void *norm, const float *cosines, const float *sines, void *states, int64_t at) {
    float head[WIDEST], made[WIDEST];
    int64_t half = heads->turned / 2;
    read_floats(heads->bfloat, states, at, heads->size, head);
    if (norm) normalise(heads->bfloat, norm, heads->size, (float)heads->epsilon, head);
    for (int64_t i = 0; i < half; i++) {
        made[i] = fmaf(-head[half + i], sines[i], head[i] * cosines[i]);
        made[half + i] = fmaf(head[i], sines[half + i], head[half + i] * cosines[half + i]);
    }
    for (int64_t i = heads->turned; i < heads->size; i++) made[i] = head[i];
    write_floats(heads->bfloat, made, heads->size, states, at);
}

/* Turn the queries and keys of `states`, [num][width], in place by phases [num][turned], normalised before if that is to be. */
void layermesh_turn(
    const Heads *heads, void *states, const void *cosines, const void *sines, const void *query_norm, const void *key_norm,
    int64_t num
) {
#pragma omp parallel for if (num * heads->width >= PARALLEL_FROM)
    for (int64_t token = 0; token < num; token++) {
        float cosine[WIDEST], sine[WIDEST];
        read_floats(heads->bfloat, cosines, token * heads->turned, heads->turned, cosine);
        read_floats(heads->bfloat, sines, token * heads->turned, heads->turned, sine);
        for (int64_t head = 0; head < heads->queries + heads->keys; head++) {
            const void *norm = head < heads->queries ? query_norm : key_norm;
            turn(heads, norm, cosine, sine, states, token * heads->width + head * heads->size);
        }
    }
}

/* Let `count` queries look at `num` keys and values of one head; `scores` is room for [count][num] numbers. */
INLINE void attend_some(
    const Heads *heads, const void *queries, const void *keys, const void *values, void *results, int64_t first,
    int64_t key_at, int64_t key_step, int64_t value_at, int64_t value_step, int64_t num, float *scores, int64_t size, int count
) {
    float query[SIDE_BY_SIDE][WIDEST], state[WIDEST], made[WIDEST], most[SIDE_BY_SIDE], total[SIDE_BY_SIDE];
    Floats sums[SIDE_BY_SIDE][WIDEST / LANES];
    UNROLLED for (int q = 0; q < count; q++) {
        read_floats(heads->bfloat, queries, (first + q) * size, size, query[q]);
        most[q] = -INFINITY;
        total[q] = 0.0f;
        UNROLLED for (int64_t i = 0; i < size / LANES; i++) sums[q][i] = all_floats(0.0f);
    }
    for (int64_t k = 0; k < num; k++) {
        const float *key = (const float *)keys + key_at + k * key_step;
        if (heads->bfloat) read_floats(1, keys, key_at + k * key_step, size, state), key = state;
        UNROLLED for (int q = 0; q < count; q++) {
            float score = dot(query[q], key, size) * (float)heads->scale;
            scores[q * num + k] = score;
            most[q] = score > most[q] ? score : most[q];
        }
    }
    UNROLLED for (int q = 0; q < count; q++)
        for (int64_t k = 0; k < num; k++) scores[q * num + k] = exponential(scores[q * num + k] - most[q]);
    for (int64_t k = 0; k < num; k++) {
        const float *value = (const float *)values + value_at + k * value_step;
        if (heads->bfloat) read_floats(1, values, value_at + k * value_step, size, state), value = state;
        UNROLLED for (int q = 0; q < count; q++) {
            Floats share = all_floats(scores[q * num + k]);
            total[q] += scores[q * num + k];
            UNROLLED for (int64_t i = 0; i < size / LANES; i++)
                sums[q][i] = multiply_add(share, load_floats(value + i * LANES), sums[q][i]);
        }
    }
    UNROLLED for (int q = 0; q < count; q++) {
        for (int64_t i = 0; i < size / LANES; i++)
            store_floats(made + i * LANES, multiply(sums[q][i], all_floats(1.0f / total[q])));
        write_floats(heads->bfloat, made, size, results, (first + q) * size);
    }
}

/* The same for all queries of one head of keys; `scores` is room for [queries][num] numbers. */
INLINE void attend_head(
    const Heads *heads, const void *queries, const void *keys, const void *values, void *results, int64_t head,
    int64_t key_at, int64_t key_step, int64_t value_at, int64_t value_step, int64_t num, float *scores, int64_t size
) {
    int64_t group = heads->queries / heads->keys, q = 0;
#define SOME(COUNT) \
    attend_some(heads, queries, keys, values, results, head * group + q, key_at, key_step, value_at, value_step, num, \
                scores + q * num, size, COUNT)
    for (; q + SIDE_BY_SIDE <= group; q += SIDE_BY_SIDE) SOME(SIDE_BY_SIDE);
    for (; q < group; q++) SOME(1);
}

/* Set `results` to what the queries of one token, [heads of queries][size], find among `num` keys and values, each
 * [heads of keys][num][size] with steps of its own. Returns 0, or 1 without memory. */
int layermesh_attend(
    const Heads *heads, const void *queries, const void *keys, const void *values, void *results, int64_t key_head_step,
    int64_t key_step, int64_t value_head_step, int64_t value_step, int64_t num
) {
    int64_t room = heads->queries / heads->keys * num;
    float *scores = malloc((size_t)(room * heads->keys) * sizeof(float));
    if (!scores) return 1;
#define ATTEND(SIZE) \
    attend_head(heads, queries, keys, values, results, head, head * key_head_step, key_step, head * value_head_step, \
                value_step, num, scores + head * room, SIZE)
#pragma omp parallel for if (heads->queries * heads->size * num >= PARALLEL_FROM)
    for (int64_t head = 0; head < heads->keys; head++) {
        if (heads->size == 64) ATTEND(64); /* known to the compiler, so that sums stay in registers */
        else if (heads->size == 128) ATTEND(128);
        else ATTEND(heads->size);
    }
    free(scores);
    return 0;
}
