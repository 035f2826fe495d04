/* How the queries, keys and values of a token lie side by side, and how they are turned and compared. */
#include "matrix.h"

typedef struct {
    int64_t queries, keys;  /* heads of each */
    int64_t size, turned;   /* numbers of a head, and how many of them a phase turns */
    int64_t width;          /* numbers of a token: heads of queries, of keys, of values */
    int64_t bfloat;
    double epsilon, scale;
} Heads;

void layermesh_turn(
    const Heads *heads, void *states, const void *cosines, const void *sines, const void *query_norm, const void *key_norm,
    int64_t num
);

int layermesh_attend(
    const Heads *heads, const void *queries, const void *keys, const void *values, void *results, int64_t key_head_step,
    int64_t key_step, int64_t value_head_step, int64_t value_step, int64_t num
);
