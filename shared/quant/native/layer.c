/* A whole layer for one token, in one call: the same products and the same steps between them, with the same bits. */
#include "heads.h"

typedef struct {
    const Heads *heads;
    const void *norm, *second_norm, *query_norm, *key_norm; /* the last two may be NULL */
    int64_t num_first;                                      /* how many of `first` there are */
    Factor first[MOST_FACTORS], output, gate_up, down;      /* without addresses of inputs and results */
} Layer;

INLINE int multiply_by(Factor by, const void *inputs, const void *norm, const void *residual, void *outputs) {
    by.residual = residual;
    by.outputs = outputs;
    return layermesh_multiply_each(&by, 1, inputs, norm, 1);
}

/* Write the keys, or the values, of one token to those before it. */
INLINE void keep(const Heads *heads, const char *states, void *room, int64_t head_step, int64_t at) {
    int64_t item = heads->bfloat ? 2 : 4;
    for (int64_t head = 0; head < heads->keys; head++)
        memcpy((char *)room + (head * head_step + at) * item, states + head * heads->size * item, (size_t)(heads->size * item));
}

/* Set `results`, [hidden], to what the layer makes of `inputs`, of the token behind `past` others, whose key and value come
 * to theirs: [heads of keys][tokens][size] with steps of their own. `results` may not be `inputs`. Returns 0, or 1 without
 * memory. */
int layermesh_pass_token(
    const Layer *layer, const void *inputs, const void *cosine, const void *sine, void *keys, void *values, void *results,
    int64_t key_head_step, int64_t key_step, int64_t value_head_step, int64_t value_step, int64_t past
) {
    const Heads *heads = layer->heads;
    int64_t item = heads->bfloat ? 2 : 4, looking = heads->queries * heads->size, keeping = heads->keys * heads->size;
    int64_t hidden = layer->down.matrix->used, inside = layer->down.matrix->columns;
    char *states = malloc((size_t)((heads->width + looking + hidden + inside) * item)), *column = states;
    if (!states) return 1;
    char *found = states + heads->width * item, *middle = found + looking * item, *gated = middle + hidden * item;
    Factor first[MOST_FACTORS];
    for (int64_t i = 0; i < layer->num_first; i++) {
        first[i] = layer->first[i];
        first[i].outputs = column;
        column += first[i].matrix->used * item;
    }
    int failed = layermesh_multiply_each(first, layer->num_first, inputs, layer->norm, 1);
    layermesh_turn(heads, states, cosine, sine, layer->query_norm, layer->key_norm, 1);
    keep(heads, states + looking * item, keys, key_head_step, past * key_step);
    keep(heads, states + (looking + keeping) * item, values, value_head_step, past * value_step);
    failed |= layermesh_attend(
        heads, states, keys, values, found, key_head_step, key_step, value_head_step, value_step, past + 1
    );
    failed |= multiply_by(layer->output, found, NULL, inputs, middle);
    failed |= multiply_by(layer->gate_up, middle, layer->second_norm, NULL, gated);
    failed |= multiply_by(layer->down, gated, NULL, middle, results);
    free(states);
    return failed;
}
